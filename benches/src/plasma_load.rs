//! Objects as a driver makes and reads them, without the driver: for measuring and profiling the store alone.
//!
//! Each client is a thread with a connection of its own, one request at a time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use raylet_shard::ids::ObjectId;
use raylet_uring::ray::proto;
use serde::Serialize;

use crate::cpu_clock::CpuClock;
use crate::latency::{Latencies, Percentiles};
use crate::plasma_client::PlasmaClient;
use crate::LoadError;

/// What is done over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Create, seal, release, delete: three round trips and a one-way message.
    Put,
    /// Get and release of a sealed object: one round trip and a one-way message.
    Get,
    /// Ask whether a sealed object is there: one round trip.
    Contains,
}

/// A run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The store's socket.
    pub socket: PathBuf,
    /// What is done.
    pub operation: Operation,
    /// Connections, each with a thread.
    pub clients: usize,
    /// Objects that each client reads in turn (`get`, `contains`).
    pub objects: usize,
    /// Size of an object, in bytes.
    pub size_bytes: u64,
    /// Who owns the objects; nobody without it.
    pub owner: Option<proto::Address>,
    /// Time before the window.
    pub warm_up: Duration,
    /// The window.
    pub window: Duration,
    /// The raylet, whose CPU is to be measured.
    pub raylet_pid: Option<i32>,
}

/// What a run saw.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What was done.
    pub operation: Operation,
    /// Connections.
    pub clients: usize,
    /// Size of an object, in bytes.
    pub size_bytes: u64,
    /// Length of the window, in seconds.
    pub window_s: f64,
    /// Operations that ended in the window.
    pub operations: u64,
    /// Operations per second.
    pub operations_per_s: f64,
    /// Their latencies.
    pub latency: Percentiles,
    /// The raylet's CPU per operation, in microseconds.
    pub raylet_cpu_us_per_operation: Option<f64>,
    /// Creates that had to wait for room.
    pub create_retries: u64,
    /// Segments that a client was passed, the most of any.
    pub segments: usize,
}

const WARM_UP: u8 = 0;
const WINDOW: u8 = 1;
const OVER: u8 = 2;

/// What one client saw in the window.
#[derive(Default)]
struct Seen {
    latencies: Latencies,
    create_retries: u64,
    segments: usize,
}

/// Runs to the end.
pub fn run(settings: &Settings) -> Result<Report, LoadError> {
    if settings.clients == 0 || settings.objects == 0 {
        return Err(LoadError::Setting {
            setting: "--clients and --objects",
            expected: "at least 1",
            got: "0".to_owned(),
        });
    }
    let clock = settings.raylet_pid.map(CpuClock::of).transpose();
    let clock = clock.map_err(LoadError::io("finding the raylet's CPU clock"))?;
    let spent = || clock.map(|clock| clock.read()).transpose();
    let failed = |error| LoadError::io("reading the raylet's CPU clock")(error);
    let phase = AtomicU8::new(WARM_UP);
    let start = Barrier::new(settings.clients + 1);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..settings.clients).map(|_| scope.spawn(|| client(settings, &phase, &start))).collect();
        start.wait();
        std::thread::sleep(settings.warm_up);
        let (before, began) = (spent(), Instant::now());
        phase.store(WINDOW, Ordering::Relaxed);
        std::thread::sleep(settings.window);
        phase.store(OVER, Ordering::Relaxed);
        let (after, window_s) = (spent(), began.elapsed().as_secs_f64());

        let mut all = Seen::default();
        for client in clients {
            let seen = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            all.latencies.add(&seen.latencies);
            all.create_retries += seen.create_retries;
            all.segments = all.segments.max(seen.segments);
        }
        let latency = all.latencies.percentiles();
        let cpu = after.map_err(failed)?.zip(before.map_err(failed)?);
        Ok(Report {
            operation: settings.operation,
            clients: settings.clients,
            size_bytes: settings.size_bytes,
            window_s,
            operations: latency.count,
            operations_per_s: latency.count as f64 / window_s,
            latency,
            raylet_cpu_us_per_operation: cpu
                .map(|(after, before)| after.saturating_sub(before).as_secs_f64() * 1e6 / latency.count.max(1) as f64),
            create_retries: all.create_retries,
            segments: all.segments,
        })
    })
}

/// Connects and makes its objects, waits for the others, and repeats the operation until the window is over.
fn client(settings: &Settings, phase: &AtomicU8, start: &Barrier) -> Result<Seen, LoadError> {
    let prepared = prepare(settings);
    // A client that failed must reach the barrier too, or the others would wait for it for ever.
    start.wait();
    let (mut store, objects) = prepared?;
    let mut seen = Seen::default();
    for turn in 0.. {
        let began = Instant::now();
        let now = phase.load(Ordering::Relaxed);
        if now == OVER {
            break;
        }
        match settings.operation {
            Operation::Put => {
                let object_id = new_object(&mut store, settings)?;
                store.release(object_id)?;
                store.delete(object_id)?;
            }
            Operation::Get => {
                let object_id = objects[turn % objects.len()];
                store.get(object_id)?;
                store.release(object_id)?;
            }
            Operation::Contains => {
                let object_id = objects[turn % objects.len()];
                if !store.contains(object_id)? {
                    return Err(LoadError::Answer {
                        request: "Contains",
                        expected: "true",
                        got: format!("false for {object_id}, which this client uses"),
                    });
                }
            }
        }
        if now == WINDOW {
            seen.latencies.record(began.elapsed());
        }
    }
    for object_id in objects {
        store.release(object_id)?;
        store.delete(object_id)?;
    }
    seen.create_retries = store.create_retries;
    seen.segments = store.segments();
    Ok(seen)
}

/// A connection, and the objects that it will read. They stay in use, so that they aren't evicted.
fn prepare(settings: &Settings) -> Result<(PlasmaClient, Vec<ObjectId>), LoadError> {
    let mut store = PlasmaClient::connect(&settings.socket)?;
    let count = match settings.operation {
        Operation::Put => 0,
        Operation::Get | Operation::Contains => settings.objects,
    };
    let objects = (0..count).map(|_| new_object(&mut store, settings)).collect::<Result<_, _>>()?;
    Ok((store, objects))
}

fn new_object(store: &mut PlasmaClient, settings: &Settings) -> Result<ObjectId, LoadError> {
    let object_id = ObjectId(rand::random());
    store.create(object_id, settings.size_bytes, settings.owner.as_ref())?;
    store.seal(object_id)?;
    Ok(object_id)
}
