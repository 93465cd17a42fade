//! Directories for spilled objects: `ray_spilled_objects_{node id}` in each place that the configuration names, as in Ray 2.60.
//!
//! A directory of this node holds a file that is locked for as long as the node lives. One whose file nobody has locked was left by
//! a node that died, and goes. A directory without such a file was not made by us, and is left alone.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{flock, statvfs, FlockOperation};

/// What the directories' names begin with.
pub const PREFIX: &str = "ray_spilled_objects_";

/// The file that a living node has locked.
const LOCK_NAME: &str = ".raylet-uring.lock";

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}: spilled objects need a directory that can be written to; set --spill-dir or RAY_object_spilling_directory", path.display())]
pub struct DirectoryError {
    /// Which.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

/// A directory of this node, for as long as the value lives.
#[derive(Debug)]
pub struct SpillDirectory {
    path: PathBuf,
    _lock: File,
}

impl SpillDirectory {
    /// Makes a node's directory inside `parent`, and locks it.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn make(parent: &Path, node_id: &str) -> Result<Self, DirectoryError> {
        let path = parent.join(format!("{PREFIX}{node_id}"));
        let locked = fs::create_dir_all(&path).and_then(|()| {
            let lock = File::create(path.join(LOCK_NAME))?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            Ok(lock)
        });
        match locked {
            Ok(lock) => Ok(Self { path, _lock: lock }),
            Err(source) => Err(DirectoryError { path, source }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all that is in it, at the node's end. What can't be removed stays for the next node.
    ///
    /// # Errors
    /// The system's answer, unless somebody else removed it.
    pub fn remove(self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Removes what dead nodes have left in `parent`. Returns the directories that went.
pub fn clear_leftovers(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    let named = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let ours_and_dead = named.map(|entry| entry.path()).filter(|path| is_left_over(path));
    ours_and_dead.filter(|path| fs::remove_dir_all(path).is_ok()).collect()
}

fn is_left_over(path: &Path) -> bool {
    let Ok(lock) = File::open(path.join(LOCK_NAME)) else {
        return false;
    };
    flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Room on the disk of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// What is left to us, in bytes.
    pub free_bytes: u64,
}

/// How much room there is.
///
/// # Errors
/// The system's answer.
pub fn room(path: &Path) -> io::Result<Room> {
    let stat = statvfs(path)?;
    Ok(Room {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// Whether a file of `bytes` may be made there: afterwards no more than `share` of the disk (0 to 1) may be full.
///
/// # Errors
/// In words.
pub fn check_room(path: &Path, bytes: u64, share: f64) -> Result<(), String> {
    let room = room(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let kept = (room.total_bytes as f64 * (1.0 - share)) as u64;
    if room.free_bytes < bytes.saturating_add(kept) {
        return Err(format!(
            "{}: {} bytes are free, {bytes} are needed and {kept} stay free (RAY_local_fs_capacity_threshold)",
            path.display(),
            room.free_bytes
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dead_nodes_left_goes_and_what_lives_or_is_not_ours_stays() {
        let parent = tempfile::tempdir().unwrap();
        let dead = SpillDirectory::make(parent.path(), "dead").unwrap();
        let dead_path = dead.path().to_owned();
        fs::write(dead_path.join("a-multi-1"), b"bytes").unwrap();
        drop(dead);
        let lives = SpillDirectory::make(parent.path(), "lives").unwrap();
        let stock = parent.path().join(format!("{PREFIX}stock"));
        fs::create_dir(&stock).unwrap();
        fs::create_dir(parent.path().join("other")).unwrap();
        assert_eq!(clear_leftovers(parent.path()), vec![dead_path.clone()]);
        assert!(!dead_path.exists() && lives.path().exists() && stock.exists());
        assert!(clear_leftovers(&parent.path().join("nowhere")).is_empty());
        let path = lives.path().to_owned();
        lives.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_can_not_be_is_named() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("file"), b"").unwrap();
        let error = SpillDirectory::make(&parent.path().join("file"), "n").unwrap_err();
        assert!(error.to_string().contains("file/ray_spilled_objects_n"), "{error}");
        assert!(room(parent.path()).unwrap().total_bytes > 0);
    }
}
