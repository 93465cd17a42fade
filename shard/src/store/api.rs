//! What goes into the store of one core and what comes out of it.
//!
//! The semantics are those of Ray 2.60's plasma store (`src/ray/object_manager/plasma`: `store.cc`,
//! `object_lifecycle_manager.cc`, `create_request_queue.cc`, `eviction_policy.cc`), told as events and effects.

use std::fmt;

use crate::ids::{ClientId, NowNs, ObjectId, ShardId, Token, WorkerId};

/// A span's number on the node. Spans of one segment are numbered without gaps; the last span of a segment and the first of
/// the next are never neighbours (one number between them is left out), so that a run of numbers is always contiguous memory.
pub type SpanIndex = u32;

/// Where an object's bytes came from (Ray 2.60 `plasma.fbs`, enum `ObjectSource`: the numbers are the wire's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectSource {
    /// Written by a worker or driver: a task's return value or a put.
    CreatedByWorker = 0,
    /// Read back from external storage.
    RestoredFromStorage = 1,
    /// Received from another node.
    ReceivedFromRemote = 2,
    /// An error that the node stored in the object's place.
    ErrorStoredByRaylet = 3,
}

impl ObjectSource {
    /// Number of sources, for tables indexed by source.
    pub const COUNT: usize = 4;

    /// Reads the wire's number; `None` for a number that Ray 2.60 does not use.
    pub fn from_wire(number: i32) -> Option<Self> {
        Some(match number {
            0 => Self::CreatedByWorker,
            1 => Self::RestoredFromStorage,
            2 => Self::ReceivedFromRemote,
            3 => Self::ErrorStoredByRaylet,
            _ => return None,
        })
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreError {
    /// The id is taken, by a sealed or an unsealed object.
    ObjectExists,
    /// There is no such object here.
    ObjectNonexistent,
    /// No room: nothing more can be evicted and the grace period is over, or the object can never fit.
    OutOfMemory,
    /// Delete of an object that is not sealed. It is remembered and deleted when its creator is done with it.
    ObjectNotSealed,
    /// Delete of an object in use or pinned. It is remembered and deleted at the last release or unpin.
    ObjectInUse,
    /// Seal or abort of an object that is sealed already.
    ObjectSealed,
    /// Seal or abort by a client that did not create the object.
    NotCreator,
    /// The client has no such run, or not that much left of it.
    UnknownRun,
    /// No room in memory, and none on the disk to spill to.
    OutOfDisk,
    /// The queue of waiting creates is at its limit ([`StoreConfig::max_queued_creates`](super::StoreConfig)): try again later.
    QueueFull,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ObjectExists => "an object of this id exists in the store",
            Self::ObjectNonexistent => "the store has no object of this id",
            Self::OutOfMemory => "the object store has no room and nothing left to evict",
            Self::ObjectNotSealed => "the object is not sealed; it is deleted when its creator is done with it",
            Self::ObjectInUse => "the object is in use; it is deleted when the last user is done with it",
            Self::ObjectSealed => "the object is sealed already",
            Self::NotCreator => "only the client that created an object may seal or abort it",
            Self::UnknownRun => "the client has no such run of memory, or not that much left of it",
            Self::OutOfDisk => "the object store is full, and so is the disk that it spills to",
            Self::QueueFull => "too many creates wait for memory; try again later",
        })
    }
}

impl std::error::Error for StoreError {}

/// A file of spilled objects: a number of the shard's, in use until [`StoreEffect::SpillFileUnneeded`].
pub type SpillFile = u32;

/// Why a file of spilled objects could not be written. Nothing is lost: its objects stay in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpillFailure {
    /// There is no room on the disk, or no more of it may be used.
    DiskFull,
    /// Something else.
    Failed,
}

/// Why an object could not be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreFailure {
    /// It may succeed another time.
    Again,
    /// Its bytes are gone, or are not those that were written.
    Lost,
}

/// Where an object lies in shared memory. Offsets are from the start of the segment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Which segment: the index into [`StoreConfig::segments`](super::StoreConfig), or the number that the node gave to a fallback
    /// file ([`StoreEvent::FallbackReady`]).
    pub segment: u32,
    /// Start of the header of a mutable object; for any other object the same as `data_offset`.
    pub header_offset: u64,
    /// Start of the data. On a 4 KiB boundary for immutable objects of 64 KiB and more, else on a 64-byte one
    /// (a mutable object's data follows its header directly).
    pub data_offset: u64,
    /// Length of the data.
    pub data_bytes: u64,
    /// Start of the metadata: directly after the data.
    pub metadata_offset: u64,
    /// Length of the metadata.
    pub metadata_bytes: u64,
    /// What the object takes from the store, from `header_offset` on: header, data, metadata and padding. Objects of 64 KiB
    /// and more are padded to whole 4 KiB pages, so a direct read may fill the last page without touching a neighbour.
    pub allocated_bytes: u64,
}

/// Memory that a client fills with small objects by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditRun {
    /// Its number, until it is used up or given back.
    pub run: u32,
    /// Which segment.
    pub segment: u32,
    /// Its start, in bytes from the start of the segment. A multiple of 64.
    pub offset_bytes: u64,
    /// Its length. A multiple of 64.
    pub size_bytes: u64,
}

/// What happens to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// A client wants a new object. Answer: [`StoreEffect::Created`], possibly after other events where memory is short.
    /// The creator then holds one reference, until it releases it.
    Create {
        /// Who creates it.
        client: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// The new object.
        id: ObjectId,
        /// Length of its data.
        data_bytes: u64,
        /// Length of its metadata, which follows the data directly.
        metadata_bytes: u64,
        /// The worker that owns the object (not always the creator).
        owner: WorkerId,
        /// Where the bytes will come from.
        source: ObjectSource,
        /// A mutable object gets a header in front ([`MUTABLE_HEADER_BYTES`](super::MUTABLE_HEADER_BYTES)).
        mutable: bool,
        /// Fail with [`StoreError::OutOfMemory`] instead of waiting for memory.
        try_immediately: bool,
        /// The segment on the NUMA node of whoever writes it, which it is placed in while there is room; `None`: the shard's own.
        near: Option<u32>,
    },
    /// Forget the queued creates of this client for this id. No answer; none is needed where nothing is queued.
    CancelCreate {
        /// Who asked for it.
        client: ClientId,
        /// The object it asked for.
        id: ObjectId,
    },
    /// The creator has written the object. Answer: [`StoreEffect::Sealed`].
    Seal {
        /// Who seals it.
        client: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// Which object.
        id: ObjectId,
    },
    /// The creator gives an unsealed object up. Answer: [`StoreEffect::Aborted`].
    Abort {
        /// Who aborts it.
        client: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// Which object.
        id: ObjectId,
    },
    /// One object is wanted. Answer: [`StoreEffect::Got`], with a reference for the client where it has a place. A client holds at
    /// most one reference on an object however often it gets it (as in Ray, whose client library counts its own uses).
    Get {
        /// Who wants it.
        client: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// Which object.
        id: ObjectId,
        /// Answer once it is sealed here; `false` answers now.
        wait: bool,
    },
    /// As a [`StoreEvent::Get`] that is answered now, but for an object that is on disk only: that is waited for until it is read back.
    GetHere {
        /// Who wants it.
        client: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// Which object.
        id: ObjectId,
    },
    /// One object is wanted by another node. As a waiting [`StoreEvent::Get`], but for one that is on disk only: it is sent from its file,
    /// and needs no room in memory. Answer: [`StoreEffect::SpilledAt`] at once, or [`StoreEffect::Got`].
    GetToSend {
        /// Who sends it.
        client: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// Which object.
        id: ObjectId,
    },
    /// The file of a [`StoreEffect::SpilledAt`] is not read for it any more. No answer.
    SentSpilled {
        /// The object.
        id: ObjectId,
        /// It could not be read there as it was written: from now on it is read back to memory first, where tries are counted.
        faulty: bool,
    },
    /// A waiting get is forgotten, and not answered. Nothing happens where it was answered already.
    CancelGet {
        /// Who asked.
        client: ClientId,
        /// The token of the get.
        token: Token,
        /// The object of the get.
        id: ObjectId,
    },
    /// The client's reference is given back. No answer. Ignored (and counted) where it holds none; refused for an object that the
    /// client created and has not sealed: that is an abort.
    Release {
        /// Whose reference.
        client: ClientId,
        /// On which object.
        id: ObjectId,
    },
    /// Delete. Answer: [`StoreEffect::Deleted`]; an object that is unsealed or in use is deleted later.
    Delete {
        /// Who asks.
        client: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// Which object.
        id: ObjectId,
    },
    /// Is the object here and sealed, or kept on disk for an owner of the native door? Answer: [`StoreEffect::Contained`].
    Contains {
        /// Who asks.
        client: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// Which object.
        id: ObjectId,
    },
    /// The client is gone: its references and runs are given back, its unsealed objects aborted, its waiting gets and creates dropped.
    ClientGone {
        /// Who is gone.
        client: ClientId,
    },
    /// An owner of the native door keeps the object: it may be spilled, but is not deleted or evicted without a copy on disk. Answer:
    /// [`StoreEffect::Kept`]. Any number of owners may keep an object; keeping twice is keeping once.
    Keep {
        /// Who keeps it. The keep ends with this client ([`StoreEvent::ClientGone`]).
        keeper: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// Which object.
        id: ObjectId,
    },
    /// An owner no longer keeps the object. When none does, it becomes evictable, and its copy on disk goes. No answer.
    Unkeep {
        /// Who kept it.
        keeper: ClientId,
        /// Which object.
        id: ObjectId,
    },
    /// Nobody will make this object: gets that wait for it are answered without a place, watches refused. Nothing happens where it is here
    /// or on disk. No answer.
    GiveUp {
        /// Which object.
        id: ObjectId,
    },
    /// The node keeps the object for its owner (the primary copy). Answer: [`StoreEffect::Pinned`]. Pinning twice is pinning once.
    Pin {
        /// Comes back in the answer.
        token: Token,
        /// Which object.
        id: ObjectId,
    },
    /// The node no longer keeps the object (it is spilled, say). It becomes evictable. No answer.
    Unpin {
        /// Which object.
        id: ObjectId,
    },
    /// The owner's last reference is gone: unpin, and delete as soon as it is unused. No answer; never refused.
    Free {
        /// Which object.
        id: ObjectId,
    },
    /// Tell me when the object is sealed here, at once if it is. Answer: [`StoreEffect::Watched`], once, without a reference; or
    /// [`StoreEffect::WatchRefused`] where too many wait.
    Watch {
        /// Comes back in the answer.
        token: Token,
        /// Which object.
        id: ObjectId,
    },
    /// The watch with this token is forgotten. Nothing happens where it was answered already.
    Unwatch {
        /// The token of the watch.
        token: Token,
        /// The object of the watch.
        id: ObjectId,
    },
    /// A client wants memory of its own for small objects: a run. Answer: [`StoreEffect::CreditGranted`], perhaps after an answer of the
    /// bank, but never after a wait for others: creates that wait go first.
    GrantCredit {
        /// Who wants it.
        client: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// How long a run, in bytes; cut to whole lines of 64 and to [`CREDIT_RUN_MAX_BYTES`](super::CREDIT_RUN_MAX_BYTES).
        bytes: u64,
        /// As in [`StoreEvent::Create`].
        near: Option<u32>,
    },
    /// The next lines of a run are a finished object: it exists from here on, sealed, and its memory is its own. Answer:
    /// [`StoreEffect::Adopted`]. The lines leave the run also where the object is refused.
    Adopt {
        /// Whose run.
        client: ClientId,
        /// Comes back in the answer.
        token: Token,
        /// The run.
        run: u32,
        /// The new object.
        id: ObjectId,
        /// Length of its data.
        data_bytes: u32,
        /// Length of its metadata, which follows the data directly.
        metadata_bytes: u32,
        /// The worker that owns it.
        owner: WorkerId,
        /// Who keeps it from the beginning ([`StoreEvent::Keep`]).
        keeper: Option<ClientId>,
    },
    /// What is left of a run is given back. No answer.
    ReturnCredit {
        /// Whose run.
        client: ClientId,
        /// The run.
        run: u32,
    },
    /// Time passes: queued creates are tried again and given up at their deadline. [`Store::next_deadline`](super::Store::next_deadline)
    /// says when the next one is useful.
    Tick,
    /// The file of these [`StoreEffect::SpillObject`] is written, or could not be.
    SpillDone {
        /// The file. After a failure its number is free again.
        file: SpillFile,
        /// Written whole, or why not.
        result: Result<(), SpillFailure>,
    },
    /// The object of a [`StoreEffect::RestoreObject`] is in its place, or could not be read.
    RestoreDone {
        /// The object.
        id: ObjectId,
        /// Read and found to be what was written, or why not.
        result: Result<(), RestoreFailure>,
    },
    /// What the objects of all other shards take that can't be evicted, in bytes: the threshold for spilling is the node's.
    OthersUse {
        /// [`Store::primary_bytes`](super::Store::primary_bytes) of the others, added up.
        bytes: u64,
        /// One of them is writing, which may free memory for this one too.
        spilling: bool,
    },
    /// The node made (or could not make) the file that [`StoreEffect::FallbackWanted`] asked for.
    FallbackReady {
        /// The object it is for.
        id: ObjectId,
        /// The token of the create.
        token: Token,
        /// The number of the new segment, which must not be below the number of configured segments; `None`: no disk space.
        segment: Option<u32>,
    },
    /// The bank of spans hands over a run of spans.
    SpansGranted {
        /// The first span.
        first: SpanIndex,
        /// How many.
        count: u32,
        /// Which request is granted with it.
        urgency: Urgency,
    },
    /// The bank has no such run now. A standing request ([`Urgency::Standing`]) stays in the bank's queue all the same.
    SpansRefused {
        /// What had been asked for.
        wish: SpanWish,
    },
    /// The bank needs spans for another shard: give back every empty one, now and later until told otherwise, and evict for some.
    ReclaimSpans {
        /// How many to evict for; 0: nobody waits any more.
        count: u32,
    },
    /// Creates wait somewhere on the node: until further notice, whatever comes waits behind them ([`StoreEffect::CreateQueued`]).
    Hold {
        /// False: nobody waits any more, and all tickets are void.
        on: bool,
    },
    /// The create that has waited since then is the first of the node: it may have memory. Answer, when it was made, has failed or is
    /// there no longer: [`StoreEffect::TurnOver`].
    Turn {
        /// Since when it waits.
        since: NowNs,
        /// Since when none of the node's creates that found no room has succeeded.
        full_since: Option<NowNs>,
    },
}

/// How badly a shard needs spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// For the reserve: grant only what is free and what nobody waits for.
    Ahead,
    /// A create waits that could have memory on another NUMA node: grant what is free of the segment that is named, or refuse.
    Near,
    /// A create waits, but this shard could still evict: grant what is free or refuse.
    Now,
    /// A create waits and this shard has nothing left: collect from other shards, oldest request first, until granted or withdrawn.
    Standing,
    /// The same for an object on disk that is wanted: before all creates, for whoever wants it may hold what they wait for.
    Restore,
}

/// What a shard wants of the bank: a run of spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanWish {
    /// How many, contiguous.
    pub count: u32,
    /// How badly.
    pub urgency: Urgency,
    /// The segment that they should be of.
    pub near: u32,
}

/// Why a sealed object is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneReason {
    /// A client deleted it.
    Deleted,
    /// Its owner's last reference went out of scope ([`StoreEvent::Free`]).
    Freed,
    /// Nobody used it and its memory was needed.
    Evicted,
    /// The same, of an object that has a copy on disk and can be had again.
    Spilled,
}

/// What the store wants done. The caller carries effects out in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreEffect {
    /// Answer to [`StoreEvent::Create`].
    Created {
        /// Who asked.
        client: ClientId,
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
        /// Where to write it, or why not.
        result: Result<Placement, StoreError>,
    },
    /// Answer to [`StoreEvent::Seal`].
    Sealed {
        /// Who asked.
        client: ClientId,
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
        /// Done, or why not.
        result: Result<(), StoreError>,
    },
    /// Answer to [`StoreEvent::Abort`].
    Aborted {
        /// Who asked.
        client: ClientId,
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
        /// Done, or why not.
        result: Result<(), StoreError>,
    },
    /// Answer to [`StoreEvent::Get`].
    Got {
        /// Who asked.
        client: ClientId,
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
        /// Where it lies; `None`: not sealed here (or, of a waiting get, too many wait already: ask again).
        place: Option<Placement>,
        /// Its owner; nil where it is not here, or has none.
        owner: WorkerId,
        /// It was not sealed yet when it was asked for.
        waited: bool,
    },
    /// Answer to [`StoreEvent::GetToSend`] for an object that is on disk only. The file stays until [`StoreEvent::SentSpilled`].
    SpilledAt {
        /// Who asked.
        client: ClientId,
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
        /// Its owner.
        owner: WorkerId,
        /// The file.
        file: SpillFile,
        /// The object's place among those of the file.
        index: u32,
    },
    /// Answer to [`StoreEvent::Delete`].
    Deleted {
        /// Who asked.
        client: ClientId,
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
        /// Done, or why not yet.
        result: Result<(), StoreError>,
    },
    /// Answer to [`StoreEvent::Contains`].
    Contained {
        /// Who asked.
        client: ClientId,
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
        /// Here and sealed, or kept on disk.
        has: bool,
    },
    /// Answer to [`StoreEvent::Pin`].
    Pinned {
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
        /// False where it is not sealed here.
        ok: bool,
    },
    /// Answer to [`StoreEvent::Keep`].
    Kept {
        /// Who keeps it.
        keeper: ClientId,
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
        /// False where it is not sealed here.
        ok: bool,
    },
    /// Answer to [`StoreEvent::Watch`]: the object is sealed here.
    Watched {
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
    },
    /// Answer to [`StoreEvent::Watch`] where the limit of waiters is reached.
    WatchRefused {
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
    },
    /// Answer to [`StoreEvent::GrantCredit`].
    CreditGranted {
        /// Who asked.
        client: ClientId,
        /// The token of the request.
        token: Token,
        /// The run, or why there is none.
        result: Result<CreditRun, StoreError>,
    },
    /// Answer to [`StoreEvent::Adopt`].
    Adopted {
        /// Who asked.
        client: ClientId,
        /// The token of the request.
        token: Token,
        /// The object.
        id: ObjectId,
        /// Done, or why not.
        result: Result<(), StoreError>,
    },
    /// A new sealed object: the node tells whoever keeps locations.
    ObjectSealed {
        /// The object.
        id: ObjectId,
        /// Its owner.
        owner: WorkerId,
        /// Length of its data.
        data_bytes: u64,
        /// Length of its metadata.
        metadata_bytes: u64,
        /// Where its bytes came from.
        source: ObjectSource,
    },
    /// A sealed object is no longer here (an aborted one was never announced, and is not announced here either).
    ObjectGone {
        /// The object.
        id: ObjectId,
        /// Its owner.
        owner: WorkerId,
        /// Length of its data.
        data_bytes: u64,
        /// Length of its metadata.
        metadata_bytes: u64,
        /// Why.
        reason: GoneReason,
    },
    /// To the bank: this shard wants a run of spans. At most one request of a shard is open at a time; an open
    /// [`Urgency::Standing`] request is replaced by the next one.
    SpansWanted {
        /// What is wanted.
        wish: SpanWish,
    },
    /// To the bank: the standing request is withdrawn.
    SpansUnwanted,
    /// To the bank: a run of spans is empty and given back.
    SpansReturned {
        /// The first span.
        first: SpanIndex,
        /// How many.
        count: u32,
    },
    /// To the bank, after the [`StoreEffect::SpansReturned`] that it caused: all that can be done for a [`StoreEvent::ReclaimSpans`] is done.
    ReclaimDone {
        /// How many spans were given back for it.
        count: u32,
    },
    /// To the bank: a create waits, and takes its place in the line of the node.
    CreateQueued {
        /// Since when it waits.
        since: NowNs,
    },
    /// To the bank: the turn of this shard is over.
    TurnOver {
        /// Since when no create has succeeded; `None`: this one has.
        full_since: Option<NowNs>,
    },
    /// This object is to be written to a file; all of a file come in a row. Answer, for the file: [`StoreEvent::SpillDone`]. Until then
    /// the object stays at its place, unchanged.
    SpillObject {
        /// The file, which is new.
        file: SpillFile,
        /// The object's place among those of the file, from 0.
        index: u32,
        /// The object.
        id: ObjectId,
        /// Its owner.
        owner: WorkerId,
        /// Where its bytes are.
        place: Placement,
        /// The last one of the file.
        last: bool,
    },
    /// The object's copy on disk is what keeps it for its owner now: the node tells the owner.
    ObjectSpilled {
        /// The object.
        id: ObjectId,
        /// Its owner.
        owner: WorkerId,
        /// The file.
        file: SpillFile,
        /// The object's place among those of the file.
        index: u32,
    },
    /// Nothing in this file is wanted any more: delete it. Its number may be used again from here on.
    SpillFileUnneeded {
        /// The file.
        file: SpillFile,
    },
    /// This object is to be read back. Answer: [`StoreEvent::RestoreDone`].
    RestoreObject {
        /// The file.
        file: SpillFile,
        /// The object's place among those of the file.
        index: u32,
        /// The object.
        id: ObjectId,
        /// Where its bytes go.
        place: Placement,
    },
    /// An object's only copy could not be read back: it is lost, and its owner is to be told.
    SpilledLost {
        /// The object.
        id: ObjectId,
        /// Its owner.
        owner: WorkerId,
    },
    /// Creates wait: ask all workers to drop references that they hold for no reason. Rate-limited by
    /// [`StoreConfig::gc_interval_ns`](super::StoreConfig).
    GcWanted,
    /// The grace period is over ([`StoreConfig::fallback`](super::StoreConfig)): make a file of this size on disk and map it for this
    /// object; answer with [`StoreEvent::FallbackReady`].
    FallbackWanted {
        /// The object.
        id: ObjectId,
        /// The token of the create.
        token: Token,
        /// How large the file must be.
        bytes: u64,
    },
    /// The object in this fallback file is gone (or nobody wants it any more): close and remove the file.
    FallbackReturned {
        /// The number that the node gave it.
        segment: u32,
    },
}

impl StoreEffect {
    /// The bank's event, where the effect is a message of `shard` to the bank.
    pub fn for_bank(&self, shard: ShardId) -> Option<BankEvent> {
        Some(match *self {
            Self::SpansWanted { wish } => BankEvent::Wanted { shard, wish },
            Self::SpansUnwanted => BankEvent::Unwanted { shard },
            Self::SpansReturned { first, count } => BankEvent::Returned { shard, first, count },
            Self::ReclaimDone { count } => BankEvent::ReclaimDone { shard, count },
            Self::CreateQueued { since } => BankEvent::Queued { shard, since },
            Self::TurnOver { full_since } => BankEvent::TurnOver { shard, full_since },
            _ => return None,
        })
    }
}

/// What happens to the bank of spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BankEvent {
    /// [`StoreEffect::SpansWanted`] of a shard.
    Wanted {
        /// Which shard.
        shard: ShardId,
        /// What is wanted.
        wish: SpanWish,
    },
    /// [`StoreEffect::SpansUnwanted`] of a shard.
    Unwanted {
        /// Which shard.
        shard: ShardId,
    },
    /// [`StoreEffect::SpansReturned`] of a shard.
    Returned {
        /// Which shard.
        shard: ShardId,
        /// The first span.
        first: SpanIndex,
        /// How many.
        count: u32,
    },
    /// [`StoreEffect::ReclaimDone`] of a shard.
    ReclaimDone {
        /// Which shard.
        shard: ShardId,
        /// How many spans it gave back.
        count: u32,
    },
    /// [`StoreEffect::CreateQueued`] of a shard.
    Queued {
        /// Which shard.
        shard: ShardId,
        /// Since when its create waits.
        since: NowNs,
    },
    /// [`StoreEffect::TurnOver`] of a shard.
    TurnOver {
        /// Which shard.
        shard: ShardId,
        /// Since when no create has succeeded.
        full_since: Option<NowNs>,
    },
    /// Time passes: an old standing request makes the other shards hold back.
    Tick,
}

/// What the bank wants done: `event` goes to `shard`, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankEffect {
    /// To which shard.
    pub shard: ShardId,
    /// [`StoreEvent::SpansGranted`], [`StoreEvent::SpansRefused`], [`StoreEvent::ReclaimSpans`], [`StoreEvent::Hold`] or [`StoreEvent::Turn`].
    pub event: StoreEvent,
}
