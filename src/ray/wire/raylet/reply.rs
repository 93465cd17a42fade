//! Messages from the node to workers and drivers.

use raylet_shard::ids::{NodeId, ObjectId};

use super::types::message_type as types;
use crate::ray::wire::table::{Field, Table};
use crate::ray::wire::{Encoder, List, Socket, WireError};

const SUCCESS: Field = Field(0, "success");
const FAILURE_REASON: Field = Field(1, "failure_reason");
const NODE_ID: Field = Field(2, "node_id");
const PORT: Field = Field(3, "port");

const FOUND: Field = Field(0, "found");
const REMAINING: Field = Field(1, "remaining");

/// What Ray writes as the reason of a failure that didn't happen.
const NO_FAILURE: &[u8] = b"OK";

/// Answer to a registration (table RegisterClientReply).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterReply<'a> {
    /// Why the client was refused, `None` if it is registered. A refused client dies with this text.
    pub failure: Option<&'a [u8]>,
    /// This node.
    pub node_id: NodeId,
    /// The gRPC port that the client has to use; 0 lets it choose one.
    pub port: i32,
}

/// Answer to a wait (table WaitReply). Together the lists hold each object that was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WaitReply<'a> {
    /// Objects that are available.
    pub found: List<'a, ObjectId>,
    /// The others.
    pub remaining: List<'a, ObjectId>,
}

/// A message from the node, as its client reads it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reply<'a> {
    /// Answer to `RegisterClient`.
    Register(RegisterReply<'a>),
    /// Answer to a driver's `AnnouncePort`.
    AnnouncePort {
        /// Why the job was refused, `None` if it is registered.
        failure: Option<&'a [u8]>,
    },
    /// Answer to `Disconnect`.
    Disconnect,
    /// Answer to `Wait`.
    Wait(WaitReply<'a>),
}

/// Reads a reply, as a client. `message_type` and `body` come from a frame.
pub fn decode_reply(message_type: i64, body: &[u8]) -> Result<Reply<'_>, WireError> {
    Ok(match message_type {
        types::REGISTER_CLIENT_REPLY => {
            let table = Table::root("RegisterClientReply", body)?;
            Reply::Register(RegisterReply {
                failure: failure(&table)?,
                node_id: NodeId(table.id_or_nil(NODE_ID)?),
                port: table.i32(PORT)?,
            })
        }
        types::ANNOUNCE_WORKER_PORT_REPLY => {
            let table = Table::root("AnnounceWorkerPortReply", body)?;
            Reply::AnnouncePort { failure: failure(&table)? }
        }
        types::DISCONNECT_CLIENT_REPLY => {
            Table::root("DisconnectClientReply", body)?;
            Reply::Disconnect
        }
        types::WAIT_REPLY => {
            let table = Table::root("WaitReply", body)?;
            Reply::Wait(WaitReply { found: table.list(FOUND)?, remaining: table.list(REMAINING)? })
        }
        _ => return Err(WireError::UnexpectedType { socket: Socket::Raylet, message_type, expected: "reply" }),
    })
}

fn failure<'a>(table: &Table<'a>) -> Result<Option<&'a [u8]>, WireError> {
    let reason = table.bytes(FAILURE_REASON)?;
    Ok((!table.bool(SUCCESS)?).then_some(reason))
}

impl Reply<'_> {
    /// Appends the reply's frame to `out`.
    pub fn encode(&self, encoder: &mut Encoder, out: &mut Vec<u8>) {
        match *self {
            Self::Register(ref reply) => encode_register_reply(encoder, out, reply),
            Self::AnnouncePort { failure } => encode_announce_port_reply(encoder, out, failure),
            Self::Disconnect => encode_disconnect_reply(encoder, out),
            Self::Wait(ref reply) => encode_wait_reply(encoder, out, reply),
        }
    }
}

/// Appends the answer to a registration to `out`.
pub fn encode_register_reply(e: &mut Encoder, out: &mut Vec<u8>, reply: &RegisterReply<'_>) {
    let node_id = e.string(reply.node_id.as_bytes());
    let reason = e.string(reply.failure.unwrap_or(NO_FAILURE));
    let table = e.start();
    e.add_unless_default(PORT, reply.port);
    e.add(NODE_ID, node_id);
    e.add(FAILURE_REASON, reason);
    e.add_unless_default(SUCCESS, reply.failure.is_none());
    let root = e.end(table);
    e.finish(root, types::REGISTER_CLIENT_REPLY, out);
}

/// Appends the answer to a driver's port announcement to `out`. `failure` says why the job was refused.
pub fn encode_announce_port_reply(e: &mut Encoder, out: &mut Vec<u8>, failure: Option<&[u8]>) {
    let reason = e.string(failure.unwrap_or(NO_FAILURE));
    let table = e.start();
    e.add(FAILURE_REASON, reason);
    e.add_unless_default(SUCCESS, failure.is_none());
    let root = e.end(table);
    e.finish(root, types::ANNOUNCE_WORKER_PORT_REPLY, out);
}

/// Appends the answer to a farewell to `out`.
pub fn encode_disconnect_reply(e: &mut Encoder, out: &mut Vec<u8>) {
    let table = e.start();
    let root = e.end(table);
    e.finish(root, types::DISCONNECT_CLIENT_REPLY, out);
}

/// Appends the answer to a wait to `out`.
pub fn encode_wait_reply(e: &mut Encoder, out: &mut Vec<u8>, reply: &WaitReply<'_>) {
    let remaining = e.vector_of(reply.remaining, |e, id| e.string(id.as_bytes()));
    let found = e.vector_of(reply.found, |e, id| e.string(id.as_bytes()));
    let table = e.start();
    e.add(REMAINING, remaining);
    e.add(FOUND, found);
    let root = e.end(table);
    e.finish(root, types::WAIT_REPLY, out);
}
