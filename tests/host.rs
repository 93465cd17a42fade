//! The commands about the host, as people call them: `topology`, `doctor`, `tune`, and what a service manager hears.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use raylet_transport::client::{Client, LeaseSpec};
use rustix::thread::{sched_getaffinity, sched_setaffinity, CpuSet};
use serde_json::Value;
use tempfile::TempDir;

const OURS: &str = env!("CARGO_BIN_EXE_raylet-uring");
/// Nothing here takes longer on a machine that isn't stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program with nothing of ours or Ray's in its environment, and nodes of its own.
fn program(nodes: &Path) -> Command {
    clean(OURS, nodes)
}

fn clean(program: &str, nodes: &Path) -> Command {
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars_os() {
        let text = variable.to_string_lossy();
        if text.starts_with("RAY") || text.starts_with("HWLOC") || text == "XDG_RUNTIME_DIR" {
            command.env_remove(&variable);
        }
    }
    command.env("RAYLET_URING_RUNTIME_DIR", nodes);
    command
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn say(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// The files of a machine with 2 NUMA nodes of 4 cores, a card on node 0 and a disk on node 1.
fn machine() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let file = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    };
    let link = |path: &str, target: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    };
    file("sys/devices/system/cpu/online", "0-6");
    file("sys/devices/system/cpu/present", "0-7");
    file("sys/devices/system/node/online", "0-1");
    for node in 0..2 {
        let (first, last) = (node * 4, if node == 0 { 3 } else { 6 });
        file(&format!("sys/devices/system/node/node{node}/cpulist"), &format!("{first}-{last}"));
        file(&format!("sys/devices/system/node/node{node}/meminfo"), &format!("Node {node} MemTotal: 8388608 kB"));
        for pu in first..=last {
            file(&format!("sys/devices/system/cpu/cpu{pu}/topology/core_cpus_list"), &pu.to_string());
            file(&format!("sys/devices/system/cpu/cpu{pu}/topology/physical_package_id"), &node.to_string());
        }
    }
    for (class, name, node) in [("net", "eth0", 0), ("block", "nvme0n1", 1)] {
        let device = format!("devices/pci/{name}.0/{class}/{name}");
        file(&format!("sys/devices/pci/{name}.0/numa_node"), &node.to_string());
        file(&format!("sys/{device}/operstate"), "up");
        file(&format!("sys/{device}/dev"), "259:0");
        file(&format!("sys/{device}/size"), "2097152");
        link(&format!("sys/{device}/device"), "../..");
        link(&format!("sys/class/{class}/{name}"), &format!("../../{device}"));
    }
    file("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-7\nMems_allowed_list:\t0-1");
    file("proc/self/mountinfo", "21 1 259:0 / /spill rw - ext4 /dev/nvme0n1 rw");
    file("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 12582912 kB");
    file("proc/swaps", "Filename Type Size Used Priority\n/swap file 8388604 0 -2");
    file("proc/sys/kernel/osrelease", "6.12.1");
    file("proc/sys/vm/swappiness", "60");
    file("proc/sys/kernel/numa_balancing", "1");
    root
}

#[test]
fn topology_draws_a_machine_with_everything_in_its_place() {
    let (root, nodes) = (machine(), tempfile::tempdir().unwrap());
    let draw = |more: &[&str]| {
        let mut command = program(nodes.path());
        command.arg("topology").arg("--root").arg(root.path());
        say(command.args(["--cores", "auto:2", "--object-store-memory", "1G", "--spill-dir", "/spill/ray"]).args(more))
    };
    let text = draw(&[]);
    assert_eq!(text.code, Some(0), "{}", text.err);
    let expected = "\
machine  2 packages, 2 NUMA nodes, 7 cores, 7 threads (sysfs)
usable   threads 0-6; no CPU quota; 12.00 GiB left by the machine's available memory
         threads 7 are offline
node     a node with these settings: 2 shards, object store of 1.00 GiB
lanes    to other nodes are on shards 0

NUMA node 0  package 0, 8.00 GiB of memory
|- cores    0  1  2  3*
|- shards  0 on thread 3
|- arena   0: 512.00 MiB, pages: auto
`- net     eth0: network card, up; nearest shards 0

NUMA node 1  package 1, 8.00 GiB of memory
|- cores    4  5  6*
|- shards  1 on thread 6
|- arena   1: 512.00 MiB, pages: auto
`- disk    nvme0n1: NVMe, 1.00 GiB; spill to /spill/ray, nearest shards 1
";
    assert_eq!(text.out, expected);
    let picture: Value = serde_json::from_str(&draw(&["--json"]).out).unwrap();
    assert_eq!(picture["placed_by"], "settings");
    assert_eq!(picture["topology"]["offline_pus"], serde_json::json!([7]));
    assert_eq!(picture["shards"][1], serde_json::json!({"shard": 1, "pu": 6, "numa_node": 1}));
    assert_eq!(picture["spill"][0]["disk"], "nvme0n1");
}

#[test]
fn topology_of_four_nodes_by_hwloc_and_cores_that_are_not_there() {
    let nodes = tempfile::tempdir().unwrap();
    let machine = "Package:2 NUMANode:2(memory=8589934592) L3:1(size=16777216) Core:8 PU:2";
    let draw = |cores: &str| {
        let mut command = program(nodes.path());
        say(command.env("HWLOC_SYNTHETIC", machine).args(["topology", "--json", "--cores", cores]))
    };
    let drawn = draw("auto:8");
    let picture: Value = serde_json::from_str(&drawn.out).unwrap_or_else(|e| panic!("{e}: {}", drawn.err));
    assert_eq!(picture["topology"]["numa_nodes"].as_array().unwrap().len(), 4);
    let of_shards: Vec<u64> =
        picture["shards"].as_array().unwrap().iter().map(|shard| shard["numa_node"].as_u64().unwrap()).collect();
    assert_eq!(of_shards, [0, 0, 1, 1, 2, 2, 3, 3]);
    assert_eq!(picture["arenas"].as_array().unwrap().len(), 4);
    let missing = draw("numa:7");
    assert_eq!((missing.code, missing.out.as_str()), (Some(1), ""));
    assert!(missing.err.contains("NUMA node 7") && missing.err.contains("0-3"), "{}", missing.err);
}

#[test]
fn doctor_judges_and_its_status_is_for_scripts() {
    let (root, nodes) = (machine(), tempfile::tempdir().unwrap());
    fs::create_dir(root.path().join("spill")).unwrap();
    let examine = |more: &[&str]| {
        let mut command = program(nodes.path());
        command.arg("doctor").arg("--root").arg(root.path()).args(["--no-disk", "--ports", "0"]);
        say(command.args(["--spill-dir", "/spill", "--object-store-memory", "64M"]).args(more))
    };
    let text = examine(&[]);
    assert_eq!(text.code, Some(1), "{}{}", text.out, text.err);
    for line in
        ["warning  swappiness", "mend:  sysctl -w vm.swappiness=10", "warning  NUMA balancing", "ok       kernel"]
    {
        assert!(text.out.contains(line), "{line:?} is missing in\n{}", text.out);
    }
    let level = |name: &str| {
        let checks: Vec<Value> = serde_json::from_str(&examine(&["--json"]).out).unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}"))["level"].clone()
    };
    assert_eq!((level("swappiness"), level("kernel")), ("warning".into(), "ok".into()));
    fs::write(root.path().join("proc/sys/kernel/osrelease"), "5.4.0\n").unwrap();
    assert_eq!(level("kernel"), "error");
    assert_eq!(examine(&[]).code, Some(2));
    let wrong = examine(&["--cores", "99"]);
    assert_eq!((wrong.code, wrong.out.as_str()), (Some(2), ""));
    assert!(wrong.err.contains("99"), "{}", wrong.err);
}

#[test]
fn doctor_looks_at_this_machine() {
    let nodes = tempfile::tempdir().unwrap();
    let said = say(program(nodes.path()).args(["doctor", "--json", "--object-store-memory", "64M"]));
    let checks: Vec<Value> = serde_json::from_str(&said.out).unwrap();
    let worst = checks.iter().map(|check| match check["level"].as_str().unwrap() {
        "ok" => 0,
        "warning" => 1,
        "error" => 2,
        other => panic!("{other}"),
    });
    assert_eq!(said.code, worst.max());
    assert!(checks.len() > 20 && checks.iter().any(|check| check["name"] == "spill disk"), "{}", said.out);
}

#[test]
fn tune_shows_then_writes_then_takes_back() {
    let (root, nodes) = (machine(), tempfile::tempdir().unwrap());
    let tune =
        |arguments: &[&str]| say(program(nodes.path()).arg("tune").arg("--root").arg(root.path()).args(arguments));
    let (swappiness, written) =
        (root.path().join("proc/sys/vm/swappiness"), root.path().join("etc/sysctl.d/90-raylet-uring.conf"));
    let shown = tune(&[]);
    assert_eq!(shown.code, Some(1), "{}", shown.err);
    assert!(shown.out.contains("+vm.swappiness = 10\n") && shown.out.contains("nothing was changed"), "{}", shown.out);
    assert!(!written.exists());
    let applied = tune(&["--apply"]);
    assert_eq!(applied.code, Some(0), "{}{}", applied.out, applied.err);
    assert!(applied.out.starts_with("--- /dev/null\n+++ /etc/sysctl.d"), "{}", applied.out);
    assert!(fs::read_to_string(&written).unwrap().contains("vm.swappiness = 10\n"));
    assert_eq!(fs::read_to_string(&swappiness).unwrap().trim(), "10");
    let again = tune(&["--apply"]);
    assert_eq!((again.code, again.out.as_str()), (Some(0), "nothing to do: the machine is set\n"));
    let undone = tune(&["--undo"]);
    assert_eq!(undone.code, Some(0), "{}", undone.err);
    assert!(undone.out.contains("-vm.swappiness = 10\n"), "{}", undone.out);
    assert!(!written.exists() && fs::read_to_string(&swappiness).unwrap().trim() == "60");
    assert_eq!(tune(&["--undo"]).code, Some(2));
    for (wrong, word) in [("2M", "2M=COUNT"), ("thp=3", "2M=COUNT"), ("2M=0", "2M=COUNT"), ("1G=4", "1048576kB")] {
        let refused = tune(&["--hugepages", wrong]);
        assert!(refused.code == Some(2) && refused.err.contains(word), "{wrong}: {}", refused.err);
    }
    assert_eq!(tune(&["--apply", "--undo"]).code, Some(2));
}

/// A child that is gone when the test is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_service_manager_hears_of_readiness_life_and_end_and_topology_shows_the_node() {
    let nodes = tempfile::tempdir().unwrap();
    let path = nodes.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut bytes = [0; 512];
        let count = manager.recv(&mut bytes).expect("a message before the patience ends");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    let mut command = program(&nodes.path().join("nodes"));
    command.args(["--cores=0", "--object-store-memory=64M", "--warm-reserve=0"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").stdout(Stdio::null()).stderr(Stdio::null());
    // Before the node's first word, so that a test that is held up measures more, never less.
    let started = Instant::now();
    let mut node = Running(command.spawn().unwrap());
    assert!(hear().starts_with("READY=1\n"));
    for _ in 0..12 {
        assert_eq!(hear(), "WATCHDOG=1\n");
    }
    assert!(started.elapsed() > Duration::from_millis(1150), "reports of life come at half the interval");

    let mut command = program(&nodes.path().join("nodes"));
    let drawn = say(command.args(["topology", "--json"]));
    let picture: Value = serde_json::from_str(&drawn.out).unwrap_or_else(|e| panic!("{e}: {}", drawn.err));
    assert_eq!(picture["placed_by"]["node"], node.0.id());
    assert_eq!((&picture["shards"][0]["pu"], picture["arenas"][0]["size_bytes"].as_u64()), (&0.into(), Some(64 << 20)));

    let log_level = |arguments: &[&str]| say(program(&nodes.path().join("nodes")).arg("log-level").args(arguments));
    let changed = log_level(&["warn,raylet_uring::node=debug"]);
    assert!(
        changed.code == Some(0) && changed.out.ends_with(".sock: warn,raylet_uring::node=debug\n"),
        "{}",
        changed.out
    );
    assert_eq!(log_level(&[]).out, changed.out, "it holds");
    let refused = log_level(&["loud"]);
    assert!(refused.code == Some(4) && refused.err.contains("\"loud\" is no level"), "{}", refused.err);
    assert_eq!(log_level(&[]).out, changed.out, "a wrong one changes nothing");

    let pid = rustix::process::Pid::from_child(&node.0);
    // Who rotates logs sends this: the node goes on.
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    for _ in 0..3 {
        assert_eq!(hear(), "WATCHDOG=1\n");
    }
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut last = hear();
    while last == "WATCHDOG=1\n" {
        last = hear();
    }
    assert!(last.starts_with("STOPPING=1\n"), "{last}");
    assert_eq!(node.0.wait().unwrap().code(), Some(0));
    assert_eq!(say(program(&nodes.path().join("nodes")).arg("log-level")).code, Some(3));
}

/// A node of its own on a machine that hwloc is told about, with its status once it answers.
fn node_on(machine: &str, arguments: &[&str]) -> (TempDir, Running, Value) {
    node_with(machine, arguments, |_| ())
}

fn node_with(machine: &str, arguments: &[&str], prepare: impl Fn(&mut Command)) -> (TempDir, Running, Value) {
    let nodes = tempfile::tempdir().unwrap();
    let mut command = program(&nodes.path().join("nodes"));
    prepare(&mut command);
    command.env("HWLOC_SYNTHETIC", machine).args(["--object-store-memory=64M", "--warm-reserve=64M"]).args(arguments);
    let log = nodes.path().join("log");
    let mut node = Running(command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = say(program(&nodes.path().join("nodes")).args(["status", "--json"]));
        if said.code == Some(0) {
            let mut status: Value = serde_json::from_str(&said.out).unwrap();
            return (nodes, node, status[0].take());
        }
        let waits = node.0.try_wait().unwrap().is_none() && Instant::now() < deadline;
        assert!(waits, "{}{}", said.err, fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The arenas of a status: planned NUMA node and size in MiB.
fn arenas(status: &Value) -> Vec<(Option<u64>, u64)> {
    let arenas = status["arenas"].as_array().unwrap().iter();
    arenas.map(|arena| (arena["numa_node"].as_u64(), arena["size_bytes"].as_u64().unwrap() >> 20)).collect()
}

#[test]
fn arenas_are_made_where_the_cores_were_chosen() {
    // This machine has two hardware threads at least, and they are all that such a node is pinned to.
    let two = "node:2 core:1 pu:1";
    assert_eq!(arenas(&node_on(two, &["--cores=auto"]).2), [(Some(0), 32), (Some(1), 32)]);
    assert_eq!(arenas(&node_on(two, &["--cores=0-1"]).2), [(Some(0), 32), (Some(1), 32)]);
    assert_eq!(arenas(&node_on("node:1 core:2 pu:1", &["--cores=auto"]).2), [(None, 64)]);
    let (nodes, _node, status) = node_on(two, &["--cores=numa:0"]);
    assert_eq!((arenas(&status), &status["cores"][0]), (vec![(Some(0), 64)], &0.into()));
    // What was planned is checked: pages that were touched ahead are looked up.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = say(program(&nodes.path().join("nodes")).args(["status", "--json"]));
        let status: Value = serde_json::from_str(&said.out).unwrap();
        let arena = &status[0]["arenas"][0];
        if arena["touched_bytes"] == arena["size_bytes"] {
            assert_eq!(arena["numa_problem"], Value::Null);
            assert!(arena["numa_pages_on_node"].as_u64() > Some(0), "{arena}");
            break;
        }
        assert!(Instant::now() < deadline, "{arena}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = say(program(&nodes.path().join("nodes")).arg("status"));
    assert!(said.out.contains("pages there)"), "{}", said.out);
}

/// An example program.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).expect("it lies in deps/ of a profile").join("examples").join(name);
    assert!(path.exists(), "{} is not there: run `cargo build --workspace --examples` first", path.display());
    path
}

/// Starts an example program, which cargo builds for tests, with one hardware thread for it.
fn example_on(pu: usize, name: &str, arguments: &[&str]) -> Running {
    let path = example(name);
    let all = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set(pu);
    // A child begins with what its parent's thread has.
    sched_setaffinity(None, &one).unwrap();
    let child = Command::new(path).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    sched_setaffinity(None, &all).unwrap();
    Running(child.unwrap())
}

#[test]
fn what_a_process_creates_lies_on_its_numa_node() {
    // Two NUMA nodes of one hardware thread each; one core serves both, then each has its own.
    for (cores, pu) in [("--cores=auto", 0), ("--cores=auto", 1), ("--cores=0-1", 0), ("--cores=0-1", 1)] {
        let (nodes, _node, status) = node_on("node:2 core:1 pu:1", &[cores]);
        let socket = status["sockets"][0]["address"].as_str().unwrap();
        let producer = example_on(pu, "producer_consumer", &[socket, "produce", "500"]);
        // It waits for its consumer when all are made.
        let bytes: u64 = (1..=500).map(|n| 8 * n).sum();
        let deadline = Instant::now() + PATIENCE;
        let used = loop {
            let said = say(program(&nodes.path().join("nodes")).args(["status", "--json"]));
            let status: Value = serde_json::from_str(&said.out).unwrap();
            let used = [0, 1].map(|arena| status[0]["arenas"][arena]["used_bytes"].as_u64().unwrap());
            if used[pu] >= bytes {
                break used;
            }
            assert!(Instant::now() < deadline, "{used:?}: {cores}, hardware thread {pu}");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(used[1 - pu], 0, "{cores}, hardware thread {pu}");
        drop(producer);
    }
}

/// Processes whose parent is this one.
fn children(parent: u32) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_ascii_whitespace();
        fields.nth(1).and_then(|ppid| ppid.parse().ok()) == Some(parent)
    };
    pids.filter(is_child).collect()
}

/// On which of the first two hardware threads a process may run.
fn allowed(pid: i32) -> Vec<usize> {
    let set = rustix::process::Pid::from_raw(pid).and_then(|pid| sched_getaffinity(Some(pid)).ok());
    (0..2).filter(|pu| set.as_ref().is_some_and(|set| set.is_set(*pu))).collect()
}

#[test]
fn native_workers_are_bound_to_the_numa_node_of_the_core_that_granted_their_lease() {
    let worker = format!("{} --worker", example("parallel_map").display());
    let flags = ["--cores=0-1", "--pin-workers", "--resources=CPU=2", "--worker-command", &worker];
    // Two NUMA nodes of one hardware thread and one shard each.
    let (nodes, node, status) = node_with("node:2 core:1 pu:1", &flags, |node| {
        node.env("RAY_AUTH_TOKEN", "the token of peers");
    });
    let status_now = || -> Value {
        let said = say(program(&nodes.path().join("nodes")).args(["status", "--json"]));
        serde_json::from_str::<Value>(&said.out).unwrap()[0].take()
    };
    let leased_by = |status: &Value| [0, 1].map(|shard| status["shards"][shard]["leases_granted"].as_u64().unwrap());
    let eventually = |what: &str, condition: &mut dyn FnMut() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            let now: Vec<(i32, Vec<usize>)> =
                children(node.0.id()).into_iter().map(|pid| (pid, allowed(pid))).collect();
            assert!(Instant::now() < deadline, "{what}: {now:?}, {}", status_now());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let socket = status["sockets"][0]["address"].as_str().unwrap();
    let clients = [(); 2].map(|()| Client::connect(socket).unwrap());
    let mut known: Vec<i32> = Vec::new();
    let mut held = Vec::new();
    for client in &clients {
        let before = leased_by(&status_now());
        // Work that is over at once; the lease lasts until it is returned.
        let input = client.put(&[0; 16]).unwrap();
        let spec = LeaseSpec::new("primes").resource("CPU", 1.0).deps([input]).payload(input.0);
        held.push(client.request_lease(&spec).unwrap());
        let after = leased_by(&status_now());
        let shard = (0..2).find(|&shard| after[shard] > before[shard]).expect("a shard granted it");
        let mut worker = 0;
        eventually("a worker is bound to the granting shard's thread", &mut || {
            let new = children(node.0.id()).into_iter().filter(|pid| !known.contains(pid));
            worker = new.into_iter().find(|pid| allowed(*pid) == [shard]).unwrap_or(0);
            worker != 0
        });
        known.push(worker);
    }
    assert_eq!(leased_by(&status_now()), [1, 1], "clients are served by the cores in turn");
    assert_eq!(status_now()["workers"]["pinned"], 2);
    for pid in &known {
        let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
        assert!(
            environment.contains("RAYLET_START_TOKEN=") && !environment.contains("the token of peers"),
            "{environment}"
        );
    }
    for lease in held {
        lease.return_().unwrap();
    }
    eventually("idle workers may run anywhere", &mut || known.iter().all(|pid| allowed(*pid) == [0, 1]));
    assert_eq!(status_now()["workers"]["pinned"], 0);
}

#[test]
fn the_log_has_the_form_that_was_asked_for() {
    let nodes = tempfile::tempdir().unwrap();
    let log = |format: &str| {
        let mut command = program(&nodes.path().join("nodes"));
        command.args(["--cores=0", "--object-store-memory=64M", "--warm-reserve=0", "--log-format", format]);
        let manager = UnixDatagram::bind(nodes.path().join(format)).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        command.env("NOTIFY_SOCKET", nodes.path().join(format)).stdout(Stdio::null()).stderr(Stdio::piped());
        let node = command.spawn().unwrap();
        manager.recv(&mut [0; 512]).expect("the node is ready");
        rustix::process::kill_process(rustix::process::Pid::from_child(&node), rustix::process::Signal::TERM).unwrap();
        let output = node.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stderr).unwrap()
    };
    let json = log("json");
    let messages: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(messages.iter().any(|line| line["fields"]["message"] == "shutting down"), "{json}");
    let journal = log("journal");
    assert!(journal.lines().any(|line| line == "<6>raylet_uring::node::own: shutting down"), "{journal}");
    let refused = say(program(nodes.path()).args(["--log-format", "xml"]));
    assert!(
        refused.code == Some(1) && refused.err.contains("auto, text, json, ray-json or journal"),
        "{}",
        refused.err
    );
}

/// Anybody's user: that of nobody, where the test may become that, else its own.
const NOBODY: u32 = 65_534;

/// A program of ours in a directory that everybody may enter.
fn for_everybody(program: &Path, dir: &Path) -> PathBuf {
    let copy = dir.join(program.file_name().unwrap());
    fs::copy(program, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

#[test]
fn an_unprivileged_user_with_default_limits_has_a_node_that_says_what_it_would_gain() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let is_root = rustix::process::getuid().is_root();
    if is_root {
        std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let ours = for_everybody(Path::new(OURS), dir.path());
    let client = for_everybody(&example("async_client"), dir.path());
    let nodes = home.join("nodes");
    // As that user, with limits that nothing can raise again.
    let unprivileged = |memlock_bytes: u64, what: &Path| {
        let mut command = clean("prlimit", &nodes);
        command.arg(format!("--memlock={memlock_bytes}:{memlock_bytes}")).arg("--nofile=1024:1024").arg(what);
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir(&home);
        command
    };
    let settings = ["--cores=0-1", "--object-store-memory=64M", "--resources=CPU=2"];
    let refused = say(unprivileged(256 << 10, &ours).args(settings));
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    let expected =
        "262144 bytes of memory may be locked (RLIMIT_MEMLOCK), a node's rings ask for 524288: `ulimit -l 512`";
    assert!(refused.err.contains(expected) && refused.err.contains("LimitMEMLOCK"), "{}", refused.err);

    let log = dir.path().join("log");
    let mut node = unprivileged(8 << 20, &ours);
    node.args(settings).stdout(Stdio::piped()).stderr(fs::File::create(&log).unwrap());
    let mut node = Running(node.spawn().unwrap());
    let said = BufReader::new(node.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let banner: Vec<String> = said.take_while(|line| line != "ready").collect();
    let log = || fs::read_to_string(&log).unwrap();
    let socket = banner.iter().find_map(|line| line.strip_prefix("  native socket: "));
    let socket = socket.unwrap_or_else(|| panic!("{banner:?}, {}", log()));
    let used = say(unprivileged(8 << 20, &client).arg(socket));
    assert_eq!(used.code, Some(0), "{}", used.err);
    assert!(used.out.starts_with("100 objects, the sum of all is 4950\n"), "{}", used.out);
    assert!(used.out.contains("the lease is granted"), "{}", used.out);
    let status: Value =
        serde_json::from_str(&say(unprivileged(8 << 20, &ours).args(["status", "--json"])).out).unwrap();
    assert_eq!((&status[0]["pid"], &status[0]["leases"]["granted"]), (&node.0.id().into(), &0.into()));

    let gain = "open files: 1024 files may be open; it costs: with a few hundred workers, connections are refused";
    let deadline = Instant::now() + PATIENCE;
    while !log().contains(gain) {
        assert!(Instant::now() < deadline, "{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(log().contains("`raylet-uring doctor` says how"), "{}", log());
    for raw in ["Cannot allocate memory", "glommio", "memlock"] {
        assert!(!log().contains(raw), "{raw} in {}", log());
    }
    let doctor =
        say(unprivileged(8 << 20, &ours).args(["doctor", "--no-disk", "--ports", "0"]).args(settings.split_at(2).0));
    assert!(doctor.out.contains("warning  open files            1024 files may be open"), "{}", doctor.out);
    assert!(doctor.out.contains("ok       memlock"), "{}", doctor.out);

    rustix::process::kill_process(rustix::process::Pid::from_child(&node.0), rustix::process::Signal::TERM).unwrap();
    assert_eq!(node.0.wait().unwrap().code(), Some(0), "{}", log());
    assert!(!Path::new(socket).exists());
}

#[test]
fn a_node_says_at_its_start_what_it_would_gain() {
    let nodes = tempfile::tempdir().unwrap();
    let settings = ["--cores=0", "--object-store-memory=64M"];
    let examine = || {
        let doctor = say(program(nodes.path()).args(["doctor", "--json", "--no-disk", "--ports", "0"]).args(settings));
        let checks: Vec<Value> = serde_json::from_str(&doctor.out).unwrap();
        let of_the_machine = |check: &&Value| check["level"] != "ok" && check["name"] != "spill room";
        let names = checks.iter().filter(of_the_machine).map(|check| check["name"].as_str().unwrap().to_owned());
        names.collect::<BTreeSet<String>>()
    };
    let mut findings = examine();
    let log = nodes.path().join("log");
    let mut command = program(&nodes.path().join("nodes"));
    command.args(settings).arg("--warm-reserve=0").stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
    let _node = Running(command.spawn().unwrap());
    let started = Instant::now();
    let said = loop {
        let text = fs::read_to_string(&log).unwrap();
        // A machine without findings says nothing, so there only the time tells.
        let waited = Duration::from_secs(if findings.is_empty() { 2 } else { PATIENCE.as_secs() });
        if text.contains("`raylet-uring doctor` says how") || started.elapsed() > waited {
            break text;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // What others do to the machine meanwhile may change its state: what it says both before and after holds.
    let after = examine();
    if findings.is_empty() == after.is_empty() {
        assert_eq!(said.contains("could serve the node better"), !findings.is_empty(), "{said}");
    }
    findings.retain(|name| after.contains(name));
    for name in findings {
        assert!(said.contains(&name), "{name} is missing in {said}");
    }
}
