//! Ray's gRPC port, on the cores.
//!
//! A connection to the node manager's port is served by one core. What a put, a get, a lease and its return call is answered
//! there, without a hop: pins and frees by the object table ([`serve`]), leases by the [`desk`]. Every other method is rare; its
//! message goes to the control thread as it came, and the reply comes back the same way.

pub mod connection;
pub mod desk;
pub mod http2;
pub mod pace;

use std::cell::RefCell;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raylet_shard::ids::{NodeId, ObjectId, Token};
use raylet_shard::store::StoreEvent;
use rustc_hash::FxHashMap;
use tonic::Status;

use super::rpc::auth::Auth;
use super::rpc::frame::encode;
use super::rpc::router::parse;
use super::rpc::status::no_method;
use crate::bridge::{Requester, ToControl, MAX_RPCS_IN_FLIGHT};
use crate::core_loop::Core;
use crate::observe::histogram::Operation;
use crate::ray::proto;
use crate::socket::Writer;
use connection::{Connection, Sending, KEEP_QUIET};
use desk::Desk;
use http2::headers::RequestHead;
use http2::Call;
use pace::Urgency;

/// Objects in one request; more is a mistake of the caller.
pub const MAX_OBJECTS: usize = 1 << 20;

/// A silent peer is probed after this long; a few probes unanswered end the connection. The kernel does it, so that an idle
/// connection costs nothing here.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBE: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 4;

/// What the cores must know to serve the port.
#[derive(Debug)]
pub struct RpcSettings {
    /// Who may call.
    pub auth: Auth,
    /// The node's id.
    pub node_id: NodeId,
    /// The methods, and whether each wants a token.
    pub methods: Vec<(&'static str, bool)>,
    /// Ray's setting of this name: the largest index of an object that a task returns.
    pub max_num_generator_returns: u64,
}

/// Methods that only the cores answer; each wants a token.
pub const OWN_METHODS: [&str; 2] =
    ["/ray.rpc.NodeManagerService/PinObjectIDs", "/ray.rpc.NodeManagerService/FreeLocalObjects"];

/// How a method is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Pin,
    Free,
    Lease,
    Return,
    Forward,
}

impl Method {
    fn of(path: &str) -> Self {
        match path.strip_prefix("/ray.rpc.NodeManagerService/") {
            Some("PinObjectIDs") => Self::Pin,
            Some("FreeLocalObjects") => Self::Free,
            Some("RequestWorkerLease") => Self::Lease,
            Some("ReturnWorkerLease") => Self::Return,
            _ => Self::Forward,
        }
    }

    fn urgency(self) -> Urgency {
        match self {
            Self::Pin | Self::Free => Urgency::Quiet,
            Self::Lease | Self::Return | Self::Forward => Urgency::Prompt,
        }
    }

    fn operation(self, path: &str) -> Option<Operation> {
        match self {
            Self::Pin => Some(Operation::ObjectPin),
            Self::Lease => Some(Operation::LeaseGrant),
            Self::Return => Some(Operation::LeaseReturn),
            Self::Free => None,
            Self::Forward if path.ends_with("/PrepareBundleResources") => Some(Operation::BundlePrepare),
            Self::Forward if path.ends_with("/CommitBundleResources") => Some(Operation::BundleCommit),
            Self::Forward => None,
        }
    }
}

/// A method that the port serves.
#[derive(Clone, Copy)]
struct Entry {
    path: &'static str,
    method: Method,
    operation: Option<Operation>,
    needs_auth: bool,
}

/// What a request's headers amount to: a method that its caller may call, or the status to answer with.
type Judged = Result<Entry, Status>;

struct Port {
    auth: Auth,
    methods: FxHashMap<&'static str, Entry>,
}

impl Port {
    fn judge(&self, head: RequestHead<'_>) -> Judged {
        let path = String::from_utf8_lossy(head.path);
        let Some(entry) = self.methods.get(&*path) else {
            return Err(no_method(&path));
        };
        if entry.needs_auth {
            self.auth.check_value(head.authorization)?;
        }
        Ok(*entry)
    }
}

/// The port's state on one core.
#[derive(Default)]
pub struct CoreRpc {
    port: RefCell<Option<Rc<Port>>>,
    waiting: RefCell<Waiting>,
    /// Connections with something to send when the round ends.
    unsent: RefCell<Vec<Rc<Connection>>>,
    /// Calls that came with one read; empty between two.
    calls: RefCell<Vec<Call<Judged>>>,
    /// Leases.
    pub desk: RefCell<Desk>,
}

/// Who waits for the answer to a call.
pub struct Waiter {
    connection: Rc<Connection>,
    stream: u32,
    entry: Entry,
    start: Instant,
    /// The control thread answers it, and counts it.
    forwarded: bool,
}

/// A request to pin objects, some of which are not pinned yet.
struct Pinning {
    waiter: Waiter,
    successes: Vec<bool>,
    left: usize,
}

/// `None` once it is answered.
type SharedPinning = Rc<RefCell<Option<Pinning>>>;

/// Calls that wait for somebody, by number.
#[derive(Default)]
struct Waiting {
    next: u64,
    replies: FxHashMap<u64, Waiter>,
    /// For each object, the request and which of its objects this is.
    pins: FxHashMap<u64, (SharedPinning, usize)>,
}

impl Waiting {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl CoreRpc {
    /// Opens the port on this core.
    pub fn open(&self, settings: &Arc<RpcSettings>) {
        let methods = settings.methods.iter().map(|(path, needs_auth)| {
            let method = Method::of(path);
            (*path, Entry { path, method, operation: method.operation(path), needs_auth: *needs_auth })
        });
        *self.port.borrow_mut() = Some(Rc::new(Port { auth: settings.auth.clone(), methods: methods.collect() }));
        self.desk.borrow_mut().open(settings.node_id);
    }

    /// Whether the port is open.
    pub fn is_open(&self) -> bool {
        self.port.borrow().is_some()
    }

    /// A new connection, if the port is open.
    pub fn connect(&self, stream: &OwnedFd, writer: Writer) -> Option<Rc<Connection>> {
        let port = self.port.borrow().clone()?;
        if let Err(error) = prepare(stream) {
            tracing::debug!(%error, "a gRPC connection keeps the system's settings");
        }
        Some(Connection::new(writer, port))
    }

    /// Bytes came in on a connection.
    pub fn received(core: &Rc<Core>, connection: &Rc<Connection>, bytes: &[u8]) {
        let mut calls = core.rpc.calls.take();
        if connection.receive(bytes, &mut calls) {
            core.rpc.unsent.borrow_mut().push(connection.clone());
        }
        for call in calls.drain(..) {
            match call.head {
                Ok(entry) => serve(core, Waiter::new(connection, call.stream, entry), call.message),
                Err(status) => core.rpc.answer(connection, call.stream, Urgency::Prompt, Err(status)),
            }
        }
        core.rpc.calls.replace(calls);
    }

    fn answer(&self, connection: &Rc<Connection>, stream: u32, urgency: Urgency, reply: Result<Bytes, Status>) {
        if connection.answer(stream, urgency, reply) {
            self.unsent.borrow_mut().push(connection.clone());
        }
    }

    /// Sends what was written since this was last called, with one system call for each connection.
    pub fn end_round(&self, core: &Rc<Core>) {
        for connection in self.unsent.borrow_mut().drain(..) {
            if connection.end_round() == Sending::Keep {
                core.io.after(KEEP_QUIET, move |_| connection.send_kept());
            }
        }
    }

    /// The control thread or a lease queue has answered a call.
    pub fn answered(core: &Rc<Core>, call: u64, reply: Result<Bytes, Status>) {
        let waiter = core.rpc.waiting.borrow_mut().replies.remove(&call);
        if let Some(waiter) = waiter {
            waiter.answer(core, reply);
        }
    }

    /// The object table has answered a pin.
    pub fn pinned(core: &Rc<Core>, token: Token, ok: bool) {
        let Some((pinning, index)) = core.rpc.waiting.borrow_mut().pins.remove(&Requester::local(token)) else {
            return;
        };
        let done = {
            let mut slot = pinning.borrow_mut();
            let Some(pinning) = slot.as_mut() else {
                return;
            };
            pinning.successes[index] = ok;
            pinning.left -= 1;
            if pinning.left > 0 {
                return;
            }
            slot.take()
        };
        if let Some(Pinning { waiter, successes, .. }) = done {
            waiter.answer(core, encode(&proto::PinObjectIDsReply { successes }));
        }
    }

    fn admit(&self) -> Result<(), Status> {
        let waiting = self.waiting.borrow();
        let count = waiting.replies.len() + waiting.pins.len();
        if count >= MAX_RPCS_IN_FLIGHT {
            return Err(Status::resource_exhausted(format!(
                "{count} requests wait on this core, which is its limit: retry later"
            )));
        }
        Ok(())
    }

    /// A call that somebody else answers, with [`Self::answered`].
    fn wait_for_reply(&self, waiter: Waiter) -> u64 {
        let mut waiting = self.waiting.borrow_mut();
        let call = waiting.number();
        waiting.replies.insert(call, waiter);
        call
    }
}

impl Waiter {
    fn new(connection: &Rc<Connection>, stream: u32, entry: Entry) -> Self {
        Self { connection: connection.clone(), stream, entry, start: Instant::now(), forwarded: false }
    }

    /// A caller that hung up is not told.
    fn answer(self, core: &Rc<Core>, reply: Result<Bytes, Status>) {
        let Self { connection, stream, entry, start, forwarded } = self;
        let took = start.elapsed();
        {
            let mut recorder = core.recorder.borrow_mut();
            if let Some(operation) = entry.operation {
                recorder.record(operation, took);
            }
            if forwarded {
                recorder.record(Operation::ControlRoundTrip, took);
            }
        }
        if !forwarded {
            core.tell_control_later(ToControl::Served { path: entry.path, ok: reply.is_ok(), took });
        }
        core.rpc.answer(&connection, stream, entry.method.urgency(), reply);
    }
}

/// Answers in time, and notices a peer that is gone.
fn prepare(stream: &OwnedFd) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    let stream = stream.as_fd();
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_PROBE)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)
}

fn serve(core: &Rc<Core>, waiter: Waiter, message: Result<Bytes, Status>) {
    let message = match message.and_then(|message| core.rpc.admit().map(|()| message)) {
        Ok(message) => message,
        Err(status) => return waiter.answer(core, Err(status)),
    };
    match waiter.entry.method {
        Method::Forward => forward(core, waiter, message),
        Method::Pin => pin(core, waiter, message),
        Method::Free => {
            let reply = free(core, message);
            waiter.answer(core, reply);
        }
        Method::Lease => {
            if let Err(waiter) = desk::request(core, &message, waiter) {
                forward(core, waiter, message);
            }
        }
        Method::Return => match desk::give_back(core, &message) {
            Some(reply) => waiter.answer(core, reply),
            None => forward(core, waiter, message),
        },
    }
}

/// The control thread answers.
fn forward(core: &Rc<Core>, waiter: Waiter, message: Bytes) {
    let path = waiter.entry.path;
    let call = core.rpc.wait_for_reply(Waiter { forwarded: true, ..waiter });
    core.tell_control(ToControl::Call { from: core.shard, call, path, message });
}

/// The owner wants its objects kept here.
fn pin(core: &Rc<Core>, waiter: Waiter, message: Bytes) {
    let ids = parse(message).and_then(|request: proto::PinObjectIDsRequest| object_ids(&request.object_ids));
    let ids = match ids {
        Ok(ids) if ids.is_empty() => return waiter.answer(core, encode(&proto::PinObjectIDsReply::default())),
        Ok(ids) => ids,
        Err(status) => return waiter.answer(core, Err(status)),
    };
    let pinning = Pinning { waiter, successes: vec![false; ids.len()], left: ids.len() };
    let pinning = Rc::new(RefCell::new(Some(pinning)));
    for (index, id) in ids.into_iter().enumerate() {
        let number = {
            let mut waiting = core.rpc.waiting.borrow_mut();
            let number = waiting.number();
            waiting.pins.insert(number, (pinning.clone(), index));
            number
        };
        let token = Requester::Shard(core.shard).tag(number);
        core.store(&id, StoreEvent::Pin { token, id });
    }
}

/// The owner's last references are gone.
fn free(core: &Rc<Core>, message: Bytes) -> Result<Bytes, Status> {
    let request: proto::FreeLocalObjectsRequest = parse(message)?;
    for id in object_ids(&request.object_ids)? {
        core.store(&id, StoreEvent::Free { id });
    }
    encode(&proto::FreeLocalObjectsReply {})
}

/// The ids of a request; all of them are ids, or none is used.
fn object_ids(ids: &[Bytes]) -> Result<Vec<ObjectId>, Status> {
    if ids.len() > MAX_OBJECTS {
        let text = format!("expected at most {MAX_OBJECTS} objects, got {}", ids.len());
        return Err(Status::invalid_argument(text));
    }
    let parsed = ids.iter().map(|bytes| {
        ObjectId::from_slice(bytes).ok_or_else(|| {
            Status::invalid_argument(format!("expected an object id of {} bytes, got {}", ObjectId::LEN, bytes.len()))
        })
    });
    parsed.collect()
}

/// Hands a connection that was accepted elsewhere over to a core.
///
/// # Errors
/// What the system says of the socket.
pub fn hand_over(stream: tokio::net::TcpStream) -> std::io::Result<OwnedFd> {
    let stream: TcpStream = stream.into_std()?;
    Ok(stream.into())
}
