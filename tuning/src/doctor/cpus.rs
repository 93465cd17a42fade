//! CPUs: their share, their clock rate, who interrupts them, and the machine's clock.

use std::collections::BTreeSet;

use super::{Check, Subject};
use crate::cores::format_list;
use crate::sysfs;

/// Clock sources that are read without a system call.
const FAST_CLOCKS: &[&str] =
    &["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "timebase", "tod"];
/// A reading of the clock that takes longer went through the kernel.
const CLOCK_READ_MAX_NS: u64 = 500;

pub(super) fn quota(subject: &Subject) -> Check {
    let name = "CPU quota";
    let shards = subject.picture.shards.len() as u64;
    match subject.picture.topology.cpu_quota_milli {
        Some(milli) if milli < shards * 1000 => Check::warning(
            name,
            format!("{} CPUs for {shards} shards", milli as f64 / 1000.0),
            "when the quota is used up, every shard stands still for the rest of the 100 ms",
            [format!("raylet-uring --cores auto:{}", (milli / 1000).max(1))],
        ),
        Some(milli) => Check::ok(name, format!("{} CPUs", milli as f64 / 1000.0)),
        None => Check::ok(name, "none"),
    }
}

pub(super) fn governor(subject: &Subject) -> Check {
    let name = "governor";
    let mut pus = subject.pinned();
    if pus.is_empty() {
        pus = subject.picture.topology.allowed_pus();
    }
    let file = |pu: u32| format!("/sys/devices/system/cpu/cpu{pu}/cpufreq/scaling_governor");
    let slow: Vec<(u32, String)> = pus
        .iter()
        .filter_map(|&pu| Some((pu, subject.host.text(file(pu))?)))
        .filter(|(_, governor)| governor != "performance")
        .collect();
    let Some((_, governor)) = slow.first() else {
        return Check::ok(name, "nothing slows the cores of the shards down");
    };
    let pus: Vec<u32> = slow.iter().map(|(pu, _)| *pu).collect();
    Check::warning(
        name,
        format!("{governor} on CPUs {}", format_list(&pus)),
        "a core that was idle takes up to milliseconds to reach its speed, which shows in every latency",
        [format!(
            "for c in {}; do echo performance > /sys/devices/system/cpu/cpu$c/cpufreq/scaling_governor; done",
            pus.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
        )],
    )
}

pub(super) fn interrupts(subject: &Subject) -> Check {
    let name = "interrupts";
    let pinned: BTreeSet<u32> = subject.pinned().into_iter().collect();
    if pinned.is_empty() {
        return Check::ok(name, "no shard is pinned, so they can't be in its way");
    }
    let topology = &subject.picture.topology;
    let others: Vec<u32> = topology.allowed_pus().into_iter().filter(|pu| !pinned.contains(pu)).collect();
    let mut hits = Vec::new();
    for card in &subject.picture.nics {
        for irq in irqs_of(subject, &card.name) {
            let list = ["effective_affinity_list", "smp_affinity_list"]
                .iter()
                .find_map(|file| subject.host.text(format!("/proc/irq/{irq}/{file}")).filter(|list| !list.is_empty()));
            let cpus = list.and_then(|list| sysfs::index_list(&list)).unwrap_or_default();
            if cpus.iter().any(|cpu| pinned.contains(cpu)) {
                hits.push((irq, card.name.clone()));
            }
        }
    }
    if hits.is_empty() {
        return Check::ok(name, "those of the network cards go to other cores than the shards'");
    }
    if others.is_empty() {
        return Check::ok(name, "every usable core carries a shard, so they have to go to one");
    }
    let cards: BTreeSet<&str> = hits.iter().map(|(_, card)| card.as_str()).collect();
    let cards: Vec<&str> = cards.into_iter().collect();
    Check::warning(
        name,
        format!("{} of {} go to cores with a shard", hits.len(), cards.join(", ")),
        "each packet stops the shard for some microseconds",
        hits.iter().map(|(irq, _)| format!("echo {} > /proc/irq/{irq}/smp_affinity_list", format_list(&others))),
    )
}

/// The interrupts of a card: those of the nearest device above it that has any.
fn irqs_of(subject: &Subject, card: &str) -> Vec<u32> {
    let Ok(device) = subject.host.path(format!("/sys/class/net/{card}/device")).canonicalize() else {
        return Vec::new();
    };
    let names = |place: &std::path::Path| subject.host.names(subject.host.name_of(&place.join("msi_irqs")));
    let found = device.ancestors().map(names).find(|names| !names.is_empty()).unwrap_or_default();
    found.iter().filter_map(|name| name.parse().ok()).collect()
}

pub(super) fn clock_source(subject: &Subject) -> Check {
    let name = "clock source";
    let directory = "/sys/devices/system/clocksource/clocksource0";
    let source = subject.host.text(format!("{directory}/current_clocksource")).unwrap_or_default();
    let read_ns = subject.host.clock().map_or(0, |clock| clock.read_ns);
    let known = source.is_empty() || FAST_CLOCKS.contains(&source.as_str());
    if known && read_ns <= CLOCK_READ_MAX_NS {
        return Check::ok(name, format!("{source}, {read_ns} ns a reading"));
    }
    let available = subject.host.text(format!("{directory}/available_clocksource")).unwrap_or_default();
    let better = FAST_CLOCKS.iter().find(|fast| available.split_whitespace().any(|name| name == **fast));
    let mend = match better {
        Some(better) => format!("echo {better} > {directory}/current_clocksource"),
        None => "echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX tsc=reliable\"' >> /etc/default/grub && update-grub && reboot".to_owned(),
    };
    let costs = "the clock is read for every operation; through the kernel that takes microseconds";
    Check::warning(name, format!("{source}, {read_ns} ns a reading"), costs, [mend])
}

pub(super) fn clock_synchronized(subject: &Subject) -> Check {
    let name = "clock";
    match subject.host.clock() {
        Ok(clock) if clock.synchronized => Check::ok(name, "kept right (NTP or PTP)"),
        Ok(_) => Check::warning(
            name,
            "nothing keeps it right",
            "logs, timelines and the deadlines of tokens disagree between nodes",
            ["timedatectl set-ntp true".to_owned()],
        ),
        Err(error) => Check::warning(
            name,
            format!("can't be looked at: {error}"),
            "logs, timelines and the deadlines of tokens may disagree between nodes",
            ["timedatectl status".to_owned()],
        ),
    }
}
