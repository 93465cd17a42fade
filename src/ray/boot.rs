//! Bringing Ray's door up on the control thread, and down again.
//!
//! Order of the way up: settings of the cluster, ports of the agents, the gRPC server, the engine with its sockets, the agents,
//! and last the registration with the GCS, because from then on work comes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use raylet_shard::ids::{JobId, NodeId, WorkerId};
use raylet_shard::sched::{Fixed, SchedEvent};
use raylet_transport::spill::SpillDirectory;
use tokio::sync::watch;

use super::accept::{accept, accept_rpc, listen};
use super::control::{routes, Control, ControlParts, Pulls};
use super::core_rpc::{RpcSettings, OWN_METHODS};
use super::nodes::BULK_PORT_LABEL;
use super::resources::{kind_of, Names};
use super::rpc::auth::Auth;
use super::rpc::chaos::Chaos;
use super::rpc::client::{ClientConfig, ClientContext};
use super::rpc::core_worker::CoreWorkers;
use super::rpc::gcs::{GcsClient, GcsConfig};
use super::rpc::health::Health;
use super::rpc::pubsub::{GcsEvent, GcsSubscriber};
use super::rpc::syncer::Syncer;
use super::rpc::tls::Tls;
use super::transfer::{self, ToTransfer, TransferParts};
use crate::bridge::{Socket, ToCore};
use crate::cli::ray_flags::RayFlags;
use crate::config::ray::RayConfig;
use crate::config::Config;
use crate::engine::{Engine, EngineSettings, SchedSettings};
use crate::node::{sched_config, NodeError};
use crate::ray::agents::{AgentFailure, AgentManager, AgentSettings, START_AT_LATEST};
use crate::ray::proto::node_death_info::Reason;
use crate::ray::proto::syncer::CommandsSyncMessage;
use crate::ray::proto::{self, ChannelType};
use crate::ray::runtime_env::{RuntimeEnvClient, RuntimeEnvSettings};
use crate::socket;
use crate::spill::files::FileSettings;
use crate::spill::settings::prepare;
use crate::workers::command::WorkerCommands;
use crate::workers::nursery::{Nursery, NurserySettings};
use crate::workers::process::{ProcessConfig, ProcessTable};

/// Longest wait for the GCS to take note of the node's end. It may be gone itself by then.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for workers and agents to end.
const CHILDREN_TIMEOUT: Duration = Duration::from_secs(4);

/// How often the node looks whether something changed that others should know.
const HOUSEKEEPING: Duration = Duration::from_millis(100);

/// Ray's door while it is open.
pub struct Door {
    /// The control thread's state.
    pub control: Rc<Control>,
    gcs: GcsClient,
    agents: AgentManager,
    processes: ProcessTable,
    nursery: Nursery,
    health: Health,
    stop_servers: watch::Sender<bool>,
    sockets: [PathBuf; 2],
    drain_timeout: Duration,
    spill_directories: Vec<SpillDirectory>,
}

impl Door {
    /// Opens the door: when this returns, the node is registered and takes work.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn open(flags: RayFlags, config: &Config) -> Result<(Self, Engine), NodeError> {
        let environment = |name: &str| std::env::var(name).ok();
        let mut ray_config = RayConfig::from_environment(environment).map_err(NodeError::RayConfig)?;
        let auth = Auth::from_env().map_err(|e| NodeError::Ray(e.to_string()))?;
        let chaos = Chaos::from_setting(&ray_config.testing_rpc_failure).map_err(|e| NodeError::Ray(e.to_string()))?;
        let tls = match ray_config.use_tls {
            true => Some(Tls::from_env().map_err(|e| NodeError::Ray(e.to_string()))?),
            false => None,
        };
        let client = ClientConfig { auth: auth.clone(), tls: tls.clone(), ..ClientConfig::default() };
        let context = ClientContext::new(client, chaos);
        let gcs = join_cluster(&flags, &ray_config, &context)?;
        let system_config = gcs.internal_config().await.map_err(|e| NodeError::Ray(e.to_string()))?;
        ray_config.apply_cluster(&system_config).map_err(NodeError::RayConfig)?;
        tracing::debug!(changed = ?ray_config.changed(), "Ray's settings that differ from its defaults");
        if ray_config.use_tls != tls.is_some() {
            return Err(NodeError::Ray(
                "the cluster's configuration and RAY_USE_TLS of this node differ: set RAY_USE_TLS alike on all nodes"
                    .to_owned(),
            ));
        }
        let node_id = NodeId(flags.node_id);
        let (agents, failures) = AgentManager::new(agent_settings(&flags, &ray_config, node_id))
            .map_err(|e| NodeError::Ray(e.to_string()))?;
        let listeners = listen(flags.node_ip_address, flags.node_manager_port).await?;
        let port = listeners[0].local_addr().map_err(NodeError::Io)?.port();
        let (process_exits_to, process_exits) = flume::unbounded();
        let kill_timeout = Duration::from_millis(ray_config.kill_worker_timeout_milliseconds.max(0) as u64);
        let processes = ProcessTable::new(ProcessConfig { kill_timeout, ..ProcessConfig::default() }, process_exits_to);

        let sockets = [flags.raylet_socket_name.clone(), flags.store_socket_name.clone()];
        let raylet_socket = socket::listen(&sockets[0]).map_err(NodeError::Io)?;
        let plasma_socket = socket::listen(&sockets[1]).map_err(NodeError::Io)?;
        let mut names = Names::default();
        let resources = node_resources(&flags, &ray_config, &mut names)?;
        let mut settings = engine_settings(&flags, config, &ray_config);
        let prepared = prepare(&ray_config, &node_id.to_string()).map_err(|e| NodeError::Ray(e.to_string()))?;
        let (spill, spill_directories) = prepared.map_or((None, Vec::new()), |(spill, made)| (Some(spill), made));
        settings.spill = spill;
        let engine = Engine::start(&settings).map_err(NodeError::Engine)?;
        resources.iter().for_each(|event| engine.tell_all(event));

        let runtime_env = RuntimeEnvClient::new(
            RuntimeEnvSettings {
                node_ip: flags.node_ip_address,
                authorization: auth.token().map(|token| token.header_value()),
                register_timeout: Duration::from_millis(ray_config.agent_register_timeout_ms as u64),
                retry_interval: Duration::from_millis(ray_config.agent_manager_retry_interval_ms as u64),
            },
            agents.clone(),
        );
        let nursery = Nursery::new(
            NurserySettings { enabled: config.worker_nursery, ..NurserySettings::default() },
            processes.clone(),
        );
        let transfers = listen(flags.node_ip_address, flags.object_manager_port).await?;
        let object_manager_port = transfers[0].local_addr().map_err(NodeError::Io)?.port();
        let transfers: Result<_, _> = transfers.into_iter().map(tokio::net::TcpListener::into_std).collect();
        // What is encrypted in Ray's way stays so: the bulk port has no TLS.
        let bulk_port = config.bulk_port.filter(|_| tls.is_none());
        let bulk_listeners = match bulk_port {
            Some(port) => listen(flags.node_ip_address, port).await.map_err(|error| {
                NodeError::Ray(format!("bulk_port: {error}: choose another port with RAYLET_URING_BULK_PORT, or `off`"))
            })?,
            None => Vec::new(),
        };
        let bulk_port = match bulk_listeners.first() {
            Some(listener) => Some(listener.local_addr().map_err(NodeError::Io)?.port()),
            None => None,
        };
        let bulk_listeners: Result<_, _> = bulk_listeners.into_iter().map(tokio::net::TcpListener::into_std).collect();
        let (transfer, transferred) = transfer::start(TransferParts {
            bulk_listeners: bulk_listeners.map_err(NodeError::Io)?,
            peers: None,
            lanes_per_node: transfer::lanes_per_node(config.bulk_lanes, engine.cores.len()),
            same_host: config.bulk_same_host,
            zero_copy: config.bulk_zero_copy,
            fanout: config.bulk_fanout,
            lane_cores: engine.lane_shards.clone(),
            node_id,
            segments: engine.segments.clone(),
            files: engine.spill_shared.clone(),
            cores: engine.cores.clone(),
            listeners: transfers.map_err(NodeError::Io)?,
            auth: auth.clone(),
            tls: tls.clone(),
            rpc_failure: ray_config.testing_rpc_failure.clone(),
            chunk_bytes: ray_config.object_manager_default_chunk_size,
            in_flight_max_bytes: ray_config.object_manager_max_bytes_in_flight,
            push_timeout: Duration::from_millis(ray_config.object_manager_push_timeout_ms.max(0) as u64),
        })
        .map_err(NodeError::Io)?;
        let control = Control::new(ControlParts {
            pulls: Pulls::new(&ray_config, transfer, engine.capacity_bytes),
            nursery: nursery.clone(),
            startup_concurrency: settings.sched.startup_concurrency,
            commands: worker_commands(&flags, &ray_config, node_id, port),
            flags,
            ray_config,
            system_config,
            node_id,
            port,
            cores: engine.cores.clone(),
            gcs: gcs.clone(),
            processes: processes.clone(),
            runtime_env,
            core_workers: CoreWorkers::new(context),
            names,
            agents: agents.clone(),
            pins: engine.pins(config.pin_workers),
        });
        let health = Health::new();
        health.set(&node_id.to_string(), true);
        let (stop_servers, stopped) = watch::channel(false);
        let router = health.serve_on(routes(&control)).measured(&control.counters.meters);
        let own = OWN_METHODS.iter().map(|path| (*path, true));
        let methods = router.unary_methods().chain(own).collect();
        let max_num_generator_returns = control.ray_config.max_num_generator_returns;
        let rpc = Arc::new(RpcSettings { auth: auth.clone(), node_id, methods, max_num_generator_returns });
        engine.cores.iter().for_each(|core| core.send(ToCore::OpenRpc(rpc.clone())));
        tokio::task::spawn_local(control.clone().hear_transfers(transferred));
        accept(raylet_socket, Socket::Raylet, engine.cores.clone(), engine.nears.clone());
        accept(plasma_socket, Socket::Plasma, engine.cores.clone(), engine.nears.clone());
        for listener in listeners {
            accept_rpc(listener, tls.clone(), engine.cores.clone(), stopped.clone());
        }
        let driver_ready = control.driver_ready();
        agents.start_when(port, async move { driver_ready.notified().await });
        let drain_timeout = Duration::from_millis(config.drain_timeout_ms);
        let door = Self {
            control,
            gcs,
            agents,
            processes,
            nursery,
            health,
            stop_servers,
            sockets,
            drain_timeout,
            spill_directories,
        };
        tokio::task::spawn_local(door.control.clone().run(engine.from_cores.clone(), router));
        door.watch_processes(process_exits);
        door.watch_agents(failures);
        door.register(port, object_manager_port, bulk_port).await?;
        door.subscribe()?;
        door.control.prestart_at_boot();
        door.keep_house();
        door.control.watch_memory().map_err(|e| NodeError::Ray(e.to_string()))?;
        tracing::info!(%node_id, port, "the node is registered with the GCS");
        Ok((door, engine))
    }

    fn watch_processes(&self, exits: flume::Receiver<crate::workers::process::ProcessExit>) {
        let control = self.control.clone();
        tokio::task::spawn_local(async move {
            while let Ok(exit) = exits.recv_async().await {
                // What became of the process depends on the lease that it served.
                control.catch_up().await;
                control.process_ended(&exit);
            }
        });
    }

    fn watch_agents(&self, failures: flume::Receiver<AgentFailure>) {
        let control = self.control.clone();
        tokio::task::spawn_local(async move {
            while let Ok(failure) = failures.recv_async().await {
                tracing::error!(
                    agent = failure.agent.name(),
                    details = failure.details,
                    "an agent failed, and the node with it"
                );
                control.shutdown().ask(Reason::UnexpectedTermination, &failure.reason);
            }
        });
    }

    async fn register(&self, port: u16, object_manager_port: u16, bulk_port: Option<u16>) -> Result<(), NodeError> {
        let flags = self.control.flags();
        let ports = self.agents.ports();
        let environment = |name: &str| std::env::var(name).unwrap_or_default();
        let mut labels: BTreeMap<String, String> = flags.labels.clone();
        labels.insert("ray.io/node-id".to_owned(), self.control.node_id.to_string());
        if let Some(port) = bulk_port {
            labels.insert(BULK_PORT_LABEL.to_owned(), port.to_string());
        }
        let address = flags.node_ip_address.to_string();
        let node = proto::GcsNodeInfo {
            node_id: self.control.node_id.as_bytes().to_vec().into(),
            node_name: if flags.node_name.is_empty() { address.clone() } else { flags.node_name.clone() },
            node_manager_address: address,
            raylet_socket_name: flags.raylet_socket_name.display().to_string(),
            object_store_socket_name: flags.store_socket_name.display().to_string(),
            node_manager_port: i32::from(port),
            object_manager_port: i32::from(object_manager_port),
            node_manager_hostname: hostname(),
            metrics_export_port: ports.metrics_export,
            runtime_env_agent_port: ports.runtime_env,
            metrics_agent_port: ports.metrics_agent,
            dashboard_agent_listen_port: ports.dashboard_listen,
            resources_total: flags.resources.clone(),
            instance_id: environment("RAY_CLOUD_INSTANCE_ID"),
            node_type_name: environment("RAY_NODE_TYPE_NAME"),
            instance_type_name: environment("RAY_CLOUD_INSTANCE_TYPE_NAME"),
            start_time_ms: super::control::unix_ms(),
            is_head_node: flags.head,
            labels,
            temp_dir: flags.temp_dir.display().to_string(),
            session_dir: flags.session_dir.display().to_string(),
            ..Default::default()
        };
        self.gcs.register_node(node).await.map_err(|e| NodeError::Ray(e.to_string()))
    }

    fn subscribe(&self) -> Result<(), NodeError> {
        let subscriber = GcsSubscriber::start(self.gcs.clone());
        let control = self.control.clone();
        let refused = |e: super::rpc::pubsub::TooManySubscriptions| NodeError::Ray(e.to_string());
        let jobs = control.clone();
        let all_jobs = self.gcs.clone();
        subscriber
            .subscribe(ChannelType::GcsJobChannel, None, move |event| match event {
                GcsEvent::Subscribed => catch_up_on_jobs(&jobs, &all_jobs),
                GcsEvent::Published(message) => jobs.job_published(&message),
            })
            .map_err(refused)?;
        let workers = control.clone();
        subscriber
            .subscribe(ChannelType::GcsWorkerDeltaChannel, None, move |event| {
                if let GcsEvent::Published(message) = event {
                    workers.worker_published(&message);
                }
            })
            .map_err(refused)?;
        let nodes = control.clone();
        subscriber
            .subscribe(ChannelType::GcsNodeInfoChannel, None, move |event| match event {
                GcsEvent::Subscribed => nodes.catch_up_on_nodes(),
                GcsEvent::Published(message) => nodes.node_published(&message),
            })
            .map_err(refused)?;
        control.set_subscriber(subscriber);
        Ok(())
    }

    /// Tells others what changed, and does what is due now and then.
    fn keep_house(&self) {
        let control = self.control.clone();
        let commands = control.clone();
        let syncer = Syncer::start(self.gcs.channel().clone(), control.node_id, move |node, update| {
            commands.heard_from_node(node, update);
        });
        tokio::task::spawn_local(control.clone().keep_placing());
        tokio::task::spawn_local(control.clone().ask_for_own_life());
        let lost = self.gcs.clone();
        let asked = control.clone();
        tokio::task::spawn_local(async move {
            lost.lost().await;
            asked.shutdown().ask(Reason::UnexpectedTermination, "the GCS is unreachable");
        });
        tokio::task::spawn_local(async move {
            control.mark_resources_changed();
            loop {
                if control.take_resources_changed() {
                    syncer.send_resource_view(&control.resource_view().await);
                }
                if control.take_global_garbage() {
                    syncer.send_commands(&CommandsSyncMessage { should_global_gc: true });
                }
                control.collect_garbage();
                control.expire();
                tokio::time::sleep(HOUSEKEEPING).await;
            }
        });
    }

    /// Waits until the node is asked to end, by a signal, the GCS or a failure.
    pub async fn until_asked(&self) -> proto::NodeDeathInfo {
        use tokio::signal::unix::{signal, SignalKind};
        let (mut term, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(term), Ok(interrupt)) => (term, interrupt),
            _ => return self.control.shutdown().asked().await,
        };
        let signal = tokio::select! {
            cause = self.control.shutdown().asked() => return cause,
            _ = term.recv() => {
                // Ray's agents look for these words in the node's log to tell a wanted end from a crash.
                tracing::info!("Raylet received SIGTERM");
                tokio::select! {
                    cause = self.control.shutdown().asked() => return cause,
                    // Whoever asks twice is in a hurry.
                    _ = term.recv() => {}
                    _ = interrupt.recv() => {}
                    () = self.control.drain_within(self.drain_timeout) => {}
                }
                "received SIGTERM"
            }
            _ = interrupt.recv() => "received SIGINT",
        };
        self.control.shutdown().ask(Reason::ExpectedTermination, signal);
        self.control.shutdown().asked().await
    }

    /// Closes the door: the GCS is told, workers and agents end, sockets go.
    pub async fn close(self, cause: proto::NodeDeathInfo) {
        self.health.stop();
        for socket in &self.sockets {
            if let Err(error) = std::fs::remove_file(socket) {
                tracing::debug!(%error, socket = %socket.display(), "a socket could not be removed");
            }
        }
        let told = self.gcs.unregister_node(self.control.node_id, cause);
        let ended = async {
            let (workers, agents, ()) =
                tokio::join!(self.processes.shutdown(), self.agents.shutdown(), self.nursery.shutdown());
            (workers, agents)
        };
        let (told, ended) =
            tokio::join!(tokio::time::timeout(UNREGISTER_TIMEOUT, told), tokio::time::timeout(CHILDREN_TIMEOUT, ended));
        if let Ok(Err(error)) = told {
            tracing::warn!(%error, "the GCS was not told that this node ends");
        }
        match ended {
            Ok((0, 0)) => {}
            Ok((workers, agents)) => tracing::warn!(workers, agents, "processes of this node did not end"),
            Err(_) => tracing::warn!("processes of this node did not end in time"),
        }
        self.control.tell_transfer(ToTransfer::End);
        // Servers that already ended hear nothing and need not.
        let _ = self.stop_servers.send(true);
        crate::node::remove_spilled(self.spill_directories);
    }
}

fn join_cluster(flags: &RayFlags, ray_config: &RayConfig, context: &Rc<ClientContext>) -> Result<GcsClient, NodeError> {
    let config = GcsConfig {
        reconnect_timeout_s: u64::from(ray_config.gcs_rpc_server_reconnect_timeout_s),
        ..GcsConfig::default()
    };
    let gcs = GcsClient::new(context.clone(), &flags.gcs_address, config).map_err(|e| NodeError::Ray(e.to_string()))?;
    context.set_cluster_id(Some(&flags.cluster_id));
    Ok(gcs)
}

fn agent_settings(flags: &RayFlags, ray_config: &RayConfig, node_id: NodeId) -> AgentSettings {
    AgentSettings {
        node_id,
        node_ip: flags.node_ip_address,
        session_dir: flags.session_dir.clone(),
        raylet_pid: std::process::id(),
        dashboard_command: flags.dashboard_agent_command.clone(),
        runtime_env_command: flags.runtime_env_agent_command.clone(),
        pipe_health_check: ray_config.enable_pipe_based_agent_to_parent_health_check,
        register_timeout: Duration::from_millis(ray_config.agent_register_timeout_ms as u64),
        start_at_latest: START_AT_LATEST,
        kill_timeout: Duration::from_secs(1),
    }
}

fn node_resources(flags: &RayFlags, ray_config: &RayConfig, names: &mut Names) -> Result<Vec<SchedEvent>, NodeError> {
    let units = ray_config.unit_instance_resources();
    let mut events = Vec::with_capacity(flags.resources.len());
    for (name, amount) in &flags.resources {
        let id = names.intern(name).map_err(|e| NodeError::Ray(e.to_string()))?;
        let total = Fixed::from_f64(*amount).ok_or_else(|| {
            NodeError::Ray(format!("--static_resource_list: {name}: expected 0 or more, got {amount}"))
        })?;
        events.push(SchedEvent::AddResource { id, total, kind: kind_of(name, &units) });
    }
    Ok(events)
}

fn engine_settings(flags: &RayFlags, config: &Config, ray_config: &RayConfig) -> EngineSettings {
    let cpus = flags.resources.get("CPU").map_or(1, |cpus| cpus.ceil() as u32);
    EngineSettings {
        cores: config.cores.clone(),
        object_store_bytes: config.object_store_memory_bytes.unwrap_or(flags.object_store_memory_bytes),
        pages: config.hugepages,
        warm_reserve_bytes: config.warm_reserve_bytes,
        full_grace_ns: u64::try_from(ray_config.oom_grace_period_s).unwrap_or(2) * 1_000_000_000,
        spill: None,
        fallback: (!flags.fallback_directory.as_os_str().is_empty()).then(|| FileSettings {
            directory: flags.fallback_directory.clone(),
            capacity_share: ray_config.local_fs_capacity_threshold.clamp(0.0, 1.0),
        }),
        scheds: sched_config,
        sched: SchedSettings {
            cpus,
            workers_soft_limit: u32::try_from(ray_config.num_workers_soft_limit).unwrap_or(cpus),
            idle_timeout_ns: u64::try_from(ray_config.idle_worker_killing_time_threshold_ms).unwrap_or(0) * 1_000_000,
            startup_concurrency: match u32::try_from(ray_config.worker_maximum_startup_concurrency) {
                Ok(limit) if limit > 0 => limit,
                _ => flags.maximum_startup_concurrency,
            },
            class_cap: ray_config.worker_cap_enabled,
        },
    }
}

fn worker_commands(flags: &RayFlags, ray_config: &RayConfig, node_id: NodeId, port: u16) -> WorkerCommands {
    WorkerCommands {
        node_id,
        node_manager_port: port,
        raylet_pid: std::process::id(),
        python: flags.python_worker_command.clone(),
        object_spilling_config: ray_config.object_spilling_config.clone(),
        preload_python_modules: ray_config.preload_python_modules.clone(),
        support_fork: std::env::var("RAY_support_fork").is_ok_and(|on| on == "1" || on == "true"),
        debugger_external: flags.ray_debugger_external,
    }
}

/// The machine's name.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn catch_up_on_jobs(control: &Rc<Control>, gcs: &GcsClient) {
    let (control, gcs) = (control.clone(), gcs.clone());
    tokio::task::spawn_local(async move {
        match gcs.all_jobs().await {
            Ok(jobs) => jobs.into_iter().for_each(|job| control.job_changed(job)),
            Err(error) => tracing::warn!(%error, "the jobs of the cluster are not known"),
        }
    });
}

impl Control {
    /// News of a job.
    fn job_published(&self, message: &proto::PubMessage) {
        if let Some(proto::pub_message::InnerMessage::JobMessage(job)) = &message.inner_message {
            self.job_changed(job.clone());
        } else if JobId::from_slice(&message.key_id).is_none() {
            tracing::debug!("a message on the job channel is about no job");
        }
    }

    /// A worker somewhere in the cluster died.
    fn worker_published(self: &Rc<Self>, message: &proto::PubMessage) {
        if let Some(proto::pub_message::InnerMessage::WorkerDeltaMessage(worker)) = &message.inner_message {
            if let Some(worker) = WorkerId::from_slice(&worker.worker_id) {
                self.owner_gone(worker);
            }
        }
    }
}
