//! The pull manager: which wanted objects are asked for, and whom.
//!
//! As in Ray's `pull_manager.cc`: gets go before waits, waits before arguments of leases; what is being fetched fits the room that
//! the store has, except that gets are always fetched, and the first unit of all is too, so that nothing starves. An object is
//! asked for once however many want it, of one node at a time, and of another one when that node fails or stays silent.
//!
//! Where it differs: a get asks the node that probably has an object (its owner's) without asking the owner first, who is asked only
//! where that comes to nothing, which spares small objects most of their way. And received copies never keep this node's own work from memory. While clients of the node wait for room
//! ([`PullEvent::Room`]), no arguments are fetched, and those already here lose their reference, one unit after the other and
//! the newest first, down to the last. Ray keeps them, and a node whose store is full of received arguments then waits for ever
//! (ray-project/ray issue 62093): the tasks that could free memory wait for memory that the arguments of later ones hold.

use std::collections::BTreeSet;

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::{smallvec, SmallVec};

use super::api::{Kind, PullConfig, PullEffect, PullEvent, Target, WishId};
use super::queues::{Queues, Standing, UnitId};
use crate::ids::{NodeId, NowNs, ObjectId};

/// Repetitions after which the pause grows no further.
const DOUBLINGS_MAX: u32 = 16;

/// A wanted object.
#[derive(Debug, Default)]
struct Pull {
    units: SmallVec<[UnitId; 2]>,
    /// Units of these that are active.
    active: usize,
    /// Of these, units of arguments. They are of use only together, so what came of them is held; who gets or waits for an object
    /// takes it as it comes.
    kept: usize,
    here: bool,
    /// The node has a reference on it, because it was received.
    held: bool,
    /// It is being made.
    pending: bool,
    size_bytes: u64,
    nodes: SmallVec<[NodeId; 2]>,
    /// Its only node is a guess, and its owner was not asked.
    guessed: bool,
    /// Nodes that failed since it was asked for first, or since all had failed.
    failed: SmallVec<[NodeId; 2]>,
    asked: Option<NodeId>,
    /// Times that it was asked for since the receiver was last told to take no more of it.
    asks: u32,
    /// When the node that was asked has failed, or when to ask again where none is asked.
    due: Option<NowNs>,
    failures: u32,
}

impl Pull {
    fn standing(&self) -> Standing {
        Standing { ready: self.here || (!self.pending && !self.nodes.is_empty()), here: self.here }
    }

    /// Bytes that it may yet take of the room.
    fn promised(&self) -> u64 {
        if self.active > 0 && !self.here {
            self.size_bytes
        } else {
            0
        }
    }
}

/// Figures for reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullStats {
    /// Objects wanted.
    pub wanted: usize,
    /// Of these, asked for.
    pub asked: usize,
    /// Units of wishes.
    pub units: usize,
    /// Of these, being fetched.
    pub fetching: usize,
    /// Units that could be fetched and wait for room.
    pub waiting: usize,
    /// Bytes that objects on their way will take.
    pub promised_bytes: u64,
    /// Times that an object was asked for again.
    pub repeated: u64,
}

/// Decides which objects are fetched, and from where.
#[derive(Debug)]
pub struct PullManager {
    config: PullConfig,
    pulls: FxHashMap<ObjectId, Pull>,
    queues: Queues,
    dues: BTreeSet<(NowNs, ObjectId)>,
    dead: FxHashSet<NodeId>,
    promised_bytes: u64,
    free_bytes: u64,
    starving: bool,
    asked: usize,
    repeated: u64,
    turn: u64,
}

impl PullManager {
    /// Nothing is wanted yet, and there is no room until it is told of some.
    pub fn new(config: PullConfig) -> Self {
        Self {
            config,
            pulls: FxHashMap::default(),
            queues: Queues::default(),
            dues: BTreeSet::new(),
            dead: FxHashSet::default(),
            promised_bytes: 0,
            free_bytes: 0,
            starving: false,
            asked: 0,
            repeated: 0,
            turn: 0,
        }
    }

    /// Takes one event and appends what it leads to.
    pub fn handle(&mut self, event: PullEvent, now: NowNs, out: &mut Vec<PullEffect>) {
        match event {
            PullEvent::Want { wish, kind, objects } => self.want(wish, kind, objects, out),
            PullEvent::Unwant { wish } => self.unwant(wish, out),
            PullEvent::Located { object, size_bytes, nodes, pending } => {
                self.located(&object, size_bytes, &nodes, pending, now, out);
            }
            PullEvent::Here { object, held } => self.here(&object, held, out),
            PullEvent::Gone { object } => self.gone(&object, now),
            PullEvent::Progress { object, from } => self.progress(&object, from, now),
            PullEvent::Failed { object, from } => self.failed(&object, from, now, out),
            PullEvent::Elsewhere { object, from, to } => self.elsewhere(&object, from, to, now, out),
            PullEvent::NoRoom { object } => self.no_room(&object, now),
            PullEvent::NodeGone { node } => self.node_gone(node, now, out),
            PullEvent::Room { free_bytes, starving } => {
                self.free_bytes = free_bytes;
                self.starving = starving;
                if starving {
                    self.yield_room(out);
                }
            }
            PullEvent::Tick => self.tick(now, out),
        }
        self.activate(now, out);
    }

    /// When a [`PullEvent::Tick`] is of use next.
    pub fn next_due(&self) -> Option<NowNs> {
        self.dues.first().map(|due| due.0)
    }

    /// True while anything is wanted.
    pub fn is_wanting(&self) -> bool {
        !self.pulls.is_empty()
    }

    /// True while chunks of the object are welcome.
    pub fn is_active(&self, object: &ObjectId) -> bool {
        self.pulls.get(object).is_some_and(|pull| pull.active > 0 && !pull.here)
    }

    /// Figures for reports.
    pub fn stats(&self) -> PullStats {
        PullStats {
            wanted: self.pulls.len(),
            asked: self.asked,
            units: self.queues.len(),
            fetching: self.queues.fetching(),
            waiting: self.queues.waiting(),
            promised_bytes: self.promised_bytes,
            repeated: self.repeated,
        }
    }

    fn want(&mut self, wish: WishId, kind: Kind, objects: Vec<Target>, out: &mut Vec<PullEffect>) {
        if self.queues.has_wish(wish) {
            self.unwant(wish, out);
        }
        let mut distinct = FxHashSet::default();
        let objects: Vec<_> = objects.into_iter().filter(|target| distinct.insert(target.object)).collect();
        if self.pulls.len() + objects.len() > self.config.objects_max {
            return;
        }
        for Target { object, here, likely } in &objects {
            let dead = &self.dead;
            self.pulls.entry(*object).or_insert_with(|| {
                // Others are fetched only where there is room, so their sizes have to be known.
                let likely = likely.filter(|node| kind == Kind::Get && !here && !dead.contains(node));
                if likely.is_none() {
                    out.push(PullEffect::Locate { object: *object });
                }
                let nodes = likely.into_iter().collect();
                Pull { here: *here, nodes, guessed: likely.is_some(), ..Pull::default() }
            });
        }
        let units: Vec<SmallVec<[ObjectId; 1]>> = match kind {
            Kind::Arguments => vec![objects.iter().map(|target| target.object).collect()],
            Kind::Get | Kind::Wait => objects.iter().map(|target| smallvec![target.object]).collect(),
        };
        for unit in units {
            let pulls = &mut self.pulls;
            self.queues.add(wish, kind, unit, |id, object| match pulls.get_mut(object) {
                Some(pull) => {
                    pull.units.push(id);
                    pull.standing()
                }
                None => Standing { ready: false, here: false },
            });
        }
    }

    fn unwant(&mut self, wish: WishId, out: &mut Vec<PullEffect>) {
        for unit in self.queues.of_wish(wish) {
            self.deactivate(unit, out);
        }
        for (id, unit) in self.queues.remove(wish) {
            for object in unit.objects {
                let Some(pull) = self.pulls.get_mut(&object) else {
                    continue;
                };
                pull.units.retain(|unit| *unit != id);
                if pull.units.is_empty() {
                    self.clear_due(&object);
                    self.pulls.remove(&object);
                    out.push(PullEffect::Forget { object });
                }
            }
        }
    }

    /// Changes what is known of an object, and its units with it.
    fn change(&mut self, object: &ObjectId, change: impl FnOnce(&mut Pull)) -> bool {
        let Some(pull) = self.pulls.get_mut(object) else {
            return false;
        };
        let (before, promised) = (pull.standing(), pull.promised());
        change(pull);
        let after = pull.standing();
        self.promised_bytes = self.promised_bytes + pull.promised() - promised;
        if before != after {
            for unit in &pull.units {
                self.queues.changed(*unit, before, after);
            }
        }
        true
    }

    fn located(
        &mut self,
        object: &ObjectId,
        size_bytes: u64,
        nodes: &[NodeId],
        pending: bool,
        now: NowNs,
        out: &mut Vec<PullEffect>,
    ) {
        // The owner was not asked, and will tell nothing more: this is the answer to an earlier question.
        if self.pulls.get(object).is_some_and(|pull| pull.guessed) {
            return;
        }
        let nodes: SmallVec<[NodeId; 2]> = nodes.iter().filter(|node| !self.dead.contains(node)).copied().collect();
        let known = self.change(object, |pull| {
            pull.pending = pending;
            if size_bytes > 0 {
                pull.size_bytes = size_bytes;
            }
            pull.nodes = nodes;
        });
        if !known {
            return;
        }
        self.deactivate_unready(object, out);
        // A node that was asked and has it no more may still be sending; its time will run out otherwise.
        let idle = self.pulls.get(object).is_some_and(|pull| pull.asked.is_none() && pull.due.is_none());
        if idle {
            self.ask(object, now, out);
        }
    }

    /// Units that can't be fulfilled for now make room for those that can.
    fn deactivate_unready(&mut self, object: &ObjectId, out: &mut Vec<PullEffect>) {
        let units = self.pulls.get(object).map(|pull| pull.units.clone()).unwrap_or_default();
        for unit in units {
            if self.queues.get(unit).is_some_and(|unit| unit.unready > 0) {
                self.deactivate(unit, out);
            }
        }
    }

    fn here(&mut self, object: &ObjectId, held: bool, out: &mut Vec<PullEffect>) {
        let known = self.change(object, |pull| pull.here = true);
        let Some(pull) = self.pulls.get_mut(object).filter(|_| known) else {
            if held {
                out.push(PullEffect::Release { object: *object });
            }
            return;
        };
        pull.failed.clear();
        pull.failures = 0;
        // The receiver expects it still, unless what it expected is what has come. What is late would be received beside the object,
        // and once that is evicted stand in the way of its file on this node's disk.
        if std::mem::take(&mut pull.asks) > u32::from(held) {
            out.push(PullEffect::Stop { object: *object });
        }
        if held && !pull.held {
            if pull.kept > 0 {
                pull.held = true;
            } else {
                out.push(PullEffect::Release { object: *object });
            }
        }
        self.end_ask(object);
    }

    fn gone(&mut self, object: &ObjectId, now: NowNs) {
        // What is held stays: the news are from before it was received again.
        if self.pulls.get(object).is_none_or(|pull| pull.held || !pull.here) {
            return;
        }
        if self.change(object, |pull| pull.here = false) {
            // After a pause: two objects that evict each other would be fetched in turn for ever.
            self.ask_later(object, now);
        }
    }

    fn progress(&mut self, object: &ObjectId, from: NodeId, now: NowNs) {
        let timeout = self.config.timeout_ns;
        if self.pulls.get(object).is_some_and(|pull| pull.asked == Some(from)) {
            self.set_due(object, now.saturating_add(timeout));
        }
    }

    fn failed(&mut self, object: &ObjectId, from: NodeId, now: NowNs, out: &mut Vec<PullEffect>) {
        let Some(pull) = self.pulls.get_mut(object).filter(|pull| pull.asked == Some(from)) else {
            return;
        };
        if pull.guessed {
            self.end_ask(object);
            return self.guessed_wrong(object, out);
        }
        pull.failed.push(from);
        self.end_ask(object);
        self.repeated += 1;
        self.ask(object, now, out);
        // What came of it is of no use to anybody, and would stand in the way of a copy on this node's disk.
        if let Some(pull) = self.pulls.get_mut(object).filter(|pull| pull.asked.is_none()) {
            pull.asks = 0;
            out.push(PullEffect::Stop { object: *object });
        }
    }

    /// Nobody is known to have an object that was guessed to be somewhere: its owner is asked.
    fn guessed_wrong(&mut self, object: &ObjectId, out: &mut Vec<PullEffect>) {
        out.push(PullEffect::Locate { object: *object });
        self.change(object, |pull| {
            pull.guessed = false;
            pull.nodes.clear();
        });
        self.deactivate_unready(object, out);
    }

    /// Asks whom the node has named, which the owner need not know of. If that fails, one of the nodes that the owner told of is next.
    fn elsewhere(&mut self, object: &ObjectId, from: NodeId, to: NodeId, now: NowNs, out: &mut Vec<PullEffect>) {
        if self.dead.contains(&to) || to == from {
            return self.failed(object, from, now, out);
        }
        if let Some(pull) = self.pulls.get_mut(object).filter(|pull| pull.asked == Some(from)) {
            pull.asked = Some(to);
            pull.asks = pull.asks.saturating_add(1);
            self.set_due(object, now.saturating_add(self.config.timeout_ns));
            out.push(PullEffect::Ask { object: *object, from: to });
        }
    }

    fn no_room(&mut self, object: &ObjectId, now: NowNs) {
        if self.pulls.get(object).is_some_and(|pull| !pull.here && pull.active > 0) {
            self.end_ask(object);
            self.ask_later(object, now);
        }
    }

    fn node_gone(&mut self, node: NodeId, now: NowNs, out: &mut Vec<PullEffect>) {
        // Node ids are never used again; the set is as large as the number of nodes that ever died.
        self.dead.insert(node);
        let concerned = self.pulls.iter().filter(|(_, pull)| pull.nodes.contains(&node) || pull.asked == Some(node));
        let mut concerned: Vec<ObjectId> = concerned.map(|(object, _)| *object).collect();
        concerned.sort_unstable();
        for object in concerned {
            self.change(&object, |pull| pull.nodes.retain(|source| *source != node));
            if self.pulls.get(&object).is_some_and(|pull| pull.asked == Some(node)) {
                self.end_ask(&object);
                self.repeated += 1;
            }
            if self.pulls.get(&object).is_some_and(|pull| pull.guessed) {
                self.clear_due(&object);
                self.guessed_wrong(&object, out);
            }
            self.deactivate_unready(&object, out);
            self.ask(&object, now, out);
        }
    }

    fn tick(&mut self, now: NowNs, out: &mut Vec<PullEffect>) {
        while let Some((at, object)) = self.dues.first().copied().filter(|due| due.0 <= now) {
            self.dues.remove(&(at, object));
            let Some(pull) = self.pulls.get_mut(&object) else {
                continue;
            };
            pull.due = None;
            if pull.guessed {
                self.guess_lasts(&object, now, out);
                continue;
            }
            self.repeated += 1;
            match pull.asked {
                Some(silent) => self.failed(&object, silent, now, out),
                None => self.ask(&object, now, out),
            }
        }
    }

    /// A node that was guessed to have an object has sent nothing yet, or could not: the owner is asked, too.
    fn guess_lasts(&mut self, object: &ObjectId, now: NowNs, out: &mut Vec<PullEffect>) {
        let Some(pull) = self.pulls.get_mut(object) else {
            return;
        };
        if pull.asked.is_none() {
            return self.guessed_wrong(object, out);
        }
        pull.guessed = false;
        out.push(PullEffect::Locate { object: *object });
        self.set_due(object, now.saturating_add(self.config.timeout_ns));
    }

    /// Asks a node for an object, if it is to be fetched and somebody has it.
    fn ask(&mut self, object: &ObjectId, now: NowNs, out: &mut Vec<PullEffect>) {
        self.turn = self.turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let turn = (self.turn >> 33) as usize;
        let Some(pull) = self.pulls.get_mut(object) else {
            return;
        };
        if pull.active == 0 || pull.here || pull.pending || pull.asked.is_some() || pull.nodes.is_empty() {
            return;
        }
        let left: SmallVec<[NodeId; 4]> = pull.nodes.iter().filter(|n| !pull.failed.contains(n)).copied().collect();
        if left.is_empty() {
            pull.failed.clear();
            return self.ask_later(object, now);
        }
        let from = left[turn % left.len()];
        pull.asked = Some(from);
        pull.asks = pull.asks.saturating_add(1);
        self.asked += 1;
        let object = *object;
        let (patience, ask) = match pull.guessed {
            true => (self.config.likely_ns, PullEffect::AskIfThere { object, from }),
            false => (self.config.timeout_ns, PullEffect::Ask { object, from }),
        };
        self.set_due(&object, now.saturating_add(patience));
        out.push(ask);
    }

    fn ask_later(&mut self, object: &ObjectId, now: NowNs) {
        let Some(pull) = self.pulls.get_mut(object) else {
            return;
        };
        let pause = self.config.retry_min_ns << pull.failures.min(DOUBLINGS_MAX);
        pull.failures = pull.failures.saturating_add(1);
        self.set_due(object, now.saturating_add(pause.min(self.config.retry_max_ns)));
    }

    fn end_ask(&mut self, object: &ObjectId) {
        if let Some(pull) = self.pulls.get_mut(object) {
            if pull.asked.take().is_some() {
                self.asked -= 1;
            }
        }
        self.clear_due(object);
    }

    fn set_due(&mut self, object: &ObjectId, at: NowNs) {
        if let Some(pull) = self.pulls.get_mut(object) {
            if let Some(before) = pull.due.replace(at) {
                self.dues.remove(&(before, *object));
            }
            self.dues.insert((at, *object));
        }
    }

    fn clear_due(&mut self, object: &ObjectId) {
        if let Some(due) = self.pulls.get_mut(object).and_then(|pull| pull.due.take()) {
            self.dues.remove(&(due, *object));
        }
    }

    /// Bytes that a unit would take beyond what is promised already.
    fn needs(&self, unit: UnitId) -> u64 {
        let objects = self.queues.get(unit).map(|unit| &unit.objects[..]).unwrap_or_default();
        let new = objects.iter().filter_map(|object| self.pulls.get(object)).filter(|p| p.active == 0 && !p.here);
        new.map(|pull| pull.size_bytes).sum()
    }

    fn fits(&self, more_bytes: u64) -> bool {
        self.promised_bytes.saturating_add(more_bytes) <= self.free_bytes
    }

    /// Activates what may be, and deactivates what has to make room for it.
    fn activate(&mut self, now: NowNs, out: &mut Vec<PullEffect>) {
        while let Some(unit) = self.queues.next_ready(Kind::Get) {
            self.make_room(unit, &[Kind::Arguments, Kind::Wait], out);
            self.activate_unit(unit, now, out);
        }
        let mut blocked = false;
        while let Some(unit) = self.queues.next_ready(Kind::Wait).filter(|_| !blocked) {
            self.make_room(unit, &[Kind::Arguments], out);
            blocked = !self.may_activate(unit);
            if !blocked {
                self.activate_unit(unit, now, out);
            }
        }
        // What was just taken away for a wait is not given back while it waits for more.
        while let Some(unit) = self.queues.next_ready(Kind::Arguments).filter(|_| !blocked && !self.starving) {
            if !self.may_activate(unit) {
                break;
            }
            self.activate_unit(unit, now, out);
        }
        for kind in [Kind::Arguments, Kind::Wait] {
            while !self.fits(0) && self.queues.fetching() > 1 {
                let Some(unit) = self.queues.newest_active(kind) else {
                    break;
                };
                self.deactivate(unit, out);
            }
        }
    }

    fn may_activate(&self, unit: UnitId) -> bool {
        self.queues.fetching() == 0 || self.fits(self.needs(unit))
    }

    /// Deactivates units of lower kinds, the newest first, until one of a higher kind fits.
    fn make_room(&mut self, unit: UnitId, lower: &[Kind], out: &mut Vec<PullEffect>) {
        for kind in lower {
            while !self.fits(self.needs(unit)) {
                let Some(other) = self.queues.newest_active(*kind) else {
                    break;
                };
                self.deactivate(other, out);
            }
        }
    }

    /// Gives up the newest unit of arguments, so that the node's own work gets its memory.
    fn yield_room(&mut self, out: &mut Vec<PullEffect>) {
        if let Some(unit) = self.queues.newest_active(Kind::Arguments) {
            self.deactivate(unit, out);
        }
    }

    fn activate_unit(&mut self, id: UnitId, now: NowNs, out: &mut Vec<PullEffect>) {
        self.queues.set_active(id, true);
        let (objects, kept) = match self.queues.get(id) {
            Some(unit) => (unit.objects.clone(), usize::from(unit.kind == Kind::Arguments)),
            None => return,
        };
        for object in &objects {
            self.change(object, |pull| {
                pull.active += 1;
                pull.kept += kept;
            });
            let waits = self.pulls.get(object).is_some_and(|pull| pull.due.is_some());
            if !waits {
                self.ask(object, now, out);
            }
        }
    }

    fn deactivate(&mut self, id: UnitId, out: &mut Vec<PullEffect>) {
        let Some(unit) = self.queues.get(id).filter(|unit| unit.active) else {
            return;
        };
        let (objects, kept) = (unit.objects.clone(), usize::from(unit.kind == Kind::Arguments));
        self.queues.set_active(id, false);
        for object in &objects {
            self.change(object, |pull| {
                pull.active -= 1;
                pull.kept -= kept;
            });
            let Some(pull) = self.pulls.get_mut(object) else {
                continue;
            };
            if pull.kept == 0 && std::mem::take(&mut pull.held) {
                out.push(PullEffect::Release { object: *object });
            }
            if pull.active == 0 && !pull.here {
                pull.asks = 0;
                self.end_ask(object);
                out.push(PullEffect::Stop { object: *object });
            }
        }
    }

    /// Verifies what the state says twice.
    pub fn check(&self) -> Result<(), String> {
        self.queues.check()?;
        let promised: u64 = self.pulls.values().map(Pull::promised).sum();
        let asked = self.pulls.values().filter(|pull| pull.asked.is_some()).count();
        let dues = self.pulls.values().filter(|pull| pull.due.is_some()).count();
        let counted = (self.promised_bytes, self.asked, self.dues.len());
        if counted != (promised, asked, dues) {
            return Err(format!("(promised, asked, dues) are {counted:?}, counted {:?}", (promised, asked, dues)));
        }
        for (object, pull) in &self.pulls {
            let active = pull.units.iter().filter(|id| self.queues.get(**id).is_some_and(|unit| unit.active)).count();
            if active != pull.active || pull.units.is_empty() {
                return Err(format!("{object}: {pull:?}, but {active} of its units are active"));
            }
            let may_ask = pull.active > 0 && !pull.here && !pull.pending && !pull.nodes.is_empty();
            if pull.asked.is_some() && (pull.here || pull.active == 0 || pull.due.is_none()) {
                return Err(format!("{object} is asked for in vain, or without end: {pull:?}"));
            }
            if may_ask && pull.asked.is_none() && pull.due.is_none() {
                return Err(format!("{object} could be asked for: {pull:?}"));
            }
            if pull.here && pull.asks > 0 {
                return Err(format!("{object} is here, and the receiver expects it: {pull:?}"));
            }
            if pull.guessed && (pull.pending || pull.nodes.len() != 1 || pull.size_bytes > 0) {
                return Err(format!("{object} is where its owner says, and guessed to be somewhere: {pull:?}"));
            }
            if pull.held && (!pull.here || pull.kept == 0) {
                return Err(format!("{object} is held for nothing: {pull:?}"));
            }
        }
        if !self.starving && self.queues.fetching() == 0 {
            let starved =
                [Kind::Get, Kind::Wait, Kind::Arguments].into_iter().find(|k| self.queues.next_ready(*k).is_some());
            if let Some(kind) = starved {
                return Err(format!("a {kind:?} could be fetched, and nothing is"));
            }
        }
        Ok(())
    }
}
