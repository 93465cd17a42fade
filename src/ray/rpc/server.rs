//! A gRPC server on one thread: handlers are plain `async` functions over `Rc` state.
//!
//! hyper speaks HTTP/2 and runs its tasks on the thread's `LocalSet`; this module adds what gRPC adds, so that nothing
//! has to be `Send` and an empty call costs as little as it can.

use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::future::{poll_fn, Future};
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::Message;
use rustc_hash::FxHashMap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};

use super::auth::Auth;
use super::exec::LocalExec;
use super::frame::{encode, FrameReader};
use super::meter::{Meter, Meters, Timing};

/// Streams that one connection may have open; a client that wants more waits.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 65_536;
/// Connections that the server keeps; more are closed as soon as they are accepted.
pub const MAX_CONNECTIONS: usize = 16_384;
/// Messages that a streaming handler may be ahead of its client before it has to wait.
pub const STREAM_QUEUE_MESSAGES: usize = 64;
/// Streams that a client may have reset and this side not yet dropped; one that resets faster is cut off.
const MAX_PENDING_RESETS: usize = 4_096;

const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const SEND_BUFFER_BYTES: usize = 1024 * 1024;
const ACCEPT_RETRY_MS: u64 = 50;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;
type Handler = Box<dyn Fn(Request<Incoming>) -> LocalFuture<Response<ReplyBody>>>;

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Who may call.
    pub auth: Auth,
    /// A silent connection is pinged this often: Ray's `grpc_keepalive_time_ms`.
    pub keepalive_time_ms: u64,
    /// A ping unanswered this long closes its connection: Ray's `grpc_keepalive_timeout_ms`.
    pub keepalive_timeout_ms: u64,
    /// How long a stopping server waits for calls in flight.
    pub stop_grace_ms: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self { auth: Auth::disabled(), keepalive_time_ms: 10_000, keepalive_timeout_ms: 20_000, stop_grace_ms: 1_000 }
    }
}

/// The server can't listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for gRPC: {source}; check that the port is free and the address is this machine's")]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

/// Binds a listening socket; port 0 lets the kernel choose one. Call it on the control thread, within its runtime.
///
/// # Errors
/// See [`BindError`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

struct Route {
    handler: Handler,
    needs_auth: bool,
    meter: Option<Rc<Meter>>,
}

/// The methods that a server serves, by path (`/package.Service/Method`).
#[derive(Default)]
pub struct Router {
    routes: FxHashMap<&'static str, Route>,
}

impl Router {
    /// No methods.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a unary method.
    ///
    /// The handler runs to its end even if the client gives up: Ray's handlers change state after they have waited, and
    /// its clients retry.
    ///
    /// # Panics
    /// When the path is already served: two handlers for one method are a mistake in the program.
    #[must_use]
    pub fn unary<Req, Resp, F, Fut>(self, path: &'static str, handler: F) -> Self
    where
        Req: Message + Default + 'static,
        Resp: Message + 'static,
        F: Fn(Req) -> Fut + 'static,
        Fut: Future<Output = Result<Resp, Status>> + 'static,
    {
        self.add(path, true, unary_handler(handler))
    }

    /// Like [`Self::unary`], open to callers without a token.
    ///
    /// # Panics
    /// As [`Self::unary`].
    #[must_use]
    pub fn unary_without_auth<Req, Resp, F, Fut>(self, path: &'static str, handler: F) -> Self
    where
        Req: Message + Default + 'static,
        Resp: Message + 'static,
        F: Fn(Req) -> Fut + 'static,
        Fut: Future<Output = Result<Resp, Status>> + 'static,
    {
        self.add(path, false, unary_handler(handler))
    }

    /// Serves a method whose requests, replies or both are streams.
    ///
    /// `open` sees the call's metadata, and refuses the call or returns the metadata that the reply starts with and the
    /// call's handler; the handler's result ends the stream. A handler is dropped when its client goes away.
    ///
    /// # Panics
    /// As [`Self::unary`].
    #[must_use]
    pub fn streaming<Req, Resp, F, Fut>(self, path: &'static str, needs_auth: bool, open: F) -> Self
    where
        Req: Message + Default + 'static,
        Resp: Message + 'static,
        F: Fn(&HeaderMap, Requests<Req>, Replies<Resp>) -> Result<(HeaderMap, Fut), Status> + 'static,
        Fut: Future<Output = Result<(), Status>> + 'static,
    {
        let open = Rc::new(open);
        let handler: Handler = Box::new(move |request| {
            let open = open.clone();
            Box::pin(async move {
                let (head, body) = request.into_parts();
                let requests = Requests { reader: FrameReader::new(body), message: PhantomData };
                let (sender, queue) = mpsc::channel(STREAM_QUEUE_MESSAGES);
                match open(&head.headers, requests, Replies { sender, message: PhantomData }) {
                    Ok((metadata, handler)) => stream_reply(metadata, Box::pin(handler), queue),
                    Err(status) => status.into_http(),
                }
            })
        });
        self.add(path, needs_auth, handler)
    }

    fn add(mut self, path: &'static str, needs_auth: bool, handler: Handler) -> Self {
        match self.routes.entry(path) {
            Entry::Vacant(slot) => slot.insert(Route { handler, needs_auth, meter: None }),
            Entry::Occupied(_) => panic!("two handlers for {path}"),
        };
        self
    }

    /// Counts the calls of the methods added so far.
    #[must_use]
    pub fn measured(mut self, meters: &Meters) -> Self {
        for (path, route) in &mut self.routes {
            route.meter = meters.of_path(path);
        }
        self
    }
}

fn unary_handler<Req, Resp, F, Fut>(handler: F) -> Handler
where
    Req: Message + Default + 'static,
    Resp: Message + 'static,
    F: Fn(Req) -> Fut + 'static,
    Fut: Future<Output = Result<Resp, Status>> + 'static,
{
    let handler = Rc::new(handler);
    Box::new(move |request| {
        let handler = handler.clone();
        Box::pin(async move {
            match call_unary(&*handler, request).await {
                Ok(message) => {
                    let mut response = Response::new(ReplyBody::Unary(Some(message)));
                    response.headers_mut().insert(CONTENT_TYPE, GRPC);
                    response
                }
                Err(status) => status.into_http(),
            }
        })
    })
}

async fn call_unary<Req, Resp, Fut>(handler: &dyn Fn(Req) -> Fut, request: Request<Incoming>) -> Result<Bytes, Status>
where
    Req: Message + Default,
    Resp: Message,
    Fut: Future<Output = Result<Resp, Status>>,
{
    let message = FrameReader::new(request.into_body()).only().await?;
    encode(&handler(parse(message)?).await?)
}

/// A message that isn't one gets the status that stock servers return.
fn parse<Req: Message + Default>(message: Bytes) -> Result<Req, Status> {
    Req::decode(message).map_err(|_| Status::new(Code::Internal, "Unable to parse request"))
}

/// The requests of a streaming call.
pub struct Requests<Req> {
    reader: FrameReader,
    message: PhantomData<Req>,
}

impl<Req: Message + Default> Requests<Req> {
    /// The next request, or `None` when the client has sent its last.
    ///
    /// # Errors
    /// The status that a broken stream or message amounts to.
    pub async fn next(&mut self) -> Result<Option<Req>, Status> {
        self.reader.next().await?.map(parse).transpose()
    }
}

/// The replies of a streaming call. A handler that is [`STREAM_QUEUE_MESSAGES`] ahead of its client waits in `send`.
pub struct Replies<Resp> {
    sender: mpsc::Sender<Bytes>,
    message: PhantomData<Resp>,
}

impl<Resp: Message> Replies<Resp> {
    /// Sends one reply.
    ///
    /// # Errors
    /// `CANCELLED` when the client has gone, `RESOURCE_EXHAUSTED` when the message is too large.
    pub async fn send(&self, message: &Resp) -> Result<(), Status> {
        let gone = |_| Status::new(Code::Cancelled, "the client has gone");
        self.sender.send(encode(message)?).await.map_err(gone)
    }
}

/// A reply's body. Only hyper handles it.
#[derive(Default)]
enum ReplyBody {
    /// No message: the status is in the headers.
    #[default]
    Empty,
    /// One message, then the status OK.
    Unary(Option<Bytes>),
    /// Any number of messages, then the handler's status.
    Stream(StreamReply),
}

struct StreamReply {
    handler: Option<LocalFuture<Result<(), Status>>>,
    queue: mpsc::Receiver<Bytes>,
    status: Option<Status>,
}

fn stream_reply(
    metadata: HeaderMap,
    handler: LocalFuture<Result<(), Status>>,
    queue: mpsc::Receiver<Bytes>,
) -> Response<ReplyBody> {
    let body = StreamReply { handler: Some(handler), queue, status: None };
    let mut response = Response::new(ReplyBody::Stream(body));
    *response.headers_mut() = metadata;
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

impl StreamReply {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if let Some(handler) = &mut self.handler {
            if let Poll::Ready(result) = handler.as_mut().poll(cx) {
                self.status = Some(result.err().unwrap_or_else(|| Status::ok("")));
                self.handler = None;
            }
        }
        if let Poll::Ready(Some(message)) = self.queue.poll_recv(cx) {
            return Poll::Ready(Some(Frame::data(message)));
        }
        if self.handler.is_some() {
            return Poll::Pending;
        }
        Poll::Ready(self.status.take().map(|status| trailers(&status)))
    }
}

fn trailers(status: &Status) -> Frame<Bytes> {
    let mut headers = HeaderMap::with_capacity(3);
    if status.add_header(&mut headers).is_err() {
        // Only metadata that can't travel gets here; the code still can.
        headers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    Frame::trailers(headers)
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let frame = match this {
            Self::Empty => None,
            Self::Unary(message) => match message.take() {
                Some(message) => Some(Frame::data(message)),
                None => {
                    *this = Self::Empty;
                    let mut headers = HeaderMap::with_capacity(1);
                    headers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                    Some(Frame::trailers(headers))
                }
            },
            Self::Stream(stream) => std::task::ready!(stream.poll(cx)),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

/// What all connections of a server share.
struct Shared {
    routes: FxHashMap<&'static str, Route>,
    auth: Auth,
    /// Calls whose client went away. At most as many as were in flight, so the queue needs no bound of its own.
    orphans: mpsc::UnboundedSender<Running>,
}

/// A call that was let in.
struct Running {
    call: LocalFuture<Response<ReplyBody>>,
    timing: Option<Timing>,
}

impl Running {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<ReplyBody>> {
        let response = std::task::ready!(self.call.as_mut().poll(cx));
        if let Some(timing) = self.timing.take() {
            // A reply has its status behind its message, an error has it here.
            timing.end(!response.headers().contains_key(Status::GRPC_STATUS));
        }
        Poll::Ready(response)
    }
}

#[derive(Clone)]
struct Dispatch(Rc<Shared>);

impl Service<Request<Incoming>> for Dispatch {
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    type Future = Call;

    fn call(&self, request: Request<Incoming>) -> Call {
        match self.0.begin(request) {
            Ok(running) => Call::Running { running: Some(running), shared: self.0.clone() },
            Err(status) => Call::Refused(Some(status)),
        }
    }
}

impl Shared {
    fn begin(&self, request: Request<Incoming>) -> Result<Running, Box<Status>> {
        let path = request.uri().path();
        let Some(route) = self.routes.get(path) else {
            let text = format!("this server has no method {path}");
            return Err(Box::new(Status::new(Code::Unimplemented, text)));
        };
        if route.needs_auth {
            self.auth.check(request.headers()).map_err(Box::new)?;
        }
        let timing = route.meter.as_ref().map(Timing::start);
        Ok(Running { call: (route.handler)(request), timing })
    }
}

/// One call. Dropped before its end, it hands its handler over to the server, which runs it to the end.
enum Call {
    Refused(Option<Box<Status>>),
    Running { running: Option<Running>, shared: Rc<Shared> },
}

impl Future for Call {
    type Output = Result<Response<ReplyBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match &mut *self {
            Self::Refused(status) => status.take().map(|status| status.into_http()),
            Self::Running { running, .. } => match running {
                Some(call) => {
                    let response = std::task::ready!(call.poll(cx));
                    *running = None;
                    Some(response)
                }
                None => None,
            },
        };
        Poll::Ready(Ok(response.unwrap_or_default()))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Self::Running { running, shared } = self {
            if let Some(call) = running.take() {
                // A server that has stopped drops the call: nobody is left to run it.
                let _ = shared.orphans.send(call);
            }
        }
    }
}

/// A server, ready to serve.
pub struct Server {
    shared: Rc<Shared>,
    orphans: mpsc::UnboundedReceiver<Running>,
    config: ServerConfig,
}

impl Server {
    /// A server for these methods.
    pub fn new(router: Router, config: ServerConfig) -> Self {
        let (sender, orphans) = mpsc::unbounded_channel();
        let shared = Shared { routes: router.routes, auth: config.auth.clone(), orphans: sender };
        Self { shared: Rc::new(shared), orphans, config }
    }

    /// Serves until `stop` resolves, then lets calls in flight finish within the grace period.
    ///
    /// Call it inside the control thread's `LocalSet`.
    pub async fn serve(mut self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let (stopping, _) = watch::channel(false);
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.connect(stream, peer, &stopping),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a gRPC connection");
                        tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
                    }
                },
                orphan = self.orphans.recv() => {
                    if let Some(mut call) = orphan {
                        tokio::task::spawn_local(poll_fn(move |cx| call.poll(cx)));
                    }
                }
            }
        }
        drop(listener);
        stopping.send_replace(true);
        let grace = Duration::from_millis(self.config.stop_grace_ms);
        let _ = tokio::time::timeout(grace, stopping.closed()).await;
    }

    fn connect(&self, stream: TcpStream, peer: SocketAddr, stopping: &watch::Sender<bool>) {
        if stopping.receiver_count() >= MAX_CONNECTIONS {
            tracing::warn!(%peer, MAX_CONNECTIONS, "too many gRPC connections: closing this one");
            return;
        }
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "cannot switch off Nagle's algorithm");
        }
        let connection = self.http2().serve_connection(TokioIo::new(stream), Dispatch(self.shared.clone()));
        let mut stopping = stopping.subscribe();
        tokio::task::spawn_local(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                _ = stopping.wait_for(|stop| *stop) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "gRPC connection ended");
            }
        });
    }

    fn http2(&self) -> http2::Builder<LocalExec> {
        let mut builder = http2::Builder::new(LocalExec);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .keep_alive_interval(Duration::from_millis(self.config.keepalive_time_ms))
            .keep_alive_timeout(Duration::from_millis(self.config.keepalive_timeout_ms));
        builder
    }
}
