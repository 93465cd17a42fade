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
    /// Other nodes are asked for what it waits for.
    wished: bool,
}

fn token_at(shard: ShardId, uses: u64, place: usize) -> Token {
    Requester::Shard(shard).tag(NATIVE_BIT | uses << PLACE_BITS | place as u64)
}

/// The token of a request of a client, which is of the client's core.
fn token_of(client: &Client, uses: u64, place: usize) -> Token {
    match Requester::of(client.id) {
        Requester::Shard(shard) => token_at(shard, uses, place),
        // No client is of another thread.
        Requester::Control | Requester::Transfer => token_at(0, uses, place),
    }
}

/// The requests of a core.
#[derive(Default)]
pub struct Pending {
    places: Slab<(u64, Request)>,
    uses: u64,
    /// Requests that have their answers and for which other nodes were asked.
    fulfilled: Vec<Token>,
}

impl Pending {
    /// Notes a request; its token.
    pub fn add(&mut self, shard: ShardId, client: &Rc<Client>, to: ReplyTo, op: Op) -> Token {
        debug_assert!(self.places.len() < PLACES_MAX);
        self.uses = (self.uses + 1) % (NATIVE_BIT >> PLACE_BITS);
        let place =
            self.places.insert((self.uses, Request { client: client.clone(), to, op, late: false, wished: false }));
        token_at(shard, self.uses, place)
    }

    fn find(&self, token: Token) -> Option<usize> {
        let local = Requester::local(token);
        let (place, number) = (local as usize & (PLACES_MAX - 1), (local & (NATIVE_BIT - 1)) >> PLACE_BITS);
        self.places.get(place).is_some_and(|(uses, _)| *uses == number).then_some(place)
    }

    /// The request of a token, which has its answer now. `None`: it has had one, or its client is gone.
    pub fn take(&mut self, token: Token) -> Option<Request> {
        let request = self.find(token).map(|place| self.places.remove(place).1)?;
        if request.wished {
            self.fulfilled.push(token);
        }
        Some(request)
    }

    /// Notes that other nodes are asked for what a request waits for. False: it waits no longer.
    pub fn wish(&mut self, token: Token) -> bool {
        self.get_mut(token).map(|request| request.wished = true).is_some()
    }

    /// The requests that have their answers and for which other nodes were asked, once each.
    pub fn take_fulfilled(&mut self) -> Vec<Token> {
        std::mem::take(&mut self.fulfilled)
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
        let Self { places, fulfilled, .. } = self;
        places.retain(|place, (uses, request)| {
            let goes = Rc::ptr_eq(&request.client, client);
            if goes && request.wished {
                fulfilled.push(token_of(client, *uses, place));
            }
            !goes
        });
    }
}
