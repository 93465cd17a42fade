//! The stream by which nodes tell the GCS, and through it each other, what resources they have (`ray.rpc.syncer`).
//!
//! The node opens the stream and names itself in the metadata `node_id`. Of each kind only the newest message counts, so
//! this side keeps one unsent message of a kind and replaces it. Versions rise over the node's life, reconnections
//! included: the receiver drops what isn't newer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use prost::Message;
use raylet_shard::ids::NodeId;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tonic::Status;

use super::client::{hex, Channel, StreamReceiver, StreamSender};
use crate::ray::proto::syncer::{
    CommandsSyncMessage, MessageType, RaySyncMessage, RaySyncMessageBatch, ResourceViewSyncMessage,
};

/// Nodes whose versions are remembered; beyond that all are forgotten, and a message is at worst delivered twice.
pub const MAX_KNOWN_NODES: usize = 65_536;

const PATH: &str = "/ray.rpc.syncer.RaySyncer/StartSync";
const NODE_ID_KEY: HeaderName = HeaderName::from_static("node_id");
/// Ray 2.60 waits as long before it opens a broken stream again.
const RECONNECT_MS: u64 = 2_000;
const KINDS: usize = 2;

/// What another node tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Its resources.
    ResourceView(ResourceViewSyncMessage),
    /// What every node should do.
    Commands(CommandsSyncMessage),
}

/// This node's end of the stream. Cheap to clone.
#[derive(Clone)]
pub struct Syncer(Rc<Inner>);

struct Inner {
    channel: Channel,
    node_id: NodeId,
    deliver: Box<dyn Fn(NodeId, Update)>,
    /// The newest message of each kind.
    newest: RefCell<[Option<RaySyncMessage>; KINDS]>,
    /// Whether the newest message of each kind has yet to be sent on this stream.
    unsent: Cell<[bool; KINDS]>,
    versions: Cell<[i64; KINDS]>,
    /// Versions received, by sender and kind.
    received: RefCell<FxHashMap<NodeId, [i64; KINDS]>>,
    due: Notify,
    stopped: Cell<bool>,
}

impl Syncer {
    /// Opens the stream to the GCS and keeps it open; `deliver` gets what other nodes tell. Call it inside the control
    /// thread's `LocalSet`.
    pub fn start(channel: Channel, node_id: NodeId, deliver: impl Fn(NodeId, Update) + 'static) -> Self {
        let syncer = Self(Rc::new(Inner {
            channel,
            node_id,
            deliver: Box::new(deliver),
            newest: RefCell::default(),
            unsent: Cell::default(),
            versions: Cell::default(),
            received: RefCell::default(),
            due: Notify::new(),
            stopped: Cell::new(false),
        }));
        tokio::task::spawn_local(syncer.clone().run());
        syncer
    }

    /// Tells this node's resources.
    pub fn send_resource_view(&self, view: &ResourceViewSyncMessage) {
        self.enqueue(MessageType::ResourceView, view.encode_to_vec());
    }

    /// Tells every node what to do.
    pub fn send_commands(&self, commands: &CommandsSyncMessage) {
        self.enqueue(MessageType::Commands, commands.encode_to_vec());
    }

    /// Closes the stream for good.
    pub fn stop(&self) {
        self.0.stopped.set(true);
        self.0.due.notify_one();
    }

    fn enqueue(&self, kind: MessageType, body: Vec<u8>) {
        let index = kind as usize;
        let mut versions = self.0.versions.get();
        versions[index] += 1;
        self.0.versions.set(versions);
        self.0.newest.borrow_mut()[index] = Some(RaySyncMessage {
            version: versions[index],
            message_type: kind.into(),
            sync_message: body.into(),
            node_id: Bytes::copy_from_slice(self.0.node_id.as_bytes()),
        });
        let mut unsent = self.0.unsent.get();
        unsent[index] = true;
        self.0.unsent.set(unsent);
        self.0.due.notify_one();
    }

    async fn run(self) {
        let Ok(name) = HeaderValue::from_str(&hex(self.0.node_id.as_bytes())) else {
            return;
        };
        while !self.0.stopped.get() {
            let metadata = [(NODE_ID_KEY, name.clone())];
            let ended = match self.0.channel.open_stream(PATH, &metadata).await {
                Ok((sender, receiver)) => self.exchange(sender, receiver).await,
                Err(status) => Err(status),
            };
            if self.0.stopped.get() {
                return;
            }
            match ended {
                Ok(()) => {
                    tracing::info!("the GCS closed the stream of resource views: opening it again")
                }
                Err(status) => {
                    tracing::warn!(error = status.message(), "stream of resource views broken: opening it again")
                }
            }
            tokio::time::sleep(Duration::from_millis(RECONNECT_MS)).await;
        }
    }

    /// Sends and receives until the stream ends or breaks.
    async fn exchange(
        &self,
        sender: StreamSender<RaySyncMessageBatch>,
        mut receiver: StreamReceiver<RaySyncMessageBatch>,
    ) -> Result<(), Status> {
        // A new stream's other end knows nothing yet; Ray drops versions that the old one had received.
        self.0.received.borrow_mut().clear();
        self.0.unsent.set([true; KINDS]);
        let sending = async {
            while !self.0.stopped.get() {
                let messages = self.take_unsent();
                if messages.is_empty() {
                    self.0.due.notified().await;
                } else {
                    sender.send(&RaySyncMessageBatch { messages }).await?;
                }
            }
            Ok(())
        };
        let receiving = async {
            while let Some(batch) = receiver.next().await? {
                batch.messages.into_iter().for_each(|message| self.receive(message));
            }
            Ok(())
        };
        tokio::select! {
            ended = sending => ended,
            ended = receiving => ended,
        }
    }

    fn take_unsent(&self) -> Vec<RaySyncMessage> {
        let unsent = self.0.unsent.take();
        let newest = self.0.newest.borrow();
        let due = newest.iter().zip(unsent).filter(|(_, unsent)| *unsent);
        due.filter_map(|(message, _)| message.clone()).collect()
    }

    fn receive(&self, message: RaySyncMessage) {
        let Some(node) = NodeId::from_slice(&message.node_id) else {
            tracing::warn!(len = message.node_id.len(), "dropped a resource view of a node whose id is no id");
            return;
        };
        let Some(update) = parse(&message) else {
            tracing::warn!(%node, kind = message.message_type, "dropped a resource view that cannot be read");
            return;
        };
        if node != self.0.node_id && self.is_news(node, &message) {
            (self.0.deliver)(node, update);
        }
    }

    fn is_news(&self, node: NodeId, message: &RaySyncMessage) -> bool {
        let mut received = self.0.received.borrow_mut();
        if received.len() >= MAX_KNOWN_NODES {
            received.clear();
        }
        let versions = received.entry(node).or_insert([-1; KINDS]);
        let known = versions.get_mut(message.message_type as usize);
        known.is_some_and(|known| std::mem::replace(known, message.version.max(*known)) < message.version)
    }
}

fn parse(message: &RaySyncMessage) -> Option<Update> {
    let body = message.sync_message.clone();
    match MessageType::try_from(message.message_type).ok()? {
        MessageType::ResourceView => ResourceViewSyncMessage::decode(body).ok().map(Update::ResourceView),
        MessageType::Commands => CommandsSyncMessage::decode(body).ok().map(Update::Commands),
    }
}
