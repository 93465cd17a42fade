//! Boot and end of a node, top to bottom.

use std::io;
use std::rc::Rc;

use raylet_shard::ids::ShardId;
use raylet_shard::sched::SchedConfig;
use raylet_transport::spill::SpillDirectory;
use raylet_tuning::limits::{self, MEMLOCK_WANTED_BYTES};
use tokio::task::LocalSet;

use crate::cli::ray_flags::RayFlags;
use crate::config::ray::RayConfigError;
use crate::config::Config;
use crate::engine::{Engine, EngineError, SchedSettings};
use crate::native::control::{NativeControl, NativeParts};
use crate::observe::admin::{AdminError, AdminServer, Routes};
use crate::observe::log::LogHandle;
use crate::observe::status::{Door as DoorName, NodeStatus};
use crate::ray::boot::Door;
use crate::ray::control::Control;
use crate::ray::proto::node_death_info::Reason;

mod advice;
mod own;
mod reports;
pub mod service;
mod status;

/// Why a node can't start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Ray's settings are wrong.
    #[error(transparent)]
    RayConfig(RayConfigError),
    /// Memory or cores can't be had.
    #[error(transparent)]
    Engine(EngineError),
    /// The admin socket can't be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Something of Ray's door failed: the GCS, a port, an agent.
    #[error("{0}")]
    Ray(String),
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// Too little memory may be locked.
    #[error("{allowed} bytes of memory may be locked (RLIMIT_MEMLOCK), a node's rings ask for {}: `ulimit -l {}` in a shell, \
             LimitMEMLOCK=infinity in a systemd unit, --ulimit memlock=-1 for a container, or `raylet-uring tune --apply`",
            MEMLOCK_WANTED_BYTES, MEMLOCK_WANTED_BYTES >> 10)]
    Memlock {
        /// The limit, in bytes.
        allowed: u64,
    },
    /// The system refused something.
    #[error(transparent)]
    Io(io::Error),
}

/// Runs a node as the raylet of a Ray cluster, until it is asked to end. Returns the exit code.
///
/// # Errors
/// See [`NodeError`]; each names what to change.
pub fn run_ray(flags: RayFlags, config: Config, log: LogHandle) -> Result<i32, NodeError> {
    prepare_limits()?;
    on_control_thread(async move {
        service::reopen_log_on_hangup(log.clone())?;
        if !config.peers.is_empty() || config.peer_listen.is_some() {
            tracing::warn!("peers and peer_listen are for nodes of their own: under Ray the GCS knows the other nodes");
        }
        let (door, engine) = Door::open(flags, &config).await?;
        let native = open_native(&config, &door.control, &engine)?;
        let mut doors = vec![DoorName::Ray];
        doors.extend(native.as_ref().map(|_| DoorName::Native));
        let facts = status::Facts::of(&engine, doors);
        reports::start(&door.control, &facts);
        match AdminServer::bind(&config.runtime_dir) {
            Ok(admin) => {
                let control = door.control.clone();
                let status = move || -> std::pin::Pin<Box<dyn std::future::Future<Output = NodeStatus>>> {
                    let (control, facts) = (control.clone(), facts.clone());
                    Box::pin(async move { status::of_ray(&control, &facts).await })
                };
                let routes = Routes { status: Box::new(status), config: config.describe(), log, shutdown: None };
                tokio::task::spawn_local(admin.serve(routes));
            }
            // Ray works without it; only `raylet-uring status` doesn't.
            Err(error) => tracing::warn!(%error, "no admin socket"),
        }
        advice::give(&config, &engine);
        let name = "a node of a Ray cluster";
        let cause = service::ready_until(door.until_asked(), name, engine.cores.clone(), || {}).await;
        service::stopping();
        let failed = cause.reason == Reason::UnexpectedTermination as i32;
        if let Some(native) = native {
            native.close().await;
        }
        door.close(cause).await;
        engine.stop();
        Ok(i32::from(failed))
    })
}

/// Opens the native door beside Ray's, where its socket is set.
fn open_native(
    config: &Config,
    control: &Rc<Control>,
    engine: &Engine,
) -> Result<Option<Rc<NativeControl>>, NodeError> {
    if config.socket.is_none() {
        return Ok(None);
    }
    let native = NativeControl::open(NativeParts {
        settings: own::native_settings(config),
        node: control.node_id,
        cores: engine.cores.clone(),
        nears: engine.nears.clone(),
        names: control.names(),
        capacity_bytes: engine.capacity_bytes,
        may_drain: false,
        pins: control.pins_of_other_door(),
    })
    .map_err(NodeError::Io)?;
    control.set_native(native.clone());
    Ok(Some(native))
}

/// Runs a node of its own, until SIGTERM or SIGINT. Returns the exit code.
///
/// # Errors
/// See [`NodeError`]; each names what to change.
pub fn run_native(config: Config, log: LogHandle) -> Result<i32, NodeError> {
    prepare_limits()?;
    on_control_thread(own::run(config, log))
}

fn on_control_thread<F>(node: F) -> Result<i32, NodeError>
where
    F: std::future::Future<Output = Result<i32, NodeError>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(NodeError::Io)?;
    runtime.block_on(LocalSet::new().run_until(node))
}

/// Removes what a node has spilled, at its end.
pub fn remove_spilled(directories: Vec<SpillDirectory>) {
    for directory in directories {
        if let Err(error) = directory.remove() {
            tracing::warn!(%error, "spilled objects are left on disk; the next node removes them");
        }
    }
}

/// Raises the limits that a node wants higher; it says at its start what more it could use.
fn prepare_limits() -> Result<(), NodeError> {
    if let Err(error) = limits::raise_open_files() {
        tracing::debug!(%error, "RLIMIT_NOFILE is as it was");
    }
    match limits::raise_memlock() {
        Ok(Some(allowed)) if allowed < MEMLOCK_WANTED_BYTES => Err(NodeError::Memlock { allowed }),
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::debug!(%error, "RLIMIT_MEMLOCK is as it was");
            Ok(())
        }
    }
}

/// The limits of one shard's scheduler, from those of the node.
pub fn sched_config(shard: ShardId, shards: ShardId, settings: &SchedSettings) -> SchedConfig {
    SchedConfig {
        workers_soft_limit: settings.workers_soft_limit,
        idle_timeout_ns: settings.idle_timeout_ns,
        // The control thread sees to it that no more start on all shards together.
        startup_concurrency: settings.startup_concurrency,
        class_cap: settings.class_cap,
        ..SchedConfig::new(shard, shards, settings.cpus)
    }
}

async fn until_signal() -> Result<(), NodeError> {
    use tokio::signal::unix::{signal, SignalKind};
    let mut term = signal(SignalKind::terminate()).map_err(NodeError::Io)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(NodeError::Io)?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
