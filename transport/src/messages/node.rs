//! The node itself: draining, events, status.

use super::{messages, wire_structs};
use crate::ids::ObjectId;

/// Topics of [`Subscribe`].
pub mod topic {
    /// [`ObjectEvent`](super::ObjectEvent)s of the whole node.
    pub const OBJECTS: u32 = 1 << 0;
    /// [`NodeEvent`](super::NodeEvent)s.
    pub const NODE: u32 = 1 << 1;
    /// All of this version.
    pub const ALL: u32 = OBJECTS | NODE;
}

/// What [`ObjectEvent::what`] says.
pub mod object_event {
    /// It is sealed.
    pub const SEALED: u8 = 1;
    /// A client deleted it.
    pub const DELETED: u8 = 2;
    /// Its owner has no use for it any more.
    pub const FREED: u8 = 3;
    /// Its memory was needed.
    pub const EVICTED: u8 = 4;
}

/// What [`NodeEvent::what`] says.
pub mod node_event {
    /// The node takes no new leases.
    pub const DRAINING: u8 = 1;
    /// It does again.
    pub const RESUMED: u8 = 2;
    /// A client is gone.
    pub const CLIENT_GONE: u8 = 3;
    /// A worker is gone.
    pub const WORKER_GONE: u8 = 4;
    /// The node ends.
    pub const STOPPING: u8 = 5;
}

wire_structs! {
    /// A resource of the node.
    ResourceState {
        /// Its name.
        name: String,
        /// What the node has, in 1/10,000 of a unit.
        total: u64,
        /// What is free, in 1/10,000 of a unit. Negative: workers went on that had lent theirs.
        free: i64,
    }
}

messages! {
    /// The node takes no new leases, or does again. Answer: [`Done`](super::Done).
    80 Drain {
        /// Draining or not.
        on: bool,
        /// For the log.
        detail: String,
    }

    /// Events wanted from here on. Answer: [`Done`](super::Done).
    81 Subscribe {
        /// [`topic`] bits; 0: none any more.
        topics: u32,
    }

    /// How is the node? Answer: [`Status`].
    82 GetStatus {
        /// Also list the resources.
        resources: bool,
    }

    /// Answer to [`GetStatus`].
    208 Status {
        /// Bytes that objects can have.
        capacity_bytes: u64,
        /// Bytes that objects take.
        used_bytes: u64,
        /// Objects, sealed or not.
        objects: u64,
        /// How long the node has run.
        uptime_ns: u64,
        /// Connections of the native door.
        clients: u32,
        /// Workers.
        workers: u32,
        /// Leases granted.
        leases: u32,
        /// Leases waiting.
        leases_queued: u32,
        /// Shards.
        shards: u32,
        /// No new leases.
        draining: bool,
        /// The node's version.
        version: String,
        /// Its resources, where asked for.
        resources: Vec<ResourceState>,
    }

    /// Event of [`topic::OBJECTS`].
    209 ObjectEvent {
        /// Which object.
        object: ObjectId,
        /// [`object_event`].
        what: u8,
        /// Length of its data and metadata.
        size_bytes: u64,
    }

    /// Event of [`topic::NODE`].
    210 NodeEvent {
        /// [`node_event`].
        what: u8,
        /// Which client, worker or reason.
        detail: String,
    }

    /// Event: the client read too slowly, and this many events were dropped.
    211 EventsLost {
        /// How many since the last that was delivered.
        count: u64,
    }
}
