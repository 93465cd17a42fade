//! Messages from the store to its clients.

use raylet_shard::ids::ObjectId;

use super::request::{with_id, OBJECT_ID};
use super::types::{message_type as types, CreateReply, GetReply, ObjectSpec, PlasmaError};
use crate::ray::wire::table::{Field, Table};
use crate::ray::wire::{Encoder, List, Socket, WireError};

const RETRY_WITH_REQUEST_ID: Field = Field(1, "retry_with_request_id");
const PLASMA_OBJECT: Field = Field(2, "plasma_object");
const CREATE_ERROR: Field = Field(3, "error");
const STORE_FD: Field = Field(4, "store_fd");
const UNIQUE_FD_ID: Field = Field(5, "unique_fd_id");
const MMAP_SIZE: Field = Field(6, "mmap_size");

const SEAL_ERROR: Field = Field(1, "error");

const GET_OBJECT_IDS: Field = Field(0, "object_ids");
const PLASMA_OBJECTS: Field = Field(1, "plasma_objects");
const STORE_FDS: Field = Field(2, "store_fds");
const UNIQUE_FD_IDS: Field = Field(3, "unique_fd_ids");
const MMAP_SIZES: Field = Field(4, "mmap_sizes");
const HANDLES: Field = Field(5, "handles");

const SHOULD_UNMAP: Field = Field(1, "should_unmap");
const RELEASE_ERROR: Field = Field(2, "error");

const DELETE_COUNT: Field = Field(0, "count");
const DELETE_OBJECT_IDS: Field = Field(1, "object_ids");
const DELETE_ERRORS: Field = Field(2, "errors");

const HAS_OBJECT: Field = Field(1, "has_object");
const MEMORY_CAPACITY: Field = Field(0, "memory_capacity");
const DEBUG_STRING: Field = Field(0, "debug_string");

/// A message from the store, as its client reads it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reply<'a> {
    /// Answer to `Create` and `CreateRetry`.
    Create(CreateReply),
    /// Answer to `Abort`.
    Abort {
        /// The object.
        object_id: ObjectId,
    },
    /// Answer to `Seal`.
    Seal {
        /// The object.
        object_id: ObjectId,
        /// What went wrong.
        error: PlasmaError,
    },
    /// Answer to `Get`.
    Get(GetReply<'a>),
    /// Answer to a `Release` that asked for one.
    Release {
        /// The object.
        object_id: ObjectId,
        /// The client has to unmap the object's segment and forget it.
        should_unmap: bool,
        /// What went wrong.
        error: PlasmaError,
    },
    /// Answer to `Delete`.
    Delete {
        /// The objects of the request, in its order.
        object_ids: List<'a, ObjectId>,
        /// The outcome for each.
        errors: List<'a, PlasmaError>,
    },
    /// Answer to `Contains`.
    Contains {
        /// The object.
        object_id: ObjectId,
        /// It is in the store and sealed.
        has_object: bool,
    },
    /// Answer to `Connect`.
    Connect {
        /// Size of the store's memory, in bytes.
        memory_capacity_bytes: i64,
    },
    /// Answer to `GetDebugString`.
    DebugString {
        /// A description for people.
        text: &'a [u8],
    },
}

/// Reads a reply, as a client. `message_type` and `body` come from a frame.
pub fn decode_reply(message_type: i64, body: &[u8]) -> Result<Reply<'_>, WireError> {
    Ok(match message_type {
        types::CREATE_REPLY => Reply::Create(create_reply(body)?),
        types::ABORT_REPLY => {
            Reply::Abort { object_id: ObjectId(Table::root("PlasmaAbortReply", body)?.id(OBJECT_ID)?) }
        }
        types::SEAL_REPLY => {
            let table = Table::root("PlasmaSealReply", body)?;
            Reply::Seal {
                object_id: ObjectId(table.id(OBJECT_ID)?),
                error: error("PlasmaSealReply", &table, SEAL_ERROR)?,
            }
        }
        types::GET_REPLY => Reply::Get(get_reply(body)?),
        types::RELEASE_REPLY => {
            let table = Table::root("PlasmaReleaseReply", body)?;
            Reply::Release {
                object_id: ObjectId(table.id(OBJECT_ID)?),
                should_unmap: table.bool(SHOULD_UNMAP)?,
                error: error("PlasmaReleaseReply", &table, RELEASE_ERROR)?,
            }
        }
        types::DELETE_REPLY => delete_reply(body)?,
        types::CONTAINS_REPLY => {
            let table = Table::root("PlasmaContainsReply", body)?;
            Reply::Contains { object_id: ObjectId(table.id(OBJECT_ID)?), has_object: table.i32(HAS_OBJECT)? != 0 }
        }
        types::CONNECT_REPLY => {
            let table = Table::root("PlasmaConnectReply", body)?;
            Reply::Connect { memory_capacity_bytes: table.i64(MEMORY_CAPACITY)? }
        }
        types::GET_DEBUG_STRING_REPLY => {
            let table = Table::root("PlasmaGetDebugStringReply", body)?;
            Reply::DebugString { text: table.bytes(DEBUG_STRING)? }
        }
        _ => return Err(WireError::UnexpectedType { socket: Socket::Plasma, message_type, expected: "reply" }),
    })
}

fn error(name: &'static str, table: &Table<'_>, field: Field) -> Result<PlasmaError, WireError> {
    let value = table.i32(field)?;
    PlasmaError::from_wire(value).ok_or(WireError::UnknownValue {
        table: name,
        field: field.1,
        got: value.into(),
        expected: "a PlasmaError, 0 to 8",
    })
}

fn create_reply(body: &[u8]) -> Result<CreateReply, WireError> {
    let name = "PlasmaCreateReply";
    let table = Table::root(name, body)?;
    let object_id = ObjectId(table.id(OBJECT_ID)?);
    let request_id = table.u64(RETRY_WITH_REQUEST_ID)?;
    if request_id > 0 {
        return Ok(CreateReply::RetryLater { object_id, request_id });
    }
    let error = error(name, &table, CREATE_ERROR)?;
    if error != PlasmaError::Ok {
        return Ok(CreateReply::Failed { object_id, error });
    }
    let object = table
        .inline(PLASMA_OBJECT)?
        .map(|wire| ObjectSpec::from_wire(&wire))
        .ok_or(WireError::Missing { table: name, field: PLASMA_OBJECT.1 })?;
    let (store_fd, unique_fd_id) = (table.i32(STORE_FD)?, table.i64(UNIQUE_FD_ID)?);
    if (store_fd, unique_fd_id) != (object.store_fd, object.unique_fd_id) {
        return Err(WireError::UnknownValue {
            table: name,
            field: STORE_FD.1,
            got: store_fd.into(),
            expected: "the same segment as in plasma_object",
        });
    }
    Ok(CreateReply::Created { object_id, object, mmap_size_bytes: table.i64(MMAP_SIZE)? })
}

fn get_reply(body: &[u8]) -> Result<GetReply<'_>, WireError> {
    let name = "PlasmaGetReply";
    let table = Table::root(name, body)?;
    let reply = GetReply {
        object_ids: table.list(GET_OBJECT_IDS)?,
        objects: table.list(PLASMA_OBJECTS)?,
        store_fds: table.list(STORE_FDS)?,
        unique_fd_ids: table.list(UNIQUE_FD_IDS)?,
        mmap_sizes_bytes: table.list(MMAP_SIZES)?,
    };
    same_length(name, (GET_OBJECT_IDS, reply.object_ids.len()), (PLASMA_OBJECTS, reply.objects.len()))?;
    let segments = reply.store_fds.len();
    same_length(name, (STORE_FDS, segments), (UNIQUE_FD_IDS, reply.unique_fd_ids.len()))?;
    same_length(name, (STORE_FDS, segments), (MMAP_SIZES, reply.mmap_sizes_bytes.len()))?;
    Ok(reply)
}

fn delete_reply(body: &[u8]) -> Result<Reply<'_>, WireError> {
    let name = "PlasmaDeleteReply";
    let table = Table::root(name, body)?;
    let object_ids: List<'_, ObjectId> = table.list(DELETE_OBJECT_IDS)?;
    let errors: List<'_, PlasmaError> = table.list(DELETE_ERRORS)?;
    check_count(name, table.i32(DELETE_COUNT)?, object_ids.len())?;
    same_length(name, (DELETE_OBJECT_IDS, object_ids.len()), (DELETE_ERRORS, errors.len()))?;
    Ok(Reply::Delete { object_ids, errors })
}

fn same_length(name: &'static str, left: (Field, usize), right: (Field, usize)) -> Result<(), WireError> {
    if left.1 == right.1 {
        return Ok(());
    }
    Err(WireError::ListLengths {
        table: name,
        left: left.0 .1,
        left_len: left.1,
        right: right.0 .1,
        right_len: right.1,
    })
}

/// Ray repeats a list's length in a `count` field and reads as many elements as that says.
pub(super) fn check_count(name: &'static str, count: i32, length: usize) -> Result<(), WireError> {
    same_length(name, (DELETE_COUNT, usize::try_from(count).unwrap_or(usize::MAX)), (DELETE_OBJECT_IDS, length))
}

impl Reply<'_> {
    /// Appends the reply's frame to `out`.
    pub fn encode(&self, encoder: &mut Encoder, out: &mut Vec<u8>) {
        let e = encoder;
        match *self {
            Self::Create(CreateReply::Created { ref object_id, ref object, mmap_size_bytes }) => {
                encode_create_reply(e, out, object_id, object, mmap_size_bytes)
            }
            Self::Create(CreateReply::Failed { ref object_id, error }) => encode_create_error(e, out, object_id, error),
            Self::Create(CreateReply::RetryLater { ref object_id, request_id }) => {
                encode_create_retry_later(e, out, object_id, request_id)
            }
            Self::Abort { ref object_id } => encode_abort_reply(e, out, object_id),
            Self::Seal { ref object_id, error } => encode_seal_reply(e, out, object_id, error),
            Self::Get(ref reply) => encode_get_reply(e, out, reply),
            Self::Release { ref object_id, should_unmap, error } => {
                encode_release_reply(e, out, object_id, should_unmap, error)
            }
            Self::Delete { object_ids, errors } => encode_delete_reply(e, out, object_ids, errors),
            Self::Contains { ref object_id, has_object } => encode_contains_reply(e, out, object_id, has_object),
            Self::Connect { memory_capacity_bytes } => encode_connect_reply(e, out, memory_capacity_bytes),
            Self::DebugString { text } => encode_debug_string_reply(e, out, text),
        }
    }
}

/// Appends the answer to a create that succeeded to `out`: where the object is, and how much of its segment to map.
/// Send the segment's descriptor next if this client doesn't have it.
pub fn encode_create_reply(
    e: &mut Encoder,
    out: &mut Vec<u8>,
    object_id: &ObjectId,
    object: &ObjectSpec,
    mmap_size_bytes: i64,
) {
    let object_id = e.string(object_id.as_bytes());
    let table = e.start();
    e.add(PLASMA_OBJECT, object.to_inline());
    e.add(OBJECT_ID, object_id);
    e.add_unless_default(STORE_FD, object.store_fd);
    e.add_unless_default(UNIQUE_FD_ID, object.unique_fd_id);
    e.add_unless_default(MMAP_SIZE, mmap_size_bytes);
    let root = e.end(table);
    e.finish(root, types::CREATE_REPLY, out);
}

/// Appends the answer to a create that failed to `out`. No descriptor follows.
pub fn encode_create_error(e: &mut Encoder, out: &mut Vec<u8>, object_id: &ObjectId, error: PlasmaError) {
    reply_about(e, out, types::CREATE_REPLY, object_id, |e| {
        e.add_unless_default(CREATE_ERROR, error as i32);
        // Nobody uses it, but Ray's client reads it before it looks at the error.
        let no_object = ObjectSpec { data_size_bytes: 0, ..ObjectSpec::ABSENT };
        e.add(PLASMA_OBJECT, no_object.to_inline());
    });
}

/// Appends the answer to a create that has to wait for room to `out`: the client asks again with `request_id`, which
/// must not be 0. No descriptor follows.
pub fn encode_create_retry_later(e: &mut Encoder, out: &mut Vec<u8>, object_id: &ObjectId, request_id: u64) {
    let object_id = e.string(object_id.as_bytes());
    let table = e.start();
    e.add(OBJECT_ID, object_id);
    e.add_unless_default(RETRY_WITH_REQUEST_ID, request_id);
    let root = e.end(table);
    e.finish(root, types::CREATE_REPLY, out);
}

/// Appends the answer to an abort to `out`.
pub fn encode_abort_reply(e: &mut Encoder, out: &mut Vec<u8>, object_id: &ObjectId) {
    reply_about(e, out, types::ABORT_REPLY, object_id, |_| {});
}

/// Appends the answer to a seal to `out`.
pub fn encode_seal_reply(e: &mut Encoder, out: &mut Vec<u8>, object_id: &ObjectId, error: PlasmaError) {
    reply_about(e, out, types::SEAL_REPLY, object_id, |e| {
        e.add_unless_default(SEAL_ERROR, error as i32);
    });
}

/// Appends the answer to a get to `out`. Send the descriptors of those of its segments next that this client doesn't
/// have, in the order of the list.
pub fn encode_get_reply(e: &mut Encoder, out: &mut Vec<u8>, reply: &GetReply<'_>) {
    // Ray's client doesn't read this list (CUDA handles), but Ray always sends it.
    let handles = e.vector(std::iter::empty::<i32>());
    let mmap_sizes = e.vector(reply.mmap_sizes_bytes.iter());
    let unique_fd_ids = e.vector(reply.unique_fd_ids.iter());
    let store_fds = e.vector(reply.store_fds.iter());
    let objects = e.vector(reply.objects.iter().map(|object| object.to_inline()));
    let object_ids = e.vector_of(reply.object_ids, |e, id| e.string(id.as_bytes()));
    let table = e.start();
    e.add(HANDLES, handles);
    e.add(MMAP_SIZES, mmap_sizes);
    e.add(UNIQUE_FD_IDS, unique_fd_ids);
    e.add(STORE_FDS, store_fds);
    e.add(PLASMA_OBJECTS, objects);
    e.add(GET_OBJECT_IDS, object_ids);
    let root = e.end(table);
    e.finish(root, types::GET_REPLY, out);
}

/// Appends the answer to a release that asked for one to `out`. After `should_unmap` the client no longer has the
/// object's segment: forget that it was sent.
pub fn encode_release_reply(
    e: &mut Encoder,
    out: &mut Vec<u8>,
    object_id: &ObjectId,
    should_unmap: bool,
    error: PlasmaError,
) {
    let object_id = e.string(object_id.as_bytes());
    let table = e.start();
    e.add_unless_default(RELEASE_ERROR, error as i32);
    e.add(OBJECT_ID, object_id);
    e.add_unless_default(SHOULD_UNMAP, should_unmap);
    let root = e.end(table);
    e.finish(root, types::RELEASE_REPLY, out);
}

/// Appends the answer to a delete to `out`. `errors` holds the outcome for each of `object_ids`.
pub fn encode_delete_reply(
    e: &mut Encoder,
    out: &mut Vec<u8>,
    object_ids: List<'_, ObjectId>,
    errors: List<'_, PlasmaError>,
) {
    let count = object_ids.len() as i32;
    let errors = e.vector(errors.iter().map(|error| error as i32));
    let object_ids = e.vector_of(object_ids, |e, id| e.string(id.as_bytes()));
    let table = e.start();
    e.add(DELETE_ERRORS, errors);
    e.add(DELETE_OBJECT_IDS, object_ids);
    e.add_unless_default(DELETE_COUNT, count);
    let root = e.end(table);
    e.finish(root, types::DELETE_REPLY, out);
}

/// Appends the answer to a contains to `out`.
pub fn encode_contains_reply(e: &mut Encoder, out: &mut Vec<u8>, object_id: &ObjectId, has_object: bool) {
    reply_about(e, out, types::CONTAINS_REPLY, object_id, |e| {
        e.add_unless_default(HAS_OBJECT, i32::from(has_object));
    });
}

/// Appends the answer to a connection's first message to `out`.
pub fn encode_connect_reply(e: &mut Encoder, out: &mut Vec<u8>, memory_capacity_bytes: i64) {
    let table = e.start();
    e.add_unless_default(MEMORY_CAPACITY, memory_capacity_bytes);
    let root = e.end(table);
    e.finish(root, types::CONNECT_REPLY, out);
}

/// Appends the store's description to `out`.
pub fn encode_debug_string_reply(e: &mut Encoder, out: &mut Vec<u8>, text: &[u8]) {
    let text = e.string(text);
    let table = e.start();
    e.add(DEBUG_STRING, text);
    let root = e.end(table);
    e.finish(root, types::GET_DEBUG_STRING_REPLY, out);
}

/// Appends a reply whose first field is an object's id to `out`; `rest` adds the others.
fn reply_about(
    e: &mut Encoder,
    out: &mut Vec<u8>,
    message_type: i64,
    object_id: &ObjectId,
    rest: impl FnOnce(&mut Encoder),
) {
    let root = with_id(e, object_id, rest);
    e.finish(root, message_type, out);
}
