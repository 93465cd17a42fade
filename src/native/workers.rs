//! Native workers: clients that serve leases. What a lease's core has to say to its worker, and the worker to it.

use std::rc::Rc;
use std::time::Instant;

use raylet_shard::ids::{ClientId, ShardId, WorkerId};
use raylet_shard::sched::SchedEvent;
use raylet_transport::ids as wire;
use raylet_transport::messages::{
    AllocatedResource, Archived, Assigned, LeaseDone, Refusal, RefusalCode, RegisterWorker, Registered, Request,
    Revoked, Stop, WorkDone, WorkerExit,
};
use raylet_transport::server::{Outcome, ReplyTo};

use super::client::{Client, Lease, Stage};
use super::control::NativeAsk;
use super::door::{ask, refused};
use super::siblings::NativePeer;
use crate::bridge::{PeerMessage, Requester, ToControl};
use crate::core_loop::Core;

pub fn request(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, request: Request<'_>) -> Outcome {
    if !client.serves.get() && !matches!(request, Request::RegisterWorker(_)) {
        return Err(refused(RefusalCode::NotWorker, request.name()));
    }
    match request {
        Request::RegisterWorker(register) => register_one(core, client, to, register),
        Request::WorkDone(done) => done_one(core, client, done),
        Request::WorkerExit(exit) => exit_one(core, client, to, exit),
        Request::Blocked(blocked) => waits(core, client, blocked.assignment.to_native(), true),
        Request::Unblocked(unblocked) => waits(core, client, unblocked.assignment.to_native(), false),
        other => Err(refused(RefusalCode::Unsupported, other.name())),
    }
}

fn register_one(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, register: &Archived<RegisterWorker>) -> Outcome {
    if client.serves.get() {
        return Err(refused(RefusalCode::DuplicateLease, "the connection is a worker already"));
    }
    if register.class_name.is_empty() {
        return Err(refused(
            RefusalCode::NotWorker,
            "leases without a class name need no worker: register with a name",
        ));
    }
    client.serves.set(true);
    ask(
        core,
        NativeAsk::RegisterWorker {
            client: client.id,
            to,
            worker: client.worker,
            pid: client.pid,
            start: register.start_token.to_native(),
            class_name: register.class_name.as_str().to_owned(),
            address: register.address.as_str().to_owned(),
        },
    )
}

fn exit_one(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, exit: &Archived<WorkerExit>) -> Outcome {
    let (status, detail) = (exit.status.to_native(), exit.detail.as_str());
    tracing::info!(pid = client.pid, status, detail, "a native worker ends");
    forget(core, client);
    client.done(core, to, 0);
    Ok(())
}

/// A worker is gone, or says so.
pub fn forget(core: &Rc<Core>, client: &Client) {
    if client.serves.replace(false) {
        core.tell_control(ToControl::Native(NativeAsk::WorkerGone { worker: client.worker }));
    }
}

/// The core that granted an assignment.
fn core_of(assignment: u64, cores: ShardId) -> Option<ShardId> {
    match Requester::of(assignment) {
        Requester::Shard(shard) if shard < cores => Some(shard),
        _ => None,
    }
}

fn done_one(core: &Rc<Core>, client: &Client, done: &Archived<WorkDone>) -> Outcome {
    let assignment = done.assignment.to_native();
    let (status, result) = (done.status.to_native(), done.result.as_slice().to_vec());
    let limit = client.connection.borrow().limits().payload_bytes as usize;
    if result.len() > limit {
        let detail = format!("a result of {} bytes, at most {limit} are allowed", result.len());
        return Err(refused(RefusalCode::TooLarge, detail));
    }
    match core_of(assignment, core.shards()) {
        Some(shard) if shard == core.shard => work_done(core, assignment, &client.worker, status, result),
        Some(shard) => {
            let done = NativePeer::Done { assignment, worker: client.worker, status, result };
            core.send_peer(shard, PeerMessage::Native(done));
        }
        // As for an assignment that has ended: nobody waits for it.
        None => {}
    }
    Ok(())
}

/// The worker of an assignment of this core says that it is done. Not believed of another worker.
pub fn work_done(core: &Rc<Core>, assignment: u64, by: &WorkerId, status: i32, result: Vec<u8>) {
    let Some((owner, number)) = core.native.assignments.borrow().get(&assignment).cloned() else {
        return;
    };
    let is_its_worker = match owner.leases.borrow_mut().get_mut(&number) {
        Some(Lease { stage: Stage::Granted { worker, used, .. }, .. }) if worker == by => {
            *used = Instant::now();
            true
        }
        _ => false,
    };
    if is_its_worker {
        owner.event(core, &LeaseDone { lease: number, status, result }, true);
    }
}

fn waits(core: &Rc<Core>, client: &Client, assignment: u64, blocked: bool) -> Outcome {
    match core_of(assignment, core.shards()) {
        Some(shard) if shard == core.shard => worker_waits(core, assignment, client.worker, blocked),
        Some(shard) => {
            let waits = NativePeer::Waits { assignment, worker: client.worker, blocked };
            core.send_peer(shard, PeerMessage::Native(waits));
        }
        None => {}
    }
    Ok(())
}

/// The worker of an assignment of this core, whose shard has the worker while it serves, waits for something or goes on.
pub fn worker_waits(core: &Rc<Core>, assignment: u64, worker: WorkerId, blocked: bool) {
    let owner = core.native.assignments.borrow().get(&assignment).cloned();
    let serves = owner.is_some_and(|(owner, number)| {
        let leases = owner.leases.borrow();
        matches!(leases.get(&number).map(|lease| &lease.stage), Some(Stage::Granted { worker: own, .. }) if *own == worker)
    });
    if serves {
        core.sched_here(if blocked { SchedEvent::Blocked { worker } } else { SchedEvent::Unblocked { worker } });
    }
}

/// The client that is a worker, if it is one of this node.
fn client_of(core: &Core, worker: &WorkerId) -> Option<ClientId> {
    core.native.shared()?.client_of(worker)
}

/// A lease of this core is for this worker.
pub fn assign(
    core: &Rc<Core>,
    worker: &WorkerId,
    assignment: u64,
    owner: WorkerId,
    allocation: &[AllocatedResource],
    payload: Vec<u8>,
) {
    let assigned = Assigned { assignment, owner: wire::WorkerId(owner.0), allocation: allocation.to_vec(), payload };
    tell(core, worker, NativePeer::Assigned, NativePeer::assigned, assigned);
}

/// A lease of this core that this worker served has ended.
pub fn revoke(core: &Rc<Core>, worker: &WorkerId, assignment: u64) {
    tell(core, worker, NativePeer::Revoked, NativePeer::revoked, Revoked { assignment });
}

/// Tells a worker, which may be another core's client.
fn tell<M>(
    core: &Rc<Core>,
    worker: &WorkerId,
    far: fn(ClientId, M) -> NativePeer,
    near: fn(&Rc<Core>, ClientId, &M),
    message: M,
) {
    let Some(client) = client_of(core, worker) else {
        return;
    };
    match Requester::of(client) {
        Requester::Shard(shard) if shard == core.shard => near(core, client, &message),
        Requester::Shard(shard) => core.send_peer(shard, PeerMessage::Native(far(client, message))),
        Requester::Control | Requester::Transfer => {}
    }
}

/// The control thread's word on a worker that wants to be one.
pub fn registered(core: &Rc<Core>, client: ClientId, to: ReplyTo, registered: &Result<Registered, Refusal>) {
    if let (Err(_), Some(client)) = (registered, core.native.client(client)) {
        client.serves.set(false);
    }
    super::door::reply_of(core, client, to, registered);
}

/// Where a worker of the node is reached; empty once it is gone.
pub fn address(core: &Core, worker: WorkerId, address: String) {
    let mut addresses = core.native.addresses.borrow_mut();
    match address.is_empty() {
        true => drop(addresses.remove(&worker)),
        false => drop(addresses.insert(worker, address.into())),
    }
}

/// A worker of this core has to end.
pub fn stop(core: &Rc<Core>, client: ClientId, forced: bool, detail: String) {
    if let Some(client) = core.native.client(client) {
        client.event(core, &Stop { forced, detail }, true);
        if forced {
            forget(core, &client);
        }
    }
}
