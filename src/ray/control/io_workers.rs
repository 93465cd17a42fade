//! Ray's IO workers: Python processes that write objects to storage which only they can reach, and read them back.
//!
//! At most `max_io_workers` of each kind, started when they are needed and kept. A request takes one for itself; what finds none
//! waits for its turn. What may wait is bounded by what the cores write and read at a time.

use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use raylet_shard::ids::{JobId, ObjectId, WorkerId};
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;

use super::{unix_ms, Control};
use crate::bridge::ToCore;
use crate::ray::proto::{
    Address, DeleteSpilledObjectsRequest, ObjectReference, RestoreSpilledObjectsRequest, SpillObjectsRequest,
    WorkerExitType, WorkerType,
};
use crate::ray::registry::Member;
use crate::ray::rpc::core_worker::CoreWorkerClient;
use crate::ray::rpc::gcs::id;
use crate::spill::external::{base, SpillAsk, SpillTold};
use crate::workers::command::{Language, WorkerKind, WorkerStart};
use crate::workers::process::{ProcessKey, SpawnSpec};

/// Longest wait for an IO worker's answer: slow storage and files of 100 MiB, and no worker that hangs for ever.
const IO_TIMEOUT: Duration = Duration::from_secs(600);

/// How often a worker is asked to read an object or to delete before that counts as failed, and the pause between.
const TRIES_MAX: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_millis(500);

/// Things that one call deletes.
const DELETED_AT_ONCE: usize = 100;

/// Workers of one kind.
#[derive(Default)]
struct Pool {
    /// Processes that have yet to register.
    starting: FxHashMap<WorkerId, ProcessKey>,
    /// Registered ones, and how many of them are at work.
    idle: Vec<WorkerId>,
    busy: usize,
    waiting: VecDeque<oneshot::Sender<WorkerId>>,
}

/// All of them.
#[derive(Default)]
pub(super) struct IoWorkers {
    spill: Pool,
    restore: Pool,
    /// What is to be deleted; a task does so while there is any.
    unwanted: Vec<String>,
    deleting: bool,
}

impl IoWorkers {
    fn pool(&mut self, kind: WorkerKind) -> &mut Pool {
        match kind {
            WorkerKind::RestoreWorker => &mut self.restore,
            WorkerKind::SpillWorker | WorkerKind::Worker => &mut self.spill,
        }
    }
}

impl Pool {
    fn count(&self) -> usize {
        self.starting.len() + self.idle.len() + self.busy
    }

    /// A worker has nothing to do.
    fn free(&mut self, worker: WorkerId) {
        while let Some(waiter) = self.waiting.pop_front() {
            if waiter.send(worker).is_ok() {
                self.busy += 1;
                return;
            }
        }
        self.idle.push(worker);
    }

    /// A start came to nothing: who has waited longest hears of it, so that nobody waits for what never works.
    fn start_failed(&mut self, worker: &WorkerId) {
        self.starting.remove(worker);
        self.waiting.pop_front();
    }
}

fn kind_of(kind: WorkerType) -> Option<WorkerKind> {
    match kind {
        WorkerType::SpillWorker => Some(WorkerKind::SpillWorker),
        WorkerType::RestoreWorker => Some(WorkerKind::RestoreWorker),
        WorkerType::Worker | WorkerType::Driver => None,
    }
}

impl Control {
    /// Something that a core wants of an IO worker.
    pub(super) fn spill(self: &Rc<Self>, ask: SpillAsk) {
        let control = self.clone();
        match ask {
            SpillAsk::Write { shard, file, objects } => {
                tokio::task::spawn_local(async move {
                    let urls = control.spill_objects(&objects).await;
                    control.to_core(shard, ToCore::Spilled(SpillTold::Written { file, urls }));
                });
            }
            SpillAsk::Read { shard, ticket, id, url } => {
                tokio::task::spawn_local(async move {
                    let why = control.restore_object(id, &url).await.err().unwrap_or_default();
                    control.to_core(shard, ToCore::Spilled(SpillTold::Read { ticket, id, why }));
                });
            }
            SpillAsk::Delete { urls } => self.delete_spilled(urls),
        }
    }

    async fn spill_objects(self: &Rc<Self>, objects: &[(ObjectId, Vec<u8>)]) -> Result<Vec<String>, String> {
        let reference = |(object, owner): &(ObjectId, Vec<u8>)| ObjectReference {
            object_id: id(object.as_bytes()),
            // Where nothing is known of an owner the address is empty, and who reads it back sees none.
            owner_address: Some(Address::decode(&owner[..]).unwrap_or_default()),
            ..ObjectReference::default()
        };
        let request = SpillObjectsRequest { object_refs_to_spill: objects.iter().map(reference).collect() };
        let call = |client: CoreWorkerClient| async move { client.spill_objects(request, IO_TIMEOUT).await };
        let urls = self.with_io_worker(WorkerKind::SpillWorker, call).await?.spilled_objects_url;
        if urls.len() == objects.len() {
            return Ok(urls);
        }
        // A worker says no more than how many it wrote; why is in its log. They are written again, together.
        let why = format!("an IO worker wrote {} of {} objects (see its log)", urls.len(), objects.len());
        self.delete_spilled(urls);
        Err(why)
    }

    async fn restore_object(self: &Rc<Self>, object: ObjectId, url: &str) -> Result<(), String> {
        let mut tries = 0;
        loop {
            let request = RestoreSpilledObjectsRequest {
                spilled_objects_url: vec![url.to_owned()],
                object_ids_to_restore: vec![id(object.as_bytes())],
            };
            let call =
                |client: CoreWorkerClient| async move { client.restore_spilled_objects(request, IO_TIMEOUT).await };
            let why = match self.with_io_worker(WorkerKind::RestoreWorker, call).await {
                Ok(reply) if reply.bytes_restored_total > 0 => return Ok(()),
                Ok(_) => "an IO worker could not read it (see its log)".to_owned(),
                Err(why) => why,
            };
            tries += 1;
            if tries >= TRIES_MAX {
                return Err(why);
            }
            tokio::time::sleep(TRY_PAUSE).await;
        }
    }

    /// Has what nobody wants any more deleted, soon.
    fn delete_spilled(self: &Rc<Self>, mut urls: Vec<String>) {
        urls.dedup_by(|one, other| base(one) == base(other));
        let mut io = self.io.borrow_mut();
        io.unwanted.append(&mut urls);
        if io.unwanted.is_empty() || std::mem::replace(&mut io.deleting, true) {
            return;
        }
        drop(io);
        let control = self.clone();
        tokio::task::spawn_local(async move { control.delete_unwanted().await });
    }

    async fn delete_unwanted(self: &Rc<Self>) {
        let mut tries = 0;
        loop {
            let urls: Vec<String> = {
                let mut io = self.io.borrow_mut();
                let keep = io.unwanted.len().saturating_sub(DELETED_AT_ONCE);
                io.unwanted.split_off(keep)
            };
            if urls.is_empty() {
                break;
            }
            let request = DeleteSpilledObjectsRequest { spilled_objects_url: urls.clone() };
            let call =
                |client: CoreWorkerClient| async move { client.delete_spilled_objects(request, IO_TIMEOUT).await };
            let Err(why) = self.with_io_worker(WorkerKind::SpillWorker, call).await else {
                tries = 0;
                continue;
            };
            tries += 1;
            if tries < TRIES_MAX {
                self.io.borrow_mut().unwanted.extend(urls);
                tokio::time::sleep(TRY_PAUSE).await;
            } else {
                tries = 0;
                tracing::warn!(why, first = urls[0], count = urls.len(), "spilled objects are left in their storage");
            }
        }
        self.io.borrow_mut().deleting = false;
    }

    /// Has an IO worker do something. One that does not answer is ended, before anybody is told: it may still be at work on
    /// memory that others get next.
    async fn with_io_worker<T, F: Future<Output = Result<T, tonic::Status>>>(
        self: &Rc<Self>,
        kind: WorkerKind,
        call: impl FnOnce(CoreWorkerClient) -> F,
    ) -> Result<T, String> {
        let waiting = {
            let mut io = self.io.borrow_mut();
            let (waiter, waiting) = oneshot::channel();
            let pool = io.pool(kind);
            pool.waiting.push_back(waiter);
            if let Some(worker) = pool.idle.pop() {
                pool.free(worker);
            }
            waiting
        };
        self.start_io_workers(kind);
        let worker = waiting.await.map_err(|_| "no IO worker could be started".to_owned())?;
        let member = self.registry.borrow().get(&worker).cloned();
        let member = member.ok_or_else(|| "the IO worker is gone".to_owned())?;
        let answer = call(self.core_workers.of(&member.ip_address, member.port)).await;
        if let Err(status) = &answer {
            let detail = format!("An IO worker did not answer: {}", status.message());
            self.destroy(&worker, WorkerExitType::SystemError, detail, true);
        } else if self.registry.borrow().get(&worker).is_some() {
            let mut io = self.io.borrow_mut();
            let pool = io.pool(kind);
            pool.busy = pool.busy.saturating_sub(1);
            pool.free(worker);
        }
        answer.map_err(|status| status.message().to_owned())
    }

    fn start_io_workers(self: &Rc<Self>, kind: WorkerKind) {
        let most = self.ray_config.max_io_workers.max(1) as usize;
        loop {
            let wanted = {
                let mut io = self.io.borrow_mut();
                let pool = io.pool(kind);
                pool.count() < most && pool.waiting.len() > pool.starting.len()
            };
            if !wanted {
                return;
            }
            if let Err(why) = self.start_io_worker(kind) {
                tracing::error!(why, "an IO worker can't be started, so objects can't be spilled or restored");
                self.io.borrow_mut().pool(kind).waiting.clear();
            }
        }
    }

    fn start_io_worker(self: &Rc<Self>, kind: WorkerKind) -> Result<(), String> {
        let worker = WorkerId(rand::random());
        let start = WorkerStart {
            language: Language::Python,
            kind,
            worker_id: worker,
            job_id: JobId::default(),
            runtime_env_hash: 0,
            serialized_runtime_env_context: "",
            dynamic_options: &[],
            launch_time_ms: unix_ms(),
        };
        let command = self.commands.build(&start).map_err(|e| e.to_string())?;
        let spec = SpawnSpec {
            command,
            own_group: self.ray_config.process_group_cleanup_enabled,
            oom_score_adjustment: Some(self.ray_config.worker_oom_score_adjustment),
            dies_with_node: true,
            ..SpawnSpec::default()
        };
        let started = self.processes.spawn(&spec).map_err(|e| e.to_string())?;
        tracing::info!(pid = started.pid, %worker, ?kind, "started an IO worker");
        self.counters.processes_started.add_one();
        self.io.borrow_mut().pool(kind).starting.insert(worker, started.key);
        let limit = Duration::from_secs(self.ray_config.worker_register_timeout_seconds.max(1) as u64);
        let control = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(limit).await;
            if control.io.borrow().is_starting(kind, &worker) {
                tracing::warn!(pid = started.pid, "an IO worker did not register in time and is killed");
                control.processes.kill(started.key);
            }
        });
        Ok(())
    }

    /// An IO worker registers: its process, if this node is waiting for it.
    pub(super) fn io_registers(&self, worker: &WorkerId, kind: WorkerType) -> Option<ProcessKey> {
        let mut io = self.io.borrow_mut();
        let pool = io.pool(kind_of(kind)?);
        let process = pool.starting.remove(worker)?;
        // Counted until it announces where it is called.
        pool.busy += 1;
        Some(process)
    }

    /// An IO worker can be called.
    pub(super) fn io_ready(&self, member: &Member) {
        if let Some(kind) = kind_of(member.kind) {
            let mut io = self.io.borrow_mut();
            let pool = io.pool(kind);
            pool.busy = pool.busy.saturating_sub(1);
            pool.free(member.worker);
        }
    }

    /// An IO worker is no more.
    pub(super) fn io_gone(self: &Rc<Self>, member: &Member) {
        let Some(kind) = kind_of(member.kind) else {
            return;
        };
        {
            let mut io = self.io.borrow_mut();
            let pool = io.pool(kind);
            let idle = pool.idle.len();
            pool.idle.retain(|worker| *worker != member.worker);
            if pool.idle.len() == idle {
                pool.busy = pool.busy.saturating_sub(1);
            }
        }
        self.start_io_workers(kind);
    }

    /// A process ended. True: it was to be an IO worker, and had not registered.
    pub(super) fn io_start_ended(self: &Rc<Self>, process: ProcessKey) -> bool {
        let found = {
            let mut io = self.io.borrow_mut();
            [WorkerKind::SpillWorker, WorkerKind::RestoreWorker].into_iter().find_map(|kind| {
                let pool = io.pool(kind);
                let worker = pool.starting.iter().find(|(_, key)| **key == process).map(|(worker, _)| *worker)?;
                pool.start_failed(&worker);
                Some(kind)
            })
        };
        if let Some(kind) = found {
            self.start_io_workers(kind);
        }
        found.is_some()
    }
}

impl IoWorkers {
    fn is_starting(&self, kind: WorkerKind, worker: &WorkerId) -> bool {
        let pool = if kind == WorkerKind::RestoreWorker { &self.restore } else { &self.spill };
        pool.starting.contains_key(worker)
    }
}
