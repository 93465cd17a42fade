//! A machine for tests: files in a directory of its own, answers as the test wants them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arena::ArenaError;
use crate::host::Host;
use crate::pages::PageKind;
use crate::probes::{Clock, DiskSpeed, Probes, Rings};

/// The machine's directory, which goes when this is dropped, and its answers.
pub(crate) struct FakeHost {
    root: PathBuf,
    pub(crate) answers: Answers,
}

/// What the fake kernel says. `Err` holds an errno.
#[derive(Clone)]
pub(crate) struct Answers {
    pub(crate) rings: Result<Rings, i32>,
    pub(crate) filesystem: Result<(u64, u64), i32>,
    pub(crate) disk: Result<DiskSpeed, i32>,
    pub(crate) huge_pages: (PageKind, Option<String>),
    pub(crate) taken_ports: BTreeSet<u16>,
    pub(crate) clock: Result<Clock, i32>,
}

/// One NUMA node of a fake machine, which is a package of its own.
#[derive(Clone, Copy)]
pub(crate) struct FakeNode {
    pub(crate) cores: u32,
    pub(crate) memory_mib: u64,
}

impl FakeHost {
    pub(crate) fn new() -> FakeHost {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("raylet-tuning-host-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(&root).unwrap();
        let answers = Answers {
            rings: Ok(Rings::default()),
            filesystem: Ok((8 << 30, 8 << 30)),
            disk: Ok(DiskSpeed { direct: true, write_mb_s: 2000.0, read_mb_s: 3000.0 }),
            huge_pages: (PageKind::ThpTmpfs, None),
            taken_ports: BTreeSet::new(),
            clock: Ok(Clock { synchronized: true, read_ns: 25 }),
        };
        FakeHost { root, answers }
    }

    /// A machine of these nodes with `threads` per core. Cores are numbered through the nodes, their second threads after
    /// all first ones, as Linux does on x86.
    pub(crate) fn machine(nodes: &[FakeNode], threads: u32) -> FakeHost {
        let fake = FakeHost::new();
        let cores: u32 = nodes.iter().map(|node| node.cores).sum();
        let all = cores * threads;
        fake.file("/sys/devices/system/cpu/online", &format!("0-{}", all - 1));
        fake.file("/sys/devices/system/cpu/present", &format!("0-{}", all - 1));
        fake.file("/sys/devices/system/node/online", &format!("0-{}", nodes.len() - 1));
        fake.file("/proc/self/status", &format!("Name:\tx\nUid:\t0\t0\t0\t0\nCpus_allowed_list:\t0-{}\n", all - 1));
        let mut first = 0;
        for (index, node) in nodes.iter().enumerate() {
            let list = |threads: std::ops::Range<u32>| -> String {
                let runs = threads.map(|t| format!("{}-{}", first + t * cores, first + t * cores + node.cores - 1));
                runs.collect::<Vec<_>>().join(",")
            };
            let pus = if node.cores == 0 { String::new() } else { list(0..threads) };
            fake.file(&format!("/sys/devices/system/node/node{index}/cpulist"), &pus);
            let meminfo = format!("Node {index} MemTotal:  {} kB", node.memory_mib << 10);
            fake.file(&format!("/sys/devices/system/node/node{index}/meminfo"), &meminfo);
            for core in first..first + node.cores {
                let siblings: Vec<String> = (0..threads).map(|t| (core + t * cores).to_string()).collect();
                for pu in (0..threads).map(|t| core + t * cores) {
                    let cpu = format!("/sys/devices/system/cpu/cpu{pu}");
                    fake.file(&format!("{cpu}/topology/core_cpus_list"), &siblings.join(","));
                    fake.file(&format!("{cpu}/topology/physical_package_id"), &index.to_string());
                    fake.file(&format!("{cpu}/cache/index3/level"), "3");
                    fake.file(&format!("{cpu}/cache/index3/type"), "Unified");
                    fake.file(&format!("{cpu}/cache/index3/size"), "32768K");
                    fake.file(&format!("{cpu}/cache/index3/shared_cpu_list"), &pus);
                }
            }
            first += node.cores;
        }
        fake
    }

    /// A PCI device with a NUMA node, and its place in a class: `net` or `block`.
    pub(crate) fn device(&self, class: &str, name: &str, numa_node: i32, files: &[(&str, &str)]) {
        let slot = format!("/sys/devices/pci0000:00/{name}.0");
        let own = format!("{slot}/{class}/{name}");
        self.file(&format!("{slot}/numa_node"), &numa_node.to_string());
        for (file, text) in files {
            self.file(&format!("{own}/{file}"), text);
        }
        self.link(&format!("{own}/device"), "../..");
        self.link(&format!("/sys/class/{class}/{name}"), &format!("../../devices/pci0000:00/{name}.0/{class}/{name}"));
    }

    pub(crate) fn file(&self, absolute: &str, text: &str) {
        let path = self.root.join(absolute.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    pub(crate) fn link(&self, absolute: &str, target: &str) {
        let path = self.root.join(absolute.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    pub(crate) fn read(&self, absolute: &str) -> Option<String> {
        fs::read_to_string(self.root.join(absolute.trim_start_matches('/'))).ok()
    }

    pub(crate) fn host(&self) -> Host {
        Host::at(&self.root, Box::new(self.answers.clone()))
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Probes for Answers {
    fn rings(&self) -> io::Result<Rings> {
        self.rings.clone().map_err(io::Error::from_raw_os_error)
    }

    fn filesystem_bytes(&self, _: &Path) -> io::Result<(u64, u64)> {
        self.filesystem.map_err(io::Error::from_raw_os_error)
    }

    fn disk_speed(&self, _: &Path) -> io::Result<DiskSpeed> {
        self.disk.map_err(io::Error::from_raw_os_error)
    }

    fn huge_pages(&self) -> Result<(PageKind, Option<String>), ArenaError> {
        Ok(self.huge_pages.clone())
    }

    fn bind(&self, port: u16) -> io::Result<()> {
        match self.taken_ports.contains(&port) {
            true => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
            false => Ok(()),
        }
    }

    fn clock(&self) -> io::Result<Clock> {
        self.clock.map_err(io::Error::from_raw_os_error)
    }
}
