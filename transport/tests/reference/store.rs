//! The reference node's objects: a table, and memory that is handed out once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use raylet_transport::credit::{taken_bytes, Piece};
use raylet_transport::ids::{ObjectId, WorkerId};
use raylet_transport::messages::*;
use raylet_transport::server::{Failure, Outcome, ReplyTo};

use super::{Node, Peer, SEGMENT_BYTES};

#[derive(Default)]
pub struct Store {
    pub objects: BTreeMap<ObjectId, Entry>,
    /// Objects, not credit.
    pub used_bytes: u64,
    /// Where memory was never handed out.
    next: u64,
    waiting: Vec<Waiting>,
}

pub struct Entry {
    pub place: Place,
    pub sealed: bool,
    pub creator: u64,
    pub owner: WorkerId,
    /// Clients that use it.
    pub users: u32,
    pub pinned_by: Option<WorkerId>,
    deleted: bool,
}

struct Waiting {
    client: u64,
    to: ReplyTo,
    objects: Vec<ObjectId>,
    wanted: usize,
    deadline: Option<Instant>,
    is_get: bool,
}

fn deadline(timeout_ns: u64) -> Option<Instant> {
    (timeout_ns != FOREVER_NS).then(|| Instant::now() + Duration::from_nanos(timeout_ns.min(1 << 60)))
}

fn refuse(code: RefusalCode, id: ObjectId) -> Failure {
    Refusal::new(code, format!("object {id}")).into()
}

impl Store {
    fn take(&mut self, bytes: u64) -> Result<u64, Refusal> {
        let size = bytes.max(1).next_multiple_of(64);
        if self.next + size > SEGMENT_BYTES {
            return Err(Refusal::new(RefusalCode::StoreFull, format!("{size} bytes")));
        }
        self.next += size;
        Ok(self.next - size)
    }

    fn insert(&mut self, id: ObjectId, entry: Entry) {
        self.used_bytes += (entry.place.data_bytes + entry.place.metadata_bytes).max(1).next_multiple_of(64);
        self.objects.insert(id, entry);
    }

    fn remove(&mut self, id: ObjectId) {
        if let Some(entry) = self.objects.remove(&id) {
            self.used_bytes -= (entry.place.data_bytes + entry.place.metadata_bytes).max(1).next_multiple_of(64);
        }
    }

    fn is_sealed(&self, id: &ObjectId) -> bool {
        self.objects.get(id).is_some_and(|entry| entry.sealed && !entry.deleted)
    }

    /// One that was deleted goes with its last use.
    fn unused(&mut self, id: ObjectId) {
        if self.objects.get(&id).is_some_and(|entry| entry.users == 0 && entry.deleted) {
            self.remove(id);
        }
    }
}

impl Node {
    pub fn object_request(&mut self, client: u64, to: ReplyTo, request: Request<'_>) -> Outcome {
        match request {
            Request::Create(create) => {
                let id = ObjectId::from(&create.object);
                if self.store.objects.contains_key(&id) {
                    return Err(refuse(RefusalCode::ObjectExists, id));
                }
                let (data_bytes, metadata_bytes) = (create.data_bytes.to_native(), create.metadata_bytes.to_native());
                let offset_bytes = self.store.take(data_bytes.saturating_add(metadata_bytes))?;
                let place = Place { offset_bytes, data_bytes, metadata_bytes, segment: 7 };
                let owner = owner_of(self.peer(client), WorkerId::from(&create.owner));
                self.store.insert(id, entry(place.clone(), client, owner));
                Ok(self.peer(client).connection.reply(to, &Created { place })?)
            }
            Request::Seal(seal) => {
                let id = ObjectId::from(&seal.object);
                let created = self.unsealed(client, id)?;
                created.sealed = true;
                created.pinned_by = seal.pin.then_some(created.owner);
                let size_bytes = created.place.data_bytes + created.place.metadata_bytes;
                self.peer(client).connection.done(to, size_bytes)?;
                self.sealed(id, size_bytes);
                Ok(())
            }
            Request::Abort(abort) => {
                let id = ObjectId::from(&abort.object);
                self.unsealed(client, id)?;
                self.store.remove(id);
                Ok(self.peer(client).connection.done(to, 1)?)
            }
            Request::Get(get) => {
                let id = ObjectId::from(&get.object);
                let timeout_ns = get.timeout_ns.to_native();
                if timeout_ns == 0 && !self.store.is_sealed(&id) {
                    return Err(refuse(RefusalCode::UnknownObject, id));
                }
                let deadline = deadline(timeout_ns);
                let waiting = Waiting { client, to, objects: vec![id], wanted: 1, deadline, is_get: true };
                self.begin_wait(waiting)
            }
            Request::Wait(wait) => {
                let objects: Vec<ObjectId> = wait.objects.iter().map(ObjectId::from).collect();
                let wanted = (wait.wanted.to_native() as usize).min(objects.len());
                let deadline = deadline(wait.timeout_ns.to_native());
                self.begin_wait(Waiting { client, to, objects, wanted, deadline, is_get: false })
            }
            Request::Release(release) => {
                let id = ObjectId::from(&release.object);
                if self.peer(client).holds.release(id, release.count.to_native())? {
                    self.store.objects.get_mut(&id).into_iter().for_each(|entry| entry.users -= 1);
                    self.store.unused(id);
                }
                Ok(())
            }
            Request::Delete(delete) => {
                let id = ObjectId::from(&delete.object);
                let Some(entry) = self.store.objects.get_mut(&id).filter(|entry| !entry.deleted) else {
                    return Err(refuse(RefusalCode::UnknownObject, id));
                };
                (entry.deleted, entry.pinned_by) = (true, None);
                self.store.unused(id);
                self.tell(topic::OBJECTS, &ObjectEvent { object: id, what: object_event::DELETED, size_bytes: 0 });
                Ok(self.peer(client).connection.done(to, 1)?)
            }
            Request::Contains(contains) => {
                let sealed = self.store.is_sealed(&ObjectId::from(&contains.object));
                Ok(self.peer(client).connection.reply(to, &Contained { sealed })?)
            }
            Request::List(list) => {
                let (after, most) = (ObjectId::from(&list.after), list.most.to_native() as usize);
                let mut behind =
                    self.store.objects.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
                let entries = behind.by_ref().take(most).map(|(id, entry)| entry.listed(*id)).collect();
                let more = behind.next().is_some();
                Ok(self.peer(client).connection.reply(to, &Listed { entries, more })?)
            }
            Request::RequestCredit(request) => {
                let size_bytes = self.peer(client).credit.admit(request.size_bytes.to_native())?;
                let offset_bytes = self.store.take(size_bytes.into())?;
                let credit = self.peer(client).credit.grant(Piece { segment: 7, offset_bytes, size_bytes });
                let granted = CreditGranted { offset_bytes, credit, segment: 7, size_bytes };
                Ok(self.peer(client).connection.reply(to, &granted)?)
            }
            Request::Publish(publish) => self.publish(client, to, publish),
            Request::ReturnCredit(back) => {
                self.peer(client).credit.close_run(back.credit.to_native())?;
                Ok(self.peer(client).connection.done(to, 1)?)
            }
            Request::Pin(pin) => {
                let owner = owner_of(self.peer(client), WorkerId::from(&pin.owner));
                let mut keep = |id: ObjectId| {
                    let is_there = self.store.is_sealed(&id);
                    self.store.objects.get_mut(&id).into_iter().for_each(|entry| entry.pinned_by = Some(owner));
                    is_there
                };
                let kept = pin.objects.iter().map(|id| keep(ObjectId::from(id))).collect();
                Ok(self.peer(client).connection.reply(to, &Pinned { kept })?)
            }
            Request::Unpin(unpin) => {
                for id in unpin.objects.iter().map(ObjectId::from) {
                    self.store.objects.get_mut(&id).into_iter().for_each(|entry| entry.pinned_by = None);
                }
                Ok(self.peer(client).connection.done(to, unpin.objects.len() as u64)?)
            }
            other => Err(Refusal::new(RefusalCode::Unsupported, other.name()).into()),
        }
    }

    fn publish(&mut self, client: u64, to: ReplyTo, publish: &rkyv::Archived<Publish>) -> Outcome {
        let id = ObjectId::from(&publish.object);
        let (data, metadata) = (publish.data_bytes.to_native(), publish.metadata_bytes.to_native());
        let credit = publish.credit.to_native();
        let peer = self.peer(client);
        let owner = peer.worker;
        let piece = match peer.credit.publish(credit, publish.offset_bytes.to_native(), data, metadata) {
            Ok(piece) => piece,
            Err(refusal) => {
                let _ = peer.credit.close_run(credit);
                return Err(refusal.into());
            }
        };
        assert_eq!(Some(piece.size_bytes), taken_bytes(data, metadata));
        if self.store.objects.contains_key(&id) {
            return Err(refuse(RefusalCode::ObjectExists, id));
        }
        let place = Place {
            offset_bytes: piece.offset_bytes,
            data_bytes: data.into(),
            metadata_bytes: metadata.into(),
            segment: piece.segment,
        };
        let pinned_by = publish.pin.then_some(owner);
        self.store.insert(id, Entry { sealed: true, pinned_by, ..entry(place, client, owner) });
        self.peer(client).connection.done(to, 1)?;
        self.sealed(id, u64::from(data) + u64::from(metadata));
        Ok(())
    }

    fn unsealed(&mut self, client: u64, id: ObjectId) -> Result<&mut Entry, Failure> {
        match self.store.objects.get_mut(&id) {
            None => Err(refuse(RefusalCode::UnknownObject, id)),
            Some(entry) if entry.creator != client => Err(refuse(RefusalCode::NotCreator, id)),
            Some(entry) if entry.sealed => Err(refuse(RefusalCode::AlreadySealed, id)),
            Some(entry) => Ok(entry),
        }
    }

    fn begin_wait(&mut self, waiting: Waiting) -> Outcome {
        if !self.try_answer(&waiting) {
            self.store.waiting.push(waiting);
        }
        Ok(())
    }

    fn sealed(&mut self, id: ObjectId, size_bytes: u64) {
        self.tell(topic::OBJECTS, &ObjectEvent { object: id, what: object_event::SEALED, size_bytes });
        self.expire();
        self.grant_leases();
    }

    /// Answers whoever has waited enough.
    pub fn expire(&mut self) {
        let waiting = std::mem::take(&mut self.store.waiting);
        for one in waiting {
            if !self.try_answer(&one) {
                self.store.waiting.push(one);
            }
        }
    }

    fn try_answer(&mut self, waiting: &Waiting) -> bool {
        let Waiting { client, to, objects, wanted, deadline, is_get } = waiting;
        let is_ready = |(n, id): (usize, &ObjectId)| self.store.is_sealed(id).then_some(n as u32);
        let ready: Vec<u32> = objects.iter().enumerate().filter_map(is_ready).collect();
        let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let is_enough = ready.len() >= *wanted;
        if !is_enough && !is_late {
            return false;
        }
        let Some(peer) = self.peers.get_mut(client) else { return true };
        let sent = if !is_get {
            peer.connection.reply(*to, &Waited { ready })
        } else if is_enough {
            let entry = self.store.objects.get_mut(&objects[0]).unwrap();
            entry.users += u32::from(peer.holds.add(objects[0]));
            peer.connection.reply(*to, &Found { place: entry.place.clone() })
        } else {
            peer.connection.refuse(*to, &Refusal::new(RefusalCode::DeadlinePassed, format!("object {}", objects[0])))
        };
        if sent.is_err() {
            self.gone.push_back(*client);
        }
        true
    }

    /// A client is gone: what it used, what it had begun, what was kept for it.
    pub fn forget_objects(&mut self, client: u64, mut peer: Peer) {
        for id in peer.holds.drain() {
            self.store.objects.get_mut(&id).into_iter().for_each(|entry| entry.users -= 1);
            self.store.unused(id);
        }
        let begun: Vec<ObjectId> =
            self.store.objects.iter().filter(|(_, e)| e.creator == client && !e.sealed).map(|(id, _)| *id).collect();
        begun.into_iter().for_each(|id| self.store.remove(id));
        for entry in self.store.objects.values_mut().filter(|entry| entry.pinned_by == Some(peer.worker)) {
            entry.pinned_by = None;
        }
        self.store.waiting.retain(|waiting| waiting.client != client);
        peer.credit.close().for_each(drop);
    }
}

fn owner_of(peer: &Peer, owner: WorkerId) -> WorkerId {
    if owner.is_nil() {
        peer.worker
    } else {
        owner
    }
}

fn entry(place: Place, creator: u64, owner: WorkerId) -> Entry {
    Entry { place, sealed: false, creator, owner, users: 0, pinned_by: None, deleted: false }
}

impl Entry {
    fn listed(&self, object: ObjectId) -> ObjectEntry {
        ObjectEntry {
            object,
            owner: self.owner,
            data_bytes: self.place.data_bytes,
            metadata_bytes: self.place.metadata_bytes,
            references: self.users,
            sealed: self.sealed,
            pinned: self.pinned_by.is_some(),
        }
    }
}
