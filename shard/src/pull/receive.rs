//! Chunks that other nodes send become objects of the store.
//!
//! A chunk is taken only if its object is expected, its numbers fit, and it belongs to the push that the object is being taken from: two
//! nodes, and one node at two times, may have different bytes under one id where a task ran again. Another node or another push starts the
//! object anew, and a chunk of a push that was left is late.
//! Whether a chunk is the first of its number or the tenth makes no difference to the result, and neither does their order.
//!
//! Chunks come in two ways. With its bytes ([`ReceiveEvent::Chunk`]): they wait until there is memory, and are copied there. Or its
//! head first ([`ReceiveEvent::Landing`]), after the object was offered and there is memory: then its bytes go from the wire to their
//! place, and that memory is nobody else's until they have landed, whatever becomes of the object.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

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
    /// A node has the object, and sends its chunks once it is told to ([`ReceiveEffect::Accept`]).
    Offered {
        /// As that of a chunk; its number and length mean nothing.
        head: ChunkHead,
    },
    /// The head of a chunk came. Its bytes follow, to where [`ReceiveEffect::Land`] says, or to nowhere.
    Landing {
        /// Comes back in [`ReceiveEffect::Land`] or [`ReceiveEffect::Drop`], exactly once.
        ticket: u64,
        /// What it says of itself.
        head: ChunkHead,
    },
    /// The bytes of a chunk that was told where to land: follows each [`ReceiveEffect::Land`] exactly once.
    Landed {
        /// The chunk.
        ticket: u64,
        /// Its object.
        object: ObjectId,
        /// False: they did not come, or not as they were sent. Nothing more is written there in either case.
        ok: bool,
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
    /// There is memory; `have` has a bit for each chunk. `landing` are chunks on their way into it, at most one for each connection.
    Open { shape: Shape, have: Vec<u64>, missing: u64, landing: Landing },
}

/// Chunks on their way into an object: ticket and number.
type Landing = SmallVec<[(u64, u32); 4]>;

/// An object that was given up while chunks were on their way into it.
#[derive(Debug)]
struct Closing {
    landing: Landing,
    /// It is expected again, once they have landed: its owner, and who was asked.
    again: Option<(WorkerId, NodeId)>,
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
    /// Whose offer is being taken, or waits for memory.
    offered: Option<NodeId>,
    phase: Phase,
}

impl Receiving {
    fn new(owner: WorkerId, from: NodeId) -> Self {
        Self { owner, from, push: None, left: [None; LEFT_MAX], offered: None, phase: Phase::Expected }
    }

    fn is_landing(&self) -> bool {
        matches!(&self.phase, Phase::Open { landing, .. } if !landing.is_empty())
    }

    /// Takes from another node or another push from now on: nothing that is here counts.
    fn begin_anew(&mut self, chunk_bytes: u64) {
        if let Phase::Open { shape, have, missing, .. } = &mut self.phase {
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
    closing: FxHashMap<ObjectId, Closing>,
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
            closing: FxHashMap::default(),
            tokens: 0,
        }
    }

    /// Takes one event and appends what it leads to.
    pub fn handle(&mut self, event: ReceiveEvent, out: &mut Vec<ReceiveEffect>) {
        match event {
            ReceiveEvent::Expect { object, owner, from } => self.expect(object, owner, from, out),
            ReceiveEvent::Forget { object } => self.forget(object, out),
            ReceiveEvent::Chunk { ticket, head } => self.chunk(Waiting { ticket, head }, out),
            ReceiveEvent::Offered { head } => self.offered(&head, out),
            ReceiveEvent::Landing { ticket, head } => self.landing(ticket, &head, out),
            ReceiveEvent::Landed { ticket, object, ok } => self.landed(ticket, object, ok, out),
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

    fn expect(&mut self, object: ObjectId, owner: WorkerId, from: NodeId, out: &mut Vec<ReceiveEffect>) {
        let chunk_bytes = self.chunk_bytes;
        if let Some(closing) = self.closing.get_mut(&object) {
            closing.again = Some((owner, from));
            return;
        }
        let receiving = self.objects.entry(object).or_insert_with(|| Receiving::new(owner, from));
        if receiving.from == from {
            return;
        }
        if receiving.is_landing() {
            self.forget(object, out);
            return self.expect(object, owner, from, out);
        }
        if let Some(from) = receiving.offered.take() {
            out.push(ReceiveEffect::Decline { object, from });
        }
        (receiving.from, receiving.push, receiving.left) = (from, None, [None; LEFT_MAX]);
        receiving.begin_anew(chunk_bytes);
    }

    fn forget(&mut self, object: ObjectId, out: &mut Vec<ReceiveEffect>) {
        if let Some(closing) = self.closing.get_mut(&object) {
            closing.again = None;
        }
        let Some(receiving) = self.objects.remove(&object) else {
            return;
        };
        if let Some(from) = receiving.offered {
            out.push(ReceiveEffect::Decline { object, from });
        }
        match receiving.phase {
            Phase::Expected => {}
            Phase::Open { landing, .. } if !landing.is_empty() => {
                self.closing.insert(object, Closing { landing, again: None });
            }
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
                self.create(object, Shape::of(&head), vec![chunk], out);
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
                self.follow(object, head.push, out);
            }
            Phase::Expected | Phase::Creating { .. } => {
                out.push(drop(Refusal::NoRoom));
                out.push(ReceiveEffect::Lost { object, from: head.from });
            }
            Phase::Open { .. } => {
                self.follow(object, head.push, out);
                self.take(chunk, out);
            }
        }
    }

    /// Takes an object from this push of its node, and from no other any more.
    fn follow(&mut self, object: ObjectId, push: u64, out: &mut Vec<ReceiveEffect>) {
        let chunk_bytes = self.chunk_bytes;
        let Some(receiving) = self.objects.get_mut(&object) else {
            return;
        };
        match receiving.push.replace(push) {
            None => {}
            Some(same) if same == push => {}
            Some(_) if receiving.is_landing() => self.start_anew(object, out),
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
        self.expect(object, owner, from, out);
        // One that is still being written to is asked for again when that has ended.
        if !self.closing.contains_key(&object) {
            out.push(ReceiveEffect::Lost { object, from });
        }
    }

    fn offered(&mut self, head: &ChunkHead, out: &mut Vec<ReceiveEffect>) {
        let (object, from) = (head.object, head.from);
        let is_sound = head.metadata_bytes <= head.total_bytes && head.total_bytes > 0;
        let Some(receiving) = self.objects.get_mut(&object).filter(|_| is_sound) else {
            return out.push(ReceiveEffect::Decline { object, from });
        };
        match &receiving.phase {
            // As with chunks: whoever comes first will do.
            Phase::Expected => {
                (receiving.from, receiving.push, receiving.offered) = (from, Some(head.push), Some(from));
                self.create(object, Shape::of(head), Vec::new(), out);
            }
            _ if receiving.from != from || receiving.left.contains(&Some(head.push)) => {
                out.push(ReceiveEffect::Decline { object, from });
            }
            Phase::Creating { shape, .. } | Phase::Open { shape, .. } if *shape != Shape::of(head) => {
                self.start_anew(object, out);
                out.push(ReceiveEffect::Decline { object, from });
            }
            Phase::Creating { .. } => {
                receiving.offered = Some(from);
                self.follow(object, head.push, out);
            }
            Phase::Open { .. } => {
                receiving.offered = Some(from);
                self.follow(object, head.push, out);
                self.accept(object, out);
            }
        }
    }

    /// Asks the store for an object's memory.
    fn create(&mut self, object: ObjectId, shape: Shape, waiting: Vec<Waiting>, out: &mut Vec<ReceiveEffect>) {
        let Some(receiving) = self.objects.get_mut(&object) else {
            return;
        };
        self.tokens += 1;
        let token = self.tokens;
        self.waiting_bytes += waiting.iter().map(|chunk| chunk.head.len_bytes).sum::<u64>();
        receiving.phase = Phase::Creating { token, shape, waiting };
        out.push(ReceiveEffect::Create {
            object,
            token,
            owner: receiving.owner,
            data_bytes: shape.total_bytes - shape.metadata_bytes,
            metadata_bytes: shape.metadata_bytes,
        });
    }

    /// There is memory for what was offered.
    fn accept(&self, object: ObjectId, out: &mut Vec<ReceiveEffect>) {
        if let Some(Receiving { offered: Some(from), push: Some(push), .. }) = self.objects.get(&object) {
            out.push(ReceiveEffect::Accept { object, from: *from, push: *push });
        }
    }

    fn landing(&mut self, ticket: u64, head: &ChunkHead, out: &mut Vec<ReceiveEffect>) {
        let object = head.object;
        let drop = |why| ReceiveEffect::Drop { ticket, why };
        if !self.is_sound(head) {
            return out.push(drop(Refusal::Malformed));
        }
        let Some(receiving) = self.objects.get_mut(&object) else {
            return out.push(drop(Refusal::NotWanted));
        };
        let Phase::Open { shape, have, landing, .. } = &mut receiving.phase else {
            return out.push(drop(Refusal::NotWanted));
        };
        if receiving.from != head.from {
            return out.push(drop(Refusal::OtherSender));
        }
        if receiving.push != Some(head.push) {
            return out.push(drop(Refusal::LatePush));
        }
        if *shape != Shape::of(head) {
            out.push(drop(Refusal::Malformed));
            return self.start_anew(object, out);
        }
        out.push(ReceiveEffect::Progress { object, from: head.from });
        let (word, bit) = bit_of(head.index);
        if have[word] & bit != 0 || landing.iter().any(|(_, index)| *index == head.index) {
            return out.push(drop(Refusal::Repeated));
        }
        landing.push((ticket, head.index));
        out.push(ReceiveEffect::Land { ticket, object, offset_bytes: u64::from(head.index) * self.chunk_bytes });
    }

    fn landed(&mut self, ticket: u64, object: ObjectId, ok: bool, out: &mut Vec<ReceiveEffect>) {
        if let Some(closing) = self.closing.get_mut(&object) {
            closing.landing.retain(|(landing, _)| *landing != ticket);
            if !closing.landing.is_empty() {
                return;
            }
            out.push(ReceiveEffect::Abort { object });
            if let Some((owner, from)) = self.closing.remove(&object).and_then(|closing| closing.again) {
                self.expect(object, owner, from, out);
                out.push(ReceiveEffect::Lost { object, from });
            }
            return;
        }
        let Some(Receiving { from, phase: Phase::Open { have, missing, landing, .. }, .. }) =
            self.objects.get_mut(&object)
        else {
            return;
        };
        let Some(at) = landing.iter().position(|(landing, _)| *landing == ticket) else {
            return;
        };
        let (_, index) = landing.swap_remove(at);
        if !ok {
            return out.push(ReceiveEffect::Lost { object, from: *from });
        }
        out.push(ReceiveEffect::Progress { object, from: *from });
        let (word, bit) = bit_of(index);
        have[word] |= bit;
        *missing -= 1;
        if *missing == 0 {
            self.objects.remove(&object);
            out.push(ReceiveEffect::Seal { object });
        }
    }

    /// A sound chunk from the right node meets its open object.
    fn take(&mut self, chunk: Waiting, out: &mut Vec<ReceiveEffect>) {
        let Waiting { ticket, head } = chunk;
        let Some(Receiving { phase: Phase::Open { have, missing, landing, .. }, .. }) =
            self.objects.get_mut(&head.object)
        else {
            return out.push(ReceiveEffect::Drop { ticket, why: Refusal::NotWanted });
        };
        out.push(ReceiveEffect::Progress { object: head.object, from: head.from });
        let (word, bit) = bit_of(head.index);
        if have[word] & bit != 0 || landing.iter().any(|(_, index)| *index == head.index) {
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
            if let Some(from) = receiving.offered.take() {
                out.push(ReceiveEffect::Decline { object, from });
            }
            self.drop_waiting(waiting, Refusal::NoRoom, out);
            return out.push(ReceiveEffect::NoRoom { object });
        }
        let chunks = shape.total_bytes.div_ceil(self.chunk_bytes);
        let have = vec![0; chunks.div_ceil(64) as usize];
        receiving.phase = Phase::Open { shape, have, missing: chunks, landing: Landing::new() };
        for chunk in waiting {
            self.waiting_bytes -= chunk.head.len_bytes;
            // Another node may have been asked meanwhile, or another push have begun.
            if chunk.head.from != from {
                out.push(ReceiveEffect::Drop { ticket: chunk.ticket, why: Refusal::OtherSender });
            } else if push.is_some_and(|push| push != chunk.head.push) {
                out.push(ReceiveEffect::Drop { ticket: chunk.ticket, why: Refusal::LatePush });
            } else {
                self.follow(object, chunk.head.push, out);
                self.take(chunk, out);
            }
        }
        self.accept(object, out);
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
            if let Phase::Open { shape, have, missing, landing } = &receiving.phase {
                let on_both = |index: &u32| have[bit_of(*index).0] & bit_of(*index).1 != 0;
                if let Some((ticket, index)) = landing.iter().find(|(_, index)| on_both(index)) {
                    return Err(format!("{object}: chunk {index} is here, and lands as {ticket}"));
                }
                let there: u64 = have.iter().map(|word| u64::from(word.count_ones())).sum();
                let chunks = shape.total_bytes.div_ceil(self.chunk_bytes);
                if there + missing != chunks || *missing == 0 {
                    return Err(format!("{object}: {there} chunks are here, {missing} are missing, of {chunks}"));
                }
            }
        }
        let both = self
            .closing
            .iter()
            .find(|(object, closing)| self.objects.contains_key(object) || closing.landing.is_empty());
        match both {
            Some((object, closing)) => {
                Err(format!("{object} is being received, or is not being written to: {closing:?}"))
            }
            None => Ok(()),
        }
    }
}

/// Where a chunk's bit is.
fn bit_of(index: u32) -> (usize, u64) {
    ((index / 64) as usize, 1 << (index % 64))
}
