//! The machine as text: a tree of NUMA nodes with what is on each.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use raylet_tuning::cores::format_list;
use raylet_tuning::devices::{Disk, DiskKind, Nic};
use raylet_tuning::placement::{lane_shards, PlacedArena, PlacedBy};
use raylet_tuning::topology::{Cache, Core, NumaNode};
use raylet_tuning::{Picture, TopologySource};

use crate::config::size::format_bytes;

/// Columns of a line of cores.
const CORES_WIDTH: usize = 96;

/// Draws the machine.
pub fn draw(picture: &Picture) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = head(&mut text, picture);
    for node in &picture.topology.numa_nodes {
        let _ = numa_node(&mut text, picture, node);
    }
    let _ = elsewhere(&mut text, picture);
    text
}

fn head(out: &mut String, picture: &Picture) -> fmt::Result {
    let topology = &picture.topology;
    let source = match topology.source {
        TopologySource::Hwloc => "hwloc, and sysfs agrees",
        TopologySource::HwlocSynthetic => "hwloc, a machine that is not this one",
        TopologySource::Sysfs => "sysfs",
    };
    let threads = topology.allowed_pus();
    let machine = [
        count(topology.packages.len(), "package"),
        count(topology.numa_nodes.len(), "NUMA node"),
        count(topology.cores.len(), "core"),
        count(threads.len(), "thread"),
    ];
    writeln!(out, "machine  {} ({source})", machine.join(", "))?;
    let quota = match topology.cpu_quota_milli {
        Some(milli) => format!("quota of {} CPUs", milli as f64 / 1000.0),
        None => "no CPU quota".to_owned(),
    };
    let memory = &picture.memory;
    let free = format_bytes(memory.available_bytes);
    writeln!(out, "usable   threads {}; {quota}; {free} left by {}", format_list(&threads), memory.limiter)?;
    for (pus, what) in [(&topology.offline_pus, "offline"), (&topology.forbidden_pus, "not for this process")] {
        if !pus.is_empty() {
            writeln!(out, "         threads {} are {what}", format_list(pus))?;
        }
    }
    let caches: Vec<String> = (1..=5).filter_map(|level| cache_summary(topology.caches.iter(), level)).collect();
    if !caches.is_empty() {
        writeln!(out, "caches   {}", caches.join(", "))?;
    }
    let who = match picture.placed_by {
        PlacedBy::Node(pid) => format!("the running node {pid}"),
        PlacedBy::Settings => "a node with these settings".to_owned(),
    };
    let bytes: u64 = picture.arenas.iter().map(|arena| arena.size_bytes).sum();
    let shards = count(picture.shards.len(), "shard");
    writeln!(out, "node     {who}: {shards}, object store of {}", format_bytes(bytes))?;
    if picture.shards.len() > 1 && picture.nics.iter().any(|nic| nic.up && nic.numa_node.is_some()) {
        let lanes = lane_shards(&picture.shards, &picture.nics);
        let shards: Vec<String> = lanes.iter().map(|shard| shard.to_string()).collect();
        writeln!(out, "lanes    to other nodes are on shards {}", shards.join(", "))?;
    }
    topology.warnings.iter().try_for_each(|warning| writeln!(out, "warning  {warning}"))
}

fn cache_summary<'a>(caches: impl Iterator<Item = &'a Cache>, level: u32) -> Option<String> {
    let same: Vec<&Cache> = caches.filter(|cache| cache.level == level).collect();
    let sizes: BTreeSet<u64> = same.iter().map(|cache| cache.size_bytes).collect();
    let sizes: Vec<String> = sizes.into_iter().map(format_bytes).collect();
    let sharers = same.iter().map(|cache| cache.pus.len()).max()?;
    Some(format!("L{level} {} for {}", sizes.join(" or "), count(sharers, "thread")))
}

fn numa_node(out: &mut String, picture: &Picture, node: &NumaNode) -> fmt::Result {
    let on_node = |place: Option<u32>| home(picture, place) == Some(node.index);
    let mut lines: Vec<String> = cores_of(picture, node);
    let shards: Vec<String> = picture
        .shards
        .iter()
        .filter(|shard| on_node(shard.numa_node))
        .map(|shard| match shard.pu {
            Some(pu) => format!("{} on thread {pu}", shard.shard),
            None => format!("{} on any thread", shard.shard),
        })
        .collect();
    if !shards.is_empty() {
        lines.push(format!("shards  {}", shards.join(", ")));
    }
    lines.extend(picture.arenas.iter().filter(|arena| on_node(arena.numa_node)).map(arena));
    for pool in picture.huge_pages.iter().filter(|pool| on_node(pool.numa_node) && pool.total > 0) {
        let size = format_bytes(pool.page_bytes);
        lines.push(format!("pool    {} of {} huge pages of {size} are free", pool.unreserved(), pool.total));
    }
    lines.extend(picture.nics.iter().filter(|card| on_node(card.numa_node)).map(|card| nic(picture, card)));
    lines.extend(picture.disks.iter().filter(|d| on_node(d.numa_node)).map(|d| disk(picture, d)));
    let packages: BTreeSet<u32> =
        picture.topology.cores.iter().filter(|core| core.numa_node == node.index).map(|core| core.package).collect();
    let packages: Vec<u32> = packages.into_iter().collect();
    let of = match packages.len() {
        0 => "no cores".to_owned(),
        1 => format!("package {}", packages[0]),
        _ => format!("packages {}", format_list(&packages)),
    };
    let closed = if node.memory_allowed { "" } else { ", not for this process" };
    writeln!(out, "\nNUMA node {}  {of}, {} of memory{closed}", node.index, format_bytes(node.memory_bytes))?;
    branch(out, &lines)
}

/// The NUMA node that something is on. On a machine with one, everything is.
fn home(picture: &Picture, place: Option<u32>) -> Option<u32> {
    match picture.topology.numa_nodes.as_slice() {
        [only] => Some(only.index),
        nodes => place.filter(|&place| nodes.iter().any(|node| node.index == place)),
    }
}

/// Cards, disks, shards and arenas that belong to no NUMA node.
fn elsewhere(out: &mut String, picture: &Picture) -> fmt::Result {
    let nowhere = |place: Option<u32>| home(picture, place).is_none();
    let mut lines = Vec::new();
    let shards: Vec<u32> = picture.shards.iter().filter(|s| nowhere(s.numa_node)).map(|s| s.shard).collect();
    if !shards.is_empty() {
        lines.push(format!("shards  {}, not pinned", format_list(&shards)));
    }
    lines.extend(picture.arenas.iter().filter(|a| nowhere(a.numa_node)).map(arena));
    lines.extend(picture.nics.iter().filter(|card| nowhere(card.numa_node)).map(|card| nic(picture, card)));
    lines.extend(picture.disks.iter().filter(|d| nowhere(d.numa_node)).map(|d| disk(picture, d)));
    for directory in picture.spill.iter().filter(|directory| directory.disk.is_none()) {
        lines.push(format!("spill   {} is on no disk of this machine", directory.path.display()));
    }
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "\non no NUMA node in particular")?;
    branch(out, &lines)
}

fn branch(out: &mut String, lines: &[String]) -> fmt::Result {
    let last = lines.iter().rposition(|line| !line.starts_with(' ')).unwrap_or(0);
    lines.iter().enumerate().try_for_each(|(index, line)| {
        let edge = match (line.starts_with(' '), index >= last) {
            (true, false) => "|  ",
            (true, true) => "   ",
            (false, true) => "`- ",
            (false, false) => "|- ",
        };
        writeln!(out, "{edge}{line}")
    })
}

/// The cores of a node by last-level cache, each as its threads (`3+19`), with a star where a shard is.
fn cores_of(picture: &Picture, node: &NumaNode) -> Vec<String> {
    let topology = &picture.topology;
    let shards: BTreeSet<u32> = picture.shards.iter().filter_map(|shard| shard.pu).collect();
    let name = |core: &Core| {
        let threads: Vec<String> =
            core.pus.iter().map(|pu| if shards.contains(pu) { format!("{pu}*") } else { pu.to_string() }).collect();
        threads.join("+")
    };
    let mut lines = Vec::new();
    let cores: Vec<&Core> = topology.cores.iter().filter(|core| core.numa_node == node.index).collect();
    let level = topology.caches.iter().map(|cache| cache.level).max().unwrap_or(0);
    let cache_of = |core: &Core| topology.caches.iter().position(|c| c.level == level && c.pus.contains(&core.pus[0]));
    let mut groups: Vec<(Option<usize>, Vec<&Core>)> = Vec::new();
    for core in cores {
        let cache = cache_of(core);
        match groups.iter_mut().find(|(group, _)| *group == cache) {
            Some((_, members)) => members.push(core),
            None => groups.push((cache, vec![core])),
        }
    }
    for (cache, members) in groups {
        let mut label = match cache.map(|index| &topology.caches[index]) {
            Some(cache) => format!("cores   L{} {}:", cache.level, format_bytes(cache.size_bytes)),
            None => "cores  ".to_owned(),
        };
        let mut line = label.clone();
        for core in members {
            let text = name(core);
            if line.len() + text.len() + 2 > CORES_WIDTH {
                lines.push(line);
                label = " ".repeat(label.len());
                line = label.clone();
            }
            line += "  ";
            line += &text;
        }
        lines.push(line);
    }
    lines
}

fn arena(arena: &PlacedArena) -> String {
    let why = arena.fallback.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("arena   {}: {}, pages: {}{why}", arena.segment, format_bytes(arena.size_bytes), arena.pages)
}

fn nic(picture: &Picture, nic: &Nic) -> String {
    let mut parts = vec![nic.driver.clone().unwrap_or_else(|| "network card".to_owned())];
    parts.extend(nic.speed_mbit_s.map(|speed| match speed {
        1000.. => format!("{} Gb/s", speed as f64 / 1000.0),
        _ => format!("{speed} Mb/s"),
    }));
    parts.push(if nic.up { "up" } else { "down" }.to_owned());
    format!("net     {}: {}; nearest shards {}", nic.name, parts.join(", "), near(picture, nic.numa_node))
}

fn disk(picture: &Picture, disk: &Disk) -> String {
    let kind = match disk.kind {
        DiskKind::Nvme => "NVMe",
        DiskKind::Ssd => "SSD",
        DiskKind::Hdd => "rotating",
        DiskKind::Virtual => "virtual",
    };
    let mut parts = vec![kind.to_owned(), format_bytes(disk.size_bytes)];
    parts.extend(disk.model.clone());
    let spill: Vec<String> = picture
        .spill
        .iter()
        .filter(|directory| directory.disk.as_ref() == Some(&disk.name))
        .map(|directory| directory.path.display().to_string())
        .collect();
    let spills = match spill.is_empty() {
        true => String::new(),
        false => format!("; spill to {}, nearest shards {}", spill.join(", "), near(picture, disk.numa_node)),
    };
    format!("disk    {}: {}{spills}", disk.name, parts.join(", "))
}

fn near(picture: &Picture, numa_node: Option<u32>) -> String {
    format_list(&picture.shards_near(numa_node))
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
