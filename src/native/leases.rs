//! Leases of native clients: asked for on the client's own shard, which knows its classes.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{JobId, LeaseId, NodeId, WorkerId};
use raylet_shard::sched::{
    Allocation, CancelReason, ClassId, FailReason, Fixed, LeaseRequest, RejectReason, SchedEffect, SchedEvent,
    WorkerFate,
};
use raylet_transport::messages::{
    AllocatedResource, Archived, CancelDone, CancelLease, ClassDefined, DefineClass, Granted, KeepLease, LeaseLost,
    Refusal, RefusalCode, Request, RequestLease, ReturnLease, FOREVER_NS,
};
use raylet_transport::server::{Outcome, ReplyTo};

use super::classes::Defined;
use super::client::{Class, Client, Lease, Stage};
use super::control::NativeAsk;
use super::door::{ask, deadline, refused};
use super::pending::{Op, Request as Asked};
use super::{object, pins, spills};
use crate::bridge::Requester;
use crate::core_loop::{Core, SILENT};

pub fn request(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, request: Request<'_>) -> Outcome {
    match request {
        Request::RequestLease(wanted) => ask_for(core, client, to, wanted),
        Request::ReturnLease(back) => give_back(core, client, to, back),
        Request::CancelLease(cancel) => give_up(core, client, to, cancel),
        Request::KeepLease(keep) => {
            used(client, keep);
            Ok(())
        }
        Request::DefineClass(define) => define_class(core, client, to, define),
        other => Err(refused(RefusalCode::Unsupported, other.name())),
    }
}

fn define_class(core: &Core, client: &Client, to: ReplyTo, define: &Archived<DefineClass>) -> Outcome {
    let resources = define.resources.iter().map(|part| (part.name.as_str().to_owned(), part.amount.to_native()));
    let (name, resources) = (define.name.as_str().to_owned(), resources.collect());
    ask(core, NativeAsk::DefineClass { client: client.id, to, name, resources })
}

/// The control thread has defined a class, and the shard knows it.
pub fn class_defined(core: &Rc<Core>, client: u64, to: ReplyTo, defined: Result<Defined, Refusal>) {
    let Some(client) = core.native.client(client) else {
        return;
    };
    match defined {
        Ok(Defined { id, demand, names, is_gpu }) => {
            let infeasible = core.infeasible(&demand).map(|resource| {
                let name = names.iter().find(|(id, _)| *id == resource).map_or("", |(_, name)| name);
                format!("more of {name:?} than the node has").into_boxed_str()
            });
            let amount = |(name, amount): (&String, Fixed)| (name.as_str().into(), amount);
            let by_id = |id| names.iter().find(|(known, _)| *known == id).map(|(_, name)| name);
            let named = demand.iter().filter_map(|(id, amount)| Some((by_id(id)?, amount)));
            let wanted = Arc::new(named.map(amount).collect());
            let class = Class { id, demand, wanted, infeasible, names: names.into(), is_gpu };
            client.classes.borrow_mut().insert(id.0, class);
            client.reply(core, to, &ClassDefined { class: id.0 });
        }
        Err(refusal) => client.refuse(core, to, &refusal),
    }
}

fn ask_for(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, wanted: &Archived<RequestLease>) -> Outcome {
    let (number, class_number) = (wanted.lease.to_native(), wanted.class.to_native());
    let (class, is_gpu) = match check(client, wanted) {
        Err(refusal) if refusal.code == RefusalCode::Infeasible => {
            return spills::ask_elsewhere(core, client, to, class_number, refusal);
        }
        checked => checked?,
    };
    let token = core.native.note(core, client, to, Op::Lease(number));
    let lease = Lease {
        class: class_number,
        unused_ns: wanted.unused_ns.to_native(),
        payload: wanted.payload.as_slice().to_vec(),
        elsewhere: None,
        stage: Stage::Queued,
    };
    client.leases.borrow_mut().insert(number, lease);
    let request = LeaseRequest {
        token,
        lease: client.lease_id(number),
        class,
        owner: client.worker,
        owner_node: NodeId::NIL,
        job: JobId::NIL,
        actor: None,
        detached: false,
        root_detached_actor: None,
        is_gpu,
        grant_or_reject: false,
        priority: wanted.priority.to_native(),
        deps: wanted.deps.iter().map(|id| object(id.into())).collect(),
    };
    core.sched_here(SchedEvent::Request(Box::new(request)));
    let wait_ns = wanted.wait_ns.to_native();
    if core.native.pending.borrow().waits(token) {
        spills::look_later(core);
        if wait_ns != FOREVER_NS {
            deadline(core, token, wait_ns);
        }
    }
    Ok(())
}

/// What is wrong with a request for a lease; else its class, and whether that is of GPUs.
fn check(client: &Client, wanted: &Archived<RequestLease>) -> Result<(ClassId, bool), Refusal> {
    let number = wanted.lease.to_native();
    let leases = client.leases.borrow();
    let connection = client.connection.borrow();
    let limits = connection.limits();
    let classes = client.classes.borrow();
    let refuse = |code, detail: String| Err(Refusal::new(code, detail));
    let Some(class) = classes.get(&wanted.class.to_native()) else {
        return refuse(RefusalCode::UnknownClass, format!("class {}", wanted.class.to_native()));
    };
    if let Some(why) = &class.infeasible {
        return refuse(RefusalCode::Infeasible, why.to_string());
    }
    if leases.contains_key(&number) {
        return refuse(RefusalCode::DuplicateLease, format!("lease {number}"));
    }
    if leases.len() >= limits.leases as usize {
        return refuse(RefusalCode::LimitReached, format!("{} leases are queued or held", leases.len()));
    }
    if wanted.payload.len() > limits.payload_bytes as usize {
        let got = wanted.payload.len();
        let detail = format!("a payload of {got} bytes, at most {} are allowed", limits.payload_bytes);
        return refuse(RefusalCode::TooLarge, detail);
    }
    if wanted.deps.len() > limits.objects as usize {
        let got = wanted.deps.len();
        return refuse(RefusalCode::TooLarge, format!("{got} objects, at most {} are allowed", limits.objects));
    }
    Ok((class.id, class.is_gpu))
}

fn give_back(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, back: &Archived<ReturnLease>) -> Outcome {
    let number = back.lease.to_native();
    let fate = if back.broken { WorkerFate::Disconnect } else { WorkerFate::Keep };
    if !end(core, client, number, fate) {
        return Err(refused(RefusalCode::UnknownLease, format!("lease {number}")));
    }
    client.done(core, to, 1);
    Ok(())
}

/// Ends a granted lease: its worker hears of it before it can get another. False: it is not granted.
fn end(core: &Rc<Core>, client: &Rc<Client>, number: u32, fate: WorkerFate) -> bool {
    let granted = {
        let mut leases = client.leases.borrow_mut();
        match leases.get(&number).map(|lease| &lease.stage) {
            Some(Stage::Granted { assignment, worker, .. }) => {
                let granted = (*assignment, *worker);
                leases.remove(&number);
                granted
            }
            _ => return false,
        }
    };
    let (assignment, worker) = granted;
    if !worker.is_nil() {
        core.native.assignments.borrow_mut().remove(&assignment);
        super::workers::revoke(core, &worker, assignment);
        pins::returned(core, worker);
    }
    core.sched_here(SchedEvent::Return { lease: client.lease_id(number), fate });
    true
}

fn give_up(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, cancel: &Archived<CancelLease>) -> Outcome {
    let number = cancel.lease.to_native();
    let token = core.native.note(core, client, to, Op::Cancel(number));
    core.sched_here(SchedEvent::Cancel { token, lease: client.lease_id(number) });
    Ok(())
}

/// The time that a request was to wait is over.
pub fn cancel_late(core: &Rc<Core>, client: &Rc<Client>, number: u32) {
    core.sched_here(SchedEvent::Cancel { token: SILENT, lease: client.lease_id(number) });
}

fn used(client: &Client, keep: &Archived<KeepLease>) {
    if let Some(Lease { stage: Stage::Granted { used, .. }, .. }) =
        client.leases.borrow_mut().get_mut(&keep.lease.to_native())
    {
        *used = Instant::now();
    }
}

/// What the lease queues decided of a request of this core.
pub fn settle(core: &Rc<Core>, effect: SchedEffect) {
    let token = match &effect {
        SchedEffect::Granted { token, .. }
        | SchedEffect::Rejected { token, .. }
        | SchedEffect::Cancelled { token, .. }
        | SchedEffect::Failed { token, .. }
        | SchedEffect::Withdrawn { token, .. }
        | SchedEffect::CancelDone { token, .. } => *token,
        _ => return,
    };
    let Some(asked) = core.native.pending.borrow_mut().take(token) else {
        return unclaimed(core, effect);
    };
    match (asked.op, effect) {
        (Op::Lease(number), SchedEffect::Granted { worker, allocation, .. }) => {
            granted(core, &asked, number, worker, &allocation);
        }
        (Op::Lease(number), effect) => {
            let lease = asked.client.leases.borrow_mut().remove(&number);
            let is_taken_back = matches!(effect, SchedEffect::Cancelled { .. }) && !asked.late;
            let elsewhere = lease.and_then(|lease| lease.elsewhere).filter(|_| is_taken_back);
            let refusal = elsewhere.unwrap_or_else(|| refusal_of(&effect, asked.late, number));
            asked.client.refuse(core, asked.to, &refusal);
        }
        (Op::Cancel(lease), SchedEffect::CancelDone { cancelled, .. }) => {
            asked.client.reply(core, asked.to, &CancelDone { lease, cancelled });
        }
        (op, effect) => tracing::error!(?op, ?effect, "an answer does not fit its request"),
    }
}

/// A grant for a client that is gone.
fn unclaimed(core: &Rc<Core>, effect: SchedEffect) {
    if let SchedEffect::Granted { lease, .. } = effect {
        core.sched_here(SchedEvent::Return { lease, fate: WorkerFate::Keep });
    }
}

fn granted(core: &Rc<Core>, asked: &Asked, number: u32, worker: WorkerId, allocation: &Allocation) {
    let client = &asked.client;
    let native = &core.native;
    let count = native.last_assignment.get() + 1;
    native.last_assignment.set(count);
    let assignment = Requester::Shard(core.shard).tag(count);
    let (class, unused_ns, payload) = {
        let mut leases = client.leases.borrow_mut();
        let Some(lease) = leases.get_mut(&number) else {
            return;
        };
        lease.stage = Stage::Granted { assignment, worker, used: Instant::now() };
        (lease.class, lease.unused_ns, std::mem::take(&mut lease.payload))
    };
    let classes = client.classes.borrow();
    let class = classes.get(&class);
    let names = class.map(|class| class.names.clone());
    let allocation = names.map_or_else(Vec::new, |names| instances(allocation, &names));
    let mut address = String::new();
    if !worker.is_nil() {
        native.assignments.borrow_mut().insert(assignment, (client.clone(), number));
        address = native.addresses.borrow().get(&worker).map_or_else(String::new, |known| known.to_string());
        pins::leased(core, worker, class);
        super::workers::assign(core, &worker, assignment, client.worker, &allocation, payload);
    }
    let worker = raylet_transport::ids::WorkerId(worker.0);
    client.reply(core, asked.to, &Granted { lease: number, worker, allocation, address });
    if unused_ns != FOREVER_NS {
        watch_use(core, client, number, assignment, unused_ns);
    }
}

fn instances(allocation: &Allocation, names: &[(raylet_shard::sched::ResourceId, String)]) -> Vec<AllocatedResource> {
    let counted = allocation.0.iter().filter(|part| !part.instances.is_empty() && !part.mirror);
    let told = counted.map(|part| AllocatedResource {
        name: names.iter().find(|(id, _)| *id == part.id).map_or_else(String::new, |(_, name)| name.clone()),
        // Amounts of leases are never negative.
        amount: part.amount.0.unsigned_abs(),
        instances: part.instances.iter().map(|(index, _)| *index).collect(),
    });
    told.collect()
}

/// Takes a grant back that is not used for so long.
fn watch_use(core: &Rc<Core>, client: &Rc<Client>, number: u32, assignment: u64, unused_ns: u64) {
    let client = client.clone();
    let limit = Duration::from_nanos(unused_ns);
    let since = match client.leases.borrow().get(&number).map(|lease| &lease.stage) {
        Some(Stage::Granted { assignment: own, used, .. }) if *own == assignment => *used,
        _ => return,
    };
    let idle = since.elapsed();
    if let Some(left) = limit.checked_sub(idle).filter(|left| !left.is_zero()) {
        return core.io.after(left, move |core| watch_use(core, &client, number, assignment, unused_ns));
    }
    end(core, &client, number, WorkerFate::Keep);
    let detail = format!("unused for {idle:?}");
    client.event(core, &LeaseLost { lease: number, code: RefusalCode::Unused.to_wire(), detail }, true);
}

fn refusal_of(effect: &SchedEffect, late: bool, number: u32) -> Refusal {
    let (code, detail) = match effect {
        SchedEffect::Rejected { why: RejectReason::Draining, .. } => (RefusalCode::Draining, String::new()),
        SchedEffect::Cancelled { why: CancelReason::Asked, .. } if late => (RefusalCode::DeadlinePassed, String::new()),
        SchedEffect::Failed { why: FailReason::QueueFull, .. } => (RefusalCode::QueueFull, String::new()),
        SchedEffect::Failed { why: FailReason::UnknownClass, .. } => (RefusalCode::UnknownClass, String::new()),
        SchedEffect::Failed { why: FailReason::WorkerStart { attempts }, .. } => {
            (RefusalCode::WorkerStart, format!("{attempts} tries; "))
        }
        SchedEffect::Failed { why: FailReason::RuntimeEnv(why), .. } => (RefusalCode::WorkerStart, format!("{why}; ")),
        SchedEffect::Cancelled { .. } => (RefusalCode::Cancelled, String::new()),
        _ => (RefusalCode::Internal, String::new()),
    };
    Refusal::new(code, format!("{detail}lease {number}"))
}

/// A granted lease of a client of this core ended with its worker. False: it is none of ours.
pub fn lost(core: &Rc<Core>, lease: &LeaseId) -> bool {
    let (owner, number) = lease.0.split_at(WorkerId::LEN);
    let owner = WorkerId::from_slice(owner).unwrap_or_default();
    let known = core.native.shared().and_then(|shared| shared.client_of(&owner));
    let Some(client) = known else {
        return false;
    };
    let number = u32::from_le_bytes(number.try_into().unwrap_or_default());
    if let Some(client) = core.native.client(client) {
        let ended = client.leases.borrow_mut().remove(&number);
        if let Some(Lease { stage: Stage::Granted { assignment, .. }, .. }) = ended {
            core.native.assignments.borrow_mut().remove(&assignment);
        }
        let lost = LeaseLost { lease: number, code: RefusalCode::WorkerDied.to_wire(), detail: String::new() };
        client.event(core, &lost, true);
    }
    true
}

/// A client is gone: its leases end.
pub fn forget(core: &Rc<Core>, client: &Rc<Client>) {
    let numbers: Vec<u32> = client.leases.borrow().keys().copied().collect();
    for number in numbers {
        if !end(core, client, number, WorkerFate::Keep) {
            cancel_late(core, client, number);
        }
    }
    client.leases.borrow_mut().clear();
}
