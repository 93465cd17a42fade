//! How much memory this process can still take, and which limit is the nearest.
//!
//! Shared memory that can't be had kills: the process that touches it gets SIGBUS, or the kernel picks a victim. So room is
//! asked for before memory is taken.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sysfs;

/// What bounds the memory that can still be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryLimiter {
    /// The machine's own memory: MemAvailable.
    Machine,
    /// A control group's memory limit; its directory.
    Cgroup(PathBuf),
}

impl fmt::Display for MemoryLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryLimiter::Machine => f.write_str("the machine's available memory"),
            MemoryLimiter::Cgroup(path) => {
                write!(f, "the memory limit of control group {}", path.display())
            }
        }
    }
}

/// Memory that can still be taken without swapping or being killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHeadroom {
    /// The least that any limit leaves.
    pub available_bytes: u64,
    /// The limit that leaves the least.
    pub limiter: MemoryLimiter,
    /// Memory of the machine, or the nearest control group's limit where that is lower.
    pub total_bytes: u64,
}

impl MemoryHeadroom {
    /// Reads what holds now. On a kernel that says nothing at all, everything is taken to be available.
    pub fn read() -> MemoryHeadroom {
        let meminfo = sysfs::text("/proc/meminfo").unwrap_or_default();
        let mut headroom = MemoryHeadroom {
            available_bytes: sysfs::kib_line_bytes(&meminfo, "MemAvailable").unwrap_or(u64::MAX),
            limiter: MemoryLimiter::Machine,
            total_bytes: sysfs::kib_line_bytes(&meminfo, "MemTotal").unwrap_or(u64::MAX),
        };
        for limit in cgroup_limits() {
            headroom.total_bytes = headroom.total_bytes.min(limit.limit_bytes);
            let available = limit.limit_bytes.saturating_sub(limit.used_bytes);
            if available < headroom.available_bytes {
                headroom.available_bytes = available;
                headroom.limiter = MemoryLimiter::Cgroup(limit.path);
            }
        }
        headroom
    }
}

/// One control group's memory limit and what counts against it that can't be dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMemory {
    /// The group's directory.
    pub path: PathBuf,
    /// Its limit.
    pub limit_bytes: u64,
    /// Its use, less cached files that the kernel can drop.
    pub used_bytes: u64,
}

/// The memory limits of this process's control group and those above it, version 2 or 1.
pub fn cgroup_limits() -> Vec<CgroupMemory> {
    group_directories("memory").iter().filter_map(|path| memory_of_group(path)).collect()
}

/// Directories of this process's groups for one controller, from the innermost to the root. In a container the path that
/// /proc names often doesn't exist below the mount: then the mount's root is the container's own group.
pub(crate) fn group_directories(controller: &str) -> Vec<PathBuf> {
    let memberships = sysfs::text("/proc/self/cgroup").unwrap_or_default();
    let mut directories = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let base = Path::new("/sys/fs/cgroup");
        let roots = match controllers {
            "" => [base.to_owned(), base.join("unified")],
            _ if controllers.split(',').any(|name| name == controller) => {
                [base.join(controllers), base.join(controller)]
            }
            _ => continue,
        };
        let marker = if controllers.is_empty() { "cgroup.controllers" } else { "tasks" };
        let Some(root) = roots.iter().find(|root| root.join(marker).exists()) else {
            continue;
        };
        let inside = root.join(path.trim_start_matches('/'));
        directories.extend(inside.ancestors().take_while(|group| group.starts_with(root)).map(PathBuf::from));
    }
    directories
}

fn memory_of_group(path: &Path) -> Option<CgroupMemory> {
    let (limit, used, droppable) = if let Some(limit) = sysfs::text(path.join("memory.max")) {
        (limit.parse::<u64>().ok()?, "memory.current", "inactive_file ")
    } else {
        (sysfs::number(path.join("memory.limit_in_bytes"))?, "memory.usage_in_bytes", "total_inactive_file ")
    };
    let stat = sysfs::text(path.join("memory.stat")).unwrap_or_default();
    let droppable_bytes =
        stat.lines().find_map(|line| line.strip_prefix(droppable)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let used_bytes = sysfs::number(path.join(used))?.saturating_sub(droppable_bytes);
    Some(CgroupMemory { path: path.to_owned(), limit_bytes: limit, used_bytes })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory of its own for a test, removed at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("raylet-tuning-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Directory(path)
        }

        fn file(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn there_is_memory_and_no_more_than_the_machine_has() {
        let headroom = MemoryHeadroom::read();
        assert!(headroom.available_bytes > 0);
        assert!(headroom.total_bytes < u64::MAX, "a kernel without /proc/meminfo");
        assert!(headroom.available_bytes <= headroom.total_bytes);
    }

    #[test]
    fn version_2_groups_are_read_and_no_limit_is_no_limit() {
        let group = Directory::new("v2");
        group.file("memory.max", "1000000\n");
        group.file("memory.current", "600000\n");
        group.file("memory.stat", "anon 1\ninactive_file 100000\n");
        let memory = memory_of_group(&group.0).unwrap();
        assert_eq!((memory.limit_bytes, memory.used_bytes), (1_000_000, 500_000));
        group.file("memory.max", "max\n");
        assert_eq!(memory_of_group(&group.0), None);
    }

    #[test]
    fn version_1_groups_are_read() {
        let group = Directory::new("v1");
        group.file("memory.limit_in_bytes", "1000000\n");
        group.file("memory.usage_in_bytes", "600000\n");
        group.file("memory.stat", "inactive_file 5\ntotal_inactive_file 200000\n");
        let memory = memory_of_group(&group.0).unwrap();
        assert_eq!((memory.limit_bytes, memory.used_bytes), (1_000_000, 400_000));
    }
}
