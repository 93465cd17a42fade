//! Objects on the disks of nodes: written when the dice say so, read back for who wants them here, sent from their files to other nodes,
//! lost now and then. A disk holds only so much.

use std::collections::btree_map::Entry;

use super::super::model::RESTORE;
use super::*;

impl World {
    /// A node begins to write an object that it keeps, or has written one.
    pub(super) fn spill(&mut self, node: usize) -> Result<(), String> {
        if self.rng.permille(500) {
            self.nodes[node].store.begin_spill();
            return Ok(());
        }
        self.end_spill(node)
    }

    pub(super) fn end_spill(&mut self, node: usize) -> Result<(), String> {
        let fails = !self.resting && self.rng.permille(100);
        let Some((object, written)) = self.nodes[node].store.end_spill(fails) else {
            return Ok(());
        };
        match written {
            true => {
                self.report.spilled += 1;
                self.up[node].push_back(News::Spilled { object });
            }
            false => self.report.disk_full += u64::from(!fails),
        }
        self.serve(node)
    }

    /// What is wanted here and on disk only is read back, before all creates.
    pub(super) fn restore_wanted(&mut self, node: usize) -> Result<(), String> {
        for object in std::mem::take(&mut self.nodes[node].files_lost) {
            if !self.nodes[node].store.has(&object) {
                self.tell(node, PullEvent::Gone { object })?;
            }
        }
        let Node { wishes, store, .. } = &mut self.nodes[node];
        let missing = wishes.values().flat_map(|wish| wish.objects.iter().filter(|(_, seen)| !**seen));
        let wanted: BTreeSet<ObjectId> = missing.map(|(object, _)| *object).collect();
        for object in wanted {
            let is_queued = store.queue.iter().any(|create| create.object == object);
            if let Some(copy) = store.disk.get(&object).filter(|_| !is_queued && !store.copies.contains_key(&object)) {
                let (size, version) = (copy.size, copy.version);
                store.queue.push_front(Create { object, size, token: Some(RESTORE), version });
            }
        }
        self.serve(node)
    }

    /// An object was read back, or could not be.
    pub(super) fn restored(
        &mut self,
        node: usize,
        object: ObjectId,
        result: Result<(), StoreError>,
    ) -> Result<(), String> {
        match result {
            Ok(()) => {
                self.report.restored += 1;
                self.sealed(node, object);
                self.tell(node, PullEvent::Here { object, held: false })?;
                self.came(node, object)?;
                // It was held until everybody had heard of it.
                if let Some(copy) = self.nodes[node].store.copies.get_mut(&object) {
                    copy.users = copy.users.saturating_sub(1);
                }
                Ok(())
            }
            Err(StoreError::ObjectNonexistent) => {
                self.file_lost(node, object);
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// A file changes on its disk; that shows when it is read.
    pub(super) fn spoil_a_file(&mut self, node: usize) {
        let disk = &mut self.nodes[node].store.disk;
        let at = self.rng.below(disk.len().max(1) as u64) as usize;
        if let Some(copy) = disk.values_mut().nth(at).filter(|copy| copy.users == 0) {
            copy.is_spoilt = true;
        }
    }

    /// It has shown: the owner hears that there is no such copy.
    pub(super) fn file_lost(&mut self, node: usize, object: ObjectId) {
        if self.nodes[node].store.disk.remove(&object).is_some() {
            self.report.files_lost += 1;
            self.nodes[node].files_lost.push(object);
            self.up[node].push_back(News::FileLost { object });
        }
    }

    /// Takes the sender's reference on an object that is on disk only. False: it is not there, or not as it was written.
    pub(super) fn hold_file(&mut self, node: usize, object: ObjectId) -> bool {
        let number = self.number();
        let Node { store, pushes, from_disk, lent, .. } = &mut self.nodes[node];
        let Some(copy) = store.disk.get_mut(&object).filter(|_| !lent.contains_key(&object)) else {
            return false;
        };
        if copy.is_spoilt {
            self.file_lost(node, object);
            return false;
        }
        if let Entry::Vacant(push) = pushes.entry(object) {
            push.insert(number);
            copy.users += 1;
            from_disk.insert(object);
            self.report.file_sent += 1;
        }
        true
    }
}
