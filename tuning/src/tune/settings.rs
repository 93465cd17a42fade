//! The settings, and the form that each file wants them in.

use std::path::{Path, PathBuf};

use super::{Request, TuneError, LIMITS_FILE, SYSCTL_FILE, TMPFILES_FILE, UNIT_DROP_IN, USER_DROP_IN};
use crate::doctor::{BACKLOG_WANTED, SWAPPINESS_MAX, TCP_BUFFER_WANTED_BYTES};
use crate::host::Host;
use crate::limits::{MEMLOCK_WANTED_BYTES, OPEN_FILES_WANTED};
use crate::pages::{PageChoice, PageKind};
use crate::sysfs;

/// A setting: a line of a file, and the kernel's files that hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// What it is called in its file: a sysctl, a path, a directive.
    pub(super) key: String,
    /// Its value.
    pub(super) value: String,
    /// Where it holds at once; none for limits.
    pub(super) live: Vec<PathBuf>,
    /// Why it is there.
    why: &'static str,
}

/// Why pages are reserved.
const RESERVED: &str = "Huge pages for the object store, as was asked for.";

/// All files with the lines that they should have; a file without lines goes.
pub(super) fn files(host: &Host, request: &Request) -> Result<Vec<(&'static str, Vec<Line>)>, TuneError> {
    let (node_limits, login_limits) = limits(host);
    Ok(vec![
        (SYSCTL_FILE, sysctls(host, request)),
        (TMPFILES_FILE, tmpfiles(host, request)?),
        (USER_DROP_IN, node_limits),
        (LIMITS_FILE, login_limits),
        (UNIT_DROP_IN, unit(host, request)),
    ])
}

/// A file's text; `None` where there is nothing to say.
pub(super) fn text_of(path: &str, lines: &[Line]) -> Option<String> {
    if lines.is_empty() {
        return None;
    }
    let mut text = "# Written by `raylet-uring tune --apply`; `raylet-uring tune --undo` takes it back.\n".to_owned();
    if path == USER_DROP_IN || path == UNIT_DROP_IN {
        text += "[Service]\n";
    }
    for line in lines {
        let Line { key, value, why, .. } = line;
        let setting = match path {
            SYSCTL_FILE => format!("{key} = {value}"),
            TMPFILES_FILE => format!("w {key} - - - - {value}"),
            LIMITS_FILE => format!("* - {key} {value}"),
            _ => format!("{key}={value}"),
        };
        text += &format!("# {why}\n{setting}\n");
    }
    Some(text)
}

/// The value that holds now: of a choice file, the selected word.
pub(super) fn current(host: &Host, path: &Path) -> Option<String> {
    let text = host.text(path)?;
    Some(sysfs::selected(&text).map_or(text.clone(), str::to_owned))
}

/// Whether an earlier call wrote this key into a file.
fn is_ours(host: &Host, file: &str, key: &str) -> bool {
    let text = host.text(file).unwrap_or_default();
    text.lines().filter(|line| !line.starts_with('#')).any(|line| {
        let mut words = line.split(|c: char| c == '=' || c.is_whitespace()).filter(|word| !word.is_empty());
        words.any(|word| word == key)
    })
}

fn sysctls(host: &Host, request: &Request) -> Vec<Line> {
    let many_nodes = request.picture.topology.numa_nodes.iter().filter(|node| node.memory_bytes > 0).count() > 1;
    let mut lines = Vec::new();
    let mut add = |key: &str, bad: &dyn Fn(&str) -> bool, value: &dyn Fn(&str) -> String, why| {
        let path = PathBuf::from(format!("/proc/sys/{}", key.replace('.', "/")));
        let Some(now) = current(host, &path) else { return };
        if bad(&now) || is_ours(host, SYSCTL_FILE, key) {
            lines.push(Line { key: key.to_owned(), value: value(&now), live: vec![path], why });
        }
    };
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    let third = |text: &str| text.split_whitespace().nth(2).map_or(0, number);
    let on = |text: &str| number(text) != 0;
    let zero = |_: &str| "0".to_owned();
    add("kernel.io_uring_disabled", &on, &zero, "The node is built on io_uring.");
    if many_nodes {
        add("kernel.numa_balancing", &on, &zero, "Objects stay on the NUMA node that they were put on.");
        add("vm.zone_reclaim_mode", &on, &zero, "Memory of another NUMA node is better than a stall.");
    }
    let calm = SWAPPINESS_MAX;
    add(
        "vm.swappiness",
        &|now| number(now) > calm,
        &|now| number(now).min(calm).to_string(),
        "Drop caches before objects and idle workers are swapped out.",
    );
    add("vm.overcommit_memory", &|now| now == "2", &zero, "Python and the object store map more than they use.");
    let backlog = BACKLOG_WANTED;
    add(
        "net.core.somaxconn",
        &|now| number(now) < backlog,
        &|now| number(now).max(backlog).to_string(),
        "Many workers connect at a time.",
    );
    for key in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
        let wider = |now: &str| {
            let mut words = now.split_whitespace();
            let (least, usual) = (words.next().unwrap_or("4096"), words.next().unwrap_or("131072"));
            format!("{least} {usual} {}", third(now).max(TCP_BUFFER_WANTED_BYTES))
        };
        add(key, &|now| third(now) < TCP_BUFFER_WANTED_BYTES, &wider, "One stream fills a fast link.");
    }
    lines
}

fn tmpfiles(host: &Host, request: &Request) -> Result<Vec<Line>, TuneError> {
    let mut lines = Vec::new();
    let mut add = |key: &str, live: Vec<PathBuf>, bad: &dyn Fn(&str) -> bool, value: &str, why| {
        let now: Vec<String> = live.iter().filter_map(|path| current(host, path)).collect();
        if now.iter().any(|now| bad(now)) || (!now.is_empty() && is_ours(host, TMPFILES_FILE, key)) {
            lines.push(Line { key: key.to_owned(), value: value.to_owned(), live, why });
        }
    };
    let off = |now: &str| now == "never";
    let shmem = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    // Where the node gets huge pages in another way, the setting makes no difference.
    let none_otherwise = matches!(host.huge_pages(), Ok((PageKind::Small, _)));
    add(
        shmem,
        vec![shmem.into()],
        &|now| none_otherwise && (off(now) || now == "deny"),
        "advise",
        "Huge pages for the object store.",
    );
    let programs = "/sys/kernel/mm/transparent_hugepage/enabled";
    add(programs, vec![programs.into()], &off, "madvise", "Huge pages for programs that ask for them.");
    let governors = request
        .picture
        .topology
        .allowed_pus()
        .into_iter()
        .map(|pu| PathBuf::from(format!("/sys/devices/system/cpu/cpu{pu}/cpufreq/scaling_governor")))
        .filter(|path| host.path(path).exists())
        .collect();
    let all = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor";
    add(all, governors, &|now| now != "performance", "performance", "Cores are at their speed when a request comes.");
    lines.extend(reserves(host, request)?);
    Ok(lines)
}

/// Pools of huge pages on the NUMA nodes of the arenas, by their share of the object store; a pool is never made smaller.
fn reserves(host: &Host, request: &Request) -> Result<Vec<Line>, TuneError> {
    if request.reserve.is_empty() {
        return Ok(earlier_reserves(host));
    }
    let arenas = &request.picture.arenas;
    let store: u64 = arenas.iter().map(|arena| arena.size_bytes).sum();
    let mut lines = Vec::new();
    for reserve in request.reserve {
        let Some(page_bytes) = reserve.pages.hugetlb_bytes() else { continue };
        let mut left = reserve.count;
        for (index, arena) in arenas.iter().enumerate() {
            let share = u128::from(reserve.count) * u128::from(arena.size_bytes) / u128::from(store.max(1));
            let count = if index + 1 == arenas.len() { left } else { (share as u64).min(left) };
            left -= count;
            let directory = match arena.numa_node {
                Some(node) => format!("/sys/devices/system/node/node{node}/hugepages"),
                None => "/sys/kernel/mm/hugepages".to_owned(),
            };
            let path = format!("{directory}/hugepages-{}kB/nr_hugepages", page_bytes >> 10);
            let now = host.number(&path).ok_or_else(|| TuneError::NoPool { path: PathBuf::from(&path) })?;
            let value = now.max(count).to_string();
            lines.push(Line { live: vec![PathBuf::from(&path)], key: path, value, why: RESERVED });
        }
    }
    Ok(lines)
}

/// What an earlier call reserved stays until it is undone.
fn earlier_reserves(host: &Host) -> Vec<Line> {
    let text = host.text(TMPFILES_FILE).unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let mut words = line.strip_prefix("w ")?.split_whitespace();
        let key = words.next().filter(|key| key.ends_with("/nr_hugepages"))?.to_owned();
        let value = words.next_back()?.to_owned();
        Some(Line { live: vec![PathBuf::from(&key)], key, value, why: RESERVED })
    });
    lines.collect()
}

/// Limits for systemd's users and for logins: each where this process's own is too low.
fn limits(host: &Host) -> (Vec<Line>, Vec<Line>) {
    let wanted = [
        (
            "Max locked memory",
            "LimitMEMLOCK",
            "memlock",
            MEMLOCK_WANTED_BYTES,
            "A node's rings ask for a limit of 512 KiB.",
        ),
        (
            "Max open files",
            "LimitNOFILE",
            "nofile",
            OPEN_FILES_WANTED,
            "Each worker has several sockets and log files.",
        ),
    ];
    let (mut units, mut logins) = (Vec::new(), Vec::new());
    for (name, directive, item, least, why) in wanted {
        let too_low = host.limit(name).and_then(|limit| limit.hard).is_some_and(|hard| hard < least);
        let (unit_value, login_value) = match item {
            // Locked memory is limited by the machine's memory anyway.
            "memlock" => ("infinity".to_owned(), "unlimited".to_owned()),
            _ => (least.to_string(), least.to_string()),
        };
        let line = |key: &str, value: String| Line { key: key.to_owned(), value, live: Vec::new(), why };
        if too_low || is_ours(host, USER_DROP_IN, directive) {
            units.push(line(directive, unit_value));
        }
        if too_low || is_ours(host, LIMITS_FILE, item) {
            logins.push(line(item, login_value));
        }
    }
    (units, logins)
}

/// Huge pages that were reserved are of use only to a node that asks for them.
fn unit(host: &Host, request: &Request) -> Vec<Line> {
    const OF_1G: &str = "RAYLET_URING_HUGEPAGES=1G";
    const OF_2M: &str = "RAYLET_URING_HUGEPAGES=2M";
    let earlier = host.text(UNIT_DROP_IN).unwrap_or_default();
    let largest = request.reserve.iter().max_by_key(|reserve| reserve.pages.hugetlb_bytes());
    let value = match largest.map(|reserve| reserve.pages) {
        Some(PageChoice::Huge1G) => OF_1G,
        Some(_) => OF_2M,
        None if earlier.contains(OF_1G) => OF_1G,
        None if earlier.contains(OF_2M) => OF_2M,
        None => return Vec::new(),
    };
    let why = "The object store is made of the pages that were reserved.";
    vec![Line { key: "Environment".to_owned(), value: value.to_owned(), live: Vec::new(), why }]
}
