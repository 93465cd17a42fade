use super::*;
use crate::ids::{NodeId, ObjectId, WorkerId};
use crate::store::StoreError;

const A: NodeId = NodeId([1; 28]);
const B: NodeId = NodeId([2; 28]);
const SECOND: u64 = 1_000_000_000;

fn object(n: u8) -> ObjectId {
    ObjectId([n; 28])
}

fn manager(free_bytes: u64) -> PullManager {
    let config = PullConfig {
        timeout_ns: 10 * SECOND,
        likely_ns: SECOND / 20,
        retry_min_ns: SECOND / 10,
        retry_max_ns: 10 * SECOND,
        objects_max: 1000,
    };
    let mut manager = PullManager::new(config);
    tell(&mut manager, 0, PullEvent::Room { free_bytes, starving: false });
    manager
}

fn tell(manager: &mut PullManager, now: u64, event: PullEvent) -> Vec<PullEffect> {
    let mut out = Vec::new();
    manager.handle(event, now, &mut out);
    manager.check().expect("a sound state");
    out
}

fn want(manager: &mut PullManager, wish: WishId, kind: Kind, objects: &[u8]) -> Vec<PullEffect> {
    want_likely(manager, wish, kind, objects, None)
}

fn want_likely(
    manager: &mut PullManager,
    wish: WishId,
    kind: Kind,
    objects: &[u8],
    likely: Option<NodeId>,
) -> Vec<PullEffect> {
    let objects = objects.iter().map(|n| Target { object: object(*n), here: false, likely }).collect();
    tell(manager, 0, PullEvent::Want { wish, kind, objects })
}

fn located(manager: &mut PullManager, now: u64, n: u8, size_bytes: u64, nodes: &[NodeId]) -> Vec<PullEffect> {
    let nodes = nodes.to_vec();
    tell(manager, now, PullEvent::Located { object: object(n), size_bytes, nodes, pending: false })
}

fn ask(n: u8, from: NodeId) -> PullEffect {
    PullEffect::Ask { object: object(n), from }
}

#[test]
fn an_object_is_located_asked_for_once_and_forgotten() {
    let mut manager = manager(100);
    assert_eq!(want(&mut manager, 1, Kind::Get, &[1]), [PullEffect::Locate { object: object(1) }]);
    assert!(want(&mut manager, 2, Kind::Wait, &[1]).is_empty());
    assert_eq!(located(&mut manager, 0, 1, 10, &[A]), [ask(1, A)]);
    assert!(tell(&mut manager, 1, PullEvent::Unwant { wish: 1 }).is_empty(), "somebody else wants it");
    let release = PullEffect::Release { object: object(1) };
    let here = tell(&mut manager, 1, PullEvent::Here { object: object(1), held: true });
    assert_eq!(here, [release], "who waits has it");
    assert_eq!(tell(&mut manager, 1, PullEvent::Unwant { wish: 2 }), [PullEffect::Forget { object: object(1) }]);
    assert!(!manager.is_wanting());
    assert_eq!(tell(&mut manager, 1, PullEvent::Here { object: object(1), held: true }), [release], "come too late");
}

#[test]
fn a_node_that_fails_or_is_silent_is_left_for_another() {
    let mut manager = manager(100);
    want(&mut manager, 1, Kind::Get, &[1]);
    let [PullEffect::Ask { from: first, .. }] = located(&mut manager, 0, 1, 10, &[A, B])[..] else {
        panic!("nobody was asked")
    };
    let second = if first == A { B } else { A };
    let failed = tell(&mut manager, 0, PullEvent::Failed { object: object(1), from: first });
    assert_eq!(failed, [ask(1, second)]);
    tell(&mut manager, 5 * SECOND, PullEvent::Progress { object: object(1), from: second });
    assert!(tell(&mut manager, 11 * SECOND, PullEvent::Tick).is_empty(), "it is sending");
    let stop = PullEffect::Stop { object: object(1) };
    assert_eq!(
        tell(&mut manager, 15 * SECOND, PullEvent::Tick),
        [stop],
        "all have failed: a pause, and nothing is kept for it"
    );
    let again = tell(&mut manager, 16 * SECOND, PullEvent::Tick);
    assert!(matches!(again[..], [PullEffect::Ask { .. }]));
    assert!(tell(&mut manager, 16 * SECOND, PullEvent::NodeGone { node: A }).len() <= 1);
    let gone = tell(&mut manager, 16 * SECOND, PullEvent::NodeGone { node: B });
    assert_eq!(gone, [PullEffect::Stop { object: object(1) }]);
    assert!(tell(&mut manager, 60 * SECOND, PullEvent::Tick).is_empty(), "nobody is left");
}

#[test]
fn a_get_asks_the_likely_node_and_the_owner_only_where_that_comes_to_nothing() {
    let mut manager = manager(100);
    let there = |n, from| PullEffect::AskIfThere { object: object(n), from };
    let locate = |n| PullEffect::Locate { object: object(n) };
    assert_eq!(want_likely(&mut manager, 1, Kind::Get, &[1], Some(A)), [there(1, A)]);
    tell(&mut manager, SECOND / 50, PullEvent::Progress { object: object(1), from: A });
    assert!(tell(&mut manager, SECOND, PullEvent::Tick).is_empty(), "it is sending");
    let release = PullEffect::Release { object: object(1) };
    assert_eq!(tell(&mut manager, SECOND, PullEvent::Here { object: object(1), held: true }), [release]);
    assert_eq!(tell(&mut manager, SECOND, PullEvent::Unwant { wish: 1 }), [PullEffect::Forget { object: object(1) }]);
    // It has it not.
    want_likely(&mut manager, 2, Kind::Get, &[2], Some(A));
    let failed = tell(&mut manager, SECOND, PullEvent::Failed { object: object(2), from: A });
    assert_eq!(failed, [locate(2), PullEffect::Stop { object: object(2) }]);
    assert_eq!(located(&mut manager, SECOND, 2, 10, &[A]), [ask(2, A)], "it has it now, and is asked without a pause");
    // It says nothing: the owner is asked beside it.
    assert_eq!(want_likely(&mut manager, 3, Kind::Get, &[3], Some(A)), [there(3, A)]);
    assert_eq!(tell(&mut manager, SECOND, PullEvent::Tick), [locate(3)]);
    assert!(located(&mut manager, SECOND, 3, 10, &[B]).is_empty());
    assert_eq!(tell(&mut manager, 2 * SECOND, PullEvent::Failed { object: object(3), from: A }), [ask(3, B)]);
    // It is dead, then or before.
    want_likely(&mut manager, 4, Kind::Get, &[4], Some(A));
    let gone = tell(&mut manager, 2 * SECOND, PullEvent::NodeGone { node: A });
    assert!(gone.contains(&locate(4)));
    assert_eq!(want_likely(&mut manager, 5, Kind::Get, &[5], Some(A)), [locate(5)]);
    // Sizes matter to others.
    assert_eq!(want_likely(&mut manager, 6, Kind::Arguments, &[6], Some(B)), [locate(6)]);
    assert_eq!(want_likely(&mut manager, 7, Kind::Wait, &[7], Some(B)), [locate(7)]);
}

#[test]
fn a_node_that_another_one_names_is_asked_and_left_for_those_the_owner_told_of() {
    let mut manager = manager(100);
    want(&mut manager, 1, Kind::Get, &[1]);
    assert_eq!(located(&mut manager, 0, 1, 10, &[A]), [ask(1, A)]);
    let elsewhere = |from, to| PullEvent::Elsewhere { object: object(1), from, to };
    assert!(tell(&mut manager, 0, elsewhere(B, A)).is_empty(), "it was not asked");
    assert_eq!(tell(&mut manager, 5 * SECOND, elsewhere(A, B)), [ask(1, B)]);
    assert!(tell(&mut manager, 14 * SECOND, PullEvent::Tick).is_empty(), "it has its own time");
    assert_eq!(tell(&mut manager, 15 * SECOND, PullEvent::Tick), [ask(1, A)]);
    tell(&mut manager, 15 * SECOND, PullEvent::NodeGone { node: B });
    let named = tell(&mut manager, 15 * SECOND, elsewhere(A, B));
    assert_eq!(named, [PullEffect::Stop { object: object(1) }], "it is dead: as if A had failed");
    assert_eq!(tell(&mut manager, 16 * SECOND, PullEvent::Tick), [ask(1, A)]);
}

#[test]
fn nothing_more_is_received_of_an_object_that_came_in_another_way() {
    let mut manager = manager(100);
    let here = |held| PullEvent::Here { object: object(1), held };
    let (stop, release) = (PullEffect::Stop { object: object(1) }, PullEffect::Release { object: object(1) });
    want(&mut manager, 1, Kind::Get, &[1]);
    assert!(tell(&mut manager, 0, here(false)).is_empty(), "nobody was asked: nothing is expected");
    assert!(tell(&mut manager, 0, PullEvent::Gone { object: object(1) }).is_empty());
    assert!(located(&mut manager, 0, 1, 10, &[A]).is_empty(), "a pause");
    assert_eq!(tell(&mut manager, SECOND, PullEvent::Tick), [ask(1, A)]);
    // Read back from this node's disk, as one that is evicted thereafter is again: a late chunk must not take its name.
    assert_eq!(tell(&mut manager, SECOND, here(false)), [stop]);
    assert!(tell(&mut manager, SECOND, here(false)).is_empty(), "that was said");
    tell(&mut manager, SECOND, PullEvent::Gone { object: object(1) });
    assert_eq!(tell(&mut manager, 2 * SECOND, PullEvent::Tick), [ask(1, A)]);
    assert_eq!(tell(&mut manager, 2 * SECOND, here(true)), [release], "what was asked for has come");
    tell(&mut manager, 2 * SECOND, PullEvent::Gone { object: object(1) });
    assert_eq!(tell(&mut manager, 3 * SECOND, PullEvent::Tick), [ask(1, A)]);
    let elsewhere = PullEvent::Elsewhere { object: object(1), from: A, to: B };
    assert_eq!(tell(&mut manager, 3 * SECOND, elsewhere), [ask(1, B)]);
    assert_eq!(tell(&mut manager, 3 * SECOND, here(true)), [stop, release], "A's has come, B's may, too");
}

#[test]
fn arguments_fit_the_room_and_the_first_is_fetched_whatever_room_there_is() {
    let mut manager = manager(100);
    want(&mut manager, 1, Kind::Arguments, &[1, 2]);
    want(&mut manager, 2, Kind::Arguments, &[3]);
    assert!(located(&mut manager, 0, 1, 300, &[A]).is_empty(), "the other one is nowhere yet");
    assert_eq!(located(&mut manager, 0, 3, 60, &[A]), [ask(3, A)]);
    assert!(located(&mut manager, 0, 2, 1, &[A]).is_empty(), "too large beside another");
    let next = tell(&mut manager, 0, PullEvent::Here { object: object(3), held: true });
    assert_eq!(next, [ask(1, A), ask(2, A)]);
}

#[test]
fn units_that_wait_for_room_are_counted() {
    let mut manager = manager(10);
    want(&mut manager, 1, Kind::Arguments, &[1]);
    want(&mut manager, 2, Kind::Arguments, &[2]);
    assert_eq!(manager.stats().waiting, 0, "nobody has them yet");
    located(&mut manager, 0, 1, 10, &[A]);
    located(&mut manager, 0, 2, 10, &[A]);
    assert_eq!((manager.stats().fetching, manager.stats().waiting), (1, 1));
    tell(&mut manager, 0, PullEvent::Unwant { wish: 1 });
    assert_eq!((manager.stats().fetching, manager.stats().waiting), (1, 0));
}

#[test]
fn a_get_takes_the_room_of_arguments() {
    let mut manager = manager(100);
    want(&mut manager, 1, Kind::Arguments, &[1]);
    assert_eq!(located(&mut manager, 0, 1, 80, &[A]), [ask(1, A)]);
    want(&mut manager, 2, Kind::Get, &[2]);
    let effects = located(&mut manager, 0, 2, 50, &[A]);
    assert_eq!(effects, [PullEffect::Stop { object: object(1) }, ask(2, A)]);
    let effects = tell(&mut manager, 0, PullEvent::Here { object: object(2), held: true });
    assert_eq!(effects, [PullEffect::Release { object: object(2) }, ask(1, A)]);
}

#[test]
fn received_arguments_yield_to_clients_that_wait_for_room() {
    let mut manager = manager(100);
    want(&mut manager, 1, Kind::Arguments, &[1, 2]);
    located(&mut manager, 0, 1, 40, &[A]);
    assert_eq!(located(&mut manager, 0, 2, 40, &[A]).len(), 2);
    tell(&mut manager, 0, PullEvent::Here { object: object(1), held: true });
    let starving = PullEvent::Room { free_bytes: 0, starving: true };
    let effects = tell(&mut manager, 0, starving.clone());
    assert_eq!(effects, [PullEffect::Release { object: object(1) }, PullEffect::Stop { object: object(2) }]);
    assert!(tell(&mut manager, 0, starving).is_empty());
    let effects = tell(&mut manager, 0, PullEvent::Room { free_bytes: 0, starving: false });
    assert_eq!(effects, [ask(2, A)], "the first one, however little room there is");
}

#[test]
fn an_object_that_is_being_made_again_holds_no_room() {
    let mut manager = manager(100);
    want(&mut manager, 1, Kind::Arguments, &[1]);
    want(&mut manager, 2, Kind::Arguments, &[2]);
    assert_eq!(located(&mut manager, 0, 1, 90, &[A]), [ask(1, A)]);
    assert!(located(&mut manager, 0, 2, 90, &[B]).is_empty());
    let pending = PullEvent::Located { object: object(1), size_bytes: 90, nodes: vec![], pending: true };
    assert_eq!(tell(&mut manager, 0, pending), [PullEffect::Stop { object: object(1) }, ask(2, B)]);
}

const OWNER: WorkerId = WorkerId([9; 28]);

fn head(n: u8, from: NodeId, index: u32, len_bytes: u64) -> ChunkHead {
    ChunkHead { object: object(n), from, push: 1, index, total_bytes: 25, metadata_bytes: 3, len_bytes }
}

fn receive(receiver: &mut Receiver, event: ReceiveEvent) -> Vec<ReceiveEffect> {
    let mut out = Vec::new();
    receiver.handle(event, &mut out);
    receiver.check().expect("a sound state");
    out
}

fn chunk(receiver: &mut Receiver, ticket: u64, head: ChunkHead) -> Vec<ReceiveEffect> {
    let effects = receive(receiver, ReceiveEvent::Chunk { ticket, head });
    effects.into_iter().filter(|effect| !matches!(effect, ReceiveEffect::Progress { .. })).collect()
}

/// A receiver that has taken chunk 2 of object 1 from A.
fn receiving() -> Receiver {
    let mut receiver = Receiver::new(10, 25);
    receive(&mut receiver, ReceiveEvent::Expect { object: object(1), owner: OWNER, from: A });
    let create = ReceiveEffect::Create { object: object(1), token: 1, owner: OWNER, data_bytes: 22, metadata_bytes: 3 };
    assert_eq!(chunk(&mut receiver, 1, head(1, A, 2, 5)), [create]);
    let created = receive(&mut receiver, ReceiveEvent::Created { object: object(1), token: 1, result: Ok(()) });
    assert_eq!(created[1], ReceiveEffect::Write { ticket: 1, object: object(1), offset_bytes: 20 });
    receiver
}

fn dropped(ticket: u64, why: Refusal) -> ReceiveEffect {
    ReceiveEffect::Drop { ticket, why }
}

#[test]
fn chunks_in_any_order_make_the_object_once() {
    let mut receiver = receiving();
    assert_eq!(chunk(&mut receiver, 2, head(1, A, 2, 5)), [dropped(2, Refusal::Repeated)]);
    for (ticket, wrong) in [head(1, A, 1, 9), head(1, A, 3, 10), head(1, A, 0, 0)].into_iter().enumerate() {
        assert_eq!(chunk(&mut receiver, ticket as u64, wrong), [dropped(ticket as u64, Refusal::Malformed)]);
    }
    chunk(&mut receiver, 4, head(1, A, 1, 10));
    let last = chunk(&mut receiver, 5, head(1, A, 0, 10));
    let write = ReceiveEffect::Write { ticket: 5, object: object(1), offset_bytes: 0 };
    assert_eq!(last, [write, ReceiveEffect::Seal { object: object(1) }]);
    assert_eq!(chunk(&mut receiver, 6, head(1, A, 0, 10)), [dropped(6, Refusal::NotWanted)]);
    assert!(receiver.is_empty());
}

#[test]
fn an_object_of_two_sizes_is_started_anew() {
    let mut receiver = receiving();
    let other_size = ChunkHead { total_bytes: 24, ..head(1, A, 0, 10) };
    let lost = ReceiveEffect::Lost { object: object(1), from: A };
    let anew = [dropped(3, Refusal::Malformed), ReceiveEffect::Abort { object: object(1) }, lost];
    assert_eq!(chunk(&mut receiver, 3, other_size), anew);
    let create = ReceiveEffect::Create { object: object(1), token: 2, owner: OWNER, data_bytes: 21, metadata_bytes: 3 };
    assert_eq!(chunk(&mut receiver, 4, other_size), [create]);
}

#[test]
fn bytes_of_two_nodes_are_never_mixed() {
    let mut receiver = receiving();
    assert_eq!(chunk(&mut receiver, 2, head(1, B, 0, 10)), [dropped(2, Refusal::OtherSender)]);
    receive(&mut receiver, ReceiveEvent::Expect { object: object(1), owner: OWNER, from: B });
    assert_eq!(chunk(&mut receiver, 3, head(1, A, 1, 10)), [dropped(3, Refusal::OtherSender)]);
    for index in [0, 1] {
        assert!(matches!(chunk(&mut receiver, 4, head(1, B, index, 10))[..], [ReceiveEffect::Write { .. }]));
    }
    assert_eq!(chunk(&mut receiver, 5, head(1, B, 2, 5)).len(), 2, "what A sent does not count");
}

#[test]
fn bytes_of_two_pushes_of_a_node_are_never_mixed() {
    let mut receiver = receiving();
    let of = |push, index, len| ChunkHead { push, ..head(1, A, index, len) };
    assert!(matches!(chunk(&mut receiver, 2, of(2, 0, 10))[..], [ReceiveEffect::Write { .. }]));
    assert_eq!(chunk(&mut receiver, 3, of(1, 1, 10)), [dropped(3, Refusal::LatePush)]);
    assert!(matches!(chunk(&mut receiver, 4, of(2, 1, 10))[..], [ReceiveEffect::Write { .. }]));
    assert_eq!(chunk(&mut receiver, 5, of(2, 2, 5)).len(), 2, "what the first push brought does not count");
    // Also where memory is still waited for.
    let mut receiver = Receiver::new(10, 25);
    receive(&mut receiver, ReceiveEvent::Expect { object: object(1), owner: OWNER, from: A });
    chunk(&mut receiver, 1, of(1, 0, 10));
    assert!(chunk(&mut receiver, 2, of(2, 1, 10)).is_empty());
    let created = receive(&mut receiver, ReceiveEvent::Created { object: object(1), token: 1, result: Ok(()) });
    assert_eq!(created[0], dropped(1, Refusal::LatePush));
    assert_eq!(created[2], ReceiveEffect::Write { ticket: 2, object: object(1), offset_bytes: 10 });
}

#[test]
fn being_asked_again_keeps_what_the_same_push_has_brought() {
    let mut receiver = receiving();
    receive(&mut receiver, ReceiveEvent::Expect { object: object(1), owner: OWNER, from: A });
    chunk(&mut receiver, 2, head(1, A, 0, 10));
    let last = chunk(&mut receiver, 3, head(1, A, 1, 10));
    assert_eq!(last[1], ReceiveEffect::Seal { object: object(1) });
}

#[test]
fn what_waits_for_memory_is_bounded_and_answered() {
    let mut receiver = Receiver::new(10, 15);
    receive(&mut receiver, ReceiveEvent::Expect { object: object(1), owner: OWNER, from: A });
    chunk(&mut receiver, 1, head(1, A, 0, 10));
    let lost = ReceiveEffect::Lost { object: object(1), from: A };
    assert_eq!(chunk(&mut receiver, 2, head(1, A, 1, 10)), [dropped(2, Refusal::NoRoom), lost]);
    assert!(chunk(&mut receiver, 3, head(1, A, 2, 5)).is_empty());
    let full = ReceiveEvent::Created { object: object(1), token: 1, result: Err(StoreError::OutOfMemory) };
    let effects = receive(&mut receiver, full);
    let no_room = ReceiveEffect::NoRoom { object: object(1) };
    assert_eq!(effects, [dropped(1, Refusal::NoRoom), dropped(3, Refusal::NoRoom), no_room]);
    assert_eq!(receiver.waiting_bytes(), 0);
}

#[test]
fn memory_that_comes_too_late_goes_back() {
    let mut receiver = Receiver::new(10, 25);
    receive(&mut receiver, ReceiveEvent::Expect { object: object(1), owner: OWNER, from: A });
    chunk(&mut receiver, 1, head(1, A, 0, 10));
    let effects = receive(&mut receiver, ReceiveEvent::Forget { object: object(1) });
    assert_eq!(effects, [ReceiveEffect::CancelCreate { object: object(1) }, dropped(1, Refusal::NotWanted)]);
    let late = receive(&mut receiver, ReceiveEvent::Created { object: object(1), token: 1, result: Ok(()) });
    assert_eq!(late, [ReceiveEffect::Abort { object: object(1) }]);
    let mut receiver = receiving();
    let effects = receive(&mut receiver, ReceiveEvent::Forget { object: object(1) });
    assert_eq!(effects, [ReceiveEffect::Abort { object: object(1) }]);
}

fn send(sender: &mut Sender, event: SendEvent) -> Vec<SendEffect> {
    let mut out = Vec::new();
    sender.handle(event, &mut out);
    sender.check().expect("a sound state");
    out
}

fn sent(n: u8, node: NodeId, ok: bool) -> SendEvent {
    SendEvent::Sent { node, object: object(n), ok }
}

fn goes(n: u8, node: NodeId, index: u32) -> SendEffect {
    SendEffect::Send { node, object: object(n), index }
}

#[test]
fn pushes_take_turns_within_their_bounds() {
    let mut sender = Sender::new(2, 3);
    let push = |n, node, chunks| SendEvent::Push { node, object: object(n), chunks };
    assert_eq!(send(&mut sender, push(1, A, 3)), [goes(1, A, 0), goes(1, A, 1)]);
    assert!(send(&mut sender, push(2, A, 1)).is_empty());
    assert_eq!(send(&mut sender, push(1, B, 2)), [goes(1, B, 0)], "three in all");
    assert_eq!(send(&mut sender, sent(1, A, true)), [goes(1, B, 1)], "the nodes take turns");
    assert_eq!(send(&mut sender, sent(1, B, true)), [goes(1, A, 2)]);
    let finished = |n, node| SendEffect::Finished { node, object: object(n) };
    assert_eq!(send(&mut sender, sent(1, B, true)), [finished(1, B)]);
    assert_eq!(send(&mut sender, sent(1, A, true)), [goes(2, A, 0)]);
    assert_eq!(send(&mut sender, sent(1, A, true)), [finished(1, A)]);
    assert_eq!(send(&mut sender, sent(2, A, true)), [finished(2, A)]);
    assert!(sender.is_empty());
}

#[test]
fn a_push_asked_for_again_goes_out_again_in_full() {
    let mut sender = Sender::new(1, 10);
    let push = SendEvent::Push { node: A, object: object(1), chunks: 3 };
    assert_eq!(send(&mut sender, push), [goes(1, A, 0)]);
    assert_eq!(send(&mut sender, sent(1, A, true)), [goes(1, A, 1)]);
    assert!(send(&mut sender, push).is_empty());
    let more: Vec<_> = (0..3).flat_map(|_| send(&mut sender, sent(1, A, true))).collect();
    assert_eq!(more, [goes(1, A, 2), goes(1, A, 0), goes(1, A, 1)]);
    assert_eq!(send(&mut sender, sent(1, A, false)), [SendEffect::Finished { node: A, object: object(1) }]);
}

#[test]
fn a_node_that_is_gone_gets_nothing_more() {
    let mut sender = Sender::new(1, 10);
    send(&mut sender, SendEvent::Push { node: A, object: object(1), chunks: 3 });
    send(&mut sender, SendEvent::Push { node: A, object: object(2), chunks: 3 });
    assert_eq!(send(&mut sender, SendEvent::NodeGone { node: A }).len(), 2);
    assert!(send(&mut sender, sent(1, A, true)).is_empty());
    assert_eq!((sender.len(), sender.in_flight()), (0, 0));
}
