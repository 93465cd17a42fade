//! Workers bound to the NUMA node of the shard that granted their lease (`--pin-workers`).
//!
//! Binding is affinity, set from outside for every thread of the process. Memory follows it: Linux places a page where the
//! thread runs that touches it first, unless the process asked for something else, and a worker is bound as soon as it is
//! started, before it has touched much. What it has already stays where it is. Moving it from outside (migrate_pages) would move
//! the object store's pages too, which belong where their arena was planned.
//!
//! A worker that stays without a lease for two rounds of the node's housekeeping may run anywhere again: between two
//! leases of the same kind nothing is done.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use raylet_shard::ids::{ShardId, WorkerId};
use raylet_tuning::{Topology, WorkerPlaces};
use rustc_hash::FxHashMap;
use rustix::process::Pid;
use rustix::thread::{sched_setaffinity, CpuSet};

use crate::near::Nears;

/// Rounds over the threads of a process: one that is bound no more starts threads that are bound already.
const ROUNDS_MAX: usize = 8;

/// Between two rounds of housekeeping, for a door that has none of its own.
pub const SETTLE_EVERY: Duration = Duration::from_millis(100);

/// Rounds of housekeeping that a worker without a lease stays bound.
const IDLE_ROUNDS: u8 = 2;

/// What a worker is doing, for [`Pins::settle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It has not registered yet.
    Starting,
    /// It is registered.
    Up,
    /// It is gone.
    Gone,
}

/// The workers of a door that are bound, and where.
#[derive(Debug)]
pub struct Pins {
    /// Shared by the doors of the node.
    places: Rc<RefCell<WorkerPlaces>>,
    bound: FxHashMap<WorkerId, Bound>,
    nears: Nears,
    refused: bool,
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    pid: u32,
    place: usize,
    /// CPU of its lease; `None` without one.
    leased_milli: Option<u64>,
    idle_rounds: u8,
}

impl Pins {
    /// For a node whose shards are pinned to these hardware threads; `None`, with a word in the log, where binding would mean
    /// nothing. `nears` hears of every binding.
    pub fn new(topology: &Topology, shards: &[Option<u32>], nears: Nears) -> Option<Pins> {
        let places = WorkerPlaces::new(topology, shards);
        if places.is_none() {
            tracing::info!(
                "pin_workers has nothing to do: the node may use one NUMA node only, or its shards are not pinned"
            );
        }
        let places = Rc::new(RefCell::new(places?));
        Some(Pins { places, bound: FxHashMap::default(), nears, refused: false })
    }

    /// For the node's other door: other workers, in the same places and with the same room.
    pub fn sibling(&self) -> Pins {
        let (places, nears) = (self.places.clone(), self.nears.clone());
        Pins { places, bound: FxHashMap::default(), nears, refused: self.refused }
    }

    /// Workers that are bound now.
    pub fn count(&self) -> usize {
        self.bound.len()
    }

    /// A process was started for a shard, and is to be a worker of which the name is not known yet.
    pub fn starting(&mut self, pid: u32, shard: ShardId) {
        let place = self.places.borrow().home(usize::from(shard));
        self.bind(pid, Some(place));
    }

    /// A process was started for a shard: its memory is to be there from the start.
    pub fn started(&mut self, worker: WorkerId, pid: u32, shard: ShardId) {
        let place = self.places.borrow().home(usize::from(shard));
        self.bound.insert(worker, Bound { pid, place, leased_milli: None, idle_rounds: 0 });
        self.bind(pid, Some(place));
    }

    /// A shard granted the worker a lease that holds so many thousandths of a CPU.
    pub fn leased(&mut self, worker: WorkerId, pid: u32, shard: ShardId, cpu_milli: u64) {
        // A lease of which the end was not heard.
        self.returned(&worker);
        let now = self.bound.get(&worker).map(|bound| bound.place);
        let place = self.places.borrow_mut().take(usize::from(shard), cpu_milli, now);
        self.bound.insert(worker, Bound { pid, place, leased_milli: Some(cpu_milli), idle_rounds: 0 });
        if now != Some(place) {
            self.bind(pid, Some(place));
        }
    }

    /// Its lease ended.
    pub fn returned(&mut self, worker: &WorkerId) {
        if let Some(bound) = self.bound.get_mut(worker) {
            if let Some(cpu_milli) = bound.leased_milli.take() {
                self.places.borrow_mut().give_back(bound.place, cpu_milli);
            }
        }
    }

    /// A round of housekeeping: workers that stay idle are released, those that are gone forgotten.
    pub fn settle(&mut self, doing: impl Fn(&WorkerId) -> Doing) {
        let mut released = Vec::new();
        let mut gone = Vec::new();
        for (worker, bound) in &mut self.bound {
            match doing(worker) {
                Doing::Gone => gone.push(*worker),
                Doing::Up if bound.leased_milli.is_none() => {
                    bound.idle_rounds += 1;
                    if bound.idle_rounds > IDLE_ROUNDS {
                        released.push(*worker);
                    }
                }
                Doing::Up | Doing::Starting => {}
            }
        }
        for worker in gone {
            self.returned(&worker);
            self.bound.remove(&worker);
        }
        for worker in released {
            if let Some(bound) = self.bound.remove(&worker) {
                self.bind(bound.pid, None);
            }
        }
    }

    /// Binds a process to a place, or to none. A process that is gone meanwhile is no fault.
    fn bind(&mut self, pid: u32, place: Option<usize>) {
        let places = self.places.borrow();
        let pus = match place.and_then(|place| places.get(place)) {
            Some(place) => {
                self.nears.bound(pid, place.numa_node);
                place.pus.clone()
            }
            None => places.all_pus(),
        };
        match bind_threads(pid, &pus) {
            Ok(threads) => tracing::debug!(pid, threads, ?pus, "bound a worker"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if !self.refused => {
                self.refused = true;
                tracing::warn!(pid, %error, ?pus, "a worker can't be bound to cores; pin_workers has no effect");
            }
            Err(_) => {}
        }
    }
}

/// Binds every thread of a process, and so every thread that they start later. Returns how many there were.
///
/// # Errors
/// The kernel's: no such process, hardware threads that may not be used.
fn bind_threads(pid: u32, pus: &[u32]) -> io::Result<usize> {
    let mut set = CpuSet::new();
    pus.iter().map(|&pu| pu as usize).filter(|&pu| pu < CpuSet::MAX_CPU).for_each(|pu| set.set(pu));
    let mut done: Vec<i32> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let before = done.len();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            let Some(thread) = thread.filter(|thread| !done.contains(thread)) else { continue };
            match Pid::from_raw(thread).map(|thread| sched_setaffinity(Some(thread), &set)) {
                // A thread that ended meanwhile needs nothing.
                None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => done.push(thread),
                Some(Err(error)) => return Err(error.into()),
            }
        }
        if done.len() == before {
            break;
        }
    }
    Ok(done.len())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use raylet_tuning::topology::{Core, NumaNode};

    use super::*;

    struct Sleeper(Child);

    impl Sleeper {
        fn new() -> Self {
            Sleeper(Command::new("sleep").arg("600").spawn().unwrap())
        }

        fn allowed(&self) -> String {
            let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            line.unwrap().trim().to_owned()
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Two NUMA nodes of one hardware thread each.
    fn pins() -> Pins {
        let mut topology = Topology::discover().unwrap();
        topology.numa_nodes = vec![node(0), node(1)];
        topology.cores = vec![core(0), core(1)];
        Pins::new(&topology, &[Some(0), Some(1)], Nears::default()).unwrap()
    }

    fn node(index: u32) -> NumaNode {
        NumaNode { index, pus: vec![index], memory_bytes: 1 << 30, memory_allowed: true }
    }

    fn core(index: u32) -> Core {
        Core { index, package: 0, numa_node: index, pus: vec![index] }
    }

    #[test]
    fn a_leased_worker_is_bound_and_an_idle_one_released() {
        let (mut pins, sleeper, worker) = (pins(), Sleeper::new(), WorkerId([1; 28]));
        let (pid, up) = (sleeper.0.id(), |_: &WorkerId| Doing::Up);
        pins.started(worker, pid, 1);
        assert_eq!(sleeper.allowed(), "1", "from the start");
        for _ in 0..10 {
            pins.settle(|_| Doing::Starting);
        }
        pins.leased(worker, pid, 0, 1000);
        assert_eq!(sleeper.allowed(), "0");
        for _ in 0..10 {
            pins.settle(up);
        }
        assert_eq!((sleeper.allowed().as_str(), pins.count()), ("0", 1), "while it has the lease");
        pins.returned(&worker);
        pins.settle(up);
        assert_eq!(sleeper.allowed(), "0", "the next lease may come at once");
        pins.leased(worker, pid, 0, 1000);
        pins.returned(&worker);
        for _ in 0..=IDLE_ROUNDS {
            pins.settle(up);
        }
        assert_eq!((sleeper.allowed().as_str(), pins.count()), ("0-1", 0));
    }

    #[test]
    fn what_is_over_goes_elsewhere_and_the_dead_make_room() {
        let (mut pins, sleepers) = (pins(), [Sleeper::new(), Sleeper::new(), Sleeper::new()]);
        let worker = |n: usize| WorkerId([n as u8; 28]);
        pins.leased(worker(0), sleepers[0].0.id(), 0, 1000);
        pins.leased(worker(1), sleepers[1].0.id(), 0, 1000);
        assert_eq!((sleepers[0].allowed().as_str(), sleepers[1].allowed().as_str()), ("0", "1"));
        pins.settle(|gone| if *gone == worker(0) { Doing::Gone } else { Doing::Up });
        pins.leased(worker(2), sleepers[2].0.id(), 0, 1000);
        assert_eq!(sleepers[2].allowed(), "0");
        assert_eq!(pins.count(), 2);
    }

    #[test]
    fn both_doors_fill_the_same_places() {
        let (mut ray, sleepers) = (pins(), [Sleeper::new(), Sleeper::new(), Sleeper::new()]);
        let mut native = ray.sibling();
        let worker = |n: usize| WorkerId([n as u8; 28]);
        native.starting(sleepers[0].0.id(), 1);
        assert_eq!((sleepers[0].allowed().as_str(), native.count()), ("1", 0), "before it has a name");
        native.started(worker(0), sleepers[0].0.id(), 1);
        native.leased(worker(0), sleepers[0].0.id(), 1, 1000);
        ray.leased(worker(1), sleepers[1].0.id(), 1, 1000);
        assert_eq!((sleepers[0].allowed().as_str(), sleepers[1].allowed().as_str()), ("1", "0"), "1 is full");
        // Each door judges its own workers.
        ray.settle(|known| if *known == worker(1) { Doing::Up } else { Doing::Gone });
        assert_eq!((ray.count(), native.count()), (1, 1));
        native.settle(|_| Doing::Gone);
        ray.leased(worker(2), sleepers[2].0.id(), 1, 1000);
        assert_eq!((sleepers[2].allowed().as_str(), native.count()), ("1", 0));
    }

    #[test]
    fn a_process_that_is_gone_is_no_fault_and_threads_that_may_not_be_used_are() {
        let mut sleeper = Sleeper::new();
        let nowhere = bind_threads(sleeper.0.id(), &[CpuSet::MAX_CPU as u32 - 1]).unwrap_err();
        assert_eq!(nowhere.raw_os_error(), Some(libc::EINVAL));
        sleeper.0.kill().unwrap();
        sleeper.0.wait().unwrap();
        assert_eq!(bind_threads(sleeper.0.id(), &[0]).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
