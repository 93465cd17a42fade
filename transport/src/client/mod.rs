//! The client of the native door: [`Client`] blocks, [`AsyncClient`] does not, [`Worker`] serves leases. All three are handles to one
//! connection and may be cloned and used by several threads.
//!
//! ```no_run
//! use std::time::Duration;
//! use raylet_transport::client::{Client, LeaseSpec};
//!
//! # fn main() -> Result<(), raylet_transport::client::ClientError> {
//! let client = Client::connect("raylet.sock")?;
//! let id = client.put(b"some bytes")?;
//! let object = client.get(id, Some(Duration::from_secs(1)))?;
//! assert_eq!(&object[..], b"some bytes");
//! let lease = client.request_lease(&LeaseSpec::new("").resource("CPU", 1.0))?;
//! lease.return_()?;
//! # Ok(())
//! # }
//! ```
//!
//! **How a thread waits.** For an answer in the ring it spins for [`Options::spin`], then announces sleep and waits on one descriptor for
//! the doorbell and the socket. With [`Options::busy_poll`] it spins for ever, and makes no system call but a look at the socket every
//! few milliseconds. One thread at a time drives a connection; others of the process wait for it.

mod asynchronous;
mod blocking;
mod handles;
mod link;
mod puts;
#[cfg(any(feature = "async-io", feature = "tokio"))]
mod reactor;
mod segments;
mod shared;
mod slots;
mod worker;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use asynchronous::{AsyncClient, Driver};
pub use blocking::{Client, Event, LeaseSpec};
pub use handles::{Lease, LeaseEnd, Object, ObjectWriter};
pub use worker::{Assignment, Work, Worker, STATUS_DROPPED};

use crate::frame::FrameError;
use crate::messages::{Refusal, RefusalCode, Spillback};
use crate::ring::layout::LINES_DEFAULT;
use crate::ring::{RingError, SetupError};

/// How a client works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Use rings, with so many lines (a power of two). `None`: everything goes on the socket.
    pub ring_lines: Option<u32>,
    /// How long to spin for an answer in the ring before sleeping.
    pub spin: Duration,
    /// Never sleep while waiting for an answer.
    pub busy_poll: bool,
    /// Ask for memory ahead, so that small puts need no answer.
    pub credit: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { ring_lines: Some(LINES_DEFAULT), spin: Duration::from_micros(20), busy_poll: false, credit: true }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The node said no. [`RefusalCode`] tells what to do.
    #[error("{what}: {refusal}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        #[source]
        refusal: Refusal,
    },
    /// The node closed the connection, and said why.
    #[error("the node closed the connection: {0}")]
    ClosedByNode(#[source] Refusal),
    /// The node closed the connection without a word.
    #[error("the node closed the connection: it ended or died; connect again when it is back")]
    Closed,
    /// The kernel refused.
    #[error("{what} failed: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// The node sent what is no proper frame.
    #[error("the node sent what can't be read: {0}")]
    Frame(#[from] FrameError),
    /// The node wrote what is no proper ring.
    #[error("the ring from the node is broken: {0}")]
    Ring(#[from] RingError),
    /// The rings could not be opened.
    #[error("no rings: {0}")]
    Setup(Arc<SetupError>),
    /// An answer that does not belong to its request, or a place outside of the shared memory.
    #[error("expected {expected}, got {got}: the node is broken")]
    Unexpected {
        /// What was due.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// Nothing came in time. The request itself goes on.
    #[error("nothing came in time")]
    TimedOut,
    /// An argument that can't be meant.
    #[error("{0}")]
    Argument(String),
}

impl ClientError {
    /// The node's reason, where it gave one.
    pub fn code(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused { refusal, .. } | Self::ClosedByNode(refusal) => Some(refusal.code),
            _ => None,
        }
    }

    /// The node to ask for the lease instead, where the answer was that. Its socket is on its own machine.
    pub fn spillback(&self) -> Option<Spillback> {
        match self {
            Self::Refused { refusal, .. } => refusal.spillback(),
            _ => None,
        }
    }

    pub(crate) fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source: Arc::new(source) }
    }
}
