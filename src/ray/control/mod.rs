//! The Ray door's side on the control thread: RPCs of Ray, messages of workers, decisions of the shards.
//!
//! One value, [`Control`], shared by the tasks of one thread. What a shard must decide goes to its core as an event with a
//! token; the answer comes back on one queue and finds its waiter by the token. State is borrowed for the length of a
//! function, never across an await.

mod actors;
mod bundles;
mod clients;
mod cluster;
mod dispatch;
mod groups;
mod io_workers;
mod jobs;
mod leases;
mod locations;
mod memory;
mod objects;
mod placing;
mod pool;
pub mod pulls;
mod reports;
mod service;
mod workers;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raylet_shard::ids::{ClientId, LeaseId, NodeId, ShardId, Token, WorkerId};
use raylet_shard::sched::{Fixed, SchedEvent};
use raylet_shard::store::StoreEvent;
use rustc_hash::FxHashMap;
use tokio::sync::{oneshot, Notify, Semaphore};

use crate::bridge::{shard_of_object, CoreHandle, Requester, ToCore, MAX_RPCS_IN_FLIGHT};
use crate::cli::ray_flags::RayFlags;
use crate::config::ray::RayConfig;
use crate::native::control::NativeControl;
use crate::observe::histogram::Recorder;
use crate::observe::status::{ClientStatus, CLIENTS_MAX};
use crate::ray::agents::AgentManager;
use crate::ray::classes::Classes;
use crate::ray::labels::NODE_ID;
use crate::ray::metrics::NodeCounters;
use crate::ray::nodes::Nodes;
use crate::ray::proto;
use crate::ray::registry::{Dead, Registry};
use crate::ray::resources::Names;
use crate::ray::rpc::core_worker::CoreWorkers;
use crate::ray::rpc::gcs::GcsClient;
use crate::ray::rpc::pubsub::GcsSubscriber;
use crate::ray::runtime_env::RuntimeEnvClient;
use crate::workers::command::WorkerCommands;
use crate::workers::nursery::Nursery;
use crate::workers::pinning::{Doing, Pins};
use crate::workers::process::ProcessTable;

pub use leases::{died_as_granted, Leases};
pub use locations::Spilled;
pub use objects::Objects;
pub use pool::Starting;
pub use pulls::Pulls;
pub use service::routes;

/// Longest wait for a core to tell what it has to tell.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// What the control thread is given at start.
pub struct ControlParts {
    /// Ray's flags.
    pub flags: RayFlags,
    /// Ray's settings.
    pub ray_config: RayConfig,
    /// The settings of the cluster as JSON, handed on to workers as it came.
    pub system_config: String,
    /// The node's id.
    pub node_id: NodeId,
    /// TCP port of NodeManagerService.
    pub port: u16,
    /// To the cores.
    pub cores: Vec<CoreHandle>,
    /// The cluster's control store.
    pub gcs: GcsClient,
    /// Worker processes.
    pub processes: ProcessTable,
    /// What workers are started with.
    pub commands: WorkerCommands,
    /// Forks those that start alike.
    pub nursery: Nursery,
    /// How many processes of the node start at the same time.
    pub startup_concurrency: u32,
    /// The agent that builds runtime environments.
    pub runtime_env: RuntimeEnvClient,
    /// Clients of workers.
    pub core_workers: CoreWorkers,
    /// What is fetched from other nodes.
    pub pulls: Pulls,
    /// Names of the node's resources, with those of the command line in it.
    pub names: Names,
    /// The agents.
    pub agents: AgentManager,
    /// Binds leased workers to cores, where that was asked for.
    pub pins: Option<Pins>,
}

/// The control thread's state.
pub struct Control {
    pub(super) flags: RayFlags,
    pub(super) ray_config: RayConfig,
    pub(super) system_config: String,
    /// The node's id.
    pub node_id: NodeId,
    pub(super) port: u16,
    pub(super) cores: Vec<CoreHandle>,
    pub(super) gcs: GcsClient,
    pub(super) processes: ProcessTable,
    pub(super) commands: WorkerCommands,
    pub(super) nursery: Nursery,
    pub(super) startup_concurrency: u32,
    pub(super) pins: Option<RefCell<Pins>>,
    pub(super) start_places: Arc<Semaphore>,
    pub(super) runtime_env: RuntimeEnvClient,
    pub(super) core_workers: CoreWorkers,
    /// The node's labels, with the one that names the node.
    pub(super) labels: BTreeMap<String, String>,
    pub(super) names: Rc<RefCell<Names>>,
    native: RefCell<Option<Rc<NativeControl>>>,
    /// All that the node has, by the names of resources; bundles are in it, not beside it.
    pub(super) totals: RefCell<BTreeMap<String, Fixed>>,
    pub(super) classes: RefCell<Classes>,
    pub(super) groups: RefCell<groups::Groups>,
    pub(super) registry: RefCell<Registry>,
    pub(super) leases: RefCell<Leases>,
    pub(super) starting: RefCell<FxHashMap<WorkerId, Starting>>,
    /// Workers that are being forked; closed when they are in `starting`, or not coming.
    pub(super) forking: RefCell<FxHashMap<WorkerId, Rc<Semaphore>>>,
    /// Workers that spill to and restore from storage that only they can reach.
    io: RefCell<io_workers::IoWorkers>,
    pub(super) objects: RefCell<Objects>,
    pulls: RefCell<Pulls>,
    locations: RefCell<locations::Locations>,
    pub(super) jobs: RefCell<jobs::Jobs>,
    pub(super) dead: RefCell<Dead>,
    pub(super) nodes: RefCell<Nodes>,
    pub(super) placing: placing::Placing,
    pub(super) agents: AgentManager,
    pub(super) subscriber: RefCell<Option<GcsSubscriber>>,
    waiters: RefCell<Waiters>,
    pub(super) shutdown: Shutdown,
    pub(super) driver_ready: Rc<Notify>,
    pub(super) draining: RefCell<Option<proto::DrainRayletRequest>>,
    pub(super) gc: RefCell<reports::GcState>,
    /// What is counted for reports.
    pub counters: NodeCounters,
    /// Latencies of what this thread does.
    pub recorder: RefCell<Recorder>,
}

/// Answers that are on their way, by token.
#[derive(Default)]
struct Waiters {
    next: u64,
    leases: FxHashMap<Token, oneshot::Sender<leases::Outcome>>,
    caught_up: FxHashMap<Token, oneshot::Sender<()>>,
    bundles: FxHashMap<Token, oneshot::Sender<bool>>,
    weighed: FxHashMap<Token, oneshot::Sender<(placing::Room, bool)>>,
}

/// The request to end, seen by everyone who waits.
#[derive(Default)]
pub struct Shutdown {
    cause: RefCell<Option<proto::NodeDeathInfo>>,
    notify: Notify,
}

impl Shutdown {
    /// Asks the node to end. The first cause counts.
    pub fn ask(&self, reason: proto::node_death_info::Reason, message: &str) {
        let mut cause = self.cause.borrow_mut();
        if cause.is_none() {
            tracing::info!(?reason, message, "shutting down");
            *cause = Some(proto::NodeDeathInfo { reason: reason as i32, reason_message: message.to_owned() });
        }
        self.notify.notify_waiters();
        self.notify.notify_one();
    }

    /// True once the node was asked to end.
    pub fn is_asked(&self) -> bool {
        self.cause.borrow().is_some()
    }

    /// Waits until the node is asked to end, and says why.
    pub async fn asked(&self) -> proto::NodeDeathInfo {
        loop {
            if let Some(cause) = self.cause.borrow().clone() {
                return cause;
            }
            self.notify.notified().await;
        }
    }
}

impl Control {
    /// Puts the control thread's state together.
    pub fn new(parts: ControlParts) -> Rc<Self> {
        let mut labels = parts.flags.labels.clone();
        labels.insert(NODE_ID.to_owned(), parts.node_id.to_string());
        let totals =
            parts.flags.resources.iter().filter_map(|(name, amount)| Some((name.clone(), Fixed::from_f64(*amount)?)));
        let totals = totals.collect();
        let placing = placing::Placing::new(&parts.ray_config);
        Rc::new(Self {
            flags: parts.flags,
            ray_config: parts.ray_config,
            system_config: parts.system_config,
            node_id: parts.node_id,
            port: parts.port,
            cores: parts.cores,
            gcs: parts.gcs,
            processes: parts.processes,
            commands: parts.commands,
            nursery: parts.nursery,
            startup_concurrency: parts.startup_concurrency,
            pins: parts.pins.map(RefCell::new),
            start_places: Arc::new(Semaphore::new(parts.startup_concurrency as usize)),
            runtime_env: parts.runtime_env,
            core_workers: parts.core_workers,
            labels,
            names: Rc::new(RefCell::new(parts.names)),
            native: RefCell::default(),
            totals: RefCell::new(totals),
            classes: RefCell::default(),
            groups: RefCell::default(),
            registry: RefCell::default(),
            leases: RefCell::default(),
            starting: RefCell::default(),
            forking: RefCell::default(),
            io: RefCell::default(),
            objects: RefCell::default(),
            pulls: RefCell::new(parts.pulls),
            locations: RefCell::default(),
            jobs: RefCell::default(),
            dead: RefCell::default(),
            nodes: RefCell::default(),
            placing,
            agents: parts.agents,
            subscriber: RefCell::default(),
            waiters: RefCell::default(),
            shutdown: Shutdown::default(),
            driver_ready: Rc::default(),
            draining: RefCell::default(),
            gc: RefCell::default(),
            counters: NodeCounters::default(),
            recorder: RefCell::default(),
        })
    }

    /// How many shards the node has.
    pub fn shards(&self) -> ShardId {
        self.cores.len() as ShardId
    }

    /// Told when a driver is connected and its job known.
    pub fn driver_ready(&self) -> Rc<Notify> {
        self.driver_ready.clone()
    }

    /// Ray's flags.
    pub fn flags(&self) -> &RayFlags {
        &self.flags
    }

    /// Ray's settings.
    pub fn ray_config(&self) -> &RayConfig {
        &self.ray_config
    }

    /// A line for each registered worker and driver.
    pub fn describe_clients(&self) -> Vec<String> {
        let registry = self.registry.borrow();
        let mut members: Vec<_> = registry.iter().collect();
        members.sort_by_key(|member| (!member.is_driver(), member.pid));
        members.into_iter().map(ToString::to_string).collect()
    }

    /// Drivers and workers for a status: those with a lease first, at most [`CLIENTS_MAX`].
    pub fn clients(&self) -> Vec<ClientStatus> {
        let (registry, leases) = (self.registry.borrow(), self.leases.borrow());
        let now_ms = unix_ms();
        let mut clients: Vec<ClientStatus> = registry
            .iter()
            .map(|member| {
                let lease = member.lease.and_then(|lease| leases.get(&lease));
                ClientStatus {
                    pid: member.pid,
                    role: member.role().to_owned(),
                    shard: u32::from(member.shard),
                    task: lease.map(|lease| lease.name.clone()).unwrap_or_default(),
                    leased_s: lease.map_or(0.0, |_| now_ms.saturating_sub(member.granted_at_ms) as f64 / 1000.0),
                }
            })
            .collect();
        clients.sort_by_key(|client| (client.role == "idle", client.role != "driver", client.pid));
        clients.truncate(CLIENTS_MAX);
        clients
    }

    /// Drivers connected.
    pub fn driver_count(&self) -> usize {
        self.registry.borrow().drivers().count()
    }

    /// Where the node listens, by name.
    pub fn addresses(&self) -> Vec<(String, String)> {
        vec![
            ("raylet".to_owned(), self.flags.raylet_socket_name.display().to_string()),
            ("plasma".to_owned(), self.flags.store_socket_name.display().to_string()),
            ("node_manager".to_owned(), format!("{}:{}", self.flags.node_ip_address, self.port)),
        ]
    }

    /// Names of resources, which the native door shares.
    pub fn names(&self) -> Rc<RefCell<Names>> {
        self.names.clone()
    }

    /// The native door is open too: what concerns its clients is handed on.
    pub fn set_native(&self, native: Rc<NativeControl>) {
        *self.native.borrow_mut() = Some(native);
    }

    pub(super) fn native(&self) -> Option<Rc<NativeControl>> {
        self.native.borrow().clone()
    }

    /// Keeps the subscriber, which subscribes anew when the GCS restarts.
    pub fn set_subscriber(&self, subscriber: GcsSubscriber) {
        *self.subscriber.borrow_mut() = Some(subscriber);
    }

    /// Forgets what expired.
    pub fn expire(&self) {
        self.leases.borrow_mut().expire();
        self.give_up_unfetchable();
        self.forget_groups();
        self.settle_pins();
    }

    /// Workers bound to cores, where that was asked for.
    pub fn pinned_workers(&self) -> usize {
        let natives = self.native().map_or(0, |native| native.pinned_workers());
        self.pins.as_ref().map_or(0, |pins| pins.borrow().count()) + natives
    }

    /// Binds the workers of the native door, in the same places.
    pub fn pins_of_other_door(&self) -> Option<Pins> {
        self.pins.as_ref().map(|pins| pins.borrow().sibling())
    }

    fn settle_pins(&self) {
        let Some(pins) = &self.pins else { return };
        let (registry, starting) = (self.registry.borrow(), self.starting.borrow());
        pins.borrow_mut().settle(|worker| match (registry.get(worker).is_some(), starting.contains_key(worker)) {
            (true, _) => Doing::Up,
            (false, true) => Doing::Starting,
            (false, false) => Doing::Gone,
        });
    }

    /// The request to end.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    fn token(&self) -> Token {
        let mut waiters = self.waiters.borrow_mut();
        waiters.next += 1;
        Requester::Control.tag(waiters.next)
    }

    fn to_core(&self, shard: ShardId, message: ToCore) {
        self.cores[usize::from(shard)].send(message);
    }

    pub(super) fn to_cores(&self, message: impl Fn() -> ToCore) {
        self.cores.iter().for_each(|core| core.send(message()));
    }

    /// Waits until everything that the cores had to tell has been heard: they tell of leases a few milliseconds late.
    pub async fn catch_up(&self) {
        let mut waiting = Vec::with_capacity(self.cores.len());
        for shard in 0..self.shards() {
            let token = self.token();
            let (sender, receiver) = oneshot::channel();
            self.waiters.borrow_mut().caught_up.insert(token, sender);
            self.to_core(shard, ToCore::Flush { token });
            waiting.push(receiver);
        }
        for receiver in waiting {
            // A core that does not answer has died, which is told elsewhere.
            let _ = tokio::time::timeout(CATCH_UP_TIMEOUT, receiver).await;
        }
    }

    pub(super) fn sched(&self, shard: ShardId, event: SchedEvent) {
        // A returned lease frees resources without an answer.
        self.mark_resources_changed();
        self.to_core(shard, ToCore::Sched(event));
    }

    pub(super) fn sched_all(&self, event: SchedEvent) {
        for shard in 0..self.shards() {
            self.sched(shard, event.clone());
        }
    }

    pub(super) fn store(&self, id: &raylet_shard::ids::ObjectId, event: StoreEvent) {
        self.to_core(shard_of_object(id, self.shards()), ToCore::Store(event));
    }

    pub(super) fn send_frame(&self, conn: ClientId, frame: Vec<u8>) {
        if let Requester::Shard(shard) = Requester::of(conn) {
            self.to_core(shard, ToCore::Send { conn, frame });
        }
    }

    pub(super) fn close(&self, conn: ClientId) {
        if let Requester::Shard(shard) = Requester::of(conn) {
            self.to_core(shard, ToCore::Close { conn });
        }
    }

    /// Refuses a request where too many wait already.
    pub(super) fn admit(&self) -> Result<(), tonic::Status> {
        let waiters = self.waiters.borrow();
        let waiting = waiters.leases.len() + waiters.bundles.len();
        if waiting >= MAX_RPCS_IN_FLIGHT {
            return Err(tonic::Status::resource_exhausted(format!(
                "{waiting} requests wait on this node, which is its limit: retry later"
            )));
        }
        Ok(())
    }
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

/// Reads a lease id from a request.
pub(super) fn lease_id(bytes: &[u8]) -> Result<LeaseId, tonic::Status> {
    LeaseId::from_slice(bytes).ok_or_else(|| {
        tonic::Status::invalid_argument(format!("expected a lease id of {} bytes, got {}", LeaseId::LEN, bytes.len()))
    })
}
