//! Protobuf messages that Ray 2.60 and this node exchange: the services that a raylet serves, and the ones it calls.
//!
//! Types, fields and numbers are those that the executables and the Python modules of `ray==2.60.0` carry in their
//! descriptors. Everything of package `ray.rpc` is re-exported flat, because its names are unique within the package
//! whatever file they come from; the other packages keep their own module.
//!
//! `bytes` fields are [`prost::bytes::Bytes`], which decode as slices of the received frame, without a copy: turn a
//! short id into a fixed array before keeping it for long, or it keeps its whole frame alive. Maps are `BTreeMap`, so
//! that equal messages have equal bytes.

// Fields carry Ray's own names and have no text of their own; an unread field still has to be there to be encoded.
#![allow(missing_docs)]
// Ray chose the shapes of its `oneof`s; a box would cost an allocation for each message.
#![allow(clippy::large_enum_variant)]

pub mod autoscaler;
mod common;
mod core_worker;
mod failure;
mod gcs;
mod gcs_service;
pub mod health;
mod logging;
mod node_manager;
mod object_manager;
pub mod otlp;
mod pubsub;
mod runtime_env;
mod scheduling;
pub mod syncer;
mod task;

pub use common::*;
pub use core_worker::*;
pub use failure::*;
pub use gcs::*;
pub use gcs_service::*;
pub use logging::*;
pub use node_manager::*;
pub use object_manager::*;
pub use pubsub::*;
pub use runtime_env::*;
pub use scheduling::*;
pub use task::*;
