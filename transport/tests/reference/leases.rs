//! The reference node's leases: one resource, one queue, workers that have registered.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use raylet_transport::ids::{ObjectId, WorkerId};
use raylet_transport::messages::*;
use raylet_transport::server::{Outcome, ReplyTo};

use super::Node;

pub struct Leases {
    /// CPU that is free.
    pub free: u64,
    pub draining: bool,
    classes: Vec<(String, u64)>,
    pub queue: VecDeque<Queued>,
    /// By owner and the owner's number.
    pub granted: BTreeMap<(u64, u32), Grant>,
    next_assignment: u64,
}

/// A registered worker.
pub struct Service {
    class: String,
    address: String,
    assignment: Option<u64>,
}

pub struct Queued {
    client: u64,
    to: ReplyTo,
    lease: u32,
    class: u32,
    priority: i32,
    deadline: Option<Instant>,
    unused: Option<Duration>,
    deps: Vec<ObjectId>,
    payload: Vec<u8>,
}

pub struct Grant {
    cpu: u64,
    worker: Option<u64>,
    assignment: u64,
    unused: Option<Duration>,
    last_use: Instant,
}

fn duration(ns: u64) -> Option<Duration> {
    (ns != FOREVER_NS).then(|| Duration::from_nanos(ns.min(1 << 60)))
}

impl Leases {
    pub fn new(cpus: u64) -> Self {
        Self {
            free: cpus,
            draining: false,
            classes: Vec::new(),
            queue: VecDeque::new(),
            granted: BTreeMap::new(),
            next_assignment: 1,
        }
    }
}

impl Node {
    pub fn lease_request(&mut self, client: u64, to: ReplyTo, request: Request<'_>) -> Outcome {
        match request {
            Request::DefineClass(define) => {
                let cpu: u64 = define.resources.iter().map(|part| part.amount.to_native()).sum();
                let definition = (define.name.as_str().to_owned(), cpu);
                let known = self.leases.classes.iter().position(|class| *class == definition);
                let class = known.unwrap_or_else(|| {
                    self.leases.classes.push(definition);
                    self.leases.classes.len() - 1
                });
                Ok(self.peer(client).connection.reply(to, &ClassDefined { class: class as u32 })?)
            }
            Request::RequestLease(request) => self.queue_lease(client, to, request),
            Request::ReturnLease(back) => {
                let lease = back.lease.to_native();
                if !self.end_lease(client, lease) {
                    return Err(Refusal::new(RefusalCode::UnknownLease, format!("lease {lease}")).into());
                }
                self.grant_leases();
                Ok(self.peer(client).connection.done(to, 1)?)
            }
            Request::CancelLease(cancel) => {
                let lease = cancel.lease.to_native();
                let at = self.leases.queue.iter().position(|q| (q.client, q.lease) == (client, lease));
                let queued = at.and_then(|at| self.leases.queue.remove(at));
                let cancelled = queued.is_some();
                if let Some(queued) = queued {
                    self.peer(client).connection.refuse(queued.to, &Refusal::new(RefusalCode::Cancelled, ""))?;
                }
                Ok(self.peer(client).connection.reply(to, &CancelDone { lease, cancelled })?)
            }
            Request::KeepLease(keep) => {
                let grant = self.leases.granted.get_mut(&(client, keep.lease.to_native()));
                grant.into_iter().for_each(|grant| grant.last_use = Instant::now());
                Ok(())
            }
            Request::RegisterWorker(register) => {
                let (class, address) = (register.class_name.as_str().to_owned(), register.address.as_str().to_owned());
                let peer = self.peer(client);
                peer.serves = Some(Service { class, address, assignment: None });
                let worker = peer.worker;
                peer.connection.reply(to, &Registered { worker })?;
                self.grant_leases();
                Ok(())
            }
            Request::WorkDone(done) => {
                let assignment = done.assignment.to_native();
                let (status, result) = (done.status.to_native(), done.result.as_slice().to_vec());
                let found = self.leases.granted.iter_mut().find(|(_, grant)| grant.assignment == assignment);
                let Some(((owner, lease), grant)) = found else { return Ok(()) };
                grant.last_use = Instant::now();
                let (owner, lease) = (*owner, *lease);
                self.peer(owner).connection.event(&LeaseDone { lease, status, result }, true)?;
                Ok(())
            }
            Request::WorkerExit(_) => {
                self.peer(client).serves = None;
                Ok(self.peer(client).connection.done(to, 0)?)
            }
            // CPU lent by who waits, and taken again.
            Request::Blocked(blocked) => self.lend(blocked.assignment.to_native(), true),
            Request::Unblocked(unblocked) => self.lend(unblocked.assignment.to_native(), false),
            other => Err(Refusal::new(RefusalCode::Unsupported, other.name()).into()),
        }
    }

    fn lend(&mut self, assignment: u64, lends: bool) -> Outcome {
        if let Some(grant) = self.leases.granted.values().find(|grant| grant.assignment == assignment) {
            match lends {
                true => self.leases.free += grant.cpu,
                false => self.leases.free = self.leases.free.saturating_sub(grant.cpu),
            }
        }
        self.grant_leases();
        Ok(())
    }

    fn queue_lease(&mut self, client: u64, to: ReplyTo, request: &rkyv::Archived<RequestLease>) -> Outcome {
        let (lease, class) = (request.lease.to_native(), request.class.to_native());
        let is_known = self.leases.granted.contains_key(&(client, lease))
            || self.leases.queue.iter().any(|queued| (queued.client, queued.lease) == (client, lease));
        let refusal = match self.leases.classes.get(class as usize) {
            _ if self.leases.draining => Some((RefusalCode::Draining, String::new())),
            _ if is_known => Some((RefusalCode::DuplicateLease, format!("lease {lease}"))),
            None => Some((RefusalCode::UnknownClass, format!("class {class}"))),
            Some((_, cpu)) if *cpu > self.config.cpus => {
                Some((RefusalCode::Infeasible, format!("{cpu} of {} asked for", self.config.cpus)))
            }
            Some(_) => None,
        };
        if let Some((code, detail)) = refusal {
            return Err(Refusal::new(code, detail).into());
        }
        let queued = Queued {
            client,
            to,
            lease,
            class,
            priority: request.priority.to_native(),
            deadline: duration(request.wait_ns.to_native()).map(|wait| Instant::now() + wait),
            unused: duration(request.unused_ns.to_native()),
            deps: request.deps.iter().map(ObjectId::from).collect(),
            payload: request.payload.as_slice().to_vec(),
        };
        let at = self.leases.queue.iter().position(|other| other.priority < queued.priority);
        self.leases.queue.insert(at.unwrap_or(self.leases.queue.len()), queued);
        self.grant_leases();
        Ok(())
    }

    /// Grants what can be, in order, and ends what has waited or lain idle too long.
    pub fn grant_leases(&mut self) {
        let queue = std::mem::take(&mut self.leases.queue);
        for queued in queue {
            if !self.grant(&queued) {
                self.leases.queue.push_back(queued);
            }
        }
    }

    /// Deadlines, looked at in every turn.
    pub fn lease_deadlines(&mut self) {
        let now = Instant::now();
        let (late, queue): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.leases.queue).into_iter().partition(|q| q.deadline.is_some_and(|d| now >= d));
        self.leases.queue = queue.into();
        for queued in late {
            let refusal = Refusal::new(RefusalCode::DeadlinePassed, format!("lease {}", queued.lease));
            let _ = self.peer(queued.client).connection.refuse(queued.to, &refusal);
        }
        let is_unused = |grant: &Grant| grant.unused.is_some_and(|unused| now - grant.last_use >= unused);
        let unused: Vec<(u64, u32)> =
            self.leases.granted.iter().filter(|(_, grant)| is_unused(grant)).map(|(key, _)| *key).collect();
        for (client, lease) in unused {
            self.end_lease(client, lease);
            let lost = LeaseLost { lease, code: RefusalCode::Unused.to_wire(), detail: String::new() };
            let _ = self.peer(client).connection.event(&lost, true);
            self.grant_leases();
        }
    }

    fn grant(&mut self, queued: &Queued) -> bool {
        let (class, cpu) = self.leases.classes[queued.class as usize].clone();
        let has_deps = queued.deps.iter().all(|id| self.store.objects.get(id).is_some_and(|entry| entry.sealed));
        if cpu > self.leases.free || !has_deps {
            return false;
        }
        let is_idle = |service: &Service| service.class == class && service.assignment.is_none();
        let worker = self.peers.iter().find(|(_, peer)| peer.serves.as_ref().is_some_and(is_idle)).map(|(id, _)| *id);
        if worker.is_none() && !class.is_empty() {
            return false;
        }
        let assignment = self.leases.next_assignment;
        self.leases.next_assignment += 1;
        let (mut name, mut address) = (WorkerId::NIL, String::new());
        if let Some(worker) = worker {
            let owner = self.peer(queued.client).worker;
            let peer = self.peer(worker);
            name = peer.worker;
            let service = peer.serves.as_mut().unwrap();
            service.assignment = Some(assignment);
            address = service.address.clone();
            let assigned = Assigned { assignment, owner, allocation: Vec::new(), payload: queued.payload.clone() };
            let _ = peer.connection.event(&assigned, true);
        }
        self.leases.free -= cpu;
        let grant = Grant { cpu, worker, assignment, unused: queued.unused, last_use: Instant::now() };
        self.leases.granted.insert((queued.client, queued.lease), grant);
        let granted = Granted { lease: queued.lease, worker: name, allocation: Vec::new(), address };
        if self.peer(queued.client).connection.reply(queued.to, &granted).is_err() {
            self.gone.push_back(queued.client);
        }
        true
    }

    fn end_lease(&mut self, client: u64, lease: u32) -> bool {
        let Some(grant) = self.leases.granted.remove(&(client, lease)) else {
            return false;
        };
        self.leases.free += grant.cpu;
        if let Some(peer) = grant.worker.and_then(|worker| self.peers.get_mut(&worker)) {
            peer.serves.as_mut().into_iter().for_each(|service| service.assignment = None);
            let _ = peer.connection.event(&Revoked { assignment: grant.assignment }, true);
        }
        true
    }

    /// A client is gone: its leases end, and those that it served are lost.
    pub fn forget_leases(&mut self, client: u64) {
        self.leases.queue.retain(|queued| queued.client != client);
        let own: Vec<u32> = self.leases.granted.keys().filter(|(owner, _)| *owner == client).map(|(_, n)| *n).collect();
        for lease in own {
            self.end_lease(client, lease);
        }
        let served: Vec<(u64, u32)> =
            self.leases.granted.iter().filter(|(_, grant)| grant.worker == Some(client)).map(|(key, _)| *key).collect();
        for (owner, lease) in served {
            self.end_lease(owner, lease);
            let lost = LeaseLost { lease, code: RefusalCode::WorkerDied.to_wire(), detail: String::new() };
            let _ = self.peer(owner).connection.event(&lost, true);
        }
        self.grant_leases();
    }
}
