//! Objects on disk as other nodes are sent them: chunk by chunk out of their file, without a place in the store's memory. What is read
//! counts only when the checksums of all pieces that it touches are right.
//!
//! Reading waits for the disk: this is for threads that may wait, not for a core.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::format::{Entry, CHUNK_BYTES, HEADER_BYTES, PAGE_BYTES};
use super::read::ReadError;
use crate::uring::PageBuffer;

/// An object in its file. Whoever asked for it keeps the file meanwhile.
#[derive(Clone, Debug)]
pub struct SpilledObject {
    pub(super) path: PathBuf,
    pub(super) direct: bool,
    pub(super) entry: Entry,
}

/// Size of a buffer that any chunk of so many bytes can be read through: the pieces that it touches, in whole pages.
pub fn chunk_buffer_bytes(chunk_bytes: u64) -> u64 {
    chunk_bytes.next_multiple_of(CHUNK_BYTES) + CHUNK_BYTES + 2 * PAGE_BYTES
}

impl SpilledObject {
    /// Length of its data.
    pub fn data_bytes(&self) -> u64 {
        self.entry.data_bytes
    }

    /// Length of its metadata.
    pub fn metadata_bytes(&self) -> u64 {
        self.entry.metadata_bytes
    }

    /// Reads `len` bytes from `start` on, of the data with the metadata behind them. Returns where in the buffer they begin.
    ///
    /// # Errors
    /// [`ReadError`]: nothing in the buffer may be used. Also where the range is not inside the object, or the buffer is too small
    /// ([`chunk_buffer_bytes`]).
    pub fn read(&self, start: u64, len: u64, buffer: &mut PageBuffer) -> Result<u64, ReadError> {
        match self.read_from(&self.open(self.direct)?, start, len, buffer) {
            // The file system has changed its mind about O_DIRECT.
            Err(ReadError::Io(error)) if self.direct && refuses_direct(&error) => {
                self.read_from(&self.open(false)?, start, len, buffer)
            }
            result => result,
        }
    }

    fn open(&self, direct: bool) -> io::Result<File> {
        let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        flags.set(OFlags::DIRECT, direct);
        match rustix::fs::open(&self.path, flags, Mode::empty()) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) if direct => self.open(false),
            opened => Ok(File::from(opened?)),
        }
    }

    fn read_from(&self, file: &File, start: u64, len: u64, buffer: &mut PageBuffer) -> Result<u64, ReadError> {
        let Entry { data_bytes, metadata_bytes, .. } = self.entry;
        let end = start.checked_add(len).filter(|end| *end <= data_bytes + metadata_bytes);
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let buffer = buffer.bytes_mut();
        let data_end = end.min(data_bytes);
        let at = if start < data_end { self.read_data(file, start, data_end, buffer)? } else { 0 };
        if end > data_bytes {
            // Behind the data there is room: whatever was read there is of no use any more.
            let behind = at + data_end.saturating_sub(start);
            let from = start.max(data_bytes) - data_bytes;
            let metadata = self.read_metadata(file)?;
            let metadata = &metadata[from as usize..(end - data_bytes) as usize];
            range(buffer, behind, metadata.len() as u64)?.copy_from_slice(metadata);
        }
        Ok(at)
    }

    /// Reads the pieces that the range touches, and checks them. Returns where in the buffer it begins.
    fn read_data(&self, file: &File, start: u64, end: u64, buffer: &mut [u8]) -> Result<u64, ReadError> {
        let entry = &self.entry;
        let (first, past) = (start / CHUNK_BYTES, end.div_ceil(CHUNK_BYTES));
        let pieces_at = entry.data_offset() + first * CHUNK_BYTES;
        let pieces_end = entry.data_offset() + (past * CHUNK_BYTES).min(entry.data_bytes);
        let lead = read_pages(file, pieces_at, pieces_end, buffer)?;
        for piece in first..past {
            let at = (piece - first) * CHUNK_BYTES;
            let len = (entry.data_bytes - piece * CHUNK_BYTES).min(CHUNK_BYTES);
            entry.check(1 + piece as usize, crate::checksum::crc32c(range(buffer, lead + at, len)?))?;
        }
        Ok(lead + (start - first * CHUNK_BYTES))
    }

    fn read_metadata(&self, file: &File) -> Result<Vec<u8>, ReadError> {
        let entry = &self.entry;
        let mut buffer = PageBuffer::new((entry.head_bytes() + 2 * PAGE_BYTES) as usize)?;
        let lead = read_pages(file, entry.offset, entry.data_offset(), buffer.bytes_mut())?;
        let head = range(buffer.bytes_mut(), lead, entry.head_bytes())?;
        entry.check_lengths(head)?;
        entry.check(0, crate::checksum::crc32c(head))?;
        Ok(head[(HEADER_BYTES + entry.owner_bytes) as usize..].to_vec())
    }
}

fn refuses_direct(error: &io::Error) -> bool {
    [Errno::INVAL, Errno::OPNOTSUPP].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn range(buffer: &mut [u8], at: u64, len: u64) -> io::Result<&mut [u8]> {
    let range = at as usize..(at + len) as usize;
    buffer.get_mut(range).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Reads the pages that a range of the file lies on to the front of the buffer. Returns where in the buffer the range begins.
fn read_pages(file: &File, from: u64, to: u64, buffer: &mut [u8]) -> Result<u64, ReadError> {
    let lead = from % PAGE_BYTES;
    let first = from - lead;
    let needed = to - first;
    let pages = range(buffer, 0, needed.next_multiple_of(PAGE_BYTES))?;
    let mut done = 0;
    while done < needed {
        let rest = &mut pages[done as usize..];
        let read = file.read_at(rest, first + done);
        match crate::fault::read_result(rest, read) {
            Ok(read) => {
                // O_DIRECT goes on at a page only.
                let whole = read as u64 - read as u64 % PAGE_BYTES;
                if done + (read as u64) < needed && whole == 0 {
                    return Err(ReadError::Cut { at: first + done + read as u64 });
                }
                done += if done + read as u64 >= needed { needed - done } else { whole };
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(lead)
}
