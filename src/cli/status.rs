//! `raylet-uring status`: finds the running nodes and prints what they say.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::own::StatusArgs;
use crate::config::{fallback_runtime_dir, Config, Source};
use crate::observe::client::{self, ClientError};
use crate::observe::status::NodeStatus;
use crate::observe::{figures, print, runtime_dir};

/// Exit status where no node runs.
pub const EXIT_NO_NODE: i32 = 3;
/// Exit status where a node was found and didn't answer.
pub const EXIT_UNREACHABLE: i32 = 4;

/// A status that can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// A runtime directory that can't be read.
    #[error("can't read runtime directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The runtime for the requests can't be made, or standard output can't be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A status that isn't JSON. The fields are plain, so this says that memory ran out.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Where nodes are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir {
    /// The directory of the settings.
    pub path: PathBuf,
    /// Whether the user chose it, rather than the default.
    pub is_chosen: bool,
}

impl RuntimeDir {
    /// That of the settings.
    pub fn of(config: Config) -> RuntimeDir {
        RuntimeDir { is_chosen: config.source("runtime_dir") != Source::Default, path: config.runtime_dir }
    }
}

/// Prints the status of the nodes on `out`, problems on `problems`, and gives the exit status: 0, [`EXIT_NO_NODE`] or
/// [`EXIT_UNREACHABLE`]. Where the user chose no `runtime_dir`, the directory that nodes without XDG_RUNTIME_DIR use is
/// looked at too.
///
/// # Errors
/// [`StatusError`].
pub fn run(
    arguments: &StatusArgs,
    runtime_dir: &RuntimeDir,
    out: &mut dyn Write,
    problems: &mut dyn Write,
) -> Result<i32, StatusError> {
    let (nodes, failed) = gather(arguments.node.as_deref(), arguments.all, runtime_dir, problems)?;
    if arguments.json {
        serde_json::to_writer_pretty(&mut *out, &nodes)?;
        writeln!(out)?;
    } else if arguments.metrics {
        write!(out, "{}", figures::page(&nodes))?;
    } else {
        let pages: Vec<String> = nodes.iter().map(print::render).collect();
        write!(out, "{}", pages.join("\n"))?;
    }
    out.flush()?;
    match (nodes.is_empty(), failed) {
        (_, true) => Ok(EXIT_UNREACHABLE),
        (false, false) => Ok(0),
        (true, false) => {
            writeln!(problems, "raylet-uring: no node runs (looked in {})", runtime_dir.path.display())?;
            Ok(EXIT_NO_NODE)
        }
    }
}

/// The nodes that answer, and whether one was found that doesn't; `node`: only the one at this admin socket.
pub(super) fn gather(
    node: Option<&Path>,
    all: bool,
    runtime_dir: &RuntimeDir,
    problems: &mut dyn Write,
) -> Result<(Vec<NodeStatus>, bool), StatusError> {
    let sockets = sockets(node, all, runtime_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut nodes: Vec<NodeStatus> = Vec::new();
    let mut failed = false;
    for socket in &sockets {
        match runtime.block_on(client::status(socket)) {
            Ok(status) => nodes.push(status),
            // A node that ended between the look into the directory and the question.
            Err(ClientError::Connect { .. }) if node.is_none() => {}
            Err(error) => {
                failed = true;
                writeln!(problems, "raylet-uring: {error}")?;
            }
        }
    }
    Ok((nodes, failed))
}

/// The admin sockets to ask; `node`: only this one.
pub(super) fn sockets(node: Option<&Path>, all: bool, runtime_dir: &RuntimeDir) -> Result<Vec<PathBuf>, StatusError> {
    if let Some(socket) = node {
        return Ok(vec![socket.to_owned()]);
    }
    let mut dirs = vec![runtime_dir.path.clone()];
    if !runtime_dir.is_chosen {
        dirs.push(fallback_runtime_dir());
    }
    if all {
        dirs.extend(runtime_dir::of_all_users());
    }
    dirs.sort();
    dirs.dedup();
    let mut found = Vec::new();
    for dir in dirs {
        match runtime_dir::running(&dir) {
            Ok(sockets) => found.extend(sockets),
            // Another user's directory: --all shows what may be seen.
            Err(error) if dir != runtime_dir.path => {
                tracing::debug!(dir = %dir.display(), %error, "skipped")
            }
            Err(source) => return Err(StatusError::Directory { path: dir, source }),
        }
    }
    Ok(found)
}
