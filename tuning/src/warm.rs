//! The warm reserve: a helper thread that touches pages before a client needs them.
//!
//! The first touch of a page is most of the cost of a large put (the kernel clears it), so the node's allocator says which
//! range it will hand out next ([`Warmer::wanted`]) and it is touched while the machine has nothing better to do, and nothing
//! happens while there is nothing to touch. Warming is best effort; what it did not get to is backed when it is handed out, as ever.
//!
//! It takes two threads. One, at idle priority, runs only where nobody else wants to, and clears pages. But while pages are taken the
//! kernel holds locks that a core may wait for, and whoever holds those at idle priority on a busy machine keeps them for as long as
//! it is busy: so a second thread takes them, at the node's own priority, one small step each time that the first one lets it.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TrySendError};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};

use crate::arena::{ArenaError, Segment};
use crate::sys;

/// Wishes that wait at most; more are dropped, because a newer wish says better what is wanted.
pub const WISHES_MAX: usize = 256;
/// Bytes taken in a step: a fraction of a millisecond. A granule where that is larger.
const STEP_BYTES: u64 = 1 << 20;

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
    thread_ids: [AtomicU64; 2],
    touched_bytes: AtomicU64,
    dropped_wishes: AtomicU64,
    failed_ranges: AtomicU64,
}

#[derive(Debug)]
struct Wish {
    segment: usize,
    range: Range<u64>,
}

/// The helper threads. Dropping it stops them.
#[derive(Debug)]
pub struct Warmer {
    wishes: Option<SyncSender<Wish>>,
    reserve_bytes: u64,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Warmer {
    /// Starts the threads, which first touch the beginning of the segments: `reserve_bytes` in all, an equal share each.
    /// Later wishes are cut to `reserve_bytes` too, so the node never touches more than that ahead of what it hands out.
    pub fn start(segments: Vec<Arc<Segment>>, reserve_bytes: u64) -> io::Result<Warmer> {
        let (wishes, wanted) = sync_channel(WISHES_MAX);
        let shared = Arc::new(Shared::default());
        let (steps, granted) = sync_channel(0);
        let (touched, results) = sync_channel(0);
        let hands = Hands { segments: segments.clone(), shared: Arc::clone(&shared) };
        // It ends when nobody grants it steps any more.
        thread::Builder::new().name("warm-hands".into()).spawn(move || hands.run(&granted, &touched))?;
        let worker = Worker { segments, shared: Arc::clone(&shared), steps, results };
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

/// Takes pages, at the node's priority.
struct Hands {
    segments: Vec<Arc<Segment>>,
    shared: Arc<Shared>,
}

impl Hands {
    fn run(&self, granted: &Receiver<Wish>, touched: &SyncSender<bool>) {
        #[cfg(test)]
        self.shared.thread_ids[1].store(sys::thread_id(), Ordering::Relaxed);
        while let Ok(Wish { segment, range }) = granted.recv() {
            if touched.send(self.touch(segment, range)).is_err() {
                return;
            }
        }
    }

    fn touch(&self, segment: usize, step: Range<u64>) -> bool {
        self.segments.get(segment).is_some_and(|segment| self.shared.count(segment.touch_under_locks(step)))
    }
}

impl Shared {
    /// Counts what was touched. False: it came to nothing.
    fn count(&self, touched: Result<u64, ArenaError>) -> bool {
        match touched {
            Ok(bytes) => {
                self.touched_bytes.fetch_add(bytes, Ordering::Relaxed);
                true
            }
            Err(error) => {
                // Not a fault of the node's: whoever is handed this range gets the error, if it still holds then.
                tracing::debug!(%error, "the warm reserve gave up a range");
                self.failed_ranges.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }
}

/// Grants steps and clears what was taken, at idle priority.
struct Worker {
    segments: Vec<Arc<Segment>>,
    shared: Arc<Shared>,
    steps: SyncSender<Wish>,
    results: Receiver<bool>,
}

impl Worker {
    fn run(&self, wanted: &Receiver<Wish>, reserve_bytes: u64) {
        #[cfg(test)]
        self.shared.thread_ids[0].store(sys::thread_id(), Ordering::Relaxed);
        if let Err(error) = sys::become_idle_priority() {
            tracing::warn!(%error, "the warm reserve runs at normal priority");
        }
        let share_bytes = reserve_bytes / self.segments.len().max(1) as u64;
        for segment in 0..self.segments.len() {
            self.warm(Wish { segment, range: 0..share_bytes });
        }
        while let Ok(wish) = wanted.recv() {
            self.warm(wish);
        }
    }

    fn warm(&self, Wish { segment: index, range }: Wish) {
        let Some(segment) = self.segments.get(index) else { return };
        // Whole granules only: a reserve never grows over its size by rounding.
        let granule_bytes = segment.granule_bytes();
        let end = range.end.min(segment.size_bytes());
        let end = if end == segment.size_bytes() { end } else { end / granule_bytes * granule_bytes };
        let mut at = range.start;
        while at < end && !self.shared.stop.load(Ordering::Relaxed) {
            let step = at..end.min(at + STEP_BYTES.max(granule_bytes));
            at = step.end;
            // What is touched already needs no other thread.
            if segment.is_touched(&step) {
                continue;
            }
            let granted = self.steps.send(Wish { segment: index, range: step.clone() });
            if granted.is_err() || self.results.recv() != Ok(true) || !self.shared.count(segment.touch(step)) {
                return;
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
        let policies = RefCell::new(Vec::new());
        // After the last page they have yet to fall asleep.
        until("no nanosecond on a processor", || {
            let before = clocks_of(&warmer);
            thread::sleep(Duration::from_millis(300));
            let after = clocks_of(&warmer);
            *policies.borrow_mut() = after.iter().map(|(_, policy)| policy.clone()).collect();
            before == after
        });
        let expected = [libc::SCHED_IDLE, libc::SCHED_OTHER].map(|policy| policy.to_string());
        assert_eq!(policies.into_inner(), expected, "who holds the kernel's locks is not the one at idle priority");
    }

    /// Nanoseconds that the warmer's threads have run (schedstat), and their scheduling policies (field 41 of stat).
    fn clocks_of(warmer: &Warmer) -> Vec<(String, String)> {
        let clock_of = |thread: &AtomicU64| {
            let thread = thread.load(Ordering::Relaxed);
            let file = |name: &str| std::fs::read_to_string(format!("/proc/self/task/{thread}/{name}")).unwrap();
            let ran = file("schedstat").split(' ').next().unwrap().to_owned();
            let stat = file("stat");
            let policy = stat.rsplit(')').next().unwrap().split_whitespace().nth(38).unwrap();
            (ran, policy.to_owned())
        };
        warmer.shared.thread_ids.iter().map(clock_of).collect()
    }
}
