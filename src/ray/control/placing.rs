//! Which node serves a lease, where there are several.
//!
//! The choice itself is [`raylet_shard::cluster`]'s. Here it gets what it needs, the views of the other nodes and what the cores have
//! free at this moment, and what it chose is carried out: a request goes to its shard, or its owner is told another node. One request
//! after the other is placed (`turn`), so that each sees what the one before it took.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_shard::cluster::{amounts, Amounts, Here, Policy, Strategy, Verdict, View, Views, Want};
use raylet_shard::ids::{LeaseId, NodeId, NowNs};
use raylet_shard::sched::{Fixed, ResourceId, SchedEvent};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tokio::sync::{oneshot, Mutex, Notify};
use tonic::Status;

use super::leases::{cancelled, unschedulable};
use super::Control;
use crate::bridge::ToCore;
use crate::config::ray::RayConfig;
use crate::ray::affinity::{judge, Verdict as Affine};
use crate::ray::core_rpc::desk::StayRule;
use crate::ray::nodes::MAX_NODES;
use crate::ray::placement::Place;
use crate::ray::proto::syncer::ResourceViewSyncMessage;
use crate::ray::proto::{self, RequestWorkerLeaseReply};
use crate::ray::resources::CPU;

/// Ray's name for the memory of workers.
const MEMORY: &str = "memory";
/// Ray's name for GPUs.
const GPU: &str = "GPU";
/// Waiting leases are looked at after news of other nodes, at most this often.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// The pause is at least so many times as long as the look was.
const LOOK_SHARE: u32 = 4;
/// And without news this often, because what is free here changes too.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Most waiting leases that one look is for.
const LOOK_MAX: usize = 1_024;
/// A node that drains, with no other that could serve a request, answers it after this pause; its owner asks again.
const DRAINED_RETRY: Duration = Duration::from_secs(1);

/// Of some resources, what there is and what is free.
pub type Room = SmallVec<[(Fixed, Fixed); 8]>;

/// Why a lease is taken out of its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Another node has room.
    To(NodeId),
    /// Another node has room, but this one may not say so: the owner is to ask again where it asked first.
    Back,
    /// The node that it names can't serve it any more.
    Unserved,
}

/// Where a request goes.
pub enum Placed {
    /// Its owner is told at once.
    Elsewhere(Box<RequestWorkerLeaseReply>),
    /// To its shard.
    Here {
        /// Until some node can hold it.
        waits: bool,
        /// It fails where it is not granted at once.
        now_or_never: bool,
        /// It is rejected where it is not granted at once.
        at_once: bool,
    },
}

/// What the choice needs to know.
pub struct Placing {
    views: RefCell<Views>,
    /// Views of nodes that the GCS has not told of yet.
    early: RefCell<FxHashMap<NodeId, View>>,
    policy: Policy,
    turn: Mutex<()>,
    /// Used part of the object store, 0 to 1.
    store_use: Cell<f64>,
    /// What the desks were told last.
    rule: RefCell<Option<StayRule>>,
    news: Notify,
    started: Instant,
}

/// What this node has for a request.
struct Weighed {
    feasible: bool,
    available: bool,
    grantable: bool,
    utilization: f64,
    /// The lease that was asked about waits, and holds nothing.
    waits: bool,
}

impl Placing {
    /// Nothing is known yet.
    pub fn new(config: &RayConfig) -> Self {
        let policy = Policy {
            spread_threshold: config.scheduler_spread_threshold,
            top_k_fraction: config.scheduler_top_k_fraction,
            top_k_absolute: usize::try_from(config.scheduler_top_k_absolute).unwrap_or(0),
            avoid_gpu_nodes: config.scheduler_avoid_gpu_nodes,
        };
        Self {
            views: RefCell::default(),
            early: RefCell::default(),
            policy,
            turn: Mutex::default(),
            store_use: Cell::new(0.0),
            rule: RefCell::default(),
            news: Notify::new(),
            started: Instant::now(),
        }
    }

    /// A node lives, and has all that it has until it tells otherwise.
    pub(super) fn joined(&self, id: NodeId, node: &proto::GcsNodeInfo) {
        let early = self.early.borrow_mut().remove(&id);
        let mut views = self.views.borrow_mut();
        if !views.knows(&id) {
            let total = amounts(&node.resources_total);
            let fresh = || View { available: total.clone(), total, labels: node.labels.clone(), draining: false };
            views.heard(id, early.unwrap_or_else(fresh));
        }
        self.news.notify_one();
    }

    /// A node is dead.
    pub(super) fn died(&self, id: &NodeId) {
        self.early.borrow_mut().remove(id);
        self.views.borrow_mut().died(id);
        // What can't run anywhere any more, and is bound to that node, fails.
        self.news.notify_one();
    }

    fn heard(&self, id: NodeId, message: &ResourceViewSyncMessage) {
        let mut views = self.views.borrow_mut();
        let labels = match message.labels.is_empty() {
            true => views.get(&id).map(|view| view.labels.clone()).unwrap_or_default(),
            false => message.labels.clone(),
        };
        let (total, available) = (amounts(&message.resources_total), amounts(&message.resources_available));
        let view = View { total, available, labels, draining: message.is_draining };
        if views.knows(&id) {
            views.heard(id, view);
            if views.has_news() {
                self.news.notify_one();
            }
        } else if self.early.borrow().len() < MAX_NODES {
            self.early.borrow_mut().insert(id, view);
        }
    }

    fn now(&self) -> NowNs {
        self.started.elapsed().as_nanos() as NowNs
    }
}

impl Control {
    /// True where there are other nodes.
    pub(super) fn in_cluster(&self) -> bool {
        !self.placing.views.borrow().is_empty()
    }

    /// What a node tells of its resources.
    pub(super) fn view_heard(&self, node: NodeId, message: &ResourceViewSyncMessage) {
        if !self.dead.borrow().has_node(&node) {
            self.placing.heard(node, message);
        }
    }

    /// So much of the object store is used, 0 to 1.
    pub(super) fn store_used(&self, part: f64) {
        self.placing.store_use.set(part);
        self.tell_desks();
    }

    /// Tells the desks what they may keep to themselves, where that has changed.
    pub(super) fn tell_desks(&self) {
        let rule = self.in_cluster().then(|| {
            let (threshold, names) = (self.placing.policy.spread_threshold, self.names.borrow());
            let full = self.placing.store_use.get() >= threshold;
            let critical = [CPU, MEMORY].iter().filter_map(|name| names.get(name)).collect();
            StayRule { below: if full { 0.0 } else { threshold }, critical }
        });
        if *self.placing.rule.borrow() != rule {
            *self.placing.rule.borrow_mut() = rule.clone();
            self.to_cores(|| ToCore::Cluster(rule.clone()));
        }
    }

    /// Places a request where this node is alone.
    pub(super) fn place_alone(&self, spec: &proto::LeaseSpec, grant_or_reject: bool) -> Result<Placed, Status> {
        Ok(match judge(spec, &self.node_id, &self.totals.borrow(), &self.labels) {
            Affine::Never => Placed::Elsewhere(Box::new(unschedulable())),
            affine => {
                let now_or_never = affine == Affine::NowOrNever;
                Placed::Here { waits: false, now_or_never, at_once: grant_or_reject }
            }
        })
    }

    /// Places a request where there are other nodes.
    pub(super) async fn place_request(
        &self,
        lease: LeaseId,
        spec: &proto::LeaseSpec,
        grant_or_reject: bool,
        by_locality: bool,
    ) -> Result<Placed, Status> {
        let want = Place::of(spec).want().map_err(|error| Status::invalid_argument(error.to_string()))?;
        let fails = matches!(&want.strategy, Strategy::Affinity(to) if !to.soft && to.fail_on_unavailable);
        let turn = self.placing.turn.lock().await;
        if self.leases.borrow().get(&lease).is_some() {
            // Asked again: its shard knows it.
            return Ok(Placed::Here { waits: false, now_or_never: fails, at_once: false });
        }
        if self.leases.borrow().is_cancelled_ahead(&lease) {
            return Ok(Placed::Elsewhere(Box::new(cancelled("The lease request was cancelled before it arrived."))));
        }
        let here = self.weigh(&want, None).await;
        let verdict = self.choose(&want, &here, grant_or_reject || by_locality, grant_or_reject);
        let draining = self.draining.borrow().is_some();
        Ok(match verdict {
            Verdict::Spill(node) => Placed::Elsewhere(Box::new(self.spill_reply(&node))),
            Verdict::Reject => Placed::Elsewhere(Box::new(self.rejected())),
            Verdict::Fail => Placed::Elsewhere(Box::new(unschedulable())),
            Verdict::Stay | Verdict::Wait if draining && grant_or_reject => {
                Placed::Elsewhere(Box::new(self.rejected()))
            }
            Verdict::Stay | Verdict::Wait if draining => {
                drop(turn);
                tokio::time::sleep(DRAINED_RETRY).await;
                Placed::Elsewhere(Box::new(cancelled("The node is draining, and no other node can serve the lease.")))
            }
            Verdict::Stay => Placed::Here { waits: false, now_or_never: fails, at_once: false },
            Verdict::Wait => Placed::Here { waits: !here.feasible, now_or_never: fails, at_once: false },
        })
    }

    /// Asks the cores what is free for a request, and whether a lease waits for it.
    async fn weigh(&self, want: &Want, lease: Option<LeaseId>) -> Weighed {
        let mut named: SmallVec<[(&str, ResourceId); 8]> = SmallVec::new();
        {
            let names = self.names.borrow();
            let wanted = want.demand.keys().chain(want.placement.keys()).map(|name| &**name);
            for name in [CPU, MEMORY].into_iter().chain(wanted) {
                if let Some(id) = names.get(name).filter(|_| named.iter().all(|(known, _)| *known != name)) {
                    named.push((name, id));
                }
            }
        }
        let mut waiting = Vec::with_capacity(self.cores.len());
        for shard in 0..self.shards() {
            let token = self.token();
            let (sender, receiver) = oneshot::channel();
            self.waiters.borrow_mut().weighed.insert(token, sender);
            self.to_core(shard, ToCore::Weigh { token, lease, ids: named.iter().map(|(_, id)| *id).collect() });
            waiting.push(receiver);
        }
        let (mut room, mut waits) = (vec![(Fixed::ZERO, Fixed::ZERO); named.len()], false);
        for receiver in waiting {
            // A core that does not answer has died, which is told elsewhere.
            let Ok((part, waits_there)) = receiver.await else { continue };
            waits |= waits_there;
            for ((total, free), (total_there, free_there)) in room.iter_mut().zip(part) {
                *total = (*total).max(total_there);
                *free += free_there;
            }
        }
        let part =
            |name: &str| named.iter().position(|(known, _)| *known == name).map(|at| room[at]).unwrap_or_default();
        let holds =
            |set: &Amounts, of: fn((Fixed, Fixed)) -> Fixed| set.iter().all(|(name, amount)| of(part(name)) >= *amount);
        let used = |(total, free): (Fixed, Fixed)| match total > Fixed::ZERO {
            true => (1.0 - free.to_f64() / total.to_f64()).clamp(0.0, 1.0),
            false => 0.0,
        };
        Weighed {
            feasible: holds(&want.placement, |part| part.0) && holds(&want.demand, |part| part.0),
            available: holds(&want.placement, |part| part.1),
            grantable: holds(&want.demand, |part| part.1),
            utilization: used(part(CPU)).max(used(part(MEMORY))).max(self.placing.store_use.get()),
            waits,
        }
    }

    fn choose(&self, want: &Want, weighed: &Weighed, prefer_here: bool, grant_or_reject: bool) -> Verdict {
        let here = Here {
            id: self.node_id,
            labels: &self.labels,
            open: self.draining.borrow().is_none(),
            feasible: weighed.feasible,
            available: weighed.available,
            grantable: weighed.grantable,
            utilization: weighed.utilization,
            has_gpu: self.totals.borrow().get(GPU).is_some_and(|gpus| *gpus > Fixed::ZERO),
        };
        let mut views = self.placing.views.borrow_mut();
        let lot = &mut |below| rand::random_range(0..below);
        let choice = views.pick(want, &here, prefer_here, &self.placing.policy, lot);
        let verdict = choice.verdict(want, grant_or_reject);
        if let Verdict::Spill(node) = verdict {
            views.debit(&node, &want.demand, self.placing.now());
        }
        verdict
    }

    /// The reply that sends an owner to another node.
    pub(super) fn spill_reply(&self, node: &NodeId) -> RequestWorkerLeaseReply {
        let Some(record) = self.node(node) else {
            return cancelled("The node that was to serve the lease died.");
        };
        self.counters.leases_spilled.add_one();
        let retry_at = proto::Address {
            node_id: node.as_bytes().to_vec().into(),
            ip_address: record.address,
            port: i32::from(record.node_manager_port),
            ..proto::Address::default()
        };
        RequestWorkerLeaseReply { retry_at_raylet_address: Some(retry_at), ..RequestWorkerLeaseReply::default() }
    }

    /// Looks at waiting leases again and again, until the node ends.
    pub async fn keep_placing(self: Rc<Self>) {
        loop {
            // Either way it is time.
            let _ = tokio::time::timeout(LOOK_INTERVAL, self.placing.news.notified()).await;
            let began = Instant::now();
            self.placing.views.borrow_mut().refresh(self.placing.now());
            self.look_again().await;
            // Where much waits a look takes long, and must not take the thread for itself.
            tokio::time::sleep(LOOK_PAUSE.max(began.elapsed() * LOOK_SHARE)).await;
        }
    }

    /// Sends leases that wait here to nodes that have room, the newest first; of a class, until one is better off here.
    pub(super) async fn look_again(&self) {
        self.placing.views.borrow_mut().take_news();
        if !self.in_cluster() {
            return;
        }
        let mut waiting: Vec<_> = {
            let leases = self.leases.borrow();
            let waits = leases.iter().filter(|(_, entry)| entry.worker.is_none() && entry.leaves.is_none());
            waits.map(|(lease, entry)| (entry.class, Reverse(entry.number), *lease)).collect()
        };
        waiting.sort_unstable();
        let mut settled = None;
        let mut looked = 0;
        for (class, _, lease) in waiting {
            if settled == Some(class) {
                continue;
            }
            looked += 1;
            if looked > LOOK_MAX {
                // The rest is looked at with the next news, or a little later.
                return;
            }
            if !self.look_at(lease).await {
                settled = Some(class);
            }
        }
    }

    /// Looks at one waiting lease. False where it stays, and those like it would too.
    async fn look_at(&self, lease: LeaseId) -> bool {
        let _turn = self.placing.turn.lock().await;
        let Some((place, grant_or_reject, shard)) = ({
            let leases = self.leases.borrow();
            let entry = leases.get(&lease).filter(|entry| entry.worker.is_none());
            entry.map(|entry| (entry.place.clone(), entry.grant_or_reject, entry.shard))
        }) else {
            return true;
        };
        let Ok(want) = place.want() else {
            return true;
        };
        // Ray leaves what was spread where it is while its objects come.
        if want.strategy == Strategy::Spread && place.has_arguments {
            return true;
        }
        let weighed = self.weigh(&want, Some(lease)).await;
        if !weighed.waits {
            return true;
        }
        let leaves = match self.choose(&want, &weighed, true, grant_or_reject) {
            Verdict::Spill(node) => Leave::To(node),
            Verdict::Reject => Leave::Back,
            Verdict::Fail => Leave::Unserved,
            Verdict::Stay | Verdict::Wait => return false,
        };
        if let Some(entry) = self.leases.borrow_mut().get_mut(&lease) {
            entry.leaves = Some(leaves);
        }
        self.sched(shard, SchedEvent::Withdraw { lease });
        true
    }

    /// A node that drains turned a request away that no other node had sent: its owner may only be told so a little later, as a
    /// request that was given up, or it would ask without end.
    pub(super) async fn drained_pause(&self) {
        tokio::time::sleep(DRAINED_RETRY).await;
    }
}
