//! Limits of this process that a node raises as far as it may, and what it wants of the machine.
//! [`crate::doctor`] says where they are too low.

use crate::sys;

/// The limit of locked memory without which no core starts, however many there are: glommio 0.9 asks for it, as root too. The
/// node locks nothing: since Linux 5.12 rings are not counted there, and it registers no buffers.
pub const MEMLOCK_WANTED_BYTES: u64 = 512 << 10;
/// Open files below which a node with a few hundred workers runs out: each has several sockets and log files.
pub const OPEN_FILES_WANTED: u64 = 65_536;
/// The oldest kernel whose io_uring and memory calls suffice (IORING_SETUP_DEFER_TASKRUN and MADV_COLLAPSE are of 6.1).
pub const KERNEL_WANTED: (u32, u32) = (6, 1);

/// Raises the soft limit of open files to the hard one. Returns the soft limit that holds then; `None`: unlimited.
pub fn raise_open_files() -> std::io::Result<Option<u64>> {
    raise(libc::RLIMIT_NOFILE)
}

/// Raises the soft limit of locked memory to the hard one, as [`raise_open_files`].
pub fn raise_memlock() -> std::io::Result<Option<u64>> {
    raise(libc::RLIMIT_MEMLOCK)
}

fn raise(resource: libc::__rlimit_resource_t) -> std::io::Result<Option<u64>> {
    let (soft, hard) = sys::rlimit(resource)?;
    if soft < hard {
        sys::set_soft_rlimit(resource, hard, hard)?;
    }
    let limit = hard.max(soft);
    Ok((limit != libc::RLIM_INFINITY).then_some(limit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    #[test]
    fn open_files_are_raised_to_the_hard_limit() {
        let raised = raise_open_files().unwrap();
        let limit = Host::this().limit("Max open files").unwrap();
        assert_eq!((limit.soft, limit.soft), (raised, limit.hard));
    }
}
