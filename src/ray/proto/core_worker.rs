//! Messages of Ray 2.60 `core_worker.proto` that a raylet exchanges with core workers.

use prost::bytes::Bytes;

/// Ray enum `ray.rpc.ObjectPlasmaLocationUpdate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ObjectPlasmaLocationUpdate {
    Added = 0,
    Removed = 1,
}

/// Ray message `ray.rpc.ActorCallArgWaitCompleteRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActorCallArgWaitCompleteRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub intended_worker_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub task_id: Bytes,
    #[prost(int32, tag = "3")]
    pub attempt_number: i32,
}

/// Ray message `ray.rpc.ActorCallArgWaitCompleteReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActorCallArgWaitCompleteReply {}

/// Ray message `ray.rpc.GetObjectStatusRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetObjectStatusRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub owner_worker_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub object_id: Bytes,
}

/// Ray message `ray.rpc.RayObject`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RayObject {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub metadata: Bytes,
    #[prost(message, repeated, tag = "3")]
    pub nested_inlined_refs: Vec<super::ObjectReference>,
}

/// Ray message `ray.rpc.GetObjectStatusReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetObjectStatusReply {
    #[prost(enumeration = "super::get_object_status_reply::ObjectStatus", tag = "1")]
    pub status: i32,
    #[prost(message, optional, tag = "2")]
    pub object: Option<super::RayObject>,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub node_ids: Vec<Bytes>,
    #[prost(uint64, tag = "4")]
    pub object_size: u64,
}

/// Types nested in [`GetObjectStatusReply`].
pub mod get_object_status_reply {
    /// Ray enum `ray.rpc.GetObjectStatusReply.ObjectStatus`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum ObjectStatus {
        Created = 0,
        OutOfScope = 1,
        Freed = 2,
    }
}

/// Ray message `ray.rpc.UpdateObjectLocationBatchRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateObjectLocationBatchRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub intended_worker_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub node_id: Bytes,
    #[prost(message, repeated, tag = "3")]
    pub object_location_updates: Vec<super::ObjectLocationUpdate>,
}

/// Ray message `ray.rpc.UpdateObjectLocationBatchReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateObjectLocationBatchReply {}

/// Ray message `ray.rpc.ObjectSpilledLocationUpdate`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ObjectSpilledLocationUpdate {
    #[prost(string, tag = "3")]
    pub spilled_url: String,
    #[prost(bool, tag = "4")]
    pub spilled_to_local_storage: bool,
}

/// Ray message `ray.rpc.ObjectLocationUpdate`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ObjectLocationUpdate {
    #[prost(bytes = "bytes", tag = "1")]
    pub object_id: Bytes,
    #[prost(enumeration = "super::ObjectPlasmaLocationUpdate", optional, tag = "2")]
    pub plasma_location_update: Option<i32>,
    #[prost(message, optional, tag = "3")]
    pub spilled_location_update: Option<super::ObjectSpilledLocationUpdate>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub generator_id: Option<Bytes>,
}

/// Ray message `ray.rpc.GetObjectLocationsOwnerRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetObjectLocationsOwnerRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub intended_worker_id: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub object_ids: Vec<Bytes>,
}

/// Ray message `ray.rpc.GetObjectLocationsOwnerReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetObjectLocationsOwnerReply {
    #[prost(message, repeated, tag = "1")]
    pub object_location_infos: Vec<super::WorkerObjectLocationsPubMessage>,
}

/// Ray message `ray.rpc.KillActorRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KillActorRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub intended_actor_id: Bytes,
    #[prost(bool, tag = "2")]
    pub force_kill: bool,
    #[prost(message, optional, tag = "3")]
    pub death_cause: Option<super::ActorDeathCause>,
}

/// Ray message `ray.rpc.KillActorReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KillActorReply {}

/// Ray message `ray.rpc.CancelTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CancelTaskRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub intended_task_id: Bytes,
    #[prost(bool, tag = "2")]
    pub force_kill: bool,
    #[prost(bool, tag = "3")]
    pub recursive: bool,
    #[prost(bytes = "bytes", tag = "4")]
    pub caller_worker_id: Bytes,
}

/// Ray message `ray.rpc.CancelTaskReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CancelTaskReply {
    #[prost(bool, tag = "1")]
    pub requested_task_running: bool,
    #[prost(bool, tag = "2")]
    pub attempt_succeeded: bool,
}

/// Ray message `ray.rpc.RequestOwnerToCancelTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestOwnerToCancelTaskRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub remote_object_id: Bytes,
    #[prost(bool, tag = "2")]
    pub force_kill: bool,
    #[prost(bool, tag = "3")]
    pub recursive: bool,
}

/// Ray message `ray.rpc.RequestOwnerToCancelTaskReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestOwnerToCancelTaskReply {}

/// Ray message `ray.rpc.GetCoreWorkerStatsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetCoreWorkerStatsRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub intended_worker_id: Bytes,
    #[prost(bool, tag = "2")]
    pub include_memory_info: bool,
    #[prost(bool, tag = "3")]
    pub include_task_info: bool,
    #[prost(int64, optional, tag = "4")]
    pub limit: Option<i64>,
}

/// Ray message `ray.rpc.GetCoreWorkerStatsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetCoreWorkerStatsReply {
    #[prost(message, optional, tag = "1")]
    pub core_worker_stats: Option<super::CoreWorkerStats>,
    #[prost(message, repeated, tag = "2")]
    pub owned_task_info_entries: Vec<super::TaskInfoEntry>,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub running_task_ids: Vec<Bytes>,
    #[prost(int64, tag = "4")]
    pub tasks_total: i64,
}

/// Ray message `ray.rpc.LocalGCRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LocalGcRequest {}

/// Ray message `ray.rpc.LocalGCReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LocalGcReply {}

/// Ray message `ray.rpc.PlasmaObjectReadyRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlasmaObjectReadyRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub object_id: Bytes,
}

/// Ray message `ray.rpc.PlasmaObjectReadyReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlasmaObjectReadyReply {}

/// Ray message `ray.rpc.SpillObjectsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpillObjectsRequest {
    #[prost(message, repeated, tag = "1")]
    pub object_refs_to_spill: Vec<super::ObjectReference>,
}

/// Ray message `ray.rpc.SpillObjectsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpillObjectsReply {
    #[prost(string, repeated, tag = "1")]
    pub spilled_objects_url: Vec<String>,
}

/// Ray message `ray.rpc.RestoreSpilledObjectsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RestoreSpilledObjectsRequest {
    #[prost(string, repeated, tag = "1")]
    pub spilled_objects_url: Vec<String>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub object_ids_to_restore: Vec<Bytes>,
}

/// Ray message `ray.rpc.RestoreSpilledObjectsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RestoreSpilledObjectsReply {
    #[prost(int64, tag = "1")]
    pub bytes_restored_total: i64,
}

/// Ray message `ray.rpc.DeleteSpilledObjectsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteSpilledObjectsRequest {
    #[prost(string, repeated, tag = "1")]
    pub spilled_objects_url: Vec<String>,
}

/// Ray message `ray.rpc.DeleteSpilledObjectsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteSpilledObjectsReply {}

/// Ray message `ray.rpc.ExitRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExitRequest {
    #[prost(bool, tag = "1")]
    pub force_exit: bool,
}

/// Ray message `ray.rpc.ExitReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExitReply {
    #[prost(bool, tag = "1")]
    pub success: bool,
}

/// Ray message `ray.rpc.RayletNotifyGCSRestartRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RayletNotifyGcsRestartRequest {}

/// Ray message `ray.rpc.RayletNotifyGCSRestartReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RayletNotifyGcsRestartReply {}

/// Ray message `ray.rpc.NumPendingTasksRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NumPendingTasksRequest {}

/// Ray message `ray.rpc.NumPendingTasksReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NumPendingTasksReply {
    #[prost(int64, tag = "1")]
    pub num_pending_tasks: i64,
}

/// Ray message `ray.rpc.RegisterMutableObjectReaderRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterMutableObjectReaderRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub writer_object_id: Bytes,
    #[prost(int64, tag = "2")]
    pub num_readers: i64,
    #[prost(bytes = "bytes", tag = "3")]
    pub reader_object_id: Bytes,
}

/// Ray message `ray.rpc.RegisterMutableObjectReaderReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterMutableObjectReaderReply {}
