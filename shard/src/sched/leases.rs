//! A request's way in and a lease's way out.

use super::api::*;
use super::queue::{ClassState, Lease, LeaseIdx, Stage};
use super::scheduler::Scheduler;
use super::types::ClassId;
use super::workers::Doing;
use crate::ids::{JobId, LeaseId, NowNs, ObjectId, Token, WorkerId};

impl Scheduler {
    pub(crate) fn request(&mut self, request: LeaseRequest, now: NowNs, out: &mut Vec<SchedEffect>) {
        let (token, lease) = (request.token, request.lease);
        if let Some(at) = self.leases.find(lease) {
            return self.retry(at, token, out);
        }
        if !self.leases.classes.contains_key(&request.class) {
            out.push(SchedEffect::Failed { token, lease, why: FailReason::UnknownClass });
        } else if self.draining {
            out.push(SchedEffect::Rejected { token, lease, why: RejectReason::Draining });
        } else if self.is_finished(request.job) && request.root_detached_actor.is_none() {
            out.push(SchedEffect::Cancelled { token, lease, why: CancelReason::JobFinished });
        } else if self.leases.slab.len() >= self.config.leases_max as usize {
            out.push(SchedEffect::Failed { token, lease, why: FailReason::QueueFull });
        } else {
            let deps = request.deps.clone();
            let at = self.leases.insert(request, now);
            if deps.is_empty() {
                self.ready(at, false, now, out);
            } else {
                self.leases.get_mut(at).watched = true;
                out.push(SchedEffect::WatchDeps { lease, deps });
            }
        }
    }

    /// The same request again: a granted lease is answered as before, a queued one answers both.
    fn retry(&mut self, at: LeaseIdx, token: Token, out: &mut Vec<SchedEffect>) {
        let lease = self.leases.get_mut(at);
        if let Stage::Granted(worker) = lease.stage {
            let (lease, class, allocation) = (lease.id, lease.class, lease.allocation.clone());
            out.push(SchedEffect::Granted { token, lease, class, worker, allocation });
        } else if lease.tokens.len() < TOKENS_PER_LEASE_MAX {
            lease.tokens.push(token);
        } else {
            out.push(SchedEffect::Failed { token, lease: lease.id, why: FailReason::TooManyRetries });
        }
    }

    /// A lease whose objects are here joins its class's queue.
    pub(crate) fn ready(&mut self, at: LeaseIdx, front: bool, now: NowNs, out: &mut Vec<SchedEffect>) {
        let (id, class) = (self.leases.get(at).id, self.leases.get(at).class);
        self.leases.set_stage(at, Stage::Ready, front);
        if self.leases.class(class).state == ClassState::Idle {
            let ticket = self.next_ticket();
            let entry = self.leases.class_mut(class);
            (entry.ticket, entry.bypassed) = (ticket, 0);
            self.turn(class, now, out);
        }
        let Some(at) = self.leases.find(id).filter(|at| self.leases.get(*at).grant_or_reject) else {
            return;
        };
        if self.leases.get(at).stage != Stage::Ready {
            return;
        }
        if self.alone() || !self.take_for_lease(at, now, out) {
            self.reject(at, RejectReason::NoRoom, now, out);
        }
    }

    pub(crate) fn reject(&mut self, at: LeaseIdx, why: RejectReason, now: NowNs, out: &mut Vec<SchedEffect>) {
        let lease = self.drop_queued(at, now, out);
        let answer = |token: &Token| SchedEffect::Rejected { token: *token, lease: lease.id, why };
        out.extend(lease.tokens.iter().map(answer));
    }

    pub(crate) fn fail(&mut self, at: LeaseIdx, why: FailReason, now: NowNs, out: &mut Vec<SchedEffect>) {
        let lease = self.drop_queued(at, now, out);
        let answer = |token: &Token| SchedEffect::Failed { token: *token, lease: lease.id, why: why.clone() };
        out.extend(lease.tokens.iter().map(answer));
    }

    /// Takes a lease that is not granted out of everything.
    fn drop_queued(&mut self, at: LeaseIdx, now: NowNs, out: &mut Vec<SchedEffect>) -> Lease {
        self.workers.stop_waiting(&mut self.leases, at);
        self.free_resources(at);
        if self.leases.get(at).watched {
            out.push(SchedEffect::UnwatchDeps { lease: self.leases.get(at).id });
        }
        let lease = self.leases.remove(at);
        self.left(lease.class, now, out);
        lease
    }

    /// A class of which a lease left: with nothing ready it is in no list, and a class held back may go on.
    pub(crate) fn left(&mut self, class: ClassId, now: NowNs, out: &mut Vec<SchedEffect>) {
        if self.leases.class(class).ready == 0 {
            self.unpark(class);
            self.tell_bank(class, now, out);
        }
        self.uncap(class, now, out);
    }

    pub(crate) fn dep_ready(&mut self, lease: LeaseId, object: ObjectId, now: NowNs, out: &mut Vec<SchedEffect>) {
        let Some(at) = self.leases.find(lease) else {
            return;
        };
        let lease = self.leases.get_mut(at);
        if lease.stage != Stage::Deps {
            return;
        }
        lease.missing.retain(|missing| *missing != object);
        if lease.missing.is_empty() {
            self.ready(at, false, now, out);
        }
    }

    pub(crate) fn dep_lost(&mut self, lease: LeaseId, object: ObjectId, now: NowNs, out: &mut Vec<SchedEffect>) {
        let Some(at) = self.leases.find(lease) else {
            return;
        };
        let entry = self.leases.get_mut(at);
        if !entry.watched || !matches!(entry.stage, Stage::Deps | Stage::Ready) {
            return;
        }
        if !entry.missing.contains(&object) {
            entry.missing.push(object);
            out.push(SchedEffect::WatchDeps { lease, deps: smallvec::smallvec![object] });
        }
        if entry.stage == Stage::Ready {
            let class = entry.class;
            self.leases.set_stage(at, Stage::Deps, false);
            self.left(class, now, out);
        }
    }

    pub(crate) fn give_back(&mut self, lease: LeaseId, fate: WorkerFate, now: NowNs, out: &mut Vec<SchedEffect>) {
        let Some(at) = self.leases.find(lease) else {
            return;
        };
        let Stage::Granted(worker) = self.leases.get(at).stage else {
            return;
        };
        let killed = self.leases.get(at).killed;
        self.end(at, now, out);
        if worker.is_nil() {
            return;
        }
        match fate {
            WorkerFate::Keep if !killed => {
                if let Some(worker) = self.workers.remove(worker) {
                    self.take_in(worker, now, out);
                }
            }
            WorkerFate::Keep | WorkerFate::Exiting => self.workers.retire(worker, Doing::Leaving),
            WorkerFate::Disconnect => {
                self.workers.retire(worker, Doing::Leaving);
                if !killed {
                    let lease = Some(lease);
                    out.push(SchedEffect::KillWorker { worker, lease, why: KillReason::Disconnected });
                }
            }
        }
    }

    /// A granted lease is over. Its worker is the caller's business.
    pub(crate) fn end(&mut self, at: LeaseIdx, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.free_resources(at);
        let lease = self.leases.remove(at);
        self.left(lease.class, now, out);
    }

    pub(crate) fn cancel(&mut self, token: Token, lease: LeaseId, now: NowNs, out: &mut Vec<SchedEffect>) {
        let queued = |at: &LeaseIdx| !matches!(self.leases.get(*at).stage, Stage::Granted(_));
        let at = self.leases.find(lease).filter(queued);
        if let Some(at) = at {
            self.cancel_one(at, CancelReason::Asked, now, out);
        }
        out.push(SchedEffect::CancelDone { token, lease, cancelled: at.is_some() });
    }

    pub(crate) fn cancel_one(&mut self, at: LeaseIdx, why: CancelReason, now: NowNs, out: &mut Vec<SchedEffect>) {
        let lease = self.drop_queued(at, now, out);
        let answer = |token: &Token| SchedEffect::Cancelled { token: *token, lease: lease.id, why };
        out.extend(lease.tokens.iter().map(answer));
    }

    pub(crate) fn withdraw(&mut self, lease: LeaseId, now: NowNs, out: &mut Vec<SchedEffect>) {
        let Some(at) = self.leases.find(lease) else {
            return;
        };
        if matches!(self.leases.get(at).stage, Stage::Deps | Stage::Ready) {
            let lease = self.drop_queued(at, now, out);
            let answer = |token: &Token| SchedEffect::Withdrawn { token: *token, lease: lease.id };
            out.extend(lease.tokens.iter().map(answer));
        }
    }

    /// Leases that are not granted and meet a condition, in order of arrival.
    fn queued_where(&self, test: impl Fn(&Lease) -> bool) -> Vec<LeaseId> {
        let queued = |lease: &&Lease| !matches!(lease.stage, Stage::Granted(_)) && test(lease);
        let mut found: Vec<_> = self.leases.slab.iter().map(|(_, lease)| lease).filter(queued).collect();
        found.sort_by_key(|lease| (lease.since, lease.id));
        found.into_iter().map(|lease| lease.id).collect()
    }

    pub(crate) fn cancel_queued(
        &mut self,
        why: CancelReason,
        test: impl Fn(&Lease) -> bool,
        now: NowNs,
        out: &mut Vec<SchedEffect>,
    ) -> u32 {
        // Those that hold nothing go first, so that no resource freed on the way is given to one that goes next.
        let (mut count, queued) = (0, self.queued_where(test));
        for holding in [false, true] {
            for lease in &queued {
                let Some(at) = self.leases.find(*lease) else {
                    continue;
                };
                let lease = self.leases.get(at);
                if matches!(lease.stage, Stage::Worker { .. }) == holding && !matches!(lease.stage, Stage::Granted(_)) {
                    self.cancel_one(at, why, now, out);
                    count += 1;
                }
            }
        }
        count
    }

    /// Kills the workers of granted leases that meet a condition; those without a worker just end.
    pub(crate) fn kill_where(
        &mut self,
        why: KillReason,
        test: impl Fn(&Lease) -> bool,
        now: NowNs,
        out: &mut Vec<SchedEffect>,
    ) {
        let mut without_worker = Vec::new();
        for (at, lease) in &mut self.leases.slab {
            let Stage::Granted(worker) = lease.stage else {
                continue;
            };
            if lease.killed || !test(lease) {
                continue;
            }
            if worker.is_nil() {
                without_worker.push(at as LeaseIdx);
                continue;
            }
            lease.killed = true;
            out.push(SchedEffect::KillWorker { worker, lease: Some(lease.id), why });
        }
        for at in without_worker {
            self.lose(at, now, out);
        }
    }

    /// Ends a granted lease that has no worker.
    pub(crate) fn lose(&mut self, at: LeaseIdx, now: NowNs, out: &mut Vec<SchedEffect>) {
        let (lease, class) = (self.leases.get(at).id, self.leases.get(at).class);
        out.push(SchedEffect::LeaseLost { lease, class, worker: WorkerId::NIL });
        self.end(at, now, out);
    }

    pub(crate) fn owners_gone(&mut self, test: impl Fn(&Lease) -> bool, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.cancel_queued(CancelReason::OwnerGone, |lease| !lease.detached && test(lease), now, out);
        self.kill_where(KillReason::OwnerGone, |lease| !lease.detached && test(lease), now, out);
    }

    pub(crate) fn job_finished(&mut self, job: JobId, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.note_finished(job);
        let below = move |lease: &Lease| lease.job == job && lease.root.is_none();
        self.cancel_queued(CancelReason::JobFinished, below, now, out);
        self.kill_where(KillReason::JobFinished, below, now, out);
        self.workers.prestarts.retain(|start| start.job != Some(job));
        let idle = self.workers.map.values().filter(|worker| worker.job == Some(job) && worker.root.is_none());
        let mut idle: Vec<_> = idle
            .filter(|worker| matches!(worker.doing, Doing::Idle(..) | Doing::AskedToExit))
            .map(|worker| worker.id)
            .collect();
        idle.sort_unstable();
        for worker in idle {
            self.workers.retire(worker, Doing::Leaving);
            out.push(SchedEffect::ExitWorker { worker, why: ExitReason::JobFinished });
        }
    }

    pub(crate) fn drain(&mut self, on: bool, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.draining = on;
        if !on {
            return;
        }
        for lease in self.queued_where(|lease| !matches!(lease.stage, Stage::Worker { .. })) {
            let Some(at) = self.leases.find(lease) else {
                continue;
            };
            if matches!(self.leases.get(at).stage, Stage::Deps | Stage::Ready | Stage::Taking) {
                self.reject(at, RejectReason::Draining, now, out);
            }
        }
    }
}
