//! Which pages a segment gets, and how memory is put behind a range of it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::arena::{check_headroom, granule_bytes, ArenaError, SegmentRequest, SEGMENT_GRAIN_BYTES};
use crate::hugepages;
use crate::pages::{PageChoice, PageKind, HUGE_2M_BYTES, SMALL_PAGE_BYTES};
use crate::privatefs::{self, TmpfsHuge};
use crate::sys::{self, Mapping};
use crate::sysfs;

/// Bytes touched per system call: short enough that a helper thread can be stopped between two.
const POPULATE_STEP_BYTES: u64 = 8 << 20;
/// Characters of a segment's name that go into a memfd's.
const NAME_MAX_BYTES: usize = 200;

/// How memory is put behind a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Nothing to do: mapping the hugetlb file reserved all of it.
    Reserved,
    /// fallocate: takes pages without clearing them.
    Allocate,
    /// Faults the pages in through our mapping, where they come with its advice (huge pages) or its NUMA preference.
    Populate,
    /// Faults one small page in per huge page and collapses each range into a huge page; allocates where that fails.
    Collapse,
}

impl Backing {
    /// A fault on memory that was taken finds it: no system call is needed to touch it.
    pub(crate) fn is_touched_by_faults(self) -> bool {
        self == Self::Allocate
    }
}

/// A segment's parts, as made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) kind: PageKind,
    pub(crate) backing: Backing,
    pub(crate) file: OwnedFd,
    pub(crate) mapping: Mapping,
    pub(crate) size_bytes: u64,
    pub(crate) fallback: Option<String>,
    pub(crate) numa_problem: Option<String>,
}

/// Why one way of making a segment did not work; the next is tried.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

type Attempt = Result<Made, Refused>;

/// The ways to transparent huge pages, the best first: on a private tmpfs they cost nothing to back and need no setting
/// of the machine's; a memfd under `shmem_enabled` clears them when they are backed; collapsing copies or clears as well.
pub(crate) const THP_WAYS: [fn(&SegmentRequest) -> Attempt; 3] = [thp_tmpfs, thp_shmem, thp_collapse];

/// Makes a segment with the pages asked for, or the nearest kind that the machine gives.
pub(crate) fn make(request: &SegmentRequest) -> Result<Made, ArenaError> {
    let mut reasons = Vec::new();
    if let Some(page_bytes) = request.pages.hugetlb_bytes() {
        match hugetlb(request, page_bytes) {
            Ok(made) => return Ok(made),
            Err(Refused(reason)) => reasons.push(reason),
        }
    }
    check_headroom(request.size_bytes)?;
    if request.pages != PageChoice::Small {
        for attempt in THP_WAYS {
            match attempt(request) {
                Ok(made) => return Ok(Made { fallback: explain(request, made.kind, &reasons), ..made }),
                Err(Refused(reason)) => reasons.push(reason),
            }
        }
    }
    let made = small(request)?;
    Ok(Made { fallback: explain(request, made.kind, &reasons), ..made })
}

/// One sentence on why the pages are not the ones asked for; `None` where they are.
fn explain(request: &SegmentRequest, kind: PageKind, reasons: &[String]) -> Option<String> {
    let asked = match request.pages {
        PageChoice::Huge2M => "2 MiB huge pages",
        PageChoice::Huge1G => "1 GiB huge pages",
        PageChoice::Auto | PageChoice::Thp if kind == PageKind::Small => "transparent huge pages",
        PageChoice::Auto | PageChoice::Thp | PageChoice::Small => return None,
    };
    // The first reason is about what was asked for; later ones only matter where nothing but 4 KiB pages is left.
    let told = if kind == PageKind::Small { reasons } else { &reasons[..reasons.len().min(1)] };
    Some(format!("{asked} were asked for, {kind} are used: {}", told.join("; ")))
}

fn hugetlb(request: &SegmentRequest, page_bytes: u64) -> Attempt {
    let size_bytes = request.size_bytes.next_multiple_of(page_bytes);
    let wanted = size_bytes / page_bytes;
    if let Some(limit_bytes) = hugepages::cgroup_room_bytes(page_bytes).filter(|&room| room < size_bytes) {
        // Such a limit is not seen by mmap: the page that goes over it is a SIGBUS.
        return Err(Refused(format!("the control group may use only {limit_bytes} more bytes of them")));
    }
    let kind = if page_bytes == HUGE_2M_BYTES { PageKind::Huge2M } else { PageKind::Huge1G };
    let attempt = memfd(request, Some(page_bytes)).and_then(|file| {
        sys::set_size(file.as_fd(), size_bytes)?;
        sys::seal_size(file.as_fd())?;
        let mapping = Mapping::shared(file.as_fd(), length(size_bytes)?, page_bytes as usize)?;
        Ok((file, mapping))
    });
    let (file, mapping) = attempt.map_err(|error| {
        let pool = hugepages::pool_of_machine(page_bytes);
        Refused(match pool {
            Some(pool) => format!(
                "{wanted} pages of {} MiB are needed, {} of {} in the pool are free ({error}); reserve them with \
                 `raylet-uring tune --apply --hugepages {}={wanted}`{}",
                page_bytes >> 20,
                pool.unreserved(),
                pool.total,
                if page_bytes == HUGE_2M_BYTES { "2M" } else { "1G" },
                if request.numa_node.is_some() { ", as many for each NUMA node of the object store" } else { "" },
            ),
            None => format!("this kernel has no pool of {} MiB pages ({error})", page_bytes >> 20),
        })
    })?;
    let numa_problem = prefer_node(request, &mapping);
    // The preference belongs to our mapping only, not to a client's: with one, pages must be taken through ours.
    let backing = if request.numa_node.is_some() && numa_problem.is_none() && many_numa_nodes() {
        Backing::Populate
    } else {
        Backing::Reserved
    };
    Ok(Made { kind, backing, file, mapping, size_bytes, fallback: None, numa_problem })
}

fn thp_tmpfs(request: &SegmentRequest) -> Attempt {
    let size_bytes = request.size_bytes.next_multiple_of(SEGMENT_GRAIN_BYTES);
    let file = privatefs::unnamed_file(TmpfsHuge::WithinSize, size_bytes)
        .map_err(|error| Refused(format!("a private tmpfs with huge pages can't be made ({error})")))?;
    let made = finish(request, file, PageKind::ThpTmpfs, Backing::Allocate)
        .map_err(|error| Refused(format!("a private tmpfs with huge pages can't be used ({error})")))?;
    only_if_huge(made, "a private tmpfs with huge=within_size")
}

fn thp_shmem(request: &SegmentRequest) -> Attempt {
    let setting = sysfs::text("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let selected = sysfs::selected(&setting).unwrap_or("absent");
    if !["always", "within_size", "advise", "force"].contains(&selected) {
        return Err(Refused(format!(
            "/sys/kernel/mm/transparent_hugepage/shmem_enabled is {selected} (set it to advise)"
        )));
    }
    thp_memfd(request, PageKind::ThpShmem, Backing::Populate, "a memfd, though shmem_enabled allows it,")
}

fn thp_collapse(request: &SegmentRequest) -> Attempt {
    thp_memfd(request, PageKind::ThpCollapse, Backing::Collapse, "a memfd with MADV_COLLAPSE")
}

fn thp_memfd(request: &SegmentRequest, kind: PageKind, backing: Backing, what: &str) -> Attempt {
    let made = memfd(request, None)
        .and_then(|file| finish(request, file, kind, backing))
        .and_then(|made| {
            made.mapping.advise(0, made.size_bytes, libc::MADV_HUGEPAGE)?;
            Ok(made)
        })
        .map_err(|error| Refused(format!("{what} can't be used ({error})")))?;
    only_if_huge(made, what)
}

fn small(request: &SegmentRequest) -> Result<Made, ArenaError> {
    let failed = |step, source| ArenaError::Create { size_bytes: request.size_bytes, step, source };
    let file = memfd(request, None).map_err(|error| failed("memfd_create", error))?;
    finish(request, file, PageKind::Small, Backing::Allocate).map_err(|error| failed("size and map", error))
}

fn memfd(request: &SegmentRequest, hugetlb_bytes: Option<u64>) -> io::Result<OwnedFd> {
    let name: String = request.name.chars().filter(|c| c.is_ascii_graphic()).take(NAME_MAX_BYTES).collect();
    sys::memfd(&CString::new(name)?, hugetlb_bytes)
}

/// Sizes and maps a file of ordinary memory.
fn finish(request: &SegmentRequest, file: OwnedFd, kind: PageKind, backing: Backing) -> io::Result<Made> {
    let size_bytes = request.size_bytes.next_multiple_of(SEGMENT_GRAIN_BYTES);
    sys::set_size(file.as_fd(), size_bytes)?;
    if kind != PageKind::ThpTmpfs {
        sys::seal_size(file.as_fd())?;
    }
    let mapping = Mapping::shared(file.as_fd(), length(size_bytes)?, SEGMENT_GRAIN_BYTES as usize)?;
    // For ordinary shared memory the preference is the file's, so clients' touches and fallocate keep to it too.
    let numa_problem = prefer_node(request, &mapping);
    Ok(Made { kind, backing, file, mapping, size_bytes, fallback: None, numa_problem })
}

fn prefer_node(request: &SegmentRequest, mapping: &Mapping) -> Option<String> {
    let node = request.numa_node?;
    let error = mapping.prefer_node(node).err()?;
    Some(format!("memory of NUMA node {node} can't be preferred (mbind: {error})"))
}

fn many_numa_nodes() -> bool {
    let online = sysfs::text("/sys/devices/system/node/has_memory").unwrap_or_default();
    sysfs::index_list(&online).is_some_and(|nodes| nodes.len() > 1)
}

fn length(size_bytes: u64) -> io::Result<usize> {
    usize::try_from(size_bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// madvise answers Ok where huge pages are forbidden, so the first one is taken and looked at.
fn only_if_huge(made: Made, what: &str) -> Attempt {
    let first = 0..granule_bytes(made.kind);
    let taken = back(made.backing, made.file.as_fd(), &made.mapping, &first)
        .and_then(|()| populate(&made.mapping, &first))
        .and_then(|()| huge_mapped_bytes(&made.mapping));
    match taken {
        Ok(0) => Err(Refused(format!("{what} gives 4 KiB pages only"))),
        Ok(_) => Ok(made),
        Err(error) => Err(Refused(format!("{what} gives no pages ({error})"))),
    }
}

/// Bytes of the mapping that huge page-table entries cover (ShmemPmdMapped in /proc/self/smaps).
pub(crate) fn huge_mapped_bytes(mapping: &Mapping) -> io::Result<u64> {
    let start = format!("{:x}-", mapping.base().as_ptr() as usize);
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let ours = smaps
        .match_indices(&start)
        .find(|&(at, _)| at == 0 || smaps.as_bytes()[at - 1] == b'\n')
        .map(|(at, _)| &smaps[at..])
        .ok_or(io::ErrorKind::NotFound)?;
    Ok(sysfs::kib_line_bytes(ours, "ShmemPmdMapped").unwrap_or(0))
}

/// Puts memory behind a range of whole granules. Errors where there is none; nobody gets a signal.
pub(crate) fn back(backing: Backing, file: BorrowedFd<'_>, mapping: &Mapping, run: &Range<u64>) -> io::Result<()> {
    match backing {
        Backing::Reserved => Ok(()),
        Backing::Allocate => sys::allocate(file, run.start, run.end - run.start),
        Backing::Populate => populate(mapping, run),
        Backing::Collapse => {
            let mut at = run.start;
            while at < run.end {
                collapse(file, mapping, at)?;
                at += HUGE_2M_BYTES;
            }
            Ok(())
        }
    }
}

/// One huge page at `at`, or small ones where the kernel finds no huge one now.
fn collapse(file: BorrowedFd<'_>, mapping: &Mapping, at: u64) -> io::Result<()> {
    // The kernel collapses only what a page table exists for, hence the one page first.
    mapping.advise(at, SMALL_PAGE_BYTES, sys::MADV_POPULATE_WRITE)?;
    match mapping.advise(at, HUGE_2M_BYTES, sys::MADV_COLLAPSE) {
        Ok(()) => Ok(()),
        Err(_) => sys::allocate(file, at, HUGE_2M_BYTES),
    }
}

/// Touches the pages of a range that has memory behind it.
pub(crate) fn touch(backing: Backing, mapping: &Mapping, run: &Range<u64>) -> io::Result<()> {
    match backing {
        // Every page of the file is allocated: a fault finds it.
        Backing::Allocate => mapping.touch(run.start, run.end - run.start, SMALL_PAGE_BYTES),
        // Here a fault might still find none, which only the system call survives.
        Backing::Reserved | Backing::Populate | Backing::Collapse => populate(mapping, run),
    }
}

/// Touches the pages of a range through our mapping without changing their bytes, in system calls that fail where there is no memory.
pub(crate) fn populate(mapping: &Mapping, run: &Range<u64>) -> io::Result<()> {
    let mut at = run.start;
    while at < run.end {
        let len = POPULATE_STEP_BYTES.min(run.end - at);
        mapping.advise(at, len, sys::MADV_POPULATE_WRITE)?;
        at += len;
    }
    Ok(())
}
