//! Requests that name their node (`NodeAffinitySchedulingStrategy`), judged as Ray 2.60's cluster scheduler does where there is
//! one node. One that is bound to this node, and that this node can't hold with all that it has, fails at once instead of
//! waiting for a node that can: there will be no other.

use std::collections::BTreeMap;

use raylet_shard::ids::NodeId;
use raylet_shard::sched::Fixed;

use super::labels::elsewhere;
use super::proto::scheduling_strategy::SchedulingStrategy::NodeAffinitySchedulingStrategy as Affinity;
use super::proto::LeaseSpec;

/// What Ray's owner shows of a request that is refused for its affinity.
pub const UNSCHEDULABLE: &str = "The node specified via NodeAffinitySchedulingStrategy doesn't exist any more or is \
                                 infeasible, and soft=False was specified.";

/// What a request's affinity asks of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it goes its way, and waits where it has to.
    Open,
    /// It is to be granted now, or refused (`fail_on_unavailable`).
    NowOrNever,
    /// It is refused.
    Never,
}

/// Judges a request by the node that it names. `totals` is all that this node has, by the names of resources.
pub fn judge(
    spec: &LeaseSpec,
    node: &NodeId,
    totals: &BTreeMap<String, Fixed>,
    labels: &BTreeMap<String, String>,
) -> Verdict {
    let strategy = spec.scheduling_strategy.as_ref().and_then(|strategy| strategy.scheduling_strategy.as_ref());
    let Some(Affinity(affinity)) = strategy else {
        return Verdict::Open;
    };
    if affinity.soft {
        return Verdict::Open;
    }
    let fits = |(name, amount): (&String, &f64)| {
        let amount = Fixed::from_f64(*amount);
        amount.is_some_and(|amount| amount <= totals.get(name).copied().unwrap_or(Fixed::ZERO))
    };
    let here = affinity.node_id == node.as_bytes();
    // A selector that makes no sense is refused by its own error.
    let of_other_labels = matches!(elsewhere(spec, labels), Ok(Some(_)));
    match here && !of_other_labels && spec.required_resources.iter().all(fits) {
        false => Verdict::Never,
        true if affinity.fail_on_unavailable => Verdict::NowOrNever,
        true => Verdict::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ray::proto::{
        LabelSelector, LabelSelectorConstraint, LabelSelectorOperator, NodeAffinitySchedulingStrategy,
        SchedulingStrategy,
    };

    const HERE: NodeId = NodeId([5; 28]);

    fn spec(node: NodeId, cpus: f64, change: impl FnOnce(&mut NodeAffinitySchedulingStrategy)) -> LeaseSpec {
        let mut affinity = NodeAffinitySchedulingStrategy {
            node_id: node.as_bytes().to_vec().into(),
            ..NodeAffinitySchedulingStrategy::default()
        };
        change(&mut affinity);
        LeaseSpec {
            required_resources: [("CPU".to_owned(), cpus)].into(),
            scheduling_strategy: Some(SchedulingStrategy { scheduling_strategy: Some(Affinity(affinity)) }),
            ..LeaseSpec::default()
        }
    }

    fn verdict(spec: &LeaseSpec) -> Verdict {
        let totals = [("CPU".to_owned(), Fixed::units(2))].into();
        let labels = [("zone".to_owned(), "a".to_owned())].into();
        judge(spec, &HERE, &totals, &labels)
    }

    #[test]
    fn a_request_bound_to_this_node_has_to_fit_it() {
        assert_eq!(verdict(&spec(HERE, 2.0, |_| ())), Verdict::Open);
        assert_eq!(verdict(&spec(HERE, 2.0001, |_| ())), Verdict::Never);
        assert_eq!(verdict(&spec(HERE, 3.0, |affinity| affinity.soft = true)), Verdict::Open);
        assert_eq!(verdict(&spec(HERE, 2.0, |affinity| affinity.fail_on_unavailable = true)), Verdict::NowOrNever);
        assert_eq!(verdict(&spec(HERE, 3.0, |affinity| affinity.fail_on_unavailable = true)), Verdict::Never);
        let mut other = spec(HERE, 0.0, |_| ());
        other.required_resources.insert("slot".to_owned(), 1.0);
        assert_eq!(verdict(&other), Verdict::Never);
        assert_eq!(verdict(&LeaseSpec::default()), Verdict::Open);
    }

    #[test]
    fn a_request_bound_to_another_node_does_not_wait_here() {
        let there = NodeId([6; 28]);
        assert_eq!(verdict(&spec(there, 1.0, |_| ())), Verdict::Never);
        assert_eq!(verdict(&spec(there, 1.0, |affinity| affinity.soft = true)), Verdict::Open);
    }

    #[test]
    fn labels_that_this_node_lacks_are_like_resources_that_it_lacks() {
        for (zone, expected) in [("a", Verdict::Open), ("b", Verdict::Never)] {
            let mut spec = spec(HERE, 1.0, |_| ());
            spec.label_selector = Some(LabelSelector {
                label_constraints: vec![LabelSelectorConstraint {
                    label_key: "zone".to_owned(),
                    operator: LabelSelectorOperator::LabelOperatorIn as i32,
                    label_values: vec![zone.to_owned()],
                }],
            });
            assert_eq!(verdict(&spec), expected, "{zone}");
        }
    }
}
