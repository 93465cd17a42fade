//! What the store must do, told as a conversation.

use super::*;
use crate::ids::{ClientId, NowNs, ObjectId, WorkerId};

const MIB: u64 = 1 << 20;
const MS: u64 = 1_000_000;

fn id(number: u8) -> ObjectId {
    ObjectId([number; ObjectId::LEN])
}

/// A node of one shard, whose client says one thing after the other.
struct Node {
    memory: NodeMemory,
    now: NowNs,
    token: u64,
}

impl Node {
    fn of(mib: u64, change: impl FnOnce(&mut StoreConfig)) -> Self {
        let segment = SegmentSpec { bytes: mib * MIB, numa_node: 0 };
        let layout = Layout::new(&[segment], MIN_SPAN_BYTES).unwrap();
        let mut config = StoreConfig::new(layout.clone(), 1);
        change(&mut config);
        let bank = SpanBank::new(BankConfig::new(layout, 1)).unwrap();
        Self { memory: NodeMemory::new(Store::new(config), bank, 0), now: 0, token: 0 }
    }

    fn new(mib: u64) -> Self {
        Self::of(mib, |_| ())
    }

    fn tell(&mut self, event: StoreEvent) -> Vec<StoreEffect> {
        let (mut out, mut others) = (Vec::new(), Vec::new());
        self.memory.handle(event, self.now, &mut out, &mut others);
        self.memory.check().unwrap();
        assert!(others.is_empty(), "there is one shard: {others:?}");
        out
    }

    fn wait(&mut self, ms: u64) -> Vec<StoreEffect> {
        self.now += ms * MS;
        self.tell(StoreEvent::Tick)
    }

    fn create_event(&mut self, client: ClientId, id: ObjectId, data_bytes: u64) -> StoreEvent {
        self.token += 1;
        StoreEvent::Create {
            client,
            token: self.token,
            id,
            data_bytes,
            metadata_bytes: 0,
            owner: WorkerId([9; 28]),
            source: ObjectSource::CreatedByWorker,
            mutable: false,
            try_immediately: false,
            near: None,
        }
    }

    /// Create; its answer, if there is one already.
    fn create(&mut self, client: ClientId, id: ObjectId, bytes: u64) -> Option<Result<Placement, StoreError>> {
        let event = self.create_event(client, id, bytes);
        created(&self.tell(event))
    }

    fn create_now(&mut self, client: ClientId, id: ObjectId, bytes: u64) -> Result<Placement, StoreError> {
        let mut event = self.create_event(client, id, bytes);
        if let StoreEvent::Create { try_immediately, .. } = &mut event {
            *try_immediately = true;
        }
        created(&self.tell(event)).expect("an answer at once")
    }

    fn seal(&mut self, client: ClientId, id: ObjectId) -> Vec<StoreEffect> {
        self.tell(StoreEvent::Seal { client, token: 0, id })
    }

    fn release(&mut self, client: ClientId, id: ObjectId) -> Vec<StoreEffect> {
        self.tell(StoreEvent::Release { client, id })
    }

    /// A sealed object that nobody uses.
    fn put(&mut self, id: ObjectId, bytes: u64) {
        self.create(1, id, bytes).expect("an answer").expect("room");
        self.seal(1, id);
        self.release(1, id);
    }

    fn get(&mut self, client: ClientId, id: ObjectId) -> Option<Placement> {
        let out = self.tell(StoreEvent::Get { client, token: 0, id, wait: false });
        match out[..] {
            [StoreEffect::Got { place, .. }] => place,
            ref other => panic!("{other:?}"),
        }
    }

    fn has(&self, id: ObjectId) -> bool {
        self.memory.store().place(&id).is_some()
    }
}

fn created(out: &[StoreEffect]) -> Option<Result<Placement, StoreError>> {
    out.iter().find_map(|effect| match effect {
        StoreEffect::Created { result, .. } => Some(*result),
        _ => None,
    })
}

fn gone(out: &[StoreEffect]) -> Vec<(ObjectId, GoneReason)> {
    let gone = out.iter().filter_map(|effect| match effect {
        StoreEffect::ObjectGone { id, reason, .. } => Some((*id, *reason)),
        _ => None,
    });
    gone.collect()
}

#[test]
fn metadata_lies_directly_after_data_and_large_data_on_a_page() {
    let mut node = Node::new(4);
    let mut event = node.create_event(1, id(1), 70_001);
    if let StoreEvent::Create { metadata_bytes, .. } = &mut event {
        *metadata_bytes = 10;
    }
    let place = created(&node.tell(event)).unwrap().unwrap();
    assert_eq!(place.data_offset % LARGE_ALIGN_BYTES, 0);
    assert_eq!(place.metadata_offset, place.data_offset + 70_001);
    assert_eq!((place.header_offset, place.allocated_bytes), (place.data_offset, 73_728));
}

#[test]
fn a_mutable_object_has_room_for_its_header_in_front() {
    let mut node = Node::new(4);
    let mut event = node.create_event(1, id(1), 1000);
    if let StoreEvent::Create { mutable, .. } = &mut event {
        *mutable = true;
    }
    let place = created(&node.tell(event)).unwrap().unwrap();
    assert_eq!(place.data_offset, place.header_offset + MUTABLE_HEADER_BYTES);
    assert!(place.allocated_bytes >= 1000 + MUTABLE_HEADER_BYTES);
}

#[test]
fn an_id_can_be_created_once_even_before_it_is_sealed() {
    let mut node = Node::new(4);
    assert!(node.create(1, id(1), 100).unwrap().is_ok());
    assert_eq!(node.create(2, id(1), 100), Some(Err(StoreError::ObjectExists)));
    node.seal(1, id(1));
    assert_eq!(node.create(1, id(1), 100), Some(Err(StoreError::ObjectExists)));
}

#[test]
fn a_reader_never_sees_an_unsealed_object() {
    let mut node = Node::new(4);
    node.create(1, id(1), 100);
    assert_eq!(node.get(2, id(1)), None);
    assert!(node.tell(StoreEvent::Get { client: 2, token: 5, id: id(1), wait: true }).is_empty());
    let out = node.seal(1, id(1));
    let place = node.memory.store().place(&id(1));
    let (owner, waited) = (WorkerId([9; 28]), true);
    assert!(out.contains(&StoreEffect::Got { client: 2, token: 5, id: id(1), place, owner, waited }));
}

#[test]
fn the_creator_keeps_the_object_until_it_releases_it() {
    let mut node = Node::new(4);
    node.create(1, id(1), 100);
    node.seal(1, id(1));
    assert_eq!(
        node.tell(StoreEvent::Delete { client: 2, token: 3, id: id(1) }),
        [StoreEffect::Deleted { client: 2, token: 3, id: id(1), result: Err(StoreError::ObjectInUse) }]
    );
    assert_eq!(gone(&node.release(1, id(1))), [(id(1), GoneReason::Deleted)]);
}

#[test]
fn a_client_that_gets_twice_needs_to_release_once() {
    let mut node = Node::new(4);
    node.put(id(1), 100);
    node.get(2, id(1)).unwrap();
    node.get(2, id(1)).unwrap();
    node.release(2, id(1));
    assert_eq!(node.memory.store().info(&id(1)).unwrap().references, 0);
    node.release(2, id(1));
    assert_eq!(node.memory.store().stats().counters.stray_events, 1);
}

#[test]
fn an_unsealed_object_is_not_lost_by_its_creators_release() {
    let mut node = Node::new(4);
    node.create(1, id(1), 100);
    node.release(1, id(1));
    assert_eq!(node.memory.store().stats().references, 1);
    node.seal(1, id(1));
    assert!(node.has(id(1)));
}

#[test]
fn nobody_but_the_creator_seals_or_aborts() {
    let mut node = Node::new(4);
    node.create(1, id(1), 100);
    let out = node.tell(StoreEvent::Abort { client: 2, token: 0, id: id(1) });
    assert!(matches!(out[..], [StoreEffect::Aborted { result: Err(StoreError::NotCreator), .. }]));
    assert!(matches!(node.seal(2, id(1))[..], [StoreEffect::Sealed { result: Err(StoreError::NotCreator), .. }]));
    node.seal(1, id(1));
    assert!(matches!(node.seal(1, id(1))[..], [StoreEffect::Sealed { result: Err(StoreError::ObjectSealed), .. }]));
}

#[test]
fn an_aborted_object_is_never_announced_and_its_id_is_free_again() {
    let mut node = Node::new(4);
    node.create(1, id(1), 100);
    let out = node.tell(StoreEvent::Abort { client: 1, token: 0, id: id(1) });
    assert!(matches!(out[..], [StoreEffect::Aborted { result: Ok(()), .. }]));
    assert_eq!(node.memory.store().stats().allocated_bytes, 0);
    assert!(node.create(2, id(1), 100).unwrap().is_ok());
}

#[test]
fn a_delete_of_an_unsealed_object_is_remembered() {
    let mut node = Node::new(4);
    node.create(1, id(1), 100);
    let out = node.tell(StoreEvent::Delete { client: 1, token: 0, id: id(1) });
    assert!(matches!(out[..], [StoreEffect::Deleted { result: Err(StoreError::ObjectNotSealed), .. }]));
    assert!(gone(&node.seal(1, id(1))).is_empty());
    assert_eq!(gone(&node.release(1, id(1))), [(id(1), GoneReason::Deleted)]);
}

#[test]
fn a_dead_client_leaves_no_references_no_unsealed_objects_and_no_requests() {
    let mut node = Node::new(1);
    node.put(id(1), 100);
    node.get(7, id(1)).unwrap();
    node.create(7, id(2), 800_000);
    node.create(7, id(3), 800_000);
    node.tell(StoreEvent::Get { client: 7, token: 1, id: id(9), wait: true });
    node.tell(StoreEvent::ClientGone { client: 7 });
    let stats = node.memory.store().stats();
    assert_eq!((stats.objects, stats.references, stats.queued_creates, stats.waiters), (1, 0, 0, 0));
    assert!(node.has(id(1)));
}

#[test]
fn a_pinned_object_is_not_evicted_and_an_unpinned_one_is() {
    let mut node = Node::new(1);
    node.put(id(1), 600_000);
    assert_eq!(
        node.tell(StoreEvent::Pin { token: 4, id: id(1) }),
        [StoreEffect::Pinned { token: 4, id: id(1), ok: true }]
    );
    assert_eq!(node.create_now(1, id(2), 600_000), Err(StoreError::OutOfMemory));
    assert_eq!(node.memory.store().spillable().map(|o| o.id).collect::<Vec<_>>(), [id(1)]);
    node.tell(StoreEvent::Unpin { id: id(1) });
    assert!(node.create_now(1, id(2), 600_000).is_ok());
    assert!(!node.has(id(1)));
}

#[test]
fn the_least_recently_used_object_is_evicted_first_and_no_more_than_needed() {
    let mut node = Node::new(1);
    for number in 1..=4 {
        node.put(id(number), 262_144);
    }
    node.get(2, id(1)).unwrap();
    node.release(2, id(1));
    let event = node.create_event(1, id(5), 262_144);
    assert_eq!(gone(&node.tell(event)), [(id(2), GoneReason::Evicted)]);
}

#[test]
fn nothing_is_evicted_for_an_object_that_would_not_fit_all_the_same() {
    let mut node = Node::new(1);
    node.put(id(1), 262_144);
    node.create(2, id(2), 500_000).unwrap().unwrap();
    assert_eq!(node.create_now(1, id(3), 900_000), Err(StoreError::OutOfMemory));
    assert!(node.has(id(1)));
}

#[test]
fn a_freed_object_goes_as_soon_as_it_is_unused() {
    let mut node = Node::new(1);
    node.put(id(1), 100);
    node.tell(StoreEvent::Pin { token: 0, id: id(1) });
    node.get(2, id(1)).unwrap();
    assert!(gone(&node.tell(StoreEvent::Free { id: id(1) })).is_empty());
    assert!(node.get(3, id(1)).is_some());
    node.release(2, id(1));
    assert_eq!(gone(&node.release(3, id(1))), [(id(1), GoneReason::Freed)]);
}

#[test]
fn a_create_waits_for_memory_and_is_served_by_the_free_that_makes_room() {
    let mut node = Node::new(1);
    node.create(1, id(1), 800_000);
    node.seal(1, id(1));
    let event = node.create_event(2, id(2), 800_000);
    let out = node.tell(event);
    assert_eq!(created(&out), None);
    assert!(out.contains(&StoreEffect::GcWanted));
    node.now += MS;
    let out = node.release(1, id(1));
    assert!(created(&out).unwrap().is_ok(), "{out:?}");
}

#[test]
fn creates_are_served_in_order_even_if_a_later_one_would_fit() {
    let mut node = Node::new(1);
    node.create(1, id(1), 700_000).unwrap().unwrap();
    assert_eq!(node.create(2, id(2), 700_000), None);
    assert_eq!(node.create(3, id(3), 100), None);
    node.seal(1, id(1));
    let out = node.release(1, id(1));
    let order: Vec<_> = out
        .iter()
        .filter_map(|effect| match effect {
            StoreEffect::Created { id, result: Ok(_), .. } => Some(*id),
            _ => None,
        })
        .collect();
    assert_eq!(order, [id(2), id(3)]);
}

#[test]
fn a_create_fails_after_the_grace_period_and_not_before() {
    let mut node = Node::new(1);
    node.create(1, id(1), 700_000).unwrap().unwrap();
    assert_eq!(node.create(2, id(2), 700_000), None);
    assert_eq!(created(&node.wait(1999)), None);
    assert_eq!(created(&node.wait(11)), Some(Err(StoreError::OutOfMemory)));
    assert_eq!(node.memory.next_deadline(), None);
}

#[test]
fn an_object_that_can_never_fit_fails_at_once_whatever_its_size() {
    let mut node = Node::new(1);
    for bytes in [MIB + 1, u64::MAX - 5, u64::MAX] {
        assert_eq!(node.create(1, id(1), bytes), Some(Err(StoreError::OutOfMemory)), "{bytes}");
    }
    assert!(node.create(1, id(1), MIB).unwrap().is_ok());
}

#[test]
fn an_impatient_create_never_waits() {
    let mut node = Node::new(1);
    node.create(1, id(1), 700_000).unwrap().unwrap();
    assert_eq!(node.create_now(2, id(2), 700_000), Err(StoreError::OutOfMemory));
    assert_eq!(node.create(2, id(2), 700_000), None);
    assert!(node.create_now(3, id(3), 100).is_ok());
}

#[test]
fn a_full_queue_refuses_instead_of_growing() {
    let mut node = Node::of(1, |config| config.max_queued_creates = 2);
    node.create(1, id(1), 700_000).unwrap().unwrap();
    assert_eq!(node.create(2, id(2), 700_000), None);
    assert_eq!(node.create(2, id(3), 700_000), None);
    assert_eq!(node.create(2, id(4), 700_000), Some(Err(StoreError::QueueFull)));
}

#[test]
fn waiters_beyond_the_limit_are_answered_instead_of_kept() {
    let mut node = Node::of(1, |config| config.max_waiters = 1);
    assert!(node.tell(StoreEvent::Get { client: 1, token: 1, id: id(1), wait: true }).is_empty());
    let out = node.tell(StoreEvent::Get { client: 1, token: 2, id: id(1), wait: true });
    assert!(matches!(out[..], [StoreEffect::Got { token: 2, place: None, .. }]));
    let out = node.tell(StoreEvent::Watch { token: 3, id: id(1) });
    assert_eq!(out, [StoreEffect::WatchRefused { token: 3, id: id(1) }]);
}

#[test]
fn a_cancelled_create_lets_those_behind_it_go() {
    let mut node = Node::new(1);
    node.create(1, id(1), 700_000).unwrap().unwrap();
    assert_eq!(node.create(2, id(2), 700_000), None);
    let event = node.create_event(3, id(3), 100);
    assert_eq!(created(&node.tell(event)), None);
    let out = node.tell(StoreEvent::CancelCreate { client: 2, id: id(2) });
    assert!(matches!(out[..], [StoreEffect::Created { client: 3, result: Ok(_), .. }]), "{out:?}");
}

#[test]
fn a_create_without_room_gets_a_file_and_the_file_ends_with_the_object() {
    let mut node = Node::of(1, |config| config.fallback = true);
    node.create(1, id(1), 700_000).unwrap().unwrap();
    assert_eq!(node.create(2, id(2), 700_000), None);
    let token = node.token;
    let out = node.wait(2000);
    assert_eq!(out, [StoreEffect::FallbackWanted { id: id(2), token, bytes: 700_416 }]);
    let out = node.tell(StoreEvent::FallbackReady { id: id(2), token, segment: Some(40) });
    let place = created(&out).unwrap().unwrap();
    assert_eq!((place.segment, place.data_offset, place.allocated_bytes), (40, 0, 700_416));
    node.seal(2, id(2));
    node.release(2, id(2));
    let out = node.tell(StoreEvent::Free { id: id(2) });
    assert_eq!(gone(&out), [(id(2), GoneReason::Freed)]);
    assert!(out.contains(&StoreEffect::FallbackReturned { segment: 40 }));
}

#[test]
fn a_file_that_nobody_wants_any_more_is_given_back() {
    let mut node = Node::of(1, |config| config.fallback = true);
    let event = node.create_event(2, id(2), 5 * MIB);
    let token = node.token;
    assert!(matches!(node.tell(event)[..], [StoreEffect::FallbackWanted { .. }]));
    node.tell(StoreEvent::ClientGone { client: 2 });
    let out = node.tell(StoreEvent::FallbackReady { id: id(2), token, segment: Some(40) });
    assert_eq!(out, [StoreEffect::FallbackReturned { segment: 40 }]);
}

#[test]
fn a_watch_is_answered_once_and_takes_no_reference() {
    let mut node = Node::new(1);
    node.tell(StoreEvent::Watch { token: 8, id: id(1) });
    node.tell(StoreEvent::Watch { token: 9, id: id(1) });
    node.tell(StoreEvent::Unwatch { token: 9, id: id(1) });
    node.create(1, id(1), 100);
    let out = node.seal(1, id(1));
    let watched = out.iter().filter(|e| matches!(e, StoreEffect::Watched { .. })).count();
    assert_eq!((watched, node.memory.store().stats().references), (1, 1));
}

#[test]
fn one_shard_can_use_its_whole_memory_as_one_object_after_any_history() {
    let mut node = Node::new(8);
    for round in 0..3 {
        for number in 0..20 {
            node.put(id(number), 1000 + u64::from(number) * 50_000);
        }
        for number in 0..20 {
            node.tell(StoreEvent::Free { id: id(number) });
        }
        let place = node.create(1, id(99), 8 * MIB).expect("an answer").unwrap_or_else(|e| panic!("{round}: {e}"));
        assert_eq!(place.data_offset, 0);
        node.tell(StoreEvent::Abort { client: 1, token: 0, id: id(99) });
    }
}

#[test]
fn memory_that_was_written_before_is_used_before_memory_that_was_not() {
    let mut node = Node::new(8);
    for number in 0..100 {
        node.put(id(number), 300_000);
        node.tell(StoreEvent::Free { id: id(number) });
    }
    assert_eq!(node.memory.store().touched_bytes(0), 303_104);
}
