//! How workers end: asked to exit, killed, or gone by themselves.

use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::{LeaseId, WorkerId};
use raylet_shard::sched::{ExitReason, KillReason, SchedEvent};

use super::Control;
use crate::ray::metrics::Occupation;
use crate::ray::proto::{self, WorkerExitType};
use crate::ray::registry::{Exit, Member};
use crate::workers::exit::unexpected_exit_text;
use crate::workers::process::ProcessExit;

/// How long the end of a process may come after the end of its connection, so that the cause can name its exit status.
const STATUS_WAIT: Duration = Duration::from_millis(100);

/// Longest wait for a worker's answer to a request to exit.
const EXIT_REPLY_TIMEOUT: Duration = Duration::from_secs(10);

impl Control {
    /// Notes why a worker is about to go. The first cause counts.
    pub(super) fn doom(&self, worker: &WorkerId, kind: WorkerExitType, detail: String) {
        if let Some(member) = self.registry.borrow_mut().get_mut(worker) {
            member.doomed.get_or_insert(Exit { kind, detail });
        }
    }

    /// Ends a worker: it counts as gone at once, and its process is stopped.
    pub(super) fn destroy(self: &Rc<Self>, worker: &WorkerId, kind: WorkerExitType, detail: String, force: bool) {
        self.doom(worker, kind, detail);
        let Some(member) = self.registry.borrow().get(worker).cloned() else {
            return;
        };
        self.member_gone(&member, None, None);
        self.close(member.conn);
        match member.process {
            Some(process) if force => self.processes.kill(process),
            Some(process) => self.processes.terminate(process),
            None => {}
        }
    }

    /// A shard wants a worker gone.
    pub(super) fn kill_worker(self: &Rc<Self>, worker: WorkerId, lease: Option<LeaseId>, why: KillReason) {
        let lease = lease.map_or_else(String::new, |lease| format!(" Lease: {lease}."));
        match why {
            KillReason::Disconnected => self.destroy(
                &worker,
                WorkerExitType::SystemError,
                format!("The owner of the worker's lease gave it back as broken.{lease}"),
                false,
            ),
            KillReason::OwnerGone => self.destroy(
                &worker,
                WorkerExitType::IntendedSystemExit,
                format!("The owner of the worker's lease died.{lease}"),
                false,
            ),
            KillReason::BundleRemoved => self.destroy(
                &worker,
                WorkerExitType::IntendedSystemExit,
                format!("Worker exits because its placement group was removed.{lease}"),
                false,
            ),
            KillReason::JobFinished => self.exit_worker(worker, ExitReason::JobFinished),
        }
    }

    /// A shard asks a worker to exit. It may refuse, unless its job is over.
    pub(super) fn exit_worker(self: &Rc<Self>, worker: WorkerId, why: ExitReason) {
        let Some(member) = self.registry.borrow().get(&worker).cloned() else {
            return;
        };
        let force_exit = why == ExitReason::JobFinished;
        let control = self.clone();
        tokio::task::spawn_local(async move {
            let client = control.core_workers.of(&member.ip_address, member.port);
            let reply = client.exit(proto::ExitRequest { force_exit }, EXIT_REPLY_TIMEOUT).await;
            match (reply, member.process) {
                (Ok(reply), _) if !reply.success && !force_exit => {
                    let shard = control.shard_of_worker(&worker).unwrap_or(member.shard);
                    control.sched(shard, SchedEvent::ExitRefused { worker });
                }
                (Ok(_), Some(process)) => {
                    // It agreed. One that hangs on its way out is helped along.
                    let limit =
                        Duration::from_millis(control.ray_config.kill_worker_timeout_milliseconds.max(0) as u64);
                    tokio::time::sleep(limit).await;
                    control.processes.terminate(process);
                }
                (Err(error), Some(process)) => {
                    tracing::warn!(%worker, %error, "a worker does not answer the request to exit and is killed");
                    control.processes.kill(process);
                }
                (_, None) => {}
            }
        });
    }

    /// The connection of a member ended without a goodbye. The end of its process is awaited for a moment, to tell how.
    pub(super) fn connection_gone(self: &Rc<Self>, conn: u64) {
        let Some(member) = self.registry.borrow().by_conn(conn).cloned() else {
            return;
        };
        let control = self.clone();
        tokio::task::spawn_local(async move {
            if let Some(process) = member.process {
                let deadline = tokio::time::Instant::now() + STATUS_WAIT;
                while control.processes.is_alive(process) && tokio::time::Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            let Some(member) = control.registry.borrow().get(&member.worker).cloned() else {
                return;
            };
            control.member_gone(&member, None, None);
            if let Some(process) = member.process {
                control.processes.terminate(process);
            }
        });
    }

    /// A registered worker's process ended; its connection ends too, and tells the rest.
    pub(super) fn member_process_ended(&self, exit: &ProcessExit) {
        let mut registry = self.registry.borrow_mut();
        let worker = registry.workers().find(|m| m.process == Some(exit.key)).map(|m| m.worker);
        if let Some(member) = worker.and_then(|worker| registry.get_mut(&worker)) {
            let detail = unexpected_exit_text(exit.pid, Some(exit.status));
            member.doomed.get_or_insert(Exit { kind: WorkerExitType::SystemError, detail });
            let conn = member.conn;
            drop(registry);
            self.close(conn);
        }
    }

    /// A member is no longer: everything that was its is given back, and the GCS is told why.
    pub(super) fn member_gone(
        self: &Rc<Self>,
        member: &Member,
        exit: Option<Exit>,
        exception: Option<proto::RayException>,
    ) {
        let Some(member) = self.registry.borrow_mut().remove(&member.worker) else {
            return;
        };
        let unexpected = || Exit { kind: WorkerExitType::SystemError, detail: unexpected_exit_text(member.pid, None) };
        let exit = member.doomed.clone().or(exit).unwrap_or_else(unexpected);
        tracing::info!(worker = %member.worker, pid = member.pid, kind = ?exit.kind, detail = exit.detail, "client disconnected");
        self.core_workers.forget(&member.ip_address, member.port);
        self.report_failure(&member, &exit, exception);
        let backlog = self.objects.borrow_mut().member_gone(&member.worker);
        for (class, shard) in backlog {
            self.sched(shard, SchedEvent::Backlog { owner: member.worker, class, size: 0 });
        }
        let lease = member.lease.and_then(|lease| self.leases.borrow_mut().remove(&lease));
        if exit.kind == WorkerExitType::SystemError {
            let name = lease.map(|lease| lease.name).or_else(|| Some(member.broke_in.clone()?.1));
            self.counters.failures.add(Occupation::of(&member), name.unwrap_or_default());
        }
        if member.is_driver() {
            self.finish_driver_job(&member);
        } else if member.is_io() {
            self.io_gone(&member);
        } else {
            let worked = member.lease.is_some() || member.broke_in.is_some() || member.actor.is_some();
            if exit.kind == WorkerExitType::SystemError && worked {
                self.push_worker_died(&member, &exit);
            }
            self.sched(member.shard, SchedEvent::WorkerGone { worker: member.worker });
        }
        self.owner_gone(member.worker);
    }

    /// A worker or driver, of this node or another, is dead: what it owned or asked for is given up.
    pub fn owner_gone(self: &Rc<Self>, owner: WorkerId) {
        self.dead.borrow_mut().add_worker(owner);
        self.sched_all(SchedEvent::OwnerGone { owner });
        self.forget_locations_of(&owner);
        self.free_objects_of(&owner);
    }

    fn report_failure(self: &Rc<Self>, member: &Member, exit: &Exit, exception: Option<proto::RayException>) {
        let now_ms = super::unix_ms();
        let data = proto::WorkerTableData {
            is_alive: false,
            worker_address: Some(member.address(self.node_id.as_bytes())),
            timestamp: (now_ms / 1000) as i64,
            worker_type: member.kind as i32,
            creation_task_exception: exception,
            exit_type: Some(exit.kind as i32),
            exit_detail: Some(exit.detail.clone()),
            pid: member.pid,
            end_time_ms: now_ms,
            ..Default::default()
        };
        let gcs = self.gcs.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = gcs.report_worker_failure(data).await {
                tracing::warn!(%error, "the GCS was not told of a worker's end");
            }
        });
    }

    fn finish_driver_job(self: &Rc<Self>, member: &Member) {
        let (gcs, job) = (self.gcs.clone(), member.job);
        tokio::task::spawn_local(async move {
            if let Err(error) = gcs.mark_job_finished(job).await {
                tracing::warn!(%error, %job, "the GCS was not told that a job is over");
            }
        });
    }

    fn push_worker_died(self: &Rc<Self>, member: &Member, exit: &Exit) {
        let lease = member.lease.or_else(|| Some(member.broke_in.as_ref()?.0));
        let lease = lease.map_or_else(|| "none".to_owned(), |lease| lease.to_string());
        // Stock's words (seen in its executable): people search for them.
        let message = format!(
            "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot the problem, \
             check the logs for the dead worker. Lease ID: {lease} Worker ID: {} Node ID: {} Worker IP address: {} Worker port: {} Worker PID: {} Worker exit type: {} \
             Worker exit detail: {}",
            member.worker,
            self.node_id,
            member.ip_address,
            member.port,
            member.pid,
            exit.kind.as_ray_name(),
            exit.detail
        );
        self.push_error(member.job, "worker_died", message, super::unix_ms() as f64 / 1000.0);
    }
}
