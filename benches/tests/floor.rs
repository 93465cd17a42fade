//! The machine's own limit can be measured where the node can run.

use std::time::Duration;

use raylet_bench::floor::{run, Settings};

#[test]
fn an_empty_answer_costs_something_and_every_one_is_counted() {
    let window = Duration::from_millis(200);
    let settings = Settings { warm_up: Duration::from_millis(50), window, pause: Duration::from_micros(20) };
    let report = run(&settings).expect("measured");
    assert!(report.answers > 10 && report.answer.count == report.answers, "{report:?}");
    assert!(report.answer.p50_us > 0.0 && report.server_cpu_us_per_answer > 0.0, "{report:?}");
    assert!(report.server_cpu_us_per_answer * (report.answers as f64) < 2.0 * window.as_secs_f64() * 1e6, "{report:?}");
}
