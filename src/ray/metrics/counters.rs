//! What the control thread counts as it happens.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::observe::metrics::{Buckets, Counter};
use crate::ray::registry::Member;
use crate::ray::rpc::meter::Meters;

/// Upper bounds in milliseconds of the times from a worker's start to its registration (Ray 2.60:
/// `worker_register_time_ms`).
pub const REGISTER_BOUNDS_MS: [f64; 5] = [1.0, 10.0, 100.0, 1_000.0, 10_000.0];

/// Most names under which lost workers are counted; what comes beyond is counted without its name.
const MAX_LOSS_NAMES: usize = 1_000;

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
    /// Workers ended because the node ran short of memory.
    pub evictions: Losses,
    /// Workers that ended without having been meant to.
    pub failures: Losses,
}

/// What a lost worker did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occupation {
    /// It was an actor.
    Actor,
    /// It ran tasks.
    Task,
    /// It was a driver.
    Driver,
    /// Nothing.
    Idle,
}

impl Occupation {
    /// What a registered worker or driver does.
    pub fn of(member: &Member) -> Self {
        if member.is_driver() {
            return Self::Driver;
        }
        let works = member.lease.is_some() || member.broke_in.is_some();
        match member.actor {
            Some(_) => Self::Actor,
            None if works => Self::Task,
            None => Self::Idle,
        }
    }
}

/// Workers that were lost, by what they did and the name of the task or actor.
#[derive(Debug, Default)]
pub struct Losses(RefCell<BTreeMap<(Occupation, String), Rc<Counter>>>);

impl Losses {
    /// Counts one; `name` is that of its task or actor, empty for an idle worker.
    pub fn add(&self, occupation: Occupation, mut name: String) {
        let mut losses = self.0.borrow_mut();
        if losses.len() >= MAX_LOSS_NAMES && !losses.contains_key(&(occupation, name.clone())) {
            name.clear();
        }
        losses.entry((occupation, name)).or_default().add_one();
    }

    /// All that there were.
    pub fn counts(&self) -> Vec<((Occupation, String), Rc<Counter>)> {
        self.0.borrow().iter().map(|(loss, counter)| (loss.clone(), counter.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_counted_by_name_up_to_a_bound() {
        let losses = Losses::default();
        (0..MAX_LOSS_NAMES + 5).for_each(|n| losses.add(Occupation::Task, format!("f{n}")));
        losses.add(Occupation::Task, "f0".to_owned());
        let counts = losses.counts();
        assert_eq!(counts.len(), MAX_LOSS_NAMES + 1);
        let total = |name: &str| counts.iter().find(|((_, n), _)| n == name).map(|(_, count)| count.total());
        assert_eq!((total("f0"), total("f1"), total("")), (Some(2), Some(1), Some(5)));
    }
}
