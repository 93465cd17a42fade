//! Chunks that other nodes send become objects of the store.
//!
//! A chunk is taken only if its object is expected, its numbers fit, and it belongs to the push that the object is being taken from: two
//! nodes, and one node at two times, may have different bytes under one id where a task ran again. Another node or another push starts the
//! object anew, and a chunk of a push that was left is late.
//! Whether a chunk is the first of its number or the tenth makes no difference to the result, and neither does their order.

use rustc_hash::FxHashMap;

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

/// The sizes of an object and its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    total_bytes: u64,
    metadata_bytes: u64,
}

impl Shape {
    fn of(head: &ChunkHead) -> Self {
        Self { total_bytes: head.total_bytes, metadata_bytes: head.metadata_bytes }
    }
}

/// A chunk that waits for its object's memory.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: u64,
    head: ChunkHead,
}

#[derive(Debug)]
enum Phase {
    /// Nothing has come yet.
    Expected,
    /// The store was asked for memory.
    Creating { token: u64, shape: Shape, waiting: Vec<Waiting> },
    /// There is memory; `have` has a bit for each chunk.
    Open { shape: Shape, have: Vec<u64>, missing: u64 },
}

/// Pushes of a node that are remembered as left. A later one still can't mix bytes, it only starts the object anew.
const LEFT_MAX: usize = 4;

#[derive(Debug)]
struct Receiving {
    owner: WorkerId,
    from: NodeId,
    /// The push that is taken, once a chunk has said.
    push: Option<u64>,
    /// Those before it, of the same node.
    left: [Option<u64>; LEFT_MAX],
    phase: Phase,
}

impl Receiving {
    fn new(owner: WorkerId, from: NodeId) -> Self {
        Self { owner, from, push: None, left: [None; LEFT_MAX], phase: Phase::Expected }
    }

    /// Takes from another node or another push from now on: nothing that is here counts.
    fn begin_anew(&mut self, chunk_bytes: u64) {
        if let Phase::Open { shape, have, missing } = &mut self.phase {
            have.fill(0);
            *missing = shape.total_bytes.div_ceil(chunk_bytes);
        }
    }
}

/// Puts chunks into objects.
#[derive(Debug)]
pub struct Receiver {
    chunk_bytes: u64,
    waiting_max_bytes: u64,
    waiting_bytes: u64,
    objects: FxHashMap<ObjectId, Receiving>,
    tokens: u64,
}

impl Receiver {
    /// Chunks are of `chunk_bytes`, except an object's last. At most `waiting_max_bytes` of them wait for memory.
    pub fn new(chunk_bytes: u64, waiting_max_bytes: u64) -> Self {
        Self {
            chunk_bytes: chunk_bytes.max(1),
            waiting_max_bytes,
            waiting_bytes: 0,
            objects: FxHashMap::default(),
            tokens: 0,
        }
    }

    /// Takes one event and appends what it leads to.
    pub fn handle(&mut self, event: ReceiveEvent, out: &mut Vec<ReceiveEffect>) {
        match event {
            ReceiveEvent::Expect { object, owner, from } => self.expect(object, owner, from),
            ReceiveEvent::Forget { object } => self.forget(object, out),
            ReceiveEvent::Chunk { ticket, head } => self.chunk(Waiting { ticket, head }, out),
            ReceiveEvent::Created { object, token, result } => self.created(object, token, result, out),
        }
    }

    /// Objects that are expected.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// True where none is.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Creates that the store has not answered.
    pub fn creating(&self) -> usize {
        self.objects.values().filter(|object| matches!(object.phase, Phase::Creating { .. })).count()
    }

    /// Bytes of chunks that wait for memory.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    fn expect(&mut self, object: ObjectId, owner: WorkerId, from: NodeId) {
        let chunk_bytes = self.chunk_bytes;
        let receiving = self.objects.entry(object).or_insert_with(|| Receiving::new(owner, from));
        if receiving.from != from {
            (receiving.from, receiving.push, receiving.left) = (from, None, [None; LEFT_MAX]);
            receiving.begin_anew(chunk_bytes);
        }
    }

    fn forget(&mut self, object: ObjectId, out: &mut Vec<ReceiveEffect>) {
        let Some(receiving) = self.objects.remove(&object) else {
            return;
        };
        match receiving.phase {
            Phase::Expected => {}
            Phase::Creating { waiting, .. } => {
                out.push(ReceiveEffect::CancelCreate { object });
                self.drop_waiting(waiting, Refusal::NotWanted, out);
            }
            Phase::Open { .. } => out.push(ReceiveEffect::Abort { object }),
        }
    }

    fn drop_waiting(&mut self, waiting: Vec<Waiting>, why: Refusal, out: &mut Vec<ReceiveEffect>) {
        for Waiting { ticket, head } in waiting {
            self.waiting_bytes -= head.len_bytes;
            out.push(ReceiveEffect::Drop { ticket, why });
        }
    }

    /// True where the chunk's numbers agree with each other.
    fn is_sound(&self, head: &ChunkHead) -> bool {
        let start = u64::from(head.index).checked_mul(self.chunk_bytes);
        let left = start.and_then(|start| head.total_bytes.checked_sub(start));
        head.metadata_bytes <= head.total_bytes
            && left.is_some_and(|left| left > 0 && head.len_bytes == left.min(self.chunk_bytes))
    }

    fn chunk(&mut self, chunk: Waiting, out: &mut Vec<ReceiveEffect>) {
        let Waiting { ticket, head } = chunk;
        let drop = |why| ReceiveEffect::Drop { ticket, why };
        if !self.is_sound(&head) {
            return out.push(drop(Refusal::Malformed));
        }
        let object = head.object;
        let full = self.waiting_bytes + head.len_bytes > self.waiting_max_bytes;
        let Some(receiving) = self.objects.get_mut(&object) else {
            return out.push(drop(Refusal::NotWanted));
        };
        match &mut receiving.phase {
            // Whoever sends first will do: an object may come from a node that was asked before.
            Phase::Expected if !full => {
                (receiving.from, receiving.push) = (head.from, Some(head.push));
                self.tokens += 1;
                let (token, shape) = (self.tokens, Shape::of(&head));
                receiving.phase = Phase::Creating { token, shape, waiting: vec![chunk] };
                self.waiting_bytes += head.len_bytes;
                let owner = receiving.owner;
                let data_bytes = head.total_bytes - head.metadata_bytes;
                out.push(ReceiveEffect::Create {
                    object,
                    token,
                    owner,
                    data_bytes,
                    metadata_bytes: head.metadata_bytes,
                });
            }
            _ if receiving.from != head.from => out.push(drop(Refusal::OtherSender)),
            _ if receiving.left.contains(&Some(head.push)) => out.push(drop(Refusal::LatePush)),
            Phase::Creating { shape, .. } | Phase::Open { shape, .. } if *shape != Shape::of(&head) => {
                out.push(drop(Refusal::Malformed));
                self.start_anew(object, out);
            }
            Phase::Creating { waiting, .. } if !full => {
                waiting.push(chunk);
                self.waiting_bytes += head.len_bytes;
                self.follow(object, head.push);
            }
            Phase::Expected | Phase::Creating { .. } => {
                out.push(drop(Refusal::NoRoom));
                out.push(ReceiveEffect::Lost { object, from: head.from });
            }
            Phase::Open { .. } => {
                self.follow(object, head.push);
                self.take(chunk, out);
            }
        }
    }

    /// Takes an object from this push of its node, and from no other any more.
    fn follow(&mut self, object: ObjectId, push: u64) {
        let chunk_bytes = self.chunk_bytes;
        let Some(receiving) = self.objects.get_mut(&object) else {
            return;
        };
        match receiving.push.replace(push) {
            None => {}
            Some(same) if same == push => {}
            Some(before) => {
                receiving.left.rotate_right(1);
                receiving.left[0] = Some(before);
                receiving.begin_anew(chunk_bytes);
            }
        }
    }

    /// Two chunks of a node are of objects of different sizes: it can't be said which is right, so the node is asked again.
    fn start_anew(&mut self, object: ObjectId, out: &mut Vec<ReceiveEffect>) {
        let Some(Receiving { owner, from, .. }) = self.objects.get(&object) else {
            return;
        };
        let (owner, from) = (*owner, *from);
        self.forget(object, out);
        self.expect(object, owner, from);
        out.push(ReceiveEffect::Lost { object, from });
    }

    /// A sound chunk from the right node meets its open object.
    fn take(&mut self, chunk: Waiting, out: &mut Vec<ReceiveEffect>) {
        let Waiting { ticket, head } = chunk;
        let Some(Receiving { phase: Phase::Open { have, missing, .. }, .. }) = self.objects.get_mut(&head.object)
        else {
            return out.push(ReceiveEffect::Drop { ticket, why: Refusal::NotWanted });
        };
        out.push(ReceiveEffect::Progress { object: head.object, from: head.from });
        let (word, bit) = ((head.index / 64) as usize, 1u64 << (head.index % 64));
        if have[word] & bit != 0 {
            return out.push(ReceiveEffect::Drop { ticket, why: Refusal::Repeated });
        }
        have[word] |= bit;
        *missing -= 1;
        let done = *missing == 0;
        let offset_bytes = u64::from(head.index) * self.chunk_bytes;
        out.push(ReceiveEffect::Write { ticket, object: head.object, offset_bytes });
        if done {
            self.objects.remove(&head.object);
            out.push(ReceiveEffect::Seal { object: head.object });
        }
    }

    fn created(&mut self, object: ObjectId, token: u64, result: Result<(), StoreError>, out: &mut Vec<ReceiveEffect>) {
        let receiving = self.objects.get_mut(&object);
        let receiving = receiving.filter(|r| matches!(r.phase, Phase::Creating { token: t, .. } if t == token));
        let Some(receiving) = receiving else {
            // It was cancelled too late.
            if result.is_ok() {
                out.push(ReceiveEffect::Abort { object });
            }
            return;
        };
        let (from, push) = (receiving.from, receiving.push);
        let Phase::Creating { shape, waiting, .. } = std::mem::replace(&mut receiving.phase, Phase::Expected) else {
            return;
        };
        if result.is_err() {
            self.drop_waiting(waiting, Refusal::NoRoom, out);
            return out.push(ReceiveEffect::NoRoom { object });
        }
        let chunks = shape.total_bytes.div_ceil(self.chunk_bytes);
        let have = vec![0; chunks.div_ceil(64) as usize];
        receiving.phase = Phase::Open { shape, have, missing: chunks };
        for chunk in waiting {
            self.waiting_bytes -= chunk.head.len_bytes;
            // Another node may have been asked meanwhile, or another push have begun.
            if chunk.head.from != from {
                out.push(ReceiveEffect::Drop { ticket: chunk.ticket, why: Refusal::OtherSender });
            } else if push.is_some_and(|push| push != chunk.head.push) {
                out.push(ReceiveEffect::Drop { ticket: chunk.ticket, why: Refusal::LatePush });
            } else {
                self.follow(object, chunk.head.push);
                self.take(chunk, out);
            }
        }
    }

    /// Verifies what the state says twice.
    pub fn check(&self) -> Result<(), String> {
        let waiting = self.objects.values().map(|receiving| match &receiving.phase {
            Phase::Creating { waiting, .. } => waiting.iter().map(|chunk| chunk.head.len_bytes).sum(),
            _ => 0,
        });
        let waiting: u64 = waiting.sum();
        if waiting != self.waiting_bytes {
            return Err(format!("{} bytes wait, counted {waiting}", self.waiting_bytes));
        }
        for (object, receiving) in &self.objects {
            if let Phase::Open { shape, have, missing } = &receiving.phase {
                let there: u64 = have.iter().map(|word| u64::from(word.count_ones())).sum();
                let chunks = shape.total_bytes.div_ceil(self.chunk_bytes);
                if there + missing != chunks || *missing == 0 {
                    return Err(format!("{object}: {there} chunks are here, {missing} are missing, of {chunks}"));
                }
            }
        }
        Ok(())
    }
}
