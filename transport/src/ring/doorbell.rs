//! Making and opening a pair of rings, and the eventfds that wake who sleeps.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{eventfd, EventfdFlags};
use rustix::fs::{fallocate, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::layout::{memory_bytes, GEOMETRY_LINE, LINES_MAX, LINES_MIN, MAGIC};
use super::memory::Memory;
use super::sync::Ordering;
use super::{Endpoint, Side};

/// Rings could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The kernel refused.
    #[error("{what} failed: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A number of lines that no ring has.
    #[error("a ring of {got} lines was asked for, expected a power of two from {LINES_MIN} to {LINES_MAX}")]
    Lines {
        /// As asked for.
        got: u32,
    },
    /// The file is shorter than its rings.
    #[error("the rings' memory has {got_bytes} bytes, expected {expected_bytes}: the peer is broken")]
    Size {
        /// Its size.
        got_bytes: u64,
        /// What the rings need.
        expected_bytes: u64,
    },
    /// The peer could shrink the file under our mapping.
    #[error("the rings' memory is not sealed against a change of size: the peer is broken")]
    NotSealed,
    /// The memory is not that of rings, or of others.
    #[error("the rings' memory starts with {got_magic:#018x} and {got_lines} lines, expected {MAGIC:#018x} and {expected_lines}: the peer is broken")]
    Geometry {
        /// Word 0.
        got_magic: u64,
        /// Word 1.
        got_lines: u64,
        /// As agreed.
        expected_lines: u32,
    },
}

fn io_error(what: &'static str) -> impl Fn(Errno) -> SetupError {
    move |errno| SetupError::Io { what, source: errno.into() }
}

/// Forbids any change of the file's size.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Wakes one side: an eventfd.
///
/// **The node rings a client's bell through its own io_uring, not with [`ring`](Self::ring).** Both processes share the open file: a
/// hostile client can make it blocking and its counter full, and a plain write would then hold the node's thread. As a submitted write
/// (8 bytes, a little-endian 1) it holds nothing, and one at a time for each client is enough.
#[derive(Debug)]
pub struct Doorbell(OwnedFd);

impl Doorbell {
    /// A new one.
    ///
    /// # Errors
    /// [`SetupError::Io`] where the process has no descriptor left.
    pub fn new() -> Result<Self, SetupError> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self).map_err(io_error("making an eventfd"))
    }

    /// One that was received.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Wakes the other side.
    pub fn ring(&self) {
        // EAGAIN: the counter is full, so it rings already. Anything else: there is nobody to wake, which the socket tells too.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it silent again, after it has woken us.
    pub fn clear(&self) {
        // EAGAIN: it did not ring.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// For another process, or for a poller of its own.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a pair of rings consists of, for either side.
pub struct Rings {
    /// This side of the rings.
    pub endpoint: Endpoint,
    /// Wakes this side.
    pub own_bell: Doorbell,
    /// Wakes the other side.
    pub peer_bell: Doorbell,
}

impl Rings {
    /// Makes a pair of rings: the node's side of it, and the descriptors for the client ([`RingOpened`](crate::messages::RingOpened)).
    ///
    /// # Errors
    /// [`SetupError`]: a wrong number of lines, or the machine has no memory or descriptor left.
    pub fn create(lines: u32) -> Result<(Self, [OwnedFd; 3]), SetupError> {
        check_lines(lines)?;
        let size = memory_bytes(lines);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("raylet-ring", flags).map_err(io_error("making the rings' memory"))?;
        ftruncate(&file, size).map_err(io_error("sizing the rings' memory"))?;
        // Taken now, so that touching it never fails for want of memory.
        fallocate(&file, FallocateFlags::empty(), 0, size).map_err(io_error("taking the rings' memory"))?;
        fcntl_add_seals(&file, SEALS).map_err(io_error("sealing the rings' memory"))?;
        let memory = map(&file, lines)?;
        let geometry = &memory.lines()[GEOMETRY_LINE];
        geometry[1].store(lines.into(), Ordering::Relaxed);
        geometry[0].store(MAGIC, Ordering::Release);
        let (own_bell, peer_bell) = (Doorbell::new()?, Doorbell::new()?);
        let copy =
            |bell: &Doorbell| bell.try_clone().map_err(|source| SetupError::Io { what: "copying an eventfd", source });
        let descriptors = [file, copy(&own_bell)?, copy(&peer_bell)?];
        Ok((Self { endpoint: Endpoint::new(Arc::new(memory), Side::Node), own_bell, peer_bell }, descriptors))
    }

    /// The client's side, from the descriptors that came with [`RingOpened`](crate::messages::RingOpened).
    ///
    /// # Errors
    /// [`SetupError`]: the memory is not what it should be.
    pub fn open(lines: u32, [file, node_bell, client_bell]: [OwnedFd; 3]) -> Result<Self, SetupError> {
        check_lines(lines)?;
        let got_bytes = fstat(&file).map_err(io_error("looking at the rings' memory"))?.st_size as u64;
        let expected_bytes = memory_bytes(lines);
        if got_bytes < expected_bytes {
            return Err(SetupError::Size { got_bytes, expected_bytes });
        }
        let seals = fcntl_get_seals(&file).map_err(io_error("looking at the seals of the rings' memory"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(SetupError::NotSealed);
        }
        let memory = map(&file, lines)?;
        let geometry = &memory.lines()[GEOMETRY_LINE];
        let (got_magic, got_lines) = (geometry[0].load(Ordering::Acquire), geometry[1].load(Ordering::Relaxed));
        if got_magic != MAGIC || got_lines != u64::from(lines) {
            return Err(SetupError::Geometry { got_magic, got_lines, expected_lines: lines });
        }
        Ok(Self {
            endpoint: Endpoint::new(Arc::new(memory), Side::Client),
            own_bell: Doorbell::from_fd(client_bell),
            peer_bell: Doorbell::from_fd(node_bell),
        })
    }
}

fn check_lines(lines: u32) -> Result<(), SetupError> {
    match lines.is_power_of_two() && (LINES_MIN..=LINES_MAX).contains(&lines) {
        true => Ok(()),
        false => Err(SetupError::Lines { got: lines }),
    }
}

fn map(file: &OwnedFd, lines: u32) -> Result<Memory, SetupError> {
    let size = memory_bytes(lines);
    let map = memmap2::MmapOptions::new()
        .len(size as usize)
        .populate()
        .map_raw(file.as_raw_fd())
        .map_err(|source| SetupError::Io { what: "mapping the rings' memory", source })?;
    Memory::mapped(map, lines).ok_or(SetupError::Size { got_bytes: 0, expected_bytes: size })
}
