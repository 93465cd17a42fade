//! Descriptors over a Unix socket, attached to the bytes of their frame.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    recvmsg, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::frame::DESCRIPTORS_MAX;

/// Control bytes for the descriptors of one frame.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// Sends what the socket takes now of `bytes`, with `descriptors` (at most [`DESCRIPTORS_MAX`]) attached to the first of them.
/// `None`: nothing, since the socket is full.
///
/// # Errors
/// Where the peer is gone.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<Option<usize>> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other(format!(
            "{} descriptors in a frame, at most {DESCRIPTORS_MAX}",
            descriptors.len()
        )));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => return Ok(Some(sent)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads what is there, up to the length of `bytes`, and puts descriptors that came with it into `descriptors`. `None`: nothing now;
/// 0: the peer has closed.
///
/// # Errors
/// Where the peer is gone, or sent more descriptors at once than a frame may have.
pub fn receive(socket: impl AsFd, bytes: &mut [u8], descriptors: &mut VecDeque<OwnedFd>) -> io::Result<Option<usize>> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        match recvmsg(&socket, &mut parts, &mut control, flags) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(format!(
            "more than {DESCRIPTORS_MAX} descriptors came at once: the peer is broken"
        )));
    }
    Ok(Some(received.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_come_with_the_bytes_they_were_sent_with() {
        let (a, b) = UnixStream::pair().unwrap();
        let files: Vec<OwnedFd> =
            (0..3).map(|_| rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::empty()).unwrap()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        assert_eq!(send(&a, b"first", &[]).unwrap(), Some(5));
        assert_eq!(send(&a, b"second", &borrowed).unwrap(), Some(6));
        let (mut bytes, mut descriptors) = ([0; 64], VecDeque::new());
        let mut received = 0;
        while received < 11 {
            received += receive(&b, &mut bytes, &mut descriptors).unwrap().unwrap();
        }
        assert_eq!(descriptors.len(), 3);
        assert_eq!(receive(&b, &mut bytes, &mut descriptors).unwrap(), None, "nothing is there now");
        drop(a);
        assert_eq!(receive(&b, &mut bytes, &mut descriptors).unwrap(), Some(0), "closed");
    }

    #[test]
    fn a_full_socket_takes_nothing_and_a_closed_one_fails() {
        let (a, b) = UnixStream::pair().unwrap();
        while send(&a, &[0; 65536], &[]).unwrap().is_some() {}
        drop(b);
        assert!(send(&a, &[0; 10], &[]).is_err());
    }
}
