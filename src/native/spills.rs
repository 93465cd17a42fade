//! Leases that wait here and could have another node: the control thread knows which ([`crate::peers`]), and their clients are sent there.

use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::ClientId;
use raylet_shard::sched::SchedEvent;
use raylet_transport::messages::Refusal;
use raylet_transport::server::{Outcome, ReplyTo};

use super::client::{Client, Stage};
use super::wishes::{ask, has_peers};
use crate::core_loop::{Core, SILENT};
use crate::peers::{PeerAsk, WaitingLease};

/// How long a lease has to wait before another node is thought of: what is given back here serves it sooner, as a rule.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// How often those that still wait are looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Leases in one look. Further ones are looked at when these are gone.
pub const LOOK_MAX: usize = 256;

/// A request for a lease that this node can never serve goes to a peer that can, if there is one.
pub fn ask_elsewhere(core: &Core, client: &Client, to: ReplyTo, class: u32, why: Refusal) -> Outcome {
    let wanted = client.classes.borrow().get(&class).map(|class| class.wanted.clone());
    let Some(wanted) = wanted.filter(|_| has_peers(core)) else {
        return Err(why.into());
    };
    ask(core, PeerAsk::Elsewhere { client: client.id, to, wanted, why });
    Ok(())
}

/// A lease waits: soon it is seen whether a peer has room for it.
pub fn look_later(core: &Rc<Core>) {
    if has_peers(core) && !core.native.looks_for_room.replace(true) {
        core.io.after(LOOK_AFTER, look);
    }
}

fn look(core: &Rc<Core>) {
    let (mut waiting, mut is_any_queued) = (Vec::new(), false);
    for client in core.native.all() {
        let (leases, classes) = (client.leases.borrow(), client.classes.borrow());
        for (number, lease) in leases.iter().filter(|(_, lease)| matches!(lease.stage, Stage::Queued)) {
            is_any_queued = true;
            let Some(class) = classes.get(&lease.class).filter(|_| waiting.len() < LOOK_MAX) else {
                continue;
            };
            if core.lacks_room_for(client.lease_id(*number), &class.demand) {
                waiting.push(WaitingLease { client: client.id, lease: *number, wanted: class.wanted.clone() });
            }
        }
    }
    if !waiting.is_empty() {
        ask(core, PeerAsk::Look { waiting });
    }
    core.native.looks_for_room.set(is_any_queued);
    if is_any_queued {
        core.io.after(LOOK_EVERY, look);
    }
}

/// A peer has room for a lease: unless it was granted meanwhile, it is taken back here, and its client is sent there.
pub fn spill(core: &Rc<Core>, client: ClientId, number: u32, there: Refusal) {
    let Some(client) = core.native.client(client) else {
        return;
    };
    let is_queued = {
        let mut leases = client.leases.borrow_mut();
        let lease = leases.get_mut(&number).filter(|lease| matches!(lease.stage, Stage::Queued));
        lease.map(|lease| lease.elsewhere = Some(there)).is_some()
    };
    if is_queued {
        core.sched_here(SchedEvent::Cancel { token: SILENT, lease: client.lease_id(number) });
    }
}
