use std::collections::BTreeSet;

use super::*;
use crate::cores::CoreChoice;
use crate::fake::{FakeHost, FakeNode};
use crate::pages::PageKind;
use crate::placement::{plan_arenas, PlacedArena};
use crate::probes::{Clock, DiskSpeed, Rings};

const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units
Max processes             unlimited            unlimited            processes
Max open files            1024                 1048576              files
Max locked memory         8388608              unlimited            bytes";

/// A machine of two NUMA nodes on which every check is content.
fn well_set() -> FakeHost {
    let fake = FakeHost::machine(&[FakeNode { cores: 8, memory_mib: 16384 }; 2], 1);
    for (path, text) in [
        ("/proc/meminfo", "MemTotal: 33554432 kB\nMemAvailable: 29360128 kB"),
        ("/proc/self/limits", LIMITS),
        ("/proc/swaps", "Filename Type Size Used Priority"),
        ("/proc/sys/kernel/osrelease", "6.12.1-amd64"),
        ("/proc/sys/kernel/io_uring_disabled", "0"),
        ("/proc/sys/kernel/numa_balancing", "0"),
        ("/proc/sys/vm/swappiness", "60"),
        ("/proc/sys/vm/overcommit_memory", "0"),
        ("/proc/sys/vm/zone_reclaim_mode", "0"),
        ("/proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432"),
        ("/proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t16777216"),
        ("/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999"),
        ("/proc/sys/net/core/somaxconn", "4096"),
        ("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "always within_size advise [never] deny force"),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
        ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
        ("/sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet acpi_pm"),
        ("/proc/irq/40/smp_affinity_list", "0-3"),
        ("/proc/self/mountinfo", "21 1 259:0 / / rw - ext4 /dev/nvme0n1 rw"),
    ] {
        fake.file(path, text);
    }
    for pu in 0..16 {
        fake.file(&format!("/sys/devices/system/cpu/cpu{pu}/cpufreq/scaling_governor"), "performance");
    }
    fake.device("net", "eth0", 0, &[("operstate", "up"), ("speed", "100000")]);
    fake.file("/sys/devices/pci0000:00/eth0.0/msi_irqs/40", "msix");
    fake.device("block", "nvme0n1", 1, &[("dev", "259:0"), ("size", "8388608"), ("queue/rotational", "0")]);
    fake
}

/// What is asked of the machine.
#[derive(Clone)]
struct Ask {
    pages: PageChoice,
    store_bytes: u64,
    unpinned: bool,
}

const USUAL: Ask = Ask { pages: PageChoice::Auto, store_bytes: 4 << 30, unpinned: false };

fn checks(fake: &FakeHost, ask: &Ask) -> Vec<Check> {
    let host = fake.host();
    let mut picture = Picture::of(&host).unwrap();
    let cores = CoreChoice::Auto.resolve(&picture.topology).unwrap();
    picture.place_shards(&cores.iter().map(|&pu| (!ask.unpinned).then_some(pu)).collect::<Vec<_>>());
    let plans = plan_arenas(&picture.topology, &CoreChoice::Auto, &cores, ask.store_bytes);
    picture.arenas = plans
        .iter()
        .enumerate()
        .map(|(segment, plan)| PlacedArena {
            segment: segment as u32,
            numa_node: plan.numa_node,
            size_bytes: plan.size_bytes,
            pages: ask.pages.to_string(),
            fallback: None,
        })
        .collect();
    picture.place_spill(&["/spill".into()]);
    let subject = Subject {
        host: &host,
        picture: &picture,
        pages: ask.pages,
        store_bytes: ask.store_bytes,
        ports: &[6379, 8265],
        measure_disks: true,
    };
    examine(&subject)
}

#[test]
fn a_well_set_machine_has_nothing_to_mend() {
    let checks = checks(&well_set(), &USUAL);
    for check in &checks {
        assert_eq!(check.level, Level::Ok, "{check:?}");
        assert!(check.costs.is_none() && check.mend.is_empty() && !check.found.is_empty(), "{check:?}");
    }
    assert_eq!(exit_status(&checks), 0);
}

struct Fault {
    check: &'static str,
    level: Level,
    found: &'static str,
    mend: &'static str,
    make: fn(&mut FakeHost, &mut Ask),
}

fn fault(
    check: &'static str,
    level: Level,
    found: &'static str,
    mend: &'static str,
    make: fn(&mut FakeHost, &mut Ask),
) -> Fault {
    Fault { check, level, found, mend, make }
}

fn limits(fake: &FakeHost, from: &str, to: &str) {
    assert!(LIMITS.contains(from));
    fake.file("/proc/self/limits", &LIMITS.replace(from, to));
}

fn group(fake: &FakeHost, file: &str, text: &str) {
    fake.file("/proc/self/cgroup", "0::/box");
    fake.file("/sys/fs/cgroup/cgroup.controllers", "cpu memory pids");
    fake.file(&format!("/sys/fs/cgroup/box/{file}"), text);
}

/// Each fault that a machine can have, alone.
fn faults() -> Vec<Fault> {
    use Level::{Error, Warning};
    vec![
        fault("kernel", Error, "5.10.0", "linux-image", |f, _| f.file("/proc/sys/kernel/osrelease", "5.10.0-21")),
        fault("io_uring_disabled", Error, "forbidden", "io_uring_disabled=0", |f, _| {
            f.file("/proc/sys/kernel/io_uring_disabled", "2")
        }),
        fault("io_uring_disabled", Error, "privileged", "io_uring_disabled=0", |f, _| {
            f.file("/proc/sys/kernel/io_uring_disabled", "1")
        }),
        fault("io_uring", Error, "Function not implemented", "seccomp", |f, _| f.answers.rings = Err(libc::ENOSYS)),
        fault("io_uring", Error, "lacks ACCEPT", "linux-image", |f, _| {
            f.answers.rings = Ok(Rings { missing: vec!["ACCEPT".into()], missing_fast: vec![] })
        }),
        fault("io_uring", Warning, "lacks SEND_ZC", "linux-image", |f, _| {
            f.answers.rings = Ok(Rings { missing: vec![], missing_fast: vec!["SEND_ZC".into()] })
        }),
        fault("memlock", Error, "64 KiB may be locked, a node needs 512", "--memlock=524288", |f, _| {
            limits(f, "8388608              unlimited ", "65536 65536 ")
        }),
        fault("open files", Warning, "4096", "--nofile=65536", |f, _| limits(f, "1048576 ", "4096 ")),
        fault("processes", Warning, "may have 512", "--nproc=1600", |f, _| {
            limits(f, "unlimited            unlimited            processes", "512 512 processes")
        }),
        fault("processes", Warning, "room for 40", "echo 1660 > /sys/fs/cgroup/box/pids.max", |f, _| {
            group(f, "pids.max", "100");
            group(f, "pids.current", "60")
        }),
        fault("memory", Error, "control group /sys/fs/cgroup/box", "--object-store-memory 939524096", |f, _| {
            group(f, "memory.max", "2147483648");
            group(f, "memory.current", "1073741824")
        }),
        fault("memory", Error, "object store of 40960 MiB", "--object-store-memory", |f, a| {
            f.answers.filesystem = Ok((1 << 40, 1 << 40));
            a.store_bytes = 40 << 30
        }),
        fault(
            "hugetlb",
            Warning,
            "0 of 1024 pages of 2 MiB are free on NUMA node 1",
            "echo 1024 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages",
            |_, a| a.pages = PageChoice::Huge2M,
        ),
        fault(
            "hugetlb",
            Warning,
            "1 of 2 pages of 1024 MiB are free on NUMA node 0",
            "echo 3 > /sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages",
            |f, a| {
                a.pages = PageChoice::Huge1G;
                pool(f, 0, 1_048_576, 2, 1);
                pool(f, 1, 1_048_576, 2, 2)
            },
        ),
        fault("shared huge pages", Warning, "shmem_enabled is never", "echo advise", |f, _| {
            f.answers.huge_pages = (PageKind::Small, Some("no way".into()))
        }),
        fault("shared huge pages", Warning, "shmem_enabled is absent", "--hugepages 2M=2048", |f, _| {
            f.file("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "");
            f.answers.huge_pages = (PageKind::Small, None)
        }),
        fault("programs' huge pages", Warning, "off", "echo madvise", |f, _| {
            f.file("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
        }),
        fault("/dev/shm", Warning, "64 MiB", "remount", |f, a| {
            a.store_bytes = 32 << 20;
            f.answers.filesystem = Ok((64 << 20, 64 << 20))
        }),
        fault("swappiness", Warning, "60", "vm.swappiness=10", |f, _| {
            f.file("/proc/swaps", "Filename Type Size Used Priority\n/swap file 8388604 0 -2")
        }),
        fault("overcommit", Warning, "strict", "overcommit_memory=0", |f, _| {
            f.file("/proc/sys/vm/overcommit_memory", "2")
        }),
        fault("NUMA balancing", Warning, "on", "numa_balancing=0", |f, _| {
            f.file("/proc/sys/kernel/numa_balancing", "1")
        }),
        fault("zone reclaim", Warning, "on", "zone_reclaim_mode=0", |f, _| {
            f.file("/proc/sys/vm/zone_reclaim_mode", "1")
        }),
        fault("governor", Warning, "powersave on CPUs 15", "cpu$c", |f, _| {
            f.file("/sys/devices/system/cpu/cpu15/cpufreq/scaling_governor", "powersave")
        }),
        fault("interrupts", Warning, "1 of eth0", "echo 0-6,8-14 > /proc/irq/40/smp_affinity_list", |f, _| {
            f.file("/proc/irq/40/smp_affinity_list", "0-15")
        }),
        fault("clock source", Warning, "hpet", "echo tsc >", |f, _| {
            f.file("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet")
        }),
        fault("clock source", Warning, "900 ns", "echo tsc >", |f, _| {
            f.answers.clock = Ok(Clock { synchronized: true, read_ns: 900 })
        }),
        fault("clock", Warning, "nothing keeps it right", "timedatectl", |f, _| {
            f.answers.clock = Ok(Clock { synchronized: false, read_ns: 25 })
        }),
        fault("clock", Warning, "can't be looked at", "timedatectl", |f, _| f.answers.clock = Err(libc::EPERM)),
        fault("TCP buffers", Warning, "tcp_wmem up to 4 MiB", "net.ipv4.tcp_wmem='4096 16384 16777216'", |f, _| {
            f.file("/proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304")
        }),
        fault("backlog", Warning, "128", "somaxconn=1024", |f, _| f.file("/proc/sys/net/core/somaxconn", "128")),
        fault("ports", Warning, "8265 (in use)", "sport = :8265", |f, _| {
            f.answers.taken_ports.insert(8265);
        }),
        fault("port range", Warning, "1000 ports", "ip_local_port_range", |f, _| {
            f.file("/proc/sys/net/ipv4/ip_local_port_range", "60000 60999")
        }),
        fault("spill room", Warning, "/spill has 2048 MiB free", "df -h /spill", |f, _| {
            f.answers.filesystem = Ok((8 << 30, 2 << 30))
        }),
        fault("spill disk", Warning, "can't be written: Permission denied", "test -w /spill", |f, _| {
            f.answers.disk = Err(libc::EACCES)
        }),
        fault("spill disk", Warning, "90 MB/s written", "lsblk", |f, _| {
            f.answers.disk = Ok(DiskSpeed { direct: true, write_mb_s: 90.0, read_mb_s: 120.0 })
        }),
        fault("spill disk", Warning, "2000 MB/s written", "RAY_object_spilling_directory", |f, _| {
            f.answers.disk = Ok(DiskSpeed { direct: false, write_mb_s: 2000.0, read_mb_s: 3000.0 })
        }),
    ]
}

fn pool(fake: &FakeHost, node: u32, page_kib: u64, total: u64, free: u64) {
    let directory = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-{page_kib}kB");
    fake.file(&format!("{directory}/nr_hugepages"), &total.to_string());
    fake.file(&format!("{directory}/free_hugepages"), &free.to_string());
}

#[test]
fn each_fault_is_found_alone_with_its_price_and_its_remedy() {
    for fault in faults() {
        let (mut fake, mut ask) = (well_set(), USUAL.clone());
        (fault.make)(&mut fake, &mut ask);
        let checks = checks(&fake, &ask);
        let bad: Vec<&Check> = checks.iter().filter(|check| check.level != Level::Ok).collect();
        let names: Vec<&str> = bad.iter().map(|check| check.name).collect();
        assert_eq!(names, [fault.check], "{bad:?}");
        let check = bad[0];
        assert_eq!(check.level, fault.level, "{check:?}");
        assert!(check.found.contains(fault.found), "{check:?} lacks {:?}", fault.found);
        assert!(check.mend.iter().any(|command| command.contains(fault.mend)), "{check:?} lacks {:?}", fault.mend);
        assert!(check.costs.as_ref().is_some_and(|costs| costs.len() > 10), "{check:?}");
        assert_eq!(exit_status(&checks), fault.level as i32);
    }
}

#[test]
fn every_check_has_a_fault_that_it_finds() {
    let names: BTreeSet<&str> = checks(&well_set(), &USUAL).iter().map(|check| check.name).collect();
    let mut found: BTreeSet<&str> = faults().iter().map(|fault| fault.check).collect();
    // Shown by the test below this one.
    found.insert("CPU quota");
    assert_eq!(names, found);
}

/// `auto` makes fewer shards where there is a quota, so this fault needs cores that were chosen.
#[test]
fn more_shards_than_the_quota_allows_are_found() {
    let fake = well_set();
    group(&fake, "cpu.max", "150000 100000");
    let host = fake.host();
    let mut picture = Picture::of(&host).unwrap();
    let mut judge = |pus: &[Option<u32>]| {
        picture.place_shards(pus);
        let subject = Subject {
            host: &host,
            picture: &picture,
            pages: PageChoice::Auto,
            store_bytes: 1,
            ports: &[],
            measure_disks: false,
        };
        examine(&subject).into_iter().find(|check| check.name == "CPU quota").unwrap()
    };
    let (bad, good) = (judge(&[Some(7), Some(15)]), judge(&[Some(7)]));
    assert_eq!((bad.level, bad.found.as_str()), (Level::Warning, "1.5 CPUs for 2 shards"));
    assert_eq!(bad.mend, ["raylet-uring --cores auto:1"]);
    assert_eq!((good.level, good.found.as_str()), (Level::Ok, "1.5 CPUs"));
}

#[test]
fn what_costs_nothing_here_is_no_finding() {
    // One NUMA node: balancing and zone reclaim do nothing. No swap: swappiness does nothing.
    let one = FakeHost::machine(&[FakeNode { cores: 2, memory_mib: 8192 }], 1);
    one.file("/proc/sys/kernel/osrelease", "6.12.1");
    one.file("/proc/sys/kernel/numa_balancing", "1");
    one.file("/proc/sys/vm/zone_reclaim_mode", "1");
    one.file("/proc/sys/vm/swappiness", "100");
    let bad: Vec<Check> = checks(&one, &USUAL).into_iter().filter(|check| check.level != Level::Ok).collect();
    assert_eq!(bad, []);
    // Privileged processes and members of the group may use io_uring where the setting is 1.
    for status in ["CapEff:\t0000000000200000", "Groups:\t7 1000"] {
        let fake = well_set();
        fake.file("/proc/sys/kernel/io_uring_disabled", "1");
        fake.file("/proc/sys/kernel/io_uring_group", "1000");
        fake.file("/proc/self/status", &format!("{status}\nCpus_allowed_list:\t0-15"));
        assert_eq!(exit_status(&checks(&fake, &USUAL)), 0, "{status}");
    }
    // Who may lock memory anyway needs no limit for it.
    let fake = well_set();
    limits(&fake, "8388608              unlimited ", "8388608 8388608 ");
    fake.file("/proc/self/status", "CapEff:\t0000000000004000\nCpus_allowed_list:\t0-15");
    assert_eq!(exit_status(&checks(&fake, &USUAL)), 0);
    // Interrupts don't matter to shards that aren't pinned.
    let fake = well_set();
    fake.file("/proc/irq/40/smp_affinity_list", "0-15");
    assert_eq!(exit_status(&checks(&fake, &Ask { unpinned: true, ..USUAL })), 0);
    // A pool that has the pages satisfies who asks for them.
    let fake = well_set();
    pool(&fake, 0, 2048, 1024, 1024);
    pool(&fake, 1, 2048, 1100, 1024);
    assert_eq!(exit_status(&checks(&fake, &Ask { pages: PageChoice::Huge2M, ..USUAL })), 0);
}

#[test]
fn this_machine_can_be_examined() {
    let host = Host::this();
    let mut picture = Picture::of(&host).unwrap();
    picture.place_shards(&[None]);
    picture.place_spill(&[std::env::temp_dir()]);
    let subject = Subject {
        host: &host,
        picture: &picture,
        pages: PageChoice::Auto,
        store_bytes: 64 << 20,
        ports: &[],
        measure_disks: true,
    };
    let checks = examine(&subject);
    assert!(checks.iter().all(|check| check.level != Level::Error), "{checks:?}");
    assert!(checks.iter().all(|check| (check.level == Level::Ok) == check.mend.is_empty()), "{checks:?}");
}
