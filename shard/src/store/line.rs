//! The node's one order of creates that wait: tickets by when each began to wait, and whose turn it is.
//!
//! A lone shard needs none of this: its own queue is the order. Where several share the memory, a create that finds no room takes a
//! ticket, and as long as there is one, so does every create that comes. One ticket at a time has its turn.

use std::collections::BTreeSet;

use crate::ids::{NowNs, ShardId};

/// One create that waits: its shard, and since when it does, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    pub(super) since: NowNs,
    pub(super) shard: ShardId,
}

/// The line. A shard has no more creates waiting than [`StoreConfig::max_queued_creates`](super::StoreConfig::max_queued_creates), which bounds it.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// In order; the number tells those of one shard and one moment apart.
    waiting: BTreeSet<(Ticket, u64)>,
    next: u64,
    turn: Option<Ticket>,
    /// In this turn memory had to be collected more than once.
    hard: bool,
    /// Turns in a row that were not hard.
    easy: u32,
    /// Since when no create has succeeded, of those that found no room.
    full_since: Option<NowNs>,
}

impl Line {
    pub(super) fn push(&mut self, ticket: Ticket) {
        self.waiting.insert((ticket, self.next));
        self.next += 1;
    }

    /// How many wait, with the one that has its turn.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.turn.is_some())
    }

    /// The shard that has its turn.
    pub(super) fn turn(&self) -> Option<ShardId> {
        self.turn.map(|ticket| ticket.shard)
    }

    /// Gives the first its turn, if nobody has one: its ticket, and since when no create has succeeded.
    pub(super) fn pass(&mut self) -> Option<(Ticket, Option<NowNs>)> {
        if self.turn.is_some() {
            return None;
        }
        self.turn = self.waiting.pop_first().map(|(ticket, _)| ticket);
        self.turn.map(|ticket| (ticket, self.full_since))
    }

    /// There is too little memory for the one that has its turn.
    pub(super) fn is_hard(&mut self) {
        self.hard = true;
    }

    /// A shard's turn is over; false where it had none. How many in a row were easy is [`Line::easy`].
    pub(super) fn over(&mut self, shard: ShardId, full_since: Option<NowNs>) -> bool {
        if self.turn() != Some(shard) {
            return false;
        }
        self.turn = None;
        self.full_since = full_since;
        self.easy = if std::mem::take(&mut self.hard) { 0 } else { self.easy.saturating_add(1) };
        true
    }

    /// Turns in a row for which memory had to be collected once at most.
    pub(super) fn easy(&self) -> u32 {
        self.easy
    }

    /// All tickets are void.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.easy = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(since: NowNs, shard: ShardId) -> Ticket {
        Ticket { since, shard }
    }

    #[test]
    fn the_oldest_has_its_turn_first_whoever_came_first_to_the_bank() {
        let mut line = Line::default();
        assert_eq!(line.pass(), None);
        for (since, shard) in [(30, 0), (10, 2), (20, 1), (20, 1)] {
            line.push(ticket(since, shard));
        }
        assert_eq!(line.pass(), Some((ticket(10, 2), None)));
        assert_eq!((line.pass(), line.turn(), line.len()), (None, Some(2), 4), "one at a time");
        assert!(!line.over(1, None), "it is not its turn");
        assert!(line.over(2, Some(7)));
        assert_eq!(line.pass(), Some((ticket(20, 1), Some(7))), "the next hears since when nothing went");
        assert!(line.over(1, None));
        assert_eq!(line.pass(), Some((ticket(20, 1), None)));
        assert!(line.over(1, None));
        assert_eq!(line.pass(), Some((ticket(30, 0), None)));
    }

    #[test]
    fn easy_turns_are_counted_in_a_row() {
        let mut line = Line::default();
        for hard in [false, false, true, false] {
            line.push(ticket(1, 0));
            line.pass();
            if hard {
                line.is_hard();
            }
            line.over(0, None);
        }
        assert_eq!(line.easy(), 1);
        line.push(ticket(1, 0));
        line.clear();
        assert_eq!((line.easy(), line.len()), (0, 0));
    }
}
