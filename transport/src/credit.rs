//! Allocation credit: small objects without a round trip.
//!
//! A client asks for a **run**, a private piece of a segment. It writes objects into the run, one behind the other, each starting on a
//! multiple of 64, and tells the node of each with one [`Publish`](crate::messages::Publish): that creates and seals the object. Nothing
//! has to come back, since the memory was given before.
//!
//! | who | what | message |
//! |---|---|---|
//! | client | asks for memory, ahead of need | `RequestCredit{size}` |
//! | node | takes a run from the shard that serves the connection; its bytes count as used | `CreditGranted{credit, segment, offset, size}` |
//! | client | takes the next bytes of the run ([`Run::take`]), writes data and metadata | |
//! | client | publishes, in the order of taking | `Publish{object, credit, offset, lengths, pin}` |
//! | node | checks offset and lengths against its own record of the run ([`Ledger::publish`]), puts the object into the table, sealed, and wakes whoever waits for it | nothing, or `Refused` |
//! | client | has no room left, or no more use for the run | `ReturnCredit{credit}` |
//! | node | takes what is left of the run back | |
//!
//! - **Nobody reads what is not published.** Between the client's last write to an object and any reader's first read lies the ring
//!   (release of the stamp, acquire of the stamp) or the socket, and then the node's answer to the reader.
//! - **Order is the check.** An object has to start exactly where the last one ended, rounded up to 64. So the node's record of a run is
//!   one number, objects of a run can't overlap, and a client that lies about offsets gets
//!   [`RefusalCode::BadPublish`](crate::messages::RefusalCode::BadPublish) and loses the run.
//! - **Each object is then on its own**: its lines go back to the shard when it is deleted, whatever becomes of the run.
//! - **A refused object** (its id exists) takes its place in the run all the same, and the node frees its lines at once.
//! - **An object that was begun and given up** is published nowhere; the client takes its bytes again for the next one
//!   ([`Run::take`] moves nothing, [`Run::published`] does).
//! - **Death of the client.** Its socket closes. The node first reads what is still in the ring, since a `Publish` there is complete, then
//!   takes back what is left of each run ([`Ledger::close`]): bytes that were written and not published are nobody's. Published objects stay
//!   as long as others use them; the pins that the client held end with it. A client that is killed between writing and publishing has
//!   harmed nobody, and one killed between a record's words and its stamp has not written a record.
//! - **Bounds.** [`Limits::credit_bytes`](crate::messages::Limits::credit_bytes) and
//!   [`Limits::credit_runs`](crate::messages::Limits::credit_runs); above them `LimitReached`, and the client falls back to
//!   [`Create`](crate::messages::Create), which costs two round trips and may wait for room.

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;

use crate::messages::{Refusal, RefusalCode};

/// Objects in a run start on multiples of this.
pub const LINE_BYTES: u32 = 64;

/// What a client asks for, unless its objects are larger.
pub const RUN_BYTES: u32 = 256 << 10;

/// Objects above this are created singly: their copy takes longer than a round trip.
pub const OBJECT_MAX_BYTES: u32 = 64 << 10;

/// Length of an object in its run: whole lines, and one for an object of no bytes, so that no two start at one place.
pub fn taken_bytes(data_bytes: u32, metadata_bytes: u32) -> Option<u32> {
    data_bytes.checked_add(metadata_bytes)?.max(1).checked_next_multiple_of(LINE_BYTES)
}

/// The client's record of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its number.
    pub credit: u32,
    /// Which segment.
    pub segment: u32,
    /// Its start, in bytes from the start of the segment.
    pub offset_bytes: u64,
    /// Its length.
    pub size_bytes: u32,
    /// Where the next object starts, in bytes from the start of the run.
    next_bytes: u32,
}

impl Run {
    /// A run as it was granted.
    pub fn new(credit: u32, segment: u32, offset_bytes: u64, size_bytes: u32) -> Self {
        Self { credit, segment, offset_bytes, size_bytes, next_bytes: 0 }
    }

    /// Where an object of these lengths would start, in bytes from the start of the run. `None`: it does not fit.
    pub fn take(&self, data_bytes: u32, metadata_bytes: u32) -> Option<u32> {
        let end = self.next_bytes.checked_add(taken_bytes(data_bytes, metadata_bytes)?)?;
        (end <= self.size_bytes).then_some(self.next_bytes)
    }

    /// The object that [`take`](Self::take) found a place for is published.
    pub fn published(&mut self, data_bytes: u32, metadata_bytes: u32) {
        let taken = taken_bytes(data_bytes, metadata_bytes).unwrap_or(0);
        self.next_bytes = self.next_bytes.saturating_add(taken).min(self.size_bytes);
    }

    /// What is left.
    pub fn left_bytes(&self) -> u32 {
        self.size_bytes - self.next_bytes
    }
}

/// The node's record of a client's runs.
#[derive(Debug)]
pub struct Ledger {
    runs: HashMap<u32, Granted, FxBuildHasher>,
    next_credit: u32,
    granted_bytes: u64,
    limit_bytes: u64,
    limit_runs: usize,
}

/// A run as the node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Granted {
    segment: u32,
    offset_bytes: u64,
    size_bytes: u32,
    next_bytes: u32,
}

/// A piece of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which segment.
    pub segment: u32,
    /// Its start, in bytes from the start of the segment.
    pub offset_bytes: u64,
    /// Its length.
    pub size_bytes: u32,
}

impl Ledger {
    /// Without runs. The limits are those of [`Limits`](crate::messages::Limits).
    pub fn new(limit_bytes: u32, limit_runs: u32) -> Self {
        Self {
            runs: HashMap::default(),
            next_credit: 0,
            granted_bytes: 0,
            limit_bytes: limit_bytes.into(),
            limit_runs: limit_runs as usize,
        }
    }

    /// How much of a request may be granted: whole lines, at least one.
    ///
    /// # Errors
    /// [`RefusalCode::LimitReached`] where the client has as much as it may have.
    pub fn admit(&self, wanted_bytes: u32) -> Result<u32, Refusal> {
        let left = self.limit_bytes.saturating_sub(self.granted_bytes);
        let size = left.min(wanted_bytes.into()) as u32 / LINE_BYTES * LINE_BYTES;
        if size == 0 || self.runs.len() >= self.limit_runs {
            let (runs, bytes) = (self.runs.len(), self.granted_bytes);
            return Err(Refusal::new(
                RefusalCode::LimitReached,
                format!(
                    "{wanted_bytes} bytes of credit asked for, {runs} runs of {bytes} bytes are granted, at most {} of {} may be",
                    self.limit_runs, self.limit_bytes
                ),
            ));
        }
        Ok(size)
    }

    /// A run is granted; its number.
    pub fn grant(&mut self, piece: Piece) -> u32 {
        let Piece { segment, offset_bytes, size_bytes } = piece;
        while self.runs.contains_key(&self.next_credit) {
            self.next_credit = self.next_credit.wrapping_add(1);
        }
        let credit = self.next_credit;
        self.next_credit = credit.wrapping_add(1);
        self.granted_bytes += u64::from(size_bytes);
        self.runs.insert(credit, Granted { segment, offset_bytes, size_bytes, next_bytes: 0 });
        credit
    }

    /// An object is published: the lines that are its own from here on. The object's data starts at the piece's start.
    ///
    /// # Errors
    /// [`RefusalCode::UnknownCredit`], or [`RefusalCode::BadPublish`]: then the caller ends the run ([`close_run`](Self::close_run)).
    #[inline]
    pub fn publish(
        &mut self,
        credit: u32,
        offset_bytes: u32,
        data_bytes: u32,
        metadata_bytes: u32,
    ) -> Result<Piece, Refusal> {
        let Some(run) = self.runs.get_mut(&credit) else {
            return Err(Refusal::new(RefusalCode::UnknownCredit, format!("run {credit}")));
        };
        let taken = taken_bytes(data_bytes, metadata_bytes);
        let end = taken.and_then(|taken| offset_bytes.checked_add(taken)).filter(|end| *end <= run.size_bytes);
        let (Some(taken), Some(end), true) = (taken, end, offset_bytes == run.next_bytes) else {
            return Err(Refusal::new(
                RefusalCode::BadPublish,
                format!(
                    "{data_bytes} + {metadata_bytes} bytes at {offset_bytes} of run {credit}, expected them at {} and to end within {}",
                    run.next_bytes, run.size_bytes
                ),
            ));
        };
        run.next_bytes = end;
        self.granted_bytes -= u64::from(taken);
        let offset_bytes = run.offset_bytes + u64::from(offset_bytes);
        Ok(Piece { segment: run.segment, offset_bytes, size_bytes: taken })
    }

    /// A run ends: what is left of it, if anything is.
    ///
    /// # Errors
    /// [`RefusalCode::UnknownCredit`].
    pub fn close_run(&mut self, credit: u32) -> Result<Option<Piece>, Refusal> {
        match self.runs.remove(&credit) {
            None => Err(Refusal::new(RefusalCode::UnknownCredit, format!("run {credit}"))),
            Some(run) => {
                let rest = rest_of(run);
                self.granted_bytes -= rest.map_or(0, |piece| u64::from(piece.size_bytes));
                Ok(rest)
            }
        }
    }

    /// The client is gone: what is left of all its runs.
    pub fn close(&mut self) -> impl Iterator<Item = Piece> + '_ {
        self.granted_bytes = 0;
        self.runs.drain().filter_map(|(_, run)| rest_of(run))
    }

    /// Bytes granted and not published.
    pub fn granted_bytes(&self) -> u64 {
        self.granted_bytes
    }
}

fn rest_of(run: Granted) -> Option<Piece> {
    let size_bytes = run.size_bytes - run.next_bytes;
    let offset_bytes = run.offset_bytes + u64::from(run.next_bytes);
    (size_bytes > 0).then_some(Piece { segment: run.segment, offset_bytes, size_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn granted(size_bytes: u32) -> (Ledger, Run) {
        let mut ledger = Ledger::new(1 << 20, 4);
        let credit = ledger.grant(Piece { segment: 1, offset_bytes: 4096, size_bytes });
        (ledger, Run::new(credit, 1, 4096, size_bytes))
    }

    #[test]
    fn objects_follow_each_other_in_whole_lines() {
        let (mut ledger, mut run) = granted(256);
        let mut starts = Vec::new();
        for (data, metadata) in [(1, 0), (0, 0), (60, 4)] {
            let offset = run.take(data, metadata).unwrap();
            starts.push(ledger.publish(run.credit, offset, data, metadata).unwrap().offset_bytes);
            run.published(data, metadata);
        }
        assert_eq!(starts, [4096, 4160, 4224]);
        assert_eq!(run.take(65, 0), None, "one line is left");
        assert_eq!(ledger.granted_bytes(), 64);
        let rest = Piece { segment: 1, offset_bytes: 4096 + 192, size_bytes: 64 };
        assert_eq!(ledger.close_run(run.credit), Ok(Some(rest)));
        assert_eq!(ledger.granted_bytes(), 0);
        assert!(matches!(ledger.close_run(run.credit), Err(Refusal { code: RefusalCode::UnknownCredit, .. })));
    }

    #[test]
    fn an_object_given_up_leaves_its_place_to_the_next() {
        let (_, run) = granted(256);
        assert_eq!(run.take(100, 0), Some(0));
        assert_eq!(run.take(20, 0), Some(0));
    }

    #[test]
    fn a_lie_about_the_place_is_refused_and_changes_nothing() {
        let (mut ledger, run) = granted(256);
        for (offset, data, metadata) in
            [(64, 1, 0), (1, 1, 0), (0, 257, 0), (0, u32::MAX, 1), (0, 0, u32::MAX), (u32::MAX, 1, 1)]
        {
            let error = ledger.publish(run.credit, offset, data, metadata).unwrap_err();
            assert_eq!(error.code, RefusalCode::BadPublish, "{offset} {data} {metadata}");
        }
        assert_eq!(ledger.publish(9, 0, 1, 0).unwrap_err().code, RefusalCode::UnknownCredit);
        assert!(ledger.publish(run.credit, 0, 256, 0).is_ok());
        assert_eq!(ledger.close_run(run.credit), Ok(None), "all of it was published");
    }

    #[test]
    fn no_more_is_admitted_than_the_limits_say() {
        let mut ledger = Ledger::new(1000, 2);
        assert_eq!(ledger.admit(5000), Ok(960), "whole lines");
        assert_eq!(ledger.admit(63).unwrap_err().code, RefusalCode::LimitReached);
        ledger.grant(Piece { segment: 0, offset_bytes: 0, size_bytes: 640 });
        assert_eq!(ledger.admit(5000), Ok(320));
        ledger.grant(Piece { segment: 0, offset_bytes: 640, size_bytes: 64 });
        assert_eq!(ledger.admit(64).unwrap_err().code, RefusalCode::LimitReached, "two runs");
        assert_eq!(ledger.close().map(|p| p.size_bytes).sum::<u32>(), 704);
        assert_eq!(ledger.admit(5000), Ok(960));
    }

    proptest! {
        /// Every byte of a run ends as part of exactly one object or of the rest, whatever is published.
        #[test]
        fn bytes_are_conserved(publishes in prop::collection::vec((0u32..2000, 0u32..300, any::<bool>()), 0..100)) {
            let size = 16 << 10;
            let (mut ledger, mut run) = granted(size);
            let mut end = 4096u64;
            for (data, metadata, lie) in publishes {
                if lie {
                    prop_assert!(ledger.publish(run.credit, run.size_bytes - run.left_bytes() + 64, data, metadata).is_err());
                }
                let Some(offset) = run.take(data, metadata) else { continue };
                let piece = ledger.publish(run.credit, offset, data, metadata).unwrap();
                run.published(data, metadata);
                prop_assert_eq!(piece.offset_bytes, end);
                prop_assert!(piece.size_bytes >= data + metadata);
                end += u64::from(piece.size_bytes);
            }
            let rest = ledger.close_run(run.credit).unwrap().map_or(0, |p| { assert_eq!(p.offset_bytes, end); p.size_bytes });
            prop_assert_eq!(end + u64::from(rest), 4096 + u64::from(size));
            prop_assert_eq!(ledger.granted_bytes(), 0);
        }
    }
}
