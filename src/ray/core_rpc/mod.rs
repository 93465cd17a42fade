//! Ray's gRPC port, on the cores.
//!
//! A connection to the node manager's port is served by one core. What a put, a get, a lease and its return call is answered
//! there, without a hop: pins and frees by the object table ([`serve`]), leases by the [`desk`]. Every other method is rare; its
//! message goes to the control thread as it came, and the reply comes back the same way.

pub mod desk;

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use raylet_shard::ids::{NodeId, ObjectId, Token};
use raylet_shard::store::StoreEvent;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tonic::{Code, Status};

use super::rpc::auth::Auth;
use super::rpc::frame::{encode, FrameReader};
use super::rpc::ring_stream::{Pipe, RingStream, Urgency};
use super::rpc::router::{parse, unary_reply, LocalFuture, ReplyBody};
use super::rpc::server::http2_builder;
use crate::bridge::{Requester, ToControl, MAX_RPCS_IN_FLIGHT};
use crate::core_io::CoreExec;
use crate::core_loop::Core;
use crate::observe::histogram::Operation;
use crate::ray::proto;
use desk::Desk;

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

struct Port {
    auth: Auth,
    methods: FxHashMap<&'static str, Entry>,
}

/// The port's state on one core.
#[derive(Default)]
pub struct CoreRpc {
    port: RefCell<Option<Rc<Port>>>,
    calls: RefCell<Calls>,
    /// Leases.
    pub desk: RefCell<Desk>,
}

/// Calls that wait for somebody, by number.
#[derive(Default)]
struct Calls {
    next: u64,
    replies: FxHashMap<u64, oneshot::Sender<Result<Bytes, Status>>>,
    pins: FxHashMap<u64, oneshot::Sender<bool>>,
}

impl Calls {
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

    /// Serves a connection, if the port is open.
    pub fn connect(&self, core: &Rc<Core>, stream: &OwnedFd, pipe: Rc<Pipe>) {
        let Some(port) = self.port.borrow().clone() else {
            return;
        };
        if let Err(error) = prepare(stream) {
            tracing::debug!(%error, "a gRPC connection keeps the system's settings");
        }
        let executor = CoreExec(core.clone());
        let service = PortService { core: core.clone(), port, pipe: pipe.clone() };
        let connection = http2_builder(executor.clone()).serve_connection(RingStream(pipe), service);
        hyper::rt::Executor::execute(&executor, async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "gRPC connection ended");
            }
        });
    }

    /// The control thread has answered a call.
    pub fn answered(&self, call: u64, reply: Result<Bytes, Status>) {
        let waiter = self.calls.borrow_mut().replies.remove(&call);
        if let Some(waiter) = waiter {
            // A caller that hung up is not told.
            let _ = waiter.send(reply);
        }
    }

    /// The object table has answered a pin.
    pub fn pinned(&self, token: Token, ok: bool) {
        let waiter = self.calls.borrow_mut().pins.remove(&Requester::local(token));
        if let Some(waiter) = waiter {
            // A caller that hung up asks again, and pinning twice is pinning once.
            let _ = waiter.send(ok);
        }
    }

    fn admit(&self) -> Result<(), Status> {
        let calls = self.calls.borrow();
        let waiting = calls.replies.len() + calls.pins.len();
        if waiting >= MAX_RPCS_IN_FLIGHT {
            return Err(Status::resource_exhausted(format!(
                "{waiting} requests wait on this core, which is its limit: retry later"
            )));
        }
        Ok(())
    }

    /// A call that somebody else answers, with [`Self::answered`].
    fn wait_for_reply(&self) -> (u64, oneshot::Receiver<Result<Bytes, Status>>) {
        let (sender, receiver) = oneshot::channel();
        let mut calls = self.calls.borrow_mut();
        let call = calls.number();
        calls.replies.insert(call, sender);
        (call, receiver)
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

/// hyper's service of a connection.
struct PortService {
    core: Rc<Core>,
    port: Rc<Port>,
    pipe: Rc<Pipe>,
}

impl Service<Request<Incoming>> for PortService {
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    type Future = LocalFuture<Result<Response<ReplyBody>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (core, port, pipe) = (self.core.clone(), self.port.clone(), self.pipe.clone());
        Box::pin(async move {
            let entry = port.methods.get(request.uri().path()).copied();
            let urgency = entry.map_or(Urgency::Prompt, |entry| entry.method.urgency());
            pipe.called(urgency);
            let reply = match entry {
                Some(entry) => serve(&core, &port, entry, request).await,
                None => Err(no_method(request.uri().path())),
            };
            if let Some(keep) = pipe.answered(urgency) {
                core.io.after(keep, move |_| pipe.send_kept());
            }
            Ok(unary_reply(reply))
        })
    }
}

fn no_method(path: &str) -> Status {
    Status::new(Code::Unimplemented, format!("this server has no method {path}"))
}

async fn serve(core: &Rc<Core>, port: &Port, entry: Entry, request: Request<Incoming>) -> Result<Bytes, Status> {
    let start = Instant::now();
    if entry.needs_auth {
        port.auth.check(request.headers())?;
    }
    let message = FrameReader::new(request.into_body()).only().await?;
    core.rpc.admit()?;
    let answered = match entry.method {
        Method::Forward => None,
        Method::Pin => Some(pin(core, &message).await),
        Method::Free => Some(free(core, &message)),
        Method::Lease => desk::request(core, &message).await,
        Method::Return => desk::give_back(core, &message),
    };
    let path = entry.path;
    let (reply, here) = match answered {
        Some(reply) => (reply, true),
        None => (forward(core, path, message).await, false),
    };
    let took = start.elapsed();
    if let Some(operation) = entry.operation {
        core.recorder.borrow_mut().record(operation, took);
    }
    if here {
        core.tell_control_later(ToControl::Served { path, ok: reply.is_ok(), took });
    }
    reply
}

async fn forward(core: &Rc<Core>, path: &'static str, message: Bytes) -> Result<Bytes, Status> {
    let (call, reply) = core.rpc.wait_for_reply();
    let start = Instant::now();
    core.tell_control(ToControl::Call { from: core.shard, call, path, message });
    let reply = reply.await.map_err(|_| Status::unavailable("the node is shutting down"))?;
    core.recorder.borrow_mut().record_since(Operation::ControlRoundTrip, start);
    reply
}

/// The owner wants its objects kept here.
async fn pin(core: &Rc<Core>, message: &Bytes) -> Result<Bytes, Status> {
    let request: proto::PinObjectIDsRequest = parse(message.clone())?;
    let ids = object_ids(&request.object_ids)?;
    let mut answers = Vec::with_capacity(ids.len());
    for id in ids {
        let (sender, receiver) = oneshot::channel();
        let number = {
            let mut calls = core.rpc.calls.borrow_mut();
            let number = calls.number();
            calls.pins.insert(number, sender);
            number
        };
        let token = Requester::Shard(core.shard).tag(number);
        core.store(&id, StoreEvent::Pin { token, id });
        answers.push(receiver);
    }
    let mut successes = Vec::with_capacity(answers.len());
    for answer in answers {
        successes.push(answer.await.map_err(|_| Status::unavailable("the node is shutting down"))?);
    }
    encode(&proto::PinObjectIDsReply { successes })
}

/// The owner's last references are gone.
fn free(core: &Rc<Core>, message: &Bytes) -> Result<Bytes, Status> {
    let request: proto::FreeLocalObjectsRequest = parse(message.clone())?;
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
