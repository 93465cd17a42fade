//! An object on its way to here: what is known of it, and what is there.

use smallvec::SmallVec;

use super::receive_api::ChunkHead;
use crate::ids::{NodeId, WorkerId};

/// The sizes of an object and its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) total_bytes: u64,
    pub(super) metadata_bytes: u64,
}

impl Shape {
    pub(super) fn of(head: &ChunkHead) -> Self {
        Self { total_bytes: head.total_bytes, metadata_bytes: head.metadata_bytes }
    }
}

/// A chunk that waits for its object's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) ticket: u64,
    pub(super) head: ChunkHead,
}

/// A chunk that is all of its object, and came before there was memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Early {
    /// There is none.
    None,
    /// It waits, its bytes are still to come.
    Held(Waiting),
    /// It could not wait so long: its node is asked again.
    Missed,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Nothing has come yet.
    Expected,
    /// The store was asked for memory.
    Creating { token: u64, shape: Shape, waiting: Vec<Waiting>, early: Early },
    /// There is memory; `have` has a bit for each chunk. `landing` are chunks on their way into it, at most one for each connection.
    Open { shape: Shape, have: Vec<u64>, missing: u64, landing: Landing, lent: bool },
}

/// Chunks on their way into an object: ticket and number.
pub(super) type Landing = SmallVec<[(u64, u32); LANDING_USUAL]>;

/// Connections to a node with which no memory is asked for to note what lands.
pub(super) const LANDING_USUAL: usize = 8;

/// An object that was given up while chunks were on their way into it, or being read of it.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) landing: Landing,
    pub(super) lent: bool,
    /// It is expected again, once its memory is nobody's.
    pub(super) again: Option<Again>,
}

/// What is to be done with an object that is expected again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again {
    pub(super) owner: WorkerId,
    pub(super) from: NodeId,
    /// An offer that came meanwhile.
    pub(super) offer: Option<ChunkHead>,
    /// Something else came that could not be used: the node has to be asked again.
    pub(super) lost: bool,
}

/// What is there of an object that is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent<'a> {
    /// Who owns it.
    pub owner: WorkerId,
    /// Size of the whole object: data, and the metadata behind them.
    pub total_bytes: u64,
    /// Size of the metadata.
    pub metadata_bytes: u64,
    pub(super) have: &'a [u64],
}

impl Lent<'_> {
    /// The numbers of the chunks that are there.
    pub fn chunks(&self) -> impl Iterator<Item = u32> + '_ {
        let words = self.have.iter().enumerate();
        words.flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| word as u32 * 64 + bit)
        })
    }
}

/// Pushes of a node that are remembered as left. A later one still can't mix bytes, it only starts the object anew.
pub(super) const LEFT_MAX: usize = 4;

#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) owner: WorkerId,
    pub(super) from: NodeId,
    /// The push that is taken, once a chunk has said.
    pub(super) push: Option<u64>,
    /// Those before it, of the same node.
    pub(super) left: [Option<u64>; LEFT_MAX],
    /// The push of the node whose offer is being taken, or waits for memory.
    pub(super) offered: Option<u64>,
    pub(super) phase: Phase,
}

impl Receiving {
    pub(super) fn new(owner: WorkerId, from: NodeId) -> Self {
        Self { owner, from, push: None, left: [None; LEFT_MAX], offered: None, phase: Phase::Expected }
    }

    /// True where its memory is being written to or read.
    pub(super) fn is_busy(&self) -> bool {
        matches!(&self.phase, Phase::Open { landing, lent, .. } if *lent || !landing.is_empty())
    }

    /// The chunk that came early waits no longer.
    pub(super) fn take_early(&mut self, then: Early) -> Option<Waiting> {
        let Phase::Creating { early, .. } = &mut self.phase else {
            return None;
        };
        match std::mem::replace(early, then) {
            Early::Held(chunk) => Some(chunk),
            Early::None | Early::Missed => None,
        }
    }

    /// Bytes of chunks that wait for memory.
    pub(super) fn waiting_bytes(&self) -> u64 {
        match &self.phase {
            Phase::Creating { waiting, .. } => waiting.iter().map(|chunk| chunk.head.len_bytes).sum(),
            Phase::Expected | Phase::Open { .. } => 0,
        }
    }

    /// Verifies what the state says twice.
    pub(super) fn check(&self, chunk_bytes: u64) -> Result<(), String> {
        let Phase::Open { shape, have, missing, landing, .. } = &self.phase else {
            return Ok(());
        };
        let on_both = |index: &u32| have[bit_of(*index).0] & bit_of(*index).1 != 0;
        if let Some((ticket, index)) = landing.iter().find(|(_, index)| on_both(index)) {
            return Err(format!("chunk {index} is here, and lands as {ticket}"));
        }
        let there: u64 = have.iter().map(|word| u64::from(word.count_ones())).sum();
        let chunks = shape.total_bytes.div_ceil(chunk_bytes);
        if there + missing != chunks || *missing == 0 {
            return Err(format!("{there} chunks are here, {missing} are missing, of {chunks}"));
        }
        Ok(())
    }

    pub(super) fn again(&self) -> Again {
        Again { owner: self.owner, from: self.from, offer: None, lost: false }
    }

    /// Leaves a push for another one.
    pub(super) fn leave(&mut self, before: u64, push: u64) {
        self.offered = None;
        match self.left.iter_mut().find(|left| **left == Some(push)) {
            Some(left) => *left = Some(before),
            None => {
                self.left.rotate_right(1);
                self.left[0] = Some(before);
            }
        }
    }

    /// Takes from another node or another push from now on: nothing that is here counts.
    pub(super) fn begin_anew(&mut self, chunk_bytes: u64) {
        if let Phase::Open { shape, have, missing, .. } = &mut self.phase {
            have.fill(0);
            *missing = shape.total_bytes.div_ceil(chunk_bytes);
        }
    }
}

/// Where a chunk's bit is.
pub(super) fn bit_of(index: u32) -> (usize, u64) {
    ((index / 64) as usize, 1 << (index % 64))
}
