//! Objects in files of their own, beside the store: where neither memory nor spilling has room for one, it is made in a file on
//! disk that clients map like a segment, as in stock Ray (*fallback allocation*).

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raylet_shard::ids::{ObjectId, Token};
use raylet_shard::store::StoreEvent;
use raylet_transport::spill::check_room;
use raylet_tuning::Segment;
use rustc_hash::FxHashMap;

use crate::core_io::Io;
use crate::core_loop::Core;
use crate::native;

/// Files of this kind at a time; each takes a descriptor of the node and of each client that maps it.
const FILES_MAX: usize = 4096;

/// Where such files are made.
#[derive(Clone, Debug)]
pub struct FileSettings {
    /// The directory.
    pub directory: PathBuf,
    /// Share of the disk, 0 to 1, that may be full.
    pub capacity_share: f64,
}

/// The files of a node, by segment number: numbers that the store's own segments don't have.
#[derive(Debug, Default)]
pub struct Files {
    files: Mutex<FxHashMap<u32, Arc<Segment>>>,
    made: AtomicU32,
}

impl Files {
    fn lock(&self) -> MutexGuard<'_, FxHashMap<u32, Arc<Segment>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of this number.
    pub fn get(&self, segment: u32) -> Option<Arc<Segment>> {
        self.lock().get(&segment).cloned()
    }

    fn add(&self, first: u32, file: Segment) -> Option<u32> {
        let mut files = self.lock();
        if files.len() >= FILES_MAX {
            return None;
        }
        // Numbers come around only after billions of files.
        let number = first.checked_add(self.made.fetch_add(1, Ordering::Relaxed))?;
        files.insert(number, Arc::new(file));
        Some(number)
    }

    /// The object in this file is gone. Clients that still map it keep what they map.
    pub fn remove(&self, segment: u32) {
        self.lock().remove(&segment);
    }
}

/// Makes a file for an object, and tells the store.
pub fn make(core: &Rc<Core>, settings: Option<&FileSettings>, id: ObjectId, token: Token, bytes: u64) {
    let answer = move |core: &Rc<Core>, segment| core.store_here(StoreEvent::FallbackReady { id, token, segment });
    // A native client maps the segments that it was told of when it came, and no others.
    let Some(settings) = settings.filter(|_| !native::is_native(token)).cloned() else {
        return answer(core, None);
    };
    let guest = core.clone();
    Io::guest(core, async move {
        let made = glommio::executor().spawn_blocking(move || {
            check_room(&settings.directory, bytes, settings.capacity_share)?;
            Segment::on_disk(&settings.directory, bytes).map_err(|e| e.to_string())
        });
        let first = guest.segments().len() as u32;
        let segment = match made.await {
            Ok(file) => guest.spills.files().add(first, file),
            Err(error) => {
                tracing::warn!(error, "no file for an object that the store has no room for");
                None
            }
        };
        answer(&guest, segment);
    });
}
