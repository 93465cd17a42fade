//! Receiving: nodes are asked for objects, and their chunks are written into the store.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use raylet_shard::ids::{NodeId, ObjectId, WorkerId};
use raylet_shard::pull::{ChunkHead, Lent, ReceiveEffect, ReceiveEvent, Receiver, Refusal, SendEvent};
use raylet_shard::store::{ObjectSource, Placement, StoreError, StoreEvent};
use raylet_transport::bulk::frame::Kind;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tonic::Status;

use super::{receiver, Transfer, TransferNews};
use crate::core_loop::SILENT;
use crate::ray::proto::{PullReply, PullRequest};
use crate::ray::rpc::client::Channel;
use crate::ray::rpc::gcs::id;

/// Bytes of chunks that wait for memory of the store. A chunk beyond it is refused, and its object asked for again.
pub const WAITING_MAX_BYTES: u64 = 256 << 20;

/// How long a chunk that came unasked may hold its lane up, while the store makes room for its object.
const HOLD: Duration = Duration::from_millis(20);

/// Longest wait for a node to note what is wanted of it.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Objects in one request to a node.
const ASKS_PER_CALL: usize = 1_000;

/// What is being received.
pub(super) struct Receiving {
    machine: Receiver,
    chunks: FxHashMap<u64, Chunk>,
    tickets: u64,
    /// Where objects lie that are being written.
    places: FxHashMap<ObjectId, Placement>,
    /// Nodes that are to be asked, with what.
    asks: FxHashMap<NodeId, Vec<ObjectId>>,
}

struct Chunk {
    data: Bytes,
    reply: oneshot::Sender<Result<(), Refusal>>,
}

impl Receiving {
    pub(super) fn new(chunk_bytes: u64) -> Self {
        Self {
            machine: Receiver::new(chunk_bytes, WAITING_MAX_BYTES),
            chunks: FxHashMap::default(),
            tickets: 0,
            places: FxHashMap::default(),
            asks: FxHashMap::default(),
        }
    }

    /// Whose an object is that is expected.
    pub(super) fn owner_of(&self, object: &ObjectId) -> WorkerId {
        self.machine.owner_of(object).unwrap_or(WorkerId::NIL)
    }

    /// True where an object was asked for and has not come.
    pub(super) fn expects(&self, object: &ObjectId) -> bool {
        self.machine.is_expected(object)
    }

    /// An object that is being received and is `worth` it, with what is there of it, and where; see [`Receiver::lend`].
    pub(super) fn lend_if(&mut self, object: &ObjectId, worth: impl Fn(u64) -> bool) -> Option<(Lent<'_>, Placement)> {
        let place = self.places.get(object).copied().filter(|place| worth(place.data_bytes + place.metadata_bytes))?;
        Some((self.machine.lend(object)?, place))
    }
}

impl Transfer {
    pub(super) fn ask(self: &Rc<Self>, object: ObjectId, owner: WorkerId, from: NodeId, if_there: bool) {
        self.receive(ReceiveEvent::Expect { object, owner, from });
        let want = if if_there { Kind::WantIfThere } else { Kind::Want };
        if !self.ask_by_lane(from, object, want) {
            self.ask_otherwise(from, object, want);
        }
    }

    /// Asks a node that has no bulk port: in Ray's way, which knows no other question than to send the object when it is there.
    pub(super) fn ask_otherwise(&self, from: NodeId, object: ObjectId, want: Kind) {
        match want {
            Kind::WantIfThere => self.tell(TransferNews::Failed { object, from }),
            _ => self.ask_by_call(from, object),
        }
    }

    /// Asks a node in Ray's way.
    pub(super) fn ask_by_call(&self, from: NodeId, object: ObjectId) {
        self.receiving.borrow_mut().asks.entry(from).or_default().push(object);
    }

    pub(super) fn stop(self: &Rc<Self>, object: ObjectId) {
        self.asked_no_more(&object);
        let was_expected = self.receiving.borrow().expects(&object);
        self.receive(ReceiveEvent::Forget { object });
        if was_expected {
            self.comes_no_more(object);
        }
    }

    /// Sends what [`Self::ask`] has collected, in few calls.
    pub(super) fn send_asks(self: &Rc<Self>) {
        let asks = std::mem::take(&mut self.receiving.borrow_mut().asks);
        for (node, objects) in asks {
            for objects in objects.chunks(ASKS_PER_CALL) {
                tokio::task::spawn_local(self.clone().ask_node(node, objects.to_vec()));
            }
        }
    }

    async fn ask_node(self: Rc<Self>, node: NodeId, objects: Vec<ObjectId>) {
        let request = PullRequest {
            node_id: id(self.node_id.as_bytes()),
            object_ids: objects.iter().map(|object| id(object.as_bytes())).collect(),
        };
        let asked: Result<PullReply, Status> = match self.peer(&node) {
            Some(peer) => peer.call("/ray.rpc.ObjectManagerService/Pull", &request, Some(ASK_TIMEOUT)).await,
            None => Err(Status::unavailable("the node is not known")),
        };
        if let Err(status) = asked {
            tracing::debug!(%node, error = status.message(), objects = objects.len(), "a node can't be asked for objects");
            objects.into_iter().for_each(|object| self.tell(TransferNews::Failed { object, from: node }));
        }
    }

    /// The way to a node's object manager, if it is known.
    pub(super) fn peer(&self, node: &NodeId) -> Option<Channel> {
        let address = self.nodes.borrow().get(node).cloned()?;
        self.peers.get(&address).ok()
    }

    /// A ticket for a chunk.
    pub(super) fn ticket(&self) -> u64 {
        let mut receiving = self.receiving.borrow_mut();
        receiving.tickets += 1;
        receiving.tickets
    }

    /// Takes a chunk; answers once it is written, or dropped.
    pub(super) async fn chunk(self: &Rc<Self>, head: ChunkHead, data: Bytes) -> Result<(), Status> {
        let (reply, answer) = oneshot::channel();
        let ticket = self.ticket();
        self.receiving.borrow_mut().chunks.insert(ticket, Chunk { data, reply });
        self.receive(ReceiveEvent::Chunk { ticket, head });
        match answer.await {
            // What is here already was taken before.
            Ok(Ok(()) | Err(Refusal::Repeated)) => Ok(()),
            Ok(Err(Refusal::Malformed)) => Err(Status::invalid_argument(format!(
                "expected chunks of {} bytes of one size of object, got chunk {} of {} bytes of an object of {}",
                self.chunk_bytes, head.index, head.len_bytes, head.total_bytes
            ))),
            Ok(Err(Refusal::NoRoom)) => Err(Status::resource_exhausted("the object store has no room for the object")),
            Ok(Err(Refusal::NotWanted | Refusal::OtherSender | Refusal::LatePush)) | Err(_) => {
                Err(Status::cancelled("the object is not wanted, or not from this node, or not in this push"))
            }
        }
    }

    pub(super) fn created(self: &Rc<Self>, object: ObjectId, token: u64, result: Result<Placement, StoreError>) {
        if let Ok(place) = result {
            self.receiving.borrow_mut().places.insert(object, place);
        }
        self.receive(ReceiveEvent::Created { object, token, result: result.map(|_| ()) });
        self.lend_to_waiting(object);
    }

    pub(super) fn sealed(&self, object: ObjectId, result: Result<(), StoreError>) {
        match result {
            Ok(()) => self.tell(TransferNews::Received { object }),
            Err(error) => {
                tracing::warn!(%object, %error, "an object was received that can't be sealed");
                self.tell(TransferNews::NoRoom { object });
            }
        }
    }

    pub(super) fn receive(self: &Rc<Self>, event: ReceiveEvent) {
        let mut effects = Vec::new();
        self.receiving.borrow_mut().machine.handle(event, &mut effects);
        let mut unwritten = None;
        for effect in effects {
            match effect {
                ReceiveEffect::Write { ticket, object, offset_bytes } => {
                    if !self.write(ticket, object, offset_bytes) {
                        unwritten = Some(object);
                    }
                }
                // The last chunk could not be written.
                ReceiveEffect::Seal { object } if unwritten == Some(object) => self.abandon(object),
                ReceiveEffect::Arrived { object, .. } if unwritten == Some(object) => {}
                effect => self.carry_out(effect),
            }
        }
        if let Some(object) = unwritten {
            self.receive(ReceiveEvent::Forget { object });
            self.tell(TransferNews::NoRoom { object });
        }
    }

    fn carry_out(self: &Rc<Self>, effect: ReceiveEffect) {
        let client = receiver();
        match effect {
            ReceiveEffect::Create { object: id, token, owner, data_bytes, metadata_bytes } => {
                let source = ObjectSource::ReceivedFromRemote;
                let (mutable, try_immediately) = (false, false);
                self.store(
                    id,
                    StoreEvent::Create {
                        client,
                        token,
                        id,
                        data_bytes,
                        metadata_bytes,
                        owner,
                        source,
                        mutable,
                        try_immediately,
                        near: None,
                    },
                );
                self.count_creates();
            }
            ReceiveEffect::CancelCreate { object: id } => {
                self.store(id, StoreEvent::CancelCreate { client, id });
                self.count_creates();
            }
            ReceiveEffect::Accept { object, from, push } => self.accept(from, object, push),
            ReceiveEffect::Decline { object, from } => self.decline(from, object),
            ReceiveEffect::Land { ticket, object, offset_bytes } => self.land(ticket, object, offset_bytes),
            ReceiveEffect::Seal { object: id } => {
                self.asked_no_more(&id);
                self.receiving.borrow_mut().places.remove(&id);
                self.store(id, StoreEvent::Seal { client, token: 0, id });
                self.keep_lent(id);
            }
            ReceiveEffect::Abort { object } => self.abort(object),
            ReceiveEffect::Drop { ticket, why } => self.reply(ticket, Err(why)),
            ReceiveEffect::Hold { ticket, object } => {
                let transfer = self.clone();
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(HOLD).await;
                    transfer.receive(ReceiveEvent::TooLong { ticket, object });
                });
            }
            ReceiveEffect::AskAgain { object, from } => {
                if !self.ask_by_lane(from, object, Kind::Want) {
                    self.tell(TransferNews::Failed { object, from });
                }
            }
            ReceiveEffect::Progress { object, from } => {
                self.count_creates();
                self.tell(TransferNews::Progress { object, from });
            }
            ReceiveEffect::Lost { object, from } => self.tell(TransferNews::Failed { object, from }),
            ReceiveEffect::NoRoom { object } => {
                self.count_creates();
                self.tell(TransferNews::NoRoom { object });
            }
            ReceiveEffect::Arrived { object, index } => self.send(SendEvent::Arrived { object, index }),
            ReceiveEffect::Recall { object } => self.recall(object),
            // `receive` writes.
            ReceiveEffect::Write { .. } => {}
        }
    }

    fn count_creates(&self) {
        self.used.creating.store(self.receiving.borrow().machine.creating(), Ordering::Relaxed);
    }

    pub(super) fn abort(&self, id: ObjectId) {
        self.receiving.borrow_mut().places.remove(&id);
        self.store(id, StoreEvent::Abort { client: receiver(), token: SILENT, id });
    }

    /// Where a chunk of an object goes; `None`: there is no memory for it.
    fn land(self: &Rc<Self>, ticket: u64, object: ObjectId, offset_bytes: u64) {
        let place = self.receiving.borrow().places.get(&object).copied();
        let place = place.and_then(|place| {
            let (segment, offset) = (self.segment(place.segment)?, place.data_offset + offset_bytes);
            let end = (offset + self.chunk_bytes).min(place.data_offset + place.data_bytes + place.metadata_bytes);
            let backed = segment.ensure_backed(offset..end);
            backed
                .inspect_err(|error| tracing::warn!(%object, %error, "no memory for an object from another node"))
                .ok()?;
            Some((segment, offset))
        });
        let has_place = place.is_some();
        self.place(ticket, place);
        if !has_place {
            self.receive(ReceiveEvent::Landed { ticket, object, ok: false });
            self.receive(ReceiveEvent::Forget { object });
            self.tell(TransferNews::NoRoom { object });
        }
    }

    fn reply(&self, ticket: u64, result: Result<(), Refusal>) {
        if result.is_err() && self.place(ticket, None) {
            return;
        }
        let chunk = self.receiving.borrow_mut().chunks.remove(&ticket);
        if let Some(chunk) = chunk {
            // A caller that hung up needs no answer.
            let _ = chunk.reply.send(result);
        }
    }

    /// Copies a chunk to where it belongs. False: there is no memory for it.
    fn write(&self, ticket: u64, object: ObjectId, offset_bytes: u64) -> bool {
        let (place, chunk) = {
            let mut receiving = self.receiving.borrow_mut();
            (receiving.places.get(&object).copied(), receiving.chunks.remove(&ticket))
        };
        let Some(chunk) = chunk else {
            return false;
        };
        let written = place.and_then(|place| {
            let segment = self.segment(place.segment)?;
            let written = segment.write_at(place.data_offset + offset_bytes, &chunk.data);
            written
                .inspect_err(|error| tracing::warn!(%object, %error, "no memory for an object from another node"))
                .ok()
        });
        // As in `reply`.
        let _ = chunk.reply.send(written.ok_or(Refusal::NoRoom));
        written.is_some()
    }
}
