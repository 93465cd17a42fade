//! `raylet-uring log-level`: what running nodes log, changed while they run.

use std::collections::BTreeMap;
use std::io::{self, Write};

use bytes::Bytes;
use http::Method;

use super::own::LogLevelArgs;
use super::status::{sockets, RuntimeDir, StatusError, EXIT_NO_NODE, EXIT_UNREACHABLE};
use crate::config::{Config, ConfigError};
use crate::observe::client::{self, ClientError};

/// A log that can't be asked for or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogLevelError {
    /// Settings that can't be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Running nodes can't be looked for.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// Standard output can't be written, or there is no runtime for the requests.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Changes or tells the filter of each node on `out`, problems on `problems`. Gives the exit status: 0 all answered, 3 there
/// is no node, 4 one refused or gave no answer.
///
/// # Errors
/// [`LogLevelError`].
pub fn run(
    arguments: &LogLevelArgs,
    environment: &BTreeMap<String, String>,
    out: &mut dyn Write,
    problems: &mut dyn Write,
) -> Result<i32, LogLevelError> {
    let runtime_dir = RuntimeDir::of(Config::load(&BTreeMap::new(), environment)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut answered, mut failed) = (0, false);
    for socket in sockets(arguments.node.as_deref(), false, &runtime_dir)? {
        let request = match &arguments.filter {
            Some(filter) => client::request(&socket, Method::POST, "/log-level", Bytes::from(filter.clone())),
            None => client::request(&socket, Method::GET, "/log-level", Bytes::new()),
        };
        match runtime.block_on(request) {
            Ok(filter) => {
                answered += 1;
                writeln!(out, "{}: {}", socket.display(), String::from_utf8_lossy(&filter).trim())?;
            }
            // A node that ended between the look into the directory and the question.
            Err(ClientError::Connect { .. }) if arguments.node.is_none() => {}
            Err(error) => {
                failed = true;
                writeln!(problems, "raylet-uring: {error}")?;
            }
        }
    }
    out.flush()?;
    match (answered, failed) {
        (_, true) => Ok(EXIT_UNREACHABLE),
        (0, false) => {
            writeln!(problems, "raylet-uring: no node runs (looked in {})", runtime_dir.path.display())?;
            Ok(EXIT_NO_NODE)
        }
        _ => Ok(0),
    }
}
