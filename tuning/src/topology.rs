//! Packages, NUMA nodes, cores, hardware threads (PUs) and caches, as far as this process may use them.
//!
//! hwloc says what belongs to what; sysfs checks it, because a wrong NUMA node costs more than a missing one. Where they
//! differ, or hwloc doesn't work at all, sysfs is believed and [`Topology::warnings`] says so. PUs outside the process's
//! cpuset or affinity are left out. With `HWLOC_SYNTHETIC` or `HWLOC_XMLFILE` set, hwloc describes a machine that is not
//! this one: then neither sysfs nor affinity has a say.

mod from_hwloc;
mod from_sysfs;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::host::Host;
use crate::sys;
use crate::sysfs;

/// Where the topology comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopologySource {
    /// hwloc, and sysfs agrees.
    Hwloc,
    /// hwloc, describing another machine than this one (tests).
    HwlocSynthetic,
    /// sysfs alone: hwloc failed or was wrong. Everything works; see the warnings.
    Sysfs,
}

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Numbered from 0 in the order of the lowest PU.
    pub index: u32,
    /// Its usable PUs, ascending.
    pub pus: Vec<u32>,
}

/// Memory and the PUs that are nearest to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaNode {
    /// The kernel's index, as mbind takes it.
    pub index: u32,
    /// Its usable PUs, ascending; none for a node of memory only.
    pub pus: Vec<u32>,
    /// Its memory.
    pub memory_bytes: u64,
    /// Whether this process may take memory of it (cpuset).
    pub memory_allowed: bool,
}

/// A physical core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// Numbered from 0 in the order of the lowest PU.
    pub index: u32,
    /// Its package's [`Package::index`].
    pub package: u32,
    /// Its node's [`NumaNode::index`].
    pub numa_node: u32,
    /// Its usable PUs, ascending: more than one are SMT siblings.
    pub pus: Vec<u32>,
}

/// A data or unified cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// 1 is the nearest to the core.
    pub level: u32,
    /// Its size.
    pub size_bytes: u64,
    /// The usable PUs that share it, ascending.
    pub pus: Vec<u32>,
}

/// The machine as far as this process may use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Who says so.
    pub source: TopologySource,
    /// Sockets.
    pub packages: Vec<Package>,
    /// NUMA nodes; at least one.
    pub numa_nodes: Vec<NumaNode>,
    /// Physical cores with at least one usable PU; at least one.
    pub cores: Vec<Core>,
    /// Data and unified caches, by level and lowest PU.
    pub caches: Vec<Cache>,
    /// PUs that the machine has and that are switched off.
    pub offline_pus: Vec<u32>,
    /// PUs that are on and that this process may not use.
    pub forbidden_pus: Vec<u32>,
    /// Thousandths of a CPU that the control group's quota allows; `None`: no quota.
    pub cpu_quota_milli: Option<u64>,
    /// What is degraded, each with its cause.
    pub warnings: Vec<String>,
}

/// Why the machine can't be described.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Neither hwloc nor sysfs knows a PU that this process may use.
    #[error("no usable CPU core was found: hwloc {hwloc}, sysfs {sysfs}: mount /sys and check this process's cpuset")]
    NoCores {
        /// What came of hwloc.
        hwloc: &'static str,
        /// What came of sysfs.
        sysfs: &'static str,
    },
    /// The kernel doesn't say where this process may run.
    #[error("the cores that this process may use can't be read (sched_getaffinity: {0})")]
    Affinity(std::io::Error),
}

impl NumaNode {
    fn new(index: u32, memory_bytes: u64) -> NumaNode {
        NumaNode { index, pus: Vec::new(), memory_bytes, memory_allowed: true }
    }
}

/// What a source knows about one PU. Keys tell cores and packages apart and mean nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    pu: u32,
    core: u64,
    package: u64,
    numa_node: u32,
}

/// What a source knows about a machine, before it is ordered and numbered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Draft {
    places: Vec<Place>,
    caches: Vec<Cache>,
    /// Memory of each NUMA node by the kernel's index.
    memory_bytes: BTreeMap<u32, u64>,
}

impl Topology {
    /// Describes the machine, or the one that `HWLOC_SYNTHETIC` describes.
    pub fn discover() -> Result<Topology, TopologyError> {
        Topology::discover_on(&Host::this())
    }

    /// As [`Topology::discover`]; a machine that is not this one is known by its files alone.
    pub fn discover_on(host: &Host) -> Result<Topology, TopologyError> {
        if !host.is_this_machine() {
            let listed = host.status_line("Cpus_allowed_list").and_then(|list| sysfs::index_list(&list));
            let allowed = within_cpuset(host, listed.unwrap_or_default());
            let draft = from_sysfs::read(host, &allowed).filter(|draft| !draft.places.is_empty());
            let draft = draft.ok_or(TopologyError::NoCores { hwloc: "is not asked", sysfs: "lists none" })?;
            return Ok(Topology::assemble(TopologySource::Sysfs, draft, Vec::new()).bounded(host));
        }
        let another_machine = ["HWLOC_SYNTHETIC", "HWLOC_XMLFILE"].iter().any(|name| std::env::var_os(name).is_some());
        if another_machine {
            let draft = from_hwloc::read(|_| true).filter(|draft| !draft.places.is_empty());
            let draft = draft.ok_or(TopologyError::NoCores {
                hwloc: "can't describe the machine that HWLOC_SYNTHETIC or HWLOC_XMLFILE names",
                sysfs: "is not asked for such a machine",
            })?;
            return Ok(Topology::assemble(TopologySource::HwlocSynthetic, draft, Vec::new()));
        }
        let allowed = within_cpuset(host, sys::allowed_pus().map_err(TopologyError::Affinity)?);
        let by_hwloc = from_hwloc::read(|pu| allowed.binary_search(&pu).is_ok());
        let by_sysfs = from_sysfs::read(host, &allowed);
        Ok(Topology::choose(by_hwloc, by_sysfs)?.bounded(host))
    }

    /// Adds what the kernel and the control groups keep from this process.
    fn bounded(mut self, host: &Host) -> Topology {
        let list = |name: &str| {
            let text = host.text(format!("/sys/devices/system/cpu/{name}"));
            text.and_then(|text| sysfs::index_list(&text)).unwrap_or_default()
        };
        let (present, online, usable) = (list("present"), list("online"), self.allowed_pus());
        self.offline_pus = present.into_iter().filter(|pu| !online.contains(pu)).collect();
        self.forbidden_pus = online.into_iter().filter(|pu| !usable.contains(pu)).collect();
        self.cpu_quota_milli = cgroup::cpu_quota_milli(host);
        let by_status = host.status_line("Mems_allowed_list").and_then(|list| sysfs::index_list(&list));
        for allowed in [by_status, cgroup::cpuset_mems(host)].into_iter().flatten() {
            self.numa_nodes.iter_mut().for_each(|node| node.memory_allowed &= allowed.contains(&node.index));
        }
        self
    }

    fn choose(by_hwloc: Option<Draft>, by_sysfs: Option<Draft>) -> Result<Topology, TopologyError> {
        let known = |draft: &Draft| !draft.places.is_empty();
        let by_hwloc = by_hwloc.filter(known).map(|draft| Topology::assemble(TopologySource::Hwloc, draft, Vec::new()));
        let by_sysfs = by_sysfs.filter(known).map(|draft| Topology::assemble(TopologySource::Sysfs, draft, Vec::new()));
        match (by_hwloc, by_sysfs) {
            (Some(mut hwloc), Some(mut sysfs)) => {
                if let Some(difference) = difference(&hwloc, &sysfs) {
                    sysfs.warnings.push(format!("hwloc and sysfs differ in {difference}: sysfs is believed"));
                    return Ok(sysfs);
                }
                // The kernel's own number, not rounded by anyone.
                for (node, same) in hwloc.numa_nodes.iter_mut().zip(&sysfs.numa_nodes) {
                    node.memory_bytes = same.memory_bytes;
                }
                Ok(hwloc)
            }
            (Some(mut hwloc), None) => {
                hwloc.warnings.push("sysfs describes no cores (is /sys mounted?): hwloc is believed unchecked".into());
                Ok(hwloc)
            }
            (None, Some(mut sysfs)) => {
                sysfs.warnings.push("hwloc can't describe this machine: sysfs is used instead".into());
                Ok(sysfs)
            }
            (None, None) => Err(TopologyError::NoCores { hwloc: "failed", sysfs: "lists none" }),
        }
    }

    fn assemble(source: TopologySource, draft: Draft, warnings: Vec<String>) -> Topology {
        let Draft { mut places, mut caches, memory_bytes } = draft;
        places.sort_by_key(|place| place.pu);
        places.dedup_by_key(|place| place.pu);
        let mut topology = Topology {
            source,
            packages: vec![],
            numa_nodes: vec![],
            cores: vec![],
            caches: vec![],
            offline_pus: vec![],
            forbidden_pus: vec![],
            cpu_quota_milli: None,
            warnings,
        };
        let (mut packages, mut cores) = (BTreeMap::new(), BTreeMap::new());
        let mut nodes: BTreeMap<u32, NumaNode> =
            memory_bytes.iter().map(|(&index, &memory_bytes)| (index, NumaNode::new(index, memory_bytes))).collect();
        for place in places {
            let package = *packages.entry(place.package).or_insert_with(|| {
                topology.packages.push(Package { index: topology.packages.len() as u32, pus: Vec::new() });
                topology.packages.len() - 1
            });
            topology.packages[package].pus.push(place.pu);
            let core = *cores.entry(place.core).or_insert_with(|| {
                let index = topology.cores.len() as u32;
                let (package, numa_node) = (package as u32, place.numa_node);
                topology.cores.push(Core { index, package, numa_node, pus: Vec::new() });
                topology.cores.len() - 1
            });
            topology.cores[core].pus.push(place.pu);
            let absent = || NumaNode::new(place.numa_node, 0);
            nodes.entry(place.numa_node).or_insert_with(absent).pus.push(place.pu);
        }
        topology.numa_nodes = nodes.into_values().collect();
        caches.retain(|cache| !cache.pus.is_empty());
        caches.sort_by_key(|cache| (cache.level, cache.pus.first().copied()));
        caches.dedup();
        topology.caches = caches;
        topology
    }

    /// PUs that this process may use, ascending.
    pub fn allowed_pus(&self) -> Vec<u32> {
        let mut pus: Vec<u32> = self.cores.iter().flat_map(|core| core.pus.iter().copied()).collect();
        pus.sort_unstable();
        pus
    }

    /// Physical cores that this process may use.
    pub fn usable_cores(&self) -> usize {
        self.cores.len()
    }

    /// The core that a PU belongs to.
    pub fn core_of(&self, pu: u32) -> Option<&Core> {
        self.cores.iter().find(|core| core.pus.contains(&pu))
    }

    /// The NUMA node (kernel's index) that is nearest to a PU.
    pub fn numa_node_of(&self, pu: u32) -> Option<u32> {
        self.core_of(pu).map(|core| core.numa_node)
    }
}

/// The PUs that the cpuset allows too. The kernel takes a cpuset into the affinity, so this matters where the files are
/// another machine's.
fn within_cpuset(host: &Host, mut pus: Vec<u32>) -> Vec<u32> {
    if let Some(cpuset) = cgroup::cpuset_cpus(host) {
        pus.retain(|pu| cpuset.contains(pu));
    }
    pus
}

/// What two descriptions of one machine disagree about that placement depends on.
fn difference(hwloc: &Topology, sysfs: &Topology) -> Option<&'static str> {
    if hwloc.allowed_pus() != sysfs.allowed_pus() {
        return Some("the usable PUs");
    }
    let nodes = |topology: &Topology| -> Vec<_> {
        topology.numa_nodes.iter().map(|node| (node.index, node.pus.clone())).collect()
    };
    if nodes(hwloc) != nodes(sysfs) {
        return Some("the NUMA nodes");
    }
    let cores = |topology: &Topology| -> Vec<_> { topology.cores.iter().map(|core| core.pus.clone()).collect() };
    (cores(hwloc) != cores(sysfs)).then_some("the SMT siblings")
}

#[cfg(test)]
#[path = "topology/tests.rs"]
mod tests;
