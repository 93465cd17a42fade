//! Free and used blocks of memory that nobody here can read or write: a two-level segregated fit whose books are kept
//! beside the memory, in a slab that is reused, so that clients who map the memory can't damage them.
//!
//! Allocation, free and coalescing take constant time. A block is found in three steps: a few candidates of the request's
//! own size class (most recently freed first, so memory that is warm in the cache comes back first), then the first block of the
//! next larger class that has any, then all of the request's own class.

use rustc_hash::FxHashMap;
use slab::Slab;

/// Index of a block.
pub(super) type BlockId = u32;

/// No block.
const NONE: BlockId = u32::MAX;

/// Classes per power of two: a request's class and the next differ by at most 1/16.
const SECOND_LEVELS: usize = 16;
const SECOND_SHIFT: u32 = SECOND_LEVELS.trailing_zeros();

/// Powers of two, in units: more than any address space has.
const FIRST_LEVELS: usize = 48;

/// Blocks of the request's own class that are tried before a larger class is.
const QUICK_TRIES: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Block {
    start: u64,
    len: u64,
    /// Neighbours in memory, of the same region.
    before: BlockId,
    after: BlockId,
    /// Neighbours in the list of the size class, if free.
    older: BlockId,
    newer: BlockId,
    free: bool,
}

impl Block {
    fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Blocks whose addresses and lengths are multiples of a unit.
#[derive(Debug)]
pub(super) struct Blocks {
    blocks: Slab<Block>,
    /// Most recently freed block of each class.
    heads: Vec<BlockId>,
    first_map: u64,
    second_maps: [u16; FIRST_LEVELS],
    unit_shift: u32,
    /// Spans, which can be taken out of free blocks again.
    span_shift: u32,
    free_bytes: u64,
    used_bytes: u64,
    /// Whole spans inside free blocks.
    whole_spans: u32,
    /// Regions that touch are one: blocks at the edges, by their first address and by the address after their last.
    joined: bool,
    first_at: FxHashMap<u64, BlockId>,
    last_at: FxHashMap<u64, BlockId>,
}

impl Blocks {
    /// No memory yet. `joined`: regions that touch become one, and whole spans of `span_bytes` can be taken back.
    pub(super) fn new(unit_bytes: u64, span_bytes: u64, joined: bool) -> Self {
        debug_assert!(unit_bytes.is_power_of_two() && span_bytes.is_power_of_two());
        Self {
            blocks: Slab::new(),
            heads: vec![NONE; FIRST_LEVELS * SECOND_LEVELS],
            first_map: 0,
            second_maps: [0; FIRST_LEVELS],
            unit_shift: unit_bytes.trailing_zeros(),
            span_shift: span_bytes.trailing_zeros(),
            free_bytes: 0,
            used_bytes: 0,
            whole_spans: 0,
            joined,
            first_at: FxHashMap::default(),
            last_at: FxHashMap::default(),
        }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Spans that lie wholly in free memory.
    pub(super) fn whole_spans(&self) -> u32 {
        self.whole_spans
    }

    fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id as usize]
    }

    fn block_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id as usize]
    }

    /// First address of a block.
    pub(super) fn start(&self, id: BlockId) -> u64 {
        self.block(id).start
    }

    /// The block is all of its region.
    pub(super) fn is_whole_region(&self, id: BlockId) -> bool {
        let block = self.block(id);
        block.before == NONE && block.after == NONE
    }

    /// Size class of a length: (power of two, part of it).
    fn class(&self, len: u64) -> (usize, usize) {
        let units = len >> self.unit_shift;
        if units < SECOND_LEVELS as u64 {
            return (0, units as usize);
        }
        let log = units.ilog2();
        let part = (units >> (log - SECOND_SHIFT)) as usize & (SECOND_LEVELS - 1);
        ((log - SECOND_SHIFT + 1) as usize, part)
    }

    /// Whole spans between two addresses: (first, count).
    fn spans_in(&self, start: u64, end: u64) -> (u64, u64) {
        let first = (start + (1 << self.span_shift) - 1) >> self.span_shift;
        let last = end >> self.span_shift;
        (first, last.saturating_sub(first))
    }

    fn push_free(&mut self, id: BlockId) {
        let (start, len) = (self.block(id).start, self.block(id).len);
        let (first, second) = self.class(len);
        let slot = first * SECOND_LEVELS + second;
        let head = self.heads[slot];
        let block = self.block_mut(id);
        block.free = true;
        block.older = head;
        block.newer = NONE;
        if head != NONE {
            self.block_mut(head).newer = id;
        }
        self.heads[slot] = id;
        self.first_map |= 1 << first;
        self.second_maps[first] |= 1 << second;
        self.free_bytes += len;
        self.whole_spans += self.spans_in(start, start + len).1 as u32;
    }

    fn pull_free(&mut self, id: BlockId) {
        let block = *self.block(id);
        if block.older != NONE {
            self.block_mut(block.older).newer = block.newer;
        }
        if block.newer != NONE {
            self.block_mut(block.newer).older = block.older;
        } else {
            let (first, second) = self.class(block.len);
            self.heads[first * SECOND_LEVELS + second] = block.older;
            if block.older == NONE {
                self.second_maps[first] &= !(1 << second);
                if self.second_maps[first] == 0 {
                    self.first_map &= !(1 << first);
                }
            }
        }
        self.block_mut(id).free = false;
        self.free_bytes -= block.len;
        self.whole_spans -= self.spans_in(block.start, block.end()).1 as u32;
    }

    /// A block of at least `len` bytes among the next `tries` of a list.
    fn search_list(&self, mut id: BlockId, len: u64, tries: usize) -> Option<BlockId> {
        for _ in 0..tries {
            if id == NONE {
                return None;
            }
            let block = self.block(id);
            if block.len >= len {
                return Some(id);
            }
            id = block.older;
        }
        None
    }

    fn find(&self, len: u64) -> Option<BlockId> {
        let (first, second) = self.class(len);
        let own = self.heads[first * SECOND_LEVELS + second];
        if let Some(id) = self.search_list(own, len, QUICK_TRIES) {
            return Some(id);
        }
        let larger_parts = self.second_maps[first] & (!0u16).checked_shl(second as u32 + 1).unwrap_or(0);
        if larger_parts != 0 {
            return Some(self.heads[first * SECOND_LEVELS + larger_parts.trailing_zeros() as usize]);
        }
        let larger = self.first_map & (!0u64 << (first + 1));
        if larger != 0 {
            let first = larger.trailing_zeros() as usize;
            let second = self.second_maps[first].trailing_zeros() as usize;
            return Some(self.heads[first * SECOND_LEVELS + second]);
        }
        self.search_list(own, len, usize::MAX)
    }

    /// Takes a block of exactly `len` bytes, a multiple of the unit and not 0.
    pub(super) fn alloc(&mut self, len: u64) -> Option<BlockId> {
        debug_assert!(len > 0 && len & ((1 << self.unit_shift) - 1) == 0);
        let id = self.find(len)?;
        self.pull_free(id);
        if self.block(id).len > len {
            let rest = self.split(id, len);
            self.push_free(rest);
        }
        self.used_bytes += len;
        Some(id)
    }

    /// Cuts a used block in two, the first of `len` bytes, both used; the second one's id.
    pub(super) fn cut(&mut self, id: BlockId, len: u64) -> BlockId {
        debug_assert!(!self.block(id).free && len & ((1 << self.unit_shift) - 1) == 0);
        self.split(id, len)
    }

    /// Cuts a block that is on no list; the second part is on no list either.
    fn split(&mut self, id: BlockId, len: u64) -> BlockId {
        let block = *self.block(id);
        debug_assert!(len > 0 && len < block.len);
        let rest = self.blocks.insert(Block {
            start: block.start + len,
            len: block.len - len,
            before: id,
            after: block.after,
            older: NONE,
            newer: NONE,
            free: false,
        }) as BlockId;
        if block.after != NONE {
            self.block_mut(block.after).before = rest;
        } else if self.joined {
            self.last_at.insert(block.end(), rest);
        }
        let block = self.block_mut(id);
        block.len = len;
        block.after = rest;
        rest
    }

    /// Makes one block of two neighbours that are on no list.
    fn merge(&mut self, id: BlockId, right: BlockId) {
        let gone = self.blocks.remove(right as usize);
        let block = self.block_mut(id);
        debug_assert!(block.end() == gone.start && block.after == right);
        block.len += gone.len;
        block.after = gone.after;
        if gone.after != NONE {
            self.block_mut(gone.after).before = id;
        } else if self.joined {
            self.last_at.insert(gone.end(), id);
        }
    }

    /// Gives a used block back; the free block that it is part of now.
    pub(super) fn free(&mut self, id: BlockId) -> BlockId {
        debug_assert!(!self.block(id).free, "a free block is freed");
        self.used_bytes -= self.block(id).len;
        self.settle(id)
    }

    /// Puts a block that is on no list on its list, as one with its free neighbours.
    fn settle(&mut self, mut id: BlockId) -> BlockId {
        let (before, after) = (self.block(id).before, self.block(id).after);
        if after != NONE && self.block(after).free {
            self.pull_free(after);
            self.merge(id, after);
        }
        if before != NONE && self.block(before).free {
            self.pull_free(before);
            self.merge(before, id);
            id = before;
        }
        self.push_free(id);
        id
    }

    /// More memory.
    pub(super) fn add_region(&mut self, start: u64, len: u64) -> BlockId {
        let (mut before, mut after) = (NONE, NONE);
        if self.joined {
            before = self.last_at.remove(&start).unwrap_or(NONE);
            after = self.first_at.remove(&(start + len)).unwrap_or(NONE);
        }
        let block = Block { start, len, before, after, older: NONE, newer: NONE, free: false };
        let id = self.blocks.insert(block) as BlockId;
        if before != NONE {
            self.block_mut(before).after = id;
        } else if self.joined {
            self.first_at.insert(start, id);
        }
        if after != NONE {
            self.block_mut(after).before = id;
        } else if self.joined {
            self.last_at.insert(start + len, id);
        }
        self.settle(id)
    }

    /// Takes a region that is one free block away; its address and length.
    pub(super) fn remove_region(&mut self, id: BlockId) -> (u64, u64) {
        debug_assert!(self.block(id).free && self.is_whole_region(id));
        self.pull_free(id);
        let block = self.blocks.remove(id as usize);
        if self.joined {
            self.first_at.remove(&block.start);
            self.last_at.remove(&block.end());
        }
        (block.start, block.len)
    }

    /// A free block with a whole span in it, the largest class first.
    pub(super) fn find_whole_span(&self) -> Option<BlockId> {
        if self.whole_spans == 0 {
            return None;
        }
        let mut firsts = self.first_map;
        while firsts != 0 {
            let first = firsts.ilog2() as usize;
            let mut seconds = self.second_maps[first];
            while seconds != 0 {
                let second = seconds.ilog2() as usize;
                let mut id = self.heads[first * SECOND_LEVELS + second];
                while id != NONE {
                    let block = self.block(id);
                    if self.spans_in(block.start, block.end()).1 > 0 {
                        return Some(id);
                    }
                    id = block.older;
                }
                seconds &= !(1 << second);
            }
            firsts &= !(1 << first);
        }
        None
    }

    /// Takes up to `most` whole spans, the last ones, out of a free block: (first, count). The addresses before and after them
    /// become the edges of regions.
    pub(super) fn take_spans(&mut self, id: BlockId, most: u32) -> (u32, u32) {
        debug_assert!(self.joined && self.block(id).free);
        let (first, whole) = self.spans_in(self.block(id).start, self.block(id).end());
        let count = whole.min(u64::from(most));
        if count == 0 {
            return (0, 0);
        }
        let first = first + whole - count;
        let (cut_start, cut_end) = (first << self.span_shift, (first + count) << self.span_shift);
        self.pull_free(id);
        let mut middle = id;
        if self.block(id).start < cut_start {
            let len = cut_start - self.block(id).start;
            middle = self.split(id, len);
        }
        let mut right = NONE;
        if self.block(middle).end() > cut_end {
            let len = cut_end - cut_start;
            right = self.split(middle, len);
        }
        self.unlink_region(middle);
        if middle != id {
            self.push_free(id);
        }
        if right != NONE {
            self.push_free(right);
        }
        (first as u32, count as u32)
    }

    /// Takes a block that is on no list out of memory; its neighbours are at an edge afterwards.
    fn unlink_region(&mut self, id: BlockId) {
        let gone = self.blocks.remove(id as usize);
        if gone.before != NONE {
            self.block_mut(gone.before).after = NONE;
            self.last_at.insert(gone.start, gone.before);
        } else {
            self.first_at.remove(&gone.start);
        }
        if gone.after != NONE {
            self.block_mut(gone.after).before = NONE;
            self.first_at.insert(gone.end(), gone.after);
        } else {
            self.last_at.remove(&gone.end());
        }
    }

    /// Used blocks: (id, address, length).
    pub(super) fn used(&self) -> impl Iterator<Item = (BlockId, u64, u64)> + '_ {
        self.blocks.iter().filter(|(_, b)| !b.free).map(|(id, b)| (id as BlockId, b.start, b.len))
    }

    /// Regions: (address, length).
    pub(super) fn regions(&self) -> Vec<(u64, u64)> {
        let mut regions = Vec::new();
        for (_, block) in self.blocks.iter().filter(|(_, b)| b.before == NONE) {
            let (mut len, mut next) = (block.len, block.after);
            while next != NONE {
                len += self.block(next).len;
                next = self.block(next).after;
            }
            regions.push((block.start, len));
        }
        regions.sort_unstable();
        regions
    }

    /// Verifies the books: blocks tile their regions, no two free blocks touch, lists, maps and sums are right.
    pub(super) fn check(&self) -> Result<(), String> {
        let (mut free_bytes, mut used_bytes, mut whole, mut frees) = (0, 0, 0, 0usize);
        for (id, block) in self.blocks.iter() {
            let unit_mask = (1u64 << self.unit_shift) - 1;
            if block.len == 0 || (block.start | block.len) & unit_mask != 0 {
                return Err(format!("block {id} {block:?} is not a multiple of the unit"));
            }
            self.check_neighbours(id as BlockId, block)?;
            if block.free {
                free_bytes += block.len;
                whole += self.spans_in(block.start, block.end()).1;
                frees += 1;
            } else {
                used_bytes += block.len;
            }
        }
        let sums = (free_bytes, used_bytes, whole);
        let kept = (self.free_bytes, self.used_bytes, u64::from(self.whole_spans));
        if sums != kept {
            return Err(format!("sums (free bytes, used bytes, whole spans) are {sums:?}, kept are {kept:?}"));
        }
        let listed = self.check_lists()?;
        if listed != frees {
            return Err(format!("{frees} free blocks, {listed} on lists"));
        }
        Ok(())
    }

    fn check_neighbours(&self, id: BlockId, block: &Block) -> Result<(), String> {
        if block.after != NONE {
            let after = self.block(block.after);
            if after.before != id || after.start != block.end() || (after.free && block.free) {
                return Err(format!("block {id} {block:?} and its neighbour {after:?} don't fit"));
            }
        } else if self.joined && self.last_at.get(&block.end()) != Some(&id) {
            return Err(format!("block {id} {block:?} ends a region and is not known to"));
        }
        if block.before == NONE && self.joined && self.first_at.get(&block.start) != Some(&id) {
            return Err(format!("block {id} {block:?} starts a region and is not known to"));
        }
        Ok(())
    }

    fn check_lists(&self) -> Result<usize, String> {
        let (mut listed, mut classes) = (0, 0);
        for (first, map) in self.second_maps.iter().enumerate() {
            if (*map != 0) != (self.first_map >> first & 1 == 1) {
                return Err(format!("power {first}: the two maps disagree"));
            }
            let mut rest = *map;
            while rest != 0 {
                let second = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                classes += 1;
                listed += self.check_list(first, second)?;
            }
        }
        let heads = self.heads.iter().filter(|head| **head != NONE).count();
        if heads != classes {
            return Err(format!("{heads} lists, {classes} in the maps"));
        }
        Ok(listed)
    }

    fn check_list(&self, first: usize, second: usize) -> Result<usize, String> {
        let (mut id, mut newer, mut listed) = (self.heads[first * SECOND_LEVELS + second], NONE, 0);
        if id == NONE {
            return Err(format!("class ({first}, {second}) is in the maps and empty"));
        }
        while id != NONE {
            let block = self.block(id);
            if !block.free || block.newer != newer || self.class(block.len) != (first, second) {
                return Err(format!("block {id} {block:?} is on the wrong list ({first}, {second})"));
            }
            listed += 1;
            newer = id;
            id = block.older;
        }
        Ok(listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: u64 = 1 << 20;

    fn one_region(len: u64) -> Blocks {
        let mut blocks = Blocks::new(4096, SPAN, true);
        blocks.add_region(0, len);
        blocks
    }

    #[test]
    fn neighbours_that_are_freed_become_one_block_again_in_any_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut blocks = one_region(SPAN);
            let ids: Vec<_> = (0..3).map(|_| blocks.alloc(8192).unwrap()).collect();
            for index in order {
                blocks.free(ids[index]);
                blocks.check().unwrap();
            }
            assert_eq!(blocks.alloc(SPAN).map(|id| blocks.start(id)), Some(0));
        }
    }

    #[test]
    fn a_block_that_fits_is_found_though_its_class_has_many_that_dont() {
        let mut blocks = Blocks::new(4096, SPAN, true);
        // 32 and 33 units are of one class; only the first (last to be tried) of the blocks is large enough.
        for index in 0..40u64 {
            let units = if index == 0 { 33 } else { 32 };
            blocks.add_region(index * SPAN, units * 4096);
        }
        let id = blocks.alloc(33 * 4096).expect("the one block of 33 units");
        assert_eq!(blocks.start(id), 0);
        assert!(blocks.alloc(33 * 4096).is_none());
        blocks.check().unwrap();
    }

    #[test]
    fn memory_freed_last_is_used_first() {
        let mut blocks = one_region(SPAN);
        let ids: Vec<_> = (0..6).map(|_| blocks.alloc(8192).unwrap()).collect();
        let (second, fourth) = (blocks.start(ids[1]), blocks.start(ids[3]));
        blocks.free(ids[1]);
        blocks.free(ids[3]);
        let again: Vec<_> = (0..2).map(|_| blocks.alloc(8192).unwrap()).collect();
        assert_eq!(blocks.start(again[0]), fourth);
        assert_eq!(blocks.start(again[1]), second);
    }

    #[test]
    fn regions_that_touch_hold_a_block_across_their_border() {
        let mut blocks = Blocks::new(4096, SPAN, true);
        blocks.add_region(2 * SPAN, SPAN);
        blocks.add_region(0, SPAN);
        assert!(blocks.alloc(2 * SPAN).is_none());
        blocks.add_region(SPAN, SPAN);
        blocks.check().unwrap();
        assert_eq!(blocks.regions(), [(0, 3 * SPAN)]);
        assert!(blocks.alloc(3 * SPAN).is_some());
    }

    #[test]
    fn spans_taken_back_leave_the_rest_of_the_block_usable() {
        let mut blocks = one_region(4 * SPAN);
        let low = blocks.alloc(4096).unwrap();
        let free = blocks.find_whole_span().unwrap();
        assert_eq!(blocks.whole_spans(), 3);
        assert_eq!(blocks.take_spans(free, 2), (2, 2));
        blocks.check().unwrap();
        assert_eq!(blocks.regions(), [(0, 2 * SPAN)]);
        assert_eq!(blocks.free_bytes(), 2 * SPAN - 4096);
        blocks.free(low);
        let free = blocks.find_whole_span().unwrap();
        assert_eq!(blocks.take_spans(free, 9), (0, 2));
        assert_eq!((blocks.free_bytes(), blocks.whole_spans()), (0, 0));
        blocks.check().unwrap();
    }

    #[test]
    fn a_span_taken_from_the_middle_leaves_two_regions_that_rejoin_when_it_returns() {
        let mut blocks = one_region(3 * SPAN);
        let low = blocks.alloc(4096).unwrap();
        let rest = blocks.alloc(3 * SPAN - 8192).unwrap();
        let high = blocks.alloc(4096).unwrap();
        blocks.free(rest);
        let free = blocks.find_whole_span().unwrap();
        assert_eq!(blocks.take_spans(free, 1), (1, 1));
        blocks.check().unwrap();
        assert_eq!(blocks.regions(), [(0, SPAN), (2 * SPAN, SPAN)]);
        blocks.add_region(SPAN, SPAN);
        blocks.free(low);
        blocks.free(high);
        blocks.check().unwrap();
        assert_eq!(blocks.regions(), [(0, 3 * SPAN)]);
        assert_eq!(blocks.whole_spans(), 3);
    }
}
