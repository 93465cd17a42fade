//! The stores of a node and their bank of spans under a seeded simulator.
//!
//! One to four shards do what random clients ask; messages between shards and bank are late, but in order for each pair. A model
//! follows every event and every effect and says what must be true: which answer each request gets, which bytes belong to
//! which object, which spans to which shard, and that nothing is lost. A seed replays exactly.

mod disk;
mod model;
mod world;

use std::fmt;

pub use world::Report;
use world::World;

/// Random numbers that depend on the seed alone (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(end)) >> 64) as u64
    }

    /// True this many times in a thousand.
    pub fn permille(&mut self, chance: u64) -> bool {
        self.below(1000) < chance
    }
}

/// What went wrong, and how to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Seed of the world.
    pub seed: u64,
    /// Step in that world.
    pub step: u64,
    /// What was not as it should be.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} step {}: {}", self.seed, self.step, self.what)
    }
}

/// Steps of one world; then it is cleared, checked for leaks, and another one begins.
pub const STEPS_PER_WORLD: u64 = 20_000;

/// Runs worlds from `seed` on, one after the other with the seeds that follow, for `steps` steps in all.
pub fn run(seed: u64, steps: u64) -> Result<Report, Failure> {
    super::run_worlds((seed, steps), STEPS_PER_WORLD, run_world, Report::add)
}

/// Runs the world of one seed.
pub fn run_world(seed: u64, steps: u64) -> Result<Report, Failure> {
    let mut world = World::new(seed);
    for step in 0..steps {
        world.step().map_err(|what| Failure { seed, step, what })?;
    }
    world.finish().map_err(|what| Failure { seed, step: steps, what })
}
