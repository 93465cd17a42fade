//! Frames: what stands around a message, on the socket and in the ring.
//!
//! A frame on the socket, all numbers little-endian:
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..4 | length | of the body in bytes, without padding; at most [`Limits::frame_bytes`](crate::messages::Limits::frame_bytes) |
//! | 4..8 | mark | [`MARK`]: tells a stream that is out of step |
//! | 8..10 | type | [`Message::TYPE`](crate::messages::Message::TYPE) |
//! | 10 | version | of the protocol that the message was written in, [`VERSION`](crate::messages::VERSION) |
//! | 11 | flags | bits 0..=5: descriptors attached to the frame; bit 6: zero; bit 7: one-way |
//! | 12..16 | correlation | chosen by who asks, repeated in the answer; 0: not an answer |
//! | 16.. | body | rkyv: the root struct at its end, aligned to 8 |
//! | .. | padding | zeros, up to a multiple of 8 |
//!
//! Bytes 8..16 are the [`Head`]. The ring carries it in front of the same body, with a lead of its own, see [`crate::ring`].
//! A one-way request is answered only where it fails, by a [`Refused`](crate::messages::Refused) with its correlation id.
//!
//! Descriptors are attached (`SCM_RIGHTS`) to bytes of their own frame, in order, and kept in order by the receiver.

mod decoder;
mod encoder;

pub use decoder::{Decoder, Frame};
pub use encoder::{BodyWriter, Encoder, Unsent};

use crate::messages::VERSION;

/// The second word of every frame: "RNTV".
pub const MARK: u32 = u32::from_le_bytes(*b"RNTV");

/// Bytes in front of a body on the socket.
pub const LEAD_BYTES: usize = 16;

/// The longest body that a [`Decoder`] takes before a connection has agreed on its limits: a [`Hello`](crate::messages::Hello) has 32.
pub const FIRST_BODY_MAX_BYTES: u32 = 4096;

/// The longest body of any frame on a socket: 1 MiB, room for a wait on 37,000 objects.
pub const BODY_MAX_BYTES: u32 = 1 << 20;

/// Most descriptors attached to a frame.
pub const DESCRIPTORS_MAX: usize = 0x3f;

const ONE_WAY: u8 = 0x80;
const RESERVED: u8 = 0x40;

/// What a frame says about its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which message.
    pub message_type: u16,
    /// Version of the protocol that it was written in.
    pub version: u8,
    /// Flags as they travel, see the module.
    pub flags: u8,
    /// Pairs an answer with its request; 0 for an event.
    pub correlation: u32,
}

impl Head {
    /// The head of a message of this version.
    pub fn new(message_type: u16, correlation: u32) -> Self {
        Self { message_type, version: VERSION, flags: 0, correlation }
    }

    /// The same, marked as one that needs no answer.
    pub fn one_way(self) -> Self {
        Self { flags: self.flags | ONE_WAY, ..self }
    }

    /// The same, with so many descriptors attached; at most [`DESCRIPTORS_MAX`].
    pub fn with_descriptors(self, count: usize) -> Self {
        debug_assert!(count <= DESCRIPTORS_MAX);
        Self { flags: self.flags | count.min(DESCRIPTORS_MAX) as u8, ..self }
    }

    /// No answer is wanted where it succeeds.
    pub fn is_one_way(self) -> bool {
        self.flags & ONE_WAY != 0
    }

    /// Descriptors that belong to the frame.
    pub fn descriptors(self) -> usize {
        usize::from(self.flags) & DESCRIPTORS_MAX
    }

    /// As bytes 8..16 of a frame, read as a little-endian number.
    pub fn to_word(self) -> u64 {
        u64::from(self.message_type)
            | u64::from(self.version) << 16
            | u64::from(self.flags) << 24
            | u64::from(self.correlation) << 32
    }

    /// From bytes 8..16 of a frame, read as a little-endian number.
    pub fn from_word(word: u64) -> Self {
        Self {
            message_type: word as u16,
            version: (word >> 16) as u8,
            flags: (word >> 24) as u8,
            correlation: (word >> 32) as u32,
        }
    }

    /// Whether a message of this head can be read by this version.
    ///
    /// # Errors
    /// [`FrameError::NewerVersion`], also for version 0, which never was, and for flags that this version does not know.
    pub fn check_version(self) -> Result<(), FrameError> {
        if self.version == VERSION && self.flags & RESERVED == 0 {
            return Ok(());
        }
        Err(FrameError::NewerVersion { got: self.version, flags: self.flags })
    }
}

/// Bytes from a peer that are no proper frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream ended inside a frame.
    #[error(
        "the stream ended after {got_bytes} bytes of a frame, expected {expected_bytes}: the peer died while writing"
    )]
    Short {
        /// Bytes that are there.
        got_bytes: usize,
        /// Bytes that the frame has, as far as is known.
        expected_bytes: usize,
    },
    /// The frame is longer than may be.
    #[error(
        "a frame announces a body of {got_bytes} bytes, at most {limit_bytes} are allowed: send less, or in parts"
    )]
    Long {
        /// As announced.
        got_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Not a frame at all.
    #[error("a frame starts with mark {got:#010x}, expected {MARK:#010x}: the peer speaks another protocol, or the stream is out of step")]
    Mark {
        /// What stands there.
        got: u32,
    },
    /// Padding that is not zero: the next frame would not start where it has to.
    #[error("the padding of a frame is {got:?}, expected zeros: the stream is out of step")]
    Padding {
        /// What stands there.
        got: Vec<u8>,
    },
    /// A body in memory that is not aligned for access.
    #[error("a message body starts {at_bytes} bytes behind a multiple of 8, expected on one: receive it into an aligned buffer")]
    Misaligned {
        /// Distance from the multiple before it.
        at_bytes: usize,
    },
    /// Written in another version, or with flags that don't exist in this one.
    #[error("a frame of version {got} with flags {flags:#04x}, expected version {VERSION} and no unknown flag: use a peer of this version")]
    NewerVersion {
        /// The version.
        got: u8,
        /// The flags.
        flags: u8,
    },
    /// No message has this number in this direction.
    #[error("message type {got} is unknown, expected one of version {VERSION}: use a peer of this version")]
    UnknownType {
        /// The number.
        got: u16,
    },
    /// The body is not what its type says.
    #[error("a {name} of {got_bytes} bytes is malformed: {why}")]
    Malformed {
        /// The message's name.
        name: &'static str,
        /// Length of the body.
        got_bytes: usize,
        /// What the check found.
        why: String,
    },
    /// The descriptors that the frame announces did not come.
    #[error("a frame announces {expected} descriptors, got {got}: they have to be attached to bytes of their frame")]
    Descriptors {
        /// As announced.
        expected: usize,
        /// As received.
        got: usize,
    },
}

impl FrameError {
    /// The stream can't be trusted any more: close it. After the other errors the next frame can be read.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Short { .. }
            | Self::Long { .. }
            | Self::Mark { .. }
            | Self::Padding { .. }
            | Self::Descriptors { .. } => true,
            Self::Misaligned { .. } | Self::NewerVersion { .. } | Self::UnknownType { .. } | Self::Malformed { .. } => {
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
