//! What is written to a file of spilled objects, piece by piece: large data from where it lies, all else through small buffers.

use std::io;
use std::rc::Rc;

use super::format::{header, place, Entry, CHUNK_BYTES, DIRECT_MIN_BYTES, HEADER_BYTES, PAGE_BYTES};
use crate::uring::{IoMemory, PageBuffer};

/// What checksums and copies are made through, in bytes: small enough to stay near the core.
const THROUGH_BYTES: usize = 16 << 10;

/// An object that is to be written.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its owner's address, as Ray's protobuf message.
    pub owner_address: Rc<[u8]>,
    /// What it lies in.
    pub memory: Rc<dyn IoMemory>,
    /// Where its data begins there.
    pub data_offset: u64,
    /// Length of its data.
    pub data_bytes: u64,
    /// Where its metadata begins.
    pub metadata_offset: u64,
    /// Length of its metadata.
    pub metadata_bytes: u64,
}

impl Source {
    /// Its data can be written from where it lies.
    fn is_direct(&self) -> bool {
        self.data_bytes >= DIRECT_MIN_BYTES && self.data_offset.is_multiple_of(PAGE_BYTES)
    }

    fn head_bytes(&self) -> u64 {
        HEADER_BYTES + self.owner_address.len() as u64 + self.metadata_bytes
    }

    /// What stands in front of the data.
    fn head(&self) -> io::Result<Vec<u8>> {
        let owner_bytes = self.owner_address.len() as u64;
        let mut head = header(owner_bytes, self.metadata_bytes, self.data_bytes).to_vec();
        head.extend_from_slice(&self.owner_address);
        let metadata_at = head.len();
        head.resize(metadata_at + self.metadata_bytes as usize, 0);
        inside(self.memory.read(self.metadata_offset, &mut head[metadata_at..]))?;
        Ok(head)
    }
}

fn inside(was: bool) -> io::Result<()> {
    was.then_some(()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// A range of memory that goes to a range of the file. Position, start and length are whole pages.
#[derive(Clone, Debug)]
pub struct Piece {
    /// From which byte of the file on.
    pub at: u64,
    /// From which memory.
    pub memory: Rc<dyn IoMemory>,
    /// From which byte of it on.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// What comes next of an object.
#[derive(Debug)]
enum Part {
    /// Zeros, up to where it begins.
    Gap(u64),
    /// What is in front of its data, and how much of it is done.
    Head(Vec<u8>, usize),
    /// Its data, of which so much is done.
    Data(u64),
}

/// A buffer that is being filled, at its place in the file.
#[derive(Debug)]
struct Stage {
    at: u64,
    buffer: PageBuffer,
    filled: usize,
}

/// Turns objects into pieces, in the order of the file, and keeps their checksums.
#[derive(Debug)]
pub struct FileWriter {
    sources: Vec<Source>,
    entries: Vec<Entry>,
    /// The object whose turn it is.
    index: usize,
    part: Option<Part>,
    /// Where the next byte goes.
    cursor: u64,
    stage: Option<Stage>,
    checksums: Vec<u32>,
    length: u64,
}

impl FileWriter {
    /// Lays the objects out in a file, in their order.
    pub fn new(sources: Vec<Source>) -> Self {
        let mut cursor = 0;
        let entries: Vec<Entry> = sources
            .iter()
            .map(|source| {
                let offset = place(cursor, source.head_bytes(), source.is_direct());
                cursor = offset + source.head_bytes() + source.data_bytes;
                Entry {
                    offset,
                    owner_bytes: source.owner_address.len() as u64,
                    metadata_bytes: source.metadata_bytes,
                    data_bytes: source.data_bytes,
                    checksums: Box::default(),
                }
            })
            .collect();
        let length = cursor.next_multiple_of(PAGE_BYTES);
        Self { sources, entries, index: 0, part: None, cursor: 0, stage: None, checksums: Vec::new(), length }
    }

    /// How many objects there are.
    pub fn objects(&self) -> usize {
        self.sources.len()
    }

    /// Length of the file, in whole pages.
    pub fn length_bytes(&self) -> u64 {
        self.length
    }

    /// Begins anew: the file could not be written, and is tried another way.
    pub fn restart(&mut self) {
        (self.index, self.part, self.cursor, self.stage) = (0, None, 0, None);
        self.checksums.clear();
    }

    /// The objects' places, once all pieces were taken.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// What is to be written next; `None`: that was all.
    ///
    /// # Errors
    /// Where an object does not lie in its memory, or there is none for a buffer.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        while let Some(source) = self.sources.get(self.index).cloned() {
            let part = match self.part.take() {
                Some(part) => part,
                None => Part::Gap(self.entries[self.index].offset - self.cursor),
            };
            let (part, piece) = self.step(&source, part)?;
            self.part = part;
            if self.part.is_none() {
                self.entries[self.index].checksums = std::mem::take(&mut self.checksums).into_boxed_slice();
                self.index += 1;
            }
            if piece.is_some() {
                return Ok(piece);
            }
        }
        Ok(self.stage.take().map(Stage::into_piece))
    }

    /// Does some of a part. Returns what is left of the object, and a piece if one is full.
    fn step(&mut self, source: &Source, part: Part) -> io::Result<(Option<Part>, Option<Piece>)> {
        match part {
            Part::Gap(0) => {
                let head = source.head()?;
                self.checksums.push(crate::checksum::crc32c(&head));
                Ok((Some(Part::Head(head, 0)), None))
            }
            Part::Gap(left) => {
                let stage = self.stage()?;
                // A fresh buffer is zero, and a gap is shorter than the page that it ends.
                let now = left.min(stage.room());
                stage.filled += now as usize;
                self.cursor += now;
                Ok((Some(Part::Gap(left - now)), self.full_stage()))
            }
            Part::Head(head, done) if done == head.len() => Ok((Some(Part::Data(0)), None)),
            Part::Head(head, done) => {
                let stage = self.stage()?;
                let now = (head.len() - done).min(stage.room() as usize);
                inside(stage.buffer.write(stage.filled as u64, &head[done..done + now]))?;
                stage.filled += now;
                self.cursor += now as u64;
                Ok((Some(Part::Head(head, done + now)), self.full_stage()))
            }
            Part::Data(done) if done == source.data_bytes => Ok((None, None)),
            Part::Data(done) => self.data(source, done),
        }
    }

    fn data(&mut self, source: &Source, done: u64) -> io::Result<(Option<Part>, Option<Piece>)> {
        let chunk_left = CHUNK_BYTES - done % CHUNK_BYTES;
        let left = (source.data_bytes - done).min(chunk_left);
        let offset = source.data_offset + done;
        let whole_pages = left - left % PAGE_BYTES;
        if source.is_direct() && whole_pages > 0 {
            if let Some(stage) = self.stage.take() {
                return Ok((Some(Part::Data(done)), Some(stage.into_piece())));
            }
            let (at, memory) = (self.cursor, source.memory.clone());
            self.sum(source, offset, whole_pages, done)?;
            self.cursor += whole_pages;
            return Ok((Some(Part::Data(done + whole_pages)), Some(Piece { at, memory, offset, len: whole_pages })));
        }
        let now = left.min(self.stage()?.room()).min(THROUGH_BYTES as u64);
        let mut through = [0; THROUGH_BYTES];
        let through = &mut through[..now as usize];
        inside(source.memory.read(offset, through))?;
        self.add_sum(done, crate::checksum::append(self.sum_so_far(done), through));
        let stage = self.stage()?;
        inside(stage.buffer.write(stage.filled as u64, through))?;
        stage.filled += now as usize;
        self.cursor += now;
        Ok((Some(Part::Data(done + now)), self.full_stage()))
    }

    fn sum_so_far(&self, done: u64) -> u32 {
        match done.is_multiple_of(CHUNK_BYTES) {
            true => 0,
            false => self.checksums.last().copied().unwrap_or(0),
        }
    }

    fn add_sum(&mut self, done: u64, sum: u32) {
        match self.checksums.last_mut() {
            Some(last) if !done.is_multiple_of(CHUNK_BYTES) => *last = sum,
            _ => self.checksums.push(sum),
        }
    }

    fn sum(&mut self, source: &Source, offset: u64, len: u64, done: u64) -> io::Result<()> {
        let sum = checksum(&*source.memory, offset, len, self.sum_so_far(done))?;
        self.add_sum(done, sum);
        Ok(())
    }

    /// The buffer that is being filled.
    fn stage(&mut self) -> io::Result<&mut Stage> {
        match self.stage {
            Some(ref mut stage) => Ok(stage),
            None => {
                let left = (self.length - self.cursor).min(CHUNK_BYTES);
                let buffer = PageBuffer::new(left as usize)?;
                Ok(self.stage.insert(Stage { at: self.cursor, buffer, filled: 0 }))
            }
        }
    }

    fn full_stage(&mut self) -> Option<Piece> {
        let full = self.stage.as_ref().is_some_and(|stage| stage.room() == 0);
        if full {
            self.stage.take().map(Stage::into_piece)
        } else {
            None
        }
    }
}

impl Stage {
    fn room(&self) -> u64 {
        (self.buffer.size_bytes() - self.filled) as u64
    }

    fn into_piece(self) -> Piece {
        let len = (self.filled as u64).next_multiple_of(PAGE_BYTES);
        Piece { at: self.at, memory: Rc::new(self.buffer), offset: 0, len }
    }
}

/// CRC-32C of a range of memory, continuing `sum`.
///
/// # Errors
/// Where the range is not inside.
pub fn checksum(memory: &dyn IoMemory, offset: u64, len: u64, sum: u32) -> io::Result<u32> {
    memory.checksum(offset, len, sum).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
