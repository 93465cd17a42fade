//! Metrics that only this node service has, as `raylet_uring_*`: what each shard does, the pages under the object
//! store, latencies.

use std::collections::BTreeMap;

use raylet_shard::ids::ShardId;

use super::is_empty;
use super::stock::minus;
use crate::bridge::CoreReport;
use crate::observe::figures;
use crate::observe::histogram::Snapshot;
use crate::observe::metrics::{Added, Batch};
use crate::observe::status::NodeStatus;

/// Upper ends of the buckets of latencies, in microseconds.
pub const LATENCY_BOUNDS_US: [f64; 18] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6, 1e7];
const LATENCY_BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;

/// What was counted when the agent last took a report. It adds up what it is told, so it is told the difference.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    latencies: BTreeMap<&'static str, Added<LATENCY_BUCKETS>>,
    rings: BTreeMap<ShardId, (u64, u64)>,
}

/// Adds them all. `latencies` are those of the control thread. Returns what is told when the agent takes the report.
pub(super) fn add(
    batch: &mut Batch,
    status: &NodeStatus,
    reports: &[CoreReport],
    latencies: Snapshot,
    told: &Told,
) -> Told {
    shards(batch, reports);
    figures::of(status).iter().for_each(|figure| figure.add_to(batch));
    Told { latencies: histograms(batch, reports, latencies, told), rings: rings(batch, reports, told) }
}

fn histograms(
    batch: &mut Batch,
    reports: &[CoreReport],
    mut all: Snapshot,
    told: &Told,
) -> BTreeMap<&'static str, Added<LATENCY_BUCKETS>> {
    reports.iter().for_each(|report| all.merge(report.latencies.clone()));
    let now: BTreeMap<&'static str, Added<LATENCY_BUCKETS>> = all.buckets(&LATENCY_BOUNDS_US).into_iter().collect();
    let added =
        now.iter().map(|(operation, now)| ([("Operation", *operation)], minus(now, told.latencies.get(operation))));
    let added: Vec<_> = added.filter(|(_, added)| !is_empty(added)).collect();
    let description = "Latency of an operation, in microseconds";
    let values = added.iter().map(|(labels, added)| (&labels[..], added.clone()));
    batch.histogram("raylet_uring_operation_latency_us", description, &LATENCY_BOUNDS_US, values);
    now
}

fn rings(batch: &mut Batch, reports: &[CoreReport], told: &Told) -> BTreeMap<ShardId, (u64, u64)> {
    let names: Vec<String> = reports.iter().map(|report| report.shard.to_string()).collect();
    let labels: Vec<[(&str, &str); 1]> = names.iter().map(|shard| [("Shard", shard.as_str())]).collect();
    let before = |report: &CoreReport| told.rings.get(&report.shard).copied().unwrap_or_default();
    let rows = || labels.iter().map(|labels| &labels[..]).zip(reports);
    let depth = rows().map(|(labels, report)| (labels, report.ring.deepest as f64));
    let description = "Most completions that a core found in its ring at once since the last report";
    batch.gauge("raylet_uring_ring_depth", description, depth);
    let rounds = rows().map(|(labels, report)| (labels, report.ring.rounds.saturating_sub(before(report).0)));
    batch.count("raylet_uring_ring_rounds_total", "Rounds of a core's loop; each looks into its ring once", rounds);
    let found = rows().map(|(labels, report)| (labels, report.ring.completions.saturating_sub(before(report).1)));
    batch.count("raylet_uring_ring_completions_total", "Completions that a core found in its ring", found);
    reports.iter().map(|report| (report.shard, (report.ring.rounds, report.ring.completions))).collect()
}

fn shards(batch: &mut Batch, reports: &[CoreReport]) {
    let names: Vec<String> = reports.iter().map(|report| report.shard.to_string()).collect();
    let mut by_shard = |metric: &str, description: &str, key: &str, of: fn(&CoreReport) -> Vec<(&'static str, f64)>| {
        let values = names.iter().zip(reports).flat_map(|(shard, report)| {
            of(report).into_iter().map(move |(text, value)| ([("Shard", shard.as_str()), (key, text)], value))
        });
        let values: Vec<_> = values.collect();
        batch.gauge(metric, description, values.iter().map(|(labels, value)| (&labels[..], *value)));
    };
    by_shard("raylet_uring_shard_queue_depth", "Entries of a shard's queue", "Queue", queues);
    by_shard("raylet_uring_shard_workers", "Workers of a shard, by state", "State", |report| {
        let workers = report.sched.workers;
        [
            ("idle", workers.idle),
            ("leased", workers.leased),
            ("starting", workers.starting),
            ("leaving", workers.leaving),
        ]
        .map(|(state, count)| (state, f64::from(count)))
        .to_vec()
    });
    by_shard(
        "raylet_uring_shard_store_bytes",
        "Bytes of the object store in a shard's hands, by state",
        "State",
        |report| {
            let store = &report.store;
            [
                ("held", store.held_bytes),
                ("allocated", store.allocated_bytes),
                ("free", store.free_bytes),
                ("pinned", store.counters.pinned.bytes),
                ("kept", store.counters.kept.bytes),
                ("in_use", store.counters.in_use.bytes),
                ("evictable", store.evictable_bytes),
            ]
            .map(|(state, bytes)| (state, bytes as f64))
            .to_vec()
        },
    );
    by_shard("raylet_uring_shard_store_total", "Events of a shard's object store since the start", "Event", |report| {
        let counters = &report.store.counters;
        [
            ("created", counters.created.objects),
            ("evicted", counters.evicted.objects),
            ("out_of_memory", counters.out_of_memory),
            ("queue_full", counters.queue_full),
        ]
        .map(|(event, count)| (event, count as f64))
        .to_vec()
    });
}

fn queues(report: &CoreReport) -> Vec<(&'static str, f64)> {
    let loads = &report.sched.loads;
    let sum = |of: fn(&crate::bridge::Load) -> u32| loads.iter().map(|load| f64::from(of(load))).sum();
    vec![
        ("leases_wait_for_objects", sum(|load| load.waiting_deps)),
        ("leases_wait_for_resources", sum(|load| load.ready)),
        ("leases_wait_for_worker", sum(|load| load.waiting_worker)),
        ("creates", report.store.queued_creates as f64),
        ("object_waiters", report.store.waiters as f64),
        ("connections", report.connections as f64),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::histogram::{Operation, Recorder};
    use crate::observe::status::{ArenaStatus, OperationStatus, TransferStatus};
    use crate::ray::proto::otlp::{Metric, MetricData, NumberDataPoint};

    fn values(metric: &Metric) -> Vec<(Vec<String>, f64)> {
        let text = |point: &NumberDataPoint| {
            let of =
                |label: &crate::ray::proto::otlp::KeyValue| label.value.clone().and_then(|v| v.string_value).unwrap();
            (point.attributes.iter().map(of).collect(), point.as_double.unwrap())
        };
        match &metric.data {
            Some(MetricData::Gauge(gauge)) => gauge.data_points.iter().map(text).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arenas_and_latencies_are_told_with_their_labels() {
        let arena = ArenaStatus { page_kind: "thp".into(), size_bytes: 64, touched_bytes: 32, ..Default::default() };
        let arena = ArenaStatus { asked: "2M".into(), fallback_reason: Some("the pool is empty".into()), ..arena };
        let operation =
            OperationStatus { name: "plasma.get".into(), count: 3, p50_us: 7.5, max_us: 9.0, ..Default::default() };
        let transfer = TransferStatus { relay_sent_bytes: 7, pulls_wanted: 2, ..Default::default() };
        let status = NodeStatus { arenas: vec![arena], operations: vec![operation], transfer, ..Default::default() };
        let mut batch = Batch::new(&[], 0, 0);
        let mut recorder = Recorder::new();
        recorder.record(Operation::PlasmaGet, Duration::from_micros(8));
        let told = add(&mut batch, &status, &[], recorder.snapshot(), &Told::default());
        let request = batch.into_request("raylet");
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        let memory = ["arena_bytes", "arena_pages"];
        let transfers = ["transfer_bytes", "transfer_part_bytes", "pulls"];
        let latencies = ["latency_us", "operations_total", "operation_latency_us"];
        let expected = [&memory[..], &transfers, &latencies].concat();
        assert_eq!(names, expected.iter().map(|name| format!("raylet_uring_{name}")).collect::<Vec<_>>());
        let mut next = Batch::new(&[], 0, 0);
        add(&mut next, &NodeStatus::default(), &[], recorder.snapshot(), &told);
        let next = next.into_request("raylet");
        let again: Vec<&str> =
            next.resource_metrics[0].scope_metrics[0].metrics.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(
            again,
            transfers.map(|name| format!("raylet_uring_{name}")),
            "histograms are told once, and nothing that there is not"
        );
        let arenas = values(&metrics[0]);
        assert_eq!(arenas[0], (["0", "any", "thp", "size"].map(str::to_owned).to_vec(), 64.0));
        assert_eq!(arenas.len(), 3);
        let pages = ["0", "any", "2M", "thp", "the pool is empty"].map(str::to_owned).to_vec();
        assert_eq!(values(&metrics[1]), [(pages, 1.0)]);
        let moved = values(&metrics[2]);
        assert_eq!((moved.len(), &moved[0]), (4, &(["bulk", "received"].map(str::to_owned).to_vec(), 0.0)));
        let part = values(&metrics[3]);
        assert_eq!(part[1], (vec!["sent_while_coming".to_owned()], 7.0));
        assert_eq!(values(&metrics[4])[0], (vec!["wanted".to_owned()], 2.0));
        let latencies = values(&metrics[5]);
        assert_eq!(latencies[0], (["plasma.get", "0.5"].map(str::to_owned).to_vec(), 7.5));
        assert_eq!(latencies[3], (["plasma.get", "1"].map(str::to_owned).to_vec(), 9.0));
        assert_eq!(values(&metrics[6]), [(vec!["plasma.get".to_owned()], 3.0)]);
    }
}
