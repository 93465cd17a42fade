//! Objects that are on disk only: other nodes are sent them from their files, and the store needs no room for them.
//!
//! Chunks are read on threads that may wait, into a bounded number of buffers, and count only when their checksums are right. What can't
//! be read so is read back to memory like any spilled object, where tries are counted and a loss is told; then it is sent from there.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use raylet_shard::ids::{NodeId, ObjectId, WorkerId};
use raylet_shard::store::StoreEvent;
use raylet_transport::spill::{chunk_buffer_bytes, ReadError, SpilledObject};
use raylet_transport::uring::PageBuffer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::send::CopyAt;
use super::{sender, Transfer};

/// Chunks that are in buffers at a time, being read or sent; further ones wait.
pub const FILE_CHUNKS_MAX: u64 = 16;

/// What these buffers take together, in bytes; one there is always.
pub const FILE_CHUNKS_MAX_BYTES: u64 = 96 << 20;

/// Reads chunks out of files.
pub(super) struct FileReads {
    room: Arc<Semaphore>,
    places: usize,
    buffer_bytes: u64,
    /// Buffers that are not in use.
    idle: RefCell<Vec<Arc<PageBuffer>>>,
}

/// A chunk that was read, in its buffer.
pub(super) struct ReadChunk {
    pub(super) buffer: Arc<PageBuffer>,
    /// Where in the buffer it begins.
    pub(super) offset: u64,
    reads: Rc<FileReads>,
    _place: OwnedSemaphorePermit,
}

impl FileReads {
    /// For chunks of so many bytes.
    pub(super) fn new(chunk_bytes: u64) -> Self {
        let buffer_bytes = chunk_buffer_bytes(chunk_bytes);
        let places = (FILE_CHUNKS_MAX_BYTES / buffer_bytes).clamp(1, FILE_CHUNKS_MAX) as usize;
        Self { room: Arc::new(Semaphore::new(places)), places, buffer_bytes, idle: RefCell::default() }
    }

    /// Reads `len` bytes from `start` on, once there is a buffer for them.
    pub(super) async fn read(
        self: &Rc<Self>,
        object: Arc<SpilledObject>,
        start: u64,
        len: u64,
    ) -> Result<ReadChunk, ReadError> {
        let place = self.room.clone().acquire_owned().await.map_err(io::Error::other)?;
        let idle = self.idle.borrow_mut().pop();
        let buffer_bytes = self.buffer_bytes as usize;
        let read = tokio::task::spawn_blocking(move || {
            // A connection that broke may not have let go of it yet.
            let idle = idle.filter(|buffer| Arc::strong_count(buffer) == 1);
            let mut buffer = idle.map_or_else(|| PageBuffer::new(buffer_bytes).map(Arc::new), Ok)?;
            let alone = Arc::get_mut(&mut buffer).ok_or_else(|| io::Error::from(io::ErrorKind::ResourceBusy))?;
            let offset = object.read(start, len, alone)?;
            Ok::<_, ReadError>((buffer, offset))
        });
        let (buffer, offset) = read.await.map_err(io::Error::other)??;
        Ok(ReadChunk { buffer, offset, reads: self.clone(), _place: place })
    }
}

impl Drop for ReadChunk {
    fn drop(&mut self) {
        let mut idle = self.reads.idle.borrow_mut();
        // The last one in use: nothing is being sent any more.
        match self.reads.room.available_permits() + 1 == self.reads.places {
            true => idle.clear(),
            false => idle.push(self.buffer.clone()),
        }
    }
}

impl Transfer {
    /// An object that somebody asked for is on disk only; `None`: it can't be read there by this thread.
    pub(super) fn got_spilled(
        self: &Rc<Self>,
        id: ObjectId,
        token: u64,
        owner: WorkerId,
        object: Option<SpilledObject>,
    ) {
        match object {
            Some(object) => {
                let at = CopyAt::File(Arc::new(object));
                if !self.is_here(id, token, at, owner) {
                    self.store(id, StoreEvent::SentSpilled { id, faulty: false });
                }
            }
            None => {
                self.store(id, StoreEvent::SentSpilled { id, faulty: true });
                self.get_anew(id, Some(token));
            }
        }
    }

    /// An object could not be read from its file: nothing more of it is sent from there.
    pub(super) fn file_failed(&self, object: ObjectId, error: &ReadError) {
        let mut sending = self.sending.borrow_mut();
        let served = sending.served.get_mut(&object).filter(|served| !served.faulty);
        if let Some(served) = served {
            served.faulty = true;
            tracing::warn!(%object, %error, "a spilled object can't be sent from its file; it is read back first");
        }
    }

    /// Nothing of an object whose file is faulty is under way to this node any more. It waits again, and once nothing is under way to
    /// any node the object is asked for anew.
    pub(super) fn wait_again(self: &Rc<Self>, object: ObjectId, node: NodeId) {
        let mut sending = self.sending.borrow_mut();
        let Some(served) = sending.served.get_mut(&object) else {
            return;
        };
        served.wait(node);
        if !served.pushes.is_empty() {
            return;
        }
        // These find their offers taken back, and new ones made.
        let offers = std::mem::take(&mut served.offers);
        offers.into_iter().for_each(|node| served.wait(node));
        (served.here, served.faulty) = (None, false);
        drop(sending);
        self.store(object, StoreEvent::SentSpilled { id: object, faulty: true });
        self.get_anew(object, None);
    }

    /// Asks the store for an object that is still asked for, to have it in memory. `token`: of the request that this one follows.
    fn get_anew(self: &Rc<Self>, id: ObjectId, token: Option<u64>) {
        let new = {
            let mut sending = self.sending.borrow_mut();
            let new = sending.new_token();
            let served = sending.served.get_mut(&id).filter(|served| served.here.is_none());
            let Some(served) = served.filter(|served| token.is_none_or(|token| served.token == token)) else {
                return;
            };
            served.token = new;
            new
        };
        self.store(id, StoreEvent::Get { client: sender(), token: new, id, wait: true });
        self.wait_patiently(id, new);
    }
}
