//! Receive buffers that the kernel takes from, and gets back: a provided buffer ring (`IORING_REGISTER_PBUF_RING`).

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::IoUring;

/// The buffer group of every receive; a ring has one.
pub const GROUP: u16 = 0;

/// The ring of buffers wants to start on a page.
const PAGE_BYTES: usize = 4096;

/// The buffers of one io_uring. The kernel writes into those that it was given; the others are this side's to read.
pub struct Buffers {
    entries: NonNull<BufRingEntry>,
    data: NonNull<u8>,
    count: u16,
    each_bytes: usize,
    tail: u16,
}

impl Buffers {
    /// Makes `count` buffers (a power of two) of `each_bytes` and gives them all to the kernel.
    ///
    /// # Errors
    /// What the kernel says, EINVAL from one that has no such rings.
    pub fn register(ring: &IoUring, count: u16, each_bytes: usize) -> io::Result<Self> {
        assert!(count.is_power_of_two() && u32::try_from(each_bytes).is_ok(), "{count} buffers of {each_bytes} bytes");
        let mut buffers = Self {
            entries: allocate(entries_layout(count)).cast(),
            data: allocate(data_layout(count, each_bytes)),
            count,
            each_bytes,
            tail: 0,
        };
        // SAFETY: the memory is page-aligned, of the size that `count` entries take, and lives until `Drop`, which runs after
        // the io_uring is closed: `CoreRing` declares its ring first.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(buffers.entries.as_ptr() as u64, count, GROUP, 0)?;
        }
        for buffer in 0..count {
            buffers.give_back(buffer);
        }
        Ok(buffers)
    }

    /// The first bytes of a buffer that a receive has filled.
    ///
    /// # Panics
    /// On a buffer or length that is not of this ring, which the kernel does not name.
    pub fn received(&self, buffer: u16, length: usize) -> &[u8] {
        assert!(buffer < self.count && length <= self.each_bytes, "buffer {buffer} with {length} bytes");
        // SAFETY: inside the allocation, initialised (zeroed at first, then written by the kernel), and not written to until
        // `give_back`, which borrows `self` mutably.
        unsafe { std::slice::from_raw_parts(self.at(buffer), length) }
    }

    /// Lets the kernel have a buffer.
    pub fn give_back(&mut self, buffer: u16) {
        assert!(buffer < self.count, "buffer {buffer} of {}", self.count);
        let slot = usize::from(self.tail & (self.count - 1));
        // SAFETY: the slot is inside the allocation, and the kernel reads it only once the tail below is past it.
        let entry = unsafe { &mut *self.entries.as_ptr().add(slot) };
        entry.set_addr(self.at(buffer) as u64);
        entry.set_len(self.each_bytes as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry, aligned, and is the only field that both sides touch at a time.
        let tail = unsafe { &*BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }

    fn at(&self, buffer: u16) -> *mut u8 {
        // SAFETY: callers have checked the buffer's number, so the offset is inside the allocation.
        unsafe { self.data.as_ptr().add(usize::from(buffer) * self.each_bytes) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layouts. The io_uring is closed, and a receive that it still has is only ever carried
        // out by this thread inside a wait on it (`IORING_SETUP_DEFER_TASKRUN`), so the kernel writes no more.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), entries_layout(self.count));
            dealloc(self.data.as_ptr(), data_layout(self.count, self.each_bytes));
        }
    }
}

fn entries_layout(count: u16) -> Layout {
    layout(usize::from(count) * size_of::<BufRingEntry>())
}

fn data_layout(count: u16, each_bytes: usize) -> Layout {
    layout(usize::from(count) * each_bytes)
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, PAGE_BYTES).expect("a few buffers fit the address space")
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: the layouts of this module are not empty.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}
