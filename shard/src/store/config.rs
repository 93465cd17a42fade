//! What a store is built with.

use super::api::SpanIndex;

/// Size of the header in front of a mutable object, in bytes (Ray 2.60 `src/ray/object_manager/common.h`, struct `PlasmaObjectHeader` on
/// x86-64 and aarch64 Linux): state of the semaphores i32 at 0, unique name 32 bytes at 4, version i64 at 40, sealed u8 at 48, error u8 at 49,
/// readers i64 at 56, acquires left u64 at 64, releases left u64 at 72, data size u64 at 80, metadata size u64 at 88.
pub const MUTABLE_HEADER_BYTES: u64 = 96;

/// What every allocation starts on and is a multiple of, in bytes: a cache line.
pub const SMALL_ALIGN_BYTES: u64 = 64;

/// What the data of a large object starts on, and its allocation is a multiple of, in bytes: the page, as O_DIRECT wants it.
pub const LARGE_ALIGN_BYTES: u64 = 4096;

/// From this size on (header, data and metadata) an object counts as large, in bytes: it can be spilled or sent alone.
pub const LARGE_OBJECT_BYTES: u64 = 64 * 1024;

/// Largest span, in bytes.
pub const MAX_SPAN_BYTES: u64 = 4 << 20;

/// Smallest span, in bytes: room for a chunk of small objects.
pub const MIN_SPAN_BYTES: u64 = 256 * 1024;

/// How many spans a shard should be able to have before spans are made larger.
const SPANS_PER_SHARD: u64 = 64;

/// One memory segment of the node: shared memory that clients map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSpec {
    /// Its size, in bytes. Whole spans of it are used.
    pub bytes: u64,
    /// The NUMA node that its pages are on.
    pub numa_node: u32,
}

/// How the node's memory is cut into spans. Every shard and the bank are given the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    span_bytes: u64,
    segments: Vec<SegmentSpan>,
}

/// The spans of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSpan {
    /// Number of its first span.
    pub first: SpanIndex,
    /// How many spans it has.
    pub count: u32,
    /// The NUMA node that its pages are on.
    pub numa_node: u32,
}

/// Why a layout can't be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The span size is not a power of two of at least [`MIN_SPAN_BYTES`].
    SpanBytes(u64),
    /// A segment is smaller than one span: its index and its size in bytes.
    SegmentTooSmall(usize, u64),
    /// More spans than a [`SpanIndex`] counts: use larger spans.
    TooManySpans(u64),
    /// No segment at all.
    NoSegment,
}

impl std::fmt::Display for LayoutError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SpanBytes(got) => {
                write!(f, "span size: expected a power of two of at least {MIN_SPAN_BYTES} bytes, got {got}")
            }
            Self::SegmentTooSmall(index, got) => {
                write!(f, "segment {index}: expected at least one span of memory, got {got} bytes")
            }
            Self::TooManySpans(got) => write!(f, "expected fewer than {} spans, got {got}: use larger spans", u32::MAX),
            Self::NoSegment => f.write_str("expected at least one memory segment, got none"),
        }
    }
}

impl std::error::Error for LayoutError {}

impl Layout {
    /// Cuts `segments` into spans of `span_bytes`.
    pub fn new(segments: &[SegmentSpec], span_bytes: u64) -> Result<Self, LayoutError> {
        if !span_bytes.is_power_of_two() || span_bytes < MIN_SPAN_BYTES {
            return Err(LayoutError::SpanBytes(span_bytes));
        }
        if segments.is_empty() {
            return Err(LayoutError::NoSegment);
        }
        let mut next = 0u64;
        let mut cut = Vec::with_capacity(segments.len());
        for (index, segment) in segments.iter().enumerate() {
            let count = segment.bytes / span_bytes;
            if count == 0 {
                return Err(LayoutError::SegmentTooSmall(index, segment.bytes));
            }
            // One number stays out between segments: neighbours in number are neighbours in memory.
            let end = next + count;
            if end >= u64::from(u32::MAX) {
                return Err(LayoutError::TooManySpans(end));
            }
            cut.push(SegmentSpan { first: next as u32, count: count as u32, numa_node: segment.numa_node });
            next = end + 1;
        }
        Ok(Self { span_bytes, segments: cut })
    }

    /// The span size for a node of this much memory and this many shards: 4 MiB, and less where a shard would have few.
    pub fn span_bytes_for(total_bytes: u64, shards: u16) -> u64 {
        let wish = total_bytes / (SPANS_PER_SHARD * u64::from(shards.max(1)));
        let mut span_bytes = MIN_SPAN_BYTES;
        while span_bytes < MAX_SPAN_BYTES && span_bytes * 2 <= wish {
            span_bytes *= 2;
        }
        span_bytes
    }

    /// Size of a span, in bytes.
    pub fn span_bytes(&self) -> u64 {
        self.span_bytes
    }

    /// The segments, in order.
    pub fn segments(&self) -> &[SegmentSpan] {
        &self.segments
    }

    /// One more than the largest span number.
    pub fn index_end(&self) -> SpanIndex {
        self.segments.last().map_or(0, |s| s.first + s.count)
    }

    /// Spans in all.
    pub fn span_count(&self) -> u32 {
        self.segments.iter().map(|s| s.count).sum()
    }

    /// What can be allocated in all, in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.span_count()) * self.span_bytes
    }

    /// The largest object (with header and metadata) that can ever fit, in bytes: the largest segment.
    pub fn max_object_bytes(&self) -> u64 {
        self.segments.iter().map(|s| u64::from(s.count) * self.span_bytes).max().unwrap_or(0)
    }

    /// Which segment a span is in.
    pub fn segment_of(&self, span: SpanIndex) -> Option<u32> {
        let index = self.segments.iter().rposition(|s| s.first <= span)?;
        (span - self.segments[index].first < self.segments[index].count).then_some(index as u32)
    }
}

/// How a shard spills objects to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpillConfig {
    /// Above this, in bytes of the node that can't be evicted, objects are written ahead of need (Ray: `object_spilling_threshold` = 0.8).
    pub threshold_bytes: u64,
    /// Bytes that one file gathers, if there are so many to spill (Ray: `min_spilling_size` = 100 MiB).
    pub batch_bytes: u64,
    /// Most objects in a file (Ray: `max_fused_object_count` = 2000).
    pub file_objects_max: u32,
    /// Most bytes in a file of more than one object (Ray: `max_spilling_file_size_bytes`, which has no limit by default).
    pub file_bytes_max: u64,
    /// Files written at a time.
    pub writing_files_max: u32,
    /// Bytes written at a time; the file that exceeds it is the last one.
    pub writing_bytes_max: u64,
    /// Objects restored at a time, those that wait for memory included.
    pub restoring_objects_max: u64,
    /// Bytes restored at a time; the object that exceeds it is the last one.
    pub restoring_bytes_max: u64,
    /// Pause after a failure, in nanoseconds.
    pub retry_ns: u64,
}

impl SpillConfig {
    /// Ray's sizes and the limits of this project, on a node that can hold `capacity_bytes`.
    pub fn new(capacity_bytes: u64) -> Self {
        // A small store should not have all it holds in one file that is being written.
        let share = (capacity_bytes / 8).max(1 << 20);
        Self {
            threshold_bytes: (capacity_bytes as f64 * 0.8) as u64,
            batch_bytes: share.min(100 << 20),
            file_objects_max: 2000,
            file_bytes_max: u64::MAX,
            writing_files_max: 4,
            writing_bytes_max: share * 2,
            restoring_objects_max: 64,
            restoring_bytes_max: share * 2,
            retry_ns: 1_000_000_000,
        }
    }
}

/// What a shard's store is built with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The node's memory.
    pub segments: Layout,
    /// The segment on the shard's own NUMA node: for what is written by nobody of whom more is known.
    pub home_segment: u32,
    /// Empty spans that the shard asks for ahead of need. 0: none (a store that reaches its bank without a message needs none).
    pub spans_ahead: u32,
    /// Empty spans that the shard keeps; more are given back to the bank. `u32::MAX`: all are kept (a node of one shard).
    pub spans_kept: u32,
    /// Creates that may wait for memory; one more is answered [`StoreError::QueueFull`](super::StoreError::QueueFull).
    pub max_queued_creates: usize,
    /// Gets and watches that may wait for objects; one more is answered `None` or [`StoreEffect::WatchRefused`](super::StoreEffect::WatchRefused).
    pub max_waiters: usize,
    /// How long the first create in the queue may see no progress before it fails, in nanoseconds (Ray: `oom_grace_period_s` = 2).
    pub full_grace_ns: u64,
    /// How often queued creates ask again for memory, in nanoseconds (Ray: `object_store_full_delay_ms` = 10).
    pub retry_interval_ns: u64,
    /// Shortest time between two [`StoreEffect::GcWanted`](super::StoreEffect::GcWanted), in nanoseconds (Ray:
    /// `local_gc_min_interval_s` = 10).
    pub gc_interval_ns: u64,
    /// Creates that find no room after the grace period go to a file on disk (as in Ray) instead of failing.
    pub fallback: bool,
    /// How objects are spilled; `None`: they are not.
    pub spill: Option<SpillConfig>,
}

impl StoreConfig {
    /// Ray's times and the limits of this project, for one of `shards` shards on this memory, at home in segment 0.
    pub fn new(segments: Layout, shards: u16) -> Self {
        const MS: u64 = 1_000_000;
        let share = segments.span_count() / u32::from(shards.max(1));
        // A quarter of the share at most: what one shard keeps empty, another may need.
        let kept = if shards <= 1 { u32::MAX } else { (share / 4).clamp(1, 8) };
        Self {
            segments,
            home_segment: 0,
            spans_ahead: if shards <= 1 { 0 } else { kept.min(2) },
            spans_kept: kept,
            max_queued_creates: 10_000,
            max_waiters: 1_000_000,
            full_grace_ns: 2_000 * MS,
            retry_interval_ns: 10 * MS,
            gc_interval_ns: 10_000 * MS,
            fallback: false,
            spill: None,
        }
    }
}
