//! What owners keep who come by the native door: any number of them may keep one object, each until it says otherwise or is gone.
//!
//! A kept object is not in use: it may be written to disk like the primary copies of Ray's owners, and its memory evicted then. It is
//! not deleted before the last keeper has let go of it. Who keeps what is noted apart from where the object lies, since it lies in memory,
//! on disk or in both: a *keep* is named by its copy on disk where there is one, else by the object in memory.

use slab::Slab;
use smallvec::SmallVec;

use super::api::{GoneReason, StoreEffect};
use super::machine::Store;
use super::refs::Refs;
use crate::ids::{ClientId, ObjectId, Token};

/// A keep's number.
pub(super) type KeepSlot = u32;

#[derive(Clone, Debug)]
struct Keep {
    id: ObjectId,
    /// Slots of the clients that keep it; one, as a rule.
    keepers: SmallVec<[u32; 2]>,
}

/// Who keeps what.
#[derive(Debug, Default)]
pub(super) struct Keeps {
    /// Keepers, and the keeps they have a part in.
    refs: Refs,
    keeps: Slab<Keep>,
}

impl Keeps {
    fn open(&mut self, id: ObjectId) -> KeepSlot {
        self.keeps.insert(Keep { id, keepers: SmallVec::new() }) as KeepSlot
    }

    fn add(&mut self, keeper: ClientId, slot: KeepSlot) {
        let client = self.refs.client(keeper);
        if self.refs.add(client, slot) {
            self.keeps[slot as usize].keepers.push(client);
        }
    }

    /// Takes a keeper's part away. `None`: it had none; true: nobody keeps the object any more.
    fn remove(&mut self, client: u32, slot: KeepSlot) -> Option<bool> {
        if !self.refs.remove(client, slot) {
            return None;
        }
        let keepers = &mut self.keeps[slot as usize].keepers;
        keepers.retain(|keeper| *keeper != client);
        Some(keepers.is_empty())
    }

    /// Ends a keep, whoever has a part in it.
    fn close(&mut self, slot: KeepSlot) -> ObjectId {
        let Keep { id, keepers } = self.keeps.remove(slot as usize);
        for client in keepers {
            self.refs.remove(client, slot);
        }
        id
    }

    /// Verifies the books: `place` says which keep an object has.
    pub(super) fn check(&self, place: impl Fn(&ObjectId) -> Option<KeepSlot>) -> Result<(), String> {
        let mut parts = self.refs.check()?;
        for (slot, keep) in &self.keeps {
            let slot = slot as KeepSlot;
            let held = parts.remove(&slot).unwrap_or(0) as usize;
            let listed = keep.keepers.iter().all(|client| self.refs.holds(*client, slot));
            if keep.keepers.is_empty() || held != keep.keepers.len() || !listed {
                return Err(format!("keep {slot} is {keep:?}, counted {held}"));
            }
            if place(&keep.id) != Some(slot) {
                return Err(format!("{} does not know its keep {slot}", keep.id));
            }
        }
        match parts.is_empty() {
            true => Ok(()),
            false => Err(format!("parts in keeps that are not there: {parts:?}")),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keeps.len()
    }
}

impl Store {
    /// The keep of an object.
    fn keep_of(&self, id: &ObjectId) -> Option<KeepSlot> {
        match self.spill.keep_of(id) {
            Some(keep) => keep,
            None => self.objects.get(self.objects.find(id)?).keep,
        }
    }

    /// Whether somebody keeps an object that is on disk.
    pub(super) fn is_kept_on_disk(&self, id: &ObjectId) -> bool {
        self.spill.keep_of(id).flatten().is_some()
    }

    pub(super) fn keep(&mut self, keeper: ClientId, token: Token, id: ObjectId, out: &mut Vec<StoreEffect>) {
        let sealed = self.sealed_slot(&id);
        let ok = self.spill.has(&id) || sealed.is_some();
        if ok {
            self.begin_keep(keeper, id);
        }
        out.push(StoreEffect::Kept { keeper, token, id, ok });
    }

    /// The object is sealed, or on disk.
    pub(super) fn begin_keep(&mut self, keeper: ClientId, id: ObjectId) {
        if let Some(known) = self.keep_of(&id) {
            return self.keeps.add(keeper, known);
        }
        let keep = self.keeps.open(id);
        self.keeps.add(keeper, keep);
        let slot = self.objects.find(&id);
        if let Some(size_bytes) = self.spill.set_keep(&id, keep) {
            self.counters.kept.add(size_bytes);
            // What is kept on disk is not to go with its memory.
            if let Some(doom) = slot.and_then(|slot| self.objects.get_mut(slot).doomed.take()) {
                self.spill.doom_kept(&id, doom);
            }
            return;
        }
        if let Some(slot) = slot {
            let object = self.objects.get_mut(slot);
            object.keep = Some(keep);
            self.counters.kept.add(object.size_bytes());
            self.objects.reorder(slot);
        }
    }

    pub(super) fn unkeep(&mut self, keeper: ClientId, id: &ObjectId, out: &mut Vec<StoreEffect>) {
        let known = self.keeps.refs.find(keeper).zip(self.keep_of(id));
        match known.and_then(|(client, keep)| Some((keep, self.keeps.remove(client, keep)?))) {
            Some((keep, true)) => self.end_keep(keep, out),
            Some((_, false)) => {}
            None => self.counters.stray_events += 1,
        }
    }

    /// A client is gone, and with it what it kept.
    pub(super) fn keeper_gone(&mut self, keeper: ClientId, out: &mut Vec<StoreEffect>) {
        let Some(client) = self.keeps.refs.find(keeper) else {
            return;
        };
        while let Some(keep) = self.keeps.refs.any_of(client) {
            if self.keeps.remove(client, keep) == Some(true) {
                self.end_keep(keep, out);
            }
        }
        self.keeps.refs.forget(client);
    }

    /// Nobody keeps an object any more: its copy on disk goes, and its memory may.
    fn end_keep(&mut self, keep: KeepSlot, out: &mut Vec<StoreEffect>) {
        let id = self.keeps.close(keep);
        let Some(left) = self.spill.end_keep(&id) else {
            let Some(slot) = self.objects.find(&id) else {
                return;
            };
            let object = self.objects.get_mut(slot);
            object.keep = None;
            self.counters.kept.sub(object.size_bytes());
            return self.settle(slot, out);
        };
        self.counters.kept.sub(left.size_bytes());
        if !left.pinned {
            self.drop_copy(&id, out);
        }
        if let Some(slot) = self.objects.find(&id) {
            let object = self.objects.get_mut(slot);
            object.doomed = object.doomed.or(left.doomed);
            self.settle(slot, out);
        } else if !left.pinned {
            let reason = left.doomed.unwrap_or(GoneReason::Evicted);
            out.push(left.gone(id, reason));
            self.give_up(id, out);
        }
    }

    /// The copy of a kept object can't be read, and there is no other.
    pub(super) fn kept_is_lost(&mut self, id: &ObjectId, out: &mut Vec<StoreEffect>) {
        let Some(keep) = self.spill.keep_of(id).flatten() else {
            return;
        };
        self.keeps.close(keep);
        if let Some(left) = self.spill.end_keep(id) {
            self.counters.kept.sub(left.size_bytes());
            out.push(left.gone(*id, GoneReason::Evicted));
        }
    }

    /// Verifies the books of what is kept.
    pub(super) fn check_keeps(&self) -> Result<(), String> {
        self.keeps.check(|id| self.keep_of(id))?;
        let named = self.objects.iter().filter(|(_, object)| object.keep.is_some()).count() + self.spill.kept().count();
        match named == self.keeps.len() {
            true => Ok(()),
            false => Err(format!("{named} objects are kept, {} keeps", self.keeps.len())),
        }
    }
}
