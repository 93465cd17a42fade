//! What a core waits for, and the loop in which it does: connections, messages, times.
//!
//! The loop blocks in the core's own io_uring (see [`raylet_transport::uring`]), so that a request costs one system call to
//! come in and one to be answered. It runs as the main future of the core's glommio executor, which places and names the thread
//! and runs what takes long or needs a thread of its own: a *guest* ([`Io::guest`]). While there is one, the loop waits in
//! glommio instead, on an eventfd of the ring; guests are rare, because a wait there costs five system calls.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::future::Future;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::future;
use glommio::io::BufferedFile;
use raylet_shard::ids::ClientId;
use raylet_transport::uring::{Completion, CoreRing, FileOperation, Receive};
use rustc_hash::FxHashMap;

use crate::bridge::{Requester, Socket, ToCore};
use crate::bulk::{Lanes, LANE_KEY};
use crate::core_loop::Core;
use crate::native::Natives;
use crate::near::Near;
use crate::ray::core_rpc::connection::Connection as RpcConnection;
use crate::ray::core_rpc::CoreRpc;
use crate::ray::rpc::server::MAX_CONNECTIONS;
use crate::ray::{plasma_conn, raylet_conn};
use crate::socket::{ConnectionError, Inbound, Writer};

/// Messages of other threads taken before connections and timers get their turn again.
const BATCH: usize = 256;

/// Looks at the rings of native clients between two looks at what other threads sent and at the clock.
const LOOK_ASIDE_TURNS: u32 = 16;

/// Looks at one read of the eventfd. Each leaves a waker behind in glommio 0.9, which counts the loop's wakers in 16 bits and panics
/// beyond; so the read is made to come back before.
const LOOKS_MAX: u32 = 1024;

/// Shortest one. A pause that is over when it is first looked at gives glommio no turn, and the guests none with it.
const GUEST_TURN: Duration = Duration::from_micros(10);

/// Longest wait in glommio for what only the loop itself can see to.
const GUEST_PAUSE: Duration = Duration::from_millis(1);

/// What is to be begun on the ring before the core waits next.
#[derive(Debug)]
pub enum Wish {
    /// Receive from a socket under a key.
    Receive(u64, Rc<OwnedFd>, Receive),
    /// Go on receiving from a socket that is received from once.
    ReceiveAgain(u64),
    /// Tell when the socket of this key has room.
    TellWritable(u64),
    /// Tell when this bell of a native client is rung.
    WatchBell(u64, Rc<OwnedFd>),
    /// Ring a native client's bell.
    RingBell(u64, Rc<OwnedFd>),
    /// Have nothing more to do with the bells of this client.
    ForgetBell(u64),
    /// Do something with a file or a lane's socket; what it came to goes to whoever has this key.
    File(u64, FileOperation),
}

/// The wishes of a core's connections. At most a few for each connection.
#[derive(Debug, Default)]
pub struct Wishes(RefCell<Vec<Wish>>);

impl Wishes {
    /// Asks to be told once when a socket has room.
    pub fn tell_writable(&self, key: u64) {
        self.0.borrow_mut().push(Wish::TellWritable(key));
    }

    /// Takes all wishes.
    pub fn take(&self) -> Vec<Wish> {
        std::mem::take(&mut self.0.borrow_mut())
    }

    fn begin(&self, ring: &mut CoreRing) {
        for wish in self.0.borrow_mut().drain(..) {
            match wish {
                Wish::Receive(key, socket, how) => ring.receive(key, socket, how),
                Wish::ReceiveAgain(key) => ring.receive_again(key),
                Wish::TellWritable(key) => ring.tell_writable(key),
                Wish::WatchBell(key, bell) => ring.watch_bell(key, bell),
                Wish::RingBell(key, bell) => ring.ring_bell(key, bell),
                Wish::ForgetBell(key) => ring.forget_bell(key),
                Wish::File(key, operation) => ring.begin(key, operation),
            }
        }
    }
}

/// A connection of a core.
struct Connection {
    client: ClientId,
    socket: Socket,
    inbound: RefCell<Inbound>,
    writer: Writer,
    /// Of a gRPC connection.
    rpc: Option<Rc<RpcConnection>>,
}

type Action = Box<dyn FnOnce(&Rc<Core>)>;

/// Something that is done at a time.
struct Timer {
    at: Instant,
    /// Tells timers of the same instant apart, in the order in which they were set.
    number: u64,
    action: Action,
}

impl Timer {
    fn key(&self) -> (Instant, u64) {
        (self.at, self.number)
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    /// The earliest is the greatest, which is what a heap gives first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

/// What a core waits for.
#[derive(Default)]
pub struct Io {
    connections: RefCell<FxHashMap<u64, Rc<Connection>>>,
    wishes: Rc<Wishes>,
    /// gRPC connections that told something in this round; they are received from again once what they asked has been looked at.
    read: RefCell<Vec<(u64, Rc<RpcConnection>)>>,
    /// Bounded by what sets them: requests of connections, one each, and the core's own clock.
    timers: RefCell<BinaryHeap<Timer>>,
    timers_set: Cell<u64>,
    guests: Cell<usize>,
    ring: Cell<RingUse>,
}

/// How a core's ring is used.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingUse {
    /// Rounds of the loop since the start: each looks into the ring once.
    pub rounds: u64,
    /// What they found there.
    pub completions: u64,
    /// The most that one round found since this was last asked for.
    pub deepest: usize,
}

impl Io {
    /// How the ring was used. The depth begins anew with each question.
    pub fn ring_use(&self) -> RingUse {
        let used = self.ring.get();
        self.ring.set(RingUse { deepest: 0, ..used });
        used
    }

    fn count_round(&self, depth: usize) {
        let RingUse { rounds, completions, deepest } = self.ring.get();
        let completions = completions + depth as u64;
        self.ring.set(RingUse { rounds: rounds + 1, completions, deepest: deepest.max(depth) });
    }

    /// Does something after a while, on this core.
    pub fn after(&self, pause: Duration, action: impl FnOnce(&Rc<Core>) + 'static) {
        let number = self.timers_set.get();
        self.timers_set.set(number + 1);
        // A pause beyond what an Instant can hold never ends, and neither does the core's life.
        if let Some(at) = Instant::now().checked_add(pause) {
            self.timers.borrow_mut().push(Timer { at, number, action: Box::new(action) });
        }
    }

    /// Runs something that takes long as a task of glommio. It starts at once: no state of the core may be borrowed here.
    pub fn guest(core: &Rc<Core>, task: impl Future<Output = ()> + 'static) {
        core.io.guests.set(core.io.guests.get() + 1);
        let core = core.clone();
        glommio::spawn_local(async move {
            task.await;
            core.io.guests.set(core.io.guests.get() - 1);
        })
        .detach();
    }

    /// Serves a new connection.
    pub fn serve(&self, core: &Rc<Core>, socket: Socket, stream: OwnedFd, near: Near) {
        let client = core.new_client();
        let (key, stream) = (Requester::local(client), Rc::new(stream));
        let writer = Writer::new(stream.clone(), key, self.wishes.clone());
        let mut rpc = None;
        match socket {
            Socket::Raylet => core.raylet.add(client, writer.clone()),
            Socket::Plasma => core.plasma.add(client, writer.clone(), near),
            Socket::Rpc if self.connections.borrow().len() >= MAX_CONNECTIONS => {
                return tracing::warn!(MAX_CONNECTIONS, "too many connections: closing a new one");
            }
            Socket::Rpc => match core.rpc.connect(&stream, writer.clone()) {
                Some(connection) => rpc = Some(connection),
                // The control thread opens the port on the cores before it listens.
                None => return tracing::warn!("a gRPC connection came before the port was open: closing it"),
            },
            Socket::Native if self.connections.borrow().len() >= MAX_CONNECTIONS => {
                return tracing::warn!(MAX_CONNECTIONS, "too many connections: closing a new one");
            }
            Socket::Native if core.native.connect(client, &stream, near) => {}
            Socket::Native => return,
        }
        let connection = Connection { client, socket, inbound: RefCell::default(), writer, rpc };
        self.connections.borrow_mut().insert(key, Rc::new(connection));
        let how = if socket == Socket::Rpc { Receive::Once } else { Receive::Always };
        self.wishes.0.borrow_mut().push(Wish::Receive(key, stream, how));
    }

    fn completed(&self, core: &Rc<Core>, completion: Completion<'_>) {
        match completion {
            Completion::Received { key, bytes } => self.received(core, key, bytes),
            Completion::Ended { key, error: Some(error) } => self.end(core, key, Err(error.into())),
            Completion::Ended { key, error: None } => {
                let ended = self.connection(key).map_or(Ok(()), |c| c.inbound.borrow().close(c.socket.limit_bytes()));
                self.end(core, key, ended);
            }
            Completion::Bell { key } => Natives::bell(core, key),
            Completion::File { key, result } if key & LANE_KEY != 0 => Lanes::completed(core, key, result),
            Completion::File { key, result } => core.spills.completed(core, key, result),
            Completion::Sent { key, result } => Lanes::sent(core, key, result),
            Completion::Released { key, number } => Lanes::released(core, key, number),
            Completion::Writable { key } => {
                if let Some(connection) = self.connection(key) {
                    if connection.socket == Socket::Native {
                        return Natives::writable(core, key);
                    }
                    connection.writer.writable();
                    connection.rpc.iter().for_each(|rpc| rpc.writable());
                }
            }
        }
    }

    fn connection(&self, key: u64) -> Option<Rc<Connection>> {
        self.connections.borrow().get(&key).cloned()
    }

    fn received(&self, core: &Rc<Core>, key: u64, bytes: &[u8]) {
        // Bytes behind the end of a connection are of no interest, but the ring is to see its end.
        let Some(connection) = self.connection(key) else {
            return self.wish(Wish::ReceiveAgain(key));
        };
        if let Some(rpc) = &connection.rpc {
            self.read.borrow_mut().push((key, rpc.clone()));
            return CoreRpc::received(core, rpc, bytes);
        }
        if connection.socket == Socket::Native {
            return Natives::received(core, key, bytes);
        }
        let client = connection.client;
        let fed =
            connection.inbound.borrow_mut().feed(bytes, connection.socket.limit_bytes(), |frame| {
                match connection.socket {
                    Socket::Raylet => raylet_conn::frame(core, client, frame),
                    Socket::Plasma => plasma_conn::frame(core, client, frame),
                    Socket::Rpc | Socket::Native => unreachable!("it has frames of its own"),
                }
            });
        match fed {
            Ok(true) => {}
            Ok(false) => self.end(core, key, Ok(())),
            Err(error) => self.end(core, key, Err(error)),
        }
    }

    /// A connection ends: the ring lets go of its socket when it sees that it is shut.
    fn end(&self, core: &Rc<Core>, key: u64, ended: Result<(), ConnectionError>) {
        let Some(connection) = self.connections.borrow_mut().remove(&key) else {
            return;
        };
        connection.writer.shut();
        connection.rpc.iter().for_each(|rpc| rpc.ended());
        match connection.socket {
            Socket::Raylet => raylet_conn::ended(core, connection.client, ended),
            Socket::Plasma => plasma_conn::ended(core, connection.client, ended),
            Socket::Rpc => {}
            Socket::Native => Natives::ended(core, key),
        }
    }

    /// Something is to be begun on the ring before the core waits next.
    pub fn wish(&self, wish: Wish) {
        self.wishes.0.borrow_mut().push(wish);
    }

    fn has_wishes(&self) -> bool {
        !self.wishes.0.borrow().is_empty()
    }

    /// Receives again from the gRPC connections that told something: at once, or after a pause.
    fn receive_again(&self) {
        for (key, rpc) in self.read.borrow_mut().drain(..) {
            match rpc.pause() {
                None => self.wish(Wish::ReceiveAgain(key)),
                Some(pause) => self.after(pause, move |core| core.io.wish(Wish::ReceiveAgain(key))),
            }
        }
    }

    /// Ends everything that is still going on here.
    fn close(&self) {
        self.connections.borrow_mut().clear();
        self.timers.borrow_mut().clear();
    }

    /// Does what is due.
    fn run_timers(&self, core: &Rc<Core>) {
        if self.timers.borrow().is_empty() {
            return;
        }
        let now = Instant::now();
        loop {
            let due = {
                let mut timers = self.timers.borrow_mut();
                match timers.peek() {
                    Some(timer) if timer.at <= now => timers.pop(),
                    _ => return,
                }
            };
            if let Some(timer) = due {
                (timer.action)(core);
            }
        }
    }

    /// When the next timer is due.
    fn next_timer(&self) -> Option<Instant> {
        self.timers.borrow().peek().map(|timer| timer.at)
    }
}

/// Runs a core until it is told to stop.
///
/// # Errors
/// When the kernel refuses to wait, in words.
pub async fn run(core: &Rc<Core>, mut ring: CoreRing, inbox: flume::Receiver<ToCore>) -> Result<(), String> {
    let mut among_guests = AmongGuests::new().map_err(|e| format!("no eventfd: {e}"))?;
    loop {
        for message in inbox.try_iter().take(BATCH) {
            if !core.message(message) {
                core.io.close();
                return Ok(());
            }
        }
        core.io.run_timers(core);
        core.rpc.end_round(core);
        core.io.receive_again();
        Natives::after_batch(core);
        core.io.wishes.begin(&mut ring);
        let has_guests = core.io.guests.get() > 0;
        let has_checks = core.spills.has_checks();
        // Where something else wants the core, nothing is waited for.
        let once = has_guests || has_checks;
        let wanted = core.native.is_awake() && !look_at_rings(core, &mut ring, &inbox, core.io.next_timer(), once);
        core.rpc.end_round(core);
        core.io.wishes.begin(&mut ring);
        let until = if wanted || has_checks { Some(Instant::now()) } else { core.io.next_timer() };
        let waited = match has_guests {
            false => ring.wait(until, || !inbox.is_empty()),
            true => among_guests.wait(&mut ring, until, || !inbox.is_empty()).await,
        };
        waited.map_err(|e| format!("io_uring_enter: {e}"))?;
        // Now that the disk has its work.
        core.spills.check(core);
        core.io.count_round(ring.depth());
        ring.reap(|completion| core.io.completed(core, completion));
    }
}

/// Serves the rings of native clients while they are busy, and for a while after that: without a system call. Returns when something
/// else wants the core (false), or when all of them were told that the core sleeps (true). `once`: looks once.
fn look_at_rings(
    core: &Rc<Core>,
    ring: &mut CoreRing,
    inbox: &flume::Receiver<ToCore>,
    until: Option<Instant>,
    once: bool,
) -> bool {
    let mut busy_at = Instant::now();
    let mut was_busy = false;
    for turn in 1u32.. {
        if Natives::turn(core) {
            was_busy = true;
            Natives::after_batch(core);
        }
        if once || core.io.has_wishes() || ring.has_news() {
            return false;
        }
        if turn.is_multiple_of(LOOK_ASIDE_TURNS) {
            if !inbox.is_empty() || !core.native.is_awake() {
                return false;
            }
            let now = Instant::now();
            if std::mem::take(&mut was_busy) {
                busy_at = now;
            }
            if until.is_some_and(|until| until <= now) {
                return false;
            }
            if core.native.spin().is_some_and(|spin| now - busy_at >= spin) {
                return Natives::park(core) && !core.io.has_wishes();
            }
        }
        std::hint::spin_loop();
    }
    false
}

/// Waiting while glommio has tasks to run.
struct AmongGuests {
    event: OwnedFd,
    /// A read of the eventfd that has not come back; one at a time, because each takes what it finds.
    signalled: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// How often it was looked at.
    looks: u32,
}

impl AmongGuests {
    fn new() -> std::io::Result<Self> {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        Ok(Self { event, signalled: None, looks: 0 })
    }

    async fn wait(
        &mut self,
        ring: &mut CoreRing,
        until: Option<Instant>,
        ready: impl FnOnce() -> bool,
    ) -> std::io::Result<()> {
        let signalled = match &mut self.signalled {
            Some(signalled) => signalled,
            none => none.insert(Box::pin(read_event(self.event.try_clone()?))),
        };
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_MAX) {
            rustix::io::write(&self.event, &1u64.to_ne_bytes())?;
        }
        let wait = ring.begin_wait_on(&self.event, ready)?;
        let pause = until.map_or(GUEST_PAUSE, |until| until.saturating_duration_since(Instant::now()).min(GUEST_PAUSE));
        let pause = if wait { pause.max(GUEST_TURN) } else { GUEST_TURN };
        let woken = async {
            signalled.as_mut().await;
            true
        };
        let slept = async {
            glommio::timer::sleep(pause).await;
            false
        };
        if future::or(woken, slept).await {
            self.signalled = None;
        }
        ring.end_wait_on()
    }
}

async fn read_event(event: OwnedFd) {
    debug_assert!(event.as_raw_fd() >= 0, "an open descriptor");
    // SAFETY: the descriptor is owned, and given away here, so the file is its only owner.
    let file = unsafe { BufferedFile::from_raw_fd(event.into_raw_fd()) };
    // What it says is only that something happened; the ring tells what.
    let _ = file.read_at(0, 8).await;
    let _ = file.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_waits_among_guests_as_often_as_it_likes() {
        let executor = glommio::LocalExecutorBuilder::default().spawn(|| async {
            let mut ring = CoreRing::new(raylet_transport::uring::Doorbell::new().unwrap()).unwrap();
            let mut among_guests = AmongGuests::new().unwrap();
            // More than glommio has numbers for wakers of one task.
            for _ in 0..40_000 {
                among_guests.wait(&mut ring, Some(Instant::now()), || false).await.unwrap();
                ring.reap(|_| {});
            }
        });
        executor.unwrap().join().unwrap();
    }
}
