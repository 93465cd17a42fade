//! What a core of the node decides: no I/O, no clock, no threads, no async.
//!
//! A shard is a state machine. Events go in, effects come out, and the caller carries the effects out. So a whole node of
//! shards runs in one thread under the seeded simulator, and a failing seed replays exactly.

pub mod cluster;
pub mod ids;
pub mod pull;
pub mod sched;
pub mod sim;
pub mod store;
pub mod waits;
