//! Objects on their way between nodes, under a seeded simulator.
//!
//! Two to seven nodes with small stores, in some worlds up to 200, want each other's objects, at times all of them the same. Each pair
//! speaks in one of two ways. In messages: requests, chunks and answers are lost, repeated, spoilt and overtake each other. Or over lanes,
//! on which objects are offered first: they break, and what they were writing and reading goes on for a while; nodes that ask are sent to
//! each other, and hand chunks on that they are still receiving. Owners tell of locations late; nodes die, and what is lost is made again
//! with other bytes; clients hold
//! objects and wait for room. After every step each state machine is sound, the memory of every store adds up, and a
//! sealed object has each of its chunks, from one sender's copy; what is written and read belongs to the object it is meant for. At the end
//! of a world nothing more is lost: then everything that is wanted and somewhere arrives, and nothing stays behind.

mod model;
mod report;
mod world;

use super::store_sim::Failure;
pub use report::Report;
use world::World;

/// Steps of one world; then it is brought to rest, checked, and another one begins.
pub const STEPS_PER_WORLD: u64 = 4_000;

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
