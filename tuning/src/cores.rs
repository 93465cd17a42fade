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
    /// These hardware threads (the kernel's indices), ascending.
    List(Vec<u32>),
}

/// Why `--cores` can't be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CoresError {
    /// A part of the list is neither a number nor a range.
    #[error("--cores {text:?}: {part:?} is neither a core (3) nor a range (0-15): use auto or a list like 0-15,18")]
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
    /// A core named twice.
    #[error("--cores {text:?}: core {core} is named twice")]
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

/// Reads `auto`, or a list such as `0-15,18`.
pub fn parse_cores(text: &str) -> Result<CoreChoice, CoresError> {
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("auto") {
        return Ok(CoreChoice::Auto);
    }
    if trimmed.is_empty() {
        return Err(CoresError::Empty);
    }
    let mut cores = BTreeSet::new();
    for part in trimmed.split(',').map(str::trim) {
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
            if !cores.insert(core) {
                return Err(CoresError::Twice { text: text.to_owned(), core });
            }
        }
        if cores.len() > LIST_MAX {
            return Err(CoresError::TooMany { text: text.to_owned() });
        }
    }
    Ok(CoreChoice::List(cores.into_iter().collect()))
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
            CoreChoice::List(cores) => f.write_str(&format_list(cores)),
        }
    }
}

impl CoreChoice {
    /// The hardware threads to pin shards to. `auto` takes one shard per 8 usable cores, at least 1, at most
    /// [`AUTO_CORES_MAX`]; it spreads them evenly over NUMA nodes, takes one thread of a core only, and takes a node's last
    /// cores, because interrupts and everything unpinned crowd the first ones.
    pub fn resolve(&self, topology: &Topology) -> Result<Vec<u32>, CoresError> {
        let allowed = topology.allowed_pus();
        match self {
            CoreChoice::Auto => Ok(auto(topology)),
            CoreChoice::List(cores) => {
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

fn auto(topology: &Topology) -> Vec<u32> {
    let wanted = (topology.usable_cores() / AUTO_CORES_PER_SHARD).clamp(1, AUTO_CORES_MAX);
    let mut nodes: Vec<Vec<u32>> = topology
        .numa_nodes
        .iter()
        .map(|node| {
            let cores = topology.cores.iter().filter(|core| core.numa_node == node.index);
            let mut first_threads: Vec<u32> = cores.filter_map(|core| core.pus.first().copied()).collect();
            first_threads.sort_unstable();
            first_threads
        })
        .collect();
    let mut chosen = Vec::with_capacity(wanted);
    while chosen.len() < wanted {
        let before = chosen.len();
        for node in &mut nodes {
            if chosen.len() < wanted {
                chosen.extend(node.pop());
            }
        }
        if chosen.len() == before {
            break;
        }
    }
    chosen.sort_unstable();
    chosen
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

    #[test]
    fn lists_and_auto_are_read() {
        assert_eq!(parse_cores(" auto "), Ok(CoreChoice::Auto));
        assert_eq!(parse_cores("18,0-2"), Ok(CoreChoice::List(vec![0, 1, 2, 18])));
        assert_eq!(parse_cores("0-15,18").unwrap().to_string(), "0-15,18");
        assert_eq!(parse_cores("4 - 5, 7").unwrap().to_string(), "4-5,7");
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
            ("0-3,2", "core 2 is named twice"),
            ("0-4294967295", "more than 4096"),
        ] {
            let error = parse_cores(text).unwrap_err().to_string();
            assert!(error.contains("--cores") && error.contains(wanted), "{text}: {error}");
        }
    }
}
