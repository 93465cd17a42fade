//! Messages of Ray 2.60 `common.proto` that say where a task may run: strategies and label selectors.

use prost::bytes::Bytes;

/// Ray enum `ray.rpc.PlacementStrategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PlacementStrategy {
    Pack = 0,
    Spread = 1,
    StrictPack = 2,
    StrictSpread = 3,
}

/// Ray enum `ray.rpc.LabelSelectorOperator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum LabelSelectorOperator {
    LabelOperatorUnspecified = 0,
    LabelOperatorIn = 1,
    LabelOperatorNotIn = 2,
}

/// Ray message `ray.rpc.LabelIn`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelIn {
    #[prost(string, repeated, tag = "1")]
    pub values: Vec<String>,
}

/// Ray message `ray.rpc.LabelNotIn`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelNotIn {
    #[prost(string, repeated, tag = "1")]
    pub values: Vec<String>,
}

/// Ray message `ray.rpc.LabelExists`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelExists {}

/// Ray message `ray.rpc.LabelDoesNotExist`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelDoesNotExist {}

/// Ray message `ray.rpc.LabelOperator`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelOperator {
    #[prost(oneof = "label_operator::LabelOperator", tags = "1, 2, 3, 4")]
    pub label_operator: Option<label_operator::LabelOperator>,
}

/// Types nested in [`LabelOperator`].
pub mod label_operator {
    /// The `label_operator` choice of `LabelOperator`.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum LabelOperator {
        #[prost(message, tag = "1")]
        LabelIn(super::super::LabelIn),
        #[prost(message, tag = "2")]
        LabelNotIn(super::super::LabelNotIn),
        #[prost(message, tag = "3")]
        LabelExists(super::super::LabelExists),
        #[prost(message, tag = "4")]
        LabelDoesNotExist(super::super::LabelDoesNotExist),
    }
}

/// Ray message `ray.rpc.LabelMatchExpression`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelMatchExpression {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub operator: Option<super::LabelOperator>,
}

/// Ray message `ray.rpc.LabelMatchExpressions`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelMatchExpressions {
    #[prost(message, repeated, tag = "1")]
    pub expressions: Vec<super::LabelMatchExpression>,
}

/// Ray message `ray.rpc.NodeLabelSchedulingStrategy`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeLabelSchedulingStrategy {
    #[prost(message, optional, tag = "1")]
    pub hard: Option<super::LabelMatchExpressions>,
    #[prost(message, optional, tag = "2")]
    pub soft: Option<super::LabelMatchExpressions>,
}

/// Ray message `ray.rpc.NodeAffinitySchedulingStrategy`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeAffinitySchedulingStrategy {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(bool, tag = "2")]
    pub soft: bool,
    #[prost(bool, tag = "3")]
    pub spill_on_unavailable: bool,
    #[prost(bool, tag = "4")]
    pub fail_on_unavailable: bool,
}

/// Ray message `ray.rpc.PlacementGroupSchedulingStrategy`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlacementGroupSchedulingStrategy {
    #[prost(bytes = "bytes", tag = "1")]
    pub placement_group_id: Bytes,
    #[prost(int64, tag = "2")]
    pub placement_group_bundle_index: i64,
    #[prost(bool, tag = "3")]
    pub placement_group_capture_child_tasks: bool,
}

/// Ray message `ray.rpc.DefaultSchedulingStrategy`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DefaultSchedulingStrategy {}

/// Ray message `ray.rpc.SpreadSchedulingStrategy`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpreadSchedulingStrategy {}

/// Ray message `ray.rpc.SchedulingStrategy`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SchedulingStrategy {
    #[prost(oneof = "scheduling_strategy::SchedulingStrategy", tags = "1, 2, 3, 4, 5")]
    pub scheduling_strategy: Option<scheduling_strategy::SchedulingStrategy>,
}

/// Types nested in [`SchedulingStrategy`].
pub mod scheduling_strategy {
    /// The `scheduling_strategy` choice of `SchedulingStrategy`.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum SchedulingStrategy {
        #[prost(message, tag = "1")]
        DefaultSchedulingStrategy(super::super::DefaultSchedulingStrategy),
        #[prost(message, tag = "2")]
        PlacementGroupSchedulingStrategy(super::super::PlacementGroupSchedulingStrategy),
        #[prost(message, tag = "3")]
        SpreadSchedulingStrategy(super::super::SpreadSchedulingStrategy),
        #[prost(message, tag = "4")]
        NodeAffinitySchedulingStrategy(super::super::NodeAffinitySchedulingStrategy),
        #[prost(message, tag = "5")]
        NodeLabelSchedulingStrategy(super::super::NodeLabelSchedulingStrategy),
    }
}

/// Ray message `ray.rpc.LabelSelectorConstraint`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelSelectorConstraint {
    #[prost(string, tag = "1")]
    pub label_key: String,
    #[prost(enumeration = "super::LabelSelectorOperator", tag = "2")]
    pub operator: i32,
    #[prost(string, repeated, tag = "3")]
    pub label_values: Vec<String>,
}

/// Ray message `ray.rpc.LabelSelector`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelSelector {
    #[prost(message, repeated, tag = "1")]
    pub label_constraints: Vec<super::LabelSelectorConstraint>,
}

/// Ray message `ray.rpc.FallbackOption`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FallbackOption {
    #[prost(message, optional, tag = "1")]
    pub label_selector: Option<super::LabelSelector>,
}

/// Ray message `ray.rpc.FallbackStrategy`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FallbackStrategy {
    #[prost(message, repeated, tag = "1")]
    pub options: Vec<super::FallbackOption>,
}
