//! `raylet-bench`: load generators for a raylet. See `benches/README.md`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use prost::Message;
use raylet_bench::{floor, hex, lease_load, plasma_load, ring, LoadError};
use raylet_uring::ray::proto;
use raylet_uring::ray::rpc::auth::{Auth, Token};

/// Load generators for a raylet. Each prints JSON.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    generator: Generator,
}

#[derive(Subcommand)]
enum Generator {
    /// Takes leases and gives them back, over gRPC.
    LeaseLoad(LeaseLoad),
    /// Makes or reads objects, over the store's socket.
    PlasmaLoad(PlasmaLoad),
    /// Measures the machine: an empty answer on a Unix socket.
    Floor(Floor),
    /// Measures the rings, messages and client of the native door against a node that only answers. Needs no node.
    Ring(Ring),
}

#[derive(clap::Args)]
struct Floor {
    /// Microseconds that the client works between two requests.
    #[arg(long, default_value_t = 50)]
    pause_us: u64,
    #[command(flatten)]
    window: Window,
}

#[derive(clap::Args)]
struct Window {
    /// Seconds before the measurement.
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Seconds measured.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Process id of the raylet: its CPU is measured.
    #[arg(long)]
    raylet_pid: Option<i32>,
}

#[derive(clap::Args)]
struct LeaseLoad {
    /// The raylet's gRPC port, as host:port.
    #[arg(long)]
    address: String,
    /// A live driver's serialized `ray.rpc.Address`, in hexadecimal.
    #[arg(long)]
    owner: String,
    /// The driver's job id, in hexadecimal.
    #[arg(long)]
    job_id: String,
    /// Authentication token. Without it RAY_AUTH_MODE, RAY_AUTH_TOKEN and so on decide, as in Ray.
    #[arg(long)]
    token: Option<String>,
    /// Requests in flight. Default: one for each shape.
    #[arg(long)]
    in_flight: Option<usize>,
    /// Connections; an owner has one.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Distinct resource shapes: amounts of CPU that differ by 0.0001.
    #[arg(long, default_value_t = 1)]
    shapes: usize,
    /// CPUs of the largest shape.
    #[arg(long, default_value_t = 1.0)]
    cpus: f64,
    /// Seconds after the measurement before outstanding requests are cancelled.
    #[arg(long, default_value_t = 20.0)]
    drain: f64,
    /// Counter of the first lease id; above those of the driver, and of earlier runs for the same driver.
    #[arg(long, default_value_t = 1 << 30)]
    first_lease: u32,
    #[command(flatten)]
    window: Window,
}

#[derive(clap::Args)]
struct PlasmaLoad {
    /// The store's Unix socket.
    #[arg(long)]
    socket: PathBuf,
    /// What to do.
    #[arg(long, value_enum, default_value = "put")]
    operation: plasma_load::Operation,
    /// Connections, each with a thread.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Objects that each client reads in turn.
    #[arg(long, default_value_t = 64)]
    objects: usize,
    /// Size of an object in bytes.
    #[arg(long, default_value_t = 1024)]
    size_bytes: u64,
    /// The objects' owner: a serialized `ray.rpc.Address`, in hexadecimal.
    #[arg(long)]
    owner: Option<String>,
    #[command(flatten)]
    window: Window,
}

#[derive(clap::Args)]
struct Ring {
    /// Rounds of each row.
    #[arg(long, default_value_t = 200_000)]
    rounds: u32,
    /// One JSON object per row instead of a table.
    #[arg(long)]
    json: bool,
    /// Only this operation, both sides of it in turn on one thread, to count its instructions.
    #[arg(long, value_enum)]
    count: Option<ring::Counted>,
}

fn seconds(setting: &'static str, value: f64) -> Result<Duration, LoadError> {
    Duration::try_from_secs_f64(value).map_err(|_| LoadError::Setting {
        setting,
        expected: "a number of seconds, 0 or more",
        got: value.to_string(),
    })
}

fn bytes(setting: &'static str, text: &str) -> Result<Vec<u8>, LoadError> {
    hex::decode(text).ok_or_else(|| LoadError::Setting {
        setting,
        expected: "pairs of hexadecimal digits",
        got: format!("{text:?}"),
    })
}

fn owner(text: &str) -> Result<proto::Address, LoadError> {
    let wrong = |got: String| LoadError::Setting {
        setting: "--owner",
        expected: "a serialized ray.rpc.Address with a 28-byte worker id",
        got,
    };
    let address = proto::Address::decode(&bytes("--owner", text)?[..]).map_err(|error| wrong(error.to_string()))?;
    match address.worker_id.len() {
        28 => Ok(address),
        other => Err(wrong(format!("a worker id of {other} bytes"))),
    }
}

fn lease_load(arguments: &LeaseLoad) -> Result<String, LoadError> {
    let auth = match &arguments.token {
        Some(token) => Auth::with_token(Token::new(token)?),
        None => Auth::from_env()?,
    };
    let settings = lease_load::Settings {
        address: arguments.address.clone(),
        owner: owner(&arguments.owner)?,
        job_id: bytes("--job-id", &arguments.job_id)?.into(),
        in_flight: arguments.in_flight.unwrap_or(arguments.shapes),
        connections: arguments.connections,
        shapes: arguments.shapes,
        cpus: arguments.cpus,
        warm_up: seconds("--warm-up", arguments.window.warm_up)?,
        window: seconds("--seconds", arguments.window.seconds)?,
        drain: seconds("--drain", arguments.drain)?,
        first_lease: arguments.first_lease,
        raylet_pid: arguments.window.raylet_pid,
    };
    Ok(json(&lease_load::run(&settings, &auth)?))
}

fn plasma_load(arguments: &PlasmaLoad) -> Result<String, LoadError> {
    let settings = plasma_load::Settings {
        socket: arguments.socket.clone(),
        operation: arguments.operation,
        clients: arguments.clients,
        objects: arguments.objects,
        size_bytes: arguments.size_bytes,
        owner: arguments.owner.as_deref().map(owner).transpose()?,
        warm_up: seconds("--warm-up", arguments.window.warm_up)?,
        window: seconds("--seconds", arguments.window.seconds)?,
        raylet_pid: arguments.window.raylet_pid,
    };
    Ok(json(&plasma_load::run(&settings)?))
}

fn measure_floor(arguments: &Floor) -> Result<String, LoadError> {
    let settings = floor::Settings {
        warm_up: seconds("--warm-up", arguments.window.warm_up)?,
        window: seconds("--seconds", arguments.window.seconds)?,
        pause: Duration::from_micros(arguments.pause_us),
    };
    Ok(json(&floor::run(&settings)?))
}

fn ring_rows(arguments: &Ring) -> Result<String, LoadError> {
    let settings = ring::Settings { rounds: arguments.rounds.max(1), count: arguments.count };
    let rows = ring::run(&settings)?;
    let lines: Vec<String> = match arguments.json {
        true => rows.iter().map(json).collect(),
        false => std::iter::once(ring::Row::header()).chain(rows.iter().map(ring::Row::line)).collect(),
    };
    Ok(lines.join("\n"))
}

fn json<T: serde::Serialize>(report: &T) -> String {
    serde_json::to_string(report).expect("a report of numbers has a JSON form")
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().generator {
        Generator::LeaseLoad(arguments) => lease_load(&arguments),
        Generator::PlasmaLoad(arguments) => plasma_load(&arguments),
        Generator::Floor(arguments) => measure_floor(&arguments),
        Generator::Ring(arguments) => ring_rows(&arguments),
    };
    match outcome {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("raylet-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
