//! Allocation credit: runs of memory that clients fill with small objects by themselves, without asking for each.
//!
//! A run is a used block of a chunk. Each object that its client announces takes the block's first lines away as a block of its own,
//! so that objects of a run come and go like any others.

use std::collections::VecDeque;

use slab::Slab;

use super::api::{CreditRun, ObjectSource, StoreEffect, StoreError, Urgency};
use super::arena::{Allocation, CHUNK_BYTES};
use super::config::SMALL_ALIGN_BYTES;
use super::machine::Store;
use super::objects::{Backing, NewObject};
use super::report::Tally;
use crate::ids::{ClientId, NowNs, ObjectId, Token, WorkerId};

/// The longest run, in bytes.
pub const CREDIT_RUN_MAX_BYTES: u64 = CHUNK_BYTES;

/// For a run so many times its bytes are evicted at most: evicted objects need not lie side by side.
const EVICT_FACTOR: u64 = 4;

#[derive(Clone, Copy, Debug)]
struct Run {
    client: ClientId,
    /// What is left of it.
    rest: Allocation,
}

/// A [`StoreEvent::GrantCredit`](super::StoreEvent::GrantCredit).
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) client: ClientId,
    pub(super) token: Token,
    pub(super) bytes: u64,
    pub(super) near: u32,
}

/// A [`StoreEvent::Adopt`](super::StoreEvent::Adopt).
#[derive(Clone, Copy, Debug)]
pub(super) struct Adoption {
    pub(super) client: ClientId,
    pub(super) token: Token,
    pub(super) run: u32,
    pub(super) id: ObjectId,
    pub(super) data_bytes: u32,
    pub(super) metadata_bytes: u32,
    pub(super) owner: WorkerId,
    pub(super) keeper: Option<ClientId>,
}

/// The runs of a shard, and the requests for one that wait for the bank's answer.
#[derive(Debug, Default)]
pub(super) struct Credit {
    runs: Slab<Run>,
    wanted: VecDeque<Wanted>,
}

impl Credit {
    /// The memory of all runs.
    pub(super) fn allocations(&self) -> impl Iterator<Item = Allocation> + '_ {
        self.runs.iter().map(|(_, run)| run.rest)
    }

    /// Runs and what is left of them.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.runs.iter().for_each(|(_, run)| tally.add(run.rest.len));
        tally
    }
}

impl Store {
    pub(super) fn want_credit(&mut self, mut wanted: Wanted, now: NowNs, out: &mut Vec<StoreEffect>) {
        if self.credit.wanted.len() >= self.config.max_queued_creates {
            self.counters.queue_full += 1;
            let Wanted { client, token, .. } = wanted;
            let result = Err(StoreError::QueueFull);
            return out.push(StoreEffect::CreditGranted { client, token, result });
        }
        let bytes = wanted.bytes.clamp(SMALL_ALIGN_BYTES, CREDIT_RUN_MAX_BYTES);
        wanted.bytes = bytes / SMALL_ALIGN_BYTES * SMALL_ALIGN_BYTES;
        self.credit.wanted.push_back(wanted);
        self.serve_credit(now, out);
    }

    /// Answers those who want a run, until one has to wait for the bank.
    pub(super) fn serve_credit(&mut self, now: NowNs, out: &mut Vec<StoreEffect>) {
        while let Some(&Wanted { client, token, bytes, near }) = self.credit.wanted.front() {
            // Creates that wait go first at the bank.
            let may_ask = self.queue.is_empty() && !self.link.hold;
            let asks_near = may_ask && self.asks_near(near, bytes, now);
            let mut run = self.arena.alloc_run(bytes, near, !asks_near);
            if run.is_none() && may_ask {
                if self.link.answer_due {
                    return;
                }
                if asks_near {
                    return self.want(1, Urgency::Near, near);
                }
                if now >= self.link.dry_until_ns {
                    return self.want(1, Urgency::Now, near);
                }
                run = self.evict_for_run(bytes, near, out);
            }
            self.credit.wanted.pop_front();
            let result = run.ok_or(StoreError::OutOfMemory).map(|rest| self.open_run(client, rest));
            out.push(StoreEffect::CreditGranted { client, token, result });
        }
    }

    fn evict_for_run(&mut self, bytes: u64, near: u32, out: &mut Vec<StoreEffect>) -> Option<Allocation> {
        let before = self.arena.free_bytes();
        while self.arena.free_bytes() < before + EVICT_FACTOR * bytes && self.evict_one(out) {
            if let Some(run) = self.arena.alloc_run(bytes, near, true) {
                return Some(run);
            }
        }
        None
    }

    fn open_run(&mut self, client: ClientId, rest: Allocation) -> CreditRun {
        self.counters.credit.add(rest.len);
        let segment = self.arena.segment_of(rest.addr);
        let offset_bytes = self.arena.offset_in(segment, rest.addr);
        let run = self.credit.runs.insert(Run { client, rest }) as u32;
        CreditRun { run, segment, offset_bytes, size_bytes: rest.len }
    }

    pub(super) fn adopt(&mut self, adoption: &Adoption, now: NowNs, out: &mut Vec<StoreEffect>) {
        let Adoption { client, token, run, id, owner, .. } = *adoption;
        let (data_bytes, metadata_bytes) = (u64::from(adoption.data_bytes), u64::from(adoption.metadata_bytes));
        let len = (data_bytes + metadata_bytes).max(1).next_multiple_of(SMALL_ALIGN_BYTES);
        let Some(piece) = self.take_from_run(client, run, len) else {
            self.counters.stray_events += 1;
            return out.push(StoreEffect::Adopted { client, token, id, result: Err(StoreError::UnknownRun) });
        };
        if self.objects.find(&id).is_some() || self.is_kept_on_disk(&id) {
            self.arena.free(piece);
            self.freed = true;
            return out.push(StoreEffect::Adopted { client, token, id, result: Err(StoreError::ObjectExists) });
        }
        let source = ObjectSource::CreatedByWorker;
        let slot = self.objects.insert_sealed(NewObject {
            id,
            owner,
            data_bytes,
            metadata_bytes,
            backing: Backing::Arena(piece),
            created_ns: now,
            // Of no meaning for a sealed object.
            creator: 0,
            mutable: false,
            source,
        });
        self.counters.by_source[source as usize].add(data_bytes + metadata_bytes);
        self.counters.created.add(data_bytes + metadata_bytes);
        if let Some(keeper) = adoption.keeper {
            self.begin_keep(keeper, id);
        }
        out.push(StoreEffect::Adopted { client, token, id, result: Ok(()) });
        self.announce(slot, out);
    }

    /// The next `len` bytes of a run; the run ends with its last byte.
    fn take_from_run(&mut self, client: ClientId, number: u32, len: u64) -> Option<Allocation> {
        let run =
            self.credit.runs.get_mut(number as usize).filter(|run| run.client == client && run.rest.len >= len)?;
        let left = &mut self.counters.credit;
        left.bytes -= len;
        if run.rest.len == len {
            left.objects -= 1;
            return Some(self.credit.runs.remove(number as usize).rest);
        }
        Some(self.arena.cut(&mut run.rest, len))
    }

    pub(super) fn return_credit(&mut self, client: ClientId, number: u32) {
        match self.credit.runs.get(number as usize).filter(|run| run.client == client) {
            Some(_) => self.close_run(number as usize),
            None => self.counters.stray_events += 1,
        }
    }

    fn close_run(&mut self, number: usize) {
        let run = self.credit.runs.remove(number);
        self.counters.credit.sub(run.rest.len);
        self.arena.free(run.rest);
        self.freed = true;
    }

    /// The client is gone, and what it has of unused memory with it.
    pub(super) fn drop_credit_of(&mut self, client: ClientId) {
        self.credit.wanted.retain(|wanted| wanted.client != client);
        while let Some((number, _)) = self.credit.runs.iter().find(|(_, run)| run.client == client) {
            self.close_run(number);
        }
    }
}
