//! What the raylet socket's messages are made of.

use raylet_shard::ids::{JobId, NodeId, ObjectId, WorkerId};

use crate::ray::wire::list::Element;
use crate::ray::wire::table::{Cursor, Field, Table};
use crate::ray::wire::{List, WireError};

/// Message types of the raylet socket (Ray 2.60 `node_manager.fbs`, enum MessageType).
pub mod message_type {
    /// An actor's constructor has finished.
    pub const ACTOR_CREATION_TASK_DONE: i64 = 0;
    /// A worker or driver introduces itself.
    pub const REGISTER_CLIENT_REQUEST: i64 = 1;
    /// Answer to [`REGISTER_CLIENT_REQUEST`].
    pub const REGISTER_CLIENT_REPLY: i64 = 2;
    /// The gRPC port on which a worker or driver serves.
    pub const ANNOUNCE_WORKER_PORT: i64 = 3;
    /// Answer to a driver's [`ANNOUNCE_WORKER_PORT`].
    pub const ANNOUNCE_WORKER_PORT_REPLY: i64 = 4;
    /// A worker or driver is about to leave.
    pub const DISCONNECT_CLIENT_REQUEST: i64 = 5;
    /// Answer to [`DISCONNECT_CLIENT_REQUEST`]: the client may close the socket.
    pub const DISCONNECT_CLIENT_REPLY: i64 = 6;
    /// Bring objects to this node.
    pub const ASYNC_GET_OBJECTS_REQUEST: i64 = 7;
    /// An earlier [`ASYNC_GET_OBJECTS_REQUEST`] is no longer wanted.
    pub const CANCEL_GET_REQUEST: i64 = 8;
    /// The worker waits for objects and gives its CPUs back meanwhile.
    pub const NOTIFY_WORKER_BLOCKED: i64 = 9;
    /// The worker has its objects.
    pub const NOTIFY_WORKER_UNBLOCKED: i64 = 10;
    /// Wait until some objects are available.
    pub const WAIT_REQUEST: i64 = 11;
    /// Answer to [`WAIT_REQUEST`].
    pub const WAIT_REPLY: i64 = 12;
    /// Bring an actor call's arguments, then tell the worker by RPC.
    pub const WAIT_FOR_ACTOR_CALL_ARGS_REQUEST: i64 = 13;
    /// Show an error to the driver.
    pub const PUSH_ERROR_REQUEST: i64 = 14;
    /// Delete objects from the store.
    pub const FREE_OBJECTS_REQUEST: i64 = 15;
    /// Tell the worker by RPC when an object has arrived.
    pub const SUBSCRIBE_PLASMA_READY: i64 = 16;
}

/// Introduces a worker or driver (table RegisterClientRequest).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterClient<'a> {
    /// `ray.rpc.WorkerType`: 0 worker, 1 driver, 2 spill worker, 3 restore worker.
    pub worker_type: i32,
    /// A driver's is its job id followed by 0xff.
    pub worker_id: WorkerId,
    /// The sender's process id.
    pub worker_pid: i64,
    /// The driver's job; nil for a worker that was started for no job yet.
    pub job_id: JobId,
    /// Which runtime environment the worker was started in; 0 for none.
    pub runtime_env_hash: i32,
    /// `ray.rpc.Language`: 0 Python, 1 Java, 2 C++.
    pub language: i32,
    /// Where the worker serves.
    pub ip_address: &'a str,
    /// Unused by Ray 2.60: 0. The port comes with AnnounceWorkerPort.
    pub port: i32,
    /// A protobuf `ray.rpc.JobConfig`.
    pub serialized_job_config: &'a [u8],
}

/// A worker or driver leaves (table DisconnectClientRequest).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disconnect<'a> {
    /// `ray.rpc.WorkerExitType`.
    pub exit_type: i32,
    /// Why, for people.
    pub detail: &'a [u8],
    /// A protobuf `ray.rpc.RayException` if an actor's constructor raised; otherwise empty.
    pub creation_task_exception: &'a [u8],
}

/// An error for the driver to show (table PushErrorRequest).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PushError<'a> {
    /// Whose driver.
    pub job_id: JobId,
    /// A short name for the kind of error.
    pub error_type: &'a [u8],
    /// The text to show.
    pub message: &'a [u8],
    /// When, in seconds since the epoch.
    pub timestamp_s: f64,
}

/// Who owns an object (table Address).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerAddress<'a> {
    /// The owner's node; nil if the sender doesn't know it.
    pub node_id: NodeId,
    /// The owner's IP address; empty if the sender doesn't know it.
    pub ip_address: &'a str,
    /// The owner's gRPC port.
    pub port: i32,
    /// The owning worker; nil if the sender doesn't know it.
    pub worker_id: WorkerId,
}

impl<'a> OwnerAddress<'a> {
    pub(super) const NODE_ID: Field = Field(0, "node_id");
    pub(super) const IP_ADDRESS: Field = Field(1, "ip_address");
    pub(super) const PORT: Field = Field(2, "port");
    pub(super) const WORKER_ID: Field = Field(3, "worker_id");

    pub(super) fn from_table(table: &Table<'a>) -> Result<Self, WireError> {
        Ok(Self {
            node_id: NodeId(table.id_or_nil(Self::NODE_ID)?),
            ip_address: table.host(Self::IP_ADDRESS)?,
            port: table.i32(Self::PORT)?,
            worker_id: WorkerId(table.id_or_nil(Self::WORKER_ID)?),
        })
    }
}

impl<'a> Element<'a> for OwnerAddress<'a> {
    const INLINE_BYTES: usize = 4;

    fn read(cursor: Cursor<'a>, at: usize) -> Result<Self, WireError> {
        let table = Table::at("Address", cursor.body, cursor.follow(at)?)?;
        Self::from_table(&table)
    }
}

/// Objects, each with its owner. Decoding has checked that the two lists are equally long; a sender has to see to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ObjectRefs<'a> {
    /// The objects.
    pub object_ids: List<'a, ObjectId>,
    /// Their owners, in the same order.
    pub owners: List<'a, OwnerAddress<'a>>,
}

impl<'a> ObjectRefs<'a> {
    pub(super) const OBJECT_IDS: Field = Field(0, "object_ids");
    pub(super) const OWNER_ADDRESSES: Field = Field(1, "owner_addresses");

    pub(super) fn from_table(name: &'static str, table: &Table<'a>) -> Result<Self, WireError> {
        let object_ids: List<'a, ObjectId> = table.list(Self::OBJECT_IDS)?;
        let owners: List<'a, OwnerAddress<'a>> = table.list(Self::OWNER_ADDRESSES)?;
        if object_ids.len() != owners.len() {
            return Err(WireError::ListLengths {
                table: name,
                left: Self::OBJECT_IDS.1,
                left_len: object_ids.len(),
                right: Self::OWNER_ADDRESSES.1,
                right_len: owners.len(),
            });
        }
        Ok(Self { object_ids, owners })
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.object_ids.len()
    }

    /// True if there are no objects.
    pub fn is_empty(&self) -> bool {
        self.object_ids.is_empty()
    }

    /// The objects with their owners, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ObjectId, OwnerAddress<'a>)> + 'a {
        self.object_ids.iter().zip(self.owners.iter())
    }
}
