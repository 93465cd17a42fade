//! What of this machine costs a node speed, or keeps it from running: each thing with its price and the command that mends it.
//!
//! A check looks at files below a [`Host`]'s root and asks its probes, so every outcome can be tested without the machine
//! that has it. What costs nothing here is no finding: NUMA balancing on a machine with one node, a governor that isn't there.

mod cpus;
mod disks;
mod kernel;
mod memory;
mod network;

pub(crate) use memory::SWAPPINESS_MAX;
pub(crate) use network::{BACKLOG_WANTED, TCP_BUFFER_WANTED_BYTES};
use serde::Serialize;

use crate::host::Host;
use crate::pages::PageChoice;
use crate::placement::Picture;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// The node runs, with less.
    Warning,
    /// The node can't run, or not with these settings.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Short name, such as `memlock`.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What that costs; `None` where nothing.
    pub costs: Option<String>,
    /// Commands that mend it, each complete; none where nothing is to be done.
    pub mend: Vec<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, level: Level::Ok, found: found.into(), costs: None, mend: Vec::new() }
    }

    fn warning(
        name: &'static str,
        found: impl Into<String>,
        costs: impl Into<String>,
        mend: impl IntoIterator<Item = String>,
    ) -> Check {
        let (found, costs) = (found.into(), Some(costs.into()));
        Check { name, level: Level::Warning, found, costs, mend: mend.into_iter().collect() }
    }

    fn error(
        name: &'static str,
        found: impl Into<String>,
        costs: impl Into<String>,
        mend: impl IntoIterator<Item = String>,
    ) -> Check {
        Check { level: Level::Error, ..Check::warning(name, found, costs, mend) }
    }
}

/// The node to judge the machine for.
pub struct Subject<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The machine with the node in place.
    pub picture: &'a Picture,
    /// Pages of its object store.
    pub pages: PageChoice,
    /// Size of its object store.
    pub store_bytes: u64,
    /// TCP ports that should be free.
    pub ports: &'a [u16],
    /// Whether disks are measured, which writes [`crate::probes::DISK_PROBE_BYTES`] to each.
    pub measure_disks: bool,
}

impl Subject<'_> {
    /// Hardware threads that shards are pinned to.
    fn pinned(&self) -> Vec<u32> {
        self.picture.shards.iter().filter_map(|shard| shard.pu).collect()
    }

    fn numa_nodes(&self) -> usize {
        self.picture.topology.numa_nodes.iter().filter(|node| node.memory_bytes > 0).count()
    }
}

/// Looks at everything. The order is that of the report.
pub fn examine(subject: &Subject) -> Vec<Check> {
    let mut checks = vec![
        kernel::version(subject),
        kernel::io_uring_setting(subject),
        kernel::io_uring_features(subject),
        kernel::memlock(subject),
        kernel::open_files(subject),
        kernel::processes(subject),
        memory::room(subject),
        memory::hugetlb(subject),
        memory::transparent_huge_pages(subject),
        memory::programs_huge_pages(subject),
        memory::dev_shm(subject),
        memory::swappiness(subject),
        memory::overcommit(subject),
        memory::numa_balancing(subject),
        memory::zone_reclaim(subject),
        cpus::quota(subject),
        cpus::governor(subject),
        cpus::interrupts(subject),
        cpus::clock_source(subject),
        cpus::clock_synchronized(subject),
        network::tcp_buffers(subject),
        network::backlog(subject),
        network::ports(subject),
        network::port_range(subject),
    ];
    checks.extend(disks::spill(subject));
    checks
}

/// Exit status for scripts: 0 all is well, 1 there are warnings, 2 there are errors.
pub fn exit_status(checks: &[Check]) -> i32 {
    checks.iter().map(|check| check.level).max().map_or(0, |level| level as i32)
}

/// Bytes as MiB, which all sizes here are.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
