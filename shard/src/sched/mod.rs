//! Leases, resources, workers and bundles of a node, decided per shard.
//!
//! [`Scheduler`] is one shard's state machine: `handle(event, now, &mut effects)`. [`api`] says what goes in and out and which shard
//! gets what. A request goes through these stages:
//!
//! 1. *deps*: its objects are not all here yet;
//! 2. *ready*: in its class's queue, first come, first served;
//! 3. *worker*: it holds its resources and waits for a process;
//! 4. *granted*: the owner has it, until it is returned or its worker dies.
//!
//! Classes take turns, one grant each. A class that does not fit is parked under one resource that it lacks and is looked at again
//! only when enough of that resource is free (see `waiters`), so the cost of a grant does not grow with the number of classes.
//! A class that others passed by too often gets freed resources set aside.

pub mod api;
mod bank;
mod bundles;
mod grant;
mod leases;
mod ledger;
mod pool;
mod queue;
mod reaping;
mod remote;
mod report;
mod scheduler;
#[cfg(test)]
mod tests;
mod types;
mod waiters;
mod workers;

pub use api::*;
pub use bank::{Mode, SchedMsg, WANT_BATCH};
pub use reaping::Staff;
pub use report::{LeaseInfo, ResourceUse};
pub use scheduler::Scheduler;
pub use types::*;
pub use workers::{Fit, Worker};
