//! The rings' memory as lines of atomic words: the one place of the ring that needs `unsafe`. Everything above it is safe code on
//! atomics, whatever the other process writes meanwhile.

use super::layout::{self, LINE_WORDS};
use super::sync::AtomicU64;

/// A line.
pub(crate) type Line = [AtomicU64; LINE_WORDS];

/// Memory of two rings, mapped from a file or on the heap.
pub struct Memory {
    #[cfg(not(loom))]
    base: std::ptr::NonNull<Line>,
    #[cfg(not(loom))]
    owner: Owner,
    #[cfg(loom)]
    heap: Vec<Line>,
    lines: u32,
}

#[cfg(not(loom))]
enum Owner {
    /// Unmapped when it is dropped.
    Mapped {
        _map: memmap2::MmapRaw,
    },
    Heap,
}

impl Memory {
    /// Lines of each ring.
    pub fn ring_lines(&self) -> u32 {
        self.lines
    }
}

#[cfg(not(loom))]
impl Memory {
    /// Memory of one process, for tests and for two threads.
    pub fn on_heap(lines: u32) -> Self {
        let zero = || -> Line { std::array::from_fn(|_| AtomicU64::new(0)) };
        let heap: Box<[Line]> = (0..layout::total_lines(lines)).map(|_| zero()).collect();
        // A reference to the box's content would not outlive the box's move.
        let base = std::ptr::NonNull::from(Box::leak(heap)).cast();
        Self { base, owner: Owner::Heap, lines }
    }

    /// Takes a mapping that is long enough for two rings of so many lines; `None` where it is not.
    pub(crate) fn mapped(map: memmap2::MmapRaw, lines: u32) -> Option<Self> {
        let base = std::ptr::NonNull::new(map.as_mut_ptr())?.cast::<Line>();
        let is_long = map.len() as u64 >= layout::memory_bytes(lines);
        (is_long && base.is_aligned()).then_some(Self { base, owner: Owner::Mapped { _map: map }, lines })
    }

    /// All lines.
    #[inline]
    pub(crate) fn lines(&self) -> &[Line] {
        // SAFETY: `base` points to `total_lines(self.lines)` lines: `on_heap` has made as many, `mapped` has compared the mapping's
        // length; both live as long as `self`. The address is aligned. Every bit pattern is an AtomicU64, and this process and others
        // touch the words through atomics alone. The file is sealed against shrinking (`Rings::create`, `Rings::open`), so the
        // mapping stays backed.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), layout::total_lines(self.lines)) }
    }
}

#[cfg(not(loom))]
impl Drop for Memory {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Heap) {
            let lines = std::ptr::slice_from_raw_parts_mut(self.base.as_ptr(), layout::total_lines(self.lines));
            // SAFETY: `on_heap` leaked a box of exactly these lines, and nothing borrows from `self` any more.
            drop(unsafe { Box::from_raw(lines) });
        }
    }
}

// SAFETY: plain memory of atomic words with no thread affinity; freed or unmapped once, on drop.
#[cfg(not(loom))]
unsafe impl Send for Memory {}
// SAFETY: through `&Memory` only atomics are reached.
#[cfg(not(loom))]
unsafe impl Sync for Memory {}

#[cfg(loom)]
impl Memory {
    /// Memory of loom's atomics.
    pub fn on_heap(lines: u32) -> Self {
        let zero = || -> Line { std::array::from_fn(|_| AtomicU64::new(0)) };
        Self { heap: (0..layout::total_lines(lines)).map(|_| zero()).collect(), lines }
    }

    /// Loom's atomics can't lie in a mapping.
    pub(crate) fn mapped(_: memmap2::MmapRaw, _: u32) -> Option<Self> {
        None
    }

    pub(crate) fn lines(&self) -> &[Line] {
        &self.heap
    }
}
