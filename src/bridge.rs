//! What crosses between the control thread and the cores, and who is meant by a token.
//!
//! A core never waits for the control thread or for another core, and the control thread never waits for a core: all of these
//! are queues with one reader each. What bounds them is the number of requests let in (see [`MAX_RPCS_IN_FLIGHT`]) and the number
//! of connections, because every entry answers one of those.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raylet_shard::ids::{ClientId, LeaseId, NowNs, ObjectId, ShardId, Token, WorkerId};
use raylet_shard::sched::{
    ClassId, Fixed, ResourceId, ResourceSet, ResourceUse, SchedEffect, SchedEvent, WorkerCounts,
};
use raylet_shard::store::{BankEvent, ObjectInfo, StoreEffect, StoreEvent, StoreStats, Tally};
use raylet_shard::waits::WaitId;
use raylet_transport::uring::Doorbell;
use smallvec::SmallVec;

use tonic::Status;

use crate::bulk::{LaneId, LaneTell};
use crate::core_io::RingUse;
use crate::native::control::{NativeAsk, NativeTell};
use crate::native::NativePeer;
use crate::near::Near;
use crate::observe::histogram::Snapshot;
use crate::peers::PeerAsk;
use crate::ray::core_rpc::desk::{Card, Lesson, StayRule};
use crate::ray::core_rpc::RpcSettings;
use crate::ray::messages::ClientMessage;
use crate::ray::metrics::stock::SizeCounts;
use crate::ray::proto;
use crate::ray::sightings::Sighting;
use crate::ray::transfer::{ToTransfer, TransferUse};
use crate::ray::wire::frame::{PLASMA_MAX_BODY_BYTES, RAYLET_MAX_BODY_BYTES};
use crate::spill::external::{SpillAsk, SpillTold};
use crate::spill::SpillReport;

/// Most gRPC requests that wait for a core at once; one more is answered RESOURCE_EXHAUSTED.
pub const MAX_RPCS_IN_FLIGHT: usize = 1 << 17;

/// A party that asks shards for something: a shard, or the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requester {
    /// A shard, for one of its connections or leases.
    Shard(ShardId),
    /// The control thread.
    Control,
    /// The thread that moves objects between nodes.
    Transfer,
}

const REQUESTER_SHIFT: u32 = 48;
const CONTROL: u64 = 0xffff;
const TRANSFER: u64 = 0xfffe;

impl Socket {
    /// Longest body of a frame.
    pub fn limit_bytes(self) -> u64 {
        match self {
            Self::Raylet => RAYLET_MAX_BODY_BYTES,
            Self::Plasma => PLASMA_MAX_BODY_BYTES,
            // HTTP/2 and the native door have frames and limits of their own.
            Self::Rpc | Self::Native => 0,
        }
    }
}

impl Requester {
    /// A token, or a client's number, that leads answers back here. `local` is the requester's own 48-bit number.
    pub fn tag(self, local: u64) -> Token {
        debug_assert!(local < 1 << REQUESTER_SHIFT, "a local number of more than 48 bits");
        let requester = match self {
            Self::Shard(shard) => u64::from(shard),
            Self::Control => CONTROL,
            Self::Transfer => TRANSFER,
        };
        (requester << REQUESTER_SHIFT) | local
    }

    /// Who made the token.
    pub fn of(token: Token) -> Self {
        match token >> REQUESTER_SHIFT {
            CONTROL => Self::Control,
            TRANSFER => Self::Transfer,
            shard => Self::Shard(shard as ShardId),
        }
    }

    /// The requester's own number in the token.
    pub fn local(token: Token) -> u64 {
        token & ((1 << REQUESTER_SHIFT) - 1)
    }
}

/// The shard on which an object's table entry and memory live. All objects of one task share a shard, so that a task's
/// returns and puts cost one hop at most; the driver's puts all belong to one task.
pub fn shard_of_object(id: &ObjectId, shards: ShardId) -> ShardId {
    if shards == 1 {
        return 0;
    }
    let task = id.task();
    let mut hash = 0u64;
    for chunk in task.as_bytes().chunks_exact(8) {
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    ((hash >> 32) % u64::from(shards)) as ShardId
}

/// Where a connection of Ray came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Workers and drivers.
    Raylet,
    /// The object store.
    Plasma,
    /// The node manager's port.
    Rpc,
    /// The native door.
    Native,
}

/// From one core to another.
#[derive(Debug)]
pub enum PeerMessage {
    /// For the peer's object table.
    Store(StoreEvent),
    /// An answer of the sender's object table to something that the peer asked.
    StoreAnswer(StoreEffect),
    /// For the bank of spans, which lives on shard 0.
    Bank(BankEvent),
    /// For the peer's lease queues.
    Sched(SchedEvent),
    /// What the sender's lease queues decided of a request that came through the peer's desk.
    SchedAnswer {
        /// The sender.
        from: ShardId,
        /// The decision.
        effect: SchedEffect,
    },
    /// The sender wants to hear when the peer has answered all that it was asked before.
    Look {
        /// The sender.
        from: ShardId,
        /// Its wait for objects.
        wait: WaitId,
    },
    /// The answer.
    Looked {
        /// The asker's wait.
        wait: WaitId,
    },
    /// About a native client.
    Native(NativePeer),
}

/// The way to a core, for the control thread and for the other cores.
#[derive(Clone, Debug)]
pub struct CoreHandle {
    queue: flume::Sender<ToCore>,
    doorbell: Arc<Doorbell>,
}

impl CoreHandle {
    /// The way to the core that reads the other end of `queue` and that `doorbell` wakes.
    pub fn new(queue: flume::Sender<ToCore>, doorbell: Arc<Doorbell>) -> Self {
        Self { queue, doorbell }
    }

    /// Sends, in order with everything sent from this thread before. A core that ended hears nothing: it was stopped, or its
    /// death is on its way as [`ToControl::Failed`].
    pub fn send(&self, message: ToCore) {
        if self.queue.send(message).is_ok() {
            self.doorbell.ring();
        }
    }
}

/// To a core.
#[derive(Debug)]
pub enum ToCore {
    /// From another core.
    Peer(PeerMessage),
    /// A connection that the core is to serve.
    Accepted {
        /// Where it came through.
        socket: Socket,
        /// The connection.
        stream: OwnedFd,
        /// Where its client is.
        near: Near,
    },
    /// For the core's object table.
    Store(StoreEvent),
    /// For the core's lease queues.
    Sched(SchedEvent),
    /// Write an object that only the node can make: the error that stands for a lost object.
    PutError {
        /// The object that gets an error for its value.
        id: ObjectId,
        /// Ray's ErrorType in decimal digits, which is how a reader recognises an error.
        metadata: Vec<u8>,
    },
    /// One of Ray's IO workers has answered.
    Spilled(SpillTold),
    /// Free every object of an owner that died.
    FreeOwnedBy {
        /// The owner.
        owner: WorkerId,
    },
    /// For a lane of the bulk port.
    Lane(LaneId, LaneTell),
    /// The thread that moves objects is there: what the object table answers it goes here. What it moves is counted there.
    OpenTransfer(flume::Sender<ToTransfer>, Arc<TransferUse>),
    /// Open the node manager's port.
    OpenRpc(Arc<RpcSettings>),
    /// The reply to a call that this core passed on.
    Answered {
        /// The core's number of the call.
        call: u64,
        /// A frame, or an error.
        reply: Result<Bytes, Status>,
    },
    /// A scheduling class, for the core's desk.
    Learn(Box<Lesson>),
    /// A worker that can be leased, for the core's desk.
    WorkerReady {
        /// The worker.
        worker: WorkerId,
        /// What an owner is told of it.
        card: Box<Card>,
    },
    /// A lease was cancelled that nobody has asked for yet.
    CancelledAhead {
        /// The lease.
        lease: LeaseId,
        /// How long it is refused.
        ttl: Duration,
    },
    /// What the core's desk may keep to itself in a cluster; `None` where this node is alone, and it may all.
    Cluster(Option<StayRule>),
    /// Tell of some resources what there is and what is free; answered by [`ToControl::Weighed`].
    Weigh {
        /// For the answer.
        token: Token,
        /// A lease that may wait here.
        lease: Option<LeaseId>,
        /// Which.
        ids: SmallVec<[ResourceId; 8]>,
    },
    /// For the native door.
    Native(NativeTell),
    /// Tell everything that was to be told later, and then [`ToControl::CaughtUp`].
    Flush {
        /// For the answer.
        token: Token,
    },
    /// Send a frame to a connection of this core's raylet socket.
    Send {
        /// The connection.
        conn: ClientId,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// Close a connection once everything sent to it is out.
    Close {
        /// The connection.
        conn: ClientId,
    },
    /// Tell what there is.
    Report {
        /// Whether the objects are wanted one by one.
        objects: bool,
        /// Where the report goes.
        reply: flume::Sender<CoreReport>,
    },
    /// Close the sockets and end the thread.
    Stop,
}

/// From a core to the control thread.
#[derive(Debug)]
pub enum ToControl {
    /// What the lease queues decided.
    Sched(SchedEffect),
    /// A call of the node manager's port that the core does not answer itself.
    Call {
        /// The core.
        from: ShardId,
        /// The core's number of the call.
        call: u64,
        /// The method.
        path: &'static str,
        /// The request.
        message: Bytes,
    },
    /// A call was answered on a core.
    Served {
        /// The method.
        path: &'static str,
        /// Whether with a reply.
        ok: bool,
        /// From the call to its answer.
        took: Duration,
    },
    /// A core's desk let a request for a lease through.
    Asked {
        /// The lease.
        lease: LeaseId,
        /// The shard that queues it.
        shard: ShardId,
        /// Its class.
        class: ClassId,
        /// Another node sent it here.
        grant_or_reject: bool,
        /// What was asked for.
        spec: Box<proto::LeaseSpec>,
    },
    /// A request that came through a core's desk was granted.
    Granted {
        /// The lease.
        lease: LeaseId,
        /// Its worker.
        worker: WorkerId,
    },
    /// A lease was given back at a core's desk.
    Returned {
        /// The lease.
        lease: LeaseId,
    },
    /// Answer to [`ToCore::Weigh`].
    Weighed {
        /// Of the question.
        token: Token,
        /// Of each resource, in the order of the question: the node's total, and what is free on the core.
        room: SmallVec<[(Fixed, Fixed); 8]>,
        /// The lease waits here, and holds nothing.
        waits: bool,
    },
    /// Several messages, in order.
    Batch(Vec<ToControl>),
    /// Everything that a core had to tell when it was asked to has been told.
    CaughtUp {
        /// The control thread's token.
        token: Token,
    },
    /// What a native client wants that its core can't do alone.
    Native(NativeAsk),
    /// Whether an object is here, as the control thread asked.
    Contained {
        /// The control thread's token.
        token: Token,
        /// Here and sealed.
        has: bool,
    },
    /// What a core wants of this node's peers.
    Peers(PeerAsk),
    /// An object is here that the control thread waited for, and it has a reference on it.
    Found {
        /// The control thread's token.
        token: Token,
        /// The object.
        object: ObjectId,
        /// Size of its data and metadata; `None`: it is not here, and can't be waited for.
        size_bytes: Option<u64>,
    },
    /// Objects that came and went on a core.
    Seen(Vec<Sighting>),
    /// Something for one of Ray's IO workers.
    Spill(SpillAsk),
    /// An object's copy on disk can't be read back.
    CopyLost {
        /// The object.
        object: ObjectId,
        /// Its owner, who knows of other copies.
        owner: WorkerId,
    },
    /// The store is full and creates wait: workers should drop references.
    StoreFull,
    /// A message on the raylet socket that is not answered on the core.
    Message {
        /// The connection.
        conn: ClientId,
        /// What it said.
        message: ClientMessage,
    },
    /// A connection of the raylet socket ended.
    Gone {
        /// The connection.
        conn: ClientId,
        /// Why, in words; `None` when the peer just closed it.
        error: Option<String>,
    },
    /// A core failed to start or died.
    Failed {
        /// The shard.
        shard: ShardId,
        /// Why, in words.
        error: String,
    },
}

/// What a core tells of itself.
#[derive(Debug)]
pub struct CoreReport {
    /// The core's shard.
    pub shard: ShardId,
    /// When it was made, in nanoseconds since the node started.
    pub now: NowNs,
    /// Its object table.
    pub store: StoreStats,
    /// Its disk.
    pub spill: SpillReport,
    /// Objects that wait to be restored, or are being read.
    pub restoring: Tally,
    /// Bytes of each segment that objects of this shard have touched.
    pub touched_bytes: Vec<u64>,
    /// Bytes of each segment that objects of this shard take, padding included.
    pub allocated_bytes: Vec<u64>,
    /// Its leases, workers and resources.
    pub sched: SchedReport,
    /// Sizes of the objects that were ever sealed on it, by source.
    pub sealed_sizes: SizeCounts,
    /// Connections to Ray's two sockets.
    pub connections: usize,
    /// Connections to the native door.
    pub natives: usize,
    /// The objects, where they were asked for.
    pub objects: Vec<ObjectInfo>,
    /// Latencies of its operations.
    pub latencies: Snapshot,
    /// How its ring is used.
    pub ring: RingUse,
}

/// Longest wait for a core's account of itself.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Every core's account of itself, asked for at once. A core that does not answer in time is left out.
pub async fn core_reports(cores: &[CoreHandle], objects: bool) -> Vec<CoreReport> {
    let mut waiting = Vec::with_capacity(cores.len());
    for core in cores {
        let (reply, receiver) = flume::bounded(1);
        core.send(ToCore::Report { objects, reply });
        waiting.push(receiver);
    }
    let mut reports = Vec::with_capacity(waiting.len());
    for receiver in waiting {
        match tokio::time::timeout(REPORT_TIMEOUT, receiver.recv_async()).await {
            Ok(Ok(report)) => reports.push(report),
            _ => tracing::warn!("a core did not report in time"),
        }
    }
    reports
}

/// How often a node that drains looks whether anything is left.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// Waits until every core is idle. One that does not report in time is not.
pub async fn all_idle(cores: &[CoreHandle], is_idle: impl Fn(&CoreReport) -> bool) {
    while core_reports(cores, false).await.iter().filter(|report| is_idle(report)).count() < cores.len() {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Lets a node begin to drain, and waits until nothing is leased, at most this long. Nothing at all is done for no time.
pub async fn drain_within(cores: &[CoreHandle], timeout: Duration, begin: impl Future<Output = ()>) {
    if timeout.is_zero() {
        return;
    }
    let drained = async {
        begin.await;
        all_idle(cores, |report| report.sched.idle_since.is_some()).await;
    };
    match tokio::time::timeout(timeout, drained).await {
        Ok(()) => tracing::info!("drained: no lease is left"),
        Err(_) => tracing::warn!(?timeout, "leases that did not end in time (drain_timeout_ms) are broken off"),
    }
}

/// Leases, workers and resources of a shard.
#[derive(Debug)]
pub struct SchedReport {
    /// What the shard knows of each resource; on shard 0 with what no shard holds.
    pub resources: Vec<ResourceUse>,
    /// What is queued, by class.
    pub loads: Vec<Load>,
    /// Workers by state.
    pub workers: WorkerCounts,
    /// Since when nothing is leased or queued; `None` while something is.
    pub idle_since: Option<NowNs>,
}

/// What is queued of a class.
#[derive(Debug)]
pub struct Load {
    /// What one lease asks for.
    pub demand: ResourceSet,
    /// Requests that wait for objects.
    pub waiting_deps: u32,
    /// Requests that wait for resources.
    pub ready: u32,
    /// Requests that hold resources and wait for a worker.
    pub waiting_worker: u32,
    /// Leases granted.
    pub granted: u32,
    /// Tasks that owners have beyond their requests.
    pub backlog: u64,
    /// True where the node can never hold one.
    pub infeasible: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_its_requester() {
        for requester in [Requester::Control, Requester::Transfer, Requester::Shard(0), Requester::Shard(17)] {
            let token = requester.tag(12_345);
            assert_eq!(Requester::of(token), requester);
            assert_eq!(Requester::local(token), 12_345);
        }
    }

    #[test]
    fn the_objects_of_a_task_share_a_shard_and_tasks_spread() {
        let mut seen = [0usize; 4];
        for task in 0..1000u32 {
            let mut bytes = [0u8; 28];
            bytes[..4].copy_from_slice(&task.to_le_bytes());
            let shard = shard_of_object(&ObjectId(bytes), 4);
            bytes[24] = 9;
            assert_eq!(shard, shard_of_object(&ObjectId(bytes), 4));
            seen[usize::from(shard)] += 1;
        }
        assert!(seen.iter().all(|n| *n > 150), "tasks do not spread: {seen:?}");
    }
}
