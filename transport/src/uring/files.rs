//! Files on a core's ring: opened, given room, written, read and removed without a thread waiting; and sockets, where bytes go from
//! memory that is not the caller's into the socket, or the other way, without a copy between.
//!
//! Whoever asks hands over what the kernel works on; the ring keeps it until the kernel is done, also where the ring itself ends first.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use rustix::fs::OFlags;
use rustix::net::{RecvFlags, SendFlags};

use super::CoreRing;

/// Memory that the kernel may read from or write to while an operation is under way: a segment, or a buffer.
///
/// # Safety
/// For as long as the value lives, what [`Self::address`] returned stays mapped, readable and writable, and no Rust reference to these
/// bytes exists while an operation is under way.
pub unsafe trait IoMemory: std::fmt::Debug {
    /// Where a range lies; `None` where it is not inside.
    fn address(&self, offset: u64, len: usize) -> Option<NonNull<u8>>;

    /// Copies bytes out; false where the range is not inside.
    #[must_use]
    fn read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let Some(from) = self.address(offset, bytes.len()) else {
            return false;
        };
        // SAFETY: the range is mapped and readable by the trait's contract, and `bytes` is the caller's own.
        unsafe { std::ptr::copy(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// Copies bytes in; false where the range is not inside.
    #[must_use]
    fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let Some(to) = self.address(offset, bytes.len()) else {
            return false;
        };
        // SAFETY: the range is mapped and writable by the trait's contract, and `bytes` is the caller's own.
        unsafe { std::ptr::copy(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        true
    }

    /// CRC-32C of a range, continuing `sum`; `None` where it is not inside. Others may map the memory, so it is copied out piece by
    /// piece.
    fn checksum(&self, offset: u64, len: u64, mut sum: u32) -> Option<u32> {
        let mut through = [0; THROUGH_BYTES];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(THROUGH_BYTES as u64);
            let through = &mut through[..now as usize];
            if !self.read(offset.checked_add(done)?, through) {
                return None;
            }
            sum = crate::checksum::append(sum, through);
            done += now;
        }
        Some(sum)
    }
}

/// Bytes that are copied out of memory at a time, for their checksum.
const THROUGH_BYTES: usize = 16 << 10;

/// Memory of our own that O_DIRECT takes: it starts on a page and is whole pages long. Zero at the beginning.
#[derive(Debug)]
pub struct PageBuffer(memmap2::MmapRaw);

impl PageBuffer {
    /// At least `bytes`, in whole pages of 4 KiB.
    ///
    /// # Errors
    /// Where the system has no memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let len = bytes.max(1).next_multiple_of(4096);
        Ok(Self(memmap2::MmapMut::map_anon(len)?.into()))
    }

    /// Its length in bytes.
    pub fn size_bytes(&self) -> usize {
        self.0.len()
    }

    /// Its bytes, while no operation is under way: those keep it shared.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is this long, readable, writable and initialised, and lives as long as the value. Operations on it, and
        // whoever may have asked for its address for them, keep the value in an `Rc` or `Arc`, so that nobody could borrow it alone.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr(), self.0.len()) }
    }
}

// SAFETY: the mapping lives as long as the value, and nobody makes a reference into it.
unsafe impl IoMemory for PageBuffer {
    fn address(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(len)?;
        // SAFETY: the sum stays within the mapping, as was just checked.
        (end <= self.0.len()).then(|| NonNull::new(unsafe { self.0.as_mut_ptr().add(start) }))?
    }
}

// SAFETY: what the contract says of the memory holds for as long as any owner lives, and this is one.
unsafe impl<M: IoMemory> IoMemory for Arc<M> {
    fn address(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        (**self).address(offset, len)
    }
}

/// An operation on a file.
#[derive(Debug)]
pub enum FileOperation {
    /// Makes a new file, or opens one to read it. Result: the descriptor, in [`FileResult::Opened`].
    Open {
        /// Which.
        path: CString,
        /// New and to be written; else it is there and is read.
        create: bool,
        /// Past the page cache (O_DIRECT).
        direct: bool,
    },
    /// Gives a file its length and the room for it.
    Allocate {
        /// Which.
        file: Rc<OwnedFd>,
        /// How long, in bytes.
        bytes: u64,
    },
    /// Writes a range of memory. Result: how much was written.
    Write {
        /// To which file.
        file: Rc<OwnedFd>,
        /// From which byte of the file on.
        at: u64,
        /// From which memory.
        memory: Rc<dyn IoMemory>,
        /// From which byte of it on.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Reads into a range of memory. Result: how much was read; 0 at the end of the file.
    Read {
        /// From which file.
        file: Rc<OwnedFd>,
        /// From which byte of the file on.
        at: u64,
        /// To which memory.
        memory: Rc<dyn IoMemory>,
        /// From which byte of it on.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Copies from the memory of another process, which its descriptor opens, into a range of memory. Result: how much was copied; 0
    /// at the other memory's end.
    Copy {
        /// The other memory.
        from: Rc<OwnedFd>,
        /// From which byte of it on.
        at: u64,
        /// To which memory.
        memory: Rc<dyn IoMemory>,
        /// From which byte of it on.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// By a thread of the kernel's, while this one goes on.
        aside: bool,
    },
    /// Removes a file.
    Unlink {
        /// Which.
        path: CString,
    },
    /// Sends a range of memory, all of it unless the connection breaks. Result: how much was sent.
    Send {
        /// Over which connected socket, one that blocks.
        socket: Rc<OwnedFd>,
        /// From which memory.
        memory: Rc<dyn IoMemory>,
        /// From which byte of it on.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Receives into a range of memory. Result: how much came, which is less than the range only where the connection ends, or
    /// where `some` will do; 0 at its end.
    Receive {
        /// From which connected socket, one that blocks.
        socket: Rc<OwnedFd>,
        /// To which memory.
        memory: Rc<dyn IoMemory>,
        /// From which byte of it on.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// What is there is enough.
        some: bool,
    },
}

/// Goes on until all bytes are moved: io_uring heeds the flag of `recv` for `send` too.
const WAIT_FOR_ALL: u32 = RecvFlags::WAITALL.bits();

/// What an operation came to.
#[derive(Debug)]
pub enum FileResult {
    /// The file is open.
    Opened(OwnedFd),
    /// So many bytes were moved; 0 for what moves none.
    Done(u32),
}

/// One operation that is under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    key: u64,
    /// Keeps descriptor, memory and path until the kernel is done.
    operation: FileOperation,
}

impl CoreRing {
    /// Begins an operation on a file. `key` comes back with [`Completion::File`](super::Completion::File), also where the range is
    /// not inside its memory.
    pub fn begin(&mut self, key: u64, operation: FileOperation) {
        let entry = entry_of(&operation);
        let slot = self.files.insert(UnderWay { key, operation }) as u64;
        match entry {
            Some(entry) => self.push(entry.user_data(super::FILE | slot)),
            None => self.push(opcode::Nop::new().build().user_data(super::OUTSIDE | slot)),
        }
    }

    /// Operations on files that are under way.
    pub fn files_under_way(&self) -> usize {
        self.files.len()
    }

    pub(super) fn file_done(&mut self, slot: u64, result: i32) -> Option<(u64, io::Result<FileResult>)> {
        let UnderWay { key, operation } = self.files.try_remove(usize::try_from(slot).ok()?)?;
        let result = match u32::try_from(result) {
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
            Ok(_) if matches!(operation, FileOperation::Open { .. }) => {
                // SAFETY: the kernel has just made this descriptor for this request, so nobody else owns it.
                Ok(FileResult::Opened(unsafe { OwnedFd::from_raw_fd(result) }))
            }
            Ok(moved) => Ok(FileResult::Done(moved)),
        };
        Some((key, crate::fault::file_result(&operation, result)))
    }
}

fn entry_of(operation: &FileOperation) -> Option<squeue::Entry> {
    Some(match operation {
        FileOperation::Open { path, create, direct } => {
            let mut flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
            flags |= if *create { OFlags::RDWR | OFlags::CREATE | OFlags::EXCL } else { OFlags::RDONLY };
            flags.set(OFlags::DIRECT, *direct);
            let here = types::Fd(rustix::fs::CWD.as_raw_fd());
            opcode::OpenAt::new(here, path.as_ptr()).flags(flags.bits() as i32).mode(0o600).build()
        }
        FileOperation::Allocate { file, bytes } => opcode::Fallocate::new(types::Fd(file.as_raw_fd()), *bytes).build(),
        FileOperation::Write { file, at, memory, offset, len } => {
            let from = memory.address(*offset, *len as usize)?;
            opcode::Write::new(types::Fd(file.as_raw_fd()), from.as_ptr(), *len).offset(*at).build()
        }
        FileOperation::Read { file, at, memory, offset, len } => {
            let to = memory.address(*offset, *len as usize)?;
            opcode::Read::new(types::Fd(file.as_raw_fd()), to.as_ptr(), *len).offset(*at).build()
        }
        FileOperation::Copy { from, at, memory, offset, len, aside } => {
            let to = memory.address(*offset, *len as usize)?;
            let read = opcode::Read::new(types::Fd(from.as_raw_fd()), to.as_ptr(), *len).offset(*at).build();
            if *aside {
                read.flags(squeue::Flags::ASYNC)
            } else {
                read
            }
        }
        FileOperation::Send { socket, memory, offset, len } => {
            let from = memory.address(*offset, *len as usize)?;
            let send = opcode::Send::new(types::Fd(socket.as_raw_fd()), from.as_ptr(), *len);
            send.flags((SendFlags::NOSIGNAL.bits() | WAIT_FOR_ALL) as i32).build()
        }
        FileOperation::Receive { socket, memory, offset, len, some } => {
            let to = memory.address(*offset, *len as usize)?;
            let receive = opcode::Recv::new(types::Fd(socket.as_raw_fd()), to.as_ptr(), *len);
            receive.flags(if *some { 0 } else { WAIT_FOR_ALL as i32 }).build()
        }
        FileOperation::Unlink { path } => {
            opcode::UnlinkAt::new(types::Fd(rustix::fs::CWD.as_raw_fd()), path.as_ptr()).build()
        }
    })
}

impl Drop for CoreRing {
    fn drop(&mut self) {
        // The kernel may still be at work on these; their memory must outlive it, and nobody is left to hear when that is.
        std::mem::forget(std::mem::take(&mut self.files));
    }
}
