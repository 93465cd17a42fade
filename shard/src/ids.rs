//! Identifiers that travel through the node. All are plain bytes in Ray's own lengths (Ray 2.60, `ray/includes/unique_ids`).

use std::fmt;

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length on the wire, in bytes.
            pub const LEN: usize = $len;

            /// The nil id: all bytes 0xff, as Ray writes it.
            pub const NIL: Self = Self([0xff; $len]);

            /// Reads an id from bytes of exactly [`Self::LEN`]; anything else is `None`.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// True for the nil id.
            pub fn is_nil(&self) -> bool {
                *self == Self::NIL
            }

            /// The bytes as they travel.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::NIL
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

byte_id!(
    /// A plasma object: 24 bytes of task id, then a little-endian u32 index.
    ObjectId, 28
);
byte_id!(
    /// A worker or driver process.
    WorkerId, 28
);
byte_id!(
    /// A machine of the cluster.
    NodeId, 28
);
byte_id!(
    /// A lease: the owner's worker id followed by a little-endian u32 counter.
    LeaseId, 32
);
byte_id!(
    /// A job, which is one driver program.
    JobId, 4
);
byte_id!(
    /// An actor; its last four bytes are the job id.
    ActorId, 16
);
byte_id!(
    /// A task; its last four bytes are the job id.
    TaskId, 24
);
byte_id!(
    /// A placement group; its last four bytes are the job id.
    PlacementGroupId, 18
);

impl ObjectId {
    /// The task that created the object.
    pub fn task(&self) -> TaskId {
        let mut task = [0; TaskId::LEN];
        task.copy_from_slice(&self.0[..TaskId::LEN]);
        TaskId(task)
    }

    /// Which of its task's objects it is: the last four bytes, little-endian.
    pub fn index(&self) -> u32 {
        let mut index = [0; 4];
        index.copy_from_slice(&self.0[TaskId::LEN..]);
        u32::from_le_bytes(index)
    }
}

/// Index of a shard on its node: 0 .. number of shards.
pub type ShardId = u16;

/// A connection to the node (plasma or native), numbered by the node and never reused while it runs.
pub type ClientId = u64;

/// Pairs an effect with the event that asked for it; chosen by the caller, opaque to the shard.
pub type Token = u64;

/// Time since the node started, in nanoseconds. A shard never reads a clock: it is told.
pub type NowNs = u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_the_wrong_length_is_refused() {
        assert!(ObjectId::from_slice(&[1; 27]).is_none());
        assert!(ObjectId::from_slice(&[1; 29]).is_none());
        assert_eq!(ObjectId::from_slice(&[1; 28]), Some(ObjectId([1; 28])));
    }

    #[test]
    fn the_task_of_an_object_is_its_first_24_bytes() {
        let mut bytes = [7; 28];
        bytes[24..].copy_from_slice(&3u32.to_le_bytes());
        assert_eq!(ObjectId(bytes).task(), TaskId([7; 24]));
    }
}
