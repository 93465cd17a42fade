//! Messages of package `ray.rpc.syncer` (Ray 2.60 `ray_syncer.proto`): the stream of resource views.

use prost::bytes::Bytes;
use std::collections::BTreeMap;

/// Ray enum `ray.rpc.syncer.MessageType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MessageType {
    ResourceView = 0,
    Commands = 1,
}

/// Ray message `ray.rpc.syncer.CommandsSyncMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommandsSyncMessage {
    #[prost(bool, tag = "1")]
    pub should_global_gc: bool,
}

/// Ray message `ray.rpc.syncer.ResourceViewSyncMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceViewSyncMessage {
    #[prost(btree_map = "string, double", tag = "1")]
    pub resources_available: BTreeMap<String, f64>,
    #[prost(btree_map = "string, double", tag = "2")]
    pub resources_total: BTreeMap<String, f64>,
    #[prost(bool, tag = "3")]
    pub object_pulls_queued: bool,
    #[prost(int64, tag = "4")]
    pub idle_duration_ms: i64,
    #[prost(bool, tag = "5")]
    pub is_draining: bool,
    #[prost(int64, tag = "6")]
    pub draining_deadline_timestamp_ms: i64,
    #[prost(string, repeated, tag = "7")]
    pub node_activity: Vec<String>,
    #[prost(btree_map = "string, string", tag = "8")]
    pub labels: BTreeMap<String, String>,
}

/// Ray message `ray.rpc.syncer.RaySyncMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaySyncMessage {
    #[prost(int64, tag = "1")]
    pub version: i64,
    #[prost(enumeration = "super::syncer::MessageType", tag = "2")]
    pub message_type: i32,
    #[prost(bytes = "bytes", tag = "3")]
    pub sync_message: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub node_id: Bytes,
}

/// Ray message `ray.rpc.syncer.RaySyncMessageBatch`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaySyncMessageBatch {
    #[prost(message, repeated, tag = "1")]
    pub messages: Vec<super::syncer::RaySyncMessage>,
}
