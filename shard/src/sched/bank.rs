//! The bank: on a node of several shards, the one place that owns what no shard holds.
//!
//! Shards borrow credit, and keep it cached while nobody else wants it. A shard that can't serve a class sends a *want*. While a
//! resource is wanted, every shard gives back what it can't use itself ([`Mode::Idle`]). A want that stays unmet beyond the
//! patience is *held for*: its resources are called in from all shards ([`Mode::All`]) until it is met, the oldest want first, one
//! at a time, so two shards never sit on halves that each other needs. What is held for in vain (leases that do not end) is
//! let go after a while and tried again later, for twice as long.

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::api::{SchedConfig, SchedEvent};
use super::ledger::{full_credit, Ledger};
use super::reaping::{Reaping, Staff};
use super::types::*;
use super::waiters::{Ticket, Waiters};
use super::workers::{Fit, Worker};
use crate::ids::{LeaseId, NowNs, ShardId, WorkerId};

/// What a shard does with free credit of one resource.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Nobody else wants it: keep it cached.
    Keep,
    /// Others want it: serve own requests, give the rest to the bank.
    Idle,
    /// Somebody has waited too long: give all of it to the bank, grant none of it.
    All,
}

/// What schedulers of different shards say to each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SchedMsg {
    /// To the bank: a class can't be served here. Replaces what the shard wanted for the class before.
    Want {
        /// The class.
        class: ClassId,
        /// Names it in `Grant`.
        want: u64,
        /// What one lease needs from the bank.
        demand: ResourceSet,
        /// Requests that wait, at most [`WANT_BATCH`].
        count: u32,
        /// Since when the oldest of them waits.
        since: NowNs,
    },
    /// To the bank: no longer.
    Unwant {
        /// The class.
        class: ClassId,
    },
    /// To the bank: all of this now, or nothing.
    Take {
        /// Names it in `Taken`.
        take: u64,
        /// What is needed.
        demand: ResourceSet,
    },
    /// To the bank: credit given back, and how much of some resources may never come back (actors, bundles).
    Credit {
        /// The credit.
        credit: Allocation,
        /// Resources and the pinned amount.
        pinned: SmallVec<[(ResourceId, Fixed); 2]>,
    },
    /// To the bank: all free credit was sent.
    Gathered {
        /// Of the `Gather`.
        round: u64,
    },
    /// To the bank: what workers a shard has.
    Staff(Staff),
    /// From the bank: ask so many workers that were idle for long to exit.
    Reap {
        /// At most.
        count: u32,
        /// Named by the shard's next `Staff`.
        order: u64,
    },
    /// From the bank: credit for a want, which is thereby settled.
    Grant {
        /// The class.
        class: ClassId,
        /// The want.
        want: u64,
        /// The credit.
        credit: Allocation,
    },
    /// From the bank: how to treat a resource from now on.
    SetMode {
        /// The resource.
        id: ResourceId,
        /// How.
        mode: Mode,
    },
    /// From the bank: send all free credit of these, then `Gathered`.
    Gather {
        /// Names it.
        round: u64,
        /// Which resources.
        ids: SmallVec<[ResourceId; 4]>,
    },
    /// From the bank: the answer to `Take`.
    Taken {
        /// Of the take.
        take: u64,
        /// What was asked for, or nothing.
        credit: Option<Allocation>,
    },
    /// From shard to shard, round the ring: who has an idle worker for this lease? Back at the origin: nobody.
    SeekWorker {
        /// The shard that needs it.
        origin: ShardId,
        /// The lease.
        lease: LeaseId,
        /// What is needed.
        fit: Fit,
    },
    /// An idle worker changes its shard.
    GiveWorker {
        /// The lease it was sought for.
        lease: LeaseId,
        /// The worker.
        worker: Box<Worker>,
    },
    /// An event about a worker that has moved on.
    Passed(Box<SchedEvent>),
    /// A worker is gone: forget where it went.
    Forget {
        /// The worker.
        worker: WorkerId,
    },
}

/// Requests of one class for which the bank gives credit at once.
pub const WANT_BATCH: u32 = 16;

/// Wants looked at in one go; the rest follows on the next event or tick.
const TOUCH_MAX: u32 = 256;

type WantKey = (ShardId, ClassId);

#[derive(Debug)]
struct Want {
    number: u64,
    demand: ResourceSet,
    count: u32,
    ticket: Ticket,
    /// Where it is parked.
    parked: (ResourceId, Fixed),
    /// When it may be held for.
    eligible_ns: NowNs,
    /// For how long it will be held for next time.
    hold_ns: u64,
}

#[derive(Debug)]
struct Hold {
    key: WantKey,
    demand: ResourceSet,
    until_ns: NowNs,
    pinned: FxHashMap<(ShardId, ResourceId), Fixed>,
}

#[derive(Debug)]
struct Gathering {
    from: ShardId,
    take: u64,
    demand: ResourceSet,
    round: u64,
    missing: ShardId,
}

/// The bank's state.
#[derive(Debug)]
pub(crate) struct Bank {
    shards: ShardId,
    patience_ns: u64,
    reserve_ns: u64,
    reserve_max_ns: u64,
    ledger: Ledger,
    wants: FxHashMap<WantKey, Want>,
    waiters: Waiters<WantKey>,
    eligible: BTreeSet<(NowNs, Ticket, WantKey)>,
    /// Wants per resource.
    wanted: FxHashMap<ResourceId, u32>,
    modes: FxHashMap<ResourceId, Mode>,
    hold: Option<Hold>,
    takes: VecDeque<(ShardId, u64, ResourceSet)>,
    gathering: Option<Gathering>,
    dirty: Vec<ResourceId>,
    tickets: Ticket,
    rounds: u64,
    reaping: Reaping,
}

/// Messages of the bank, to be delivered.
pub(crate) type BankOut = Vec<(ShardId, SchedMsg)>;

impl Bank {
    pub(crate) fn new(config: &SchedConfig) -> Self {
        Self {
            shards: config.shards,
            patience_ns: config.want_patience_ns,
            reserve_ns: config.reserve_ns,
            reserve_max_ns: config.reserve_max_ns,
            ledger: Ledger::default(),
            wants: FxHashMap::default(),
            waiters: Waiters::default(),
            eligible: BTreeSet::new(),
            wanted: FxHashMap::default(),
            modes: FxHashMap::default(),
            hold: None,
            takes: VecDeque::new(),
            gathering: None,
            dirty: Vec::new(),
            tickets: 0,
            rounds: 0,
            reaping: Reaping::new(config.shards, config.workers_soft_limit),
        }
    }

    /// What no shard holds of a resource.
    pub(crate) fn free(&self, id: ResourceId) -> Fixed {
        self.ledger.pool(id).map_or(Fixed::ZERO, |pool| pool.free)
    }

    /// True while resources are called in for a want.
    pub(crate) fn holds(&self) -> bool {
        self.hold.is_some()
    }

    /// True while there is more to look at than one event allowed.
    pub(crate) fn behind(&self) -> bool {
        !self.dirty.is_empty() && self.gathering.is_none()
    }

    pub(crate) fn add(&mut self, id: ResourceId, total: Fixed, kind: ResourceKind, out: &mut BankOut) {
        if self.ledger.add(id, total, kind) {
            self.ledger.credit(&full_credit(id, total, kind));
            self.soil(id);
            self.pump(out);
        }
    }

    pub(crate) fn resize(&mut self, id: ResourceId, total: Fixed, out: &mut BankOut) {
        if let Some(change) = self.ledger.resize(id, total) {
            self.ledger.adjust(id, change);
            self.soil(id);
            self.set_modes(&ResourceSet::new([(id, Fixed::ONE)]), out);
            self.pump(out);
        }
    }

    /// Takes a shard's message.
    pub(crate) fn handle(&mut self, from: ShardId, msg: SchedMsg, now: NowNs, out: &mut BankOut) {
        match msg {
            SchedMsg::Want { class, want, demand, count, since } => {
                self.want((from, class), want, demand.clone(), count, since);
                self.pump(out);
                if self.wants.contains_key(&(from, class)) {
                    self.set_modes(&demand, out);
                }
            }
            SchedMsg::Unwant { class } => self.unwant((from, class), out),
            SchedMsg::Take { take, demand } => {
                self.takes.push_back((from, take, demand));
                self.next_take(out);
            }
            SchedMsg::Credit { credit, pinned } => {
                self.ledger.credit(&credit);
                credit.0.iter().for_each(|part| self.soil(part.id));
                if let Some(hold) = &mut self.hold {
                    hold.pinned.extend(pinned.iter().map(|(id, amount)| ((from, *id), *amount)));
                }
                self.set_modes(&ResourceSet::new(credit.0.iter().map(|part| (part.id, part.amount))), out);
                self.drop_hopeless(now, out);
            }
            SchedMsg::Gathered { round } => self.gathered(round, out),
            SchedMsg::Staff(staff) => return self.reaping.told(from, staff),
            // The rest goes from the bank to a shard or between shards, never to the bank.
            _ => {}
        }
        self.pump(out);
    }

    /// Time has passed: let go of a hold in vain, begin the next.
    pub(crate) fn tick(&mut self, now: NowNs, out: &mut BankOut) {
        self.reaping.decide(out);
        if self.hold.as_ref().is_some_and(|hold| hold.until_ns <= now) {
            self.let_go(now, out);
        }
        while self.hold.is_none() {
            let Some(&(at, ticket, key)) = self.eligible.first().filter(|first| first.0 <= now) else {
                break;
            };
            self.eligible.remove(&(at, ticket, key));
            let Some(want) = self.wants.get_mut(&key) else {
                continue;
            };
            if !self.ledger.feasible(&want.demand) {
                want.eligible_ns = now + self.reserve_max_ns;
                self.eligible.insert((want.eligible_ns, ticket, key));
                continue;
            }
            let demand = want.demand.clone();
            self.waiters.unpark(want.parked.0, want.parked.1, want.ticket);
            let until_ns = now + want.hold_ns;
            self.hold = Some(Hold { key, demand: demand.clone(), until_ns, pinned: FxHashMap::default() });
            self.set_modes(&demand, out);
        }
        self.pump(out);
    }

    fn soil(&mut self, id: ResourceId) {
        if !self.dirty.contains(&id) {
            self.dirty.push(id);
        }
    }

    fn want(&mut self, key: WantKey, number: u64, demand: ResourceSet, count: u32, since: NowNs) {
        if let Some(want) = self.wants.get_mut(&key) {
            (want.number, want.count) = (number, count);
            return;
        }
        self.tickets += 1;
        let want = Want {
            number,
            count,
            ticket: self.tickets,
            parked: (ResourceId(0), Fixed::ZERO),
            eligible_ns: since + self.patience_ns,
            hold_ns: self.reserve_ns,
            demand,
        };
        for (id, _) in want.demand.iter() {
            *self.wanted.entry(id).or_default() += 1;
        }
        self.eligible.insert((want.eligible_ns, want.ticket, key));
        self.wants.insert(key, want);
        self.park(key);
    }

    /// Parks a want under what it lacks, or under anything where it lacks nothing: the pump then finds it.
    fn park(&mut self, key: WantKey) {
        let demand = self.wants[&key].demand.clone();
        let lacks = demand.iter().find(|(id, amount)| self.ledger.need(*id, *amount) > self.limit(*id));
        let Some((id, amount)) = lacks.or_else(|| demand.iter().next()) else {
            return;
        };
        let need = self.ledger.need(id, amount);
        if lacks.is_none() {
            self.soil(id);
        }
        if let Some(want) = self.wants.get_mut(&key) {
            want.parked = (id, need);
            self.waiters.park(id, need, want.ticket, key);
        }
    }

    fn unwant(&mut self, key: WantKey, out: &mut BankOut) {
        let Some(want) = self.wants.remove(&key) else {
            return;
        };
        self.waiters.unpark(want.parked.0, want.parked.1, want.ticket);
        self.eligible.remove(&(want.eligible_ns, want.ticket, key));
        for (id, _) in want.demand.iter() {
            if let Some(count) = self.wanted.get_mut(&id) {
                *count -= 1;
            }
        }
        if self.hold.as_ref().is_some_and(|hold| hold.key == key) {
            self.hold = None;
            want.demand.iter().for_each(|(id, _)| self.soil(id));
        }
        self.set_modes(&want.demand, out);
    }

    /// What may be given of a resource without breaking into what is held.
    fn limit(&self, id: ResourceId) -> Fixed {
        let free = self.ledger.grantable(id);
        let held = self.hold.as_ref().map_or(Fixed::ZERO, |hold| hold.demand.get(id));
        if held == Fixed::ZERO {
            return free;
        }
        let unit = self.ledger.pool(id).is_some_and(|pool| pool.kind == ResourceKind::UnitInstances);
        if unit {
            Fixed::ZERO
        } else {
            free - held
        }
    }

    /// Gives what there is to whoever waits, oldest first.
    fn pump(&mut self, out: &mut BankOut) {
        if self.gathering.is_some() {
            return;
        }
        let ready = self.hold.as_ref().filter(|hold| self.ledger.fits(&hold.demand)).map(|hold| hold.key);
        if let Some(key) = ready {
            self.give(key, out);
        }
        for _ in 0..TOUCH_MAX {
            let mut best: Option<(Ticket, WantKey)> = None;
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
            let Some((_, key)) = best else { break };
            let want = &self.wants[&key];
            let fits = want.demand.iter().all(|(id, amount)| self.ledger.need(id, amount) <= self.limit(id));
            if fits {
                self.give(key, out);
            } else {
                let (parked, ticket) = (want.parked, want.ticket);
                self.waiters.unpark(parked.0, parked.1, ticket);
                self.park(key);
            }
        }
    }

    /// Gives credit for a want: for one request, and for more of them where that is free for all.
    fn give(&mut self, key: WantKey, out: &mut BankOut) {
        let demand = self.wants[&key].demand.clone();
        let (want, count) = (self.wants[&key].number, self.wants[&key].count);
        let mut credit = self.ledger.withdraw(&demand);
        self.unwant(key, out);
        let mut given = 1;
        let free_for_all =
            |bank: &Self| demand.iter().all(|(id, _)| bank.wanted.get(&id).is_none_or(|wants| *wants == 0));
        while given < count && free_for_all(self) && self.ledger.fits(&demand) && self.hold.is_none() {
            credit.0.extend(self.ledger.withdraw(&demand).0);
            given += 1;
        }
        out.push((key.0, SchedMsg::Grant { class: key.1, want, credit }));
    }

    /// Tells the shards how to treat the resources of a demand, where that has changed.
    fn set_modes(&mut self, demand: &ResourceSet, out: &mut BankOut) {
        for (id, _) in demand.iter() {
            let held = self.hold.as_ref().is_some_and(|hold| hold.demand.get(id) > Fixed::ZERO);
            let wanted = self.wanted.get(&id).is_some_and(|count| *count > 0) || self.free(id) < Fixed::ZERO;
            let mode = match (held, wanted) {
                (true, _) => Mode::All,
                (false, true) => Mode::Idle,
                (false, false) => Mode::Keep,
            };
            if self.modes.insert(id, mode).unwrap_or(Mode::Keep) != mode {
                out.extend((0..self.shards).map(|shard| (shard, SchedMsg::SetMode { id, mode })));
            }
        }
    }

    /// Lets go of a hold for which too much is pinned to ever succeed.
    fn drop_hopeless(&mut self, now: NowNs, out: &mut BankOut) {
        let Some(hold) = &self.hold else { return };
        let pinned = |id: ResourceId| -> Fixed {
            (0..self.shards).filter_map(|shard| hold.pinned.get(&(shard, id)).copied()).sum()
        };
        if hold.demand.iter().any(|(id, amount)| amount + pinned(id) > self.ledger.ceiling(id)) {
            self.let_go(now, out);
        }
    }

    fn let_go(&mut self, now: NowNs, out: &mut BankOut) {
        let Some(hold) = self.hold.take() else { return };
        if let Some(want) = self.wants.get_mut(&hold.key) {
            want.eligible_ns = now + want.hold_ns;
            want.hold_ns = (want.hold_ns * 2).min(self.reserve_max_ns);
            self.tickets += 1;
            want.ticket = self.tickets;
            self.eligible.insert((want.eligible_ns, want.ticket, hold.key));
            self.park(hold.key);
        }
        hold.demand.iter().for_each(|(id, _)| self.soil(id));
        self.set_modes(&hold.demand, out);
    }

    fn next_take(&mut self, out: &mut BankOut) {
        while self.gathering.is_none() {
            let Some((from, take, demand)) = self.takes.pop_front() else {
                return;
            };
            if self.can_take(&demand) || !self.ledger.feasible(&demand) {
                self.answer_take(from, take, &demand, out);
                continue;
            }
            self.rounds += 1;
            let ids: SmallVec<[ResourceId; 4]> = demand.iter().map(|(id, _)| id).collect();
            let gather = |shard| (shard, SchedMsg::Gather { round: self.rounds, ids: ids.clone() });
            out.extend((0..self.shards).map(gather));
            self.gathering = Some(Gathering { from, take, demand, round: self.rounds, missing: self.shards });
        }
    }

    fn can_take(&self, demand: &ResourceSet) -> bool {
        demand.iter().all(|(id, amount)| self.ledger.need(id, amount) <= self.limit(id))
    }

    fn answer_take(&mut self, from: ShardId, take: u64, demand: &ResourceSet, out: &mut BankOut) {
        let credit = self.can_take(demand).then(|| self.ledger.withdraw(demand));
        out.push((from, SchedMsg::Taken { take, credit }));
    }

    fn gathered(&mut self, round: u64, out: &mut BankOut) {
        let Some(gathering) = self.gathering.as_mut().filter(|gathering| gathering.round == round) else {
            return;
        };
        gathering.missing -= 1;
        if gathering.missing > 0 {
            return;
        }
        if let Some(Gathering { from, take, demand, .. }) = self.gathering.take() {
            self.answer_take(from, take, &demand, out);
        }
        self.next_take(out);
    }

    /// Verifies the bank's own books.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.ledger.check()?;
        let parked = self.wants.len() - usize::from(self.hold.is_some());
        if self.waiters.len() != parked {
            return Err(format!("{} wants are parked, of {}", self.waiters.len(), parked));
        }
        if self.eligible.len() != parked {
            return Err(format!("{} wants grow old, of {}", self.eligible.len(), parked));
        }
        for (id, count) in &self.wanted {
            let real = self.wants.values().filter(|want| want.demand.get(*id) > Fixed::ZERO).count();
            if real != *count as usize {
                return Err(format!("{id:?} is wanted {real} times, not {count}"));
            }
        }
        Ok(())
    }
}
