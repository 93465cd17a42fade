//! One shard's scheduler: its state, and the way of an event through it.

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::{FxHashMap, FxHashSet};

use super::api::*;
use super::bank::{Bank, BankOut, Mode, SchedMsg};
use super::bundles::Bundle;
use super::ledger::{full_credit, Ledger};
use super::queue::{Class, ClassState, LeaseIdx, Leases, Stage};
use super::reaping::Staff;
use super::remote::TakeFor;
use super::types::*;
use super::waiters::{Ticket, Waiters};
use super::workers::{Doing, Workers};
use crate::ids::{JobId, NowNs, ShardId, WorkerId};

/// Finished jobs that are remembered; a request of an older one is treated as of a job that runs.
const FINISHED_JOBS_MAX: usize = 4096;

/// Freed resources set aside for a class that was passed by too often.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) class: ClassId,
    pub(crate) until_ns: NowNs,
}

/// Leases, resources, workers and bundles of one shard of a node. No I/O, no clock: see [`super::api`].
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedConfig,
    pub(crate) ledger: Ledger,
    pub(crate) leases: Leases,
    pub(crate) workers: Workers,
    pub(crate) waiters: Waiters<ClassId>,
    pub(crate) bundles: FxHashMap<BundleId, Bundle>,
    /// On shard 0 of several.
    pub(crate) bank: Option<Box<Bank>>,
    pub(crate) bank_out: BankOut,
    /// What the bank was told of this shard's workers.
    pub(crate) staff: Staff,
    /// The bank's last order to end workers.
    pub(crate) reap_order: u64,
    /// Messages of the bank to its own shard.
    pub(crate) local: VecDeque<SchedMsg>,
    /// How to treat resources; [`Mode::Keep`] where not named.
    pub(crate) modes: FxHashMap<ResourceId, Mode>,
    /// Resources of which more is free than when somebody last looked.
    pub(crate) dirty: Vec<ResourceId>,
    pub(crate) reservation: Option<Reservation>,
    pub(crate) capped: BTreeSet<(NowNs, ClassId)>,
    pub(crate) classes_by_resource: FxHashMap<ResourceId, FxHashSet<ClassId>>,
    pub(crate) moved: FxHashMap<WorkerId, ShardId>,
    pub(crate) takes: FxHashMap<u64, TakeFor>,
    pub(crate) tickets: Ticket,
    pub(crate) take_count: u64,
    pub(crate) start_count: u64,
    pub(crate) draining: bool,
    pub(crate) touched: u64,
    finished: (VecDeque<JobId>, FxHashSet<JobId>),
    idle_since: Option<NowNs>,
}

impl Scheduler {
    /// An empty scheduler: resources come by events.
    pub fn new(config: SchedConfig) -> Self {
        let bank = (config.shards > 1 && config.shard == 0).then(|| Box::new(Bank::new(&config)));
        Self {
            ledger: Ledger::default(),
            leases: Leases::default(),
            workers: Workers::default(),
            waiters: Waiters::default(),
            bundles: FxHashMap::default(),
            bank,
            bank_out: Vec::new(),
            staff: Staff::default(),
            reap_order: 0,
            local: VecDeque::new(),
            modes: FxHashMap::default(),
            dirty: Vec::new(),
            reservation: None,
            capped: BTreeSet::new(),
            classes_by_resource: FxHashMap::default(),
            moved: FxHashMap::default(),
            takes: FxHashMap::default(),
            tickets: 0,
            take_count: 0,
            start_count: 0,
            draining: false,
            touched: 0,
            finished: Default::default(),
            idle_since: Some(0),
            config,
        }
    }

    /// Takes an event at time `now` (which never goes back) and appends what is to be done, in order.
    pub fn handle(&mut self, event: SchedEvent, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.timers(now, out);
        match event {
            SchedEvent::FromShard { from, msg } => self.on_msg(from, msg, now, out),
            event => self.on_event(event, now, out),
        }
        loop {
            self.pump(now, out);
            self.settle(now, out);
            let Some(msg) = self.local.pop_front() else {
                break;
            };
            self.on_msg(self.config.shard, msg, now, out);
        }
        let busy = self.workers.leased > 0 || !self.bundles.is_empty() || !self.leases.slab.is_empty();
        match busy {
            true => self.idle_since = None,
            false => self.idle_since = self.idle_since.or(Some(now)),
        }
    }

    fn on_event(&mut self, event: SchedEvent, now: NowNs, out: &mut Vec<SchedEffect>) {
        use SchedEvent as E;
        match event {
            E::AddResource { id, total, kind } => self.add_resource(id, total, kind, now, out),
            E::ResizeResource { id, total } => self.resize_resource(id, total, now, out),
            E::DefineClass { class, def } => self.define(class, *def),
            E::Request(request) => self.request(*request, now, out),
            E::DepReady { lease, object } => self.dep_ready(lease, object, now, out),
            E::DepLost { lease, object } => self.dep_lost(lease, object, now, out),
            E::Return { lease, fate } => self.give_back(lease, fate, now, out),
            E::Cancel { token, lease } => self.cancel(token, lease, now, out),
            E::Withdraw { lease } => self.withdraw(lease, now, out),
            E::CancelClasses { token, classes } => {
                let classes: FxHashSet<ClassId> = classes.into_iter().collect();
                let count = self.cancel_queued(CancelReason::Class, |lease| classes.contains(&lease.class), now, out);
                out.push(SchedEffect::CancelledMany { token, count });
            }
            E::OwnerGone { owner } => self.owners_gone(|lease| lease.owner == owner, now, out),
            E::OwnerNodeGone { node } => self.owners_gone(|lease| lease.owner_node == node, now, out),
            E::WorkerReady { worker, start, key, job } => self.worker_ready(worker, start, key, job, now, out),
            E::StartFailed { start, why } => self.start_failed(start, why, now, out),
            E::Blocked { worker } => self.about_worker(worker, E::Blocked { worker }, now, out),
            E::Unblocked { worker } => self.about_worker(worker, E::Unblocked { worker }, now, out),
            E::WorkerGone { worker } => self.about_worker(worker, E::WorkerGone { worker }, now, out),
            E::ExitRefused { worker } => self.about_worker(worker, E::ExitRefused { worker }, now, out),
            E::Prestart { key, job, count, keep_alive_ns } => self.prestart(key, job, count, keep_alive_ns, out),
            E::Backlog { owner, class, size } => self.backlog(owner, class, size),
            E::JobFinished { job } => self.job_finished(job, now, out),
            E::PrepareBundles { token, bundles } => self.prepare_bundles(token, bundles, now, out),
            E::CommitBundles { token, bundles } => self.commit_bundles(token, &bundles, out),
            E::ReturnBundles { token, bundles } => self.return_bundles(token, bundles, now, out),
            E::ReleaseUnusedBundles { token, in_use } => self.release_unused_bundles(token, &in_use, now, out),
            E::ForgetGroup { token, group, classes, resources } => {
                let forgotten = self.forget_group(group, &classes, &resources);
                out.push(SchedEffect::GroupForgotten { token, group, forgotten });
            }
            E::Drain { on } => self.drain(on, now, out),
            E::Tick => self.tick(now, out),
            E::FromShard { from, msg } => self.on_msg(from, msg, now, out),
        }
    }

    /// True where a `Tick` is wanted at once: one event's work did not suffice.
    pub fn wants_tick(&self) -> bool {
        !self.dirty.is_empty() || self.bank.as_ref().is_some_and(|bank| bank.behind())
    }

    /// Since when this shard has nothing queued, leased or set aside; `None` while it has.
    pub fn idle_since(&self) -> Option<NowNs> {
        self.idle_since
    }

    pub(crate) fn alone(&self) -> bool {
        self.config.shards == 1
    }

    pub(crate) fn next_ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.tickets
    }

    /// Notes that more of a resource is free.
    pub(crate) fn soil(&mut self, id: ResourceId) {
        for id in self.ledger.wakes(id) {
            if !self.dirty.contains(&id) && !self.waiters.is_empty(id) {
                self.dirty.push(id);
            }
        }
    }

    pub(crate) fn soil_all(&mut self, allocation: &Allocation) {
        allocation.0.iter().filter(|part| !part.mirror).for_each(|part| self.soil(part.id));
    }

    pub(crate) fn is_finished(&self, job: JobId) -> bool {
        self.finished.1.contains(&job)
    }

    pub(crate) fn note_finished(&mut self, job: JobId) {
        let (order, set) = &mut self.finished;
        if !set.insert(job) {
            return;
        }
        order.push_back(job);
        if order.len() > FINISHED_JOBS_MAX {
            order.pop_front().map(|oldest| set.remove(&oldest));
        }
    }

    fn add_resource(
        &mut self,
        id: ResourceId,
        total: Fixed,
        kind: ResourceKind,
        now: NowNs,
        out: &mut Vec<SchedEffect>,
    ) {
        if !self.ledger.add(id, total, kind) {
            return;
        }
        if self.alone() {
            self.ledger.credit(&full_credit(id, total, kind));
        } else if let Some(bank) = &mut self.bank {
            bank.add(id, total, kind, &mut self.bank_out);
            self.post(out);
        }
        self.totals_changed(id, now, out);
    }

    fn resize_resource(&mut self, id: ResourceId, total: Fixed, now: NowNs, out: &mut Vec<SchedEffect>) {
        let Some(change) = self.ledger.resize(id, total) else {
            return;
        };
        if self.alone() {
            self.ledger.adjust(id, change);
        } else if let Some(bank) = &mut self.bank {
            bank.resize(id, total, &mut self.bank_out);
            self.post(out);
        }
        self.totals_changed(id, now, out);
    }

    /// A class may have become feasible: the bank has to know what it wants.
    fn totals_changed(&mut self, id: ResourceId, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.soil(id);
        if !self.alone() {
            let classes = self.classes_by_resource.get(&id).into_iter().flatten().copied().collect::<Vec<_>>();
            classes.into_iter().for_each(|class| self.tell_bank(class, now, out));
        }
    }

    fn define(&mut self, id: ClassId, def: ClassDef) {
        if self.leases.classes.get(&id).is_some_and(|class| !class.is_unused()) {
            return;
        }
        if self.leases.classes.get(&id).is_some_and(|class| class.def == def) {
            return;
        }
        self.forget(id);
        for (resource, _) in def.demand.iter() {
            self.classes_by_resource.entry(resource).or_default().insert(id);
        }
        self.leases.classes.insert(id, Class::new(def));
    }

    pub(crate) fn forget(&mut self, id: ClassId) {
        if self.leases.classes.get(&id).is_none_or(|class| !class.is_unused()) {
            return;
        }
        let Some(class) = self.leases.classes.remove(&id) else {
            return;
        };
        for (resource, _) in class.def.demand.iter() {
            if let Some(classes) = self.classes_by_resource.get_mut(&resource) {
                classes.remove(&id);
                if classes.is_empty() {
                    self.classes_by_resource.remove(&resource);
                }
            }
        }
    }

    fn backlog(&mut self, owner: WorkerId, class: ClassId, size: u32) {
        let Some(class) = self.leases.classes.get_mut(&class) else {
            return;
        };
        if size == 0 {
            class.backlog.remove(&owner);
        } else {
            class.backlog.insert(owner, size);
        }
    }

    fn tick(&mut self, now: NowNs, out: &mut Vec<SchedEffect>) {
        self.reap_idle(now, out);
        self.workers.tidy();
        if let Some(bank) = &mut self.bank {
            bank.tick(now, &mut self.bank_out);
            self.post(out);
        }
    }

    /// Everything this shard knows agrees with itself; with several shards, the rest is in the messages between them.
    /// For tests and debug builds: it looks at everything.
    pub fn check(&self) -> Result<(), String> {
        self.ledger.check()?;
        self.leases.check()?;
        self.workers.check(&self.leases)?;
        if let Some(bank) = &self.bank {
            bank.check()?;
        }
        self.check_holdings()?;
        let parked = |class: &Class| matches!(class.state, ClassState::Parked(..));
        let parked = self.leases.classes.values().filter(|class| parked(class)).count();
        if parked != self.waiters.len() {
            return Err(format!("{parked} classes are parked, {} found", self.waiters.len()));
        }
        if self.dirty.is_empty() {
            let fits =
                |class: &&Class| matches!(class.state, ClassState::Parked(..)) && self.may_take(&class.def.demand);
            if let Some(class) = self.leases.classes.values().find(fits) {
                return Err(format!("a class waits for what is there: {class:?}"));
            }
        }
        if let Some(reservation) = &self.reservation {
            let state = self.leases.classes.get(&reservation.class).map(|class| class.state);
            if state != Some(ClassState::Reserved) {
                return Err(format!("the reservation is for a class that is {state:?}"));
            }
        }
        Ok(())
    }

    /// What leases and bundles hold is what the ledger says they hold.
    fn check_holdings(&self) -> Result<(), String> {
        let mut leased: FxHashMap<ResourceId, Fixed> = FxHashMap::default();
        let mut bundled: FxHashMap<ResourceId, Fixed> = FxHashMap::default();
        for (_, lease) in &self.leases.slab {
            if let Stage::Granted(worker) = lease.stage {
                let doing = self.workers.map.get(&worker).map(|worker| worker.doing);
                if !worker.is_nil() && doing != Some(Doing::Leased(lease.id)) {
                    return Err(format!("{:?} is granted to a worker that is {doing:?}", lease.id));
                }
            }
            for part in lease.allocation.0.iter().filter(|part| !part.mirror) {
                let cpu = self.ledger.pool(part.id).is_some_and(|pool| pool.kind == ResourceKind::Cpu);
                if !(lease.cpu_out && cpu) {
                    *leased.entry(part.id).or_default() += part.amount;
                }
            }
        }
        for part in self.bundles.values().flat_map(|bundle| &bundle.held.0) {
            *bundled.entry(part.id).or_default() += part.amount;
        }
        for (id, pool) in self.ledger.pools() {
            let (lease, bundle) = (leased.remove(&id).unwrap_or_default(), bundled.remove(&id).unwrap_or_default());
            if pool.leased != lease || pool.bundled != bundle {
                return Err(format!("{id:?}: leases hold {lease:?}, bundles {bundle:?}, but the ledger says {pool:?}"));
            }
        }
        match leased.is_empty() && bundled.is_empty() {
            true => Ok(()),
            false => Err(format!("resources that are not in the ledger are held: {leased:?} {bundled:?}")),
        }
    }

    /// The lease by index, for the modules that follow it through its stages.
    pub(crate) fn fit_of(&self, at: LeaseIdx) -> super::workers::Fit {
        let lease = self.leases.get(at);
        lease.fit(self.leases.class(lease.class).def.worker)
    }
}
