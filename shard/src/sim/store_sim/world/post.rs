//! Messages between shards and bank: late, in order for each pair, and counted in rounds.
//!
//! A round ends when all has arrived that was under way when it began. So what is sent in one round has arrived when the next one ends.

use std::collections::VecDeque;

use crate::ids::{NowNs, ShardId};
use crate::store::{BankEvent, StoreEvent};

/// A message: when it may arrive, and the round in which it was sent.
type Late<M> = VecDeque<(NowNs, u64, M)>;

pub(super) struct Post {
    to_bank: Vec<Late<BankEvent>>,
    to_shard: Vec<Late<StoreEvent>>,
    round: u64,
    under_way: u64,
    /// Of earlier rounds.
    old: u64,
}

impl Post {
    pub(super) fn new(shards: ShardId) -> Self {
        let shards = usize::from(shards);
        let (to_bank, to_shard) = (vec![VecDeque::new(); shards], vec![VecDeque::new(); shards]);
        Self { to_bank, to_shard, round: 0, under_way: 0, old: 0 }
    }

    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// Begins a round where the last one is over.
    pub(super) fn turn_round(&mut self) {
        if self.old == 0 {
            self.round += 1;
            self.old = self.under_way;
        }
    }

    pub(super) fn tell_shard(&mut self, shard: ShardId, event: StoreEvent, at: NowNs) {
        self.under_way += 1;
        send(&mut self.to_shard[usize::from(shard)], self.round, event, at);
    }

    pub(super) fn tell_bank(&mut self, shard: ShardId, event: BankEvent, at: NowNs) {
        self.under_way += 1;
        send(&mut self.to_bank[usize::from(shard)], self.round, event, at);
    }

    pub(super) fn due_at_shard(&mut self, shard: ShardId, now: NowNs) -> Option<StoreEvent> {
        let (round, event) = due(&mut self.to_shard[usize::from(shard)], now)?;
        self.arrived(round);
        Some(event)
    }

    pub(super) fn due_at_bank(&mut self, shard: ShardId, now: NowNs) -> Option<BankEvent> {
        let (round, event) = due(&mut self.to_bank[usize::from(shard)], now)?;
        self.arrived(round);
        Some(event)
    }

    /// The message that is due first: when, of which shard, and whether it is for that shard or from it.
    pub(super) fn next(&self) -> Option<(NowNs, ShardId, bool)> {
        let to_shards = self.to_shard.iter().enumerate().map(|(shard, late)| (first_due(late), shard, true));
        let to_bank = self.to_bank.iter().enumerate().map(|(shard, late)| (first_due(late), shard, false));
        to_shards.chain(to_bank).filter_map(|(at, shard, down)| Some((at?, shard as ShardId, down))).min()
    }

    fn arrived(&mut self, round: u64) {
        self.under_way -= 1;
        self.old -= u64::from(round < self.round);
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way > 0
    }

    /// All that is under way to shards.
    pub(super) fn for_shards(&self) -> impl Iterator<Item = &StoreEvent> {
        self.to_shard.iter().flatten().map(|(_, _, event)| event)
    }

    /// All that is under way to the bank.
    pub(super) fn for_bank(&self) -> impl Iterator<Item = &BankEvent> {
        self.to_bank.iter().flatten().map(|(_, _, event)| event)
    }
}

fn send<M>(late: &mut Late<M>, round: u64, message: M, at: NowNs) {
    let at = late.back().map_or(0, |(at, _, _)| *at).max(at);
    late.push_back((at, round, message));
}

fn first_due<M>(late: &Late<M>) -> Option<NowNs> {
    late.front().map(|(at, _, _)| *at)
}

fn due<M>(late: &mut Late<M>, now: NowNs) -> Option<(u64, M)> {
    late.front().filter(|(at, _, _)| *at <= now)?;
    late.pop_front().map(|(_, round, message)| (round, message))
}
