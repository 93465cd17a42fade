//! A simulated cluster: up to 200 nodes that place leases by views which are late, owners that follow where they are sent, nodes that
//! die and drain.
//!
//! Checked: no node ever grants more than it has, and gets back all that it granted; every lease is granted in the end, though
//! it may be sent from node to node; a request that was sent on is never sent on again, and one that was not is never
//! rejected, which Ray's owners take for a failure of the node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::store_sim::Rng;
use crate::cluster::{Affinity, Amounts, Here, Operator, Policy, Rule, Strategy, Verdict, View, Views, Want};
use crate::ids::NodeId;
use crate::sched::Fixed;

/// Simulated time of an average message, in nanoseconds.
const HOP_NS: u64 = 500_000;
/// Nodes tell of themselves this often, where something changed.
const SYNC_NS: u64 = 100_000_000;
/// Waiting leases are looked at this often.
const LOOK_NS: u64 = 100_000_000;
/// Most requests that one lease may take from its first to its grant. Stale views send it about: to each of the nodes once, until
/// they tell anew. But not for ever.
const REQUESTS_MAX: u32 = 2_000;

/// What a run has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events handled.
    pub steps: u64,
    /// Clusters.
    pub worlds: u64,
    /// Leases granted.
    pub granted: u64,
    /// Requests that were sent to another node as they came.
    pub spilled: u64,
    /// Requests that were sent to another node after they had waited.
    pub spilled_late: u64,
    /// Requests that were sent back.
    pub rejected: u64,
    /// Requests that failed with the node that they were bound to.
    pub failed: u64,
    /// Nodes that died.
    pub died: u64,
    /// The most requests that one lease took.
    pub requests_max: u32,
}

/// A world that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Replays it.
    pub seed: u64,
    /// What was seen.
    pub what: String,
}

#[derive(Debug)]
enum Event {
    Ask { lease: usize, at: usize, sent_here: bool },
    Return { lease: usize, at: usize },
    Told { of: usize, by: usize, version: u64, view: Arc<View> },
    Sync { node: usize },
    Look { node: usize },
    Die { node: usize },
    Drain { node: usize },
    DeathHeard { of: usize, by: usize },
}

struct Node {
    id: NodeId,
    view: View,
    views: Views,
    heard: FxHashMap<usize, u64>,
    alive: bool,
    version: u64,
    told: Option<Arc<View>>,
    running: BTreeMap<usize, Amounts>,
    waiting: Vec<(usize, bool)>,
}

struct Lease {
    want: Want,
    home: usize,
    requests: u32,
    done: bool,
}

struct World {
    rng: Rng,
    now: u64,
    sequence: u64,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<Event>>,
    nodes: Vec<Node>,
    leases: Vec<Lease>,
    open: usize,
    report: Report,
}

/// Runs worlds until `steps` events have been handled.
///
/// # Errors
/// [`Failure`], with the seed of the world that showed it.
pub fn run(seed: u64, steps: u64) -> Result<Report, Failure> {
    let (mut total, mut seeds) = (Report::default(), Rng::new(seed));
    while total.steps < steps {
        let seed = if total.worlds == 0 { seed } else { seeds.next_u64() };
        let report = run_world(seed)?;
        total.steps += report.steps;
        total.worlds += 1;
        total.granted += report.granted;
        total.spilled += report.spilled;
        total.spilled_late += report.spilled_late;
        total.rejected += report.rejected;
        total.failed += report.failed;
        total.died += report.died;
        total.requests_max = total.requests_max.max(report.requests_max);
    }
    Ok(total)
}

/// Runs one cluster until all its leases are done.
///
/// # Errors
/// [`Failure`].
pub fn run_world(seed: u64) -> Result<Report, Failure> {
    let mut world = World::new(seed);
    world.run().map_err(|what| Failure { seed, what })?;
    Ok(world.report)
}

fn of(parts: &[(&str, i64)]) -> Amounts {
    let parts = parts.iter().filter(|(_, units)| *units > 0);
    parts.map(|(name, units)| ((*name).into(), Fixed::units(*units))).collect()
}

fn holds(room: &Amounts, demand: &Amounts) -> bool {
    demand.iter().all(|(name, amount)| room.get(name).copied().unwrap_or_default() >= *amount)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let count = [2, 3, 5, 20, 60, 200][rng.below(6) as usize];
        let nodes: Vec<Node> = (0..count).map(|n| Node::new(n, &mut rng)).collect();
        let mut world = Self {
            rng,
            now: 0,
            sequence: 0,
            events: BinaryHeap::new(),
            slots: Vec::new(),
            nodes,
            leases: Vec::new(),
            open: 0,
            report: Report::default(),
        };
        for node in 0..count {
            for other in (0..count).filter(|other| *other != node) {
                let (id, view) = (world.nodes[other].id, world.nodes[other].view.clone());
                world.nodes[node].views.heard(id, view);
            }
            let offset = world.rng.below(SYNC_NS);
            world.after(offset, Event::Sync { node });
            world.after(offset, Event::Look { node });
            // The first node can hold everything, and lives: no lease waits in vain.
            if node > 0 && world.rng.permille(60) {
                let at = world.rng.below(2_000_000_000);
                let dies = world.rng.permille(700);
                world.after(at, if dies { Event::Die { node } } else { Event::Drain { node } });
            }
        }
        // From a steady trickle to all at once.
        let window = [10_000_000, 200_000_000, 2_000_000_000][world.rng.below(3) as usize];
        let leases = 4 * count as u64 + world.rng.below(6 * count as u64);
        for lease in 0..leases as usize {
            let want = world.any_want();
            let home = world.any_home();
            world.leases.push(Lease { want, home, requests: 0, done: false });
            let at = world.rng.below(window);
            world.after(at, Event::Ask { lease, at: home, sent_here: false });
        }
        world.open = world.leases.len();
        world
    }

    /// Many owners share few nodes, as drivers do.
    fn any_home(&mut self) -> usize {
        let among = if self.rng.permille(500) { 1 } else { self.nodes.len() as u64 };
        self.rng.below(among) as usize
    }

    fn any_want(&mut self) -> Want {
        let cpus = self.rng.below(4) as i64;
        let lamp = i64::from(self.rng.permille(150));
        let demand = of(&[("CPU", cpus), ("lamp", lamp)]);
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        let node = self.nodes[node].id;
        let zone = |zone: &str| Rule { key: "zone".to_owned(), operator: Operator::In(vec![zone.to_owned()]) };
        let (soft, spill_on_unavailable) = (self.rng.permille(500), self.rng.permille(300));
        let fail_on_unavailable = !soft && self.rng.permille(200);
        let strategy = match self.rng.below(10) {
            0..=5 => Strategy::Hybrid,
            6 | 7 => Strategy::Spread,
            8 => Strategy::Affinity(Affinity { node, soft, spill_on_unavailable, fail_on_unavailable }),
            _ => Strategy::Labels { hard: vec![zone("a")], soft: vec![zone("b")] },
        };
        let selectors = if self.rng.permille(100) { vec![vec![zone("b")], vec![zone("a")]] } else { Vec::new() };
        Want { placement: demand.clone(), demand, strategy, selectors, actor: self.rng.permille(100) }
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.slots.push(Some(event));
        self.events.push(Reverse((self.now + delay, self.sequence, self.slots.len() - 1)));
    }

    /// Most messages are quick, some are not.
    fn hop(&mut self) -> u64 {
        let slow = if self.rng.permille(20) { 400 } else { 1 };
        HOP_NS / 2 + self.rng.below(HOP_NS * slow)
    }

    fn run(&mut self) -> Result<(), String> {
        while self.open > 0 {
            let Some(Reverse((at, _, slot))) = self.events.pop() else {
                return Err(format!("{} leases are left, and nothing happens any more", self.open));
            };
            self.now = at;
            let Some(event) = self.slots[slot].take() else {
                continue;
            };
            self.report.steps += 1;
            self.step(event)?;
        }
        match self.nodes.iter().find(|node| node.alive && !node.running.is_empty()) {
            Some(node) => Err(format!("{:?} still runs leases that were given back", node.id)),
            None => Ok(()),
        }
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Ask { lease, at, sent_here } => self.ask(lease, at, sent_here),
            Event::Return { lease, at } => self.give_back(lease, at),
            Event::Told { of, by, version, view } => {
                let (id, dead) = (self.nodes[of].id, !self.nodes[of].alive);
                let node = &mut self.nodes[by];
                let newest = node.heard.entry(of).or_default();
                if *newest < version && !dead {
                    *newest = version;
                    node.views.heard(id, view);
                }
                Ok(())
            }
            Event::Sync { node } => {
                self.sync(node);
                Ok(())
            }
            Event::Look { node } => self.look(node),
            Event::Die { node } => {
                self.die(node);
                Ok(())
            }
            Event::Drain { node } => {
                self.nodes[node].view.draining = true;
                self.look_once(node)
            }
            Event::DeathHeard { of, by } => {
                let id = self.nodes[of].id;
                self.nodes[by].views.died(&id);
                Ok(())
            }
        }
    }

    fn ask(&mut self, lease: usize, at: usize, sent_here: bool) -> Result<(), String> {
        self.leases[lease].requests += 1;
        let requests = self.leases[lease].requests;
        self.report.requests_max = self.report.requests_max.max(requests);
        if requests > REQUESTS_MAX {
            return Err(format!("lease {lease} has been asked for {requests} times: {:?}", self.leases[lease].want));
        }
        if !self.nodes[at].alive {
            return self.again(lease);
        }
        match self.choose(lease, at, sent_here, sent_here) {
            Verdict::Stay | Verdict::Wait if self.nodes[at].view.draining => match sent_here {
                true => self.again(lease),
                false => {
                    self.after(1_000_000_000, Event::Ask { lease, at, sent_here });
                    Ok(())
                }
            },
            Verdict::Stay | Verdict::Wait => {
                self.nodes[at].waiting.push((lease, sent_here));
                self.grant(at)
            }
            verdict => {
                self.report.spilled += u64::from(matches!(verdict, Verdict::Spill(_)));
                self.answer(lease, sent_here, verdict)
            }
        }
    }

    /// A request that was not granted is answered.
    fn answer(&mut self, lease: usize, sent_here: bool, verdict: Verdict) -> Result<(), String> {
        match verdict {
            Verdict::Spill(_) if sent_here => Err(format!("lease {lease} was sent on twice")),
            Verdict::Reject if !sent_here => Err(format!("lease {lease} was rejected where it asked first")),
            Verdict::Spill(node) => {
                let at = self.nodes.iter().position(|other| other.id == node).ok_or("sent to no node")?;
                let delay = self.hop() + self.hop();
                self.after(delay, Event::Ask { lease, at, sent_here: true });
                Ok(())
            }
            Verdict::Reject => {
                self.report.rejected += 1;
                self.again(lease)
            }
            Verdict::Fail => {
                self.report.failed += 1;
                self.close(lease);
                Ok(())
            }
            Verdict::Stay | Verdict::Wait => Ok(()),
        }
    }

    /// The owner asks where it asks first. Where that node is dead, the owner is too.
    fn again(&mut self, lease: usize) -> Result<(), String> {
        let at = self.leases[lease].home;
        if !self.nodes[at].alive {
            self.close(lease);
            return Ok(());
        }
        let delay = self.hop() + self.hop();
        self.after(delay, Event::Ask { lease, at, sent_here: false });
        Ok(())
    }

    fn close(&mut self, lease: usize) {
        if !std::mem::replace(&mut self.leases[lease].done, true) {
            self.open -= 1;
        }
    }

    fn choose(&mut self, lease: usize, at: usize, prefer_here: bool, sent_here: bool) -> Verdict {
        let (rng, now) = (&mut self.rng, self.now);
        let (node, want) = (&mut self.nodes[at], &self.leases[lease].want);
        let here = Here {
            id: node.id,
            labels: &node.view.labels,
            open: !node.view.draining,
            feasible: holds(&node.view.total, &want.placement),
            available: holds(&node.view.available, &want.placement),
            grantable: holds(&node.view.available, &want.demand),
            utilization: {
                let part = |view: &Amounts| view.get("CPU").map_or(0.0, |cpus| cpus.to_f64());
                1.0 - part(&node.view.available) / part(&node.view.total)
            },
            has_gpu: false,
        };
        let lot = &mut |below: usize| rng.below(below as u64) as usize;
        let verdict = node.views.pick(want, &here, prefer_here, &Policy::default(), lot).verdict(want, sent_here);
        if let Verdict::Spill(to) = verdict {
            node.views.debit(&to, &want.demand, now);
        }
        verdict
    }

    /// Grants what fits, in the order of arrival; one that does not fit holds up nobody.
    fn grant(&mut self, at: usize) -> Result<(), String> {
        let mut granted = Vec::new();
        let node = &mut self.nodes[at];
        let leases = &self.leases;
        let view = &mut node.view;
        let draining = view.draining;
        node.waiting.retain(|(lease, _)| {
            let want = &leases[*lease].want;
            let fits = !draining && want.allows(node.id, &view.labels) && holds(&view.available, &want.demand);
            if fits {
                for (name, amount) in &want.demand {
                    *view.available.entry(name.clone()).or_default() -= *amount;
                }
                granted.push(*lease);
            }
            !fits
        });
        for lease in granted {
            self.report.granted += 1;
            let demand = self.leases[lease].want.demand.clone();
            if self.nodes[at].running.insert(lease, demand).is_some() {
                return Err(format!("lease {lease} was granted twice by the same node"));
            }
            let time = self.hop() + self.rng.below(300_000_000);
            self.after(time, Event::Return { lease, at });
        }
        self.nodes[at].check()
    }

    fn give_back(&mut self, lease: usize, at: usize) -> Result<(), String> {
        let node = &mut self.nodes[at];
        if !node.alive {
            // The task is tried again.
            return self.again(lease);
        }
        for (name, amount) in node.running.remove(&lease).ok_or("a lease was given back that nobody has")? {
            *node.view.available.entry(name).or_default() += amount;
        }
        self.close(lease);
        self.grant(at)
    }

    fn sync(&mut self, node: usize) {
        if !self.nodes[node].alive {
            return;
        }
        self.after(SYNC_NS, Event::Sync { node });
        let changed = self.nodes[node].told.as_deref() != Some(&self.nodes[node].view);
        if !changed {
            return;
        }
        self.nodes[node].version += 1;
        let (view, version) = (Arc::new(self.nodes[node].view.clone()), self.nodes[node].version);
        self.nodes[node].told = Some(view.clone());
        for by in (0..self.nodes.len()).filter(|by| *by != node) {
            let delay = 2 * self.hop();
            self.after(delay, Event::Told { of: node, by, version, view: view.clone() });
        }
    }

    fn look(&mut self, at: usize) -> Result<(), String> {
        if !self.nodes[at].alive {
            return Ok(());
        }
        self.after(LOOK_NS, Event::Look { node: at });
        let now = self.now;
        self.nodes[at].views.refresh(now);
        self.look_once(at)
    }

    /// What waits goes where there is room, the newest first.
    fn look_once(&mut self, at: usize) -> Result<(), String> {
        for index in (0..self.nodes[at].waiting.len()).rev() {
            let (lease, sent_here) = self.nodes[at].waiting[index];
            let verdict = self.choose(lease, at, true, sent_here);
            if matches!(verdict, Verdict::Stay | Verdict::Wait) {
                continue;
            }
            self.nodes[at].waiting.remove(index);
            self.report.spilled_late += u64::from(matches!(verdict, Verdict::Spill(_)));
            self.answer(lease, sent_here, verdict)?;
        }
        Ok(())
    }

    fn die(&mut self, node: usize) {
        self.report.died += 1;
        let dead = &mut self.nodes[node];
        dead.alive = false;
        dead.running.clear();
        let waiting = std::mem::take(&mut dead.waiting);
        for (lease, _) in waiting {
            let at = self.leases[lease].home;
            let delay = self.hop();
            self.after(delay, Event::Ask { lease, at, sent_here: false });
        }
        for by in (0..self.nodes.len()).filter(|by| *by != node) {
            let delay = 20 * self.hop();
            self.after(delay, Event::DeathHeard { of: node, by });
        }
        // Owners on the node die with it.
        for lease in 0..self.leases.len() {
            if self.leases[lease].home == node {
                self.leases[lease].home = 0;
            }
        }
    }
}

impl Node {
    fn new(n: usize, rng: &mut Rng) -> Self {
        let mut id = [0; NodeId::LEN];
        id[..8].copy_from_slice(&rng.next_u64().to_be_bytes());
        let (cpus, lamps) = match n {
            0 => (4, 1),
            _ => (1 + rng.below(8) as i64, i64::from(rng.permille(100))),
        };
        let total = of(&[("CPU", cpus), ("lamp", lamps)]);
        let zone = if n == 0 || rng.permille(500) { "a" } else { "b" };
        let labels = [("zone".to_owned(), zone.to_owned())].into();
        Self {
            id: NodeId(id),
            view: View { available: total.clone(), total, labels, draining: false },
            views: Views::default(),
            heard: FxHashMap::default(),
            alive: true,
            version: 0,
            told: None,
            running: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }

    /// What is free and what is leased is what there is.
    fn check(&self) -> Result<(), String> {
        for (name, total) in &self.view.total {
            let leased: Fixed = self.running.values().filter_map(|demand| demand.get(name)).copied().sum();
            let free = self.view.available.get(name).copied().unwrap_or_default();
            if free < Fixed::ZERO || free + leased != *total {
                return Err(format!("{:?}: of {total:?} {name}, {free:?} free and {leased:?} leased", self.id));
            }
        }
        Ok(())
    }
}
