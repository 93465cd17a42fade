//! What goes into the receiver and what comes out of it.

use crate::ids::{NodeId, ObjectId, WorkerId};
use crate::store::StoreError;

/// What a chunk says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHead {
    /// Its object.
    pub object: ObjectId,
    /// Who sent it.
    pub from: NodeId,
    /// Of which push it is: all chunks of a push are of one copy.
    pub push: u64,
    /// Its number, from 0.
    pub index: u32,
    /// Size of the whole object: data, and the metadata behind them.
    pub total_bytes: u64,
    /// Size of the metadata.
    pub metadata_bytes: u64,
    /// How many bytes the chunk brings.
    pub len_bytes: u64,
}

impl ChunkHead {
    /// True where it brings all of its object.
    pub(super) fn is_whole(&self) -> bool {
        self.index == 0 && self.len_bytes == self.total_bytes
    }

    /// True where its numbers agree with each other.
    pub(super) fn is_sound(&self, chunk_bytes: u64) -> bool {
        let start = u64::from(self.index).checked_mul(chunk_bytes);
        let left = start.and_then(|start| self.total_bytes.checked_sub(start));
        self.metadata_bytes <= self.total_bytes
            && left.is_some_and(|left| left > 0 && self.len_bytes == left.min(chunk_bytes))
    }
}

/// Why a chunk was not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Nobody wants the object, or it is here.
    NotWanted,
    /// Its numbers contradict each other, or the chunks before it.
    Malformed,
    /// The object is being taken from another node.
    OtherSender,
    /// It is of a push that another one of the same node has followed.
    LatePush,
    /// It was here already.
    Repeated,
    /// The store has no room for the object, or too much waits for room.
    NoRoom,
}

/// What happens to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveEvent {
    /// A node is asked for an object: its chunks are welcome.
    Expect {
        /// The object.
        object: ObjectId,
        /// Who owns it.
        owner: WorkerId,
        /// Who was asked.
        from: NodeId,
    },
    /// The object is wanted no longer, or is here.
    Forget {
        /// The object.
        object: ObjectId,
    },
    /// A chunk came.
    Chunk {
        /// Comes back in [`ReceiveEffect::Write`] or [`ReceiveEffect::Drop`], exactly once.
        ticket: u64,
        /// What it says of itself.
        head: ChunkHead,
    },
    /// A node has the object, and sends its chunks once it is told to ([`ReceiveEffect::Accept`]).
    Offered {
        /// As that of a chunk; its number and length mean nothing.
        head: ChunkHead,
    },
    /// The head of a chunk came. Its bytes follow, to where [`ReceiveEffect::Land`] says, or to nowhere. Where it is all of its object it
    /// need not have been offered: then it may have to wait for memory ([`ReceiveEffect::Hold`]).
    Landing {
        /// Comes back in [`ReceiveEffect::Land`] or [`ReceiveEffect::Drop`], exactly once, unless its connection breaks before:
        /// [`ReceiveEvent::Landed`].
        ticket: u64,
        /// What it says of itself.
        head: ChunkHead,
    },
    /// The bytes of a chunk that was told where to land: follows each [`ReceiveEffect::Land`] exactly once. Also said of one that waits for
    /// memory, when its connection breaks.
    Landed {
        /// The chunk.
        ticket: u64,
        /// Its object.
        object: ObjectId,
        /// False: they did not come, or not as they were sent. Nothing more is written there in either case.
        ok: bool,
    },
    /// A chunk has waited for memory long enough ([`ReceiveEffect::Hold`]): others come on its connection, too.
    TooLong {
        /// The chunk.
        ticket: u64,
        /// Its object.
        object: ObjectId,
    },
    /// A connection to a node broke, and whatever was said on it may be lost: offers, and what was answered to them. The chunks whose
    /// bytes were coming on it are told of one by one, as ever, when nothing writes to them any more.
    Broken {
        /// The node.
        from: NodeId,
    },
    /// Nobody reads chunks of an object any more that was lent ([`Receiver::lend`](super::Receiver::lend)).
    Returned {
        /// The object.
        object: ObjectId,
    },
    /// The store's answer to [`ReceiveEffect::Create`].
    Created {
        /// The object.
        object: ObjectId,
        /// The token of the request.
        token: u64,
        /// Whether there is memory to write to.
        result: Result<(), StoreError>,
    },
}

/// What the receiver wants done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveEffect {
    /// Make an unsealed object.
    Create {
        /// The object.
        object: ObjectId,
        /// Comes back with the answer.
        token: u64,
        /// Who owns it.
        owner: WorkerId,
        /// Size of its data.
        data_bytes: u64,
        /// Size of its metadata.
        metadata_bytes: u64,
    },
    /// Forget a create that was not answered.
    CancelCreate {
        /// The object.
        object: ObjectId,
    },
    /// Copy the bytes of a chunk into the object.
    Write {
        /// The chunk.
        ticket: u64,
        /// The object.
        object: ObjectId,
        /// Where they go, from the start of its data.
        offset_bytes: u64,
    },
    /// Send the object that was offered.
    Accept {
        /// The object.
        object: ObjectId,
        /// Who offered it.
        from: NodeId,
        /// Of which push.
        push: u64,
    },
    /// Don't send the object that was offered, or no more of it.
    Decline {
        /// The object.
        object: ObjectId,
        /// Who offered it.
        from: NodeId,
    },
    /// Receive the bytes of a chunk into the object.
    Land {
        /// The chunk.
        ticket: u64,
        /// The object.
        object: ObjectId,
        /// Where they go, from the start of its data.
        offset_bytes: u64,
    },
    /// A chunk that came unasked waits for its object's memory, and so does all that comes behind it: [`ReceiveEvent::TooLong`] is to
    /// follow after a while. Nothing happens where it waits no more.
    Hold {
        /// The chunk.
        ticket: u64,
        /// The object.
        object: ObjectId,
    },
    /// There is memory now for an object that came too early: ask the node once more.
    AskAgain {
        /// The object.
        object: ObjectId,
        /// Who sent it.
        from: NodeId,
    },
    /// A chunk of an object that is lent is there, and can be sent on.
    Arrived {
        /// The object.
        object: ObjectId,
        /// The chunk's number.
        index: u32,
    },
    /// An object that is lent is to be given up: send nothing more of it, and answer with [`ReceiveEvent::Returned`] when nothing is
    /// being read of it.
    Recall {
        /// The object.
        object: ObjectId,
    },
    /// The chunk is not used.
    Drop {
        /// The chunk.
        ticket: u64,
        /// Why.
        why: Refusal,
    },
    /// All bytes are there: seal the object. Its creator keeps its reference.
    Seal {
        /// The object.
        object: ObjectId,
    },
    /// Give the unsealed object up.
    Abort {
        /// The object.
        object: ObjectId,
    },
    /// Bytes came from a node, whether they are the first of their kind or not.
    Progress {
        /// The object.
        object: ObjectId,
        /// Who sent them.
        from: NodeId,
    },
    /// Chunks were lost: the node has to be asked again.
    Lost {
        /// The object.
        object: ObjectId,
        /// Who sent them.
        from: NodeId,
    },
    /// The store has no room for the object, or has an unsealed one of its name.
    NoRoom {
        /// The object.
        object: ObjectId,
    },
}
