//! Places at which a client's process can be made to die, for tests of what the node does then.
//!
//! Each [`Point`] stands on a line after which half of something is done. Without the feature `fault-injection` nothing is compiled
//! there; with it a process that has [`arm`]ed a point is killed, as by `kill -9`, when it passes the point for the n-th time. Others,
//! such as a node in the same build, pass. Operations on files can be made to fail likewise (`arm_file`), on the thread that arms them.

#[cfg(not(any(test, feature = "fault-injection")))]
use std::io;

#[cfg(not(any(test, feature = "fault-injection")))]
use crate::uring::{FileOperation, FileResult};

/// Where a process can die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Point {
    /// The further lines of a long record are in the ring and stamped, its first line is not.
    FurtherLines = 1,
    /// All words of a record are in the ring, its stamp is not.
    RecordWritten,
    /// A record is stamped; its writer does not count it yet, and has not looked whether the node sleeps.
    RecordStamped,
    /// The node's announcement of sleep was taken back, and its bell has not rung.
    SleeperChosen,
    /// The client has said that it sleeps.
    SleepAnnounced,
    /// The client knows the node's memory and has not asked for rings.
    Welcomed,
    /// The rings are there and nothing was written.
    RingOpened,
    /// A run of memory was granted.
    CreditTaken,
    /// An object is in its run and not published.
    ObjectCopied,
    /// An object is published.
    ObjectPublished,
    /// An object was created; nothing of it is written.
    ObjectCreated,
    /// An object is written and not sealed.
    ObjectWritten,
    /// An object was got and is in use.
    ObjectGot,
    /// A lease was granted.
    LeaseGranted,
    /// A worker has registered.
    WorkerRegistered,
    /// A worker has taken an assignment.
    WorkTaken,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::FurtherLines,
        Self::RecordWritten,
        Self::RecordStamped,
        Self::SleeperChosen,
        Self::SleepAnnounced,
        Self::Welcomed,
        Self::RingOpened,
        Self::CreditTaken,
        Self::ObjectCopied,
        Self::ObjectPublished,
        Self::ObjectCreated,
        Self::ObjectWritten,
        Self::ObjectGot,
        Self::LeaseGranted,
        Self::WorkerRegistered,
        Self::WorkTaken,
    ];
}

/// This process has come to a point.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub(crate) fn pass(_: Point) {}

/// What the kernel made of an operation on a file.
#[cfg(not(any(test, feature = "fault-injection")))]
#[inline(always)]
pub(crate) fn file_result(_: &FileOperation, result: io::Result<FileResult>) -> io::Result<FileResult> {
    result
}

/// What a plain read of a file came to.
#[cfg(not(any(test, feature = "fault-injection")))]
#[inline(always)]
pub(crate) fn read_result(_: &mut [u8], result: io::Result<usize>) -> io::Result<usize> {
    result
}

#[cfg(any(test, feature = "fault-injection"))]
pub use files::{arm_file, FileFault, FileKind};
#[cfg(any(test, feature = "fault-injection"))]
pub(crate) use files::{file_result, read_result};

/// Faults of disks, on the thread that arms them.
#[cfg(any(test, feature = "fault-injection"))]
mod files {
    use std::cell::RefCell;
    use std::io;

    use crate::uring::{FileOperation, FileResult};

    /// Which operations fail.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum FileKind {
        /// Opening.
        Open,
        /// Giving room.
        Allocate,
        /// Writing.
        Write,
        /// Reading.
        Read,
    }

    /// How.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum FileFault {
        /// With this error number.
        Error(i32),
        /// Only so many bytes are moved, as it is told.
        Short(u32),
        /// One bit of what was read is another.
        Flip,
    }

    thread_local! {
        static FAULTS: RefCell<Vec<(FileKind, u32, u32, FileFault)>> = const { RefCell::new(Vec::new()) };
    }

    /// The next `times` operations of this kind fail, once `passes` of them have passed.
    pub fn arm_file(kind: FileKind, passes: u32, times: u32, fault: FileFault) {
        FAULTS.with_borrow_mut(|faults| faults.push((kind, passes, times, fault)));
    }

    /// What the kernel made of an operation on a file, or what a fault makes of it.
    pub(crate) fn file_result(operation: &FileOperation, result: io::Result<FileResult>) -> io::Result<FileResult> {
        let kind = match operation {
            FileOperation::Open { .. } => FileKind::Open,
            FileOperation::Allocate { .. } => FileKind::Allocate,
            FileOperation::Write { .. } => FileKind::Write,
            FileOperation::Read { .. } => FileKind::Read,
            FileOperation::Unlink { .. }
            | FileOperation::Copy { .. }
            | FileOperation::Send { .. }
            | FileOperation::Receive { .. } => return result,
        };
        match FAULTS.with_borrow_mut(|faults| next(faults, kind)) {
            Some(FileFault::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(FileFault::Short(most)) => result.map(|result| match result {
                FileResult::Done(moved) => FileResult::Done(moved.min(most)),
                opened => opened,
            }),
            Some(FileFault::Flip) => {
                if let FileOperation::Read { memory, offset, .. } = operation {
                    let mut byte = [0];
                    if memory.read(*offset + 30, &mut byte) {
                        assert!(memory.write(*offset + 30, &[byte[0] ^ 4]));
                    }
                }
                result
            }
            None => result,
        }
    }

    /// What a plain read came to, or what a fault makes of it.
    pub(crate) fn read_result(bytes: &mut [u8], result: io::Result<usize>) -> io::Result<usize> {
        match FAULTS.with_borrow_mut(|faults| next(faults, FileKind::Read)) {
            Some(FileFault::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(FileFault::Short(most)) => result.map(|read| read.min(most as usize)),
            Some(FileFault::Flip) => {
                bytes.iter_mut().take(4096).for_each(|byte| *byte ^= 4);
                result
            }
            None => result,
        }
    }

    fn next(faults: &mut Vec<(FileKind, u32, u32, FileFault)>, kind: FileKind) -> Option<FileFault> {
        let at = faults.iter().position(|fault| fault.0 == kind)?;
        let (_, passes, times, fault) = &mut faults[at];
        if *passes > 0 {
            *passes -= 1;
            return None;
        }
        *times -= 1;
        let (over, fault) = (*times == 0, *fault);
        if over {
            faults.remove(at);
        }
        Some(fault)
    }
}

#[cfg(feature = "fault-injection")]
pub use armed::arm;
#[cfg(feature = "fault-injection")]
pub(crate) use armed::pass;

#[cfg(feature = "fault-injection")]
mod armed {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Point;

    /// The point that was armed; 0: none.
    static POINT: AtomicU32 = AtomicU32::new(0);
    /// How often it may still be passed.
    static PASSES: AtomicU32 = AtomicU32::new(0);

    /// This process dies when it comes to `point` after having passed it so many times.
    pub fn arm(point: Point, passes: u32) {
        PASSES.store(passes, Ordering::Relaxed);
        POINT.store(point as u32, Ordering::Release);
    }

    /// This process has come to a point.
    #[inline]
    pub(crate) fn pass(point: Point) {
        if POINT.load(Ordering::Acquire) == point as u32 {
            come_to();
        }
    }

    #[cold]
    fn come_to() {
        let counted = PASSES.fetch_update(Ordering::AcqRel, Ordering::Acquire, |passes| passes.checked_sub(1));
        if counted.is_err() {
            // Nothing may be tidied up, by this thread or any other.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::process::abort();
        }
    }
}
