//! Places at which a client's process can be made to die, for tests of what the node does then.
//!
//! Each [`Point`] stands on a line after which half of something is done. Without the feature `fault-injection` nothing is compiled
//! there; with it a process that has [`arm`]ed a point is killed, as by `kill -9`, when it passes the point for the n-th time. Others,
//! such as a node in the same build, pass.

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
