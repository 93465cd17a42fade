//! The GCS, the cluster's control store: typed calls that outlast its restarts.
//!
//! A call that finds the GCS away is repeated until it is back, as in Ray 2.60, where a raylet gives up and exits after
//! `gcs_rpc_server_reconnect_timeout_s`. The methods here are idempotent on the GCS's side.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use raylet_shard::ids::{JobId, NodeId};
use tokio::sync::watch;
use tonic::Status;

use super::client::{is_retryable, AddressError, Channel, ClientContext, Retry};
use crate::ray::proto::*;

/// Payload status of a missing key or row (Ray's `StatusCode::NotFound`).
pub const NOT_FOUND: i32 = 17;

/// Length of a cluster's id, in bytes.
const CLUSTER_ID_BYTES: usize = 28;

/// How to talk to a GCS.
#[derive(Clone, Debug)]
pub struct GcsConfig {
    /// A GCS that is away for longer is lost: Ray's `gcs_rpc_server_reconnect_timeout_s`.
    pub reconnect_timeout_s: u64,
    /// Deadline of one attempt of a call: Ray's `gcs_server_request_timeout_seconds`.
    pub request_timeout_s: u64,
    /// Wait before a call is repeated, doubling up to [`Self::backoff_max_ms`].
    pub backoff_min_ms: u64,
    /// Longest wait before a call is repeated.
    pub backoff_max_ms: u64,
}

impl Default for GcsConfig {
    fn default() -> Self {
        Self { reconnect_timeout_s: 60, request_timeout_s: 60, backoff_min_ms: 100, backoff_max_ms: 2_000 }
    }
}

/// Why the GCS did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GcsError {
    /// Away for longer than the reconnect timeout.
    #[error("the GCS at {address} has been unreachable for {away_s} s ({last}): it was stopped, or see its log gcs_server.out")]
    Lost {
        /// Where it was.
        address: String,
        /// For how long it has been away, in seconds.
        away_s: u64,
        /// The last failure.
        last: String,
    },
    /// The call itself failed.
    #[error("{path} failed with {}", describe(.status))]
    Call {
        /// The method.
        path: &'static str,
        /// What came back.
        status: Box<Status>,
    },
    /// The call arrived and was turned down.
    #[error("{path} was refused with Ray's status {code}: {message}")]
    Refused {
        /// The method.
        path: &'static str,
        /// Ray's status code.
        code: i32,
        /// The GCS's reason.
        message: String,
    },
    /// A reply that no GCS of Ray 2.60 sends.
    #[error("{path} returned {what}: is this the GCS of a Ray 2.60 cluster?")]
    Unexpected {
        /// The method.
        path: &'static str,
        /// What was wrong with the reply.
        what: String,
    },
}

/// Ray puts the name of its own status into the message of `ABORTED`, and the text into the details.
fn describe(status: &Status) -> String {
    let (code, message) = (status.code(), status.message());
    match status.details() {
        [] => format!("{code:?}: {message}"),
        details => format!("{code:?}: {message}: {}", String::from_utf8_lossy(details)),
    }
}

/// A reply that carries a payload status.
pub trait GcsReply: Message + Default {
    /// The payload status.
    fn payload_status(&self) -> Option<&GcsStatus>;
}

macro_rules! gcs_replies {
    ($($reply:ident),* $(,)?) => {
        $(impl GcsReply for $reply {
            fn payload_status(&self) -> Option<&GcsStatus> {
                self.status.as_ref()
            }
        })*
    };
}

gcs_replies!(
    AddJobReply,
    AddWorkerInfoReply,
    CheckAliveReply,
    GcsPublishReply,
    GcsSubscriberCommandBatchReply,
    GcsSubscriberPollReply,
    GetActorInfoReply,
    GetAllJobInfoReply,
    GetAllNodeInfoReply,
    GetAllResourceUsageReply,
    GetClusterIdReply,
    GetDrainingNodesReply,
    GetInternalConfigReply,
    InternalKvDelReply,
    InternalKvExistsReply,
    InternalKvGetReply,
    InternalKvKeysReply,
    InternalKvPutReply,
    MarkJobFinishedReply,
    RegisterNodeReply,
    ReportJobErrorReply,
    ReportWorkerFailureReply,
    UnregisterNodeReply,
);

/// A client of the GCS. Cheap to clone.
#[derive(Clone)]
pub struct GcsClient(Rc<Inner>);

struct Inner {
    context: Rc<ClientContext>,
    channel: Channel,
    config: GcsConfig,
    away_since: Cell<Option<Instant>>,
    lost: watch::Sender<bool>,
}

impl GcsClient {
    /// A client of the GCS at `host:port`. Connects with the first call.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn new(context: Rc<ClientContext>, address: &str, config: GcsConfig) -> Result<Self, AddressError> {
        let channel = Channel::new(context.clone(), address)?;
        let lost = watch::channel(false).0;
        Ok(Self(Rc::new(Inner { context, channel, config, away_since: Cell::new(None), lost })))
    }

    /// The channel, for other services on the GCS's port.
    pub fn channel(&self) -> &Channel {
        &self.0.channel
    }

    /// Resolves once the GCS is lost: the node has to end.
    pub async fn lost(&self) {
        // The sender lives as long as `self` does.
        let _ = self.0.lost.subscribe().wait_for(|lost| *lost).await;
    }

    /// Calls a method whose reply has a payload status, as often as it takes. `timeout` of `None` is for long polls.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn call<Req, Resp>(
        &self,
        path: &'static str,
        request: &Req,
        timeout: Option<Duration>,
    ) -> Result<Resp, GcsError>
    where
        Req: Message,
        Resp: GcsReply,
    {
        let inner = &self.0;
        let (backoff_min_ms, backoff_max_ms) = (inner.config.backoff_min_ms, inner.config.backoff_max_ms);
        let retry = Retry { max_attempts: u32::MAX, backoff_min_ms, backoff_max_ms };
        let mut attempt = 1;
        loop {
            match self.call_once(path, request, timeout).await {
                Err(GcsError::Call { status, .. }) if is_retryable(&status) => self.away(&status)?,
                result => return result,
            }
            tokio::time::sleep(retry.backoff(attempt)).await;
            attempt += 1;
        }
    }

    /// Calls once; a caller that has to act between attempts repeats it on its own.
    pub(super) async fn call_once<Req, Resp>(
        &self,
        path: &'static str,
        request: &Req,
        timeout: Option<Duration>,
    ) -> Result<Resp, GcsError>
    where
        Req: Message,
        Resp: GcsReply,
    {
        let called = self.0.channel.call::<Req, Resp>(path, request, timeout).await;
        let reply = called.map_err(|status| GcsError::Call { path, status: Box::new(status) })?;
        self.0.away_since.set(None);
        match reply.payload_status() {
            Some(status) if status.code != 0 => {
                Err(GcsError::Refused { path, code: status.code, message: status.message.clone() })
            }
            _ => Ok(reply),
        }
    }

    /// Notes a failure to reach the GCS.
    ///
    /// # Errors
    /// [`GcsError::Lost`] once it has been away for too long.
    pub(super) fn away(&self, status: &Status) -> Result<(), GcsError> {
        let since = self.0.away_since.get().unwrap_or_else(Instant::now);
        self.0.away_since.set(Some(since));
        let away_s = since.elapsed().as_secs();
        if away_s < self.0.config.reconnect_timeout_s {
            tracing::debug!(address = self.0.channel.address(), error = status.message(), "the GCS is away");
            return Ok(());
        }
        self.0.lost.send_replace(true);
        let address = self.0.channel.address().to_owned();
        Err(GcsError::Lost { address, away_s, last: status.message().to_owned() })
    }

    async fn ask<Req: Message, Resp: GcsReply>(&self, path: &'static str, request: Req) -> Result<Resp, GcsError> {
        let timeout = Duration::from_secs(self.0.config.request_timeout_s);
        self.call(path, &request, Some(timeout)).await
    }

    /// Learns the cluster's id and names it in every later call of this context.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn join_cluster(&self) -> Result<Bytes, GcsError> {
        let path = "/ray.rpc.NodeInfoGcsService/GetClusterId";
        // A GCS of Ray 2.60 refuses this one call to a client that names a cluster already.
        self.0.context.set_cluster_id(None);
        let reply: GetClusterIdReply = self.ask(path, GetClusterIdRequest {}).await?;
        let cluster_id = reply.cluster_id;
        if cluster_id.len() != CLUSTER_ID_BYTES {
            let what = format!("a cluster id of {} bytes, expected {CLUSTER_ID_BYTES}", cluster_id.len());
            return Err(GcsError::Unexpected { path, what });
        }
        self.0.context.set_cluster_id(Some(&cluster_id));
        Ok(cluster_id)
    }

    /// The cluster's settings as JSON.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn internal_config(&self) -> Result<String, GcsError> {
        let path = "/ray.rpc.InternalKVGcsService/GetInternalConfig";
        let reply: GetInternalConfigReply = self.ask(path, GetInternalConfigRequest {}).await?;
        Ok(reply.config)
    }

    /// Makes this node a member of the cluster.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn register_node(&self, node: GcsNodeInfo) -> Result<(), GcsError> {
        let request = RegisterNodeRequest { node_info: Some(node) };
        let _: RegisterNodeReply = self.ask("/ray.rpc.NodeInfoGcsService/RegisterNode", request).await?;
        Ok(())
    }

    /// Takes a node off the cluster.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn unregister_node(&self, node: NodeId, cause: NodeDeathInfo) -> Result<(), GcsError> {
        let request = UnregisterNodeRequest { node_id: id(node.as_bytes()), node_death_info: Some(cause) };
        let _: UnregisterNodeReply = self.ask("/ray.rpc.NodeInfoGcsService/UnregisterNode", request).await?;
        Ok(())
    }

    /// All nodes that the GCS knows, dead ones included.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn all_nodes(&self) -> Result<Vec<GcsNodeInfo>, GcsError> {
        let path = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo";
        let reply: GetAllNodeInfoReply = self.ask(path, GetAllNodeInfoRequest::default()).await?;
        Ok(reply.node_info_list)
    }

    /// Whether the GCS counts a node as alive; one that it does not know is not.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn counts_as_alive(&self, node: NodeId) -> Result<bool, GcsError> {
        let path = "/ray.rpc.NodeInfoGcsService/CheckAlive";
        let request = CheckAliveRequest { node_ids: vec![id(node.as_bytes())] };
        let reply: CheckAliveReply = self.ask(path, request).await?;
        match reply.raylet_alive[..] {
            [alive] => Ok(alive),
            _ => Err(GcsError::Unexpected { path, what: format!("{} answers for one node", reply.raylet_alive.len()) }),
        }
    }

    /// Records a job.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn add_job(&self, job: JobTableData) -> Result<(), GcsError> {
        let request = AddJobRequest { data: Some(job) };
        let _: AddJobReply = self.ask("/ray.rpc.JobInfoGcsService/AddJob", request).await?;
        Ok(())
    }

    /// Records that a job's driver has ended.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn mark_job_finished(&self, job: JobId) -> Result<(), GcsError> {
        let request = MarkJobFinishedRequest { job_id: id(job.as_bytes()) };
        let _: MarkJobFinishedReply = self.ask("/ray.rpc.JobInfoGcsService/MarkJobFinished", request).await?;
        Ok(())
    }

    /// All jobs, without what the dashboard would want to know about them.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn all_jobs(&self) -> Result<Vec<JobTableData>, GcsError> {
        let request = GetAllJobInfoRequest {
            skip_submission_job_info_field: Some(true),
            skip_is_running_tasks_field: Some(true),
            ..Default::default()
        };
        let reply: GetAllJobInfoReply = self.ask("/ray.rpc.JobInfoGcsService/GetAllJobInfo", request).await?;
        Ok(reply.job_info_list)
    }

    /// Records how a worker ended.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn report_worker_failure(&self, worker: WorkerTableData) -> Result<(), GcsError> {
        let request = ReportWorkerFailureRequest { worker_failure: Some(worker) };
        let path = "/ray.rpc.WorkerInfoGcsService/ReportWorkerFailure";
        let _: ReportWorkerFailureReply = self.ask(path, request).await?;
        Ok(())
    }

    /// Records a worker.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn add_worker(&self, worker: WorkerTableData) -> Result<(), GcsError> {
        let request = AddWorkerInfoRequest { worker_data: Some(worker) };
        let _: AddWorkerInfoReply = self.ask("/ray.rpc.WorkerInfoGcsService/AddWorkerInfo", request).await?;
        Ok(())
    }

    /// A key's value.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn kv_get(&self, namespace: &[u8], key: &[u8]) -> Result<Option<Bytes>, GcsError> {
        let request = InternalKvGetRequest { key: id(key), namespace: id(namespace) };
        let path = "/ray.rpc.InternalKVGcsService/InternalKVGet";
        match self.ask::<_, InternalKvGetReply>(path, request).await {
            Ok(reply) => Ok(Some(reply.value)),
            Err(GcsError::Refused { code: NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets a key; true where it had no value.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn kv_put(&self, namespace: &[u8], key: &[u8], value: Bytes, overwrite: bool) -> Result<bool, GcsError> {
        let request = InternalKvPutRequest { key: id(key), value, overwrite, namespace: id(namespace) };
        let reply: InternalKvPutReply = self.ask("/ray.rpc.InternalKVGcsService/InternalKVPut", request).await?;
        Ok(reply.added)
    }

    /// Shows an error to the drivers of a job; a nil job id means every driver.
    ///
    /// # Errors
    /// See [`GcsError`].
    pub async fn publish_error(&self, error: ErrorTableData) -> Result<(), GcsError> {
        let request = ReportJobErrorRequest { job_error: Some(error) };
        let _: ReportJobErrorReply = self.ask("/ray.rpc.ObservabilityPubSubService/ReportJobError", request).await?;
        Ok(())
    }
}

/// Bytes as they travel in a message.
pub fn id(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
