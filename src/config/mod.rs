//! Settings: our own (this module, [`Config`]) and Ray's ([`ray::RayConfig`]).
//!
//! Ours come, highest first, from flags, the environment (`RAYLET_URING_...`), a TOML file and the defaults, and each one
//! remembers where it came from.

pub mod ray;
mod ray_table;
mod ray_value;
mod settings;
pub mod size;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use settings::{Setting, SETTINGS};

use raylet_tuning::cores::CoreChoice;
use raylet_tuning::pages::PageChoice;

use crate::cli::closest::closest;
use crate::cli::ray_flags::RayFlags;
use crate::observe::log::{is_filter, LogFormat};

/// The default of `warm_reserve_bytes`: enough for the small objects of a busy second, little beside any store.
pub const WARM_RESERVE_DEFAULT_BYTES: u64 = 256 << 20;

/// The default of `spin_us`: a few round trips, so that a client that goes on at once finds the core awake.
pub const SPIN_DEFAULT_US: u64 = 50;

/// Most connections to a node that objects are fetched from.
pub const BULK_LANES_MAX: usize = 64;

/// Most nodes in a list of peers.
pub const PEERS_MAX: usize = 1_024;

/// Most directories that a node of its own may spill to.
pub const SPILL_DIRS_MAX: usize = 64;

/// The settings of a node, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The logical CPUs that carry a shard each.
    pub cores: CoreChoice,
    /// The pages that the arenas should have. `Auto`: transparent huge pages where the kernel gives them, else 4 KiB.
    pub hugepages: PageChoice,
    /// Size of the object store in bytes. `None`: Ray's flag says (or, for a node of its own, a share of memory).
    pub object_store_memory_bytes: Option<u64>,
    /// Bytes of the arenas whose pages are touched ahead of demand. More than the arenas have means all of them.
    pub warm_reserve_bytes: u64,
    /// Fork workers that start alike from a process that has imported Ray, instead of starting a Python for each.
    pub worker_nursery: bool,
    /// Bind a leased worker to the cores of the NUMA node of the shard that granted its lease.
    pub pin_workers: bool,
    /// How long SIGTERM lets leases end by themselves, in milliseconds, before it ends the node; 0: not at all.
    pub drain_timeout_ms: u64,
    /// The Unix socket of the native door; `None`: one in the runtime directory, and under Ray none.
    pub socket: Option<PathBuf>,
    /// What leases of a node of its own share. CPUs that are not named are those of the machine.
    pub resources: BTreeMap<String, f64>,
    /// What starts a native worker: a program and its arguments. Empty: workers come by themselves.
    pub worker_command: Vec<String>,
    /// Directories that a node of its own spills objects to; empty: it does not spill.
    pub spill_dirs: Vec<PathBuf>,
    /// How long a core looks at quiet rings of native clients before it sleeps, in microseconds.
    pub spin_us: u64,
    /// Cores never sleep while a native client has rings.
    pub busy_poll: bool,
    /// TCP port on which nodes like this one fetch objects, 0 for any; `None`: they fetch them in Ray's own way.
    pub bulk_port: Option<u16>,
    /// Connections to each node that objects are fetched from; 0: as many as there are cores, from 2 to 8.
    pub bulk_lanes: usize,
    /// Nodes that a large object is sent to at a time; those that ask meanwhile get it from these. 0: all get it from here.
    pub bulk_fanout: usize,
    /// Nodes of one host copy objects from each other's memory.
    pub bulk_same_host: bool,
    /// Nodes that a node of its own fetches objects from and sends leases to, each as `host:port`.
    pub peers: Vec<String>,
    /// Where a node of its own serves its peers; `None`: nowhere, or at the default address where it has peers.
    pub peer_listen: Option<SocketAddr>,
    /// The file of the token by which peers know each other; `None`: Ray's variables say.
    pub token_file: Option<PathBuf>,
    /// The directory of the admin sockets, by which `raylet-uring status` finds running nodes.
    pub runtime_dir: PathBuf,
    /// The log filter: a level or `tracing` directives ("info,raylet_uring::workers=debug").
    pub log: String,
    /// The form of the log's lines.
    pub log_format: LogFormat,
    /// Log the settings and where they came from at start (under Ray; a node of its own prints them and exits).
    pub print_config: bool,
    /// The TOML file that was read.
    pub file: Option<PathBuf>,
    /// Where each setting came from, by its name in the TOML file.
    pub sources: BTreeMap<&'static str, Source>,
    /// Variables of the environment that look like settings of ours and aren't. The node logs them as warnings.
    pub warnings: Vec<String>,
}

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// The TOML file.
    File(PathBuf),
    /// The environment variable of this name.
    Environment(&'static str),
    /// The flag of this name.
    Flag(&'static str),
}

/// Settings that a node can't start with. Each names the setting to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value that isn't what the setting takes.
    #[error("{setting} (from {source_}): expected {expected}, got {got:?}")]
    BadValue {
        /// The setting's name in the TOML file.
        setting: &'static str,
        /// Where the value came from.
        source_: Source,
        /// What the setting takes.
        expected: &'static str,
        /// What it got.
        got: String,
    },
    /// A key in the file that is no setting.
    #[error("{path}: unknown setting {key:?}{}", .closest.map(|c| format!("; did you mean {c:?}?")).unwrap_or_else(|| format!("; known are {}", settings::names())))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The known setting that looks most like it.
        closest: Option<&'static str>,
    },
    /// A file that can't be read. `origin` says who named it.
    #[error("can't read {path} (from {origin}): {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: Source,
        /// Why.
        source: std::io::Error,
    },
    /// A file that isn't TOML.
    #[error("{path} is not TOML: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
}

impl Config {
    /// Loads the settings. `flags` holds the given flags by setting name (see [`Setting::name`]), and `config` for the
    /// file; `environment` all variables.
    ///
    /// # Errors
    /// [`ConfigError`], for values of the source that wins and for every key of the file.
    pub fn load(
        flags: &BTreeMap<&'static str, String>,
        environment: &BTreeMap<String, String>,
    ) -> Result<Config, ConfigError> {
        let mut values = settings::Values::gather(flags, environment)?;
        let runtime_dir = default_runtime_dir(environment.get("XDG_RUNTIME_DIR").map(String::as_str));
        let hugepages = "off, 2M, 1G, thp or 4k";
        let switch = "true or false";
        Ok(Config {
            cores: values
                .take("cores", "auto, CPU numbers like 0-3,6, auto:COUNT, numa:NODES or numa:NODES:COUNT", parse_cores)?
                .unwrap_or(CoreChoice::Auto),
            hugepages: values.take("hugepages", hugepages, parse_hugepages)?.unwrap_or(PageChoice::Auto),
            object_store_memory_bytes: values
                .take("object_store_memory_bytes", size::EXPECTED, |t| size::parse_size_bytes(t).filter(|s| *s > 0))?,
            warm_reserve_bytes: values
                .take("warm_reserve_bytes", size::EXPECTED, size::parse_size_bytes)?
                .unwrap_or(WARM_RESERVE_DEFAULT_BYTES),
            worker_nursery: values.take("worker_nursery", switch, parse_switch)?.unwrap_or(true),
            pin_workers: values.take("pin_workers", switch, parse_switch)?.unwrap_or(false),
            drain_timeout_ms: values
                .take("drain_timeout_ms", "a number of milliseconds", |text| text.parse().ok())?
                .unwrap_or(0),
            socket: values.take("socket", "a path", parse_path)?,
            resources: values
                .take("resources", "amounts by name, like CPU=8,GPU=2,disk=0.5", parse_resources)?
                .unwrap_or_default(),
            worker_command: values
                .take("worker_command", "a program and its arguments, quoted as for a shell", shlex::split)?
                .unwrap_or_default(),
            spill_dirs: values
                .take("spill_dirs", "absolute paths, separated by commas, at most 64", parse_directories)?
                .unwrap_or_default(),
            spin_us: values
                .take("spin_us", "a number of microseconds", |text| text.parse().ok())?
                .unwrap_or(SPIN_DEFAULT_US),
            busy_poll: values.take("busy_poll", switch, parse_switch)?.unwrap_or(false),
            bulk_port: values.take("bulk_port", "a TCP port, 0 or off", parse_bulk_port)?.unwrap_or(Some(0)),
            bulk_lanes: values
                .take("bulk_lanes", "a number from 0 to 64", |text| text.parse().ok().filter(|n| *n <= BULK_LANES_MAX))?
                .unwrap_or(0),
            bulk_fanout: values
                .take("bulk_fanout", "a number of nodes", |text| text.parse().ok())?
                .unwrap_or(raylet_shard::pull::FANOUT),
            bulk_same_host: values.take("bulk_same_host", switch, parse_switch)?.unwrap_or(true),
            peers: values
                .take("peers", "addresses like host:7480,[fd00::2]:7480, each once, at most 1024", parse_peers)?
                .unwrap_or_default(),
            peer_listen: values
                .take("peer_listen", "an IP address and a TCP port, like 0.0.0.0:7480", |text| text.parse().ok())?,
            token_file: values.take("token_file", "a path", parse_path)?,
            runtime_dir: values.take("runtime_dir", "an absolute path", parse_absolute)?.unwrap_or(runtime_dir),
            log: values.take("log", LOG_EXPECTED, parse_log)?.unwrap_or_else(|| "info".to_owned()),
            log_format: values.take("log_format", LogFormat::EXPECTED, LogFormat::parse)?.unwrap_or(LogFormat::Auto),
            print_config: values.take("print_config", switch, parse_switch)?.unwrap_or(false),
            file: values.file,
            sources: values.sources,
            warnings: unknown_variables(environment),
        })
    }

    /// Takes over what Ray's flags say about things that are settings of ours too: a size of the store always (it is what
    /// the cluster was told), huge pages where nobody chose pages by a setting of ours.
    pub fn apply_ray_flags(&mut self, flags: &RayFlags) {
        self.object_store_memory_bytes = Some(flags.object_store_memory_bytes);
        self.sources.insert("object_store_memory_bytes", Source::Flag("--object_store_memory"));
        if flags.huge_pages && self.source("hugepages") == Source::Default {
            self.hugepages = PageChoice::Huge2M;
            self.sources.insert("hugepages", Source::Flag("--huge_pages"));
        }
    }

    /// Where a setting came from.
    pub fn source(&self, setting: &str) -> Source {
        self.sources.get(setting).cloned().unwrap_or(Source::Default)
    }

    /// Every setting with its value and where it came from, one a line.
    pub fn describe(&self) -> String {
        let path = |p: &Option<PathBuf>, none: &str| p.as_ref().map_or(none.to_owned(), |p| p.display().to_string());
        let rows = SETTINGS.iter().map(|setting| {
            let value = match setting.name {
                "cores" => self.cores.to_string(),
                "hugepages" => self.hugepages.to_string(),
                "object_store_memory_bytes" => match self.object_store_memory_bytes {
                    Some(bytes) => format!("{bytes} ({})", size::format_bytes(bytes)),
                    None => "a share of this machine's memory".to_owned(),
                },
                "warm_reserve_bytes" => {
                    format!("{} ({})", self.warm_reserve_bytes, size::format_bytes(self.warm_reserve_bytes))
                }
                "worker_nursery" => self.worker_nursery.to_string(),
                "pin_workers" => self.pin_workers.to_string(),
                "drain_timeout_ms" => self.drain_timeout_ms.to_string(),
                "socket" => path(&self.socket, "in runtime_dir"),
                "resources" => describe_resources(&self.resources),
                "worker_command" if self.worker_command.is_empty() => "none".to_owned(),
                "worker_command" => self.worker_command.join(" "),
                "spill_dirs" if self.spill_dirs.is_empty() => "none".to_owned(),
                "spill_dirs" => join_paths(&self.spill_dirs),
                "spin_us" => self.spin_us.to_string(),
                "busy_poll" => self.busy_poll.to_string(),
                "bulk_port" => self.bulk_port.map_or("off".to_owned(), |port| port.to_string()),
                "bulk_lanes" => self.bulk_lanes.to_string(),
                "bulk_fanout" => self.bulk_fanout.to_string(),
                "bulk_same_host" => self.bulk_same_host.to_string(),
                "peers" if self.peers.is_empty() => "none".to_owned(),
                "peers" => self.peers.join(","),
                "peer_listen" => self.peer_listen.map_or("where there are peers".to_owned(), |a| a.to_string()),
                "token_file" => path(&self.token_file, "none"),
                "runtime_dir" => self.runtime_dir.display().to_string(),
                "log" => self.log.clone(),
                "log_format" => self.log_format.to_string(),
                "print_config" => self.print_config.to_string(),
                _ => path(&self.file, "none"),
            };
            (setting.name, value, self.source(setting.name).to_string())
        });
        let rows: Vec<_> = rows.collect();
        let width = |column: fn(&(&str, String, String)) -> usize| rows.iter().map(column).max().unwrap_or(0);
        let (names, values) = (width(|r| r.0.len()), width(|r| r.1.len()));
        rows.iter().map(|(n, v, s)| format!("{n:names$}  {v:values$}  {s}\n")).collect()
    }
}

const LOG_EXPECTED: &str =
    "a level (error, warn, info, debug, trace, off) or directives like `info,raylet_uring::workers=debug`";

fn parse_cores(text: &str) -> Option<CoreChoice> {
    text.parse().ok()
}

fn parse_hugepages(text: &str) -> Option<PageChoice> {
    match text.to_ascii_lowercase().as_str() {
        "off" | "false" | "no" | "0" | "none" => Some(PageChoice::Auto),
        "on" | "true" | "yes" | "1" => Some(PageChoice::Huge2M),
        other => other.strip_suffix("ib").or(other.strip_suffix('b')).unwrap_or(other).parse().ok(),
    }
}

fn parse_switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "" | "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn parse_path(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text)).filter(|p| !p.as_os_str().is_empty())
}

fn parse_resources(text: &str) -> Option<BTreeMap<String, f64>> {
    let part = |part: &str| {
        let (name, amount) = part.split_once('=')?;
        let amount: f64 = amount.trim().parse().ok().filter(|amount: &f64| amount.is_finite() && *amount >= 0.0)?;
        Some((name.trim().to_owned(), amount)).filter(|(name, _)| !name.is_empty())
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(part).collect()
}

fn describe_resources(resources: &BTreeMap<String, f64>) -> String {
    match resources.is_empty() {
        true => "the CPUs of this machine".to_owned(),
        false => resources.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(","),
    }
}

fn parse_bulk_port(text: &str) -> Option<Option<u16>> {
    match text {
        "off" => Some(None),
        text => text.parse().ok().map(Some),
    }
}

fn parse_peers(text: &str) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    let peer = |part: &str| {
        let (host, port) = part.rsplit_once(':')?;
        let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
        let is_ipv6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_sound = match is_ipv6 {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && !host.contains([':', '[', ']', '/', ' ']),
        };
        is_sound.then(|| format!("{host}:{port}")).filter(|peer| seen.insert(peer.clone()))
    };
    let peers: Vec<String> =
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(peer).collect::<Option<_>>()?;
    (peers.len() <= PEERS_MAX).then_some(peers)
}

fn parse_directories(text: &str) -> Option<Vec<PathBuf>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let paths: Vec<PathBuf> = parts.map(parse_absolute).collect::<Option<_>>()?;
    (paths.len() <= SPILL_DIRS_MAX).then_some(paths)
}

fn join_paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",")
}

fn parse_absolute(text: &str) -> Option<PathBuf> {
    parse_path(text).filter(|p| p.is_absolute())
}

fn parse_log(text: &str) -> Option<String> {
    // Ray's levels (RAY_BACKEND_LOG_LEVEL) beside those of `tracing`.
    let filter = match text.to_ascii_lowercase().as_str() {
        "warning" => "warn".to_owned(),
        "fatal" => "error".to_owned(),
        _ => text.to_owned(),
    };
    is_filter(&filter).then_some(filter)
}

/// The well-known directory of this user's admin sockets: `$XDG_RUNTIME_DIR/raylet-uring` where there is such a
/// directory, else `/tmp/raylet-uring-<uid>`.
pub fn default_runtime_dir(xdg_runtime_dir: Option<&str>) -> PathBuf {
    match xdg_runtime_dir.map(Path::new).filter(|dir| dir.is_absolute() && dir.is_dir()) {
        Some(dir) => dir.join("raylet-uring"),
        None => fallback_runtime_dir(),
    }
}

/// `/tmp/raylet-uring-<uid>`.
pub fn fallback_runtime_dir() -> PathBuf {
    PathBuf::from(format!("/tmp/raylet-uring-{}", rustix::process::geteuid().as_raw()))
}

fn unknown_variables(environment: &BTreeMap<String, String>) -> Vec<String> {
    let known: Vec<&str> = SETTINGS.iter().map(|s| s.variable).collect();
    let ours = environment.keys().filter(|name| name.starts_with("RAYLET_URING_") && !known.contains(&name.as_str()));
    ours.map(|name| match closest(name, known.iter().copied()) {
        Some(known) => format!("environment variable {name} is no setting; did you mean {known}?"),
        None => format!("environment variable {name} is no setting"),
    })
    .collect()
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path) => write!(f, "file {}", path.display()),
            Source::Environment(name) => write!(f, "environment {name}"),
            Source::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
