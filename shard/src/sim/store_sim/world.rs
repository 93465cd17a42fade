//! One world: shards, their bank, the messages between them, and clients who do what the dice say.

mod clients;
mod nearness;
mod post;
mod spills;

use self::nearness::Shortness;
use super::model::{Create, Memory, Model, FIRST_FILE};
use super::Rng;
use crate::ids::{ClientId, NowNs, ObjectId, ShardId, Token, WorkerId};
use crate::store::{
    BankConfig, BankEffect, BankEvent, Layout, NodeMemory, ObjectSource, SegmentSpec, SpanBank, Store, StoreConfig,
    StoreEffect, StoreEvent, MIN_SPAN_BYTES,
};
use post::Post;

const MS: u64 = 1_000_000;

/// Rounds of messages after which every shard knows of a ticket: it goes to the bank, and the bank tells them. What they do
/// in the third is with that in mind.
const ROUNDS_TO_TELL: u64 = 3;

/// Rounds after which a create that gets nothing is in the line, and all know: an answer of the bank that was due, what is free
/// asked for and refused, and the ticket.
const ROUNDS_TO_LINE_UP: u64 = 5 + ROUNDS_TO_TELL;

/// Steps that the end of a world may take.
const FINISH_LIMIT: u64 = 200_000;

/// What happened, for judging whether a run tried what it should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Worlds.
    pub worlds: u64,
    /// Events handled, messages included.
    pub steps: u64,
    /// Objects made.
    pub made: u64,
    /// Of these, in runs of credit.
    pub adopted: u64,
    /// Objects placed on the NUMA node of who writes them.
    pub near: u64,
    /// Objects for which there was no room there.
    pub far: u64,
    /// Objects evicted.
    pub evicted: u64,
    /// Creates that failed.
    pub refused: u64,
    /// Creates that waited for memory and had it before some of other shards.
    pub in_line: u64,
    /// Runs of spans granted.
    pub grants: u64,
    /// Requests to give spans back.
    pub reclaims: u64,
    /// Objects that were written to disk, read back, and lost there.
    pub spilled: u64,
    /// Objects that were read back.
    pub restored: u64,
    /// Objects that could not be read back.
    pub lost: u64,
    /// Objects that another node was sent from their files.
    pub sent: u64,
    /// Full verifications of all books.
    pub checks: u64,
}

impl Report {
    pub(super) fn add(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.steps += other.steps;
        self.made += other.made;
        self.adopted += other.adopted;
        self.near += other.near;
        self.far += other.far;
        self.evicted += other.evicted;
        self.refused += other.refused;
        self.in_line += other.in_line;
        self.grants += other.grants;
        self.reclaims += other.reclaims;
        self.spilled += other.spilled;
        self.restored += other.restored;
        self.lost += other.lost;
        self.sent += other.sent;
        self.checks += other.checks;
    }
}

pub(super) struct World {
    rng: Rng,
    now: NowNs,
    /// Shard 0, with the bank.
    home: NodeMemory,
    /// Shards 1 and up.
    others: Vec<Store>,
    post: Post,
    /// Lines are not dissolved, so that creates are served in order.
    in_order: bool,
    memory: Memory,
    models: Vec<Model>,
    layout: Layout,
    /// By shard: the segment on its own NUMA node.
    homes: Vec<u32>,
    shortness: Shortness,
    retry_interval_ns: u64,
    ids: u64,
    clients: Vec<ClientId>,
    next_client: ClientId,
    next_token: Token,
    next_file: u32,
    max_delay_ns: u64,
    /// Messages arrive when they are due, not some time after.
    prompt: bool,
    check_every: u64,
    /// The answer that the request now handled must get.
    expected: Option<StoreEffect>,
    effects: Vec<StoreEffect>,
    answers: Vec<BankEffect>,
    report: Report,
}

fn object_id(shard: ShardId, number: u64) -> ObjectId {
    let mut bytes = [0; ObjectId::LEN];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..18].copy_from_slice(&shard.to_le_bytes());
    ObjectId(bytes)
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let shards = 1 + rng.below(4) as u16;
        let segments: Vec<_> = (0..=rng.below(2) as u32)
            .map(|numa_node| SegmentSpec { bytes: (6 + rng.below(120)) * MIN_SPAN_BYTES + rng.below(9999), numa_node })
            .collect();
        let homes: Vec<u32> = (0..shards).map(|shard| u32::from(shard) % segments.len() as u32).collect();
        let layout = Layout::new(&segments, MIN_SPAN_BYTES).expect("segments of several spans");
        let mut config = StoreConfig::new(layout.clone(), shards);
        config.full_grace_ns = (1 + rng.below(500)) * MS;
        config.gc_interval_ns = 100 * MS;
        config.fallback = rng.permille(200);
        config.spill = spills::random_config(&mut rng, layout.capacity_bytes());
        if rng.permille(100) {
            config.max_queued_creates = 1 + rng.below(30) as usize;
            config.max_waiters = 1 + rng.below(20) as usize;
        }
        let max_bytes = layout.max_object_bytes();
        let mut bank = BankConfig::new(layout.clone(), shards);
        bank.hold_after_ns = (1 + rng.below(100)) * MS;
        let in_order = rng.permille(700);
        bank.easy_turns_max = if in_order { u32::MAX } else { 1 + rng.below(4) as u32 };
        let bank = SpanBank::new(bank).expect("one shard or more");
        let model = |shard| Model::new(shard, config.fallback, config.full_grace_ns, max_bytes);
        // Small worlds are verified after every step, large ones now and then.
        let (ids, check_every) = if rng.permille(100) { (6, 1) } else { (20 + rng.below(300), 300 + rng.below(500)) };
        let store = |home: &u32| Store::new(StoreConfig { home_segment: *home, ..config.clone() });
        Self {
            home: NodeMemory::new(store(&homes[0]), bank, 0),
            others: homes[1..].iter().map(store).collect(),
            shortness: Shortness::new(layout.segments().iter().map(|segment| segment.count)),
            retry_interval_ns: config.retry_interval_ns,
            homes,
            post: Post::new(shards),
            in_order,
            memory: Memory::new(&layout),
            models: (0..shards).map(model).collect(),
            layout,
            ids,
            clients: (1..=6).collect(),
            next_client: 7,
            next_token: 0,
            next_file: FIRST_FILE,
            max_delay_ns: 1 + rng.below(5) * MS,
            prompt: rng.permille(500),
            check_every,
            expected: None,
            effects: Vec::new(),
            answers: Vec::new(),
            report: Report { worlds: 1, ..Report::default() },
            now: 0,
            rng,
        }
    }

    fn store(&self, shard: ShardId) -> &Store {
        match shard {
            0 => self.home.store(),
            other => &self.others[usize::from(other) - 1],
        }
    }

    fn model(&mut self, shard: ShardId) -> &mut Model {
        &mut self.models[usize::from(shard)]
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        self.next_token
    }

    /// One step: time passes, and a message arrives or a client does something.
    pub(super) fn step(&mut self) -> Result<(), String> {
        let pause = if self.rng.permille(2) { self.rng.below(700 * MS) } else { self.rng.below(MS / 4) };
        self.pass(pause)?;
        self.post.turn_round();
        let shard = self.rng.below(self.models.len() as u64) as ShardId;
        if self.rng.permille(400) && self.arrive(shard)? {
            return self.sample();
        }
        match self.rng.below(1000) {
            0..3 => self.client_gone()?,
            3..30 => self.tick(shard)?,
            30..55 => self.file_ready(shard)?,
            55..60 => self.others_use(shard)?,
            60..130 => self.disk_acts(shard)?,
            _ => self.client_acts(shard)?,
        }
        self.sample()
    }

    fn sample(&mut self) -> Result<(), String> {
        if self.report.steps.is_multiple_of(self.check_every) {
            self.check()?;
        }
        Ok(())
    }

    /// Verifies all books, and that no span is lost.
    fn check(&mut self) -> Result<(), String> {
        self.report.checks += 1;
        self.home.check()?;
        for (index, store) in self.others.iter().enumerate() {
            store.check().map_err(|e| format!("shard {}: {e}", index + 1))?;
        }
        for model in &self.models {
            model.disk.check()?;
            let stats = self.store(model.shard).stats();
            let references: usize = model.objects.values().map(|o| o.refs.len()).sum();
            let runs = stats.counters.credit;
            let left: u64 = model.runs.iter().map(|(_, run)| run.size_bytes).sum();
            if (runs.objects, runs.bytes) != (model.runs.len() as u64, left) {
                return Err(format!("shard {}: {runs:?} of credit, expected {:?}", model.shard, model.runs));
            }
            if stats.counters.kept.objects != model.keeps.len() as u64 {
                let kept = stats.counters.kept;
                return Err(format!("shard {}: {kept:?} are kept, expected {:?}", model.shard, model.keeps));
            }
            if (stats.objects, stats.references) != (model.objects.len() as u64, references as u64) {
                let objects = model.objects.len();
                return Err(format!("shard {}: {stats:?}, expected {objects} objects", model.shard));
            }
        }
        self.check_disks()?;
        let held: u32 = (0..self.models.len()).map(|s| self.store(s as ShardId).stats().held_spans).sum();
        let late_grants = self.post.for_shards().map(|event| match event {
            StoreEvent::SpansGranted { count, .. } => *count,
            _ => 0,
        });
        let late_returns = self.post.for_bank().map(|event| match event {
            BankEvent::Returned { count, .. } => *count,
            _ => 0,
        });
        let bank = self.home.bank().stats();
        let sum = held + late_grants.sum::<u32>() + late_returns.sum::<u32>() + bank.free_spans;
        if sum != bank.spans {
            return Err(format!("{sum} spans accounted for of {}", bank.spans));
        }
        Ok(())
    }

    /// Time passes, and, where messages are prompt, what is due meanwhile arrives at its time.
    fn pass(&mut self, pause_ns: u64) -> Result<(), String> {
        let end = self.now + pause_ns;
        while let Some((at, shard, down)) = self.post.next().filter(|(at, ..)| self.prompt && *at <= end) {
            self.now = self.now.max(at);
            self.post.turn_round();
            if down {
                if let Some(event) = self.post.due_at_shard(shard, self.now) {
                    self.shard_event(shard, event)?;
                }
            } else if let Some(event) = self.post.due_at_bank(shard, self.now) {
                self.bank_event(event)?;
            }
        }
        self.now = end;
        Ok(())
    }

    /// The first message for this shard or from it arrives, if one is due.
    fn arrive(&mut self, shard: ShardId) -> Result<bool, String> {
        if self.rng.permille(500) {
            if let Some(event) = self.post.due_at_shard(shard, self.now) {
                return self.shard_event(shard, event).map(|()| true);
            }
        }
        match self.post.due_at_bank(shard, self.now) {
            Some(event) => self.bank_event(event).map(|()| true),
            None => Ok(false),
        }
    }

    fn tick(&mut self, shard: ShardId) -> Result<(), String> {
        self.shard_event(shard, StoreEvent::Tick)?;
        self.bank_event(BankEvent::Tick)
    }

    /// Lets a shard's store handle an event, and the model follow what comes out.
    fn shard_event(&mut self, shard: ShardId, event: StoreEvent) -> Result<(), String> {
        if let StoreEvent::SpansGranted { first, count, .. } = event {
            self.memory.granted(shard, first, count)?;
            self.model(shard).progress = self.post.round();
        }
        self.note_shortness();
        let mut effects = std::mem::take(&mut self.effects);
        if shard == 0 {
            self.at_home(|home, now, effects, answers| home.handle(event, now, effects, answers), &mut effects)?;
        } else {
            self.others[usize::from(shard) - 1].handle(event, self.now, &mut effects);
        }
        self.after(shard, effects).map_err(|e| format!("{event:?} on shard {shard}: {e}"))
    }

    fn bank_event(&mut self, event: BankEvent) -> Result<(), String> {
        self.note_shortness();
        let mut effects = std::mem::take(&mut self.effects);
        self.at_home(|home, now, effects, answers| home.handle_bank(event, now, effects, answers), &mut effects)?;
        self.after(0, effects).map_err(|e| format!("{event:?}: {e}"))
    }

    /// Lets shard 0 or the bank act, and sends off what the bank tells the others.
    fn at_home(
        &mut self,
        act: impl FnOnce(&mut NodeMemory, NowNs, &mut Vec<StoreEffect>, &mut Vec<BankEffect>),
        effects: &mut Vec<StoreEffect>,
    ) -> Result<(), String> {
        let mut answers = std::mem::take(&mut self.answers);
        act(&mut self.home, self.now, effects, &mut answers);
        for BankEffect { shard, event } in answers.drain(..) {
            let delay = self.rng.below(self.max_delay_ns);
            self.post.tell_shard(shard, event, self.now + delay);
        }
        self.answers = answers;
        Ok(())
    }

    fn after(&mut self, shard: ShardId, mut effects: Vec<StoreEffect>) -> Result<(), String> {
        self.report.steps += 1;
        self.note_shortness();
        for effect in effects.drain(..) {
            self.check_nearness(shard, &effect)?;
            if let Some(event) = effect.for_bank(shard) {
                if let StoreEffect::SpansReturned { first, count } = effect {
                    self.memory.returned(shard, first, count)?;
                }
                if let StoreEffect::CreateQueued { since } = effect {
                    let round = self.post.round();
                    let creates = self.models[usize::from(shard)].creates.values_mut();
                    creates.filter(|create| create.asked_ns == since).for_each(|create| {
                        create.lined.get_or_insert(round);
                    });
                }
                let delay = self.rng.below(self.max_delay_ns);
                self.post.tell_bank(shard, event, self.now + delay);
            } else if self.expected == Some(effect) {
                self.expected = None;
            } else {
                self.check_order(shard, &effect)?;
                let now = self.now;
                self.models[usize::from(shard)].follow(&effect, &mut self.memory, self.home.bank(), now)?;
            }
        }
        self.effects = effects;
        Ok(())
    }

    /// Memory goes to the creates of the whole node in order: no create has it before one that waits, on whatever shard, and that took its
    /// place in the line so much earlier that all could know; and whoever waits where nothing moves has its place.
    fn check_order(&mut self, shard: ShardId, effect: &StoreEffect) -> Result<(), String> {
        let StoreEffect::Created { token, result: Ok(place), .. } = *effect else {
            return Ok(());
        };
        let made = self.models[usize::from(shard)].creates.get(&token).filter(|made| !made.immediate);
        let Some(made) = made.filter(|_| self.in_order && place.segment < FIRST_FILE) else {
            return Ok(());
        };
        let mut others_wait = false;
        for model in &self.models {
            let has_file = |waiting: &Token| model.files_wanted.iter().any(|(_, token, _)| token == waiting);
            let waiting = model.creates.iter().filter(|(t, create)| **t != token && !create.immediate && !has_file(t));
            for (_, waiting) in waiting {
                let known = match waiting.lined {
                    Some(lined) => lined + ROUNDS_TO_TELL,
                    None => waiting.round.max(model.progress) + ROUNDS_TO_LINE_UP,
                };
                if known <= made.round {
                    let round = self.post.round();
                    return Err(format!("in round {round} {made:?} overtakes {waiting:?} of shard {}", model.shard));
                }
                others_wait |= model.shard != shard;
            }
        }
        let has_waited = made.round + ROUNDS_TO_LINE_UP <= self.post.round();
        self.models[usize::from(shard)].progress = self.post.round();
        self.report.in_line += u64::from(others_wait && has_waited);
        Ok(())
    }
}

/// The end of a world.
impl World {
    /// Everybody leaves and everything is freed: nothing may be left. Then each shard can have the largest object there is.
    pub(super) fn finish(mut self) -> Result<Report, String> {
        for client in std::mem::take(&mut self.clients) {
            self.drop_client(client)?;
        }
        for shard in 0..self.models.len() as ShardId {
            self.shard_event(shard, StoreEvent::OthersUse { bytes: 0, spilling: false })?;
            while !self.models[usize::from(shard)].files_wanted.is_empty() {
                self.file_ready(shard)?;
            }
            self.free_all(shard)?;
            for (id, tokens) in std::mem::take(&mut self.model(shard).watches) {
                for token in tokens {
                    self.shard_event(shard, StoreEvent::Unwatch { token, id })?;
                }
            }
        }
        self.settle()?;
        self.disks_are_empty()?;
        for shard in 0..self.models.len() as ShardId {
            let stats = self.store(shard).stats();
            let left = (stats.objects, stats.references, stats.queued_creates, stats.waiters, stats.allocated_bytes);
            if left != (0, 0, 0, 0, 0) || stats.clients != 0 {
                return Err(format!("shard {shard} is not empty at the end: {stats:?}"));
            }
        }
        for shard in 0..self.models.len() as ShardId {
            self.largest_fits(shard)?;
        }
        self.check()?;
        let bank = self.home.bank().stats();
        (self.report.grants, self.report.reclaims) = (bank.grants, bank.reclaims);
        for model in &self.models {
            self.report.made += model.made;
            self.report.adopted += model.adopted;
            self.report.evicted += model.evicted;
            self.report.refused += model.refused;
            self.report.spilled += model.disk.spilled;
            self.report.restored += model.disk.restored;
            self.report.lost += model.disk.lost;
            self.report.sent += model.disk.sent;
        }
        Ok(self.report)
    }

    fn largest_fits(&mut self, shard: ShardId) -> Result<(), String> {
        let (client, id, token) = (self.next_client, object_id(shard, self.ids), self.token());
        self.next_client += 1;
        let data_bytes = self.layout.max_object_bytes();
        let (metadata_bytes, mutable, immediate, asked_ns) = (0, false, false, self.now);
        let (near, round, lined) = (self.homes[usize::from(shard)], self.post.round(), None);
        let create =
            Create { client, id, data_bytes, metadata_bytes, mutable, immediate, near, asked_ns, round, lined };
        self.model(shard).creates.insert(token, create);
        let (owner, source) = (WorkerId::NIL, ObjectSource::ReceivedFromRemote);
        let try_immediately = false;
        let event = StoreEvent::Create {
            client,
            token,
            id,
            data_bytes,
            metadata_bytes,
            owner,
            source,
            mutable,
            try_immediately,
            near: None,
        };
        self.shard_event(shard, event)?;
        self.settle()?;
        let place = self.models[usize::from(shard)].objects.get(&id).map(|o| o.place);
        if place.is_none_or(|place| place.segment >= FIRST_FILE) {
            return Err(format!("{data_bytes} bytes do not fit into empty memory: {:?}", self.store(shard).stats()));
        }
        self.abort(shard, client, id)?;
        self.drop_client(client)?;
        self.settle()
    }

    /// Delivers messages until nobody has anything to say.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..FINISH_LIMIT {
            let late = self.post.is_under_way();
            let waiting = (0..self.models.len()).any(|s| self.store(s as ShardId).stats().queued_creates > 0);
            if !late && !waiting {
                return Ok(());
            }
            self.pass(MS)?;
            for shard in 0..self.models.len() as ShardId {
                while self.arrive(shard)? {}
                self.tick(shard)?;
            }
        }
        Err(format!("messages or creates are left after {FINISH_LIMIT} rounds"))
    }
}
