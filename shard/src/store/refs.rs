//! Who uses what: one reference at most for each pair of a client and an object.

use rustc_hash::FxHashMap;
use slab::Slab;

use crate::ids::ClientId;

/// Nothing.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Reference {
    client: u32,
    object: u32,
    /// Neighbours among the client's references.
    older: u32,
    newer: u32,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    id: ClientId,
    newest: u32,
}

/// Clients and their references, by slot number of client and object.
#[derive(Debug, Default)]
pub(super) struct Refs {
    refs: Slab<Reference>,
    by_pair: FxHashMap<u64, u32>,
    clients: Slab<Client>,
    by_id: FxHashMap<ClientId, u32>,
}

fn pair(client: u32, object: u32) -> u64 {
    u64::from(client) << 32 | u64::from(object)
}

impl Refs {
    /// The slot of a client that may be new.
    pub(super) fn client(&mut self, id: ClientId) -> u32 {
        let clients = &mut self.clients;
        *self.by_id.entry(id).or_insert_with(|| clients.insert(Client { id, newest: NONE }) as u32)
    }

    /// The slot of a client.
    pub(super) fn find(&self, id: ClientId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// The client holds a reference on the object.
    pub(super) fn holds(&self, client: u32, object: u32) -> bool {
        self.by_pair.contains_key(&pair(client, object))
    }

    /// Adds a reference; false where the client holds one already.
    pub(super) fn add(&mut self, client: u32, object: u32) -> bool {
        let older = self.clients[client as usize].newest;
        let std::collections::hash_map::Entry::Vacant(entry) = self.by_pair.entry(pair(client, object)) else {
            return false;
        };
        let new = self.refs.insert(Reference { client, object, older, newer: NONE }) as u32;
        entry.insert(new);
        if older != NONE {
            self.refs[older as usize].newer = new;
        }
        self.clients[client as usize].newest = new;
        true
    }

    /// Takes a reference away; false where there was none.
    pub(super) fn remove(&mut self, client: u32, object: u32) -> bool {
        let Some(gone) = self.by_pair.remove(&pair(client, object)) else {
            return false;
        };
        let gone = self.refs.remove(gone as usize);
        if gone.older != NONE {
            self.refs[gone.older as usize].newer = gone.newer;
        }
        if gone.newer != NONE {
            self.refs[gone.newer as usize].older = gone.older;
        } else {
            self.clients[client as usize].newest = gone.older;
        }
        true
    }

    /// An object that the client holds.
    pub(super) fn any_of(&self, client: u32) -> Option<u32> {
        let newest = self.clients[client as usize].newest;
        (newest != NONE).then(|| self.refs[newest as usize].object)
    }

    /// Forgets a client without references.
    pub(super) fn forget(&mut self, client: u32) {
        debug_assert!(self.any_of(client).is_none());
        let gone = self.clients.remove(client as usize);
        self.by_id.remove(&gone.id);
    }

    /// Clients that are known.
    pub(super) fn clients(&self) -> usize {
        self.clients.len()
    }

    /// References in all.
    pub(super) fn len(&self) -> usize {
        self.refs.len()
    }

    /// Verifies the books; references per object slot.
    pub(super) fn check(&self) -> Result<FxHashMap<u32, u32>, String> {
        let mut per_object = FxHashMap::default();
        let mut listed = 0;
        for (slot, client) in &self.clients {
            if self.by_id.get(&client.id) != Some(&(slot as u32)) {
                return Err(format!("client {} is not found under its id", client.id));
            }
            let (mut at, mut newer) = (client.newest, NONE);
            while at != NONE {
                let reference = self.refs[at as usize];
                let found = self.by_pair.get(&pair(slot as u32, reference.object));
                if reference.client != slot as u32 || reference.newer != newer || found != Some(&at) {
                    return Err(format!("reference {at} {reference:?} of client {} is not in order", client.id));
                }
                *per_object.entry(reference.object).or_insert(0) += 1;
                listed += 1;
                newer = at;
                at = reference.older;
            }
        }
        if listed != self.refs.len() || listed != self.by_pair.len() || self.by_id.len() != self.clients.len() {
            return Err(format!("{listed} references listed, {} kept", self.refs.len()));
        }
        Ok(per_object)
    }
}
