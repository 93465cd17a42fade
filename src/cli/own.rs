//! Our own command line: `raylet-uring` runs a node, its subcommands look after nodes and Ray installations.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// The node service of a Ray cluster, thread-per-core on io_uring.
///
/// Without a subcommand it runs a node of its own. Installed into a Ray installation (`attach`) it is that
/// installation's raylet and takes Ray's flags instead of these.
#[derive(Debug, Parser)]
#[command(name = "raylet-uring", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The settings of the node.
    #[command(flatten)]
    pub node: NodeFlags,
    /// What to do instead of running a node.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Settings as flags. Each is also an environment variable (RAYLET_URING_...) and a key of the TOML file.
#[derive(Debug, Default, Args)]
pub struct NodeFlags {
    /// CPUs that carry a shard each: `0-3,6`, auto, `auto:4`, `numa:0` or `numa:0-1:4` [env: RAYLET_URING_CORES].
    #[arg(long, value_name = "CORES")]
    pub cores: Option<String>,
    /// Pages of the object store: 2M or 1G (hugetlb), thp, 4k, off; 2M where no value is given [env: RAYLET_URING_HUGEPAGES].
    #[arg(long, value_name = "KIND", num_args = 0..=1, require_equals = true, default_missing_value = "2M")]
    pub hugepages: Option<String>,
    /// Size of the object store: bytes, or with a unit like 4G [env: RAYLET_URING_OBJECT_STORE_MEMORY_BYTES].
    #[arg(long, value_name = "BYTES")]
    pub object_store_memory: Option<String>,
    /// Bytes of the object store to keep touched ahead of demand [env: RAYLET_URING_WARM_RESERVE_BYTES].
    #[arg(long, value_name = "BYTES")]
    pub warm_reserve: Option<String>,
    /// Fork plain Python workers from a process that has imported Ray: true or false [env: RAYLET_URING_WORKER_NURSERY].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub worker_nursery: Option<String>,
    /// Bind a leased worker to the NUMA node of the shard that granted its lease: true or false [env: RAYLET_URING_PIN_WORKERS].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub pin_workers: Option<String>,
    /// Milliseconds that SIGTERM lets leases end before it ends the node [env: RAYLET_URING_DRAIN_TIMEOUT_MS].
    #[arg(long, value_name = "MS")]
    pub drain_timeout_ms: Option<String>,
    /// Unix socket of the native door [env: RAYLET_URING_SOCKET].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<String>,
    /// What leases share, like CPU=8,GPU=2; CPUs that are not named are the machine's [env: RAYLET_URING_RESOURCES].
    #[arg(long, value_name = "AMOUNTS")]
    pub resources: Option<String>,
    /// What starts a native worker: a program and its arguments in one word [env: RAYLET_URING_WORKER_COMMAND].
    #[arg(long, value_name = "COMMAND")]
    pub worker_command: Option<String>,
    /// Directories to spill objects to, separated by commas; not under Ray [env: RAYLET_URING_SPILL_DIRS].
    #[arg(long, value_name = "DIRS")]
    pub spill_dir: Option<String>,
    /// Microseconds that a core looks at quiet rings of native clients before it sleeps [env: RAYLET_URING_SPIN_US].
    #[arg(long, value_name = "MICROSECONDS")]
    pub spin_us: Option<String>,
    /// Never sleep while a native client has rings: true or false [env: RAYLET_URING_BUSY_POLL].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub busy_poll: Option<String>,
    /// TCP port on which nodes like this one fetch objects; 0: any; off: only Ray's own way [env: RAYLET_URING_BULK_PORT].
    #[arg(long, value_name = "PORT")]
    pub bulk_port: Option<String>,
    /// Connections to each node that objects are fetched from; 0: one for each core, 2 to 8 [env: RAYLET_URING_BULK_LANES].
    #[arg(long, value_name = "NUMBER")]
    pub bulk_lanes: Option<String>,
    /// Nodes that a large object is sent to at a time, which send it on; 0: all get it from here [env: RAYLET_URING_BULK_FANOUT].
    #[arg(long, value_name = "NUMBER")]
    pub bulk_fanout: Option<String>,
    /// Nodes of one host copy objects from each other's memory: true or false [env: RAYLET_URING_BULK_SAME_HOST].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bulk_same_host: Option<String>,
    /// Objects go to other hosts without a copy: true or false [env: RAYLET_URING_BULK_ZERO_COPY].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bulk_zero_copy: Option<String>,
    /// Nodes to fetch objects from and send leases to, as host:port,host:port; not under Ray [env: RAYLET_URING_PEERS].
    #[arg(long, value_name = "LIST")]
    pub peers: Option<String>,
    /// IP address and TCP port at which peers are served [env: RAYLET_URING_PEER_LISTEN].
    #[arg(long, value_name = "ADDRESS")]
    pub peer_listen: Option<String>,
    /// File whose first line is the token by which peers know each other [env: RAYLET_URING_TOKEN_FILE].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<String>,
    /// Directory of the admin sockets, mode 0700 [env: RAYLET_URING_RUNTIME_DIR].
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<String>,
    /// TOML file with settings [env: RAYLET_URING_CONFIG].
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
    /// Log level, or directives like `info,raylet_uring::workers=debug` [env: RAYLET_URING_LOG].
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// Form of the log: text, json, ray-json, journal, or auto: journal where systemd's journal takes it [env: RAYLET_URING_LOG_FORMAT].
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Print every setting with its value and where it came from, and exit.
    #[arg(long)]
    pub print_config: bool,
}

impl NodeFlags {
    /// The flags that were given, by the name of their setting.
    pub fn given(&self) -> BTreeMap<&'static str, String> {
        let print_config = self.print_config.then(|| "true".to_owned());
        [
            ("cores", &self.cores),
            ("hugepages", &self.hugepages),
            ("object_store_memory_bytes", &self.object_store_memory),
            ("warm_reserve_bytes", &self.warm_reserve),
            ("worker_nursery", &self.worker_nursery),
            ("pin_workers", &self.pin_workers),
            ("drain_timeout_ms", &self.drain_timeout_ms),
            ("socket", &self.socket),
            ("resources", &self.resources),
            ("worker_command", &self.worker_command),
            ("spill_dirs", &self.spill_dir),
            ("spin_us", &self.spin_us),
            ("busy_poll", &self.busy_poll),
            ("bulk_port", &self.bulk_port),
            ("bulk_lanes", &self.bulk_lanes),
            ("bulk_fanout", &self.bulk_fanout),
            ("bulk_same_host", &self.bulk_same_host),
            ("bulk_zero_copy", &self.bulk_zero_copy),
            ("peers", &self.peers),
            ("peer_listen", &self.peer_listen),
            ("token_file", &self.token_file),
            ("runtime_dir", &self.runtime_dir),
            ("config", &self.config),
            ("log", &self.log_level),
            ("log_format", &self.log_format),
            ("print_config", &print_config),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)))
        .collect()
    }
}

/// What to do instead of running a node.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the running nodes: cores, shards, arenas, leases, workers, objects, latencies.
    ///
    /// Exit status: 0 where at least one node answered and all that were found did, 3 where there is none.
    Status(StatusArgs),
    /// Watch the running nodes in a terminal: shards, operations with their rates and latencies, workers, object store.
    ///
    /// Exit status: 0 it was quit or printed, 3 no node runs, 4 one was found and does not answer.
    Top(TopArgs),
    /// Change what a running node logs, or tell it where no filter is given.
    LogLevel(LogLevelArgs),
    /// Make a Ray installation use raylet-uring as its raylet, keeping the original beside it.
    ///
    /// Exit status with --status: 0 ours is in place, 1 Ray's own is, 2 the state can't be told or is broken.
    Attach(AttachArgs),
    /// Put a Ray installation's own raylet back.
    Detach(DetachArgs),
    /// Draw the machine: NUMA nodes, cores, caches, network cards and disks, with shards and arenas in their places.
    ///
    /// They are those of the running node, or of the settings where none runs or settings are given.
    Topology(TopologyArgs),
    /// Look for what costs a node speed on this machine or keeps it from running, with the commands that mend it.
    ///
    /// Exit status: 0 all is well, 1 there are warnings, 2 there are errors (or wrong arguments).
    Doctor(DoctorArgs),
    /// Show, write or take back settings of the machine that a node gains from and that last: sysctl, /sys, systemd, limits.
    ///
    /// Without --apply or --undo it only shows the diff. Exit status: 0 done or nothing to do, 1 there is something to apply,
    /// or the kernel did not take a value, 2 it failed.
    Tune(TuneArgs),
    /// Write shell completions and man pages into a directory, for packages.
    #[command(hide = true)]
    Generate {
        /// The directory.
        directory: PathBuf,
    },
}

/// Settings that decide what goes where, for commands that plan a node instead of running it.
#[derive(Debug, Default, Args)]
pub struct PlanFlags {
    /// CPUs that carry a shard each, as for a node.
    #[arg(long, value_name = "CORES")]
    pub cores: Option<String>,
    /// Pages of the object store, as for a node.
    #[arg(long, value_name = "KIND", num_args = 0..=1, require_equals = true, default_missing_value = "2M")]
    pub hugepages: Option<String>,
    /// Size of the object store, as for a node.
    #[arg(long, value_name = "BYTES")]
    pub object_store_memory: Option<String>,
    /// TOML file with settings.
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
    /// Directory for spilled objects; may be repeated [default: RAY_object_spilling_directory, else the directory for
    /// temporary files].
    #[arg(long, value_name = "DIR")]
    pub spill_dir: Vec<PathBuf>,
    /// Look at the files of a machine below this directory instead of at this machine.
    #[arg(long, value_name = "DIR", hide = true)]
    pub root: Option<PathBuf>,
}

impl PlanFlags {
    /// The settings that were given, by name.
    pub fn given(&self) -> BTreeMap<&'static str, String> {
        [
            ("cores", &self.cores),
            ("hugepages", &self.hugepages),
            ("object_store_memory_bytes", &self.object_store_memory),
            ("config", &self.config),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)))
        .collect()
    }
}

/// Arguments of `topology`.
#[derive(Debug, Args)]
pub struct TopologyArgs {
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
    /// The admin socket of the node to show.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["cores", "hugepages", "object_store_memory", "config", "root"])]
    pub node: Option<PathBuf>,
    /// The settings to show.
    #[command(flatten)]
    pub plan: PlanFlags,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print a JSON array, one element a node.
    #[arg(long)]
    pub json: bool,
    /// Print the figures in Prometheus' text format.
    #[arg(long, conflicts_with = "json")]
    pub metrics: bool,
    /// The admin socket of one node.
    #[arg(long, value_name = "PATH", conflicts_with = "all")]
    pub node: Option<PathBuf>,
    /// Nodes of every user, as far as this user may reach them.
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Seconds between two looks, 0.1 to 60.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub interval: f64,
    /// The admin socket of one node [default: every node of this user].
    #[arg(long, value_name = "PATH")]
    pub node: Option<PathBuf>,
    /// Print one screen as text, as wide as COLUMNS says, with the rates of one interval.
    #[arg(long)]
    pub once: bool,
    /// Print a JSON array, one element a node, with the rates of one interval.
    #[arg(long, conflicts_with = "once")]
    pub json: bool,
}

/// Arguments of `log-level`.
#[derive(Debug, Args)]
pub struct LogLevelArgs {
    /// Level, or directives like `info,raylet_uring::workers=debug`; holds until the node ends.
    pub filter: Option<String>,
    /// The admin socket of one node [default: every node of this user].
    #[arg(long, value_name = "PATH")]
    pub node: Option<PathBuf>,
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The Python of the Ray installation, such as .venv/bin/python.
    pub python: PathBuf,
    /// Only say which raylet is in place.
    #[arg(long)]
    pub status: bool,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The Python of the Ray installation, such as .venv/bin/python.
    pub python: PathBuf,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print a JSON array, one element a check.
    #[arg(long)]
    pub json: bool,
    /// TCP ports that should be free.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "6379,8265,10001")]
    pub ports: Vec<u16>,
    /// Don't measure the disks for spilled objects, which writes up to 64 MiB to each and removes them.
    #[arg(long)]
    pub no_disk: bool,
    /// The settings to judge the machine for.
    #[command(flatten)]
    pub plan: PlanFlags,
}

/// Arguments of `tune`.
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// Show the diff, then write the files and set the running kernel's values.
    #[arg(long)]
    pub apply: bool,
    /// Put back what was there before --apply.
    #[arg(long, conflicts_with_all = ["apply", "hugepages"])]
    pub undo: bool,
    /// Reserve huge pages, over the NUMA nodes of the object store: 2M=COUNT or 1G=COUNT; may be repeated.
    #[arg(long, value_name = "KIND=COUNT")]
    pub hugepages: Vec<String>,
    /// Act on the files below this directory instead of this machine's.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::SETTINGS;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"raylet-uring").chain(arguments))
    }

    #[test]
    fn the_command_is_sound_and_every_setting_has_its_flag() {
        let command = Cli::command();
        command.clone().debug_assert();
        for setting in SETTINGS {
            let flag = command
                .get_arguments()
                .find(|a| a.get_long().map(|l| format!("--{l}")).as_deref() == Some(setting.flag));
            let help = flag.and_then(|f| f.get_help()).unwrap_or_else(|| panic!("no {}", setting.flag)).to_string();
            let named = help.contains(setting.variable) || setting.name == "print_config";
            assert!(named, "{} doesn't name {}", setting.flag, setting.variable);
        }
    }

    #[test]
    fn flags_reach_their_settings() {
        let cli =
            parse(&["--cores", "0-1", "--hugepages", "--warm-reserve=1G", "--log-level", "debug", "--print-config"])
                .unwrap();
        assert_eq!(parse(&["--worker-nursery=off"]).unwrap().node.given()["worker_nursery"], "off");
        let given = cli.node.given();
        let expected = [
            ("cores", "0-1"),
            ("hugepages", "2M"),
            ("log", "debug"),
            ("print_config", "true"),
            ("warm_reserve_bytes", "1G"),
        ];
        assert_eq!(given, expected.into_iter().map(|(n, v)| (n, v.to_owned())).collect());
        assert_eq!(parse(&["--hugepages=1G"]).unwrap().node.given()["hugepages"], "1G");
        assert!(parse(&[]).unwrap().node.given().is_empty());
    }

    #[test]
    fn subcommands_and_slips() {
        assert!(matches!(
            parse(&["attach", "--status", "p"]).unwrap().command,
            Some(Command::Attach(AttachArgs { status: true, .. }))
        ));
        assert!(matches!(parse(&["detach", "p"]).unwrap().command, Some(Command::Detach(_))));
        assert!(parse(&["status", "--node", "x", "--all"]).is_err());
        assert!(parse(&["attach"]).is_err());
        assert!(parse(&["--cores", "0", "status"]).is_err(), "settings are for nodes");
        let error = parse(&["--coers", "0"]).unwrap_err().to_string();
        assert!(error.contains("--cores"), "{error}");
    }
}
