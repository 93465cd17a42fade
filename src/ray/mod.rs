//! Everything that speaks Ray: its messages, its RPCs and its sockets.

pub mod agents;
pub mod memory_monitor;
pub mod metrics;
pub mod proto;
pub mod runtime_env;
pub mod rpc;
pub mod wire;
pub mod boot;
pub mod classes;
pub mod control;
pub mod messages;
pub mod plasma_conn;
pub mod raylet_conn;
pub mod registry;
pub mod resources;
