//! Calls to core workers: the library that every driver and worker of Ray is built on.

use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use tonic::Status;

use super::client::{Channel, ChannelPool, ClientContext};
use crate::ray::proto::*;

/// `host:port`, with brackets around an IPv6 address.
pub fn host_port(ip_address: &str, port: i32) -> String {
    if ip_address.contains(':') {
        format!("[{ip_address}]:{port}")
    } else {
        format!("{ip_address}:{port}")
    }
}

/// Clients of core workers, one connection for each worker.
#[derive(Clone)]
pub struct CoreWorkers {
    pool: Rc<ChannelPool>,
}

impl CoreWorkers {
    /// No connections yet.
    pub fn new(context: Rc<ClientContext>) -> Self {
        Self { pool: Rc::new(ChannelPool::new(context)) }
    }

    /// The client of the worker that listens there. An address that can't be one fails the client's calls.
    pub fn of(&self, ip_address: &str, port: i32) -> CoreWorkerClient {
        let channel = self.pool.get(&host_port(ip_address, port));
        CoreWorkerClient { channel: channel.map_err(|e| e.to_string()) }
    }

    /// The client of the worker at this address.
    pub fn at(&self, address: &Address) -> CoreWorkerClient {
        self.of(&address.ip_address, address.port)
    }

    /// Drops the connection to a worker that has ended.
    pub fn forget(&self, ip_address: &str, port: i32) {
        self.pool.forget(&host_port(ip_address, port));
    }
}

/// A client of one core worker.
#[derive(Clone)]
pub struct CoreWorkerClient {
    channel: Result<Channel, String>,
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $reply:ident = $path:literal;)*) => {
        impl CoreWorkerClient {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// The worker's status; `UNAVAILABLE` where it can't be reached, `DEADLINE_EXCEEDED` after `timeout`.
                pub async fn $name(&self, request: $request, timeout: Duration) -> Result<$reply, Status> {
                    self.call($path, &request, Some(timeout)).await
                }
            )*
        }
    };
}

methods! {
    /// Asks the worker to exit; one that is busy may refuse.
    exit(ExitRequest) -> ExitReply = "/ray.rpc.CoreWorkerService/Exit";
    /// Kills the actor in the worker.
    kill_actor(KillActorRequest) -> KillActorReply = "/ray.rpc.CoreWorkerService/KillActor";
    /// Cancels a task in the worker.
    cancel_task(CancelTaskRequest) -> CancelTaskReply = "/ray.rpc.CoreWorkerService/CancelTask";
    /// Has the worker collect its garbage.
    local_gc(LocalGcRequest) -> LocalGcReply = "/ray.rpc.CoreWorkerService/LocalGC";
    /// Tells the worker that an object which it waits for is in the store.
    plasma_object_ready(PlasmaObjectReadyRequest) -> PlasmaObjectReadyReply
        = "/ray.rpc.CoreWorkerService/PlasmaObjectReady";
    /// Tells the worker that the arguments of an actor's call are in the store.
    actor_call_arg_wait_complete(ActorCallArgWaitCompleteRequest) -> ActorCallArgWaitCompleteReply
        = "/ray.rpc.CoreWorkerService/ActorCallArgWaitComplete";
    /// What the worker does and owns.
    get_core_worker_stats(GetCoreWorkerStatsRequest) -> GetCoreWorkerStatsReply
        = "/ray.rpc.CoreWorkerService/GetCoreWorkerStats";
    /// Tells the worker that the GCS has restarted.
    raylet_notify_gcs_restart(RayletNotifyGcsRestartRequest) -> RayletNotifyGcsRestartReply
        = "/ray.rpc.CoreWorkerService/RayletNotifyGCSRestart";
    /// How many tasks of its own the worker waits for.
    num_pending_tasks(NumPendingTasksRequest) -> NumPendingTasksReply = "/ray.rpc.CoreWorkerService/NumPendingTasks";
    /// Tells an owner where copies of its objects are.
    update_object_location_batch(UpdateObjectLocationBatchRequest) -> UpdateObjectLocationBatchReply
        = "/ray.rpc.CoreWorkerService/UpdateObjectLocationBatch";
    /// Has an IO worker write objects to external storage.
    spill_objects(SpillObjectsRequest) -> SpillObjectsReply = "/ray.rpc.CoreWorkerService/SpillObjects";
    /// Has an IO worker read objects back.
    restore_spilled_objects(RestoreSpilledObjectsRequest) -> RestoreSpilledObjectsReply
        = "/ray.rpc.CoreWorkerService/RestoreSpilledObjects";
    /// Has an IO worker delete what was written.
    delete_spilled_objects(DeleteSpilledObjectsRequest) -> DeleteSpilledObjectsReply
        = "/ray.rpc.CoreWorkerService/DeleteSpilledObjects";
    /// Sends an owner commands about subscriptions.
    pubsub_command_batch(PubsubCommandBatchRequest) -> PubsubCommandBatchReply
        = "/ray.rpc.CoreWorkerService/PubsubCommandBatch";
}

impl CoreWorkerClient {
    async fn call<Req, Resp>(
        &self,
        path: &'static str,
        request: &Req,
        timeout: Option<Duration>,
    ) -> Result<Resp, Status>
    where
        Req: Message,
        Resp: Message + Default,
    {
        match &self.channel {
            Ok(channel) => channel.call(path, request, timeout).await,
            Err(reason) => Err(Status::invalid_argument(reason.clone())),
        }
    }

    /// Waits for what an owner publishes; without a deadline, because the owner holds the call until it has something.
    ///
    /// # Errors
    /// As the other calls.
    pub async fn pubsub_long_polling(
        &self,
        request: &PubsubLongPollingRequest,
    ) -> Result<PubsubLongPollingReply, Status> {
        self.call("/ray.rpc.CoreWorkerService/PubsubLongPolling", request, None).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_written() {
        assert_eq!(host_port("127.0.0.1", 1), "127.0.0.1:1");
        assert_eq!(host_port("::1", 22), "[::1]:22");
    }
}
