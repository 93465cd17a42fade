//! Ray's gRPC port on real cores: what they answer themselves, what they pass on, and what the control thread hears of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use raylet_shard::ids::{LeaseId, NodeId, WorkerId};
use raylet_shard::sched::{ClassDef, ClassId, Fixed, ResourceId, ResourceKind, ResourceSet, SchedEvent, WorkerKey};
use raylet_tuning::{CoreChoice, PageChoice};
use raylet_uring::bridge::{Socket, ToControl, ToCore};
use raylet_uring::engine::{Engine, EngineSettings, SchedSettings};
use raylet_uring::near::Near;
use raylet_uring::node::sched_config;
use raylet_uring::ray::core_rpc::desk::{Card, Lesson};
use raylet_uring::ray::core_rpc::{hand_over, RpcSettings, OWN_METHODS};
use raylet_uring::ray::lease_shape::Shape;
use raylet_uring::ray::proto::*;
use raylet_uring::ray::rpc::auth::{Auth, Token};
use raylet_uring::ray::rpc::chaos::Chaos;
use raylet_uring::ray::rpc::client::{Channel, ClientConfig, ClientContext};
use tokio::net::TcpListener;
use tonic::{Code, Status};

const REQUEST: &str = "/ray.rpc.NodeManagerService/RequestWorkerLease";
const RETURN: &str = "/ray.rpc.NodeManagerService/ReturnWorkerLease";
const CONFIG: &str = "/ray.rpc.NodeManagerService/GetSystemConfig";
const PIN: &str = OWN_METHODS[0];
const LIMIT: Option<Duration> = Some(Duration::from_secs(30));
const NODE: NodeId = NodeId([7; 28]);
const WORKER: WorkerId = WorkerId([9; 28]);
const CPU: ResourceId = ResourceId(0);

/// A node's cores with the port open, and this test in the place of the control thread.
struct Cores {
    engine: Engine,
    address: SocketAddr,
}

impl Cores {
    async fn start(cores: &str, auth: Auth) -> Self {
        let engine = Engine::start(&EngineSettings {
            cores: cores.parse::<CoreChoice>().expect("cores"),
            object_store_bytes: 64 << 20,
            pages: PageChoice::Small,
            warm_reserve_bytes: 0,
            full_grace_ns: 1_000_000_000,
            spill: None,
            fallback: None,
            scheds: sched_config,
            sched: SchedSettings {
                cpus: 2,
                workers_soft_limit: 2,
                idle_timeout_ns: 60_000_000_000,
                startup_concurrency: 2,
                class_cap: false,
            },
        })
        .expect("cores start");
        let methods = [REQUEST, RETURN, CONFIG].into_iter().chain(OWN_METHODS).map(|path| (path, true)).collect();
        let settings = Arc::new(RpcSettings { auth, node_id: NODE, methods, max_num_generator_returns: 0 });
        engine.cores.iter().for_each(|core| core.send(ToCore::OpenRpc(settings.clone())));
        engine.tell_all(&SchedEvent::AddResource { id: CPU, total: Fixed::units(2), kind: ResourceKind::Cpu });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let cores = engine.cores.clone();
        tokio::task::spawn_local(async move {
            for turn in 0.. {
                let (stream, _) = listener.accept().await.expect("accept");
                let stream = hand_over(stream).expect("hand over");
                cores[turn % cores.len()].send(ToCore::Accepted { socket: Socket::Rpc, stream, near: Near::default() });
            }
        });
        Self { engine, address }
    }

    fn channel(&self, auth: Auth) -> Channel {
        let context = ClientContext::new(ClientConfig { auth, ..ClientConfig::default() }, Chaos::none());
        Channel::new(context, &self.address.to_string()).expect("channel")
    }

    async fn heard(&self) -> ToControl {
        let heard = self.engine.from_cores.recv_async();
        tokio::time::timeout(Duration::from_secs(30), heard).await.expect("in time").expect("the cores live")
    }

    /// The next messages that are not about calls served, in order.
    async fn heard_of_leases(&self, count: usize) -> Vec<ToControl> {
        let mut heard = Vec::new();
        while heard.len() < count {
            let messages = match self.heard().await {
                ToControl::Batch(messages) => messages,
                message => vec![message],
            };
            heard.extend(messages.into_iter().filter(|message| !matches!(message, ToControl::Served { .. })));
        }
        heard
    }

    fn teach(&self, shard: u16, spec: &LeaseSpec) {
        let class = ClassId(3);
        let demand = ResourceSet::new(vec![(CPU, Fixed::units(1))]);
        let def = Box::new(ClassDef { demand, worker: WorkerKey::default() });
        self.engine.cores[usize::from(shard)].send(ToCore::Sched(SchedEvent::DefineClass { class, def }));
        let lesson = Lesson { shape: Shape::of(spec), class, shard, names: vec![(CPU, "CPU".to_owned())] };
        let address = Address { ip_address: "127.0.0.1".to_owned(), port: 4321, ..Default::default() };
        let card = Card { address, pid: 99 };
        for core in &self.engine.cores {
            core.send(ToCore::Learn(Box::new(lesson.clone())));
            core.send(ToCore::WorkerReady { worker: WORKER, card: Box::new(card.clone()) });
        }
        let ready = SchedEvent::WorkerReady { worker: WORKER, start: None, key: WorkerKey::default(), job: None };
        self.engine.cores[usize::from(shard)].send(ToCore::Sched(ready));
    }
}

fn on_control_thread(test: impl std::future::Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let bounded = async { tokio::time::timeout(Duration::from_secs(120), test).await.expect("in time") };
    tokio::task::LocalSet::new().block_on(&runtime, bounded);
}

fn spec(lease: u8) -> LeaseSpec {
    LeaseSpec {
        lease_id: vec![lease; LeaseId::LEN].into(),
        required_resources: [("CPU".to_owned(), 1.0)].into(),
        ..Default::default()
    }
}

fn request(spec: LeaseSpec) -> RequestWorkerLeaseRequest {
    RequestWorkerLeaseRequest { lease_spec: Some(spec), ..Default::default() }
}

async fn ask(channel: &Channel, spec: LeaseSpec) -> Result<RequestWorkerLeaseReply, Status> {
    channel.call(REQUEST, &request(spec), LIMIT).await
}

#[test]
fn a_lease_is_granted_and_given_back_on_the_core_and_told_in_order() {
    for (cores, shard) in [("0", 0u16), ("0-1", 0), ("0-1", 1)] {
        on_control_thread(async {
            let cores = Cores::start(cores, Auth::disabled()).await;
            let channel = cores.channel(Auth::disabled());
            cores.teach(shard, &spec(1));
            for lease in 1..=3u8 {
                let reply = ask(&channel, spec(lease)).await.expect("reply");
                assert_eq!(reply.worker_pid, 99);
                assert_eq!(reply.worker_address.expect("address").port, 4321);
                assert_eq!(reply.resource_mapping[0].name, "CPU");
                let id = LeaseId([lease; LeaseId::LEN]);
                let back = ReturnWorkerLeaseRequest { lease_id: id.0.to_vec().into(), ..Default::default() };
                channel.call::<_, ReturnWorkerLeaseReply>(RETURN, &back, LIMIT).await.expect("returned");
                let heard = cores.heard_of_leases(3).await;
                assert!(matches!(&heard[0], ToControl::Asked { lease, shard: s, .. } if *lease == id && *s == shard));
                assert!(matches!(&heard[1], ToControl::Granted { lease, worker: WORKER } if *lease == id), "{heard:?}");
                assert!(matches!(&heard[2], ToControl::Returned { lease } if *lease == id), "{heard:?}");
            }
            cores.engine.stop();
        });
    }
}

#[test]
fn what_a_desk_cannot_judge_goes_to_the_control_thread_as_it_came() {
    on_control_thread(async {
        let cores = Cores::start("0", Auth::disabled()).await;
        let channel = cores.channel(Auth::disabled());
        cores.teach(0, &spec(1));
        let cancelled = LeaseId([5; LeaseId::LEN]);
        cores.engine.cores[0].send(ToCore::CancelledAhead { lease: cancelled, ttl: Duration::from_secs(60) });
        cores.engine.cores[0].send(ToCore::Sched(SchedEvent::OwnerGone { owner: WorkerId([4; 28]) }));
        let by_the_dead = LeaseSpec {
            caller_address: Some(Address { worker_id: vec![4; 28].into(), ..Default::default() }),
            ..spec(6)
        };
        let with_arguments = LeaseSpec { dependencies: vec![ObjectReference::default()], ..spec(7) };
        let unknown_shape = LeaseSpec { required_resources: [("GPU".to_owned(), 1.0)].into(), ..spec(8) };
        let elsewhere = LeaseSpec {
            scheduling_strategy: Some(SchedulingStrategy {
                scheduling_strategy: Some(scheduling_strategy::SchedulingStrategy::NodeAffinitySchedulingStrategy(
                    Default::default(),
                )),
            }),
            ..spec(9)
        };
        for spec in [spec(5), by_the_dead, with_arguments, unknown_shape, elsewhere, LeaseSpec::default()] {
            let asked = tokio::task::spawn_local({
                let (channel, spec) = (channel.clone(), spec.clone());
                async move { ask(&channel, spec).await }
            });
            let ToControl::Call { from: 0, call, path: REQUEST, message } = cores.heard().await else {
                panic!("a desk decided on {spec:?}");
            };
            assert_eq!(RequestWorkerLeaseRequest::decode(message).expect("whole"), request(spec));
            let reply = Err(Status::aborted("not today"));
            cores.engine.cores[0].send(ToCore::Answered { call, reply });
            assert_eq!(asked.await.expect("joined").expect_err("refused").message(), "not today");
        }
        cores.engine.stop();
    });
}

#[test]
fn other_methods_are_answered_by_the_control_thread_however_large_the_reply() {
    on_control_thread(async {
        let cores = Cores::start("0", Auth::disabled()).await;
        let channel = cores.channel(Auth::disabled());
        for size_bytes in [0, 100, 100_000, 20_000_000] {
            let asked = tokio::task::spawn_local({
                let channel = channel.clone();
                async move { channel.call::<_, GetSystemConfigReply>(CONFIG, &GetSystemConfigRequest {}, LIMIT).await }
            });
            let ToControl::Call { call, path: CONFIG, .. } = cores.heard().await else {
                panic!("the call did not come through");
            };
            let text = "x".repeat(size_bytes);
            let message = GetSystemConfigReply { system_config: text.clone() };
            let mut frame = vec![0];
            frame.extend((message.encoded_len() as u32).to_be_bytes());
            message.encode(&mut frame).expect("room");
            cores.engine.cores[0].send(ToCore::Answered { call, reply: Ok(frame.into()) });
            let reply = asked.await.expect("joined").expect("reply");
            assert!(reply.system_config == text, "{size_bytes} bytes");
        }
        cores.engine.stop();
    });
}

#[test]
fn a_request_larger_than_any_window_comes_through_and_every_object_is_answered() {
    for cores in ["0", "0-1"] {
        on_control_thread(async {
            let cores = Cores::start(cores, Auth::disabled()).await;
            let object_ids: Vec<_> =
                (0..200_000u32).map(|n| [&n.to_be_bytes()[..], &[1; 24]].concat().into()).collect();
            let pin = PinObjectIDsRequest { object_ids, ..Default::default() };
            assert!(pin.encoded_len() > 5 << 20);
            let reply: PinObjectIDsReply = cores.channel(Auth::disabled()).call(PIN, &pin, LIMIT).await.expect("reply");
            assert!(reply.successes.len() == 200_000 && reply.successes.iter().all(|pinned| !pinned));
            cores.engine.stop();
        });
    }
}

#[test]
fn a_caller_needs_its_token_and_a_method_must_be_one() {
    on_control_thread(async {
        let token = |secret: &str| Auth::with_token(Token::new(secret).expect("token"));
        let cores = Cores::start("0", token("right")).await;
        let pin = PinObjectIDsRequest { object_ids: vec![vec![1; 28].into()], ..Default::default() };
        let refused = cores.channel(token("wrong")).call::<_, PinObjectIDsReply>(PIN, &pin, LIMIT).await;
        assert_eq!(refused.expect_err("refused").code(), Code::Unauthenticated);
        let channel = cores.channel(token("right"));
        let reply: PinObjectIDsReply = channel.call(PIN, &pin, LIMIT).await.expect("reply");
        assert_eq!(reply.successes, [false], "there is no such object");
        let short = PinObjectIDsRequest { object_ids: vec![vec![1; 27].into()], ..Default::default() };
        let error = channel.call::<_, PinObjectIDsReply>(PIN, &short, LIMIT).await.expect_err("no id");
        assert_eq!(error.code(), Code::InvalidArgument);
        let path = "/ray.rpc.NodeManagerService/Missing";
        let missing = channel.call::<_, PinObjectIDsReply>(path, &pin, LIMIT).await.expect_err("missing");
        assert_eq!(missing.code(), Code::Unimplemented);
        cores.engine.stop();
    });
}

#[test]
fn a_core_tells_everything_before_it_says_that_it_has() {
    on_control_thread(async {
        let cores = Cores::start("0", Auth::disabled()).await;
        let channel = cores.channel(Auth::disabled());
        cores.teach(0, &spec(1));
        ask(&channel, spec(1)).await.expect("granted");
        cores.engine.cores[0].send(ToCore::Flush { token: 77 });
        let heard = cores.heard_of_leases(3).await;
        assert!(matches!(
            heard[..],
            [ToControl::Asked { .. }, ToControl::Granted { .. }, ToControl::CaughtUp { token: 77 }]
        ));
        cores.engine.stop();
    });
}

#[test]
fn a_caller_that_hangs_up_leaves_a_lease_that_its_retry_gets() {
    on_control_thread(async {
        let cores = Cores::start("0", Auth::disabled()).await;
        cores.teach(0, &spec(1));
        let first = cores.channel(Auth::disabled());
        let second = first.to(&cores.address.to_string()).expect("channel");
        ask(&first, spec(1)).await.expect("granted");
        // The only worker is leased, so this one waits, and its caller gives up.
        let soon = Some(Duration::from_millis(50));
        let late = first.call::<_, RequestWorkerLeaseReply>(REQUEST, &request(spec(2)), soon).await;
        assert_eq!(late.expect_err("late").code(), Code::DeadlineExceeded);
        let back = ReturnWorkerLeaseRequest { lease_id: vec![1; LeaseId::LEN].into(), ..Default::default() };
        second.call::<_, ReturnWorkerLeaseReply>(RETURN, &back, LIMIT).await.expect("returned");
        let again = ask(&second, spec(2)).await.expect("granted");
        assert_eq!(again.worker_pid, 99);
        cores.engine.stop();
    });
}
