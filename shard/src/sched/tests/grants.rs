//! Queues, turns, reservations, idempotence.

use smallvec::smallvec;

use super::*;
use crate::ids::{ActorId, ObjectId};

#[test]
fn a_retry_gets_the_same_answer_and_returns_are_harmless_twice() {
    let mut node = Node::one(1);
    node.define(1, cpus(1));
    let first = node.granted([(0, request(1, 1))]);
    assert_eq!(first.len(), 1);
    let again = node.ask(LeaseRequest { token: 99, ..request(1, 1) });
    assert_eq!(grants(&again), vec![(99, first[0].1)]);
    node.ask(request(2, 1));
    node.ask(LeaseRequest { token: 98, ..request(2, 1) });
    node.give_back(0, 1);
    assert_eq!(grants(&node.take()).iter().map(|grant| grant.0).collect::<Vec<_>>(), vec![2, 98]);
    node.give_back(0, 1);
    node.give_back(0, 77);
    assert_eq!(node.free(CPU), Fixed::ZERO, "lease 2 still holds it");
}

#[test]
fn unanswered_retries_are_bounded() {
    let mut node = Node::one(1);
    node.define(1, cpus(2));
    for token in 0..TOKENS_PER_LEASE_MAX as u64 {
        assert!(node.ask(LeaseRequest { token, ..request(1, 1) }).is_empty());
    }
    let effects = node.ask(LeaseRequest { token: 50, ..request(1, 1) });
    assert!(matches!(effects[..], [SchedEffect::Failed { token: 50, why: FailReason::TooManyRetries, .. }]));
}

#[test]
fn a_cancel_answers_the_request_unless_it_is_granted() {
    let mut node = Node::one(1);
    node.define(1, cpus(1));
    node.granted([(0, request(1, 1))]);
    node.ask(request(2, 1));
    let effects = node.send(SchedEvent::Cancel { token: 60, lease: lease(2) });
    assert!(matches!(effects[0], SchedEffect::Cancelled { token: 2, why: CancelReason::Asked, .. }));
    assert!(matches!(effects[1], SchedEffect::CancelDone { token: 60, cancelled: true, .. }));
    for (n, token) in [(1, 61), (9, 62)] {
        let effects = node.send(SchedEvent::Cancel { token, lease: lease(n) });
        assert!(matches!(effects[..], [SchedEffect::CancelDone { cancelled: false, .. }]), "{effects:?}");
    }
    assert!(node.shards[0].lease(lease(1)).is_some());
}

#[test]
fn a_class_is_served_in_order_and_classes_take_turns() {
    let mut node = Node::one(1);
    (1..=2).for_each(|class| node.define(class, cpus(1)));
    let mut order = node.granted([(0, request(1, 1))]);
    for n in 2..=4 {
        node.ask(request(n, 1));
        node.ask(request(n + 10, 2));
    }
    for _ in 0..6 {
        let last = order.last().unwrap().0;
        node.give_back(0, last);
        node.bring_up();
        order.extend(grants(&node.take()));
    }
    let order: Vec<u32> = order.into_iter().map(|grant| grant.0).collect();
    assert_eq!(order, vec![1, 2, 12, 3, 13, 4, 14]);
}

#[test]
fn all_that_fits_is_granted_when_much_is_freed_at_once() {
    let mut node = Node::one(2);
    let (total, kind) = (Fixed::units(2), ResourceKind::UnitInstances);
    node.to(0, SchedEvent::AddResource { id: GPU, total, kind });
    node.define(1, ResourceSet::new([(GPU, Fixed::units(2))]));
    node.define(2, ResourceSet::new([(CPU, Fixed::ONE), (GPU, Fixed::ONE)]));
    node.granted([(0, request(1, 1))]);
    (2..=3).for_each(|n| drop(node.ask(request(n, 2))));
    node.give_back(0, 1);
    node.bring_up();
    assert_eq!(grants(&node.take()).len(), 2);
}

#[test]
fn what_waits_for_its_objects_does_not_stop_those_behind_it() {
    let mut node = Node::one(1);
    node.define(1, cpus(1));
    let (a, b) = (ObjectId([1; 28]), ObjectId([2; 28]));
    let effects = node.ask(LeaseRequest { deps: smallvec![a, b], ..request(1, 1) });
    assert!(matches!(&effects[..], [SchedEffect::WatchDeps { deps, .. }] if deps.len() == 2));
    assert_eq!(node.granted([(0, request(2, 1))]).len(), 1);
    node.send(SchedEvent::DepReady { lease: lease(1), object: a });
    node.send(SchedEvent::DepReady { lease: lease(1), object: b });
    assert_eq!(node.shards[0].class_load(ClassId(1)).unwrap().ready, 1);
    let lost = node.send(SchedEvent::DepLost { lease: lease(1), object: a });
    assert!(matches!(&lost[..], [SchedEffect::WatchDeps { deps, .. }] if deps[..] == [a]));
    node.give_back(0, 2);
    assert!(grants(&node.take()).is_empty());
    let effects = node.send(SchedEvent::DepReady { lease: lease(1), object: a });
    assert!(matches!(effects[0], SchedEffect::UnwatchDeps { .. }));
    assert_eq!(grants(&effects).len(), 1);
}

/// Runs a node full of small leases that are returned and followed by new ones, with `big` waiting; grants until it gets its turn.
fn grants_before(node: &mut Node, big: LeaseRequest, limit: u32) -> Option<u32> {
    let token = big.token as u32;
    let mut running: Vec<u32> =
        node.granted((1..=4).map(|n| (0, request(n, 1)))).into_iter().map(|grant| grant.0).collect();
    node.ask(big);
    for (count, next) in (0..limit).zip(10..) {
        node.now += MS;
        node.to(0, SchedEvent::Request(Box::new(request(next, 1))));
        if running.is_empty() {
            return None;
        }
        node.give_back(0, running.remove(0));
        node.bring_up();
        let granted: Vec<u32> = grants(&node.take()).into_iter().map(|grant| grant.0).collect();
        if granted.contains(&token) {
            return Some(count);
        }
        running.extend(granted);
    }
    None
}

#[test]
fn a_request_for_the_whole_node_is_granted_after_a_bounded_number_of_others() {
    let mut node = Node::new(1, 4, |config| config.bypass_max = 16);
    node.define(1, cpus(1));
    node.define(2, cpus(4));
    let passed = grants_before(&mut node, request(5000, 2), 1000).expect("granted");
    assert!(passed <= 16 + 8, "{passed} passed it by");
}

#[test]
fn nothing_is_set_aside_for_what_actors_will_never_give_back() {
    let mut node = Node::new(1, 5, |config| config.bypass_max = 16);
    node.define(1, cpus(1));
    node.define(2, cpus(5));
    node.define(3, cpus(1));
    let actor = LeaseRequest { actor: Some(ActorId([3; 16])), ..request(9000, 3) };
    assert_eq!(node.granted([(0, actor)]).len(), 1);
    assert_eq!(grants_before(&mut node, request(5000, 2), 200), None);
    assert_eq!(node.shards[0].reserved_for(), None);
    assert_eq!(node.shards[0].class_load(ClassId(1)).unwrap().granted, 4, "the others never stopped");
}

#[test]
fn a_reservation_in_vain_lapses_and_comes_back_later() {
    let mut node = Node::new(1, 4, |config| config.bypass_max = 4);
    node.define(1, cpus(1));
    node.define(2, cpus(4));
    node.granted((1..=4).map(|n| (0, request(n, 1))));
    node.ask(request(5000, 2));
    // Lease 1 never ends; the others do.
    let mut running = vec![2, 3, 4];
    let (mut next, mut lapses, mut was) = (10, 0, false);
    for _ in 0..3000 {
        node.now += 5 * MS;
        node.to(0, SchedEvent::Tick);
        node.to(0, SchedEvent::Request(Box::new(request(next, 1))));
        next += 1;
        if !running.is_empty() {
            node.give_back(0, running.remove(0));
        }
        node.bring_up();
        running.extend(grants(&node.take()).into_iter().map(|grant| grant.0));
        let is = node.shards[0].reserved_for().is_some();
        lapses += u32::from(was && !is);
        was = is;
    }
    assert!((2..=4).contains(&lapses), "{lapses} reservations in 15 s: 1 s, then 2 s, then 4 s, with pauses");
    running.push(1);
    for n in running {
        node.give_back(0, n);
    }
    for _ in 0..200 {
        node.now += 100 * MS;
        node.to(0, SchedEvent::Tick);
        let granted = grants(&node.take());
        granted.into_iter().for_each(|grant| node.give_back(0, grant.0));
    }
    assert!(node.shards[0].class_load(ClassId(2)).unwrap().ready == 0, "it got its turn in the end");
}

/// Classes looked at per grant with this many shapes queued, all different.
fn touched_per_grant(shapes: u32) -> f64 {
    let mut node = Node::one(4);
    for class in 0..shapes {
        let odd = ResourceId(100 + class % 7);
        let amount = Fixed(10_000 + i64::from(class));
        let demand = ResourceSet::new([(CPU, amount), (odd, Fixed(i64::from(class % 5)))]);
        let worker = WorkerKey::default();
        let def = Box::new(ClassDef { demand, worker });
        node.post(0, SchedEvent::DefineClass { class: ClassId(class), def });
    }
    for odd in 0..7 {
        node.post(
            0,
            SchedEvent::AddResource { id: ResourceId(100 + odd), total: Fixed::units(9), kind: ResourceKind::Plain },
        );
    }
    for n in 0..shapes * 2 {
        node.post(0, SchedEvent::Request(Box::new(request(n, n % shapes))));
    }
    node.bring_up();
    let mut running: Vec<u32> = grants(&node.take()).into_iter().map(|grant| grant.0).collect();
    let (before, count) = (node.shards[0].touched(), 20.min(shapes));
    for _ in 0..count {
        let n = running.remove(0);
        node.post(0, SchedEvent::Return { lease: lease(n), fate: WorkerFate::Keep });
        running.extend(grants(&node.take()).into_iter().map(|grant| grant.0));
        assert!(!running.is_empty());
    }
    (node.shards[0].touched() - before) as f64 / f64::from(count)
}

#[test]
fn a_grant_costs_the_same_with_10_and_with_10_000_shapes_queued() {
    let (few, many) = (touched_per_grant(10), touched_per_grant(10_000));
    assert!(few <= 4.0 && many <= 4.0, "{few} and {many} classes were looked at per grant");
}

#[test]
fn what_no_total_can_hold_waits_for_the_total_and_is_reported() {
    let mut node = Node::one(1);
    node.define(1, ResourceSet::new([(GPU, Fixed::ONE)]));
    assert!(node.ask(request(1, 1)).is_empty());
    assert!(node.shards[0].class_load(ClassId(1)).unwrap().infeasible);
    node.to(0, SchedEvent::AddResource { id: GPU, total: Fixed::ONE, kind: ResourceKind::UnitInstances });
    assert_eq!(node.granted([]).len(), 1);
    let rejected = node.ask(LeaseRequest { grant_or_reject: true, ..request(2, 1) });
    assert!(matches!(rejected[..], [SchedEffect::Rejected { token: 2, why: RejectReason::NoRoom, .. }]));
}

#[test]
fn a_smaller_total_leaves_a_debt_that_returns_pay() {
    let mut node = Node::one(4);
    node.define(1, cpus(1));
    node.granted((1..=4).map(|n| (0, request(n, 1))));
    node.send(SchedEvent::ResizeResource { id: CPU, total: Fixed::units(2) });
    assert_eq!(node.free(CPU), Fixed::units(-2));
    node.ask(request(5, 1));
    (1..=2).for_each(|n| node.give_back(0, n));
    assert!(grants(&node.take()).is_empty());
    node.give_back(0, 3);
    assert_eq!(grants(&node.take()).len(), 1);
}

#[test]
fn a_draining_node_takes_nothing_and_keeps_what_it_granted() {
    let mut node = Node::one(1);
    node.define(1, cpus(1));
    node.granted([(0, request(1, 1))]);
    node.ask(request(2, 1));
    let effects = node.send(SchedEvent::Drain { on: true });
    assert!(matches!(effects[..], [SchedEffect::Rejected { token: 2, why: RejectReason::Draining, .. }]));
    let effects = node.ask(request(3, 1));
    assert!(matches!(effects[..], [SchedEffect::Rejected { token: 3, .. }]));
    assert!(node.shards[0].lease(lease(1)).is_some());
    assert_eq!(node.shards[0].idle_since(), None);
    node.now = 5;
    node.give_back(0, 1);
    assert_eq!(node.shards[0].idle_since(), Some(5));
}

#[test]
fn withdraw_takes_out_only_what_holds_nothing() {
    let mut node = Node::one(1);
    node.define(1, cpus(1));
    node.granted([(0, request(1, 1))]);
    node.ask(request(2, 1));
    let queued: Vec<_> = node.shards[0].queued(ClassId(1), 10).map(|queued| queued.lease).collect();
    assert_eq!(queued, vec![lease(2)]);
    let effects = node.send(SchedEvent::Withdraw { lease: lease(2) });
    assert!(matches!(effects[..], [SchedEffect::Withdrawn { token: 2, .. }]));
    assert!(node.send(SchedEvent::Withdraw { lease: lease(1) }).is_empty());
}

#[test]
fn owners_and_jobs_take_their_leases_with_them_but_not_detached_actors() {
    let mut node = Node::one(4);
    node.define(1, cpus(1));
    let root = Some(ActorId([9; 16]));
    let detached = LeaseRequest { actor: root, detached: true, root_detached_actor: root, ..request(2, 1) };
    let granted = node.granted([(0, request(1, 1)), (0, detached)]);
    let effects = node.send(SchedEvent::OwnerGone { owner: worker(1_000_000) });
    let (_, victim) = granted[0];
    assert!(
        matches!(effects[..], [SchedEffect::KillWorker { worker, why: KillReason::OwnerGone, .. }] if worker == victim)
    );
    assert!(node.send(SchedEvent::JobFinished { job: JobId([1; 4]) }).is_empty(), "told already");
    let effects = node.send(SchedEvent::WorkerGone { worker: victim });
    assert!(matches!(effects[..], [SchedEffect::LeaseLost { class: ClassId(1), .. }]));
    let effects = node.ask(request(3, 1));
    assert!(matches!(effects[..], [SchedEffect::Cancelled { why: CancelReason::JobFinished, .. }]));
    assert!(node.shards[0].lease(lease(2)).is_some());
}

#[test]
fn a_full_shard_says_so() {
    let mut node = Node::new(1, 1, |config| config.leases_max = 2);
    node.define(1, cpus(2));
    (1..=2).for_each(|n| assert!(node.ask(request(n, 1)).is_empty()));
    let effects = node.ask(request(3, 1));
    assert!(matches!(effects[..], [SchedEffect::Failed { why: FailReason::QueueFull, .. }]));
    let effects = node.ask(request(4, 99));
    assert!(matches!(effects[..], [SchedEffect::Failed { why: FailReason::UnknownClass, .. }]));
}

#[test]
fn backlog_is_summed_over_owners() {
    let mut node = Node::one(1);
    node.define(1, cpus(1));
    for (owner, size) in [(1, 5), (2, 7), (1, 2), (2, 0)] {
        node.send(SchedEvent::Backlog { owner: worker(owner), class: ClassId(1), size });
    }
    assert_eq!(node.shards[0].loads().map(|load| load.backlog).sum::<u64>(), 2);
}

fn define_without_worker(node: &mut Node) {
    let def = Box::new(ClassDef { demand: cpus(1), worker: WorkerKey::NONE });
    node.to(0, SchedEvent::DefineClass { class: ClassId(1), def });
}

#[test]
fn of_a_class_higher_priorities_go_first_and_equal_ones_in_their_order() {
    let mut node = Node::one(1);
    define_without_worker(&mut node);
    assert_eq!(grants(&node.ask(request(100, 1))).len(), 1);
    for (n, priority) in [(1, 0), (2, 5), (3, 0), (4, -1), (5, 5), (6, 9)] {
        assert!(node.ask(LeaseRequest { priority, ..request(n, 1) }).is_empty());
    }
    let (mut order, mut last) = (Vec::new(), 100);
    loop {
        node.give_back(0, last);
        let Some((next, _)) = grants(&node.take()).pop() else { break };
        order.push(next);
        last = next;
    }
    assert_eq!(order, [6, 2, 5, 1, 3, 4]);
}

#[test]
fn a_lease_of_resources_alone_needs_no_worker_and_ends_with_its_owner() {
    let mut node = Node::one(2);
    define_without_worker(&mut node);
    assert_eq!(grants(&node.ask(request(1, 1))), [(1, WorkerId::NIL)]);
    assert!(node.send(SchedEvent::Return { lease: lease(1), fate: WorkerFate::Disconnect }).is_empty());
    node.ask(request(2, 1));
    let lost = node.send(SchedEvent::OwnerGone { owner: worker(1_000_000) });
    assert!(matches!(lost[..], [SchedEffect::LeaseLost { worker: WorkerId::NIL, .. }]), "{lost:?}");
    assert_eq!(node.free(CPU), Fixed::units(2));
}
