//! What is said on a lane.
//!
//! A frame is [`FRAME_BYTES`] long, all numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..2 | [`Kind`] |
//! | 2..4 | zero |
//! | 4..8 | the chunk's number, else zero |
//! | 8..16 | the push: the same for all that is sent of one copy |
//! | 16..24 | size of the object in bytes: data, and the metadata behind them |
//! | 24..32 | size of its metadata in bytes |
//! | 32..36 | how many bytes follow the frame, besides their checksum, or are lent by it |
//! | 36..40 | the segment that lent bytes lie in, else zero |
//! | 40..68 | the object |
//! | 68..96 | a node, where the kind names one, else zero |
//! | 96..104 | where in their segment lent bytes begin, else zero |
//! | 104..108 | zero |
//! | 108..112 | CRC-32C of bytes 0..108 |
//!
//! What follows a frame is followed by its own CRC-32C, 4 bytes.

use crate::ids::{NodeId, ObjectId};

/// Length of a frame.
pub const FRAME_BYTES: usize = 112;

/// Where a frame's checksum is.
const SUM_AT: usize = FRAME_BYTES - SUM_BYTES;

/// Length of a checksum.
pub const SUM_BYTES: usize = 4;

/// Longest object that is sent unasked, as one piece: smaller than what an offer and its answer cost.
pub const WHOLE_MAX_BYTES: u32 = 64 << 10;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[repr(u16)]
pub enum Kind {
    /// To the holder: send this object, when you have it.
    Want = 1,
    /// As [`Self::Want`], of one that was sent here by an [`Self::Elsewhere`] that came to nothing: send it yourself.
    WantFromYou = 2,
    /// To the holder: there is memory for what was offered.
    Accept = 3,
    /// To the holder: send no more of this object.
    Stop = 4,
    /// From the holder: here is an object of this size; it is sent when it is accepted.
    Offer = 5,
    /// From the holder: a chunk of an object, which follows.
    Chunk = 6,
    /// From the holder: a small object, which follows whole.
    Whole = 7,
    /// From the holder: ask that node, which has the object or is getting it.
    Elsewhere = 8,
    /// From the holder: it does not come, and should be asked for again, here or elsewhere.
    Gone = 9,
    /// As [`Self::Want`], of one that is probably there: where it neither is nor is coming, [`Self::Gone`] is said at once.
    WantIfThere = 10,
    /// From the holder, to a node of the same host: a chunk of an object, which lies in the holder's memory and stays there until it is
    /// [`Self::Taken`].
    Lent = 11,
    /// To the holder: a lent chunk is not read any more, the first of those that were lent on this lane.
    Taken = 12,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Want,
        Self::WantFromYou,
        Self::Accept,
        Self::Stop,
        Self::Offer,
        Self::Chunk,
        Self::Whole,
        Self::Elsewhere,
        Self::Gone,
        Self::WantIfThere,
        Self::Lent,
        Self::Taken,
    ];

    /// True for what the node says that connected: it is the one that wants.
    pub fn is_of_wanter(self) -> bool {
        matches!(self, Self::Want | Self::WantFromYou | Self::WantIfThere | Self::Accept | Self::Stop | Self::Taken)
    }
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// Of which object.
    pub object: ObjectId,
    /// The node that an [`Kind::Elsewhere`] names.
    pub node: NodeId,
    /// Of which push.
    pub push: u64,
    /// Number of the chunk.
    pub index: u32,
    /// Size of the object: data, and the metadata behind them.
    pub total_bytes: u64,
    /// Size of its metadata.
    pub metadata_bytes: u64,
    /// How many bytes follow, or are lent.
    pub len_bytes: u32,
    /// The holder's segment that lent bytes lie in, by its number.
    pub segment: u32,
    /// Where in that segment they begin.
    pub offset: u64,
}

/// Bytes that are no frame. The stream can't be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// They are not what was sent.
    #[error("expected a frame with checksum {expected:#010x}, got {got:#010x}: the bytes are not what was sent")]
    Sum {
        /// What the frame says.
        expected: u32,
        /// What its bytes come to.
        got: u32,
    },
    /// A newer node says something that this one does not know.
    #[error("expected a frame of a kind from 1 to 12, got {0}: the other node is of another version")]
    Kind(u16),
    /// It says more than its kind has to say.
    #[error("bytes of a frame that have to be zero are not: the other node is of another version")]
    Reserved,
    /// Lent bytes lie where no memory is.
    #[error("{len_bytes} bytes are lent from byte {offset} on, expected an end below 2^63")]
    Lent {
        /// Where they begin.
        offset: u64,
        /// How many they are.
        len_bytes: u32,
    },
    /// Only chunks and small objects have bytes of their own.
    #[error("a frame of kind {kind:?} tells of {len_bytes} bytes, expected at most {most}")]
    Length {
        /// The kind.
        kind: Kind,
        /// What it says.
        len_bytes: u32,
        /// What it may.
        most: u32,
    },
}

impl Frame {
    /// A frame that says this of an object, and nothing else.
    pub fn new(kind: Kind, object: ObjectId) -> Self {
        let node = NodeId([0; NodeId::LEN]);
        let (total_bytes, metadata_bytes, len_bytes) = (0, 0, 0);
        Self { kind, object, node, push: 0, index: 0, total_bytes, metadata_bytes, len_bytes, segment: 0, offset: 0 }
    }

    /// As it travels.
    pub fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut bytes = [0; FRAME_BYTES];
        bytes[0..2].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.index.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.push.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.total_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.metadata_bytes.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.len_bytes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.segment.to_le_bytes());
        bytes[40..68].copy_from_slice(&self.object.0);
        bytes[68..96].copy_from_slice(&self.node.0);
        bytes[96..104].copy_from_slice(&self.offset.to_le_bytes());
        let sum = crate::checksum::crc32c(&bytes[..SUM_AT]);
        bytes[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// What came.
    ///
    /// # Errors
    /// See [`FrameError`]. `chunk_max_bytes` is the most that may follow a chunk.
    pub fn decode(bytes: &[u8; FRAME_BYTES], chunk_max_bytes: u32) -> Result<Self, FrameError> {
        let (expected, got) = (u32_at(bytes, SUM_AT), crate::checksum::crc32c(&bytes[..SUM_AT]));
        if expected != got {
            return Err(FrameError::Sum { expected, got });
        }
        let number = u16::from_le_bytes([bytes[0], bytes[1]]);
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u16 == number).ok_or(FrameError::Kind(number))?;
        let lends = kind == Kind::Lent;
        let reserved = [&bytes[2..4], &bytes[104..108], if lends { &[] } else { &bytes[36..40] }];
        let offset = u64_at(bytes, 96);
        if reserved.iter().any(|part| part.iter().any(|byte| *byte != 0)) || (offset != 0 && !lends) {
            return Err(FrameError::Reserved);
        }
        let len_bytes = u32_at(bytes, 32);
        let most = match kind {
            Kind::Chunk | Kind::Lent => chunk_max_bytes,
            Kind::Whole => WHOLE_MAX_BYTES,
            _ => 0,
        };
        if len_bytes > most {
            return Err(FrameError::Length { kind, len_bytes, most });
        }
        if offset.checked_add(len_bytes.into()).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(FrameError::Lent { offset, len_bytes });
        }
        let (mut object, mut node) = ([0; ObjectId::LEN], [0; NodeId::LEN]);
        object.copy_from_slice(&bytes[40..68]);
        node.copy_from_slice(&bytes[68..96]);
        Ok(Self {
            kind,
            object: ObjectId(object),
            node: NodeId(node),
            push: u64_at(bytes, 8),
            index: u32_at(bytes, 4),
            total_bytes: u64_at(bytes, 16),
            metadata_bytes: u64_at(bytes, 24),
            len_bytes,
            segment: u32_at(bytes, 36),
            offset,
        })
    }
}

fn u32_at(bytes: &[u8; FRAME_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; FRAME_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
