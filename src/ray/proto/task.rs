//! Messages of Ray 2.60 `common.proto` that describe tasks, leases and bundles.

use prost::bytes::Bytes;
use std::collections::BTreeMap;

/// Ray enum `ray.rpc.TaskType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TaskType {
    NormalTask = 0,
    ActorCreationTask = 1,
    ActorTask = 2,
    DriverTask = 3,
}

/// Ray enum `ray.rpc.TaskStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TaskStatus {
    Nil = 0,
    PendingArgsAvail = 1,
    PendingNodeAssignment = 2,
    PendingObjStoreMemAvail = 3,
    PendingArgsFetch = 4,
    SubmittedToWorker = 5,
    PendingActorTaskArgsFetch = 6,
    PendingActorTaskOrderingOrConcurrency = 7,
    Running = 8,
    RunningInRayGet = 9,
    RunningInRayWait = 10,
    Finished = 11,
    Failed = 12,
    GettingAndPinningArgs = 13,
}

/// Ray message `ray.rpc.JavaFunctionDescriptor`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JavaFunctionDescriptor {
    #[prost(string, tag = "1")]
    pub class_name: String,
    #[prost(string, tag = "2")]
    pub function_name: String,
    #[prost(string, tag = "3")]
    pub signature: String,
}

/// Ray message `ray.rpc.PythonFunctionDescriptor`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PythonFunctionDescriptor {
    #[prost(string, tag = "1")]
    pub module_name: String,
    #[prost(string, tag = "2")]
    pub class_name: String,
    #[prost(string, tag = "3")]
    pub function_name: String,
    #[prost(string, tag = "4")]
    pub function_hash: String,
}

/// Ray message `ray.rpc.CppFunctionDescriptor`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CppFunctionDescriptor {
    #[prost(string, tag = "1")]
    pub function_name: String,
    #[prost(string, tag = "2")]
    pub caller: String,
    #[prost(string, tag = "3")]
    pub class_name: String,
}

/// Ray message `ray.rpc.FunctionDescriptor`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FunctionDescriptor {
    #[prost(oneof = "function_descriptor::FunctionDescriptor", tags = "1, 2, 3")]
    pub function_descriptor: Option<function_descriptor::FunctionDescriptor>,
}

/// Types nested in [`FunctionDescriptor`].
pub mod function_descriptor {
    /// The `function_descriptor` choice of `FunctionDescriptor`.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum FunctionDescriptor {
        #[prost(message, tag = "1")]
        JavaFunctionDescriptor(super::super::JavaFunctionDescriptor),
        #[prost(message, tag = "2")]
        PythonFunctionDescriptor(super::super::PythonFunctionDescriptor),
        #[prost(message, tag = "3")]
        CppFunctionDescriptor(super::super::CppFunctionDescriptor),
    }
}

/// Ray message `ray.rpc.ConcurrencyGroup`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConcurrencyGroup {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int32, tag = "2")]
    pub max_concurrency: i32,
    #[prost(message, repeated, tag = "3")]
    pub function_descriptors: Vec<super::FunctionDescriptor>,
}

/// Ray message `ray.rpc.LeaseSpec`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaseSpec {
    #[prost(bytes = "bytes", tag = "1")]
    pub lease_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub job_id: Bytes,
    #[prost(message, optional, tag = "3")]
    pub caller_address: Option<super::Address>,
    #[prost(enumeration = "super::TaskType", tag = "4")]
    pub r#type: i32,
    #[prost(bytes = "bytes", tag = "5")]
    pub actor_id: Bytes,
    #[prost(bool, tag = "6")]
    pub is_detached_actor: bool,
    #[prost(bytes = "bytes", tag = "7")]
    pub root_detached_actor_id: Bytes,
    #[prost(int64, tag = "8")]
    pub max_actor_restarts: i64,
    #[prost(btree_map = "string, double", tag = "9")]
    pub required_resources: BTreeMap<String, f64>,
    #[prost(btree_map = "string, double", tag = "10")]
    pub required_placement_resources: BTreeMap<String, f64>,
    #[prost(message, optional, tag = "11")]
    pub scheduling_strategy: Option<super::SchedulingStrategy>,
    #[prost(message, optional, tag = "12")]
    pub label_selector: Option<super::LabelSelector>,
    #[prost(int64, tag = "13")]
    pub depth: i64,
    #[prost(message, optional, tag = "14")]
    pub runtime_env_info: Option<super::RuntimeEnvInfo>,
    #[prost(message, repeated, tag = "15")]
    pub dependencies: Vec<super::ObjectReference>,
    #[prost(bytes = "bytes", tag = "16")]
    pub parent_task_id: Bytes,
    #[prost(enumeration = "super::Language", tag = "17")]
    pub language: i32,
    #[prost(message, optional, tag = "18")]
    pub function_descriptor: Option<super::FunctionDescriptor>,
    #[prost(string, repeated, tag = "19")]
    pub dynamic_worker_options: Vec<String>,
    #[prost(int32, tag = "20")]
    pub max_retries: i32,
    #[prost(uint64, tag = "21")]
    pub attempt_number: u64,
    #[prost(string, tag = "22")]
    pub task_name: String,
    #[prost(message, optional, tag = "23")]
    pub fallback_strategy: Option<super::FallbackStrategy>,
}

/// Ray message `ray.rpc.TaskSpec`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskSpec {
    #[prost(enumeration = "super::TaskType", tag = "1")]
    pub r#type: i32,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(enumeration = "super::Language", tag = "3")]
    pub language: i32,
    #[prost(message, optional, tag = "4")]
    pub function_descriptor: Option<super::FunctionDescriptor>,
    #[prost(bytes = "bytes", tag = "5")]
    pub job_id: Bytes,
    #[prost(bytes = "bytes", tag = "6")]
    pub task_id: Bytes,
    #[prost(bytes = "bytes", tag = "7")]
    pub parent_task_id: Bytes,
    #[prost(uint64, tag = "8")]
    pub parent_counter: u64,
    #[prost(bytes = "bytes", tag = "9")]
    pub caller_id: Bytes,
    #[prost(message, optional, tag = "10")]
    pub caller_address: Option<super::Address>,
    #[prost(message, repeated, tag = "11")]
    pub args: Vec<super::TaskArg>,
    #[prost(uint64, tag = "12")]
    pub num_returns: u64,
    #[prost(btree_map = "string, double", tag = "13")]
    pub required_resources: BTreeMap<String, f64>,
    #[prost(btree_map = "string, double", tag = "14")]
    pub required_placement_resources: BTreeMap<String, f64>,
    #[prost(message, optional, tag = "15")]
    pub actor_creation_task_spec: Option<super::ActorCreationTaskSpec>,
    #[prost(message, optional, tag = "16")]
    pub actor_task_spec: Option<super::ActorTaskSpec>,
    #[prost(int32, tag = "17")]
    pub max_retries: i32,
    #[prost(bytes = "bytes", tag = "22")]
    pub debugger_breakpoint: Bytes,
    #[prost(message, optional, tag = "23")]
    pub runtime_env_info: Option<super::RuntimeEnvInfo>,
    #[prost(string, tag = "24")]
    pub concurrency_group_name: String,
    #[prost(bool, tag = "25")]
    pub retry_exceptions: bool,
    #[prost(bytes = "bytes", tag = "26")]
    pub serialized_retry_exception_allowlist: Bytes,
    #[prost(int64, tag = "27")]
    pub depth: i64,
    #[prost(message, optional, tag = "28")]
    pub scheduling_strategy: Option<super::SchedulingStrategy>,
    #[prost(int32, tag = "29")]
    pub attempt_number: i32,
    #[prost(bool, tag = "30")]
    pub returns_dynamic: bool,
    #[prost(bytes = "bytes", repeated, tag = "31")]
    pub dynamic_return_ids: Vec<Bytes>,
    #[prost(message, optional, tag = "32")]
    pub job_config: Option<super::JobConfig>,
    #[prost(bytes = "bytes", tag = "33")]
    pub submitter_task_id: Bytes,
    #[prost(bool, tag = "34")]
    pub streaming_generator: bool,
    #[prost(int64, tag = "35")]
    pub dependency_resolution_timestamp_ms: i64,
    #[prost(int64, tag = "36")]
    pub lease_grant_timestamp_ms: i64,
    #[prost(uint64, optional, tag = "37")]
    pub num_streaming_generator_returns: Option<u64>,
    #[prost(int64, tag = "38")]
    pub generator_backpressure_num_objects: i64,
    #[prost(bool, tag = "39")]
    pub enable_task_events: bool,
    #[prost(bytes = "bytes", tag = "40")]
    pub root_detached_actor_id: Bytes,
    #[prost(btree_map = "string, string", tag = "41")]
    pub labels: BTreeMap<String, String>,
    #[prost(string, optional, tag = "42")]
    pub call_site: Option<String>,
    #[prost(message, optional, tag = "43")]
    pub label_selector: Option<super::LabelSelector>,
    #[prost(string, optional, tag = "44")]
    pub tensor_transport: Option<String>,
    #[prost(message, optional, tag = "45")]
    pub fallback_strategy: Option<super::FallbackStrategy>,
    #[prost(uint64, tag = "46")]
    pub num_objects_per_yield: u64,
}

/// Ray message `ray.rpc.TaskInfoEntry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskInfoEntry {
    #[prost(enumeration = "super::TaskType", tag = "1")]
    pub r#type: i32,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(enumeration = "super::Language", tag = "3")]
    pub language: i32,
    #[prost(string, tag = "4")]
    pub func_or_class_name: String,
    #[prost(enumeration = "super::TaskStatus", tag = "5")]
    pub scheduling_state: i32,
    #[prost(bytes = "bytes", tag = "6")]
    pub job_id: Bytes,
    #[prost(bytes = "bytes", tag = "7")]
    pub task_id: Bytes,
    #[prost(bytes = "bytes", tag = "8")]
    pub parent_task_id: Bytes,
    #[prost(btree_map = "string, double", tag = "13")]
    pub required_resources: BTreeMap<String, f64>,
    #[prost(message, optional, tag = "23")]
    pub runtime_env_info: Option<super::RuntimeEnvInfo>,
    #[prost(bytes = "bytes", optional, tag = "24")]
    pub node_id: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "25")]
    pub actor_id: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "26")]
    pub placement_group_id: Option<Bytes>,
    #[prost(string, optional, tag = "27")]
    pub call_site: Option<String>,
    #[prost(btree_map = "string, string", tag = "28")]
    pub label_selector: BTreeMap<String, String>,
    #[prost(message, optional, tag = "29")]
    pub fallback_strategy: Option<super::FallbackStrategy>,
    #[prost(bool, tag = "30")]
    pub is_detached_actor: bool,
}

/// Ray message `ray.rpc.Bundle`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Bundle {
    #[prost(message, optional, tag = "1")]
    pub bundle_id: Option<super::bundle::BundleIdentifier>,
    #[prost(btree_map = "string, double", tag = "2")]
    pub unit_resources: BTreeMap<String, f64>,
    #[prost(bytes = "bytes", tag = "3")]
    pub node_id: Bytes,
    #[prost(btree_map = "string, string", tag = "4")]
    pub label_selector: BTreeMap<String, String>,
}

/// Types nested in [`Bundle`].
pub mod bundle {
    use prost::bytes::Bytes;

    /// Ray message `ray.rpc.Bundle.BundleIdentifier`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct BundleIdentifier {
        #[prost(bytes = "bytes", tag = "1")]
        pub placement_group_id: Bytes,
        #[prost(int32, tag = "2")]
        pub bundle_index: i32,
    }
}

/// Ray message `ray.rpc.TaskArg`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskArg {
    #[prost(message, optional, tag = "1")]
    pub object_ref: Option<super::ObjectReference>,
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub metadata: Bytes,
    #[prost(message, repeated, tag = "4")]
    pub nested_inlined_refs: Vec<super::ObjectReference>,
    #[prost(bool, tag = "5")]
    pub is_inlined: bool,
    #[prost(string, optional, tag = "6")]
    pub tensor_transport: Option<String>,
}

/// Ray message `ray.rpc.ActorCreationTaskSpec`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActorCreationTaskSpec {
    #[prost(bytes = "bytes", tag = "1")]
    pub actor_id: Bytes,
    #[prost(int64, tag = "2")]
    pub max_actor_restarts: i64,
    #[prost(int64, tag = "3")]
    pub max_task_retries: i64,
    #[prost(string, repeated, tag = "4")]
    pub dynamic_worker_options: Vec<String>,
    #[prost(int32, tag = "5")]
    pub max_concurrency: i32,
    #[prost(bool, tag = "6")]
    pub is_detached: bool,
    #[prost(string, tag = "7")]
    pub name: String,
    #[prost(string, tag = "8")]
    pub ray_namespace: String,
    #[prost(bool, tag = "9")]
    pub is_asyncio: bool,
    #[prost(string, tag = "10")]
    pub extension_data: String,
    #[prost(bytes = "bytes", tag = "11")]
    pub serialized_actor_handle: Bytes,
    #[prost(message, repeated, tag = "12")]
    pub concurrency_groups: Vec<super::ConcurrencyGroup>,
    #[prost(bool, tag = "13")]
    pub allow_out_of_order_execution: bool,
    #[prost(int32, tag = "14")]
    pub max_pending_calls: i32,
    #[prost(int64, tag = "15")]
    pub actor_generator_backpressure_num_objects: i64,
}

/// Ray message `ray.rpc.ActorTaskSpec`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActorTaskSpec {
    #[prost(bytes = "bytes", tag = "2")]
    pub actor_id: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub actor_creation_dummy_object_id: Bytes,
    #[prost(uint64, tag = "5")]
    pub concurrency_group_sequence_number: u64,
    #[prost(bool, tag = "6")]
    pub is_detached_actor: bool,
    #[prost(int64, optional, tag = "7")]
    pub actor_generator_backpressure_num_objects: Option<i64>,
}
