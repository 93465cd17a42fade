//! Labels of the node, and requests that choose nodes by them.
//!
//! Labels do not change while the node runs, so whether a request may run here is decided once for each of its kind: a kind that
//! may not asks, besides its resources, for one that no node has. It is then infeasible like any other that the node can't hold:
//! queued, reported to the autoscaler, rejected where it may not queue, and cancelled as those are.

use std::collections::BTreeMap;

use base64::prelude::{Engine, BASE64_STANDARD_NO_PAD};
use prost::Message;

use crate::ray::proto::label_operator::LabelOperator as Operator;
use crate::ray::proto::scheduling_strategy::SchedulingStrategy::NodeLabelSchedulingStrategy as ByLabels;
use crate::ray::proto::{
    FallbackStrategy, LabelMatchExpression, LabelSelector, LabelSelectorConstraint, LabelSelectorOperator, LeaseSpec,
    TaskType,
};

/// The label that names the node itself (Ray 2.60, `kLabelKeyNodeID`).
pub const NODE_ID: &str = "ray.io/node-id";

/// Begins the name of the resource that keeps requests with other labels away. Ray's resource names have no such character.
const ELSEWHERE: &str = "\u{1}labels:";

/// A selector that can't be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// An operator that Ray 2.60 does not have.
    #[error("label {key:?}: expected the operator IN (1) or NOT_IN (2), got {operator}")]
    Operator {
        /// The label.
        key: String,
        /// What came.
        operator: i32,
    },
    /// An expression without an operator.
    #[error("label {0:?}: expected an operator, got none")]
    NoOperator(String),
}

/// The name of the resource that a request asks for because it may not run on a node with these labels; `None` where it may.
///
/// As in stock Ray, `NodeLabelSchedulingStrategy` binds tasks; the GCS places actors, and their leases only heed `label_selector`.
///
/// # Errors
/// [`LabelError`], for a selector that makes no sense.
pub fn elsewhere(spec: &LeaseSpec, labels: &BTreeMap<String, String>) -> Result<Option<String>, LabelError> {
    let by_labels = spec.scheduling_strategy.as_ref().and_then(|strategy| strategy.scheduling_strategy.as_ref());
    if let (Some(ByLabels(strategy)), false) = (by_labels, spec.r#type == TaskType::ActorCreationTask as i32) {
        for expression in strategy.hard.iter().flat_map(|hard| &hard.expressions) {
            if !holds(expression, labels)? {
                return Ok(Some(ELSEWHERE.to_owned()));
            }
        }
    }
    let Some(selector) = &spec.label_selector else {
        return Ok(None);
    };
    let options = spec.fallback_strategy.iter().flat_map(|strategy: &FallbackStrategy| &strategy.options);
    for selector in std::iter::once(selector).chain(options.filter_map(|option| option.label_selector.as_ref())) {
        if selects(selector, labels)? {
            return Ok(None);
        }
    }
    Ok(Some(format!("{ELSEWHERE}{}", BASE64_STANDARD_NO_PAD.encode(selector.encode_to_vec()))))
}

/// The selector in a name that [`elsewhere`] made, for reports: an empty one where the request had none. `None` for the name of
/// a resource.
pub fn selector_of(name: &str) -> Option<LabelSelector> {
    let bytes = BASE64_STANDARD_NO_PAD.decode(name.strip_prefix(ELSEWHERE)?).unwrap_or_default();
    Some(LabelSelector::decode(&bytes[..]).unwrap_or_default())
}

/// True for a name that stands for other labels, not for a resource.
pub fn is_elsewhere(name: &str) -> bool {
    name.starts_with(ELSEWHERE)
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> Result<bool, LabelError> {
    for LabelSelectorConstraint { label_key, operator, label_values } in &selector.label_constraints {
        let has = labels.get(label_key).is_some_and(|value| label_values.contains(value));
        let holds = match LabelSelectorOperator::try_from(*operator) {
            Ok(LabelSelectorOperator::LabelOperatorIn) => has,
            Ok(LabelSelectorOperator::LabelOperatorNotIn) => !has,
            _ => return Err(LabelError::Operator { key: label_key.clone(), operator: *operator }),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

fn holds(expression: &LabelMatchExpression, labels: &BTreeMap<String, String>) -> Result<bool, LabelError> {
    let value = labels.get(&expression.key);
    let operator = expression.operator.as_ref().and_then(|operator| operator.label_operator.as_ref());
    Ok(match operator.ok_or_else(|| LabelError::NoOperator(expression.key.clone()))? {
        Operator::LabelIn(list) => value.is_some_and(|value| list.values.contains(value)),
        Operator::LabelNotIn(list) => !value.is_some_and(|value| list.values.contains(value)),
        Operator::LabelExists(_) => value.is_some(),
        Operator::LabelDoesNotExist(_) => value.is_none(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ray::proto::{
        FallbackOption, LabelDoesNotExist, LabelExists, LabelIn, LabelMatchExpressions, LabelNotIn, LabelOperator,
        NodeLabelSchedulingStrategy, SchedulingStrategy,
    };

    fn labels() -> BTreeMap<String, String> {
        [("zone", "a"), ("kind", "spot")].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    fn selector(constraints: &[(&str, i32, &[&str])]) -> LabelSelector {
        let constraint = |(key, operator, values): &(&str, i32, &[&str])| LabelSelectorConstraint {
            label_key: (*key).to_owned(),
            operator: *operator,
            label_values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        LabelSelector { label_constraints: constraints.iter().map(constraint).collect() }
    }

    fn task(selector: LabelSelector) -> LeaseSpec {
        LeaseSpec { label_selector: Some(selector), ..LeaseSpec::default() }
    }

    fn runs_here(spec: &LeaseSpec) -> bool {
        elsewhere(spec, &labels()).unwrap().is_none()
    }

    #[test]
    fn all_constraints_of_a_selector_must_hold() {
        assert!(runs_here(&LeaseSpec::default()) && runs_here(&task(LabelSelector::default())));
        for (constraints, here) in [
            (vec![("zone", 1, &["a"][..])], true),
            (vec![("zone", 1, &["b", "a"][..])], true),
            (vec![("zone", 1, &["b"][..])], false),
            (vec![("zone", 1, &[][..])], false),
            (vec![("none", 1, &["a"][..])], false),
            (vec![("zone", 2, &["b"][..])], true),
            (vec![("zone", 2, &["a", "b"][..])], false),
            (vec![("none", 2, &["a"][..])], true),
            (vec![("zone", 1, &["a"][..]), ("kind", 2, &["spot"][..])], false),
        ] {
            assert_eq!(runs_here(&task(selector(&constraints))), here, "{constraints:?}");
        }
        let error = elsewhere(&task(selector(&[("zone", 7, &["a"])])), &labels()).unwrap_err();
        assert_eq!(error.to_string(), "label \"zone\": expected the operator IN (1) or NOT_IN (2), got 7");
    }

    #[test]
    fn a_fallback_that_holds_is_enough() {
        let options =
            vec![FallbackOption::default(), FallbackOption { label_selector: Some(selector(&[("zone", 1, &["a"])])) }];
        let mut spec = task(selector(&[("zone", 1, &["b"])]));
        spec.fallback_strategy = Some(FallbackStrategy { options });
        assert!(runs_here(&spec));
    }

    #[test]
    fn a_request_for_other_labels_names_them() {
        let wanted = selector(&[("zone", 1, &["b"]), ("none", 2, &["x"])]);
        let name = elsewhere(&task(wanted.clone()), &labels()).unwrap().expect("it does not run here");
        assert!(is_elsewhere(&name));
        assert_eq!(selector_of(&name), Some(wanted));
        assert_eq!((is_elsewhere("CPU"), selector_of("CPU")), (false, None));
    }

    #[test]
    fn a_strategy_of_labels_binds_tasks_by_its_hard_part() {
        let strategy = |key: &str, operator: Operator| {
            let expression = LabelMatchExpression {
                key: key.to_owned(),
                operator: Some(LabelOperator { label_operator: Some(operator) }),
            };
            let hard = Some(LabelMatchExpressions { expressions: vec![expression] });
            let by_labels = ByLabels(NodeLabelSchedulingStrategy { hard, soft: None });
            let scheduling_strategy = Some(SchedulingStrategy { scheduling_strategy: Some(by_labels) });
            LeaseSpec { scheduling_strategy, ..LeaseSpec::default() }
        };
        let values = |value: &str| vec![value.to_owned()];
        for (spec, here) in [
            (strategy("zone", Operator::LabelIn(LabelIn { values: values("a") })), true),
            (strategy("zone", Operator::LabelIn(LabelIn { values: values("b") })), false),
            (strategy("zone", Operator::LabelNotIn(LabelNotIn { values: values("a") })), false),
            (strategy("none", Operator::LabelNotIn(LabelNotIn { values: values("a") })), true),
            (strategy("zone", Operator::LabelExists(LabelExists {})), true),
            (strategy("none", Operator::LabelExists(LabelExists {})), false),
            (strategy("zone", Operator::LabelDoesNotExist(LabelDoesNotExist {})), false),
            (strategy("none", Operator::LabelDoesNotExist(LabelDoesNotExist {})), true),
        ] {
            assert_eq!(runs_here(&spec), here, "{spec:?}");
            let name = elsewhere(&spec, &labels()).unwrap();
            assert_eq!(name.as_deref().map(selector_of), (!here).then(|| Some(LabelSelector::default())));
            assert!(
                runs_here(&LeaseSpec { r#type: TaskType::ActorCreationTask as i32, ..spec }),
                "the GCS places actors"
            );
        }
        let mut bad = strategy("zone", Operator::LabelExists(LabelExists {}));
        if let Some(ByLabels(strategy)) = bad.scheduling_strategy.as_mut().and_then(|s| s.scheduling_strategy.as_mut())
        {
            strategy.hard.as_mut().unwrap().expressions[0].operator = None;
        }
        assert_eq!(elsewhere(&bad, &labels()), Err(LabelError::NoOperator("zone".to_owned())));
    }
}
