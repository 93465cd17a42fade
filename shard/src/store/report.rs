//! What a store tells about itself.

use super::api::{ObjectSource, Placement};
use super::objects::Object;
use super::spill::RESTORER;
use super::Store;
use crate::ids::{NowNs, ObjectId, WorkerId};

/// A number of objects and the bytes of their data and metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many objects.
    pub objects: u64,
    /// Their data and metadata, in bytes.
    pub bytes: u64,
}

impl Tally {
    pub(super) fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }

    pub(super) fn sub(&mut self, bytes: u64) {
        self.objects -= 1;
        self.bytes -= bytes;
    }
}

/// Figures that are counted as things happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Objects here, by [`ObjectSource`] as a number.
    pub by_source: [Tally; ObjectSource::COUNT],
    /// Of these, not sealed yet.
    pub unsealed: Tally,
    /// Of these, pinned for their owners (primary copies).
    pub pinned: Tally,
    /// Objects that owners of the native door keep, in memory or on disk.
    pub kept: Tally,
    /// Objects here with at least one reference.
    pub in_use: Tally,
    /// Objects here in files on disk.
    pub fallback: Tally,
    /// Objects here that are being written to disk.
    pub spilling: Tally,
    /// Objects that have a copy on disk, in memory or not.
    pub on_disk: Tally,
    /// Objects ever spilled.
    pub spilled: Tally,
    /// Objects ever restored.
    pub restored: Tally,
    /// Files that could not be written.
    pub spill_failures: u64,
    /// Times that an object could not be read back.
    pub restore_failures: u64,
    /// Runs of memory that clients fill by themselves, and what is left of them.
    pub credit: Tally,
    /// Objects ever created.
    pub created: Tally,
    /// Objects ever evicted.
    pub evicted: Tally,
    /// Creates that failed for want of memory.
    pub out_of_memory: u64,
    /// Creates refused because too many waited.
    pub queue_full: u64,
    /// Releases of references that the client did not hold, and other events about what is not here any more.
    pub stray_events: u64,
}

/// Figures for reports: metrics, `ray memory`, node statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Figures that are counted as things happen.
    pub counters: Counters,
    /// Objects here.
    pub objects: u64,
    /// What objects take from spans, padding included, in bytes.
    pub allocated_bytes: u64,
    /// What is free in the spans that the shard holds, in bytes.
    pub free_bytes: u64,
    /// What the shard holds, in bytes: allocated and free, and what is cut up for small objects.
    pub held_bytes: u64,
    /// Spans that the shard holds.
    pub held_spans: u32,
    /// Of these, empty.
    pub empty_spans: u32,
    /// Objects that could be evicted.
    pub evictable_objects: u64,
    /// What they take, in bytes.
    pub evictable_bytes: u64,
    /// Objects that could be spilled: pinned or kept, sealed and not in use.
    pub spillable_objects: u64,
    /// What they take, in bytes.
    pub spillable_bytes: u64,
    /// Creates that wait for memory.
    pub queued_creates: u64,
    /// What they want, in bytes.
    pub queued_bytes: u64,
    /// Gets and watches that wait.
    pub waiters: u64,
    /// References that clients hold.
    pub references: u64,
    /// Clients that have held references.
    pub clients: u64,
}

/// One object, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The object.
    pub id: ObjectId,
    /// Its owner.
    pub owner: WorkerId,
    /// Where its bytes came from.
    pub source: ObjectSource,
    /// Length of its data.
    pub data_bytes: u64,
    /// Length of its metadata.
    pub metadata_bytes: u64,
    /// Where it lies.
    pub place: Placement,
    /// Sealed, so readable.
    pub sealed: bool,
    /// Kept for its owner.
    pub pinned: bool,
    /// Gone as soon as it is unused.
    pub doomed: bool,
    /// Clients that use it.
    pub references: u32,
    /// When it was created.
    pub created_ns: NowNs,
    /// When it was sealed, if it is.
    pub sealed_ns: Option<NowNs>,
}

impl Store {
    /// Figures for reports.
    pub fn stats(&self) -> StoreStats {
        let (evictable_objects, evictable_bytes) = self.objects.evictable();
        let (spillable_objects, spillable_bytes) = self.objects.spillable();
        StoreStats {
            counters: self.counters,
            objects: self.objects.len() as u64,
            allocated_bytes: self.arena.held_bytes() - self.arena.free_bytes(),
            free_bytes: self.arena.free_bytes(),
            held_bytes: self.arena.held_bytes(),
            held_spans: self.arena.spans_held(),
            empty_spans: self.arena.empty_spans(),
            evictable_objects,
            evictable_bytes,
            spillable_objects,
            spillable_bytes,
            queued_creates: self.queue.len() as u64,
            queued_bytes: self.queue.bytes(),
            waiters: self.waiters.len() as u64,
            references: self.refs.len() as u64,
            // The store itself, which restores, is none.
            clients: (self.refs.clients() - usize::from(self.refs.find(RESTORER).is_some())) as u64,
        }
    }

    /// Every object, in no particular order.
    pub fn objects(&self) -> impl Iterator<Item = ObjectInfo> + '_ {
        self.objects.iter().map(|(_, object)| self.info_of(object))
    }

    /// Objects that may be spilled (pinned, sealed, used by nobody), the one unused for longest first.
    pub fn spillable(&self) -> impl Iterator<Item = ObjectInfo> + '_ {
        self.objects.iter_spillable().map(|(_, object)| self.info_of(object))
    }

    /// One object.
    pub fn info(&self, id: &ObjectId) -> Option<ObjectInfo> {
        Some(self.info_of(self.objects.get(self.objects.find(id)?)))
    }

    /// Where a sealed object lies; `None` where it is not sealed here. Holds only until the next event, as no reference is taken.
    pub fn place(&self, id: &ObjectId) -> Option<Placement> {
        let object = self.objects.get(self.objects.find(id)?);
        object.sealed_ns.map(|_| object.place(&self.arena))
    }

    /// Up to where this shard has ever written in a segment, in bytes from its start.
    pub fn touched_bytes(&self, segment: u32) -> u64 {
        self.arena.touched_bytes(segment)
    }

    /// What objects (and runs of credit) of this shard take from a segment, padding included, in bytes.
    pub fn allocated_bytes(&self, segment: u32) -> u64 {
        self.arena.allocated_bytes(segment)
    }

    fn info_of(&self, object: &Object) -> ObjectInfo {
        ObjectInfo {
            id: object.id,
            owner: object.owner,
            source: object.source,
            data_bytes: object.data_bytes,
            metadata_bytes: object.metadata_bytes,
            place: object.place(&self.arena),
            sealed: object.sealed_ns.is_some(),
            pinned: object.is_owned(),
            doomed: object.doomed.is_some(),
            references: object.refs,
            created_ns: object.created_ns,
            sealed_ns: object.sealed_ns,
        }
    }
}
