//! Every message type against the descriptors in Ray's own executables: messages that Python fills to the last field
//! come out of our types unchanged.

#[path = "rpc_support/python.rs"]
mod python;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use base64::prelude::{Engine, BASE64_STANDARD};
use prost::Message;
use raylet_uring::ray::proto;

/// Seeds that each message is filled with.
const SEEDS: usize = 6;

type Recode = fn(&[u8]) -> Result<Vec<u8>, prost::DecodeError>;

fn recode<M: Message + Default>(bytes: &[u8]) -> Result<Vec<u8>, prost::DecodeError> {
    M::decode(bytes).map(|message| message.encode_to_vec())
}

/// Lists message types as pairs of their name in lower case, which Ray and Rust spell alike, and how to recode them.
macro_rules! messages {
    ($package:literal, $module:path: $($name:ident),* $(,)?) => {{
        use $module as types;
        [$((format!("{}.{}", $package, stringify!($name).to_lowercase()), recode::<types::$name> as Recode)),*]
    }};
}

#[test]
fn messages_filled_by_ray_are_read_and_written_unchanged() {
    let mut recoders: BTreeMap<String, Recode> = BTreeMap::new();
    recoders.extend(messages!("ray.rpc.syncer", proto::syncer: CommandsSyncMessage, RaySyncMessage, RaySyncMessageBatch, ResourceViewSyncMessage));
    recoders.extend(messages!("grpc.health.v1", proto::health: HealthCheckRequest, HealthCheckResponse));
    recoders.extend(messages!("ray.rpc", proto:
        ActorCallArgWaitCompleteReply, ActorCallArgWaitCompleteRequest, ActorCreationTaskSpec, ActorDeathCause,
        ActorDiedErrorContext, ActorTableData, ActorTaskSpec, ActorUnavailableContext, ActorUnschedulableContext,
        AddJobReply, AddJobRequest, AddWorkerInfoReply, AddWorkerInfoRequest, Address, AvailableResources, Bundle,
        CancelLeasesWithResourceShapesReply, CancelLeasesWithResourceShapesRequest, CancelLocalTaskReply,
        CancelLocalTaskRequest, CancelTaskReply, CancelTaskRequest, CancelWorkerLeaseReply,
        CancelWorkerLeaseRequest, CheckAliveReply, CheckAliveRequest, Command, CommitBundleResourcesReply,
        CommitBundleResourcesRequest, ConcurrencyGroup, CoreWorkerStats, CppFunctionDescriptor,
        DefaultSchedulingStrategy, DeleteRuntimeEnvIfPossibleReply, DeleteRuntimeEnvIfPossibleRequest,
        DeleteSpilledObjectsReply, DeleteSpilledObjectsRequest, DrainNodeData, DrainNodeReply, DrainNodeRequest,
        DrainNodeStatus, DrainRayletReply, DrainRayletRequest, DrainingNode, ErrorTableData, ExitReply, ExitRequest,
        FailureMessage, FallbackOption, FallbackStrategy, FormatGlobalMemoryInfoReply,
        FormatGlobalMemoryInfoRequest, FreeLocalObjectsReply, FreeLocalObjectsRequest, FunctionDescriptor,
        GcsNodeAddressAndLiveness, GcsNodeInfo, GcsPublishReply, GcsPublishRequest, GcsStatus,
        GcsSubscriberCommandBatchReply, GcsSubscriberCommandBatchRequest, GcsSubscriberPollReply,
        GcsSubscriberPollRequest, GetActorInfoReply, GetActorInfoRequest, GetAgentPiDsReply, GetAgentPiDsRequest,
        GetAllActorInfoReply, GetAllActorInfoRequest, GetAllAvailableResourcesReply,
        GetAllAvailableResourcesRequest, GetAllJobInfoReply, GetAllJobInfoRequest,
        GetAllNodeAddressAndLivenessReply, GetAllNodeAddressAndLivenessRequest, GetAllNodeInfoReply,
        GetAllNodeInfoRequest, GetAllPlacementGroupReply, GetAllPlacementGroupRequest, GetAllResourceUsageReply,
        GetAllResourceUsageRequest, GetAllTotalResourcesReply, GetAllTotalResourcesRequest, GetAllWorkerInfoReply,
        GetAllWorkerInfoRequest, GetClusterIdReply, GetClusterIdRequest, GetCoreWorkerStatsReply,
        GetCoreWorkerStatsRequest, GetDrainingNodesReply, GetDrainingNodesRequest, GetInternalConfigReply,
        GetInternalConfigRequest, GetNamedActorInfoReply, GetNamedActorInfoRequest, GetNextJobIdReply,
        GetNextJobIdRequest, GetNodeStatsReply, GetNodeStatsRequest, GetObjectLocationsOwnerReply,
        GetObjectLocationsOwnerRequest, GetObjectStatusReply, GetObjectStatusRequest, GetObjectsInfoReply,
        GetObjectsInfoRequest, GetOrCreateRuntimeEnvReply, GetOrCreateRuntimeEnvRequest, GetPlacementGroupReply,
        GetPlacementGroupRequest, GetResourceLoadReply, GetResourceLoadRequest, GetRuntimeEnvsInfoReply,
        GetRuntimeEnvsInfoRequest, GetSystemConfigReply, GetSystemConfigRequest, GetWorkerFailureCauseReply,
        GetWorkerFailureCauseRequest, GetWorkerInfoReply, GetWorkerInfoRequest, GetWorkerPiDsReply,
        GetWorkerPiDsRequest, GlobalGcReply, GlobalGcRequest, InternalKvDelReply, InternalKvDelRequest,
        InternalKvExistsReply, InternalKvExistsRequest, InternalKvGetReply, InternalKvGetRequest,
        InternalKvKeysReply, InternalKvKeysRequest, InternalKvMultiGetReply, InternalKvMultiGetRequest,
        InternalKvPutReply, InternalKvPutRequest, IsLocalWorkerDeadReply, IsLocalWorkerDeadRequest,
        JavaFunctionDescriptor, JobConfig, JobTableData, JobsApiInfo, KillActorReply, KillActorRequest,
        KillLocalActorReply, KillLocalActorRequest, LabelDoesNotExist, LabelExists, LabelIn, LabelMatchExpression,
        LabelMatchExpressions, LabelNotIn, LabelOperator, LabelSelector, LabelSelectorConstraint, LeaseSpec,
        LocalGcReply, LocalGcRequest, LogBatch, MapFieldEntry, MarkJobFinishedReply, MarkJobFinishedRequest,
        NodeAffinitySchedulingStrategy, NodeDeathInfo, NodeLabelSchedulingStrategy, NodeResourceUsage, NodeSnapshot,
        NotifyGcsRestartReply, NotifyGcsRestartRequest, NumPendingTasksReply, NumPendingTasksRequest,
        ObjectLocationUpdate, ObjectRefInfo, ObjectReference, ObjectReferenceCount, ObjectSpilledLocationUpdate,
        ObjectStoreStats, OomContext, PinObjectIDsReply, PinObjectIDsRequest, PinRuntimeEnvUriReply,
        PinRuntimeEnvUriRequest, PlacementGroupLoad, PlacementGroupSchedulingStrategy, PlacementGroupStats,
        PlacementGroupTableData, PlasmaObjectReadyReply, PlasmaObjectReadyRequest, PrepareBundleResourcesReply,
        PrepareBundleResourcesRequest, PrestartWorkersReply, PrestartWorkersRequest, PreviousActorIncarnation,
        PubMessage, PubsubCommandBatchReply, PubsubCommandBatchRequest, PubsubLongPollingReply,
        PubsubLongPollingRequest, PullReply, PullRequest, PushMutableObjectReply, PushMutableObjectRequest,
        PushReply, PushRequest, PythonFunctionDescriptor, RayErrorInfo, RayException, RayObject,
        RayletNotifyGcsRestartReply, RayletNotifyGcsRestartRequest, RegisterMutableObjectReaderReply,
        RegisterMutableObjectReaderRequest, RegisterMutableObjectReply, RegisterMutableObjectRequest,
        RegisterNodeReply, RegisterNodeRequest, ReleaseUnusedActorWorkersReply, ReleaseUnusedActorWorkersRequest,
        ReleaseUnusedBundlesReply, ReleaseUnusedBundlesRequest, RemovePlacementGroupBundlesReply,
        RemovePlacementGroupBundlesRequest, ReportJobErrorReply, ReportJobErrorRequest, ReportWorkerBacklogReply,
        ReportWorkerBacklogRequest, ReportWorkerFailureReply, ReportWorkerFailureRequest,
        RequestOwnerToCancelTaskReply, RequestOwnerToCancelTaskRequest, RequestWorkerLeaseReply,
        RequestWorkerLeaseRequest, ResizeLocalResourceInstancesReply, ResizeLocalResourceInstancesRequest,
        ResourceAllocations, ResourceDemand, ResourceId, ResourceLoad, ResourceMapEntry, ResourceUsageBatchData,
        ResourcesData, RestoreSpilledObjectsReply, RestoreSpilledObjectsRequest, ReturnWorkerLeaseReply,
        ReturnWorkerLeaseRequest, RuntimeEnvConfig, RuntimeEnvFailedContext, RuntimeEnvInfo, RuntimeEnvState,
        RuntimeEnvUris, SchedulingStrategy, ShutdownRayletReply, ShutdownRayletRequest, SpillObjectsReply,
        SpillObjectsRequest, SpreadSchedulingStrategy, SubMessage, TaskArg, TaskInfoEntry, TaskSpec, TotalResources,
        UnregisterNodeReply, UnregisterNodeRequest, UnsubscribeMessage, UpdateObjectLocationBatchReply,
        UpdateObjectLocationBatchRequest, UpdateWorkerDebuggerPortReply, UpdateWorkerDebuggerPortRequest,
        UpdateWorkerNumPausedThreadsReply, UpdateWorkerNumPausedThreadsRequest, WorkerBacklogReport,
        WorkerDeltaData, WorkerObjectLocationsPubMessage, WorkerObjectLocationsSubMessage, WorkerRefRemovedMessage,
        WorkerRefRemovedSubMessage, WorkerTableData,
    ));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rpc_support/messages.py");
    let output = Command::new(python::python()).args([script, &SEEDS.to_string()]).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut checked = BTreeSet::new();
    for line in String::from_utf8(output.stdout).expect("utf-8").lines() {
        let (name, digits) = line.split_once('\t').expect("two columns");
        let Some((name, recode)) = recoders.get_key_value(&name.to_lowercase()) else {
            continue;
        };
        let bytes = BASE64_STANDARD.decode(digits).expect("base64");
        let recoded = recode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(recoded == bytes, "{name}\nfrom {bytes:02x?}\nto   {recoded:02x?}");
        checked.insert(name);
    }
    let missed: Vec<_> = recoders.keys().filter(|name| !checked.contains(name)).collect();
    assert!(missed.is_empty(), "Ray 2.60 has no {missed:?}");
}
