//! What must be true of one shard's store, kept beside it in the simplest way.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::disk::Disk;
use crate::ids::{ClientId, NowNs, ObjectId, ShardId, Token};
use crate::store::{
    CreditRun, GoneReason, Layout, Placement, SpanBank, SpanIndex, StoreEffect, StoreError, LARGE_ALIGN_BYTES,
    LARGE_OBJECT_BYTES, MUTABLE_HEADER_BYTES, SMALL_ALIGN_BYTES,
};

/// Spans of nobody's.
const NOBODY: ShardId = ShardId::MAX;

/// Files on disk have segment numbers from here on.
pub(super) const FIRST_FILE: u32 = 1000;

/// Which bytes and which spans of the node belong to whom. The spans of shard 0, whose talk with the bank nobody sees, are the
/// bank's to tell.
#[derive(Debug)]
pub(super) struct Memory {
    layout: Layout,
    /// Bytes of live objects: first -> end, as span number times span size plus offset.
    bytes: BTreeMap<u64, u64>,
    holders: Vec<ShardId>,
}

impl Memory {
    pub(super) fn new(layout: &Layout) -> Self {
        let holders = vec![NOBODY; layout.index_end() as usize];
        Self { layout: layout.clone(), bytes: BTreeMap::new(), holders }
    }

    fn address(&self, place: &Placement) -> Result<u64, String> {
        let segment = self.layout.segments().get(place.segment as usize);
        let segment = segment.ok_or_else(|| format!("{place:?} is in a segment that is not there"))?;
        Ok(u64::from(segment.first) * self.layout.span_bytes() + place.header_offset)
    }

    fn claim(&mut self, shard: ShardId, place: &Placement, bank: &SpanBank) -> Result<(), String> {
        let start = self.address(place)?;
        let end = start + place.allocated_bytes;
        let before = self.bytes.range(..end).next_back();
        if let Some((other, other_end)) = before.filter(|(_, other_end)| **other_end > start) {
            return Err(format!("{place:?} overlaps the object at {other}..{other_end}"));
        }
        let span_bytes = self.layout.span_bytes();
        for span in start / span_bytes..end.div_ceil(span_bytes) {
            let holder = match shard {
                0 => bank.holder(span as SpanIndex),
                _ => self.holders.get(span as usize).copied(),
            };
            if holder != Some(shard) {
                return Err(format!("{place:?} is in span {span} of shard {holder:?}, not {shard}"));
            }
        }
        self.bytes.insert(start, end);
        Ok(())
    }

    /// A run of credit is claimed as an object of its length would be.
    pub(super) fn claim_run(&mut self, shard: ShardId, run: &CreditRun, bank: &SpanBank) -> Result<(), String> {
        self.claim(shard, &place_of_run(run), bank)
    }

    /// The first `len` bytes of what is left of a run are an object's now, or nobody's.
    pub(super) fn cut_run(&mut self, run: &mut CreditRun, len: u64, kept: bool) -> Result<(), String> {
        self.release(&place_of_run(run))?;
        let start = self.address(&place_of_run(run))?;
        if kept {
            self.bytes.insert(start, start + len);
        }
        (run.offset_bytes, run.size_bytes) = (run.offset_bytes + len, run.size_bytes - len);
        if run.size_bytes > 0 {
            self.bytes.insert(start + len, start + len + run.size_bytes);
        }
        Ok(())
    }

    /// What is left of a run is given back.
    pub(super) fn release_run(&mut self, run: &CreditRun) -> Result<(), String> {
        self.release(&place_of_run(run))
    }

    fn release(&mut self, place: &Placement) -> Result<(), String> {
        let start = self.address(place)?;
        match self.bytes.remove(&start) {
            Some(end) if end == start + place.allocated_bytes => Ok(()),
            other => Err(format!("{place:?} ends, but its bytes were {other:?}")),
        }
    }

    /// A shard has been given spans.
    pub(super) fn granted(&mut self, shard: ShardId, first: SpanIndex, count: u32) -> Result<(), String> {
        for span in first..first + count {
            let holder = std::mem::replace(&mut self.holders[span as usize], shard);
            if holder != NOBODY {
                return Err(format!("span {span} of shard {holder} is granted to shard {shard}"));
            }
        }
        self.expect_empty(first, count)
    }

    fn expect_empty(&self, first: SpanIndex, count: u32) -> Result<(), String> {
        let span_bytes = self.layout.span_bytes();
        let (start, end) = (u64::from(first) * span_bytes, u64::from(first + count) * span_bytes);
        match self.bytes.range(..end).next_back() {
            Some((at, until)) if *until > start => {
                Err(format!("spans {first}+{count} move with an object at {at}..{until}"))
            }
            _ => Ok(()),
        }
    }

    /// A shard gives spans back.
    pub(super) fn returned(&mut self, shard: ShardId, first: SpanIndex, count: u32) -> Result<(), String> {
        for span in first..first + count {
            let holder = std::mem::replace(&mut self.holders[span as usize], NOBODY);
            if holder != shard {
                return Err(format!("shard {shard} gives back span {span} of shard {holder}"));
            }
        }
        self.expect_empty(first, count)
    }
}

/// What is left of a run, as a place.
fn place_of_run(run: &CreditRun) -> Placement {
    Placement {
        segment: run.segment,
        header_offset: run.offset_bytes,
        data_offset: run.offset_bytes,
        data_bytes: run.size_bytes,
        metadata_offset: run.offset_bytes + run.size_bytes,
        metadata_bytes: 0,
        allocated_bytes: run.size_bytes,
    }
}

/// One object.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) place: Placement,
    pub(super) creator: ClientId,
    pub(super) sealed: bool,
    pub(super) refs: Vec<ClientId>,
    pub(super) pinned: bool,
    pub(super) spilling: bool,
    pub(super) doomed: Option<GoneReason>,
}

/// One create that has no answer yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Create {
    pub(super) client: ClientId,
    pub(super) id: ObjectId,
    pub(super) data_bytes: u64,
    pub(super) metadata_bytes: u64,
    pub(super) mutable: bool,
    pub(super) immediate: bool,
    /// The segment that it is to be in, if there is room.
    pub(super) near: u32,
    pub(super) asked_ns: NowNs,
    /// The round of messages in which it was asked for.
    pub(super) round: u64,
    /// The round in which it took its place in the line of the node.
    pub(super) lined: Option<u64>,
}

/// One shard's objects and requests.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) shard: ShardId,
    pub(super) objects: FxHashMap<ObjectId, Object>,
    pub(super) creates: FxHashMap<Token, Create>,
    pub(super) gets: FxHashMap<ObjectId, Vec<(ClientId, Token)>>,
    pub(super) watches: FxHashMap<ObjectId, Vec<Token>>,
    /// Who keeps an object, wherever it is.
    pub(super) keeps: FxHashMap<ObjectId, Vec<ClientId>>,
    /// Objects that were on disk only, are gone, and are to be told to be.
    pub(super) gone_on_disk: FxHashMap<ObjectId, GoneReason>,
    /// Requests for credit without an answer.
    pub(super) credit_wanted: FxHashMap<Token, ClientId>,
    /// Runs, in the order of being granted: whose, and what is left.
    pub(super) runs: Vec<(ClientId, CreditRun)>,
    /// Files that the store asked for: create -> size.
    pub(super) files_wanted: Vec<(ObjectId, Token, u64)>,
    pub(super) files: Vec<u32>,
    /// The last round in which the shard got memory or made an object.
    pub(super) progress: u64,
    pub(super) disk: Disk,
    pub(super) fallback: bool,
    pub(super) grace_ns: u64,
    /// The largest object that can ever fit.
    pub(super) max_bytes: u64,
    pub(super) made: u64,
    pub(super) adopted: u64,
    pub(super) evicted: u64,
    pub(super) refused: u64,
}

pub(super) fn expect(ok: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if ok {
        Ok(())
    } else {
        Err(what())
    }
}

impl Model {
    pub(super) fn new(shard: ShardId, fallback: bool, grace_ns: u64, max_bytes: u64) -> Self {
        Self {
            shard,
            objects: FxHashMap::default(),
            creates: FxHashMap::default(),
            gets: FxHashMap::default(),
            watches: FxHashMap::default(),
            keeps: FxHashMap::default(),
            gone_on_disk: FxHashMap::default(),
            credit_wanted: FxHashMap::default(),
            runs: Vec::new(),
            files_wanted: Vec::new(),
            files: Vec::new(),
            progress: 0,
            disk: Disk::default(),
            fallback,
            grace_ns,
            max_bytes,
            made: 0,
            adopted: 0,
            evicted: 0,
            refused: 0,
        }
    }

    /// Something holds an object in memory.
    pub(super) fn has_use(&self, id: &ObjectId, object: &Object) -> bool {
        let is_kept_here = self.keeps.contains_key(id) && !self.disk.copies.contains_key(id);
        !object.refs.is_empty() || object.pinned || object.spilling || is_kept_here
    }

    pub(super) fn is_kept_on_disk(&self, id: &ObjectId) -> bool {
        self.keeps.contains_key(id) && self.disk.copies.contains_key(id)
    }

    /// Before the store hears that a client keeps an object no more.
    pub(super) fn end_keep(&mut self, client: ClientId, id: &ObjectId) {
        let Some(keepers) = self.keeps.get_mut(id) else {
            return;
        };
        keepers.retain(|keeper| *keeper != client);
        if !keepers.is_empty() {
            return;
        }
        self.keeps.remove(id);
        let copy = self.disk.copies.get_mut(id).map(|copy| (copy.pinned, copy.doomed.take()));
        if copy.is_some_and(|(pinned, _)| !pinned) {
            self.disk.drop_copy(id);
        }
        match (copy, self.objects.get_mut(id)) {
            (Some((_, doomed)), Some(object)) => object.doomed = object.doomed.or(doomed),
            (Some((false, doomed)), None) => {
                self.gone_on_disk.insert(*id, doomed.unwrap_or(GoneReason::Evicted));
            }
            _ => {}
        }
    }

    pub(super) fn sealed(&self, id: &ObjectId) -> bool {
        self.objects.get(id).is_some_and(|o| o.sealed)
    }

    /// What an effect that says what happened to objects must be.
    pub(super) fn follow(
        &mut self,
        effect: &StoreEffect,
        memory: &mut Memory,
        bank: &SpanBank,
        now: NowNs,
    ) -> Result<(), String> {
        match *effect {
            StoreEffect::Created { client, token, id, result } => {
                let create = self.creates.remove(&token).ok_or("an answer to no create")?;
                expect((create.client, create.id) == (client, id), || format!("{effect:?} is for {create:?}"))?;
                match result {
                    Ok(place) => self.created(&create, place, memory, bank),
                    Err(error) => self.create_failed(&create, error, now),
                }
            }
            StoreEffect::CreditGranted { client, token, result } => {
                let asked = self.credit_wanted.remove(&token);
                expect(asked == Some(client), || format!("{effect:?} was asked for by {asked:?}"))?;
                match result {
                    Ok(run) => {
                        let known = self.runs.iter().any(|(_, other)| other.run == run.run);
                        let is_aligned = (run.offset_bytes | run.size_bytes).is_multiple_of(SMALL_ALIGN_BYTES);
                        expect(!known && is_aligned && run.size_bytes > 0, || format!("{run:?} is no new run"))?;
                        self.runs.push((client, run));
                        memory.claim_run(self.shard, &run, bank)
                    }
                    Err(error) => expect(matches!(error, StoreError::OutOfMemory | StoreError::QueueFull), || {
                        format!("credit was refused: {error}")
                    }),
                }
            }
            StoreEffect::Got { client, token, id, place, .. } => self.got(client, token, id, place),
            StoreEffect::Watched { token, id } => {
                expect(self.sealed(&id), || format!("{id} is watched and not sealed"))?;
                self.forget_watch(&id, token).then_some(()).ok_or("an answer to no watch".into())
            }
            StoreEffect::WatchRefused { token, id } => {
                self.forget_watch(&id, token).then_some(()).ok_or("a refusal of no watch".into())
            }
            StoreEffect::ObjectSealed { id, data_bytes, .. } => {
                let ok = self.objects.get(&id).is_some_and(|o| o.sealed && o.place.data_bytes == data_bytes);
                expect(ok, || format!("{id} is announced and not sealed"))
            }
            StoreEffect::ObjectGone { id, reason, .. } => self.gone(id, reason, memory),
            StoreEffect::FallbackWanted { id, token, bytes } => {
                let create = self.creates.get(&token).map(|create| create.id);
                let restore = (token == Token::MAX && self.disk.copies.contains_key(&id)).then_some(id);
                let wanted = self.fallback && create.or(restore) == Some(id);
                expect(wanted, || format!("{effect:?} is for no create"))?;
                self.files_wanted.push((id, token, bytes));
                Ok(())
            }
            StoreEffect::FallbackReturned { segment } => {
                let at = self.files.iter().position(|f| *f == segment).ok_or("a file is given back twice")?;
                self.files.swap_remove(at);
                let used = self.objects.values().any(|o| o.place.segment == segment);
                expect(!used, || format!("file {segment} is given back in use"))
            }
            StoreEffect::GcWanted => Ok(()),
            StoreEffect::RestoreObject { file, index, id, place } => {
                let create = self.disk.restore_begins(file, index, id)?;
                self.created(&create, place, memory, bank)
            }
            StoreEffect::SpilledAt { .. }
            | StoreEffect::SpillObject { .. }
            | StoreEffect::ObjectSpilled { .. }
            | StoreEffect::SpillFileUnneeded { .. }
            | StoreEffect::SpilledLost { .. } => self.follow_spill(effect),
            _ => Err(format!("nobody asked for {effect:?}")),
        }
    }

    fn created(
        &mut self,
        create: &Create,
        place: Placement,
        memory: &mut Memory,
        bank: &SpanBank,
    ) -> Result<(), String> {
        let Create { id, client, data_bytes, metadata_bytes, .. } = *create;
        let header = if create.mutable { MUTABLE_HEADER_BYTES } else { 0 };
        let total = data_bytes + metadata_bytes + header;
        let fits = (place.data_bytes, place.metadata_bytes) == (data_bytes, metadata_bytes)
            && place.data_offset == place.header_offset + header
            && place.metadata_offset == place.data_offset + data_bytes
            && place.allocated_bytes >= total.max(1);
        let align = if total >= LARGE_OBJECT_BYTES { LARGE_ALIGN_BYTES } else { SMALL_ALIGN_BYTES };
        let aligned = place.header_offset.is_multiple_of(align) && place.allocated_bytes.is_multiple_of(align);
        expect(fits && aligned, || format!("{create:?} got {place:?}"))?;
        if place.segment < FIRST_FILE {
            memory.claim(self.shard, &place, bank)?;
        } else {
            expect(self.files.contains(&place.segment), || format!("{place:?} is in no file"))?;
        }
        let object = Object {
            place,
            creator: client,
            sealed: false,
            refs: vec![client],
            pinned: false,
            spilling: false,
            doomed: None,
        };
        self.made += 1;
        expect(self.objects.insert(id, object).is_none(), || format!("{id} is made twice"))
    }

    fn create_failed(&mut self, create: &Create, error: StoreError, now: NowNs) -> Result<(), String> {
        self.refused += 1;
        let ok = match error {
            StoreError::ObjectExists => self.objects.contains_key(&create.id) || self.is_kept_on_disk(&create.id),
            StoreError::OutOfDisk => self.disk.full,
            // Without files, only the impatient and the impossible fail before the grace period can be over.
            StoreError::OutOfMemory => {
                let impossible = create.data_bytes.saturating_add(create.metadata_bytes) > self.max_bytes;
                create.immediate || self.fallback || now >= self.grace_ns || impossible
            }
            StoreError::QueueFull => !self.creates.is_empty(),
            _ => false,
        };
        expect(ok, || format!("{create:?} failed: {error} after {} ns", now - create.asked_ns))
    }

    fn got(&mut self, client: ClientId, token: Token, id: ObjectId, place: Option<Placement>) -> Result<(), String> {
        let gets = self.gets.get_mut(&id).ok_or("an answer to no get")?;
        let at = gets.iter().position(|get| *get == (client, token)).ok_or("an answer to no get")?;
        expect(at == 0 || place.is_none(), || format!("{id} is answered out of turn"))?;
        gets.remove(at);
        if gets.is_empty() {
            self.gets.remove(&id);
        }
        let Some(place) = place else {
            return Ok(());
        };
        let object =
            self.objects.get_mut(&id).filter(|o| o.sealed).ok_or_else(|| format!("{id} is got and not sealed"))?;
        expect(object.place == place, || format!("{id} is at {:?}, not {place:?}", object.place))?;
        if !object.refs.contains(&client) {
            object.refs.push(client);
        }
        Ok(())
    }

    pub(super) fn forget_watch(&mut self, id: &ObjectId, token: Token) -> bool {
        let Some(tokens) = self.watches.get_mut(id) else {
            return false;
        };
        let at = tokens.iter().position(|t| *t == token);
        if let Some(at) = at {
            tokens.remove(at);
        }
        if tokens.is_empty() {
            self.watches.remove(id);
        }
        at.is_some()
    }

    fn gone(&mut self, id: ObjectId, reason: GoneReason, memory: &mut Memory) -> Result<(), String> {
        if self.gone_on_disk.get(&id) == Some(&reason) && !self.objects.contains_key(&id) {
            self.gone_on_disk.remove(&id);
            return Ok(());
        }
        let object = self.objects.remove(&id).ok_or_else(|| format!("{id} is gone and was not there"))?;
        let unused = object.sealed && !self.has_use(&id, &object);
        let on_disk = self.disk.copies.contains_key(&id);
        let wanted = match reason {
            GoneReason::Evicted => object.doomed.is_none() && !on_disk,
            GoneReason::Spilled => object.doomed.is_none() && on_disk,
            other => object.doomed == Some(other),
        };
        self.evicted += u64::from(reason == GoneReason::Evicted);
        expect(unused && wanted, || format!("{object:?} is gone: {reason:?}"))?;
        self.free(&object, memory)
    }

    fn free(&mut self, object: &Object, memory: &mut Memory) -> Result<(), String> {
        if object.place.segment < FIRST_FILE {
            memory.release(&object.place)
        } else {
            Ok(())
        }
    }

    /// An unsealed object ends without a word.
    pub(super) fn abort(&mut self, id: &ObjectId, memory: &mut Memory) -> Result<(), String> {
        match self.objects.remove(id) {
            Some(object) => self.free(&object, memory),
            None => Ok(()),
        }
    }

    /// After an event about this object: it must be gone if nothing keeps it, and nobody may wait for it if it is sealed.
    pub(super) fn check_object(&self, id: &ObjectId) -> Result<(), String> {
        let Some(object) = self.objects.get(id).filter(|o| o.sealed) else {
            return Ok(());
        };
        let over = object.doomed.is_some() && !self.has_use(id, object);
        expect(!over, || format!("{id} should be gone: {object:?}"))?;
        let waited = self.gets.contains_key(id) || self.watches.contains_key(id);
        expect(!waited, || format!("{id} is sealed and waited for"))
    }
}
