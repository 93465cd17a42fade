//! Wanted objects are fetched: the pull manager, what it hears, and what it asks for.
//!
//! [`raylet_shard::pull::PullManager`] decides; what it needs to know comes from the owners of objects (where they are), from the
//! cores (what is here, and what room there is) and from the thread that moves objects ([`crate::ray::transfer`]).

use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{NodeId, NowNs, ObjectId, Token};
use raylet_shard::pull::{Kind, PullConfig, PullEffect, PullEvent, PullManager, PullStats, Target, WishId};
use raylet_shard::store::StoreEvent;
use rustc_hash::FxHashMap;

use super::objects::address;
use super::Control;
use crate::bridge::{core_reports, CoreReport, Requester};
use crate::config::ray::RayConfig;
use crate::observe::status::TransferStatus;
use crate::ray::messages::Owner;
use crate::ray::proto::WorkerObjectLocationsPubMessage;
use crate::ray::rpc::core_worker::host_port;
use crate::ray::transfer::{ToTransfer, TransferLink, TransferNews};

/// Objects wanted at a time. Wishes beyond it wait for their objects to come by themselves.
const MAX_PULLS: usize = 1 << 20;

/// How often the pull manager hears of room and time, while anything is wanted.
const TICK: Duration = Duration::from_millis(50);

/// How long the node of an object's owner is heard before the owner is asked where the object is; noticed with the next tick.
const LIKELY: Duration = Duration::from_millis(20);

/// Pauses before a node is asked again where all have failed.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What is fetched.
pub struct Pulls {
    manager: PullManager,
    link: TransferLink,
    capacity_bytes: u64,
    started: Instant,
    ticking: bool,
    /// What others were told last: whether pulls wait for room.
    told_waiting: bool,
    /// Wishes of which the cores say what is here.
    looks: FxHashMap<Token, (WishId, usize)>,
    looking: FxHashMap<WishId, Look>,
}

/// A wish until it is known which of its objects are here.
struct Look {
    kind: Kind,
    objects: Vec<(ObjectId, bool)>,
    missing: usize,
}

impl Pulls {
    /// Nothing is wanted yet.
    pub fn new(config: &RayConfig, link: TransferLink, capacity_bytes: u64) -> Self {
        let timeout_ms = config.object_manager_pull_timeout_ms.max(1) as u64;
        let mut manager = PullManager::new(PullConfig {
            timeout_ns: timeout_ms * 1_000_000,
            likely_ns: LIKELY.as_nanos() as NowNs,
            retry_min_ns: RETRY_MIN.as_nanos() as NowNs,
            retry_max_ns: RETRY_MAX.as_nanos() as NowNs,
            objects_max: MAX_PULLS,
        });
        manager.handle(PullEvent::Room { free_bytes: capacity_bytes, starving: false }, 0, &mut Vec::new());
        Self {
            manager,
            link,
            capacity_bytes,
            started: Instant::now(),
            ticking: false,
            told_waiting: false,
            looks: FxHashMap::default(),
            looking: FxHashMap::default(),
        }
    }

    /// Figures for reports.
    pub fn stats(&self) -> PullStats {
        self.manager.stats()
    }
}

/// What can be received by a store of this size: without what is used or pinned. What is being received counts as room, because its
/// bytes are promised already. `creating`: creates of the thread that moves objects, which wait for room.
pub fn room(reports: &[CoreReport], capacity_bytes: u64, creating: u64) -> PullEvent {
    let (mut used, mut queued) = (0u64, 0u64);
    for report in reports {
        let (counters, store) = (&report.store.counters, &report.store);
        used += counters.in_use.bytes.saturating_sub(counters.unsealed.bytes) + store.spillable_bytes;
        queued += store.queued_creates;
    }
    PullEvent::Room { free_bytes: capacity_bytes.saturating_sub(used), starving: queued > creating }
}

impl Control {
    /// A wish for objects begins to be seen to. `here` says which of them are here, where that is known.
    pub(super) fn pull(self: &Rc<Self>, wish: WishId, kind: Kind, objects: Vec<ObjectId>, here: Option<&[bool]>) {
        if let Some(here) = here {
            return self.pull_seen_to(wish, kind, objects.into_iter().zip(here.iter().copied()));
        }
        let (missing, client) = (objects.len(), Requester::Control.tag(0));
        for (index, id) in objects.iter().enumerate() {
            let token = self.token();
            self.pulls.borrow_mut().looks.insert(token, (wish, index));
            self.store(id, StoreEvent::Contains { client, token, id: *id });
        }
        let objects = objects.into_iter().map(|object| (object, false)).collect();
        self.pulls.borrow_mut().looking.insert(wish, Look { kind, objects, missing });
    }

    /// A core says whether an object is here.
    pub(super) fn looked(self: &Rc<Self>, token: Token, has: bool) {
        let done = {
            let mut pulls = self.pulls.borrow_mut();
            let Some((wish, index)) = pulls.looks.remove(&token) else {
                return;
            };
            // The wish may have ended meanwhile.
            let Some(look) = pulls.looking.get_mut(&wish) else {
                return;
            };
            look.objects[index].1 = has;
            look.missing -= 1;
            if look.missing > 0 {
                return;
            }
            pulls.looking.remove(&wish).map(|look| (wish, look))
        };
        if let Some((wish, Look { kind, objects, .. })) = done {
            self.pull_seen_to(wish, kind, objects.into_iter());
        }
    }

    /// A wish of which it is known what is here goes to the pull manager.
    fn pull_seen_to(self: &Rc<Self>, wish: WishId, kind: Kind, objects: impl Iterator<Item = (ObjectId, bool)>) {
        let asks_at_once = kind == Kind::Get;
        let target = |(object, here): (ObjectId, bool)| {
            let likely = if asks_at_once && !here { self.likely_place(&object) } else { None };
            Target { object, here, likely }
        };
        let objects = objects.map(target).collect();
        self.pulled(PullEvent::Want { wish, kind, objects });
    }

    /// Where an object probably is: with its owner, who made it. Only a node that can say at once that it has it not.
    fn likely_place(&self, object: &ObjectId) -> Option<NodeId> {
        let node = self.objects.borrow().owner_node(object)?;
        let may_be_asked =
            node != self.node_id && self.nodes.borrow().get(&node).is_some_and(|record| record.bulk_port.is_some());
        may_be_asked.then_some(node)
    }

    /// A wish has ended.
    pub(super) fn pull_no_more(self: &Rc<Self>, wish: WishId) {
        let looking = self.pulls.borrow_mut().looking.remove(&wish).is_some();
        if !looking {
            self.pulled(PullEvent::Unwant { wish });
        }
    }

    /// What an owner says of an object that is wanted.
    pub(super) fn pull_located(self: &Rc<Self>, object: ObjectId, locations: &WorkerObjectLocationsPubMessage) {
        let spilled = NodeId::from_slice(&locations.spilled_node_id).filter(|node| !node.is_nil());
        let mut nodes: Vec<NodeId> = locations.node_ids.iter().filter_map(|node| NodeId::from_slice(node)).collect();
        if nodes.is_empty() {
            nodes.extend(spilled);
        }
        {
            let dead = self.dead.borrow();
            nodes.retain(|node| *node != self.node_id && !dead.has_node(node));
        }
        let (size_bytes, pending) = (locations.object_size, locations.pending_creation);
        self.pulled(PullEvent::Located { object, size_bytes, nodes, pending });
    }

    /// An object came to the store, or went.
    pub(super) fn pull_seen(self: &Rc<Self>, object: ObjectId, here: bool) {
        if !self.pulls.borrow().manager.is_wanting() {
            return;
        }
        self.pulled(match here {
            true => PullEvent::Here { object, held: false },
            false => PullEvent::Gone { object },
        });
    }

    /// A node joined: where its objects are asked for.
    pub(super) fn pull_node_joined(&self, node: NodeId) {
        if let Some(record) = self.node(&node) {
            let address = host_port(&record.address, i32::from(record.object_manager_port));
            let bulk_address = record.bulk_port.map(|port| host_port(&record.address, i32::from(port)));
            self.pulls.borrow().link.send(ToTransfer::Node { node, address, bulk_address });
        }
    }

    /// A node is dead: what it was asked for is asked of others.
    pub(super) fn pull_node_gone(self: &Rc<Self>, node: NodeId) {
        self.pulls.borrow().link.send(ToTransfer::NodeGone { node });
        self.pulled(PullEvent::NodeGone { node });
    }

    /// Tells the thread that moves objects.
    pub fn tell_transfer(&self, message: ToTransfer) {
        self.pulls.borrow().link.send(message);
    }

    /// News of the thread that moves objects, until it ends.
    pub async fn hear_transfers(self: Rc<Self>, news: flume::Receiver<TransferNews>) {
        while let Ok(news) = news.recv_async().await {
            if let TransferNews::Received { object } = news {
                self.copy_is_back(object);
            }
            self.pulled(match news {
                TransferNews::Received { object } => PullEvent::Here { object, held: true },
                TransferNews::Progress { object, from } => PullEvent::Progress { object, from },
                TransferNews::Failed { object, from } => PullEvent::Failed { object, from },
                TransferNews::Elsewhere { object, from, to } => PullEvent::Elsewhere { object, from, to },
                TransferNews::NoRoom { object } => PullEvent::NoRoom { object },
            });
        }
    }

    /// Figures for reports.
    pub fn pull_stats(&self) -> PullStats {
        self.pulls.borrow().stats()
    }

    /// What moves between this node and others.
    pub fn transfer_status(&self) -> TransferStatus {
        let (pulls, stats) = (self.pulls.borrow(), self.pull_stats());
        TransferStatus { pulls_wanted: stats.wanted as u64, pulls_asked: stats.asked as u64, ..pulls.link.status() }
    }

    /// Tells the pull manager, and does what it wants done.
    fn pulled(self: &Rc<Self>, event: PullEvent) {
        let mut effects = Vec::new();
        let tick = {
            let pulls = &mut *self.pulls.borrow_mut();
            let now = pulls.started.elapsed().as_nanos() as NowNs;
            pulls.manager.handle(event, now, &mut effects);
            pulls.manager.is_wanting() && !std::mem::replace(&mut pulls.ticking, pulls.manager.is_wanting())
        };
        for effect in effects {
            self.carry_out_pull(effect);
        }
        if tick {
            tokio::task::spawn_local(self.clone().tick_pulls());
        }
    }

    fn carry_out_pull(self: &Rc<Self>, effect: PullEffect) {
        match effect {
            PullEffect::Locate { object } => self.locate(object),
            PullEffect::Forget { object } => {
                self.tell_transfer(ToTransfer::Stop { object });
                self.locate_no_more(object);
            }
            PullEffect::Ask { object, from } | PullEffect::AskIfThere { object, from } => {
                let Some(owner) = self.owner_of_wanted(&object) else {
                    return;
                };
                // The copy that comes is told of.
                let worker = owner.worker;
                self.owner_seen(address(owner));
                let if_there = matches!(effect, PullEffect::AskIfThere { .. });
                self.tell_transfer(ToTransfer::Ask { object, owner: worker, from, if_there });
            }
            PullEffect::Stop { object } => self.tell_transfer(ToTransfer::Stop { object }),
            PullEffect::Release { object } => self.tell_transfer(ToTransfer::Release { object }),
        }
    }

    /// While anything is wanted: lets time pass, and looks at the room that the store has.
    async fn tick_pulls(self: Rc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            let reports = core_reports(&self.cores, false).await;
            let room = {
                let pulls = self.pulls.borrow();
                room(&reports, pulls.capacity_bytes, pulls.link.creating())
            };
            self.pulled(room);
            self.pulled(PullEvent::Tick);
            let mut pulls = self.pulls.borrow_mut();
            let waiting = pulls.stats().waiting > 0;
            if std::mem::replace(&mut pulls.told_waiting, waiting) != waiting {
                self.mark_resources_changed();
            }
            if !pulls.manager.is_wanting() {
                pulls.ticking = false;
                return;
            }
        }
    }

    fn owner_of_wanted(&self, object: &ObjectId) -> Option<Owner> {
        self.objects.borrow().owner_of(object)
    }
}
