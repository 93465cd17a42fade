//! A file on a tmpfs that is mounted nowhere.
//!
//! memfds get huge pages only where the administrator has set `transparent_hugepage/shmem_enabled`, which is `never` on
//! most machines. A tmpfs has its own setting, `huge=`, and the mount API can make one that appears in no directory tree and
//! goes away with its last file. It takes the right to mount, which any process has in a user namespace of its own where
//! the machine allows those: then a short-lived child makes the file and passes the descriptor back.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;

/// Room for one descriptor's control message: CMSG_SPACE(4) is 24, rounded up and aligned as cmsghdr.
const CONTROL_WORDS: usize = 8;

/// How a tmpfs gives out huge pages: its `huge=` option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TmpfsHuge {
    /// Huge pages for every part of a file that is inside its size.
    WithinSize,
    /// 4 KiB pages. Only tests ask for it: a file system with a size limit shows what happens when memory ends.
    #[cfg(test)]
    Never,
}

impl TmpfsHuge {
    fn option(self) -> &'static CStr {
        match self {
            TmpfsHuge::WithinSize => c"within_size",
            #[cfg(test)]
            TmpfsHuge::Never => c"never",
        }
    }
}

/// An unnamed file on a new tmpfs that can hold `limit_bytes` and that nobody else can reach.
pub(crate) fn unnamed_file(huge: TmpfsHuge, limit_bytes: u64) -> io::Result<OwnedFd> {
    let limit = CString::new(limit_bytes.to_string())?;
    match open_here(huge.option(), &limit) {
        Ok(fd) => {
            // SAFETY: `open_here` returns a new descriptor that nothing else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        Err(libc::EPERM) => open_in_user_namespace(huge.option(), &limit),
        Err(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The system calls that make file system and file. Also runs in a forked child: no allocation, no locks, only system
/// calls. Errors are errno values.
fn open_here(huge: &CStr, limit: &CStr) -> Result<RawFd, i32> {
    // SAFETY: the name is NUL-terminated and outlives the call.
    let context = errno_or_fd(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) })?;
    let mount = configure_and_mount(context, huge, limit);
    close(context);
    let mount = mount?;
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: `mount` is an open directory and the path is NUL-terminated.
    let file = unsafe { libc::openat(mount, c".".as_ptr(), flags, 0o600) };
    let file = errno_or_fd(i64::from(file));
    close(mount);
    file
}

fn configure_and_mount(context: RawFd, huge: &CStr, limit: &CStr) -> Result<RawFd, i32> {
    for (key, value) in [(c"huge", huge), (c"size", limit), (c"mode", c"0700")] {
        let set = FSCONFIG_SET_STRING;
        // SAFETY: key and value are NUL-terminated and outlive the call.
        errno_or_fd(unsafe { libc::syscall(libc::SYS_fsconfig, context, set, key.as_ptr(), value.as_ptr(), 0) })?;
    }
    let none = ptr::null::<libc::c_char>();
    // SAFETY: this command takes no key and no value.
    errno_or_fd(unsafe { libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_CREATE, none, none, 0) })?;
    // SAFETY: fsmount takes integers only.
    errno_or_fd(unsafe { libc::syscall(libc::SYS_fsmount, context, FSMOUNT_CLOEXEC, 0) })
}

fn errno_or_fd(result: i64) -> Result<RawFd, i32> {
    if result < 0 {
        // SAFETY: the location is always valid for the calling thread.
        Err(unsafe { *libc::__errno_location() })
    } else {
        Ok(result as RawFd)
    }
}

fn close(fd: RawFd) {
    // SAFETY: callers pass a descriptor that they opened and use no more.
    unsafe { libc::close(fd) };
}

/// What the child writes to /proc/self in its new user namespace, made before the fork because the child can't allocate.
struct IdentityMaps {
    users: CString,
    groups: CString,
}

impl IdentityMaps {
    fn of_this_process() -> io::Result<IdentityMaps> {
        // SAFETY: these calls take nothing and always succeed.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        Ok(IdentityMaps {
            users: CString::new(format!("{user} {user} 1"))?,
            groups: CString::new(format!("{group} {group} 1"))?,
        })
    }

    /// Only system calls; see [`open_here`].
    fn enter(&self) -> Result<(), i32> {
        // SAFETY: unshare takes an integer only; the caller is a single-threaded child.
        errno_or_fd(i64::from(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) }))?;
        for (path, text) in [
            (c"/proc/self/setgroups", c"deny"),
            (c"/proc/self/uid_map", self.users.as_c_str()),
            (c"/proc/self/gid_map", self.groups.as_c_str()),
        ] {
            // SAFETY: the path is NUL-terminated.
            let fd = errno_or_fd(i64::from(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY) }))?;
            let bytes = text.to_bytes();
            // SAFETY: `bytes` is readable for its length.
            let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
            let written = errno_or_fd(written as i64);
            close(fd);
            written?;
        }
        Ok(())
    }
}

fn open_in_user_namespace(huge: &CStr, limit: &CStr) -> io::Result<OwnedFd> {
    let maps = IdentityMaps::of_this_process()?;
    let mut pair = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `pair` has room for two descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socketpair returned two new descriptors that nothing else owns.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) };
    // SAFETY: the child runs only `child_of_fork`, which makes system calls and never returns: no allocation and no lock
    // that another thread may have held.
    let child = unsafe { libc::fork() };
    match child {
        0 => child_of_fork(&maps, huge, limit, theirs.as_raw_fd()),
        -1 => return Err(io::Error::last_os_error()),
        _ => {}
    }
    drop(theirs);
    let received = receive_fd(ours.as_raw_fd());
    let mut status = 0;
    // SAFETY: `status` is writable; the process is our own child and waited for only here.
    while unsafe { libc::waitpid(child, &mut status, 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    match received {
        Ok(Some(fd)) => Ok(fd),
        // The child sent nothing: its exit status is the errno that stopped it.
        Ok(None) if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != 0 => {
            Err(io::Error::from_raw_os_error(libc::WEXITSTATUS(status)))
        }
        Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => Err(error),
    }
}

fn child_of_fork(maps: &IdentityMaps, huge: &CStr, limit: &CStr, to: RawFd) -> ! {
    let sent = maps.enter().and_then(|()| open_here(huge, limit)).and_then(|fd| send_fd(to, fd));
    // SAFETY: _exit runs nothing of the parent's in the child.
    unsafe { libc::_exit(sent.err().unwrap_or(0)) }
}

/// Only system calls; see [`open_here`].
fn send_fd(to: RawFd, fd: RawFd) -> Result<(), i32> {
    let mut byte = [0u8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0u64; CONTROL_WORDS];
    let mut message = empty_message(&mut part, &mut control);
    // SAFETY: `control` is aligned for cmsghdr and larger than CMSG_SPACE of one descriptor, so the header and its data
    // are inside it.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
    }
    // SAFETY: `message` and what it points to live until the call returns.
    errno_or_fd(unsafe { libc::sendmsg(to, &message, 0) } as i64).map(drop)
}

/// `None`: the other end closed without sending.
fn receive_fd(from: RawFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0u64; CONTROL_WORDS];
    let mut message = empty_message(&mut part, &mut control);
    loop {
        // SAFETY: `message` and what it points to live until the call returns.
        let received = unsafe { libc::recvmsg(from, &mut message, libc::MSG_CMSG_CLOEXEC) };
        if received > 0 {
            break;
        }
        if received == 0 {
            return Ok(None);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: the kernel filled `control`; CMSG_FIRSTHDR gives null or a whole header inside it.
    let header = unsafe { libc::CMSG_FIRSTHDR(&message).as_ref() };
    let Some(header) = header.filter(|header| header.cmsg_type == libc::SCM_RIGHTS) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    // SAFETY: an SCM_RIGHTS message holds at least one descriptor, which the kernel has just opened for us alone.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()) }))
}

fn empty_message(part: &mut libc::iovec, control: &mut [u64; CONTROL_WORDS]) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control) as _;
    message
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys;

    /// Each way either gives a usable file or says that this machine forbids it, never anything else.
    fn usable_or_forbidden(file: io::Result<OwnedFd>) {
        match file {
            Ok(fd) => {
                sys::set_size(fd.as_fd(), 8 << 20).unwrap();
                assert_eq!(File::from(fd.try_clone().unwrap()).metadata().unwrap().len(), 8 << 20);
                sys::allocate(fd.as_fd(), 0, 4 << 20).unwrap();
                let error = sys::allocate(fd.as_fd(), 0, 8 << 20).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
            }
            Err(error) => assert!(
                matches!(
                    error.raw_os_error(),
                    Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL | libc::ENOSPC)
                ),
                "{error}"
            ),
        }
    }

    #[test]
    fn a_limited_file_system_refuses_to_back_more_than_its_limit() {
        usable_or_forbidden(unnamed_file(TmpfsHuge::WithinSize, 4 << 20));
    }

    #[test]
    fn a_child_in_its_own_user_namespace_hands_the_file_back() {
        let limit = CString::new((4u64 << 20).to_string()).unwrap();
        usable_or_forbidden(open_in_user_namespace(TmpfsHuge::WithinSize.option(), &limit));
    }

    #[test]
    fn what_the_child_could_not_do_comes_back_as_its_error() {
        let error = open_in_user_namespace(c"no-such-policy", c"4096").unwrap_err();
        let errno = error.raw_os_error();
        assert!(matches!(errno, Some(libc::EINVAL | libc::EPERM | libc::EACCES | libc::ENOSYS)), "{error}");
    }
}
