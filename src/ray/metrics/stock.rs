//! The metrics that a stock raylet of Ray 2.60 reports: same names, same labels, same units.

use std::time::Duration;

use raylet_shard::store::{ObjectSource, Tally};

use super::{is_empty, Losses, Occupation, Receipts, View, REGISTER_BOUNDS_MS};
use crate::observe::metrics::{Added, Batch, Labels};
use crate::ray::rpc::meter::TIME_BOUNDS_MS;
use crate::spill::SpillReport;

/// Upper bounds in bytes of the object sizes that are counted (Ray 2.60: `object_store_dist`): 32 MiB doubled to 16 GiB.
pub const SIZE_BOUNDS_BYTES: [f64; 10] = {
    let mut bounds = [0.0; 10];
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = ((32u64 << 20) << i) as f64;
        i += 1;
    }
    bounds
};

/// Sizes of the objects that were ever sealed on a shard or node, by [`ObjectSource`] as a number.
pub type SizeCounts = [Added<{ SIZE_BOUNDS_BYTES.len() + 1 }>; ObjectSource::COUNT];

/// Name of the control thread's event loop, under the name that the stock raylet's has.
const EVENT_LOOP: &str = "raylet_main_io_context";

/// The resource that stands for the object store.
const STORE_RESOURCE: &str = "object_store_memory";

/// Sizes that the agent has been told.
#[derive(Clone, Default)]
pub struct SealedSizes(Option<SizeCounts>);

/// Adds all but the sizes of objects.
pub(super) fn add(batch: &mut Batch, view: &View<'_>, receipts: &mut Receipts) {
    resources(batch, view);
    scheduler(batch, view);
    store(batch, view);
    workers(batch, view, receipts);
    rpcs(batch, view, receipts);
    batch.gauge(
        "io_context_event_loop_lag_ms",
        "The latency of a task from post to execution",
        [(&[("Name", EVENT_LOOP)][..], view.lag.as_secs_f64() * 1000.0)],
    );
}

fn plain(batch: &mut Batch, name: &str, description: &str, value: f64) {
    batch.gauge(name, description, [(&[][..], value)]);
}

/// Values of a metric with one label.
fn labelled<const N: usize>(batch: &mut Batch, name: &str, description: &str, key: &str, values: [(&str, f64); N]) {
    let labels = values.map(|(text, _)| [(key, text)]);
    let values = labels.iter().zip(values).map(|(labels, (_, value))| (&labels[..], value));
    batch.gauge(name, description, values);
}

fn resources(batch: &mut Batch, view: &View<'_>) {
    let mut values = Vec::with_capacity(2 * view.status.resources.len());
    for (name, resource) in view.status.resources.iter().filter(|(name, _)| is_of_users(name)) {
        let used = match name.as_str() {
            // As in Ray 2.60 (scheduler_report_pinned_bytes_only): what can't be dropped is what is used.
            STORE_RESOURCE => pinned(view).1,
            _ => resource.total - resource.available,
        };
        values.push(([("Name", name.as_str()), ("State", "AVAILABLE")], resource.total - used));
        values.push(([("Name", name.as_str()), ("State", "USED")], used));
    }
    let values = values.iter().map(|(labels, value)| (&labels[..], *value));
    batch.gauge("resources", "Logical resources of the node, by state: AVAILABLE or USED", values);
}

/// As in Ray 2.60: neither the names of nodes, which serve affinity, nor the shares of placement groups, which are part of
/// the resource that they were taken from.
fn is_of_users(name: &str) -> bool {
    !name.starts_with("node:") && !name.contains("_group_")
}

/// Objects pinned for their owners: how many, and their bytes.
fn pinned(view: &View<'_>) -> (f64, f64) {
    let tallies = view.reports.iter().map(|report| report.store.counters.pinned);
    tallies.fold((0.0, 0.0), |sum, tally| (sum.0 + tally.objects as f64, sum.1 + tally.bytes as f64))
}

fn scheduler(batch: &mut Batch, view: &View<'_>) {
    let loads = || view.reports.iter().flat_map(|report| &report.sched.loads);
    let sum = |of: fn(&crate::bridge::Load) -> u32| loads().map(|load| f64::from(of(load))).sum::<f64>();
    let feasible = sum(|load| if load.infeasible { 0 } else { load.ready });
    let infeasible = sum(|load| if load.infeasible { load.ready + load.waiting_worker } else { 0 });
    let waiting_worker = sum(|load| if load.infeasible { 0 } else { load.waiting_worker });
    labelled(
        batch,
        "scheduler_tasks",
        "Lease requests on this node: for objects (Waiting), for resources or a worker (Dispatched), granted (Executing)",
        "State",
        [
            ("Waiting", sum(|load| load.waiting_deps)),
            ("Dispatched", feasible + waiting_worker),
            ("Executing", sum(|load| load.granted)),
        ],
    );
    labelled(
        batch,
        "scheduler_unscheduleable_tasks",
        "Lease requests that can't be granted now, by what they lack",
        "Reason",
        [("Infeasible", infeasible), ("WaitingForResources", feasible), ("WaitingForWorkers", waiting_worker)],
    );
    let counters = &view.control.counters;
    labelled(
        batch,
        "scheduler_failed_worker_startup_total",
        "Workers that did not come up, by reason",
        "Reason",
        [
            ("JobConfigMissing", counters.starts_without_job.total() as f64),
            ("RegistrationTimedOut", counters.starts_timed_out.total() as f64),
        ],
    );
    let classes = loads().filter(|load| load.infeasible && load.ready + load.waiting_worker > 0).count();
    plain(
        batch,
        "internal_num_infeasible_scheduling_classes",
        "Kinds of lease requests that this node can never grant",
        classes as f64,
    );
    plain(
        batch,
        "internal_num_spilled_tasks",
        "Lease requests that this node has sent to others since its start",
        counters.leases_spilled.total() as f64,
    );
}

fn store(batch: &mut Batch, view: &View<'_>) {
    let stores = || view.reports.iter().map(|report| &report.store);
    let objects: u64 = stores().map(|store| store.objects).sum();
    let used: u64 = stores().map(|store| store.allocated_bytes).sum();
    let all: u64 = stores().flat_map(|store| store.counters.by_source).map(|tally| tally.bytes).sum();
    let unsealed: u64 = stores().map(|store| store.counters.unsealed.bytes).sum();
    let on_disk: u64 = stores().map(|store| store.counters.fallback.bytes).sum();
    let size = view.control.flags.object_store_memory_bytes;
    plain(
        batch,
        "object_store_available_memory",
        "Bytes of the object store that are free",
        size.saturating_sub(used) as f64,
    );
    plain(batch, "object_store_used_memory", "Bytes of the object store that are taken", used as f64);
    plain(batch, "object_store_fallback_memory", "Bytes of objects in files on disk", on_disk as f64);
    plain(batch, "object_store_num_local_objects", "Objects in the object store", objects as f64);
    let state = |location, state| [("Location", location), ("ObjectState", state)];
    let sealed = all.saturating_sub(unsealed + on_disk);
    let places = [
        (state("MMAP_SHM", "SEALED"), sealed),
        (state("MMAP_SHM", "UNSEALED"), unsealed),
        (state("MMAP_DISK", "SEALED"), on_disk),
        (state("SPILLED", "SEALED"), stores().map(|store| store.counters.on_disk.bytes).sum()),
    ];
    let values = places.iter().map(|(labels, bytes)| (&labels[..], *bytes as f64));
    batch.gauge("object_store_memory", "Bytes of objects on this node, by place and state", values);
    spilling(batch, view);
}

fn spilling(batch: &mut Batch, view: &View<'_>) {
    let sum = |of: fn(&crate::bridge::CoreReport) -> Tally| {
        let tallies = view.reports.iter().map(of);
        tallies.fold((0.0, 0.0), |sum, tally| (sum.0 + tally.objects as f64, sum.1 + tally.bytes as f64))
    };
    let seconds = |of: fn(&SpillReport) -> Duration| view.reports.iter().map(|r| of(&r.spill).as_secs_f64()).sum();
    let (pinned_objects, pinned_bytes) = pinned(view);
    let (writing, writing_bytes) = sum(|report| report.store.counters.spilling);
    let (reading, _) = sum(|report| report.restoring);
    let (spilled, spilled_bytes) = sum(|report| report.store.counters.spilled);
    let (restored, restored_bytes) = sum(|report| report.store.counters.restored);
    labelled(
        batch,
        "spill_manager_objects",
        "Objects kept for their owners in memory, being spilled, being restored",
        "State",
        [("Pinned", pinned_objects), ("PendingRestore", reading), ("PendingSpill", writing)],
    );
    labelled(
        batch,
        "spill_manager_objects_bytes",
        "Bytes of objects kept for their owners in memory, being spilled, ever spilled, ever restored",
        "State",
        [
            ("Pinned", pinned_bytes),
            ("PendingSpill", writing_bytes),
            ("Spilled", spilled_bytes),
            ("Restored", restored_bytes),
        ],
    );
    labelled(
        batch,
        "spill_manager_request_total",
        "Objects spilled and restored since the start",
        "Type",
        [("Spilled", spilled), ("Restored", restored)],
    );
    let rate = |bytes: f64, seconds: f64| if seconds > 0.0 { bytes / seconds / f64::from(1 << 20) } else { 0.0 };
    labelled(
        batch,
        "spill_manager_throughput_mb",
        "MiB per second of spilling and restoring, while there was some",
        "Type",
        [
            ("Spilled", rate(spilled_bytes, seconds(|spill| spill.writing))),
            ("Restored", rate(restored_bytes, seconds(|spill| spill.reading))),
        ],
    );
}

fn workers(batch: &mut Batch, view: &View<'_>, receipts: &mut Receipts) {
    let control = view.control;
    // The stock raylet sends totals here, which its agent adds up at each report; the change since the last report makes
    // the agent's figure the total that the name promises.
    let started = receipts.counter(control, |counters| &counters.processes_started);
    batch.change("internal_num_processes_started", "Worker processes started", [(&[][..], started)]);
    let cached = receipts.counter(control, |counters| &counters.grants_from_cache);
    batch.change(
        "internal_num_processes_started_from_cache",
        "Leases granted to a worker that had served before",
        [(&[][..], cached)],
    );
    let times = control.counters.register_times_ms.unreported();
    if !is_empty(&times) {
        batch.histogram(
            "worker_register_time_ms",
            "Milliseconds from the start of a worker process to its registration",
            &REGISTER_BOUNDS_MS,
            [(&[][..], times.clone())],
        );
        receipts.push(move |control| control.counters.register_times_ms.note_reported(&times));
    }
    losses(
        batch,
        receipts,
        "memory_manager_worker_eviction",
        "Workers ended because the node ran short of memory, by kind and name",
        &control.counters.evictions,
        |occupation| match occupation {
            Occupation::Actor => "MemoryManager.ActorEviction.Total",
            Occupation::Task => "MemoryManager.TaskEviction.Total",
            Occupation::Driver => "MemoryManager.DriverEviction.Total",
            Occupation::Idle => "MemoryManager.IdleWorkerEviction.Total",
        },
    );
    losses(
        batch,
        receipts,
        "node_manager_unexpected_worker_failure",
        "Workers that ended without having been meant to (exit type SYSTEM_ERROR), by kind and name",
        &control.counters.failures,
        |occupation| match occupation {
            Occupation::Actor => "Raylet.UnexpectedActorFailure.Total",
            Occupation::Task => "Raylet.UnexpectedTaskFailure.Total",
            Occupation::Driver => "Raylet.UnexpectedDriverFailure.Total",
            Occupation::Idle => "Raylet.UnexpectedIdleWorkerFailure.Total",
        },
    );
}

/// `kind` gives the label `Type`.
fn losses(
    batch: &mut Batch,
    receipts: &mut Receipts,
    name: &str,
    description: &str,
    losses: &Losses,
    kind: fn(Occupation) -> &'static str,
) {
    let new: Vec<_> = losses.counts().into_iter().filter(|(_, counter)| counter.unreported() > 0).collect();
    let labels: Vec<_> = new.iter().map(|((what, name), _)| [("Type", kind(*what)), ("Name", name.as_str())]).collect();
    let values = labels.iter().zip(&new).map(|(labels, (_, counter))| (&labels[..], counter.unreported()));
    batch.count(name, description, values);
    for (_, counter) in new {
        let events = counter.unreported();
        receipts.push(move |_| counter.note_reported(events));
    }
}

fn rpcs(batch: &mut Batch, view: &View<'_>, receipts: &mut Receipts) {
    let called = view.control.counters.meters.called();
    let labels: Vec<_> = called.iter().map(|(name, _)| [("Method", name.as_str())]).collect();
    let mut count = |name, description, of: fn(&crate::ray::rpc::meter::Meter) -> &crate::observe::metrics::Counter| {
        let events: Vec<u64> = called.iter().map(|(_, meter)| of(meter).unreported()).collect();
        let values = labels.iter().zip(&events).filter(|(_, events)| **events > 0);
        batch.count(name, description, values.map(|(labels, events)| (&labels[..], *events)));
        for ((_, meter), events) in called.iter().zip(events) {
            let meter = meter.clone();
            receipts.push(move |_| of(&meter).note_reported(events));
        }
    };
    count("grpc_server_req_new", "gRPC calls that came in", |meter| &meter.started);
    count("grpc_server_req_handling", "gRPC calls whose handling began", |meter| &meter.started);
    count("grpc_server_req_finished", "gRPC calls that ended", |meter| &meter.finished);
    count("grpc_server_req_succeeded", "gRPC calls that ended with a reply", |meter| &meter.succeeded);
    count("grpc_server_req_failed", "gRPC calls that ended with an error", |meter| &meter.failed);
    let times: Vec<_> = called.iter().map(|(_, meter)| meter.times_ms.unreported()).collect();
    let values = labels.iter().zip(&times).filter(|(_, times)| !is_empty(times));
    batch.histogram(
        "grpc_server_req_process_time_ms",
        "Milliseconds from a gRPC call to its end",
        &TIME_BOUNDS_MS,
        values.map(|(labels, times)| (&labels[..], times.clone())),
    );
    for ((_, meter), times) in called.into_iter().zip(times) {
        receipts.push(move |_| meter.times_ms.note_reported(&times));
    }
}

/// Adds the sizes of the objects sealed since the last report. Returns what the agent knows once it has this one.
pub(super) fn add_sealed_sizes(batch: &mut Batch, view: &View<'_>, told: &SealedSizes) -> SealedSizes {
    let now: SizeCounts = std::array::from_fn(|source| total(view.reports.iter().map(|r| &r.sealed_sizes[source])));
    let added: Vec<(Labels<'_>, _)> = SOURCES
        .iter()
        .zip(&now)
        .enumerate()
        .map(|(source, (labels, now))| (&labels[..], minus(now, told.0.as_ref().map(|told| &told[source]))))
        .filter(|(_, added)| !is_empty(added))
        .collect();
    batch.histogram(
        "object_store_dist",
        "Sizes in bytes of the objects that were sealed here",
        &SIZE_BOUNDS_BYTES,
        added,
    );
    SealedSizes(Some(now))
}

/// The label `Source`, in the order of [`ObjectSource`].
const SOURCES: [[(&str, &str); 1]; ObjectSource::COUNT] = [
    [("Source", "CreatedByWorker")],
    [("Source", "RestoredFromStorage")],
    [("Source", "ReceivedFromRemoteRaylet")],
    [("Source", "ErrorStoredByRaylet")],
];

fn total<'a, const N: usize>(parts: impl Iterator<Item = &'a Added<N>>) -> Added<N> {
    parts.fold(Added { counts: [0; N], sum: 0.0 }, |sum, part| Added {
        counts: std::array::from_fn(|i| sum.counts[i] + part.counts[i]),
        sum: sum.sum + part.sum,
    })
}

/// What was added since it was told.
pub(super) fn minus<const N: usize>(now: &Added<N>, told: Option<&Added<N>>) -> Added<N> {
    match told {
        None => now.clone(),
        Some(told) => Added {
            counts: std::array::from_fn(|i| now.counts[i].saturating_sub(told.counts[i])),
            sum: now.sum - told.sum,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_and_shares_of_groups_are_left_out() {
        let left_out = ["node:192.0.2.2", "node:__internal_head__", "CPU_group_0_0123abcd", "bundle_group_0123abcd"];
        assert!(left_out.iter().all(|name| !is_of_users(name)));
        assert!(["CPU", "object_store_memory", "slot"].iter().all(|name| is_of_users(name)));
    }

    #[test]
    fn the_size_bounds_are_those_of_ray() {
        assert_eq!(SIZE_BOUNDS_BYTES[0], 33_554_432.0);
        assert_eq!(SIZE_BOUNDS_BYTES[9], 17_179_869_184.0);
    }

    #[test]
    fn what_was_told_is_not_told_again() {
        let one = Added { counts: [1, 0, 2], sum: 7.0 };
        let two = Added { counts: [1, 4, 2], sum: 27.0 };
        assert_eq!(total([&one, &two].into_iter()), Added { counts: [2, 4, 4], sum: 34.0 });
        assert_eq!(minus(&two, Some(&one)), Added { counts: [0, 4, 0], sum: 20.0 });
        assert_eq!(minus(&two, None), two);
        assert!(is_empty(&minus(&two, Some(&two))));
    }
}
