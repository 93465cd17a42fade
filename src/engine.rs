//! The part of a node that both doors share: memory segments, and a core thread per shard.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use glommio::{LocalExecutorBuilder, Placement};
use raylet_shard::ids::ShardId;
use raylet_shard::sched::{SchedConfig, SchedEvent, Scheduler};
use raylet_shard::store::{BankConfig, Layout, NodeMemory, SegmentSpec, SpanBank, Store, StoreConfig};
use raylet_transport::uring::{CoreRing, Doorbell, RingError};
use raylet_tuning::devices::{disks, nics};
use raylet_tuning::placement::{is_pinned, lane_shards, place_directories, place_shards, PlacedDirectory};
use raylet_tuning::{
    plan_arenas, ArenaPlan, CoreChoice, Host, PageChoice, Segment, SegmentRequest, Topology, TopologySource, Warmer,
};

use crate::bridge::{CoreHandle, ToControl, ToCore};
use crate::core_io;
use crate::core_loop::{Core, CoreParts, Memory, WarmReserve};
use crate::near::Nears;
use crate::observe::histogram::Recorder;
use crate::spill::files::FileSettings;
use crate::spill::memory::ArenaMemory;
use crate::spill::settings::SpillSettings;
use crate::spill::{SpillShared, Spills};
use crate::workers::pinning::Pins;

/// What the engine is built with.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// Cores that carry a shard each.
    pub cores: CoreChoice,
    /// Size of the object store in bytes.
    pub object_store_bytes: u64,
    /// Pages of the object store.
    pub pages: PageChoice,
    /// Bytes of the object store touched ahead of demand.
    pub warm_reserve_bytes: u64,
    /// How long a create waits for room before it fails, in nanoseconds.
    pub full_grace_ns: u64,
    /// Where and how objects are spilled; `None`: they are not.
    pub spill: Option<SpillSettings>,
    /// Where objects go that neither memory nor spilling has room for; `None`: their creation fails.
    pub fallback: Option<FileSettings>,
    /// Limits and times of the schedulers, by shard.
    pub scheds: fn(ShardId, ShardId, &SchedSettings) -> SchedConfig,
    /// What those are made from.
    pub sched: SchedSettings,
}

/// The node's settings of leases and workers.
#[derive(Clone, Debug, Default)]
pub struct SchedSettings {
    /// CPUs of the node.
    pub cpus: u32,
    /// Workers that are kept although idle, on all shards together.
    pub workers_soft_limit: u32,
    /// How long a worker above that may be idle, in nanoseconds.
    pub idle_timeout_ns: u64,
    /// Workers that start at the same time.
    pub startup_concurrency: u32,
    /// Hold back a class that has as many leases as the node has room for.
    pub class_cap: bool,
}

/// Why an engine can't start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The cores asked for can't be had.
    #[error(transparent)]
    Cores(#[from] raylet_tuning::CoresError),
    /// The machine can't be read.
    #[error("the machine's topology can't be read: {0}")]
    Topology(#[from] raylet_tuning::TopologyError),
    /// The memory can't be had.
    #[error(transparent)]
    Memory(#[from] raylet_tuning::ArenaError),
    /// The store is too small to be cut up.
    #[error("object store of {bytes} bytes: {reason}: raise --object-store-memory (Ray: --object_store_memory)")]
    Layout {
        /// Its size.
        bytes: u64,
        /// What is wrong.
        reason: String,
    },
    /// A core's thread can't start.
    #[error("the thread of core {core} can't start: {reason}; `raylet-uring doctor` says what io_uring lacks here (sysctl kernel.io_uring_disabled, a container's seccomp profile)")]
    Core {
        /// The hardware thread.
        core: u32,
        /// Why.
        reason: String,
    },
    /// A core can't wait for anything.
    #[error(transparent)]
    Ring(RingError),
    /// A helper thread can't start.
    #[error("the helper thread of the warm reserve can't start: {0}")]
    Warmer(io::Error),
}

/// A running engine.
pub struct Engine {
    /// To each core.
    pub cores: Vec<CoreHandle>,
    /// From all cores.
    pub from_cores: flume::Receiver<ToControl>,
    /// The hardware thread of each shard; `None` where the kernel chooses.
    pub placed: Vec<Option<u32>>,
    /// The machine.
    pub topology: Topology,
    /// The memory of all objects.
    pub segments: Vec<Arc<Segment>>,
    /// What the cores share of spilling: the files of objects beside the store too.
    pub spill_shared: Arc<SpillShared>,
    /// Where local clients are.
    pub nears: Nears,
    /// Directories for spilled objects, on their disks.
    pub spill_places: Vec<PlacedDirectory>,
    /// The shards that carry lanes to other nodes: those beside the fastest network card.
    pub lane_shards: Vec<usize>,
    /// Bytes that objects can take.
    pub capacity_bytes: u64,
    /// Creates of one shard that may wait for memory.
    pub max_queued_creates: u64,
    warmer: Option<Arc<Warmer>>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Makes the memory, starts the cores, and returns once they run.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn start(settings: &EngineSettings) -> Result<Self, EngineError> {
        let topology = Topology::discover()?;
        let cores = settings.cores.resolve(&topology)?;
        let pinned = is_pinned(&settings.cores, &topology);
        let shards = cores.len() as ShardId;
        let segments =
            make_segments(settings, &plan_arenas(&topology, &settings.cores, &cores, settings.object_store_bytes))?;
        let layout = make_layout(&segments, shards)?;
        let warmer = (settings.warm_reserve_bytes > 0)
            .then(|| Warmer::start(segments.clone(), settings.warm_reserve_bytes))
            .transpose()
            .map_err(EngineError::Warmer)?
            .map(Arc::new);
        let (to_control, from_cores) = flume::unbounded();
        let started = Instant::now();
        let mut inboxes = Vec::new();
        let mut handles = Vec::new();
        for _ in &cores {
            let (sender, inbox) = flume::unbounded();
            let doorbell = Doorbell::new().map_err(EngineError::Ring)?;
            handles.push(CoreHandle::new(sender, doorbell.clone()));
            inboxes.push((inbox, doorbell));
        }
        let spill_shared = Arc::new(SpillShared::new(shards));
        let spill_places = place_spill(settings, &topology);
        let placed: Vec<Option<u32>> = cores.iter().map(|core| pinned.then_some(*core)).collect();
        let mut engine = Engine {
            cores: handles,
            from_cores,
            lane_shards: beside_cards(&topology, &placed),
            placed,
            topology: topology.clone(),
            spill_shared: spill_shared.clone(),
            nears: Nears::new(&topology, &segments),
            spill_places: spill_places.clone(),
            capacity_bytes: layout.capacity_bytes(),
            max_queued_creates: store_config(settings, &layout, shards).max_queued_creates as u64,
            segments: segments.clone(),
            warmer: warmer.clone(),
            threads: Vec::new(),
        };
        let mut ready = Vec::new();
        for (shard, (core, (inbox, doorbell))) in cores.iter().zip(inboxes).enumerate() {
            let (ready_sender, ready_receiver) = flume::bounded(1);
            let seed = CoreSeed {
                shard: shard as ShardId,
                shards,
                started,
                segments: segments.clone().into(),
                store: StoreConfig {
                    home_segment: home_segment(&topology, &segments, *core),
                    ..store_config(settings, &layout, shards)
                },
                spill: settings.spill.as_ref().map(|spill| {
                    let node = pinned.then(|| topology.numa_node_of(*core)).flatten();
                    spill.near(&spill_places, node)
                }),
                fallback: settings.fallback.clone(),
                spill_shared: spill_shared.clone(),
                sched: (settings.scheds)(shard as ShardId, shards, &settings.sched),
                to_control: to_control.clone(),
                warm: warmer.clone().map(|warmer| WarmReserve::new(warmer, settings.warm_reserve_bytes)),
                inbox,
                doorbell,
                peers: engine.cores.clone(),
                ready: ready_sender,
            };
            let placement = if pinned { Placement::Fixed(*core as usize) } else { Placement::Unbound };
            let thread = std::thread::Builder::new()
                .name(format!("core-{shard}"))
                .spawn(move || run_core(placement, seed))
                .map_err(|e| EngineError::Core { core: *core, reason: e.to_string() })?;
            engine.threads.push(thread);
            ready.push((*core, ready_receiver));
        }
        for (core, ready) in ready {
            let outcome = ready.recv().unwrap_or_else(|_| Err("the thread ended".to_owned()));
            outcome.map_err(|reason| EngineError::Core { core, reason })?;
        }
        Ok(engine)
    }

    /// What binds leased workers to the cores of their shards; `None` where it is not wanted, or would mean nothing.
    pub fn pins(&self, wanted: bool) -> Option<Pins> {
        wanted.then(|| Pins::new(&self.topology, &self.placed, self.nears.clone())).flatten()
    }

    /// Tells every core.
    pub fn tell_all(&self, event: &SchedEvent) {
        for core in &self.cores {
            core.send(ToCore::Sched(event.clone()));
        }
    }

    /// Ends the cores and waits for them.
    pub fn stop(self) {
        for core in &self.cores {
            core.send(ToCore::Stop);
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("the thread of a core panicked");
            }
        }
        // The cores are gone, so this is the last one who holds the helper.
        if let Some(warmer) = self.warmer.and_then(Arc::into_inner) {
            warmer.stop();
        }
    }
}

/// Makes the segments that were planned, in their order.
fn make_segments(settings: &EngineSettings, plans: &[ArenaPlan]) -> Result<Vec<Arc<Segment>>, EngineError> {
    let mut segments = Vec::with_capacity(plans.len());
    for plan in plans {
        let segment = Segment::create(&SegmentRequest {
            name: "raylet-uring-plasma".to_owned(),
            size_bytes: plan.size_bytes,
            numa_node: plan.numa_node,
            pages: settings.pages,
        })?;
        let report = segment.report();
        match &report.fallback {
            Some(reason) => {
                tracing::warn!(pages = %report.pages, asked = %report.asked, reason, "object store: other pages than asked for")
            }
            None => {
                tracing::info!(pages = %report.pages, asked = %report.asked, size_bytes = report.size_bytes, "object store")
            }
        }
        segments.push(Arc::new(segment));
    }
    Ok(segments)
}

fn make_layout(segments: &[Arc<Segment>], shards: ShardId) -> Result<Layout, EngineError> {
    let bytes: u64 = segments.iter().map(|segment| segment.size_bytes()).sum();
    let specs: Vec<SegmentSpec> = segments
        .iter()
        .map(|segment| SegmentSpec { bytes: segment.size_bytes(), numa_node: segment.numa_node().unwrap_or(0) })
        .collect();
    let span_bytes = Layout::span_bytes_for(bytes, shards);
    Layout::new(&specs, span_bytes).map_err(|e| EngineError::Layout { bytes, reason: e.to_string() })
}

fn home_segment(topology: &Topology, segments: &[Arc<Segment>], core: u32) -> u32 {
    let node = topology.numa_node_of(core);
    segments.iter().position(|segment| segment.numa_node() == node).unwrap_or(0) as u32
}

/// The directories for spilled objects. Of a machine that hwloc was told about no disks are known.
fn place_spill(settings: &EngineSettings, topology: &Topology) -> Vec<PlacedDirectory> {
    let Some(spill) = &settings.spill else {
        return Vec::new();
    };
    let has_files = topology.source != TopologySource::HwlocSynthetic;
    let disks = if has_files { disks(&Host::this()) } else { Vec::new() };
    place_directories(&disks, &spill.directories)
}

/// The shards that carry lanes to other nodes. Of a machine that hwloc was told about no cards are known.
fn beside_cards(topology: &Topology, placed: &[Option<u32>]) -> Vec<usize> {
    let has_files = topology.source != TopologySource::HwlocSynthetic;
    let cards = if has_files { nics(&Host::this()) } else { Vec::new() };
    let shards = lane_shards(&place_shards(topology, placed), &cards);
    shards.into_iter().map(|shard| shard as usize).collect()
}

fn store_config(settings: &EngineSettings, layout: &Layout, shards: ShardId) -> StoreConfig {
    let spill = settings.spill.as_ref().map(|spill| spill.store(layout.capacity_bytes()));
    let fallback = settings.fallback.is_some();
    StoreConfig { full_grace_ns: settings.full_grace_ns, fallback, spill, ..StoreConfig::new(layout.clone(), shards) }
}

/// What a core's thread starts from.
struct CoreSeed {
    shard: ShardId,
    shards: ShardId,
    started: Instant,
    segments: Arc<[Arc<Segment>]>,
    store: StoreConfig,
    spill: Option<SpillSettings>,
    fallback: Option<FileSettings>,
    spill_shared: Arc<SpillShared>,
    sched: SchedConfig,
    to_control: flume::Sender<ToControl>,
    warm: Option<WarmReserve>,
    inbox: flume::Receiver<ToCore>,
    doorbell: Arc<Doorbell>,
    peers: Vec<CoreHandle>,
    ready: flume::Sender<Result<(), String>>,
}

/// A core reads and writes files by a ring of its own, so glommio is to set nothing aside for that.
fn executor(placement: Placement, shard: ShardId) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(placement).name(&format!("core-{shard}")).io_memory(0)
}

fn run_core(placement: Placement, seed: CoreSeed) {
    let (shard, to_control, ready) = (seed.shard, seed.to_control.clone(), seed.ready.clone());
    let executor = match executor(placement, shard).make() {
        Ok(executor) => executor,
        Err(e) => {
            // Whoever started the core waits for this.
            let _ = ready.send(Err(e.to_string()));
            return;
        }
    };
    // A core that panics takes the node down in order, with its workers told, instead of leaving it deaf.
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| executor.run(core_main(seed))));
    if let Err(error) = ended.unwrap_or_else(|_| Err("it panicked; the log says where".to_owned())) {
        let _ = ready.try_send(Err(error.clone()));
        let _ = to_control.send(ToControl::Failed { shard, error });
    }
}

async fn core_main(seed: CoreSeed) -> Result<(), String> {
    let ring = CoreRing::new(seed.doorbell).map_err(|e| e.to_string())?;
    let store = Store::new(seed.store.clone());
    let memory = match seed.shard {
        0 => {
            let bank = SpanBank::new(BankConfig::new(seed.store.segments.clone(), seed.shards));
            let bank = bank.ok_or_else(|| format!("{} shards are more than a node can have", seed.shards))?;
            Memory::Home(Box::new(NodeMemory::new(store, bank, 0)))
        }
        _ => Memory::Away(Box::new(store)),
    };
    let segments = seed.segments.iter().cloned().map(ArenaMemory).collect();
    let spills = Spills::new(seed.shard, seed.spill.as_ref(), segments, seed.spill_shared, seed.fallback);
    let core = Core::new(CoreParts {
        spills,
        shard: seed.shard,
        shards: seed.shards,
        started: seed.started,
        segments: seed.segments,
        memory,
        sched: Scheduler::new(seed.sched),
        to_control: seed.to_control,
        warm: seed.warm,
        peers: seed.peers,
        recorder: Recorder::new(),
    });
    core.tick();
    // Whoever started the core waits for this.
    let _ = seed.ready.send(Ok(()));
    core_io::run(&core, ring, seed.inbox).await
}
