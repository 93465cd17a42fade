//! Objects by the bulk port: which lanes there are, what is said on them, and what that means for sending and receiving.
//!
//! A node that wants objects opens lanes to whoever has them, and asks there; so between two nodes that want of each other there are
//! two sets of lanes. Lanes of a set live and die together: one that breaks takes the others along, and what was asked for by them is
//! asked for again.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raylet_shard::ids::{NodeId, ObjectId};
use raylet_shard::pull::{ChunkHead, ReceiveEvent};
use raylet_transport::bulk::frame::{Frame, Kind, WHOLE_MAX_BYTES};
use raylet_transport::ids as wire;
use raylet_tuning::Segment;
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::net::Shutdown;
use tokio::sync::oneshot;

use super::greet::{GreetError, Greeted};
use super::same_host::Lending;
use super::send::{CopyAt, Here};
use super::spilled::ReadChunk;
use super::{Transfer, TransferNews};
use crate::bridge::ToCore;
use crate::bulk::{ChunkMemory, LaneId, LaneNews, LaneTell};

/// Lanes that other nodes may have open to here. Further ones are refused, and their nodes fetch in Ray's way.
pub const LANES_IN_MAX: usize = 4_096;

/// Largest object that is sent to a lane without an offer, as one chunk that waits for memory on its lane: a lane is held up no longer
/// than a receiver allows, and what is in vain is little.
pub const UNOFFERED_MAX_BYTES: u64 = 2 << 20;

/// How long a node is asked in Ray's way after its bulk port could not be reached or refused.
const SHUT_FOR: Duration = Duration::from_secs(30);

/// A node that objects are fetched from.
enum Source {
    /// Its lanes are being opened; what is to be asked then.
    Connecting { session: u64, wants: Vec<(ObjectId, Kind)> },
    /// In use.
    Open { lanes: Vec<LaneId> },
    /// Not to be tried before this time.
    Shut { until: Instant },
}

/// A node that fetches from here.
struct Taker {
    session: u64,
    lanes: Vec<LaneId>,
    /// Chunks go over the lanes in turn.
    turn: usize,
}

struct Lane {
    node: NodeId,
    /// This node opened it, and is the one that wants.
    is_ours: bool,
    core: usize,
    /// The chunk that is coming.
    landing: Option<ChunkOfLane>,
    /// Chunks that are going.
    sends: FxHashMap<u64, oneshot::Sender<()>>,
    /// The socket of a lane to a node of this host: it is closed before anything is let go of that was lent there.
    same_host: Option<OwnedFd>,
}

/// A chunk that is coming on a lane.
#[derive(Clone, Copy)]
struct ChunkOfLane {
    ticket: u64,
    object: ObjectId,
    len_bytes: u64,
    is_lent: bool,
}

/// The lanes of the node.
#[derive(Default)]
pub(super) struct Bulk {
    ports: FxHashMap<NodeId, String>,
    sources: FxHashMap<NodeId, Source>,
    takers: FxHashMap<NodeId, Taker>,
    lanes: FxHashMap<LaneId, Lane>,
    /// Lanes by the chunk that comes on them.
    landing: FxHashMap<u64, LaneId>,
    /// Objects that were asked for by a lane, and whom.
    asked: FxHashMap<ObjectId, NodeId>,
    /// Objects that were asked for and are to come from elsewhere: from the node that was named, the first time.
    detours: FxHashMap<ObjectId, Option<NodeId>>,
    /// Nodes of this host from whose memory something could not be copied: they are called by TCP.
    wired: FxHashSet<NodeId>,
    numbers: u64,
}

impl Bulk {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn lanes_in(&self) -> usize {
        self.takers.values().map(|taker| taker.lanes.len()).sum()
    }
}

/// Frames about an object all take the same lane, so that they come in order.
fn lane_of(lanes: &[LaneId], object: &ObjectId) -> Option<LaneId> {
    let hash = object.0.iter().fold(0usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    (!lanes.is_empty()).then(|| lanes[hash % lanes.len()])
}

fn about(kind: Kind, object: ObjectId) -> Frame {
    Frame::new(kind, wire::ObjectId(object.0))
}

/// A frame about the copy that is here, or about a piece of it.
fn about_copy(kind: Kind, object: ObjectId, here: &Here) -> Frame {
    let (total_bytes, metadata_bytes) = (here.total_bytes(), here.metadata_bytes());
    Frame { push: here.push(), total_bytes, metadata_bytes, ..about(kind, object) }
}

/// What a frame says of a chunk, or of the object that it offers.
fn head(frame: &Frame, from: NodeId) -> ChunkHead {
    ChunkHead {
        object: ObjectId(frame.object.0),
        from,
        push: frame.push,
        index: frame.index,
        total_bytes: frame.total_bytes,
        metadata_bytes: frame.metadata_bytes,
        len_bytes: u64::from(frame.len_bytes),
    }
}

impl Transfer {
    /// Takes callers of the bulk port until the node ends.
    pub(super) fn serve_bulk(self: &Rc<Self>, listeners: Vec<TcpListener>, lending: Option<Lending>) {
        if let Some(lending) = lending {
            tokio::task::spawn_local(lending.serve(self.clone()));
        }
        for listener in listeners {
            let (transfer, greeting) = (self.clone(), self.greeting.clone());
            tokio::task::spawn_local(async move { greeting.serve(listener, transfer).await });
        }
    }

    /// Where a node's bulk port is.
    pub(super) fn bulk_port(&self, node: NodeId, address: Option<String>) {
        let mut bulk = self.bulk.borrow_mut();
        // Whoever says where it is, is there: it is tried anew.
        if matches!(bulk.sources.get(&node), Some(Source::Shut { .. })) {
            bulk.sources.remove(&node);
        }
        match address.filter(|_| self.greeting.is_open()) {
            Some(address) => bulk.ports.insert(node, address),
            None => bulk.ports.remove(&node),
        };
    }

    /// A node is dead: its lanes are of no use.
    pub(super) fn bulk_gone(&self, node: &NodeId) {
        let (source, taker) = {
            let mut bulk = self.bulk.borrow_mut();
            bulk.ports.remove(node);
            bulk.wired.remove(node);
            (bulk.sources.remove(node), bulk.takers.remove(node))
        };
        if let Some(Source::Open { lanes }) = source {
            self.close(&lanes);
        }
        taker.into_iter().for_each(|taker| self.close(&taker.lanes));
    }

    /// Asks a node for an object by its bulk port, by saying `want`. False: it has none that can be used now.
    pub(super) fn ask_by_lane(self: &Rc<Self>, node: NodeId, object: ObjectId, want: Kind) -> bool {
        let mut bulk = self.bulk.borrow_mut();
        let Some(address) = bulk.ports.get(&node).cloned() else {
            return false;
        };
        match bulk.sources.get_mut(&node) {
            Some(Source::Shut { until }) if *until > Instant::now() => return false,
            Some(Source::Connecting { wants, .. }) => wants.push((object, want)),
            Some(Source::Open { lanes }) => {
                let lane = lane_of(lanes, &object);
                bulk.asked.insert(object, node);
                let want = match bulk.detours.get(&object) {
                    // One that does not get it any more is to say so at once.
                    Some(named) if *named == Some(node) => Kind::WantIfThere,
                    Some(_) => {
                        bulk.detours.remove(&object);
                        Kind::WantFromYou
                    }
                    None => want,
                };
                drop(bulk);
                lane.into_iter().for_each(|lane| self.tell_lane(lane, LaneTell::Say(about(want, object))));
                return true;
            }
            Some(Source::Shut { .. }) | None => {
                let session = rand::random();
                bulk.sources.insert(node, Source::Connecting { session, wants: vec![(object, want)] });
                tokio::task::spawn_local(self.clone().connect(node, address, session));
            }
        }
        true
    }

    /// An object is not asked for any more.
    pub(super) fn asked_no_more(&self, object: &ObjectId) {
        let mut bulk = self.bulk.borrow_mut();
        bulk.asked.remove(object);
        bulk.detours.remove(object);
    }

    async fn connect(self: Rc<Self>, node: NodeId, address: String, session: u64) {
        let mut streams = Vec::with_capacity(self.lanes_per_node);
        let mut failed = None;
        while streams.len() < self.lanes_per_node && failed.is_none() {
            match self.call(&address, node, session).await {
                Ok(greeted) => streams.push(greeted),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            self.say_why_not(&node, &address, &error, !streams.is_empty());
        }
        let lanes: Vec<LaneId> = streams.into_iter().map(|greeted| self.add_lane(node, true, greeted)).collect();
        let wants = {
            let mut bulk = self.bulk.borrow_mut();
            let state = match lanes.is_empty() {
                true => Source::Shut { until: Instant::now() + SHUT_FOR },
                false => Source::Open { lanes: lanes.clone() },
            };
            match bulk.sources.get_mut(&node) {
                Some(source @ Source::Connecting { .. }) if source.is_of(session) => std::mem::replace(source, state),
                // The node is dead.
                _ => {
                    drop(bulk);
                    return self.close(&lanes);
                }
            }
        };
        if let Source::Connecting { wants, .. } = wants {
            for (object, want) in wants {
                if !self.ask_by_lane(node, object, want) {
                    self.ask_otherwise(node, object, want);
                }
            }
            self.send_asks();
        }
    }

    /// Calls a node for a lane: where it listens on this host, and else by TCP.
    async fn call(&self, address: &str, node: NodeId, session: u64) -> Result<Greeted, GreetError> {
        if self.lends && !self.bulk.borrow().wired.contains(&node) {
            match self.greeting.call_here(node, session).await {
                Ok(Some(greeted)) => return Ok(greeted),
                Ok(None) => {}
                Err(error) => {
                    tracing::info!(%node, %error, "a node of this host gives no lane by its Unix socket: TCP is used");
                }
            }
        }
        self.greeting.call(address, node, session).await
    }

    fn say_why_not(&self, node: &NodeId, address: &str, error: &GreetError, some: bool) {
        match some {
            true => tracing::debug!(%node, address, %error, "fewer lanes to a node than wanted"),
            false => {
                tracing::warn!(%node, address, %error, "no lane to a node: its objects are fetched in Ray's way, if it has one")
            }
        }
    }

    /// A node that fetches from here has opened a lane. Called when its greeting is over.
    pub(super) fn taken(self: &Rc<Self>, node: NodeId, session: u64, greeted: Greeted) {
        let old = {
            let mut bulk = self.bulk.borrow_mut();
            match bulk.takers.get(&node) {
                Some(taker) if taker.session != session => bulk.takers.remove(&node),
                _ => None,
            }
        };
        if let Some(taker) = old {
            self.close(&taker.lanes);
            self.push_no_more(node);
        }
        let lane = self.add_lane(node, false, greeted);
        let mut bulk = self.bulk.borrow_mut();
        let taker = bulk.takers.entry(node).or_insert_with(|| Taker { session, lanes: Vec::new(), turn: 0 });
        taker.lanes.push(lane);
    }

    /// Whether another lane may be opened to here.
    pub(super) fn has_room_for_lane(&self) -> bool {
        self.bulk.borrow().lanes_in() < LANES_IN_MAX
    }

    fn add_lane(&self, node: NodeId, is_ours: bool, greeted: Greeted) -> LaneId {
        let Greeted { socket, is_same_host, lenders } = greeted;
        let lane = {
            let mut bulk = self.bulk.borrow_mut();
            let lane = bulk.number();
            let core = self.lane_cores[lane as usize % self.lane_cores.len()];
            let (landing, sends) = Default::default();
            // Without a second descriptor it could not be closed in time: then nothing is lent on it.
            let same_host = if is_same_host { socket.try_clone().ok() } else { None };
            bulk.lanes.insert(lane, Lane { node, is_ours, core, landing, sends, same_host });
            lane
        };
        self.used.lanes.fetch_add(1, Ordering::Relaxed);
        let chunk_max_bytes = u32::try_from(self.chunk_bytes).unwrap_or(u32::MAX);
        self.tell_lane(lane, LaneTell::Open { socket, chunk_max_bytes, lenders });
        lane
    }

    fn tell_lane(&self, lane: LaneId, tell: LaneTell) {
        tracing::trace!(lane, ?tell, "lane");
        let core = self.bulk.borrow().lanes.get(&lane).map(|lane| lane.core);
        if let Some(core) = core {
            self.cores[core].send(ToCore::Lane(lane, tell));
        }
    }

    fn close(&self, lanes: &[LaneId]) {
        let bulk = self.bulk.borrow();
        for socket in lanes.iter().filter_map(|lane| bulk.lanes.get(lane)?.same_host.as_ref()) {
            // One that is not connected any more needs no end.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
        drop(bulk);
        lanes.iter().for_each(|lane| self.tell_lane(*lane, LaneTell::Close));
    }

    /// Something came on a lane, or of it.
    pub(super) fn lane_news(self: &Rc<Self>, id: LaneId, news: LaneNews) {
        let Some((node, is_ours)) = self.bulk.borrow().lanes.get(&id).map(|lane| (lane.node, lane.is_ours)) else {
            return;
        };
        tracing::trace!(%node, is_ours, ?news, "lane");
        match news {
            LaneNews::Said(frame) if frame.kind.is_of_wanter() != is_ours => self.said(node, &frame),
            LaneNews::Whole(frame, bytes) if is_ours => {
                let (transfer, head) = (self.clone(), head(&frame, node));
                self.used.lane_received_bytes.fetch_add(head.len_bytes, Ordering::Relaxed);
                tokio::task::spawn_local(async move {
                    if let Err(status) = transfer.chunk(head, Bytes::from(bytes)).await {
                        tracing::debug!(object = %head.object, error = status.message(), "an object was not taken");
                    }
                });
            }
            LaneNews::Chunk(frame) if is_ours => {
                let (ticket, head) = (self.ticket(), head(&frame, node));
                {
                    let mut bulk = self.bulk.borrow_mut();
                    bulk.landing.insert(ticket, id);
                    bulk.lanes.get_mut(&id).into_iter().for_each(|lane| {
                        let (object, len_bytes, is_lent) = (head.object, head.len_bytes, frame.kind == Kind::Lent);
                        lane.landing = Some(ChunkOfLane { ticket, object, len_bytes, is_lent });
                    });
                }
                self.receive(ReceiveEvent::Landing { ticket, head });
            }
            LaneNews::Landed { ok } => self.landed(id, ok),
            LaneNews::Sent { ticket } => {
                let mut bulk = self.bulk.borrow_mut();
                let sent = bulk.lanes.get_mut(&id).and_then(|lane| lane.sends.remove(&ticket));
                // Whoever waited may have gone.
                let _ = sent.map(|sent| sent.send(()));
            }
            LaneNews::Ended { error } => self.lane_ended(id, error),
            LaneNews::Said(frame) => self.out_of_turn(id, &node, frame.kind),
            LaneNews::Whole(frame, _) | LaneNews::Chunk(frame) => self.out_of_turn(id, &node, frame.kind),
        }
    }

    fn out_of_turn(&self, id: LaneId, node: &NodeId, kind: Kind) {
        tracing::warn!(%node, ?kind, "a lane is closed: its other side said what only this side says");
        self.tell_lane(id, LaneTell::Close);
    }

    fn said(self: &Rc<Self>, node: NodeId, frame: &Frame) {
        let object = ObjectId(frame.object.0);
        match frame.kind {
            Kind::Want | Kind::WantFromYou | Kind::WantIfThere => {
                let (patient, direct) = (frame.kind != Kind::WantIfThere, frame.kind == Kind::WantFromYou);
                if let Err(status) = self.wanted_by(node, object, patient, direct) {
                    tracing::debug!(%node, %object, error = status.message(), "a node can't be served");
                    self.say_gone(&node, object);
                }
            }
            Kind::Accept => self.accepted(node, object, frame.push),
            Kind::Stop => self.declined(node, object),
            Kind::Offer => self.receive(ReceiveEvent::Offered { head: head(frame, node) }),
            Kind::Gone => self.tell(TransferNews::Failed { object, from: node }),
            Kind::Elsewhere => {
                let to = NodeId(frame.node.0);
                {
                    let detours = &mut self.bulk.borrow_mut().detours;
                    let named = if detours.contains_key(&object) { None } else { Some(to) };
                    detours.insert(object, named);
                }
                self.tell(TransferNews::Elsewhere { object, from: node, to });
            }
            // The cores hear of these.
            Kind::Chunk | Kind::Whole | Kind::Lent | Kind::Taken => {}
        }
    }

    fn landed(self: &Rc<Self>, id: LaneId, ok: bool) {
        let landing = {
            let mut bulk = self.bulk.borrow_mut();
            let landing = bulk.lanes.get_mut(&id).and_then(|lane| lane.landing.take());
            if let Some(chunk) = landing {
                bulk.landing.remove(&chunk.ticket);
            }
            landing
        };
        let Some(ChunkOfLane { ticket, object, len_bytes, is_lent }) = landing else {
            return;
        };
        self.used.lane_received_bytes.fetch_add(len_bytes, Ordering::Relaxed);
        if is_lent {
            self.used.same_host_received_bytes.fetch_add(len_bytes, Ordering::Relaxed);
        }
        if !ok {
            tracing::warn!(%object, "a chunk did not arrive as it was sent, and its object is asked for again");
        }
        self.receive(ReceiveEvent::Landed { ticket, object, ok });
    }

    /// A lane is closed; those of its set follow.
    fn lane_ended(self: &Rc<Self>, id: LaneId, error: Option<String>) {
        let Some(lane) = self.bulk.borrow_mut().lanes.remove(&id) else {
            return;
        };
        self.used.lanes.fetch_sub(1, Ordering::Relaxed);
        if let Some(error) = error {
            tracing::warn!(node = %lane.node, error, "a lane to another node broke");
            if lane.is_ours && lane.same_host.is_some() {
                self.bulk.borrow_mut().wired.insert(lane.node);
            }
        }
        if let Some(ChunkOfLane { ticket, object, .. }) = lane.landing {
            self.bulk.borrow_mut().landing.remove(&ticket);
            self.receive(ReceiveEvent::Landed { ticket, object, ok: false });
        }
        match lane.is_ours {
            true => self.source_ended(lane.node, id),
            false => self.taker_ended(lane.node, id),
        }
    }

    fn source_ended(self: &Rc<Self>, node: NodeId, id: LaneId) {
        let (lanes, lost) = {
            let mut bulk = self.bulk.borrow_mut();
            let is_of = matches!(bulk.sources.get(&node), Some(Source::Open { lanes }) if lanes.contains(&id));
            let Some(Source::Open { lanes }) = is_of.then(|| bulk.sources.remove(&node)).flatten() else {
                return;
            };
            let mut lost: Vec<ObjectId> = Vec::new();
            bulk.asked.retain(|object, asked| {
                let is_lost = *asked == node;
                is_lost.then(|| lost.push(*object));
                !is_lost
            });
            (lanes, lost)
        };
        self.close(&lanes);
        self.receive(ReceiveEvent::Broken { from: node });
        lost.into_iter().for_each(|object| self.tell(TransferNews::Failed { object, from: node }));
    }

    fn taker_ended(self: &Rc<Self>, node: NodeId, id: LaneId) {
        let taker = {
            let mut bulk = self.bulk.borrow_mut();
            let is_of = bulk.takers.get(&node).is_some_and(|taker| taker.lanes.contains(&id));
            is_of.then(|| bulk.takers.remove(&node)).flatten()
        };
        if let Some(taker) = taker {
            self.close(&taker.lanes);
            self.push_no_more(node);
        }
    }

    /// Whether a node fetches from here by lanes.
    pub(super) fn has_taker(&self, node: &NodeId) -> bool {
        self.bulk.borrow().takers.contains_key(node)
    }

    /// Whether a node that fetches by lanes is of this host: what it gets costs this node nothing.
    pub(super) fn lends_to(&self, node: &NodeId) -> bool {
        let bulk = self.bulk.borrow();
        let lends = |lane| bulk.lanes.get(lane).is_some_and(|lane| lane.same_host.is_some());
        bulk.takers.get(node).is_some_and(|taker| taker.lanes.iter().all(lends))
    }

    fn lane_to_taker(&self, node: &NodeId, object: &ObjectId) -> Option<LaneId> {
        self.bulk.borrow().takers.get(node).and_then(|taker| lane_of(&taker.lanes, object))
    }

    /// Tells a node that fetches by lanes that an object does not come.
    pub(super) fn say_gone(&self, node: &NodeId, object: ObjectId) {
        if let Some(lane) = self.lane_to_taker(node, &object) {
            self.tell_lane(lane, LaneTell::Say(about(Kind::Gone, object)));
        }
    }

    /// Sends a node that fetches by lanes to another one.
    pub(super) fn say_elsewhere(&self, node: &NodeId, object: ObjectId, to: NodeId) {
        if let Some(lane) = self.lane_to_taker(node, &object) {
            self.tell_lane(lane, LaneTell::Say(Frame { node: wire::NodeId(to.0), ..about(Kind::Elsewhere, object) }));
        }
    }

    /// Offers an object to a node. False: it has no lanes any more.
    pub(super) fn offer(&self, node: &NodeId, object: ObjectId, here: &Here) -> bool {
        let Some(lane) = self.lane_to_taker(node, &object) else {
            return false;
        };
        self.tell_lane(lane, LaneTell::Say(about_copy(Kind::Offer, object, here)));
        true
    }

    /// Sends an object that is small enough at once. False: it is not, or can't be read, or lies in a file.
    pub(super) fn send_whole(&self, node: &NodeId, object: ObjectId, here: &Here) -> bool {
        let total_bytes = here.total_bytes();
        if total_bytes > u64::from(WHOLE_MAX_BYTES).min(self.chunk_bytes) {
            return false;
        }
        let CopyAt::Memory(place) = &here.at else {
            return false;
        };
        let (Some(lane), Some(segment)) = (self.lane_to_taker(node, &object), self.segment(place.segment)) else {
            return false;
        };
        let mut bytes = vec![0; total_bytes as usize].into_boxed_slice();
        if let Err(error) = segment.read_at(place.data_offset, &mut bytes) {
            tracing::warn!(%object, %error, "an object can't be read");
            return false;
        }
        let frame = about_copy(Kind::Whole, object, here);
        self.used.lane_sent_bytes.fetch_add(total_bytes, Ordering::Relaxed);
        self.tell_lane(lane, LaneTell::SendWhole(frame, bytes));
        true
    }

    /// Sends a chunk. False: the node gets no more of the object by these lanes.
    pub(super) async fn send_by_lane(
        &self,
        node: NodeId,
        object: ObjectId,
        index: u32,
        here: &Here,
        read: Option<&ReadChunk>,
    ) -> bool {
        let (start, len) = here.chunk(index, self.chunk_bytes);
        let from = match &here.at {
            CopyAt::Memory(place) => {
                self.segment(place.segment).map(|segment| (ChunkMemory::Store(segment), place.data_offset + start))
            }
            CopyAt::File(_) => read.map(|read| (ChunkMemory::Buffer(read.buffer.clone()), read.offset)),
        };
        let (Some((memory, offset)), Ok(len_bytes)) = (from, u32::try_from(len)) else {
            return false;
        };
        let frame = Frame { index, len_bytes, ..about_copy(Kind::Chunk, object, here) };
        let (sent, wait) = oneshot::channel();
        let Some((lane, ticket, lends)) = self.next_lane(&node, sent) else {
            return false;
        };
        // A segment on disk, which came later than the lane, is not lent from.
        let lent = match &here.at {
            CopyAt::Memory(place) if lends && (place.segment as usize) < self.segments.len() => Some(place.segment),
            _ => None,
        };
        self.tell_lane(
            lane,
            match lent {
                Some(segment) => {
                    LaneTell::LendChunk { ticket, frame: Frame { kind: Kind::Lent, segment, offset, ..frame } }
                }
                None => LaneTell::SendChunk { ticket, frame, memory, offset },
            },
        );
        let sent = wait.await.is_ok();
        if sent {
            self.used.lane_sent_bytes.fetch_add(len, Ordering::Relaxed);
            if lent.is_some() {
                self.used.same_host_sent_bytes.fetch_add(len, Ordering::Relaxed);
            }
        }
        sent
    }

    /// The lane of the next chunk to a node, the chunk's ticket there, and whether the lane lends; `None`: the node has no lane.
    fn next_lane(&self, node: &NodeId, sent: oneshot::Sender<()>) -> Option<(LaneId, u64, bool)> {
        let mut bulk = self.bulk.borrow_mut();
        let ticket = bulk.number();
        let taker = bulk.takers.get_mut(node)?;
        taker.turn = (taker.turn + 1) % taker.lanes.len().max(1);
        let id = *taker.lanes.get(taker.turn)?;
        let lane = bulk.lanes.get_mut(&id)?;
        lane.sends.insert(ticket, sent);
        Some((id, ticket, lane.same_host.is_some()))
    }

    fn say_to_source(&self, node: &NodeId, frame: Frame) {
        let lane = match self.bulk.borrow().sources.get(node) {
            Some(Source::Open { lanes }) => lane_of(lanes, &ObjectId(frame.object.0)),
            _ => None,
        };
        lane.into_iter().for_each(|lane| self.tell_lane(lane, LaneTell::Say(frame)));
    }

    /// There is memory for what was offered.
    pub(super) fn accept(&self, node: NodeId, object: ObjectId, push: u64) {
        self.say_to_source(&node, Frame { push, ..about(Kind::Accept, object) });
    }

    /// What was offered is not wanted.
    pub(super) fn decline(&self, node: NodeId, object: ObjectId) {
        self.say_to_source(&node, about(Kind::Stop, object));
    }

    /// Tells the lane where the chunk of this ticket goes. False: it is not one of a lane.
    pub(super) fn place(&self, ticket: u64, place: Option<(Arc<Segment>, u64)>) -> bool {
        let lane = {
            let mut bulk = self.bulk.borrow_mut();
            let lane = bulk.landing.get(&ticket).copied();
            if let (Some(lane), None) = (lane, &place) {
                // Nobody hears of it again.
                bulk.landing.remove(&ticket);
                bulk.lanes.get_mut(&lane).into_iter().for_each(|lane| lane.landing = None);
            }
            lane
        };
        lane.into_iter().for_each(|lane| self.tell_lane(lane, LaneTell::Place(place.clone())));
        lane.is_some()
    }
}

impl Source {
    fn is_of(&self, of: u64) -> bool {
        matches!(self, Self::Connecting { session, .. } if *session == of)
    }
}
