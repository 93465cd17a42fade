//! What owners and the GCS do to running work: kill an actor, cancel a task, let go of workers that nobody needs.

use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::WorkerId;
use tonic::Status;

use super::Control;
use crate::ray::proto::{self, WorkerExitType};
use crate::ray::registry::Member;

/// Longest wait for a worker's answer to a cancellation, which it gives when the task noticed.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(60);

impl Control {
    /// Kills an actor of this node: the worker is told, with the cause, and helped along where it does not go.
    pub(super) async fn kill_local_actor(self: Rc<Self>, request: proto::KillLocalActorRequest) -> Result<(), Status> {
        let Some(member) = self.live_worker(&request.worker_id)? else {
            return Ok(());
        };
        let kill = proto::KillActorRequest {
            intended_actor_id: request.intended_actor_id,
            force_kill: request.force_kill,
            death_cause: request.death_cause,
        };
        let client = self.core_workers.of(&member.ip_address, member.port);
        let told = client.kill_actor(kill, self.kill_timeout()).await;
        if let Err(error) = &told {
            tracing::info!(worker = %member.worker, %error, "an actor does not answer the request to end and is killed");
        }
        self.end_after(member, told.is_err(), "The actor was killed.");
        Ok(())
    }

    /// Cancels a task that runs in a worker of this node.
    pub(super) async fn cancel_local_task(
        self: Rc<Self>,
        request: proto::CancelLocalTaskRequest,
    ) -> Result<proto::CancelLocalTaskReply, Status> {
        let done = proto::CancelLocalTaskReply { requested_task_running: false, attempt_succeeded: true };
        let Some(member) = self.live_worker(&request.executor_worker_id)? else {
            return Ok(done);
        };
        let cancel = proto::CancelTaskRequest {
            intended_task_id: request.intended_task_id,
            force_kill: request.force_kill,
            recursive: request.recursive,
            caller_worker_id: request.caller_worker_id,
        };
        let client = self.core_workers.of(&member.ip_address, member.port);
        let timeout = if request.force_kill { self.kill_timeout() } else { CANCEL_TIMEOUT };
        match client.cancel_task(cancel, timeout).await {
            Ok(reply) => Ok(proto::CancelLocalTaskReply {
                requested_task_running: reply.requested_task_running,
                attempt_succeeded: reply.attempt_succeeded,
            }),
            Err(error) if request.force_kill => {
                // It died before it could answer, which is what was asked for, or it hangs.
                tracing::info!(worker = %member.worker, %error, "a task is cancelled by force");
                self.end_after(member, true, "The task was cancelled by force.");
                Ok(done)
            }
            Err(error) => Err(error),
        }
    }

    /// The GCS restarted and names the actor workers that it still needs.
    pub(super) fn release_unused_actor_workers(self: &Rc<Self>, request: &proto::ReleaseUnusedActorWorkersRequest) {
        let in_use =
            |member: &Member| request.worker_ids_in_use.iter().any(|id| id[..] == member.worker.as_bytes()[..]);
        let unused: Vec<WorkerId> = {
            let registry = self.registry.borrow();
            let actors = registry.workers().filter(|member| member.actor.is_some() && !in_use(member));
            actors.map(|member| member.worker).collect()
        };
        for worker in unused {
            let detail = "Worker is no longer needed by the GCS.".to_owned();
            self.destroy(&worker, WorkerExitType::IntendedSystemExit, detail, false);
        }
    }

    /// True for a worker that this node does not have.
    pub(super) fn is_worker_dead(&self, worker: &[u8]) -> bool {
        WorkerId::from_slice(worker).is_none_or(|worker| self.registry.borrow().get(&worker).is_none())
    }

    /// The processes of all workers.
    pub(super) fn worker_pids(&self) -> Vec<i32> {
        self.registry.borrow().iter().map(|member| member.pid as i32).collect()
    }

    fn live_worker(&self, bytes: &[u8]) -> Result<Option<Member>, Status> {
        let worker = WorkerId::from_slice(bytes).ok_or_else(|| {
            Status::invalid_argument(format!("expected a worker id of 28 bytes, got {}", bytes.len()))
        })?;
        Ok(self.registry.borrow().get(&worker).cloned())
    }

    fn kill_timeout(&self) -> Duration {
        Duration::from_millis(self.ray_config.kill_worker_timeout_milliseconds.max(0) as u64)
    }

    /// Destroys a worker that has not gone by itself: at once where it does not answer, else after the kill timeout.
    fn end_after(self: &Rc<Self>, member: Member, at_once: bool, detail: &'static str) {
        let control = self.clone();
        tokio::task::spawn_local(async move {
            if !at_once {
                tokio::time::sleep(control.kill_timeout()).await;
            }
            let still_there = control.registry.borrow().get(&member.worker).is_some();
            if still_there {
                control.destroy(&member.worker, WorkerExitType::IntendedSystemExit, detail.to_owned(), true);
            }
        });
    }
}
