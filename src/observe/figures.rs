//! A node's status as figures with labels, named `raylet_uring_*`: what both doors tell Prometheus, each in its way.
//!
//! A node with Ray's door reports [`of`] to the dashboard agent, beside figures that the agent knows by Ray's names. A node of its own has no
//! agent: `raylet-uring status --metrics` prints all of its figures as [`page`], in Prometheus' text format 0.0.4.

use std::fmt::Write;

use super::metrics::Batch;
use super::status::{NodeStatus, PeerStatus};

/// A metric and its values.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a line.
    pub description: &'static str,
    /// The values, each with its labels: key and text.
    pub values: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Figure {
    fn new(
        name: &'static str,
        description: &'static str,
        values: impl IntoIterator<Item = (Vec<(&'static str, String)>, f64)>,
    ) -> Self {
        Self { name, description, values: values.into_iter().collect() }
    }

    /// Values that one label tells apart.
    fn by<const N: usize>(
        name: &'static str,
        description: &'static str,
        key: &'static str,
        values: [(&str, u64); N],
    ) -> Self {
        Self::new(name, description, values.map(|(text, value)| (vec![(key, text.to_owned())], value as f64)))
    }

    /// Adds it to a report.
    pub fn add_to(&self, batch: &mut Batch) {
        let labels = self.values.iter().map(|(labels, _)| labels.iter().map(|(key, text)| (*key, text.as_str())));
        let labels: Vec<Vec<(&str, &str)>> = labels.map(Iterator::collect).collect();
        let values = labels.iter().zip(&self.values).map(|(labels, (_, value))| (&labels[..], *value));
        batch.gauge(self.name, self.description, values);
    }
}

/// The quantiles of a latency that are reported.
const QUANTILES: [&str; 4] = ["0.5", "0.99", "0.999", "1"];

/// Memory, what moves between nodes, and latencies: what Ray has no names for.
pub fn of(status: &NodeStatus) -> Vec<Figure> {
    let mut figures = arenas(status);
    figures.extend(transfers(status));
    figures.extend(peers(&status.peers));
    figures.extend(latencies(status));
    figures
}

fn arenas(status: &NodeStatus) -> Vec<Figure> {
    let names = || {
        status.arenas.iter().map(|arena| {
            let node = arena.numa_node.map_or_else(|| "any".to_owned(), |node| node.to_string());
            (vec![("Segment", arena.segment.to_string()), ("NumaNode", node)], arena)
        })
    };
    let bytes = names().flat_map(|(labels, arena)| {
        let sizes = [("size", arena.size_bytes), ("touched", arena.touched_bytes), ("used", arena.used_bytes)];
        sizes.map(|(kind, bytes)| {
            let more = [("Pages", arena.page_kind.clone()), ("Kind", kind.to_owned())];
            (labels.iter().cloned().chain(more).collect(), bytes as f64)
        })
    });
    let pages = names().map(|(mut labels, arena)| {
        let why = arena.fallback_reason.clone().unwrap_or_default();
        labels.extend([("Asked", arena.asked.clone()), ("Pages", arena.page_kind.clone()), ("Why", why)]);
        (labels, 1.0)
    });
    vec![
        Figure::new(
            "raylet_uring_arena_bytes",
            "Bytes of a shared-memory segment under the object store, with the pages that it got",
            bytes,
        ),
        Figure::new(
            "raylet_uring_arena_pages",
            "1 for each segment: the pages that were asked for, those that it got, and why where they differ",
            pages,
        ),
    ]
}

fn transfers(status: &NodeStatus) -> Vec<Figure> {
    let transfer = &status.transfer;
    let moved = [
        ("bulk", "received", transfer.lane_received_bytes),
        ("bulk", "sent", transfer.lane_sent_bytes),
        ("call", "received", transfer.call_received_bytes),
        ("call", "sent", transfer.call_sent_bytes),
    ];
    let moved = moved.map(|(way, direction, bytes)| {
        (vec![("Way", way.to_owned()), ("Direction", direction.to_owned())], bytes as f64)
    });
    let parts = [
        ("sent_from_disk", transfer.file_sent_bytes),
        ("sent_while_coming", transfer.relay_sent_bytes),
        ("sent_on_this_host", transfer.same_host_sent_bytes),
        ("received_on_this_host", transfer.same_host_received_bytes),
    ];
    let pulls = [("wanted", transfer.pulls_wanted), ("asked", transfer.pulls_asked)];
    let mut figures = vec![
        Figure::new(
            "raylet_uring_transfer_bytes",
            "Bytes of objects moved between nodes since the start, by the bulk port and by Ray's calls",
            moved,
        ),
        Figure::by(
            "raylet_uring_transfer_part_bytes",
            "Of the bytes moved between nodes: sent from files of spilled objects, sent on while the object was still coming, between nodes of this host",
            "Part",
            parts,
        ),
        Figure::by(
            "raylet_uring_pulls",
            "Objects that are wanted from other nodes; of these, those that a node was asked for",
            "State",
            pulls,
        ),
    ];
    if transfer.lanes > 0 {
        let lanes = [(Vec::new(), transfer.lanes as f64)];
        figures.push(Figure::new("raylet_uring_transfer_lanes", "Connections of the bulk port", lanes));
    }
    figures
}

/// What a node of its own moves from each of its peers.
fn peers(peers: &[PeerStatus]) -> Vec<Figure> {
    let others = || peers.iter().filter(|peer| peer.state != "itself");
    let each = |of: fn(&PeerStatus) -> f64| others().map(move |peer| (vec![("Peer", peer.address.clone())], of(peer)));
    let link = others().flat_map(|peer| {
        [("received", peer.link_received_bytes), ("sent", peer.link_sent_bytes)].map(|(direction, bytes)| {
            (vec![("Peer", peer.address.clone()), ("Direction", direction.to_owned())], bytes as f64)
        })
    });
    vec![
        Figure::new(
            "raylet_uring_peer_up",
            "1 where a peer is connected, else 0",
            each(|peer| f64::from(u8::from(peer.state == "connected"))),
        ),
        Figure::new(
            "raylet_uring_peer_connects",
            "Times that a peer was connected to since the start",
            each(|peer| peer.connects as f64),
        ),
        Figure::new(
            "raylet_uring_peer_received_objects",
            "Objects that came from a peer since the start",
            each(|peer| peer.received_objects as f64),
        ),
        Figure::new("raylet_uring_peer_received_bytes", "Their bytes", each(|peer| peer.received_bytes as f64)),
        Figure::new(
            "raylet_uring_peer_link_bytes",
            "Bytes of what is said on the link to a peer since the start, besides objects",
            link,
        ),
    ]
}

fn latencies(status: &NodeStatus) -> Vec<Figure> {
    let quantiles = status.operations.iter().flat_map(|operation| {
        let at = [operation.p50_us, operation.p99_us, operation.p999_us, operation.max_us];
        QUANTILES
            .into_iter()
            .zip(at)
            .map(|(quantile, us)| (vec![("Operation", operation.name.clone()), ("Quantile", quantile.to_owned())], us))
    });
    let counts =
        status.operations.iter().map(|operation| (vec![("Operation", operation.name.clone())], operation.count as f64));
    vec![
        Figure::new("raylet_uring_latency_us", "Latency of an operation since the start, in microseconds", quantiles),
        Figure::new("raylet_uring_operations_total", "Operations since the start", counts),
    ]
}

/// What the dashboard agent hears by Ray's names: leases, workers, objects, what is spilled, resources.
fn counts(status: &NodeStatus) -> Vec<Figure> {
    let NodeStatus { leases, workers, objects, spilling, .. } = status;
    let resources = status.resources.iter().flat_map(|(name, resource)| {
        [("total", resource.total), ("available", resource.available)]
            .map(|(state, amount)| (vec![("Name", name.clone()), ("State", state.to_owned())], amount))
    });
    vec![
        Figure::new(
            "raylet_uring_uptime_seconds",
            "Seconds since the node finished its boot",
            [(vec![("Version", status.version.clone())], status.uptime_s)],
        ),
        Figure::by(
            "raylet_uring_leases",
            "Leases and requests for them, by state",
            "State",
            [("granted", leases.granted), ("queued", leases.queued), ("infeasible", leases.infeasible)],
        ),
        Figure::by(
            "raylet_uring_workers",
            "Worker processes by state",
            "State",
            [("idle", workers.idle), ("starting", workers.starting), ("leased", workers.leased)],
        ),
        Figure::by(
            "raylet_uring_objects",
            "Objects of the store by state; an object can be in several",
            "State",
            [
                ("in_memory", objects.count),
                ("sealed", objects.sealed),
                ("pinned", objects.pinned),
                ("on_disk", spilling.on_disk_objects),
                ("create_queued", objects.creates_queued),
            ],
        ),
        Figure::by(
            "raylet_uring_object_bytes",
            "Bytes of the objects that are in memory, and of those with a copy on disk",
            "State",
            [("in_memory", objects.bytes), ("on_disk", spilling.on_disk_bytes)],
        ),
        Figure::by(
            "raylet_uring_spill_bytes",
            "Bytes of objects written to disk and read back since the start",
            "Event",
            [("spilled", spilling.spilled_bytes), ("restored", spilling.restored_bytes)],
        ),
        Figure::by(
            "raylet_uring_spill_objects",
            "Objects written to disk and read back since the start, and failures of either",
            "Event",
            [
                ("spilled", spilling.spilled_objects),
                ("restored", spilling.restored_objects),
                ("failed", spilling.failures),
            ],
        ),
        Figure::new("raylet_uring_resources", "Resources of the node, in Ray's units", resources),
        Figure::new(
            "raylet_uring_peer_callers",
            "Nodes that are connected to here as peers",
            [(Vec::new(), status.peer_callers as f64)],
        ),
    ]
}

/// All figures of some nodes in Prometheus' text format. Each has the labels `NodeId` and `Pid`.
pub fn page(nodes: &[NodeStatus]) -> String {
    let mut families: Vec<Figure> = Vec::new();
    for status in nodes {
        for figure in counts(status).into_iter().chain(of(status)) {
            let node = [("NodeId", status.node_id.clone()), ("Pid", status.pid.to_string())];
            let values = figure.values.into_iter();
            let values = values.map(|(labels, value)| (node.iter().cloned().chain(labels).collect(), value));
            // All values of a metric stand together, as the format demands.
            match families.iter_mut().find(|family| family.name == figure.name) {
                Some(family) => family.values.extend(values),
                None => families.push(Figure { values: values.collect(), ..figure }),
            }
        }
    }
    families.iter().filter(|family| !family.values.is_empty()).map(family).collect()
}

fn family(figure: &Figure) -> String {
    let Figure { name, description, values } = figure;
    let mut text = format!("# HELP {name} {}\n# TYPE {name} gauge\n", escaped(description, false));
    for (labels, value) in values {
        let labels: Vec<String> =
            labels.iter().map(|(key, text)| format!("{key}=\"{}\"", escaped(text, true))).collect();
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name}{{{}}} {value}", labels.join(","));
    }
    text
}

/// Text as the format has it: backslashes and ends of lines are escaped, within quotes these, too.
fn escaped(text: &str, in_quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    match in_quotes {
        true => text.replace('"', "\\\""),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::{ArenaStatus, TransferStatus};

    fn node(pid: u32) -> NodeStatus {
        let arena = ArenaStatus { page_kind: "thp".into(), size_bytes: 64, asked: "2M".into(), ..Default::default() };
        let arena = ArenaStatus { fallback_reason: Some("\"none\"\nleft\\".into()), ..arena };
        let transfer =
            TransferStatus { relay_sent_bytes: 7, file_sent_bytes: 3, pulls_wanted: 2, ..Default::default() };
        let itself = PeerStatus { address: "a:1".into(), state: "itself".into(), ..Default::default() };
        let peer = PeerStatus { address: "b:1".into(), state: "connected".into(), received_bytes: 9, ..itself.clone() };
        let down = PeerStatus { address: "c:1".into(), state: "down".into(), link_sent_bytes: 5, ..itself.clone() };
        NodeStatus { pid, arenas: vec![arena], transfer, peers: vec![itself, peer, down], ..Default::default() }
    }

    #[test]
    fn a_page_has_each_metric_once_with_the_values_of_all_nodes() {
        let page = page(&[node(4), node(5)]);
        let of = |name: &str| {
            let values = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
            values.map(str::to_owned).collect::<Vec<_>>()
        };
        let part = of("raylet_uring_transfer_part_bytes");
        assert_eq!(part.len(), 8, "{page}");
        assert_eq!(part[1], r#"raylet_uring_transfer_part_bytes{NodeId="",Pid="4",Part="sent_while_coming"} 7"#);
        assert_eq!(part[4], r#"raylet_uring_transfer_part_bytes{NodeId="",Pid="5",Part="sent_from_disk"} 3"#);
        let up = of("raylet_uring_peer_up");
        assert!(up[0].ends_with(r#"Peer="b:1"} 1"#) && up[1].ends_with(r#"Peer="c:1"} 0"#), "{up:?}");
        assert!(of("raylet_uring_peer_received_bytes")[0].ends_with(r#"Peer="b:1"} 9"#), "{page}");
        assert!(of("raylet_uring_peer_link_bytes")[3].ends_with(r#"Peer="c:1",Direction="sent"} 5"#), "{page}");
        assert!(of("raylet_uring_arena_pages")[0].ends_with(r#"Why="\"none\"\nleft\\"} 1"#), "{page}");
        assert!(of("raylet_uring_pulls")[0].ends_with(r#"State="wanted"} 2"#), "{page}");
        let mut names: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let count = names.len();
        names.dedup();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "each once");
        assert!(!page.contains("raylet_uring_latency_us"), "without a value it is left out");
    }
}
