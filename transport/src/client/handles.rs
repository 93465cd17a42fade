//! What a client holds: objects, objects in the making, leases. Dropping one gives it back.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::segments::Piece;
use super::shared::{due, Shared};
use super::slots::Undo;
use super::ClientError;
use crate::ids::{ObjectId, WorkerId};
use crate::messages::{AllocatedResource, KeepLease, Refusal, ReturnLease, Seal};

/// A sealed object in shared memory, which stays there as long as this lives. Dereferences to its data.
pub struct Object {
    shared: Arc<Shared>,
    id: ObjectId,
    piece: Piece,
}

impl Object {
    pub(crate) fn new(shared: Arc<Shared>, id: ObjectId, piece: Piece) -> Self {
        Self { shared, id, piece }
    }

    /// Its name.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Its data.
    pub fn data(&self) -> &[u8] {
        &self.piece.bytes()[..self.piece.data_bytes()]
    }

    /// Its metadata.
    pub fn metadata(&self) -> &[u8] {
        &self.piece.bytes()[self.piece.data_bytes()..]
    }
}

impl Deref for Object {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.data()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        self.shared.give_back(Undo::Release(self.id));
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Object({}, {} bytes)", self.id, self.data().len())
    }
}

/// A new object that is being written. Dereferences to its data; dropping it unsealed aborts it.
pub struct ObjectWriter {
    shared: Arc<Shared>,
    id: ObjectId,
    piece: Piece,
    is_sealed: bool,
}

impl std::fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ObjectWriter({})", self.id)
    }
}

impl ObjectWriter {
    pub(crate) fn new(shared: Arc<Shared>, id: ObjectId, piece: Piece) -> Self {
        Self { shared, id, piece, is_sealed: false }
    }

    /// Its name.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Its metadata, to be written.
    pub fn metadata_mut(&mut self) -> &mut [u8] {
        let data = self.piece.data_bytes();
        &mut self.piece.bytes_mut()[data..]
    }

    /// Makes it readable for everybody, and kept for this client until it deletes it or goes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn seal(self) -> Result<ObjectId, ClientError> {
        self.seal_as(true)
    }

    /// Makes it readable for everybody; it may be evicted when nobody uses it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn seal_unpinned(self) -> Result<ObjectId, ClientError> {
        self.seal_as(false)
    }

    fn seal_as(mut self, pin: bool) -> Result<ObjectId, ClientError> {
        let answer = self.shared.call(&Seal { object: self.id, pin }, Undo::Nothing)?;
        due!(answer, Done)?;
        self.is_sealed = true;
        Ok(self.id)
    }
}

impl Deref for ObjectWriter {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.piece.bytes()[..self.piece.data_bytes()]
    }
}

impl DerefMut for ObjectWriter {
    fn deref_mut(&mut self) -> &mut [u8] {
        let data = self.piece.data_bytes();
        &mut self.piece.bytes_mut()[..data]
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        if !self.is_sealed {
            self.shared.give_back(Undo::Abort(self.id));
        }
    }
}

/// How a lease ended, or its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    /// The worker has done it. The lease is still to be returned.
    Done {
        /// As the worker said; 0 is success.
        status: i32,
        /// As the worker said.
        result: Vec<u8>,
    },
    /// The lease is gone: its worker died, or it was not used in time.
    Lost(Refusal),
}

/// A lease that was granted. Dropping it returns it.
pub struct Lease {
    shared: Arc<Shared>,
    number: u32,
    /// Who serves it; nil where its class needs no worker.
    pub worker: WorkerId,
    /// Where the worker listens, as it said.
    pub address: String,
    /// Which instances of which resources it has.
    pub allocation: Vec<AllocatedResource>,
    is_returned: bool,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({} at {:?})", self.number, self.worker)
    }
}

impl Lease {
    pub(crate) fn new(
        shared: Arc<Shared>,
        number: u32,
        worker: WorkerId,
        address: String,
        allocation: Vec<AllocatedResource>,
    ) -> Self {
        Self { shared, number, worker, address, allocation, is_returned: false }
    }

    /// The client's number for it.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Gives it back: its worker serves the next one. Nothing is waited for.
    ///
    /// # Errors
    /// [`ClientError`], where the connection is of no more use.
    pub fn return_(mut self) -> Result<(), ClientError> {
        self.give_back(false)
    }

    /// Gives it back, and has its worker ended.
    ///
    /// # Errors
    /// [`ClientError`], where the connection is of no more use.
    pub fn return_broken(mut self) -> Result<(), ClientError> {
        self.give_back(true)
    }

    fn give_back(&mut self, broken: bool) -> Result<(), ClientError> {
        self.is_returned = true;
        let mut state = self.shared.lock();
        state.link.leases.remove(&self.number);
        self.shared.one_way(state, &ReturnLease { lease: self.number, broken }).map(drop)
    }

    /// Tells the node that it is in use, so that it is not taken back.
    ///
    /// # Errors
    /// [`ClientError`], where the connection is of no more use.
    pub fn keep(&self) -> Result<(), ClientError> {
        self.shared.one_way(self.shared.lock(), &KeepLease { lease: self.number }).map(drop)
    }

    /// Waits until the worker is done or the lease is lost. `None` as timeout: for ever.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], or the connection is of no more use.
    pub fn wait_done(&self, timeout: Option<Duration>) -> Result<LeaseEnd, ClientError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let end = |state: &mut super::shared::State| state.link.lease_end(self.number).map(Ok);
        self.shared.wait(self.shared.lock(), deadline, false, end).map(|(_, end)| end)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_returned {
            self.shared.lock().link.leases.remove(&self.number);
            self.shared.give_back(Undo::Return(self.number));
        }
    }
}

impl Shared {
    /// From a destructor: nothing is waited for.
    pub(crate) fn give_back(&self, undo: Undo) {
        let mut state = self.lock();
        state.link.undo(undo);
        // A connection that is dead has given everything back already.
        let _ = state.link.flush();
    }
}
