//! Objects on their way between nodes, under the seeded simulator.
//!
//! `RAYLET_SIM_SEED` and `RAYLET_SIM_STEPS` choose another run; a failure prints the seed of the world that showed it.

mod sim_support;

use raylet_shard::sim::pull_sim::{run, run_world, STEPS_PER_WORLD};

/// Steps without `RAYLET_SIM_STEPS`: seconds with optimisation, about a minute without.
const DEFAULT_STEPS: u64 = if cfg!(debug_assertions) { 300_000 } else { 10_000_000 };

#[test]
fn what_is_wanted_and_somewhere_arrives_whole_whatever_happens() {
    let (seed, steps) = sim_support::seed_and_steps(DEFAULT_STEPS);
    let began = std::time::Instant::now();
    let report = run(seed, steps).unwrap_or_else(|failure| {
        panic!("{failure}\nagain with RAYLET_SIM_SEED={} RAYLET_SIM_STEPS={STEPS_PER_WORLD}", failure.seed)
    });
    let rate = report.steps as f64 / began.elapsed().as_secs_f64() / 1e6;
    println!("seed {seed}: {report:?}, {rate:.2} M steps/s");
    // A run that never came near the limits proves nothing.
    let tried = [
        report.received,
        report.fulfilled,
        report.harmed,
        report.dropped,
        report.no_room,
        report.stopped,
        report.evicted,
        report.remade,
        report.died,
        report.landed,
        report.broken,
        report.guessed,
        report.held,
    ];
    assert!(tried.iter().all(|count| *count > steps / 20_000), "{report:?}");
    // It takes a few nodes that want one object at once.
    let relayed = [report.elsewhere, report.relayed, report.recalled];
    let on_disk = [report.spilled, report.restored, report.disk_full, report.file_sent, report.files_lost];
    assert!(on_disk.iter().all(|count| *count > steps / 20_000), "{report:?}");
    assert!(relayed.iter().all(|count| *count > steps / 200_000), "{report:?}");
    assert!(report.nodes_most >= 20 || report.worlds < 100, "no large cluster: {report:?}");
}

#[test]
fn a_seed_replays_exactly() {
    let world = || run_world(7, 3000).map_err(|failure| failure.what);
    assert_eq!(world(), world());
    let large = || run_world(100, 500).map_err(|failure| failure.what);
    assert_eq!(large(), large());
}
