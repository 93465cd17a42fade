//! The warm reserve: a helper thread that touches pages before a client needs them.
//!
//! The first touch of a page is most of the cost of a large put (the kernel clears it), so the node's allocator says which
//! range it will hand out next ([`Warmer::wanted`]) and this thread touches it while the machine has nothing better to do:
//! it runs at idle priority and blocks while there is nothing to touch. Warming is best effort; what it did not get to is
//! backed when it is handed out, as ever.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TrySendError};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};

use crate::arena::Segment;
use crate::sys;

/// Wishes that wait at most; more are dropped, because a newer wish says better what is wanted.
pub const WISHES_MAX: usize = 256;
/// Bytes touched between two looks at whether to stop.
const STEP_BYTES: u64 = 8 << 20;

/// What the warm reserve has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmStats {
    /// Bytes that this thread touched first.
    pub touched_bytes: u64,
    /// Wishes that found the queue full.
    pub dropped_wishes: u64,
    /// Ranges given up because memory for them could not be had.
    pub failed_ranges: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    #[cfg(test)]
    thread_id: AtomicU64,
    touched_bytes: AtomicU64,
    dropped_wishes: AtomicU64,
    failed_ranges: AtomicU64,
}

#[derive(Debug)]
struct Wish {
    segment: usize,
    range: Range<u64>,
}

/// The helper thread. Dropping it stops it.
#[derive(Debug)]
pub struct Warmer {
    wishes: Option<SyncSender<Wish>>,
    reserve_bytes: u64,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Warmer {
    /// Starts the thread, which first touches the beginning of the segments: `reserve_bytes` in all, an equal share each.
    /// Later wishes are cut to `reserve_bytes` too, so the node never touches more than that ahead of what it hands out.
    pub fn start(segments: Vec<Arc<Segment>>, reserve_bytes: u64) -> io::Result<Warmer> {
        let (wishes, wanted) = sync_channel(WISHES_MAX);
        let shared = Arc::new(Shared::default());
        let worker = Worker { segments, shared: Arc::clone(&shared) };
        let thread =
            thread::Builder::new().name("warm-reserve".into()).spawn(move || worker.run(&wanted, reserve_bytes))?;
        Ok(Warmer { wishes: Some(wishes), reserve_bytes, shared, thread: Some(thread) })
    }

    /// Says that `range` of the segment with this index will be handed out next. Never blocks. False: the queue is full
    /// and the wish is dropped; wish again when more is handed out.
    pub fn wanted(&self, segment: usize, range: Range<u64>) -> bool {
        let end = range.end.min(range.start.saturating_add(self.reserve_bytes));
        let wish = Wish { segment, range: range.start..end };
        if wish.range.is_empty() {
            return true;
        }
        match self.wishes.as_ref().map(|wishes| wishes.try_send(wish)) {
            Some(Ok(())) => true,
            Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) | None => {
                self.shared.dropped_wishes.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    /// What has been done so far. What each segment has touched in all is [`Segment::touched_bytes`].
    pub fn stats(&self) -> WarmStats {
        WarmStats {
            touched_bytes: self.shared.touched_bytes.load(Ordering::Relaxed),
            dropped_wishes: self.shared.dropped_wishes.load(Ordering::Relaxed),
            failed_ranges: self.shared.failed_ranges.load(Ordering::Relaxed),
        }
    }

    /// Stops the thread and waits for it: at most one step, a few milliseconds.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wishes = None;
        if let Some(thread) = self.thread.take() {
            if thread.join().is_err() {
                tracing::error!("the warm reserve's thread panicked; pages are no longer touched ahead of demand");
            }
        }
    }
}

impl Drop for Warmer {
    fn drop(&mut self) {
        self.end();
    }
}

struct Worker {
    segments: Vec<Arc<Segment>>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(&self, wanted: &Receiver<Wish>, reserve_bytes: u64) {
        #[cfg(test)]
        self.shared.thread_id.store(sys::thread_id(), Ordering::Relaxed);
        if let Err(error) = sys::become_idle_priority() {
            tracing::warn!(%error, "the warm reserve runs at normal priority");
        }
        let share_bytes = reserve_bytes / self.segments.len().max(1) as u64;
        for segment in &self.segments {
            self.warm(segment, 0..share_bytes);
        }
        while let Ok(wish) = wanted.recv() {
            if let Some(segment) = self.segments.get(wish.segment) {
                self.warm(segment, wish.range);
            }
        }
    }

    fn warm(&self, segment: &Segment, range: Range<u64>) {
        // Whole granules only: a reserve never grows over its size by rounding.
        let granule_bytes = segment.granule_bytes();
        let end = range.end.min(segment.size_bytes());
        let end = if end == segment.size_bytes() { end } else { end / granule_bytes * granule_bytes };
        let mut at = range.start;
        while at < end && !self.shared.stop.load(Ordering::Relaxed) {
            let step = at..end.min(at + STEP_BYTES.max(granule_bytes));
            at = step.end;
            match segment.touch(step) {
                Ok(bytes) => {
                    self.shared.touched_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                Err(error) => {
                    // Not a fault of the node's: whoever is handed this range gets the error, if it still holds then.
                    tracing::debug!(%error, "the warm reserve gave up a range");
                    self.shared.failed_ranges.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::arena::SegmentRequest;
    use crate::pages::PageChoice;

    const MIB: u64 = 1 << 20;

    fn segment(size_bytes: u64, pages: PageChoice) -> Arc<Segment> {
        let request = SegmentRequest { name: "warm-test".into(), size_bytes, numa_node: None, pages };
        Arc::new(Segment::create(&request).unwrap())
    }

    fn until(what: &str, condition: impl Fn() -> bool) {
        // The thread runs at idle priority: on a busy machine it hardly does.
        let deadline = Instant::now() + Duration::from_secs(300);
        while !condition() {
            assert!(Instant::now() < deadline, "{what} did not happen in 300 s");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn the_reserve_is_touched_and_not_more() {
        let segments = vec![segment(16 * MIB, PageChoice::Small), segment(16 * MIB, PageChoice::Small)];
        let warmer = Warmer::start(segments.clone(), 9 * MIB).unwrap();
        until("the reserve", || warmer.stats().touched_bytes == 9 * MIB);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(segments.iter().map(|segment| segment.touched_bytes()).sum::<u64>(), 9 * MIB);
        assert!(segments[0].is_touched(&(0..4 * MIB)) && !segments[0].is_touched(&(0..5 * MIB)));
    }

    #[test]
    fn wishes_are_followed_cut_to_the_reserve_and_to_the_segment() {
        for pages in [PageChoice::Small, PageChoice::Thp] {
            let segments = vec![segment(16 * MIB, pages)];
            let before = segments[0].touched_bytes();
            let warmer = Warmer::start(segments.clone(), 2 * MIB).unwrap();
            assert!(warmer.wanted(0, 8 * MIB..16 * MIB));
            assert!(warmer.wanted(0, 14 * MIB..64 * MIB));
            assert!(warmer.wanted(7, 0..MIB), "a segment that is not there is passed over");
            assert!(warmer.wanted(0, 4 * MIB..6 * MIB));
            until("the last wish", || segments[0].is_touched(&(4 * MIB..6 * MIB)));
            assert!(segments[0].is_touched(&(8 * MIB..10 * MIB)) && !segments[0].is_touched(&(8 * MIB..11 * MIB)));
            assert!(segments[0].is_touched(&(14 * MIB..16 * MIB)));
            assert_eq!(segments[0].touched_bytes() - before, warmer.stats().touched_bytes);
            warmer.stop();
        }
    }

    #[test]
    fn touching_keeps_what_is_there() {
        let segments = vec![segment(4 * MIB, PageChoice::Auto)];
        segments[0].write_at(MIB, b"kept").unwrap();
        let warmer = Warmer::start(segments.clone(), 4 * MIB).unwrap();
        until("the reserve", || segments[0].is_touched(&(0..4 * MIB)));
        let mut bytes = [0; 4];
        segments[0].read_at(MIB, &mut bytes).unwrap();
        assert_eq!(&bytes, b"kept");
        drop(warmer);
    }

    #[test]
    fn a_full_queue_drops_and_says_so_and_stopping_is_prompt() {
        // 1 GiB of 4 KiB pages takes hundreds of milliseconds, so the queue behind it fills.
        let segments = vec![segment(1 << 30, PageChoice::Small)];
        let warmer = Warmer::start(segments.clone(), 1 << 30).unwrap();
        let accepted = (0..2 * WISHES_MAX).filter(|_| warmer.wanted(0, 0..MIB)).count();
        assert!(accepted < 2 * WISHES_MAX, "no wish was dropped");
        assert_eq!(warmer.stats().dropped_wishes, (2 * WISHES_MAX - accepted) as u64);
        warmer.stop();
        assert!(segments[0].touched_bytes() < 1 << 30, "it went on to the end");
    }

    #[test]
    fn an_idle_warmer_uses_no_processor_time() {
        let segments = vec![segment(4 * MIB, PageChoice::Small)];
        let warmer = Warmer::start(segments.clone(), 4 * MIB).unwrap();
        until("the reserve", || segments[0].touched_bytes() == 4 * MIB);
        let policy = RefCell::new(String::new());
        // After its last page it has yet to fall asleep.
        until("no nanosecond on a processor", || {
            let (before, _) = clock_of(&warmer);
            thread::sleep(Duration::from_millis(300));
            let (after, now) = clock_of(&warmer);
            *policy.borrow_mut() = now;
            before == after
        });
        assert_eq!(policy.into_inner(), libc::SCHED_IDLE.to_string());
    }

    /// Nanoseconds that the warmer's thread has run (schedstat), and its scheduling policy (field 41 of stat).
    fn clock_of(warmer: &Warmer) -> (String, String) {
        let thread = warmer.shared.thread_id.load(Ordering::Relaxed);
        let file = |name: &str| std::fs::read_to_string(format!("/proc/self/task/{thread}/{name}")).unwrap();
        let ran = file("schedstat").split(' ').next().unwrap().to_owned();
        let stat = file("stat");
        let policy = stat.rsplit(')').next().unwrap().split_whitespace().nth(38).unwrap();
        (ran, policy.to_owned())
    }
}
