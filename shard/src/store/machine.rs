//! The store of one core: what each event does.

use std::collections::VecDeque;

use super::api::{GoneReason, StoreEffect, StoreError, StoreEvent};
use super::arena::Arena;
use super::config::StoreConfig;
use super::credit::{Adoption, Credit, Wanted};
use super::keeps::Keeps;
use super::objects::{Backing, Object, Objects};
use super::queue::{Create, Queue};
use super::refs::Refs;
use super::report::Counters;
use super::spans::BankLink;
use super::spill::Spill;
use super::waiters::{Waiters, Who};
use crate::ids::{ClientId, NowNs, ObjectId, Token, WorkerId};

/// The plasma object store of one core: a state machine. See [`StoreEvent`] for what goes in and [`StoreEffect`] for what comes out.
#[derive(Debug)]
pub struct Store {
    pub(super) config: StoreConfig,
    pub(super) arena: Arena,
    pub(super) objects: Objects,
    pub(super) refs: Refs,
    pub(super) keeps: Keeps,
    pub(super) waiters: Waiters,
    pub(super) queue: Queue,
    pub(super) credit: Credit,
    pub(super) spill: Spill,
    pub(super) link: BankLink,
    pub(super) counters: Counters,
    /// Messages to the bank, in order.
    pub(super) to_bank: VecDeque<StoreEffect>,
    /// Memory came free, or may be freed by evicting, since the queue was last looked at.
    pub(super) freed: bool,
}

impl Store {
    /// A store without memory; the bank grants it some.
    pub fn new(config: StoreConfig) -> Self {
        Self {
            arena: Arena::new(config.segments.clone(), config.home_segment),
            objects: Objects::new(),
            refs: Refs::default(),
            keeps: Keeps::default(),
            waiters: Waiters::default(),
            queue: Queue::default(),
            credit: Credit::default(),
            spill: Spill::default(),
            link: BankLink::new(config.segments.segments().len()),
            counters: Counters::default(),
            to_bank: VecDeque::new(),
            freed: false,
            config,
        }
    }

    /// Takes one event and appends what it leads to. Messages to the bank come last.
    pub fn handle(&mut self, event: StoreEvent, now: NowNs, out: &mut Vec<StoreEffect>) {
        self.step(event, now, out);
        out.extend(self.to_bank.drain(..));
    }

    /// [`Self::handle`], with messages to the bank left in `to_bank`.
    pub(super) fn step(&mut self, event: StoreEvent, now: NowNs, out: &mut Vec<StoreEffect>) {
        match event {
            StoreEvent::Create {
                client,
                token,
                id,
                data_bytes,
                metadata_bytes,
                owner,
                source,
                mutable,
                try_immediately,
                near,
            } => {
                let near = self.near(near);
                let create = Create {
                    client,
                    token,
                    id,
                    data_bytes,
                    metadata_bytes,
                    owner,
                    source,
                    mutable,
                    try_immediately,
                    near,
                    since: now,
                };
                self.create(create, now, out);
            }
            StoreEvent::CancelCreate { client, id } => {
                self.queue.forget(|create| create.client == client && create.id == id);
                self.run_queue(now, out);
            }
            StoreEvent::Seal { client, token, id } => self.seal(client, token, id, now, out),
            StoreEvent::Abort { client, token, id } => self.abort(client, token, id, out),
            StoreEvent::Get { client, token, id, wait } => self.get(client, token, id, wait, out),
            StoreEvent::GetHere { client, token, id } => {
                let on_disk = self.spill.has(&id);
                self.get(client, token, id, on_disk, out);
            }
            StoreEvent::GetToSend { client, token, id } => self.get_to_send(client, token, id, out),
            StoreEvent::SentSpilled { id, faulty } => self.sent_spilled(&id, faulty, out),
            StoreEvent::CancelGet { client, token, id } => {
                self.waiters.cancel(&id, Who::Get(client), token);
            }
            StoreEvent::Release { client, id } => self.release(client, &id, out),
            StoreEvent::Delete { client, token, id } => {
                let result = self.delete(&id, out);
                out.push(StoreEffect::Deleted { client, token, id, result });
            }
            StoreEvent::Contains { client, token, id } => {
                let has = self.sealed_slot(&id).is_some() || self.is_kept_on_disk(&id);
                out.push(StoreEffect::Contained { client, token, id, has });
            }
            StoreEvent::ClientGone { client } => {
                self.client_gone(client, out);
                self.run_queue(now, out);
            }
            StoreEvent::Keep { keeper, token, id } => self.keep(keeper, token, id, out),
            StoreEvent::Unkeep { keeper, id } => self.unkeep(keeper, &id, out),
            StoreEvent::GiveUp { id } => self.give_up(id, out),
            StoreEvent::Pin { token, id } => self.pin(token, id, out),
            StoreEvent::Unpin { id } => self.unpin(&id, None, out),
            StoreEvent::Free { id } => self.unpin(&id, Some(GoneReason::Freed), out),
            StoreEvent::Watch { token, id } => self.watch(token, id, out),
            StoreEvent::Unwatch { token, id } => {
                self.waiters.cancel(&id, Who::Watch, token);
            }
            StoreEvent::GrantCredit { client, token, bytes, near } => {
                let near = self.near(near);
                self.want_credit(Wanted { client, token, bytes, near }, now, out);
            }
            StoreEvent::Adopt { client, token, run, id, data_bytes, metadata_bytes, owner, keeper } => {
                let adoption = Adoption { client, token, run, id, data_bytes, metadata_bytes, owner, keeper };
                self.adopt(&adoption, now, out);
            }
            StoreEvent::ReturnCredit { client, run } => self.return_credit(client, run),
            StoreEvent::Tick => self.tick(now, out),
            StoreEvent::SpillDone { file, result } => self.spilled(file, result, now, out),
            StoreEvent::RestoreDone { id, result } => self.restored(id, result, now, out),
            StoreEvent::OthersUse { bytes, spilling } => self.spill.others(bytes, spilling),
            StoreEvent::FallbackReady { id, token, segment } => self.filed(id, token, segment, now, out),
            StoreEvent::SpansGranted { first, count, urgency } => self.granted((first, count), urgency, now, out),
            StoreEvent::SpansRefused { wish } => self.refused(wish, now, out),
            StoreEvent::ReclaimSpans { count } => self.reclaim(count, now, out),
            StoreEvent::Hold { on } => self.held(on, now, out),
            StoreEvent::Turn { since, full_since } => self.turn(since, full_since, now, out),
        }
        self.settle_memory(now, out);
        self.run_spill(now, out);
    }

    /// Whether an object is here and sealed.
    pub fn has(&self, id: &ObjectId) -> bool {
        self.sealed_slot(id).is_some()
    }

    /// The slot of a sealed object.
    pub(super) fn sealed_slot(&self, id: &ObjectId) -> Option<u32> {
        self.objects.find(id).filter(|slot| self.objects.get(*slot).sealed_ns.is_some())
    }

    fn seal(&mut self, client: ClientId, token: Token, id: ObjectId, now: NowNs, out: &mut Vec<StoreEffect>) {
        let result = self.try_seal(client, &id, now);
        out.push(StoreEffect::Sealed { client, token, id, result: result.map(|_| ()) });
        if let Ok(slot) = result {
            self.announce(slot, out);
        }
    }

    /// An object can be read: whoever keeps locations is told, and who waits for it gets it.
    pub(super) fn announce(&mut self, slot: u32, out: &mut Vec<StoreEffect>) {
        let &Object { id, owner, data_bytes, metadata_bytes, source, .. } = self.objects.get(slot);
        out.push(StoreEffect::ObjectSealed { id, owner, data_bytes, metadata_bytes, source });
        while let Some((who, token)) = self.waiters.pop(&id) {
            match who {
                Who::Get(client) => self.give(client, token, slot, true, out),
                Who::Watch => out.push(StoreEffect::Watched { token, id }),
            }
        }
    }

    fn try_seal(&mut self, client: ClientId, id: &ObjectId, now: NowNs) -> Result<u32, StoreError> {
        let slot = self.unsealed_of(client, id)?;
        let object = self.objects.get_mut(slot);
        object.sealed_ns = Some(now);
        self.counters.unsealed.sub(object.size_bytes());
        Ok(slot)
    }

    /// The unsealed object that this client created.
    fn unsealed_of(&self, client: ClientId, id: &ObjectId) -> Result<u32, StoreError> {
        let slot = self.objects.find(id).ok_or(StoreError::ObjectNonexistent)?;
        let object = self.objects.get(slot);
        if object.sealed_ns.is_some() {
            return Err(StoreError::ObjectSealed);
        }
        if self.refs.find(client) != Some(object.creator) {
            return Err(StoreError::NotCreator);
        }
        Ok(slot)
    }

    fn abort(&mut self, client: ClientId, token: Token, id: ObjectId, out: &mut Vec<StoreEffect>) {
        let result = self.unsealed_of(client, &id).map(|slot| self.abort_slot(slot, out));
        out.push(StoreEffect::Aborted { client, token, id, result });
    }

    pub(super) fn abort_slot(&mut self, slot: u32, out: &mut Vec<StoreEffect>) {
        let creator = self.objects.get(slot).creator;
        self.drop_reference(creator, slot);
        self.destroy(slot, GoneReason::Deleted, out);
    }

    pub(super) fn get(&mut self, client: ClientId, token: Token, id: ObjectId, wait: bool, out: &mut Vec<StoreEffect>) {
        if let Some(slot) = self.sealed_slot(&id) {
            self.give(client, token, slot, false, out);
        } else if wait && self.waiters.len() < self.config.max_waiters {
            self.waiters.add(id, Who::Get(client), token);
            self.want_restore(id, true);
        } else {
            let (place, owner, waited) = (None, WorkerId::NIL, false);
            out.push(StoreEffect::Got { client, token, id, place, owner, waited });
        }
    }

    /// Nobody will make this object: whoever waits for it is told so.
    pub(super) fn give_up(&mut self, id: ObjectId, out: &mut Vec<StoreEffect>) {
        if self.objects.find(&id).is_some() || self.spill.has(&id) {
            return;
        }
        while let Some((who, token)) = self.waiters.pop(&id) {
            out.push(match who {
                Who::Get(client) => {
                    let (place, owner, waited) = (None, WorkerId::NIL, true);
                    StoreEffect::Got { client, token, id, place, owner, waited }
                }
                Who::Watch => StoreEffect::WatchRefused { token, id },
            });
        }
    }

    /// The client uses a sealed object from here on.
    pub(super) fn hold(&mut self, client: ClientId, slot: u32) {
        let holder = self.refs.client(client);
        if self.refs.add(holder, slot) {
            let object = self.objects.get_mut(slot);
            object.refs += 1;
            if object.refs == 1 {
                self.counters.in_use.add(object.size_bytes());
                self.objects.reorder(slot);
            }
        }
    }

    /// Answers a get, with a reference.
    fn give(&mut self, client: ClientId, token: Token, slot: u32, waited: bool, out: &mut Vec<StoreEffect>) {
        self.hold(client, slot);
        let object = self.objects.get(slot);
        let place = Some(object.place(&self.arena));
        out.push(StoreEffect::Got { client, token, id: object.id, place, owner: object.owner, waited });
    }

    fn release(&mut self, client: ClientId, id: &ObjectId, out: &mut Vec<StoreEffect>) {
        let held = self.refs.find(client).zip(self.sealed_slot(id));
        match held {
            Some((holder, slot)) if self.drop_reference(holder, slot) => self.settle(slot, out),
            _ => self.counters.stray_events += 1,
        }
    }

    /// Takes a reference away; false where there is none. The object stays as it is otherwise.
    pub(super) fn drop_reference(&mut self, holder: u32, slot: u32) -> bool {
        if !self.refs.remove(holder, slot) {
            return false;
        }
        let object = self.objects.get_mut(slot);
        object.refs -= 1;
        if object.refs == 0 {
            self.counters.in_use.sub(object.size_bytes());
        }
        true
    }

    /// After a change of what keeps an object: puts it where it belongs now, or ends it.
    pub(super) fn settle(&mut self, slot: u32, out: &mut Vec<StoreEffect>) {
        let object = self.objects.get(slot);
        match object.doomed {
            Some(reason)
                if object.sealed_ns.is_some() && object.refs == 0 && !object.is_owned() && !object.spilling =>
            {
                self.destroy(slot, reason, out);
            }
            _ => {
                self.objects.reorder(slot);
                // It may have become evictable.
                self.freed = true;
            }
        }
    }

    /// The object is gone, whatever kept it.
    pub(super) fn destroy(&mut self, slot: u32, reason: GoneReason, out: &mut Vec<StoreEffect>) {
        let gone = self.objects.remove(slot);
        if self.waiters.has(&gone.id) {
            // Whoever was to fill this place gave it up.
            self.want_restore(gone.id, true);
        }
        let bytes = gone.size_bytes();
        self.counters.by_source[gone.source as usize].sub(bytes);
        if gone.pinned {
            self.counters.pinned.sub(bytes);
        }
        if gone.sealed_ns.is_some() {
            let Object { id, owner, data_bytes, metadata_bytes, .. } = gone;
            out.push(StoreEffect::ObjectGone { id, owner, data_bytes, metadata_bytes, reason });
        } else {
            self.counters.unsealed.sub(bytes);
        }
        match gone.backing {
            Backing::Arena(allocation) => {
                self.arena.free(allocation);
                self.freed = true;
            }
            Backing::File(segment, _) => {
                self.counters.fallback.sub(bytes);
                out.push(StoreEffect::FallbackReturned { segment });
            }
        }
    }

    fn delete(&mut self, id: &ObjectId, out: &mut Vec<StoreEffect>) -> Result<(), StoreError> {
        if self.spill.doom_kept(id, GoneReason::Deleted) {
            return Err(StoreError::ObjectInUse);
        }
        let slot = self.objects.find(id).ok_or(StoreError::ObjectNonexistent)?;
        let object = self.objects.get_mut(slot);
        object.doomed.get_or_insert(GoneReason::Deleted);
        if object.sealed_ns.is_none() {
            return Err(StoreError::ObjectNotSealed);
        }
        if object.refs > 0 || object.is_owned() || object.spilling {
            return Err(StoreError::ObjectInUse);
        }
        self.settle(slot, out);
        Ok(())
    }

    fn client_gone(&mut self, client: ClientId, out: &mut Vec<StoreEffect>) {
        self.waiters.drop_client(client);
        self.queue.forget(|create| create.client == client);
        self.drop_credit_of(client);
        self.user_gone(client, out);
        self.keeper_gone(client, out);
    }

    /// What a client that is gone used or was making.
    fn user_gone(&mut self, client: ClientId, out: &mut Vec<StoreEffect>) {
        let Some(holder) = self.refs.find(client) else {
            return;
        };
        while let Some(slot) = self.refs.any_of(holder) {
            if self.objects.get(slot).sealed_ns.is_none() {
                self.abort_slot(slot, out);
            } else {
                self.drop_reference(holder, slot);
                self.settle(slot, out);
            }
        }
        self.refs.forget(holder);
    }

    fn pin(&mut self, token: Token, id: ObjectId, out: &mut Vec<StoreEffect>) {
        let slot = self.sealed_slot(&id);
        // What has a copy on disk is kept by that.
        let kept = self.spill.set_pinned(&id);
        if let Some(slot) = slot.filter(|_| !kept) {
            let object = self.objects.get_mut(slot);
            if !std::mem::replace(&mut object.pinned, true) {
                self.counters.pinned.add(object.size_bytes());
                self.objects.reorder(slot);
            }
        }
        out.push(StoreEffect::Pinned { token, id, ok: kept || slot.is_some() });
    }

    fn unpin(&mut self, id: &ObjectId, doom: Option<GoneReason>, out: &mut Vec<StoreEffect>) {
        if self.spill.unpin_kept(id, doom) {
            return;
        }
        let on_disk = self.drop_copy(id, out);
        let Some(slot) = self.objects.find(id) else {
            self.counters.stray_events += u64::from(!on_disk);
            return;
        };
        let object = self.objects.get_mut(slot);
        object.doomed = object.doomed.or(doom);
        if std::mem::replace(&mut object.pinned, false) {
            self.counters.pinned.sub(object.size_bytes());
        }
        self.settle(slot, out);
    }

    fn watch(&mut self, token: Token, id: ObjectId, out: &mut Vec<StoreEffect>) {
        if self.sealed_slot(&id).is_some() {
            out.push(StoreEffect::Watched { token, id });
        } else if self.waiters.len() < self.config.max_waiters {
            self.waiters.add(id, Who::Watch, token);
            self.want_restore(id, false);
        } else {
            out.push(StoreEffect::WatchRefused { token, id });
        }
    }
}
