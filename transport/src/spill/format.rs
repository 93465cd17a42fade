//! A file of spilled objects, as Ray 2.60 reads it (`ray/_private/external_storage.py`).
//!
//! At the offset that an object's URL names lie three little-endian u64: the lengths of its owner's address, its metadata and its data.
//! The three follow in that order. The URL is `{path}?offset={offset}&size={size}`, size including the lengths.
//!
//! Ray sets no alignment, so objects may lie anywhere: here an object of [`DIRECT_MIN_BYTES`] and more is placed so that its data
//! begins on a page, as O_DIRECT wants it. What comes before, and the gap before that, goes through a small buffer.

use std::path::Path;

/// The lengths in front of an object, in bytes.
pub const HEADER_BYTES: u64 = 24;

/// What O_DIRECT wants positions and lengths to be multiples of, in bytes: enough for every disk there is.
pub const PAGE_BYTES: u64 = 4096;

/// Data from this length on goes from its place in memory straight to the file, in bytes.
pub const DIRECT_MIN_BYTES: u64 = 64 * 1024;

/// Data is written, read and checked in pieces of this length, in bytes.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// Longest owner's address or metadata that is taken for one, in bytes. Ray's are a few hundred bytes.
pub const PART_MAX_BYTES: u64 = 16 << 20;

/// Why bytes in a file are not the object that was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The lengths in front are others.
    #[error("the lengths in front of the object are {got:?}, written were {expected:?}: the file was changed")]
    Lengths {
        /// Owner's address, metadata, data: as written.
        expected: [u64; 3],
        /// As read.
        got: [u64; 3],
    },
    /// The checksum is another.
    #[error("piece {piece} of the object has checksum {got:08x}, written was {expected:08x}: the file or the disk changed it")]
    Checksum {
        /// 0: what is in front of the data; 1 and up: the data, by [`CHUNK_BYTES`].
        piece: usize,
        /// As written.
        expected: u32,
        /// As read.
        got: u32,
    },
}

/// Where an object lies in its file, and how to know it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it begins, in bytes from the start of the file.
    pub offset: u64,
    /// Length of its owner's address.
    pub owner_bytes: u64,
    /// Length of its metadata.
    pub metadata_bytes: u64,
    /// Length of its data.
    pub data_bytes: u64,
    /// CRC-32C of what is in front of the data, then of each [`CHUNK_BYTES`] of data.
    pub checksums: Box<[u32]>,
}

impl Entry {
    /// What is in front of the data: lengths, owner's address, metadata.
    pub fn head_bytes(&self) -> u64 {
        HEADER_BYTES + self.owner_bytes + self.metadata_bytes
    }

    /// All of it.
    pub fn size_bytes(&self) -> u64 {
        self.head_bytes() + self.data_bytes
    }

    /// Where the data begins in the file.
    pub fn data_offset(&self) -> u64 {
        self.offset + self.head_bytes()
    }

    /// The object's URL.
    pub fn url(&self, path: &Path) -> String {
        format!("{}?offset={}&size={}", path.display(), self.offset, self.size_bytes())
    }

    /// Checks the lengths in front against what was written.
    ///
    /// # Errors
    /// [`FormatError::Lengths`].
    pub fn check_lengths(&self, head: &[u8]) -> Result<(), FormatError> {
        let expected = [self.owner_bytes, self.metadata_bytes, self.data_bytes];
        let mut got = [0; 3];
        for (got, bytes) in got.iter_mut().zip(head.as_chunks::<8>().0) {
            *got = u64::from_le_bytes(*bytes);
        }
        if got == expected {
            Ok(())
        } else {
            Err(FormatError::Lengths { expected, got })
        }
    }

    /// Checks one piece.
    ///
    /// # Errors
    /// [`FormatError::Checksum`].
    pub fn check(&self, piece: usize, got: u32) -> Result<(), FormatError> {
        let expected = self.checksums.get(piece).copied().unwrap_or(0);
        if got == expected {
            Ok(())
        } else {
            Err(FormatError::Checksum { piece, expected, got })
        }
    }
}

/// The lengths in front of an object.
pub fn header(owner_bytes: u64, metadata_bytes: u64, data_bytes: u64) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    for (slot, length) in header.as_chunks_mut::<8>().0.iter_mut().zip([owner_bytes, metadata_bytes, data_bytes]) {
        *slot = length.to_le_bytes();
    }
    header
}

/// Where an object begins whose turn is at `cursor`: at once, or so that its data begins on a page.
pub fn place(cursor: u64, head_bytes: u64, direct: bool) -> u64 {
    if direct {
        (cursor + head_bytes).next_multiple_of(PAGE_BYTES) - head_bytes
    } else {
        cursor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_large_objects_begins_on_a_page_and_small_ones_follow_at_once() {
        for (cursor, head) in [(0, 30), (4096, 30), (5000, 4096), (5000, 9000), (1, 4095)] {
            let offset = place(cursor, head, true);
            assert!(offset >= cursor && offset - cursor < PAGE_BYTES, "{cursor} {head}: {offset}");
            assert_eq!((offset + head) % PAGE_BYTES, 0);
            assert_eq!(place(cursor, head, false), cursor);
        }
    }

    #[test]
    fn lengths_and_url_are_rays() {
        let entry =
            Entry { offset: 4066, owner_bytes: 2, metadata_bytes: 4, data_bytes: 70_000, checksums: Box::new([7, 8]) };
        assert_eq!(entry.url(Path::new("/spill/a-multi-1")), "/spill/a-multi-1?offset=4066&size=70030");
        let head = header(2, 4, 70_000);
        assert_eq!(head[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(entry.check_lengths(&head), Ok(()));
        let wrong = FormatError::Lengths { expected: [2, 4, 70_000], got: [2, 5, 70_000] };
        assert_eq!(entry.check_lengths(&header(2, 5, 70_000)), Err(wrong));
        assert_eq!(
            entry.check_lengths(&head[..20]),
            Err(FormatError::Lengths { expected: [2, 4, 70_000], got: [2, 4, 0] })
        );
        assert_eq!(entry.check(1, 8), Ok(()));
        assert!(entry.check(0, 8).is_err() && entry.check(2, 1).is_err());
    }
}
