//! Shards that share a node's memory through the bank.

use std::collections::VecDeque;

use super::*;
use crate::ids::{NowNs, ObjectId, ShardId, WorkerId};

const MS: u64 = 1_000_000;
const SPAN: u64 = MIN_SPAN_BYTES;

fn id(number: u64) -> ObjectId {
    let mut bytes = [3; ObjectId::LEN];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    ObjectId(bytes)
}

/// Shards whose messages to the bank and back arrive at once.
struct Node {
    stores: Vec<Store>,
    bank: SpanBank,
    now: NowNs,
}

impl Node {
    fn new(shards: u16, spans: u64, change: impl Fn(&mut StoreConfig)) -> Self {
        let layout = Layout::new(&[SegmentSpec { bytes: spans * SPAN, numa_node: 0 }], SPAN).unwrap();
        let mut config = StoreConfig::new(layout.clone(), shards);
        change(&mut config);
        let bank = SpanBank::new(BankConfig::new(layout, vec![0; usize::from(shards)])).unwrap();
        Self { stores: (0..shards).map(|_| Store::new(config.clone())).collect(), bank, now: 0 }
    }

    /// One event of one shard, and all that follows from it; what the shards said to others than the bank.
    fn tell(&mut self, shard: ShardId, event: StoreEvent) -> Vec<(ShardId, StoreEffect)> {
        self.run(VecDeque::from([BankEffect { shard, event }]))
    }

    fn run(&mut self, mut events: VecDeque<BankEffect>) -> Vec<(ShardId, StoreEffect)> {
        let mut said = Vec::new();
        while let Some(BankEffect { shard, event }) = events.pop_front() {
            let (mut out, mut answers) = (Vec::new(), Vec::new());
            self.stores[usize::from(shard)].handle(event, self.now, &mut out);
            for effect in out {
                match effect.for_bank(shard) {
                    Some(event) => self.bank.handle(event, self.now, &mut answers),
                    None => said.push((shard, effect)),
                }
            }
            events.extend(answers);
        }
        self.stores.iter().for_each(|store| store.check().unwrap());
        self.bank.check().unwrap();
        said
    }

    fn create(&mut self, shard: ShardId, number: u64, data_bytes: u64) -> Vec<(ShardId, StoreEffect)> {
        let event = StoreEvent::Create {
            client: 1,
            token: number,
            id: id(number),
            data_bytes,
            metadata_bytes: 0,
            owner: WorkerId::NIL,
            source: ObjectSource::CreatedByWorker,
            mutable: false,
            try_immediately: false,
        };
        self.tell(shard, event)
    }

    /// A sealed object that nobody uses; false where it could not be made at once.
    fn put(&mut self, shard: ShardId, number: u64, bytes: u64) -> bool {
        let made = is_made(&self.create(shard, number, bytes), number);
        self.tell(shard, StoreEvent::Seal { client: 1, token: 0, id: id(number) });
        self.tell(shard, StoreEvent::Release { client: 1, id: id(number) });
        made
    }

    /// Time passes for all.
    fn wait(&mut self, ms: u64) -> Vec<(ShardId, StoreEffect)> {
        self.now += ms * MS;
        let mut answers = Vec::new();
        self.bank.handle(BankEvent::Tick, self.now, &mut answers);
        let ticks = (0..self.stores.len() as ShardId).map(|shard| BankEffect { shard, event: StoreEvent::Tick });
        self.run(answers.into_iter().chain(ticks).collect())
    }
}

fn is_made(said: &[(ShardId, StoreEffect)], number: u64) -> bool {
    let made =
        |effect: &StoreEffect| matches!(effect, StoreEffect::Created { id: i, result: Ok(_), .. } if *i == id(number));
    said.iter().any(|(_, effect)| made(effect))
}

#[test]
fn a_shard_can_have_nearly_all_memory_though_others_hold_reserves() {
    let mut node = Node::new(4, 64, |_| ());
    (0..4).for_each(|shard| assert!(node.put(shard, u64::from(shard), 100)));
    (0..4).for_each(|shard| drop(node.tell(shard, StoreEvent::Free { id: id(u64::from(shard)) })));
    assert!(is_made(&node.create(2, 9, 64 * SPAN), 9));
}

#[test]
fn memory_that_a_shard_no_longer_needs_goes_back_but_for_its_reserve() {
    let mut node = Node::new(2, 64, |_| ());
    assert!(node.put(1, 1, 40 * SPAN));
    node.tell(1, StoreEvent::Free { id: id(1) });
    assert_eq!(node.stores[1].stats().held_spans, 8);
}

#[test]
fn unused_objects_of_one_shard_make_room_for_another() {
    let mut node = Node::new(2, 16, |_| ());
    (0..14).for_each(|number| assert!(node.put(0, number, SPAN), "{number}"));
    assert!(is_made(&node.create(1, 100, 6 * SPAN), 100));
    assert!(node.stores[0].stats().objects >= 6);
}

#[test]
fn a_reserve_is_filled_ahead_but_nobody_evicts_for_it() {
    let mut node = Node::new(2, 16, |_| ());
    for number in 0..16 {
        node.put(0, number, SPAN);
    }
    let before = node.stores[0].stats().objects;
    node.wait(100);
    assert_eq!(node.stores[0].stats().objects, before);
}

#[test]
fn those_who_wait_are_served_oldest_first() {
    let mut node = Node::new(3, 16, |config| config.spans_ahead = 0);
    assert!(is_made(&node.create(0, 1, 15 * SPAN), 1));
    assert!(!is_made(&node.create(1, 2, 12 * SPAN), 2));
    assert!(!is_made(&node.create(2, 3, 2 * SPAN), 3));
    assert!(!is_made(&node.create(2, 4, 2 * SPAN), 4));
    let said = node.tell(0, StoreEvent::Abort { client: 1, token: 0, id: id(1) });
    let order: Vec<_> =
        said.iter().filter(|(_, e)| matches!(e, StoreEffect::Created { result: Ok(_), .. })).map(|(s, _)| *s).collect();
    assert_eq!(order, [1, 2, 2]);
}

#[test]
fn a_create_that_would_fit_waits_behind_one_of_another_shard() {
    let mut node = Node::new(2, 32, |config| config.spans_ahead = 0);
    assert!(is_made(&node.create(0, 1, 24 * SPAN), 1));
    assert!(!is_made(&node.create(0, 2, 12 * SPAN), 2), "too large for what is left");
    node.now += MS;
    assert!(!is_made(&node.create(1, 3, SPAN), 3), "would fit, and came later");
    assert_eq!(node.bank.stats().waiting, 2);
    let said = node.tell(0, StoreEvent::Abort { client: 1, token: 0, id: id(1) });
    assert!(is_made(&said, 2) && is_made(&said, 3));
    assert!(is_made(&node.create(1, 4, SPAN), 4), "nobody waits any more");
    assert_eq!((node.bank.stats().waiting, node.bank.stats().standing), (0, 0));
}

#[test]
fn a_client_that_leaves_takes_its_place_in_the_line_along() {
    let mut node = Node::new(2, 32, |config| config.spans_ahead = 0);
    assert!(is_made(&node.create(0, 1, 24 * SPAN), 1));
    assert!(!is_made(&node.create(1, 2, 12 * SPAN), 2));
    assert!(!is_made(&node.create(0, 3, SPAN), 3));
    let said = node.tell(1, StoreEvent::CancelCreate { client: 1, id: id(2) });
    assert!(is_made(&said, 3));
    assert_eq!(node.bank.stats().waiting, 0);
}

#[test]
fn a_line_of_creates_that_all_find_room_is_dissolved() {
    let mut node = Node::new(2, 64, |_| ());
    node.bank =
        SpanBank::new(BankConfig { easy_turns_max: 2, ..BankConfig::new(node.bank.layout().clone(), vec![0; 2]) })
            .unwrap();
    assert!(is_made(&node.create(0, 1, 60 * SPAN), 1));
    assert!(!is_made(&node.create(1, 2, 30 * SPAN), 2));
    (3..10).for_each(|number| assert!(!is_made(&node.create(1, number, SPAN), number)));
    let said = node.tell(0, StoreEvent::Abort { client: 1, token: 0, id: id(1) });
    (2..10).for_each(|number| assert!(is_made(&said, number), "{number}"));
    assert_eq!(node.bank.stats().waiting, 0);
}

#[test]
fn after_one_that_failed_the_next_in_line_does_not_wait_as_long_again() {
    let mut node = Node::new(2, 16, |config| config.spans_ahead = 0);
    assert!(is_made(&node.create(0, 1, 10 * SPAN), 1));
    assert!(!is_made(&node.create(1, 2, 14 * SPAN), 2));
    node.now += MS;
    assert!(!is_made(&node.create(0, 3, 13 * SPAN), 3));
    let failed = |said: &[(ShardId, StoreEffect)], number| {
        let is_failure =
            |e: &StoreEffect| matches!(e, StoreEffect::Created { token, result: Err(_), .. } if *token == number);
        said.iter().any(|(_, effect)| is_failure(effect))
    };
    let mut said = Vec::new();
    while !failed(&said, 2) {
        said = node.wait(10);
        assert!(node.now < 3_000 * MS, "never failed");
    }
    said.extend((0..10).flat_map(|_| node.wait(10)));
    assert!(failed(&said, 3));
}

#[test]
fn a_long_run_is_granted_while_other_shards_go_on_putting() {
    let mut node = Node::new(3, 32, |config| config.full_grace_ns = 5_000 * MS);
    let mut live: Vec<(ShardId, u64)> = Vec::new();
    let mut next = 1000;
    for ms in 0..2_000 {
        let mut said = node.wait(1);
        // Two shards want more than there is, all the time; what they get lives for a while, in no order, so that hardly a span
        // would ever be empty.
        for shard in [1, 2] {
            if node.stores[usize::from(shard)].stats().queued_creates < 4 {
                next += 1;
                said.extend(node.create(shard, next, SPAN / 4 + next % 7 * 10_000));
            }
        }
        if ms == 100 {
            said.extend(node.create(0, 1, 20 * SPAN));
        }
        if !live.is_empty() {
            let (shard, number) = live.swap_remove(ms * 7 % live.len());
            said.extend(node.tell(shard, StoreEvent::Abort { client: 1, token: 0, id: id(number) }));
        }
        if is_made(&said, 1) {
            assert!((101..500).contains(&ms), "made after {ms} ms");
            return;
        }
        for (shard, effect) in said {
            if let StoreEffect::Created { token, result: Ok(_), .. } = effect {
                live.push((shard, token));
            }
        }
    }
    panic!("the long run was never granted: {:?}", node.bank.stats());
}

#[test]
fn a_create_that_nobody_can_serve_fails_after_the_grace_period_and_leaves_the_others_free() {
    let mut node = Node::new(2, 16, |_| ());
    assert!(is_made(&node.create(0, 1, 8 * SPAN), 1));
    assert!(!is_made(&node.create(1, 2, 14 * SPAN), 2));
    // After a while the other shard must hold back, but not for ever.
    node.wait(300);
    assert!(!is_made(&node.create(0, 3, 100), 3));
    let said = (0..250).flat_map(|_| node.wait(10)).collect::<Vec<_>>();
    let failed =
        |e: &StoreEffect| matches!(e, StoreEffect::Created { token: 2, result: Err(StoreError::OutOfMemory), .. });
    assert!(said.iter().any(|(_, effect)| failed(effect)));
    assert!(is_made(&said, 3));
    assert_eq!(node.bank.stats().standing, 0);
}

#[test]
fn spans_of_the_shards_own_numa_node_come_first() {
    let segments = [0, 1].map(|numa_node| SegmentSpec { bytes: 8 * SPAN, numa_node });
    let layout = Layout::new(&segments, SPAN).unwrap();
    let mut bank = SpanBank::new(BankConfig::new(layout.clone(), vec![0, 1])).unwrap();
    let mut out = Vec::new();
    for count in [4, 4, 1] {
        bank.handle(BankEvent::Wanted { shard: 1, count, urgency: Urgency::Now }, 0, &mut out);
    }
    let segment_of = |effect: &BankEffect| match effect.event {
        StoreEvent::SpansGranted { first, .. } => layout.segment_of(first),
        _ => None,
    };
    assert_eq!(out.iter().map(segment_of).collect::<Vec<_>>(), [Some(1), Some(1), Some(0)]);
}

#[test]
fn a_message_that_makes_no_sense_changes_nothing_and_is_counted() {
    let layout = Layout::new(&[SegmentSpec { bytes: 8 * SPAN, numa_node: 0 }], SPAN).unwrap();
    let mut bank = SpanBank::new(BankConfig::new(layout, vec![0, 0])).unwrap();
    let mut out = Vec::new();
    for event in [
        BankEvent::Returned { shard: 0, first: 3, count: 1 },
        BankEvent::Returned { shard: 0, first: 7, count: u32::MAX },
        BankEvent::Returned { shard: ShardId::MAX, first: 0, count: 1 },
        BankEvent::Wanted { shard: 5, count: 1, urgency: Urgency::Now },
        BankEvent::Wanted { shard: 0, count: 0, urgency: Urgency::Standing },
        BankEvent::ReclaimDone { shard: 9, count: 0 },
        BankEvent::ReclaimDone { shard: 1, count: 0 },
    ] {
        bank.handle(event, 0, &mut out);
    }
    assert!(out.is_empty(), "{out:?}");
    assert_eq!((bank.stats().faults, bank.stats().free_spans), (7, 8));
    assert!(bank.check().is_err());
}

#[test]
fn a_layout_that_can_not_be_is_refused_with_what_was_expected() {
    let segment = |bytes| SegmentSpec { bytes, numa_node: 0 };
    assert_eq!(Layout::new(&[], SPAN), Err(LayoutError::NoSegment));
    assert_eq!(Layout::new(&[segment(SPAN)], 3 * SPAN), Err(LayoutError::SpanBytes(3 * SPAN)));
    assert_eq!(Layout::new(&[segment(SPAN)], SPAN / 2), Err(LayoutError::SpanBytes(SPAN / 2)));
    let error = Layout::new(&[segment(SPAN), segment(SPAN - 1)], SPAN).unwrap_err();
    assert_eq!(error, LayoutError::SegmentTooSmall(1, SPAN - 1));
    assert!(error.to_string().contains("segment 1: expected at least one span"));
    assert!(matches!(Layout::new(&[segment(1 << 62)], SPAN), Err(LayoutError::TooManySpans(_))));
}

#[test]
fn small_nodes_have_small_spans_and_large_ones_large_spans() {
    assert_eq!(Layout::span_bytes_for(75 << 20, 1), 1 << 20);
    assert_eq!(Layout::span_bytes_for(75 << 20, 16), MIN_SPAN_BYTES);
    assert_eq!(Layout::span_bytes_for(64 << 30, 16), MAX_SPAN_BYTES);
}
