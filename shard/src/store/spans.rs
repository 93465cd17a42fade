//! A shard's dealings with the bank of spans: asking, giving back, being asked.

use super::api::{SpanIndex, SpanWish, StoreEffect, Urgency};
use super::machine::Store;
use crate::ids::NowNs;

/// What a store knows about its requests to the bank, and about how long it has been full.
#[derive(Debug, Default)]
pub(super) struct BankLink {
    /// A request that is answered at once (not a standing one) is on its way.
    pub(super) answer_due: bool,
    /// By segment: the bank had no run of so many spans of it, so it isn't asked for one as long before this.
    near_dry: Vec<(NowNs, u32)>,
    /// The segment that was last short of memory: what is asked for ahead should be of it.
    short: Option<u32>,
    /// The standing request: how many spans, and of which segment they should be.
    pub(super) standing: Option<(u32, u32)>,
    /// The bank has collected for it in vain.
    refused: bool,
    /// The bank had nothing, so it isn't asked before this.
    pub(super) dry_until_ns: NowNs,
    /// Another shard waits for spans: every one is given back as it becomes empty.
    owing: bool,
    /// How much of that is still to be given, in bytes.
    pub(super) owed_bytes: u64,
    /// Another shard has waited too long: start no new objects.
    pub(super) hold: bool,
    /// Since when no create has succeeded, of those that found no room.
    pub(super) full_since: Option<NowNs>,
    /// When the queue is looked at again.
    pub(super) next_retry_ns: NowNs,
    pub(super) last_gc_ns: Option<NowNs>,
}

impl BankLink {
    pub(super) fn new(segments: usize) -> Self {
        Self { near_dry: vec![(0, 0); segments], ..Self::default() }
    }

    /// The bank has collected in vain for a standing request of this length.
    pub(super) fn standing_refused(&self, spans: u32) -> bool {
        self.refused && self.stands_for(spans)
    }

    fn stands_for(&self, spans: u32) -> bool {
        self.standing.is_some_and(|(count, _)| count == spans)
    }
}

impl Store {
    /// The segment that a hint means.
    pub(super) fn near(&self, hint: Option<u32>) -> u32 {
        let last = self.link.near_dry.len() as u32 - 1;
        hint.unwrap_or(self.config.home_segment).min(last)
    }

    /// The bank is worth a question for so many bytes of this segment before those of another are taken. Never where there is only
    /// one segment.
    pub(super) fn asks_near(&self, near: u32, bytes: u64, now: NowNs) -> bool {
        if self.link.near_dry.len() == 1 {
            return false;
        }
        let spans = self.arena.spans_for(bytes);
        let (until, dry_spans) = self.link.near_dry[near as usize];
        // The bank looks there first for a standing request too.
        self.link.standing != Some((spans, near)) && (now >= until || spans < dry_spans)
    }

    pub(super) fn want(&mut self, count: u32, urgency: Urgency, near: u32) {
        self.link.answer_due = true;
        if urgency != Urgency::Ahead {
            self.link.short = Some(near);
        }
        self.to_bank.push_back(StoreEffect::SpansWanted { wish: SpanWish { count, urgency, near } });
    }

    /// Stands in the bank's queue, if the store does not already. A shard that shares the memory with others first gives back the empty
    /// spans that it has: they may be what the run lacks.
    pub(super) fn stand(&mut self, count: u32, near: u32) {
        if self.config.spans_kept < u32::MAX {
            self.give_back(u32::MAX);
        }
        if self.link.standing != Some((count, near)) {
            self.link.standing = Some((count, near));
            self.link.refused = false;
            let wish = SpanWish { count, urgency: Urgency::Standing, near };
            self.to_bank.push_back(StoreEffect::SpansWanted { wish });
        }
    }

    /// Stands no longer.
    pub(super) fn withdraw(&mut self) {
        if self.link.standing.take().is_some() {
            self.to_bank.push_back(StoreEffect::SpansUnwanted);
        }
    }

    pub(super) fn granted(
        &mut self,
        (first, count): (SpanIndex, u32),
        urgency: Urgency,
        now: NowNs,
        out: &mut Vec<StoreEffect>,
    ) {
        match urgency {
            Urgency::Standing if self.link.stands_for(count) => self.link.standing = None,
            // Withdrawn meanwhile.
            Urgency::Standing => {}
            Urgency::Ahead | Urgency::Near | Urgency::Now => self.link.answer_due = false,
        }
        self.link.dry_until_ns = 0;
        self.arena.grant(first, count);
        self.run_queue(now, out);
        self.serve_credit(now, out);
    }

    pub(super) fn refused(&mut self, wish: SpanWish, now: NowNs, out: &mut Vec<StoreEffect>) {
        let until = now.saturating_add(self.config.retry_interval_ns);
        if let Some(dry) = self.link.near_dry.get_mut(wish.near as usize) {
            *dry = (until, wish.count);
        }
        if wish.urgency != Urgency::Near {
            self.link.dry_until_ns = until;
        }
        match wish.urgency {
            Urgency::Standing => self.link.refused |= self.link.stands_for(wish.count),
            Urgency::Ahead | Urgency::Near | Urgency::Now => self.link.answer_due = false,
        }
        self.run_queue(now, out);
        self.serve_credit(now, out);
    }

    pub(super) fn reclaim(&mut self, count: u32, hold: bool, now: NowNs, out: &mut Vec<StoreEffect>) {
        self.link.hold = hold;
        self.link.owing = count > 0;
        self.link.owed_bytes = u64::from(count) * self.arena.layout().span_bytes();
        if hold {
            // A create that may not be served does not run out of time.
            self.link.full_since = None;
        }
        if count > 0 {
            let mut given = self.give_back(u32::MAX);
            while given < count && self.evict_one(out) {
                given += self.give_back(u32::MAX);
            }
            self.to_bank.push_back(StoreEffect::ReclaimDone { count: given });
        }
        self.run_queue(now, out);
    }

    /// Gives up to `most` empty spans back; how many.
    fn give_back(&mut self, most: u32) -> u32 {
        let (mut given, span_bytes) = (0, self.arena.layout().span_bytes());
        while given < most {
            let Some((first, count)) = self.arena.take_run(most - given) else {
                break;
            };
            self.to_bank.push_back(StoreEffect::SpansReturned { first, count });
            given += count;
            self.link.owed_bytes = self.link.owed_bytes.saturating_sub(u64::from(count) * span_bytes);
        }
        given
    }

    /// Something has become evictable: some of it goes, if another shard waits for spans.
    pub(super) fn pay_with_evictions(&mut self, out: &mut Vec<StoreEffect>) {
        while self.link.owing && self.link.owed_bytes > 0 && self.evict_one(out) {
            self.pay_debt();
        }
    }

    /// Gives back what has become empty, if another shard waits for it.
    pub(super) fn pay_debt(&mut self) {
        if self.link.owing && self.arena.empty_spans() > 0 {
            self.give_back(u32::MAX);
        }
    }

    /// After every event: pays what is owed, serves the queue if memory came free, and keeps the reserve in its bounds.
    pub(super) fn settle_memory(&mut self, now: NowNs, out: &mut Vec<StoreEffect>) {
        self.pay_debt();
        if self.freed && !self.queue.is_empty() {
            self.run_queue(now, out);
        }
        self.freed = false;
        if !self.queue.is_empty() {
            return;
        }
        let empty = self.arena.empty_spans();
        if empty > self.config.spans_kept {
            self.give_back(empty - self.config.spans_kept);
        } else if empty < self.config.spans_ahead && !self.link.answer_due && now >= self.link.dry_until_ns {
            let near = self.near(self.link.short);
            self.want(self.config.spans_ahead - empty, Urgency::Ahead, near);
        }
    }
}
