//! The clients against a real GCS of Ray 2.60, and the GCS against the server.

#[path = "rpc_support/gcs.rs"]
mod gcs;
#[path = "rpc_support/python.rs"]
mod python;
mod rpc_support;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use gcs::Gcs;
use raylet_shard::ids::{JobId, NodeId};
use raylet_uring::ray::proto::gcs_node_info::GcsNodeState;
use raylet_uring::ray::proto::node_death_info::Reason;
use raylet_uring::ray::proto::pub_message::InnerMessage;
use raylet_uring::ray::proto::syncer::ResourceViewSyncMessage;
use raylet_uring::ray::proto::{
    ChannelType, ErrorTableData, GcsNodeInfo, GetResourceLoadReply, GetResourceLoadRequest, JobConfig, JobTableData,
    NodeDeathInfo, NotifyGcsRestartReply, NotifyGcsRestartRequest,
};
use raylet_uring::ray::rpc::auth::{Auth, Token, INVALID_TOKEN_MESSAGE};
use raylet_uring::ray::rpc::chaos::Chaos;
use raylet_uring::ray::rpc::client::{hex, ClientConfig, ClientContext};
use raylet_uring::ray::rpc::gcs::{GcsClient, GcsConfig, GcsError};
use raylet_uring::ray::rpc::health::Health;
use raylet_uring::ray::rpc::pubsub::{GcsEvent, GcsSubscriber};
use raylet_uring::ray::rpc::router::Router;
use raylet_uring::ray::rpc::server::{bind, Server, ServerConfig};
use raylet_uring::ray::rpc::syncer::{Syncer, Update};
use rpc_support::{eventually, on_control_thread, TOKEN};
use tonic::Code;

fn token() -> Auth {
    Auth::with_token(Token::new(TOKEN).expect("token"))
}

fn client(gcs: &Gcs, auth: Auth, chaos: &str) -> GcsClient {
    let context = ClientContext::new(
        ClientConfig { auth, ..ClientConfig::default() },
        Chaos::from_setting(chaos).expect("setting"),
    );
    let config = GcsConfig { reconnect_timeout_s: 60, ..GcsConfig::default() };
    GcsClient::new(context, &gcs.address(), config).expect("address")
}

async fn member(gcs: &Gcs) -> GcsClient {
    let client = client(gcs, token(), "");
    client.join_cluster().await.expect("cluster id");
    client
}

fn refusal<T: std::fmt::Debug>(result: Result<T, GcsError>) -> (Code, String) {
    match result.expect_err("refused") {
        GcsError::Call { status, .. } => (status.code(), status.message().to_owned()),
        other => panic!("refused otherwise: {other}"),
    }
}

/// A node as far as the GCS can tell: it answers health checks and polls.
struct FakeNode {
    id: NodeId,
    health: Health,
    info: GcsNodeInfo,
    polled: Rc<Cell<u32>>,
    told_of_restart: Rc<Cell<u32>>,
}

impl FakeNode {
    async fn start(number: u8) -> Self {
        let (polled, told_of_restart) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (polls, restarts) = (polled.clone(), told_of_restart.clone());
        let id = NodeId([number; 28]);
        let health = Health::new();
        health.set(&hex(id.as_bytes()), true);
        let router = Router::new()
            .unary("/ray.rpc.NodeManagerService/GetResourceLoad", move |_: GetResourceLoadRequest| {
                polls.set(polls.get() + 1);
                async { Ok(GetResourceLoadReply::default()) }
            })
            .unary("/ray.rpc.NodeManagerService/NotifyGCSRestart", move |_: NotifyGcsRestartRequest| {
                restarts.set(restarts.get() + 1);
                async { Ok(NotifyGcsRestartReply {}) }
            });
        let listener = bind("127.0.0.1:0".parse().expect("address")).await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let config = ServerConfig { auth: token(), ..ServerConfig::default() };
        let server = Server::new(health.serve_on(router), config);
        tokio::task::spawn_local(server.serve(listener, std::future::pending()));
        let info = GcsNodeInfo {
            node_id: Bytes::copy_from_slice(id.as_bytes()),
            node_manager_address: "127.0.0.1".to_owned(),
            node_manager_port: port.into(),
            node_manager_hostname: "fake".to_owned(),
            node_name: format!("fake-{number}"),
            resources_total: [("CPU".to_owned(), 3.0)].into(),
            state: GcsNodeState::Alive.into(),
            ..Default::default()
        };
        Self { id, health, info, polled, told_of_restart }
    }
}

/// What a subscription to nodes has delivered: ids and states, and how often it was made.
#[derive(Clone, Default)]
struct Seen {
    nodes: Rc<RefCell<Vec<(Bytes, GcsNodeState)>>>,
    subscribed: Rc<Cell<u32>>,
}

impl Seen {
    fn subscribe(subscriber: &GcsSubscriber) -> Self {
        let seen = Self::default();
        let sink = seen.clone();
        let deliver = move |event| match event {
            GcsEvent::Subscribed => sink.subscribed.set(sink.subscribed.get() + 1),
            GcsEvent::Published(message) => match &message.inner_message {
                Some(InnerMessage::NodeInfoMessage(node)) => {
                    sink.nodes.borrow_mut().push((node.node_id.clone(), node.state()));
                }
                other => panic!("unexpected message: {other:?}"),
            },
        };
        subscriber.subscribe(ChannelType::GcsNodeInfoChannel, None, deliver).expect("below the limit");
        seen
    }

    fn has(&self, node: NodeId, state: GcsNodeState) -> bool {
        self.nodes.borrow().iter().any(|(id, s)| id[..] == *node.as_bytes() && *s == state)
    }
}

#[test]
fn a_node_lives_as_long_as_it_answers_health_checks() {
    on_control_thread(async {
        let gcs = Gcs::start();
        let client = member(&gcs).await;
        let subscriber = GcsSubscriber::start(client.clone());
        let seen = Seen::subscribe(&subscriber);
        eventually("subscribed", || seen.subscribed.get() == 1).await;
        let (first, second) = (FakeNode::start(1).await, FakeNode::start(2).await);
        for node in [&first, &second] {
            client.register_node(node.info.clone()).await.expect("registered");
        }
        eventually("both published", || [&first, &second].iter().all(|node| seen.has(node.id, GcsNodeState::Alive)))
            .await;
        let stored = client.all_nodes().await.expect("nodes");
        let stored = stored.iter().find(|node| node.node_id[..] == *first.id.as_bytes()).expect("stored");
        assert_eq!((stored.node_name.as_str(), stored.resources_total["CPU"]), ("fake-1", 3.0));
        eventually("the GCS polls the node with its token", || first.polled.get() > 2).await;
        first.health.stop();
        eventually("taken for dead", || seen.has(first.id, GcsNodeState::Dead)).await;
        let cause =
            NodeDeathInfo { reason: Reason::ExpectedTermination.into(), reason_message: "end of test".to_owned() };
        assert!(client.counts_as_alive(second.id).await.expect("an answer"));
        client.unregister_node(second.id, cause).await.expect("unregistered");
        for dead in [first.id, second.id, NodeId([77; 28])] {
            assert!(!client.counts_as_alive(dead).await.expect("an answer"), "{dead}");
        }
        eventually("gone", || seen.has(second.id, GcsNodeState::Dead)).await;
    });
}

#[test]
fn values_are_kept_and_jobs_recorded() {
    on_control_thread(async {
        let gcs = Gcs::start();
        let client = member(&gcs).await;
        assert_eq!(client.internal_config().await.expect("config"), "{}");
        assert_eq!(client.kv_get(b"ns", b"key").await.expect("reply"), None);
        let value = Bytes::from_static(b"any\x00bytes\xff");
        assert!(client.kv_put(b"ns", b"key", value.clone(), true).await.expect("put"));
        assert!(!client.kv_put(b"ns", b"key", "kept out".into(), false).await.expect("put"));
        assert_eq!(client.kv_get(b"ns", b"key").await.expect("reply"), Some(value));
        assert_eq!(client.kv_get(b"other", b"key").await.expect("reply"), None);
        let job = JobId([1, 0, 0, 0]);
        let row = JobTableData {
            job_id: Bytes::copy_from_slice(job.as_bytes()),
            config: Some(JobConfig { ray_namespace: "tests".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        client.add_job(row).await.expect("added");
        client.mark_job_finished(job).await.expect("finished");
        let jobs = client.all_jobs().await.expect("jobs");
        assert_eq!(jobs.len(), 1);
        assert!(jobs[0].is_dead);
        assert_eq!(jobs[0].config.as_ref().expect("config").ray_namespace, "tests");
        let error = ErrorTableData {
            job_id: Bytes::copy_from_slice(job.as_bytes()),
            r#type: "test".to_owned(),
            error_message: "text".to_owned(),
            timestamp: 1.0,
        };
        client.publish_error(error).await.expect("published");
        let nobodys = client.publish_error(ErrorTableData::default()).await.expect_err("no job named").to_string();
        assert!(nobodys.contains("InvalidArgument: Invalid job_id"), "{nobodys}");
    });
}

#[test]
fn strangers_are_refused() {
    on_control_thread(async {
        let gcs = Gcs::start();
        let wrong = Auth::with_token(Token::new("wrong").expect("token"));
        for auth in [Auth::disabled(), wrong] {
            let (code, message) = refusal(client(&gcs, auth, "").join_cluster().await);
            assert_eq!((code, message.as_str()), (Code::Unauthenticated, INVALID_TOKEN_MESSAGE));
        }
        let context = ClientContext::new(ClientConfig { auth: token(), ..ClientConfig::default() }, Chaos::none());
        let client = GcsClient::new(context.clone(), &gcs.address(), GcsConfig::default()).expect("address");
        let cluster_id = client.join_cluster().await.expect("cluster id");
        context.set_cluster_id(Some(&[7; 28]));
        let (code, message) = refusal(client.kv_get(b"ns", b"key").await);
        assert_eq!(code, Code::Unauthenticated);
        assert!(message.starts_with("WrongClusterID"), "{message}");
        assert_eq!(client.join_cluster().await.expect("joined again"), cluster_id);
        assert_eq!(client.kv_get(b"ns", b"key").await.expect("reply"), None);
    });
}

#[test]
fn lost_requests_and_replies_are_made_up_for() {
    on_control_thread(async {
        let gcs = Gcs::start();
        let setting = r#"{"*":{"num_failures":-1,"num_lower_bound_req_failures":1,"num_lower_bound_resp_failures":1,
            "num_lower_bound_in_flight_failures":1}}"#;
        let client = client(&gcs, token(), setting);
        client.join_cluster().await.expect("cluster id");
        client.kv_put(b"ns", b"key", "value".into(), true).await.expect("put");
        assert_eq!(client.kv_get(b"ns", b"key").await.expect("reply").as_deref(), Some(&b"value"[..]));
    });
}

#[test]
fn everything_goes_on_after_the_gcs_was_restarted() {
    on_control_thread(async {
        let mut gcs = Gcs::start();
        let client = member(&gcs).await;
        let subscriber = GcsSubscriber::start(client.clone());
        let seen = Seen::subscribe(&subscriber);
        eventually("subscribed", || seen.subscribed.get() == 1).await;
        let (first, second) = (FakeNode::start(1).await, FakeNode::start(2).await);
        client.register_node(first.info.clone()).await.expect("registered");
        client.kv_put(b"ns", b"key", "kept".into(), true).await.expect("put");
        eventually("published", || seen.has(first.id, GcsNodeState::Alive)).await;
        gcs.kill();
        let asked = tokio::task::spawn_local({
            let client = client.clone();
            async move { client.kv_get(b"ns", b"key").await }
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!asked.is_finished(), "a call waits for the GCS");
        gcs.restart();
        let kept = asked.await.expect("no panic").expect("reply");
        assert_eq!(kept.as_deref(), Some(&b"kept"[..]));
        eventually("subscribed again", || seen.subscribed.get() > 1).await;
        eventually("the node is told of the restart", || first.told_of_restart.get() > 0).await;
        client.register_node(second.info.clone()).await.expect("registered");
        eventually("published again", || seen.has(second.id, GcsNodeState::Alive)).await;
    });
}

#[test]
fn a_gcs_away_for_too_long_is_lost() {
    on_control_thread(async {
        let mut gcs = Gcs::start();
        let context = ClientContext::new(ClientConfig { auth: token(), ..ClientConfig::default() }, Chaos::none());
        let config = GcsConfig { reconnect_timeout_s: 2, ..GcsConfig::default() };
        let client = GcsClient::new(context, &gcs.address(), config).expect("address");
        client.join_cluster().await.expect("cluster id");
        let subscriber = GcsSubscriber::start(client.clone());
        let seen = Seen::subscribe(&subscriber);
        eventually("subscribed", || seen.subscribed.get() == 1).await;
        gcs.kill();
        client.lost().await;
        assert!(matches!(client.kv_get(b"ns", b"key").await, Err(GcsError::Lost { away_s: 2.., .. })));
    });
}

#[test]
fn resource_views_reach_the_gcs_and_the_other_nodes() {
    on_control_thread(async {
        let gcs = Gcs::start();
        let (first, second) = (FakeNode::start(1).await, FakeNode::start(2).await);
        let mut syncers = Vec::new();
        let heard = Rc::new(RefCell::new(Vec::new()));
        for node in [&first, &second] {
            let client = member(&gcs).await;
            client.register_node(node.info.clone()).await.expect("registered");
            let (sink, id) = (heard.clone(), node.id);
            let deliver = move |from: NodeId, update| sink.borrow_mut().push((id, from, update));
            let syncer = Syncer::start(client.channel().clone(), node.id, deliver);
            syncers.push((client, syncer));
        }
        for available in [3.0, 2.0, 1.0] {
            let view = ResourceViewSyncMessage {
                resources_total: [("CPU".to_owned(), 3.0)].into(),
                resources_available: [("CPU".to_owned(), available)].into(),
                ..Default::default()
            };
            syncers[0].1.send_resource_view(&view);
            eventually("heard by the other node", || {
                let heard = heard.borrow();
                heard.iter().any(|(to, from, update)| {
                    let same = matches!(update, Update::ResourceView(seen) if seen.resources_available == view.resources_available);
                    (*to, *from) == (second.id, first.id) && same
                })
            })
            .await;
        }
        assert!(heard.borrow().iter().all(|(to, from, _)| to != from), "no node hears itself");
        syncers.iter().for_each(|(_, syncer)| syncer.stop());
    });
}
