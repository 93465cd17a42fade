//! News of other nodes.

use std::rc::Rc;

use raylet_shard::ids::NodeId;
use raylet_shard::sched::SchedEvent;

use super::Control;
use crate::ray::proto::node_death_info::Reason;
use crate::ray::proto::{self, gcs_node_info::GcsNodeState};
use crate::ray::rpc::syncer::Update;

impl Control {
    /// A node joined or died.
    pub fn node_published(self: &Rc<Self>, message: &proto::PubMessage) {
        let Some(proto::pub_message::InnerMessage::NodeInfoMessage(node)) = &message.inner_message else {
            return;
        };
        let Some(id) = NodeId::from_slice(&node.node_id) else {
            return;
        };
        if node.state != GcsNodeState::Dead as i32 {
            return;
        }
        if id == self.node_id {
            if !self.shutdown.is_asked() {
                tracing::error!("the GCS has marked this node as dead: it did not answer health checks in time");
                self.shutdown.ask(Reason::UnexpectedTermination, "marked dead by the GCS");
            }
            return;
        }
        tracing::info!(node = %id, "a node died");
        self.dead.borrow_mut().add_node(id);
        self.forget_locations_of_node(&id);
        self.sched_all(SchedEvent::OwnerNodeGone { node: id });
    }

    /// What another node tells through the stream of resource views.
    pub fn heard_from_node(&self, node: NodeId, update: Update) {
        match update {
            Update::Commands(commands) if commands.should_global_gc => self.collect_garbage_soon(),
            update => tracing::trace!(%node, ?update, "a view of another node"),
        }
    }
}
