//! The table of Ray's settings. Names and meanings are Ray's; the defaults were read from the memory of the raylet
//! executable of the Ray 2.60.0 wheel, as its constructor computed them.

use super::ray_value::FromSetting;

macro_rules! settings {
    ($($(#[doc = $doc:literal])* $field:ident $(as $name:literal)?: $kind:ty = $default:expr;)*) => {
        /// Ray's settings that a raylet on one node can act on, by Ray's names and in Ray's units.
        ///
        /// Made by [`RayConfig::from_environment`](super::ray::RayConfig::from_environment) and overridden by
        /// [`RayConfig::apply_cluster`](super::ray::RayConfig::apply_cluster).
        #[derive(Debug, Clone, PartialEq)]
        pub struct RayConfig {
            $($(#[doc = $doc])* pub $field: $kind,)*
        }

        impl Default for RayConfig {
            fn default() -> Self {
                RayConfig { $($field: $default,)* }
            }
        }

        /// The names of the settings that [`RayConfig`] holds, as Ray spells them after `RAY_` and in its JSON.
        pub const NAMES: &[&str] = &[$(settings!(@name $field $($name)?),)*];

        impl RayConfig {
            /// Sets one setting from the text of an environment variable. `Ok(false)`: there is none of this name.
            pub(super) fn set_text(&mut self, name: &str, text: &str) -> Result<bool, &'static str> {
                match name {
                    $(settings!(@name $field $($name)?) => self.$field = <$kind>::from_text(text).ok_or(<$kind>::EXPECTED)?,)*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            /// Sets one setting from the cluster's JSON. `Ok(false)`: there is none of this name.
            pub(super) fn set_json(&mut self, name: &str, json: &serde_json::Value) -> Result<bool, &'static str> {
                match name {
                    $(settings!(@name $field $($name)?) => self.$field = <$kind>::from_json(json).ok_or(<$kind>::EXPECTED)?,)*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            /// Every setting with its value as text, in the order of [`NAMES`].
            pub fn entries(&self) -> Vec<(&'static str, String)> {
                vec![$((settings!(@name $field $($name)?), self.$field.to_text()),)*]
            }
        }
    };
    (@name $field:ident $name:literal) => { $name };
    (@name $field:ident) => { stringify!($field) };
}

settings! {
    /// Seconds that a started worker has for its registration before it counts as failed.
    worker_register_timeout_seconds: i64 = 60;
    /// Workers that may start at once; 0: the flag `--maximum_startup_concurrency` decides.
    worker_maximum_startup_concurrency: i64 = 0;
    /// Idle workers above this many are killed after their idle time; -1: the number of CPUs.
    num_workers_soft_limit: i64 = -1;
    /// Milliseconds between two looks for idle workers to kill; 0: never.
    kill_idle_workers_interval_ms: u64 = 200;
    /// Milliseconds that a worker must have been idle before it may be killed.
    idle_worker_killing_time_threshold_ms: i64 = 1000;
    /// Bytes of memory above which an idle worker is killed whatever the soft limit.
    idle_worker_killing_memory_threshold_bytes: i64 = 1_073_741_824;
    /// Whether workers are started for the backlog that callers report.
    enable_worker_prestart: bool = false;
    /// Whether workers are started when the first driver of a job registers.
    prestart_worker_first_driver: bool = true;
    /// Python modules that workers import before their first task.
    preload_python_modules: Vec<String> = Vec::new();
    /// Milliseconds between SIGTERM and SIGKILL for a worker.
    kill_worker_timeout_milliseconds: i64 = 5000;
    /// Value for oom_score_adj of workers, 0 to 1000.
    worker_oom_score_adjustment: i32 = 1000;
    /// Nice value of workers, 0 to 19.
    worker_niceness: i32 = 15;
    /// Whether core dumps of workers leave out the object store.
    worker_core_dump_exclude_plasma_store: bool = true;
    /// Whether core dumps of the raylet leave out the object store.
    raylet_core_dump_exclude_plasma_store: bool = true;
    /// Whether a dead worker's process group is killed.
    process_group_cleanup_enabled: bool = true;
    /// Whether the raylet kills the children that a worker leaves behind.
    kill_child_processes_on_worker_exit: bool = true;
    /// Whether the raylet adopts and kills grandchildren that outlive their worker (Linux subreaper).
    kill_child_processes_on_worker_exit_with_raylet_subreaper: bool = false;
    /// How often a lease asks again for a worker whose start failed.
    pop_worker_max_retries: i32 = 5;
    /// Whether leases of one scheduling class beyond the number of CPUs wait with a growing delay.
    worker_cap_enabled: bool = true;
    /// First delay in milliseconds of a lease above the cap.
    worker_cap_initial_backoff_delay_ms: i64 = 1000;
    /// Greatest delay in milliseconds of a lease above the cap.
    worker_cap_max_backoff_delay_ms: i64 = 10_000;
    /// Workers that one look at resource use may visit.
    worker_max_resource_analysis_iteration: u32 = 128;
    /// Milliseconds for which a caller may keep a leased worker without work.
    worker_lease_timeout_milliseconds: i64 = 500;
    /// Milliseconds between backlog reports of callers.
    report_worker_backlog_interval_ms: i64 = 1000;
    /// Milliseconds for which a cancelled lease id is remembered, so that a late request for it is refused.
    cancelled_lease_tombstone_ttl_ms: u64 = 600_000;
    /// Cancelled lease ids that are remembered at most.
    max_cancelled_lease_tombstones: u32 = 100_000;
    /// Milliseconds between reports of changed resources to the GCS.
    raylet_report_resources_period_milliseconds: u64 = 100;
    /// Milliseconds after which an unchanged resource view is sent again.
    ray_syncer_message_refresh_interval_ms: i64 = 3000;
    /// Resource shapes in one load report; -1: all.
    max_resource_shapes_per_load_report: i64 = 100;
    /// Whether an actor's load is reported by its placement resources.
    report_actor_placement_resources: bool = true;
    /// Use of a node, 0 to 1, above which other nodes are preferred.
    scheduler_spread_threshold: f64 = 0.5;
    /// Share of the nodes from which placement chooses at random.
    scheduler_top_k_fraction: f64 = 0.2;
    /// Least number of nodes from which placement chooses at random.
    scheduler_top_k_absolute: i32 = 1;
    /// Whether requests without GPUs avoid nodes with GPUs.
    scheduler_avoid_gpu_nodes: bool = true;
    /// Whether only pinned objects count as object store memory in use.
    scheduler_report_pinned_bytes_only: bool = true;
    /// Share of the object store that arguments of running tasks may pin, 0 to 1.
    max_task_args_memory_fraction: f64 = 0.7;
    /// Whether a lease that no node can ever satisfy fails instead of waiting (autoscaler v2).
    enable_infeasible_task_early_exit: bool = false;
    /// Resources among CPU, GPU, memory, object_store_memory that come in whole instances (comma-separated).
    predefined_unit_instance_resources: String = "GPU".to_owned();
    /// Custom resources that come in whole instances (comma-separated).
    custom_unit_instance_resources: String = "neuron_cores,TPU,NPU,HPU,RBLN,FURIOSA,TTNPU,MBLT".to_owned();
    /// Milliseconds between two looks at memory pressure; 0: no memory monitor.
    memory_monitor_refresh_ms: u64 = 250;
    /// Share of the machine's memory, 0 to 1, above which workers are killed.
    memory_usage_threshold: f64 = 0.95;
    /// Free bytes below which workers are killed; -1: the threshold alone decides.
    min_memory_free_bytes: i64 = -1;
    /// Whether swap counts as memory.
    count_swap_in_memory_monitor: bool = false;
    /// Greatest distance in bytes between the threshold and all memory.
    max_kill_memory_buffer_bytes: i64 = 3_221_225_472;
    /// Share of user memory, 0 to 1, at which the cgroup throttles (resource isolation).
    user_memory_proportion_high: f64 = 1.0;
    /// Share of user memory, 0 to 1, that the cgroup allows (resource isolation).
    user_memory_proportion_max: f64 = 1.0;
    /// Bytes that the cgroup protects for system processes (resource isolation).
    system_memory_bytes_min: i64 = 0;
    /// Whether the worker to kill is chosen by owner groups instead of by the time of its start.
    worker_killing_policy_by_group: bool = false;
    /// Milliseconds for which the cause of a worker's death can be asked for.
    task_failure_entry_ttl_ms: u64 = 900_000;
    /// How often a task is tried again after the memory monitor killed its worker.
    task_oom_retries: u64 = 18_446_744_073_709_551_615;
    /// Milliseconds after which a create that found no room is tried again.
    object_store_full_delay_ms: u32 = 10;
    /// Seconds for which a create waits for room before it fails.
    oom_grace_period_s: i64 = 2;
    /// Whether all pages of the object store are touched at start.
    preallocate_plasma_memory: bool = false;
    /// Milliseconds before an owner is asked whether a missing object still exists.
    object_timeout_milliseconds: i64 = 100;
    /// Milliseconds before a pull is tried again.
    object_manager_pull_timeout_ms: i32 = 10_000;
    /// Milliseconds before a push fails; negative: never.
    object_manager_push_timeout_ms: i32 = 10_000;
    /// Bytes of a chunk in a transfer.
    object_manager_default_chunk_size: u64 = 5_242_880;
    /// Bytes that may be on their way to other nodes.
    object_manager_max_bytes_in_flight: u64 = 2_147_483_648;
    /// Object ids that a warning about a slow get prints.
    object_store_get_max_ids_to_print_in_warning: u32 = 20;
    /// Milliseconds between two rounds of freeing unpinned objects; 0: at once, -1: never.
    free_objects_period_milliseconds: i64 = 1000;
    /// Unpinned objects that make a round of freeing start early.
    free_objects_batch_size: u64 = 100;
    /// Object locations in one report to an owner.
    max_object_report_batch_size: i64 = 2000;
    /// Largest index of an object that a task returns; those of puts are above.
    max_num_generator_returns: u64 = 100_000_000;
    /// Objects in one FreeLocalObjects call.
    max_free_local_objects_batch_size: i64 = 256;
    /// Objects waiting to be freed above which a warning is logged.
    free_local_objects_backlog_warn_objects_per_node: i64 = 500_000;
    /// Whether owners keep lineage, so that lost objects can be rebuilt.
    lineage_pinning_enabled: bool = true;
    /// Whether objects are spilled when the store is full.
    automatic_object_spilling_enabled: bool = true;
    /// JSON that says where objects are spilled; empty: nowhere.
    object_spilling_config: String = String::new();
    /// Directory for spilled objects; wins over object_spilling_config.
    object_spilling_directory: String = String::new();
    /// Share of the store, 0 to 1, above which objects are spilled ahead of need.
    object_spilling_threshold: f64 = 0.8;
    /// Whether spilled objects lie in a file system.
    is_external_storage_type_fs: bool = true;
    /// Bytes that one spill gathers at least.
    min_spilling_size: i64 = 104_857_600;
    /// Greatest size in bytes of a file of spilled objects; -1: unlimited.
    max_spilling_file_size_bytes: i64 = -1;
    /// Objects in one file of spilled objects.
    max_fused_object_count: i64 = 2000;
    /// Python IO workers at most.
    max_io_workers: i32 = 4;
    /// Spilled bytes between two log lines about spilling; 0: none.
    verbose_spill_logs: i64 = 2_147_483_648;
    /// Share of the disk, 0 to 1, above which creates that need it fail.
    local_fs_capacity_threshold: f64 = 0.95;
    /// Milliseconds between two looks at the disk.
    local_fs_monitor_interval_ms: u64 = 100;
    /// Seconds between Python garbage collections that the raylet asks for.
    local_gc_interval_s: u64 = 5400;
    /// Least seconds between two such collections.
    local_gc_min_interval_s: u64 = 10;
    /// Least seconds between two collections in the whole cluster.
    global_gc_min_interval_s: u64 = 30;
    /// Milliseconds between two looks whether a collection is due.
    raylet_check_gc_period_milliseconds: u64 = 100;
    /// Milliseconds that an agent has for its start.
    agent_register_timeout_ms: u32 = 30_000;
    /// Milliseconds before a call to an agent is tried again.
    agent_manager_retry_interval_ms: u32 = 1000;
    /// Whether agents notice the raylet's death through a pipe.
    enable_pipe_based_agent_to_parent_health_check: bool = true;
    /// Greatest gRPC message of an agent in bytes.
    agent_max_grpc_message_size: i64 = 20_971_520;
    /// Milliseconds between reports of metrics.
    metrics_report_interval_ms: u64 = 10_000;
    /// Metrics in one report.
    metrics_report_batch_size: i64 = 10_000;
    /// Whether metrics are collected.
    enable_metrics_collection: bool = true;
    /// Whether metrics go to the agent by OpenTelemetry.
    enable_open_telemetry: bool = true;
    /// Which labels metrics carry: "legacy", "recommended" or "low".
    metric_cardinality_level: String = "legacy".to_owned();
    /// Whether handlers' counts and times are kept.
    event_stats: bool = true;
    /// Milliseconds between log lines of those counts; -1: never.
    event_stats_print_interval_ms: i64 = 60_000;
    /// Milliseconds between dumps of the state into debug_state.txt; 0: never.
    debug_dump_period_milliseconds: u64 = 10_000;
    /// Milliseconds that a handler may take before a warning is logged.
    handler_warning_timeout_ms: i64 = 1000;
    /// Whether export events are written.
    enable_export_api_write: bool = false;
    /// Bytes after which a worker's log file is rotated.
    log_rotation_max_bytes: i64 = 104_857_600;
    /// Rotated log files that are kept.
    log_rotation_backup_count: i64 = 5;
    /// Whether owners record where references were made (for `ray memory`).
    record_ref_creation_sites: bool = false;
    /// Whether runtime environments stay when nobody uses them any more.
    runtime_env_skip_local_gc: bool = false;
    /// Commands in one pub/sub batch.
    max_command_batch_size: i64 = 2000;
    /// Messages in one pub/sub reply.
    publish_batch_size: i32 = 5000;
    /// Bytes that pub/sub buffers for one entity.
    publisher_entity_buffer_max_bytes: i32 = 1_073_741_824;
    /// Milliseconds after which a silent subscriber is dropped.
    subscriber_timeout_ms: u64 = 300_000;
    /// Seconds for which calls to a GCS that is gone are tried again before the raylet exits.
    gcs_rpc_server_reconnect_timeout_s: u32 = 60;
    /// Seconds for the first connection to the GCS.
    gcs_rpc_server_connect_timeout_s: i32 = 5;
    /// Seconds for one call to the GCS.
    gcs_server_request_timeout_seconds: i64 = 60;
    /// First delay in milliseconds of a new connection to the GCS.
    gcs_grpc_initial_reconnect_backoff_ms: i32 = 100;
    /// Least delay in milliseconds of a new connection to the GCS.
    gcs_grpc_min_reconnect_backoff_ms: i32 = 1000;
    /// Greatest delay in milliseconds of a new connection to the GCS.
    gcs_grpc_max_reconnect_backoff_ms: i32 = 2000;
    /// Milliseconds before the GCS checks a new node's health.
    health_check_initial_delay_ms: i64 = 5000;
    /// Milliseconds between the GCS's health checks.
    health_check_period_ms: i64 = 3000;
    /// Milliseconds for one health check.
    health_check_timeout_ms: i64 = 10_000;
    /// Failed health checks after which a node counts as dead.
    health_check_failure_threshold: i64 = 5;
    /// Milliseconds between the raylet's questions to the GCS whether it still counts as alive.
    raylet_liveness_self_check_interval_ms: i64 = 60_000;
    /// Milliseconds between two looks for workers that closed their socket without a word.
    raylet_check_for_unexpected_worker_disconnect_interval_ms: i64 = 1000;
    /// Milliseconds between workers' looks whether their raylet lives.
    raylet_death_check_interval_milliseconds: u64 = 1000;
    /// Seconds that a caller waits for a raylet to start.
    raylet_start_wait_time_s: u32 = 30;
    /// Milliseconds for which an object that is nowhere is waited for before readers get an error.
    fetch_fail_timeout_milliseconds: i64 = 600_000;
    /// First seconds for which calls to a worker that is gone are tried again.
    core_worker_rpc_server_reconnect_timeout_base_s: u32 = 1;
    /// Greatest seconds for which calls to a worker that is gone are tried again.
    core_worker_rpc_server_reconnect_timeout_max_s: u32 = 60;
    /// First seconds for which calls to a raylet that is gone are tried again.
    raylet_rpc_server_reconnect_timeout_base_s: u32 = 1;
    /// Greatest seconds for which calls to a raylet that is gone are tried again.
    raylet_rpc_server_reconnect_timeout_max_s: u32 = 60;
    /// Greatest gRPC message in bytes.
    max_grpc_message_size: u64 = 536_870_912;
    /// Milliseconds between a server's keepalive pings.
    grpc_keepalive_time_ms: i64 = 10_000;
    /// Milliseconds that a server waits for the answer to a ping.
    grpc_keepalive_timeout_ms: i64 = 20_000;
    /// Milliseconds between a client's keepalive pings.
    grpc_client_keepalive_time_ms: i64 = 300_000;
    /// Milliseconds that a client waits for the answer to a ping.
    grpc_client_keepalive_timeout_ms: i64 = 120_000;
    /// Milliseconds before a server tries again to take its port.
    grpc_server_retry_timeout_milliseconds: i64 = 1000;
    /// Whether gRPC clients use an HTTP proxy.
    grpc_enable_http_proxy: bool = false;
    /// Threads that answer gRPC calls in a stock raylet.
    num_server_call_thread: i64 = 1;
    /// Failures to inject into calls, for tests.
    testing_rpc_failure: String = String::new();
    /// Whether calls within this node are spared from them.
    testing_rpc_failure_avoid_intra_node_failures: bool = false;
    /// Delays to inject into handlers, for tests.
    testing_asio_delay_us: String = String::new();
    /// Whether calls of another cluster id are refused.
    enable_cluster_auth: bool = true;
    /// Whether the cluster has an autoscaler of version 2.
    enable_autoscaler_v2: bool = false;
    /// Whether events go to the dashboard.
    enable_ray_event: bool = false;
    /// Whether profile events are kept for `ray timeline`.
    enable_timeline: bool = true;
    /// Whether events are written to the log too.
    emit_event_to_log_file: bool = false;
    /// Lowest level of the events that are written.
    event_level: String = "warning".to_owned();
    /// Whether gRPC is to be encrypted (RAY_USE_TLS).
    use_tls as "USE_TLS": bool = false;
    /// Share of the store, 0 to 1, above which a collection in the whole cluster is asked for.
    plasma_store_usage_trigger_gc_threshold: f64 = 0.7;
}

/// The other settings of Ray 2.60: its executables know them, a raylet on one node has no use for them. They are named so
/// that a cluster's configuration which sets one is taken, while a name that nobody knows is an error.
pub const NAMES_OF_OTHERS: &[&str] = &[
    "AUTH_MODE",
    "ENABLE_GCS_LEADER_ELECTION",
    "ENABLE_K8S_TOKEN_AUTH",
    "JOB_ID",
    "OVERRIDE_NODE_ID_FOR_TESTING",
    "RAYLET_PID",
    "REDIS_CA_CERT",
    "REDIS_CA_PATH",
    "REDIS_CLIENT_CERT",
    "REDIS_CLIENT_KEY",
    "REDIS_SERVER_NAME",
    "TLS_CA_CERT",
    "TLS_SERVER_CERT",
    "TLS_SERVER_KEY",
    "actor_excess_queueing_warn_threshold",
    "actor_graceful_shutdown_timeout_ms",
    "actor_scheduling_queue_max_reorder_wait_seconds",
    "cancellation_retry_ms",
    "core_worker_internal_heartbeat_ms",
    "core_worker_num_server_call_thread",
    "disable_open_telemetry_sdk_log",
    "emit_main_service_metrics",
    "enable_core_worker_ray_event_to_aggregator",
    "enable_core_worker_task_event_to_gcs",
    "enable_export_api_write_config",
    "enable_grpc_metrics_collection_for",
    "enable_output_error_log_if_still_retry",
    "enable_ray_task_event_recorder",
    "enable_task_events_to_dashboard_head",
    "event_log_reporter_enabled",
    "experimental_object_manager_enable_multiple_connections",
    "export_task_events_write_batch_size",
    "external_storage_namespace",
    "fetch_warn_timeout_milliseconds",
    "gcs_actor_table_min_duration_ms",
    "gcs_create_actor_retry_interval_ms",
    "gcs_create_placement_group_retry_max_interval_ms",
    "gcs_create_placement_group_retry_min_interval_ms",
    "gcs_create_placement_group_retry_multiplier",
    "gcs_grpc_max_request_queued_max_bytes",
    "gcs_lease_worker_retry_interval_ms",
    "gcs_mark_task_failed_on_job_done_delay_ms",
    "gcs_mark_task_failed_on_worker_dead_delay_ms",
    "gcs_max_active_rpcs_per_handler",
    "gcs_pull_resource_loads_period_milliseconds",
    "gcs_redis_heartbeat_interval_milliseconds",
    "gcs_redis_payload_metrics_enabled",
    "gcs_resource_broadcast_max_batch_delay_ms",
    "gcs_resource_broadcast_max_batch_size",
    "gcs_rocksdb_io_pool_size",
    "gcs_rocksdb_strand_buckets",
    "gcs_server_rpc_client_thread_num",
    "gcs_server_rpc_server_thread_num",
    "gcs_storage",
    "gcs_storage_path",
    "get_check_signal_interval_milliseconds",
    "grpc_client_check_connection_status_interval_milliseconds",
    "grpc_client_idle_timeout_ms",
    "grpc_stream_buffer_size",
    "io_context_event_loop_lag_collection_interval_ms",
    "io_context_monitor_healthy_deadline_ms",
    "io_context_monitor_latency_window_ms",
    "io_context_monitor_probe_interval_ms",
    "locality_aware_leasing_enabled",
    "max_direct_call_object_size",
    "max_error_msg_size_bytes",
    "max_lineage_bytes",
    "max_pending_lease_requests_per_scheduling_category",
    "max_placement_group_load_report_size",
    "maximum_actor_previous_incarnations",
    "maximum_gcs_dead_node_cached_count",
    "maximum_gcs_dead_worker_cached_count",
    "maximum_gcs_deletion_batch_size",
    "maximum_gcs_destroyed_actor_cached_count",
    "maximum_gcs_storage_operation_batch_size",
    "num_grpc_internal_threads",
    "num_redis_request_retries",
    "nums_py_gcs_reconnect_retry",
    "object_manager_client_connection_num",
    "object_manager_rpc_threads_num",
    "object_manager_timer_freq_ms",
    "pipe_logger_read_buf_size",
    "py_gcs_connect_timeout_s",
    "ray_cookie",
    "ray_event_recorder_max_queued_events",
    "ray_events_report_interval_ms",
    "raylet_client_connect_timeout_milliseconds",
    "raylet_client_num_connect_attempts",
    "record_task_actor_creation_sites",
    "redis_db_connect_retries",
    "redis_db_connect_wait_milliseconds",
    "redis_db_probe_timeout_milliseconds",
    "redis_namespace_cleanup_use_unlink",
    "redis_retry_base_ms",
    "redis_retry_max_ms",
    "redis_retry_multiplier",
    "start_python_gc_manager_thread",
    "support_fork",
    "system_concurrency_group_name",
    "task_actor_unavailable_retry_delay_base_ms",
    "task_actor_unavailable_retry_max_delay_ms",
    "task_events_dropped_task_attempt_batch_size",
    "task_events_gc_job_summary_interval_ms",
    "task_events_max_dropped_task_attempts_tracked_per_job_in_gcs",
    "task_events_max_num_export_status_events_buffer_on_worker",
    "task_events_max_num_profile_events_buffer_on_worker",
    "task_events_max_num_profile_events_per_task",
    "task_events_max_num_status_events_buffer_on_worker",
    "task_events_max_num_task_in_gcs",
    "task_events_report_interval_ms",
    "task_events_send_batch_size",
    "task_events_shutdown_flush_timeout_ms",
    "task_events_skip_driver_for_test",
    "task_oom_retry_delay_base_ms",
    "task_retry_delay_ms",
    "task_rpc_inlined_bytes_limit",
    "timeout_ms_task_wait_for_death_info",
    "worker_fetch_request_size",
    "worker_num_grpc_internal_threads",
    "yield_plasma_lock_workaround",
];
