//! The stores of a node and their bank under the seeded simulator.
//!
//! `RAYLET_SIM_SEED` and `RAYLET_SIM_STEPS` choose another run; a failure prints the seed of the world that showed it.

mod sim_support;

use raylet_shard::sim::store_sim::{run, run_world, STEPS_PER_WORLD};

/// Steps without `RAYLET_SIM_STEPS`: seconds with optimisation.
const DEFAULT_STEPS: u64 = if cfg!(debug_assertions) { 500_000 } else { 5_000_000 };

#[test]
fn no_object_and_no_span_is_lost_or_shared_whatever_clients_do() {
    let (seed, steps) = sim_support::seed_and_steps(DEFAULT_STEPS);
    let began = std::time::Instant::now();
    let report = run(seed, steps).unwrap_or_else(|failure| {
        panic!("{failure}\nagain with RAYLET_SIM_SEED={} RAYLET_SIM_STEPS={STEPS_PER_WORLD}", failure.seed)
    });
    let rate = report.steps as f64 / began.elapsed().as_secs_f64() / 1e6;
    println!("seed {seed}: {report:?}, {rate:.2} M steps/s");
    // A run that never came near the limits proves nothing.
    let tried = [
        report.made,
        report.near,
        report.far,
        report.adopted,
        report.evicted,
        report.refused,
        report.grants,
        report.reclaims,
        report.checks,
        report.in_line,
    ];
    let disk = [report.spilled, report.restored, report.lost, report.sent];
    assert!(disk.iter().all(|count| *count > steps / 100_000), "{report:?}");
    assert!(tried.iter().all(|count| *count > steps / 10_000), "{report:?}");
}

#[test]
fn a_seed_replays_exactly() {
    assert_eq!(run_world(7, 3000).map_err(|f| f.what), run_world(7, 3000).map_err(|f| f.what));
}
