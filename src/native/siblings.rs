//! What cores tell each other about each other's clients.

use std::rc::Rc;

use raylet_shard::ids::{ClientId, ObjectId, WorkerId};
use raylet_transport::messages::{Assigned, ObjectEvent, Revoked};
use raylet_transport::server::ReplyTo;

use super::{objects, workers};
use crate::core_loop::Core;

/// From one core to another.
#[derive(Debug)]
pub enum NativePeer {
    /// For a worker: a lease.
    Assigned(ClientId, Assigned),
    /// For a worker: the end of a lease.
    Revoked(ClientId, Revoked),
    /// From a worker, for the owner of its lease.
    Done {
        /// The assignment.
        assignment: u64,
        /// The worker.
        worker: WorkerId,
        /// As the worker said.
        status: i32,
        /// As the worker said.
        result: Vec<u8>,
    },
    /// From a worker, for the shard that granted its lease.
    Waits {
        /// The assignment.
        assignment: u64,
        /// The worker.
        worker: WorkerId,
        /// It waits, or goes on.
        blocked: bool,
    },
    /// For an owner: objects that another core's client has it keep.
    Pin {
        /// Who asks.
        asker: ClientId,
        /// Its request.
        to: ReplyTo,
        /// For whom.
        owner: ClientId,
        /// Which.
        objects: Vec<ObjectId>,
    },
    /// The answer to it.
    Pinned {
        /// Who asked.
        asker: ClientId,
        /// Its request.
        to: ReplyTo,
        /// For each object whether it is kept; `None`: the owner is gone.
        kept: Option<Vec<bool>>,
    },
    /// For clients that want events of objects.
    Object(ObjectEvent),
}

impl NativePeer {
    /// Takes what another core told.
    pub fn deliver(self, core: &Rc<Core>) {
        match self {
            Self::Assigned(client, assigned) => Self::assigned(core, client, &assigned),
            Self::Revoked(client, revoked) => Self::revoked(core, client, &revoked),
            Self::Done { assignment, worker, status, result } => {
                workers::work_done(core, assignment, &worker, status, result);
            }
            Self::Waits { assignment, worker, blocked } => workers::worker_waits(core, assignment, worker, blocked),
            Self::Pin { asker, to, owner, objects } => objects::pin_for(core, asker, to, owner, &objects),
            Self::Pinned { asker, to, kept } => objects::pinned_for(core, asker, to, kept),
            Self::Object(event) => objects::object_event(core, &event),
        }
    }

    pub(super) fn assigned(core: &Rc<Core>, client: ClientId, assigned: &Assigned) {
        if let Some(client) = core.native.client(client) {
            client.event(core, assigned, true);
        }
    }

    pub(super) fn revoked(core: &Rc<Core>, client: ClientId, revoked: &Revoked) {
        if let Some(client) = core.native.client(client) {
            client.event(core, revoked, true);
        }
    }
}
