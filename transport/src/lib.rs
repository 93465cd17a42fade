//! How bytes move: the ring that a core waits on, and what comes through it.
//!
//! rkyv messages of the native door, peer streams and spill files come to live here; the Ray door has its own codecs in the
//! node.

pub mod uring;
