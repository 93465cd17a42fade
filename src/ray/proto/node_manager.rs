//! Requests and replies of `ray.rpc.NodeManagerService` (Ray 2.60 `node_manager.proto`).

use prost::bytes::Bytes;
use std::collections::BTreeMap;

/// Ray message `ray.rpc.WorkerBacklogReport`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerBacklogReport {
    #[prost(message, optional, tag = "1")]
    pub lease_spec: Option<super::LeaseSpec>,
    #[prost(int64, tag = "2")]
    pub backlog_size: i64,
}

/// Ray message `ray.rpc.ReportWorkerBacklogRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportWorkerBacklogRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub worker_id: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub backlog_reports: Vec<super::WorkerBacklogReport>,
}

/// Ray message `ray.rpc.ReportWorkerBacklogReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportWorkerBacklogReply {}

/// Ray message `ray.rpc.RequestWorkerLeaseRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestWorkerLeaseRequest {
    #[prost(message, optional, tag = "1")]
    pub lease_spec: Option<super::LeaseSpec>,
    #[prost(int64, tag = "2")]
    pub backlog_size: i64,
    #[prost(bool, tag = "3")]
    pub grant_or_reject: bool,
    #[prost(bool, tag = "4")]
    pub is_selected_based_on_locality: bool,
}

/// Ray message `ray.rpc.RequestWorkerLeaseReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestWorkerLeaseReply {
    #[prost(message, optional, tag = "1")]
    pub worker_address: Option<super::Address>,
    #[prost(message, optional, tag = "2")]
    pub retry_at_raylet_address: Option<super::Address>,
    #[prost(message, repeated, tag = "3")]
    pub resource_mapping: Vec<super::ResourceMapEntry>,
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    #[prost(uint32, tag = "6")]
    pub worker_pid: u32,
    #[prost(bool, tag = "7")]
    pub rejected: bool,
    #[prost(message, optional, tag = "8")]
    pub resources_data: Option<super::ResourcesData>,
    #[prost(enumeration = "super::request_worker_lease_reply::SchedulingFailureType", tag = "9")]
    pub failure_type: i32,
    #[prost(string, tag = "10")]
    pub scheduling_failure_message: String,
}

/// Types nested in [`RequestWorkerLeaseReply`].
pub mod request_worker_lease_reply {
    /// Ray enum `ray.rpc.RequestWorkerLeaseReply.SchedulingFailureType`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum SchedulingFailureType {
        NotFailed = 0,
        SchedulingFailed = 1,
        SchedulingCancelledPlacementGroupRemoved = 2,
        SchedulingCancelledRuntimeEnvSetupFailed = 3,
        SchedulingCancelledIntended = 4,
        SchedulingCancelledUnschedulable = 5,
        SchedulingCancelledWorkerStartupFailed = 6,
    }
}

/// Ray message `ray.rpc.PrestartWorkersRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PrestartWorkersRequest {
    #[prost(enumeration = "super::Language", tag = "1")]
    pub language: i32,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub job_id: Option<Bytes>,
    #[prost(message, optional, tag = "3")]
    pub runtime_env_info: Option<super::RuntimeEnvInfo>,
    #[prost(uint64, tag = "4")]
    pub keep_alive_duration_secs: u64,
    #[prost(uint64, tag = "5")]
    pub num_workers: u64,
}

/// Ray message `ray.rpc.PrestartWorkersReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PrestartWorkersReply {}

/// Ray message `ray.rpc.PrepareBundleResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PrepareBundleResourcesRequest {
    #[prost(message, repeated, tag = "1")]
    pub bundle_specs: Vec<super::Bundle>,
}

/// Ray message `ray.rpc.PrepareBundleResourcesReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PrepareBundleResourcesReply {
    #[prost(bool, tag = "1")]
    pub success: bool,
}

/// Ray message `ray.rpc.CommitBundleResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommitBundleResourcesRequest {
    #[prost(message, repeated, tag = "1")]
    pub bundle_specs: Vec<super::Bundle>,
}

/// Ray message `ray.rpc.CommitBundleResourcesReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommitBundleResourcesReply {}

/// Ray message `ray.rpc.RemovePlacementGroupBundlesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemovePlacementGroupBundlesRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub placement_group_id: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub bundle_specs: Vec<super::Bundle>,
}

/// Ray message `ray.rpc.RemovePlacementGroupBundlesReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemovePlacementGroupBundlesReply {}

/// Ray message `ray.rpc.ResizeLocalResourceInstancesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResizeLocalResourceInstancesRequest {
    #[prost(btree_map = "string, double", tag = "1")]
    pub resources: BTreeMap<String, f64>,
}

/// Ray message `ray.rpc.ResizeLocalResourceInstancesReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResizeLocalResourceInstancesReply {
    #[prost(btree_map = "string, double", tag = "1")]
    pub total_resources: BTreeMap<String, f64>,
}

/// Ray message `ray.rpc.ReturnWorkerLeaseRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReturnWorkerLeaseRequest {
    #[prost(int32, tag = "1")]
    pub worker_port: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub lease_id: Bytes,
    #[prost(bool, tag = "3")]
    pub disconnect_worker: bool,
    #[prost(bool, tag = "4")]
    pub worker_exiting: bool,
    #[prost(string, tag = "5")]
    pub disconnect_worker_error_detail: String,
}

/// Ray message `ray.rpc.ReturnWorkerLeaseReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReturnWorkerLeaseReply {}

/// Ray message `ray.rpc.ReleaseUnusedActorWorkersRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReleaseUnusedActorWorkersRequest {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub worker_ids_in_use: Vec<Bytes>,
}

/// Ray message `ray.rpc.ReleaseUnusedActorWorkersReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReleaseUnusedActorWorkersReply {}

/// Ray message `ray.rpc.ShutdownRayletRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownRayletRequest {
    #[prost(bool, tag = "1")]
    pub graceful: bool,
}

/// Ray message `ray.rpc.ShutdownRayletReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownRayletReply {}

/// Ray message `ray.rpc.CancelWorkerLeaseRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CancelWorkerLeaseRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub lease_id: Bytes,
}

/// Ray message `ray.rpc.CancelWorkerLeaseReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CancelWorkerLeaseReply {}

/// Ray message `ray.rpc.PinObjectIDsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PinObjectIDsRequest {
    #[prost(message, optional, tag = "1")]
    pub owner_address: Option<super::Address>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub object_ids: Vec<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub generator_id: Option<Bytes>,
}

/// Ray message `ray.rpc.PinObjectIDsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PinObjectIDsReply {
    #[prost(bool, repeated, tag = "1")]
    pub successes: Vec<bool>,
}

/// Ray message `ray.rpc.GetNodeStatsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetNodeStatsRequest {
    #[prost(bool, tag = "1")]
    pub include_memory_info: bool,
}

/// Ray message `ray.rpc.ObjectStoreStats`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ObjectStoreStats {
    #[prost(double, tag = "1")]
    pub spill_time_total_s: f64,
    #[prost(int64, tag = "2")]
    pub spilled_bytes_total: i64,
    #[prost(int64, tag = "3")]
    pub spilled_objects_total: i64,
    #[prost(double, tag = "4")]
    pub restore_time_total_s: f64,
    #[prost(int64, tag = "5")]
    pub restored_bytes_total: i64,
    #[prost(int64, tag = "6")]
    pub restored_objects_total: i64,
    #[prost(int64, tag = "7")]
    pub object_store_bytes_used: i64,
    #[prost(int64, tag = "8")]
    pub object_store_bytes_avail: i64,
    #[prost(int64, tag = "9")]
    pub object_store_bytes_primary_copy: i64,
    #[prost(int64, tag = "10")]
    pub object_store_bytes_fallback: i64,
    #[prost(int64, tag = "11")]
    pub num_local_objects: i64,
    #[prost(bool, tag = "12")]
    pub object_pulls_queued: bool,
    #[prost(int64, tag = "13")]
    pub num_object_store_primary_copies: i64,
    #[prost(int64, tag = "14")]
    pub cumulative_created_objects: i64,
    #[prost(int64, tag = "15")]
    pub cumulative_created_bytes: i64,
}

/// Ray message `ray.rpc.GetNodeStatsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetNodeStatsReply {
    #[prost(message, repeated, tag = "1")]
    pub core_workers_stats: Vec<super::CoreWorkerStats>,
    #[prost(uint32, tag = "3")]
    pub num_workers: u32,
    #[prost(message, optional, tag = "6")]
    pub store_stats: Option<super::ObjectStoreStats>,
}

/// Ray message `ray.rpc.GlobalGCRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GlobalGcRequest {}

/// Ray message `ray.rpc.GlobalGCReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GlobalGcReply {}

/// Ray message `ray.rpc.FormatGlobalMemoryInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FormatGlobalMemoryInfoRequest {
    #[prost(bool, tag = "1")]
    pub include_memory_info: bool,
}

/// Ray message `ray.rpc.FormatGlobalMemoryInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FormatGlobalMemoryInfoReply {
    #[prost(string, tag = "1")]
    pub memory_summary: String,
    #[prost(message, optional, tag = "2")]
    pub store_stats: Option<super::ObjectStoreStats>,
}

/// Ray message `ray.rpc.ReleaseUnusedBundlesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReleaseUnusedBundlesRequest {
    #[prost(message, repeated, tag = "1")]
    pub bundles_in_use: Vec<super::Bundle>,
}

/// Ray message `ray.rpc.ReleaseUnusedBundlesReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReleaseUnusedBundlesReply {}

/// Ray message `ray.rpc.GetSystemConfigRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetSystemConfigRequest {}

/// Ray message `ray.rpc.GetSystemConfigReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetSystemConfigReply {
    #[prost(string, tag = "1")]
    pub system_config: String,
}

/// Ray message `ray.rpc.GetObjectsInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetObjectsInfoRequest {
    #[prost(int64, optional, tag = "1")]
    pub limit: Option<i64>,
}

/// Ray message `ray.rpc.GetObjectsInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetObjectsInfoReply {
    #[prost(message, repeated, tag = "1")]
    pub core_workers_stats: Vec<super::CoreWorkerStats>,
    #[prost(int64, tag = "2")]
    pub total: i64,
}

/// Ray message `ray.rpc.GetResourceLoadRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetResourceLoadRequest {}

/// Ray message `ray.rpc.GetResourceLoadReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetResourceLoadReply {
    #[prost(message, optional, tag = "1")]
    pub resources: Option<super::ResourcesData>,
}

/// Ray message `ray.rpc.CancelLeasesWithResourceShapesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CancelLeasesWithResourceShapesRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_shapes: Vec<super::cancel_leases_with_resource_shapes_request::ResourceShape>,
}

/// Types nested in [`CancelLeasesWithResourceShapesRequest`].
pub mod cancel_leases_with_resource_shapes_request {
    use std::collections::BTreeMap;

    /// Ray message `ray.rpc.CancelLeasesWithResourceShapesRequest.ResourceShape`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ResourceShape {
        #[prost(btree_map = "string, double", tag = "1")]
        pub resource_shape: BTreeMap<String, f64>,
    }
}

/// Ray message `ray.rpc.CancelLeasesWithResourceShapesReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CancelLeasesWithResourceShapesReply {}

/// Ray message `ray.rpc.NotifyGCSRestartRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NotifyGcsRestartRequest {}

/// Ray message `ray.rpc.NotifyGCSRestartReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NotifyGcsRestartReply {}

/// Ray message `ray.rpc.GetWorkerFailureCauseRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetWorkerFailureCauseRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub lease_id: Bytes,
}

/// Ray message `ray.rpc.GetWorkerFailureCauseReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetWorkerFailureCauseReply {
    #[prost(message, optional, tag = "1")]
    pub failure_cause: Option<super::RayErrorInfo>,
    #[prost(bool, tag = "2")]
    pub fail_task_immediately: bool,
}

/// Ray message `ray.rpc.DrainRayletRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainRayletRequest {
    #[prost(enumeration = "super::autoscaler::DrainNodeReason", tag = "1")]
    pub reason: i32,
    #[prost(string, tag = "2")]
    pub reason_message: String,
    #[prost(int64, tag = "3")]
    pub deadline_timestamp_ms: i64,
}

/// Ray message `ray.rpc.DrainRayletReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainRayletReply {
    #[prost(bool, tag = "1")]
    pub is_accepted: bool,
    #[prost(string, tag = "2")]
    pub rejection_reason_message: String,
}

/// Ray message `ray.rpc.RegisterMutableObjectRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterMutableObjectRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub writer_object_id: Bytes,
    #[prost(int64, tag = "2")]
    pub num_readers: i64,
    #[prost(bytes = "bytes", tag = "3")]
    pub reader_object_id: Bytes,
}

/// Ray message `ray.rpc.RegisterMutableObjectReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterMutableObjectReply {}

/// Ray message `ray.rpc.PushMutableObjectRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PushMutableObjectRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub writer_object_id: Bytes,
    #[prost(uint64, tag = "2")]
    pub total_data_size: u64,
    #[prost(uint64, tag = "3")]
    pub total_metadata_size: u64,
    #[prost(uint64, tag = "4")]
    pub offset: u64,
    #[prost(uint64, tag = "5")]
    pub chunk_size: u64,
    #[prost(bytes = "bytes", tag = "6")]
    pub data: Bytes,
    #[prost(bytes = "bytes", tag = "7")]
    pub metadata: Bytes,
}

/// Ray message `ray.rpc.PushMutableObjectReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PushMutableObjectReply {
    #[prost(bool, tag = "1")]
    pub done: bool,
}

/// Ray message `ray.rpc.IsLocalWorkerDeadRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IsLocalWorkerDeadRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub worker_id: Bytes,
}

/// Ray message `ray.rpc.IsLocalWorkerDeadReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IsLocalWorkerDeadReply {
    #[prost(bool, tag = "1")]
    pub is_dead: bool,
}

/// Ray message `ray.rpc.GetWorkerPIDsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetWorkerPiDsRequest {}

/// Ray message `ray.rpc.GetWorkerPIDsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetWorkerPiDsReply {
    #[prost(int32, repeated, tag = "1")]
    pub pids: Vec<i32>,
}

/// Ray message `ray.rpc.GetAgentPIDsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAgentPiDsRequest {}

/// Ray message `ray.rpc.GetAgentPIDsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAgentPiDsReply {
    #[prost(int32, optional, tag = "1")]
    pub dashboard_agent_pid: Option<i32>,
    #[prost(int32, optional, tag = "2")]
    pub runtime_env_agent_pid: Option<i32>,
}

/// Ray message `ray.rpc.KillLocalActorRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KillLocalActorRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub intended_actor_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub worker_id: Bytes,
    #[prost(bool, tag = "3")]
    pub force_kill: bool,
    #[prost(message, optional, tag = "4")]
    pub death_cause: Option<super::ActorDeathCause>,
}

/// Ray message `ray.rpc.KillLocalActorReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KillLocalActorReply {}

/// Ray message `ray.rpc.CancelLocalTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CancelLocalTaskRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub intended_task_id: Bytes,
    #[prost(bool, tag = "2")]
    pub force_kill: bool,
    #[prost(bool, tag = "3")]
    pub recursive: bool,
    #[prost(bytes = "bytes", tag = "4")]
    pub caller_worker_id: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub executor_worker_id: Bytes,
}

/// Ray message `ray.rpc.CancelLocalTaskReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CancelLocalTaskReply {
    #[prost(bool, tag = "1")]
    pub requested_task_running: bool,
    #[prost(bool, tag = "2")]
    pub attempt_succeeded: bool,
}

/// Ray message `ray.rpc.FreeLocalObjectsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FreeLocalObjectsRequest {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub object_ids: Vec<Bytes>,
}

/// Ray message `ray.rpc.FreeLocalObjectsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FreeLocalObjectsReply {}
