//! The admin socket: HTTP/1.1 on a Unix socket in the runtime directory, served on the control thread.
//!
//! | request | answer |
//! |---|---|
//! | `GET /status` | the [`NodeStatus`] as JSON |
//! | `GET /config` | the settings and where they came from, as text |
//! | `GET /log-level` | the filter in force |
//! | `POST /log-level` | takes a filter as the body, answers with the filter in force |
//! | `POST /shutdown` | stops the node, where [`Routes::shutdown`] is given; 403 otherwise |
//!
//! Errors are a line of text. The runtime directory has mode 0700, so only its user gets here.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{header, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::log::LogHandle;
use super::runtime_dir::{self, RuntimeDirError};
use super::status::NodeStatus;
use crate::peer;

/// Connections at once; further ones wait in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 16;
/// Bytes of a request's body; a longer one is answered with 413.
pub const BODY_MAX_BYTES: usize = 4096;
/// A connection that is open this long is closed, whatever it does.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after an accept that failed (for want of file descriptors, say), so that the loop doesn't spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// An answer in the making, on the control thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Gathers the node's status from its shards.
pub type StatusProvider = Box<dyn Fn() -> LocalFuture<NodeStatus>>;

/// What the admin socket answers with.
pub struct Routes {
    /// Asked for every `GET /status`.
    pub status: StatusProvider,
    /// What `GET /config` answers ([`Config::describe`](crate::config::Config::describe)).
    pub config: String,
    /// The log whose filter `POST /log-level` changes.
    pub log: LogHandle,
    /// Called by `POST /shutdown`. `None`: refused.
    pub shutdown: Option<Box<dyn Fn()>>,
}

/// An admin socket that can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The runtime directory can't be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// The socket can't be bound.
    #[error("admin socket {path}: {source}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A bound admin socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct AdminServer {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminServer {
    /// Binds `<runtime_dir>/<pid>.sock` for this process, making the directory where needed. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// [`AdminError`], for a directory that isn't this user's alone among others.
    pub fn bind(runtime_dir: &Path) -> Result<Self, AdminError> {
        runtime_dir::prepare(runtime_dir)?;
        // Nodes that were killed have left theirs; what can't be read now is cleared by the next look.
        let _ = runtime_dir::running(runtime_dir);
        let path = runtime_dir::socket_path(runtime_dir, std::process::id());
        // It gets its name when it listens: before that, whoever looks for nodes would take it for a dead one's and remove it.
        let nameless = path.with_extension("new");
        // A socket of this process id can only be a dead process's.
        let _ = std::fs::remove_file(&nameless);
        let bound = UnixListener::bind(&nameless).and_then(|listener| {
            std::fs::rename(&nameless, &path)?;
            Ok(listener)
        });
        match bound {
            Ok(listener) => Ok(AdminServer { listener, path }),
            Err(source) => Err(AdminError::Bind { path, source }),
        }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until the future is dropped. It must run inside a [`tokio::task::LocalSet`].
    pub async fn serve(self, routes: Routes) {
        let routes = Rc::new(routes);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => match peer::check(&stream) {
                    Ok(()) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "an admin connection was refused");
                        continue;
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "admin socket can't accept");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let routes = Rc::clone(&routes);
            tokio::task::spawn_local(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let span =
                        tracing::debug_span!("admin.request", method = %request.method(), path = request.uri().path());
                    answer(Rc::clone(&routes), request).instrument(span)
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
                    Ok(Ok(())) | Err(_) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "admin connection"),
                }
                drop(place);
            });
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(routes: Rc<Routes>, request: Request<Incoming>) -> Result<Answer, http::Error> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/status") => {
            let status = (routes.status)().await;
            match serde_json::to_vec(&status) {
                Ok(json) => reply(StatusCode::OK, "application/json", json),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("status: {error}\n")),
            }
        }
        (&Method::GET, "/config") => plain(StatusCode::OK, routes.config.clone()),
        (&Method::GET, "/log-level") => plain(StatusCode::OK, format!("{}\n", routes.log.filter())),
        (&Method::POST, "/log-level") => set_log_filter(&routes.log, request.into_body()).await,
        (&Method::POST, "/shutdown") => match &routes.shutdown {
            Some(shutdown) => {
                shutdown();
                plain(StatusCode::ACCEPTED, "shutting down\n")
            }
            None => plain(StatusCode::FORBIDDEN, "this node doesn't take /shutdown; send it SIGTERM\n"),
        },
        (_, "/status" | "/config") => not_allowed("GET"),
        (_, "/log-level") => not_allowed("GET, POST"),
        (_, "/shutdown") => not_allowed("POST"),
        _ => plain(StatusCode::NOT_FOUND, format!("no {path}; known are /status, /config, /log-level, /shutdown\n")),
    }
}

async fn set_log_filter(log: &LogHandle, body: Incoming) -> Result<Answer, http::Error> {
    let body = match Limited::new(body, BODY_MAX_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, format!("a log filter has at most {BODY_MAX_BYTES} bytes\n"));
        }
        Err(error) => return plain(StatusCode::BAD_REQUEST, format!("body: {error}\n")),
    };
    let Ok(filter) = std::str::from_utf8(&body) else {
        return plain(StatusCode::BAD_REQUEST, "a log filter is UTF-8 text\n");
    };
    match log.set_filter(filter.trim()) {
        Ok(()) => {
            tracing::info!(filter = filter.trim(), "log filter changed");
            plain(StatusCode::OK, format!("{}\n", log.filter()))
        }
        Err(error) => plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn not_allowed(allowed: &'static str) -> Result<Answer, http::Error> {
    let body = Full::from(format!("use {allowed}\n"));
    Response::builder().status(StatusCode::METHOD_NOT_ALLOWED).header(header::ALLOW, allowed).body(body)
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Result<Answer, http::Error> {
    reply(status, "text/plain; charset=utf-8", text)
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Result<Answer, http::Error> {
    Response::builder().status(status).header(header::CONTENT_TYPE, kind).body(Full::new(body.into()))
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
