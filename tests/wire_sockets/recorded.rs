//! Frames that Ray 2.60 programs sent are read with the meaning they have, and what we write means the same.

use crate::support::{only_frame, plasma_schema, raylet_schema, recorded, verify};
use raylet_shard::ids::{JobId, NodeId, ObjectId, TaskId, WorkerId};
use raylet_uring::ray::wire::plasma::{self, CreateReply, ObjectSource, ObjectSpec, PlasmaError, Segment};
use raylet_uring::ray::wire::raylet::{self, OwnerAddress};
use raylet_uring::ray::wire::{frame, Encoder};

/// The recorded frame of this name.
fn bytes_of(name: &str) -> Vec<u8> {
    let mut found = recorded(name);
    found.retain(|(other, _)| other == name);
    found.pop().expect("a recorded frame of this name").1
}

fn raylet_request<T>(name: &str, check: impl FnOnce(raylet::Request<'_>) -> T) -> T {
    let bytes = bytes_of(name);
    let frame = only_frame(&bytes);
    check(raylet::decode(frame.message_type, frame.body).expect("a request of Ray's"))
}

fn plasma_request<T>(name: &str, check: impl FnOnce(plasma::Request<'_>) -> T) -> T {
    let bytes = bytes_of(name);
    let frame = only_frame(&bytes);
    check(plasma::decode(frame.message_type, frame.body).expect("a request of Ray's"))
}

fn plasma_reply<T>(name: &str, check: impl FnOnce(plasma::Reply<'_>) -> T) -> T {
    let bytes = bytes_of(name);
    let frame = only_frame(&bytes);
    check(plasma::decode_reply(frame.message_type, frame.body).expect("a reply of Ray's"))
}

fn id<const N: usize>(hex: &str) -> [u8; N] {
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect();
    bytes.try_into().expect("an id of this length")
}

/// An object that the first driver of a cluster put: its `index`-th.
fn put_by_driver(index: u8) -> ObjectId {
    ObjectId(id(&format!("00ffffffffffffffffffffffffffffffffffffff01000000{index:02x}e1f505")))
}

/// The worker id of a cluster's first driver.
fn first_driver() -> WorkerId {
    let mut driver = [0xff; WorkerId::LEN];
    driver[..JobId::LEN].copy_from_slice(&[1, 0, 0, 0]);
    WorkerId(driver)
}

const NODE: &str = "013bcdd40c17e18e191ccd34988a0f4bb2c2e79a58e0c0ed6139eeb7";

fn driver_address<'a>() -> OwnerAddress<'a> {
    OwnerAddress { node_id: NodeId(id(NODE)), ip_address: "192.0.2.2", port: 40715, worker_id: first_driver() }
}

#[test]
fn every_recorded_frame_means_the_same_when_we_write_it() {
    let mut encoder = Encoder::new();
    let mut out = Vec::new();
    for (name, bytes) in recorded("raylet") {
        let theirs = only_frame(&bytes);
        let body = theirs.body;
        out.clear();
        if name.contains("reply") {
            let reply = raylet::decode_reply(theirs.message_type, body).expect(&name);
            reply.encode(&mut encoder, &mut out);
            let ours = only_frame(&out);
            assert_eq!(ours.message_type, theirs.message_type, "{name}");
            assert_eq!(verify(ours.body, raylet_schema(ours.message_type)), Ok(()), "{name}");
            assert_eq!(raylet::decode_reply(ours.message_type, ours.body).expect(&name), reply, "{name}");
        } else {
            let request = raylet::decode(theirs.message_type, body).expect(&name);
            request.encode(&mut encoder, &mut out);
            let ours = only_frame(&out);
            assert_eq!(ours.message_type, theirs.message_type, "{name}");
            assert_eq!(verify(ours.body, raylet_schema(ours.message_type)), Ok(()), "{name}");
            assert_eq!(raylet::decode(ours.message_type, ours.body).expect(&name), request, "{name}");
        }
    }
    for (name, bytes) in recorded("plasma") {
        let theirs = only_frame(&bytes);
        let body = theirs.body;
        out.clear();
        if name.contains("reply") {
            let reply = plasma::decode_reply(theirs.message_type, body).expect(&name);
            reply.encode(&mut encoder, &mut out);
            let ours = only_frame(&out);
            assert_eq!(ours.message_type, theirs.message_type, "{name}");
            assert_eq!(verify(ours.body, plasma_schema(ours.message_type)), Ok(()), "{name}");
            assert_eq!(plasma::decode_reply(ours.message_type, ours.body).expect(&name), reply, "{name}");
        } else {
            let request = plasma::decode(theirs.message_type, body).expect(&name);
            request.encode(&mut encoder, &mut out);
            let ours = only_frame(&out);
            assert_eq!(ours.message_type, theirs.message_type, "{name}");
            assert_eq!(verify(ours.body, plasma_schema(ours.message_type)), Ok(()), "{name}");
            assert_eq!(plasma::decode(ours.message_type, ours.body).expect(&name), request, "{name}");
        }
    }
}

/// Not required by the protocol, but it says that our builder and Ray's lay tables out alike.
#[test]
fn our_replies_are_ray_s_bytes() {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    for (name, theirs) in recorded("") {
        let frame = only_frame(&theirs);
        out.clear();
        match name.as_str() {
            // Ray's builder doesn't align an empty list of longs, ours does.
            "plasma_get_reply_absent" => continue,
            name if !name.contains("reply") => continue,
            name if name.starts_with("raylet") => {
                let reply = raylet::decode_reply(frame.message_type, frame.body).expect(name);
                reply.encode(&mut encoder, &mut out);
            }
            name => {
                let reply = plasma::decode_reply(frame.message_type, frame.body).expect(name);
                reply.encode(&mut encoder, &mut out);
            }
        }
        assert_eq!(out, theirs, "{name}");
    }
}

#[test]
fn the_header_is_ray_s() {
    let bytes = bytes_of("raylet_actor_creation_task_done");
    assert_eq!(bytes[..8], [0, 0, 0, 0, 0, 0x59, 0x41, 0x52]);
    let head = bytes[..frame::HEADER_BYTES].try_into().expect("24 bytes");
    let header = frame::parse_header(&head, frame::RAYLET_MAX_BODY_BYTES).expect("Ray's header");
    assert_eq!((header.message_type, header.body_bytes, bytes.len()), (0, 0, frame::HEADER_BYTES));
}

#[test]
fn a_driver_introduces_itself() {
    raylet_request("raylet_register_driver", |request| {
        let raylet::Request::RegisterClient(client) = request else { panic!("{request:?}") };
        assert_eq!((client.worker_type, client.language, client.port, client.runtime_env_hash), (1, 0, 0, 0));
        assert_eq!(client.worker_id, first_driver());
        assert_eq!(client.job_id, JobId([1, 0, 0, 0]));
        assert_eq!(client.worker_pid, 0x41e6);
        assert_eq!(client.ip_address, "192.0.2.2");
        assert_eq!(client.serialized_job_config.len(), 73);
    });
    raylet_request("raylet_register_worker", |request| {
        let raylet::Request::RegisterClient(client) = request else { panic!("{request:?}") };
        assert_eq!(client.worker_type, 0);
        assert!(client.job_id.is_nil() && !client.worker_id.is_nil());
    });
    raylet_request("raylet_announce_port_driver", |request| {
        let raylet::Request::AnnouncePort { port, entrypoint } = request else { panic!("{request:?}") };
        assert!(port > 0);
        assert_eq!(entrypoint, b"python app.py");
    });
}

#[test]
fn a_registration_is_answered_with_the_port_to_use() {
    for (name, expected_port) in [("raylet_register_reply", 0), ("raylet_register_reply_with_port", 20088)] {
        let bytes = bytes_of(name);
        let frame = only_frame(&bytes);
        let reply = raylet::decode_reply(frame.message_type, frame.body).expect("a reply");
        let raylet::Reply::Register(reply) = reply else { panic!("{reply:?}") };
        assert_eq!((reply.failure, reply.port), (None, expected_port));
        assert!(!reply.node_id.is_nil());
    }
}

#[test]
fn gets_and_their_cancels_are_paired_by_number() {
    for (get, cancel, expected) in
        [("raylet_async_get_first", "raylet_cancel_get_first", 0), ("raylet_async_get", "raylet_cancel_get", 1)]
    {
        raylet_request(get, |request| {
            let raylet::Request::AsyncGet { refs, request_id } = request else { panic!("{request:?}") };
            assert_eq!((refs.len(), request_id), (1, expected));
        });
        raylet_request(cancel, |request| assert_eq!(request, raylet::Request::CancelGet { request_id: expected }));
    }
    raylet_request("raylet_async_get", |request| {
        let raylet::Request::AsyncGet { refs, .. } = request else { panic!("{request:?}") };
        assert_eq!(refs.iter().collect::<Vec<_>>(), [(put_by_driver(7), driver_address())]);
    });
}

#[test]
fn waits_name_their_objects_owners_and_limits() {
    raylet_request("raylet_wait_two", |request| {
        let raylet::Request::Wait { refs, num_required, timeout_ms } = request else { panic!("{request:?}") };
        assert_eq!((refs.len(), num_required, timeout_ms), (2, 2, 1000));
        let ports: Vec<_> = refs.iter().map(|(object_id, owner)| (object_id.0[0], owner.port)).collect();
        assert_eq!(ports, [(0x05, 20088), (0x32, 20092)], "a worker's object, then the driver's own");
    });
    raylet_request("raylet_wait_no_timeout", |request| {
        let raylet::Request::Wait { num_required, timeout_ms, .. } = request else { panic!("{request:?}") };
        assert_eq!((num_required, timeout_ms), (1, 0));
    });
    for (name, attempt, task, port) in [
        ("raylet_wait_for_actor_call_args", 0, "82891771158d68c13f194ff2341611a5627713cd01000000", 40715),
        ("raylet_wait_for_actor_call_args_retry", 1, "16310a0f0a45af5cbff913e8e11cdc660488233a01000000", 35233),
    ] {
        raylet_request(name, |request| {
            let raylet::Request::WaitForActorCallArgs { refs, task_id, attempt_number } = request else {
                panic!("{request:?}")
            };
            let owned: Vec<_> = refs.iter().map(|(object_id, owner)| (object_id, owner.port)).collect();
            assert_eq!(owned, [(put_by_driver(1), port)]);
            assert_eq!((task_id, attempt_number), (TaskId(id(task)), attempt));
        });
    }
    let bytes = bytes_of("raylet_wait_reply_two");
    let frame = only_frame(&bytes);
    let reply = raylet::decode_reply(frame.message_type, frame.body).expect("a reply");
    let raylet::Reply::Wait(reply) = reply else { panic!("{reply:?}") };
    assert_eq!((reply.found.len(), reply.remaining.len()), (2, 0));
}

#[test]
fn farewells_errors_and_subscriptions_are_read() {
    raylet_request("raylet_disconnect_driver", |request| {
        let raylet::Request::Disconnect(leaving) = request else { panic!("{request:?}") };
        assert_eq!((leaving.exit_type, leaving.detail), (3, &b"Shutdown by ray.shutdown()."[..]));
        assert!(leaving.creation_task_exception.is_empty());
    });
    raylet_request("raylet_disconnect_with_exception", |request| {
        let raylet::Request::Disconnect(leaving) = request else { panic!("{request:?}") };
        assert_eq!(leaving.exit_type, 2);
        assert!(leaving.creation_task_exception.len() > 3000);
    });
    raylet_request("raylet_push_error", |request| {
        let raylet::Request::PushError(error) = request else { panic!("{request:?}") };
        assert_eq!((error.error_type, error.message), (&b"t1"[..], &b"the message"[..]));
        assert_eq!((error.job_id, error.timestamp_s), (JobId([1, 0, 0, 0]), 12345.5));
    });
    raylet_request("raylet_free_objects", |request| {
        let raylet::Request::FreeObjects { local_only, object_ids } = request else { panic!("{request:?}") };
        assert_eq!((local_only, object_ids.len()), (true, 1));
    });
    raylet_request("raylet_subscribe_plasma_ready", |request| {
        let raylet::Request::SubscribePlasmaReady { object_id, owner } = request else { panic!("{request:?}") };
        assert_eq!(object_id, ObjectId(id("f44fc2b1b916214dffffffffffffffffffffffff0100000001000000")));
        assert_eq!(owner.port, 0x8047);
    });
}

#[test]
fn creates_say_who_owns_the_object() {
    plasma_request("plasma_create", |request| {
        let plasma::Request::Create(create) = request else { panic!("{request:?}") };
        assert_eq!(create.object_id, put_by_driver(1));
        assert_eq!((create.owner_ip_address, create.owner_port), ("192.0.2.2", 40715));
        assert_eq!((create.owner_node_id, create.owner_worker_id), (NodeId(id(NODE)), first_driver()));
        assert_eq!((create.data_size_bytes, create.metadata_size_bytes), (4_000_247, 6));
        assert_eq!(create.source, ObjectSource::CreatedByWorker);
        assert!(!create.is_mutable && !create.try_immediately);
    });
    plasma_request("plasma_create_mutable", |request| {
        let plasma::Request::Create(create) = request else { panic!("{request:?}") };
        assert!(create.is_mutable);
        assert_eq!((create.data_size_bytes, create.metadata_size_bytes), (1_000_000, 3));
    });
    plasma_request("plasma_create_restored", |request| {
        let plasma::Request::Create(create) = request else { panic!("{request:?}") };
        assert_eq!(create.source, ObjectSource::RestoredFromStorage);
        assert!(create.owner_node_id.is_nil() && create.owner_worker_id.is_nil());
        assert_eq!((create.owner_ip_address, create.owner_port), ("", 0));
    });
    plasma_request("plasma_create_first", |request| {
        let plasma::Request::Create(create) = request else { panic!("{request:?}") };
        assert_eq!((create.data_size_bytes, create.metadata_size_bytes), (8, 0));
    });
    plasma_request("plasma_create_retry", |request| {
        assert_eq!(request, plasma::Request::CreateRetry { object_id: put_by_driver(7), request_id: 0x16 });
    });
}

#[test]
fn create_replies_place_the_object() {
    plasma_reply("plasma_create_reply", |reply| {
        let plasma::Reply::Create(CreateReply::Created { object, mmap_size_bytes, .. }) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(mmap_size_bytes, (100 << 20) + 8);
        let expected = ObjectSpec {
            store_fd: 0x11,
            unique_fd_id: 1,
            header_offset_bytes: 64,
            data_offset_bytes: 64,
            data_size_bytes: 8,
            metadata_offset_bytes: 72,
            metadata_size_bytes: 0,
            allocated_size_bytes: 8,
            fallback_allocated: false,
            device_num: 0,
            is_mutable: false,
        };
        assert_eq!(object, expected);
    });
    plasma_reply("plasma_create_reply_fallback", |reply| {
        let plasma::Reply::Create(CreateReply::Created { object, mmap_size_bytes, .. }) = reply else {
            panic!("{reply:?}")
        };
        assert!(object.fallback_allocated);
        assert_eq!((object.store_fd, object.unique_fd_id, mmap_size_bytes), (0x5b, 2, 20_975_624));
        assert_eq!(object.metadata_offset_bytes, object.data_offset_bytes + object.data_size_bytes);
    });
    plasma_reply("plasma_create_reply_retry", |reply| {
        let later = CreateReply::RetryLater { object_id: put_by_driver(7), request_id: 0x16 };
        assert_eq!(reply, plasma::Reply::Create(later));
    });
}

#[test]
fn get_replies_list_objects_and_segments() {
    let segment = Segment { store_fd: 0x11, unique_fd_id: 1, mmap_size_bytes: (100 << 20) + 8 };
    plasma_reply("plasma_get_reply_three", |reply| {
        let plasma::Reply::Get(reply) = reply else { panic!("{reply:?}") };
        assert_eq!(reply.object_ids.len(), 3);
        let sizes: Vec<u64> = reply.objects.iter().map(|object| object.data_size_bytes).collect();
        assert_eq!(sizes, [4_000_247, 100, 2_400_247]);
        assert_eq!(reply.segments().collect::<Vec<_>>(), [segment]);
    });
    plasma_reply("plasma_get_reply_absent", |reply| {
        let plasma::Reply::Get(reply) = reply else { panic!("{reply:?}") };
        assert_eq!(reply.objects.iter().collect::<Vec<_>>(), [ObjectSpec::ABSENT]);
        assert_eq!(reply.segments().len(), 0);
    });
    plasma_request("plasma_get_1000_ms", |request| {
        let plasma::Request::Get { object_ids, timeout_ms } = request else { panic!("{request:?}") };
        assert_eq!((object_ids.get(0), object_ids.len(), timeout_ms), (Some(put_by_driver(6)), 1, 1000));
    });
}

#[test]
fn releases_and_small_replies_are_read() {
    plasma_request("plasma_release_fallback", |request| {
        assert_eq!(request, plasma::Request::Release { object_id: put_by_driver(7), may_unmap: true });
    });
    plasma_request("plasma_release", |request| {
        assert!(matches!(request, plasma::Request::Release { may_unmap: false, .. }));
    });
    plasma_reply("plasma_release_reply", |reply| {
        let expected =
            plasma::Reply::Release { object_id: put_by_driver(7), should_unmap: true, error: PlasmaError::Ok };
        assert_eq!(reply, expected);
    });
    plasma_reply("plasma_connect_reply", |reply| {
        assert_eq!(reply, plasma::Reply::Connect { memory_capacity_bytes: 100 << 20 });
    });
    for (name, expected) in [("plasma_contains_reply_no", false), ("plasma_contains_reply_yes", true)] {
        plasma_reply(name, |reply| {
            let plasma::Reply::Contains { has_object, .. } = reply else { panic!("{reply:?}") };
            assert_eq!(has_object, expected);
        });
    }
}
