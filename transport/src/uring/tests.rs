//! The ring on this machine's kernel.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::*;

/// Longest that a test waits for the kernel.
const PATIENCE: Duration = Duration::from_secs(60);

fn socket(ring: &mut CoreRing, key: u64) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ring.receive(key, Rc::new(ours.into()), Receive::Always);
    theirs
}

/// Waits until `done` says so of what came from each socket.
fn collect(ring: &mut CoreRing, done: impl Fn(&FxHashMap<u64, Vec<u8>>, &[u64]) -> bool) -> FxHashMap<u64, Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let (mut came, mut ended) = (FxHashMap::<u64, Vec<u8>>::default(), Vec::new());
    while !done(&came, &ended) {
        assert!(Instant::now() < deadline, "still waiting: {} sockets, {ended:?} ended", came.len());
        ring.wait(Some(deadline), || false).unwrap();
        ring.reap(|completion| match completion {
            Completion::Received { key, bytes } => came.entry(key).or_default().extend_from_slice(bytes),
            Completion::Ended { key, error } => {
                assert!(error.is_none(), "{error:?}");
                ended.push(key);
            }
            other => panic!("nobody asked: {other:?}"),
        });
    }
    came
}

#[test]
fn bytes_arrive_whole_and_in_order_from_many_sockets() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let writers: Vec<_> = (0..20u64)
        .map(|key| {
            let mut stream = socket(&mut ring, key);
            thread::spawn(move || {
                for round in 0..100u32 {
                    let piece = vec![(key as u32 * 31 + round) as u8; 1 + (round as usize * 997) % 40_000];
                    stream.write_all(&piece).unwrap();
                }
            })
        })
        .collect();
    let came = collect(&mut ring, |_, ended| ended.len() == 20);
    for (key, bytes) in came {
        let mut rest = &bytes[..];
        for round in 0..100u32 {
            let (piece, after) = rest.split_at(1 + (round as usize * 997) % 40_000);
            assert!(piece.iter().all(|b| *b == (key as u32 * 31 + round) as u8), "socket {key}, piece {round}");
            rest = after;
        }
        assert!(rest.is_empty());
    }
    for writer in writers {
        writer.join().unwrap();
    }
}

#[test]
fn a_socket_that_is_received_from_once_is_left_alone_until_it_is_asked_again() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let ours: Rc<OwnedFd> = Rc::new(ours.into());
    ring.receive(4, ours.clone(), Receive::Once);
    theirs.write_all(b"first").unwrap();
    let came = collect(&mut ring, |came, _| came.contains_key(&4));
    assert_eq!(came[&4], b"first");
    theirs.write_all(b"second").unwrap();
    drop(theirs);
    for _ in 0..3 {
        ring.wait(Some(Instant::now() + Duration::from_millis(2)), || false).unwrap();
        ring.reap(|completion| panic!("nobody asked again: {completion:?}"));
    }
    ring.receive_again(4);
    let came = collect(&mut ring, |came, _| came.contains_key(&4));
    assert_eq!(came[&4], b"second");
    ring.receive_again(4);
    collect(&mut ring, |_, ended| ended == [4]);
    assert_eq!(Rc::strong_count(&ours), 1, "the ring has let go of the socket");
}

#[test]
fn a_socket_that_is_always_received_from_is_not_armed_twice() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let mut stream = socket(&mut ring, 5);
    ring.poll().unwrap();
    ring.receive_again(5);
    assert!(!ring.has_news(), "nothing is submitted for it");
    stream.write_all(b"once").unwrap();
    let came = collect(&mut ring, |came, _| came.contains_key(&5));
    assert_eq!(came[&5], b"once");
}

#[test]
fn a_burst_larger_than_all_buffers_is_received_in_the_end() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let each = usize::from(RECEIVE_BUFFERS) * RECEIVE_BUFFER_BYTES;
    let mut streams: Vec<_> = (0..8).map(|key| socket(&mut ring, key)).collect();
    let senders: Vec<_> =
        streams.drain(..).map(|mut s| thread::spawn(move || s.write_all(&vec![7; each]).unwrap())).collect();
    let came = collect(&mut ring, |came, ended| ended.len() == 8 && came.len() == 8);
    assert!(came.values().all(|bytes| bytes.len() == each));
    for sender in senders {
        sender.join().unwrap();
    }
}

#[test]
fn the_doorbell_wakes_a_sleeper_every_time_and_nothing_is_missed() {
    let doorbell = Doorbell::new().unwrap();
    let mut ring = CoreRing::new(doorbell.clone()).unwrap();
    let (sender, inbox) = std::sync::mpsc::channel();
    let ringing = thread::spawn(move || {
        for n in 0..2_000u32 {
            sender.send(n).unwrap();
            doorbell.ring();
            if n % 7 == 0 {
                thread::sleep(Duration::from_micros(u64::from(n % 50)));
            }
        }
    });
    let deadline = Instant::now() + PATIENCE;
    let (mut next, mut seen) = (0, None);
    while next < 2_000 {
        assert!(Instant::now() < deadline, "a message lies unseen behind {next}");
        ring.wait(Some(deadline), || {
            seen = inbox.try_recv().ok();
            seen.is_some()
        })
        .unwrap();
        ring.reap(|_| {});
        for n in seen.take().into_iter().chain(inbox.try_iter()) {
            assert_eq!(n, next);
            next += 1;
        }
    }
    ringing.join().unwrap();
}

#[test]
fn a_sleep_ends_in_time_and_an_earlier_one_before_a_later_one() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let start = Instant::now();
    for sleep_ms in [50, 5, 20] {
        let until = Instant::now() + Duration::from_millis(sleep_ms);
        while Instant::now() < until {
            ring.wait(Some(until), || false).unwrap();
            ring.reap(|_| {});
        }
    }
    assert!(start.elapsed() >= Duration::from_millis(75) && start.elapsed() < PATIENCE);
}

#[test]
fn a_time_that_is_waited_for_again_and_again_wakes_once() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let mut stream = socket(&mut ring, 1);
    let until = Instant::now() + Duration::from_millis(60);
    for round in 0..10u8 {
        stream.write_all(&[round]).unwrap();
        ring.wait(Some(until), || false).unwrap();
        ring.reap(|_| {});
    }
    while Instant::now() < until {
        ring.wait(Some(until), || false).unwrap();
        ring.reap(|_| {});
    }
    // Timers of the waits before would end this one, each in turn.
    let later = Instant::now() + Duration::from_millis(20);
    ring.wait(Some(later), || false).unwrap();
    assert!(Instant::now() >= later, "woken by a time that is over");
}

#[test]
fn a_full_socket_is_told_when_it_has_room() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let ours: Rc<OwnedFd> = Rc::new(ours.into());
    ring.receive(9, ours.clone(), Receive::Always);
    let mut sent = 0;
    while let Ok(n) = rustix::net::send(&*ours, &[1; 4096], rustix::net::SendFlags::DONTWAIT) {
        sent += n;
    }
    ring.tell_writable(9);
    ring.poll().unwrap();
    ring.reap(|completion| panic!("too early: {completion:?}"));
    let mut read = vec![0; sent];
    theirs.read_exact(&mut read).unwrap();
    let (mut told, deadline) = (false, Instant::now() + PATIENCE);
    while !told && Instant::now() < deadline {
        ring.wait(Some(deadline), || false).unwrap();
        ring.reap(|completion| told = matches!(completion, Completion::Writable { key: 9 }));
    }
    assert!(told);
}

#[test]
fn a_broken_socket_ends_with_its_error_and_is_let_go() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    let ours: Rc<OwnedFd> = Rc::new(ours.into());
    ring.receive(3, ours.clone(), Receive::Always);
    // Unread data makes the close a reset.
    rustix::net::send(&*ours, b"unread", rustix::net::SendFlags::empty()).unwrap();
    thread::sleep(Duration::from_millis(20));
    drop(peer);
    let (mut ended, deadline) = (None, Instant::now() + PATIENCE);
    while ended.is_none() && Instant::now() < deadline {
        ring.wait(Some(deadline), || false).unwrap();
        ring.reap(|completion| {
            if let Completion::Ended { key: 3, error } = completion {
                ended = Some(error);
            }
        });
    }
    let error = ended.expect("the end is told").expect("a reset is an error");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(Rc::strong_count(&ours), 1, "the ring has let go of the socket");
}

#[test]
fn somebody_else_can_wait_for_the_ring() {
    let doorbell = Doorbell::new().unwrap();
    let mut ring = CoreRing::new(doorbell.clone()).unwrap();
    let mut stream = socket(&mut ring, 1);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    for round in 0..50u8 {
        assert!(ring.begin_wait_on(&event, || false).unwrap(), "nothing is there in round {round}");
        let by_bell = round % 2 == 0;
        if by_bell {
            doorbell.ring();
        } else {
            stream.write_all(&[round]).unwrap();
        }
        rustix::io::read(&event, &mut [0u8; 8]).unwrap();
        ring.end_wait_on().unwrap();
        let mut came = Vec::new();
        ring.reap(|completion| match completion {
            Completion::Received { bytes, .. } => came.extend_from_slice(bytes),
            other => panic!("{other:?}"),
        });
        assert_eq!(came, if by_bell { vec![] } else { vec![round] });
    }
    assert!(!ring.begin_wait_on(&event, || true).unwrap());
    ring.end_wait_on().unwrap();
}

fn bell() -> Rc<OwnedFd> {
    Rc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
}

/// Waits until a bell was rung, and silences it.
fn hear(ring: &mut CoreRing, bell: &OwnedFd) -> Vec<u64> {
    let (deadline, mut heard) = (Instant::now() + PATIENCE, Vec::new());
    while heard.is_empty() {
        assert!(Instant::now() < deadline, "the bell is never heard");
        ring.wait(Some(deadline), || false).unwrap();
        ring.reap(|completion| match completion {
            Completion::Bell { key } => heard.push(key),
            other => panic!("{other:?}"),
        });
    }
    rustix::io::read(bell, &mut [0; 8]).unwrap();
    heard
}

#[test]
fn a_watched_bell_is_heard_each_time_until_it_is_forgotten() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let bell = bell();
    ring.watch_bell(7, bell.clone());
    for _ in 0..3 {
        rustix::io::write(&*bell, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(hear(&mut ring, &bell)[0], 7);
    }
    ring.forget_bell(7);
    ring.poll().unwrap();
    rustix::io::write(&*bell, &1u64.to_ne_bytes()).unwrap();
    ring.wait(Some(Instant::now() + Duration::from_millis(20)), || false).unwrap();
    ring.reap(|completion| panic!("{completion:?}"));
    assert_eq!(Rc::strong_count(&bell), 1, "the ring has let go of it");
}

#[test]
fn a_bell_whose_counter_a_peer_has_filled_holds_nobody_up() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let blocking = Rc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let deadline = Instant::now() + PATIENCE;
    ring.ring_bell(1, blocking.clone());
    let is_rung = || {
        let mut polled = [rustix::event::PollFd::new(&*blocking, rustix::event::PollFlags::IN)];
        let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&none)).unwrap() == 1
    };
    while !is_rung() {
        assert!(Instant::now() < deadline, "the bell is never rung");
        ring.poll().unwrap();
        ring.reap(|completion| panic!("{completion:?}"));
    }
    rustix::io::read(&*blocking, &mut [0; 8]).unwrap();
    rustix::io::write(&*blocking, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    for _ in 0..3 {
        ring.ring_bell(1, blocking.clone());
        ring.poll().unwrap();
        ring.reap(|completion| panic!("{completion:?}"));
    }
    ring.forget_bell(1);
    while Rc::strong_count(&blocking) > 1 {
        assert!(Instant::now() < deadline, "the ring keeps the bell");
        ring.wait(Some(Instant::now() + Duration::from_millis(5)), || false).unwrap();
        ring.reap(|completion| panic!("{completion:?}"));
    }
}

#[test]
fn news_are_seen_without_a_system_call() {
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let mut stream = socket(&mut ring, 3);
    ring.poll().unwrap();
    assert!(!ring.has_news());
    stream.write_all(b"x").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !ring.has_news() {
        assert!(Instant::now() < deadline, "bytes that came are never seen");
    }
    let came = collect(&mut ring, |came, _| came.contains_key(&3));
    assert_eq!(came[&3], b"x");
}

/// What is sent without a copy is read from the memory until that is said; until then nobody may write there.
#[test]
fn a_send_without_a_copy_says_when_the_memory_is_read_no_longer() {
    use std::io::Read;
    let mut ring = CoreRing::new(Doorbell::new().unwrap()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sender = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let (len, socket) = (300_000u32, Rc::new(OwnedFd::from(sender)));
    let buffer = PageBuffer::new(len as usize).unwrap();
    assert!(buffer.write(0, &vec![7; len as usize]));
    let memory: Rc<dyn IoMemory> = Rc::new(buffer);
    ring.begin(9, FileOperation::Send { socket, memory: memory.clone(), offset: 0, len, zero_copy: Some(4) });
    let (deadline, mut told) = (Instant::now() + PATIENCE, Vec::new());
    let reader = thread::spawn(move || {
        let mut came = vec![0; len as usize];
        receiver.read_exact(&mut came).map(|()| came)
    });
    while told.len() < 2 {
        assert!(Instant::now() < deadline, "still waiting: {told:?}");
        ring.wait(Some(deadline), || false).unwrap();
        ring.reap(|completion| match completion {
            Completion::Sent { key: 9, result: Ok(sent) } => told.push(u64::from(sent)),
            Completion::Released { key: 9, number } => told.push(number),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(told, [u64::from(len), 4], "first that it is sent, then that it is read no longer");
    assert_eq!(Rc::strong_count(&memory), 1, "the ring has let go of it");
    assert!(reader.join().unwrap().unwrap().iter().all(|byte| *byte == 7));
}
