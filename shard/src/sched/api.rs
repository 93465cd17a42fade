//! What goes into a [`Scheduler`](super::Scheduler) and what comes out.
//!
//! # Which shard gets which event
//! A node has shards 0 .. n. Shard 0 also hosts the bank, which owns the node's totals. With one shard everything goes there.
//!
//! | event | shard |
//! |---|---|
//! | `AddResource`, `ResizeResource`, `JobFinished`, `OwnerGone`, `OwnerNodeGone`, `CancelClasses`, `Drain`, `Tick` | every shard |
//! | `DefineClass`, `Request`, `Backlog` | the shard the caller chose for the class, always the same one. Classes that name bundle resources go to the home shard of the placement group |
//! | `DepReady`, `DepLost`, `Return`, `Cancel`, `Withdraw` | the shard that got the `Request` |
//! | `PrepareBundles`, `CommitBundles`, `ReturnBundles`, `ForgetGroup` | the home shard of the placement group, chosen by the caller, always the same one; one event never mixes groups of different homes |
//! | `ReleaseUnusedBundles` | every shard |
//! | `WorkerReady` with a start token, `StartFailed` | `start.shard()` |
//! | `WorkerReady` without one | any |
//! | `WorkerGone`, `Blocked`, `Unblocked`, `ExitRefused` | the shard that the worker is on: where it became ready, later the `to` of the newest `WorkerMoved`. A shard that moved it away passes the event on, so a race is harmless |
//! | `Prestart` | any |
//! | `FromShard` | `to` of the `ToShard` effect. Delivery between two shards is in order and never lost |

use smallvec::SmallVec;

use super::bank::SchedMsg;
use super::types::*;
use crate::ids::{ActorId, JobId, LeaseId, NodeId, NowNs, ObjectId, PlacementGroupId, ShardId, Token, WorkerId};

/// A request for a lease (Ray 2.60, `RequestWorkerLeaseRequest`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseRequest {
    /// Answered by exactly one of `Granted`, `Rejected`, `Cancelled`, `Failed`, `Withdrawn`.
    pub token: Token,
    /// Chosen by the owner; the same in a retry.
    pub lease: LeaseId,
    /// Defined before by `DefineClass`, else `Failed(UnknownClass)`.
    pub class: ClassId,
    /// The worker or driver that asks, and its node.
    pub owner: WorkerId,
    /// Node of the owner.
    pub owner_node: NodeId,
    /// The owner's job.
    pub job: JobId,
    /// Set where the lease creates an actor: its worker then stays with it until it dies.
    pub actor: Option<ActorId>,
    /// True for an actor that outlives its owner: its worker survives `OwnerGone`.
    pub detached: bool,
    /// The detached actor this work descends from; its worker serves no other detached actor and survives `JobFinished`.
    pub root_detached_actor: Option<ActorId>,
    /// True where a GPU is asked for: a worker that once had one never serves leases without, and the other way round.
    pub is_gpu: bool,
    /// Reject instead of queueing where it does not fit at once.
    pub grant_or_reject: bool,
    /// Of its class, those of a higher priority go first; Ray has no such thing and asks with 0.
    pub priority: i32,
    /// Objects that must be local first.
    pub deps: SmallVec<[ObjectId; 2]>,
}

/// What becomes of the worker of a returned lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkerFate {
    /// It serves the next lease.
    Keep,
    /// It is broken: kill it (`disconnect_worker` of Ray's `ReturnWorkerLeaseRequest`).
    Disconnect,
    /// It exits by itself (`worker_exiting`).
    Exiting,
}

/// Why a worker process did not come up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StartFailure {
    /// It did not register in time, or died before. Tried again [`SchedConfig::start_attempts_max`] times.
    NotRegistered,
    /// The job's configuration is not known yet. Tried again as often.
    JobConfigMissing,
    /// Nothing was started: a worker that comes by itself was waited for, and none came. The lease looks among the idle workers of the
    /// other shards and then waits again, as often as it takes.
    NoneCame,
    /// The environment could not be built: the request fails with the message.
    RuntimeEnv(Box<str>),
}

/// How many workers a `Prestart` is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrestartCount {
    /// This many new ones (Ray 2.60, `PrestartWorkers`).
    New(u32),
    /// As many as tasks of this backlog and the request itself could use now: min(backlog + 1, free CPUs) less what is idle or
    /// starting (Ray's worker pool does this on every lease request).
    Backlog(u32),
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SchedEvent {
    /// The node has a resource. Adding an id again is an error of the caller and changes nothing.
    AddResource {
        /// Which.
        id: ResourceId,
        /// How much; whole units for [`ResourceKind::UnitInstances`] (a fraction is cut off).
        total: Fixed,
        /// How it is counted.
        kind: ResourceKind,
    },
    /// A resource has a new total. Less than is leased leaves a debt that returned leases pay. Ignored for
    /// [`ResourceKind::UnitInstances`] (Ray refuses it) and for unknown ids.
    ResizeResource {
        /// Which.
        id: ResourceId,
        /// The new total.
        total: Fixed,
    },
    /// What a class asks for. Defining it again is allowed while nothing of it is queued or leased, else ignored.
    DefineClass {
        /// Which.
        class: ClassId,
        /// What it asks for.
        def: Box<ClassDef>,
    },
    /// A request for a lease, or its retry.
    Request(Box<LeaseRequest>),
    /// An object that a queued lease waits for is local.
    DepReady {
        /// The lease.
        lease: LeaseId,
        /// The object.
        object: ObjectId,
    },
    /// An object is no longer local: a lease not yet granted waits again.
    DepLost {
        /// The lease.
        lease: LeaseId,
        /// The object.
        object: ObjectId,
    },
    /// The owner gives a lease back. Harmless for an unknown one.
    Return {
        /// The lease.
        lease: LeaseId,
        /// What becomes of its worker.
        fate: WorkerFate,
    },
    /// The owner gives up a request; answered by `CancelDone`. Does nothing to a lease already granted.
    Cancel {
        /// For `CancelDone`.
        token: Token,
        /// The lease.
        lease: LeaseId,
    },
    /// Take a request that holds no resources out of the queue, to send it to another node; answered by `Withdrawn` for each of
    /// its tokens, or by nothing where it is unknown, holds resources or is granted.
    Withdraw {
        /// The lease.
        lease: LeaseId,
    },
    /// Cancel what is queued of some classes (Ray 2.60, `CancelLeasesWithResourceShapes`).
    CancelClasses {
        /// For `CancelledMany`.
        token: Token,
        /// Which classes; those this shard does not know are skipped.
        classes: Vec<ClassId>,
    },
    /// An owner died: its queued requests are cancelled, its leased workers killed, except those of detached actors.
    OwnerGone {
        /// The worker or driver.
        owner: WorkerId,
    },
    /// A node died: as `OwnerGone` for every owner there.
    OwnerNodeGone {
        /// The node.
        node: NodeId,
    },
    /// A leased worker waits in `ray.get`: its CPU is free for others.
    Blocked {
        /// The worker.
        worker: WorkerId,
    },
    /// It goes on: it takes its CPU again, even if that oversubscribes.
    Unblocked {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker process has registered and announced its port.
    WorkerReady {
        /// The worker.
        worker: WorkerId,
        /// The start it answers; `None` for one that nobody here started.
        start: Option<StartToken>,
        /// What it can serve.
        key: WorkerKey,
        /// The job it was started for, if any.
        job: Option<JobId>,
    },
    /// A start came to nothing.
    StartFailed {
        /// The start.
        start: StartToken,
        /// Why.
        why: StartFailure,
    },
    /// A worker's process is gone.
    WorkerGone {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker that was asked to exit goes on living (it owns objects): it is idle again. One that agrees just goes: `WorkerGone`.
    ExitRefused {
        /// The worker.
        worker: WorkerId,
    },
    /// Start workers ahead of need.
    Prestart {
        /// The kind.
        key: WorkerKey,
        /// For this job, or for none yet.
        job: Option<JobId>,
        /// How many.
        count: PrestartCount,
        /// They are kept at least this long after they are ready.
        keep_alive_ns: u64,
    },
    /// How many more tasks of a class an owner has (Ray 2.60, `ReportWorkerBacklog`). 0 forgets it.
    Backlog {
        /// The owner.
        owner: WorkerId,
        /// The class.
        class: ClassId,
        /// Tasks for which no lease is requested yet.
        size: u32,
    },
    /// A job is over: its requests are cancelled, its workers exit, except below a detached actor.
    JobFinished {
        /// The job.
        job: JobId,
    },
    /// Set resources aside for bundles, all or nothing; answered by `BundlesPrepared`. A bundle already prepared is prepared anew,
    /// one already committed is left as it is.
    PrepareBundles {
        /// For `BundlesPrepared`.
        token: Token,
        /// The bundles.
        bundles: Vec<BundleSpec>,
    },
    /// Prepared bundles become resources that leases can ask for; answered by `BundlesCommitted`.
    CommitBundles {
        /// For `BundlesCommitted`.
        token: Token,
        /// The bundles.
        bundles: Vec<BundleId>,
    },
    /// Give bundles up: requests for them are cancelled, their workers killed, and their resources return as those workers go.
    /// Answered by `BundlesReturned` at once; harmless for unknown ones.
    ReturnBundles {
        /// For `BundlesReturned`.
        token: Token,
        /// The bundles.
        bundles: Vec<BundleId>,
    },
    /// Give up every bundle that is not in this list (after a restart of the control plane). Answered by `BundlesReturned`.
    ReleaseUnusedBundles {
        /// For `BundlesReturned`.
        token: Token,
        /// The ones to keep.
        in_use: Vec<BundleId>,
    },
    /// Forget a placement group that is gone, with the classes and the resources that its name is in: their numbers will mean
    /// something else. All or nothing: not while it has a bundle here, not while anything of such a class is queued, leased or
    /// reported as backlog. Answered by `GroupForgotten`; may be asked again.
    ForgetGroup {
        /// For `GroupForgotten`.
        token: Token,
        /// The group.
        group: PlacementGroupId,
        /// Every class that names a resource of it. Each may be defined anew after this event, whatever the answer.
        classes: Vec<ClassId>,
        /// The resources of its bundles.
        resources: Vec<ResourceId>,
    },
    /// The node takes no new work (`on`), or does again. Requests not granted yet are `Rejected(Draining)`.
    Drain {
        /// Draining or not.
        on: bool,
    },
    /// Time has passed. Wanted every [`TICK_NS`], and at once while [`Scheduler::wants_tick`](super::Scheduler::wants_tick).
    Tick,
    /// A message from another shard's scheduler.
    FromShard {
        /// Who sent it.
        from: ShardId,
        /// The message.
        msg: SchedMsg,
    },
}

/// How often `Tick` is wanted, in nanoseconds.
pub const TICK_NS: u64 = 10_000_000;

/// Why a request was turned away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RejectReason {
    /// `grant_or_reject`, and it does not fit now.
    NoRoom,
    /// The node is draining.
    Draining,
}

/// Why a queued request was cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CancelReason {
    /// Its owner asked.
    Asked,
    /// Its owner died.
    OwnerGone,
    /// Its job is over.
    JobFinished,
    /// Its bundle was given up.
    BundleRemoved,
    /// Its class was cancelled.
    Class,
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FailReason {
    /// The environment of its worker could not be built.
    RuntimeEnv(Box<str>),
    /// Its worker did not come up, this many times in a row.
    WorkerStart {
        /// Tries.
        attempts: u32,
    },
    /// [`SchedConfig::leases_max`] is reached.
    QueueFull,
    /// More than [`TOKENS_PER_LEASE_MAX`] unanswered retries of the same request.
    TooManyRetries,
    /// The class is not defined here.
    UnknownClass,
}

/// Unanswered retries of one request that are kept.
pub const TOKENS_PER_LEASE_MAX: usize = 8;

/// Why a worker must go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KillReason {
    /// The owner of its lease gave it back as broken.
    Disconnected,
    /// The owner of its lease died.
    OwnerGone,
    /// Its bundle was given up.
    BundleRemoved,
    /// Its job is over.
    JobFinished,
}

/// Why an idle worker is asked to exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitReason {
    /// Idle for long, and there are more workers than the soft limit.
    Idle,
    /// Its job is over: `force_exit`.
    JobFinished,
}

/// Something to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SchedEffect {
    /// The request has its lease. Repeated with the same content for a retry.
    Granted {
        /// Of the request.
        token: Token,
        /// The lease.
        lease: LeaseId,
        /// Its class.
        class: ClassId,
        /// The worker that serves it; nil where its class needs none.
        worker: WorkerId,
        /// What it holds.
        allocation: Allocation,
    },
    /// The request was turned away.
    Rejected {
        /// Of the request.
        token: Token,
        /// The lease.
        lease: LeaseId,
        /// Why.
        why: RejectReason,
    },
    /// The request was cancelled.
    Cancelled {
        /// Of the request.
        token: Token,
        /// The lease.
        lease: LeaseId,
        /// Why.
        why: CancelReason,
    },
    /// The request failed.
    Failed {
        /// Of the request.
        token: Token,
        /// The lease.
        lease: LeaseId,
        /// Why.
        why: FailReason,
    },
    /// The request left the queue on `Withdraw`.
    Withdrawn {
        /// Of the request.
        token: Token,
        /// The lease.
        lease: LeaseId,
    },
    /// Answer to `Cancel`.
    CancelDone {
        /// Of the cancel.
        token: Token,
        /// The lease.
        lease: LeaseId,
        /// False where the lease is granted or unknown.
        cancelled: bool,
    },
    /// Answer to `CancelClasses`.
    CancelledMany {
        /// Of the cancel.
        token: Token,
        /// Leases cancelled on this shard.
        count: u32,
    },
    /// Bring these objects here for a queued lease, and say `DepReady` for each.
    WatchDeps {
        /// The lease.
        lease: LeaseId,
        /// The objects.
        deps: SmallVec<[ObjectId; 2]>,
    },
    /// The lease no longer waits: it was granted or left the queue.
    UnwatchDeps {
        /// The lease.
        lease: LeaseId,
    },
    /// Start a process; answered by `WorkerReady` or `StartFailed`.
    StartWorker {
        /// Names the start.
        start: StartToken,
        /// The kind.
        key: WorkerKey,
        /// For this job, or for none yet.
        job: Option<JobId>,
        /// The lease it is started for (its environment is in that lease's specification); `None` when it is started ahead.
        lease: Option<LeaseId>,
    },
    /// Ask a worker to exit. It may refuse (`ExitRefused`) unless forced.
    ExitWorker {
        /// The worker.
        worker: WorkerId,
        /// Why.
        why: ExitReason,
    },
    /// Kill a worker; `WorkerGone` must follow.
    KillWorker {
        /// The worker.
        worker: WorkerId,
        /// The lease it served, if any.
        lease: Option<LeaseId>,
        /// Why.
        why: KillReason,
    },
    /// A granted lease ended with its worker; one that has no worker, with what it was for.
    LeaseLost {
        /// The lease.
        lease: LeaseId,
        /// Its class.
        class: ClassId,
        /// The worker that is gone; nil for none.
        worker: WorkerId,
    },
    /// Events about this worker go to another shard from now on.
    WorkerMoved {
        /// The worker.
        worker: WorkerId,
        /// Its shard.
        to: ShardId,
    },
    /// Answer to `PrepareBundles`.
    BundlesPrepared {
        /// Of the prepare.
        token: Token,
        /// False: nothing is set aside.
        ok: bool,
    },
    /// Answer to `CommitBundles`.
    BundlesCommitted {
        /// Of the commit.
        token: Token,
        /// Bundles that were not prepared here and so are not committed.
        unknown: SmallVec<[BundleId; 1]>,
    },
    /// Answer to `ReturnBundles` and `ReleaseUnusedBundles`.
    BundlesReturned {
        /// Of the request.
        token: Token,
        /// The bundles given up by it.
        returned: SmallVec<[BundleId; 1]>,
    },
    /// Answer to `ForgetGroup`.
    GroupForgotten {
        /// Of the request.
        token: Token,
        /// The group.
        group: PlacementGroupId,
        /// False: something of it is in use, and nothing is forgotten.
        forgotten: bool,
    },
    /// Deliver to another shard as `FromShard`, in order.
    ToShard {
        /// The shard.
        to: ShardId,
        /// The message.
        msg: SchedMsg,
    },
}

/// Limits and timings of one shard's scheduler.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SchedConfig {
    /// This shard.
    pub shard: ShardId,
    /// Shards of the node, at least 1.
    pub shards: ShardId,
    /// Workers that the node, all shards together, keeps although they are idle (Ray's `num_workers_soft_limit`).
    pub workers_soft_limit: u32,
    /// How long a worker above the soft limit may be idle (Ray's `idle_worker_killing_time_threshold_ms`).
    pub idle_timeout_ns: u64,
    /// Worker processes that this shard starts at the same time (Ray's `maximum_startup_concurrency`).
    pub startup_concurrency: u32,
    /// Tries to get a worker for one request.
    pub start_attempts_max: u32,
    /// Leases queued and granted on this shard; more are `Failed(QueueFull)`.
    pub leases_max: u32,
    /// Prestarts waiting for their turn; more are dropped.
    pub prestart_queue_max: u32,
    /// Grants that may pass by an older class before freed resources are set aside for it (one shard).
    pub bypass_max: u32,
    /// How long a shard's want may stay unmet before the bank sets freed resources aside for it (several shards).
    pub want_patience_ns: u64,
    /// How long resources are set aside the first time; doubled each time it was in vain, with as long a pause between.
    pub reserve_ns: u64,
    /// The longest that resources are set aside.
    pub reserve_max_ns: u64,
    /// Hold back a class that already has as many leases as the node has room for (Ray's `worker_cap_enabled`).
    pub class_cap: bool,
    /// First delay of a class held back; doubled for each lease above the cap (Ray's `worker_cap_initial_backoff_delay_ms`).
    pub class_cap_ns: u64,
    /// Longest delay (Ray's `worker_cap_max_backoff_delay_ms`).
    pub class_cap_max_ns: u64,
}

impl SchedConfig {
    /// Ray 2.60's defaults for a node with this many CPUs and shards.
    pub fn new(shard: ShardId, shards: ShardId, cpus: u32) -> Self {
        let share = cpus.div_ceil(u32::from(shards.max(1))).max(1);
        Self {
            shard,
            shards: shards.max(1),
            workers_soft_limit: cpus,
            idle_timeout_ns: 1_000_000_000,
            startup_concurrency: share,
            start_attempts_max: 3,
            leases_max: 1 << 20,
            prestart_queue_max: 4096,
            bypass_max: 64,
            want_patience_ns: 2_000_000,
            reserve_ns: 1_000_000_000,
            reserve_max_ns: 64_000_000_000,
            class_cap: true,
            class_cap_ns: 1_000_000_000,
            class_cap_max_ns: 10_000_000_000,
        }
    }
}

/// A class with something queued, for load reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClassLoad<'a> {
    /// The class.
    pub class: ClassId,
    /// What one lease of it asks for.
    pub demand: &'a ResourceSet,
    /// Requests that wait for resources.
    pub ready: u32,
    /// Requests that wait for their objects.
    pub waiting_deps: u32,
    /// Requests that hold resources and wait for a worker.
    pub waiting_worker: u32,
    /// Leases granted.
    pub granted: u32,
    /// Tasks that owners have beyond their requests.
    pub backlog: u64,
    /// True where the node's totals can't hold one lease of it.
    pub infeasible: bool,
}

/// A request that waits, for the caller that looks for another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queued {
    /// The lease.
    pub lease: LeaseId,
    /// Its class.
    pub class: ClassId,
    /// When it came.
    pub since: NowNs,
}

/// Workers of one shard by state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WorkerCounts {
    /// Ready for a lease.
    pub idle: u32,
    /// Serving one.
    pub leased: u32,
    /// Processes on their way.
    pub starting: u32,
    /// Asked to exit, or no longer usable and about to go.
    pub leaving: u32,
}
