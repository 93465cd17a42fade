//! Who may connect to a Unix socket of the node.
//!
//! The node's own user and root, by the credentials that the kernel noted when the peer connected. The socket's mode says
//! the same; this holds where somebody opened it, or a directory above it, to others. Ray's own raylet has no such check.

use std::io;

use rustix::process::{geteuid, Uid};
use tokio::net::UnixStream;

/// Mode of the node's Unix sockets: connecting takes the right to write.
pub const SOCKET_MODE: u32 = 0o600;

/// A peer that is turned away.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Another user's process.
    #[error("process {pid:?} of uid {uid} may not connect: expected uid {own} or root")]
    Stranger {
        /// Its process id; `None` where it is in a namespace that this one does not see.
        pid: Option<i32>,
        /// Its user.
        uid: u32,
        /// The node's user.
        own: u32,
    },
    /// The kernel does not say who it is.
    #[error("the peer's credentials can't be read: {0}")]
    Unknown(#[from] io::Error),
}

/// Lets a connection in, or says why not.
///
/// # Errors
/// See [`PeerError`].
pub fn check(connection: &UnixStream) -> Result<(), PeerError> {
    let peer = connection.peer_cred()?;
    let own = geteuid().as_raw();
    if peer.uid() == own || peer.uid() == Uid::ROOT.as_raw() {
        return Ok(());
    }
    Err(PeerError::Stranger { pid: peer.pid().filter(|pid| *pid != 0), uid: peer.uid(), own })
}

#[cfg(test)]
mod tests {
    use std::fs::{set_permissions, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream as StdStream;

    use tokio::net::UnixListener;

    use super::*;

    /// Connects as this user and, where this user is root and may become another, as nobody: who came in each time.
    #[tokio::test]
    async fn the_own_user_comes_in_and_another_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let _own = StdStream::connect(&path).unwrap();
        check(&listener.accept().await.unwrap().0).unwrap();
        if !geteuid().is_root() {
            return;
        }
        // Opened to all, as a careless user might.
        set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        const NOBODY: u32 = 65534;
        let stranger = std::thread::spawn(move || {
            let nobody = Uid::from_raw(NOBODY);
            // Of this thread alone.
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            StdStream::connect(path).unwrap()
        });
        let _stranger = stranger.join().unwrap();
        match check(&listener.accept().await.unwrap().0) {
            Err(PeerError::Stranger { uid: NOBODY, own: 0, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
