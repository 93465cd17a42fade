//! A small node for tests: one thread, one segment, and the semantics of the native door without a shard behind it. It is driven by
//! `raylet_transport::server::Connection` as the node's cores are, so both sides of the transport are tested against each other.

mod leases;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raylet_transport::credit::Ledger;
use raylet_transport::fds;
use raylet_transport::ids::{NodeId, TaskId, WorkerId};
use raylet_transport::messages::*;
use raylet_transport::ring::{Doorbell, Record};
use raylet_transport::server::{
    check_hello, Connection, ConnectionError, Failure, Holds, Outcome, ReplyTo, DEFAULT_LIMITS,
};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

/// Size of the node's only segment.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// How the node behaves.
#[derive(Clone)]
pub struct Config {
    pub limits: Limits,
    pub cpus: u64,
    /// Never sleeps.
    pub busy_poll: bool,
    /// Answers nothing but the greeting.
    pub mute: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { limits: DEFAULT_LIMITS, cpus: 2 * RESOURCE_STEPS, busy_poll: false, mute: false }
    }
}

/// What the node counts, for tests to look at from outside.
#[derive(Default)]
pub struct Counters {
    pub connections: AtomicU64,
    pub used_bytes: AtomicU64,
    pub held: AtomicU64,
    pub leased: AtomicU64,
    pub pinned: AtomicU64,
    pub unsealed: AtomicU64,
    pub requests: AtomicU64,
    pub bells: AtomicU64,
    pub broken_rings: AtomicU64,
}

/// A running node; ends when it is dropped.
pub struct Reference {
    pub path: PathBuf,
    pub counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    wake: Arc<Doorbell>,
    thread: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Reference {
    pub fn start(config: Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (counters, stop) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
        let wake = Arc::new(Doorbell::new().unwrap());
        let mut node = Node::new(config, counters.clone());
        let (stopped, woken) = (stop.clone(), wake.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                node.turn(&listener, &woken);
            }
        });
        Self { path, counters, stop, wake, thread: Some(thread), _directory: directory }
    }

    /// Waits until the counters are as expected.
    pub fn settles(&self, what: &str, is_so: impl Fn(&Counters) -> bool) {
        let limit = Instant::now() + Duration::from_secs(60);
        while !is_so(&self.counters) {
            assert!(Instant::now() < limit, "it never came to this: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.ring();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// One client.
pub struct Peer {
    pub connection: Connection,
    pub socket: UnixStream,
    pub worker: WorkerId,
    pub holds: Holds,
    pub credit: Ledger,
    pub topics: u32,
    /// It was told why, and nothing more is read from it.
    closed: bool,
    /// Where a registered worker is reached, and what it serves.
    pub serves: Option<leases::Service>,
}

pub struct Node {
    config: Config,
    counters: Arc<Counters>,
    segment: OwnedFd,
    peers: BTreeMap<u64, Peer>,
    next_client: u64,
    pub store: store::Store,
    pub leases: leases::Leases,
    gone: VecDeque<u64>,
    record: Record,
}

impl Node {
    fn new(config: Config, counters: Arc<Counters>) -> Self {
        let segment = rustix::fs::memfd_create("segment", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&segment, SEGMENT_BYTES).unwrap();
        let leases = leases::Leases::new(config.cpus);
        Self {
            config,
            counters,
            segment,
            peers: BTreeMap::new(),
            next_client: 1,
            store: store::Store::default(),
            leases,
            gone: VecDeque::new(),
            record: Record::default(),
        }
    }

    /// Does what there is to do, and sleeps if it is nothing.
    fn turn(&mut self, listener: &UnixListener, wake: &Doorbell) {
        let clients: Vec<u64> = self.peers.keys().copied().collect();
        let mut busy = false;
        for client in &clients {
            busy |= self.serve_ring(*client);
            busy |= self.serve(*client, Connection::next_from_socket) > 0;
        }
        self.expire();
        self.lease_deadlines();
        self.after_batch();
        let may_sleep = !busy && !self.config.busy_poll && self.announce_sleep();
        self.wait(listener, wake, may_sleep);
        self.publish_counters();
    }

    /// Sleeps until something comes; `false`: only looks.
    fn wait(&mut self, listener: &UnixListener, wake: &Doorbell, may_sleep: bool) {
        let mut fds = vec![
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
        ];
        let mut whose = Vec::new();
        for (client, peer) in &self.peers {
            let wants_in = if peer.connection.wants_bytes() { PollFlags::IN } else { PollFlags::empty() };
            let wants_out = if peer.connection.unsent().bytes.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::from_borrowed_fd(peer.socket.as_fd(), wants_in | wants_out));
            whose.push((*client, false));
            if let Some(bell) = peer.connection.own_bell() {
                fds.push(PollFd::from_borrowed_fd(bell, PollFlags::IN));
                whose.push((*client, true));
            }
        }
        let limit_ns = if may_sleep { 2_000_000 } else { 0 };
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: limit_ns })).unwrap();
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[0] {
            self.accept(listener);
        }
        for ((client, is_bell), _) in whose.iter().zip(&ready[2..]).filter(|(_, ready)| **ready) {
            if *is_bell {
                self.counters.bells.fetch_add(1, Ordering::Relaxed);
                self.peers.get_mut(client).into_iter().for_each(|peer| peer.connection.awake());
            } else {
                self.serve_socket(*client);
            }
        }
        self.after_batch();
    }

    fn accept(&mut self, listener: &UnixListener) {
        let (socket, _) = listener.accept().unwrap();
        let client = self.next_client;
        self.next_client += 1;
        let limits = &self.config.limits;
        let mut worker = WorkerId([0; 28]);
        worker.0[..8].copy_from_slice(&client.to_le_bytes());
        let peer = Peer {
            connection: Connection::new(limits.clone()),
            socket,
            worker,
            holds: Holds::default(),
            credit: Ledger::new(limits.credit_bytes, limits.credit_runs),
            topics: 0,
            closed: false,
            serves: None,
        };
        self.peers.insert(client, peer);
    }

    fn serve_socket(&mut self, client: u64) {
        let mut bytes = vec![0; 64 << 10];
        let mut descriptors = VecDeque::new();
        let Some(peer) = self.peers.get_mut(&client) else { return };
        match fds::receive(&peer.socket, &mut bytes, &mut descriptors) {
            Ok(Some(0)) | Err(_) => return self.gone.push_back(client),
            Ok(Some(got)) => peer.connection.on_bytes(&bytes[..got]),
            Ok(None) => {}
        }
        self.serve(client, Connection::next_from_socket);
    }

    /// `true`: there was something.
    fn serve_ring(&mut self, client: u64) -> bool {
        self.serve(client, Connection::next_from_ring) > 0
    }

    fn serve(
        &mut self,
        client: u64,
        next: fn(&mut Connection, &mut Record) -> Result<Option<ReplyTo>, ConnectionError>,
    ) -> usize {
        let mut record = std::mem::take(&mut self.record);
        let mut served = 0;
        while let Some(peer) = self.peers.get_mut(&client).filter(|peer| !peer.closed) {
            let outcome = match next(&mut peer.connection, &mut record) {
                Ok(None) => break,
                Ok(Some(_)) if self.config.mute && record.head().message_type > OpenRing::TYPE => Ok(()),
                Ok(Some(to)) => self.handle(client, to, &record),
                Err(error) => Err(error),
            };
            served += 1;
            if let Err(error) = outcome {
                self.close(client, &error);
                break;
            }
        }
        self.counters.requests.fetch_add(served as u64, Ordering::Relaxed);
        self.record = record;
        served
    }

    fn close(&mut self, client: u64, error: &ConnectionError) {
        if matches!(error, ConnectionError::Ring(_)) {
            self.counters.broken_rings.fetch_add(1, Ordering::Relaxed);
        }
        let code =
            if matches!(error, ConnectionError::Ring(_)) { RefusalCode::RingBroken } else { RefusalCode::Malformed };
        if let Some(peer) = self.peers.get_mut(&client) {
            peer.closed = true;
            peer.connection.close_with(&Refusal::new(code, error.to_string()));
            flush(peer);
        }
        self.gone.push_back(client);
    }

    fn handle(&mut self, client: u64, to: ReplyTo, record: &Record) -> Result<(), ConnectionError> {
        let outcome = match Request::read(record.head(), record.body()) {
            Ok(request) => self.request(client, to, request),
            Err(error) => return self.peer(client).connection.refuse_frame(to, &error),
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Failure::Broken(error)) => Err(error),
            Err(Failure::Refused(refusal)) => self.peer(client).connection.refuse(to, &refusal),
        }
    }

    fn request(&mut self, client: u64, to: ReplyTo, request: Request<'_>) -> Outcome {
        match request {
            Request::Hello(hello) => self.hello(client, to, hello),
            Request::OpenRing(open) => match self.peer(client).connection.open_ring(to, open)? {
                Ok(()) => Ok(()),
                Err(refusal) => Err(refusal.into()),
            },
            Request::NewPutTask(_) => {
                self.next_client += 1;
                let task = put_task(self.next_client);
                Ok(self.peer(client).connection.reply(to, &PutTask { task })?)
            }
            Request::Subscribe(subscribe) => {
                self.peer(client).topics = subscribe.topics.to_native();
                Ok(self.peer(client).connection.done(to, 0)?)
            }
            Request::GetStatus(_) => {
                let status = self.status();
                Ok(self.peer(client).connection.reply(to, &status)?)
            }
            Request::Drain(drain) => {
                self.leases.draining = drain.on;
                let what = if drain.on { node_event::DRAINING } else { node_event::RESUMED };
                self.tell(topic::NODE, &NodeEvent { what, detail: drain.detail.as_str().to_owned() });
                Ok(self.peer(client).connection.done(to, 0)?)
            }
            Request::DefineClass(_)
            | Request::RequestLease(_)
            | Request::ReturnLease(_)
            | Request::CancelLease(_)
            | Request::KeepLease(_)
            | Request::RegisterWorker(_)
            | Request::WorkDone(_)
            | Request::WorkerExit(_)
            | Request::Blocked(_)
            | Request::Unblocked(_) => self.lease_request(client, to, request),
            _ => self.object_request(client, to, request),
        }
    }

    fn hello(&mut self, client: u64, to: ReplyTo, hello: &rkyv::Archived<Hello>) -> Outcome {
        let version = check_hello(hello)?;
        let limits = self.config.limits.clone();
        let segments = vec![SegmentInfo { segment: 7, size_bytes: SEGMENT_BYTES }];
        let descriptor = self.segment.try_clone().unwrap();
        let peer = self.peer(client);
        peer.connection.greet();
        let welcome = Welcome {
            magic: HELLO_MAGIC,
            capabilities: capability::ALL,
            client,
            version,
            node: NodeId([9; 28]),
            worker: peer.worker,
            put_task: put_task(client),
            limits,
            segments,
        };
        Ok(peer.connection.reply_with(to, &welcome, vec![descriptor])?)
    }

    fn status(&self) -> Status {
        Status {
            capacity_bytes: SEGMENT_BYTES,
            used_bytes: self.store.used_bytes,
            objects: self.store.objects.len() as u64,
            uptime_ns: 0,
            clients: self.peers.len() as u32,
            workers: self.peers.values().filter(|peer| peer.serves.is_some()).count() as u32,
            leases: self.leases.granted.len() as u32,
            leases_queued: self.leases.queue.len() as u32,
            shards: 1,
            draining: self.leases.draining,
            version: "reference".to_owned(),
            resources: vec![ResourceState {
                name: "CPU".to_owned(),
                total: self.config.cpus,
                free: self.leases.free as i64,
            }],
        }
    }

    pub fn peer(&mut self, client: u64) -> &mut Peer {
        self.peers.get_mut(&client).expect("a client that is served is there")
    }

    /// An event for all who asked for its topic.
    pub fn tell<M: Message>(&mut self, topic: u32, event: &M) {
        for (client, peer) in &mut self.peers {
            if peer.topics & topic != 0 && peer.connection.event(event, false).is_err() {
                self.gone.push_back(*client);
            }
        }
    }

    /// Bells, sockets, and those who are gone.
    fn after_batch(&mut self) {
        for (client, peer) in &mut self.peers {
            if peer.connection.must_ring() {
                Doorbell::from_fd(peer.connection.peer_bell().unwrap().try_clone_to_owned().unwrap()).ring();
            }
            if !flush(peer) {
                self.gone.push_back(*client);
            }
        }
        while let Some(client) = self.gone.pop_front() {
            // What is in the ring is complete, and done before the client is forgotten.
            self.serve_ring(client);
            if let Some(peer) = self.peers.remove(&client) {
                self.forget_objects(client, peer);
                self.forget_leases(client);
            }
        }
    }

    fn announce_sleep(&mut self) -> bool {
        let mut may_sleep = true;
        for (client, peer) in &mut self.peers {
            match peer.connection.announce_sleep() {
                Ok(is_idle) => may_sleep &= is_idle,
                Err(_) => self.gone.push_back(*client),
            }
        }
        may_sleep
    }

    fn publish_counters(&self) {
        let counters = &self.counters;
        let credit: u64 = self.peers.values().map(|peer| peer.credit.granted_bytes()).sum();
        counters.connections.store(self.peers.len() as u64, Ordering::Relaxed);
        counters.used_bytes.store(self.store.used_bytes + credit, Ordering::Relaxed);
        counters.held.store(self.peers.values().map(|peer| peer.holds.len() as u64).sum(), Ordering::Relaxed);
        counters.leased.store(self.config.cpus - self.leases.free, Ordering::Relaxed);
        counters
            .pinned
            .store(self.store.objects.values().filter(|o| o.pinned_by.is_some()).count() as u64, Ordering::Relaxed);
        counters.unsealed.store(self.store.objects.values().filter(|o| !o.sealed).count() as u64, Ordering::Relaxed);
    }
}

fn put_task(n: u64) -> TaskId {
    let mut task = [0x55; 24];
    task[..8].copy_from_slice(&n.to_le_bytes());
    TaskId(task)
}

/// Sends what the socket takes. `false`: the client is gone.
fn flush(peer: &mut Peer) -> bool {
    loop {
        let unsent = peer.connection.unsent();
        if unsent.bytes.is_empty() {
            return true;
        }
        let descriptors: Vec<_> = unsent.descriptors.iter().map(AsFd::as_fd).collect();
        match fds::send(&peer.socket, unsent.bytes, &descriptors) {
            Ok(Some(sent)) => peer.connection.sent(sent),
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}
