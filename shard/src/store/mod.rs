//! The plasma object store of one core, and the bank of spans that the cores of a node share.
//!
//! A [`Store`] holds the objects of the clients that its core serves, in spans of shared memory that the [`SpanBank`] grants it. Both are
//! state machines: events in, effects out.
//!
//! Shard 0 has both, as a [`NodeMemory`]: its own requests to the bank are answered within the call, so a node of one shard sees
//! neither requests nor answers. Any other shard sends those of its effects that have a [`StoreEffect::for_bank`] to shard 0, which gives them to
//! [`NodeMemory::handle_bank`], and hands the [`BankEffect`]s that come back to its own [`Store::handle`]. Both ways must keep their order.
//! A [`StoreEvent::Tick`] when a shard starts fetches its reserve of spans before the first create needs it.
//!
//! ```
//! use raylet_shard::ids::{ObjectId, WorkerId};
//! use raylet_shard::store::*;
//!
//! let layout = Layout::new(&[SegmentSpec { bytes: 64 << 20, numa_node: 0 }], Layout::span_bytes_for(64 << 20, 1))?;
//! let bank = SpanBank::new(BankConfig::new(layout.clone(), 1)).expect("one shard");
//! let mut memory = NodeMemory::new(Store::new(StoreConfig::new(layout, 1)), bank, 0);
//!
//! let (mut effects, mut to_other_shards) = (Vec::new(), Vec::new());
//! let create = StoreEvent::Create {
//!     client: 1,
//!     token: 7,
//!     id: ObjectId([1; 28]),
//!     data_bytes: 100_000,
//!     metadata_bytes: 8,
//!     owner: WorkerId::NIL,
//!     source: ObjectSource::CreatedByWorker,
//!     mutable: false,
//!     try_immediately: false,
//!     near: None,
//! };
//! memory.handle(create, 0, &mut effects, &mut to_other_shards);
//! assert!(matches!(effects[..], [StoreEffect::Created { token: 7, result: Ok(Placement { data_offset: 0, .. }), .. }]));
//! # Ok::<(), LayoutError>(())
//! ```

mod api;
mod arena;
mod bank;
mod blocks;
mod check;
mod config;
mod creates;
mod credit;
mod keeps;
mod line;
mod machine;
mod memory;
mod objects;
mod pool;
mod queue;
mod refs;
mod report;
mod spans;
mod spill;
mod waiters;

#[cfg(test)]
mod bank_tests;
#[cfg(test)]
mod spill_tests;
#[cfg(test)]
mod tests;

pub use api::*;
pub use bank::{BankConfig, BankStats, SpanBank};
pub use config::*;
pub use credit::CREDIT_RUN_MAX_BYTES;
pub use machine::Store;
pub use memory::NodeMemory;
pub use report::{Counters, ObjectInfo, StoreStats, Tally};
pub use spill::{SpilledInfo, RESTORE_ATTEMPTS_MAX};
