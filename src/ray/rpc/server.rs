//! A gRPC server on the control thread.
//!
//! hyper speaks HTTP/2 and runs its tasks on the thread's `LocalSet`; this module and [`super::router`] add what gRPC adds, so
//! that nothing has to be `Send` and an empty call costs as little as it can.

use std::convert::Infallible;
use std::future::{poll_fn, Future};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustc_hash::FxHashMap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::auth::Auth;
use super::exec::LocalExec;
use super::limits::{CONNECTION_WINDOW_BYTES, MAX_STREAMS_PER_CONNECTION, STREAM_WINDOW_BYTES};
use super::meter::Timing;
use super::router::{LocalFuture, ReplyBody, Route, Router};
use super::status::no_method;
use super::tls::{Stream, Tls};

/// Connections that the server keeps; more are closed as soon as they are accepted.
pub const MAX_CONNECTIONS: usize = 16_384;
/// Streams that a client may have reset and this side not yet dropped; one that resets faster is cut off.
const MAX_PENDING_RESETS: usize = 4_096;
const SEND_BUFFER_BYTES: usize = 1024 * 1024;
const ACCEPT_RETRY_MS: u64 = 50;

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Who may call.
    pub auth: Auth,
    /// How connections are encrypted, where they are.
    pub tls: Option<Tls>,
    /// A silent connection is pinged this often: Ray's `grpc_keepalive_time_ms`.
    pub keepalive_time_ms: u64,
    /// A ping unanswered this long closes its connection: Ray's `grpc_keepalive_timeout_ms`.
    pub keepalive_timeout_ms: u64,
    /// How long a stopping server waits for calls in flight.
    pub stop_grace_ms: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            auth: Auth::disabled(),
            tls: None,
            keepalive_time_ms: 10_000,
            keepalive_timeout_ms: 20_000,
            stop_grace_ms: 1_000,
        }
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
            return Err(Box::new(no_method(path)));
        };
        if route.needs_auth {
            self.auth.check(request.headers()).map_err(Box::new)?;
        }
        let timing = route.meter.as_ref().map(Timing::start);
        Ok(Running { call: route.handler.answer(request), timing })
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
        let (http2, dispatch, tls) = (self.http2(), Dispatch(self.shared.clone()), self.config.tls.clone());
        let mut stopping = stopping.subscribe();
        tokio::task::spawn_local(async move {
            let greeted = match tls {
                None => Ok(Stream::Plain(stream)),
                Some(tls) => tls.accept(stream).await,
            };
            let stream = match greeted {
                Ok(stream) => stream,
                Err(error) => return tracing::warn!(%peer, %error, "a gRPC caller fails at TLS"),
            };
            let connection = http2.serve_connection(TokioIo::new(stream), dispatch);
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
            // gRPC knows no such header.
            .auto_date_header(false)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_millis(self.config.keepalive_time_ms))
            .keep_alive_timeout(Duration::from_millis(self.config.keepalive_timeout_ms));
        builder
    }
}
