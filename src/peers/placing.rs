//! Leases that this node can't serve, or not now: which peer can. As in a Ray cluster ([`raylet_shard::cluster`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use raylet_shard::cluster::{Amounts, Choice, Here, Policy, Want};
use raylet_shard::ids::ClientId;
use raylet_transport::ids as wire;
use raylet_transport::messages::{Refusal, RefusalCode, Spillback};
use raylet_transport::server::ReplyTo;

use super::Peers;

/// A lease that waits for resources.
#[derive(Debug)]
pub struct WaitingLease {
    /// Whose.
    pub client: ClientId,
    /// Its number of the lease.
    pub lease: u32,
    /// What it will hold.
    pub wanted: Arc<Amounts>,
}

impl Peers {
    /// A request that this node can never serve: its client is sent to a peer that can, now or when it has room.
    pub(super) fn elsewhere(&self, client: ClientId, to: ReplyTo, wanted: &Amounts, why: Refusal) {
        let refusal = self.choose(wanted, false).unwrap_or(why);
        self.native.refuse(client, to, refusal);
    }

    /// Leases that wait: those for which a peer has room go there. Each takes its part of what that peer is known to have.
    pub(super) fn look_for_room(&self, waiting: &[WaitingLease]) {
        for WaitingLease { client, lease, wanted } in waiting {
            if let Some(there) = self.choose(wanted, true) {
                self.native.spill(*client, *lease, there);
            }
        }
    }

    /// The peer for a lease, in words for its client. `feasible`: this node could serve it too, and is preferred where no peer has room.
    fn choose(&self, wanted: &Amounts, feasible: bool) -> Option<Refusal> {
        let want = Want { demand: wanted.clone(), placement: wanted.clone(), ..Want::default() };
        let labels = BTreeMap::new();
        let here = Here {
            id: self.node,
            labels: &labels,
            open: !self.native.is_draining(),
            feasible,
            available: false,
            grantable: false,
            utilization: 1.0,
            has_gpu: false,
        };
        let mut views = self.views.borrow_mut();
        let mut lot = |below: usize| rand::random_range(0..below.max(1));
        let Choice::There(node) = views.pick(&want, &here, true, &Policy::default(), &mut lot) else {
            return None;
        };
        let (address, socket) = self.place_of(&node)?;
        views.debit(&node, wanted, self.now());
        let there = Spillback { node: wire::NodeId(node.0), address, socket: socket.into() };
        Some(Refusal::new(RefusalCode::Spillback, there.to_string()))
    }
}
