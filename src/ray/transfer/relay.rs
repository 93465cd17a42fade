//! One object to many nodes: some are sent to others that are being sent it, and what is still being received is sent on.
//!
//! Who serves whom is decided by [`Spread`]. A node that is asked for an object that it is receiving lends what is there of it to its
//! sender ([`raylet_shard::pull::Receiver::lend`]), under a push number of its own, and tells it of each chunk that comes. The memory is
//! given back before the object is given up; an object that was sealed meanwhile is held by a reference of the store instead.

use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{NodeId, NowNs, ObjectId};
use raylet_shard::pull::{ReceiveEvent, SendEvent, Serve, Spread};
use raylet_shard::store::StoreEvent;

use super::send::{CopyAt, Here, Relay};
use super::{sender, Transfer};

/// Smallest object that nodes send on to each other: a smaller one is there before another node could have begun.
pub const SPREAD_MIN_BYTES: u64 = 16 << 20;

/// How often it is looked whose askers are to be forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(5);

/// Who asked for which object.
pub(super) struct Spreading {
    spread: Spread,
    started: Instant,
    looked: Instant,
}

impl Spreading {
    pub(super) fn new(fanout: usize) -> Self {
        let now = Instant::now();
        Self { spread: Spread::new(fanout), started: now, looked: now }
    }

    fn asked(&mut self, object: ObjectId, node: NodeId, direct: bool) -> Serve {
        let now_ns = self.started.elapsed().as_nanos() as NowNs;
        if self.looked.elapsed() >= FORGET_EVERY {
            self.looked = Instant::now();
            self.spread.tick(now_ns);
        }
        self.spread.asked(object, node, direct, now_ns)
    }
}

impl Transfer {
    /// The node that sends an object to this one instead of here.
    pub(super) fn serves_instead(&self, node: NodeId, object: ObjectId, here: &Here, direct: bool) -> Option<NodeId> {
        if here.total_bytes() < SPREAD_MIN_BYTES {
            return None;
        }
        match self.sending.borrow_mut().spreading.asked(object, node, direct) {
            Serve::Elsewhere(other) => Some(other),
            Serve::Here => None,
        }
    }

    /// A node is being sent an object no longer. Not `ok`: it does not want it.
    pub(super) fn served_no_more(&self, node: &NodeId, object: &ObjectId, ok: bool) {
        self.sending.borrow_mut().spreading.spread.served(object, node, ok);
    }

    /// A node is dead, or has broken with this one.
    pub(super) fn named_no_more(&self, node: &NodeId) {
        self.sending.borrow_mut().spreading.spread.node_gone(node);
    }

    /// Nodes wait for an object: where it is being received, they are sent what is there of it, and then the rest.
    pub(super) fn lend_to_waiting(self: &Rc<Self>, object: ObjectId) {
        let (chunks, there, token) = {
            let (mut sending, mut receiving) = (self.sending.borrow_mut(), self.receiving.borrow_mut());
            let served = sending.served.get_mut(&object);
            let Some(served) = served.filter(|served| served.here.is_none() && !served.waiting.is_empty()) else {
                return;
            };
            let is_large = |bytes: u64| bytes >= SPREAD_MIN_BYTES;
            let Some((lent, place)) = receiving.lend_if(&object, is_large) else {
                return;
            };
            served.here = Some(Here::new(CopyAt::Memory(place), self.address_of(lent.owner)));
            served.relay = Some(Relay::Lent);
            let chunks = u32::try_from(lent.total_bytes.div_ceil(self.chunk_bytes)).unwrap_or(u32::MAX);
            (chunks, lent.chunks().collect::<Vec<u32>>(), served.token)
        };
        tracing::debug!(%object, there = there.len(), chunks, "an object is sent on while it is being received");
        self.store(object, StoreEvent::CancelGet { client: sender(), token, id: object });
        self.send(SendEvent::Partial { object, chunks });
        there.into_iter().for_each(|index| self.send(SendEvent::Arrived { object, index }));
        while let Some(node) = self.next_waiting(&object) {
            self.push_to(node, object, false);
            self.strike_waiting(&object, &node);
        }
        self.release_if_over(object);
    }

    /// An object is not received any more: whoever waits for it here has to ask again.
    pub(super) fn comes_no_more(&self, object: ObjectId) {
        let sending = self.sending.borrow();
        let waits = sending.served.get(&object).filter(|served| served.here.is_none()).map(|served| served.token);
        drop(sending);
        waits.into_iter().for_each(|token| self.give_up_waiting(object, token));
    }

    /// An object was sealed. One that is lent is held by the store from now on: the receiver's reference may go at any time.
    pub(super) fn keep_lent(&self, object: ObjectId) {
        let token = {
            let mut sending = self.sending.borrow_mut();
            let token = sending.new_token();
            let served = sending.served.get_mut(&object).filter(|served| served.relay == Some(Relay::Lent));
            let Some(served) = served else {
                return;
            };
            (served.relay, served.token) = (Some(Relay::Sealed), token);
            token
        };
        self.store(object, StoreEvent::Get { client: sender(), token, id: object, wait: false });
    }

    /// The receiver wants an object back: whoever was to get it from here has to ask again.
    pub(super) fn recall(self: &Rc<Self>, object: ObjectId) {
        self.take_back(object, Relay::Recalled);
    }

    /// An object is aborted, as soon as nothing is read of it.
    pub(super) fn abandon(self: &Rc<Self>, object: ObjectId) {
        let relay = self.sending.borrow().served.get(&object).and_then(|served| served.relay);
        match relay {
            Some(_) => self.take_back(object, Relay::Abandoned),
            None => self.abort(object),
        }
    }

    fn take_back(self: &Rc<Self>, object: ObjectId, why: Relay) {
        let offers = {
            let mut sending = self.sending.borrow_mut();
            let Some(served) = sending.served.get_mut(&object) else {
                return;
            };
            served.relay = Some(why);
            let waiting = std::mem::take(&mut served.waiting);
            std::mem::take(&mut served.offers).into_iter().chain(waiting).collect::<Vec<NodeId>>()
        };
        for node in offers {
            self.served_no_more(&node, &object, true);
            self.say_gone(&node, object);
        }
        self.send(SendEvent::GiveUp { object });
    }

    /// Nothing is read any more of what was lent.
    pub(super) fn returned(self: &Rc<Self>, object: ObjectId) {
        let served = self.sending.borrow_mut().served.remove(&object);
        match served.and_then(|served| served.relay) {
            Some(Relay::Sealed) => self.store(object, StoreEvent::Release { client: sender(), id: object }),
            Some(Relay::Abandoned) => self.abort(object),
            Some(Relay::Lent | Relay::Recalled) => self.receive(ReceiveEvent::Returned { object }),
            None => {}
        }
    }
}
