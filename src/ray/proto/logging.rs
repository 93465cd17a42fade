//! Messages of Ray 2.60 `logging.proto`.

/// Ray message `ray.rpc.LogBatch`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LogBatch {
    #[prost(string, tag = "1")]
    pub ip: String,
    #[prost(string, tag = "2")]
    pub pid: String,
    #[prost(string, tag = "3")]
    pub job_id: String,
    #[prost(bool, tag = "4")]
    pub is_error: bool,
    #[prost(string, repeated, tag = "5")]
    pub lines: Vec<String>,
    #[prost(string, tag = "6")]
    pub actor_name: String,
    #[prost(string, tag = "7")]
    pub task_name: String,
}
