//! The lease load against a small raylet of this test's own, which keeps count of its leases.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response};
use prost::bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use raylet_bench::lease_load::{self, Settings};
use raylet_bench::LoadError;
use raylet_uring::ray::proto;
use raylet_uring::ray::rpc::auth::{Auth, Token};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const TOKEN: &str = "Bearer s3cret";

type Granted = oneshot::Sender<proto::RequestWorkerLeaseReply>;

/// Grants as many leases at once as it has workers, in the order of the requests.
#[derive(Default)]
struct Raylet {
    workers: usize,
    /// Requests with this many CPUs are never granted.
    never_cpus: Option<f64>,
    refuses: bool,
    queue: VecDeque<(Bytes, f64, Granted)>,
    leased: HashSet<Bytes>,
    /// Every id that was asked for.
    seen: BTreeSet<Bytes>,
    returned: usize,
    most_waiting: usize,
    wrong: Vec<String>,
}

impl Raylet {
    fn grant(&mut self) {
        while self.leased.len() < self.workers {
            let next = self.queue.iter().position(|q| Some(q.1) != self.never_cpus);
            let Some((lease_id, _, granted)) = next.and_then(|at| self.queue.remove(at)) else {
                return;
            };
            self.leased.insert(lease_id);
            let reply = proto::RequestWorkerLeaseReply {
                worker_address: Some(proto::Address { port: 4711, ..Default::default() }),
                rejected: self.refuses,
                ..Default::default()
            };
            // A client that is gone needs no answer.
            drop(granted.send(reply));
        }
    }

    fn request(&mut self, body: &[u8]) -> oneshot::Receiver<proto::RequestWorkerLeaseReply> {
        let request = proto::RequestWorkerLeaseRequest::decode(body).expect("a request");
        let spec = request.lease_spec.expect("a lease");
        if !self.seen.insert(spec.lease_id.clone()) || spec.lease_id.len() != 32 {
            self.wrong.push(format!("lease id {:?}", spec.lease_id));
        }
        let (granted, answer) = oneshot::channel();
        self.queue.push_back((spec.lease_id, spec.required_resources["CPU"], granted));
        self.most_waiting = self.most_waiting.max(self.queue.len() + self.leased.len());
        self.grant();
        answer
    }

    fn give_back(&mut self, body: &[u8]) {
        let back = proto::ReturnWorkerLeaseRequest::decode(body).expect("a return");
        if !self.leased.remove(&back.lease_id) || back.worker_port != 4711 {
            self.wrong.push(format!("{back:?} is not leased"));
        }
        self.returned += 1;
        self.grant();
    }

    fn cancel(&mut self, body: &[u8]) {
        let cancel = proto::CancelWorkerLeaseRequest::decode(body).expect("a cancel");
        if let Some(at) = self.queue.iter().position(|q| q.0 == cancel.lease_id) {
            let (_, _, granted) = self.queue.remove(at).expect("just found");
            let reply = proto::RequestWorkerLeaseReply { canceled: true, ..Default::default() };
            drop(granted.send(reply));
        }
    }
}

async fn serve(socket: TcpStream, raylet: Arc<Mutex<Raylet>>) {
    let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(call(request, respond, raylet.clone()));
    }
}

async fn call(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    raylet: Arc<Mutex<Raylet>>,
) {
    let (head, mut stream) = request.into_parts();
    let mut body = BytesMut::new();
    while let Some(Ok(data)) = stream.data().await {
        body.extend_from_slice(&data);
    }
    let known = head.headers.get("authorization") == Some(&HeaderValue::from_static(TOKEN));
    let (status, reply) =
        if known { ("0", reply(head.uri.path(), &body[5..], &raylet).await) } else { ("16", Vec::new()) };
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(reply.len() as u32);
    framed.extend_from_slice(&reply);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers.insert("grpc-message", HeaderValue::from_static("as it is"));
    // The client may have gone; then nothing is left to say.
    if let Ok(mut stream) = respond.send_response(Response::new(()), false) {
        drop(stream.send_data(framed.freeze(), false));
        drop(stream.send_trailers(trailers));
    }
}

async fn reply(path: &str, body: &[u8], raylet: &Mutex<Raylet>) -> Vec<u8> {
    match path.rsplit('/').next() {
        Some("RequestWorkerLease") => {
            let answer = raylet.lock().unwrap().request(body);
            answer.await.map(|r| r.encode_to_vec()).unwrap_or_default()
        }
        Some("ReturnWorkerLease") => {
            raylet.lock().unwrap().give_back(body);
            Vec::new()
        }
        Some("CancelWorkerLease") => {
            raylet.lock().unwrap().cancel(body);
            Vec::new()
        }
        _ => panic!("unexpected call of {path}"),
    }
}

/// Starts the raylet on a thread of its own; it ends with the test.
fn start(raylet: Raylet) -> (Settings, Arc<Mutex<Raylet>>) {
    let raylet = Arc::new(Mutex::new(raylet));
    let (port, bound) = std::sync::mpsc::channel();
    let served = raylet.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            port.send(listener.local_addr().expect("an address")).expect("the test waits");
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, served.clone()));
            }
        });
    });
    let settings = Settings {
        address: bound.recv().expect("a port").to_string(),
        owner: proto::Address { worker_id: Bytes::from_static(&[5; 28]), ..Default::default() },
        job_id: Bytes::from_static(&[1, 0, 0, 0]),
        in_flight: 8,
        connections: 2,
        shapes: 1,
        cpus: 1.0,
        warm_up: Duration::from_millis(20),
        window: Duration::from_millis(100),
        drain: Duration::from_secs(5),
        first_lease: 1000,
        raylet_pid: Some(std::process::id() as i32),
    };
    (settings, raylet)
}

fn auth() -> Auth {
    Auth::with_token(Token::new("s3cret").expect("a token"))
}

#[test]
fn every_lease_is_given_back_and_the_number_in_flight_is_kept() {
    let (settings, raylet) = start(Raylet { workers: 2, ..Raylet::default() });
    let report = lease_load::run(&settings, &auth()).expect("a report");
    let raylet = raylet.lock().unwrap();
    assert!(raylet.wrong.is_empty(), "{:?}", raylet.wrong);
    assert!(raylet.leased.is_empty() && raylet.queue.is_empty());
    assert_eq!(raylet.returned, raylet.seen.len());
    assert_eq!(raylet.most_waiting, settings.in_flight);
    assert!(report.pairs > 0 && report.pairs <= raylet.returned as u64);
    assert!(report.pair.count >= report.pairs && report.cancelled == 0);
    assert!(report.raylet_cpu_us_per_pair.expect("a pid was given") > 0.0);
    let first: Vec<u8> = [&[5; 28][..], &1000u32.to_le_bytes()].concat();
    assert!(raylet.seen.contains(&Bytes::from(first)));
}

#[test]
fn a_shape_that_starves_is_seen_and_its_request_cancelled() {
    let (settings, raylet) = start(Raylet { workers: 2, never_cpus: Some(0.9997), ..Raylet::default() });
    let settings = Settings { shapes: 4, in_flight: 4, drain: Duration::from_millis(50), ..settings };
    let report = lease_load::run(&settings, &auth()).expect("a report");
    assert_eq!((report.cancelled, report.unserved), (1, 1), "{report:?}");
    assert!(report.pair.over_ten_medians >= 1, "{report:?}");
    assert!(report.pair.max_us >= 150_000.0, "{report:?}");
    let raylet = raylet.lock().unwrap();
    assert!(raylet.leased.is_empty() && raylet.queue.is_empty());
}

#[test]
fn a_request_that_is_rejected_ends_the_run() {
    let (settings, _raylet) = start(Raylet { workers: 2, refuses: true, ..Raylet::default() });
    let error = lease_load::run(&settings, &auth()).expect_err("rejected");
    assert!(matches!(error, LoadError::NotGranted(_)), "{error}");
}

#[test]
fn a_wrong_token_is_an_error_with_the_status() {
    let (settings, raylet) = start(Raylet::default());
    let error = lease_load::run(&settings, &Auth::disabled()).expect_err("refused");
    assert!(error.to_string().contains("16"), "{error}");
    assert!(raylet.lock().unwrap().seen.is_empty());
}

#[test]
fn a_raylet_that_is_not_there_is_an_error_that_names_it() {
    let (mut settings, _raylet) = start(Raylet::default());
    settings.address = "127.0.0.1:1".to_owned();
    let error = lease_load::run(&settings, &auth()).expect_err("nobody there");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}
