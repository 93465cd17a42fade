//! The schedulers of a node and their bank under a seeded simulator.
//!
//! One to four shards do what random owners, workers and a random control plane ask; messages between shards are late, but in
//! order for each pair. A model follows every event and every effect: each request is answered exactly once, a worker serves
//! one lease, no instance of a resource is given twice, and what the node has is always free, leased or set aside somewhere.
//! At the end of a world leases are returned until everything that can be granted was.

mod model;
mod rest;
mod world;

pub use world::Report;
use world::World;

use super::store_sim::Failure;

/// Steps of one world; then it is brought to rest, checked, and another one begins.
pub const STEPS_PER_WORLD: u64 = 5_000;

/// Runs worlds from `seed` on, one after the other with the seeds that follow, for `steps` steps in all.
pub fn run(seed: u64, steps: u64) -> Result<Report, Failure> {
    super::run_worlds((seed, steps), STEPS_PER_WORLD, run_world, Report::add)
}

/// Runs the world of one seed.
pub fn run_world(seed: u64, steps: u64) -> Result<Report, Failure> {
    let mut world = World::new(seed);
    let run = (0..steps).try_for_each(|_| world.step()).and_then(|()| world.rest());
    let step = world.steps();
    run.map_err(|what| Failure { seed, step, what })?;
    Ok(world.into_report())
}
