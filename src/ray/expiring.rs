//! What is remembered of leases for a while: by the control thread and by the desks of the cores.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use raylet_shard::ids::LeaseId;
use rustc_hash::FxHashMap;

/// Most leases remembered as cancelled before they were asked for (Ray 2.60: `max_cancelled_lease_tombstones`).
pub const MAX_TOMBSTONES: usize = 100_000;

/// Entries that are forgotten after a time, the oldest first where there are too many.
pub struct Expiring<T> {
    entries: FxHashMap<LeaseId, T>,
    order: VecDeque<(Instant, LeaseId)>,
}

impl<T> Default for Expiring<T> {
    fn default() -> Self {
        Self { entries: FxHashMap::default(), order: VecDeque::new() }
    }
}

impl<T> Expiring<T> {
    /// Keeps an entry for so long; past `most`, the oldest goes.
    pub fn insert(&mut self, lease: LeaseId, value: T, ttl: Duration, most: usize) {
        if self.entries.insert(lease, value).is_none() {
            self.order.push_back((Instant::now() + ttl, lease));
        }
        while self.order.len() > most {
            if let Some((_, oldest)) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }

    /// The entry of a lease.
    pub fn get(&self, lease: &LeaseId) -> Option<&T> {
        self.entries.get(lease)
    }

    /// True while a lease has an entry.
    pub fn has(&self, lease: &LeaseId) -> bool {
        !self.entries.is_empty() && self.entries.contains_key(lease)
    }

    /// Forgets what is due.
    pub fn expire(&mut self) {
        let now = Instant::now();
        while let Some((_, lease)) = self.order.front().filter(|(at, _)| *at <= now) {
            self.entries.remove(lease);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_entries_go_first_and_expired_ones_go_all() {
        let mut entries = Expiring::default();
        for n in 0..5u8 {
            entries.insert(LeaseId([n; 32]), n, Duration::ZERO, 3);
        }
        assert!(!entries.has(&LeaseId([0; 32])));
        assert_eq!(entries.get(&LeaseId([4; 32])), Some(&4));
        entries.expire();
        assert!(entries.entries.is_empty() && entries.order.is_empty());
    }
}
