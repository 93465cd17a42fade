//! `ray.rpc.ObjectManagerService`: Pull and Push, as Ray 2.60's raylets call them.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use raylet_shard::ids::{NodeId, ObjectId};
use raylet_shard::pull::ChunkHead;
use tonic::Status;

use super::send::push_number;
use super::Transfer;
use crate::ray::core_rpc::MAX_OBJECTS;
use crate::ray::proto::{PullReply, PullRequest, PushReply, PushRequest};
use crate::ray::rpc::router::Router;

/// The service's methods.
pub(super) fn routes(transfer: &Rc<Transfer>) -> Router {
    let (pulled, pushed) = (transfer.clone(), transfer.clone());
    Router::new()
        .unary("/ray.rpc.ObjectManagerService/Pull", move |request: PullRequest| {
            let transfer = pulled.clone();
            async move { transfer.pull(&request) }
        })
        .unary("/ray.rpc.ObjectManagerService/Push", move |request: PushRequest| {
            let transfer = pushed.clone();
            async move { transfer.push(request).await }
        })
}

impl Transfer {
    /// A node wants objects.
    fn pull(self: &Rc<Self>, request: &PullRequest) -> Result<PullReply, Status> {
        let node = node_id(&request.node_id)?;
        if request.object_ids.len() > MAX_OBJECTS {
            let text = format!("expected at most {MAX_OBJECTS} objects, got {}", request.object_ids.len());
            return Err(Status::invalid_argument(text));
        }
        let objects: Result<Vec<ObjectId>, Status> = request.object_ids.iter().map(|id| object_id(id)).collect();
        for object in objects? {
            self.wanted_by(node, object, true, false)?;
        }
        Ok(PullReply {})
    }

    /// A node sends a chunk. Answered once its bytes are written, or are not going to be.
    async fn push(self: &Rc<Self>, request: PushRequest) -> Result<PushReply, Status> {
        let head = ChunkHead {
            object: object_id(&request.object_id)?,
            from: node_id(&request.node_id)?,
            push: push_number(&request.push_id),
            index: request.chunk_index,
            total_bytes: request.data_size,
            metadata_bytes: request.metadata_size,
            len_bytes: request.data.len() as u64,
        };
        self.used.call_received_bytes.fetch_add(head.len_bytes, Ordering::Relaxed);
        self.chunk(head, request.data).await.map(|()| PushReply {})
    }
}

fn node_id(bytes: &[u8]) -> Result<NodeId, Status> {
    NodeId::from_slice(bytes).ok_or_else(|| {
        Status::invalid_argument(format!("expected a node id of {} bytes, got {}", NodeId::LEN, bytes.len()))
    })
}

fn object_id(bytes: &[u8]) -> Result<ObjectId, Status> {
    ObjectId::from_slice(bytes).ok_or_else(|| {
        Status::invalid_argument(format!("expected an object id of {} bytes, got {}", ObjectId::LEN, bytes.len()))
    })
}
