//! One object to many nodes: who serves whom, so that they make a tree.
//!
//! A holder serves a few nodes at a time. Who asks meanwhile is sent to one of the nodes that asked before, which hands on the chunks that
//! it has while the others are still coming. As each node is named only to those who asked after it, nobody waits in a circle; and whoever
//! comes back, because the node that was named had failed or did not want the object any more, is served here.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::ids::{NodeId, NowNs, ObjectId};

/// Nodes that a holder serves at a time, and that one of its askers is named to, unless it is told otherwise.
pub const FANOUT: usize = 2;

/// Objects whose askers are remembered. With more at a time, the one that was asked for longest ago is forgotten.
pub const SPREADS_MAX: usize = 1024;

/// Askers that are remembered of an object. Beyond it nodes are served here.
pub const ASKERS_MAX: usize = 256;

/// How long the askers of an object are remembered after the last one.
pub const FORGET_AFTER_NS: NowNs = 30_000_000_000;

/// Who serves a node that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// This one.
    Here,
    /// One that asked before.
    Elsewhere(NodeId),
}

#[derive(Debug)]
struct Asker {
    node: NodeId,
    /// Whom it was sent to.
    sent_to: Option<NodeId>,
    /// Nodes that it was named to.
    named: usize,
    /// It is dead, has failed at serving, or has not stayed: it is not named any more.
    failed: bool,
}

#[derive(Debug)]
struct Askers {
    askers: Vec<Asker>,
    /// Those before it are not named any more.
    first: usize,
    /// Nodes that are being served here.
    served: FxHashSet<NodeId>,
    last_ns: NowNs,
}

/// Decides who serves whom.
#[derive(Debug)]
pub struct Spread {
    fanout: usize,
    objects: FxHashMap<ObjectId, Askers>,
    /// In the order in which they were first asked for.
    order: VecDeque<ObjectId>,
}

impl Spread {
    /// Nothing was asked for. A holder serves `fanout` nodes at a time, such as [`FANOUT`], and each of these as many; with 0 it serves all.
    pub fn new(fanout: usize) -> Self {
        Self { fanout, objects: FxHashMap::default(), order: VecDeque::new() }
    }

    /// A node asks for an object. `direct`: it was sent elsewhere before, and that did not go well.
    pub fn asked(&mut self, object: ObjectId, node: NodeId, direct: bool, now: NowNs) -> Serve {
        if self.fanout == 0 {
            return Serve::Here;
        }
        if !self.objects.contains_key(&object) {
            if self.order.len() >= SPREADS_MAX {
                self.forget_oldest();
            }
            self.order.push_back(object);
            let none = Askers { askers: Vec::new(), first: 0, served: FxHashSet::default(), last_ns: now };
            self.objects.insert(object, none);
        }
        match self.objects.get_mut(&object) {
            Some(askers) => askers.asked(node, direct, self.fanout, now),
            None => Serve::Here,
        }
    }

    /// A node that was served here has the object, or wants it no more.
    pub fn served(&mut self, object: &ObjectId, node: &NodeId, ok: bool) {
        let Some(askers) = self.objects.get_mut(object) else {
            return;
        };
        askers.served.remove(node);
        if !ok {
            askers.fail(node);
        }
    }

    /// A node is dead.
    pub fn node_gone(&mut self, node: &NodeId) {
        for askers in self.objects.values_mut() {
            askers.served.remove(node);
            askers.fail(node);
        }
    }

    /// Forgets what was not asked for of late.
    pub fn tick(&mut self, now: NowNs) {
        let objects = &mut self.objects;
        self.order.retain(|object| {
            let is_recent = |askers: &Askers| now.saturating_sub(askers.last_ns) < FORGET_AFTER_NS;
            let keep = objects.get(object).is_some_and(is_recent);
            if !keep {
                objects.remove(object);
            }
            keep
        });
    }

    /// Objects whose askers are remembered.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    fn forget_oldest(&mut self) {
        if let Some(object) = self.order.pop_front() {
            self.objects.remove(&object);
        }
    }
}

impl Askers {
    fn asked(&mut self, node: NodeId, direct: bool, fanout: usize, now: NowNs) -> Serve {
        self.last_ns = now;
        let known = self.askers.iter().position(|asker| asker.node == node);
        if let Some(at) = known {
            let sent_to = self.askers[at].sent_to.take();
            if let Some(failed) = sent_to.filter(|_| direct) {
                self.fail(&failed);
            }
        }
        if known.is_none() && !direct && self.served.len() >= fanout && self.askers.len() < ASKERS_MAX {
            if let Some(sent_to) = self.name(fanout) {
                self.askers.push(Asker { node, sent_to: Some(sent_to), named: 0, failed: false });
                return Serve::Elsewhere(sent_to);
            }
        }
        if known.is_none() && self.askers.len() < ASKERS_MAX {
            self.askers.push(Asker { node, sent_to: None, named: 0, failed: false });
        }
        self.served.insert(node);
        Serve::Here
    }

    /// The earliest asker that may serve one more: the tree grows level by level.
    fn name(&mut self, fanout: usize) -> Option<NodeId> {
        while self.askers.get(self.first).is_some_and(|asker| asker.failed || asker.named >= fanout) {
            self.first += 1;
        }
        let asker = self.askers.get_mut(self.first)?;
        asker.named += 1;
        Some(asker.node)
    }

    fn fail(&mut self, node: &NodeId) {
        self.askers.iter_mut().filter(|asker| asker.node == *node).for_each(|asker| asker.failed = true);
    }
}
