//! The nodes, the owner of all objects, and what is under way between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::store_sim::Rng;
use super::model::{Create, Store, CHUNK};
use crate::ids::{NodeId, NowNs, ObjectId, WorkerId};
use crate::pull::{
    ChunkHead, Kind, PullConfig, PullEffect, PullEvent, PullManager, ReceiveEffect, ReceiveEvent, Receiver, SendEffect,
    SendEvent, Sender, WishId,
};
use crate::store::StoreError;

const SECOND: NowNs = 1_000_000_000;
const TIMEOUT: NowNs = 10 * SECOND;
/// Bytes of chunks that wait for room.
const WAITING_MAX: u64 = 45;
/// How long a node that asked is remembered where the object is not here.
const DEFER: NowNs = 10 * SECOND;
const OBJECTS: u64 = 24;
/// Letters in a moment of rest: more than a few times all chunks of all wishes is a mistake.
const AT_ONCE_MAX: u64 = 20_000;
/// Who sent what is not answered.
const NOBODY: usize = usize::MAX;
const OWNER: WorkerId = WorkerId([9; 28]);

/// What was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Steps taken.
    pub steps: u64,
    /// Worlds.
    pub worlds: u64,
    /// Objects received whole.
    pub received: u64,
    /// Wishes fulfilled.
    pub fulfilled: u64,
    /// Chunks lost, repeated or spoilt.
    pub harmed: u64,
    /// Chunks that were not used.
    pub dropped: u64,
    /// Creates without room.
    pub no_room: u64,
    /// Fetches given up for something else, or because nobody wanted them.
    pub stopped: u64,
    /// Copies evicted.
    pub evicted: u64,
    /// Objects made again after their node had died.
    pub remade: u64,
    /// Nodes that died.
    pub died: u64,
}

impl Report {
    pub(super) fn add(&mut self, other: &Self) {
        let Report { steps, worlds, received, fulfilled, harmed, dropped, no_room, stopped, evicted, remade, died } =
            other;
        self.steps += steps;
        self.worlds += worlds;
        self.received += received;
        self.fulfilled += fulfilled;
        self.harmed += harmed;
        self.dropped += dropped;
        self.no_room += no_room;
        self.stopped += stopped;
        self.evicted += evicted;
        self.remade += remade;
        self.died += died;
    }
}

/// What the owner knows of an object.
#[derive(Clone, Debug, Default)]
struct Known {
    size: u64,
    version: u32,
    /// Where it is kept; `None`: it is being made.
    home: Option<usize>,
    locations: BTreeSet<usize>,
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
    wishes: BTreeMap<WishId, Wanted>,
    subscribed: BTreeSet<ObjectId>,
    /// Who asked for what is not here, until when.
    deferred: Vec<(ObjectId, usize, NowNs)>,
    /// Objects on which the sender has a reference, for how many nodes.
    sending: BTreeMap<ObjectId, BTreeSet<usize>>,
    /// Number of the push of each of them: a reference, taken and given back, is one.
    pushes: BTreeMap<ObjectId, u64>,
}

/// Between a node and the owner, in order.
#[derive(Clone, Debug)]
enum News {
    /// A copy is here, or gone.
    Copy { object: ObjectId, here: bool },
    /// Where the object is.
    Located { object: ObjectId },
}

/// Between nodes, in no order.
#[derive(Clone, Debug)]
enum Message {
    Ask { object: ObjectId },
    Chunk { head: ChunkHead, version: u32, index: u32 },
    Taken { object: ObjectId, ok: bool },
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
        let count = 2 + rng.below(4) as usize;
        let config =
            PullConfig { timeout_ns: TIMEOUT, retry_min_ns: SECOND / 10, retry_max_ns: 10 * SECOND, objects_max: 1000 };
        let nodes = (0..count).map(|_| {
            let mut manager = PullManager::new(config);
            let capacity = 100 + rng.below(200);
            manager.handle(PullEvent::Room { free_bytes: capacity, starving: false }, 0, &mut Vec::new());
            Node {
                alive: true,
                manager,
                receiver: Receiver::new(CHUNK, WAITING_MAX),
                sender: Sender::new(1 + rng.below(4) as usize, 1 + rng.below(6) as usize),
                store: Store::new(capacity),
                wishes: BTreeMap::new(),
                subscribed: BTreeSet::new(),
                deferred: Vec::new(),
                sending: BTreeMap::new(),
                pushes: BTreeMap::new(),
            }
        });
        let nodes: Vec<Node> = nodes.collect();
        Self {
            rng,
            now: 0,
            up: vec![VecDeque::new(); nodes.len()],
            down: vec![VecDeque::new(); nodes.len()],
            nodes,
            objects: BTreeMap::new(),
            letters: Vec::new(),
            tickets: BTreeMap::new(),
            next: 0,
            resting: false,
            report: Report { worlds: 1, ..Report::default() },
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
            0..=329 => self.deliver_letter()?,
            330..=529 => self.deliver_news(node)?,
            530..=579 => self.make(node)?,
            580..=679 => self.wish(node)?,
            680..=699 => self.end_a_wish(node)?,
            700..=719 => self.free_one()?,
            720..=759 => self.use_one(node),
            760..=799 => self.let_go(node)?,
            800..=996 => {
                let pause = self.rng.below(SECOND / 2);
                self.pass(pause)?;
            }
            997 => self.die(node)?,
            _ => self.make_again()?,
        }
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            let sound = node.manager.check().and_then(|()| node.receiver.check()).and_then(|()| node.sender.check());
            sound.and_then(|()| node.store.check()).map_err(|what| format!("node {number}: {what}"))?;
        }
        Ok(())
    }

    /// Time passes for every node.
    fn pass(&mut self, pause: NowNs) -> Result<(), String> {
        self.now += pause;
        for node in (0..self.nodes.len()).filter(|n| self.nodes[*n].alive).collect::<Vec<_>>() {
            let store = &self.nodes[node].store;
            let room = PullEvent::Room { free_bytes: store.room(), starving: store.is_starving() };
            self.tell(node, room)?;
            self.tell(node, PullEvent::Tick)?;
            self.serve(node)?;
            let now = self.now;
            self.nodes[node].deferred.retain(|(_, _, until)| *until > now);
        }
        Ok(())
    }

    // --- the owner

    /// A new object, at home on this node once there is room for it.
    fn make(&mut self, node: usize) -> Result<(), String> {
        let capacity = self.nodes[node].store.capacity;
        let size = 1 + self.rng.below(capacity / 4);
        let queued: u64 = self.nodes[node].store.queue.iter().filter(|c| c.token.is_none()).map(|c| c.size).sum();
        if self.objects.len() as u64 >= OBJECTS || self.nodes[node].store.pinned() + queued + size > capacity / 2 {
            return Ok(());
        }
        let number = self.number();
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let object = ObjectId(bytes);
        self.objects.insert(object, Known { size, version: 1, home: None, locations: BTreeSet::new() });
        self.make_on(node, object)
    }

    fn make_on(&mut self, node: usize, object: ObjectId) -> Result<(), String> {
        let Some(known) = self.objects.get(&object) else {
            return Ok(());
        };
        let create = Create { object, size: known.size, token: None, version: known.version };
        self.nodes[node].store.queue.push_back(create);
        self.serve(node)
    }

    /// Nothing refers to an object any more.
    fn free_one(&mut self) -> Result<(), String> {
        let Some(object) = self.some_object() else {
            return Ok(());
        };
        let in_use = |node: &Node| {
            node.wishes.values().any(|wish| wish.objects.contains_key(&object))
                || node.store.copies.get(&object).is_some_and(|copy| copy.users > 0 || copy.received || !copy.sealed)
                || node.store.queue.iter().any(|create| create.object == object)
        };
        if self.nodes.iter().any(in_use) {
            return Ok(());
        }
        self.objects.remove(&object);
        for node in 0..self.nodes.len() {
            if self.nodes[node].store.copies.remove(&object).is_some() {
                self.tell(node, PullEvent::Gone { object })?;
                self.serve(node)?;
            }
        }
        Ok(())
    }

    fn publish(&mut self, object: ObjectId) {
        for (node, down) in self.nodes.iter().zip(&mut self.down) {
            if node.alive && node.subscribed.contains(&object) {
                down.push_back(News::Located { object });
            }
        }
    }

    /// Objects of which no copy is left are made again, with other bytes.
    fn make_again(&mut self) -> Result<(), String> {
        let lost = self.objects.iter().filter(|(_, known)| known.home.is_none() && known.locations.is_empty());
        let lost: Vec<ObjectId> = lost.map(|(object, _)| *object).collect();
        for object in lost {
            if self
                .nodes
                .iter()
                .any(|node| node.alive && node.store.queue.iter().any(|c| c.object == object && c.token.is_none()))
            {
                continue;
            }
            let node = self.alive();
            let size = self.objects[&object].size;
            let store = &self.nodes[node].store;
            if store.copies.contains_key(&object) || store.pinned() + size > store.capacity / 2 {
                continue;
            }
            if let Some(known) = self.objects.get_mut(&object) {
                known.version += 1;
            }
            self.report.remade += 1;
            self.make_on(node, object)?;
        }
        Ok(())
    }

    // --- clients

    fn wish(&mut self, node: usize) -> Result<(), String> {
        let kind = [Kind::Get, Kind::Wait, Kind::Arguments][self.rng.below(3) as usize];
        let half = self.nodes[node].store.capacity / 2;
        let (mut objects, mut bytes) = (BTreeMap::new(), 0);
        for _ in 0..1 + self.rng.below(4) {
            if let Some(object) = self.some_object() {
                bytes += self.objects[&object].size;
                if bytes <= half {
                    objects.insert(object, self.nodes[node].store.has(&object));
                }
            }
        }
        if objects.is_empty() || self.nodes[node].wishes.len() > 6 {
            return Ok(());
        }
        let wish = self.number();
        let wanted = objects.iter().map(|(object, here)| (*object, *here)).collect();
        self.nodes[node].wishes.insert(wish, Wanted { kind, objects });
        self.tell(node, PullEvent::Want { wish, kind, objects: wanted })?;
        self.fulfil(node)
    }

    fn end_a_wish(&mut self, node: usize) -> Result<(), String> {
        let at = self.rng.below(self.nodes[node].wishes.len().max(1) as u64) as usize;
        let Some(wish) = self.nodes[node].wishes.keys().nth(at).copied() else {
            return Ok(());
        };
        self.nodes[node].wishes.remove(&wish);
        self.tell(node, PullEvent::Unwant { wish })
    }

    /// Ends the wishes that have what they want: arguments all at once, others one after the other.
    fn fulfil(&mut self, node: usize) -> Result<(), String> {
        let Node { wishes, store, .. } = &mut self.nodes[node];
        let mut done = Vec::new();
        for (id, wish) in wishes {
            for (object, seen) in &mut wish.objects {
                *seen = store.has(object) || (*seen && wish.kind != Kind::Arguments);
            }
            if wish.objects.values().all(|seen| *seen) {
                done.push(*id);
            }
        }
        for wish in done {
            self.nodes[node].wishes.remove(&wish);
            self.report.fulfilled += 1;
            self.tell(node, PullEvent::Unwant { wish })?;
        }
        Ok(())
    }

    fn use_one(&mut self, node: usize) {
        let Some(object) = self.some_object() else {
            return;
        };
        let Node { store, sending, .. } = &mut self.nodes[node];
        let used: u64 = store.copies.values().filter(|copy| copy.users > 0).map(|copy| copy.size).sum();
        let capacity = store.capacity;
        if let Some(copy) = store.copies.get_mut(&object).filter(|copy| copy.sealed && copy.users == 0) {
            if used + copy.size <= capacity / 4 && !sending.contains_key(&object) {
                copy.users += 1;
            }
        }
    }

    fn let_go(&mut self, node: usize) -> Result<(), String> {
        let Node { store, sending, .. } = &mut self.nodes[node];
        for (object, copy) in &mut store.copies {
            copy.users = u32::from(sending.contains_key(object));
        }
        self.serve(node)
    }

    // --- nodes

    fn die(&mut self, node: usize) -> Result<(), String> {
        if self.nodes.iter().filter(|node| node.alive).count() <= 2 {
            return Ok(());
        }
        self.report.died += 1;
        let dead = &mut self.nodes[node];
        dead.alive = false;
        dead.store = Store::new(dead.store.capacity);
        dead.wishes.clear();
        self.up[node].clear();
        self.down[node].clear();
        self.letters.retain(|letter| letter.from != node && letter.to != node);
        self.tickets.retain(|_, (_, to, ..)| *to != node);
        let objects: Vec<ObjectId> = self.objects.keys().copied().collect();
        for object in objects {
            if let Some(known) = self.objects.get_mut(&object) {
                let was = known.locations.remove(&node);
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
            self.send(other, SendEvent::NodeGone { node: node_id(node) })?;
        }
        Ok(())
    }

    fn tell(&mut self, node: usize, event: PullEvent) -> Result<(), String> {
        let mut effects = Vec::new();
        self.nodes[node].manager.handle(event, self.now, &mut effects);
        for effect in effects {
            self.carry_out(node, effect)?;
        }
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
                self.letters.push(Letter { from: node, to: node_of(from), message: Message::Ask { object } });
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

    fn receive(&mut self, node: usize, event: ReceiveEvent) -> Result<(), String> {
        let mut effects = Vec::new();
        self.nodes[node].receiver.handle(event, &mut effects);
        // The manager hears afterwards, as on a thread of its own.
        let mut news = Vec::new();
        for effect in effects {
            self.carry_out_receive(node, effect, &mut news)?;
        }
        for event in news {
            let received = match &event {
                PullEvent::Here { object, .. } => Some(*object),
                _ => None,
            };
            self.tell(node, event)?;
            if let Some(object) = received {
                self.came(node, object)?;
            }
        }
        Ok(())
    }

    fn carry_out_receive(
        &mut self,
        node: usize,
        effect: ReceiveEffect,
        news: &mut Vec<PullEvent>,
    ) -> Result<(), String> {
        match effect {
            ReceiveEffect::Create { object, token, data_bytes, metadata_bytes, .. } => {
                let create = Create { object, size: data_bytes + metadata_bytes, token: Some(token), version: 0 };
                self.nodes[node].store.queue.push_back(create);
                self.serve(node)?;
            }
            ReceiveEffect::CancelCreate { object } => {
                self.nodes[node].store.queue.retain(|create| create.object != object || create.token.is_none());
                self.serve(node)?;
            }
            ReceiveEffect::Write { ticket, object, offset_bytes } => {
                let Some((from, _, head, version, index)) = self.tickets.remove(&ticket) else {
                    return Err(format!("chunk {ticket} is used twice"));
                };
                self.nodes[node].store.write(&object, offset_bytes, head.len_bytes, (version, index))?;
                self.answer(node, from, Message::Taken { object, ok: true });
            }
            ReceiveEffect::Drop { ticket, why } => {
                let Some((from, _, head, ..)) = self.tickets.remove(&ticket) else {
                    return Err(format!("chunk {ticket} is dropped twice"));
                };
                self.report.dropped += 1;
                let ok = why == crate::pull::Refusal::Repeated;
                self.answer(node, from, Message::Taken { object: head.object, ok });
            }
            ReceiveEffect::Seal { object } => {
                self.nodes[node].store.seal(&object)?;
                self.report.received += 1;
                news.push(PullEvent::Here { object, held: true });
            }
            ReceiveEffect::Abort { object } => {
                let copy = self.nodes[node].store.copies.remove(&object).filter(|copy| !copy.sealed);
                copy.ok_or_else(|| format!("{object} is given up on node {node}, which does not receive it"))?;
                self.serve(node)?;
            }
            ReceiveEffect::Accept { object, .. } | ReceiveEffect::Decline { object, .. } => {
                return Err(format!("{object} was offered to node {node} by nobody"));
            }
            ReceiveEffect::Arrived { object, .. } | ReceiveEffect::Recall { object } => {
                return Err(format!("{object} was not lent on node {node}"));
            }
            ReceiveEffect::Land { ticket, .. } => return Err(format!("chunk {ticket} lands, which was not announced")),
            ReceiveEffect::Progress { object, from } => news.push(PullEvent::Progress { object, from }),
            ReceiveEffect::Lost { object, from } => news.push(PullEvent::Failed { object, from }),
            ReceiveEffect::NoRoom { object } => {
                self.report.no_room += 1;
                news.push(PullEvent::NoRoom { object });
            }
        }
        Ok(())
    }

    fn answer(&mut self, from: usize, to: usize, message: Message) {
        if self.nodes.get(to).is_some_and(|node| node.alive) {
            self.letters.push(Letter { from, to, message });
        }
    }

    /// A sealed object is here: the owner is told, and who waits for it.
    fn came(&mut self, node: usize, object: ObjectId) -> Result<(), String> {
        self.up[node].push_back(News::Copy { object, here: true });
        self.fulfil(node)?;
        let deferred = std::mem::take(&mut self.nodes[node].deferred);
        let (now, later): (Vec<_>, Vec<_>) = deferred.into_iter().partition(|(wanted, ..)| *wanted == object);
        self.nodes[node].deferred = later;
        for (_, asker, _) in now {
            self.push(node, asker, object)?;
        }
        Ok(())
    }

    /// Serves creates that wait for room on a node.
    fn serve(&mut self, node: usize) -> Result<(), String> {
        let (answered, evicted) = self.nodes[node].store.serve(self.now);
        for object in evicted {
            self.report.evicted += 1;
            self.up[node].push_back(News::Copy { object, here: false });
            self.tell(node, PullEvent::Gone { object })?;
        }
        for (create, result) in answered {
            let object = create.object;
            match (create.token, result) {
                (Some(token), result) => self.receive(node, ReceiveEvent::Created { object, token, result })?,
                (None, Ok(())) => {
                    if let Some(known) = self.objects.get_mut(&object) {
                        known.home = Some(node);
                        known.locations.insert(node);
                    }
                    self.publish(object);
                    self.tell(node, PullEvent::Here { object, held: false })?;
                    self.came(node, object)?;
                }
                (None, Err(StoreError::OutOfMemory)) => {}
                (None, Err(error)) => return Err(format!("node {node} can't make {object}: {error}")),
            }
        }
        Ok(())
    }

    fn push(&mut self, node: usize, to: usize, object: ObjectId) -> Result<(), String> {
        let number = self.number();
        let Node { store, sending, pushes, .. } = &mut self.nodes[node];
        let Some(copy) = store.copies.get_mut(&object).filter(|copy| copy.sealed) else {
            return Ok(());
        };
        let nodes = sending.entry(object).or_default();
        if nodes.is_empty() {
            copy.users += 1;
            pushes.insert(object, number);
        }
        nodes.insert(to);
        let chunks = copy.size.div_ceil(CHUNK) as u32;
        self.send(node, SendEvent::Push { node: node_id(to), object, chunks })
    }

    fn send(&mut self, node: usize, event: SendEvent) -> Result<(), String> {
        let mut effects = Vec::new();
        self.nodes[node].sender.handle(event, &mut effects);
        for effect in effects {
            match effect {
                SendEffect::Send { node: to, object, index } => {
                    let copy = self.nodes[node].store.copies.get(&object).filter(|copy| copy.sealed);
                    let copy = copy.ok_or_else(|| format!("node {node} sends {object}, which it has not"))?;
                    let len_bytes = (copy.size - u64::from(index) * CHUNK).min(CHUNK);
                    let (total_bytes, from) = (copy.size, node_id(node));
                    let push = self.nodes[node].pushes[&object];
                    let head = ChunkHead { object, from, push, index, total_bytes, metadata_bytes: 1, len_bytes };
                    let message = Message::Chunk { head, version: copy.version, index };
                    self.letters.push(Letter { from: node, to: node_of(to), message });
                }
                SendEffect::Finished { node: to, object } => {
                    let Node { store, sending, .. } = &mut self.nodes[node];
                    let Some(nodes) = sending.get_mut(&object) else {
                        return Err(format!("node {node} finished {object}, which it did not send"));
                    };
                    nodes.remove(&node_of(to));
                    if nodes.is_empty() {
                        sending.remove(&object);
                        if let Some(copy) = store.copies.get_mut(&object) {
                            copy.users -= 1;
                        }
                        self.serve(node)?;
                    }
                }
            }
        }
        Ok(())
    }

    // --- what is under way

    fn deliver_news(&mut self, node: usize) -> Result<(), String> {
        if let Some(News::Copy { object, here }) = self.up[node].pop_front() {
            if let Some(known) = self.objects.get_mut(&object) {
                let changed = if here { known.locations.insert(node) } else { known.locations.remove(&node) };
                if changed {
                    self.publish(object);
                }
            }
        }
        if let Some(News::Located { object }) = self.down[node].pop_front() {
            if let Some(known) = self.objects.get(&object) {
                let elsewhere = known.locations.iter().filter(|at| **at != node && self.nodes[**at].alive);
                let nodes: Vec<NodeId> = elsewhere.map(|at| node_id(*at)).collect();
                let pending = known.home.is_none() && known.locations.is_empty();
                self.tell(node, PullEvent::Located { object, size_bytes: known.size, nodes, pending })?;
            }
        }
        Ok(())
    }

    fn deliver_letter(&mut self) -> Result<(), String> {
        if self.letters.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.letters.len() as u64) as usize;
        let mut letter = self.letters.swap_remove(at);
        let fate = if self.resting { 1000 } else { self.rng.below(1000) };
        match (fate, &mut letter.message) {
            (0..=39, Message::Ask { .. } | Message::Taken { ok: true, .. }) | (0..=19, Message::Chunk { .. }) => {
                self.report.harmed += 1;
                return self.lose(&letter);
            }
            (40..=79, Message::Ask { .. }) => self.letters.push(letter.clone()),
            (20..=59, Message::Chunk { head, version, index }) => {
                // Comes twice, as of a call whose reply was lost; nobody waits for this answer.
                self.report.harmed += 1;
                let (head, version, index) = (*head, *version, *index);
                let unheard = Letter { from: NOBODY, ..letter.clone() };
                self.chunk(&unheard, head, version, index)?;
            }
            (60..=79, Message::Chunk { head, .. }) => {
                self.report.harmed += 1;
                match self.rng.below(3) {
                    0 => head.len_bytes += 1,
                    1 => head.total_bytes += CHUNK,
                    _ => head.index += 1000,
                }
            }
            _ => {}
        }
        self.read(letter)
    }

    /// What does not arrive: the caller hears of a failure, or of nothing.
    fn lose(&mut self, letter: &Letter) -> Result<(), String> {
        match letter.message {
            Message::Ask { object } if self.rng.permille(500) => {
                let from = node_id(letter.to);
                self.tell(letter.from, PullEvent::Failed { object, from })
            }
            Message::Ask { .. } => Ok(()),
            Message::Chunk { head, .. } => {
                let sent = SendEvent::Sent { node: node_id(letter.to), object: head.object, ok: false };
                self.send(letter.from, sent)
            }
            Message::Taken { object, .. } => {
                self.send(letter.to, SendEvent::Sent { node: node_id(letter.from), object, ok: false })
            }
        }
    }

    fn read(&mut self, letter: Letter) -> Result<(), String> {
        match letter.message {
            Message::Ask { object } => {
                if self.nodes[letter.to].store.has(&object) {
                    return self.push(letter.to, letter.from, object);
                }
                let until = self.now + DEFER;
                self.nodes[letter.to].deferred.push((object, letter.from, until));
                Ok(())
            }
            Message::Chunk { head, version, index } => self.chunk(&letter, head, version, index),
            Message::Taken { object, ok } => {
                self.send(letter.to, SendEvent::Sent { node: node_id(letter.from), object, ok })
            }
        }
    }

    fn chunk(&mut self, letter: &Letter, head: ChunkHead, version: u32, index: u32) -> Result<(), String> {
        let ticket = self.number();
        self.tickets.insert(ticket, (letter.from, letter.to, head, version, index));
        self.receive(letter.to, ReceiveEvent::Chunk { ticket, head })
    }

    // --- rest

    /// Nothing is harmed any more: what is wanted and somewhere arrives, and nothing stays behind.
    pub(super) fn rest(&mut self) -> Result<(), String> {
        self.resting = true;
        for round in 0..20_000 {
            for node in 0..self.nodes.len() {
                if self.nodes[node].alive {
                    self.let_go(node)?;
                    while !(self.up[node].is_empty() && self.down[node].is_empty()) {
                        self.deliver_news(node)?;
                    }
                }
            }
            for sent in 0.. {
                if self.letters.is_empty() {
                    break;
                }
                if sent > AT_ONCE_MAX {
                    let letters = self.letters.iter().take(9).collect::<Vec<_>>();
                    return Err(format!("nodes write to each other without end: {letters:?}"));
                }
                self.deliver_letter()?;
                self.check()?;
            }
            self.pass(SECOND / 10)?;
            self.end_hopeless_wishes()?;
            let waiting =
                self.nodes.iter().any(|node| node.alive && !(node.wishes.is_empty() && node.store.queue.is_empty()));
            let quiet = self.letters.is_empty() && self.up.iter().chain(&self.down).all(VecDeque::is_empty);
            if !waiting && quiet {
                return self.check_rest();
            }
            if round % 64 == 0 {
                self.check()?;
            }
        }
        let left: Vec<_> =
            self.nodes.iter().map(|node| (&node.wishes, node.manager.stats(), &node.store.queue)).collect();
        Err(format!("what is wanted and somewhere does not come: {left:?}"))
    }

    /// Owners tell of what is lost for good; here its wishes end.
    fn end_hopeless_wishes(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let lost = |object: &ObjectId| {
                !self.nodes.iter().any(|node| {
                    node.alive
                        && (node.store.has(object)
                            || node.store.queue.iter().any(|create| create.object == *object && create.token.is_none()))
                })
            };
            let wishes = &self.nodes[node].wishes;
            let hopeless = wishes.iter().filter(|(_, wish)| wish.objects.keys().any(lost)).map(|(id, _)| *id);
            for wish in hopeless.collect::<Vec<_>>() {
                self.nodes[node].wishes.remove(&wish);
                if self.nodes[node].alive {
                    self.tell(node, PullEvent::Unwant { wish })?;
                }
            }
        }
        Ok(())
    }

    fn check_rest(&self) -> Result<(), String> {
        self.check()?;
        for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            let held = node.store.copies.iter().filter(|(_, copy)| !copy.sealed || copy.received || copy.users > 0);
            let held: Vec<_> = held.collect();
            let empty = node.receiver.is_empty() && node.sender.is_empty() && !node.manager.is_wanting();
            if !held.is_empty() || !empty || !node.sending.is_empty() || node.receiver.waiting_bytes() > 0 {
                return Err(format!(
                    "node {number} has left over: {held:?}, {:?}, {} received, {} sent",
                    node.manager.stats(),
                    node.receiver.len(),
                    node.sender.len()
                ));
            }
        }
        if !self.tickets.is_empty() {
            return Err(format!("{} chunks were not answered", self.tickets.len()));
        }
        Ok(())
    }
}
