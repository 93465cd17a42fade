//! Objects on their way between nodes: which are fetched, from where, and what becomes of the pieces.
//!
//! Four state machines. The [`PullManager`] decides which wanted objects are asked for, and whom. The [`Receiver`] puts chunks
//! into new objects of the store. The [`Sender`] hands out the chunks of objects that others asked for, here or still
//! coming. The [`Spread`] names nodes that ask for one object to each other, so that a broadcast is a tree. None knows how bytes
//! travel: a chunk is a number and a length, so that another way of fetching them needs no other decisions.
//!
//! The semantics are those of Ray 2.60's object manager (`src/ray/object_manager`: `pull_manager.cc`, `push_manager.cc`,
//! `object_buffer_pool.cc`), with the differences that [`PullManager`] names.

mod api;
mod manager;
mod queues;
mod receive;
mod receive_api;
mod receiving;
mod send;
mod spread;

#[cfg(test)]
mod receive_tests;
#[cfg(test)]
mod spread_tests;
#[cfg(test)]
mod tests;

pub use api::{Kind, PullConfig, PullEffect, PullEvent, Target, WishId};
pub use manager::{PullManager, PullStats};
pub use receive::Receiver;
pub use receive_api::{ChunkHead, ReceiveEffect, ReceiveEvent, Refusal};
pub use receiving::Lent;
pub use send::{SendEffect, SendEvent, Sender};
pub use spread::{Serve, Spread, ASKERS_MAX, FANOUT, FORGET_AFTER_NS, SPREADS_MAX};
