//! Sending: objects that other nodes ask for go out in chunks, straight from the store's memory, or from their file where they are on
//! disk only (`spilled`).

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_key, encode_varint, encoded_len_varint, WireType};
use prost::Message;
use raylet_shard::ids::{NodeId, ObjectId, WorkerId};
use raylet_shard::pull::{SendEffect, SendEvent, Sender};
use raylet_shard::store::{Placement, StoreEvent};
use raylet_transport::spill::SpilledObject;
use raylet_transport::uring::IoMemory;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tonic::Status;

use super::bulk::UNOFFERED_MAX_BYTES;
use super::relay::Spreading;
use super::spilled::ReadChunk;
use super::{sender, Transfer};
use crate::ray::proto::{Address, PushReply, PushRequest};
use crate::ray::rpc::client::Channel;
use crate::ray::rpc::gcs::id;
use crate::ray::rpc::prefix::frame_prefix;

/// Chunks under way to one node: enough to keep a connection busy while the receiver writes. Each is a copy.
pub const CHUNKS_PER_NODE_MAX: usize = 8;

/// Objects asked for at a time, here or not. A node that asks for more is told to come again.
pub const SERVED_MAX: usize = 1 << 20;

/// Longest wait for a chunk to be taken; its receiver may have to make room first.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(300);

/// A node that asks may be known to the GCS before its news are here.
const NODE_PATIENCE: Duration = Duration::from_secs(5);
const NODE_RETRY: Duration = Duration::from_millis(50);

/// The number of the data's field in Ray's PushRequest: its last.
const DATA_FIELD: u32 = 8;

/// What is being sent.
pub(super) struct Sending {
    machine: Sender,
    pub(super) served: FxHashMap<ObjectId, Served>,
    tokens: u64,
    pub(super) spreading: Spreading,
}

/// An object that somebody asked for.
pub(super) struct Served {
    /// Of the get, while the object is not here.
    pub(super) token: u64,
    /// The get waits for the object to be here.
    patient: bool,
    /// Where it lies, once a reference is held.
    pub(super) here: Option<Here>,
    /// It lies in a file, and could not be read there.
    pub(super) faulty: bool,
    /// Nodes that wait for it to be here.
    pub(super) waiting: SmallVec<[NodeId; 2]>,
    /// Nodes that it is under way to.
    pub(super) pushes: SmallVec<[NodeId; 2]>,
    /// Nodes that it was offered to by the bulk port.
    pub(super) offers: SmallVec<[NodeId; 2]>,
    /// It is sent on while it is still being received.
    pub(super) relay: Option<Relay>,
}

/// How far an object is that is sent on while it is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relay {
    /// Its memory is lent by the receiver.
    Lent,
    /// As before, and the receiver wants it back.
    Recalled,
    /// As before, and nobody else knows of it any more: it is aborted then.
    Abandoned,
    /// It is sealed, and a reference of the store is held.
    Sealed,
}

impl Served {
    fn new(token: u64, patient: bool, node: NodeId) -> Self {
        let (pushes, offers) = Default::default();
        let waiting = SmallVec::from_slice(&[node]);
        Self { token, patient, here: None, faulty: false, waiting, pushes, offers, relay: None }
    }

    /// A node waits for the object to be here.
    pub(super) fn wait(&mut self, node: NodeId) {
        if !self.waiting.contains(&node) {
            self.waiting.push(node);
        }
    }

    /// Nobody gets it any more, so that its reference can go.
    fn is_over(&self) -> bool {
        self.here.is_some() && self.waiting.is_empty() && self.pushes.is_empty() && self.offers.is_empty()
    }
}

/// Where the bytes of an object are.
#[derive(Clone)]
pub(super) enum CopyAt {
    /// In the store's memory.
    Memory(Placement),
    /// In a file, and nowhere else on this node.
    File(Arc<SpilledObject>),
}

/// An object whose bytes can be read.
#[derive(Clone)]
pub(super) struct Here {
    pub(super) at: CopyAt,
    owner: Address,
    push_id: Bytes,
}

impl Here {
    /// A copy, under a push number of its own.
    pub(super) fn new(at: CopyAt, owner: Address) -> Self {
        Self { at, owner, push_id: Bytes::copy_from_slice(&rand::random::<[u8; 28]>()) }
    }

    /// Size of the data, and of the metadata behind them.
    pub(super) fn total_bytes(&self) -> u64 {
        let data_bytes = match &self.at {
            CopyAt::Memory(place) => place.data_bytes,
            CopyAt::File(object) => object.data_bytes(),
        };
        data_bytes + self.metadata_bytes()
    }

    /// Size of the metadata.
    pub(super) fn metadata_bytes(&self) -> u64 {
        match &self.at {
            CopyAt::Memory(place) => place.metadata_bytes,
            CopyAt::File(object) => object.metadata_bytes(),
        }
    }

    /// Where a chunk starts, and how many bytes it has.
    pub(super) fn chunk(&self, index: u32, chunk_bytes: u64) -> (u64, u64) {
        let start = u64::from(index) * chunk_bytes;
        (start, self.total_bytes().saturating_sub(start).min(chunk_bytes))
    }

    /// Number of the push on a lane.
    pub(super) fn push(&self) -> u64 {
        push_number(&self.push_id)
    }
}

impl Sending {
    pub(super) fn new(chunks_max: usize, fanout: usize) -> Self {
        let machine = Sender::new(CHUNKS_PER_NODE_MAX, chunks_max);
        Self { machine, served: FxHashMap::default(), tokens: 0, spreading: Spreading::new(fanout) }
    }

    /// A number for a request to the store.
    pub(super) fn new_token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }
}

impl Transfer {
    /// A node wants an object. One that is not here is waited for if it is on its way to here, or if the node is `patient`, as in Ray.
    /// `direct`: it was sent to another node before, which came to nothing.
    pub(super) fn wanted_by(
        self: &Rc<Self>,
        node: NodeId,
        object: ObjectId,
        patient: bool,
        direct: bool,
    ) -> Result<(), Status> {
        let patient = patient || self.receiving.borrow().expects(&object);
        let mut in_vain: SmallVec<[NodeId; 2]> = SmallVec::new();
        let token = {
            let mut sending = self.sending.borrow_mut();
            let token = sending.new_token();
            match sending.served.get_mut(&object) {
                Some(served) if served.here.is_some() => {
                    drop(sending);
                    self.push_to(node, object, direct);
                    return Ok(());
                }
                Some(served) if served.patient && !patient => {
                    drop(sending);
                    self.say_gone(&node, object);
                    return Ok(());
                }
                Some(served) if served.patient == patient => {
                    served.wait(node);
                    return Ok(());
                }
                // Whoever is in a hurry is not to wait with this one.
                Some(served) => in_vain = std::mem::take(&mut served.waiting),
                None => {}
            }
            if sending.served.len() >= SERVED_MAX {
                let text = format!("{SERVED_MAX} objects are asked for on this node, which is its limit: retry later");
                return Err(Status::resource_exhausted(text));
            }
            sending.served.insert(object, Served::new(token, patient, node));
            token
        };
        in_vain.iter().for_each(|node| self.say_gone(node, object));
        if !patient {
            self.store(object, StoreEvent::Get { client: sender(), token, id: object, wait: false });
            return Ok(());
        }
        self.store(object, StoreEvent::GetToSend { client: sender(), token, id: object });
        self.lend_to_waiting(object);
        self.wait_patiently(object, token);
        Ok(())
    }

    pub(super) fn wait_patiently(self: &Rc<Self>, object: ObjectId, token: u64) {
        let transfer = self.clone();
        let patience = self.push_timeout;
        tokio::task::spawn_local(async move {
            tokio::time::sleep(patience).await;
            transfer.give_up_waiting(object, token);
        });
    }

    pub(super) fn give_up_waiting(&self, object: ObjectId, token: u64) {
        let mut sending = self.sending.borrow_mut();
        let waits = sending.served.get(&object).is_some_and(|served| served.here.is_none() && served.token == token);
        if let Some(served) = waits.then(|| sending.served.remove(&object)).flatten() {
            drop(sending);
            served.waiting.iter().for_each(|node| self.say_gone(node, object));
            tracing::debug!(%object, "another node waited in vain for an object");
            self.store(object, StoreEvent::CancelGet { client: sender(), token, id: object });
        }
    }

    /// The store has the object, or can't say.
    pub(super) fn got(self: &Rc<Self>, object: ObjectId, token: u64, place: Option<Placement>, owner: WorkerId) {
        if let Some(place) = place {
            let unknown = !self.sending.borrow().served.contains_key(&object);
            // It may have been given up while the answer was on its way.
            if !self.is_here(object, token, CopyAt::Memory(place), owner) && unknown {
                self.store(object, StoreEvent::Release { client: sender(), id: object });
            }
            return;
        }
        let waiting = {
            let mut sending = self.sending.borrow_mut();
            let served = sending.served.get(&object);
            let is_answer = served.is_some_and(|served| served.token == token && served.here.is_none());
            is_answer.then(|| sending.served.remove(&object)).flatten().map(|served| served.waiting)
        };
        waiting.into_iter().flatten().for_each(|node| self.say_gone(&node, object));
    }

    /// An object that was asked for can be sent. False: nobody waits for this answer any more.
    pub(super) fn is_here(self: &Rc<Self>, object: ObjectId, token: u64, at: CopyAt, owner: WorkerId) -> bool {
        {
            let mut sending = self.sending.borrow_mut();
            let served = sending.served.get_mut(&object);
            let Some(served) = served.filter(|served| served.token == token && served.here.is_none()) else {
                return false;
            };
            served.here = Some(Here::new(at, self.address_of(owner)));
        }
        // One that still waits keeps the object here.
        while let Some(node) = self.next_waiting(&object) {
            self.push_to(node, object, false);
            self.strike_waiting(&object, &node);
        }
        self.release_if_over(object);
        true
    }

    pub(super) fn next_waiting(&self, object: &ObjectId) -> Option<NodeId> {
        self.sending.borrow().served.get(object).and_then(|served| served.waiting.first().copied())
    }

    pub(super) fn strike_waiting(&self, object: &ObjectId, node: &NodeId) {
        if let Some(served) = self.sending.borrow_mut().served.get_mut(object) {
            served.waiting.retain(|waiting| waiting != node);
        }
    }

    pub(super) fn address_of(&self, owner: WorkerId) -> Address {
        let known = self.owners.borrow().get(&owner).cloned();
        known.unwrap_or_else(|| Address { worker_id: id(owner.as_bytes()), ..Address::default() })
    }

    /// Sends what is here the way that the node has, or has another one send it.
    pub(super) fn push_to(self: &Rc<Self>, node: NodeId, object: ObjectId, direct: bool) {
        let (here, relay) = match self.sending.borrow_mut().served.get_mut(&object) {
            // What is under way ends first.
            Some(served) if served.faulty => return served.wait(node),
            Some(served) => (served.here.clone(), served.relay),
            None => return,
        };
        let Some(here) = here.filter(|_| self.has_taker(&node)) else {
            return self.push_chunks(node, object);
        };
        if matches!(relay, Some(Relay::Recalled | Relay::Abandoned)) {
            return self.say_gone(&node, object);
        }
        if relay.is_none() {
            if self.send_whole(&node, object, &here) {
                return self.release_if_over(object);
            }
            if here.total_bytes() <= UNOFFERED_MAX_BYTES.min(self.chunk_bytes) {
                return self.push_chunks(node, object);
            }
        }
        let other = if self.lends_to(&node) { None } else { self.serves_instead(node, object, &here, direct) };
        if let Some(other) = other {
            self.say_elsewhere(&node, object, other);
            return self.release_if_over(object);
        }
        if self.offer(&node, object, &here) {
            let mut sending = self.sending.borrow_mut();
            let served = sending.served.get_mut(&object).filter(|served| !served.offers.contains(&node));
            served.into_iter().for_each(|served| served.offers.push(node));
        }
        self.release_if_over(object);
    }

    /// A node has memory for what it was offered.
    pub(super) fn accepted(self: &Rc<Self>, node: NodeId, object: ObjectId, push: u64) {
        let is_offered = {
            let mut sending = self.sending.borrow_mut();
            let served = sending.served.get_mut(&object);
            let served = served.filter(|served| served.here.as_ref().is_some_and(|here| here.push() == push));
            served.is_some_and(|served| {
                let offers = served.offers.len();
                served.offers.retain(|offer| *offer != node);
                served.offers.len() < offers || served.pushes.contains(&node)
            })
        };
        match is_offered {
            true => self.push_chunks(node, object),
            // Its offer was taken back meanwhile.
            false => self.say_gone(&node, object),
        }
    }

    /// A node wants no more of an object.
    pub(super) fn declined(self: &Rc<Self>, node: NodeId, object: ObjectId) {
        if let Some(served) = self.sending.borrow_mut().served.get_mut(&object) {
            served.offers.retain(|offer| *offer != node);
            served.waiting.retain(|waiting| *waiting != node);
        }
        self.served_no_more(&node, &object, false);
        self.send(SendEvent::Cancel { node, object });
        self.release_if_over(object);
    }

    fn push_chunks(self: &Rc<Self>, node: NodeId, object: ObjectId) {
        let chunks = {
            let mut sending = self.sending.borrow_mut();
            let Some(served) = sending.served.get_mut(&object) else {
                return;
            };
            if !served.pushes.contains(&node) {
                served.pushes.push(node);
            }
            let bytes = served.here.as_ref().map_or(0, Here::total_bytes);
            u32::try_from(bytes.div_ceil(self.chunk_bytes)).unwrap_or(u32::MAX)
        };
        self.send(SendEvent::Push { node, object, chunks });
    }

    /// A node is dead, and is sent nothing more.
    pub(super) fn push_no_more(self: &Rc<Self>, node: NodeId) {
        self.send(SendEvent::NodeGone { node });
        let mut over = Vec::new();
        for (object, served) in &mut self.sending.borrow_mut().served {
            served.waiting.retain(|waiting| *waiting != node);
            let offers = served.offers.len();
            served.offers.retain(|offer| *offer != node);
            if served.offers.len() < offers {
                over.push(*object);
            }
        }
        for object in over {
            self.served_no_more(&node, &object, true);
            self.release_if_over(object);
        }
    }

    pub(super) fn send(self: &Rc<Self>, event: SendEvent) {
        let mut effects = Vec::new();
        self.sending.borrow_mut().machine.handle(event, &mut effects);
        for effect in effects {
            match effect {
                SendEffect::Send { node, object, index } => {
                    let transfer = self.clone();
                    tokio::task::spawn_local(async move {
                        let ok = transfer.send_chunk(node, object, index).await;
                        transfer.send(SendEvent::Sent { node, object, ok });
                    });
                }
                SendEffect::Withdrawn { node, object } => self.say_gone(&node, object),
                SendEffect::Returned { object } => self.returned(object),
                SendEffect::Finished { node, object } => self.finished(node, object),
            }
        }
    }

    fn finished(self: &Rc<Self>, node: NodeId, object: ObjectId) {
        self.served_no_more(&node, &object, true);
        let mut sending = self.sending.borrow_mut();
        let faulty = sending.served.get_mut(&object).is_some_and(|served| {
            served.pushes.retain(|push| *push != node);
            served.faulty
        });
        drop(sending);
        match faulty {
            true => self.wait_again(object, node),
            false => self.release_if_over(object),
        }
    }

    pub(super) fn release_if_over(self: &Rc<Self>, object: ObjectId) {
        let mut sending = self.sending.borrow_mut();
        let Some(served) = sending.served.get(&object).filter(|served| served.is_over()) else {
            return;
        };
        if served.relay.is_some() {
            drop(sending);
            // Its reference goes when nothing is read of it: `returned`.
            return self.send(SendEvent::GiveUp { object });
        }
        let Some(Served { here, faulty, .. }) = sending.served.remove(&object) else {
            return;
        };
        drop(sending);
        let id = object;
        let ends = match here {
            Some(Here { at: CopyAt::File(_), .. }) => StoreEvent::SentSpilled { id, faulty },
            _ => StoreEvent::Release { client: sender(), id },
        };
        self.store(id, ends);
    }

    /// Sends one chunk. False: the node gets no more of the object now.
    async fn send_chunk(&self, node: NodeId, object: ObjectId, index: u32) -> bool {
        let (here, is_coming) = match self.sending.borrow().served.get(&object) {
            Some(served) if !served.faulty => (served.here.clone(), served.relay == Some(Relay::Lent)),
            _ => (None, false),
        };
        let Some(here) = here else {
            return false;
        };
        let read = match &here.at {
            CopyAt::Memory(_) => None,
            CopyAt::File(file) => {
                let (start, len) = here.chunk(index, self.chunk_bytes);
                match self.file_reads.read(file.clone(), start, len).await {
                    Ok(read) => Some(read),
                    Err(error) => {
                        self.file_failed(object, &error);
                        return false;
                    }
                }
            }
        };
        let sent = self.send_read_chunk(node, object, index, &here, read.as_ref()).await;
        let (_, len) = here.chunk(index, self.chunk_bytes);
        if sent && read.is_some() {
            self.used.file_sent_bytes.fetch_add(len, Ordering::Relaxed);
        }
        if sent && is_coming {
            self.used.relay_sent_bytes.fetch_add(len, Ordering::Relaxed);
        }
        sent
    }

    /// Sends one chunk, which lies in memory or was read.
    async fn send_read_chunk(
        &self,
        node: NodeId,
        object: ObjectId,
        index: u32,
        here: &Here,
        read: Option<&ReadChunk>,
    ) -> bool {
        if self.has_taker(&node) {
            return self.send_by_lane(node, object, index, here, read).await;
        }
        let Some(peer) = self.known_peer(&node).await else {
            tracing::debug!(%node, %object, "an unknown node asked for an object");
            return false;
        };
        let sent: Result<PushReply, Status> = match self.frame(object, index, here, read) {
            Ok(frame) => peer.call_frame("/ray.rpc.ObjectManagerService/Push", frame, Some(CHUNK_TIMEOUT)).await,
            Err(status) => Err(status),
        };
        if sent.is_ok() {
            let (_, len) = here.chunk(index, self.chunk_bytes);
            self.used.call_sent_bytes.fetch_add(len, Ordering::Relaxed);
        }
        if let Err(status) = &sent {
            tracing::debug!(%node, %object, index, error = status.message(), "a chunk was not taken");
        }
        sent.is_ok()
    }

    async fn known_peer(&self, node: &NodeId) -> Option<Channel> {
        let since = Instant::now();
        loop {
            let peer = self.peer(node);
            if peer.is_some() || since.elapsed() >= NODE_PATIENCE {
                return peer;
            }
            tokio::time::sleep(NODE_RETRY).await;
        }
    }

    /// A PushRequest as it travels, with the chunk read out of the store into its place: the only copy.
    fn frame(&self, object: ObjectId, index: u32, here: &Here, read: Option<&ReadChunk>) -> Result<Bytes, Status> {
        let Here { at, owner, push_id } = here;
        let (start, len) = here.chunk(index, self.chunk_bytes);
        let head = PushRequest {
            push_id: push_id.clone(),
            object_id: id(object.as_bytes()),
            node_id: id(self.node_id.as_bytes()),
            owner_address: Some(owner.clone()),
            chunk_index: index,
            data_size: here.total_bytes(),
            metadata_size: here.metadata_bytes(),
            data: Bytes::new(),
        };
        // A field's key, its length, its bytes.
        let message = head.encoded_len() + 1 + encoded_len_varint(len) + len as usize;
        let mut frame = BytesMut::with_capacity(message + 16);
        frame.put_slice(&frame_prefix(message)?);
        head.encode_raw(&mut frame);
        encode_key(DATA_FIELD, WireType::LengthDelimited, &mut frame);
        encode_varint(len, &mut frame);
        let data = frame.len();
        frame.resize(data + len as usize, 0);
        match (at, read) {
            (CopyAt::Memory(place), _) => {
                let segment = self.segment(place.segment).ok_or_else(|| Status::internal("no such segment"))?;
                let read = segment.read_at(place.data_offset + start, &mut frame[data..]);
                read.map_err(|error| Status::internal(error.to_string()))?;
            }
            (CopyAt::File(_), Some(read)) if read.buffer.read(read.offset, &mut frame[data..]) => {}
            (CopyAt::File(_), _) => return Err(Status::internal("a chunk is not in its buffer")),
        }
        Ok(frame.freeze())
    }
}

/// A push id as a number: they are random, so that its first bytes tell the pushes of a node apart.
pub(super) fn push_number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
