//! Free spans of the node: runs that were used before (warm: their pages are there), and per segment the rest that never was.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::api::SpanIndex;
use super::config::Layout;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    count: u32,
    /// When its youngest part was freed; larger is later.
    stamp: u64,
}

/// Free spans of one segment.
#[derive(Debug)]
struct Segment {
    /// Used and free again, by first span. No two runs touch.
    warm: BTreeMap<SpanIndex, Run>,
    /// The same runs: shortest first, and of one length the one freed last first.
    by_fit: BTreeSet<(u32, Reverse<u64>, SpanIndex)>,
    warm_count: u32,
    /// First span that was never used; all after it are fresh.
    fresh: SpanIndex,
    end: SpanIndex,
}

impl Segment {
    fn insert(&mut self, first: SpanIndex, run: Run) {
        self.warm.insert(first, run);
        self.by_fit.insert((run.count, Reverse(run.stamp), first));
        self.warm_count += run.count;
    }

    fn remove(&mut self, first: SpanIndex) -> Option<Run> {
        let run = self.warm.remove(&first)?;
        self.by_fit.remove(&(run.count, Reverse(run.stamp), first));
        self.warm_count -= run.count;
        Some(run)
    }

    /// Best fit among warm runs.
    fn take_warm(&mut self, count: u32) -> Option<SpanIndex> {
        let least = (count, Reverse(u64::MAX), 0);
        let &(_, _, first) = self.by_fit.range(least..).next()?;
        let run = self.remove(first)?;
        if run.count > count {
            self.insert(first + count, Run { count: run.count - count, ..run });
        }
        Some(first)
    }

    /// From the fresh rest, together with a warm run that ends where it begins if need be.
    fn take_fresh(&mut self, count: u32) -> Option<SpanIndex> {
        if self.end - self.fresh >= count {
            let first = self.fresh;
            self.fresh += count;
            return Some(first);
        }
        let (&first, run) = self.warm.last_key_value()?;
        if first + run.count != self.fresh || self.end - first < count {
            return None;
        }
        self.remove(first)?;
        self.fresh = first + count;
        Some(first)
    }

    fn put(&mut self, mut first: SpanIndex, mut count: u32, mut stamp: u64) {
        if let Some(next) = self.remove(first + count) {
            count += next.count;
            stamp = stamp.max(next.stamp);
        }
        let before = self.warm.range(..first).next_back().map(|(&first, run)| (first, run.count));
        if let Some((start, len)) = before.filter(|(start, len)| start + len == first) {
            self.remove(start);
            (first, count) = (start, len + count);
        }
        self.insert(first, Run { count, stamp });
    }
}

/// Free spans of all segments.
#[derive(Debug)]
pub(super) struct SpanPool {
    segments: Vec<Segment>,
    stamp: u64,
}

impl SpanPool {
    pub(super) fn new(layout: &Layout) -> Self {
        let segments = layout.segments().iter().map(|s| Segment {
            warm: BTreeMap::new(),
            by_fit: BTreeSet::new(),
            warm_count: 0,
            fresh: s.first,
            end: s.first + s.count,
        });
        Self { segments: segments.collect(), stamp: 0 }
    }

    /// A run of `count` spans: of the segment `near` if it has one, else of any other.
    pub(super) fn take(&mut self, count: u32, near: u32) -> Option<SpanIndex> {
        let others = (0..self.segments.len() as u32).filter(|segment| *segment != near);
        std::iter::once(near).chain(others).find_map(|segment| self.take_in(count, segment))
    }

    /// A run of `count` spans of one segment, warm before fresh.
    pub(super) fn take_in(&mut self, count: u32, segment: u32) -> Option<SpanIndex> {
        let segment = self.segments.get_mut(segment as usize)?;
        segment.take_warm(count).or_else(|| segment.take_fresh(count))
    }

    /// The longest run there is: its length in spans, 0 where nothing is.
    pub(super) fn longest(&self) -> u32 {
        (0..self.segments.len() as u32).map(|segment| self.longest_in(segment)).max().unwrap_or(0)
    }

    /// The longest run of one segment.
    pub(super) fn longest_in(&self, segment: u32) -> u32 {
        let Some(s) = self.segments.get(segment as usize) else {
            return 0;
        };
        let warm = s.by_fit.last().map_or(0, |(count, _, _)| *count);
        let joined = s.warm.last_key_value().filter(|(first, run)| *first + run.count == s.fresh);
        warm.max(s.end - joined.map_or(s.fresh, |(first, _)| *first))
    }

    /// A run, all of one segment, is free again.
    pub(super) fn put(&mut self, first: SpanIndex, count: u32) {
        self.stamp += 1;
        if let Some(segment) = self.segments.iter_mut().find(|s| first < s.end) {
            segment.put(first, count, self.stamp);
        }
    }

    /// Free spans in all.
    pub(super) fn free_count(&self) -> u32 {
        self.segments.iter().map(|s| s.warm_count + s.end - s.fresh).sum()
    }

    /// The spans of a segment that were never used: (first, count).
    pub(super) fn fresh(&self, segment: u32) -> (SpanIndex, u32) {
        self.segments.get(segment as usize).map_or((0, 0), |s| (s.fresh, s.end - s.fresh))
    }

    /// Every free run: (first, count).
    pub(super) fn runs(&self) -> impl Iterator<Item = (SpanIndex, u32)> + '_ {
        self.segments.iter().flat_map(|s| {
            let fresh = (s.fresh, s.end - s.fresh);
            s.warm.iter().map(|(first, run)| (*first, run.count)).chain(std::iter::once(fresh))
        })
    }

    /// Verifies that the two views of the warm runs agree and that no two of them touch.
    pub(super) fn check(&self) -> Result<(), String> {
        for segment in &self.segments {
            let (mut last_end, mut sum) = (None, 0);
            for (&first, run) in &segment.warm {
                let end = first + run.count;
                if last_end.is_some_and(|last| last >= first) || end > segment.fresh || run.count == 0 {
                    return Err(format!("run {first} {run:?} touches its neighbour or fresh spans"));
                }
                if !segment.by_fit.contains(&(run.count, Reverse(run.stamp), first)) {
                    return Err(format!("run {first} {run:?} is not found by size"));
                }
                last_end = Some(end);
                sum += run.count;
            }
            if segment.by_fit.len() != segment.warm.len() || sum != segment.warm_count {
                return Err(format!("{} runs by place, {} by size", segment.warm.len(), segment.by_fit.len()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::{SegmentSpec, MIN_SPAN_BYTES};
    use super::*;

    fn pool(spans: &[u32]) -> SpanPool {
        let spec = |n: &u32| SegmentSpec { bytes: u64::from(*n) * MIN_SPAN_BYTES, numa_node: 0 };
        let specs: Vec<_> = spans.iter().map(spec).collect();
        SpanPool::new(&Layout::new(&specs, MIN_SPAN_BYTES).unwrap())
    }

    #[test]
    fn warm_spans_go_out_before_fresh_ones_and_the_last_freed_first() {
        let mut pool = pool(&[10]);
        for expected in 0..4 {
            assert_eq!(pool.take(1, 0), Some(expected));
        }
        pool.put(0, 1);
        pool.put(2, 1);
        assert_eq!(pool.take(1, 0), Some(2));
        assert_eq!(pool.take(1, 0), Some(0));
        assert_eq!(pool.take(1, 0), Some(4));
    }

    #[test]
    fn a_short_request_does_not_break_a_long_run() {
        let mut pool = pool(&[10]);
        assert_eq!(pool.take(10, 0), Some(0));
        pool.put(0, 6);
        pool.put(8, 2);
        assert_eq!(pool.take(2, 0), Some(8));
        assert_eq!(pool.take(6, 0), Some(0));
    }

    #[test]
    fn a_run_may_begin_warm_and_end_fresh() {
        let mut pool = pool(&[6]);
        assert_eq!(pool.take(3, 0), Some(0));
        pool.put(1, 2);
        assert_eq!(pool.longest(), 5);
        assert_eq!(pool.take(5, 0), Some(1));
        assert_eq!((pool.free_count(), pool.longest()), (0, 0));
        pool.check().unwrap();
    }

    #[test]
    fn no_run_crosses_from_one_segment_into_the_next() {
        let mut pool = pool(&[4, 4]);
        assert_eq!(pool.take(5, 0), None);
        assert_eq!(pool.take(4, 1), Some(5));
        assert_eq!(pool.take(4, 1), Some(0));
        pool.put(5, 4);
        pool.put(0, 4);
        assert_eq!((pool.longest(), pool.free_count()), (4, 8));
        pool.check().unwrap();
    }
}
