//! What the native door's transport costs by itself: rings, messages and client against a node that does nothing but answer, beside the
//! machine's limits measured in the same run.

use std::hint::spin_loop;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use raylet_transport::client::{Client, ClientError, LeaseSpec, Options};
use raylet_transport::frame::{BodyWriter, Head};
use raylet_transport::ids::{ObjectId, WorkerId};
use raylet_transport::messages::{
    Found, Get, Granted, Message, Place, Publish, Reply, Request, RequestLease, ReturnLease,
};
use raylet_transport::ring::layout::LINES_DEFAULT;
use raylet_transport::ring::{Endpoint, Memory, Record, Side};
use serde::Serialize;

use crate::ring_node::RingNode;

/// Rounds before those that count.
const WARM_UP: u32 = 2_000;
/// Requests under way in the throughput rows.
pub(crate) const IN_FLIGHT: usize = 64;
/// Rounds of a throughput row that are timed together; its percentiles are those of batches.
pub(crate) const BATCH: u32 = 256;
/// The longest time that is told apart.
const LONGEST_NS: u64 = 60 * 1_000_000_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rounds of each latency row.
    pub rounds: u32,
    /// Rounds of one operation on one thread, and nothing else: for callgrind.
    pub count: Option<Counted>,
}

/// An operation whose instructions are counted: both sides of it, in turn on one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Counted {
    /// A record of one line, written and read.
    PushPop,
    /// A get and its answer, encoded, checked and read.
    Get,
    /// A lease, its grant and its return.
    Lease,
    /// A publish.
    Publish,
}

/// One row.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was done.
    pub op: &'static str,
    /// `ring`, `socket` or `memory`.
    pub path: &'static str,
    /// Both sides spin.
    pub busy_poll: bool,
    /// Under way at a time.
    pub in_flight: usize,
    /// Length of the object, where there is one.
    pub size_bytes: usize,
    /// Median of a round, of a throughput row over batches.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.99th percentile.
    pub p9999_ns: u64,
    /// Rounds in a second.
    pub ops_per_s: f64,
    /// The machine's limit for it: the raw row of the same path.
    pub limit_p50_ns: Option<u64>,
}

impl Row {
    /// What stands above [`line`](Self::line)s.
    pub fn header() -> String {
        "op            path    spin   in flight   p50 ns    p99 ns  p99.99 ns       ops/s  limit p50 ns".to_owned()
    }

    /// As a line of a table.
    pub fn line(&self) -> String {
        format!(
            "{:13} {:7} {:5} {:10} {:8} {:9} {:10} {:11.0}  {}",
            self.op,
            self.path,
            self.busy_poll,
            self.in_flight,
            self.p50_ns,
            self.p99_ns,
            self.p9999_ns,
            self.ops_per_s,
            self.limit_p50_ns.map_or_else(|| "-".to_owned(), |limit| limit.to_string()),
        )
    }
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A socket failed.
    #[error("the sockets of the measurement failed: {0}")]
    Io(#[from] std::io::Error),
    /// The client failed.
    #[error("the client of the measurement failed: {0}")]
    Client(#[from] ClientError),
}

/// Runs all rows.
///
/// # Errors
/// [`RingError`] where the machine has no sockets or memory left.
pub fn run(settings: &Settings) -> Result<Vec<Row>, RingError> {
    if let Some(counted) = settings.count {
        count(counted, settings.rounds);
        return Ok(Vec::new());
    }
    let rounds = settings.rounds;
    let memory = raw_memory(rounds, false);
    let (ring_limit, mut rows) = (Some(memory.p50_ns), vec![memory, raw_memory(rounds, true)]);
    rows.push(Row { limit_p50_ns: ring_limit, ..ring_records(rounds) });
    let socket = raw_socket(rounds)?;
    let socket_limit = Some(socket.p50_ns);
    rows.push(socket);
    for (path, busy_poll, limit_p50_ns) in
        [("ring", true, ring_limit), ("ring", false, None), ("socket", false, socket_limit)]
    {
        rows.extend(client_rows(path, busy_poll, rounds)?.into_iter().map(|row| Row { limit_p50_ns, ..row }));
    }
    Ok(rows)
}

/// Times a round over and over.
pub(crate) fn time<E>(
    op: &'static str,
    path: &'static str,
    busy_poll: bool,
    rounds: u32,
    mut round: impl FnMut() -> Result<(), E>,
) -> Result<Row, E> {
    for _ in 0..WARM_UP.min(rounds) {
        round()?;
    }
    let mut times = Times::default();
    for _ in 0..rounds {
        let begun = Instant::now();
        round()?;
        times.add(begun.elapsed(), 1);
    }
    Ok(times.row(op, path, busy_poll, 1))
}

/// How long rounds took.
pub(crate) struct Times {
    histogram: Histogram<u64>,
    total: Duration,
}

impl Default for Times {
    fn default() -> Self {
        // The bounds are constants that the histogram takes.
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant bounds");
        Self { histogram, total: Duration::ZERO }
    }
}

impl Times {
    /// So many rounds took so long together.
    pub(crate) fn add(&mut self, elapsed: Duration, rounds: u32) {
        let each = u64::try_from(elapsed.as_nanos()).unwrap_or(LONGEST_NS) / u64::from(rounds.max(1));
        self.histogram.saturating_record_n(each.max(1), rounds.into());
        self.total += elapsed;
    }

    /// Rounds in a second of one client.
    pub(crate) fn rate(&self) -> f64 {
        self.histogram.len() as f64 / self.total.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Those of another client too.
    pub(crate) fn merge(&mut self, other: &Self) {
        // Both have the same constant bounds, so nothing can be out of range.
        self.histogram += &other.histogram;
        self.total += other.total;
    }

    pub(crate) fn row(&self, op: &'static str, path: &'static str, busy_poll: bool, in_flight: usize) -> Row {
        Row {
            op,
            path,
            busy_poll,
            in_flight,
            size_bytes: 0,
            p50_ns: self.histogram.value_at_quantile(0.5),
            p99_ns: self.histogram.value_at_quantile(0.99),
            p9999_ns: self.histogram.value_at_quantile(0.9999),
            ops_per_s: self.histogram.len() as f64 / self.total.as_secs_f64(),
            limit_p50_ns: None,
        }
    }
}

/// A cache line, alone in its pair.
#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU64; 8]);

/// What goes one way: a line, and the index of a ring that announces its records by one.
#[derive(Default)]
struct Way {
    line: Line,
    index: Line,
}

impl Way {
    /// Writes a record: seven words, and then the eighth or the index that says so.
    #[inline]
    fn write(&self, n: u64, index_apart: bool) {
        self.line.0[1..].iter().for_each(|word| word.store(n, Ordering::Relaxed));
        let last = if index_apart { &self.index } else { &self.line };
        last.0[0].store(n, Ordering::Release);
    }

    /// Waits for a record other than `last`, and reads it.
    #[inline]
    fn read(&self, last: u64, index_apart: bool) -> u64 {
        let first = if index_apart { &self.index } else { &self.line };
        let mut now = first.0[0].load(Ordering::Acquire);
        while now == last {
            spin_loop();
            now = first.0[0].load(Ordering::Acquire);
        }
        assert!(self.line.0[1..].iter().all(|word| word.load(Ordering::Relaxed) == now), "a record is seen whole");
        now
    }
}

/// A line of words to another core and back: with its stamp in the line, as in our rings, or announced by an index in a line of its own.
pub(crate) fn raw_memory(rounds: u32, index_apart: bool) -> Row {
    let ways = Arc::new((Way::default(), Way::default()));
    let theirs = ways.clone();
    let echo = std::thread::spawn(move || {
        let mut last = 0;
        while last != u64::MAX {
            last = theirs.0.read(last, index_apart);
            theirs.1.write(last, index_apart);
        }
    });
    let mut n = 0;
    let op = if index_apart { "2 lines" } else { "ping-pong" };
    let row = time::<()>(op, "memory", true, rounds, || {
        ways.0.write(n + 1, index_apart);
        n = ways.1.read(n, index_apart);
        Ok(())
    });
    ways.0.write(u64::MAX, index_apart);
    echo.join().expect("the echo does not panic");
    row.expect("a round in memory can't fail")
}

/// A record of one line through one ring, and back through the other.
fn ring_records(rounds: u32) -> Row {
    /// Ends the echo.
    const LAST: u16 = 99;
    let memory = Arc::new(Memory::on_heap(LINES_DEFAULT));
    let (mut client, mut node) = (Endpoint::new(memory.clone(), Side::Client), Endpoint::new(memory, Side::Node));
    let echo = std::thread::spawn(move || {
        let mut record = Record::default();
        while record.head().message_type != LAST {
            if node.pop(&mut record).expect("our own ring is in order") {
                node.push(record.head(), record.body()).expect("there is room for one");
                assert!(!node.must_wake(), "the client spins");
            }
            spin_loop();
        }
    });
    let mut record = Record::default();
    let mut ask = |message_type: u16| {
        client.push(Head::new(message_type, 1), &[7; 48]).expect("there is room for one");
        assert!(!client.must_wake(), "the node spins");
        while !client.pop(&mut record).expect("our own ring is in order") {
            spin_loop();
        }
        Ok::<(), ()>(())
    };
    let row = time("ping-pong", "ring", true, rounds, || ask(1));
    ask(LAST).expect("a round in memory can't fail");
    echo.join().expect("the echo does not panic");
    row.expect("a round in memory can't fail")
}

/// 64 bytes over a Unix socket and back, both sides blocking.
pub(crate) fn raw_socket(rounds: u32) -> Result<Row, RingError> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while theirs.read_exact(&mut bytes).is_ok() && theirs.write_all(&bytes).is_ok() {}
    });
    let mut bytes = [0; 64];
    let row = time("ping-pong", "socket", false, rounds, || {
        ours.write_all(&bytes)?;
        ours.read_exact(&mut bytes)
    })?;
    drop(ours);
    echo.join().expect("the echo does not panic");
    Ok(row)
}

/// The client's calls against a node that answers at once.
fn client_rows(path: &'static str, busy_poll: bool, rounds: u32) -> Result<Vec<Row>, RingError> {
    let node = RingNode::start(busy_poll)?;
    let options = Options { ring_lines: (path == "ring").then_some(LINES_DEFAULT), busy_poll, ..Options::default() };
    let client = Client::on_stream(node.connect()?, options)?;
    let data = [7; 1024];
    let id = client.put(&data)?;
    let spec = LeaseSpec::new("").resource("CPU", 1.0);
    let mut rows = vec![
        time("get", path, busy_poll, rounds, || client.get(id, None).map(drop))?,
        time("lease", path, busy_poll, rounds, || client.request_lease(&spec)?.return_())?,
        // Puts are not waited for, so a round ends when the node answers what comes behind one.
        time("put+contains", path, busy_poll, rounds, || {
            client.put(&data)?;
            client.contains(id).map(drop)
        })?,
    ];
    let mut puts = Times::default();
    for _ in 0..rounds.div_ceil(BATCH) {
        let started = Instant::now();
        for _ in 0..BATCH {
            client.put(&data)?;
        }
        client.contains(id)?;
        puts.add(started.elapsed(), BATCH);
    }
    rows.push(puts.row("put", path, busy_poll, BATCH as usize));
    for row in &mut rows {
        row.size_bytes = if row.op == "lease" { 0 } else { data.len() };
    }
    if busy_poll {
        rows.push(leases_in_flight(rounds));
    }
    Ok(rows)
}

/// Lease pairs with many under way: what one thread does for them on each side of the rings.
fn leases_in_flight(rounds: u32) -> Row {
    let mut pair = Pair::new();
    let mut node = pair.split_node();
    let total = rounds.next_multiple_of(BATCH);
    let server = std::thread::spawn(move || {
        let mut granted = 0;
        while granted < total {
            granted += node.serve();
            spin_loop();
        }
    });
    let (mut asked, mut got) = (0u32, 0u32);
    let mut times = Times::default();
    let mut started = Instant::now();
    while got < total {
        while asked < total && (asked - got) < IN_FLIGHT as u32 {
            pair.client.say(asked, &lease_request(asked));
            asked += 1;
        }
        while let Some(lease) = pair.client.granted() {
            pair.client.say(0, &ReturnLease { lease, broken: false });
            got += 1;
            if got.is_multiple_of(BATCH) {
                times.add(started.elapsed(), BATCH);
                started = Instant::now();
            }
        }
        assert!(!pair.client.end.must_wake(), "the node spins");
    }
    server.join().expect("the node does not panic");
    times.row("lease", "ring", true, IN_FLIGHT)
}

/// A side of the rings with what it needs to speak.
pub(crate) struct Speaker {
    pub(crate) end: Endpoint,
    pub(crate) body: BodyWriter,
    pub(crate) record: Record,
}

/// Both sides of a pair of rings.
struct Pair {
    client: Speaker,
    node: Option<Speaker>,
}

impl Pair {
    fn new() -> Self {
        let memory = Arc::new(Memory::on_heap(LINES_DEFAULT));
        let side = |side| Speaker {
            end: Endpoint::new(memory.clone(), side),
            body: BodyWriter::default(),
            record: Record::default(),
        };
        Self { client: side(Side::Client), node: Some(side(Side::Node)) }
    }

    fn split_node(&mut self) -> Speaker {
        self.node.take().expect("the node's side is split off once")
    }
}

impl Speaker {
    #[inline]
    pub(crate) fn say<M: Message>(&mut self, correlation: u32, message: &M) {
        let body = self.body.body(message).expect("our own messages can be written");
        self.end.push(Head::new(M::TYPE, correlation), body).expect("fewer are under way than the ring has lines");
    }

    #[inline]
    pub(crate) fn say_one_way<M: Message>(&mut self, message: &M) {
        let body = self.body.body(message).expect("our own messages can be written");
        let head = Head::new(M::TYPE, 0).one_way();
        self.end.push(head, body).expect("fewer are under way than the ring has lines");
    }

    /// Answers what is there; how many leases were granted.
    #[inline]
    fn serve(&mut self) -> u32 {
        let mut granted = 0;
        while self.end.pop(&mut self.record).expect("our own ring is in order") {
            let head = self.record.head();
            match Request::read(head, self.record.body()).expect("our own messages can be read") {
                Request::Get(get) => {
                    let offset_bytes = u64::from(get.object.0[0]);
                    let place = Place { offset_bytes, data_bytes: 1024, metadata_bytes: 0, segment: 0 };
                    self.say(head.correlation, &Found { place });
                }
                Request::RequestLease(request) => {
                    granted += 1;
                    let lease = request.lease.to_native();
                    let worker = WorkerId([1; 28]);
                    self.say(
                        head.correlation,
                        &Granted { lease, worker, allocation: Vec::new(), address: String::new() },
                    );
                }
                _ => {}
            }
        }
        assert!(!self.end.must_wake(), "the client spins");
        granted
    }

    /// The lease of the next grant.
    #[inline]
    pub(crate) fn granted(&mut self) -> Option<u32> {
        if !self.end.pop(&mut self.record).expect("our own ring is in order") {
            return None;
        }
        match Reply::read(self.record.head(), self.record.body()).expect("our own messages can be read") {
            Reply::Granted(granted) => Some(granted.lease.to_native()),
            other => panic!("a grant was due, got {}", other.name()),
        }
    }
}

pub(crate) fn lease_request(lease: u32) -> RequestLease {
    RequestLease {
        lease,
        class: 0,
        priority: 0,
        wait_ns: u64::MAX,
        unused_ns: u64::MAX,
        deps: Vec::new(),
        payload: Vec::new(),
    }
}

/// One operation over and over on one thread, both sides of it.
fn count(counted: Counted, rounds: u32) {
    let mut pair = Pair::new();
    let mut node = pair.split_node();
    let client = &mut pair.client;
    let object = ObjectId([1; 28]);
    for n in 0..rounds {
        match counted {
            Counted::PushPop => {
                client.end.push(Head::new(1, n), &[7; 48]).expect("there is room for one");
                assert!(!client.end.must_wake(), "the node is awake");
                assert_eq!(node.end.pop(&mut node.record), Ok(true));
                assert!(!node.end.must_wake(), "the client is awake");
            }
            Counted::Get => {
                client.say(n, &Get { object, timeout_ns: u64::MAX });
                assert!(!client.end.must_wake(), "the node is awake");
                node.serve();
                assert_eq!(client.end.pop(&mut client.record), Ok(true));
                let reply = Reply::read(client.record.head(), client.record.body());
                assert!(matches!(reply, Ok(Reply::Found(found)) if found.place.data_bytes == 1024));
            }
            Counted::Lease => {
                client.say(n, &lease_request(n));
                assert!(!client.end.must_wake(), "the node is awake");
                node.serve();
                let lease = client.granted().expect("the grant is there");
                client.say(0, &ReturnLease { lease, broken: false });
                assert!(!client.end.must_wake(), "the node is awake");
                node.serve();
            }
            Counted::Publish => {
                let (credit, offset_bytes) = (0, n % 1024 * 1024);
                let publish = Publish { object, credit, offset_bytes, data_bytes: 1024, metadata_bytes: 0, pin: true };
                client.say(n, &publish);
                assert!(!client.end.must_wake(), "the node is awake");
                node.serve();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_measured() {
        let rows = run(&Settings { rounds: 300, count: None }).expect("the machine has sockets");
        let names: Vec<_> = rows.iter().map(|row| (row.op, row.path, row.busy_poll, row.in_flight)).collect();
        assert_eq!(names.len(), 17, "{names:?}");
        assert!(rows.iter().all(|row| row.p50_ns > 0 && row.ops_per_s > 0.0), "{rows:?}");
        assert!(rows.iter().filter(|row| row.path == "ring" && row.busy_poll).all(|row| row.limit_p50_ns.is_some()));
    }

    #[test]
    fn operations_run_on_one_thread() {
        for counted in [Counted::PushPop, Counted::Get, Counted::Lease, Counted::Publish] {
            count(counted, 3000);
        }
    }
}
