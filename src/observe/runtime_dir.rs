//! The well-known directory in which every node of a user has its admin socket, so that `raylet-uring status` finds it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The end of an admin socket's name: `<pid>.sock`.
const SOCKET_SUFFIX: &str = ".sock";
/// Entries of a runtime directory that are looked at. More than these are no nodes of one machine.
const ENTRIES_MAX: usize = 4096;

/// A directory that must not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeDirError {
    /// The directory can't be made or looked at.
    #[error("runtime directory {path}: {source}; set RAYLET_URING_RUNTIME_DIR to a directory that you may write")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else could plant a socket there.
    #[error("runtime directory {path}: expected a directory of this user (uid {uid}) with mode 0700, got {got}; remove it, or set RAYLET_URING_RUNTIME_DIR to another")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// This user.
        uid: u32,
        /// What is there.
        got: String,
    },
}

/// Where a node of its own has its native door, unless a setting says otherwise. Not found as an admin socket.
pub fn native_socket_path(runtime_dir: &Path, pid: u32) -> PathBuf {
    runtime_dir.join(format!("{pid}.native"))
}

/// Makes the directory where it isn't there yet, and checks that it is ours alone.
///
/// # Errors
/// [`RuntimeDirError`]: a directory in /tmp that another user made first, a link, an open mode.
pub fn prepare(path: &Path) -> Result<(), RuntimeDirError> {
    let io = |source| RuntimeDirError::Io { path: path.to_owned(), source };
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
        _ => {}
    }
    let meta = fs::symlink_metadata(path).map_err(io)?;
    let uid = rustix::process::geteuid().as_raw();
    let mode = meta.permissions().mode() & 0o777;
    let got = if !meta.is_dir() {
        "no directory".to_owned()
    } else if meta.uid() != uid {
        format!("a directory of uid {}", meta.uid())
    } else if mode != 0o700 {
        format!("mode {mode:04o}")
    } else {
        return Ok(());
    };
    Err(RuntimeDirError::Unsafe { path: path.to_owned(), uid, got })
}

/// The admin socket of the process `pid` in a runtime directory.
pub fn socket_path(dir: &Path, pid: u32) -> PathBuf {
    dir.join(format!("{pid}{SOCKET_SUFFIX}"))
}

/// The admin sockets in a directory at which a node answers a connection, in the order of their process ids. Sockets that
/// nobody listens on any more (the node was killed) are removed. A directory that isn't there has none.
///
/// # Errors
/// Where the directory can't be read.
pub fn running(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries.take(ENTRIES_MAX) {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_suffix(SOCKET_SUFFIX)).and_then(|n| n.parse::<u32>().ok());
        let (Some(pid), true) = (pid, entry.file_type().is_ok_and(|t| t.is_socket())) else {
            continue;
        };
        match UnixStream::connect(entry.path()) {
            Ok(_) => found.push((pid, entry.path())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // Not ours to remove in another user's directory; whoever owns it will.
                let _ = fs::remove_file(entry.path());
            }
            Err(error) => {
                tracing::debug!(path = %entry.path().display(), %error, "admin socket doesn't answer")
            }
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Every user's runtime directories, for `status --all`: those below /run/user and those in /tmp.
pub fn of_all_users() -> Vec<PathBuf> {
    let list = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let in_tmp =
        list("/tmp").filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("raylet-uring-")));
    list("/run/user").map(|p| p.join("raylet-uring")).chain(in_tmp).filter(|p| p.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_new_directory_is_private_and_an_open_one_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("nodes");
        prepare(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        prepare(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let error = prepare(&dir).unwrap_err().to_string();
        assert!(error.contains("got mode 0755"), "{error}");
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert!(prepare(&link).unwrap_err().to_string().contains("got no directory"));
        assert!(matches!(prepare(&root.path().join("a/b")), Err(RuntimeDirError::Io { .. })));
    }

    #[test]
    fn listening_sockets_are_found_and_stale_ones_removed() {
        let dir = tempfile::tempdir().unwrap();
        let _late = UnixListener::bind(socket_path(dir.path(), 200)).unwrap();
        let _early = UnixListener::bind(socket_path(dir.path(), 30)).unwrap();
        drop(UnixListener::bind(socket_path(dir.path(), 7)).unwrap());
        let _other = UnixListener::bind(dir.path().join("other.sock")).unwrap();
        fs::write(dir.path().join("1.sock"), "no socket").unwrap();
        let expected = [socket_path(dir.path(), 30), socket_path(dir.path(), 200)];
        assert_eq!(running(dir.path()).unwrap(), expected);
        assert!(!socket_path(dir.path(), 7).exists(), "stale");
        assert!(dir.path().join("1.sock").exists() && dir.path().join("other.sock").exists(), "not ours to remove");
        assert_eq!(running(&dir.path().join("missing")).unwrap(), Vec::<PathBuf>::new());
    }
}
