//! Executables: telling ours from Ray's, and replacing files so that no moment is without a whole one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use memchr::memmem;
use sha2::{Digest, Sha256};

use super::AttachError;

/// Bytes that every build of ours has in it, and no raylet of Ray's.
pub const MARKER: &[u8] = b"raylet-uring executable, marker 3f6b51c2-9f0e-4c1d-8a57-52d1c0a6e7b4";

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// Whose an executable is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A build of raylet-uring.
    Ours,
    /// Anything else, which in its place is Ray's own.
    Stock,
}

/// An executable that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub kind: Kind,
    /// In hexadecimal.
    pub sha256: String,
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AttachError {
    let path = path.to_owned();
    move |source| AttachError::File { action, path, source }
}

/// Called before every change to the file system, so that tests can stop at each of them.
#[cfg(not(test))]
fn step() -> io::Result<()> {
    Ok(())
}
#[cfg(test)]
use super::tests::step;

/// Looks at an executable; `None` where there is no file.
pub(super) fn inspect(path: &Path) -> Result<Option<Found>, AttachError> {
    match File::open(path) {
        Ok(file) => read_through(file, |_| Ok(())).map(Some).map_err(error("read", path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(error("read", path)(e)),
    }
}

/// Reads a file once, hands its bytes on, and says what it is.
fn read_through(mut file: impl Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<Found> {
    let finder = memmem::Finder::new(MARKER);
    let (mut sha, mut kind) = (Sha256::new(), Kind::Stock);
    // The end of each piece is kept before the next one, so that a marker across two pieces is found.
    let keep = MARKER.len() - 1;
    let mut buffer = vec![0; keep + BUFFER_BYTES];
    let mut kept = 0;
    loop {
        let read = match file.read(&mut buffer[kept..]) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let piece = &buffer[kept..kept + read];
        sha.update(piece);
        each(piece)?;
        let end = kept + read;
        if kind == Kind::Stock && finder.find(&buffer[..end]).is_some() {
            kind = Kind::Ours;
        }
        kept = end.min(keep);
        buffer.copy_within(end - kept..end, 0);
    }
    let sha256 = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Found { kind, sha256 })
}

/// Copies an executable to a new file, synced and with mode 0755.
pub(super) fn copy_executable(from: &Path, to: &Path) -> Result<Found, AttachError> {
    let source = File::open(from).map_err(error("read", from))?;
    remove(to)?;
    step().map_err(error("write", to))?;
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o755).open(to).map_err(error("write", to))?;
    let found = read_through(source, |piece| copy.write_all(piece)).map_err(error("copy to", to))?;
    step().map_err(error("make executable", to))?;
    // The mode above is subject to the umask, and a raylet that others can't start is none to them.
    copy.set_permissions(fs::Permissions::from_mode(0o755)).map_err(error("make executable", to))?;
    copy.sync_all().map_err(error("sync", to))?;
    Ok(found)
}

/// Gives the file `from` the further name `to`, replacing what has it. `from` keeps its name throughout.
pub(super) fn link_over(from: &Path, to: &Path) -> Result<(), AttachError> {
    let new = suffixed(to, "-new");
    remove(&new)?;
    step().map_err(error("link", from))?;
    match fs::hard_link(from, &new) {
        Ok(()) => {}
        // A file system without hard links.
        Err(e)
            if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
                || e.raw_os_error() == Some(libc::EPERM) =>
        {
            copy_executable(from, &new)?;
        }
        Err(e) => return Err(error("link", from)(e)),
    }
    rename(&new, to)?;
    // Renaming one name of a file to another of its names does nothing and leaves both.
    remove(&new)
}

/// Writes a file under another name, synced, and renames it.
pub(super) fn write_over(path: &Path, bytes: &[u8]) -> Result<(), AttachError> {
    let new = suffixed(path, "-new");
    step().map_err(error("write", &new))?;
    let mut file = File::create(&new).map_err(error("write", &new))?;
    step().map_err(error("write", &new))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(error("write", &new))?;
    rename(&new, path)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), AttachError> {
    step().and_then(|()| fs::rename(from, to)).map_err(error("replace", to))
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) -> Result<(), AttachError> {
    match step().and_then(|()| fs::remove_file(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Makes renames in a file's directory last through a loss of power.
pub(super) fn sync_directory_of(path: &Path) -> Result<(), AttachError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    step().and_then(|()| File::open(directory)).and_then(|d| d.sync_all()).map_err(error("sync", directory))
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_found_wherever_it_lies() {
        for at in [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES - 30, BUFFER_BYTES, 3 * BUFFER_BYTES] {
            let mut bytes = vec![7; at];
            bytes.extend_from_slice(MARKER);
            bytes.extend_from_slice(&[1, 2, 3]);
            assert_eq!(read_through(bytes.as_slice(), |_| Ok(())).unwrap().kind, Kind::Ours, "{at}");
            // A byte less of it is no marker.
            bytes[at + MARKER.len() / 2] ^= 1;
            assert_eq!(read_through(bytes.as_slice(), |_| Ok(())).unwrap().kind, Kind::Stock, "{at}");
        }
    }

    #[test]
    fn the_checksum_is_sha256() {
        let sha = read_through(&b"abc"[..], |_| Ok(())).unwrap().sha256;
        assert_eq!(sha, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn linking_over_itself_leaves_one_file_with_two_names() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "x").unwrap();
        link_over(&a, &b).unwrap();
        link_over(&a, &b).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        fs::write(&a, "y").unwrap();
        assert_eq!(fs::read_to_string(&b).unwrap(), "y");
    }
}
