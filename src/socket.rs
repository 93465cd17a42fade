//! A local client's connection on a core: reading whole frames, writing without waiting, passing descriptors.
//!
//! Reading awaits through glommio's ring. Writing tries the socket at once, because a reply almost always fits its buffer;
//! what does not fit is kept, up to [`MAX_UNSENT_BYTES`], and sent by a task of the connection when there is room. A client
//! that does not read its replies harms only itself: past the bound its connection is closed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::UnixStream;
use rustix::net::{SendFlags, Shutdown};

use crate::ray::wire::fdpass::{PendingSend, Progress};
use crate::ray::wire::frame::{parse_header, Header, HEADER_BYTES};

/// Most bytes of replies kept for a client that does not read them.
pub const MAX_UNSENT_BYTES: usize = 64 << 20;

/// Bytes asked from the socket at once. Frames of workers are a few hundred bytes; several fit one read.
const READ_CHUNK_BYTES: usize = 16 << 10;

/// Pause between tries to pass a descriptor through a full socket.
const FULL_SOCKET_RETRY: Duration = Duration::from_millis(1);

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
    tokio::net::UnixListener::bind(path)
        .map_err(|e| io::Error::other(format!("cannot listen on {}: {e}", path.display())))
}

/// The two halves of a connection.
///
/// # Errors
/// When the process has no descriptor left.
pub fn split(fd: OwnedFd) -> io::Result<(FrameReader, Writer)> {
    let writer = Writer::new(fd.try_clone()?);
    Ok((FrameReader::new(stream_of(fd)), writer))
}

fn stream_of(fd: OwnedFd) -> UnixStream {
    // SAFETY: the descriptor is owned, and given away here, so the stream is its only owner.
    unsafe { UnixStream::from_raw_fd(fd.into_raw_fd()) }
}

/// The reading half: yields the bytes of whole frames.
pub struct FrameReader {
    stream: UnixStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl FrameReader {
    /// Reads from `stream`.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: vec![0; READ_CHUNK_BYTES], start: 0, end: 0 }
    }

    /// Waits until `count` bytes are there and returns them without consuming them. `None`: the peer closed between frames.
    pub async fn fill(&mut self, count: usize) -> Result<Option<&[u8]>, ConnectionError> {
        while self.end - self.start < count {
            self.make_room(count);
            let read = self.stream.read(&mut self.buffer[self.end..]).await?;
            if read == 0 {
                let have = self.end - self.start;
                return match have {
                    0 => Ok(None),
                    _ => Err(ConnectionError::Truncated { missing_bytes: count - have }),
                };
            }
            self.end += read;
        }
        Ok(Some(&self.buffer[self.start..self.start + count]))
    }

    /// Waits for a whole frame: its header, and its length with the header, to be read with [`fill`](Self::fill) and dropped with
    /// [`consume`](Self::consume). `None`: the peer closed between frames.
    pub async fn next_frame(&mut self, limit_bytes: u64) -> Result<Option<(Header, usize)>, ConnectionError> {
        let Some(head) = self.fill(HEADER_BYTES).await? else {
            return Ok(None);
        };
        let head = head.first_chunk().ok_or_else(|| ConnectionError::Frame("a short header".to_owned()))?;
        let header = parse_header(head, limit_bytes).map_err(|e| ConnectionError::Frame(e.to_string()))?;
        Ok(Some((header, HEADER_BYTES + header.body_bytes)))
    }

    /// Drops `count` bytes that were read.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consumed more than was read");
        self.start += count;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if self.buffer.len() > KEPT_BUFFER_BYTES {
                self.buffer = vec![0; READ_CHUNK_BYTES];
            }
        }
    }

    fn make_room(&mut self, count: usize) {
        if self.start > 0 && self.start + count > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if count > self.buffer.len() {
            self.buffer.resize(count.next_multiple_of(READ_CHUNK_BYTES), 0);
        }
    }
}

/// The writing half, shared by everyone on the core who answers this client.
#[derive(Clone)]
pub struct Writer(Rc<WriterState>);

struct WriterState {
    fd: OwnedFd,
    unsent: RefCell<Unsent>,
}

#[derive(Default)]
struct Unsent {
    parts: VecDeque<Part>,
    bytes: usize,
    flushing: bool,
    closing: bool,
}

/// What waits for room in the socket, in order.
enum Part {
    Bytes(Vec<u8>),
    Descriptor(OwnedFd),
}

impl Writer {
    /// Writes to a socket.
    pub fn new(fd: OwnedFd) -> Self {
        Self(Rc::new(WriterState { fd, unsent: RefCell::default() }))
    }

    /// Sends `frame`, or keeps what the socket does not take now. An error means the connection is of no more use.
    pub fn send(&self, frame: &[u8]) -> Result<(), ConnectionError> {
        let mut unsent = self.0.unsent.borrow_mut();
        let mut sent = 0;
        if !unsent.flushing {
            match rustix::net::send(&self.0.fd, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => sent = n,
                Err(rustix::io::Errno::AGAIN) => {}
                Err(e) => return Err(ConnectionError::Io(e.into())),
            }
        }
        if sent == frame.len() {
            return Ok(());
        }
        self.keep(&mut unsent, Part::Bytes(frame[sent..].to_vec()), frame.len() - sent)
    }

    /// Passes a descriptor to the client, behind everything sent before.
    pub fn send_descriptor(&self, fd: BorrowedFd<'_>) -> Result<(), ConnectionError> {
        let mut unsent = self.0.unsent.borrow_mut();
        if !unsent.flushing {
            if let Progress::Done = pass(&self.0.fd, fd)? {
                return Ok(());
            }
        }
        self.keep(&mut unsent, Part::Descriptor(fd.try_clone_to_owned()?), 0)
    }

    fn keep(&self, unsent: &mut Unsent, part: Part, bytes: usize) -> Result<(), ConnectionError> {
        if unsent.bytes + bytes > MAX_UNSENT_BYTES {
            return Err(ConnectionError::Io(io::Error::other(format!(
                "the client left more than {MAX_UNSENT_BYTES} bytes of replies unread"
            ))));
        }
        unsent.bytes += bytes;
        unsent.parts.push_back(part);
        if !std::mem::replace(&mut unsent.flushing, true) {
            let writer = self.clone();
            glommio::spawn_local(async move {
                // glommio runs a new task at once; whoever sends still holds what the flush needs.
                futures_lite::future::yield_now().await;
                writer.flush().await;
            })
            .detach();
        }
        Ok(())
    }

    /// Closes the connection in both directions once what was sent is out.
    pub fn close(&self) {
        let mut unsent = self.0.unsent.borrow_mut();
        unsent.closing = true;
        if !unsent.flushing {
            self.shut();
        }
    }

    fn shut(&self) {
        // The peer may have gone first; there is nobody left to tell.
        let _ = rustix::net::shutdown(&self.0.fd, Shutdown::Both);
    }

    async fn flush(self) {
        if let Err(e) = self.flush_parts().await {
            tracing::debug!(error = %e, "a client stopped reading its replies");
            self.shut();
        }
    }

    async fn flush_parts(&self) -> io::Result<()> {
        let mut stream = stream_of(self.0.fd.try_clone()?);
        loop {
            let part = {
                let mut unsent = self.0.unsent.borrow_mut();
                match unsent.parts.pop_front() {
                    Some(part) => part,
                    None => {
                        unsent.flushing = false;
                        if unsent.closing {
                            self.shut();
                        }
                        return Ok(());
                    }
                }
            };
            match part {
                Part::Bytes(bytes) => {
                    stream.write_all(&bytes).await?;
                    self.0.unsent.borrow_mut().bytes -= bytes.len();
                }
                Part::Descriptor(fd) => self.pass_when_writable(fd).await?,
            }
        }
    }

    async fn pass_when_writable(&self, fd: OwnedFd) -> io::Result<()> {
        loop {
            match pass(&self.0.fd, fd.as_fd())? {
                Progress::Done => return Ok(()),
                Progress::Blocked => glommio::timer::sleep(FULL_SOCKET_RETRY).await,
            }
        }
    }
}

fn pass(socket: &OwnedFd, fd: BorrowedFd<'_>) -> io::Result<Progress> {
    PendingSend::new(&[], &[fd]).advance(socket).map_err(io::Error::other)
}
