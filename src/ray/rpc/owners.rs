//! The owners of objects: hearing from them where copies are.
//!
//! An object's owner is the worker that created it. A node that wants a copy subscribes to the object's locations, and the
//! owner answers its poll whenever they change. An owner that doesn't answer any more takes its objects along.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raylet_shard::ids::{NodeId, ObjectId, WorkerId};
use rustc_hash::{FxHashMap, FxHashSet};
use tonic::Status;

use super::client::{is_retryable, Retry};
use super::core_worker::CoreWorkers;
use super::gcs::id;
use super::pubsub::MAX_COMMANDS_PER_BATCH;
use crate::ray::proto::command::CommandMessageOneOf;
use crate::ray::proto::pub_message::InnerMessage;
use crate::ray::proto::sub_message::SubMessageOneOf;
use crate::ray::proto::{
    Address, ChannelType, Command, PubMessage, PubsubCommandBatchRequest, PubsubLongPollingReply,
    PubsubLongPollingRequest, SubMessage, UnsubscribeMessage, WorkerObjectLocationsPubMessage,
    WorkerObjectLocationsSubMessage,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const RETRY_MIN_MS: u64 = 20;
const RETRY_MAX_MS: u64 = 500;

/// What owners tell this node.
#[derive(Clone, Debug)]
pub enum OwnerEvent {
    /// Where copies of an object are. Comes once at the start, and with every change. An object that was not spilled has
    /// the nil id for its `spilled_node_id`.
    Locations {
        /// The owner.
        owner: WorkerId,
        /// The object.
        object: ObjectId,
        /// What the owner published.
        locations: WorkerObjectLocationsPubMessage,
    },
    /// The owner has the object no longer, because nothing refers to it, or never had it, because it is another worker.
    /// The subscription has ended.
    Ended {
        /// The owner.
        owner: WorkerId,
        /// The object.
        object: ObjectId,
    },
    /// The owner can't be reached. Its subscriptions have ended.
    Gone {
        /// The owner.
        owner: WorkerId,
        /// The objects subscribed to.
        objects: Vec<ObjectId>,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Want {
    Subscribe,
    Unsubscribe,
}

/// One owner that this node has subscriptions with.
struct Link {
    /// Tells the link from an earlier one with the same owner, whose tasks may not have ended yet.
    generation: u64,
    address: Address,
    objects: FxHashSet<ObjectId>,
    /// What the owner has yet to be told; at most one command for an object.
    due: FxHashMap<ObjectId, Want>,
    sending: bool,
}

impl Link {
    fn new(generation: u64, address: Address) -> Self {
        Self { generation, address, objects: FxHashSet::default(), due: FxHashMap::default(), sending: false }
    }
}

/// Names a link for its tasks.
#[derive(Clone, Copy)]
struct LinkKey {
    owner: WorkerId,
    generation: u64,
}

/// Subscriptions to the locations of objects. Cheap to clone.
#[derive(Clone)]
pub struct OwnerSubscriber(Rc<Inner>);

struct Inner {
    workers: CoreWorkers,
    subscriber_id: Bytes,
    /// An owner that can't be reached for longer is gone.
    reconnect_timeout: Duration,
    deliver: Box<dyn Fn(OwnerEvent)>,
    links: RefCell<FxHashMap<WorkerId, Link>>,
    generations: Cell<u64>,
}

impl OwnerSubscriber {
    /// No subscriptions yet. A node subscribes under its own id. An owner out of reach for `reconnect_timeout` is gone.
    pub fn new(
        workers: CoreWorkers,
        node: NodeId,
        reconnect_timeout: Duration,
        deliver: impl Fn(OwnerEvent) + 'static,
    ) -> Self {
        Self(Rc::new(Inner {
            workers,
            subscriber_id: id(node.as_bytes()),
            reconnect_timeout,
            deliver: Box::new(deliver),
            links: RefCell::default(),
            generations: Cell::new(0),
        }))
    }

    /// Subscribes to an object's locations; nothing happens where that is done already, or where the address names no
    /// worker.
    pub fn subscribe(&self, owner: &Address, object: ObjectId) {
        let Some(worker) = WorkerId::from_slice(&owner.worker_id) else {
            tracing::warn!(%object, "no owner is known of an object whose locations are wanted");
            return;
        };
        let mut links = self.0.links.borrow_mut();
        let mut new_link = None;
        let link = links.entry(worker).or_insert_with(|| {
            let generation = self.0.generations.get();
            self.0.generations.set(generation + 1);
            let key = LinkKey { owner: worker, generation };
            new_link = Some(key);
            Link::new(generation, owner.clone())
        });
        if !link.objects.insert(object) {
            return;
        }
        link.due.insert(object, Want::Subscribe);
        drop(links);
        self.send_due(worker);
        if let Some(key) = new_link {
            tokio::task::spawn_local(self.clone().poll(key));
        }
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, owner: WorkerId, object: ObjectId) {
        let mut links = self.0.links.borrow_mut();
        let Some(link) = links.get_mut(&owner) else {
            return;
        };
        if link.objects.remove(&object) {
            link.due.insert(object, Want::Unsubscribe);
            drop(links);
            self.send_due(owner);
        }
    }

    /// An owner is known to be dead: [`OwnerEvent::Gone`] comes at once.
    pub fn owner_died(&self, owner: WorkerId) {
        let Some(link) = self.0.links.borrow_mut().remove(&owner) else {
            return;
        };
        if !link.objects.is_empty() {
            let objects = link.objects.into_iter().collect();
            (self.0.deliver)(OwnerEvent::Gone { owner, objects });
        }
    }

    /// How many subscriptions there are.
    pub fn len(&self) -> usize {
        self.0.links.borrow().values().map(|link| link.objects.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends what is due, one batch at a time.
    fn send_due(&self, owner: WorkerId) {
        let mut links = self.0.links.borrow_mut();
        let Some(link) = links.get_mut(&owner).filter(|link| !link.sending) else {
            return;
        };
        link.sending = true;
        let key = LinkKey { owner, generation: link.generation };
        let address = link.address.clone();
        let subscriber = self.clone();
        drop(links);
        tokio::task::spawn_local(async move {
            let client = subscriber.0.workers.at(&address);
            while let Some(commands) = subscriber.take_commands(key) {
                let request = PubsubCommandBatchRequest { subscriber_id: subscriber.0.subscriber_id.clone(), commands };
                let mut failing = Failing::default();
                while let Err(status) = client.pubsub_command_batch(request.clone(), CALL_TIMEOUT).await {
                    if subscriber.give_up(key, &status, &mut failing).await {
                        return;
                    }
                }
            }
        });
    }

    fn take_commands(&self, key: LinkKey) -> Option<Vec<Command>> {
        let mut links = self.0.links.borrow_mut();
        let link = links.get_mut(&key.owner).filter(|link| link.generation == key.generation)?;
        let batch: Vec<(ObjectId, Want)> =
            link.due.iter().take(MAX_COMMANDS_PER_BATCH).map(|(object, want)| (*object, *want)).collect();
        if batch.is_empty() {
            link.sending = false;
            return None;
        }
        for (object, _) in &batch {
            link.due.remove(object);
        }
        Some(batch.into_iter().map(|(object, want)| command(key.owner, object, want)).collect())
    }

    async fn poll(self, key: LinkKey) {
        let mut request =
            PubsubLongPollingRequest { subscriber_id: self.0.subscriber_id.clone(), ..Default::default() };
        let mut failing = Failing::default();
        while let Some(address) = self.address_if_wanted(key) {
            match self.0.workers.at(&address).pubsub_long_polling(&request).await {
                Ok(reply) => {
                    failing = Failing::default();
                    self.take_reply(key, reply, &mut request);
                }
                Err(status) => {
                    if self.give_up(key, &status, &mut failing).await {
                        return;
                    }
                }
            }
        }
    }

    /// The owner's address while there are subscriptions with it. Without any, its link ends here.
    fn address_if_wanted(&self, key: LinkKey) -> Option<Address> {
        let mut links = self.0.links.borrow_mut();
        let link = links.get(&key.owner).filter(|link| link.generation == key.generation)?;
        if link.objects.is_empty() && !link.sending {
            links.remove(&key.owner);
            return None;
        }
        Some(link.address.clone())
    }

    fn take_reply(&self, key: LinkKey, reply: PubsubLongPollingReply, request: &mut PubsubLongPollingRequest) {
        if reply.publisher_id != request.publisher_id {
            request.publisher_id = reply.publisher_id;
            request.max_processed_sequence_id = 0;
        }
        for message in reply.pub_messages {
            if message.sequence_id > request.max_processed_sequence_id {
                request.max_processed_sequence_id = message.sequence_id;
                self.take_message(key, message);
            }
        }
    }

    fn take_message(&self, key: LinkKey, message: PubMessage) {
        let LinkKey { owner, generation } = key;
        let Some(object) = ObjectId::from_slice(&message.key_id) else {
            tracing::warn!(%owner, len = message.key_id.len(), "an owner published about something that is no object");
            return;
        };
        let mut links = self.0.links.borrow_mut();
        let Some(link) =
            links.get_mut(&owner).filter(|link| link.generation == generation && link.objects.contains(&object))
        else {
            return;
        };
        let event = match message.inner_message {
            Some(InnerMessage::WorkerObjectLocationsMessage(locations)) => {
                OwnerEvent::Locations { owner, object, locations }
            }
            Some(InnerMessage::FailureMessage(_)) => {
                link.objects.remove(&object);
                OwnerEvent::Ended { owner, object }
            }
            _ => return,
        };
        drop(links);
        (self.0.deliver)(event);
    }

    /// After a failed call: waits before the next, or gives the owner up and returns true.
    async fn give_up(&self, key: LinkKey, status: &Status, failing: &mut Failing) -> bool {
        let owner = key.owner;
        let since = *failing.since.get_or_insert_with(Instant::now);
        if self.0.links.borrow().get(&owner).is_none_or(|link| link.generation != key.generation) {
            return true;
        }
        if !is_retryable(status) || since.elapsed() >= self.0.reconnect_timeout {
            tracing::debug!(%owner, error = status.message(), "an owner is gone");
            self.owner_died(owner);
            return true;
        }
        failing.attempts += 1;
        tokio::time::sleep(RETRY.backoff(failing.attempts)).await;
        false
    }
}

/// Failures in a row.
#[derive(Default)]
struct Failing {
    since: Option<Instant>,
    attempts: u32,
}

const RETRY: Retry = Retry { max_attempts: 8, backoff_min_ms: RETRY_MIN_MS, backoff_max_ms: RETRY_MAX_MS };

fn command(owner: WorkerId, object: ObjectId, want: Want) -> Command {
    let object_id = id(object.as_bytes());
    let message = match want {
        Want::Unsubscribe => CommandMessageOneOf::UnsubscribeMessage(UnsubscribeMessage {}),
        Want::Subscribe => {
            let locations = WorkerObjectLocationsSubMessage {
                intended_worker_id: id(owner.as_bytes()),
                object_id: object_id.clone(),
            };
            let one_of = Some(SubMessageOneOf::WorkerObjectLocationsMessage(locations));
            CommandMessageOneOf::SubscribeMessage(SubMessage { sub_message_one_of: one_of })
        }
    };
    Command {
        channel_type: ChannelType::WorkerObjectLocationsChannel.into(),
        key_id: object_id,
        command_message_one_of: Some(message),
    }
}
