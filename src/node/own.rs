//! A node of its own: the engine and the native door, without Ray.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::NodeId;
use raylet_shard::sched::{Fixed, SchedEvent};
use tokio::sync::Notify;

use super::{advice, service, status, NodeError};
use crate::bridge::ToControl;
use crate::config::Config;
use crate::engine::{Engine, EngineSettings, SchedSettings};
use crate::native::control::{NativeControl, NativeParts};
use crate::native::NativeSettings;
use crate::observe::admin::{AdminServer, Routes};
use crate::observe::log::LogHandle;
use crate::observe::runtime_dir;
use crate::observe::status::{Door, NodeStatus};
use crate::peers::{PeerSettings, Peers};
use crate::ray::resources::{kind_of, Names, CPU};
use crate::spill::settings::prepare_own;

/// Resources that consist of instances, as in Ray's default `predefined_unit_instance_resources`.
const UNIT_INSTANCES: [&str; 1] = ["GPU"];

/// Runs the node until SIGTERM, SIGINT or the failure of a core. Returns the exit code.
///
/// # Errors
/// See [`NodeError`]; each names what to change.
pub async fn run(config: Config, log: LogHandle) -> Result<i32, NodeError> {
    service::reopen_log_on_hangup(log.clone())?;
    // Before any memory is taken: what is wrong with a setting is said at once.
    let peer_settings = PeerSettings::of(&config).map_err(|e| NodeError::Setting(e.to_string()))?;
    let has_peers = peer_settings.as_ref().is_some_and(|settings| !settings.peers.is_empty());
    let node = NodeId(rand::random());
    let prepared = prepare_own(&config.spill_dirs, &node.to_string()).map_err(|e| NodeError::Setting(e.to_string()))?;
    let (spill, spill_directories) = prepared.map_or((None, Vec::new()), |(spill, made)| (Some(spill), made));
    let settings = EngineSettings { spill, ..settings(&config) };
    let engine = Engine::start(&settings).map_err(NodeError::Engine)?;
    let names = Rc::new(RefCell::new(Names::default()));
    add_resources(&config, &engine, &mut names.borrow_mut())?;
    let admin = AdminServer::bind(&config.runtime_dir)?;
    let native = NativeControl::open(NativeParts {
        settings: NativeSettings { has_peers, ..native_settings(&config) },
        node,
        cores: engine.cores.clone(),
        nears: engine.nears.clone(),
        names: names.clone(),
        capacity_bytes: engine.capacity_bytes,
        may_drain: true,
        pins: engine.pins(config.pin_workers),
    })
    .map_err(NodeError::Io)?;
    let open_peers = |settings| Peers::open(settings, &engine, native.clone(), names.clone());
    let peers = peer_settings.map(open_peers).transpose().map_err(|e| NodeError::Setting(e.to_string()))?;
    let facts = status::Facts::of(&engine, vec![Door::Native]);
    let own = Rc::new(status::Own { cores: engine.cores.clone(), names, native: native.clone(), peers: peers.clone() });
    let banner = status::banner(&facts, admin.path(), &own);
    let failed = Rc::new(Failure::default());
    tokio::task::spawn_local(listen_to_cores(engine.from_cores.clone(), own.clone(), failed.clone()));
    let routes = Routes { status: provider(own, facts), config: config.describe(), log, shutdown: None };
    let serving = tokio::task::spawn_local(admin.serve(routes));
    advice::give(&config, &engine);
    let up = || println!("{banner}");
    let drain_timeout = Duration::from_millis(config.drain_timeout_ms);
    let end = async {
        let until_drained = async {
            super::until_signal().await?;
            tokio::select! {
                // Whoever asks twice is in a hurry.
                again = super::until_signal() => again,
                () = native.drain_within(drain_timeout) => Ok(()),
            }
        };
        tokio::select! {
            asked = until_drained => asked,
            () = failed.told.notified() => Ok(()),
        }
    };
    service::ready_until(end, "a node of its own", engine.cores.clone(), up).await?;
    tracing::info!("shutting down");
    service::stopping();
    serving.abort();
    // Its socket file goes when the task is dropped, so the end of the task is awaited.
    let _ = serving.await;
    if tokio::time::timeout(CHILDREN_TIMEOUT, native.close()).await.is_err() {
        tracing::warn!("workers of this node did not end in time");
    }
    if let Some(peers) = peers {
        peers.close();
    }
    engine.stop();
    super::remove_spilled(spill_directories);
    Ok(i32::from(failed.is_set.get()))
}

/// Longest wait for workers to end.
const CHILDREN_TIMEOUT: Duration = Duration::from_secs(4);

/// Where the native door is opened, and how.
pub fn native_settings(config: &Config) -> NativeSettings {
    let in_runtime_dir = || runtime_dir::native_socket_path(&config.runtime_dir, std::process::id());
    NativeSettings {
        socket: config.socket.clone().unwrap_or_else(in_runtime_dir),
        spin: (!config.busy_poll).then(|| Duration::from_micros(config.spin_us)),
        worker_command: config.worker_command.clone(),
        has_peers: false,
    }
}

#[derive(Default)]
struct Failure {
    is_set: std::cell::Cell<bool>,
    told: Notify,
}

/// Takes what the cores tell, until they end.
async fn listen_to_cores(messages: flume::Receiver<ToControl>, own: Rc<status::Own>, failed: Rc<Failure>) {
    while let Ok(message) = messages.recv_async().await {
        handle(message, &own, &failed);
    }
}

fn handle(message: ToControl, own: &status::Own, failed: &Failure) {
    let native = &own.native;
    match message {
        message @ (ToControl::Peers(_) | ToControl::Found { .. }) => {
            if let Some(peers) = &own.peers {
                peers.take(message);
            }
        }
        ToControl::Native(ask) => native.ask(ask),
        ToControl::Sched(effect) if native.is_for(&effect) => native.sched_effect(effect),
        ToControl::Batch(messages) => messages.into_iter().for_each(|message| handle(message, own, failed)),
        ToControl::Failed { shard, error } => {
            tracing::error!(shard, error, "a core failed, and the node with it");
            failed.is_set.set(true);
            failed.told.notify_one();
        }
        // What only Ray's door acts upon.
        _ => {}
    }
}

type Provider = Box<dyn Fn() -> Pin<Box<dyn Future<Output = NodeStatus>>>>;

fn provider(own: Rc<status::Own>, facts: status::Facts) -> Provider {
    Box::new(move || {
        let (own, facts) = (own.clone(), facts.clone());
        Box::pin(async move { status::of_cores(&own, &facts).await })
    })
}

fn settings(config: &Config) -> EngineSettings {
    let given = config.object_store_memory_bytes;
    let object_store_bytes = given.unwrap_or_else(|| raylet_tuning::MemoryHeadroom::read().default_store_bytes());
    // As many workers as could serve at once; a node without CPUs has one all the same.
    let cpus = resources(config).get(CPU).map_or(1, |cpus| cpus.ceil().clamp(1.0, f64::from(u16::MAX)) as u32);
    EngineSettings {
        cores: config.cores.clone(),
        object_store_bytes,
        pages: config.hugepages,
        warm_reserve_bytes: config.warm_reserve_bytes,
        full_grace_ns: 2_000_000_000,
        spill: None,
        fallback: None,
        scheds: super::sched_config,
        sched: SchedSettings {
            cpus,
            workers_soft_limit: cpus,
            idle_timeout_ns: 1_000_000_000,
            startup_concurrency: cpus,
            class_cap: true,
        },
    }
}

/// What leases share: as set, with the machine's CPUs where nothing is said of them.
fn resources(config: &Config) -> BTreeMap<String, f64> {
    let mut resources = config.resources.clone();
    let cpus = || std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64);
    resources.entry(CPU.to_owned()).or_insert_with(cpus);
    resources
}

fn add_resources(config: &Config, engine: &Engine, names: &mut Names) -> Result<(), NodeError> {
    let units = UNIT_INSTANCES.map(str::to_owned);
    for (name, amount) in resources(config) {
        let bad =
            || NodeError::Setting(format!("resources (--resources): {name}={amount} is more than a node can have"));
        let total = Fixed::from_f64(amount).ok_or_else(bad)?;
        let id = names.intern(&name).map_err(|e| NodeError::Setting(e.to_string()))?;
        engine.tell_all(&SchedEvent::AddResource { id, total, kind: kind_of(&name, &units) });
    }
    Ok(())
}
