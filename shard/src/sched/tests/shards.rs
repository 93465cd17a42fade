//! Several shards and their bank.

use super::*;

#[test]
fn one_shard_sends_no_messages() {
    let mut node = Node::one(2);
    node.define(1, cpus(1));
    let mut out = Vec::new();
    for n in 0..100 {
        node.shards[0].handle(SchedEvent::Request(Box::new(request(n, 1))), 0, &mut out);
        node.shards[0].handle(SchedEvent::Return { lease: lease(n / 2), fate: WorkerFate::Keep }, 0, &mut out);
    }
    assert!(!out.iter().any(|effect| matches!(effect, SchedEffect::ToShard { .. })));
}

#[test]
fn a_shard_keeps_its_credit_while_nobody_else_wants_it() {
    let mut node = Node::new(2, 2, |_| {});
    node.define_on(1, 1, cpus(1));
    assert_eq!(node.granted([(1, request(1, 1))]).len(), 1);
    for n in 2..50 {
        node.give_back(1, n - 1);
        node.post(1, SchedEvent::Request(Box::new(request(n, 1))));
        assert!(node.links.is_empty(), "no message for lease {n}");
        assert_eq!(grants(&node.take()).len(), 1);
    }
}

#[test]
fn what_idles_on_one_shard_serves_another_at_once() {
    let mut node = Node::new(3, 4, |_| {});
    node.define_on(1, 1, cpus(1));
    node.define_on(2, 2, cpus(4));
    node.granted((1..=4).map(|n| (1, request(n, 1))));
    (1..=4).for_each(|n| node.give_back(1, n));
    node.take();
    assert_eq!(node.shards[1].credit(CPU), Fixed::units(4));
    let granted = node.granted([(2, request(9, 2))]);
    assert_eq!(granted.len(), 1, "without a tick");
    node.define_on(1, 3, cpus(1));
    node.to(1, SchedEvent::Request(Box::new(request(10, 3))));
    node.take();
    node.give_back(2, 9);
    assert_eq!(node.shards[1].lease_count() + grants(&node.take()).len(), 2, "freed credit goes to who wants it");
}

#[test]
fn an_idle_worker_of_another_shard_is_used_before_one_is_started() {
    let mut node = Node::new(3, 4, |_| {});
    node.define_on(0, 1, cpus(1));
    node.define_on(2, 2, cpus(1));
    let (_, made) = node.granted([(0, request(1, 1))])[0];
    node.give_back(0, 1);
    node.to(2, SchedEvent::Request(Box::new(request(2, 2))));
    let effects = node.take();
    assert!(effects.contains(&SchedEffect::WorkerMoved { worker: made, to: 2 }), "{effects:?}");
    assert_eq!(grants(&effects), vec![(2, made)]);
    // Told to the shard that it was on: passed on.
    node.to(0, SchedEvent::WorkerGone { worker: made });
    assert!(matches!(node.take()[..], [SchedEffect::LeaseLost { .. }]));
}

/// Time until a request for the whole node is granted while every shard always has small requests queued.
fn time_to_whole_node(shards: ShardId) -> u64 {
    let mut node = Node::new(shards, 4, |config| config.class_cap = false);
    for shard in 0..shards {
        node.define_on(shard, u32::from(shard), cpus(1));
    }
    node.define_on(shards - 1, 99, cpus(4));
    let mut running: Vec<(ShardId, u32)> = Vec::new();
    let mut next = 1;
    let mut asked = None;
    for round in 0..4000u32 {
        node.now += MS;
        for shard in 0..shards {
            while node.shards[usize::from(shard)].class_load(ClassId(u32::from(shard))).unwrap().ready < 3 {
                node.to(shard, SchedEvent::Request(Box::new(request(next * 10 + u32::from(shard), u32::from(shard)))));
                next += 1;
            }
        }
        if round == 100 {
            node.to(shards - 1, SchedEvent::Request(Box::new(request(5, 99))));
            asked = Some(node.now);
        }
        if round % 10 == 0 {
            node.everywhere(SchedEvent::Tick);
        }
        if !running.is_empty() {
            let (shard, n) = running.remove(0);
            node.give_back(shard, n);
        }
        node.bring_up();
        for (token, _) in grants(&node.take()) {
            if token == 5 {
                return node.now - asked.unwrap_or(0);
            }
            running.push(((token % 10) as ShardId, token));
        }
    }
    panic!("never granted");
}

#[test]
fn a_request_for_the_whole_node_is_granted_however_many_shards_compete() {
    for shards in 2..=4 {
        let took = time_to_whole_node(shards);
        assert!(took < 200 * MS, "{shards} shards: {} ms", took / MS);
    }
}

#[test]
fn shards_that_want_more_than_half_each_both_get_it_in_turn() {
    let mut node = Node::new(2, 4, |_| {});
    node.define_on(0, 1, cpus(3));
    node.define_on(1, 2, cpus(3));
    let first = node.granted([(0, request(1, 1)), (1, request(2, 2))]);
    assert_eq!(first.len(), 1);
    let (n, shard) = (first[0].0, first[0].0 as ShardId - 1);
    node.give_back(shard, n);
    node.now += 10 * MS;
    node.everywhere(SchedEvent::Tick);
    node.bring_up();
    assert_eq!(grants(&node.take()).len(), 1);
}

#[test]
fn grant_or_reject_looks_at_the_whole_node() {
    let mut node = Node::new(2, 2, |_| {});
    node.define_on(0, 1, cpus(2));
    node.define_on(1, 2, cpus(2));
    node.granted([(0, request(1, 1))]);
    node.give_back(0, 1);
    node.to(1, SchedEvent::Request(Box::new(LeaseRequest { grant_or_reject: true, ..request(2, 2) })));
    node.bring_up();
    assert_eq!(grants(&node.take()).len(), 1, "shard 0 gave up what it did not use");
    node.to(0, SchedEvent::Request(Box::new(LeaseRequest { grant_or_reject: true, ..request(3, 1) })));
    assert!(matches!(node.take()[..], [SchedEffect::Rejected { why: RejectReason::NoRoom, .. }]));
}
