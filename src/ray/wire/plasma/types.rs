//! What the plasma socket's messages are made of.

use flatbuffers::{Push, PushAlignment};
use raylet_shard::ids::ObjectId;

use crate::ray::wire::list::Element;
use crate::ray::wire::table::Cursor;
use crate::ray::wire::{List, WireError};

/// Message types of the plasma socket (Ray 2.60 `plasma.fbs`, enum MessageType).
pub mod message_type {
    /// The client leaves.
    pub const DISCONNECT_CLIENT: i64 = 0;
    /// Make an object.
    pub const CREATE_REQUEST: i64 = 1;
    /// Ask again for an object that there was no room for.
    pub const CREATE_RETRY_REQUEST: i64 = 2;
    /// Answer to [`CREATE_REQUEST`] and [`CREATE_RETRY_REQUEST`].
    pub const CREATE_REPLY: i64 = 3;
    /// Drop an object that isn't sealed.
    pub const ABORT_REQUEST: i64 = 4;
    /// Answer to [`ABORT_REQUEST`].
    pub const ABORT_REPLY: i64 = 5;
    /// The object is written.
    pub const SEAL_REQUEST: i64 = 6;
    /// Answer to [`SEAL_REQUEST`].
    pub const SEAL_REPLY: i64 = 7;
    /// Read objects, waiting for them.
    pub const GET_REQUEST: i64 = 8;
    /// Answer to [`GET_REQUEST`].
    pub const GET_REPLY: i64 = 9;
    /// The client no longer uses an object.
    pub const RELEASE_REQUEST: i64 = 10;
    /// Answer to a [`RELEASE_REQUEST`] that asks for one.
    pub const RELEASE_REPLY: i64 = 11;
    /// Delete objects.
    pub const DELETE_REQUEST: i64 = 12;
    /// Answer to [`DELETE_REQUEST`].
    pub const DELETE_REPLY: i64 = 13;
    /// Is an object in the store and sealed?
    pub const CONTAINS_REQUEST: i64 = 14;
    /// Answer to [`CONTAINS_REQUEST`].
    pub const CONTAINS_REPLY: i64 = 15;
    /// First message of a connection.
    pub const CONNECT_REQUEST: i64 = 16;
    /// Answer to [`CONNECT_REQUEST`].
    pub const CONNECT_REPLY: i64 = 17;
    /// Describe what is in the store.
    pub const GET_DEBUG_STRING_REQUEST: i64 = 18;
    /// Answer to [`GET_DEBUG_STRING_REQUEST`].
    pub const GET_DEBUG_STRING_REPLY: i64 = 19;
}

/// Who makes an object (`plasma.fbs`, enum ObjectSource).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum ObjectSource {
    /// A worker: `ray.put` or a task's return value.
    CreatedByWorker = 0,
    /// A worker that restores a spilled object.
    RestoredFromStorage = 1,
    /// Pulled from another node.
    ReceivedFromRemoteRaylet = 2,
    /// An error in place of an object that couldn't be made.
    ErrorStoredByRaylet = 3,
}

impl ObjectSource {
    pub(super) fn from_wire(value: i32) -> Option<Self> {
        Some(match value {
            0 => Self::CreatedByWorker,
            1 => Self::RestoredFromStorage,
            2 => Self::ReceivedFromRemoteRaylet,
            3 => Self::ErrorStoredByRaylet,
            _ => return None,
        })
    }
}

/// Outcome of a store operation (`plasma.fbs`, enum PlasmaError). Ray's client turns the ones marked "fatal" into an
/// abort of its own process, so they must not be sent in a Create, Seal or Release reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum PlasmaError {
    /// Done.
    Ok = 0,
    /// There is an object of this id already.
    ObjectExists = 1,
    /// There is no object of this id.
    ObjectNonexistent = 2,
    /// No room, and none can be made.
    OutOfMemory = 3,
    /// The object is still being written (fatal).
    ObjectNotSealed = 4,
    /// The object is being used, and goes with its last user (fatal).
    ObjectInUse = 5,
    /// A request that makes no sense, for example a retry of an unknown create.
    UnexpectedError = 6,
    /// The object is sealed already (fatal).
    ObjectSealed = 7,
    /// No room in the store nor on the disk for spilling.
    OutOfDisk = 8,
}

impl PlasmaError {
    pub(super) fn from_wire(value: i32) -> Option<Self> {
        Some(match value {
            0 => Self::Ok,
            1 => Self::ObjectExists,
            2 => Self::ObjectNonexistent,
            3 => Self::OutOfMemory,
            4 => Self::ObjectNotSealed,
            5 => Self::ObjectInUse,
            6 => Self::UnexpectedError,
            7 => Self::ObjectSealed,
            8 => Self::OutOfDisk,
            _ => return None,
        })
    }
}

/// Where an object is (`plasma.fbs`, struct PlasmaObjectSpec). Offsets count from the segment's start, in bytes.
///
/// A struct has no field list: 80 bytes, aligned to 8.
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | segment_index int: the segment's store fd |
/// | 4..8 | padding |
/// | 8..16 | unique_fd_id long |
/// | 16..24 | header_offset ulong |
/// | 24..32 | data_offset ulong |
/// | 32..40 | data_size ulong; all ones for an object that isn't there |
/// | 40..48 | metadata_offset ulong |
/// | 48..56 | metadata_size ulong |
/// | 56..64 | allocated_size ulong |
/// | 64 | fallback_allocated bool |
/// | 65..68 | padding |
/// | 68..72 | device_num int |
/// | 72 | is_experimental_mutable_object bool |
/// | 73..80 | padding |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectSpec {
    /// Number of the segment's descriptor in the store process.
    pub store_fd: i32,
    /// Tells apart segments that had the same `store_fd`.
    pub unique_fd_id: i64,
    /// Start of a mutable object's header; the same as `data_offset` for others.
    pub header_offset_bytes: u64,
    /// Start of the data.
    pub data_offset_bytes: u64,
    /// Length of the data.
    pub data_size_bytes: u64,
    /// Start of the metadata: right after the data.
    pub metadata_offset_bytes: u64,
    /// Length of the metadata.
    pub metadata_size_bytes: u64,
    /// Data and metadata together.
    pub allocated_size_bytes: u64,
    /// The object has a segment of its own, outside of the store's memory. The client then waits for an answer to its
    /// release and may be told to unmap the segment.
    pub fallback_allocated: bool,
    /// 0: host memory.
    pub device_num: i32,
    /// A channel of a compiled graph: written more than once.
    pub is_mutable: bool,
}

impl ObjectSpec {
    /// Bytes on the wire.
    pub const WIRE_BYTES: usize = 80;

    /// An object of a get request that isn't in the store: only its size says so.
    pub const ABSENT: Self = Self {
        store_fd: 0,
        unique_fd_id: 0,
        header_offset_bytes: 0,
        data_offset_bytes: 0,
        data_size_bytes: u64::MAX,
        metadata_offset_bytes: 0,
        metadata_size_bytes: 0,
        allocated_size_bytes: 0,
        fallback_allocated: false,
        device_num: 0,
        is_mutable: false,
    };

    /// True for an object of a get request that isn't in the store.
    pub fn is_absent(&self) -> bool {
        self.data_size_bytes == u64::MAX
    }

    /// The struct as it travels.
    pub fn to_wire(&self) -> [u8; Self::WIRE_BYTES] {
        let mut wire = [0; Self::WIRE_BYTES];
        wire[0..4].copy_from_slice(&self.store_fd.to_le_bytes());
        wire[8..16].copy_from_slice(&self.unique_fd_id.to_le_bytes());
        wire[16..24].copy_from_slice(&self.header_offset_bytes.to_le_bytes());
        wire[24..32].copy_from_slice(&self.data_offset_bytes.to_le_bytes());
        wire[32..40].copy_from_slice(&self.data_size_bytes.to_le_bytes());
        wire[40..48].copy_from_slice(&self.metadata_offset_bytes.to_le_bytes());
        wire[48..56].copy_from_slice(&self.metadata_size_bytes.to_le_bytes());
        wire[56..64].copy_from_slice(&self.allocated_size_bytes.to_le_bytes());
        wire[64] = u8::from(self.fallback_allocated);
        wire[68..72].copy_from_slice(&self.device_num.to_le_bytes());
        wire[72] = u8::from(self.is_mutable);
        wire
    }

    /// Reads the struct.
    pub fn from_wire(wire: &[u8; Self::WIRE_BYTES]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&wire[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Self {
            store_fd: word(0) as u32 as i32,
            unique_fd_id: word(8) as i64,
            header_offset_bytes: word(16),
            data_offset_bytes: word(24),
            data_size_bytes: word(32),
            metadata_offset_bytes: word(40),
            metadata_size_bytes: word(48),
            allocated_size_bytes: word(56),
            fallback_allocated: wire[64] != 0,
            device_num: (word(64) >> 32) as u32 as i32,
            is_mutable: wire[72] != 0,
        }
    }
}

/// An [`ObjectSpec`] on its way into a table or vector.
#[derive(Debug, Clone, Copy)]
pub(super) struct InlineSpec([u8; ObjectSpec::WIRE_BYTES]);

impl ObjectSpec {
    pub(super) fn to_inline(self) -> InlineSpec {
        InlineSpec(self.to_wire())
    }
}

impl Push for InlineSpec {
    type Output = Self;

    unsafe fn push(&self, dst: &mut [u8], _written_bytes: usize) {
        dst.copy_from_slice(&self.0);
    }

    fn alignment() -> PushAlignment {
        PushAlignment::new(8)
    }
}

impl<'a> Element<'a> for ObjectSpec {
    const INLINE_BYTES: usize = Self::WIRE_BYTES;

    fn read(cursor: Cursor<'a>, at: usize) -> Result<Self, WireError> {
        cursor.array(at).map(|wire| Self::from_wire(&wire))
    }
}

impl<'a> Element<'a> for PlasmaError {
    const INLINE_BYTES: usize = 4;

    fn read(cursor: Cursor<'a>, at: usize) -> Result<Self, WireError> {
        let value = i32::from_le_bytes(cursor.array(at)?);
        Self::from_wire(value).ok_or(WireError::UnknownValue {
            table: cursor.place.table,
            field: cursor.place.field,
            got: value.into(),
            expected: "a PlasmaError, 0 to 8",
        })
    }
}

/// A segment that a reply's objects lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Number of the segment's descriptor in the store process.
    pub store_fd: i32,
    /// Tells apart segments that had the same `store_fd`.
    pub unique_fd_id: i64,
    /// Length to map.
    pub mmap_size_bytes: i64,
}

/// Answer to a create request (table PlasmaCreateReply), as a client reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateReply {
    /// The object is there to be written.
    Created {
        /// The object.
        object_id: ObjectId,
        /// Where it is.
        object: ObjectSpec,
        /// How much of its segment to map, in bytes.
        mmap_size_bytes: i64,
    },
    /// There will be no object.
    Failed {
        /// The object.
        object_id: ObjectId,
        /// Why.
        error: PlasmaError,
    },
    /// Not decided yet: the client asks again after `object_store_full_delay_ms`.
    RetryLater {
        /// The object.
        object_id: ObjectId,
        /// What to ask with; never 0.
        request_id: u64,
    },
}

/// Answer to a get request (table PlasmaGetReply).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GetReply<'a> {
    /// The objects of the request, in its order.
    pub object_ids: List<'a, ObjectId>,
    /// Where they are, [`ObjectSpec::ABSENT`] for those that didn't arrive in time. As many as `object_ids`.
    pub objects: List<'a, ObjectSpec>,
    /// The store fds of the segments that the objects lie in, each segment once.
    pub store_fds: List<'a, i32>,
    /// Their unique ids. As many as `store_fds`.
    pub unique_fd_ids: List<'a, i64>,
    /// Their lengths to map, in bytes. As many as `store_fds`.
    pub mmap_sizes_bytes: List<'a, i64>,
}

impl<'a> GetReply<'a> {
    /// The segments, in order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment> + 'a {
        self.store_fds
            .iter()
            .zip(self.unique_fd_ids.iter().zip(self.mmap_sizes_bytes.iter()))
            .map(|(store_fd, (unique_fd_id, mmap_size_bytes))| Segment { store_fd, unique_fd_id, mmap_size_bytes })
    }
}
