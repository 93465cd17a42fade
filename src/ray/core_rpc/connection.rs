//! A connection to the port on a core: bytes come from the core's ring and leave through its writer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::Status;

use super::http2::frames::Fault;
use super::http2::{Call, Session};
use super::pace::{Calm, Urgency};
use super::{Judged, Port};
use crate::socket::Writer;

/// The answer to a [quiet](Urgency::Quiet) call stays here for at most this long, so that it can go with others. When the owner hears
/// that its object is pinned it lets go of its own hold, so this is also how long memory may stay in use for nothing.
pub const KEEP_QUIET: Duration = Duration::from_millis(1);

/// Kept answers are sent when they are more than this: a few dozen.
const MAX_KEPT_BYTES: usize = 4 << 10;

/// A buffer of what is sent that once held a large reply is given back when it is larger than this.
const KEPT_BUFFER_BYTES: usize = 64 << 10;

/// See the [module](self).
pub struct Connection {
    writer: Writer,
    port: Rc<Port>,
    session: RefCell<Session<Judged>>,
    calm: Cell<Calm>,
    /// Something that somebody waits for is written and not sent.
    urgent: Cell<bool>,
    /// Somebody sends what is kept, in time.
    keeper: Cell<bool>,
    /// It is among those that have something to send when the round ends.
    listed: Cell<bool>,
    closed: Cell<bool>,
}

/// What is to be done about a connection that has something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Nothing: it is sent.
    Done,
    /// It is kept, and is to be sent after [`KEEP_QUIET`].
    Keep,
}

impl Connection {
    /// For the connection behind `writer`.
    pub(super) fn new(writer: Writer, port: Rc<Port>) -> Rc<Self> {
        Rc::new(Self {
            writer,
            port,
            session: RefCell::default(),
            calm: Cell::default(),
            urgent: Cell::default(),
            keeper: Cell::default(),
            listed: Cell::default(),
            closed: Cell::default(),
        })
    }

    /// Bytes came in: adds the calls that are whole. True: there is something to send.
    pub(super) fn receive(&self, bytes: &[u8], calls: &mut Vec<Call<Judged>>) -> bool {
        if self.closed.get() {
            return false;
        }
        let first = calls.len();
        let mut session = self.session.borrow_mut();
        let written = session.out().len();
        let taken = session.receive(bytes, calls, |head| self.port.judge(head));
        let mut calm = self.calm.get();
        calls[first..].iter().for_each(|call| calm.saw(urgency(&call.head)));
        self.calm.set(calm);
        let answers = session.out().len() > written;
        drop(session);
        if let Err(fault) = taken {
            self.refuse(&fault);
            return false;
        }
        if answers {
            self.urgent.set(true);
        }
        answers && !self.listed.replace(true)
    }

    /// The peer speaks something else. It is told why, and that's all.
    fn refuse(&self, fault: &Fault) {
        tracing::debug!(%fault, "a gRPC connection is closed: its peer broke the protocol");
        self.send();
        self.closed.set(true);
        self.writer.close();
    }

    /// How long to leave the connection alone, after what came with a read has been looked at.
    pub fn pause(&self) -> Option<Duration> {
        let mut calm = self.calm.get();
        let pause = calm.after_read(Instant::now());
        self.calm.set(calm);
        pause
    }

    /// Answers a call. True: the connection is to be told when the round ends, by [`Self::end_round`].
    #[must_use]
    pub(super) fn answer(&self, stream: u32, urgency: Urgency, reply: Result<Bytes, Status>) -> bool {
        if self.closed.get() {
            return false;
        }
        self.session.borrow_mut().reply(stream, reply);
        if urgency == Urgency::Prompt {
            self.urgent.set(true);
        }
        !self.listed.replace(true)
    }

    /// Sends what was written in this round, in one go, or keeps it where nobody waits for it.
    #[must_use]
    pub(super) fn end_round(&self) -> Sending {
        self.listed.set(false);
        if self.urgent.get() || self.session.borrow_mut().out().len() > MAX_KEPT_BYTES {
            self.send();
            return Sending::Done;
        }
        if self.keeper.replace(true) {
            return Sending::Done;
        }
        Sending::Keep
    }

    /// Sends the answers that were kept.
    pub(super) fn send_kept(&self) {
        self.keeper.set(false);
        self.send();
    }

    fn send(&self) {
        self.urgent.set(false);
        let mut session = self.session.borrow_mut();
        while !session.out().is_empty() && !self.closed.get() {
            let out = session.out();
            if let Err(error) = self.writer.send(out) {
                tracing::debug!(%error, "a gRPC connection fails");
                // The ring tells the end of a socket that is shut.
                self.closed.set(true);
                self.writer.shut();
            }
            out.clear();
            if out.capacity() > KEPT_BUFFER_BYTES {
                *out = Vec::new();
            }
            if self.writer.is_blocked() {
                return;
            }
            session.pump();
        }
    }

    /// The socket has room again.
    pub fn writable(&self) {
        if !self.writer.is_blocked() {
            self.session.borrow_mut().pump();
            self.send();
        }
    }

    /// Nothing more comes in, and nobody reads.
    pub fn ended(&self) {
        self.closed.set(true);
    }
}

/// How a call is answered and its connection paced.
fn urgency(head: &Judged) -> Urgency {
    head.as_ref().map_or(Urgency::Prompt, |entry| entry.method.urgency())
}
