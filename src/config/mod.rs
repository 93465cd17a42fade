//! Our own settings, each with the place it came from: flags win over environment over file over default.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The settings of a node, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The logical CPUs that carry a shard each.
    pub cores: Cores,
    /// The pages that the arenas should have.
    pub hugepages: HugePages,
    /// Size of the object store in bytes. `None`: Ray's flag says (or, for a node of its own, a share of memory).
    pub object_store_memory_bytes: Option<u64>,
    /// Bytes of the arenas whose pages are touched ahead of demand.
    pub warm_reserve_bytes: u64,
    /// The Unix socket of the native door; `None`: one in the runtime directory.
    pub socket: Option<PathBuf>,
    /// The log filter: a level or `tracing` directives ("info,raylet_uring::workers=debug").
    pub log: String,
    /// Log the settings and where they came from at start.
    pub print_config: bool,
    /// The TOML file that was read.
    pub file: Option<PathBuf>,
    /// Where each setting came from, by its name in the TOML file.
    pub sources: BTreeMap<&'static str, Source>,
}

/// The logical CPUs that carry a shard each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cores {
    /// The node chooses from the CPUs that this process may use.
    Auto,
    /// These CPUs, ascending and without repetition.
    List(Vec<usize>),
}

/// The pages that arenas should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePages {
    /// Transparent huge pages where the kernel gives them, else 4 KiB.
    Off,
    /// hugetlb pages of 2 MiB.
    TwoMiB,
    /// hugetlb pages of 1 GiB.
    OneGiB,
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
