//! Segments: memory that a node shares with its clients through a file descriptor.
//!
//! A client maps the descriptor and touches the pages. Were the machine unable to supply one, the client would die of
//! SIGBUS, so nothing of a segment is handed out before [`Segment::ensure_backed`] has taken memory for it: that fails with
//! an error that the create request can carry. Backing is not touching: a backed page is the segment's, but the first touch
//! still clears and maps it, which [`Segment::touch`] does ahead of demand (see [`crate::warm`]).

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::backing::{self, Backing};
use crate::memory::{MemoryHeadroom, MemoryLimiter};
use crate::pages::{PageChoice, PageKind, HUGE_2M_BYTES};
use crate::sys::{self, Mapping};

/// Memory that is left to the machine (or control group) when a segment takes pages: the node and its workers need some
/// to go on at all.
pub const HEADROOM_KEPT_BYTES: u64 = 128 << 20;
/// Bytes that may be backed before the headroom is read again, so that small ranges don't cost a read of /proc each.
const HEADROOM_CREDIT_BYTES: u64 = 64 << 20;
/// Pages whose NUMA node is looked up for a report: some 100 us.
const NUMA_SAMPLE_PAGES: u64 = 512;
/// 4 KiB pages are backed and touched in pieces of this size.
const SMALL_GRANULE_BYTES: u64 = 256 << 10;
/// No segment is smaller than this or other than a multiple of it: one huge page.
pub const SEGMENT_GRAIN_BYTES: u64 = HUGE_2M_BYTES;

/// What a segment should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRequest {
    /// Shown in /proc/PID/maps where the page kind allows names.
    pub name: String,
    /// Wanted size; rounded up to whole pages of the kind that is got.
    pub size_bytes: u64,
    /// NUMA node (kernel's index) whose memory is preferred. `None`: wherever the memory is touched.
    pub numa_node: Option<u32>,
    /// Wanted pages.
    pub pages: PageChoice,
}

/// Why a segment, or a part of it, can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// A size that no machine has a use for.
    #[error("an object store segment of {size_bytes} bytes can't be made: give a size from 1 byte to 2^47 with --object-store-memory (Ray: --object_store_memory)")]
    BadSize {
        /// The size asked for.
        size_bytes: u64,
    },
    /// The machine or control group has not that much memory left.
    #[error("an object store segment of {size_bytes} bytes was asked for, but {limiter} leaves {available_bytes} bytes, of which {HEADROOM_KEPT_BYTES} are kept for the node and its workers: lower --object-store-memory (Ray: --object_store_memory), or free memory")]
    TooLarge {
        /// The size asked for.
        size_bytes: u64,
        /// What could be taken.
        available_bytes: u64,
        /// What limits it.
        limiter: MemoryLimiter,
    },
    /// RLIMIT_FSIZE is below the segment's size; growing the file would raise SIGXFSZ.
    #[error("an object store segment of {size_bytes} bytes was asked for, but this process may make files of at most {limit_bytes} bytes: raise the limit (ulimit -f) or lower --object-store-memory (Ray: --object_store_memory)")]
    FileSizeLimit {
        /// The size asked for.
        size_bytes: u64,
        /// The soft limit.
        limit_bytes: u64,
    },
    /// The kernel refused to make or map the segment even with 4 KiB pages.
    #[error("no memory segment of {size_bytes} bytes could be made: {step}: {source}")]
    Create {
        /// The size asked for.
        size_bytes: u64,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Memory for this range can't be had now.
    #[error("{size_bytes} bytes of the object store can't be backed with memory: {limiter} leaves {available_bytes} bytes, of which {HEADROOM_KEPT_BYTES} are kept: free memory or lower --object-store-memory (Ray: --object_store_memory)")]
    NoHeadroom {
        /// Bytes that would have had to be taken.
        size_bytes: u64,
        /// What could be taken.
        available_bytes: u64,
        /// What limits it.
        limiter: MemoryLimiter,
    },
    /// The kernel refused memory for this range.
    #[error("bytes {start}..{end} of the object store can't be backed with memory: {source}: free memory or lower --object-store-memory (Ray: --object_store_memory)")]
    NotBacked {
        /// First byte of the part that failed.
        start: u64,
        /// One past its last byte.
        end: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A range that is not inside the segment.
    #[error("bytes {start}..{end} are not inside a segment of {size_bytes} bytes")]
    OutOfBounds {
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// The segment's size.
        size_bytes: u64,
    },
}

/// What a segment on disk is a multiple of, in bytes: the page.
const DISK_PAGE_BYTES: u64 = 4096;

/// What a segment is and how it came to be, for status and logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentReport {
    /// The name it was asked for under.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// The pages asked for.
    pub asked: PageChoice,
    /// The pages it has.
    pub pages: PageKind,
    /// Why the pages are not the ones asked for; `None` where they are.
    pub fallback: Option<String>,
    /// The NUMA node whose memory it prefers.
    pub numa_node: Option<u32>,
    /// Why that preference could not be set, where it could not.
    pub numa_problem: Option<String>,
    /// Bytes that have memory behind them.
    pub backed_bytes: u64,
    /// Bytes that the node has touched ahead of demand.
    pub touched_bytes: u64,
    /// Where touched pages really are; `None` where no NUMA node is preferred, or the kernel doesn't say.
    pub numa_pages: Option<NumaPages>,
}

/// On which NUMA nodes the touched pages of a segment are: of a sample, evenly spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaPages {
    /// Pages looked at that are on the node that the segment prefers.
    pub on_node: u64,
    /// Pages looked at that are on other nodes: the preferred one was full, or the kernel moved them.
    pub elsewhere: u64,
}

impl NumaPages {
    /// Counts the kernel's answers. A negative one is an error number: a page that is not there any more.
    fn count(nodes: &[i32], preferred: u32) -> NumaPages {
        let there = nodes.iter().filter_map(|&node| u32::try_from(node).ok());
        there.fold(NumaPages::default(), |mut pages, node| {
            *(if node == preferred { &mut pages.on_node } else { &mut pages.elsewhere }) += 1;
            pages
        })
    }
}

/// One shared memory segment. All methods take `&self`: parts of it belong to different shards and to clients, and who may
/// write which range is the store's protocol, not this type's.
#[derive(Debug)]
pub struct Segment {
    name: String,
    asked: PageChoice,
    kind: PageKind,
    backing: Backing,
    fallback: Option<String>,
    numa_node: Option<u32>,
    numa_problem: Option<String>,
    size_bytes: u64,
    file: OwnedFd,
    mapping: Mapping,
    backed: Granules,
    touched: Granules,
    headroom: HeadroomGate,
}

impl Segment {
    /// Makes the segment with the pages asked for, or the best that can be had; [`Segment::fallback`] says why not.
    pub fn create(request: &SegmentRequest) -> Result<Segment, ArenaError> {
        let size_bytes = request.size_bytes;
        if size_bytes == 0 || size_bytes > 1 << 47 {
            return Err(ArenaError::BadSize { size_bytes });
        }
        let limit_bytes = sys::rlimit(libc::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft);
        if size_bytes > limit_bytes {
            return Err(ArenaError::FileSizeLimit { size_bytes, limit_bytes });
        }
        let made = backing::make(request)?;
        let segment = Segment::from_parts(request, made);
        match segment.kind {
            PageKind::Small => {}
            kind => tracing::debug!(segment = %segment.name, %kind, "segment made"),
        }
        Ok(segment)
    }

    /// Makes a segment in a file on disk that has no name, with room for all of it: for an object that memory has no room for.
    ///
    /// # Errors
    /// [`ArenaError::Create`] where the disk has no room, or the directory can't hold such a file.
    pub fn on_disk(directory: &Path, size_bytes: u64) -> Result<Segment, ArenaError> {
        let failed = |step| move |source| ArenaError::Create { size_bytes, step, source };
        let size_bytes = size_bytes.next_multiple_of(DISK_PAGE_BYTES);
        let file = OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(directory);
        let file = OwnedFd::from(file.map_err(failed("making a file without a name"))?);
        sys::allocate(file.as_fd(), 0, size_bytes).map_err(failed("fallocate"))?;
        let mapping =
            Mapping::shared(file.as_fd(), size_bytes as usize, DISK_PAGE_BYTES as usize).map_err(failed("mmap"))?;
        let request =
            SegmentRequest { name: "fallback".to_owned(), size_bytes, numa_node: None, pages: PageChoice::Small };
        let (kind, backing) = (PageKind::Small, backing::Backing::Allocate);
        let made = backing::Made { kind, backing, file, mapping, size_bytes, fallback: None, numa_problem: None };
        let segment = Segment::from_parts(&request, made);
        // The disk is behind it; there is nothing to fear from touching it.
        segment.backed.set(&(0..size_bytes));
        segment.touched.set(&(0..size_bytes));
        Ok(segment)
    }

    fn from_parts(request: &SegmentRequest, made: backing::Made) -> Segment {
        let size_bytes = made.size_bytes;
        let granule_bytes = granule_bytes(made.kind);
        Segment {
            name: request.name.clone(),
            asked: request.pages,
            kind: made.kind,
            backing: made.backing,
            fallback: made.fallback,
            numa_node: request.numa_node,
            numa_problem: made.numa_problem,
            size_bytes,
            file: made.file,
            mapping: made.mapping,
            backed: Granules::new(size_bytes, granule_bytes),
            touched: Granules::new(size_bytes, granule_bytes),
            headroom: HeadroomGate::default(),
        }
    }

    /// The descriptor that clients map. Give out duplicates; it lives as long as the segment.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Size of the file and of the mapping: at least what was asked for, in whole pages.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The pages that the segment has.
    pub fn page_kind(&self) -> PageKind {
        self.kind
    }

    /// Why the pages are not the ones asked for; `None` where they are.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// The NUMA node whose memory the segment prefers.
    pub fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    /// Backing and touching work in pieces of this size: ranges are widened to whole ones.
    pub fn granule_bytes(&self) -> u64 {
        self.touched.granule_bytes
    }

    /// Bytes that have memory behind them.
    pub fn backed_bytes(&self) -> u64 {
        self.backed.set_bytes()
    }

    /// Bytes that this process has touched, in whole granules.
    pub fn touched_bytes(&self) -> u64 {
        self.touched.set_bytes()
    }

    /// Whether every page of the range has been touched by this process.
    pub fn is_touched(&self, range: &Range<u64>) -> bool {
        self.touched.first_clear(range).is_none()
    }

    /// Everything about the segment that a status page shows.
    pub fn report(&self) -> SegmentReport {
        SegmentReport {
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            asked: self.asked,
            pages: self.kind,
            fallback: self.fallback.clone(),
            numa_node: self.numa_node,
            numa_problem: self.numa_problem.clone(),
            backed_bytes: self.backed_bytes(),
            touched_bytes: self.touched_bytes(),
            numa_pages: self.numa_pages().ok().flatten(),
        }
    }

    /// Asks the kernel where touched pages are (move_pages), of a sample. `None` where no NUMA node is preferred.
    pub fn numa_pages(&self) -> io::Result<Option<NumaPages>> {
        let Some(preferred) = self.numa_node else { return Ok(None) };
        let touched = self.touched.set_bytes().div_ceil(self.touched.granule_bytes);
        let stride = touched.div_ceil(NUMA_SAMPLE_PAGES).max(1);
        let granules = (0..self.touched.count()).filter(|&granule| self.touched.is_set(granule));
        let offsets = granules.step_by(stride as usize).map(|granule| granule * self.touched.granule_bytes);
        let pages: Vec<*const libc::c_void> =
            offsets.filter_map(|offset| Some(self.mapping.at(offset, 1)?.as_ptr().cast_const().cast())).collect();
        let nodes = if pages.is_empty() { Vec::new() } else { sys::nodes_of_pages(&pages)? };
        Ok(Some(NumaPages::count(&nodes, preferred)))
    }

    /// Copies bytes into the segment, backing the range first.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), ArenaError> {
        let range = self.range(offset, bytes.len())?;
        self.ensure_backed(range.clone())?;
        self.mapping.write(offset, bytes).then_some(()).ok_or_else(|| self.out_of_bounds(&range))
    }

    /// Copies bytes out of the segment, backing the range first (what nobody wrote reads as zero).
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ArenaError> {
        let range = self.range(offset, bytes.len())?;
        self.ensure_backed(range.clone())?;
        self.mapping.read(offset, bytes).then_some(()).ok_or_else(|| self.out_of_bounds(&range))
    }

    /// Where a range lies in this process; `None` where it is not inside. What is there belongs to the store's clients: it is for the
    /// kernel to read and write.
    pub fn address(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        self.mapping.at(offset, len)
    }

    /// Takes memory for a range, so that nobody who touches it later gets SIGBUS. Costs a few loads where the range is
    /// backed already; otherwise a system call per run of fresh granules (see this crate's README for figures).
    ///
    /// On an error, parts of the range may have been backed; they stay the segment's and count in
    /// [`Segment::backed_bytes`].
    pub fn ensure_backed(&self, range: Range<u64>) -> Result<(), ArenaError> {
        self.check(&range)?;
        let mut from = range.start;
        while let Some(run) = self.backed.next_clear_run(&(from..range.end)) {
            self.back(&run)?;
            self.backed.set(&run);
            from = run.end;
        }
        Ok(())
    }

    /// Backs a range and touches its pages in this process: cleared, and on transparent huge pages and 4 KiB pages ready
    /// for a client to map at the least cost. Contents are kept. Returns the bytes that were not touched before.
    pub fn touch(&self, range: Range<u64>) -> Result<u64, ArenaError> {
        self.ensure_backed(range.clone())?;
        let mut touched_bytes = 0;
        let mut from = range.start;
        while let Some(run) = self.touched.next_clear_run(&(from..range.end)) {
            backing::touch(self.backing, &self.mapping, &run).map_err(|source| ArenaError::NotBacked {
                start: run.start,
                end: run.end,
                source,
            })?;
            touched_bytes += self.touched.set(&run);
            from = run.end;
        }
        Ok(touched_bytes)
    }

    /// Of [`Self::touch`] the part in which the kernel holds locks of the whole segment or process: it is not to be called by a
    /// thread that may be left waiting in the middle. Returns the bytes that it has touched.
    pub fn touch_under_locks(&self, range: Range<u64>) -> Result<u64, ArenaError> {
        if self.backing.is_touched_by_faults() {
            return self.ensure_backed(range).map(|()| 0);
        }
        self.touch(range)
    }

    fn back(&self, run: &Range<u64>) -> Result<(), ArenaError> {
        if !self.kind.is_hugetlb() {
            self.headroom.take(run.end - run.start)?;
        }
        backing::back(self.backing, self.file.as_fd(), &self.mapping, run).map_err(|source| ArenaError::NotBacked {
            start: run.start,
            end: run.end,
            source,
        })
    }

    fn range(&self, offset: u64, len: usize) -> Result<Range<u64>, ArenaError> {
        let range = offset..offset.saturating_add(len as u64);
        self.check(&range)?;
        Ok(range)
    }

    fn check(&self, range: &Range<u64>) -> Result<(), ArenaError> {
        if range.start <= range.end && range.end <= self.size_bytes {
            Ok(())
        } else {
            Err(self.out_of_bounds(range))
        }
    }

    fn out_of_bounds(&self, range: &Range<u64>) -> ArenaError {
        ArenaError::OutOfBounds { start: range.start, end: range.end, size_bytes: self.size_bytes }
    }
}

/// The unit in which a kind of pages is backed and touched.
pub(crate) fn granule_bytes(kind: PageKind) -> u64 {
    match kind {
        PageKind::Small => SMALL_GRANULE_BYTES,
        other => other.page_bytes(),
    }
}

/// Fails where a segment of this size is more than the machine has left. Memory is taken later, but a store that could
/// never be filled is better refused now.
pub(crate) fn check_headroom(size_bytes: u64) -> Result<(), ArenaError> {
    let MemoryHeadroom { available_bytes, limiter, .. } = MemoryHeadroom::read();
    if size_bytes.saturating_add(HEADROOM_KEPT_BYTES) > available_bytes {
        return Err(ArenaError::TooLarge { size_bytes, available_bytes, limiter });
    }
    Ok(())
}

/// Lets memory be taken while the machine has room, reading what it has once per [`HEADROOM_CREDIT_BYTES`].
#[derive(Debug, Default)]
struct HeadroomGate {
    credit_bytes: AtomicU64,
}

impl HeadroomGate {
    fn take(&self, size_bytes: u64) -> Result<(), ArenaError> {
        let spend = |credit: u64| credit.checked_sub(size_bytes);
        if self.credit_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok() {
            return Ok(());
        }
        let MemoryHeadroom { available_bytes, limiter, .. } = MemoryHeadroom::read();
        match available_bytes.checked_sub(size_bytes.saturating_add(HEADROOM_KEPT_BYTES)) {
            Some(left) => {
                self.credit_bytes.store(left.min(HEADROOM_CREDIT_BYTES), Ordering::Relaxed);
                Ok(())
            }
            None => Err(ArenaError::NoHeadroom { size_bytes, available_bytes, limiter }),
        }
    }
}

/// One bit per granule of a segment. Setting a bit that another thread sets too is harmless: backing twice changes nothing.
#[derive(Debug)]
struct Granules {
    granule_bytes: u64,
    size_bytes: u64,
    words: Box<[AtomicU64]>,
    set: AtomicU64,
}

impl Granules {
    fn new(size_bytes: u64, granule_bytes: u64) -> Granules {
        let count = size_bytes.div_ceil(granule_bytes);
        let words = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Granules { granule_bytes, size_bytes, words, set: AtomicU64::new(0) }
    }

    fn set_bytes(&self) -> u64 {
        (self.set.load(Ordering::Relaxed) * self.granule_bytes).min(self.size_bytes)
    }

    fn count(&self) -> u64 {
        self.size_bytes.div_ceil(self.granule_bytes)
    }

    fn indices(&self, range: &Range<u64>) -> Range<u64> {
        if range.is_empty() {
            return 0..0;
        }
        range.start / self.granule_bytes..range.end.div_ceil(self.granule_bytes)
    }

    fn is_set(&self, index: u64) -> bool {
        self.words[(index / 64) as usize].load(Ordering::Acquire) >> (index % 64) & 1 == 1
    }

    fn first_clear(&self, range: &Range<u64>) -> Option<u64> {
        let indices = self.indices(range);
        let mut index = indices.start;
        while index < indices.end {
            // Bits below `index` count as set, so a word that is all ones has nothing for us.
            let word = self.words[(index / 64) as usize].load(Ordering::Acquire);
            let clear = !word & (u64::MAX << (index % 64));
            if clear != 0 {
                index = index / 64 * 64 + u64::from(clear.trailing_zeros());
                break;
            }
            index = (index / 64 + 1) * 64;
        }
        (index < indices.end).then_some(index)
    }

    /// The first run of clear granules that the range touches, as bytes, widened to whole granules.
    fn next_clear_run(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let first = self.first_clear(range)?;
        let end = self.indices(range).end;
        let last = (first + 1..end).find(|&index| self.is_set(index)).unwrap_or(end);
        Some(first * self.granule_bytes..(last * self.granule_bytes).min(self.size_bytes))
    }

    /// Sets the granules of a range that is made of whole ones; returns the bytes that were clear before.
    fn set(&self, range: &Range<u64>) -> u64 {
        let mut fresh = 0;
        for index in self.indices(range) {
            let bit = 1 << (index % 64);
            let before = self.words[(index / 64) as usize].fetch_or(bit, Ordering::AcqRel);
            fresh += u64::from(before & bit == 0);
        }
        self.set.fetch_add(fresh, Ordering::Relaxed);
        fresh * self.granule_bytes
    }
}

#[cfg(test)]
#[path = "arena_tests.rs"]
mod tests;
