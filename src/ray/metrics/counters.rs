//! What the control thread counts as it happens.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::observe::metrics::{Buckets, Counter};
use crate::ray::rpc::meter::Meters;

/// Upper bounds in milliseconds of the times from a worker's start to its registration (Ray 2.60:
/// `worker_register_time_ms`).
pub const REGISTER_BOUNDS_MS: [f64; 5] = [1.0, 10.0, 100.0, 1_000.0, 10_000.0];

/// Most names under which ended workers are counted; what comes beyond is counted without its name.
const MAX_EVICTION_NAMES: usize = 1_000;

/// What the control thread counts.
#[derive(Default)]
pub struct NodeCounters {
    /// Worker processes started.
    pub processes_started: Counter,
    /// Leases granted to a worker that had served before.
    pub grants_from_cache: Counter,
    /// Workers not started because the configuration of their job was not here in time.
    pub starts_without_job: Counter,
    /// Workers that did not register in time.
    pub starts_timed_out: Counter,
    /// Lease requests that went to other nodes.
    pub leases_spilled: Counter,
    /// From a worker's start to its registration, in milliseconds.
    pub register_times_ms: Buckets<{ REGISTER_BOUNDS_MS.len() + 1 }>,
    /// Calls of the node's gRPC servers.
    pub meters: Meters,
    evictions: RefCell<BTreeMap<Eviction, Rc<Counter>>>,
}

/// Workers ended for want of memory that were of one kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Eviction {
    /// What they were, in the words of Ray 2.60: `MemoryManager.TaskEviction.Total` and the like.
    pub kind: &'static str,
    /// Name of the task or actor; empty for idle workers.
    pub name: String,
}

impl NodeCounters {
    /// A worker was ended because memory ran short.
    pub fn evicted(&self, mut eviction: Eviction) {
        let mut evictions = self.evictions.borrow_mut();
        if evictions.len() >= MAX_EVICTION_NAMES && !evictions.contains_key(&eviction) {
            eviction.name.clear();
        }
        evictions.entry(eviction).or_default().add_one();
    }

    /// The kinds of ended workers, with their counts.
    pub fn evictions(&self) -> Vec<(Eviction, Rc<Counter>)> {
        self.evictions.borrow().iter().map(|(eviction, counter)| (eviction.clone(), counter.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evictions_are_counted_by_name_up_to_a_bound() {
        let counters = NodeCounters::default();
        let of = |n: usize| Eviction { kind: "MemoryManager.TaskEviction.Total", name: format!("f{n}") };
        (0..MAX_EVICTION_NAMES + 5).for_each(|n| counters.evicted(of(n)));
        counters.evicted(of(0));
        let evictions = counters.evictions();
        assert_eq!(evictions.len(), MAX_EVICTION_NAMES + 1);
        let total = |name: &str| evictions.iter().find(|(e, _)| e.name == name).map(|(_, count)| count.total());
        assert_eq!((total("f0"), total("f1"), total("")), (Some(2), Some(1), Some(5)));
    }
}
