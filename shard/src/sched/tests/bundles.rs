//! Bundles of placement groups.

use super::*;
use crate::ids::PlacementGroupId;

const INDEXED: ResourceId = ResourceId(10);
const WILDCARD: ResourceId = ResourceId(11);
const ID: BundleId = BundleId { group: PlacementGroupId([4; 18]), index: 0 };

fn spec(amount: i64) -> BundleSpec {
    let resource =
        BundleResource { original: Some(CPU), indexed: INDEXED, wildcard: WILDCARD, amount: Fixed::units(amount) };
    BundleSpec { id: ID, resources: smallvec![resource] }
}

fn prepare(amount: i64) -> SchedEvent {
    SchedEvent::PrepareBundles { token: 1, bundles: vec![spec(amount)] }
}

fn commit() -> SchedEvent {
    SchedEvent::CommitBundles { token: 2, bundles: vec![ID] }
}

fn give_up() -> SchedEvent {
    SchedEvent::ReturnBundles { token: 3, bundles: vec![ID] }
}

fn prepared(effects: &[SchedEffect]) -> bool {
    matches!(effects[..], [SchedEffect::BundlesPrepared { ok: true, .. }])
}

#[test]
fn a_bundle_is_prepared_committed_and_given_up_however_often_it_is_asked() {
    let mut node = Node::one(4);
    for _ in 0..2 {
        assert!(prepared(&node.send(prepare(3))));
        assert_eq!(node.free(CPU), Fixed::ONE);
    }
    for _ in 0..2 {
        let effects = node.send(commit());
        assert!(matches!(&effects[..], [SchedEffect::BundlesCommitted { unknown, .. }] if unknown.is_empty()));
    }
    assert!(prepared(&node.send(prepare(3))), "stale: it is committed");
    assert_eq!((node.free(CPU), node.free(WILDCARD)), (Fixed::ONE, Fixed::units(3)));
    for returned in [1, 0] {
        let effects = node.send(give_up());
        assert!(matches!(&effects[..], [SchedEffect::BundlesReturned { returned: ids, .. }] if ids.len() == returned));
        assert_eq!((node.free(CPU), node.free(WILDCARD)), (Fixed::units(4), Fixed::ZERO));
    }
    let effects = node.send(commit());
    assert!(matches!(&effects[..], [SchedEffect::BundlesCommitted { unknown, .. }] if unknown.len() == 1));
}

#[test]
fn bundles_are_prepared_all_or_not_at_all() {
    let mut node = Node::one(4);
    let mut second = spec(2);
    second.id.index = 1;
    second.resources[0].indexed = ResourceId(12);
    let effects = node.send(SchedEvent::PrepareBundles { token: 1, bundles: vec![spec(3), second.clone()] });
    assert!(matches!(effects[..], [SchedEffect::BundlesPrepared { ok: false, .. }]));
    assert_eq!(node.free(CPU), Fixed::units(4));
    assert!(prepared(&node.send(SchedEvent::PrepareBundles { token: 1, bundles: vec![spec(2), second] })));
    assert_eq!(node.free(CPU), Fixed::ZERO);
}

#[test]
fn giving_a_bundle_up_cancels_who_waits_for_it_and_kills_who_is_in_it() {
    let mut node = Node::one(4);
    node.send(prepare(2));
    node.define(1, ResourceSet::new([(WILDCARD, Fixed::ONE), (INDEXED, Fixed::ONE)]));
    node.define(2, ResourceSet::new([(WILDCARD, Fixed::units(2))]));
    assert!(node.ask(request(1, 1)).is_empty(), "not committed yet");
    node.to(0, commit());
    let inside = node.granted([(0, request(3, 1))]);
    assert_eq!(inside.len(), 2);
    node.ask(request(2, 2));
    node.ask(request(4, 1));
    let effects = node.send(give_up());
    let kills = effects
        .iter()
        .filter(|effect| matches!(effect, SchedEffect::KillWorker { why: KillReason::BundleRemoved, .. }));
    assert_eq!(kills.count(), 2, "leases 1 and 3: {effects:?}");
    let cancelled = effects
        .iter()
        .filter(|effect| matches!(effect, SchedEffect::Cancelled { why: CancelReason::BundleRemoved, .. }));
    assert_eq!(cancelled.count(), 2, "leases 2 and 4: {effects:?}");
    assert_eq!(node.free(CPU), Fixed::units(2), "its workers still live");
    assert!(!prepared(&node.send(prepare(1))), "not again before they are gone");
    node.send(SchedEvent::WorkerGone { worker: inside[0].1 });
    assert_eq!(node.free(CPU), Fixed::units(2));
    node.give_back(0, inside[1].0);
    assert_eq!(node.free(CPU), Fixed::units(4));
    assert!(prepared(&node.send(prepare(1))));
}

#[test]
fn unused_bundles_are_released() {
    let mut node = Node::one(4);
    node.send(prepare(2));
    node.send(commit());
    let effects = node.send(SchedEvent::ReleaseUnusedBundles { token: 8, in_use: vec![ID] });
    assert!(matches!(&effects[..], [SchedEffect::BundlesReturned { returned, .. }] if returned.is_empty()));
    let effects = node.send(SchedEvent::ReleaseUnusedBundles { token: 8, in_use: vec![] });
    assert!(matches!(&effects[..], [SchedEffect::BundlesReturned { returned, .. }] if returned[..] == [ID]));
    assert_eq!(node.free(CPU), Fixed::units(4));
}

#[test]
fn a_blocked_worker_lends_its_bundles_cpu() {
    let mut node = Node::one(1);
    node.send(prepare(1));
    node.send(commit());
    node.define(1, ResourceSet::new([(WILDCARD, Fixed::ONE)]));
    let (_, blocked) = node.granted([(0, request(1, 1))])[0];
    node.to(0, SchedEvent::Blocked { worker: blocked });
    assert_eq!(node.free(WILDCARD), Fixed::ONE);
    assert_eq!(node.granted([(0, request(2, 1))]).len(), 1);
}

#[test]
fn a_bundle_on_another_shard_calls_in_what_idles_elsewhere() {
    let mut node = Node::new(3, 4, |_| {});
    node.define_on(1, 1, cpus(4));
    assert_eq!(node.granted([(1, request(1, 1))]).len(), 1);
    node.to(2, prepare(3));
    assert!(matches!(node.take()[..], [SchedEffect::BundlesPrepared { ok: false, .. }]), "all of it is in use");
    node.give_back(1, 1);
    node.to(2, prepare(3));
    assert!(prepared(&node.take()));
    node.to(2, commit());
    node.to(2, give_up());
    assert_eq!(node.free(CPU), Fixed::units(4));
}
