//! What happens to worker processes: started, ready, blocked, idle for too long, gone.

use super::api::*;
use super::bank::SchedMsg;
use super::grant::account;
use super::queue::{LeaseIdx, Process, Stage};
use super::scheduler::Scheduler;
use super::types::*;
use super::workers::{Doing, Prestart, Starting, Worker};
use crate::ids::{JobId, NowNs, WorkerId};

impl Scheduler {
    /// Finds a process for a lease that waits and counts on none: one on its way, an idle one of another shard, or a new one.
    pub(crate) fn get_process(&mut self, at: LeaseIdx, seek: bool, _now: NowNs, out: &mut Vec<SchedEffect>) {
        let Stage::Worker { seq, process: Process::None | Process::Sought } = self.leases.get(at).stage else {
            return;
        };
        let fit = self.fit_of(at);
        let process = if let Some(token) = self.workers.claim(&fit, at) {
            Process::Started(token)
        } else if seek && !self.alone() {
            let (origin, lease) = (self.config.shard, self.leases.get(at).id);
            out.push(SchedEffect::ToShard { to: self.next_shard(), msg: SchedMsg::SeekWorker { origin, lease, fit } });
            Process::Sought
        } else {
            let place = self.workers.next_seq();
            self.workers.starts.insert(place, at);
            Process::Queued(place)
        };
        self.leases.get_mut(at).stage = Stage::Worker { seq, process };
        self.run_starts(out);
    }

    /// Starts processes as far as the limit allows: for leases first, ahead of need after them.
    pub(crate) fn run_starts(&mut self, out: &mut Vec<SchedEffect>) {
        while self.workers.starting.len() < self.config.startup_concurrency.max(1) as usize {
            let start = StartToken::new(self.config.shard, self.start_count + 1);
            if let Some((_, at)) = self.workers.starts.pop_first() {
                let fit = self.fit_of(at);
                let lease = self.leases.get_mut(at);
                if let Stage::Worker { process, .. } = &mut lease.stage {
                    *process = Process::Started(start);
                }
                let starting = Starting { key: fit.key, job: Some(fit.job), lease: Some(at), keep_alive_ns: 0 };
                let lease = Some(lease.id);
                self.workers.starting.insert(start, starting);
                out.push(SchedEffect::StartWorker { start, key: fit.key, job: Some(fit.job), lease });
            } else if let Some(Prestart { key, job, keep_alive_ns }) = self.workers.prestarts.pop_front() {
                self.workers.starting.insert(start, Starting { key, job, lease: None, keep_alive_ns });
                out.push(SchedEffect::StartWorker { start, key, job, lease: None });
            } else {
                return;
            }
            self.start_count += 1;
        }
    }

    pub(crate) fn prestart(
        &mut self,
        key: WorkerKey,
        job: Option<JobId>,
        count: PrestartCount,
        keep_alive_ns: u64,
        out: &mut Vec<SchedEffect>,
    ) {
        if self.draining || job.is_some_and(|job| self.is_finished(job)) {
            return;
        }
        let count = match count {
            PrestartCount::New(count) => count,
            PrestartCount::Backlog(backlog) => {
                let desired = backlog.saturating_add(1).min(self.ledger.free_cpus());
                match desired {
                    0 => 0,
                    desired => desired.saturating_sub(self.workers.usable(key, job)),
                }
            }
        };
        let room = (self.config.prestart_queue_max as usize).saturating_sub(self.workers.prestarts.len());
        let one = Prestart { key, job, keep_alive_ns };
        self.workers.prestarts.extend(std::iter::repeat_n(one, room.min(count as usize)));
        self.run_starts(out);
    }

    pub(crate) fn worker_ready(
        &mut self,
        id: WorkerId,
        start: Option<StartToken>,
        key: WorkerKey,
        job: Option<JobId>,
        now: NowNs,
        out: &mut Vec<SchedEffect>,
    ) {
        if self.workers.map.contains_key(&id) {
            return;
        }
        let starting = start.and_then(|start| self.workers.starting.remove(&start));
        let keep_until = starting.as_ref().map_or(0, |starting| now + starting.keep_alive_ns);
        let for_lease = starting.and_then(|starting| starting.lease);
        if let Some(at) = for_lease {
            if let Stage::Worker { process, .. } = &mut self.leases.get_mut(at).stage {
                *process = Process::None;
            }
        }
        self.take_in(Worker::new(id, key, job, keep_until), now, out);
        if let Some(at) = for_lease {
            self.get_process(at, false, now, out);
        }
        self.run_starts(out);
    }

    /// A worker that is in no list: it exits if its job is over, else it serves or is idle.
    pub(crate) fn take_in(&mut self, mut worker: Worker, now: NowNs, out: &mut Vec<SchedEffect>) {
        let over = worker.root.is_none() && worker.job.is_some_and(|job| self.is_finished(job));
        // What still waits in a job that is over descends from a detached actor, and its workers start under that job.
        if over && self.workers.first_waiting(&self.leases, &worker).is_none() {
            worker.doing = Doing::Leaving;
            out.push(SchedEffect::ExitWorker { worker: worker.id, why: ExitReason::JobFinished });
            self.workers.map.insert(worker.id, worker);
            return;
        }
        self.offer(worker, now, out);
    }

    pub(crate) fn start_failed(
        &mut self,
        start: StartToken,
        why: StartFailure,
        now: NowNs,
        out: &mut Vec<SchedEffect>,
    ) {
        let Some(starting) = self.workers.starting.remove(&start) else {
            return;
        };
        if let Some(at) = starting.lease {
            let lease = self.leases.get_mut(at);
            lease.attempts += u32::from(why != StartFailure::NoneCame);
            let attempts = lease.attempts;
            match why {
                StartFailure::RuntimeEnv(message) => self.fail(at, FailReason::RuntimeEnv(message), now, out),
                StartFailure::NotRegistered | StartFailure::JobConfigMissing | StartFailure::NoneCame => {
                    if attempts >= self.config.start_attempts_max {
                        self.fail(at, FailReason::WorkerStart { attempts }, now, out);
                    } else {
                        self.workers.stop_waiting(&mut self.leases, at);
                        self.free_resources(at);
                        self.ready(at, true, now, out);
                    }
                }
            }
        }
        self.run_starts(out);
    }

    /// Handles an event about a worker here, or passes it on to where the worker has gone.
    pub(crate) fn about_worker(&mut self, id: WorkerId, event: SchedEvent, now: NowNs, out: &mut Vec<SchedEffect>) {
        let Some(worker) = self.workers.map.get(&id) else {
            if let Some(to) = self.moved.get(&id).copied() {
                out.push(SchedEffect::ToShard { to, msg: SchedMsg::Passed(Box::new(event)) });
            }
            return;
        };
        let lease = match worker.doing {
            Doing::Leased(lease) => self.leases.find(lease),
            _ => None,
        };
        match (event, lease) {
            (SchedEvent::Blocked { .. }, Some(at)) => self.block(at),
            (SchedEvent::Unblocked { .. }, Some(at)) => self.unblock(at),
            (SchedEvent::WorkerGone { .. }, lease) => self.worker_gone(id, lease, now, out),
            (SchedEvent::ExitRefused { .. }, _) if worker.doing == Doing::AskedToExit => {
                if let Some(worker) = self.workers.remove(id) {
                    self.take_in(worker, now, out);
                }
            }
            _ => {}
        }
    }

    fn block(&mut self, at: LeaseIdx) {
        let lease = self.leases.get_mut(at);
        if std::mem::replace(&mut lease.cpu_out, true) {
            return;
        }
        let account = account(lease);
        self.ledger.give_back(&lease.allocation, account, |kind| kind == ResourceKind::Cpu);
        let allocation = lease.allocation.clone();
        self.soil_all(&allocation);
    }

    fn unblock(&mut self, at: LeaseIdx) {
        let lease = self.leases.get_mut(at);
        if std::mem::replace(&mut lease.cpu_out, false) {
            let account = account(lease);
            self.ledger.retake_cpu(&lease.allocation, account);
        }
    }

    fn worker_gone(&mut self, id: WorkerId, lease: Option<LeaseIdx>, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.workers.remove(id);
        if let Some(at) = lease {
            let lease = self.leases.get(at);
            out.push(SchedEffect::LeaseLost { lease: lease.id, class: lease.class, worker: id });
            self.end(at, now, out);
        }
        for to in (0..self.config.shards).filter(|to| *to != self.config.shard) {
            out.push(SchedEffect::ToShard { to, msg: SchedMsg::Forget { worker: id } });
        }
    }
}
