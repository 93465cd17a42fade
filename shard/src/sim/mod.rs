//! Seeded simulators: a node's state machines in one thread, with late messages and random clients, checked against a model.

pub mod cluster_sim;
pub mod pull_sim;
pub mod sched_sim;
pub mod store_sim;

use store_sim::Failure;

/// Runs worlds from `seed` on, one after the other with the seeds that follow, for `steps` steps in all, of which each has `per_world` at
/// most; `add` sums up what they report.
fn run_worlds<R: Default>(
    (mut seed, steps): (u64, u64),
    per_world: u64,
    run_world: fn(u64, u64) -> Result<R, Failure>,
    add: fn(&mut R, &R),
) -> Result<R, Failure> {
    let mut report = R::default();
    let mut left = steps;
    while left > 0 {
        let now = left.min(per_world);
        add(&mut report, &run_world(seed, now)?);
        left -= now;
        seed = seed.wrapping_add(1);
    }
    Ok(report)
}
