//! Leases as Ray asks for them: RequestWorkerLease, ReturnWorkerLease, CancelWorkerLease and their relatives.

use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::{ActorId, JobId, LeaseId, PlacementGroupId, ShardId, TaskId, WorkerId};
use raylet_shard::sched::{Allocation, CancelReason, ClassDef, ClassId, FailReason, SchedEvent, WorkerFate, WorkerKey};
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tonic::Status;
use tracing::Span;

use super::placing::{Leave, Placed};
use super::{lease_id, unix_ms, Control};
use crate::bridge::{Requester, ToCore};
use crate::ray::affinity::UNSCHEDULABLE;
use crate::ray::classes::{home_of, runtime_env_hash};
use crate::ray::core_rpc::desk::Lesson;
use crate::ray::expiring::{Expiring, MAX_TOMBSTONES};
use crate::ray::labels::elsewhere;
use crate::ray::lease_shape::{actor_of, lease_request, Asker, Shape};
use crate::ray::placement::Place;
use crate::ray::proto::request_worker_lease_reply::SchedulingFailureType;
use crate::ray::proto::{self, RequestWorkerLeaseReply, RequestWorkerLeaseRequest};
use crate::ray::resources::{cpu_milli, mapping};
use crate::ray::rpc::frame::encode;

/// Most causes of worker failures kept for owners that ask (`GetWorkerFailureCause`).
const MAX_FAILURE_CAUSES: usize = 10_000;

/// Leases that are queued or granted, and what owners may still ask about those that ended.
#[derive(Default)]
pub struct Leases {
    live: FxHashMap<LeaseId, Lease>,
    /// Leases asked for, ever.
    asked: u64,
    tombstones: Expiring<()>,
    causes: Expiring<Cause>,
}

/// A lease that is queued or granted.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The shard that has it.
    pub shard: ShardId,
    /// Who asked for it.
    pub owner: proto::Address,
    /// The job.
    pub job: JobId,
    /// The actor that it creates.
    pub actor: Option<ActorId>,
    /// The placement group that it takes a bundle of, and the index of the bundle, -1 for any.
    pub bundle: Option<(PlacementGroupId, i64)>,
    /// The environment that its worker needs.
    pub runtime_env: Option<proto::RuntimeEnvInfo>,
    /// The task that asked for it.
    pub parent_task: TaskId,
    /// Name of the task or actor class, for messages.
    pub name: String,
    /// Whether the task is tried again when its worker dies.
    pub retriable: bool,
    /// Thousandths of a CPU that it holds.
    pub cpu_milli: u64,
    /// Its class.
    pub class: ClassId,
    /// Another node sent it here: it may be turned away, but not be sent on.
    pub grant_or_reject: bool,
    /// What it asks of the node that serves it.
    pub place: Place,
    /// Why it is being taken out of its queue.
    pub leaves: Option<Leave>,
    /// Later requests have higher numbers.
    pub number: u64,
    /// The worker that serves it, once granted.
    pub worker: Option<WorkerId>,
    /// Requests for it that wait for their answer.
    pub waiting: u32,
    /// From its grant to its end, where spans are asked for.
    pub span: Span,
}

/// Why a lease's worker died, for its owner.
#[derive(Clone, Debug)]
pub struct Cause {
    /// The error that the owner raises.
    pub error: proto::RayErrorInfo,
    /// True where trying again would not help.
    pub fail_immediately: bool,
}

/// The end of a request.
#[derive(Debug)]
pub enum Outcome {
    /// It has its lease.
    Granted(WorkerId, Allocation),
    /// It was turned away.
    Rejected,
    /// It was cancelled.
    Cancelled(CancelReason),
    /// It failed.
    Failed(FailReason),
    /// It left its queue.
    Withdrawn(Option<Leave>),
}

impl Leases {
    /// A live lease.
    pub fn get(&self, lease: &LeaseId) -> Option<&Lease> {
        self.live.get(lease)
    }

    /// As [`Self::get`], to change what is noted of it.
    pub fn get_mut(&mut self, lease: &LeaseId) -> Option<&mut Lease> {
        self.live.get_mut(lease)
    }

    /// True for a lease that was cancelled before it was asked for.
    pub fn is_cancelled_ahead(&self, lease: &LeaseId) -> bool {
        self.tombstones.has(lease)
    }

    /// The live leases.
    pub fn iter(&self) -> impl Iterator<Item = (&LeaseId, &Lease)> {
        self.live.iter()
    }

    /// A lease ended.
    pub fn remove(&mut self, lease: &LeaseId) -> Option<Lease> {
        self.live.remove(lease)
    }

    /// Keeps the cause of a worker's failure for the owner of its lease.
    pub fn set_cause(&mut self, lease: LeaseId, cause: Cause, ttl: Duration) {
        self.causes.insert(lease, cause, ttl, MAX_FAILURE_CAUSES);
    }

    /// Forgets what expired.
    pub fn expire(&mut self) {
        self.tombstones.expire();
        self.causes.expire();
    }
}

impl Control {
    /// A worker or driver wants a worker.
    pub(super) async fn request_worker_lease(
        self: Rc<Self>,
        request: RequestWorkerLeaseRequest,
    ) -> Result<RequestWorkerLeaseReply, Status> {
        self.admit()?;
        let spec =
            request.lease_spec.ok_or_else(|| Status::invalid_argument("RequestWorkerLease without a lease_spec"))?;
        let lease = lease_id(&spec.lease_id)?;
        if self.leases.borrow().is_cancelled_ahead(&lease) {
            return Ok(cancelled("The lease request was cancelled before it arrived."));
        }
        let asker = Asker::of(&spec);
        if !spec.is_detached_actor && self.dead.borrow().has(&asker.owner, Some(&asker.node)) {
            return Ok(cancelled("Cancelled leasing because the caller worker is dead."));
        }
        let placed = match self.in_cluster() {
            true => {
                self.place_request(lease, &spec, request.grant_or_reject, request.is_selected_based_on_locality).await
            }
            false => self.place_alone(&spec, request.grant_or_reject),
        };
        let (waits, now_or_never, at_once) = match placed? {
            Placed::Elsewhere(reply) => return Ok(*reply),
            Placed::Here { waits, now_or_never, at_once } => (waits, now_or_never, at_once),
        };
        let token = self.token();
        let (sender, receiver) = oneshot::channel();
        let (class, shard) = self.class_of(&spec, waits)?;
        let wanted = lease_request(token, lease, class, asker, &spec, at_once || now_or_never);
        self.fetch_arguments(lease, &spec.dependencies);
        let shard = self.note_asked(lease, (class, shard), request.grant_or_reject, spec);
        self.sched(shard, SchedEvent::Request(Box::new(wanted)));
        self.waiters.borrow_mut().leases.insert(token, sender);
        let outcome = receiver.await.map_err(|_| Status::unavailable("the node is shutting down"))?;
        Ok(match outcome {
            Outcome::Rejected if now_or_never => unschedulable(),
            outcome => self.reply(lease, outcome),
        })
    }

    /// A lease is asked for; returns the shard that has it.
    fn note_asked(
        &self,
        lease: LeaseId,
        (class, shard): (ClassId, ShardId),
        grant_or_reject: bool,
        spec: proto::LeaseSpec,
    ) -> ShardId {
        let actor = actor_of(&spec);
        let mut leases = self.leases.borrow_mut();
        leases.asked += 1;
        let number = leases.asked;
        let entry = leases.live.entry(lease).or_insert_with(|| Lease {
            shard,
            job: JobId::from_slice(&spec.job_id).unwrap_or_default(),
            actor,
            bundle: bundle_of(&spec),
            parent_task: TaskId::from_slice(&spec.parent_task_id).unwrap_or_default(),
            retriable: if actor.is_some() { spec.max_actor_restarts != 0 } else { spec.max_retries != 0 },
            owner: spec.caller_address.unwrap_or_default(),
            runtime_env: spec.runtime_env_info,
            cpu_milli: cpu_milli(&spec.required_resources),
            class,
            grant_or_reject,
            leaves: None,
            number,
            place: Place {
                demand: spec.required_resources,
                placement: spec.required_placement_resources,
                strategy: spec.scheduling_strategy,
                selector: spec.label_selector,
                fallback: spec.fallback_strategy,
                actor: actor.is_some(),
                has_arguments: !spec.dependencies.is_empty(),
            },
            name: spec.task_name,
            worker: None,
            waiting: 0,
            span: Span::none(),
        });
        entry.waiting += 1;
        entry.shard
    }

    /// A core's desk let a request through.
    pub(super) fn asked_at_desk(
        &self,
        lease: LeaseId,
        class: (ClassId, ShardId),
        grant_or_reject: bool,
        spec: proto::LeaseSpec,
    ) {
        self.mark_resources_changed();
        let cancelled_ahead = self.leases.borrow().tombstones.has(&lease);
        let shard = self.note_asked(lease, class, grant_or_reject, spec);
        if cancelled_ahead {
            let token = self.token();
            self.sched(shard, SchedEvent::Cancel { token, lease });
        }
    }

    /// A request that came through a core's desk has its lease.
    pub(super) fn granted_at_desk(self: &Rc<Self>, lease: LeaseId, worker: WorkerId) {
        self.mark_resources_changed();
        self.note_outcome(lease, Some(worker));
    }

    /// A lease was given back at a core's desk.
    pub(super) fn returned_at_desk(&self, lease: LeaseId) {
        self.mark_resources_changed();
        let Some(entry) = self.leases.borrow_mut().live.remove(&lease) else {
            return;
        };
        let mut registry = self.registry.borrow_mut();
        if let Some(member) = entry.worker.and_then(|worker| registry.get_mut(&worker)) {
            member.lease = None;
            self.unpin(&member.worker);
        }
    }

    /// A worker has no lease any more, so it need not stay where it was bound.
    fn unpin(&self, worker: &WorkerId) {
        if let Some(pins) = &self.pins {
            pins.borrow_mut().returned(worker);
        }
    }

    /// The class of a request. One that `waits` for a node that can hold it asks for what it must find there, too.
    fn class_of(&self, spec: &proto::LeaseSpec, waits: bool) -> Result<(ClassId, ShardId), Status> {
        let mut resources = spec.required_resources.clone();
        let elsewhere = elsewhere(spec, &self.labels).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let teachable = elsewhere.is_none() && !waits;
        if waits {
            for (name, amount) in &spec.required_placement_resources {
                let wanted = resources.entry(name.clone()).or_default();
                *wanted = wanted.max(*amount);
            }
        }
        if let Some(name) = elsewhere {
            resources.insert(name, 1.0);
        }
        let mut classes = self.classes.borrow_mut();
        let worker = WorkerKey {
            language: u8::try_from(spec.language).map_err(|_| Status::invalid_argument("unknown language"))?,
            runtime_env_hash: runtime_env_hash(spec.runtime_env_info.as_ref()),
            dynamic_options: classes.options(&spec.dynamic_worker_options),
        };
        let shards = self.shards();
        let (id, new) = classes
            .of(resources, worker, &mut self.names.borrow_mut(), shards)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let class = classes.get(id).ok_or_else(|| Status::internal("a class is lost"))?;
        let (found, settled) = ((class.id, class.shard), class.defined && class.group.is_none());
        let def = (new && teachable && class.group.is_none()).then(|| class.def.clone());
        drop(classes);
        if !settled {
            self.define_class(id, new);
        }
        if let Some(def) = def {
            self.teach(spec, &def, found);
        }
        Ok(found)
    }

    /// Tells the cores' desks of a class. Those of placement groups come and go, and those for other labels look like others to a
    /// desk: their requests are for this thread.
    fn teach(&self, spec: &proto::LeaseSpec, def: &ClassDef, (class, shard): (ClassId, ShardId)) {
        let names = self.names.borrow();
        let names = def.demand.iter().map(|(id, _)| (id, names.name(id).to_owned())).collect();
        let lesson = Lesson { shape: Shape::of(spec), class, shard, names };
        self.to_cores(|| ToCore::Learn(Box::new(lesson.clone())));
    }

    /// The shard's word on a request.
    pub(super) fn lease_outcome(self: &Rc<Self>, token: u64, lease: LeaseId, mut outcome: Outcome) {
        if matches!(outcome, Outcome::Rejected) && self.draining.borrow().is_some() && !self.was_sent_here(&lease) {
            let control = self.clone();
            tokio::task::spawn_local(async move {
                control.drained_pause().await;
                control.lease_outcome(token, lease, Outcome::Cancelled(CancelReason::Asked));
            });
            return;
        }
        if let Outcome::Withdrawn(leave) = &mut outcome {
            *leave = self.leases.borrow().get(&lease).and_then(|entry| entry.leaves);
        }
        self.note_outcome(
            lease,
            match &outcome {
                Outcome::Granted(worker, _) => Some(*worker),
                _ => None,
            },
        );
        if let Requester::Shard(desk) = Requester::of(token) {
            let reply = encode(&self.reply(lease, outcome));
            return self.to_core(desk, ToCore::Answered { call: Requester::local(token), reply });
        }
        if let Some(waiter) = self.waiters.borrow_mut().leases.remove(&token) {
            // A caller that hung up asks again with the same lease id, or its death gives the lease back.
            let _ = waiter.send(outcome);
        }
    }

    /// True for a lease that another node sent here; only such a one may be rejected.
    fn was_sent_here(&self, lease: &LeaseId) -> bool {
        self.leases.borrow().get(lease).is_some_and(|entry| entry.grant_or_reject)
    }

    fn note_outcome(self: &Rc<Self>, lease: LeaseId, granted: Option<WorkerId>) {
        {
            let mut leases = self.leases.borrow_mut();
            if let Some(entry) = leases.live.get_mut(&lease) {
                entry.waiting = entry.waiting.saturating_sub(1);
                entry.worker = granted.or(entry.worker);
                if let Some(worker) = granted {
                    entry.span = tracing::debug_span!("lease", task = entry.name, shard = entry.shard, %lease, %worker);
                }
                if entry.worker.is_none() && entry.waiting == 0 {
                    leases.live.remove(&lease);
                }
            }
        }
        self.cancel_fetch_of_lease(lease);
        if let Some(worker) = granted {
            self.note_grant(lease, worker);
        }
    }

    fn note_grant(&self, lease: LeaseId, worker: WorkerId) {
        let leases = self.leases.borrow();
        let mut registry = self.registry.borrow_mut();
        if let (Some(entry), Some(member)) = (leases.live.get(&lease), registry.get_mut(&worker)) {
            if member.granted_at_ms != 0 {
                self.counters.grants_from_cache.add_one();
            }
            if let Some(pins) = &self.pins {
                pins.borrow_mut().leased(worker, member.pid, entry.shard, entry.cpu_milli);
            }
            member.lease = Some(lease);
            member.granted_at_ms = unix_ms();
            if member.job.is_nil() {
                member.job = entry.job;
            }
            if entry.actor.is_some() {
                member.actor = entry.actor;
            }
        }
    }

    fn reply(&self, lease: LeaseId, outcome: Outcome) -> RequestWorkerLeaseReply {
        match outcome {
            Outcome::Granted(worker, allocation) => self.granted(lease, &worker, &allocation),
            Outcome::Rejected => self.rejected(),
            Outcome::Cancelled(CancelReason::BundleRemoved) => failed(
                SchedulingFailureType::SchedulingCancelledPlacementGroupRemoved,
                "Required placement group is removed.",
            ),
            Outcome::Cancelled(CancelReason::Class) => failed(
                SchedulingFailureType::SchedulingCancelledUnschedulable,
                "The lease is cancelled because no node of the cluster can ever hold its resources.",
            ),
            Outcome::Cancelled(_) => cancelled("The lease request was cancelled."),
            Outcome::Failed(FailReason::RuntimeEnv(message)) => {
                failed(SchedulingFailureType::SchedulingCancelledRuntimeEnvSetupFailed, &message)
            }
            Outcome::Failed(FailReason::WorkerStart { attempts }) => failed(
                SchedulingFailureType::SchedulingCancelledWorkerStartupFailed,
                &format!("No worker came up for the lease in {attempts} tries; see the logs of the node."),
            ),
            Outcome::Failed(other) => failed(SchedulingFailureType::SchedulingFailed, &format!("{other:?}")),
            Outcome::Withdrawn(leave) => match leave {
                Some(Leave::To(node)) => self.spill_reply(&node),
                Some(Leave::Back) => self.rejected(),
                Some(Leave::Unserved) => unschedulable(),
                None => cancelled("The lease request left this node."),
            },
        }
    }

    pub(super) fn rejected(&self) -> RequestWorkerLeaseReply {
        let node_id = self.node_id.as_bytes().to_vec().into();
        RequestWorkerLeaseReply {
            rejected: true,
            resources_data: Some(proto::ResourcesData { node_id, ..Default::default() }),
            ..Default::default()
        }
    }

    fn granted(&self, lease: LeaseId, worker: &WorkerId, allocation: &Allocation) -> RequestWorkerLeaseReply {
        let registry = self.registry.borrow();
        let Some(member) = registry.get(worker) else {
            // It died between the grant and this line; its death gives the lease back.
            return died_as_granted(&lease);
        };
        RequestWorkerLeaseReply {
            worker_address: Some(member.address(self.node_id.as_bytes())),
            worker_pid: member.pid,
            resource_mapping: mapping(allocation, |id| self.names.borrow().name(id).to_owned()),
            ..Default::default()
        }
    }

    /// An owner gives a lease back.
    pub(super) fn return_worker_lease(&self, request: proto::ReturnWorkerLeaseRequest) -> Result<(), Status> {
        let lease = lease_id(&request.lease_id)?;
        let Some(entry) = self.leases.borrow_mut().live.remove(&lease) else {
            return Ok(());
        };
        let fate = match (request.disconnect_worker, request.worker_exiting) {
            (true, _) => WorkerFate::Disconnect,
            (false, true) => WorkerFate::Exiting,
            (false, false) => WorkerFate::Keep,
        };
        if let Some(member) = entry.worker.and_then(|worker| {
            self.registry.borrow_mut().get_mut(&worker).map(|m| {
                m.lease = None;
                self.unpin(&m.worker);
                m.broke_in = (fate == WorkerFate::Disconnect).then_some((lease, entry.name));
                m.worker
            })
        }) {
            if fate == WorkerFate::Disconnect {
                self.doom(
                    &member,
                    proto::WorkerExitType::SystemError,
                    format!(
                        "The leased worker has unrecoverable failure. Worker is requested to be destroyed when it is returned. {}",
                        request.disconnect_worker_error_detail
                    ),
                );
            }
        }
        self.sched(entry.shard, SchedEvent::Return { lease, fate });
        Ok(())
    }

    /// An owner gives up a request. One that has not arrived yet is refused when it does.
    pub(super) fn cancel_worker_lease(&self, request: proto::CancelWorkerLeaseRequest) -> Result<(), Status> {
        let lease = lease_id(&request.lease_id)?;
        let token = self.token();
        let mut leases = self.leases.borrow_mut();
        match leases.live.get(&lease).map(|entry| entry.shard) {
            Some(shard) => self.sched(shard, SchedEvent::Cancel { token, lease }),
            None => {
                let ttl = Duration::from_millis(self.ray_config.cancelled_lease_tombstone_ttl_ms);
                leases.tombstones.insert(lease, (), ttl, MAX_TOMBSTONES);
                self.to_cores(|| ToCore::CancelledAhead { lease, ttl });
            }
        }
        Ok(())
    }

    /// The autoscaler knows that no node can hold these shapes.
    pub(super) fn cancel_shapes(&self, request: &proto::CancelLeasesWithResourceShapesRequest) -> Result<(), Status> {
        for shape in &request.resource_shapes {
            let shape = self.names.borrow().known_set(&shape.resource_shape);
            let shape = shape.map_err(|e| Status::invalid_argument(e.to_string()))?;
            let Some(shape) = shape else {
                continue;
            };
            let classes = self.classes.borrow().with_shape(&shape, &self.names.borrow());
            let token = self.token();
            self.sched_all(SchedEvent::CancelClasses { token, classes });
        }
        Ok(())
    }

    /// How many more tasks an owner has of each class.
    pub(super) fn report_backlog(&self, request: proto::ReportWorkerBacklogRequest) -> Result<(), Status> {
        let Some(owner) = WorkerId::from_slice(&request.worker_id) else {
            return Err(Status::invalid_argument("expected a worker id of 28 bytes"));
        };
        if self.registry.borrow().get(&owner).is_none() {
            return Ok(());
        }
        let mut sizes: FxHashMap<(ClassId, ShardId), u32> = FxHashMap::default();
        for report in request.backlog_reports {
            let spec = report.lease_spec.unwrap_or_default();
            let (class, shard) = self.class_of(&spec, false)?;
            let size = u32::try_from(report.backlog_size).unwrap_or(if report.backlog_size < 0 { 0 } else { u32::MAX });
            // Owners tell functions apart, and the scheduler does not.
            let sum = sizes.entry((class, shard)).or_default();
            *sum = sum.saturating_add(size);
        }
        let now = sizes.keys().copied().collect();
        for ((class, shard), size) in sizes {
            self.sched(shard, SchedEvent::Backlog { owner, class, size });
        }
        for (class, shard) in self.objects.borrow_mut().swap_backlog(owner, now) {
            self.sched(shard, SchedEvent::Backlog { owner, class, size: 0 });
        }
        Ok(())
    }

    /// The workers that Ray wants started with the node, before there is a job.
    pub fn prestart_at_boot(&self) {
        let key = WorkerKey { language: proto::Language::Python as u8, ..WorkerKey::default() };
        let shards = u32::from(self.shards());
        // Stock starts them all at once and drops what is more than may start at the same time.
        let count = self.flags.num_prestart_python_workers.min(self.startup_concurrency);
        for shard in 0..self.shards() {
            let share = (count + shards - 1 - u32::from(shard)) / shards;
            if share > 0 {
                let count = raylet_shard::sched::PrestartCount::New(share);
                self.sched(shard, SchedEvent::Prestart { key, job: None, count, keep_alive_ns: 0 });
            }
        }
    }

    /// Workers ahead of need, for an owner that knows what comes.
    pub(super) fn prestart(&self, request: &proto::PrestartWorkersRequest) -> Result<(), Status> {
        let key = WorkerKey {
            language: u8::try_from(request.language).map_err(|_| Status::invalid_argument("unknown language"))?,
            runtime_env_hash: runtime_env_hash(request.runtime_env_info.as_ref()),
            dynamic_options: 0,
        };
        let job = request.job_id.as_ref().and_then(|id| JobId::from_slice(id)).filter(|id| !id.is_nil());
        if let Some(info) = &request.runtime_env_info {
            self.remember_env(key.runtime_env_hash, info);
        }
        let shard = home_of(&key.runtime_env_hash.to_le_bytes(), self.shards());
        self.sched(
            shard,
            SchedEvent::Prestart {
                key,
                job,
                count: raylet_shard::sched::PrestartCount::New(u32::try_from(request.num_workers).unwrap_or(u32::MAX)),
                keep_alive_ns: request.keep_alive_duration_secs.saturating_mul(1_000_000_000),
            },
        );
        Ok(())
    }

    /// Why the worker of a lease died.
    pub(super) fn failure_cause(
        &self,
        request: &proto::GetWorkerFailureCauseRequest,
    ) -> Result<proto::GetWorkerFailureCauseReply, Status> {
        let lease = lease_id(&request.lease_id)?;
        let leases = self.leases.borrow();
        Ok(match leases.causes.get(&lease) {
            Some(cause) => proto::GetWorkerFailureCauseReply {
                failure_cause: Some(cause.error.clone()),
                fail_task_immediately: cause.fail_immediately,
            },
            None => proto::GetWorkerFailureCauseReply::default(),
        })
    }
}

fn bundle_of(spec: &proto::LeaseSpec) -> Option<(PlacementGroupId, i64)> {
    use proto::scheduling_strategy::SchedulingStrategy::PlacementGroupSchedulingStrategy as Group;
    match spec.scheduling_strategy.as_ref()?.scheduling_strategy.as_ref()? {
        Group(group) => {
            Some((PlacementGroupId::from_slice(&group.placement_group_id)?, group.placement_group_bundle_index))
        }
        _ => None,
    }
}

/// The reply for a lease whose worker did not live to serve it.
pub fn died_as_granted(lease: &LeaseId) -> RequestWorkerLeaseReply {
    cancelled(&format!("The worker of lease {lease} died as it was granted."))
}

pub(super) fn cancelled(message: &str) -> RequestWorkerLeaseReply {
    failed(SchedulingFailureType::SchedulingCancelledIntended, message)
}

/// The answer to a request that the node it names can't serve.
pub(super) fn unschedulable() -> RequestWorkerLeaseReply {
    failed(SchedulingFailureType::SchedulingCancelledUnschedulable, UNSCHEDULABLE)
}

fn failed(kind: SchedulingFailureType, message: &str) -> RequestWorkerLeaseReply {
    RequestWorkerLeaseReply {
        canceled: true,
        failure_type: kind as i32,
        scheduling_failure_message: message.to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_of_a_request_is_read_from_its_strategy() {
        use proto::scheduling_strategy::SchedulingStrategy::PlacementGroupSchedulingStrategy as Group;
        let spec = proto::LeaseSpec {
            scheduling_strategy: Some(proto::SchedulingStrategy {
                scheduling_strategy: Some(Group(proto::PlacementGroupSchedulingStrategy {
                    placement_group_id: vec![3; 18].into(),
                    placement_group_bundle_index: -1,
                    placement_group_capture_child_tasks: false,
                })),
            }),
            ..Default::default()
        };
        assert_eq!(bundle_of(&spec), Some((PlacementGroupId([3; 18]), -1)));
        assert_eq!(bundle_of(&proto::LeaseSpec::default()), None);
    }
}
