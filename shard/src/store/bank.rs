//! The bank of spans: shares the node's memory out to its shards. It lives on shard 0.
//!
//! Spans are granted from what is free. Where that is not enough, a standing request makes the bank collect: it asks the other
//! shards for empty spans, which they evict for if they must, and whatever comes back goes to the oldest standing request
//! first, so a long run is granted as surely as a short one.
//!
//! Creates that find no room stand in one [line](super::line) on all shards of the node, as in Ray's one queue: while anybody is in it, every
//! create takes a ticket, and only the one that has its turn may have memory. When turns have long been easy, the
//! shortage is over and the line is dissolved, or it would never end where creates keep coming.

use std::collections::VecDeque;

use super::api::{BankEffect, BankEvent, SpanIndex, SpanWish, StoreEvent, Urgency};
use super::config::Layout;
use super::line::{Line, Ticket};
use super::pool::SpanPool;
use crate::ids::{NowNs, ShardId};

/// Nobody holds the span.
const FREE: ShardId = ShardId::MAX;

/// What the bank is built with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BankConfig {
    /// The node's memory.
    pub segments: Layout,
    /// How many shards there are.
    pub shards: ShardId,
    /// How long a standing request waits before the other shards must hold back, in nanoseconds.
    pub hold_after_ns: u64,
    /// So many turns in a row for which memory had to be collected once at most dissolve the line.
    pub easy_turns_max: u32,
}

/// Turns in a row that show that there is memory again.
const EASY_TURNS_MAX: u32 = 64;

impl BankConfig {
    /// A bank that makes shards hold back after 200 ms, a tenth of the grace period after which a create fails.
    pub fn new(segments: Layout, shards: ShardId) -> Self {
        Self { segments, shards, hold_after_ns: 200_000_000, easy_turns_max: EASY_TURNS_MAX }
    }
}

/// A request that waits. At most one per shard, so the queue is bounded by the number of shards.
#[derive(Clone, Copy, Debug)]
struct Standing {
    shard: ShardId,
    wish: SpanWish,
    since: NowNs,
    /// The other shards have been asked on its behalf.
    asked: bool,
    /// They gave something back since then.
    collected: bool,
    /// It has stood for long.
    late: bool,
    /// The shard knows that nothing could be collected so far.
    told: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Shard {
    held: u32,
    /// Answers to [`StoreEvent::ReclaimSpans`] that are still to come.
    reclaims_open: u32,
    /// It has been asked for spans and not been told that it is over.
    in_debt: bool,
}

/// Figures for reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BankStats {
    /// Spans of the node.
    pub spans: u32,
    /// Spans that no shard holds.
    pub free_spans: u32,
    /// Spans that were never held: their pages may not be there yet.
    pub fresh_spans: u32,
    /// Longest free run, in spans.
    pub longest_run: u32,
    /// Shards that wait.
    pub standing: u32,
    /// Creates in the line.
    pub waiting: u32,
    /// Runs granted so far.
    pub grants: u64,
    /// Requests refused so far.
    pub refusals: u64,
    /// Requests to give spans back sent so far.
    pub reclaims: u64,
    /// Messages that made no sense (a span returned by a shard that did not hold it): a bug if not 0.
    pub faults: u64,
}

/// The bank of spans.
#[derive(Debug)]
pub struct SpanBank {
    config: BankConfig,
    pool: SpanPool,
    /// Who holds each span.
    holders: Vec<ShardId>,
    shards: Vec<Shard>,
    standing: VecDeque<Standing>,
    line: Line,
    /// The shards know that creates wait.
    held: bool,
    stats: BankStats,
}

impl SpanBank {
    /// All spans free. `None` where there is no shard or more than [`ShardId`] can count.
    pub fn new(config: BankConfig) -> Option<Self> {
        let shards = usize::from(config.shards);
        if shards == 0 || shards >= usize::from(FREE) {
            return None;
        }
        Some(Self {
            pool: SpanPool::new(&config.segments),
            holders: vec![FREE; config.segments.index_end() as usize],
            shards: vec![Shard::default(); shards],
            standing: VecDeque::with_capacity(shards),
            line: Line::default(),
            held: false,
            stats: BankStats { spans: config.segments.span_count(), ..BankStats::default() },
            config,
        })
    }

    /// How the node's memory is cut.
    pub fn layout(&self) -> &Layout {
        &self.config.segments
    }

    /// Takes one event and appends what it leads to.
    pub fn handle(&mut self, event: BankEvent, now: NowNs, out: &mut Vec<BankEffect>) {
        match event {
            BankEvent::Wanted { shard, wish } => self.wanted(shard, wish, now, out),
            BankEvent::Unwanted { shard } => {
                self.standing.retain(|s| s.shard != shard);
                self.serve(out);
            }
            BankEvent::Returned { shard, first, count } => {
                if self.take_back(shard, first, count) {
                    self.serve(out);
                }
            }
            BankEvent::ReclaimDone { shard, count } => {
                match self.shards.get_mut(usize::from(shard)) {
                    Some(s) if s.reclaims_open > 0 => s.reclaims_open -= 1,
                    _ => self.stats.faults += 1,
                }
                if let Some(first) = self.first_standing() {
                    self.standing[first].collected |= count > 0;
                }
                self.serve(out);
            }
            BankEvent::Queued { shard, since } if usize::from(shard) < self.shards.len() => {
                self.line.push(Ticket { since, shard });
                self.hold(out);
                self.pass_turn(out);
            }
            BankEvent::Queued { .. } => self.stats.faults += 1,
            BankEvent::TurnOver { shard, full_since } => self.turn_over(shard, full_since, out),
            BankEvent::Tick => self.tick(now, out),
        }
    }

    /// When a [`BankEvent::Tick`] is of use next.
    pub fn next_deadline(&self) -> Option<NowNs> {
        let head = self.standing.get(self.first_standing()?).filter(|head| !head.late)?;
        Some(head.since.saturating_add(self.config.hold_after_ns))
    }

    /// Figures for reports.
    pub fn stats(&self) -> BankStats {
        let segments = 0..self.config.segments.segments().len() as u32;
        BankStats {
            free_spans: self.pool.free_count(),
            fresh_spans: segments.map(|s| self.pool.fresh(s).1).sum(),
            longest_run: self.pool.longest(),
            standing: self.standing.len() as u32,
            waiting: self.line.len() as u32,
            ..self.stats
        }
    }

    /// The spans of a segment that were never granted, as (first, count): they are granted in this order, so whoever touches pages
    /// ahead of demand starts at the first.
    pub fn fresh_spans(&self, segment: u32) -> (SpanIndex, u32) {
        self.pool.fresh(segment)
    }

    /// Spans of the longest run of a segment that no shard holds; 0 where nothing is free.
    pub fn longest_run_in(&self, segment: u32) -> u32 {
        self.pool.longest_in(segment)
    }

    /// Who holds a span.
    pub fn holder(&self, span: SpanIndex) -> Option<ShardId> {
        self.holders.get(span as usize).copied().filter(|holder| *holder != FREE)
    }

    /// How many spans a shard holds.
    pub fn held_by(&self, shard: ShardId) -> u32 {
        self.shards.get(usize::from(shard)).map_or(0, |s| s.held)
    }

    fn wanted(&mut self, shard: ShardId, wish: SpanWish, now: NowNs, out: &mut Vec<BankEffect>) {
        if usize::from(shard) >= self.shards.len() || wish.count == 0 {
            self.stats.faults += 1;
            return;
        }
        if wish.urgency >= Urgency::Standing {
            self.stand(shard, wish, now);
            return self.serve(out);
        }
        // What is free is being collected for those who stand, or is for the one who has its turn.
        let in_turn = self.line.turn().is_none_or(|turn| turn == shard);
        let is_free = in_turn && self.standing.iter().all(|s| s.shard == shard);
        if !is_free || !self.grant_now(shard, wish, out) {
            self.refuse(shard, wish, out);
        }
    }

    fn stand(&mut self, shard: ShardId, wish: SpanWish, now: NowNs) {
        let same = |s: &&mut Standing| s.shard == shard && s.wish.count == wish.count && s.wish.urgency == wish.urgency;
        if let Some(same) = self.standing.iter_mut().find(same) {
            // The shard does not know of it any more: its answer is still to come.
            (same.told, same.wish) = (false, wish);
            return;
        }
        self.standing.retain(|s| s.shard != shard);
        let (asked, collected, told, late) = (false, false, false, false);
        self.standing.push_back(Standing { shard, wish, since: now, asked, collected, told, late });
    }

    fn refuse(&mut self, shard: ShardId, wish: SpanWish, out: &mut Vec<BankEffect>) {
        self.stats.refusals += 1;
        out.push(BankEffect { shard, event: StoreEvent::SpansRefused { wish } });
    }

    /// Grants a request that does not stand, or a part of it that is of use; false where there is none.
    fn grant_now(&mut self, shard: ShardId, wish: SpanWish, out: &mut Vec<BankEffect>) -> bool {
        if self.grant(shard, wish, out) {
            return true;
        }
        // A lone shard gets all that is left, for it may hold the spans beside them.
        let lone = self.shards.len() == 1;
        match wish.urgency {
            Urgency::Ahead => self.grant(shard, SpanWish { count: 1, ..wish }, out),
            Urgency::Near => lone && self.grant_rest_of(wish.near, shard, wish, out),
            Urgency::Now | Urgency::Standing | Urgency::Restore => lone && self.grant_rest(shard, wish, out),
        }
    }

    /// Grants a run of the segment that is wished for if there is one, else, unless it is to be of that, of any other.
    fn grant(&mut self, shard: ShardId, wish: SpanWish, out: &mut Vec<BankEffect>) -> bool {
        let first = match wish.urgency {
            Urgency::Near => self.pool.take_in(wish.count, wish.near),
            _ => self.pool.take(wish.count, wish.near),
        };
        first.map(|first| self.hand_over(shard, (first, wish.count), wish.urgency, out)).is_some()
    }

    fn hand_over(
        &mut self,
        shard: ShardId,
        (first, count): (SpanIndex, u32),
        urgency: Urgency,
        out: &mut Vec<BankEffect>,
    ) {
        self.holders[first as usize..(first + count) as usize].fill(shard);
        self.shards[usize::from(shard)].held += count;
        self.stats.grants += 1;
        // Or it would give them back at once.
        self.end_debt(usize::from(shard), out);
        out.push(BankEffect { shard, event: StoreEvent::SpansGranted { first, count, urgency } });
    }

    /// Grants all that is left. False where nothing is.
    fn grant_rest(&mut self, shard: ShardId, wish: SpanWish, out: &mut Vec<BankEffect>) -> bool {
        let mut any = false;
        for segment in 0..self.config.segments.segments().len() as u32 {
            any |= self.grant_rest_of(segment, shard, wish, out);
        }
        any
    }

    /// Grants all that is left of a segment. False where nothing is.
    fn grant_rest_of(&mut self, segment: u32, shard: ShardId, wish: SpanWish, out: &mut Vec<BankEffect>) -> bool {
        let mut any = false;
        loop {
            let count = self.pool.longest_in(segment);
            let Some(first) = (count > 0).then(|| self.pool.take_in(count, segment)).flatten() else {
                return any;
            };
            self.hand_over(shard, (first, count), wish.urgency, out);
            any = true;
        }
    }

    fn take_back(&mut self, shard: ShardId, first: SpanIndex, count: u32) -> bool {
        let range = first as usize..first.saturating_add(count) as usize;
        let held = self.holders.get(range.clone()).is_some_and(|held| held.iter().all(|h| *h == shard));
        if count == 0 || shard == FREE || !held {
            self.stats.faults += 1;
            return false;
        }
        self.holders[range].fill(FREE);
        self.shards[usize::from(shard)].held -= count;
        self.pool.put(first, count);
        true
    }

    /// Grants to those who stand, oldest first, and collects for the first who can't be served.
    fn serve(&mut self, out: &mut Vec<BankEffect>) {
        while let Some(first) = self.first_standing() {
            let Standing { shard, wish, .. } = self.standing[first];
            if !self.grant(shard, wish, out) {
                return self.collect(first, out);
            }
            self.standing.remove(first);
        }
        if self.standing.is_empty() {
            for index in 0..self.shards.len() {
                self.end_debt(index, out);
            }
            if self.line.len() == 0 {
                self.release(out);
            }
        }
    }

    /// Whose request is served next: restores, then the one that has its turn. `None`: nobody's now.
    fn first_standing(&self) -> Option<usize> {
        let restore = self.standing.iter().position(|s| s.wish.urgency == Urgency::Restore);
        restore.or_else(|| match self.line.turn() {
            Some(turn) => self.standing.iter().position(|s| s.shard == turn),
            None => (!self.standing.is_empty()).then_some(0),
        })
    }

    /// All creates that come take tickets from here on. A lone shard has no line: its queue is the order.
    fn hold(&mut self, out: &mut Vec<BankEffect>) {
        if self.shards.len() > 1 && !std::mem::replace(&mut self.held, true) {
            self.tell_all(StoreEvent::Hold { on: true }, out);
        }
    }

    fn release(&mut self, out: &mut Vec<BankEffect>) {
        if std::mem::take(&mut self.held) {
            self.tell_all(StoreEvent::Hold { on: false }, out);
        }
    }

    fn tell_all(&self, event: StoreEvent, out: &mut Vec<BankEffect>) {
        out.extend((0..self.shards.len()).map(|index| BankEffect { shard: index as ShardId, event }));
    }

    /// The first in line has its turn, if nobody has.
    fn pass_turn(&mut self, out: &mut Vec<BankEffect>) {
        if let Some((Ticket { since, shard }, full_since)) = self.line.pass() {
            out.push(BankEffect { shard, event: StoreEvent::Turn { since, full_since } });
            self.serve(out);
        }
    }

    fn turn_over(&mut self, shard: ShardId, full_since: Option<NowNs>, out: &mut Vec<BankEffect>) {
        if !self.line.over(shard, full_since) {
            self.stats.faults += 1;
            return;
        }
        if self.line.easy() >= self.config.easy_turns_max {
            self.line.clear();
            self.release(out);
        }
        self.pass_turn(out);
        self.serve(out);
    }

    fn end_debt(&mut self, index: usize, out: &mut Vec<BankEffect>) {
        if std::mem::take(&mut self.shards[index].in_debt) {
            let event = StoreEvent::ReclaimSpans { count: 0 };
            out.push(BankEffect { shard: index as ShardId, event });
        }
    }

    /// Asks the other shards for the oldest request, again as long as they give something and it is no run yet.
    fn collect(&mut self, first: usize, out: &mut Vec<BankEffect>) {
        let waiting = self.shards.iter().any(|s| s.reclaims_open > 0);
        let head = &mut self.standing[first];
        let Standing { shard, wish, .. } = *head;
        if !head.asked || (!waiting && head.collected) {
            let again = std::mem::replace(&mut head.asked, true);
            head.collected = false;
            if again {
                self.line.is_hard();
            }
            self.ask_others(shard, wish.count, out);
        }
        let waiting = self.shards.iter().any(|s| s.reclaims_open > 0);
        let head = &mut self.standing[first];
        if !waiting && !std::mem::replace(&mut head.told, true) {
            self.line.is_hard();
            self.refuse(shard, wish, out);
        }
    }

    /// Asks all shards but one to give spans back, for a run of `count`.
    fn ask_others(&mut self, head: ShardId, count: u32, out: &mut Vec<BankEffect>) {
        self.end_debt(usize::from(head), out);
        // What is free may be a part of the run: evict for the rest.
        let count = count.saturating_sub(self.pool.longest()).max(1);
        for index in (0..self.shards.len()).filter(|index| *index != usize::from(head)) {
            if self.shards[index].held == 0 {
                self.end_debt(index, out);
                continue;
            }
            let shard = &mut self.shards[index];
            shard.reclaims_open += 1;
            shard.in_debt = true;
            self.stats.reclaims += 1;
            let event = StoreEvent::ReclaimSpans { count };
            out.push(BankEffect { shard: index as ShardId, event });
        }
    }

    fn tick(&mut self, now: NowNs, out: &mut Vec<BankEffect>) {
        let due = self.next_deadline().is_some_and(|due| now >= due);
        let Some(first) = self.first_standing().filter(|_| due) else {
            return;
        };
        let head = &mut self.standing[first];
        head.late = true;
        let (shard, count) = (head.shard, head.wish.count);
        self.hold(out);
        self.ask_others(shard, count, out);
    }

    /// Verifies that every span is held by one shard or free, once, and that the sums are right.
    pub fn check(&self) -> Result<(), String> {
        self.pool.check()?;
        if self.stats.faults > 0 {
            return Err(format!("{} messages made no sense", self.stats.faults));
        }
        let mut free = vec![false; self.holders.len()];
        for (first, count) in self.pool.runs() {
            for span in first..first + count {
                if self.holders[span as usize] != FREE || std::mem::replace(&mut free[span as usize], true) {
                    return Err(format!("span {span} is free twice or held by shard {}", self.holders[span as usize]));
                }
            }
        }
        let held: u32 = self.shards.iter().map(|s| s.held).sum();
        let by_holder = self.holders.iter().filter(|h| **h != FREE).count() as u32;
        if held != by_holder || held + self.pool.free_count() != self.stats.spans {
            let free = self.pool.free_count();
            return Err(format!("{held} spans held ({by_holder} by holder) and {free} free of {}", self.stats.spans));
        }
        Ok(())
    }
}
