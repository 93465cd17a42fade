//! Spilling: pinned and kept objects that nobody uses are written to files when memory runs short, and read back when they are wanted.
//!
//! The store decides, the node writes and reads. Objects that are written together are one *file* (a number that the node gives a path);
//! while it is written they stay where they are and may be read. Once it is whole, the copy on disk keeps each object for its
//! owner, and the one in memory may be evicted like anything that can be had again. A wanted object without a place in memory
//! waits for one in front of all creates, because whoever wants it may hold what the creates wait for.
//!
//! As in Ray 2.60 (`local_object_manager.cc`): oldest objects first; at least `min_spilling_size` bytes at a time unless there
//! are no more; a file ends with the last object in it.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use slab::Slab;

use super::api::{GoneReason, ObjectSource, RestoreFailure, SpillFailure, SpillFile, StoreEffect};
use super::config::SpillConfig;
use super::keeps::KeepSlot;
use super::machine::Store;
use super::objects::Object;
use super::queue::Create;
use super::report::Tally;
use crate::ids::{ClientId, NowNs, ObjectId, Token, WorkerId};

/// The client that restores: the store itself. No connection has this number.
pub(super) const RESTORER: ClientId = ClientId::MAX;

/// Requests of the store itself have no answer.
const SILENT: Token = Token::MAX;

/// How often reading an object back is tried before it counts as lost.
pub const RESTORE_ATTEMPTS_MAX: u32 = 3;

/// What is done about a copy that is on disk only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restore {
    /// Nothing: nobody wants it, or it is in memory.
    No,
    /// In the queue of what is to be restored; true: of those that somebody gets.
    Wanted(bool),
    /// It waits for memory.
    Queued,
    /// The node reads it into its place.
    Reading,
}

/// An object's copy on disk. It is there for the object's owner, as one in memory that is pinned or kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    file: SpillFile,
    index: u32,
    owner: WorkerId,
    data_bytes: u64,
    metadata_bytes: u64,
    restore: Restore,
    attempts: u32,
    /// It could not be sent from its file.
    faulty: bool,
    /// A pin of Ray's door stands behind it.
    pub(super) pinned: bool,
    /// Owners of the native door do. One of the two, at least.
    keep: Option<KeepSlot>,
    /// A kept object is to go as soon as nobody keeps it.
    pub(super) doomed: Option<GoneReason>,
}

impl Copy {
    pub(super) fn size_bytes(&self) -> u64 {
        self.data_bytes + self.metadata_bytes
    }

    /// Says that the object is gone, which was nowhere but here.
    pub(super) fn gone(&self, id: ObjectId, reason: GoneReason) -> StoreEffect {
        let &Self { owner, data_bytes, metadata_bytes, .. } = self;
        StoreEffect::ObjectGone { id, owner, data_bytes, metadata_bytes, reason }
    }
}

#[derive(Debug, Default)]
struct File {
    /// Slots of the objects that are being written; empty once the file is whole.
    writing: Vec<u32>,
    /// What they take in memory, in bytes.
    writing_bytes: u64,
    /// Objects that have their copy here.
    live: u32,
    /// Objects that are being read.
    reading: u32,
    /// Objects that are being sent to other nodes from here.
    sending: u32,
}

impl File {
    /// It has a reason to be.
    fn is_needed(&self) -> bool {
        self.live > 0 || self.reading > 0 || self.sending > 0 || !self.writing.is_empty()
    }
}

/// All that a shard has on disk.
#[derive(Debug, Default)]
pub(super) struct Spill {
    files: Slab<File>,
    copies: FxHashMap<ObjectId, Copy>,
    /// Files that are being written, and what their objects take in memory.
    writing_files: u32,
    writing_bytes: u64,
    /// What is to be restored, in order: what somebody gets, and what somebody waits for.
    gets: VecDeque<ObjectId>,
    watches: VecDeque<ObjectId>,
    /// Restores that wait for memory or are being read.
    restoring: Tally,
    /// Objects that are being sent from their files. Whoever sends has a bounded number of them.
    sending: FxHashMap<ObjectId, SpillFile>,
    /// Nothing is written before this, because writing failed.
    paused_until_ns: NowNs,
    /// Nothing is restored before this, because there was no memory for it or reading failed.
    restores_paused_until_ns: NowNs,
    /// Why the last write failed, until one succeeds.
    failure: Option<SpillFailure>,
    /// What objects take on other shards that can't be evicted, in bytes, and whether one of them is writing.
    others_bytes: u64,
    others_write: bool,
    /// The store could go on only if something were spilled.
    pub(super) pressed: bool,
}

/// One object on disk, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpilledInfo {
    /// The object.
    pub id: ObjectId,
    /// Its owner.
    pub owner: WorkerId,
    /// Length of its data.
    pub data_bytes: u64,
    /// Length of its metadata.
    pub metadata_bytes: u64,
    /// Its file.
    pub file: SpillFile,
    /// Its place among the objects that were written to that file.
    pub index: u32,
}

impl Spill {
    pub(super) fn has(&self, id: &ObjectId) -> bool {
        self.copies.contains_key(id)
    }

    /// The keep of an object that is on disk; `None` where it is not.
    pub(super) fn keep_of(&self, id: &ObjectId) -> Option<Option<KeepSlot>> {
        self.copies.get(id).map(|copy| copy.keep)
    }

    /// Owners of the native door keep an object from here on: its size, if it is on disk.
    pub(super) fn set_keep(&mut self, id: &ObjectId, keep: KeepSlot) -> Option<u64> {
        let copy = self.copies.get_mut(id)?;
        copy.keep = Some(keep);
        Some(copy.size_bytes())
    }

    /// Nobody of them keeps it any more: the copy as it was, if there is one.
    pub(super) fn end_keep(&mut self, id: &ObjectId) -> Option<Copy> {
        let copy = self.copies.get_mut(id)?;
        let left = *copy;
        (copy.keep, copy.doomed) = (None, None);
        Some(left)
    }

    /// Pins an object that is on disk; false where it is not.
    pub(super) fn set_pinned(&mut self, id: &ObjectId) -> bool {
        self.copies.get_mut(id).map(|copy| copy.pinned = true).is_some()
    }

    /// Ends the pin of an object that is on disk and that somebody keeps; false where that is not so.
    pub(super) fn unpin_kept(&mut self, id: &ObjectId, doom: Option<GoneReason>) -> bool {
        let Some(copy) = self.copies.get_mut(id).filter(|copy| copy.keep.is_some()) else {
            return false;
        };
        copy.pinned = false;
        copy.doomed = copy.doomed.or(doom);
        true
    }

    /// An object that is on disk and that somebody keeps goes when nobody does; false where there is no such one.
    pub(super) fn doom_kept(&mut self, id: &ObjectId, reason: GoneReason) -> bool {
        let Some(copy) = self.copies.get_mut(id).filter(|copy| copy.keep.is_some()) else {
            return false;
        };
        copy.doomed.get_or_insert(reason);
        true
    }

    /// The sizes of what is kept on disk.
    pub(super) fn kept(&self) -> impl Iterator<Item = u64> + '_ {
        self.copies.values().filter(|copy| copy.keep.is_some()).map(Copy::size_bytes)
    }

    fn is_writing(&self) -> bool {
        self.writing_files > 0
    }

    /// Something is being written that will free memory.
    pub(super) fn makes_room(&self) -> bool {
        self.is_writing() || self.others_write
    }

    /// What other shards do.
    pub(super) fn others(&mut self, bytes: u64, writing: bool) {
        (self.others_bytes, self.others_write) = (bytes, writing);
    }

    /// The disk is full, as far as the last write could tell.
    pub(super) fn disk_full(&self) -> bool {
        self.failure == Some(SpillFailure::DiskFull)
    }

    fn next_wanted(&mut self) -> Option<ObjectId> {
        loop {
            let (urgent, id) = match self.gets.pop_front() {
                Some(id) => (true, id),
                None => (false, self.watches.pop_front()?),
            };
            // It may have been freed, or wanted more urgently, meanwhile.
            if self.copies.get(&id).is_some_and(|copy| copy.restore == Restore::Wanted(urgent)) {
                return Some(id);
            }
        }
    }

    fn want(&mut self, id: ObjectId, urgent: bool) {
        let Some(copy) = self.copies.get_mut(&id) else {
            return;
        };
        if !matches!((copy.restore, urgent), (Restore::No, _) | (Restore::Wanted(false), true)) {
            return;
        }
        copy.restore = Restore::Wanted(urgent);
        if urgent { &mut self.gets } else { &mut self.watches }.push_back(id);
    }
}

impl Store {
    /// Somebody waits for an object that is not in memory: it is brought back, if it is on disk.
    pub(super) fn want_restore(&mut self, id: ObjectId, urgent: bool) {
        self.spill.want(id, urgent);
    }

    /// After every event: writes what should be written, reads what should be read.
    pub(super) fn run_spill(&mut self, now: NowNs, out: &mut Vec<StoreEffect>) {
        let Some(config) = self.config.spill else {
            return;
        };
        if !self.spill.copies.is_empty() {
            self.feed_restores(&config, now, out);
        }
        while now >= self.spill.paused_until_ns && self.should_write(&config) && self.write_some(&config, out) {}
    }

    /// True where one more file should be begun.
    fn should_write(&self, config: &SpillConfig) -> bool {
        let spill = &self.spill;
        if self.objects.spillable().0 == 0
            || spill.writing_files >= config.writing_files_max
            || spill.writing_bytes >= config.writing_bytes_max
        {
            return false;
        }
        if self.primary_bytes() + spill.others_bytes > config.threshold_bytes + spill.writing_bytes {
            return true;
        }
        let short = spill.pressed && !self.queue.is_empty() || self.link.owed_bytes > 0;
        short && (!spill.is_writing() || spill.writing_bytes < self.queue.bytes().max(self.link.owed_bytes))
    }

    /// What can't be evicted, in bytes. As in Ray 2.60 (`GetPrimaryBytes`) that leaves out what is in use and on disk as well: writing
    /// others makes it no shorter.
    pub fn primary_bytes(&self) -> u64 {
        let used = self.arena.held_bytes() - self.arena.free_bytes();
        // What lies in files of its own may be evictable too, and takes none of the arena.
        used.saturating_sub(self.objects.evictable().1 + self.objects.copies_bytes())
    }

    /// Begins a file of the objects that nobody has used for longest. False: it is better to wait.
    fn write_some(&mut self, config: &SpillConfig, out: &mut Vec<StoreEffect>) -> bool {
        let (mut slots, mut bytes, mut ended) = (Vec::new(), 0, false);
        for (slot, object) in self.objects.iter_spillable() {
            let with = bytes + object.backing.bytes();
            ended = !slots.is_empty() && with > config.file_bytes_max;
            if ended || bytes >= config.batch_bytes || slots.len() >= config.file_objects_max as usize {
                ended = true;
                break;
            }
            slots.push(slot);
            bytes = with;
        }
        if slots.is_empty() || (!ended && bytes < config.batch_bytes && self.spill.is_writing()) {
            return false;
        }
        let file = self.spill.files.vacant_key() as SpillFile;
        let count = slots.len();
        for (index, slot) in slots.iter().enumerate() {
            self.objects.get_mut(*slot).spilling = true;
            self.objects.reorder(*slot);
            let object = self.objects.get(*slot);
            self.counters.spilling.add(object.size_bytes());
            let (id, owner, place) = (object.id, object.owner, object.place(&self.arena));
            let (index, last) = (index as u32, index + 1 == count);
            out.push(StoreEffect::SpillObject { file, index, id, owner, place, last });
        }
        self.spill.files.insert(File { writing: slots, writing_bytes: bytes, ..File::default() });
        self.spill.writing_files += 1;
        self.spill.writing_bytes += bytes;
        true
    }

    /// A file is written, or could not be.
    pub(super) fn spilled(
        &mut self,
        file: SpillFile,
        result: Result<(), SpillFailure>,
        now: NowNs,
        out: &mut Vec<StoreEffect>,
    ) {
        let written = self.spill.files.get_mut(file as usize).map(|file| std::mem::take(&mut file.writing));
        let Some(slots) = written.filter(|slots| !slots.is_empty()) else {
            self.counters.stray_events += 1;
            return;
        };
        let bytes = std::mem::take(&mut self.spill.files[file as usize].writing_bytes);
        self.spill.writing_files -= 1;
        self.spill.writing_bytes -= bytes;
        self.spill.failure = result.err();
        if result.is_err() {
            self.counters.spill_failures += 1;
            let retry_ns = self.config.spill.map_or(0, |config| config.retry_ns);
            self.spill.paused_until_ns = now.saturating_add(retry_ns);
        }
        for (index, slot) in slots.into_iter().enumerate() {
            let object = self.objects.get_mut(slot);
            object.spilling = false;
            let size_bytes = object.size_bytes();
            self.counters.spilling.sub(size_bytes);
            if result.is_ok() && object.is_owned() {
                self.keep_copy(slot, file, index as u32, out);
            }
            self.settle(slot, out);
        }
        self.end_file(file, out);
        self.pay_with_evictions(out);
        self.run_queue(now, out);
    }

    /// From here on the copy on disk keeps the object.
    fn keep_copy(&mut self, slot: u32, file: SpillFile, index: u32, out: &mut Vec<StoreEffect>) {
        let object = self.objects.get_mut(slot);
        let (pinned, keep) = (std::mem::take(&mut object.pinned), object.keep.take());
        // What is kept is not to go with its memory.
        let doomed = object.doomed.take_if(|_| keep.is_some());
        let &mut Object { id, owner, data_bytes, metadata_bytes, .. } = object;
        let size_bytes = object.size_bytes();
        if pinned {
            self.counters.pinned.sub(size_bytes);
        }
        self.counters.on_disk.add(size_bytes);
        self.counters.spilled.add(size_bytes);
        self.spill.files[file as usize].live += 1;
        let (restore, attempts, faulty) = (Restore::No, 0, false);
        let copy =
            Copy { file, index, owner, data_bytes, metadata_bytes, restore, attempts, faulty, pinned, keep, doomed };
        self.spill.copies.insert(id, copy);
        out.push(StoreEffect::ObjectSpilled { id, owner, file, index });
    }

    /// A file of which nothing is wanted any more goes.
    fn end_file(&mut self, file: SpillFile, out: &mut Vec<StoreEffect>) {
        if !self.spill.files[file as usize].is_needed() {
            self.spill.files.remove(file as usize);
            out.push(StoreEffect::SpillFileUnneeded { file });
        }
    }

    /// The object's copy on disk is not wanted any more; false where there is none.
    pub(super) fn drop_copy(&mut self, id: &ObjectId, out: &mut Vec<StoreEffect>) -> bool {
        let Some(copy) = self.spill.copies.remove(id) else {
            return false;
        };
        self.counters.on_disk.sub(copy.data_bytes + copy.metadata_bytes);
        self.spill.files[copy.file as usize].live -= 1;
        if copy.restore == Restore::Queued {
            self.queue.forget_restore(id);
            if self.queue.is_empty() {
                self.withdraw();
            }
            self.spill.restoring.sub(copy.data_bytes + copy.metadata_bytes);
        }
        self.end_file(copy.file, out);
        true
    }

    /// Has what is wanted wait for memory, as much of it as may.
    fn feed_restores(&mut self, config: &SpillConfig, now: NowNs, out: &mut Vec<StoreEffect>) {
        let mut fed = false;
        while now >= self.spill.restores_paused_until_ns
            && self.spill.restoring.objects < config.restoring_objects_max
            && self.spill.restoring.bytes < config.restoring_bytes_max
        {
            let Some(id) = self.spill.next_wanted() else {
                break;
            };
            let Some(copy) = self.spill.copies.get_mut(&id) else {
                continue;
            };
            // A place in memory will be filled by whoever made it.
            if !self.waiters.has(&id) || self.objects.find(&id).is_some() {
                copy.restore = Restore::No;
                continue;
            }
            copy.restore = Restore::Queued;
            let &mut Copy { owner, data_bytes, metadata_bytes, .. } = copy;
            self.spill.restoring.add(data_bytes + metadata_bytes);
            let (client, token, source) = (RESTORER, SILENT, ObjectSource::RestoredFromStorage);
            let (mutable, try_immediately) = (false, false);
            let create = Create {
                client,
                token,
                id,
                data_bytes,
                metadata_bytes,
                owner,
                source,
                mutable,
                try_immediately,
                near: self.near(None),
                since: now,
            };
            self.queue.push_restore(create, data_bytes + metadata_bytes);
            fed = true;
        }
        if fed {
            self.run_queue(now, out);
            // It may have emptied the queue, and left more empty spans than the shard may keep.
            self.settle_memory(now, out);
        }
    }

    /// A restore has its place in memory, in this slot.
    pub(super) fn restore_begins(&mut self, slot: u32, out: &mut Vec<StoreEffect>) {
        let object = self.objects.get(slot);
        let (id, place) = (object.id, object.place(&self.arena));
        let Some(copy) = self.spill.copies.get_mut(&id) else {
            return;
        };
        copy.restore = Restore::Reading;
        let &mut Copy { file, index, .. } = copy;
        self.spill.files[file as usize].reading += 1;
        self.objects.get_mut(slot).reading_from = Some(file);
        out.push(StoreEffect::RestoreObject { file, index, id, place });
    }

    /// A restore got no memory: because somebody else made the object, or (`retry`) because there is none.
    pub(super) fn restore_refused(&mut self, id: &ObjectId, retry: bool, now: NowNs) {
        let Some(copy) = self.spill.copies.get_mut(id) else {
            return;
        };
        copy.restore = Restore::No;
        self.spill.restoring.sub(copy.data_bytes + copy.metadata_bytes);
        if retry {
            self.retry_restore(*id, now);
        }
    }

    fn retry_restore(&mut self, id: ObjectId, now: NowNs) {
        let retry_ns = self.config.spill.map_or(0, |config| config.retry_ns);
        self.spill.restores_paused_until_ns = now.saturating_add(retry_ns);
        self.spill.want(id, true);
    }

    /// The node has read an object into its place, or could not.
    pub(super) fn restored(
        &mut self,
        id: ObjectId,
        result: Result<(), RestoreFailure>,
        now: NowNs,
        out: &mut Vec<StoreEffect>,
    ) {
        let slot = self.objects.find(&id);
        let read = slot.and_then(|slot| Some((slot, self.objects.get_mut(slot).reading_from.take()?)));
        let Some((slot, file)) = read else {
            self.counters.stray_events += 1;
            return;
        };
        self.spill.files[file as usize].reading -= 1;
        let size_bytes = self.objects.get(slot).size_bytes();
        self.spill.restoring.sub(size_bytes);
        // It may have been freed meanwhile; then there is no copy any more.
        if let Some(copy) = self.spill.copies.get_mut(&id) {
            copy.restore = Restore::No;
            copy.attempts += 1;
        }
        match result {
            Ok(()) => {
                self.counters.restored.add(size_bytes);
                self.finish_restore(slot, now, out);
            }
            Err(failure) => {
                self.counters.restore_failures += 1;
                self.abort_slot(slot, out);
                self.restore_failed(id, failure, now, out);
            }
        }
        if self.spill.files.contains(file as usize) {
            self.end_file(file, out);
        }
        self.run_queue(now, out);
    }

    fn finish_restore(&mut self, slot: u32, now: NowNs, out: &mut Vec<StoreEffect>) {
        let object = self.objects.get_mut(slot);
        object.sealed_ns = Some(now);
        let (size_bytes, creator, id) = (object.size_bytes(), object.creator, object.id);
        self.counters.unsealed.sub(size_bytes);
        if let Some(copy) = self.spill.copies.get_mut(&id) {
            copy.attempts = 0;
        }
        self.announce(slot, out);
        self.drop_reference(creator, slot);
        self.settle(slot, out);
    }

    fn restore_failed(&mut self, id: ObjectId, failure: RestoreFailure, now: NowNs, out: &mut Vec<StoreEffect>) {
        let Some(copy) = self.spill.copies.get(&id) else {
            return;
        };
        if failure == RestoreFailure::Again && copy.attempts < RESTORE_ATTEMPTS_MAX {
            return self.retry_restore(id, now);
        }
        let owner = copy.owner;
        out.push(StoreEffect::SpilledLost { id, owner });
        self.kept_is_lost(&id, out);
        self.drop_copy(&id, out);
    }

    /// Another node wants an object: it is sent from memory where it is there or will be, and from its file where it is not.
    pub(super) fn get_to_send(&mut self, client: ClientId, token: Token, id: ObjectId, out: &mut Vec<StoreEffect>) {
        let copy = self.spill.copies.get(&id).copied();
        // Nothing can be read of what is empty, and nothing is lost by having it in memory.
        let copy = copy.filter(|copy| !copy.faulty && copy.data_bytes + copy.metadata_bytes > 0);
        match copy {
            Some(Copy { file, index, owner, .. }) if !self.has(&id) && !self.spill.sending.contains_key(&id) => {
                self.spill.sending.insert(id, file);
                self.spill.files[file as usize].sending += 1;
                out.push(StoreEffect::SpilledAt { client, token, id, owner, file, index });
            }
            _ => self.get(client, token, id, true, out),
        }
    }

    /// An object is sent from its file no longer.
    pub(super) fn sent_spilled(&mut self, id: &ObjectId, faulty: bool, out: &mut Vec<StoreEffect>) {
        let Some(file) = self.spill.sending.remove(id) else {
            self.counters.stray_events += 1;
            return;
        };
        if let Some(copy) = self.spill.copies.get_mut(id).filter(|copy| copy.file == file) {
            copy.faulty |= faulty;
        }
        self.spill.files[file as usize].sending -= 1;
        self.end_file(file, out);
    }

    /// When something is tried again that failed; `None`: nothing is.
    pub(super) fn spill_deadline(&self) -> Option<NowNs> {
        let spill = &self.spill;
        let wanted = !spill.gets.is_empty() || !spill.watches.is_empty();
        let restores = (wanted && spill.restores_paused_until_ns > 0).then_some(spill.restores_paused_until_ns);
        let writes = spill.failure.is_some() && self.objects.spillable().0 > 0;
        let writes = writes.then_some(spill.paused_until_ns);
        restores.into_iter().chain(writes).min()
    }

    /// Objects on disk, in no particular order.
    pub fn spilled_objects(&self) -> impl Iterator<Item = SpilledInfo> + '_ {
        self.spill.copies.iter().map(|(id, copy)| {
            let &Copy { owner, data_bytes, metadata_bytes, file, index, .. } = copy;
            SpilledInfo { id: *id, owner, data_bytes, metadata_bytes, file, index }
        })
    }

    /// Where an object lies on disk: its file and its place among those that were written to it.
    pub fn spilled_at(&self, id: &ObjectId) -> Option<(SpillFile, u32)> {
        self.spill.copies.get(id).map(|copy| (copy.file, copy.index))
    }

    /// Restores that wait for memory or are being read, and files that exist or are being written.
    pub fn spill_activity(&self) -> (Tally, u64) {
        (self.spill.restoring, self.spill.files.len() as u64)
    }

    /// Verifies the books of what is on disk.
    pub(super) fn check_spill(&self) -> Result<(), String> {
        let mut live: FxHashMap<SpillFile, u32> = FxHashMap::default();
        let mut restoring = Tally::default();
        for (id, copy) in &self.spill.copies {
            *live.entry(copy.file).or_default() += 1;
            let object = self.objects.find(id).map(|slot| self.objects.get(slot));
            let reading = object.is_some_and(|object| object.reading_from == Some(copy.file));
            if reading != (copy.restore == Restore::Reading) || object.is_some_and(Object::is_owned) {
                return Err(format!("{id} on disk is {copy:?} and in memory {object:?}"));
            }
            if !copy.pinned && copy.keep.is_none() {
                return Err(format!("{id} is on disk for nobody"));
            }
            if object.is_none() && self.waiters.has(id) && copy.restore == Restore::No {
                return Err(format!("{id} is waited for and not restored"));
            }
            if copy.restore == Restore::Queued {
                restoring.add(copy.data_bytes + copy.metadata_bytes);
            }
        }
        let mut reading: FxHashMap<SpillFile, u32> = FxHashMap::default();
        for (_, object) in self.objects.iter() {
            if let Some(file) = object.reading_from {
                *reading.entry(file).or_default() += 1;
                restoring.add(object.size_bytes());
            }
        }
        let mut sending: FxHashMap<SpillFile, u32> = FxHashMap::default();
        for file in self.spill.sending.values() {
            *sending.entry(*file).or_default() += 1;
        }
        let (mut writing, mut files) = (0, 0);
        for (number, file) in &self.spill.files {
            let key = number as SpillFile;
            let counted = [&mut live, &mut reading, &mut sending].map(|of| of.remove(&key).unwrap_or(0));
            if counted != [file.live, file.reading, file.sending] {
                return Err(format!("file {number} is {file:?}, counted {counted:?}"));
            }
            if !file.is_needed() {
                return Err(format!("file {number} is empty and kept"));
            }
            let bytes: u64 = file.writing.iter().map(|slot| self.objects.get(*slot).backing.bytes()).sum();
            if bytes != file.writing_bytes || !file.writing.iter().all(|slot| self.objects.get(*slot).spilling) {
                return Err(format!("file {number} is {file:?}, counted {bytes} bytes"));
            }
            writing += bytes;
            files += u32::from(!file.writing.is_empty());
        }
        let spill = &self.spill;
        let astray = !live.is_empty() || !reading.is_empty() || !sending.is_empty();
        if astray || (writing, files) != (spill.writing_bytes, spill.writing_files) {
            return Err(format!(
                "{live:?}, {reading:?}, {sending:?} are in no file; {files} files of {writing} bytes are written"
            ));
        }
        if restoring != spill.restoring {
            return Err(format!("{:?} are restored, counted {restoring:?}", spill.restoring));
        }
        Ok(())
    }
}
