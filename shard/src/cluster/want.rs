//! What a request asks for.

use std::collections::BTreeMap;

use super::Amounts;
use crate::ids::NodeId;

/// What a label must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// One of these.
    In(Vec<String>),
    /// None of these; a node without the label will do.
    NotIn(Vec<String>),
    /// Anything, but there.
    Exists,
    /// Not there.
    DoesNotExist,
}

/// A condition on one label of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The label.
    pub key: String,
    /// What it must be.
    pub operator: Operator,
}

impl Rule {
    /// True for a node with these labels.
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// The node that a request names (Ray 2.60, `NodeAffinitySchedulingStrategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// The node.
    pub node: NodeId,
    /// Any other will do where that one is dead or can never hold the request.
    pub soft: bool,
    /// With `soft`: any other will do where that one has no room now.
    pub spill_on_unavailable: bool,
    /// Without `soft`: the request fails where that one has no room now.
    pub fail_on_unavailable: bool,
}

/// How a node is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Strategy {
    /// This node until it is used by more than the threshold, then the least used.
    #[default]
    Hybrid,
    /// All nodes in turn.
    Spread,
    /// The named node.
    Affinity(Affinity),
    /// Any node whose labels match, drawn by lot; one that matches the soft rules too, if there is one with room.
    Labels {
        /// What must hold.
        hard: Vec<Rule>,
        /// What should.
        soft: Vec<Rule>,
    },
}

/// A request for a lease, as far as the choice of a node goes.
#[derive(Clone, Debug, Default)]
pub struct Want {
    /// What the lease will hold.
    pub demand: Amounts,
    /// What the node must have for it to be chosen; more than `demand` for most actors.
    pub placement: Amounts,
    /// How the node is chosen.
    pub strategy: Strategy,
    /// Label selectors, any of which must hold; the earlier ones are preferred. Empty: any node.
    pub selectors: Vec<Vec<Rule>>,
    /// The lease creates an actor: one that needs no resources goes to a node drawn by lot.
    pub actor: bool,
}

impl Want {
    /// True where it may run on this node only or not at all.
    pub fn is_bound(&self) -> bool {
        matches!(&self.strategy, Strategy::Affinity(affinity) if !affinity.soft)
    }

    /// True where a node with this id and these labels may serve it at all.
    pub fn allows(&self, node: NodeId, labels: &BTreeMap<String, String>) -> bool {
        let by_strategy = match &self.strategy {
            Strategy::Affinity(affinity) => affinity.soft || affinity.node == node,
            Strategy::Labels { hard, .. } => hard.iter().all(|rule| rule.holds(labels)),
            Strategy::Hybrid | Strategy::Spread => true,
        };
        by_strategy && (self.selectors.is_empty() || self.selectors.iter().any(|rules| selects(rules, labels)))
    }
}

/// True for a node with these labels.
pub(super) fn selects(rules: &[Rule], labels: &BTreeMap<String, String>) -> bool {
    rules.iter().all(|rule| rule.holds(labels))
}
