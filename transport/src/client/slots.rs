//! Requests under way: each has a slot until its answer is fetched.

use std::task::Waker;

use crate::ids::ObjectId;
use crate::messages::OwnedReply;

/// Names a request under way: its slot. On the wire it is the number plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u32);

/// What to do with an answer that nobody waits for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undo {
    /// Nothing.
    Nothing,
    /// The object is in use now: release it.
    Release(ObjectId),
    /// The object was created: abort it.
    Abort(ObjectId),
    /// The lease was granted: return it.
    Return(u32),
}

enum Slot {
    Free,
    Waiting { undo: Undo, waker: Option<Waker> },
    Answered { undo: Undo, answer: Box<OwnedReply> },
    Abandoned { undo: Undo },
}

/// All slots of a connection.
#[derive(Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    /// A slot for a request that is about to be sent.
    pub(crate) fn open(&mut self, undo: Undo) -> Ticket {
        let slot = Slot::Waiting { undo, waker: None };
        match self.free.pop() {
            Some(n) => {
                self.slots[n as usize] = slot;
                Ticket(n)
            }
            None => {
                self.slots.push(slot);
                Ticket(self.slots.len() as u32 - 1)
            }
        }
    }

    /// The request was not sent after all.
    pub(crate) fn forget(&mut self, ticket: Ticket) {
        self.slots[ticket.0 as usize] = Slot::Free;
        self.free.push(ticket.0);
    }

    /// On the wire.
    pub(crate) fn correlation(ticket: Ticket) -> u32 {
        ticket.0 + 1
    }

    /// Requests whose answer has not come.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Waiting { .. } | Slot::Abandoned { .. })).count()
    }

    /// An answer has come. `Err`: nobody asked for it. `Ok(undo)`: what is to be done about it.
    pub(crate) fn answer(&mut self, correlation: u32, answer: OwnedReply) -> Result<Undo, Box<OwnedReply>> {
        let answer = Box::new(answer);
        let Some(slot) = correlation.checked_sub(1).and_then(|n| self.slots.get_mut(n as usize)) else {
            return Err(answer);
        };
        match std::mem::replace(slot, Slot::Free) {
            Slot::Waiting { undo, waker } => {
                *slot = Slot::Answered { undo, answer };
                waker.into_iter().for_each(Waker::wake);
                Ok(Undo::Nothing)
            }
            Slot::Abandoned { undo } => {
                self.free.push(correlation - 1);
                let is_refused = matches!(*answer, OwnedReply::Refused(_));
                Ok(if is_refused { Undo::Nothing } else { undo })
            }
            other => {
                *slot = other;
                Err(answer)
            }
        }
    }

    /// The answer, if it has come. The ticket is used up then.
    pub(crate) fn take(&mut self, ticket: Ticket) -> Option<Box<OwnedReply>> {
        let slot = &mut self.slots[ticket.0 as usize];
        match std::mem::replace(slot, Slot::Free) {
            Slot::Answered { answer, .. } => {
                self.free.push(ticket.0);
                Some(answer)
            }
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Who is to be woken when the answer comes.
    pub(crate) fn set_waker(&mut self, ticket: Ticket, new: &Waker) {
        if let Slot::Waiting { waker, .. } = &mut self.slots[ticket.0 as usize] {
            match waker {
                Some(old) if old.will_wake(new) => {}
                _ => *waker = Some(new.clone()),
            }
        }
    }

    /// Nobody waits for the answer any more. The undo is due now if it has come already.
    pub(crate) fn abandon(&mut self, ticket: Ticket) -> Undo {
        let slot = &mut self.slots[ticket.0 as usize];
        match std::mem::replace(slot, Slot::Free) {
            Slot::Waiting { undo, .. } => {
                *slot = Slot::Abandoned { undo };
                Undo::Nothing
            }
            Slot::Answered { undo, answer } => {
                self.free.push(ticket.0);
                let is_refused = matches!(*answer, OwnedReply::Refused(_));
                if is_refused {
                    Undo::Nothing
                } else {
                    undo
                }
            }
            other => {
                *slot = other;
                Undo::Nothing
            }
        }
    }

    /// The connection is gone: whoever waits shall look.
    pub(crate) fn wake_all(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Waiting { waker, .. } = slot {
                waker.take().into_iter().for_each(Waker::wake);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Contained, Refused};

    fn yes() -> OwnedReply {
        OwnedReply::Contained(Contained { sealed: true })
    }

    #[test]
    fn answers_find_their_requests_in_any_order() {
        let mut slots = Slots::default();
        let (a, b) = (slots.open(Undo::Nothing), slots.open(Undo::Nothing));
        assert_eq!(slots.answer(Slots::correlation(b), yes()), Ok(Undo::Nothing));
        assert!(slots.take(a).is_none());
        assert_eq!(slots.take(b).map(|a| *a), Some(yes()));
        assert_eq!(slots.waiting(), 1);
        assert_eq!(slots.open(Undo::Nothing), b, "slots are used again");
    }

    #[test]
    fn an_answer_that_nobody_asked_for_comes_back() {
        let mut slots = Slots::default();
        let a = slots.open(Undo::Nothing);
        for correlation in [0, 2, 99, u32::MAX] {
            assert_eq!(slots.answer(correlation, yes()), Err(Box::new(yes())));
        }
        assert!(slots.answer(Slots::correlation(a), yes()).is_ok());
        assert_eq!(slots.answer(Slots::correlation(a), yes()), Err(Box::new(yes())), "a second one");
    }

    #[test]
    fn what_an_abandoned_request_got_is_given_back() {
        let mut slots = Slots::default();
        let undo = Undo::Release(ObjectId([1; 28]));
        let late = slots.open(undo);
        assert_eq!(slots.abandon(late), Undo::Nothing);
        assert_eq!(slots.answer(Slots::correlation(late), yes()), Ok(undo));
        let early = slots.open(undo);
        assert!(slots.answer(Slots::correlation(early), yes()).is_ok());
        assert_eq!(slots.abandon(early), undo);
        let refused = slots.open(undo);
        slots.abandon(refused);
        let no = OwnedReply::Refused(Refused { code: 18, detail: String::new() });
        assert_eq!(slots.answer(Slots::correlation(refused), no), Ok(Undo::Nothing));
        assert_eq!(slots.waiting(), 0);
    }
}
