//! The system calls of this crate, wrapped so that the other modules need no `unsafe`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

/// `MADV_POPULATE_WRITE` (Linux 5.14): fault pages in for writing without changing their bytes; errors instead of SIGBUS.
pub(crate) const MADV_POPULATE_WRITE: i32 = 23;
/// `MADV_COLLAPSE` (Linux 6.1): make huge pages out of small ones now, whatever sysfs allows by default.
pub(crate) const MADV_COLLAPSE: i32 = 25;

/// `MPOL_PREFERRED`: take pages from this NUMA node while it has some.
const MPOL_PREFERRED: i32 = 1;
/// Bits in the node mask handed to mbind.
const MAX_NUMA_NODES: u32 = 1024;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// An anonymous memory file. `hugetlb_bytes`: take its pages from the pool of pages of that size.
pub(crate) fn memfd(name: &CStr, hugetlb_bytes: Option<u64>) -> io::Result<OwnedFd> {
    let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    if let Some(bytes) = hugetlb_bytes {
        flags |= libc::MFD_HUGETLB | (bytes.trailing_zeros() << libc::MFD_HUGE_SHIFT);
    }
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
    // SAFETY: memfd_create returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forbids that anyone who has the descriptor changes the file's size: a client that shrank it would kill the others.
pub(crate) fn seal_size(fd: BorrowedFd<'_>) -> io::Result<()> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl with an integer argument touches no memory of ours.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

/// Sets the file's size. A hugetlb file wants a multiple of its page size.
pub(crate) fn set_size(fd: BorrowedFd<'_>, size_bytes: u64) -> io::Result<()> {
    let size = i64::try_from(size_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: ftruncate touches no memory of ours.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }).map(drop)
}

/// Takes memory for a range of the file, so that no later access to it can fail for want of memory.
pub(crate) fn allocate(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = match (i64::try_from(offset), i64::try_from(len)) {
        (Ok(offset), Ok(len)) => (offset, len),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    loop {
        // SAFETY: fallocate touches no memory of ours.
        match check(unsafe { libc::fallocate(fd.as_raw_fd(), 0, offset, len) }) {
            // A signal makes tmpfs give back what this call took, so it is begun again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// A shared, writable mapping of a whole file. Other processes write to it at any time, so it is never a Rust reference:
/// bytes go in and out through copies, or through the raw pointer for the kernel's sake.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory with no thread affinity; it is unmapped once, on drop.
unsafe impl Send for Mapping {}
// SAFETY: through `&Mapping` bytes are only copied in and out with raw pointers, as memory that other processes share
// needs anyway; who may write which range when is the store's protocol.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` at an address that is a multiple of `align` (a power of two), as huge entries in the
    /// page table need.
    pub(crate) fn shared(fd: BorrowedFd<'_>, len: usize, align: usize) -> io::Result<Mapping> {
        let room = len.checked_add(align).filter(|_| len > 0).ok_or(io::ErrorKind::InvalidInput)?;
        let hold_flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes, no memory of ours is replaced.
        let hold = unsafe { libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, hold_flags, -1, 0) };
        if hold == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = (hold as usize).next_multiple_of(align);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: [start, start + len) lies inside the address range held just above, which nothing else uses.
        let base = unsafe { libc::mmap(start as *mut libc::c_void, len, protection, flags, fd.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // SAFETY: gives the held range back; no pointer into it was handed out.
            unsafe { libc::munmap(hold, room) };
            return Err(error);
        }
        let head = start - hold as usize;
        if head > 0 {
            // SAFETY: the part of the held range before the mapping.
            unsafe { libc::munmap(hold, head) };
        }
        let tail = room - head - len;
        if tail > 0 {
            // SAFETY: the part of the held range after the mapping; `len` is a multiple of the page size by contract of
            // the callers, who round sizes up to 2 MiB at least.
            unsafe { libc::munmap((start + len) as *mut libc::c_void, tail) };
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Mapping { base, len })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The address of `offset`, if `len` bytes from there are inside the mapping.
    pub(crate) fn at(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.len as u64 {
            return None;
        }
        // SAFETY: `offset <= end <= self.len`, so the result is inside the mapping or one past its end.
        Some(unsafe { self.base.add(offset as usize) })
    }

    /// Copies `bytes` in. The caller has made sure that memory backs the range. False: out of bounds, nothing done.
    #[must_use]
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let Some(to) = self.at(offset, bytes.len() as u64) else {
            return false;
        };
        // SAFETY: `at` checked that the range is inside the mapping, which is writable and lives as long as `self`;
        // `bytes` is a live reference and so can't be part of the mapping, which is never lent as a reference.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        true
    }

    /// Copies bytes out; as [`Mapping::write`].
    #[must_use]
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, bytes.len() as u64) else {
            return false;
        };
        // SAFETY: as in `write`, the other way round.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// Faults pages in for writing, one per `step_bytes`, without changing their bytes. The range must have memory behind it already:
    /// touching any other is a SIGBUS.
    ///
    /// `MADV_POPULATE_WRITE` does the same in one call, but holds the process's memory map while it does. A fault holds only this
    /// mapping, so a thread that touches, and is left waiting in the middle, keeps nobody from allocating memory.
    pub(crate) fn touch(&self, offset: u64, len: u64, step_bytes: u64) -> io::Result<()> {
        let start = self.at(offset, len).ok_or(io::ErrorKind::InvalidInput)?;
        for at in (0..len as usize).step_by(step_bytes as usize) {
            // SAFETY: `at` is below `len`, which was checked to lie inside the mapping; the mapping is writable, never lent as a
            // reference, and shared with other processes, so its bytes are only touched atomically here.
            let byte = unsafe { AtomicU8::from_ptr(start.as_ptr().add(at)) };
            // A store of what is there. (A compiler may turn an `or` with 0 into a load, which faults in for reading only.)
            let _ = byte.fetch_update(Ordering::Relaxed, Ordering::Relaxed, Some);
        }
        Ok(())
    }

    /// madvise on a range. Only advice that keeps the bytes is used in this crate.
    pub(crate) fn advise(&self, offset: u64, len: u64, advice: i32) -> io::Result<()> {
        debug_assert!(
            [MADV_POPULATE_WRITE, MADV_COLLAPSE, libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE].contains(&advice)
        );
        let at = self.at(offset, len).ok_or(io::ErrorKind::InvalidInput)?;
        loop {
            // SAFETY: the range is inside the mapping, and the advice (asserted above) changes no bytes.
            match check(unsafe { libc::madvise(at.as_ptr().cast(), len as usize, advice) }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(drop),
            }
        }
    }

    /// Prefers one NUMA node's memory for pages that this mapping takes, and for all of a shmem file's pages.
    /// Preferred rather than bound: a hugetlb page that a bound node lacks would be a SIGBUS.
    pub(crate) fn prefer_node(&self, node: u32) -> io::Result<()> {
        if node >= MAX_NUMA_NODES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut mask = [0u64; (MAX_NUMA_NODES / 64) as usize];
        mask[(node / 64) as usize] = 1 << (node % 64);
        // SAFETY: the range is our mapping; the mask outlives the call and has the number of bits that is passed
        // (the kernel reads one bit less than maxnode says, hence the + 1).
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.base.as_ptr(),
                self.len,
                MPOL_PREFERRED,
                mask.as_ptr(),
                u64::from(MAX_NUMA_NODES) + 1,
                0u32,
            )
        };
        check(result as libc::c_int).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are what mmap gave; nothing uses the memory after its owner is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Soft and hard limit of a resource, in the resource's own unit.
pub(crate) fn rlimit(resource: libc::__rlimit_resource_t) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that the call fills.
    check(unsafe { libc::getrlimit(resource, &mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Sets the soft limit of a resource.
pub(crate) fn set_soft_rlimit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a valid rlimit that the call reads.
    check(unsafe { libc::setrlimit(resource, &limit) }).map(drop)
}

/// Indices of the hardware threads that this thread may run on.
pub(crate) fn allowed_pus() -> io::Result<Vec<u32>> {
    // SAFETY: all-zero is a valid cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable and has the size that is passed; 0 means the calling thread.
    check(unsafe { libc::sched_getaffinity(0, std::mem::size_of_val(&set), &mut set) })?;
    // SAFETY: CPU_ISSET reads a bit of `set`; the index is below CPU_SETSIZE.
    Ok((0..libc::CPU_SETSIZE as u32).filter(|&pu| unsafe { libc::CPU_ISSET(pu as usize, &set) }).collect())
}

/// Makes the calling thread run only when nothing else wants the core.
pub(crate) fn become_idle_priority() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameter` is valid; 0 means the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameter) })?;
    // SAFETY: no memory is passed; on Linux, id 0 means the calling thread only.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) }).map(drop)
}

/// Whether something keeps the machine's clock right (the kernel's STA_UNSYNC flag is off).
pub(crate) fn clock_is_synchronized() -> io::Result<bool> {
    // SAFETY: all-zero is a valid timex, whose `modes` of 0 only asks.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is writable.
    check(unsafe { libc::adjtimex(&mut timex) })?;
    Ok(timex.status & libc::STA_UNSYNC == 0)
}

/// The NUMA node of the page at each address of this process; an error number, negative, where there is no page yet.
pub(crate) fn nodes_of_pages(pages: &[*const libc::c_void]) -> io::Result<Vec<i32>> {
    let mut nodes = vec![0i32; pages.len()];
    // SAFETY: `pages` and `nodes` have the length that is passed; without target nodes (null) the call only asks, and the
    // addresses are looked up by the kernel, not read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_ptr(),
            ptr::null::<libc::c_int>(),
            nodes.as_mut_ptr(),
            0,
        )
    };
    check(result as libc::c_int)?;
    Ok(nodes)
}

/// Total and free bytes of the file system at `path`.
pub(crate) fn filesystem_bytes(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid statvfs.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated and `stat` writable.
    check(unsafe { libc::statvfs(path.as_ptr(), &mut stat) })?;
    Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// Lets the calling thread run on one hardware thread only.
#[cfg(test)]
pub(crate) fn run_only_on(pu: u32) -> io::Result<()> {
    // SAFETY: all-zero is a valid, empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: sets one bit of `set`; the index comes from `allowed_pus` and so is below CPU_SETSIZE.
    unsafe { libc::CPU_SET(pu as usize, &mut set) };
    // SAFETY: `set` is readable and has the size that is passed; 0 means the calling thread.
    check(unsafe { libc::sched_setaffinity(0, std::mem::size_of_val(&set), &set) }).map(drop)
}

/// The kernel's id of the calling thread.
#[cfg(test)]
pub(crate) fn thread_id() -> u64 {
    // SAFETY: gettid takes nothing and always succeeds.
    unsafe { libc::gettid() as u64 }
}
