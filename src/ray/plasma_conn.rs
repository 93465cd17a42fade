//! Connections to the plasma socket, on the core that accepted them.

use std::cell::RefCell;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{ClientId, ObjectId, Token, WorkerId};
use raylet_shard::store::{ObjectSource, Placement, StoreEffect, StoreError, StoreEvent};
use raylet_shard::waits::{Finished, WaitId, Waits};
use raylet_tuning::Segment;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::bridge::Requester;
use crate::core_io::Io;
use crate::core_loop::Core;
use crate::near::Near;
use crate::observe::histogram::Operation;
use crate::ray::messages::Owner;
use crate::ray::wire::frame::Frame;
use crate::ray::wire::plasma::{
    decode, encode_abort_reply, encode_connect_reply, encode_contains_reply, encode_create_error, encode_create_reply,
    encode_create_retry_later, encode_debug_string_reply, encode_delete_reply, encode_get_reply, encode_release_reply,
    encode_seal_reply, CreateRequest, GetReply, ObjectSpec, PlasmaError, Request,
};
use crate::ray::wire::{Encoder, List};
use crate::socket::{ConnectionError, Writer};

/// How long a create may take before its client is told to come again. Ray's client library holds a lock while it waits for the
/// answer, so a create that waits for memory must not keep it: the release that frees the memory may need the lock.
const CREATE_ANSWER_LIMIT: Duration = Duration::from_millis(2);

/// Fresh memory up to this size is backed on the core itself; more is backed by a helper thread meanwhile.
const BACK_INLINE_BYTES: u64 = 1 << 20;

/// The client's number of a core itself: it stores the errors that stand for lost objects.
const CORE_ITSELF: u64 = 0;

/// A client of the store.
struct Client {
    writer: Writer,
    /// Segments whose descriptor it has, by bit.
    near: Near,
    known_segments: u64,
    /// Objects in files of their own whose descriptor it has.
    known_files: FxHashSet<ObjectId>,
    creates: FxHashMap<ObjectId, PendingCreate>,
    deletes: Option<PendingDelete>,
}

impl Client {
    /// Notes that the client is sent a segment's descriptor; false where it has it. The file of an object is unmapped with the
    /// object, a segment of the store never.
    fn has_not_seen(&mut self, core: &Core, segment: u32, id: ObjectId) -> bool {
        if segment as usize >= core.segments().len() {
            return self.known_files.insert(id);
        }
        let bit = 1u64 << (segment % 64);
        let is_news = self.known_segments & bit == 0;
        self.known_segments |= bit;
        is_news
    }
}

/// A create whose client was told to come again, or soon will be.
enum PendingCreate {
    Waiting { request: u64, told: bool, since: Instant },
    Done(Result<Placement, StoreError>),
}

/// Answers to a delete of several objects, collected.
struct PendingDelete {
    ids: Vec<ObjectId>,
    errors: Vec<PlasmaError>,
    missing: usize,
}

/// A get that waits for some of its objects.
struct Get {
    client: ClientId,
    /// The ids as asked, where some occur more than once.
    asked: Option<Vec<ObjectId>>,
    places: Vec<Option<Placement>>,
    since: Instant,
    /// Some objects were not there yet when they were asked for; how long the answer of another shard takes is not meant.
    waited: bool,
}

/// The clients of one core.
#[derive(Default)]
pub struct PlasmaClients {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    clients: FxHashMap<ClientId, Client>,
    gets: Waits<Get>,
    next_request: u64,
    errors: FxHashMap<ObjectId, Vec<u8>>,
    encoder: Encoder,
    frame: Vec<u8>,
    specs: Vec<ObjectSpec>,
}

/// A frame of a client. False: it leaves.
///
/// # Errors
/// A message that is none: the connection can't be trusted any more.
pub fn frame(core: &Rc<Core>, client: ClientId, frame: Frame<'_>) -> Result<bool, ConnectionError> {
    let start = Instant::now();
    let request = decode(frame.message_type, frame.body).map_err(|e| ConnectionError::Frame(e.to_string()))?;
    let stays = core.plasma.request(core, client, start, &request)?;
    match request {
        // Recorded where they are answered, which may be later.
        Request::Create(_) | Request::CreateRetry { .. } | Request::Get { .. } => {}
        Request::Seal { .. } => core.recorder.borrow_mut().record_since(Operation::PlasmaSeal, start),
        _ => core.recorder.borrow_mut().record_since(Operation::PlasmaOther, start),
    }
    Ok(stays)
}

/// A connection ended.
pub fn ended(core: &Rc<Core>, client: ClientId, ended: Result<(), ConnectionError>) {
    if let Err(error) = ended {
        tracing::warn!(client, %error, "a connection to the plasma socket is closed");
    }
    core.plasma.ended(client);
    core.client_gone(client);
}

impl PlasmaClients {
    /// Number of connections.
    pub fn len(&self) -> usize {
        self.state.borrow().clients.len()
    }

    /// True without connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A client is there.
    pub fn add(&self, client: ClientId, writer: Writer, near: Near) {
        let (creates, known_files) = Default::default();
        let entry = Client { writer, near, known_segments: 0, known_files, creates, deletes: None };
        self.state.borrow_mut().clients.insert(client, entry);
    }

    fn ended(&self, client: ClientId) {
        let mut state = self.state.borrow_mut();
        state.clients.remove(&client);
        // The shards forget its waiting gets when they hear that the client is gone.
        for wait in state.gets.select(|get| get.client == client) {
            state.gets.finish(wait);
        }
    }

    /// Takes a request. False: the client leaves.
    fn request(
        &self,
        core: &Rc<Core>,
        client: ClientId,
        since: Instant,
        request: &Request<'_>,
    ) -> Result<bool, ConnectionError> {
        let token = 0;
        match request {
            Request::Get { object_ids, timeout_ms } => self.get(core, client, since, *object_ids, *timeout_ms)?,
            Request::Create(create) => self.create(core, client, since, create),
            Request::CreateRetry { object_id, request_id } => self.retry(core, client, *object_id, *request_id),
            Request::Seal { object_id: id } => core.store(id, StoreEvent::Seal { client, token, id: *id }),
            Request::Release { object_id: id, may_unmap } => {
                core.store(id, StoreEvent::Release { client, id: *id });
                if *may_unmap {
                    let unmap = self.forget_file(client, id);
                    self.reply(client, |e, out| encode_release_reply(e, out, id, unmap, PlasmaError::Ok));
                }
            }
            Request::Contains { object_id: id } => core.store(id, StoreEvent::Contains { client, token, id: *id }),
            Request::Abort { object_id: id } => core.store(id, StoreEvent::Abort { client, token, id: *id }),
            Request::Delete { object_ids } => self.delete(core, client, *object_ids),
            Request::Connect => {
                let capacity: u64 = core.segments().iter().map(|s| s.size_bytes()).sum();
                self.reply(client, |e, out| encode_connect_reply(e, out, capacity as i64));
            }
            Request::GetDebugString => {
                let text = core.debug_text();
                self.reply(client, |e, out| encode_debug_string_reply(e, out, text.as_bytes()));
            }
            Request::Disconnect => return Ok(false),
        }
        Ok(true)
    }

    fn reply(&self, client: ClientId, encode: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
        let state = &mut *self.state.borrow_mut();
        state.frame.clear();
        encode(&mut state.encoder, &mut state.frame);
        if let Some(client) = state.clients.get(&client) {
            send(client, &state.frame);
        }
    }

    /// An answer of an object table to one of this core's clients.
    pub fn answer(&self, core: &Rc<Core>, effect: StoreEffect) {
        match effect {
            StoreEffect::Created { client, id, result, .. } if Requester::local(client) == CORE_ITSELF => {
                self.error_created(core, id, result);
            }
            StoreEffect::Sealed { client, id, .. } if Requester::local(client) == CORE_ITSELF => {
                core.store(&id, StoreEvent::Release { client, id });
            }
            StoreEffect::Created { client, id, result, .. } => self.created(core, client, id, result),
            StoreEffect::Sealed { client, id, result, .. } => {
                self.reply(client, |e, out| encode_seal_reply(e, out, &id, code(result.err())));
            }
            StoreEffect::Aborted { client, id, .. } => self.reply(client, |e, out| encode_abort_reply(e, out, &id)),
            StoreEffect::Contained { client, id, has, .. } => {
                self.reply(client, |e, out| encode_contains_reply(e, out, &id, has));
            }
            StoreEffect::Deleted { client, id, result, .. } => self.deleted(client, id, result),
            StoreEffect::Got { client, token, id, place, waited, .. } => {
                self.got(core, client, token, id, place, waited);
            }
            _ => {}
        }
    }

    fn create(&self, core: &Rc<Core>, client: ClientId, since: Instant, create: &CreateRequest<'_>) {
        let id = create.object_id;
        let (request, near) = {
            let mut state = self.state.borrow_mut();
            state.next_request += 1;
            let request = state.next_request;
            let Some(entry) = state.clients.get_mut(&client) else {
                return;
            };
            entry.creates.insert(id, PendingCreate::Waiting { request, told: false, since });
            (request, entry.near.segment())
        };
        core.sightings.owner(core, create.owner_worker_id, || Owner {
            worker: create.owner_worker_id,
            node: create.owner_node_id,
            ip_address: create.owner_ip_address.to_owned(),
            port: create.owner_port,
        });
        core.store(
            &id,
            StoreEvent::Create {
                client,
                token: request,
                id,
                data_bytes: create.data_size_bytes,
                metadata_bytes: create.metadata_size_bytes,
                owner: create.owner_worker_id,
                source: ObjectSource::from_wire(create.source as i32).unwrap_or(ObjectSource::CreatedByWorker),
                mutable: create.is_mutable,
                try_immediately: create.try_immediately,
                near,
            },
        );
        if self.is_waiting(client, &id, request) {
            core.io.after(CREATE_ANSWER_LIMIT, move |core| core.plasma.tell_to_retry(client, id, request));
        }
    }

    fn is_waiting(&self, client: ClientId, id: &ObjectId, request: u64) -> bool {
        let state = self.state.borrow();
        let pending = state.clients.get(&client).and_then(|c| c.creates.get(id));
        matches!(pending, Some(PendingCreate::Waiting { request: r, .. }) if *r == request)
    }

    fn tell_to_retry(&self, client: ClientId, id: ObjectId, request: u64) {
        let told = match self.state.borrow_mut().clients.get_mut(&client).and_then(|c| c.creates.get_mut(&id)) {
            Some(PendingCreate::Waiting { request: r, told, .. }) if *r == request => !std::mem::replace(told, true),
            _ => false,
        };
        if told {
            self.reply(client, |e, out| encode_create_retry_later(e, out, &id, request));
        }
    }

    fn retry(&self, core: &Rc<Core>, client: ClientId, id: ObjectId, request: u64) {
        let pending = match self.state.borrow_mut().clients.get_mut(&client) {
            Some(entry) => entry.creates.remove(&id),
            None => return,
        };
        match pending {
            Some(PendingCreate::Done(result)) => self.answer_create(core, client, id, result),
            Some(waiting @ PendingCreate::Waiting { .. }) => {
                if let Some(entry) = self.state.borrow_mut().clients.get_mut(&client) {
                    entry.creates.insert(id, waiting);
                }
                self.reply(client, |e, out| encode_create_retry_later(e, out, &id, request));
            }
            None => self.reply(client, |e, out| encode_create_error(e, out, &id, PlasmaError::UnexpectedError)),
        }
    }

    fn created(&self, core: &Rc<Core>, client: ClientId, id: ObjectId, result: Result<Placement, StoreError>) {
        let told = {
            let mut state = self.state.borrow_mut();
            let Some(entry) = state.clients.get_mut(&client) else {
                return;
            };
            let pending = entry.creates.get_mut(&id);
            if let Some(PendingCreate::Waiting { since, .. }) = &pending {
                core.recorder.borrow_mut().record_since(Operation::PlasmaCreate, *since);
            }
            match pending {
                Some(pending @ PendingCreate::Waiting { told: true, .. }) => {
                    *pending = PendingCreate::Done(result);
                    true
                }
                _ => {
                    entry.creates.remove(&id);
                    false
                }
            }
        };
        if !told {
            self.answer_create(core, client, id, result);
        }
    }

    fn answer_create(&self, core: &Rc<Core>, client: ClientId, id: ObjectId, result: Result<Placement, StoreError>) {
        let place = match result {
            Ok(place) => place,
            Err(error) => return self.reply(client, |e, out| encode_create_error(e, out, &id, code(Some(error)))),
        };
        let range = place.header_offset..place.header_offset + place.allocated_bytes;
        let backed = core.with_segment(place.segment, |segment| {
            let inline = place.allocated_bytes <= BACK_INLINE_BYTES || segment.is_touched(&range);
            inline.then(|| segment.ensure_backed(range.clone()))
        });
        let Some(backed) = backed else {
            return self.not_backed(core, client, id);
        };
        if let Some(backed) = backed {
            match backed {
                Ok(()) => self.hand_out(core, client, id, &place),
                Err(error) => {
                    tracing::warn!(%error, "no memory for a new object");
                    self.not_backed(core, client, id);
                }
            }
        } else {
            let guest = core.clone();
            Io::guest(core, async move {
                let core = guest;
                let backed = back_in_background(&core, place.segment, range).await;
                match backed {
                    Ok(()) => core.plasma.hand_out(&core, client, id, &place),
                    Err(error) => {
                        tracing::warn!(error, "no memory for a new object");
                        core.plasma.not_backed(&core, client, id);
                    }
                }
            });
        }
    }

    /// The machine has no memory for the object: the client is told, instead of dying when it writes.
    fn not_backed(&self, core: &Rc<Core>, client: ClientId, id: ObjectId) {
        self.reply(client, |e, out| encode_create_error(e, out, &id, PlasmaError::OutOfMemory));
        core.abort_silently(client, id);
    }

    fn hand_out(&self, core: &Rc<Core>, client: ClientId, id: ObjectId, place: &Placement) {
        let spec = spec_of(core, place);
        let mmap_size = core.with_segment(place.segment, |segment| segment.size_bytes() as i64).unwrap_or(0);
        self.reply(client, |e, out| encode_create_reply(e, out, &id, &spec, mmap_size));
        self.pass_segments(core, client, std::iter::once((place.segment, id)));
    }

    /// The client no longer uses an object. True: it is in a file of its own, which it is to unmap.
    fn forget_file(&self, client: ClientId, id: &ObjectId) -> bool {
        self.state.borrow_mut().clients.get_mut(&client).is_some_and(|client| client.known_files.remove(id))
    }

    fn pass_segments(&self, core: &Rc<Core>, client: ClientId, segments: impl Iterator<Item = (u32, ObjectId)>) {
        let mut state = self.state.borrow_mut();
        let Some(client) = state.clients.get_mut(&client) else {
            return;
        };
        for (segment, id) in segments {
            if client.has_not_seen(core, segment, id) {
                let sent = core.with_segment(segment, |segment| client.writer.send_descriptor(segment.fd()));
                if let Some(Err(error)) = sent {
                    tracing::debug!(%error, "a client is gone before its segment");
                    client.writer.close();
                }
            }
        }
    }

    fn get(
        &self,
        core: &Rc<Core>,
        client: ClientId,
        since: Instant,
        ids: List<'_, ObjectId>,
        timeout_ms: i64,
    ) -> Result<(), ConnectionError> {
        let asked: Vec<ObjectId> = ids.iter().collect();
        let wait = {
            let mut state = self.state.borrow_mut();
            let get = Get { client, asked: None, places: Vec::new(), since, waited: false };
            let begun = state.gets.begin(asked.clone(), asked.len(), get);
            let wait = begun.map_err(|e| ConnectionError::Frame(format!("a get is refused: {e:?}")))?;
            let distinct = state.gets.objects(wait).len();
            if let Some(get) = state.gets.context_mut(wait) {
                get.places = vec![None; distinct];
                get.asked = (distinct < asked.len()).then_some(asked);
            }
            wait
        };
        let objects = self.state.borrow().gets.objects(wait).to_vec();
        if objects.is_empty() {
            self.finish_get(core, wait);
            return Ok(());
        }
        for (position, id) in objects.into_iter().enumerate() {
            let token = Requester::Shard(core.shard).tag(wait.token(position));
            core.store(&id, StoreEvent::Get { client, token, id, wait: timeout_ms != 0 });
        }
        let is_open = self.state.borrow_mut().gets.context_mut(wait).is_some();
        if is_open && timeout_ms > 0 {
            let timeout = Duration::from_millis(timeout_ms as u64);
            core.io.after(timeout, move |core| core.plasma.finish_get(core, wait));
        }
        Ok(())
    }

    fn got(
        &self,
        core: &Rc<Core>,
        client: ClientId,
        token: Token,
        id: ObjectId,
        place: Option<Placement>,
        waited: bool,
    ) {
        let (wait, position) = WaitId::from_token(Requester::local(token));
        let complete = {
            let mut state = self.state.borrow_mut();
            match state.gets.context_mut(wait) {
                Some(get) => {
                    get.places[position] = place;
                    get.waited |= waited;
                    Some(state.gets.ready(wait, position))
                }
                None => None,
            }
        };
        match complete {
            Some(true) => self.finish_get(core, wait),
            Some(false) => {}
            // The get ran out of time while the answer was on its way: the reference goes back.
            None if place.is_some() => core.store(&id, StoreEvent::Release { client, id }),
            None => {}
        }
    }

    fn finish_get(&self, core: &Rc<Core>, wait: WaitId) {
        let Some(finished) = self.state.borrow_mut().gets.finish(wait) else {
            return;
        };
        let Get { client, since, waited, .. } = finished.context;
        // What is not there by now has run out of time.
        let waited = waited || finished.ready.contains(&false);
        let operation = if waited { Operation::PlasmaGetWaited } else { Operation::PlasmaGet };
        core.recorder.borrow_mut().record_since(operation, since);
        for (position, id) in finished.objects.iter().enumerate() {
            if !finished.ready[position] {
                let token = Requester::Shard(core.shard).tag(wait.token(position));
                core.store(id, StoreEvent::CancelGet { client, token, id: *id });
            }
        }
        self.answer_get(core, client, &finished);
    }

    fn answer_get(&self, core: &Rc<Core>, client: ClientId, finished: &Finished<Get>) {
        let get = &finished.context;
        // Each segment with an object in it, which says what a file is for.
        let mut segments: Vec<(u32, ObjectId)> = Vec::new();
        let ids: &[ObjectId] = get.asked.as_deref().unwrap_or(&finished.objects);
        let by_id: FxHashMap<&ObjectId, usize> = match get.asked {
            Some(_) => finished.objects.iter().enumerate().map(|(at, id)| (id, at)).collect(),
            None => FxHashMap::default(),
        };
        {
            let state = &mut *self.state.borrow_mut();
            state.specs.clear();
            for (at, id) in ids.iter().enumerate() {
                let at = by_id.get(id).copied().unwrap_or(at);
                let spec = match &get.places[at] {
                    Some(place) => {
                        if !segments.iter().any(|(segment, _)| *segment == place.segment) {
                            segments.push((place.segment, *id));
                        }
                        spec_of(core, place)
                    }
                    None => ObjectSpec::ABSENT,
                };
                state.specs.push(spec);
            }
            let fd = |(segment, _): &(u32, ObjectId)| descriptor_of(core, *segment);
            let size = |segment: &Segment| segment.size_bytes() as i64;
            let fds: Vec<i32> = segments.iter().map(fd).collect();
            let unique: Vec<i64> = segments.iter().map(|(segment, _)| unique_fd_id(*segment)).collect();
            let sizes = segments.iter().map(|(segment, _)| core.with_segment(*segment, size).unwrap_or(0));
            let sizes: Vec<i64> = sizes.collect();
            state.frame.clear();
            let reply = GetReply {
                object_ids: List::from(ids),
                objects: List::from(&state.specs[..]),
                store_fds: List::from(&fds[..]),
                unique_fd_ids: List::from(&unique[..]),
                mmap_sizes_bytes: List::from(&sizes[..]),
            };
            encode_get_reply(&mut state.encoder, &mut state.frame, &reply);
            if let Some(client) = state.clients.get(&client) {
                send(client, &state.frame);
            }
        }
        self.pass_segments(core, client, segments.into_iter());
    }

    fn delete(&self, core: &Rc<Core>, client: ClientId, ids: List<'_, ObjectId>) {
        let ids: Vec<ObjectId> = ids.iter().collect();
        let distinct: FxHashSet<ObjectId> = ids.iter().copied().collect();
        let pending = PendingDelete { errors: vec![PlasmaError::Ok; ids.len()], missing: distinct.len(), ids };
        if let Some(entry) = self.state.borrow_mut().clients.get_mut(&client) {
            entry.deletes = Some(pending);
        }
        if distinct.is_empty() {
            return self.answer_delete(client);
        }
        for id in distinct {
            core.store(&id, StoreEvent::Delete { client, token: 0, id });
        }
    }

    fn deleted(&self, client: ClientId, id: ObjectId, result: Result<(), StoreError>) {
        let done = {
            let mut state = self.state.borrow_mut();
            let pending = state.clients.get_mut(&client).and_then(|c| c.deletes.as_mut());
            let Some(pending) = pending else {
                return;
            };
            for (at, _) in pending.ids.iter().enumerate().filter(|(_, i)| **i == id) {
                pending.errors[at] = code(result.err());
            }
            pending.missing -= 1;
            pending.missing == 0
        };
        if done {
            self.answer_delete(client);
        }
    }

    fn answer_delete(&self, client: ClientId) {
        let pending = self.state.borrow_mut().clients.get_mut(&client).and_then(|c| c.deletes.take());
        if let Some(pending) = pending {
            self.reply(client, |e, out| {
                encode_delete_reply(e, out, List::from(&pending.ids[..]), List::from(&pending.errors[..]));
            });
        }
    }

    /// Stores an error in the place of an object that will never come.
    pub fn put_error(&self, core: &Rc<Core>, id: ObjectId, metadata: Vec<u8>) {
        let metadata_bytes = metadata.len() as u64;
        self.state.borrow_mut().errors.insert(id, metadata);
        let client = Requester::Shard(core.shard).tag(CORE_ITSELF);
        core.store(
            &id,
            StoreEvent::Create {
                client,
                token: 0,
                id,
                data_bytes: 0,
                metadata_bytes,
                owner: WorkerId::NIL,
                source: ObjectSource::ErrorStoredByRaylet,
                mutable: false,
                try_immediately: true,
                near: None,
            },
        );
    }

    fn error_created(&self, core: &Rc<Core>, id: ObjectId, result: Result<Placement, StoreError>) {
        let Some(metadata) = self.state.borrow_mut().errors.remove(&id) else {
            return;
        };
        let client = Requester::Shard(core.shard).tag(CORE_ITSELF);
        let place = match result {
            Ok(place) => place,
            Err(StoreError::ObjectExists) => return,
            Err(error) => {
                return tracing::error!(%id, %error, "an error cannot be stored; whoever gets the object may wait for ever")
            }
        };
        let range = place.header_offset..place.header_offset + place.allocated_bytes;
        let written = core.with_segment(place.segment, |segment| {
            let backed = segment.ensure_backed(range);
            backed.and_then(|()| segment.write_at(place.metadata_offset, &metadata)).map_err(|e| e.to_string())
        });
        match written.unwrap_or_else(|| Err("no such segment".to_owned())) {
            Ok(()) => core.store(&id, StoreEvent::Seal { client, token: 0, id }),
            Err(error) => {
                tracing::error!(%id, %error, "an error cannot be stored; whoever gets the object may wait for ever");
                core.store(&id, StoreEvent::Abort { client, token: 0, id });
            }
        }
    }
}

/// Has a helper thread back a range of fresh memory. The error is in words.
pub async fn back_in_background(core: &Rc<Core>, segment: u32, range: Range<u64>) -> Result<(), String> {
    let segments = core.segments_shared();
    let backed = glommio::executor().spawn_blocking(move || {
        let segment = segments.get(segment as usize)?;
        Some(segment.ensure_backed(range).map_err(|e| e.to_string()))
    });
    backed.await.unwrap_or_else(|| Err("no such segment".to_owned()))
}

fn send(client: &Client, frame: &[u8]) {
    if let Err(error) = client.writer.send(frame) {
        tracing::debug!(%error, "a client is gone before its answer");
        client.writer.close();
    }
}

fn code(error: Option<StoreError>) -> PlasmaError {
    match error {
        None => PlasmaError::Ok,
        Some(StoreError::ObjectExists) => PlasmaError::ObjectExists,
        Some(StoreError::ObjectNonexistent) => PlasmaError::ObjectNonexistent,
        Some(StoreError::OutOfMemory | StoreError::QueueFull) => PlasmaError::OutOfMemory,
        Some(StoreError::OutOfDisk) => PlasmaError::OutOfDisk,
        Some(StoreError::ObjectNotSealed) => PlasmaError::ObjectNotSealed,
        Some(StoreError::ObjectInUse) => PlasmaError::ObjectInUse,
        Some(StoreError::ObjectSealed) => PlasmaError::ObjectSealed,
        Some(StoreError::NotCreator | StoreError::UnknownRun) => PlasmaError::UnexpectedError,
    }
}

/// A segment's descriptor, by which clients know it again.
fn descriptor_of(core: &Core, segment: u32) -> i32 {
    core.with_segment(segment, |segment| segment.fd().as_raw_fd()).unwrap_or(-1)
}

/// Tells a segment apart from another that gets the same descriptor number; segments live as long as the node.
fn unique_fd_id(segment: u32) -> i64 {
    i64::from(segment) + 1
}

fn spec_of(core: &Core, place: &Placement) -> ObjectSpec {
    ObjectSpec {
        store_fd: descriptor_of(core, place.segment),
        unique_fd_id: unique_fd_id(place.segment),
        header_offset_bytes: place.header_offset,
        data_offset_bytes: place.data_offset,
        data_size_bytes: place.data_bytes,
        metadata_offset_bytes: place.metadata_offset,
        metadata_size_bytes: place.metadata_bytes,
        allocated_size_bytes: place.allocated_bytes,
        fallback_allocated: place.segment as usize >= core.segments().len(),
        device_num: 0,
        is_mutable: place.header_offset != place.data_offset,
    }
}
