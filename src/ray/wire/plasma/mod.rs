//! The plasma socket (Ray 2.60 `plasma.fbs`, `protocol.cc`, `store.cc`).
//!
//! | type | message | direction | answer |
//! |---|---|---|---|
//! | 0 | `PlasmaDisconnectClient` | to store | none; clients just close the socket |
//! | 1 | `PlasmaCreateRequest` | to store | 3 |
//! | 2 | `PlasmaCreateRetryRequest` | to store | 3 |
//! | 3 | `PlasmaCreateReply` | from store | may be followed by a file descriptor |
//! | 4, 5 | `PlasmaAbortRequest`, `-Reply` | | |
//! | 6, 7 | `PlasmaSealRequest`, `-Reply` | | |
//! | 8 | `PlasmaGetRequest` | to store | 9 |
//! | 9 | `PlasmaGetReply` | from store | may be followed by file descriptors |
//! | 10 | `PlasmaReleaseRequest` | to store | 11 only if `may_unmap`, otherwise none |
//! | 11 | `PlasmaReleaseReply` | from store | |
//! | 12, 13 | `PlasmaDeleteRequest`, `-Reply` | | |
//! | 14, 15 | `PlasmaContainsRequest`, `-Reply` | | |
//! | 16, 17 | `PlasmaConnectRequest`, `-Reply` | | first exchange of a connection |
//! | 18, 19 | `PlasmaGetDebugStringRequest`, `-Reply` | | |
//!
//! A client has one request outstanding at a time. One-way releases may come right behind each other.
//!
//! # Tables
//! `id` is a string of the id's bytes, `id?` the same or empty.
//!
//! | table | slots |
//! |---|---|
//! | `PlasmaCreateRequest` | 0 object_id id, 1 owner_node_id id?, 2 owner_ip_address string, 3 owner_port int, 4 owner_worker_id id?, 5 is_mutable bool, 6 data_size ulong, 7 metadata_size ulong, 8 source int, 9 device_num int, 10 try_immediately bool |
//! | `PlasmaCreateRetryRequest` | 0 object_id id, 1 request_id ulong |
//! | `PlasmaCreateReply` | 0 object_id id, 1 retry_with_request_id ulong, 2 plasma_object [`ObjectSpec`], 3 error int, 4 store_fd int, 5 unique_fd_id long, 6 mmap_size long, 7 ipc_handle (unused) |
//! | `PlasmaAbortRequest`, `PlasmaAbortReply` | 0 object_id id |
//! | `PlasmaSealRequest` | 0 object_id id |
//! | `PlasmaSealReply` | 0 object_id id, 1 error int |
//! | `PlasmaGetRequest` | 0 object_ids, 1 timeout_ms long |
//! | `PlasmaGetReply` | 0 object_ids, 1 plasma_objects [[`ObjectSpec`]], 2 store_fds [int], 3 unique_fd_ids [long], 4 mmap_sizes [long], 5 handles (always empty) |
//! | `PlasmaReleaseRequest` | 0 object_id id, 1 may_unmap bool |
//! | `PlasmaReleaseReply` | 0 object_id id, 1 should_unmap bool, 2 error int |
//! | `PlasmaDeleteRequest` | 0 count int, 1 object_ids |
//! | `PlasmaDeleteReply` | 0 count int, 1 object_ids, 2 errors [int] |
//! | `PlasmaContainsRequest` | 0 object_id id |
//! | `PlasmaContainsReply` | 0 object_id id, 1 has_object int |
//! | `PlasmaConnectReply` | 0 memory_capacity long |
//! | `PlasmaGetDebugStringReply` | 0 debug_string string |
//!
//! `PlasmaConnectRequest` and `PlasmaGetDebugStringRequest` are tables without fields.
//!
//! # Segments and file descriptors
//! An object lies in a segment, which is named by the pair (store fd, unique fd id): the number that the segment's
//! descriptor has in the store process, and a counter that tells apart segments that had the same number one after the
//! other. Client and store both remember which segments the client has. A `CreateReply` without error and without
//! retry, and each entry of a `GetReply`'s segment lists, is followed by the segment's descriptor **if this client was
//! not sent that segment before**; the descriptors come in the order of the lists, one message each (see
//! [`super::fdpass`]). When a `ReleaseReply` says `should_unmap`, both sides forget the segment, so the store sends it
//! again at the next use.
//!
//! The client relies on more than the tables say:
//! - a `CreateReply` with an error still needs `plasma_object`, which the client reads before it looks at the error;
//!   [`encode_create_error`] writes it.
//! - metadata comes right after the data: `metadata_offset == data_offset + data_size`, or the client aborts.
//! - a `GetReply` answers every object of the request in the request's order, a missing one as [`ObjectSpec::ABSENT`].
//! - of the error codes the client only survives the ones listed at [`PlasmaError`]; any other aborts it.
//! - the segment is mapped with `mmap_size` bytes from offset 0, so offsets count from the segment's start.

mod reply;
mod request;
mod types;

pub use reply::{
    decode_reply, encode_abort_reply, encode_connect_reply, encode_contains_reply, encode_create_error,
    encode_create_reply, encode_create_retry_later, encode_debug_string_reply, encode_delete_reply, encode_get_reply,
    encode_release_reply, encode_seal_reply, Reply,
};
pub use request::{decode, CreateRequest, Request};
pub use types::{message_type, CreateReply, GetReply, ObjectSource, ObjectSpec, PlasmaError, Segment};
