//! Where what lies in the rings' memory. Offsets are in lines of 64 bytes.
//!
//! | line | written by | content |
//! |---|---|---|
//! | 0 | node, once | word 0: [`MAGIC`], word 1: lines of each ring |
//! | 2 | node | head of the ring to the node: lines read since the beginning |
//! | 4 | node | [`sleep`] bits of the node; cleared by the client that wakes it |
//! | 6 | client | head of the ring to the client |
//! | 8 | client | sleep bits of the client; cleared by the node |
//! | 16.. | client | ring to the node |
//! | 16 + lines.. | node | ring to the client |
//!
//! Control lines lie two lines apart, since processors fetch lines in pairs.
//!
//! A record takes one line or several. Words are of 8 bytes, little-endian:
//!
//! | word | first line | further lines |
//! |---|---|---|
//! | 0, bits 0..32 | stamp: the line's position since the beginning, plus one, modulo 2^32 | the same |
//! | 0, bits 32..64 | length of the body in bytes | number of the line in its record, with bit 63 set |
//! | 1 | [`Head`](crate::frame::Head) | body |
//! | 2..8 | body, 48 bytes | body (with word 1: 56 bytes) |
//!
//! A line that was not written in this lap carries the stamp of the last lap, or 0, so the reader finds by one look at the line itself
//! whether there is a record; there is no shared tail. A record's first line is stamped last.

/// Words in a line. Loom's model has fewer, so that it ends.
pub(crate) const LINE_WORDS: usize = if cfg!(loom) { 3 } else { 8 };
/// Bytes in a line.
pub const LINE_BYTES: usize = 8 * LINE_WORDS;
/// Bytes of a body in the first line of a record.
pub const FIRST_BYTES: usize = LINE_BYTES - 16;
/// Bytes of a body in a further line.
pub const FURTHER_BYTES: usize = LINE_BYTES - 8;

const STRIDE: usize = if cfg!(loom) { 1 } else { 2 };

/// Word 0 of line 0: "rayring1".
pub const MAGIC: u64 = u64::from_le_bytes(*b"rayring1");

pub(crate) const GEOMETRY_LINE: usize = 0;
pub(crate) const TO_NODE_HEAD_LINE: usize = STRIDE;
pub(crate) const NODE_SLEEP_LINE: usize = 2 * STRIDE;
pub(crate) const TO_CLIENT_HEAD_LINE: usize = 3 * STRIDE;
pub(crate) const CLIENT_SLEEP_LINE: usize = 4 * STRIDE;
pub(crate) const RINGS_LINE: usize = 8 * STRIDE;

/// Marks a line that is not the first of its record.
pub(crate) const FURTHER: u32 = 1 << 31;

/// What a sleeper wants to be woken for; 0: it is awake.
pub mod sleep {
    /// There is a record for it.
    pub const DATA: u64 = 1;
    /// There is room in the ring that it writes.
    pub const SPACE: u64 = 2;
}

/// The fewest lines of a ring.
pub const LINES_MIN: u32 = if cfg!(loom) { 2 } else { 64 };
/// The most: 4 MiB each way.
pub const LINES_MAX: u32 = 1 << 16;
/// What a client asks for where it is not told: 64 KiB each way, 1,024 short messages under way.
pub const LINES_DEFAULT: u32 = 1024;

/// Lines of the memory that holds two rings of so many lines.
pub(crate) fn total_lines(lines: u32) -> usize {
    RINGS_LINE + 2 * lines as usize
}

/// Size of the memory that holds two rings of so many lines, in bytes: whole pages.
pub fn memory_bytes(lines: u32) -> u64 {
    ((total_lines(lines) * LINE_BYTES) as u64).next_multiple_of(4096)
}

/// The longest body of a record in a ring of so many lines: a quarter of the ring. Longer messages go on the socket.
pub fn body_max_bytes(lines: u32) -> usize {
    let record_lines = (lines as usize / 4).max(1);
    FIRST_BYTES + (record_lines - 1) * FURTHER_BYTES
}

/// Lines of a record with a body of so many bytes.
pub(crate) fn lines_of(body_bytes: usize) -> usize {
    1 + body_bytes.saturating_sub(FIRST_BYTES).div_ceil(FURTHER_BYTES)
}
