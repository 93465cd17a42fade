//! Every program in examples/, and in those of the transport, does what it says at its top.

mod native_support;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use native_support::{eventually, Node};
use raylet_transport::client::Client;
use raylet_transport::ids::ObjectId;
use rustix::thread::{sched_getaffinity, sched_setaffinity, CpuSet};

/// Where cargo has put an example: it builds them for `cargo test`.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this executable");
    let profile = test.ancestors().nth(2).expect("it lies in deps/ of a profile");
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "{} is not there: run `cargo build --workspace --examples` first", path.display());
    path
}

fn command(name: &str, node: &Node) -> Command {
    let mut command = Command::new(example(name));
    command.arg(node.socket()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts a program that may use one hardware thread only.
fn spawn_on(pu: usize, command: &mut Command) -> Child {
    let all = sched_getaffinity(None).expect("this thread's");
    let mut one = CpuSet::new();
    one.set(pu);
    // A child begins with what its parent's thread has.
    sched_setaffinity(None, &one).expect("a hardware thread of this machine");
    let child = command.spawn();
    sched_setaffinity(None, &all).expect("as before");
    child.expect("it starts")
}

/// What a program says, which ends well and in time.
fn said(mut child: Child) -> String {
    // Where it does not, it ends with its node.
    eventually("the program ends", || child.try_wait().expect("it is a child").is_some());
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it has ended");
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("it writes text")
}

#[test]
fn a_producer_and_a_consumer() {
    let node = Node::start(&["--cores", "0-1"]);
    let mut producer = command("producer_consumer", &node).args(["produce", "50"]).spawn().expect("it starts");
    let ids = producer.stdout.take().expect("it was asked for");
    let consumer = command("producer_consumer", &node).args(["consume", "50"]).stdin(ids).spawn().expect("it starts");
    // n is there n + 1 times, for all n below 50.
    let sum: u64 = (0..50).map(|n| n * (n + 1)).sum();
    assert_eq!(said(consumer), format!("the sum of all numbers is {sum}\n"));
    assert_eq!(said(producer), "");
    node.is_empty();
    node.stop();
}

#[test]
fn what_a_process_creates_lies_on_its_numa_node() {
    // Two NUMA nodes of one hardware thread each; one core serves both, then each has its own.
    for (cores, pu) in [("--cores=auto", 0), ("--cores=auto", 1), ("--cores=0-1", 0), ("--cores=0-1", 1)] {
        let node = Node::start_on("node:2 core:1 pu:1", &[cores]);
        assert_eq!(node.used_bytes(), [0, 0]);
        let mut producer = spawn_on(pu, command("producer_consumer", &node).args(["produce", "500"]));
        // It waits for its consumer when all are made.
        let bytes: u64 = (1..=500).map(|n| 8 * n).sum();
        eventually("its objects are in the memory of its NUMA node", || node.used_bytes()[pu] >= bytes);
        assert_eq!(node.used_bytes()[1 - pu], 0, "{cores}, hardware thread {pu}");
        producer.kill().expect("it is a child");
        producer.wait().expect("it is a child");
        node.stop();
    }
}

#[test]
fn a_parallel_map() {
    let worker = format!("{} --worker", example("parallel_map").display());
    let node = Node::start(&["--cores", "0-1", "--resources", "CPU=2", "--worker-command", &worker]);
    let map = command("parallel_map", &node).arg("10").spawn().expect("it starts");
    assert_eq!(said(map), "9592 primes below 100000\n");
    node.stop();
}

#[test]
fn an_async_client() {
    let node = Node::start(&["--cores", "0", "--resources", "CPU=1"]);
    let said = said(command("async_client", &node).spawn().expect("it starts"));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "100 objects, the sum of all is 4950");
    assert!(lines[1].contains("the lease is granted"), "{said}");
    assert_eq!(lines.len(), 3, "{said}");
    node.is_empty();
    node.stop();
}

#[test]
fn a_client_that_puts_for_ray() {
    let node = Node::start(&["--cores", "0", "--resources", "CPU=2"]);
    let said = said(command("beside_ray", &node).args(["2", "some bytes"]).spawn().expect("it starts"));
    let (id, rest) = said.split_once('\n').expect("a line");
    assert_eq!(rest, "leased\n");
    let bytes: Vec<u8> = (0..id.len() / 2).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap()).collect();
    let client = Client::connect(node.socket()).expect("a connection");
    let id = ObjectId(bytes.try_into().expect("an id"));
    let object = client.get(id, Some(Duration::ZERO)).expect("nobody has evicted it");
    assert_eq!((object.data(), object.metadata()), (&b"some bytes"[..], &b"RAW"[..]));
    drop(object);
    client.delete(id).expect("it is there");
    drop(client);
    node.is_empty();
    node.stop();
}
