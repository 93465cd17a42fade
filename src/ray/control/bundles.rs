//! Placement groups on this node: bundles are prepared, committed and given back.

use std::rc::Rc;

use raylet_shard::ids::{PlacementGroupId, ShardId};
use raylet_shard::sched::{BundleId, SchedEvent};
use tokio::sync::oneshot;
use tonic::Status;

use super::Control;
use crate::ray::classes::home_of;
use crate::ray::proto;
use crate::ray::resources::{bundle_id, ResourceError};

/// Bundles in one request; more is a mistake of the caller.
const MAX_BUNDLES: usize = 100_000;

impl Control {
    /// Sets resources aside for bundles, all or nothing.
    pub(super) async fn prepare_bundles(
        self: Rc<Self>,
        request: proto::PrepareBundleResourcesRequest,
    ) -> Result<bool, Status> {
        self.check_bundles(request.bundle_specs.len())?;
        let bundles = {
            let mut names = self.names.borrow_mut();
            let specs = request.bundle_specs.iter().map(|bundle| names.bundle(bundle));
            specs.collect::<Result<Vec<_>, _>>().map_err(invalid)?
        };
        self.bundles_prepared(&bundles);
        let groups: Vec<PlacementGroupId> = bundles.iter().map(|bundle| bundle.id.group).collect();
        let mut ok = true;
        for (shard, bundles) in by_home(bundles, |spec| spec.id, self.shards()) {
            ok &= self.ask(shard, |token| SchedEvent::PrepareBundles { token, bundles }).await?;
        }
        if !ok {
            self.groups_given_up(groups);
        }
        Ok(ok)
    }

    /// Prepared bundles become resources.
    pub(super) async fn commit_bundles(
        self: Rc<Self>,
        request: proto::CommitBundleResourcesRequest,
    ) -> Result<(), Status> {
        self.check_bundles(request.bundle_specs.len())?;
        let ids = ids_of(&request.bundle_specs)?;
        for (shard, bundles) in by_home(ids, |id| *id, self.shards()) {
            let all = self.ask(shard, |token| SchedEvent::CommitBundles { token, bundles }).await?;
            if !all {
                tracing::warn!("a bundle was committed that is not prepared here");
            }
        }
        Ok(())
    }

    /// A group is removed: its requests are cancelled, its workers killed, its resources given back.
    pub(super) async fn remove_bundles(
        self: Rc<Self>,
        request: proto::RemovePlacementGroupBundlesRequest,
    ) -> Result<(), Status> {
        self.check_bundles(request.bundle_specs.len())?;
        let ids = ids_of(&request.bundle_specs)?;
        for (shard, bundles) in by_home(ids, |id| *id, self.shards()) {
            let groups: Vec<PlacementGroupId> = bundles.iter().map(|id| id.group).collect();
            self.ask(shard, |token| SchedEvent::ReturnBundles { token, bundles }).await?;
            self.groups_given_up(groups);
        }
        Ok(())
    }

    /// Gives back every bundle that the GCS does not know, after it restarted.
    pub(super) async fn release_unused_bundles(
        self: Rc<Self>,
        request: proto::ReleaseUnusedBundlesRequest,
    ) -> Result<(), Status> {
        self.check_bundles(request.bundles_in_use.len())?;
        let in_use = ids_of(&request.bundles_in_use)?;
        for shard in 0..self.shards() {
            let in_use = in_use.clone();
            self.ask(shard, |token| SchedEvent::ReleaseUnusedBundles { token, in_use }).await?;
        }
        let in_use: Vec<PlacementGroupId> = in_use.iter().map(|id| id.group).collect();
        self.other_groups_given_up(&in_use);
        Ok(())
    }

    fn check_bundles(&self, count: usize) -> Result<(), Status> {
        self.admit()?;
        if count > MAX_BUNDLES {
            return Err(Status::invalid_argument(format!("expected at most {MAX_BUNDLES} bundles, got {count}")));
        }
        Ok(())
    }

    async fn ask(&self, shard: ShardId, event: impl FnOnce(u64) -> SchedEvent) -> Result<bool, Status> {
        let token = self.token();
        let (sender, receiver) = oneshot::channel();
        self.waiters.borrow_mut().bundles.insert(token, sender);
        self.sched(shard, event(token));
        receiver.await.map_err(|_| Status::unavailable("the node is shutting down"))
    }

    /// A shard's answer about bundles.
    pub(super) fn bundles_answered(&self, token: u64, ok: bool) {
        if let Some(waiter) = self.waiters.borrow_mut().bundles.remove(&token) {
            // A caller that hung up asks again; every request about bundles may be repeated.
            let _ = waiter.send(ok);
        }
    }
}

fn invalid(error: ResourceError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn ids_of(bundles: &[proto::Bundle]) -> Result<Vec<BundleId>, Status> {
    bundles.iter().map(|bundle| bundle_id(bundle.bundle_id.as_ref()).map_err(invalid)).collect()
}

/// Bundles by the shard of their group, in order.
fn by_home<T>(items: Vec<T>, id: impl Fn(&T) -> BundleId, shards: ShardId) -> Vec<(ShardId, Vec<T>)> {
    let mut groups: Vec<(ShardId, Vec<T>)> = Vec::new();
    for item in items {
        let group: PlacementGroupId = id(&item).group;
        let home = home_of(group.as_bytes(), shards);
        match groups.iter_mut().find(|(shard, _)| *shard == home) {
            Some((_, list)) => list.push(item),
            None => groups.push((home, vec![item])),
        }
    }
    groups
}
