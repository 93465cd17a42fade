//! The client of the runtime-env agent: against a small HTTP server that misbehaves on demand, and against Ray's own
//! agents with Ray's own GCS.

mod workers_support;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::HeaderValue;
use raylet_shard::ids::{JobId, NodeId};
use raylet_uring::ray::agents::{Agent, AgentManager, AgentSettings, AgentState};
use raylet_uring::ray::proto;
use raylet_uring::ray::runtime_env::{RuntimeEnvClient, RuntimeEnvError, RuntimeEnvSettings};
use raylet_uring::workers::process::ProcessKey;
use workers_support::{eventually, python};

const NODE: NodeId = NodeId([0x7c; 28]);
const JOB: JobId = JobId([1, 0, 0, 0]);
/// Far above what anything here needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const TOKEN: &str = "a-secret-of-this-test";
const TOKEN_SETTINGS: [(&str, &str); 2] = [("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN", TOKEN)];

/// Answers as its mode says; writes what it was asked to `log`, one line a request.
const FAKE_AGENT: &str = r#"
import http.server, os, sys, time
out, mode = sys.argv[1], sys.argv[2]
port = int(sys.argv[3].split("=")[1])
def text(tag, value): return bytes([tag << 3 | 2, len(value)]) + value
class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(f"{out}/log", "a") as f:
            print(self.path, self.headers.get("Authorization"), self.headers["Content-Type"], body.hex(), file=f)
        status, reply = 200, text(3, b'{"env_vars": {}}')
        if mode == "fails": reply = b"\x08\x01" + text(2, b"[Node x] no such package")
        if mode == "forbids": status, reply = 403, b"Forbidden: Invalid authentication token"
        if mode == "babbles": reply = b"\xff\xff\xff"
        if mode == "huge": reply = bytes(17 << 20)
        if mode == "hangs up": self.close_connection = True; return
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)
with open(f"{out}/runtime_env_agent_port_{os.environ['RAY_NODE_ID']}", "w") as f: f.write(str(port))
if mode == "late": time.sleep(1)
if mode in ("absent", "killed"): time.sleep(100)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Agent).serve_forever()
"#;

fn agent_settings(dir: &Path) -> AgentSettings {
    AgentSettings {
        node_id: NODE,
        node_ip: HERE,
        session_dir: dir.into(),
        raylet_pid: std::process::id(),
        dashboard_command: vec![],
        runtime_env_command: vec![],
        pipe_health_check: true,
        register_timeout: PATIENCE,
        start_at_latest: PATIENCE,
        kill_timeout: Duration::from_secs(2),
    }
}

/// How long a client tries an agent in one of the modes that never answer.
fn give_up_after(mode: &str) -> Duration {
    match mode {
        "absent" => Duration::from_secs(2),
        // Long enough for a busy machine to try twice.
        "hangs up" => Duration::from_secs(10),
        _ => PATIENCE,
    }
}

fn client_settings(token: Option<&str>, register_timeout: Duration) -> RuntimeEnvSettings {
    RuntimeEnvSettings {
        node_ip: HERE,
        authorization: token.map(|token| HeaderValue::from_str(&format!("Bearer {token}")).unwrap()),
        register_timeout,
        retry_interval: Duration::from_millis(300),
    }
}

fn info(serialized: &str) -> proto::RuntimeEnvInfo {
    let config = proto::RuntimeEnvConfig { setup_timeout_seconds: 600, ..Default::default() };
    proto::RuntimeEnvInfo {
        serialized_runtime_env: serialized.into(),
        runtime_env_config: Some(config),
        ..Default::default()
    }
}

fn control_thread(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(2 * PATIENCE, test()).await.expect("in time") };
    tokio::task::LocalSet::new().block_on(&runtime, bounded);
}

/// Runs a test with a client of the fake agent in a mode.
fn with_fake(mode: &str, token: Option<&str>, test: impl AsyncFnOnce(RuntimeEnvClient, AgentManager, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("agent.py");
    fs::write(&script, FAKE_AGENT).unwrap();
    control_thread(async || {
        let mut settings = agent_settings(dir.path());
        let arguments = ["python3", script.to_str().unwrap(), dir.path().to_str().unwrap(), mode];
        settings.runtime_env_command = arguments.map(String::from).to_vec();
        settings.runtime_env_command.push("--runtime-env-agent-port=0".into());
        let (agents, _failures) = AgentManager::new(settings).unwrap();
        agents.start(1).unwrap();
        let client = RuntimeEnvClient::new(client_settings(token, give_up_after(mode)), agents.clone());
        test(client, agents.clone(), dir.path()).await;
        assert_eq!(agents.shutdown().await, 0);
    });
}

/// Path, authorization, content type and body of each request so far.
fn requests(dir: &Path) -> Vec<[String; 4]> {
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    let fields = |line: &str| {
        // The token's header has a blank in it.
        let mut words: Vec<_> = line.split(' ').map(String::from).collect();
        let body = words.pop().unwrap();
        let kind = words.pop().unwrap();
        [words.remove(0), words.join(" "), kind, body]
    };
    log.lines().map(fields).collect()
}

#[test]
fn requests_say_what_the_agent_expects() {
    with_fake("good", Some(TOKEN), async |client, _, dir| {
        let env = r#"{"env_vars": {"A": "1"}}"#;
        assert_eq!(client.get_or_create(JOB, &info(env)).await.unwrap(), r#"{"env_vars": {}}"#);
        client.release(env);
        client.release("{}");
        client.release("");
        eventually("the reference is given back", || requests(dir).len() == 2).await;
        let requests = requests(dir);
        let token = format!("Bearer {TOKEN}");
        for ([path, authorization, kind, _], expected) in
            requests.iter().zip(["/get_or_create_runtime_env", "/delete_runtime_env_if_possible"])
        {
            assert_eq!((path.as_str(), authorization, kind.as_str()), (expected, &token, "application/octet-stream"));
        }
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
        };
        let create: proto::GetOrCreateRuntimeEnvRequest =
            prost::Message::decode(bytes(&requests[0][3]).as_slice()).unwrap();
        assert_eq!(create.serialized_runtime_env, env);
        assert_eq!(&create.job_id[..], b"01000000");
        assert_eq!(create.runtime_env_config.unwrap().setup_timeout_seconds, 600);
        let delete: proto::DeleteRuntimeEnvIfPossibleRequest =
            prost::Message::decode(bytes(&requests[1][3]).as_slice()).unwrap();
        assert_eq!((delete.serialized_runtime_env.as_str(), delete.source_process.as_str()), (env, "raylet"));
    });
}

#[test]
fn a_process_holds_its_environment_until_it_ends() {
    with_fake("good", None, async |client, _, dir| {
        let env = "{\"a\": 1}";
        let built = client.for_worker(JOB, &info(env)).await.unwrap();
        assert_eq!(built.context(), r#"{"env_vars": {}}"#);
        built.held_by(ProcessKey(4));
        client.process_ended(ProcessKey(5));
        client.process_ended(ProcessKey(6));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(requests(dir).len(), 1);
        client.process_ended(ProcessKey(4));
        client.process_ended(ProcessKey(4));
        eventually("it is given back", || requests(dir).len() > 1).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(requests(dir).len(), 2);
    });
}

#[test]
fn an_environment_whose_worker_is_not_started_is_given_back() {
    with_fake("good", None, async |client, _, dir| {
        let env = "{\"a\": 1}";
        drop(client.for_worker(JOB, &info(env)).await.unwrap());
        eventually("it is given back", || requests(dir).len() > 1).await;
        assert_eq!(requests(dir)[1][0], "/delete_runtime_env_if_possible");
        // Whatever becomes of the process that would have had the number.
        client.process_ended(ProcessKey(1));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(requests(dir).len(), 2);
    });
}

#[test]
fn an_agent_that_is_still_starting_is_waited_for() {
    with_fake("late", None, async |client, _, dir| {
        client.get_or_create(JOB, &info("{\"a\": 1}")).await.unwrap();
        assert_eq!(requests(dir).len(), 1, "asked once it listened");
        assert_eq!(requests(dir)[0][1], "None", "no token, no header");
    });
}

#[test]
fn an_agent_that_never_listens_is_given_up() {
    with_fake("absent", None, async |client, _, _| {
        let error = client.get_or_create(JOB, &info("{\"a\": 1}")).await.unwrap_err();
        assert!(matches!(error, RuntimeEnvError::Unreachable { .. }), "{error}");
    });
}

#[test]
fn answers_that_are_no_context_are_told_apart() {
    for (mode, check) in [
        (
            "fails",
            (|e| matches!(e, RuntimeEnvError::Failed(text) if text == "[Node x] no such package")) as fn(&_) -> _,
        ),
        (
            "forbids",
            |e| matches!(e, RuntimeEnvError::Refused { status, text } if status.as_u16() == 403 && text.contains("Invalid")),
        ),
        ("babbles", |e| matches!(e, RuntimeEnvError::BadReply(_))),
        ("huge", |e| matches!(e, RuntimeEnvError::BadReply(text) if text.contains("more than"))),
    ] {
        with_fake(mode, None, async |client, _, dir| {
            let error = client.get_or_create(JOB, &info("{\"a\": 1}")).await.unwrap_err();
            assert!(check(&error), "{mode}: {error:?}");
            assert_eq!(requests(dir).len(), 1, "{mode}: an agent that answered is not asked again");
        });
    }
}

#[test]
fn an_agent_that_dies_ends_the_request() {
    with_fake("hangs up", None, async |client, _, dir| {
        let error = client.get_or_create(JOB, &info("{\"a\": 1}")).await.unwrap_err();
        assert!(matches!(error, RuntimeEnvError::Unreachable { .. }), "{error}");
        assert!(requests(dir).len() > 1, "a connection that broke before an answer is tried again");
    });
    with_fake("killed", None, async |client, agents, _| {
        let request = tokio::task::spawn_local(async move { client.get_or_create(JOB, &info("{\"a\": 1}")).await });
        assert_eq!(agents.settled(Agent::RuntimeEnv).await, AgentState::Ready);
        let pid = agents.pids()[1].unwrap();
        Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        let error = request.await.unwrap().unwrap_err();
        assert!(matches!(error, RuntimeEnvError::AgentFailed), "{error}");
    });
}

#[test]
fn without_an_agent_the_user_is_told_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    control_thread(async || {
        let (agents, _failures) = AgentManager::new(agent_settings(dir.path())).unwrap();
        let client = RuntimeEnvClient::new(client_settings(None, PATIENCE), agents);
        let error = client.get_or_create(JOB, &info("{\"a\": 1}")).await.unwrap_err().to_string();
        assert!(error.contains("ray[default]"), "{error}");
    });
}

#[test]
fn a_job_holds_the_environment_that_it_asked_for_ahead() {
    with_fake("good", None, async |client, _, dir| {
        let mut eager = info("{\"eager\": 1}");
        eager.runtime_env_config.as_mut().unwrap().eager_install = true;
        let config = |info| proto::JobConfig { runtime_env_info: Some(info), ..Default::default() };
        client.job_started(JobId([9; 4]), &config(info("{\"lazy\": 1}")));
        client.job_started(JOB, &config(eager.clone()));
        client.job_started(JOB, &config(eager));
        eventually("it is built", || !requests(dir).is_empty()).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(requests(dir).len(), 1);
        client.job_finished(JobId([9; 4]));
        client.job_finished(JOB);
        client.job_finished(JOB);
        eventually("it is given back", || requests(dir).len() > 1).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let paths: Vec<_> = requests(dir).into_iter().map(|[path, ..]| path).collect();
        assert_eq!(paths, ["/get_or_create_runtime_env", "/delete_runtime_env_if_possible"]);
    });
}

/// Where the `ray` package of that Python lies.
fn ray_dir() -> PathBuf {
    let find = "import importlib.util as u; print(u.find_spec('ray').submodule_search_locations[0])";
    let output = Command::new(python()).args(["-c", find]).output().expect("Python runs");
    assert!(output.status.success(), "Ray is not installed there: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

/// Ray's GCS, ended with the test.
struct Gcs {
    process: Child,
    address: String,
    cluster_id: String,
}

impl Gcs {
    fn start(dir: &Path) -> Self {
        let program = ray_dir().join("core/src/ray/gcs/gcs_server");
        let process = Command::new(program)
            .args(["--gcs_server_port=0", "--node-ip-address=127.0.0.1", "--metrics-agent-port=-1"])
            .arg(format!("--session-dir={}", dir.display()))
            .arg(format!("--log_dir={}", dir.display()))
            .arg(format!("--node-id={NODE}"))
            .args(["--session-name=test", &format!("--config_list={}", "e30=")])
            .envs(TOKEN_SETTINGS)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Ray's GCS starts");
        let file = dir.join(format!("gcs_server_port_{NODE}"));
        let deadline = Instant::now() + PATIENCE;
        let port = loop {
            match fs::read_to_string(&file) {
                Ok(port) if !port.is_empty() => break port,
                _ => assert!(Instant::now() < deadline, "the GCS announces its port"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let address = format!("127.0.0.1:{port}");
        let ask = "import sys; from ray._raylet import GcsClient; print(GcsClient(sys.argv[1]).cluster_id.hex())";
        let answer =
            Command::new(python()).args(["-c", ask, &address]).envs(TOKEN_SETTINGS).output().expect("Python runs");
        let cluster_id = String::from_utf8(answer.stdout).expect("text").trim().to_string();
        assert_eq!(cluster_id.len(), 56, "{}", String::from_utf8_lossy(&answer.stderr));
        Self { process, address, cluster_id }
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        self.process.kill().expect("the GCS can be ended");
        self.process.wait().expect("the GCS ends");
    }
}

/// The command of one of Ray's agents, with the token in its environment.
fn ray_agent(dir: &Path, gcs: &Gcs, script: &str, own: &[String]) -> Vec<String> {
    let dir = dir.display();
    let mut command = vec![
        "/usr/bin/env".into(),
        "RAY_AUTH_MODE=token".into(),
        format!("RAY_AUTH_TOKEN={TOKEN}"),
        python().display().to_string(),
        "-u".into(),
        ray_dir().join(script).display().to_string(),
        format!("--node-id={NODE}"),
        "--node-ip-address=127.0.0.1".into(),
        format!("--gcs-address={}", gcs.address),
        format!("--cluster-id-hex={}", gcs.cluster_id),
        format!("--session-dir={dir}"),
        format!("--log-dir={dir}"),
        format!("--temp-dir={dir}"),
        "--logging-rotate-bytes=1000000".into(),
        "--logging-rotate-backup-count=1".into(),
    ];
    command.extend_from_slice(own);
    command
}

#[test]
fn rays_own_agents_take_the_ports_they_are_given_and_build_environments() {
    let dir = tempfile::tempdir().unwrap();
    let gcs = Gcs::start(dir.path());
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    control_thread(async || {
        let mut settings = agent_settings(dir.path());
        settings.kill_timeout = 4 * PATIENCE;
        let sockets =
            [format!("--object-store-name={}", path("s").display()), format!("--raylet-name={}", path("r").display())];
        let mut own: Vec<String> = [
            "--metrics-export-port=0",
            "--grpc-port=0",
            "--listen-port=0",
            "--session-name=test",
            "--node-manager-port=RAY_NODE_MANAGER_PORT_PLACEHOLDER",
        ]
        .map(String::from)
        .into();
        own.extend(sockets);
        settings.dashboard_command = ray_agent(dir.path(), &gcs, "dashboard/agent.py", &own);
        let own = ["--runtime-env-agent-port=0".to_string(), format!("--runtime-env-dir={}", path("env").display())];
        settings.runtime_env_command = ray_agent(dir.path(), &gcs, "_private/runtime_env/agent/main.py", &own);
        let (agents, failures) = AgentManager::new(settings).unwrap();
        let planned = agents.ports();
        agents.start(12345).unwrap();
        let settled = agents.settled(Agent::RuntimeEnv).await;
        assert_eq!(settled, AgentState::Ready, "{:?}", failures.try_recv());

        let client = RuntimeEnvClient::new(client_settings(Some(TOKEN), PATIENCE), agents.clone());
        let env = r#"{"env_vars": {"COLOUR": "blue"}}"#;
        let context = client.get_or_create(JOB, &info(env)).await.unwrap();
        let context: serde_json::Value = serde_json::from_str(&context).unwrap();
        assert_eq!(context["env_vars"]["COLOUR"], "blue");
        client.release(env);

        let bad = client.get_or_create(JOB, &info(r#"{"working_dir": "gcs://no_such_package.zip"}"#)).await;
        assert!(matches!(&bad, Err(RuntimeEnvError::Failed(text)) if text.contains("no_such_package")), "{bad:?}");

        let stranger = RuntimeEnvClient::new(client_settings(Some("another"), PATIENCE), agents.clone());
        let refused = stranger.get_or_create(JOB, &info(env)).await.unwrap_err();
        assert!(matches!(refused, RuntimeEnvError::Refused { .. }), "{refused}");

        let settled = agents.settled(Agent::Dashboard).await;
        assert_eq!(settled, AgentState::Ready, "{:?}", failures.try_recv());
        assert_eq!(agents.ports(), planned, "each agent serves where it was told to");
        // The test would be over before the time that they have to end.
        assert_eq!(agents.shutdown().await, 0, "both end on SIGTERM");
        assert!(failures.is_empty());
    });
}
