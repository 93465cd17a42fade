//! The native door of a running node, through the client library: on the socket, on rings, with one core and with two.

mod native_support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use native_support::{eventually, Node};
use raylet_transport::client::{Client, ClientError, Event, Lease, LeaseEnd, LeaseSpec, Options, Work, Worker};
use raylet_transport::ids::{ObjectId, WorkerId};
use raylet_transport::messages::{node_event, object_event, topic, RefusalCode};

const SECOND: Option<Duration> = Some(Duration::from_secs(20));

/// A test on every way that a client can work: socket or rings, with credit or without, and nodes of one and two cores.
fn everywhere(test: impl Fn(&Node, &dyn Fn() -> Client)) {
    let socket = Options { ring_lines: None, ..Options::default() };
    let plain = Options { credit: false, ..socket.clone() };
    for cores in ["0", "0-1"] {
        let node = Node::start(&["--cores", cores, "--resources", "CPU=4,GPU=2,disk=1.5"]);
        for options in [Options::default(), socket.clone(), plain.clone()] {
            test(&node, &|| Client::connect_with(node.socket(), options.clone()).expect("a connection"));
        }
        node.stop();
    }
}

fn code(error: ClientError) -> RefusalCode {
    error.code().unwrap_or_else(|| panic!("not a refusal: {error}"))
}

fn lost(lease: &Lease) -> RefusalCode {
    match lease.wait_done(SECOND).unwrap() {
        LeaseEnd::Lost(refusal) => refusal.code,
        done => panic!("expected the loss of {lease:?}, got {done:?}"),
    }
}

#[test]
fn objects_are_put_and_got_by_other_clients_and_go_when_they_are_deleted() {
    everywhere(|node, connect| {
        let (writer, reader) = (connect(), connect());
        let mut ids = Vec::new();
        for size in [0usize, 1, 63, 64, 1024, 65_535, 65_536, 1 << 20, 9 << 20] {
            let bytes: Vec<u8> = (0..size).map(|at| (at * 31 + size) as u8).collect();
            ids.push((writer.put(&bytes).unwrap(), bytes));
        }
        for (id, bytes) in &ids {
            let object = reader.get(*id, SECOND).unwrap();
            assert!(object[..] == bytes[..], "{} bytes", bytes.len());
            assert!(writer.contains(*id).unwrap());
            writer.delete(*id).unwrap();
            assert!(object[..] == bytes[..], "still there while it is used");
            drop(object);
            eventually("it is gone", || !reader.contains(*id).unwrap());
        }
        assert_eq!(code(reader.get(ids[0].0, Some(Duration::ZERO)).unwrap_err()), RefusalCode::UnknownObject);
        drop((writer, reader));
        node.is_empty();
    });
}

#[test]
fn a_get_and_a_wait_see_what_is_sealed_later() {
    everywhere(|_, connect| {
        let (writer, reader) = (connect(), connect());
        let id = ObjectId([7; 28]);
        std::thread::scope(|scope| {
            let got = scope.spawn(|| reader.get(id, SECOND).unwrap().to_vec());
            let mut object = writer.create_as(id, 5, 0, None).unwrap();
            object.copy_from_slice(b"later");
            object.seal().unwrap();
            assert_eq!(got.join().unwrap(), b"later");
        });
        let here = writer.put(b"x").unwrap();
        let absent = ObjectId([8; 28]);
        assert_eq!(reader.wait(&[absent, here, id], 2, SECOND).unwrap(), [1, 2]);
        assert_eq!(reader.wait(&[absent, here, id], 3, Some(Duration::from_millis(20))).unwrap(), [1, 2]);
        assert_eq!(reader.wait(&[absent, here], 2, Some(Duration::ZERO)).unwrap(), [1]);
        assert_eq!(code(reader.get(absent, Some(Duration::from_millis(20))).unwrap_err()), RefusalCode::DeadlinePassed);
        for id in [id, here] {
            writer.delete(id).unwrap();
        }
    });
}

#[test]
fn what_is_wrong_with_an_object_is_said() {
    everywhere(|_, connect| {
        let (first, second) = (connect(), connect());
        let id = ObjectId([9; 28]);
        let object = first.create_as(id, 10, 4, None).unwrap();
        assert_eq!(code(second.create_as(id, 1, 0, None).unwrap_err()), RefusalCode::ObjectExists);
        drop(object);
        eventually("an object given up can be made again", || second.create_as(id, 1, 0, None).is_ok());
        assert_eq!(code(first.delete(ObjectId([1; 28])).unwrap_err()), RefusalCode::UnknownObject);
        assert_eq!(code(first.create(1 << 40).unwrap_err()), RefusalCode::StoreFull);
    });
}

#[test]
fn pins_keep_objects_until_their_owner_is_gone() {
    everywhere(|node, connect| {
        let (owner, other) = (connect(), connect());
        let id = other.put(b"kept").unwrap();
        // A put is not waited for by itself; a get of it is.
        drop(owner.get(id, SECOND).unwrap());
        assert_eq!(owner.pin(WorkerId::NIL, &[id, ObjectId([3; 28])]).unwrap(), [true, false]);
        other.delete(id).unwrap();
        assert!(other.contains(id).unwrap(), "pinned");
        drop(owner);
        eventually("the pin ends with its owner", || !other.contains(id).unwrap());
        drop(other);
        node.is_empty();
    });
}

#[test]
fn pins_for_another_client_end_with_it_whichever_core_serves_it() {
    everywhere(|node, connect| {
        let (asker, reader) = (connect(), connect());
        // Connections go to the cores in turn: of two in a row one is on the asker's core and one is not.
        let owners = [connect(), connect()];
        for owner in &owners {
            let id = asker.put_unpinned(b"kept for another").unwrap();
            drop(asker.get(id, SECOND).unwrap());
            assert_eq!(asker.pin(owner.worker_id(), &[ObjectId([3; 28]), id]).unwrap(), [false, true]);
            assert_eq!(asker.pin(owner.worker_id(), &[]).unwrap(), [] as [bool; 0]);
            asker.delete(id).unwrap();
            assert!(reader.contains(id).unwrap(), "pinned");
            owner.unpin(&[id]).unwrap();
            eventually("the owner gave it up", || !reader.contains(id).unwrap());
        }
        let ids: Vec<_> = owners.iter().map(|_| asker.put_unpinned(b"kept to the end").unwrap()).collect();
        let names: Vec<_> = owners.iter().map(|owner| owner.worker_id()).collect();
        for (id, name) in ids.iter().zip(&names) {
            drop(asker.get(*id, SECOND).unwrap());
            assert_eq!(asker.pin(*name, &[*id]).unwrap(), [true]);
            asker.delete(*id).unwrap();
        }
        drop(owners);
        for (id, name) in ids.iter().zip(&names) {
            eventually("the pin ends with its owner", || !reader.contains(*id).unwrap());
            let refused = asker.pin(*name, &[*id]).map_err(code);
            assert_eq!(refused, Err(RefusalCode::UnknownOwner));
        }
        assert_eq!(asker.pin(WorkerId([9; 28]), &[]).map_err(code), Err(RefusalCode::UnknownOwner));
        drop((asker, reader));
        node.is_empty();
    });
}

/// The files of spilled objects below a directory that nodes spill to.
fn spilled_files(parent: &Path) -> Vec<PathBuf> {
    let files_of = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_spilled = |path: &PathBuf| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let nodes = std::fs::read_dir(parent).expect("a directory").flatten();
    nodes.flat_map(|node| files_of(node.path())).filter(is_spilled).collect()
}

/// A node of 32 MiB that spills to `dir`.
fn spilling(cores: &str, dir: &Path) -> Node {
    Node::start(&["--cores", cores, "--object-store-memory", "32M", "--spill-dir", dir.to_str().unwrap()])
}

/// What `raylet-uring top` shows of a node, after two looks.
fn top(node: &Node) -> String {
    let socket = node.socket();
    let nodes = socket.parent().expect("a directory").join("run");
    let mut program = Command::new(env!("CARGO_BIN_EXE_raylet-uring"));
    program.args(["top", "--once", "--interval", "0.1"]).env("RAYLET_URING_RUNTIME_DIR", nodes);
    let output = program.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it is text")
}

fn content(size_bytes: usize, seed: usize) -> Vec<u8> {
    let mut bytes = vec![0; size_bytes];
    bytes.chunks_mut(512).enumerate().for_each(|(at, chunk)| chunk.fill((at * 7 + seed) as u8));
    bytes
}

/// Three times what fits, large objects and small ones.
fn put_three_times_the_store(client: &Client) -> Vec<(ObjectId, Vec<u8>)> {
    let sizes = (0..48).flat_map(|_| [2 << 20, 1000, 70_000, 1]);
    let contents = sizes.enumerate().map(|(seed, size_bytes)| content(size_bytes, seed));
    contents.map(|bytes| (client.put(&bytes).unwrap(), bytes)).collect()
}

#[test]
fn what_owners_keep_goes_to_disk_when_the_store_is_full_and_comes_back() {
    for cores in ["0", "0-1"] {
        let dir = tempfile::tempdir().unwrap();
        let node = spilling(cores, dir.path());
        let connect = || Client::connect(node.socket()).unwrap();
        let (owner, reader) = (connect(), connect());
        let put = put_three_times_the_store(&owner);
        assert!(!spilled_files(dir.path()).is_empty(), "more than fits is kept");
        let ids: Vec<_> = put.iter().map(|(id, _)| *id).collect();
        assert_eq!(reader.wait(&ids, ids.len(), Some(Duration::ZERO)).unwrap().len(), ids.len());
        for (at, (id, bytes)) in put.iter().enumerate() {
            // What is on disk is there, also for who asks for an answer now.
            let timeout = if at % 2 == 0 { SECOND } else { Some(Duration::ZERO) };
            assert!(reader.get(*id, timeout).unwrap()[..] == bytes[..], "object {at}");
        }
        let screen = top(&node);
        let rows: Vec<Vec<&str>> = screen.lines().map(|line| line.split_whitespace().collect()).collect();
        for flow in ["\u{2502}spilled", "\u{2502}restored"] {
            let row = rows.iter().find(|row| row.first() == Some(&flow)).unwrap_or_else(|| panic!("{flow}: {screen}"));
            let (amount, unit): (f64, &str) = (row[3].parse().unwrap(), row[4]);
            // Of 98 MiB in a store of 32 at least 64 MiB have to be away.
            assert!(amount >= 64.0 && unit == "MiB", "{screen}");
        }
        for (at, id) in ids.iter().enumerate() {
            // Its owner's own word is enough, whether it is on disk or not; another's is not.
            if at % 5 == 0 {
                reader.delete(*id).unwrap();
                assert!(reader.contains(*id).unwrap(), "kept by its owner");
            }
            owner.delete(*id).unwrap();
            assert_eq!(code(owner.get(*id, Some(Duration::ZERO)).unwrap_err()), RefusalCode::UnknownObject);
        }
        eventually("the files go with their objects", || spilled_files(dir.path()).is_empty());
        // What an owner kept ends with it, on disk too.
        let pinned = put_three_times_the_store(&owner);
        assert_eq!(reader.pin(WorkerId::NIL, &[pinned[0].0]).unwrap(), [true]);
        drop(owner);
        eventually("nothing else is kept", || spilled_files(dir.path()).len() <= 1);
        assert!(reader.get(pinned[0].0, SECOND).unwrap()[..] == pinned[0].1[..]);
        drop(reader);
        eventually("no file is left", || spilled_files(dir.path()).is_empty());
        node.stop();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its directory goes with the node");
    }
}

#[test]
fn a_kept_object_whose_file_was_changed_is_never_read_wrong_and_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = spilling("0", dir.path());
    let owner = Client::connect(node.socket()).unwrap();
    let put = put_three_times_the_store(&owner);
    for path in spilled_files(dir.path()) {
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, vec![0xa5; bytes.len()]).unwrap();
    }
    let mut lost = 0;
    for (id, bytes) in &put {
        match owner.get(*id, None) {
            Ok(object) => assert!(object[..] == bytes[..], "never a wrong byte"),
            Err(error) => {
                assert_eq!(code(error), RefusalCode::UnknownObject);
                lost += 1;
            }
        }
    }
    assert!(lost > 0, "files were changed");
    // The node goes on.
    let again = owner.put(b"again").unwrap();
    assert_eq!(owner.get(again, SECOND).unwrap()[..], b"again"[..]);
    put.iter().for_each(|(id, _)| drop(owner.delete(*id)));
    owner.delete(again).unwrap();
    drop(owner);
    node.is_empty();
}

#[test]
fn leases_share_the_nodes_resources() {
    everywhere(|node, connect| {
        let (first, second) = (connect(), connect());
        let cpus = LeaseSpec::new("").resource("CPU", 4.0);
        let lease = first.request_lease(&cpus).unwrap();
        assert_eq!(lease.worker, WorkerId::NIL);
        let mut late = cpus.clone();
        late.wait = Some(Duration::from_millis(50));
        assert_eq!(code(second.request_lease(&late).unwrap_err()), RefusalCode::DeadlinePassed);
        lease.return_().unwrap();
        let again = second.request_lease(&cpus).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| first.request_lease(&cpus).map(|lease| lease.return_()));
            drop(again);
            waits.join().unwrap().unwrap().unwrap();
        });
        let gpus = first.request_lease(&LeaseSpec::new("").resource("GPU", 2.0)).unwrap();
        let mut instances: Vec<u16> = gpus.allocation.iter().flat_map(|part| part.instances.clone()).collect();
        instances.sort_unstable();
        assert_eq!(instances, [0, 1]);
        drop((gpus, first));
        assert!(second.request_lease(&LeaseSpec::new("").resource("GPU", 2.0)).is_ok(), "given back");
        let impossible = LeaseSpec::new("").resource("CPU", 5.0);
        assert_eq!(code(second.request_lease(&impossible).unwrap_err()), RefusalCode::Infeasible);
        drop(second);
        node.is_empty();
    });
}

#[test]
fn a_lease_waits_for_its_objects_and_goes_when_it_is_not_used() {
    everywhere(|_, connect| {
        let (owner, maker) = (connect(), connect());
        let id = ObjectId([21; 28]);
        let mut spec = LeaseSpec::new("").resource("CPU", 1.0);
        spec.deps = vec![id];
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| owner.request_lease(&spec).map(|lease| lease.return_()));
            let object = maker.create_as(id, 1, 0, None).unwrap();
            assert!(!waits.is_finished());
            object.seal().unwrap();
            waits.join().unwrap().unwrap().unwrap();
        });
        maker.delete(id).unwrap();
        let mut unused = LeaseSpec::new("").resource("CPU", 4.0);
        unused.unused = Some(Duration::from_millis(30));
        let lease = owner.request_lease(&unused).unwrap();
        assert!(maker.request_lease(&LeaseSpec::new("").resource("CPU", 4.0)).is_ok(), "taken back");
        assert_eq!(lost(&lease), RefusalCode::Unused);
    });
}

#[test]
fn workers_do_what_leases_are_for_on_whatever_core_they_are() {
    everywhere(|node, connect| {
        let workers: Vec<_> = (0..3)
            .map(|n| {
                let worker = Worker::register_with(connect(), "square", &format!("here:{n}")).unwrap();
                std::thread::spawn(move || loop {
                    match worker.next(SECOND).unwrap() {
                        Work::Assigned(work) => {
                            let n = work.payload.first_chunk().map_or(0, |n| u64::from_le_bytes(*n));
                            work.done(0, (n * n).to_le_bytes()).unwrap();
                        }
                        Work::Revoked(_) => {}
                        Work::Stop { detail, .. } => return assert!(detail.contains("Disconnected"), "{detail}"),
                    }
                })
            })
            .collect();
        let clients = [connect(), connect()];
        for n in 0..60u64 {
            let mut spec = LeaseSpec::new("square").resource("CPU", 0.5);
            spec.payload = n.to_le_bytes().to_vec();
            let lease = clients[n as usize % 2].request_lease(&spec).unwrap();
            assert!(lease.address.starts_with("here:"));
            let result = (n * n).to_le_bytes().to_vec();
            assert_eq!(lease.wait_done(SECOND).unwrap(), LeaseEnd::Done { status: 0, result });
            lease.return_().unwrap();
        }
        // Each worker is given back as broken, and has to go.
        for _ in 0..workers.len() {
            clients[0].request_lease(&LeaseSpec::new("square").resource("CPU", 0.5)).unwrap().return_broken().unwrap();
        }
        for worker in workers {
            worker.join().unwrap();
        }
        drop(clients);
        node.is_empty();
    });
}

#[test]
fn a_worker_that_dies_loses_its_lease_and_its_owner_hears_of_it() {
    everywhere(|_, connect| {
        let owner = connect();
        let worker = Worker::register_with(connect(), "frail", "").unwrap();
        let lease = owner.request_lease(&LeaseSpec::new("frail").resource("CPU", 1.0)).unwrap();
        assert_eq!(lease.worker, worker.id());
        drop(worker);
        assert_eq!(lost(&lease), RefusalCode::WorkerDied);
        let mut none = LeaseSpec::new("frail");
        none.wait = Some(Duration::from_millis(50));
        assert_eq!(code(owner.request_lease(&none).unwrap_err()), RefusalCode::DeadlinePassed);
    });
}

#[test]
fn events_of_objects_and_of_the_node_reach_those_who_want_them() {
    everywhere(|_, connect| {
        let (listener, maker, passer) = (connect(), connect(), connect());
        listener.subscribe(topic::ALL).unwrap();
        let id = maker.put(b"12345").unwrap();
        maker.delete(id).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            match listener.next_event(SECOND).unwrap() {
                Event::Object(event) if event.object == id => seen.push((event.what, event.size_bytes)),
                _ => {}
            }
        }
        assert_eq!(seen, [(object_event::SEALED, 5), (object_event::DELETED, 5)]);
        drop(passer);
        let is_gone = |event| matches!(event, Event::Node(event) if event.what == node_event::CLIENT_GONE);
        while !is_gone(listener.next_event(SECOND).unwrap()) {}
        listener.subscribe(0).unwrap();
    });
}

#[test]
fn a_drained_node_takes_no_leases_until_it_is_told_to() {
    everywhere(|_, connect| {
        let client = connect();
        let spec = LeaseSpec::new("").resource("CPU", 1.0);
        client.drain(true, "for a test").unwrap();
        eventually("it drains", || {
            client.request_lease(&spec).map(|lease| lease.return_()).is_err_and(|e| code(e) == RefusalCode::Draining)
        });
        assert!(client.status().unwrap().draining);
        client.drain(false, "").unwrap();
        eventually("it takes leases", || client.request_lease(&spec).map(|lease| lease.return_()).is_ok());
    });
}

#[test]
fn the_node_tells_what_it_has() {
    everywhere(|_, connect| {
        let client = connect();
        let ids: Vec<ObjectId> = (0..10u8).map(|n| client.put(&[n; 100]).unwrap()).collect();
        assert_eq!(client.wait(&ids, ids.len(), SECOND).unwrap().len(), ids.len());
        let listed = client.list().unwrap();
        for id in &ids {
            let entry = listed.iter().find(|entry| entry.object == *id).unwrap();
            assert!(entry.sealed && entry.data_bytes == 100);
        }
        let lease = client.request_lease(&LeaseSpec::new("").resource("disk", 0.5)).unwrap();
        let status = client.status().unwrap();
        let disk = status.resources.iter().find(|part| part.name == "disk").unwrap();
        assert_eq!((disk.total, disk.free, status.leases), (15_000, 10_000, 1));
        assert!(status.objects >= 10 && status.clients >= 1);
        lease.return_().unwrap();
        for id in ids {
            client.delete(id).unwrap();
        }
    });
}

#[test]
fn a_node_that_may_drain_ends_when_its_last_lease_does() {
    let node = Node::start(&["--cores", "0", "--resources", "CPU=2", "--drain-timeout-ms", "60000"]);
    let client = Client::connect(node.socket()).unwrap();
    let spec = LeaseSpec::new("").resource("CPU", 1.0);
    let lease = client.request_lease(&spec).unwrap();
    node.ask_to_end();
    eventually("it takes no new leases", || {
        client.request_lease(&spec).map_err(code).err() == Some(RefusalCode::Draining)
    });
    assert!(client.status().unwrap().draining, "and works on while it has a lease");
    lease.return_().unwrap();
    node.has_ended();
}

#[test]
fn a_node_that_is_asked_to_end_twice_does_not_wait_for_leases() {
    let node = Node::start(&["--cores", "0", "--resources", "CPU=2", "--drain-timeout-ms", "600000"]);
    let client = Client::connect(node.socket()).unwrap();
    let lease = client.request_lease(&LeaseSpec::new("").resource("CPU", 1.0)).unwrap();
    node.ask_to_end();
    eventually("it drains", || client.status().unwrap().draining);
    node.ask_to_end();
    node.has_ended();
    drop(lease);
}
