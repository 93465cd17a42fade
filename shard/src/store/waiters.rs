//! Gets and watches of objects that are not sealed here yet.

use rustc_hash::FxHashMap;
use slab::Slab;

use crate::ids::{ClientId, ObjectId, Token};

/// Nothing.
const NONE: u32 = u32::MAX;

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A client's get.
    Get(ClientId),
    /// The node's watch.
    Watch,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    id: ObjectId,
    who: Who,
    token: Token,
    /// Neighbours among those who wait for the object, in order of arrival.
    before: u32,
    after: u32,
    /// Neighbours among the client's gets.
    older: u32,
    newer: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

/// All who wait.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    waiters: Slab<Waiter>,
    by_object: FxHashMap<ObjectId, Ends>,
    /// Newest get of each client that has any.
    by_client: FxHashMap<ClientId, u32>,
}

impl Waiters {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Somebody waits for the object.
    pub(super) fn has(&self, id: &ObjectId) -> bool {
        self.by_object.contains_key(id)
    }

    /// One more waits.
    pub(super) fn add(&mut self, id: ObjectId, who: Who, token: Token) {
        let new = self.waiters.vacant_key() as u32;
        let ends = self.by_object.entry(id).or_insert(Ends { first: new, last: NONE });
        let before = std::mem::replace(&mut ends.last, new);
        if before != NONE {
            self.waiters[before as usize].after = new;
        }
        let mut older = NONE;
        if let Who::Get(client) = who {
            older = self.by_client.insert(client, new).unwrap_or(NONE);
            if older != NONE {
                self.waiters[older as usize].newer = new;
            }
        }
        self.waiters.insert(Waiter { id, who, token, before, after: NONE, older, newer: NONE });
    }

    /// The first who waits for the object waits no longer.
    pub(super) fn pop(&mut self, id: &ObjectId) -> Option<(Who, Token)> {
        if self.waiters.is_empty() {
            return None;
        }
        let first = self.by_object.get(id)?.first;
        let gone = self.remove(first);
        Some((gone.who, gone.token))
    }

    /// One get or watch is forgotten; false where there is none like it.
    pub(super) fn cancel(&mut self, id: &ObjectId, who: Who, token: Token) -> bool {
        let mut at = self.by_object.get(id).map_or(NONE, |ends| ends.first);
        while at != NONE {
            let waiter = &self.waiters[at as usize];
            if waiter.who == who && waiter.token == token {
                self.remove(at);
                return true;
            }
            at = waiter.after;
        }
        false
    }

    /// All gets of a client are forgotten.
    pub(super) fn drop_client(&mut self, client: ClientId) {
        while let Some(&newest) = self.by_client.get(&client) {
            self.remove(newest);
        }
    }

    fn remove(&mut self, at: u32) -> Waiter {
        let gone = self.waiters.remove(at as usize);
        match (gone.before, gone.after) {
            (NONE, NONE) => {
                self.by_object.remove(&gone.id);
            }
            (before, after) => {
                if before != NONE {
                    self.waiters[before as usize].after = after;
                } else if let Some(ends) = self.by_object.get_mut(&gone.id) {
                    ends.first = after;
                }
                if after != NONE {
                    self.waiters[after as usize].before = before;
                } else if let Some(ends) = self.by_object.get_mut(&gone.id) {
                    ends.last = before;
                }
            }
        }
        if let Who::Get(client) = gone.who {
            self.remove_from_client(client, &gone);
        }
        gone
    }

    fn remove_from_client(&mut self, client: ClientId, gone: &Waiter) {
        if gone.older != NONE {
            self.waiters[gone.older as usize].newer = gone.newer;
        }
        if gone.newer != NONE {
            self.waiters[gone.newer as usize].older = gone.older;
        } else if gone.older != NONE {
            self.by_client.insert(client, gone.older);
        } else {
            self.by_client.remove(&client);
        }
    }

    /// Verifies the books. `sealed`: nobody may wait for a sealed object.
    pub(super) fn check(&self, sealed: impl Fn(&ObjectId) -> bool) -> Result<(), String> {
        let mut listed = 0;
        for (id, ends) in &self.by_object {
            if sealed(id) {
                return Err(format!("{id} is sealed and waited for"));
            }
            let (mut at, mut before) = (ends.first, NONE);
            while at != NONE {
                let waiter = self.waiters[at as usize];
                if waiter.id != *id || waiter.before != before {
                    return Err(format!("waiter {at} {waiter:?} is not in order"));
                }
                listed += 1;
                before = at;
                at = waiter.after;
            }
            if ends.last != before {
                return Err(format!("the last who waits for {id} is not the last"));
            }
        }
        let gets = self.waiters.iter().filter(|(_, w)| matches!(w.who, Who::Get(_))).count();
        let mut of_clients = 0;
        for (client, newest) in &self.by_client {
            let (mut at, mut newer) = (*newest, NONE);
            while at != NONE {
                let waiter = self.waiters[at as usize];
                if waiter.who != Who::Get(*client) || waiter.newer != newer {
                    return Err(format!("waiter {at} {waiter:?} of client {client} is not in order"));
                }
                of_clients += 1;
                newer = at;
                at = waiter.older;
            }
        }
        if listed != self.waiters.len() || of_clients != gets {
            return Err(format!("{} wait, {listed} for objects; {gets} gets, {of_clients} of clients", self.len()));
        }
        Ok(())
    }
}
