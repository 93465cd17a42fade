//! What comes from the cores, and where it goes.

use std::rc::Rc;

use raylet_shard::sched::SchedEffect;

use super::leases::Outcome;
use super::Control;
use crate::bridge::ToControl;
use crate::ray::proto::node_death_info::Reason;

/// Messages of the cores handled before other tasks of the thread get their turn.
const BATCH: usize = 256;

impl Control {
    /// Handles messages of the cores until the node ends.
    pub async fn run(self: Rc<Self>, messages: flume::Receiver<ToControl>) {
        while let Ok(message) = messages.recv_async().await {
            self.handle(message);
            for message in messages.try_iter().take(BATCH) {
                self.handle(message);
            }
        }
    }

    fn handle(self: &Rc<Self>, message: ToControl) {
        match message {
            ToControl::Sched(effect) => self.sched_effect(effect),
            ToControl::Pinned { token, ok } => {
                if let Some(waiter) = self.waiters.borrow_mut().pins.remove(&token) {
                    // A caller that hung up asks again, and pinning twice is pinning once.
                    let _ = waiter.send(ok);
                }
            }
            ToControl::StoreFull => self.collect_garbage_soon(),
            ToControl::Message { conn, message } => self.client_message(conn, message),
            ToControl::Gone { conn, .. } => {
                self.cancel_fetches_of(conn);
                self.connection_gone(conn);
            }
            ToControl::Failed { shard, error } => {
                tracing::error!(shard, error, "a core failed");
                self.shutdown.ask(Reason::UnexpectedTermination, &format!("core {shard} failed: {error}"));
            }
        }
    }

    fn sched_effect(self: &Rc<Self>, effect: SchedEffect) {
        self.mark_resources_changed();
        match effect {
            SchedEffect::Granted { token, lease, worker, allocation, .. } => {
                self.lease_outcome(token, lease, Outcome::Granted(worker, allocation));
            }
            SchedEffect::Rejected { token, lease, .. } => self.lease_outcome(token, lease, Outcome::Rejected),
            SchedEffect::Cancelled { token, lease, why } => self.lease_outcome(token, lease, Outcome::Cancelled(why)),
            SchedEffect::Failed { token, lease, why } => self.lease_outcome(token, lease, Outcome::Failed(why)),
            SchedEffect::Withdrawn { token, lease } => self.lease_outcome(token, lease, Outcome::Withdrawn),
            SchedEffect::StartWorker { start, key, job, lease } => self.start_worker(start, key, job, lease),
            SchedEffect::ExitWorker { worker, why } => self.exit_worker(worker, why),
            SchedEffect::KillWorker { worker, lease, why } => self.kill_worker(worker, lease, why),
            SchedEffect::LeaseLost { lease, .. } => {
                self.leases.borrow_mut().remove(&lease);
            }
            SchedEffect::WorkerMoved { worker, to } => {
                if let Some(member) = self.registry.borrow_mut().get_mut(&worker) {
                    member.shard = to;
                }
            }
            SchedEffect::BundlesPrepared { token, ok } => self.bundles_answered(token, ok),
            SchedEffect::BundlesCommitted { token, unknown } => self.bundles_answered(token, unknown.is_empty()),
            SchedEffect::BundlesReturned { token, .. } => self.bundles_answered(token, true),
            SchedEffect::GroupForgotten { group, forgotten, .. } => self.group_forgotten(group, forgotten),
            SchedEffect::CancelDone { .. } | SchedEffect::CancelledMany { .. } => {}
            // Carried out on the core.
            SchedEffect::WatchDeps { .. } | SchedEffect::UnwatchDeps { .. } | SchedEffect::ToShard { .. } => {}
        }
    }
}
