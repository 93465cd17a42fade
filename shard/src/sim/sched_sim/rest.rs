//! The end of a world: everybody does what is expected of them, and then nothing may be left.

use std::collections::VecDeque;

use super::model::{lease_id, Asked, LeaseState};
use super::world::{bundle_id, Outcome, World, BUNDLES_PER_GROUP, GROUPS};
use crate::sched::*;

/// Rounds of returning leases; far more than any world needs.
const REST_ROUNDS: u32 = 4_000;

impl World {
    /// Brings the world to rest: whatever can still be granted is, and in the end the node is as it was.
    pub(super) fn rest(&mut self) -> Outcome {
        self.draining = false;
        self.everywhere(SchedEvent::Drain { on: false })?;
        for group in 0..GROUPS {
            let token = self.token(Asked::Return);
            let bundles = (0..BUNDLES_PER_GROUP).map(|index| bundle_id(group, index)).collect();
            self.send(self.homes[group as usize], SchedEvent::ReturnBundles { token, bundles })?;
        }
        for round in 0..REST_ROUNDS {
            self.rest_round(round)?;
            if self.resting() {
                break;
            }
        }
        self.check_rest()?;
        for n in self.model.queued.all() {
            let token = self.token(Asked::Cancel);
            self.send(self.model.leases[n as usize].shard, SchedEvent::Cancel { token, lease: lease_id(n) })?;
        }
        for _ in 0..8 {
            self.flush()?;
            self.everywhere(SchedEvent::Tick)?;
        }
        self.check()?;
        self.check_empty()
    }

    pub(super) fn flush(&mut self) -> Outcome {
        while self.links.iter().any(|link| !link.is_empty()) {
            self.deliver()?;
        }
        Ok(())
    }

    /// Everybody does what is expected of them, and leases end.
    fn rest_round(&mut self, round: u32) -> Outcome {
        self.now += TICK_NS;
        if round % 16 == 15 {
            // Far enough for what waits for a time: reservations let go, classes held back.
            self.now += 20_000_000_000;
        }
        self.flush()?;
        for (start, key, job) in std::mem::take(&mut self.model.starting) {
            self.came_up(start, key, job)?;
        }
        for worker in self.model.asked_to_exit.all().into_iter().chain(self.model.dying.all()) {
            if self.model.workers[worker as usize].alive {
                self.kill(worker)?;
            }
        }
        for worker in self.model.blocked.all() {
            self.unblock_one(worker)?;
        }
        for n in self.model.queued.all() {
            let deps = self.model.leases[n as usize].request.deps.clone();
            let shard = self.model.leases[n as usize].shard;
            self.model.leases[n as usize].deps = 0;
            for object in deps {
                self.send(shard, SchedEvent::DepReady { lease: lease_id(n), object })?;
            }
        }
        self.flush()?;
        for n in self.model.granted.all() {
            let LeaseState::Granted(worker) = self.model.leases[n as usize].state else {
                continue;
            };
            if self.model.workers.get(worker as usize).is_none_or(|worker| worker.alive) {
                self.return_lease(n, WorkerFate::Keep)?;
            }
        }
        self.flush()?;
        self.everywhere(SchedEvent::Tick)
    }

    /// Nothing is left but requests that no total of the node can hold.
    fn resting(&self) -> bool {
        let quiet = self.model.granted.len() == 0
            && self.model.starting.is_empty()
            && self.links.iter().all(VecDeque::is_empty);
        quiet && self.model.queued.all().iter().all(|n| !self.feasible(*n))
    }

    fn feasible(&self, n: u32) -> bool {
        let lease = &self.model.leases[n as usize];
        let load = self.shards[usize::from(lease.shard)].class_load(ClassId(lease.class));
        load.is_some_and(|load| !load.infeasible)
    }

    fn check_rest(&self) -> Outcome {
        let stuck: Vec<u32> = self.model.queued.all().into_iter().filter(|n| self.feasible(*n)).collect();
        if let Some(n) = stuck.first() {
            let lease = &self.model.leases[*n as usize];
            let load = self.shards[usize::from(lease.shard)].class_load(ClassId(lease.class));
            return Err(format!(
                "{} requests that fit are never granted, such as {n} of shard {}: {load:?}",
                stuck.len(),
                lease.shard
            ));
        }
        if let Some(n) = self.model.granted.all().first() {
            return Err(format!("lease {n} never ends: {:?}", self.model.leases[*n as usize].state));
        }
        Ok(())
    }

    /// The node is as it was in the beginning.
    fn check_empty(&self) -> Outcome {
        if let Some((token, asked)) = self.model.asked.iter().next() {
            return Err(format!("token {token} for {asked:?} was never answered"));
        }
        for (at, shard) in self.shards.iter().enumerate() {
            if shard.lease_count() > 0 || shard.worker_counts().leased > 0 || shard.bundle_counts() != (0, 0, 0) {
                return Err(format!("shard {at} still has leases or bundles"));
            }
            for part in shard.resources() {
                if part.free != shard.credit(part.id) {
                    return Err(format!("shard {at} still holds {part:?}"));
                }
            }
        }
        Ok(())
    }
}
