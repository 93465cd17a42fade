//! How much memory this process can still take, and which limit is the nearest.
//!
//! Shared memory that can't be had kills: the process that touches it gets SIGBUS, or the kernel picks a victim. So room is
//! asked for before memory is taken.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::host::Host;
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

/// Share of the memory that can be taken which an object store takes where it is not told: 30 %, as Ray does.
const STORE_PERCENT: u64 = 30;

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
        MemoryHeadroom::read_on(&Host::this())
    }

    /// Size of an object store that nobody gave a size.
    pub fn default_store_bytes(&self) -> u64 {
        self.available_bytes / 100 * STORE_PERCENT
    }

    /// As [`MemoryHeadroom::read`], of any machine.
    pub fn read_on(host: &Host) -> MemoryHeadroom {
        let meminfo = host.text("/proc/meminfo").unwrap_or_default();
        let mut headroom = MemoryHeadroom {
            available_bytes: sysfs::kib_line_bytes(&meminfo, "MemAvailable").unwrap_or(u64::MAX),
            limiter: MemoryLimiter::Machine,
            total_bytes: sysfs::kib_line_bytes(&meminfo, "MemTotal").unwrap_or(u64::MAX),
        };
        let groups = cgroup::directories(host, "memory");
        for room in groups.iter().filter_map(|group| cgroup::memory_of(group)) {
            headroom.total_bytes = headroom.total_bytes.min(room.limit);
            let available = room.limit.saturating_sub(room.used);
            if available < headroom.available_bytes {
                headroom.available_bytes = available;
                headroom.limiter = MemoryLimiter::Cgroup(host.name_of(&room.group));
            }
        }
        headroom
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    #[test]
    fn there_is_memory_and_no_more_than_the_machine_has() {
        let headroom = MemoryHeadroom::read();
        assert!(headroom.available_bytes > 0);
        assert!(headroom.total_bytes < u64::MAX, "a kernel without /proc/meminfo");
        assert!(headroom.available_bytes <= headroom.total_bytes);
    }

    #[test]
    fn the_tightest_group_limits() {
        let fake = FakeHost::new();
        fake.file("/proc/meminfo", "MemTotal: 8192 kB\nMemAvailable: 4096 kB");
        let machine = MemoryHeadroom::read_on(&fake.host());
        assert_eq!((machine.available_bytes, machine.limiter), (4 << 20, MemoryLimiter::Machine));
        fake.file("/proc/self/cgroup", "0::/jobs/node");
        fake.file("/sys/fs/cgroup/cgroup.controllers", "memory");
        fake.file("/sys/fs/cgroup/jobs/memory.max", "3145728");
        fake.file("/sys/fs/cgroup/jobs/memory.current", "2097152");
        fake.file("/sys/fs/cgroup/jobs/node/memory.max", "max");
        fake.file("/sys/fs/cgroup/jobs/node/memory.current", "1");
        let group = MemoryHeadroom::read_on(&fake.host());
        assert_eq!((group.available_bytes, group.total_bytes), (1 << 20, 3 << 20));
        assert_eq!(group.limiter, MemoryLimiter::Cgroup("/sys/fs/cgroup/jobs".into()));
    }
}
