//! Memory of one shard: spans from the bank, cut into objects.
//!
//! Large objects (and chunks) come from spans in whole pages, small objects from chunks in whole cache lines. So large objects always
//! start on a page, small ones never break up the runs that large ones need, and an empty chunk or span goes back where it came from.

use rustc_hash::FxHashMap;

use super::api::SpanIndex;
use super::blocks::{BlockId, Blocks};
use super::config::{Layout, SegmentSpan, LARGE_ALIGN_BYTES, LARGE_OBJECT_BYTES, MIN_SPAN_BYTES, SMALL_ALIGN_BYTES};

/// Small objects come from chunks of this size, in bytes.
pub(super) const CHUNK_BYTES: u64 = MIN_SPAN_BYTES;

/// Memory of one object. Addresses are of the node's spans laid end to end: span number times span size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allocation {
    pub(super) addr: u64,
    pub(super) len: u64,
    block: BlockId,
    small: bool,
}

/// The part of a shard's memory that lies in one segment.
#[derive(Debug)]
struct Part {
    large: Blocks,
    small: Blocks,
    /// Chunks of small objects: address -> block among the large ones.
    chunks: FxHashMap<u64, BlockId>,
    /// An empty chunk, kept for the next small object: a block among the large ones.
    spare: Option<BlockId>,
    /// The end of the highest allocation ever made, as an address.
    touched_until: u64,
}

/// The memory of one shard.
#[derive(Debug)]
pub(super) struct Arena {
    layout: Layout,
    /// By segment: what lies on different NUMA nodes never mixes.
    parts: Vec<Part>,
    /// Spans of other segments are given back before this one's.
    home: u32,
    spans_held: u32,
}

/// What memory is wanted for.
#[derive(Clone, Copy)]
enum Wish {
    /// A large object: whole pages.
    Large,
    /// A small object: lines of a chunk, or, where there is no chunk, pages.
    Small,
    /// A run of small objects, which must lie in one chunk.
    Run,
}

fn round_up(bytes: u64, to: u64) -> u64 {
    (bytes + to - 1) & !(to - 1)
}

impl Part {
    fn alloc(&mut self, len: u64, wish: Wish) -> Option<Allocation> {
        let got = match wish {
            Wish::Large => self.alloc_large(len),
            Wish::Small => self.alloc_small(len).or_else(|| self.alloc_large(round_up(len, LARGE_ALIGN_BYTES))),
            Wish::Run => self.alloc_small(len),
        }?;
        self.touched_until = self.touched_until.max(got.addr + got.len);
        Some(got)
    }

    fn alloc_small(&mut self, len: u64) -> Option<Allocation> {
        let mut block = self.small.alloc(len);
        if block.is_none() && self.add_chunk() {
            block = self.small.alloc(len);
        }
        let block = block?;
        Some(Allocation { addr: self.small.start(block), len, block, small: true })
    }

    fn alloc_large(&mut self, len: u64) -> Option<Allocation> {
        let mut block = self.large.alloc(len);
        if block.is_none() && self.drop_spare() {
            block = self.large.alloc(len);
        }
        let block = block?;
        Some(Allocation { addr: self.large.start(block), len, block, small: false })
    }

    /// Another chunk for small objects; false where there is none.
    fn add_chunk(&mut self) -> bool {
        let Some(chunk) = self.spare.take().or_else(|| self.large.alloc(CHUNK_BYTES)) else {
            return false;
        };
        let addr = self.large.start(chunk);
        self.chunks.insert(addr, chunk);
        self.small.add_region(addr, CHUNK_BYTES);
        true
    }

    fn free(&mut self, allocation: Allocation) {
        if !allocation.small {
            self.large.free(allocation.block);
            return;
        }
        let block = self.small.free(allocation.block);
        if self.small.is_whole_region(block) {
            let (addr, _) = self.small.remove_region(block);
            if let Some(chunk) = self.chunks.remove(&addr) {
                self.drop_spare();
                self.spare = Some(chunk);
            }
        }
    }

    /// Gives the spare chunk back to the large objects; false where there is none.
    fn drop_spare(&mut self) -> bool {
        self.spare.take().map(|chunk| self.large.free(chunk)).is_some()
    }

    fn take_run(&mut self, most: u32) -> Option<(SpanIndex, u32)> {
        let block = self.large.find_whole_span()?;
        let (first, count) = self.large.take_spans(block, most);
        (count > 0).then_some((first, count))
    }

    fn free_bytes(&self) -> u64 {
        let spare = if self.spare.is_some() { CHUNK_BYTES } else { 0 };
        self.large.free_bytes() + self.small.free_bytes() + spare
    }

    /// What is in regions, in bytes: the spans that the shard holds here.
    fn held_bytes(&self) -> u64 {
        self.large.free_bytes() + self.large.used_bytes()
    }
}

impl Arena {
    pub(super) fn new(layout: Layout, home: u32) -> Self {
        let span_bytes = layout.span_bytes();
        let part = |segment: &SegmentSpan| Part {
            large: Blocks::new(LARGE_ALIGN_BYTES, span_bytes, true),
            small: Blocks::new(SMALL_ALIGN_BYTES, span_bytes, false),
            chunks: FxHashMap::default(),
            spare: None,
            touched_until: u64::from(segment.first) * span_bytes,
        };
        Self { parts: layout.segments().iter().map(part).collect(), home, spans_held: 0, layout }
    }

    /// What an object of this size takes, in bytes.
    pub(super) fn footprint(bytes: u64) -> u64 {
        if bytes >= LARGE_OBJECT_BYTES {
            round_up(bytes, LARGE_ALIGN_BYTES)
        } else {
            round_up(bytes.max(1), SMALL_ALIGN_BYTES)
        }
    }

    /// How many contiguous spans surely hold an object of this size.
    pub(super) fn spans_for(&self, bytes: u64) -> u32 {
        Self::footprint(bytes).div_ceil(self.layout.span_bytes()) as u32
    }

    /// Memory for an object: of the segment `near`, else, where it may be `anywhere`, of any other. `None` where no free block is
    /// large enough.
    pub(super) fn alloc(&mut self, bytes: u64, near: u32, anywhere: bool) -> Option<Allocation> {
        let wish = if bytes < LARGE_OBJECT_BYTES { Wish::Small } else { Wish::Large };
        self.find(Self::footprint(bytes), wish, near, anywhere)
    }

    /// Memory for a run of small objects, of whole lines, or `None` where no chunk has so much in one piece.
    pub(super) fn alloc_run(&mut self, len: u64, near: u32, anywhere: bool) -> Option<Allocation> {
        self.find(len, Wish::Run, near, anywhere)
    }

    fn find(&mut self, len: u64, wish: Wish, near: u32, anywhere: bool) -> Option<Allocation> {
        let got = self.parts.get_mut(near as usize).and_then(|part| part.alloc(len, wish));
        if got.is_some() || !anywhere || self.parts.len() == 1 {
            return got;
        }
        let mut others = self.parts.iter_mut().enumerate().filter(|(segment, _)| *segment != near as usize);
        others.find_map(|(_, part)| part.alloc(len, wish))
    }

    /// Takes the first `len` bytes out of a run, which is longer, as memory of their own.
    pub(super) fn cut(&mut self, run: &mut Allocation, len: u64) -> Allocation {
        debug_assert!(run.small && len < run.len);
        let rest = self.part_of(run.addr).small.cut(run.block, len);
        let piece = Allocation { len, ..*run };
        *run = Allocation { addr: run.addr + len, len: run.len - len, block: rest, small: true };
        piece
    }

    fn part_of(&mut self, addr: u64) -> &mut Part {
        let segment = self.segment_of(addr) as usize;
        &mut self.parts[segment]
    }

    /// Gives an object's memory back.
    pub(super) fn free(&mut self, allocation: Allocation) {
        self.part_of(allocation.addr).free(allocation);
    }

    /// A run of spans from the bank, all of one segment.
    pub(super) fn grant(&mut self, first: SpanIndex, count: u32) {
        let span_bytes = self.layout.span_bytes();
        let (addr, len) = (u64::from(first) * span_bytes, u64::from(count) * span_bytes);
        self.part_of(addr).large.add_region(addr, len);
        self.spans_held += count;
    }

    /// Takes up to `most` empty spans out, as one run. Those of the shard's own NUMA node go last.
    pub(super) fn take_run(&mut self, most: u32) -> Option<(SpanIndex, u32)> {
        if most > 0 && self.empty_spans() == 0 {
            for part in &mut self.parts {
                part.drop_spare();
            }
        }
        let home = (self.home as usize).min(self.parts.len() - 1);
        let others = (0..self.parts.len()).filter(|segment| *segment != home);
        let taken = others.chain([home]).find_map(|segment| self.parts[segment].take_run(most));
        self.spans_held -= taken.map_or(0, |(_, count)| count);
        taken
    }

    /// Empty spans.
    pub(super) fn empty_spans(&self) -> u32 {
        self.parts.iter().map(|part| part.large.whole_spans()).sum()
    }

    /// Spans that the shard holds.
    pub(super) fn spans_held(&self) -> u32 {
        self.spans_held
    }

    /// Bytes that the shard holds.
    pub(super) fn held_bytes(&self) -> u64 {
        u64::from(self.spans_held) * self.layout.span_bytes()
    }

    /// Bytes in free blocks, in chunks too.
    pub(super) fn free_bytes(&self) -> u64 {
        self.parts.iter().map(Part::free_bytes).sum()
    }

    /// The segment of an address that the arena gave out.
    pub(super) fn segment_of(&self, addr: u64) -> u32 {
        if self.parts.len() == 1 {
            return 0;
        }
        let span = (addr / self.layout.span_bytes()) as SpanIndex;
        self.layout.segment_of(span).unwrap_or(0)
    }

    /// Offset of an address in its segment, in bytes.
    pub(super) fn offset_in(&self, segment: u32, addr: u64) -> u64 {
        addr - u64::from(self.layout.segments()[segment as usize].first) * self.layout.span_bytes()
    }

    /// Up to where this shard has ever allocated in a segment, in bytes from the segment's start.
    pub(super) fn touched_bytes(&self, segment: u32) -> u64 {
        self.parts.get(segment as usize).map_or(0, |part| self.offset_in(segment, part.touched_until))
    }

    /// What objects (and runs of credit) take from a segment, padding included, in bytes.
    pub(super) fn allocated_bytes(&self, segment: u32) -> u64 {
        self.parts.get(segment as usize).map_or(0, |part| part.held_bytes() - part.free_bytes())
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Verifies the books. `objects`: every allocation that is in use.
    pub(super) fn check(&self, objects: impl Iterator<Item = Allocation>) -> Result<(), String> {
        let mut by_part: Vec<Vec<Allocation>> = vec![Vec::new(); self.parts.len()];
        objects.for_each(|object| by_part[self.segment_of(object.addr) as usize].push(object));
        for (segment, (part, objects)) in self.parts.iter().zip(by_part).enumerate() {
            part.check(&objects).map_err(|e| format!("segment {segment}: {e}"))?;
            for (addr, _) in part.large.regions() {
                if self.segment_of(addr) as usize != segment {
                    return Err(format!("segment {segment} has a region at {addr}, which is another's"));
                }
            }
        }
        let held: u64 = self.parts.iter().map(Part::held_bytes).sum();
        match held == self.held_bytes() {
            true => Ok(()),
            false => Err(format!("{held} bytes in regions, {} in spans held", self.held_bytes())),
        }
    }
}

impl Part {
    fn check(&self, objects: &[Allocation]) -> Result<(), String> {
        self.large.check().map_err(|e| format!("large blocks: {e}"))?;
        self.small.check().map_err(|e| format!("small blocks: {e}"))?;
        let regions: u64 = self.large.regions().iter().map(|(_, len)| len).sum();
        if regions != self.held_bytes() {
            return Err(format!("{} bytes in regions, {} in blocks", regions, self.held_bytes()));
        }
        let mut owned_large: FxHashMap<u64, u64> = self.large.used().map(|(_, addr, len)| (addr, len)).collect();
        let mut owned_small: FxHashMap<u64, u64> = self.small.used().map(|(_, addr, len)| (addr, len)).collect();
        for object in objects {
            let owned = if object.small { &mut owned_small } else { &mut owned_large };
            if owned.remove(&object.addr) != Some(object.len) {
                return Err(format!("{object:?} is not a used block (or two objects have it)"));
            }
        }
        for chunk in self.chunks.values().chain(self.spare.iter()) {
            if owned_large.remove(&self.large.start(*chunk)) != Some(CHUNK_BYTES) {
                return Err(format!("chunk {chunk} is not a used block of the chunk size"));
            }
        }
        let chunk_bytes = self.chunks.len() as u64 * CHUNK_BYTES;
        if self.small.regions().len() != self.chunks.len()
            || self.small.free_bytes() + self.small.used_bytes() != chunk_bytes
        {
            return Err(format!("small blocks are not the {} chunks", self.chunks.len()));
        }
        if !owned_large.is_empty() || !owned_small.is_empty() {
            return Err(format!("blocks of no object: {owned_large:?} {owned_small:?}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::SegmentSpec;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn arena(spans: u32) -> Arena {
        let segment = SegmentSpec { bytes: u64::from(spans) * MIB, numa_node: 0 };
        let mut arena = Arena::new(Layout::new(&[segment], MIB).unwrap(), 0);
        arena.grant(0, spans);
        arena
    }

    #[test]
    fn small_objects_leave_large_runs_whole() {
        let mut arena = arena(4);
        let small: Vec<_> = (0..100).map(|_| arena.alloc(1000, 0, true).unwrap()).collect();
        // 100 KB of small objects take one chunk; the rest is one run.
        assert!(arena.alloc(4 * MIB - CHUNK_BYTES, 0, true).is_some());
        for object in small {
            arena.free(object);
        }
    }

    #[test]
    fn a_large_object_starts_on_a_page_whatever_came_before() {
        let mut arena = arena(4);
        for bytes in [1, 70_001, 63, 65_536, 5000, 300_001] {
            let got = arena.alloc(bytes, 0, true).unwrap();
            if bytes >= LARGE_OBJECT_BYTES {
                assert_eq!((got.addr % 4096, got.len % 4096), (0, 0), "{bytes}");
            }
        }
    }

    #[test]
    fn the_last_pages_hold_small_objects_when_no_chunk_is_left() {
        let mut arena = arena(1);
        let large = arena.alloc(MIB - 8192, 0, true).unwrap();
        let small = [arena.alloc(100, 0, true).unwrap(), arena.alloc(100, 0, true).unwrap()];
        assert!(arena.alloc(100, 0, true).is_none());
        arena.check([large, small[0], small[1]].into_iter()).unwrap();
        [large, small[0], small[1]].into_iter().for_each(|a| arena.free(a));
        assert_eq!((arena.free_bytes(), arena.empty_spans()), (MIB, 1));
    }

    #[test]
    fn an_idle_spare_chunk_does_not_keep_a_large_object_out() {
        let mut arena = arena(1);
        let small = arena.alloc(100, 0, true).unwrap();
        arena.free(small);
        assert_eq!(arena.free_bytes(), MIB);
        assert!(arena.alloc(MIB, 0, true).is_some());
    }

    #[test]
    fn an_empty_shard_can_give_every_span_back() {
        let mut arena = arena(3);
        let objects: Vec<_> = [100, 200_000, 70_000, 64].map(|bytes| arena.alloc(bytes, 0, true).unwrap()).into();
        objects.into_iter().for_each(|a| arena.free(a));
        let mut got = 0;
        while let Some((_, count)) = arena.take_run(u32::MAX) {
            got += count;
        }
        assert_eq!((got, arena.spans_held(), arena.free_bytes()), (3, 0, 0));
        arena.check([].into_iter()).unwrap();
    }
}
