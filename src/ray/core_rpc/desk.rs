//! The lease desk of a core: RequestWorkerLease and ReturnWorkerLease answered where the lease queues are.
//!
//! The desk takes a request whose shape the control thread has taught it ([`Lesson`]) and that needs nothing but resources and a
//! worker: no arguments to wait for, no node or label to be on, no placement group. Everything else, and the first request
//! of every shape, goes to the control thread (see [`crate::ray::control`]), which stays the one who knows all leases: it
//! is told of each that the desk lets through, grants and takes back, in order, and a few milliseconds late, because
//! nothing waits for it.
//!
//! In a cluster of several nodes the desk keeps only what this node serves at once and no other node should ([`StayRule`]).

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use raylet_shard::ids::{LeaseId, NodeId, ShardId, WorkerId};
use raylet_shard::sched::{ClassId, ResourceId, SchedEffect, SchedEvent, WorkerFate};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tonic::Status;

use crate::bridge::{Requester, ToControl, MAX_RPCS_IN_FLIGHT};
use crate::core_loop::Core;
use crate::ray::control::died_as_granted;
use crate::ray::core_rpc::{CoreRpc, Waiter};
use crate::ray::expiring::{Expiring, MAX_TOMBSTONES};
use crate::ray::lease_shape::{actor_of, lease_request, Asker, Shape};
use crate::ray::proto::{self, RequestWorkerLeaseReply, RequestWorkerLeaseRequest};
use crate::ray::registry::Dead;
use crate::ray::resources::mapping;
use crate::ray::rpc::frame::encode;

/// What the control thread teaches of a scheduling class.
#[derive(Clone, Debug)]
pub struct Lesson {
    /// How its requests look.
    pub shape: Shape,
    /// The class.
    pub class: ClassId,
    /// The shard that queues them.
    pub shard: ShardId,
    /// Names of the resources that a grant can have.
    pub names: Vec<(ResourceId, String)>,
}

/// What a desk answers itself in a cluster of several nodes: requests that this node serves at once, and that no other node should.
/// Everything else is the control thread's, who knows the other nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct StayRule {
    /// This node serves what fits, as long as it is used less than this, 0 to 1.
    pub below: f64,
    /// The resources that its use is read from.
    pub critical: SmallVec<[ResourceId; 2]>,
}

/// What an owner is told of a worker.
#[derive(Clone, Debug)]
pub struct Card {
    /// Where the worker is reached.
    pub address: proto::Address,
    /// Its process.
    pub pid: u32,
}

/// See the [module](self).
#[derive(Default)]
pub struct Desk {
    node_id: NodeId,
    classes: FxHashMap<Shape, (ClassId, ShardId)>,
    names: FxHashMap<ResourceId, String>,
    cards: FxHashMap<WorkerId, Card>,
    /// Leases that the desk let through and granted, with their shard.
    granted: FxHashMap<LeaseId, ShardId>,
    /// Leases that were cancelled before they were asked for.
    tombstones: Expiring<()>,
    dead: Dead,
    /// `None` while this node is alone.
    rule: Option<StayRule>,
}

impl Desk {
    /// The node has its name.
    pub fn open(&mut self, node_id: NodeId) {
        self.node_id = node_id;
    }

    /// Other nodes came, went or are to be left more or less.
    pub fn set_rule(&mut self, rule: Option<StayRule>) {
        self.rule = rule;
    }

    /// Learns a class.
    pub fn learn(&mut self, lesson: Lesson) {
        self.classes.insert(lesson.shape, (lesson.class, lesson.shard));
        self.names.extend(lesson.names);
    }

    /// Forgets a class, whose number may mean another one later.
    pub fn forget(&mut self, class: ClassId) {
        self.classes.retain(|_, (known, _)| *known != class);
    }

    /// A worker can be leased.
    pub fn worker_ready(&mut self, worker: WorkerId, card: Card) {
        self.cards.insert(worker, card);
    }

    /// A worker or driver is dead.
    pub fn owner_gone(&mut self, owner: WorkerId) {
        self.cards.remove(&owner);
        self.dead.add_worker(owner);
    }

    /// A node is dead.
    pub fn node_gone(&mut self, node: NodeId) {
        self.dead.add_node(node);
    }

    /// A lease was cancelled before it was asked for.
    pub fn cancelled_ahead(&mut self, lease: LeaseId, ttl: Duration) {
        self.tombstones.expire();
        self.tombstones.insert(lease, (), ttl, MAX_TOMBSTONES);
    }

    /// A lease ended without being given back.
    pub fn lease_lost(&mut self, lease: &LeaseId) {
        self.granted.remove(lease);
    }

    fn takes(&self, spec: &proto::LeaseSpec, lease: &LeaseId, asker: &Asker) -> bool {
        use proto::scheduling_strategy::SchedulingStrategy as Strategy;
        let strategy = spec.scheduling_strategy.as_ref().and_then(|s| s.scheduling_strategy.as_ref());
        matches!(strategy, None | Some(Strategy::DefaultSchedulingStrategy(_) | Strategy::SpreadSchedulingStrategy(_)))
            && spec.dependencies.is_empty()
            && spec.label_selector.as_ref().is_none_or(|selector| selector.label_constraints.is_empty())
            && spec.fallback_strategy.as_ref().is_none_or(|fallback| fallback.options.is_empty())
            && !self.tombstones.has(lease)
            && !self.dead.has(&asker.owner, Some(&asker.node))
    }

    fn reply(
        &self,
        worker: &WorkerId,
        allocation: &raylet_shard::sched::Allocation,
    ) -> Option<RequestWorkerLeaseReply> {
        let card = self.cards.get(worker)?;
        Some(RequestWorkerLeaseReply {
            worker_address: Some(card.address.clone()),
            worker_pid: card.pid,
            resource_mapping: mapping(allocation, |id| self.names.get(&id).map_or("", String::as_str)),
            ..Default::default()
        })
    }
}

/// What the lease queues are asked for a request that the desk takes.
struct Taken {
    grant_or_reject: bool,
    spec: proto::LeaseSpec,
    lease: LeaseId,
    asker: Asker,
    class: ClassId,
    shard: ShardId,
    at_once: bool,
}

/// A request for a worker.
///
/// # Errors
/// Who waits for it, where the control thread has to look at it.
pub fn request(core: &Rc<Core>, message: &Bytes, waiter: Waiter) -> Result<(), Waiter> {
    let Some(Taken { grant_or_reject, spec, lease, asker, class, shard, at_once }) = take(core, message) else {
        return Err(waiter);
    };
    let call = core.rpc.wait_for_reply(waiter);
    let token = Requester::Shard(core.shard).tag(call);
    let wanted = lease_request(token, lease, class, asker, &spec, at_once);
    core.tell_control_later(ToControl::Asked { lease, shard, class, grant_or_reject, spec: Box::new(spec) });
    core.sched_on(shard, SchedEvent::Request(Box::new(wanted)));
    Ok(())
}

fn take(core: &Rc<Core>, message: &Bytes) -> Option<Taken> {
    let mut request = RequestWorkerLeaseRequest::decode(message.clone()).ok()?;
    let spec = request.lease_spec.take()?;
    let lease = LeaseId::from_slice(&spec.lease_id)?;
    let asker = Asker::of(&spec);
    let (class, shard, at_once) = {
        let desk = core.rpc.desk.borrow();
        if !desk.takes(&spec, &lease, &asker) {
            return None;
        }
        let (class, shard) = desk.classes.get(&Shape::of(&spec)).copied()?;
        let moves = |rule| shard != core.shard || !(core.knows(lease) || keeps(core, &request, &spec, class, rule));
        if desk.rule.as_ref().is_some_and(moves) {
            return None;
        }
        // In a cluster it may wait where nobody else has room; the control thread sends it back when somebody has.
        (class, shard, request.grant_or_reject && desk.rule.is_none())
    };
    Some(Taken { grant_or_reject: request.grant_or_reject, spec, lease, asker, class, shard, at_once })
}

/// True for a request that the rule of a cluster leaves to the desk: for a task, with the default strategy or chosen for this node
/// before, that is served at once.
fn keeps(
    core: &Core,
    request: &RequestWorkerLeaseRequest,
    spec: &proto::LeaseSpec,
    class: ClassId,
    rule: &StayRule,
) -> bool {
    use proto::scheduling_strategy::SchedulingStrategy::SpreadSchedulingStrategy as Spread;
    let strategy = spec.scheduling_strategy.as_ref().and_then(|s| s.scheduling_strategy.as_ref());
    let chosen = request.grant_or_reject || request.is_selected_based_on_locality;
    let spreads = matches!(strategy, Some(Spread(_)));
    actor_of(spec).is_none() && (chosen || !spreads) && core.stays(class, rule, chosen)
}

/// An owner gives a lease back. `None`: the control thread has to look at it.
pub fn give_back(core: &Rc<Core>, message: &Bytes) -> Option<Result<Bytes, Status>> {
    let request = proto::ReturnWorkerLeaseRequest::decode(message.clone()).ok()?;
    if request.disconnect_worker || request.worker_exiting {
        return None;
    }
    let lease = LeaseId::from_slice(&request.lease_id)?;
    let shard = core.rpc.desk.borrow_mut().granted.remove(&lease)?;
    core.tell_control_later(ToControl::Returned { lease });
    core.sched_on(shard, SchedEvent::Return { lease, fate: WorkerFate::Keep });
    Some(encode(&proto::ReturnWorkerLeaseReply {}))
}

/// The shard's word on a request that came through this desk: a grant is answered here, everything else by the control thread.
pub fn settle(core: &Rc<Core>, from: ShardId, effect: SchedEffect) {
    let SchedEffect::Granted { token, lease, worker, allocation, .. } = effect else {
        return core.tell_control(ToControl::Sched(effect));
    };
    let reply = {
        let mut desk = core.rpc.desk.borrow_mut();
        if desk.granted.len() < MAX_RPCS_IN_FLIGHT {
            desk.granted.insert(lease, from);
        }
        desk.reply(&worker, &allocation)
    };
    core.tell_control_later(ToControl::Granted { lease, worker });
    let reply = match reply {
        Some(reply) => encode(&reply),
        // It died between the grant and this line; its death gives the lease back.
        None => encode(&died_as_granted(&lease)),
    };
    CoreRpc::answered(core, Requester::local(token), reply);
}
