//! Telling owners where copies of their objects are: here, no longer here, or on disk.
//!
//! Each owner has a book of what it has yet to be told, at most one entry for an object: what is newer takes the place of what
//! is older. One call to an owner is under way at a time, so it hears things in order; a call that fails is repeated as it was,
//! which does no harm, because it says how things are and not what changed.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{NodeId, ObjectId, WorkerId};
use rustc_hash::FxHashMap;

use super::objects::address;
use super::Control;
use crate::ray::proto::{
    Address, ObjectLocationUpdate, ObjectPlasmaLocationUpdate, ObjectSpilledLocationUpdate,
    UpdateObjectLocationBatchRequest,
};
use crate::ray::rpc::client::{is_retryable, Retry};
use crate::ray::rpc::gcs::id;
use crate::ray::sightings::Sighting;
use crate::ray::transfer::ToTransfer;

/// Owners that are told; the objects of further ones are not reported.
const MAX_OWNERS: usize = 100_000;

/// Objects that owners have yet to be told of. Beyond it nothing new is noted: an owner then misses a copy, or asks in vain for one.
const MAX_DUE: usize = 1 << 20;

/// Longest wait for an owner's answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Pauses between calls to an owner that can't be reached for the moment.
const RETRY: Retry = Retry { max_attempts: 8, backoff_min_ms: 50, backoff_max_ms: 2_000 };

/// What an owner has yet to be told of an object.
#[derive(Clone, Debug, Default, PartialEq)]
struct Due {
    /// Whether a copy is in the store here.
    here: Option<bool>,
    spilled: Option<Spilled>,
}

/// Where an object was spilled to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spilled {
    /// Where it lies.
    pub url: String,
    /// On a disk of this node, so that only this node can read it.
    pub local: bool,
    /// The generator whose return the object is, where it is one that the owner may not know of yet.
    pub generator: Option<ObjectId>,
}

struct Book {
    address: Address,
    due: FxHashMap<ObjectId, Due>,
    /// The objects of `due`, longest waiting first; some may have been struck off.
    order: VecDeque<ObjectId>,
    sending: bool,
}

impl Book {
    fn new(address: Address) -> Self {
        Self { address, due: FxHashMap::default(), order: VecDeque::new(), sending: false }
    }
}

/// The books of all owners.
#[derive(Default)]
pub struct Locations {
    owners: FxHashMap<WorkerId, Book>,
    due: usize,
    dropped: u64,
}

impl Locations {
    /// True for an owner that was not known.
    fn owner_seen(&mut self, address: Address) -> bool {
        let Some(worker) = WorkerId::from_slice(&address.worker_id) else {
            return false;
        };
        let new = self.owners.len() < MAX_OWNERS && address.port > 0 && !self.owners.contains_key(&worker);
        if new {
            self.owners.insert(worker, Book::new(address));
        }
        new
    }

    /// Where an owner is reached.
    pub(super) fn address_of(&self, owner: &WorkerId) -> Option<Address> {
        self.owners.get(owner).map(|book| book.address.clone())
    }

    /// Notes a change. True where somebody has to begin telling the owner.
    fn note(&mut self, owner: &WorkerId, object: ObjectId, change: impl FnOnce(&mut Due)) -> bool {
        let Some(book) = self.owners.get_mut(owner) else {
            return false;
        };
        if let Some(due) = book.due.get_mut(&object) {
            change(due);
        } else {
            if self.due >= MAX_DUE {
                self.dropped += 1;
                if self.dropped.is_power_of_two() {
                    tracing::warn!(MAX_DUE, dropped = self.dropped, "owners are too slow to hear of their objects");
                }
                return false;
            }
            let mut due = Due::default();
            change(&mut due);
            book.due.insert(object, due);
            book.order.push_back(object);
            self.due += 1;
        }
        !std::mem::replace(&mut book.sending, true)
    }

    /// The owner itself gave the object up: where it was not told of the copy yet, it need not be.
    fn freed(&mut self, owner: &WorkerId, object: &ObjectId) -> bool {
        let Some(book) = self.owners.get_mut(owner) else {
            return false;
        };
        let untold = book.due.get(object).is_some_and(|due| due.here == Some(true));
        if untold {
            book.due.remove(object);
            self.due -= 1;
        }
        untold
    }

    /// The next batch for an owner; `None` ends the telling.
    fn take(&mut self, owner: &WorkerId, most: usize) -> Option<(Address, Vec<ObjectLocationUpdate>)> {
        let book = self.owners.get_mut(owner)?;
        let mut updates = Vec::new();
        while updates.len() < most {
            let Some(object) = book.order.pop_front() else {
                break;
            };
            if let Some(due) = book.due.remove(&object) {
                self.due -= 1;
                updates.push(update(&object, due));
            }
        }
        if updates.is_empty() {
            book.sending = false;
            return None;
        }
        Some((book.address.clone(), updates))
    }

    fn forget(&mut self, owner: &WorkerId) {
        if let Some(book) = self.owners.remove(owner) {
            self.due -= book.due.len();
        }
    }

    fn forget_node(&mut self, node: &NodeId) -> Vec<WorkerId> {
        let gone = self.owners.iter().filter(|(_, book)| book.address.node_id[..] == node.as_bytes()[..]);
        let gone: Vec<WorkerId> = gone.map(|(worker, _)| *worker).collect();
        gone.iter().for_each(|worker| self.forget(worker));
        gone
    }
}

fn update(object: &ObjectId, due: Due) -> ObjectLocationUpdate {
    let here = due.here.map(|here| match here {
        true => ObjectPlasmaLocationUpdate::Added as i32,
        false => ObjectPlasmaLocationUpdate::Removed as i32,
    });
    let generator = due.spilled.as_ref().and_then(|spilled| spilled.generator);
    let spilled = due.spilled.map(|spilled| ObjectSpilledLocationUpdate {
        spilled_url: spilled.url,
        spilled_to_local_storage: spilled.local,
    });
    ObjectLocationUpdate {
        object_id: id(object.as_bytes()),
        plasma_location_update: here,
        spilled_location_update: spilled,
        generator_id: generator.map(|generator| id(generator.as_bytes())),
    }
}

impl Control {
    /// What the cores saw of objects.
    pub(super) fn seen(self: &Rc<Self>, sightings: Vec<Sighting>) {
        for sighting in sightings {
            match sighting {
                Sighting::Owner(owner) => self.owner_seen(address(owner)),
                Sighting::Here { owner, object } => {
                    self.copy_is_back(object);
                    self.pull_seen(object, true);
                    self.note_location(owner, object, |due| due.here = Some(true));
                }
                Sighting::Spilled { owner, object, url } => {
                    self.object_spilled(owner, object, Spilled { url, local: true, generator: None });
                }
                Sighting::Gone { owner, object, freed, on_disk } => {
                    // Whoever waits for what is on disk has it read back; nothing has to be fetched.
                    if !on_disk {
                        self.pull_seen(object, false);
                    }
                    let untold = freed && self.locations.borrow_mut().freed(&owner, &object);
                    if !untold {
                        self.note_location(owner, object, |due| due.here = Some(false));
                    }
                }
            }
        }
    }

    /// Where an owner of objects is reached. Needed once before anything of its objects can be told.
    pub(super) fn owner_seen(&self, owner: Address) {
        let new = self.locations.borrow_mut().owner_seen(owner.clone());
        if new {
            // Whoever is sent an object is told of its owner.
            self.tell_transfer(ToTransfer::Owner(owner));
        }
    }

    /// An object was spilled: its owner is told where.
    fn object_spilled(self: &Rc<Self>, owner: WorkerId, object: ObjectId, spilled: Spilled) {
        self.note_location(owner, object, |due| due.spilled = Some(spilled));
    }

    /// An owner is dead: nobody is left to be told.
    pub(super) fn forget_locations_of(&self, owner: &WorkerId) {
        self.tell_transfer(ToTransfer::OwnerGone(*owner));
        self.locations.borrow_mut().forget(owner);
    }

    /// A node is dead, and all owners on it; returns those that objects are here of.
    pub(super) fn forget_locations_of_node(&self, node: &NodeId) -> Vec<WorkerId> {
        self.locations.borrow_mut().forget_node(node)
    }

    fn note_location(self: &Rc<Self>, owner: WorkerId, object: ObjectId, change: impl FnOnce(&mut Due)) {
        if self.locations.borrow_mut().note(&owner, object, change) {
            tokio::task::spawn_local(self.clone().tell_owner(owner));
        }
    }

    /// Tells an owner all there is to tell, one batch after the other.
    async fn tell_owner(self: Rc<Self>, owner: WorkerId) {
        let most = usize::try_from(self.ray_config.max_object_report_batch_size).unwrap_or(1).max(1);
        let patience = Duration::from_secs(self.ray_config.core_worker_rpc_server_reconnect_timeout_max_s.into());
        loop {
            let Some((address, updates)) = self.locations.borrow_mut().take(&owner, most) else {
                return;
            };
            let request = UpdateObjectLocationBatchRequest {
                intended_worker_id: id(owner.as_bytes()),
                node_id: id(self.node_id.as_bytes()),
                object_location_updates: updates,
            };
            let client = self.core_workers.at(&address);
            let (since, mut attempt) = (Instant::now(), 0);
            while let Err(status) = client.update_object_location_batch(request.clone(), CALL_TIMEOUT).await {
                if !is_retryable(&status) || since.elapsed() >= patience {
                    tracing::debug!(%owner, error = status.message(), "an owner can't be told of its objects");
                    return self.forget_locations_of(&owner);
                }
                attempt += 1;
                tokio::time::sleep(RETRY.backoff(attempt)).await;
                if !self.locations.borrow().owners.contains_key(&owner) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: WorkerId = WorkerId([2; 28]);

    fn known() -> Locations {
        let mut locations = Locations::default();
        locations.owner_seen(Address {
            worker_id: id(OWNER.as_bytes()),
            node_id: id(&[7; 28]),
            ip_address: "127.0.0.1".to_owned(),
            port: 1,
        });
        locations
    }

    fn object(n: u8) -> ObjectId {
        ObjectId([n; 28])
    }

    fn here(locations: &mut Locations, n: u8, here: bool) -> bool {
        locations.note(&OWNER, object(n), |due| due.here = Some(here))
    }

    #[test]
    fn the_newest_of_an_object_is_told_once() {
        let mut locations = known();
        assert!(here(&mut locations, 1, true), "somebody has to begin");
        assert!(!here(&mut locations, 2, true), "it has begun");
        here(&mut locations, 1, false);
        let (_, updates) = locations.take(&OWNER, 10).expect("a batch");
        let told: Vec<_> = updates.iter().map(|u| (u.object_id[0], u.plasma_location_update)).collect();
        assert_eq!(told, [(1, Some(1)), (2, Some(0))]);
        assert!(locations.take(&OWNER, 10).is_none());
        assert!(here(&mut locations, 1, true), "the telling had ended");
        assert_eq!(locations.due, 1);
    }

    #[test]
    fn a_batch_is_bounded_and_the_oldest_goes_first() {
        let mut locations = known();
        for n in 0..5 {
            here(&mut locations, n, true);
        }
        let sizes: Vec<_> = std::iter::from_fn(|| locations.take(&OWNER, 2)).map(|(_, u)| u[0].object_id[0]).collect();
        assert_eq!(sizes, [0, 2, 4]);
    }

    #[test]
    fn what_came_and_was_freed_untold_is_not_told() {
        let mut locations = known();
        here(&mut locations, 1, true);
        assert!(locations.freed(&OWNER, &object(1)));
        assert_eq!(locations.due, 0);
        assert!(locations.take(&OWNER, 10).is_none());
        here(&mut locations, 1, true);
        locations.take(&OWNER, 10);
        assert!(!locations.freed(&OWNER, &object(1)), "the owner knows of the copy");
    }

    #[test]
    fn a_spilled_object_goes_with_its_url() {
        let mut locations = known();
        let spilled = Spilled { url: "/spill/a?offset=0&size=9".to_owned(), local: true, generator: Some(object(9)) };
        locations.note(&OWNER, object(1), |due| due.spilled = Some(spilled));
        here(&mut locations, 1, false);
        let (_, updates) = locations.take(&OWNER, 10).expect("a batch");
        let [told] = &updates[..] else { panic!("one update, not {updates:?}") };
        assert_eq!(told.plasma_location_update, Some(1));
        assert_eq!(told.generator_id.as_deref(), Some(&[9; 28][..]));
        let spilled = told.spilled_location_update.as_ref().expect("spilled");
        assert!(spilled.spilled_to_local_storage && spilled.spilled_url.ends_with("size=9"));
    }

    #[test]
    fn dead_owners_are_forgotten() {
        let mut locations = known();
        here(&mut locations, 1, true);
        locations.forget_node(&NodeId([8; 28]));
        assert_eq!(locations.due, 1);
        locations.forget_node(&NodeId([7; 28]));
        assert_eq!((locations.due, locations.owners.len()), (0, 0));
        assert!(!here(&mut locations, 1, true), "nobody is left to be told");
    }
}
