//! The blocking client against the reference node, on rings and on the socket.

mod reference;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use raylet_transport::client::{Client, ClientError, Event, LeaseEnd, LeaseSpec, Options, Work, Worker};
use raylet_transport::ids::{ObjectId, TaskId, WorkerId};
use raylet_transport::messages::{object_event, topic, Limits, RefusalCode};
use raylet_transport::server::DEFAULT_LIMITS;
use reference::{Config, Reference};

const SHORT: Option<Duration> = Some(Duration::from_millis(50));
const LONG: Option<Duration> = Some(Duration::from_secs(60));

fn every_way() -> [Options; 4] {
    [
        Options::default(),
        Options { ring_lines: None, ..Options::default() },
        Options { credit: false, spin: Duration::ZERO, ..Options::default() },
        Options { busy_poll: true, ring_lines: Some(64), ..Options::default() },
    ]
}

fn connect(node: &Reference, options: &Options) -> Client {
    Client::connect_with(&node.path, options.clone()).unwrap()
}

fn body(n: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (n * 17 + i) as u8).collect()
}

fn code_of<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> RefusalCode {
    outcome.unwrap_err().code().unwrap()
}

#[test]
fn what_is_put_is_got_by_others_whatever_its_size() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let (writer, reader) = (connect(&node, &options), connect(&node, &options));
        assert_eq!(writer.has_ring(), options.ring_lines.is_some());
        for (n, bytes) in [0, 1, 63, 64, 1024, 65_535, 65_536, 65_537, 3 << 20].into_iter().enumerate() {
            let data = body(n, bytes);
            let id = writer.put(&data).unwrap();
            let object = reader.get(id, LONG).unwrap();
            assert_eq!((&object[..], object.metadata()), (&data[..], &[][..]), "{bytes} bytes, {options:?}");
        }
        let id = writer.put_with_metadata(b"data", b"meta").unwrap();
        let object = reader.get(id, LONG).unwrap();
        assert_eq!((object.data(), object.metadata()), (&b"data"[..], &b"meta"[..]));
        assert_eq!(writer.take_failures(), []);
    }
}

#[test]
fn many_small_puts_use_run_after_run() {
    let node = Reference::start(Config::default());
    let client = connect(&node, &Options::default());
    let ids: Vec<ObjectId> = (0..3000).map(|n| client.put(&body(n, 1000)).unwrap()).collect();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(client.get(*id, Some(Duration::ZERO)).unwrap()[..], body(n, 1000), "object {n}");
    }
    assert_eq!(client.list().unwrap().len(), 3000);
    assert_eq!(client.take_failures(), []);
}

#[test]
fn a_node_that_grants_little_gets_larger_objects_singly() {
    let limits = Limits { credit_bytes: 4096, credit_runs: 1, ..DEFAULT_LIMITS };
    let node = Reference::start(Config { limits, ..Config::default() });
    let client = connect(&node, &Options::default());
    for n in 0..40 {
        for bytes in [100, 5000] {
            let id = client.put(&body(n, bytes)).unwrap();
            assert_eq!(client.get(id, LONG).unwrap()[..], body(n, bytes));
        }
    }
    assert_eq!(client.take_failures(), []);
}

#[test]
fn a_full_store_is_an_error_that_says_so() {
    let node = Reference::start(Config::default());
    let client = connect(&node, &Options::default());
    let mut puts = 0;
    let error = loop {
        match client.put(&body(1, 60_000)) {
            Ok(_) => puts += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Some(RefusalCode::StoreFull), "{error}");
    assert!(puts > 800, "{puts} puts of 60 kB into 64 MiB");
    assert!(error.to_string().contains("release and delete"), "it says what to do: {error}");
    assert!(client.contains(ObjectId::NIL).is_ok(), "the connection goes on");
}

#[test]
fn an_object_is_written_in_place_and_appears_with_its_seal() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let (client, reader) = (connect(&node, &options), connect(&node, &options));
        let mut writer = client.create(5000).unwrap();
        let id = writer.id();
        assert_eq!(code_of(reader.get(id, Some(Duration::ZERO))), RefusalCode::UnknownObject);
        assert_eq!(code_of(reader.get(id, SHORT)), RefusalCode::DeadlinePassed);
        writer.copy_from_slice(&body(3, 5000));
        writer.seal().unwrap();
        assert_eq!(reader.get(id, LONG).unwrap()[..], body(3, 5000));
        assert_eq!(code_of(client.create_as(id, 1, 0, None).map(|w| w.id())), RefusalCode::ObjectExists);
    }
}

#[test]
fn a_writer_that_is_dropped_aborts() {
    let node = Reference::start(Config::default());
    let client = connect(&node, &Options::default());
    let id = client.create(100).unwrap().id();
    assert!(!client.contains(id).unwrap());
    client.create_as(id, 200, 0, None).unwrap().seal().unwrap();
    assert!(client.contains(id).unwrap());
}

#[test]
fn a_get_waits_for_the_seal() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let (client, reader) = (connect(&node, &options), connect(&node, &options));
        let mut writer = client.create(4).unwrap();
        let id = writer.id();
        let waiter = std::thread::spawn(move || reader.get(id, LONG).unwrap().to_vec());
        std::thread::sleep(Duration::from_millis(30));
        writer.copy_from_slice(b"late");
        writer.seal().unwrap();
        assert_eq!(waiter.join().unwrap(), b"late");
    }
}

#[test]
fn wait_tells_which_are_there() {
    let node = Reference::start(Config::default());
    let client = connect(&node, &Options::default());
    let absent = ObjectId::of(TaskId([1; 24]), 1);
    let ids = [client.put(b"a").unwrap(), absent, client.put(b"b").unwrap()];
    assert_eq!(client.wait(&ids, 2, LONG).unwrap(), [0, 2]);
    let started = Instant::now();
    assert_eq!(client.wait(&ids, 3, SHORT).unwrap(), [0, 2]);
    assert!(started.elapsed() >= SHORT.unwrap());
    // Longer than a record of the ring: it goes on the socket, and so does its answer.
    let many: Vec<ObjectId> = (0..20_000).map(|n| ids[n % 3]).collect();
    assert_eq!(client.wait(&many, 1, LONG).unwrap().len(), 13_333);
}

#[test]
fn an_object_that_is_held_outlives_its_delete() {
    let node = Reference::start(Config::default());
    let (client, other) = (connect(&node, &Options::default()), connect(&node, &Options::default()));
    let id = client.put(&body(1, 100)).unwrap();
    let (first, second) = (other.get(id, LONG).unwrap(), other.get(id, LONG).unwrap());
    client.delete(id).unwrap();
    assert!(!client.contains(id).unwrap());
    assert_eq!(code_of(client.delete(id)), RefusalCode::UnknownObject);
    drop(first);
    assert_eq!(second[..], body(1, 100));
    assert_eq!(client.list().unwrap().len(), 1);
    drop(second);
    node.settles("the last use ended", |c| c.held.load(Ordering::Relaxed) == 0);
    assert_eq!(client.list().unwrap(), []);
}

#[test]
fn pins_belong_to_their_owner() {
    let node = Reference::start(Config::default());
    let (client, other) = (connect(&node, &Options::default()), connect(&node, &Options::default()));
    let id = client.put(b"x").unwrap();
    assert_eq!(client.pin(other.worker_id(), &[id, ObjectId::NIL]).unwrap(), [true, false]);
    drop(other);
    node.settles("its owner's pin is gone", |c| c.pinned.load(Ordering::Relaxed) == 0);
    client.pin(WorkerId::NIL, &[id]).unwrap();
    node.settles("pinned for the client", |c| c.pinned.load(Ordering::Relaxed) == 1);
    client.unpin(&[id]).unwrap();
    node.settles("unpinned", |c| c.pinned.load(Ordering::Relaxed) == 0);
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let client = connect(&node, &options);
        let keeper = connect(&node, &options);
        let kept = keeper.put(&body(1, 100)).unwrap();
        let held = client.get(kept, LONG).unwrap();
        let begun = client.create(1000).unwrap();
        client.put(b"pinned").unwrap();
        let lease = client.request_lease(&LeaseSpec::new("").resource("CPU", 1.0)).unwrap();
        node.settles("all is there", |c| {
            let loads = [&c.held, &c.unsealed, &c.leased, &c.pinned].map(|n| n.load(Ordering::Relaxed));
            loads == [1, 1, 10_000, 2]
        });
        // As a process that is killed: nothing is given back by the handles.
        std::mem::forget((held, begun, lease));
        let socket_only = connect(&node, &Options { ring_lines: None, ..options.clone() });
        client.close();
        node.settles("all is taken back", |c| {
            let loads = [&c.held, &c.unsealed, &c.leased, &c.pinned].map(|n| n.load(Ordering::Relaxed));
            loads == [0, 0, 0, 1]
        });
        assert!(socket_only.contains(kept).unwrap());
    }
}

#[test]
fn leases_are_granted_as_cpus_are_free() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let client = connect(&node, &options);
        let spec = LeaseSpec::new("").resource("CPU", 1.0);
        let (a, b) = (client.request_lease(&spec).unwrap(), client.request_lease(&spec).unwrap());
        assert_ne!(a.number(), b.number());
        let late = LeaseSpec { wait: SHORT, ..spec.clone() };
        assert_eq!(code_of(client.request_lease(&late).map(|l| l.number())), RefusalCode::DeadlinePassed);
        let waiting = client.clone();
        let waits = spec.clone();
        let third = std::thread::spawn(move || waiting.request_lease(&waits).map(|lease| lease.number()));
        std::thread::sleep(Duration::from_millis(20));
        a.return_().unwrap();
        assert!(third.join().unwrap().is_ok());
        b.return_broken().unwrap();
        assert_eq!(
            code_of(client.request_lease(&LeaseSpec::new("").resource("CPU", 3.0)).map(|l| l.number())),
            RefusalCode::Infeasible
        );
        node.settles("all are back", |c| c.leased.load(Ordering::Relaxed) == 0);
        assert_eq!(client.take_failures(), []);
    }
}

#[test]
fn a_request_for_a_lease_can_be_cancelled_and_waits_for_its_objects() {
    let node = Reference::start(Config::default());
    let client = connect(&node, &Options::default());
    let mut writer = client.create(1).unwrap();
    let spec = LeaseSpec::new("").deps([writer.id()]);
    let number = client.next_lease_number();
    let (waiting, waits) = (client.clone(), spec.clone());
    let request = std::thread::spawn(move || waiting.request_lease(&waits).map(|lease| lease.number()));
    while client.status().unwrap().leases_queued == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(client.cancel_lease(number).unwrap());
    assert!(!client.cancel_lease(number).unwrap());
    assert_eq!(code_of(request.join().unwrap()), RefusalCode::Cancelled);
    let waiting = client.clone();
    let request = std::thread::spawn(move || waiting.request_lease(&spec).map(|lease| lease.number()));
    std::thread::sleep(Duration::from_millis(20));
    assert!(!request.is_finished());
    writer.copy_from_slice(b"d");
    writer.seal().unwrap();
    request.join().unwrap().unwrap();
}

#[test]
fn a_worker_serves_leases() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let worker = Worker::register_with(connect(&node, &options), "square", "here").unwrap();
        let id = worker.id();
        let service = std::thread::spawn(move || {
            for _ in 0..5 {
                let Work::Assigned(work) = worker.next(LONG).unwrap() else { panic!("work was due") };
                let n = work.payload[0];
                let square = work.blocked(|| n * n).unwrap();
                let object = worker.client().put(&[square]).unwrap();
                work.done(0, object.0).unwrap();
                assert!(matches!(worker.next(LONG).unwrap(), Work::Revoked(_)));
            }
            let Work::Assigned(work) = worker.next(LONG).unwrap() else { panic!("work was due") };
            drop(work);
            worker.exit(0, "done").unwrap();
        });
        let client = connect(&node, &options);
        for n in 0..5 {
            let spec = LeaseSpec::new("square").resource("CPU", 1.0).payload([n]);
            let lease = client.request_lease(&spec).unwrap();
            assert_eq!((lease.worker, lease.address.as_str()), (id, "here"));
            lease.keep().unwrap();
            let LeaseEnd::Done { status: 0, result } = lease.wait_done(LONG).unwrap() else { panic!("done was due") };
            let object = ObjectId(result.try_into().unwrap());
            assert_eq!(client.get(object, LONG).unwrap()[..], [n * n]);
            lease.return_().unwrap();
        }
        let lease = client.request_lease(&LeaseSpec::new("square").payload([0])).unwrap();
        assert_eq!(lease.wait_done(LONG).unwrap(), LeaseEnd::Done { status: -1, result: Vec::new() });
        service.join().unwrap();
        let LeaseEnd::Lost(refusal) = lease.wait_done(LONG).unwrap() else { panic!("the worker is gone") };
        assert_eq!(refusal.code, RefusalCode::WorkerDied);
    }
}

#[test]
fn a_lease_that_is_not_used_is_taken_back() {
    let node = Reference::start(Config::default());
    let client = connect(&node, &Options::default());
    let spec = LeaseSpec { unused: SHORT, ..LeaseSpec::new("").resource("CPU", 2.0) };
    let asked = Instant::now();
    let lease = client.request_lease(&spec).unwrap();
    let LeaseEnd::Lost(refusal) = lease.wait_done(LONG).unwrap() else { panic!("it was not used") };
    assert!(asked.elapsed() >= SHORT.unwrap(), "not at once");
    assert_eq!(refusal.code, RefusalCode::Unused);
    assert!(client.request_lease(&spec).is_ok(), "its CPUs are free");
}

#[test]
fn events_come_to_who_asked_for_them() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let (client, watcher) = (connect(&node, &options), connect(&node, &options));
        watcher.subscribe(topic::OBJECTS).unwrap();
        let id = client.put(b"seen").unwrap();
        client.drain(true, "not asked for").unwrap();
        client.delete(id).unwrap();
        let Event::Object(sealed) = watcher.next_event(LONG).unwrap() else { panic!("a seal was due") };
        assert_eq!((sealed.object, sealed.what, sealed.size_bytes), (id, object_event::SEALED, 4));
        let Event::Object(deleted) = watcher.next_event(LONG).unwrap() else { panic!("a delete was due") };
        assert_eq!((deleted.object, deleted.what), (id, object_event::DELETED));
        assert!(matches!(watcher.next_event(Some(Duration::ZERO)), Err(ClientError::TimedOut)));
        assert_eq!(code_of(client.request_lease(&LeaseSpec::new("")).map(|l| l.number())), RefusalCode::Draining);
        assert!(client.status().unwrap().draining);
    }
}

#[test]
fn threads_share_a_client() {
    let node = Reference::start(Config::default());
    for options in every_way() {
        let client = connect(&node, &options);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let client = client.clone();
                std::thread::spawn(move || {
                    for n in 0..150 {
                        let id = client.put(&body(thread * 1000 + n, 300)).unwrap();
                        assert_eq!(client.get(id, LONG).unwrap()[..], body(thread * 1000 + n, 300));
                        client.request_lease(&LeaseSpec::new("").resource("CPU", 0.1)).unwrap().return_().unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(client.take_failures(), []);
    }
    node.settles("nothing is held", |c| c.held.load(Ordering::Relaxed) + c.leased.load(Ordering::Relaxed) == 0);
}

#[test]
fn a_node_that_ends_fails_whoever_waits() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let client = connect(&node, &options);
        let waiter = client.clone();
        let waiting = std::thread::spawn(move || waiter.get(ObjectId::NIL, None).map(drop));
        std::thread::sleep(Duration::from_millis(20));
        drop(node);
        assert!(matches!(waiting.join().unwrap(), Err(ClientError::Closed | ClientError::Io { .. })));
        assert!(client.put(b"x").and_then(|id| client.contains(id)).is_err());
    }
}

#[test]
fn an_idle_node_is_woken_by_its_bell_and_a_busy_one_is_not() {
    let node = Reference::start(Config::default());
    let client = connect(&node, &Options::default());
    let before = node.counters.bells.load(Ordering::Relaxed);
    node.settles("the bell rang", |c| {
        // A busy machine may not have let the node fall asleep before the first question.
        std::thread::sleep(Duration::from_millis(20));
        client.contains(ObjectId::NIL).unwrap();
        c.bells.load(Ordering::Relaxed) > before
    });
    let busy = Reference::start(Config { busy_poll: true, ..Config::default() });
    let client = connect(&busy, &Options::default());
    for _ in 0..1000 {
        client.contains(ObjectId::NIL).unwrap();
    }
    assert_eq!(busy.counters.bells.load(Ordering::Relaxed), 0);
}

#[test]
fn a_thread_that_sleeps_gets_its_answer_though_another_asks_meanwhile() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let client = connect(&node, &options);
        let (told, heard) = std::sync::mpsc::channel();
        let sleeper = client.clone();
        std::thread::spawn(move || {
            for _ in 0..150 {
                let outcome = sleeper.get(ObjectId([9; 28]), Some(Duration::from_millis(1)));
                told.send(code_of(outcome)).unwrap();
            }
        });
        let mut answers = 0;
        let limit = Instant::now() + Duration::from_secs(30);
        while answers < 150 {
            assert!(Instant::now() < limit, "the answer of a sleeping thread is lost after {answers}: {options:?}");
            assert!(!client.contains(ObjectId([8; 28])).unwrap());
            answers += heard.try_iter().inspect(|code| assert_eq!(*code, RefusalCode::DeadlinePassed)).count();
        }
    }
}
