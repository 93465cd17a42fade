//! The store of a simulated node: what it has, what it has room for, and whether what is sealed is whole.

use std::collections::{BTreeMap, VecDeque};

use crate::ids::{NowNs, ObjectId};
use crate::store::StoreError;

/// Bytes of a chunk.
pub(super) const CHUNK: u64 = 10;

/// How long a create waits at the head of the queue.
pub(super) const GRACE: NowNs = 2_000_000_000;

/// Asks for the place of an object that is read back from disk. No receiver has this token.
pub(super) const RESTORE: u64 = u64::MAX;

/// What the bytes of one chunk are: of which making of the object, and which of its chunks.
pub(super) type Written = (u32, u32);

/// A copy of an object.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) size: u64,
    /// Which making of the object its bytes are.
    pub(super) version: u32,
    pub(super) sealed: bool,
    /// Kept for its owner.
    pub(super) pinned: bool,
    /// The receiver's reference.
    pub(super) received: bool,
    /// References of clients, and of the sender.
    pub(super) users: u32,
    /// It is being written to disk.
    spilling: bool,
    /// On disk: it is not what was written any more.
    pub(super) is_spoilt: bool,
    used_at: u64,
    /// Its memory: one that is given up and made again is another.
    pub(super) place: u64,
    chunks: Vec<Option<Written>>,
}

impl Copy {
    /// What is there of a chunk.
    pub(super) fn chunk(&self, index: u32) -> Option<Written> {
        match self.sealed {
            true => Some((self.version, index)),
            false => self.chunks.get(index as usize).copied().flatten(),
        }
    }

    fn is_evictable(&self) -> bool {
        self.sealed && !self.pinned && !self.spilling && !self.received && self.users == 0
    }
}

/// A create that waits for room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Create {
    pub(super) object: ObjectId,
    pub(super) size: u64,
    /// Of the receiver; `None`: a client of the node makes the object, at once.
    pub(super) token: Option<u64>,
    pub(super) version: u32,
}

/// A create and what became of it.
pub(super) type Answered = (Create, Result<(), StoreError>);

#[derive(Debug)]
pub(super) struct Store {
    pub(super) capacity: u64,
    pub(super) copies: BTreeMap<ObjectId, Copy>,
    pub(super) queue: VecDeque<Create>,
    /// Files of objects.
    pub(super) disk: BTreeMap<ObjectId, Copy>,
    pub(super) disk_capacity: u64,
    full_since: Option<NowNs>,
    clock: u64,
}

impl Store {
    pub(super) fn new(capacity: u64, disk_capacity: u64) -> Self {
        let (copies, disk, queue) = Default::default();
        Self { capacity, copies, queue, disk, disk_capacity, full_since: None, clock: 0 }
    }

    pub(super) fn disk_used(&self) -> u64 {
        self.disk.values().map(|copy| copy.size).sum()
    }

    /// Begins to write the object that is kept here and was not used for longest.
    pub(super) fn begin_spill(&mut self) {
        let idle = self.copies.iter_mut().filter(|(_, c)| c.sealed && c.pinned && !c.spilling && c.users == 0);
        if let Some((_, copy)) = idle.min_by_key(|(_, copy)| copy.used_at) {
            copy.spilling = true;
        }
    }

    /// A write ends, in vain where it `fails` or the disk is full: which object's, and whether it is on disk now.
    pub(super) fn end_spill(&mut self, fails: bool) -> Option<(ObjectId, bool)> {
        let free = self.disk_capacity - self.disk_used();
        let (object, copy) = self.copies.iter_mut().find(|(_, copy)| copy.spilling)?;
        copy.spilling = false;
        if fails || copy.size > free {
            return Some((*object, false));
        }
        copy.pinned = false;
        self.clock += 1;
        let file = Copy { users: 0, received: false, place: self.clock, ..copy.clone() };
        self.disk.insert(*object, file);
        Some((*object, true))
    }

    /// The object where it can be sent from: in memory, or on disk.
    pub(super) fn source(&self, object: &ObjectId, from_disk: bool) -> Option<&Copy> {
        if from_disk { &self.disk } else { &self.copies }.get(object)
    }

    pub(super) fn used(&self) -> u64 {
        self.copies.values().map(|copy| copy.size).sum()
    }

    /// Bytes that neither a client nor an owner keeps; what is being received counts as free.
    pub(super) fn room(&self) -> u64 {
        let kept = self.copies.values().filter(|copy| copy.sealed && !copy.is_evictable());
        self.capacity - kept.map(|copy| copy.size).sum::<u64>()
    }

    /// Bytes that are kept for owners, or will be.
    pub(super) fn promised(&self) -> u64 {
        let pinned = self.copies.values().filter(|copy| copy.pinned).map(|copy| copy.size);
        pinned.chain(self.queue.iter().filter(|create| create.token.is_none()).map(|create| create.size)).sum()
    }

    pub(super) fn has(&self, object: &ObjectId) -> bool {
        self.copies.get(object).is_some_and(|copy| copy.sealed)
    }

    /// Clients of the node wait for room.
    pub(super) fn is_starving(&self) -> bool {
        self.queue.iter().any(|create| create.token.is_none())
    }

    /// Serves the queue as far as it goes: what was made or refused, and what was evicted for it.
    pub(super) fn serve(&mut self, now: NowNs) -> (Vec<Answered>, Vec<ObjectId>) {
        let (mut answered, mut evicted) = (Vec::new(), Vec::new());
        while let Some(create) = self.queue.front().copied() {
            let result = self.attempt(&create, now, &mut evicted);
            let Some(result) = result else {
                break;
            };
            self.queue.pop_front();
            // Where there was no room to read something back, those behind it fail at once, as in the store: it is tried again and again.
            if result.is_ok() || create.token != Some(RESTORE) {
                self.full_since = None;
            }
            answered.push((create, result));
        }
        (answered, evicted)
    }

    fn attempt(&mut self, create: &Create, now: NowNs, evicted: &mut Vec<ObjectId>) -> Option<Result<(), StoreError>> {
        if self.copies.contains_key(&create.object) {
            return Some(Err(StoreError::ObjectExists));
        }
        let restore = create.token == Some(RESTORE);
        if restore && self.disk.get(&create.object).is_none_or(|copy| copy.is_spoilt) {
            return Some(Err(StoreError::ObjectNonexistent));
        }
        let evictable: u64 = self.copies.values().filter(|copy| copy.is_evictable()).map(|copy| copy.size).sum();
        if self.capacity - self.used() + evictable < create.size {
            let since = *self.full_since.get_or_insert(now);
            return (now - since >= GRACE).then_some(Err(StoreError::OutOfMemory));
        }
        while self.capacity - self.used() < create.size {
            let oldest = self.copies.iter().filter(|(_, copy)| copy.is_evictable()).min_by_key(|(_, c)| c.used_at);
            let oldest = *oldest?.0;
            self.copies.remove(&oldest);
            evicted.push(oldest);
        }
        self.clock += 1;
        let local = create.token.is_none();
        let chunks = create.size.div_ceil(CHUNK) as usize;
        let copy = Copy {
            size: create.size,
            version: create.version,
            sealed: local || restore,
            pinned: local,
            received: false,
            users: u32::from(restore),
            spilling: false,
            is_spoilt: false,
            used_at: self.clock,
            place: self.clock,
            chunks: if local || restore { Vec::new() } else { vec![None; chunks] },
        };
        self.copies.insert(create.object, copy);
        Some(Ok(()))
    }

    /// Writes a chunk, if `place` is given only to that memory.
    pub(super) fn write(
        &mut self,
        object: &ObjectId,
        place: Option<u64>,
        offset: u64,
        len: u64,
        bytes: Written,
    ) -> Result<(), String> {
        let copy = self.copies.get_mut(object).filter(|copy| !copy.sealed && place.is_none_or(|p| p == copy.place));
        let copy = copy.ok_or_else(|| format!("a write to {object}, which is not being received"))?;
        if !offset.is_multiple_of(CHUNK) || offset + len > copy.size {
            return Err(format!("a write to {object} of {} bytes, at {offset}, {len} bytes", copy.size));
        }
        copy.chunks[(offset / CHUNK) as usize] = Some(bytes);
        Ok(())
    }

    /// Seals an object that was received, if it is what one sender had.
    pub(super) fn seal(&mut self, object: &ObjectId) -> Result<(), String> {
        self.clock += 1;
        let clock = self.clock;
        let copy = self.copies.get_mut(object).filter(|copy| !copy.sealed);
        let copy = copy.ok_or_else(|| format!("{object} is sealed, which is not being received"))?;
        let first = copy.chunks.first().copied().flatten().map(|(version, _)| version);
        let whole = copy.chunks.iter().enumerate().all(|(at, chunk)| *chunk == first.map(|v| (v, at as u32)));
        let Some(version) = first.filter(|_| whole) else {
            return Err(format!("{object} is sealed with these chunks: {:?}", copy.chunks));
        };
        (copy.version, copy.sealed, copy.received, copy.used_at) = (version, true, true, clock);
        copy.chunks = Vec::new();
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let used = self.used();
        if used > self.capacity {
            return Err(format!("{used} bytes used of {}", self.capacity));
        }
        let on_disk = self.disk_used();
        if on_disk > self.disk_capacity {
            return Err(format!("{on_disk} bytes on a disk of {}", self.disk_capacity));
        }
        if let Some((object, _)) = self.copies.iter().find(|(id, c)| c.pinned && self.disk.contains_key(id)) {
            return Err(format!("{object} is kept twice"));
        }
        Ok(())
    }
}
