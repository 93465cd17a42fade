//! Storage that only Ray's own Python code can reach (`smart_open`, and what else `object_spilling_config` names beside directories):
//! one of Ray's IO workers writes and reads what the store decides. They are started and called on the control thread
//! ([`crate::ray::control`]).
//!
//! A worker that writes is an ordinary client of the store. One that reads creates the object and seals it; but here the store has made
//! a place for it already, in front of all creates, because whoever wants the object may hold what those wait for. So the worker's
//! create is answered with that place, and its seal tells the store that the object is read.

use std::rc::Rc;

use raylet_shard::ids::{ClientId, ObjectId, ShardId};
use raylet_shard::store::{ObjectSource, Placement, RestoreFailure, SpillFailure, SpillFile};
use raylet_shard::store::{StoreEffect, StoreError, StoreEvent};
use rustc_hash::{FxHashMap, FxHashSet};

/// What a core wants of an IO worker.
#[derive(Debug)]
pub enum SpillAsk {
    /// Write objects.
    Write {
        /// Who asks.
        shard: ShardId,
        /// The store's number for these objects.
        file: SpillFile,
        /// The objects, and their owners' addresses as Ray's protobuf message.
        objects: Vec<(ObjectId, Vec<u8>)>,
    },
    /// Read an object.
    Read {
        /// Who asks.
        shard: ShardId,
        /// Tells this reading from others of the same object.
        ticket: u64,
        /// The object.
        id: ObjectId,
        /// Where it was written.
        url: String,
    },
    /// Delete what nobody wants any more.
    Delete {
        /// One for each thing to be deleted.
        urls: Vec<String>,
    },
}

/// What an IO worker answered.
#[derive(Debug)]
pub enum SpillTold {
    /// Objects are written, or why not.
    Written {
        /// The store's number for them.
        file: SpillFile,
        /// Where each of them is.
        urls: Result<Vec<String>, String>,
    },
    /// A reading has ended; where the object was not sealed before, it failed.
    Read {
        /// As asked.
        ticket: u64,
        /// The object.
        id: ObjectId,
        /// In words, where it is known.
        why: String,
    },
}

/// An object that a worker is to read.
#[derive(Debug)]
struct Reading {
    ticket: u64,
    place: Placement,
    /// The client that was given the place.
    by: Option<ClientId>,
}

/// What to do instead of telling the store of an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Instead {
    /// Tell the store this.
    pub event: Option<StoreEvent>,
    /// Then answer this.
    pub answer: Option<StoreEffect>,
}

/// What of a core is in such storage. Bounded as the store bounds what it writes and reads at a time.
#[derive(Debug, Default)]
pub struct External {
    /// Objects of the file that is being named.
    named: Vec<(ObjectId, Vec<u8>)>,
    urls: FxHashMap<SpillFile, Vec<String>>,
    reading: FxHashMap<ObjectId, Reading>,
    /// Sealed by a client that has yet to let go of what the store does not know that it holds.
    held: FxHashSet<(ClientId, ObjectId)>,
    tickets: u64,
}

impl External {
    /// An object is to be written; with the last of a file, what to ask for.
    pub fn name(
        &mut self,
        shard: ShardId,
        file: SpillFile,
        id: ObjectId,
        owner: &Rc<[u8]>,
        last: bool,
    ) -> Option<SpillAsk> {
        self.named.push((id, owner.to_vec()));
        last.then(|| SpillAsk::Write { shard, file, objects: std::mem::take(&mut self.named) })
    }

    /// Objects are written, or not.
    pub fn written(&mut self, file: SpillFile, urls: Result<Vec<String>, String>) -> StoreEvent {
        let result = urls.map(|urls| {
            self.urls.insert(file, urls);
        });
        StoreEvent::SpillDone { file, result: result.map_err(|_| SpillFailure::Failed) }
    }

    /// Where an object is.
    pub fn url(&self, file: SpillFile, index: u32) -> Option<String> {
        self.urls.get(&file)?.get(index as usize).cloned()
    }

    /// Nothing of a file is wanted any more. Several objects may be in one thing: the part of a URL before its question mark.
    pub fn delete(&mut self, file: SpillFile) -> Option<SpillAsk> {
        let mut urls = self.urls.remove(&file)?;
        let mut seen = FxHashSet::default();
        urls.retain(|url| seen.insert(base(url).to_owned()));
        Some(SpillAsk::Delete { urls })
    }

    /// An object is to be read to this place.
    pub fn read(
        &mut self,
        shard: ShardId,
        file: SpillFile,
        index: u32,
        id: ObjectId,
        place: Placement,
    ) -> Option<SpillAsk> {
        let url = self.url(file, index)?;
        self.tickets += 1;
        let ticket = self.tickets;
        self.reading.insert(id, Reading { ticket, place, by: None });
        Some(SpillAsk::Read { shard, ticket, id, url })
    }

    /// A reading has ended. The store is told, unless it was when the object was sealed.
    pub fn has_read(&mut self, ticket: u64, id: ObjectId) -> Option<StoreEvent> {
        self.reading.get(&id).filter(|reading| reading.ticket == ticket)?;
        self.reading.remove(&id);
        Some(StoreEvent::RestoreDone { id, result: Err(RestoreFailure::Again) })
    }

    /// What happens instead of an event that a worker's reading brings about; `None`: the event is the store's.
    pub fn instead(&mut self, event: &StoreEvent) -> Option<Instead> {
        match *event {
            StoreEvent::Create { client, token, id, data_bytes, metadata_bytes, source, .. } => {
                let reading = self.reading.get_mut(&id)?;
                if source != ObjectSource::RestoredFromStorage {
                    return None;
                }
                let is_it = reading.place.data_bytes == data_bytes && reading.place.metadata_bytes == metadata_bytes;
                let result = match reading.by {
                    Some(_) => Err(StoreError::ObjectExists),
                    None if !is_it => Err(StoreError::NotCreator),
                    None => Ok(reading.place),
                };
                if result.is_ok() {
                    reading.by = Some(client);
                }
                answer(StoreEffect::Created { client, token, id, result })
            }
            StoreEvent::Seal { client, token, id } => {
                self.reading.get(&id).filter(|reading| reading.by == Some(client))?;
                self.reading.remove(&id);
                self.held.insert((client, id));
                let event = Some(StoreEvent::RestoreDone { id, result: Ok(()) });
                let answer = Some(StoreEffect::Sealed { client, token, id, result: Ok(()) });
                Some(Instead { event, answer })
            }
            StoreEvent::Abort { client, token, id } => {
                let reading = self.reading.get_mut(&id).filter(|reading| reading.by == Some(client))?;
                reading.by = None;
                answer(StoreEffect::Aborted { client, token, id, result: Ok(()) })
            }
            StoreEvent::Release { client, id } => self.held.remove(&(client, id)).then(Instead::default),
            StoreEvent::ClientGone { client } => {
                self.held.retain(|(holder, _)| *holder != client);
                let its = self.reading.values_mut().filter(|reading| reading.by == Some(client));
                its.for_each(|reading| reading.by = None);
                None
            }
            _ => None,
        }
    }
}

fn answer(effect: StoreEffect) -> Option<Instead> {
    Some(Instead { event: None, answer: Some(effect) })
}

/// What a URL names, without the place in it.
pub fn base(url: &str) -> &str {
    url.split_once('?').map_or(url, |(base, _)| base)
}

#[cfg(test)]
mod tests {
    use raylet_shard::ids::WorkerId;

    use super::*;

    const ID: ObjectId = ObjectId([7; 28]);

    fn place() -> Placement {
        Placement {
            segment: 0,
            header_offset: 4096,
            data_offset: 4096,
            data_bytes: 100,
            metadata_offset: 4196,
            metadata_bytes: 1,
            allocated_bytes: 128,
        }
    }

    fn create(client: ClientId, data_bytes: u64, source: ObjectSource) -> StoreEvent {
        let (token, owner) = (5, WorkerId::NIL);
        let (mutable, try_immediately) = (false, false);
        StoreEvent::Create {
            client,
            token,
            id: ID,
            data_bytes,
            metadata_bytes: 1,
            owner,
            source,
            mutable,
            try_immediately,
            near: None,
        }
    }

    fn reading() -> (External, u64) {
        let mut external = External::default();
        let urls = vec!["s3://b/f?offset=0&size=9".to_owned(), "s3://b/f?offset=9&size=9".to_owned()];
        let done = external.written(3, Ok(urls));
        assert_eq!(done, StoreEvent::SpillDone { file: 3, result: Ok(()) });
        let Some(SpillAsk::Read { ticket, url, .. }) = external.read(0, 3, 1, ID, place()) else {
            panic!("nothing is asked");
        };
        assert_eq!(url, "s3://b/f?offset=9&size=9");
        (external, ticket)
    }

    fn created(instead: Option<Instead>) -> Result<Placement, StoreError> {
        match instead.and_then(|instead| instead.answer) {
            Some(StoreEffect::Created { result, .. }) => result,
            other => panic!("no create was answered: {other:?}"),
        }
    }

    #[test]
    fn the_place_goes_to_the_worker_that_reads_and_its_seal_tells_the_store() {
        let (mut external, ticket) = reading();
        assert!(external.instead(&create(1, 100, ObjectSource::CreatedByWorker)).is_none(), "a task made it anew");
        let odd = external.instead(&create(1, 99, ObjectSource::RestoredFromStorage));
        assert_eq!(created(odd), Err(StoreError::NotCreator));
        let right = create(1, 100, ObjectSource::RestoredFromStorage);
        assert_eq!(created(external.instead(&right)), Ok(place()));
        assert_eq!(created(external.instead(&right)), Err(StoreError::ObjectExists));
        assert!(external.instead(&StoreEvent::Seal { client: 2, token: 1, id: ID }).is_none(), "another client");
        let sealed = external.instead(&StoreEvent::Seal { client: 1, token: 1, id: ID }).unwrap();
        assert_eq!(sealed.event, Some(StoreEvent::RestoreDone { id: ID, result: Ok(()) }));
        let release = StoreEvent::Release { client: 1, id: ID };
        assert_eq!(external.instead(&release), Some(Instead::default()));
        assert_eq!(external.instead(&release), None, "the next one is of a get");
        assert_eq!(external.has_read(ticket, ID), None, "the store knows");
    }

    #[test]
    fn a_worker_that_dies_or_gives_up_leaves_the_place_to_the_next() {
        let (mut external, ticket) = reading();
        let right = |client| create(client, 100, ObjectSource::RestoredFromStorage);
        assert!(created(external.instead(&right(1))).is_ok());
        assert_eq!(external.instead(&StoreEvent::ClientGone { client: 1 }), None);
        assert!(created(external.instead(&right(2))).is_ok());
        assert!(external.instead(&StoreEvent::Abort { client: 2, token: 0, id: ID }).is_some());
        assert_eq!(external.has_read(ticket + 1, ID), None, "another reading");
        let failed = StoreEvent::RestoreDone { id: ID, result: Err(RestoreFailure::Again) };
        assert_eq!(external.has_read(ticket, ID), Some(failed));
        assert!(external.instead(&right(2)).is_none(), "there is no place any more");
    }

    #[test]
    fn what_holds_several_objects_is_deleted_once() {
        let (mut external, _) = reading();
        let Some(SpillAsk::Delete { urls }) = external.delete(3) else {
            panic!("nothing is deleted");
        };
        assert_eq!(urls, ["s3://b/f?offset=0&size=9"]);
        assert!(external.delete(3).is_none() && external.url(3, 0).is_none());
        assert_eq!(
            external.written(4, Err("no".to_owned())),
            StoreEvent::SpillDone { file: 4, result: Err(SpillFailure::Failed) }
        );
    }
}
