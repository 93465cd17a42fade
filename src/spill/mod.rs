//! Spilling on a core: carries out what the store decides, through the core's ring.
//!
//! The store names objects, files and places (`shard/src/store/spill.rs`); [`Disk`] turns them into operations on files; here
//! both meet the core: its segments, its ring, the owners' addresses and the control thread.

pub mod external;
pub mod files;
pub mod memory;
pub mod settings;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use raylet_shard::ids::{ObjectId, ShardId, WorkerId};
use raylet_shard::store::{Placement, RestoreFailure, SpillFailure, SpillFile, StoreEffect, StoreEvent};
use raylet_transport::spill::{Disk, DiskSettings, DiskUse, Outcome, Source, SpilledObject, Target};
use raylet_transport::uring::{FileResult, IoMemory};
use raylet_tuning::Segment;
use rustc_hash::FxHashMap;

use crate::bridge::ToControl;
use crate::core_io::{Io, Wish};
use crate::core_loop::Core;
use crate::native;
use crate::ray::messages::Owner;
use crate::ray::plasma_conn::back_in_background;
use crate::ray::proto;
use external::{External, SpillAsk, SpillTold};
use files::{FileSettings, Files};
use memory::ArenaMemory;
use settings::SpillSettings;

/// Owners whose addresses are kept for the files; what is written for further ones names no owner, which only stock Ray would miss.
const OWNERS_MAX: usize = 100_000;

/// Fresh memory up to this size is backed on the core itself; more is backed by a helper thread meanwhile.
const BACK_INLINE_BYTES: u64 = 1 << 20;

/// What all cores of a node share about spilling.
#[derive(Debug, Default)]
pub struct SpillShared {
    /// Addresses of owners as Ray's protobuf message, which stands in front of each object in a file.
    owners: Mutex<FxHashMap<WorkerId, Arc<[u8]>>>,
    /// By shard: what it has that can't be evicted, in bytes, and whether it is writing.
    uses: Box<[(AtomicU64, AtomicBool)]>,
    /// Objects in files of their own.
    files: Files,
}

impl SpillShared {
    /// The file of an object beside the store, by its segment's number.
    pub fn file(&self, segment: u32) -> Option<Arc<Segment>> {
        self.files.get(segment)
    }

    /// For a node of so many shards.
    pub fn new(shards: ShardId) -> Self {
        Self {
            owners: Mutex::default(),
            uses: (0..shards).map(|_| Default::default()).collect(),
            files: Files::default(),
        }
    }

    fn address_of(&self, owner: &WorkerId) -> Rc<[u8]> {
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get(owner).map(|address| Rc::from(&address[..])).unwrap_or_default()
    }

    fn owner_seen(&self, owner: &Owner) {
        let address = proto::Address {
            node_id: owner.node.as_bytes().to_vec().into(),
            ip_address: owner.ip_address.clone(),
            port: owner.port,
            worker_id: owner.worker.as_bytes().to_vec().into(),
        };
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.len() < OWNERS_MAX {
            owners.insert(owner.worker, Arc::from(prost::Message::encode_to_vec(&address)));
        }
    }

    fn forget(&self, owner: &WorkerId) {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).remove(owner);
    }

    /// Notes what a shard has, and adds up what the others have.
    fn exchange(&self, shard: ShardId, bytes: u64, writing: bool) -> (u64, bool) {
        let (mut all, mut any) = (0, false);
        for (other, (used, busy)) in self.uses.iter().enumerate() {
            if other == usize::from(shard) {
                used.store(bytes, Ordering::Relaxed);
                busy.store(writing, Ordering::Relaxed);
            } else {
                all += used.load(Ordering::Relaxed);
                any |= busy.load(Ordering::Relaxed);
            }
        }
        (all, any)
    }
}

/// How long the disk of a core was at work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SpillReport {
    /// Time in which at least one file was being written.
    pub writing: Duration,
    /// Time in which at least one object was being read.
    pub reading: Duration,
    /// What is on disk.
    pub used: DiskUse,
}

/// Time during which at least one of several things is going on.
#[derive(Debug, Default)]
struct Busy {
    going_on: usize,
    since: Option<Instant>,
    total: Duration,
}

impl Busy {
    fn begins(&mut self) {
        self.going_on += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    fn ends(&mut self) {
        self.going_on -= 1;
        if self.going_on == 0 {
            self.total += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        }
    }

    fn so_far(&self) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

struct State {
    disk: Disk,
    /// Instead of the disk.
    external: Option<External>,
    segments: Vec<Rc<dyn IoMemory>>,
    /// Objects of the file that is being named.
    named: Vec<Source>,
    /// Objects that are being read, by ticket.
    reads: FxHashMap<u64, ObjectId>,
    next_ticket: u64,
    writing: Busy,
    reading: Busy,
    /// The last failure of a write, so that a disk that stays full is logged once.
    last_failure: Option<String>,
    told_others: (u64, bool),
}

/// Spilling on one core; nothing where the node does not spill.
pub struct Spills {
    state: RefCell<Option<State>>,
    shared: Arc<SpillShared>,
    fallback: Option<FileSettings>,
    is_external: bool,
}

impl Spills {
    /// Spilling as the settings say.
    pub fn new(
        core: ShardId,
        settings: Option<&SpillSettings>,
        segments: Vec<ArenaMemory>,
        shared: Arc<SpillShared>,
        fallback: Option<FileSettings>,
    ) -> Self {
        let state = settings.map(|settings| State {
            disk: Disk::new(DiskSettings {
                directories: settings.directories.clone(),
                near: settings.near,
                capacity_share: settings.capacity_share,
                name: format!("{}-{core}-", settings.name),
            }),
            external: settings.external.then(External::default),
            segments: segments.into_iter().map(|segment| Rc::new(segment) as Rc<dyn IoMemory>).collect(),
            named: Vec::new(),
            reads: FxHashMap::default(),
            next_ticket: 0,
            writing: Busy::default(),
            reading: Busy::default(),
            last_failure: None,
            told_others: (0, false),
        });
        let is_external = settings.is_some_and(|settings| settings.external);
        Self { state: RefCell::new(state), shared, fallback, is_external }
    }

    /// Objects in files of their own.
    pub fn files(&self) -> &Files {
        &self.shared.files
    }

    /// How long the disk was at work, and what is on it.
    pub fn report(&self) -> SpillReport {
        let state = self.state.borrow();
        state.as_ref().map_or_else(SpillReport::default, |state| SpillReport {
            writing: state.writing.so_far(),
            reading: state.reading.so_far(),
            used: state.disk.used(),
        })
    }

    /// Where an owner of objects is reached.
    pub fn owner_seen(&self, owner: &Owner) {
        self.shared.owner_seen(owner);
    }

    /// An owner is dead.
    pub fn owner_gone(&self, owner: &WorkerId) {
        self.shared.forget(owner);
    }

    /// Where an object is on disk, for its owner.
    pub fn url(&self, file: SpillFile, index: u32) -> Option<String> {
        let state = self.state.borrow();
        let state = state.as_ref()?;
        match &state.external {
            Some(external) => external.url(file, index),
            None => state.disk.url(file, index),
        }
    }

    /// What is needed to read an object from its file; `None`: only Python reaches it.
    pub fn object(&self, file: SpillFile, index: u32) -> Option<SpilledObject> {
        let state = self.state.borrow();
        let state = state.as_ref().filter(|state| state.external.is_none())?;
        state.disk.object(file, index)
    }

    /// True where an event was not for the store after all: a worker reads an object back.
    pub fn take_over(&self, core: &Rc<Core>, event: &StoreEvent) -> bool {
        // Looked at for every event of the store, and nearly never so.
        if !self.is_external {
            return false;
        }
        let instead = self.external(|external, _| external.instead(event)).flatten();
        let Some(instead) = instead else {
            return false;
        };
        if let Some(event) = instead.event {
            self.external(|_, state| state.reading.ends());
            core.store_here(event);
        }
        if let Some(answer) = instead.answer {
            core.answer_later(answer);
        }
        true
    }

    fn external<T>(&self, f: impl FnOnce(&mut External, &mut State) -> T) -> Option<T> {
        let mut borrowed = self.state.borrow_mut();
        let state = borrowed.as_mut()?;
        let mut external = state.external.take()?;
        let result = f(&mut external, state);
        state.external = Some(external);
        Some(result)
    }

    fn ask(core: &Rc<Core>, ask: Option<SpillAsk>) {
        if let Some(ask) = ask {
            core.tell_control(ToControl::Spill(ask));
        }
    }

    /// An IO worker has answered.
    pub fn told(&self, core: &Rc<Core>, told: SpillTold) {
        let event = match told {
            SpillTold::Written { file, urls } => self.external(|external, state| {
                state.writing.ends();
                state.note_failure(urls.as_ref().err());
                external.written(file, urls)
            }),
            SpillTold::Read { ticket, id, why } => self
                .external(|external, state| {
                    let event = external.has_read(ticket, id)?;
                    state.reading.ends();
                    tracing::warn!(%id, why, "a spilled object can't be read back");
                    Some(event)
                })
                .flatten(),
        };
        if let Some(event) = event {
            core.store_here(event);
        }
    }

    /// Carries out an effect of the store.
    pub fn carry_out(&self, core: &Rc<Core>, effect: StoreEffect) {
        match effect {
            StoreEffect::SpillObject { file, id, owner, last, .. } if self.is_external => {
                let owner = self.shared.address_of(&owner);
                let ask = self.external(|external, state| {
                    let ask = external.name(core.shard, file, id, &owner, last);
                    if ask.is_some() {
                        state.writing.begins();
                    }
                    ask
                });
                Self::ask(core, ask.flatten());
            }
            StoreEffect::SpillObject { file, owner, place, last, .. } => self.name(file, &owner, &place, last),
            StoreEffect::SpillFileUnneeded { file } if self.is_external => {
                Self::ask(core, self.external(|external, _| external.delete(file)).flatten());
            }
            StoreEffect::SpillFileUnneeded { file } => {
                if let Some(state) = &mut *self.state.borrow_mut() {
                    state.disk.delete(file);
                }
            }
            StoreEffect::ObjectSpilled { id, owner, file, index } => {
                if let Some(url) = self.url(file, index) {
                    core.sightings.spilled(core, owner, id, url);
                }
            }
            StoreEffect::RestoreObject { file, index, id, place } => return restore(core, file, index, id, place),
            StoreEffect::FallbackWanted { id, token, bytes } => {
                return files::make(core, self.fallback.as_ref(), id, token, bytes);
            }
            StoreEffect::FallbackReturned { segment } => self.files().remove(segment),
            StoreEffect::SpilledLost { id, owner } => {
                tracing::error!(%id, "the copy of a spilled object can't be read back");
                match native::is_owner(core, &owner) {
                    true => native::object_lost(core, id),
                    false => core.tell_control(ToControl::CopyLost { object: id, owner }),
                }
            }
            _ => {}
        }
        self.pump(core);
    }

    fn name(&self, file: SpillFile, owner: &WorkerId, place: &Placement, last: bool) {
        let Some(state) = &mut *self.state.borrow_mut() else {
            return;
        };
        let Some(memory) = state.segments.get(place.segment as usize) else {
            return;
        };
        state.named.push(Source {
            owner_address: self.shared.address_of(owner),
            memory: memory.clone(),
            data_offset: place.data_offset,
            data_bytes: place.data_bytes,
            metadata_offset: place.metadata_offset,
            metadata_bytes: place.metadata_bytes,
        });
        if last {
            let sources = std::mem::take(&mut state.named);
            state.writing.begins();
            state.disk.write(file, sources);
        }
    }

    fn read(&self, file: SpillFile, index: u32, id: ObjectId, place: &Placement) {
        let Some(state) = &mut *self.state.borrow_mut() else {
            return;
        };
        let in_file = || self.files().get(place.segment).map(|file| Rc::new(ArenaMemory(file)) as Rc<dyn IoMemory>);
        let Some(memory) = state.segments.get(place.segment as usize).cloned().or_else(in_file) else {
            return;
        };
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.reads.insert(ticket, id);
        state.reading.begins();
        let target = Target {
            memory,
            data_offset: place.data_offset,
            room_bytes: place.allocated_bytes,
            metadata_offset: place.metadata_offset,
        };
        state.disk.read(file, index, target, ticket);
    }

    /// An operation on a file has ended.
    pub fn completed(&self, core: &Rc<Core>, key: u64, result: std::io::Result<FileResult>) {
        if let Some(state) = &mut *self.state.borrow_mut() {
            state.disk.completed(key, result);
        }
        self.pump(core);
    }

    /// Checksums of what was read or is being written are due: the core has something to do when what it asked for is begun.
    pub fn has_checks(&self) -> bool {
        self.state.borrow().as_ref().is_some_and(|state| state.disk.has_checks())
    }

    /// Does some of them. To be called when what was asked for is begun, so that the disk is at work meanwhile.
    pub fn check(&self, core: &Rc<Core>) {
        if !self.has_checks() {
            return;
        }
        if let Some(state) = &mut *self.state.borrow_mut() {
            state.disk.check();
        }
        self.pump(core);
    }

    /// Begins what is to be begun, and tells the store what has ended.
    fn pump(&self, core: &Rc<Core>) {
        let (operations, outcomes) = match &mut *self.state.borrow_mut() {
            Some(state) => (state.disk.operations(), state.outcomes()),
            None => return,
        };
        for (key, operation) in operations {
            core.io.wish(Wish::File(key, operation));
        }
        for event in outcomes {
            core.store_here(event);
        }
    }

    /// Tells the store what the others have, and them what this one has.
    pub fn exchange(&self, core: &Rc<Core>, bytes: u64, writing: bool) {
        let heard = self.shared.exchange(core.shard, bytes, writing);
        let is_news = match &mut *self.state.borrow_mut() {
            Some(state) => std::mem::replace(&mut state.told_others, heard) != heard,
            None => false,
        };
        if is_news {
            core.store_here(StoreEvent::OthersUse { bytes: heard.0, spilling: heard.1 });
        }
    }
}

impl State {
    /// What has ended, as the store is told.
    fn outcomes(&mut self) -> Vec<StoreEvent> {
        let outcomes = self.disk.outcomes();
        outcomes.into_iter().filter_map(|outcome| self.outcome(outcome)).collect()
    }

    fn note_failure(&mut self, why: Option<&String>) {
        if let Some(why) = why.filter(|why| self.last_failure.as_ref() != Some(*why)) {
            tracing::warn!(why, "objects can't be spilled; they stay in memory");
        }
        self.last_failure = why.cloned();
    }

    fn outcome(&mut self, outcome: Outcome) -> Option<StoreEvent> {
        match outcome {
            Outcome::Written { file, result } => {
                self.writing.ends();
                let result = match result {
                    Ok(_) => {
                        self.note_failure(None);
                        Ok(())
                    }
                    Err(failure) => {
                        self.note_failure(Some(&failure.why));
                        Err(if failure.full { SpillFailure::DiskFull } else { SpillFailure::Failed })
                    }
                };
                Some(StoreEvent::SpillDone { file, result })
            }
            Outcome::Read { ticket, result } => {
                let id = self.reads.remove(&ticket)?;
                self.reading.ends();
                let result = result.map(drop).map_err(|failure| {
                    tracing::warn!(%id, why = failure.why, "a spilled object can't be read back");
                    if failure.lost {
                        RestoreFailure::Lost
                    } else {
                        RestoreFailure::Again
                    }
                });
                Some(StoreEvent::RestoreDone { id, result })
            }
        }
    }
}

/// Reads an object back, once memory is behind its place.
fn restore(core: &Rc<Core>, file: SpillFile, index: u32, id: ObjectId, place: Placement) {
    let range = place.header_offset..place.header_offset + place.allocated_bytes;
    let backed = core.with_segment(place.segment, |segment| {
        let inline = place.allocated_bytes <= BACK_INLINE_BYTES || segment.is_touched(&range);
        inline.then(|| segment.ensure_backed(range.clone()).map_err(|e| e.to_string()))
    });
    if let Some(backed) = backed.unwrap_or_else(|| Some(Err("no such segment".to_owned()))) {
        return backed_for_restore(core, file, index, id, &place, backed);
    }
    let guest = core.clone();
    Io::guest(core, async move {
        let backed = back_in_background(&guest, place.segment, range).await;
        backed_for_restore(&guest, file, index, id, &place, backed);
    });
}

fn backed_for_restore(
    core: &Rc<Core>,
    file: SpillFile,
    index: u32,
    id: ObjectId,
    place: &Placement,
    backed: Result<(), String>,
) {
    if let Err(error) = backed {
        tracing::warn!(error, %id, "no memory to read a spilled object back to");
        return core.store_here(StoreEvent::RestoreDone { id, result: Err(RestoreFailure::Again) });
    }
    if core.spills.is_external {
        let ask = core.spills.external(|external, state| {
            let ask = external.read(core.shard, file, index, id, *place);
            if ask.is_some() {
                state.reading.begins();
            }
            ask
        });
        return Spills::ask(core, ask.flatten());
    }
    core.spills.read(file, index, id, place);
    core.spills.pump(core);
}
