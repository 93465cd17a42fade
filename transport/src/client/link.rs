//! A client's end of a connection: what is under way, and the bytes. No waiting, no threads; [`super::shared`] does that.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;

use rustix::event::epoll;

use super::segments::Segments;
use super::slots::{Slots, Ticket, Undo};
use super::{ClientError, LeaseEnd};
use crate::fault::{self, Point};
use crate::fds;
use crate::frame::{BodyWriter, Decoder, Encoder, FrameError, Head, BODY_MAX_BYTES};
use crate::messages::{Abort, Message, OwnedReply, Place, Refusal, Release, Reply, ReturnLease, SocketHint};
use crate::ring::{PushError, Record, Rings, Wake};

/// Events that nobody has fetched; more are dropped, the oldest first, and counted.
pub(crate) const EVENTS_MAX: usize = 65_536;
/// Failures of one-way requests that nobody has fetched; more are dropped, the oldest first.
pub(crate) const FAILURES_MAX: usize = 1024;
/// What a lease tells at most before it is fetched: its work is done, and then it is lost.
pub(crate) const LEASE_ENDS_MAX: usize = 2;
/// One-way requests (releases and returns of dropped handles) that wait for room in the ring.
pub(crate) const DEFERRED_MAX: usize = 1 << 20;

/// Correlation ids of one-way requests have this bit.
const ONE_WAY_BIT: u32 = 1 << 31;

pub(crate) struct Link {
    socket: Arc<OwnedFd>,
    epoll: Arc<OwnedFd>,
    wants_out: bool,
    decoder: Decoder,
    encoder: Encoder,
    /// That came, and whose frame is not complete.
    descriptors: VecDeque<OwnedFd>,
    setup: Vec<OwnedFd>,
    ring: Option<Rings>,
    record: Record,
    body: BodyWriter,
    /// One-way records that found the ring full.
    deferred: VecDeque<(Head, Box<[u8]>)>,
    one_ways: u32,
    pub(crate) slots: Slots,
    pub(crate) segments: Segments,
    pub(crate) events: VecDeque<OwnedReply>,
    pub(crate) events_dropped: u64,
    pub(crate) failures: VecDeque<Refusal>,
    /// Leases that were granted to this client and not given back, and how they ended by themselves.
    pub(crate) leases: HashMap<u32, Vec<LeaseEnd>>,
    /// Frames read from the socket, and how many there are as the ring has told.
    frames_read: u64,
    frames_told: u64,
    /// Who waits for room, or for an event.
    wakers: Vec<Waker>,
    dead: Option<ClientError>,
    /// Messages that came.
    news: u64,
}

impl Link {
    pub(crate) fn new(socket: Arc<OwnedFd>) -> Result<Self, ClientError> {
        let failed = |e: rustix::io::Errno| ClientError::io("making an epoll descriptor")(e.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        epoll::add(&epoll, &socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(failed)?;
        Ok(Self {
            socket,
            epoll: Arc::new(epoll),
            wants_out: false,
            decoder: Decoder::new(BODY_MAX_BYTES),
            encoder: Encoder::new(BODY_MAX_BYTES),
            descriptors: VecDeque::new(),
            setup: Vec::new(),
            ring: None,
            record: Record::default(),
            body: BodyWriter::default(),
            deferred: VecDeque::new(),
            one_ways: 0,
            slots: Slots::default(),
            segments: Segments::default(),
            events: VecDeque::new(),
            events_dropped: 0,
            failures: VecDeque::new(),
            leases: HashMap::new(),
            frames_read: 0,
            frames_told: 0,
            wakers: Vec::new(),
            dead: None,
            news: 0,
        })
    }

    /// Readable when there is something for this link, or room that it waits for.
    pub(crate) fn epoll(&self) -> Arc<OwnedFd> {
        self.epoll.clone()
    }

    pub(crate) fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// The limit of frames that the node has named.
    pub(crate) fn set_frame_limit(&mut self, limit_bytes: u32) {
        self.encoder.set_limit(limit_bytes);
    }

    /// The descriptors that came with the answer that was fetched last, of those that set a connection up.
    pub(crate) fn take_setup(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.setup)
    }

    /// The descriptors of a frame.
    fn descriptors_of(&mut self, head: Head) -> Result<Vec<OwnedFd>, ClientError> {
        let (expected, got) = (head.descriptors(), self.descriptors.len());
        if got < expected {
            return Err(self.die(FrameError::Descriptors { expected, got }.into()));
        }
        Ok(self.descriptors.drain(..expected).collect())
    }

    /// From here on messages go through the ring.
    pub(crate) fn use_ring(&mut self, rings: Rings) -> Result<(), ClientError> {
        let data = epoll::EventData::new_u64(1);
        epoll::add(&*self.epoll, rings.own_bell.as_fd(), data, epoll::EventFlags::IN)
            .map_err(|e| ClientError::io("watching the doorbell")(e.into()))?;
        self.ring = Some(rings);
        Ok(())
    }

    /// Changes when something came, or room was made.
    #[inline]
    pub(crate) fn news(&self) -> u64 {
        self.news
    }

    /// Why nothing goes any more.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        self.dead.clone().map_or(Ok(()), Err)
    }

    fn die(&mut self, error: ClientError) -> ClientError {
        let error = self.dead.get_or_insert(error).clone();
        self.slots.wake_all();
        self.wake_waiting();
        error
    }

    /// Ends the connection from this side.
    pub(crate) fn close(&mut self) {
        // The node may have closed before.
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
        self.die(ClientError::Closed);
    }

    /// Wakes whoever waits for anything but an answer.
    fn wake_waiting(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// Somebody waits for room, or for an event.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.wakers.is_empty()
    }

    /// Wake me when there is room, or an event.
    pub(crate) fn add_waker(&mut self, waker: &Waker) {
        if !self.wakers.iter().any(|w| w.will_wake(waker)) {
            self.wakers.push(waker.clone());
        }
    }

    /// Sends a request. `None`: the ring is full, wait for room ([`Self::has_room`] by polling) and try again. Then [`flush`](Self::flush).
    #[inline]
    pub(crate) fn submit<M: Message>(&mut self, message: &M, undo: Undo) -> Result<Option<Ticket>, ClientError> {
        self.check()?;
        let ticket = self.slots.open(undo);
        let sent = self.send(Head::new(M::TYPE, Slots::correlation(ticket)), message);
        if !matches!(sent, Ok(true)) {
            self.slots.forget(ticket);
        }
        Ok(sent?.then_some(ticket))
    }

    /// Sends a message that is answered only where it fails. `false`: the ring is full.
    #[inline]
    pub(crate) fn one_way<M: Message>(&mut self, message: &M) -> Result<bool, ClientError> {
        self.check()?;
        let head = self.one_way_head::<M>();
        self.send(head, message)
    }

    /// Sends a message from where nobody can wait: it is kept until there is room.
    pub(crate) fn one_way_later<M: Message>(&mut self, message: &M) {
        if self.dead.is_some() || matches!(self.one_way(message), Ok(true) | Err(_)) {
            return;
        }
        let head = self.one_way_head::<M>();
        if self.deferred.len() >= DEFERRED_MAX {
            self.die(ClientError::Argument(format!("{DEFERRED_MAX} messages wait for a node that does not read")));
            return;
        }
        if let Ok(body) = self.body.body(message) {
            self.deferred.push_back((head, body.into()));
        }
    }

    fn one_way_head<M: Message>(&mut self) -> Head {
        self.one_ways = self.one_ways.wrapping_add(1);
        Head::new(M::TYPE, ONE_WAY_BIT | self.one_ways).one_way()
    }

    #[inline]
    fn send<M: Message>(&mut self, head: Head, message: &M) -> Result<bool, ClientError> {
        if !self.deferred.is_empty() && !self.send_deferred()? {
            return Ok(false);
        }
        if let Some(ring) = &mut self.ring {
            match ring.endpoint.push(head, self.body.body(message)?) {
                Ok(()) => return Ok(true),
                Err(PushError::Full) => return Ok(false),
                Err(PushError::Ring(error)) => return Err(self.die(error.into())),
                Err(PushError::Long { .. }) => {}
            }
        }
        self.encoder.frame(head, message)?;
        Ok(true)
    }

    fn send_deferred(&mut self) -> Result<bool, ClientError> {
        let Some(ring) = &mut self.ring else {
            return Ok(true);
        };
        while let Some((head, body)) = self.deferred.front() {
            match ring.endpoint.push(*head, body) {
                Ok(()) => drop(self.deferred.pop_front()),
                Err(PushError::Ring(error)) => return Err(self.die(error.into())),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// There is room for a short message, as far as can be seen.
    pub(crate) fn has_room(&mut self) -> bool {
        let is_sent = matches!(self.send_deferred(), Ok(true));
        is_sent && self.ring.as_mut().is_none_or(|ring| ring.endpoint.has_room(0))
    }

    /// Lets the node know of what was sent.
    #[inline]
    pub(crate) fn flush(&mut self) -> Result<(), ClientError> {
        if let Some(ring) = &mut self.ring {
            if ring.endpoint.must_wake() {
                fault::pass(Point::SleeperChosen);
                ring.peer_bell.ring();
            }
        }
        if self.encoder.unsent_bytes() == 0 && !self.wants_out {
            return Ok(());
        }
        match self.encoder.flush(&*self.socket) {
            Ok(is_out) => self.want_out(!is_out),
            // The node may have said why before it closed.
            Err(error) => {
                let _ = self.read_socket();
                Err(self.die(ClientError::io("writing to the node")(error)))
            }
        }
    }

    fn want_out(&mut self, wants_out: bool) -> Result<(), ClientError> {
        if wants_out != self.wants_out {
            let out = if wants_out { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            epoll::modify(&*self.epoll, &self.socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN | out)
                .map_err(|e| ClientError::io("watching the socket")(e.into()))?;
            self.wants_out = wants_out;
        }
        Ok(())
    }

    /// Takes in what is there, without waiting: from the ring, and from the socket where the ring says so or there is none.
    #[inline]
    pub(crate) fn poll(&mut self) -> Result<(), ClientError> {
        match self.ring {
            Some(_) => self.read_ring()?,
            None => self.read_socket()?,
        }
        if !self.deferred.is_empty() {
            self.send_deferred()?;
        }
        Ok(())
    }

    /// Both of them.
    pub(crate) fn poll_all(&mut self) -> Result<(), ClientError> {
        self.poll()?;
        self.read_socket()?;
        self.flush()
    }

    #[inline]
    fn read_ring(&mut self) -> Result<(), ClientError> {
        loop {
            let Some(ring) = &mut self.ring else {
                return Ok(());
            };
            match ring.endpoint.pop(&mut self.record) {
                Ok(false) => break,
                Ok(true) => {}
                Err(error) => return Err(self.die(error.into())),
            }
            let (head, body) = (self.record.head(), self.record.body());
            let reply = Reply::read(head, body).and_then(|reply| reply.to_owned());
            match reply {
                Ok(reply) => self.dispatch(head, reply, Vec::new())?,
                Err(error) => return Err(self.die(error.into())),
            }
        }
        while self.frames_read < self.frames_told {
            let before = self.frames_read;
            self.read_socket()?;
            if self.frames_read == before {
                // The hint overtook its frame: the node's write comes later.
                break;
            }
        }
        Ok(())
    }

    fn read_socket(&mut self) -> Result<(), ClientError> {
        loop {
            let room = self.decoder.room();
            let offered = room.len();
            let got = match fds::receive(&*self.socket, room, &mut self.descriptors) {
                Ok(Some(0)) => {
                    self.decode_frames()?;
                    let error = self.decoder.finish().map_or_else(ClientError::Frame, |()| ClientError::Closed);
                    return Err(self.die(error));
                }
                Ok(Some(got)) => got,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.decode_frames()?;
                    return Err(self.die(ClientError::io("reading from the node")(error)));
                }
            };
            self.decoder.filled(got);
            self.decode_frames()?;
            if got < offered {
                return Ok(());
            }
        }
    }

    fn decode_frames(&mut self) -> Result<(), ClientError> {
        loop {
            let (head, reply) = match self.decoder.next_frame() {
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => (frame.head, Reply::read(frame.head, frame.body).and_then(|reply| reply.to_owned())),
                Err(error) => return Err(self.die(error.into())),
            };
            self.frames_read += 1;
            let descriptors = self.descriptors_of(head)?;
            match reply {
                Ok(reply) => self.dispatch(head, reply, descriptors)?,
                Err(error) => return Err(self.die(error.into())),
            }
        }
    }

    fn dispatch(&mut self, head: Head, reply: OwnedReply, descriptors: Vec<OwnedFd>) -> Result<(), ClientError> {
        self.news += 1;
        if matches!(reply, OwnedReply::Welcome(_) | OwnedReply::RingOpened(_)) {
            self.setup = descriptors;
        } else if let OwnedReply::SegmentAdded(added) = reply {
            let [descriptor] = &descriptors[..] else {
                return Err(self.die(FrameError::Descriptors { expected: 1, got: descriptors.len() }.into()));
            };
            return self.segments.add(&added.segment, descriptor);
        }
        match reply {
            OwnedReply::SocketHint(SocketHint { frames }) => self.frames_told = self.frames_told.max(frames),
            OwnedReply::Refused(refused) if head.correlation == 0 => {
                let refusal = Refusal::from_wire(refused.code, &refused.detail);
                return Err(self.die(ClientError::ClosedByNode(refusal)));
            }
            OwnedReply::Refused(refused) if head.correlation & ONE_WAY_BIT != 0 => {
                if self.failures.len() >= FAILURES_MAX {
                    self.failures.pop_front();
                }
                self.failures.push_back(Refusal::from_wire(refused.code, &refused.detail));
            }
            reply if head.correlation == 0 => self.on_event(reply),
            reply => match self.slots.answer(head.correlation, reply) {
                Ok(Undo::Nothing) => {}
                Ok(undo) => self.undo(undo),
                Err(reply) => {
                    return Err(self.die(ClientError::Unexpected {
                        expected: "an answer to a request",
                        got: format!("{} with correlation id {}", reply.name(), head.correlation),
                    }))
                }
            },
        }
        Ok(())
    }

    fn on_event(&mut self, event: OwnedReply) {
        let (lease, end) = match event {
            OwnedReply::LeaseDone(done) => (done.lease, LeaseEnd::Done { status: done.status, result: done.result }),
            OwnedReply::LeaseLost(lost) => (lost.lease, LeaseEnd::Lost(Refusal::from_wire(lost.code, &lost.detail))),
            other => {
                if self.events.len() >= EVENTS_MAX {
                    self.events.pop_front();
                    self.events_dropped += 1;
                }
                self.events.push_back(other);
                self.wake_waiting();
                return;
            }
        };
        // One that was given back meanwhile concerns nobody.
        if let Some(ends) = self.leases.get_mut(&lease) {
            if ends.len() < LEASE_ENDS_MAX {
                ends.push(end);
            }
            self.wake_waiting();
        }
    }

    /// What happened to a lease first, of what was not fetched.
    pub(crate) fn lease_end(&mut self, lease: u32) -> Option<LeaseEnd> {
        let ends = self.leases.get_mut(&lease)?;
        (!ends.is_empty()).then(|| ends.remove(0))
    }

    /// Gives back what nobody wants any more.
    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Nothing => {}
            Undo::Release(object) => self.one_way_later(&Release { object, count: 1 }),
            Undo::Abort(object) => self.one_way_later(&Abort { object }),
            Undo::Return(lease) => self.one_way_later(&ReturnLease { lease, broken: false }),
        }
    }

    /// Before sleeping on [`epoll`](Self::epoll). `false`: there is something to do.
    pub(crate) fn announce_sleep(&mut self, for_room: bool) -> Result<bool, ClientError> {
        let Some(ring) = &mut self.ring else {
            return Ok(true);
        };
        let deferred = self.deferred.front().map(|(_, body)| body.len());
        let room = for_room.then(|| ring.endpoint.body_max_bytes());
        let wake = Wake { for_data: true, for_space: deferred.or(room) };
        let asleep = ring.endpoint.announce_sleep(wake).map_err(|e| self.die(e.into()));
        fault::pass(Point::SleepAnnounced);
        asleep
    }

    /// After sleeping.
    pub(crate) fn awake(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.endpoint.awake();
            ring.own_bell.clear();
        }
        if self.deferred.is_empty() {
            self.wake_waiting();
        }
    }

    /// The memory at a place.
    pub(crate) fn piece(&self, place: &Place) -> Result<super::segments::Piece, ClientError> {
        self.segments.piece(place)
    }
}
