//! A gRPC connection on a core, as hyper reads and writes it: bytes come from the core's ring and leave through its writer.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};

use crate::socket::Writer;

/// What the core and hyper share of a connection.
pub struct Pipe {
    writer: Writer,
    /// Received and not yet read. HTTP/2's windows bound it, because hyper reads as soon as it is woken.
    inbound: RefCell<BytesMut>,
    closed: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    /// Written and not yet sent: one turn of hyper is one system call.
    outbound: RefCell<Vec<u8>>,
    blocked: RefCell<Option<Waker>>,
}

impl Pipe {
    /// For the connection behind `writer`.
    pub fn new(writer: Writer) -> Rc<Self> {
        Rc::new(Self {
            writer,
            inbound: RefCell::default(),
            closed: Cell::new(false),
            reader: RefCell::default(),
            outbound: RefCell::default(),
            blocked: RefCell::default(),
        })
    }

    /// Bytes came in.
    pub fn received(&self, bytes: &[u8]) {
        self.inbound.borrow_mut().extend_from_slice(bytes);
        wake(&self.reader);
    }

    /// Nothing more comes in.
    pub fn ended(&self) {
        self.closed.set(true);
        wake(&self.reader);
        wake(&self.blocked);
    }

    /// The socket has room again.
    pub fn writable(&self) {
        if !self.writer.is_blocked() {
            wake(&self.blocked);
        }
    }

    /// Ready when the socket takes more.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.writer.is_blocked() {
            *self.blocked.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    let waker = waker.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// hyper's end of a [`Pipe`].
pub struct RingStream(pub Rc<Pipe>);

impl Read for RingStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let pipe = &self.0;
        let mut inbound = pipe.inbound.borrow_mut();
        if inbound.is_empty() && !pipe.closed.get() {
            *pipe.reader.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = inbound.len().min(buffer.remaining());
        buffer.put_slice(&inbound[..taken]);
        inbound.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl Write for RingStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.0.poll_room(cx))?;
        self.0.outbound.borrow_mut().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.0.poll_room(cx))?;
        let mut outbound = self.0.outbound.borrow_mut();
        parts.iter().for_each(|part| outbound.extend_from_slice(part));
        Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut outbound = self.0.outbound.borrow_mut();
            if !outbound.is_empty() {
                self.0.writer.send(&outbound).map_err(io::Error::other)?;
                outbound.clear();
            }
        }
        self.0.poll_room(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.writer.close();
        Poll::Ready(Ok(()))
    }
}
