use std::process::Command;

use super::*;
use crate::cores::{parse_cores, CoresError};
use crate::fake::{FakeHost, FakeNode};

const TWO_NODES: &str = "Package:2 [numa(memory=34359738368)] L3:1(size=16777216) Core:4 PU:2";

/// Runs one test of this binary again in a process with this environment, since hwloc reads its own. Returns true in
/// that process and false, after it has passed, in the one that started it.
fn inside(name: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os("RAYLET_TUNING_TEST_CHILD").is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("topology::tests::{name}"), "--nocapture", "--test-threads=1"])
        .env("RAYLET_TUNING_TEST_CHILD", "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

/// The usable PUs that share a core with this one, itself left out.
fn siblings(topology: &Topology, pu: u32) -> Vec<u32> {
    let pus = topology.core_of(pu).map(|core| core.pus.as_slice()).unwrap_or_default();
    pus.iter().copied().filter(|&other| other != pu).collect()
}

#[test]
fn this_machine_is_described_and_its_sources_agree() {
    let topology = Topology::discover().unwrap();
    assert_eq!(topology.source, TopologySource::Hwloc, "{:?}", topology.warnings);
    assert_eq!(topology.warnings, Vec::<String>::new());
    assert_eq!(topology.allowed_pus(), crate::sys::allowed_pus().unwrap());
    assert!(topology.numa_nodes.iter().map(|node| node.memory_bytes).sum::<u64>() > 0);
    let nodes: Vec<u32> = topology.numa_nodes.iter().map(|node| node.index).collect();
    assert!(topology.cores.iter().all(|core| nodes.contains(&core.numa_node)));
    assert!(topology.numa_nodes.iter().any(|node| node.memory_allowed));
}

#[test]
fn a_synthetic_machine_has_two_nodes() {
    if !inside("a_synthetic_machine_has_two_nodes", &[("HWLOC_SYNTHETIC", TWO_NODES)]) {
        return;
    }
    let topology = Topology::discover().unwrap();
    assert_eq!(topology.source, TopologySource::HwlocSynthetic);
    assert_eq!((topology.packages.len(), topology.usable_cores()), (2, 8));
    assert_eq!(topology.allowed_pus(), (0..16).collect::<Vec<u32>>());
    let nodes: Vec<_> =
        topology.numa_nodes.iter().map(|node| (node.index, node.pus.len(), node.memory_bytes)).collect();
    assert_eq!(nodes, [(0, 8, 32 << 30), (1, 8, 32 << 30)]);
    assert_eq!((topology.numa_node_of(7), topology.numa_node_of(8)), (Some(0), Some(1)));
    assert_eq!(siblings(&topology, 9), [8]);
    assert_eq!(topology.numa_node_of(16), None);
    let last = topology.caches.last().unwrap();
    assert_eq!((last.level, last.size_bytes, last.pus.len()), (3, 16 << 20, 8));
}

#[test]
fn cores_are_chosen_on_a_synthetic_machine() {
    let machine = "Package:2 [numa(memory=1073741824)] Core:16 PU:2";
    if !inside("cores_are_chosen_on_a_synthetic_machine", &[("HWLOC_SYNTHETIC", machine)]) {
        return;
    }
    let topology = Topology::discover().unwrap();
    // 32 cores: 4 shards, two on each node, on different cores.
    let auto = parse_cores("auto").unwrap().resolve(&topology).unwrap();
    let nodes: Vec<_> = auto.iter().map(|&pu| topology.numa_node_of(pu).unwrap()).collect();
    assert_eq!(nodes, [0, 0, 1, 1]);
    assert!(auto.iter().all(|&pu| siblings(&topology, pu).iter().all(|sibling| !auto.contains(sibling))));
    assert_eq!(parse_cores("62-63,0").unwrap().resolve(&topology), Ok(vec![0, 62, 63]));
    let error = parse_cores("60-65").unwrap().resolve(&topology).unwrap_err();
    assert_eq!(error, CoresError::NotAllowed { missing: "64-65".into(), allowed: "0-63".into() });
}

#[test]
fn affinity_is_honoured() {
    let all = crate::sys::allowed_pus().unwrap();
    let only = all[all.len() - 1];
    // taskset is not everywhere, so a thread of this process narrows its own affinity.
    let topology = std::thread::spawn(move || {
        crate::sys::run_only_on(only).unwrap();
        Topology::discover().unwrap()
    })
    .join()
    .unwrap();
    assert_eq!(topology.allowed_pus(), [only]);
    assert_eq!(topology.source, TopologySource::Hwloc, "{:?}", topology.warnings);
}

/// Two nodes of two cores with two threads: PUs 0, 1 | 2, 3 and siblings 4 apart.
fn two_small_nodes() -> FakeHost {
    let node = |memory_mib| FakeNode { cores: 2, memory_mib };
    FakeHost::machine(&[node(1), node(2)], 2)
}

fn read(fake: &FakeHost, allowed: &[u32]) -> Draft {
    from_sysfs::read(&fake.host(), allowed).unwrap()
}

#[test]
fn sysfs_alone_describes_a_machine_and_says_that_it_is_alone() {
    let tree = two_small_nodes();
    let topology = Topology::choose(None, Some(read(&tree, &[0, 1, 2, 3, 4, 5, 6, 7]))).unwrap();
    assert_eq!(topology.source, TopologySource::Sysfs);
    assert!(topology.warnings[0].contains("hwloc"), "{:?}", topology.warnings);
    assert_eq!((topology.packages.len(), topology.usable_cores()), (2, 4));
    assert_eq!(siblings(&topology, 5), [1]);
    assert_eq!(topology.numa_node_of(6), Some(1));
    assert_eq!(topology.numa_nodes[1].memory_bytes, 2 << 20);
    let caches: Vec<_> = topology.caches.iter().map(|cache| (cache.level, cache.size_bytes, cache.pus.len())).collect();
    assert_eq!(caches, [(3, 32 << 20, 4), (3, 32 << 20, 4)]);
}

#[test]
fn pus_that_are_not_allowed_are_left_out() {
    let tree = two_small_nodes();
    let topology = Topology::choose(None, Some(read(&tree, &[1, 2, 5]))).unwrap();
    assert_eq!(topology.allowed_pus(), [1, 2, 5]);
    assert_eq!((topology.usable_cores(), siblings(&topology, 2).len()), (2, 0));
}

#[test]
fn sysfs_wins_where_the_sources_differ() {
    let tree = two_small_nodes();
    let right = read(&tree, &[0, 1, 2, 3]);
    let agreed = Topology::choose(Some(right.clone()), Some(right.clone())).unwrap();
    assert_eq!((agreed.source, agreed.warnings.len()), (TopologySource::Hwloc, 0));
    let mut wrong = right.clone();
    wrong.places[2].numa_node = 0;
    let topology = Topology::choose(Some(wrong), Some(right)).unwrap();
    assert_eq!(topology.source, TopologySource::Sysfs);
    assert!(topology.warnings[0].contains("NUMA nodes"), "{:?}", topology.warnings);
    assert_eq!(topology.numa_node_of(2), Some(1));
    let error = Topology::choose(None, None).unwrap_err().to_string();
    assert!(error.contains("/sys"), "{error}");
}

#[test]
fn offline_cores_a_cpuset_and_a_quota_are_seen() {
    let fake = FakeHost::machine(&[FakeNode { cores: 4, memory_mib: 1024 }; 2], 1);
    fake.file("/sys/devices/system/cpu/present", "0-9");
    fake.file("/sys/devices/system/cpu/online", "0-6");
    fake.file("/proc/self/cgroup", "0::/box");
    fake.file("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu");
    fake.file("/sys/fs/cgroup/box/cpuset.cpus.effective", "2,3,6");
    fake.file("/sys/fs/cgroup/box/cpuset.mems.effective", "0");
    fake.file("/sys/fs/cgroup/box/cpu.max", "150000 100000");
    let topology = Topology::discover_on(&fake.host()).unwrap();
    assert_eq!(topology.allowed_pus(), [2, 3, 6]);
    assert_eq!(
        (topology.offline_pus.as_slice(), topology.forbidden_pus.as_slice()),
        (&[7, 8, 9][..], &[0, 1, 4, 5][..])
    );
    assert_eq!(topology.cpu_quota_milli, Some(1500));
    let allowed: Vec<bool> = topology.numa_nodes.iter().map(|node| node.memory_allowed).collect();
    assert_eq!(allowed, [true, false]);
    fake.file("/sys/fs/cgroup/box/cpuset.cpus.effective", "40");
    assert!(Topology::discover_on(&fake.host()).is_err(), "no usable core is left");
}

#[test]
fn four_uneven_nodes_are_described() {
    let nodes = [(8, 4096), (8, 4096), (2, 1024), (0, 8192)].map(|(cores, memory_mib)| FakeNode { cores, memory_mib });
    let topology = Topology::discover_on(&FakeHost::machine(&nodes, 2).host()).unwrap();
    let seen: Vec<_> = topology.numa_nodes.iter().map(|node| (node.pus.len(), node.memory_bytes >> 20)).collect();
    assert_eq!(seen, [(16, 4096), (16, 4096), (4, 1024), (0, 8192)]);
    assert_eq!((topology.packages.len(), topology.usable_cores()), (3, 18));
    assert_eq!((topology.numa_node_of(17), siblings(&topology, 17)), (Some(2), vec![35]));
}
