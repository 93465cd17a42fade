//! Setting a connection up: hello, limits, segments, rings.

use super::{messages, wire_structs};
use crate::ids::{NodeId, TaskId, WorkerId};

/// What a hello starts with: "rayletu1", read as a little-endian number.
pub const HELLO_MAGIC: u64 = u64::from_le_bytes(*b"rayletu1");

/// The version of the protocol that this crate speaks. It grows when a message changes in a way that an older peer can't read.
pub const VERSION: u8 = 1;

/// Capability bits of [`Hello`] and [`Welcome`]. Each side names what it has; what both have may be used.
pub mod capability {
    /// Shared-memory rings ([`OpenRing`](super::OpenRing)).
    pub const RINGS: u64 = 1 << 0;
    /// Allocation credit ([`RequestCredit`](crate::messages::RequestCredit)).
    pub const CREDIT: u64 = 1 << 1;
    /// Leases and native workers.
    pub const LEASES: u64 = 1 << 2;
    /// Object and node events ([`Subscribe`](crate::messages::Subscribe)).
    pub const EVENTS: u64 = 1 << 3;
    /// All of this version.
    pub const ALL: u64 = RINGS | CREDIT | LEASES | EVENTS;
}

wire_structs! {
    /// What a connection may use. More is refused with [`RefusalCode::LimitReached`](super::RefusalCode::LimitReached) or
    /// [`RefusalCode::TooLarge`](super::RefusalCode::TooLarge).
    Limits {
        /// The longest body of a frame on the socket, in bytes.
        frame_bytes: u32,
        /// Requests without an answer.
        in_flight: u32,
        /// Lines of each ring, see [`crate::ring`].
        ring_lines: u32,
        /// Objects in one message.
        objects: u32,
        /// Bytes of allocation credit at a time, all runs together.
        credit_bytes: u32,
        /// Runs of allocation credit at a time.
        credit_runs: u32,
        /// Bytes of a lease's payload, and of its result.
        payload_bytes: u32,
        /// Leases queued or held.
        leases: u32,
    }

    /// A segment of shared memory in which objects lie. Its descriptor is attached to the message that names it.
    SegmentInfo {
        /// Its number, as in [`Place::segment`](super::Place::segment).
        segment: u32,
        /// Its size, and that of the mapping that a client makes of it.
        size_bytes: u64,
    }
}

messages! {
    /// The first message of a connection. Answer: [`Welcome`], or [`Refused`] and the end of the connection.
    1 Hello {
        /// [`HELLO_MAGIC`].
        magic: u64,
        /// [`capability`] bits.
        capabilities: u64,
        /// The oldest version that the client speaks.
        version_min: u16,
        /// The newest version that the client speaks.
        version_max: u16,
        /// The client's process id. For the log: the node asks the kernel for the true one.
        pid: u32,
    }

    /// Asks for a pair of rings, once per connection. Answer: [`RingOpened`].
    2 OpenRing {
        /// Lines of each ring: a power of two up to [`Limits::ring_lines`].
        lines: u32,
    }

    /// Asks for another task id to name objects with, when the indices of the last are used up. Answer: [`PutTask`].
    3 NewPutTask {
        /// The one that is used up.
        old: TaskId,
    }

    /// Answer to [`Hello`]. The descriptors of the segments are attached, in order.
    129 Welcome {
        /// [`HELLO_MAGIC`].
        magic: u64,
        /// [`capability`] bits of the node.
        capabilities: u64,
        /// The client's number on this node.
        client: u64,
        /// The version that is spoken from here on.
        version: u16,
        /// The node.
        node: NodeId,
        /// The client's name as an owner of objects and leases.
        worker: WorkerId,
        /// What the client names its objects with: they live on the shard that serves this connection.
        put_task: TaskId,
        /// What the connection may use.
        limits: Limits,
        /// Where objects lie.
        segments: Vec<SegmentInfo>,
    }

    /// Answer to [`OpenRing`]. Three descriptors are attached: the rings' memory, the eventfd that wakes the node, the eventfd that
    /// wakes the client.
    130 RingOpened {
        /// Lines of each ring.
        lines: u32,
    }

    /// Answer to [`NewPutTask`].
    131 PutTask {
        /// The new one.
        task: TaskId,
    }

    /// There is a new segment; its descriptor is attached. Always on the socket, before the first answer that names it.
    132 SegmentAdded {
        /// Which.
        segment: SegmentInfo,
    }

    /// On the ring: there is something to read on the socket, which a client that watches its ring would not look at.
    133 SocketHint {
        /// Frames sent on the socket since the connection began; not less than the last time.
        frames: u64,
    }

    /// It is done: the answer to every request that has no other.
    134 Done {
        /// Bytes or objects that it concerned, where that says anything.
        count: u64,
    }

    /// It is not done, and why. Correlation id 0: about the connection itself, which the node closes after this message.
    135 Refused {
        /// A [`RefusalCode`](super::RefusalCode).
        code: u16,
        /// What was expected, what came, what to do.
        detail: String,
    }
}
