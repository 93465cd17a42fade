//! Objects as Ray's owners see them: pinned, freed, wanted, lost with their owner.

use std::collections::hash_map::Entry;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{ClientId, LeaseId, NodeId, ObjectId, ShardId, TaskId, WorkerId};
use raylet_shard::pull::{Kind, WishId};
use raylet_shard::sched::ClassId;
use raylet_shard::store::StoreEvent;
use rustc_hash::{FxHashMap, FxHashSet};
use tonic::Status;

use super::Control;
use crate::bridge::{shard_of_object, ToCore};
use crate::ray::messages::{FetchId, Owner};
use crate::ray::proto::{self, ErrorType};
use crate::ray::rpc::owners::{OwnerEvent, OwnerSubscriber};

/// Wishes at a time whose objects' owners are watched. Beyond it a request for objects waits for the objects alone, and is not told
/// when they will never come.
const MAX_WISHES: usize = 1 << 20;

/// How long a worker has to hear that an object is there.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a wish may last whose objects were all here when it was made, before they are looked for: one may have been evicted
/// before the client got it. On a node that is alone in its cluster every wish waits so long: what is missing there is being made.
const ASK_AFTER: Duration = Duration::from_millis(100);

/// What is wanted, by whom, and what the owners of it were asked.
#[derive(Default)]
pub struct Objects {
    wishes: FxHashMap<Wish, Wanted>,
    /// When the owners of each wish are to be asked, in order. Wishes that ended meanwhile are skipped.
    due: VecDeque<(Instant, Wish, u64)>,
    asked: FxHashMap<ObjectId, Asked>,
    /// Owners of the objects that are pulled.
    pulled: FxHashMap<ObjectId, (Owner, usize)>,
    numbers: u64,
    backlog: FxHashMap<WorkerId, Vec<(ClassId, ShardId)>>,
    /// Subscriptions with owners; made with the first one.
    owners: Option<OwnerSubscriber>,
}

/// Who wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wish {
    Client(ClientId, FetchId),
    Lease(LeaseId),
}

/// Wanted objects with their owners.
struct Wanted {
    /// Tells the wish from an earlier one of the same client, and names it to the pull manager.
    number: u64,
    objects: Vec<(ObjectId, Owner)>,
    /// The pull manager has it.
    pulled: bool,
}

/// An object whose owner was asked where it is.
struct Asked {
    owner: WorkerId,
    /// Since when the owner knows of no place to fetch it from, while it isn't making it either.
    nowhere_since: Option<Instant>,
    /// The copy on this node's disk can't be read: without another one the object is lost.
    copy_lost: bool,
}

impl Wish {
    fn kind(&self) -> Kind {
        match self {
            Self::Client(_, FetchId::Get(_)) => Kind::Get,
            Self::Client(_, FetchId::Wait(_)) => Kind::Wait,
            Self::Lease(_) => Kind::Arguments,
        }
    }
}

impl Objects {
    /// Adds a wish, in place of an earlier one of the same name, whose number comes back if it is being pulled. `None`: there are
    /// too many.
    fn add(&mut self, wish: Wish, objects: Vec<(ObjectId, Owner)>) -> (Option<u64>, Option<WishId>) {
        let replaced = self.remove(&wish);
        if objects.is_empty() || self.wishes.len().max(self.due.len()) >= MAX_WISHES {
            return (None, replaced);
        }
        self.numbers += 1;
        self.wishes.insert(wish, Wanted { number: self.numbers, objects, pulled: false });
        (Some(self.numbers), replaced)
    }

    /// A wish is to be looked at again. True where nothing else was due: somebody has to see to this one.
    fn look_later(&mut self, wish: Wish, number: u64, now: Instant) -> bool {
        self.due.push_back((now + ASK_AFTER, wish, number));
        self.due.len() == 1
    }

    /// The objects of a wish that is to be pulled from now on.
    fn begin_pull(&mut self, wish: &Wish) -> Option<(WishId, Vec<ObjectId>)> {
        let wanted = self.wishes.get_mut(wish).filter(|wanted| !wanted.pulled)?;
        wanted.pulled = true;
        for (object, owner) in &wanted.objects {
            self.pulled.entry(*object).or_insert_with(|| (owner.clone(), 0)).1 += 1;
        }
        Some((wanted.number, wanted.objects.iter().map(|(object, _)| *object).collect()))
    }

    /// Takes a wish away; its number comes back if it is being pulled.
    fn remove(&mut self, wish: &Wish) -> Option<WishId> {
        let wanted = self.wishes.remove(wish).filter(|wanted| wanted.pulled)?;
        for (object, _) in &wanted.objects {
            if let Entry::Occupied(mut pulled) = self.pulled.entry(*object) {
                pulled.get_mut().1 -= 1;
                if pulled.get().1 == 0 {
                    pulled.remove();
                }
            }
        }
        Some(wanted.number)
    }

    fn remove_client(&mut self, conn: ClientId) -> Vec<WishId> {
        let of_client = self.wishes.keys().filter(|wish| matches!(wish, Wish::Client(c, _) if *c == conn));
        let of_client: Vec<Wish> = of_client.copied().collect();
        of_client.iter().filter_map(|wish| self.remove(wish)).collect()
    }

    /// Wishes that are to be looked at now, and when to come back.
    fn take_due(&mut self, now: Instant) -> (Vec<Wish>, Option<Instant>) {
        let mut due = Vec::new();
        while let Some((_, wish, number)) = self.due.front().filter(|due| due.0 <= now).copied() {
            self.due.pop_front();
            if self.wishes.get(&wish).is_some_and(|wanted| wanted.number == number) {
                due.push(wish);
            }
        }
        (due, self.due.front().map(|due| due.0))
    }

    /// The owner of an object that is pulled.
    pub(super) fn owner_of(&self, object: &ObjectId) -> Option<Owner> {
        self.pulled.get(object).map(|pulled| pulled.0.clone())
    }

    /// The node of that owner.
    pub(super) fn owner_node(&self, object: &ObjectId) -> Option<NodeId> {
        self.pulled.get(object).map(|pulled| pulled.0.node)
    }

    /// What an owner knows of an object's whereabouts.
    fn located(&mut self, object: &ObjectId, somewhere: bool, now: Instant) {
        if let Some(asked) = self.asked.get_mut(object) {
            asked.nowhere_since = if somewhere { None } else { asked.nowhere_since.or(Some(now)) };
        }
    }

    /// Objects that were nowhere for as long as `patience`. Their time begins anew.
    fn take_unfetchable(&mut self, now: Instant, patience: Duration) -> Vec<ObjectId> {
        let mut lost = Vec::new();
        for (object, asked) in &mut self.asked {
            if asked.nowhere_since.is_some_and(|since| now.saturating_duration_since(since) >= patience) {
                asked.nowhere_since = Some(now);
                lost.push(*object);
            }
        }
        lost
    }

    /// A worker or driver is gone: its reports of what it still has to do are void.
    /// Returns the classes that the shards still count it for.
    pub fn member_gone(&mut self, worker: &WorkerId) -> Vec<(ClassId, ShardId)> {
        self.backlog.remove(worker).unwrap_or_default()
    }

    /// The objects of an owner that somebody wants. Looks at every wish; owners die seldom.
    fn wanted_of(&self, owner: &WorkerId) -> Vec<ObjectId> {
        let objects = self.wishes.values().flat_map(|wanted| &wanted.objects);
        let distinct: FxHashSet<ObjectId> = objects.filter(|(_, o)| o.worker == *owner).map(|(id, _)| *id).collect();
        distinct.into_iter().collect()
    }

    /// The owners on a node of objects that are wanted here.
    pub fn owners_on(&self, node: &NodeId) -> Vec<WorkerId> {
        let objects = self.wishes.values().flat_map(|wanted| &wanted.objects);
        objects.filter(|(_, owner)| owner.node == *node).map(|(_, owner)| owner.worker).collect()
    }

    /// Replaces the classes of which an owner reported a backlog; returns those that are no longer among them.
    pub fn swap_backlog(&mut self, owner: WorkerId, now: Vec<(ClassId, ShardId)>) -> Vec<(ClassId, ShardId)> {
        let before = self.backlog.insert(owner, now.clone()).unwrap_or_default();
        before.into_iter().filter(|entry| !now.contains(entry)).collect()
    }
}

impl Control {
    /// The user wants objects out of the store. `local_only` spares copies on other nodes, of which this node knows none.
    pub(super) fn free_objects(&self, objects: &[ObjectId]) {
        for id in objects {
            self.store(id, StoreEvent::Free { id: *id });
        }
    }

    /// An owner is dead: what it owned here is freed, and whoever waits for an object of its gets an error instead.
    pub(super) fn free_objects_of(&self, owner: &WorkerId) {
        self.mark_store_changed();
        for shard in 0..self.shards() {
            self.to_core(shard, ToCore::FreeOwnedBy { owner: *owner });
        }
        let (wanted, owners) = {
            let objects = self.objects.borrow();
            (objects.wanted_of(owner), objects.owners.clone())
        };
        for id in wanted {
            self.lose(id, ErrorType::OwnerDied);
        }
        if let Some(owners) = owners {
            owners.owner_died(*owner);
        }
    }

    /// A client wants objects: what is elsewhere is fetched. For those that never come, because their owner is dead or has them no
    /// longer, an error is stored. `here` says which of them are here, where the core could tell.
    pub(super) fn fetch(
        self: &Rc<Self>,
        conn: ClientId,
        id: FetchId,
        objects: Vec<(ObjectId, Owner)>,
        here: Option<Vec<bool>>,
    ) {
        self.want(Wish::Client(conn, id), objects, here);
    }

    /// As [`Self::fetch`], for the arguments of a queued lease.
    pub(super) fn fetch_arguments(self: &Rc<Self>, lease: LeaseId, dependencies: &[proto::ObjectReference]) {
        if dependencies.is_empty() {
            return;
        }
        let objects = dependencies.iter().filter_map(|dependency| {
            let owner = dependency.owner_address.as_ref()?;
            let owner = Owner {
                worker: WorkerId::from_slice(&owner.worker_id)?,
                node: NodeId::from_slice(&owner.node_id).unwrap_or_default(),
                ip_address: owner.ip_address.clone(),
                port: owner.port,
            };
            Some((ObjectId::from_slice(&dependency.object_id)?, owner))
        });
        self.want(Wish::Lease(lease), objects.collect(), None);
    }

    fn want(self: &Rc<Self>, wish: Wish, mut objects: Vec<(ObjectId, Owner)>, mut here: Option<Vec<bool>>) {
        {
            let dead = self.dead.borrow();
            let before = objects.len();
            objects.retain(|(object, owner)| {
                let lost = dead.has(&owner.worker, Some(&owner.node));
                if lost {
                    self.lose(*object, ErrorType::OwnerDied);
                }
                !lost
            });
            // What the core said is about all of them.
            here = here.filter(|_| objects.len() == before);
        }
        let all_here = here.as_ref().is_some_and(|here| here.iter().all(|here| *here));
        let (number, replaced) = self.objects.borrow_mut().add(wish, objects);
        if let Some(replaced) = replaced {
            self.pull_no_more(replaced);
        }
        let Some(number) = number else {
            return;
        };
        if !all_here && self.nodes.borrow().len() > 1 {
            return self.begin_pull(&wish, here.as_deref());
        }
        let first_due = self.objects.borrow_mut().look_later(wish, number, Instant::now());
        if first_due {
            tokio::task::spawn_local(self.clone().look_at_wishes());
        }
    }

    fn begin_pull(self: &Rc<Self>, wish: &Wish, here: Option<&[bool]>) {
        let begun = self.objects.borrow_mut().begin_pull(wish);
        if let Some((number, objects)) = begun {
            self.pull(number, wish.kind(), objects, here);
        }
    }

    /// A client no longer wants what it wanted, or has it.
    pub(super) fn cancel_fetch(self: &Rc<Self>, conn: ClientId, id: FetchId) {
        let pulled = self.objects.borrow_mut().remove(&Wish::Client(conn, id));
        pulled.into_iter().for_each(|wish| self.pull_no_more(wish));
    }

    /// A lease no longer waits for its objects.
    pub(super) fn cancel_fetch_of_lease(self: &Rc<Self>, lease: LeaseId) {
        let pulled = self.objects.borrow_mut().remove(&Wish::Lease(lease));
        pulled.into_iter().for_each(|wish| self.pull_no_more(wish));
    }

    /// A connection is gone, with all it wanted.
    pub(super) fn cancel_fetches_of(self: &Rc<Self>, conn: ClientId) {
        let pulled = self.objects.borrow_mut().remove_client(conn);
        pulled.into_iter().for_each(|wish| self.pull_no_more(wish));
    }

    /// Sees to wishes that last, until nothing is due.
    async fn look_at_wishes(self: Rc<Self>) {
        loop {
            let (due, next) = self.objects.borrow_mut().take_due(Instant::now());
            for wish in due {
                self.begin_pull(&wish, None);
            }
            let Some(next) = next else {
                return;
            };
            // A few at a time: under a steady load of gets this runs about as often as it has to.
            tokio::time::sleep_until((next + ASK_AFTER / 2).into()).await;
        }
    }

    /// Hears from an object's owner where it is.
    pub(super) fn locate(self: &Rc<Self>, object: ObjectId) {
        let Some(owner) = self.objects.borrow().owner_of(&object) else {
            return;
        };
        let before = self.objects.borrow_mut().asked.remove(&object);
        self.ask_owner(object, owner.worker, &address(owner), before);
    }

    /// Has an owner tell where an object is, also where it has told before.
    fn ask_owner(self: &Rc<Self>, object: ObjectId, owner: WorkerId, address: &proto::Address, before: Option<Asked>) {
        let owners = self.owners();
        let copy_lost = before.as_ref().is_some_and(|asked| asked.copy_lost);
        if let Some(before) = before {
            owners.unsubscribe(before.owner, object);
        }
        let asked = Asked { owner, nowhere_since: None, copy_lost };
        self.objects.borrow_mut().asked.insert(object, asked);
        owners.subscribe(address, object);
    }

    /// An object's copy on disk can't be read back. Its owner knows whether there is another, on another node; if not, it is lost.
    pub(super) fn copy_lost(self: &Rc<Self>, object: ObjectId, owner: WorkerId) {
        self.pull_seen(object, false);
        let address = self.locations.borrow().address_of(&owner);
        let has_room = self.objects.borrow().asked.len() < MAX_WISHES;
        let is_alone = self.nodes.borrow().len() <= 1;
        let Some(address) = address.filter(|_| has_room && !is_alone) else {
            return self.lose(object, ErrorType::ObjectLost);
        };
        let before = self.objects.borrow_mut().asked.remove(&object);
        let before = before.unwrap_or(Asked { owner, nowhere_since: None, copy_lost: true });
        self.ask_owner(object, owner, &address, Some(Asked { copy_lost: true, ..before }));
    }

    /// What the owner of such an object says of other copies. Whoever wants the object has it fetched.
    fn copy_judged(&self, object: ObjectId, is_elsewhere: bool) {
        let (was_lost, is_pulled) = {
            let mut objects = self.objects.borrow_mut();
            let is_pulled = objects.owner_of(&object).is_some();
            let asked = objects.asked.get_mut(&object).filter(|asked| asked.copy_lost);
            (asked.map(|asked| asked.copy_lost = is_elsewhere).is_some(), is_pulled)
        };
        if was_lost && !is_elsewhere {
            tracing::error!(%object, "a spilled object is lost: it can't be read back, and there is no other copy");
            self.lose(object, ErrorType::ObjectLost);
        }
        if was_lost && !is_pulled {
            self.locate_no_more(object);
        }
    }

    /// An object came whose copy on disk was lost: what its owner believes to be kept here is kept again.
    pub(super) fn copy_is_back(&self, object: ObjectId) {
        let was_lost =
            self.objects.borrow_mut().asked.get_mut(&object).is_some_and(|asked| std::mem::take(&mut asked.copy_lost));
        if was_lost {
            self.store(&object, StoreEvent::Pin { token: self.token(), id: object });
        }
    }

    /// Its owner need not tell any more.
    pub(super) fn locate_no_more(&self, object: ObjectId) {
        let (asked, owners) = {
            let mut objects = self.objects.borrow_mut();
            (objects.asked.remove(&object), objects.owners.clone())
        };
        if let (Some(asked), Some(owners)) = (asked, owners) {
            owners.unsubscribe(asked.owner, object);
        }
    }

    fn owners(self: &Rc<Self>) -> OwnerSubscriber {
        let mut objects = self.objects.borrow_mut();
        let made = objects.owners.get_or_insert_with(|| {
            let control = Rc::downgrade(self);
            let patience_s = self.ray_config.core_worker_rpc_server_reconnect_timeout_max_s;
            let deliver = move |event| {
                if let Some(control) = control.upgrade() {
                    control.owner_said(event);
                }
            };
            OwnerSubscriber::new(
                self.core_workers.clone(),
                self.node_id,
                Duration::from_secs(patience_s.into()),
                deliver,
            )
        });
        made.clone()
    }

    fn owner_said(self: &Rc<Self>, event: OwnerEvent) {
        match event {
            OwnerEvent::Locations { object, locations, .. } => {
                let here = self.node_id.as_bytes();
                let elsewhere = locations.node_ids.iter().any(|node| {
                    node[..] != here[..]
                        && !NodeId::from_slice(node).is_some_and(|node| self.dead.borrow().has_node(&node))
                });
                let somewhere = locations.pending_creation || elsewhere || !locations.spilled_url.is_empty();
                let spilled = NodeId::from_slice(&locations.spilled_node_id).filter(|node| !node.is_nil());
                let on_other_disk =
                    spilled.is_some_and(|node| node != self.node_id && !self.dead.borrow().has_node(&node));
                self.objects.borrow_mut().located(&object, somewhere, Instant::now());
                self.pull_located(object, &locations);
                self.copy_judged(object, locations.pending_creation || elsewhere || on_other_disk);
            }
            OwnerEvent::Ended { owner, object } => {
                tracing::info!(%object, %owner, "an object is wanted that its owner has no more");
                self.lose(object, ErrorType::ObjectDeleted);
            }
            OwnerEvent::Gone { owner, objects } => {
                tracing::info!(%owner, objects = objects.len(), "the owner of wanted objects is gone");
                for object in objects {
                    self.lose(object, ErrorType::OwnerDied);
                }
            }
        }
    }

    /// Gives up objects that are nowhere to be fetched from for `fetch_fail_timeout_milliseconds`.
    pub(super) fn give_up_unfetchable(&self) {
        let patience = Duration::from_millis(self.ray_config.fetch_fail_timeout_milliseconds.max(0) as u64);
        let lost = self.objects.borrow_mut().take_unfetchable(Instant::now(), patience);
        for object in lost {
            self.lose(object, ErrorType::ObjectFetchTimedOut);
        }
    }

    /// Stores the error that readers of a lost object raise, unless the object is there. Ray's readers know it by its metadata:
    /// the ErrorType in digits.
    fn lose(&self, id: ObjectId, error: ErrorType) {
        let metadata = (error as i32).to_string().into_bytes();
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

/// An owner as other processes are told.
pub(super) fn address(owner: Owner) -> proto::Address {
    proto::Address {
        node_id: owner.node.as_bytes().to_vec().into(),
        ip_address: owner.ip_address,
        port: owner.port,
        worker_id: owner.worker.as_bytes().to_vec().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: ObjectId = ObjectId([1; 28]);
    const OTHER: ObjectId = ObjectId([3; 28]);

    fn of(worker: u8) -> Owner {
        Owner { worker: WorkerId([worker; 28]), node: NodeId::NIL, ip_address: "127.0.0.1".to_owned(), port: 1 }
    }

    fn lease(n: u8) -> Wish {
        Wish::Lease(LeaseId([n; 32]))
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_remembered() {
        let (mut objects, now) = (Objects::default(), Instant::now());
        let get = Wish::Client(7, FetchId::Get(0));
        let (Some(first), None) = objects.add(get, vec![(OBJECT, of(2)), (OTHER, of(2))]) else { panic!("refused") };
        assert!(objects.look_later(get, first, now));
        let (Some(second), None) = objects.add(lease(4), vec![(OBJECT, of(2))]) else { panic!("refused") };
        assert!(!objects.look_later(lease(4), second, now), "somebody sees to what is due already");
        assert_eq!(objects.wanted_of(&WorkerId([2; 28])).len(), 2);
        assert!(objects.remove_client(7).is_empty(), "it is not pulled yet");
        assert_eq!(objects.wanted_of(&WorkerId([2; 28])), [OBJECT]);
        assert_eq!(objects.remove(&lease(4)), None);
        assert!(objects.wishes.is_empty());
        assert!(objects.take_due(now + ASK_AFTER).0.is_empty(), "nobody looks for what nobody wants");
        assert!(objects.due.is_empty());
    }

    #[test]
    fn the_owner_of_an_object_is_known_while_it_is_pulled() {
        let (mut objects, now) = (Objects::default(), Instant::now());
        let (Some(first), _) = objects.add(lease(1), vec![(OBJECT, of(2))]) else { panic!("refused") };
        objects.look_later(lease(1), first, now);
        assert_eq!(objects.take_due(now), (vec![], Some(now + ASK_AFTER)));
        assert_eq!(objects.take_due(now + ASK_AFTER), (vec![lease(1)], None));
        assert_eq!(objects.begin_pull(&lease(1)), Some((first, vec![OBJECT])));
        assert_eq!(objects.begin_pull(&lease(1)), None, "once");
        let (Some(second), _) = objects.add(lease(2), vec![(OBJECT, of(2)), (OTHER, of(5))]) else { panic!("refused") };
        objects.begin_pull(&lease(2));
        assert_eq!(objects.remove(&lease(1)), Some(first));
        assert_eq!(objects.owner_of(&OBJECT), Some(of(2)), "the other lease still waits for it");
        // The same name again, as a retried request.
        let (Some(_), replaced) = objects.add(lease(2), vec![(OTHER, of(5))]) else { panic!("refused") };
        assert_eq!(replaced, Some(second));
        assert!(objects.pulled.is_empty() && objects.owner_of(&OTHER).is_none());
    }

    #[test]
    fn an_object_that_is_nowhere_is_given_up_in_time() {
        let (mut objects, now) = (Objects::default(), Instant::now());
        let patience = Duration::from_secs(10);
        objects.asked.insert(OBJECT, Asked { owner: WorkerId([2; 28]), nowhere_since: None, copy_lost: false });
        assert!(objects.take_unfetchable(now + 2 * patience, patience).is_empty(), "its owner said nothing yet");
        objects.located(&OBJECT, false, now);
        objects.located(&OBJECT, false, now + patience);
        objects.located(&OTHER, false, now);
        assert_eq!(objects.take_unfetchable(now + patience, patience), [OBJECT]);
        assert!(objects.take_unfetchable(now + patience, patience).is_empty(), "once in that time");
        objects.located(&OBJECT, true, now + patience);
        assert!(objects.take_unfetchable(now + 9 * patience, patience).is_empty(), "it is being made again");
    }

    #[test]
    fn a_class_that_an_owner_no_longer_reports_is_set_to_nothing() {
        let mut objects = Objects::default();
        let owner = WorkerId([2; 28]);
        assert!(objects.swap_backlog(owner, vec![(ClassId(1), 0), (ClassId(2), 0)]).is_empty());
        assert_eq!(objects.swap_backlog(owner, vec![(ClassId(2), 0)]), [(ClassId(1), 0)]);
    }
}
