//! The bulk port: how the bytes of objects travel between two nodes of ours.
//!
//! A node that wants objects of another connects to its bulk port, several times: each connection is a *lane*, served by a core of
//! either node. [`hello`] is said once on each; then [`frame`]s follow, in both directions. A frame is a header of fixed length; that
//! of a [chunk](frame::Kind::Chunk) has bytes of an object behind it, which go from the sender's arena into the socket and from the
//! socket into the receiver's arena, and a checksum behind those.
//!
//! Nodes of one host lend each other the chunks instead: the header says where in the sender's arena the bytes are, and the receiver's core
//! copies them from there, through its ring, without a mapping of the other arena: whatever happens to that, a read fails and no access does.
//!
//! [`lane`] has a lane's two state machines without I/O: what is to be received next and where to, and what is to be sent next.
//! Whoever drives them has the core's io_uring ([`crate::uring`]).

pub mod frame;
pub mod hello;
pub mod lane;

#[cfg(test)]
mod tests;
