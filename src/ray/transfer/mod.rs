//! The thread that moves objects between nodes: Ray's `ObjectManagerService`, served and called.
//!
//! It has a runtime of its own, so that megabytes on their way keep nobody waiting: neither the cores nor the control thread.
//! Towards the object tables it is a client like others: what it receives it creates, writes and seals; what it sends it gets and
//! releases. What is fetched from where is decided on the control thread ([`crate::ray::control`]), which says [`ToTransfer::Ask`].
//!
//! Nodes like this one are asked by the bulk port (`bulk`), where bytes go from arena to arena on the cores' own rings; nodes of stock
//! Ray, and any node where that fails, in Ray's way. The state machines ([`raylet_shard::pull`]) are the same for both.

mod bulk;
pub mod greet;
mod receive;
mod relay;
mod same_host;
mod send;
mod service;
mod spilled;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use raylet_shard::ids::{ClientId, NodeId, ObjectId, WorkerId};
use raylet_shard::store::{StoreEffect, StoreEvent};
use raylet_transport::spill::SpilledObject;
use raylet_tuning::Segment;
use rustc_hash::FxHashMap;
use tokio::sync::watch;

use super::accept::serve;
use super::proto::Address;
use super::rpc::auth::Auth;
use super::rpc::chaos::Chaos;
use super::rpc::client::{ChannelPool, ClientConfig, ClientContext};
use super::rpc::tls::Tls;
use crate::bridge::{shard_of_object, CoreHandle, Requester, ToCore};
use crate::bulk::{LaneId, LaneNews};
use crate::observe::status::TransferStatus;
use crate::spill::SpillShared;

use bulk::Bulk;
use greet::{Greeting, PeerDoor};
use receive::Receiving;
use same_host::Lending;
use send::Sending;
use spilled::FileReads;

/// Messages handled before other tasks of the thread get their turn.
const BATCH: usize = 64;

/// Lanes to each node that objects are fetched from, where nobody says how many: one for each core, within these bounds.
const LANES_AUTO_MIN: usize = 2;
const LANES_AUTO_MAX: usize = 8;

/// How many lanes to open to a node: as set, or for so many cores where that is 0.
pub fn lanes_per_node(set: usize, cores: usize) -> usize {
    match set {
        0 => cores.clamp(LANES_AUTO_MIN, LANES_AUTO_MAX),
        lanes => lanes,
    }
}

/// The cores that carry lanes, of those that there are; all where none is named.
fn lane_cores(named: Vec<usize>, cores: usize) -> Vec<usize> {
    let known: Vec<usize> = named.into_iter().filter(|core| *core < cores).collect();
    if known.is_empty() {
        return (0..cores).collect();
    }
    known
}

/// What the thread is given at start.
pub struct TransferParts {
    /// This node.
    pub node_id: NodeId,
    /// The memory of all objects.
    pub segments: Vec<Arc<Segment>>,
    /// The objects in files beside it.
    pub files: Arc<SpillShared>,
    /// To the cores.
    pub cores: Vec<CoreHandle>,
    /// The object manager's port, bound.
    pub listeners: Vec<TcpListener>,
    /// The bulk port, bound; empty where it is off.
    pub bulk_listeners: Vec<TcpListener>,
    /// Where native nodes go that call the bulk port; `None` where this node has no peers.
    pub peers: Option<PeerDoor>,
    /// Lanes to each node that objects are fetched from.
    pub lanes_per_node: usize,
    /// Nodes of this host lend each other what they send.
    pub same_host: bool,
    /// Nodes that a large object is sent to at a time; others get it from these. 0: all get it from here.
    pub fanout: usize,
    /// The cores that carry lanes, in turn: those beside the network card. None: all.
    pub lane_cores: Vec<usize>,
    /// Who may call, and how calls authenticate.
    pub auth: Auth,
    /// How connections are encrypted, where they are.
    pub tls: Option<Tls>,
    /// Failures to inject into calls: Ray's `testing_rpc_failure`.
    pub rpc_failure: String,
    /// Bytes of a chunk: Ray's `object_manager_default_chunk_size`.
    pub chunk_bytes: u64,
    /// Bytes that may be on their way to others: Ray's `object_manager_max_bytes_in_flight`.
    pub in_flight_max_bytes: u64,
    /// How long a node that asked waits for an object that is not here: Ray's `object_manager_push_timeout_ms`.
    pub push_timeout: Duration,
}

/// To the thread.
#[derive(Debug)]
pub enum ToTransfer {
    /// An answer of an object table.
    Store(StoreEffect),
    /// An object that is on disk only, and what can be read of it there; the store waits for [`StoreEvent::SentSpilled`].
    Spilled {
        /// Of the request.
        token: u64,
        /// The object.
        id: ObjectId,
        /// Its owner.
        owner: WorkerId,
        /// Its place on disk; `None`: where only others can read it.
        object: Option<SpilledObject>,
    },
    /// News of a lane.
    Lane(LaneId, LaneNews),
    /// Ask a node for an object, and take what it sends.
    Ask {
        /// The object.
        object: ObjectId,
        /// Its owner.
        owner: WorkerId,
        /// Whom to ask.
        from: NodeId,
        /// It probably has the object, and is to say so at once where it has not.
        if_there: bool,
    },
    /// Take no more of an object.
    Stop {
        /// The object.
        object: ObjectId,
    },
    /// Give back the reference on an object that was received.
    Release {
        /// The object.
        object: ObjectId,
    },
    /// Where a node's object manager listens.
    Node {
        /// The node.
        node: NodeId,
        /// `host:port`.
        address: String,
        /// Its bulk port as `host:port`, where it has one.
        bulk_address: Option<String>,
    },
    /// A node is dead.
    NodeGone {
        /// The node.
        node: NodeId,
    },
    /// Where an owner of objects is reached.
    Owner(Address),
    /// An owner is dead.
    OwnerGone(WorkerId),
    /// The node ends.
    End,
}

/// From the thread to the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferNews {
    /// An object was received and sealed. The thread holds a reference on it.
    Received {
        /// The object.
        object: ObjectId,
    },
    /// Bytes came.
    Progress {
        /// The object.
        object: ObjectId,
        /// From whom.
        from: NodeId,
    },
    /// A node can't be asked, or has to be asked again.
    Failed {
        /// The object.
        object: ObjectId,
        /// Who was asked.
        from: NodeId,
    },
    /// A node that was asked names another one, which will send the object while it still receives it.
    Elsewhere {
        /// The object.
        object: ObjectId,
        /// Who was asked.
        from: NodeId,
        /// Whom to ask.
        to: NodeId,
    },
    /// The store has no room for the object.
    NoRoom {
        /// The object.
        object: ObjectId,
    },
}

/// How much was moved, and by which way. Written by the thread, read by reports.
#[derive(Debug, Default)]
pub struct TransferUse {
    /// Creates of the thread that wait for room in the store.
    creating: AtomicUsize,
    /// Lanes that are open, of either side.
    lanes: AtomicUsize,
    lane_received_bytes: AtomicU64,
    lane_sent_bytes: AtomicU64,
    call_received_bytes: AtomicU64,
    call_sent_bytes: AtomicU64,
    /// Of what was sent either way: read from files, of objects that were on disk only.
    file_sent_bytes: AtomicU64,
    /// Of what was sent either way: of objects that were still being received.
    relay_sent_bytes: AtomicU64,
    /// Of what was moved by lanes: copied from the memory of a node of this host.
    same_host_received_bytes: AtomicU64,
    same_host_sent_bytes: AtomicU64,
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub struct TransferLink {
    queue: flume::Sender<ToTransfer>,
    used: Arc<TransferUse>,
}

impl TransferLink {
    /// Sends, in order.
    pub fn send(&self, message: ToTransfer) {
        // The thread ends with the node.
        let _ = self.queue.send(message);
    }

    /// Creates of the thread that wait for room in the store.
    pub fn creating(&self) -> u64 {
        self.used.creating.load(Ordering::Relaxed) as u64
    }

    /// What was moved since the start. What is wanted is told by others.
    pub fn status(&self) -> TransferStatus {
        let of = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        TransferStatus {
            lanes: self.used.lanes.load(Ordering::Relaxed) as u64,
            lane_received_bytes: of(&self.used.lane_received_bytes),
            lane_sent_bytes: of(&self.used.lane_sent_bytes),
            call_received_bytes: of(&self.used.call_received_bytes),
            call_sent_bytes: of(&self.used.call_sent_bytes),
            file_sent_bytes: of(&self.used.file_sent_bytes),
            relay_sent_bytes: of(&self.used.relay_sent_bytes),
            same_host_received_bytes: of(&self.used.same_host_received_bytes),
            same_host_sent_bytes: of(&self.used.same_host_sent_bytes),
            ..TransferStatus::default()
        }
    }
}

/// Starts the thread. Object tables are told of it, so that their answers reach it.
///
/// # Errors
/// The system has no thread left.
pub fn start(parts: TransferParts) -> io::Result<(TransferLink, flume::Receiver<TransferNews>)> {
    let (queue, messages) = flume::unbounded();
    let (news, heard) = flume::unbounded();
    let used = Arc::new(TransferUse::default());
    parts.cores.iter().for_each(|core| core.send(ToCore::OpenTransfer(queue.clone())));
    let link = TransferLink { queue, used: used.clone() };
    std::thread::Builder::new().name("transfer".to_owned()).spawn(move || run(parts, messages, news, used))?;
    Ok((link, heard))
}

fn run(
    parts: TransferParts,
    messages: flume::Receiver<ToTransfer>,
    news: flume::Sender<TransferNews>,
    used: Arc<TransferUse>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "no object can be moved between nodes"),
    };
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        match Transfer::new(parts, news, used) {
            Ok((transfer, listeners)) => transfer.run(messages, listeners).await,
            Err(error) => tracing::error!(error, "no object can be moved between nodes"),
        }
    });
}

/// The thread's state.
pub(super) struct Transfer {
    node_id: NodeId,
    segments: Vec<Arc<Segment>>,
    files: Arc<SpillShared>,
    cores: Vec<CoreHandle>,
    auth: Auth,
    tls: Option<Tls>,
    chunk_bytes: u64,
    push_timeout: Duration,
    peers: ChannelPool,
    news: flume::Sender<TransferNews>,
    used: Arc<TransferUse>,
    nodes: RefCell<FxHashMap<NodeId, String>>,
    owners: RefCell<FxHashMap<WorkerId, Address>>,
    receiving: RefCell<Receiving>,
    sending: RefCell<Sending>,
    file_reads: Rc<FileReads>,
    greeting: Rc<Greeting>,
    peer_door: Option<PeerDoor>,
    /// Nodes of this host are called by their Unix socket.
    lends: bool,
    lanes_per_node: usize,
    lane_cores: Vec<usize>,
    bulk: RefCell<Bulk>,
}

impl Transfer {
    fn new(
        parts: TransferParts,
        news: flume::Sender<TransferNews>,
        used: Arc<TransferUse>,
    ) -> Result<(Rc<Self>, Vec<TcpListener>), String> {
        let chaos = Chaos::from_setting(&parts.rpc_failure).map_err(|e| e.to_string())?;
        let client = ClientConfig { auth: parts.auth.clone(), tls: parts.tls.clone(), ..ClientConfig::default() };
        let chunks_max = (parts.in_flight_max_bytes / parts.chunk_bytes.max(1)).max(1) as usize;
        let key = parts.auth.token().map(|token| token.secret().to_vec()).unwrap_or_default();
        let is_open = !parts.bulk_listeners.is_empty();
        let lends = is_open && parts.same_host;
        let lending = lends.then(|| Lending::open(parts.node_id, parts.segments.iter().map(Arc::as_ref)));
        let lending = lending.and_then(|lending| {
            let why = "nodes of this host are served by TCP, not from memory";
            lending.inspect_err(|error| tracing::warn!(%error, "{why}")).ok()
        });
        let transfer = Rc::new(Self {
            greeting: Rc::new(Greeting::new(parts.node_id, parts.chunk_bytes.max(1), key, is_open)),
            peer_door: parts.peers,
            lends,
            lanes_per_node: parts.lanes_per_node.max(1),
            lane_cores: lane_cores(parts.lane_cores, parts.cores.len()),
            bulk: RefCell::default(),
            node_id: parts.node_id,
            segments: parts.segments,
            files: parts.files,
            cores: parts.cores,
            auth: parts.auth,
            tls: parts.tls,
            chunk_bytes: parts.chunk_bytes.max(1),
            push_timeout: parts.push_timeout,
            peers: ChannelPool::new(ClientContext::new(client, chaos)),
            news,
            used,
            nodes: RefCell::default(),
            owners: RefCell::default(),
            receiving: RefCell::new(Receiving::new(parts.chunk_bytes.max(1))),
            sending: RefCell::new(Sending::new(chunks_max, parts.fanout)),
            file_reads: Rc::new(FileReads::new(parts.chunk_bytes.max(1))),
        });
        transfer.serve_bulk(parts.bulk_listeners, lending);
        Ok((transfer, parts.listeners))
    }

    async fn run(self: Rc<Self>, messages: flume::Receiver<ToTransfer>, listeners: Vec<TcpListener>) {
        let (_stop, stopped) = watch::channel(false);
        for listener in listeners {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    serve(service::routes(&self), &self.auth, self.tls.clone(), listener, stopped.clone());
                }
                Err(error) => tracing::error!(%error, "the object manager's port is not served"),
            }
        }
        while let Ok(message) = messages.recv_async().await {
            for message in std::iter::once(message).chain(messages.try_iter().take(BATCH)) {
                if !self.take(message) {
                    return;
                }
            }
            self.send_asks();
        }
    }

    /// Takes a message. False: the node ends.
    fn take(self: &Rc<Self>, message: ToTransfer) -> bool {
        match message {
            ToTransfer::Store(effect) => self.answered(effect),
            ToTransfer::Spilled { token, id, owner, object } => self.got_spilled(id, token, owner, object),
            ToTransfer::Lane(lane, news) => self.lane_news(lane, news),
            ToTransfer::Ask { object, owner, from, if_there } => self.ask(object, owner, from, if_there),
            ToTransfer::Stop { object } => self.stop(object),
            ToTransfer::Release { object } => {
                self.store(object, StoreEvent::Release { client: receiver(), id: object })
            }
            ToTransfer::Node { node, address, bulk_address } => {
                self.bulk_port(node, bulk_address);
                self.nodes.borrow_mut().insert(node, address);
            }
            ToTransfer::NodeGone { node } => {
                if let Some(address) = self.nodes.borrow_mut().remove(&node) {
                    self.peers.forget(&address);
                }
                self.bulk_gone(&node);
                self.push_no_more(node);
                self.named_no_more(&node);
            }
            ToTransfer::Owner(owner) => {
                if let Some(worker) = WorkerId::from_slice(&owner.worker_id) {
                    self.owners.borrow_mut().insert(worker, owner);
                }
            }
            ToTransfer::OwnerGone(worker) => {
                self.owners.borrow_mut().remove(&worker);
            }
            ToTransfer::End => return false,
        }
        true
    }

    fn answered(self: &Rc<Self>, effect: StoreEffect) {
        match effect {
            StoreEffect::Created { token, id, result, .. } => self.created(id, token, result),
            StoreEffect::Sealed { id, result, .. } => self.sealed(id, result),
            StoreEffect::Got { token, id, place, owner, .. } => self.got(id, token, place, owner),
            _ => {}
        }
    }

    fn store(&self, id: ObjectId, event: StoreEvent) {
        let shard = shard_of_object(&id, self.cores.len() as u16);
        self.cores[usize::from(shard)].send(ToCore::Store(event));
    }

    fn tell(&self, news: TransferNews) {
        // The control thread outlives this one; at the end nobody needs to hear.
        let _ = self.news.send(news);
    }

    /// What an object lies in.
    fn segment(&self, index: u32) -> Option<Arc<Segment>> {
        self.segments.get(index as usize).cloned().or_else(|| self.files.file(index))
    }
}

/// The store's client that receives.
fn receiver() -> ClientId {
    Requester::Transfer.tag(1)
}

/// The store's client that sends. One of its own, because a client has at most one reference on an object.
fn sender() -> ClientId {
    Requester::Transfer.tag(2)
}
