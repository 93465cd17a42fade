//! Everything that speaks Ray: its messages, its RPCs and its sockets.

pub mod accept;
pub mod affinity;
pub mod agents;
pub mod boot;
pub mod classes;
pub mod control;
pub mod core_rpc;
pub mod expiring;
pub mod labels;
pub mod lease_shape;
pub mod memory_monitor;
pub mod messages;
pub mod metrics;
pub mod nodes;
pub mod placement;
pub mod plasma_conn;
pub mod proto;
pub mod raylet_conn;
pub mod registry;
pub mod resources;
pub mod rpc;
pub mod runtime_env;
pub mod sightings;
pub mod transfer;
pub mod wire;
