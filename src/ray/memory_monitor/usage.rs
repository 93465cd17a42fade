//! How much memory the node uses, and how much a process would give back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Memory of the node, or of the container that it lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    /// In use, in bytes; page cache that can be dropped is not counted.
    pub used_bytes: u64,
    /// All there is, in bytes.
    pub total_bytes: u64,
}

/// Why memory can't be read.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// A file of the system can't be read.
    #[error("can't read {path:?}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the system does not say what it should.
    #[error("{path:?} has no number for {field}")]
    Field {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        field: &'static str,
    },
}

/// Reads the node's memory from `/proc/meminfo` and from the memory cgroup, version 2 or 1.
#[derive(Clone, Debug)]
pub struct UsageReader {
    proc_dir: PathBuf,
    cgroup_dir: PathBuf,
    count_swap: bool,
}

/// Files and keys of one version of the memory cgroup.
struct CgroupFiles {
    limit: &'static str,
    usage: &'static str,
    stat: &'static str,
    inactive: &'static str,
    active: &'static str,
}

const CGROUP_V2: CgroupFiles = CgroupFiles {
    limit: "memory.max",
    usage: "memory.current",
    stat: "memory.stat",
    inactive: "inactive_file",
    active: "active_file",
};

const CGROUP_V1: CgroupFiles = CgroupFiles {
    limit: "memory/memory.limit_in_bytes",
    usage: "memory/memory.usage_in_bytes",
    stat: "memory/memory.stat",
    inactive: "total_inactive_file",
    active: "total_active_file",
};

impl UsageReader {
    /// Reads this machine; `count_swap` is Ray's `count_swap_in_memory_monitor`.
    pub fn new(count_swap: bool) -> Self {
        Self::with_roots("/proc", "/sys/fs/cgroup", count_swap)
    }

    /// Reads other directories in the place of `/proc` and `/sys/fs/cgroup`.
    pub fn with_roots(proc_dir: impl Into<PathBuf>, cgroup_dir: impl Into<PathBuf>, count_swap: bool) -> Self {
        Self { proc_dir: proc_dir.into(), cgroup_dir: cgroup_dir.into(), count_swap }
    }

    /// Memory of the cgroup where it has a limit below what the machine has, else of the machine.
    ///
    /// # Errors
    /// A `/proc/meminfo` that can't be read. A cgroup that can't be read counts as none, because most machines have none.
    pub fn read(&self) -> Result<NodeMemory, UsageError> {
        let machine = self.machine()?;
        let container = [CGROUP_V2, CGROUP_V1].iter().find_map(|files| self.container(files));
        Ok(container.filter(|c| c.total_bytes < machine.total_bytes).unwrap_or(machine))
    }

    fn machine(&self) -> Result<NodeMemory, UsageError> {
        let path = self.proc_dir.join("meminfo");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(UsageError::Read { path, source }),
        };
        let number = |field: &'static str| {
            let found = kib_field(&text, field);
            found.ok_or_else(|| UsageError::Field { path: path.clone(), field })
        };
        let (mut total, mut available) = (number("MemTotal:")?, number("MemAvailable:")?);
        if self.count_swap {
            total += number("SwapTotal:")?;
            available += number("SwapFree:")?;
        }
        Ok(NodeMemory { used_bytes: total.saturating_sub(available), total_bytes: total })
    }

    fn container(&self, files: &CgroupFiles) -> Option<NodeMemory> {
        let read = |name: &str| fs::read_to_string(self.cgroup_dir.join(name)).ok();
        // "max" is no number: no limit.
        let total_bytes = read(files.limit)?.trim().parse().ok()?;
        let usage: u64 = read(files.usage)?.trim().parse().ok()?;
        let stat = read(files.stat)?;
        let cached = stat_field(&stat, files.inactive)? + stat_field(&stat, files.active)?;
        Some(NodeMemory { used_bytes: usage.saturating_sub(cached), total_bytes })
    }
}

/// Bytes that would be free if a process ended: what it shares with no other, as in the stock raylet. `None` where it is
/// gone or not ours to look at.
pub fn process_used_bytes(pid: u32) -> Option<u64> {
    process_used_bytes_in(Path::new("/proc"), pid)
}

fn process_used_bytes_in(proc_dir: &Path, pid: u32) -> Option<u64> {
    let text = fs::read_to_string(proc_dir.join(pid.to_string()).join("smaps_rollup")).ok()?;
    let field = |name| kib_field(&text, name).unwrap_or(0);
    Some(field("Private_Clean:") + field("Private_Dirty:") + field("Private_Hugetlb:"))
}

/// A line such as `MemTotal:  24684092 kB`, in bytes.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// A line such as `inactive_file 4096`, in bytes.
fn stat_field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n\
                           SwapTotal:       500 kB\nSwapFree:        200 kB\n";

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, UsageReader) {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [("meminfo", MEMINFO)].iter().chain(files) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let reader = UsageReader::with_roots(dir.path(), dir.path(), false);
        (dir, reader)
    }

    fn kib(used: u64, total: u64) -> NodeMemory {
        NodeMemory { used_bytes: used * 1024, total_bytes: total * 1024 }
    }

    #[test]
    fn a_machine_without_limits_is_read_from_meminfo() {
        let (dir, reader) = machine(&[("memory.max", "max\n"), ("memory.current", "1\n"), ("memory.stat", "")]);
        assert_eq!(reader.read().unwrap(), kib(600, 1000));
        let swap = UsageReader::with_roots(dir.path(), dir.path(), true);
        assert_eq!(swap.read().unwrap(), kib(900, 1500));
    }

    #[test]
    fn a_limited_cgroup_comes_first_and_its_cache_does_not_count() {
        let v2 = [
            ("memory.max", "512000\n"),
            ("memory.current", "307200\n"),
            ("memory.stat", "anon 5\nactive_file 102400\ninactive_file 51200\nfile 7\n"),
        ];
        assert_eq!(machine(&v2).1.read().unwrap(), kib(150, 500));
        let v1 = [
            ("memory/memory.limit_in_bytes", "512000\n"),
            ("memory/memory.usage_in_bytes", "307200\n"),
            ("memory/memory.stat", "active_file 1\ntotal_active_file 102400\ntotal_inactive_file 0\n"),
        ];
        assert_eq!(machine(&v1).1.read().unwrap(), kib(200, 500));
    }

    #[test]
    fn a_limit_above_the_machine_is_none() {
        let v1 = [
            ("memory/memory.limit_in_bytes", "9223372036854771712"),
            ("memory/memory.usage_in_bytes", "5"),
            ("memory/memory.stat", "total_active_file 0\ntotal_inactive_file 0\n"),
        ];
        assert_eq!(machine(&v1).1.read().unwrap(), kib(600, 1000));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let (dir, reader) = machine(&[("meminfo", "MemTotal: 5 kB\n")]);
        assert!(reader.read().unwrap_err().to_string().contains("MemAvailable"));
        fs::remove_file(dir.path().join("meminfo")).unwrap();
        assert!(matches!(reader.read(), Err(UsageError::Read { .. })));
    }

    #[test]
    fn this_machine_and_this_process_can_be_read() {
        let memory = UsageReader::new(false).read().unwrap();
        assert!(memory.used_bytes > 0 && memory.used_bytes < memory.total_bytes, "{memory:?}");
        let before = process_used_bytes(std::process::id()).unwrap();
        let block = std::hint::black_box(vec![7u8; 32 << 20]);
        let after = process_used_bytes(std::process::id()).unwrap();
        assert!(after >= before + (24 << 20), "{before} then {after}");
        drop(block);
        assert_eq!(process_used_bytes(u32::MAX), None);
    }
}
