//! The native door of a node, as its clients see it: rounds timed one by one with the client library, and throughput with many requests
//! in flight; beside the machine's limits, measured in the same run.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use raylet_transport::client::{Client, LeaseSpec, Options};
use raylet_transport::frame::BodyWriter;
use raylet_transport::messages::{DefineClass, OwnedReply, ResourceAmount, ReturnLease, RESOURCE_STEPS};
use raylet_transport::ring::layout::LINES_DEFAULT;
use raylet_transport::ring::Record;

use crate::native_node::{Node, RawConnection};
use crate::ring::{lease_request, raw_memory, time, Row, Speaker, Times, BATCH};
use crate::LoadError;

/// What is done over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Op {
    /// A lease of 1 CPU asked for, granted and given back.
    Lease,
    /// An object stored, sealed and readable by everybody: its client asks for it behind the put.
    Put,
    /// A sealed object got and released.
    Get,
    /// A sealed object waited for.
    Wait,
    /// An object put, got, and deleted, and a lease taken and given back.
    Mixed,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The operation.
    pub op: Op,
    /// Clients, each with a thread and a connection.
    pub clients: usize,
    /// Requests in flight of each client.
    pub in_flight: usize,
    /// Size of objects, in bytes.
    pub size_bytes: usize,
    /// Neither side sleeps.
    pub busy_poll: bool,
    /// Also without rings.
    pub paths: Vec<&'static str>,
    /// How long each row is measured.
    pub window: Duration,
    /// Instead of the window: so many operations of each client, and none before those that count. For counting instructions.
    pub rounds: Option<u32>,
    /// The socket of a running node; `None`: one is started.
    pub socket: Option<PathBuf>,
    /// The executable of the node that is started.
    pub raylet: PathBuf,
    /// The cores of the node that is started, as `--cores` takes them.
    pub node_cores: String,
    /// The CPUs of the clients, one after the other.
    pub client_cpus: Vec<usize>,
    /// Further flags for it.
    pub node_flags: Vec<String>,
}

/// Operations before those that count, at least: as many as leave no page of the store unmapped that the next ones lie on.
const WARM_UP: u32 = 16;

/// When a client begins to count and when it ends.
struct Span {
    window: Duration,
    rounds: Option<u32>,
    /// Where nothing counts yet: when the warm-up began.
    warm_since: Instant,
    counts_since: Option<Instant>,
}

impl Span {
    /// From now on. A quarter of the window comes before it, and does not count.
    fn of(settings: &Settings) -> Self {
        let now = Instant::now();
        let counts_since = settings.rounds.map(|_| now);
        Self { window: settings.window, rounds: settings.rounds, warm_since: now, counts_since }
    }

    /// Whether an operation that begins now, after so many, counts.
    fn counts(&mut self, done: u32, now: Instant) -> bool {
        if self.counts_since.is_none() && done >= WARM_UP && now - self.warm_since >= self.window / 4 {
            self.counts_since = Some(now);
        }
        self.counts_since.is_some()
    }

    /// Whether one is begun at all.
    fn goes_on(&self, done: u32, now: Instant) -> bool {
        match (self.rounds, self.counts_since) {
            (Some(rounds), _) => done < rounds,
            (None, None) => true,
            (None, Some(since)) => now - since < self.window,
        }
    }
}

/// The machine's limits, medians in nanoseconds.
struct Limits {
    memory_ns: u64,
    socket_ns: u64,
    copy_ns: u64,
}

/// Runs the rows of an operation.
///
/// # Errors
/// Where the node or the machine refuses.
pub fn run(settings: &Settings) -> Result<Vec<Row>, LoadError> {
    // Not pinned: both sides of the limits have to find a core of their own.
    let limits = Limits {
        memory_ns: raw_memory(50_000, false).p50_ns,
        socket_ns: glommio_socket()?,
        copy_ns: copy(settings.size_bytes),
    };
    let node = Node::of(settings)?;
    let mut rows = Vec::new();
    for path in &settings.paths {
        let row = row(settings, &node, path)?;
        let round_ns = if *path == "ring" { limits.memory_ns } else { limits.socket_ns };
        let limit = match settings.op {
            // What is asked for and given back is two messages each way.
            Op::Lease => 2 * round_ns,
            Op::Put => round_ns + limits.copy_ns,
            Op::Get | Op::Wait => round_ns,
            Op::Mixed => 5 * round_ns + limits.copy_ns,
        };
        let has_limit = settings.in_flight == 1 && settings.clients == 1;
        rows.push(Row { limit_p50_ns: has_limit.then_some(limit), ..row });
    }
    Ok(rows)
}

fn name(op: Op) -> &'static str {
    match op {
        Op::Lease => "lease",
        Op::Put => "put",
        Op::Get => "get",
        Op::Wait => "wait",
        Op::Mixed => "mixed",
    }
}

/// One row: all clients at once.
fn row(settings: &Settings, node: &Node, path: &'static str) -> Result<Row, LoadError> {
    let (results, arrived) = mpsc::channel();
    std::thread::scope(|scope| {
        for (_, cpu) in (0..settings.clients).zip(settings.client_cpus.iter().cycle()) {
            let results = results.clone();
            scope.spawn(move || {
                pin(*cpu);
                // The receiver lives until all have been heard.
                let _ = results.send(client(settings, node, path));
            });
        }
    });
    drop(results);
    let mut all = Times::default();
    let mut ops_per_s = 0.0;
    for times in arrived {
        let times = times?;
        ops_per_s += times.rate();
        all.merge(&times);
    }
    let row = all.row(name(settings.op), path, settings.busy_poll, settings.in_flight * settings.clients);
    let size_bytes = if settings.op == Op::Lease { 0 } else { settings.size_bytes };
    Ok(Row { size_bytes, ops_per_s, ..row })
}

fn client(settings: &Settings, node: &Node, path: &'static str) -> Result<Times, LoadError> {
    match (settings.op, settings.in_flight) {
        (Op::Lease, 2..) if path == "ring" => leases_in_flight(settings, node),
        (Op::Put, 2..) => puts_in_flight(settings, &connect(settings, node, path)?),
        (_, 2..) => Err(LoadError::Setting {
            setting: "--in-flight",
            expected: "1, or lease on rings or put",
            got: format!("{} for {} on the {path}", settings.in_flight, name(settings.op)),
        }),
        _ => one_by_one(settings, &connect(settings, node, path)?),
    }
}

fn connect(settings: &Settings, node: &Node, path: &str) -> Result<Client, LoadError> {
    let options = Options {
        ring_lines: (path == "ring").then_some(LINES_DEFAULT),
        busy_poll: settings.busy_poll,
        ..Options::default()
    };
    Ok(Client::connect_with(node.socket(), options)?)
}

/// Rounds of one client, each timed.
fn one_by_one(settings: &Settings, client: &Client) -> Result<Times, LoadError> {
    let data = vec![7; settings.size_bytes];
    let id = client.put(&data)?;
    let spec = LeaseSpec::new("").resource("CPU", 1.0);
    let round = || -> Result<(), LoadError> {
        match settings.op {
            Op::Lease => client.request_lease(&spec)?.return_()?,
            // What was asked behind the put is answered when everybody can read the object.
            Op::Put => {
                let put = client.put_unpinned(&data)?;
                client.contains(put)?;
            }
            Op::Get => drop(client.get(id, None)?),
            Op::Wait => drop(client.wait(&[id], 1, None)?),
            Op::Mixed => {
                let put = client.put(&data)?;
                drop(client.get(put, None)?);
                let lease = client.request_lease(&spec)?;
                client.delete(put)?;
                lease.return_()?;
            }
        }
        Ok(())
    };
    let mut span = Span::of(settings);
    let (mut times, mut done, mut begun) = (Times::default(), 0u32, Instant::now());
    while span.goes_on(done, begun) {
        let counts = span.counts(done, begun);
        round()?;
        if counts {
            times.add(begun.elapsed(), 1);
        }
        done = done.saturating_add(1);
        begun = Instant::now();
    }
    client.delete(id)?;
    Ok(times)
}

/// Puts that are not waited for, in batches; the node has done a batch when it answers what comes behind it.
fn puts_in_flight(settings: &Settings, client: &Client) -> Result<Times, LoadError> {
    let data = vec![7; settings.size_bytes];
    let (mut times, mut done, mut span) = (Times::default(), 0u32, Span::of(settings));
    loop {
        let begun = Instant::now();
        if !span.goes_on(done, begun) {
            return Ok(times);
        }
        let counts = span.counts(done, begun);
        let mut last = client.put_unpinned(&data)?;
        for _ in 1..settings.in_flight {
            last = client.put_unpinned(&data)?;
        }
        client.contains(last)?;
        done = done.saturating_add(settings.in_flight as u32);
        if counts {
            times.add(begun.elapsed(), settings.in_flight as u32);
        }
    }
}

/// Lease pairs with many under way on rings.
fn leases_in_flight(settings: &Settings, node: &Node) -> Result<Times, LoadError> {
    let mut connection = RawConnection::connect(node.socket())?;
    let resources = vec![ResourceAmount { name: "CPU".to_owned(), amount: RESOURCE_STEPS }];
    let answer = connection.call(&DefineClass { name: String::new(), resources })?;
    let OwnedReply::ClassDefined(class) = answer else {
        let (request, expected) = ("DefineClass", "ClassDefined");
        return Err(LoadError::Answer { request, expected, got: answer.name().to_owned() });
    };
    let rings = connection.rings()?;
    let bell = rings.peer_bell;
    let mut side = Speaker { end: rings.endpoint, body: BodyWriter::default(), record: Record::default() };
    let (mut asked, mut got) = (0u32, 0u32);
    let (mut times, mut span) = (Times::default(), Span::of(settings));
    let mut started = Instant::now();
    while span.goes_on(asked, started) || got < asked {
        while span.goes_on(asked, started) && (asked - got) < settings.in_flight as u32 {
            let mut request = lease_request(asked);
            request.class = class.class;
            side.say(asked, &request);
            asked += 1;
        }
        while let Some(lease) = side.granted() {
            side.say_one_way(&ReturnLease { lease, broken: false });
            got += 1;
            if got.is_multiple_of(BATCH) {
                let now = Instant::now();
                if span.counts(got, started) {
                    times.add(now - started, BATCH);
                }
                started = now;
            }
        }
        if side.end.must_wake() {
            bell.ring();
        }
        std::hint::spin_loop();
    }
    Ok(times)
}

/// The median of a message of 64 bytes over a Unix socket and back, the other side on glommio.
fn glommio_socket() -> Result<u64, LoadError> {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(LoadError::io("a pair of sockets"))?;
    let echo = glommio::LocalExecutorBuilder::new(glommio::Placement::Fixed(0)).spawn(move || async move {
        use std::os::fd::{FromRawFd, IntoRawFd};
        // SAFETY: the descriptor is owned, and given away here: the stream is its only owner.
        let mut stream = unsafe { glommio::net::UnixStream::from_raw_fd(theirs.into_raw_fd()) };
        let mut bytes = [0; 64];
        while stream.read_exact(&mut bytes).await.is_ok() && stream.write_all(&bytes).await.is_ok() {}
    });
    let echo = echo.map_err(|e| LoadError::io("a glommio executor")(std::io::Error::other(e.to_string())))?;
    let mut bytes = [0; 64];
    let row = time("ping-pong", "socket", false, 20_000, || {
        ours.write_all(&bytes)?;
        ours.read_exact(&mut bytes)
    });
    drop(ours);
    // It ends with its socket.
    let _ = echo.join();
    Ok(row.map_err(LoadError::io("the sockets of a measurement"))?.p50_ns)
}

/// The median time to copy so many bytes.
fn copy(size_bytes: usize) -> u64 {
    let (from, mut to) = (vec![7u8; size_bytes], vec![0u8; size_bytes]);
    let rounds = (1u64 << 30).checked_div(size_bytes as u64).unwrap_or(1).clamp(5, 20_000) as u32;
    let row = time::<()>("copy", "memory", true, rounds, || {
        to.copy_from_slice(&from);
        std::hint::black_box(&to);
        Ok(())
    });
    row.map_or(0, |row| row.p50_ns)
}

/// Keeps this thread on its CPU, where there is such a one.
fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    // Without it the kernel places the thread: a worse measurement, not a wrong one.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}
