//! A machine as the kernel's sysfs tree describes it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Cache, Draft, Place};
use crate::host::Host;
use crate::sysfs;

/// Reads /sys/devices/system, keeping only `allowed` PUs. `None` where it lists no online PUs.
pub(super) fn read(host: &Host, allowed: &[u32]) -> Option<Draft> {
    let root = &host.path("/sys/devices/system");
    let online = sysfs::index_list(&sysfs::text(root.join("cpu/online"))?)?;
    let usable = |pu: &u32| allowed.binary_search(pu).is_ok();
    let mut draft = Draft::default();
    let mut node_of_pu = BTreeMap::new();
    for (node, path) in nodes(root) {
        let pus = sysfs::text(path.join("cpulist")).and_then(|list| sysfs::index_list(&list)).unwrap_or_default();
        node_of_pu.extend(pus.into_iter().map(|pu| (pu, node)));
        let meminfo = sysfs::text(path.join("meminfo")).unwrap_or_default();
        draft.memory_bytes.insert(node, sysfs::kib_line_bytes(&meminfo, "MemTotal").unwrap_or(0));
    }
    if draft.memory_bytes.is_empty() {
        // A kernel without NUMA has one node, which is all of the machine.
        let meminfo = host.text("/proc/meminfo").unwrap_or_default();
        draft.memory_bytes.insert(0, sysfs::kib_line_bytes(&meminfo, "MemTotal").unwrap_or(0));
    }
    for pu in online.iter().copied().filter(usable) {
        let cpu = root.join(format!("cpu/cpu{pu}"));
        let list = |name: &str| {
            let text = sysfs::text(cpu.join("topology").join(name))?;
            sysfs::index_list(&text)
        };
        let siblings = list("core_cpus_list").or_else(|| list("thread_siblings_list"));
        let core = siblings.and_then(|pus| pus.first().copied()).unwrap_or(pu);
        let package = sysfs::number(cpu.join("topology/physical_package_id")).unwrap_or(u64::MAX);
        let numa_node = node_of_pu.get(&pu).copied().unwrap_or(0);
        draft.places.push(Place { pu, core: u64::from(core), package, numa_node });
        draft.caches.extend(caches(&cpu.join("cache"), usable));
    }
    Some(draft)
}

fn nodes(root: &Path) -> Vec<(u32, PathBuf)> {
    let online = sysfs::text(root.join("node/online")).and_then(|list| sysfs::index_list(&list)).unwrap_or_default();
    online.into_iter().map(|node| (node, root.join(format!("node/node{node}")))).collect()
}

fn caches(directory: &Path, usable: impl Fn(&u32) -> bool) -> Vec<Cache> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| cache(&entry.path(), &usable)).collect()
}

fn cache(directory: &Path, usable: impl Fn(&u32) -> bool) -> Option<Cache> {
    let level = u32::try_from(sysfs::number(directory.join("level"))?).ok()?;
    if sysfs::text(directory.join("type"))? == "Instruction" {
        return None;
    }
    let size = sysfs::text(directory.join("size"))?;
    let size_bytes = size.strip_suffix('K')?.parse::<u64>().ok()? << 10;
    let mut pus = sysfs::index_list(&sysfs::text(directory.join("shared_cpu_list"))?)?;
    pus.retain(usable);
    Some(Cache { level, size_bytes, pus })
}
