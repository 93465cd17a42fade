//! The nodes, the owner of all objects, and what is under way between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::store_sim::Rng;
use super::model::{Copy, Create, Store, Written, CHUNK};
use super::report::Report;
use crate::ids::{NodeId, NowNs, ObjectId, WorkerId};
use crate::pull::{
    ChunkHead, Kind, PullConfig, PullEffect, PullEvent, PullManager, ReceiveEffect, ReceiveEvent, Receiver, SendEffect,
    SendEvent, Sender, Serve, Spread, Target, WishId,
};
use crate::store::StoreError;

mod clients;
mod disk;
mod lanes;
mod letters;
mod rest;
mod transfer;

use lanes::{Down, Held, Landing, Lane, LaneId, Reading, Up};

const SECOND: NowNs = 1_000_000_000;
const TIMEOUT: NowNs = 10 * SECOND;
/// Bytes of chunks that wait for room.
const WAITING_MAX: u64 = 45;
/// How long a node that asked is remembered where the object is not here.
const DEFER: NowNs = 10 * SECOND;
/// Objects that there are at a time in a small world; a large one has a few for each node.
const OBJECTS: u64 = 24;
/// One seed in so many gives a large world.
const LARGE_EVERY: u64 = 100;
/// Nodes of a large world: 20 up to 200.
const LARGE_MIN: u64 = 20;
const LARGE_MAX: u64 = 200;
/// Up to so many nodes all of them are checked after every step; of more the one that acted, and all of them now and then.
const CHECKED_NODES_MAX: usize = 7;
const CHECK_ALL_EVERY: u64 = 64;
/// Letters in a moment of rest for each node: more than a few times all chunks of all its wishes is a mistake.
const AT_ONCE_MAX: u64 = 20_000;
/// Who sent what is not answered.
const NOBODY: usize = usize::MAX;
const OWNER: WorkerId = WorkerId([9; 28]);

/// What the owner knows of an object.
#[derive(Clone, Debug, Default)]
struct Known {
    size: u64,
    version: u32,
    /// Where it is kept; `None`: it is being made.
    home: Option<usize>,
    locations: BTreeSet<usize>,
    /// On whose disk it is.
    spilled: Option<usize>,
}

impl Known {
    /// It has to be made, again or for the first time.
    fn is_nowhere(&self) -> bool {
        self.home.is_none() && self.locations.is_empty() && self.spilled.is_none()
    }
}

#[derive(Clone, Debug)]
struct Wanted {
    kind: Kind,
    /// Each object, and whether it has been here.
    objects: BTreeMap<ObjectId, bool>,
}

#[derive(Debug)]
struct Node {
    alive: bool,
    manager: PullManager,
    receiver: Receiver,
    sender: Sender,
    store: Store,
    /// Effects that are carried out in order, also where one leads to more of them.
    pulls: VecDeque<PullEffect>,
    receives: VecDeque<ReceiveEffect>,
    sends: VecDeque<SendEffect>,
    is_pulling: bool,
    is_receiving: bool,
    is_sending: bool,
    wishes: BTreeMap<WishId, Wanted>,
    subscribed: BTreeSet<ObjectId>,
    /// Who asked for what is not here, until when.
    deferred: Vec<(ObjectId, usize, NowNs)>,
    /// Objects on which the sender has a reference, for how many nodes.
    sending: BTreeMap<ObjectId, BTreeSet<usize>>,
    /// Objects that were offered, to whom.
    offered: BTreeSet<(ObjectId, usize)>,
    spread: Spread,
    /// Objects that the receiver has lent to the sender, and whether they are sealed by now.
    lent: BTreeMap<ObjectId, bool>,
    /// Objects of which another node was named.
    sent_elsewhere: BTreeSet<ObjectId>,
    /// Number of the push of each object that is sent or offered: a reference, taken and given back, is one.
    pushes: BTreeMap<ObjectId, u64>,
    /// Of these, what is read from its file.
    from_disk: BTreeSet<ObjectId>,
    /// Objects of which it has shown that their files are not as they were written.
    files_lost: Vec<ObjectId>,
}

impl Node {
    /// It can send an object, from memory or from its file.
    fn serves(&self, object: &ObjectId) -> bool {
        self.store.has(object) || self.store.disk.contains_key(object)
    }

    /// What it sends of an object, or would.
    fn source(&self, object: &ObjectId) -> Option<&Copy> {
        let from_disk = self.from_disk.contains(object) || !self.store.copies.contains_key(object);
        self.store.source(object, from_disk)
    }
}

/// Between a node and the owner, in order.
#[derive(Clone, Debug)]
enum News {
    /// A copy is here, or gone.
    Copy { object: ObjectId, here: bool },
    /// It was spilled.
    Spilled { object: ObjectId },
    /// What was spilled can't be read.
    FileLost { object: ObjectId },
    /// Where the object is.
    Located { object: ObjectId },
}

/// Between nodes, in no order.
#[derive(Clone, Debug)]
enum Message {
    Ask {
        object: ObjectId,
    },
    AskIfThere {
        object: ObjectId,
    },
    NotThere {
        object: ObjectId,
    },
    Chunk {
        head: ChunkHead,
        version: u32,
        index: u32,
    },
    Taken {
        object: ObjectId,
        ok: bool,
    },
    /// Who has objects hears that a lane of who asked has broken.
    AskerLost,
    /// Who asked hears it.
    HolderLost,
    /// Who asked hears that a chunk that waits for memory won't come.
    HeldLost {
        ticket: u64,
    },
}

#[derive(Clone, Debug)]
struct Letter {
    from: usize,
    to: usize,
    message: Message,
}

pub(super) struct World {
    rng: Rng,
    now: NowNs,
    nodes: Vec<Node>,
    objects: BTreeMap<ObjectId, Known>,
    /// To the owner and from it, for each node.
    up: Vec<VecDeque<News>>,
    down: Vec<VecDeque<News>>,
    letters: Vec<Letter>,
    /// Pairs of nodes that speak over lanes.
    bulk: BTreeSet<(usize, usize)>,
    lanes: BTreeMap<LaneId, Lane>,
    landings: BTreeMap<u64, Landing>,
    /// Chunks that wait for memory on their lanes.
    held: BTreeMap<u64, Held>,
    readings: Vec<Reading>,
    /// Chunks that wait for memory: who sent them, to whom, what they bring.
    tickets: BTreeMap<u64, (usize, usize, ChunkHead, u32, u32)>,
    next: u64,
    resting: bool,
    report: Report,
}

fn node_id(node: usize) -> NodeId {
    NodeId([node as u8 + 1; 28])
}

fn node_of(id: NodeId) -> usize {
    usize::from(id.0[0]) - 1
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let count = match seed.is_multiple_of(LARGE_EVERY) {
            true => LARGE_MIN + rng.below(LARGE_MAX - LARGE_MIN + 1),
            false => 2 + rng.below(6),
        } as usize;
        let config = PullConfig {
            timeout_ns: TIMEOUT,
            likely_ns: SECOND,
            retry_min_ns: SECOND / 10,
            retry_max_ns: 10 * SECOND,
            objects_max: 1000,
        };
        let nodes = (0..count).map(|_| {
            let mut manager = PullManager::new(config);
            let capacity = 100 + rng.below(200);
            manager.handle(PullEvent::Room { free_bytes: capacity, starving: false }, 0, &mut Vec::new());
            Node {
                alive: true,
                manager,
                receiver: Receiver::new(CHUNK, WAITING_MAX),
                sender: Sender::new(1 + rng.below(4) as usize, 1 + rng.below(6) as usize),
                store: Store::new(capacity, rng.below(3) * capacity / 2),
                pulls: VecDeque::new(),
                receives: VecDeque::new(),
                sends: VecDeque::new(),
                is_pulling: false,
                is_receiving: false,
                is_sending: false,
                wishes: BTreeMap::new(),
                subscribed: BTreeSet::new(),
                deferred: Vec::new(),
                sending: BTreeMap::new(),
                offered: BTreeSet::new(),
                spread: Spread::new(rng.below(4) as usize),
                lent: BTreeMap::new(),
                sent_elsewhere: BTreeSet::new(),
                pushes: BTreeMap::new(),
                from_disk: BTreeSet::new(),
                files_lost: Vec::new(),
            }
        });
        let nodes: Vec<Node> = nodes.collect();
        let pairs = (0..count).flat_map(|other| (0..other).map(move |one| (one, other)));
        let bulk_permille = [0, 500, 1000][rng.below(3) as usize];
        let bulk = pairs.filter(|_| rng.permille(bulk_permille)).collect();
        Self {
            rng,
            now: 0,
            up: vec![VecDeque::new(); nodes.len()],
            down: vec![VecDeque::new(); nodes.len()],
            nodes,
            objects: BTreeMap::new(),
            letters: Vec::new(),
            bulk,
            lanes: BTreeMap::new(),
            landings: BTreeMap::new(),
            held: BTreeMap::new(),
            readings: Vec::new(),
            tickets: BTreeMap::new(),
            next: 0,
            resting: false,
            report: Report { worlds: 1, nodes_most: count as u64, ..Report::default() },
        }
    }

    pub(super) fn steps(&self) -> u64 {
        self.report.steps
    }

    pub(super) fn into_report(self) -> Report {
        self.report
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn alive(&mut self) -> usize {
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].alive).collect();
        alive[self.rng.below(alive.len() as u64) as usize]
    }

    fn some_object(&mut self) -> Option<ObjectId> {
        let at = self.rng.below(self.objects.len().max(1) as u64) as usize;
        self.objects.keys().nth(at).copied()
    }

    pub(super) fn step(&mut self) -> Result<(), String> {
        self.report.steps += 1;
        let node = self.alive();
        match self.rng.below(1000) {
            0..=179 => self.deliver_letter()?,
            180..=399 => self.move_lanes()?,
            400..=529 => self.deliver_news(node)?,
            530..=579 => self.make(node)?,
            580..=679 => self.wish(node)?,
            680..=699 => self.end_a_wish(node)?,
            700..=719 => self.free_one()?,
            720..=759 => self.use_one(node),
            760..=799 => self.let_go(node)?,
            800..=811 => self.broadcast()?,
            812..=841 => self.spill(node)?,
            842 => self.spoil_a_file(node),
            843..=996 => {
                let pause = self.rng.below(SECOND / 2);
                self.pass(pause)?;
            }
            997 => self.die(node)?,
            _ => self.make_again()?,
        }
        self.check_node(node)?;
        self.check_now_and_then(self.report.steps)
    }

    /// After every step of a small world, after some of a large one.
    fn check_now_and_then(&self, step: u64) -> Result<(), String> {
        match self.nodes.len() <= CHECKED_NODES_MAX || step.is_multiple_of(CHECK_ALL_EVERY) {
            true => self.check(),
            false => Ok(()),
        }
    }

    fn check(&self) -> Result<(), String> {
        (0..self.nodes.len()).try_for_each(|node| self.check_node(node))
    }

    fn check_node(&self, number: usize) -> Result<(), String> {
        let node = &self.nodes[number];
        if !node.alive {
            return Ok(());
        }
        let sound = node.manager.check().and_then(|()| node.receiver.check()).and_then(|()| node.sender.check());
        sound.and_then(|()| node.store.check()).map_err(|what| format!("node {number}: {what}"))
    }

    /// Time passes for every node.
    fn pass(&mut self, pause: NowNs) -> Result<(), String> {
        self.now += pause;
        for node in (0..self.nodes.len()).filter(|n| self.nodes[*n].alive).collect::<Vec<_>>() {
            let store = &self.nodes[node].store;
            let room = PullEvent::Room { free_bytes: store.room(), starving: store.is_starving() };
            self.tell(node, room)?;
            self.tell(node, PullEvent::Tick)?;
            self.restore_wanted(node)?;
            let now = self.now;
            let Node { deferred, spread, .. } = &mut self.nodes[node];
            for (object, by, _) in deferred.extract_if(.., |(_, _, until)| *until <= now) {
                spread.served(&object, &node_id(by), true);
            }
            self.nodes[node].spread.tick(now);
        }
        self.wait_no_longer()
    }

    // --- nodes

    fn die(&mut self, node: usize) -> Result<(), String> {
        if self.nodes.iter().filter(|node| node.alive).count() <= 2 {
            return Ok(());
        }
        self.report.died += 1;
        let dead = &mut self.nodes[node];
        dead.alive = false;
        dead.store = Store::new(dead.store.capacity, dead.store.disk_capacity);
        dead.wishes.clear();
        self.up[node].clear();
        self.down[node].clear();
        self.letters.retain(|letter| letter.from != node && letter.to != node);
        self.tickets.retain(|_, (_, to, ..)| *to != node);
        let objects: Vec<ObjectId> = self.objects.keys().copied().collect();
        for object in objects {
            if let Some(known) = self.objects.get_mut(&object) {
                let was = known.locations.remove(&node) | known.spilled.take_if(|at| *at == node).is_some();
                if known.home == Some(node) {
                    known.home = None;
                }
                if was {
                    self.publish(object);
                }
            }
        }
        for other in (0..self.nodes.len()).filter(|n| self.nodes[*n].alive).collect::<Vec<_>>() {
            self.tell(other, PullEvent::NodeGone { node: node_id(node) })?;
            self.nodes[other].deferred.retain(|(_, asker, _)| *asker != node);
            self.nodes[other].spread.node_gone(&node_id(node));
            self.send(other, SendEvent::NodeGone { node: node_id(node) })?;
        }
        self.lanes_died(node)
    }

    fn tell(&mut self, node: usize, event: PullEvent) -> Result<(), String> {
        let mut effects = Vec::new();
        self.nodes[node].manager.handle(event, self.now, &mut effects);
        self.nodes[node].pulls.extend(effects);
        // What comes of an effect is done after those that were wanted before it, as on the control thread.
        if std::mem::replace(&mut self.nodes[node].is_pulling, true) {
            return Ok(());
        }
        while let Some(effect) = self.nodes[node].pulls.pop_front() {
            self.carry_out(node, effect)?;
        }
        self.nodes[node].is_pulling = false;
        Ok(())
    }

    fn carry_out(&mut self, node: usize, effect: PullEffect) -> Result<(), String> {
        match effect {
            PullEffect::Locate { object } => {
                self.nodes[node].subscribed.insert(object);
                self.down[node].push_back(News::Located { object });
            }
            PullEffect::Forget { object } => {
                self.nodes[node].subscribed.remove(&object);
                self.receive(node, ReceiveEvent::Forget { object })?;
            }
            PullEffect::Stop { object } => {
                self.report.stopped += 1;
                self.receive(node, ReceiveEvent::Forget { object })?;
            }
            PullEffect::Ask { object, from } => {
                self.receive(node, ReceiveEvent::Expect { object, owner: OWNER, from })?;
                let holder = node_of(from);
                if self.is_bulk(node, holder) {
                    let direct = self.nodes[node].sent_elsewhere.remove(&object);
                    self.say(node, holder, Up::Want { object, direct });
                } else {
                    self.letters.push(Letter { from: node, to: holder, message: Message::Ask { object } });
                }
            }
            PullEffect::AskIfThere { object, from } => {
                self.receive(node, ReceiveEvent::Expect { object, owner: OWNER, from })?;
                let holder = node_of(from);
                self.report.guessed += 1;
                match self.is_bulk(node, holder) {
                    true => self.say(node, holder, Up::WantIfThere { object }),
                    false => self.answer(node, holder, Message::AskIfThere { object }),
                }
            }
            PullEffect::Release { object } => {
                let copy = self.nodes[node].store.copies.get_mut(&object).filter(|copy| copy.received);
                copy.ok_or_else(|| format!("{object} is released on node {node}, which has no reference"))?.received =
                    false;
                self.serve(node)?;
            }
        }
        Ok(())
    }
}
