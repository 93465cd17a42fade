//! What this machine lets a node do, and what to do where that is too little.

use serde::{Deserialize, Serialize};

use crate::memory::{self, MemoryHeadroom};
use crate::sys;
use crate::sysfs;

/// Locked memory that the node's rings need per core (glommio 0.9 asks for 512 KiB, as root too).
pub const MEMLOCK_PER_CORE_BYTES: u64 = 512 << 10;
/// Open files below which a node with a few hundred workers runs out: each has several sockets and log files.
pub const OPEN_FILES_WANTED: u64 = 65_536;
/// The oldest kernel whose io_uring and memory calls suffice (IORING_SETUP_DEFER_TASKRUN and MADV_COLLAPSE are of 6.1).
pub const KERNEL_WANTED: (u32, u32) = (6, 1);
/// /dev/shm below which stock Ray processes beside the node complain.
const SHM_WANTED_BYTES: u64 = 64 << 20;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Good,
    /// The node runs, with less.
    Degraded,
    /// The node can't run.
    Fatal,
}

/// One thing looked at: what was found, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Short name, such as `memlock`.
    pub name: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, in words.
    pub found: String,
    /// What to do about it; `None` where nothing is to be done.
    pub remedy: Option<String>,
}

/// A soft and hard limit; `None`: unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// What holds now.
    pub soft: Option<u64>,
    /// What it can be raised to without privileges.
    pub hard: Option<u64>,
}

/// Who may use io_uring: /proc/sys/kernel/io_uring_disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoUring {
    /// Everybody (0, or a kernel before 6.6 without the setting).
    Everybody,
    /// Only privileged processes and one group (1).
    Privileged,
    /// Nobody (2).
    Nobody,
}

/// Limits of the machine and of this process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostLimits {
    /// Locked memory in bytes.
    pub memlock_bytes: ResourceLimit,
    /// Open files.
    pub open_files: ResourceLimit,
    /// Who may use io_uring.
    pub io_uring: IoUring,
    /// The kernel's release, as it says.
    pub kernel_release: String,
    /// Its major and minor number; (0, 0) where the release has none.
    pub kernel: (u32, u32),
    /// Memory that can still be taken, over machine and control groups.
    pub memory: MemoryHeadroom,
    /// Processors' worth of time that the control group may use; `None`: no quota.
    pub cgroup_cpus: Option<f64>,
    /// Size of /dev/shm; `None` where there is none.
    pub dev_shm_bytes: Option<u64>,
    /// The selected word of `transparent_hugepage/shmem_enabled`; `None` without transparent huge pages.
    pub shmem_huge: Option<String>,
}

impl HostLimits {
    /// Reads what holds now. What the kernel doesn't say counts as unlimited or absent.
    pub fn read() -> HostLimits {
        let kernel_release = sys::kernel_release().unwrap_or_default();
        let shmem_huge = sysfs::text("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
        HostLimits {
            memlock_bytes: limit(libc::RLIMIT_MEMLOCK),
            open_files: limit(libc::RLIMIT_NOFILE),
            io_uring: io_uring(sysfs::number("/proc/sys/kernel/io_uring_disabled")),
            kernel: kernel_version(&kernel_release),
            kernel_release,
            memory: MemoryHeadroom::read(),
            cgroup_cpus: cgroup_cpus(),
            dev_shm_bytes: sys::filesystem_bytes(c"/dev/shm").ok().map(|(total, _)| total),
            shmem_huge: shmem_huge.and_then(|text| sysfs::selected(&text).map(str::to_owned)),
        }
    }

    /// Every limit with its judgement for a node on `cores` cores, worst first.
    pub fn findings(&self, cores: usize) -> Vec<Finding> {
        let mut findings = vec![
            self.kernel_finding(),
            self.io_uring_finding(),
            self.memlock_finding(cores),
            self.open_files_finding(),
            self.cpus_finding(cores),
            self.dev_shm_finding(),
            self.memory_finding(),
            self.huge_pages_finding(),
        ];
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        findings
    }

    fn kernel_finding(&self) -> Finding {
        let (major, minor) = KERNEL_WANTED;
        judge(
            "kernel",
            self.kernel_release.clone(),
            (self.kernel < KERNEL_WANTED).then(|| (Severity::Fatal, format!("use Linux {major}.{minor} or newer"))),
        )
    }

    fn io_uring_finding(&self) -> Finding {
        let allow =
            "allow it with `sysctl kernel.io_uring_disabled=0`; in a container, use a seccomp profile that allows \
                     io_uring_setup, io_uring_enter and io_uring_register";
        let (found, bad) = match self.io_uring {
            IoUring::Everybody => ("allowed", None),
            IoUring::Privileged => {
                let group = "or run as root or in the group kernel.io_uring_group";
                ("for privileged processes", Some((Severity::Degraded, format!("{allow}, {group}"))))
            }
            IoUring::Nobody => ("disabled", Some((Severity::Fatal, allow.to_owned()))),
        };
        judge("io_uring", found.to_owned(), bad)
    }

    fn memlock_finding(&self, cores: usize) -> Finding {
        let wanted = MEMLOCK_PER_CORE_BYTES * cores.max(1) as u64;
        let limit = self.memlock_bytes;
        let bad = limit.soft.filter(|&soft| soft < wanted).map(|_| {
            let reachable = limit.hard.is_none_or(|hard| hard >= wanted);
            let severity = if reachable { Severity::Degraded } else { Severity::Fatal };
            let kib = wanted >> 10;
            (severity, format!("{cores} cores need {kib} KiB: `ulimit -l {kib}`, or LimitMEMLOCK=infinity in the unit"))
        });
        judge("memlock", format!("{} bytes", shown(limit.soft)), bad)
    }

    fn open_files_finding(&self) -> Finding {
        let limit = self.open_files;
        let bad = limit.soft.filter(|&soft| soft < OPEN_FILES_WANTED).map(|_| {
            let remedy = format!("`ulimit -n {OPEN_FILES_WANTED}`, or LimitNOFILE={OPEN_FILES_WANTED} in the unit");
            (Severity::Degraded, remedy)
        });
        judge("open files", format!("{}, up to {}", shown(limit.soft), shown(limit.hard)), bad)
    }

    fn cpus_finding(&self, cores: usize) -> Finding {
        let found = self.cgroup_cpus.map_or("no quota".to_owned(), |cpus| format!("a quota of {cpus:.2} CPUs"));
        judge(
            "cpu quota",
            found,
            self.cgroup_cpus.filter(|&cpus| cpus < cores as f64).map(|cpus| {
                let remedy =
                    format!("use at most {} of the cores with --cores, or raise the group's cpu.max", cpus.max(1.0));
                (Severity::Degraded, remedy)
            }),
        )
    }

    fn dev_shm_finding(&self) -> Finding {
        let found = self.dev_shm_bytes.map_or("absent".to_owned(), |bytes| format!("{bytes} bytes"));
        let small = self.dev_shm_bytes.is_none_or(|bytes| bytes < SHM_WANTED_BYTES);
        judge(
            "/dev/shm",
            found,
            small.then(|| {
                // The node's own segments have no place in /dev/shm.
                let remedy =
                    "the object store does not use it, programs beside it may: `docker run --shm-size`, or remount it";
                (Severity::Degraded, remedy.to_owned())
            }),
        )
    }

    fn memory_finding(&self) -> Finding {
        let MemoryHeadroom { available_bytes, limiter, .. } = &self.memory;
        judge("memory", format!("{available_bytes} bytes left by {limiter}"), None)
    }

    fn huge_pages_finding(&self) -> Finding {
        let found = self.shmem_huge.clone().unwrap_or_else(|| "absent".to_owned());
        judge(
            "transparent huge pages",
            format!("shmem_enabled is {found}"),
            self.shmem_huge.is_none().then(|| {
                (Severity::Degraded, "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE, or --hugepages".to_owned())
            }),
        )
    }
}

/// Raises the soft limit of open files to the hard one. Returns the soft limit that holds then; `None`: unlimited.
pub fn raise_open_files() -> std::io::Result<Option<u64>> {
    raise(libc::RLIMIT_NOFILE)
}

/// Raises the soft limit of locked memory to the hard one, as [`raise_open_files`].
pub fn raise_memlock() -> std::io::Result<Option<u64>> {
    raise(libc::RLIMIT_MEMLOCK)
}

fn raise(resource: libc::__rlimit_resource_t) -> std::io::Result<Option<u64>> {
    let (soft, hard) = sys::rlimit(resource)?;
    if soft < hard {
        sys::set_soft_rlimit(resource, hard, hard)?;
    }
    Ok(finite(hard.max(soft)))
}

fn judge(name: &str, found: String, bad: Option<(Severity, String)>) -> Finding {
    let (severity, remedy) = match bad {
        Some((severity, remedy)) => (severity, Some(remedy)),
        None => (Severity::Good, None),
    };
    Finding { name: name.to_owned(), severity, found, remedy }
}

fn limit(resource: libc::__rlimit_resource_t) -> ResourceLimit {
    let (soft, hard) = sys::rlimit(resource).unwrap_or((libc::RLIM_INFINITY, libc::RLIM_INFINITY));
    ResourceLimit { soft: finite(soft), hard: finite(hard) }
}

fn finite(limit: u64) -> Option<u64> {
    (limit != libc::RLIM_INFINITY).then_some(limit)
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or("unlimited".to_owned(), |limit| limit.to_string())
}

fn io_uring(setting: Option<u64>) -> IoUring {
    match setting {
        None | Some(0) => IoUring::Everybody,
        Some(1) => IoUring::Privileged,
        Some(_) => IoUring::Nobody,
    }
}

fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The tightest quota of this process's group and those above it.
fn cgroup_cpus() -> Option<f64> {
    let quotas = memory::group_directories("cpu").into_iter().filter_map(|group| {
        let text = sysfs::text(group.join("cpu.max")).or_else(|| {
            let quota = sysfs::text(group.join("cpu.cfs_quota_us"))?;
            Some(format!("{quota} {}", sysfs::text(group.join("cpu.cfs_period_us"))?))
        })?;
        cpu_quota(&text)
    });
    quotas.min_by(f64::total_cmp)
}

/// `QUOTA PERIOD` in microseconds, with `max` or -1 for no quota.
fn cpu_quota(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
    (period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_run_a_node() {
        let limits = HostLimits::read();
        assert!(limits.kernel >= KERNEL_WANTED, "{}", limits.kernel_release);
        assert!(limits.memory.available_bytes > 0);
        let findings = limits.findings(1);
        assert!(findings.iter().all(|finding| finding.severity != Severity::Fatal), "{findings:?}");
        assert!(findings.windows(2).all(|pair| pair[0].severity >= pair[1].severity));
    }

    #[test]
    fn every_bad_limit_says_what_to_do() {
        let bad = HostLimits {
            memlock_bytes: ResourceLimit { soft: Some(65_536), hard: Some(65_536) },
            open_files: ResourceLimit { soft: Some(1024), hard: Some(4096) },
            io_uring: IoUring::Nobody,
            kernel_release: "5.10.0-21".into(),
            kernel: kernel_version("5.10.0-21"),
            memory: MemoryHeadroom::read(),
            cgroup_cpus: Some(1.5),
            dev_shm_bytes: Some(1 << 20),
            shmem_huge: None,
        };
        let findings = bad.findings(4);
        let of = |severity| -> Vec<&str> {
            let same = findings.iter().filter(|finding| finding.severity == severity);
            same.map(|finding| finding.name.as_str()).collect()
        };
        assert_eq!(of(Severity::Fatal), ["kernel", "io_uring", "memlock"]);
        assert_eq!(of(Severity::Degraded), ["open files", "cpu quota", "/dev/shm", "transparent huge pages"]);
        for finding in &findings {
            assert_eq!(finding.remedy.is_some(), finding.severity != Severity::Good, "{finding:?}");
        }
        let memlock = findings.iter().find(|finding| finding.name == "memlock").unwrap();
        assert!(memlock.remedy.as_deref().unwrap().contains("2048"), "{memlock:?}");
    }

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(kernel_version("6.18.44-fc"), (6, 18));
        assert_eq!(kernel_version("unknown"), (0, 0));
        assert_eq!(cpu_quota("150000 100000"), Some(1.5));
        assert_eq!((cpu_quota("max 100000"), cpu_quota("-1 100000"), cpu_quota("")), (None, None, None));
        assert_eq!(
            (io_uring(None), io_uring(Some(1)), io_uring(Some(2))),
            (IoUring::Everybody, IoUring::Privileged, IoUring::Nobody)
        );
    }

    #[test]
    fn open_files_are_raised_to_the_hard_limit() {
        let raised = raise_open_files().unwrap();
        let limits = HostLimits::read();
        assert_eq!(limits.open_files.soft, raised);
        assert_eq!(limits.open_files.soft, limits.open_files.hard);
    }
}
