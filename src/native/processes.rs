//! Native workers that the node starts: by the worker command, one process for each start that a shard asks for.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::WorkerId;
use raylet_shard::sched::{SchedEvent, StartFailure, StartToken, WorkerKey};
use raylet_transport::messages::{Refusal, RefusalCode};
use rustc_hash::FxHashMap;

use crate::workers::command::CommandLine;
use crate::workers::process::{ProcessExit, ProcessKey, ProcessTable, SpawnSpec};

/// Where a worker that the node starts finds which start it is.
pub const START_TOKEN_VARIABLE: &str = "RAYLET_START_TOKEN";
/// Where it finds the node's socket.
pub const SOCKET_VARIABLE: &str = "RAYLET_SOCKET";
/// Where it finds the kind of lease that it is to serve.
pub const CLASS_VARIABLE: &str = "RAYLET_WORKER_CLASS";

/// What peers know each other by is none of a worker's business: the node's own door asks for no token.
const SECRETS: [&str; 1] = ["RAY_AUTH_TOKEN"];

/// How long a started worker may take to register.
pub const REGISTER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long one request for a worker that comes by itself is good. Then its lease looks again for one that came to another core, and a
/// lease that was given up calls no worker any more.
pub const COME_TIMEOUT: Duration = Duration::from_millis(100);

/// How much sooner than the node the kernel takes a worker when memory is short (as Ray's `worker_oom_score_adjustment`).
const OOM_SCORE_ADJUSTMENT: i32 = 1000;

/// Starts that are not answered, and workers that have registered.
pub struct Processes {
    command: Vec<String>,
    socket: PathBuf,
    table: ProcessTable,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Without a command these wait for workers that come by themselves.
    starts: Vec<Start>,
    workers: FxHashMap<WorkerId, Option<ProcessKey>>,
}

struct Start {
    token: StartToken,
    key: WorkerKey,
    process: Option<ProcessKey>,
}

impl Processes {
    /// Starts workers by `command`, whose ends `table` reports. Empty: none are started.
    pub fn new(command: Vec<String>, socket: PathBuf, table: ProcessTable) -> Rc<Self> {
        Rc::new(Self { command, socket, table, state: RefCell::default() })
    }

    /// A shard wants a worker of a kind. An event for the shard where nothing comes of it.
    pub fn start(&self, token: StartToken, key: WorkerKey, kind: &str) -> Option<SchedEvent> {
        let mut process = None;
        if !self.command.is_empty() {
            match self.table.spawn(&self.spec(token, kind)) {
                Ok(started) => process = Some(started.key),
                Err(error) => {
                    tracing::error!(%error, "a native worker can't be started: look at --worker-command");
                    return Some(failed(token, StartFailure::NotRegistered));
                }
            }
        }
        self.state.borrow_mut().starts.push(Start { token, key, process });
        None
    }

    fn spec(&self, token: StartToken, kind: &str) -> SpawnSpec {
        let env = [
            (START_TOKEN_VARIABLE, token.0.to_string()),
            (SOCKET_VARIABLE, self.socket.display().to_string()),
            (CLASS_VARIABLE, kind.to_owned()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value)).into();
        let env_remove = SECRETS.map(str::to_owned).into();
        let command = CommandLine { argv: self.command.clone(), env, env_remove };
        SpawnSpec { command, own_group: true, oom_score_adjustment: Some(OOM_SCORE_ADJUSTMENT), ..SpawnSpec::default() }
    }

    /// The process of a start that has not registered yet, if there is one.
    pub fn pid(&self, token: StartToken) -> Option<u32> {
        let state = self.state.borrow();
        let start = state.starts.iter().find(|start| start.token == token)?;
        self.table.pid(start.process?)
    }

    /// How long a start may take to be answered.
    pub fn patience(&self) -> Duration {
        if self.command.is_empty() {
            COME_TIMEOUT
        } else {
            REGISTER_TIMEOUT
        }
    }

    /// A start that was not answered in time: its process ends, if it has one, and the shard hears of it.
    pub fn late(&self, token: StartToken) -> Option<SchedEvent> {
        let mut state = self.state.borrow_mut();
        let at = state.starts.iter().position(|start| start.token == token)?;
        let start = state.starts.remove(at);
        let Some(process) = start.process else {
            return Some(failed(token, StartFailure::NoneCame));
        };
        tracing::warn!(?REGISTER_TIMEOUT, "a native worker did not register in time and is killed");
        self.table.kill(process);
        Some(failed(token, StartFailure::NotRegistered))
    }

    /// A worker registers: the start that it answers, if it answers one.
    ///
    /// # Errors
    /// [`RefusalCode::UnknownStart`] for a token that no worker was started with.
    pub fn registers(&self, worker: WorkerId, token: u64, key: WorkerKey) -> Result<Option<StartToken>, Refusal> {
        let mut state = self.state.borrow_mut();
        let at = match token {
            // It comes by itself, as the oldest start of its kind has waited for.
            0 => state.starts.iter().position(|start| start.process.is_none() && start.key == key),
            token => match state.starts.iter().position(|start| start.token.0 == token && start.process.is_some()) {
                Some(at) if state.starts[at].key == key => Some(at),
                Some(_) => {
                    let detail = "the worker registers for another class than it was started for";
                    return Err(Refusal::new(RefusalCode::UnknownStart, detail));
                }
                None => return Err(Refusal::new(RefusalCode::UnknownStart, format!("start {token}"))),
            },
        };
        let start = at.map(|at| state.starts.remove(at));
        state.workers.insert(worker, start.as_ref().and_then(|start| start.process));
        Ok(start.map(|start| start.token))
    }

    /// A worker is gone, or has to go: so does its process, if the node started it. False: it was not known.
    pub fn gone(&self, worker: &WorkerId, kill: bool) -> bool {
        let known = self.state.borrow_mut().workers.remove(worker);
        let Some(process) = known else {
            return false;
        };
        match process {
            Some(process) if kill => self.table.kill(process),
            // One that has said goodbye may take its time; what hangs is killed.
            Some(process) => self.table.terminate(process),
            None => {}
        }
        true
    }

    /// True for a worker of the native door.
    pub fn has(&self, worker: &WorkerId) -> bool {
        self.state.borrow().workers.contains_key(worker)
    }

    /// True where the node started the worker.
    pub fn is_started(&self, worker: &WorkerId) -> bool {
        self.state.borrow().workers.get(worker).is_some_and(Option::is_some)
    }

    /// A process ended. An event for the shard of its start, where it had not registered.
    pub fn ended(&self, exit: &ProcessExit) -> Option<SchedEvent> {
        let mut state = self.state.borrow_mut();
        let at = state.starts.iter().position(|start| start.process == Some(exit.key))?;
        tracing::warn!(pid = exit.pid, status = %exit.status, "a native worker ended before it registered");
        Some(failed(state.starts.remove(at).token, StartFailure::NotRegistered))
    }

    /// Workers that have registered.
    pub fn workers(&self) -> usize {
        self.state.borrow().workers.len()
    }

    /// Ends all processes.
    pub async fn shutdown(&self) {
        self.table.shutdown().await;
    }
}

fn failed(start: StartToken, why: StartFailure) -> SchedEvent {
    SchedEvent::StartFailed { start, why }
}
