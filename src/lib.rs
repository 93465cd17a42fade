//! The node service of a Ray cluster, thread-per-core on io_uring.
//!
//! Read [`node`] first, which boots and ends a node; then [`core_loop`], which runs a core; then one module of `raylet_shard`.

pub mod attach;
pub mod bridge;
pub mod bulk;
pub mod cli;
pub mod config;
pub mod core_io;
pub mod core_loop;
pub mod deps;
pub mod engine;
pub mod native;
pub mod near;
pub mod node;
pub mod observe;
pub mod peer;
pub mod peers;
pub mod ray;
pub mod socket;
pub mod spill;
pub mod workers;
