//! Messages from the store to its clients: reading all of them, writing those that are not on the hot path.

use raylet_shard::ids::ObjectId;

use super::hot;
use super::request::OBJECT_ID;
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
        types::ABORT_REPLY => Reply::Abort {
            object_id: ObjectId(Table::root("PlasmaAbortReply", body)?.id(OBJECT_ID)?),
        },
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
            Reply::Contains {
                object_id: ObjectId(table.id(OBJECT_ID)?),
                has_object: table.i32(HAS_OBJECT)? != 0,
            }
        }
        types::CONNECT_REPLY => {
            let table = Table::root("PlasmaConnectReply", body)?;
            Reply::Connect {
                memory_capacity_bytes: table.i64(MEMORY_CAPACITY)?,
            }
        }
        types::GET_DEBUG_STRING_REPLY => {
            let table = Table::root("PlasmaGetDebugStringReply", body)?;
            Reply::DebugString {
                text: table.bytes(DEBUG_STRING)?,
            }
        }
        _ => {
            return Err(WireError::UnexpectedType {
                socket: Socket::Plasma,
                message_type,
                expected: "reply",
            })
        }
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
        return Ok(CreateReply::RetryLater {
            object_id,
            request_id,
        });
    }
    let error = error(name, &table, CREATE_ERROR)?;
    if error != PlasmaError::Ok {
        return Ok(CreateReply::Failed { object_id, error });
    }
    let object = table
        .inline(PLASMA_OBJECT)?
        .map(|wire| ObjectSpec::from_wire(&wire))
        .ok_or(WireError::Missing {
            table: name,
            field: PLASMA_OBJECT.1,
        })?;
    let (store_fd, unique_fd_id) = (table.i32(STORE_FD)?, table.i64(UNIQUE_FD_ID)?);
    if (store_fd, unique_fd_id) != (object.store_fd, object.unique_fd_id) {
        return Err(WireError::UnknownValue {
            table: name,
            field: STORE_FD.1,
            got: store_fd.into(),
            expected: "the same segment as in plasma_object",
        });
    }
    Ok(CreateReply::Created {
        object_id,
        object,
        mmap_size_bytes: table.i64(MMAP_SIZE)?,
    })
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
    same_length(
        name,
        (GET_OBJECT_IDS, reply.object_ids.len()),
        (PLASMA_OBJECTS, reply.objects.len()),
    )?;
    let segments = reply.store_fds.len();
    same_length(
        name,
        (STORE_FDS, segments),
        (UNIQUE_FD_IDS, reply.unique_fd_ids.len()),
    )?;
    same_length(
        name,
        (STORE_FDS, segments),
        (MMAP_SIZES, reply.mmap_sizes_bytes.len()),
    )?;
    Ok(reply)
}

fn delete_reply(body: &[u8]) -> Result<Reply<'_>, WireError> {
    let name = "PlasmaDeleteReply";
    let table = Table::root(name, body)?;
    let object_ids: List<'_, ObjectId> = table.list(DELETE_OBJECT_IDS)?;
    let errors: List<'_, PlasmaError> = table.list(DELETE_ERRORS)?;
    check_count(name, table.i32(DELETE_COUNT)?, object_ids.len())?;
    same_length(
        name,
        (DELETE_OBJECT_IDS, object_ids.len()),
        (DELETE_ERRORS, errors.len()),
    )?;
    Ok(Reply::Delete { object_ids, errors })
}

fn same_length(
    name: &'static str,
    left: (Field, usize),
    right: (Field, usize),
) -> Result<(), WireError> {
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
    same_length(
        name,
        (DELETE_COUNT, usize::try_from(count).unwrap_or(usize::MAX)),
        (DELETE_OBJECT_IDS, length),
    )
}

impl Reply<'_> {
    /// Appends the reply's frame to `out`.
    pub fn encode(&self, encoder: &mut Encoder, out: &mut Vec<u8>) {
        match *self {
            Self::Create(CreateReply::Created {
                ref object_id,
                ref object,
                mmap_size_bytes,
            }) => hot::encode_create_reply(out, object_id, object, mmap_size_bytes),
            Self::Create(CreateReply::Failed {
                ref object_id,
                error,
            }) => hot::encode_create_error(out, object_id, error),
            Self::Create(CreateReply::RetryLater {
                ref object_id,
                request_id,
            }) => hot::encode_create_retry_later(out, object_id, request_id),
            Self::Abort { ref object_id } => hot::encode_abort_reply(out, object_id),
            Self::Seal {
                ref object_id,
                error,
            } => hot::encode_seal_reply(out, object_id, error),
            Self::Get(ref reply) => hot::encode_get_reply(out, reply),
            Self::Release {
                ref object_id,
                should_unmap,
                error,
            } => hot::encode_release_reply(out, object_id, should_unmap, error),
            Self::Delete { object_ids, errors } => {
                encode_delete_reply(encoder, out, object_ids, errors)
            }
            Self::Contains {
                ref object_id,
                has_object,
            } => hot::encode_contains_reply(out, object_id, has_object),
            Self::Connect {
                memory_capacity_bytes,
            } => encode_connect_reply(encoder, out, memory_capacity_bytes),
            Self::DebugString { text } => encode_debug_string_reply(encoder, out, text),
        }
    }
}

/// Appends the answer to a delete to `out`. `errors` holds the outcome for each of `object_ids`.
pub fn encode_delete_reply(
    e: &mut Encoder,
    out: &mut Vec<u8>,
    object_ids: List<'_, ObjectId>,
    errors: List<'_, PlasmaError>,
) {
    let count = object_ids.len() as i32;
    let errors = e.i32_vector(errors.iter().map(|error| error as i32));
    let object_ids = e.vector_of(object_ids, |e, id| e.string(id.as_bytes()));
    let table = e.start();
    e.add(DELETE_ERRORS, errors);
    e.add(DELETE_OBJECT_IDS, object_ids);
    e.add_unless_default(DELETE_COUNT, count);
    let root = e.end(table);
    e.finish(root, types::DELETE_REPLY, out);
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
