//! Small objects that other nodes want, sent by the core that has the lane and the object: nobody else is woken for them.
//!
//! What is larger, is not here, is on disk or on another shard, and whatever comes while enough is under way, goes to the thread that moves
//! objects ([`crate::ray::transfer`]).

use std::rc::Rc;
use std::sync::Arc;

use raylet_shard::ids::{ClientId, ObjectId};
use raylet_shard::store::{Placement, StoreEffect, StoreEvent};
use raylet_transport::bulk::frame::{Frame, Kind, WHOLE_MAX_BYTES};
use raylet_transport::bulk::lane::Place;
use raylet_transport::ids as wire;
use raylet_tuning::Segment;

use super::{Lane, Lanes, BY_LANE};
use crate::bridge::Requester;
use crate::core_loop::Core;
use crate::ray::transfer::UNOFFERED_MAX_BYTES;
use crate::spill::memory::ArenaMemory;

/// Objects that a core sends on one lane by itself at a time. Further ones take turns with all others.
pub const GOING_MAX: usize = 4;

/// Marks the tickets of chunks that a core sends by itself.
const OWN_TICKET: u64 = 1 << 63;

/// The store's client that sends; see [`crate::ray::transfer`] for its others.
fn sender() -> ClientId {
    Requester::Transfer.tag(3)
}

impl Lane {
    /// Answers a want with the object, if it is one for the core. False: it is not.
    pub(super) fn serve(&mut self, core: &Rc<Core>, frame: &Frame) -> bool {
        let is_want = matches!(frame.kind, Kind::Want | Kind::WantFromYou | Kind::WantIfThere);
        let id = ObjectId(frame.object.0);
        if self.is_ours || !is_want || self.going.len() >= GOING_MAX || core.has(&id) != Some(true) {
            return false;
        }
        let Some(place) = core.lanes.hold(core, id) else {
            return false;
        };
        let total_bytes = place.data_bytes + place.metadata_bytes;
        let is_small = total_bytes > 0 && total_bytes <= UNOFFERED_MAX_BYTES.min(self.chunk_max_bytes.into());
        // One in a file of its own is rare.
        let segment = core.segments().get(place.segment as usize).filter(|_| is_small).cloned();
        let sent = segment.is_some_and(|segment| self.send(core, id, &place, segment));
        if !sent {
            core.lanes.let_go(core, id);
        }
        sent
    }

    fn send(&mut self, core: &Rc<Core>, id: ObjectId, place: &Placement, segment: Arc<Segment>) -> bool {
        let (total_bytes, metadata_bytes) = (place.data_bytes + place.metadata_bytes, place.metadata_bytes);
        let (len_bytes, push) = (total_bytes as u32, rand::random());
        let about =
            |kind| Frame { push, total_bytes, metadata_bytes, len_bytes, ..Frame::new(kind, wire::ObjectId(id.0)) };
        if len_bytes <= WHOLE_MAX_BYTES {
            let mut bytes = vec![0; len_bytes as usize].into_boxed_slice();
            if let Err(error) = segment.read_at(place.data_offset, &mut bytes) {
                tracing::warn!(object = %id, %error, "an object can't be read");
                return false;
            }
            self.writer.send_whole(about(Kind::Whole), bytes);
            core.lanes.used(|used| used.sent_by_core(total_bytes, false));
            core.lanes.let_go(core, id);
            return true;
        }
        let ticket = OWN_TICKET | core.lanes.number();
        self.going.push((ticket, id));
        core.lanes.used(|used| used.sent_by_core(total_bytes, self.lends));
        if self.lends {
            let (segment, offset) = (place.segment, place.data_offset);
            self.writer.lend(ticket, Frame { segment, offset, ..about(Kind::Lent) });
        } else {
            let place = Place { memory: Rc::new(ArenaMemory(segment)), offset: place.data_offset };
            self.writer.send_chunk(ticket, about(Kind::Chunk), place);
        }
        true
    }

    /// A chunk is out. False: it is not one that the core sends by itself.
    pub(super) fn is_out(&mut self, core: &Rc<Core>, ticket: u64) -> bool {
        let at = self.going.iter().position(|(going, _)| *going == ticket);
        if let Some(at) = at {
            let (_, id) = self.going.swap_remove(at);
            core.lanes.let_go(core, id);
        }
        at.is_some()
    }

    /// The lane is closed, and the kernel reads nothing for it any more.
    pub(super) fn goes_no_more(&mut self, core: &Rc<Core>) {
        for (_, id) in self.going.drain(..) {
            core.lanes.let_go(core, id);
        }
    }
}

impl Lanes {
    /// Takes a reference on an object that is here. A client of the store has one on each object at most, so they are counted.
    fn hold(&self, core: &Rc<Core>, id: ObjectId) -> Option<Placement> {
        let (client, token, wait) = (sender(), BY_LANE, false);
        let Some(StoreEffect::Got { place, .. }) = self.ask_store(core, StoreEvent::Get { client, token, id, wait })
        else {
            return None;
        };
        place.inspect(|_| *self.held.borrow_mut().entry(id).or_default() += 1)
    }

    fn let_go(&self, core: &Rc<Core>, id: ObjectId) {
        {
            let mut held = self.held.borrow_mut();
            let count = held.get_mut(&id).map(|count| {
                *count -= 1;
                *count
            });
            if count != Some(0) {
                return;
            }
            held.remove(&id);
        }
        core.store_here(StoreEvent::Release { client: sender(), id });
    }
}
