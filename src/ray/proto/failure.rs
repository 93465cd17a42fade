//! Messages of Ray 2.60 `common.proto` that say why a worker, an actor, a node or a task failed.

use prost::bytes::Bytes;

/// Ray enum `ray.rpc.ErrorType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ErrorType {
    WorkerDied = 0,
    ActorDied = 1,
    TaskExecutionException = 3,
    ObjectInPlasma = 4,
    TaskCancelled = 5,
    ActorCreationFailed = 6,
    RuntimeEnvSetupFailed = 7,
    ObjectLost = 8,
    OwnerDied = 9,
    ObjectDeleted = 10,
    DependencyResolutionFailed = 11,
    ObjectUnreconstructableMaxAttemptsExceeded = 12,
    ObjectUnreconstructableLineageEvicted = 13,
    ObjectFetchTimedOut = 14,
    LocalRayletDied = 15,
    TaskPlacementGroupRemoved = 16,
    ActorPlacementGroupRemoved = 17,
    TaskUnschedulableError = 18,
    ActorUnschedulableError = 19,
    OutOfDiskError = 20,
    ObjectFreed = 21,
    OutOfMemory = 22,
    NodeDied = 23,
    EndOfStreamingGenerator = 24,
    ActorUnavailable = 25,
    GeneratorTaskFailedForObjectReconstruction = 26,
    ObjectUnreconstructablePut = 27,
    ObjectUnreconstructableRetriesDisabled = 28,
    ObjectUnreconstructableBorrowed = 29,
    ObjectUnreconstructableRefNotFound = 30,
    ObjectUnreconstructableTaskCancelled = 31,
    ObjectUnreconstructableLineageDisabled = 32,
    WorkerStartupFailed = 33,
    StreamingGeneratorReplayInconsistent = 34,
}

/// Ray enum `ray.rpc.WorkerExitType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WorkerExitType {
    SystemError = 0,
    IntendedSystemExit = 1,
    UserError = 2,
    IntendedUserExit = 3,
    NodeOutOfMemory = 4,
}

impl WorkerExitType {
    /// Its name in Ray's protocol, which is what users see (common.proto, enum WorkerExitType).
    pub fn as_ray_name(self) -> &'static str {
        match self {
            Self::SystemError => "SYSTEM_ERROR",
            Self::IntendedSystemExit => "INTENDED_SYSTEM_EXIT",
            Self::UserError => "USER_ERROR",
            Self::IntendedUserExit => "INTENDED_USER_EXIT",
            Self::NodeOutOfMemory => "NODE_OUT_OF_MEMORY",
        }
    }
}

/// Ray message `ray.rpc.RayErrorInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RayErrorInfo {
    #[prost(oneof = "ray_error_info::Error", tags = "2, 3, 4")]
    pub error: Option<ray_error_info::Error>,
    #[prost(string, tag = "5")]
    pub error_message: String,
    #[prost(enumeration = "super::ErrorType", tag = "11")]
    pub error_type: i32,
}

/// Types nested in [`RayErrorInfo`].
pub mod ray_error_info {
    /// The `error` choice of `RayErrorInfo`.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Error {
        #[prost(message, tag = "2")]
        ActorDiedError(super::super::ActorDeathCause),
        #[prost(message, tag = "3")]
        RuntimeEnvSetupFailedError(super::super::RuntimeEnvFailedContext),
        #[prost(message, tag = "4")]
        ActorUnavailableError(super::super::ActorUnavailableContext),
    }
}

/// Ray message `ray.rpc.RayException`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RayException {
    #[prost(enumeration = "super::Language", tag = "1")]
    pub language: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub serialized_exception: Bytes,
    #[prost(string, tag = "3")]
    pub formatted_exception_string: String,
}

/// Ray message `ray.rpc.NodeDeathInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeDeathInfo {
    #[prost(enumeration = "super::node_death_info::Reason", tag = "1")]
    pub reason: i32,
    #[prost(string, tag = "2")]
    pub reason_message: String,
}

/// Types nested in [`NodeDeathInfo`].
pub mod node_death_info {
    /// Ray enum `ray.rpc.NodeDeathInfo.Reason`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum Reason {
        Unspecified = 0,
        ExpectedTermination = 1,
        UnexpectedTermination = 2,
        AutoscalerDrainPreempted = 3,
        AutoscalerDrainIdle = 4,
    }
}

/// Ray message `ray.rpc.ActorDeathCause`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActorDeathCause {
    #[prost(oneof = "actor_death_cause::Context", tags = "1, 2, 3, 4, 5")]
    pub context: Option<actor_death_cause::Context>,
}

/// Types nested in [`ActorDeathCause`].
pub mod actor_death_cause {
    /// The `context` choice of `ActorDeathCause`.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Context {
        #[prost(message, tag = "1")]
        CreationTaskFailureContext(super::super::RayException),
        #[prost(message, tag = "2")]
        RuntimeEnvFailedContext(super::super::RuntimeEnvFailedContext),
        #[prost(message, tag = "3")]
        ActorDiedErrorContext(super::super::ActorDiedErrorContext),
        #[prost(message, tag = "4")]
        ActorUnschedulableContext(super::super::ActorUnschedulableContext),
        #[prost(message, tag = "5")]
        OomContext(super::super::OomContext),
    }
}

/// Ray message `ray.rpc.RuntimeEnvFailedContext`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeEnvFailedContext {
    #[prost(string, tag = "1")]
    pub error_message: String,
}

/// Ray message `ray.rpc.ActorUnschedulableContext`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActorUnschedulableContext {
    #[prost(string, tag = "1")]
    pub error_message: String,
}

/// Ray message `ray.rpc.ActorDiedErrorContext`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActorDiedErrorContext {
    #[prost(string, tag = "1")]
    pub error_message: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub owner_id: Bytes,
    #[prost(string, tag = "3")]
    pub owner_ip_address: String,
    #[prost(string, tag = "4")]
    pub node_ip_address: String,
    #[prost(uint32, tag = "5")]
    pub pid: u32,
    #[prost(string, tag = "6")]
    pub name: String,
    #[prost(string, tag = "7")]
    pub ray_namespace: String,
    #[prost(string, tag = "8")]
    pub class_name: String,
    #[prost(bytes = "bytes", tag = "9")]
    pub actor_id: Bytes,
    #[prost(bool, tag = "10")]
    pub never_started: bool,
    #[prost(message, optional, tag = "11")]
    pub node_death_info: Option<super::NodeDeathInfo>,
    #[prost(enumeration = "super::actor_died_error_context::Reason", tag = "12")]
    pub reason: i32,
}

/// Types nested in [`ActorDiedErrorContext`].
pub mod actor_died_error_context {
    /// Ray enum `ray.rpc.ActorDiedErrorContext.Reason`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum Reason {
        Unspecified = 0,
        WorkerDied = 1,
        OwnerDied = 2,
        NodeDied = 3,
        RayKill = 4,
        OutOfScope = 5,
        RefDeleted = 6,
    }
}

/// Ray message `ray.rpc.OomContext`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OomContext {
    #[prost(string, tag = "1")]
    pub error_message: String,
    #[prost(bool, tag = "2")]
    pub fail_immediately: bool,
}

/// Ray message `ray.rpc.ActorUnavailableContext`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActorUnavailableContext {
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub actor_id: Option<Bytes>,
}
