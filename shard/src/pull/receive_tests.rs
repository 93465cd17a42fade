//! Objects that are offered first, whose chunks land in place, and that are lent meanwhile.

use super::*;
use crate::ids::{NodeId, ObjectId, WorkerId};
use crate::store::StoreError;

const A: NodeId = NodeId([1; 28]);
const B: NodeId = NodeId([2; 28]);
const OWNER: WorkerId = WorkerId([9; 28]);
const X: ObjectId = ObjectId([7; 28]);

const ABORT: ReceiveEffect = ReceiveEffect::Abort { object: X };
const SEAL: ReceiveEffect = ReceiveEffect::Seal { object: X };

/// A chunk of 10 bytes, or the last one, of an object of 25 bytes.
fn head(from: NodeId, push: u64, index: u32) -> ChunkHead {
    let len_bytes = if index == 2 { 5 } else { 10 };
    ChunkHead { object: X, from, push, index, total_bytes: 25, metadata_bytes: 3, len_bytes }
}

fn receive(receiver: &mut Receiver, event: ReceiveEvent) -> Vec<ReceiveEffect> {
    let mut out = Vec::new();
    receiver.handle(event, &mut out);
    receiver.check().expect("a sound state");
    out.retain(|effect| !matches!(effect, ReceiveEffect::Progress { .. }));
    out
}

fn expect(receiver: &mut Receiver, from: NodeId) -> Vec<ReceiveEffect> {
    receive(receiver, ReceiveEvent::Expect { object: X, owner: OWNER, from })
}

fn offer(receiver: &mut Receiver, from: NodeId, push: u64) -> Vec<ReceiveEffect> {
    receive(receiver, ReceiveEvent::Offered { head: head(from, push, 0) })
}

fn created(receiver: &mut Receiver, token: u64) -> Vec<ReceiveEffect> {
    receive(receiver, ReceiveEvent::Created { object: X, token, result: Ok(()) })
}

fn landing(receiver: &mut Receiver, ticket: u64, head: ChunkHead) -> Vec<ReceiveEffect> {
    receive(receiver, ReceiveEvent::Landing { ticket, head })
}

fn landed(receiver: &mut Receiver, ticket: u64, ok: bool) -> Vec<ReceiveEffect> {
    receive(receiver, ReceiveEvent::Landed { ticket, object: X, ok })
}

fn forget(receiver: &mut Receiver) -> Vec<ReceiveEffect> {
    receive(receiver, ReceiveEvent::Forget { object: X })
}

fn accept(from: NodeId, push: u64) -> ReceiveEffect {
    ReceiveEffect::Accept { object: X, from, push }
}

fn decline(from: NodeId) -> ReceiveEffect {
    ReceiveEffect::Decline { object: X, from }
}

fn create(token: u64) -> ReceiveEffect {
    ReceiveEffect::Create { object: X, token, owner: OWNER, data_bytes: 22, metadata_bytes: 3 }
}

fn lost(from: NodeId) -> ReceiveEffect {
    ReceiveEffect::Lost { object: X, from }
}

fn land(ticket: u64, offset_bytes: u64) -> ReceiveEffect {
    ReceiveEffect::Land { ticket, object: X, offset_bytes }
}

/// A receiver that has accepted push 1 of A.
fn accepted() -> Receiver {
    let mut receiver = Receiver::new(10, 100);
    expect(&mut receiver, A);
    assert_eq!(offer(&mut receiver, A, 1), [create(1)]);
    assert_eq!(created(&mut receiver, 1), [accept(A, 1)]);
    receiver
}

/// An object of one chunk.
fn whole(from: NodeId, push: u64) -> ChunkHead {
    ChunkHead { object: X, from, push, index: 0, total_bytes: 9, metadata_bytes: 3, len_bytes: 9 }
}

fn land_whole(receiver: &mut Receiver, ticket: u64, head: ChunkHead) -> Vec<ReceiveEffect> {
    receive(receiver, ReceiveEvent::Landing { ticket, head })
}

/// A receiver that waits for memory for an object of one chunk, which came as ticket 1 of push 1 of A.
fn holding() -> Receiver {
    let mut receiver = Receiver::new(10, 25);
    expect(&mut receiver, A);
    let create = ReceiveEffect::Create { object: X, token: 1, owner: OWNER, data_bytes: 6, metadata_bytes: 3 };
    let hold = ReceiveEffect::Hold { ticket: 1, object: X };
    assert_eq!(land_whole(&mut receiver, 1, whole(A, 1)), [create, hold]);
    receiver
}

const fn drop_of(ticket: u64, why: Refusal) -> ReceiveEffect {
    ReceiveEffect::Drop { ticket, why }
}

#[test]
fn an_object_of_one_chunk_comes_without_an_offer() {
    let mut receiver = holding();
    let land = |ticket| ReceiveEffect::Land { ticket, object: X, offset_bytes: 0 };
    assert_eq!(created(&mut receiver, 1), [land(1)]);
    assert_eq!(land_whole(&mut receiver, 2, whole(A, 2)), [drop_of(2, Refusal::LatePush)], "another is being written");
    assert_eq!(receive(&mut receiver, ReceiveEvent::Landed { ticket: 1, object: X, ok: true }), [SEAL]);
    assert_eq!(land_whole(&mut receiver, 3, whole(A, 2)), [drop_of(3, Refusal::NotWanted)]);
    // Asked twice, it comes twice: the later one counts.
    let mut receiver = holding();
    let hold = ReceiveEffect::Hold { ticket: 2, object: X };
    assert_eq!(land_whole(&mut receiver, 2, whole(A, 2)), [drop_of(1, Refusal::LatePush), hold]);
    assert_eq!(land_whole(&mut receiver, 3, whole(A, 1)), [drop_of(3, Refusal::LatePush)]);
    assert_eq!(created(&mut receiver, 1), [land(2)]);
    let lost = ReceiveEffect::Lost { object: X, from: A };
    assert_eq!(receive(&mut receiver, ReceiveEvent::Landed { ticket: 2, object: X, ok: false }), [lost]);
    assert_eq!(land_whole(&mut receiver, 4, whole(A, 3)), [land(4)], "there is memory already");
}

#[test]
fn what_waits_for_memory_too_long_lets_its_connection_go() {
    let mut receiver = holding();
    let too_long = |ticket| ReceiveEvent::TooLong { ticket, object: X };
    assert!(receive(&mut receiver, too_long(7)).is_empty());
    assert_eq!(receive(&mut receiver, too_long(1)), [drop_of(1, Refusal::NoRoom)]);
    assert!(receive(&mut receiver, too_long(1)).is_empty(), "once");
    assert_eq!(created(&mut receiver, 1), [ReceiveEffect::AskAgain { object: X, from: A }]);
    assert!(receive(&mut receiver, too_long(1)).is_empty());
    let land = ReceiveEffect::Land { ticket: 2, object: X, offset_bytes: 0 };
    assert_eq!(land_whole(&mut receiver, 2, whole(A, 2)), [land]);
}

#[test]
fn what_waits_for_memory_is_answered_whatever_comes() {
    let mut receiver = holding();
    let full = ReceiveEvent::Created { object: X, token: 1, result: Err(StoreError::OutOfMemory) };
    let no_room = ReceiveEffect::NoRoom { object: X };
    assert_eq!(receive(&mut receiver, full), [drop_of(1, Refusal::NoRoom), no_room]);
    let mut receiver = holding();
    let cancel = ReceiveEffect::CancelCreate { object: X };
    assert_eq!(receive(&mut receiver, ReceiveEvent::Forget { object: X }), [cancel, drop_of(1, Refusal::NotWanted)]);
    let mut receiver = holding();
    assert_eq!(expect(&mut receiver, B), [drop_of(1, Refusal::OtherSender)]);
    assert!(created(&mut receiver, 1).is_empty());
    // Its connection broke: nothing is to be said of it any more.
    let mut receiver = holding();
    assert!(receive(&mut receiver, ReceiveEvent::Landed { ticket: 1, object: X, ok: false }).is_empty());
    let lost = ReceiveEffect::Lost { object: X, from: A };
    assert_eq!(receive(&mut receiver, ReceiveEvent::Broken { from: A }), [lost]);
    assert!(created(&mut receiver, 1).is_empty());
    // Another object by its name.
    let mut receiver = holding();
    let other = ChunkHead { metadata_bytes: 2, ..whole(A, 2) };
    let (malformed, not_wanted) = (drop_of(2, Refusal::Malformed), drop_of(1, Refusal::NotWanted));
    assert_eq!(land_whole(&mut receiver, 2, other), [malformed, cancel, not_wanted, lost]);
    // As it is being given up.
    let mut receiver = holding();
    created(&mut receiver, 1);
    expect(&mut receiver, B);
    assert_eq!(land_whole(&mut receiver, 3, whole(B, 5)), [drop_of(3, Refusal::NotWanted)]);
    let landed = receive(&mut receiver, ReceiveEvent::Landed { ticket: 1, object: X, ok: true });
    assert_eq!(landed, [ABORT, ReceiveEffect::Lost { object: X, from: B }], "B is asked once more");
}

#[test]
fn an_offer_is_accepted_once_there_is_memory_and_its_chunks_land_in_place() {
    let mut receiver = Receiver::new(10, 100);
    assert_eq!(offer(&mut receiver, A, 1), [decline(A)], "nobody wants it");
    expect(&mut receiver, A);
    assert_eq!(offer(&mut receiver, A, 1), [create(1)]);
    assert!(offer(&mut receiver, A, 1).is_empty(), "asked twice, offered twice");
    assert_eq!(created(&mut receiver, 1), [accept(A, 1)]);
    assert_eq!(landing(&mut receiver, 11, head(A, 1, 1)), [land(11, 10)]);
    assert_eq!(landing(&mut receiver, 12, head(A, 1, 2)), [land(12, 20)]);
    let again = landing(&mut receiver, 13, head(A, 1, 1));
    assert_eq!(again, [ReceiveEffect::Drop { ticket: 13, why: Refusal::Repeated }], "it is on its way");
    assert!(landed(&mut receiver, 12, true).is_empty());
    assert!(landed(&mut receiver, 11, true).is_empty());
    assert_eq!(landing(&mut receiver, 14, head(A, 1, 0)), [land(14, 0)]);
    assert_eq!(landed(&mut receiver, 14, true), [SEAL]);
    assert!(receiver.is_empty());
}

#[test]
fn a_chunk_that_did_not_land_is_asked_for_again_and_what_is_there_stays() {
    let mut receiver = accepted();
    landing(&mut receiver, 11, head(A, 1, 0));
    landing(&mut receiver, 12, head(A, 1, 1));
    assert!(landed(&mut receiver, 11, true).is_empty());
    assert_eq!(landed(&mut receiver, 12, false), [lost(A)]);
    assert!(expect(&mut receiver, A).is_empty());
    assert_eq!(offer(&mut receiver, A, 1), [accept(A, 1)], "the same copy");
    let again = landing(&mut receiver, 13, head(A, 1, 0));
    assert_eq!(again, [ReceiveEffect::Drop { ticket: 13, why: Refusal::Repeated }]);
    landing(&mut receiver, 14, head(A, 1, 1));
    landing(&mut receiver, 15, head(A, 1, 2));
    assert!(landed(&mut receiver, 14, true).is_empty());
    assert_eq!(landed(&mut receiver, 15, true), [SEAL]);
}

#[test]
fn memory_is_given_up_only_when_nothing_lands_in_it() {
    let mut receiver = accepted();
    landing(&mut receiver, 11, head(A, 1, 0));
    landing(&mut receiver, 12, head(A, 1, 1));
    assert_eq!(forget(&mut receiver), [decline(A)]);
    assert!(expect(&mut receiver, A).is_empty());
    assert!(forget(&mut receiver).is_empty(), "wanted and not wanted again meanwhile");
    assert!(landed(&mut receiver, 11, true).is_empty());
    assert_eq!(landed(&mut receiver, 12, false), [ABORT]);
    assert_eq!(forget(&mut accepted()), [decline(A), ABORT], "nothing lands");
}

#[test]
fn what_is_offered_while_memory_is_given_up_is_taken_afterwards() {
    let mut receiver = accepted();
    landing(&mut receiver, 11, head(A, 1, 0));
    assert_eq!(expect(&mut receiver, B), [decline(A)]);
    assert_eq!(offer(&mut receiver, A, 1), [decline(A)]);
    assert!(offer(&mut receiver, B, 5).is_empty());
    assert_eq!(landed(&mut receiver, 11, true), [ABORT, create(2)]);
    assert_eq!(created(&mut receiver, 2), [accept(B, 5)]);
    // It is declined if nobody wants it by then, or somebody else was asked.
    for event in [ReceiveEvent::Forget { object: X }, ReceiveEvent::Expect { object: X, owner: OWNER, from: A }] {
        let mut receiver = accepted();
        landing(&mut receiver, 11, head(A, 1, 0));
        expect(&mut receiver, B);
        offer(&mut receiver, B, 5);
        assert_eq!(receive(&mut receiver, event), [decline(B)]);
        assert_eq!(landed(&mut receiver, 11, true), [ABORT]);
    }
}

#[test]
fn a_chunk_that_comes_while_memory_is_given_up_is_asked_for_again() {
    let mut receiver = accepted();
    landing(&mut receiver, 11, head(A, 1, 0));
    expect(&mut receiver, B);
    let dropped = receive(&mut receiver, ReceiveEvent::Chunk { ticket: 12, head: head(B, 5, 0) });
    assert_eq!(dropped, [ReceiveEffect::Drop { ticket: 12, why: Refusal::NotWanted }]);
    assert_eq!(landed(&mut receiver, 11, true), [ABORT, lost(B)]);
    assert_eq!(offer(&mut receiver, B, 5), [create(2)]);
}

#[test]
fn another_push_of_the_node_is_never_mixed_with_what_lands() {
    let mut receiver = accepted();
    landing(&mut receiver, 11, head(A, 1, 0));
    assert!(offer(&mut receiver, A, 2).is_empty(), "its memory is still written to");
    let late = landing(&mut receiver, 12, head(A, 1, 1));
    assert_eq!(late, [ReceiveEffect::Drop { ticket: 12, why: Refusal::NotWanted }]);
    assert_eq!(landed(&mut receiver, 11, true), [ABORT, create(2)]);
    assert_eq!(created(&mut receiver, 2), [accept(A, 2)]);
    // Where nothing lands, the memory is used for the other push.
    let mut receiver = accepted();
    landing(&mut receiver, 11, head(A, 1, 0));
    landed(&mut receiver, 11, true);
    assert_eq!(offer(&mut receiver, A, 2), [accept(A, 2)]);
    let late = landing(&mut receiver, 12, head(A, 1, 1));
    assert_eq!(late, [ReceiveEffect::Drop { ticket: 12, why: Refusal::LatePush }]);
    assert_eq!(landing(&mut receiver, 13, head(A, 2, 0)), [land(13, 0)], "what push 1 brought does not count");
    landed(&mut receiver, 13, true);
    assert_eq!(offer(&mut receiver, A, 1), [accept(A, 1)], "the node may have gone back to it");
    let late = landing(&mut receiver, 14, head(A, 2, 1));
    assert_eq!(late, [ReceiveEffect::Drop { ticket: 14, why: Refusal::LatePush }]);
}

#[test]
fn an_offer_without_room_is_declined_and_one_of_another_size_starts_anew() {
    let mut receiver = Receiver::new(10, 100);
    expect(&mut receiver, A);
    offer(&mut receiver, A, 1);
    let full = ReceiveEvent::Created { object: X, token: 1, result: Err(StoreError::OutOfMemory) };
    assert_eq!(receive(&mut receiver, full), [decline(A), ReceiveEffect::NoRoom { object: X }]);
    let mut receiver = accepted();
    let other = ChunkHead { total_bytes: 24, ..head(A, 2, 0) };
    let other_create = ReceiveEffect::Create { object: X, token: 2, owner: OWNER, data_bytes: 21, metadata_bytes: 3 };
    assert_eq!(receive(&mut receiver, ReceiveEvent::Offered { head: other }), [ABORT, other_create]);
    let unsound = ChunkHead { total_bytes: 0, metadata_bytes: 0, ..head(A, 3, 0) };
    assert_eq!(receive(&mut receiver, ReceiveEvent::Offered { head: unsound }), [decline(A)]);
}

#[test]
fn a_broken_connection_loses_offers_and_is_asked_again() {
    let mut receiver = Receiver::new(10, 100);
    expect(&mut receiver, A);
    offer(&mut receiver, A, 1);
    assert!(receive(&mut receiver, ReceiveEvent::Broken { from: B }).is_empty());
    assert_eq!(receive(&mut receiver, ReceiveEvent::Broken { from: A }), [decline(A), lost(A)]);
    assert!(created(&mut receiver, 1).is_empty(), "the offer is gone");
    assert_eq!(offer(&mut receiver, A, 1), [accept(A, 1)]);
    // Also one that waits for memory to be nobody's.
    landing(&mut receiver, 11, head(A, 1, 0));
    expect(&mut receiver, B);
    offer(&mut receiver, B, 5);
    assert_eq!(receive(&mut receiver, ReceiveEvent::Broken { from: B }), [decline(B)]);
    assert_eq!(landed(&mut receiver, 11, false), [ABORT, lost(B)]);
}

#[test]
fn what_is_lent_stays_until_it_was_returned() {
    let mut receiver = accepted();
    landing(&mut receiver, 11, head(A, 1, 1));
    landed(&mut receiver, 11, true);
    let lent = receiver.lend(&X).map(|lent| (lent.total_bytes, lent.metadata_bytes, lent.chunks().collect::<Vec<_>>()));
    assert_eq!(lent, Some((25, 3, vec![1])));
    landing(&mut receiver, 12, head(A, 1, 2));
    assert_eq!(landed(&mut receiver, 12, true), [ReceiveEffect::Arrived { object: X, index: 2 }]);
    landing(&mut receiver, 13, head(A, 1, 0));
    let recall = ReceiveEffect::Recall { object: X };
    assert_eq!(offer(&mut receiver, A, 2), [recall], "other bytes must not come to where these are read");
    assert!(receiver.lend(&X).is_none());
    assert!(landed(&mut receiver, 13, true).is_empty(), "it is still read");
    let returned = ReceiveEvent::Returned { object: X };
    assert_eq!(receive(&mut receiver, returned), [ABORT, create(2)]);
    assert!(receiver.lend(&X).is_none(), "there is no memory yet");
    created(&mut receiver, 2);
    assert!(receiver.lend(&X).is_some());
    assert!(receive(&mut receiver, returned).is_empty());
    assert_eq!(forget(&mut receiver), [decline(A), ABORT], "returned before");
}
