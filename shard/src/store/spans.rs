//! A shard's dealings with the bank of spans: asking, giving back, being asked.

use super::api::{SpanIndex, SpanWish, StoreEffect, Urgency};
use super::machine::Store;
use super::queue::Create;
use super::spill::RESTORER;
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
    /// The standing request.
    pub(super) standing: Option<SpanWish>,
    /// The bank has collected for it in vain.
    refused: bool,
    /// The bank had nothing, so it isn't asked before this.
    pub(super) dry_until_ns: NowNs,
    /// Another shard waits for spans: every one is given back as it becomes empty.
    owing: bool,
    /// How much of that is still to be given, in bytes.
    pub(super) owed_bytes: u64,
    /// Creates wait on the node: those that come wait behind them.
    pub(super) hold: bool,
    /// The creates that wait here have their tickets.
    pub(super) lined: bool,
    /// The create that has waited since then has its turn.
    pub(super) turn: Option<NowNs>,
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
        self.refused && self.standing.is_some_and(|wish| wish.count == spans)
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
        let stands = self.link.standing.is_some_and(|wish| (wish.count, wish.near) == (spans, near));
        !stands && (now >= until || spans < dry_spans)
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
    pub(super) fn stand(&mut self, wish: SpanWish) {
        if !self.is_alone() {
            self.give_back(u32::MAX);
        }
        if self.link.standing != Some(wish) {
            self.link.standing = Some(wish);
            self.link.refused = false;
            self.to_bank.push_back(StoreEffect::SpansWanted { wish });
        }
    }

    /// No other shard shares the memory.
    pub(super) fn is_alone(&self) -> bool {
        self.config.spans_kept == u32::MAX
    }

    /// Whether the first in the queue may have memory now.
    pub(super) fn may_serve(&self, create: &Create) -> bool {
        let in_line = self.link.hold || self.link.lined;
        create.client == RESTORER || create.try_immediately || !in_line || self.link.turn.is_some()
    }

    /// Takes tickets for all creates that wait here, unless they have them.
    pub(super) fn line_up(&mut self) {
        if self.is_alone() || std::mem::replace(&mut self.link.lined, true) {
            return;
        }
        for Create { since, .. } in self.queue.creates() {
            self.to_bank.push_back(StoreEffect::CreateQueued { since: *since });
        }
    }

    /// The turn ends, if this shard has it.
    pub(super) fn end_turn(&mut self) {
        if self.link.turn.take().is_some() {
            self.to_bank.push_back(StoreEffect::TurnOver { full_since: self.link.full_since });
        }
    }

    /// A create has left the queue: if it was its turn, that is over.
    pub(super) fn left(&mut self, create: &Create) {
        if create.client != RESTORER && self.link.turn.is_some_and(|since| create.since >= since) {
            self.end_turn();
        }
    }

    /// What changes in the line when creates have left it: the one that has its turn may be among them.
    pub(super) fn look_at_line(&mut self) {
        let first = self.queue.first_create().map(|create| create.since);
        self.link.lined &= first.is_some();
        if self.link.turn.is_some_and(|since| first.is_none_or(|first| first > since)) {
            self.end_turn();
        }
    }

    /// Creates wait on the node, or none does any more.
    pub(super) fn held(&mut self, on: bool, now: NowNs, out: &mut Vec<StoreEffect>) {
        self.link.hold = on;
        self.link.lined &= on;
        if on && self.link.turn.is_none() {
            // A create that may not be served does not run out of time.
            self.link.full_since = None;
        }
        self.run_queue(now, out);
        self.serve_credit(now, out);
    }

    /// The first create here is the first of the node.
    pub(super) fn turn(&mut self, since: NowNs, full_since: Option<NowNs>, now: NowNs, out: &mut Vec<StoreEffect>) {
        self.link.turn = Some(since);
        self.link.full_since = full_since;
        self.run_queue(now, out);
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
            Urgency::Standing | Urgency::Restore => {
                // Another may stand by now, or none.
                self.link.standing = self.link.standing.filter(|wish| (wish.count, wish.urgency) != (count, urgency));
            }
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
            Urgency::Standing | Urgency::Restore => self.link.refused |= self.link.standing == Some(wish),
            Urgency::Ahead | Urgency::Near | Urgency::Now => self.link.answer_due = false,
        }
        self.run_queue(now, out);
        self.serve_credit(now, out);
    }

    pub(super) fn reclaim(&mut self, count: u32, now: NowNs, out: &mut Vec<StoreEffect>) {
        self.link.owing = count > 0;
        self.link.owed_bytes = u64::from(count) * self.arena.layout().span_bytes();
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
