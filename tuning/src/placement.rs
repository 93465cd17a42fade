//! What goes where: shards on cores, arenas on the memory of their nodes, cards and disks beside them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::arena::SEGMENT_GRAIN_BYTES;
use crate::cores::CoreChoice;
use crate::devices::{self, Disk, Nic};
use crate::host::Host;
use crate::hugepages::{self, HugePagePool};
use crate::memory::MemoryHeadroom;
use crate::topology::{Topology, TopologyError, TopologySource};

/// On machines of up to this many usable cores the threads of `--cores auto` are not pinned: there the node shares every core
/// with workers, and the kernel places it better than a fixed choice does.
pub const PIN_ABOVE_CORES: usize = 4;

/// Whether the threads of these cores are pinned to them.
pub fn is_pinned(choice: &CoreChoice, topology: &Topology) -> bool {
    *choice != CoreChoice::Auto || topology.usable_cores() > PIN_ABOVE_CORES
}

/// A segment to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArenaPlan {
    /// NUMA node whose memory it prefers; `None` on a machine with one.
    pub numa_node: Option<u32>,
    /// Its size, in whole huge pages but for the last.
    pub size_bytes: u64,
}

/// Which segments the object store is made of. With `auto` each NUMA node that has memory gets one, since workers run
/// everywhere and create their objects where they are; where cores were chosen, the nodes of those cores. Sizes go by
/// the memory of the nodes. `shards` are the hardware threads of the shards.
pub fn plan_arenas(topology: &Topology, choice: &CoreChoice, shards: &[u32], size_bytes: u64) -> Vec<ArenaPlan> {
    let with_memory: Vec<(u32, u64)> = topology
        .numa_nodes
        .iter()
        .filter(|node| node.memory_allowed && node.memory_bytes > 0)
        .map(|node| (node.index, node.memory_bytes))
        .collect();
    let of_shards = |&(node, _): &(u32, u64)| shards.iter().any(|&pu| topology.numa_node_of(pu) == Some(node));
    let nearest: Vec<(u32, u64)> = with_memory.iter().copied().filter(of_shards).collect();
    let nodes = match choice {
        CoreChoice::Auto => with_memory,
        // Cores on a node without memory: any memory is better than none.
        _ if nearest.is_empty() => with_memory,
        _ => nearest,
    };
    if topology.numa_nodes.len() < 2 || nodes.is_empty() {
        return vec![ArenaPlan { numa_node: None, size_bytes }];
    }
    split(&nodes, size_bytes)
}

/// Splits by weight, in whole huge pages; a node that would get none is left out, and the last has the rest.
fn split(nodes: &[(u32, u64)], size_bytes: u64) -> Vec<ArenaPlan> {
    let all: u128 = nodes.iter().map(|&(_, memory)| u128::from(memory)).sum();
    let mut plans: Vec<ArenaPlan> = Vec::new();
    let mut left = size_bytes;
    for &(node, memory) in nodes {
        let share = (u128::from(size_bytes) * u128::from(memory) / all.max(1)) as u64;
        let share = (share / SEGMENT_GRAIN_BYTES * SEGMENT_GRAIN_BYTES).min(left);
        if share > 0 {
            plans.push(ArenaPlan { numa_node: Some(node), size_bytes: share });
            left -= share;
        }
    }
    match plans.last_mut() {
        Some(last) => last.size_bytes += left,
        None => plans.push(ArenaPlan { numa_node: nodes.first().map(|&(node, _)| node), size_bytes }),
    }
    plans
}

/// A shard in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedShard {
    /// Its number.
    pub shard: u32,
    /// Hardware thread that it is pinned to; `None`: the kernel chooses.
    pub pu: Option<u32>,
    /// NUMA node of that thread.
    pub numa_node: Option<u32>,
}

/// An arena in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedArena {
    /// Its segment's number.
    pub segment: u32,
    /// NUMA node whose memory it prefers; `None`: any.
    pub numa_node: Option<u32>,
    /// Its size.
    pub size_bytes: u64,
    /// Its pages, in words: what it has, or what will be asked for.
    pub pages: String,
    /// Why the pages are not the ones asked for.
    pub fallback: Option<String>,
}

/// A directory for spilled objects, and what it is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedDirectory {
    /// The directory.
    pub path: PathBuf,
    /// Its disk; `None` where that isn't a disk of this machine.
    pub disk: Option<String>,
    /// NUMA node of that disk.
    pub numa_node: Option<u32>,
}

/// Directories in the order in which a shard on this NUMA node uses them, and how many of them, the first ones, are near it: those
/// on disks of its own node. Where there are none, or its node is not known, all are as near.
pub fn nearest_first(directories: &[PlacedDirectory], numa_node: Option<u32>) -> (Vec<PathBuf>, usize) {
    let is_near = |directory: &&PlacedDirectory| numa_node.is_some() && directory.numa_node == numa_node;
    let (near, far): (Vec<_>, Vec<_>) = directories.iter().partition(is_near);
    let count = if near.is_empty() { far.len() } else { near.len() };
    (near.into_iter().chain(far).map(|directory| directory.path.clone()).collect(), count)
}

/// Puts directories for spilled objects on their disks.
pub fn place_directories(disks: &[Disk], directories: &[PathBuf]) -> Vec<PlacedDirectory> {
    let place = |path: &PathBuf| {
        let disk = devices::disk_of(disks, path);
        PlacedDirectory {
            path: path.clone(),
            disk: disk.map(|disk| disk.name.clone()),
            numa_node: disk.and_then(|disk| disk.numa_node),
        }
    };
    directories.iter().map(place).collect()
}

/// Puts shards on hardware threads; `None`: the kernel chooses.
pub fn place_shards(topology: &Topology, pus: &[Option<u32>]) -> Vec<PlacedShard> {
    let place = |(shard, &pu): (usize, &Option<u32>)| PlacedShard {
        shard: shard as u32,
        pu,
        numa_node: pu.and_then(|pu| topology.numa_node_of(pu)),
    };
    pus.iter().enumerate().map(place).collect()
}

/// The shards that carry lanes to and from other nodes, ascending: those on the NUMA node of the fastest network card that is up, or
/// on those of several as fast. All of them where no card says where it is, or no shard is beside those.
pub fn lane_shards(shards: &[PlacedShard], nics: &[Nic]) -> Vec<u32> {
    let cards = || nics.iter().filter(|nic| nic.up && nic.numa_node.is_some());
    let fastest = cards().map(|nic| nic.speed_mbit_s).max();
    let is_beside = |shard: &&PlacedShard| {
        let mut fast = cards().filter(|nic| Some(nic.speed_mbit_s) == fastest);
        fast.any(|nic| nic.numa_node == shard.numa_node)
    };
    let numbers =
        |shards: &mut dyn Iterator<Item = &PlacedShard>| shards.map(|shard| shard.shard).collect::<Vec<u32>>();
    let beside = numbers(&mut shards.iter().filter(is_beside));
    if beside.is_empty() {
        return numbers(&mut shards.iter());
    }
    beside
}

/// Which node's shards and arenas are shown in their places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlacedBy {
    /// The running node of this process id.
    Node(u32),
    /// The settings that a node would start with.
    Settings,
}

/// A machine with a node in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// Whose shards and arenas these are.
    pub placed_by: PlacedBy,
    /// The machine.
    pub topology: Topology,
    /// Memory that can be taken, and what limits it.
    pub memory: MemoryHeadroom,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Pools of huge pages by NUMA node.
    pub huge_pages: Vec<HugePagePool>,
    /// Shards by number.
    pub shards: Vec<PlacedShard>,
    /// Arenas by segment.
    pub arenas: Vec<PlacedArena>,
    /// Directories for spilled objects.
    pub spill: Vec<PlacedDirectory>,
}

impl Picture {
    /// The machine, as yet without a node. Of a machine that hwloc was told about (`HWLOC_SYNTHETIC`) no files are known,
    /// so it has no cards, disks and pools.
    pub fn of(host: &Host) -> Result<Picture, TopologyError> {
        let topology = Topology::discover_on(host)?;
        let has_files = topology.source != TopologySource::HwlocSynthetic;
        Ok(Picture {
            placed_by: PlacedBy::Settings,
            memory: MemoryHeadroom::read_on(host),
            nics: if has_files { devices::nics(host) } else { Vec::new() },
            disks: if has_files { devices::disks(host) } else { Vec::new() },
            huge_pages: if has_files { hugepages::pools_on(host) } else { Vec::new() },
            shards: Vec::new(),
            arenas: Vec::new(),
            spill: Vec::new(),
            topology,
        })
    }

    /// Puts shards on hardware threads; `None`: the kernel chooses.
    pub fn place_shards(&mut self, pus: &[Option<u32>]) {
        self.shards = place_shards(&self.topology, pus);
    }

    /// Puts directories for spilled objects on their disks.
    pub fn place_spill(&mut self, directories: &[PathBuf]) {
        self.spill = place_directories(&self.disks, directories);
    }

    /// The shards that are nearest to a device of a NUMA node: those on the node, or all where none is or the node is unknown.
    pub fn shards_near(&self, numa_node: Option<u32>) -> Vec<u32> {
        let near = |shard: &&PlacedShard| numa_node.is_some() && shard.numa_node == numa_node;
        let on_node: Vec<u32> = self.shards.iter().filter(near).map(|shard| shard.shard).collect();
        match on_node.is_empty() {
            true => self.shards.iter().map(|shard| shard.shard).collect(),
            false => on_node,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cores::parse_cores;
    use crate::fake::{FakeHost, FakeNode};

    const MIB: u64 = 1 << 20;

    fn plan(nodes: &[(u32, u64)], cores: &str, size_bytes: u64) -> Vec<(Option<u32>, u64)> {
        let nodes: Vec<FakeNode> = nodes.iter().map(|&(cores, memory_mib)| FakeNode { cores, memory_mib }).collect();
        let topology = Topology::discover_on(&FakeHost::machine(&nodes, 1).host()).unwrap();
        let choice = parse_cores(cores).unwrap();
        let shards = choice.resolve(&topology).unwrap();
        let plans = plan_arenas(&topology, &choice, &shards, size_bytes);
        assert_eq!(plans.iter().map(|plan| plan.size_bytes).sum::<u64>(), size_bytes);
        plans.iter().map(|plan| (plan.numa_node, plan.size_bytes / MIB)).collect()
    }

    #[test]
    fn arenas_go_to_the_memory_of_their_shards() {
        let two = [(8, 1024), (8, 1024)];
        assert_eq!(plan(&[(8, 1024)], "auto", 100 * MIB), [(None, 100)]);
        assert_eq!(plan(&two, "auto", 100 * MIB), [(Some(0), 50), (Some(1), 50)]);
        assert_eq!(plan(&two, "numa:1", 100 * MIB), [(Some(1), 100)]);
        assert_eq!(plan(&two, "0-3", 100 * MIB), [(Some(0), 100)]);
        assert_eq!(plan(&two, "auto:2", 101 * MIB), [(Some(0), 50), (Some(1), 51)]);
    }

    #[test]
    fn uneven_nodes_get_arenas_by_their_memory() {
        let uneven = [(8, 3072), (8, 1024), (0, 4096), (2, 0)];
        assert_eq!(plan(&uneven, "auto", 80 * MIB), [(Some(0), 30), (Some(1), 10), (Some(2), 40)]);
        // Node 3 has cores and no memory.
        assert_eq!(plan(&uneven, "numa:3", 80 * MIB), [(Some(0), 30), (Some(1), 10), (Some(2), 40)]);
        assert_eq!(plan(&uneven, "numa:0,3:4", 80 * MIB), [(Some(0), 80)]);
        // Less than a huge page for each: one has all.
        assert_eq!(plan(&[(8, 1024), (8, 1024)], "auto", MIB), [(Some(0), 1)]);
    }

    #[test]
    fn a_cpuset_of_memory_keeps_arenas_away() {
        let fake = FakeHost::machine(&[FakeNode { cores: 4, memory_mib: 1024 }; 2], 1);
        fake.file("/proc/self/status", "Cpus_allowed_list:\t0-7\nMems_allowed_list:\t1");
        let topology = Topology::discover_on(&fake.host()).unwrap();
        let plans = plan_arenas(&topology, &CoreChoice::Auto, &[3, 7], 64 * MIB);
        assert_eq!(plans, [ArenaPlan { numa_node: Some(1), size_bytes: 64 * MIB }]);
    }

    #[test]
    fn small_machines_pin_only_what_was_chosen() {
        let topology =
            |cores| Topology::discover_on(&FakeHost::machine(&[FakeNode { cores, memory_mib: 64 }], 1).host()).unwrap();
        assert!(!is_pinned(&CoreChoice::Auto, &topology(4)));
        assert!(is_pinned(&CoreChoice::Auto, &topology(5)));
        assert!(is_pinned(&parse_cores("auto:1").unwrap(), &topology(2)));
    }

    #[test]
    fn devices_are_near_the_shards_of_their_node() {
        let fake = FakeHost::machine(&[FakeNode { cores: 8, memory_mib: 64 }; 2], 1);
        fake.device("block", "nvme0n1", 1, &[("dev", "259:0"), ("size", "8")]);
        fake.file("/proc/self/mountinfo", "21 1 259:0 / /spill rw - ext4 /dev/nvme0n1 rw");
        let mut picture = Picture::of(&fake.host()).unwrap();
        picture.place_shards(&[Some(7), Some(14), Some(15), None]);
        picture.place_spill(&["/spill/ray".into(), "/elsewhere".into()]);
        assert_eq!(picture.shards_near(Some(1)), [1, 2]);
        assert_eq!((picture.shards_near(Some(5)).len(), picture.shards_near(None).len()), (4, 4));
        assert_eq!((picture.spill[0].disk.as_deref(), picture.spill[0].numa_node), (Some("nvme0n1"), Some(1)));
        assert_eq!(picture.spill[1].disk, None);
    }

    fn directory(path: &str, numa_node: Option<u32>) -> PlacedDirectory {
        PlacedDirectory { path: path.into(), disk: None, numa_node }
    }

    #[test]
    fn a_shard_spills_to_the_disks_of_its_own_node_first() {
        let all = [directory("/a", Some(0)), directory("/b", Some(1)), directory("/c", None), directory("/d", Some(1))];
        let order = |directories: &[PlacedDirectory], node| {
            let (paths, near) = nearest_first(directories, node);
            (paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" "), near)
        };
        assert_eq!(order(&all, Some(0)), ("/a /b /c /d".to_owned(), 1));
        assert_eq!(order(&all, Some(1)), ("/b /d /a /c".to_owned(), 2));
        assert_eq!(order(&all, Some(2)), ("/a /b /c /d".to_owned(), 4));
        assert_eq!(order(&all, None), ("/a /b /c /d".to_owned(), 4));
        assert_eq!(order(&[], Some(0)), (String::new(), 0));
    }

    #[test]
    fn lanes_are_on_the_shards_beside_the_fastest_card() {
        let shard = |(shard, numa_node)| PlacedShard { shard, pu: None, numa_node };
        let shards = [(0, Some(0)), (1, Some(1)), (2, Some(0)), (3, Some(1)), (4, None)].map(shard);
        let nic = |numa_node, speed_mbit_s, up| Nic { name: "x".to_owned(), numa_node, speed_mbit_s, up, driver: None };
        let (slow, fast) = (nic(Some(0), Some(10_000), true), nic(Some(1), Some(100_000), true));
        assert_eq!(lane_shards(&shards, &[slow.clone(), fast.clone()]), [1, 3]);
        let down = nic(Some(1), Some(100_000), false);
        assert_eq!(lane_shards(&shards, &[down.clone(), slow.clone()]), [0, 2]);
        // A card that does not say how fast it is comes after one that does.
        assert_eq!(lane_shards(&shards, &[nic(Some(1), None, true), slow.clone()]), [0, 2]);
        assert_eq!(lane_shards(&shards, &[nic(Some(0), Some(100_000), true), fast.clone()]), [0, 1, 2, 3], "as fast");
        assert_eq!(lane_shards(&shards, &[nic(None, Some(1), true), down]), [0, 1, 2, 3, 4]);
        assert_eq!(lane_shards(&shards[..1], &[slow, fast]), [0], "none beside the fast one");
        assert_eq!(lane_shards(&shards, &[]), [0, 1, 2, 3, 4]);
        assert_eq!(lane_shards(&[], &[]), [0; 0]);
    }

    #[test]
    fn lanes_on_machines_of_several_numa_nodes() {
        let lanes = |nodes: usize, card: i32, cores: &str, pinned: bool| {
            let fake = FakeHost::machine(&vec![FakeNode { cores: 4, memory_mib: 64 }; nodes], 2);
            fake.device("net", "eth0", card, &[("operstate", "up"), ("speed", "100000")]);
            fake.device("net", "eth1", 0, &[("operstate", "up"), ("speed", "1000")]);
            let topology = Topology::discover_on(&fake.host()).unwrap();
            let pus = parse_cores(cores).unwrap().resolve(&topology).unwrap();
            let pus: Vec<Option<u32>> = pus.into_iter().map(|pu| pinned.then_some(pu)).collect();
            lane_shards(&place_shards(&topology, &pus), &devices::nics(&fake.host()))
        };
        assert_eq!(lanes(2, 1, "auto:4", true), [2, 3]);
        assert_eq!(lanes(2, 0, "auto:4", true), [0, 1]);
        assert_eq!(lanes(4, 2, "auto:8", true), [4, 5]);
        assert_eq!(lanes(4, 3, "numa:0-1:4", true), [0, 1, 2, 3], "no shard is beside the card");
        assert_eq!(lanes(2, 1, "auto:4", false), [0, 1, 2, 3], "the kernel moves the shards");
    }
}
