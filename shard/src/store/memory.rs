//! The shard that the bank lives on: its store reaches the bank without a message. On a node of one shard that is all there is.

use super::api::{BankEffect, BankEvent, StoreEffect, StoreEvent};
use super::bank::SpanBank;
use super::machine::Store;
use crate::ids::{NowNs, ShardId};

/// A store and the bank beside it.
#[derive(Debug)]
pub struct NodeMemory {
    store: Store,
    bank: SpanBank,
    shard: ShardId,
    answers: Vec<BankEffect>,
}

impl NodeMemory {
    /// Puts shard `shard`'s store and the node's bank together.
    pub fn new(store: Store, bank: SpanBank, shard: ShardId) -> Self {
        Self { store, bank, shard, answers: Vec::new() }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The bank.
    pub fn bank(&self) -> &SpanBank {
        &self.bank
    }

    /// [`Store::handle`], with the bank answering at once. `others` gets what the bank tells the other shards.
    pub fn handle(&mut self, event: StoreEvent, now: NowNs, out: &mut Vec<StoreEffect>, others: &mut Vec<BankEffect>) {
        self.store.step(event, now, out);
        self.settle(now, out, others);
    }

    /// Takes a message from another shard to the bank (or a tick).
    pub fn handle_bank(
        &mut self,
        event: BankEvent,
        now: NowNs,
        out: &mut Vec<StoreEffect>,
        others: &mut Vec<BankEffect>,
    ) {
        self.bank.handle(event, now, &mut self.answers);
        self.deliver(now, out, others);
        self.settle(now, out, others);
    }

    /// When a [`StoreEvent::Tick`] to the store or a [`BankEvent::Tick`] to the bank is of use next.
    pub fn next_deadline(&self) -> Option<NowNs> {
        [self.store.next_deadline(), self.bank.next_deadline()].into_iter().flatten().min()
    }

    fn settle(&mut self, now: NowNs, out: &mut Vec<StoreEffect>, others: &mut Vec<BankEffect>) {
        while let Some(effect) = self.store.to_bank.pop_front() {
            if let Some(event) = effect.for_bank(self.shard) {
                self.bank.handle(event, now, &mut self.answers);
            }
            self.deliver(now, out, others);
        }
    }

    fn deliver(&mut self, now: NowNs, out: &mut Vec<StoreEffect>, others: &mut Vec<BankEffect>) {
        for answer in self.answers.drain(..) {
            if answer.shard == self.shard {
                self.store.step(answer.event, now, out);
            } else {
                others.push(answer);
            }
        }
    }

    /// Verifies the invariants of both, and that they agree about the spans of this shard.
    pub fn check(&self) -> Result<(), String> {
        self.store.check()?;
        self.bank.check()?;
        let (held, granted) = (self.store.stats().held_spans, self.bank.held_by(self.shard));
        if held != granted {
            return Err(format!("the store holds {held} spans, the bank granted {granted}"));
        }
        Ok(())
    }
}
