//! How bytes move: rkyv messages of the native door, peer streams and the bulk ring of each core come to live here.
//!
//! Empty until the native door is built; the Ray door has its own codecs in the node.
