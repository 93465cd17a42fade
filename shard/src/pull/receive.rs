//! Chunks that other nodes send become objects of the store.
//!
//! A chunk is taken only if its object is expected, its numbers fit, and it belongs to the push that the object is being taken from: two
//! nodes, and one node at two times, may have different bytes under one id where a task ran again. Another node or another push starts the
//! object anew, and a chunk of a push that was left is late.
//! Whether a chunk is the first of its number or the tenth makes no difference to the result, and neither does their order.
//!
//! Chunks come in two ways. With its bytes ([`ReceiveEvent::Chunk`]): they wait until there is memory, and are copied there. Or its
//! head first ([`ReceiveEvent::Landing`]), after the object was offered and there is memory: then its bytes go from the wire to their
//! place, and that memory is nobody else's until they have landed, whatever becomes of the object. An object of one chunk needs no offer:
//! its head asks for the memory, and its bytes wait for it on their connection, for a while.
//!
//! What is there of an object can be lent while the rest is coming ([`Receiver::lend`]), for other nodes to be sent it. Its memory stays
//! as it is until it was returned, too.

use rustc_hash::FxHashMap;

use super::receive_api::{ChunkHead, ReceiveEffect, ReceiveEvent, Refusal};
use super::receiving::{bit_of, Again, Closing, Early, Landing, Lent, Phase, Receiving, Shape, Waiting, LEFT_MAX};
use crate::ids::{NodeId, ObjectId, WorkerId};
use crate::store::StoreError;

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
            ReceiveEvent::TooLong { ticket, object } => self.too_long(ticket, object, out),
            ReceiveEvent::Broken { from } => self.broken(from, out),
            ReceiveEvent::Returned { object } => self.returned(object, out),
            ReceiveEvent::Created { object, token, result } => self.created(object, token, result, out),
        }
    }

    /// Lends what is there of an object, where there is memory for it: from now on each further chunk is told of
    /// ([`ReceiveEffect::Arrived`]), and none of its memory is given up or written to again before [`ReceiveEvent::Returned`].
    pub fn lend(&mut self, object: &ObjectId) -> Option<Lent<'_>> {
        let Receiving { owner, phase: Phase::Open { shape, have, lent, .. }, .. } = self.objects.get_mut(object)?
        else {
            return None;
        };
        *lent = true;
        Some(Lent { owner: *owner, total_bytes: shape.total_bytes, metadata_bytes: shape.metadata_bytes, have })
    }

    /// Whose an object is that is expected.
    pub fn owner_of(&self, object: &ObjectId) -> Option<WorkerId> {
        let again = || self.closing.get(object).and_then(|closing| closing.again.as_ref()).map(|again| again.owner);
        self.objects.get(object).map(|receiving| receiving.owner).or_else(again)
    }

    /// True where an object is expected, or being received.
    pub fn is_expected(&self, object: &ObjectId) -> bool {
        self.objects.contains_key(object) || self.closing.get(object).is_some_and(|closing| closing.again.is_some())
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
        let anew = Again { owner, from, offer: None, lost: false };
        if let Some(closing) = self.closing.get_mut(&object) {
            match &mut closing.again {
                Some(again) if again.from == from => {}
                other => {
                    if let Some(Again { from, offer: Some(_), .. }) = other.replace(anew) {
                        out.push(ReceiveEffect::Decline { object, from });
                    }
                }
            }
            return;
        }
        let receiving = self.objects.entry(object).or_insert_with(|| Receiving::new(owner, from));
        if receiving.from == from {
            return;
        }
        if receiving.offered.take().is_some() {
            out.push(ReceiveEffect::Decline { object, from: receiving.from });
        }
        if receiving.is_busy() {
            return self.give_up(object, Some(anew), out);
        }
        if let Some(Waiting { ticket, .. }) = receiving.take_early(Early::None) {
            out.push(ReceiveEffect::Drop { ticket, why: Refusal::OtherSender });
        }
        (receiving.from, receiving.push, receiving.left) = (from, None, [None; LEFT_MAX]);
        receiving.begin_anew(self.chunk_bytes);
    }

    fn forget(&mut self, object: ObjectId, out: &mut Vec<ReceiveEffect>) {
        if let Some(closing) = self.closing.get_mut(&object) {
            if let Some(Again { from, offer: Some(_), .. }) = closing.again.take() {
                out.push(ReceiveEffect::Decline { object, from });
            }
            return;
        }
        let Some(receiving) = self.objects.get_mut(&object) else {
            return;
        };
        if receiving.offered.take().is_some() {
            out.push(ReceiveEffect::Decline { object, from: receiving.from });
        }
        self.give_up(object, None, out);
    }

    /// Gives up what came of an object, now or as soon as its memory is nobody's. Then, perhaps, it is expected again.
    fn give_up(&mut self, object: ObjectId, again: Option<Again>, out: &mut Vec<ReceiveEffect>) {
        let Some(mut receiving) = self.objects.remove(&object) else {
            return;
        };
        let early = receiving.take_early(Early::None);
        match receiving.phase {
            Phase::Expected => {}
            Phase::Creating { waiting, .. } => {
                out.push(ReceiveEffect::CancelCreate { object });
                self.drop_waiting(waiting, Refusal::NotWanted, out);
                out.extend(early.map(|Waiting { ticket, .. }| ReceiveEffect::Drop { ticket, why: Refusal::NotWanted }));
            }
            Phase::Open { landing, lent, .. } if lent || !landing.is_empty() => {
                if lent {
                    out.push(ReceiveEffect::Recall { object });
                }
                self.closing.insert(object, Closing { landing, lent, again });
                return;
            }
            Phase::Open { .. } => out.push(ReceiveEffect::Abort { object }),
        }
        self.resume(object, again, out);
    }

    fn resume(&mut self, object: ObjectId, again: Option<Again>, out: &mut Vec<ReceiveEffect>) {
        let Some(Again { owner, from, offer, lost }) = again else {
            return;
        };
        self.expect(object, owner, from, out);
        match offer {
            Some(head) => self.offered(&head, out),
            None if lost => out.push(ReceiveEffect::Lost { object, from }),
            None => {}
        }
    }

    /// Ends the giving up of an object whose memory is neither written to nor read any more.
    fn close(&mut self, object: ObjectId, out: &mut Vec<ReceiveEffect>) {
        let nobodys = self.closing.get(&object).is_some_and(|closing| closing.landing.is_empty() && !closing.lent);
        if let Some(closing) = nobodys.then(|| self.closing.remove(&object)).flatten() {
            out.push(ReceiveEffect::Abort { object });
            self.resume(object, closing.again, out);
        }
    }

    fn returned(&mut self, object: ObjectId, out: &mut Vec<ReceiveEffect>) {
        if let Some(closing) = self.closing.get_mut(&object) {
            closing.lent = false;
            return self.close(object, out);
        }
        if let Some(Receiving { phase: Phase::Open { lent, .. }, .. }) = self.objects.get_mut(&object) {
            *lent = false;
        }
    }

    fn broken(&mut self, from: NodeId, out: &mut Vec<ReceiveEffect>) {
        let taken = self.objects.iter().filter(|(_, receiving)| receiving.from == from);
        let mut lost: Vec<ObjectId> = taken.map(|(object, _)| *object).collect();
        lost.sort_unstable();
        for object in lost {
            let offered = self.objects.get_mut(&object).and_then(|receiving| receiving.offered.take());
            // The node may have heard of it before it offered this.
            out.extend(offered.map(|_| ReceiveEffect::Decline { object, from }));
            out.push(ReceiveEffect::Lost { object, from });
        }
        for (object, closing) in &mut self.closing {
            if let Some(again) = closing.again.as_mut().filter(|again| again.from == from) {
                again.lost = true;
                out.extend(again.offer.take().map(|_| ReceiveEffect::Decline { object: *object, from }));
            }
        }
    }

    fn drop_waiting(&mut self, waiting: Vec<Waiting>, why: Refusal, out: &mut Vec<ReceiveEffect>) {
        for Waiting { ticket, head } in waiting {
            self.waiting_bytes -= head.len_bytes;
            out.push(ReceiveEffect::Drop { ticket, why });
        }
    }

    fn chunk(&mut self, chunk: Waiting, out: &mut Vec<ReceiveEffect>) {
        let Waiting { ticket, head } = chunk;
        let drop = |why| ReceiveEffect::Drop { ticket, why };
        if !head.is_sound(self.chunk_bytes) {
            return out.push(drop(Refusal::Malformed));
        }
        let object = head.object;
        let full = self.waiting_bytes + head.len_bytes > self.waiting_max_bytes;
        let Some(receiving) = self.objects.get_mut(&object) else {
            if let Some(again) = self.closing.get_mut(&object).and_then(|closing| closing.again.as_mut()) {
                again.lost |= again.from == head.from;
            }
            return out.push(drop(Refusal::NotWanted));
        };
        match &mut receiving.phase {
            // Whoever sends first will do: an object may come from a node that was asked before.
            Phase::Expected if !full => {
                (receiving.from, receiving.push) = (head.from, Some(head.push));
                self.create(object, Shape::of(&head), vec![chunk], Early::None, out);
            }
            _ if receiving.from != head.from => out.push(drop(Refusal::OtherSender)),
            _ if receiving.left.contains(&Some(head.push)) => out.push(drop(Refusal::LatePush)),
            Phase::Creating { shape, .. } | Phase::Open { shape, .. } if *shape != Shape::of(&head) => {
                out.push(drop(Refusal::Malformed));
                self.start_anew(object, None, out);
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
                if self.follow(object, head.push) {
                    return self.take(chunk, out);
                }
                out.push(drop(Refusal::NotWanted));
                self.start_anew(object, None, out);
            }
        }
    }

    /// Takes an object from this push of its node, and from no other any more. False: not here, its memory is in use.
    fn follow(&mut self, object: ObjectId, push: u64) -> bool {
        let chunk_bytes = self.chunk_bytes;
        let Some(receiving) = self.objects.get_mut(&object) else {
            return false;
        };
        match receiving.push {
            Some(same) if same == push => return true,
            Some(_) if receiving.is_busy() => return false,
            Some(before) => {
                receiving.leave(before, push);
                receiving.begin_anew(chunk_bytes);
            }
            None => {}
        }
        receiving.push = Some(push);
        true
    }

    /// What a node sends now is not what it sent before: it is taken from the start, by this offer or by asking again.
    fn start_anew(&mut self, object: ObjectId, offer: Option<ChunkHead>, out: &mut Vec<ReceiveEffect>) {
        if let Some(again) = self.objects.get(&object).map(Receiving::again) {
            self.give_up(object, Some(Again { offer, lost: true, ..again }), out);
        }
    }

    /// An offer is what its node has now, also of a push that was left: one that was overtaken by the next is not made good when it is
    /// accepted, and the node is asked again.
    fn offered(&mut self, head: &ChunkHead, out: &mut Vec<ReceiveEffect>) {
        let (object, from) = (head.object, head.from);
        let decline = ReceiveEffect::Decline { object, from };
        if head.metadata_bytes > head.total_bytes || head.total_bytes == 0 {
            return out.push(decline);
        }
        let Some(receiving) = self.objects.get_mut(&object) else {
            match self.closing.get_mut(&object).and_then(|closing| closing.again.as_mut()) {
                Some(again) if again.from == from => again.offer = Some(*head),
                _ => out.push(decline),
            }
            return;
        };
        match &receiving.phase {
            // As with chunks: whoever comes first will do.
            Phase::Expected => {
                (receiving.from, receiving.push, receiving.offered) = (from, Some(head.push), Some(head.push));
                self.create(object, Shape::of(head), Vec::new(), Early::None, out);
            }
            _ if receiving.from != from => out.push(decline),
            Phase::Creating { shape, .. } | Phase::Open { shape, .. } if *shape != Shape::of(head) => {
                self.start_anew(object, Some(*head), out);
            }
            Phase::Creating { .. } | Phase::Open { .. } => {
                if !self.follow(object, head.push) {
                    return self.start_anew(object, Some(*head), out);
                }
                if let Some(receiving) = self.objects.get_mut(&object) {
                    receiving.offered = Some(head.push);
                }
                self.accept(object, out);
            }
        }
    }

    /// Asks the store for an object's memory.
    fn create(
        &mut self,
        object: ObjectId,
        shape: Shape,
        waiting: Vec<Waiting>,
        early: Early,
        out: &mut Vec<ReceiveEffect>,
    ) {
        let Some(receiving) = self.objects.get_mut(&object) else {
            return;
        };
        self.tokens += 1;
        let token = self.tokens;
        self.waiting_bytes += waiting.iter().map(|chunk| chunk.head.len_bytes).sum::<u64>();
        receiving.phase = Phase::Creating { token, shape, waiting, early };
        out.push(ReceiveEffect::Create {
            object,
            token,
            owner: receiving.owner,
            data_bytes: shape.total_bytes - shape.metadata_bytes,
            metadata_bytes: shape.metadata_bytes,
        });
    }

    /// Takes an offer, once there is memory.
    fn accept(&self, object: ObjectId, out: &mut Vec<ReceiveEffect>) {
        if let Some(Receiving { offered: Some(push), from, phase: Phase::Open { .. }, .. }) = self.objects.get(&object)
        {
            out.push(ReceiveEffect::Accept { object, from: *from, push: *push });
        }
    }

    fn landing(&mut self, ticket: u64, head: &ChunkHead, out: &mut Vec<ReceiveEffect>) {
        let (object, from) = (head.object, head.from);
        let drop = |why| ReceiveEffect::Drop { ticket, why };
        if !head.is_sound(self.chunk_bytes) {
            return out.push(drop(Refusal::Malformed));
        }
        if head.is_whole() && !self.early(ticket, head, out) {
            return;
        }
        let Some(receiving) = self.objects.get_mut(&object) else {
            return out.push(drop(Refusal::NotWanted));
        };
        if receiving.from != from {
            return out.push(drop(Refusal::OtherSender));
        }
        if receiving.push != Some(head.push) {
            return out.push(drop(Refusal::LatePush));
        }
        let Phase::Open { shape, have, landing, .. } = &mut receiving.phase else {
            return out.push(drop(Refusal::NotWanted));
        };
        if *shape != Shape::of(head) {
            out.push(drop(Refusal::Malformed));
            return self.start_anew(object, None, out);
        }
        out.push(ReceiveEffect::Progress { object, from });
        let (word, bit) = bit_of(head.index);
        if have[word] & bit != 0 || landing.iter().any(|(_, index)| *index == head.index) {
            return out.push(drop(Refusal::Repeated));
        }
        landing.push((ticket, head.index));
        out.push(ReceiveEffect::Land { ticket, object, offset_bytes: u64::from(head.index) * self.chunk_bytes });
    }

    /// All of an object comes without having been offered. True where it is to be taken, or refused, like other chunks; else it waits.
    fn early(&mut self, ticket: u64, head: &ChunkHead, out: &mut Vec<ReceiveEffect>) -> bool {
        let (object, from) = (head.object, head.from);
        let chunk = Waiting { ticket, head: *head };
        let Some(receiving) = self.objects.get_mut(&object) else {
            if let Some(again) = self.closing.get_mut(&object).and_then(|closing| closing.again.as_mut()) {
                again.lost |= again.from == from;
            }
            return true;
        };
        if receiving.from == from && receiving.left.contains(&Some(head.push)) {
            out.push(ReceiveEffect::Drop { ticket, why: Refusal::LatePush });
            return false;
        }
        match &receiving.phase {
            // As with offers: whoever comes first will do.
            Phase::Expected => {
                (receiving.from, receiving.push) = (from, Some(head.push));
                self.create(object, Shape::of(head), Vec::new(), Early::Held(chunk), out);
            }
            Phase::Creating { shape, .. } if receiving.from == from && *shape == Shape::of(head) => {
                let before = receiving.take_early(Early::Held(chunk));
                out.extend(before.map(|Waiting { ticket, .. }| ReceiveEffect::Drop { ticket, why: Refusal::LatePush }));
                self.follow(object, head.push);
            }
            Phase::Creating { .. } if receiving.from == from => {
                out.push(ReceiveEffect::Drop { ticket, why: Refusal::Malformed });
                self.start_anew(object, None, out);
                return false;
            }
            Phase::Open { .. } if receiving.from == from => {
                self.follow(object, head.push);
                return true;
            }
            Phase::Creating { .. } | Phase::Open { .. } => return true,
        }
        out.push(ReceiveEffect::Hold { ticket, object });
        false
    }

    fn too_long(&mut self, late: u64, object: ObjectId, out: &mut Vec<ReceiveEffect>) {
        let Some(receiving) = self.objects.get_mut(&object) else {
            return;
        };
        if matches!(receiving.phase, Phase::Creating { early: Early::Held(chunk), .. } if chunk.ticket == late) {
            receiving.take_early(Early::Missed);
            out.push(ReceiveEffect::Drop { ticket: late, why: Refusal::NoRoom });
        }
    }

    fn landed(&mut self, ticket: u64, object: ObjectId, ok: bool, out: &mut Vec<ReceiveEffect>) {
        let Some(receiving) = self.objects.get_mut(&object) else {
            if let Some(closing) = self.closing.get_mut(&object) {
                closing.landing.retain(|(landing, _)| *landing != ticket);
                self.close(object, out);
            }
            return;
        };
        let from = receiving.from;
        let landing = match &mut receiving.phase {
            Phase::Open { landing, .. } => landing,
            Phase::Creating { early: early @ Early::Held(_), .. } => {
                if matches!(early, Early::Held(chunk) if chunk.ticket == ticket) {
                    *early = Early::None;
                }
                return;
            }
            Phase::Creating { .. } | Phase::Expected => return,
        };
        let Some(at) = landing.iter().position(|(landing, _)| *landing == ticket) else {
            return;
        };
        let (_, index) = landing.swap_remove(at);
        if !ok {
            return out.push(ReceiveEffect::Lost { object, from });
        }
        out.push(ReceiveEffect::Progress { object, from });
        self.arrived(object, index, out);
    }

    /// A sound chunk from the right node meets its open object.
    fn take(&mut self, chunk: Waiting, out: &mut Vec<ReceiveEffect>) {
        let Waiting { ticket, head } = chunk;
        let object = head.object;
        let Some(Receiving { phase: Phase::Open { have, landing, .. }, .. }) = self.objects.get_mut(&object) else {
            return out.push(ReceiveEffect::Drop { ticket, why: Refusal::NotWanted });
        };
        out.push(ReceiveEffect::Progress { object, from: head.from });
        let (word, bit) = bit_of(head.index);
        if have[word] & bit != 0 || landing.iter().any(|(_, index)| *index == head.index) {
            return out.push(ReceiveEffect::Drop { ticket, why: Refusal::Repeated });
        }
        out.push(ReceiveEffect::Write { ticket, object, offset_bytes: u64::from(head.index) * self.chunk_bytes });
        self.arrived(object, head.index, out);
    }

    /// The bytes of a chunk are in their place.
    fn arrived(&mut self, object: ObjectId, index: u32, out: &mut Vec<ReceiveEffect>) {
        let Some(Receiving { phase: Phase::Open { have, missing, lent, .. }, .. }) = self.objects.get_mut(&object)
        else {
            return;
        };
        let (word, bit) = bit_of(index);
        have[word] |= bit;
        *missing -= 1;
        let done = *missing == 0;
        if *lent {
            out.push(ReceiveEffect::Arrived { object, index });
        }
        if done {
            self.objects.remove(&object);
            out.push(ReceiveEffect::Seal { object });
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
        let Phase::Creating { shape, waiting, early, .. } = std::mem::replace(&mut receiving.phase, Phase::Expected)
        else {
            return;
        };
        if result.is_err() {
            if let Early::Held(Waiting { ticket, .. }) = early {
                out.push(ReceiveEffect::Drop { ticket, why: Refusal::NoRoom });
            }
            if receiving.offered.take().is_some() {
                out.push(ReceiveEffect::Decline { object, from });
            }
            self.drop_waiting(waiting, Refusal::NoRoom, out);
            return out.push(ReceiveEffect::NoRoom { object });
        }
        let chunks = shape.total_bytes.div_ceil(self.chunk_bytes);
        let have = vec![0; chunks.div_ceil(64) as usize];
        receiving.phase = Phase::Open { shape, have, missing: chunks, landing: Landing::new(), lent: false };
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
        match early {
            Early::None => {}
            Early::Held(Waiting { ticket, head }) => self.landing(ticket, &head, out),
            Early::Missed => out.push(ReceiveEffect::AskAgain { object, from }),
        }
        self.accept(object, out);
    }

    /// Verifies what the state says twice.
    pub fn check(&self) -> Result<(), String> {
        let waiting: u64 = self.objects.values().map(Receiving::waiting_bytes).sum();
        if waiting != self.waiting_bytes {
            return Err(format!("{} bytes wait, counted {waiting}", self.waiting_bytes));
        }
        for (object, receiving) in &self.objects {
            receiving.check(self.chunk_bytes).map_err(|what| format!("{object}: {what}"))?;
        }
        let both = self.closing.iter().find(|(object, closing)| {
            self.objects.contains_key(object) || (closing.landing.is_empty() && !closing.lent)
        });
        match both {
            Some((object, closing)) => Err(format!("{object} is being received, or is nobody's: {closing:?}")),
            None => Ok(()),
        }
    }
}
