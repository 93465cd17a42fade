//! Objects as Ray's owners see them: pinned, freed, wanted, lost with their owner.

use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::{ClientId, LeaseId, ObjectId, ShardId, TaskId, WorkerId};
use raylet_shard::sched::ClassId;
use raylet_shard::store::StoreEvent;
use rustc_hash::FxHashMap;
use tonic::Status;

use super::Control;
use crate::bridge::{shard_of_object, ToCore};
use crate::ray::messages::{FetchId, Owner};
use crate::ray::proto;

/// How long a worker has to hear that an object is there.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is wanted, and by whom.
#[derive(Default)]
pub struct Objects {
    wishes: FxHashMap<Wish, Vec<(ObjectId, WorkerId)>>,
    by_owner: FxHashMap<WorkerId, FxHashMap<Wish, usize>>,
    backlog: FxHashMap<WorkerId, Vec<(ClassId, ShardId)>>,
}

/// Who wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wish {
    Client(ClientId, FetchId),
    Lease(LeaseId),
}

impl Objects {
    fn add(&mut self, wish: Wish, objects: Vec<(ObjectId, WorkerId)>) {
        self.remove(&wish);
        for (_, owner) in &objects {
            *self.by_owner.entry(*owner).or_default().entry(wish).or_default() += 1;
        }
        self.wishes.insert(wish, objects);
    }

    fn remove(&mut self, wish: &Wish) {
        for (_, owner) in self.wishes.remove(wish).unwrap_or_default() {
            if let Some(wishes) = self.by_owner.get_mut(&owner) {
                wishes.remove(wish);
                if wishes.is_empty() {
                    self.by_owner.remove(&owner);
                }
            }
        }
    }

    /// A client no longer wants what it wanted.
    pub fn cancel_fetch(&mut self, conn: ClientId, id: FetchId) {
        self.remove(&Wish::Client(conn, id));
    }

    /// A lease no longer waits for its objects.
    pub fn lease_settled(&mut self, lease: LeaseId) {
        self.remove(&Wish::Lease(lease));
    }

    /// A connection is gone, with all it wanted.
    pub fn client_gone(&mut self, conn: ClientId) {
        let of_client = self.wishes.keys().filter(|wish| matches!(wish, Wish::Client(c, _) if *c == conn));
        for wish in of_client.copied().collect::<Vec<_>>() {
            self.remove(&wish);
        }
    }

    /// A worker or driver is gone: its reports of what it still has to do are void.
    pub fn member_gone(&mut self, worker: &WorkerId) {
        self.backlog.remove(worker);
    }

    /// The objects of an owner that somebody wants.
    fn wanted_of(&self, owner: &WorkerId) -> Vec<ObjectId> {
        let wishes = self.by_owner.get(owner).into_iter().flat_map(|wishes| wishes.keys());
        let objects = wishes.flat_map(|wish| self.wishes.get(wish).into_iter().flatten());
        objects.filter(|(_, o)| o == owner).map(|(id, _)| *id).collect()
    }

    /// Replaces the classes of which an owner reported a backlog; returns those that are no longer among them.
    pub fn swap_backlog(&mut self, owner: WorkerId, now: Vec<(ClassId, ShardId)>) -> Vec<(ClassId, ShardId)> {
        let before = self.backlog.insert(owner, now.clone()).unwrap_or_default();
        before.into_iter().filter(|entry| !now.contains(entry)).collect()
    }
}

impl Control {
    /// The user wants objects out of the store (`ray.internal.free`).
    pub(super) fn free_objects(&self, objects: &[ObjectId]) {
        for id in objects {
            self.store(id, StoreEvent::Free { id: *id });
        }
    }

    /// An owner is dead: what it owned here is freed, and whoever waits for an object of its gets an error instead.
    pub(super) fn free_objects_of(&self, owner: &WorkerId) {
        for shard in 0..self.shards() {
            self.to_core(shard, ToCore::FreeOwnedBy { owner: *owner });
        }
        let wanted = self.objects.borrow().wanted_of(owner);
        for id in wanted {
            self.lose(id);
        }
    }

    /// A client wants objects. One whose owner is dead will never come, and an error is stored in its place.
    pub(super) fn fetch(&self, conn: ClientId, id: FetchId, objects: Vec<(ObjectId, Owner)>) {
        let owners = objects.into_iter().map(|(object, owner)| (object, owner.worker, owner.node));
        let wanted = self.without_lost(owners);
        self.objects.borrow_mut().add(Wish::Client(conn, id), wanted);
    }

    /// As [`Self::fetch`], for the arguments of a queued lease.
    pub(super) fn watch_owners(&self, lease: LeaseId, dependencies: &[proto::ObjectReference]) {
        if dependencies.is_empty() {
            return;
        }
        let owners = dependencies.iter().filter_map(|dependency| {
            let owner = dependency.owner_address.as_ref()?;
            let node = raylet_shard::ids::NodeId::from_slice(&owner.node_id).unwrap_or_default();
            Some((ObjectId::from_slice(&dependency.object_id)?, WorkerId::from_slice(&owner.worker_id)?, node))
        });
        let wanted = self.without_lost(owners);
        self.objects.borrow_mut().add(Wish::Lease(lease), wanted);
    }

    fn without_lost(
        &self,
        objects: impl Iterator<Item = (ObjectId, WorkerId, raylet_shard::ids::NodeId)>,
    ) -> Vec<(ObjectId, WorkerId)> {
        let dead = self.dead.borrow();
        let mut wanted = Vec::new();
        for (object, owner, node) in objects {
            if dead.has(&owner, Some(&node)) {
                self.lose(object);
            } else {
                wanted.push((object, owner));
            }
        }
        wanted
    }

    /// Stores the error that readers of a lost object raise. Ray's readers know it by its metadata: the ErrorType in digits.
    fn lose(&self, id: ObjectId) {
        let metadata = (proto::ErrorType::OwnerDied as i32).to_string().into_bytes();
        self.to_core(shard_of_object(&id, self.shards()), ToCore::PutError { id, metadata });
    }

    /// All plasma arguments of an actor call are here.
    pub(super) fn actor_args_ready(self: &Rc<Self>, conn: ClientId, task: TaskId, attempt: i32) {
        self.notify(conn, move |client, worker| {
            let request = proto::ActorCallArgWaitCompleteRequest {
                intended_worker_id: worker.as_bytes().to_vec().into(),
                task_id: task.as_bytes().to_vec().into(),
                attempt_number: attempt,
            };
            async move { client.actor_call_arg_wait_complete(request, NOTICE_TIMEOUT).await.map(drop) }
        });
    }

    /// An object that a worker awaits is here.
    pub(super) fn plasma_ready(self: &Rc<Self>, conn: ClientId, object: ObjectId) {
        self.notify(conn, move |client, _| {
            let request = proto::PlasmaObjectReadyRequest { object_id: object.as_bytes().to_vec().into() };
            async move { client.plasma_object_ready(request, NOTICE_TIMEOUT).await.map(drop) }
        });
    }

    fn notify<F, Fut>(self: &Rc<Self>, conn: ClientId, call: F)
    where
        F: FnOnce(crate::ray::rpc::core_worker::CoreWorkerClient, WorkerId) -> Fut,
        Fut: std::future::Future<Output = Result<(), Status>> + 'static,
    {
        let Some((client, worker)) = self
            .registry
            .borrow()
            .by_conn(conn)
            .map(|member| (self.core_workers.of(&member.ip_address, member.port), member.worker))
        else {
            return;
        };
        let told = call(client, worker);
        tokio::task::spawn_local(async move {
            if let Err(error) = told.await {
                tracing::debug!(%worker, %error, "a worker was not told that an object is here");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_wants_any_more_is_not_remembered() {
        let mut objects = Objects::default();
        let (object, owner) = (ObjectId([1; 28]), WorkerId([2; 28]));
        objects.add(Wish::Client(7, FetchId::Get(0)), vec![(object, owner), (ObjectId([3; 28]), owner)]);
        objects.add(Wish::Lease(LeaseId([4; 32])), vec![(object, owner)]);
        assert_eq!(objects.wanted_of(&owner).len(), 3);
        objects.client_gone(7);
        assert_eq!(objects.wanted_of(&owner), [object]);
        objects.lease_settled(LeaseId([4; 32]));
        assert!(objects.wishes.is_empty() && objects.by_owner.is_empty());
    }

    #[test]
    fn a_class_that_an_owner_no_longer_reports_is_set_to_nothing() {
        let mut objects = Objects::default();
        let owner = WorkerId([2; 28]);
        assert!(objects.swap_backlog(owner, vec![(ClassId(1), 0), (ClassId(2), 0)]).is_empty());
        assert_eq!(objects.swap_backlog(owner, vec![(ClassId(2), 0)]), [(ClassId(1), 0)]);
    }
}
