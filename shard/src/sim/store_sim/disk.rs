//! What must be true of one shard's files on disk.

use rustc_hash::{FxHashMap, FxHashSet};

use super::model::{expect, Create, Model, Object};
use crate::ids::{ClientId, ObjectId};
use crate::store::{GoneReason, SpillFile, StoreEffect, RESTORE_ATTEMPTS_MAX};

/// The number under which the store itself makes the places that it restores to.
pub(super) const RESTORER: ClientId = ClientId::MAX;

/// A copy of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    file: SpillFile,
    index: u32,
    /// Reads that failed in a row.
    failed: u32,
    /// It could not be sent from here.
    faulty: bool,
    pub(super) pinned: bool,
    /// What is to become of a kept object when nobody keeps it.
    pub(super) doomed: Option<GoneReason>,
}

/// What was written, or is being written.
#[derive(Clone, Debug, Default)]
pub(super) struct DiskFile {
    /// Its objects, with the lengths of data and metadata.
    objects: Vec<(ObjectId, u64, u64)>,
    /// All objects of it were named.
    closed: bool,
    written: bool,
    live: FxHashSet<ObjectId>,
    reading: FxHashSet<ObjectId>,
    /// Objects that another node is sent from here.
    sending: FxHashSet<ObjectId>,
}

/// One shard's files.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) files: FxHashMap<SpillFile, DiskFile>,
    pub(super) copies: FxHashMap<ObjectId, Copy>,
    /// The last write failed because the disk was full.
    pub(super) full: bool,
    /// Objects whose read-back has just been told to be for good in vain.
    pub(super) may_be_lost: Option<ObjectId>,
    pub(super) spilled: u64,
    pub(super) restored: u64,
    pub(super) lost: u64,
    pub(super) sent: u64,
}

impl Disk {
    /// Files that are being written, in order of number.
    pub(super) fn writing(&self) -> Vec<SpillFile> {
        let mut files: Vec<_> =
            self.files.iter().filter(|(_, f)| f.closed && !f.written).map(|(number, _)| *number).collect();
        files.sort_unstable();
        files
    }

    /// Objects that are being read, in order.
    pub(super) fn reading(&self) -> Vec<ObjectId> {
        let mut ids: Vec<_> = self.files.values().flat_map(|file| &file.reading).copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Objects that are being sent, in order.
    pub(super) fn sending(&self) -> Vec<ObjectId> {
        let mut ids: Vec<_> = self.files.values().flat_map(|file| &file.sending).copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Before the store hears that an object is sent from its file no longer.
    pub(super) fn send_ended(&mut self, id: &ObjectId, faulty: bool) {
        for (number, file) in &mut self.files {
            let of_copy = file.sending.remove(id);
            if let Some(copy) = self.copies.get_mut(id).filter(|copy| of_copy && copy.file == *number) {
                copy.faulty |= faulty;
            }
        }
    }

    pub(super) fn drop_copy(&mut self, id: &ObjectId) {
        if let Some(copy) = self.copies.remove(id) {
            if let Some(file) = self.files.get_mut(&copy.file) {
                file.live.remove(id);
            }
        }
    }

    /// An object is to be read: it must be what was written at that place.
    pub(super) fn restore_begins(&mut self, file: SpillFile, index: u32, id: ObjectId) -> Result<Create, String> {
        let copy = self.copies.get(&id).ok_or_else(|| format!("{id} is restored without a copy"))?;
        expect((copy.file, copy.index) == (file, index), || format!("{id} is at {copy:?}, not {file}/{index}"))?;
        let from = self.files.get_mut(&file).filter(|f| f.written).ok_or("a restore from no file")?;
        let &(written, data_bytes, metadata_bytes) =
            from.objects.get(index as usize).ok_or("a restore past the end")?;
        expect(written == id && from.reading.insert(id), || format!("{id} is restored from the place of {written}"))?;
        let (client, mutable, immediate, near, asked_ns, round, lined) = (RESTORER, false, false, 0, 0, 0, None);
        Ok(Create { client, id, data_bytes, metadata_bytes, mutable, immediate, near, asked_ns, round, lined })
    }

    /// Every file has a reason to be.
    pub(super) fn check(&self) -> Result<(), String> {
        for (number, file) in &self.files {
            let used = !file.reading.is_empty() || !file.sending.is_empty();
            let needed = !file.written || !file.live.is_empty() || used;
            expect(needed && file.closed, || format!("file {number} is left over: {file:?}"))?;
        }
        Ok(())
    }
}

impl Model {
    pub(super) fn follow_spill(&mut self, effect: &StoreEffect) -> Result<(), String> {
        match *effect {
            StoreEffect::SpillObject { file, index, id, place, last, .. } => {
                let object = self.objects.get_mut(&id).ok_or_else(|| format!("{id} is spilled and not here"))?;
                let owned = object.pinned || self.keeps.contains_key(&id);
                let idle = object.sealed && object.refs.is_empty() && owned;
                let mutable = object.place.header_offset != object.place.data_offset;
                let may = idle && !object.spilling && !mutable && object.place == place;
                expect(may && !self.disk.copies.contains_key(&id), || format!("{object:?} is spilled"))?;
                object.spilling = true;
                let entry = self.disk.files.entry(file).or_default();
                let next = !entry.closed && entry.objects.len() == index as usize;
                entry.objects.push((id, place.data_bytes, place.metadata_bytes));
                entry.closed = last;
                expect(next, || format!("{effect:?} is not the next of {entry:?}"))
            }
            StoreEffect::ObjectSpilled { id, file, index, .. } => {
                let object = self.objects.get_mut(&id).ok_or_else(|| format!("{id} is spilled and not here"))?;
                let (pinned, is_kept) = (std::mem::take(&mut object.pinned), self.keeps.contains_key(&id));
                let doomed = object.doomed.take_if(|_| is_kept);
                expect(pinned || is_kept, || format!("{id} is kept on disk for nobody"))?;
                let entry = self.disk.files.get_mut(&file).filter(|f| f.written).ok_or("a copy in no file")?;
                let there = entry.objects.get(index as usize).is_some_and(|(written, ..)| *written == id);
                entry.live.insert(id);
                self.disk.spilled += 1;
                let twice = self.disk.copies.insert(id, Copy { file, index, failed: 0, faulty: false, pinned, doomed });
                expect(there && twice.is_none(), || format!("{id} is not at {file}/{index}: {twice:?}"))
            }
            StoreEffect::SpillFileUnneeded { file } => {
                let gone = self.disk.files.remove(&file).ok_or("a file ends that is not there")?;
                let unused = gone.reading.is_empty() && gone.sending.is_empty();
                expect(gone.live.is_empty() && unused, || format!("{gone:?} ends"))
            }
            StoreEffect::SpilledAt { client, token, id, file, index, .. } => {
                let asked = self.gets.get_mut(&id).ok_or("an answer to no get")?;
                let asked_before = asked.len();
                asked.retain(|get| *get != (client, token));
                let is_answer = asked.len() < asked_before;
                if asked.is_empty() {
                    self.gets.remove(&id);
                }
                let copy = self.disk.copies.get(&id).ok_or_else(|| format!("{id} is sent from no file"))?;
                let there = (copy.file, copy.index) == (file, index) && !copy.faulty;
                expect(is_answer && there && !self.sealed(&id), || format!("{effect:?} of {copy:?}"))?;
                self.disk.sent += 1;
                let from = self.disk.files.get_mut(&file).filter(|f| f.written).ok_or("sent from no file")?;
                expect(from.sending.insert(id), || format!("{id} is sent twice"))
            }
            StoreEffect::SpilledLost { id, .. } => {
                expect(self.disk.may_be_lost.take() == Some(id), || format!("{id} is given up too early"))?;
                self.disk.lost += 1;
                self.disk.drop_copy(&id);
                if self.keeps.remove(&id).is_some() {
                    self.gone_on_disk.insert(id, GoneReason::Evicted);
                }
                Ok(())
            }
            _ => Err(format!("{effect:?} is none of spilling")),
        }
    }

    /// Before the store hears that a file is written: its objects may go from here on.
    pub(super) fn file_written(&mut self, file: SpillFile) {
        if let Some(file) = self.disk.files.get_mut(&file) {
            file.written = true;
            for (id, ..) in &file.objects {
                if let Some(object) = self.objects.get_mut(id) {
                    object.spilling = false;
                }
            }
        }
    }

    /// After it: nothing that is still wanted may be without a copy.
    pub(super) fn check_written(&self, objects: &[(ObjectId, u64, u64)]) -> Result<(), String> {
        for (id, ..) in objects {
            let on_disk = self.disk.copies.contains_key(id);
            let owned = |o: &Object| o.pinned || self.keeps.contains_key(id) && !on_disk;
            let only_here = self.objects.get(id).is_some_and(|object| owned(object) && !object.spilling);
            expect(!only_here, || format!("{id} was written and is still only in memory"))?;
        }
        Ok(())
    }

    /// What a file holds or will hold.
    pub(super) fn objects_of(&self, file: SpillFile) -> Vec<(ObjectId, u64, u64)> {
        self.disk.files.get(&file).map(|file| file.objects.clone()).unwrap_or_default()
    }

    /// Before the store hears how a read ended.
    pub(super) fn read_ended(&mut self, id: ObjectId, ok: bool, lost: bool) {
        for file in self.disk.files.values_mut() {
            file.reading.remove(&id);
        }
        if ok {
            self.disk.restored += 1;
            if let Some(object) = self.objects.get_mut(&id) {
                object.sealed = true;
                object.refs.retain(|client| *client != RESTORER);
            }
        }
        self.disk.may_be_lost = None;
        if let Some(copy) = self.disk.copies.get_mut(&id) {
            copy.failed = if ok { 0 } else { copy.failed + 1 };
            if !ok && (lost || copy.failed >= RESTORE_ATTEMPTS_MAX) {
                self.disk.may_be_lost = Some(id);
            }
        }
    }
}
