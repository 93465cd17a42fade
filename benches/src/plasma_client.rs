//! A blocking client of the store's socket, as thin as it can be: it maps nothing and copies no data, so that what is
//! measured is the store.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use raylet_shard::ids::{NodeId, ObjectId, WorkerId};
use raylet_uring::ray::proto;
use raylet_uring::ray::wire::frame::{self, HEADER_BYTES, PLASMA_MAX_BODY_BYTES};
use raylet_uring::ray::wire::plasma::{
    decode_reply, CreateReply, CreateRequest, ObjectSource, ObjectSpec, PlasmaError, Reply, Request,
};
use raylet_uring::ray::wire::{fdpass, Encoder, List};

use crate::LoadError;

/// Pause before asking again for an object that there was no room for (Ray's `object_store_full_delay_ms`).
const FULL_DELAY: Duration = Duration::from_millis(10);

/// The longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the store.
pub struct PlasmaClient {
    socket: UnixStream,
    encoder: Encoder,
    out: Vec<u8>,
    body: Vec<u8>,
    /// The segments that the store has passed, by the number of their descriptor there and their unique id.
    segments: HashSet<(i32, i64)>,
    /// Their descriptors: the store passes each once for as long as the connection lives.
    descriptors: Vec<OwnedFd>,
    /// Objects that had to be asked for more than once.
    pub create_retries: u64,
}

impl PlasmaClient {
    /// Connects and says hello.
    pub fn connect(path: &Path) -> Result<Self, LoadError> {
        let socket = UnixStream::connect(path).map_err(LoadError::io(format!("connecting to {}", path.display())))?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(LoadError::io("limiting reads of the store's socket"))?;
        let mut client = Self {
            socket,
            encoder: Encoder::new(),
            out: Vec::new(),
            body: Vec::new(),
            segments: HashSet::new(),
            descriptors: Vec::new(),
            create_retries: 0,
        };
        client.send(&Request::Connect)?;
        match client.receive()? {
            Reply::Connect { .. } => Ok(client),
            other => Err(wrong("Connect", "a connect reply", &other)),
        }
    }

    /// How many segments the store has passed.
    pub fn segments(&self) -> usize {
        self.descriptors.len()
    }

    /// Makes an object and waits for room for it. `owner` is who keeps it; without one it is the connection's own.
    pub fn create(
        &mut self,
        object_id: ObjectId,
        size_bytes: u64,
        owner: Option<&proto::Address>,
    ) -> Result<ObjectSpec, LoadError> {
        let id = |bytes: &[u8]| bytes.try_into().unwrap_or([0xff; 28]);
        self.send(&Request::Create(CreateRequest {
            object_id,
            owner_node_id: owner.map_or(NodeId::NIL, |owner| NodeId(id(&owner.node_id))),
            owner_ip_address: owner.map_or("", |owner| &owner.ip_address),
            owner_port: owner.map_or(0, |owner| owner.port),
            owner_worker_id: owner.map_or(WorkerId::NIL, |owner| WorkerId(id(&owner.worker_id))),
            is_mutable: false,
            data_size_bytes: size_bytes,
            metadata_size_bytes: 0,
            source: ObjectSource::CreatedByWorker,
            device_num: 0,
            try_immediately: false,
        }))?;
        loop {
            match self.receive()? {
                Reply::Create(CreateReply::Created { object, .. }) => {
                    self.take_segment(object.store_fd, object.unique_fd_id)?;
                    return Ok(object);
                }
                Reply::Create(CreateReply::RetryLater { request_id, .. }) => {
                    self.create_retries += 1;
                    std::thread::sleep(FULL_DELAY);
                    self.send(&Request::CreateRetry { object_id, request_id })?;
                }
                other => return Err(wrong("Create", "an object", &other)),
            }
        }
    }

    /// Seals an object that this connection made.
    pub fn seal(&mut self, object_id: ObjectId) -> Result<(), LoadError> {
        self.send(&Request::Seal { object_id })?;
        match self.receive()? {
            Reply::Seal { error: PlasmaError::Ok, .. } => Ok(()),
            other => Err(wrong("Seal", "a sealed object", &other)),
        }
    }

    /// Says that an object is no longer used. Nothing comes back.
    pub fn release(&mut self, object_id: ObjectId) -> Result<(), LoadError> {
        self.send(&Request::Release { object_id, may_unmap: false })
    }

    /// Finds a sealed object, and keeps it in use until it is released.
    pub fn get(&mut self, object_id: ObjectId) -> Result<ObjectSpec, LoadError> {
        self.send(&Request::Get { object_ids: List::from(&[object_id][..]), timeout_ms: 0 })?;
        let (object, segments) = match self.receive()? {
            Reply::Get(reply) => {
                let segments: Vec<_> = reply.segments().collect();
                (reply.objects.get(0), segments)
            }
            other => return Err(wrong("Get", "a get reply", &other)),
        };
        for segment in segments {
            self.take_segment(segment.store_fd, segment.unique_fd_id)?;
        }
        match object {
            Some(object) if !object.is_absent() => Ok(object),
            _ => {
                Err(LoadError::Answer { request: "Get", expected: "the object", got: "a reply without it".to_owned() })
            }
        }
    }

    /// Asks whether a sealed object is there.
    pub fn contains(&mut self, object_id: ObjectId) -> Result<bool, LoadError> {
        self.send(&Request::Contains { object_id })?;
        match self.receive()? {
            Reply::Contains { has_object, .. } => Ok(has_object),
            other => Err(wrong("Contains", "a contains reply", &other)),
        }
    }

    /// Deletes a sealed object that nobody uses.
    pub fn delete(&mut self, object_id: ObjectId) -> Result<(), LoadError> {
        self.send(&Request::Delete { object_ids: List::from(&[object_id][..]) })?;
        match self.receive()? {
            Reply::Delete { errors, .. } if errors.iter().all(|error| error == PlasmaError::Ok) => Ok(()),
            other => Err(wrong("Delete", "a deleted object", &other)),
        }
    }

    fn send(&mut self, request: &Request<'_>) -> Result<(), LoadError> {
        self.out.clear();
        request.encode(&mut self.encoder, &mut self.out);
        self.socket.write_all(&self.out).map_err(LoadError::io("sending to the store"))
    }

    fn receive(&mut self) -> Result<Reply<'_>, LoadError> {
        let mut head = [0; HEADER_BYTES];
        self.socket.read_exact(&mut head).map_err(LoadError::io("waiting for the store's answer"))?;
        let header = frame::parse_header(&head, PLASMA_MAX_BODY_BYTES)?;
        self.body.resize(header.body_bytes, 0);
        self.socket.read_exact(&mut self.body).map_err(LoadError::io("reading the store's answer"))?;
        Ok(decode_reply(header.message_type, &self.body)?)
    }

    fn take_segment(&mut self, store_fd: i32, unique_fd_id: i64) -> Result<(), LoadError> {
        if self.segments.insert((store_fd, unique_fd_id)) {
            self.descriptors.push(fdpass::receive_fd(&self.socket)?);
        }
        Ok(())
    }
}

fn wrong(request: &'static str, expected: &'static str, got: &Reply<'_>) -> LoadError {
    LoadError::Answer { request, expected, got: format!("{got:?}") }
}
