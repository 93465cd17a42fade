//! One core of the node: feeds events to its shard and carries out the shard's effects.
//!
//! [`core_io::run`](crate::core_io::run) waits for what happens. Connections turn frames into events; [`Core::run`] hands an event
//! to the shard, and each effect becomes a reply on a connection, a message to another core, or one to the control thread.
//! No step of this waits: what would have to wait (touching fresh memory, a full socket) is done beside it and comes back as
//! something that happened.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{ClientId, LeaseId, NowNs, ObjectId, ShardId, Token, WorkerId};
use raylet_shard::sched::{ClassId, Fixed, ResourceId, ResourceSet, SchedEffect, SchedEvent, Scheduler};
use raylet_shard::store::{BankEffect, BankEvent, NodeMemory, ObjectSource, Store, StoreEffect, StoreEvent};
use raylet_tuning::{Segment, Warmer};
use smallvec::SmallVec;

use crate::bridge::{
    shard_of_object, CoreHandle, CoreReport, Load, PeerMessage, Requester, SchedReport, ToControl, ToCore,
};
use crate::bulk::{Lanes, BY_LANE};
use crate::core_io::Io;
use crate::deps::LeaseDeps;
use crate::native::{self, Natives};
use crate::observe::histogram::Recorder;
use crate::observe::metrics::Buckets;
use crate::ray::core_rpc::desk::StayRule;
use crate::ray::core_rpc::{desk, CoreRpc};
use crate::ray::metrics::stock::SIZE_BOUNDS_BYTES;
use crate::ray::plasma_conn::PlasmaClients;
use crate::ray::raylet_conn::RayletClients;
use crate::ray::sightings::Sightings;
use crate::ray::transfer::ToTransfer;
use crate::spill::Spills;

/// How often deadlines are looked at while something waits for one.
const TICK: Duration = Duration::from_millis(10);

/// The same while nothing waits, is queued or leased: a deadline that comes up meanwhile is seen that much later at most.
const IDLE_TICK: Duration = Duration::from_millis(50);

/// The scheduler is told of the time this often when it does not ask for more.
const SLOW_TICK: Duration = Duration::from_millis(200);

/// How late the control thread may hear of what it need not act upon.
const TELL_LATER: Duration = Duration::from_millis(20);

/// Most messages kept for that long.
const TELL_LATER_MAX: usize = 512;

/// Pause before an object is watched that could not be, because too many were.
const WATCH_RETRY: Duration = Duration::from_millis(100);

/// Token of requests whose answer nobody waits for.
pub const SILENT: Token = Token::MAX;

/// What a core is made of.
pub struct CoreParts {
    /// The shard's number.
    pub shard: ShardId,
    /// How many shards there are.
    pub shards: ShardId,
    /// When the node started: the zero of [`NowNs`].
    pub started: Instant,
    /// The memory of all objects.
    pub segments: Arc<[Arc<Segment>]>,
    /// The object table.
    pub memory: Memory,
    /// The lease queues.
    pub sched: Scheduler,
    /// To the control thread.
    pub to_control: flume::Sender<ToControl>,
    /// To each core, by shard; the one to itself is never used.
    pub peers: Vec<CoreHandle>,
    /// The helper that touches memory ahead of demand.
    pub warm: Option<WarmReserve>,
    /// Latencies of this core's operations.
    pub recorder: Recorder,
    /// Files of objects that the memory has no room for.
    pub spills: Spills,
}

/// Memory that is touched ahead of demand: always the part that the bank hands out next. Shard 0, which has the bank, sees to it.
pub struct WarmReserve {
    warmer: Arc<Warmer>,
    reserve_bytes: u64,
    /// Where each segment's untouched part began when the helper was last told.
    told: RefCell<Vec<u64>>,
}

impl WarmReserve {
    /// `reserve_bytes` of the memory that is handed out next are kept touched.
    pub fn new(warmer: Arc<Warmer>, reserve_bytes: u64) -> Self {
        Self { warmer, reserve_bytes, told: RefCell::default() }
    }

    fn follow(&self, memory: &NodeMemory) {
        let layout = memory.bank().layout();
        let mut told = self.told.borrow_mut();
        told.resize(layout.segments().len(), 0);
        for (index, segment) in layout.segments().iter().enumerate() {
            let (first, count) = memory.bank().fresh_spans(index as u32);
            let start = u64::from(first.saturating_sub(segment.first)) * layout.span_bytes();
            if count > 0 && start > told[index] && self.warmer.wanted(index, start..start + self.reserve_bytes) {
                told[index] = start;
            }
        }
    }
}

/// A core while it runs.
pub struct Core {
    /// The shard's number.
    pub shard: ShardId,
    shards: ShardId,
    started: Instant,
    segments: Arc<[Arc<Segment>]>,
    to_control: flume::Sender<ToControl>,
    peers: Vec<CoreHandle>,
    warm: Option<WarmReserve>,
    state: RefCell<State>,
    /// Objects that queued leases wait for.
    pub deps: RefCell<LeaseDeps>,
    /// What it waits for.
    pub io: Io,
    /// Connections to the node manager's port.
    pub rpc: CoreRpc,
    later: RefCell<Vec<ToControl>>,
    transfer: RefCell<Option<flume::Sender<ToTransfer>>>,
    /// Connections to the plasma socket.
    pub plasma: PlasmaClients,
    /// Connections to the raylet socket.
    pub raylet: RayletClients,
    /// What it saw of objects, for their owners.
    pub sightings: Sightings,
    /// Files of objects that the memory has no room for.
    pub spills: Spills,
    /// Connections to other nodes on which objects travel.
    pub lanes: Lanes,
    /// Clients of the native door.
    pub native: Natives,
    /// Latencies of this core's operations.
    pub recorder: RefCell<Recorder>,
    sealed_sizes: [Buckets<{ SIZE_BOUNDS_BYTES.len() + 1 }>; ObjectSource::COUNT],
    next_client: Cell<u64>,
    sched_told_at: Cell<NowNs>,
}

/// The object table of a shard; shard 0 has the bank of spans beside it.
pub enum Memory {
    /// Of shard 0.
    Home(Box<NodeMemory>),
    /// Of every other shard.
    Away(Box<Store>),
}

impl Memory {
    /// The object table itself.
    pub fn store(&self) -> &Store {
        match self {
            Self::Home(memory) => memory.store(),
            Self::Away(store) => store,
        }
    }

    fn next_deadline(&self) -> Option<NowNs> {
        match self {
            Self::Home(memory) => memory.next_deadline(),
            Self::Away(store) => store.next_deadline(),
        }
    }
}

struct State {
    memory: Memory,
    sched: Scheduler,
    work: VecDeque<Work>,
    store_effects: Vec<StoreEffect>,
    sched_effects: Vec<SchedEffect>,
    bank_effects: Vec<BankEffect>,
    running: bool,
}

/// What is still to be handed to a state machine or carried out, in order.
enum Work {
    Store(StoreEvent),
    StoreAnswer(StoreEffect),
    Bank(BankEvent),
    Sched(SchedEvent),
}

impl Core {
    /// Puts a core together, on its own executor.
    pub fn new(parts: CoreParts) -> Rc<Self> {
        Rc::new(Self {
            shard: parts.shard,
            shards: parts.shards,
            started: parts.started,
            segments: parts.segments,
            to_control: parts.to_control,
            peers: parts.peers,
            warm: parts.warm,
            state: RefCell::new(State {
                memory: parts.memory,
                sched: parts.sched,
                work: VecDeque::with_capacity(64),
                store_effects: Vec::with_capacity(64),
                sched_effects: Vec::with_capacity(64),
                bank_effects: Vec::new(),
                running: false,
            }),
            deps: RefCell::default(),
            io: Io::default(),
            rpc: CoreRpc::default(),
            later: RefCell::default(),
            transfer: RefCell::default(),
            plasma: PlasmaClients::default(),
            raylet: RayletClients::default(),
            sightings: Sightings::default(),
            spills: parts.spills,
            lanes: Lanes::default(),
            native: Natives::default(),
            recorder: RefCell::new(parts.recorder),
            sealed_sizes: Default::default(),
            next_client: Cell::new(1),
            sched_told_at: Cell::new(0),
        })
    }

    /// Nanoseconds since the node started.
    pub fn now(&self) -> NowNs {
        self.started.elapsed().as_nanos() as NowNs
    }

    /// A number for a new connection of this core.
    pub fn new_client(&self) -> ClientId {
        let local = self.next_client.get();
        self.next_client.set(local + 1);
        Requester::Shard(self.shard).tag(local)
    }

    /// The shared memory of the node.
    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// Looks at a segment: of the store, or the file of one object. `None` where there is none of this number.
    pub fn with_segment<T>(&self, number: u32, look: impl FnOnce(&Segment) -> T) -> Option<T> {
        match self.segments.get(number as usize) {
            Some(segment) => Some(look(segment)),
            None => self.spills.files().get(number).map(|file| look(&file)),
        }
    }

    /// Tells the control thread. Nothing is lost: the queue has no bound of its own (see [`crate::bridge`]).
    pub fn tell_control(&self, message: ToControl) {
        self.tell_what_is_late();
        // The control thread outlives the cores; at shutdown nobody listens and nothing needs to be heard.
        let _ = self.to_control.send(message);
    }

    /// Tells the control thread what it only has to know: before anything that it has to act upon, and within
    /// [`TELL_LATER`] otherwise, so that what is done here costs no wake-up there. Where there are several cores it is told at
    /// once, because what two cores tell has no order.
    pub fn tell_control_later(&self, message: ToControl) {
        if self.shards > 1 {
            return self.tell_control(message);
        }
        let waiting = {
            let mut later = self.later.borrow_mut();
            later.push(message);
            later.len()
        };
        match waiting {
            1 => self.io.after(TELL_LATER, |core| core.tell_what_is_late()),
            TELL_LATER_MAX => self.tell_what_is_late(),
            _ => {}
        }
    }

    fn tell_what_is_late(&self) {
        let late = std::mem::take(&mut *self.later.borrow_mut());
        if !late.is_empty() {
            // As in `tell_control`.
            let _ = self.to_control.send(ToControl::Batch(late));
        }
    }

    /// Hands an event to the lease queues of a shard.
    pub fn sched_on(self: &Rc<Self>, shard: ShardId, event: SchedEvent) {
        if shard == self.shard {
            self.run(Work::Sched(event));
        } else {
            self.send_peer(shard, PeerMessage::Sched(event));
        }
    }

    /// Hands an event about one object to the shard that has the object, and carries out what follows.
    pub fn store(self: &Rc<Self>, id: &ObjectId, event: StoreEvent) {
        let shard = shard_of_object(id, self.shards);
        if shard == self.shard {
            self.run(Work::Store(event));
        } else {
            self.send_peer(shard, PeerMessage::Store(event));
        }
    }

    /// Hands an event to this core's own store.
    pub fn store_here(self: &Rc<Self>, event: StoreEvent) {
        self.run(Work::Store(event));
    }

    /// Answers a client of the store, after what is being done.
    pub fn answer_later(self: &Rc<Self>, answer: StoreEffect) {
        self.run(Work::StoreAnswer(answer));
    }

    /// Hands an event to this core's own lease queues.
    pub fn sched_here(self: &Rc<Self>, event: SchedEvent) {
        self.run(Work::Sched(event));
    }

    /// A resource of a demand of which the node has less than is asked for.
    pub fn infeasible(&self, demand: &ResourceSet) -> Option<ResourceId> {
        let state = self.state.borrow();
        let lacks = |(id, amount): &(ResourceId, Fixed)| !state.sched.feasible(&ResourceSet::new([(*id, *amount)]));
        demand.iter().find(lacks).map(|(id, _)| id)
    }

    /// True where a request of a class would be served here at once, and, unless it is to stay `anyway`, a desk may keep it.
    pub fn stays(&self, class: ClassId, rule: &StayRule, anyway: bool) -> bool {
        let state = self.state.borrow();
        state.sched.fits(class) && (anyway || state.sched.utilization(&rule.critical) < rule.below)
    }

    /// True for a lease that is queued or granted on this core's shard: whoever asks for it asks again.
    pub fn knows(&self, lease: LeaseId) -> bool {
        self.state.borrow().sched.knows(lease)
    }

    fn weigh(&self, lease: Option<LeaseId>, ids: &[ResourceId]) -> (SmallVec<[(Fixed, Fixed); 8]>, bool) {
        let sched = &self.state.borrow().sched;
        (ids.iter().map(|id| sched.room(*id)).collect(), lease.is_some_and(|lease| sched.waits(lease)))
    }

    /// True where a lease waits for more of a resource than this core can have now.
    pub fn lacks_room_for(&self, lease: LeaseId, demand: &ResourceSet) -> bool {
        let sched = &self.state.borrow().sched;
        sched.waits(lease) && demand.iter().any(|(id, amount)| sched.room(id).1 < amount)
    }

    /// How many cores there are.
    pub fn shards(&self) -> ShardId {
        self.shards
    }

    /// Tells every shard that a client is gone.
    pub fn client_gone(self: &Rc<Self>, client: ClientId) {
        for shard in 0..self.shards {
            if shard != self.shard {
                self.send_peer(shard, PeerMessage::Store(StoreEvent::ClientGone { client }));
            }
        }
        self.run(Work::Store(StoreEvent::ClientGone { client }));
    }

    /// Takes a message of the control thread or of another core. False: stop.
    pub fn message(self: &Rc<Self>, message: ToCore) -> bool {
        match message {
            ToCore::Peer(message) => self.from_peer(message),
            ToCore::Store(event) => self.run(Work::Store(event)),
            ToCore::Sched(event) => {
                self.tell_desk(&event);
                self.run(Work::Sched(event));
            }
            ToCore::Lane(lane, tell) => Lanes::tell(self, lane, tell),
            ToCore::OpenTransfer(queue, used) => {
                *self.transfer.borrow_mut() = Some(queue);
                self.lanes.count_in(used);
            }
            ToCore::OpenRpc(settings) => {
                self.sightings.open(settings.max_num_generator_returns);
                self.rpc.open(&settings);
            }
            ToCore::Answered { call, reply } => CoreRpc::answered(self, call, reply),
            ToCore::Learn(lesson) => self.rpc.desk.borrow_mut().learn(*lesson),
            ToCore::WorkerReady { worker, card } => self.rpc.desk.borrow_mut().worker_ready(worker, *card),
            ToCore::CancelledAhead { lease, ttl } => self.rpc.desk.borrow_mut().cancelled_ahead(lease, ttl),
            ToCore::Cluster(rule) => self.rpc.desk.borrow_mut().set_rule(rule),
            ToCore::Weigh { token, lease, ids } => {
                let (room, waits) = self.weigh(lease, &ids);
                self.tell_control(ToControl::Weighed { token, room, waits });
            }
            ToCore::Native(tell) => tell.deliver(self),
            ToCore::Flush { token } => self.tell_control(ToControl::CaughtUp { token }),
            ToCore::Accepted { socket, stream, near } => self.io.serve(self, socket, stream, near),
            ToCore::FreeOwnedBy { owner } => self.free_owned_by(owner),
            ToCore::Spilled(told) => self.spills.told(self, told),
            ToCore::PutError { id, metadata } => self.plasma.put_error(self, id, metadata),
            ToCore::Send { conn, frame } => self.raylet.send(self, conn, &frame),
            ToCore::Close { conn } => self.raylet.close(conn),
            ToCore::Report { objects, reply } => {
                // A reader that gave up waiting is no loss.
                let _ = reply.send(self.report(objects));
            }
            ToCore::Stop => return false,
        }
        true
    }

    /// What the lease queues are told concerns the desk too.
    fn tell_desk(&self, event: &SchedEvent) {
        let mut desk = self.rpc.desk.borrow_mut();
        match event {
            SchedEvent::OwnerGone { owner } => desk.owner_gone(*owner),
            SchedEvent::OwnerNodeGone { node } => desk.node_gone(*node),
            SchedEvent::ForgetGroup { classes, .. } => classes.iter().for_each(|class| desk.forget(*class)),
            _ => {}
        }
    }

    fn from_peer(self: &Rc<Self>, message: PeerMessage) {
        self.run(match message {
            PeerMessage::SchedAnswer { from, effect } => return desk::settle(self, from, effect),
            // Answers travel in the order of the questions, so whatever was asked before is answered before.
            PeerMessage::Look { from, wait } => return self.send_peer(from, PeerMessage::Looked { wait }),
            PeerMessage::Looked { wait } => return self.raylet.looked(self, wait),
            PeerMessage::Native(message) => return message.deliver(self),
            PeerMessage::Store(event) => Work::Store(event),
            PeerMessage::StoreAnswer(effect) => Work::StoreAnswer(effect),
            PeerMessage::Bank(event) => Work::Bank(event),
            PeerMessage::Sched(event) => Work::Sched(event),
        });
    }

    /// Tells another core.
    pub fn send_peer(&self, shard: ShardId, message: PeerMessage) {
        self.peers[usize::from(shard)].send(ToCore::Peer(message));
    }

    /// Does a piece of work and all that follows from it. What an effect asks for while this runs is queued, so the shard is
    /// never entered twice.
    fn run(self: &Rc<Self>, work: Work) {
        {
            let mut state = self.state.borrow_mut();
            state.work.push_back(work);
            if std::mem::replace(&mut state.running, true) {
                return;
            }
        }
        loop {
            let Some(work) = self.state.borrow_mut().work.pop_front() else {
                break;
            };
            self.step(work);
        }
        self.state.borrow_mut().running = false;
    }

    fn step(self: &Rc<Self>, work: Work) {
        let now = self.now();
        match work {
            Work::Store(event) if self.spills.take_over(self, &event) => {}
            Work::Store(event) => self.memory(|memory, out, others| match memory {
                Memory::Home(memory) => memory.handle(event, now, out, others),
                Memory::Away(store) => store.handle(event, now, out),
            }),
            Work::StoreAnswer(effect) => self.carry_out(effect),
            Work::Bank(event) => self.memory(|memory, out, others| {
                if let Memory::Home(memory) = memory {
                    memory.handle_bank(event, now, out, others);
                }
            }),
            Work::Sched(event) => self.sched(event, now),
        }
    }

    fn memory(self: &Rc<Self>, f: impl FnOnce(&mut Memory, &mut Vec<StoreEffect>, &mut Vec<BankEffect>)) {
        let (mut effects, mut others) = {
            let state = &mut *self.state.borrow_mut();
            let mut effects = std::mem::take(&mut state.store_effects);
            let mut others = std::mem::take(&mut state.bank_effects);
            f(&mut state.memory, &mut effects, &mut others);
            (effects, others)
        };
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        for effect in others.drain(..) {
            self.send_peer(effect.shard, PeerMessage::Store(effect.event));
        }
        let mut state = self.state.borrow_mut();
        state.store_effects = effects;
        state.bank_effects = others;
    }

    fn sched(self: &Rc<Self>, event: SchedEvent, now: NowNs) {
        let mut effects = {
            let mut state = self.state.borrow_mut();
            let mut effects = std::mem::take(&mut state.sched_effects);
            state.sched.handle(event, now, &mut effects);
            effects
        };
        for effect in effects.drain(..) {
            self.carry_out_sched(effect);
        }
        self.state.borrow_mut().sched_effects = effects;
    }

    fn free_owned_by(self: &Rc<Self>, owner: WorkerId) {
        let owned: Vec<ObjectId> = {
            let state = self.state.borrow();
            let store = state.memory.store();
            let here = store.objects().filter(|object| object.owner == owner).map(|object| object.id);
            let on_disk = store.spilled_objects().filter(|object| object.owner == owner).map(|object| object.id);
            here.chain(on_disk).collect()
        };
        self.spills.owner_gone(&owner);
        for id in owned {
            self.run(Work::Store(StoreEvent::Free { id }));
        }
    }

    /// Takes back an object that a client was going to write; the client has been answered already.
    pub fn abort_silently(self: &Rc<Self>, client: ClientId, id: ObjectId) {
        let token = SILENT;
        self.store(&id, StoreEvent::Abort { client, token, id });
    }

    /// The shared memory of the node, for a helper thread.
    pub fn segments_shared(&self) -> Arc<[Arc<Segment>]> {
        self.segments.clone()
    }

    /// What this core is doing.
    pub fn report(&self, objects: bool) -> CoreReport {
        let state = self.state.borrow();
        let store = state.memory.store();
        let segments = 0..self.segments.len() as u32;
        let sched = &state.sched;
        let resources = sched.resources().map(|mut part| {
            part.free += sched.bank_free(part.id);
            part
        });
        let loads = sched.loads().map(|load| Load {
            demand: load.demand.clone(),
            waiting_deps: load.waiting_deps,
            ready: load.ready,
            waiting_worker: load.waiting_worker,
            granted: load.granted,
            backlog: load.backlog,
            infeasible: load.infeasible,
        });
        CoreReport {
            shard: self.shard,
            now: self.now(),
            store: store.stats(),
            touched_bytes: segments.clone().map(|segment| store.touched_bytes(segment)).collect(),
            allocated_bytes: segments.map(|segment| store.allocated_bytes(segment)).collect(),
            sched: SchedReport {
                resources: resources.collect(),
                loads: loads.collect(),
                workers: sched.worker_counts(),
                idle_since: sched.idle_since(),
            },
            sealed_sizes: std::array::from_fn(|source| self.sealed_sizes[source].unreported()),
            connections: self.plasma.len() + self.raylet.len(),
            natives: self.native.count(),
            objects: if objects { store.objects().collect() } else { Vec::new() },
            latencies: self.recorder.borrow().snapshot(),
            spill: self.spills.report(),
            restoring: store.spill_activity().0,
            ring: self.io.ring_use(),
        }
    }

    /// What the object table holds, in words, for a client that asks.
    pub fn debug_text(&self) -> String {
        let stats = self.state.borrow().memory.store().stats();
        format!("shard {}: {stats:#?}", self.shard)
    }

    /// Lets time pass for deadlines, now and until the core ends.
    pub fn tick(self: &Rc<Self>) {
        let now = self.now();
        let (store, sched) = {
            let state = self.state.borrow();
            (state.memory.next_deadline().is_some_and(|at| at <= now), state.sched.wants_tick())
        };
        let slow = now - self.sched_told_at.get() >= SLOW_TICK.as_nanos() as NowNs;
        if let (Some(warm), Memory::Home(memory)) = (&self.warm, &self.state.borrow().memory) {
            warm.follow(memory);
        }
        if self.shards > 1 {
            let (bytes, writing) = {
                let state = self.state.borrow();
                let store = state.memory.store();
                (store.primary_bytes(), store.stats().counters.spilling.objects > 0)
            };
            self.spills.exchange(self, bytes, writing);
        }
        if store {
            self.run(Work::Store(StoreEvent::Tick));
            if self.shard == 0 {
                self.run(Work::Bank(BankEvent::Tick));
            }
        }
        if sched || slow {
            self.sched_told_at.set(now);
            self.run(Work::Sched(SchedEvent::Tick));
        }
        self.io.after(self.pause(), Self::tick);
    }

    /// Time until the next tick. A wake-up costs as much as a put; on a node where nothing waits they would be all it does.
    fn pause(&self) -> Duration {
        let state = self.state.borrow();
        let idle = state.sched.idle_since().is_some() && state.memory.next_deadline().is_none();
        if idle && !state.sched.wants_tick() {
            IDLE_TICK
        } else {
            TICK
        }
    }

    fn carry_out(self: &Rc<Self>, effect: StoreEffect) {
        match effect {
            StoreEffect::Aborted { token: SILENT, .. }
            | StoreEffect::Got { token: SILENT, .. }
            | StoreEffect::Kept { token: SILENT, .. } => {}
            StoreEffect::Created { token: BY_LANE, .. }
            | StoreEffect::Sealed { token: BY_LANE, .. }
            | StoreEffect::Got { token: BY_LANE, .. } => self.lanes.answered(effect),
            StoreEffect::Created { client, token, .. }
            | StoreEffect::Sealed { client, token, .. }
            | StoreEffect::Aborted { client, token, .. }
            | StoreEffect::Got { client, token, .. }
            | StoreEffect::Kept { keeper: client, token, .. }
            | StoreEffect::Deleted { client, token, .. }
            | StoreEffect::Contained { client, token, .. }
            | StoreEffect::CreditGranted { client, token, .. }
            | StoreEffect::Adopted { client, token, .. } => match Requester::of(client) {
                Requester::Shard(shard) if shard != self.shard => {
                    self.send_peer(shard, PeerMessage::StoreAnswer(effect));
                }
                Requester::Transfer => self.tell_transfer(ToTransfer::Store(effect)),
                Requester::Control => self.tell_control_of(&effect),
                _ if native::is_native(token) => native::answer(self, effect),
                _ => self.plasma.answer(self, effect),
            },
            StoreEffect::SpilledAt { token, id, owner, file, index, .. } => {
                let object = self.spills.object(file, index);
                self.tell_transfer(ToTransfer::Spilled { token, id, owner, object });
            }
            StoreEffect::Pinned { token, ok, .. } => match Requester::of(token) {
                Requester::Shard(shard) if shard != self.shard => {
                    self.send_peer(shard, PeerMessage::StoreAnswer(effect));
                }
                Requester::Shard(_) => CoreRpc::pinned(self, token, ok),
                // Neither of them waits for it.
                Requester::Control | Requester::Transfer => {}
            },
            StoreEffect::Watched { token, id } => self.watched(token, id, effect),
            StoreEffect::WatchRefused { token, id } => self.watch_refused(token, id, effect),
            StoreEffect::ObjectSealed { id, owner, data_bytes, metadata_bytes, source } => {
                let size_bytes = data_bytes + metadata_bytes;
                self.sealed_sizes[source as usize].record(&SIZE_BOUNDS_BYTES, size_bytes as f64);
                // One that was restored was never gone.
                if source != ObjectSource::RestoredFromStorage {
                    native::object_sealed(self, id, size_bytes);
                }
                self.sightings.here(self, owner, id, source);
            }
            StoreEffect::ObjectGone { id, owner, data_bytes, metadata_bytes, reason } => {
                native::object_gone(self, id, data_bytes + metadata_bytes, reason);
                self.sightings.gone(self, owner, id, reason);
            }
            StoreEffect::SpansWanted { .. }
            | StoreEffect::SpansUnwanted
            | StoreEffect::SpansReturned { .. }
            | StoreEffect::ReclaimDone { .. }
            | StoreEffect::CreateQueued { .. }
            | StoreEffect::TurnOver { .. } => {
                if let Some(event) = effect.for_bank(self.shard) {
                    self.send_peer(0, PeerMessage::Bank(event));
                }
            }
            StoreEffect::SpillObject { .. }
            | StoreEffect::SpillFileUnneeded { .. }
            | StoreEffect::ObjectSpilled { .. }
            | StoreEffect::RestoreObject { .. }
            | StoreEffect::SpilledLost { .. }
            | StoreEffect::FallbackWanted { .. }
            | StoreEffect::FallbackReturned { .. } => self.spills.carry_out(self, effect),
            StoreEffect::GcWanted => self.tell_control(ToControl::StoreFull),
        }
    }

    /// Tells the thread that moves objects, which is a client of the store and has lanes on the cores.
    pub fn tell_transfer(&self, message: ToTransfer) {
        if let Some(transfer) = &*self.transfer.borrow() {
            // It ends with the node.
            let _ = transfer.send(message);
        }
    }

    /// The control thread asks the object table for nothing but whether objects are here, and to tell when they are.
    fn tell_control_of(&self, effect: &StoreEffect) {
        match *effect {
            StoreEffect::Contained { token, has, .. } => self.tell_control(ToControl::Contained { token, has }),
            StoreEffect::Got { token, id, place, .. } => {
                let size_bytes = place.map(|place| place.data_bytes + place.metadata_bytes);
                self.tell_control(ToControl::Found { token, object: id, size_bytes });
            }
            _ => {}
        }
    }

    /// Whether an object is here and sealed; `None` where another shard would have to be asked.
    pub fn has(&self, id: &ObjectId) -> Option<bool> {
        if shard_of_object(id, self.shards) != self.shard {
            return None;
        }
        Some(self.state.borrow().memory.store().has(id))
    }

    /// Queues work behind what is being done; only for use while [`Core::run`] runs.
    fn later(&self, work: Work) {
        self.state.borrow_mut().work.push_back(work);
    }

    fn watched(self: &Rc<Self>, token: Token, id: ObjectId, effect: StoreEffect) {
        match Requester::of(token) {
            Requester::Shard(shard) if shard != self.shard => {
                self.send_peer(shard, PeerMessage::StoreAnswer(effect));
            }
            Requester::Shard(_) if LeaseDeps::is_dependency(token) => {
                let lease = self.deps.borrow_mut().ready(token);
                if let Some(lease) = lease {
                    native::deps_over(self, lease, Some(id));
                    self.later(Work::Sched(SchedEvent::DepReady { lease, object: id }));
                }
            }
            Requester::Shard(_) if native::is_native(token) => native::watched(self, token, true),
            Requester::Shard(_) => self.raylet.watched(self, token),
            // Neither of them watches anything.
            Requester::Control | Requester::Transfer => {}
        }
    }

    /// Too many requests wait for objects. A lease goes on, because its worker waits for its arguments itself; a wait of a client
    /// asks again until it has ended.
    fn watch_refused(self: &Rc<Self>, token: Token, id: ObjectId, effect: StoreEffect) {
        match Requester::of(token) {
            Requester::Shard(shard) if shard == self.shard && native::is_native(token) => {
                native::watched(self, token, false);
            }
            Requester::Shard(shard) if shard == self.shard && !LeaseDeps::is_dependency(token) => {
                self.io.after(WATCH_RETRY, move |core| {
                    if core.raylet.still_waits(token) {
                        core.store(&id, StoreEvent::Watch { token, id });
                    }
                });
            }
            _ => self.watched(token, id, effect),
        }
    }

    fn carry_out_sched(self: &Rc<Self>, effect: SchedEffect) {
        match effect {
            SchedEffect::ToShard { to, msg } => {
                let from = self.shard;
                self.send_peer(to, PeerMessage::Sched(SchedEvent::FromShard { from, msg }));
            }
            SchedEffect::WatchDeps { lease, deps } => {
                for object in deps {
                    let token = self.deps.borrow_mut().watch(self.shard, lease, object);
                    self.store(&object, StoreEvent::Watch { token, id: object });
                }
                native::wish_deps(self, lease);
            }
            SchedEffect::UnwatchDeps { lease } => {
                let ended = self.deps.borrow_mut().unwatch(lease);
                for (token, object) in ended {
                    self.store(&object, StoreEvent::Unwatch { token, id: object });
                }
                native::deps_over(self, lease, None);
            }
            SchedEffect::Granted { token, .. }
            | SchedEffect::Rejected { token, .. }
            | SchedEffect::Cancelled { token, .. }
            | SchedEffect::Failed { token, .. }
            | SchedEffect::Withdrawn { token, .. } => match Requester::of(token) {
                Requester::Control | Requester::Transfer => self.tell_control(ToControl::Sched(effect)),
                // On the shard of the client itself, as its classes are.
                Requester::Shard(_) if native::is_native(token) => native::settle(self, effect),
                Requester::Shard(shard) if shard == self.shard => desk::settle(self, shard, effect),
                Requester::Shard(shard) => {
                    let from = self.shard;
                    self.send_peer(shard, PeerMessage::SchedAnswer { from, effect });
                }
            },
            SchedEffect::CancelDone { token, .. } if native::is_native(token) => native::settle(self, effect),
            SchedEffect::CancelDone { token: SILENT, .. } => {}
            SchedEffect::LeaseLost { lease, .. } if native::lost(self, &lease) => {}
            SchedEffect::LeaseLost { lease, .. } => {
                self.rpc.desk.borrow_mut().lease_lost(&lease);
                self.tell_control(ToControl::Sched(effect));
            }
            effect => self.tell_control(ToControl::Sched(effect)),
        }
    }
}
