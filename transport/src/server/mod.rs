//! The node's side of a connection: state and small functions for a synchronous event loop on one thread. No I/O but the making of
//! a ring, no runtime, no clock.
//!
//! A loop does with a [`Connection`]:
//!
//! 1. socket readable: [`on_bytes`](Connection::on_bytes), then [`next_from_socket`](Connection::next_from_socket) until it has nothing;
//! 2. ring in use: [`next_from_ring`](Connection::next_from_ring) until it has nothing, or a budget is spent;
//! 3. each request: [`Request::read`](crate::messages::Request::read) on the record, then, at once or later, exactly one of
//!    [`reply`](Connection::reply), [`done`](Connection::done), [`refuse`](Connection::refuse) with its [`ReplyTo`];
//! 4. after a batch: [`unsent`](Connection::unsent) to the socket, and [`must_ring`](Connection::must_ring): then the client's bell;
//! 5. before the thread sleeps: [`announce_sleep`](Connection::announce_sleep) of every connection whose ring was read since it last
//!    slept; a `false` means that there is work. A ring that stays announced costs nothing: its client rings the node's bell.
//!
//! **Where answers go.** The way the request came: ring or socket. What doesn't fit a record, or carries descriptors, goes on the socket,
//! and a [`SocketHint`] in the ring tells the client to look there.
//!
//! **A client that does not read** fills its ring, then a backlog here. While there is a backlog, nothing more is read from its ring, so
//! the backlog is bounded by the requests in flight ([`Limits::in_flight`]). Events are dropped and counted meanwhile. What it leaves
//! unread on its socket is bounded by [`UNSENT_MAX_BYTES`].

mod connection;
mod holds;

pub use connection::{Connection, ConnectionError, ReplyTo, Via};
pub use holds::Holds;

use crate::frame::BODY_MAX_BYTES;
use crate::messages::{Hello, Limits, Refusal, RefusalCode, HELLO_MAGIC, VERSION};
use crate::ring::layout::LINES_DEFAULT;
use rkyv::Archived;

#[cfg(doc)]
use crate::messages::SocketHint;

/// Why a request is not done.
#[derive(Debug)]
pub enum Failure {
    /// The client is told.
    Refused(Refusal),
    /// The connection is of no more use.
    Broken(ConnectionError),
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Self {
        Self::Broken(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A request is done, or will be answered.
pub type Outcome = Result<(), Failure>;

/// Bytes that a client may leave unread on its socket; more closes the connection.
pub const UNSENT_MAX_BYTES: usize = 16 << 20;

/// Bytes of requests that a client may send ahead of the answers, beyond [`Limits::in_flight`] requests; more closes the connection.
pub const AHEAD_MAX_BYTES: usize = 64 << 20;

/// Limits for a connection that nothing else was said about.
pub const DEFAULT_LIMITS: Limits = Limits {
    frame_bytes: BODY_MAX_BYTES,
    in_flight: 4096,
    ring_lines: 16 * LINES_DEFAULT,
    objects: 32_768,
    credit_bytes: 16 << 20,
    credit_runs: 64,
    payload_bytes: 64 << 10,
    leases: 65_536,
};

/// Whether a client can be spoken to, and in which version.
///
/// # Errors
/// [`RefusalCode::NotHello`] for a wrong magic, [`RefusalCode::Version`] where there is no version in common. Refuse and close.
pub fn check_hello(hello: &Archived<Hello>) -> Result<u16, Refusal> {
    let (magic, min, max) = (hello.magic.to_native(), hello.version_min.to_native(), hello.version_max.to_native());
    if magic != HELLO_MAGIC {
        return Err(Refusal::new(
            RefusalCode::NotHello,
            format!("the hello starts with {magic:#018x}, expected {HELLO_MAGIC:#018x}"),
        ));
    }
    let ours = u16::from(VERSION);
    match (min..=max).contains(&ours) {
        true => Ok(ours),
        false => Err(Refusal::new(
            RefusalCode::Version,
            format!("the client speaks versions {min} to {max}, the node speaks {ours}"),
        )),
    }
}
