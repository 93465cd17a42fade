//! What comes from the cores, and where it goes.

use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use raylet_shard::ids::ShardId;
use raylet_shard::sched::SchedEffect;
use tracing::Instrument;

use super::leases::Outcome;
use super::Control;
use crate::bridge::{ToControl, ToCore};
use crate::ray::core_rpc::OWN_METHODS;
use crate::ray::proto::node_death_info::Reason;
use crate::ray::rpc::router::Router;

/// Messages of the cores handled before other tasks of the thread get their turn.
const BATCH: usize = 256;

impl Control {
    /// Handles messages of the cores until the node ends. `router` has the methods of the node manager's port.
    pub async fn run(self: Rc<Self>, messages: flume::Receiver<ToControl>, router: Router) {
        while let Ok(message) = messages.recv_async().await {
            self.handle(message, &router);
            for message in messages.try_iter().take(BATCH) {
                self.handle(message, &router);
            }
        }
    }

    /// A call that came in on a core. It runs to its end even if its caller gives up: handlers change state after they have
    /// waited, and Ray's clients retry.
    fn call(self: &Rc<Self>, router: &Router, from: ShardId, call: u64, path: &'static str, message: Bytes) {
        let mut reply = router.call(path, message);
        let span = tracing::debug_span!("rpc", method = path, shard = from);
        if !span.is_disabled() {
            reply = Box::pin(reply.instrument(span));
        }
        // Most are answered at once; a task would be a detour.
        match reply.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reply) => self.to_core(from, ToCore::Answered { call, reply }),
            Poll::Pending => {
                let control = self.clone();
                tokio::task::spawn_local(async move {
                    let reply = reply.await;
                    control.to_core(from, ToCore::Answered { call, reply });
                });
            }
        }
    }

    fn handle(self: &Rc<Self>, message: ToControl, router: &Router) {
        match message {
            ToControl::Sched(effect) => self.sched_effect(effect),
            ToControl::Batch(messages) => messages.into_iter().for_each(|message| self.handle(message, router)),
            ToControl::Call { from, call, path, message } => self.call(router, from, call, path, message),
            ToControl::Served { path, ok, took } => {
                if OWN_METHODS.contains(&path) {
                    self.mark_store_changed();
                }
                self.counters.meters.served(path, ok, took);
            }
            ToControl::Asked { lease, shard, class, grant_or_reject, spec } => {
                self.asked_at_desk(lease, (class, shard), grant_or_reject, *spec);
            }
            ToControl::Weighed { token, room, waits } => {
                if let Some(waiter) = self.waiters.borrow_mut().weighed.remove(&token) {
                    // Who asked may have given up.
                    let _ = waiter.send((room, waits));
                }
            }
            ToControl::Granted { lease, worker } => self.granted_at_desk(lease, worker),
            ToControl::Returned { lease } => self.returned_at_desk(lease),
            ToControl::CaughtUp { token } => {
                if let Some(waiter) = self.waiters.borrow_mut().caught_up.remove(&token) {
                    // Who waited may have given up.
                    let _ = waiter.send(());
                }
            }
            ToControl::Native(ask) => {
                if let Some(native) = self.native() {
                    native.ask(ask);
                }
            }
            ToControl::Contained { token, has } => self.looked(token, has),
            // A node of a Ray cluster has other nodes, and no peers.
            ToControl::Peers(_) | ToControl::Found { .. } => {}
            ToControl::Seen(sightings) => self.seen(sightings),
            ToControl::Spill(ask) => self.spill(ask),
            ToControl::CopyLost { object, owner } => self.copy_lost(object, owner),
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
        if let Some(native) = self.native().filter(|native| native.is_for(&effect)) {
            return native.sched_effect(effect);
        }
        match effect {
            SchedEffect::Granted { token, lease, worker, allocation, .. } => {
                self.lease_outcome(token, lease, Outcome::Granted(worker, allocation));
            }
            SchedEffect::Rejected { token, lease, .. } => self.lease_outcome(token, lease, Outcome::Rejected),
            SchedEffect::Cancelled { token, lease, why } => self.lease_outcome(token, lease, Outcome::Cancelled(why)),
            SchedEffect::Failed { token, lease, why } => self.lease_outcome(token, lease, Outcome::Failed(why)),
            SchedEffect::Withdrawn { token, lease } => self.lease_outcome(token, lease, Outcome::Withdrawn(None)),
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
