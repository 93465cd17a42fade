//! Messages of Ray 2.60 `common.proto` that every service shares: addresses, references, resources, job settings.

use prost::bytes::Bytes;
use std::collections::BTreeMap;

/// Ray enum `ray.rpc.Language`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Language {
    Python = 0,
    Java = 1,
    Cpp = 2,
}

/// Ray enum `ray.rpc.WorkerType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WorkerType {
    Worker = 0,
    Driver = 1,
    SpillWorker = 2,
    RestoreWorker = 3,
}

/// Ray message `ray.rpc.Address`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Address {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(string, tag = "2")]
    pub ip_address: String,
    #[prost(int32, tag = "3")]
    pub port: i32,
    #[prost(bytes = "bytes", tag = "4")]
    pub worker_id: Bytes,
}

/// Ray message `ray.rpc.JobConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JobConfig {
    #[prost(string, repeated, tag = "2")]
    pub jvm_options: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub code_search_path: Vec<String>,
    #[prost(message, optional, tag = "4")]
    pub runtime_env_info: Option<super::RuntimeEnvInfo>,
    #[prost(string, tag = "5")]
    pub ray_namespace: String,
    #[prost(btree_map = "string, string", tag = "6")]
    pub metadata: BTreeMap<String, String>,
    #[prost(enumeration = "super::job_config::ActorLifetime", tag = "7")]
    pub default_actor_lifetime: i32,
    #[prost(string, repeated, tag = "8")]
    pub py_driver_sys_path: Vec<String>,
    #[prost(bytes = "bytes", tag = "9")]
    pub serialized_py_logging_config: Bytes,
    #[prost(bool, tag = "10")]
    pub disable_job_level_lineage_reconstruction: bool,
}

/// Types nested in [`JobConfig`].
pub mod job_config {
    /// Ray enum `ray.rpc.JobConfig.ActorLifetime`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum ActorLifetime {
        Detached = 0,
        NonDetached = 1,
    }
}

/// Ray message `ray.rpc.ObjectReference`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ObjectReference {
    #[prost(bytes = "bytes", tag = "1")]
    pub object_id: Bytes,
    #[prost(message, optional, tag = "2")]
    pub owner_address: Option<super::Address>,
    #[prost(string, tag = "3")]
    pub call_site: String,
    #[prost(string, optional, tag = "4")]
    pub tensor_transport: Option<String>,
}

/// Ray message `ray.rpc.ObjectReferenceCount`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ObjectReferenceCount {
    #[prost(message, optional, tag = "1")]
    pub reference: Option<super::ObjectReference>,
    #[prost(bool, tag = "2")]
    pub has_local_ref: bool,
    #[prost(message, repeated, tag = "3")]
    pub borrowers: Vec<super::Address>,
    #[prost(message, repeated, tag = "4")]
    pub stored_in_objects: Vec<super::ObjectReference>,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    pub contained_in_borrowed_ids: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub contains: Vec<Bytes>,
}

/// Ray message `ray.rpc.ResourceId`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceId {
    #[prost(int64, tag = "1")]
    pub index: i64,
    #[prost(double, tag = "2")]
    pub quantity: f64,
}

/// Ray message `ray.rpc.ResourceMapEntry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceMapEntry {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub resource_ids: Vec<super::ResourceId>,
}

/// Ray message `ray.rpc.ObjectRefInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ObjectRefInfo {
    #[prost(bytes = "bytes", tag = "1")]
    pub object_id: Bytes,
    #[prost(string, tag = "2")]
    pub call_site: String,
    #[prost(int64, tag = "3")]
    pub object_size: i64,
    #[prost(int64, tag = "4")]
    pub local_ref_count: i64,
    #[prost(int64, tag = "5")]
    pub submitted_task_ref_count: i64,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub contained_in_owned: Vec<Bytes>,
    #[prost(bool, tag = "7")]
    pub pinned_in_memory: bool,
    #[prost(enumeration = "super::TaskStatus", tag = "8")]
    pub task_status: i32,
    #[prost(uint64, tag = "9")]
    pub attempt_number: u64,
}

/// Ray message `ray.rpc.ResourceAllocations`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceAllocations {
    #[prost(message, repeated, tag = "1")]
    pub resource_slots: Vec<super::resource_allocations::ResourceSlot>,
}

/// Types nested in [`ResourceAllocations`].
pub mod resource_allocations {
    /// Ray message `ray.rpc.ResourceAllocations.ResourceSlot`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ResourceSlot {
        #[prost(int64, tag = "1")]
        pub slot: i64,
        #[prost(double, tag = "2")]
        pub allocation: f64,
    }
}

/// Ray message `ray.rpc.CoreWorkerStats`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CoreWorkerStats {
    #[prost(int32, tag = "1")]
    pub num_pending_tasks: i32,
    #[prost(int32, tag = "2")]
    pub num_object_refs_in_scope: i32,
    #[prost(string, tag = "3")]
    pub ip_address: String,
    #[prost(int64, tag = "4")]
    pub port: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub actor_id: Bytes,
    #[prost(btree_map = "string, message", tag = "6")]
    pub used_resources: BTreeMap<String, super::ResourceAllocations>,
    #[prost(int32, tag = "8")]
    pub num_in_plasma: i32,
    #[prost(int32, tag = "9")]
    pub num_local_objects: i32,
    #[prost(int64, tag = "10")]
    pub used_object_store_memory: i64,
    #[prost(int32, tag = "11")]
    pub task_queue_length: i32,
    #[prost(int32, tag = "12")]
    pub num_executed_tasks: i32,
    #[prost(message, repeated, tag = "13")]
    pub object_refs: Vec<super::ObjectRefInfo>,
    #[prost(bytes = "bytes", tag = "14")]
    pub job_id: Bytes,
    #[prost(bytes = "bytes", tag = "15")]
    pub worker_id: Bytes,
    #[prost(enumeration = "super::Language", tag = "16")]
    pub language: i32,
    #[prost(uint32, tag = "17")]
    pub pid: u32,
    #[prost(enumeration = "super::WorkerType", tag = "18")]
    pub worker_type: i32,
    #[prost(int64, tag = "19")]
    pub objects_total: i64,
    #[prost(int64, tag = "20")]
    pub num_owned_objects: i64,
    #[prost(int64, tag = "21")]
    pub num_owned_actors: i64,
    #[prost(int64, tag = "22")]
    pub num_running_tasks: i64,
    #[prost(int64, tag = "23")]
    pub num_in_flight_arg_pinning_requests: i64,
    #[prost(int64, tag = "24")]
    pub num_of_failed_arg_pinning_requests: i64,
}

/// Ray message `ray.rpc.NodeResourceUsage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeResourceUsage {
    #[prost(string, tag = "1")]
    pub json: String,
}
