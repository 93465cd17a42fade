//! Requests that were handed to a shard and have no answer yet, by token.

use std::rc::Rc;

use raylet_shard::ids::{ObjectId, ShardId, Token};
use raylet_transport::server::ReplyTo;
use slab::Slab;

use super::client::Client;
use super::NATIVE_BIT;
use crate::bridge::Requester;

/// Bits of a token that say which place; the bits above, up to [`NATIVE_BIT`], which use of the place.
const PLACE_BITS: u32 = 24;

/// Requests of one core without an answer. Bounded by the clients' limits of requests in flight; this is what a token can tell.
const PLACES_MAX: usize = 1 << PLACE_BITS;

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new object.
    Create(ObjectId),
    /// An object sealed, and kept if `pin`.
    Seal {
        /// Which.
        id: ObjectId,
        /// Keep it.
        pin: bool,
    },
    /// An unsealed object given up.
    Abort,
    /// An object.
    Get(ObjectId),
    /// An object deleted.
    Delete,
    /// Whether an object is there.
    Contains,
    /// A run of memory.
    Credit,
    /// An object of a run.
    Publish,
    /// One of several objects: the group, and which of it.
    Member {
        /// Number of the group.
        group: usize,
        /// Which of its objects.
        index: u32,
    },
    /// A lease, by the client's number.
    Lease(u32),
    /// The end of a request for a lease.
    Cancel(u32),
}

/// A request.
pub struct Request {
    /// Whose.
    pub client: Rc<Client>,
    /// Where its answer goes.
    pub to: ReplyTo,
    /// What it wants.
    pub op: Op,
    /// The time that it was to wait is over; its end is on its way.
    pub late: bool,
}

/// The requests of a core.
#[derive(Default)]
pub struct Pending {
    places: Slab<(u64, Request)>,
    uses: u64,
}

impl Pending {
    /// Notes a request; its token.
    pub fn add(&mut self, shard: ShardId, client: &Rc<Client>, to: ReplyTo, op: Op) -> Token {
        debug_assert!(self.places.len() < PLACES_MAX);
        self.uses = (self.uses + 1) % (NATIVE_BIT >> PLACE_BITS);
        let place = self.places.insert((self.uses, Request { client: client.clone(), to, op, late: false }));
        Requester::Shard(shard).tag(NATIVE_BIT | self.uses << PLACE_BITS | place as u64)
    }

    fn find(&self, token: Token) -> Option<usize> {
        let local = Requester::local(token);
        let (place, number) = (local as usize & (PLACES_MAX - 1), (local & (NATIVE_BIT - 1)) >> PLACE_BITS);
        self.places.get(place).is_some_and(|(uses, _)| *uses == number).then_some(place)
    }

    /// The request of a token, which has its answer now. `None`: it has had one, or its client is gone.
    pub fn take(&mut self, token: Token) -> Option<Request> {
        self.find(token).map(|place| self.places.remove(place).1)
    }

    /// The request of a token, which goes on waiting.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut Request> {
        self.find(token).map(|place| &mut self.places[place].1)
    }

    /// True while a request waits.
    pub fn waits(&self, token: Token) -> bool {
        self.find(token).is_some()
    }

    /// A client is gone, and so are its requests.
    pub fn forget(&mut self, client: &Rc<Client>) {
        self.places.retain(|_, (_, request)| !Rc::ptr_eq(&request.client, client));
    }
}
