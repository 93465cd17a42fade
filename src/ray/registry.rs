//! Who is connected to the raylet socket: the workers and drivers of this node.

use std::collections::VecDeque;
use std::fmt;

use raylet_shard::ids::{ActorId, ClientId, JobId, LeaseId, NodeId, ShardId, WorkerId};
use raylet_shard::sched::{StartToken, WorkerKey};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::ray::proto;
use crate::workers::process::ProcessKey;

/// A registered worker or driver.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub worker: WorkerId,
    /// Its connection.
    pub conn: ClientId,
    /// Ray's WorkerType.
    pub kind: proto::WorkerType,
    /// Its process id.
    pub pid: u32,
    /// Its process, where this node started it.
    pub process: Option<ProcessKey>,
    /// Where its gRPC server listens.
    pub ip_address: String,
    /// The port of its gRPC server; 0 until it is announced.
    pub port: i32,
    /// What it can serve: language and runtime environment.
    pub key: WorkerKey,
    /// The job it works for; nil for a worker that served none yet.
    pub job: JobId,
    /// The start that it answers.
    pub start: Option<StartToken>,
    /// The shard that has it.
    pub shard: ShardId,
    /// The lease that it serves.
    pub lease: Option<LeaseId>,
    /// The actor that it is.
    pub actor: Option<ActorId>,
    /// The node killed it or asked it to go: the cause, told to the GCS when the connection ends.
    pub doomed: Option<Exit>,
    /// Milliseconds since 1970 at which its lease was granted.
    pub granted_at_ms: u64,
    /// The lease with which its owner gave it back as broken, and the name of the task.
    pub broke_in: Option<(LeaseId, String)>,
}

/// Why a worker is gone, as the GCS is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// Ray's WorkerExitType.
    pub kind: proto::WorkerExitType,
    /// The cause in words.
    pub detail: String,
}

impl Member {
    /// True for a driver.
    pub fn is_driver(&self) -> bool {
        self.kind == proto::WorkerType::Driver
    }

    /// True for a worker that spills or restores and does nothing else.
    pub fn is_io(&self) -> bool {
        matches!(self.kind, proto::WorkerType::SpillWorker | proto::WorkerType::RestoreWorker)
    }

    /// What it is, in a word.
    pub fn role(&self) -> &'static str {
        match (self.is_driver(), self.lease, self.actor) {
            (true, ..) => "driver",
            (_, _, Some(_)) => "actor",
            (_, Some(_), None) => "worker",
            (_, None, None) => "idle",
        }
    }

    /// Its address as other processes are told.
    pub fn address(&self, node_id: &[u8]) -> proto::Address {
        proto::Address {
            node_id: node_id.to_vec().into(),
            ip_address: self.ip_address.clone(),
            port: self.port,
            worker_id: self.worker.as_bytes().to_vec().into(),
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, pid, worker, job, shard, ip_address, port, .. } = self;
        write!(f, "{kind:?} pid {pid}, id {worker}, job {job}, shard {shard}, {ip_address}:{port}")?;
        if let Some(lease) = self.lease {
            write!(f, ", lease {lease}")?;
        }
        if let Some(actor) = self.actor {
            write!(f, ", actor {actor}")?;
        }
        if let Some(exit) = &self.doomed {
            write!(f, ", leaving: {}", exit.detail)?;
        }
        Ok(())
    }
}

/// The members by id and by connection. Bounded by the process table and by the connections that the socket accepts.
#[derive(Debug, Default)]
pub struct Registry {
    members: FxHashMap<WorkerId, Member>,
    by_conn: FxHashMap<ClientId, WorkerId>,
}

impl Registry {
    /// Adds a member. False, and nothing added, when its id or its connection is taken.
    pub fn add(&mut self, member: Member) -> bool {
        if self.members.contains_key(&member.worker) || self.by_conn.contains_key(&member.conn) {
            return false;
        }
        self.by_conn.insert(member.conn, member.worker);
        self.members.insert(member.worker, member);
        true
    }

    /// Removes a member.
    pub fn remove(&mut self, worker: &WorkerId) -> Option<Member> {
        let member = self.members.remove(worker)?;
        self.by_conn.remove(&member.conn);
        Some(member)
    }

    /// A member by its id.
    pub fn get(&self, worker: &WorkerId) -> Option<&Member> {
        self.members.get(worker)
    }

    /// A member by its id, to change it.
    pub fn get_mut(&mut self, worker: &WorkerId) -> Option<&mut Member> {
        self.members.get_mut(worker)
    }

    /// The member behind a connection.
    pub fn by_conn(&self, conn: ClientId) -> Option<&Member> {
        self.members.get(self.by_conn.get(&conn)?)
    }

    /// The member behind a connection, to change it.
    pub fn by_conn_mut(&mut self, conn: ClientId) -> Option<&mut Member> {
        self.members.get_mut(self.by_conn.get(&conn)?)
    }

    /// All members.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Workers without drivers.
    pub fn workers(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|m| !m.is_driver())
    }

    /// Drivers.
    pub fn drivers(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|m| m.is_driver())
    }
}

/// Most workers and nodes remembered as dead, so that late requests on their behalf are refused.
const MAX_REMEMBERED_DEAD: usize = 100_000;

/// Workers and nodes that died: their requests come too late.
#[derive(Default)]
pub struct Dead {
    workers: FxHashSet<WorkerId>,
    nodes: FxHashSet<NodeId>,
    order: VecDeque<WorkerId>,
}

impl Dead {
    /// Remembers a worker.
    pub fn add_worker(&mut self, worker: WorkerId) {
        if self.workers.insert(worker) {
            self.order.push_back(worker);
            if self.order.len() > MAX_REMEMBERED_DEAD {
                if let Some(oldest) = self.order.pop_front() {
                    self.workers.remove(&oldest);
                }
            }
        }
    }

    /// Remembers a node.
    pub fn add_node(&mut self, node: NodeId) {
        if self.nodes.len() < MAX_REMEMBERED_DEAD {
            self.nodes.insert(node);
        }
    }

    /// True for a node that died.
    pub fn has_node(&self, node: &NodeId) -> bool {
        self.nodes.contains(node)
    }

    /// True for a worker that died, or whose node did.
    pub fn has(&self, worker: &WorkerId, node: Option<&NodeId>) -> bool {
        self.workers.contains(worker) || node.is_some_and(|node| self.nodes.contains(node))
    }
}
