//! Leases: classes, requests, grants.

use super::{messages, wire_structs};
use crate::ids::{ObjectId, WorkerId};

/// Steps in one unit of a resource: amounts are in 1/10,000, as Ray counts.
pub const RESOURCE_STEPS: u64 = 10_000;

wire_structs! {
    /// So much of a resource.
    ResourceAmount {
        /// Its name: `CPU`, `GPU`, `memory` or the node's own.
        name: String,
        /// How much, in 1/10,000 of a unit.
        amount: u64,
    }

    /// What a lease got of a resource.
    AllocatedResource {
        /// Its name.
        name: String,
        /// How much, in 1/10,000 of a unit.
        amount: u64,
        /// Of a resource that consists of instances (`GPU`): which.
        instances: Vec<u16>,
    }
}

messages! {
    /// Names a kind of lease by a number, so that a request is short. Leases of a class wait in one queue, first come, first served
    /// within a priority. The same definition gets the same number. Answer: [`ClassDefined`].
    48 DefineClass {
        /// The kind of worker that serves it; empty: it needs none, the lease is of resources alone. (No worker registers without a name.)
        name: String,
        /// What each lease holds.
        resources: Vec<ResourceAmount>,
    }

    /// Asks for a lease. Answer: [`Granted`].
    49 RequestLease {
        /// The client's number for it, not in use for another of its leases.
        lease: u32,
        /// Its class.
        class: u32,
        /// Higher ones of a class are granted first.
        priority: i32,
        /// How long to wait for it, in nanoseconds.
        wait_ns: u64,
        /// The grant is taken back when nothing was heard of it for so long ([`KeepLease`], [`WorkDone`](super::WorkDone)), in nanoseconds.
        unused_ns: u64,
        /// Objects that have to be sealed here before it is granted.
        deps: Vec<ObjectId>,
        /// For the worker, at most [`Limits::payload_bytes`](super::Limits::payload_bytes).
        payload: Vec<u8>,
    }

    /// Gives a lease back. One-way, or answered by [`Done`](super::Done).
    50 ReturnLease {
        /// Which.
        lease: u32,
        /// Its worker is of no more use and has to be ended.
        broken: bool,
    }

    /// Gives a request up; a lease that is granted stays. Answer: [`CancelDone`]; the request is answered too.
    51 CancelLease {
        /// Which.
        lease: u32,
    }

    /// The lease is in use: its `unused_ns` starts anew. One-way.
    52 KeepLease {
        /// Which.
        lease: u32,
    }

    /// Answer to [`DefineClass`].
    176 ClassDefined {
        /// Its number.
        class: u32,
    }

    /// Answer to [`RequestLease`].
    177 Granted {
        /// The client's number for it.
        lease: u32,
        /// Who serves it; nil where the class needs no worker.
        worker: WorkerId,
        /// What it holds. Only resources that consist of instances are listed; of the others it has what its class asks for.
        allocation: Vec<AllocatedResource>,
        /// Where the worker listens, as it said when it registered.
        address: String,
    }

    /// Answer to [`CancelLease`].
    178 CancelDone {
        /// The client's number for it.
        lease: u32,
        /// False where it was granted, ended or never known.
        cancelled: bool,
    }

    /// Event: the worker has done what the lease was for. The lease stays until it is returned.
    179 LeaseDone {
        /// The client's number for it.
        lease: u32,
        /// As the worker said; 0 is success.
        status: i32,
        /// As the worker said.
        result: Vec<u8>,
    }

    /// Event: a granted lease has ended without being returned.
    180 LeaseLost {
        /// The client's number for it.
        lease: u32,
        /// A [`RefusalCode`](super::RefusalCode): `WorkerDied` or `Unused`.
        code: u16,
        /// What happened.
        detail: String,
    }
}
