//! What the clients of a world do, and which answers they must get.

use super::super::disk::RESTORER;
use super::super::model::{Create, Object};
use super::{object_id, World};
use crate::ids::{ClientId, ObjectId, ShardId, WorkerId};
use crate::store::{
    GoneReason, ObjectSource, Placement, StoreEffect, StoreError, StoreEvent, CREDIT_RUN_MAX_BYTES, MIN_SPAN_BYTES,
    SMALL_ALIGN_BYTES,
};

impl World {
    pub(super) fn client_acts(&mut self, shard: ShardId) -> Result<(), String> {
        let id = object_id(shard, self.rng.below(self.ids));
        let slot = self.rng.below(self.clients.len() as u64) as usize;
        let client = self.clients[slot];
        let known = self.models[usize::from(shard)].objects.get(&id);
        // Nobody speaks for the store itself, which makes the places of what is read back.
        let creator = |o: &Object| if o.creator == RESTORER { client } else { o.creator };
        let known = known.map(|o| (o.sealed, creator(o)));
        let dice = self.rng.below(1000);
        match known {
            // Now and then something that makes no sense.
            _ if dice < 30 => self.any_request(shard, client, id)?,
            _ if dice < 90 => self.credit(shard, client, id)?,
            None if dice < 250 && self.models[usize::from(shard)].is_kept_on_disk(&id) => match dice {
                0..180 => self.unkeep_any(shard, client, id)?,
                180..210 => self.delete(shard, client, id)?,
                210..230 => self.keep(shard, client, id)?,
                _ => self.contains(shard, client, id)?,
            },
            None if dice < 800 => self.create(shard, client, id)?,
            None if dice < 930 => self.get(shard, client, id)?,
            None => self.watch_or_cancel(shard, client, id)?,
            Some((false, creator)) => match dice {
                0..600 => self.seal(shard, creator, id)?,
                600..650 => self.abort(shard, creator, id)?,
                650..720 => self.delete(shard, client, id)?,
                720..740 => self.free(shard, id)?,
                740..900 => self.get(shard, client, id)?,
                _ => self.watch_or_cancel(shard, client, id)?,
            },
            Some((true, _)) => match dice {
                0..380 => self.release_any(shard, client, id)?,
                380..450 => self.keep(shard, client, id)?,
                450..650 => self.get(shard, client, id)?,
                650..720 => self.delete(shard, client, id)?,
                720..800 => self.pin(shard, id)?,
                800..840 => self.unpin(shard, id)?,
                840..870 => self.unkeep_any(shard, client, id)?,
                870..930 => self.free(shard, id)?,
                _ => self.watch_or_cancel(shard, client, id)?,
            },
        }
        self.models[usize::from(shard)].check_object(&id)
    }

    fn any_request(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        match self.rng.below(13) {
            0 => self.create(shard, client, id),
            1 => self.seal(shard, client, id),
            2 => self.abort(shard, client, id),
            3 => self.delete(shard, client, id),
            4 => self.pin(shard, id),
            5 => self.unpin(shard, id),
            6 => self.free(shard, id),
            7 => self.release(shard, client, id),
            8 => self.contains(shard, client, id),
            9 => self.keep(shard, client, id),
            10 => self.unkeep(shard, client, id),
            11 => self.give_up(shard, id),
            _ => self.cancel_create(shard, client, id),
        }
    }

    fn size_bytes(&mut self) -> u64 {
        let span = MIN_SPAN_BYTES;
        match self.rng.below(1000) {
            0..300 => self.rng.below(4096),
            300..500 => self.rng.below(70_000),
            500..900 => self.rng.below(span),
            900..985 => self.rng.below(4 * span),
            985..998 => self.rng.below(self.layout.max_object_bytes()),
            _ => self.layout.max_object_bytes() + self.rng.below(span),
        }
    }

    /// The segment on the NUMA node of a client, if that is known.
    fn hint(&mut self) -> Option<u32> {
        let segments = self.layout.segments().len() as u64;
        self.rng.permille(800).then(|| self.rng.below(segments) as u32)
    }

    fn create(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        let (data_bytes, metadata_bytes) = (self.size_bytes(), self.rng.below(200));
        let (mutable, immediate, token) = (self.rng.permille(20), self.rng.permille(100), self.token());
        let (asked_ns, round, lined, hint) = (self.now, self.post.round(), None, self.hint());
        let near = hint.unwrap_or(self.homes[usize::from(shard)]);
        let create =
            Create { client, id, data_bytes, metadata_bytes, mutable, immediate, near, asked_ns, round, lined };
        self.model(shard).creates.insert(token, create);
        let event = StoreEvent::Create {
            client,
            token,
            id,
            data_bytes,
            metadata_bytes,
            owner: WorkerId::NIL,
            source: ObjectSource::CreatedByWorker,
            mutable,
            try_immediately: immediate,
            near: hint,
        };
        self.shard_event(shard, event)
    }

    fn credit(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        let runs = self.models[usize::from(shard)].runs.len() as u64;
        match self.rng.below(100) {
            0..30 if runs < 40 => {
                let (token, bytes, near) = (self.token(), self.rng.below(2 * CREDIT_RUN_MAX_BYTES), self.hint());
                self.model(shard).credit_wanted.insert(token, client);
                self.shard_event(shard, StoreEvent::GrantCredit { client, token, bytes, near })
            }
            0..90 if runs > 0 => {
                let at = self.rng.below(runs) as usize;
                self.adopt(shard, at, id)
            }
            _ if runs > 0 => {
                let at = self.rng.below(runs) as usize;
                let (client, run) = self.model(shard).runs.swap_remove(at);
                self.memory.release_run(&run)?;
                self.shard_event(shard, StoreEvent::ReturnCredit { client, run: run.run })
            }
            // Somebody else's run, or none.
            _ => {
                let (token, run, result) = (self.token(), 1_000_000, Err(StoreError::UnknownRun));
                let (data_bytes, metadata_bytes, owner, keeper) = (1, 1, WorkerId::NIL, None);
                let event = StoreEvent::Adopt { client, token, run, id, data_bytes, metadata_bytes, owner, keeper };
                self.exactly(shard, event, StoreEffect::Adopted { client, token, id, result })
            }
        }
    }

    /// An object in a run, with the answer that it must get.
    fn adopt(&mut self, shard: ShardId, at: usize, id: ObjectId) -> Result<(), String> {
        let (token, metadata_bytes) = (self.token(), self.rng.below(100) as u32);
        let most = if self.rng.permille(100) { 60_000 } else { 3000 };
        let data_bytes = self.rng.below(most) as u32;
        let keeper = self.clients.get(self.rng.below(3 * self.clients.len() as u64) as usize).copied();
        let model = &mut self.models[usize::from(shard)];
        let (client, mut run) = model.runs[at];
        let number = run.run;
        let len = u64::from(data_bytes + metadata_bytes).max(1).next_multiple_of(SMALL_ALIGN_BYTES);
        let result = match model.objects.contains_key(&id) || model.is_kept_on_disk(&id) {
            _ if len > run.size_bytes => Err(StoreError::UnknownRun),
            true => Err(StoreError::ObjectExists),
            false => Ok(()),
        };
        if result.is_ok() {
            let place = Placement {
                segment: run.segment,
                header_offset: run.offset_bytes,
                data_offset: run.offset_bytes,
                data_bytes: data_bytes.into(),
                metadata_offset: run.offset_bytes + u64::from(data_bytes),
                metadata_bytes: metadata_bytes.into(),
                allocated_bytes: len,
            };
            if let Some(keeper) = keeper {
                model.keeps.entry(id).or_default().push(keeper);
            }
            let refs = Vec::new();
            model.objects.insert(
                id,
                Object { place, creator: client, sealed: true, refs, pinned: false, spilling: false, doomed: None },
            );
            model.made += 1;
            model.adopted += 1;
        }
        if len <= run.size_bytes {
            self.memory.cut_run(&mut run, len, result.is_ok())?;
            match run.size_bytes {
                0 => drop(model.runs.swap_remove(at)),
                _ => model.runs[at].1 = run,
            }
        }
        let owner = WorkerId::NIL;
        let event = StoreEvent::Adopt { client, token, run: number, id, data_bytes, metadata_bytes, owner, keeper };
        self.exactly(shard, event, StoreEffect::Adopted { client, token, id, result })
    }

    fn cancel_create(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        let model = self.model(shard);
        model.creates.retain(|_, c| (c.client, c.id) != (client, id));
        self.shard_event(shard, StoreEvent::CancelCreate { client, id })
    }

    /// The answer that a seal or abort must get.
    fn verdict(&self, shard: ShardId, client: ClientId, id: &ObjectId) -> Result<(), StoreError> {
        match self.models[usize::from(shard)].objects.get(id) {
            None => Err(StoreError::ObjectNonexistent),
            Some(object) if object.sealed => Err(StoreError::ObjectSealed),
            Some(object) if object.creator != client => Err(StoreError::NotCreator),
            Some(_) => Ok(()),
        }
    }

    /// Sends a request whose one answer is known beforehand.
    fn exactly(&mut self, shard: ShardId, event: StoreEvent, answer: StoreEffect) -> Result<(), String> {
        self.expected = Some(answer);
        self.shard_event(shard, event)?;
        match self.expected.take() {
            Some(answer) => Err(format!("{event:?} did not get its answer: {answer:?}")),
            None => Ok(()),
        }
    }

    fn seal(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        let (token, result) = (self.token(), self.verdict(shard, client, &id));
        if result.is_ok() {
            if let Some(object) = self.model(shard).objects.get_mut(&id) {
                object.sealed = true;
            }
        }
        let event = StoreEvent::Seal { client, token, id };
        self.exactly(shard, event, StoreEffect::Sealed { client, token, id, result })
    }

    pub(super) fn abort(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        let (token, result) = (self.token(), self.verdict(shard, client, &id));
        if result.is_ok() {
            self.models[usize::from(shard)].abort(&id, &mut self.memory)?;
        }
        let event = StoreEvent::Abort { client, token, id };
        self.exactly(shard, event, StoreEffect::Aborted { client, token, id, result })
    }

    fn get(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        let (token, wait) = (self.token(), self.rng.permille(500));
        self.model(shard).gets.entry(id).or_default().push((client, token));
        if wait && self.rng.permille(300) {
            return self.shard_event(shard, StoreEvent::GetToSend { client, token, id });
        }
        if !wait && self.rng.permille(300) {
            return self.shard_event(shard, StoreEvent::GetHere { client, token, id });
        }
        self.shard_event(shard, StoreEvent::Get { client, token, id, wait })
    }

    fn watch_or_cancel(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        if self.rng.permille(500) {
            let token = self.token();
            self.model(shard).watches.entry(id).or_default().push(token);
            return self.shard_event(shard, StoreEvent::Watch { token, id });
        }
        let waits = self.models[usize::from(shard)].gets.get(&id).and_then(|gets| gets.first().copied());
        if let Some((client, token)) = waits {
            let model = self.model(shard);
            let gets = model.gets.entry(id).or_default();
            gets.retain(|get| *get != (client, token));
            if gets.is_empty() {
                model.gets.remove(&id);
            }
            return self.shard_event(shard, StoreEvent::CancelGet { client, token, id });
        }
        let watch = self.models[usize::from(shard)].watches.get(&id).and_then(|tokens| tokens.first().copied());
        match watch {
            Some(token) => {
                self.model(shard).forget_watch(&id, token);
                self.shard_event(shard, StoreEvent::Unwatch { token, id })
            }
            None => self.contains(shard, client, id),
        }
    }

    fn contains(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        let (token, model) = (self.token(), &self.models[usize::from(shard)]);
        let has = model.sealed(&id) || model.is_kept_on_disk(&id);
        let event = StoreEvent::Contains { client, token, id };
        self.exactly(shard, event, StoreEffect::Contained { client, token, id, has })
    }

    /// A client that uses the object gives it back, or one that does not tries to.
    fn release_any(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        let holder = self.models[usize::from(shard)].objects.get(&id).and_then(|o| o.refs.first().copied());
        self.release(shard, holder.unwrap_or(client), id)
    }

    fn release(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        if let Some(object) = self.model(shard).objects.get_mut(&id).filter(|o| o.sealed) {
            object.refs.retain(|holder| *holder != client);
        }
        self.shard_event(shard, StoreEvent::Release { client, id })
    }

    fn delete(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        let token = self.token();
        let model = &mut self.models[usize::from(shard)];
        let in_use = model.objects.get(&id).is_some_and(|object| model.has_use(&id, object));
        let is_kept_on_disk = model.is_kept_on_disk(&id);
        let copy = model.disk.copies.get_mut(&id).filter(|_| is_kept_on_disk);
        let result = match (copy, model.objects.get_mut(&id)) {
            (Some(copy), _) => {
                copy.doomed.get_or_insert(GoneReason::Deleted);
                Err(StoreError::ObjectInUse)
            }
            (None, None) => Err(StoreError::ObjectNonexistent),
            (None, Some(object)) => {
                object.doomed.get_or_insert(GoneReason::Deleted);
                match (object.sealed, !in_use) {
                    (false, _) => Err(StoreError::ObjectNotSealed),
                    (true, false) => Err(StoreError::ObjectInUse),
                    (true, true) => Ok(()),
                }
            }
        };
        let event = StoreEvent::Delete { client, token, id };
        self.exactly(shard, event, StoreEffect::Deleted { client, token, id, result })
    }

    fn pin(&mut self, shard: ShardId, id: ObjectId) -> Result<(), String> {
        let (token, model) = (self.token(), self.model(shard));
        let on_disk = model.disk.copies.get_mut(&id).map(|copy| copy.pinned = true).is_some();
        let object = model.objects.get_mut(&id).filter(|o| o.sealed);
        let ok = object.map(|o| o.pinned |= !on_disk).is_some() || on_disk;
        self.exactly(shard, StoreEvent::Pin { token, id }, StoreEffect::Pinned { token, id, ok })
    }

    fn keep(&mut self, shard: ShardId, keeper: ClientId, id: ObjectId) -> Result<(), String> {
        let (token, model) = (self.token(), self.model(shard));
        let ok = model.sealed(&id) || model.disk.copies.contains_key(&id);
        if ok {
            let keepers = model.keeps.entry(id).or_default();
            keepers.retain(|known| *known != keeper);
            keepers.push(keeper);
            if let Some(copy) = model.disk.copies.get_mut(&id) {
                let doomed = model.objects.get_mut(&id).and_then(|object| object.doomed.take());
                copy.doomed = copy.doomed.or(doomed);
            }
        }
        self.exactly(shard, StoreEvent::Keep { keeper, token, id }, StoreEffect::Kept { keeper, token, id, ok })
    }

    /// A client that keeps the object does so no more, or one that does not says so.
    fn unkeep_any(&mut self, shard: ShardId, client: ClientId, id: ObjectId) -> Result<(), String> {
        let keeper = self.models[usize::from(shard)].keeps.get(&id).map(|keepers| keepers[0]);
        self.unkeep(shard, keeper.unwrap_or(client), id)
    }

    pub(super) fn unkeep(&mut self, shard: ShardId, keeper: ClientId, id: ObjectId) -> Result<(), String> {
        self.model(shard).end_keep(keeper, &id);
        self.shard_event(shard, StoreEvent::Unkeep { keeper, id })?;
        self.check_gone(shard)
    }

    /// What is gone from disk must have been told, and those who waited for it.
    fn check_gone(&self, shard: ShardId) -> Result<(), String> {
        let untold = &self.models[usize::from(shard)].gone_on_disk;
        match untold.is_empty() {
            true => Ok(()),
            false => Err(format!("{untold:?} are gone, and nobody is told")),
        }
    }

    fn give_up(&mut self, shard: ShardId, id: ObjectId) -> Result<(), String> {
        self.shard_event(shard, StoreEvent::GiveUp { id })?;
        let model = &self.models[usize::from(shard)];
        let is_known = model.objects.contains_key(&id) || model.disk.copies.contains_key(&id);
        let waits = model.gets.contains_key(&id) || model.watches.contains_key(&id);
        match waits && !is_known {
            true => Err(format!("{id} was given up, and is waited for")),
            false => Ok(()),
        }
    }

    /// Before the store hears that a pin ends: true where it is on disk for somebody else too.
    fn ends_on_disk(&mut self, shard: ShardId, id: &ObjectId, doom: Option<GoneReason>) -> bool {
        let model = self.model(shard);
        let is_kept_on_disk = model.is_kept_on_disk(id);
        match model.disk.copies.get_mut(id).filter(|_| is_kept_on_disk) {
            Some(copy) => {
                copy.pinned = false;
                copy.doomed = copy.doomed.or(doom);
            }
            None => model.disk.drop_copy(id),
        }
        is_kept_on_disk
    }

    fn unpin(&mut self, shard: ShardId, id: ObjectId) -> Result<(), String> {
        if self.ends_on_disk(shard, &id, None) {
            return self.shard_event(shard, StoreEvent::Unpin { id });
        }
        if let Some(object) = self.model(shard).objects.get_mut(&id) {
            object.pinned = false;
        }
        self.shard_event(shard, StoreEvent::Unpin { id })
    }

    pub(super) fn free(&mut self, shard: ShardId, id: ObjectId) -> Result<(), String> {
        if self.ends_on_disk(shard, &id, Some(GoneReason::Freed)) {
            return self.shard_event(shard, StoreEvent::Free { id });
        }
        if let Some(object) = self.model(shard).objects.get_mut(&id) {
            object.pinned = false;
            object.doomed.get_or_insert(GoneReason::Freed);
        }
        self.shard_event(shard, StoreEvent::Free { id })
    }

    /// One of the clients dies, for every shard, and another takes its place.
    pub(super) fn client_gone(&mut self) -> Result<(), String> {
        let slot = self.rng.below(self.clients.len() as u64) as usize;
        let client = std::mem::replace(&mut self.clients[slot], self.next_client);
        self.next_client += 1;
        self.drop_client(client)
    }

    pub(super) fn drop_client(&mut self, client: ClientId) -> Result<(), String> {
        for shard in 0..self.models.len() as ShardId {
            let model = &mut self.models[usize::from(shard)];
            model.creates.retain(|_, create| create.client != client);
            model.gets.retain(|_, gets| {
                gets.retain(|(who, _)| *who != client);
                !gets.is_empty()
            });
            model.credit_wanted.retain(|_, wanted| *wanted != client);
            for (_, run) in model.runs.extract_if(.., |(owner, _)| *owner == client) {
                self.memory.release_run(&run)?;
            }
            let of_client = |o: &Object| !o.sealed && o.creator == client;
            let unsealed: Vec<_> = model.objects.iter().filter(|(_, o)| of_client(o)).map(|(id, _)| *id).collect();
            for id in unsealed {
                model.abort(&id, &mut self.memory)?;
            }
            for object in model.objects.values_mut() {
                object.refs.retain(|holder| *holder != client);
            }
            let mut kept: Vec<_> =
                model.keeps.iter().filter(|(_, by)| by.contains(&client)).map(|(id, _)| *id).collect();
            kept.sort_unstable();
            kept.iter().for_each(|id| model.end_keep(client, id));
            self.shard_event(shard, StoreEvent::ClientGone { client })?;
            self.check_gone(shard)?;
            let model = &self.models[usize::from(shard)];
            model.objects.keys().try_for_each(|id| model.check_object(id))?;
        }
        Ok(())
    }

    /// The node has made a file, or had no room for it.
    pub(super) fn file_ready(&mut self, shard: ShardId) -> Result<(), String> {
        let made = self.rng.permille(800);
        let file = self.next_file;
        let model = self.model(shard);
        let Some((id, token, _)) = model.files_wanted.pop() else {
            return Ok(());
        };
        if made {
            model.files.push(file);
            self.next_file += 1;
        }
        self.shard_event(shard, StoreEvent::FallbackReady { id, token, segment: made.then_some(file) })
    }
}
