//! One client's connection as the node sees it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{AHEAD_MAX_BYTES, UNSENT_MAX_BYTES};
use crate::frame::{BodyWriter, Decoder, Encoder, FrameError, Head, Unsent};
use crate::messages::{
    Done, EventsLost, Hello, Limits, Message, OpenRing, Refusal, RefusalCode, Refused, RingOpened, SocketHint,
};
use crate::ring::{PushError, Record, RingError, Rings, Wake};

/// The way of a request, and of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The Unix socket.
    Socket,
    /// The rings.
    Ring,
}

/// Where the answer to a request goes. Exactly one answer is due for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct ReplyTo {
    /// Of the request.
    pub correlation: u32,
    /// The way it came.
    pub via: Via,
    /// No answer is wanted where it succeeds.
    pub one_way: bool,
}

/// The connection is of no more use: close it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// What came on the socket.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What came in the ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Something else than a hello.
    #[error("the first message is of type {got}, expected a hello ({}): not a client of this protocol", Hello::TYPE)]
    NotHello {
        /// The type.
        got: u16,
    },
    /// It does not read its answers.
    #[error("the client left {got_bytes} bytes of answers unread, at most {UNSENT_MAX_BYTES} are kept for it")]
    Unread {
        /// Bytes kept.
        got_bytes: usize,
    },
    /// It sends on and on without waiting for answers.
    #[error(
        "the client sent {got_bytes} bytes of requests beyond those in flight, at most {AHEAD_MAX_BYTES} are kept"
    )]
    Ahead {
        /// Bytes kept.
        got_bytes: usize,
    },
    /// Descriptors that nobody asked for.
    #[error("the client attached {got} descriptors to a message, expected none")]
    Descriptors {
        /// How many.
        got: usize,
    },
}

/// Length of a [`SocketHint`].
const HINT_BYTES: usize = 8;

/// A client's connection.
pub struct Connection {
    decoder: Decoder,
    encoder: Encoder,
    limits: Limits,
    greeted: bool,
    ring: Option<RingSide>,
    /// Requests without an answer.
    in_flight: u32,
    /// Frames that were put on the socket.
    socket_frames: u64,
    events_lost: u64,
}

/// The rings, and what did not fit into them yet.
struct RingSide {
    rings: Rings,
    writer: BodyWriter,
    backlog: VecDeque<(Head, Box<[u8]>)>,
    /// A hint is due that found no room.
    hint_due: bool,
}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(limits: Limits) -> Self {
        Self {
            decoder: Decoder::default(),
            encoder: Encoder::new(limits.frame_bytes),
            limits,
            greeted: false,
            ring: None,
            in_flight: 0,
            socket_frames: 0,
            events_lost: 0,
        }
    }

    /// What the client may use.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What waits for room in the ring: less than before means that something was put into it, and its client may sleep.
    pub fn behind(&self) -> usize {
        self.ring.as_ref().map_or(0, |ring| ring.backlog.len() + usize::from(ring.hint_due))
    }

    /// Requests that were read and not answered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether to read from the socket now. Not while too many requests are in flight: the client waits, in the kernel's buffer. After
    /// an answer look again, at the ring too.
    pub fn wants_bytes(&self) -> bool {
        self.in_flight < self.limits.in_flight && self.encoder.unsent_bytes() < UNSENT_MAX_BYTES / 2
    }

    /// Bytes that came on the socket.
    pub fn on_bytes(&mut self, bytes: &[u8]) {
        self.decoder.on_bytes(bytes);
    }

    /// For a loop that reads whatever comes, whether [`Self::wants_bytes`] or not: that this client does not abuse it.
    ///
    /// # Errors
    /// Close the connection.
    pub fn check_ahead(&self) -> Result<(), ConnectionError> {
        match self.decoder.kept_bytes() {
            0..=AHEAD_MAX_BYTES => Ok(()),
            got_bytes => Err(ConnectionError::Ahead { got_bytes }),
        }
    }

    /// The client has closed its side.
    ///
    /// # Errors
    /// [`FrameError::Short`] where it did so inside a frame.
    pub fn on_close(&self) -> Result<(), FrameError> {
        self.decoder.finish()
    }

    /// The hello was answered: longer frames and other messages are allowed.
    pub fn greet(&mut self) {
        self.greeted = true;
        self.decoder.set_limit(self.limits.frame_bytes);
    }

    /// The next request on the socket, copied into `record`. `None`: nothing now, or too many are in flight.
    ///
    /// # Errors
    /// Close the connection.
    pub fn next_from_socket(&mut self, record: &mut Record) -> Result<Option<ReplyTo>, ConnectionError> {
        if self.in_flight >= self.limits.in_flight {
            return Ok(None);
        }
        let Some(frame) = self.decoder.next_frame()? else {
            return Ok(None);
        };
        if frame.head.descriptors() > 0 {
            return Err(ConnectionError::Descriptors { got: frame.head.descriptors() });
        }
        if !self.greeted && frame.head.message_type != Hello::TYPE {
            return Err(ConnectionError::NotHello { got: frame.head.message_type });
        }
        record.copy_from(frame.head, frame.body);
        Ok(Some(self.admit(record.head(), Via::Socket)))
    }

    /// The next request in the ring, copied into `record`. `None`: nothing now, too many are in flight, or answers wait for room.
    ///
    /// # Errors
    /// The ring is not in order: tell the client with [`close_with`](Self::close_with), and close the connection.
    #[inline]
    pub fn next_from_ring(&mut self, record: &mut Record) -> Result<Option<ReplyTo>, ConnectionError> {
        let Some(ring) = &mut self.ring else {
            return Ok(None);
        };
        if (ring.is_behind() && !ring.catch_up(self.socket_frames)?) || self.in_flight >= self.limits.in_flight {
            return Ok(None);
        }
        if !ring.rings.endpoint.pop(record)? {
            return Ok(None);
        }
        Ok(Some(self.admit(record.head(), Via::Ring)))
    }

    #[inline]
    fn admit(&mut self, head: Head, via: Via) -> ReplyTo {
        let one_way = head.is_one_way();
        self.in_flight += u32::from(!one_way);
        ReplyTo { correlation: head.correlation, via, one_way }
    }

    /// Answers a request. One that wanted no answer gets none.
    ///
    /// # Errors
    /// Close the connection.
    #[inline]
    pub fn reply<M: Message>(&mut self, to: ReplyTo, message: &M) -> Result<(), ConnectionError> {
        if to.one_way {
            return Ok(());
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.send(to.via, Head::new(M::TYPE, to.correlation), message)
    }

    /// Answers with [`Done`].
    ///
    /// # Errors
    /// Close the connection.
    pub fn done(&mut self, to: ReplyTo, count: u64) -> Result<(), ConnectionError> {
        self.reply(to, &Done { count })
    }

    /// Answers a request that failed, also one that wanted no answer.
    ///
    /// # Errors
    /// Close the connection.
    pub fn refuse(&mut self, to: ReplyTo, refusal: &Refusal) -> Result<(), ConnectionError> {
        if !to.one_way {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        self.send(to.via, Head::new(Refused::TYPE, to.correlation), &refused(refusal))
    }

    /// Answers a request that could not be read ([`Request::read`](crate::messages::Request::read)).
    ///
    /// # Errors
    /// Close the connection.
    pub fn refuse_frame(&mut self, to: ReplyTo, error: &FrameError) -> Result<(), ConnectionError> {
        let code = match error {
            FrameError::NewerVersion { .. } => RefusalCode::Version,
            FrameError::UnknownType { .. } => RefusalCode::UnknownType,
            _ => RefusalCode::Malformed,
        };
        self.refuse(to, &Refusal::new(code, error.to_string()))
    }

    /// Answers with descriptors attached, on the socket.
    ///
    /// # Errors
    /// Close the connection.
    pub fn reply_with<M: Message>(
        &mut self,
        to: ReplyTo,
        message: &M,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), ConnectionError> {
        self.in_flight = self.in_flight.saturating_sub(u32::from(!to.one_way));
        self.on_socket(Head::new(M::TYPE, to.correlation), message, descriptors)
    }

    /// Tells of an event, in the ring if there is one. `false`: the client reads too slowly, the event is dropped and counted. Events that
    /// may not be lost (assignments, ends of leases) are sent with `must_arrive`.
    ///
    /// # Errors
    /// Close the connection.
    pub fn event<M: Message>(&mut self, message: &M, must_arrive: bool) -> Result<bool, ConnectionError> {
        let is_behind = match &mut self.ring {
            Some(ring) => ring.is_behind() && !ring.catch_up(self.socket_frames)?,
            None => self.encoder.unsent_bytes() > UNSENT_MAX_BYTES / 2,
        };
        if is_behind && !must_arrive {
            self.events_lost += 1;
            return Ok(false);
        }
        let via = if self.ring.is_some() { Via::Ring } else { Via::Socket };
        if self.events_lost > 0 && !is_behind {
            let count = std::mem::take(&mut self.events_lost);
            self.send(via, Head::new(EventsLost::TYPE, 0), &EventsLost { count })?;
        }
        self.send(via, Head::new(M::TYPE, 0), message)?;
        Ok(true)
    }

    /// The last message before the connection is closed: about the connection itself, on the socket.
    pub fn close_with(&mut self, refusal: &Refusal) {
        // It is closed anyway; what can't be told is in the log.
        let _ = self.on_socket(Head::new(Refused::TYPE, 0), &refused(refusal), Vec::new());
    }

    #[inline]
    fn send<M: Message>(&mut self, via: Via, head: Head, message: &M) -> Result<(), ConnectionError> {
        if let (Via::Ring, Some(ring)) = (via, &mut self.ring) {
            let body = ring.writer.body(message)?;
            if body.len() <= ring.rings.endpoint.body_max_bytes() {
                if ring.backlog.is_empty() {
                    match ring.rings.endpoint.push(head, body) {
                        Ok(()) => return Ok(()),
                        Err(PushError::Ring(error)) => return Err(error.into()),
                        Err(PushError::Full | PushError::Long { .. }) => {}
                    }
                }
                ring.backlog.push_back((head, body.into()));
                return Ok(());
            }
        }
        self.on_socket(head, message, Vec::new())
    }

    fn on_socket<M: Message>(
        &mut self,
        head: Head,
        message: &M,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), ConnectionError> {
        self.encoder.frame_with(head, message, descriptors)?;
        let got_bytes = self.encoder.unsent_bytes();
        if got_bytes > UNSENT_MAX_BYTES {
            return Err(ConnectionError::Unread { got_bytes });
        }
        self.socket_frames += 1;
        if let Some(ring) = &mut self.ring {
            ring.hint_due = true;
            ring.catch_up(self.socket_frames)?;
        }
        Ok(())
    }

    /// Makes the rings that the client asks for, and answers.
    ///
    /// # Errors
    /// A [`Refusal`] to answer with, or that the connection is to be closed.
    pub fn open_ring(
        &mut self,
        to: ReplyTo,
        request: &rkyv::Archived<OpenRing>,
    ) -> Result<Result<(), Refusal>, ConnectionError> {
        let lines = request.lines.to_native();
        if self.ring.is_some() {
            return Ok(Err(Refusal::new(RefusalCode::NoRing, "there is a ring already")));
        }
        if lines > self.limits.ring_lines {
            let detail = format!("{lines} lines asked for, at most {} are allowed", self.limits.ring_lines);
            return Ok(Err(Refusal::new(RefusalCode::TooLarge, detail)));
        }
        let (rings, descriptors) = match Rings::create(lines) {
            Ok(made) => made,
            Err(error) => return Ok(Err(Refusal::new(RefusalCode::LimitReached, error.to_string()))),
        };
        self.reply_with(to, &RingOpened { lines }, descriptors.into())?;
        self.ring = Some(RingSide { rings, writer: BodyWriter::default(), backlog: VecDeque::new(), hint_due: false });
        Ok(Ok(()))
    }

    /// The client has rings.
    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// The node's bell of this connection: readable when the client has rung it.
    pub fn own_bell(&self) -> Option<BorrowedFd<'_>> {
        self.ring.as_ref().map(|ring| ring.rings.own_bell.as_fd())
    }

    /// The client's bell. See [`Doorbell`](crate::ring::Doorbell) for how to ring it.
    pub fn peer_bell(&self) -> Option<BorrowedFd<'_>> {
        self.ring.as_ref().map(|ring| ring.rings.peer_bell.as_fd())
    }

    /// After a batch: the client sleeps, and its bell has to be rung.
    #[inline]
    pub fn must_ring(&mut self) -> bool {
        self.ring.as_mut().is_some_and(|ring| ring.rings.endpoint.must_wake())
    }

    /// Before the thread sleeps. `false`: there is something to do in the ring; don't sleep.
    ///
    /// # Errors
    /// The ring is not in order: close the connection.
    pub fn announce_sleep(&mut self) -> Result<bool, ConnectionError> {
        let is_full = self.in_flight >= self.limits.in_flight;
        match &mut self.ring {
            None => Ok(true),
            Some(ring) => {
                let for_space =
                    ring.backlog.front().map(|(_, body)| body.len()).or(ring.hint_due.then_some(HINT_BYTES));
                // Requests that would not be taken now must not keep the thread awake.
                let for_data = !is_full && for_space.is_none();
                Ok(ring.rings.endpoint.announce_sleep(Wake { for_data, for_space })?)
            }
        }
    }

    /// The thread is awake, and looks at this ring by itself until it says otherwise.
    pub fn awake(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.rings.own_bell.clear();
            ring.rings.endpoint.awake();
        }
    }

    /// What has to be sent on the socket next.
    pub fn unsent(&self) -> Unsent<'_> {
        self.encoder.unsent()
    }

    /// So many bytes of that were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.encoder.sent(bytes);
    }
}

impl RingSide {
    fn is_behind(&self) -> bool {
        self.hint_due || !self.backlog.is_empty()
    }

    /// Puts what waits into the ring, as far as there is room. `true`: all of it.
    fn catch_up(&mut self, socket_frames: u64) -> Result<bool, ConnectionError> {
        while let Some((head, body)) = self.backlog.front() {
            match self.rings.endpoint.push(*head, body) {
                Ok(()) => drop(self.backlog.pop_front()),
                Err(PushError::Ring(error)) => return Err(error.into()),
                Err(_) => return Ok(false),
            }
        }
        if self.hint_due {
            let body = self.writer.body(&SocketHint { frames: socket_frames })?;
            match self.rings.endpoint.push(Head::new(SocketHint::TYPE, 0), body) {
                Ok(()) => self.hint_due = false,
                Err(PushError::Ring(error)) => return Err(error.into()),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn refused(refusal: &Refusal) -> Refused {
    Refused { code: refusal.code.to_wire(), detail: refusal.detail.clone() }
}
