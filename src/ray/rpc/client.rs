//! gRPC clients on one thread: lazily connected channels, a deadline for each call, retries with back-off.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue, AUTHORIZATION, CONTENT_TYPE, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, Uri, Version};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::Message;
use rustc_hash::FxHashMap;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, Mutex};
use tonic::{Code, Status};

use super::auth::{Auth, CLUSTER_ID_KEY};
use super::chaos::{Chaos, Failure};
use super::exec::LocalExec;
use super::frame::{encode, FrameReader};
use super::tls::{Stream, Tls};

/// Calls in flight that one channel takes; more are refused with `RESOURCE_EXHAUSTED`.
pub const MAX_CALLS_PER_CHANNEL: usize = 65_536;
/// Channels that a pool keeps. When it is full the channel that was idle longest makes room; where none is idle, the new
/// channel is given out but not kept.
pub const MAX_POOLED_CHANNELS: usize = 4_096;
/// Requests that a streaming call may be ahead of its server before its sender has to wait.
pub const STREAM_QUEUE_MESSAGES: usize = 64;

const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const SEND_BUFFER_BYTES: usize = 1024 * 1024;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// gRPC allows eight digits of a timeout's value.
const MAX_TIMEOUT_DIGITS_VALUE: u128 = 99_999_999;

/// Settings of all channels of a process.
#[derive(Debug)]
pub struct ClientConfig {
    /// How calls authenticate.
    pub auth: Auth,
    /// How connections are encrypted, where they are.
    pub tls: Option<Tls>,
    /// Connecting takes at most this long.
    pub connect_timeout_ms: u64,
    /// A channel that couldn't connect fails its calls at once for this long before it tries again...
    pub reconnect_backoff_min_ms: u64,
    /// ...and for twice as long after each further failure, up to this.
    pub reconnect_backoff_max_ms: u64,
    /// A silent connection is pinged this often: Ray's `grpc_client_keepalive_time_ms`.
    pub keepalive_time_ms: u64,
    /// A ping unanswered this long closes its connection: Ray's `grpc_client_keepalive_timeout_ms`.
    pub keepalive_timeout_ms: u64,
    /// No failures are injected into calls to this host: set it to the node's own address where Ray's
    /// `testing_rpc_failure_avoid_intra_node_failures` is on.
    pub spared_host: Option<String>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            auth: Auth::disabled(),
            tls: None,
            connect_timeout_ms: 5_000,
            reconnect_backoff_min_ms: 50,
            reconnect_backoff_max_ms: 2_000,
            keepalive_time_ms: 300_000,
            keepalive_timeout_ms: 120_000,
            spared_host: None,
        }
    }
}

/// An address that no channel can have.
#[derive(Debug, thiserror::Error)]
#[error("`{address}` is not a host and port: {reason}")]
pub struct AddressError {
    /// What was given.
    pub address: String,
    /// What is wrong with it.
    pub reason: http::uri::InvalidUri,
}

/// What the channels of a process share: settings, the cluster's id once it is known, and the failures to inject.
pub struct ClientContext {
    config: ClientConfig,
    chaos: Chaos,
    headers: RefCell<HeaderMap>,
}

impl ClientContext {
    /// For these settings.
    pub fn new(config: ClientConfig, chaos: Chaos) -> Rc<Self> {
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(CONTENT_TYPE, GRPC);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if let Some(token) = config.auth.token() {
            headers.insert(AUTHORIZATION, token.header_value());
        }
        Rc::new(Self { config, chaos, headers: RefCell::new(headers) })
    }

    /// Names the cluster in every later call, or in none (see [`CLUSTER_ID_KEY`]).
    pub fn set_cluster_id(&self, cluster_id: Option<&[u8]>) {
        let mut headers = self.headers.borrow_mut();
        let value = cluster_id.and_then(|id| HeaderValue::from_str(&hex(id)).ok());
        match value {
            Some(value) => headers.insert(CLUSTER_ID_KEY, value),
            None => headers.remove(CLUSTER_ID_KEY),
        };
    }

    /// How calls authenticate.
    pub fn auth(&self) -> &Auth {
        &self.config.auth
    }
}

/// Lower-case hexadecimal digits, as Ray writes ids in metadata.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

type Connection = http2::SendRequest<RequestBody>;

/// A connection to one server, made when it is first needed and again when it was lost. Cheap to clone.
#[derive(Clone)]
pub struct Channel(Rc<ChannelInner>);

struct ChannelInner {
    context: Rc<ClientContext>,
    authority: Authority,
    connection: RefCell<Option<Connection>>,
    /// Held while connecting, so that one attempt serves all callers.
    connecting: Mutex<()>,
    failed_connects: Cell<u32>,
    /// No attempt to connect before this.
    retry_at: Cell<Option<Instant>>,
    last_error: RefCell<String>,
    in_flight: Cell<usize>,
    last_used: Cell<Instant>,
}

/// Counts a call for as long as it lives.
struct InFlight(Rc<ChannelInner>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.last_used.set(Instant::now());
    }
}

impl Channel {
    /// A channel to `host:port`, not connected yet.
    ///
    /// # Errors
    /// [`AddressError`] for anything but a host and a port.
    pub fn new(context: Rc<ClientContext>, address: &str) -> Result<Self, AddressError> {
        let authority =
            Authority::try_from(address).map_err(|reason| AddressError { address: address.to_owned(), reason })?;
        Ok(Self(Rc::new(ChannelInner {
            context,
            authority,
            connection: RefCell::new(None),
            connecting: Mutex::new(()),
            failed_connects: Cell::new(0),
            retry_at: Cell::new(None),
            last_error: RefCell::new(String::new()),
            in_flight: Cell::new(0),
            last_used: Cell::new(Instant::now()),
        })))
    }

    /// A channel to another server, with the settings of this one.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn to(&self, address: &str) -> Result<Self, AddressError> {
        Self::new(self.0.context.clone(), address)
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        self.0.authority.as_str()
    }

    /// Calls the unary method at `path` once. `timeout` of `None` means no deadline.
    ///
    /// # Errors
    /// The status that the server returned; `UNAVAILABLE` when there is no connection or it was lost;
    /// `DEADLINE_EXCEEDED` when time ran out.
    pub async fn call<Req, Resp>(
        &self,
        path: &'static str,
        request: &Req,
        timeout: Option<Duration>,
    ) -> Result<Resp, Status>
    where
        Req: Message,
        Resp: Message + Default,
    {
        self.call_frame(path, encode(request)?, timeout).await
    }

    /// As [`Self::call`], with a message that stands behind its prefix already.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_frame<Resp>(
        &self,
        path: &'static str,
        message: Bytes,
        timeout: Option<Duration>,
    ) -> Result<Resp, Status>
    where
        Resp: Message + Default,
    {
        let reply = match self.next_failure(path) {
            None => self.call_bytes(path, message, timeout).await?,
            Some(failure) => return Err(self.fail(failure, path, message, timeout).await),
        };
        Resp::decode(reply).map_err(|e| Status::new(Code::Internal, format!("cannot read the reply of {path}: {e}")))
    }

    fn next_failure(&self, path: &str) -> Option<Failure> {
        let context = &self.0.context;
        if context.chaos.is_none() || context.config.spared_host.as_deref() == Some(self.0.authority.host()) {
            return None;
        }
        context.chaos.next_failure(path)
    }

    async fn fail(&self, failure: Failure, path: &'static str, message: Bytes, timeout: Option<Duration>) -> Status {
        match failure {
            Failure::Request => {}
            Failure::Response => drop(self.call_bytes(path, message, timeout).await),
            Failure::InFlight => {
                let channel = self.clone();
                tokio::task::spawn_local(async move {
                    let _ = channel.call_bytes(path, message, timeout).await;
                });
            }
        }
        Status::new(Code::Unavailable, "failure injected by RAY_testing_rpc_failure")
    }

    async fn call_bytes(&self, path: &'static str, message: Bytes, timeout: Option<Duration>) -> Result<Bytes, Status> {
        let call = async {
            let body = RequestBody::Unary(Some(message));
            let (_counted, mut reader) = self.begin(path, body, &[], timeout).await?;
            let message = reader.next().await.map_err(lost)?;
            end_status(&mut reader, message.is_some()).await?;
            message.ok_or_else(|| Status::new(Code::Internal, format!("{path} returned no message")))
        };
        match timeout {
            None => call.await,
            Some(limit) => tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(overdue(path, limit))),
        }
    }

    /// Opens a streaming call with further metadata. The request side ends when the sender is dropped.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn open_stream<Req: Message, Resp: Message + Default>(
        &self,
        path: &'static str,
        metadata: &[(HeaderName, HeaderValue)],
    ) -> Result<(StreamSender<Req>, StreamReceiver<Resp>), Status> {
        let (sender, queue) = mpsc::channel(STREAM_QUEUE_MESSAGES);
        let (counted, reader) = self.begin(path, RequestBody::Stream(queue), metadata, None).await?;
        let receiver = StreamReceiver { reader, _counted: counted, message: PhantomData };
        Ok((StreamSender { sender, message: PhantomData }, receiver))
    }

    async fn begin(
        &self,
        path: &'static str,
        body: RequestBody,
        metadata: &[(HeaderName, HeaderValue)],
        timeout: Option<Duration>,
    ) -> Result<(InFlight, FrameReader), Status> {
        let counted = self.count()?;
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uri(path)?;
        let headers = request.headers_mut();
        headers.clone_from(&self.0.context.headers.borrow());
        if let Some(timeout) = timeout {
            headers.insert(GRPC_TIMEOUT, timeout_value(timeout));
        }
        headers.extend(metadata.iter().cloned());
        let response = self.send(request).await?;
        Ok((counted, read_head(response)?))
    }

    /// Sends a request, once more where the connection turns out to have been closed before the request went out.
    async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, Status> {
        let failed = |e| lost(Status::from_error(Box::new(e)));
        let unsent = match self.connection().await?.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(mut error) => match error.take_message() {
                Some(unsent) => unsent,
                None => return Err(failed(error.into_error())),
            },
        };
        self.0.connection.borrow_mut().take();
        let again = self.connection().await?.try_send_request(unsent).await;
        again.map_err(|error| failed(error.into_error()))
    }

    fn count(&self) -> Result<InFlight, Status> {
        let in_flight = self.0.in_flight.get();
        if in_flight >= MAX_CALLS_PER_CHANNEL {
            let text = format!("{in_flight} calls to {} are in flight already", self.address());
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        self.0.in_flight.set(in_flight + 1);
        Ok(InFlight(self.0.clone()))
    }

    fn uri(&self, path: &'static str) -> Result<Uri, Status> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if self.0.context.config.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(self.0.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_static(path));
        Uri::from_parts(parts).map_err(|e| Status::new(Code::Internal, e.to_string()))
    }

    fn live_connection(&self) -> Option<Connection> {
        let connection = self.0.connection.borrow();
        connection.as_ref().filter(|c| !c.is_closed()).cloned()
    }

    async fn connection(&self) -> Result<Connection, Status> {
        if let Some(connection) = self.live_connection() {
            return Ok(connection);
        }
        let _one_attempt = self.0.connecting.lock().await;
        if let Some(connection) = self.live_connection() {
            return Ok(connection);
        }
        if self.0.retry_at.get().is_some_and(|at| Instant::now() < at) {
            return Err(self.unreachable());
        }
        match self.connect().await {
            Ok(connection) => {
                self.0.failed_connects.set(0);
                self.0.retry_at.set(None);
                *self.0.connection.borrow_mut() = Some(connection.clone());
                Ok(connection)
            }
            Err(text) => {
                *self.0.last_error.borrow_mut() = text;
                self.back_off();
                Err(self.unreachable())
            }
        }
    }

    fn unreachable(&self) -> Status {
        let text = format!("cannot connect to {}: {}", self.address(), self.0.last_error.borrow());
        Status::new(Code::Unavailable, text)
    }

    fn back_off(&self) {
        let config = &self.0.context.config;
        let failed = self.0.failed_connects.get();
        self.0.failed_connects.set(failed.saturating_add(1));
        let wait_ms = config.reconnect_backoff_min_ms.saturating_mul(1 << failed.min(16));
        let wait_ms = wait_ms.min(config.reconnect_backoff_max_ms);
        self.0.retry_at.set(Some(Instant::now() + Duration::from_millis(wait_ms)));
    }

    async fn connect(&self) -> Result<Connection, String> {
        let config = &self.0.context.config;
        let connecting = async {
            let stream = TcpStream::connect(self.address()).await.map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            let stream = match &config.tls {
                None => Stream::Plain(stream),
                Some(tls) => tls.connect(stream, self.0.authority.host()).await.map_err(|e| format!("TLS: {e}"))?,
            };
            let handshake = http2::Builder::new(LocalExec)
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_send_buf_size(SEND_BUFFER_BYTES)
                .keep_alive_interval(Duration::from_millis(config.keepalive_time_ms))
                .keep_alive_timeout(Duration::from_millis(config.keepalive_timeout_ms))
                .handshake(TokioIo::new(stream))
                .await;
            handshake.map_err(|e| e.to_string())
        };
        let limit = Duration::from_millis(config.connect_timeout_ms);
        let (connection, driver) = match tokio::time::timeout(limit, connecting).await {
            Ok(connected) => connected?,
            Err(_) => return Err(format!("no connection within {} ms", config.connect_timeout_ms)),
        };
        let address = self.0.authority.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%address, %error, "gRPC connection lost");
            }
        });
        Ok(connection)
    }
}

/// A connection that broke under a call counts as unavailable, as in gRPC's own library, and not as an unknown error.
fn lost(status: Status) -> Status {
    match status.code() {
        Code::Unknown => Status::new(Code::Unavailable, format!("connection lost: {}", status.message())),
        _ => status,
    }
}

fn overdue(path: &str, limit: Duration) -> Status {
    Status::new(Code::DeadlineExceeded, format!("no reply to {path} within {} ms", limit.as_millis()))
}

fn timeout_value(timeout: Duration) -> HeaderValue {
    let micros = timeout.as_micros();
    let text = if micros <= MAX_TIMEOUT_DIGITS_VALUE {
        format!("{micros}u")
    } else {
        format!("{}S", u128::from(timeout.as_secs()).min(MAX_TIMEOUT_DIGITS_VALUE))
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("99999999S"))
}

/// Checks a reply's head; a reply without a body carries its status there.
fn read_head(response: Response<Incoming>) -> Result<FrameReader, Status> {
    if response.status() != http::StatusCode::OK {
        let code = match response.status().as_u16() {
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::Unimplemented,
            429 | 502 | 503 | 504 => Code::Unavailable,
            _ => Code::Unknown,
        };
        return Err(Status::new(code, format!("the server answered with HTTP status {}", response.status())));
    }
    let (head, body) = response.into_parts();
    match Status::from_header_map(&head.headers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(FrameReader::new(body)),
    }
}

/// Reads to the trailers and turns them into the call's result.
async fn end_status(reader: &mut FrameReader, has_message: bool) -> Result<(), Status> {
    if has_message && reader.next().await.map_err(lost)?.is_some() {
        return Err(Status::new(Code::Internal, "more than one message in a unary reply"));
    }
    let trailers = reader.take_trailers();
    match trailers.as_ref().and_then(Status::from_header_map) {
        Some(status) if status.code() != Code::Ok => Err(status),
        Some(_) => Ok(()),
        None => Err(Status::new(Code::Unavailable, "the reply ended without a status")),
    }
}

/// The request side of a streaming call.
pub struct StreamSender<Req> {
    sender: mpsc::Sender<Bytes>,
    message: PhantomData<Req>,
}

impl<Req: Message> StreamSender<Req> {
    /// Sends one request; waits while [`STREAM_QUEUE_MESSAGES`] are unsent.
    ///
    /// # Errors
    /// `UNAVAILABLE` when the stream has ended, `RESOURCE_EXHAUSTED` when the message is too large.
    pub async fn send(&self, message: &Req) -> Result<(), Status> {
        let ended = |_| Status::new(Code::Unavailable, "the stream has ended");
        self.sender.send(encode(message)?).await.map_err(ended)
    }
}

/// The reply side of a streaming call.
pub struct StreamReceiver<Resp> {
    reader: FrameReader,
    _counted: InFlight,
    message: PhantomData<Resp>,
}

impl<Resp: Message + Default> StreamReceiver<Resp> {
    /// The next reply, or `None` when the server has ended the stream with status OK.
    ///
    /// # Errors
    /// The status that the server ended the stream with, or that the breakage amounts to.
    pub async fn next(&mut self) -> Result<Option<Resp>, Status> {
        match self.reader.next().await.map_err(lost)? {
            Some(message) => {
                let unreadable = |e| Status::new(Code::Internal, format!("cannot read a message of the stream: {e}"));
                Resp::decode(message).map(Some).map_err(unreadable)
            }
            None => end_status(&mut self.reader, false).await.map(|()| None),
        }
    }
}

/// A request's body. Only hyper handles it.
enum RequestBody {
    Unary(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let message = match self.get_mut() {
            Self::Unary(message) => message.take(),
            Self::Stream(queue) => std::task::ready!(queue.poll_recv(cx)),
        };
        Poll::Ready(message.map(|message| Ok(Frame::data(message))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Unary(None))
    }
}

/// How often and how patiently a call is repeated after failures that a repetition can cure.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Calls made at most, the first one included.
    pub max_attempts: u32,
    /// Wait before the second call; doubles with each further one...
    pub backoff_min_ms: u64,
    /// ...up to this.
    pub backoff_max_ms: u64,
}

impl Retry {
    /// How long to wait before call number `attempt`, counted from 1.
    pub fn backoff(&self, attempt: u32) -> Duration {
        let doubled = self.backoff_min_ms.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        Duration::from_millis(doubled.min(self.backoff_max_ms))
    }
}

/// True for the failures that Ray 2.60 repeats a call after: the server may be down or restarting.
pub fn is_retryable(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown)
}

impl Channel {
    /// Like [`Self::call`], repeated as `retry` says. The method must be idempotent.
    ///
    /// # Errors
    /// As [`Self::call`], of the last attempt.
    pub async fn call_with_retry<Req, Resp>(
        &self,
        path: &'static str,
        request: &Req,
        timeout: Option<Duration>,
        retry: Retry,
    ) -> Result<Resp, Status>
    where
        Req: Message,
        Resp: Message + Default,
    {
        let mut attempt = 1;
        loop {
            match self.call(path, request, timeout).await {
                Err(status) if attempt < retry.max_attempts && is_retryable(&status) => {
                    tokio::time::sleep(retry.backoff(attempt)).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }
}

/// Channels by address, so that callers of the same server share a connection.
pub struct ChannelPool {
    context: Rc<ClientContext>,
    channels: RefCell<FxHashMap<String, Channel>>,
}

impl ChannelPool {
    /// An empty pool.
    pub fn new(context: Rc<ClientContext>) -> Self {
        Self { context, channels: RefCell::default() }
    }

    /// The channel to `host:port`.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn get(&self, address: &str) -> Result<Channel, AddressError> {
        let mut channels = self.channels.borrow_mut();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = Channel::new(self.context.clone(), address)?;
        if channels.len() >= MAX_POOLED_CHANNELS {
            let idle = channels.values().filter(|c| c.0.in_flight.get() == 0);
            let oldest = idle.min_by_key(|c| c.0.last_used.get()).map(|c| c.address().to_owned());
            match oldest {
                Some(oldest) => channels.remove(&oldest),
                None => return Ok(channel),
            };
        }
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Drops the channel to a server that is known to be gone. Calls in flight keep their connection.
    pub fn forget(&self, address: &str) {
        self.channels.borrow_mut().remove(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_keep_to_eight_digits() {
        let text = |timeout| timeout_value(timeout).to_str().expect("ascii").to_owned();
        assert_eq!(text(Duration::from_millis(1_500)), "1500000u");
        assert_eq!(text(Duration::from_secs(99)), "99000000u");
        assert_eq!(text(Duration::from_secs(3_600)), "3600S");
        assert_eq!(text(Duration::MAX), "99999999S");
    }

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        let retry = Retry { max_attempts: 9, backoff_min_ms: 10, backoff_max_ms: 65 };
        let waits: Vec<_> = (1..=5).map(|n| retry.backoff(n).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 65, 65]);
    }

    #[test]
    fn a_full_pool_drops_the_channel_idle_longest() {
        let pool = ChannelPool::new(ClientContext::new(ClientConfig::default(), Chaos::none()));
        let busy = pool.get("127.0.0.1:1").expect("address").count().expect("a call");
        for port in 2..=MAX_POOLED_CHANNELS {
            pool.get(&format!("127.0.0.1:{port}")).expect("address");
        }
        pool.get("127.0.0.1:65000").expect("address");
        let channels = pool.channels.borrow();
        assert_eq!(channels.len(), MAX_POOLED_CHANNELS);
        assert!(channels.contains_key("127.0.0.1:65000"));
        assert!(channels.contains_key("127.0.0.1:1"), "a channel in use stays");
        assert!(!channels.contains_key("127.0.0.1:2"));
        drop(busy);
    }

    #[test]
    fn bad_addresses_are_refused() {
        let context = ClientContext::new(ClientConfig::default(), Chaos::none());
        assert!(Channel::new(context, "no host").is_err());
    }

    #[test]
    fn ids_are_written_in_lower_case() {
        assert_eq!(hex(&[0x00, 0xaf, 0xff]), "00afff");
    }
}
