//! What a node with given settings would be: its shards on cores, its arenas on memory, for commands that look ahead.

use std::collections::BTreeMap;
use std::path::PathBuf;

use raylet_tuning::placement::{self, PlacedArena};
use raylet_tuning::{CoresError, Host, Picture, TopologyError};

use super::own::PlanFlags;
use crate::config::{Config, ConfigError};

/// Ray's variable for the directory of spilled objects.
const RAY_SPILL_VARIABLE: &str = "RAY_object_spilling_directory";

/// Why nothing can be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Settings that a node can't start with.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A machine that can't be described.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// Cores that the machine lacks.
    #[error(transparent)]
    Cores(#[from] CoresError),
}

/// A node that would start, on its machine.
pub struct Plan {
    /// The machine.
    pub host: Host,
    /// The settings.
    pub config: Config,
    /// The machine with the node in place.
    pub picture: Picture,
    /// Size of the object store.
    pub store_bytes: u64,
}

/// Plans a node from flags and environment.
///
/// # Errors
/// [`PlanError`]: wrong settings, or a machine that can't be read or lacks the cores.
pub fn plan(flags: &PlanFlags, environment: &BTreeMap<String, String>) -> Result<Plan, PlanError> {
    let config = Config::load(&flags.given(), environment)?;
    let host = flags.root.as_ref().map_or_else(Host::this, Host::files_at);
    let mut picture = Picture::of(&host)?;
    let cores = config.cores.resolve(&picture.topology)?;
    let pinned = placement::is_pinned(&config.cores, &picture.topology);
    picture.place_shards(&cores.iter().map(|&pu| pinned.then_some(pu)).collect::<Vec<_>>());
    let store_bytes = config.object_store_memory_bytes.unwrap_or_else(|| picture.memory.default_store_bytes());
    let arenas = raylet_tuning::plan_arenas(&picture.topology, &config.cores, &cores, store_bytes);
    let place = |(segment, plan): (usize, raylet_tuning::ArenaPlan)| PlacedArena {
        segment: segment as u32,
        numa_node: plan.numa_node,
        size_bytes: plan.size_bytes,
        pages: config.hugepages.to_string(),
        fallback: None,
    };
    picture.arenas = arenas.into_iter().enumerate().map(place).collect();
    let spill_dirs = match flags.spill_dir.is_empty() && !config.spill_dirs.is_empty() {
        true => config.spill_dirs.clone(),
        false => spill_directories(flags, environment),
    };
    picture.place_spill(&spill_dirs);
    Ok(Plan { host, config, picture, store_bytes })
}

/// Where objects would be spilled.
pub fn spill_directories(flags: &PlanFlags, environment: &BTreeMap<String, String>) -> Vec<PathBuf> {
    if !flags.spill_dir.is_empty() {
        return flags.spill_dir.clone();
    }
    let by_ray = environment.get(RAY_SPILL_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    vec![by_ray.unwrap_or_else(std::env::temp_dir)]
}
