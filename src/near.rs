//! The memory segment that is nearest to a local client: that of the NUMA node where it runs. What it creates is placed there.
//!
//! For a worker that is bound ([`crate::workers::pinning`]) that is the node it is bound to, whenever that changes; for any other
//! process the node where its main thread last ran when it connected, since a process seldom leaves its node. On a node with
//! one segment none of this is looked at.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use raylet_tuning::{Segment, Topology};
use rustc_hash::FxHashMap;
use tokio::net::UnixStream;

/// No segment: the client's NUMA node has none, or is not known.
const NONE: u32 = u32::MAX;

/// Fields of `/proc/<pid>/stat` between the command, which ends with the last parenthesis, and `processor` (proc(5): field 39).
const FIELDS_BEFORE_PROCESSOR: usize = 36;

/// Processes that are forgotten together once they are gone; until then their entries are kept.
const FORGET_EVERY: usize = 256;

/// Where a client is. Cheap to clone and to ask: a core does at every create.
#[derive(Clone, Debug, Default)]
pub struct Near(Option<Arc<AtomicU32>>);

impl Near {
    /// Its segment; `None` where nothing is known, or there is one segment only.
    pub fn segment(&self) -> Option<u32> {
        let segment = self.0.as_ref()?.load(Ordering::Relaxed);
        (segment != NONE).then_some(segment)
    }
}

/// Where the clients of a node are. Lives on the control thread, which accepts connections and binds workers.
#[derive(Clone, Debug, Default)]
pub struct Nears(Option<Rc<Places>>);

#[derive(Debug)]
struct Places {
    topology: Topology,
    /// (NUMA node, segment).
    segments: Vec<(u32, u32)>,
    clients: RefCell<FxHashMap<u32, Weak<AtomicU32>>>,
}

impl Nears {
    /// For a node with these segments.
    pub fn new(topology: &Topology, segments: &[Arc<Segment>]) -> Self {
        Self::of_nodes(topology, segments.iter().map(|segment| segment.numa_node()))
    }

    fn of_nodes(topology: &Topology, nodes: impl Iterator<Item = Option<u32>>) -> Self {
        let numbered = nodes.enumerate().filter_map(|(segment, node)| Some((node?, segment as u32)));
        let segments: Vec<(u32, u32)> = numbered.collect();
        if segments.len() < 2 {
            return Self(None);
        }
        Self(Some(Rc::new(Places { topology: topology.clone(), segments, clients: RefCell::default() })))
    }

    /// The process at the other end of a connection.
    pub fn of_peer(&self, connection: &UnixStream) -> Near {
        let Some(places) = &self.0 else {
            return Near::default();
        };
        // 0 or none: a process of a namespace that this one does not see.
        let pid = connection.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        pid.map_or_else(Near::default, |pid| places.of_process(pid as u32))
    }

    /// A process was bound to a NUMA node.
    pub fn bound(&self, pid: u32, numa_node: u32) {
        let Some(places) = &self.0 else {
            return;
        };
        // Who connects later runs there already.
        if let Some(client) = places.clients.borrow().get(&pid).and_then(Weak::upgrade) {
            client.store(places.segment_on(Some(numa_node)), Ordering::Relaxed);
        }
    }
}

impl Places {
    fn of_process(&self, pid: u32) -> Near {
        let mut clients = self.clients.borrow_mut();
        if let Some(known) = clients.get(&pid).and_then(Weak::upgrade) {
            return Near(Some(known));
        }
        if clients.len().is_multiple_of(FORGET_EVERY) {
            clients.retain(|_, client| client.strong_count() > 0);
        }
        let node = last_ran_on(pid).and_then(|pu| self.topology.numa_node_of(pu));
        let client = Arc::new(AtomicU32::new(self.segment_on(node)));
        clients.insert(pid, Arc::downgrade(&client));
        Near(Some(client))
    }

    fn segment_on(&self, node: Option<u32>) -> u32 {
        self.segments.iter().find(|(numa_node, _)| Some(*numa_node) == node).map_or(NONE, |(_, segment)| *segment)
    }
}

/// The hardware thread on which a process's main thread last ran.
fn last_ran_on(pid: u32) -> Option<u32> {
    processor_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn processor_in(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(FIELDS_BEFORE_PROCESSOR)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use raylet_tuning::topology::{Core, NumaNode};
    use tokio::net::UnixListener;

    use super::*;

    /// NUMA nodes of one hardware thread each.
    fn topology(nodes: u32) -> Topology {
        let node = |index| NumaNode { index, pus: vec![index], memory_bytes: 1 << 30, memory_allowed: true };
        let core = |index| Core { index, package: 0, numa_node: index, pus: vec![index] };
        let mut topology = Topology::discover().unwrap();
        topology.numa_nodes = (0..nodes).map(node).collect();
        topology.cores = (0..nodes).map(core).collect();
        topology
    }

    #[test]
    fn the_processor_is_found_whatever_the_command_is_called() {
        let stat =
            "17 (a) b (c d) S 1 17 17 0 -1 4194304 100 0 0 0 1 2 0 0 20 0 1 0 5 4096 50 18446744073709551615 1 1 0 0 \
                    0 0 0 4096 0 0 0 0 17 11 0 0 0 0 0 0 0 0 0 0 0 0 0";
        assert_eq!(processor_in(stat), Some(11));
        assert_eq!(processor_in("17 (x) S 1"), None);
        assert_eq!(processor_in(""), None);
        let own = last_ran_on(std::process::id()).unwrap();
        assert!(fs::metadata(format!("/sys/devices/system/cpu/cpu{own}")).is_ok(), "{own}");
        assert_eq!(last_ran_on(u32::MAX), None);
    }

    #[test]
    fn a_bound_process_moves_with_all_its_connections() {
        let nears = Nears::of_nodes(&topology(3), [Some(0), Some(2)].into_iter());
        let places = nears.0.as_ref().unwrap();
        let pid = std::process::id();
        let (first, second) = (places.of_process(pid), places.of_process(pid));
        for (node, segment) in [(2, Some(1)), (0, Some(0)), (1, None), (2, Some(1))] {
            nears.bound(pid, node);
            assert_eq!((first.segment(), second.segment()), (segment, segment), "node {node}");
        }
        drop((first, second));
        // Nobody is connected: where it runs is looked at again.
        nears.bound(pid, 0);
        let again = places.of_process(pid);
        let expected = last_ran_on(pid).map(|pu| places.segment_on(places.topology.numa_node_of(pu)));
        assert_eq!(expected.filter(|segment| *segment != NONE), again.segment());
    }

    #[test]
    fn those_who_are_gone_are_forgotten() {
        let nears = Nears::of_nodes(&topology(2), [Some(0), Some(1)].into_iter());
        let places = nears.0.as_ref().unwrap();
        let kept = places.of_process(std::process::id());
        for pid in 0..10 * FORGET_EVERY as u32 {
            places.of_process(u32::MAX - pid);
            assert!(places.clients.borrow().len() <= FORGET_EVERY + 1);
        }
        nears.bound(std::process::id(), 1);
        assert_eq!(kept.segment(), Some(1));
    }

    #[tokio::test]
    async fn with_one_segment_nothing_is_known_of_anybody() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let _client = std::os::unix::net::UnixStream::connect(dir.path().join("s")).unwrap();
        let connection = listener.accept().await.unwrap().0;
        let nowhere = Nears::of_nodes(&topology(2), [None].into_iter());
        assert!(nowhere.of_peer(&connection).0.is_none());
        let nears = Nears::of_nodes(&topology(2), [Some(0), Some(1)].into_iter());
        let near = nears.of_peer(&connection);
        nears.bound(std::process::id(), 1);
        assert_eq!(near.segment(), Some(1), "the peer is this process");
    }
}
