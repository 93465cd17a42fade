//! A gRPC connection on a core, as hyper reads and writes it: bytes come from the core's ring and leave through its writer.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};

use crate::socket::Writer;

/// The answer to a [quiet](Urgency::Quiet) call stays here for at most this long, so that it can go with others. When the owner hears
/// that its object is pinned it lets go of its own hold, so this is also how long memory may stay in use for nothing.
const KEEP_QUIET: Duration = Duration::from_millis(1);

/// Kept answers are sent when they are more than this: a few dozen.
const MAX_KEPT_BYTES: usize = 4 << 10;

/// How long a connection is left alone that only says what nobody waits for, and often.
pub const READ_PAUSE: Duration = Duration::from_micros(500);

/// Reads in close succession, with nothing in them that somebody waits for, before a connection is left alone for a while.
const CALM_READS: u32 = 8;

/// What a call was, to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// The caller waits for the answer, or others for what it asks.
    Prompt,
    /// Nobody waits for the answer, nor for what it asks.
    Quiet,
}

/// Decides whether a connection is read from again at once.
///
/// A driver that puts small objects pins and frees each with a call of its own, thousands in a second, and waits for none of them. Read
/// and answered one by one they cost more than the puts. So once a connection has had [`CALM_READS`] reads, each soon after the one
/// before, in which was nothing but such calls, it is left alone for [`READ_PAUSE`] after each read, as a network card does with its
/// interrupts. A call that somebody waits for ends that; it was late by one pause at most.
#[derive(Clone, Copy, Debug, Default)]
struct Calm {
    reads: u32,
    last: Option<Instant>,
    quiet: bool,
    prompt: bool,
}

impl Calm {
    fn saw(&mut self, urgency: Urgency) {
        match urgency {
            Urgency::Quiet => self.quiet = true,
            Urgency::Prompt => self.prompt = true,
        }
    }

    /// What came with a read has been looked at.
    fn after_read(&mut self, now: Instant) -> Option<Duration> {
        let calm = std::mem::take(&mut self.quiet) && !std::mem::take(&mut self.prompt);
        let soon = self.last.is_some_and(|last| now.saturating_duration_since(last) < 2 * READ_PAUSE);
        self.last = Some(now);
        self.reads = if calm && soon { (self.reads + 1).min(CALM_READS) } else { 0 };
        (self.reads == CALM_READS).then_some(READ_PAUSE)
    }
}

/// What the core and hyper share of a connection.
pub struct Pipe {
    writer: Writer,
    /// Received and not yet read. HTTP/2's windows bound it, because hyper reads as soon as it is woken.
    inbound: RefCell<BytesMut>,
    closed: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    /// Written and not yet sent: one turn of hyper is one system call, or less where nobody waits.
    outbound: RefCell<Vec<u8>>,
    blocked: RefCell<Option<Waker>>,
    calm: Cell<Calm>,
    /// Answers since the last send that nobody waits for, and that somebody waits for.
    keeps: Cell<bool>,
    prompt: Cell<bool>,
    /// Somebody sends what is kept, in time.
    keeper: Cell<bool>,
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
            calm: Cell::default(),
            keeps: Cell::default(),
            prompt: Cell::default(),
            keeper: Cell::default(),
        })
    }

    /// A call came in.
    pub fn called(&self, urgency: Urgency) {
        let mut calm = self.calm.get();
        calm.saw(urgency);
        self.calm.set(calm);
    }

    /// How long to leave the connection alone, after what came with a read has been looked at.
    pub fn pause(&self) -> Option<Duration> {
        let mut calm = self.calm.get();
        let pause = calm.after_read(Instant::now());
        self.calm.set(calm);
        pause
    }

    /// A call is answered. `Some`: the answer stays here until something urgent is sent or [`Self::send_kept`] is called, which the
    /// caller now has to do after this while.
    #[must_use]
    pub fn answered(&self, urgency: Urgency) -> Option<Duration> {
        self.prompt.set(self.prompt.get() || urgency == Urgency::Prompt);
        self.keeps.set(!self.prompt.get());
        (self.keeps.get() && !self.keeper.replace(true)).then_some(KEEP_QUIET)
    }

    /// Sends the answers that were kept.
    pub fn send_kept(&self) {
        self.keeper.set(false);
        if self.send().is_err() {
            // The ring tells the end of a socket that is shut, and hyper hears of it as of any other.
            self.writer.shut();
        }
    }

    fn send(&self) -> io::Result<()> {
        let mut outbound = self.outbound.borrow_mut();
        if !outbound.is_empty() {
            self.keeps.set(false);
            self.prompt.set(false);
            self.writer.send(&outbound).map_err(io::Error::other)?;
            outbound.clear();
        }
        Ok(())
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
        if !self.0.keeps.get() || self.0.outbound.borrow().len() > MAX_KEPT_BYTES {
            self.0.send()?;
        }
        self.0.poll_room(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.send()?;
        self.0.writer.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pipe() -> (Rc<Pipe>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (Pipe::new(Writer::new(Rc::new(ours.into()), 1, Rc::default())), theirs)
    }

    /// hyper writes an answer, and has nothing more to write.
    fn write(pipe: &Rc<Pipe>, bytes: &[u8]) {
        let mut stream = RingStream(pipe.clone());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(Pin::new(&mut stream).poll_write(&mut cx, bytes), Poll::Ready(Ok(n)) if n == bytes.len()));
        assert!(matches!(Pin::new(&mut stream).poll_flush(&mut cx), Poll::Ready(Ok(()))));
    }

    fn came(theirs: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut piece = [0; 8192];
        while let Ok(n) = theirs.read(&mut piece) {
            if n == 0 {
                break;
            }
            bytes.extend_from_slice(&piece[..n]);
        }
        bytes
    }

    #[test]
    fn answers_that_nobody_waits_for_go_together_and_with_the_first_that_somebody_does() {
        let (pipe, mut theirs) = pipe();
        write(&pipe, b"settings ");
        assert_eq!(came(&mut theirs), b"settings ", "what is no answer is not kept");
        assert_eq!(pipe.answered(Urgency::Quiet), Some(KEEP_QUIET));
        write(&pipe, b"pinned ");
        assert_eq!(pipe.answered(Urgency::Quiet), None, "somebody will send it");
        write(&pipe, b"freed ");
        assert_eq!(came(&mut theirs), b"");
        pipe.send_kept();
        assert_eq!(came(&mut theirs), b"pinned freed ");
        assert!(pipe.answered(Urgency::Quiet).is_some());
        write(&pipe, b"pinned ");
        assert_eq!(pipe.answered(Urgency::Prompt), None);
        write(&pipe, b"leased ");
        assert_eq!(came(&mut theirs), b"pinned leased ");
    }

    #[test]
    fn an_answer_that_somebody_waits_for_is_not_kept_by_quiet_ones_behind_it() {
        let (pipe, mut theirs) = pipe();
        assert_eq!(pipe.answered(Urgency::Prompt), None);
        assert_eq!(pipe.answered(Urgency::Quiet), None);
        write(&pipe, b"leased pinned ");
        assert_eq!(came(&mut theirs), b"leased pinned ");
        assert!(pipe.answered(Urgency::Quiet).is_some(), "the next one is kept again");
    }

    #[test]
    fn many_kept_answers_are_sent_before_their_time() {
        let (pipe, mut theirs) = pipe();
        assert!(pipe.answered(Urgency::Quiet).is_some());
        write(&pipe, &vec![1; MAX_KEPT_BYTES]);
        assert_eq!(came(&mut theirs).len(), 0);
        write(&pipe, &[1]);
        assert_eq!(came(&mut theirs).len(), MAX_KEPT_BYTES + 1);
    }

    #[test]
    fn a_connection_is_left_alone_only_while_it_says_often_what_nobody_waits_for() {
        let mut calm = Calm::default();
        let mut now = Instant::now();
        let mut read = |calm: &mut Calm, urgencies: &[Urgency], later: Duration| {
            now += later;
            urgencies.iter().for_each(|urgency| calm.saw(*urgency));
            calm.after_read(now)
        };
        let soon = READ_PAUSE / 2;
        let pauses: Vec<_> = (0..20).map(|_| read(&mut calm, &[Urgency::Quiet; 2], soon).is_some()).collect();
        assert_eq!(pauses.iter().position(|paused| *paused), Some(CALM_READS as usize), "{pauses:?}");
        assert!(pauses[CALM_READS as usize..].iter().all(|paused| *paused));
        for urgent in [&[Urgency::Quiet, Urgency::Prompt][..], &[Urgency::Prompt], &[]] {
            assert_eq!(read(&mut calm, urgent, soon), None, "{urgent:?}");
            assert_eq!(read(&mut calm, &[Urgency::Quiet], soon), None, "it begins anew after {urgent:?}");
            for _ in 0..CALM_READS {
                read(&mut calm, &[Urgency::Quiet], soon);
            }
        }
        assert!(read(&mut calm, &[Urgency::Quiet], soon).is_some());
        assert_eq!(read(&mut calm, &[Urgency::Quiet], 2 * READ_PAUSE), None, "seldom enough to be served at once");
    }
}
