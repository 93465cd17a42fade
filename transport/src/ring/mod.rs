//! A pair of rings in shared memory, each with one writer and one reader: the way of messages without system calls.
//!
//! The memory is a memfd that the node makes and passes to the client, sealed against any change of size, so that neither can make the
//! other's mapping fault. How it is laid out, and what a record is, stands in [`layout`].
//!
//! **Why records of whole lines.** Hot messages (`Get`, `Found`, `Publish`, `RequestLease`, `Granted`, `ReturnLease`) are made to fit 48 bytes,
//! one line with its lead and head: one transfer of one line between two processors. Longer ones take further lines. Measured
//! alternatives are in `ARCHITECTURE.md`.
//!
//! **What a lying peer can do.** Words are read once, as atomics, into memory of our own, and checked there. A wrong stamp, length or head
//! is a [`RingError`], and condemns this pair of rings and nothing else. Punching holes into the file makes zeros, which are wrong stamps.
//! A peer that never reads makes [`PushError::Full`]; the node's answer to that is a bound ([`crate::server`]).

mod doorbell;
mod endpoint;
pub mod layout;
mod memory;
mod receiver;
mod sender;
mod sync;

pub use doorbell::{Doorbell, Rings, SetupError};
pub use endpoint::{Endpoint, Side, Wake};
pub use memory::Memory;
pub use receiver::{Receiver, Record};
pub use sender::Sender;

/// The other side has written what no honest one writes. This ring is of no more use; nothing else is harmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A line is neither of this lap nor of the last.
    #[error("a line of the ring is stamped {got}, expected {expected}, or {or} where it is not written yet: the peer is broken, close its connection")]
    Stamp {
        /// What stands there.
        got: u32,
        /// Of this lap.
        expected: u32,
        /// Of the last lap.
        or: u32,
    },
    /// A record longer than may be.
    #[error("a record of the ring announces {got_bytes} bytes, at most {limit_bytes} are allowed: the peer is broken, close its connection")]
    Length {
        /// As announced.
        got_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A line inside a record that does not belong to it.
    #[error("a further line of a record starts with {got:#018x}, expected {expected:#018x}: the peer is broken, close its connection")]
    Further {
        /// What stands there.
        got: u64,
        /// What has to.
        expected: u64,
    },
    /// The reader says it has read what was not written, or unread what it had read.
    #[error("the peer has read {got} lines, expected {from} to {to}: it is broken, close its connection")]
    Head {
        /// As it says.
        got: u64,
        /// What it said last.
        from: u64,
        /// What was written.
        to: u64,
    },
}

/// A record was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The other side has to read first.
    #[error("the ring is full: wait until the peer has read")]
    Full,
    /// It is too long for this ring.
    #[error("a message of {got_bytes} bytes does not fit the ring, which takes {limit_bytes}: send it on the socket")]
    Long {
        /// Its length.
        got_bytes: usize,
        /// The ring's limit.
        limit_bytes: usize,
    },
    /// The ring is of no more use.
    #[error(transparent)]
    Ring(#[from] RingError),
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
