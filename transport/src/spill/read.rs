//! Reading one object back: its data straight to its place in memory where both lie on pages, all else through a buffer. Nothing
//! counts before all checksums are right.

use std::io;
use std::rc::Rc;

use super::format::{Entry, FormatError, CHUNK_BYTES, DIRECT_MIN_BYTES, HEADER_BYTES, PAGE_BYTES};
use super::write::{checksum, Piece};
use crate::uring::{IoMemory, PageBuffer};

/// Where an object is read back to.
#[derive(Clone, Debug)]
pub struct Target {
    /// What it will lie in.
    pub memory: Rc<dyn IoMemory>,
    /// Where its data begins there.
    pub data_offset: u64,
    /// How many bytes from there on are the object's own: data, metadata, padding.
    pub room_bytes: u64,
    /// Where its metadata begins.
    pub metadata_offset: u64,
}

/// Why an object could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file ends before the object does.
    #[error("the file ends at byte {at}, inside the object: it was cut")]
    Cut {
        /// Where it ends.
        at: u64,
    },
    /// The bytes are not those that were written.
    #[error(transparent)]
    Changed(#[from] FormatError),
    /// The system's answer.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One object that is being read.
#[derive(Debug)]
pub struct ObjectReader {
    entry: Entry,
    target: Target,
    /// What goes through a buffer: from a page of the file on, up to the data or, where that is not read directly, to the end.
    buffer: Rc<PageBuffer>,
    /// Where the buffer begins in the file.
    buffer_at: u64,
    buffer_len: u64,
    direct: bool,
    /// The next byte to ask for: of the buffer, then of the data.
    asked_buffer: u64,
    asked_data: u64,
    /// Pieces that are not read yet.
    missing: usize,
}

/// A range of the file that is to be read.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where to.
    pub piece: Piece,
    /// How many bytes of it must come; what is beyond may be past the end of the file.
    pub needed: u64,
}

impl ObjectReader {
    /// Reads the object of `entry`.
    ///
    /// # Errors
    /// Where there is no memory for a buffer, or the target is no place for this object.
    pub fn new(entry: Entry, target: Target) -> Result<Self, ReadError> {
        let data_pages = entry.data_bytes.next_multiple_of(PAGE_BYTES);
        let direct = entry.data_bytes >= DIRECT_MIN_BYTES
            && entry.data_offset().is_multiple_of(PAGE_BYTES)
            && target.data_offset.is_multiple_of(PAGE_BYTES)
            && target.room_bytes >= data_pages;
        let buffer_at = entry.offset - entry.offset % PAGE_BYTES;
        let end = if direct { entry.data_offset() } else { entry.offset + entry.size_bytes() };
        let buffer_len = (end - buffer_at).next_multiple_of(PAGE_BYTES);
        let buffer = Rc::new(PageBuffer::new(buffer_len as usize)?);
        Ok(Self { entry, target, buffer, buffer_at, buffer_len, direct, asked_buffer: 0, asked_data: 0, missing: 0 })
    }

    /// Length of data and metadata.
    pub fn size_bytes(&self) -> u64 {
        self.entry.data_bytes + self.entry.metadata_bytes
    }

    /// What is to be read next; `None`: all was asked for.
    pub fn next_piece(&mut self) -> Option<Wanted> {
        if self.asked_buffer < self.buffer_len {
            let offset = self.asked_buffer;
            let len = (self.buffer_len - offset).min(CHUNK_BYTES);
            self.asked_buffer += len;
            self.missing += 1;
            let at = self.buffer_at + offset;
            let end = if self.direct { self.entry.data_offset() } else { self.entry.offset + self.entry.size_bytes() };
            let piece = Piece { at, memory: self.buffer.clone(), offset, len };
            return Some(Wanted { piece, needed: len.min(end.saturating_sub(at)) });
        }
        if !self.direct || self.asked_data >= self.entry.data_bytes {
            return None;
        }
        let done = self.asked_data;
        let needed = (self.entry.data_bytes - done).min(CHUNK_BYTES);
        self.asked_data += needed;
        self.missing += 1;
        let (at, offset) = (self.entry.data_offset() + done, self.target.data_offset + done);
        let piece = Piece { at, memory: self.target.memory.clone(), offset, len: needed.next_multiple_of(PAGE_BYTES) };
        Some(Wanted { piece, needed })
    }

    /// A piece has come, all of it that is needed. True: the object is in its place, and is what was written.
    ///
    /// # Errors
    /// [`ReadError::Changed`].
    pub fn read(&mut self, wanted: &Wanted) -> Result<bool, ReadError> {
        self.missing -= 1;
        // The buffer's pieces are checked at the end, together.
        if self.direct && wanted.piece.at >= self.entry.data_offset() {
            let chunk = (wanted.piece.at - self.entry.data_offset()) / CHUNK_BYTES;
            let sum = checksum(&*wanted.piece.memory, wanted.piece.offset, wanted.needed, 0)?;
            self.entry.check(1 + chunk as usize, sum)?;
        }
        if self.missing > 0 || self.asked_buffer < self.buffer_len {
            return Ok(false);
        }
        if self.direct && self.asked_data < self.entry.data_bytes {
            return Ok(false);
        }
        self.finish()?;
        Ok(true)
    }

    /// All pieces are there: what went through the buffer is checked and goes to its place.
    fn finish(&self) -> Result<(), ReadError> {
        let from = self.entry.offset - self.buffer_at;
        let mut head = vec![0; self.entry.head_bytes() as usize];
        inside(self.buffer.read(from, &mut head))?;
        self.entry.check_lengths(&head)?;
        self.entry.check(0, crate::checksum::crc32c(&head))?;
        if !self.direct {
            self.copy_data(from + self.entry.head_bytes())?;
        }
        // Last: the last page of the data may have been read over it.
        let metadata = &head[(HEADER_BYTES + self.entry.owner_bytes) as usize..];
        inside(self.target.memory.write(self.target.metadata_offset, metadata))
    }

    fn copy_data(&self, from: u64) -> Result<(), ReadError> {
        let mut through = vec![0; self.entry.data_bytes.min(CHUNK_BYTES) as usize];
        let mut done = 0;
        while done < self.entry.data_bytes {
            let now = (self.entry.data_bytes - done).min(CHUNK_BYTES);
            let through = &mut through[..now as usize];
            inside(self.buffer.read(from + done, through))?;
            self.entry.check(1 + (done / CHUNK_BYTES) as usize, crate::checksum::crc32c(through))?;
            inside(self.target.memory.write(self.target.data_offset + done, through))?;
            done += now;
        }
        Ok(())
    }
}

fn inside(was: bool) -> Result<(), ReadError> {
    was.then_some(()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput).into())
}
