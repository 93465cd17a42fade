//! What callers want to hear of: objects that are here, or will be.
//!
//! An object is asked of the store once, whoever waits for it, with a get that is given back at once: so its size is known, and who waits
//! hears of it when it is sealed. A caller that is told asks for the bytes by its lanes.

use raylet_shard::ids::{ObjectId, Token};
use raylet_shard::store::StoreEvent;
use raylet_transport::ids as wire;
use raylet_transport::peers::{Held, PeerMessage};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::{here, watcher, Peers};

/// Objects that one caller waits for. For further ones it is told to ask later.
pub const WANTS_PER_CALLER_MAX: usize = 65_536;

/// Objects that callers wait for.
#[derive(Default)]
pub struct Directory {
    looks: FxHashMap<ObjectId, Look>,
}

struct Look {
    token: Token,
    callers: SmallVec<[usize; 2]>,
}

impl Peers {
    /// A caller wants to hear of objects.
    pub(super) fn caller_wants(&self, number: usize, objects: Vec<wire::ObjectId>) {
        let mut later = Vec::new();
        for object in objects {
            let is_noted = self.callers.borrow_mut().get_mut(number).is_some_and(|caller| {
                let has_room = caller.wants.len() < WANTS_PER_CALLER_MAX;
                if has_room {
                    caller.wants.insert(here(object));
                }
                has_room
            });
            match is_noted {
                true => self.look(number, here(object)),
                false => later.push(object),
            }
        }
        if !later.is_empty() {
            self.callers.borrow_mut().tell(number, PeerMessage::Later { objects: later });
        }
    }

    fn look(&self, number: usize, id: ObjectId) {
        let token = {
            let mut directory = self.directory.borrow_mut();
            if let Some(look) = directory.looks.get_mut(&id) {
                if !look.callers.contains(&number) {
                    look.callers.push(number);
                }
                return;
            }
            let token = self.token();
            directory.looks.insert(id, Look { token, callers: SmallVec::from_slice(&[number]) });
            token
        };
        self.store(&id, StoreEvent::Get { client: watcher(), token, id, wait: true });
    }

    /// The store has an object that somebody wanted to hear of, or can't wait for it.
    pub(super) fn found(&self, token: Token, id: ObjectId, size_bytes: Option<u64>) {
        if size_bytes.is_some() {
            self.store(&id, StoreEvent::Release { client: watcher(), id });
        }
        let look = {
            let mut directory = self.directory.borrow_mut();
            let is_due = directory.looks.get(&id).is_some_and(|look| look.token == token);
            is_due.then(|| directory.looks.remove(&id)).flatten()
        };
        let mut callers = self.callers.borrow_mut();
        for number in look.into_iter().flat_map(|look| look.callers) {
            if let Some(caller) = callers.get_mut(number) {
                caller.wants.remove(&id);
            }
            let object = super::wire(id);
            callers.tell(
                number,
                match size_bytes {
                    Some(size_bytes) => PeerMessage::Has { objects: vec![Held { object, size_bytes }] },
                    None => PeerMessage::Later { objects: vec![object] },
                },
            );
        }
    }

    /// A caller wants to hear no more of objects.
    pub(super) fn caller_wants_no_more(&self, number: usize, objects: &[wire::ObjectId]) {
        for object in objects.iter().copied().map(here) {
            let was_wanted =
                self.callers.borrow_mut().get_mut(number).is_some_and(|caller| caller.wants.remove(&object));
            if was_wanted {
                self.strike(number, object);
            }
        }
    }

    /// A caller is gone.
    pub(super) fn caller_gone(&self, number: usize, wants: FxHashSet<ObjectId>) {
        wants.into_iter().for_each(|object| self.strike(number, object));
    }

    fn strike(&self, number: usize, id: ObjectId) {
        let over = {
            let mut directory = self.directory.borrow_mut();
            let Some(look) = directory.looks.get_mut(&id) else {
                return;
            };
            look.callers.retain(|caller| *caller != number);
            look.callers.is_empty().then(|| directory.looks.remove(&id)).flatten()
        };
        if let Some(Look { token, .. }) = over {
            self.store(&id, StoreEvent::CancelGet { client: watcher(), token, id });
        }
    }
}
