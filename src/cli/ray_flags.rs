//! The flags that Ray gives its raylet executable (Ray 2.60: `raylet --helpfull`, `services.py` start_raylet).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// The flags of a raylet of Ray 2.60, checked and typed.
#[derive(Debug, Clone, PartialEq)]
pub struct RayFlags {
    /// `--raylet_socket_name`: Unix socket for workers and drivers.
    pub raylet_socket_name: PathBuf,
    /// `--store_socket_name`: Unix socket of the object store (plasma).
    pub store_socket_name: PathBuf,
    /// `--node_id`: the node's id, 28 bytes, given as 56 hexadecimal digits. `None` where Ray leaves the choice to the raylet.
    pub node_id: Option<[u8; 28]>,
    /// `--cluster_id`: the cluster's id, 28 bytes, given as 56 hexadecimal digits. `None` where not given.
    pub cluster_id: Option<[u8; 28]>,
    /// `--node_ip_address`: the address that this node announces and binds to (as in Ray, with loopback beside it).
    pub node_ip_address: IpAddr,
    /// `--node_name`: the name that the user gave to the node; empty where none.
    pub node_name: String,
    /// `--gcs_address`: `host:port` of the GCS.
    pub gcs_address: String,
    /// `--session_name`: the name of the session (`session_<date>_<pid>`).
    pub session_name: String,
    /// `--head`: this is the head node.
    pub head: bool,
    /// `--labels`: the node's labels, given as a JSON object of strings.
    pub labels: BTreeMap<String, String>,
    /// `--static_resource_list`: name to quantity, in Ray's units (bytes for memory), given as `CPU,2,memory,123`.
    pub resources: BTreeMap<String, f64>,

    /// `--object_manager_port`: TCP port for transfers; 0 lets the system choose.
    pub object_manager_port: u16,
    /// `--node_manager_port`: TCP port of NodeManagerService; 0 lets the system choose.
    pub node_manager_port: u16,
    /// `--metrics_agent_port`: the agent's gRPC port; 0 where the agent chooses and announces it in a file.
    pub metrics_agent_port: u16,
    /// `--metrics_export_port`: the agent's Prometheus port; 0 where the agent chooses.
    pub metrics_export_port: u16,
    /// `--runtime_env_agent_port`: the agent's HTTP port; 0 where the agent chooses.
    pub runtime_env_agent_port: u16,
    /// `--dashboard_agent_listen_port`: the agent's HTTP port; 0 where the agent chooses.
    pub dashboard_agent_listen_port: u16,
    /// The ports that workers may bind: from `--worker_port_list`, else `--min_worker_port`/`--max_worker_port`.
    pub worker_ports: WorkerPorts,

    /// `--maximum_startup_concurrency`: how many workers may start at once, at least 1.
    pub maximum_startup_concurrency: u32,
    /// `--num_prestart_python_workers`: workers to start before they are asked for.
    pub num_prestart_python_workers: u32,
    /// `--python_worker_command`, split into arguments.
    pub python_worker_command: Vec<String>,
    /// `--java_worker_command`, split into arguments; empty where Ray has no Java.
    pub java_worker_command: Vec<String>,
    /// `--cpp_worker_command`, split into arguments; empty where Ray has no C++ worker.
    pub cpp_worker_command: Vec<String>,
    /// `--dashboard_agent_command`, split into arguments; empty: no dashboard agent.
    pub dashboard_agent_command: Vec<String>,
    /// `--runtime_env_agent_command`, split into arguments; empty: no runtime-env agent.
    pub runtime_env_agent_command: Vec<String>,
    /// `--native_library_path`: directory of the C++ worker's libraries.
    pub native_library_path: PathBuf,

    /// `--temp_dir`: Ray's temporary directory.
    pub temp_dir: PathBuf,
    /// `--session_dir`: this session's directory.
    pub session_dir: PathBuf,
    /// `--log_dir`: directory of this session's logs.
    pub log_dir: PathBuf,
    /// `--resource_dir`: directory of this session's runtime environments.
    pub resource_dir: PathBuf,
    /// `--stdout_filepath`: file that takes this process's standard output and log; `None`: not redirected.
    pub stdout_filepath: Option<PathBuf>,
    /// `--stderr_filepath`: file that takes this process's standard error; `None`: not redirected.
    pub stderr_filepath: Option<PathBuf>,

    /// `--object_store_memory`: size of the object store in bytes.
    pub object_store_memory_bytes: u64,
    /// `--plasma_directory`: where stock Ray maps its store (we use memfds; kept for what Ray reports).
    pub plasma_directory: PathBuf,
    /// `--fallback_directory`: where objects go that the store has no room for.
    pub fallback_directory: PathBuf,
    /// `--huge_pages`: Ray's own switch for huge pages.
    pub huge_pages: bool,

    /// `--ray_debugger_external`: workers' debuggers listen on every address.
    pub ray_debugger_external: bool,
    /// `--enable_resource_isolation` with its settings; `None` where it is off.
    pub resource_isolation: Option<ResourceIsolation>,
}

/// The ports that workers may bind for their gRPC servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerPorts {
    /// Any port that the system chooses.
    Any,
    /// One of a list, in the order in which they are handed out.
    List(Vec<u16>),
}

/// Ray's isolation of system processes from workers through cgroup v2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceIsolation {
    /// `--cgroup_path`: the cgroup under which the hierarchy is made.
    pub cgroup_path: PathBuf,
    /// `--system_reserved_cpu_weight`: cpu.weight of the system processes, 1 to 10,000.
    pub system_reserved_cpu_weight: u32,
    /// `--system_reserved_memory_bytes`: memory.min of the system processes in bytes.
    pub system_reserved_memory_bytes: u64,
    /// `--system_pids`: processes that belong to the system.
    pub system_pids: Vec<u32>,
}
