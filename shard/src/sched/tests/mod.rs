//! What a scheduler promises, case by case. The simulator (`sim::sched_sim`) tries the combinations.

mod bundles;
mod grants;
mod shards;
mod workers;

use std::collections::VecDeque;

use smallvec::smallvec;

use super::*;
use crate::ids::{JobId, LeaseId, NodeId, NowNs, ShardId, Token, WorkerId};

const CPU: ResourceId = ResourceId(0);
const GPU: ResourceId = ResourceId(1);
const MS: u64 = 1_000_000;

fn lease(n: u32) -> LeaseId {
    let mut id = [0; LeaseId::LEN];
    id[..4].copy_from_slice(&n.to_le_bytes());
    LeaseId(id)
}

fn worker(n: u32) -> WorkerId {
    let mut id = [1; WorkerId::LEN];
    id[..4].copy_from_slice(&n.to_le_bytes());
    WorkerId(id)
}

fn cpus(n: i64) -> ResourceSet {
    ResourceSet::new([(CPU, Fixed::units(n))])
}

fn request(n: u32, class: u32) -> LeaseRequest {
    LeaseRequest {
        token: Token::from(n),
        lease: lease(n),
        class: ClassId(class),
        owner: worker(1_000_000),
        owner_node: NodeId([1; 28]),
        job: JobId([1; 4]),
        actor: None,
        detached: false,
        root_detached_actor: None,
        is_gpu: false,
        grant_or_reject: false,
        priority: 0,
        deps: smallvec![],
    }
}

/// A node of some shards whose workers come up when told to.
struct Node {
    shards: Vec<Scheduler>,
    links: VecDeque<(ShardId, ShardId, SchedMsg)>,
    now: NowNs,
    /// Effects since they were last taken, without messages between shards.
    out: Vec<SchedEffect>,
    workers: u32,
}

impl Node {
    fn new(shards: ShardId, cpus: i64, change: impl Fn(&mut SchedConfig)) -> Self {
        let config = |shard| {
            let mut config = SchedConfig::new(shard, shards, cpus as u32);
            change(&mut config);
            config
        };
        let shards = (0..shards).map(|shard| Scheduler::new(config(shard))).collect();
        let mut node = Self { shards, links: VecDeque::new(), now: 0, out: Vec::new(), workers: 0 };
        node.everywhere(SchedEvent::AddResource { id: CPU, total: Fixed::units(cpus), kind: ResourceKind::Cpu });
        node
    }

    fn one(cpus: i64) -> Self {
        Self::new(1, cpus, |_| {})
    }

    /// An event for a shard, and the messages it leads to.
    fn to(&mut self, shard: ShardId, event: SchedEvent) {
        self.post(shard, event);
        while let Some((from, to, msg)) = self.links.pop_front() {
            self.post(to, SchedEvent::FromShard { from, msg });
        }
        for shard in &self.shards {
            shard.check().unwrap();
        }
    }

    fn post(&mut self, shard: ShardId, event: SchedEvent) {
        let mut out = Vec::new();
        self.shards[usize::from(shard)].handle(event, self.now, &mut out);
        for effect in out {
            match effect {
                SchedEffect::ToShard { to, msg } => self.links.push_back((shard, to, msg)),
                other => self.out.push(other),
            }
        }
    }

    fn everywhere(&mut self, event: SchedEvent) {
        (0..self.shards.len()).for_each(|shard| self.to(shard as ShardId, event.clone()));
    }

    fn send(&mut self, event: SchedEvent) -> Vec<SchedEffect> {
        self.to(0, event);
        self.take()
    }

    fn take(&mut self) -> Vec<SchedEffect> {
        std::mem::take(&mut self.out)
    }

    fn define(&mut self, class: u32, demand: ResourceSet) {
        self.define_on(0, class, demand);
    }

    fn define_on(&mut self, shard: ShardId, class: u32, demand: ResourceSet) {
        let def = Box::new(ClassDef { demand, worker: WorkerKey::default() });
        self.to(shard, SchedEvent::DefineClass { class: ClassId(class), def });
    }

    fn ask(&mut self, request: LeaseRequest) -> Vec<SchedEffect> {
        self.send(SchedEvent::Request(Box::new(request)))
    }

    /// Starts all processes that were asked for, and keeps the other effects.
    fn bring_up(&mut self) {
        loop {
            let effects = self.take();
            let (starts, rest): (Vec<_>, Vec<_>) =
                effects.into_iter().partition(|effect| matches!(effect, SchedEffect::StartWorker { .. }));
            self.out = rest;
            if starts.is_empty() {
                return;
            }
            for effect in starts {
                let SchedEffect::StartWorker { start, key, job, .. } = effect else {
                    continue;
                };
                self.workers += 1;
                let event = SchedEvent::WorkerReady { worker: worker(self.workers), start: Some(start), key, job };
                self.to(start.shard(), event);
            }
        }
    }

    /// Requests, starts what is needed, and returns who was granted.
    fn granted(&mut self, requests: impl IntoIterator<Item = (ShardId, LeaseRequest)>) -> Vec<(u32, WorkerId)> {
        for (shard, request) in requests {
            self.to(shard, SchedEvent::Request(Box::new(request)));
        }
        self.bring_up();
        grants(&self.take())
    }

    fn free(&self, id: ResourceId) -> Fixed {
        let free =
            |shard: &Scheduler| shard.resources().filter(|part| part.id == id).map(|part| part.free).sum::<Fixed>();
        self.shards.iter().map(free).sum::<Fixed>() + self.shards[0].bank_free(id)
    }

    fn give_back(&mut self, shard: ShardId, n: u32) {
        self.to(shard, SchedEvent::Return { lease: lease(n), fate: WorkerFate::Keep });
    }
}

fn grants(effects: &[SchedEffect]) -> Vec<(u32, WorkerId)> {
    let grant = |effect: &SchedEffect| match effect {
        SchedEffect::Granted { token, worker, .. } => Some((*token as u32, *worker)),
        _ => None,
    };
    effects.iter().filter_map(grant).collect()
}
