//! The command line and the environment of a worker process.
//!
//! Ray's Python side hands the raylet one template per language (`--python_worker_command`, built by
//! `ray/_private/services.py`); the raylet replaces the placeholders in it and appends what only it knows. The result
//! here equals what the stock raylet of Ray 2.60 starts, argument by argument; the tests hold captures of it.

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use raylet_shard::ids::{JobId, NodeId, WorkerId};

use crate::node::service;

/// Stands in a template for the TCP port of the node's `NodeManagerService`.
pub const NODE_MANAGER_PORT_PLACEHOLDER: &str = "RAY_NODE_MANAGER_PORT_PLACEHOLDER";
/// Stands in a template, as an argument of its own, for the options of the one worker.
pub const DYNAMIC_OPTION_PLACEHOLDER: &str = "RAY_WORKER_DYNAMIC_OPTION_PLACEHOLDER";
/// The script that prepares a runtime environment and then executes the worker script after it.
const SETUP_WORKER_SCRIPT: &str = "setup_worker.py";

/// Why a worker's command line can't be built.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandError {
    /// The raylet was started without a template for this language.
    #[error("no worker command for {0:?}: the raylet needs --{1}_worker_command to start such workers")]
    NoTemplate(Language, &'static str),
    /// The language is one that this node does not start workers for.
    #[error("workers in {0:?} are not supported: only Python workers are")]
    Unsupported(Language),
    /// IO workers need to know where to spill.
    #[error("an IO worker was asked for, but object_spilling_config is empty")]
    NoSpillConfig,
    /// A byte that ends a C string inside an argument or variable.
    #[error("{0} holds a NUL byte and can't be passed to a process")]
    Nul(String),
}

/// Language of a worker (Ray 2.60 `common.proto`, enum Language: PYTHON 0, JAVA 1, CPP 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// Python workers, `default_worker.py`.
    Python,
    /// Java workers.
    Java,
    /// C++ workers.
    Cpp,
}

/// What a worker is started for (Ray 2.60 `common.proto`, enum WorkerType, without DRIVER).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkerKind {
    /// Runs tasks or an actor.
    Worker,
    /// Writes objects to external storage.
    SpillWorker,
    /// Reads objects back.
    RestoreWorker,
}

impl WorkerKind {
    /// True for the kinds that spill or restore: they belong to no job.
    pub fn is_io(self) -> bool {
        self != WorkerKind::Worker
    }
}

/// What all workers of a node are started with.
#[derive(Clone, Debug)]
pub struct WorkerCommands {
    /// The node.
    pub node_id: NodeId,
    /// TCP port of the node's `NodeManagerService`.
    pub node_manager_port: u16,
    /// Process id of the node service. A worker exits when this process is gone.
    pub raylet_pid: u32,
    /// The split template of `--python_worker_command`; empty where none was given.
    pub python: Vec<String>,
    /// `object_spilling_config`: JSON, empty where spilling has no place configured.
    pub object_spilling_config: String,
    /// `preload_python_modules`: imported by a task worker before it takes work.
    pub preload_python_modules: Vec<String>,
    /// `support_fork`: lets user code fork inside a worker.
    pub support_fork: bool,
    /// `--ray-debugger-external`: debugger ports open to other machines.
    pub debugger_external: bool,
}

/// What one worker is started with.
#[derive(Clone, Debug)]
pub struct WorkerStart<'a> {
    /// Language of the worker.
    pub language: Language,
    /// What it is for.
    pub kind: WorkerKind,
    /// Its id, chosen by the node; the worker registers with it.
    pub worker_id: WorkerId,
    /// The job it is started for; nil where it is started ahead of any job.
    pub job_id: JobId,
    /// Hash of the runtime environment as the owner computed it; 0 for none.
    pub runtime_env_hash: i32,
    /// JSON from the runtime-env agent; empty or `{}` for none.
    pub serialized_runtime_env_context: &'a str,
    /// Options for this process alone (`dynamic_options` of the job or actor).
    pub dynamic_options: &'a [String],
    /// Wall-clock time of the start, in milliseconds since 1970.
    pub launch_time_ms: u64,
}

/// A program with arguments, and what its environment has besides the node's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The program, then its arguments.
    pub argv: Vec<String>,
    /// Variables set in the child.
    pub env: Vec<(String, String)>,
    /// Variables of the node that the child must not see.
    pub env_remove: Vec<String>,
}

impl WorkerCommands {
    /// The command line and environment of one worker.
    ///
    /// # Errors
    /// A language without a template, an IO worker without a place to spill to, or a NUL byte in an argument.
    pub fn build(&self, start: &WorkerStart<'_>) -> Result<CommandLine, CommandError> {
        if start.language != Language::Python {
            return Err(CommandError::Unsupported(start.language));
        }
        if self.python.is_empty() {
            return Err(CommandError::NoTemplate(start.language, "python"));
        }
        let mut argv = expand(&self.python, self.node_manager_port, start.dynamic_options);
        self.push_node_arguments(&mut argv, start)?;
        if has_runtime_env(start.serialized_runtime_env_context) {
            argv.push("--language=PYTHON".into());
            argv.push(format!("--serialized-runtime-env-context={}", start.serialized_runtime_env_context));
        } else if argv.get(1).is_some_and(|script| script.contains(SETUP_WORKER_SCRIPT)) {
            // Nothing to set up: the worker script runs directly, which saves one start of the interpreter.
            argv.remove(1);
        }
        if start.kind == WorkerKind::Worker && !self.preload_python_modules.is_empty() {
            argv.push(format!("--worker-preload-modules={}", self.preload_python_modules.join(",")));
        }
        if self.debugger_external {
            argv.push("--ray-debugger-external".into());
        }
        let line = CommandLine { argv, env: self.environment(start), env_remove: inherited_to_remove() };
        line.checked()
    }

    fn push_node_arguments(&self, argv: &mut Vec<String>, start: &WorkerStart<'_>) -> Result<(), CommandError> {
        if start.kind.is_io() {
            if self.object_spilling_config.is_empty() {
                return Err(CommandError::NoSpillConfig);
            }
            let kind = if start.kind == WorkerKind::SpillWorker { "SPILL_WORKER" } else { "RESTORE_WORKER" };
            argv.push(format!("--worker-type={kind}"));
            argv.push(format!("--object-spilling-config={}", STANDARD.encode(&self.object_spilling_config)));
        }
        argv.push(format!("--worker-id={}", start.worker_id));
        argv.push(format!("--worker-launch-time-ms={}", start.launch_time_ms));
        argv.push(format!("--node-id={}", self.node_id));
        argv.push(format!("--runtime-env-hash={}", start.runtime_env_hash));
        Ok(())
    }

    fn environment(&self, start: &WorkerStart<'_>) -> Vec<(String, String)> {
        let mut env = Vec::with_capacity(6);
        if !start.kind.is_io() {
            env.push(("RAY_JOB_ID".into(), start.job_id.to_string()));
        }
        env.push(("RAY_RAYLET_PID".into(), self.raylet_pid.to_string()));
        // Keeps setproctitle from overwriting the environment block, which it would otherwise use for a long title.
        env.push(("SPT_NOENV".into(), "1".into()));
        if self.support_fork {
            env.push(("GRPC_ENABLE_FORK_SUPPORT".into(), "True".into()));
            env.push(("GRPC_POLL_STRATEGY".into(), "poll".into()));
            env.push(("RAY_start_python_gc_manager_thread".into(), "0".into()));
        }
        env
    }
}

impl CommandLine {
    /// Refuses NUL bytes, which would cut an argument short on its way to the process.
    fn checked(self) -> Result<Self, CommandError> {
        if let Some(bad) = self.argv.iter().find(|a| a.contains('\0')) {
            return Err(CommandError::Nul(format!("the argument {bad:?}")));
        }
        if let Some((name, _)) = self.env.iter().find(|(n, v)| n.contains('\0') || v.contains('\0')) {
            return Err(CommandError::Nul(format!("the variable {name:?}")));
        }
        Ok(self)
    }
}

/// True where an environment was prepared for the worker. Ray writes an empty one as an empty text or as `{}`.
pub fn has_runtime_env(serialized_context: &str) -> bool {
    !serialized_context.is_empty() && serialized_context != "{}"
}

/// A template with the port filled in and the dynamic options in their place.
pub fn expand(template: &[String], node_manager_port: u16, dynamic_options: &[String]) -> Vec<String> {
    // Room for what the callers append, so that the list does not grow again.
    let mut argv = Vec::with_capacity(template.len() + dynamic_options.len() + 10);
    for token in template {
        if token == DYNAMIC_OPTION_PLACEHOLDER {
            argv.extend_from_slice(dynamic_options);
        } else {
            argv.push(token.replacen(NODE_MANAGER_PORT_PLACEHOLDER, &node_manager_port.to_string(), 1));
        }
    }
    argv
}

/// Variables that children of the node must not inherit.
///
/// Ray starts the raylet with jemalloc in `LD_PRELOAD` and `RAY_LD_PRELOAD_ON_WORKERS=0`; workers and agents of the
/// stock raylet then run without it. Where the variable is absent or not "0" the preload is the user's wish and stays.
///
/// What a service manager says to the node is not for its children either.
pub fn inherited_to_remove() -> Vec<String> {
    let mut names: Vec<String> = service::VARIABLES.map(str::to_owned).into();
    if std::env::var("RAY_LD_PRELOAD_ON_WORKERS").is_ok_and(|value| value == "0") {
        names.push("LD_PRELOAD".to_owned());
    }
    names
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
