//! What clients and leases of this core wait for, and what another node may have: the control thread is asked to fetch it.
//!
//! Most of what is waited for comes soon, from a neighbour, so a wish is told only when it has lasted a moment. It ends when the
//! request has its answer, whatever that is.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::{LeaseId, ObjectId, Token};
use raylet_shard::pull::Kind;
use rustc_hash::FxHashSet;

use crate::bridge::ToControl;
use crate::core_loop::Core;
use crate::peers::PeerAsk;

/// How long something is waited for before other nodes are asked.
const WISH_AFTER: Duration = Duration::from_micros(500);

/// Leases of a core whose objects are wished for.
#[derive(Default)]
pub struct WishedDeps {
    leases: RefCell<FxHashSet<LeaseId>>,
}

pub(super) fn has_peers(core: &Core) -> bool {
    core.native.shared().is_some_and(|shared| shared.has_peers)
}

pub(super) fn ask(core: &Core, ask: PeerAsk) {
    core.tell_control(ToControl::Peers(ask));
}

/// A request waits for an object.
pub(super) fn wish(core: &Rc<Core>, token: Token, id: ObjectId) {
    if !has_peers(core) {
        return;
    }
    core.io.after(WISH_AFTER, move |core| {
        if core.native.pending.borrow_mut().wish(token) {
            ask(core, PeerAsk::Want { kind: Kind::Get, objects: vec![(token, id)] });
        }
    });
}

/// A request waits for several objects: `waiting` says which, once the moment is over.
pub(super) fn wish_all(core: &Rc<Core>, waiting: impl FnOnce(&Core) -> Vec<(Token, ObjectId)> + 'static) {
    if !has_peers(core) {
        return;
    }
    core.io.after(WISH_AFTER, move |core| {
        let mut objects = waiting(core);
        {
            let mut pending = core.native.pending.borrow_mut();
            objects.retain(|(token, _)| pending.wish(*token));
        }
        if !objects.is_empty() {
            ask(core, PeerAsk::Want { kind: Kind::Wait, objects });
        }
    });
}

/// Tells which requests have their answers.
pub(super) fn flush(core: &Core) {
    let over = core.native.pending.borrow_mut().take_fulfilled();
    if !over.is_empty() {
        ask(core, PeerAsk::Unwant { wishes: over });
    }
}

/// A queued lease waits for objects.
pub fn wish_deps(core: &Rc<Core>, lease: LeaseId) {
    if !has_peers(core) {
        return;
    }
    core.io.after(WISH_AFTER, move |core| {
        let objects = core.deps.borrow().missing(&lease);
        if !objects.is_empty() && core.native.wished_deps.leases.borrow_mut().insert(lease) {
            ask(core, PeerAsk::WantDeps { lease, objects });
        }
    });
}

/// A lease waits for an object less, which is here, or for none any more.
pub fn deps_over(core: &Core, lease: LeaseId, ready: Option<ObjectId>) {
    if !core.native.wished_deps.leases.borrow().contains(&lease) {
        return;
    }
    match ready.filter(|_| !core.deps.borrow().missing(&lease).is_empty()) {
        Some(object) => ask(core, PeerAsk::DepHere { object }),
        None => {
            core.native.wished_deps.leases.borrow_mut().remove(&lease);
            ask(core, PeerAsk::UnwantDeps { lease });
        }
    }
}
