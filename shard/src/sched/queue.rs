//! Leases and their classes: who waits in which order, and what each lease holds.

use rustc_hash::FxHashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::api::LeaseRequest;
use super::types::*;
use super::waiters::Ticket;
use super::workers::Fit;
use crate::ids::{ActorId, JobId, LeaseId, NodeId, NowNs, ObjectId, Token, WorkerId};

/// Index of a lease in [`Leases`].
pub(crate) type LeaseIdx = u32;

const NONE: LeaseIdx = LeaseIdx::MAX;

/// The worker process that a lease without a worker counts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Process {
    /// None yet.
    None,
    /// The other shards are asked for an idle one.
    Sought,
    /// It has this place in the queue of starts.
    Queued(u64),
    /// It is being started.
    Started(StartToken),
}

/// How far a lease is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Waits for its objects.
    Deps,
    /// In its class's queue.
    Ready,
    /// All or nothing: waits for the bank's answer.
    Taking,
    /// Holds its resources and waits for a worker.
    Worker {
        /// Its place among those that wait for the same kind.
        seq: u64,
        /// The process it counts on.
        process: Process,
    },
    /// With its owner.
    Granted(WorkerId),
}

/// A request, then a lease.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    pub(crate) class: ClassId,
    pub(crate) owner: WorkerId,
    pub(crate) owner_node: NodeId,
    pub(crate) job: JobId,
    pub(crate) actor: Option<ActorId>,
    pub(crate) detached: bool,
    pub(crate) root: Option<ActorId>,
    pub(crate) is_gpu: bool,
    pub(crate) grant_or_reject: bool,
    pub(crate) priority: i32,
    pub(crate) watched: bool,
    /// Its worker is blocked: its CPU is free for others.
    pub(crate) cpu_out: bool,
    pub(crate) killed: bool,
    pub(crate) missing: SmallVec<[ObjectId; 2]>,
    pub(crate) tokens: SmallVec<[Token; 1]>,
    pub(crate) since: NowNs,
    pub(crate) attempts: u32,
    pub(crate) stage: Stage,
    pub(crate) allocation: Allocation,
    prev: LeaseIdx,
    next: LeaseIdx,
}

impl Lease {
    fn new(request: LeaseRequest, now: NowNs) -> Self {
        Self {
            id: request.lease,
            class: request.class,
            owner: request.owner,
            owner_node: request.owner_node,
            job: request.job,
            actor: request.actor,
            detached: request.detached,
            root: request.root_detached_actor,
            is_gpu: request.is_gpu,
            grant_or_reject: request.grant_or_reject,
            priority: request.priority,
            watched: false,
            cpu_out: false,
            killed: false,
            missing: request.deps,
            tokens: SmallVec::from_slice(&[request.token]),
            since: now,
            attempts: 0,
            stage: Stage::Deps,
            allocation: Allocation::default(),
            prev: NONE,
            next: NONE,
        }
    }

    /// What its worker must be.
    pub(crate) fn fit(&self, key: WorkerKey) -> Fit {
        Fit { key, job: self.job, root: self.root, is_gpu: self.is_gpu, is_actor: self.actor.is_some() }
    }
}

/// Where a class stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ClassState {
    /// Nothing of it is ready.
    Idle,
    /// It waits for a resource, of which it needs this much.
    Parked(ResourceId, Fixed),
    /// Freed resources are set aside for it.
    Reserved,
    /// It has as many leases as the node has room for; it goes on at this time, or as one ends.
    Capped(NowNs),
}

/// A scheduling class.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) def: ClassDef,
    head: LeaseIdx,
    /// Each priority of which something is ready, and the last of it: the highest first.
    lanes: SmallVec<[(i32, LeaseIdx); 1]>,
    pub(crate) ready: u32,
    pub(crate) waiting_deps: u32,
    pub(crate) taking: u32,
    pub(crate) waiting_worker: u32,
    pub(crate) granted: u32,
    pub(crate) state: ClassState,
    pub(crate) ticket: Ticket,
    /// How often it was passed by before it was parked where it is now.
    pub(crate) bypassed: u64,
    /// The clock of the resource when it was parked there.
    pub(crate) mark: u64,
    /// No reservation before this.
    pub(crate) reserve_after_ns: NowNs,
    /// How long the next reservation lasts; 0: the configured first length.
    pub(crate) reserve_ns: u64,
    /// The number of the want that the bank has of it.
    pub(crate) wanted: Option<u64>,
    /// When a class over its cap may go on; none where it is not over.
    pub(crate) cap_next_ns: Option<NowNs>,
    pub(crate) backlog: FxHashMap<WorkerId, u32>,
}

impl Class {
    pub(crate) fn new(def: ClassDef) -> Self {
        Self {
            def,
            head: NONE,
            lanes: SmallVec::new(),
            ready: 0,
            waiting_deps: 0,
            taking: 0,
            waiting_worker: 0,
            granted: 0,
            state: ClassState::Idle,
            ticket: 0,
            bypassed: 0,
            mark: 0,
            reserve_after_ns: 0,
            reserve_ns: 0,
            wanted: None,
            cap_next_ns: None,
            backlog: FxHashMap::default(),
        }
    }

    /// Leases that hold resources.
    pub(crate) fn holding(&self) -> u32 {
        self.waiting_worker + self.granted
    }

    /// True where no lease of it is known.
    pub(crate) fn is_unused(&self) -> bool {
        self.ready + self.waiting_deps + self.taking + self.holding() == 0
    }

    /// True where nobody asks for it and nobody said that he will.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_unused() && self.backlog.is_empty() && self.wanted.is_none()
    }

    fn count(&mut self, stage: Stage) -> &mut u32 {
        match stage {
            Stage::Deps => &mut self.waiting_deps,
            Stage::Ready => &mut self.ready,
            Stage::Taking => &mut self.taking,
            Stage::Worker { .. } => &mut self.waiting_worker,
            Stage::Granted(_) => &mut self.granted,
        }
    }
}

/// All leases and classes of a shard.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    pub(crate) slab: Slab<Lease>,
    ids: FxHashMap<LeaseId, LeaseIdx>,
    pub(crate) classes: FxHashMap<ClassId, Class>,
}

impl Leases {
    pub(crate) fn find(&self, id: LeaseId) -> Option<LeaseIdx> {
        self.ids.get(&id).copied()
    }

    pub(crate) fn get(&self, at: LeaseIdx) -> &Lease {
        &self.slab[at as usize]
    }

    pub(crate) fn get_mut(&mut self, at: LeaseIdx) -> &mut Lease {
        &mut self.slab[at as usize]
    }

    /// A class that is known to exist: every lease's class stays until the lease is gone.
    pub(crate) fn class(&self, id: ClassId) -> &Class {
        &self.classes[&id]
    }

    pub(crate) fn class_mut(&mut self, id: ClassId) -> &mut Class {
        self.classes.get_mut(&id).expect("a lease's class stays until the lease is gone")
    }

    /// Adds a request in stage [`Stage::Deps`].
    pub(crate) fn insert(&mut self, request: LeaseRequest, now: NowNs) -> LeaseIdx {
        let (id, class) = (request.lease, request.class);
        let at = self.slab.insert(Lease::new(request, now)) as LeaseIdx;
        self.ids.insert(id, at);
        self.class_mut(class).waiting_deps += 1;
        at
    }

    /// Moves a lease to another stage; into the queue at its end, or at its front.
    pub(crate) fn set_stage(&mut self, at: LeaseIdx, stage: Stage, front: bool) {
        let lease = &self.slab[at as usize];
        let (class, before) = (lease.class, lease.stage);
        if before == Stage::Ready {
            self.unlink(at, class);
        }
        let counts = self.class_mut(class);
        *counts.count(before) -= 1;
        *counts.count(stage) += 1;
        self.slab[at as usize].stage = stage;
        if stage == Stage::Ready {
            self.link(at, class, front);
        }
    }

    /// Forgets a lease.
    pub(crate) fn remove(&mut self, at: LeaseIdx) -> Lease {
        let (class, stage) = (self.get(at).class, self.get(at).stage);
        if stage == Stage::Ready {
            self.unlink(at, class);
        }
        *self.class_mut(class).count(stage) -= 1;
        let lease = self.slab.remove(at as usize);
        self.ids.remove(&lease.id);
        lease
    }

    /// The first in a class's queue.
    pub(crate) fn head(&self, class: ClassId) -> Option<LeaseIdx> {
        let head = self.classes.get(&class)?.head;
        (head != NONE).then_some(head)
    }

    /// Puts a lease into its class's queue: behind those of its priority, or in front of them. Takes as long as it takes to find the
    /// priority among those that wait.
    fn link(&mut self, at: LeaseIdx, class: ClassId, front: bool) {
        let priority = self.slab[at as usize].priority;
        let ends = self.classes.get_mut(&class).expect("a lease's class stays until the lease is gone");
        let lane = ends.lanes.partition_point(|lane| lane.0 > priority);
        let higher = lane.checked_sub(1).map_or(NONE, |above| ends.lanes[above].1);
        let prev = match ends.lanes.get_mut(lane).filter(|lane| lane.0 == priority) {
            Some(_) if front => higher,
            Some(lane) => std::mem::replace(&mut lane.1, at),
            None => {
                ends.lanes.insert(lane, (priority, at));
                higher
            }
        };
        let next = if prev == NONE { std::mem::replace(&mut ends.head, at) } else { self.slab[prev as usize].next };
        if prev != NONE {
            self.slab[prev as usize].next = at;
        }
        if next != NONE {
            self.slab[next as usize].prev = at;
        }
        let lease = &mut self.slab[at as usize];
        (lease.prev, lease.next) = (prev, next);
    }

    fn unlink(&mut self, at: LeaseIdx, class: ClassId) {
        let Lease { prev, next, priority, .. } = self.slab[at as usize];
        let before = self.slab.get(prev as usize).filter(|before| before.priority == priority).map(|_| prev);
        let ends = self.class_mut(class);
        if prev == NONE {
            ends.head = next;
        }
        let lane = ends.lanes.partition_point(|lane| lane.0 > priority);
        match (ends.lanes.get_mut(lane).filter(|lane| lane.1 == at), before) {
            (Some(lane), Some(before)) => lane.1 = before,
            (Some(_), None) => drop(ends.lanes.remove(lane)),
            (None, _) => {}
        }
        if prev != NONE {
            self.slab[prev as usize].next = next;
        }
        if next != NONE {
            self.slab[next as usize].prev = prev;
        }
        let lease = &mut self.slab[at as usize];
        (lease.prev, lease.next) = (NONE, NONE);
    }

    /// A class's queue, first to last.
    pub(crate) fn queue(&self, class: ClassId) -> impl Iterator<Item = &Lease> {
        let mut at = self.head(class).unwrap_or(NONE);
        std::iter::from_fn(move || {
            let lease = self.slab.get(at as usize)?;
            at = lease.next;
            Some(lease)
        })
    }

    /// Verifies counts and links.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.ids.len() != self.slab.len() {
            return Err(format!("{} leases, {} ids", self.slab.len(), self.ids.len()));
        }
        let mut known = 0;
        for (id, class) in &self.classes {
            let queued = self.queue(*id).inspect(|lease| debug_assert_eq!(lease.stage, Stage::Ready)).count();
            let order: Vec<i32> = self.queue(*id).map(|lease| lease.priority).collect();
            let lasts = class.lanes.iter().map(|(priority, last)| (*priority, self.get(*last).priority));
            if !order.is_sorted_by(|a, b| a >= b) || !lasts.clone().all(|(a, b)| a == b) {
                return Err(format!("{id:?}: priorities {order:?}, lanes {:?}", class.lanes));
            }
            let ends = class.lanes.iter().all(|(priority, last)| {
                self.slab.get(self.get(*last).next as usize).is_none_or(|next| next.priority < *priority)
            });
            let mut distinct = order;
            distinct.dedup();
            if !ends || distinct.len() != class.lanes.len() {
                return Err(format!("{id:?}: {distinct:?} are ready, lanes {:?}", class.lanes));
            }
            if queued != class.ready as usize {
                return Err(format!("{id:?}: {queued} in the queue, {} counted", class.ready));
            }
            if (class.state == ClassState::Idle) != (class.ready == 0) {
                return Err(format!("{id:?}: {:?} with {} ready", class.state, class.ready));
            }
            known += (class.ready + class.waiting_deps + class.taking + class.holding()) as usize;
        }
        if known != self.slab.len() {
            return Err(format!("classes count {known} leases, there are {}", self.slab.len()));
        }
        Ok(())
    }
}
