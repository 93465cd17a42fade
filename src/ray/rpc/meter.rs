//! How often the methods of a server are called, how it ends and how long it takes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::observe::metrics::{Buckets, Counter};

/// Upper bounds in milliseconds of the times that are counted (Ray 2.60: `grpc_server_req_process_time_ms`).
pub const TIME_BOUNDS_MS: [f64; 6] = [0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0];

/// Package of the methods that are measured; health checks and the like are not.
const MEASURED_PACKAGE: &str = "/ray.rpc.";

/// The calls of one method.
#[derive(Debug, Default)]
pub struct Meter {
    /// Calls that came in.
    pub started: Counter,
    /// Calls that ended.
    pub finished: Counter,
    /// Of these, with a reply.
    pub succeeded: Counter,
    /// Of these, with an error.
    pub failed: Counter,
    /// Time from the call to its end, in milliseconds.
    pub times_ms: Buckets<{ TIME_BOUNDS_MS.len() + 1 }>,
}

impl Meter {
    fn end(&self, ok: bool, took: Duration) {
        self.finished.add_one();
        if ok { &self.succeeded } else { &self.failed }.add_one();
        self.times_ms.record(&TIME_BOUNDS_MS, took.as_secs_f64() * 1000.0);
    }
}

/// The meters of a node by method, as `Service.grpc_server.Method`.
#[derive(Clone, Default)]
pub struct Meters(Rc<RefCell<BTreeMap<String, Rc<Meter>>>>);

impl Meters {
    /// The meter of the method at a path, which all servers of the node share; `None` for a method that is not Ray's.
    pub(super) fn of_path(&self, path: &str) -> Option<Rc<Meter>> {
        let (service, method) = path.strip_prefix(MEASURED_PACKAGE)?.split_once('/')?;
        let name = format!("{service}.grpc_server.{method}");
        Some(self.0.borrow_mut().entry(name).or_default().clone())
    }

    /// A call was served on a core.
    pub fn served(&self, path: &str, ok: bool, took: Duration) {
        if let Some(meter) = self.of_path(path) {
            meter.started.add_one();
            meter.end(ok, took);
        }
    }

    /// The methods that were ever called, with their meters, in the order of their names.
    pub fn called(&self) -> Vec<(String, Rc<Meter>)> {
        let meters = self.0.borrow();
        let called = meters.iter().filter(|(_, meter)| meter.started.total() > 0);
        called.map(|(name, meter)| (name.clone(), meter.clone())).collect()
    }
}

/// A call while it runs.
pub(super) struct Timing {
    meter: Rc<Meter>,
    start: Instant,
}

impl Timing {
    /// A call begins.
    pub(super) fn start(meter: &Rc<Meter>) -> Self {
        meter.started.add_one();
        Self { meter: meter.clone(), start: Instant::now() }
    }

    /// It ended.
    pub(super) fn end(self, ok: bool) {
        self.meter.end(ok, self.start.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_for_all_servers() {
        let meters = Meters::default();
        assert!(meters.of_path("/grpc.health.v1.Health/Check").is_none());
        let first = meters.of_path("/ray.rpc.NodeManagerService/GetNodeStats").unwrap();
        let second = meters.of_path("/ray.rpc.NodeManagerService/GetNodeStats").unwrap();
        assert!(meters.called().is_empty());
        Timing::start(&first).end(true);
        Timing::start(&second).end(false);
        let running = Timing::start(&second);
        let called = meters.called();
        assert_eq!(called.len(), 1);
        let (name, meter) = &called[0];
        assert_eq!(name, "NodeManagerService.grpc_server.GetNodeStats");
        let counts = [&meter.started, &meter.finished, &meter.succeeded, &meter.failed].map(Counter::total);
        assert_eq!(counts, [3, 2, 1, 1]);
        assert_eq!(meter.times_ms.unreported().counts.iter().sum::<u64>(), 2);
        running.end(true);
    }
}
