//! What a core sees of objects that come and go, on its way to the control thread, which tells their owners.
//!
//! Owners learn of a primary copy with the reply that names it, so nobody waits for these notes: a core keeps them for some
//! milliseconds and sends them together. An object lives on one shard, so what is said of it stays in order.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::{ObjectId, WorkerId};
use rustc_hash::FxHashSet;

use super::messages::Owner;
use crate::bridge::ToControl;
use crate::core_loop::Core;
use crate::native;

/// How long a core keeps what it saw.
const TELL_AFTER: Duration = Duration::from_millis(5);

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
}

impl Sightings {
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

    /// Notes that an object is here. One without an owner is nobody's concern.
    pub fn here(&self, core: &Rc<Core>, owner: WorkerId, object: ObjectId) {
        if told(core, &owner) {
            self.note(core, Sighting::Here { owner, object });
        }
    }

    /// Notes that an object is gone from here.
    pub fn gone(&self, core: &Rc<Core>, owner: WorkerId, object: ObjectId, freed: bool) {
        if told(core, &owner) {
            self.note(core, Sighting::Gone { owner, object, freed });
        }
    }

    /// Notes that an object is on disk here.
    pub fn spilled(&self, core: &Rc<Core>, owner: WorkerId, object: ObjectId, url: String) {
        if told(core, &owner) {
            self.note(core, Sighting::Spilled { owner, object, url });
        }
    }

    fn note(&self, core: &Rc<Core>, sighting: Sighting) {
        let kept = {
            let mut notes = self.notes.borrow_mut();
            notes.push(sighting);
            notes.len()
        };
        match kept {
            1 => core.io.after(TELL_AFTER, |core| core.sightings.tell(core)),
            NOTES_MAX => self.tell(core),
            _ => {}
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
