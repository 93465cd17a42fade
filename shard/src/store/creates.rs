//! Creates: memory found, evicted, asked for, waited for.
//!
//! Creates that find no room wait in one queue, in order, as in Ray's `create_request_queue.cc`. Where shards share the memory, that is
//! the bank's [line](super::line), and a shard's queue is its part of it. The first of them asks
//! the bank, evicts what nobody uses, and then waits for others to free memory. It fails when it has seen
//! no progress for the grace period; those behind it fail at once then, until a create succeeds again.

use super::api::{GoneReason, ObjectSource, SpanWish, StoreEffect, StoreError, Urgency};
use super::arena::Arena;
use super::machine::Store;
use super::objects::{Backing, NewObject};
use super::queue::Create;
use super::spill::RESTORER;
use crate::ids::{NowNs, ObjectId, Token};

/// What became of the first create in the queue.
enum Attempt {
    /// Made, at this slot.
    Made(u32),
    /// The object is here already.
    Exists,
    /// A file on disk is the last resort.
    File,
    /// Waits on.
    Waits,
}

impl Store {
    pub(super) fn create(&mut self, create: Create, now: NowNs, out: &mut Vec<StoreEffect>) {
        // An error takes the place of what is lost; what is on disk is not.
        let is_error = create.source == ObjectSource::ErrorStoredByRaylet;
        let on_disk = is_error && self.spill.has(&create.id) || self.is_kept_on_disk(&create.id);
        if self.objects.find(&create.id).is_some() || on_disk {
            return self.answer(&create, Err(StoreError::ObjectExists), out);
        }
        let Some(bytes) = create.bytes().filter(|bytes| *bytes <= i64::MAX as u64) else {
            return self.fail(&create, now, out);
        };
        if bytes > self.arena.layout().max_object_bytes() {
            return self.file_or_fail(create, bytes, now, out);
        }
        // Those of other shards wait too, or this shard's own.
        let first = self.queue.is_empty() && !self.link.hold;
        if first || create.try_immediately {
            // Behind others it can't ask the bank.
            let asks_near = first && self.asks_near(create.near, bytes, now);
            if let Some(slot) = self.make(&create, bytes, !asks_near, now) {
                return self.made(&create, slot, out);
            }
        }
        if create.try_immediately && !self.queue.is_empty() {
            // Those who wait have asked the bank already.
            return match self.evict_for(&create, bytes, now, out) {
                Some(slot) => self.made(&create, slot, out),
                None => self.file_or_fail(create, bytes, now, out),
            };
        }
        if self.queue.len() >= self.config.max_queued_creates {
            self.counters.queue_full += 1;
            return self.answer(&create, Err(StoreError::QueueFull), out);
        }
        self.queue.push(create, bytes);
        if self.link.lined {
            self.to_bank.push_back(StoreEffect::CreateQueued { since: create.since });
        }
        self.run_queue(now, out);
    }

    fn answer(&self, create: &Create, result: Result<u32, StoreError>, out: &mut Vec<StoreEffect>) {
        let Create { client, token, id, .. } = *create;
        let result = result.map(|slot| self.objects.get(slot).place(&self.arena));
        out.push(StoreEffect::Created { client, token, id, result });
    }

    fn made(&mut self, create: &Create, slot: u32, out: &mut Vec<StoreEffect>) {
        self.link.full_since = None;
        self.spill.pressed = false;
        if create.client == RESTORER {
            return self.restore_begins(slot, out);
        }
        self.answer(create, Ok(slot), out);
    }

    fn fail(&mut self, create: &Create, now: NowNs, out: &mut Vec<StoreEffect>) {
        if create.client == RESTORER {
            return self.restore_refused(&create.id, true, now);
        }
        self.counters.out_of_memory += 1;
        let error = if self.spill.disk_full() { StoreError::OutOfDisk } else { StoreError::OutOfMemory };
        self.answer(create, Err(error), out);
    }

    /// The object is here already.
    fn refuse(&mut self, create: &Create, now: NowNs, out: &mut Vec<StoreEffect>) {
        match create.client {
            RESTORER => self.restore_refused(&create.id, false, now),
            _ => self.answer(create, Err(StoreError::ObjectExists), out),
        }
    }

    fn file_or_fail(&mut self, create: Create, bytes: u64, now: NowNs, out: &mut Vec<StoreEffect>) {
        if !self.config.fallback || self.queue.len() >= self.config.max_queued_creates {
            return self.fail(&create, now, out);
        }
        let bytes = Arena::footprint(bytes);
        self.queue.file(create, bytes);
        out.push(StoreEffect::FallbackWanted { id: create.id, token: create.token, bytes });
    }

    pub(super) fn filed(
        &mut self,
        id: ObjectId,
        token: Token,
        segment: Option<u32>,
        now: NowNs,
        out: &mut Vec<StoreEffect>,
    ) {
        let Some((create, bytes)) = self.queue.filed(&id, token) else {
            self.counters.stray_events += 1;
            out.extend(segment.map(|segment| StoreEffect::FallbackReturned { segment }));
            return;
        };
        let Some(segment) = segment else {
            return self.fail(&create, now, out);
        };
        if self.objects.find(&id).is_some() {
            out.push(StoreEffect::FallbackReturned { segment });
            return self.refuse(&create, now, out);
        }
        let slot = self.insert(&create, Backing::File(segment, bytes), now);
        self.counters.fallback.add(self.objects.get(slot).size_bytes());
        // Memory is as full as before: whoever comes next need not wait as long again.
        match create.client {
            RESTORER => self.restore_begins(slot, out),
            _ => self.answer(&create, Ok(slot), out),
        }
    }

    /// Makes the object if there is memory for it now: on the NUMA node of who writes it, or, where it may be `anywhere`, on another.
    fn make(&mut self, create: &Create, bytes: u64, anywhere: bool, now: NowNs) -> Option<u32> {
        let allocation = self.arena.alloc(bytes, create.near, anywhere)?;
        Some(self.insert(create, Backing::Arena(allocation), now))
    }

    fn insert(&mut self, create: &Create, backing: Backing, now: NowNs) -> u32 {
        let creator = self.refs.client(create.client);
        let slot = self.objects.insert(NewObject {
            id: create.id,
            owner: create.owner,
            data_bytes: create.data_bytes,
            metadata_bytes: create.metadata_bytes,
            backing,
            created_ns: now,
            creator,
            mutable: create.mutable,
            source: create.source,
        });
        self.refs.add(creator, slot);
        let bytes = self.objects.get(slot).size_bytes();
        self.counters.by_source[create.source as usize].add(bytes);
        self.counters.unsealed.add(bytes);
        self.counters.in_use.add(bytes);
        self.counters.created.add(bytes);
        slot
    }

    /// Evicts the object that nobody has used for longest; false where there is none.
    pub(super) fn evict_one(&mut self, out: &mut Vec<StoreEffect>) -> bool {
        let Some(slot) = self.objects.oldest_evictable() else {
            return false;
        };
        let object = self.objects.get(slot);
        let reason = if self.spill.has(&object.id) { GoneReason::Spilled } else { GoneReason::Evicted };
        self.counters.evicted.add(object.size_bytes());
        self.destroy(slot, reason, out);
        true
    }

    /// Makes the object, evicting others for it, if that can be enough.
    fn evict_for(&mut self, create: &Create, bytes: u64, now: NowNs, out: &mut Vec<StoreEffect>) -> Option<u32> {
        let needed = Arena::footprint(bytes);
        if self.arena.free_bytes() + self.objects.evictable().1 < needed {
            return None;
        }
        while self.evict_one(out) {
            if self.arena.free_bytes() >= needed {
                if let Some(slot) = self.make(create, bytes, true, now) {
                    return Some(slot);
                }
            }
        }
        None
    }

    /// Serves the queue as far as it goes.
    pub(super) fn run_queue(&mut self, now: NowNs, out: &mut Vec<StoreEffect>) {
        self.pay_debt();
        self.freed = false;
        self.link.next_retry_ns = now.saturating_add(self.config.retry_interval_ns);
        self.look_at_line();
        while let Some((create, bytes)) = self.queue.front() {
            if !self.may_serve(&create) {
                return self.line_up();
            }
            match self.attempt(&create, bytes, now, out) {
                Attempt::Waits => return,
                Attempt::Made(slot) => {
                    self.queue.pop();
                    self.made(&create, slot, out);
                    self.left(&create);
                }
                Attempt::Exists => {
                    self.queue.pop();
                    self.refuse(&create, now, out);
                    self.left(&create);
                }
                Attempt::File => {
                    self.queue.pop();
                    self.file_or_fail(create, bytes, now, out);
                    self.left(&create);
                }
            }
        }
        self.link.lined = false;
        self.withdraw();
    }

    fn attempt(&mut self, create: &Create, bytes: u64, now: NowNs, out: &mut Vec<StoreEffect>) -> Attempt {
        if self.objects.find(&create.id).is_some() {
            return Attempt::Exists;
        }
        let asks_near = self.asks_near(create.near, bytes, now);
        if let Some(slot) = self.make(create, bytes, !asks_near, now) {
            return Attempt::Made(slot);
        }
        let spans = self.arena.spans_for(bytes);
        if self.link.answer_due {
            return Attempt::Waits;
        }
        if asks_near {
            // One that was here before may stand for another.
            self.withdraw();
            self.want(spans, Urgency::Near, create.near);
            return Attempt::Waits;
        }
        if self.link.standing.is_none() && now >= self.link.dry_until_ns {
            self.want(spans, Urgency::Now, create.near);
            return Attempt::Waits;
        }
        if let Some(slot) = self.evict_for(create, bytes, now, out) {
            return Attempt::Made(slot);
        }
        if create.try_immediately {
            return Attempt::File;
        }
        let since = *self.link.full_since.get_or_insert(now);
        if self.spill.makes_room() {
            self.link.full_since = None;
        } else if self.link.standing_refused(spans) && now.saturating_sub(since) >= self.config.full_grace_ns {
            return Attempt::File;
        }
        // Creates behind a restore wait as well.
        self.line_up();
        let urgency = if create.client == RESTORER { Urgency::Restore } else { Urgency::Standing };
        self.stand(SpanWish { count: spans, urgency, near: create.near });
        self.spill.pressed = true;
        self.ask_for_gc(now, out);
        Attempt::Waits
    }

    /// Says that creates wait, as often as is allowed.
    fn ask_for_gc(&mut self, now: NowNs, out: &mut Vec<StoreEffect>) {
        if self.link.last_gc_ns.is_none_or(|last| now.saturating_sub(last) >= self.config.gc_interval_ns) {
            self.link.last_gc_ns = Some(now);
            out.push(StoreEffect::GcWanted);
        }
    }

    pub(super) fn tick(&mut self, now: NowNs, out: &mut Vec<StoreEffect>) {
        if self.next_deadline().is_some_and(|due| now >= due) {
            self.run_queue(now, out);
        }
    }

    /// When a [`StoreEvent::Tick`](super::StoreEvent::Tick) is of use next; `None`: not before something else happens.
    pub fn next_deadline(&self) -> Option<NowNs> {
        let first = self.queue.front().filter(|(create, _)| self.may_serve(create));
        let queue = first.map(|_| self.link.next_retry_ns);
        queue.into_iter().chain(self.spill_deadline()).min()
    }
}
