//! The raylet socket (Ray 2.60 `node_manager.fbs`, `raylet_ipc_client.cc`).
//!
//! | type | message | direction | answer |
//! |---|---|---|---|
//! | 0 | `ActorCreationTaskDone` | worker to node | none |
//! | 1 | `RegisterClientRequest` | to node | 2 |
//! | 2 | `RegisterClientReply` | from node | |
//! | 3 | `AnnounceWorkerPort` | to node | 4, but only to a driver |
//! | 4 | `AnnounceWorkerPortReply` | from node | |
//! | 5 | `DisconnectClientRequest` | to node | 6 |
//! | 6 | `DisconnectClientReply` | from node | |
//! | 7 | `AsyncGetObjectsRequest` | to node | none |
//! | 8 | `CancelGetRequest` | to node | none |
//! | 9 | `NotifyWorkerBlocked` | worker to node | none |
//! | 10 | `NotifyWorkerUnblocked` | worker to node | none |
//! | 11 | `WaitRequest` | to node | 12 |
//! | 12 | `WaitReply` | from node | |
//! | 13 | `WaitForActorCallArgsRequest` | worker to node | none here: an RPC to the worker |
//! | 14 | `PushErrorRequest` | to node | none |
//! | 15 | `FreeObjectsInObjectStoreRequest` | to node | none |
//! | 16 | `SubscribePlasmaReady` | to node | none here: an RPC to the worker |
//!
//! The client holds a lock from request to reply, so replies need no pairing, but one-way messages from its other
//! threads may come in between.
//!
//! # Tables
//! Slots in order; `id` is a string of the id's bytes, `id?` the same or empty.
//!
//! | table | slots |
//! |---|---|
//! | `RegisterClientRequest` | 0 worker_type int, 1 worker_id id, 2 worker_pid long, 3 job_id id, 4 runtime_env_hash int, 5 language int, 6 ip_address string, 7 port int, 8 serialized_job_config string (protobuf JobConfig) |
//! | `RegisterClientReply` | 0 success bool, 1 failure_reason string ("OK" on success), 2 node_id id, 3 port int (0: let the system choose) |
//! | `AnnounceWorkerPort` | 0 port int, 1 entrypoint string |
//! | `AnnounceWorkerPortReply` | 0 success bool, 1 failure_reason string ("OK" on success) |
//! | `DisconnectClientRequest` | 0 disconnect_type int, 1 disconnect_detail string, 2 creation_task_exception_pb bytes |
//! | `Address` | 0 node_id id?, 1 ip_address string, 2 port int, 3 worker_id id? |
//! | `AsyncGetObjectsRequest` | 0 object_ids, 1 owner_addresses, 2 get_request_id long |
//! | `CancelGetRequest` | 0 request_id long |
//! | `WaitRequest` | 0 object_ids, 1 owner_addresses, 2 num_required_objects int, 3 timeout long (ms) |
//! | `WaitReply` | 0 found, 1 remaining |
//! | `WaitForActorCallArgsRequest` | 0 object_ids, 1 owner_addresses, 2 task_id id (24 bytes), 3 attempt_number int |
//! | `PushErrorRequest` | 0 job_id id, 1 type string, 2 error_message string, 3 timestamp double |
//! | `FreeObjectsRequest` | 0 local_only bool, 1 object_ids |
//! | `SubscribePlasmaReady` | 0 object_id id, 1 owner_address Address |
//!
//! `DisconnectClientReply`, `NotifyWorkerBlocked` and `NotifyWorkerUnblocked` are tables without fields;
//! `ActorCreationTaskDone` has no body at all.

mod reply;
mod request;
mod types;

pub use reply::{
    decode_reply, encode_announce_port_reply, encode_disconnect_reply, encode_register_reply, encode_wait_reply,
    RegisterReply, Reply, WaitReply,
};
pub use request::{decode, Request};
pub use types::{message_type, Disconnect, ObjectRefs, OwnerAddress, PushError, RegisterClient};
