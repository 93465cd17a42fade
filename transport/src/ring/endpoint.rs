//! One side of a pair of rings: both halves, and the protocol of sleeping and waking.
//!
//! Who wants to sleep announces it, and then looks once more before it does. Who writes looks for an announcement after it has written.
//! Between write and look stands a sequentially consistent fence on both sides, so at least one of them sees the other (Dekker): a
//! record is never missed, and nobody is woken who did not sleep.

use std::sync::Arc;

use super::layout::{sleep, CLIENT_SLEEP_LINE, NODE_SLEEP_LINE, RINGS_LINE, TO_CLIENT_HEAD_LINE, TO_NODE_HEAD_LINE};
use super::memory::Memory;
use super::sync::{fence, Ordering};
use super::{PushError, Receiver, Record, RingError, Sender};
use crate::frame::Head;

/// Which side of the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The node: reads the first ring, writes the second.
    Node,
    /// The client: the other way round.
    Client,
}

/// What to be woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// There is a record to read.
    pub for_data: bool,
    /// There is room to write a record with a body of so many bytes.
    pub for_space: Option<usize>,
}

impl Wake {
    /// A record to read, and nothing else.
    pub const DATA: Self = Self { for_data: true, for_space: None };
}

/// One side of a pair of rings. Once it has found the other side lying it refuses to go on, with the same error again.
pub struct Endpoint {
    memory: Arc<Memory>,
    sender: Sender,
    receiver: Receiver,
    own_sleep: usize,
    peer_sleep: usize,
    /// Records were written since the other side was last looked after.
    has_written: bool,
    /// What the other side knew of our reading when it was last looked after.
    told: u64,
    condemned: Option<RingError>,
}

impl Endpoint {
    /// A side of rings that nobody has used yet.
    pub fn new(memory: Arc<Memory>, side: Side) -> Self {
        let lines = memory.ring_lines() as usize;
        let (to_node, to_client) = ((RINGS_LINE, TO_NODE_HEAD_LINE), (RINGS_LINE + lines, TO_CLIENT_HEAD_LINE));
        let (write, read, own_sleep, peer_sleep) = match side {
            Side::Node => (to_client, to_node, NODE_SLEEP_LINE, CLIENT_SLEEP_LINE),
            Side::Client => (to_node, to_client, CLIENT_SLEEP_LINE, NODE_SLEEP_LINE),
        };
        Self {
            sender: Sender::new(memory.clone(), write.0, write.1),
            receiver: Receiver::new(memory.clone(), read.0, read.1),
            memory,
            own_sleep,
            peer_sleep,
            has_written: false,
            told: 0,
            condemned: None,
        }
    }

    /// The longest body that goes through the ring.
    pub fn body_max_bytes(&self) -> usize {
        self.sender.body_max_bytes()
    }

    /// Writes a record. After a batch of them ask [`must_wake`](Self::must_wake).
    ///
    /// # Errors
    /// [`PushError`]; nothing is written.
    #[inline]
    pub fn push(&mut self, head: Head, body: &[u8]) -> Result<(), PushError> {
        if let Some(error) = &self.condemned {
            return Err(PushError::Ring(error.clone()));
        }
        let outcome = self.sender.push(head, body);
        match &outcome {
            Ok(()) => self.has_written = true,
            Err(PushError::Ring(error)) => self.condemned = Some(error.clone()),
            Err(_) => {}
        }
        outcome
    }

    /// Copies the next record out. `false`: there is none.
    ///
    /// # Errors
    /// [`RingError`]: the other side lies; this ring is of no more use.
    #[inline]
    pub fn pop(&mut self, record: &mut Record) -> Result<bool, RingError> {
        if let Some(error) = &self.condemned {
            return Err(error.clone());
        }
        let outcome = self.receiver.pop(record);
        if let Err(error) = &outcome {
            self.condemned = Some(error.clone());
        }
        outcome
    }

    /// To be asked after a batch of reads and writes, before looking elsewhere: the other side sleeps and has to be woken through its
    /// doorbell. Says so once for each sleep.
    #[inline]
    pub fn must_wake(&mut self) -> bool {
        self.receiver.publish();
        let has_read = self.receiver.published() != self.told;
        if !self.has_written && !has_read {
            return false;
        }
        let news = if self.has_written { sleep::DATA } else { 0 } | if has_read { sleep::SPACE } else { 0 };
        self.has_written = false;
        self.told = self.receiver.published();
        // Our stamps and head are visible before the look at its announcement; see the module.
        fence(Ordering::SeqCst);
        let announced = &self.memory.lines()[self.peer_sleep][0];
        if announced.load(Ordering::Relaxed) & news == 0 {
            return false;
        }
        // It may have woken by itself meanwhile, and taken its announcement back.
        announced.swap(0, Ordering::AcqRel) & news != 0
    }

    /// Announces sleep, and what to be woken for. `true`: sleep now, until the doorbell rings or something else happens, then say
    /// [`awake`](Self::awake). `false`: there is something to do already.
    ///
    /// # Errors
    /// [`RingError`]: the other side lies.
    pub fn announce_sleep(&mut self, wake: Wake) -> Result<bool, RingError> {
        if let Some(error) = &self.condemned {
            return Err(error.clone());
        }
        let bits =
            if wake.for_data { sleep::DATA } else { 0 } | if wake.for_space.is_some() { sleep::SPACE } else { 0 };
        self.memory.lines()[self.own_sleep][0].store(bits, Ordering::Relaxed);
        // The announcement is visible before the last look; see the module.
        fence(Ordering::SeqCst);
        let found = self.look(wake);
        match found {
            Ok(false) => return Ok(true),
            Ok(true) => self.awake(),
            Err(ref error) => {
                self.condemned = Some(error.clone());
                self.awake();
            }
        }
        found.map(|_| false)
    }

    /// Takes the announcement back.
    pub fn awake(&mut self) {
        self.memory.lines()[self.own_sleep][0].store(0, Ordering::Relaxed);
    }

    /// Is there a record, or the room that is waited for?
    fn look(&mut self, wake: Wake) -> Result<bool, RingError> {
        if wake.for_data && self.receiver.peek()?.is_some() {
            return Ok(true);
        }
        match wake.for_space {
            Some(bytes) => self.sender.has_room(super::layout::lines_of(bytes.min(self.body_max_bytes()))),
            None => Ok(false),
        }
    }

    /// Is there room for a record with a body of so many bytes? `false` also where the ring is of no more use.
    pub fn has_room(&mut self, body_bytes: usize) -> bool {
        self.sender.has_room(super::layout::lines_of(body_bytes)).unwrap_or(false)
    }

    /// Why the ring is of no more use.
    pub fn condemned(&self) -> Option<&RingError> {
        self.condemned.as_ref()
    }
}

#[cfg(all(test, not(loom)))]
impl Endpoint {
    pub(super) fn sender_mut(&mut self) -> &mut Sender {
        &mut self.sender
    }

    pub(super) fn receiver_mut(&mut self) -> &mut Receiver {
        &mut self.receiver
    }
}
