//! Which hardware threads a leased worker is bound to: those of the NUMA node of the shard that granted its lease.
//!
//! All leases of a scheduling class are granted by one shard, and the work of a node is often of one class. So a shard's
//! NUMA node is where its workers go while there is room; what would be more than the node's hardware threads goes
//! to the NUMA node with the most room left.

use crate::topology::Topology;

/// Thousandths of a CPU in a hardware thread.
const MILLI_PER_PU: u64 = 1000;

/// A NUMA node with shards, and the workers bound to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPlace {
    /// The NUMA node (kernel's index).
    pub numa_node: u32,
    /// The hardware threads there that this process may use, ascending.
    pub pus: Vec<u32>,
    /// Thousandths of a CPU that leases of the workers bound here hold.
    pub taken_milli: u64,
}

impl WorkerPlace {
    fn room_milli(&self) -> u64 {
        (self.pus.len() as u64 * MILLI_PER_PU).saturating_sub(self.taken_milli)
    }
}

/// Where workers go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPlaces {
    places: Vec<WorkerPlace>,
    /// By shard: the place of its NUMA node.
    homes: Vec<usize>,
}

impl WorkerPlaces {
    /// The places of a node whose shards are pinned to these hardware threads. `None` where binding would mean nothing: the
    /// shards' threads are not pinned, or all that may be used is on one NUMA node.
    pub fn new(topology: &Topology, shards: &[Option<u32>]) -> Option<WorkerPlaces> {
        let allowed = topology.allowed_pus();
        let usable = |pus: &[u32]| pus.iter().copied().filter(|pu| allowed.contains(pu)).collect::<Vec<u32>>();
        let nodes: Vec<WorkerPlace> = topology
            .numa_nodes
            .iter()
            .map(|node| WorkerPlace { numa_node: node.index, pus: usable(&node.pus), taken_milli: 0 })
            .filter(|place| !place.pus.is_empty())
            .collect();
        if nodes.len() < 2 || shards.is_empty() {
            return None;
        }
        let home = |pu: &Option<u32>| {
            let node = topology.numa_node_of((*pu)?)?;
            nodes.iter().position(|place| place.numa_node == node)
        };
        let homes = shards.iter().map(home).collect::<Option<Vec<usize>>>()?;
        Some(WorkerPlaces { places: nodes, homes })
    }

    /// A place by its number.
    pub fn get(&self, place: usize) -> Option<&WorkerPlace> {
        self.places.get(place)
    }

    /// The place of a shard; that of shard 0 for one that there is not.
    pub fn home(&self, shard: usize) -> usize {
        self.homes.get(shard).or(self.homes.first()).copied().unwrap_or(0)
    }

    /// Finds a place for a worker whose lease holds so much CPU, and counts it there: that of the shard that granted the
    /// lease, else where the most room is, else the shard's all the same. `now` is where the worker is bound already,
    /// which wins where the shard's own has no room.
    pub fn take(&mut self, shard: usize, cpu_milli: u64, now: Option<usize>) -> usize {
        let fits = |place: usize| self.places.get(place).is_some_and(|place| place.room_milli() >= cpu_milli);
        let home = self.home(shard);
        let roomiest = (0..self.places.len()).max_by_key(|&place| self.places[place].room_milli());
        let choice = [Some(home), now, roomiest].into_iter().flatten().find(|&place| fits(place)).unwrap_or(home);
        self.places[choice].taken_milli += cpu_milli;
        choice
    }

    /// The lease of a worker ended.
    pub fn give_back(&mut self, place: usize, cpu_milli: u64) {
        if let Some(place) = self.places.get_mut(place) {
            place.taken_milli = place.taken_milli.saturating_sub(cpu_milli);
        }
    }

    /// Every hardware thread of all places: what a worker without a lease may use.
    pub fn all_pus(&self) -> Vec<u32> {
        let mut pus: Vec<u32> = self.places.iter().flat_map(|place| place.pus.iter().copied()).collect();
        pus.sort_unstable();
        pus
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cores::parse_cores;
    use crate::fake::{FakeHost, FakeNode};

    fn places(fake: &FakeHost, cores: &str) -> Option<WorkerPlaces> {
        let topology = Topology::discover_on(&fake.host()).unwrap();
        let pus = parse_cores(cores).unwrap().resolve(&topology).unwrap();
        WorkerPlaces::new(&topology, &pus.into_iter().map(Some).collect::<Vec<_>>())
    }

    fn machine(cores: &[u32], threads: u32) -> FakeHost {
        let nodes: Vec<FakeNode> = cores.iter().map(|&cores| FakeNode { cores, memory_mib: 1024 }).collect();
        FakeHost::machine(&nodes, threads)
    }

    #[test]
    fn a_worker_goes_to_the_node_of_its_shard_while_there_is_room() {
        let mut places = places(&machine(&[2, 2], 2), "auto:2").unwrap();
        assert_eq!(places.all_pus(), (0..8).collect::<Vec<_>>());
        // Shard 1 is on NUMA node 1, with 4 hardware threads.
        let taken: Vec<usize> = (0..4).map(|_| places.take(1, 1000, None)).collect();
        assert_eq!(taken, [1; 4]);
        assert_eq!(places.get(1).unwrap().pus, [2, 3, 6, 7]);
        assert_eq!(places.take(1, 1000, None), 0, "the node is full");
        assert_eq!(places.take(1, 0, None), 1, "what takes no CPU needs no room");
        assert_eq!(places.take(1, 5000, None), 1, "what fits nowhere goes to the shard's node");
        places.give_back(1, 5000);
        places.give_back(1, 1000);
        assert_eq!(places.take(1, 500, Some(0)), 1, "there is room again");
        assert_eq!(places.take(1, 1000, Some(0)), 0, "half a thread is not enough; it stays where it is");
    }

    #[test]
    fn of_four_uneven_nodes_the_roomiest_takes_what_is_over() {
        let mut places = places(&machine(&[2, 6, 0, 4], 1), "numa:0:2").unwrap();
        assert_eq!((places.home(0), places.home(1)), (0, 0));
        let taken: Vec<usize> = (0..5).map(|_| places.take(0, 1000, None)).collect();
        assert_eq!(taken, [0, 0, 1, 1, 2], "by what is left, the last of equals first; node 2 has memory only");
        assert_eq!(places.get(2).unwrap().numa_node, 3);
    }

    #[test]
    fn a_cpuset_leaves_its_threads_only() {
        let fake = machine(&[8, 8], 1);
        fake.file("/proc/self/status", "Cpus_allowed_list:\t2-3,12");
        let both = places(&fake, "2,12").unwrap();
        assert_eq!(
            (both.get(0).unwrap().pus.as_slice(), both.get(1).unwrap().pus.as_slice()),
            (&[2, 3][..], &[12][..])
        );
        fake.file("/proc/self/status", "Cpus_allowed_list:\t2-3");
        assert_eq!(places(&fake, "2"), None, "one NUMA node is left");
    }

    #[test]
    fn without_a_choice_nothing_is_bound() {
        let one = machine(&[8], 2);
        assert_eq!(places(&one, "0-1"), None);
        let topology = Topology::discover_on(&machine(&[2, 2], 1).host()).unwrap();
        assert_eq!(WorkerPlaces::new(&topology, &[None]), None, "a shard that the kernel moves is on no node");
        assert_eq!(WorkerPlaces::new(&topology, &[]), None);
    }
}
