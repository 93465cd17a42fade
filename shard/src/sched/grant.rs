//! Who gets what is free: turns, parking, reservations, and the way from resources to a worker.

use super::api::*;
use super::bank::Mode;
use super::ledger::Account;
use super::queue::{Class, ClassState, Lease, LeaseIdx, Process, Stage};
use super::scheduler::{Reservation, Scheduler};
use super::types::*;
use super::waiters::Ticket;
use super::workers::Worker;
use crate::ids::{NowNs, WorkerId};

/// Classes looked at in one event; the rest follows on the next event or tick.
const TOUCH_MAX: u32 = 256;

/// The account of a lease.
pub(crate) fn account(lease: &Lease) -> Account {
    Account::Lease { pinned: lease.actor.is_some() }
}

impl Scheduler {
    /// Lets go of what its time is up for: reservations and classes held back.
    pub(crate) fn timers(&mut self, now: NowNs, out: &mut Vec<SchedEffect>) {
        if self.reservation.as_ref().is_some_and(|reservation| reservation.until_ns <= now) {
            self.lapse(now);
        }
        while let Some((at, class)) = self.capped.first().copied().filter(|first| first.0 <= now) {
            self.capped.remove(&(at, class));
            self.leases.class_mut(class).state = ClassState::Idle;
            self.turn(class, now, out);
        }
    }

    /// What may be granted of a resource: what is free, less what is set aside or called in.
    pub(crate) fn limit(&self, id: ResourceId) -> Fixed {
        let free = self.ledger.grantable(id);
        if self.modes.get(&id) == Some(&Mode::All) {
            return free.min(Fixed::ZERO);
        }
        let Some(reservation) = &self.reservation else {
            return free;
        };
        let aside = self.leases.class(reservation.class).def.demand.get(id);
        if aside == Fixed::ZERO {
            return free;
        }
        // Instances can't be counted off against each other: while some are set aside, all are.
        let plain = self.ledger.need(id, Fixed(Fixed::ONE.0 + 1)) == Fixed(Fixed::ONE.0 + 1);
        if plain {
            free - aside
        } else {
            Fixed::ZERO
        }
    }

    /// True where a demand may be taken without breaking into what is set aside.
    pub(crate) fn may_take(&self, demand: &ResourceSet) -> bool {
        self.lacking(demand).is_none()
    }

    /// A resource of which there is too little, and how much must be free.
    pub(crate) fn lacking(&self, demand: &ResourceSet) -> Option<(ResourceId, Fixed)> {
        let needs = demand.iter().map(|(id, amount)| (id, self.ledger.need(id, amount)));
        needs.into_iter().find(|(id, need)| *need > self.limit(*id))
    }

    /// Looks at the classes that what was freed can serve, longest waiting first.
    pub(crate) fn pump(&mut self, now: NowNs, out: &mut Vec<SchedEffect>) {
        for _ in 0..TOUCH_MAX {
            if let Some(class) = self.reservation.as_ref().map(|reservation| reservation.class) {
                if self.ledger.fits(&self.leases.class(class).def.demand) {
                    self.end_reservation(class);
                    self.turn(class, now, out);
                    continue;
                }
            }
            let mut best: Option<(Ticket, ClassId)> = None;
            let mut at = 0;
            while at < self.dirty.len() {
                let id = self.dirty[at];
                match self.waiters.first_fit(id, self.limit(id)) {
                    Some(found) => {
                        best = best.filter(|best| best.0 < found.0).or(Some(found));
                        at += 1;
                    }
                    None => drop(self.dirty.swap_remove(at)),
                }
            }
            let Some((_, class)) = best else { return };
            self.unpark(class);
            self.turn(class, now, out);
        }
    }

    /// One turn of a class that is in no list: it gets one lease if it fits, and is parked if it has more.
    pub(crate) fn turn(&mut self, id: ClassId, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.touched += 1;
        while self.leases.class(id).ready > 0 {
            let class = self.leases.class(id);
            if let Some(lack) = self.lacking(&class.def.demand) {
                self.park(id, lack);
                self.tell_bank(id, now, out);
                return;
            }
            let free_of_charge = class.def.demand.is_empty();
            if self.hold_back(id, now) {
                return;
            }
            self.start_head(id, now, out);
            let ticket = self.next_ticket();
            let class = self.leases.class_mut(id);
            (class.ticket, class.bypassed) = (ticket, 0);
            if !free_of_charge {
                self.pass_by(id, now);
                self.requeue(id, now, out);
                return;
            }
        }
        self.tell_bank(id, now, out);
    }

    /// Parks a class that just had its turn: under what it lacks, or where its next turn is found at once.
    pub(crate) fn requeue(&mut self, id: ClassId, now: NowNs, out: &mut Vec<SchedEffect>) {
        let class = self.leases.class(id);
        if class.ready > 0 {
            let lack = self.lacking(&class.def.demand);
            let first = class.def.demand.iter().next().map(|(id, amount)| (id, self.ledger.need(id, amount)));
            if let Some(place) = lack.or(first) {
                self.park(id, place);
            }
            if let (None, Some((resource, _))) = (lack, first) {
                if !self.dirty.contains(&resource) {
                    self.dirty.push(resource);
                }
                return;
            }
        }
        self.tell_bank(id, now, out);
    }

    fn park(&mut self, id: ClassId, (resource, need): (ResourceId, Fixed)) {
        let mark = self.ledger.clock(resource);
        let class = self.leases.class_mut(id);
        class.state = ClassState::Parked(resource, need);
        class.mark = mark;
        self.waiters.park(resource, need, class.ticket, id);
    }

    /// Takes a class out of the list it is in.
    pub(crate) fn unpark(&mut self, id: ClassId) {
        let class = self.leases.class(id);
        match class.state {
            ClassState::Parked(resource, need) => {
                self.waiters.unpark(resource, need, class.ticket);
                let passed = self.ledger.clock(resource).saturating_sub(class.mark);
                self.leases.class_mut(id).bypassed += passed;
            }
            ClassState::Reserved => self.end_reservation(id),
            ClassState::Capped(at) => drop(self.capped.remove(&(at, id))),
            ClassState::Idle => {}
        }
        self.leases.class_mut(id).state = ClassState::Idle;
    }

    /// Ray's worker cap: a class with as many leases as the node has CPUs for (its blocked workers gave theirs back) waits longer
    /// for each further one, so that nested tasks don't start a worker each.
    pub(crate) fn hold_back(&mut self, id: ClassId, now: NowNs) -> bool {
        let class = self.leases.class(id);
        if !self.config.class_cap {
            return false;
        }
        let cpu = class.def.demand.iter().find_map(|(id, amount)| {
            let pool = self.ledger.pool(id).filter(|pool| pool.kind == ResourceKind::Cpu && pool.bundle.is_none())?;
            Some(((pool.total.0 + amount.0 / 2) / amount.0).max(1) as u32)
        });
        let Some(above) = cpu.and_then(|cap| class.holding().checked_sub(cap)) else {
            return false;
        };
        let next = class.cap_next_ns.unwrap_or(NowNs::MAX);
        if now >= next {
            self.leases.class_mut(id).cap_next_ns = None;
            return false;
        }
        let wait = self.config.class_cap_ns.saturating_mul(1 << above.min(20)).min(self.config.class_cap_max_ns);
        let next = next.min(now + wait);
        let class = self.leases.class_mut(id);
        class.cap_next_ns = Some(next);
        class.state = ClassState::Capped(next);
        self.capped.insert((next, id));
        true
    }

    /// Sets resources aside for the class that has waited longest for something of which another just got some, once it was passed
    /// by too often.
    fn pass_by(&mut self, by: ClassId, now: NowNs) {
        if self.reservation.is_some() || !self.alone() {
            return;
        }
        let demand = self.leases.class(by).def.demand.clone();
        for (id, _) in demand.iter() {
            let Some((_, waiting)) = self.waiters.oldest(id).filter(|oldest| oldest.1 != by) else {
                continue;
            };
            let class = self.leases.class(waiting);
            let passed = class.bypassed + self.ledger.clock(id).saturating_sub(class.mark);
            if passed >= u64::from(self.config.bypass_max) {
                return self.reserve(waiting, now);
            }
        }
    }

    /// Makes the reservation, unless it would be in vain: then the class goes to the end of its list and others get a look.
    fn reserve(&mut self, id: ClassId, now: NowNs) {
        let hopeless = |class: &Class| {
            let pinned = |id: ResourceId| self.ledger.pool(id).map_or(Fixed::ZERO, |pool| pool.pinned);
            let mut demand = class.def.demand.iter();
            demand.any(|(id, amount)| self.ledger.need(id, amount) + pinned(id) > self.ledger.ceiling(id))
        };
        let class = self.leases.class(id);
        let in_vain = now < class.reserve_after_ns || hopeless(class);
        let ClassState::Parked(resource, need) = class.state else {
            return;
        };
        self.unpark(id);
        let ticket = self.next_ticket();
        let first = self.config.reserve_ns;
        let class = self.leases.class_mut(id);
        (class.ticket, class.bypassed) = (ticket, 0);
        if in_vain {
            self.park(id, (resource, need));
            return;
        }
        if class.reserve_ns == 0 {
            class.reserve_ns = first;
        }
        class.state = ClassState::Reserved;
        self.reservation = Some(Reservation { class: id, until_ns: now + class.reserve_ns });
    }

    /// The reservation was in vain: everybody else may go on, and the next one lasts longer.
    fn lapse(&mut self, now: NowNs) {
        let Some(reservation) = &self.reservation else {
            return;
        };
        let id = reservation.class;
        self.unpark(id);
        let longest = self.config.reserve_max_ns;
        let class = self.leases.class_mut(id);
        class.reserve_after_ns = now + class.reserve_ns;
        class.reserve_ns = (class.reserve_ns * 2).min(longest);
        let demand = self.leases.class(id).def.demand.clone();
        if let Some(lack) = self.lacking(&demand).or_else(|| demand.iter().next()) {
            self.park(id, lack);
        }
    }

    fn end_reservation(&mut self, id: ClassId) {
        self.reservation = None;
        let class = self.leases.class_mut(id);
        class.state = ClassState::Idle;
        let demand = class.def.demand.clone();
        demand.iter().for_each(|(id, _)| self.soil_waited(id));
    }

    pub(crate) fn soil_waited(&mut self, id: ResourceId) {
        if !self.dirty.contains(&id) && !self.waiters.is_empty(id) {
            self.dirty.push(id);
        }
    }

    /// The head of a class takes its resources, which fit, and looks for a worker.
    pub(crate) fn start_head(&mut self, id: ClassId, now: NowNs, out: &mut Vec<SchedEffect>) {
        if let Some(at) = self.leases.head(id) {
            self.start(at, now, out);
        }
    }

    /// A lease takes its resources, which fit, and looks for a worker.
    pub(crate) fn start(&mut self, at: LeaseIdx, now: NowNs, out: &mut Vec<SchedEffect>) {
        let lease = self.leases.get(at);
        let (id, account) = (lease.id, account(lease));
        let allocation = self.ledger.allocate(&self.leases.class(lease.class).def.demand, account);
        self.use_bundles(at, &allocation);
        self.leases.get_mut(at).allocation = allocation;
        let fit = self.fit_of(at);
        if fit.key == WorkerKey::NONE {
            return self.grant(at, WorkerId::NIL, out);
        }
        match self.workers.pop_idle(&fit, id) {
            Some(worker) => self.grant(at, worker, out),
            None => {
                let seq = self.workers.wait(fit.key, at);
                self.leases.set_stage(at, Stage::Worker { seq, process: Process::None }, false);
                self.get_process(at, true, now, out);
            }
        }
    }

    /// The lease has all it needs: its owner hears of it.
    pub(crate) fn grant(&mut self, at: LeaseIdx, worker: WorkerId, out: &mut Vec<SchedEffect>) {
        self.leases.set_stage(at, Stage::Granted(worker), false);
        let lease = self.leases.get_mut(at);
        lease.attempts = 0;
        let tokens = std::mem::take(&mut lease.tokens);
        if std::mem::take(&mut lease.watched) {
            out.push(SchedEffect::UnwatchDeps { lease: lease.id });
        }
        for token in tokens {
            let (lease, class, allocation) = (lease.id, lease.class, lease.allocation.clone());
            out.push(SchedEffect::Granted { token, lease, class, worker, allocation });
        }
    }

    /// A worker that is in no list serves the lease that has waited longest among those it fits, or is idle.
    pub(crate) fn offer(&mut self, worker: Worker, now: NowNs, out: &mut Vec<SchedEffect>) {
        let Some(at) = self.workers.first_waiting(&self.leases, &worker) else {
            self.workers.push_idle(worker, now);
            return;
        };
        self.workers.stop_waiting(&mut self.leases, at);
        let (fit, id, lease) = (self.fit_of(at), worker.id, self.leases.get(at).id);
        self.workers.lease_out(worker, &fit, lease);
        self.grant(at, id, out);
    }

    /// Gives a lease's resources back. The lease keeps nothing.
    pub(crate) fn free_resources(&mut self, at: LeaseIdx) {
        let lease = self.leases.get_mut(at);
        let allocation = std::mem::take(&mut lease.allocation);
        let cpu_out = std::mem::take(&mut lease.cpu_out);
        let account = account(lease);
        self.ledger.give_back(&allocation, account, |kind| !(cpu_out && kind == ResourceKind::Cpu));
        self.soil_all(&allocation);
        self.leave_bundles(at, &allocation);
    }

    /// A lease of the class ended: if it was held back for having too many, it may go on.
    pub(crate) fn uncap(&mut self, id: ClassId, now: NowNs, out: &mut Vec<SchedEffect>) {
        if matches!(self.leases.class(id).state, ClassState::Capped(_)) {
            self.unpark(id);
            self.turn(id, now, out);
        }
    }
}
