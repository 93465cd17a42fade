//! Messages from clients to the store.

use flatbuffers::WIPOffset;
use raylet_shard::ids::{NodeId, ObjectId, WorkerId};

use super::types::{message_type as types, ObjectSource};
use crate::ray::wire::build::{Encoder, Part};
use crate::ray::wire::table::{Field, Table};
use crate::ray::wire::{List, Socket, WireError};

pub(super) const OBJECT_ID: Field = Field(0, "object_id");

const OWNER_NODE_ID: Field = Field(1, "owner_node_id");
const OWNER_IP_ADDRESS: Field = Field(2, "owner_ip_address");
const OWNER_PORT: Field = Field(3, "owner_port");
const OWNER_WORKER_ID: Field = Field(4, "owner_worker_id");
const IS_MUTABLE: Field = Field(5, "is_mutable");
const DATA_SIZE: Field = Field(6, "data_size");
const METADATA_SIZE: Field = Field(7, "metadata_size");
const SOURCE: Field = Field(8, "source");
const DEVICE_NUM: Field = Field(9, "device_num");
const TRY_IMMEDIATELY: Field = Field(10, "try_immediately");

const RETRY_REQUEST_ID: Field = Field(1, "request_id");

const GET_OBJECT_IDS: Field = Field(0, "object_ids");
const TIMEOUT_MS: Field = Field(1, "timeout_ms");

const MAY_UNMAP: Field = Field(1, "may_unmap");

const DELETE_COUNT: Field = Field(0, "count");
const DELETE_OBJECT_IDS: Field = Field(1, "object_ids");

/// Make an object (table PlasmaCreateRequest).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateRequest<'a> {
    /// The new object.
    pub object_id: ObjectId,
    /// The owner's node; nil if there is no owner (a worker's first, private object, or a restored one).
    pub owner_node_id: NodeId,
    /// The owner's IP address; empty if there is no owner.
    pub owner_ip_address: &'a str,
    /// The owner's gRPC port; 0 if there is no owner.
    pub owner_port: i32,
    /// The owning worker; nil if there is no owner.
    pub owner_worker_id: WorkerId,
    /// A channel of a compiled graph: written more than once, with a header before its data.
    pub is_mutable: bool,
    /// Length of the data, in bytes.
    pub data_size_bytes: u64,
    /// Length of the metadata, in bytes.
    pub metadata_size_bytes: u64,
    /// Who makes it.
    pub source: ObjectSource,
    /// 0: host memory. The store has no other.
    pub device_num: i32,
    /// Answer at once, out of memory if there is no room now, instead of asking the client to come again.
    pub try_immediately: bool,
}

/// A message from a client of the store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Request<'a> {
    /// The client leaves. No answer. Ray's own clients just close the socket, which means the same.
    Disconnect,
    /// Make an object. Answer with [`super::encode_create_reply`] or [`super::encode_create_retry_later`].
    Create(CreateRequest<'a>),
    /// Ask again for an object that was to be retried. Answered like [`Request::Create`].
    CreateRetry {
        /// The object.
        object_id: ObjectId,
        /// The number that the last answer gave.
        request_id: u64,
    },
    /// Drop an object that this client is making. Answer with [`super::encode_abort_reply`].
    Abort {
        /// The object.
        object_id: ObjectId,
    },
    /// The object is written. Answer with [`super::encode_seal_reply`].
    Seal {
        /// The object.
        object_id: ObjectId,
    },
    /// Read objects, waiting for them to be sealed. Answer with [`super::encode_get_reply`].
    Get {
        /// The objects; one may occur more than once.
        object_ids: List<'a, ObjectId>,
        /// How long to wait: 0 not at all, -1 for ever.
        timeout_ms: i64,
    },
    /// The client no longer uses an object. Answer with [`super::encode_release_reply`] if, and only if, `may_unmap`.
    Release {
        /// The object.
        object_id: ObjectId,
        /// The object was fallback-allocated and its segment may go.
        may_unmap: bool,
    },
    /// Delete objects. Answer with [`super::encode_delete_reply`].
    Delete {
        /// The objects.
        object_ids: List<'a, ObjectId>,
    },
    /// Is the object there and sealed? Answer with [`super::encode_contains_reply`].
    Contains {
        /// The object.
        object_id: ObjectId,
    },
    /// First message of a connection. Answer with [`super::encode_connect_reply`].
    Connect,
    /// Describe the store. Answer with [`super::encode_debug_string_reply`].
    GetDebugString,
}

/// Reads a request. `message_type` and `body` come from a frame.
pub fn decode(message_type: i64, body: &[u8]) -> Result<Request<'_>, WireError> {
    Ok(match message_type {
        types::DISCONNECT_CLIENT => Request::Disconnect,
        types::CREATE_REQUEST => Request::Create(create(body)?),
        types::CREATE_RETRY_REQUEST => {
            let table = Table::root("PlasmaCreateRetryRequest", body)?;
            Request::CreateRetry { object_id: ObjectId(table.id(OBJECT_ID)?), request_id: table.u64(RETRY_REQUEST_ID)? }
        }
        types::ABORT_REQUEST => Request::Abort { object_id: only_id("PlasmaAbortRequest", body)? },
        types::SEAL_REQUEST => Request::Seal { object_id: only_id("PlasmaSealRequest", body)? },
        types::GET_REQUEST => {
            let table = Table::root("PlasmaGetRequest", body)?;
            Request::Get { object_ids: table.list(GET_OBJECT_IDS)?, timeout_ms: table.i64(TIMEOUT_MS)? }
        }
        types::RELEASE_REQUEST => {
            let table = Table::root("PlasmaReleaseRequest", body)?;
            Request::Release { object_id: ObjectId(table.id(OBJECT_ID)?), may_unmap: table.bool(MAY_UNMAP)? }
        }
        types::DELETE_REQUEST => delete(body)?,
        types::CONTAINS_REQUEST => Request::Contains { object_id: only_id("PlasmaContainsRequest", body)? },
        types::CONNECT_REQUEST => {
            Table::root("PlasmaConnectRequest", body)?;
            Request::Connect
        }
        types::GET_DEBUG_STRING_REQUEST => {
            Table::root("PlasmaGetDebugStringRequest", body)?;
            Request::GetDebugString
        }
        _ => return Err(WireError::UnexpectedType { socket: Socket::Plasma, message_type, expected: "request" }),
    })
}

fn only_id(name: &'static str, body: &[u8]) -> Result<ObjectId, WireError> {
    Table::root(name, body)?.id(OBJECT_ID).map(ObjectId)
}

fn create(body: &[u8]) -> Result<CreateRequest<'_>, WireError> {
    let table = Table::root("PlasmaCreateRequest", body)?;
    let source = table.i32(SOURCE)?;
    Ok(CreateRequest {
        object_id: ObjectId(table.id(OBJECT_ID)?),
        owner_node_id: NodeId(table.id_or_nil(OWNER_NODE_ID)?),
        owner_ip_address: table.host(OWNER_IP_ADDRESS)?,
        owner_port: table.i32(OWNER_PORT)?,
        owner_worker_id: WorkerId(table.id_or_nil(OWNER_WORKER_ID)?),
        is_mutable: table.bool(IS_MUTABLE)?,
        data_size_bytes: table.u64(DATA_SIZE)?,
        metadata_size_bytes: table.u64(METADATA_SIZE)?,
        source: ObjectSource::from_wire(source).ok_or(WireError::UnknownValue {
            table: "PlasmaCreateRequest",
            field: SOURCE.1,
            got: source.into(),
            expected: "an ObjectSource, 0 to 3",
        })?,
        device_num: table.i32(DEVICE_NUM)?,
        try_immediately: table.bool(TRY_IMMEDIATELY)?,
    })
}

fn delete(body: &[u8]) -> Result<Request<'_>, WireError> {
    let table = Table::root("PlasmaDeleteRequest", body)?;
    let object_ids: List<'_, ObjectId> = table.list(DELETE_OBJECT_IDS)?;
    super::reply::check_count("PlasmaDeleteRequest", table.i32(DELETE_COUNT)?, object_ids.len())?;
    Ok(Request::Delete { object_ids })
}

impl Request<'_> {
    /// The type that this message's frame carries.
    pub fn message_type(&self) -> i64 {
        match self {
            Self::Disconnect => types::DISCONNECT_CLIENT,
            Self::Create(_) => types::CREATE_REQUEST,
            Self::CreateRetry { .. } => types::CREATE_RETRY_REQUEST,
            Self::Abort { .. } => types::ABORT_REQUEST,
            Self::Seal { .. } => types::SEAL_REQUEST,
            Self::Get { .. } => types::GET_REQUEST,
            Self::Release { .. } => types::RELEASE_REQUEST,
            Self::Delete { .. } => types::DELETE_REQUEST,
            Self::Contains { .. } => types::CONTAINS_REQUEST,
            Self::Connect => types::CONNECT_REQUEST,
            Self::GetDebugString => types::GET_DEBUG_STRING_REQUEST,
        }
    }

    /// Appends the request's frame to `out`, as a client.
    pub fn encode(&self, encoder: &mut Encoder, out: &mut Vec<u8>) {
        if let Self::Disconnect = self {
            return crate::ray::wire::frame::write_header(out, types::DISCONNECT_CLIENT, 0);
        }
        let root = self.root(encoder);
        encoder.finish(root, self.message_type(), out);
    }

    fn root(&self, e: &mut Encoder) -> WIPOffset<Part> {
        match *self {
            Self::Disconnect | Self::Connect | Self::GetDebugString => {
                let table = e.start();
                e.end(table)
            }
            Self::Create(ref request) => write_create(e, request),
            Self::CreateRetry { object_id, request_id } => {
                with_id(e, &object_id, |e| e.add_unless_default(RETRY_REQUEST_ID, request_id))
            }
            Self::Abort { object_id } | Self::Seal { object_id } | Self::Contains { object_id } => {
                with_id(e, &object_id, |_| {})
            }
            Self::Get { object_ids, timeout_ms } => {
                let object_ids = e.vector_of(object_ids, |e, id| e.string(id.as_bytes()));
                let table = e.start();
                e.add_unless_default(TIMEOUT_MS, timeout_ms);
                e.add(GET_OBJECT_IDS, object_ids);
                e.end(table)
            }
            Self::Release { object_id, may_unmap } => {
                with_id(e, &object_id, |e| e.add_unless_default(MAY_UNMAP, may_unmap))
            }
            Self::Delete { object_ids } => {
                let count = object_ids.len() as i32;
                let object_ids = e.vector_of(object_ids, |e, id| e.string(id.as_bytes()));
                let table = e.start();
                e.add(DELETE_OBJECT_IDS, object_ids);
                e.add_unless_default(DELETE_COUNT, count);
                e.end(table)
            }
        }
    }
}

/// A table of an object's id and whatever `rest` adds.
pub(super) fn with_id(e: &mut Encoder, object_id: &ObjectId, rest: impl FnOnce(&mut Encoder)) -> WIPOffset<Part> {
    let object_id = e.string(object_id.as_bytes());
    let table = e.start();
    rest(e);
    e.add(OBJECT_ID, object_id);
    e.end(table)
}

fn write_create(e: &mut Encoder, request: &CreateRequest<'_>) -> WIPOffset<Part> {
    let worker_id = e.id_or_nil(request.owner_worker_id.as_bytes());
    let ip_address = e.string(request.owner_ip_address.as_bytes());
    let node_id = e.id_or_nil(request.owner_node_id.as_bytes());
    let object_id = e.string(request.object_id.as_bytes());
    let table = e.start();
    e.add_unless_default(METADATA_SIZE, request.metadata_size_bytes);
    e.add_unless_default(DATA_SIZE, request.data_size_bytes);
    e.add_unless_default(DEVICE_NUM, request.device_num);
    e.add_unless_default(SOURCE, request.source as i32);
    e.add(OWNER_WORKER_ID, worker_id);
    e.add_unless_default(OWNER_PORT, request.owner_port);
    e.add(OWNER_IP_ADDRESS, ip_address);
    e.add(OWNER_NODE_ID, node_id);
    e.add(OBJECT_ID, object_id);
    e.add_unless_default(TRY_IMMEDIATELY, request.try_immediately);
    e.add_unless_default(IS_MUTABLE, request.is_mutable);
    e.end(table)
}
