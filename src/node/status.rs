//! The node's account of itself, for `raylet-uring status`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use raylet_tuning::placement::{nearest_first, PlacedDirectory};
use raylet_tuning::Segment;

use crate::bridge::{core_reports, CoreHandle, CoreReport};
use crate::engine::Engine;
use crate::native::control::NativeControl;
use crate::observe::histogram::Snapshot;
use crate::observe::status::{
    ArenaStatus, Door, LeaseCounts, NodeStatus, ObjectCounts, QueueStatus, ResourceStatus, ShardStatus, SocketStatus,
    SpillCounts, SpillStatus, TransferStatus, WorkerCounts,
};
use crate::peers::Peers;
use crate::ray::control::Control;
use crate::ray::resources::Names;

/// What does not change while the node runs.
#[derive(Clone)]
pub struct Facts {
    doors: Vec<Door>,
    placed: Vec<Option<u32>>,
    segments: Vec<Arc<Segment>>,
    spill: Vec<SpillStatus>,
    started: Instant,
    max_queued_creates: u64,
}

impl Facts {
    /// Of a running engine.
    pub fn of(engine: &Engine, doors: Vec<Door>) -> Self {
        Self {
            doors,
            placed: engine.placed.clone(),
            segments: engine.segments.clone(),
            spill: spill(engine),
            started: Instant::now(),
            max_queued_creates: engine.max_queued_creates,
        }
    }
}

/// Where each shard spills to first.
fn spill(engine: &Engine) -> Vec<SpillStatus> {
    let node_of = |pu: &Option<u32>| pu.and_then(|pu| engine.topology.numa_node_of(pu));
    let first: Vec<Vec<PathBuf>> = (engine.placed.iter())
        .map(|pu| nearest_first(&engine.spill_places, node_of(pu)))
        .map(|(mut directories, near)| {
            directories.truncate(near);
            directories
        })
        .collect();
    let status = |place: &PlacedDirectory| SpillStatus {
        path: place.path.clone(),
        disk: place.disk.clone(),
        numa_node: place.numa_node,
        shards: (0..first.len())
            .filter(|shard| first[*shard].contains(&place.path))
            .map(|shard| shard as u32)
            .collect(),
    };
    engine.spill_places.iter().map(status).collect()
}

/// The status of a node with Ray's door.
pub async fn of_ray(control: &Rc<Control>, facts: &Facts) -> NodeStatus {
    with_reports(control, facts).await.1
}

/// The same, with the accounts of the cores that it was made from.
pub async fn with_reports(control: &Rc<Control>, facts: &Facts) -> (Vec<CoreReport>, NodeStatus) {
    let reports = control.core_reports(false).await;
    let mut status = assemble(facts, &reports, control.recorder.borrow().snapshot());
    status.node_id = control.node_id.to_string();
    let (total, available) = control.named(&Control::resources_of(&reports));
    status.resources = total
        .into_iter()
        .map(|(name, total)| {
            let available = available.get(&name).copied().unwrap_or(0.0);
            (name, ResourceStatus { total, available })
        })
        .collect();
    status.transfer = control.transfer_status();
    status.clients = control.clients();
    status.workers.pinned = control.pinned_workers() as u64;
    status.workers.drivers = control.driver_count() as u64;
    status.sockets = control.addresses().into_iter().map(|(name, address)| SocketStatus { name, address }).collect();
    (reports, status)
}

/// What a node of its own tells of.
pub struct Own {
    /// Its cores.
    pub cores: Vec<CoreHandle>,
    /// Names of its resources.
    pub names: Rc<RefCell<Names>>,
    /// Its door.
    pub native: Rc<NativeControl>,
    /// Its peers, where it has any.
    pub peers: Option<Rc<Peers>>,
}

/// The status of a node of its own.
pub async fn of_cores(own: &Own, facts: &Facts) -> NodeStatus {
    let Own { cores, names, native, peers } = own;
    let reports = core_reports(cores, false).await;
    let mut status = assemble(facts, &reports, Snapshot::default());
    let names = names.borrow();
    for part in reports.iter().flat_map(|report| &report.sched.resources) {
        let resource = status.resources.entry(names.name(part.id).to_owned()).or_default();
        resource.total = part.total.to_f64();
        resource.available += part.free.to_f64();
    }
    status.node_id = native.node().to_string();
    status.workers.pinned = native.pinned_workers() as u64;
    let socket = native.socket().display().to_string();
    status.sockets = vec![SocketStatus { name: "native".to_owned(), address: socket }];
    if let Some(peers) = peers {
        status.sockets.push(SocketStatus { name: "peers".to_owned(), address: peers.address().to_string() });
        status.transfer = peers.transfer_status();
        status.peers = peers.status();
        status.peer_callers = peers.callers();
    }
    status
}

/// `latencies` are those of the control thread, to which the cores' are added.
fn assemble(facts: &Facts, reports: &[CoreReport], mut latencies: Snapshot) -> NodeStatus {
    for report in reports {
        latencies.merge(report.latencies.clone());
    }
    NodeStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        node_id: String::new(),
        uptime_s: facts.started.elapsed().as_secs_f64(),
        doors: facts.doors.clone(),
        cores: facts.placed.iter().flatten().copied().collect(),
        shards: reports.iter().map(|report| shard(facts, report)).collect(),
        arenas: arenas(facts, reports),
        spill: facts.spill.clone(),
        spilling: spilling(reports),
        leases: leases(reports),
        workers: workers(reports),
        objects: objects(reports),
        resources: BTreeMap::new(),
        operations: latencies.operations(),
        clients: Vec::new(),
        transfer: TransferStatus::default(),
        peers: Vec::new(),
        peer_callers: 0,
        sockets: Vec::new(),
    }
}

fn shard(facts: &Facts, report: &CoreReport) -> ShardStatus {
    let loads = &report.sched.loads;
    ShardStatus {
        index: u32::from(report.shard),
        core: facts.placed.get(usize::from(report.shard)).copied().flatten().unwrap_or(u32::MAX),
        connections: (report.connections + report.natives) as u64,
        leases_granted: loads.iter().map(|load| u64::from(load.granted)).sum(),
        leases_queued: loads.iter().map(|load| u64::from(load.ready + load.waiting_worker)).sum(),
        objects: report.store.objects,
        object_bytes: report.store.allocated_bytes,
        queues: vec![QueueStatus {
            name: "creates".to_owned(),
            depth: report.store.queued_creates,
            limit: facts.max_queued_creates,
            full_count: report.store.counters.queue_full,
        }],
    }
}

fn arenas(facts: &Facts, reports: &[CoreReport]) -> Vec<ArenaStatus> {
    let used = |segment: usize| reports.iter().filter_map(|report| report.allocated_bytes.get(segment)).sum();
    let arenas = facts.segments.iter().enumerate().map(|(index, segment)| {
        let report = segment.report();
        ArenaStatus {
            segment: index as u32,
            size_bytes: report.size_bytes,
            page_kind: report.pages.to_string(),
            asked: report.asked.to_string(),
            fallback_reason: report.fallback,
            numa_node: report.numa_node,
            numa_problem: report.numa_problem,
            numa_pages_on_node: report.numa_pages.map_or(0, |pages| pages.on_node),
            numa_pages_elsewhere: report.numa_pages.map_or(0, |pages| pages.elsewhere),
            touched_bytes: report.touched_bytes,
            used_bytes: used(index),
        }
    });
    arenas.collect()
}

fn spilling(reports: &[CoreReport]) -> SpillCounts {
    let mut counts = SpillCounts::default();
    for report in reports {
        let store = &report.store.counters;
        counts.on_disk_objects += store.on_disk.objects;
        counts.on_disk_bytes += store.on_disk.bytes;
        counts.writing_objects += store.spilling.objects;
        counts.restoring_objects += report.restoring.objects;
        counts.spilled_objects += store.spilled.objects;
        counts.spilled_bytes += store.spilled.bytes;
        counts.restored_objects += store.restored.objects;
        counts.restored_bytes += store.restored.bytes;
        counts.failures += store.spill_failures + store.restore_failures;
    }
    counts
}

fn leases(reports: &[CoreReport]) -> LeaseCounts {
    let loads = || reports.iter().flat_map(|report| &report.sched.loads);
    let waiting = |infeasible: bool| {
        let loads = loads().filter(move |load| load.infeasible == infeasible);
        loads.map(|load| u64::from(load.ready + load.waiting_worker)).sum()
    };
    LeaseCounts {
        granted: loads().map(|load| u64::from(load.granted)).sum(),
        queued: waiting(false),
        infeasible: waiting(true),
    }
}

fn workers(reports: &[CoreReport]) -> WorkerCounts {
    let mut counts = WorkerCounts::default();
    for workers in reports.iter().map(|report| &report.sched.workers) {
        counts.idle += u64::from(workers.idle);
        counts.starting += u64::from(workers.starting);
        counts.leased += u64::from(workers.leased);
        counts.total += u64::from(workers.idle + workers.starting + workers.leased + workers.leaving);
    }
    counts
}

fn objects(reports: &[CoreReport]) -> ObjectCounts {
    let mut counts = ObjectCounts::default();
    for store in reports.iter().map(|report| &report.store) {
        counts.count += store.objects;
        counts.sealed += store.objects - store.counters.unsealed.objects;
        counts.pinned += store.counters.pinned.objects;
        counts.bytes += store.allocated_bytes;
        counts.creates_queued += store.queued_creates;
    }
    counts
}

/// What a node of its own prints when it is up.
pub fn banner(facts: &Facts, admin: &Path, own: &Own) -> String {
    let mut lines = vec![format!("raylet-uring {} (pid {})", env!("CARGO_PKG_VERSION"), std::process::id())];
    for (shard, core) in facts.placed.iter().enumerate() {
        let place = core.map_or_else(|| "any core".to_owned(), |core| format!("core {core}"));
        lines.push(format!("  shard {shard}: {place}"));
    }
    for (index, segment) in facts.segments.iter().enumerate() {
        let report = segment.report();
        let node = report.numa_node.map_or_else(|| "any NUMA node".to_owned(), |node| format!("NUMA node {node}"));
        let fallback =
            report.fallback.map(|reason| format!(" (asked for {}: {reason})", report.asked)).unwrap_or_default();
        lines.push(format!("  arena {index}: {} MiB of {} on {node}{fallback}", report.size_bytes >> 20, report.pages));
    }
    lines.push(format!("  native socket: {}", own.native.socket().display()));
    if let Some(peers) = &own.peers {
        lines.push(format!("  peers are served at {}", peers.address()));
    }
    lines.push(format!("  admin socket: {}", admin.display()));
    lines.push("ready".to_owned());
    lines.join("\n")
}
