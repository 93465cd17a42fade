//! HTTP/2 frames, byte by byte (RFC 9113, section 4): nine bytes of head, then the body.
//!
//! ```text
//! length: 3 bytes, big endian | kind: 1 | flags: 1 | stream: 4, big endian, its highest bit unused | body: length bytes
//! ```

use std::fmt;

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame's head.
pub const HEAD_BYTES: usize = 9;

/// The largest body that we take: what holds where nothing else is announced. Also the smallest that a peer may set.
pub const MAX_FRAME_BYTES: usize = 16 << 10;

/// The largest flow-control window.
pub const MAX_WINDOW: i64 = (1 << 31) - 1;

/// The window of a connection, and of a stream, before anybody said otherwise.
pub const FIRST_WINDOW: i64 = 65_535;

/// Kinds of frames.
pub mod kind {
    /// Bytes of a message.
    pub const DATA: u8 = 0;
    /// The beginning or the end of a request or a reply.
    pub const HEADERS: u8 = 1;
    /// Which streams matter more; without meaning today.
    pub const PRIORITY: u8 = 2;
    /// A stream ends before its end.
    pub const RST_STREAM: u8 = 3;
    /// What a side wants of the other.
    pub const SETTINGS: u8 = 4;
    /// A reply to a request that was not made.
    pub const PUSH_PROMISE: u8 = 5;
    /// Are you there?
    pub const PING: u8 = 6;
    /// The connection ends.
    pub const GOAWAY: u8 = 7;
    /// The other side may send more.
    pub const WINDOW_UPDATE: u8 = 8;
    /// The rest of a header block.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames; which of them mean something depends on the kind.
pub mod flag {
    /// Of SETTINGS and PING: an answer.
    pub const ACK: u8 = 0x1;
    /// Of DATA and HEADERS: the sender sends nothing more on this stream.
    pub const END_STREAM: u8 = 0x1;
    /// Of HEADERS and CONTINUATION: the block is whole.
    pub const END_HEADERS: u8 = 0x4;
    /// Of DATA and HEADERS: the content is padded.
    pub const PADDED: u8 = 0x8;
    /// Of HEADERS: five bytes of priority come first.
    pub const PRIORITY: u8 = 0x20;
}

/// Numbers of settings.
pub mod setting {
    /// Bytes of the table that the sender keeps for the other side's blocks.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// Whether pushes are welcome.
    pub const ENABLE_PUSH: u16 = 2;
    /// Streams that may be open.
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// The window of a new stream, in bytes.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    /// The largest frame's body that the sender takes, in bytes.
    pub const MAX_FRAME_SIZE: u16 = 5;
    /// The largest header block that the sender takes, in bytes.
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Why a stream or a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// It is over, and all is well.
    NoError = 0,
    /// The peer broke the protocol.
    Protocol = 1,
    /// More bytes than a window has.
    FlowControl = 3,
    /// A frame of a wrong length.
    FrameSize = 6,
    /// A stream beyond those that may be open; it can be tried again.
    RefusedStream = 7,
    /// A header block that can't be read, after which no other can.
    Compression = 9,
    /// More than a peer needs.
    EnhanceYourCalm = 11,
}

/// What ends a connection: nothing that comes behind it can be understood or trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({code:?})")]
pub struct Fault {
    /// What the peer is told.
    pub code: ErrorCode,
    /// What came, and what was expected.
    pub text: String,
}

impl Fault {
    /// A fault of this kind.
    pub fn new(code: ErrorCode, text: impl fmt::Display) -> Self {
        Self { code, text: text.to_string() }
    }

    /// The peer broke the protocol.
    pub fn protocol(text: impl fmt::Display) -> Self {
        Self::new(ErrorCode::Protocol, text)
    }
}

/// A frame where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// One of [`kind`], or one that we don't know.
    pub kind: u8,
    /// Of [`flag`].
    pub flags: u8,
    /// Zero: the connection itself.
    pub stream: u32,
    /// What is in it.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame of `bytes`, once all of it is there, and how many bytes it takes.
    ///
    /// # Errors
    /// A body longer than [`MAX_FRAME_BYTES`].
    pub fn split(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, Fault> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *head;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        if length > MAX_FRAME_BYTES {
            let text = format!("expected frames of at most {MAX_FRAME_BYTES} bytes, got one of {length}");
            return Err(Fault::new(ErrorCode::FrameSize, text));
        }
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & (u32::MAX >> 1);
        Ok(rest.get(..length).map(|body| (Self { kind, flags, stream, body }, HEAD_BYTES + length)))
    }

    /// True where a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The body of DATA or HEADERS without padding, and without the priority that HEADERS may begin with.
    ///
    /// # Errors
    /// A body too short for what its flags promise.
    pub fn content(&self) -> Result<&'a [u8], Fault> {
        let short = || Fault::protocol(format!("a frame of {} bytes is shorter than its padding", self.body.len()));
        let (mut content, mut padding) = (self.body, 0);
        if self.has(flag::PADDED) {
            let (length, rest) = content.split_first().ok_or_else(short)?;
            (content, padding) = (rest, usize::from(*length));
        }
        if self.kind == kind::HEADERS && self.has(flag::PRIORITY) {
            content = content.get(5..).ok_or_else(short)?;
        }
        let length = content.len().checked_sub(padding).ok_or_else(short)?;
        Ok(&content[..length])
    }

    /// A body that is one number.
    ///
    /// # Errors
    /// Another length than four bytes.
    pub fn number(&self) -> Result<u32, Fault> {
        match self.body.try_into() {
            Ok(bytes) => Ok(u32::from_be_bytes(bytes)),
            Err(_) => Err(self.wrong_length("4")),
        }
    }

    /// The fault of a frame that has a fixed length, and not this one.
    pub fn wrong_length(&self, expected: &str) -> Fault {
        let text = format!("expected {expected} bytes in a frame of kind {}, got {}", self.kind, self.body.len());
        Fault::new(ErrorCode::FrameSize, text)
    }
}

/// Writes a frame's head. The body of `length` bytes, at most what the peer takes, has to follow.
pub fn write_head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, l0, l1, l2] = (length as u32).to_be_bytes();
    out.extend_from_slice(&[l0, l1, l2, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// Writes a frame.
pub fn write(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, body: &[u8]) {
    write_head(out, body.len(), kind, flags, stream);
    out.extend_from_slice(body);
}

/// Ends a stream for a reason.
pub fn write_reset(out: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    write(out, kind::RST_STREAM, 0, stream, &(code as u32).to_be_bytes());
}

/// Lets the peer send so many bytes more: on a stream, or on all of them together (0).
pub fn write_window(out: &mut Vec<u8>, stream: u32, bytes: u32) {
    write(out, kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
}
