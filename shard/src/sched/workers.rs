//! The worker pool: who is idle, who is starting, and which leases wait for them.
//!
//! A lease holds its resources while it waits for a worker, so at most as many processes start as there are leases that could
//! run. Any worker that fits serves the lease that has waited longest, whoever it was started for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

use super::queue::{LeaseIdx, Leases, Process, Stage};
use super::types::*;
use crate::ids::{ActorId, JobId, LeaseId, NowNs, WorkerId};

/// What a lease needs in a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fit {
    /// The kind of process.
    pub key: WorkerKey,
    /// Its job, or none yet.
    pub job: JobId,
    /// The detached actor the lease descends from.
    pub root: Option<ActorId>,
    /// Whether it needs a GPU.
    pub is_gpu: bool,
    /// Whether it creates an actor.
    pub is_actor: bool,
}

/// What a worker does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Doing {
    /// Nothing, since then; its place among the idle.
    Idle(NowNs, u64),
    /// It serves a lease.
    Leased(LeaseId),
    /// Asked to exit; it may refuse.
    AskedToExit,
    /// It will go; it serves nobody.
    Leaving,
}

/// A registered worker process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) key: WorkerKey,
    pub(crate) job: Option<JobId>,
    pub(crate) root: Option<ActorId>,
    pub(crate) is_gpu: Option<bool>,
    pub(crate) is_actor: Option<bool>,
    pub(crate) keep_until_ns: NowNs,
    pub(crate) doing: Doing,
}

impl Worker {
    pub(crate) fn new(id: WorkerId, key: WorkerKey, job: Option<JobId>, keep_until_ns: NowNs) -> Self {
        Self { id, key, job, root: None, is_gpu: None, is_actor: None, keep_until_ns, doing: Doing::Leaving }
    }

    /// Ray's rule (2.60, worker pool): same kind of process; job, detached root, GPU and actor "unset or equal".
    pub(crate) fn fits(&self, fit: &Fit) -> bool {
        self.key == fit.key
            && self.job.is_none_or(|job| job == fit.job)
            && (self.root.is_none() || fit.root.is_none() || self.root == fit.root)
            && self.is_gpu.is_none_or(|gpu| gpu == fit.is_gpu)
            && self.is_actor.is_none_or(|actor| actor == fit.is_actor)
    }

    /// The first lease fixes what the worker is from then on.
    fn settle(&mut self, fit: &Fit, lease: LeaseId) {
        self.job = Some(fit.job);
        self.root = self.root.or(fit.root);
        self.is_gpu = Some(fit.is_gpu);
        self.is_actor = Some(fit.is_actor);
        self.doing = Doing::Leased(lease);
    }
}

/// A process on its way.
#[derive(Debug)]
pub(crate) struct Starting {
    pub(crate) key: WorkerKey,
    pub(crate) job: Option<JobId>,
    /// Who counts on it.
    pub(crate) lease: Option<LeaseIdx>,
    pub(crate) keep_alive_ns: u64,
}

/// A start ahead of need that waits for its turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prestart {
    pub(crate) key: WorkerKey,
    pub(crate) job: Option<JobId>,
    pub(crate) keep_alive_ns: u64,
}

/// The pool of one shard.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    pub(crate) map: FxHashMap<WorkerId, Worker>,
    idle: FxHashMap<(WorkerKey, Option<JobId>), Vec<WorkerId>>,
    pub(crate) idle_by_age: BTreeSet<(NowNs, u64, WorkerId)>,
    waiting: FxHashMap<WorkerKey, BTreeMap<u64, LeaseIdx>>,
    pub(crate) starting: FxHashMap<StartToken, Starting>,
    pub(crate) starts: BTreeMap<u64, LeaseIdx>,
    pub(crate) prestarts: VecDeque<Prestart>,
    /// Workers that have not been told to go.
    pub(crate) staying: u32,
    pub(crate) leased: u32,
    seq: u64,
}

impl Workers {
    pub(crate) fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Makes a worker idle.
    pub(crate) fn push_idle(&mut self, mut worker: Worker, now: NowNs) {
        let seq = self.next_seq();
        worker.doing = Doing::Idle(now, seq);
        self.idle.entry((worker.key, worker.job)).or_default().push(worker.id);
        self.idle_by_age.insert((now, seq, worker.id));
        self.staying += 1;
        self.map.insert(worker.id, worker);
    }

    /// The idle worker used last that fits, one of the job before one of no job yet; it is then leased.
    pub(crate) fn pop_idle(&mut self, fit: &Fit, lease: LeaseId) -> Option<WorkerId> {
        let id = self.find_idle(fit)?;
        let mut worker = self.remove(id)?;
        worker.settle(fit, lease);
        self.staying += 1;
        self.leased += 1;
        self.map.insert(id, worker);
        Some(id)
    }

    /// An idle worker that fits.
    pub(crate) fn find_idle(&self, fit: &Fit) -> Option<WorkerId> {
        let of = |job| self.idle.get(&(fit.key, job)).into_iter().flat_map(|ids| ids.iter().rev());
        of(Some(fit.job)).chain(of(None)).find(|id| self.map[id].fits(fit)).copied()
    }

    /// Idle workers that a lease of the job could use, and processes on their way that nobody counts on.
    pub(crate) fn usable(&self, key: WorkerKey, job: Option<JobId>) -> u32 {
        let of = |job| self.idle.get(&(key, job)).map_or(0, Vec::len);
        let idle = if job.is_some() { of(job) + of(None) } else { of(None) };
        let fits =
            |start: &&Starting| start.lease.is_none() && start.key == key && (start.job.is_none() || start.job == job);
        let queued = self.prestarts.iter().filter(|start| start.key == key && start.job == job).count();
        (idle + self.starting.values().filter(fits).count() + queued) as u32
    }

    /// Takes a worker out, whatever it does.
    pub(crate) fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        let worker = self.map.remove(&id)?;
        match worker.doing {
            Doing::Idle(since, seq) => {
                self.idle_by_age.remove(&(since, seq, id));
                if let Some(ids) = self.idle.get_mut(&(worker.key, worker.job)) {
                    if let Some(at) = ids.iter().rposition(|idle| *idle == id) {
                        ids.remove(at);
                    }
                }
                self.staying -= 1;
            }
            Doing::Leased(_) => {
                self.staying -= 1;
                self.leased -= 1;
            }
            Doing::AskedToExit | Doing::Leaving => {}
        }
        Some(worker)
    }

    /// Forgets lists that are empty. Not done when they become so: the next return fills them again.
    pub(crate) fn tidy(&mut self) {
        self.idle.retain(|_, ids| !ids.is_empty());
        self.waiting.retain(|_, leases| !leases.is_empty());
    }

    /// Takes a worker out of service; it stays known until it is gone.
    pub(crate) fn retire(&mut self, id: WorkerId, doing: Doing) {
        if let Some(mut worker) = self.remove(id) {
            worker.doing = doing;
            self.map.insert(id, worker);
        }
    }

    /// Queues a lease for a worker; its place.
    pub(crate) fn wait(&mut self, key: WorkerKey, lease: LeaseIdx) -> u64 {
        let seq = self.next_seq();
        self.waiting.entry(key).or_default().insert(seq, lease);
        seq
    }

    /// Takes a lease out of the queue for a worker; the process it counted on goes to another that has none.
    pub(crate) fn stop_waiting(&mut self, leases: &mut Leases, at: LeaseIdx) {
        let lease = leases.get(at);
        let Stage::Worker { seq, process } = lease.stage else {
            return;
        };
        let key = leases.class(lease.class).def.worker;
        if let Some(queue) = self.waiting.get_mut(&key) {
            queue.remove(&seq);
        }
        match process {
            Process::Queued(place) => drop(self.starts.remove(&place)),
            Process::Started(token) => self.pass_on(leases, token),
            Process::None | Process::Sought => {}
        }
    }

    /// Gives a start that nobody counts on any more to the first lease that still has none.
    fn pass_on(&mut self, leases: &mut Leases, token: StartToken) {
        let Some(start) = self.starting.get_mut(&token) else {
            return;
        };
        start.lease = None;
        let (key, job) = (start.key, start.job);
        let Some(queue) = self.waiting.get(&key) else {
            return;
        };
        for (_, at) in queue.iter() {
            let lease = leases.get(*at);
            let Stage::Worker { seq, process } = lease.stage else {
                continue;
            };
            let place = match process {
                Process::Queued(place) => Some(place),
                Process::None => None,
                Process::Sought | Process::Started(_) => continue,
            };
            if job.is_none_or(|job| job == lease.job) {
                let at = *at;
                place.map(|place| self.starts.remove(&place));
                leases.get_mut(at).stage = Stage::Worker { seq, process: Process::Started(token) };
                start.lease = Some(at);
                return;
            }
        }
    }

    /// A start on its way that nobody counts on and that will fit.
    pub(crate) fn claim(&mut self, fit: &Fit, at: LeaseIdx) -> Option<StartToken> {
        let free = |(_, start): &(&StartToken, &mut Starting)| {
            start.lease.is_none() && start.key == fit.key && start.job.is_none_or(|job| job == fit.job)
        };
        let (token, start) = self.starting.iter_mut().filter(free).min_by_key(|(token, _)| **token)?;
        start.lease = Some(at);
        Some(*token)
    }

    /// The lease that has waited longest among those that a worker fits.
    pub(crate) fn first_waiting(&self, leases: &Leases, worker: &Worker) -> Option<LeaseIdx> {
        let queue = self.waiting.get(&worker.key)?;
        queue.values().copied().find(|at| worker.fits(&leases.get(*at).fit(worker.key)))
    }

    /// Books a worker that is in no list to a lease.
    pub(crate) fn lease_out(&mut self, mut worker: Worker, fit: &Fit, lease: LeaseId) {
        worker.settle(fit, lease);
        self.staying += 1;
        self.leased += 1;
        self.map.insert(worker.id, worker);
    }

    /// Verifies that lists and counts agree.
    pub(crate) fn check(&self, leases: &Leases) -> Result<(), String> {
        let count = |what: fn(&Doing) -> bool| self.map.values().filter(|worker| what(&worker.doing)).count();
        let idle = count(|doing| matches!(doing, Doing::Idle(..)));
        let leased = count(|doing| matches!(doing, Doing::Leased(_)));
        if idle != self.idle_by_age.len() || idle != self.idle.values().map(Vec::len).sum::<usize>() {
            return Err(format!("{idle} workers are idle, {} listed", self.idle_by_age.len()));
        }
        if leased != self.leased as usize || idle + leased != self.staying as usize {
            return Err(format!("{leased} workers are leased, {} counted; {} staying", self.leased, self.staying));
        }
        for worker in self.map.values() {
            let Doing::Leased(lease) = worker.doing else {
                continue;
            };
            let stage = leases.find(lease).map(|at| leases.get(at).stage);
            if stage != Some(Stage::Granted(worker.id)) {
                return Err(format!("{:?} serves {lease:?}, which is {stage:?}", worker.id));
            }
        }
        for (token, start) in &self.starting {
            let Some(at) = start.lease else { continue };
            let stage = leases.slab.get(at as usize).map(|lease| lease.stage);
            if !matches!(stage, Some(Stage::Worker { process: Process::Started(of), .. }) if of == *token) {
                return Err(format!("{token:?} is for a lease that is {stage:?}"));
            }
        }
        let waiting: usize = self.waiting.values().map(BTreeMap::len).sum();
        let counted: u32 = leases.classes.values().map(|class| class.waiting_worker).sum();
        if waiting != counted as usize {
            return Err(format!("{waiting} leases wait for a worker, {counted} counted"));
        }
        Ok(())
    }
}
