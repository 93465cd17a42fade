//! Connections to the raylet socket, on the core that accepted them.
//!
//! What concerns objects is answered here: `ray.wait`, the arguments of actor calls, single objects that a worker awaits.
//! Everything else goes to the control thread, which knows workers, jobs and leases.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{ClientId, ObjectId, ShardId, TaskId, Token};
use raylet_shard::store::StoreEvent;
use raylet_shard::waits::{Finished, WaitId, Waits};
use rustc_hash::FxHashMap;

use crate::bridge::{shard_of_object, PeerMessage, Requester, ToControl};
use crate::core_loop::Core;
use crate::observe::histogram::Operation;
use crate::ray::messages::{ClientMessage, FetchId, Owner, Register};
use crate::ray::wire::frame::Frame;
use crate::ray::wire::raylet::{decode, encode_wait_reply, ObjectRefs, OwnerAddress, Request, WaitReply};
use crate::ray::wire::{Encoder, List};
use crate::socket::{ConnectionError, Writer};

/// What a wait for objects is for.
#[derive(Debug)]
enum Waiting {
    /// `ray.wait`: answer on the connection.
    /// Without time to wait, it is answered when `looking` other shards have said which of its objects they have.
    Wait { conn: ClientId, most: usize, fetched: bool, looking: usize, since: Instant },
    /// The plasma arguments of an actor call.
    ActorArgs { conn: ClientId, task: TaskId, attempt: i32 },
    /// One object that a coroutine of the worker awaits.
    PlasmaReady { conn: ClientId, object: ObjectId },
}

impl Waiting {
    fn conn(&self) -> ClientId {
        match self {
            Self::Wait { conn, .. } | Self::ActorArgs { conn, .. } | Self::PlasmaReady { conn, .. } => *conn,
        }
    }
}

/// The connections of one core.
#[derive(Default)]
pub struct RayletClients {
    writers: RefCell<FxHashMap<ClientId, Writer>>,
    waits: RefCell<Waits<Waiting>>,
    encoder: RefCell<Encoder>,
    /// True while watches are being set up: whoever does that looks at the outcome itself.
    beginning: Cell<bool>,
}

/// A frame of a connection. The control thread decides when one is closed, so the answer is always true.
///
/// # Errors
/// A message that is none: the connection can't be trusted any more.
pub fn frame(core: &Rc<Core>, conn: ClientId, frame: Frame<'_>) -> Result<bool, ConnectionError> {
    let request = decode(frame.message_type, frame.body).map_err(|e| ConnectionError::Frame(e.to_string()))?;
    core.raylet.request(core, conn, &request)?;
    Ok(true)
}

/// A connection ended.
pub fn ended(core: &Rc<Core>, conn: ClientId, ended: Result<(), ConnectionError>) {
    let error = ended.err().map(|e| e.to_string());
    if let Some(error) = &error {
        tracing::warn!(conn, error, "a connection to the raylet socket is closed");
    }
    core.raylet.ended(core, conn);
    core.lanes.gets_over(conn);
    core.tell_control(ToControl::Gone { conn, error });
}

impl RayletClients {
    /// Number of connections.
    pub fn len(&self) -> usize {
        self.writers.borrow().len()
    }

    /// True without connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A connection is there.
    pub fn add(&self, conn: ClientId, writer: Writer) {
        self.writers.borrow_mut().insert(conn, writer);
    }

    /// Sends a frame to a connection, if it is still there.
    pub fn send(&self, _core: &Rc<Core>, conn: ClientId, frame: &[u8]) {
        let writer = self.writers.borrow().get(&conn).cloned();
        if let Some(Err(error)) = writer.as_ref().map(|writer| writer.send(frame)) {
            tracing::debug!(conn, %error, "a client is gone before its answer");
            self.close(conn);
        }
    }

    /// Closes a connection once everything sent to it is out.
    pub fn close(&self, conn: ClientId) {
        if let Some(writer) = self.writers.borrow().get(&conn) {
            writer.close();
        }
    }

    fn ended(&self, core: &Rc<Core>, conn: ClientId) {
        self.writers.borrow_mut().remove(&conn);
        let left = self.waits.borrow().select(|waiting| waiting.conn() == conn);
        for wait in left {
            self.finish(core, wait, false);
        }
    }

    fn request(&self, core: &Rc<Core>, conn: ClientId, request: &Request<'_>) -> Result<(), ConnectionError> {
        match request {
            Request::Wait { refs, num_required, timeout_ms } => {
                return self.wait(core, conn, refs, *num_required, *timeout_ms);
            }
            Request::WaitForActorCallArgs { refs, task_id, attempt_number } => {
                let waiting = Waiting::ActorArgs { conn, task: *task_id, attempt: *attempt_number };
                let all = refs.len();
                let wait = self.begin(core, refs.object_ids, all, waiting)?;
                self.fetch_missing(core, conn, FetchId::Wait(wait.index()), refs, wait);
                self.settle(core, wait);
                return Ok(());
            }
            Request::SubscribePlasmaReady { object_id, owner } => {
                return self.subscribe(core, conn, *object_id, owner);
            }
            Request::AsyncGet { refs, request_id } => {
                let objects = refs.iter().map(|(id, owner)| (id, owned_owner(&owner)));
                if core.lanes.get_ahead(core, conn, *request_id, objects) {
                    return Ok(());
                }
            }
            Request::CancelGet { request_id } if core.lanes.get_over(conn, *request_id) => return Ok(()),
            _ => {}
        }
        core.tell_control(ToControl::Message { conn, message: owned(core, request) });
        Ok(())
    }

    fn wait(
        &self,
        core: &Rc<Core>,
        conn: ClientId,
        refs: &ObjectRefs<'_>,
        num_required: i32,
        timeout_ms: i64,
    ) -> Result<(), ConnectionError> {
        let most = usize::try_from(num_required).unwrap_or(0);
        let wait = self.begin(
            core,
            refs.object_ids,
            most,
            Waiting::Wait { conn, most, fetched: false, looking: 0, since: Instant::now() },
        )?;
        if most == 0 || !self.waits.borrow().is_complete(wait) {
            let fetched = self.fetch_missing(core, conn, FetchId::Wait(wait.index()), refs, wait);
            if let Some(Waiting::Wait { fetched: f, .. }) = self.waits.borrow_mut().context_mut(wait) {
                *f = fetched;
            }
        }
        if timeout_ms == 0 {
            if self.settle(core, wait) || self.look(core, wait) == 0 {
                self.finish(core, wait, true);
            }
        } else if !self.settle(core, wait) && timeout_ms > 0 {
            let timeout = Duration::from_millis(timeout_ms as u64);
            core.io.after(timeout, move |core| core.raylet.finish(core, wait, true));
        }
        Ok(())
    }

    /// Has the other shards say when they have told which objects of a wait they have; returns how many will.
    fn look(&self, core: &Rc<Core>, wait: WaitId) -> usize {
        let missing = self.waits.borrow().missing(wait);
        let others: BTreeSet<ShardId> =
            missing.iter().map(|id| shard_of_object(id, core.shards())).filter(|shard| *shard != core.shard).collect();
        if let Some(Waiting::Wait { looking, .. }) = self.waits.borrow_mut().context_mut(wait) {
            *looking = others.len();
        }
        for shard in &others {
            core.send_peer(*shard, PeerMessage::Look { from: core.shard, wait });
        }
        others.len()
    }

    /// A shard has told which objects of a wait it has.
    pub fn looked(&self, core: &Rc<Core>, wait: WaitId) {
        let all = match self.waits.borrow_mut().context_mut(wait) {
            Some(Waiting::Wait { looking, .. }) => {
                *looking = looking.saturating_sub(1);
                *looking == 0
            }
            _ => false,
        };
        if all {
            self.finish(core, wait, true);
        }
    }

    fn subscribe(
        &self,
        core: &Rc<Core>,
        conn: ClientId,
        object: ObjectId,
        owner: &OwnerAddress<'_>,
    ) -> Result<(), ConnectionError> {
        let waiting = Waiting::PlasmaReady { conn, object };
        let begun = self.waits.borrow_mut().begin(vec![object], 1, waiting);
        let wait = begun.map_err(|e| ConnectionError::Frame(format!("{e:?}")))?;
        self.watch_all(core, wait);
        if !self.settle(core, wait) {
            let objects = vec![(object, owned_owner(owner))];
            let (id, here) = (FetchId::Wait(wait.index()), core.has(&object).map(|here| vec![here]));
            core.tell_control(ToControl::Message { conn, message: ClientMessage::Fetch { id, objects, here } });
        }
        Ok(())
    }

    fn begin(
        &self,
        core: &Rc<Core>,
        ids: List<'_, ObjectId>,
        required: usize,
        waiting: Waiting,
    ) -> Result<WaitId, ConnectionError> {
        let objects = ids.iter().collect();
        let begun = self.waits.borrow_mut().begin(objects, required, waiting);
        let wait = begun.map_err(|e| ConnectionError::Frame(format!("a wait is refused: {e:?}")))?;
        self.watch_all(core, wait);
        Ok(wait)
    }

    fn watch_all(&self, core: &Rc<Core>, wait: WaitId) {
        let objects = self.waits.borrow().objects(wait).to_vec();
        self.beginning.set(true);
        for (position, id) in objects.into_iter().enumerate() {
            let token = Requester::Shard(core.shard).tag(wait.token(position));
            core.store(&id, StoreEvent::Watch { token, id });
        }
        self.beginning.set(false);
    }

    /// Tells the control thread which objects of a wait are not here, so that it can say when they never will be.
    fn fetch_missing(&self, core: &Rc<Core>, conn: ClientId, id: FetchId, refs: &ObjectRefs<'_>, wait: WaitId) -> bool {
        let missing = self.waits.borrow().missing(wait);
        if missing.is_empty() {
            return false;
        }
        let wanted = refs.iter().filter(|(id, _)| missing.contains(id));
        let objects: Vec<_> = wanted.map(|(id, owner)| (id, owned_owner(&owner))).collect();
        let here = objects.iter().map(|(id, _)| core.has(id)).collect();
        core.tell_control(ToControl::Message { conn, message: ClientMessage::Fetch { id, objects, here } });
        true
    }

    /// True until the wait that a watch is for has ended.
    pub fn still_waits(&self, token: Token) -> bool {
        let (wait, _) = WaitId::from_token(Requester::local(token));
        self.waits.borrow_mut().context_mut(wait).is_some()
    }

    /// An object that a wait watches is sealed.
    pub fn watched(&self, core: &Rc<Core>, token: Token) {
        let (wait, position) = WaitId::from_token(Requester::local(token));
        let complete = self.waits.borrow_mut().ready(wait, position);
        if complete && !self.beginning.get() {
            self.settle(core, wait);
        }
    }

    /// Ends a wait that has all it requires. True when it ended.
    fn settle(&self, core: &Rc<Core>, wait: WaitId) -> bool {
        let complete = self.waits.borrow().is_complete(wait);
        if complete {
            self.finish(core, wait, true);
        }
        complete
    }

    fn finish(&self, core: &Rc<Core>, wait: WaitId, answer: bool) {
        let Some(finished) = self.waits.borrow_mut().finish(wait) else {
            return;
        };
        for (position, id) in finished.objects.iter().enumerate() {
            if !finished.ready[position] {
                let token = Requester::Shard(core.shard).tag(wait.token(position));
                core.store(id, StoreEvent::Unwatch { token, id: *id });
            }
        }
        let conn = finished.context.conn();
        let fetched = !matches!(finished.context, Waiting::Wait { fetched: false, .. });
        if fetched {
            let message = ClientMessage::CancelFetch { id: FetchId::Wait(wait.index()) };
            core.tell_control(ToControl::Message { conn, message });
        }
        if !answer {
            return;
        }
        match finished.context {
            Waiting::Wait { conn, most, since, .. } => {
                self.answer_wait(core, conn, most, &finished);
                core.recorder.borrow_mut().record_since(Operation::ObjectWait, since);
            }
            Waiting::ActorArgs { conn, task, attempt } => {
                let message = ClientMessage::ActorArgsReady { task, attempt };
                core.tell_control(ToControl::Message { conn, message });
            }
            Waiting::PlasmaReady { conn, object } => {
                core.tell_control(ToControl::Message { conn, message: ClientMessage::PlasmaReady { object } });
            }
        }
    }

    /// At most as many as asked for are told as found, the first ones; the others count as remaining.
    fn answer_wait(&self, core: &Rc<Core>, conn: ClientId, most: usize, finished: &Finished<Waiting>) {
        let (mut found, mut remaining) = (Vec::new(), Vec::new());
        if most > 0 {
            for (id, ready) in finished.objects.iter().zip(&finished.ready) {
                if *ready && found.len() < most {
                    found.push(*id);
                } else {
                    remaining.push(*id);
                }
            }
        }
        let mut frame = Vec::new();
        let reply = WaitReply { found: List::from(&found[..]), remaining: List::from(&remaining[..]) };
        encode_wait_reply(&mut self.encoder.borrow_mut(), &mut frame, &reply);
        self.send(core, conn, &frame);
    }
}

fn owned_owner(owner: &OwnerAddress<'_>) -> Owner {
    Owner { worker: owner.worker_id, node: owner.node_id, ip_address: owner.ip_address.to_owned(), port: owner.port }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn owned(core: &Core, request: &Request<'_>) -> ClientMessage {
    match request {
        Request::RegisterClient(r) => ClientMessage::Register(Register {
            worker_type: r.worker_type,
            worker: r.worker_id,
            pid: r.worker_pid,
            job: r.job_id,
            runtime_env_hash: r.runtime_env_hash,
            language: r.language,
            ip_address: r.ip_address.to_owned(),
            job_config: r.serialized_job_config.to_vec(),
        }),
        Request::AnnouncePort { port, entrypoint } => {
            ClientMessage::AnnouncePort { port: *port, entrypoint: text(entrypoint) }
        }
        Request::Disconnect(d) => ClientMessage::Disconnect {
            exit_type: d.exit_type,
            detail: text(d.detail),
            creation_exception: (!d.creation_task_exception.is_empty()).then(|| d.creation_task_exception.to_vec()),
        },
        Request::AsyncGet { refs, request_id } => ClientMessage::Fetch {
            id: FetchId::Get(*request_id),
            objects: refs.iter().map(|(id, owner)| (id, owned_owner(&owner))).collect(),
            here: refs.iter().map(|(id, _)| core.has(&id)).collect(),
        },
        Request::CancelGet { request_id } => ClientMessage::CancelFetch { id: FetchId::Get(*request_id) },
        Request::WorkerBlocked => ClientMessage::Blocked,
        Request::WorkerUnblocked => ClientMessage::Unblocked,
        Request::PushError(e) => ClientMessage::PushError {
            job: e.job_id,
            kind: text(e.error_type),
            message: text(e.message),
            timestamp_s: e.timestamp_s,
        },
        Request::FreeObjects { local_only, object_ids } => {
            ClientMessage::FreeObjects { objects: object_ids.iter().collect(), local_only: *local_only }
        }
        Request::ActorCreationTaskDone
        | Request::Wait { .. }
        | Request::WaitForActorCallArgs { .. }
        | Request::SubscribePlasmaReady { .. } => ClientMessage::ActorCreationDone,
    }
}
