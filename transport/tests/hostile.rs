//! Peers that don't keep to the protocol, on either side.

mod reference;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use raylet_transport::client::{Client, ClientError, Options};
use raylet_transport::fds;
use raylet_transport::frame::{BodyWriter, Decoder, Encoder, Head, BODY_MAX_BYTES};
use raylet_transport::ids::ObjectId;
use raylet_transport::messages::*;
use raylet_transport::ring::{PushError, Rings};
use raylet_transport::server::DEFAULT_LIMITS;
use reference::{Config, Reference};

fn hello() -> Hello {
    Hello { magic: HELLO_MAGIC, capabilities: capability::ALL, version_min: 1, version_max: 1, pid: 1 }
}

/// A client by hand.
struct Raw(UnixStream, Decoder);

impl Raw {
    fn connect(node: &Reference) -> Self {
        let stream = UnixStream::connect(&node.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(stream, Decoder::new(BODY_MAX_BYTES))
    }

    fn greeted(node: &Reference) -> Self {
        let mut raw = Self::connect(node);
        raw.say(Head::new(Hello::TYPE, 1), &hello());
        assert!(matches!(raw.hear(), Some((_, OwnedReply::Welcome(_)))));
        raw
    }

    fn say<M: Message>(&mut self, head: Head, message: &M) {
        let mut encoder = Encoder::new(BODY_MAX_BYTES);
        encoder.frame(head, message).unwrap();
        self.0.write_all(encoder.unsent().bytes).unwrap();
    }

    /// The next message; `None`: the node has closed.
    fn hear(&mut self) -> Option<(Head, OwnedReply)> {
        loop {
            if let Some(frame) = self.1.next_frame().unwrap() {
                return Some((frame.head, Reply::read(frame.head, frame.body).unwrap().to_owned().unwrap()));
            }
            let got = self.0.read(self.1.room()).ok().filter(|got| *got > 0)?;
            self.1.filled(got);
        }
    }

    /// Asks through the ring until the node has written more than the ring holds, so that it has to look at the client's head.
    fn fill_ring(&mut self, node: &Reference, descriptors: VecDeque<OwnedFd>) {
        let [file, node_bell, client_bell] = Vec::from(descriptors).try_into().unwrap();
        let mut rings = Rings::open(64, [file, node_bell, client_bell]).unwrap();
        let before = node.counters.requests.load(Ordering::Relaxed);
        let mut body = BodyWriter::default();
        let body = body.body(&Contains { object: ObjectId::NIL }).unwrap();
        for n in 0..80 {
            while let Err(PushError::Full) = rings.endpoint.push(Head::new(Contains::TYPE, n + 10), body) {
                if node.counters.broken_rings.load(Ordering::Relaxed) > 1 {
                    return;
                }
                std::thread::yield_now();
            }
            rings.peer_bell.ring();
        }
        assert!(node.counters.requests.load(Ordering::Relaxed) >= before);
    }

    fn refusal(&mut self) -> (u32, RefusalCode) {
        match self.hear() {
            Some((head, OwnedReply::Refused(refused))) => (head.correlation, RefusalCode::from_wire(refused.code)),
            other => panic!("a refusal was due, got {other:?}"),
        }
    }
}

#[test]
fn who_does_not_say_hello_is_told_and_sent_away() {
    let node = Reference::start(Config::default());
    let mut raw = Raw::connect(&node);
    raw.say(Head::new(Contains::TYPE, 1), &Contains { object: ObjectId::NIL });
    assert_eq!(raw.refusal().0, 0);
    assert!(raw.hear().is_none());
    let mut raw = Raw::connect(&node);
    raw.say(Head::new(Hello::TYPE, 1), &Hello { version_min: 2, version_max: 9, ..hello() });
    assert_eq!(raw.refusal(), (1, RefusalCode::Version));
    raw.say(Head::new(Hello::TYPE, 2), &Hello { magic: 1, ..hello() });
    assert_eq!(raw.refusal(), (2, RefusalCode::NotHello));
}

#[test]
fn a_message_that_cannot_be_read_is_refused_and_the_stream_goes_on() {
    let node = Reference::start(Config::default());
    let mut raw = Raw::greeted(&node);
    raw.say(Head::new(999, 5), &Contains { object: ObjectId::NIL });
    assert_eq!(raw.refusal(), (5, RefusalCode::UnknownType));
    raw.say(Head { version: 2, ..Head::new(Contains::TYPE, 6) }, &Contains { object: ObjectId::NIL });
    assert_eq!(raw.refusal(), (6, RefusalCode::Version));
    raw.say(Head::new(Wait::TYPE, 7), &Contains { object: ObjectId::NIL });
    assert_eq!(raw.refusal(), (7, RefusalCode::Malformed));
    raw.say(Head::new(Contains::TYPE, 8), &Contains { object: ObjectId::NIL });
    assert!(matches!(raw.hear(), Some((head, OwnedReply::Contained(_))) if head.correlation == 8));
}

#[test]
fn a_stream_out_of_step_is_closed() {
    let node = Reference::start(Config::default());
    for garbage in [&[0xffu8; 64][..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &u64::MAX.to_le_bytes().repeat(4)] {
        let mut raw = Raw::greeted(&node);
        raw.0.write_all(garbage).unwrap();
        assert_eq!(raw.refusal().0, 0);
        assert!(raw.hear().is_none());
    }
    node.settles("all are gone", |c| c.connections.load(Ordering::Relaxed) == 0);
}

/// The first line of the ring to the node, and the line with the client's head.
const RING_OFFSET: u64 = 16 * 64;
const HEAD_OFFSET: u64 = 6 * 64;

#[test]
fn a_ring_in_disorder_ends_its_connection_and_no_other() {
    let node = Reference::start(Config::default());
    let good = Client::connect(&node.path).unwrap();
    let id = good.put(b"good").unwrap();
    for (offset, bytes) in [(RING_OFFSET, [0xee; 64]), (HEAD_OFFSET, [0xee; 64])] {
        let mut raw = Raw::greeted(&node);
        raw.say(Head::new(OpenRing::TYPE, 2), &OpenRing { lines: 64 });
        let mut descriptors = VecDeque::new();
        raw.0.set_nonblocking(false).unwrap();
        let got = loop {
            if let Some(got) = fds::receive(&raw.0, raw.1.room(), &mut descriptors).unwrap() {
                break got;
            }
        };
        raw.1.filled(got);
        assert!(matches!(raw.hear(), Some((_, OwnedReply::RingOpened(RingOpened { lines: 64 })))));
        assert_eq!(descriptors.len(), 3);
        assert_eq!(rustix::io::pwrite(&descriptors[0], &bytes, offset).unwrap(), 64);
        // Whatever the node writes next meets the false head; a false line it sees by itself.
        rustix::io::write(&descriptors[1], &1u64.to_ne_bytes()).unwrap();
        if offset == HEAD_OFFSET {
            raw.fill_ring(&node, descriptors);
        }
        let (correlation, code) = raw.refusal();
        assert_eq!((correlation, code), (0, RefusalCode::RingBroken));
        assert!(raw.hear().is_none());
    }
    node.settles("they are gone", |c| c.connections.load(Ordering::Relaxed) == 1);
    assert_eq!(node.counters.broken_rings.load(Ordering::Relaxed), 2);
    assert_eq!(good.get(id, Some(Duration::from_secs(60))).unwrap()[..], *b"good");
}

#[test]
fn a_false_publish_is_refused_and_creates_nothing() {
    let node = Reference::start(Config::default());
    let mut raw = Raw::greeted(&node);
    raw.say(Head::new(RequestCredit::TYPE, 1), &RequestCredit { size_bytes: 4096 });
    let Some((_, OwnedReply::CreditGranted(granted))) = raw.hear() else { panic!("credit was due") };
    let publish = |offset_bytes, data_bytes| Publish {
        object: ObjectId([3; 28]),
        credit: granted.credit,
        offset_bytes,
        data_bytes,
        metadata_bytes: 0,
        pin: true,
    };
    raw.say(Head::new(Publish::TYPE, 2).one_way(), &publish(64, 10));
    assert_eq!(raw.refusal(), (2, RefusalCode::BadPublish));
    raw.say(Head::new(Publish::TYPE, 3), &publish(0, 10));
    assert_eq!(raw.refusal(), (3, RefusalCode::UnknownCredit), "the run is lost");
    node.settles("no byte is used", |c| c.used_bytes.load(Ordering::Relaxed) == 0);
}

#[test]
fn a_client_that_never_reads_is_served_no_further() {
    let limits = Limits { in_flight: 8, ..DEFAULT_LIMITS };
    let node = Reference::start(Config { limits, ..Config::default() });
    let mut raw = Raw::greeted(&node);
    for n in 0..100 {
        raw.say(Head::new(Get::TYPE, n + 1), &Get { object: ObjectId::NIL, timeout_ns: FOREVER_NS });
    }
    // The greeting and eight.
    node.settles("eight are read", |c| c.requests.load(Ordering::Relaxed) >= 9);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(node.counters.requests.load(Ordering::Relaxed), 9);
    let good = Client::connect(&node.path).unwrap();
    assert!(!good.contains(ObjectId::NIL).unwrap());
}

#[test]
fn a_ring_whose_client_does_not_read_keeps_its_answers_until_it_does() {
    let node = Reference::start(Config::default());
    let client = Client::connect_with(&node.path, Options { ring_lines: Some(64), ..Options::default() }).unwrap();
    // Each thread asks and waits; the ring of 64 lines holds the answers of few.
    let ids: Vec<ObjectId> = (0..50).map(|n| client.put(&[n; 10]).unwrap()).collect();
    let lists: Vec<_> = (0..32)
        .map(|_| {
            let client = client.clone();
            std::thread::spawn(move || client.list().unwrap().len())
        })
        .collect();
    lists.into_iter().for_each(|list| assert_eq!(list.join().unwrap(), ids.len()));
}

/// A node by hand, for one client.
fn node_that(answer: impl FnOnce(&mut UnixStream) + Send + 'static) -> Result<Client, ClientError> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let node = std::thread::spawn(move || {
        let mut decoder = Decoder::default();
        while decoder.next_frame().unwrap().is_none() {
            let got = theirs.read(decoder.room()).unwrap();
            decoder.filled(got);
        }
        answer(&mut theirs);
    });
    let client = Client::on_stream(ours, Options { ring_lines: None, ..Options::default() });
    node.join().unwrap();
    client
}

fn frame<M: Message>(correlation: u32, message: &M) -> Vec<u8> {
    let mut encoder = Encoder::new(BODY_MAX_BYTES);
    encoder.frame(Head::new(M::TYPE, correlation), message).unwrap();
    encoder.unsent().bytes.to_vec()
}

#[test]
fn a_node_that_answers_nonsense_is_an_error() {
    let refused = |code: RefusalCode| Refused { code: code.to_wire(), detail: "because".to_owned() };
    let outcome = node_that(move |node| node.write_all(&frame(1, &refused(RefusalCode::Version))).unwrap());
    assert_eq!(outcome.err().unwrap().code(), Some(RefusalCode::Version));
    let outcome = node_that(move |node| node.write_all(&frame(0, &refused(RefusalCode::Stopping))).unwrap());
    assert!(matches!(outcome.err().unwrap(), ClientError::ClosedByNode(_)));
    let outcome = node_that(|node| node.write_all(&frame(1, &Done { count: 0 })).unwrap());
    assert!(matches!(outcome.err().unwrap(), ClientError::Unexpected { expected: "Welcome", .. }));
    let outcome = node_that(|node| node.write_all(&frame(77, &Done { count: 0 })).unwrap());
    assert!(matches!(outcome.err().unwrap(), ClientError::Unexpected { .. }));
    let outcome = node_that(|node| node.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap());
    assert!(matches!(outcome.err().unwrap(), ClientError::Frame(_)));
    let outcome = node_that(|node| node.write_all(&frame(1, &Done { count: 0 })[..20]).unwrap());
    assert!(matches!(outcome.err().unwrap(), ClientError::Frame(_)));
    let outcome = node_that(|_| {});
    assert!(matches!(outcome.err().unwrap(), ClientError::Closed));
}
