//! A native worker: a process that serves leases.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::shared::{due, Shared, State};
use super::slots::Undo;
use super::{Client, ClientError, Options};
use crate::fault::{self, Point};
use crate::ids::WorkerId;
use crate::messages::{AllocatedResource, Blocked, OwnedReply, RegisterWorker, Unblocked, WorkDone, WorkerExit};

/// Where the node tells a process that it starts which start it is.
pub const START_TOKEN_ENV: &str = "RAYLET_START_TOKEN";

/// A registered worker. It takes [`Work`], does it, and says that it is done.
pub struct Worker {
    client: Client,
    id: WorkerId,
}

/// What a worker is told.
pub enum Work {
    /// Do this.
    Assigned(Assignment),
    /// The lease of this assignment has ended: what is still being done for it is for nobody.
    Revoked(u64),
    /// End; at once if `forced`.
    Stop {
        /// Whatever it does.
        forced: bool,
        /// Why.
        detail: String,
    },
}

/// Work for a lease. Dropping it without a word reports failure.
pub struct Assignment {
    shared: Arc<Shared>,
    number: u64,
    /// Whose lease it is.
    pub owner: WorkerId,
    /// Which instances of which resources it may use.
    pub allocation: Vec<AllocatedResource>,
    /// What the owner gave along.
    pub payload: Vec<u8>,
    is_done: bool,
}

/// What an owner sees as status of an assignment that its worker dropped.
pub const STATUS_DROPPED: i32 = -1;

impl Worker {
    /// Connects to a node and registers as a worker for leases of a class, reachable at an address of its own, if it has one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn register(path: impl AsRef<Path>, class: &str, address: &str) -> Result<Self, ClientError> {
        Self::register_with(Client::connect_with(path, Options::default())?, class, address)
    }

    /// The same on a connection.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn register_with(client: Client, class: &str, address: &str) -> Result<Self, ClientError> {
        let token = std::env::var(START_TOKEN_ENV).ok();
        let start_token = match token.as_deref().map(str::parse) {
            None => 0,
            Some(Ok(token)) => token,
            Some(Err(_)) => {
                let token = token.unwrap_or_default();
                return Err(ClientError::Argument(format!(
                    "{START_TOKEN_ENV} is {token:?}, expected a number: leave it as it is"
                )));
            }
        };
        let register = RegisterWorker {
            start_token,
            pid: std::process::id(),
            class_name: class.to_owned(),
            address: address.to_owned(),
        };
        let id = due!(client.shared.call(&register, Undo::Nothing)?, Registered)?.worker;
        fault::pass(Point::WorkerRegistered);
        Ok(Self { client, id })
    }

    /// Its name in grants, and as an owner of objects.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// Its connection, for objects and leases of its own.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What to do next, waited for at most `timeout` (`None`: for ever).
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], or the connection is of no more use: end.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Work, ClientError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let shared = &self.client.shared;
        let next = |state: &mut State| next_work(state, shared).map(Ok);
        shared.wait(shared.lock(), deadline, false, next).map(|(_, work)| work)
    }

    /// Says that the worker ends, and why (0: as intended).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn exit(self, status: i32, detail: &str) -> Result<(), ClientError> {
        let exit = WorkerExit { status, detail: detail.to_owned() };
        due!(self.client.shared.call(&exit, Undo::Nothing)?, Done).map(drop)
    }
}

fn next_work(state: &mut State, shared: &Arc<Shared>) -> Option<Work> {
    let is_work =
        |event: &OwnedReply| matches!(event, OwnedReply::Assigned(_) | OwnedReply::Revoked(_) | OwnedReply::Stop(_));
    let at = state.link.events.iter().position(is_work)?;
    fault::pass(Point::WorkTaken);
    Some(match state.link.events.remove(at)? {
        OwnedReply::Assigned(assigned) => Work::Assigned(Assignment {
            shared: shared.clone(),
            number: assigned.assignment,
            owner: assigned.owner,
            allocation: assigned.allocation,
            payload: assigned.payload,
            is_done: false,
        }),
        OwnedReply::Revoked(revoked) => Work::Revoked(revoked.assignment),
        OwnedReply::Stop(stop) => Work::Stop { forced: stop.forced, detail: stop.detail },
        _ => return None,
    })
}

impl Assignment {
    /// The node's number for it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// It is done: status (0: success) and result go to the owner.
    ///
    /// # Errors
    /// [`ClientError`], where the connection is of no more use.
    pub fn done(mut self, status: i32, result: impl Into<Vec<u8>>) -> Result<(), ClientError> {
        self.is_done = true;
        let done = WorkDone { assignment: self.number, status, result: result.into() };
        self.shared.one_way(self.shared.lock(), &done).map(drop)
    }

    /// Does something that waits, while its CPU is free for others.
    ///
    /// # Errors
    /// [`ClientError`], where the connection is of no more use. What was waited for is not done then.
    pub fn blocked<T>(&self, wait: impl FnOnce() -> T) -> Result<T, ClientError> {
        let assignment = self.number;
        drop(self.shared.one_way(self.shared.lock(), &Blocked { assignment })?);
        let result = wait();
        drop(self.shared.one_way(self.shared.lock(), &Unblocked { assignment })?);
        Ok(result)
    }
}

impl Drop for Assignment {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let dropped = WorkDone { assignment: self.number, status: STATUS_DROPPED, result: Vec::new() };
        let mut state = self.shared.lock();
        state.link.one_way_later(&dropped);
        // Where the connection is dead the owner learns it from the node.
        let _ = state.link.flush();
    }
}
