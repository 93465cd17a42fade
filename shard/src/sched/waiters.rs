//! Who waits for a resource, found by "the one that has waited longest among those that need no more than this".
//!
//! One treap per resource, ordered by (need, ticket), each node with the smallest ticket below it. So finding whom a freed
//! amount serves costs O(log n) and touches nobody else, with 10 shapes queued or 10,000.

use rustc_hash::FxHashMap;
use slab::Slab;

use super::types::{Fixed, ResourceId};

/// Order of service: smaller waits longer.
pub(crate) type Ticket = u64;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node<K> {
    need: Fixed,
    ticket: Ticket,
    key: K,
    left: u32,
    right: u32,
    heap: u32,
    /// Smallest ticket in this subtree.
    min: Ticket,
}

/// Waiters of all resources.
#[derive(Debug)]
pub(crate) struct Waiters<K> {
    nodes: Slab<Node<K>>,
    roots: FxHashMap<ResourceId, u32>,
    seed: u32,
}

impl<K> Default for Waiters<K> {
    fn default() -> Self {
        Self { nodes: Slab::new(), roots: FxHashMap::default(), seed: 0x9e37_79b9 }
    }
}

impl<K: Copy> Waiters<K> {
    /// Adds a waiter. (need, ticket) must be new for the resource: tickets are unique.
    pub(crate) fn park(&mut self, id: ResourceId, need: Fixed, ticket: Ticket, key: K) {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 17;
        self.seed ^= self.seed << 5;
        let node = Node { need, ticket, key, left: NONE, right: NONE, heap: self.seed, min: ticket };
        let node = self.nodes.insert(node) as u32;
        let root = self.roots.get(&id).copied().unwrap_or(NONE);
        let (left, right) = self.split(root, (need, ticket));
        let left = self.merge(left, node);
        let root = self.merge(left, right);
        self.roots.insert(id, root);
    }

    /// Takes a waiter out. False where it isn't there.
    pub(crate) fn unpark(&mut self, id: ResourceId, need: Fixed, ticket: Ticket) -> bool {
        let Some(root) = self.roots.get(&id).copied() else {
            return false;
        };
        let (left, rest) = self.split(root, (need, ticket));
        let (found, right) = self.split(rest, (need, ticket + 1));
        let root = self.merge(left, right);
        if root == NONE {
            self.roots.remove(&id);
        } else {
            self.roots.insert(id, root);
        }
        if found != NONE {
            self.nodes.remove(found as usize);
        }
        found != NONE
    }

    /// The waiter with the smallest ticket among those that need at most `limit`.
    pub(crate) fn first_fit(&self, id: ResourceId, limit: Fixed) -> Option<(Ticket, K)> {
        let (mut at, mut best) = (*self.roots.get(&id)?, None::<(Ticket, u32, bool)>);
        let better = |best: &Option<(Ticket, u32, bool)>, ticket| best.is_none_or(|(min, _, _)| ticket < min);
        while at != NONE {
            let node = &self.nodes[at as usize];
            if node.need > limit {
                at = node.left;
                continue;
            }
            if better(&best, node.ticket) {
                best = Some((node.ticket, at, false));
            }
            if node.left != NONE && better(&best, self.nodes[node.left as usize].min) {
                best = Some((self.nodes[node.left as usize].min, node.left, true));
            }
            at = node.right;
        }
        let (ticket, mut at, below) = best?;
        while below && self.nodes[at as usize].ticket != ticket {
            let node = &self.nodes[at as usize];
            let in_left = node.left != NONE && self.nodes[node.left as usize].min == ticket;
            at = if in_left { node.left } else { node.right };
        }
        Some((ticket, self.nodes[at as usize].key))
    }

    /// The waiter with the smallest ticket of all.
    pub(crate) fn oldest(&self, id: ResourceId) -> Option<(Ticket, K)> {
        self.first_fit(id, Fixed(i64::MAX))
    }

    /// True where nobody waits for the resource.
    pub(crate) fn is_empty(&self, id: ResourceId) -> bool {
        !self.roots.contains_key(&id)
    }

    /// Waiters in all.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    fn refresh(&mut self, at: u32) {
        let (left, right, mut min) = {
            let node = &self.nodes[at as usize];
            (node.left, node.right, node.ticket)
        };
        for child in [left, right] {
            if child != NONE {
                min = min.min(self.nodes[child as usize].min);
            }
        }
        self.nodes[at as usize].min = min;
    }

    /// Parts a tree into what is below the key and the rest.
    fn split(&mut self, at: u32, key: (Fixed, Ticket)) -> (u32, u32) {
        if at == NONE {
            return (NONE, NONE);
        }
        let (below, left, right) = {
            let node = &self.nodes[at as usize];
            ((node.need, node.ticket) < key, node.left, node.right)
        };
        let parts = if below {
            let (middle, rest) = self.split(right, key);
            self.nodes[at as usize].right = middle;
            (at, rest)
        } else {
            let (rest, middle) = self.split(left, key);
            self.nodes[at as usize].left = middle;
            (rest, at)
        };
        self.refresh(at);
        parts
    }

    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NONE {
            return right;
        }
        if right == NONE {
            return left;
        }
        let top = if self.nodes[left as usize].heap > self.nodes[right as usize].heap {
            let below = self.merge(self.nodes[left as usize].right, right);
            self.nodes[left as usize].right = below;
            left
        } else {
            let below = self.merge(left, self.nodes[right as usize].left);
            self.nodes[right as usize].left = below;
            right
        };
        self.refresh(top);
        top
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const R: ResourceId = ResourceId(1);

    proptest! {
        #[test]
        fn it_finds_what_a_plain_list_finds(steps in proptest::collection::vec((0u8..4, 0i64..20, 0usize..64), 1..300)) {
            let mut waiters = Waiters::default();
            let mut list: Vec<(Fixed, Ticket)> = Vec::new();
            for (ticket, (what, need, at)) in steps.into_iter().enumerate() {
                let (need, ticket) = (Fixed(need), ticket as Ticket);
                if what < 2 {
                    waiters.park(R, need, ticket, ticket);
                    list.push((need, ticket));
                } else if what == 2 && !list.is_empty() {
                    let (need, ticket) = list.remove(at % list.len());
                    prop_assert!(waiters.unpark(R, need, ticket));
                    prop_assert!(!waiters.unpark(R, need, ticket));
                }
                let expected = list.iter().filter(|entry| entry.0 <= need).map(|entry| entry.1).min();
                prop_assert_eq!(waiters.first_fit(R, need).map(|found| found.0), expected);
                prop_assert_eq!(waiters.oldest(R).map(|found| found.1), list.iter().map(|entry| entry.1).min());
                prop_assert_eq!(waiters.len(), list.len());
                prop_assert_eq!(waiters.is_empty(R), list.is_empty());
            }
        }
    }
}
