//! Random events, late messages, and the checks between them.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::super::store_sim::Rng;
use super::model::{lease_id, worker_id, Asked, LeaseState, Model, FIRST_BUNDLE_RESOURCE, NO_WORKER};
use crate::ids::{ActorId, JobId, NodeId, NowNs, ObjectId, PlacementGroupId, ShardId, Token};
use crate::sched::*;

const CPU: ResourceId = ResourceId(0);
const GPU: ResourceId = ResourceId(1);
const MEMORY: ResourceId = ResourceId(2);
const CUSTOM: ResourceId = ResourceId(3);
/// Named by some classes, never there.
const NOWHERE: ResourceId = ResourceId(4);
/// The `bundle` label of a bundle.
const LABEL: u32 = 9;

pub(super) const GROUPS: u32 = 3;
pub(super) const BUNDLES_PER_GROUP: u32 = 2;
const JOBS: u64 = 3;
const OWNERS: u64 = 6;
const QUEUED_MAX: usize = 60;
/// All of a world is checked this often; the books after every step.
const CHECK_EVERY: u64 = 512;
/// Messages are all delivered this often, to see that nobody waits for what idles elsewhere.
const QUIET_EVERY: u64 = 96;

/// What happened in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Steps.
    pub steps: u64,
    /// Messages between shards.
    pub messages: u64,
    /// Leases granted.
    pub granted: u64,
    /// Requests cancelled.
    pub cancelled: u64,
    /// Requests rejected.
    pub rejected: u64,
    /// Requests failed.
    pub failed: u64,
    /// Leases that ended with their worker.
    pub lost: u64,
    /// Workers that changed shards.
    pub moved: u64,
    /// Bundle prepares that succeeded.
    pub prepared: u64,
    /// Workers killed.
    pub killed: u64,
    /// Placement groups forgotten.
    pub forgotten: u64,
}

impl Report {
    /// Adds another run.
    pub fn add(&mut self, other: &Report) {
        self.steps += other.steps;
        self.messages += other.messages;
        self.granted += other.granted;
        self.cancelled += other.cancelled;
        self.rejected += other.rejected;
        self.failed += other.failed;
        self.lost += other.lost;
        self.moved += other.moved;
        self.prepared += other.prepared;
        self.killed += other.killed;
        self.forgotten += other.forgotten;
    }
}

struct Kind {
    shard: ShardId,
    is_gpu: bool,
    group: Option<u32>,
    needs_worker: bool,
}

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now: NowNs,
    pub(super) shards: Vec<Scheduler>,
    pub(super) links: Vec<VecDeque<SchedMsg>>,
    /// Credit of base resources in messages.
    travelling: [Fixed; 4],
    totals: [Fixed; 4],
    kinds: Vec<Kind>,
    pub(super) homes: [ShardId; GROUPS as usize],
    pub(super) model: Model,
    tokens: Token,
    steps: u64,
    messages: u64,
    pub(super) draining: bool,
    capping: bool,
    effects: Vec<SchedEffect>,
}

pub(super) type Outcome = Result<(), String>;

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let shards = 1 + rng.below(4) as ShardId;
        let cpus = 1 + rng.below(6);
        let config = |shard| {
            let mut config = SchedConfig::new(shard, shards, cpus as u32);
            config.bypass_max = 8;
            config.class_cap = seed.is_multiple_of(2);
            config
        };
        let mut world = Self {
            shards: (0..shards).map(|shard| Scheduler::new(config(shard))).collect(),
            links: (0..shards * shards).map(|_| VecDeque::new()).collect(),
            now: 0,
            travelling: [Fixed::ZERO; 4],
            totals: [Fixed::ZERO; 4],
            kinds: Vec::new(),
            homes: std::array::from_fn(|_| rng.below(u64::from(shards)) as ShardId),
            model: Model::default(),
            tokens: 0,
            steps: 0,
            messages: 0,
            draining: false,
            capping: seed.is_multiple_of(2),
            effects: Vec::new(),
            rng,
        };
        let gpus = world.rng.below(4);
        let parts = [
            (CPU, cpus, ResourceKind::Cpu),
            (GPU, gpus, ResourceKind::UnitInstances),
            (MEMORY, 16, ResourceKind::Plain),
        ];
        for (id, total, kind) in parts.into_iter().chain([(CUSTOM, 3, ResourceKind::Plain)]) {
            let total = Fixed::units(total as i64);
            world.totals[id.0 as usize] = total;
            let add = SchedEvent::AddResource { id, total, kind };
            world.everywhere(add).expect("adding a resource answers nothing");
        }
        let classes = 4 + world.rng.below(12) as u32;
        (0..classes).for_each(|class| world.define(ClassId(class), cpus));
        world
    }

    fn shard_count(&self) -> u64 {
        self.shards.len() as u64
    }

    fn define(&mut self, class: ClassId, cpus: u64) {
        let rng = &mut self.rng;
        let tenths = |n: u64| Fixed((n * 1000) as i64);
        let mut demand: Vec<(ResourceId, Fixed)> = match rng.below(10) {
            0 => vec![],
            1 => vec![(CPU, Fixed::units(cpus as i64))],
            2 => vec![(GPU, tenths(1 + rng.below(10))), (CPU, tenths(rng.below(11)))],
            3 => vec![(GPU, Fixed::units(1 + rng.below(3) as i64))],
            4 => vec![(MEMORY, tenths(1 + rng.below(120))), (CPU, Fixed::ONE)],
            5 => vec![(CUSTOM, Fixed::units(1 + rng.below(4) as i64)), (MEMORY, Fixed::ONE)],
            6 if rng.permille(300) => vec![(NOWHERE, Fixed::ONE)],
            _ => vec![(CPU, tenths(5 * (1 + rng.below(4))))],
        };
        let mut shard = rng.below(self.shards.len() as u64) as ShardId;
        let group = rng.permille(300).then(|| rng.below(u64::from(GROUPS)) as u32);
        if let Some(group) = group {
            demand = demand_in(rng, group);
            shard = self.homes[group as usize];
        }
        let demand = ResourceSet::new(demand);
        let is_gpu = demand.get(GPU) > Fixed::ZERO;
        let worker = match rng.below(8) {
            0 => WorkerKey::NONE,
            n => WorkerKey { language: 0, runtime_env_hash: (n / 6) as i32, dynamic_options: 0 },
        };
        self.kinds.push(Kind { shard, is_gpu, group, needs_worker: worker != WorkerKey::NONE });
        let def = Box::new(ClassDef { demand, worker });
        self.send(shard, SchedEvent::DefineClass { class, def }).expect("defining a class answers nothing");
    }

    /// A group is gone for good: what it was known by means something else from now on.
    fn reuse_names_of(&mut self, group: u32) -> Outcome {
        let home = self.homes[group as usize];
        if let Some(known) = names_of(group).into_iter().find(|id| self.shards[usize::from(home)].knows_resource(*id)) {
            return Err(format!("group {group} was forgotten, but shard {home} knows its {known:?}"));
        }
        for (at, _) in self.kinds.iter().enumerate().filter(|(_, kind)| kind.group == Some(group)) {
            let lives = |n: &u32| self.model.leases[*n as usize].class == at as u32;
            if self.model.queued.all().iter().chain(&self.model.granted.all()).any(lives) {
                return Err(format!("group {group} was forgotten while class {at} was in use"));
            }
        }
        for at in self.classes_of(group) {
            let demand = ResourceSet::new(demand_in(&mut self.rng, group));
            let worker = if self.kinds[at.0 as usize].needs_worker { WorkerKey::default() } else { WorkerKey::NONE };
            let def = ClassDef { demand, worker };
            self.send(home, SchedEvent::DefineClass { class: at, def: Box::new(def) })?;
        }
        Ok(())
    }

    fn classes_of(&self, group: u32) -> Vec<ClassId> {
        let named = self.kinds.iter().enumerate().filter(|(_, kind)| kind.group == Some(group));
        named.map(|(at, _)| ClassId(at as u32)).collect()
    }

    fn forget(&mut self, group: u32) -> Outcome {
        let (token, classes) = (self.token(Asked::Forget(group)), self.classes_of(group));
        let (id, resources) = (bundle_id(group, 0).group, names_of(group));
        self.send(self.homes[group as usize], SchedEvent::ForgetGroup { token, group: id, classes, resources })
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn into_report(self) -> Report {
        let seen = self.model.seen;
        Report {
            steps: self.steps,
            messages: self.messages,
            granted: seen.granted,
            cancelled: seen.cancelled,
            rejected: seen.rejected,
            failed: seen.failed,
            lost: seen.lost,
            moved: seen.moved,
            prepared: seen.prepared,
            killed: seen.killed,
            forgotten: seen.forgotten,
        }
    }

    pub(super) fn token(&mut self, asked: Asked) -> Token {
        self.tokens += 1;
        self.model.asked.insert(self.tokens, asked);
        self.tokens
    }

    /// One event for one shard, and everything that must hold after it.
    pub(super) fn send(&mut self, to: ShardId, event: SchedEvent) -> Outcome {
        let mut effects = std::mem::take(&mut self.effects);
        self.shards[usize::from(to)].handle(event, self.now, &mut effects);
        for effect in effects.drain(..) {
            if let SchedEffect::ToShard { to: target, msg } = effect {
                let shards = self.shards.len();
                if usize::from(target) >= shards || target == to {
                    return Err(format!("shard {to} sends {msg:?} to {target}"));
                }
                self.travel(&msg, 1);
                self.messages += 1;
                self.links[usize::from(to) * shards + usize::from(target)].push_back(msg);
            } else {
                self.model.apply(to, &effect, self.shards.len() == 1)?;
            }
        }
        self.effects = effects;
        self.shards[usize::from(to)].check_books()?;
        self.check_totals()?;
        match self.model.forgotten.pop() {
            Some(group) => self.reuse_names_of(group),
            None => Ok(()),
        }
    }

    pub(super) fn everywhere(&mut self, event: SchedEvent) -> Outcome {
        (0..self.shards.len()).try_for_each(|shard| self.send(shard as ShardId, event.clone()))
    }

    fn travel(&mut self, msg: &SchedMsg, sign: i64) {
        let credit = match msg {
            SchedMsg::Credit { credit, .. } | SchedMsg::Grant { credit, .. } => credit,
            SchedMsg::Taken { credit: Some(credit), .. } => credit,
            _ => return,
        };
        for part in &credit.0 {
            self.travelling[part.id.0 as usize] += Fixed(sign * part.amount.0);
        }
    }

    /// What the node has is what its shards, its bank and the messages between them have.
    fn check_totals(&self) -> Outcome {
        for id in [CPU, GPU, MEMORY, CUSTOM] {
            let shards: Fixed = self.shards.iter().map(|shard| shard.credit(id)).sum();
            let sum = shards + self.shards[0].bank_free(id) + self.travelling[id.0 as usize];
            if sum != self.totals[id.0 as usize] {
                return Err(format!(
                    "of {id:?} the node has {:?}, but {sum:?} are accounted for",
                    self.totals[id.0 as usize]
                ));
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Outcome {
        for (at, shard) in self.shards.iter().enumerate() {
            shard.check().map_err(|what| format!("shard {at}: {what}"))?;
        }
        Ok(())
    }

    /// With no message on its way, nothing that a request waits for lies idle on another shard.
    fn check_nobody_waits_in_vain(&self) -> Outcome {
        let behind = |shard: &Scheduler| shard.wants_tick() || shard.reserved_for().is_some() || shard.bank_holds();
        if self.capping || self.draining || self.shards.iter().any(behind) {
            return Ok(());
        }
        let free = |id: ResourceId| {
            let shards = self.shards.iter().flat_map(Scheduler::resources);
            let free: Fixed = shards.filter(|part| part.id == id).map(|part| part.free).sum();
            free + self.shards[0].bank_free(id)
        };
        for shard in &self.shards {
            for load in shard.loads().filter(|load| load.ready > 0) {
                // Of instances the sum says nothing; bundles are not shared between shards.
                let plain = |(id, _): (ResourceId, Fixed)| [CPU, MEMORY, CUSTOM].contains(&id);
                let fits = load.demand.iter().all(|(id, amount)| amount <= free(id));
                if load.demand.iter().all(plain) && fits && !load.infeasible {
                    return Err(format!("{load:?} waits for what is there"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn step(&mut self) -> Outcome {
        self.steps += 1;
        self.now += self.rng.below(100_000);
        if self.steps.is_multiple_of(CHECK_EVERY) {
            self.check()?;
        }
        if self.steps.is_multiple_of(QUIET_EVERY) {
            self.flush()?;
            self.check_nobody_waits_in_vain()?;
        }
        match self.rng.below(1000) {
            0..=299 => self.request(),
            300..=559 => self.give_back(),
            560..=699 => self.deliver(),
            700..=799 => self.start_ends(),
            800..=814 => self.cancel(),
            815..=849 => self.retry(),
            850..=869 => self.dep(),
            870..=889 => self.block(),
            890..=904 => self.unblock(),
            905..=919 => self.worker_dies(),
            920..=954 => self.exit(),
            955..=974 => self.bundles(),
            975..=989 => self.tick(),
            990..=992 => self.resize(),
            993..=995 => self.prestart(),
            _ => self.rare(),
        }
    }

    fn request(&mut self) -> Outcome {
        if self.model.queued.len() >= QUEUED_MAX {
            return self.give_back();
        }
        let n = self.model.leases.len() as u32;
        let class = self.rng.below(self.kinds.len() as u64) as u32;
        let kind = &self.kinds[class as usize];
        let (shard, is_gpu, needs_worker) = (kind.shard, kind.is_gpu, kind.needs_worker);
        let rng = &mut self.rng;
        let deps: SmallVec<[ObjectId; 2]> = if rng.permille(100) {
            (0..1 + rng.below(2)).map(|d| object(n, d as u32)).collect()
        } else {
            SmallVec::new()
        };
        let actor = rng.permille(40).then_some(ActorId([n as u8; 16]));
        let detached = actor.is_some() && rng.permille(300);
        let request = LeaseRequest {
            token: 0,
            lease: lease_id(n),
            class: ClassId(class),
            owner: worker_id(1_000_000 + rng.below(OWNERS) as u32),
            owner_node: NodeId([rng.below(2) as u8; 28]),
            job: JobId([rng.below(JOBS) as u8; 4]),
            actor,
            detached,
            root_detached_actor: actor.filter(|_| detached),
            is_gpu,
            grant_or_reject: rng.permille(50),
            priority: if rng.permille(200) { rng.below(5) as i32 - 2 } else { 0 },
            deps,
        };
        self.tokens += 1;
        let request = LeaseRequest { token: self.tokens, ..request };
        let deps = request.deps.len() as u32;
        self.model.new_lease(request.clone(), class, shard, deps, needs_worker);
        self.send(shard, SchedEvent::Request(Box::new(request)))
    }

    fn retry(&mut self) -> Outcome {
        let Some(n) = self.any_lease() else {
            return Ok(());
        };
        let mut request = self.model.leases[n as usize].request.clone();
        let shard = self.model.leases[n as usize].shard;
        request.token = self.token(Asked::Request(n));
        self.model.leases[n as usize].tokens.push(request.token);
        self.send(shard, SchedEvent::Request(Box::new(request)))
    }

    /// A lease that is queued or granted.
    fn any_lease(&mut self) -> Option<u32> {
        let (queued, granted) = (self.model.queued.len(), self.model.granted.len());
        let at = self.rng.below((queued + granted).max(1) as u64) as usize;
        match () {
            () if queued + granted == 0 => None,
            () if at < queued => Some(self.model.queued.nth(at)),
            () => Some(self.model.granted.nth(at - queued)),
        }
    }

    fn give_back(&mut self) -> Outcome {
        let granted = self.model.granted.len();
        if granted == 0 {
            return Ok(());
        }
        let at = self.rng.below(granted as u64) as usize;
        let n = self.model.granted.nth(at);
        let fate = match self.rng.below(20) {
            0 => WorkerFate::Disconnect,
            1 => WorkerFate::Exiting,
            _ => WorkerFate::Keep,
        };
        self.return_lease(n, fate)
    }

    pub(super) fn return_lease(&mut self, n: u32, fate: WorkerFate) -> Outcome {
        let (lease, shard) = (&self.model.leases[n as usize], self.model.leases[n as usize].shard);
        let LeaseState::Granted(worker) = lease.state else {
            return Ok(());
        };
        let killed = self.model.dying.contains(worker);
        self.model.returned(n, fate != WorkerFate::Keep || killed);
        let exits = fate == WorkerFate::Exiting && worker != NO_WORKER;
        if exits && self.model.workers[worker as usize].alive {
            self.model.dying.insert(worker);
        }
        self.send(shard, SchedEvent::Return { lease: lease_id(n), fate })?;
        if self.rng.permille(50) {
            self.send(shard, SchedEvent::Return { lease: lease_id(n), fate })?;
        }
        Ok(())
    }

    /// Delivers the first message of a random pair that has some.
    pub(super) fn deliver(&mut self) -> Outcome {
        let links = self.links.len();
        let first = self.rng.below(links as u64) as usize;
        for link in (0..links).map(|at| (first + at) % links) {
            if let Some(msg) = self.links[link].pop_front() {
                self.travel(&msg, -1);
                let shards = self.shards.len();
                let (from, to) = ((link / shards) as ShardId, (link % shards) as ShardId);
                return self.send(to, SchedEvent::FromShard { from, msg });
            }
        }
        self.give_back()
    }

    fn start_ends(&mut self) -> Outcome {
        if self.model.starting.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.model.starting.len() as u64) as usize;
        let (start, key, job) = self.model.starting.swap_remove(at);
        match self.rng.below(40) {
            0 => {
                self.send(start.shard(), SchedEvent::StartFailed { start, why: StartFailure::RuntimeEnv("no".into()) })
            }
            1 | 2 => self.send(start.shard(), SchedEvent::StartFailed { start, why: StartFailure::NotRegistered }),
            3 => self.send(start.shard(), SchedEvent::StartFailed { start, why: StartFailure::NoneCame }),
            _ => self.came_up(start, key, job),
        }
    }

    pub(super) fn came_up(&mut self, start: StartToken, key: WorkerKey, job: Option<JobId>) -> Outcome {
        let worker = worker_id(self.model.new_worker(start.shard()));
        self.send(start.shard(), SchedEvent::WorkerReady { worker, start: Some(start), key, job })
    }

    fn cancel(&mut self) -> Outcome {
        let Some(n) = self.any_lease() else {
            return Ok(());
        };
        let shard = self.model.leases[n as usize].shard;
        if self.rng.permille(200) {
            return self.send(shard, SchedEvent::Withdraw { lease: lease_id(n) });
        }
        let token = self.token(Asked::Cancel);
        self.send(shard, SchedEvent::Cancel { token, lease: lease_id(n) })
    }

    fn dep(&mut self) -> Outcome {
        if self.model.queued.len() == 0 {
            return Ok(());
        }
        let at = self.rng.below(self.model.queued.len() as u64) as usize;
        let n = self.model.queued.nth(at);
        let shard = self.model.leases[n as usize].shard;
        let deps = self.model.leases[n as usize].request.deps.clone();
        if deps.is_empty() {
            return Ok(());
        }
        if self.model.leases[n as usize].deps == 0 && self.rng.permille(300) {
            // Lost before the grant, which may be on its way: only a lease still watched waits again.
            if self.model.leases[n as usize].watched && !self.holds(n) {
                self.model.leases[n as usize].deps = 1;
                return self.send(shard, SchedEvent::DepLost { lease: lease_id(n), object: deps[0] });
            }
            return Ok(());
        }
        self.model.leases[n as usize].deps = 0;
        // The model's ensure! on a grant needs the watch to end with it.
        deps.into_iter().try_for_each(|object| self.send(shard, SchedEvent::DepReady { lease: lease_id(n), object }))
    }

    /// True where a lease already holds resources: it waits for a worker, not for objects.
    fn holds(&self, n: u32) -> bool {
        let lease = &self.model.leases[n as usize];
        !self.shards[usize::from(lease.shard)].waits(lease_id(n))
    }

    fn block(&mut self) -> Outcome {
        let granted = self.model.granted.len();
        if granted == 0 {
            return Ok(());
        }
        let at = self.rng.below(granted as u64) as usize;
        let LeaseState::Granted(worker) = self.model.leases[self.model.granted.nth(at) as usize].state else {
            return Ok(());
        };
        if self.model.workers.get(worker as usize).is_none_or(|worker| !worker.alive) {
            return Ok(());
        }
        self.model.workers[worker as usize].blocked = true;
        self.model.blocked.insert(worker);
        self.send(self.model.workers[worker as usize].shard, SchedEvent::Blocked { worker: worker_id(worker) })
    }

    fn unblock(&mut self) -> Outcome {
        if self.model.blocked.len() == 0 {
            return Ok(());
        }
        let at = self.rng.below(self.model.blocked.len() as u64) as usize;
        self.unblock_one(self.model.blocked.nth(at))
    }

    pub(super) fn unblock_one(&mut self, worker: u32) -> Outcome {
        self.model.blocked.remove(worker);
        self.model.workers[worker as usize].blocked = false;
        self.send(self.model.workers[worker as usize].shard, SchedEvent::Unblocked { worker: worker_id(worker) })
    }

    fn worker_dies(&mut self) -> Outcome {
        if self.model.dying.len() > 0 && self.rng.permille(600) {
            let at = self.rng.below(self.model.dying.len() as u64) as usize;
            return self.kill(self.model.dying.nth(at));
        }
        if self.model.alive.len() == 0 || self.rng.permille(600) {
            return Ok(());
        }
        let at = self.rng.below(self.model.alive.len() as u64) as usize;
        self.kill(self.model.alive.nth(at))
    }

    pub(super) fn kill(&mut self, worker: u32) -> Outcome {
        self.model.worker_died(worker);
        self.send(self.model.workers[worker as usize].shard, SchedEvent::WorkerGone { worker: worker_id(worker) })
    }

    fn exit(&mut self) -> Outcome {
        if self.model.asked_to_exit.len() == 0 {
            return Ok(());
        }
        let at = self.rng.below(self.model.asked_to_exit.len() as u64) as usize;
        let worker = self.model.asked_to_exit.nth(at);
        if self.rng.permille(500) {
            return self.kill(worker);
        }
        self.model.asked_to_exit.remove(worker);
        self.send(self.model.workers[worker as usize].shard, SchedEvent::ExitRefused { worker: worker_id(worker) })
    }

    fn bundles(&mut self) -> Outcome {
        let group = self.rng.below(u64::from(GROUPS)) as u32;
        let shard = self.homes[group as usize];
        if let Some(group) = self.model.prepared.pop() {
            let token = self.token(Asked::Commit);
            let bundles = (0..BUNDLES_PER_GROUP).map(|index| bundle_id(group, index)).collect();
            return self.send(self.homes[group as usize], SchedEvent::CommitBundles { token, bundles });
        }
        match self.rng.below(10) {
            0..=5 => {
                let token = self.token(Asked::Prepare(group));
                let count = 1 + self.rng.below(u64::from(BUNDLES_PER_GROUP)) as u32;
                let bundles = (0..count).map(|index| self.bundle(group, index)).collect();
                self.send(shard, SchedEvent::PrepareBundles { token, bundles })
            }
            6..=8 => {
                let token = self.token(Asked::Return);
                let bundles = (0..BUNDLES_PER_GROUP).map(|index| bundle_id(group, index)).collect();
                self.send(shard, SchedEvent::ReturnBundles { token, bundles })
            }
            9 if self.rng.permille(700) => self.forget(group),
            _ => {
                let in_use: Vec<BundleId> =
                    (0..GROUPS).filter(|_| self.rng.permille(700)).map(|group| bundle_id(group, 0)).collect();
                (0..self.shards.len()).try_for_each(|shard| {
                    let token = self.token(Asked::Return);
                    self.send(shard as ShardId, SchedEvent::ReleaseUnusedBundles { token, in_use: in_use.clone() })
                })
            }
        }
    }

    fn bundle(&mut self, group: u32, index: u32) -> BundleSpec {
        let part = |original: u32, amount: Fixed| BundleResource {
            original: (original != LABEL).then_some(ResourceId(original)),
            indexed: in_bundle(group, index, original),
            wildcard: wildcard(group, original),
            amount,
        };
        let mut resources: SmallVec<[BundleResource; 4]> = SmallVec::new();
        resources.push(part(LABEL, BUNDLE_LABEL_UNITS));
        resources.push(part(CPU.0, Fixed((500 * (1 + self.rng.below(40))) as i64)));
        if self.rng.permille(400) {
            let amount = if self.rng.permille(500) { Fixed::ONE } else { Fixed(5000) };
            resources.push(part(GPU.0, amount));
        }
        BundleSpec { id: bundle_id(group, index), resources }
    }

    fn tick(&mut self) -> Outcome {
        if self.rng.permille(100) {
            self.now += 2_000_000_000;
        }
        self.everywhere(SchedEvent::Tick)
    }

    fn resize(&mut self) -> Outcome {
        let (id, units) = if self.rng.permille(500) { (CPU, self.rng.below(8)) } else { (MEMORY, self.rng.below(24)) };
        let total = Fixed::units(units as i64);
        self.totals[id.0 as usize] = total;
        // The bank's shard first: it alone books the change.
        self.everywhere(SchedEvent::ResizeResource { id, total })
    }

    fn prestart(&mut self) -> Outcome {
        let shard = self.rng.below(self.shard_count()) as ShardId;
        let rng = &mut self.rng;
        let count = match rng.below(2) {
            0 => PrestartCount::New(1 + rng.below(3) as u32),
            _ => PrestartCount::Backlog(rng.below(10) as u32),
        };
        let job = rng.permille(500).then(|| JobId([rng.below(JOBS) as u8; 4]));
        let keep_alive_ns = rng.below(2) * 1_000_000_000;
        self.send(shard, SchedEvent::Prestart { key: WorkerKey::default(), job, count, keep_alive_ns })
    }

    fn rare(&mut self) -> Outcome {
        match self.rng.below(12) {
            0 if self.rng.permille(100) => {
                let job = JobId([self.rng.below(JOBS) as u8; 4]);
                self.everywhere(SchedEvent::JobFinished { job })
            }
            1 | 2 if self.rng.permille(300) => {
                let owner = worker_id(1_000_000 + self.rng.below(OWNERS) as u32);
                self.everywhere(SchedEvent::OwnerGone { owner })
            }
            3 if self.rng.permille(300) => {
                let node = NodeId([self.rng.below(2) as u8; 28]);
                self.everywhere(SchedEvent::OwnerNodeGone { node })
            }
            4 | 5 if self.draining || self.rng.permille(100) => {
                self.draining = !self.draining;
                self.everywhere(SchedEvent::Drain { on: self.draining })
            }
            6 | 7 => {
                let classes = vec![ClassId(self.rng.below(self.kinds.len() as u64) as u32)];
                (0..self.shards.len()).try_for_each(|shard| {
                    let token = self.token(Asked::CancelClasses);
                    self.send(shard as ShardId, SchedEvent::CancelClasses { token, classes: classes.clone() })
                })
            }
            8 => {
                let worker = worker_id(self.model.workers.len() as u32 + 500_000);
                self.everywhere(SchedEvent::WorkerGone { worker })
            }
            _ => {
                let class = self.rng.below(self.kinds.len() as u64) as u32;
                let (owner, size) = (worker_id(1_000_000), self.rng.below(3) as u32);
                self.send(self.kinds[class as usize].shard, SchedEvent::Backlog { owner, class: ClassId(class), size })
            }
        }
    }
}

pub(super) fn bundle_id(group: u32, index: u32) -> BundleId {
    BundleId { group: PlacementGroupId([group as u8; 18]), index }
}

fn in_bundle(group: u32, index: u32, original: u32) -> ResourceId {
    ResourceId(FIRST_BUNDLE_RESOURCE + group * 100 + (index + 1) * 10 + original)
}

/// What a class asks of a group's bundles: of any, or of one.
fn demand_in(rng: &mut Rng, group: u32) -> Vec<(ResourceId, Fixed)> {
    let indexed = rng.permille(500).then(|| rng.below(u64::from(BUNDLES_PER_GROUP)) as u32);
    let amount = Fixed(1000 * (1 + rng.below(15)) as i64);
    let original = if rng.permille(600) { CPU.0 } else { GPU.0 };
    let mut demand = vec![(wildcard(group, original), amount), (wildcard(group, LABEL), Fixed(10))];
    if let Some(index) = indexed {
        demand.extend([(in_bundle(group, index, original), amount), (in_bundle(group, index, LABEL), Fixed(10))]);
    }
    demand
}

/// Every resource that bundles of a group may have.
fn names_of(group: u32) -> Vec<ResourceId> {
    let originals = [CPU.0, GPU.0, LABEL];
    let indexed = (0..BUNDLES_PER_GROUP).flat_map(|index| originals.map(|original| in_bundle(group, index, original)));
    indexed.chain(originals.map(|original| wildcard(group, original))).collect()
}

fn wildcard(group: u32, original: u32) -> ResourceId {
    ResourceId(FIRST_BUNDLE_RESOURCE + group * 100 + original)
}

fn object(lease: u32, n: u32) -> ObjectId {
    let mut id = [0; ObjectId::LEN];
    id[..4].copy_from_slice(&lease.to_le_bytes());
    id[24..].copy_from_slice(&n.to_le_bytes());
    ObjectId(id)
}
