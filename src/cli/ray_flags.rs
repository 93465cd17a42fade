//! The flags that Ray gives its raylet executable (Ray 2.60: `raylet --helpfull`, `services.py` start_raylet).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::command_line::split_command;
pub use super::gflags::FlagError;
use super::gflags::{self, Environment, Values};
use super::ray_flag_table::answer;
pub use super::ray_flag_table::RAY_FLAGS;

/// The flags without which a raylet can't work. Ray 2.60 always passes them (`services.py` start_raylet).
const REQUIRED: &[&str] = &[
    "raylet_socket_name",
    "store_socket_name",
    "node_id",
    "cluster_id",
    "node_ip_address",
    "gcs_address",
    "session_dir",
    "object_store_memory",
    "python_worker_command",
];

/// The flags of a raylet of Ray 2.60, checked and typed.
#[derive(Debug, Clone, PartialEq)]
pub struct RayFlags {
    /// `--raylet_socket_name`: Unix socket for workers and drivers.
    pub raylet_socket_name: PathBuf,
    /// `--store_socket_name`: Unix socket of the object store (plasma).
    pub store_socket_name: PathBuf,
    /// `--node_id`: the node's id, 28 bytes, given as 56 hexadecimal digits.
    pub node_id: [u8; 28],
    /// `--cluster_id`: the cluster's id, 28 bytes, given as 56 hexadecimal digits.
    pub cluster_id: [u8; 28],
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

/// What a command line of Ray's asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum RayRequest {
    /// Run the node.
    Run(Box<RayFlags>),
    /// Print this text and exit with status 0 (`--help`, `--version` and their kin).
    Print(String),
}

impl RayFlags {
    /// Reads a command line of Ray's, without the program's name. `environment` serves `--fromenv`.
    ///
    /// # Errors
    /// [`FlagError`], which names the flag, what it takes and what it got.
    pub fn parse(arguments: &[String], environment: Environment) -> Result<RayRequest, FlagError> {
        let values = gflags::parse(RAY_FLAGS, arguments, environment)?;
        if let Some(text) = answer(&values) {
            return Ok(RayRequest::Print(text));
        }
        let names: Vec<&'static str> =
            REQUIRED.iter().copied().filter(|name| values.given(name).is_none_or(str::is_empty)).collect();
        if !names.is_empty() {
            return Err(FlagError::Missing { names });
        }
        Reader(&values).flags().map(|flags| RayRequest::Run(Box::new(flags)))
    }
}

/// Turns texts into types, one flag at a time.
struct Reader<'a>(&'a Values);

impl Reader<'_> {
    fn flags(&self) -> Result<RayFlags, FlagError> {
        Ok(RayFlags {
            raylet_socket_name: self.path("raylet_socket_name"),
            store_socket_name: self.path("store_socket_name"),
            node_id: self.id("node_id")?,
            cluster_id: self.id("cluster_id")?,
            node_ip_address: self.parsed("node_ip_address", "an IP address")?,
            node_name: self.text("node_name").to_owned(),
            gcs_address: self.gcs_address()?,
            session_name: self.text("session_name").to_owned(),
            head: self.0.is_on("head"),
            labels: self.labels()?,
            resources: self.resources()?,
            object_manager_port: self.port("object_manager_port")?,
            node_manager_port: self.port("node_manager_port")?,
            metrics_agent_port: self.port("metrics_agent_port")?,
            metrics_export_port: self.port("metrics_export_port")?,
            runtime_env_agent_port: self.port("runtime_env_agent_port")?,
            dashboard_agent_listen_port: self.port("dashboard_agent_listen_port")?,
            worker_ports: self.worker_ports()?,
            maximum_startup_concurrency: self.at_least("maximum_startup_concurrency", 1)?,
            num_prestart_python_workers: self.at_least("num_prestart_python_workers", 0)?,
            python_worker_command: self.command("python_worker_command")?,
            java_worker_command: self.command("java_worker_command")?,
            cpp_worker_command: self.command("cpp_worker_command")?,
            dashboard_agent_command: self.command("dashboard_agent_command")?,
            runtime_env_agent_command: self.command("runtime_env_agent_command")?,
            native_library_path: self.path("native_library_path"),
            temp_dir: self.path("temp_dir"),
            session_dir: self.path("session_dir"),
            log_dir: self.path("log_dir"),
            resource_dir: self.path("resource_dir"),
            stdout_filepath: self.optional_path("stdout_filepath"),
            stderr_filepath: self.optional_path("stderr_filepath"),
            object_store_memory_bytes: self.at_least("object_store_memory", 1)?,
            plasma_directory: self.path("plasma_directory"),
            fallback_directory: self.path("fallback_directory"),
            huge_pages: self.0.is_on("huge_pages"),
            ray_debugger_external: self.at_least::<u32>("ray_debugger_external", 0)? != 0,
            resource_isolation: self.resource_isolation()?,
        })
    }

    fn text(&self, name: &'static str) -> &str {
        let default = RAY_FLAGS.iter().find(|f| f.name == name).map_or("", |f| f.default);
        self.0.given(name).unwrap_or(default)
    }

    fn bad(&self, name: &'static str, expected: impl Into<String>) -> FlagError {
        FlagError::BadValue { name, expected: expected.into(), got: self.text(name).to_owned() }
    }

    fn parsed<T: std::str::FromStr>(&self, name: &'static str, expected: &str) -> Result<T, FlagError> {
        self.text(name).parse().map_err(|_| self.bad(name, expected))
    }

    fn path(&self, name: &'static str) -> PathBuf {
        PathBuf::from(self.text(name))
    }

    fn optional_path(&self, name: &'static str) -> Option<PathBuf> {
        Some(self.path(name)).filter(|p| !p.as_os_str().is_empty())
    }

    fn at_least<T>(&self, name: &'static str, min: T) -> Result<T, FlagError>
    where
        T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy,
    {
        let number: Option<T> = self.text(name).parse().ok();
        number.filter(|n| *n >= min).ok_or_else(|| self.bad(name, format!("a whole number of at least {min}")))
    }

    /// -1 is gflags' default for "not given", which is the same to us as 0.
    fn port(&self, name: &'static str) -> Result<u16, FlagError> {
        match self.text(name) {
            "-1" => Ok(0),
            text => text.parse().map_err(|_| self.bad(name, "a port from 0 to 65535, or -1")),
        }
    }

    fn id(&self, name: &'static str) -> Result<[u8; 28], FlagError> {
        let digits = self.text(name).as_bytes();
        let mut id = [0; 28];
        let nibble = |digit: u8| (digit as char).to_digit(16).map(|d| d as u8);
        if digits.len() != 2 * id.len() {
            return Err(self.bad(name, "56 hexadecimal digits"));
        }
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) = (nibble(pair[0]), nibble(pair[1]));
            *byte = high.zip(low).map(|(h, l)| h << 4 | l).ok_or_else(|| self.bad(name, "56 hexadecimal digits"))?;
        }
        Ok(id)
    }

    fn gcs_address(&self) -> Result<String, FlagError> {
        let text = self.text("gcs_address");
        let valid = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0) && !host.contains('/')
        });
        valid.then(|| text.to_owned()).ok_or_else(|| self.bad("gcs_address", "host:port"))
    }

    fn labels(&self) -> Result<BTreeMap<String, String>, FlagError> {
        match self.text("labels") {
            "" => Ok(BTreeMap::new()),
            text => serde_json::from_str(text).map_err(|_| self.bad("labels", "a JSON object of strings")),
        }
    }

    fn resources(&self) -> Result<BTreeMap<String, f64>, FlagError> {
        const NAME: &str = "static_resource_list";
        let mut resources = BTreeMap::new();
        let text = self.text(NAME);
        if text.is_empty() {
            return Ok(resources);
        }
        let fields: Vec<&str> = text.split(',').map(str::trim).collect();
        for pair in fields.chunks(2) {
            let [name, quantity] = pair else {
                return Err(
                    self.bad(NAME, format!("a quantity after each name (`CPU,2,memory,123`); {:?} has none", pair[0]))
                );
            };
            let quantity: Option<f64> = quantity.parse().ok().filter(|q: &f64| q.is_finite() && *q >= 0.0);
            let quantity = quantity.ok_or_else(|| self.bad(NAME, format!("for {name:?} a number of at least 0")))?;
            if name.is_empty() || resources.insert((*name).to_owned(), quantity).is_some() {
                return Err(self.bad(NAME, format!("each resource once and with a name; {name:?} isn't")));
            }
        }
        Ok(resources)
    }

    fn command(&self, name: &'static str) -> Result<Vec<String>, FlagError> {
        split_command(self.text(name)).map_err(|error| self.bad(name, format!("a command line ({error})")))
    }

    fn worker_ports(&self) -> Result<WorkerPorts, FlagError> {
        let list = self.text("worker_port_list");
        if !list.is_empty() {
            let ports: Result<Vec<u16>, _> = list.split(',').map(|p| p.trim().parse()).collect();
            let ports = ports.ok().filter(|ports| !ports.contains(&0));
            let expected = "ports from 1 to 65535, separated by commas";
            return ports.map(WorkerPorts::List).ok_or_else(|| self.bad("worker_port_list", expected));
        }
        let (low, high) = (self.port("min_worker_port")?, self.port("max_worker_port")?);
        match (low, high) {
            (0, 0) => Ok(WorkerPorts::Any),
            (0, _) => Err(FlagError::Conflict(
                "--max_worker_port is given without --min_worker_port: give both, or neither".into(),
            )),
            (low, 0) => Ok(WorkerPorts::List((low..=u16::MAX).collect())),
            (low, high) if low <= high => Ok(WorkerPorts::List((low..=high).collect())),
            (low, high) => Err(FlagError::Conflict(format!(
                "--min_worker_port ({low}) is above --max_worker_port ({high}): no port is left for a worker"
            ))),
        }
    }

    fn resource_isolation(&self) -> Result<Option<ResourceIsolation>, FlagError> {
        if !self.0.is_on("enable_resource_isolation") {
            return Ok(None);
        }
        let cgroup_path = self
            .optional_path("cgroup_path")
            .ok_or_else(|| self.bad("cgroup_path", "a directory, as --enable_resource_isolation is on"))?;
        let weight: u32 = self.at_least("system_reserved_cpu_weight", 1)?;
        if weight > 10_000 {
            return Err(self.bad("system_reserved_cpu_weight", "a whole number from 1 to 10000"));
        }
        let pids: Result<Vec<u32>, _> =
            self.text("system_pids").split(',').map(str::trim).filter(|p| !p.is_empty()).map(str::parse).collect();
        Ok(Some(ResourceIsolation {
            cgroup_path,
            system_reserved_cpu_weight: weight,
            system_reserved_memory_bytes: self.at_least("system_reserved_memory_bytes", 0)?,
            system_pids: pids.map_err(|_| self.bad("system_pids", "process ids, separated by commas"))?,
        }))
    }
}

/// The value of `--stderr_filepath` in a command line that may be wrong elsewhere: Ray gives its raylet no other place
/// at which an error about the command line could be seen.
pub fn stderr_filepath(arguments: &[String]) -> Option<PathBuf> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let body = argument.trim_start_matches('-');
        let (name, value) = body.split_once('=').map_or((body, None), |(n, v)| (n, Some(v.to_owned())));
        if argument.starts_with('-') && name.replace('-', "_") == "stderr_filepath" {
            return value.or_else(|| rest.next().cloned()).filter(|v| !v.is_empty()).map(PathBuf::from);
        }
    }
    None
}

#[cfg(test)]
#[path = "ray_flags_tests.rs"]
mod tests;
