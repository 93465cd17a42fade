//! File descriptors behind frames (Ray 2.60 `fling.cc`, `connection.cc`).
//!
//! The store hands a segment to a client as one extra byte on the plasma socket, sent with `SCM_RIGHTS` and exactly
//! one descriptor. The client reads it with a one-byte `recvmsg`, right after the frame that made it expect the
//! segment (see [`super::plasma`]); it ignores the byte's value, which stock Ray leaves at 0x14.
//!
//! **The byte needs a `sendmsg` of its own.** Ray reads the frame before it with plain `read`s, and the kernel drops
//! descriptors that are attached to bytes which a plain `read` consumes. Bytes sent in one `sendmsg` share their
//! descriptors, so a frame and a descriptor in one call would lose the descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    recvmsg, send, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The byte that carries a descriptor.
const CARRIER: [u8; 1] = [0x14];

/// Control bytes for a descriptor, and for one more so that a second one is noticed.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(2));

/// A descriptor or its frame could not be passed on.
#[derive(Debug, thiserror::Error)]
pub enum FdPassError {
    /// The socket failed.
    #[error("passing a descriptor over a Unix socket failed: {0}")]
    Io(#[from] Errno),
    /// The peer closed the connection.
    #[error("the peer closed the connection where a descriptor was expected")]
    Closed,
    /// The byte came with another number of descriptors than one.
    #[error("expected a byte with one descriptor, got it with {got}")]
    Count {
        /// How many came.
        got: usize,
    },
}

/// A frame and the descriptors behind it, on their way through a socket that may take them piecemeal.
///
/// ```
/// # use raylet_uring::ray::wire::fdpass::{receive_fd, PendingSend, Progress};
/// # use std::{io::Read, os::fd::AsFd, os::unix::net::UnixStream};
/// # let (store, mut client) = UnixStream::pair()?;
/// # let segment = std::fs::File::open("/dev/null")?;
/// let fds = [segment.as_fd()];
/// let mut pending = PendingSend::new(b"the frame", &fds);
/// while pending.advance(&store)? == Progress::Blocked {
///     // wait until the socket is writable
/// }
/// # client.read_exact(&mut [0; 9])?;
/// # receive_fd(&client)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PendingSend<'a> {
    /// What is left of the frame.
    frame: &'a [u8],
    /// What is left of the descriptors.
    fds: &'a [BorrowedFd<'a>],
}

/// How far a [`PendingSend`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The socket has taken everything.
    Done,
    /// The socket is full: go on when it is writable.
    Blocked,
}

impl<'a> PendingSend<'a> {
    /// Nothing is sent yet. The descriptors are sent after the frame, in order, and stay the caller's.
    pub fn new(frame: &'a [u8], fds: &'a [BorrowedFd<'a>]) -> Self {
        Self { frame, fds }
    }

    /// Sends as much as the socket takes now, without blocking. After an error the stream is out of step: close it.
    pub fn advance(&mut self, socket: impl AsFd) -> Result<Progress, FdPassError> {
        const FLAGS: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);
        loop {
            let outcome = match (self.frame, self.fds) {
                ([], []) => return Ok(Progress::Done),
                ([], [fd, ..]) => send_carrier(&socket, *fd, FLAGS).map(|()| self.fds = &self.fds[1..]),
                (frame, _) => send(&socket, frame, FLAGS).map(|sent| self.frame = &frame[sent..]),
            };
            match outcome {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Progress::Blocked),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Sends one byte with one descriptor.
fn send_carrier(socket: impl AsFd, fd: BorrowedFd<'_>, flags: SendFlags) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    // CONTROL_BYTES has room for two descriptors, so there is room for this one.
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[IoSlice::new(&CARRIER)], &mut control, flags).map(|_| ())
}

/// Takes the byte with a descriptor off a socket, as a plasma client does. On a non-blocking socket that has nothing
/// to read this is [`FdPassError::Io`] with `EAGAIN`.
pub fn receive_fd(socket: impl AsFd) -> Result<OwnedFd, FdPassError> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut byte)];
        match recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            outcome => break outcome?,
        }
    };
    let mut fds: Vec<OwnedFd> = Vec::with_capacity(1);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    match (fds.pop(), fds.len()) {
        (Some(fd), 0) => Ok(fd),
        (None, _) if received.bytes == 0 => Err(FdPassError::Closed),
        (last, before) => Err(FdPassError::Count { got: before + usize::from(last.is_some()) }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn file_with(content: &[u8]) -> std::fs::File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(content).expect("written");
        file
    }

    fn content_of(fd: OwnedFd) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut content = vec![0; 3];
        std::fs::File::from(fd).read_exact_at(&mut content, 0).expect("read");
        content
    }

    #[test]
    fn a_frame_and_its_descriptors_arrive_in_order() {
        let (store, mut client) = UnixStream::pair().expect("a socket pair");
        let (one, two) = (file_with(b"one"), file_with(b"two"));
        let fds = [one.as_fd(), two.as_fd()];
        assert_eq!(PendingSend::new(b"frame", &fds).advance(&store).expect("sent"), Progress::Done);
        assert_eq!(PendingSend::new(b"next", &[]).advance(&store).expect("sent"), Progress::Done);

        // As Ray's client: the frame in pieces with plain reads, then a byte with a descriptor at a time.
        let mut frame = [0; 5];
        client.read_exact(&mut frame[..2]).expect("the frame's start");
        client.read_exact(&mut frame[2..]).expect("the frame's rest");
        assert_eq!(&frame, b"frame");
        assert_eq!(content_of(receive_fd(&client).expect("first")), b"one");
        assert_eq!(content_of(receive_fd(&client).expect("second")), b"two");
        let mut next = [0; 4];
        client.read_exact(&mut next).expect("the next frame");
        assert_eq!(&next, b"next");
    }

    #[test]
    fn a_full_socket_blocks_and_goes_on_later() {
        let (store, mut client) = UnixStream::pair().expect("a socket pair");
        let file = file_with(b"abc");
        let fds = [file.as_fd()];
        let frame = vec![7u8; 4 << 20];
        let mut pending = PendingSend::new(&frame, &fds);
        assert_eq!(pending.advance(&store).expect("part is sent"), Progress::Blocked);
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; 4 << 20];
            client.read_exact(&mut got).expect("the whole frame");
            (got, receive_fd(&client).expect("then the descriptor"))
        });
        while pending.advance(&store).expect("more is sent") == Progress::Blocked {
            std::thread::yield_now();
        }
        let (got, fd) = reader.join().expect("the reader ends");
        assert!(got == frame);
        assert_eq!(content_of(fd), b"abc");
    }

    #[test]
    fn a_byte_without_a_descriptor_and_a_closed_peer_are_told_apart() {
        let (store, client) = UnixStream::pair().expect("a socket pair");
        (&store).write_all(b"x").expect("sent");
        assert!(matches!(receive_fd(&client), Err(FdPassError::Count { got: 0 })));
        drop(store);
        assert!(matches!(receive_fd(&client), Err(FdPassError::Closed)));
    }

    #[test]
    fn two_descriptors_on_one_byte_are_refused_and_closed() {
        let (store, client) = UnixStream::pair().expect("a socket pair");
        let file = file_with(b"abc");
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [file.as_fd(), file.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&store, &[IoSlice::new(&CARRIER)], &mut control, SendFlags::empty()).expect("sent");
        assert!(matches!(receive_fd(&client), Err(FdPassError::Count { got: 2 })));
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_not_a_signal() {
        let (store, client) = UnixStream::pair().expect("a socket pair");
        drop(client);
        assert!(matches!(PendingSend::new(b"x", &[]).advance(&store), Err(FdPassError::Io(Errno::PIPE))));
    }
}
