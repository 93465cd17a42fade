//! Spans reach a collector (feature `otel`): a node of its own, and a collector that keeps what it is sent.
#![cfg(feature = "otel")]

#[path = "rpc_support/python.rs"]
mod python;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use python::python;
use raylet_uring::ray::rpc::router::Router;
use raylet_uring::ray::rpc::server::{bind, Server, ServerConfig};

const OURS: &str = env!("CARGO_BIN_EXE_raylet-uring");
/// Nothing here takes longer on a machine that isn't stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// The parts of OpenTelemetry's `ExportTraceServiceRequest` that are looked at (opentelemetry-proto 1.x, trace.proto).
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "7")]
    start_ns: u64,
    #[prost(fixed64, tag = "8")]
    end_ns: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Reply {}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(attributes: &[Attribute], key: &str) -> Option<String> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.text
}

/// What a collector was sent.
type Collected = Rc<RefCell<Vec<ResourceSpans>>>;

/// A collector on this thread, with its endpoint.
async fn collector() -> (String, Collected) {
    let got = Collected::default();
    let keep = got.clone();
    let router = Router::new().unary_without_auth(
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        move |request: Request| {
            keep.borrow_mut().extend(request.resource_spans);
            std::future::ready(Ok(Reply {}))
        },
    );
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::new(router, ServerConfig::default());
    tokio::task::spawn_local(server.serve(listener, std::future::pending()));
    (endpoint, got)
}

fn spans(got: &[ResourceSpans]) -> Vec<&Span> {
    got.iter().flat_map(|of| &of.scope_spans).flat_map(|scope| &scope.spans).collect()
}

/// A task on a Ray whose raylet is the first argument; the second is a directory.
const PROGRAM: &str = r#"
import sys, ray
from ray._private import services
services.RAYLET_EXECUTABLE = sys.argv[1]
ray.init(num_cpus=1, object_store_memory=100 << 20, include_dashboard=False, _temp_dir=sys.argv[2], log_to_driver=False)

@ray.remote
def answer():
    return 42

assert ray.get(answer.remote(), timeout=60) == 42
ray.shutdown()
"#;

#[tokio::test]
async fn a_collector_gets_the_spans_of_a_raylet() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let (endpoint, got) = collector().await;
            let dir = tempfile::tempdir().unwrap();
            let raylet = dir.path().join("raylet");
            std::os::unix::fs::symlink(OURS, &raylet).unwrap();
            let mut command = tokio::process::Command::new(python());
            command.args(["-c", PROGRAM]).arg(&raylet).arg(dir.path().join("s"));
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "200");
            command.env("RAY_USAGE_STATS_ENABLED", "0").kill_on_drop(true);
            let ran = tokio::time::timeout(2 * PATIENCE, command.output()).await.expect("the program ends").unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            let names = |got: &Collected| -> BTreeSet<String> {
                spans(&got.borrow()).iter().map(|span| span.name.clone()).collect()
            };
            let wanted: BTreeSet<String> = ["rpc", "lease", "worker.start"].map(str::to_owned).into();
            let arrived = async {
                while !names(&got).is_superset(&wanted) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let all = tokio::time::timeout(PATIENCE, arrived).await;
            all.unwrap_or_else(|_| panic!("expected {wanted:?}, got {:?}", names(&got)));
            let got = got.borrow();
            let lease = spans(&got).into_iter().find(|span| span.name == "lease").unwrap();
            assert!(text(&lease.attributes, "task").is_some_and(|task| task.contains("answer")), "{lease:?}");
            assert!(lease.end_ns >= lease.start_ns);
        })
        .await;
}

#[tokio::test]
async fn a_collector_gets_the_spans_of_a_node() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let (endpoint, got) = collector().await;
            let dir = tempfile::tempdir().unwrap();
            let nodes = dir.path().join("nodes");
            let mut command = Command::new(OURS);
            command.args(["--cores=0", "--object-store-memory=64M", "--warm-reserve=0", "--runtime-dir"]).arg(&nodes);
            // Soon, so that the end of the node is not what sends them.
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "200");
            command.env_remove("OTEL_SERVICE_NAME").stdout(Stdio::null()).stderr(Stdio::null());
            let mut node = Running(command.spawn().unwrap());
            let asked = async {
                loop {
                    let status = tokio::process::Command::new(OURS)
                        .arg("status")
                        .env("RAYLET_URING_RUNTIME_DIR", &nodes)
                        .output();
                    let answered = status.await.unwrap().status.success();
                    if answered && !got.borrow().is_empty() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::time::timeout(PATIENCE, asked).await.expect("spans while the node runs");
            let got = got.borrow().clone();
            let resource = got[0].resource.clone().unwrap();
            assert_eq!(text(&resource.attributes, "service.name").as_deref(), Some("raylet-uring"));
            let spans = spans(&got);
            let request = spans.iter().find(|span| span.name == "admin.request").unwrap_or_else(|| panic!("{spans:?}"));
            assert_eq!(text(&request.attributes, "path").as_deref(), Some("/status"));
            assert!(request.start_ns > 0 && request.end_ns >= request.start_ns);
            let pid = rustix::process::Pid::from_child(&node.0);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            // In a task of its own, since the collector lives on this thread.
            let ended = tokio::task::spawn_blocking(move || node.0.wait().unwrap().code()).await.unwrap();
            assert_eq!(ended, Some(0));
        })
        .await;
}
