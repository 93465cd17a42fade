//! The node's socket protocols without the node, at the path by which the module knows itself.

/// As in the node.
#[path = "../src/ray"]
pub mod ray {
    pub mod wire;
}
