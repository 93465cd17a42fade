//! Ray's own settings: the environment variables `RAY_<name>` and the cluster's configuration, which the GCS hands out.
//!
//! Precedence as in Ray 2.60: the default, over it the environment, over it the cluster's configuration.

use super::ray_table::NAMES_OF_OTHERS;
pub use super::ray_table::{RayConfig, NAMES};
use crate::cli::closest::closest;

/// A setting of Ray's that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RayConfigError {
    /// A value of another type.
    #[error("{origin}: expected {expected}, got {got}")]
    BadValue {
        /// The environment variable, or the name in the cluster's configuration.
        origin: String,
        /// What it takes.
        expected: &'static str,
        /// What it got.
        got: String,
    },
    /// A name that Ray 2.60 doesn't know.
    #[error("the cluster's configuration has {name:?}, which Ray 2.60 doesn't know{}", .closest.map(|c| format!("; did you mean {c:?}?")).unwrap_or_default())]
    Unknown {
        /// The name.
        name: String,
        /// The known name that looks most like it.
        closest: Option<&'static str>,
    },
    /// A configuration that isn't a JSON object.
    #[error("the cluster's configuration is not a JSON object: {0}")]
    NotJson(String),
}

impl RayConfig {
    /// The defaults under the environment. `environment` gives the value of a variable.
    ///
    /// # Errors
    /// [`RayConfigError::BadValue`] for a number that isn't one. As in Ray, every boolean text but "1" and "true" is false.
    pub fn from_environment(environment: impl Fn(&str) -> Option<String>) -> Result<Self, RayConfigError> {
        let mut config = RayConfig::default();
        for name in NAMES {
            let variable = format!("RAY_{name}");
            if let Some(text) = environment(&variable) {
                config.set_text(name, &text).map_err(|expected| RayConfigError::BadValue {
                    origin: variable,
                    expected,
                    got: format!("{text:?}"),
                })?;
            }
        }
        Ok(config)
    }

    /// Lays the cluster's configuration over the settings: the JSON object that the GCS answers to
    /// `InternalKVGcsService.GetInternalConfig` (Ray 2.60) and that `ray.init(_system_config=...)` fills.
    ///
    /// # Errors
    /// All of [`RayConfigError`]; the settings are unchanged then. An empty text is no configuration, and fine.
    pub fn apply_cluster(&mut self, json: &str) -> Result<(), RayConfigError> {
        if json.trim().is_empty() {
            return Ok(());
        }
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(json).map_err(|error| RayConfigError::NotJson(error.to_string()))?;
        let mut changed = self.clone();
        for (name, value) in &object {
            let known = changed.set_json(name, value).map_err(|expected| RayConfigError::BadValue {
                origin: format!("{name:?} in the cluster's configuration"),
                expected,
                got: value.to_string(),
            })?;
            if !known && !NAMES_OF_OTHERS.contains(&name.as_str()) {
                let names = NAMES.iter().chain(NAMES_OF_OTHERS).copied();
                return Err(RayConfigError::Unknown { name: name.clone(), closest: closest(name, names) });
            }
        }
        *self = changed;
        Ok(())
    }

    /// The resources that come in whole instances.
    pub fn unit_instance_resources(&self) -> Vec<String> {
        let lists = [&self.predefined_unit_instance_resources, &self.custom_unit_instance_resources];
        let names = lists.iter().flat_map(|list| list.split(','));
        names.map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// The settings that differ from Ray's defaults, as `name=value` for a log line.
    pub fn changed(&self) -> Vec<String> {
        let defaults = RayConfig::default().entries();
        let differs = self.entries().into_iter().zip(defaults).filter(|(ours, default)| ours != default);
        differs.map(|((name, value), _)| format!("{name}={value}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Result<RayConfig, RayConfigError> {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        RayConfig::from_environment(|name| pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn defaults_then_environment_then_cluster() {
        let mut config = environment(&[
            ("RAY_worker_register_timeout_seconds", "7"),
            ("RAY_num_workers_soft_limit", "3"),
            ("RAY_memory_usage_threshold", "0.5"),
            ("RAY_preload_python_modules", "numpy, pandas"),
            ("RAY_USE_TLS", "1"),
        ])
        .unwrap();
        config
            .apply_cluster(r#"{"num_workers_soft_limit": 9, "object_spilling_config": "{}", "max_lineage_bytes": 5}"#)
            .unwrap();
        assert_eq!(config.worker_register_timeout_seconds, 7, "the environment wins over the default");
        assert_eq!(config.num_workers_soft_limit, 9, "the cluster wins over the environment");
        assert_eq!(config.kill_worker_timeout_milliseconds, 5000, "Ray 2.60's default");
        assert_eq!(config.memory_usage_threshold, 0.5);
        assert_eq!(config.preload_python_modules, ["numpy", "pandas"]);
        assert!(config.use_tls && config.prestart_worker_first_driver);
        assert_eq!(config.changed().len(), 6, "{:?}", config.changed());
    }

    #[test]
    fn booleans_as_ray_reads_them() {
        for (text, value) in [("1", true), ("TRUE", true), ("true", true), ("yes", false), ("0", false), ("", false)] {
            let config = environment(&[("RAY_process_group_cleanup_enabled", text)]).unwrap();
            assert_eq!(config.process_group_cleanup_enabled, value, "{text:?}");
        }
    }

    #[test]
    fn bad_values_are_named() {
        let error = environment(&[("RAY_memory_monitor_refresh_ms", "-1")]).unwrap_err().to_string();
        assert_eq!(
            error,
            "RAY_memory_monitor_refresh_ms: expected a whole number of 64 bits, not negative, got \"-1\""
        );
        let mut config = RayConfig::default();
        for (json, message) in [
            (r#"{"worker_niceness": "x"}"#, "\"worker_niceness\" in the cluster's configuration: expected a whole number of 32 bits, got \"x\""),
            (r#"{"worker_nicenes": 1}"#, "the cluster's configuration has \"worker_nicenes\", which Ray 2.60 doesn't know; did you mean \"worker_niceness\"?"),
            (r#"{"USE_TLS": 1}"#, "\"USE_TLS\" in the cluster's configuration: expected true or false, got 1"),
        ] {
            assert_eq!(config.apply_cluster(json).unwrap_err().to_string(), message);
        }
        assert!(matches!(config.apply_cluster("[]"), Err(RayConfigError::NotJson(_))));
        assert!(config.apply_cluster(r#"{"worker_niceness": 3, "worker_register_timeout_seconds": "x"}"#).is_err());
        assert_eq!(config, RayConfig::default(), "an error changes nothing");
        config.apply_cluster(" ").unwrap();
    }

    #[test]
    fn names_are_unique_and_every_setting_takes_its_own_text() {
        let all: BTreeSet<&str> = NAMES.iter().chain(NAMES_OF_OTHERS).copied().collect();
        assert_eq!(all.len(), NAMES.len() + NAMES_OF_OTHERS.len());
        let default = RayConfig::default();
        for (name, value) in default.entries() {
            let mut copy = default.clone();
            assert_eq!(copy.set_text(name, value.trim_matches('"')), Ok(true), "{name}={value}");
            assert_eq!(copy, default);
        }
    }

    #[test]
    fn numbers_from_python() {
        let mut config = RayConfig::default();
        config.apply_cluster(r#"{"min_spilling_size": 5.0, "task_oom_retries": 18446744073709551615}"#).unwrap();
        assert_eq!((config.min_spilling_size, config.task_oom_retries), (5, u64::MAX));
        assert!(config.apply_cluster(r#"{"min_spilling_size": 5.5}"#).is_err());
        assert!(config.apply_cluster(r#"{"worker_niceness": 2147483648}"#).is_err());
    }

    proptest! {
        #[test]
        fn no_configuration_panics(json in ".{0,80}", name in proptest::sample::select(NAMES), value in ".{0,12}") {
            let _ = RayConfig::default().apply_cluster(&json);
            let _ = RayConfig::default().set_text(name, &value);
            let _ = RayConfig::default().apply_cluster(&format!("{{{name:?}: {value}}}"));
        }
    }
}
