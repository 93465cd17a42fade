//! What a node with Ray's door tells without being asked: metrics, and the dump of its state beside its logs.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::status::{with_reports, Facts};
use crate::bridge::CoreReport;
use crate::observe::print;
use crate::observe::status::NodeStatus;
use crate::ray::control::Control;
use crate::ray::metrics;

/// Name of the dump in the directory of the logs, as the stock raylet's.
const DUMP_NAME: &str = "debug_state.txt";

/// Starts to report, on the control thread, until the node ends.
pub fn start(control: &Rc<Control>, facts: &Facts) {
    let known = facts.clone();
    let status = move |control: Rc<Control>| {
        let facts = known.clone();
        async move { with_reports(&control, &facts).await }
    };
    tokio::task::spawn_local(metrics::run(control.clone(), status));
    tokio::task::spawn_local(dump(control.clone(), facts.clone()));
}

/// Writes the state of the node every `debug_dump_period_milliseconds` (Ray 2.60; 0 for never), where it changed.
async fn dump(control: Rc<Control>, facts: Facts) {
    let period = Duration::from_millis(control.ray_config().debug_dump_period_milliseconds);
    if period.is_zero() {
        return;
    }
    let path = control.flags().log_dir.join(DUMP_NAME);
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut dump = Dump { path, last: String::new(), failing: false };
    loop {
        ticks.tick().await;
        let (reports, status) = with_reports(&control, &facts).await;
        dump.write(&text(&control, &reports, status));
    }
}

struct Dump {
    path: PathBuf,
    last: String,
    failing: bool,
}

impl Dump {
    fn write(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        match replace(&self.path, text) {
            Ok(()) => {
                self.failing = false;
                text.clone_into(&mut self.last);
            }
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::warn!(%error, path = %self.path.display(), "the state of the node can't be dumped");
            }
            Err(_) => {}
        }
    }
}

/// A reader sees the old text or the new one, never half of it.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("txt.new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}

/// All that a person wants to know of a node that misbehaves. Nothing in it changes while the node is idle.
fn text(control: &Control, reports: &[CoreReport], mut status: NodeStatus) -> String {
    // The age of the file says more than a time of which every dump would have another one.
    status.uptime_s = 0.0;
    // The node's own reports are timed too, so these change while nothing happens; `raylet-uring status` has them.
    status.operations.clear();
    let mut text = print::render(&status);
    text.push_str("\nclients\n");
    for line in control.describe_clients() {
        text.push_str("  ");
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str("\nshards in detail\n");
    for report in reports {
        let loads = report.sched.loads.iter().map(|load| {
            format!(
                "    class: {} wait for objects, {} for resources, {} for a worker, {} granted, backlog {}{}\n",
                load.waiting_deps,
                load.ready,
                load.waiting_worker,
                load.granted,
                load.backlog,
                if load.infeasible { ", can never be granted here" } else { "" }
            )
        });
        let workers = report.sched.workers;
        text.push_str(&format!(
            "  shard {}: workers: {} idle, {} leased, {} starting, {} leaving\n",
            report.shard, workers.idle, workers.leased, workers.starting, workers.leaving
        ));
        text.extend(loads);
        text.push_str(&format!("    store: {:?}\n", report.store));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_written_only_where_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DUMP_NAME);
        let mut dump = Dump { path: path.clone(), last: String::new(), failing: false };
        dump.write("one");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        std::fs::remove_file(&path).unwrap();
        dump.write("one");
        assert!(!path.exists(), "nothing changed");
        dump.write("two");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_dump_that_failed_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs").join(DUMP_NAME);
        let mut dump = Dump { path: path.clone(), last: String::new(), failing: false };
        dump.write("one");
        assert!(dump.failing);
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        dump.write("one");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
    }
}
