//! `raylet-bench`: load generators for a raylet. See `benches/README.md`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use prost::Message;
use raylet_bench::{disk, floor, hex, lease_load, native, plasma_load, ring, stream, suite, LoadError};
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
    /// Measures the machine: one TCP stream on loopback between two processes.
    Stream(Stream),
    /// Measures the machine: blocks written to a file past the page cache, made durable, and read again.
    Disk(Disk),
    /// Measures the rings, messages and client of the native door against a node that only answers. Needs no node.
    Ring(Ring),
    /// Measures all rows of the native door that SPECIFICATION.md promises, on nodes that it starts.
    Native(Suite),
    /// Measures leases of the native door.
    Lease(Native),
    /// Measures puts of the native door.
    Put(Native),
    /// Measures gets of the native door.
    Get(Native),
    /// Measures waits of the native door.
    Wait(Native),
    /// Measures a mixture of puts, gets, deletes and leases of the native door.
    Mixed(Native),
}

/// Against a running node, or one that is started for it.
#[derive(clap::Args)]
struct Native {
    /// The socket of a running node. Without it a node is started, and stopped at the end.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The executable of the node that is started. Default: raylet-uring beside this program.
    #[arg(long)]
    raylet: Option<PathBuf>,
    /// A further flag of the node that is started, like --node-flag=--hugepages.
    #[arg(long, allow_hyphen_values = true)]
    node_flag: Vec<String>,
    /// The cores of the node that is started.
    #[arg(long, default_value = "0", conflicts_with = "socket")]
    node_cores: String,
    /// The CPUs of the clients, which they are given in turn.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    client_cpus: Vec<usize>,
    /// Clients, each with a thread.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Requests in flight of each client.
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// Size of an object: bytes, or with a unit like 1M.
    #[arg(long, default_value = "1024")]
    size: String,
    /// Neither client nor node ever sleeps.
    #[arg(long)]
    busy_poll: bool,
    /// The ways to measure: ring, socket.
    #[arg(long, value_delimiter = ',', default_value = "ring,socket")]
    paths: Vec<String>,
    /// Seconds of each row.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Operations of each client instead of seconds, without a warm-up: to count instructions.
    #[arg(long, conflicts_with = "seconds")]
    rounds: Option<u32>,
    /// One JSON object per row instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Suite {
    /// The executable of the nodes. Default: raylet-uring beside this program.
    #[arg(long)]
    raylet: Option<PathBuf>,
    /// Seconds of each row.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// One JSON object per row instead of a table.
    #[arg(long)]
    json: bool,
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
struct Stream {
    /// How much is sent: bytes, or with a unit like 1G.
    #[arg(long, default_value = "1G")]
    size: String,
    /// With each call.
    #[arg(long, default_value = "1M")]
    block: String,
    /// Sends to this receiver instead of starting one: what the second process is told.
    #[arg(long, hide = true)]
    send_to: Option<SocketAddr>,
}

#[derive(clap::Args)]
struct Disk {
    /// Where the file is made, and removed from at the end.
    #[arg(long)]
    directory: PathBuf,
    /// Its length: bytes, or with a unit like 1G.
    #[arg(long, default_value = "1G")]
    size: String,
    /// Length of a block.
    #[arg(long, default_value = "1M")]
    block: String,
    /// Blocks under way at a time.
    #[arg(long, default_value_t = 8)]
    depth: usize,
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

fn size_bytes(setting: &'static str, text: &str) -> Result<u64, LoadError> {
    let expected = raylet_uring::config::size::EXPECTED;
    let wrong = || LoadError::Setting { setting, expected, got: format!("{text:?}") };
    raylet_uring::config::size::parse_size_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

fn block_bytes<T: TryFrom<u64>>(text: &str) -> Result<T, LoadError> {
    T::try_from(size_bytes("--block", text)?).map_err(|_| LoadError::Setting {
        setting: "--block",
        expected: "less than 4 GiB",
        got: format!("{text:?}"),
    })
}

fn measure_stream(arguments: &Stream) -> Result<String, LoadError> {
    let (size_bytes, block_bytes) = (size_bytes("--size", &arguments.size)?, block_bytes(&arguments.block)?);
    let settings = stream::Settings { size_bytes, block_bytes };
    if let Some(to) = arguments.send_to {
        return stream::send(to, settings).map(|()| String::new());
    }
    let program = std::env::current_exe().map_err(LoadError::io("this program's own path"))?;
    Ok(json(&stream::run(&program, settings)?))
}

fn measure_disk(arguments: &Disk) -> Result<String, LoadError> {
    let settings = disk::Settings {
        directory: arguments.directory.clone(),
        size_bytes: size_bytes("--size", &arguments.size)?,
        block_bytes: block_bytes(&arguments.block)?,
        depth: arguments.depth,
    };
    Ok(json(&disk::run(&settings)?))
}

fn ring_rows(arguments: &Ring) -> Result<String, LoadError> {
    let settings = ring::Settings { rounds: arguments.rounds.max(1), count: arguments.count };
    Ok(table(&ring::run(&settings)?, arguments.json))
}

fn native_rows(op: native::Op, arguments: &Native) -> Result<String, LoadError> {
    let wrong = |setting, expected, got: &str| LoadError::Setting { setting, expected, got: format!("{got:?}") };
    let size_bytes = usize::try_from(size_bytes("--size", &arguments.size)?)
        .map_err(|_| wrong("--size", raylet_uring::config::size::EXPECTED, &arguments.size))?;
    let path = |name: &String| match name.as_str() {
        "ring" => Ok("ring"),
        "socket" => Ok("socket"),
        other => Err(wrong("--paths", "ring, socket or both", other)),
    };
    let settings = native::Settings {
        op,
        clients: arguments.clients.max(1),
        in_flight: arguments.in_flight.max(1),
        size_bytes,
        busy_poll: arguments.busy_poll,
        paths: arguments.paths.iter().map(path).collect::<Result<_, _>>()?,
        window: seconds("--seconds", arguments.seconds)?,
        rounds: arguments.rounds,
        socket: arguments.socket.clone(),
        raylet: executable(arguments.raylet.as_ref()),
        node_cores: arguments.node_cores.clone(),
        client_cpus: arguments.client_cpus.clone(),
        node_flags: arguments.node_flag.clone(),
    };
    Ok(table(&native::run(&settings)?, arguments.json))
}

/// The node's executable: the one that is named, else the one beside this program, else the one on the path.
fn executable(named: Option<&PathBuf>) -> PathBuf {
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("raylet-uring"));
    named.cloned().or_else(beside).unwrap_or_else(|| "raylet-uring".into())
}

/// Prints each row as it comes, because all take a minute.
fn native_suite(arguments: &Suite) -> Result<String, LoadError> {
    if !arguments.json {
        println!("{}", suite::Judged::header());
    }
    let say = |row: &suite::Judged| println!("{}", if arguments.json { json(row) } else { row.line() });
    suite::run(&executable(arguments.raylet.as_ref()), seconds("--seconds", arguments.seconds)?, say)?;
    Ok(String::new())
}

fn table(rows: &[ring::Row], as_json: bool) -> String {
    let lines: Vec<String> = match as_json {
        true => rows.iter().map(json).collect(),
        false => std::iter::once(ring::Row::header()).chain(rows.iter().map(ring::Row::line)).collect(),
    };
    lines.join("\n")
}

fn json<T: serde::Serialize>(report: &T) -> String {
    serde_json::to_string(report).expect("a report of numbers has a JSON form")
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().generator {
        Generator::LeaseLoad(arguments) => lease_load(&arguments),
        Generator::PlasmaLoad(arguments) => plasma_load(&arguments),
        Generator::Floor(arguments) => measure_floor(&arguments),
        Generator::Stream(arguments) => measure_stream(&arguments),
        Generator::Disk(arguments) => measure_disk(&arguments),
        Generator::Ring(arguments) => ring_rows(&arguments),
        Generator::Native(arguments) => native_suite(&arguments),
        Generator::Lease(arguments) => native_rows(native::Op::Lease, &arguments),
        Generator::Put(arguments) => native_rows(native::Op::Put, &arguments),
        Generator::Get(arguments) => native_rows(native::Op::Get, &arguments),
        Generator::Wait(arguments) => native_rows(native::Op::Wait, &arguments),
        Generator::Mixed(arguments) => native_rows(native::Op::Mixed, &arguments),
    };
    match outcome {
        Ok(report) => {
            if !report.is_empty() {
                println!("{report}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("raylet-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
