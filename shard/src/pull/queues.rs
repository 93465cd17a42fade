//! Wishes in the order in which they are served.
//!
//! A wish is cut into *units*: one for each object of a get or a wait, one for all arguments of a lease. Only a unit whose
//! objects are all here or known to be somewhere is *ready*; one that is not stands in no queue and holds no room, so that what
//! has to be made first can be fetched first.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::api::{Kind, WishId};
use crate::ids::ObjectId;

/// Numbers units in the order in which they came.
pub(super) type UnitId = u64;

/// A part of a wish that is fetched as a whole.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) kind: Kind,
    pub(super) objects: SmallVec<[ObjectId; 1]>,
    /// Objects that are neither here nor known to be anywhere.
    pub(super) unready: usize,
    /// Objects that are not here. Without any there is nothing to be fetched.
    pub(super) missing: usize,
    pub(super) active: bool,
}

impl Unit {
    fn is_ready(&self) -> bool {
        !self.active && self.unready == 0 && self.missing > 0
    }
}

/// What is known of an object, as far as it matters to its units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// Here, or somewhere.
    pub(super) ready: bool,
    /// Here.
    pub(super) here: bool,
}

/// The units of one kind, by number.
#[derive(Debug, Default)]
struct Line {
    ready: BTreeSet<UnitId>,
    active: BTreeSet<UnitId>,
}

/// All units.
#[derive(Debug, Default)]
pub(super) struct Queues {
    units: FxHashMap<UnitId, Unit>,
    wishes: FxHashMap<WishId, Vec<UnitId>>,
    lines: [Line; Kind::COUNT],
    next: UnitId,
    /// Active units that still miss something.
    fetching: usize,
}

impl Queues {
    /// Adds a unit; `standing` says of each of its objects how it stands, and notes that the unit wants it.
    pub(super) fn add(
        &mut self,
        wish: WishId,
        kind: Kind,
        objects: SmallVec<[ObjectId; 1]>,
        mut standing: impl FnMut(UnitId, &ObjectId) -> Standing,
    ) {
        let id = self.next;
        self.next += 1;
        let mut unit = Unit { kind, objects, unready: 0, missing: 0, active: false };
        for object in &unit.objects {
            let Standing { ready, here } = standing(id, object);
            unit.unready += usize::from(!ready);
            unit.missing += usize::from(!here);
        }
        if unit.is_ready() {
            self.lines[kind as usize].ready.insert(id);
        }
        self.units.insert(id, unit);
        self.wishes.entry(wish).or_default().push(id);
    }

    /// The units of a wish.
    pub(super) fn of_wish(&self, wish: WishId) -> Vec<UnitId> {
        self.wishes.get(&wish).cloned().unwrap_or_default()
    }

    pub(super) fn has_wish(&self, wish: WishId) -> bool {
        self.wishes.contains_key(&wish)
    }

    /// Takes a wish away; its units have to be inactive.
    pub(super) fn remove(&mut self, wish: WishId) -> Vec<(UnitId, Unit)> {
        let ids = self.wishes.remove(&wish).unwrap_or_default();
        let mut removed = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(unit) = self.units.remove(&id) {
                self.lines[unit.kind as usize].ready.remove(&id);
                removed.push((id, unit));
            }
        }
        removed
    }

    pub(super) fn get(&self, unit: UnitId) -> Option<&Unit> {
        self.units.get(&unit)
    }

    /// An object of a unit stands otherwise than before.
    pub(super) fn changed(&mut self, id: UnitId, before: Standing, after: Standing) {
        let Some(unit) = self.units.get_mut(&id) else {
            return;
        };
        let was_fetching = unit.active && unit.missing > 0;
        unit.unready = unit.unready + usize::from(before.ready) - usize::from(after.ready);
        unit.missing = unit.missing + usize::from(before.here) - usize::from(after.here);
        let is_fetching = unit.active && unit.missing > 0;
        self.fetching = self.fetching + usize::from(is_fetching) - usize::from(was_fetching);
        let line = &mut self.lines[unit.kind as usize];
        if unit.is_ready() {
            line.ready.insert(id);
        } else {
            line.ready.remove(&id);
        }
    }

    /// The unit of a kind that is to be activated next.
    pub(super) fn next_ready(&self, kind: Kind) -> Option<UnitId> {
        self.lines[kind as usize].ready.first().copied()
    }

    /// The active unit of a kind that came last.
    pub(super) fn newest_active(&self, kind: Kind) -> Option<UnitId> {
        self.lines[kind as usize].active.last().copied()
    }

    /// How many active units still miss something.
    pub(super) fn fetching(&self) -> usize {
        self.fetching
    }

    /// How many units could be active, and are not.
    pub(super) fn waiting(&self) -> usize {
        self.lines.iter().map(|line| line.ready.len()).sum()
    }

    /// How many units there are.
    pub(super) fn len(&self) -> usize {
        self.units.len()
    }

    pub(super) fn set_active(&mut self, id: UnitId, active: bool) {
        let Some(unit) = self.units.get_mut(&id) else {
            return;
        };
        let was_fetching = unit.active && unit.missing > 0;
        unit.active = active;
        let is_fetching = unit.active && unit.missing > 0;
        self.fetching = self.fetching + usize::from(is_fetching) - usize::from(was_fetching);
        let line = &mut self.lines[unit.kind as usize];
        if active {
            line.active.insert(id);
        } else {
            line.active.remove(&id);
        }
        if unit.is_ready() {
            line.ready.insert(id);
        } else {
            line.ready.remove(&id);
        }
    }

    /// Verifies that each unit stands where its state says.
    pub(super) fn check(&self) -> Result<(), String> {
        for (id, unit) in &self.units {
            let line = &self.lines[unit.kind as usize];
            if (line.ready.contains(id), line.active.contains(id)) != (unit.is_ready(), unit.active) {
                return Err(format!("unit {id} stands in the wrong queue: {unit:?}"));
            }
        }
        let listed: usize = self.lines.iter().map(|line| line.ready.len() + line.active.len()).sum();
        let expected = self.units.values().filter(|unit| unit.active || unit.is_ready()).count();
        let fetching = self.units.values().filter(|unit| unit.active && unit.missing > 0).count();
        if (listed, self.fetching) != (expected, fetching) {
            return Err(format!(
                "{listed} units in queues, {} fetching; expected {expected}, {fetching}",
                self.fetching
            ));
        }
        Ok(())
    }
}
