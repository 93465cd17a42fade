//! Objects lie on the NUMA node of whoever writes them, unless there was no room.

use super::World;
use crate::ids::{NowNs, ShardId};
use crate::store::{SpanBank, StoreEffect, MIN_SPAN_BYTES};

/// Times between two ways of a message that a store's knowledge of the bank may be old: the question and its answer.
const MESSAGES: u64 = 2;

/// When each segment was last short of spans at the bank.
#[derive(Debug)]
pub(super) struct Shortness {
    /// By segment and number of spans: when the bank last had no run of so many, or served others first.
    at: Vec<Vec<Option<NowNs>>>,
}

impl Shortness {
    pub(super) fn new(spans: impl Iterator<Item = u32>) -> Self {
        Self { at: spans.map(|count| vec![None; count as usize + 1]).collect() }
    }

    fn note(&mut self, bank: &SpanBank, now: NowNs) {
        let stats = bank.stats();
        let others_first = stats.standing > 0 || stats.waiting > 0;
        for (segment, at) in self.at.iter_mut().enumerate() {
            let longest = if others_first { 0 } else { bank.longest_run_in(segment as u32) as usize };
            at[longest + 1..].fill(Some(now));
        }
    }

    fn last(&self, segment: u32, spans: u64) -> Option<NowNs> {
        let at = &self.at[segment as usize];
        // What is longer than the segment never fits.
        at.get(spans as usize).copied().unwrap_or(Some(NowNs::MAX))
    }
}

impl World {
    /// To be called before and after the bank changes: what it has holds until then.
    pub(super) fn note_shortness(&mut self) {
        if self.layout.segments().len() > 1 {
            self.shortness.note(self.home.bank(), self.now);
        }
    }

    /// An object that was made far from its writer had no room near it a moment ago.
    pub(super) fn check_nearness(&mut self, shard: ShardId, effect: &StoreEffect) -> Result<(), String> {
        let StoreEffect::Created { token, result: Ok(place), .. } = effect else {
            return Ok(());
        };
        let Some(create) = self.models[usize::from(shard)].creates.get(token) else {
            return Ok(());
        };
        if place.segment == create.near {
            self.report.near += 1;
            return Ok(());
        }
        self.report.far += 1;
        // Who does not wait takes what is there, files lie nowhere, and of late messages nothing is known.
        if !self.prompt || create.immediate || place.segment as usize >= self.layout.segments().len() {
            return Ok(());
        }
        let spans = place.allocated_bytes.div_ceil(MIN_SPAN_BYTES);
        let known_for = self.retry_interval_ns + MESSAGES * self.max_delay_ns;
        match self.shortness.last(create.near, spans) {
            Some(at) if at.saturating_add(known_for) >= self.now => Ok(()),
            last => Err(format!(
                "at {}: {create:?} got {place:?}, though {spans} spans were free near it since {last:?}",
                self.now
            )),
        }
    }
}
