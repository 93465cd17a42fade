//! The list of our settings, and the search for the place that sets each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{ConfigError, Source};
use crate::cli::closest::closest;

/// A setting of ours.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name in the TOML file.
    pub name: &'static str,
    /// Its environment variable.
    pub variable: &'static str,
    /// Its flag.
    pub flag: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// All settings. `config`, the file itself, is the last and can't stand in the file.
pub const SETTINGS: &[Setting] = &[
    setting(
        "cores",
        "RAYLET_URING_CORES",
        "--cores",
        "CPUs that carry a shard each: `0-3,6`, auto, `auto:4`, `numa:0`",
    ),
    setting(
        "hugepages",
        "RAYLET_URING_HUGEPAGES",
        "--hugepages",
        "pages of the object store: 2M or 1G (hugetlb), thp, 4k, off (the kernel decides)",
    ),
    setting(
        "object_store_memory_bytes",
        "RAYLET_URING_OBJECT_STORE_MEMORY_BYTES",
        "--object-store-memory",
        "size of the object store; under Ray, Ray's own setting decides",
    ),
    setting(
        "warm_reserve_bytes",
        "RAYLET_URING_WARM_RESERVE_BYTES",
        "--warm-reserve",
        "bytes of the object store whose pages are touched ahead of demand",
    ),
    setting(
        "worker_nursery",
        "RAYLET_URING_WORKER_NURSERY",
        "--worker-nursery",
        "fork plain Python workers from a process that has imported Ray; under Ray only",
    ),
    setting(
        "pin_workers",
        "RAYLET_URING_PIN_WORKERS",
        "--pin-workers",
        "bind a leased worker to the NUMA node of the shard that granted its lease",
    ),
    setting(
        "drain_timeout_ms",
        "RAYLET_URING_DRAIN_TIMEOUT_MS",
        "--drain-timeout-ms",
        "how long SIGTERM lets leases end before it ends the node",
    ),
    setting(
        "socket",
        "RAYLET_URING_SOCKET",
        "--socket",
        "Unix socket of the native door; under Ray the door is open where this is set",
    ),
    setting(
        "resources",
        "RAYLET_URING_RESOURCES",
        "--resources",
        "what leases of a node of its own share, as CPU=8,GPU=2; under Ray, Ray's own setting decides",
    ),
    setting(
        "worker_command",
        "RAYLET_URING_WORKER_COMMAND",
        "--worker-command",
        "what starts a native worker: a program and its arguments; none: workers come by themselves",
    ),
    setting(
        "spill_dirs",
        "RAYLET_URING_SPILL_DIRS",
        "--spill-dir",
        "directories that a node of its own spills objects to, separated by commas; under Ray, Ray's own settings decide",
    ),
    setting(
        "spin_us",
        "RAYLET_URING_SPIN_US",
        "--spin-us",
        "microseconds that a core looks at quiet rings of native clients before it sleeps",
    ),
    setting("busy_poll", "RAYLET_URING_BUSY_POLL", "--busy-poll", "never sleep while a native client has rings"),
    setting(
        "bulk_port",
        "RAYLET_URING_BULK_PORT",
        "--bulk-port",
        "TCP port on which nodes like this one fetch objects; 0: any; off: only Ray's own way; under Ray only",
    ),
    setting(
        "bulk_lanes",
        "RAYLET_URING_BULK_LANES",
        "--bulk-lanes",
        "connections to each node that objects are fetched from; 0: one for each core, 2 to 8",
    ),
    setting(
        "bulk_fanout",
        "RAYLET_URING_BULK_FANOUT",
        "--bulk-fanout",
        "nodes that a large object is sent to at a time, which send it on to those that ask meanwhile; 0: all get it from here",
    ),
    setting(
        "bulk_same_host",
        "RAYLET_URING_BULK_SAME_HOST",
        "--bulk-same-host",
        "nodes of one host copy objects from each other's memory; false: they send them by TCP, as to other hosts",
    ),
    setting(
        "peers",
        "RAYLET_URING_PEERS",
        "--peers",
        "nodes that a node of its own fetches objects from and sends leases to: host:port, ...; not under Ray",
    ),
    setting(
        "peer_listen",
        "RAYLET_URING_PEER_LISTEN",
        "--peer-listen",
        "IP address and TCP port at which a node of its own serves its peers",
    ),
    setting(
        "token_file",
        "RAYLET_URING_TOKEN_FILE",
        "--token-file",
        "file whose first line is the token by which peers know each other",
    ),
    setting("runtime_dir", "RAYLET_URING_RUNTIME_DIR", "--runtime-dir", "directory of the admin sockets, mode 0700"),
    setting("log", "RAYLET_URING_LOG", "--log-level", "log level, or directives by module"),
    setting(
        "log_format",
        "RAYLET_URING_LOG_FORMAT",
        "--log-format",
        "form of the log: auto, text, json, ray-json, journal",
    ),
    setting(
        "print_config",
        "RAYLET_URING_PRINT_CONFIG",
        "--print-config",
        "show the settings and where they came from",
    ),
    setting("config", "RAYLET_URING_CONFIG", "--config", "TOML file with settings"),
];

/// Ray's variable for the log level of its C++ processes; ours wins over it.
const RAY_LOG_VARIABLE: &str = "RAY_BACKEND_LOG_LEVEL";
/// Ray's variable that makes its C++ processes log JSON where it is exactly `1`, and the format that it stands for; ours wins.
const RAY_LOG_JSON_VARIABLE: &str = "RAY_BACKEND_LOG_JSON";
const RAY_LOG_FORMAT: &str = "ray-json";

const fn setting(name: &'static str, variable: &'static str, flag: &'static str, help: &'static str) -> Setting {
    Setting { name, variable, flag, help }
}

/// The names for an error about an unknown one.
pub(super) fn names() -> String {
    let names: Vec<&str> = SETTINGS.iter().map(|s| s.name).filter(|n| *n != "config").collect();
    names.join(", ")
}

/// The text of each setting that somebody set, with the place that won.
pub(super) struct Values {
    texts: BTreeMap<&'static str, String>,
    pub(super) sources: BTreeMap<&'static str, Source>,
    pub(super) file: Option<PathBuf>,
}

impl Values {
    pub(super) fn gather(
        flags: &BTreeMap<&'static str, String>,
        environment: &BTreeMap<String, String>,
    ) -> Result<Values, ConfigError> {
        let mut values = Values { texts: BTreeMap::new(), sources: BTreeMap::new(), file: None };
        for setting in SETTINGS {
            let flag = flags.get(setting.name).map(|text| (text, Source::Flag(setting.flag)));
            let variable = |name: &'static str| environment.get(name).map(|text| (text, Source::Environment(name)));
            let set = flag.or_else(|| variable(setting.variable)).map(|(text, source)| (text.clone(), source));
            if let Some((text, source)) = set.or_else(|| of_ray(setting.name, environment)) {
                values.set(setting.name, text, source);
            }
        }
        if let Some(path) = values.texts.remove("config").filter(|p| !p.is_empty()).map(PathBuf::from) {
            let origin = values.sources.get("config").cloned().unwrap_or(Source::Default);
            values.read_file(&path, origin)?;
            values.file = Some(path);
        }
        Ok(values)
    }

    fn set(&mut self, name: &'static str, text: String, source: Source) {
        self.texts.insert(name, text);
        self.sources.insert(name, source);
    }

    fn read_file(&mut self, path: &Path, origin: Source) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            origin,
            source,
        })?;
        let table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| ConfigError::Syntax { path: path.to_owned(), message: e.to_string() })?;
        for (key, value) in &table {
            let known = SETTINGS.iter().map(|s| s.name).filter(|n| *n != "config");
            let Some(name) = known.clone().find(|n| n == key) else {
                return Err(ConfigError::UnknownKey {
                    path: path.to_owned(),
                    closest: closest(key, known),
                    key: key.clone(),
                });
            };
            let source = Source::File(path.to_owned());
            let text = toml_text(value).ok_or_else(|| ConfigError::BadValue {
                setting: name,
                source_: source.clone(),
                expected: "a string, a number, a boolean or a list of numbers",
                got: value.to_string(),
            })?;
            if !self.texts.contains_key(name) {
                self.set(name, text, source);
            }
        }
        Ok(())
    }

    /// The typed value of a setting, where somebody set it.
    pub(super) fn take<T>(
        &mut self,
        setting: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.texts.remove(setting) else {
            return Ok(None);
        };
        let source = self.sources.get(setting).cloned().unwrap_or(Source::Default);
        match parse(text.trim()) {
            Some(value) => Ok(Some(value)),
            None => Err(ConfigError::BadValue { setting, source_: source, expected, got: text }),
        }
    }
}

/// What a variable of Ray's says of a setting of ours.
fn of_ray(setting: &str, environment: &BTreeMap<String, String>) -> Option<(String, Source)> {
    let (name, text) = match setting {
        "log" => (RAY_LOG_VARIABLE, environment.get(RAY_LOG_VARIABLE)?.clone()),
        "log_format" if environment.get(RAY_LOG_JSON_VARIABLE)? == "1" => {
            (RAY_LOG_JSON_VARIABLE, RAY_LOG_FORMAT.to_owned())
        }
        _ => return None,
    };
    Some((text, Source::Environment(name)))
}

/// A TOML value in the form that flags and variables have.
fn toml_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(on) => Some(on.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(toml_text).collect();
            items.filter(|i| !i.is_empty()).map(|i| i.join(","))
        }
        _ => None,
    }
}
