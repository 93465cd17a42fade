//! What a lease request looks like to the scheduler: read by the control thread and by the desks of the cores alike.

use raylet_shard::ids::{ActorId, JobId, LeaseId, NodeId, ObjectId, Token, WorkerId};
use raylet_shard::sched::{ClassId, LeaseRequest};

use super::classes::runtime_env_hash;
use super::proto;

/// Requests of one shape are of one scheduling class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Names and amounts (as the bits of a double), in the order of the names.
    resources: Vec<(String, u64)>,
    language: i32,
    runtime_env_hash: i32,
    options: Vec<String>,
}

impl Shape {
    /// The shape of a request.
    pub fn of(spec: &proto::LeaseSpec) -> Self {
        let resources = spec.required_resources.iter();
        Self {
            resources: resources.map(|(name, amount)| (name.clone(), amount.to_bits())).collect(),
            language: spec.language,
            runtime_env_hash: runtime_env_hash(spec.runtime_env_info.as_ref()),
            options: spec.dynamic_worker_options.clone(),
        }
    }
}

/// Who asks for a lease.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asker {
    /// The worker or driver.
    pub owner: WorkerId,
    /// Its node.
    pub node: NodeId,
}

impl Asker {
    /// Who asks; nobody known where the request doesn't say.
    pub fn of(spec: &proto::LeaseSpec) -> Self {
        let Some(caller) = &spec.caller_address else {
            return Self::default();
        };
        Self {
            owner: WorkerId::from_slice(&caller.worker_id).unwrap_or_default(),
            node: NodeId::from_slice(&caller.node_id).unwrap_or_default(),
        }
    }
}

/// The actor that a request is for.
pub fn actor_of(spec: &proto::LeaseSpec) -> Option<ActorId> {
    let creates_actor = spec.r#type == proto::TaskType::ActorCreationTask as i32;
    creates_actor.then(|| ActorId::from_slice(&spec.actor_id)).flatten()
}

/// A request as the shard wants it.
pub fn lease_request(
    token: Token,
    lease: LeaseId,
    class: ClassId,
    asker: Asker,
    spec: &proto::LeaseSpec,
    grant_or_reject: bool,
) -> LeaseRequest {
    LeaseRequest {
        token,
        lease,
        class,
        owner: asker.owner,
        owner_node: asker.node,
        job: JobId::from_slice(&spec.job_id).unwrap_or_default(),
        actor: actor_of(spec),
        detached: spec.is_detached_actor,
        root_detached_actor: ActorId::from_slice(&spec.root_detached_actor_id).filter(|id| !id.is_nil()),
        is_gpu: spec.required_resources.get("GPU").is_some_and(|gpus| *gpus > 0.0),
        grant_or_reject,
        priority: 0,
        deps: spec.dependencies.iter().filter_map(|dep| ObjectId::from_slice(&dep.object_id)).collect(),
    }
}
