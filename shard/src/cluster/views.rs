//! What this node knows of the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{holds, Amounts};
use crate::ids::{NodeId, NowNs};
use crate::sched::Fixed;

/// A view from which something was taken off is put back to what its node told after this long: what was sent there either
/// arrived, and the node has told of it, or it did not, and the node has nothing to tell (Ray 2.60,
/// `ray_syncer_message_refresh_interval_ms`).
pub const REFRESH_NS: u64 = 3_000_000_000;

/// The resources whose use decides how full a node is (Ray 2.60, `CalculateCriticalResourceUtilization`).
const CRITICAL: [&str; 3] = ["CPU", "memory", "object_store_memory"];

/// What a node tells of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// All that it has.
    pub total: Amounts,
    /// What is free.
    pub available: Amounts,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It takes no new work.
    pub draining: bool,
}

/// Another node.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) view: Arc<View>,
    /// What is free by the view, less what was sent there since it came. `None`: nothing was.
    debited: Option<Amounts>,
    debited_at: Option<NowNs>,
}

impl Peer {
    /// What is free, less what was sent there since the view came.
    pub(super) fn free(&self) -> &Amounts {
        self.debited.as_ref().unwrap_or(&self.view.available)
    }

    /// The highest used part of CPU, memory and object store, 0 to 1.
    pub(super) fn utilization(&self) -> f64 {
        let part = |name: &str| {
            let total = self.view.total.get(name).copied().filter(|total| *total > Fixed::ZERO)?;
            let free = self.free().get(name).copied().unwrap_or_default();
            Some((1.0 - free.to_f64() / total.to_f64()).clamp(0.0, 1.0))
        };
        CRITICAL.iter().filter_map(|name| part(name)).fold(0.0, f64::max)
    }

    pub(super) fn has_gpu(&self) -> bool {
        self.view.total.get("GPU").is_some_and(|gpus| *gpus > Fixed::ZERO)
    }
}

/// The other nodes of the cluster that live, in the order of their ids.
#[derive(Clone, Debug, Default)]
pub struct Views {
    pub(super) peers: BTreeMap<NodeId, Peer>,
    /// Where the next spread begins.
    pub(super) round: usize,
    news: bool,
}

impl Views {
    /// A node tells of itself, or the GCS of a new one.
    pub fn heard(&mut self, node: NodeId, view: impl Into<Arc<View>>) {
        let view = view.into();
        self.news |= self.peers.get(&node).is_none_or(|peer| {
            peer.view.draining != view.draining
                || peer.view.total != view.total
                || view.available.iter().any(|(name, free)| peer.free().get(name).is_none_or(|before| free > before))
        });
        self.peers.insert(node, Peer { view, debited: None, debited_at: None });
    }

    /// True for a node that is known.
    pub fn knows(&self, node: &NodeId) -> bool {
        self.peers.contains_key(node)
    }

    /// A node is dead.
    pub fn died(&mut self, node: &NodeId) {
        self.peers.remove(node);
    }

    /// True where this node is alone.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// How many other nodes there are.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// The last view of a node.
    pub fn get(&self, node: &NodeId) -> Option<&View> {
        self.peers.get(node).map(|peer| &*peer.view)
    }

    /// True where something changed that may let a waiting lease go elsewhere, since [`Self::take_news`].
    pub fn has_news(&self) -> bool {
        self.news
    }

    /// True once after each change that may let a waiting lease go elsewhere.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// A lease is sent to a node: until that tells anew, so much less is free there. A node that has not so much is left as it is
    /// known: the lease will wait there.
    pub fn debit(&mut self, node: &NodeId, demand: &Amounts, now: NowNs) {
        let Some(peer) = self.peers.get_mut(node).filter(|peer| holds(peer.free(), demand)) else {
            return;
        };
        let debited = peer.debited.get_or_insert_with(|| peer.view.available.clone());
        for (name, amount) in demand {
            if let Some(free) = debited.get_mut(name) {
                *free -= *amount;
            }
        }
        peer.debited_at = Some(now);
    }

    /// Puts back views that were debited [`REFRESH_NS`] ago and not told anew.
    pub fn refresh(&mut self, now: NowNs) {
        for peer in self.peers.values_mut() {
            if peer.debited_at.is_some_and(|at| now.saturating_sub(at) >= REFRESH_NS) {
                (peer.debited, peer.debited_at) = (None, None);
                self.news = true;
            }
        }
    }
}
