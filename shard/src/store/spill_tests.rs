//! What the store must do with objects that it has no room for, told as a conversation.

use super::*;
use crate::ids::{ClientId, NowNs, ObjectId, WorkerId};

const MIB: u64 = 1 << 20;
const MS: u64 = 1_000_000;
const OWNER: WorkerId = WorkerId([9; 28]);

fn id(number: u8) -> ObjectId {
    ObjectId([number; ObjectId::LEN])
}

/// A node of one shard with 4 MiB, which spills above 3 MiB and writes 1 MiB at a time.
struct Node {
    memory: NodeMemory,
    now: NowNs,
}

impl Node {
    fn new(change: impl FnOnce(&mut SpillConfig)) -> Self {
        let layout = Layout::new(&[SegmentSpec { bytes: 4 * MIB, numa_node: 0 }], MIN_SPAN_BYTES).unwrap();
        let mut spill = SpillConfig::new(4 * MIB);
        (spill.threshold_bytes, spill.batch_bytes) = (3 * MIB, MIB);
        change(&mut spill);
        let mut config = StoreConfig::new(layout.clone(), 1);
        config.spill = Some(spill);
        let bank = SpanBank::new(BankConfig::new(layout, 1)).unwrap();
        Self { memory: NodeMemory::new(Store::new(config), bank, 0), now: 0 }
    }

    fn tell(&mut self, event: StoreEvent) -> Vec<StoreEffect> {
        let (mut out, mut others) = (Vec::new(), Vec::new());
        self.memory.handle(event, self.now, &mut out, &mut others);
        self.memory.check().unwrap();
        out
    }

    fn create(&mut self, client: ClientId, id: ObjectId, data_bytes: u64) -> Vec<StoreEffect> {
        self.tell(StoreEvent::Create {
            client,
            token: 1,
            id,
            data_bytes,
            metadata_bytes: 0,
            owner: OWNER,
            source: ObjectSource::CreatedByWorker,
            mutable: false,
            try_immediately: false,
            near: None,
        })
    }

    /// A pinned object that nobody uses.
    fn put(&mut self, number: u8, data_bytes: u64) -> Vec<StoreEffect> {
        let (client, id) = (1, id(number));
        let mut out = self.create(client, id, data_bytes);
        out.extend(self.tell(StoreEvent::Seal { client, token: 2, id }));
        out.extend(self.tell(StoreEvent::Pin { token: 3, id }));
        out.extend(self.tell(StoreEvent::Release { client, id }));
        out
    }

    fn get(&mut self, client: ClientId, id: ObjectId) -> Vec<StoreEffect> {
        self.tell(StoreEvent::Get { client, token: 4, id, wait: true })
    }

    fn wrote(&mut self, file: SpillFile) -> Vec<StoreEffect> {
        self.tell(StoreEvent::SpillDone { file, result: Ok(()) })
    }
}

/// One that a client keeps.
const KEEPER: ClientId = 77;

impl Node {
    /// A kept object that nobody uses.
    fn put_kept(&mut self, number: u8, data_bytes: u64) -> Vec<StoreEffect> {
        let (client, id) = (1, id(number));
        let mut out = self.create(client, id, data_bytes);
        out.extend(self.tell(StoreEvent::Seal { client, token: 2, id }));
        out.extend(self.tell(StoreEvent::Keep { keeper: KEEPER, token: 3, id }));
        out.extend(self.tell(StoreEvent::Release { client, id }));
        out
    }
}

fn gone(out: &[StoreEffect]) -> Vec<(ObjectId, GoneReason)> {
    let gone = out.iter().filter_map(|effect| match *effect {
        StoreEffect::ObjectGone { id, reason, .. } => Some((id, reason)),
        _ => None,
    });
    gone.collect()
}

/// Four of 1 MiB, of which the first was written to file 0 and evicted for the fifth.
fn with_a_kept_one_on_disk() -> Node {
    let mut node = Node::new(|_| {});
    let mut out: Vec<_> = (1..=4).flat_map(|number| node.put_kept(number, MIB)).collect();
    assert_eq!(spills(&out)[0], (0, 0, id(1), true));
    out = node.wrote(0);
    assert!(gone(&out).is_empty(), "it is still in memory");
    let out = node.put_kept(5, MIB);
    assert_eq!(gone(&out), [(id(1), GoneReason::Spilled)]);
    node
}

#[test]
fn what_a_native_owner_keeps_is_spilled_and_had_again_and_goes_with_its_last_keeper() {
    let mut node = with_a_kept_one_on_disk();
    let contained = node.tell(StoreEvent::Contains { client: 2, token: 9, id: id(1) });
    assert!(matches!(contained[..], [StoreEffect::Contained { has: true, .. }]));
    assert_eq!(created(&node.create(2, id(1), 5)), Some(Err(StoreError::ObjectExists)));
    let kept = node.tell(StoreEvent::Keep { keeper: KEEPER + 1, token: 9, id: id(1) });
    assert!(matches!(kept[..], [StoreEffect::Kept { ok: true, .. }]), "on disk is there: {kept:?}");
    node.tell(StoreEvent::Unkeep { keeper: KEEPER, id: id(1) });
    let deleted = node.tell(StoreEvent::Delete { client: 2, token: 9, id: id(1) });
    assert!(matches!(deleted[0], StoreEffect::Deleted { result: Err(StoreError::ObjectInUse), .. }));
    assert_eq!(node.memory.store().stats().counters.on_disk.objects, 1, "another keeps it");
    let out = node.tell(StoreEvent::ClientGone { client: KEEPER + 1 });
    assert_eq!(gone(&out), [(id(1), GoneReason::Deleted)], "as was asked for");
    assert!(out.contains(&StoreEffect::SpillFileUnneeded { file: 0 }));
    let out = node.tell(StoreEvent::GetHere { client: 2, token: 9, id: id(1) });
    assert!(matches!(out[..], [StoreEffect::Got { place: None, .. }]));
}

#[test]
fn a_get_that_does_not_wait_has_what_is_on_disk_read_and_is_answered_where_it_is_lost() {
    for result in [Ok(()), Err(RestoreFailure::Lost)] {
        let mut node = with_a_kept_one_on_disk();
        let file = spills(&node.put_kept(6, 1000)).first().map(|spill| spill.0);
        let mut out = node.tell(StoreEvent::GetHere { client: 2, token: 9, id: id(1) });
        // Room for it is made by what is being written.
        out.extend(node.wrote(file.unwrap_or(1)));
        assert_eq!(restores(&out), [id(1)]);
        let mut out = node.tell(StoreEvent::RestoreDone { id: id(1), result });
        assert_eq!(out.contains(&StoreEffect::SpilledLost { id: id(1), owner: OWNER }), result.is_err());
        out.extend(node.tell(StoreEvent::GiveUp { id: id(1) }));
        let places = out.iter().filter_map(|effect| match effect {
            StoreEffect::Got { token: 9, place, .. } => Some(place.is_some()),
            _ => None,
        });
        assert_eq!(places.collect::<Vec<_>>(), [result.is_ok()]);
    }
}

fn spills(out: &[StoreEffect]) -> Vec<(SpillFile, u32, ObjectId, bool)> {
    let spills = out.iter().filter_map(|effect| match *effect {
        StoreEffect::SpillObject { file, index, id, last, .. } => Some((file, index, id, last)),
        _ => None,
    });
    spills.collect()
}

fn restores(out: &[StoreEffect]) -> Vec<ObjectId> {
    let restores = out.iter().filter_map(|effect| match *effect {
        StoreEffect::RestoreObject { id, .. } => Some(id),
        _ => None,
    });
    restores.collect()
}

fn created(out: &[StoreEffect]) -> Option<Result<(), StoreError>> {
    out.iter().find_map(|effect| match effect {
        StoreEffect::Created { result, .. } => Some(result.map(drop)),
        _ => None,
    })
}

fn got(out: &[StoreEffect]) -> bool {
    out.iter().any(|effect| matches!(effect, StoreEffect::Got { place: Some(_), .. }))
}

/// A node whose oldest object is on disk only, and whose second one is being written, as file 1, because all memory is taken.
fn with_one_on_disk() -> Node {
    let mut node = Node::new(|spill| spill.writing_files_max = 1);
    (1..=3).for_each(|number| assert!(spills(&node.put(number, MIB)).is_empty()));
    assert_eq!(spills(&node.put(4, MIB)), [(0, 0, id(1), true)]);
    node.wrote(0);
    let out = node.create(2, id(5), MIB);
    assert_eq!(created(&out), Some(Ok(())));
    assert!(out
        .iter()
        .any(|e| matches!(e, StoreEffect::ObjectGone { id: gone, reason: GoneReason::Spilled, .. } if *gone == id(1))));
    assert_eq!(spills(&out), [(1, 0, id(2), true)]);
    node
}

#[test]
fn above_the_threshold_the_oldest_are_written_and_stay_readable() {
    let mut node = Node::new(|spill| spill.batch_bytes = 2 * MIB);
    (1..=3).for_each(|number| assert!(spills(&node.put(number, MIB)).is_empty()));
    assert_eq!(spills(&node.put(4, MIB)), [(0, 0, id(1), false), (0, 1, id(2), true)]);
    assert!(got(&node.get(7, id(1))), "it is readable while it is written");
    let out = node.wrote(0);
    let told: Vec<_> = out.iter().filter(|e| matches!(e, StoreEffect::ObjectSpilled { .. })).collect();
    assert_eq!(told.len(), 2, "{out:?}");
    assert!(got(&node.get(8, id(2))), "it is in memory as long as nobody needs that");
    assert_eq!(node.memory.store().stats().counters.on_disk, Tally { objects: 2, bytes: 2 * MIB });
}

#[test]
fn a_create_waits_while_objects_are_written_for_it() {
    let mut node = Node::new(|spill| spill.threshold_bytes = 100 * MIB);
    (1..=4).for_each(|number| assert!(spills(&node.put(number, MIB)).is_empty()));
    let out = node.create(2, id(5), MIB);
    assert_eq!((created(&out), spills(&out)), (None, vec![(0, 0, id(1), true)]));
    node.now += 60_000 * MS;
    assert_eq!(created(&node.tell(StoreEvent::Tick)), None, "the grace period is not over while something is written");
    assert_eq!(created(&node.wrote(0)), Some(Ok(())));
}

#[test]
fn small_objects_share_a_file_which_ends_with_the_last_of_them() {
    let mut node = Node::new(|spill| (spill.threshold_bytes, spill.file_objects_max) = (0, 2));
    let first = node.put(1, 1000);
    assert_eq!(spills(&first), [(0, 0, id(1), true)], "nothing else is written, so it need not wait for company");
    assert!(spills(&node.put(2, 1000)).is_empty());
    assert_eq!(
        spills(&node.put(3, 1000)),
        [],
        "a full file is one of more than two objects' bytes or the last of the list"
    );
    let out = node.wrote(0);
    assert_eq!(spills(&out), [(1, 0, id(2), false), (1, 1, id(3), true)]);
    node.wrote(1);
    let ends = |out: &[StoreEffect]| out.contains(&StoreEffect::SpillFileUnneeded { file: 1 });
    assert!(!ends(&node.tell(StoreEvent::Free { id: id(3) })));
    assert!(ends(&node.tell(StoreEvent::Free { id: id(2) })));
    assert!(node.memory.store().info(&id(2)).is_none());
}

#[test]
fn whoever_gets_an_object_that_is_on_disk_waits_for_its_restore() {
    let mut node = with_one_on_disk();
    assert!(node.memory.store().info(&id(1)).is_none());
    // The memory is full of what is in use or pinned: something has to be written first.
    assert!(restores(&node.get(7, id(1))).is_empty());
    let out = node.wrote(1);
    assert_eq!((restores(&out), spills(&out)), (vec![id(1)], vec![]), "of the full memory it alone is on disk as well");
    let out = node.tell(StoreEvent::RestoreDone { id: id(1), result: Ok(()) });
    assert!(got(&out) && spills(&out).is_empty());
    assert_eq!(node.memory.store().primary_bytes(), 3 * MIB);
    assert!(out
        .iter()
        .any(|e| { matches!(e, StoreEffect::ObjectSealed { source: ObjectSource::RestoredFromStorage, .. }) }));
    assert_eq!(node.memory.store().info(&id(1)).map(|info| (info.pinned, info.references)), Some((false, 1)));
}

#[test]
fn a_restore_goes_before_creates_that_wait() {
    let mut node = with_one_on_disk();
    assert_eq!(created(&node.create(3, id(6), MIB)), None);
    node.get(7, id(1));
    let out = node.wrote(1);
    assert_eq!((restores(&out), created(&out)), (vec![id(1)], None));
}

#[test]
fn an_object_freed_while_it_is_written_or_read_leaves_nothing_behind() {
    let mut node = with_one_on_disk();
    node.get(7, id(1));
    assert!(node.tell(StoreEvent::Free { id: id(2) }).is_empty(), "its memory is in use until it is written");
    let out = node.wrote(1);
    assert!(out.contains(&StoreEffect::SpillFileUnneeded { file: 1 }), "{out:?}");
    assert_eq!(restores(&out), [id(1)]);
    assert!(!node.tell(StoreEvent::Free { id: id(1) }).contains(&StoreEffect::SpillFileUnneeded { file: 0 }));
    let out = node.tell(StoreEvent::RestoreDone { id: id(1), result: Ok(()) });
    assert!(got(&out) && out.contains(&StoreEffect::SpillFileUnneeded { file: 0 }), "{out:?}");
    node.tell(StoreEvent::Release { client: 7, id: id(1) });
    assert!(node.memory.store().info(&id(1)).is_none());
}

#[test]
fn what_could_not_be_written_stays_pinned_and_a_full_disk_is_told() {
    let mut node = Node::new(|spill| spill.threshold_bytes = 100 * MIB);
    (1..=4).for_each(|number| drop(node.put(number, MIB)));
    let out = node.create(2, id(5), MIB);
    assert_eq!(spills(&out).len(), 1);
    let out = node.tell(StoreEvent::SpillDone { file: 0, result: Err(SpillFailure::DiskFull) });
    assert!(spills(&out).is_empty(), "not at once again");
    assert_eq!(node.memory.store().stats().counters.pinned.objects, 4);
    node.now += 1000 * MS;
    let out = node.tell(StoreEvent::Tick);
    assert_eq!(spills(&out).len(), 1, "{out:?}");
    node.tell(StoreEvent::SpillDone { file: 0, result: Err(SpillFailure::DiskFull) });
    node.now += 10 * MS;
    assert_eq!(created(&node.tell(StoreEvent::Tick)), None);
    // Without a pause between the tries, time would never run out.
    for _ in 0..5 {
        node.now += 990 * MS;
        let out = node.tell(StoreEvent::Tick);
        if let Some(result) = created(&out) {
            return assert_eq!(result, Err(StoreError::OutOfDisk));
        }
        if let Some((file, ..)) = spills(&out).first() {
            node.tell(StoreEvent::SpillDone { file: *file, result: Err(SpillFailure::DiskFull) });
        }
    }
    panic!("a create waits for ever for a full disk");
}

#[test]
fn what_can_not_be_read_back_is_tried_again_and_then_lost() {
    let mut node = with_one_on_disk();
    node.get(7, id(1));
    node.wrote(1);
    for attempt in 1..=RESTORE_ATTEMPTS_MAX {
        let out = node.tell(StoreEvent::RestoreDone { id: id(1), result: Err(RestoreFailure::Again) });
        let lost = out.contains(&StoreEffect::SpilledLost { id: id(1), owner: OWNER });
        assert_eq!(lost, attempt == RESTORE_ATTEMPTS_MAX, "{attempt}: {out:?}");
        node.now += 1000 * MS;
        assert_eq!(restores(&node.tell(StoreEvent::Tick)).is_empty(), lost);
    }
    assert!(node.memory.store().spilled_at(&id(1)).is_none());
}

#[test]
fn what_another_node_wants_is_sent_from_its_file_which_stays_until_then() {
    let mut node = Node::new(|_| {});
    let out: Vec<_> = (1..=4).flat_map(|number| node.put(number, 900 << 10)).collect();
    let (file, ..) = spills(&out)[0];
    node.wrote(file);
    let sender = 77;
    let wants = |node: &mut Node, number| node.tell(StoreEvent::GetToSend { client: sender, token: 8, id: id(number) });
    // In memory still, and so sent from there.
    let out = wants(&mut node, 1);
    assert!(matches!(out[..], [StoreEffect::Got { place: Some(_), .. }]), "{out:?}");
    node.tell(StoreEvent::Release { client: sender, id: id(1) });
    // The other one of the file was used longer ago, and goes.
    let out = node.put(5, 900 << 10);
    let gone = |effect: &StoreEffect| matches!(effect, StoreEffect::ObjectGone { reason: GoneReason::Spilled, .. });
    assert!(out.iter().any(gone) && !node.memory.store().has(&id(2)), "{out:?}");
    let expected = StoreEffect::SpilledAt { client: sender, token: 8, id: id(2), owner: OWNER, file, index: 1 };
    assert_eq!(wants(&mut node, 2), [expected]);
    // Both are freed meanwhile.
    let mut out = node.tell(StoreEvent::Free { id: id(1) });
    out.extend(node.tell(StoreEvent::Free { id: id(2) }));
    let ended = StoreEffect::SpillFileUnneeded { file };
    assert!(!out.contains(&ended), "the file is read: {out:?}");
    assert_eq!(node.tell(StoreEvent::SentSpilled { id: id(2), faulty: false }), [ended]);
    // Nobody sends it any more.
    assert_eq!(node.tell(StoreEvent::SentSpilled { id: id(2), faulty: false }), []);
}

#[test]
fn what_can_not_be_sent_from_its_file_is_read_back_to_memory() {
    let mut node = Node::new(|_| {});
    let out: Vec<_> = (1..=4).flat_map(|number| node.put(number, 900 << 10)).collect();
    node.wrote(spills(&out)[0].0);
    node.put(5, 900 << 10);
    let get = StoreEvent::GetToSend { client: 77, token: 8, id: id(1) };
    assert!(matches!(node.tell(get)[..], [StoreEffect::SpilledAt { .. }]));
    // One at a time, since a client has at most one hold.
    let mut out = node.tell(get);
    out.extend(node.tell(StoreEvent::SentSpilled { id: id(1), faulty: true }));
    out.extend(node.tell(get));
    assert!(!out.iter().any(|effect| matches!(effect, StoreEffect::SpilledAt { .. })), "{out:?}");
    for (file, ..) in spills(&out).into_iter().filter(|spill| spill.3) {
        out.extend(node.wrote(file));
    }
    assert_eq!(restores(&out), [id(1)]);
}
