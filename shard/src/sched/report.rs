//! What the rest of the node asks a scheduler.

use super::api::*;
use super::queue::{Class, ClassState, Lease, Stage};
use super::scheduler::Scheduler;
use super::types::*;
use crate::ids::{ActorId, JobId, LeaseId, WorkerId};

/// One resource of the node, as a shard sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResourceUse {
    /// The resource.
    pub id: ResourceId,
    /// The node's total (a bundle resource's own).
    pub total: Fixed,
    /// Free on this shard. The node's free amount is the sum over the shards, with [`Scheduler::bank_free`] of shard 0. Negative where
    /// workers that were blocked took their CPU again.
    pub free: Fixed,
    /// Held by leases of this shard.
    pub leased: Fixed,
    /// Set aside for bundles by this shard.
    pub bundled: Fixed,
}

/// Who holds a granted lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseInfo<'a> {
    /// The lease.
    pub lease: LeaseId,
    /// The actor it created, if any.
    pub actor: Option<ActorId>,
    /// Its class.
    pub class: ClassId,
    /// The worker that serves it.
    pub worker: WorkerId,
    /// Its owner.
    pub owner: WorkerId,
    /// Its job.
    pub job: JobId,
    /// What it holds.
    pub allocation: &'a Allocation,
    /// Its worker is blocked and its CPU free for others.
    pub blocked: bool,
}

impl Scheduler {
    /// All resources, bundles' wildcards included, in no order.
    pub fn resources(&self) -> impl Iterator<Item = ResourceUse> + '_ {
        let real = self.ledger.pools().map(|(id, pool)| {
            let (total, free, leased, bundled) = (pool.total, pool.free, pool.leased, pool.bundled);
            ResourceUse { id, total, free, leased, bundled }
        });
        let wild = self.ledger.wildcards().map(|(id, indexed)| {
            let sum = |of: fn(&super::ledger::Pool) -> Fixed| {
                indexed.iter().filter_map(|id| self.ledger.pool(*id)).map(of).sum()
            };
            let (total, free) = (sum(|pool| pool.total), sum(|pool| pool.free));
            ResourceUse { id, total, free, leased: sum(|pool| pool.leased), bundled: Fixed::ZERO }
        });
        real.chain(wild)
    }

    /// Of a resource, what no shard holds. Zero on every shard but 0, and on a node of one shard.
    pub fn bank_free(&self, id: ResourceId) -> Fixed {
        self.bank.as_ref().map_or(Fixed::ZERO, |bank| bank.free(id))
    }

    /// This shard's part of a resource's total: free, leased and bundled.
    pub fn credit(&self, id: ResourceId) -> Fixed {
        self.ledger.pool(id).map_or(Fixed::ZERO, |pool| pool.credit)
    }

    /// The ledger alone: for every resource, free, leased and bundled make up the credit. Cheap enough for every step of a test.
    pub fn check_books(&self) -> Result<(), String> {
        self.ledger.check()
    }

    /// Classes of which something is queued, granted or announced, in no order.
    pub fn loads(&self) -> impl Iterator<Item = ClassLoad<'_>> {
        let busy = |class: &Class| !class.is_unused() || !class.backlog.is_empty();
        self.leases.classes.iter().filter(move |(_, class)| busy(class)).map(|(id, class)| self.load(*id, class))
    }

    /// One class.
    pub fn class_load(&self, class: ClassId) -> Option<ClassLoad<'_>> {
        self.leases.classes.get(&class).map(|entry| self.load(class, entry))
    }

    fn load<'a>(&self, id: ClassId, class: &'a Class) -> ClassLoad<'a> {
        ClassLoad {
            class: id,
            demand: &class.def.demand,
            ready: class.ready + class.taking,
            waiting_deps: class.waiting_deps,
            waiting_worker: class.waiting_worker,
            granted: class.granted,
            backlog: class.backlog.values().map(|size| u64::from(*size)).sum(),
            infeasible: !self.ledger.feasible(&class.def.demand),
        }
    }

    /// True where the node's totals could hold one lease of such a demand.
    pub fn feasible(&self, demand: &ResourceSet) -> bool {
        self.ledger.feasible(demand)
    }

    /// Of a resource, the largest demand that this node's total could ever hold, and that fits on this shard now; what the bank
    /// has counts as shard 0's.
    pub fn room(&self, id: ResourceId) -> (Fixed, Fixed) {
        (self.ledger.ceiling(id), self.ledger.grantable(id) + self.bank_free(id))
    }

    /// True where a request of a class would be served from what this shard has now, and none of its class waits before it.
    pub fn fits(&self, class: ClassId) -> bool {
        let fits = |class: &Class| class.ready == 0 && self.ledger.fits(&class.def.demand);
        self.leases.classes.get(&class).is_some_and(fits)
    }

    /// The highest used part of some resources, 0 to 1, where what other shards hold counts as used.
    pub fn utilization(&self, of: &[ResourceId]) -> f64 {
        let used = of.iter().map(|id| {
            let (total, free) = self.room(*id);
            if total > Fixed::ZERO {
                (1.0 - free.to_f64() / total.to_f64()).clamp(0.0, 1.0)
            } else {
                0.0
            }
        });
        used.fold(0.0, f64::max)
    }

    /// Up to `max` requests of a class that wait for resources, oldest first: candidates for another node.
    pub fn queued(&self, class: ClassId, max: usize) -> impl Iterator<Item = Queued> + '_ {
        let queue = self.leases.classes.contains_key(&class).then(|| self.leases.queue(class)).into_iter().flatten();
        queue.take(max).map(|lease| Queued { lease: lease.id, class: lease.class, since: lease.since })
    }

    /// True for a lease that is queued or granted.
    pub fn knows(&self, id: LeaseId) -> bool {
        self.leases.find(id).is_some()
    }

    /// True while a request holds nothing: it waits for its objects or for resources.
    pub fn waits(&self, id: LeaseId) -> bool {
        let stage = self.leases.find(id).map(|at| self.leases.get(at).stage);
        matches!(stage, Some(Stage::Deps | Stage::Ready))
    }

    /// A granted lease.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseInfo<'_>> {
        info(self.leases.get(self.leases.find(id)?))
    }

    /// Workers by state.
    pub fn worker_counts(&self) -> WorkerCounts {
        WorkerCounts {
            idle: self.workers.idle_by_age.len() as u32,
            leased: self.workers.leased,
            starting: self.workers.starting.len() as u32,
            leaving: self.workers.map.len() as u32 - self.workers.staying,
        }
    }

    /// Leases known: queued and granted.
    pub fn lease_count(&self) -> usize {
        self.leases.slab.len()
    }

    /// Classes looked at since the start: what a grant costs, for tests.
    pub fn touched(&self) -> u64 {
        self.touched
    }

    /// True while the bank, on shard 0, calls resources in for one request that has waited too long.
    pub fn bank_holds(&self) -> bool {
        self.bank.as_ref().is_some_and(|bank| bank.holds())
    }

    /// The class for which freed resources are set aside.
    pub fn reserved_for(&self) -> Option<ClassId> {
        let reserved = self.reservation.as_ref().map(|reservation| reservation.class);
        debug_assert!(reserved.is_none_or(|id| self.leases.class(id).state == ClassState::Reserved));
        reserved
    }
}

fn info(lease: &Lease) -> Option<LeaseInfo<'_>> {
    let Stage::Granted(worker) = lease.stage else {
        return None;
    };
    Some(LeaseInfo {
        lease: lease.id,
        actor: lease.actor,
        class: lease.class,
        worker,
        owner: lease.owner,
        job: lease.job,
        allocation: &lease.allocation,
        blocked: lease.cpu_out,
    })
}
