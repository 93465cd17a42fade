//! Messages from workers and drivers to the node.

use flatbuffers::WIPOffset;
use raylet_shard::ids::{JobId, ObjectId, TaskId, WorkerId};

use super::types::{message_type as types, Disconnect, ObjectRefs, OwnerAddress, PushError, RegisterClient};
use crate::ray::wire::build::{Encoder, Part};
use crate::ray::wire::table::{Field, Table};
use crate::ray::wire::{List, Socket, WireError};

const WORKER_TYPE: Field = Field(0, "worker_type");
const WORKER_ID: Field = Field(1, "worker_id");
const WORKER_PID: Field = Field(2, "worker_pid");
const REGISTER_JOB_ID: Field = Field(3, "job_id");
const RUNTIME_ENV_HASH: Field = Field(4, "runtime_env_hash");
const LANGUAGE: Field = Field(5, "language");
const IP_ADDRESS: Field = Field(6, "ip_address");
const REGISTER_PORT: Field = Field(7, "port");
const SERIALIZED_JOB_CONFIG: Field = Field(8, "serialized_job_config");

const ANNOUNCED_PORT: Field = Field(0, "port");
const ENTRYPOINT: Field = Field(1, "entrypoint");

const DISCONNECT_TYPE: Field = Field(0, "disconnect_type");
const DISCONNECT_DETAIL: Field = Field(1, "disconnect_detail");
const CREATION_TASK_EXCEPTION: Field = Field(2, "creation_task_exception_pb");

const GET_REQUEST_ID: Field = Field(2, "get_request_id");
const CANCEL_REQUEST_ID: Field = Field(0, "request_id");

const NUM_REQUIRED: Field = Field(2, "num_required_objects");
const TIMEOUT: Field = Field(3, "timeout");

const WAITING_TASK_ID: Field = Field(2, "task_id");
const WAITING_ATTEMPT: Field = Field(3, "attempt_number");

const ERROR_JOB_ID: Field = Field(0, "job_id");
const ERROR_TYPE: Field = Field(1, "type");
const ERROR_MESSAGE: Field = Field(2, "error_message");
const ERROR_TIMESTAMP: Field = Field(3, "timestamp");

const LOCAL_ONLY: Field = Field(0, "local_only");
const FREED_OBJECT_IDS: Field = Field(1, "object_ids");

const SUBSCRIBED_OBJECT_ID: Field = Field(0, "object_id");
const SUBSCRIBED_OWNER: Field = Field(1, "owner_address");

/// A message from a worker or driver.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Request<'a> {
    /// The worker's actor is constructed. No answer.
    ActorCreationTaskDone,
    /// First message of a connection. Answer with [`super::encode_register_reply`].
    RegisterClient(RegisterClient<'a>),
    /// The client serves gRPC on this port now. Answer a driver, and only a driver, with
    /// [`super::encode_announce_port_reply`].
    AnnouncePort {
        /// TCP port.
        port: i32,
        /// A driver's command line, for people; a worker's is empty.
        entrypoint: &'a [u8],
    },
    /// Last message of a connection. Answer with [`super::encode_disconnect_reply`].
    Disconnect(Disconnect<'a>),
    /// Bring objects to this node. No answer: the client waits on the plasma socket.
    AsyncGet {
        /// The objects and their owners.
        refs: ObjectRefs<'a>,
        /// Chosen by the client, counted up from 0; [`Request::CancelGet`] names it.
        request_id: i64,
    },
    /// The client no longer waits for an [`Request::AsyncGet`]. No answer.
    CancelGet {
        /// The `request_id` of the get.
        request_id: i64,
    },
    /// The worker waits: its CPUs may be lent out. No answer.
    WorkerBlocked,
    /// The worker runs again. No answer.
    WorkerUnblocked,
    /// Wait until enough objects are available. Answer with [`super::encode_wait_reply`].
    Wait {
        /// The objects and their owners.
        refs: ObjectRefs<'a>,
        /// Answer as soon as this many are available, with at most this many as found.
        num_required: i32,
        /// Answer after this long in any case; -1 for no limit. Ray asks in slices of 1,000 ms.
        timeout_ms: i64,
    },
    /// Bring an actor call's arguments, then tell the worker by the RPC ActorCallArgWaitComplete. No answer here.
    WaitForActorCallArgs {
        /// The arguments and their owners.
        refs: ObjectRefs<'a>,
        /// The call that waits; the RPC names it.
        task_id: TaskId,
        /// Which attempt of the call, counted from 0; the RPC names it too.
        attempt_number: i32,
    },
    /// Publish an error for the driver. No answer.
    PushError(PushError<'a>),
    /// Delete objects. No answer.
    FreeObjects {
        /// Only from this node's store, not from every node's.
        local_only: bool,
        /// The objects.
        object_ids: List<'a, ObjectId>,
    },
    /// Bring an object and tell the worker by the RPC PlasmaObjectReady. No answer here.
    SubscribePlasmaReady {
        /// The object.
        object_id: ObjectId,
        /// Its owner.
        owner: OwnerAddress<'a>,
    },
}

/// Reads a request. `message_type` and `body` come from a frame.
pub fn decode(message_type: i64, body: &[u8]) -> Result<Request<'_>, WireError> {
    Ok(match message_type {
        // Ray sends no body with this one.
        types::ACTOR_CREATION_TASK_DONE => Request::ActorCreationTaskDone,
        types::REGISTER_CLIENT_REQUEST => Request::RegisterClient(register_client(body)?),
        types::ANNOUNCE_WORKER_PORT => {
            let table = Table::root("AnnounceWorkerPort", body)?;
            Request::AnnouncePort { port: table.i32(ANNOUNCED_PORT)?, entrypoint: table.bytes(ENTRYPOINT)? }
        }
        types::DISCONNECT_CLIENT_REQUEST => {
            let table = Table::root("DisconnectClientRequest", body)?;
            Request::Disconnect(Disconnect {
                exit_type: table.i32(DISCONNECT_TYPE)?,
                detail: table.bytes(DISCONNECT_DETAIL)?,
                creation_task_exception: table.bytes(CREATION_TASK_EXCEPTION)?,
            })
        }
        types::ASYNC_GET_OBJECTS_REQUEST => {
            let (table, refs) = with_refs("AsyncGetObjectsRequest", body)?;
            Request::AsyncGet { refs, request_id: table.i64(GET_REQUEST_ID)? }
        }
        types::CANCEL_GET_REQUEST => {
            let table = Table::root("CancelGetRequest", body)?;
            Request::CancelGet { request_id: table.i64(CANCEL_REQUEST_ID)? }
        }
        types::NOTIFY_WORKER_BLOCKED => {
            Table::root("NotifyWorkerBlocked", body)?;
            Request::WorkerBlocked
        }
        types::NOTIFY_WORKER_UNBLOCKED => {
            Table::root("NotifyWorkerUnblocked", body)?;
            Request::WorkerUnblocked
        }
        types::WAIT_REQUEST => {
            let (table, refs) = with_refs("WaitRequest", body)?;
            Request::Wait { refs, num_required: table.i32(NUM_REQUIRED)?, timeout_ms: table.i64(TIMEOUT)? }
        }
        types::WAIT_FOR_ACTOR_CALL_ARGS_REQUEST => {
            let (table, refs) = with_refs("WaitForActorCallArgsRequest", body)?;
            Request::WaitForActorCallArgs {
                refs,
                task_id: TaskId(table.id(WAITING_TASK_ID)?),
                attempt_number: table.i32(WAITING_ATTEMPT)?,
            }
        }
        types::PUSH_ERROR_REQUEST => {
            let table = Table::root("PushErrorRequest", body)?;
            Request::PushError(PushError {
                job_id: JobId(table.id(ERROR_JOB_ID)?),
                error_type: table.bytes(ERROR_TYPE)?,
                message: table.bytes(ERROR_MESSAGE)?,
                timestamp_s: table.f64(ERROR_TIMESTAMP)?,
            })
        }
        types::FREE_OBJECTS_REQUEST => {
            let table = Table::root("FreeObjectsRequest", body)?;
            Request::FreeObjects { local_only: table.bool(LOCAL_ONLY)?, object_ids: table.list(FREED_OBJECT_IDS)? }
        }
        types::SUBSCRIBE_PLASMA_READY => {
            let table = Table::root("SubscribePlasmaReady", body)?;
            Request::SubscribePlasmaReady {
                object_id: ObjectId(table.id(SUBSCRIBED_OBJECT_ID)?),
                owner: OwnerAddress::from_table(&table.table(SUBSCRIBED_OWNER, "Address")?)?,
            }
        }
        _ => return Err(WireError::UnexpectedType { socket: Socket::Raylet, message_type, expected: "request" }),
    })
}

fn register_client(body: &[u8]) -> Result<RegisterClient<'_>, WireError> {
    let table = Table::root("RegisterClientRequest", body)?;
    Ok(RegisterClient {
        worker_type: table.i32(WORKER_TYPE)?,
        worker_id: WorkerId(table.id(WORKER_ID)?),
        worker_pid: table.i64(WORKER_PID)?,
        job_id: JobId(table.id_or_nil(REGISTER_JOB_ID)?),
        runtime_env_hash: table.i32(RUNTIME_ENV_HASH)?,
        language: table.i32(LANGUAGE)?,
        ip_address: table.host(IP_ADDRESS)?,
        port: table.i32(REGISTER_PORT)?,
        serialized_job_config: table.bytes(SERIALIZED_JOB_CONFIG)?,
    })
}

fn with_refs<'a>(name: &'static str, body: &'a [u8]) -> Result<(Table<'a>, ObjectRefs<'a>), WireError> {
    let table = Table::root(name, body)?;
    let refs = ObjectRefs::from_table(name, &table)?;
    Ok((table, refs))
}

impl Request<'_> {
    /// The type that this message's frame carries.
    pub fn message_type(&self) -> i64 {
        match self {
            Self::ActorCreationTaskDone => types::ACTOR_CREATION_TASK_DONE,
            Self::RegisterClient(_) => types::REGISTER_CLIENT_REQUEST,
            Self::AnnouncePort { .. } => types::ANNOUNCE_WORKER_PORT,
            Self::Disconnect(_) => types::DISCONNECT_CLIENT_REQUEST,
            Self::AsyncGet { .. } => types::ASYNC_GET_OBJECTS_REQUEST,
            Self::CancelGet { .. } => types::CANCEL_GET_REQUEST,
            Self::WorkerBlocked => types::NOTIFY_WORKER_BLOCKED,
            Self::WorkerUnblocked => types::NOTIFY_WORKER_UNBLOCKED,
            Self::Wait { .. } => types::WAIT_REQUEST,
            Self::WaitForActorCallArgs { .. } => types::WAIT_FOR_ACTOR_CALL_ARGS_REQUEST,
            Self::PushError(_) => types::PUSH_ERROR_REQUEST,
            Self::FreeObjects { .. } => types::FREE_OBJECTS_REQUEST,
            Self::SubscribePlasmaReady { .. } => types::SUBSCRIBE_PLASMA_READY,
        }
    }

    /// Appends the request's frame to `out`, as a client.
    pub fn encode(&self, encoder: &mut Encoder, out: &mut Vec<u8>) {
        if let Self::ActorCreationTaskDone = self {
            return crate::ray::wire::frame::write_header(out, types::ACTOR_CREATION_TASK_DONE, 0);
        }
        let root = self.root(encoder);
        encoder.finish(root, self.message_type(), out);
    }

    fn root(&self, e: &mut Encoder) -> WIPOffset<Part> {
        match *self {
            Self::ActorCreationTaskDone | Self::WorkerBlocked | Self::WorkerUnblocked => {
                let table = e.start();
                e.end(table)
            }
            Self::RegisterClient(ref client) => write_register_client(e, client),
            Self::AnnouncePort { port, entrypoint } => {
                let entrypoint = e.string(entrypoint);
                let table = e.start();
                e.add(ENTRYPOINT, entrypoint);
                e.add_unless_default(ANNOUNCED_PORT, port);
                e.end(table)
            }
            Self::Disconnect(ref leaving) => {
                let detail = e.string(leaving.detail);
                let exception = leaving.creation_task_exception;
                let exception = (!exception.is_empty()).then(|| e.byte_vector(exception));
                let table = e.start();
                e.add_unless_default(DISCONNECT_TYPE, leaving.exit_type);
                e.add(DISCONNECT_DETAIL, detail);
                if let Some(exception) = exception {
                    e.add(CREATION_TASK_EXCEPTION, exception);
                }
                e.end(table)
            }
            Self::AsyncGet { ref refs, request_id } => {
                with_written_refs(e, refs, |e| e.add_unless_default(GET_REQUEST_ID, request_id))
            }
            Self::CancelGet { request_id } => {
                let table = e.start();
                e.add_unless_default(CANCEL_REQUEST_ID, request_id);
                e.end(table)
            }
            Self::Wait { ref refs, num_required, timeout_ms } => with_written_refs(e, refs, |e| {
                e.add_unless_default(TIMEOUT, timeout_ms);
                e.add_unless_default(NUM_REQUIRED, num_required);
            }),
            Self::WaitForActorCallArgs { ref refs, task_id, attempt_number } => {
                let task_id = e.string(task_id.as_bytes());
                with_written_refs(e, refs, |e| {
                    e.add(WAITING_TASK_ID, task_id);
                    e.add_unless_default(WAITING_ATTEMPT, attempt_number);
                })
            }
            Self::PushError(ref error) => {
                let job_id = e.string(error.job_id.as_bytes());
                let error_type = e.string(error.error_type);
                let message = e.string(error.message);
                let table = e.start();
                e.add_unless_default(ERROR_TIMESTAMP, error.timestamp_s);
                e.add(ERROR_MESSAGE, message);
                e.add(ERROR_TYPE, error_type);
                e.add(ERROR_JOB_ID, job_id);
                e.end(table)
            }
            Self::FreeObjects { local_only, object_ids } => {
                let object_ids = e.vector_of(object_ids, |e, id| e.string(id.as_bytes()));
                let table = e.start();
                e.add(FREED_OBJECT_IDS, object_ids);
                e.add_unless_default(LOCAL_ONLY, local_only);
                e.end(table)
            }
            Self::SubscribePlasmaReady { object_id, ref owner } => {
                let object_id = e.string(object_id.as_bytes());
                let owner = write_owner(e, owner);
                let table = e.start();
                e.add(SUBSCRIBED_OWNER, owner);
                e.add(SUBSCRIBED_OBJECT_ID, object_id);
                e.end(table)
            }
        }
    }
}

fn write_register_client(e: &mut Encoder, client: &RegisterClient<'_>) -> WIPOffset<Part> {
    let worker_id = e.string(client.worker_id.as_bytes());
    let job_id = e.string(client.job_id.as_bytes());
    let ip_address = e.string(client.ip_address.as_bytes());
    let job_config = e.string(client.serialized_job_config);
    let table = e.start();
    e.add_unless_default(WORKER_PID, client.worker_pid);
    e.add(SERIALIZED_JOB_CONFIG, job_config);
    e.add_unless_default(REGISTER_PORT, client.port);
    e.add(IP_ADDRESS, ip_address);
    e.add_unless_default(LANGUAGE, client.language);
    e.add_unless_default(RUNTIME_ENV_HASH, client.runtime_env_hash);
    e.add(REGISTER_JOB_ID, job_id);
    e.add(WORKER_ID, worker_id);
    e.add_unless_default(WORKER_TYPE, client.worker_type);
    e.end(table)
}

fn write_owner(e: &mut Encoder, owner: &OwnerAddress<'_>) -> WIPOffset<Part> {
    let node_id = e.id_or_nil(owner.node_id.as_bytes());
    let ip_address = e.string(owner.ip_address.as_bytes());
    let worker_id = e.id_or_nil(owner.worker_id.as_bytes());
    let table = e.start();
    e.add(OwnerAddress::WORKER_ID, worker_id);
    e.add_unless_default(OwnerAddress::PORT, owner.port);
    e.add(OwnerAddress::IP_ADDRESS, ip_address);
    e.add(OwnerAddress::NODE_ID, node_id);
    e.end(table)
}

/// A table of objects, their owners and whatever `rest` adds.
fn with_written_refs(e: &mut Encoder, refs: &ObjectRefs<'_>, rest: impl FnOnce(&mut Encoder)) -> WIPOffset<Part> {
    let owners = e.vector_of(refs.owners, |e, owner| write_owner(e, &owner));
    let object_ids = e.vector_of(refs.object_ids, |e, id| e.string(id.as_bytes()));
    let table = e.start();
    rest(e);
    e.add(ObjectRefs::OWNER_ADDRESSES, owners);
    e.add(ObjectRefs::OBJECT_IDS, object_ids);
    e.end(table)
}
