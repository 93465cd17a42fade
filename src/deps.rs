//! The objects that queued leases of a core wait for.

use raylet_shard::ids::{LeaseId, ObjectId, ShardId, Token};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::bridge::Requester;

/// Set in the local part of a token that stands for a dependency; a connection's wait has it clear.
const DEPENDENCY_BIT: u64 = 1 << 47;

/// Which object of which lease each watch stands for. Bounded by the leases that the scheduler queues.
#[derive(Debug, Default)]
pub struct LeaseDeps {
    watches: FxHashMap<Token, (LeaseId, ObjectId)>,
    leases: FxHashMap<LeaseId, SmallVec<[Token; 2]>>,
    next: u64,
}

impl LeaseDeps {
    /// Notes that `lease` waits for `object`; the token goes with the watch.
    pub fn watch(&mut self, shard: ShardId, lease: LeaseId, object: ObjectId) -> Token {
        self.next = (self.next + 1) % DEPENDENCY_BIT;
        let token = Requester::Shard(shard).tag(DEPENDENCY_BIT | self.next);
        self.watches.insert(token, (lease, object));
        self.leases.entry(lease).or_default().push(token);
        token
    }

    /// True where the token stands for a dependency.
    pub fn is_dependency(token: Token) -> bool {
        Requester::local(token) & DEPENDENCY_BIT != 0
    }

    /// The object is there: who waited for it. `None` when the lease waits no longer.
    pub fn ready(&mut self, token: Token) -> Option<LeaseId> {
        let (lease, _) = self.watches.remove(&token)?;
        if let Some(tokens) = self.leases.get_mut(&lease) {
            tokens.retain(|t| *t != token);
            if tokens.is_empty() {
                self.leases.remove(&lease);
            }
        }
        Some(lease)
    }

    /// What a lease still waits for.
    pub fn missing(&self, lease: &LeaseId) -> Vec<ObjectId> {
        let tokens = self.leases.get(lease).map(|tokens| &tokens[..]).unwrap_or_default();
        tokens.iter().filter_map(|token| self.watches.get(token).map(|(_, object)| *object)).collect()
    }

    /// The lease waits no longer: the watches to take back.
    pub fn unwatch(&mut self, lease: LeaseId) -> SmallVec<[(Token, ObjectId); 2]> {
        let tokens = self.leases.remove(&lease).unwrap_or_default();
        let ended = tokens.iter().filter_map(|token| Some((*token, self.watches.remove(token)?.1)));
        ended.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_left_takes_its_watches_along() {
        let mut deps = LeaseDeps::default();
        let (lease, object) = (LeaseId([1; 32]), ObjectId([2; 28]));
        let first = deps.watch(3, lease, object);
        let second = deps.watch(3, lease, ObjectId([3; 28]));
        assert!(LeaseDeps::is_dependency(first));
        assert_eq!(Requester::of(first), Requester::Shard(3));
        assert_eq!(deps.missing(&lease), [object, ObjectId([3; 28])]);
        assert_eq!(deps.ready(first), Some(lease));
        assert_eq!(deps.missing(&lease), [ObjectId([3; 28])]);
        assert_eq!(deps.unwatch(lease).as_slice(), [(second, ObjectId([3; 28]))]);
        assert_eq!(deps.ready(second), None);
        assert!(deps.watches.is_empty() && deps.leases.is_empty());
    }
}
