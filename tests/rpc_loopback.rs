//! The gRPC server and client against each other and against tonic's client, over loopback.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};
use raylet_uring::ray::agents::ports::Reservation;
use raylet_uring::ray::proto::health::{HealthCheckRequest, HealthCheckResponse};
use raylet_uring::ray::proto::syncer::{RaySyncMessage, RaySyncMessageBatch};
use raylet_uring::ray::proto::{PushReply, PushRequest, ReturnWorkerLeaseReply, ReturnWorkerLeaseRequest};
use raylet_uring::ray::rpc::auth::{Auth, Token, INVALID_TOKEN_MESSAGE};
use raylet_uring::ray::rpc::chaos::Chaos;
use raylet_uring::ray::rpc::client::{Channel, ClientConfig, ClientContext, Retry};
use raylet_uring::ray::rpc::health::Health;
use raylet_uring::ray::rpc::router::Router;
use raylet_uring::ray::rpc::server::{bind, Server, ServerConfig};
use tokio::sync::oneshot;
use tonic::{Code, Status};

const RETURN: &str = "/ray.rpc.NodeManagerService/ReturnWorkerLease";
const PUSH: &str = "/ray.rpc.ObjectManagerService/Push";
const SYNC: &str = "/ray.rpc.syncer.RaySyncer/StartSync";
const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

/// Runs a test on a thread like the node's control thread, for at most two minutes.
fn on_control_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let local = tokio::task::LocalSet::new();
    let bounded = async { tokio::time::timeout(Duration::from_secs(120), test).await.expect("in time") };
    local.block_on(&runtime, bounded);
}

async fn serve(router: Router, config: ServerConfig) -> (SocketAddr, oneshot::Sender<()>) {
    serve_on(0, router, config).await
}

async fn serve_on(port: u16, router: Router, config: ServerConfig) -> (SocketAddr, oneshot::Sender<()>) {
    let listener = bind((Ipv4Addr::LOCALHOST, port).into()).await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        let _ = stopped.await;
    };
    tokio::task::spawn_local(Server::new(router, config).serve(listener, stopped));
    (address, stop)
}

fn channel(address: SocketAddr, auth: Auth, chaos: &str) -> Channel {
    let config = ClientConfig { auth, ..ClientConfig::default() };
    let context = ClientContext::new(config, Chaos::from_setting(chaos).expect("setting"));
    Channel::new(context, &address.to_string()).expect("channel")
}

/// Replies to Push with nothing; to ReturnWorkerLease by what its worker port says.
fn router() -> Router {
    Router::new().unary(PUSH, |_: PushRequest| async { Ok(PushReply {}) }).unary(
        RETURN,
        |request: ReturnWorkerLeaseRequest| async move {
            match request.worker_port {
                0 => Ok(ReturnWorkerLeaseReply {}),
                1 => Err(Status::with_details(Code::Aborted, "NotFound", "no such lease: é".into())),
                _ => {
                    std::future::pending::<()>().await;
                    Ok(ReturnWorkerLeaseReply {})
                }
            }
        },
    )
}

fn lease(worker_port: i32) -> ReturnWorkerLeaseRequest {
    ReturnWorkerLeaseRequest { worker_port, ..Default::default() }
}

#[test]
fn replies_and_statuses_arrive() {
    on_control_thread(async {
        let (address, _stop) = serve(router(), ServerConfig::default()).await;
        let channel = channel(address, Auth::disabled(), "");
        let reply: ReturnWorkerLeaseReply = channel.call(RETURN, &lease(0), LIMIT).await.expect("reply");
        assert_eq!(reply, ReturnWorkerLeaseReply {});
        let aborted = channel.call::<_, ReturnWorkerLeaseReply>(RETURN, &lease(1), LIMIT).await.expect_err("aborted");
        assert_eq!((aborted.code(), aborted.message()), (Code::Aborted, "NotFound"));
        assert_eq!(aborted.details(), "no such lease: é".as_bytes());
        let soon = Some(Duration::from_millis(50));
        let late = channel.call::<_, ReturnWorkerLeaseReply>(RETURN, &lease(2), soon).await.expect_err("late");
        assert_eq!(late.code(), Code::DeadlineExceeded);
        let path = "/ray.rpc.NodeManagerService/Missing";
        let missing = channel.call::<_, PushReply>(path, &PushReply {}, LIMIT).await.expect_err("missing");
        assert_eq!(missing.code(), Code::Unimplemented);
        assert!(missing.message().contains("Missing"), "{missing:?}");
        // Field 1 of a lease's return is a number, so bytes in its place cannot be read.
        let garbage = PushRequest { push_id: vec![0xff; 3].into(), ..Default::default() };
        let unread = channel.call::<_, PushReply>(RETURN, &garbage, LIMIT).await.expect_err("unread");
        assert_eq!((unread.code(), unread.message()), (Code::Internal, "Unable to parse request"));
    });
}

#[test]
fn messages_of_many_frames_arrive_whole() {
    on_control_thread(async {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let sink = seen.clone();
        let router = Router::new().unary(PUSH, move |request: PushRequest| {
            sink.borrow_mut().push(request.data.clone());
            async { Ok(PushReply {}) }
        });
        let (address, _stop) = serve(router, ServerConfig::default()).await;
        let channel = channel(address, Auth::disabled(), "");
        for size_bytes in [0, 1, 16_379, 16_384, 1_000_000, 20_000_000] {
            let data: Vec<u8> = (0..size_bytes).map(|i| (i % 251) as u8).collect();
            let request = PushRequest { data: data.clone().into(), ..Default::default() };
            let PushReply {} = channel.call(PUSH, &request, LIMIT).await.expect("reply");
            assert!(seen.borrow_mut().pop().expect("arrived") == data, "{size_bytes} bytes");
        }
    });
}

#[test]
fn tonics_client_understands_the_server() {
    on_control_thread(async {
        let token = Token::new("s3cret").expect("token");
        let config = ServerConfig { auth: Auth::with_token(token.clone()), ..ServerConfig::default() };
        let (address, _stop) = serve(Health::new().serve_on(router()), config).await;
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("endpoint");
        let mut client = tonic::client::Grpc::new(endpoint.connect().await.expect("connect"));
        for (worker_port, with_token, expected) in
            [(0, true, Code::Ok), (1, true, Code::Aborted), (0, false, Code::Unauthenticated)]
        {
            client.ready().await.expect("ready");
            let mut request = tonic::Request::new(lease(worker_port));
            if with_token {
                let value = token.header_value().to_str().expect("ascii").parse().expect("metadata");
                request.metadata_mut().insert("authorization", value);
            }
            let codec = tonic_prost::ProstCodec::<_, ReturnWorkerLeaseReply>::default();
            let reply = client.unary(request, PathAndQuery::from_static(RETURN), codec).await;
            let code = reply.map_or_else(|status| status.code(), |_| Code::Ok);
            assert_eq!(code, expected);
        }
        client.ready().await.expect("ready");
        let codec = tonic_prost::ProstCodec::<_, HealthCheckResponse>::default();
        let watch = PathAndQuery::from_static("/grpc.health.v1.Health/Watch");
        let request = tonic::Request::new(HealthCheckRequest { service: String::new() });
        let mut statuses = client.server_streaming(request, watch, codec).await.expect("watch").into_inner();
        assert_eq!(statuses.message().await.expect("stream").expect("status").status, 1);
    });
}

#[test]
fn a_wrong_token_is_refused_and_health_needs_none() {
    on_control_thread(async {
        let right = || Auth::with_token(Token::new("right").expect("token"));
        let wrong = Auth::with_token(Token::new("wrong").expect("token"));
        let health = Health::new();
        health.set("node", true);
        let config = ServerConfig { auth: right(), ..ServerConfig::default() };
        let (address, _stop) = serve(health.serve_on(router()), config).await;
        for auth in [Auth::disabled(), wrong] {
            let channel = channel(address, auth, "");
            let refused = channel.call::<_, PushReply>(PUSH, &PushRequest::default(), LIMIT).await;
            let refused = refused.expect_err("refused");
            assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, INVALID_TOKEN_MESSAGE));
            let check = |service: &str| {
                let (channel, service) = (channel.clone(), service.to_owned());
                async move {
                    let request = HealthCheckRequest { service };
                    channel.call::<_, HealthCheckResponse>("/grpc.health.v1.Health/Check", &request, LIMIT).await
                }
            };
            assert_eq!(check("node").await.expect("known").status, 1);
            assert_eq!(check("").await.expect("known").status, 1);
            assert_eq!(check("other").await.expect_err("unknown").code(), Code::NotFound);
        }
        let channel = channel(address, right(), "");
        let PushReply {} = channel.call(PUSH, &PushRequest::default(), LIMIT).await.expect("accepted");
        health.stop();
        let request = HealthCheckRequest { service: "node".to_owned() };
        let stopped: HealthCheckResponse =
            channel.call("/grpc.health.v1.Health/Check", &request, LIMIT).await.expect("reply");
        assert_eq!(stopped.status, 2);
    });
}

#[test]
fn both_sides_of_a_stream_flow_until_either_ends_it() {
    on_control_thread(async {
        let router = Router::new().streaming(SYNC, true, |metadata: &HeaderMap, mut requests, replies| {
            if !metadata.contains_key("node_id") {
                return Err(Status::invalid_argument("no node_id"));
            }
            Ok((HeaderMap::new(), async move {
                while let Some(batch) = requests.next().await? {
                    let batch: RaySyncMessageBatch = batch;
                    let number = batch.messages.first().map_or(0, |m| m.version);
                    if number < 0 {
                        return Err(Status::data_loss("asked to fail"));
                    }
                    replies.send(&batch).await?;
                }
                Ok(())
            }))
        });
        let (address, _stop) = serve(router, ServerConfig::default()).await;
        let channel = channel(address, Auth::disabled(), "");
        let batch = |version| RaySyncMessageBatch { messages: vec![RaySyncMessage { version, ..Default::default() }] };
        let open = |metadata: &'static [(HeaderName, HeaderValue)]| {
            channel.open_stream::<RaySyncMessageBatch, RaySyncMessageBatch>(SYNC, metadata)
        };
        assert_eq!(open(&[]).await.err().expect("refused").code(), Code::InvalidArgument);
        let metadata: &'static _ =
            Box::leak(Box::new([(HeaderName::from_static("node_id"), HeaderValue::from_static("00"))]));
        let (sender, mut receiver) = open(metadata).await.expect("stream");
        for version in 1..=300 {
            sender.send(&batch(version)).await.expect("sent");
            let echoed = receiver.next().await.expect("reply").expect("message");
            assert_eq!(echoed, batch(version));
        }
        drop(sender);
        assert!(receiver.next().await.expect("status").is_none());
        let (sender, mut receiver) = open(metadata).await.expect("stream");
        sender.send(&batch(-1)).await.expect("sent");
        assert_eq!(receiver.next().await.expect_err("failed").code(), Code::DataLoss);
    });
}

#[test]
fn a_handler_runs_to_its_end_without_its_client() {
    on_control_thread(async {
        let (begun, ended) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let go = Rc::new(tokio::sync::Semaphore::new(0));
        let counts = (begun.clone(), ended.clone(), go.clone());
        let router = Router::new().unary(PUSH, move |_: PushRequest| {
            let (begun, ended, go) = counts.clone();
            async move {
                begun.set(begun.get() + 1);
                // The semaphore is never closed.
                let _turn = go.acquire().await;
                ended.set(ended.get() + 1);
                Ok(PushReply {})
            }
        });
        let (address, _stop) = serve(router, ServerConfig::default()).await;
        let channel = channel(address, Auth::disabled(), "");
        let soon = Some(Duration::from_millis(20));
        // A call may be late before it has reached the server.
        while begun.get() < 3 {
            let late = channel.call::<_, PushReply>(PUSH, &PushRequest::default(), soon).await;
            assert_eq!(late.expect_err("late").code(), Code::DeadlineExceeded);
        }
        assert_eq!(ended.get(), 0);
        go.add_permits(1);
        while ended.get() < begun.get() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_channel_reconnects_and_retries() {
    on_control_thread(async {
        // Nobody else gets the port while no server has it.
        let kept = Reservation::new(Ipv4Addr::LOCALHOST.into(), 0).expect("a port");
        let (address, stop) = serve_on(kept.port(), router(), ServerConfig::default()).await;
        let channel = channel(address, Auth::disabled(), "");
        let PushReply {} = channel.call(PUSH, &PushRequest::default(), LIMIT).await.expect("reply");
        drop(stop);
        let down = loop {
            match channel.call::<_, PushReply>(PUSH, &PushRequest::default(), LIMIT).await {
                Ok(PushReply {}) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(status) => break status,
            }
        };
        assert_eq!(down.code(), Code::Unavailable);
        let back = tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            serve_on(kept.port(), router(), ServerConfig::default()).await
        });
        let retry = Retry { max_attempts: 50, backoff_min_ms: 10, backoff_max_ms: 100 };
        let again = channel.call_with_retry(PUSH, &PushRequest::default(), LIMIT, retry).await;
        let PushReply {} = again.expect("the server is back");
        let (_, _stop) = back.await.expect("the server is back");
    });
}

#[test]
fn injected_failures_reach_the_caller() {
    on_control_thread(async {
        let served = Rc::new(Cell::new(0));
        let count = served.clone();
        let router = Router::new().unary(PUSH, move |_: PushRequest| {
            count.set(count.get() + 1);
            async { Ok(PushReply {}) }
        });
        let (address, _stop) = serve(router, ServerConfig::default()).await;
        let setting = r#"{"ObjectManagerService.grpc_client.Push":{"num_failures":3,
            "num_lower_bound_req_failures":1,"num_lower_bound_resp_failures":1,"num_lower_bound_in_flight_failures":1}}"#;
        let channel = channel(address, Auth::disabled(), setting);
        let mut served_after = Vec::new();
        for _ in 0..3 {
            let failed = channel.call::<_, PushReply>(PUSH, &PushRequest::default(), LIMIT).await;
            assert_eq!(failed.expect_err("injected").code(), Code::Unavailable);
            served_after.push(served.get());
        }
        // Lost request, lost reply, and a failure told before the request is served.
        assert_eq!(served_after, [0, 1, 1]);
        let PushReply {} = channel.call(PUSH, &PushRequest::default(), LIMIT).await.expect("no failures left");
        assert_eq!(served.get(), 3);
    });
}

/// Sends a body as it is and returns the status that comes back.
async fn status_of_body(address: SocketAddr, body: &'static [u8]) -> Code {
    let stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.expect("handshake");
    tokio::spawn(connection);
    let body = http_body_util::Full::new(bytes::Bytes::from_static(body));
    let request = http::Request::post(format!("http://{address}{PUSH}")).body(body).expect("request");
    let response = sender.send_request(request).await.expect("response");
    Status::from_header_map(response.headers()).expect("a status in the headers").code()
}

#[test]
fn malformed_bodies_get_a_status() {
    on_control_thread(async {
        let (address, _stop) = serve(router(), ServerConfig::default()).await;
        for (body, expected) in [
            (&[][..], Code::Internal),
            (&[0, 0, 0], Code::Internal),
            (&[0, 0, 0, 0, 5, 1], Code::Internal),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Code::Internal),
            (&[0, 0, 0, 0, 0, 9], Code::Internal),
            (&[0, 0, 0, 0, 1, 0xff], Code::Internal),
            (&[1, 0, 0, 0, 0], Code::Unimplemented),
            (&[0, 0xff, 0xff, 0xff, 0xff, 0], Code::ResourceExhausted),
        ] {
            assert_eq!(status_of_body(address, body).await, expected, "{body:?}");
        }
        let channel = channel(address, Auth::disabled(), "");
        let PushReply {} = channel.call(PUSH, &PushRequest::default(), LIMIT).await.expect("still serving");
    });
}
