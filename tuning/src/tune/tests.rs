use std::collections::BTreeMap;

use super::*;
use crate::cores::CoreChoice;
use crate::fake::{FakeHost, FakeNode};
use crate::placement::{plan_arenas, PlacedArena};

const LIMITS: &str = "Max open files            1024                 4096                 files
Max locked memory         65536                65536                bytes";
const NODE_POOL: &str = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";

/// Two NUMA nodes, and settings as distributions have them.
fn usual() -> FakeHost {
    let fake = FakeHost::machine(&[FakeNode { cores: 8, memory_mib: 16384 }; 2], 1);
    for (path, text) in [
        ("/proc/meminfo", "MemTotal: 33554432 kB\nMemAvailable: 29360128 kB"),
        ("/proc/self/limits", LIMITS),
        ("/proc/sys/kernel/numa_balancing", "1"),
        ("/proc/sys/kernel/io_uring_disabled", "0"),
        ("/proc/sys/vm/swappiness", "60"),
        ("/proc/sys/vm/overcommit_memory", "0"),
        ("/proc/sys/vm/zone_reclaim_mode", "0"),
        ("/proc/sys/net/core/somaxconn", "4096"),
        ("/proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432"),
        ("/proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304"),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "never"),
        ("/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave"),
        ("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "700"),
        (NODE_POOL, "0"),
        ("/etc/sysctl.d/10-other.conf", "vm.swappiness = 60"),
    ] {
        fake.file(path, text);
    }
    fake
}

fn picture(host: &Host) -> Picture {
    let mut picture = Picture::of(host).unwrap();
    let plans = plan_arenas(&picture.topology, &CoreChoice::Auto, &[7, 15], 8 << 30);
    let place = |plan: &crate::ArenaPlan| PlacedArena {
        segment: 0,
        numa_node: plan.numa_node,
        size_bytes: plan.size_bytes,
        pages: String::new(),
        fallback: None,
    };
    picture.arenas = plans.iter().map(place).collect();
    picture
}

fn plan_for(fake: &FakeHost, reserve: &[Reserve]) -> Plan {
    let host = fake.host();
    plan(&host, &Request { picture: &picture(&host), reserve }).unwrap()
}

/// Every file below a host's root.
fn everything(fake: &FakeHost) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![fake.host().path("/")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => directories.push(entry.path()),
                false => drop(found.insert(entry.path(), fs::read_to_string(entry.path()).unwrap().trim().to_owned())),
            }
        }
    }
    found
}

#[test]
fn what_is_wrong_is_set_and_what_is_right_is_left() {
    let fake = usual();
    let change = plan_for(&fake, &[]);
    let live: Vec<(String, &str)> = change
        .live
        .iter()
        .map(|c| (c.path.file_name().unwrap().to_string_lossy().into_owned(), c.after.as_str()))
        .collect();
    let expected = [
        ("numa_balancing", "0"),
        ("swappiness", "10"),
        ("tcp_wmem", "4096 16384 16777216"),
        ("enabled", "madvise"),
        ("scaling_governor", "performance"),
    ];
    assert_eq!(live, expected.map(|(name, value)| (name.to_owned(), value)));
    let paths: Vec<&str> = change.files.iter().map(|file| file.path.to_str().unwrap()).collect();
    assert_eq!(paths, [SYSCTL_FILE, TMPFILES_FILE, USER_DROP_IN, LIMITS_FILE]);
    let diff = change.diff();
    for line in [
        "--- /dev/null\n+++ /etc/sysctl.d/90-raylet-uring.conf\n",
        "+vm.swappiness = 10\n",
        "+w /sys/kernel/mm/transparent_hugepage/enabled - - - - madvise\n",
        "+[Service]\n",
        "+LimitMEMLOCK=infinity\n",
        "+* - nofile 65536\n",
        "now /proc/sys/vm/swappiness: 60 -> 10\n",
    ] {
        assert!(diff.contains(line), "{line:?} is missing in\n{diff}");
    }
    for good in ["tcp_rmem", "somaxconn", "io_uring", "zone_reclaim", "overcommit", "nr_hugepages"] {
        assert!(!diff.contains(good), "{good} in\n{diff}");
    }
}

#[test]
fn one_numa_node_needs_no_settings_for_many() {
    let fake = FakeHost::machine(&[FakeNode { cores: 4, memory_mib: 1024 }], 1);
    fake.file("/proc/sys/kernel/numa_balancing", "1");
    assert_eq!(plan_for(&fake, &[]), Plan::default());
}

#[test]
fn applying_does_what_was_shown_once_and_undoing_restores_everything() {
    let fake = usual();
    let before = everything(&fake);
    let change = plan_for(&fake, &[]);
    assert_eq!(everything(&fake), before, "planning changes nothing");
    assert_eq!(apply(&fake.host(), &change).unwrap(), Vec::<String>::new());
    assert_eq!(fake.read("/proc/sys/vm/swappiness").unwrap(), "10");
    assert!(fake.read(SYSCTL_FILE).unwrap().contains("kernel.numa_balancing = 0\n"));
    assert!(plan_for(&fake, &[]).is_empty(), "{}", plan_for(&fake, &[]).diff());
    assert_eq!(undo(&fake.host()).unwrap(), Vec::<String>::new());
    assert_eq!(everything(&fake), before);
    assert!(!fake.host().path("/etc/systemd/system/user@.service.d").exists(), "made for the drop-in");
    assert!(matches!(undo(&fake.host()), Err(TuneError::NothingToUndo { .. })));
}

#[test]
fn a_second_call_keeps_what_the_first_one_wrote_and_undo_goes_back_to_before_both() {
    let fake = usual();
    let before = everything(&fake);
    let reserve = [Reserve { pages: PageChoice::Huge2M, count: 1000 }];
    assert_eq!(apply(&fake.host(), &plan_for(&fake, &reserve)).unwrap(), Vec::<String>::new());
    // Half for each node; a pool that is larger stays.
    assert_eq!(fake.read(NODE_POOL).unwrap(), "500");
    assert!(fake.read(TMPFILES_FILE).unwrap().contains("node0/hugepages/hugepages-2048kB/nr_hugepages - - - - 700\n"));
    assert!(fake.read(UNIT_DROP_IN).unwrap().contains("Environment=RAYLET_URING_HUGEPAGES=2M\n"));
    // The limits of this process are as they should be by now, and a value got worse.
    fake.file("/proc/self/limits", "Max open files 1048576 1048576 files");
    fake.file("/proc/sys/net/core/somaxconn", "128");
    let second = plan_for(&fake, &[]);
    assert_eq!(second.files.iter().map(|file| file.path.to_str().unwrap()).collect::<Vec<_>>(), [SYSCTL_FILE]);
    apply(&fake.host(), &second).unwrap();
    assert_eq!(undo(&fake.host()).unwrap(), Vec::<String>::new());
    fake.file("/proc/self/limits", LIMITS);
    let mut after = everything(&fake);
    assert_eq!(after.remove(&fake.host().path("/proc/sys/net/core/somaxconn")).as_deref(), Some("128"));
    let mut before = before;
    before.remove(&fake.host().path("/proc/sys/net/core/somaxconn"));
    assert_eq!(after, before);
}

#[test]
fn what_others_changed_since_is_left_alone() {
    let fake = usual();
    apply(&fake.host(), &plan_for(&fake, &[])).unwrap();
    fake.file(SYSCTL_FILE, "vm.swappiness = 5");
    fake.file("/proc/sys/vm/swappiness", "5");
    let left = undo(&fake.host()).unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left[0].contains(SYSCTL_FILE) && left[1].contains("/proc/sys/vm/swappiness is 5"), "{left:?}");
    assert_eq!(fake.read("/proc/sys/kernel/numa_balancing").unwrap(), "1", "the rest is restored");
    assert_eq!(fake.read(SYSCTL_FILE).unwrap().trim(), "vm.swappiness = 5");
}

#[test]
fn an_apply_that_broke_off_can_be_undone() {
    let fake = usual();
    let before = everything(&fake);
    let change = plan_for(&fake, &[]);
    // The second file's directory can't be made.
    fake.file("/etc/tmpfiles.d", "in the way");
    let error = apply(&fake.host(), &change).unwrap_err();
    assert!(error.to_string().starts_with(TMPFILES_FILE), "{error}");
    assert!(fake.read(SYSCTL_FILE).is_some());
    assert_eq!(undo(&fake.host()).unwrap(), Vec::<String>::new());
    fs::remove_file(fake.host().path("/etc/tmpfiles.d")).unwrap();
    assert_eq!(everything(&fake), before);
}

#[test]
fn what_the_kernel_refuses_is_said() {
    let fake = usual();
    let host = fake.host();
    let large = [Reserve { pages: PageChoice::Huge1G, count: 2 }];
    let error = plan(&host, &Request { picture: &picture(&host), reserve: &large }).unwrap_err();
    assert!(error.to_string().contains("hugepages-1048576kB"), "{error}");
    let mut change = plan_for(&fake, &[]);
    change.live.push(LiveChange { path: "/proc/sys/no/such".into(), before: "0".into(), after: "1".into() });
    let refused = apply(&fake.host(), &change).unwrap();
    assert_eq!(refused.len(), 1);
    assert!(refused[0].contains("/proc/sys/no/such can't be set to 1"), "{refused:?}");
    fake.file(RECORD, "{");
    assert!(matches!(undo(&fake.host()), Err(TuneError::Record { .. })));
}
