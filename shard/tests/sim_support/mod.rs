//! Which run of a simulator is asked for.

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, got {text:?}")))
}

/// The first seed and the number of steps: `RAYLET_SIM_SEED`, else 1, and `RAYLET_SIM_STEPS`, else what is given.
pub fn seed_and_steps(default_steps: u64) -> (u64, u64) {
    (number("RAYLET_SIM_SEED").unwrap_or(1), number("RAYLET_SIM_STEPS").unwrap_or(default_steps))
}
