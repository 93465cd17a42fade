//! The one type of package `ray.rpc.autoscaler` that a raylet meets: why a node is drained.

/// Ray enum `ray.rpc.autoscaler.DrainNodeReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum DrainNodeReason {
    Unspecified = 0,
    IdleTermination = 1,
    Preemption = 2,
}
