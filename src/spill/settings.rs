//! Where and how a node spills: from Ray's settings, or those of a node of its own.

use std::path::PathBuf;

use raylet_shard::store::SpillConfig;
use raylet_transport::spill::{clear_leftovers, DirectoryError, SpillDirectory};
use raylet_tuning::placement::{nearest_first, PlacedDirectory};
use serde_json::Value;

use crate::config::ray::RayConfig;

/// How the engine spills.
#[derive(Clone, Debug)]
pub struct SpillSettings {
    /// Ray's own IO workers write and read, because only they can reach the storage.
    pub external: bool,
    /// Directories, which are there.
    pub directories: Vec<PathBuf>,
    /// So many of them, the first ones, are near the core that has these settings, and used before the others.
    pub near: usize,
    /// Share of a disk, 0 to 1, that may be full.
    pub capacity_share: f64,
    /// Begins the names of files: no two nodes that use a directory have the same.
    pub name: String,
    /// Share of the store, 0 to 1, above which objects are written ahead of need.
    pub threshold: f64,
    /// Ray's `min_spilling_size`, in bytes.
    pub batch_bytes: u64,
    /// Ray's `max_fused_object_count`.
    pub file_objects_max: u32,
    /// Ray's `max_spilling_file_size_bytes`.
    pub file_bytes_max: u64,
}

impl SpillSettings {
    /// For a core on a NUMA node, whose own disks are used first.
    pub fn near(&self, places: &[PlacedDirectory], numa_node: Option<u32>) -> Self {
        let (directories, near) = nearest_first(places, numa_node);
        Self { directories, near, ..self.clone() }
    }

    /// The store's part, for a node that can hold `capacity_bytes`.
    pub fn store(&self, capacity_bytes: u64) -> SpillConfig {
        let defaults = SpillConfig::new(capacity_bytes);
        SpillConfig {
            threshold_bytes: (capacity_bytes as f64 * self.threshold) as u64,
            batch_bytes: defaults.batch_bytes.min(self.batch_bytes),
            file_objects_max: self.file_objects_max,
            file_bytes_max: self.file_bytes_max,
            ..defaults
        }
    }
}

/// Why spilling can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The configuration is none.
    #[error("object_spilling_config: expected JSON like {{\"type\": \"filesystem\", \"params\": {{\"directory_path\": \"/spill\"}}}}, got {text}: {reason}")]
    Config {
        /// What came.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A directory can't be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Where objects are to be spilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it is switched off, or not configured.
    Nowhere,
    /// In directories of this machine.
    Directories(Vec<PathBuf>),
    /// In storage of this kind, which Ray's own Python code has to reach.
    External(String),
}

/// Where Ray's settings say that objects are to be spilled.
///
/// # Errors
/// [`SpillError::Config`].
pub fn place(config: &RayConfig) -> Result<Place, SpillError> {
    if !config.automatic_object_spilling_enabled {
        return Ok(Place::Nowhere);
    }
    let text = &config.object_spilling_config;
    let directory = &config.object_spilling_directory;
    if !directory.is_empty() {
        return Ok(Place::Directories(vec![PathBuf::from(directory)]));
    }
    if text.is_empty() {
        return Ok(Place::Nowhere);
    }
    let wrong = |reason: &str| SpillError::Config { text: text.clone(), reason: reason.to_owned() };
    let value: Value = serde_json::from_str(text).map_err(|e| wrong(&e.to_string()))?;
    match value.get("type").and_then(Value::as_str) {
        Some("filesystem") => {}
        Some(other) => return Ok(Place::External(other.to_owned())),
        // An empty object is what Ray passes where nothing was configured.
        None if value.as_object().is_some_and(|fields| fields.is_empty()) => return Ok(Place::Nowhere),
        None => return Err(wrong("it has no \"type\"")),
    }
    let paths = match value.pointer("/params/directory_path") {
        Some(Value::String(path)) => vec![PathBuf::from(path)],
        Some(Value::Array(paths)) => paths.iter().filter_map(Value::as_str).map(PathBuf::from).collect(),
        _ => Vec::new(),
    };
    match paths.iter().any(|path| !path.is_absolute()) || paths.is_empty() {
        true => Err(wrong("\"directory_path\" has to be an absolute path, or a list of such")),
        false => Ok(Place::Directories(paths)),
    }
}

/// As Ray's settings say, makes the node's directories, after removing what dead nodes left beside them.
///
/// # Errors
/// See [`SpillError`].
pub fn prepare(config: &RayConfig, node_id: &str) -> Result<Option<(SpillSettings, Vec<SpillDirectory>)>, SpillError> {
    let (external, parents) = match place(config)? {
        Place::Directories(parents) => (false, parents),
        Place::Nowhere => return Ok(None),
        Place::External(kind) => {
            tracing::info!(kind, "Ray's IO workers spill to this kind of storage");
            (true, Vec::new())
        }
    };
    with(config, external, &parents, node_id).map(Some)
}

/// The same for a node of its own, which spills to these directories, if any, and as Ray's defaults say otherwise.
///
/// # Errors
/// See [`SpillError`].
pub fn prepare_own(
    parents: &[PathBuf],
    node_id: &str,
) -> Result<Option<(SpillSettings, Vec<SpillDirectory>)>, SpillError> {
    match parents.is_empty() {
        true => Ok(None),
        false => with(&RayConfig::default(), false, parents, node_id).map(Some),
    }
}

fn with(
    config: &RayConfig,
    external: bool,
    parents: &[PathBuf],
    node_id: &str,
) -> Result<(SpillSettings, Vec<SpillDirectory>), SpillError> {
    let mut made = Vec::with_capacity(parents.len());
    for parent in parents {
        for left in clear_leftovers(parent) {
            tracing::info!(directory = %left.display(), "removed what a dead node had spilled");
        }
        made.push(SpillDirectory::make(parent, node_id)?);
    }
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let settings = SpillSettings {
        near: made.len(),
        external,
        directories: made.iter().map(|directory| directory.path().to_owned()).collect(),
        capacity_share: config.local_fs_capacity_threshold.clamp(0.0, 1.0),
        name: node_id.get(..12).unwrap_or(node_id).to_owned(),
        threshold: config.object_spilling_threshold.clamp(0.0, 1.0),
        batch_bytes: positive(config.min_spilling_size).unwrap_or(1),
        file_objects_max: u32::try_from(config.max_fused_object_count).unwrap_or(u32::MAX).max(1),
        file_bytes_max: positive(config.max_spilling_file_size_bytes).unwrap_or(u64::MAX),
    };
    Ok((settings, made))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> RayConfig {
        RayConfig { object_spilling_config: text.to_owned(), ..RayConfig::default() }
    }

    #[test]
    fn directories_come_from_rays_settings() {
        let one = with(r#"{"type": "filesystem", "params": {"directory_path": "/a"}}"#);
        assert_eq!(place(&one).unwrap(), Place::Directories(vec!["/a".into()]));
        let two = with(r#"{"type": "filesystem", "params": {"directory_path": ["/a", "/b"], "buffer_size": 5}}"#);
        assert_eq!(place(&two).unwrap(), Place::Directories(vec!["/a".into(), "/b".into()]));
        let directory = RayConfig { object_spilling_directory: "/c".to_owned(), ..one };
        assert_eq!(place(&directory).unwrap(), Place::Directories(vec!["/c".into()]));
        let off = RayConfig { automatic_object_spilling_enabled: false, ..directory };
        assert_eq!(place(&off).unwrap(), Place::Nowhere);
        assert_eq!(place(&with("")).unwrap(), Place::Nowhere);
        assert_eq!(place(&with("{}")).unwrap(), Place::Nowhere);
        assert_eq!(place(&with(r#"{"type": "smart_open"}"#)).unwrap(), Place::External("smart_open".to_owned()));
    }

    #[test]
    fn other_storage_needs_no_directory_of_this_machine() {
        let (settings, made) = prepare(&with(r#"{"type": "smart_open"}"#), "0123").unwrap().unwrap();
        assert!(settings.external && settings.directories.is_empty() && made.is_empty());
    }

    #[test]
    fn a_node_of_its_own_spills_where_it_is_told_to_and_else_nowhere() {
        assert!(prepare_own(&[], "0123").unwrap().is_none());
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let parents = [one.path().to_owned(), two.path().to_owned()];
        let (settings, made) = prepare_own(&parents, "0123").unwrap().unwrap();
        assert_eq!(settings.directories, parents.map(|parent| parent.join("ray_spilled_objects_0123")));
        assert!(!settings.external && made.len() == 2 && settings.threshold == 0.8);
        std::fs::write(one.path().join("file"), b"").unwrap();
        let error = prepare_own(&[one.path().join("file")], "0123").unwrap_err().to_string();
        assert!(error.contains("--spill-dir"), "{error}");
    }

    #[test]
    fn a_configuration_that_says_nothing_is_refused() {
        for text in
            ["{", "[1]", r#"{"type": "filesystem"}"#, r#"{"type": "filesystem", "params": {"directory_path": "a"}}"#]
        {
            let error = place(&with(text)).unwrap_err().to_string();
            assert!(error.contains("directory_path") && error.contains(text), "{error}");
        }
    }

    #[test]
    fn the_stores_part_follows_rays_sizes() {
        let parent = tempfile::tempdir().unwrap();
        let config = RayConfig {
            object_spilling_directory: parent.path().display().to_string(),
            object_spilling_threshold: 0.5,
            min_spilling_size: 1000,
            max_fused_object_count: 7,
            max_spilling_file_size_bytes: 5000,
            ..RayConfig::default()
        };
        let (settings, made) = prepare(&config, "0123456789abcdef").unwrap().unwrap();
        assert!(made[0].path().ends_with("ray_spilled_objects_0123456789abcdef"));
        let place = |path: &str, numa_node| PlacedDirectory { path: path.into(), disk: None, numa_node };
        let near = settings.near(&[place("/a", Some(0)), place("/b", Some(1))], Some(1));
        assert_eq!((near.directories, near.near), (vec!["/b".into(), "/a".into()], 1));
        let store = settings.store(100 << 20);
        assert_eq!((store.threshold_bytes, store.batch_bytes), (50 << 20, 1000));
        assert_eq!((store.file_objects_max, store.file_bytes_max), (7, 5000));
    }
}
