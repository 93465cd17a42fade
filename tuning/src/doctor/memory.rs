//! Memory: how much, in which pages, and what the kernel does to it.

use super::{mib, Check, Subject};
use crate::arena::HEADROOM_KEPT_BYTES;
use crate::pages::{PageKind, HUGE_2M_BYTES};
use std::path::Path;

/// /dev/shm below which programs beside the node (torch, NCCL) run out.
const SHM_WANTED_BYTES: u64 = 1 << 30;
/// Swappiness above which the kernel swaps idle workers while caches could be dropped.
pub(crate) const SWAPPINESS_MAX: u64 = 10;

pub(super) fn room(subject: &Subject) -> Check {
    let name = "memory";
    let memory = &subject.picture.memory;
    let store = subject.store_bytes;
    let found = format!("{} left by {}; object store of {}", mib(memory.available_bytes), memory.limiter, mib(store));
    if subject.pages.hugetlb_bytes().is_some() {
        return Check::ok(name, format!("{found}, from the pool of huge pages"));
    }
    let most = memory.available_bytes.saturating_sub(HEADROOM_KEPT_BYTES);
    if store > most {
        return Check::error(
            name,
            found,
            format!("the node refuses to start: {} are kept for the machine", mib(HEADROOM_KEPT_BYTES)),
            [format!("raylet-uring --object-store-memory {most}"), format!("ray start --object-store-memory {most}")],
        );
    }
    Check::ok(name, found)
}

pub(super) fn hugetlb(subject: &Subject) -> Check {
    let name = "hugetlb";
    let pools = &subject.picture.huge_pages;
    let Some(page_bytes) = subject.pages.hugetlb_bytes() else {
        let reserved: u64 = pools.iter().map(|pool| pool.total * pool.page_bytes).sum();
        return Check::ok(name, format!("not asked for; {} are in the pools", mib(reserved)));
    };
    let mut mend = Vec::new();
    let mut found = Vec::new();
    for arena in &subject.picture.arenas {
        let wanted = arena.size_bytes.div_ceil(page_bytes);
        let of_node = |node: Option<u32>| node.is_none() || node == arena.numa_node || arena.numa_node.is_none();
        let same = pools.iter().filter(|pool| pool.page_bytes == page_bytes && of_node(pool.numa_node));
        let (free, total) = same.fold((0, 0), |(free, total), pool| (free + pool.unreserved(), total + pool.total));
        if free >= wanted {
            continue;
        }
        let (place, file) = match arena.numa_node {
            Some(node) => (format!(" on NUMA node {node}"), format!("/sys/devices/system/node/node{node}/hugepages")),
            None => (String::new(), "/sys/kernel/mm/hugepages".to_owned()),
        };
        found.push(format!("{free} of {wanted} pages of {} are free{place}", mib(page_bytes)));
        let target = total + wanted - free;
        mend.push(format!("echo {target} > {file}/hugepages-{}kB/nr_hugepages", page_bytes >> 10));
    }
    if found.is_empty() {
        return Check::ok(name, format!("the pools have the pages of {} that the object store takes", mib(page_bytes)));
    }
    let costs = "the object store gets transparent huge pages or 4 KiB pages instead";
    Check::warning(name, found.join("; "), costs, mend)
}

pub(super) fn transparent_huge_pages(subject: &Subject) -> Check {
    let name = "shared huge pages";
    let setting = subject.host.selected("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let shown = setting.clone().unwrap_or_else(|| "absent".to_owned());
    let costs =
        "the first write into fresh objects runs at a fifth of the speed (3 instead of 18 GB/s, tuning/README.md)";
    let mend = || match setting.as_deref() {
        Some("never" | "deny") => vec!["echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled".to_owned()],
        _ => vec![format!("raylet-uring tune --apply --hugepages 2M={}", subject.store_bytes.div_ceil(HUGE_2M_BYTES))],
    };
    match subject.host.huge_pages() {
        Ok((PageKind::Small, why)) => {
            let why = why.unwrap_or_default();
            Check::warning(name, format!("none can be had; shmem_enabled is {shown}: {why}"), costs, mend())
        }
        Ok((kind, _)) => Check::ok(name, format!("{kind}; shmem_enabled is {shown}")),
        Err(error) => Check::error(name, error.to_string(), "the node can't make its object store", mend()),
    }
}

pub(super) fn programs_huge_pages(subject: &Subject) -> Check {
    let name = "programs' huge pages";
    match subject.host.selected("/sys/kernel/mm/transparent_hugepage/enabled").as_deref() {
        Some("never") => Check::warning(
            name,
            "transparent huge pages are off for programs",
            "workers that compute on large arrays miss the TLB more often",
            ["echo madvise > /sys/kernel/mm/transparent_hugepage/enabled".to_owned()],
        ),
        Some(setting) => Check::ok(name, format!("transparent huge pages: {setting}")),
        None => Check::ok(name, "this kernel has no such setting"),
    }
}

pub(super) fn dev_shm(subject: &Subject) -> Check {
    let name = "/dev/shm";
    let costs = "the object store doesn't use it, but torch, NCCL and stock Ray beside the node do";
    let mend = ["mount -o remount,size=50% /dev/shm".to_owned(), "docker run --shm-size=8g ...".to_owned()];
    match subject.host.filesystem_bytes(Path::new("/dev/shm")) {
        Err(error) => Check::warning(name, format!("can't be looked at: {error}"), costs, mend),
        Ok((total, _)) if total < SHM_WANTED_BYTES => Check::warning(name, format!("has {}", mib(total)), costs, mend),
        Ok((total, free)) => Check::ok(name, format!("has {}, {} free", mib(total), mib(free))),
    }
}

pub(super) fn swappiness(subject: &Subject) -> Check {
    let name = "swappiness";
    let swaps = subject.host.text("/proc/swaps").unwrap_or_default().lines().count().saturating_sub(1);
    match (subject.host.number("/proc/sys/vm/swappiness"), swaps) {
        (_, 0) => Check::ok(name, "there is no swap"),
        (Some(value), _) if value > SWAPPINESS_MAX => Check::warning(
            name,
            format!("{value}, with swap"),
            "objects and idle workers are swapped out while caches could be dropped: milliseconds at their next use",
            [format!("sysctl -w vm.swappiness={SWAPPINESS_MAX}")],
        ),
        (value, _) => Check::ok(name, value.map_or("not told".to_owned(), |value| format!("{value}, with swap"))),
    }
}

pub(super) fn overcommit(subject: &Subject) -> Check {
    let name = "overcommit";
    match subject.host.number("/proc/sys/vm/overcommit_memory") {
        Some(2) => Check::warning(
            name,
            "strict: every mapping counts in full",
            "Python and the object store map more than they use; workers fail to start with memory free",
            ["sysctl -w vm.overcommit_memory=0".to_owned()],
        ),
        value => Check::ok(name, if value == Some(1) { "always" } else { "heuristic" }),
    }
}

pub(super) fn numa_balancing(subject: &Subject) -> Check {
    let name = "NUMA balancing";
    let on = subject.host.number("/proc/sys/kernel/numa_balancing").is_some_and(|value| value != 0);
    match (on, subject.numa_nodes()) {
        (true, 2..) => Check::warning(
            name,
            "on",
            "the kernel unmaps pages to see who uses them, and moves objects away from where they were put",
            ["sysctl -w kernel.numa_balancing=0".to_owned()],
        ),
        (true, _) => Check::ok(name, "on, without effect on one NUMA node"),
        (false, _) => Check::ok(name, "off"),
    }
}

pub(super) fn zone_reclaim(subject: &Subject) -> Check {
    let name = "zone reclaim";
    let on = subject.host.number("/proc/sys/vm/zone_reclaim_mode").is_some_and(|value| value != 0);
    if on && subject.numa_nodes() > 1 {
        return Check::warning(
            name,
            "on",
            "taking memory stalls while the kernel drops caches of one NUMA node, although another has free memory",
            ["sysctl -w vm.zone_reclaim_mode=0".to_owned()],
        );
    }
    Check::ok(name, if on { "on, without effect on one NUMA node" } else { "off" })
}
