//! What the control groups of this process, version 1 or 2, let it use.

use std::path::{Path, PathBuf};

use crate::host::Host;
use crate::sysfs;

/// Directories of this process's groups for one controller, from the innermost to the root. In a container the path that
/// /proc names often doesn't exist below the mount: then the mount's root is the container's own group.
pub(crate) fn directories(host: &Host, controller: &str) -> Vec<PathBuf> {
    let memberships = host.text("/proc/self/cgroup").unwrap_or_default();
    let base = host.path("/sys/fs/cgroup");
    let mut directories = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let roots = match controllers {
            "" => [base.clone(), base.join("unified")],
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

/// Thousandths of a CPU that the tightest quota of the groups allows; `None`: no quota.
pub fn cpu_quota_milli(host: &Host) -> Option<u64> {
    let quotas = directories(host, "cpu").into_iter().filter_map(|group| {
        let text = sysfs::text(group.join("cpu.max")).or_else(|| {
            let quota = sysfs::text(group.join("cpu.cfs_quota_us"))?;
            Some(format!("{quota} {}", sysfs::text(group.join("cpu.cfs_period_us"))?))
        })?;
        quota_milli(&text)
    });
    quotas.min()
}

/// `QUOTA PERIOD` in microseconds, with `max` or -1 for no quota.
fn quota_milli(text: &str) -> Option<u64> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
    quota.saturating_mul(1000).checked_div(period)
}

/// CPUs of the cpuset; `None` where no group says.
pub(crate) fn cpuset_cpus(host: &Host) -> Option<Vec<u32>> {
    cpuset(host, ["cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"])
}

/// NUMA nodes whose memory the cpuset allows; `None` where no group says.
pub(crate) fn cpuset_mems(host: &Host) -> Option<Vec<u32>> {
    cpuset(host, ["cpuset.mems.effective", "cpuset.effective_mems", "cpuset.mems"])
}

/// The innermost group that exists has the last word: a cpuset is always within the one above it.
fn cpuset(host: &Host, files: [&str; 3]) -> Option<Vec<u32>> {
    let lists = directories(host, "cpuset").into_iter().flat_map(|group| files.map(|file| group.join(file)));
    let mut lists = lists.filter_map(|file| sysfs::index_list(&sysfs::text(file)?));
    lists.find(|list| !list.is_empty())
}

/// A limit of a group, and what counts against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) group: PathBuf,
    pub(crate) limit: u64,
    pub(crate) used: u64,
}

/// Processes and threads that the groups allow, the tightest; `None`: no limit.
pub(crate) fn pids(host: &Host) -> Option<Room> {
    let rooms = directories(host, "pids").into_iter().filter_map(|group| {
        let limit = sysfs::number(group.join("pids.max"))?;
        let used = sysfs::number(group.join("pids.current")).unwrap_or(0);
        Some(Room { group, limit, used })
    });
    rooms.min_by_key(|room| room.limit.saturating_sub(room.used))
}

/// Memory that one group allows; `None`: no limit. Cached files that the kernel can drop don't count as used.
pub(crate) fn memory_of(group: &Path) -> Option<Room> {
    let (limit, used, droppable) = if let Some(limit) = sysfs::text(group.join("memory.max")) {
        (limit.parse::<u64>().ok()?, "memory.current", "inactive_file ")
    } else {
        (sysfs::number(group.join("memory.limit_in_bytes"))?, "memory.usage_in_bytes", "total_inactive_file ")
    };
    let stat = sysfs::text(group.join("memory.stat")).unwrap_or_default();
    let droppable = stat.lines().find_map(|line| line.strip_prefix(droppable)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let used = sysfs::number(group.join(used))?.saturating_sub(droppable);
    Some(Room { group: group.to_owned(), limit, used })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    #[test]
    fn version_2_groups_are_read() {
        let fake = FakeHost::new();
        fake.file("/proc/self/cgroup", "0::/jobs/node");
        fake.file("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu memory pids");
        fake.file("/sys/fs/cgroup/jobs/cpu.max", "250000 100000");
        fake.file("/sys/fs/cgroup/jobs/node/cpu.max", "max 100000");
        fake.file("/sys/fs/cgroup/jobs/cpuset.cpus.effective", "0-7");
        fake.file("/sys/fs/cgroup/jobs/node/cpuset.cpus.effective", "3,5-6");
        fake.file("/sys/fs/cgroup/jobs/cpuset.mems.effective", "1");
        fake.file("/sys/fs/cgroup/jobs/pids.max", "100");
        fake.file("/sys/fs/cgroup/jobs/pids.current", "60");
        fake.file("/sys/fs/cgroup/jobs/node/pids.max", "max");
        let host = fake.host();
        assert_eq!(cpu_quota_milli(&host), Some(2500));
        assert_eq!(cpuset_cpus(&host), Some(vec![3, 5, 6]));
        assert_eq!(cpuset_mems(&host), Some(vec![1]));
        let room = pids(&host).unwrap();
        assert_eq!((room.limit, room.used), (100, 60));
    }

    #[test]
    fn version_1_groups_are_read_and_no_limit_is_no_limit() {
        let fake = FakeHost::new();
        fake.file("/proc/self/cgroup", "4:cpu,cpuacct:/a\n3:cpuset:/a\n2:pids:/a");
        for controller in ["cpu,cpuacct", "cpuset", "pids"] {
            fake.file(&format!("/sys/fs/cgroup/{controller}/tasks"), "1");
        }
        fake.file("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1");
        fake.file("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
        assert_eq!(cpu_quota_milli(&fake.host()), None);
        fake.file("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "150000");
        fake.file("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000");
        fake.file("/sys/fs/cgroup/cpuset/a/cpuset.cpus", "0-2");
        let host = fake.host();
        assert_eq!(cpu_quota_milli(&host), Some(1500));
        assert_eq!((cpuset_cpus(&host), cpuset_mems(&host)), (Some(vec![0, 1, 2]), None));
        assert_eq!(pids(&host), None);
    }

    #[test]
    fn in_a_container_the_mounts_root_is_the_group() {
        let fake = FakeHost::new();
        fake.file("/proc/self/cgroup", "0::/docker/0123");
        fake.file("/sys/fs/cgroup/cgroup.controllers", "cpu");
        fake.file("/sys/fs/cgroup/cpu.max", "50000 100000");
        assert_eq!(cpu_quota_milli(&fake.host()), Some(500));
        assert_eq!(cpu_quota_milli(&FakeHost::new().host()), None);
    }

    #[test]
    fn memory_of_both_versions_is_read() {
        let fake = FakeHost::new();
        fake.file("/two/memory.max", "1000000");
        fake.file("/two/memory.current", "600000");
        fake.file("/two/memory.stat", "anon 1\ninactive_file 100000");
        fake.file("/one/memory.limit_in_bytes", "1000000");
        fake.file("/one/memory.usage_in_bytes", "600000");
        fake.file("/one/memory.stat", "inactive_file 5\ntotal_inactive_file 200000");
        let host = fake.host();
        let read = |group: &str| memory_of(&host.path(group)).map(|room| (room.limit, room.used));
        assert_eq!((read("/two"), read("/one")), (Some((1_000_000, 500_000)), Some((1_000_000, 400_000))));
        fake.file("/two/memory.max", "max");
        assert_eq!(read("/two"), None);
    }
}
