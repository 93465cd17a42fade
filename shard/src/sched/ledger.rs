//! The ledger: what a shard holds of each resource, and who has it.
//!
//! Of every resource `credit = free + leased + bundled`, where `credit` is this shard's part of the node's total. `free` may be
//! negative: that is a debt, paid by whatever is given back next.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::types::*;

/// One resource as this shard sees it.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) kind: ResourceKind,
    /// The node's total (of a bundle's pool: the bundle's).
    pub(crate) total: Fixed,
    pub(crate) credit: Fixed,
    pub(crate) free: Fixed,
    pub(crate) leased: Fixed,
    pub(crate) bundled: Fixed,
    /// Part of `leased` and `bundled` that may never come back: held by actors and bundles.
    pub(crate) pinned: Fixed,
    /// Free part of each instance; unit instances only.
    slots: Vec<Fixed>,
    /// For an indexed bundle resource: its bundle and the wildcard that mirrors it.
    pub(crate) bundle: Option<(BundleId, ResourceId)>,
    /// True where nothing more may be granted from it.
    sealed: bool,
    /// Allocations that drew from it, ever: the clock by which bypasses are counted.
    pub(crate) draws: u64,
}

impl Pool {
    fn new(kind: ResourceKind, total: Fixed) -> Self {
        Self {
            kind,
            total,
            credit: Fixed::ZERO,
            free: Fixed::ZERO,
            leased: Fixed::ZERO,
            bundled: Fixed::ZERO,
            pinned: Fixed::ZERO,
            slots: Vec::new(),
            bundle: None,
            sealed: false,
            draws: 0,
        }
    }

    /// The largest demand that fits now. Whole instances count where there is one, else the fullest shared one.
    fn grantable(&self) -> Fixed {
        if self.sealed {
            return self.free.min(Fixed::ZERO);
        }
        if self.kind != ResourceKind::UnitInstances {
            return self.free;
        }
        let whole = self.slots.iter().filter(|slot| **slot == Fixed::ONE).count() as i64;
        if whole > 0 {
            return Fixed::units(whole);
        }
        self.slots.iter().copied().max().unwrap_or(Fixed::ZERO)
    }

    fn slot(&mut self, index: u16) -> &mut Fixed {
        let index = usize::from(index);
        if self.slots.len() <= index {
            self.slots.resize(index + 1, Fixed::ZERO);
        }
        &mut self.slots[index]
    }

    /// Instances for a demand that is known to fit: whole ones in order, then the best fitting one for the rest.
    fn pick(&mut self, amount: Fixed) -> SmallVec<[(u16, Fixed); 1]> {
        let mut picked = SmallVec::new();
        let mut rest = amount;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if rest < Fixed::ONE {
                break;
            }
            if *slot == Fixed::ONE {
                *slot = Fixed::ZERO;
                rest -= Fixed::ONE;
                picked.push((index as u16, Fixed::ONE));
            }
        }
        if rest > Fixed::ZERO {
            let best =
                self.slots.iter_mut().enumerate().filter(|(_, slot)| **slot >= rest).min_by_key(|(_, slot)| **slot);
            if let Some((index, slot)) = best {
                *slot -= rest;
                picked.push((index as u16, rest));
            }
        }
        picked
    }

    fn add(&mut self, part: &Allocated) {
        self.free += part.amount;
        for (index, amount) in &part.instances {
            *self.slot(*index) += *amount;
        }
    }

    fn sub(&mut self, part: &Allocated) {
        self.free -= part.amount;
        for (index, amount) in &part.instances {
            *self.slot(*index) -= *amount;
        }
    }

    /// Everything free, as credit to give away.
    fn take_free(&mut self, id: ResourceId) -> Option<Allocated> {
        if self.free <= Fixed::ZERO {
            return None;
        }
        let instances = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| **slot > Fixed::ZERO)
            .map(|(index, slot)| (index as u16, *slot));
        let part = Allocated { id, amount: self.free, instances: instances.collect(), mirror: false };
        self.sub(&part);
        Some(part)
    }
}

/// Which account an allocation is booked to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Account {
    /// A lease; `pinned` for an actor's.
    Lease { pinned: bool },
    /// A bundle.
    Bundle,
}

/// Resources of one shard.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pools: FxHashMap<ResourceId, Pool>,
    /// Wildcard bundle resources: the indexed ones they stand for.
    wild: FxHashMap<ResourceId, SmallVec<[ResourceId; 2]>>,
}

impl Ledger {
    pub(crate) fn pool(&self, id: ResourceId) -> Option<&Pool> {
        self.pools.get(&id)
    }

    pub(crate) fn pools(&self) -> impl Iterator<Item = (ResourceId, &Pool)> {
        self.pools.iter().map(|(id, pool)| (*id, pool))
    }

    /// Wildcard resources, each with the indexed ones behind it.
    pub(crate) fn wildcards(&self) -> impl Iterator<Item = (ResourceId, &[ResourceId])> {
        self.wild.iter().map(|(id, indexed)| (*id, indexed.as_slice()))
    }

    /// A new resource of the node, of which this shard holds nothing yet. False where the id is taken.
    pub(crate) fn add(&mut self, id: ResourceId, total: Fixed, kind: ResourceKind) -> bool {
        if self.pools.contains_key(&id) || self.wild.contains_key(&id) {
            return false;
        }
        self.pools.insert(id, Pool::new(kind, whole(kind, total)));
        true
    }

    /// A new total; the change that it makes. `None` for what can't be resized.
    pub(crate) fn resize(&mut self, id: ResourceId, total: Fixed) -> Option<Fixed> {
        let pool = self.pools.get_mut(&id)?;
        if pool.kind == ResourceKind::UnitInstances || pool.bundle.is_some() || total < Fixed::ZERO {
            return None;
        }
        let change = total - pool.total;
        pool.total = total;
        Some(change)
    }

    /// More (or, negative, less) of a plain resource here.
    pub(crate) fn adjust(&mut self, id: ResourceId, change: Fixed) {
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.credit += change;
            pool.free += change;
        }
    }

    /// The largest demand of a resource that fits now.
    pub(crate) fn grantable(&self, id: ResourceId) -> Fixed {
        if let Some(pool) = self.pools.get(&id) {
            return pool.grantable();
        }
        self.largest(id, Pool::grantable)
    }

    /// The largest demand of a resource that could ever fit.
    pub(crate) fn ceiling(&self, id: ResourceId) -> Fixed {
        if let Some(pool) = self.pools.get(&id) {
            return pool.total;
        }
        self.largest(id, |pool| pool.total)
    }

    fn largest(&self, wildcard: ResourceId, of: impl Fn(&Pool) -> Fixed) -> Fixed {
        let indexed = self.wild.get(&wildcard).map(SmallVec::as_slice).unwrap_or_default();
        indexed.iter().filter_map(|id| self.pools.get(id)).map(of).max().unwrap_or(Fixed::ZERO)
    }

    /// Allocations that drew from a resource, ever.
    pub(crate) fn clock(&self, id: ResourceId) -> u64 {
        let draws = |id: &ResourceId| self.pools.get(id).map_or(0, |pool| pool.draws);
        draws(&id) + self.wild.get(&id).map_or(0, |indexed| indexed.iter().map(draws).sum())
    }

    /// CPUs of the node that are free here, in whole units.
    pub(crate) fn free_cpus(&self) -> u32 {
        let cpu = |pool: &&Pool| pool.kind == ResourceKind::Cpu && pool.bundle.is_none();
        self.pools.values().filter(cpu).map(|pool| (pool.free.0 / Fixed::ONE.0).max(0) as u32).sum()
    }

    /// What must be [`Self::grantable`] for a demand of `amount`: beyond one instance, whole ones.
    pub(crate) fn need(&self, id: ResourceId, amount: Fixed) -> Fixed {
        let unit = |id: &ResourceId| self.pools.get(id).is_some_and(|pool| pool.kind == ResourceKind::UnitInstances);
        let is_unit = unit(&id) || self.wild.get(&id).is_some_and(|indexed| indexed.iter().any(unit));
        if is_unit && amount > Fixed::ONE {
            return Fixed::units(amount.ceil_units());
        }
        amount
    }

    /// True where the node's totals can hold the demand.
    pub(crate) fn feasible(&self, demand: &ResourceSet) -> bool {
        demand.iter().all(|(id, amount)| self.need(id, amount) <= self.ceiling(id))
    }

    /// True where the demand fits now.
    pub(crate) fn fits(&self, demand: &ResourceSet) -> bool {
        demand.iter().all(|(id, amount)| self.need(id, amount) <= self.grantable(id))
    }

    /// Takes a demand that [`Self::fits`].
    pub(crate) fn allocate(&mut self, demand: &ResourceSet, account: Account) -> Allocation {
        let mut parts: SmallVec<[Allocated; 2]> = SmallVec::new();
        let mut bundle = None;
        for (id, amount) in demand.iter() {
            if let Some(pool) = self.pools.get_mut(&id) {
                bundle = bundle.or(pool.bundle.map(|(bundle, _)| bundle));
                parts.push(draw(pool, id, amount, account));
            }
        }
        for (id, amount) in demand.iter().filter(|(id, _)| self.wild.contains_key(id)) {
            let named = |part: &&Allocated| self.bundle_of(part.id).is_some_and(|(_, wildcard)| wildcard == id);
            let instances = match parts.iter().find(named) {
                Some(part) => part.instances.clone(),
                None => {
                    let Some(indexed) = self.choose(id, amount, bundle) else {
                        continue;
                    };
                    let Some(pool) = self.pools.get_mut(&indexed) else {
                        continue;
                    };
                    bundle = bundle.or(pool.bundle.map(|(bundle, _)| bundle));
                    let part = draw(pool, indexed, amount, account);
                    let instances = part.instances.clone();
                    parts.push(part);
                    instances
                }
            };
            parts.push(Allocated { id, amount, instances, mirror: true });
        }
        Allocation(parts)
    }

    /// The bundle and the wildcard of an indexed bundle resource.
    fn bundle_of(&self, id: ResourceId) -> Option<(BundleId, ResourceId)> {
        self.pools.get(&id).and_then(|pool| pool.bundle)
    }

    /// The indexed resource from which a wildcard demand is served: of the bundle already used, else the first with room.
    fn choose(&self, wildcard: ResourceId, amount: Fixed, bundle: Option<BundleId>) -> Option<ResourceId> {
        let need = self.need(wildcard, amount);
        let has_room = |id: &&ResourceId| self.pools.get(id).is_some_and(|pool| pool.grantable() >= need);
        let indexed = self.wild.get(&wildcard)?;
        let same = |id: &&ResourceId| self.bundle_of(**id).is_some_and(|(of, _)| Some(of) == bundle);
        indexed.iter().filter(has_room).find(same).or_else(|| indexed.iter().find(has_room)).copied()
    }

    /// Books an allocation's parts of some kind back as free.
    pub(crate) fn give_back(&mut self, allocation: &Allocation, account: Account, only: impl Fn(ResourceKind) -> bool) {
        for part in allocation.0.iter().filter(|part| !part.mirror) {
            if let Some(pool) = self.pools.get_mut(&part.id).filter(|pool| only(pool.kind)) {
                pool.add(part);
                book(pool, account, -part.amount);
            }
        }
    }

    /// Takes an allocation's CPU again, even where it is not free.
    pub(crate) fn retake_cpu(&mut self, allocation: &Allocation, account: Account) {
        for part in allocation.0.iter().filter(|part| !part.mirror) {
            if let Some(pool) = self.pools.get_mut(&part.id).filter(|pool| pool.kind == ResourceKind::Cpu) {
                pool.sub(part);
                book(pool, account, part.amount);
            }
        }
    }

    /// Credit that came from the bank.
    pub(crate) fn credit(&mut self, credit: &Allocation) {
        for part in &credit.0 {
            if let Some(pool) = self.pools.get_mut(&part.id) {
                pool.credit += part.amount;
                pool.add(part);
            }
        }
    }

    /// Everything free of the named resources, to go to the bank.
    pub(crate) fn surrender(&mut self, ids: impl IntoIterator<Item = ResourceId>) -> Allocation {
        let mut parts = SmallVec::new();
        for id in ids {
            let Some(pool) = self.pools.get_mut(&id).filter(|pool| pool.bundle.is_none()) else {
                continue;
            };
            if let Some(part) = pool.take_free(id) {
                pool.credit -= part.amount;
                parts.push(part);
            }
        }
        Allocation(parts)
    }

    /// Takes a demand that fits out of the ledger altogether, as credit for a shard.
    pub(crate) fn withdraw(&mut self, demand: &ResourceSet) -> Allocation {
        let credit = self.allocate(demand, Account::Lease { pinned: false });
        for part in &credit.0 {
            if let Some(pool) = self.pools.get_mut(&part.id) {
                pool.leased -= part.amount;
                pool.credit -= part.amount;
            }
        }
        credit
    }

    /// Opens the pool of a committed bundle's resource, with the instances that the bundle holds.
    pub(crate) fn open_bundle(&mut self, bundle: BundleId, resource: &BundleResource, held: &Allocation) {
        let original = resource.original.and_then(|id| held.0.iter().find(|part| part.id == id));
        let kind = resource.original.and_then(|id| self.pools.get(&id)).map_or(ResourceKind::Plain, |pool| pool.kind);
        let mut pool = Pool::new(kind, resource.amount);
        pool.bundle = Some((bundle, resource.wildcard));
        pool.credit = resource.amount;
        let instances = original.map(|part| part.instances.clone()).unwrap_or_default();
        pool.add(&Allocated { id: resource.indexed, amount: resource.amount, instances, mirror: false });
        self.pools.insert(resource.indexed, pool);
        let indexed = self.wild.entry(resource.wildcard).or_default();
        indexed.push(resource.indexed);
        indexed.sort_unstable();
    }

    /// Nothing more is granted from a bundle's resource; what is held of it can still come back.
    pub(crate) fn seal_bundle(&mut self, resource: &BundleResource) {
        if let Some(pool) = self.pools.get_mut(&resource.indexed) {
            pool.sealed = true;
            pool.total = Fixed::ZERO;
        }
    }

    /// Removes a bundle's resource.
    pub(crate) fn close_bundle(&mut self, resource: &BundleResource) {
        self.pools.remove(&resource.indexed);
        if let Some(indexed) = self.wild.get_mut(&resource.wildcard) {
            indexed.retain(|id| *id != resource.indexed);
            if indexed.is_empty() {
                self.wild.remove(&resource.wildcard);
            }
        }
    }

    /// True for the id of a resource, of the node or of a bundle.
    pub(crate) fn knows(&self, id: ResourceId) -> bool {
        self.wild.contains_key(&id) || self.pools.contains_key(&id)
    }

    /// True for an id that a bundle uses.
    pub(crate) fn is_bundle(&self, id: ResourceId) -> bool {
        self.wild.contains_key(&id) || self.pools.get(&id).is_some_and(|pool| pool.bundle.is_some())
    }

    /// The resource's own id and, for an indexed one, its wildcard: both can run more when it is freed.
    pub(crate) fn wakes(&self, id: ResourceId) -> SmallVec<[ResourceId; 2]> {
        let mut ids = SmallVec::from_slice(&[id]);
        ids.extend(self.pools.get(&id).and_then(|pool| pool.bundle).map(|(_, wildcard)| wildcard));
        ids
    }

    /// Verifies the books of every pool.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (id, pool) in &self.pools {
            if pool.free + pool.leased + pool.bundled != pool.credit {
                return Err(format!("{id:?}: free, leased and bundled don't add up to the credit: {pool:?}"));
            }
            if pool.kind == ResourceKind::UnitInstances {
                let sum: Fixed = pool.slots.iter().copied().sum();
                let bad = pool.slots.iter().any(|slot| *slot < Fixed::ZERO || *slot > Fixed::ONE);
                if sum != pool.free || bad {
                    return Err(format!("{id:?}: its instances don't add up: {pool:?}"));
                }
            }
            if pool.leased < Fixed::ZERO || pool.bundled < Fixed::ZERO || pool.pinned < Fixed::ZERO {
                return Err(format!("{id:?}: more was given back than taken: {pool:?}"));
            }
        }
        Ok(())
    }
}

/// Books an allocation of a pool, `change` negative for a return.
fn book(pool: &mut Pool, account: Account, change: Fixed) {
    match account {
        Account::Lease { pinned } => {
            pool.leased += change;
            if pinned {
                pool.pinned += change;
            }
        }
        Account::Bundle => {
            pool.bundled += change;
            pool.pinned += change;
        }
    }
}

fn draw(pool: &mut Pool, id: ResourceId, amount: Fixed, account: Account) -> Allocated {
    let instances = match pool.kind {
        ResourceKind::UnitInstances => pool.pick(amount),
        ResourceKind::Plain | ResourceKind::Cpu => SmallVec::new(),
    };
    pool.free -= amount;
    pool.draws += 1;
    book(pool, account, amount);
    Allocated { id, amount, instances, mirror: false }
}

/// Unit instances come whole.
fn whole(kind: ResourceKind, total: Fixed) -> Fixed {
    match kind {
        ResourceKind::UnitInstances => Fixed::units(total.0 / Fixed::ONE.0),
        ResourceKind::Plain | ResourceKind::Cpu => total,
    }
}

/// All of a node's resource as one piece of credit.
pub(crate) fn full_credit(id: ResourceId, total: Fixed, kind: ResourceKind) -> Allocation {
    let total = whole(kind, total);
    let instances = match kind {
        ResourceKind::UnitInstances => (0..total.ceil_units()).map(|index| (index as u16, Fixed::ONE)).collect(),
        ResourceKind::Plain | ResourceKind::Cpu => SmallVec::new(),
    };
    Allocation(SmallVec::from_iter([Allocated { id, amount: total, instances, mirror: false }]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PlacementGroupId;

    const CPU: ResourceId = ResourceId(0);
    const GPU: ResourceId = ResourceId(1);
    const LEASE: Account = Account::Lease { pinned: false };

    fn node() -> Ledger {
        let mut ledger = Ledger::default();
        for (id, total, kind) in [(CPU, 4, ResourceKind::Cpu), (GPU, 3, ResourceKind::UnitInstances)] {
            ledger.add(id, Fixed::units(total), kind);
            ledger.credit(&full_credit(id, Fixed::units(total), kind));
        }
        ledger
    }

    fn gpus(amount: f64) -> ResourceSet {
        ResourceSet::new([(GPU, Fixed::from_f64(amount).unwrap())])
    }

    #[test]
    fn fractions_share_the_best_fitting_instance_and_whole_demands_take_whole_ones() {
        let mut ledger = node();
        let a = ledger.allocate(&gpus(0.3), LEASE);
        let b = ledger.allocate(&gpus(0.5), LEASE);
        assert_eq!(a.0[0].instances[0].0, b.0[0].instances[0].0, "the second fraction fits beside the first");
        let c = ledger.allocate(&gpus(0.4), LEASE);
        assert_ne!(c.0[0].instances[0].0, a.0[0].instances[0].0);
        assert_eq!(ledger.pool(GPU).unwrap().free, Fixed::from_f64(1.8).unwrap());
        assert!(ledger.fits(&gpus(1.0)));
        assert!(!ledger.fits(&gpus(2.0)), "1.8 are free, but only one whole instance");
        ledger.give_back(&c, LEASE, |_| true);
        let whole = ledger.allocate(&gpus(2.0), LEASE);
        assert_eq!(whole.0[0].instances.len(), 2);
        ledger.check().unwrap();
    }

    #[test]
    fn only_the_cpu_comes_back_from_a_blocked_worker_and_may_be_overdrawn() {
        let mut ledger = node();
        let both = ResourceSet::new([(CPU, Fixed::units(4)), (GPU, Fixed::ONE)]);
        let held = ledger.allocate(&both, LEASE);
        ledger.give_back(&held, LEASE, |kind| kind == ResourceKind::Cpu);
        assert_eq!((ledger.grantable(CPU), ledger.grantable(GPU)), (Fixed::units(4), Fixed::units(2)));
        ledger.allocate(&ResourceSet::new([(CPU, Fixed::ONE)]), LEASE);
        ledger.retake_cpu(&held, LEASE);
        assert_eq!(ledger.grantable(CPU), -Fixed::ONE);
        ledger.check().unwrap();
    }

    #[test]
    fn a_wildcard_demand_debits_a_bundle_that_has_room_with_the_bundles_instances() {
        let mut ledger = node();
        let wildcard = ResourceId(20);
        let group = PlacementGroupId([7; 18]);
        for (index, indexed, amount) in [(0, ResourceId(10), 1), (1, ResourceId(11), 2)] {
            let held = ledger.allocate(&gpus(f64::from(amount)), Account::Bundle);
            let amount = Fixed::units(i64::from(amount));
            let resource = BundleResource { original: Some(GPU), indexed, wildcard, amount };
            ledger.open_bundle(BundleId { group, index }, &resource, &held);
        }
        assert_eq!(ledger.grantable(wildcard), Fixed::units(2));
        let demand = ResourceSet::new([(wildcard, Fixed::units(2))]);
        let got = ledger.allocate(&demand, LEASE);
        assert_eq!(got.0[0].id, ResourceId(11));
        assert_eq!(got.0[0].instances.as_slice(), &[(1, Fixed::ONE), (2, Fixed::ONE)]);
        assert!(got.0[1].mirror && got.0[1].instances == got.0[0].instances);
        assert_eq!(ledger.grantable(wildcard), Fixed::ONE, "bundle 0 still has its GPU");
        ledger.give_back(&got, LEASE, |_| true);
        assert_eq!(ledger.grantable(ResourceId(11)), Fixed::units(2));
        ledger.check().unwrap();
    }

    #[test]
    fn a_demand_that_names_its_bundle_takes_from_that_one_only() {
        let mut ledger = node();
        let wildcard = ResourceId(20);
        let group = PlacementGroupId([7; 18]);
        for (index, indexed) in [(0, ResourceId(10)), (1, ResourceId(11))] {
            let cpu = ResourceSet::new([(CPU, Fixed::units(2))]);
            let held = ledger.allocate(&cpu, Account::Bundle);
            let resource = BundleResource { original: Some(CPU), indexed, wildcard, amount: Fixed::units(2) };
            ledger.open_bundle(BundleId { group, index }, &resource, &held);
        }
        let demand = ResourceSet::new([(wildcard, Fixed::units(2)), (ResourceId(11), Fixed::units(2))]);
        let got = ledger.allocate(&demand, LEASE);
        assert_eq!(ledger.grantable(ResourceId(11)), Fixed::ZERO);
        assert_eq!(ledger.grantable(ResourceId(10)), Fixed::units(2));
        assert_eq!(got.0.iter().filter(|part| part.mirror).count(), 1);
        assert!(!ledger.fits(&demand) && ledger.fits(&ResourceSet::new([(wildcard, Fixed::units(2))])));
    }
}
