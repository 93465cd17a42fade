//! What a core sees of objects that come and go, on its way to the control thread, which tells their owners.
//!
//! Owners learn of a primary copy with the reply that names it, so nobody waits for these notes: a core keeps them for some
//! milliseconds and sends them together. An object lives on one shard, so what is said of it stays in order.
//!
//! What the owner knows by itself is left out: where an object was put. Ray 2.60's core worker enters its own node among the locations
//! of what it puts, before it asks the store for room. Of a task's return it notes in which node the copy is pinned, but no location, so it
//! has to be told of those. The two are told apart by the index in the object's id: Ray keeps the indices up to
//! `max_num_generator_returns` for returns, and puts have those above.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::{ObjectId, WorkerId};
use raylet_shard::store::{GoneReason, ObjectSource};
use rustc_hash::FxHashSet;

use super::messages::Owner;
use crate::bridge::ToControl;
use crate::core_loop::Core;
use crate::native;

/// How long a core keeps what it saw.
const TELL_AFTER: Duration = Duration::from_millis(5);

/// How long it keeps them where all are of objects that their owners gave up themselves.
const TELL_FREED_AFTER: Duration = Duration::from_millis(100);

/// Ray's default of `max_num_generator_returns`. A smaller setting is not relied on: another process may not have it.
const RETURNS_MAX_DEFAULT: u32 = 100_000_000;

/// Most notes that it keeps for that long.
const NOTES_MAX: usize = 512;

/// Owners whose address a core remembers to have told; beyond it all are told again.
const OWNERS_TOLD_MAX: usize = 16_384;

/// One thing seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// Where the owner of objects is reached; before the first of its objects.
    Owner(Owner),
    /// A sealed object is here.
    Here {
        /// Its owner.
        owner: WorkerId,
        /// The object.
        object: ObjectId,
    },
    /// A sealed object is here no longer.
    Gone {
        /// Its owner.
        owner: WorkerId,
        /// The object.
        object: ObjectId,
        /// Because its owner wanted it so.
        freed: bool,
        /// It is still on disk here, and can be had again.
        on_disk: bool,
    },
    /// An object was spilled.
    Spilled {
        /// Its owner.
        owner: WorkerId,
        /// The object.
        object: ObjectId,
        /// Where it is on this node's disk.
        url: String,
    },
}

/// What a core has seen and not yet told.
#[derive(Default)]
pub struct Sightings {
    notes: RefCell<Vec<Sighting>>,
    told: RefCell<FxHashSet<WorkerId>>,
    /// Above this are the indices of puts.
    returns_max: Cell<u32>,
    /// Timers that are set: the short one and the long one.
    soon: Cell<bool>,
    later: Cell<bool>,
}

impl Sightings {
    /// Ray's door opens, with this setting.
    pub fn open(&self, max_num_generator_returns: u64) {
        let returns_max = u32::try_from(max_num_generator_returns).unwrap_or(u32::MAX);
        self.returns_max.set(returns_max.max(RETURNS_MAX_DEFAULT));
    }

    /// Whether the owner entered the location itself.
    fn owner_knows(&self, object: &ObjectId, source: ObjectSource) -> bool {
        source == ObjectSource::CreatedByWorker && object.index() > self.returns_max.get()
    }

    /// Notes where an owner is reached, unless that was told before.
    pub fn owner(&self, core: &Rc<Core>, worker: WorkerId, address: impl FnOnce() -> Owner) {
        if worker == WorkerId::NIL {
            return;
        }
        {
            let mut told = self.told.borrow_mut();
            if told.contains(&worker) {
                return;
            }
            if told.len() >= OWNERS_TOLD_MAX {
                told.clear();
            }
            told.insert(worker);
        }
        let address = address();
        core.spills.owner_seen(&address);
        // Ahead of what another core may see of the owner's objects.
        core.tell_control(ToControl::Seen(vec![Sighting::Owner(address)]));
    }

    /// Notes that an object is here, where its owner has to be told. One without an owner is nobody's concern.
    pub fn here(&self, core: &Rc<Core>, owner: WorkerId, object: ObjectId, source: ObjectSource) {
        if !self.owner_knows(&object, source) && told(core, &owner) {
            self.note(core, Sighting::Here { owner, object });
        }
    }

    /// Notes that an object is gone from here.
    pub fn gone(&self, core: &Rc<Core>, owner: WorkerId, object: ObjectId, reason: GoneReason) {
        if told(core, &owner) {
            let (freed, on_disk) = (reason == GoneReason::Freed, reason == GoneReason::Spilled);
            self.note(core, Sighting::Gone { owner, object, freed, on_disk });
        }
    }

    /// Notes that an object is on disk here.
    pub fn spilled(&self, core: &Rc<Core>, owner: WorkerId, object: ObjectId, url: String) {
        if told(core, &owner) {
            self.note(core, Sighting::Spilled { owner, object, url });
        }
    }

    fn note(&self, core: &Rc<Core>, sighting: Sighting) {
        let freed = matches!(sighting, Sighting::Gone { freed: true, .. });
        let kept = {
            let mut notes = self.notes.borrow_mut();
            notes.push(sighting);
            notes.len()
        };
        if kept >= NOTES_MAX {
            return self.tell(core);
        }
        if freed && !self.soon.get() && !self.later.replace(true) {
            core.io.after(TELL_FREED_AFTER, |core| {
                core.sightings.later.set(false);
                core.sightings.tell(core);
            });
        }
        if !freed && !self.soon.replace(true) {
            core.io.after(TELL_AFTER, |core| {
                core.sightings.soon.set(false);
                core.sightings.tell(core);
            });
        }
    }

    fn tell(&self, core: &Rc<Core>) {
        let notes = std::mem::take(&mut *self.notes.borrow_mut());
        if !notes.is_empty() {
            core.tell_control(ToControl::Seen(notes));
        }
    }
}

/// Whether the owner is one that is told: a worker of Ray.
fn told(core: &Core, owner: &WorkerId) -> bool {
    *owner != WorkerId::NIL && core.rpc.is_open() && !native::is_owner(core, owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(index: u32) -> ObjectId {
        let mut bytes = [7; ObjectId::LEN];
        bytes[ObjectId::LEN - 4..].copy_from_slice(&index.to_le_bytes());
        ObjectId(bytes)
    }

    #[test]
    fn of_what_was_put_the_owner_knows_where_it_is() {
        let sightings = Sightings::default();
        sightings.open(100_000_000);
        let knows = |index, source| sightings.owner_knows(&object(index), source);
        // The first put of a driver, as Ray 2.60 numbers it, and the first return of a task.
        assert!(knows(0x05f5_e101, ObjectSource::CreatedByWorker));
        assert!(!knows(1, ObjectSource::CreatedByWorker));
        assert!(!knows(100_000_000, ObjectSource::CreatedByWorker));
        for source in [ObjectSource::ReceivedFromRemote, ObjectSource::RestoredFromStorage] {
            assert!(!knows(0x05f5_e101, source), "{source:?} is a copy that came later");
        }
    }

    #[test]
    fn a_smaller_limit_than_usual_is_not_relied_on() {
        let sightings = Sightings::default();
        sightings.open(2);
        assert!(!sightings.owner_knows(&object(3), ObjectSource::CreatedByWorker));
        sightings.open(u64::MAX);
        assert!(!sightings.owner_knows(&object(u32::MAX), ObjectSource::CreatedByWorker));
    }
}
