//! The nodes of the cluster that live, as the GCS tells of them: by its list when a subscription begins, by its messages from
//! then on.

use raylet_shard::ids::NodeId;
use rustc_hash::FxHashMap;

use super::proto::{gcs_node_info::GcsNodeState, GcsNodeInfo};

/// Most nodes that are remembered. More are not known here: nothing is spilled to them and nothing fetched from them.
pub const MAX_NODES: usize = 65_536;

/// A node that lives, this one included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// IP address of its node manager and of its object manager.
    pub address: String,
    /// TCP port of its NodeManagerService.
    pub node_manager_port: u16,
    /// TCP port of its ObjectManagerService.
    pub object_manager_port: u16,
    /// TCP port of its bulk port; `None` for a node of stock Ray, and one that has none open.
    pub bulk_port: Option<u16>,
}

/// Label by which a node tells where its bulk port is.
pub const BULK_PORT_LABEL: &str = "raylet-uring/bulk-port";

/// What is wrong with the GCS's word on a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeRecordError {
    /// Its id.
    #[error("expected a node id of 28 bytes, got {0}")]
    Id(usize),
    /// One of its ports.
    #[error("{name}: expected a port from 1 to 65535, got {port}")]
    Port {
        /// The field.
        name: &'static str,
        /// What came.
        port: i32,
    },
    /// [`MAX_NODES`] are known.
    #[error("{MAX_NODES} nodes are known already")]
    TooMany,
}

/// What the GCS says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeNews {
    /// It lives, and has not been heard of before.
    Joined(NodeId),
    /// It lives, as before.
    Lives(NodeId),
    /// It is dead.
    Died(NodeId),
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Nodes {
    alive: FxHashMap<NodeId, NodeRecord>,
}

impl Nodes {
    /// Takes in what the GCS says of a node. `is_dead` tells of a node that is known to be dead: a list may be older than the
    /// message of its death, and no node comes back under its id.
    ///
    /// # Errors
    /// [`NodeRecordError`]; then nothing has changed.
    pub fn heard(
        &mut self,
        node: &GcsNodeInfo,
        is_dead: impl Fn(&NodeId) -> bool,
    ) -> Result<NodeNews, NodeRecordError> {
        let id = NodeId::from_slice(&node.node_id).ok_or(NodeRecordError::Id(node.node_id.len()))?;
        if node.state == GcsNodeState::Dead as i32 || is_dead(&id) {
            self.alive.remove(&id);
            return Ok(NodeNews::Died(id));
        }
        let record = NodeRecord {
            address: node.node_manager_address.clone(),
            node_manager_port: port("node_manager_port", node.node_manager_port)?,
            object_manager_port: port("object_manager_port", node.object_manager_port)?,
            // A label is anybody's to set: one that is no port is none of ours.
            bulk_port: node.labels.get(BULK_PORT_LABEL).and_then(|text| text.parse().ok()).filter(|port| *port != 0),
        };
        if self.alive.len() >= MAX_NODES && !self.alive.contains_key(&id) {
            return Err(NodeRecordError::TooMany);
        }
        Ok(match self.alive.insert(id, record) {
            Some(_) => NodeNews::Lives(id),
            None => NodeNews::Joined(id),
        })
    }

    /// How many live, as far as is known.
    pub fn len(&self) -> usize {
        self.alive.len()
    }

    /// True where none is known.
    pub fn is_empty(&self) -> bool {
        self.alive.is_empty()
    }

    /// A node that lives.
    pub fn get(&self, node: &NodeId) -> Option<&NodeRecord> {
        self.alive.get(node)
    }
}

fn port(name: &'static str, port: i32) -> Result<u16, NodeRecordError> {
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or(NodeRecordError::Port { name, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(id: u8, state: GcsNodeState) -> GcsNodeInfo {
        GcsNodeInfo {
            node_id: vec![id; NodeId::LEN].into(),
            node_manager_address: "10.0.0.1".to_owned(),
            node_manager_port: 4000,
            object_manager_port: 5000,
            state: state as i32,
            ..GcsNodeInfo::default()
        }
    }

    #[test]
    fn a_node_joins_once_and_stays_dead() {
        let (mut nodes, id) = (Nodes::default(), NodeId([7; NodeId::LEN]));
        assert_eq!(nodes.heard(&info(7, GcsNodeState::Alive), |_| false), Ok(NodeNews::Joined(id)));
        assert_eq!(nodes.heard(&info(7, GcsNodeState::Alive), |_| false), Ok(NodeNews::Lives(id)));
        let record = nodes.get(&id).expect("it lives");
        assert_eq!((&*record.address, record.node_manager_port, record.object_manager_port), ("10.0.0.1", 4000, 5000));
        assert_eq!(nodes.heard(&info(7, GcsNodeState::Dead), |_| false), Ok(NodeNews::Died(id)));
        assert_eq!(nodes.heard(&info(7, GcsNodeState::Alive), |dead| *dead == id), Ok(NodeNews::Died(id)));
        assert_eq!(nodes.get(&id), None);
    }

    #[test]
    fn a_node_that_makes_no_sense_is_refused_by_name() {
        let mut nodes = Nodes::default();
        let bad = GcsNodeInfo { object_manager_port: 70_000, ..info(1, GcsNodeState::Alive) };
        let error = nodes.heard(&bad, |_| false).unwrap_err();
        assert_eq!(error.to_string(), "object_manager_port: expected a port from 1 to 65535, got 70000");
        let error = nodes.heard(&GcsNodeInfo::default(), |_| false).unwrap_err();
        assert_eq!(error.to_string(), "expected a node id of 28 bytes, got 0");
    }
}
