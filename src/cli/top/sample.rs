//! What is known of a node at one look, with rates since the look before.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::observe::status::{NodeStatus, OperationStatus};

/// A node's status, and how often its operations happened since the look before.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// The status.
    #[serde(flatten)]
    pub status: NodeStatus,
    /// Operations per second by name, in the order of the status; `None` at the first look.
    pub rates: Vec<Rate>,
    /// Bytes that move, with their rates.
    pub flows: Vec<Flow>,
}

/// How often an operation happens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// The operation's name.
    pub operation: String,
    /// Times a second since the look before; `None` at the first look.
    pub per_s: Option<f64>,
}

/// Bytes on one of their ways.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flow {
    /// Which way: "received" from other nodes and "sent" to them, "spilled" to disk and "restored" from it.
    pub flow: &'static str,
    /// Bytes since the node's boot.
    pub bytes: u64,
    /// Bytes a second since the look before; `None` at the first look.
    pub bytes_per_s: Option<f64>,
}

/// Bytes since the boot on each of their ways.
fn moved(status: &NodeStatus) -> [(&'static str, u64); 4] {
    let (transfer, spilling) = (&status.transfer, &status.spilling);
    [
        ("received", transfer.lane_received_bytes + transfer.call_received_bytes),
        ("sent", transfer.lane_sent_bytes + transfer.call_sent_bytes),
        ("spilled", spilling.spilled_bytes),
        ("restored", spilling.restored_bytes),
    ]
}

/// What a look saw: the node's clock in seconds, how often each operation was, and how many bytes went each way.
struct Seen {
    uptime_s: f64,
    operations: BTreeMap<String, u64>,
    moved: [(&'static str, u64); 4],
}

/// What the look before saw, by process id.
#[derive(Default)]
pub struct Samples {
    before: BTreeMap<u32, Seen>,
}

impl Samples {
    /// Takes in a look at all nodes.
    pub fn add(&mut self, nodes: Vec<NodeStatus>) -> Vec<Sample> {
        let before = std::mem::take(&mut self.before);
        let samples = nodes.into_iter().map(|status| {
            let operations: BTreeMap<String, u64> =
                status.operations.iter().map(|operation| (operation.name.clone(), operation.count)).collect();
            let moved = moved(&status);
            let last = before.get(&status.pid);
            // By the node's own clock: how long the question took does not matter.
            let passed_s = last.map(|last| status.uptime_s - last.uptime_s).filter(|passed_s| *passed_s > 0.0);
            let per_s = |now: u64, was: u64| passed_s.map(|passed_s| now.saturating_sub(was) as f64 / passed_s);
            let rate = |operation: &OperationStatus| {
                let was = last.and_then(|last| last.operations.get(&operation.name)).copied().unwrap_or(0);
                Rate { operation: operation.name.clone(), per_s: per_s(operation.count, was) }
            };
            let rates = status.operations.iter().map(rate).collect();
            let flow = |(at, &(flow, bytes)): (usize, &(&'static str, u64))| {
                let was = last.map_or(0, |last| last.moved[at].1);
                Flow { flow, bytes, bytes_per_s: per_s(bytes, was) }
            };
            let flows = moved.iter().enumerate().map(flow).collect();
            self.before.insert(status.pid, Seen { uptime_s: status.uptime_s, operations, moved });
            Sample { status, rates, flows }
        });
        samples.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::{SpillCounts, TransferStatus};

    fn status(uptime_s: f64, counts: &[(&str, u64)]) -> NodeStatus {
        let operation =
            |&(name, count): &(&str, u64)| OperationStatus { name: name.to_owned(), count, ..Default::default() };
        NodeStatus { pid: 7, uptime_s, operations: counts.iter().map(operation).collect(), ..Default::default() }
    }

    #[test]
    fn rates_are_by_the_nodes_own_clock() {
        let mut samples = Samples::default();
        let first = samples.add(vec![status(10.0, &[("a", 5)])]);
        assert_eq!(first[0].rates[0].per_s, None);
        let second = samples.add(vec![status(12.0, &[("a", 25), ("b", 4)])]);
        let rates: Vec<Option<f64>> = second[0].rates.iter().map(|rate| rate.per_s).collect();
        assert_eq!(rates, [Some(10.0), Some(2.0)]);
        // Another node with the same process id: nothing is told rather than nonsense.
        let third = samples.add(vec![status(1.0, &[("a", 1)])]);
        assert_eq!(third[0].rates[0].per_s, None);
    }

    #[test]
    fn bytes_that_move_have_rates_too() {
        let at = |uptime_s: f64, lane: u64, call: u64, spilled_bytes: u64| NodeStatus {
            uptime_s,
            transfer: TransferStatus {
                lane_received_bytes: lane,
                call_received_bytes: call,
                call_sent_bytes: 7,
                ..Default::default()
            },
            spilling: SpillCounts { spilled_bytes, ..Default::default() },
            ..Default::default()
        };
        let mut samples = Samples::default();
        assert!(samples.add(vec![at(1.0, 100, 10, 0)])[0].flows.iter().all(|flow| flow.bytes_per_s.is_none()));
        let second = samples.add(vec![at(3.0, 300, 20, 5000)]);
        let flows: Vec<(&str, u64, Option<f64>)> =
            second[0].flows.iter().map(|flow| (flow.flow, flow.bytes, flow.bytes_per_s)).collect();
        let expected = [
            ("received", 320, Some(105.0)),
            ("sent", 7, Some(0.0)),
            ("spilled", 5000, Some(2500.0)),
            ("restored", 0, Some(0.0)),
        ];
        assert_eq!(flows, expected);
    }
}
