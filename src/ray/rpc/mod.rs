//! gRPC between this node and Ray's processes, all of it on one thread: the server behind the node's ports, and the
//! clients of the GCS, of core workers and of other nodes.
//!
//! Everything here runs inside the control thread's `LocalSet` and holds its state in `Rc`; nothing locks.

pub mod auth;
pub mod chaos;
pub mod client;
pub mod core_worker;
mod exec;
pub(super) mod frame;
pub mod gcs;
pub mod health;
pub mod limits;
pub mod meter;
pub mod owners;
pub mod prefix;
pub mod pubsub;
pub mod router;
pub mod server;
pub mod status;
pub mod syncer;
pub mod tls;

pub use prefix::MAX_MESSAGE_SIZE_BYTES;
