//! Bundles of placement groups: set aside, turned into resources of their own, given up.
//!
//! A bundle's resources leave the node's pools when it is prepared and return when it is given up and the last lease in it is over.

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::api::*;
use super::ledger::Account;
use super::queue::{LeaseIdx, Stage};
use super::remote::TakeFor;
use super::scheduler::Scheduler;
use super::types::*;
use crate::ids::{NowNs, PlacementGroupId, Token};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BundleState {
    Prepared,
    Committed,
    /// Given up; leases in it are on their way out.
    Returning,
}

/// A bundle on this node.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) spec: BundleSpec,
    pub(crate) held: Allocation,
    pub(crate) state: BundleState,
    users: FxHashSet<LeaseIdx>,
}

/// How a prepare ended.
enum Prepared {
    Done,
    Refused,
    /// This much is needed and not all of it is here.
    Lacks(ResourceSet),
}

impl Scheduler {
    pub(crate) fn prepare_bundles(
        &mut self,
        token: Token,
        bundles: Vec<BundleSpec>,
        now: NowNs,
        out: &mut Vec<SchedEffect>,
    ) {
        match self.try_prepare(&bundles, false) {
            Prepared::Done => out.push(SchedEffect::BundlesPrepared { token, ok: true }),
            Prepared::Lacks(demand) if !self.alone() && self.ledger.feasible(&demand) => {
                self.take(demand, TakeFor::Prepare { token, bundles, given_up: false }, now, out);
            }
            Prepared::Lacks(_) | Prepared::Refused => out.push(SchedEffect::BundlesPrepared { token, ok: false }),
        }
    }

    /// The bank has answered: now or never.
    pub(crate) fn prepare_taken(&mut self, token: Token, bundles: &[BundleSpec], out: &mut Vec<SchedEffect>) {
        let ok = matches!(self.try_prepare(bundles, true), Prepared::Done);
        out.push(SchedEffect::BundlesPrepared { token, ok });
    }

    /// All or nothing. `earmarked`: what is here was given for this and may all be used.
    fn try_prepare(&mut self, bundles: &[BundleSpec], earmarked: bool) -> Prepared {
        let state = |bundle: &BundleSpec| self.bundles.get(&bundle.id).map(|bundle| bundle.state);
        if bundles.iter().any(|bundle| state(bundle) == Some(BundleState::Returning)) {
            return Prepared::Refused;
        }
        let mut wanted: Vec<&BundleSpec> = Vec::new();
        for bundle in bundles {
            let twice = wanted.iter().any(|other| other.id == bundle.id);
            if !twice && state(bundle) != Some(BundleState::Committed) {
                wanted.push(bundle);
            }
        }
        wanted.iter().for_each(|bundle| self.drop_prepared(bundle.id));
        for (done, bundle) in wanted.iter().enumerate() {
            let demand = bundle.demand();
            let room = if earmarked { self.ledger.fits(&demand) } else { self.may_take(&demand) };
            if !room {
                wanted[..done].iter().for_each(|bundle| self.drop_prepared(bundle.id));
                return Prepared::Lacks(ResourceSet::new(wanted.iter().flat_map(|bundle| {
                    let parts: SmallVec<[_; 4]> = bundle.demand().iter().collect();
                    parts
                })));
            }
            let held = self.ledger.allocate(&demand, Account::Bundle);
            let (spec, state) = ((*bundle).clone(), BundleState::Prepared);
            self.bundles.insert(bundle.id, Bundle { spec, held, state, users: FxHashSet::default() });
        }
        Prepared::Done
    }

    fn drop_prepared(&mut self, id: BundleId) {
        if self.bundles.get(&id).is_some_and(|bundle| bundle.state == BundleState::Prepared) {
            self.close(id);
        }
    }

    pub(crate) fn commit_bundles(&mut self, token: Token, ids: &[BundleId], out: &mut Vec<SchedEffect>) {
        let mut unknown = SmallVec::new();
        for id in ids {
            let Some(bundle) = self.bundles.get_mut(id).filter(|bundle| bundle.state != BundleState::Returning) else {
                unknown.push(*id);
                continue;
            };
            if bundle.state == BundleState::Committed {
                continue;
            }
            bundle.state = BundleState::Committed;
            for resource in &bundle.spec.resources {
                self.ledger.open_bundle(*id, resource, &bundle.held);
            }
            let opened: SmallVec<[ResourceId; 4]> =
                bundle.spec.resources.iter().map(|resource| resource.indexed).collect();
            opened.into_iter().for_each(|id| self.soil(id));
        }
        out.push(SchedEffect::BundlesCommitted { token, unknown });
    }

    pub(crate) fn return_bundles(&mut self, token: Token, ids: Vec<BundleId>, now: NowNs, out: &mut Vec<SchedEffect>) {
        for take in self.takes.values_mut() {
            if let TakeFor::Prepare { bundles, given_up, .. } = take {
                *given_up |= bundles.iter().any(|bundle| ids.contains(&bundle.id));
            }
        }
        let mut returned = SmallVec::new();
        for id in ids {
            match self.bundles.get(&id).map(|bundle| bundle.state) {
                None | Some(BundleState::Returning) => continue,
                Some(BundleState::Prepared) => self.close(id),
                Some(BundleState::Committed) => self.vacate(id, now, out),
            }
            returned.push(id);
        }
        out.push(SchedEffect::BundlesReturned { token, returned });
    }

    pub(crate) fn release_unused_bundles(
        &mut self,
        token: Token,
        in_use: &[BundleId],
        now: NowNs,
        out: &mut Vec<SchedEffect>,
    ) {
        let in_use: FxHashSet<&BundleId> = in_use.iter().collect();
        let known = self.bundles.keys().copied();
        let pending = self.takes.values().flat_map(|take| match take {
            TakeFor::Prepare { bundles, .. } => bundles.as_slice(),
            TakeFor::Lease(_) => &[],
        });
        let all = known.chain(pending.map(|bundle| bundle.id));
        let mut unused: Vec<BundleId> = all.filter(|id| !in_use.contains(id)).collect();
        unused.sort_unstable();
        self.return_bundles(token, unused, now, out);
    }

    /// Gives up a committed bundle: nobody new gets in, who waits for it is cancelled, who is in it is killed.
    fn vacate(&mut self, id: BundleId, now: NowNs, out: &mut Vec<SchedEffect>) {
        let Some(bundle) = self.bundles.get_mut(&id) else {
            return;
        };
        bundle.state = BundleState::Returning;
        let resources = bundle.spec.resources.clone();
        let mut users: Vec<LeaseIdx> = bundle.users.iter().copied().collect();
        users.sort_unstable();
        resources.iter().for_each(|resource| self.ledger.seal_bundle(resource));
        for at in users {
            match self.leases.get(at).stage {
                Stage::Granted(worker) if worker.is_nil() => self.lose(at, now, out),
                Stage::Granted(worker) => {
                    let lease = self.leases.get_mut(at);
                    if !std::mem::replace(&mut lease.killed, true) {
                        let lease = Some(lease.id);
                        out.push(SchedEffect::KillWorker { worker, lease, why: KillReason::BundleRemoved });
                    }
                }
                _ => self.cancel_one(at, CancelReason::BundleRemoved, now, out),
            }
        }
        let gone = |id: &ResourceId| self.ledger.ceiling(*id) == Fixed::ZERO;
        let named = resources.iter().flat_map(|resource| [resource.indexed, resource.wildcard]).filter(gone);
        let classes = named.filter_map(|id| self.classes_by_resource.get(&id)).flatten().copied();
        let classes: FxHashSet<ClassId> = classes.filter(|class| !self.leases.class(*class).is_unused()).collect();
        if !classes.is_empty() {
            let waits = |lease: &super::queue::Lease| classes.contains(&lease.class) && lease.allocation.is_empty();
            self.cancel_queued(CancelReason::BundleRemoved, waits, now, out);
        }
        self.close_if_empty(id);
    }

    /// Drops every trace of a group that is gone. False, with nothing changed, where it isn't gone or its classes are in use.
    pub(crate) fn forget_group(
        &mut self,
        group: PlacementGroupId,
        classes: &[ClassId],
        resources: &[ResourceId],
    ) -> bool {
        let pending = |take: &TakeFor| match take {
            TakeFor::Prepare { bundles, .. } => bundles.iter().any(|bundle| bundle.id.group == group),
            TakeFor::Lease(_) => false,
        };
        let class_used = |id: &ClassId| self.leases.classes.get(id).is_some_and(|class| !class.is_idle());
        let resource_used = |id: &ResourceId| {
            let others = self.classes_by_resource.get(id).into_iter().flatten().any(|class| !classes.contains(class));
            others || self.ledger.knows(*id)
        };
        let used = self.bundles.keys().any(|id| id.group == group)
            || self.takes.values().any(pending)
            || classes.iter().any(class_used)
            || resources.iter().any(resource_used);
        if used {
            return false;
        }
        classes.iter().for_each(|class| self.forget(*class));
        self.dirty.retain(|id| !resources.contains(id));
        true
    }

    /// True where anything here goes by this number.
    pub fn knows_resource(&self, id: ResourceId) -> bool {
        let by_classes = self.classes_by_resource.contains_key(&id) || !self.waiters.is_empty(id);
        by_classes || self.ledger.knows(id) || self.modes.contains_key(&id) || self.dirty.contains(&id)
    }

    fn close_if_empty(&mut self, id: BundleId) {
        let empty = |bundle: &Bundle| bundle.state == BundleState::Returning && bundle.users.is_empty();
        if self.bundles.get(&id).is_some_and(empty) {
            self.close(id);
        }
    }

    /// The bundle's resources return to the node.
    fn close(&mut self, id: BundleId) {
        let Some(bundle) = self.bundles.remove(&id) else {
            return;
        };
        if bundle.state != BundleState::Prepared {
            bundle.spec.resources.iter().for_each(|resource| self.ledger.close_bundle(resource));
        }
        self.ledger.give_back(&bundle.held, Account::Bundle, |_| true);
        self.soil_all(&bundle.held);
    }

    /// Bundles that an allocation draws from.
    fn bundles_of(&self, allocation: &Allocation) -> SmallVec<[BundleId; 1]> {
        let parts = allocation.0.iter().filter(|part| !part.mirror);
        let bundle = |id: ResourceId| self.ledger.pool(id).and_then(|pool| pool.bundle).map(|(bundle, _)| bundle);
        let mut ids: SmallVec<[BundleId; 1]> = parts.filter_map(|part| bundle(part.id)).collect();
        ids.dedup();
        ids
    }

    /// A lease starts to hold an allocation: its bundles can't close before it ends.
    pub(crate) fn use_bundles(&mut self, at: LeaseIdx, allocation: &Allocation) {
        if self.bundles.is_empty() {
            return;
        }
        for id in self.bundles_of(allocation) {
            if let Some(bundle) = self.bundles.get_mut(&id) {
                bundle.users.insert(at);
            }
        }
    }

    /// A lease has given an allocation back.
    pub(crate) fn leave_bundles(&mut self, at: LeaseIdx, allocation: &Allocation) {
        if self.bundles.is_empty() {
            return;
        }
        for id in self.bundles_of(allocation) {
            if let Some(bundle) = self.bundles.get_mut(&id) {
                bundle.users.remove(&at);
            }
            self.close_if_empty(id);
        }
    }

    /// Bundles by state, for reports: prepared, committed, on their way out.
    pub fn bundle_counts(&self) -> (u32, u32, u32) {
        let mut counts: FxHashMap<u8, u32> = FxHashMap::default();
        for bundle in self.bundles.values() {
            *counts.entry(bundle.state as u8).or_default() += 1;
        }
        let of = |state: BundleState| counts.get(&(state as u8)).copied().unwrap_or(0);
        (of(BundleState::Prepared), of(BundleState::Committed), of(BundleState::Returning))
    }
}
