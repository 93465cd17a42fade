//! The kernel's pools of huge pages, per NUMA node.
//!
//! A fresh machine has empty pools. Reserving takes memory from everything else on the machine, so it happens only where a
//! caller asks for it by name ([`reserve`]), never as a side effect of making a segment.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::host::Host;
use crate::sysfs;

const NODES: &str = "/sys/devices/system/node";
const MACHINE: &str = "/sys/kernel/mm/hugepages";

/// One pool: the pages of one size on one NUMA node, or on the whole machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePagePool {
    /// NUMA node (kernel's index); `None` for the machine's total.
    pub numa_node: Option<u32>,
    /// Size of a page.
    pub page_bytes: u64,
    /// Pages in the pool, used or not.
    pub total: u64,
    /// Pages that no mapping holds yet; some may be promised to mappings ([`HugePagePool::reserved`]).
    pub free: u64,
    /// Free pages that are promised to mappings. The kernel counts this for the machine only, so 0 for a node.
    pub reserved: u64,
    /// Pages above the configured number that the kernel has lent.
    pub surplus: u64,
}

impl HugePagePool {
    /// Pages that a new mapping can have.
    pub fn unreserved(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }
}

/// What a reservation got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePagesReserved {
    /// Free, unpromised pages that were asked for.
    pub wanted: u64,
    /// Free, unpromised pages that there are now.
    pub available: u64,
    /// Pages that this call added to the pool.
    pub added: u64,
    /// Where the kernel gave fewer: what to do.
    pub shortfall: Option<String>,
}

/// Why pages could not be reserved.
#[derive(Debug, thiserror::Error)]
pub enum HugePagesError {
    /// The kernel has no pool of that page size, or no such NUMA node.
    #[error("this machine has no pool of {page_bytes}-byte huge pages{place}: 2097152 and 1073741824 are the usual sizes", place = .numa_node.map(|node| format!(" on NUMA node {node}")).unwrap_or_default())]
    NoPool {
        /// Page size asked for.
        page_bytes: u64,
        /// NUMA node asked for.
        numa_node: Option<u32>,
    },
    /// The pool's size can't be written.
    #[error(
        "huge pages can't be reserved: {path}: {source}: run as root, or have the administrator set vm.nr_hugepages"
    )]
    NotAllowed {
        /// The kernel's file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

/// Every pool of every NUMA node; empty on a kernel without huge pages.
pub fn pools() -> Vec<HugePagePool> {
    pools_on(&Host::this())
}

/// As [`pools`], of any machine.
pub fn pools_on(host: &Host) -> Vec<HugePagePool> {
    let mut pools: Vec<HugePagePool> = numbered_entries(&host.path(NODES), "node", "")
        .into_iter()
        .flat_map(|(node, path)| {
            numbered_entries(&path.join("hugepages"), "hugepages-", "kB")
                .into_iter()
                .filter_map(move |(kib, path)| read_pool(&path, u32::try_from(node).ok(), kib << 10))
        })
        .collect();
    pools.sort_by_key(|pool| (pool.numa_node, pool.page_bytes));
    pools
}

/// The machine's pool of pages of one size.
pub fn pool_of_machine(page_bytes: u64) -> Option<HugePagePool> {
    read_pool(&directory(None, page_bytes), None, page_bytes)
}

/// Makes sure that `pages` free, unpromised pages of `page_bytes` are in the pool of a NUMA node (`None`: of the machine),
/// adding what is missing. Never makes a pool smaller. Getting fewer is not an error: the result says so.
pub fn reserve(pages: u64, page_bytes: u64, numa_node: Option<u32>) -> Result<HugePagesReserved, HugePagesError> {
    let directory = directory(numa_node, page_bytes);
    let no_pool = || HugePagesError::NoPool { page_bytes, numa_node };
    let before = read_pool(&directory, numa_node, page_bytes).ok_or_else(no_pool)?;
    let missing = pages.saturating_sub(before.unreserved());
    if missing > 0 {
        // nr_hugepages does not count what the kernel has lent on top.
        let target = before.total - before.surplus.min(before.total) + missing;
        set_pool_size(&directory, target)?;
    }
    let after = read_pool(&directory, numa_node, page_bytes).ok_or_else(no_pool)?;
    let available = after.unreserved();
    let shortfall = (available < pages).then(|| {
        format!(
            "the kernel found {available} of {pages} huge pages of {} MiB: memory is fragmented or used; reserve them at \
             boot (hugepages=N on the kernel's command line) or free memory",
            page_bytes >> 20
        )
    });
    Ok(HugePagesReserved { wanted: pages, available, added: after.total.saturating_sub(before.total), shortfall })
}

/// Gives pages back to the machine that [`reserve`] added; pages in use stay until they are free.
pub fn release(pages: u64, page_bytes: u64, numa_node: Option<u32>) -> Result<(), HugePagesError> {
    let directory = directory(numa_node, page_bytes);
    let pool = read_pool(&directory, numa_node, page_bytes).ok_or(HugePagesError::NoPool { page_bytes, numa_node })?;
    set_pool_size(&directory, pool.total.saturating_sub(pool.surplus).saturating_sub(pages))
}

/// Bytes of huge pages of one size that this process's control groups still let it use; `None` where they don't limit it.
pub(crate) fn cgroup_room_bytes(page_bytes: u64) -> Option<u64> {
    let size =
        if page_bytes >= 1 << 30 { format!("{}GB", page_bytes >> 30) } else { format!("{}MB", page_bytes >> 20) };
    cgroup::directories(&Host::this(), "hugetlb")
        .iter()
        .filter_map(|group| {
            let file = |name: &str| sysfs::number(group.join(format!("hugetlb.{size}.{name}")));
            let limit = file("max").or_else(|| file("limit_in_bytes"))?;
            let used = file("current").or_else(|| file("usage_in_bytes"))?;
            Some(limit.saturating_sub(used))
        })
        .min()
}

fn directory(numa_node: Option<u32>, page_bytes: u64) -> PathBuf {
    let size = format!("hugepages-{}kB", page_bytes >> 10);
    match numa_node {
        Some(node) => Path::new(NODES).join(format!("node{node}")).join("hugepages").join(size),
        None => Path::new(MACHINE).join(size),
    }
}

fn read_pool(directory: &Path, numa_node: Option<u32>, page_bytes: u64) -> Option<HugePagePool> {
    Some(HugePagePool {
        numa_node,
        page_bytes,
        total: sysfs::number(directory.join("nr_hugepages"))?,
        free: sysfs::number(directory.join("free_hugepages"))?,
        reserved: sysfs::number(directory.join("resv_hugepages")).unwrap_or(0),
        surplus: sysfs::number(directory.join("surplus_hugepages")).unwrap_or(0),
    })
}

fn set_pool_size(directory: &Path, pages: u64) -> Result<(), HugePagesError> {
    let path = directory.join("nr_hugepages");
    fs::write(&path, pages.to_string()).map_err(|source| HugePagesError::NotAllowed { path, source })
}

/// Entries of a directory named `{prefix}{number}{suffix}`, with the number.
fn numbered_entries(directory: &Path, prefix: &str, suffix: &str) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::HUGE_2M_BYTES;

    #[test]
    fn pools_of_nodes_add_up_to_the_machine() {
        let Some(machine) = pool_of_machine(HUGE_2M_BYTES) else {
            assert!(pools().is_empty(), "nodes have pools that the machine does not");
            return;
        };
        let nodes: u64 = pools().iter().filter(|pool| pool.page_bytes == HUGE_2M_BYTES).map(|pool| pool.total).sum();
        assert_eq!(nodes, machine.total);
        assert!(machine.free <= machine.total);
    }

    #[test]
    fn a_page_size_or_node_that_is_not_there_is_named() {
        let error = reserve(1, 12_288, None).unwrap_err().to_string();
        assert!(error.contains("12288"), "{error}");
        let error = reserve(1, HUGE_2M_BYTES, Some(1000)).unwrap_err().to_string();
        assert!(error.contains("NUMA node 1000"), "{error}");
    }

    #[test]
    fn asking_for_nothing_changes_nothing() {
        if let Some(before) = pool_of_machine(HUGE_2M_BYTES) {
            let reserved = reserve(0, HUGE_2M_BYTES, None).unwrap();
            assert_eq!((reserved.added, reserved.shortfall), (0, None));
            assert!(pool_of_machine(HUGE_2M_BYTES).unwrap().total >= before.total.min(1));
        }
    }
}
