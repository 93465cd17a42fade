//! One client of the native door.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use raylet_shard::cluster::Amounts;
use raylet_shard::ids::{ClientId, LeaseId, WorkerId};
use raylet_shard::sched::{ClassId, ResourceId, ResourceSet};
use raylet_transport::credit::Ledger;
use raylet_transport::fds;
use raylet_transport::messages::{Message, Refusal};
use raylet_transport::server::{Connection, ConnectionError, Holds, ReplyTo};
use rustc_hash::FxHashMap;

use super::{NativeShared, KEEPER_BIT};
use crate::bridge::Requester;
use crate::core_io::{Io, Wish};
use crate::core_loop::Core;
use crate::near::Near;

/// A client. Its parts are borrowed for the length of a statement: whatever a shard is asked may come back here at once.
pub struct Client {
    /// Its connection's number on this core.
    pub key: u64,
    /// Its number on the node.
    pub id: ClientId,
    /// The number under which its pins hold references.
    pub keeper: ClientId,
    /// Its name as an owner.
    pub worker: WorkerId,
    /// Its process.
    pub pid: u32,
    /// Where that runs.
    pub near: Near,
    /// The protocol's state.
    pub connection: RefCell<Connection>,
    /// Objects in use.
    pub holds: RefCell<Holds>,
    /// Runs of memory.
    pub credit: RefCell<Credit>,
    /// Leases that are queued or granted, by its own numbers.
    pub leases: RefCell<FxHashMap<u32, Lease>>,
    /// Classes that it has defined.
    pub classes: RefCell<FxHashMap<u32, Class>>,
    /// Events that it wants.
    pub topics: Cell<u32>,
    /// It serves leases.
    pub serves: Cell<bool>,
    /// Tasks that it was given to name objects with.
    pub tasks: Cell<u32>,
    /// Nothing more is read from it.
    pub is_closed: Cell<bool>,
    /// The loop looks at its ring.
    pub is_awake: Cell<bool>,
    /// It is noted for what follows a batch.
    pub is_dirty: Cell<bool>,
    /// Turns in which its ring had nothing.
    pub idle_turns: Cell<u32>,
    /// Its own bell, once it has rings.
    pub bell: RefCell<Option<Rc<OwnedFd>>>,
    socket: Rc<OwnedFd>,
    /// The socket takes nothing now.
    is_blocked: Cell<bool>,
}

/// A client's runs of memory.
pub struct Credit {
    /// What of them is used.
    pub ledger: Ledger,
    /// The shard's number of each run.
    pub runs: FxHashMap<u32, u32>,
}

/// A class as its client knows it.
#[derive(Clone, Debug)]
pub struct Class {
    /// Its number.
    pub id: ClassId,
    /// What each lease holds.
    pub demand: ResourceSet,
    /// The same by name, for the choice of another node.
    pub wanted: Arc<Amounts>,
    /// Why nothing of it can ever be granted here.
    pub infeasible: Option<Box<str>>,
    /// Names of its resources.
    pub names: Rc<[(ResourceId, String)]>,
    /// It names instances of GPUs.
    pub is_gpu: bool,
}

/// A lease.
pub struct Lease {
    /// Its class, by the client's number.
    pub class: u32,
    /// How long it may be unused once granted, in nanoseconds.
    pub unused_ns: u64,
    /// For the worker, until it is granted.
    pub payload: Vec<u8>,
    /// The node that its client is sent to, once its request is taken back here.
    pub elsewhere: Option<Refusal>,
    /// How far it is.
    pub stage: Stage,
}

/// How far a lease is.
pub enum Stage {
    /// Waits.
    Queued,
    /// Granted.
    Granted {
        /// Number of the assignment.
        assignment: u64,
        /// Who serves it; nil for nobody.
        worker: WorkerId,
        /// When something was last heard of it.
        used: Instant,
    },
}

impl Client {
    pub fn new(shared: &NativeShared, id: ClientId, socket: Rc<OwnedFd>, near: Near) -> Rc<Self> {
        let limits = &shared.limits;
        Rc::new(Self {
            key: Requester::local(id),
            id,
            keeper: id | KEEPER_BIT,
            worker: shared.worker_of(id),
            pid: super::pid_of(&socket),
            near,
            connection: RefCell::new(Connection::new(limits.clone())),
            holds: RefCell::default(),
            credit: RefCell::new(Credit {
                ledger: Ledger::new(limits.credit_bytes, limits.credit_runs),
                runs: FxHashMap::default(),
            }),
            leases: RefCell::default(),
            classes: RefCell::default(),
            topics: Cell::new(0),
            serves: Cell::new(false),
            tasks: Cell::new(1),
            is_closed: Cell::new(false),
            is_awake: Cell::new(false),
            is_dirty: Cell::new(false),
            idle_turns: Cell::new(0),
            bell: RefCell::default(),
            socket,
            is_blocked: Cell::new(false),
        })
    }

    /// The node's name of a lease of this client.
    pub fn lease_id(&self, number: u32) -> LeaseId {
        let mut id = [0; LeaseId::LEN];
        id[..WorkerId::LEN].copy_from_slice(&self.worker.0);
        id[WorkerId::LEN..].copy_from_slice(&number.to_le_bytes());
        LeaseId(id)
    }

    /// Answers a request.
    pub fn reply<M: Message>(self: &Rc<Self>, core: &Core, to: ReplyTo, message: &M) {
        let replied = self.connection.borrow_mut().reply(to, message);
        self.sent(core, replied);
    }

    /// Answers a request that has nothing to tell but that it is done.
    pub fn done(self: &Rc<Self>, core: &Core, to: ReplyTo, count: u64) {
        let replied = self.connection.borrow_mut().done(to, count);
        self.sent(core, replied);
    }

    /// Answers a request that failed.
    pub fn refuse(self: &Rc<Self>, core: &Core, to: ReplyTo, refusal: &Refusal) {
        let replied = self.connection.borrow_mut().refuse(to, refusal);
        self.sent(core, replied);
    }

    /// Tells of an event; one that must not arrive may be dropped and counted.
    pub fn event<M: Message>(self: &Rc<Self>, core: &Core, message: &M, must_arrive: bool) {
        let told = self.connection.borrow_mut().event(message, must_arrive);
        self.sent(core, told.map(drop));
    }

    /// Something was written for the client: it goes out after the batch. A client that does not read is not worth more.
    pub fn sent(self: &Rc<Self>, core: &Core, written: Result<(), ConnectionError>) {
        if let Err(error) = written {
            tracing::info!(pid = self.pid, %error, "a native client is cut off");
            self.shut();
        }
        core.native.mark_dirty(self);
    }

    /// Sends what the socket takes.
    pub fn flush(&self, io: &Io) {
        while !self.is_blocked.get() {
            let sent = {
                let connection = self.connection.borrow();
                let unsent = connection.unsent();
                if unsent.bytes.is_empty() {
                    return;
                }
                let descriptors: Vec<_> = unsent.descriptors.iter().map(AsFd::as_fd).collect();
                fds::send(&self.socket, unsent.bytes, &descriptors)
            };
            match sent {
                Ok(Some(bytes)) => self.connection.borrow_mut().sent(bytes),
                Ok(None) => {
                    self.is_blocked.set(true);
                    io.wish(Wish::TellWritable(self.key));
                }
                // Whatever is wrong, the socket's end tells it too.
                Err(_) => return self.shut(),
            }
        }
    }

    /// The socket has room again.
    pub fn writable(&self, io: &Io) {
        self.is_blocked.set(false);
        self.flush(io);
    }

    /// Closes the connection in both directions at once. What was sent before can still be read.
    pub fn shut(&self) {
        self.is_closed.set(true);
        // The peer may have gone first; there is nobody left to tell.
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
    }
}
