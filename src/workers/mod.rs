//! Worker processes: what they are started with, starting, watching and stopping them.
//!
//! - [`command`]: the command line and environment of a worker, as Ray's raylet builds them.
//! - [`nursery`]: workers forked from a process that has imported Ray.
//! - [`pinning`]: workers bound to the cores of the shard that granted their lease.
//! - [`process`]: the table of child processes: spawn, signal, exit events.
//!
//! Everything here runs on the control thread, inside a tokio `LocalSet`; nothing is `Send`.

pub mod command;
pub mod exit;
pub mod nursery;
pub mod pinning;
pub mod process;
