//! Who is let in at the bulk port, over real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use raylet_shard::ids::NodeId;
use raylet_transport::bulk::hello::{Challenge, Hello, Purpose, Refusal, CHALLENGE_BYTES, PROOF_BYTES, VERDICT_BYTES};
use raylet_transport::ids as wire;
use raylet_transport::uring::Doorbell;
use raylet_tuning::{PageChoice, Segment, SegmentRequest};

use super::greet::{GreetError, Greeting};
use super::{Transfer, TransferParts, TransferUse};
use crate::bridge::{CoreHandle, ToCore};
use crate::bulk::LaneTell;
use crate::ray::rpc::auth::{Auth, Token};
use crate::spill::SpillShared;

const HERE: NodeId = NodeId([1; NodeId::LEN]);
const THERE: NodeId = NodeId([2; NodeId::LEN]);
const CHUNK_BYTES: u64 = 1 << 20;
const TOKEN: &str = "a token of many letters";

/// A node's bulk port, and what its core is told.
struct Port {
    address: SocketAddr,
    told: flume::Receiver<ToCore>,
}

impl Port {
    /// The node whose lane was opened, in time.
    async fn opened(&self) -> bool {
        let told = tokio::time::timeout(Duration::from_secs(20), self.told.recv_async()).await;
        matches!(told, Ok(Ok(ToCore::Lane(_, LaneTell::Open { .. }))))
    }
}

fn port() -> Port {
    let (address, mut told) = port_of(HERE, 1, Vec::new(), Vec::new());
    Port { address, told: told.remove(0) }
}

/// The bulk port of a node of so many cores, and what each of them is told. Where there are segments, it lends from them to its host.
fn port_of(
    node_id: NodeId,
    cores: usize,
    lane_cores: Vec<usize>,
    segments: Vec<Arc<Segment>>,
) -> (SocketAddr, Vec<flume::Receiver<ToCore>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("a bound socket");
    let (queues, told): (Vec<_>, Vec<_>) = (0..cores).map(|_| flume::unbounded()).unzip();
    let core = |queue| CoreHandle::new(queue, Doorbell::new().expect("a doorbell"));
    let parts = TransferParts {
        node_id,
        same_host: !segments.is_empty(),
        segments,
        files: Arc::new(SpillShared::new(1)),
        cores: queues.into_iter().map(core).collect(),
        listeners: Vec::new(),
        bulk_listeners: vec![listener],
        peers: None,
        lanes_per_node: 1,
        fanout: 2,
        lane_cores,
        auth: Auth::with_token(Token::new(TOKEN).expect("a token")),
        tls: None,
        rpc_failure: String::new(),
        chunk_bytes: CHUNK_BYTES,
        in_flight_max_bytes: 8 * CHUNK_BYTES,
        push_timeout: Duration::from_secs(1),
    };
    let (news, _) = flume::unbounded();
    Transfer::new(parts, news, Arc::new(TransferUse::default())).expect("sound settings");
    (address, told)
}

async fn call(port: &Port, token: &str, to: NodeId, chunk_bytes: u64) -> Result<(), GreetError> {
    let caller = Greeting::new(THERE, chunk_bytes, token.as_bytes().to_vec(), true);
    caller.call(&port.address.to_string(), to, 5).await.map(drop)
}

fn run(test: impl std::future::Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_node_of_this_cluster_gets_a_lane_and_nobody_else_does() {
    run(async {
        let port = port();
        call(&port, TOKEN, HERE, CHUNK_BYTES).await.expect("it is of the cluster");
        assert!(port.opened().await);
        let refused = |result: Result<(), GreetError>| match result {
            Err(GreetError::Refused(why)) => why,
            other => panic!("expected a refusal, got {other:?}"),
        };
        assert_eq!(refused(call(&port, TOKEN, THERE, CHUNK_BYTES).await), Refusal::OtherNode);
        assert_eq!(refused(call(&port, TOKEN, HERE, 7).await), Refusal::ChunkBytes);
        let unknown = call(&port, "another token", HERE, CHUNK_BYTES).await;
        assert!(matches!(unknown, Err(GreetError::Unproven)), "the port does not know that token: {unknown:?}");
        assert!(port.told.is_empty(), "none of them has a lane");
    });
}

#[test]
fn lanes_are_opened_on_the_cores_that_carry_them() {
    run(async {
        // A core that there is not is left out.
        let (address, told) = port_of(HERE, 4, vec![1, 3, 9], Vec::new());
        let caller = Greeting::new(THERE, CHUNK_BYTES, TOKEN.as_bytes().to_vec(), true);
        for _ in 0..4 {
            caller.call(&address.to_string(), HERE, 5).await.expect("it is of the cluster");
        }
        for core in [1, 1, 3, 3] {
            let told = tokio::time::timeout(Duration::from_secs(20), told[core].recv_async()).await;
            assert!(matches!(told, Ok(Ok(ToCore::Lane(_, LaneTell::Open { .. })))), "core {core}: {told:?}");
        }
        assert!(told.iter().all(flume::Receiver::is_empty), "and on no other");
    });
}

/// The name of the socket holds the node's id, and other tests run beside this one.
fn id_of_this_test() -> NodeId {
    NodeId(rand::random())
}

#[test]
fn a_node_of_this_host_is_given_the_memory_to_read_and_nobody_else_is() {
    run(async {
        let (size_bytes, numa_node, pages) = (4 << 20, None, PageChoice::Small);
        let request = SegmentRequest { name: "lent".to_owned(), size_bytes, numa_node, pages };
        let segment = Arc::new(Segment::create(&request).expect("memory"));
        segment.write_at(5000, b"an object").expect("inside");
        let node = id_of_this_test();
        let (_, told) = port_of(node, 1, Vec::new(), vec![segment.clone()]);
        let caller = |token: &str| Greeting::new(THERE, CHUNK_BYTES, token.as_bytes().to_vec(), true);
        let greeted = caller(TOKEN).call_here(node, 5).await.expect("it is of the cluster").expect("it listens");
        assert!(greeted.is_same_host);
        let [lender] = &greeted.lenders[..] else { panic!("expected one segment, got {:?}", greeted.lenders) };
        let mut bytes = [0; 9];
        assert_eq!(rustix::io::pread(lender, &mut bytes, 5000), Ok(9));
        assert_eq!(&bytes, b"an object");
        assert_eq!(rustix::io::pwrite(lender, b"x", 5000), Err(rustix::io::Errno::BADF), "it can't be written to");
        let told_of = tokio::time::timeout(Duration::from_secs(20), told[0].recv_async()).await;
        let Ok(Ok(ToCore::Lane(_, LaneTell::Open { lenders, .. }))) = told_of else { panic!("{told_of:?}") };
        assert!(lenders.is_empty(), "who lends is not lent to");

        let stranger = caller("another token").call_here(node, 5).await;
        assert!(matches!(stranger, Err(GreetError::Unproven)), "{stranger:?}");
        let elsewhere = caller(TOKEN).call_here(id_of_this_test(), 5).await;
        assert!(matches!(elsewhere, Ok(None)), "a node of another host: {elsewhere:?}");
        assert!(told[0].is_empty(), "neither has a lane");
    });
}

/// Says bytes to the port from a thread of its own, and returns what came back before the port closed or said enough.
async fn say(address: SocketAddr, parts: Vec<(Vec<u8>, usize)>) -> Vec<Vec<u8>> {
    let said = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("the port listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        let answer = |(bytes, len): (Vec<u8>, usize)| {
            let mut answer = vec![0; len];
            stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut answer)).map(|()| answer)
        };
        parts.into_iter().map_while(answer_or_end(answer)).collect()
    });
    said.await.expect("a thread")
}

fn answer_or_end<T, F: FnMut(T) -> std::io::Result<Vec<u8>>>(mut answer: F) -> impl FnMut(T) -> Option<Vec<u8>> {
    move |part| answer(part).ok()
}

#[test]
fn a_caller_who_does_not_know_the_token_is_told_so_and_http_is_refused() {
    run(async {
        let port = port();
        let hello = Hello {
            purpose: Purpose::Lane,
            chunk_bytes: CHUNK_BYTES,
            from: wire::NodeId(THERE.0),
            to: wire::NodeId(HERE.0),
            nonce: [9; 32],
            session: 3,
        };
        let guess = (vec![7; PROOF_BYTES], VERDICT_BYTES);
        let said = say(port.address, vec![(hello.encode().to_vec(), CHALLENGE_BYTES), guess]).await;
        let [challenge, verdict] = &said[..] else { panic!("expected two answers, got {said:?}") };
        assert!(Challenge::decode(challenge[..].try_into().expect("its length")).is_ok());
        assert_eq!(verdict[0], Refusal::Token as u8);
        let mut http = b"PRI * HTTP/2.0".to_vec();
        http.resize(200, 0);
        let said = say(port.address, vec![(http, CHALLENGE_BYTES)]).await;
        assert_eq!(said.first().map(|answer| answer[0]), Some(Refusal::NoHello as u8));
        assert!(port.told.is_empty(), "none of them has a lane");
    });
}

#[test]
fn more_callers_than_are_greeted_at_once_are_closed_and_others_follow_later() {
    run(async {
        let port = port();
        let silent: Vec<TcpStream> = (0..super::greet::GREETINGS_MAX)
            .map(|_| TcpStream::connect(port.address).expect("the port listens"))
            .collect();
        let address = port.address;
        let closed = tokio::task::spawn_blocking(move || {
            let mut late = TcpStream::connect(address).expect("the port listens");
            late.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
            late.read(&mut [0; 1]).map_or(0, |n| n)
        });
        assert_eq!(closed.await.expect("a thread"), 0, "it is closed without a word");
        drop(silent);
        let calls = async {
            while call(&port, TOKEN, HERE, CHUNK_BYTES).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), calls).await.expect("their places are free again");
        assert!(port.opened().await);
    });
}

#[test]
fn a_token_is_not_printed() {
    let greeting = Rc::new(Greeting::new(HERE, CHUNK_BYTES, TOKEN.as_bytes().to_vec(), true));
    assert!(!format!("{greeting:?}").contains(TOKEN));
}
