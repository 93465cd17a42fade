//! Pairs of nodes that speak over lanes: an offer first, then chunks whose bytes go to their place while others come.
//!
//! A lane keeps what is on it in order; between lanes there is none. It breaks at random: all that is on it is lost, the two ends hear of
//! it at different times, and what it was writing or reading goes on for a while.

use super::*;

/// Lanes of a pair, in each direction of asking.
const LANES: u64 = 3;

/// From who asks.
#[derive(Clone, Debug)]
pub(super) enum Up {
    /// `direct`: it was sent elsewhere before.
    Want {
        object: ObjectId,
        direct: bool,
    },
    WantIfThere {
        object: ObjectId,
    },
    Stop {
        object: ObjectId,
    },
    Accept {
        object: ObjectId,
        push: u64,
    },
}

/// From who has the object.
#[derive(Clone, Debug)]
pub(super) enum Down {
    Offer {
        head: ChunkHead,
    },
    Chunk {
        head: ChunkHead,
        version: u32,
    },
    /// Another node that asked before sends it.
    Elsewhere {
        object: ObjectId,
        node: usize,
    },
    /// Nothing more comes of it: ask again.
    Withdrawn {
        object: ObjectId,
    },
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    /// The chunk that is landing: nothing else is read before it has.
    landing: Option<u64>,
}

/// Who asks, who has, and which of their lanes.
pub(super) type LaneId = (usize, usize, u64);

/// A chunk on its way from a lane into the store.
#[derive(Debug)]
pub(super) struct Landing {
    node: usize,
    object: ObjectId,
    place: u64,
    offset: u64,
    len: u64,
    bytes: Written,
    written: bool,
    /// Its lane has broken.
    broken: bool,
}

/// A chunk that waits on its lane for memory.
#[derive(Debug)]
pub(super) struct Held {
    node: usize,
    object: ObjectId,
    /// Its lane has broken.
    broken: bool,
}

/// A chunk on its way from the store to a lane.
#[derive(Debug)]
pub(super) struct Reading {
    lane: LaneId,
    head: ChunkHead,
    place: u64,
    version: u32,
    broken: bool,
}

impl World {
    pub(super) fn is_bulk(&self, one: usize, other: usize) -> bool {
        self.bulk.contains(&(one.min(other), one.max(other)))
    }

    fn lane(&mut self, asker: usize, holder: usize) -> &mut Lane {
        let id = (asker, holder, self.rng.below(LANES));
        self.lanes.entry(id).or_default()
    }

    pub(super) fn say(&mut self, asker: usize, holder: usize, up: Up) {
        if self.nodes[holder].alive {
            self.lane(asker, holder).up.push_back(up);
        }
    }

    pub(super) fn reply(&mut self, asker: usize, holder: usize, down: Down) {
        if self.nodes[asker].alive {
            self.lane(asker, holder).down.push_back(down);
        }
    }

    pub(super) fn lanes_are_quiet(&self) -> bool {
        self.lanes.is_empty() && self.landings.is_empty() && self.readings.is_empty() && self.held.is_empty()
    }

    /// Something happens on a lane, or to a chunk between a lane and a store.
    pub(super) fn move_lanes(&mut self) -> Result<(), String> {
        if !self.held.is_empty() && self.rng.below(50) == 0 {
            return self.wait_no_longer();
        }
        match self.rng.below(3) {
            0 if !self.readings.is_empty() => self.read_one(),
            1 if !self.landings.is_empty() => self.land_one(),
            _ => self.deliver_on_a_lane(),
        }
    }

    fn deliver_on_a_lane(&mut self) -> Result<(), String> {
        let at = self.rng.below(self.lanes.len().max(1) as u64) as usize;
        let Some(id) = self.lanes.keys().nth(at).copied() else {
            return Ok(());
        };
        if !self.resting && self.rng.permille(10) {
            self.break_lane(id);
            return Ok(());
        }
        let upwards = self.rng.permille(500);
        let Some(lane) = self.lanes.get_mut(&id) else {
            return Ok(());
        };
        let (up, down) = match (upwards, lane.landing) {
            (true, _) => (lane.up.pop_front(), None),
            (false, None) => (None, lane.down.pop_front()),
            (false, Some(_)) => (None, None),
        };
        if lane.up.is_empty() && lane.down.is_empty() && lane.landing.is_none() && down.is_none() {
            self.lanes.remove(&id);
        }
        if let Some(up) = up {
            self.hear_asker(id, up)?;
        }
        if let Some(down) = down {
            self.hear_holder(id, down)?;
        }
        Ok(())
    }

    fn hear_asker(&mut self, (asker, holder, _): LaneId, up: Up) -> Result<(), String> {
        match up {
            Up::Want { object, direct } => self.wanted_on_a_lane(holder, asker, object, direct),
            Up::WantIfThere { object } => self.wanted_now(holder, asker, object),
            Up::Stop { object } => {
                self.nodes[holder].spread.served(&object, &node_id(asker), false);
                self.nodes[holder].deferred.retain(|(deferred, by, _)| (*deferred, *by) != (object, asker));
                self.cancel(holder, asker, object)
            }
            Up::Accept { object, push } => {
                let node = &mut self.nodes[holder];
                let is_offered = node.offered.contains(&(object, asker));
                let is_sent = node.sending.get(&object).is_some_and(|nodes| nodes.contains(&asker));
                if !(is_offered || is_sent) || node.pushes.get(&object) != Some(&push) {
                    // An offer that was overtaken by another one, or ended meanwhile: who asked believes in neither any more.
                    self.reply(asker, holder, Down::Withdrawn { object });
                    return self.cancel(holder, asker, object);
                }
                node.offered.remove(&(object, asker));
                self.push(holder, asker, object)
            }
        }
    }

    pub(super) fn wanted_on_a_lane(
        &mut self,
        holder: usize,
        asker: usize,
        object: ObjectId,
        direct: bool,
    ) -> Result<(), String> {
        let now = self.now;
        let node = &mut self.nodes[holder];
        if !node.serves(&object) && !node.receiver.is_expected(&object) {
            if self.rng.permille(500) {
                self.reply(asker, holder, Down::Withdrawn { object });
            } else {
                self.defer(holder, asker, object);
            }
            return Ok(());
        }
        // One of a single chunk is not worth a tree.
        let is_small = node.serves(&object) && node.source(&object).is_some_and(|copy| copy.size <= CHUNK);
        let serve = if is_small { Serve::Here } else { node.spread.asked(object, node_id(asker), direct, now) };
        if let Serve::Elsewhere(other) = serve {
            self.report.elsewhere += 1;
            self.reply(asker, holder, Down::Elsewhere { object, node: node_of(other) });
            return Ok(());
        }
        if !self.offer(holder, asker, object)? {
            self.defer(holder, asker, object);
        }
        Ok(())
    }

    /// Offers an object that is here or coming, or sends it. False: nothing is there of it yet.
    pub(super) fn offer(&mut self, holder: usize, asker: usize, object: ObjectId) -> Result<bool, String> {
        if !self.hold(holder, object) && !self.lend(holder, object)? {
            return Ok(false);
        }
        let copy = self.nodes[holder].source(&object).map(|copy| (copy.sealed, copy.size));
        let (sealed, total_bytes) = copy.ok_or_else(|| format!("node {holder} holds {object}, which it has not"))?;
        if sealed && total_bytes <= CHUNK {
            return self.push(holder, asker, object).map(|()| true);
        }
        let node = &mut self.nodes[holder];
        node.offered.insert((object, asker));
        let push = node.pushes[&object];
        let from = node_id(holder);
        let head = ChunkHead { object, from, push, index: 0, total_bytes, metadata_bytes: 1, len_bytes: 0 };
        self.reply(asker, holder, Down::Offer { head });
        Ok(true)
    }

    /// Has what is there of an object lent to the sender. False: there is no memory for it yet.
    fn lend(&mut self, node: usize, object: ObjectId) -> Result<bool, String> {
        let number = self.number();
        let Node { receiver, lent, pushes, .. } = &mut self.nodes[node];
        let Some(part) = receiver.lend(&object) else {
            return Ok(false);
        };
        // One that is about to be returned is not lent anew before it was.
        if lent.contains_key(&object) {
            return Ok(pushes.contains_key(&object));
        }
        lent.insert(object, false);
        pushes.insert(object, number);
        let chunks = part.total_bytes.div_ceil(CHUNK) as u32;
        let there: Vec<u32> = part.chunks().collect();
        self.send(node, SendEvent::Partial { object, chunks })?;
        there.into_iter().try_for_each(|index| self.send(node, SendEvent::Arrived { object, index })).map(|()| true)
    }

    /// What is lent is to be given up.
    pub(super) fn recall(&mut self, node: usize, object: ObjectId) -> Result<(), String> {
        self.report.recalled += 1;
        let offered = self.nodes[node].offered.range((object, 0)..=(object, usize::MAX)).map(|(_, asker)| *asker);
        for asker in offered.collect::<Vec<_>>() {
            self.nodes[node].offered.remove(&(object, asker));
            self.nodes[node].spread.served(&object, &node_id(asker), true);
            self.reply(asker, node, Down::Withdrawn { object });
        }
        self.send(node, SendEvent::GiveUp { object })
    }

    /// Nothing is read any more of what was lent.
    pub(super) fn returned(&mut self, node: usize, object: ObjectId) -> Result<(), String> {
        let Node { lent, pushes, store, .. } = &mut self.nodes[node];
        pushes.remove(&object);
        match lent.remove(&object) {
            None => Err(format!("node {node} returns {object}, which was not lent")),
            Some(false) => self.receive(node, ReceiveEvent::Returned { object }),
            Some(true) => {
                if let Some(copy) = store.copies.get_mut(&object) {
                    copy.users -= 1;
                }
                self.serve(node)
            }
        }
    }

    /// Ends an offer or a push.
    pub(super) fn cancel(&mut self, holder: usize, asker: usize, object: ObjectId) -> Result<(), String> {
        let node = &mut self.nodes[holder];
        node.offered.remove(&(object, asker));
        node.spread.served(&object, &node_id(asker), true);
        self.send(holder, SendEvent::Cancel { node: node_id(asker), object })?;
        self.let_hold_go(holder, object)
    }

    /// A holder hears that a lane broke: it goes on with nothing for who asked.
    pub(super) fn holder_lost_lane(&mut self, holder: usize, asker: usize) -> Result<(), String> {
        let node = &mut self.nodes[holder];
        node.deferred.retain(|(_, by, _)| *by != asker);
        let sent = node.sending.iter().filter(|(_, nodes)| nodes.contains(&asker)).map(|(object, _)| *object);
        let offered = node.offered.iter().filter(|(_, by)| *by == asker).map(|(object, _)| *object);
        let objects: BTreeSet<ObjectId> = sent.chain(offered).collect();
        objects.into_iter().try_for_each(|object| self.cancel(holder, asker, object))
    }

    fn hear_holder(&mut self, id: LaneId, down: Down) -> Result<(), String> {
        let (asker, holder, _) = id;
        match down {
            Down::Offer { head } => self.receive(asker, ReceiveEvent::Offered { head }),
            Down::Elsewhere { object, node } => {
                let (from, to) = (node_id(holder), node_id(node));
                self.tell(asker, PullEvent::Elsewhere { object, from, to })?;
                self.nodes[asker].sent_elsewhere.insert(object);
                Ok(())
            }
            Down::Withdrawn { object } => self.tell(asker, PullEvent::Failed { object, from: node_id(holder) }),
            Down::Chunk { head, version } => {
                let ticket = self.number();
                self.tickets.insert(ticket, (NOBODY, asker, head, version, head.index));
                self.receive(asker, ReceiveEvent::Landing { ticket, head })?;
                if self.landings.contains_key(&ticket) || self.held.contains_key(&ticket) {
                    self.lanes.entry(id).or_default().landing = Some(ticket);
                }
                Ok(())
            }
        }
    }

    /// The receiver says where a chunk goes.
    pub(super) fn land(&mut self, node: usize, ticket: u64, object: ObjectId, offset: u64) -> Result<(), String> {
        let Some((_, _, head, version, index)) = self.tickets.remove(&ticket) else {
            return Err(format!("chunk {ticket} lands twice"));
        };
        let copy = self.nodes[node].store.copies.get(&object).filter(|copy| !copy.sealed);
        let place = copy.ok_or_else(|| format!("chunk {ticket} lands in {object}, which is not being received"))?.place;
        let bytes = (version, index);
        let len = head.len_bytes;
        let broken = self.held.remove(&ticket).is_some_and(|held| held.broken);
        let landing = Landing { node, object, place, offset, len, bytes, written: false, broken };
        self.landings.insert(ticket, landing);
        Ok(())
    }

    /// Bytes of a chunk come, or it has landed.
    fn land_one(&mut self) -> Result<(), String> {
        let at = self.rng.below(self.landings.len() as u64) as usize;
        let Some(ticket) = self.landings.keys().nth(at).copied() else {
            return Ok(());
        };
        let (goes_on, spoilt) = (self.rng.permille(800), !self.resting && self.rng.permille(20));
        let Some(landing) = self.landings.get_mut(&ticket) else {
            return Ok(());
        };
        let Landing { node, object, place, offset, len, bytes, broken, .. } = *landing;
        let ok = !broken && !spoilt;
        // Bytes that are not as they were sent are of no version.
        let bytes = if ok { bytes } else { (0, bytes.1) };
        if goes_on || (ok && !landing.written) {
            landing.written |= ok;
            return self.nodes[node].store.write(&object, Some(place), offset, len, bytes);
        }
        self.landings.remove(&ticket);
        self.go_on_behind(ticket);
        if ok {
            self.report.landed += 1;
            // Whatever came before, the last bytes are right.
            self.nodes[node].store.write(&object, Some(place), offset, len, bytes)?;
        } else {
            self.report.harmed += 1;
        }
        self.receive(node, ReceiveEvent::Landed { ticket, object, ok })
    }

    /// A chunk holds its lane up no longer.
    fn go_on_behind(&mut self, ticket: u64) {
        self.lanes.values_mut().filter(|lane| lane.landing == Some(ticket)).for_each(|lane| lane.landing = None);
        self.lanes.retain(|_, lane| !(lane.up.is_empty() && lane.down.is_empty() && lane.landing.is_none()));
    }

    /// A chunk waits for memory.
    pub(super) fn hold_on_lane(&mut self, node: usize, ticket: u64, object: ObjectId) {
        // The store may have answered while this was being said.
        if self.tickets.contains_key(&ticket) {
            self.report.held += 1;
            self.held.insert(ticket, Held { node, object, broken: false });
        }
    }

    /// A chunk that perhaps has waited for memory goes nowhere.
    pub(super) fn dropped(&mut self, ticket: u64) {
        if self.held.remove(&ticket).is_some() {
            self.go_on_behind(ticket);
        }
    }

    /// Some of the chunks that wait for memory have waited too long.
    pub(super) fn wait_no_longer(&mut self) -> Result<(), String> {
        for ticket in self.held.keys().copied().collect::<Vec<_>>() {
            let is_late = self.resting || self.rng.permille(500);
            if let Some(Held { node, object, .. }) = self.held.get(&ticket).filter(|_| is_late) {
                let (node, object) = (*node, *object);
                self.receive(node, ReceiveEvent::TooLong { ticket, object })?;
            }
        }
        Ok(())
    }

    /// The receiver hears that the lane of a chunk that waits has broken.
    pub(super) fn held_lost(&mut self, ticket: u64) -> Result<(), String> {
        let Some(Held { node, object, .. }) = self.held.remove(&ticket) else {
            return Ok(());
        };
        self.tickets.remove(&ticket);
        self.receive(node, ReceiveEvent::Landed { ticket, object, ok: false })
    }

    /// The sender wants a chunk to go out.
    pub(super) fn begin_reading(&mut self, holder: usize, asker: usize, head: ChunkHead) -> Result<(), String> {
        let copy = self.nodes[holder].source(&head.object);
        let there = copy.and_then(|copy| Some((copy.place, copy.chunk(head.index)?.0, copy.sealed)));
        let (place, version, sealed) =
            there.ok_or_else(|| format!("node {holder} sends chunk {} of {}", head.index, head.object))?;
        self.report.relayed += u64::from(!sealed);
        let lane = (asker, holder, self.rng.below(LANES));
        self.readings.push(Reading { lane, head, place, version, broken: false });
        Ok(())
    }

    /// The bytes of a chunk are on their lane, or will never be.
    fn read_one(&mut self) -> Result<(), String> {
        let at = self.rng.below(self.readings.len() as u64) as usize;
        let Reading { lane, head, place, version, broken } = self.readings.swap_remove(at);
        let (asker, holder, _) = lane;
        let object = head.object;
        let copy = self.nodes[holder].source(&object).filter(|copy| copy.place == place);
        let copy = copy.ok_or_else(|| format!("node {holder} reads {object} for {asker}, which it has given up"))?;
        if copy.chunk(head.index) != Some((version, head.index)) {
            return Err(format!("node {holder} reads chunk {} of {object} for {asker}: {copy:?}", head.index));
        }
        if !broken {
            self.lanes.entry(lane).or_default().down.push_back(Down::Chunk { head, version });
        }
        self.send(holder, SendEvent::Sent { node: node_id(asker), object, ok: !broken })
    }

    fn break_lane(&mut self, id: LaneId) {
        let (asker, holder, _) = id;
        self.report.broken += 1;
        self.strand(id);
        self.letters.push(Letter { from: asker, to: holder, message: Message::AskerLost });
        self.letters.push(Letter { from: holder, to: asker, message: Message::HolderLost });
    }

    /// What was on a lane is lost; what it wrote and read goes on for a while.
    fn strand(&mut self, id: LaneId) {
        if let Some(ticket) = self.lanes.remove(&id).and_then(|lane| lane.landing) {
            if let Some(landing) = self.landings.get_mut(&ticket) {
                landing.broken = true;
            }
            if let Some(held) = self.held.get_mut(&ticket) {
                held.broken = true;
                self.letters.push(Letter { from: id.1, to: id.0, message: Message::HeldLost { ticket } });
            }
        }
        self.readings.iter_mut().filter(|reading| reading.lane == id).for_each(|reading| reading.broken = true);
    }

    /// A node is dead, and its ends of lanes with it.
    pub(super) fn lanes_died(&mut self, dead: usize) -> Result<(), String> {
        self.landings.retain(|_, landing| landing.node != dead);
        self.held.retain(|_, held| held.node != dead);
        self.readings.retain(|reading| reading.lane.0 != dead && reading.lane.1 != dead);
        let ids = self.lanes.keys().filter(|(asker, holder, _)| *asker == dead || *holder == dead);
        for id in ids.copied().collect::<Vec<_>>() {
            self.strand(id);
        }
        for node in (0..self.nodes.len()).filter(|n| self.nodes[*n].alive).collect::<Vec<_>>() {
            let offered = self.nodes[node].offered.iter().filter(|(_, asker)| *asker == dead);
            for object in offered.map(|(object, _)| *object).collect::<Vec<_>>() {
                self.nodes[node].offered.remove(&(object, dead));
                self.let_hold_go(node, object)?;
            }
            if self.is_bulk(node, dead) {
                self.letters.push(Letter { from: dead, to: node, message: Message::HolderLost });
            }
        }
        Ok(())
    }
}
