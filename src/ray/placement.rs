//! What a lease request asks of the node that serves it, in the terms of [`raylet_shard::cluster`].

use std::collections::BTreeMap;

use raylet_shard::cluster::{amounts, Affinity, Operator, Rule, Strategy, Want};
use raylet_shard::ids::NodeId;

use super::labels::LabelError;
use super::lease_shape::actor_of;
use super::proto::label_operator::LabelOperator;
use super::proto::scheduling_strategy::SchedulingStrategy as Kind;
use super::proto::{
    FallbackStrategy, LabelMatchExpressions, LabelSelector, LabelSelectorOperator, LeaseSpec, SchedulingStrategy,
};

/// The part of a request that decides where it may run, kept while it waits.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// What the lease will hold.
    pub demand: BTreeMap<String, f64>,
    /// What the node must have to be chosen.
    pub placement: BTreeMap<String, f64>,
    /// How the node is chosen.
    pub strategy: Option<SchedulingStrategy>,
    /// The labels that the node must have.
    pub selector: Option<LabelSelector>,
    /// Other labels that will do.
    pub fallback: Option<FallbackStrategy>,
    /// The lease creates an actor.
    pub actor: bool,
    /// It needs objects.
    pub has_arguments: bool,
}

impl Place {
    /// Of a request.
    pub fn of(spec: &LeaseSpec) -> Self {
        Self {
            demand: spec.required_resources.clone(),
            placement: spec.required_placement_resources.clone(),
            strategy: spec.scheduling_strategy.clone(),
            selector: spec.label_selector.clone(),
            fallback: spec.fallback_strategy.clone(),
            actor: actor_of(spec).is_some(),
            has_arguments: !spec.dependencies.is_empty(),
        }
    }

    /// In the scheduler's terms.
    ///
    /// # Errors
    /// [`LabelError`], for a selector that makes no sense.
    pub fn want(&self) -> Result<Want, LabelError> {
        let demand = amounts(&self.demand);
        let placement = if self.placement.is_empty() { demand.clone() } else { amounts(&self.placement) };
        let fallbacks = self.fallback.iter().flat_map(|fallback| &fallback.options);
        let selectors = fallbacks.filter_map(|option| option.label_selector.as_ref());
        let selectors = match &self.selector {
            Some(selector) => std::iter::once(selector).chain(selectors).map(rules_of).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        Ok(Want { demand, placement, strategy: self.strategy()?, selectors, actor: self.actor })
    }

    fn strategy(&self) -> Result<Strategy, LabelError> {
        let kind = self.strategy.as_ref().and_then(|strategy| strategy.scheduling_strategy.as_ref());
        Ok(match kind {
            Some(Kind::SpreadSchedulingStrategy(_)) => Strategy::Spread,
            Some(Kind::NodeAffinitySchedulingStrategy(affinity)) => Strategy::Affinity(Affinity {
                node: NodeId::from_slice(&affinity.node_id).unwrap_or_default(),
                soft: affinity.soft,
                spill_on_unavailable: affinity.spill_on_unavailable,
                fail_on_unavailable: affinity.fail_on_unavailable,
            }),
            Some(Kind::NodeLabelSchedulingStrategy(labels)) => {
                let (hard, soft) = (expressions(labels.hard.as_ref())?, expressions(labels.soft.as_ref())?);
                // Ray binds tasks by them; an actor's are a wish.
                match self.actor {
                    true => Strategy::Labels { hard: Vec::new(), soft: [hard, soft].concat() },
                    false => Strategy::Labels { hard, soft },
                }
            }
            // A bundle is a resource of the node that has it.
            Some(Kind::DefaultSchedulingStrategy(_) | Kind::PlacementGroupSchedulingStrategy(_)) | None => {
                Strategy::Hybrid
            }
        })
    }
}

fn rules_of(selector: &LabelSelector) -> Result<Vec<Rule>, LabelError> {
    let rules = selector.label_constraints.iter().map(|constraint| {
        let (key, values) = (constraint.label_key.clone(), constraint.label_values.clone());
        let operator = match LabelSelectorOperator::try_from(constraint.operator) {
            Ok(LabelSelectorOperator::LabelOperatorIn) => Operator::In(values),
            Ok(LabelSelectorOperator::LabelOperatorNotIn) => Operator::NotIn(values),
            _ => return Err(LabelError::Operator { key, operator: constraint.operator }),
        };
        Ok(Rule { key, operator })
    });
    rules.collect()
}

fn expressions(list: Option<&LabelMatchExpressions>) -> Result<Vec<Rule>, LabelError> {
    let rules = list.iter().flat_map(|list| &list.expressions).map(|expression| {
        let key = expression.key.clone();
        let operator = expression.operator.as_ref().and_then(|operator| operator.label_operator.as_ref());
        let operator = match operator.ok_or_else(|| LabelError::NoOperator(key.clone()))? {
            LabelOperator::LabelIn(list) => Operator::In(list.values.clone()),
            LabelOperator::LabelNotIn(list) => Operator::NotIn(list.values.clone()),
            LabelOperator::LabelExists(_) => Operator::Exists,
            LabelOperator::LabelDoesNotExist(_) => Operator::DoesNotExist,
        };
        Ok(Rule { key, operator })
    });
    rules.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ray::proto::{
        FallbackOption, LabelIn, LabelMatchExpression, LabelOperator as Wrapped, LabelSelectorConstraint,
        NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, SpreadSchedulingStrategy,
    };

    fn by(kind: Kind) -> Option<SchedulingStrategy> {
        Some(SchedulingStrategy { scheduling_strategy: Some(kind) })
    }

    fn selector(operator: i32) -> LabelSelector {
        let label_constraints =
            vec![LabelSelectorConstraint { label_key: "zone".into(), operator, label_values: vec!["a".into()] }];
        LabelSelector { label_constraints }
    }

    #[test]
    fn a_task_is_placed_by_what_it_holds_and_an_actor_by_its_placement_resources() {
        let cpu = |units: f64| BTreeMap::from([("CPU".to_owned(), units)]);
        let task = Place { demand: cpu(2.0), ..Place::default() }.want().unwrap();
        assert_eq!(task.placement, amounts(&cpu(2.0)));
        let actor = Place { demand: cpu(0.0), placement: cpu(1.0), actor: true, ..Place::default() }.want().unwrap();
        assert!(actor.demand.is_empty());
        assert_eq!(actor.placement, amounts(&cpu(1.0)));
    }

    #[test]
    fn strategies_and_selectors_are_read() {
        let spread =
            Place { strategy: by(Kind::SpreadSchedulingStrategy(SpreadSchedulingStrategy {})), ..Place::default() };
        assert_eq!(spread.want().unwrap().strategy, Strategy::Spread);
        let node = NodeId([3; NodeId::LEN]);
        let affinity = NodeAffinitySchedulingStrategy {
            node_id: node.as_bytes().to_vec().into(),
            spill_on_unavailable: true,
            soft: true,
            ..Default::default()
        };
        let bound = Place { strategy: by(Kind::NodeAffinitySchedulingStrategy(affinity)), ..Place::default() };
        let expected = Affinity { node, soft: true, spill_on_unavailable: true, fail_on_unavailable: false };
        assert_eq!(bound.want().unwrap().strategy, Strategy::Affinity(expected));
        let option = FallbackOption { label_selector: Some(selector(2)) };
        let choosy = Place {
            selector: Some(selector(1)),
            fallback: Some(FallbackStrategy { options: vec![option] }),
            ..Place::default()
        };
        let selectors = choosy.want().unwrap().selectors;
        assert_eq!(selectors[0][0].operator, Operator::In(vec!["a".to_owned()]));
        assert_eq!(selectors[1][0].operator, Operator::NotIn(vec!["a".to_owned()]));
        let bad = Place { selector: Some(selector(9)), ..Place::default() };
        assert_eq!(bad.want().unwrap_err(), LabelError::Operator { key: "zone".to_owned(), operator: 9 });
    }

    #[test]
    fn hard_labels_bind_a_task_and_are_an_actors_wish() {
        let expression = LabelMatchExpression {
            key: "zone".to_owned(),
            operator: Some(Wrapped {
                label_operator: Some(LabelOperator::LabelIn(LabelIn { values: vec!["a".into()] })),
            }),
        };
        let hard = Some(LabelMatchExpressions { expressions: vec![expression] });
        let strategy = by(Kind::NodeLabelSchedulingStrategy(NodeLabelSchedulingStrategy { hard, soft: None }));
        for actor in [false, true] {
            let want = Place { strategy: strategy.clone(), actor, ..Place::default() }.want().unwrap();
            let Strategy::Labels { hard, soft } = want.strategy else {
                panic!("expected labels, got {:?}", want.strategy);
            };
            assert_eq!((hard.len(), soft.len()), if actor { (0, 1) } else { (1, 0) });
        }
    }
}
