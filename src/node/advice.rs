//! What a node says at its start about the machine: what [`doctor`] finds, and what that costs, once, in the log.

use std::thread;

use raylet_tuning::doctor::{self, Check, Level, Subject};
use raylet_tuning::{Host, Picture};

use crate::config::Config;
use crate::engine::Engine;

/// Looks at the machine on a thread of its own, some milliseconds long, and logs what it finds. Disks and ports are left
/// alone: a node that runs uses both.
pub fn give(config: &Config, engine: &Engine) {
    let (pages, store_bytes, placed) = (config.hugepages, engine.capacity_bytes, engine.placed.clone());
    let looked = thread::Builder::new().name("advice".to_owned()).spawn(move || {
        let host = Host::this();
        let mut picture = match Picture::of(&host) {
            Ok(picture) => picture,
            Err(error) => return tracing::warn!(%error, "the machine can't be examined"),
        };
        picture.place_shards(&placed);
        // What the store has taken by now is no longer free, and its pages are what they are.
        picture.memory.available_bytes = picture.memory.available_bytes.saturating_add(store_bytes);
        let checks = doctor::examine(&Subject {
            host: &host,
            picture: &picture,
            pages,
            store_bytes,
            ports: &[],
            measure_disks: false,
        });
        if let Some(names) = names(&checks) {
            tracing::info!("this machine could serve the node better: {names}; `raylet-uring doctor` says how");
            costs(&checks).for_each(|line| tracing::info!("{line}"));
        }
    });
    if let Err(error) = looked {
        tracing::debug!(%error, "no thread to examine the machine with");
    }
}

fn names(checks: &[Check]) -> Option<String> {
    let names: Vec<&str> = checks.iter().filter(|check| check.level != Level::Ok).map(|check| check.name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// A line for each finding: what was found, and what would be gained by mending it.
fn costs(checks: &[Check]) -> impl Iterator<Item = String> + '_ {
    let findings = checks.iter().filter(|check| check.level != Level::Ok);
    findings.map(|check| {
        let costs = check.costs.as_ref().map_or_else(String::new, |costs| format!("; it costs: {costs}"));
        format!("{}: {}{costs}", check.name, check.found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_says_what_it_costs() {
        let check = |level, costs: Option<&str>| {
            let (found, costs) = ("1024 may be open".to_owned(), costs.map(Into::into));
            Check { name: "open files", level, found, costs, mend: Vec::new() }
        };
        let checks = [check(Level::Ok, None), check(Level::Warning, Some("connections")), check(Level::Error, None)];
        let lines: Vec<String> = costs(&checks).collect();
        assert_eq!(lines, ["open files: 1024 may be open; it costs: connections", "open files: 1024 may be open"]);
    }

    #[test]
    fn only_what_is_not_as_it_should_be_is_named() {
        let check = |name, level| Check { name, level, found: String::new(), costs: None, mend: Vec::new() };
        let (good, bad, worse) = (check("a", Level::Ok), check("b", Level::Warning), check("c", Level::Error));
        assert_eq!(names(&[good.clone(), bad, worse]).as_deref(), Some("b, c"));
        assert_eq!(names(&[good]), None);
    }
}
