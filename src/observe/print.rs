//! The status for people: aligned columns, units, nothing that says nothing.

use std::fmt::{self, Write as _};

use raylet_tuning::cores::format_list;

use super::status::{ArenaStatus, Door, NodeStatus, SpillCounts, SpillStatus, TransferStatus};
use crate::config::size::format_bytes;

/// Writes the status as `raylet-uring status` shows it.
pub fn render(status: &NodeStatus) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = write_status(&mut text, status);
    text
}

fn write_status(out: &mut String, status: &NodeStatus) -> fmt::Result {
    let doors = status.doors.iter().map(|door| match door {
        Door::Ray => "Ray",
        Door::Native => "native",
    });
    let doors = doors.collect::<Vec<_>>().join(" and ");
    let cores: Vec<u32> = status.cores.clone();
    write!(out, "raylet-uring {}  pid {}  up {}", status.version, status.pid, duration(status.uptime_s))?;
    let cores = if cores.is_empty() { "any".to_owned() } else { format_list(&cores) };
    writeln!(out, "  {doors} door  cores {cores}")?;
    if !status.node_id.is_empty() {
        writeln!(out, "node {}", status.node_id)?;
    }
    section(out, "resources", resources(status))?;
    section(out, "leases and workers", counts(status))?;
    section(out, "objects", objects(status))?;
    section(out, "peers", peers(status))?;
    section(out, "arenas", arenas(&status.arenas))?;
    section(out, "spilled objects", spill(&status.spill))?;
    section(out, "shards", shards(status))?;
    section(out, "queues", queues(status))?;
    section(out, "operations", operations(status))?;
    section(out, "sockets", status.sockets.iter().map(|s| vec![s.name.clone(), s.address.clone()]).collect())
}

type Rows = Vec<Vec<String>>;

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A heading and its table: the first column to the left, numbers to the right, words to the left.
fn section(out: &mut String, title: &str, rows: Rows) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title}")?;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &'_ Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    let widths: Vec<usize> =
        (0..columns).map(|c| rows.iter().map(|r| cell(r, c).chars().count()).max().unwrap_or(0)).collect();
    // A column is of numbers where all cells below its head look like one, perhaps with a unit.
    let number = |text: &str| text.starts_with(|l: char| l.is_ascii_digit() || l == '-') && !text.contains(',');
    let numeric: Vec<bool> = (0..columns).map(|c| rows.iter().skip(1).all(|r| number(&cell(r, c)))).collect();
    for row in &rows {
        let mut line = String::from(" ");
        for column in 0..columns {
            let (text, width) = (cell(row, column), widths[column]);
            match numeric[column] && column > 0 && rows.len() > 1 {
                true => write!(line, " {text:>width$} ")?,
                false => write!(line, " {text:<width$} ")?,
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn resources(status: &NodeStatus) -> Rows {
    if status.resources.is_empty() {
        return Vec::new();
    }
    let rows = status.resources.iter().map(|(name, r)| {
        // Ray counts memory in bytes, and everything else in pieces.
        let amount = |n: f64| match name.as_str() {
            "memory" | "object_store_memory" if n >= 0.0 => format_bytes(n as u64),
            _ => number(n),
        };
        vec![name.clone(), amount(r.available), amount(r.total)]
    });
    std::iter::once(row(["", "available", "total"])).chain(rows).collect()
}

fn counts(status: &NodeStatus) -> Rows {
    let (leases, workers) = (&status.leases, &status.workers);
    let line = |name: &str, parts: &[(u64, &str)]| {
        let text = parts.iter().map(|(n, what)| format!("{n} {what}")).collect::<Vec<_>>().join(", ");
        vec![name.to_owned(), text]
    };
    let mut workers_shown = vec![
        (workers.total, "in all"),
        (workers.leased, "leased"),
        (workers.idle, "idle"),
        (workers.starting, "starting"),
    ];
    if workers.pinned > 0 {
        workers_shown.push((workers.pinned, "bound to a NUMA node"));
    }
    vec![
        line("leases", &[(leases.granted, "granted"), (leases.queued, "queued"), (leases.infeasible, "infeasible")]),
        line("workers", &workers_shown),
        line("drivers", &[(workers.drivers, "connected")]),
    ]
}

fn objects(status: &NodeStatus) -> Rows {
    let o = &status.objects;
    let mut text = format!("{} ({}), {} sealed, {} pinned", o.count, format_bytes(o.bytes), o.sealed, o.pinned);
    if o.creates_queued > 0 {
        let _ = write!(text, ", {} creates wait for room", o.creates_queued);
    }
    let mut rows = vec![vec!["in the store".to_owned(), text]];
    if status.spilling != SpillCounts::default() {
        rows.push(vec!["on disk".to_owned(), spilling(&status.spilling)]);
    }
    if status.transfer != TransferStatus::default() {
        rows.push(vec!["between nodes".to_owned(), transfer(&status.transfer)]);
    }
    rows
}

fn peers(status: &NodeStatus) -> Rows {
    let rows = status.peers.iter().map(|peer| {
        let state = match (peer.state.as_str(), peer.draining) {
            ("connected", false) => format!("connected {}", duration(peer.connected_s)),
            ("connected", true) => format!("connected {}, draining", duration(peer.connected_s)),
            ("down", _) => format!("down: {}", peer.why),
            (state, _) => state.to_owned(),
        };
        let cpu = peer
            .resources
            .get("CPU")
            .map_or_else(String::new, |cpu| format!("{} of {}", number(cpu.available), number(cpu.total)));
        let received = format!("{} ({})", peer.received_objects, format_bytes(peer.received_bytes));
        vec![peer.address.clone(), cpu, received, state]
    });
    let head = (!status.peers.is_empty()).then(|| row(["peer", "CPU free", "objects received", "state"]));
    head.into_iter().chain(rows).collect()
}

fn spilling(s: &SpillCounts) -> String {
    let bytes = format_bytes;
    let mut text = format!(
        "{} ({}); {} spilled, {} restored",
        s.on_disk_objects,
        bytes(s.on_disk_bytes),
        bytes(s.spilled_bytes),
        bytes(s.restored_bytes)
    );
    let now = [(s.writing_objects, "being written"), (s.restoring_objects, "being restored"), (s.failures, "failures")];
    for (count, what) in now.iter().filter(|(count, _)| *count > 0) {
        let _ = write!(text, "; {count} {what}");
    }
    text
}

fn transfer(t: &TransferStatus) -> String {
    let bytes = format_bytes;
    let mut text =
        format!("{} received, {} sent by {} lanes", bytes(t.lane_received_bytes), bytes(t.lane_sent_bytes), t.lanes);
    if t.same_host_received_bytes + t.same_host_sent_bytes > 0 {
        let (received, sent) = (bytes(t.same_host_received_bytes), bytes(t.same_host_sent_bytes));
        let _ = write!(text, " ({received} and {sent} from memory to memory on this host)");
    }
    if t.call_received_bytes + t.call_sent_bytes > 0 {
        let _ = write!(text, "; {} received, {} sent by calls", bytes(t.call_received_bytes), bytes(t.call_sent_bytes));
    }
    if t.file_sent_bytes > 0 {
        let _ = write!(text, "; {} sent from spill files", bytes(t.file_sent_bytes));
    }
    if t.relay_sent_bytes > 0 {
        let _ = write!(text, "; {} sent on while coming", bytes(t.relay_sent_bytes));
    }
    if t.pulls_wanted > 0 {
        let _ = write!(text, "; {} wanted, {} asked for", t.pulls_wanted, t.pulls_asked);
    }
    text
}

fn arenas(arenas: &[ArenaStatus]) -> Rows {
    if arenas.is_empty() {
        return Vec::new();
    }
    let rows = arenas.iter().map(|a| {
        let pages = match &a.fallback_reason {
            Some(reason) => format!("{} (asked for {}: {reason})", a.page_kind, a.asked),
            None => a.page_kind.clone(),
        };
        let seen = a.numa_pages_on_node + a.numa_pages_elsewhere;
        let numa = match (a.numa_node, &a.numa_problem) {
            (None, _) => "any".to_owned(),
            (Some(node), Some(problem)) => format!("{node} planned, not bound: {problem}"),
            (Some(node), None) if seen == 0 => format!("{node} (no page touched yet)"),
            (Some(node), None) => format!("{node} ({} of {seen} pages there)", a.numa_pages_on_node),
        };
        let bytes = [a.size_bytes, a.touched_bytes, a.used_bytes].map(format_bytes);
        let [size, touched, used] = bytes;
        vec![a.segment.to_string(), size, touched, used, numa, pages]
    });
    std::iter::once(row(["segment", "size", "touched", "used", "NUMA node", "pages"])).chain(rows).collect()
}

fn spill(directories: &[SpillStatus]) -> Rows {
    if directories.is_empty() {
        return Vec::new();
    }
    let rows = directories.iter().map(|directory| {
        let node = directory.numa_node.map_or_else(|| "any".to_owned(), |node| node.to_string());
        let disk = directory.disk.clone().unwrap_or_else(|| "none of this machine".to_owned());
        vec![directory.path.display().to_string(), disk, node, format_list(&directory.shards)]
    });
    std::iter::once(row(["directory", "disk", "NUMA node", "used first by shards"])).chain(rows).collect()
}

fn shards(status: &NodeStatus) -> Rows {
    if status.shards.is_empty() {
        return Vec::new();
    }
    let head = row(["shard", "core", "connections", "leases", "queued", "objects", "bytes"]);
    let rows = status.shards.iter().map(|s| {
        let counts = [s.connections, s.leases_granted, s.leases_queued, s.objects].map(|n| n.to_string());
        let core = if s.core == u32::MAX { "any".to_owned() } else { s.core.to_string() };
        let mut cells = vec![s.index.to_string(), core];
        cells.extend(counts);
        cells.push(format_bytes(s.object_bytes));
        cells
    });
    std::iter::once(head).chain(rows).collect()
}

/// Only queues that hold something or were full: on a quiet node there is nothing to see.
fn queues(status: &NodeStatus) -> Rows {
    let busy = status.shards.iter().flat_map(|s| s.queues.iter().map(move |q| (s.index, q)));
    let rows: Rows = busy
        .filter(|(_, q)| q.depth > 0 || q.full_count > 0)
        .map(|(shard, q)| {
            let limit = if q.limit == 0 { "none".to_owned() } else { q.limit.to_string() };
            vec![q.name.clone(), shard.to_string(), q.depth.to_string(), limit, q.full_count.to_string()]
        })
        .collect();
    match rows.is_empty() {
        true => rows,
        false => std::iter::once(row(["queue", "shard", "depth", "limit", "times full"])).chain(rows).collect(),
    }
}

fn operations(status: &NodeStatus) -> Rows {
    if status.operations.is_empty() {
        return Vec::new();
    }
    let rows = status.operations.iter().map(|o| {
        let mut cells = vec![o.name.clone(), o.count.to_string()];
        cells.extend([o.p50_us, o.p99_us, o.p999_us, o.max_us].map(latency));
        cells
    });
    std::iter::once(row(["", "count", "p50", "p99", "p99.9", "max"])).chain(rows).collect()
}

/// A latency with three digits and its unit.
pub fn latency(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 1000.0 => (us, "us"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} {unit}")
}

/// A count without needless decimals; Ray knows four.
fn number(n: f64) -> String {
    let text = format!("{n:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A time span in its two largest units.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::*;
    use super::*;

    fn busy_node() -> NodeStatus {
        let queues = vec![
            QueueStatus { name: "creates".into(), depth: 3, limit: 100, full_count: 0 },
            QueueStatus { name: "calm".into(), depth: 0, limit: 100, full_count: 0 },
        ];
        NodeStatus {
            version: "0.1.0".into(),
            pid: 42,
            node_id: "ab".repeat(28),
            uptime_s: 3725.5,
            doors: vec![Door::Ray, Door::Native],
            cores: vec![0, 1, 2, 5],
            shards: vec![ShardStatus {
                index: 0,
                core: 5,
                leases_granted: 7,
                object_bytes: 2048,
                queues,
                ..ShardStatus::default()
            }],
            arenas: vec![ArenaStatus {
                segment: 0,
                size_bytes: 1 << 30,
                page_kind: "thp-tmpfs".into(),
                asked: "2m".into(),
                fallback_reason: Some("the pool is empty".into()),
                numa_node: Some(1),
                numa_problem: None,
                numa_pages_on_node: 500,
                numa_pages_elsewhere: 12,
                touched_bytes: 1 << 20,
                used_bytes: 0,
            }],
            spill: vec![SpillStatus {
                path: "/spill/ray".into(),
                disk: Some("nvme0n1".into()),
                numa_node: Some(1),
                shards: vec![0, 1, 3],
            }],
            resources: [
                ("CPU".to_owned(), ResourceStatus { total: 2.0, available: 0.5 }),
                ("memory".to_owned(), ResourceStatus { total: 3221225472.0, available: 0.0 }),
            ]
            .into(),
            objects: ObjectCounts { count: 3, sealed: 2, pinned: 1, bytes: 2048, creates_queued: 3 },
            spilling: SpillCounts {
                on_disk_objects: 12,
                on_disk_bytes: 3 << 20,
                restoring_objects: 2,
                spilled_objects: 14,
                spilled_bytes: 4 << 20,
                restored_bytes: 1 << 20,
                failures: 1,
                ..SpillCounts::default()
            },
            transfer: TransferStatus {
                lanes: 4,
                lane_received_bytes: 5 << 20,
                call_sent_bytes: 1024,
                pulls_wanted: 3,
                pulls_asked: 2,
                ..TransferStatus::default()
            },
            operations: vec![OperationStatus {
                name: "plasma.create".into(),
                count: 1000,
                p50_us: 8.25,
                p99_us: 12.04,
                p999_us: 1500.0,
                max_us: 2_000_000.0,
            }],
            sockets: vec![SocketStatus { name: "plasma".into(), address: "/tmp/x".into() }],
            ..NodeStatus::default()
        }
    }

    #[test]
    fn a_busy_node() {
        let expected = "\
raylet-uring 0.1.0  pid 42  up 1 h 2 min  Ray and native door  cores 0-2,5
node abababababababababababababababababababababababababababab

resources
          available     total
  CPU           0.5         2
  memory        0 B  3.00 GiB

leases and workers
  leases   0 granted, 0 queued, 0 infeasible
  workers  0 in all, 0 leased, 0 idle, 0 starting
  drivers  0 connected

objects
  in the store   3 (2.00 KiB), 2 sealed, 1 pinned, 3 creates wait for room
  on disk        12 (3.00 MiB); 4.00 MiB spilled, 1.00 MiB restored; 2 being restored; 1 failures
  between nodes  5.00 MiB received, 0 B sent by 4 lanes; 0 B received, 1.00 KiB sent by calls; 3 wanted, 2 asked for

arenas
  segment      size   touched  used                   NUMA node  pages
  0        1.00 GiB  1.00 MiB   0 B  1 (500 of 512 pages there)  thp-tmpfs (asked for 2m: the pool is empty)

spilled objects
  directory   disk     NUMA node  used first by shards
  /spill/ray  nvme0n1          1  0-1,3

shards
  shard  core  connections  leases  queued  objects     bytes
  0         5            0       7       0        0  2.00 KiB

queues
  queue    shard  depth  limit  times full
  creates      0      3    100           0

operations
                 count      p50      p99    p99.9     max
  plasma.create   1000  8.25 us  12.0 us  1.50 ms  2.00 s

sockets
  plasma  /tmp/x
";
        assert_eq!(render(&busy_node()), expected);
    }

    #[test]
    fn an_empty_node_has_no_empty_tables() {
        let text = render(&NodeStatus::default());
        assert!(text.lines().next().unwrap().ends_with("cores any"), "{text}");
        for title in ["arenas", "shards", "queues", "operations", "sockets", "resources"] {
            assert!(!text.contains(&format!("\n{title}\n")), "{title}");
        }
    }

    #[test]
    fn status_survives_json_and_other_versions() {
        let status = busy_node();
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<NodeStatus>(&json).unwrap(), status);
        assert!(json.contains("\"doors\":[\"ray\",\"native\"]"), "{json}");
        let other = r#"{"pid": 7, "from_the_future": 1, "leases": {"granted": 2}}"#;
        let status: NodeStatus = serde_json::from_str(other).unwrap();
        assert_eq!((status.pid, status.leases.granted), (7, 2));
    }

    #[test]
    fn units() {
        assert_eq!(
            [0.5, 9.994, 99.9, 999.4, 1000.0, 1e6].map(latency),
            ["0.50 us", "9.99 us", "99.9 us", "999 us", "1.00 ms", "1.00 s"]
        );
        assert_eq!([2.0, 0.5, 0.0001, -1.0].map(number), ["2", "0.5", "0.0001", "-1"]);
        assert_eq!([59.0, 61.0, 90_000.0].map(duration), ["59 s", "1 min 1 s", "1 d 1 h"]);
    }
}
