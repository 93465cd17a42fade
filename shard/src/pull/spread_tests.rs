//! One object to many nodes, and objects that are sent on while they are coming.

use super::*;
use crate::ids::{NodeId, ObjectId};

const X: ObjectId = ObjectId([7; 28]);

fn node(n: u8) -> NodeId {
    NodeId([n; 28])
}

fn ask(spread: &mut Spread, n: u8) -> Serve {
    spread.asked(X, node(n), false, 0)
}

#[test]
fn a_broadcast_is_a_tree_in_which_nobody_serves_more_than_two() {
    let mut spread = Spread::new(FANOUT);
    let mut depth = [0; 65];
    let mut named = [0; 65];
    for n in 1..=64 {
        match ask(&mut spread, n) {
            Serve::Here => depth[usize::from(n)] = 1,
            Serve::Elsewhere(NodeId([parent, ..])) => {
                assert!(parent < n, "{n} is sent to {parent}, which asked later");
                named[usize::from(parent)] += 1;
                depth[usize::from(n)] = depth[usize::from(parent)] + 1;
            }
        }
    }
    assert_eq!(depth[1..].iter().filter(|depth| **depth == 1).count(), FANOUT, "the source sends twice, not 64 times");
    assert!(named.iter().all(|named| *named <= FANOUT));
    assert_eq!(depth.iter().max(), Some(&6), "balanced: 2, 4, 8, 16, 32 and the last two");
}

#[test]
fn who_comes_back_is_served_here_and_who_failed_is_not_named() {
    let mut spread = Spread::new(FANOUT);
    assert_eq!([ask(&mut spread, 1), ask(&mut spread, 2)], [Serve::Here; 2]);
    assert_eq!(ask(&mut spread, 3), Serve::Elsewhere(node(1)));
    assert_eq!(ask(&mut spread, 3), Serve::Here, "it came back");
    assert_eq!(ask(&mut spread, 4), Serve::Elsewhere(node(1)), "coming back is no complaint");
    assert_eq!(ask(&mut spread, 5), Serve::Elsewhere(node(2)));
    assert_eq!(spread.asked(X, node(5), true, 0), Serve::Here);
    assert_eq!(ask(&mut spread, 6), Serve::Elsewhere(node(3)), "2 has failed");
    spread.node_gone(&node(3));
    assert_eq!(ask(&mut spread, 7), Serve::Elsewhere(node(4)));
    spread.served(&X, &node(1), true);
    spread.served(&X, &node(2), true);
    spread.served(&X, &node(5), false);
    assert_eq!(ask(&mut spread, 8), Serve::Here, "few are being served");
    assert_eq!(spread.asked(X, node(9), true, 0), Serve::Here, "it was sent here from elsewhere");
    assert_eq!(ask(&mut spread, 10), Serve::Elsewhere(node(4)));
    assert_eq!(ask(&mut spread, 11), Serve::Elsewhere(node(6)), "5 has not stayed");
    (12..=20).for_each(|n| spread.node_gone(&node(n)));
}

#[test]
fn where_all_have_failed_nodes_are_served_here() {
    let mut spread = Spread::new(FANOUT);
    assert_eq!([1, 2, 3].map(|n| ask(&mut spread, n)), [Serve::Here, Serve::Here, Serve::Elsewhere(node(1))]);
    for n in 1..=3 {
        spread.served(&X, &node(n), false);
    }
    assert_eq!([ask(&mut spread, 4), ask(&mut spread, 5)], [Serve::Here; 2]);
    spread.served(&X, &node(4), false);
    assert_eq!(ask(&mut spread, 6), Serve::Here);
    (4..=6).for_each(|n| spread.node_gone(&node(n)));
    assert_eq!([ask(&mut spread, 7), ask(&mut spread, 8)], [Serve::Here; 2]);
}

#[test]
fn a_holder_that_is_told_to_serves_all_itself() {
    let mut spread = Spread::new(0);
    assert!((1..=9).all(|n| ask(&mut spread, n) == Serve::Here));
    assert!(spread.is_empty());
}

#[test]
fn what_is_remembered_is_bounded_and_ends() {
    let mut spread = Spread::new(FANOUT);
    let object = |n: usize| {
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
        ObjectId(bytes)
    };
    for n in 0..SPREADS_MAX + 5 {
        assert_eq!(spread.asked(object(n), node(1), false, 5), Serve::Here);
    }
    assert_eq!(spread.len(), SPREADS_MAX);
    spread.tick(FORGET_AFTER_NS + 4);
    assert_eq!(spread.len(), SPREADS_MAX, "one may still ask");
    spread.tick(FORGET_AFTER_NS + 5);
    assert!(spread.is_empty());
}

fn send(sender: &mut Sender, event: SendEvent) -> Vec<SendEffect> {
    let mut out = Vec::new();
    sender.handle(event, &mut out);
    sender.check().expect("a sound state");
    out
}

fn arrived(sender: &mut Sender, index: u32) -> Vec<SendEffect> {
    send(sender, SendEvent::Arrived { object: X, index })
}

fn goes(n: u8, index: u32) -> SendEffect {
    SendEffect::Send { node: node(n), object: X, index }
}

fn sent(n: u8) -> SendEvent {
    SendEvent::Sent { node: node(n), object: X, ok: true }
}

const RETURNED: SendEffect = SendEffect::Returned { object: X };

/// Object X of 3 chunks, of which chunk 2 is there, is being sent to nodes 1 and 2.
fn sending_on() -> Sender {
    let mut sender = Sender::new(2, 10);
    assert!(send(&mut sender, SendEvent::Partial { object: X, chunks: 3 }).is_empty());
    assert!(arrived(&mut sender, 2).is_empty());
    for n in [1, 2] {
        let push = SendEvent::Push { node: node(n), object: X, chunks: 3 };
        assert_eq!(send(&mut sender, push), [goes(n, 2)]);
    }
    sender
}

#[test]
fn chunks_are_sent_on_as_they_come() {
    let mut sender = sending_on();
    assert_eq!(arrived(&mut sender, 0), [goes(1, 0), goes(2, 0)]);
    assert!(arrived(&mut sender, 0).is_empty(), "it is there already");
    assert!(arrived(&mut sender, 3).is_empty(), "there is none such");
    assert!(arrived(&mut sender, 1).is_empty(), "two are under way to each");
    assert_eq!(send(&mut sender, sent(1)), [goes(1, 1)]);
    send(&mut sender, sent(1));
    assert_eq!(send(&mut sender, sent(1)), [SendEffect::Finished { node: node(1), object: X }]);
    // It is whole now, and who asks again gets all of it.
    let push = SendEvent::Push { node: node(1), object: X, chunks: 3 };
    assert_eq!(send(&mut sender, push), [goes(1, 2), goes(1, 0)]);
    assert_eq!(send(&mut sender, sent(1)), [goes(1, 1)]);
}

#[test]
fn what_is_given_up_is_returned_when_nothing_is_read_of_it() {
    let mut sender = sending_on();
    let give_up = SendEvent::GiveUp { object: X };
    assert!(send(&mut sender, SendEvent::Sent { node: node(2), object: X, ok: true }).is_empty());
    let withdrawn = |n| SendEffect::Withdrawn { node: node(n), object: X };
    let finished = |n| SendEffect::Finished { node: node(n), object: X };
    assert_eq!(send(&mut sender, give_up), [withdrawn(1), withdrawn(2), finished(2)]);
    assert!(send(&mut sender, give_up).is_empty());
    assert!(arrived(&mut sender, 1).is_empty());
    let push = SendEvent::Push { node: node(3), object: X, chunks: 3 };
    assert_eq!(send(&mut sender, push), [withdrawn(3), finished(3)]);
    assert_eq!(send(&mut sender, sent(1)), [finished(1), RETURNED]);
    assert!(sender.is_empty());
    // Also where nobody takes it any more, and where nobody ever did.
    let mut sender = sending_on();
    send(&mut sender, SendEvent::NodeGone { node: node(1) });
    send(&mut sender, SendEvent::Cancel { node: node(2), object: X });
    assert_eq!(send(&mut sender, sent(2)), [finished(2)]);
    assert_eq!(send(&mut sender, give_up), [RETURNED]);
    assert!(send(&mut sender, give_up).is_empty(), "once");
}
