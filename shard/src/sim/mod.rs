//! Seeded simulators: a node's state machines in one thread, with late messages and random clients, checked against a model.

pub mod cluster_sim;
pub mod pull_sim;
pub mod sched_sim;
pub mod store_sim;
