//! Clients of the native door die, at random moments and on the lines where half of something is done, and are replaced. Whoever
//! lives sees no wrong byte, and in the end the node has everything back.
//!
//! `RAYLET_CHAOS_SECONDS` is how long it goes on, for each number of cores (4), `RAYLET_CHAOS_SEED` what the chances follow.

mod clients;
mod content;
#[path = "../native_support/mod.rs"]
mod native_support;
mod troop;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use native_support::{eventually, Node};
use raylet_transport::client::{Client, LeaseSpec};
use raylet_transport::fault::Point;
use raylet_transport::messages::RefusalCode;

use clients::{Part, CLASS};
use content::{verify, Chance};
use troop::{seed_of_environment, Member, Troop};

/// Clients at a time.
const CLIENTS: usize = 8;
/// Of these, who live until the end: one that trades in objects and one that works.
const SURVIVORS: usize = 2;
/// Longest life of the others.
const LIFE_MS: u64 = 1000;
/// What a node may have taken for itself, beside its objects, after thousands of clients.
const GROWTH_KIB_MAX: u64 = 32 << 10;
/// Where processes that this test starts begin: see [`clients`].
const ENTRY: &str = "a_client_that_dies_on_a_critical_line_leaves_nothing";

/// What a node has while nobody is connected.
struct Baseline {
    pid: i32,
    descriptors: usize,
    used_bytes: u64,
    private_kib: u64,
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the node lives").count()
}

/// Memory of the process that is nobody else's: without the objects.
fn private_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node lives");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line with it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

impl Baseline {
    /// After one client has come and gone: what is made once is there.
    fn of(node: &Node) -> Self {
        let stream = UnixStream::connect(node.socket()).expect("a connection");
        let pid = rustix::net::sockopt::socket_peercred(&stream).expect("its process").pid.as_raw_nonzero().get();
        drop(stream);
        let first = Client::connect(node.socket()).expect("a connection");
        let id = first.put(b"first").expect("room");
        first.delete(id).expect("it is there");
        drop(first);
        node.is_empty();
        let used_bytes = Client::connect(node.socket()).expect("a connection").status().expect("a status").used_bytes;
        // The last client's end is not waited for by anything else.
        std::thread::sleep(Duration::from_millis(200));
        Self { pid, descriptors: descriptors(pid), used_bytes, private_kib: private_kib(pid) }
    }

    /// Everything is back, and a client that comes now finds a node as new.
    fn is_back(&self, node: &Node) {
        let fresh = Client::connect(node.socket()).expect("a connection");
        eventually("nothing that was left is pinned or unfinished, and all can be deleted", || {
            for entry in fresh.list().expect("a list") {
                match fresh.get(entry.object, Some(Duration::ZERO)) {
                    Ok(object) => verify(object.id(), object.data(), object.metadata()),
                    Err(error) => assert_eq!(error.code(), Some(RefusalCode::UnknownObject), "{error}"),
                }
                if let Err(error) = fresh.delete(entry.object) {
                    assert_eq!(error.code(), Some(RefusalCode::UnknownObject), "{error}");
                }
            }
            fresh.list().expect("a list").is_empty()
        });
        let mut status = None;
        eventually("credit and workers are given back", || {
            let now = fresh.status().expect("a status");
            let is_back = now.used_bytes == self.used_bytes && now.workers == 0;
            let last = format!("{now:?}");
            if status.as_ref() != Some(&last) {
                eprintln!("{last}");
            }
            status = Some(last);
            is_back
        });
        let id = fresh.put(b"as new").expect("room");
        assert_eq!(fresh.get(id, Some(Duration::from_secs(20))).expect("it is there").data(), b"as new");
        fresh.delete(id).expect("it is there");
        drop(fresh.create(24 << 20).expect("room for a large object"));
        let all = LeaseSpec::new("").resource("CPU", 4.0);
        fresh.request_lease(&all).expect("all resources are free").return_().expect("it is given back");
        drop(fresh);
        node.is_empty();
        let mut now = 0;
        eventually("all descriptors are closed", || {
            now = descriptors(self.pid);
            now <= self.descriptors
        });
        let grown_kib = private_kib(self.pid).saturating_sub(self.private_kib);
        assert!(grown_kib < GROWTH_KIB_MAX, "the node has grown by {grown_kib} KiB");
        eprintln!("descriptors {now} (before {}), memory of its own +{grown_kib} KiB", self.descriptors);
    }
}

fn node_with(cores: &str) -> Node {
    Node::start(&["--cores", cores, "--resources", "CPU=4"])
}

fn seconds() -> Duration {
    let given = std::env::var("RAYLET_CHAOS_SECONDS").ok();
    Duration::from_secs(given.map_or(4, |text| text.parse().expect("RAYLET_CHAOS_SECONDS is a number of seconds")))
}

fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.subsec_nanos().into());
    seed_of_environment("RAYLET_CHAOS_SEED").unwrap_or_else(now)
}

/// Every line of [`Point::ALL`], early and late in a client's life. Also where every process of these tests begins.
#[test]
fn a_client_that_dies_on_a_critical_line_leaves_nothing() {
    if clients::is_one() {
        return clients::run();
    }
    for cores in ["0", "0-1"] {
        let node = node_with(cores);
        let baseline = Baseline::of(&node);
        let troop = Troop::new(&node);
        for point in Point::ALL {
            // These come once in a connection.
            let is_single = matches!(point, Point::Welcomed | Point::RingOpened | Point::WorkerRegistered);
            for passes in if is_single { vec![0] } else { vec![0, 1, 7] } {
                die_on(&node, &troop, point, passes);
            }
        }
        baseline.is_back(&node);
        node.stop();
    }
}

fn die_on(node: &Node, troop: &Troop, point: Point, passes: u32) {
    let part = match point {
        Point::WorkerRegistered | Point::WorkTaken => Part::Worker,
        _ => Part::Trader,
    };
    let mut doomed = troop.start(part, u64::from(passes) + 1, Some((point, passes)));
    let owner = (point == Point::WorkTaken).then(|| Client::connect(node.socket()).expect("a connection"));
    let mut work = LeaseSpec::new(CLASS).payload([0; 16]);
    work.wait = Some(Duration::from_millis(100));
    let mut ended = None;
    eventually(&format!("a client dies at {point:?} after {passes} times"), || {
        if let Some(Ok(lease)) = owner.as_ref().map(|owner| owner.request_lease(&work)) {
            // It may die with the lease.
            let _ = lease.wait_done(Some(Duration::from_secs(20)));
        }
        ended = doomed.ended();
        ended.is_some()
    });
    let ended = ended.expect("it has ended");
    assert_eq!(ended.signal(), Some(9), "at {point:?} after {passes} times: {ended}\n{}", doomed.complaint());
}

#[test]
fn whoever_dies_whenever_the_others_see_no_wrong_byte() {
    let seed = seed();
    for cores in ["0", "0-1"] {
        eprintln!("cores {cores}, RAYLET_CHAOS_SEED={seed}");
        let node = node_with(cores);
        let baseline = Baseline::of(&node);
        let told = chaos(&Troop::new(&node), seed, seconds());
        eprintln!("{told}");
        baseline.is_back(&node);
        node.stop();
    }
}

/// A member with a life of chance: killed when it is over, or by itself on some line before.
fn mortal(troop: &Troop, chance: &mut Chance, part: Part) -> Member {
    let fault = chance.one_in(2).then(|| {
        let point = Point::ALL[chance.below(Point::ALL.len() as u64) as usize];
        let most = 1 << chance.below(11);
        (point, chance.below(most) as u32)
    });
    let mut member = troop.start(part, chance.next(), fault);
    member.dies = Some(Instant::now() + Duration::from_millis(5 + chance.below(LIFE_MS)));
    member
}

/// Figures of a run.
#[derive(Default)]
struct Told {
    killed: u64,
    by_themselves: BTreeMap<Point, u64>,
    stopped: u64,
    work: clients::Figures,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { killed, by_themselves, stopped, work } = self;
        let lines: u64 = by_themselves.values().sum();
        write!(
            f,
            "{killed} clients killed at random, {lines} on a line {by_themselves:?}, {stopped} workers stopped; "
        )?;
        write!(f, "{} steps, {} objects and {} bytes compared", work.steps, work.objects, work.bytes)
    }
}

fn chaos(troop: &Troop, seed: u64, lasts: Duration) -> Told {
    let mut chance = Chance(seed);
    let mut told = Told::default();
    let part = |index: usize| if index % 3 == 1 { Part::Worker } else { Part::Trader };
    let mut members: Vec<Member> = Vec::new();
    for index in 0..CLIENTS {
        members.push(match index < SURVIVORS {
            true => troop.start(part(index), chance.next(), None),
            false => mortal(troop, &mut chance, part(index)),
        });
    }
    let end = Instant::now() + lasts;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
        for (index, member) in members.iter_mut().enumerate() {
            match (member.ended(), member.dies) {
                (Some(status), _) => match (status.signal(), member.fault) {
                    (Some(9), Some((point, _))) => *told.by_themselves.entry(point).or_default() += 1,
                    _ if status.success() && member.part == Part::Worker => told.stopped += 1,
                    _ => panic!("a client ended with {status}: {}", member.complaint()),
                },
                (None, Some(dies)) if Instant::now() >= dies => {
                    member.kill();
                    told.killed += 1;
                }
                _ => continue,
            }
            told.work.add(&member.figures());
            *member = match index < SURVIVORS {
                true => troop.start(part(index), chance.next(), None),
                false => mortal(troop, &mut chance, part(index)),
            };
        }
    }
    // Half of them may say goodbye, the others die at once.
    for (index, member) in members.iter_mut().enumerate() {
        if index % 2 == 0 || index < SURVIVORS {
            member.ask_to_end();
        } else {
            member.kill();
            told.killed += 1;
        }
    }
    for member in &mut members {
        let mut ended = None;
        eventually("a client ends as it is asked to", || {
            ended = member.ended();
            ended.is_some()
        });
        let status = ended.expect("it has ended");
        let is_well = status.success() || status.signal() == Some(9);
        assert!(is_well, "a client ended with {status}: {}", member.complaint());
        told.work.add(&member.figures());
    }
    told
}
