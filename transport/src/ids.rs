//! Identifiers as they travel: plain bytes in Ray's lengths, so that both doors name the same things. The node converts them to and
//! from the shards' own types.

use std::fmt;

use rkyv::{Archive, Deserialize, Serialize};

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $archived:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
        #[rkyv(derive(Debug, Clone, Copy))]
        #[cfg_attr(test, derive(proptest_derive::Arbitrary))]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length on the wire, in bytes.
            pub const LEN: usize = $len;
            /// The id of nothing: all bytes 0xff.
            pub const NIL: Self = Self([0xff; $len]);

            /// True for [`Self::NIL`].
            pub fn is_nil(&self) -> bool {
                *self == Self::NIL
            }
        }

        impl From<&$archived> for $name {
            fn from(archived: &$archived) -> Self {
                Self(archived.0)
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
    /// An object: 24 bytes of task id, then a little-endian u32 index.
    ObjectId, ArchivedObjectId, 28
);
byte_id!(
    /// A process that owns objects and leases: a client or a worker.
    WorkerId, ArchivedWorkerId, 28
);
byte_id!(
    /// A machine.
    NodeId, ArchivedNodeId, 28
);
byte_id!(
    /// What objects are made by; all objects of a task live on one shard.
    TaskId, ArchivedTaskId, 24
);

impl ObjectId {
    /// The `index`-th object of a task.
    pub fn of(task: TaskId, index: u32) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[..TaskId::LEN].copy_from_slice(&task.0);
        bytes[TaskId::LEN..].copy_from_slice(&index.to_le_bytes());
        Self(bytes)
    }

    /// The task that made it.
    pub fn task(&self) -> TaskId {
        let mut task = [0; TaskId::LEN];
        task.copy_from_slice(&self.0[..TaskId::LEN]);
        TaskId(task)
    }

    /// Which of its task's objects it is.
    pub fn index(&self) -> u32 {
        let mut index = [0; 4];
        index.copy_from_slice(&self.0[TaskId::LEN..]);
        u32::from_le_bytes(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_its_task_and_an_index() {
        let object = ObjectId::of(TaskId([7; 24]), 0x0102_0304);
        assert_eq!(object.task(), TaskId([7; 24]));
        assert_eq!(object.index(), 0x0102_0304);
        assert_eq!(object.0[24..], [4, 3, 2, 1]);
    }
}
