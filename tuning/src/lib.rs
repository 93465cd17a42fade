//! The host under a node: which cores and memory there are, shared-memory segments that never kill their clients,
//! and the limits that a machine sets.
//!
//! | module | answers |
//! |---|---|
//! | [`host`] | the machine that is looked at: files below a root, answers to system calls ([`probes`]) |
//! | [`topology`] | packages, NUMA nodes, cores, hardware threads and caches that this process may use |
//! | [`devices`] | network cards and disks, by NUMA node |
//! | [`cores`] | what `--cores 0-15,18`, `auto:4` or `numa:0` means on this machine |
//! | [`placement`] | which arenas are made on which node, and the machine with a node in place |
//! | [`pinning`] | which NUMA node a leased worker is bound to |
//! | [`arena`] | [`Segment`]: memory shared with clients through a file descriptor, with the page kind that was got and why |
//! | [`warm`] | [`Warmer`]: touches pages ahead of demand, while the machine is idle |
//! | [`hugepages`] | the kernel's pools of 2 MiB and 1 GiB pages per NUMA node, and reserving from them |
//! | [`memory`] | how much memory this process can still take, and what limits it |
//! | [`cgroup`] | what control groups allow: CPUs, quota, memory nodes, processes |
//! | [`limits`] | limits that a node raises for itself, and what it wants |
//! | [`doctor`] | what of a machine costs a node speed, with the commands that mend it |
//! | [`tune`] | settings that last: plan, diff, apply, undo |
//!
//! Everything here is synchronous and meant for start-up or a helper thread, except [`Segment::ensure_backed`] on a
//! range that is backed already: that is a few loads and is made for the hot path.

pub mod arena;
mod backing;
pub mod cgroup;
pub mod cores;
pub mod devices;
pub mod doctor;
#[cfg(test)]
mod fake;
pub mod host;
pub mod hugepages;
pub mod limits;
pub mod memory;
pub mod pages;
pub mod pinning;
pub mod placement;
mod privatefs;
pub mod probes;
mod sys;
mod sysfs;
pub mod topology;
pub mod tune;
pub mod warm;

pub use arena::{ArenaError, Segment, SegmentReport, SegmentRequest};
pub use cores::{parse_cores, CoreChoice, CoresError};
pub use host::Host;
pub use hugepages::{HugePagePool, HugePagesError, HugePagesReserved};
pub use memory::{MemoryHeadroom, MemoryLimiter};
pub use pages::{PageChoice, PageKind};
pub use pinning::WorkerPlaces;
pub use placement::{plan_arenas, ArenaPlan, Picture};
pub use topology::{Topology, TopologyError, TopologySource};
pub use warm::{WarmStats, Warmer};
