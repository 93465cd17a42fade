//! Requests and replies of the GCS services (Ray 2.60 `gcs_service.proto`) that a raylet calls.

use prost::bytes::Bytes;

/// Ray message `ray.rpc.AddJobRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddJobRequest {
    #[prost(message, optional, tag = "1")]
    pub data: Option<super::JobTableData>,
}

/// Ray message `ray.rpc.AddJobReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddJobReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.MarkJobFinishedRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MarkJobFinishedRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub job_id: Bytes,
}

/// Ray message `ray.rpc.MarkJobFinishedReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MarkJobFinishedReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.GetAllJobInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllJobInfoRequest {
    #[prost(int32, optional, tag = "1")]
    pub limit: Option<i32>,
    #[prost(string, optional, tag = "2")]
    pub job_or_submission_id: Option<String>,
    #[prost(bool, optional, tag = "3")]
    pub skip_submission_job_info_field: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub skip_is_running_tasks_field: Option<bool>,
}

/// Ray message `ray.rpc.GetAllJobInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllJobInfoReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub job_info_list: Vec<super::JobTableData>,
}

/// Ray message `ray.rpc.ReportJobErrorRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportJobErrorRequest {
    #[prost(message, optional, tag = "1")]
    pub job_error: Option<super::ErrorTableData>,
}

/// Ray message `ray.rpc.ReportJobErrorReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportJobErrorReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.GetNextJobIDRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetNextJobIdRequest {}

/// Ray message `ray.rpc.GetNextJobIDReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetNextJobIdReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(int32, tag = "2")]
    pub job_id: i32,
}

/// Ray message `ray.rpc.GetActorInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetActorInfoRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub actor_id: Bytes,
    #[prost(string, tag = "2")]
    pub name: String,
}

/// Ray message `ray.rpc.GetActorInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetActorInfoReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, optional, tag = "2")]
    pub actor_table_data: Option<super::ActorTableData>,
}

/// Ray message `ray.rpc.GetNamedActorInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetNamedActorInfoRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub ray_namespace: String,
}

/// Ray message `ray.rpc.GetNamedActorInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetNamedActorInfoReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, optional, tag = "2")]
    pub actor_table_data: Option<super::ActorTableData>,
    #[prost(message, optional, tag = "3")]
    pub task_spec: Option<super::TaskSpec>,
}

/// Ray message `ray.rpc.GetAllActorInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllActorInfoRequest {
    #[prost(bool, tag = "1")]
    pub show_dead_jobs: bool,
    #[prost(int64, optional, tag = "2")]
    pub limit: Option<i64>,
    #[prost(message, optional, tag = "3")]
    pub filters: Option<super::get_all_actor_info_request::Filters>,
}

/// Types nested in [`GetAllActorInfoRequest`].
pub mod get_all_actor_info_request {
    use prost::bytes::Bytes;

    /// Ray message `ray.rpc.GetAllActorInfoRequest.Filters`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Filters {
        #[prost(bytes = "bytes", optional, tag = "1")]
        pub actor_id: Option<Bytes>,
        #[prost(bytes = "bytes", optional, tag = "2")]
        pub job_id: Option<Bytes>,
        #[prost(enumeration = "super::super::actor_table_data::ActorState", optional, tag = "3")]
        pub state: Option<i32>,
    }
}

/// Ray message `ray.rpc.GetAllActorInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllActorInfoReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub actor_table_data: Vec<super::ActorTableData>,
    #[prost(int64, tag = "3")]
    pub total: i64,
    #[prost(int64, tag = "4")]
    pub num_filtered: i64,
}

/// Ray message `ray.rpc.GetClusterIdRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetClusterIdRequest {}

/// Ray message `ray.rpc.GetClusterIdReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetClusterIdReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(bytes = "bytes", tag = "2")]
    pub cluster_id: Bytes,
}

/// Ray message `ray.rpc.RegisterNodeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterNodeRequest {
    #[prost(message, optional, tag = "1")]
    pub node_info: Option<super::GcsNodeInfo>,
}

/// Ray message `ray.rpc.RegisterNodeReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterNodeReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.UnregisterNodeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnregisterNodeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(message, optional, tag = "2")]
    pub node_death_info: Option<super::NodeDeathInfo>,
}

/// Ray message `ray.rpc.UnregisterNodeReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnregisterNodeReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.GetAllNodeInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllNodeInfoRequest {
    #[prost(int64, optional, tag = "1")]
    pub limit: Option<i64>,
    #[prost(message, repeated, tag = "2")]
    pub node_selectors: Vec<super::get_all_node_info_request::NodeSelector>,
    #[prost(enumeration = "super::gcs_node_info::GcsNodeState", optional, tag = "3")]
    pub state_filter: Option<i32>,
}

/// Types nested in [`GetAllNodeInfoRequest`].
pub mod get_all_node_info_request {
    /// Ray message `ray.rpc.GetAllNodeInfoRequest.NodeSelector`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct NodeSelector {
        #[prost(oneof = "node_selector::NodeSelector", tags = "1, 2, 3, 4")]
        pub node_selector: Option<node_selector::NodeSelector>,
    }

    /// Types nested in [`NodeSelector`].
    pub mod node_selector {
        use prost::bytes::Bytes;

        /// The `node_selector` choice of `NodeSelector`.
        #[derive(Clone, PartialEq, prost::Oneof)]
        pub enum NodeSelector {
            #[prost(bytes = "bytes", tag = "1")]
            NodeId(Bytes),
            #[prost(string, tag = "2")]
            NodeName(String),
            #[prost(string, tag = "3")]
            NodeIpAddress(String),
            #[prost(bool, tag = "4")]
            IsHeadNode(bool),
        }
    }
}

/// Ray message `ray.rpc.GetAllNodeInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllNodeInfoReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub node_info_list: Vec<super::GcsNodeInfo>,
    #[prost(int64, tag = "3")]
    pub total: i64,
    #[prost(int64, tag = "4")]
    pub num_filtered: i64,
}

/// Ray message `ray.rpc.GetAllNodeAddressAndLivenessRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllNodeAddressAndLivenessRequest {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub node_ids: Vec<Bytes>,
    #[prost(int64, optional, tag = "2")]
    pub limit: Option<i64>,
    #[prost(enumeration = "super::gcs_node_info::GcsNodeState", optional, tag = "3")]
    pub state_filter: Option<i32>,
}

/// Ray message `ray.rpc.GetAllNodeAddressAndLivenessReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllNodeAddressAndLivenessReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub node_info_list: Vec<super::GcsNodeAddressAndLiveness>,
}

/// Ray message `ray.rpc.CheckAliveRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckAliveRequest {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub node_ids: Vec<Bytes>,
}

/// Ray message `ray.rpc.CheckAliveReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckAliveReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(string, tag = "2")]
    pub ray_version: String,
    #[prost(bool, repeated, tag = "3")]
    pub raylet_alive: Vec<bool>,
    #[prost(bool, optional, tag = "4")]
    pub is_leader: Option<bool>,
}

/// Ray message `ray.rpc.GetInternalConfigRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetInternalConfigRequest {}

/// Ray message `ray.rpc.GetInternalConfigReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetInternalConfigReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(string, tag = "2")]
    pub config: String,
}

/// Ray message `ray.rpc.GetAllAvailableResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllAvailableResourcesRequest {}

/// Ray message `ray.rpc.GetAllAvailableResourcesReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllAvailableResourcesReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub resources_list: Vec<super::AvailableResources>,
}

/// Ray message `ray.rpc.GetAllTotalResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllTotalResourcesRequest {}

/// Ray message `ray.rpc.GetAllTotalResourcesReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllTotalResourcesReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub resources_list: Vec<super::TotalResources>,
}

/// Ray message `ray.rpc.ReportWorkerFailureRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportWorkerFailureRequest {
    #[prost(message, optional, tag = "1")]
    pub worker_failure: Option<super::WorkerTableData>,
}

/// Ray message `ray.rpc.ReportWorkerFailureReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportWorkerFailureReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.GetWorkerInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetWorkerInfoRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub worker_id: Bytes,
}

/// Ray message `ray.rpc.GetWorkerInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetWorkerInfoReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, optional, tag = "2")]
    pub worker_table_data: Option<super::WorkerTableData>,
}

/// Ray message `ray.rpc.GetAllWorkerInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllWorkerInfoRequest {
    #[prost(int64, optional, tag = "1")]
    pub limit: Option<i64>,
    #[prost(message, optional, tag = "2")]
    pub filters: Option<super::get_all_worker_info_request::Filters>,
}

/// Types nested in [`GetAllWorkerInfoRequest`].
pub mod get_all_worker_info_request {
    /// Ray message `ray.rpc.GetAllWorkerInfoRequest.Filters`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Filters {
        #[prost(bool, optional, tag = "1")]
        pub exist_paused_threads: Option<bool>,
        #[prost(bool, optional, tag = "2")]
        pub is_alive: Option<bool>,
    }
}

/// Ray message `ray.rpc.GetAllWorkerInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllWorkerInfoReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub worker_table_data: Vec<super::WorkerTableData>,
    #[prost(int64, tag = "3")]
    pub total: i64,
    #[prost(int64, tag = "4")]
    pub num_filtered: i64,
}

/// Ray message `ray.rpc.AddWorkerInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddWorkerInfoRequest {
    #[prost(message, optional, tag = "1")]
    pub worker_data: Option<super::WorkerTableData>,
}

/// Ray message `ray.rpc.AddWorkerInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddWorkerInfoReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.UpdateWorkerDebuggerPortRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateWorkerDebuggerPortRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub worker_id: Bytes,
    #[prost(uint32, tag = "2")]
    pub debugger_port: u32,
}

/// Ray message `ray.rpc.UpdateWorkerDebuggerPortReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateWorkerDebuggerPortReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.UpdateWorkerNumPausedThreadsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateWorkerNumPausedThreadsRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub worker_id: Bytes,
    #[prost(int32, tag = "2")]
    pub num_paused_threads_delta: i32,
}

/// Ray message `ray.rpc.UpdateWorkerNumPausedThreadsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateWorkerNumPausedThreadsReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.GetPlacementGroupRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetPlacementGroupRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub placement_group_id: Bytes,
}

/// Ray message `ray.rpc.GetPlacementGroupReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetPlacementGroupReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, optional, tag = "2")]
    pub placement_group_table_data: Option<super::PlacementGroupTableData>,
}

/// Ray message `ray.rpc.GetAllPlacementGroupRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllPlacementGroupRequest {
    #[prost(int64, optional, tag = "1")]
    pub limit: Option<i64>,
}

/// Ray message `ray.rpc.GetAllPlacementGroupReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllPlacementGroupReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub placement_group_table_data: Vec<super::PlacementGroupTableData>,
    #[prost(int64, tag = "3")]
    pub total: i64,
}

/// Ray message `ray.rpc.DrainNodeData`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainNodeData {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
}

/// Ray message `ray.rpc.DrainNodeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainNodeRequest {
    #[prost(message, repeated, tag = "1")]
    pub drain_node_data: Vec<super::DrainNodeData>,
}

/// Ray message `ray.rpc.DrainNodeStatus`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainNodeStatus {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
}

/// Ray message `ray.rpc.DrainNodeReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainNodeReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub drain_node_status: Vec<super::DrainNodeStatus>,
}

/// Ray message `ray.rpc.InternalKVGetRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvGetRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub namespace: Bytes,
}

/// Ray message `ray.rpc.InternalKVGetReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvGetReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// Ray message `ray.rpc.InternalKVMultiGetRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvMultiGetRequest {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub keys: Vec<Bytes>,
    #[prost(bytes = "bytes", tag = "2")]
    pub namespace: Bytes,
}

/// Ray message `ray.rpc.MapFieldEntry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MapFieldEntry {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// Ray message `ray.rpc.InternalKVMultiGetReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvMultiGetReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub results: Vec<super::MapFieldEntry>,
}

/// Ray message `ray.rpc.InternalKVPutRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvPutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    #[prost(bool, tag = "3")]
    pub overwrite: bool,
    #[prost(bytes = "bytes", tag = "4")]
    pub namespace: Bytes,
}

/// Ray message `ray.rpc.InternalKVPutReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvPutReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(bool, tag = "2")]
    pub added: bool,
}

/// Ray message `ray.rpc.InternalKVDelRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvDelRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub namespace: Bytes,
    #[prost(bool, tag = "3")]
    pub del_by_prefix: bool,
}

/// Ray message `ray.rpc.InternalKVDelReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvDelReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(int32, tag = "2")]
    pub deleted_num: i32,
}

/// Ray message `ray.rpc.InternalKVExistsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvExistsRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub namespace: Bytes,
}

/// Ray message `ray.rpc.InternalKVExistsReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvExistsReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(bool, tag = "2")]
    pub exists: bool,
}

/// Ray message `ray.rpc.InternalKVKeysRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvKeysRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub prefix: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub namespace: Bytes,
}

/// Ray message `ray.rpc.InternalKVKeysReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InternalKvKeysReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub results: Vec<Bytes>,
}

/// Ray message `ray.rpc.PinRuntimeEnvURIRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PinRuntimeEnvUriRequest {
    #[prost(string, tag = "1")]
    pub uri: String,
    #[prost(int32, tag = "2")]
    pub expiration_s: i32,
}

/// Ray message `ray.rpc.PinRuntimeEnvURIReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PinRuntimeEnvUriReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.GcsPublishRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GcsPublishRequest {
    #[prost(message, repeated, tag = "1")]
    pub pub_messages: Vec<super::PubMessage>,
}

/// Ray message `ray.rpc.GcsPublishReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GcsPublishReply {
    #[prost(message, optional, tag = "100")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.GcsSubscriberPollRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GcsSubscriberPollRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub subscriber_id: Bytes,
    #[prost(int64, tag = "2")]
    pub max_processed_sequence_id: i64,
    #[prost(bytes = "bytes", tag = "3")]
    pub publisher_id: Bytes,
}

/// Ray message `ray.rpc.GcsSubscriberPollReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GcsSubscriberPollReply {
    #[prost(message, repeated, tag = "1")]
    pub pub_messages: Vec<super::PubMessage>,
    #[prost(bytes = "bytes", tag = "2")]
    pub publisher_id: Bytes,
    #[prost(message, optional, tag = "100")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.GcsSubscriberCommandBatchRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GcsSubscriberCommandBatchRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub subscriber_id: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub commands: Vec<super::Command>,
    #[prost(bytes = "bytes", tag = "3")]
    pub sender_id: Bytes,
}

/// Ray message `ray.rpc.GcsSubscriberCommandBatchReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GcsSubscriberCommandBatchReply {
    #[prost(message, optional, tag = "100")]
    pub status: Option<super::GcsStatus>,
}

/// Ray message `ray.rpc.GetAllResourceUsageRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllResourceUsageRequest {}

/// Ray message `ray.rpc.GetAllResourceUsageReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAllResourceUsageReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, optional, tag = "2")]
    pub resource_usage_data: Option<super::ResourceUsageBatchData>,
}

/// Ray message `ray.rpc.GetDrainingNodesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetDrainingNodesRequest {}

/// Ray message `ray.rpc.DrainingNode`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainingNode {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(int64, tag = "2")]
    pub draining_deadline_timestamp_ms: i64,
}

/// Ray message `ray.rpc.GetDrainingNodesReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetDrainingNodesReply {
    #[prost(message, optional, tag = "1")]
    pub status: Option<super::GcsStatus>,
    #[prost(message, repeated, tag = "2")]
    pub draining_nodes: Vec<super::DrainingNode>,
}

/// Ray message `ray.rpc.GcsStatus`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GcsStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}
