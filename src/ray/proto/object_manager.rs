//! Requests and replies of `ray.rpc.ObjectManagerService` (Ray 2.60 `object_manager.proto`).

use prost::bytes::Bytes;

/// Ray message `ray.rpc.PushRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PushRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub push_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub object_id: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub node_id: Bytes,
    #[prost(message, optional, tag = "4")]
    pub owner_address: Option<super::Address>,
    #[prost(uint32, tag = "5")]
    pub chunk_index: u32,
    #[prost(uint64, tag = "6")]
    pub data_size: u64,
    #[prost(uint64, tag = "7")]
    pub metadata_size: u64,
    #[prost(bytes = "bytes", tag = "8")]
    pub data: Bytes,
}

/// Ray message `ray.rpc.PullRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PullRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub node_id: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub object_ids: Vec<Bytes>,
}

/// Ray message `ray.rpc.PushReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PushReply {}

/// Ray message `ray.rpc.PullReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PullReply {}
