//! The table of objects, and the two orders that its unused objects stand in.

use rustc_hash::FxHashMap;
use slab::Slab;

use super::api::{GoneReason, ObjectSource, Placement, SpillFile};
use super::arena::{Allocation, Arena};
use super::config::MUTABLE_HEADER_BYTES;
use super::keeps::KeepSlot;
use crate::ids::{NowNs, ObjectId, WorkerId};

/// Nothing.
const NONE: u32 = u32::MAX;

/// What an object's bytes lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// The shard's spans.
    Arena(Allocation),
    /// A file of its own: its segment number and size in bytes.
    File(u32, u64),
}

impl Backing {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Arena(allocation) => allocation.len,
            Self::File(_, bytes) => *bytes,
        }
    }
}

/// Which order an object stands in. Only sealed objects without references do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// In none.
    Out,
    /// Without an owner that it is there for: may be evicted.
    Evictable,
    /// Pinned or kept: may be spilled.
    Spillable,
}

/// One object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    pub(super) id: ObjectId,
    pub(super) owner: WorkerId,
    pub(super) data_bytes: u64,
    pub(super) metadata_bytes: u64,
    pub(super) backing: Backing,
    pub(super) created_ns: NowNs,
    pub(super) sealed_ns: Option<NowNs>,
    /// Slot of the client that created it; means nothing once it is sealed.
    pub(super) creator: u32,
    pub(super) refs: u32,
    pub(super) pinned: bool,
    /// Owners of the native door keep it; `None` also where their keep is on disk.
    pub(super) keep: Option<KeepSlot>,
    pub(super) mutable: bool,
    /// It is being written to a file, and must stay as it is.
    pub(super) spilling: bool,
    /// It is being read from this file.
    pub(super) reading_from: Option<SpillFile>,
    /// Somebody asked for its end: gone as soon as it is unused.
    pub(super) doomed: Option<GoneReason>,
    pub(super) source: ObjectSource,
    order: Order,
    /// What it counts in [`Objects::copies_bytes`].
    counted_bytes: u64,
    older: u32,
    newer: u32,
}

impl Object {
    /// Data and metadata, in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.data_bytes + self.metadata_bytes
    }

    /// It is there for an owner, and nothing on disk is in its stead.
    pub(super) fn is_owned(&self) -> bool {
        self.pinned || self.keep.is_some()
    }

    /// Bytes of the arena that it takes without being there for its owner, whose copy on disk stays: it is being read back from there,
    /// or was, and is in use.
    fn copy_bytes(&self) -> u64 {
        match self.backing {
            Backing::Arena(allocation)
                if self.source == ObjectSource::RestoredFromStorage
                    && !self.is_owned()
                    && self.belongs() == Order::Out =>
            {
                allocation.len
            }
            _ => 0,
        }
    }

    /// Where it belongs: only what is sealed and used by nobody is in an order.
    fn belongs(&self) -> Order {
        if self.sealed_ns.is_none() || self.refs > 0 || self.spilling {
            return Order::Out;
        }
        match self.is_owned() {
            false => Order::Evictable,
            // A channel is written again and again, and what lies in a file of its own takes no memory.
            true if self.mutable || matches!(self.backing, Backing::File(..)) => Order::Out,
            true => Order::Spillable,
        }
    }

    pub(super) fn place(&self, arena: &Arena) -> Placement {
        let (segment, header_offset) = match &self.backing {
            Backing::Arena(allocation) => {
                let segment = arena.segment_of(allocation.addr);
                (segment, arena.offset_in(segment, allocation.addr))
            }
            Backing::File(segment, _) => (*segment, 0),
        };
        let data_offset = header_offset + if self.mutable { MUTABLE_HEADER_BYTES } else { 0 };
        Placement {
            segment,
            header_offset,
            data_offset,
            data_bytes: self.data_bytes,
            metadata_offset: data_offset + self.data_bytes,
            metadata_bytes: self.metadata_bytes,
            allocated_bytes: self.backing.bytes(),
        }
    }
}

/// A new object.
pub(super) struct NewObject {
    pub(super) id: ObjectId,
    pub(super) owner: WorkerId,
    pub(super) data_bytes: u64,
    pub(super) metadata_bytes: u64,
    pub(super) backing: Backing,
    pub(super) created_ns: NowNs,
    pub(super) creator: u32,
    pub(super) mutable: bool,
    pub(super) source: ObjectSource,
}

/// One order: least recently used first.
#[derive(Clone, Copy, Debug)]
struct List {
    oldest: u32,
    newest: u32,
    count: u64,
    bytes: u64,
}

const EMPTY: List = List { oldest: NONE, newest: NONE, count: 0, bytes: 0 };

/// All objects of a shard, by slot number.
#[derive(Debug)]
pub(super) struct Objects {
    slots: Slab<Object>,
    by_id: FxHashMap<ObjectId, u32>,
    evictable: List,
    spillable: List,
    /// Of what is in use, or being read, and on disk as well.
    copies_bytes: u64,
}

impl Objects {
    pub(super) fn new() -> Self {
        let (slots, by_id) = (Slab::new(), FxHashMap::default());
        Self { slots, by_id, evictable: EMPTY, spillable: EMPTY, copies_bytes: 0 }
    }

    pub(super) fn find(&self, id: &ObjectId) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    pub(super) fn get(&self, slot: u32) -> &Object {
        &self.slots[slot as usize]
    }

    /// For changing what is no matter of the orders, or before a [`Self::reorder`].
    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Object {
        &mut self.slots[slot as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Object)> + '_ {
        self.slots.iter().map(|(slot, object)| (slot as u32, object))
    }

    /// Adds an unsealed object with one reference: its creator's.
    pub(super) fn insert(&mut self, new: NewObject) -> u32 {
        let NewObject { id, owner, data_bytes, metadata_bytes, backing, created_ns, creator, mutable, source } = new;
        let slot = self.slots.insert(Object {
            id,
            owner,
            data_bytes,
            metadata_bytes,
            backing,
            created_ns,
            sealed_ns: None,
            creator,
            refs: 1,
            pinned: false,
            keep: None,
            mutable,
            spilling: false,
            reading_from: None,
            doomed: None,
            source,
            order: Order::Out,
            counted_bytes: 0,
            older: NONE,
            newer: NONE,
        }) as u32;
        self.by_id.insert(id, slot);
        self.count_copy(slot);
        slot
    }

    /// Adds an object that is sealed, without references, as the newest of the evictable ones.
    pub(super) fn insert_sealed(&mut self, new: NewObject) -> u32 {
        let now = new.created_ns;
        let slot = self.insert(new);
        let object = self.get_mut(slot);
        (object.sealed_ns, object.refs) = (Some(now), 0);
        self.reorder(slot);
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) -> Object {
        self.leave(slot);
        let object = self.slots.remove(slot as usize);
        self.copies_bytes -= object.counted_bytes;
        self.by_id.remove(&object.id);
        object
    }

    fn list(&mut self, order: Order) -> Option<&mut List> {
        match order {
            Order::Out => None,
            Order::Evictable => Some(&mut self.evictable),
            Order::Spillable => Some(&mut self.spillable),
        }
    }

    /// Puts the object where its state says: newest of its order if it enters one.
    pub(super) fn reorder(&mut self, slot: u32) {
        self.count_copy(slot);
        let object = self.get(slot);
        let order = object.belongs();
        if order == object.order {
            return;
        }
        self.leave(slot);
        let bytes = self.get(slot).backing.bytes();
        let Some(list) = self.list(order) else {
            return;
        };
        let older = std::mem::replace(&mut list.newest, slot);
        list.count += 1;
        list.bytes += bytes;
        if older == NONE {
            list.oldest = slot;
        } else {
            self.get_mut(older).newer = slot;
        }
        let object = self.get_mut(slot);
        object.order = order;
        object.older = older;
        object.newer = NONE;
    }

    fn count_copy(&mut self, slot: u32) {
        let object = &mut self.slots[slot as usize];
        let bytes = object.copy_bytes();
        self.copies_bytes = self.copies_bytes - object.counted_bytes + bytes;
        object.counted_bytes = bytes;
    }

    fn leave(&mut self, slot: u32) {
        let &Object { order, older, newer, .. } = self.get(slot);
        let bytes = self.get(slot).backing.bytes();
        let Some(list) = self.list(order) else {
            return;
        };
        list.count -= 1;
        list.bytes -= bytes;
        if older == NONE {
            list.oldest = newer;
        }
        if newer == NONE {
            list.newest = older;
        }
        if older != NONE {
            self.get_mut(older).newer = newer;
        }
        if newer != NONE {
            self.get_mut(newer).older = older;
        }
        self.get_mut(slot).order = Order::Out;
    }

    /// The object that is evicted next.
    pub(super) fn oldest_evictable(&self) -> Option<u32> {
        (self.evictable.oldest != NONE).then_some(self.evictable.oldest)
    }

    /// What could be evicted: (objects, allocated bytes).
    pub(super) fn evictable(&self) -> (u64, u64) {
        (self.evictable.count, self.evictable.bytes)
    }

    /// What could be spilled: (objects, allocated bytes).
    pub(super) fn spillable(&self) -> (u64, u64) {
        (self.spillable.count, self.spillable.bytes)
    }

    /// Bytes of the arena that are in use, or being read from disk, by what is on disk as well and may go when nobody uses it.
    pub(super) fn copies_bytes(&self) -> u64 {
        self.copies_bytes
    }

    /// Objects that could be spilled, longest unused first.
    pub(super) fn iter_spillable(&self) -> impl Iterator<Item = (u32, &Object)> + '_ {
        let mut at = self.spillable.oldest;
        std::iter::from_fn(move || {
            let (slot, object) = (at, self.slots.get(at as usize)?);
            at = object.newer;
            Some((slot, object))
        })
    }

    /// Verifies the index and the orders.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.by_id.len() != self.slots.len() {
            return Err(format!("{} objects, {} ids", self.slots.len(), self.by_id.len()));
        }
        for (slot, object) in self.iter() {
            if self.find(&object.id) != Some(slot) {
                return Err(format!("{} is not found under its id", object.id));
            }
            let expected = object.belongs();
            if object.order != expected {
                return Err(format!("{} is {:?}, expected {expected:?}", object.id, object.order));
            }
            if object.doomed.is_some() && expected == Order::Evictable {
                return Err(format!("{} should be gone: {:?}", object.id, object.doomed));
            }
        }
        let copies: u64 = self.iter().map(|(_, object)| object.copy_bytes()).sum();
        if copies != self.copies_bytes {
            return Err(format!("{} bytes are also on disk, counted {copies}", self.copies_bytes));
        }
        self.check_list(&self.evictable, Order::Evictable)?;
        self.check_list(&self.spillable, Order::Spillable)
    }

    fn check_list(&self, list: &List, order: Order) -> Result<(), String> {
        let (mut at, mut older, mut count, mut bytes) = (list.oldest, NONE, 0, 0);
        while at != NONE {
            let object = self.get(at);
            if object.order != order || object.older != older {
                return Err(format!("{} is out of its place in the {order:?} order", object.id));
            }
            count += 1;
            bytes += object.backing.bytes();
            older = at;
            at = object.newer;
        }
        let members = self.iter().filter(|(_, o)| o.order == order).count() as u64;
        if (list.newest, list.count, list.bytes, list.count) != (older, count, bytes, members) {
            return Err(format!("{order:?}: {list:?}, counted {count} objects of {bytes} bytes, {members} members"));
        }
        Ok(())
    }
}
