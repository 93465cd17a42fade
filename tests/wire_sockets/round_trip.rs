//! Every message that can be written is read back the same, and is a flatbuffer by the flatbuffers crate's own check.

use crate::support::{only_frame, plasma_schema, raylet_schema, verify};
use proptest::collection::vec;
use proptest::prelude::*;
use raylet_shard::ids::{JobId, NodeId, ObjectId, TaskId, WorkerId};
use raylet_uring::ray::wire::plasma::{
    self, CreateReply, CreateRequest, GetReply, ObjectSource, ObjectSpec, PlasmaError,
};
use raylet_uring::ray::wire::raylet::{
    self, Disconnect, ObjectRefs, OwnerAddress, PushError, RegisterClient, RegisterReply, WaitReply,
};
use raylet_uring::ray::wire::{Encoder, List};

/// Encodes a message twice with one encoder, behind bytes that are already there, and returns the second frame.
fn written(encode: impl Fn(&mut Encoder, &mut Vec<u8>)) -> Vec<u8> {
    let (mut encoder, mut out) = (Encoder::new(), b"earlier".to_vec());
    encode(&mut encoder, &mut out);
    let first = out.split_off(b"earlier".len());
    assert_eq!(out, b"earlier");
    out.clear();
    encode(&mut encoder, &mut out);
    assert_eq!(first, out, "an encoder leaves nothing behind for the next message");
    out
}

fn raylet_request(request: raylet::Request<'_>) {
    let bytes = written(|encoder, out| request.encode(encoder, out));
    let frame = only_frame(&bytes);
    assert_eq!(frame.message_type, request.message_type());
    assert_eq!(verify(frame.body, raylet_schema(frame.message_type)), Ok(()));
    assert_eq!(raylet::decode(frame.message_type, frame.body), Ok(request));
    assert!(raylet::decode_reply(frame.message_type, frame.body).is_err());
}

fn raylet_reply(reply: raylet::Reply<'_>) {
    let bytes = written(|encoder, out| reply.encode(encoder, out));
    let frame = only_frame(&bytes);
    assert_eq!(verify(frame.body, raylet_schema(frame.message_type)), Ok(()));
    assert_eq!(raylet::decode_reply(frame.message_type, frame.body), Ok(reply));
    assert!(raylet::decode(frame.message_type, frame.body).is_err());
}

fn plasma_request(request: plasma::Request<'_>) {
    let bytes = written(|encoder, out| request.encode(encoder, out));
    let frame = only_frame(&bytes);
    assert_eq!(frame.message_type, request.message_type());
    assert_eq!(verify(frame.body, plasma_schema(frame.message_type)), Ok(()));
    assert_eq!(plasma::decode(frame.message_type, frame.body), Ok(request));
    assert!(plasma::decode_reply(frame.message_type, frame.body).is_err());
}

fn plasma_reply(reply: plasma::Reply<'_>) {
    let bytes = written(|encoder, out| reply.encode(encoder, out));
    let frame = only_frame(&bytes);
    assert_eq!(verify(frame.body, plasma_schema(frame.message_type)), Ok(()));
    assert_eq!(plasma::decode_reply(frame.message_type, frame.body), Ok(reply));
    assert!(plasma::decode(frame.message_type, frame.body).is_err());
}

prop_compose! {
    fn object_id()(bytes in any::<[u8; 28]>()) -> ObjectId {
        ObjectId(bytes)
    }
}

prop_compose! {
    fn worker_id()(bytes in prop_oneof![any::<[u8; 28]>(), Just([0xff; 28])]) -> WorkerId {
        WorkerId(bytes)
    }
}

prop_compose! {
    fn node_id()(bytes in prop_oneof![any::<[u8; 28]>(), Just([0xff; 28])]) -> NodeId {
        NodeId(bytes)
    }
}

/// Objects with their owners, owned by the test.
#[derive(Debug, Clone)]
struct Refs {
    ids: Vec<ObjectId>,
    owners: Vec<(NodeId, String, i32, WorkerId)>,
}

fn refs() -> impl Strategy<Value = Refs> {
    vec((object_id(), node_id(), "[0-9a-f:.]{0,39}", any::<i32>(), worker_id()), 0..40).prop_map(|entries| Refs {
        ids: entries.iter().map(|entry| entry.0).collect(),
        owners: entries.into_iter().map(|(_, node, ip, port, worker)| (node, ip, port, worker)).collect(),
    })
}

impl Refs {
    /// Calls `check` with the lists in the form that messages hold.
    fn with(&self, check: impl FnOnce(ObjectRefs<'_>)) {
        let owners: Vec<OwnerAddress<'_>> = self
            .owners
            .iter()
            .map(|(node_id, ip, port, worker_id)| OwnerAddress {
                node_id: *node_id,
                ip_address: ip,
                port: *port,
                worker_id: *worker_id,
            })
            .collect();
        check(ObjectRefs { object_ids: List::from(&self.ids[..]), owners: List::from(&owners[..]) });
    }
}

prop_compose! {
    fn object_spec()(
        store_fd in any::<i32>(),
        unique_fd_id in any::<i64>(),
        sizes in any::<[u64; 6]>(),
        fallback_allocated in any::<bool>(),
        device_num in any::<i32>(),
        is_mutable in any::<bool>(),
    ) -> ObjectSpec {
        ObjectSpec {
            store_fd,
            unique_fd_id,
            header_offset_bytes: sizes[0],
            data_offset_bytes: sizes[1],
            data_size_bytes: sizes[2],
            metadata_offset_bytes: sizes[3],
            metadata_size_bytes: sizes[4],
            allocated_size_bytes: sizes[5],
            fallback_allocated,
            device_num,
            is_mutable,
        }
    }
}

fn plasma_error() -> impl Strategy<Value = PlasmaError> {
    use PlasmaError::*;
    prop::sample::select(vec![
        Ok,
        ObjectExists,
        ObjectNonexistent,
        OutOfMemory,
        ObjectNotSealed,
        ObjectInUse,
        UnexpectedError,
        ObjectSealed,
        OutOfDisk,
    ])
}

fn object_source() -> impl Strategy<Value = ObjectSource> {
    use ObjectSource::*;
    prop::sample::select(vec![CreatedByWorker, RestoredFromStorage, ReceivedFromRemoteRaylet, ErrorStoredByRaylet])
}

#[test]
fn messages_without_fields() {
    raylet_request(raylet::Request::ActorCreationTaskDone);
    raylet_request(raylet::Request::WorkerBlocked);
    raylet_request(raylet::Request::WorkerUnblocked);
    raylet_reply(raylet::Reply::Disconnect);
    plasma_request(plasma::Request::Disconnect);
    plasma_request(plasma::Request::Connect);
    plasma_request(plasma::Request::GetDebugString);
}

#[test]
fn a_list_of_100000_objects_is_read_back() {
    let ids: Vec<ObjectId> = (0..100_000u32)
        .map(|index| {
            let mut id = [7; 28];
            id[24..].copy_from_slice(&index.to_le_bytes());
            ObjectId(id)
        })
        .collect();
    plasma_request(plasma::Request::Get { object_ids: List::from(&ids[..]), timeout_ms: -1 });
    plasma_request(plasma::Request::Delete { object_ids: List::from(&ids[..]) });
}

proptest! {
    #[test]
    fn registrations(
        (worker_type, worker_id, worker_pid) in (any::<i32>(), worker_id(), any::<i64>()),
        job_id in any::<[u8; 4]>(),
        (runtime_env_hash, language, port) in any::<(i32, i32, i32)>(),
        ip_address in "\\PC{0,60}",
        serialized_job_config in vec(any::<u8>(), 0..400),
    ) {
        raylet_request(raylet::Request::RegisterClient(RegisterClient {
            worker_type,
            worker_id,
            worker_pid,
            job_id: JobId(job_id),
            runtime_env_hash,
            language,
            ip_address: &ip_address,
            port,
            serialized_job_config: &serialized_job_config,
        }));
    }

    #[test]
    fn port_announcements(port in any::<i32>(), entrypoint in vec(any::<u8>(), 0..200)) {
        raylet_request(raylet::Request::AnnouncePort { port, entrypoint: &entrypoint });
    }

    #[test]
    fn farewells(
        exit_type in any::<i32>(),
        detail in vec(any::<u8>(), 0..200),
        exception in vec(any::<u8>(), 0..5000),
    ) {
        raylet_request(raylet::Request::Disconnect(Disconnect {
            exit_type,
            detail: &detail,
            creation_task_exception: &exception,
        }));
    }

    #[test]
    fn requests_for_objects(
        refs in refs(),
        number in any::<i64>(),
        num_required in any::<i32>(),
        task_id in any::<[u8; 24]>(),
    ) {
        refs.with(|refs| {
            raylet_request(raylet::Request::AsyncGet { refs, request_id: number });
            raylet_request(raylet::Request::CancelGet { request_id: number });
            raylet_request(raylet::Request::Wait { refs, num_required, timeout_ms: number });
            raylet_request(raylet::Request::WaitForActorCallArgs {
                refs,
                task_id: TaskId(task_id),
                attempt_number: num_required,
            });
            if let Some((object_id, owner)) = refs.iter().next() {
                raylet_request(raylet::Request::SubscribePlasmaReady { object_id, owner });
            }
        });
    }

    #[test]
    fn errors_and_frees(
        job_id in any::<[u8; 4]>(),
        error_type in vec(any::<u8>(), 0..40),
        message in vec(any::<u8>(), 0..400),
        timestamp_s in proptest::num::f64::NORMAL,
        local_only in any::<bool>(),
        ids in vec(object_id(), 0..40),
    ) {
        raylet_request(raylet::Request::PushError(PushError {
            job_id: JobId(job_id),
            error_type: &error_type,
            message: &message,
            timestamp_s,
        }));
        raylet_request(raylet::Request::FreeObjects { local_only, object_ids: List::from(&ids[..]) });
    }

    #[test]
    fn replies_of_the_raylet_socket(
        failure in prop::option::of(vec(any::<u8>(), 0..200)),
        node_id in node_id(),
        port in any::<i32>(),
        found in vec(object_id(), 0..40),
        remaining in vec(object_id(), 0..40),
    ) {
        let failure = failure.as_deref();
        raylet_reply(raylet::Reply::Register(RegisterReply { failure, node_id, port }));
        raylet_reply(raylet::Reply::AnnouncePort { failure });
        raylet_reply(raylet::Reply::Wait(WaitReply {
            found: List::from(&found[..]),
            remaining: List::from(&remaining[..]),
        }));
    }

    #[test]
    fn creates(
        (object_id, owner_node_id, owner_worker_id) in (object_id(), node_id(), worker_id()),
        (owner_ip_address, owner_port) in ("\\PC{0,45}", any::<i32>()),
        (data_size_bytes, metadata_size_bytes) in any::<(u64, u64)>(),
        (source, device_num) in (object_source(), any::<i32>()),
        (is_mutable, try_immediately) in any::<(bool, bool)>(),
        request_id in any::<u64>(),
    ) {
        plasma_request(plasma::Request::Create(CreateRequest {
            object_id,
            owner_node_id,
            owner_ip_address: &owner_ip_address,
            owner_port,
            owner_worker_id,
            is_mutable,
            data_size_bytes,
            metadata_size_bytes,
            source,
            device_num,
            try_immediately,
        }));
        plasma_request(plasma::Request::CreateRetry { object_id, request_id });
    }

    #[test]
    fn requests_about_one_object(object_id in object_id(), may_unmap in any::<bool>()) {
        plasma_request(plasma::Request::Abort { object_id });
        plasma_request(plasma::Request::Seal { object_id });
        plasma_request(plasma::Request::Contains { object_id });
        plasma_request(plasma::Request::Release { object_id, may_unmap });
    }

    #[test]
    fn requests_about_many_objects(ids in vec(object_id(), 0..100), timeout_ms in any::<i64>()) {
        plasma_request(plasma::Request::Get { object_ids: List::from(&ids[..]), timeout_ms });
        plasma_request(plasma::Request::Delete { object_ids: List::from(&ids[..]) });
    }

    #[test]
    fn create_replies(
        object_id in object_id(),
        object in object_spec(),
        mmap_size_bytes in any::<i64>(),
        request_id in 1u64..,
        error in plasma_error().prop_filter("a failure", |error| *error != PlasmaError::Ok),
    ) {
        plasma_reply(plasma::Reply::Create(CreateReply::Created { object_id, object, mmap_size_bytes }));
        plasma_reply(plasma::Reply::Create(CreateReply::Failed { object_id, error }));
        plasma_reply(plasma::Reply::Create(CreateReply::RetryLater { object_id, request_id }));
    }

    #[test]
    fn get_replies(
        objects in vec((object_id(), prop_oneof![object_spec(), Just(ObjectSpec::ABSENT)]), 0..40),
        segments in vec(any::<(i32, i64, i64)>(), 0..10),
    ) {
        let (ids, objects): (Vec<_>, Vec<_>) = objects.into_iter().unzip();
        let store_fds: Vec<i32> = segments.iter().map(|segment| segment.0).collect();
        let unique_fd_ids: Vec<i64> = segments.iter().map(|segment| segment.1).collect();
        let mmap_sizes: Vec<i64> = segments.iter().map(|segment| segment.2).collect();
        plasma_reply(plasma::Reply::Get(GetReply {
            object_ids: List::from(&ids[..]),
            objects: List::from(&objects[..]),
            store_fds: List::from(&store_fds[..]),
            unique_fd_ids: List::from(&unique_fd_ids[..]),
            mmap_sizes_bytes: List::from(&mmap_sizes[..]),
        }));
    }

    #[test]
    fn other_replies_of_the_plasma_socket(
        object_id in object_id(),
        error in plasma_error(),
        flag in any::<bool>(),
        memory_capacity_bytes in any::<i64>(),
        text in vec(any::<u8>(), 0..2000),
        deleted in vec((object_id(), plasma_error()), 0..40),
    ) {
        plasma_reply(plasma::Reply::Abort { object_id });
        plasma_reply(plasma::Reply::Seal { object_id, error });
        plasma_reply(plasma::Reply::Release { object_id, should_unmap: flag, error });
        plasma_reply(plasma::Reply::Contains { object_id, has_object: flag });
        plasma_reply(plasma::Reply::Connect { memory_capacity_bytes });
        plasma_reply(plasma::Reply::DebugString { text: &text });
        let (ids, errors): (Vec<_>, Vec<_>) = deleted.into_iter().unzip();
        plasma_reply(plasma::Reply::Delete { object_ids: List::from(&ids[..]), errors: List::from(&errors[..]) });
    }
}
