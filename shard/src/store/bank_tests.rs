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

fn create(number: u64, data_bytes: u64, near: Option<u32>) -> StoreEvent {
    StoreEvent::Create {
        client: 1,
        token: number,
        id: id(number),
        data_bytes,
        metadata_bytes: 0,
        owner: WorkerId::NIL,
        source: ObjectSource::CreatedByWorker,
        mutable: false,
        try_immediately: false,
        near,
    }
}

/// Shards whose messages to the bank and back arrive at once.
struct Node {
    stores: Vec<Store>,
    bank: SpanBank,
    now: NowNs,
}

impl Node {
    fn new(shards: u16, spans: u64, change: impl Fn(&mut StoreConfig)) -> Self {
        Self::of(shards, &[spans], change)
    }

    /// With a segment of so many spans on each NUMA node.
    fn of(shards: u16, spans: &[u64], change: impl Fn(&mut StoreConfig)) -> Self {
        let segment = |(node, spans): (usize, &u64)| SegmentSpec { bytes: spans * SPAN, numa_node: node as u32 };
        let layout = Layout::new(&spans.iter().enumerate().map(segment).collect::<Vec<_>>(), SPAN).unwrap();
        let mut config = StoreConfig::new(layout.clone(), shards);
        change(&mut config);
        let bank = SpanBank::new(BankConfig::new(layout, shards)).unwrap();
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
        self.create_near(shard, number, data_bytes, None)
    }

    fn create_near(
        &mut self,
        shard: ShardId,
        number: u64,
        data_bytes: u64,
        near: Option<u32>,
    ) -> Vec<(ShardId, StoreEffect)> {
        self.tell(shard, create(number, data_bytes, near))
    }

    /// A sealed object that nobody uses; false where it could not be made at once.
    fn put(&mut self, shard: ShardId, number: u64, bytes: u64) -> bool {
        let made = is_made(&self.create(shard, number, bytes), number);
        self.tell(shard, StoreEvent::Seal { client: 1, token: 0, id: id(number) });
        self.tell(shard, StoreEvent::Release { client: 1, id: id(number) });
        made
    }

    /// The segment that a new object is placed in.
    fn segment_near(&mut self, shard: ShardId, number: u64, bytes: u64, near: Option<u32>) -> u32 {
        let said = self.create_near(shard, number, bytes, near);
        let place = said.iter().find_map(|(_, effect)| match effect {
            StoreEffect::Created { result: Ok(place), .. } => Some(place.segment),
            _ => None,
        });
        place.unwrap_or_else(|| panic!("{said:?}"))
    }

    /// The segment of a run of credit.
    fn run_near(&mut self, shard: ShardId, near: u32) -> u32 {
        let said = self.tell(shard, StoreEvent::GrantCredit { client: 1, token: 0, bytes: SPAN, near: Some(near) });
        match said[..] {
            [(_, StoreEffect::CreditGranted { result: Ok(run), .. })] => run.segment,
            ref other => panic!("{other:?}"),
        }
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

fn wish(count: u32, urgency: Urgency, near: u32) -> SpanWish {
    SpanWish { count, urgency, near }
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

/// A lone shard has no line, so nobody would ever give it a turn.
#[test]
fn a_create_of_a_lone_shard_is_made_however_long_it_has_waited() {
    let mut node = Node::new(1, 32, |config| config.spans_ahead = 0);
    assert!(is_made(&node.create(0, 1, 24 * SPAN), 1));
    assert!(!is_made(&node.create(0, 2, 12 * SPAN), 2));
    node.wait(500);
    let said = node.tell(0, StoreEvent::Abort { client: 1, token: 0, id: id(1) });
    assert!(is_made(&said, 2), "{said:?}");
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
        SpanBank::new(BankConfig { easy_turns_max: 2, ..BankConfig::new(node.bank.layout().clone(), 2) }).unwrap();
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
fn spans_that_a_restore_left_empty_go_back_to_the_bank_at_once() {
    let mut node = Node::new(2, 16, |config| {
        (config.spans_ahead, config.spans_kept) = (0, 2);
        config.spill = Some(SpillConfig { threshold_bytes: 0, ..SpillConfig::new(16 * SPAN) });
    });
    assert!(is_made(&node.create(1, 1, 7 * SPAN), 1));
    // On disk, and at the next need no longer in memory.
    assert!(is_made(&node.create(0, 2, SPAN), 2));
    for event in [
        StoreEvent::Seal { client: 1, token: 0, id: id(2) },
        StoreEvent::Pin { token: 0, id: id(2) },
        StoreEvent::Release { client: 1, id: id(2) },
        StoreEvent::SpillDone { file: 0, result: Ok(()) },
    ] {
        node.tell(0, event);
    }
    assert!(node.put(0, 3, 8 * SPAN), "it can be evicted whole");
    assert!(is_made(&node.create(0, 4, SPAN), 4));
    assert!(node.stores[0].place(&id(2)).is_none() && node.bank.stats().free_spans == 0);
    // The bank had nothing a moment ago, so the restore evicts at once.
    let said = node.tell(0, StoreEvent::Get { client: 1, token: 9, id: id(2), wait: true });
    assert!(said.iter().any(|(_, effect)| matches!(effect, StoreEffect::RestoreObject { .. })), "{said:?}");
    assert_eq!((node.bank.held_by(0), node.bank.stats().free_spans), (4, 5));
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
    let mut bank = SpanBank::new(BankConfig::new(layout.clone(), 2)).unwrap();
    let mut out = Vec::new();
    for count in [4, 4, 1] {
        bank.handle(BankEvent::Wanted { shard: 1, wish: wish(count, Urgency::Now, 1) }, 0, &mut out);
    }
    let segment_of = |effect: &BankEffect| match effect.event {
        StoreEvent::SpansGranted { first, .. } => layout.segment_of(first),
        _ => None,
    };
    assert_eq!(out.iter().map(segment_of).collect::<Vec<_>>(), [Some(1), Some(1), Some(0)]);
}

#[test]
fn objects_lie_on_the_numa_node_of_their_writer_while_it_has_room() {
    for shards in [1, 3] {
        let mut node = Node::of(shards, &[40, 40], |config| config.home_segment = 1);
        for shard in 0..shards {
            let first = u64::from(shard) * 10;
            for (number, bytes, near, segment) in [
                (0, 100, Some(0), 0),
                (1, 100, Some(1), 1),
                (2, SPAN, Some(0), 0),
                (3, SPAN, None, 1),
                (4, 70_000, Some(9), 1),
            ] {
                let got = node.segment_near(shard, first + number, bytes, near);
                assert_eq!(got, segment, "{shards} shards, shard {shard}, object {number}");
            }
        }
        assert_eq!([node.run_near(0, 0), node.run_near(0, 1)], [0, 1]);
        let used = |node: &Node, segment| node.stores.iter().map(|store| store.allocated_bytes(segment)).sum::<u64>();
        let in_all: u64 = node.stores.iter().map(|store| store.stats().allocated_bytes).sum();
        assert_eq!(used(&node, 0) + used(&node, 1), in_all);
        assert_eq!(used(&node, 2), 0, "there is no such segment");
    }
}

#[test]
fn no_numa_node_is_left_empty_while_another_is_full() {
    for shards in [1, 2] {
        let mut node = Node::of(shards, &[8, 8], |_| ());
        let last = shards - 1;
        // All want to be on node 1: half of them are, the others find room on node 0, and then nothing is left.
        let segments: Vec<u32> = (0..16).map(|number| node.segment_near(last, number, SPAN, Some(1))).collect();
        assert_eq!(segments[..8], [1; 8], "{shards} shards");
        assert_eq!(segments[8..], [0; 8], "{shards} shards");
        assert!(!is_made(&node.create_near(last, 16, SPAN, Some(1)), 16));
        // What comes free far away is as welcome as what comes free near.
        node.tell(last, StoreEvent::Abort { client: 1, token: 0, id: id(15) });
        assert!(node.stores[usize::from(last)].info(&id(16)).is_some_and(|info| info.place.segment == 0));
        // When the near one has room again it is used again, once the store has asked for it.
        node.tell(last, StoreEvent::Abort { client: 1, token: 0, id: id(3) });
        node.tell(last, StoreEvent::Abort { client: 1, token: 0, id: id(12) });
        node.wait(20);
        assert_eq!(node.segment_near(last, 17, SPAN, Some(1)), 1);
    }
}

#[test]
fn a_create_waits_for_the_bank_rather_than_go_far_and_does_not_ask_twice_in_vain() {
    let layout = Layout::new(&[0, 1].map(|numa_node| SegmentSpec { bytes: 8 * SPAN, numa_node }), SPAN).unwrap();
    let mut store = Store::new(StoreConfig { spans_ahead: 0, ..StoreConfig::new(layout, 2) });
    let asked = |out: &[StoreEffect]| {
        let wishes = out.iter().filter_map(|effect| match effect {
            StoreEffect::SpansWanted { wish } => Some(*wish),
            _ => None,
        });
        wishes.collect::<Vec<_>>()
    };
    let mut tell = |event, now| {
        let mut out = Vec::new();
        store.handle(event, now, &mut out);
        store.check().unwrap();
        out
    };
    tell(StoreEvent::SpansGranted { first: 0, count: 1, urgency: Urgency::Ahead }, 0);
    let out = tell(create(1, 100, Some(1)), 0);
    assert_eq!(asked(&out), [wish(1, Urgency::Near, 1)]);
    let out = tell(StoreEvent::SpansRefused { wish: wish(1, Urgency::Near, 1) }, 0);
    assert!(matches!(out[..], [StoreEffect::Created { result: Ok(Placement { segment: 0, .. }), .. }]), "{out:?}");
    // For a while it is known that there is nothing.
    assert_eq!(asked(&tell(create(2, 100, Some(1)), 9 * MS)), []);
    assert_eq!(asked(&tell(create(3, 100, Some(1)), 10 * MS)), [wish(1, Urgency::Near, 1)]);
    let out = tell(StoreEvent::SpansGranted { first: 9, count: 1, urgency: Urgency::Near }, 11 * MS);
    assert!(matches!(out[..], [StoreEffect::Created { result: Ok(Placement { segment: 1, .. }), .. }]), "{out:?}");
}

#[test]
fn a_message_that_makes_no_sense_changes_nothing_and_is_counted() {
    let layout = Layout::new(&[SegmentSpec { bytes: 8 * SPAN, numa_node: 0 }], SPAN).unwrap();
    let mut bank = SpanBank::new(BankConfig::new(layout, 2)).unwrap();
    let mut out = Vec::new();
    for event in [
        BankEvent::Returned { shard: 0, first: 3, count: 1 },
        BankEvent::Returned { shard: 0, first: 7, count: u32::MAX },
        BankEvent::Returned { shard: ShardId::MAX, first: 0, count: 1 },
        BankEvent::Wanted { shard: 5, wish: wish(1, Urgency::Now, 0) },
        BankEvent::Wanted { shard: 0, wish: wish(0, Urgency::Standing, 0) },
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
