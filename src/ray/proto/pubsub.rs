//! Long-poll publish and subscribe between processes (Ray 2.60 `pubsub.proto`).

use prost::bytes::Bytes;

/// Ray enum `ray.rpc.ChannelType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ChannelType {
    WorkerRefRemovedChannel = 0,
    WorkerObjectLocationsChannel = 1,
    GcsActorChannel = 2,
    GcsJobChannel = 3,
    GcsNodeInfoChannel = 4,
    GcsWorkerDeltaChannel = 5,
    RayErrorInfoChannel = 6,
    RayLogChannel = 7,
    RayNodeResourceUsageChannel = 8,
    GcsNodeAddressAndLivenessChannel = 9,
}

/// Ray message `ray.rpc.PubMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PubMessage {
    #[prost(enumeration = "super::ChannelType", tag = "1")]
    pub channel_type: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub key_id: Bytes,
    #[prost(oneof = "pub_message::InnerMessage", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    pub inner_message: Option<pub_message::InnerMessage>,
    #[prost(int64, tag = "14")]
    pub sequence_id: i64,
}

/// Types nested in [`PubMessage`].
pub mod pub_message {
    /// The `inner_message` choice of `PubMessage`.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum InnerMessage {
        #[prost(message, tag = "3")]
        WorkerRefRemovedMessage(super::super::WorkerRefRemovedMessage),
        #[prost(message, tag = "4")]
        WorkerObjectLocationsMessage(super::super::WorkerObjectLocationsPubMessage),
        #[prost(message, tag = "5")]
        FailureMessage(super::super::FailureMessage),
        #[prost(message, tag = "6")]
        ActorMessage(super::super::ActorTableData),
        #[prost(message, tag = "7")]
        JobMessage(super::super::JobTableData),
        #[prost(message, tag = "8")]
        NodeInfoMessage(super::super::GcsNodeInfo),
        #[prost(message, tag = "9")]
        WorkerDeltaMessage(super::super::WorkerDeltaData),
        #[prost(message, tag = "10")]
        ErrorInfoMessage(super::super::ErrorTableData),
        #[prost(message, tag = "11")]
        LogBatchMessage(super::super::LogBatch),
        #[prost(message, tag = "12")]
        NodeResourceUsageMessage(super::super::NodeResourceUsage),
        #[prost(message, tag = "13")]
        NodeAddressAndLivenessMessage(super::super::GcsNodeAddressAndLiveness),
    }
}

/// Ray message `ray.rpc.WorkerRefRemovedMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerRefRemovedMessage {
    #[prost(message, repeated, tag = "1")]
    pub borrowed_refs: Vec<super::ObjectReferenceCount>,
}

/// Ray message `ray.rpc.WorkerObjectLocationsPubMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerObjectLocationsPubMessage {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub node_ids: Vec<Bytes>,
    #[prost(uint64, tag = "2")]
    pub object_size: u64,
    #[prost(string, tag = "3")]
    pub spilled_url: String,
    #[prost(bytes = "bytes", tag = "4")]
    pub spilled_node_id: Bytes,
    #[prost(bool, tag = "5")]
    pub ref_removed: bool,
    #[prost(bool, tag = "6")]
    pub pending_creation: bool,
    #[prost(bool, tag = "7")]
    pub did_spill: bool,
}

/// Ray message `ray.rpc.FailureMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FailureMessage {}

/// Ray message `ray.rpc.Command`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Command {
    #[prost(enumeration = "super::ChannelType", tag = "1")]
    pub channel_type: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub key_id: Bytes,
    #[prost(oneof = "command::CommandMessageOneOf", tags = "3, 4")]
    pub command_message_one_of: Option<command::CommandMessageOneOf>,
}

/// Types nested in [`Command`].
pub mod command {
    /// The `command_message_one_of` choice of `Command`.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum CommandMessageOneOf {
        #[prost(message, tag = "3")]
        UnsubscribeMessage(super::super::UnsubscribeMessage),
        #[prost(message, tag = "4")]
        SubscribeMessage(super::super::SubMessage),
    }
}

/// Ray message `ray.rpc.UnsubscribeMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnsubscribeMessage {}

/// Ray message `ray.rpc.SubMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SubMessage {
    #[prost(oneof = "sub_message::SubMessageOneOf", tags = "2, 3")]
    pub sub_message_one_of: Option<sub_message::SubMessageOneOf>,
}

/// Types nested in [`SubMessage`].
pub mod sub_message {
    /// The `sub_message_one_of` choice of `SubMessage`.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum SubMessageOneOf {
        #[prost(message, tag = "2")]
        WorkerRefRemovedMessage(super::super::WorkerRefRemovedSubMessage),
        #[prost(message, tag = "3")]
        WorkerObjectLocationsMessage(super::super::WorkerObjectLocationsSubMessage),
    }
}

/// Ray message `ray.rpc.WorkerRefRemovedSubMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerRefRemovedSubMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub intended_worker_id: Bytes,
    #[prost(message, optional, tag = "2")]
    pub reference: Option<super::ObjectReference>,
    #[prost(bytes = "bytes", tag = "3")]
    pub contained_in_id: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub subscriber_worker_id: Bytes,
}

/// Ray message `ray.rpc.WorkerObjectLocationsSubMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerObjectLocationsSubMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub intended_worker_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub object_id: Bytes,
}

/// Ray message `ray.rpc.PubsubLongPollingRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PubsubLongPollingRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub subscriber_id: Bytes,
    #[prost(int64, tag = "2")]
    pub max_processed_sequence_id: i64,
    #[prost(bytes = "bytes", tag = "3")]
    pub publisher_id: Bytes,
}

/// Ray message `ray.rpc.PubsubLongPollingReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PubsubLongPollingReply {
    #[prost(message, repeated, tag = "1")]
    pub pub_messages: Vec<super::PubMessage>,
    #[prost(bytes = "bytes", tag = "2")]
    pub publisher_id: Bytes,
}

/// Ray message `ray.rpc.PubsubCommandBatchRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PubsubCommandBatchRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub subscriber_id: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub commands: Vec<super::Command>,
}

/// Ray message `ray.rpc.PubsubCommandBatchReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PubsubCommandBatchReply {}
