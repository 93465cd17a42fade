//! What is wanted here: who has it, and the pull manager, which decides whom to ask and when.
//!
//! There is no list of where objects are. A node that wants one asks all its peers to tell when they have it, and takes that back when
//! nobody wants it any more. So an object is found wherever it is, made there or received, and one that is made later as soon as it
//! is sealed.

use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::{LeaseId, NodeId, ObjectId, Token, WorkerId};
use raylet_shard::pull::{Kind, PullConfig, PullEffect, PullEvent, PullManager, PullStats, Target, WishId};
use raylet_shard::store::{ObjectSource, StoreEvent};
use raylet_transport::ids as wire;
use raylet_transport::peers::{Held, PeerMessage};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{here, maker, Peers};
use crate::bridge::core_reports;
use crate::core_loop::SILENT;
use crate::ray::control::pulls::room;
use crate::ray::transfer::{ToTransfer, TransferNews};

/// Objects wanted at a time. Wishes beyond it wait for their objects to come by themselves.
pub const WANTED_MAX: usize = 1 << 20;

/// A node that was asked and sends nothing for so long has failed.
const PULL_TIMEOUT: Duration = Duration::from_secs(10);

/// Pauses before a node is asked again where all have failed.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How often the pull manager hears of room and time, while anything is wanted.
const TICK: Duration = Duration::from_millis(50);

/// Pause before a node is asked again that could not watch for an object.
const LATER: Duration = Duration::from_secs(1);

/// Objects that are no longer wanted, but of which it is yet to be heard that they came: those who waited hear first.
const COMING_MAX: usize = 4_096;

/// What is fetched.
pub struct Fetching {
    manager: PullManager,
    ticking: bool,
    wanted: FxHashMap<ObjectId, Wanted>,
    coming: FxHashMap<ObjectId, Wanted>,
    /// Wishes of queued leases.
    leases: FxHashMap<LeaseId, WishId>,
}

/// An object that is wanted here.
#[derive(Default)]
struct Wanted {
    holders: SmallVec<[NodeId; 2]>,
    size_bytes: u64,
    asked: Option<NodeId>,
}

impl Fetching {
    /// Nothing is wanted yet.
    pub fn new(capacity_bytes: u64) -> Self {
        let mut manager = PullManager::new(PullConfig {
            timeout_ns: PULL_TIMEOUT.as_nanos() as u64,
            // All nodes are asked where an object is, and none before.
            likely_ns: PULL_TIMEOUT.as_nanos() as u64,
            retry_min_ns: RETRY_MIN.as_nanos() as u64,
            retry_max_ns: RETRY_MAX.as_nanos() as u64,
            objects_max: WANTED_MAX,
        });
        manager.handle(PullEvent::Room { free_bytes: capacity_bytes, starving: false }, 0, &mut Vec::new());
        Self {
            manager,
            ticking: false,
            wanted: FxHashMap::default(),
            coming: FxHashMap::default(),
            leases: FxHashMap::default(),
        }
    }

    /// An object came: from whom, and how large it is.
    fn came(&mut self, object: &ObjectId) -> Option<(NodeId, u64)> {
        let coming = self.coming.remove(object);
        let wanted = self.wanted.get(object).or(coming.as_ref())?;
        Some((wanted.asked?, wanted.size_bytes))
    }

    fn forget(&mut self, object: &ObjectId) {
        if self.coming.len() >= COMING_MAX {
            self.coming.clear();
        }
        if let Some(wanted) = self.wanted.remove(object).filter(|wanted| wanted.asked.is_some()) {
            self.coming.insert(*object, wanted);
        }
    }

    /// Figures for reports.
    pub fn stats(&self) -> PullStats {
        self.manager.stats()
    }

    /// All that is wanted.
    pub fn wanted(&self) -> Vec<ObjectId> {
        self.wanted.keys().copied().collect()
    }

    /// The wish of a lease, a new one where it has none.
    pub fn wish_of(&mut self, lease: LeaseId, new: impl FnOnce() -> WishId) -> WishId {
        *self.leases.entry(lease).or_insert_with(new)
    }

    /// A lease wants nothing more; the wish that it had.
    pub fn wish_over(&mut self, lease: &LeaseId) -> Option<WishId> {
        self.leases.remove(lease)
    }
}

impl Peers {
    /// Requests wait for objects.
    pub(super) fn want(self: &Rc<Self>, kind: Kind, objects: &[(Token, ObjectId)]) {
        let want = |(wish, object): &(Token, ObjectId)| PullEvent::Want {
            wish: *wish,
            kind,
            objects: vec![Target::missing(*object)],
        };
        self.pulled(objects.iter().map(want));
    }

    /// A lease waits for objects.
    pub(super) fn want_arguments(self: &Rc<Self>, wish: WishId, objects: Vec<ObjectId>) {
        let objects = objects.into_iter().map(Target::missing).collect();
        self.pulled([PullEvent::Want { wish, kind: Kind::Arguments, objects }]);
    }

    /// An object that a lease waits for came by itself.
    pub(super) fn came(self: &Rc<Self>, object: ObjectId) {
        self.pulled([PullEvent::Here { object, held: false }]);
    }

    /// Wishes are over.
    pub(super) fn unwant(self: &Rc<Self>, wishes: &[WishId]) {
        self.pulled(wishes.iter().map(|wish| PullEvent::Unwant { wish: *wish }));
    }

    /// A peer has an object.
    pub(super) fn held_by(self: &Rc<Self>, node: NodeId, held: &Held) {
        let (object, size_bytes) = (here(held.object), held.size_bytes);
        if size_bytes == 0 {
            return self.make_empty(object);
        }
        let nodes = {
            let mut fetching = self.fetching.borrow_mut();
            // It may be wanted no longer.
            let Some(wanted) = fetching.wanted.get_mut(&object) else {
                return;
            };
            wanted.size_bytes = size_bytes;
            if !wanted.holders.contains(&node) {
                wanted.holders.push(node);
            }
            wanted.holders.to_vec()
        };
        self.pulled([PullEvent::Located { object, size_bytes, nodes, pending: false }]);
    }

    /// An object without a byte is not fetched but made. One that the store does not take now is tried again.
    fn make_empty(self: &Rc<Self>, id: ObjectId) {
        if !self.fetching.borrow().wanted.contains_key(&id) {
            return;
        }
        let (client, token, owner) = (maker(), SILENT, WorkerId::NIL);
        let source = ObjectSource::ReceivedFromRemote;
        let (data_bytes, metadata_bytes, mutable, try_immediately) = (0, 0, false, true);
        self.store(
            &id,
            StoreEvent::Create {
                client,
                token,
                id,
                data_bytes,
                metadata_bytes,
                owner,
                source,
                mutable,
                try_immediately,
                near: None,
            },
        );
        self.store(&id, StoreEvent::Seal { client, token, id });
        self.store(&id, StoreEvent::Release { client, id });
        let peers = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(LATER).await;
            peers.make_empty(id);
        });
    }

    /// A peer could not watch for objects: it is asked again.
    pub(super) async fn want_again(self: Rc<Self>, index: usize, objects: Vec<wire::ObjectId>) {
        tokio::time::sleep(LATER).await;
        let mut objects: Vec<ObjectId> = objects.into_iter().map(here).collect();
        objects.retain(|object| self.fetching.borrow().wanted.contains_key(object));
        self.send_to(index, &objects, |objects| PeerMessage::Want { objects });
    }

    /// A peer is lost, and what it had with it.
    pub(super) fn holder_lost(self: &Rc<Self>, node: NodeId) {
        let mut events = Vec::new();
        for (object, wanted) in &mut self.fetching.borrow_mut().wanted {
            let before = wanted.holders.len();
            wanted.holders.retain(|holder| *holder != node);
            if wanted.holders.len() < before {
                let (object, size_bytes, nodes) = (*object, wanted.size_bytes, wanted.holders.to_vec());
                events.push(PullEvent::Located { object, size_bytes, nodes, pending: false });
                events.push(PullEvent::Failed { object, from: node });
            }
        }
        self.pulled(events);
    }

    /// News of the thread that moves objects, until it ends.
    pub(super) async fn hear_transfers(self: Rc<Self>, news: flume::Receiver<TransferNews>) {
        while let Ok(news) = news.recv_async().await {
            self.pulled([match news {
                TransferNews::Received { object } => {
                    self.count(&object);
                    PullEvent::Here { object, held: true }
                }
                TransferNews::Progress { object, from } => PullEvent::Progress { object, from },
                TransferNews::Failed { object, from } => PullEvent::Failed { object, from },
                TransferNews::Elsewhere { object, from, to } => PullEvent::Elsewhere { object, from, to },
                TransferNews::NoRoom { object } => PullEvent::NoRoom { object },
            }]);
        }
    }

    fn count(&self, object: &ObjectId) {
        let came = self.fetching.borrow_mut().came(object);
        if let Some((node, size_bytes)) = came {
            self.count_received(&node, size_bytes);
        }
    }

    /// Tells the pull manager, and does what it wants done.
    fn pulled(self: &Rc<Self>, events: impl IntoIterator<Item = PullEvent>) {
        let mut effects = Vec::new();
        let tick = {
            let fetching = &mut *self.fetching.borrow_mut();
            let now = self.now();
            events.into_iter().for_each(|event| fetching.manager.handle(event, now, &mut effects));
            let is_wanting = fetching.manager.is_wanting();
            is_wanting && !std::mem::replace(&mut fetching.ticking, is_wanting)
        };
        self.carry_out(effects);
        if tick {
            tokio::task::spawn_local(self.clone().tick());
        }
    }

    fn carry_out(&self, effects: Vec<PullEffect>) {
        let mut located = Vec::new();
        for effect in effects {
            match effect {
                PullEffect::Locate { object } => {
                    self.fetching.borrow_mut().wanted.insert(object, Wanted::default());
                    located.push(object);
                }
                PullEffect::Forget { object } => {
                    self.link.send(ToTransfer::Stop { object });
                    self.fetching.borrow_mut().forget(&object);
                    match located.contains(&object) {
                        // Nobody was asked yet.
                        true => located.retain(|other| *other != object),
                        false => self.send_to_all(&[object], |objects| PeerMessage::Unwant { objects }),
                    }
                }
                PullEffect::Ask { object, from } | PullEffect::AskIfThere { object, from } => {
                    if let Some(wanted) = self.fetching.borrow_mut().wanted.get_mut(&object) {
                        wanted.asked = Some(from);
                    }
                    // Its owner's pins are where its owner is: here it is a copy that goes when its room is needed.
                    let if_there = matches!(effect, PullEffect::AskIfThere { .. });
                    self.link.send(ToTransfer::Ask { object, owner: WorkerId::NIL, from, if_there });
                }
                PullEffect::Stop { object } => self.link.send(ToTransfer::Stop { object }),
                PullEffect::Release { object } => self.link.send(ToTransfer::Release { object }),
            }
        }
        self.send_to_all(&located, |objects| PeerMessage::Want { objects });
    }

    /// While anything is wanted: lets time pass, and looks at the room that the store has.
    async fn tick(self: Rc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            let reports = core_reports(&self.cores, false).await;
            self.pulled([room(&reports, self.capacity_bytes, self.link.creating()), PullEvent::Tick]);
            let mut fetching = self.fetching.borrow_mut();
            if !fetching.manager.is_wanting() {
                fetching.ticking = false;
                return;
            }
        }
    }
}
