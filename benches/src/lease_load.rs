//! Leases as an owner takes them: `RequestWorkerLease`, then `ReturnWorkerLease`, over and over, a fixed number of them
//! in flight, all on one thread. No task is ever run on the workers.
//!
//! A run has three parts. The *warm-up* is not measured. In the *window* a pair counts for the rate when it ends, and
//! the raylet's CPU is taken at both ends. Then comes the *drain*: no new requests, those outstanding are granted and
//! given back, or cancelled once the time for it is over. Latencies are those of all pairs that overlap the window, so
//! that a request that starves through it counts with its whole length, not as one that never was.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use prost::bytes::Bytes;
use raylet_uring::ray::proto::{self, request_worker_lease_reply::SchedulingFailureType};
use raylet_uring::ray::rpc::auth::Auth;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use crate::cpu_clock::CpuClock;
use crate::latency::{Latencies, Percentiles};
use crate::{LoadError, NodeManager};

/// What two shapes differ by: Ray counts resources in 1/10,000 of a unit.
const SHAPE_STEP: f64 = 0.0001;

/// The most shapes: with one CPU as the largest, every shape is still more than half of it.
pub const MAX_SHAPES: usize = 5_000;

/// How long a cancelled request may take to be answered.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// A run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The raylet's `host:port`.
    pub address: String,
    /// The owner: a live driver of the cluster.
    pub owner: proto::Address,
    /// The owner's job.
    pub job_id: Bytes,
    /// Requests in flight.
    pub in_flight: usize,
    /// Connections that they are spread over. An owner has one.
    pub connections: usize,
    /// Distinct resource shapes; request `i` always asks for shape `i` modulo this.
    pub shapes: usize,
    /// CPUs of the largest shape.
    pub cpus: f64,
    /// Time before the window.
    pub warm_up: Duration,
    /// The window.
    pub window: Duration,
    /// The longest drain before requests are cancelled.
    pub drain: Duration,
    /// Counter of the first lease's id; must be above those that the owner itself uses.
    pub first_lease: u32,
    /// The raylet, whose CPU is to be measured.
    pub raylet_pid: Option<i32>,
}

/// What a run saw.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Requests in flight.
    pub in_flight: usize,
    /// Distinct shapes.
    pub shapes: usize,
    /// Connections.
    pub connections: usize,
    /// Length of the window, in seconds.
    pub window_s: f64,
    /// Pairs that ended in the window.
    pub pairs: u64,
    /// Pairs per second of the window.
    pub pairs_per_s: f64,
    /// From the request to the answer to the return.
    pub pair: Percentiles,
    /// From the request to the grant.
    pub grant: Percentiles,
    /// The raylet's CPU per pair, in microseconds.
    pub raylet_cpu_us_per_pair: Option<f64>,
    /// This process's CPU per pair, in microseconds.
    pub client_cpu_us_per_pair: f64,
    /// Requests that no pair overlapped the window for: shapes or slots that were never served in it.
    pub unserved: usize,
    /// Requests that had to be cancelled after the drain.
    pub cancelled: u64,
    /// Length of the drain, in seconds.
    pub drain_s: f64,
}

impl Settings {
    fn check(&self) -> Result<(), LoadError> {
        let wrong = |setting, expected, got: String| Err(LoadError::Setting { setting, expected, got });
        if self.in_flight == 0 || self.connections == 0 {
            return wrong("--in-flight and --connections", "at least 1", "0".into());
        }
        if self.shapes == 0 || self.shapes > MAX_SHAPES {
            return wrong("--shapes", "1 to 5000", self.shapes.to_string());
        }
        // The smallest shape must still be one step.
        let least = SHAPE_STEP * self.shapes as f64;
        if !self.cpus.is_finite() || self.cpus < least {
            return wrong("--cpus", "at least 0.0001 per shape", self.cpus.to_string());
        }
        Ok(())
    }

    /// What request `slot` asks for.
    fn resources(&self, slot: usize) -> BTreeMap<String, f64> {
        let cpus = self.cpus - SHAPE_STEP * (slot % self.shapes) as f64;
        // Amounts are multiples of the step, which binary fractions only come near.
        let cpus = (cpus / SHAPE_STEP).round() * SHAPE_STEP;
        BTreeMap::from([("CPU".to_owned(), cpus)])
    }

    fn template(&self, slot: usize) -> proto::LeaseSpec {
        use proto::function_descriptor::FunctionDescriptor as Descriptor;
        use proto::scheduling_strategy::SchedulingStrategy as Strategy;
        let function = proto::PythonFunctionDescriptor {
            module_name: "raylet_bench".to_owned(),
            function_name: "nothing".to_owned(),
            function_hash: "0".to_owned(),
            ..Default::default()
        };
        proto::LeaseSpec {
            job_id: self.job_id.clone(),
            caller_address: Some(self.owner.clone()),
            r#type: proto::TaskType::NormalTask as i32,
            language: proto::Language::Python as i32,
            depth: 1,
            required_resources: self.resources(slot),
            required_placement_resources: self.resources(slot),
            scheduling_strategy: Some(proto::SchedulingStrategy {
                scheduling_strategy: Some(Strategy::DefaultSchedulingStrategy(proto::DefaultSchedulingStrategy {})),
            }),
            runtime_env_info: Some(proto::RuntimeEnvInfo {
                serialized_runtime_env: "{}".to_owned(),
                ..Default::default()
            }),
            function_descriptor: Some(proto::FunctionDescriptor {
                function_descriptor: Some(Descriptor::PythonFunctionDescriptor(function)),
            }),
            ..Default::default()
        }
    }
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Window,
    Drain,
    Cancel,
}

/// What all requests share.
struct Run {
    worker_id: Bytes,
    next_lease: Cell<u32>,
    phase: watch::Receiver<Phase>,
    pairs: Cell<u64>,
    cancelled: Cell<u64>,
    grants: RefCell<Latencies>,
    pair_latencies: RefCell<Latencies>,
}

impl Run {
    /// Owner's worker id, then a little-endian counter (Ray 2.60 `LeaseID`).
    fn lease_id(&self) -> Bytes {
        let counter = self.next_lease.get();
        self.next_lease.set(counter.wrapping_add(1));
        [&self.worker_id[..], &counter.to_le_bytes()].concat().into()
    }
}

/// Runs on the calling thread.
pub fn run(settings: &Settings, auth: &Auth) -> Result<Report, LoadError> {
    settings.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LoadError::io("starting the runtime"))?;
    LocalSet::new().block_on(&runtime, measure(settings, auth))
}

async fn measure(settings: &Settings, auth: &Auth) -> Result<Report, LoadError> {
    let mut connections = Vec::with_capacity(settings.connections);
    for _ in 0..settings.connections {
        connections.push(NodeManager::connect(&settings.address, auth).await?);
    }
    let raylet = settings.raylet_pid.map(CpuClock::of).transpose();
    let raylet = raylet.map_err(LoadError::io("finding the raylet's CPU clock"))?;
    let (phases, phase) = watch::channel(Phase::WarmUp);
    let run = Rc::new(Run {
        worker_id: settings.owner.worker_id.clone(),
        next_lease: Cell::new(settings.first_lease),
        phase,
        pairs: Cell::new(0),
        cancelled: Cell::new(0),
        grants: RefCell::default(),
        pair_latencies: RefCell::default(),
    });
    let mut slots = JoinSet::new();
    for slot in 0..settings.in_flight {
        let connection = connections[slot % connections.len()].clone();
        slots.spawn_local(keep_asking(run.clone(), connection, settings.template(slot)));
    }

    watch_for_errors(&mut slots, settings.warm_up).await?;
    let before = Sample::take(raylet)?;
    phases.send_replace(Phase::Window);
    watch_for_errors(&mut slots, settings.window).await?;
    let after = Sample::take(raylet)?;
    let pairs = run.pairs.get();
    phases.send_replace(Phase::Drain);
    let unserved = drain(&mut slots, &phases, settings.drain).await?;

    let window_s = (after.at - before.at).as_secs_f64();
    let per_pair = |spent: Duration| spent.as_secs_f64() * 1e6 / pairs.max(1) as f64;
    let grant = run.grants.borrow().percentiles();
    let pair = run.pair_latencies.borrow().percentiles();
    Ok(Report {
        in_flight: settings.in_flight,
        shapes: settings.shapes,
        connections: settings.connections,
        window_s,
        pairs,
        pairs_per_s: pairs as f64 / window_s,
        pair,
        grant,
        raylet_cpu_us_per_pair: after
            .raylet
            .zip(before.raylet)
            .map(|(after, before)| per_pair(after.saturating_sub(before))),
        client_cpu_us_per_pair: per_pair(after.own.saturating_sub(before.own)),
        unserved,
        cancelled: run.cancelled.get(),
        drain_s: after.at.elapsed().as_secs_f64(),
    })
}

/// Time and CPU at one end of the window.
struct Sample {
    at: Instant,
    own: Duration,
    raylet: Option<Duration>,
}

impl Sample {
    fn take(raylet: Option<CpuClock>) -> Result<Self, LoadError> {
        let read = |clock: CpuClock| clock.read().map_err(LoadError::io("reading a CPU clock"));
        Ok(Self { raylet: raylet.map(read).transpose()?, own: read(CpuClock::own())?, at: Instant::now() })
    }
}

/// How often a slot got a worker in the window.
type Served = Result<u64, LoadError>;

/// Waits, and ends early only for a request that has failed.
async fn watch_for_errors(slots: &mut JoinSet<Served>, time: Duration) -> Result<(), LoadError> {
    match timeout(time, slots.join_next()).await {
        Ok(ended) => served(ended).map(drop),
        Err(_) => Ok(()),
    }
}

fn served(ended: Option<Result<Served, tokio::task::JoinError>>) -> Result<u64, LoadError> {
    match ended {
        Some(Ok(served)) => served,
        Some(Err(error)) => Err(LoadError::Io { what: "a request's task".to_owned(), source: error.into() }),
        None => Ok(0),
    }
}

/// Waits for the outstanding requests and counts the slots that were never served in the window.
async fn drain(
    slots: &mut JoinSet<Served>,
    phases: &watch::Sender<Phase>,
    limit: Duration,
) -> Result<usize, LoadError> {
    let start = Instant::now();
    let mut unserved = 0;
    let mut all = async |slots: &mut JoinSet<Served>| {
        while let Some(ended) = slots.join_next().await {
            unserved += usize::from(served(Some(ended))? == 0);
        }
        Ok::<(), LoadError>(())
    };
    if let Ok(outcome) = timeout(limit, all(slots)).await {
        outcome?;
    } else {
        phases.send_replace(Phase::Cancel);
        let Ok(outcome) = timeout(CANCEL_TIMEOUT, all(slots)).await else {
            return Err(LoadError::Stuck { left: slots.len(), waited_s: start.elapsed().as_secs_f64() });
        };
        outcome?;
    }
    Ok(unserved)
}

/// One slot: always one request in flight, until the window is over.
async fn keep_asking(run: Rc<Run>, raylet: NodeManager, template: proto::LeaseSpec) -> Served {
    let mut served_in_window = 0;
    loop {
        let started_in = *run.phase.borrow();
        if matches!(started_in, Phase::Drain | Phase::Cancel) {
            return Ok(served_in_window);
        }
        let start = Instant::now();
        let lease_id = run.lease_id();
        let granted = lease(&run, &raylet, &template, &lease_id).await?;
        let grant_latency = start.elapsed();
        if let Some(worker) = granted {
            let back = proto::ReturnWorkerLeaseRequest { worker_port: worker.port, lease_id, ..Default::default() };
            raylet.return_worker_lease(&back).await?;
        } else {
            run.cancelled.set(run.cancelled.get() + 1);
        }
        let ended_in = *run.phase.borrow();
        if ended_in == Phase::WarmUp {
            continue;
        }
        run.grants.borrow_mut().record(grant_latency);
        run.pair_latencies.borrow_mut().record(start.elapsed());
        if ended_in == Phase::Window {
            run.pairs.set(run.pairs.get() + 1);
            served_in_window += 1;
        }
    }
}

/// Asks for a worker and waits for it; `None` where the request was cancelled because the drain took too long.
async fn lease(
    run: &Run,
    raylet: &NodeManager,
    template: &proto::LeaseSpec,
    lease_id: &Bytes,
) -> Result<Option<proto::Address>, LoadError> {
    let request = proto::RequestWorkerLeaseRequest {
        lease_spec: Some(proto::LeaseSpec { lease_id: lease_id.clone(), ..template.clone() }),
        ..Default::default()
    };
    let mut phase = run.phase.clone();
    let answer = raylet.request_worker_lease(&request);
    tokio::pin!(answer);
    let reply = tokio::select! {
        biased;
        reply = &mut answer => return granted(reply?).map(Some),
        _ = phase.wait_for(|phase| *phase == Phase::Cancel) => {
            let cancel = proto::CancelWorkerLeaseRequest { lease_id: lease_id.clone() };
            raylet.cancel_worker_lease(&cancel).await?;
            answer.await?
        }
    };
    if reply.canceled {
        return Ok(None);
    }
    granted(reply).map(Some)
}

/// The worker of a reply that grants one.
fn granted(reply: proto::RequestWorkerLeaseReply) -> Result<proto::Address, LoadError> {
    let why_not = if reply.canceled {
        let why = SchedulingFailureType::try_from(reply.failure_type);
        let message = &reply.scheduling_failure_message;
        Some(format!("cancelled by the raylet ({why:?}): {message}"))
    } else if reply.rejected {
        Some("rejected".to_owned())
    } else {
        reply
            .retry_at_raylet_address
            .filter(|at| !at.node_id.is_empty())
            .map(|at| format!("sent to the raylet at {}:{}", at.ip_address, at.port))
    };
    match (why_not, reply.worker_address) {
        (None, Some(worker)) => Ok(worker),
        (Some(why_not), _) => Err(LoadError::NotGranted(why_not)),
        (None, None) => Err(LoadError::NotGranted("the reply names no worker".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(shapes: usize, cpus: f64) -> Settings {
        Settings {
            address: "127.0.0.1:1".to_owned(),
            owner: proto::Address::default(),
            job_id: Bytes::from_static(&[1, 0, 0, 0]),
            in_flight: shapes,
            connections: 1,
            shapes,
            cpus,
            warm_up: Duration::ZERO,
            window: Duration::from_millis(1),
            drain: Duration::ZERO,
            first_lease: 0,
            raylet_pid: None,
        }
    }

    #[test]
    fn shapes_are_distinct_where_ray_counts_them() {
        let settings = settings(500, 1.0);
        let fixed = |slot| (settings.resources(slot)["CPU"] * 10_000.0).round() as i64;
        let distinct: std::collections::BTreeSet<i64> = (0..500).map(fixed).collect();
        assert_eq!(distinct.len(), 500);
        assert_eq!((fixed(0), fixed(499), fixed(500)), (10_000, 9_501, 10_000));
    }

    #[test]
    fn settings_without_sense_are_refused() {
        for wrong in [settings(0, 1.0), settings(5_001, 1.0), settings(500, 0.01)] {
            assert!(matches!(wrong.check(), Err(LoadError::Setting { .. })));
        }
        assert!(settings(1, 1.0).check().is_ok());
    }

    #[test]
    fn only_a_reply_with_a_worker_is_a_grant() {
        let worker = proto::Address { port: 7, ..Default::default() };
        let grant = proto::RequestWorkerLeaseReply { worker_address: Some(worker.clone()), ..Default::default() };
        assert_eq!(granted(grant.clone()).expect("a grant"), worker);
        let elsewhere = proto::Address { node_id: Bytes::from_static(&[1; 28]), ..Default::default() };
        for refused in [
            proto::RequestWorkerLeaseReply::default(),
            proto::RequestWorkerLeaseReply { canceled: true, ..grant.clone() },
            proto::RequestWorkerLeaseReply { rejected: true, ..grant.clone() },
            proto::RequestWorkerLeaseReply { retry_at_raylet_address: Some(elsewhere), ..grant.clone() },
        ] {
            assert!(matches!(granted(refused), Err(LoadError::NotGranted(_))));
        }
    }
}
