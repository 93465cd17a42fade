//! Runtime environments: Ray 2.60 `runtime_environment.proto` and the agent that builds them (`runtime_env_agent.proto`, `runtime_env_common.proto`).

use prost::bytes::Bytes;

/// Ray message `ray.rpc.RuntimeEnvUris`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeEnvUris {
    #[prost(string, tag = "1")]
    pub working_dir_uri: String,
    #[prost(string, repeated, tag = "2")]
    pub py_modules_uris: Vec<String>,
}

/// Ray message `ray.rpc.RuntimeEnvConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeEnvConfig {
    #[prost(int32, tag = "1")]
    pub setup_timeout_seconds: i32,
    #[prost(bool, tag = "2")]
    pub eager_install: bool,
    #[prost(string, repeated, tag = "3")]
    pub log_files: Vec<String>,
}

/// Ray message `ray.rpc.RuntimeEnvInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeEnvInfo {
    #[prost(string, tag = "1")]
    pub serialized_runtime_env: String,
    #[prost(message, optional, tag = "2")]
    pub uris: Option<super::RuntimeEnvUris>,
    #[prost(message, optional, tag = "3")]
    pub runtime_env_config: Option<super::RuntimeEnvConfig>,
}

/// Ray enum `ray.rpc.AgentRpcStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AgentRpcStatus {
    Ok = 0,
    Failed = 1,
}

/// Ray message `ray.rpc.GetOrCreateRuntimeEnvRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetOrCreateRuntimeEnvRequest {
    #[prost(string, tag = "1")]
    pub serialized_runtime_env: String,
    #[prost(message, optional, tag = "2")]
    pub runtime_env_config: Option<super::RuntimeEnvConfig>,
    #[prost(bytes = "bytes", tag = "3")]
    pub job_id: Bytes,
    #[prost(string, tag = "4")]
    pub source_process: String,
}

/// Ray message `ray.rpc.GetOrCreateRuntimeEnvReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetOrCreateRuntimeEnvReply {
    #[prost(enumeration = "super::AgentRpcStatus", tag = "1")]
    pub status: i32,
    #[prost(string, tag = "2")]
    pub error_message: String,
    #[prost(string, tag = "3")]
    pub serialized_runtime_env_context: String,
}

/// Ray message `ray.rpc.DeleteRuntimeEnvIfPossibleRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteRuntimeEnvIfPossibleRequest {
    #[prost(string, tag = "1")]
    pub serialized_runtime_env: String,
    #[prost(string, tag = "2")]
    pub source_process: String,
}

/// Ray message `ray.rpc.DeleteRuntimeEnvIfPossibleReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteRuntimeEnvIfPossibleReply {
    #[prost(enumeration = "super::AgentRpcStatus", tag = "1")]
    pub status: i32,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// Ray message `ray.rpc.GetRuntimeEnvsInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetRuntimeEnvsInfoRequest {
    #[prost(int64, optional, tag = "1")]
    pub limit: Option<i64>,
}

/// Ray message `ray.rpc.GetRuntimeEnvsInfoReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetRuntimeEnvsInfoReply {
    #[prost(message, repeated, tag = "1")]
    pub runtime_env_states: Vec<super::RuntimeEnvState>,
    #[prost(int64, tag = "2")]
    pub total: i64,
}

/// Ray message `ray.rpc.RuntimeEnvState`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeEnvState {
    #[prost(string, tag = "1")]
    pub runtime_env: String,
    #[prost(int64, tag = "2")]
    pub ref_cnt: i64,
    #[prost(bool, optional, tag = "3")]
    pub success: Option<bool>,
    #[prost(string, optional, tag = "4")]
    pub error: Option<String>,
    #[prost(int64, optional, tag = "5")]
    pub creation_time_ms: Option<i64>,
}
