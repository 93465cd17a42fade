//! Nodes of their own that have each other as peers, on one machine: objects go where they are wanted, and nodes come and go.

mod native_support;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use native_support::{eventually, Node};
use raylet_transport::client::{Client, ClientError, LeaseSpec};
use raylet_transport::ids::ObjectId;
use raylet_transport::messages::RefusalCode;

const LONG: Option<Duration> = Some(Duration::from_secs(60));
const TOKEN: &str = "a token of many letters";

/// A port that is free now.
fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("a bound socket").port()
}

/// The nodes of a cluster: all have the same list and the same token.
struct Cluster {
    ports: Vec<u16>,
    token: PathBuf,
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn new(count: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let token = dir.path().join("token");
        std::fs::write(&token, TOKEN).expect("a file");
        Self { ports: (0..count).map(|_| port()).collect(), token, _dir: dir }
    }

    fn start(&self, index: usize, more: &[&str]) -> Node {
        let list: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let (list, listen) = (list.join(","), format!("127.0.0.1:{}", self.ports[index]));
        let token = self.token.to_str().expect("a path of text");
        let mut flags = vec!["--peers", &list, "--peer-listen", &listen];
        for default in [["--token-file", token], ["--cores", "0"]] {
            if !more.contains(&default[0]) {
                flags.extend(default);
            }
        }
        flags.extend(more);
        Node::start(&flags)
    }
}

/// What `raylet-uring status --json` tells of a node.
fn status(node: &Node) -> serde_json::Value {
    let nodes: serde_json::Value = serde_json::from_slice(&ask_status(node, "--json")).expect("JSON");
    nodes[0].clone()
}

/// What `raylet-uring status` prints of a node.
fn ask_status(node: &Node, how: &str) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_raylet-uring"))
        .args(["status", how])
        .env("RAYLET_URING_RUNTIME_DIR", node.socket().with_file_name("run"))
        .output()
        .expect("the command runs");
    output.stdout
}

fn connect(node: &Node) -> Client {
    Client::connect(node.socket()).expect("a connection")
}

/// Bytes that are wrong wherever a piece of them is at another place.
fn bytes(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|at| (at.wrapping_mul(31) ^ (at >> 12).wrapping_mul(7) ^ seed) as u8).collect()
}

fn code(error: ClientError) -> RefusalCode {
    error.code().unwrap_or_else(|| panic!("not a refusal: {error}"))
}

#[test]
fn what_is_put_on_one_node_is_got_and_waited_for_on_another_of_its_host() {
    put_here_and_got_there(&["--bulk-same-host=true"], true);
}

#[test]
fn what_is_put_on_one_node_is_got_and_waited_for_on_another_by_tcp() {
    put_here_and_got_there(&["--bulk-same-host=false"], false);
}

#[test]
fn what_is_put_on_one_node_is_got_and_waited_for_on_another_without_a_copy_on_the_way() {
    put_here_and_got_there(&["--bulk-same-host=false", "--bulk-zero-copy=true"], false);
}

fn put_here_and_got_there(by: &[&str], same_host: bool) {
    let cluster = Cluster::new(3);
    let store = [&["--object-store-memory", "200M"], by].concat();
    let nodes = [
        cluster.start(0, &store),
        cluster.start(1, &[&["--cores", "0-1"], &store[..]].concat()),
        cluster.start(2, &store),
    ];
    let clients = [connect(&nodes[0]), connect(&nodes[1]), connect(&nodes[2])];
    for (n, size) in [0, 1, 1 << 10, 65_537, 1 << 20, 64 << 20].into_iter().enumerate() {
        let (from, to) = (&clients[n % 3], &clients[(n + 1) % 3]);
        let data = bytes(size, n);
        let id = from.put(&data).unwrap();
        assert_eq!(code(to.get(id, Some(Duration::ZERO)).unwrap_err()), RefusalCode::UnknownObject, "nobody waits");
        let object = to.get(id, LONG).unwrap();
        assert!(object[..] == data[..], "{size} bytes");
        drop(object);
        from.delete(id).unwrap();
    }
    // Both ends of the metadata.
    let id = clients[0].put_with_metadata(&bytes(5 << 20, 1), b"about it").unwrap();
    let object = clients[1].get(id, LONG).unwrap();
    assert!(object[..] == bytes(5 << 20, 1)[..] && object.metadata() == b"about it");
    // A wait for objects of both other nodes, and of none.
    let ids = [clients[0].put(b"first").unwrap(), clients[2].put(b"second").unwrap(), ObjectId([9; 28])];
    assert_eq!(clients[1].wait(&ids, 2, LONG).unwrap(), [0, 1]);
    assert_eq!(code(clients[1].get(ids[2], Some(Duration::from_millis(50))).unwrap_err()), RefusalCode::DeadlinePassed);
    // One that is made later, and wanted on two nodes by then.
    let later = ObjectId([7; 28]);
    std::thread::scope(|scope| {
        let getters: Vec<_> =
            clients[1..].iter().map(|client| scope.spawn(|| client.get(later, LONG).unwrap().to_vec())).collect();
        let mut object = clients[0].create_as(later, 3 << 20, 0, None).unwrap();
        object.copy_from_slice(&bytes(3 << 20, 3));
        object.seal().unwrap();
        for getter in getters {
            assert!(getter.join().unwrap() == bytes(3 << 20, 3));
        }
    });
    // A lease that waits for objects of other nodes, and for one of its own node.
    let mut spec = LeaseSpec::new("").resource("CPU", 1.0);
    let own = ObjectId([5; 28]);
    spec.deps = vec![clients[0].put(&bytes(70_000, 4)).unwrap(), own, clients[2].put(b"dep").unwrap()];
    std::thread::scope(|scope| {
        let leased = scope.spawn(|| clients[1].request_lease(&spec).map(|lease| lease.return_()));
        clients[1].create_as(own, 1, 0, None).unwrap().seal().unwrap();
        leased.join().unwrap().unwrap().unwrap();
    });
    let told = status(&nodes[1]);
    let peers = told["peers"].as_array().unwrap();
    assert_eq!(peers[1]["state"], "itself", "{peers:?}");
    for peer in [&peers[0], &peers[2]] {
        assert_eq!((peer["state"].as_str(), peer["connects"].as_u64()), (Some("connected"), Some(1)), "{peer}");
        assert!(peer["received_objects"].as_u64() > Some(1) && peer["link_sent_bytes"].as_u64() > Some(0), "{peer}");
        assert!(peer["resources"]["CPU"]["total"].as_f64() > Some(0.5), "{peer}");
    }
    assert_eq!(told["peer_callers"], 2);
    let figures = String::from_utf8(ask_status(&nodes[1], "--metrics")).expect("text");
    for peer in [&peers[0], &peers[2]] {
        let label = format!("Peer={}}} ", peer["address"]);
        let of = |name: &str| {
            let lines = figures.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.split_once(&label)?.1.parse().ok()).next_back()
        };
        assert_eq!(of("raylet_uring_peer_up"), Some(1.0), "{figures}");
        assert!(of("raylet_uring_peer_received_bytes") >= peer["received_bytes"].as_f64(), "{figures}");
    }
    let moved = |way: &str| told["transfer"][format!("{way}_received_bytes")].as_u64().unwrap();
    assert!(moved("lane") > 5 << 20, "{}", told["transfer"]);
    assert_eq!(moved("same_host") > 5 << 20, same_host, "{}", told["transfer"]);
    assert_eq!(moved("same_host") > 0, same_host, "{}", told["transfer"]);
    drop(clients);
    nodes.into_iter().for_each(Node::stop);
}

#[test]
fn more_than_a_store_holds_is_read_through_it_and_getters_that_leave_leave_nothing() {
    let cluster = Cluster::new(2);
    let (maker, reader) = (cluster.start(0, &["--object-store-memory", "128M"]), cluster.start(1, &[]));
    let (from, to) = (connect(&maker), connect(&reader));
    let ids: Vec<ObjectId> = (0..12).map(|n| from.put(&bytes(8 << 20, n)).unwrap()).collect();
    for (n, id) in ids.iter().enumerate() {
        assert!(to.get(*id, LONG).unwrap()[..] == bytes(8 << 20, n)[..], "object {n}");
    }
    // All at once: each is there in its turn, though not all of them fit.
    std::thread::scope(|scope| {
        for (n, id) in ids.iter().enumerate().rev() {
            let client = connect(&reader);
            scope.spawn(move || assert!(client.get(*id, LONG).unwrap()[..] == bytes(8 << 20, n)[..], "object {n}"));
        }
    });
    let lost = connect(&reader);
    assert_eq!(
        code(lost.get(ObjectId([3; 28]), Some(Duration::from_millis(100))).unwrap_err()),
        RefusalCode::DeadlinePassed
    );
    eventually("nothing is wanted any more", || status(&reader)["transfer"]["pulls_wanted"] == 0);
    drop((lost, from, to));
    maker.stop();
    reader.stop();
}

#[test]
fn a_peer_that_dies_in_the_middle_is_left_for_another_and_taken_again_when_it_is_back() {
    let cluster = Cluster::new(3);
    let nodes = [cluster.start(0, &[]), cluster.start(1, &[]), cluster.start(2, &[])];
    let (first, second, reader) = (connect(&nodes[0]), connect(&nodes[1]), connect(&nodes[2]));
    let [dying, living, reading] = nodes;
    let size = 24 << 20;
    let both = first.put(&bytes(size, 1)).unwrap();
    drop(second.get(both, LONG).unwrap());
    let only = ObjectId([6; 28]);
    let mut object = first.create_as(only, size, 0, None).unwrap();
    object.copy_from_slice(&bytes(size, 2));
    object.seal().unwrap();
    std::thread::scope(|scope| {
        let getter = connect(&reading);
        let got_both = scope.spawn(|| reader.get(both, LONG).map(|object| object[..] == bytes(size, 1)[..]));
        let got_only = scope.spawn(move || getter.get(only, LONG).map(|object| object[..] == bytes(size, 2)[..]));
        eventually("it is asked, or has answered already", || {
            let told = status(&reading);
            told["transfer"]["pulls_wanted"].as_u64() > Some(0)
                || told["transfer"]["lane_received_bytes"].as_u64() > Some(0)
        });
        // SIGKILL, wherever the transfer is.
        drop((first, dying));
        assert!(got_both.join().unwrap().unwrap(), "the other node has it");
        eventually("it is lost", || status(&reading)["peers"][0]["state"] == "down");
        // It comes back, and has the object made anew.
        let back = cluster.start(0, &[]);
        let maker = connect(&back);
        if let Ok(mut object) = maker.create_as(only, size, 0, None) {
            object.copy_from_slice(&bytes(size, 2));
            object.seal().unwrap();
        }
        assert!(got_only.join().unwrap().unwrap(), "it is back");
        let id = maker.put(b"of the new one").unwrap();
        let client = connect(&reading);
        assert_eq!(client.get(id, LONG).unwrap()[..], b"of the new one"[..]);
        assert_eq!(status(&reading)["peers"][0]["connects"], 2);
        drop((maker, client));
        back.stop();
    });
    drop((second, reader));
    living.stop();
    reading.stop();
}

#[test]
fn a_lease_goes_to_the_peer_that_has_room_for_it() {
    let cluster = Cluster::new(2);
    let (busy, free) = (cluster.start(0, &["--resources", "CPU=1"]), cluster.start(1, &["--resources", "CPU=1,GPU=1"]));
    let client = connect(&busy);
    let (cpu, gpu) = (LeaseSpec::new("").resource("CPU", 1.0), LeaseSpec::new("").resource("GPU", 1.0));
    let free_cpus = || status(&busy)["peers"][1]["resources"]["CPU"]["available"].as_f64();
    eventually("its view came", || free_cpus() == Some(1.0));
    // What only the other node has.
    let there = client.request_lease(&gpu).unwrap_err().spillback().expect("the other node");
    let at = Client::connect(&there.socket).expect("it is on this machine");
    assert_eq!((at.node(), &there.socket), (there.node, &free.socket()));
    assert_eq!(there.address, format!("127.0.0.1:{}", cluster.ports[1]));
    assert_eq!(at.request_lease(&gpu).unwrap().allocation[0].instances, [0]);
    let five = LeaseSpec::new("").resource("GPU", 5.0);
    assert_eq!(code(client.request_lease(&five).unwrap_err()), RefusalCode::Infeasible, "no node has that");
    // What this node has, but not now.
    let held = client.request_lease(&cpu).unwrap();
    let moved = client.request_lease(&cpu).unwrap_err().spillback().expect("the other node has room");
    assert_eq!(moved, there);
    let held_there = at.request_lease(&cpu).unwrap();
    // Nobody has room: it waits here.
    eventually("it is known to be full", || free_cpus() == Some(0.0));
    let mut patient = cpu.clone();
    patient.wait = Some(Duration::from_millis(600));
    assert_eq!(code(client.request_lease(&patient).unwrap_err()), RefusalCode::DeadlinePassed);
    // It waits until there is room somewhere, here or there.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| client.request_lease(&cpu).map(|_| ()));
        drop(held_there);
        assert_eq!(waits.join().unwrap().unwrap_err().spillback(), Some(there.clone()));
    });
    at.drain(true, "for a test").unwrap();
    eventually("it is known to drain", || status(&busy)["peers"][1]["draining"] == true);
    assert_eq!(code(client.request_lease(&patient).unwrap_err()), RefusalCode::DeadlinePassed);
    drop(held);
    client.request_lease(&cpu).unwrap().return_().unwrap();
    drop((client, at));
    busy.is_empty();
    busy.stop();
    free.stop();
}

#[test]
fn whoever_does_not_know_the_token_is_no_peer_and_hears_why() {
    let cluster = Cluster::new(2);
    let node = cluster.start(0, &[]);
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(other.path(), "another token").unwrap();
    let stranger = cluster.start(1, &["--token-file", other.path().to_str().unwrap()]);
    let (owner, reader) = (connect(&node), connect(&stranger));
    let id = owner.put(b"not for everybody").unwrap();
    eventually("it hears why", || {
        let peer = status(&stranger)["peers"][0].clone();
        peer["state"] == "down" && peer["why"].as_str().is_some_and(|why| why.contains("token"))
    });
    assert_eq!(code(reader.get(id, Some(Duration::from_millis(200))).unwrap_err()), RefusalCode::DeadlinePassed);
    assert_eq!((&status(&node)["peer_callers"], &status(&stranger)["peer_callers"]), (&0.into(), &0.into()));
    owner.delete(id).unwrap();
    drop((owner, reader));
    node.is_empty();
    stranger.is_empty();
    node.stop();
    stranger.stop();
}

#[test]
fn what_is_wrong_with_the_settings_of_peers_is_said_at_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at_taken = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let said = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_raylet-uring"))
            .args(["--object-store-memory", "64M", "--socket", dir.path().join("door").to_str().unwrap()])
            .args(arguments)
            .env("RAYLET_URING_RUNTIME_DIR", dir.path())
            .env_remove("RAY_AUTH_TOKEN")
            .env_remove("RAY_AUTH_TOKEN_PATH")
            .stdin(Stdio::null())
            .output()
            .expect("it starts");
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (arguments, words) in [
        (&["--peers", "somewhere"][..], "host:7480"),
        (&["--peers", "a:1"], "--token-file"),
        (&["--peer-listen", &at_taken], "cannot listen at"),
        (&["--peer-listen", "127.0.0.1:0", "--token-file", "/nowhere/token"], "/nowhere/token"),
    ] {
        let said = said(arguments);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
