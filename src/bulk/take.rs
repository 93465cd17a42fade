//! Small objects that this node wants, taken by the core that has the lane and the object's memory: created, received and sealed without
//! waking anybody but who waits for them. And gets that a core sees to by itself.
//!
//! The thread that moves objects tells a lane what it wants ([`LaneTell::Want`](super::LaneTell::Want)). What then comes in one piece the core
//! takes, where there is memory at once, and tells when it is there ([`LaneNews::Received`]). Everything else goes the way of large objects.
//!
//! A worker's get goes further ahead: the core asks the node of the object's owner by itself, with *want if there*, as the control thread
//! would. In most cases the object is here before that has heard of the get, and it never does. It hears of it when the node answers
//! anything else, when the lane breaks, and after [`AHEAD_FOR`]; then it goes about it in its own way, and what was answered meanwhile waits
//! for its question.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use raylet_shard::ids::{ClientId, NodeId, ObjectId, WorkerId};
use raylet_shard::store::{ObjectSource, Placement, StoreEffect, StoreEvent};
use raylet_transport::bulk::frame::{Frame, Kind};
use raylet_transport::bulk::lane::Place;
use raylet_transport::ids as wire;
use raylet_tuning::Segment;

use super::{lane_of, Lane, LaneId, LaneNews, Lanes, BY_LANE};
use crate::bridge::{shard_of_object, Requester, ToControl};
use crate::core_loop::{Core, SILENT};
use crate::ray::messages::{ClientMessage, FetchId, Owner};
use crate::ray::transfer::{self, ToTransfer, UNOFFERED_MAX_BYTES};
use crate::spill::memory::ArenaMemory;

/// Objects that a core asks for by itself at a time, and gets that it sees to. Others are the control thread's.
pub const AHEAD_MAX: usize = 1_024;

/// Most objects of one get that a core sees to by itself.
pub const AHEAD_OBJECTS_MAX: usize = 16;

/// How long a core sees to a get by itself.
const AHEAD_FOR: Duration = Duration::from_millis(20);

/// How long an answer waits for the question of the thread that moves objects. Then it hears of the answer all the same.
const ANSWER_FOR: Duration = Duration::from_secs(1);

/// An object that is wanted on a lane.
pub(super) struct Wanted {
    owner: WorkerId,
    lane: LaneId,
    /// The thread that moves objects wants it; else this core alone.
    told: bool,
    /// What was answered before that thread wanted it.
    answer: Option<Frame>,
}

/// The object that is coming on a lane, where the core takes it.
pub(super) struct Taking {
    id: ObjectId,
    len_bytes: u64,
    lent: bool,
}

impl Taking {
    fn new(id: ObjectId, frame: &Frame) -> Self {
        Self { id, len_bytes: frame.len_bytes.into(), lent: frame.kind == Kind::Lent }
    }
}

/// A get that the core sees to by itself.
pub(super) struct Ahead {
    number: u64,
    objects: Vec<(ObjectId, Owner)>,
}

/// The store's client that takes; see [`crate::ray::transfer`] for its others.
fn taker() -> ClientId {
    Requester::Transfer.tag(4)
}

fn object_of(frame: &Frame) -> ObjectId {
    ObjectId(frame.object.0)
}

impl Lane {
    /// The thread that moves objects wants an object on this lane.
    pub(super) fn want(&mut self, core: &Rc<Core>, lane: LaneId, frame: Frame, owner: WorkerId) {
        let id = object_of(&frame);
        if core.has(&id) == Some(true) && core.lanes.hand_over(core, id) {
            return core.tell_transfer(ToTransfer::Lane(lane, LaneNews::Received { object: id }));
        }
        let before = core.lanes.wanted.borrow_mut().insert(id, Wanted { owner, lane, told: true, answer: None });
        match before {
            Some(Wanted { lane: asked, told: false, answer, .. }) if asked == lane => {
                if let Some(answer) = answer {
                    core.lanes.wanted.borrow_mut().remove(&id);
                    core.tell_transfer(ToTransfer::Lane(lane, LaneNews::Said(answer)));
                }
            }
            _ => self.writer.say(frame),
        }
    }

    /// Takes the chunk that comes, if it is all of an object that is wanted and there is memory. False: others see to it.
    pub(super) fn take(&mut self, core: &Rc<Core>, frame: &Frame) -> bool {
        let Some((id, place, segment)) = self.begin_to_take(core, frame) else {
            return false;
        };
        self.taking = Some(Taking::new(id, frame));
        self.reader.place(Some(Place { memory: Rc::new(ArenaMemory(segment)), offset: place.data_offset }));
        true
    }

    /// As [`Self::take`], of an object that has come already.
    pub(super) fn take_whole(&mut self, core: &Rc<Core>, lane: LaneId, frame: &Frame, bytes: &[u8]) -> bool {
        let Some((id, place, segment)) = self.begin_to_take(core, frame) else {
            return false;
        };
        let written = segment.write_at(place.data_offset, bytes).is_ok();
        self.taking = Some(Taking::new(id, frame));
        self.taken(core, lane, written);
        true
    }

    fn begin_to_take(&mut self, core: &Rc<Core>, frame: &Frame) -> Option<(ObjectId, Placement, Arc<Segment>)> {
        let id = object_of(frame);
        let owner = core.lanes.wanted.borrow().get(&id).map(|wanted| wanted.owner)?;
        let total_bytes = u64::from(frame.len_bytes);
        let is_all = frame.index == 0 && total_bytes == frame.total_bytes && frame.metadata_bytes <= total_bytes;
        let is_for_core = self.is_ours && is_all && total_bytes > 0 && total_bytes <= UNOFFERED_MAX_BYTES;
        let made = is_for_core.then(|| core.lanes.create(core, id, owner, frame)).flatten();
        if made.is_none() {
            core.lanes.in_vain(core, id);
        }
        made.map(|(place, segment)| (id, place, segment))
    }

    /// The object that the core takes is there; not `ok`: with other bytes than were sent.
    pub(super) fn taken(&mut self, core: &Rc<Core>, lane: LaneId, ok: bool) {
        let Some(Taking { id, len_bytes, lent }) = self.taking.take() else {
            return;
        };
        core.lanes.used(|used| used.received_by_core(len_bytes, lent));
        let sealed = ok && core.lanes.seal(core, id);
        if !sealed {
            core.store_here(StoreEvent::Abort { client: taker(), token: SILENT, id });
            tracing::warn!(object = %id, "an object did not arrive as it was sent, and is asked for again");
        }
        let wanted = core.lanes.wanted.borrow_mut().remove(&id);
        match wanted {
            Some(Wanted { told: true, .. }) if sealed && core.lanes.hand_over(core, id) => {
                core.tell_transfer(ToTransfer::Lane(lane, LaneNews::Received { object: id }));
            }
            Some(Wanted { told: true, .. }) => {
                let gone = Frame::new(Kind::Gone, wire::ObjectId(id.0));
                core.tell_transfer(ToTransfer::Lane(lane, LaneNews::Said(gone)));
            }
            _ if !sealed => {
                core.lanes.tell_of(core, &id);
            }
            // Whoever waits for it has it.
            _ => {}
        }
        if sealed {
            core.store_here(StoreEvent::Release { client: taker(), id });
        }
    }

    /// The node says something of an object that is wanted. True: it is kept until somebody asks.
    pub(super) fn keeps(&mut self, core: &Rc<Core>, frame: &Frame) -> bool {
        if !self.is_ours {
            return false;
        }
        let id = object_of(frame);
        let is_ahead = core.lanes.wanted.borrow().get(&id).is_some_and(|wanted| !wanted.told);
        if !is_ahead || !core.lanes.tell_of(core, &id) {
            core.lanes.wanted.borrow_mut().remove(&id);
            return false;
        }
        if let Some(wanted) = core.lanes.wanted.borrow_mut().get_mut(&id) {
            wanted.answer = Some(*frame);
        }
        core.io.after(ANSWER_FOR, move |core| core.lanes.not_asked(core, id));
        true
    }

    /// The lane is closed, and the kernel writes nothing for it any more.
    pub(super) fn takes_no_more(&mut self, core: &Rc<Core>, lane: LaneId) {
        if let Some(Taking { id, .. }) = self.taking.take() {
            core.store_here(StoreEvent::Abort { client: taker(), token: SILENT, id });
        }
        let mut lost: Vec<ObjectId> = Vec::new();
        core.lanes.wanted.borrow_mut().retain(|id, wanted| {
            let is_lost = wanted.lane == lane;
            is_lost.then(|| lost.push(*id));
            !is_lost
        });
        lost.iter().for_each(|id| {
            core.lanes.tell_of(core, id);
        });
    }
}

impl Lanes {
    /// Nobody wants the object on the lane any more.
    pub(super) fn unwant(&self, id: &ObjectId) {
        let mut wanted = self.wanted.borrow_mut();
        if wanted.get(id).is_some_and(|wanted| wanted.told) {
            wanted.remove(id);
        }
    }

    /// Memory for an object that comes, where there is some at once.
    fn create(
        &self,
        core: &Rc<Core>,
        id: ObjectId,
        owner: WorkerId,
        frame: &Frame,
    ) -> Option<(Placement, Arc<Segment>)> {
        if shard_of_object(&id, core.shards()) != core.shard {
            return None;
        }
        let (client, token, metadata_bytes) = (taker(), BY_LANE, frame.metadata_bytes);
        let data_bytes = frame.total_bytes - metadata_bytes;
        let source = ObjectSource::ReceivedFromRemote;
        let (mutable, try_immediately, near) = (false, false, None);
        let created = self.ask_store(
            core,
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
            },
        );
        let Some(StoreEffect::Created { result, .. }) = created else {
            core.store_here(StoreEvent::CancelCreate { client, id });
            return None;
        };
        let place = result.ok()?;
        let segment = core.segments().get(place.segment as usize).cloned();
        let range = place.data_offset..place.data_offset + frame.total_bytes;
        let segment = segment.filter(|segment| segment.ensure_backed(range).is_ok());
        if segment.is_none() {
            core.store_here(StoreEvent::Abort { client, token: SILENT, id });
        }
        Some((place, segment?))
    }

    fn seal(&self, core: &Rc<Core>, id: ObjectId) -> bool {
        let (client, token) = (taker(), BY_LANE);
        let sealed = self.ask_store(core, StoreEvent::Seal { client, token, id });
        matches!(sealed, Some(StoreEffect::Sealed { result: Ok(()), .. }))
    }

    /// Gives the thread that moves objects a reference on an object that is here, as it has on what it receives.
    fn hand_over(&self, core: &Rc<Core>, id: ObjectId) -> bool {
        let (client, token, wait) = (transfer::receiver(), BY_LANE, false);
        let got = self.ask_store(core, StoreEvent::Get { client, token, id, wait });
        matches!(got, Some(StoreEffect::Got { place: Some(_), .. }))
    }

    /// An object that comes is not for the core.
    fn in_vain(&self, core: &Rc<Core>, id: ObjectId) {
        self.wanted.borrow_mut().remove(&id);
        self.tell_of(core, &id);
    }

    /// An answer has waited for a question in vain.
    fn not_asked(&self, core: &Rc<Core>, id: ObjectId) {
        let mut wanted = self.wanted.borrow_mut();
        if wanted.get(&id).is_some_and(|wanted| wanted.answer.is_some()) {
            let waited = wanted.remove(&id);
            drop(wanted);
            if let Some(Wanted { lane, answer: Some(answer), .. }) = waited {
                core.tell_transfer(ToTransfer::Lane(lane, LaneNews::Said(answer)));
            }
        }
    }

    /// Sees to a worker's get by asking the nodes of the owners. False: it is for the control thread.
    pub fn get_ahead(
        &self,
        core: &Rc<Core>,
        conn: ClientId,
        request: i64,
        objects: impl Iterator<Item = (ObjectId, Owner)>,
    ) -> bool {
        if self.sources.borrow().is_empty() || core.shards() > 1 {
            return false;
        }
        let objects: Vec<(ObjectId, Owner)> = objects.take(AHEAD_OBJECTS_MAX + 1).collect();
        let missing = || objects.iter().filter(|(id, _)| core.has(id) != Some(true));
        let has_room = self.ahead.borrow().len().max(self.wanted.borrow().len()) + objects.len() <= AHEAD_MAX;
        let can_ask = |(id, owner): &(ObjectId, Owner)| match self.wanted.borrow().get(id) {
            Some(wanted) => !wanted.told && wanted.answer.is_none(),
            None => self.sources.borrow().contains_key(&owner.node),
        };
        let is_ahead = has_room && objects.len() <= AHEAD_OBJECTS_MAX && missing().next().is_some();
        if !is_ahead || !missing().all(can_ask) {
            return false;
        }
        for (id, owner) in missing() {
            self.ask_ahead(core, *id, owner);
        }
        let number = self.number();
        self.ahead.borrow_mut().insert((conn, request), Ahead { number, objects });
        core.io.after(AHEAD_FOR, move |core| {
            let lanes = &core.lanes;
            if lanes.ahead.borrow().get(&(conn, request)).is_some_and(|ahead| ahead.number == number) {
                lanes.tell_control(core, conn, request);
            }
        });
        true
    }

    fn ask_ahead(&self, core: &Rc<Core>, id: ObjectId, owner: &Owner) {
        // The copy that comes is told of.
        core.sightings.owner(core, owner.worker, || owner.clone());
        let lane = self.sources.borrow().get(&owner.node).and_then(|lanes| lane_of(lanes, &id));
        let Some(lane) = lane.filter(|_| !self.wanted.borrow().contains_key(&id)) else {
            return;
        };
        self.wanted.borrow_mut().insert(id, Wanted { owner: owner.worker, lane, told: false, answer: None });
        self.with(core, lane, |lane| {
            lane.writer.say(Frame::new(Kind::WantIfThere, wire::ObjectId(id.0)));
            Ok(())
        });
    }

    /// A get is over. True: nobody else has heard of it.
    pub fn get_over(&self, conn: ClientId, request: i64) -> bool {
        self.ahead.borrow_mut().remove(&(conn, request)).is_some()
    }

    /// A client is gone, with its gets.
    pub fn gets_over(&self, conn: ClientId) {
        self.ahead.borrow_mut().retain(|(of, _), _| *of != conn);
    }

    /// Tells the control thread of the gets of an object that the core can't see to. False: there are none.
    fn tell_of(&self, core: &Rc<Core>, id: &ObjectId) -> bool {
        let gets: Vec<(ClientId, i64)> = {
            let ahead = self.ahead.borrow();
            let of_object = ahead.iter().filter(|(_, get)| get.objects.iter().any(|(object, _)| object == id));
            of_object.map(|(get, _)| *get).collect()
        };
        gets.iter().for_each(|(conn, request)| self.tell_control(core, *conn, *request));
        !gets.is_empty()
    }

    fn tell_control(&self, core: &Rc<Core>, conn: ClientId, request: i64) {
        let get = self.ahead.borrow_mut().remove(&(conn, request));
        if let Some(Ahead { objects, .. }) = get {
            let here = objects.iter().map(|(id, _)| core.has(id)).collect();
            let message = ClientMessage::Fetch { id: FetchId::Get(request), objects, here };
            core.tell_control(ToControl::Message { conn, message });
        }
    }

    /// A lane to a node that objects are fetched from is open, or is closed.
    pub(super) fn source(&self, node: NodeId, lane: LaneId, is_open: bool) {
        let mut sources = self.sources.borrow_mut();
        let lanes = sources.entry(node).or_default();
        lanes.retain(|open| *open != lane);
        if is_open {
            lanes.push(lane);
        }
        if lanes.is_empty() {
            sources.remove(&node);
        }
    }
}
