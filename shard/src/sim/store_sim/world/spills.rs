//! What the disk of a world does.

use super::super::Rng;
use super::{World, MS};
use crate::ids::{ObjectId, ShardId};
use crate::store::{RestoreFailure, SpillConfig, SpillFailure, StoreEvent, MIN_SPAN_BYTES};

/// Most worlds spill, each with other limits.
pub(super) fn random_config(rng: &mut Rng, capacity_bytes: u64) -> Option<SpillConfig> {
    if rng.permille(250) {
        return None;
    }
    let threshold = 300 + rng.below(800);
    Some(SpillConfig {
        threshold_bytes: capacity_bytes / 1000 * threshold,
        batch_bytes: 1 + rng.below(8 * MIN_SPAN_BYTES),
        file_objects_max: 1 + rng.below(20) as u32,
        file_bytes_max: if rng.permille(500) { u64::MAX } else { 1 + rng.below(4 * MIN_SPAN_BYTES) },
        writing_files_max: 1 + rng.below(4) as u32,
        writing_bytes_max: 1 + rng.below(16 * MIN_SPAN_BYTES),
        restoring_objects_max: 1 + rng.below(8),
        restoring_bytes_max: 1 + rng.below(16 * MIN_SPAN_BYTES),
        retry_ns: (1 + rng.below(20)) * MS,
    })
}

impl World {
    /// A write, a read or a send ends, well or not.
    pub(super) fn disk_acts(&mut self, shard: ShardId) -> Result<(), String> {
        let sending = self.models[usize::from(shard)].disk.sending();
        if !sending.is_empty() && self.rng.permille(200) {
            let which = self.rng.below(sending.len() as u64) as usize;
            let faulty = self.rng.permille(200);
            return self.send_ends(shard, sending[which], faulty);
        }
        let disk = &self.models[usize::from(shard)].disk;
        let (writing, reading) = (disk.writing(), disk.reading());
        let which = self.rng.below((writing.len() + reading.len()).max(1) as u64) as usize;
        let failing = self.rng.below(1000);
        if let Some(file) = writing.get(which) {
            let result = match failing {
                0..100 => Err(SpillFailure::Failed),
                100..160 => Err(SpillFailure::DiskFull),
                _ => Ok(()),
            };
            return self.write_ends(shard, *file, result);
        }
        match reading.get(which - writing.len().min(which)) {
            Some(id) => {
                let result = match failing {
                    0..150 => Err(RestoreFailure::Again),
                    150..180 => Err(RestoreFailure::Lost),
                    _ => Ok(()),
                };
                self.read_ends(shard, *id, result)
            }
            // Word of something that nobody asked for.
            None if failing < 100 => {
                let id = super::object_id(shard, self.rng.below(self.ids));
                let is_known = self.models[usize::from(shard)].objects.contains_key(&id);
                if is_known {
                    self.shard_event(shard, StoreEvent::RestoreDone { id, result: Ok(()) })?;
                }
                if sending.is_empty() {
                    self.shard_event(shard, StoreEvent::SentSpilled { id, faulty: false })?;
                }
                self.shard_event(shard, StoreEvent::SpillDone { file: 1_000_000, result: Ok(()) })
            }
            None => Ok(()),
        }
    }

    fn write_ends(&mut self, shard: ShardId, file: u32, result: Result<(), SpillFailure>) -> Result<(), String> {
        let model = self.model(shard);
        let objects = model.objects_of(file);
        model.disk.full = result == Err(SpillFailure::DiskFull);
        model.file_written(file);
        self.shard_event(shard, StoreEvent::SpillDone { file, result })?;
        if result.is_ok() {
            self.models[usize::from(shard)].check_written(&objects)?;
        }
        for (id, ..) in objects {
            self.models[usize::from(shard)].check_object(&id)?;
        }
        Ok(())
    }

    fn read_ends(&mut self, shard: ShardId, id: ObjectId, result: Result<(), RestoreFailure>) -> Result<(), String> {
        let model = &mut self.models[usize::from(shard)];
        model.read_ended(id, result.is_ok(), result == Err(RestoreFailure::Lost));
        if result.is_err() {
            model.abort(&id, &mut self.memory)?;
        }
        self.shard_event(shard, StoreEvent::RestoreDone { id, result })?;
        let model = &self.models[usize::from(shard)];
        if model.disk.may_be_lost.is_some() {
            return Err(format!("{id} can't be read back, and nobody is told"));
        }
        model.check_object(&id)
    }

    fn send_ends(&mut self, shard: ShardId, id: ObjectId, faulty: bool) -> Result<(), String> {
        self.model(shard).disk.send_ended(&id, faulty);
        self.shard_event(shard, StoreEvent::SentSpilled { id, faulty })
    }

    /// News of the other shards.
    pub(super) fn others_use(&mut self, shard: ShardId) -> Result<(), String> {
        let (bytes, spilling) = (self.rng.below(self.layout.capacity_bytes()), self.rng.permille(200));
        let bytes = if self.rng.permille(500) { 0 } else { bytes };
        self.shard_event(shard, StoreEvent::OthersUse { bytes, spilling })
    }

    /// What is written or read ends, and everything is freed, in memory and on disk.
    pub(super) fn free_all(&mut self, shard: ShardId) -> Result<(), String> {
        let keeps = self.models[usize::from(shard)].keeps.iter();
        let mut kept: Vec<_> = keeps.flat_map(|(id, by)| by.iter().map(|keeper| (*id, *keeper))).collect();
        kept.sort_unstable();
        kept.into_iter().try_for_each(|(id, keeper)| self.unkeep(shard, keeper, id))?;
        loop {
            let model = &self.models[usize::from(shard)];
            if let Some(file) = model.disk.writing().first() {
                self.write_ends(shard, *file, Ok(()))?;
            } else if let Some(id) = model.disk.reading().first() {
                self.read_ends(shard, *id, Ok(()))?;
            } else if let Some(id) = model.disk.sending().first() {
                self.send_ends(shard, *id, false)?;
            } else {
                let mut ids: Vec<_> = model.objects.keys().chain(model.disk.copies.keys()).copied().collect();
                ids.sort_unstable();
                ids.dedup();
                if ids.is_empty() {
                    return Ok(());
                }
                ids.into_iter().try_for_each(|id| self.free(shard, id))?;
            }
        }
    }

    /// The files that a shard has are those of the model.
    pub(super) fn check_disks(&self) -> Result<(), String> {
        for model in &self.models {
            let store = self.store(model.shard);
            let (files, copies) = (store.spill_activity().1, store.spilled_objects().count());
            let expected = (model.disk.files.len() as u64, model.disk.copies.len());
            if (files, copies) != expected {
                return Err(format!("shard {}: {files} files, {copies} copies, expected {expected:?}", model.shard));
            }
        }
        Ok(())
    }

    /// Nothing may be left on disk at the end.
    pub(super) fn disks_are_empty(&self) -> Result<(), String> {
        self.check_disks()?;
        let left: usize = self.models.iter().map(|model| model.disk.files.len()).sum();
        match left {
            0 => Ok(()),
            _ => Err(format!("{left} files are left on disk")),
        }
    }
}
