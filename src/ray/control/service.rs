//! The methods of Ray's NodeManagerService, each with what answers it.

use std::rc::Rc;

use tonic::Status;

use super::Control;
use crate::ray::proto::node_death_info::Reason;
use crate::ray::proto::*;
use crate::ray::rpc::router::Router;

/// Adds a method that is answered at once.
macro_rules! now {
    ($router:expr, $control:expr, $method:literal, |$c:ident, $request:ident: $kind:ty| $answer:expr) => {{
        let control: &Rc<Control> = $control;
        let control = control.clone();
        $router.unary(concat!("/ray.rpc.NodeManagerService/", $method), move |$request: $kind| {
            let $c = control.clone();
            async move { $answer }
        })
    }};
}

/// The routes of the service.
pub fn routes(control: &Rc<Control>) -> Router {
    let router = leases(Router::new(), control);
    let router = bundles(router, control);
    let router = objects(router, control);
    let router = workers(router, control);
    node(router, control)
}

fn leases(r: Router, c: &Rc<Control>) -> Router {
    let r = now!(r, c, "RequestWorkerLease", |c, q: RequestWorkerLeaseRequest| c.request_worker_lease(q).await);
    let r = now!(r, c, "ReturnWorkerLease", |c, q: ReturnWorkerLeaseRequest| {
        c.return_worker_lease(q).map(|()| ReturnWorkerLeaseReply {})
    });
    let r = now!(r, c, "CancelWorkerLease", |c, q: CancelWorkerLeaseRequest| {
        c.cancel_worker_lease(q).map(|()| CancelWorkerLeaseReply {})
    });
    let r = now!(r, c, "CancelLeasesWithResourceShapes", |c, q: CancelLeasesWithResourceShapesRequest| {
        c.cancel_shapes(&q).map(|()| CancelLeasesWithResourceShapesReply {})
    });
    let r = now!(r, c, "ReportWorkerBacklog", |c, q: ReportWorkerBacklogRequest| {
        c.report_backlog(q).map(|()| ReportWorkerBacklogReply {})
    });
    let r = now!(r, c, "PrestartWorkers", |c, q: PrestartWorkersRequest| {
        c.prestart(&q).map(|()| PrestartWorkersReply {})
    });
    now!(r, c, "GetWorkerFailureCause", |c, q: GetWorkerFailureCauseRequest| c.failure_cause(&q))
}

fn bundles(r: Router, c: &Rc<Control>) -> Router {
    let r = now!(r, c, "PrepareBundleResources", |c, q: PrepareBundleResourcesRequest| {
        c.prepare_bundles(q).await.map(|success| PrepareBundleResourcesReply { success })
    });
    let r = now!(r, c, "CommitBundleResources", |c, q: CommitBundleResourcesRequest| {
        c.commit_bundles(q).await.map(|()| CommitBundleResourcesReply {})
    });
    let r = now!(r, c, "RemovePlacementGroupBundles", |c, q: RemovePlacementGroupBundlesRequest| {
        c.remove_bundles(q).await.map(|()| RemovePlacementGroupBundlesReply {})
    });
    now!(r, c, "ReleaseUnusedBundles", |c, q: ReleaseUnusedBundlesRequest| {
        c.release_unused_bundles(q).await.map(|()| ReleaseUnusedBundlesReply {})
    })
}

fn objects(r: Router, c: &Rc<Control>) -> Router {
    let r = now!(r, c, "RegisterMutableObject", |_c, _q: RegisterMutableObjectRequest| {
        Err::<RegisterMutableObjectReply, _>(Status::unimplemented(
            "channels of compiled graphs between nodes are not served by this node",
        ))
    });
    now!(r, c, "PushMutableObject", |_c, _q: PushMutableObjectRequest| {
        Err::<PushMutableObjectReply, _>(Status::unimplemented(
            "channels of compiled graphs between nodes are not served by this node",
        ))
    })
}

fn workers(r: Router, c: &Rc<Control>) -> Router {
    let r = now!(r, c, "KillLocalActor", |c, q: KillLocalActorRequest| {
        c.kill_local_actor(q).await.map(|()| KillLocalActorReply {})
    });
    let r = now!(r, c, "CancelLocalTask", |c, q: CancelLocalTaskRequest| c.cancel_local_task(q).await);
    let r = now!(r, c, "ReleaseUnusedActorWorkers", |c, q: ReleaseUnusedActorWorkersRequest| {
        c.release_unused_actor_workers(&q);
        Ok(ReleaseUnusedActorWorkersReply {})
    });
    let r = now!(r, c, "IsLocalWorkerDead", |c, q: IsLocalWorkerDeadRequest| {
        Ok(IsLocalWorkerDeadReply { is_dead: c.is_worker_dead(&q.worker_id) })
    });
    let r = now!(r, c, "GetWorkerPIDs", |c, _q: GetWorkerPiDsRequest| Ok(GetWorkerPiDsReply { pids: c.worker_pids() }));
    now!(r, c, "GetAgentPIDs", |c, _q: GetAgentPiDsRequest| Ok(c.agent_pids()))
}

fn node(r: Router, c: &Rc<Control>) -> Router {
    let r = now!(r, c, "GetResourceLoad", |c, _q: GetResourceLoadRequest| {
        Ok(GetResourceLoadReply { resources: Some(c.resources_data().await) })
    });
    let r = now!(r, c, "GetNodeStats", |c, q: GetNodeStatsRequest| c.node_stats(q.include_memory_info).await);
    let r = now!(r, c, "FormatGlobalMemoryInfo", |c, q: FormatGlobalMemoryInfoRequest| {
        c.memory_summary(q.include_memory_info).await
    });
    let r = now!(r, c, "GetObjectsInfo", |c, q: GetObjectsInfoRequest| c.objects_info(q.limit).await);
    let r = now!(r, c, "GetSystemConfig", |c, _q: GetSystemConfigRequest| {
        Ok(GetSystemConfigReply { system_config: c.system_config.clone() })
    });
    let r = now!(r, c, "NotifyGCSRestart", |c, _q: NotifyGcsRestartRequest| {
        c.gcs_restarted();
        Ok(NotifyGcsRestartReply {})
    });
    let r = now!(r, c, "GlobalGC", |c, _q: GlobalGcRequest| {
        c.collect_garbage_everywhere();
        Ok(GlobalGcReply {})
    });
    let r = now!(r, c, "ResizeLocalResourceInstances", |c, q: ResizeLocalResourceInstancesRequest| {
        c.resize_resources(&q).await
    });
    let r = now!(r, c, "DrainRaylet", |c, q: DrainRayletRequest| c.drain(q).await);
    now!(r, c, "ShutdownRaylet", |c, q: ShutdownRayletRequest| {
        if !q.graceful {
            tracing::warn!("asked to end at once, without a goodbye");
            c.processes.kill_all();
            std::process::exit(0);
        }
        c.shutdown.ask(Reason::ExpectedTermination, "Terminated by autoscaler.");
        Ok(ShutdownRayletReply {})
    })
}
