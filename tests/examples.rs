//! Every program in examples/, and in those of the transport, does what it says at its top.

mod native_support;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use native_support::{eventually, Node};
use raylet_transport::client::Client;
use raylet_transport::ids::ObjectId;

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
