//! What must be true of the effects, whatever the schedulers do inside.

use rustc_hash::FxHashMap;

use crate::ids::{LeaseId, ShardId, Token, WorkerId};
use crate::sched::*;

/// Numbers drawn in any order in constant time.
#[derive(Debug, Default)]
pub(super) struct Bag {
    items: Vec<u32>,
    at: FxHashMap<u32, usize>,
}

impl Bag {
    pub(super) fn insert(&mut self, item: u32) {
        if !self.at.contains_key(&item) {
            self.at.insert(item, self.items.len());
            self.items.push(item);
        }
    }

    pub(super) fn remove(&mut self, item: u32) -> bool {
        let Some(at) = self.at.remove(&item) else {
            return false;
        };
        self.items.swap_remove(at);
        if let Some(moved) = self.items.get(at) {
            self.at.insert(*moved, at);
        }
        true
    }

    pub(super) fn contains(&self, item: u32) -> bool {
        self.at.contains_key(&item)
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn nth(&self, n: usize) -> u32 {
        self.items[n]
    }

    pub(super) fn all(&self) -> Vec<u32> {
        let mut all = self.items.clone();
        all.sort_unstable();
        all
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LeaseState {
    Queued,
    Granted(u32),
    Done,
}

/// A lease as its owner sees it.
#[derive(Debug)]
pub(super) struct LeaseModel {
    pub(super) class: u32,
    pub(super) shard: ShardId,
    pub(super) state: LeaseState,
    pub(super) tokens: Vec<Token>,
    pub(super) deps: u32,
    pub(super) watched: bool,
    pub(super) request: LeaseRequest,
    needs_worker: bool,
    allocation: Allocation,
}

#[derive(Debug)]
pub(super) struct WorkerModel {
    pub(super) shard: ShardId,
    pub(super) alive: bool,
    /// Out of service: it may serve nobody any more.
    pub(super) retired: bool,
    pub(super) lease: Option<u32>,
    pub(super) blocked: bool,
}

/// What a token that is still to be answered is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    Request(u32),
    Cancel,
    CancelClasses,
    Prepare(u32),
    Commit,
    Return,
    Forget(u32),
}

/// Counts of what happened, so that a run that tried nothing shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen {
    pub(super) granted: u64,
    pub(super) cancelled: u64,
    pub(super) rejected: u64,
    pub(super) failed: u64,
    pub(super) lost: u64,
    pub(super) moved: u64,
    pub(super) prepared: u64,
    pub(super) killed: u64,
    pub(super) forgotten: u64,
}

/// The node as seen from outside.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) leases: Vec<LeaseModel>,
    pub(super) workers: Vec<WorkerModel>,
    pub(super) queued: Bag,
    pub(super) granted: Bag,
    pub(super) alive: Bag,
    pub(super) blocked: Bag,
    /// Workers asked to exit that may refuse, and those that must go.
    pub(super) asked_to_exit: Bag,
    pub(super) dying: Bag,
    pub(super) starting: Vec<(StartToken, WorkerKey, Option<crate::ids::JobId>)>,
    starts: FxHashMap<StartToken, ()>,
    pub(super) asked: FxHashMap<Token, Asked>,
    /// How much of each instance is granted, by resource and index.
    instances: FxHashMap<(ResourceId, u16), Fixed>,
    /// Prepares that succeeded, by bundle group.
    pub(super) prepared: Vec<u32>,
    /// Groups that were forgotten: the world defines their classes anew.
    pub(super) forgotten: Vec<u32>,
    pub(super) seen: Seen,
}

pub(super) fn lease_id(n: u32) -> LeaseId {
    let mut id = [0; LeaseId::LEN];
    id[..4].copy_from_slice(&n.to_le_bytes());
    LeaseId(id)
}

pub(super) fn worker_id(n: u32) -> WorkerId {
    let mut id = [0; WorkerId::LEN];
    id[..4].copy_from_slice(&n.to_le_bytes());
    WorkerId(id)
}

/// The number of the nil id.
pub(super) const NO_WORKER: u32 = u32::MAX;

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

macro_rules! ensure {
    ($test:expr, $($what:tt)*) => {
        if !$test {
            return Err(format!($($what)*));
        }
    };
}

impl Model {
    pub(super) fn new_lease(
        &mut self,
        request: LeaseRequest,
        class: u32,
        shard: ShardId,
        deps: u32,
        needs_worker: bool,
    ) {
        let n = number(&request.lease.0);
        self.asked.insert(request.token, Asked::Request(n));
        let tokens = vec![request.token];
        let (state, allocation) = (LeaseState::Queued, Allocation::default());
        let watched = false;
        self.leases.push(LeaseModel { class, shard, state, tokens, deps, watched, request, needs_worker, allocation });
        self.queued.insert(n);
    }

    pub(super) fn new_worker(&mut self, shard: ShardId) -> u32 {
        let n = self.workers.len() as u32;
        self.workers.push(WorkerModel { shard, alive: true, retired: false, lease: None, blocked: false });
        self.alive.insert(n);
        n
    }

    /// The owner gives a lease back, before the scheduler hears of it.
    pub(super) fn returned(&mut self, n: u32, retired: bool) {
        if let LeaseState::Granted(worker) = self.leases[n as usize].state {
            if worker != NO_WORKER {
                let worker = &mut self.workers[worker as usize];
                worker.lease = None;
                worker.blocked = false;
                worker.retired |= retired;
            }
            self.end(n);
        }
    }

    fn end(&mut self, n: u32) {
        if let LeaseState::Granted(worker) = self.leases[n as usize].state {
            self.blocked.remove(worker);
        }
        let lease = &mut self.leases[n as usize];
        lease.state = LeaseState::Done;
        for part in std::mem::take(&mut lease.allocation).0.iter().filter(|part| !part.mirror) {
            for (index, amount) in &part.instances {
                *self.instances.entry((physical(part.id), *index)).or_default() -= *amount;
            }
        }
        self.queued.remove(n);
        self.granted.remove(n);
    }

    pub(super) fn worker_died(&mut self, n: u32) {
        let worker = &mut self.workers[n as usize];
        worker.alive = false;
        self.alive.remove(n);
        self.blocked.remove(n);
        self.asked_to_exit.remove(n);
        self.dying.remove(n);
    }

    /// Follows one effect of a shard. `ToShard` is the world's business.
    pub(super) fn apply(&mut self, shard: ShardId, effect: &SchedEffect, alone: bool) -> Result<(), String> {
        use SchedEffect as F;
        match effect {
            F::Granted { token, lease, class, worker, allocation } => {
                let n = self.answer_request(*token, *lease)?;
                ensure!(self.leases[n as usize].class == class.0, "{lease:?} was granted as of {class:?}");
                self.grant(n, number(&worker.0), allocation, shard, alone)
            }
            F::Rejected { token, lease, .. } => {
                self.seen.rejected += 1;
                self.turned_away(*token, *lease)
            }
            F::Cancelled { token, lease, .. } => {
                self.seen.cancelled += 1;
                self.turned_away(*token, *lease)
            }
            F::Withdrawn { token, lease } => self.turned_away(*token, *lease),
            F::Failed { token, lease, why: FailReason::TooManyRetries } => {
                self.answer_request(*token, *lease).map(drop)
            }
            F::Failed { token, lease, .. } => {
                self.seen.failed += 1;
                self.turned_away(*token, *lease)
            }
            F::CancelDone { token, lease, cancelled } => {
                self.answer(*token, Asked::Cancel)?;
                let state = self.leases[number(&lease.0) as usize].state;
                ensure!(!cancelled || state == LeaseState::Done, "{lease:?} is {state:?} after its cancel");
                Ok(())
            }
            F::CancelledMany { token, .. } => self.answer(*token, Asked::CancelClasses),
            F::WatchDeps { lease, .. } => {
                self.leases[number(&lease.0) as usize].watched = true;
                Ok(())
            }
            F::UnwatchDeps { lease } => {
                let lease = &mut self.leases[number(&lease.0) as usize];
                ensure!(std::mem::replace(&mut lease.watched, false), "{lease:?} was not watched");
                Ok(())
            }
            F::StartWorker { start, key, job, .. } => {
                ensure!(start.shard() == shard, "shard {shard} starts {start:?}");
                ensure!(self.starts.insert(*start, ()).is_none(), "{start:?} twice");
                self.starting.push((*start, *key, *job));
                Ok(())
            }
            F::ExitWorker { worker, why } => self.exit(number(&worker.0), *why),
            F::KillWorker { worker, .. } => {
                self.seen.killed += 1;
                let n = number(&worker.0);
                if self.workers[n as usize].alive {
                    self.dying.insert(n);
                }
                Ok(())
            }
            F::LeaseLost { lease, worker, .. } => {
                self.seen.lost += 1;
                let (n, w) = (number(&lease.0), number(&worker.0));
                let state = self.leases[n as usize].state;
                ensure!(state == LeaseState::Granted(w), "{lease:?} was lost while {state:?}");
                if w != NO_WORKER {
                    ensure!(!self.workers[w as usize].alive, "{lease:?} was lost, but {worker:?} lives");
                    self.workers[w as usize].lease = None;
                }
                self.end(n);
                Ok(())
            }
            F::WorkerMoved { worker, to } => {
                self.seen.moved += 1;
                self.workers[number(&worker.0) as usize].shard = *to;
                Ok(())
            }
            F::BundlesPrepared { token, ok } => {
                let Some(Asked::Prepare(group)) = self.asked.remove(token) else {
                    return Err(format!("{effect:?} answers nothing"));
                };
                if *ok {
                    self.seen.prepared += 1;
                    self.prepared.push(group);
                }
                Ok(())
            }
            F::BundlesCommitted { token, .. } => self.answer(*token, Asked::Commit),
            F::BundlesReturned { token, .. } => self.answer(*token, Asked::Return),
            F::GroupForgotten { token, forgotten, .. } => {
                let Some(Asked::Forget(group)) = self.asked.remove(token) else {
                    return Err(format!("{effect:?} answers nothing"));
                };
                if *forgotten {
                    self.seen.forgotten += 1;
                    self.forgotten.push(group);
                }
                Ok(())
            }
            F::ToShard { .. } => Ok(()),
        }
    }

    fn answer(&mut self, token: Token, asked: Asked) -> Result<(), String> {
        let was = self.asked.remove(&token);
        ensure!(was == Some(asked), "token {token} was answered as {asked:?}, it was for {was:?}");
        Ok(())
    }

    fn answer_request(&mut self, token: Token, lease: LeaseId) -> Result<u32, String> {
        let n = number(&lease.0);
        self.answer(token, Asked::Request(n))?;
        self.leases[n as usize].tokens.retain(|asked| *asked != token);
        Ok(n)
    }

    fn turned_away(&mut self, token: Token, lease: LeaseId) -> Result<(), String> {
        let n = self.answer_request(token, lease)?;
        let entry = &self.leases[n as usize];
        ensure!(!matches!(entry.state, LeaseState::Granted(_)), "{lease:?} was granted and then turned away");
        ensure!(!entry.watched, "{lease:?} was turned away, but its objects are still watched");
        self.end(n);
        Ok(())
    }

    fn grant(&mut self, n: u32, w: u32, allocation: &Allocation, shard: ShardId, alone: bool) -> Result<(), String> {
        let lease = &mut self.leases[n as usize];
        match lease.state {
            LeaseState::Done => return Err(format!("lease {n} was granted after it was over")),
            LeaseState::Granted(before) => {
                ensure!(before == w && lease.allocation == *allocation, "lease {n} was granted twice, differently");
                return Ok(());
            }
            LeaseState::Queued => {}
        }
        ensure!(!lease.watched && lease.deps == 0, "lease {n} was granted without its objects");
        ensure!(lease.needs_worker == (w != NO_WORKER), "lease {n} was granted to worker {w}");
        if w != NO_WORKER {
            let worker = &mut self.workers[w as usize];
            ensure!(worker.alive || !alone, "lease {n} was granted to worker {w}, which is gone");
            ensure!(worker.shard == shard && !worker.retired, "lease {n} was granted to {worker:?} by shard {shard}");
            ensure!(worker.lease.is_none(), "lease {n} was granted to worker {w}, which serves {:?}", worker.lease);
            worker.lease = Some(n);
        }
        lease.state = LeaseState::Granted(w);
        lease.allocation = allocation.clone();
        self.queued.remove(n);
        self.granted.insert(n);
        self.seen.granted += 1;
        for part in allocation.0.iter().filter(|part| !part.mirror) {
            for (index, amount) in &part.instances {
                let used = self.instances.entry((physical(part.id), *index)).or_default();
                *used += *amount;
                ensure!(*used <= Fixed::ONE, "instance {index} of {:?} is given {used:?} times", part.id);
            }
        }
        Ok(())
    }

    fn exit(&mut self, n: u32, why: ExitReason) -> Result<(), String> {
        let worker = &mut self.workers[n as usize];
        ensure!(worker.lease.is_none(), "worker {n} is asked to exit while it serves {:?}", worker.lease);
        if worker.alive {
            match why {
                ExitReason::Idle => self.asked_to_exit.insert(n),
                ExitReason::JobFinished => {
                    worker.retired = true;
                    self.asked_to_exit.remove(n);
                    self.dying.insert(n);
                }
            }
        }
        Ok(())
    }
}

/// First id of bundle resources in the simulator; each has its original's id in its last decimal.
pub(super) const FIRST_BUNDLE_RESOURCE: u32 = 1000;

/// The node's resource behind a bundle's.
fn physical(id: ResourceId) -> ResourceId {
    if id.0 < FIRST_BUNDLE_RESOURCE {
        id
    } else {
        ResourceId(id.0 % 10)
    }
}
