//! The plasma object store of one core, and the bank of spans that the cores of a node share.
//!
//! A [`Store`] holds the objects of the clients that its core serves, in spans of shared memory that the [`SpanBank`] grants it. Both are
//! state machines: events in, effects out. [`NodeMemory`] puts the bank and the store of its own shard together.

mod api;
mod arena;
mod bank;
mod blocks;
mod check;
mod config;
mod creates;
mod machine;
mod memory;
mod objects;
mod pool;
mod queue;
mod refs;
mod report;
mod spans;
mod waiters;

#[cfg(test)]
mod tests;

pub use api::*;
pub use bank::{BankConfig, BankStats, SpanBank};
pub use config::*;
pub use machine::Store;
pub use memory::NodeMemory;
pub use report::{Counters, ObjectInfo, StoreStats, Tally};
