//! Subscriptions to what the GCS publishes: nodes, jobs, actors, and workers that died.
//!
//! The GCS holds a poll until it has messages and answers with all of them; each carries the publisher's running number,
//! and the next poll says which number was processed last. A GCS that restarted knows nothing of its subscribers: after
//! every failed poll, and when the publisher's id changes, the subscriptions are made anew, and their owners are told so
//! that they fetch what they have missed.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use tokio::sync::Notify;

use super::client::is_retryable;
use super::gcs::{GcsClient, GcsError};
use crate::ray::proto::command::CommandMessageOneOf;
use crate::ray::proto::{
    ChannelType, Command, GcsSubscriberCommandBatchReply, GcsSubscriberCommandBatchRequest, GcsSubscriberPollReply,
    GcsSubscriberPollRequest, PubMessage, SubMessage, UnsubscribeMessage,
};

/// Commands that travel in one batch: Ray's `max_command_batch_size`.
pub const MAX_COMMANDS_PER_BATCH: usize = 2_000;
/// Subscriptions that one subscriber takes.
pub const MAX_SUBSCRIPTIONS: usize = 100_000;

const POLL: &str = "/ray.rpc.ControlPlanePubSubGcsService/GcsSubscriberPoll";
const COMMAND: &str = "/ray.rpc.ControlPlanePubSubGcsService/GcsSubscriberCommandBatch";
const SUBSCRIBER_ID_BYTES: usize = 28;
const POLL_RETRY_MS: u64 = 100;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// What a subscription delivers.
#[derive(Clone, Debug)]
pub enum GcsEvent {
    /// The subscription holds from now on. Comes again whenever it had to be made anew: fetch the state that messages may
    /// have been missed about.
    Subscribed,
    /// Something was published.
    Published(Rc<PubMessage>),
}

/// The subscriber already has [`MAX_SUBSCRIPTIONS`].
#[derive(Debug, thiserror::Error)]
#[error("this node has {MAX_SUBSCRIPTIONS} subscriptions with the GCS, which is its limit: cancel some first")]
pub struct TooManySubscriptions;

type Callback = Rc<dyn Fn(GcsEvent)>;

struct Subscription {
    channel: ChannelType,
    /// `None` for everything on the channel.
    key: Option<Bytes>,
    deliver: Callback,
    /// The GCS has to be told.
    due: bool,
}

#[derive(Default)]
struct State {
    subscriptions: Vec<Subscription>,
    cancelled: Vec<(ChannelType, Option<Bytes>)>,
}

/// A subscriber of the GCS. Cheap to clone; its tasks end when the GCS is lost.
#[derive(Clone)]
pub struct GcsSubscriber(Rc<Inner>);

struct Inner {
    gcs: GcsClient,
    subscriber_id: Bytes,
    state: RefCell<State>,
    commands_due: Notify,
    subscribed: Notify,
}

impl GcsSubscriber {
    /// Starts the subscriber's tasks; call it inside the control thread's `LocalSet`.
    pub fn start(gcs: GcsClient) -> Self {
        let mut subscriber_id = [0; SUBSCRIBER_ID_BYTES];
        rand::rng().fill_bytes(&mut subscriber_id);
        let subscriber = Self(Rc::new(Inner {
            gcs,
            subscriber_id: Bytes::copy_from_slice(&subscriber_id),
            state: RefCell::default(),
            commands_due: Notify::new(),
            subscribed: Notify::new(),
        }));
        tokio::task::spawn_local(subscriber.clone().send_commands());
        tokio::task::spawn_local(subscriber.clone().poll());
        subscriber
    }

    /// Subscribes to a channel, or to one key of it.
    ///
    /// # Errors
    /// See [`TooManySubscriptions`].
    pub fn subscribe(
        &self,
        channel: ChannelType,
        key: Option<Bytes>,
        deliver: impl Fn(GcsEvent) + 'static,
    ) -> Result<(), TooManySubscriptions> {
        let mut state = self.0.state.borrow_mut();
        if state.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return Err(TooManySubscriptions);
        }
        state.subscriptions.push(Subscription { channel, key, deliver: Rc::new(deliver), due: true });
        self.0.commands_due.notify_one();
        Ok(())
    }

    /// Ends the subscriptions to a channel, or to one key of it.
    pub fn unsubscribe(&self, channel: ChannelType, key: Option<&[u8]>) {
        let mut state = self.0.state.borrow_mut();
        let before = state.subscriptions.len();
        state.subscriptions.retain(|s| s.channel != channel || s.key.as_deref() != key);
        if state.subscriptions.len() < before {
            state.cancelled.push((channel, key.map(Bytes::copy_from_slice)));
            self.0.commands_due.notify_one();
        }
    }

    /// Makes all subscriptions anew: the GCS says that it has restarted.
    pub fn resubscribe(&self) {
        let mut state = self.0.state.borrow_mut();
        state.subscriptions.iter_mut().for_each(|s| s.due = true);
        self.0.commands_due.notify_one();
    }

    async fn send_commands(self) {
        loop {
            let (commands, made) = self.take_commands();
            if commands.is_empty() {
                self.0.commands_due.notified().await;
                continue;
            }
            let request = GcsSubscriberCommandBatchRequest {
                subscriber_id: self.0.subscriber_id.clone(),
                commands,
                ..Default::default()
            };
            let sent = self.0.gcs.call::<_, GcsSubscriberCommandBatchReply>(COMMAND, &request, Some(COMMAND_TIMEOUT));
            match sent.await {
                Ok(_) => {
                    self.0.subscribed.notify_one();
                    made.iter().for_each(|deliver| deliver(GcsEvent::Subscribed));
                }
                Err(GcsError::Lost { .. }) => return,
                Err(error) => {
                    tracing::warn!(%error, "the GCS refuses subscriptions");
                    tokio::time::sleep(Duration::from_millis(POLL_RETRY_MS)).await;
                    self.resubscribe();
                }
            }
        }
    }

    /// Commands that are due, and whom to tell once they have arrived.
    fn take_commands(&self) -> (Vec<Command>, Vec<Callback>) {
        let mut state = self.0.state.borrow_mut();
        let end = state.cancelled.len().min(MAX_COMMANDS_PER_BATCH);
        let cancelled = state.cancelled.drain(..end).map(|(channel, key)| {
            let unsubscribe = CommandMessageOneOf::UnsubscribeMessage(UnsubscribeMessage {});
            command(channel, key.unwrap_or_default(), unsubscribe)
        });
        let mut commands: Vec<Command> = cancelled.collect();
        let mut made = Vec::new();
        for subscription in state.subscriptions.iter_mut().filter(|s| s.due) {
            if commands.len() == MAX_COMMANDS_PER_BATCH {
                break;
            }
            subscription.due = false;
            let subscribe = CommandMessageOneOf::SubscribeMessage(SubMessage::default());
            commands.push(command(subscription.channel, subscription.key.clone().unwrap_or_default(), subscribe));
            made.push(subscription.deliver.clone());
        }
        (commands, made)
    }

    async fn poll(self) {
        let mut publisher_id = Bytes::new();
        let mut processed = 0;
        self.0.subscribed.notified().await;
        loop {
            let request = GcsSubscriberPollRequest {
                subscriber_id: self.0.subscriber_id.clone(),
                max_processed_sequence_id: processed,
                publisher_id: publisher_id.clone(),
            };
            let polled = self.0.gcs.call_once::<_, GcsSubscriberPollReply>(POLL, &request, None).await;
            match polled {
                Ok(reply) => {
                    if reply.publisher_id != publisher_id {
                        if !publisher_id.is_empty() {
                            tracing::info!("the GCS has restarted: making subscriptions anew");
                            self.resubscribe();
                        }
                        publisher_id = reply.publisher_id;
                        processed = 0;
                    }
                    for message in reply.pub_messages {
                        if message.sequence_id > processed {
                            processed = message.sequence_id;
                            self.deliver(message);
                        }
                    }
                }
                Err(error) => {
                    if self.poll_failed(error).is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(POLL_RETRY_MS)).await;
                }
            }
        }
    }

    /// Notes a failed poll; an error means that there is no point in another.
    fn poll_failed(&self, error: GcsError) -> Result<(), GcsError> {
        match &error {
            GcsError::Call { status, .. } if is_retryable(status) => self.0.gcs.away(status)?,
            GcsError::Lost { .. } => return Err(error),
            _ => tracing::warn!(%error, "cannot poll the GCS"),
        }
        self.resubscribe();
        Ok(())
    }

    fn deliver(&self, message: PubMessage) {
        let state = self.0.state.borrow();
        let wanted = |s: &&Subscription| {
            s.channel as i32 == message.channel_type && s.key.as_ref().is_none_or(|key| *key == message.key_id)
        };
        // A callback may subscribe, so none runs while the state is borrowed.
        let callbacks: Vec<Callback> = state.subscriptions.iter().filter(wanted).map(|s| s.deliver.clone()).collect();
        drop(state);
        let message = Rc::new(message);
        for deliver in callbacks {
            deliver(GcsEvent::Published(message.clone()));
        }
    }
}

fn command(channel: ChannelType, key_id: Bytes, message: CommandMessageOneOf) -> Command {
    Command { channel_type: channel.into(), key_id, command_message_one_of: Some(message) }
}
