//! The writing half of a ring.

use std::sync::Arc;

use super::layout::{body_max_bytes, lines_of, FIRST_BYTES, FURTHER, FURTHER_BYTES};
use super::memory::{Line, Memory};
use super::sync::Ordering;
use super::{PushError, RingError};
use crate::fault::{self, Point};
use crate::frame::Head;

/// Writes records for the other side. One per ring, in one thread at a time.
pub struct Sender {
    memory: Arc<Memory>,
    /// The ring's first line.
    first: usize,
    /// The line with the reader's head.
    head_line: usize,
    /// Lines of the ring.
    lines: u64,
    /// Lines written since the beginning.
    tail: u64,
    /// Lines read since the beginning, as last seen.
    head: u64,
    body_max_bytes: usize,
}

impl Sender {
    pub(super) fn new(memory: Arc<Memory>, first: usize, head_line: usize) -> Self {
        let lines = memory.ring_lines();
        Self { memory, first, head_line, lines: lines.into(), tail: 0, head: 0, body_max_bytes: body_max_bytes(lines) }
    }

    /// The longest body that goes through this ring.
    pub fn body_max_bytes(&self) -> usize {
        self.body_max_bytes
    }

    /// Lines that were not read yet, as far as is known.
    pub fn unread_lines(&self) -> u64 {
        self.tail - self.head
    }

    /// Writes a record, which the other side sees at once if it looks. Whether it has to be woken is [`Endpoint::must_wake`]'s to say.
    ///
    /// # Errors
    /// [`PushError`]; nothing is written.
    ///
    /// [`Endpoint::must_wake`]: super::Endpoint::must_wake
    #[inline]
    pub fn push(&mut self, head: Head, body: &[u8]) -> Result<(), PushError> {
        if body.len() > self.body_max_bytes {
            return Err(PushError::Long { got_bytes: body.len(), limit_bytes: self.body_max_bytes });
        }
        let needed = lines_of(body.len());
        if self.tail - self.head + needed as u64 > self.lines && !self.has_room(needed)? {
            return Err(PushError::Full);
        }
        let (first_part, further) = body.split_at(body.len().min(FIRST_BYTES));
        for (n, part) in further.chunks(FURTHER_BYTES).enumerate() {
            let position = self.tail + 1 + n as u64;
            let line = self.line(position);
            write_words(&line[1..], part);
            line[0].store(lead(position, FURTHER | (n as u32 + 1)), Ordering::Relaxed);
        }
        if !further.is_empty() {
            fault::pass(Point::FurtherLines);
        }
        let line = self.line(self.tail);
        line[1].store(head.to_word(), Ordering::Relaxed);
        write_words(&line[2..], first_part);
        fault::pass(Point::RecordWritten);
        // Whoever sees this stamp sees the whole record.
        line[0].store(lead(self.tail, body.len() as u32), Ordering::Release);
        fault::pass(Point::RecordStamped);
        self.tail += needed as u64;
        Ok(())
    }

    /// Looks at the reader's head: is there room for so many lines?
    pub(super) fn has_room(&mut self, needed: usize) -> Result<bool, RingError> {
        // Pairs with the reader's release of its head: what it has read may be overwritten.
        let head = self.memory.lines()[self.head_line][0].load(Ordering::Acquire);
        if head < self.head || head > self.tail {
            return Err(RingError::Head { got: head, from: self.head, to: self.tail });
        }
        self.head = head;
        Ok(self.tail - head + needed as u64 <= self.lines)
    }

    #[inline]
    fn line(&self, position: u64) -> &Line {
        &self.memory.lines()[self.first + (position & (self.lines - 1)) as usize]
    }
}

/// Word 0 of a line.
#[inline]
fn lead(position: u64, length: u32) -> u64 {
    u64::from((position as u32).wrapping_add(1)) | u64::from(length) << 32
}

/// Writes bytes as words, the last one filled up with zeros.
#[inline]
fn write_words(to: &[super::sync::AtomicU64], bytes: &[u8]) {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut to = to.iter();
    for (word, to) in words.iter().zip(to.by_ref()) {
        to.store(u64::from_le_bytes(*word), Ordering::Relaxed);
    }
    if let (false, Some(to)) = (rest.is_empty(), to.next()) {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        to.store(u64::from_le_bytes(word), Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
impl Sender {
    /// As if so many lines had gone through.
    pub(super) fn at(&mut self, position: u64) {
        (self.tail, self.head) = (position, position);
    }
}
