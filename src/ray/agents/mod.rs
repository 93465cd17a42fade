//! The two agents of a node: Python programs that the raylet starts, watches and stops.
//!
//! - The *dashboard agent* reports on the node, takes the metrics of its processes and runs jobs.
//! - The *runtime-env agent* prepares the environments in which workers start (see [`super::runtime_env`]).
//!
//! As in Ray 2.60 the node shares the fate of each: an agent that ends, or that does not come up, is a failure of the
//! node. Unlike there nothing waits for them: see [`ports`].

pub mod ports;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::NodeId;
use tokio::sync::{watch, Notify};
use tokio::time::Instant;

use self::ports::{announced, assign, AgentPort, PortError, Reservation, NOT_SERVED};
use crate::workers::command::{expand, inherited_to_remove, CommandLine};
use crate::workers::exit::ExitStatus;
use crate::workers::process::{
    ProcessConfig, ProcessExit, ProcessKey, ProcessTable, SpawnError, SpawnSpec, Started, Stdin,
};

/// How often an agent's port file is looked for while it starts. Python takes most of a second to get there.
const PORT_POLL: Duration = Duration::from_millis(50);
/// How long a node's agents are held back at most.
pub const START_AT_LATEST: Duration = Duration::from_secs(2);
/// Two agents, each with an end and a failure to come up.
const MAX_FAILURES: usize = 4;

/// One of the agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Agent {
    /// `ray/dashboard/agent.py`.
    Dashboard,
    /// `ray/_private/runtime_env/agent/main.py`.
    RuntimeEnv,
}

impl Agent {
    /// Both.
    pub const ALL: [Agent; 2] = [Agent::Dashboard, Agent::RuntimeEnv];

    /// Its name in messages, which is also that of its log file.
    pub fn name(self) -> &'static str {
        match self {
            Agent::Dashboard => "dashboard_agent",
            Agent::RuntimeEnv => "runtime_env_agent",
        }
    }

    /// The ports that it serves.
    fn ports(self) -> &'static [AgentPort] {
        match self {
            Agent::Dashboard => &AgentPort::ALL[..3],
            Agent::RuntimeEnv => &AgentPort::ALL[3..],
        }
    }
}

/// Why the agents can't be started.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A port can't be picked.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The process can't be started.
    #[error("the {} can't be started: {}", .0.name(), .1)]
    Spawn(Agent, SpawnError),
    /// `start` was called twice.
    #[error("the {} was started already", .0.name())]
    Twice(Agent),
}

/// What the agents are started with.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// The node.
    pub node_id: NodeId,
    /// Its address.
    pub node_ip: IpAddr,
    /// `--session_dir`, where the agents announce their ports.
    pub session_dir: PathBuf,
    /// Process id of the node service.
    pub raylet_pid: u32,
    /// `--dashboard_agent_command`, split; empty for none.
    pub dashboard_command: Vec<String>,
    /// `--runtime_env_agent_command`, split; empty for none.
    pub runtime_env_command: Vec<String>,
    /// `enable_pipe_based_agent_to_parent_health_check` (Ray's default: true): an agent sees the end of the node as the
    /// end of its standard input.
    pub pipe_health_check: bool,
    /// `agent_register_timeout_ms` (Ray's default: 30 s): in which an agent has to announce its ports.
    pub register_timeout: Duration,
    /// How long [`AgentManager::start_when`] holds the agents back at most; a node: [`START_AT_LATEST`].
    pub start_at_latest: Duration,
    /// Between SIGTERM and SIGKILL when the node ends.
    pub kill_timeout: Duration,
}

/// The ports of a node's agents as `GcsNodeInfo` wants them: 0 where not known, -1 where not served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentPorts {
    /// `GcsNodeInfo.metrics_agent_port`.
    pub metrics_agent: i32,
    /// `GcsNodeInfo.metrics_export_port`.
    pub metrics_export: i32,
    /// `GcsNodeInfo.dashboard_agent_listen_port`.
    pub dashboard_listen: i32,
    /// `GcsNodeInfo.runtime_env_agent_port`.
    pub runtime_env: i32,
}

impl AgentPorts {
    fn slot(&mut self, port: AgentPort) -> &mut i32 {
        match port {
            AgentPort::Metrics => &mut self.metrics_agent,
            AgentPort::MetricsExport => &mut self.metrics_export,
            AgentPort::DashboardListen => &mut self.dashboard_listen,
            AgentPort::RuntimeEnv => &mut self.runtime_env,
        }
    }
}

/// An agent that the node can't go on without has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentFailure {
    /// Which one.
    pub agent: Agent,
    /// How it ended; `None` where it runs but did not come up in time.
    pub status: Option<ExitStatus>,
    /// For `NodeDeathInfo.reason_message`, in the stock raylet's words.
    pub reason: String,
    /// For the node's log: what it was, and where to look.
    pub details: String,
}

/// State of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// No command was given for it.
    Absent,
    /// It will be started, or is starting.
    Starting,
    /// It has announced its ports.
    Ready,
    /// It has ended, or did not come up.
    Failed,
}

/// Starts, watches and stops the agents. Clones share them.
#[derive(Clone)]
pub struct AgentManager {
    inner: Rc<Inner>,
}

struct Inner {
    settings: AgentSettings,
    commands: [Vec<String>; 2],
    planned: AgentPorts,
    ports: Cell<AgentPorts>,
    table: ProcessTable,
    exits: flume::Receiver<ProcessExit>,
    started: RefCell<[Option<Started>; 2]>,
    reservations: RefCell<[Vec<Reservation>; 2]>,
    states: [watch::Sender<AgentState>; 2],
    failures: flume::Sender<AgentFailure>,
    wanted: Notify,
    stopping: Cell<bool>,
}

impl AgentManager {
    /// Picks the ports; starts nothing yet. Failures of agents come through `AgentFailure`s, at most one each.
    ///
    /// # Errors
    /// A command with a port that is none, or a machine without free ports.
    pub fn new(settings: AgentSettings) -> Result<(Self, flume::Receiver<AgentFailure>), AgentError> {
        let mut commands = [settings.dashboard_command.clone(), settings.runtime_env_command.clone()];
        let mut reservations = [Vec::new(), Vec::new()];
        let mut planned = AgentPorts::default();
        for agent in Agent::ALL {
            let command = &mut commands[agent as usize];
            for &port in agent.ports() {
                let unserved = command.is_empty() || not_collecting(port, command);
                *planned.slot(port) = match unserved {
                    true => NOT_SERVED,
                    false => assign(port, settings.node_ip, command, &mut reservations[agent as usize])?,
                };
            }
        }
        let states = [0, 1].map(|i| {
            watch::Sender::new(if commands[i].is_empty() { AgentState::Absent } else { AgentState::Starting })
        });
        let (exit_sender, exits) = flume::bounded(Agent::ALL.len());
        let (failures, failure_receiver) = flume::bounded(MAX_FAILURES);
        let config = ProcessConfig { max_processes: Agent::ALL.len(), kill_timeout: settings.kill_timeout };
        let inner = Inner {
            settings,
            commands,
            planned,
            ports: Cell::new(planned),
            table: ProcessTable::new(config, exit_sender),
            exits,
            started: RefCell::default(),
            reservations: RefCell::new(reservations),
            states,
            failures,
            wanted: Notify::new(),
            stopping: Cell::new(false),
        };
        Ok((Self { inner: Rc::new(inner) }, failure_receiver))
    }

    /// The ports to publish for the node: those that were picked, and after an agent's announcement what it said.
    pub fn ports(&self) -> AgentPorts {
        self.inner.ports.get()
    }

    /// Starts both agents and returns at once. To be called once the node's gRPC server listens.
    ///
    /// # Errors
    /// An agent that can't be started.
    pub fn start(&self, node_manager_port: u16) -> Result<(), AgentError> {
        let watch_ends = self.inner.started.borrow().iter().all(Option::is_none);
        Agent::ALL.into_iter().try_for_each(|agent| self.start_one(agent, node_manager_port))?;
        if watch_ends {
            tokio::task::spawn_local(self.clone().watch_ends());
        }
        Ok(())
    }

    /// Starts both agents when `go` completes, when someone waits for one, or after `start_at_latest`, whichever comes first; returns at
    /// once. An agent that can't be started is an [`AgentFailure`].
    ///
    /// Two Pythons that import Ray's libraries take two cores for a second or more. Held back until the first driver has
    /// connected, they don't take it from that driver's `ray.init()`.
    pub fn start_when(&self, node_manager_port: u16, go: impl Future<Output = ()> + 'static) {
        let manager = self.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = go => {}
                () = manager.inner.wanted.notified() => {}
                () = tokio::time::sleep(manager.inner.settings.start_at_latest) => {}
            }
            if manager.inner.stopping.get() {
                return;
            }
            match manager.start(node_manager_port) {
                Ok(()) => {}
                Err(error @ (AgentError::Spawn(agent, _) | AgentError::Twice(agent))) => {
                    manager.fail(agent, None, &error.to_string());
                }
                Err(AgentError::Port(error)) => {
                    tracing::error!(%error, "the agents were not started")
                }
            }
        });
    }

    /// Process ids of the running agents: dashboard agent, runtime-env agent (for `GetAgentPIDs`).
    pub fn pids(&self) -> [Option<u32>; 2] {
        let started = *self.inner.started.borrow();
        started.map(|s| s.filter(|s| self.inner.table.is_alive(s.key)).map(|s| s.pid))
    }

    /// State of an agent, now.
    pub fn state(&self, agent: Agent) -> AgentState {
        *self.inner.states[agent as usize].borrow()
    }

    /// Waits until an agent serves, or never will. Agents that are being held back start now.
    pub async fn settled(&self, agent: Agent) -> AgentState {
        self.inner.wanted.notify_one();
        let mut state = self.inner.states[agent as usize].subscribe();
        let settled = state.wait_for(|state| *state != AgentState::Starting).await;
        // The sender lives in self, which is borrowed here, so that the other case does not occur.
        settled.map_or(AgentState::Failed, |state| *state)
    }

    /// Ends the agents; from now on their ends are no failures. Returns the number of those that could not be ended.
    pub async fn shutdown(&self) -> usize {
        self.inner.stopping.set(true);
        self.inner.table.shutdown().await
    }

    fn start_one(&self, agent: Agent, node_manager_port: u16) -> Result<(), AgentError> {
        let index = agent as usize;
        let command = &self.inner.commands[index];
        if command.is_empty() {
            return Ok(());
        }
        if self.inner.started.borrow()[index].is_some() {
            return Err(AgentError::Twice(agent));
        }
        let spec = self.inner.settings.spawn_spec(command, node_manager_port);
        let started = self.inner.table.spawn(&spec).map_err(|error| AgentError::Spawn(agent, error))?;
        tracing::info!(agent = agent.name(), pid = started.pid, "agent started");
        self.inner.started.borrow_mut()[index] = Some(started);
        tokio::task::spawn_local(self.clone().watch_start(agent, started));
        Ok(())
    }

    /// Waits for the announcements of an agent and then lets go of its ports.
    async fn watch_start(self, agent: Agent, started: Started) {
        let deadline = Instant::now() + self.inner.settings.register_timeout;
        let result = loop {
            match self.announced_by(agent) {
                Ok(true) => break Ok(()),
                Err(error) => break Err(error.to_string()),
                Ok(false) if Instant::now() >= deadline => {
                    let timeout = self.inner.settings.register_timeout;
                    break Err(format!("it did not announce its ports within {timeout:?}"));
                }
                Ok(false) => tokio::time::sleep(PORT_POLL).await,
            }
            if !self.inner.table.is_alive(started.key) {
                return; // Its end is reported by watch_ends.
            }
        };
        self.inner.reservations.borrow_mut()[agent as usize].clear();
        match result {
            Ok(()) => {
                self.inner.states[agent as usize].send_replace(AgentState::Ready);
            }
            Err(why) => self.fail(agent, None, &why),
        }
    }

    /// True when an agent has announced all of its ports.
    fn announced_by(&self, agent: Agent) -> Result<bool, PortError> {
        let settings = &self.inner.settings;
        let mut ports = self.inner.ports.get();
        let mut planned = self.inner.planned;
        for &port in agent.ports() {
            match announced(port, &settings.session_dir, &settings.node_id)? {
                Some(announced) => *ports.slot(port) = announced,
                None => return Ok(false),
            }
        }
        for &port in agent.ports() {
            let (planned, announced) = (*planned.slot(port), *ports.slot(port));
            if planned != announced {
                tracing::warn!(
                    agent = agent.name(),
                    port = port.name(),
                    planned,
                    announced,
                    "an agent serves on another port than it was given (-1: not at all); what was published for the \
                     node is out of date"
                );
            }
        }
        self.inner.ports.set(ports);
        Ok(true)
    }

    async fn watch_ends(self) {
        let mut left = self.inner.started.borrow().iter().flatten().count();
        while left > 0 {
            let Ok(exit) = self.inner.exits.recv_async().await else {
                return;
            };
            left -= 1;
            if let Some(agent) = self.agent_of(exit.key) {
                if !self.inner.stopping.get() {
                    self.fail(agent, Some(exit.status), &format!("it ended with {}", exit.status));
                }
            }
        }
    }

    fn agent_of(&self, key: ProcessKey) -> Option<Agent> {
        let started = self.inner.started.borrow();
        Agent::ALL.into_iter().find(|agent| started[*agent as usize].is_some_and(|s| s.key == key))
    }

    fn fail(&self, agent: Agent, status: Option<ExitStatus>, why: &str) {
        let before = self.inner.states[agent as usize].send_replace(AgentState::Failed);
        if before == AgentState::Failed {
            return;
        }
        let failure = AgentFailure {
            agent,
            status,
            reason: format!("{} failed and raylet fate-shares with it.", agent.name()),
            details: format!(
                "the {name} failed: {why}. The node ends with it, as a stock raylet does. Common causes: a version of \
                 grpcio that Ray does not work with, a port that another program has, lack of memory. See {name}.log, \
                 {name}.out and {name}.err in the session's log directory.",
                name = agent.name()
            ),
        };
        // The bound holds what two agents can send; a receiver that is gone belongs to a node that is ending.
        if self.inner.failures.try_send(failure).is_err() {
            tracing::debug!(agent = agent.name(), "an agent failed while nobody listened");
        }
    }
}

impl AgentSettings {
    fn spawn_spec(&self, command: &[String], node_manager_port: u16) -> SpawnSpec {
        let health_check = if self.pipe_health_check { "1" } else { "0" };
        let env = vec![
            ("RAY_NODE_ID".into(), self.node_id.to_string()),
            ("RAY_RAYLET_PID".into(), self.raylet_pid.to_string()),
            ("RAY_enable_pipe_based_agent_to_parent_health_check".into(), health_check.into()),
        ];
        SpawnSpec {
            command: CommandLine {
                argv: expand(command, node_manager_port, &[]),
                env,
                env_remove: inherited_to_remove(),
            },
            stdin: if self.pipe_health_check { Stdin::LifetimePipe } else { Stdin::Null },
            ..SpawnSpec::default()
        }
    }
}

/// True where the dashboard agent is told not to collect metrics: it then exports none.
fn not_collecting(port: AgentPort, command: &[String]) -> bool {
    port == AgentPort::MetricsExport && command.iter().any(|argument| argument == "--disable-metrics-collection")
}
