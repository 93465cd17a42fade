//! News of other nodes.

use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::NodeId;
use raylet_shard::sched::SchedEvent;

use super::Control;
use crate::ray::nodes::{NodeNews, NodeRecord};
use crate::ray::proto;
use crate::ray::proto::node_death_info::Reason;
use crate::ray::rpc::syncer::Update;

impl Control {
    /// Where a node is reached; `None` for one that is dead or was not heard of.
    pub fn node(&self, node: &NodeId) -> Option<NodeRecord> {
        self.nodes.borrow().get(node).cloned()
    }

    /// The subscription to nodes begins, or begins anew: those that came and went before are asked for.
    pub fn catch_up_on_nodes(self: &Rc<Self>) {
        let control = self.clone();
        tokio::task::spawn_local(async move {
            match control.gcs.all_nodes().await {
                Ok(nodes) => nodes.iter().for_each(|node| control.node_heard_of(node)),
                Err(error) => tracing::warn!(%error, "the nodes of the cluster are not known"),
            }
        });
    }

    /// Asks the GCS now and then whether this node counts as alive, as Ray's raylets do (`raylet_liveness_self_check_interval_ms`). A
    /// death is published once, and a node that was cut off from the GCS by then does not hear of it.
    pub async fn ask_for_own_life(self: Rc<Self>) {
        let Ok(interval_ms @ 1..) = u64::try_from(self.ray_config.raylet_liveness_self_check_interval_ms) else {
            return;
        };
        loop {
            tokio::time::sleep(Duration::from_millis(interval_ms)).await;
            match self.gcs.counts_as_alive(self.node_id).await {
                Ok(true) => {}
                Ok(false) => return self.node_died(self.node_id),
                Err(error) => tracing::debug!(%error, "whether this node counts as alive is not known"),
            }
        }
    }

    /// A node joined or died.
    pub fn node_published(self: &Rc<Self>, message: &proto::PubMessage) {
        if let Some(proto::pub_message::InnerMessage::NodeInfoMessage(node)) = &message.inner_message {
            self.node_heard_of(node);
        }
    }

    fn node_heard_of(self: &Rc<Self>, node: &proto::GcsNodeInfo) {
        let news = self.nodes.borrow_mut().heard(node, |node| self.dead.borrow().has_node(node));
        match news {
            Ok(NodeNews::Joined(id)) if id != self.node_id => {
                tracing::info!(node = %id, "a node joined");
                self.placing.joined(id, node);
                self.tell_desks();
                self.pull_node_joined(id);
            }
            Ok(NodeNews::Joined(_) | NodeNews::Lives(_)) => {}
            Ok(NodeNews::Died(id)) => self.node_died(id),
            Err(error) => tracing::warn!(%error, "the GCS told of a node that cannot be understood"),
        }
    }

    fn node_died(self: &Rc<Self>, id: NodeId) {
        if id == self.node_id {
            if !self.shutdown.is_asked() {
                tracing::error!("the GCS has marked this node as dead: it did not answer health checks in time");
                self.shutdown.ask(Reason::UnexpectedTermination, "marked dead by the GCS");
            }
            return;
        }
        if self.dead.borrow().has_node(&id) {
            return;
        }
        tracing::info!(node = %id, "a node died");
        self.dead.borrow_mut().add_node(id);
        self.placing.died(&id);
        self.tell_desks();
        self.pull_node_gone(id);
        self.sched_all(SchedEvent::OwnerNodeGone { node: id });
        let mut owners = self.forget_locations_of_node(&id);
        owners.extend(self.objects.borrow().owners_on(&id));
        owners.sort_unstable();
        owners.dedup();
        // They died with their node, and what they owned is nobody's.
        owners.iter().for_each(|owner| self.free_objects_of(owner));
    }

    /// What another node tells through the stream of resource views.
    pub fn heard_from_node(&self, node: NodeId, update: Update) {
        match update {
            Update::Commands(commands) if commands.should_global_gc => self.collect_garbage_soon(),
            Update::Commands(_) => {}
            Update::ResourceView(view) => self.view_heard(node, &view),
        }
    }
}
