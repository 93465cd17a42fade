//! The invariants of a store.

use super::api::ObjectSource;
use super::machine::Store;
use super::objects::Backing;
use super::report::{Counters, Tally};

impl Store {
    /// Verifies every invariant: books of memory, index and orders of objects, references, waiters, sums. Takes time in proportion
    /// to what the store holds: for tests, the simulator and debug builds.
    pub fn check(&self) -> Result<(), String> {
        let allocations = self.objects.iter().filter_map(|(_, object)| match object.backing {
            Backing::Arena(allocation) => Some(allocation),
            Backing::File(..) => None,
        });
        self.arena.check(allocations.chain(self.credit.allocations()))?;
        self.objects.check()?;
        self.check_references()?;
        self.waiters.check(|id| self.place(id).is_some())?;
        self.check_counters()?;
        self.check_spill()?;
        self.check_keeps()?;
        self.check_reserve()
    }

    fn check_references(&self) -> Result<(), String> {
        let mut per_object = self.refs.check()?;
        for (slot, object) in self.objects.iter() {
            let held = per_object.remove(&slot).unwrap_or(0);
            if held != object.refs {
                return Err(format!("{} counts {} references, {held} are held", object.id, object.refs));
            }
            let unsealed = object.sealed_ns.is_none();
            if unsealed && (held != 1 || !self.refs.holds(object.creator, slot) || object.is_owned()) {
                return Err(format!("{} is unsealed and not its creator's alone", object.id));
            }
        }
        if per_object.is_empty() {
            Ok(())
        } else {
            Err(format!("references on objects that are not here: {per_object:?}"))
        }
    }

    fn check_counters(&self) -> Result<(), String> {
        let mut counted = Counters {
            created: self.counters.created,
            evicted: self.counters.evicted,
            spilled: self.counters.spilled,
            restored: self.counters.restored,
            spill_failures: self.counters.spill_failures,
            restore_failures: self.counters.restore_failures,
            out_of_memory: self.counters.out_of_memory,
            queue_full: self.counters.queue_full,
            stray_events: self.counters.stray_events,
            credit: self.credit.tally(),
            by_source: [Tally::default(); ObjectSource::COUNT],
            ..Counters::default()
        };
        for (_, object) in self.objects.iter() {
            let bytes = object.size_bytes();
            counted.by_source[object.source as usize].add(bytes);
            let tallies = [
                (&mut counted.unsealed, object.sealed_ns.is_none()),
                (&mut counted.pinned, object.pinned),
                (&mut counted.kept, object.keep.is_some()),
                (&mut counted.spilling, object.spilling),
                (&mut counted.in_use, object.refs > 0),
                (&mut counted.fallback, matches!(object.backing, Backing::File(..))),
            ];
            tallies.into_iter().filter(|(_, is)| *is).for_each(|(tally, _)| tally.add(bytes));
        }
        self.spilled_objects().for_each(|copy| counted.on_disk.add(copy.data_bytes + copy.metadata_bytes));
        self.spill.kept().for_each(|size_bytes| counted.kept.add(size_bytes));
        if counted == self.counters {
            Ok(())
        } else {
            Err(format!("counters are {:?}, counted {counted:?}", self.counters))
        }
    }

    fn check_reserve(&self) -> Result<(), String> {
        let stats = self.stats();
        if self.queue.is_empty() && stats.empty_spans > self.config.spans_kept {
            return Err(format!("{} empty spans kept, {} allowed", stats.empty_spans, self.config.spans_kept));
        }
        if self.queue.is_empty() && self.link.standing.is_some() {
            return Err("nobody waits, and a request stands at the bank".into());
        }
        if stats.queued_creates > self.config.max_queued_creates as u64 {
            return Err(format!("{} creates wait, {} may", stats.queued_creates, self.config.max_queued_creates));
        }
        Ok(())
    }
}
