//! The control thread's part of the native door: what no single core can answer.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{ClientId, ShardId, WorkerId};
use raylet_shard::sched::{Fixed, SchedEffect, SchedEvent, StartToken};
use raylet_transport::ids as wire;
use raylet_transport::messages::{
    node_event, Done, Listed, NodeEvent, ObjectEntry, Refusal, RefusalCode, Registered, ResourceState, Status,
};
use raylet_transport::server::ReplyTo;
use rustc_hash::FxHashMap;
use tokio::task::JoinHandle;

use super::classes::{Defined, NativeClasses, NATIVE_LANGUAGE};
use super::pins::WorkerPins;
use super::processes::Processes;
use super::{listen, pins, NativeSettings, NativeShared};
use crate::bridge::{core_reports, drain_within, CoreHandle, CoreReport, Requester, ToCore};
use crate::core_loop::Core;
use crate::near::Nears;
use crate::ray::resources::Names;
use crate::workers::pinning::Pins;
use crate::workers::process::{ProcessConfig, ProcessTable};

/// Objects of one answer to a List.
const LISTED_MAX: u32 = 16_384;

/// From a core to the control thread: what its clients want that the core can't do alone.
#[derive(Debug)]
pub enum NativeAsk {
    /// A class is defined.
    DefineClass {
        /// Who defines it.
        client: ClientId,
        /// For the answer.
        to: ReplyTo,
        /// The kind of worker.
        name: String,
        /// What each lease holds, in 1/10,000.
        resources: Vec<(String, u64)>,
    },
    /// A client is a worker.
    RegisterWorker {
        /// Who.
        client: ClientId,
        /// For the answer.
        to: ReplyTo,
        /// Its name.
        worker: WorkerId,
        /// Its process.
        pid: u32,
        /// The start that it answers; 0 for none.
        start: u64,
        /// The kind of lease that it serves.
        class_name: String,
        /// Where it is reached.
        address: String,
    },
    /// A worker is gone.
    WorkerGone {
        /// Which.
        worker: WorkerId,
    },
    /// A worker has a lease. Told where workers are bound.
    Leased {
        /// Which.
        worker: WorkerId,
        /// Who granted it.
        shard: ShardId,
        /// Thousandths of a CPU that it holds.
        cpu_milli: u64,
    },
    /// It has it no more.
    Returned {
        /// Which.
        worker: WorkerId,
    },
    /// Objects of the node are wanted.
    List {
        /// Who wants them.
        client: ClientId,
        /// For the answer.
        to: ReplyTo,
        /// Only those behind this one.
        after: wire::ObjectId,
        /// At most so many.
        most: u32,
    },
    /// The node's state is wanted.
    Status {
        /// Who wants it.
        client: ClientId,
        /// For the answer.
        to: ReplyTo,
        /// With its resources.
        resources: bool,
    },
    /// The node is to take no new leases, or to do so again.
    Drain {
        /// Who wants it.
        client: ClientId,
        /// For the answer.
        to: ReplyTo,
        /// Draining or not.
        on: bool,
        /// For the log.
        detail: String,
    },
    /// Clients of all cores are to hear of this.
    Tell(NodeEvent),
}

/// From the control thread to a core.
#[derive(Debug)]
pub enum NativeTell {
    /// The door opens.
    Open(Arc<NativeShared>),
    /// A class, which the shard knows by now.
    ClassDefined(ClientId, ReplyTo, Result<Defined, Refusal>),
    /// A worker, which can be leased from now on.
    Registered(ClientId, ReplyTo, Result<Registered, Refusal>),
    /// Where a worker is reached; empty once it is gone.
    Address(WorkerId, String),
    /// A worker has to end.
    Stop {
        /// The worker's connection.
        client: ClientId,
        /// At once.
        forced: bool,
        /// Why.
        detail: String,
    },
    /// A peer has room for a lease that waits.
    Spill {
        /// Whose.
        client: ClientId,
        /// Its number of the lease.
        lease: u32,
        /// Which peer.
        there: Refusal,
    },
    /// Objects.
    Listed(ClientId, ReplyTo, Listed),
    /// The node's state.
    Status(ClientId, ReplyTo, Box<Status>),
    /// Done, or not.
    Done(ClientId, ReplyTo, Result<Done, Refusal>),
    /// An event of the node.
    Event(NodeEvent),
}

impl NativeTell {
    /// Takes what the control thread told.
    pub fn deliver(self, core: &Rc<Core>) {
        use super::door::reply_of;
        match self {
            Self::Open(shared) => core.native.open(shared),
            Self::ClassDefined(client, to, defined) => super::leases::class_defined(core, client, to, defined),
            Self::Registered(client, to, registered) => super::workers::registered(core, client, to, &registered),
            Self::Address(worker, address) => super::workers::address(core, worker, address),
            Self::Stop { client, forced, detail } => super::workers::stop(core, client, forced, detail),
            Self::Spill { client, lease, there } => super::spills::spill(core, client, lease, there),
            Self::Listed(client, to, listed) => reply_of(core, client, to, &Ok(listed)),
            Self::Status(client, to, status) => reply_of(core, client, to, &Ok(*status)),
            Self::Done(client, to, done) => reply_of(core, client, to, &done),
            Self::Event(event) => super::Natives::node_event(core, &event),
        }
    }
}

/// What the control thread's part is made of.
pub struct NativeParts {
    /// How the door is opened.
    pub settings: NativeSettings,
    /// The node's id.
    pub node: raylet_shard::ids::NodeId,
    /// To the cores.
    pub cores: Vec<CoreHandle>,
    /// Where clients are.
    pub nears: Nears,
    /// Names of resources, shared with Ray's door.
    pub names: Rc<RefCell<Names>>,
    /// Bytes that objects can have.
    pub capacity_bytes: u64,
    /// A client may drain the node. Not under Ray, whose control plane decides that.
    pub may_drain: bool,
    /// Binds leased workers that the node started to cores, where that was asked for.
    pub pins: Option<Pins>,
}

/// The control thread's part of the door.
pub struct NativeControl {
    cores: Vec<CoreHandle>,
    shared: Arc<NativeShared>,
    names: Rc<RefCell<Names>>,
    classes: RefCell<NativeClasses>,
    processes: Rc<Processes>,
    /// The shard on which a worker is, and its connection.
    workers: RefCell<FxHashMap<WorkerId, (ShardId, ClientId)>>,
    pins: Option<WorkerPins>,
    capacity_bytes: u64,
    may_drain: bool,
    draining: Cell<bool>,
    started: Instant,
    socket: PathBuf,
    accepting: RefCell<Option<JoinHandle<()>>>,
}

impl NativeControl {
    /// Opens the door: clients can connect when this returns. Must run inside a `LocalSet`.
    ///
    /// # Errors
    /// Where the socket can't be bound.
    pub fn open(parts: NativeParts) -> std::io::Result<Rc<Self>> {
        let (exits_to, exits) = flume::unbounded();
        let table = ProcessTable::new(ProcessConfig::default(), exits_to);
        let shared =
            NativeShared::new(parts.node, rand::random(), parts.cores.len(), &parts.settings, parts.pins.is_some());
        let socket = parts.settings.socket.clone();
        let control = Rc::new(Self {
            processes: Processes::new(parts.settings.worker_command.clone(), socket.clone(), table),
            cores: parts.cores,
            shared,
            names: parts.names,
            classes: RefCell::default(),
            workers: RefCell::default(),
            pins: parts.pins.map(WorkerPins::new),
            capacity_bytes: parts.capacity_bytes,
            may_drain: parts.may_drain,
            draining: Cell::new(false),
            started: Instant::now(),
            socket,
            accepting: RefCell::default(),
        });
        control.tell_all(|| NativeTell::Open(control.shared.clone()));
        *control.accepting.borrow_mut() = Some(listen(&parts.settings, control.cores.clone(), parts.nears)?);
        if control.pins.is_some() {
            pins::settle_for_ever(&control);
        }
        let watching = control.clone();
        tokio::task::spawn_local(async move {
            while let Ok(exit) = exits.recv_async().await {
                if let Some(event) = watching.processes.ended(&exit) {
                    watching.start_failed(event);
                }
            }
        });
        Ok(control)
    }

    /// The node's id.
    pub fn node(&self) -> raylet_shard::ids::NodeId {
        raylet_shard::ids::NodeId(self.shared.node.0)
    }

    pub(super) fn pins(&self) -> Option<&WorkerPins> {
        self.pins.as_ref()
    }

    /// Workers of this door that are bound to cores.
    pub fn pinned_workers(&self) -> usize {
        self.pins().map_or(0, WorkerPins::count)
    }

    /// True while the node takes no new leases.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Answers a request with a refusal.
    pub fn refuse(&self, client: ClientId, to: ReplyTo, refusal: Refusal) {
        self.tell(shard_of(client), NativeTell::Done(client, to, Err(refusal)));
    }

    /// A peer has room for a lease that waits.
    pub fn spill(&self, client: ClientId, lease: u32, there: Refusal) {
        self.tell(shard_of(client), NativeTell::Spill { client, lease, there });
    }

    /// Where clients connect.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    fn tell(&self, shard: ShardId, tell: NativeTell) {
        self.cores[usize::from(shard)].send(ToCore::Native(tell));
    }

    fn tell_all(&self, tell: impl Fn() -> NativeTell) {
        self.cores.iter().for_each(|core| core.send(ToCore::Native(tell())));
    }

    fn sched(&self, shard: ShardId, event: SchedEvent) {
        self.cores[usize::from(shard)].send(ToCore::Sched(event));
    }

    fn start_failed(&self, event: SchedEvent) {
        if let SchedEvent::StartFailed { start, .. } = &event {
            self.sched(start.shard(), event);
        }
    }

    /// A core asks.
    pub fn ask(self: &Rc<Self>, ask: NativeAsk) {
        match ask {
            NativeAsk::DefineClass { client, to, name, resources } => self.define(client, to, name, resources),
            NativeAsk::RegisterWorker { client, to, worker, pid, start, class_name, address } => {
                let ready = self.register(client, worker, start, &class_name, &address);
                tracing::info!(pid, class_name, ok = ready.is_ok(), "a native worker registers");
                let answer = ready.as_ref().map(|_| Registered { worker: wire::WorkerId(worker.0) });
                self.tell(shard_of(client), NativeTell::Registered(client, to, answer.map_err(Clone::clone)));
                if let Ok((shard, ready)) = ready {
                    if let Some(pins) = self.pins().filter(|_| self.processes.is_started(&worker)) {
                        pins.registered(worker, pid, shard);
                    }
                    self.sched(shard, ready);
                }
            }
            NativeAsk::WorkerGone { worker } => self.worker_gone(worker),
            NativeAsk::Leased { worker, shard, cpu_milli } => {
                self.pins().into_iter().for_each(|pins| pins.leased(worker, shard, cpu_milli));
            }
            NativeAsk::Returned { worker } => self.pins().into_iter().for_each(|pins| pins.returned(&worker)),
            NativeAsk::List { client, to, after, most } => self.report(true, move |control, reports| {
                let listed = list(&reports, after, most);
                control.tell(shard_of(client), NativeTell::Listed(client, to, listed));
            }),
            NativeAsk::Status { client, to, resources } => self.report(false, move |control, reports| {
                let status = Box::new(control.status(&reports, resources));
                control.tell(shard_of(client), NativeTell::Status(client, to, status));
            }),
            NativeAsk::Drain { client, to, on, detail } => {
                let answer = self.drain(on, &detail);
                self.tell(shard_of(client), NativeTell::Done(client, to, answer));
            }
            NativeAsk::Tell(event) => self.tell_all(|| NativeTell::Event(event.clone())),
        }
    }

    fn report(self: &Rc<Self>, objects: bool, then: impl FnOnce(&Self, Vec<CoreReport>) + 'static) {
        let control = self.clone();
        tokio::task::spawn_local(async move {
            let reports = core_reports(&control.cores, objects).await;
            then(&control, reports);
        });
    }

    fn define(&self, client: ClientId, to: ReplyTo, name: String, resources: Vec<(String, u64)>) {
        let shard = shard_of(client);
        let mut names = self.names.borrow_mut();
        let defined = self.classes.borrow_mut().define(shard, name, resources, &mut names).map(|(defined, def)| {
            if let Some(def) = def {
                self.sched(shard, SchedEvent::DefineClass { class: defined.id, def: Box::new(def) });
            }
            defined
        });
        self.tell(shard, NativeTell::ClassDefined(client, to, defined));
    }

    /// What the shard is told, once the worker knows that it is one.
    fn register(
        &self,
        client: ClientId,
        worker: WorkerId,
        start: u64,
        class_name: &str,
        address: &str,
    ) -> Result<(ShardId, SchedEvent), Refusal> {
        let key = self.classes.borrow_mut().worker(class_name)?;
        let token = self.processes.registers(worker, start, key)?;
        let shard = token.map_or_else(|| shard_of(client), StartToken::shard);
        self.workers.borrow_mut().insert(worker, (shard, client));
        if !address.is_empty() {
            self.tell_all(|| NativeTell::Address(worker, address.to_owned()));
        }
        Ok((shard, SchedEvent::WorkerReady { worker, start: token, key, job: None }))
    }

    fn drain(&self, on: bool, detail: &str) -> Result<Done, Refusal> {
        if !self.may_drain {
            let detail = "this node is part of a Ray cluster: drain it there (`ray drain-node`)";
            return Err(Refusal::new(RefusalCode::Unsupported, detail));
        }
        tracing::info!(on, detail, "a native client drains the node, or ends that");
        self.set_draining(on, detail);
        Ok(Done { count: 0 })
    }

    fn set_draining(&self, on: bool, detail: &str) {
        self.draining.set(on);
        (0..self.cores.len()).for_each(|shard| self.sched(shard as ShardId, SchedEvent::Drain { on }));
        let what = if on { node_event::DRAINING } else { node_event::RESUMED };
        self.tell_all(|| NativeTell::Event(NodeEvent { what, detail: detail.to_owned() }));
    }

    /// Takes no new leases, and waits until none is left, at most this long. Nothing at all is done for no time.
    pub async fn drain_within(&self, timeout: Duration) {
        let begin = async { self.set_draining(true, "the node received a signal to end") };
        drain_within(&self.cores, timeout, begin).await;
    }

    fn worker_gone(&self, worker: WorkerId) {
        if !self.processes.gone(&worker, false) {
            return;
        }
        self.pins().into_iter().for_each(|pins| pins.gone(&worker));
        let Some((shard, client)) = self.workers.borrow_mut().remove(&worker) else {
            return;
        };
        self.sched(shard, SchedEvent::WorkerGone { worker });
        self.tell_all(|| NativeTell::Address(worker, String::new()));
        let event = NodeEvent { what: node_event::WORKER_GONE, detail: format!("worker {worker} (client {client})") };
        self.tell_all(|| NativeTell::Event(event.clone()));
    }

    /// True for an effect that is about a worker of this door.
    pub fn is_for(&self, effect: &SchedEffect) -> bool {
        match effect {
            SchedEffect::StartWorker { key, .. } => key.language == NATIVE_LANGUAGE,
            SchedEffect::ExitWorker { worker, .. }
            | SchedEffect::KillWorker { worker, .. }
            | SchedEffect::WorkerMoved { worker, .. } => self.processes.has(worker),
            _ => false,
        }
    }

    /// A decision of a shard about workers of this door.
    pub fn sched_effect(self: &Rc<Self>, effect: SchedEffect) {
        match effect {
            SchedEffect::StartWorker { start, key, .. } => {
                let kind = self.classes.borrow().kind(key).to_owned();
                match self.processes.start(start, key, &kind) {
                    Some(failed) => self.start_failed(failed),
                    None => {
                        if let (Some(pins), Some(pid)) = (self.pins(), self.processes.pid(start)) {
                            pins.starting(pid, start.shard());
                        }
                        self.watch_start(start);
                    }
                }
            }
            SchedEffect::WorkerMoved { worker, to } => {
                if let Some((shard, _)) = self.workers.borrow_mut().get_mut(&worker) {
                    *shard = to;
                }
            }
            SchedEffect::KillWorker { worker, why, .. } => self.stop(worker, true, format!("{why:?}")),
            SchedEffect::ExitWorker { worker, why } if self.processes.is_started(&worker) => {
                self.stop(worker, false, format!("{why:?}"));
            }
            // One that came by itself goes by itself.
            SchedEffect::ExitWorker { worker, .. } => {
                let shard = self.workers.borrow().get(&worker).map(|(shard, _)| *shard);
                if let Some(shard) = shard {
                    self.sched(shard, SchedEvent::ExitRefused { worker });
                }
            }
            _ => {}
        }
    }

    fn watch_start(self: &Rc<Self>, start: StartToken) {
        let control = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(control.processes.patience()).await;
            if let Some(failed) = control.processes.late(start) {
                control.start_failed(failed);
            }
        });
    }

    fn stop(&self, worker: WorkerId, forced: bool, detail: String) {
        let client = self.workers.borrow().get(&worker).map(|(_, client)| *client);
        let Some(client) = client else {
            return;
        };
        self.tell(shard_of(client), NativeTell::Stop { client, forced, detail });
        if forced {
            self.worker_gone(worker);
        }
    }

    fn status(&self, reports: &[CoreReport], with_resources: bool) -> Status {
        let loads = || reports.iter().flat_map(|report| &report.sched.loads);
        let names = self.names.borrow();
        let mut resources: std::collections::BTreeMap<&str, (Fixed, Fixed)> = Default::default();
        let parts = reports.iter().flat_map(|report| &report.sched.resources).filter(|_| with_resources);
        for part in parts {
            let entry = resources.entry(names.name(part.id)).or_insert((part.total, Fixed::ZERO));
            entry.1 += part.free;
        }
        Status {
            capacity_bytes: self.capacity_bytes,
            used_bytes: reports.iter().map(|report| report.store.allocated_bytes).sum(),
            objects: reports.iter().map(|report| report.store.objects).sum(),
            uptime_ns: self.started.elapsed().as_nanos() as u64,
            clients: reports.iter().map(|report| report.natives as u32).sum(),
            workers: self.processes.workers() as u32,
            leases: loads().map(|load| load.granted).sum(),
            leases_queued: loads().map(|load| load.ready + load.waiting_deps + load.waiting_worker).sum(),
            shards: reports.len() as u32,
            draining: self.draining.get(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            resources: resources
                .into_iter()
                .map(|(name, (total, free))| ResourceState {
                    name: name.to_owned(),
                    // Totals are never negative.
                    total: total.0.unsigned_abs(),
                    free: free.0,
                })
                .collect(),
        }
    }

    /// Closes the door: nobody new comes in, and workers that the node started end.
    pub async fn close(&self) {
        if let Some(accepting) = self.accepting.borrow_mut().take() {
            accepting.abort();
        }
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(%error, "the native door's socket could not be removed");
        }
        let event = NodeEvent { what: node_event::STOPPING, detail: String::new() };
        self.tell_all(|| NativeTell::Event(event.clone()));
        self.processes.shutdown().await;
    }
}

fn shard_of(client: ClientId) -> ShardId {
    match Requester::of(client) {
        Requester::Shard(shard) => shard,
        Requester::Control | Requester::Transfer => 0,
    }
}

fn list(reports: &[CoreReport], after: wire::ObjectId, most: u32) -> Listed {
    let most = most.clamp(1, LISTED_MAX) as usize;
    let behind = reports.iter().flat_map(|report| &report.objects).filter(|object| object.id.0 > after.0);
    let mut objects: Vec<_> = behind.collect();
    objects.sort_unstable_by_key(|object| object.id);
    let more = objects.len() > most;
    let entries = objects.into_iter().take(most).map(|object| ObjectEntry {
        object: super::to_wire(object.id),
        owner: wire::WorkerId(object.owner.0),
        data_bytes: object.data_bytes,
        metadata_bytes: object.metadata_bytes,
        references: object.references,
        sealed: object.sealed,
        pinned: object.pinned,
    });
    Listed { entries: entries.collect(), more }
}
