//! The node's socket protocols without the node, at the path by which the module knows itself.

/// As in the node.
#[path = "../src/ray"]
pub mod ray {
    pub mod wire;

    /// What the cores' HTTP/2 takes from its neighbours.
    pub mod rpc {
        pub mod limits;
        pub mod prefix;
        pub mod status;
    }

    /// The gRPC port of the cores.
    pub mod core_rpc {
        pub mod http2;
    }
}
