//! The clients of a core: what comes from them, and what goes to them after each batch.
//!
//! **Rings.** A ring is *awake* while the loop looks at it in every turn. When nothing came for [`NativeShared::spin`] the core parks
//! all of them: it says in each ring that it sleeps, and then really does; a client that writes rings the bell, which the core's
//! io_uring watches. A ring that is quiet while others are busy is parked by itself.
//!
//! **Answers** go into the ring at once. What has to be done for a client afterwards (its bell, bytes for its socket) is done once
//! for a batch, for those that are noted as *dirty*.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use raylet_shard::ids::{ClientId, Token, WorkerId};
use raylet_transport::ids as wire;
use raylet_transport::messages::{
    capability, node_event, topic, Archived, Hello, Message, NewPutTask, NodeEvent, OpenRing, PutTask, Refusal,
    RefusalCode, Request, SegmentInfo, Subscribe, Welcome, HELLO_MAGIC,
};
use raylet_transport::ring::Record;
use raylet_transport::server::{check_hello, Connection, ConnectionError, Failure, Outcome, ReplyTo};
use rustc_hash::FxHashMap;
use slab::Slab;

use super::client::Client;
use super::control::NativeAsk;
use super::objects::Group;
use super::pending::{Op, Pending};
use super::{NativeShared, Topic};
use crate::bridge::{Requester, ToControl};
use crate::core_io::Wish;
use crate::core_loop::Core;
use crate::near::Near;

/// Requests of one ring or socket taken in a turn before others get theirs.
const BUDGET: usize = 64;

/// Turns in which a ring may be quiet while others are busy before it is parked by itself.
const QUIET_TURNS: u32 = 10_000;

/// The native door of one core.
#[derive(Default)]
pub struct Natives {
    shared: RefCell<Option<Arc<NativeShared>>>,
    clients: RefCell<FxHashMap<u64, Rc<Client>>>,
    awake: RefCell<Vec<Rc<Client>>>,
    dirty: RefCell<Vec<Rc<Client>>>,
    /// Where requests are read into.
    record: RefCell<Option<Record>>,
    /// Requests that shards have.
    pub(super) pending: RefCell<Pending>,
    /// Requests about several objects.
    pub(super) groups: RefCell<Slab<Group>>,
    /// Who a granted lease with a worker belongs to, by the number of its assignment.
    pub(super) assignments: RefCell<FxHashMap<u64, (Rc<Client>, u32)>>,
    pub(super) last_assignment: Cell<u64>,
    /// Leases whose objects other nodes are asked for.
    pub(super) wished_deps: super::wishes::WishedDeps,
    /// Leases that wait are looked at from time to time.
    pub(super) looks_for_room: Cell<bool>,
    /// Where workers can be reached.
    pub(super) addresses: RefCell<FxHashMap<WorkerId, Box<str>>>,
}

/// A refusal as the outcome of a request.
pub fn refused(code: RefusalCode, detail: impl Into<String>) -> Failure {
    Refusal::new(code, detail).into()
}

impl Natives {
    /// The door opens.
    pub fn open(&self, shared: Arc<NativeShared>) {
        *self.shared.borrow_mut() = Some(shared);
    }

    /// What all cores know of the door; `None` while it is closed.
    pub(super) fn shared(&self) -> Option<Arc<NativeShared>> {
        self.shared.borrow().clone()
    }

    /// True where a client of any core wants events of a topic.
    pub(super) fn has_listeners(&self, topic: Topic) -> bool {
        self.shared.borrow().as_ref().is_some_and(|shared| shared.listening(topic).next().is_some())
    }

    /// Clients connected.
    pub fn count(&self) -> usize {
        self.clients.borrow().len()
    }

    /// The client of this core with this number.
    pub(super) fn client(&self, id: ClientId) -> Option<Rc<Client>> {
        self.clients.borrow().get(&Requester::local(id)).cloned()
    }

    /// All clients of this core.
    pub(super) fn all(&self) -> Vec<Rc<Client>> {
        self.clients.borrow().values().cloned().collect()
    }

    /// A new connection. False: the door is closed.
    pub fn connect(&self, id: ClientId, stream: &Rc<OwnedFd>, near: Near) -> bool {
        let Some(shared) = self.shared() else {
            return false;
        };
        let client = Client::new(&shared, id, stream.clone(), near);
        self.clients.borrow_mut().insert(client.key, client);
        true
    }

    /// Bytes came on a client's socket.
    pub fn received(core: &Rc<Core>, key: u64, bytes: &[u8]) {
        let found = core.native.clients.borrow().get(&key).cloned();
        let Some(client) = found.filter(|client| !client.is_closed.get()) else {
            return;
        };
        client.connection.borrow_mut().on_bytes(bytes);
        serve(core, &client, Connection::next_from_socket, BUDGET);
        let ahead = client.connection.borrow().check_ahead();
        if let Err(error) = ahead {
            close(core, &client, &error);
        }
        // More than a batch is taken up after it.
        core.native.mark_dirty(&client);
    }

    /// A client's socket has room again.
    pub fn writable(core: &Rc<Core>, key: u64) {
        let client = core.native.clients.borrow().get(&key).cloned();
        client.inspect(|client| client.writable(&core.io));
    }

    /// A client has rung.
    pub fn bell(core: &Rc<Core>, key: u64) {
        let client = core.native.clients.borrow().get(&key).cloned();
        client.inspect(|client| core.native.wake(client));
    }

    fn wake(&self, client: &Rc<Client>) {
        client.idle_turns.set(0);
        if !client.is_awake.replace(true) {
            client.connection.borrow_mut().awake();
            self.awake.borrow_mut().push(client.clone());
        }
    }

    /// Notes a client for [`Self::after_batch`].
    pub(super) fn mark_dirty(&self, client: &Rc<Client>) {
        if !client.is_dirty.replace(true) {
            self.dirty.borrow_mut().push(client.clone());
        }
    }

    /// True while there are rings to look at.
    pub fn is_awake(&self) -> bool {
        !self.awake.borrow().is_empty()
    }

    /// How long to look at quiet rings; `None`: for ever.
    pub fn spin(&self) -> Option<Duration> {
        self.shared.borrow().as_ref().map_or(Some(Duration::ZERO), |shared| shared.spin)
    }

    /// Looks at every ring that is awake. True: there was something.
    pub fn turn(core: &Rc<Core>) -> bool {
        let native = &core.native;
        let mut awake = std::mem::take(&mut *native.awake.borrow_mut());
        let mut was_busy = false;
        awake.retain(|client| {
            if client.is_closed.get() {
                return false;
            }
            let behind = client.connection.borrow().behind();
            let mut is_busy = serve(core, client, Connection::next_from_ring, BUDGET) > 0;
            if client.connection.borrow().behind() < behind {
                // Answers that had waited for room are in the ring now.
                native.mark_dirty(client);
                is_busy = true;
            }
            was_busy |= is_busy;
            client.idle_turns.set(if is_busy { 0 } else { client.idle_turns.get() + 1 });
            let stays = client.idle_turns.get() < QUIET_TURNS || native.spin().is_none();
            stays || !park(core, client)
        });
        // Those that were woken meanwhile.
        let mut now_awake = native.awake.borrow_mut();
        awake.append(&mut now_awake);
        *now_awake = awake;
        was_busy
    }

    /// Says in every ring that the core sleeps. False: there is something to do.
    pub fn park(core: &Rc<Core>) -> bool {
        let mut awake = std::mem::take(&mut *core.native.awake.borrow_mut());
        awake.retain(|client| !client.is_closed.get() && !park(core, client));
        let mut now_awake = core.native.awake.borrow_mut();
        awake.append(&mut now_awake);
        *now_awake = awake;
        now_awake.is_empty()
    }

    /// After a batch: bells are rung, and bytes go out.
    pub fn after_batch(core: &Rc<Core>) {
        super::wishes::flush(core);
        loop {
            let Some(client) = core.native.dirty.borrow_mut().pop() else {
                return;
            };
            client.is_dirty.set(false);
            if !client.is_closed.get() {
                // Answers may have made room for requests that waited.
                if serve(core, &client, Connection::next_from_socket, BUDGET) == BUDGET {
                    core.native.mark_dirty(&client);
                }
                let must_look = client.bell.borrow().is_some() && !client.is_awake.get();
                if must_look && client.connection.borrow().wants_bytes() && serve_parked(core, &client) {
                    core.native.wake(&client);
                }
            }
            ring(core, &client);
            client.flush(&core.io);
        }
    }

    /// A client's connection ended.
    pub fn ended(core: &Rc<Core>, key: u64) {
        let Some(client) = core.native.clients.borrow_mut().remove(&key) else {
            return;
        };
        // What is in the ring is complete, and done before the client is forgotten.
        if !client.is_closed.get() {
            serve(core, &client, Connection::next_from_ring, usize::MAX);
        }
        client.is_closed.set(true);
        if client.bell.borrow_mut().take().is_some() {
            core.io.wish(Wish::ForgetBell(key));
        }
        core.native.pending.borrow_mut().forget(&client);
        super::objects::forget(core, &client);
        super::leases::forget(core, &client);
        super::workers::forget(core, &client);
        core.native.subscribe(core, &client, 0);
        core.native.tell_node(core, node_event::CLIENT_GONE, format!("client {} of process {}", client.id, client.pid));
    }

    /// Tells the clients of all cores that want to know.
    fn tell_node(&self, core: &Core, what: u8, detail: String) {
        if self.has_listeners(Topic::Node) {
            core.tell_control(ToControl::Native(NativeAsk::Tell(NodeEvent { what, detail })));
        }
    }

    /// An event of the node, for clients of this core.
    pub fn node_event(core: &Rc<Core>, event: &NodeEvent) {
        core.native.for_topic(topic::NODE, |client| client.event(core, event, false));
    }

    pub(super) fn for_topic(&self, topic: u32, tell: impl Fn(&Rc<Client>)) {
        let clients = self.clients.borrow();
        clients.values().filter(|client| client.topics.get() & topic != 0).for_each(tell);
    }

    fn subscribe(&self, core: &Core, client: &Client, topics: u32) {
        let before = client.topics.replace(topics);
        let Some(shared) = self.shared() else {
            return;
        };
        for (bit, topic) in [(topic::OBJECTS, Topic::Objects), (topic::NODE, Topic::Node)] {
            match (before & bit != 0, topics & bit != 0) {
                (false, true) => shared.listens(core.shard, topic, true),
                (true, false) => shared.listens(core.shard, topic, false),
                _ => {}
            }
        }
    }

    /// Notes a request that a shard is asked about.
    pub(super) fn note(&self, core: &Core, client: &Rc<Client>, to: ReplyTo, op: Op) -> Token {
        self.pending.borrow_mut().add(core.shard, client, to, op)
    }
}

/// A parked ring is not looked at, unless its client waited for answers and can't ring: it said all it had to say.
fn serve_parked(core: &Rc<Core>, client: &Rc<Client>) -> bool {
    serve(core, client, Connection::next_from_ring, BUDGET) > 0
}

/// Parks one ring. False: there is something in it. One that is broken is closed.
fn park(core: &Rc<Core>, client: &Rc<Client>) -> bool {
    let announced = client.connection.borrow_mut().announce_sleep();
    match announced {
        Ok(parked) => {
            client.is_awake.set(!parked);
            parked
        }
        Err(error) => {
            client.is_awake.set(false);
            close(core, client, &error);
            true
        }
    }
}

/// Rings a client's bell if it sleeps and something was put into its ring.
fn ring(core: &Core, client: &Client) {
    let bell = client.bell.borrow();
    let Some(bell) = bell.as_ref() else {
        return;
    };
    if client.connection.borrow_mut().must_ring() {
        core.io.wish(Wish::RingBell(client.key, bell.clone()));
    }
}

type Next = fn(&mut Connection, &mut Record) -> Result<Option<ReplyTo>, ConnectionError>;

/// Takes requests until there is none, or the budget is spent; how many.
fn serve(core: &Rc<Core>, client: &Rc<Client>, next: Next, budget: usize) -> usize {
    // Out of its place meanwhile, since what a shard is asked may come back here at once.
    let mut record = core.native.record.take().unwrap_or_default();
    let mut served = 0;
    while served < budget && !client.is_closed.get() {
        let taken = next(&mut client.connection.borrow_mut(), &mut record);
        let outcome = match taken {
            Ok(None) => break,
            Ok(Some(to)) => handle(core, client, to, &record),
            Err(error) => Err(error),
        };
        served += 1;
        if let Err(error) = outcome {
            close(core, client, &error);
        }
    }
    core.native.record.replace(Some(record));
    served
}

/// Tells a client why, and closes its connection.
fn close(core: &Rc<Core>, client: &Rc<Client>, error: &ConnectionError) {
    tracing::info!(pid = client.pid, client = client.id, %error, "a native client is cut off");
    let code = match error {
        ConnectionError::Ring(_) => RefusalCode::RingBroken,
        ConnectionError::NotHello { .. } => RefusalCode::NotHello,
        ConnectionError::Unread { .. } | ConnectionError::Ahead { .. } => RefusalCode::LimitReached,
        _ => RefusalCode::Malformed,
    };
    client.connection.borrow_mut().close_with(&Refusal::new(code, error.to_string()));
    client.flush(&core.io);
    client.shut();
}

fn handle(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, record: &Record) -> Result<(), ConnectionError> {
    let outcome = match Request::read(record.head(), record.body()) {
        Ok(request) => request_of(core, client, to, request),
        Err(error) => {
            let told = client.connection.borrow_mut().refuse_frame(to, &error);
            core.native.mark_dirty(client);
            return told;
        }
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(Failure::Broken(error)) => Err(error),
        Err(Failure::Refused(refusal)) => {
            let told = client.connection.borrow_mut().refuse(to, &refusal);
            core.native.mark_dirty(client);
            told
        }
    }
}

fn request_of(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, request: Request<'_>) -> Outcome {
    match request {
        Request::Hello(hello) => greet(core, client, to, hello),
        Request::OpenRing(open) => open_ring(core, client, to, open),
        Request::NewPutTask(new) => new_task(core, client, to, new),
        Request::Subscribe(subscribe) => subscribe_to(core, client, to, subscribe),
        Request::DefineClass(_)
        | Request::RequestLease(_)
        | Request::ReturnLease(_)
        | Request::CancelLease(_)
        | Request::KeepLease(_) => super::leases::request(core, client, to, request),
        Request::RegisterWorker(_)
        | Request::WorkDone(_)
        | Request::WorkerExit(_)
        | Request::Blocked(_)
        | Request::Unblocked(_) => super::workers::request(core, client, to, request),
        Request::Drain(drain) => {
            let (on, detail) = (drain.on, drain.detail.as_str().to_owned());
            ask(core, NativeAsk::Drain { client: client.id, to, on, detail })
        }
        Request::GetStatus(status) => {
            ask(core, NativeAsk::Status { client: client.id, to, resources: status.resources })
        }
        Request::List(list) => {
            let (after, most) = ((&list.after).into(), list.most.to_native());
            ask(core, NativeAsk::List { client: client.id, to, after, most })
        }
        _ => super::objects::request(core, client, to, request),
    }
}

/// Asks the control thread, which answers later.
pub(super) fn ask(core: &Core, ask: NativeAsk) -> Outcome {
    core.tell_control(ToControl::Native(ask));
    Ok(())
}

fn greet(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, hello: &Archived<Hello>) -> Outcome {
    let version = check_hello(hello)?;
    let Some(shared) = core.native.shared() else {
        return Err(refused(RefusalCode::Stopping, ""));
    };
    let mut segments = Vec::with_capacity(core.segments().len());
    let mut descriptors = Vec::with_capacity(core.segments().len());
    for (number, segment) in core.segments().iter().enumerate() {
        segments.push(SegmentInfo { segment: number as u32, size_bytes: segment.size_bytes() });
        let descriptor = segment.fd().try_clone_to_owned();
        descriptors.push(descriptor.map_err(|e| refused(RefusalCode::LimitReached, e.to_string()))?);
    }
    let welcome = Welcome {
        magic: HELLO_MAGIC,
        capabilities: capability::ALL,
        client: client.id,
        version,
        node: shared.node,
        worker: wire::WorkerId(client.worker.0),
        put_task: shared.task_of(client.id, 0, core.shard),
        limits: shared.limits.clone(),
        segments,
    };
    client.connection.borrow_mut().greet();
    let told = client.connection.borrow_mut().reply_with(to, &welcome, descriptors);
    core.native.mark_dirty(client);
    Ok(told?)
}

fn open_ring(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, open: &Archived<OpenRing>) -> Outcome {
    client.connection.borrow_mut().open_ring(to, open)??;
    let own = |fd: Option<std::os::fd::BorrowedFd<'_>>| fd.map(|fd| fd.as_fd().try_clone_to_owned()).transpose();
    let (ours, theirs) = {
        let connection = client.connection.borrow();
        (own(connection.own_bell()), own(connection.peer_bell()))
    };
    core.native.mark_dirty(client);
    match (ours, theirs) {
        (Ok(Some(ours)), Ok(Some(theirs))) => {
            core.io.wish(Wish::WatchBell(client.key, Rc::new(ours)));
            *client.bell.borrow_mut() = Some(Rc::new(theirs));
            core.native.wake(client);
        }
        // The rings can't be served without them; the client is told by the end of its connection.
        _ => {
            tracing::warn!(pid = client.pid, "no descriptors for a client's bells: raise RLIMIT_NOFILE");
            client.shut();
        }
    }
    Ok(())
}

fn new_task(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, _: &Archived<NewPutTask>) -> Outcome {
    let number = client.tasks.replace(client.tasks.get().wrapping_add(1));
    if let Some(shared) = core.native.shared() {
        client.reply(core, to, &PutTask { task: shared.task_of(client.id, number, core.shard) });
    }
    Ok(())
}

fn subscribe_to(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, subscribe: &Archived<Subscribe>) -> Outcome {
    core.native.subscribe(core, client, subscribe.topics.to_native() & topic::ALL);
    client.done(core, to, 0);
    Ok(())
}

/// Answers with what the control thread has found.
pub fn reply_of<M: Message>(core: &Rc<Core>, client: ClientId, to: ReplyTo, reply: &Result<M, Refusal>) {
    let Some(client) = core.native.client(client) else {
        return;
    };
    match reply {
        Ok(message) => client.reply(core, to, message),
        Err(refusal) => client.refuse(core, to, refusal),
    }
}

/// When something is to be given up that waits for so long.
pub(super) fn deadline(core: &Rc<Core>, token: Token, wait_ns: u64) {
    core.io.after(Duration::from_nanos(wait_ns), move |core| {
        if core.native.pending.borrow().waits(token) {
            super::objects::late(core, token);
        }
    });
}
