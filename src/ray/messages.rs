//! What a worker or driver says on the raylet socket that the control thread answers. The fields are those of the tables in
//! Ray 2.60 `node_manager.fbs`, owned, because they leave the connection's buffer.

use raylet_shard::ids::{JobId, NodeId, ObjectId, TaskId, WorkerId};

/// Who owns an object, as the client names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The owner's worker id.
    pub worker: WorkerId,
    /// The machine it runs on; nil where the client does not know.
    pub node: NodeId,
    /// Its address.
    pub ip_address: String,
    /// The port of its gRPC server.
    pub port: i32,
}

/// Names what a client of one connection wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FetchId {
    /// A get, by the number that the client gave it.
    Get(i64),
    /// A wait, by its number on the core.
    Wait(u32),
}

/// A message of a worker or driver.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// The first message of a connection: who it is.
    Register(Register),
    /// The client's gRPC server listens on this port.
    AnnouncePort {
        /// TCP port.
        port: i32,
        /// The command that started the job; only a driver tells.
        entrypoint: String,
    },
    /// The client leaves, and waits for the reply before it closes.
    Disconnect {
        /// Ray's WorkerExitType.
        exit_type: i32,
        /// Why, in words.
        detail: String,
        /// A serialized RayException where an actor's constructor failed.
        creation_exception: Option<Vec<u8>>,
    },
    /// An actor's constructor is done.
    ActorCreationDone,
    /// The worker waits in `ray.get` or `ray.wait`.
    Blocked,
    /// The worker goes on.
    Unblocked,
    /// Objects that the client wants.
    Fetch {
        /// Names the wish, for [`ClientMessage::CancelFetch`].
        id: FetchId,
        /// Each object with its owner.
        objects: Vec<(ObjectId, Owner)>,
        /// Which of them are here; `None` where other shards would have to be asked.
        here: Option<Vec<bool>>,
    },
    /// The client no longer wants what it wanted, or has it.
    CancelFetch {
        /// The wish.
        id: FetchId,
    },
    /// All plasma arguments of an actor task are here.
    ActorArgsReady {
        /// The actor task.
        task: TaskId,
        /// Which attempt of it, counted from 0.
        attempt: i32,
    },
    /// An object for which the client subscribed is here.
    PlasmaReady {
        /// The object.
        object: ObjectId,
    },
    /// An error to show to the driver.
    PushError {
        /// Whose job.
        job: JobId,
        /// Kind of error, as "worker_died".
        kind: String,
        /// The text.
        message: String,
        /// Seconds since 1970.
        timestamp_s: f64,
    },
    /// The user wants these objects out of the store.
    FreeObjects {
        /// The objects.
        objects: Vec<ObjectId>,
        /// Only here, not on other nodes.
        local_only: bool,
    },
}

/// Who registers.
#[derive(Clone, Debug, PartialEq)]
pub struct Register {
    /// Ray's WorkerType.
    pub worker_type: i32,
    /// The id of the worker.
    pub worker: WorkerId,
    /// Its process.
    pub pid: i64,
    /// The job: a driver's own; nil for a worker that has none yet.
    pub job: JobId,
    /// Hash of the runtime environment that the worker was started in.
    pub runtime_env_hash: i32,
    /// Ray's Language.
    pub language: i32,
    /// Where its gRPC server will listen.
    pub ip_address: String,
    /// A driver's JobConfig, serialized.
    pub job_config: Vec<u8>,
}
