//! A shard's side of the bank, and workers that change shards.

use smallvec::SmallVec;

use super::api::*;
use super::bank::{Mode, SchedMsg, WANT_BATCH};
use super::queue::{ClassState, LeaseIdx, Process, Stage};
use super::scheduler::Scheduler;
use super::types::*;
use super::workers::Worker;
use crate::ids::{LeaseId, NowNs, ShardId, Token};

/// What an all-or-nothing demand on the bank is for.
#[derive(Debug)]
pub(crate) enum TakeFor {
    /// A request that is granted now or rejected.
    Lease(LeaseId),
    /// Bundles.
    Prepare {
        token: Token,
        bundles: Vec<BundleSpec>,
        /// Some of them were returned before the bank answered.
        given_up: bool,
    },
}

impl Scheduler {
    pub(crate) fn next_shard(&self) -> ShardId {
        (self.config.shard + 1) % self.config.shards
    }

    /// Passes the bank's messages on.
    pub(crate) fn post(&mut self, out: &mut Vec<SchedEffect>) {
        for (to, msg) in self.bank_out.drain(..) {
            if to == self.config.shard {
                self.local.push_back(msg);
            } else {
                out.push(SchedEffect::ToShard { to, msg });
            }
        }
    }

    pub(crate) fn send_bank(&mut self, from: ShardId, msg: SchedMsg, now: NowNs, out: &mut Vec<SchedEffect>) {
        match &mut self.bank {
            Some(bank) => {
                bank.handle(from, msg, now, &mut self.bank_out);
                self.post(out);
            }
            None => out.push(SchedEffect::ToShard { to: 0, msg }),
        }
    }

    pub(crate) fn on_msg(&mut self, from: ShardId, msg: SchedMsg, now: NowNs, out: &mut Vec<SchedEffect>) {
        use SchedMsg as M;
        match msg {
            M::Want { .. }
            | M::Unwant { .. }
            | M::Take { .. }
            | M::Credit { .. }
            | M::Gathered { .. }
            | M::Staff(_) => {
                self.send_bank(from, msg, now, out);
            }
            M::Reap { count, order } => self.reap_ordered(count, order, now, out),
            M::Grant { class, want, credit } => self.granted(class, want, &credit, now, out),
            M::SetMode { id, mode } => self.set_mode(id, mode, now, out),
            M::Gather { round, ids } => {
                self.surrender(ids, now, out);
                self.send_bank(self.config.shard, M::Gathered { round }, now, out);
            }
            M::Taken { take, credit } => self.taken(take, credit, now, out),
            M::SeekWorker { origin, lease, fit } => self.sought(origin, lease, fit, now, out),
            M::GiveWorker { lease, worker } => self.given(lease, *worker, now, out),
            M::Passed(event) => self.on_passed(*event, now, out),
            M::Forget { worker } => drop(self.moved.remove(&worker)),
        }
    }

    fn on_passed(&mut self, event: SchedEvent, now: NowNs, out: &mut Vec<SchedEffect>) {
        use SchedEvent as E;
        if let E::Blocked { worker } | E::Unblocked { worker } | E::WorkerGone { worker } | E::ExitRefused { worker } =
            event
        {
            self.about_worker(worker, event, now, out);
        }
    }

    /// The part of a demand that the bank deals in; bundles belong to their home shard alone.
    fn bank_part(&self, demand: &ResourceSet) -> ResourceSet {
        ResourceSet::new(demand.iter().filter(|(id, _)| !self.ledger.is_bundle(*id)))
    }

    /// Tells the bank what a class wants, or that it no longer does.
    pub(crate) fn tell_bank(&mut self, id: ClassId, now: NowNs, out: &mut Vec<SchedEffect>) {
        if self.alone() {
            return;
        }
        let class = self.leases.class(id);
        let part = self.bank_part(&class.def.demand);
        let parked = matches!(class.state, ClassState::Parked(..));
        let wants = parked && self.lacking(&part).is_some() && self.ledger.feasible(&class.def.demand);
        match (wants, class.wanted) {
            (true, None) => {
                let count = class.ready.min(WANT_BATCH);
                let since = self.leases.head(id).map_or(now, |at| self.leases.get(at).since);
                let want = self.next_ticket();
                self.leases.class_mut(id).wanted = Some(want);
                let msg = SchedMsg::Want { class: id, want, demand: part, count, since };
                self.send_bank(self.config.shard, msg, now, out);
            }
            (false, Some(_)) => {
                self.leases.class_mut(id).wanted = None;
                self.send_bank(self.config.shard, SchedMsg::Unwant { class: id }, now, out);
            }
            _ => {}
        }
    }

    /// Credit for a want: the class it is for uses it before anybody else looks.
    fn granted(&mut self, id: ClassId, want: u64, credit: &Allocation, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.ledger.credit(credit);
        self.soil_all(credit);
        let Some(class) = self.leases.classes.get_mut(&id) else {
            return;
        };
        if class.wanted == Some(want) {
            class.wanted = None;
        }
        for _ in 0..WANT_BATCH {
            let class = self.leases.class(id);
            let fits = matches!(class.state, ClassState::Parked(..)) && self.ledger.fits(&class.def.demand);
            if !fits {
                break;
            }
            self.touched += 1;
            self.unpark(id);
            if self.hold_back(id, now) {
                break;
            }
            self.start_head(id, now, out);
            let ticket = self.next_ticket();
            let class = self.leases.class_mut(id);
            (class.ticket, class.bypassed) = (ticket, 0);
            self.requeue(id, now, out);
        }
        self.tell_bank(id, now, out);
    }

    fn set_mode(&mut self, id: ResourceId, mode: Mode, now: NowNs, out: &mut Vec<SchedEffect>) {
        match mode {
            Mode::Keep => drop(self.modes.remove(&id)),
            Mode::Idle | Mode::All => drop(self.modes.insert(id, mode)),
        }
        if mode == Mode::All {
            // Sent even if nothing is free: the bank has to know what is pinned.
            let credit = self.ledger.surrender([id]);
            self.send_credit(credit, now, out);
        } else {
            self.soil_waited(id);
        }
    }

    /// Gives the bank what others want and nobody here can use.
    pub(crate) fn settle(&mut self, now: NowNs, out: &mut Vec<SchedEffect>) {
        let free = |id: &ResourceId| self.ledger.pool(*id).is_some_and(|pool| pool.free > Fixed::ZERO);
        let mut ids: SmallVec<[ResourceId; 4]> = self.modes.keys().copied().filter(free).collect();
        ids.sort_unstable();
        self.surrender(ids, now, out);
    }

    fn surrender(&mut self, ids: SmallVec<[ResourceId; 4]>, now: NowNs, out: &mut Vec<SchedEffect>) {
        let credit = self.ledger.surrender(ids);
        if !credit.is_empty() {
            self.send_credit(credit, now, out);
        }
    }

    fn send_credit(&mut self, credit: Allocation, now: NowNs, out: &mut Vec<SchedEffect>) {
        let called_in = self.modes.iter().filter(|(_, mode)| **mode == Mode::All);
        let pinned = called_in.map(|(id, _)| (*id, self.ledger.pool(*id).map_or(Fixed::ZERO, |pool| pool.pinned)));
        let pinned = pinned.collect();
        self.send_bank(self.config.shard, SchedMsg::Credit { credit, pinned }, now, out);
    }

    /// Asks the bank for all of a demand or nothing.
    pub(crate) fn take(&mut self, demand: ResourceSet, of: TakeFor, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.take_count += 1;
        let take = self.take_count;
        self.takes.insert(take, of);
        self.send_bank(self.config.shard, SchedMsg::Take { take, demand }, now, out);
    }

    /// A request to be granted or rejected asks the bank, if that could help.
    pub(crate) fn take_for_lease(&mut self, at: LeaseIdx, now: NowNs, out: &mut Vec<SchedEffect>) -> bool {
        let (id, class) = (self.leases.get(at).id, self.leases.get(at).class);
        let demand = self.leases.class(class).def.demand.clone();
        let part = self.bank_part(&demand);
        let rest = ResourceSet::new(demand.iter().filter(|(id, _)| part.get(*id) == Fixed::ZERO));
        if part.is_empty() || !self.ledger.feasible(&demand) || !self.ledger.fits(&rest) {
            return false;
        }
        self.leases.set_stage(at, Stage::Taking, false);
        self.left(class, now, out);
        self.take(part, TakeFor::Lease(id), now, out);
        true
    }

    fn taken(&mut self, take: u64, credit: Option<Allocation>, now: NowNs, out: &mut Vec<SchedEffect>) {
        if let Some(credit) = credit {
            self.ledger.credit(&credit);
            self.soil_all(&credit);
        }
        match self.takes.remove(&take) {
            Some(TakeFor::Prepare { token, given_up: true, .. }) => {
                out.push(SchedEffect::BundlesPrepared { token, ok: false })
            }
            Some(TakeFor::Prepare { token, bundles, given_up: false }) => self.prepare_taken(token, &bundles, out),
            Some(TakeFor::Lease(lease)) => {
                let Some(at) = self.leases.find(lease).filter(|at| self.leases.get(*at).stage == Stage::Taking) else {
                    return;
                };
                let class = self.leases.get(at).class;
                if self.ledger.fits(&self.leases.class(class).def.demand) {
                    self.start(at, now, out);
                } else {
                    self.reject(at, RejectReason::NoRoom, now, out);
                }
            }
            None => {}
        }
    }

    fn sought(
        &mut self,
        origin: ShardId,
        lease: LeaseId,
        fit: super::workers::Fit,
        now: NowNs,
        out: &mut Vec<SchedEffect>,
    ) {
        if origin == self.config.shard {
            return self.seek_over(lease, now, out);
        }
        let found = self.workers.find_idle(&fit).and_then(|id| self.workers.remove(id));
        match found {
            Some(worker) => {
                self.moved.insert(worker.id, origin);
                let worker = Box::new(worker);
                out.push(SchedEffect::ToShard { to: origin, msg: SchedMsg::GiveWorker { lease, worker } });
            }
            None => out
                .push(SchedEffect::ToShard { to: self.next_shard(), msg: SchedMsg::SeekWorker { origin, lease, fit } }),
        }
    }

    fn given(&mut self, lease: LeaseId, worker: Worker, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.moved.remove(&worker.id);
        // Said by the shard that has it, not by the one that gave it: an event sent here can't overtake the worker.
        out.push(SchedEffect::WorkerMoved { worker: worker.id, to: self.config.shard });
        self.take_in(worker, now, out);
        self.seek_over(lease, now, out);
    }

    /// A lease that asked the other shards: if it still has nothing, a process is started for it.
    fn seek_over(&mut self, lease: LeaseId, now: NowNs, out: &mut Vec<SchedEffect>) {
        let Some(at) = self.leases.find(lease) else {
            return;
        };
        if matches!(self.leases.get(at).stage, Stage::Worker { process: Process::Sought, .. }) {
            self.get_process(at, false, now, out);
        }
    }
}
