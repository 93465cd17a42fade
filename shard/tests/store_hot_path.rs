//! Puts and gets in the steady state take no memory from the heap, and print what they cost.

use std::time::Instant;

use raylet_shard::ids::{ObjectId, WorkerId};
use raylet_shard::store::{
    BankConfig, Layout, NodeMemory, ObjectSource, SegmentSpec, SpanBank, Store, StoreConfig, StoreEvent,
};

/// Objects that live at the same time.
const LIVE: u64 = 1000;

/// Puts that are measured.
const PUTS: u64 = if cfg!(debug_assertions) { 50_000 } else { 2_000_000 };

fn id(number: u64) -> ObjectId {
    let mut bytes = [7; ObjectId::LEN];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    ObjectId(bytes)
}

fn node(mib: u64) -> NodeMemory {
    let layout = Layout::new(&[SegmentSpec { bytes: mib << 20, numa_node: 0 }], 4 << 20).unwrap();
    let bank = SpanBank::new(BankConfig::new(layout.clone(), 1)).unwrap();
    NodeMemory::new(Store::new(StoreConfig::new(layout, 1)), bank, 0)
}

/// Parts that the measured puts are timed in: the best of them is what a put costs where nothing else runs.
const PARTS: u64 = 20;

/// Runs `step` for each number, first to warm up and then with allocations counted: (allocations, nanoseconds a step).
fn measure(mut step: impl FnMut(u64)) -> (u64, f64) {
    (0..PUTS / 2).for_each(&mut step);
    let mut best = f64::INFINITY;
    let allocations = allocation_counter::measure(|| {
        for part in 0..PARTS {
            let (began, first) = (Instant::now(), PUTS / 2 + part * (PUTS / PARTS));
            (first..first + PUTS / PARTS).for_each(&mut step);
            best = best.min(began.elapsed().as_nanos() as f64 / (PUTS / PARTS) as f64);
        }
    });
    (allocations.count_total, best)
}

/// A put as a worker does it, the pin that the node adds, a get by another worker, and the end of an old object.
fn put_get_free(size_of: impl Fn(u64) -> u64) -> (u64, f64) {
    let mut node = node(1024);
    let (mut out, mut others) = (Vec::with_capacity(16), Vec::new());
    measure(|number| {
        let new = id(number);
        let create = StoreEvent::Create {
            client: 1 + number % 8,
            token: number,
            id: new,
            data_bytes: size_of(number),
            metadata_bytes: 5,
            owner: WorkerId::NIL,
            source: ObjectSource::CreatedByWorker,
            mutable: false,
            try_immediately: false,
            near: None,
        };
        let (writer, reader) = (1 + number % 8, 20 + number % 4);
        for event in [
            create,
            StoreEvent::Seal { client: writer, token: number, id: new },
            StoreEvent::Pin { token: number, id: new },
            StoreEvent::Release { client: writer, id: new },
            StoreEvent::Get { client: reader, token: number, id: new, wait: true },
            StoreEvent::Release { client: reader, id: new },
            StoreEvent::Free { id: id(number.wrapping_sub(LIVE)) },
        ] {
            node.handle(event, number, &mut out, &mut others);
        }
        assert!(out.len() >= 5, "{out:?}");
        out.clear();
    })
}

#[test]
fn puts_and_gets_in_the_steady_state_do_not_use_the_heap() {
    for (what, size_of) in [
        ("1 KiB", (|_| 1024) as fn(u64) -> u64),
        ("200 KiB", |_| 200 * 1024),
        ("mixed", |number| 1 + number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 300_000),
    ] {
        let (allocations, ns) = put_get_free(size_of);
        println!("{what}: create, seal, pin, release, get, release, free: {ns:.0} ns");
        // Mixed sizes may still meet a new most fragmented moment, which grows the slab of blocks.
        assert!(allocations <= 2, "{what}: {allocations} allocations in {PUTS} puts");
    }
}

#[test]
fn a_full_store_evicts_in_the_steady_state_without_the_heap() {
    let mut node = node(64);
    let (mut out, mut others) = (Vec::with_capacity(16), Vec::new());
    let (allocations, ns) = measure(|number| {
        let new = id(number);
        let create = StoreEvent::Create {
            client: 1,
            token: number,
            id: new,
            data_bytes: 300_000,
            metadata_bytes: 5,
            owner: WorkerId::NIL,
            source: ObjectSource::CreatedByWorker,
            mutable: false,
            try_immediately: false,
            near: None,
        };
        let seal = StoreEvent::Seal { client: 1, token: number, id: new };
        for event in [create, seal, StoreEvent::Release { client: 1, id: new }] {
            node.handle(event, number, &mut out, &mut others);
        }
        out.clear();
    });
    let evicted = node.store().stats().counters.evicted.objects;
    println!("create with eviction, seal, release: {ns:.0} ns");
    assert!(evicted >= PUTS && allocations <= 2, "{evicted} evicted, {allocations} allocations");
}
