//! All rows of the native door that SPECIFICATION.md promises, each beside its promise: what `cargo bench` runs.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::native::{self, Op, Settings};
use crate::ring::Row;
use crate::LoadError;

/// What a row has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Promise {
    /// A median of so many nanoseconds, or less.
    P50Ns(u64),
    /// A median of so many of the machine's limits, or less.
    Limits(f64),
    /// So many operations in a second, or more.
    PerSecond(f64),
    /// Nothing: the row stands for comparison.
    None,
}

/// A row and what it has to reach.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// What was measured.
    #[serde(flatten)]
    pub row: Row,
    /// The greatest median promised, in nanoseconds.
    pub promise_p50_ns: Option<u64>,
    /// The least rate promised.
    pub promise_ops_per_s: Option<f64>,
    /// Whether the promise was kept; `None` where there is none.
    pub kept: Option<bool>,
}

impl Judged {
    fn new(row: Row, promise: Promise) -> Self {
        let promise_p50_ns = match promise {
            Promise::P50Ns(limit_ns) => Some(limit_ns),
            Promise::Limits(factor) => row.limit_p50_ns.map(|limit_ns| (limit_ns as f64 * factor) as u64),
            Promise::PerSecond(_) | Promise::None => None,
        };
        let promise_ops_per_s = match promise {
            Promise::PerSecond(rate) => Some(rate),
            _ => None,
        };
        let kept = match (promise_p50_ns, promise_ops_per_s) {
            (Some(limit_ns), _) => Some(row.p50_ns <= limit_ns),
            (None, Some(rate)) => Some(row.ops_per_s >= rate),
            (None, None) => None,
        };
        Self { row, promise_p50_ns, promise_ops_per_s, kept }
    }

    /// What stands above [`line`](Self::line)s.
    pub fn header() -> String {
        format!("{}  size bytes  promise", Row::header())
    }

    /// As a line of a table.
    pub fn line(&self) -> String {
        let promise = match (self.promise_p50_ns, self.promise_ops_per_s) {
            (Some(limit_ns), _) => format!("p50 {limit_ns} ns"),
            (None, Some(rate)) => format!("{rate:.0}/s"),
            (None, None) => String::new(),
        };
        let verdict = match self.kept {
            Some(true) => ", kept",
            Some(false) => ", MISSED",
            None => "",
        };
        format!("{:<110} {:>10}  {promise}{verdict}", self.row.line(), self.row.size_bytes)
    }
}

/// One row: operation, ways, in flight, size in bytes, whether both sides spin, promise of each way.
struct Entry {
    op: Op,
    in_flight: usize,
    size_bytes: usize,
    busy_poll: bool,
    paths: &'static [(&'static str, Promise)],
    node_flags: &'static [&'static str],
}

const KIB: usize = 1 << 10;
const GIB: usize = 1 << 30;

/// SPECIFICATION.md, "The native door", has the same numbers.
const ENTRIES: &[Entry] = &[
    Entry::spinning(Op::Lease, &[("ring", Promise::P50Ns(3_000))]),
    Entry {
        busy_poll: false,
        ..Entry::spinning(Op::Lease, &[("ring", Promise::None), ("socket", Promise::Limits(2.0))])
    },
    Entry::spinning(Op::Put, &[("ring", Promise::P50Ns(3_000))]),
    Entry { busy_poll: false, ..Entry::spinning(Op::Put, &[("ring", Promise::None), ("socket", Promise::None)]) },
    Entry::spinning(Op::Get, &[("ring", Promise::P50Ns(2_000))]),
    Entry { busy_poll: false, ..Entry::spinning(Op::Get, &[("ring", Promise::None), ("socket", Promise::None)]) },
    Entry::spinning(Op::Wait, &[("ring", Promise::None)]),
    Entry::spinning(Op::Mixed, &[("ring", Promise::None)]),
    Entry { in_flight: 64, ..Entry::spinning(Op::Lease, &[("ring", Promise::PerSecond(300_000.0))]) },
    Entry { in_flight: 256, ..Entry::spinning(Op::Put, &[("ring", Promise::PerSecond(500_000.0))]) },
    // 90 % of the rate of memcpy.
    Entry {
        size_bytes: GIB,
        node_flags: &["--hugepages"],
        ..Entry::spinning(Op::Put, &[("ring", Promise::Limits(1.0 / 0.9))])
    },
];

impl Entry {
    const fn spinning(op: Op, paths: &'static [(&'static str, Promise)]) -> Self {
        Self { op, in_flight: 1, size_bytes: KIB, busy_poll: true, paths, node_flags: &[] }
    }
}

/// Runs all rows against nodes that are started for them; `each` hears of a row as soon as it is measured.
///
/// # Errors
/// Where a node or the machine refuses.
pub fn run(raylet: &std::path::Path, window: Duration, mut each: impl FnMut(&Judged)) -> Result<(), LoadError> {
    for entry in ENTRIES {
        let settings = Settings {
            op: entry.op,
            clients: 1,
            in_flight: entry.in_flight,
            size_bytes: entry.size_bytes,
            busy_poll: entry.busy_poll,
            paths: entry.paths.iter().map(|(path, _)| *path).collect(),
            window,
            rounds: None,
            socket: None,
            raylet: PathBuf::from(raylet),
            node_cores: "0".to_owned(),
            client_cpus: vec![1],
            node_flags: entry.node_flags.iter().map(|flag| (*flag).to_owned()).collect(),
        };
        for (row, (_, promise)) in native::run(&settings)?.into_iter().zip(entry.paths) {
            each(&Judged::new(row, *promise));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(p50_ns: u64, ops_per_s: f64, limit_p50_ns: Option<u64>) -> Row {
        Row {
            op: "lease",
            path: "ring",
            busy_poll: true,
            in_flight: 1,
            size_bytes: 0,
            p50_ns,
            p99_ns: p50_ns,
            p9999_ns: p50_ns,
            ops_per_s,
            limit_p50_ns,
        }
    }

    #[test]
    fn a_promise_is_kept_or_missed_by_what_it_is_about() {
        let kept = |row: Row, promise| Judged::new(row, promise).kept;
        assert_eq!(kept(row(3_000, 1.0, None), Promise::P50Ns(3_000)), Some(true));
        assert_eq!(kept(row(3_001, 1e9, None), Promise::P50Ns(3_000)), Some(false));
        assert_eq!(kept(row(200, 1.0, Some(100)), Promise::Limits(2.0)), Some(true));
        assert_eq!(kept(row(201, 1.0, Some(100)), Promise::Limits(2.0)), Some(false));
        assert_eq!(kept(row(1, 299_999.0, None), Promise::PerSecond(300_000.0)), Some(false));
        assert_eq!(kept(row(9_000, 300_000.0, None), Promise::PerSecond(300_000.0)), Some(true));
        assert_eq!(kept(row(1, 1.0, Some(1)), Promise::None), None);
    }

    #[test]
    fn a_row_in_json_is_one_object_with_its_promise() {
        let judged = Judged::new(row(970, 1e6, Some(220)), Promise::P50Ns(3_000));
        let json = serde_json::to_value(&judged).expect("numbers have a JSON form");
        assert_eq!((json["op"].as_str(), json["p50_ns"].as_u64()), (Some("lease"), Some(970)));
        assert_eq!((json["promise_p50_ns"].as_u64(), json["kept"].as_bool()), (Some(3_000), Some(true)));
    }
}
