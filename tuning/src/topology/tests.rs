use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::cores::{parse_cores, CoresError};

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

#[test]
fn this_machine_is_described_and_its_sources_agree() {
    let topology = Topology::discover().unwrap();
    assert_eq!(topology.source, TopologySource::Hwloc, "{:?}", topology.warnings);
    assert_eq!(topology.warnings, Vec::<String>::new());
    assert_eq!(topology.allowed_pus(), crate::sys::allowed_pus().unwrap());
    assert!(topology.numa_nodes.iter().map(|node| node.memory_bytes).sum::<u64>() > 0);
    let nodes: Vec<u32> = topology.numa_nodes.iter().map(|node| node.index).collect();
    assert!(topology.cores.iter().all(|core| nodes.contains(&core.numa_node)));
    let summary = topology.summary();
    assert_eq!(summary.cores, topology.usable_cores());
    assert!(summary.threads_per_core >= 1);
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
    assert_eq!(topology.smt_siblings(9), [8]);
    assert_eq!(topology.numa_node_of(16), None);
    let last = topology.caches.last().unwrap();
    assert_eq!((last.level, last.size_bytes, last.pus.len()), (3, 16 << 20, 8));
    assert_eq!(topology.summary().pus, "0-15");
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
    assert!(auto.iter().all(|&pu| topology.smt_siblings(pu).iter().all(|sibling| !auto.contains(sibling))));
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

/// A sysfs tree of two nodes, each one package of two cores with two threads: PUs 0, 1 | 2, 3 and siblings 4 apart.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Tree {
        let tree = Tree(std::env::temp_dir().join(format!("raylet-tuning-{name}-{}", std::process::id())));
        tree.file("cpu/online", "0-7");
        tree.file("node/online", "0-1");
        for node in 0..2u32 {
            let (first, second) = (node * 2, node * 2 + 4);
            tree.file(&format!("node/node{node}/cpulist"), &format!("{first}-{},{second}-{}", first + 1, second + 1));
            tree.file(
                &format!("node/node{node}/meminfo"),
                &format!("Node {node} MemTotal:  {} kB\n", 1024 * (node + 1)),
            );
        }
        for pu in 0..8u32 {
            let core = pu % 4;
            let node = core / 2;
            let cpu = format!("cpu/cpu{pu}");
            tree.file(&format!("{cpu}/topology/core_cpus_list"), &format!("{core},{}", core + 4));
            tree.file(&format!("{cpu}/topology/physical_package_id"), &node.to_string());
            tree.file(&format!("{cpu}/cache/index0/level"), "1");
            tree.file(&format!("{cpu}/cache/index0/type"), "Instruction");
            tree.file(&format!("{cpu}/cache/index3/level"), "3");
            tree.file(&format!("{cpu}/cache/index3/type"), "Unified");
            tree.file(&format!("{cpu}/cache/index3/size"), "32768K");
            let shared = format!("{}-{},{}-{}", node * 2, node * 2 + 1, node * 2 + 4, node * 2 + 5);
            tree.file(&format!("{cpu}/cache/index3/shared_cpu_list"), &shared);
        }
        tree
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn read(&self, allowed: &[u32]) -> Draft {
        from_sysfs::read(&self.0, allowed).unwrap()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn sysfs_alone_describes_a_machine_and_says_that_it_is_alone() {
    let tree = Tree::new("alone");
    let topology = Topology::choose(None, Some(tree.read(&[0, 1, 2, 3, 4, 5, 6, 7]))).unwrap();
    assert_eq!(topology.source, TopologySource::Sysfs);
    assert!(topology.warnings[0].contains("hwloc"), "{:?}", topology.warnings);
    assert_eq!((topology.packages.len(), topology.usable_cores()), (2, 4));
    assert_eq!(topology.smt_siblings(5), [1]);
    assert_eq!(topology.numa_node_of(6), Some(1));
    assert_eq!(topology.numa_nodes[1].memory_bytes, 2 << 20);
    let caches: Vec<_> = topology.caches.iter().map(|cache| (cache.level, cache.size_bytes, cache.pus.len())).collect();
    assert_eq!(caches, [(3, 32 << 20, 4), (3, 32 << 20, 4)]);
}

#[test]
fn pus_that_are_not_allowed_are_left_out() {
    let tree = Tree::new("allowed");
    let topology = Topology::choose(None, Some(tree.read(&[1, 2, 5]))).unwrap();
    assert_eq!(topology.allowed_pus(), [1, 2, 5]);
    assert_eq!((topology.usable_cores(), topology.smt_siblings(2).len()), (2, 0));
}

#[test]
fn sysfs_wins_where_the_sources_differ() {
    let tree = Tree::new("differ");
    let right = tree.read(&[0, 1, 2, 3]);
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
