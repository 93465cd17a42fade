//! Messages of Ray 2.60 `gcs.proto`: rows of the tables of the GCS.

use prost::bytes::Bytes;
use std::collections::BTreeMap;

/// Ray message `ray.rpc.ActorTableData`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActorTableData {
    #[prost(bytes = "bytes", tag = "1")]
    pub actor_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub parent_id: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub job_id: Bytes,
    #[prost(enumeration = "super::actor_table_data::ActorState", tag = "6")]
    pub state: i32,
    #[prost(int64, tag = "7")]
    pub max_restarts: i64,
    #[prost(int64, tag = "8")]
    pub num_restarts: i64,
    #[prost(message, optional, tag = "9")]
    pub address: Option<super::Address>,
    #[prost(message, optional, tag = "10")]
    pub owner_address: Option<super::Address>,
    #[prost(bool, tag = "11")]
    pub is_detached: bool,
    #[prost(string, tag = "12")]
    pub name: String,
    #[prost(double, tag = "13")]
    pub timestamp: f64,
    #[prost(message, repeated, tag = "15")]
    pub resource_mapping: Vec<super::ResourceMapEntry>,
    #[prost(uint32, tag = "16")]
    pub pid: u32,
    #[prost(message, optional, tag = "17")]
    pub function_descriptor: Option<super::FunctionDescriptor>,
    #[prost(string, tag = "19")]
    pub ray_namespace: String,
    #[prost(uint64, tag = "20")]
    pub start_time: u64,
    #[prost(uint64, tag = "21")]
    pub end_time: u64,
    #[prost(string, tag = "22")]
    pub serialized_runtime_env: String,
    #[prost(string, tag = "23")]
    pub class_name: String,
    #[prost(message, optional, tag = "24")]
    pub death_cause: Option<super::ActorDeathCause>,
    #[prost(btree_map = "string, double", tag = "28")]
    pub required_resources: BTreeMap<String, f64>,
    #[prost(bytes = "bytes", optional, tag = "29")]
    pub node_id: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "30")]
    pub placement_group_id: Option<Bytes>,
    #[prost(string, tag = "31")]
    pub repr_name: String,
    #[prost(bool, tag = "32")]
    pub preempted: bool,
    #[prost(uint64, tag = "33")]
    pub num_restarts_due_to_lineage_reconstruction: u64,
    #[prost(string, optional, tag = "34")]
    pub call_site: Option<String>,
    #[prost(btree_map = "string, string", tag = "35")]
    pub label_selector: BTreeMap<String, String>,
    #[prost(uint64, tag = "36")]
    pub num_restarts_due_to_node_preemption: u64,
    #[prost(btree_map = "string, string", tag = "37")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "38")]
    pub fallback_strategy: Option<super::FallbackStrategy>,
    #[prost(message, repeated, tag = "39")]
    pub previous_incarnations: Vec<super::PreviousActorIncarnation>,
}

/// Types nested in [`ActorTableData`].
pub mod actor_table_data {
    /// Ray enum `ray.rpc.ActorTableData.ActorState`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum ActorState {
        DependenciesUnready = 0,
        PendingCreation = 1,
        Alive = 2,
        Restarting = 3,
        Dead = 4,
    }
}

/// Ray message `ray.rpc.PreviousActorIncarnation`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PreviousActorIncarnation {
    #[prost(bytes = "bytes", tag = "1")]
    pub worker_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub node_id: Bytes,
}

/// Ray message `ray.rpc.ErrorTableData`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ErrorTableData {
    #[prost(bytes = "bytes", tag = "1")]
    pub job_id: Bytes,
    #[prost(string, tag = "2")]
    pub r#type: String,
    #[prost(string, tag = "3")]
    pub error_message: String,
    #[prost(double, tag = "4")]
    pub timestamp: f64,
}

/// Ray message `ray.rpc.AvailableResources`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AvailableResources {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(btree_map = "string, double", tag = "2")]
    pub resources_available: BTreeMap<String, f64>,
}

/// Ray message `ray.rpc.TotalResources`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TotalResources {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(btree_map = "string, double", tag = "2")]
    pub resources_total: BTreeMap<String, f64>,
}

/// Ray message `ray.rpc.NodeSnapshot`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeSnapshot {
    #[prost(enumeration = "super::node_snapshot::State", tag = "1")]
    pub state: i32,
    #[prost(int64, tag = "2")]
    pub idle_duration_ms: i64,
    #[prost(string, repeated, tag = "3")]
    pub node_activity: Vec<String>,
}

/// Types nested in [`NodeSnapshot`].
pub mod node_snapshot {
    /// Ray enum `ray.rpc.NodeSnapshot.State`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum State {
        Undefined = 0,
        Idle = 1,
        Active = 2,
        Draining = 3,
    }
}

/// Ray message `ray.rpc.GcsNodeInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GcsNodeInfo {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(string, tag = "2")]
    pub node_manager_address: String,
    #[prost(string, tag = "3")]
    pub raylet_socket_name: String,
    #[prost(string, tag = "4")]
    pub object_store_socket_name: String,
    #[prost(int32, tag = "5")]
    pub node_manager_port: i32,
    #[prost(int32, tag = "6")]
    pub object_manager_port: i32,
    #[prost(enumeration = "super::gcs_node_info::GcsNodeState", tag = "7")]
    pub state: i32,
    #[prost(string, tag = "8")]
    pub node_manager_hostname: String,
    #[prost(int32, tag = "9")]
    pub metrics_export_port: i32,
    #[prost(int32, tag = "27")]
    pub runtime_env_agent_port: i32,
    #[prost(int32, tag = "30")]
    pub metrics_agent_port: i32,
    #[prost(int32, tag = "31")]
    pub dashboard_agent_listen_port: i32,
    #[prost(btree_map = "string, double", tag = "11")]
    pub resources_total: BTreeMap<String, f64>,
    #[prost(string, tag = "12")]
    pub node_name: String,
    #[prost(string, tag = "13")]
    pub instance_id: String,
    #[prost(string, tag = "14")]
    pub node_type_name: String,
    #[prost(string, tag = "15")]
    pub instance_type_name: String,
    #[prost(uint64, tag = "23")]
    pub start_time_ms: u64,
    #[prost(uint64, tag = "24")]
    pub end_time_ms: u64,
    #[prost(bool, tag = "25")]
    pub is_head_node: bool,
    #[prost(btree_map = "string, string", tag = "26")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "28")]
    pub state_snapshot: Option<super::NodeSnapshot>,
    #[prost(message, optional, tag = "29")]
    pub death_info: Option<super::NodeDeathInfo>,
    #[prost(string, tag = "32")]
    pub temp_dir: String,
    #[prost(string, tag = "33")]
    pub session_dir: String,
}

/// Types nested in [`GcsNodeInfo`].
pub mod gcs_node_info {
    /// Ray enum `ray.rpc.GcsNodeInfo.GcsNodeState`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum GcsNodeState {
        Alive = 0,
        Dead = 1,
    }
}

/// Ray message `ray.rpc.GcsNodeAddressAndLiveness`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GcsNodeAddressAndLiveness {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(string, tag = "2")]
    pub node_manager_address: String,
    #[prost(int32, tag = "3")]
    pub node_manager_port: i32,
    #[prost(int32, tag = "4")]
    pub object_manager_port: i32,
    #[prost(enumeration = "super::gcs_node_info::GcsNodeState", tag = "5")]
    pub state: i32,
    #[prost(message, optional, tag = "6")]
    pub death_info: Option<super::NodeDeathInfo>,
}

/// Ray message `ray.rpc.JobsAPIInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JobsApiInfo {
    #[prost(string, tag = "1")]
    pub status: String,
    #[prost(string, tag = "2")]
    pub entrypoint: String,
    #[prost(string, optional, tag = "3")]
    pub message: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub error_type: Option<String>,
    #[prost(uint64, optional, tag = "5")]
    pub start_time: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub end_time: Option<u64>,
    #[prost(btree_map = "string, string", tag = "7")]
    pub metadata: BTreeMap<String, String>,
    #[prost(string, optional, tag = "8")]
    pub runtime_env_json: Option<String>,
    #[prost(double, optional, tag = "9")]
    pub entrypoint_num_cpus: Option<f64>,
    #[prost(double, optional, tag = "10")]
    pub entrypoint_num_gpus: Option<f64>,
    #[prost(btree_map = "string, double", tag = "11")]
    pub entrypoint_resources: BTreeMap<String, f64>,
    #[prost(string, optional, tag = "12")]
    pub driver_agent_http_address: Option<String>,
    #[prost(string, optional, tag = "13")]
    pub driver_node_id: Option<String>,
    #[prost(int32, optional, tag = "14")]
    pub driver_exit_code: Option<i32>,
    #[prost(uint64, optional, tag = "15")]
    pub entrypoint_memory: Option<u64>,
}

/// Ray message `ray.rpc.WorkerTableData`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerTableData {
    #[prost(bool, tag = "1")]
    pub is_alive: bool,
    #[prost(message, optional, tag = "2")]
    pub worker_address: Option<super::Address>,
    #[prost(int64, tag = "3")]
    pub timestamp: i64,
    #[prost(enumeration = "super::WorkerType", tag = "5")]
    pub worker_type: i32,
    #[prost(btree_map = "string, bytes", tag = "6")]
    pub worker_info: BTreeMap<String, Vec<u8>>,
    #[prost(message, optional, tag = "18")]
    pub creation_task_exception: Option<super::RayException>,
    #[prost(enumeration = "super::WorkerExitType", optional, tag = "19")]
    pub exit_type: Option<i32>,
    #[prost(string, optional, tag = "20")]
    pub exit_detail: Option<String>,
    #[prost(uint32, tag = "21")]
    pub pid: u32,
    #[prost(uint64, tag = "23")]
    pub start_time_ms: u64,
    #[prost(uint64, tag = "24")]
    pub end_time_ms: u64,
    #[prost(uint64, tag = "25")]
    pub worker_launch_time_ms: u64,
    #[prost(uint64, tag = "26")]
    pub worker_launched_time_ms: u64,
    #[prost(uint32, optional, tag = "27")]
    pub debugger_port: Option<u32>,
    #[prost(uint32, optional, tag = "28")]
    pub num_paused_threads: Option<u32>,
    #[prost(int64, optional, tag = "29")]
    pub memory_used_bytes_at_death: Option<i64>,
    #[prost(bytes = "bytes", tag = "30")]
    pub job_id: Bytes,
}

/// Ray message `ray.rpc.WorkerDeltaData`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerDeltaData {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub worker_id: Bytes,
}

/// Ray message `ray.rpc.ResourceDemand`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceDemand {
    #[prost(btree_map = "string, double", tag = "1")]
    pub shape: BTreeMap<String, f64>,
    #[prost(uint64, tag = "2")]
    pub num_ready_requests_queued: u64,
    #[prost(uint64, tag = "3")]
    pub num_infeasible_requests_queued: u64,
    #[prost(int64, tag = "4")]
    pub backlog_size: i64,
    #[prost(message, repeated, tag = "5")]
    pub label_selectors: Vec<super::LabelSelector>,
}

/// Ray message `ray.rpc.ResourceLoad`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceLoad {
    #[prost(message, repeated, tag = "1")]
    pub resource_demands: Vec<super::ResourceDemand>,
}

/// Ray message `ray.rpc.ResourcesData`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourcesData {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(btree_map = "string, double", tag = "2")]
    pub resources_available: BTreeMap<String, f64>,
    #[prost(btree_map = "string, double", tag = "4")]
    pub resources_total: BTreeMap<String, f64>,
    #[prost(btree_map = "string, double", tag = "5")]
    pub resource_load: BTreeMap<String, f64>,
    #[prost(message, optional, tag = "7")]
    pub resource_load_by_shape: Option<super::ResourceLoad>,
    #[prost(string, tag = "9")]
    pub node_manager_address: String,
    #[prost(bool, tag = "10")]
    pub object_pulls_queued: bool,
    #[prost(int64, tag = "15")]
    pub idle_duration_ms: i64,
    #[prost(bool, tag = "16")]
    pub is_draining: bool,
    #[prost(int64, tag = "18")]
    pub draining_deadline_timestamp_ms: i64,
    #[prost(btree_map = "string, string", tag = "19")]
    pub labels: BTreeMap<String, String>,
}

/// Ray message `ray.rpc.ResourceUsageBatchData`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceUsageBatchData {
    #[prost(message, repeated, tag = "1")]
    pub batch: Vec<super::ResourcesData>,
    #[prost(message, optional, tag = "2")]
    pub resource_load_by_shape: Option<super::ResourceLoad>,
    #[prost(message, optional, tag = "3")]
    pub placement_group_load: Option<super::PlacementGroupLoad>,
}

/// Ray message `ray.rpc.PlacementGroupLoad`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlacementGroupLoad {
    #[prost(message, repeated, tag = "1")]
    pub placement_group_data: Vec<super::PlacementGroupTableData>,
}

/// Ray message `ray.rpc.PlacementGroupStats`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlacementGroupStats {
    #[prost(int64, tag = "2")]
    pub creation_request_received_ns: i64,
    #[prost(int64, tag = "3")]
    pub scheduling_started_time_ns: i64,
    #[prost(int64, tag = "4")]
    pub scheduling_latency_us: i64,
    #[prost(int64, tag = "5")]
    pub end_to_end_creation_latency_us: i64,
    #[prost(uint32, tag = "6")]
    pub scheduling_attempt: u32,
    #[prost(double, tag = "7")]
    pub highest_retry_delay_ms: f64,
    #[prost(enumeration = "super::placement_group_stats::SchedulingState", tag = "8")]
    pub scheduling_state: i32,
}

/// Types nested in [`PlacementGroupStats`].
pub mod placement_group_stats {
    /// Ray enum `ray.rpc.PlacementGroupStats.SchedulingState`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum SchedulingState {
        Queued = 0,
        Removed = 1,
        SchedulingStarted = 2,
        NoResources = 3,
        Infeasible = 4,
        FailedToCommitResources = 5,
        Finished = 6,
    }
}

/// Ray message `ray.rpc.PlacementGroupTableData`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlacementGroupTableData {
    #[prost(bytes = "bytes", tag = "1")]
    pub placement_group_id: Bytes,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "3")]
    pub bundles: Vec<super::Bundle>,
    #[prost(enumeration = "super::PlacementStrategy", tag = "4")]
    pub strategy: i32,
    #[prost(enumeration = "super::placement_group_table_data::PlacementGroupState", tag = "5")]
    pub state: i32,
    #[prost(bytes = "bytes", tag = "6")]
    pub creator_job_id: Bytes,
    #[prost(bytes = "bytes", tag = "7")]
    pub creator_actor_id: Bytes,
    #[prost(bool, tag = "8")]
    pub creator_job_dead: bool,
    #[prost(bool, tag = "9")]
    pub creator_actor_dead: bool,
    #[prost(bool, tag = "10")]
    pub is_detached: bool,
    #[prost(string, tag = "11")]
    pub ray_namespace: String,
    #[prost(message, optional, tag = "12")]
    pub stats: Option<super::PlacementGroupStats>,
    #[prost(bytes = "bytes", tag = "14")]
    pub soft_target_node_id: Bytes,
    #[prost(int64, tag = "15")]
    pub placement_group_creation_timestamp_ms: i64,
    #[prost(int64, tag = "16")]
    pub placement_group_final_bundle_placement_timestamp_ms: i64,
    #[prost(btree_map = "string, string", tag = "17")]
    pub topology_assignments: BTreeMap<String, String>,
    #[prost(btree_map = "string, enumeration(super::PlacementStrategy)", tag = "18")]
    pub topology_strategy: BTreeMap<String, i32>,
}

/// Types nested in [`PlacementGroupTableData`].
pub mod placement_group_table_data {
    /// Ray enum `ray.rpc.PlacementGroupTableData.PlacementGroupState`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum PlacementGroupState {
        Pending = 0,
        Prepared = 1,
        Created = 2,
        Removed = 3,
        Rescheduling = 4,
    }
}

/// Ray message `ray.rpc.JobTableData`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JobTableData {
    #[prost(bytes = "bytes", tag = "1")]
    pub job_id: Bytes,
    #[prost(bool, tag = "2")]
    pub is_dead: bool,
    #[prost(int64, tag = "3")]
    pub timestamp: i64,
    #[prost(string, tag = "4")]
    pub driver_ip_address: String,
    #[prost(int64, tag = "5")]
    pub driver_pid: i64,
    #[prost(message, optional, tag = "6")]
    pub config: Option<super::JobConfig>,
    #[prost(uint64, tag = "7")]
    pub start_time: u64,
    #[prost(uint64, tag = "8")]
    pub end_time: u64,
    #[prost(string, tag = "9")]
    pub entrypoint: String,
    #[prost(message, optional, tag = "10")]
    pub job_info: Option<super::JobsApiInfo>,
    #[prost(bool, optional, tag = "11")]
    pub is_running_tasks: Option<bool>,
    #[prost(message, optional, tag = "12")]
    pub driver_address: Option<super::Address>,
}
