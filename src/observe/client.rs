//! The other end of the admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{header, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::status::NodeStatus;

/// Time for one request, from connecting to the last byte.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer.
pub const ANSWER_MAX_BYTES: usize = 16 << 20;

/// A node that didn't answer as it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error("no node answers at {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The node is too busy or stuck.
    #[error("the node at {path} didn't answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
    /// Something that doesn't speak HTTP as expected.
    #[error("the node at {path}: {message}")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// The node refused.
    #[error("the node at {path} answered {status}: {message}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The HTTP status.
        status: StatusCode,
        /// What the node said.
        message: String,
    },
}

/// Sends one request to an admin socket and gives the body of the answer.
///
/// # Errors
/// [`ClientError`]; every status but 2xx is [`ClientError::Refused`].
pub async fn request(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, exchange(socket, method, path, body)).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Timeout { path: socket.to_owned() }),
    }
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
    let protocol =
        |error: &dyn std::fmt::Display| ClientError::Protocol { path: socket.to_owned(), message: error.to_string() };
    let stream =
        UnixStream::connect(socket).await.map_err(|source| ClientError::Connect { path: socket.to_owned(), source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| protocol(&e))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "raylet-uring")
        .body(Full::new(body))
        .map_err(|e| protocol(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| protocol(&e))?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await.map_err(|e| protocol(&e))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let message = String::from_utf8_lossy(&body).trim_end().to_owned();
        Err(ClientError::Refused { path: socket.to_owned(), status, message })
    };
    // The connection has to be driven until the answer is there; it has nothing to say on its own.
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(protocol(&error)),
        },
    }
}

/// The status of the node at an admin socket.
///
/// # Errors
/// [`ClientError`].
pub async fn status(socket: &Path) -> Result<NodeStatus, ClientError> {
    let json = request(socket, Method::GET, "/status", Bytes::new()).await?;
    serde_json::from_slice(&json)
        .map_err(|e| ClientError::Protocol { path: socket.to_owned(), message: format!("not a status: {e}") })
}
