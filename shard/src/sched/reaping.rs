//! Idle workers are asked to exit while the node has more than its soft limit, oldest first.
//!
//! A lone shard sees all workers. Where there are several, a scheduling class lives on one of them, and so may all workers that the
//! node keeps; so the limit is not divided. Each shard tells the bank what it has ([`Staff`]), and the bank says which of them asks how
//! many to exit.

use super::api::{ExitReason, SchedEffect};
use super::bank::{BankOut, SchedMsg};
use super::scheduler::Scheduler;
use super::workers::Doing;
use crate::ids::{NowNs, ShardId, WorkerId};

/// The workers of a shard, as its bank has to know them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Staff {
    /// Idle and leased ones that were not asked to exit.
    staying: u32,
    /// Those of them that have been idle for so long that they may go.
    old: u32,
    /// Since when the oldest of these is idle.
    oldest_ns: NowNs,
    /// The bank's last order that this shard has carried out.
    order: u64,
}

/// The bank's side.
#[derive(Debug)]
pub(crate) struct Reaping {
    limit: u32,
    orders: u64,
    /// What each shard told, and the last order that it was given.
    staffs: Vec<(Staff, u64)>,
}

impl Reaping {
    pub(crate) fn new(shards: ShardId, limit: u32) -> Self {
        Self { limit, orders: 0, staffs: vec![Default::default(); usize::from(shards)] }
    }

    pub(crate) fn told(&mut self, from: ShardId, staff: Staff) {
        if let Some((known, _)) = self.staffs.get_mut(usize::from(from)) {
            *known = staff;
        }
    }

    /// Has what is too much asked to exit. A shard that has not yet told what its last order came to gets no other.
    pub(crate) fn decide(&mut self, out: &mut BankOut) {
        let staying: u32 = self.staffs.iter().map(|(staff, _)| staff.staying).sum();
        let mut excess = staying.saturating_sub(self.limit);
        while excess > 0 {
            let free = |(_, (staff, order)): &(usize, &mut (Staff, u64))| staff.old > 0 && staff.order == *order;
            let oldest = self.staffs.iter_mut().enumerate().filter(free).min_by_key(|(_, (staff, _))| staff.oldest_ns);
            let Some((shard, (staff, order))) = oldest else {
                return;
            };
            let count = excess.min(staff.old);
            self.orders += 1;
            *order = self.orders;
            excess -= count;
            out.push((shard as ShardId, SchedMsg::Reap { count, order: self.orders }));
        }
    }
}

impl Scheduler {
    /// Asks workers to exit that were idle for long, down to the soft limit, or tells the bank of them.
    pub(crate) fn reap_idle(&mut self, now: NowNs, out: &mut Vec<SchedEffect>) {
        if self.alone() {
            let excess = self.workers.staying.saturating_sub(self.config.workers_soft_limit);
            return self.reap(excess, now, out);
        }
        let mut staff = Staff { staying: self.workers.staying, order: self.reap_order, ..Staff::default() };
        for (since, _) in self.old_workers(now) {
            staff.oldest_ns = if staff.old == 0 { since } else { staff.oldest_ns };
            staff.old += 1;
        }
        if staff != self.staff {
            self.staff = staff;
            self.send_bank(self.config.shard, SchedMsg::Staff(staff), now, out);
        }
    }

    /// The bank's order. What it came to is told with the next tick.
    pub(crate) fn reap_ordered(&mut self, count: u32, order: u64, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.reap(count, now, out);
        self.reap_order = order;
    }

    fn reap(&mut self, count: u32, now: NowNs, out: &mut Vec<SchedEffect>) {
        if count == 0 {
            return;
        }
        let going: Vec<WorkerId> = self.old_workers(now).map(|(_, id)| id).take(count as usize).collect();
        for worker in going {
            self.workers.retire(worker, Doing::AskedToExit);
            out.push(SchedEffect::ExitWorker { worker, why: ExitReason::Idle });
        }
    }

    /// Workers that may go, and since when they are idle, oldest first.
    fn old_workers(&self, now: NowNs) -> impl Iterator<Item = (NowNs, WorkerId)> + '_ {
        let timeout = self.config.idle_timeout_ns;
        let old = self.workers.idle_by_age.iter().take_while(move |(since, ..)| now.saturating_sub(*since) >= timeout);
        let kept = move |id: &WorkerId| self.workers.map.get(id).is_some_and(|worker| worker.keep_until_ns > now);
        old.map(|(since, _, id)| (*since, *id)).filter(move |(_, id)| !kept(id))
    }
}
