use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use super::layout::{self, body_max_bytes, lines_of};
use super::sync::Ordering;
use super::*;
use crate::frame::Head;

fn pair(lines: u32) -> (Arc<Memory>, Endpoint, Endpoint) {
    let memory = Arc::new(Memory::on_heap(lines));
    let (client, node) = (Endpoint::new(memory.clone(), Side::Client), Endpoint::new(memory.clone(), Side::Node));
    (memory, client, node)
}

fn body_of(n: u32, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (n as usize * 31 + i) as u8).collect()
}

#[test]
fn lengths_make_lines() {
    assert_eq!([0, 1, 48, 49, 104, 105].map(lines_of), [1, 1, 1, 2, 2, 3]);
    assert_eq!(body_max_bytes(64), 48 + 15 * 56);
    assert_eq!(layout::memory_bytes(64), (16 + 128) * 64_u64.next_multiple_of(64) + 3072);
}

#[test]
fn records_go_both_ways() {
    let (_, mut client, mut node) = pair(64);
    let mut record = Record::default();
    assert_eq!(node.pop(&mut record), Ok(false));
    client.push(Head::new(3, 9), b"question").unwrap();
    assert_eq!(node.pop(&mut record), Ok(true));
    assert_eq!((record.head(), record.body()), (Head::new(3, 9), &b"question"[..]));
    node.push(Head::new(130, 9), &body_of(1, 500)).unwrap();
    assert_eq!(client.pop(&mut record), Ok(true));
    assert_eq!((record.head(), record.body()), (Head::new(130, 9), &body_of(1, 500)[..]));
    assert_eq!(client.pop(&mut record), Ok(false));
}

#[test]
fn a_full_ring_refuses_until_it_is_read() {
    let (_, mut client, mut node) = pair(64);
    for n in 0..64 {
        client.push(Head::new(1, n), &[]).unwrap();
    }
    assert_eq!(client.push(Head::new(1, 64), &[]), Err(PushError::Full));
    let mut record = Record::default();
    assert_eq!(node.pop(&mut record), Ok(true));
    // The writer is told after a batch.
    assert_eq!(client.push(Head::new(1, 64), &[]), Err(PushError::Full));
    assert!(!node.must_wake());
    client.push(Head::new(1, 64), &[]).unwrap();
    assert_eq!(client.push(Head::new(1, 65), &[]), Err(PushError::Full));
    for n in 1..=64 {
        assert_eq!(node.pop(&mut record), Ok(true));
        assert_eq!(record.head(), Head::new(1, n));
    }
    assert_eq!(node.pop(&mut record), Ok(false));
}

#[test]
fn a_message_that_never_fits_is_refused_as_such() {
    let (_, mut client, _) = pair(64);
    let limit_bytes = client.body_max_bytes();
    client.push(Head::new(1, 1), &body_of(1, limit_bytes)).unwrap();
    let error = client.push(Head::new(1, 1), &body_of(1, limit_bytes + 1));
    assert_eq!(error, Err(PushError::Long { got_bytes: limit_bytes + 1, limit_bytes }));
}

#[test]
fn only_who_sleeps_is_woken_and_only_once() {
    let (_, mut client, mut node) = pair(64);
    client.push(Head::new(1, 1), &[]).unwrap();
    assert!(!client.must_wake(), "the node is awake");
    assert_eq!(node.announce_sleep(Wake::DATA), Ok(false), "there is a record");
    let mut record = Record::default();
    assert_eq!(node.pop(&mut record), Ok(true));
    assert_eq!(node.announce_sleep(Wake::DATA), Ok(true));
    assert!(!client.must_wake(), "nothing was written");
    client.push(Head::new(1, 2), &[]).unwrap();
    assert!(client.must_wake());
    client.push(Head::new(1, 3), &[]).unwrap();
    assert!(!client.must_wake(), "it was woken before");
}

#[test]
fn who_waits_for_room_is_woken_by_reading_and_not_for_less() {
    let (_, mut client, mut node) = pair(64);
    for n in 0..64 {
        client.push(Head::new(1, n), &[]).unwrap();
    }
    assert_eq!(client.announce_sleep(Wake::DATA), Ok(true));
    let mut record = Record::default();
    assert_eq!(node.pop(&mut record), Ok(true));
    assert!(!node.must_wake(), "it waits for a record, not for room");
    client.push(Head::new(1, 64), &[]).unwrap();
    assert_eq!(client.announce_sleep(Wake { for_data: true, for_space: Some(0) }), Ok(true));
    assert_eq!(node.pop(&mut record), Ok(true));
    assert!(node.must_wake());
    assert_eq!(client.announce_sleep(Wake { for_data: true, for_space: Some(0) }), Ok(false), "there is room");
}

#[test]
fn stamps_go_on_where_32_bits_end() {
    let (memory, mut client, mut node) = pair(64);
    let start = (1u64 << 32) - 32;
    // As if so many lines had gone through: the heads say so, and each line is stamped with the last lap.
    client.sender_mut().at(start);
    node.receiver_mut().at(start);
    memory.lines()[layout::TO_NODE_HEAD_LINE][0].store(start, Ordering::Relaxed);
    for position in start - 64..start {
        let line = &memory.lines()[layout::RINGS_LINE + (position % 64) as usize];
        line[0].store(u64::from((position as u32).wrapping_add(1)), Ordering::Relaxed);
    }
    let mut record = Record::default();
    for n in 0..200 {
        assert_eq!(node.pop(&mut record), Ok(false));
        client.push(Head::new(1, n), &body_of(n, 60)).unwrap();
        assert_eq!(node.pop(&mut record), Ok(true));
        assert_eq!(record.body(), body_of(n, 60));
    }
}

#[test]
fn a_wrong_stamp_condemns_the_ring() {
    let (memory, mut client, mut node) = pair(64);
    client.push(Head::new(1, 1), &[]).unwrap();
    let mut record = Record::default();
    assert_eq!(node.pop(&mut record), Ok(true));
    memory.lines()[layout::RINGS_LINE + 1][0].store(77, Ordering::Relaxed);
    let error = RingError::Stamp { got: 77, expected: 2, or: 0 };
    assert_eq!(node.pop(&mut record), Err(error.clone()));
    memory.lines()[layout::RINGS_LINE + 1][0].store(0, Ordering::Relaxed);
    assert_eq!(node.pop(&mut record), Err(error.clone()), "it stays so");
    assert_eq!(node.push(Head::new(1, 1), &[]), Err(PushError::Ring(error.clone())));
    assert_eq!(node.announce_sleep(Wake::DATA), Err(error));
}

#[test]
fn a_hole_in_the_file_is_a_wrong_stamp() {
    let (memory, mut client, mut node) = pair(64);
    let mut record = Record::default();
    for n in 0..64 {
        client.push(Head::new(1, n), &[]).unwrap();
        assert_eq!(node.pop(&mut record), Ok(true));
    }
    memory.lines()[layout::RINGS_LINE][0].store(0, Ordering::Relaxed);
    assert_eq!(node.pop(&mut record), Err(RingError::Stamp { got: 0, expected: 65, or: 1 }));
}

#[test]
fn a_wrong_length_condemns_the_ring() {
    let (memory, _, mut node) = pair(64);
    memory.lines()[layout::RINGS_LINE][0].store(1 | 5000 << 32, Ordering::Relaxed);
    let limit_bytes = body_max_bytes(64);
    assert_eq!(node.pop(&mut Record::default()), Err(RingError::Length { got_bytes: 5000, limit_bytes }));
}

#[test]
fn a_record_that_lacks_a_line_condemns_the_ring() {
    let (memory, _, mut node) = pair(64);
    memory.lines()[layout::RINGS_LINE][0].store(1 | 100 << 32, Ordering::Relaxed);
    let expected = 2 | (1 << 31 | 1) << 32;
    assert_eq!(node.pop(&mut Record::default()), Err(RingError::Further { got: 0, expected }));
}

#[test]
fn a_reader_that_is_ahead_of_the_writer_or_goes_back_condemns_the_ring() {
    for (claims, got) in [(vec![65], 65), (vec![10, 9], 9), (vec![u64::MAX], u64::MAX)] {
        let (memory, mut client, _) = pair(64);
        let mut error = None;
        for claim in claims {
            memory.lines()[layout::TO_NODE_HEAD_LINE][0].store(claim, Ordering::Relaxed);
            while error.is_none() {
                match client.push(Head::new(1, 1), &body_of(1, 300)) {
                    Ok(()) => {}
                    Err(PushError::Full) => break,
                    Err(other) => error = Some(other),
                }
            }
        }
        assert!(matches!(error, Some(PushError::Ring(RingError::Head { got: g, .. })) if g == got), "{error:?}");
    }
}

/// Two threads, each writing and checking as many records as it reads, in rings that are full most of the time.
#[test]
fn two_threads_see_each_others_records_whole_and_in_order() {
    const RECORDS: u32 = if cfg!(miri) { 200 } else { 10_000 };
    let (_, client, node) = pair(64);
    let run = |mut end: Endpoint| {
        move || {
            let (mut written, mut read) = (0, 0);
            let mut record = Record::default();
            while written < RECORDS || read < RECORDS {
                let mut moved = false;
                if written < RECORDS {
                    let body = body_of(written, (written as usize * 37) % 700);
                    match end.push(Head::new(1, written), &body) {
                        Ok(()) => (written, moved) = (written + 1, true),
                        Err(error) => assert_eq!(error, PushError::Full),
                    }
                }
                if end.pop(&mut record).unwrap() {
                    assert_eq!(record.head(), Head::new(1, read));
                    assert_eq!(record.body(), body_of(read, (read as usize * 37) % 700));
                    (read, moved) = (read + 1, true);
                }
                end.must_wake();
                if !moved {
                    thread::yield_now();
                }
            }
        }
    };
    let other = thread::spawn(run(client));
    run(node)();
    other.join().unwrap();
}

/// The same with sleeps at every chance: no wake-up gets lost.
#[test]
#[cfg(not(miri))]
fn two_threads_that_sleep_wake_each_other() {
    use rustix::event::{poll, PollFd, PollFlags, Timespec};
    use std::os::fd::AsFd;
    const ROUNDS: u32 = 5_000;
    let (mut node, descriptors) = Rings::create(64).unwrap();
    let mut client = Rings::open(64, descriptors).unwrap();
    let wait = |rings: &mut Rings, record: &mut Record| {
        while !rings.endpoint.pop(record).unwrap() {
            if rings.endpoint.announce_sleep(Wake::DATA).unwrap() {
                let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
                let mut fds = [PollFd::from_borrowed_fd(rings.own_bell.as_fd(), PollFlags::IN)];
                assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "a wake-up got lost");
                rings.own_bell.clear();
                rings.endpoint.awake();
            }
        }
    };
    let send = |rings: &mut Rings, n: u32| {
        rings.endpoint.push(Head::new(1, n), &[]).unwrap();
        if rings.endpoint.must_wake() {
            rings.peer_bell.ring();
        }
    };
    let server = thread::spawn(move || {
        let mut record = Record::default();
        for n in 0..ROUNDS {
            wait(&mut node, &mut record);
            assert_eq!(record.head().correlation, n);
            send(&mut node, n);
        }
    });
    let mut record = Record::default();
    for n in 0..ROUNDS {
        send(&mut client, n);
        wait(&mut client, &mut record);
        assert_eq!(record.head().correlation, n);
    }
    server.join().unwrap();
}

#[cfg(not(miri))]
mod files {
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};

    #[test]
    fn a_ring_of_a_wrong_size_is_not_made() {
        for lines in [0, 1, 32, 65, 100, 1 << 17] {
            assert!(matches!(Rings::create(lines), Err(SetupError::Lines { got }) if got == lines));
        }
    }

    #[test]
    fn the_rings_memory_cannot_be_shrunk() {
        let (_rings, [file, ..]) = Rings::create(64).unwrap();
        assert_eq!(rustix::fs::ftruncate(&file, 0), Err(rustix::io::Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&file, 1 << 20), Err(rustix::io::Errno::PERM));
    }

    fn copies(fds: &[OwnedFd; 3]) -> [OwnedFd; 3] {
        fds.each_ref().map(|fd| fd.try_clone().unwrap())
    }

    #[test]
    fn memory_that_is_not_the_rings_is_refused() {
        let (_rings, fds) = Rings::create(64).unwrap();
        let geometry = Rings::open(128, copies(&fds));
        assert!(matches!(geometry, Err(SetupError::Size { .. })));
        let mut others = copies(&fds);
        let open = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&open, layout::memory_bytes(64)).unwrap();
        others[0] = open.try_clone().unwrap();
        assert!(matches!(Rings::open(64, others), Err(SetupError::NotSealed)));
        rustix::fs::fcntl_add_seals(&open, rustix::fs::SealFlags::SHRINK).unwrap();
        let mut others = copies(&fds);
        others[0] = open;
        assert!(matches!(Rings::open(64, others), Err(SetupError::Geometry { got_magic: 0, .. })));
        assert!(Rings::open(64, copies(&fds)).is_ok());
    }

    #[test]
    fn a_bell_rings_until_it_is_cleared() {
        use rustix::event::{poll, PollFd, PollFlags, Timespec};
        let bell = Doorbell::new().unwrap();
        let rings = || {
            let mut fds = [PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
        };
        assert!(!rings());
        bell.ring();
        bell.ring();
        assert!(rings());
        bell.clear();
        assert!(!rings());
        bell.clear();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 3 } else { 256 }, failure_persistence: None, ..Default::default() })]

    /// Whatever a peer writes anywhere, reading and writing end with an answer, and what was read has a length that is allowed.
    #[test]
    fn a_lying_peer_gets_an_error_at_most(
        writes in prop::collection::vec((0usize..(16 + 128), 0usize..8, prop_oneof![any::<u64>(), 0u64..200, (0u64..70).prop_map(|s| s | 48 << 32)]), 1..60),
    ) {
        let (memory, mut client, mut node) = pair(64);
        let mut record = Record::default();
        for (n, (line, word, value)) in writes.into_iter().enumerate() {
            memory.lines()[line][word].store(value, Ordering::Relaxed);
            let _ = client.push(Head::new(1, n as u32), &body_of(n as u32, n * 13 % 900));
            for end in [&mut node, &mut client] {
                if end.pop(&mut record) == Ok(true) {
                    prop_assert!(record.body().len() <= body_max_bytes(64));
                }
                let _ = end.push(Head::new(1, 1), &[]);
                let _ = end.announce_sleep(Wake { for_data: true, for_space: Some(10) });
                end.must_wake();
            }
        }
    }
}
