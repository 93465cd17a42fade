//! A segment as memory that the kernel reads from and writes to.

use std::ptr::NonNull;
use std::sync::Arc;

use raylet_transport::uring::IoMemory;
use raylet_tuning::Segment;

/// A segment of the object store.
#[derive(Debug)]
pub struct ArenaMemory(pub Arc<Segment>);

// SAFETY: a segment stays mapped at its place, readable and writable, as long as the value keeps it; nobody makes Rust references
// into a segment, which other processes map too.
unsafe impl IoMemory for ArenaMemory {
    fn address(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        self.0.address(offset, len as u64)
    }
}

#[cfg(test)]
mod tests {
    use raylet_tuning::{PageChoice, SegmentRequest};

    use super::*;

    #[test]
    fn a_segment_is_read_and_written_inside_its_bounds_only() {
        let request = SegmentRequest {
            name: "spill-test".to_owned(),
            size_bytes: 1 << 20,
            numa_node: None,
            pages: PageChoice::Small,
        };
        let memory = ArenaMemory(Arc::new(Segment::create(&request).unwrap()));
        let size_bytes = memory.0.size_bytes();
        memory.0.ensure_backed(0..size_bytes).unwrap();
        assert!(memory.write(size_bytes - 3, b"abc"));
        let mut bytes = [0; 3];
        assert!(memory.read(size_bytes - 3, &mut bytes));
        assert_eq!(&bytes, b"abc");
        assert!(!memory.write(size_bytes - 2, b"abc") && !memory.read(u64::MAX, &mut bytes));
    }
}
