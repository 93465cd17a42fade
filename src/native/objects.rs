//! Objects of native clients: requests, and the answers of the shards.
//!
//! **Uses.** The store gives a client one reference on an object, however often the client uses it. A use is counted from the moment it
//! is asked for, so that the last use can't be given back while another one is on its way.
//!
//! **Pins** are keeps of a second client number, which stands for what the client keeps as an owner; they end with it. What is only kept
//! may be spilled, what is used is not.

use std::rc::Rc;

use raylet_shard::ids::{ClientId, ObjectId, Token, WorkerId};
use raylet_shard::store::{CreditRun, GoneReason, ObjectSource, Placement, StoreEffect, StoreError, StoreEvent};
use raylet_transport::credit::Piece;
use raylet_transport::ids as wire;
use raylet_transport::messages::{
    object_event, topic, Archived, Contained, Create, Created, CreditGranted, Found, Get, ObjectEvent, Pin, Pinned,
    Place, Publish, Refusal, RefusalCode, Release, Request, Unpin, Wait, Waited, FOREVER_NS,
};
use raylet_transport::server::{Outcome, ReplyTo};
use smallvec::SmallVec;

use super::client::Client;
use super::door::{deadline, refused};
use super::pending::Op;
use super::siblings::NativePeer;
use super::{object, to_wire, wishes, Topic};
use crate::bridge::{shard_of_object, PeerMessage, Requester};
use crate::core_loop::{Core, SILENT};

/// A request about several objects: a wait, or a pin.
pub struct Group {
    client: Rc<Client>,
    to: ReplyTo,
    kind: Kind,
    /// For each object whether it is there.
    found: Vec<bool>,
    /// How many are.
    count: usize,
    /// Objects of which nothing was said yet, with the tokens that were asked by.
    open: usize,
    tokens: Vec<(Token, ObjectId)>,
}

enum Kind {
    /// Answered once so many are there, or when nothing more can be said.
    Wait(usize),
    /// Answered once all have been asked for.
    Pin,
    /// The same, asked by a client of another core.
    PinFor(ClientId),
}

pub fn request(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, request: Request<'_>) -> Outcome {
    let native = &core.native;
    match request {
        Request::Publish(publish) => publish_one(core, client, to, publish),
        Request::Get(get) => get_one(core, client, to, get),
        Request::Release(release) => release_one(core, client, release),
        Request::Create(create) => create_one(core, client, to, create),
        Request::Seal(seal) => {
            let id = object((&seal.object).into());
            let token = native.note(core, client, to, Op::Seal { id, pin: seal.pin });
            core.store(&id, StoreEvent::Seal { client: client.id, token, id });
            Ok(())
        }
        Request::Abort(abort) => {
            let id = object((&abort.object).into());
            let token = native.note(core, client, to, Op::Abort);
            core.store(&id, StoreEvent::Abort { client: client.id, token, id });
            Ok(())
        }
        Request::Delete(delete) => {
            let id = object((&delete.object).into());
            let token = native.note(core, client, to, Op::Delete);
            core.store(&id, StoreEvent::Delete { client: client.id, token, id });
            // Only then, or an object that is on disk would be gone before it is deleted.
            core.store(&id, StoreEvent::Unkeep { keeper: client.keeper, id });
            Ok(())
        }
        Request::Contains(contains) => {
            let id = object((&contains.object).into());
            let token = native.note(core, client, to, Op::Contains);
            core.store(&id, StoreEvent::Contains { client: client.id, token, id });
            Ok(())
        }
        Request::Wait(wait) => wait_for(core, client, to, wait),
        Request::RequestCredit(credit) => {
            let admitted = client.credit.borrow().ledger.admit(credit.size_bytes.to_native())?;
            let token = native.note(core, client, to, Op::Credit);
            // On the client's own shard, where its objects live.
            let near = client.near.segment();
            core.store_here(StoreEvent::GrantCredit { client: client.id, token, bytes: admitted.into(), near });
            Ok(())
        }
        Request::ReturnCredit(back) => {
            return_run(core, client, back.credit.to_native())?;
            client.done(core, to, 1);
            Ok(())
        }
        Request::Pin(pin) => pin_all(core, client, to, pin),
        Request::Unpin(unpin) => unpin_all(core, client, to, unpin),
        other => Err(refused(RefusalCode::Unsupported, other.name())),
    }
}

fn create_one(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, create: &Archived<Create>) -> Outcome {
    let id = object((&create.object).into());
    let owner = owner_of(client, (&create.owner).into());
    let wait_ns = create.wait_ns.to_native();
    let token = core.native.note(core, client, to, Op::Create(id));
    core.store(
        &id,
        StoreEvent::Create {
            client: client.id,
            token,
            id,
            data_bytes: create.data_bytes.to_native(),
            metadata_bytes: create.metadata_bytes.to_native(),
            owner,
            source: ObjectSource::CreatedByWorker,
            mutable: false,
            try_immediately: wait_ns == 0,
            near: client.near.segment(),
        },
    );
    if wait_ns != FOREVER_NS && core.native.pending.borrow().waits(token) {
        deadline(core, token, wait_ns);
    }
    Ok(())
}

fn owner_of(client: &Client, owner: wire::WorkerId) -> WorkerId {
    if owner.is_nil() {
        client.worker
    } else {
        WorkerId(owner.0)
    }
}

fn publish_one(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, publish: &Archived<Publish>) -> Outcome {
    let id = object((&publish.object).into());
    let (data_bytes, metadata_bytes) = (publish.data_bytes.to_native(), publish.metadata_bytes.to_native());
    let credit = publish.credit.to_native();
    let checked = {
        let mut runs = client.credit.borrow_mut();
        let run = runs.runs.get(&credit).copied();
        runs.ledger.publish(credit, publish.offset_bytes.to_native(), data_bytes, metadata_bytes).map(|_| run)
    };
    let run = match checked {
        Ok(run) => run.unwrap_or(u32::MAX),
        Err(refusal) => {
            // A client that lies about a run loses it; one that has no such run loses nothing.
            let _ = return_run(core, client, credit);
            return Err(refusal.into());
        }
    };
    if shard_of_object(&id, core.shards()) != core.shard {
        // The run is ended: what it has used and what the shard believes would no longer agree.
        let _ = return_run(core, client, credit);
        let detail = format!("object {id} is not named by a task that this client was given");
        return Err(refused(RefusalCode::BadPublish, detail));
    }
    let token = core.native.note(core, client, to, Op::Publish);
    let (client_id, owner, keeper) = (client.id, client.worker, publish.pin.then_some(client.keeper));
    core.store_here(StoreEvent::Adopt { client: client_id, token, run, id, data_bytes, metadata_bytes, owner, keeper });
    Ok(())
}

fn return_run(core: &Rc<Core>, client: &Client, credit: u32) -> Result<(), Refusal> {
    let (rest, run) = {
        let mut runs = client.credit.borrow_mut();
        (runs.ledger.close_run(credit)?, runs.runs.remove(&credit))
    };
    // A run that is used up is the shard's no more.
    if let (Some(_), Some(run)) = (rest, run) {
        core.store_here(StoreEvent::ReturnCredit { client: client.id, run });
    }
    Ok(())
}

fn get_one(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, get: &Archived<Get>) -> Outcome {
    let id = object((&get.object).into());
    let timeout_ns = get.timeout_ns.to_native();
    client.holds.borrow_mut().add(to_wire(id));
    let token = core.native.note(core, client, to, Op::Get(id));
    // What is on disk is there, and only has to be read.
    let event = match timeout_ns {
        0 => StoreEvent::GetHere { client: client.id, token, id },
        _ => StoreEvent::Get { client: client.id, token, id, wait: true },
    };
    core.store(&id, event);
    if timeout_ns > 0 && timeout_ns != FOREVER_NS && core.native.pending.borrow().waits(token) {
        deadline(core, token, timeout_ns);
    }
    if timeout_ns > 0 && core.native.pending.borrow().waits(token) {
        wishes::wish(core, token, id);
    }
    Ok(())
}

fn release_one(core: &Rc<Core>, client: &Client, release: &Archived<Release>) -> Outcome {
    let id = object((&release.object).into());
    if client.holds.borrow_mut().release(to_wire(id), release.count.to_native())? {
        core.store(&id, StoreEvent::Release { client: client.id, id });
    }
    Ok(())
}

fn wait_for(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, wait: &Archived<Wait>) -> Outcome {
    let ids = checked_ids(client, wait.objects.iter().map(|id| object(id.into())), wait.objects.len())?;
    let timeout_ns = wait.timeout_ns.to_native();
    let wanted = (wait.wanted.to_native() as usize).min(ids.len());
    let group = open_group(core, client, to, Kind::Wait(wanted), ids.len());
    for (index, id) in ids.iter().enumerate() {
        // One that was answered already needs no more.
        let Some(token) = join(core, group, index, *id) else {
            return Ok(());
        };
        core.store(
            id,
            match timeout_ns {
                0 => StoreEvent::Contains { client: client.id, token, id: *id },
                _ => StoreEvent::Watch { token, id: *id },
            },
        );
    }
    let waits = core.native.groups.borrow().get(group).is_some_and(|known| known.to == to);
    let of = client.clone();
    let is_same = move |known: &Group| known.to == to && Rc::ptr_eq(&known.client, &of);
    if waits && !ids.is_empty() && timeout_ns > 0 {
        let is_same = is_same.clone();
        wishes::wish_all(core, move |core| {
            let groups = core.native.groups.borrow();
            groups.get(group).filter(|known| is_same(known)).map(|known| known.tokens.clone()).unwrap_or_default()
        });
    }
    if ids.is_empty() && waits {
        finish(core, group);
    } else if waits && timeout_ns > 0 && timeout_ns != FOREVER_NS {
        core.io.after(std::time::Duration::from_nanos(timeout_ns), move |core| {
            if core.native.groups.borrow().get(group).is_some_and(is_same) {
                finish(core, group);
            }
        });
    }
    Ok(())
}

fn checked_ids(
    client: &Client,
    ids: impl Iterator<Item = ObjectId>,
    count: usize,
) -> Result<SmallVec<[ObjectId; 8]>, Refusal> {
    let limit = client.connection.borrow().limits().objects as usize;
    if count > limit {
        let detail = format!("{count} objects in one request, at most {limit} are allowed");
        return Err(Refusal::new(RefusalCode::TooLarge, detail));
    }
    Ok(ids.collect())
}

fn open_group(core: &Core, client: &Rc<Client>, to: ReplyTo, kind: Kind, count: usize) -> usize {
    let (found, tokens) = (vec![false; count], Vec::with_capacity(count));
    let group = Group { client: client.clone(), to, kind, found, count: 0, open: count, tokens };
    core.native.groups.borrow_mut().insert(group)
}

/// A token for one object of a group; `None` where the group was answered meanwhile.
fn join(core: &Core, group: usize, index: usize, id: ObjectId) -> Option<Token> {
    let mut groups = core.native.groups.borrow_mut();
    let known = groups.get_mut(group)?;
    let op = Op::Member { group, index: index as u32 };
    let token = core.native.note(core, &known.client, known.to, op);
    known.tokens.push((token, id));
    Some(token)
}

/// What is known of one object of a group.
fn member(core: &Rc<Core>, group: usize, index: u32, is_there: bool) {
    let is_over = {
        let mut groups = core.native.groups.borrow_mut();
        let Some(known) = groups.get_mut(group) else {
            return;
        };
        known.open -= 1;
        known.found[index as usize] = is_there;
        known.count += usize::from(is_there);
        known.open == 0 || matches!(known.kind, Kind::Wait(wanted) if known.count >= wanted)
    };
    if is_over {
        finish(core, group);
    }
}

/// Answers a group, and takes back what it still waits for.
fn finish(core: &Rc<Core>, group: usize) {
    let Some(known) = core.native.groups.borrow_mut().try_remove(group) else {
        return;
    };
    for (token, id) in &known.tokens {
        if core.native.pending.borrow_mut().take(*token).is_some() && matches!(known.kind, Kind::Wait(_)) {
            core.store(id, StoreEvent::Unwatch { token: *token, id: *id });
        }
    }
    match known.kind {
        Kind::Wait(_) => {
            let ready = known.found.iter().enumerate().filter(|(_, found)| **found).map(|(index, _)| index as u32);
            known.client.reply(core, known.to, &Waited { ready: ready.collect() });
        }
        Kind::Pin => known.client.reply(core, known.to, &Pinned { kept: known.found }),
        Kind::PinFor(asker) => tell_asker(core, asker, known.to, Some(known.found)),
    }
}

fn pin_all(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, pin: &Archived<Pin>) -> Outcome {
    let ids = checked_ids(client, pin.objects.iter().map(|id| object(id.into())), pin.objects.len())?;
    let name: wire::WorkerId = (&pin.owner).into();
    let name = WorkerId(name.0);
    if name.is_nil() {
        pin_here(core, client, to, Kind::Pin, &ids);
        return Ok(());
    }
    let unknown = || Refusal::new(RefusalCode::UnknownOwner, format!("owner {name}"));
    let owner = core.native.shared().and_then(|shared| shared.client_of(&name)).ok_or_else(unknown)?;
    match Requester::of(owner) {
        Requester::Shard(shard) if shard == core.shard => {
            let owner = core.native.client(owner).ok_or_else(unknown)?;
            pin_here(core, &owner, to, Kind::PinFor(client.id), &ids);
        }
        // Only the owner's own core can tell whether it lives, and a pin must not outlive its owner.
        Requester::Shard(shard) => {
            let pin = NativePeer::Pin { asker: client.id, to, owner, objects: ids.into_vec() };
            core.send_peer(shard, PeerMessage::Native(pin));
        }
        Requester::Control | Requester::Transfer => return Err(unknown().into()),
    }
    Ok(())
}

/// Keeps objects for a client of this core.
fn pin_here(core: &Rc<Core>, owner: &Rc<Client>, to: ReplyTo, kind: Kind, ids: &[ObjectId]) {
    let group = open_group(core, owner, to, kind, ids.len());
    for (index, id) in ids.iter().enumerate() {
        if let Some(token) = join(core, group, index, *id) {
            core.store(id, StoreEvent::Keep { keeper: owner.keeper, token, id: *id });
        }
    }
    if ids.is_empty() {
        finish(core, group);
    }
}

/// Another core's client asks that objects be kept for a client of this one.
pub fn pin_for(core: &Rc<Core>, asker: ClientId, to: ReplyTo, owner: ClientId, ids: &[ObjectId]) {
    match core.native.client(owner) {
        Some(owner) => pin_here(core, &owner, to, Kind::PinFor(asker), ids),
        None => tell_asker(core, asker, to, None),
    }
}

/// What became of a pin for somebody else; `None`: the owner is gone.
fn tell_asker(core: &Rc<Core>, asker: ClientId, to: ReplyTo, kept: Option<Vec<bool>>) {
    match Requester::of(asker) {
        Requester::Shard(shard) if shard == core.shard => pinned_for(core, asker, to, kept),
        Requester::Shard(shard) => core.send_peer(shard, PeerMessage::Native(NativePeer::Pinned { asker, to, kept })),
        Requester::Control | Requester::Transfer => {}
    }
}

/// The answer to a client of this core that has pinned for somebody else.
pub fn pinned_for(core: &Rc<Core>, asker: ClientId, to: ReplyTo, kept: Option<Vec<bool>>) {
    let Some(asker) = core.native.client(asker) else {
        return;
    };
    match kept {
        Some(kept) => asker.reply(core, to, &Pinned { kept }),
        None => asker.refuse(core, to, &Refusal::new(RefusalCode::UnknownOwner, "it is gone".to_owned())),
    }
}

fn unpin_all(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, unpin: &Archived<Unpin>) -> Outcome {
    let ids = checked_ids(client, unpin.objects.iter().map(|id| object(id.into())), unpin.objects.len())?;
    for id in &ids {
        core.store(id, StoreEvent::Unkeep { keeper: client.keeper, id: *id });
    }
    client.done(core, to, ids.len() as u64);
    Ok(())
}

/// The time of a request is over.
pub fn late(core: &Rc<Core>, token: Token) {
    let op = core.native.pending.borrow_mut().get_mut(token).map(|request| {
        request.late = true;
        (request.op, request.client.clone())
    });
    match op {
        Some((Op::Get(id), client)) => {
            core.store(&id, StoreEvent::CancelGet { client: client.id, token, id });
            give_up(core, token, RefusalCode::DeadlinePassed, id);
            // No reference was given for it.
            let _ = client.holds.borrow_mut().release(to_wire(id), 1);
        }
        Some((Op::Create(id), client)) => {
            core.store(&id, StoreEvent::CancelCreate { client: client.id, id });
            give_up(core, token, RefusalCode::StoreFull, id);
        }
        Some((Op::Lease(number), client)) => super::leases::cancel_late(core, &client, number),
        _ => {}
    }
}

fn give_up(core: &Rc<Core>, token: Token, code: RefusalCode, id: ObjectId) {
    let request = core.native.pending.borrow_mut().take(token);
    if let Some(request) = request {
        request.client.refuse(core, request.to, &Refusal::new(code, format!("object {id}")));
    }
}

/// A shard's answer.
pub fn answer(core: &Rc<Core>, effect: StoreEffect) {
    let (token, id) = match effect {
        StoreEffect::Created { token, id, .. }
        | StoreEffect::Sealed { token, id, .. }
        | StoreEffect::Aborted { token, id, .. }
        | StoreEffect::Got { token, id, .. }
        | StoreEffect::Kept { token, id, .. }
        | StoreEffect::Deleted { token, id, .. }
        | StoreEffect::Contained { token, id, .. }
        | StoreEffect::Adopted { token, id, .. } => (token, id),
        StoreEffect::CreditGranted { token, .. } => (token, ObjectId::NIL),
        _ => return,
    };
    let Some(request) = core.native.pending.borrow_mut().take(token) else {
        return unclaimed(core, effect);
    };
    let (client, to) = (&request.client, request.to);
    match (request.op, effect) {
        (Op::Create(_), StoreEffect::Created { result, .. }) => match result {
            Ok(place) => client.reply(core, to, &Created { place: place_of(&place) }),
            Err(error) => client.refuse(core, to, &refusal_of(error, id)),
        },
        (Op::Seal { id, pin }, StoreEffect::Sealed { result: Ok(()), .. }) => sealed(core, client, to, id, pin),
        (Op::Get(id), StoreEffect::Got { place, .. }) => got(core, client, to, id, place),
        (Op::Contains, StoreEffect::Contained { has, .. }) => client.reply(core, to, &Contained { sealed: has }),
        (Op::Member { group, index }, StoreEffect::Contained { has, .. }) => member(core, group, index, has),
        (Op::Member { group, index }, StoreEffect::Kept { ok, .. }) => member(core, group, index, ok),
        (Op::Credit, StoreEffect::CreditGranted { result, .. }) => granted(core, client, to, result),
        (Op::Delete, StoreEffect::Deleted { result, .. }) => match result {
            // It goes with its last use.
            Ok(()) | Err(StoreError::ObjectInUse | StoreError::ObjectNotSealed) => client.done(core, to, 1),
            Err(error) => client.refuse(core, to, &refusal_of(error, id)),
        },
        (
            _,
            StoreEffect::Sealed { result, .. }
            | StoreEffect::Aborted { result, .. }
            | StoreEffect::Adopted { result, .. },
        ) => match result {
            Ok(()) => client.done(core, to, 1),
            Err(error) => client.refuse(core, to, &refusal_of(error, id)),
        },
        (op, effect) => tracing::error!(?op, ?effect, "an answer does not fit its request"),
    }
}

/// An answer that nobody waits for any more: what it gave is given back.
fn unclaimed(core: &Rc<Core>, effect: StoreEffect) {
    match effect {
        StoreEffect::Created { client, id, result: Ok(_), .. } => core.abort_silently(client, id),
        StoreEffect::Got { client, id, place: Some(_), .. } => {
            let held = core.native.client(client).is_some_and(|client| client.holds.borrow().has(to_wire(id)));
            if !held {
                core.store(&id, StoreEvent::Release { client, id });
            }
        }
        _ => {}
    }
}

fn sealed(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, id: ObjectId, pin: bool) {
    if pin {
        core.store(&id, StoreEvent::Keep { keeper: client.keeper, token: SILENT, id });
    }
    // The creator's own use ends, unless it has asked for another one meanwhile.
    if !client.holds.borrow().has(to_wire(id)) {
        core.store(&id, StoreEvent::Release { client: client.id, id });
    }
    client.done(core, to, 1);
}

fn got(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, id: ObjectId, place: Option<Placement>) {
    match place {
        Some(place) if place.segment as usize >= core.segments().len() => {
            let released = client.holds.borrow_mut().release(to_wire(id), 1);
            if released.is_ok() && !client.holds.borrow().has(to_wire(id)) {
                core.store(&id, StoreEvent::Release { client: client.id, id });
            }
            let why = format!("object {id} lies in a file beside the store, which native clients don't map");
            client.refuse(core, to, &Refusal::new(RefusalCode::UnknownObject, why));
        }
        Some(place) => client.reply(core, to, &Found { place: place_of(&place) }),
        None => {
            // No reference was given for it.
            let _ = client.holds.borrow_mut().release(to_wire(id), 1);
            client.refuse(core, to, &Refusal::new(RefusalCode::UnknownObject, format!("object {id}")));
        }
    }
}

fn granted(core: &Rc<Core>, client: &Rc<Client>, to: ReplyTo, result: Result<CreditRun, StoreError>) {
    let run = match result {
        Ok(run) => run,
        Err(error) => return client.refuse(core, to, &refusal_of(error, ObjectId::NIL)),
    };
    // No run is longer than what was asked for in 32 bits.
    let size_bytes = run.size_bytes as u32;
    let credit = {
        let mut runs = client.credit.borrow_mut();
        let piece = Piece { segment: run.segment, offset_bytes: run.offset_bytes, size_bytes };
        let credit = runs.ledger.grant(piece);
        runs.runs.insert(credit, run.run);
        credit
    };
    let granted = CreditGranted { offset_bytes: run.offset_bytes, credit, segment: run.segment, size_bytes };
    client.reply(core, to, &granted);
}

fn place_of(place: &Placement) -> Place {
    Place {
        offset_bytes: place.data_offset,
        data_bytes: place.data_bytes,
        metadata_bytes: place.metadata_bytes,
        segment: place.segment,
    }
}

fn refusal_of(error: StoreError, id: ObjectId) -> Refusal {
    let code = match error {
        StoreError::ObjectExists => RefusalCode::ObjectExists,
        StoreError::ObjectNonexistent => RefusalCode::UnknownObject,
        StoreError::OutOfMemory | StoreError::OutOfDisk => RefusalCode::StoreFull,
        StoreError::ObjectNotSealed => RefusalCode::NotSealed,
        StoreError::ObjectInUse => RefusalCode::NotHeld,
        StoreError::ObjectSealed => RefusalCode::AlreadySealed,
        StoreError::NotCreator => RefusalCode::NotCreator,
        StoreError::UnknownRun => RefusalCode::UnknownCredit,
        StoreError::QueueFull => RefusalCode::QueueFull,
    };
    let detail = if id.is_nil() { String::new() } else { format!("object {id}") };
    Refusal::new(code, detail)
}

/// An object that a client waits for is sealed; or too many wait for objects, which counts as not there.
pub fn watched(core: &Rc<Core>, token: Token, is_there: bool) {
    let request = core.native.pending.borrow_mut().take(token);
    if let Some(Op::Member { group, index }) = request.map(|request| request.op) {
        member(core, group, index, is_there);
    }
}

/// A client is gone: what it used, began and kept is given back.
pub fn forget(core: &Rc<Core>, client: &Rc<Client>) {
    let mut askers = Vec::new();
    core.native.groups.borrow_mut().retain(|_, group| {
        let goes = Rc::ptr_eq(&group.client, client);
        if let (true, Kind::PinFor(asker)) = (goes, &group.kind) {
            askers.push((*asker, group.to));
        }
        !goes
    });
    for (asker, to) in askers {
        tell_asker(core, asker, to, None);
    }
    core.client_gone(client.id);
    core.client_gone(client.keeper);
}

/// A shard has a new object that can be read.
pub fn object_sealed(core: &Rc<Core>, id: ObjectId, size_bytes: u64) {
    tell(core, id, object_event::SEALED, size_bytes);
}

/// A shard has an object no more.
pub fn object_gone(core: &Rc<Core>, id: ObjectId, size_bytes: u64, reason: GoneReason) {
    let what = match reason {
        GoneReason::Deleted => object_event::DELETED,
        GoneReason::Freed => object_event::FREED,
        // It comes back when it is wanted.
        GoneReason::Spilled => return,
        GoneReason::Evicted => object_event::EVICTED,
    };
    tell(core, id, what, size_bytes);
}

/// A spilled object of a native owner can't be read back. Who waits for it is told that it is not here; where there are peers, one of them
/// may have it, so the wait goes on.
pub fn object_lost(core: &Rc<Core>, id: ObjectId) {
    if !wishes::has_peers(core) {
        core.store(&id, StoreEvent::GiveUp { id });
    }
}

fn tell(core: &Rc<Core>, id: ObjectId, what: u8, size_bytes: u64) {
    if !core.native.has_listeners(Topic::Objects) {
        return;
    }
    let Some(shared) = core.native.shared() else {
        return;
    };
    for shard in shared.listening(Topic::Objects) {
        let event = ObjectEvent { object: to_wire(id), what, size_bytes };
        if shard == core.shard {
            object_event(core, &event);
        } else {
            core.send_peer(shard, PeerMessage::Native(NativePeer::Object(event)));
        }
    }
}

/// An object's event, for clients of this core.
pub fn object_event(core: &Rc<Core>, event: &ObjectEvent) {
    core.native.for_topic(topic::OBJECTS, |client| client.event(core, event, false));
}
