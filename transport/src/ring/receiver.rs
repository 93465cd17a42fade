//! The reading half of a ring. It trusts nothing that it reads: a record is copied out once, and only the copy is looked at.

use std::sync::Arc;

use super::layout::{body_max_bytes, lines_of, FURTHER, LINE_WORDS};
use super::memory::{Line, Memory};
use super::sync::Ordering;
use super::RingError;
use crate::frame::Head;

/// Words of a body in the first line.
const FIRST_WORDS: usize = LINE_WORDS - 2;
/// Words of a body in a further line.
const FURTHER_WORDS: usize = LINE_WORDS - 1;

/// Reads records that the other side wrote. One per ring, in one thread at a time.
pub struct Receiver {
    memory: Arc<Memory>,
    /// The ring's first line.
    first: usize,
    /// The line with our head.
    head_line: usize,
    /// Lines of the ring.
    lines: u64,
    /// Lines read since the beginning.
    head: u64,
    /// What the writer was told of that.
    published: u64,
    body_max_bytes: usize,
}

/// A record, copied out. One can serve all rings and connections of a thread.
pub struct Record {
    words: Vec<u64>,
    length_bytes: usize,
    head: Head,
}

impl Default for Record {
    fn default() -> Self {
        Self { words: vec![0; 64], length_bytes: 0, head: Head::from_word(0) }
    }
}

impl Record {
    /// What it says about its message.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The message's bytes, aligned to 8.
    pub fn body(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.length_bytes]
    }

    /// Takes a frame's content instead.
    pub fn copy_from(&mut self, head: Head, body: &[u8]) {
        let words = body.len().div_ceil(8);
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        bytemuck::cast_slice_mut(&mut self.words)[..body.len()].copy_from_slice(body);
        (self.head, self.length_bytes) = (head, body.len());
    }
}

impl Receiver {
    pub(super) fn new(memory: Arc<Memory>, first: usize, head_line: usize) -> Self {
        let lines = memory.ring_lines();
        let body_max_bytes = body_max_bytes(lines);
        Self { memory, first, head_line, lines: lines.into(), head: 0, published: 0, body_max_bytes }
    }

    /// Is there a record? `Err`: the ring is not in order.
    #[inline]
    pub(super) fn peek(&self) -> Result<Option<usize>, RingError> {
        // Pairs with the writer's release of the stamp.
        let lead = self.line(self.head)[0].load(Ordering::Acquire);
        let (stamp, expected) = (lead as u32, (self.head as u32).wrapping_add(1));
        if stamp == expected {
            return Ok(Some((lead >> 32) as usize));
        }
        let last_lap = if self.head < self.lines { 0 } else { expected.wrapping_sub(self.lines as u32) };
        match stamp == last_lap {
            true => Ok(None),
            false => Err(RingError::Stamp { got: stamp, expected, or: last_lap }),
        }
    }

    /// Copies the next record out. `false`: there is none.
    ///
    /// # Errors
    /// [`RingError`]: the other side has written what no honest writer writes. Nothing more can be read from this ring.
    #[inline]
    pub fn pop(&mut self, record: &mut Record) -> Result<bool, RingError> {
        let Some(length_bytes) = self.peek()? else {
            self.publish();
            return Ok(false);
        };
        if length_bytes > self.body_max_bytes {
            return Err(RingError::Length { got_bytes: length_bytes, limit_bytes: self.body_max_bytes });
        }
        let needed = lines_of(length_bytes);
        if record.words.len() < FIRST_WORDS + (needed - 1) * FURTHER_WORDS {
            record.words.resize(FIRST_WORDS + (needed - 1) * FURTHER_WORDS, 0);
        }
        let (first, further) = record.words.split_at_mut(FIRST_WORDS);
        let line = self.line(self.head);
        record.head = Head::from_word(line[1].load(Ordering::Relaxed));
        read_words(first, &line[2..]);
        for (n, part) in further.chunks_exact_mut(FURTHER_WORDS).take(needed - 1).enumerate() {
            let position = self.head + 1 + n as u64;
            let line = self.line(position);
            let expected = u64::from((position as u32).wrapping_add(1)) | u64::from(FURTHER | (n as u32 + 1)) << 32;
            let got = line[0].load(Ordering::Relaxed);
            if got != expected {
                return Err(RingError::Further { got, expected });
            }
            read_words(part, &line[1..]);
        }
        record.length_bytes = length_bytes;
        self.head += needed as u64;
        if self.head - self.published >= self.lines / 4 {
            self.publish();
        }
        Ok(true)
    }

    /// Tells the writer what has been read. It happens now and then by itself.
    #[inline]
    pub(super) fn publish(&mut self) {
        if self.published != self.head {
            // The words were read before: the writer may overwrite them once it sees this.
            self.memory.lines()[self.head_line][0].store(self.head, Ordering::Release);
            self.published = self.head;
        }
    }

    /// Lines read since the beginning, as the writer was told.
    pub(super) fn published(&self) -> u64 {
        self.published
    }

    #[inline]
    fn line(&self, position: u64) -> &Line {
        &self.memory.lines()[self.first + (position & (self.lines - 1)) as usize]
    }
}

#[inline]
fn read_words(to: &mut [u64], from: &[super::sync::AtomicU64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.load(Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
impl Receiver {
    /// As if so many lines had gone through.
    pub(super) fn at(&mut self, position: u64) {
        (self.head, self.published) = (position, position);
    }
}
