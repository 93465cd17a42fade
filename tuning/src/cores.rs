//! What `--cores` means on a machine: which hardware threads the node's shards are pinned to.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::topology::Topology;

/// Shards that `auto` makes at most: one core serves many workers, and the cores are theirs to compute on.
pub const AUTO_CORES_MAX: usize = 16;
/// Usable cores for each shard that `auto` makes.
const AUTO_CORES_PER_SHARD: usize = 8;
/// Hardware threads that a list may name: more is a slip of the finger.
const LIST_MAX: usize = 4096;

/// What `--cores` may say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CoreChoice {
    /// As many as suit the machine; see [`CoreChoice::resolve`].
    Auto,
    /// Chosen as `auto` does, on some NUMA nodes or in a given number.
    Spread {
        /// NUMA nodes (kernel's indices) to choose from, ascending; `None`: all.
        numa_nodes: Option<Vec<u32>>,
        /// How many; `None`: the share that `auto` takes of those nodes.
        count: Option<u32>,
    },
    /// These hardware threads (the kernel's indices), ascending.
    List(Vec<u32>),
}

/// Why `--cores` can't be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CoresError {
    /// A part of the list is neither a number nor a range.
    #[error("--cores {text:?}: {part:?} is neither a number (3) nor a range (0-15): use auto, auto:4, numa:0, numa:0-1:4 or a list like 0-15,18")]
    Malformed {
        /// The whole value.
        text: String,
        /// The part that is wrong.
        part: String,
    },
    /// A range whose end is before its start.
    #[error("--cores {text:?}: the range {part:?} ends before it starts: write the lower core first")]
    Backwards {
        /// The whole value.
        text: String,
        /// The range.
        part: String,
    },
    /// The number of shards is none.
    #[error("--cores {text:?}: {part:?} is no number of shards from 1 to {LIST_MAX}")]
    BadCount {
        /// The whole value.
        text: String,
        /// What stands for the number.
        part: String,
    },
    /// A NUMA node without a core that this process may use.
    #[error(
        "--cores names NUMA node {node}, which has no core that this process may run on: those that have are {usable}"
    )]
    NoSuchNode {
        /// The node asked for.
        node: u32,
        /// Nodes with usable cores, as a list.
        usable: String,
    },
    /// More shards than hardware threads.
    #[error("--cores asks for {wanted} shards, but only {available} hardware threads are there to choose from: ask for fewer")]
    TooFew {
        /// Shards asked for.
        wanted: u32,
        /// Hardware threads that could be chosen.
        available: usize,
    },
    /// A core named twice.
    #[error("--cores {text:?}: {core} is named twice")]
    Twice {
        /// The whole value.
        text: String,
        /// The core.
        core: u32,
    },
    /// More cores than any machine has.
    #[error("--cores {text:?}: more than {LIST_MAX} cores are named")]
    TooMany {
        /// The whole value.
        text: String,
    },
    /// Nothing is named.
    #[error("--cores is empty: use auto or a list like 0-15,18")]
    Empty,
    /// Cores that this process can't run on.
    #[error(
        "--cores names {missing}, but this process may run on {allowed} only: choose among those, or widen its cpuset"
    )]
    NotAllowed {
        /// The named cores that are not allowed, as a list.
        missing: String,
        /// The allowed cores, as a list.
        allowed: String,
    },
}

/// Reads `auto`, `auto:COUNT`, `numa:NODES`, `numa:NODES:COUNT`, or a list of cores such as `0-15,18`.
pub fn parse_cores(text: &str) -> Result<CoreChoice, CoresError> {
    let trimmed = text.trim().to_ascii_lowercase();
    if trimmed.is_empty() {
        return Err(CoresError::Empty);
    }
    if let Some(rest) = trimmed.strip_prefix("numa:") {
        let (nodes, count) = match rest.split_once(':') {
            Some((nodes, count)) => (nodes, Some(parse_count(text, count)?)),
            None => (rest, None),
        };
        return Ok(CoreChoice::Spread { numa_nodes: Some(parse_list(text, nodes)?), count });
    }
    match trimmed.strip_prefix("auto") {
        Some("") => return Ok(CoreChoice::Auto),
        Some(rest) => {
            if let Some(count) = rest.strip_prefix(':') {
                return Ok(CoreChoice::Spread { numa_nodes: None, count: Some(parse_count(text, count)?) });
            }
        }
        None => {}
    }
    parse_list(text, &trimmed).map(CoreChoice::List)
}

fn parse_count(text: &str, part: &str) -> Result<u32, CoresError> {
    let bad = || CoresError::BadCount { text: text.to_owned(), part: part.to_owned() };
    part.trim().parse().ok().filter(|count| (1..=LIST_MAX as u32).contains(count)).ok_or_else(bad)
}

fn parse_list(text: &str, list: &str) -> Result<Vec<u32>, CoresError> {
    let mut indices = BTreeSet::new();
    for part in list.split(',').map(str::trim) {
        let malformed = || CoresError::Malformed { text: text.to_owned(), part: part.to_owned() };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| malformed());
        let (first, last) = (number(first)?, number(last)?);
        if last < first {
            return Err(CoresError::Backwards { text: text.to_owned(), part: part.to_owned() });
        }
        if (last - first) as usize >= LIST_MAX {
            return Err(CoresError::TooMany { text: text.to_owned() });
        }
        for core in first..=last {
            if !indices.insert(core) {
                return Err(CoresError::Twice { text: text.to_owned(), core });
            }
        }
        if indices.len() > LIST_MAX {
            return Err(CoresError::TooMany { text: text.to_owned() });
        }
    }
    Ok(indices.into_iter().collect())
}

impl FromStr for CoreChoice {
    type Err = CoresError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_cores(text)
    }
}

impl fmt::Display for CoreChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CoreChoice::Auto => f.write_str("auto"),
            CoreChoice::Spread { numa_nodes, count } => {
                match numa_nodes {
                    Some(nodes) => write!(f, "numa:{}", format_list(nodes))?,
                    None => f.write_str("auto")?,
                }
                count.map_or(Ok(()), |count| write!(f, ":{count}"))
            }
            CoreChoice::List(cores) => f.write_str(&format_list(cores)),
        }
    }
}

impl CoreChoice {
    /// The hardware threads to pin shards to, ascending. `auto` takes one shard per 8 usable cores (of a CPU quota, where
    /// that is less), at least 1, at most [`AUTO_CORES_MAX`]. What is not a list is spread over NUMA nodes by their numbers of
    /// cores, takes one thread of each core before a second one, and takes a node's last cores first, because interrupts and
    /// everything unpinned crowd the low ones.
    pub fn resolve(&self, topology: &Topology) -> Result<Vec<u32>, CoresError> {
        match self {
            CoreChoice::Auto => spread(topology, None, None),
            CoreChoice::Spread { numa_nodes, count } => spread(topology, numa_nodes.as_deref(), *count),
            CoreChoice::List(cores) => {
                let allowed = topology.allowed_pus();
                let missing: Vec<u32> = cores.iter().copied().filter(|core| !allowed.contains(core)).collect();
                if missing.is_empty() {
                    Ok(cores.clone())
                } else {
                    let (missing, allowed) = (format_list(&missing), format_list(&allowed));
                    Err(CoresError::NotAllowed { missing, allowed })
                }
            }
        }
    }
}

/// A NUMA node to take shards from.
struct Supply {
    /// Usable cores.
    cores: usize,
    /// Shards that it has already.
    taken: usize,
    /// Threads to choose from now; the next is the last.
    left: Vec<u32>,
}

fn spread(topology: &Topology, numa_nodes: Option<&[u32]>, count: Option<u32>) -> Result<Vec<u32>, CoresError> {
    let cores_of = |node: u32| topology.cores.iter().filter(move |core| core.numa_node == node);
    let with_cores: Vec<u32> =
        topology.numa_nodes.iter().map(|node| node.index).filter(|&node| cores_of(node).next().is_some()).collect();
    let nodes = numa_nodes.unwrap_or(&with_cores);
    if let Some(&node) = nodes.iter().find(|node| !with_cores.contains(node)) {
        return Err(CoresError::NoSuchNode { node, usable: format_list(&with_cores) });
    }
    let usable: usize = nodes.iter().map(|&node| cores_of(node).count()).sum();
    let available: usize = nodes.iter().flat_map(|&node| cores_of(node)).map(|core| core.pus.len()).sum();
    let wanted = count.map_or_else(|| auto_share(usable, topology.cpu_quota_milli), |count| count as usize);
    if wanted > available {
        return Err(CoresError::TooFew { wanted: wanted as u32, available });
    }
    let mut supplies: Vec<Supply> =
        nodes.iter().map(|&node| Supply { cores: cores_of(node).count(), taken: 0, left: Vec::new() }).collect();
    let mut chosen = Vec::with_capacity(wanted);
    let threads_max = topology.cores.iter().map(|core| core.pus.len()).max().unwrap_or(0);
    for thread in 0..threads_max {
        for (supply, &node) in supplies.iter_mut().zip(nodes) {
            supply.left = cores_of(node).filter_map(|core| core.pus.get(thread).copied()).collect();
            supply.left.sort_unstable();
        }
        while chosen.len() < wanted {
            let Some(pu) = take_from_the_least_used(&mut supplies) else { break };
            chosen.push(pu);
        }
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// Shares seats as Sainte-Lague does: the next goes to the node with most cores for each of (2 taken + 1).
fn take_from_the_least_used(supplies: &mut [Supply]) -> Option<u32> {
    let open = supplies.iter_mut().filter(|supply| !supply.left.is_empty());
    let best = open.reduce(|best, other| {
        let (ours, theirs) = (best.cores * (2 * other.taken + 1), other.cores * (2 * best.taken + 1));
        match theirs > ours || (theirs == ours && other.taken < best.taken) {
            true => other,
            false => best,
        }
    })?;
    best.taken += 1;
    best.left.pop()
}

/// Shards that `auto` makes of this many usable cores.
fn auto_share(usable_cores: usize, cpu_quota_milli: Option<u64>) -> usize {
    let quota_cores = cpu_quota_milli.map_or(usize::MAX, |milli| (milli / 1000) as usize);
    (usable_cores.min(quota_cores) / AUTO_CORES_PER_SHARD).clamp(1, AUTO_CORES_MAX)
}

/// Ascending indices as the kernel writes them: `0-3,8`.
pub fn format_list(indices: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &index in indices {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(index) => *last = index,
            _ => parts.push((index, index)),
        }
    }
    let texts: Vec<String> = parts
        .iter()
        .map(|&(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeHost, FakeNode};

    #[test]
    fn lists_and_auto_are_read() {
        assert_eq!(parse_cores(" auto "), Ok(CoreChoice::Auto));
        assert_eq!(parse_cores("18,0-2"), Ok(CoreChoice::List(vec![0, 1, 2, 18])));
        assert_eq!(parse_cores("0-15,18").unwrap().to_string(), "0-15,18");
        assert_eq!(parse_cores("4 - 5, 7").unwrap().to_string(), "4-5,7");
        for text in ["auto:4", "numa:0", "numa:0-1,3:6"] {
            assert_eq!(parse_cores(text).unwrap().to_string(), text);
        }
        let expected = CoreChoice::Spread { numa_nodes: Some(vec![0, 1]), count: Some(6) };
        assert_eq!(parse_cores("NUMA:0,1:6"), Ok(expected));
    }

    fn machine(cores: &[u32], threads: u32) -> FakeHost {
        let nodes: Vec<FakeNode> = cores.iter().map(|&cores| FakeNode { cores, memory_mib: 1024 }).collect();
        FakeHost::machine(&nodes, threads)
    }

    fn resolve(fake: &FakeHost, text: &str) -> Result<Vec<u32>, CoresError> {
        parse_cores(text).unwrap().resolve(&Topology::discover_on(&fake.host()).unwrap())
    }

    #[test]
    fn shards_are_spread_over_nodes_and_take_whole_cores_first() {
        let two = machine(&[8, 8], 2);
        assert_eq!(resolve(&two, "auto"), Ok(vec![7, 15]));
        assert_eq!(resolve(&two, "auto:4"), Ok(vec![6, 7, 14, 15]));
        assert_eq!(resolve(&two, "auto:16"), Ok((0..16).collect()));
        // All cores have one shard before a second thread is taken.
        assert_eq!(resolve(&two, "auto:18"), Ok((0..16).chain([23, 31]).collect()));
        assert_eq!(resolve(&two, "auto:33"), Err(CoresError::TooFew { wanted: 33, available: 32 }));
        let four = machine(&[8, 8, 8, 8], 1);
        assert_eq!(resolve(&four, "auto"), Ok(vec![7, 15, 23, 31]));
    }

    #[test]
    fn one_node_can_be_chosen() {
        let two = machine(&[8, 8], 2);
        assert_eq!(resolve(&two, "numa:1"), Ok(vec![15]));
        assert_eq!(resolve(&two, "numa:0:9"), Ok((0..8).chain([23]).collect()));
        assert_eq!(resolve(&two, "numa:0,1"), Ok(vec![7, 15]));
        let error = resolve(&two, "numa:2").unwrap_err();
        assert_eq!(error, CoresError::NoSuchNode { node: 2, usable: "0-1".into() });
        // A node of memory only has nothing to run on.
        assert!(resolve(&machine(&[4, 0], 1), "numa:1").is_err());
    }

    #[test]
    fn uneven_nodes_get_shards_by_their_cores() {
        let uneven = machine(&[12, 4], 1);
        assert_eq!(resolve(&uneven, "auto"), Ok(vec![11, 15]));
        assert_eq!(resolve(&uneven, "auto:4"), Ok(vec![9, 10, 11, 15]));
        assert_eq!(resolve(&uneven, "auto:16").unwrap().len(), 16);
    }

    #[test]
    fn a_cpuset_of_three_cores_and_a_quota_are_respected() {
        let fake = machine(&[8, 8], 1);
        fake.file("/proc/self/status", "Cpus_allowed_list:\t2-3,12");
        assert_eq!(resolve(&fake, "auto"), Ok(vec![3]));
        assert_eq!(resolve(&fake, "auto:3"), Ok(vec![2, 3, 12]));
        assert!(resolve(&fake, "auto:4").is_err());
        assert_eq!(resolve(&fake, "numa:1"), Ok(vec![12]));
        let wide = machine(&[32, 32], 1);
        assert_eq!(resolve(&wide, "auto").unwrap().len(), 8);
        wide.file("/proc/self/cgroup", "0::/");
        wide.file("/sys/fs/cgroup/cgroup.controllers", "cpu");
        wide.file("/sys/fs/cgroup/cpu.max", "1650000 100000");
        assert_eq!(resolve(&wide, "auto").unwrap().len(), 2);
        wide.file("/sys/fs/cgroup/cpu.max", "50000 100000");
        assert_eq!(resolve(&wide, "auto").unwrap().len(), 1);
    }

    #[test]
    fn every_error_names_the_flag_and_the_part() {
        for (text, wanted) in [
            ("", "empty"),
            ("0-", "\"0-\""),
            ("0,,1", "\"\""),
            ("a", "\"a\""),
            ("-1", "\"-1\""),
            ("0x3", "\"0x3\""),
            ("5-2", "ends before"),
            ("0-3,2", "2 is named twice"),
            ("auto:0", "\"0\" is no number of shards"),
            ("auto:x", "\"x\" is no number of shards"),
            ("autos", "\"autos\""),
            ("numa:", "\"\""),
            ("numa:0:", "\"\" is no number"),
            ("numa:1,1", "1 is named twice"),
            ("numa:a", "\"a\""),
            ("0-4294967295", "more than 4096"),
        ] {
            let error = parse_cores(text).unwrap_err().to_string();
            assert!(error.contains("--cores") && error.contains(wanted), "{text}: {error}");
        }
    }
}
