//! Objects: made, sealed, read, waited for, deleted.

use super::{messages, wire_structs};
use crate::ids::{ObjectId, WorkerId};

/// A timeout that never ends, in nanoseconds.
pub const FOREVER_NS: u64 = u64::MAX;

wire_structs! {
    /// Where an object lies. Data first, metadata directly after it.
    Place {
        /// Start of the data, in bytes from the start of the segment. A multiple of 64.
        offset_bytes: u64,
        /// Length of the data.
        data_bytes: u64,
        /// Length of the metadata.
        metadata_bytes: u64,
        /// Which segment.
        segment: u32,
    }

    /// An object in a [`Listed`].
    ObjectEntry {
        /// Which.
        object: ObjectId,
        /// Who owns it.
        owner: WorkerId,
        /// Length of its data.
        data_bytes: u64,
        /// Length of its metadata.
        metadata_bytes: u64,
        /// Processes that use it now.
        references: u32,
        /// Sealed, so that it can be read.
        sealed: bool,
        /// Kept for its owner.
        pinned: bool,
    }
}

messages! {
    /// Memory for a new object, which the client writes and then seals or aborts. Answer: [`Created`].
    16 Create {
        /// The new object.
        object: ObjectId,
        /// Who owns it; nil: the client.
        owner: WorkerId,
        /// Length of its data.
        data_bytes: u64,
        /// Length of its metadata.
        metadata_bytes: u64,
        /// How long to wait for room, in nanoseconds; 0 asks for an answer now.
        wait_ns: u64,
    }

    /// The object is written: everybody may read it, nobody writes it any more. The creator's use of it ends. Answer: [`Done`](super::Done).
    17 Seal {
        /// Which.
        object: ObjectId,
        /// Keep it for its owner until that unpins or deletes it, or dies, in memory or on disk. Else it may be evicted when nobody uses it.
        pin: bool,
    }

    /// The unsealed object is given up. Answer: [`Done`](super::Done).
    18 Abort {
        /// Which.
        object: ObjectId,
    }

    /// Where a sealed object lies. The client uses it from then on, once more for each answer, until it releases it. Answer: [`Found`].
    19 Get {
        /// Which.
        object: ObjectId,
        /// How long to wait for it, in nanoseconds; 0 asks for an answer now, or, of what is on disk, as soon as it is read back.
        /// [`FOREVER_NS`] never gives up.
        timeout_ns: u64,
    }

    /// Uses of an object end. Sent one-way.
    20 Release {
        /// Which.
        object: ObjectId,
        /// How many uses.
        count: u32,
    }

    /// Waits until `wanted` of the objects are sealed here, or the time is over. Answer: [`Waited`].
    21 Wait {
        /// How long, in nanoseconds.
        timeout_ns: u64,
        /// How many are enough; at most as many as there are.
        wanted: u32,
        /// Which; at most [`Limits::objects`](super::Limits::objects).
        objects: Vec<ObjectId>,
    }

    /// Deletes an object; one in use goes when its last use ends. Answer: [`Done`](super::Done), also for one that is in use.
    22 Delete {
        /// Which.
        object: ObjectId,
    }

    /// Is it here and sealed, in memory or on disk? Answer: [`Contained`].
    23 Contains {
        /// Which.
        object: ObjectId,
    }

    /// The node's objects in the order of their ids. Answer: [`Listed`].
    24 List {
        /// Start behind this one; all zeros: from the first.
        after: ObjectId,
        /// At most this many.
        most: u32,
    }

    /// A private run of memory for small objects, see [`crate::credit`]. Answer: [`CreditGranted`].
    25 RequestCredit {
        /// How much; the node may grant less.
        size_bytes: u32,
    }

    /// An object written into a run of credit is complete: this creates and seals it. Sent one-way, unless the client wants to know.
    26 Publish {
        /// The new object.
        object: ObjectId,
        /// The run.
        credit: u32,
        /// Start of the data in the run: where the last object ended, rounded up to 64.
        offset_bytes: u32,
        /// Length of the data.
        data_bytes: u32,
        /// Length of the metadata, which follows the data directly.
        metadata_bytes: u32,
        /// As in [`Seal::pin`].
        pin: bool,
    }

    /// What is left of a run is given back. Sent one-way.
    27 ReturnCredit {
        /// The run.
        credit: u32,
    }

    /// The node keeps these objects for an owner. Answer: [`Pinned`].
    28 Pin {
        /// For whom; nil: the client. When the owner is gone, so is the pin.
        owner: WorkerId,
        /// Which.
        objects: Vec<ObjectId>,
    }

    /// It no longer keeps them. Answer: [`Done`](super::Done).
    29 Unpin {
        /// Which.
        objects: Vec<ObjectId>,
    }

    /// Answer to [`Create`].
    144 Created {
        /// Where to write it.
        place: Place,
    }

    /// Answer to [`Get`].
    145 Found {
        /// Where it lies.
        place: Place,
    }

    /// Answer to [`Wait`].
    146 Waited {
        /// Indices, into the request's list, of the objects that are sealed here, in ascending order.
        ready: Vec<u32>,
    }

    /// Answer to [`Contains`].
    147 Contained {
        /// Here and sealed.
        sealed: bool,
    }

    /// Answer to [`List`].
    148 Listed {
        /// The objects.
        entries: Vec<ObjectEntry>,
        /// There are more behind the last one.
        more: bool,
    }

    /// Answer to [`RequestCredit`].
    149 CreditGranted {
        /// Start of the run, in bytes from the start of the segment. A multiple of 64.
        offset_bytes: u64,
        /// The run's number.
        credit: u32,
        /// Which segment.
        segment: u32,
        /// Its length. A multiple of 64.
        size_bytes: u32,
    }

    /// Answer to [`Pin`].
    150 Pinned {
        /// For each object of the request: it was sealed here, and is kept.
        kept: Vec<bool>,
    }
}
