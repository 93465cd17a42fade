//! The shared memory that objects lie in, mapped. The only `unsafe` of this crate beside the ring's memory and tokio's registration of a
//! descriptor.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

use super::ClientError;
use crate::messages::{Place, SegmentInfo};

/// All segments of a node, as far as they are known.
#[derive(Default)]
pub(crate) struct Segments(HashMap<u32, Arc<MmapRaw>>);

impl Segments {
    /// Maps a segment whose descriptor came with its message.
    pub(crate) fn add(&mut self, info: &SegmentInfo, descriptor: &OwnedFd) -> Result<(), ClientError> {
        let size = usize::try_from(info.size_bytes).unwrap_or(usize::MAX);
        let file = rustix::fs::fstat(descriptor).map_err(|e| ClientError::io("looking at a segment")(e.into()))?;
        if size == 0 || (file.st_size as u64) < info.size_bytes {
            return Err(ClientError::Unexpected {
                expected: "a segment as long as it is said to be",
                got: format!("{} bytes instead of {}", file.st_size, info.size_bytes),
            });
        }
        let map = MmapOptions::new()
            .len(size)
            .map_raw(descriptor.as_raw_fd())
            .map_err(ClientError::io("mapping a segment"))?;
        self.0.insert(info.segment, Arc::new(map));
        Ok(())
    }

    /// The piece at a place: checked to lie inside of its segment.
    pub(crate) fn piece(&self, place: &Place) -> Result<Piece, ClientError> {
        let map = self.0.get(&place.segment);
        let length = place.data_bytes.checked_add(place.metadata_bytes);
        let end = length.and_then(|length| place.offset_bytes.checked_add(length));
        match (map, length, end) {
            (Some(map), Some(length), Some(end)) if end <= map.len() as u64 => {
                // SAFETY: `offset_bytes <= end <= map.len()`, so the address is inside of the mapping or one past its end.
                let start = unsafe { map.as_mut_ptr().add(place.offset_bytes as usize) };
                let start = NonNull::new(start).unwrap_or(NonNull::dangling());
                Ok(Piece { _map: map.clone(), start, data: place.data_bytes as usize, length: length as usize })
            }
            _ => Err(ClientError::Unexpected {
                expected: "a place inside of a known segment",
                got: format!("{place:?}"),
            }),
        }
    }
}

/// A range of a segment, mapped as long as this lives.
pub(crate) struct Piece {
    _map: Arc<MmapRaw>,
    start: NonNull<u8>,
    data: usize,
    length: usize,
}

impl Piece {
    /// Length of the data.
    pub(crate) fn data_bytes(&self) -> usize {
        self.data
    }

    /// Data and metadata of a sealed object that this client holds.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `Segments::piece` found the range inside of the mapping, which lives as long as `self`. Nobody writes to a sealed
        // object, and the node gives its memory to nobody while it is held; like plasma, the store trusts the processes that it passes
        // its segments to in this.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// Data and metadata of an object that this client creates.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the range was given to this client alone, until it seals the object, and `&mut self` is the only way
        // to it: a `Piece` for writing is made once for each answer or each place in a run.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

// SAFETY: plain memory without thread affinity, kept mapped by the shared owner of the mapping.
unsafe impl Send for Piece {}
// SAFETY: through `&Piece` bytes are only read.
unsafe impl Sync for Piece {}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Segments {
        let file = rustix::fs::memfd_create("segment", rustix::fs::MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&file, 8192).unwrap();
        let mut segments = Segments::default();
        segments.add(&SegmentInfo { segment: 3, size_bytes: 8192 }, &file).unwrap();
        assert!(segments.add(&SegmentInfo { segment: 4, size_bytes: 8193 }, &file).is_err(), "longer than its file");
        segments
    }

    fn place(segment: u32, offset_bytes: u64, data_bytes: u64, metadata_bytes: u64) -> Place {
        Place { offset_bytes, data_bytes, metadata_bytes, segment }
    }

    #[test]
    fn what_is_written_is_read() {
        let segments = segments();
        segments.piece(&place(3, 64, 4, 2)).unwrap().bytes_mut().copy_from_slice(b"datame");
        let piece = segments.piece(&place(3, 64, 4, 2)).unwrap();
        assert_eq!((piece.bytes(), piece.data_bytes()), (&b"datame"[..], 4));
        assert_eq!(segments.piece(&place(3, 8192, 0, 0)).unwrap().bytes(), b"");
    }

    #[test]
    fn a_place_outside_is_refused() {
        let segments = segments();
        for wrong in [
            place(4, 0, 1, 0),
            place(3, 8192, 1, 0),
            place(3, 8000, 100, 100),
            place(3, u64::MAX, 2, 0),
            place(3, 0, u64::MAX, 1),
        ] {
            assert!(matches!(segments.piece(&wrong), Err(ClientError::Unexpected { .. })), "{wrong:?}");
        }
    }
}
