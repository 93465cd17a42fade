//! A local client's connection on a core: whole frames out of what came in, answers without waiting, descriptors passed.
//!
//! What comes in is handed over by the core's ring, and frames are read where they lie; only one that came in pieces is put
//! together first. Writing tries the socket at once, because a reply almost always fits its buffer; what does not fit is
//! kept, up to [`MAX_UNSENT_BYTES`], and sent when the ring tells that there is room. A client that does not read its
//! replies harms only itself: past the bound its connection is closed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;

use rustix::net::{SendFlags, Shutdown};

use crate::core_io::Wishes;
use crate::peer::SOCKET_MODE;
use crate::ray::wire::fdpass::{PendingSend, Progress};
use crate::ray::wire::frame::{self, parse_header, Frame, FrameError, HEADER_BYTES};

/// Most bytes of replies kept for a client that does not read them.
pub const MAX_UNSENT_BYTES: usize = 64 << 20;

/// A buffer of a connection that once held a large frame is given back when it is larger than this.
const KEPT_BUFFER_BYTES: usize = 256 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The socket failed.
    #[error("socket error: {0}")]
    Io(#[from] io::Error),
    /// The peer closed the socket in the middle of a frame.
    #[error("the peer closed its connection {missing_bytes} bytes before the end of a frame")]
    Truncated {
        /// Bytes that the frame still lacked.
        missing_bytes: usize,
    },
    /// The peer sent what is no frame of this protocol.
    #[error("{0}")]
    Frame(String),
}

/// Binds a Unix socket inside a tokio runtime, replacing a file that a dead process left there. glommio's own listener neither
/// tells the descriptors of its connections nor takes a listener that is bound already.
///
/// # Errors
/// Fails when another process is listening on the path, when the path is too long for a socket address (107 bytes), or
/// when its directory can't be written.
pub fn listen(path: &Path) -> io::Result<tokio::net::UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another process is listening on {}", path.display()),
        ));
    }
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let failed = |e: io::Error| io::Error::other(format!("cannot listen on {}: {e}", path.display()));
    let listener = tokio::net::UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    Ok(listener)
}

/// The bytes of a connection that are no whole frame yet.
#[derive(Default)]
pub struct Inbound {
    pending: Vec<u8>,
}

impl Inbound {
    /// Takes what came in, and hands out the frames that are whole. False of `each`: the client leaves, and what it sent after
    /// that is of no interest.
    ///
    /// # Errors
    /// A header that is none, a body longer than `limit_bytes`, and what `each` returns. The connection is of no more use.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        limit_bytes: u64,
        mut each: impl FnMut(Frame<'_>) -> Result<bool, ConnectionError>,
    ) -> Result<bool, ConnectionError> {
        if self.pending.is_empty() {
            let used = match frames(bytes, limit_bytes, &mut each)? {
                Some(used) => used,
                None => return Ok(false),
            };
            self.pending.extend_from_slice(&bytes[used..]);
            return Ok(true);
        }
        self.pending.extend_from_slice(bytes);
        let used = match frames(&self.pending, limit_bytes, &mut each)? {
            Some(used) => used,
            None => return Ok(false),
        };
        self.pending.drain(..used);
        if self.pending.is_empty() && self.pending.capacity() > KEPT_BUFFER_BYTES {
            self.pending = Vec::new();
        }
        Ok(true)
    }

    /// The peer closed its side: an error where that was within a frame.
    ///
    /// # Errors
    /// [`ConnectionError::Truncated`].
    pub fn close(&self, limit_bytes: u64) -> Result<(), ConnectionError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let wanted = match self.pending.first_chunk() {
            Some(head) => HEADER_BYTES + parse_header(head, limit_bytes).map_err(no_frame)?.body_bytes,
            None => HEADER_BYTES,
        };
        Err(ConnectionError::Truncated { missing_bytes: wanted.saturating_sub(self.pending.len()) })
    }
}

/// Hands out the whole frames; returns how many bytes they take, or `None` where the client left.
fn frames(
    bytes: &[u8],
    limit_bytes: u64,
    each: &mut impl FnMut(Frame<'_>) -> Result<bool, ConnectionError>,
) -> Result<Option<usize>, ConnectionError> {
    let mut used = 0;
    while let Some(frame) = frame::split(&bytes[used..], limit_bytes).map_err(no_frame)? {
        used += frame.frame_bytes;
        if !each(frame)? {
            return Ok(None);
        }
    }
    Ok(Some(used))
}

fn no_frame(error: FrameError) -> ConnectionError {
    ConnectionError::Frame(error.to_string())
}

/// The writing half, shared by everyone on the core who answers this client.
#[derive(Clone)]
pub struct Writer(Rc<WriterState>);

struct WriterState {
    socket: Rc<OwnedFd>,
    key: u64,
    wishes: Rc<Wishes>,
    unsent: RefCell<Unsent>,
}

#[derive(Default)]
struct Unsent {
    parts: VecDeque<Part>,
    bytes: usize,
    blocked: bool,
    closing: bool,
}

/// What waits for room in the socket, in order.
enum Part {
    /// Bytes, and how many of them are out.
    Bytes(Vec<u8>, usize),
    Descriptor(OwnedFd),
}

impl Writer {
    /// Writes to a socket that the core receives from under `key`.
    pub fn new(socket: Rc<OwnedFd>, key: u64, wishes: Rc<Wishes>) -> Self {
        Self(Rc::new(WriterState { socket, key, wishes, unsent: RefCell::default() }))
    }

    /// Sends `frame`, or keeps what the socket does not take now. An error means the connection is of no more use.
    ///
    /// # Errors
    /// What the socket says, and a client that left too much unread.
    pub fn send(&self, frame: &[u8]) -> Result<(), ConnectionError> {
        let mut unsent = self.0.unsent.borrow_mut();
        let sent = if unsent.blocked { 0 } else { self.try_send(frame)? };
        if sent == frame.len() {
            return Ok(());
        }
        self.keep(&mut unsent, Part::Bytes(frame[sent..].to_vec(), 0), frame.len() - sent)
    }

    /// Passes a descriptor to the client, behind everything sent before.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_descriptor(&self, fd: BorrowedFd<'_>) -> Result<(), ConnectionError> {
        let mut unsent = self.0.unsent.borrow_mut();
        if !unsent.blocked && pass(&self.0.socket, fd)? == Progress::Done {
            return Ok(());
        }
        self.keep(&mut unsent, Part::Descriptor(fd.try_clone_to_owned()?), 0)
    }

    fn try_send(&self, bytes: &[u8]) -> Result<usize, ConnectionError> {
        match rustix::net::send(&*self.0.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => Ok(sent),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(0),
            Err(e) => Err(ConnectionError::Io(e.into())),
        }
    }

    fn keep(&self, unsent: &mut Unsent, part: Part, bytes: usize) -> Result<(), ConnectionError> {
        if unsent.bytes + bytes > MAX_UNSENT_BYTES {
            return Err(ConnectionError::Io(io::Error::other(format!(
                "the client left more than {MAX_UNSENT_BYTES} bytes of replies unread"
            ))));
        }
        unsent.bytes += bytes;
        unsent.parts.push_back(part);
        if !std::mem::replace(&mut unsent.blocked, true) {
            self.0.wishes.tell_writable(self.0.key);
        }
        Ok(())
    }

    /// True while the socket takes nothing more.
    pub fn is_blocked(&self) -> bool {
        self.0.unsent.borrow().blocked
    }

    /// Closes the connection in both directions once what was sent is out.
    pub fn close(&self) {
        let mut unsent = self.0.unsent.borrow_mut();
        unsent.closing = true;
        if !unsent.blocked {
            self.shut();
        }
    }

    /// Closes the connection in both directions at once.
    pub fn shut(&self) {
        // The peer may have gone first; there is nobody left to tell.
        let _ = rustix::net::shutdown(&*self.0.socket, Shutdown::Both);
    }

    /// The socket has room again.
    pub fn writable(&self) {
        let mut unsent = self.0.unsent.borrow_mut();
        match self.flush(&mut unsent) {
            Ok(true) => {
                unsent.blocked = false;
                if unsent.closing {
                    self.shut();
                }
            }
            Ok(false) => self.0.wishes.tell_writable(self.0.key),
            Err(error) => {
                tracing::debug!(%error, "a client stopped reading its replies");
                self.shut();
            }
        }
    }

    /// Sends what waits. False: the socket is full again.
    fn flush(&self, unsent: &mut Unsent) -> Result<bool, ConnectionError> {
        while let Some(part) = unsent.parts.front_mut() {
            match part {
                Part::Bytes(bytes, out) => {
                    let sent = self.try_send(&bytes[*out..])?;
                    *out += sent;
                    unsent.bytes -= sent;
                    if *out < bytes.len() {
                        return Ok(false);
                    }
                }
                Part::Descriptor(fd) => {
                    if pass(&self.0.socket, fd.as_fd())? == Progress::Blocked {
                        return Ok(false);
                    }
                }
            }
            unsent.parts.pop_front();
        }
        Ok(true)
    }
}

fn pass(socket: &OwnedFd, fd: BorrowedFd<'_>) -> io::Result<Progress> {
    PendingSend::new(&[], &[fd]).advance(socket).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ray::wire::frame::RAYLET_MAX_BODY_BYTES;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        frame::write_header(&mut frame, 5, body.len());
        frame.extend_from_slice(body);
        frame
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_are_cut() {
        let sent: Vec<Vec<u8>> = (0..9u8).map(|n| vec![n; usize::from(n) * 700]).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(|body| frame(body)).collect();
        for step in [1, 7, 24, 1000, bytes.len()] {
            let (mut inbound, mut came) = (Inbound::default(), Vec::new());
            for piece in bytes.chunks(step) {
                let go_on = inbound.feed(piece, RAYLET_MAX_BODY_BYTES, |frame| {
                    came.push(frame.body.to_vec());
                    Ok(true)
                });
                assert!(go_on.unwrap());
            }
            assert_eq!(came, sent, "cut into {step} bytes");
            inbound.close(RAYLET_MAX_BODY_BYTES).unwrap();
        }
    }

    #[test]
    fn a_connection_that_ends_within_a_frame_says_how_much_was_missing() {
        let mut inbound = Inbound::default();
        let bytes = frame(&[1; 100]);
        inbound.feed(&bytes[..60], RAYLET_MAX_BODY_BYTES, |_| panic!("not whole")).unwrap();
        let error = inbound.close(RAYLET_MAX_BODY_BYTES).unwrap_err();
        assert!(matches!(error, ConnectionError::Truncated { missing_bytes: 64 }), "{error}");
    }

    #[test]
    fn what_a_full_socket_does_not_take_is_sent_in_order_when_there_is_room() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let wishes = Rc::new(Wishes::default());
        let writer = Writer::new(Rc::new(ours.into()), 4, wishes.clone());
        let mut expected = Vec::new();
        for n in 0..200u32 {
            let piece = n.to_le_bytes().repeat(2_000);
            writer.send(&piece).unwrap();
            expected.extend(piece);
        }
        writer.close();
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).unwrap();
            read
        });
        while !wishes.take().is_empty() {
            writer.writable();
            std::thread::yield_now();
        }
        assert!(reader.join().unwrap() == expected);
    }
}
