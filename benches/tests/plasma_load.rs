//! The plasma load against a small store of this test's own, which keeps count.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raylet_bench::plasma_load::{self, Operation, Settings};
use raylet_bench::LoadError;
use raylet_shard::ids::ObjectId;
use raylet_uring::ray::wire::frame::{parse_header, HEADER_BYTES, PLASMA_MAX_BODY_BYTES};
use raylet_uring::ray::wire::plasma::{decode, CreateReply, GetReply, ObjectSpec, PlasmaError, Reply, Request};
use raylet_uring::ray::wire::{fdpass, Encoder, List};

const STORE_FD: i32 = 9;
const UNIQUE_FD_ID: i64 = 4;

/// What the store holds: object, and how often it is in use.
#[derive(Default)]
struct Store {
    objects: HashMap<ObjectId, u32>,
    created: u64,
    retries_to_ask: u32,
    wrong: Vec<String>,
}

fn spec(size_bytes: u64) -> ObjectSpec {
    ObjectSpec {
        store_fd: STORE_FD,
        unique_fd_id: UNIQUE_FD_ID,
        header_offset_bytes: 0,
        data_offset_bytes: 0,
        data_size_bytes: size_bytes,
        metadata_offset_bytes: size_bytes,
        metadata_size_bytes: 0,
        allocated_size_bytes: size_bytes,
        fallback_allocated: false,
        device_num: 0,
        is_mutable: false,
    }
}

/// Serves one connection until it closes.
fn serve(mut socket: UnixStream, store: &Mutex<Store>) {
    let (mut encoder, mut has_segment) = (Encoder::new(), false);
    let mut head = [0; HEADER_BYTES];
    while socket.read_exact(&mut head).is_ok() {
        let header = parse_header(&head, PLASMA_MAX_BODY_BYTES).expect("a header");
        let mut body = vec![0; header.body_bytes];
        socket.read_exact(&mut body).expect("a body");
        let mut out = Vec::new();
        let request = decode(header.message_type, &body).expect("a request");
        let passes_segment = answer(&request, &mut store.lock().unwrap(), &mut encoder, &mut out);
        socket.write_all(&out).expect("sent");
        if passes_segment && !has_segment {
            has_segment = true;
            let segment = tempfile::tempfile().expect("a file");
            let fds = [segment.as_fd()];
            fdpass::PendingSend::new(&[], &fds).advance(&socket).expect("passed");
        }
    }
}

/// Writes the answer; true if an object's segment goes with it.
fn answer(request: &Request<'_>, store: &mut Store, e: &mut Encoder, out: &mut Vec<u8>) -> bool {
    match *request {
        Request::Connect => Reply::Connect { memory_capacity_bytes: 1 << 20 }.encode(e, out),
        Request::Create(ref create) if store.retries_to_ask > 0 => {
            store.retries_to_ask -= 1;
            let object_id = create.object_id;
            let later = CreateReply::RetryLater { object_id, request_id: 77 };
            Reply::Create(later).encode(e, out);
        }
        Request::Create(_) | Request::CreateRetry { request_id: 77, .. } => {
            let object_id = match *request {
                Request::Create(ref create) => create.object_id,
                Request::CreateRetry { object_id, .. } => object_id,
                _ => unreachable!("one of the two above"),
            };
            store.created += 1;
            store.objects.insert(object_id, 1);
            let created = CreateReply::Created { object_id, object: spec(100), mmap_size_bytes: 4096 };
            Reply::Create(created).encode(e, out);
            return true;
        }
        Request::Seal { object_id } => Reply::Seal { object_id, error: PlasmaError::Ok }.encode(e, out),
        Request::Get { object_ids, .. } => {
            let objects: Vec<_> = object_ids
                .iter()
                .map(|id| match store.objects.get_mut(&id) {
                    Some(uses) => {
                        *uses += 1;
                        spec(100)
                    }
                    None => ObjectSpec::ABSENT,
                })
                .collect();
            Reply::Get(GetReply {
                object_ids,
                objects: List::from(&objects[..]),
                store_fds: List::from(&[STORE_FD][..]),
                unique_fd_ids: List::from(&[UNIQUE_FD_ID][..]),
                mmap_sizes_bytes: List::from(&[4096][..]),
            })
            .encode(e, out);
            return true;
        }
        Request::Release { object_id, .. } => match store.objects.get_mut(&object_id) {
            Some(uses) if *uses > 0 => *uses -= 1,
            other => {
                let state = format!("{object_id} released while {other:?}");
                store.wrong.push(state);
            }
        },
        Request::Delete { object_ids } => {
            let ids: Vec<_> = object_ids.iter().collect();
            let errors: Vec<_> = ids
                .iter()
                .map(|id| match store.objects.remove(id) {
                    Some(0) => PlasmaError::Ok,
                    _ => PlasmaError::ObjectInUse,
                })
                .collect();
            let errors = List::from(&errors[..]);
            Reply::Delete { object_ids, errors }.encode(e, out);
        }
        Request::Contains { object_id } => {
            Reply::Contains { object_id, has_object: store.objects.contains_key(&object_id) }.encode(e, out)
        }
        ref other => store.wrong.push(format!("unexpected {other:?}")),
    }
    false
}

/// A store in threads of its own, which end when the test's connections do.
fn start(retries_to_ask: u32) -> (tempfile::TempDir, Settings, Arc<Mutex<Store>>) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("plasma");
    let listener = UnixListener::bind(&socket).expect("bound");
    let store = Arc::new(Mutex::new(Store { retries_to_ask, ..Store::default() }));
    let served = store.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let store = served.clone();
            std::thread::spawn(move || serve(connection, &store));
        }
    });
    let settings = Settings {
        socket,
        operation: Operation::Put,
        clients: 2,
        objects: 3,
        size_bytes: 100,
        owner: None,
        warm_up: Duration::from_millis(20),
        window: Duration::from_millis(100),
        raylet_pid: Some(std::process::id() as i32),
    };
    (directory, settings, store)
}

#[test]
fn every_operation_leaves_the_store_as_it_was() {
    for operation in [Operation::Put, Operation::Get, Operation::Contains] {
        let (_directory, settings, store) = start(0);
        let settings = Settings { operation, ..settings };
        let report = plasma_load::run(&settings).expect("a report");
        assert!(report.operations > 0, "{report:?}");
        assert_eq!(report.latency.count, report.operations);
        assert_eq!(report.segments, 1, "the store passes a segment once");
        assert!(report.raylet_cpu_us_per_operation.expect("a pid was given") > 0.0);
        let store = store.lock().unwrap();
        assert!(store.wrong.is_empty(), "{:?}", store.wrong);
        assert!(store.objects.is_empty(), "left: {:?}", store.objects);
        match operation {
            Operation::Put => assert!(store.created >= report.operations),
            Operation::Get | Operation::Contains => assert_eq!(store.created, 6),
        }
    }
}

#[test]
fn a_create_that_has_to_wait_is_asked_for_again() {
    let (_directory, settings, store) = start(3);
    let report = plasma_load::run(&settings).expect("a report");
    assert_eq!(report.create_retries, 3);
    assert!(store.lock().unwrap().wrong.is_empty());
}

#[test]
fn a_store_that_is_not_there_is_an_error_that_names_it() {
    let (_directory, mut settings, _store) = start(0);
    settings.socket.set_file_name("nobody");
    let error = plasma_load::run(&settings).expect_err("no store");
    assert!(matches!(error, LoadError::Io { .. }));
    assert!(error.to_string().contains("nobody"), "{error}");
}
