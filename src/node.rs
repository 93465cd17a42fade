//! Boot and end of a node, top to bottom.

use std::io;

use raylet_shard::ids::ShardId;
use raylet_shard::sched::SchedConfig;
use tokio::task::LocalSet;

use crate::cli::ray_flags::RayFlags;
use crate::config::ray::RayConfigError;
use crate::config::Config;
use crate::engine::{Engine, EngineError, EngineSettings, SchedSettings};
use crate::observe::admin::{AdminError, AdminServer, Routes};
use crate::observe::log::LogHandle;
use crate::observe::status::{Door as DoorName, NodeStatus};
use crate::ray::boot::Door;
use crate::ray::proto::node_death_info::Reason;

mod advice;
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
    /// The system refused something.
    #[error(transparent)]
    Io(io::Error),
}

/// Runs a node as the raylet of a Ray cluster, until it is asked to end. Returns the exit code.
///
/// # Errors
/// See [`NodeError`]; each names what to change.
pub fn run_ray(flags: RayFlags, config: Config, log: LogHandle) -> Result<i32, NodeError> {
    prepare_limits();
    on_control_thread(async move {
        service::reopen_log_on_hangup(log.clone())?;
        let (door, engine) = Door::open(flags, &config).await?;
        let facts = status::Facts::of(&engine, vec![DoorName::Ray]);
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
        door.close(cause).await;
        engine.stop();
        Ok(i32::from(failed))
    })
}

/// Runs a node of its own, until SIGTERM or SIGINT. Returns the exit code.
///
/// # Errors
/// See [`NodeError`]; each names what to change.
pub fn run_native(config: Config, log: LogHandle) -> Result<i32, NodeError> {
    prepare_limits();
    on_control_thread(async move {
        service::reopen_log_on_hangup(log.clone())?;
        let engine = Engine::start(&native_settings(&config)).map_err(NodeError::Engine)?;
        let admin = AdminServer::bind(&config.runtime_dir)?;
        let facts = status::Facts::of(&engine, vec![DoorName::Native]);
        let banner = status::banner(&facts, admin.path());
        let cores = engine.cores.clone();
        let provider = move || -> std::pin::Pin<Box<dyn std::future::Future<Output = NodeStatus>>> {
            let (cores, facts) = (cores.clone(), facts.clone());
            Box::pin(async move { status::of_cores(&cores, &facts).await })
        };
        let routes = Routes { status: Box::new(provider), config: config.describe(), log, shutdown: None };
        let serving = tokio::task::spawn_local(admin.serve(routes));
        advice::give(&config, &engine);
        let up = || println!("{banner}");
        service::ready_until(until_signal(), "a node of its own", engine.cores.clone(), up).await?;
        tracing::info!("shutting down");
        service::stopping();
        serving.abort();
        // Its socket file goes when the task is dropped, so the end of the task is awaited.
        let _ = serving.await;
        engine.stop();
        Ok(0)
    })
}

fn on_control_thread<F>(node: F) -> Result<i32, NodeError>
where
    F: std::future::Future<Output = Result<i32, NodeError>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(NodeError::Io)?;
    runtime.block_on(LocalSet::new().run_until(node))
}

/// Limits that a node wants higher. Where they can't be raised, start-up says what is missing.
fn prepare_limits() {
    if let Err(error) = raylet_tuning::limits::raise_memlock() {
        tracing::debug!(%error, "RLIMIT_MEMLOCK is as it was");
    }
    if let Err(error) = raylet_tuning::limits::raise_open_files() {
        tracing::debug!(%error, "RLIMIT_NOFILE is as it was");
    }
}

fn native_settings(config: &Config) -> EngineSettings {
    let given = config.object_store_memory_bytes;
    let object_store_bytes = given.unwrap_or_else(|| raylet_tuning::MemoryHeadroom::read().default_store_bytes());
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    EngineSettings {
        cores: config.cores.clone(),
        object_store_bytes,
        pages: config.hugepages,
        warm_reserve_bytes: config.warm_reserve_bytes,
        full_grace_ns: 2_000_000_000,
        scheds: sched_config,
        sched: SchedSettings {
            cpus,
            workers_soft_limit: cpus,
            idle_timeout_ns: 1_000_000_000,
            startup_concurrency: cpus,
            class_cap: true,
        },
    }
}

/// The limits of one shard's scheduler, from those of the node.
pub fn sched_config(shard: ShardId, shards: ShardId, settings: &SchedSettings) -> SchedConfig {
    SchedConfig {
        workers_soft_limit: settings.workers_soft_limit.div_ceil(u32::from(shards)),
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
