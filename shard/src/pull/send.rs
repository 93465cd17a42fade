//! Objects that other nodes asked for, handed out in chunks.
//!
//! What is on its way is bounded, for each node and in all. The pushes to a node take turns, and so do the nodes, so that a small
//! object does not wait behind a large one. As in Ray's `push_manager.cc`, being asked again for an object that is
//! being pushed starts it anew where it is: the chunks follow in a circle until as many went out as there are.
//!
//! An object can be sent on while it is still being received ([`SendEvent::Partial`]): its chunks go out in the order in which they came,
//! and a push that has sent all that is there waits for the next one.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::receiving::bit_of;
use crate::ids::{NodeId, ObjectId};

/// What happens to the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendEvent {
    /// A node asked for an object that is here and has so many chunks.
    Push {
        /// Who asked.
        node: NodeId,
        /// The object.
        object: ObjectId,
        /// How many chunks it has.
        chunks: u32,
    },
    /// A chunk was answered.
    Sent {
        /// By whom.
        node: NodeId,
        /// Its object.
        object: ObjectId,
        /// False: the node can't be reached, and gets no more of the object.
        ok: bool,
    },
    /// A node wants no more of an object.
    Cancel {
        /// Who asked for it.
        node: NodeId,
        /// The object.
        object: ObjectId,
    },
    /// An object is being received, and can be pushed: what is there of it, and what comes, follows as [`SendEvent::Arrived`].
    Partial {
        /// The object.
        object: ObjectId,
        /// How many chunks it has.
        chunks: u32,
    },
    /// A chunk of such an object is there.
    Arrived {
        /// The object.
        object: ObjectId,
        /// The chunk's number.
        index: u32,
    },
    /// Read such an object no more: it is given up, or nobody wants it of this node. Answered with [`SendEffect::Returned`].
    GiveUp {
        /// The object.
        object: ObjectId,
    },
    /// A node is dead.
    NodeGone {
        /// The node.
        node: NodeId,
    },
}

/// What the sender wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendEffect {
    /// Send a chunk; answer with [`SendEvent::Sent`].
    Send {
        /// To whom.
        node: NodeId,
        /// The object.
        object: ObjectId,
        /// The chunk's number.
        index: u32,
    },
    /// The push of an object to a node ends before all of it went out: the node has to ask again. [`SendEffect::Finished`] follows.
    Withdrawn {
        /// To whom it went.
        node: NodeId,
        /// The object.
        object: ObjectId,
    },
    /// Nothing is read of a partial object any more, and nothing will be.
    Returned {
        /// The object.
        object: ObjectId,
    },
    /// Nothing of this object is under way to this node any more: its reference can go.
    Finished {
        /// To whom it went.
        node: NodeId,
        /// The object.
        object: ObjectId,
    },
}

#[derive(Debug)]
struct Push {
    chunks: u32,
    next: u32,
    left: u32,
    in_flight: u32,
    /// All that is there has been sent: it has no turn before more has come.
    starved: bool,
}

/// An object that was sent on before all of it was there.
#[derive(Debug)]
struct Part {
    chunks: u32,
    /// The chunks that are there, as they came.
    order: Vec<u32>,
    have: Vec<u64>,
    starved: SmallVec<[NodeId; 4]>,
    /// Nodes that it is being pushed to.
    pushes: u32,
    given_up: bool,
}

impl Push {
    /// Nothing more goes out.
    fn end(&mut self) {
        (self.left, self.starved) = (0, false);
    }
}

#[derive(Debug, Default)]
struct Peer {
    pushes: FxHashMap<ObjectId, Push>,
    /// Pushes with chunks left, in turn.
    turns: VecDeque<ObjectId>,
    in_flight: usize,
}

/// Hands out chunks.
#[derive(Debug)]
pub struct Sender {
    peer_max: usize,
    all_max: usize,
    peers: FxHashMap<NodeId, Peer>,
    /// Nodes with something to send and room for it, in turn.
    turns: VecDeque<NodeId>,
    in_flight: usize,
    parts: FxHashMap<ObjectId, Part>,
}

impl Sender {
    /// At most `peer_max` chunks are under way to a node, and `all_max` in all.
    pub fn new(peer_max: usize, all_max: usize) -> Self {
        Self {
            peer_max: peer_max.max(1),
            all_max: all_max.max(1),
            peers: FxHashMap::default(),
            turns: VecDeque::new(),
            in_flight: 0,
            parts: FxHashMap::default(),
        }
    }

    /// Takes one event and appends what it leads to.
    pub fn handle(&mut self, event: SendEvent, out: &mut Vec<SendEffect>) {
        match event {
            SendEvent::Push { node, object, chunks } => self.push(node, object, chunks, out),
            SendEvent::Sent { node, object, ok } => self.sent(node, object, ok, out),
            SendEvent::Cancel { node, object } => self.cancel(node, object, out),
            SendEvent::Partial { object, chunks } => self.partial(object, chunks),
            SendEvent::Arrived { object, index } => self.arrived(object, index),
            SendEvent::GiveUp { object } => self.give_up(object, out),
            SendEvent::NodeGone { node } => self.node_gone(node, out),
        }
        self.send(out);
    }

    /// Objects under way, once for each node.
    pub fn len(&self) -> usize {
        self.peers.values().map(|peer| peer.pushes.len()).sum()
    }

    /// True where nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Chunks under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn push(&mut self, node: NodeId, object: ObjectId, chunks: u32, out: &mut Vec<SendEffect>) {
        if chunks == 0 {
            return out.push(SendEffect::Finished { node, object });
        }
        if self.parts.get(&object).is_some_and(|part| part.given_up) {
            out.push(SendEffect::Withdrawn { node, object });
            if self.peers.get(&node).is_none_or(|peer| !peer.pushes.contains_key(&object)) {
                out.push(SendEffect::Finished { node, object });
            }
            return;
        }
        let peer = self.peers.entry(node).or_default();
        match peer.pushes.get_mut(&object) {
            Some(push) => {
                if push.left == 0 {
                    peer.turns.push_back(object);
                }
                push.left = push.chunks;
            }
            None => {
                peer.pushes.insert(object, Push { chunks, next: 0, left: chunks, in_flight: 0, starved: false });
                peer.turns.push_back(object);
                if let Some(part) = self.parts.get_mut(&object) {
                    part.pushes += 1;
                }
            }
        }
        self.queue(node);
    }

    fn partial(&mut self, object: ObjectId, chunks: u32) {
        self.parts.entry(object).or_insert_with(|| Part {
            chunks,
            order: Vec::with_capacity(chunks as usize),
            have: vec![0; chunks.div_ceil(64) as usize],
            starved: SmallVec::new(),
            pushes: 0,
            given_up: false,
        });
    }

    fn arrived(&mut self, object: ObjectId, index: u32) {
        let Some(part) = self.parts.get_mut(&object).filter(|part| index < part.chunks && !part.given_up) else {
            return;
        };
        let (word, bit) = bit_of(index);
        if part.have[word] & bit != 0 {
            return;
        }
        part.have[word] |= bit;
        part.order.push(index);
        for node in std::mem::take(&mut part.starved) {
            let Some(peer) = self.peers.get_mut(&node) else {
                continue;
            };
            if let Some(push) = peer.pushes.get_mut(&object).filter(|push| push.starved) {
                push.starved = false;
                peer.turns.push_back(object);
            }
            self.queue(node);
        }
    }

    fn give_up(&mut self, object: ObjectId, out: &mut Vec<SendEffect>) {
        let Some(part) = self.parts.get_mut(&object).filter(|part| !part.given_up) else {
            return;
        };
        part.given_up = true;
        if part.pushes == 0 {
            self.parts.remove(&object);
            return out.push(SendEffect::Returned { object });
        }
        let pushed = self.peers.iter().filter(|(_, peer)| peer.pushes.contains_key(&object));
        let mut nodes: Vec<NodeId> = pushed.map(|(node, _)| *node).collect();
        nodes.sort_unstable();
        for node in nodes {
            out.push(SendEffect::Withdrawn { node, object });
            self.cancel(node, object, out);
        }
    }

    /// A push has ended.
    fn finished(&mut self, node: NodeId, object: ObjectId, out: &mut Vec<SendEffect>) {
        out.push(SendEffect::Finished { node, object });
        let Some(part) = self.parts.get_mut(&object) else {
            return;
        };
        part.pushes -= 1;
        part.starved.retain(|starved| *starved != node);
        if part.given_up && part.pushes == 0 {
            self.parts.remove(&object);
            out.push(SendEffect::Returned { object });
        }
    }

    fn sent(&mut self, node: NodeId, object: ObjectId, ok: bool, out: &mut Vec<SendEffect>) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let Some(push) = peer.pushes.get_mut(&object).filter(|push| push.in_flight > 0) else {
            return;
        };
        push.in_flight -= 1;
        peer.in_flight -= 1;
        self.in_flight -= 1;
        if !ok && push.left > 0 {
            return self.cancel(node, object, out);
        }
        if push.left == 0 && push.in_flight == 0 {
            peer.pushes.remove(&object);
            self.finished(node, object, out);
        }
        self.queue(node);
    }

    fn cancel(&mut self, node: NodeId, object: ObjectId, out: &mut Vec<SendEffect>) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let Some(push) = peer.pushes.get_mut(&object) else {
            return;
        };
        push.end();
        peer.turns.retain(|turn| *turn != object);
        if let Some(part) = self.parts.get_mut(&object) {
            part.starved.retain(|starved| *starved != node);
        }
        if push.in_flight == 0 {
            peer.pushes.remove(&object);
            self.finished(node, object, out);
        }
        self.queue(node);
    }

    fn node_gone(&mut self, node: NodeId, out: &mut Vec<SendEffect>) {
        let Some(peer) = self.peers.remove(&node) else {
            return;
        };
        self.in_flight -= peer.in_flight;
        self.turns.retain(|turn| *turn != node);
        let mut objects: Vec<ObjectId> = peer.pushes.into_keys().collect();
        objects.sort_unstable();
        objects.into_iter().for_each(|object| self.finished(node, object, out));
    }

    /// Gives a node its turn if it has something to send and room for it.
    fn queue(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else {
            return;
        };
        if peer.pushes.is_empty() {
            self.peers.remove(&node);
            self.turns.retain(|turn| *turn != node);
        } else if !peer.turns.is_empty() && peer.in_flight < self.peer_max && !self.turns.contains(&node) {
            self.turns.push_back(node);
        }
    }

    fn send(&mut self, out: &mut Vec<SendEffect>) {
        while self.in_flight < self.all_max {
            let Some(node) = self.turns.pop_front() else {
                return;
            };
            let Some(peer) = self.peers.get_mut(&node) else {
                continue;
            };
            let Some(object) = peer.turns.pop_front() else {
                continue;
            };
            if let Some(push) = peer.pushes.get_mut(&object) {
                let index = match self.parts.get_mut(&object) {
                    None => push.next,
                    Some(part) => match part.order.get(push.next as usize) {
                        Some(index) => *index,
                        None => {
                            push.starved = true;
                            part.starved.push(node);
                            self.queue(node);
                            continue;
                        }
                    },
                };
                out.push(SendEffect::Send { node, object, index });
                push.next = (push.next + 1) % push.chunks;
                push.left -= 1;
                push.in_flight += 1;
                peer.in_flight += 1;
                self.in_flight += 1;
                if push.left > 0 {
                    peer.turns.push_back(object);
                }
            }
            self.queue(node);
        }
    }

    /// Verifies what the state says twice.
    pub fn check(&self) -> Result<(), String> {
        let mut in_flight = 0;
        for (node, peer) in &self.peers {
            let of_pushes: usize = peer.pushes.values().map(|push| push.in_flight as usize).sum();
            in_flight += of_pushes;
            let waiting = peer.pushes.values().filter(|push| push.left > 0 && !push.starved).count();
            if (of_pushes, waiting) != (peer.in_flight, peer.turns.len()) || peer.in_flight > self.peer_max {
                return Err(format!("{node}: {of_pushes} chunks in flight, {waiting} pushes wait: {peer:?}"));
            }
            let stuck = waiting > 0 && peer.in_flight < self.peer_max && !self.turns.contains(node);
            if stuck || (waiting > 0 && self.in_flight == 0) {
                return Err(format!("{node} has something to send and does not: {peer:?}"));
            }
        }
        for (object, part) in &self.parts {
            let pushes = self.peers.values().filter_map(|peer| peer.pushes.get(object));
            let (pushes, starved) =
                pushes.fold((0, 0), |(all, starved), push| (all + 1, starved + usize::from(push.starved)));
            if (pushes, starved) != (part.pushes, part.starved.len()) || (part.given_up && pushes == 0) {
                return Err(format!("{object}: {pushes} pushes, {starved} starved: {part:?}"));
            }
        }
        if in_flight != self.in_flight || in_flight > self.all_max {
            return Err(format!("{} chunks in flight, counted {in_flight}", self.in_flight));
        }
        Ok(())
    }
}
