//! What a client's process does: whatever chance says, until it is killed, dies on a line, or is asked to end.

use std::collections::VecDeque;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use raylet_transport::client::{
    Client, ClientError, LeaseEnd, LeaseSpec, Object, ObjectWriter, Options, Work, Worker, STATUS_DROPPED,
};
use raylet_transport::fault::{self, Point};
use raylet_transport::ids::{ObjectId, WorkerId};
use raylet_transport::messages::{topic, RefusalCode};

use super::content::{common, content, lengths, verify, Chance};

/// Names the part of a process, and makes it one.
pub const PART: &str = "RAYLET_CHAOS_PART";
/// The node's socket.
pub const SOCKET: &str = "RAYLET_CHAOS_SOCKET";
/// What its chances follow.
pub const SEED: &str = "RAYLET_CHAOS_CLIENT_SEED";
/// Where it writes what it has done.
pub const FIGURES: &str = "RAYLET_CHAOS_FIGURES";
/// Where it dies by itself: the point's number, and how often it passes it before.
pub const FAULT: &str = "RAYLET_CHAOS_FAULT";
/// The class that workers serve.
pub const CLASS: &str = "square";

/// A step that takes longer has hung.
const STEP_S: u64 = 60;
/// Objects of its own that a client keeps.
const OWN_MAX: usize = 24;
/// Objects in use at a time.
const HELD_MAX: usize = 12;

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Puts, gets, and has work done.
    Trader,
    /// Does it.
    Worker,
}

impl Part {
    /// In the environment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trader => "trader",
            Self::Worker => "worker",
        }
    }
}

/// What a client has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Requests, or assignments.
    pub steps: u64,
    /// Objects whose bytes were compared.
    pub objects: u64,
    /// These bytes.
    pub bytes: u64,
}

impl Figures {
    /// What a client wrote; nothing where it had not come to that.
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut numbers = text.split(' ').map_while(|number| number.parse().ok());
        let mut next = || numbers.next().unwrap_or(0);
        Self { steps: next(), objects: next(), bytes: next() }
    }

    /// With those of another.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// True in a process that is to be a client.
pub fn is_one() -> bool {
    std::env::var_os(PART).is_some()
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Is a client. Whatever is wrong is a panic, which the parent finds.
pub fn run() {
    let is_armed = arm();
    let mut chance = Chance(variable(SEED).parse().expect("a number"));
    let (is_over, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    watch(is_over.clone(), steps.clone());
    let options = match is_armed {
        // The lines are those of rings and credit.
        true => Options { ring_lines: Some([64, 1024][chance.below(2) as usize]), ..Options::default() },
        false => options(&mut chance),
    };
    let socket = variable(SOCKET).into();
    let mut life = Life { socket, options, chance, is_over, steps, figures: Figures::default() };
    match variable(PART).as_str() {
        "worker" => life.works(),
        _ => life.trades(),
    }
    life.tell();
}

fn arm() -> bool {
    let Ok(text) = std::env::var(FAULT) else {
        return false;
    };
    let (point, passes) = text.split_once(' ').expect("two numbers");
    let number: u32 = point.parse().expect("a number");
    let point = Point::ALL.into_iter().find(|point| *point as u32 == number).expect("a point");
    fault::arm(point, passes.parse().expect("a number"));
    true
}

/// Notices the end of the input, by which the parent asks for the end, and a step that hangs.
fn watch(is_over: Arc<AtomicBool>, steps: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        // Whatever it is, it is the parent's end.
        let _ = std::io::stdin().read(&mut [0]);
        is_over.store(true, Ordering::Relaxed);
    });
    std::thread::spawn(move || {
        let (mut last, mut seconds) = (0, 0);
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = steps.load(Ordering::Relaxed);
            seconds = if now == last { seconds + 1 } else { 0 };
            last = now;
            if seconds > STEP_S {
                eprintln!("step {now} takes more than {STEP_S} s");
                std::process::exit(3);
            }
        }
    });
}

fn options(chance: &mut Chance) -> Options {
    let default = Options::default();
    match chance.below(8) {
        0 => Options { ring_lines: None, ..default },
        1 => Options { ring_lines: None, credit: false, ..default },
        2 => Options { credit: false, ..default },
        // A small ring is often full.
        3 | 4 => Options { ring_lines: Some(64), ..default },
        5 => Options { spin: Duration::ZERO, ..default },
        _ => default,
    }
}

/// A result, or nothing where it may fail like this.
fn may<T>(result: Result<T, ClientError>, codes: &[RefusalCode]) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) if error.code().is_some_and(|code| codes.contains(&code)) => None,
        Err(error) => panic!("{error}"),
    }
}

struct Life {
    socket: std::path::PathBuf,
    options: Options,
    chance: Chance,
    is_over: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    figures: Figures,
}

/// What a trader has.
struct Goods {
    client: Client,
    /// The name of the next object that is put.
    next: ObjectId,
    own: VecDeque<ObjectId>,
    held: VecDeque<Object>,
    unsealed: Vec<ObjectWriter>,
}

impl Life {
    fn step(&mut self) -> bool {
        self.figures.steps += 1;
        self.steps.store(self.figures.steps, Ordering::Relaxed);
        if self.figures.steps.is_multiple_of(32) {
            self.tell();
        }
        !self.is_over.load(Ordering::Relaxed)
    }

    fn tell(&self) {
        let Figures { steps, objects, bytes } = self.figures;
        std::fs::write(variable(FIGURES), format!("{steps} {objects} {bytes} ")).expect("the figures are written");
    }

    fn connect(&self) -> Client {
        Client::connect_with(&self.socket, self.options.clone()).expect("a connection")
    }

    fn verify(&mut self, object: &Object) {
        verify(object.id(), object.data(), object.metadata());
        self.figures.objects += 1;
        self.figures.bytes += (object.data().len() + object.metadata().len()) as u64;
    }

    fn goods(&self) -> Goods {
        let client = self.connect();
        // One that is given up tells the name of the next.
        let first = client.create(0).expect("room").id();
        let next = ObjectId::of(first.task(), first.index() + 1);
        Goods { client, next, own: VecDeque::new(), held: VecDeque::new(), unsealed: Vec::new() }
    }

    fn trades(&mut self) {
        let mut goods = self.goods();
        while self.step() {
            match self.chance.below(100) {
                0..30 => self.puts(&mut goods),
                30..38 => self.creates(&mut goods),
                38..44 => self.creates_common(&mut goods),
                44..66 => self.gets(&mut goods),
                66..70 => self.waits(&goods),
                70..74 => self.deletes(&mut goods),
                74..77 => self.pins(&goods),
                77..84 => self.holds_a_lease(&goods),
                84..90 => self.has_work_done(&goods),
                90..92 => self.cancels(&goods),
                92..94 => self.listens(&goods),
                94..98 => self.lists(&mut goods),
                98 => drop(goods.client.status().expect("a status")),
                // Goes, with all that it has, and comes again.
                _ => goods = self.goods(),
            }
            self.gives_back(&mut goods);
        }
        while let Some(object) = goods.held.pop_front() {
            self.verify(&object);
        }
    }

    /// Some of what it has, and what is too much.
    fn gives_back(&mut self, goods: &mut Goods) {
        while goods.own.len() > OWN_MAX {
            let id = goods.own.pop_front().expect("there are some");
            // Others delete it too.
            may(goods.client.delete(id), &[RefusalCode::UnknownObject]);
        }
        while goods.held.len() > HELD_MAX {
            let object = goods.held.pop_front().expect("there are some");
            // It was in use all the time, whoever has deleted it.
            self.verify(&object);
        }
        if goods.unsealed.len() > 3 {
            goods.unsealed.remove(0);
        }
        for refusal in goods.client.take_failures() {
            // A lease that was lost is given back all the same.
            assert_eq!(refusal.code, RefusalCode::UnknownLease, "{refusal}");
        }
    }

    fn puts(&mut self, goods: &mut Goods) {
        for _ in 0..=self.chance.below(12) {
            let (data, metadata) = content(goods.next);
            let id = goods.client.put_with_metadata(&data, &metadata).expect("room");
            assert_eq!(id, goods.next, "an object has the next name");
            goods.next = ObjectId::of(id.task(), id.index() + 1);
            goods.own.push_back(id);
        }
    }

    fn creates(&mut self, goods: &mut Goods) {
        let id = goods.next;
        goods.next = ObjectId::of(id.task(), id.index() + 1);
        let writer = goods.client.create(lengths(id).0).expect("room");
        assert_eq!(writer.id(), id, "an object has the next name");
        // It has no metadata. A name of its task that no put comes to has some.
        drop(writer);
        let name = ObjectId::of(id.task(), id.index() | 1 << 31);
        let (data, metadata) = lengths(name);
        let created = goods.client.create_as(name, data, metadata, Some(Duration::from_secs(2)));
        if let Some(writer) = may(created, &[RefusalCode::StoreFull]) {
            self.writes(goods, writer);
        }
    }

    fn creates_common(&mut self, goods: &mut Goods) {
        let id = common(self.chance.next());
        let (data, metadata) = lengths(id);
        let created = goods.client.create_as(id, data, metadata, Some(Duration::from_secs(2)));
        if let Some(writer) = may(created, &[RefusalCode::ObjectExists, RefusalCode::StoreFull]) {
            self.writes(goods, writer);
        }
    }

    fn writes(&mut self, goods: &mut Goods, mut writer: ObjectWriter) {
        let (data, metadata) = content(writer.id());
        let written = if self.chance.one_in(4) { data.len() / 2 } else { data.len() };
        writer[..written].copy_from_slice(&data[..written]);
        writer.metadata_mut().copy_from_slice(&metadata);
        match self.chance.below(8) {
            _ if written < data.len() => goods.unsealed.push(writer),
            0 => goods.unsealed.push(writer),
            1 => drop(writer),
            2 | 3 => drop(writer.seal_unpinned().expect("it is the client's own")),
            _ => goods.own.push_back(writer.seal().expect("it is the client's own")),
        }
    }

    fn gets(&mut self, goods: &mut Goods) {
        let own = goods.own.get(self.chance.below(OWN_MAX as u64) as usize).copied();
        let id = own.filter(|_| self.chance.one_in(2)).unwrap_or_else(|| common(self.chance.next()));
        self.get(goods, id);
    }

    fn get(&mut self, goods: &mut Goods, id: ObjectId) {
        let timeout = Some(Duration::from_millis([0, 1, 20][self.chance.below(3) as usize]));
        let absent = [RefusalCode::UnknownObject, RefusalCode::DeadlinePassed];
        if let Some(object) = may(goods.client.get(id, timeout), &absent) {
            self.verify(&object);
            if self.chance.one_in(2) {
                goods.held.push_back(object);
            }
        }
    }

    fn waits(&mut self, goods: &Goods) {
        let ids: Vec<ObjectId> = (0..1 + self.chance.below(30)).map(common).chain(goods.own.iter().copied()).collect();
        let wanted = self.chance.below(ids.len() as u64 + 1) as usize;
        let timeout = Some(Duration::from_millis(self.chance.below(20)));
        let ready = goods.client.wait(&ids, wanted, timeout).expect("an answer");
        assert!(ready.iter().all(|index| (*index as usize) < ids.len()), "{ready:?}");
    }

    fn deletes(&mut self, goods: &mut Goods) {
        let id = match self.chance.one_in(2) {
            true => goods.own.pop_back().unwrap_or_else(|| common(0)),
            false => common(self.chance.next()),
        };
        may(goods.client.delete(id), &[RefusalCode::UnknownObject]);
    }

    fn pins(&mut self, goods: &Goods) {
        let ids: Vec<ObjectId> = (0..1 + self.chance.below(4)).map(|_| common(self.chance.next())).collect();
        let kept = goods.client.pin(WorkerId::NIL, &ids).expect("an answer");
        assert_eq!(kept.len(), ids.len());
        if self.chance.one_in(2) {
            goods.client.unpin(&ids).expect("an answer");
        }
    }

    fn lease(&mut self, class: &str) -> LeaseSpec {
        let mut spec = LeaseSpec::new(class).resource("CPU", 0.5 * (1 + self.chance.below(3)) as f64);
        spec.wait = Some(Duration::from_millis(self.chance.below(100)));
        spec.priority = self.chance.below(3) as i32;
        if self.chance.one_in(8) {
            spec.deps = vec![common(self.chance.next())];
        }
        spec
    }

    fn holds_a_lease(&mut self, goods: &Goods) {
        let mut spec = self.lease("");
        let is_watched = self.chance.one_in(4);
        spec.unused = is_watched.then_some(Duration::from_millis(5));
        let Some(lease) = may(goods.client.request_lease(&spec), &[RefusalCode::DeadlinePassed]) else {
            return;
        };
        assert!(lease.worker.is_nil());
        std::thread::sleep(Duration::from_micros(self.chance.below(3000)));
        if is_watched && self.chance.one_in(2) {
            let end = lease.wait_done(None).expect("an end");
            assert!(matches!(&end, LeaseEnd::Lost(why) if why.code == RefusalCode::Unused), "{end:?}");
        } else {
            lease.return_().expect("it is sent");
        }
    }

    fn has_work_done(&mut self, goods: &Goods) {
        let (number, object) = (self.chance.below(1 << 20), self.chance.next());
        let payload = [number.to_le_bytes(), object.to_le_bytes()].concat();
        let spec = self.lease(CLASS).payload(payload);
        let Some(lease) = may(goods.client.request_lease(&spec), &[RefusalCode::DeadlinePassed]) else {
            return;
        };
        match lease.wait_done(None).expect("an end") {
            LeaseEnd::Done { status: 0, result } => assert_eq!(result, (number * number).to_le_bytes()),
            LeaseEnd::Done { status, result } => assert_eq!((status, result.len()), (STATUS_DROPPED, 0)),
            LeaseEnd::Lost(why) => assert_eq!(why.code, RefusalCode::WorkerDied, "{why}"),
        }
        if self.chance.one_in(40) {
            lease.return_broken().expect("it is sent");
        }
    }

    fn cancels(&mut self, goods: &Goods) {
        let mut spec = self.lease("");
        spec.deps = vec![common(self.chance.next())];
        spec.wait = Some(Duration::from_millis(50));
        let number = goods.client.next_lease_number();
        let pause = Duration::from_micros(self.chance.below(2000));
        std::thread::scope(|scope| {
            let asks = scope.spawn(|| goods.client.request_lease(&spec));
            std::thread::sleep(pause);
            goods.client.cancel_lease(number).expect("an answer");
            let asked = asks.join().expect("no panic");
            may(asked, &[RefusalCode::DeadlinePassed, RefusalCode::Cancelled]);
        });
    }

    fn listens(&mut self, goods: &Goods) {
        goods.client.subscribe(self.chance.below(u64::from(topic::ALL) + 1) as u32).expect("an answer");
        while goods.client.next_event(Some(Duration::from_micros(100))).is_ok() && self.chance.below(50) > 0 {}
    }

    fn lists(&mut self, goods: &mut Goods) {
        let listed = goods.client.list().expect("a list");
        for _ in 0..4 {
            let at = self.chance.below(listed.len() as u64 + 1) as usize;
            if let Some(entry) = listed.get(at).filter(|entry| entry.sealed) {
                let lengths = lengths(entry.object);
                assert_eq!((entry.data_bytes as usize, entry.metadata_bytes as usize), lengths, "{entry:?}");
                self.get(goods, entry.object);
            }
        }
    }

    fn works(&mut self) {
        let worker = Worker::register_with(self.connect(), CLASS, "").expect("it registers");
        while self.step() {
            match worker.next(Some(Duration::from_millis(100))) {
                Ok(Work::Assigned(work)) => {
                    let word = |at: usize| work.payload[at..at + 8].try_into().map(u64::from_le_bytes);
                    let (number, object) = (word(0).expect("8 bytes"), word(8).expect("8 bytes"));
                    let absent = [RefusalCode::UnknownObject, RefusalCode::DeadlinePassed];
                    let get = || worker.client().get(common(object), Some(Duration::from_millis(object % 3)));
                    let got = match self.chance.one_in(4) {
                        true => work.blocked(get).expect("it is sent"),
                        false => get(),
                    };
                    if let Some(object) = may(got, &absent) {
                        self.verify(&object);
                    }
                    if !self.chance.one_in(20) {
                        work.done(0, (number * number).to_le_bytes()).expect("it is sent");
                    }
                }
                Ok(Work::Revoked(_)) | Err(ClientError::TimedOut) => {}
                Ok(Work::Stop { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
        worker.exit(0, "asked to").expect("it may go");
    }
}
