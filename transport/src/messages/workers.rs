//! Native workers: processes that serve leases.

use super::messages;
use crate::ids::WorkerId;

messages! {
    /// This connection is a worker. Answer: [`Registered`]; from then on it gets [`Assigned`].
    64 RegisterWorker {
        /// What the node gave to the process that it started (`RAYLET_START_TOKEN`); 0: started by somebody else.
        start_token: u64,
        /// Its process id. For the log: the node asks the kernel for the true one.
        pid: u32,
        /// The kind of lease that it serves, as in [`DefineClass::name`](super::DefineClass::name).
        class_name: String,
        /// Where its owners can reach it, told with each grant; may be empty.
        address: String,
    }

    /// An assignment is done. One-way.
    65 WorkDone {
        /// Which.
        assignment: u64,
        /// 0: success. For the owner.
        status: i32,
        /// For the owner, at most [`Limits::payload_bytes`](super::Limits::payload_bytes).
        result: Vec<u8>,
    }

    /// The worker ends. Answer: [`Done`](super::Done), and then it closes the connection.
    66 WorkerExit {
        /// 0: as intended.
        status: i32,
        /// Why.
        detail: String,
    }

    /// The worker waits for something: its CPU is free for others. One-way.
    67 Blocked {
        /// The assignment in which it waits.
        assignment: u64,
    }

    /// It goes on, and takes its CPU again. One-way.
    68 Unblocked {
        /// The assignment.
        assignment: u64,
    }

    /// Answer to [`RegisterWorker`].
    192 Registered {
        /// Its name as an owner of objects, and in grants.
        worker: WorkerId,
    }

    /// Event: a lease for this worker.
    193 Assigned {
        /// Names it; never used twice on a node.
        assignment: u64,
        /// Whose lease it is.
        owner: WorkerId,
        /// The instances that it may use, as in [`Granted::allocation`](super::Granted::allocation).
        allocation: Vec<super::AllocatedResource>,
        /// From the request.
        payload: Vec<u8>,
    }

    /// Event: the lease of this assignment has ended; the worker is free.
    194 Revoked {
        /// Which.
        assignment: u64,
    }

    /// Event: the worker has to end.
    195 Stop {
        /// At once, whatever it does; else when its assignment is done.
        forced: bool,
        /// Why.
        detail: String,
    }
}
