//! What the node tells of itself: resources, load, objects, workers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_shard::sched::{Fixed, ResourceId, SchedEvent};
use rustc_hash::FxHashMap;
use tonic::Status;

use super::Control;
use crate::bridge::{all_idle, core_reports, drain_within, CoreReport};
use crate::ray::proto;
use crate::ray::proto::node_death_info::Reason;
use crate::ray::registry::Member;
use crate::ray::resources::kind_of;

/// Longest wait for a worker's account of itself. One that hangs is left out.
const WORKER_STATS_TIMEOUT: Duration = Duration::from_secs(10);

/// Shortest time between two reports that only tell how full the store is.
const STORE_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Ray's name for the room in the object store.
const OBJECT_STORE_MEMORY: &str = "object_store_memory";

/// Requests and times of garbage collection in workers.
#[derive(Default)]
pub struct GcState {
    local_wanted: bool,
    global_wanted: bool,
    /// When the other nodes were told last.
    last_global: Option<Instant>,
    /// Somebody waits for the node to be drained.
    drain_watched: Cell<bool>,
    /// Workers were told at least once: the shortest interval counts from then on.
    collected: bool,
    /// When workers were told last; before that, when the node first looked.
    last_local: Option<Instant>,
    resources_dirty: Cell<bool>,
    store_dirty: Cell<bool>,
    last_report: Cell<Option<Instant>>,
}

impl GcState {
    fn due(&self, since: Duration, min_interval: Duration, max_interval: Duration) -> bool {
        (self.local_wanted && (!self.collected || since >= min_interval)) || since >= max_interval
    }
}

/// The node's resources by number.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    total: FxHashMap<ResourceId, Fixed>,
    available: FxHashMap<ResourceId, Fixed>,
}

impl Control {
    /// Every core's account of itself.
    pub async fn core_reports(&self, objects: bool) -> Vec<CoreReport> {
        core_reports(&self.cores, objects).await
    }

    /// Totals and what is free, summed over the cores.
    pub fn resources_of(reports: &[CoreReport]) -> Resources {
        let mut resources = Resources::default();
        for report in reports {
            for part in &report.sched.resources {
                *resources.available.entry(part.id).or_default() += part.free;
                let total = resources.total.entry(part.id).or_default();
                *total = (*total).max(part.total);
            }
        }
        resources
    }

    /// Amounts by name: total and available.
    pub fn named(&self, resources: &Resources) -> (BTreeMap<String, f64>, BTreeMap<String, f64>) {
        let names = self.names.borrow();
        let named = |amounts: &FxHashMap<ResourceId, Fixed>| {
            let parts = amounts.iter().filter(|(_, amount)| amount.0 != 0);
            let named = parts.map(|(id, amount)| (names.name(*id).to_owned(), amount.to_f64()));
            // A bundle may have gone, with its names, since the cores told.
            named.filter(|(name, _)| !name.is_empty()).collect()
        };
        (named(&resources.total), named(&resources.available))
    }

    /// The node's resources and its queued load, as the GCS asks for them.
    pub(super) async fn resources_data(&self) -> proto::ResourcesData {
        let reports = self.core_reports(false).await;
        let (resources_total, mut resources_available) = self.named(&Self::resources_of(&reports));
        self.take_out_objects(&mut resources_available, &reports);
        self.collect_garbage_if_full(&reports);
        let draining = self.draining.borrow();
        proto::ResourcesData {
            node_id: self.node_id.as_bytes().to_vec().into(),
            node_manager_address: self.flags.node_ip_address.to_string(),
            resources_available,
            resources_total,
            resource_load: BTreeMap::new(),
            resource_load_by_shape: Some(proto::ResourceLoad { resource_demands: self.demands(&reports) }),
            idle_duration_ms: idle_ms(&reports),
            is_draining: draining.is_some(),
            draining_deadline_timestamp_ms: draining.as_ref().map_or(0, |drain| drain.deadline_timestamp_ms),
            labels: self.labels.clone(),
            ..Default::default()
        }
    }

    /// Room in the store that objects have taken is not available. What counts is what can't be evicted, unless
    /// `scheduler_report_pinned_bytes_only` is off.
    fn take_out_objects(&self, available: &mut BTreeMap<String, f64>, reports: &[CoreReport]) {
        let Some(room) = available.get_mut(OBJECT_STORE_MEMORY) else {
            return;
        };
        let used_bytes: u64 = match self.ray_config.scheduler_report_pinned_bytes_only {
            true => reports.iter().map(|report| report.store.counters.pinned.bytes).sum(),
            false => reports.iter().map(|report| report.store.allocated_bytes).sum(),
        };
        self.store_used(used_bytes as f64 / room.max(1.0));
        *room = (*room - used_bytes as f64).max(0.0);
    }

    fn demands(&self, reports: &[CoreReport]) -> Vec<proto::ResourceDemand> {
        let names = self.names.borrow();
        let most = usize::try_from(self.ray_config.max_resource_shapes_per_load_report).unwrap_or(usize::MAX);
        let loads = reports.iter().flat_map(|report| &report.sched.loads);
        let queued = loads.filter(|load| load.ready + load.waiting_worker > 0 || load.backlog > 0);
        let demands = queued.take(most).map(|load| {
            let waiting = u64::from(load.ready + load.waiting_worker);
            let (shape, label_selectors) = names.shape(&load.demand);
            proto::ResourceDemand {
                shape,
                num_ready_requests_queued: if load.infeasible { 0 } else { waiting },
                num_infeasible_requests_queued: if load.infeasible { waiting } else { 0 },
                backlog_size: i64::try_from(load.backlog).unwrap_or(i64::MAX),
                label_selectors,
            }
        });
        demands.collect()
    }

    /// The view of this node that the other nodes get.
    pub async fn resource_view(&self) -> proto::syncer::ResourceViewSyncMessage {
        let data = self.resources_data().await;
        proto::syncer::ResourceViewSyncMessage {
            resources_available: data.resources_available,
            resources_total: data.resources_total,
            object_pulls_queued: self.pull_stats().waiting > 0,
            idle_duration_ms: data.idle_duration_ms,
            is_draining: data.is_draining,
            draining_deadline_timestamp_ms: data.draining_deadline_timestamp_ms,
            labels: data.labels,
            ..Default::default()
        }
    }

    /// Something about leases changed, and with it what is free.
    pub fn mark_resources_changed(&self) {
        self.gc.borrow().resources_dirty.set(true);
    }

    /// Owners pinned or freed objects here, and with it the room in the store changed.
    pub fn mark_store_changed(&self) {
        self.gc.borrow().store_dirty.set(true);
    }

    /// True where others are to be told of a change since the last call. Changes of the store alone are told now and then.
    pub fn take_resources_changed(&self) -> bool {
        let gc = self.gc.borrow();
        let recently = gc.last_report.get().is_some_and(|at| at.elapsed() < STORE_REPORT_INTERVAL);
        let changed = gc.resources_dirty.replace(false) || (gc.store_dirty.get() && !recently);
        if changed {
            gc.store_dirty.set(false);
            gc.last_report.set(Some(Instant::now()));
        }
        changed
    }

    /// The node's statistics and those of its workers.
    pub(super) async fn node_stats(&self, include_memory_info: bool) -> Result<proto::GetNodeStatsReply, Status> {
        let reports = self.core_reports(false).await;
        let stats = self.worker_stats(include_memory_info, None).await;
        Ok(proto::GetNodeStatsReply {
            num_workers: stats.len() as u32,
            core_workers_stats: stats.into_iter().filter_map(|reply| reply.core_worker_stats).collect(),
            store_stats: Some(self.store_stats(&reports)),
        })
    }

    /// The objects that workers refer to.
    pub(super) async fn objects_info(&self, limit: Option<i64>) -> Result<proto::GetObjectsInfoReply, Status> {
        let mut reply = proto::GetObjectsInfoReply::default();
        let mut count = 0;
        for stats in self.worker_stats(true, limit).await.into_iter().filter_map(|r| r.core_worker_stats) {
            reply.total += stats.objects_total;
            if limit.is_none_or(|limit| limit < 0 || count < limit) {
                count += stats.object_refs.len() as i64;
                reply.core_workers_stats.push(stats);
            }
        }
        Ok(reply)
    }

    /// Asks every worker and driver about itself, all at once; drivers come first, then by process id.
    async fn worker_stats(&self, memory: bool, limit: Option<i64>) -> Vec<proto::GetCoreWorkerStatsReply> {
        let mut members: Vec<Member> = self.registry.borrow().iter().filter(|m| m.port != 0).cloned().collect();
        members.sort_by_key(|member| (!member.is_driver(), member.pid));
        let asked = members.into_iter().map(|member| {
            let client = self.core_workers.of(&member.ip_address, member.port);
            let request = proto::GetCoreWorkerStatsRequest {
                intended_worker_id: member.worker.as_bytes().to_vec().into(),
                include_memory_info: memory,
                limit,
                ..Default::default()
            };
            tokio::task::spawn_local(async move { client.get_core_worker_stats(request, WORKER_STATS_TIMEOUT).await })
        });
        let mut replies = Vec::new();
        for answer in asked.collect::<Vec<_>>() {
            match answer.await {
                Ok(Ok(reply)) => replies.push(reply),
                Ok(Err(error)) => tracing::debug!(%error, "a worker gave no account of itself"),
                Err(error) => tracing::error!(%error, "asking a worker failed"),
            }
        }
        replies
    }

    fn store_stats(&self, reports: &[CoreReport]) -> proto::ObjectStoreStats {
        let mut stats = proto::ObjectStoreStats::default();
        for report in reports {
            let store = &report.store;
            stats.object_store_bytes_used += (store.allocated_bytes) as i64;
            stats.num_local_objects += store.objects as i64;
            stats.object_store_bytes_primary_copy += store.counters.pinned.bytes as i64;
            stats.num_object_store_primary_copies += store.counters.pinned.objects as i64;
            stats.cumulative_created_objects += store.counters.created.objects as i64;
            stats.cumulative_created_bytes += store.counters.created.bytes as i64;
            stats.object_store_bytes_fallback += store.counters.fallback.bytes as i64;
            stats.spilled_bytes_total += store.counters.spilled.bytes as i64;
            stats.spilled_objects_total += store.counters.spilled.objects as i64;
            stats.restored_bytes_total += store.counters.restored.bytes as i64;
            stats.restored_objects_total += store.counters.restored.objects as i64;
            stats.spill_time_total_s += report.spill.writing.as_secs_f64();
            stats.restore_time_total_s += report.spill.reading.as_secs_f64();
        }
        // Ray calls the store's whole size "avail".
        stats.object_store_bytes_avail = self.flags.object_store_memory_bytes as i64;
        stats
    }

    /// `ray memory`: the objects that workers refer to, as a table.
    pub(super) async fn memory_summary(&self, objects: bool) -> Result<proto::FormatGlobalMemoryInfoReply, Status> {
        let stats = self.node_stats(objects).await?;
        Ok(proto::FormatGlobalMemoryInfoReply {
            memory_summary: if objects { memory_table(&stats.core_workers_stats) } else { String::new() },
            store_stats: stats.store_stats,
        })
    }

    /// The agents' processes.
    pub(super) fn agent_pids(&self) -> proto::GetAgentPiDsReply {
        let pids = self.agents.pids();
        proto::GetAgentPiDsReply {
            dashboard_agent_pid: pids[0].map(|pid| pid as i32),
            runtime_env_agent_pid: pids[1].map(|pid| pid as i32),
        }
    }

    /// The GCS restarted: subscriptions are made anew, and workers told to do the same.
    pub(super) fn gcs_restarted(&self) {
        if let Some(subscriber) = self.subscriber.borrow().as_ref() {
            subscriber.resubscribe();
        }
        for member in self.registry.borrow().iter().filter(|m| m.port != 0) {
            let client = self.core_workers.of(&member.ip_address, member.port);
            let worker = member.worker;
            tokio::task::spawn_local(async move {
                let request = proto::RayletNotifyGcsRestartRequest {};
                if let Err(error) = client.raylet_notify_gcs_restart(request, WORKER_STATS_TIMEOUT).await {
                    tracing::warn!(%worker, %error, "a worker was not told that the GCS restarted");
                }
            });
        }
    }

    /// Changes the totals of resources, but for those that are counted by instance.
    pub(super) async fn resize_resources(
        &self,
        request: &proto::ResizeLocalResourceInstancesRequest,
    ) -> Result<proto::ResizeLocalResourceInstancesReply, Status> {
        let units = self.ray_config.unit_instance_resources();
        for (name, amount) in &request.resources {
            let kind = kind_of(name, &units);
            if kind == raylet_shard::sched::ResourceKind::UnitInstances {
                return Err(Status::invalid_argument(format!(
                    "Cannot resize unit instance resource '{name}': resources that come in instances have a fixed number of them"
                )));
            }
            let total = Fixed::from_f64(*amount).ok_or_else(|| {
                Status::invalid_argument(format!("resource {name}: expected 0 or more, got {amount}"))
            })?;
            let known = self.names.borrow().get(name);
            let id = match known {
                Some(id) => id,
                None => self.names.borrow_mut().intern(name).map_err(|e| Status::invalid_argument(e.to_string()))?,
            };
            if known.is_none() {
                self.sched_all(SchedEvent::AddResource { id, total, kind });
            } else {
                self.sched_all(SchedEvent::ResizeResource { id, total });
            }
            self.totals.borrow_mut().insert(name.clone(), total);
        }
        self.mark_resources_changed();
        let reports = self.core_reports(false).await;
        let (total_resources, _) = self.named(&Self::resources_of(&reports));
        Ok(proto::ResizeLocalResourceInstancesReply { total_resources })
    }

    /// No new work, because the node will be ended.
    pub(super) async fn drain(
        self: &Rc<Self>,
        request: proto::DrainRayletRequest,
    ) -> Result<proto::DrainRayletReply, Status> {
        let idle_only = request.reason == proto::autoscaler::DrainNodeReason::IdleTermination as i32;
        let reports = self.core_reports(false).await;
        if idle_only && reports.iter().any(|report| report.sched.idle_since.is_none()) {
            return Ok(proto::DrainRayletReply {
                is_accepted: false,
                rejection_reason_message: "The node to be idle terminated is no longer idle.".to_owned(),
            });
        }
        let cause = drained_cause(&request);
        self.begin_to_drain(request).await;
        self.end_when_drained(cause);
        Ok(proto::DrainRayletReply { is_accepted: true, rejection_reason_message: String::new() })
    }

    /// Takes no new work from now on; what waits goes to other nodes where it can.
    async fn begin_to_drain(&self, request: proto::DrainRayletRequest) {
        tracing::info!(reason = request.reason, message = request.reason_message, "draining");
        *self.draining.borrow_mut() = Some(request);
        self.look_again().await;
        self.sched_all(SchedEvent::Drain { on: true });
        self.mark_resources_changed();
    }

    /// A node that drains ends by itself once nothing is leased and no primary copy is left, as stock Ray's does.
    fn end_when_drained(self: &Rc<Self>, (reason, message): (Reason, String)) {
        if self.gc.borrow().drain_watched.replace(true) {
            return;
        }
        let control = self.clone();
        tokio::task::spawn_local(async move {
            let idle =
                |report: &CoreReport| report.sched.idle_since.is_some() && report.store.counters.pinned.bytes == 0;
            all_idle(&control.cores, idle).await;
            control.shutdown.ask(reason, &message);
        });
    }

    /// Takes no new work, and waits until nothing is leased, at most this long. Nothing at all is done for no time.
    pub async fn drain_within(&self, timeout: Duration) {
        let request = proto::DrainRayletRequest {
            reason: proto::autoscaler::DrainNodeReason::Preemption as i32,
            reason_message: "the node received SIGTERM".to_owned(),
            deadline_timestamp_ms: super::unix_ms().saturating_add(timeout.as_millis() as u64) as i64,
        };
        drain_within(&self.cores, timeout, self.begin_to_drain(request)).await;
    }

    /// Workers should drop what they no longer need: the store is full.
    pub(super) fn collect_garbage_soon(&self) {
        let mut gc = self.gc.borrow_mut();
        gc.local_wanted = true;
    }

    /// As [`Self::collect_garbage_soon`], on every node of the cluster.
    pub(super) fn collect_garbage_everywhere(&self) {
        let mut gc = self.gc.borrow_mut();
        (gc.local_wanted, gc.global_wanted) = (true, true);
    }

    /// True where the other nodes are to be told now, at most once in `global_gc_min_interval_s`.
    pub fn take_global_garbage(&self) -> bool {
        let min_interval = Duration::from_secs(self.ray_config.global_gc_min_interval_s);
        let mut gc = self.gc.borrow_mut();
        let due = gc.global_wanted && gc.last_global.is_none_or(|at| at.elapsed() >= min_interval);
        if due {
            (gc.global_wanted, gc.last_global) = (false, Some(Instant::now()));
        }
        due
    }

    /// As [`Self::collect_garbage_soon`], where the store is fuller than `plasma_store_usage_trigger_gc_threshold`.
    fn collect_garbage_if_full(&self, reports: &[CoreReport]) {
        let used_bytes: u64 = reports.iter().map(|report| report.store.allocated_bytes).sum();
        let limit = self.ray_config.plasma_store_usage_trigger_gc_threshold;
        if used_bytes as f64 > limit * self.flags.object_store_memory_bytes as f64 {
            self.collect_garbage_soon();
        }
    }

    /// Carries out what garbage collection was asked for, at most once in `local_gc_min_interval_s`, and unasked every
    /// `local_gc_interval_s`. Every worker of this node is told; of the other nodes' workers, those nodes see to.
    pub fn collect_garbage(&self) {
        let min_interval = Duration::from_secs(self.ray_config.local_gc_min_interval_s);
        let max_interval = Duration::from_secs(self.ray_config.local_gc_interval_s);
        {
            let mut gc = self.gc.borrow_mut();
            let since = gc.last_local.get_or_insert_with(Instant::now).elapsed();
            if !gc.due(since, min_interval, max_interval) {
                return;
            }
            gc.local_wanted = false;
            gc.collected = true;
            gc.last_local = Some(Instant::now());
        }
        for member in self.registry.borrow().iter().filter(|m| m.port != 0) {
            let client = self.core_workers.of(&member.ip_address, member.port);
            let worker = member.worker;
            tokio::task::spawn_local(async move {
                let request = proto::LocalGcRequest {};
                if let Err(error) = client.local_gc(request, WORKER_STATS_TIMEOUT).await {
                    tracing::debug!(%worker, %error, "a worker did not collect its garbage");
                }
            });
        }
    }
}

/// What the GCS is told of a node that was drained.
fn drained_cause(request: &proto::DrainRayletRequest) -> (Reason, String) {
    let idle = request.reason == proto::autoscaler::DrainNodeReason::IdleTermination as i32;
    let reason = if idle { Reason::AutoscalerDrainIdle } else { Reason::AutoscalerDrainPreempted };
    (reason, request.reason_message.clone())
}

fn idle_ms(reports: &[CoreReport]) -> i64 {
    let since = reports.iter().map(|report| report.sched.idle_since.map(|since| report.now.saturating_sub(since)));
    let shortest = since.min_by_key(|idle| idle.unwrap_or(0)).flatten();
    shortest.map_or(0, |ns| (ns / 1_000_000) as i64)
}

/// The table of `ray memory`: a line per reference, grouped by process. Ray's command line prints it as it comes.
fn memory_table(workers: &[proto::CoreWorkerStats]) -> String {
    let mut sizes: FxHashMap<&[u8], i64> = FxHashMap::default();
    for object in workers.iter().flat_map(|worker| &worker.object_refs) {
        if object.object_size > 0 {
            sizes.insert(&object.object_id, object.object_size);
        }
    }
    let rule = |c: &str| format!("{}\n", c.repeat(101));
    let mut table = rule("-");
    table.push_str(" Object ID                                                Reference Type       Object Size   Reference Creation Site\n");
    table.push_str(&rule("="));
    for worker in workers {
        let who = if worker.worker_type == proto::WorkerType::Driver as i32 { "driver" } else { "worker" };
        let mut lines = worker.object_refs.iter().filter_map(|object| reference_line(object, &sizes)).peekable();
        if lines.peek().is_some() {
            table.push_str(&format!("; {who} pid={}\n", worker.pid));
            lines.for_each(|line| table.push_str(&line));
        }
    }
    table.push_str(&rule("-"));
    table
}

fn reference_line(object: &proto::ObjectRefInfo, sizes: &FxHashMap<&[u8], i64>) -> Option<String> {
    let kind = match object {
        o if o.pinned_in_memory => "PINNED_IN_MEMORY",
        o if o.submitted_task_ref_count > 0 => "USED_BY_PENDING_TASK",
        o if o.local_ref_count > 0 => "LOCAL_REFERENCE",
        o if o.contained_in_owned.is_empty() => return None,
        _ => "CAPTURED_IN_OBJECT",
    };
    let id = raylet_shard::ids::ObjectId::from_slice(&object.object_id).filter(|id| !id.is_nil())?;
    let size = sizes.get(&object.object_id[..]).map_or_else(|| "?".to_owned(), i64::to_string);
    Some(format!("{id}  {kind:<21}{size:>11}   {}\n", object.call_site))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_collected_when_asked_but_not_too_often_and_now_and_then_unasked() {
        let (least, most) = (Duration::from_secs(10), Duration::from_secs(100));
        let mut gc = GcState::default();
        assert!(!gc.due(least, least, most) && gc.due(most, least, most));
        gc.local_wanted = true;
        assert!(gc.due(Duration::ZERO, least, most), "the first time at once");
        gc.collected = true;
        assert!(!gc.due(least / 2, least, most) && gc.due(least, least, most));
    }

    #[test]
    fn the_memory_table_names_each_reference_with_its_process() {
        let object = proto::ObjectRefInfo {
            object_id: vec![1; 28].into(),
            pinned_in_memory: true,
            object_size: 1234,
            ..Default::default()
        };
        let unreferenced = proto::ObjectRefInfo { object_id: vec![2; 28].into(), ..Default::default() };
        let worker = proto::CoreWorkerStats {
            pid: 77,
            worker_type: proto::WorkerType::Driver as i32,
            object_refs: vec![object, unreferenced],
            ..Default::default()
        };
        let table = memory_table(&[worker, proto::CoreWorkerStats::default()]);
        assert!(table.contains("; driver pid=77"));
        assert!(table.contains(&format!("{}  PINNED_IN_MEMORY            1234", "01".repeat(28))), "{table}");
        assert!(!table.contains(&"02".repeat(28)));
        assert_eq!(table.matches("; ").count(), 1);
    }
}
