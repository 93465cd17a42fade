//! What is known of a node at one look, with rates since the look before.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::observe::status::NodeStatus;

/// A node's status, and how often its operations happened since the look before.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// The status.
    #[serde(flatten)]
    pub status: NodeStatus,
    /// Operations per second by name, in the order of the status; `None` at the first look.
    pub rates: Vec<Rate>,
}

/// How often an operation happens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// The operation's name.
    pub operation: String,
    /// Times a second since the look before; `None` at the first look.
    pub per_s: Option<f64>,
}

/// What the look before saw, by process id.
#[derive(Default)]
pub struct Samples {
    before: BTreeMap<u32, (f64, BTreeMap<String, u64>)>,
}

impl Samples {
    /// Takes in a look at all nodes.
    pub fn add(&mut self, nodes: Vec<NodeStatus>) -> Vec<Sample> {
        let before = std::mem::take(&mut self.before);
        let samples = nodes.into_iter().map(|status| {
            let counts: BTreeMap<String, u64> =
                status.operations.iter().map(|operation| (operation.name.clone(), operation.count)).collect();
            let last = before.get(&status.pid);
            // By the node's own clock: how long the question took does not matter.
            let passed_s = last.map(|(uptime_s, _)| status.uptime_s - uptime_s).filter(|passed_s| *passed_s > 0.0);
            let rates = status.operations.iter().map(|operation| {
                let was = last.and_then(|(_, counts)| counts.get(&operation.name)).copied().unwrap_or(0);
                let more = operation.count.saturating_sub(was) as f64;
                Rate { operation: operation.name.clone(), per_s: passed_s.map(|passed_s| more / passed_s) }
            });
            let rates = rates.collect();
            self.before.insert(status.pid, (status.uptime_s, counts));
            Sample { status, rates }
        });
        samples.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::OperationStatus;

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
}
