//! The agents: real child processes that behave as Ray's agents do towards their node.

#[path = "workers_support/eventually.rs"]
mod waiting;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use raylet_shard::ids::NodeId;
use raylet_uring::ray::agents::{Agent, AgentFailure, AgentManager, AgentPorts, AgentSettings, AgentState};
use raylet_uring::workers::exit::ExitStatus;
use waiting::eventually;

const PATIENCE: Duration = Duration::from_secs(60);
const NODE: NodeId = NodeId([0x5a; 28]);

/// A stand-in for an agent: binds the ports it is given as Python's servers do, announces them, and then waits for the
/// end of its standard input. `mode` makes it misbehave.
const AGENT: &str = r#"
import os, signal, socket, sys, time
out, mode, ports, kept = sys.argv[1], sys.argv[2], {}, []
names = {"--grpc-port": "metrics_agent_port", "--metrics-export-port": "metrics_export_port",
         "--listen-port": "dashboard_agent_listen_port", "--runtime-env-agent-port": "runtime_env_agent_port"}
for argument in sys.argv[3:]:
    name, _, value = argument.partition("=")
    if name in names:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", int(value) if mode != "elsewhere" else 0))
        s.listen()
        kept.append(s)
        ports[names[name]] = s.getsockname()[1]
with open(f"{out}/env_{os.path.basename(sys.argv[-1])}", "w") as f:
    f.write("\n".join(sys.argv[3:] + [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("RAY_")]))
if mode == "crash":
    sys.exit(3)
while mode == "held" and not os.path.exists(f"{out}/go"): time.sleep(0.01)
if mode != "silent":
    for name, port in ports.items():
        with open(f"{out}/{name}_{os.environ['RAY_NODE_ID']}", "w") as f:
            f.write(str(port))
if mode == "late crash":
    while not os.path.exists(f"{out}/crash_now"): time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.readline()
open(f"{out}/end_of_input", "w").close()
"#;

fn command(dir: &Path, mode: &str, arguments: &[&str]) -> Vec<String> {
    let script = dir.join("agent.py");
    fs::write(&script, AGENT).unwrap();
    let mut command = vec!["python3".to_string(), script.display().to_string(), dir.display().to_string(), mode.into()];
    command.extend(arguments.iter().map(|a| a.to_string()));
    command
}

fn settings(dir: &Path, mode: &str) -> AgentSettings {
    let manager = "--node-manager-port=RAY_NODE_MANAGER_PORT_PLACEHOLDER";
    AgentSettings {
        node_id: NODE,
        node_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        session_dir: dir.into(),
        raylet_pid: std::process::id(),
        dashboard_command: command(
            dir,
            mode,
            &["--grpc-port=0", "--metrics-export-port=0", "--listen-port=0", manager, "dashboard"],
        ),
        runtime_env_command: command(dir, "good", &["--runtime-env-agent-port=0", "runtime_env"]),
        pipe_health_check: true,
        register_timeout: PATIENCE,
        start_at_latest: PATIENCE,
        kill_timeout: Duration::from_millis(500),
    }
}

/// Runs a test on a control thread and checks that no agent outlives its manager.
fn run(
    change: impl FnOnce(&mut AgentSettings),
    mode: &str,
    test: impl AsyncFnOnce(AgentManager, flume::Receiver<AgentFailure>, &Path),
) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut settings = settings(dir.path(), mode);
        change(&mut settings);
        let (manager, failures) = AgentManager::new(settings).unwrap();
        tokio::time::timeout(PATIENCE, test(manager.clone(), failures.clone(), dir.path())).await.expect("in time");
        assert_eq!(manager.shutdown().await, 0);
        assert_eq!(manager.pids(), [None, None]);
        assert!(failures.is_empty(), "an agent that was told to end has not failed");
    });
}

#[test]
fn ports_are_known_before_the_agents_run_and_are_the_ones_they_serve() {
    run(
        |_| (),
        "held",
        async |manager, _, dir| {
            let ports = manager.ports();
            let all = [ports.metrics_agent, ports.metrics_export, ports.dashboard_listen, ports.runtime_env];
            assert!(all.iter().all(|port| *port > 0), "{ports:?}");
            assert_eq!(manager.pids(), [None, None]);
            manager.start(1234).unwrap();
            assert_eq!(manager.state(Agent::Dashboard), AgentState::Starting, "start does not wait for the agents");
            fs::write(dir.join("go"), "").unwrap();
            for agent in Agent::ALL {
                assert_eq!(manager.settled(agent).await, AgentState::Ready);
            }
            assert_eq!(manager.ports(), ports);
            assert!(manager.pids().iter().all(Option::is_some));
            let seen = fs::read_to_string(dir.join("env_dashboard")).unwrap();
            for line in [
                "--node-manager-port=1234".to_string(),
                format!("RAY_NODE_ID={NODE}"),
                format!("RAY_RAYLET_PID={}", std::process::id()),
                "RAY_enable_pipe_based_agent_to_parent_health_check=1".to_string(),
            ] {
                assert!(seen.lines().any(|l| l == line), "{line} in\n{seen}");
            }
            assert!(manager.start(1234).is_err(), "agents start once");
        },
    );
}

#[test]
fn agents_held_back_start_when_told_wanted_or_after_a_while() {
    run(
        |_| (),
        "good",
        async |manager, _, _| {
            let (go, gone) = tokio::sync::oneshot::channel::<()>();
            manager.start_when(1, async move { gone.await.unwrap() });
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(manager.pids(), [None, None]);
            go.send(()).unwrap();
            eventually("they start", || manager.pids().iter().all(Option::is_some)).await;
        },
    );
    run(
        |_| (),
        "good",
        async |manager, _, _| {
            manager.start_when(1, std::future::pending());
            // Else this would wait for as long as the whole test may take.
            assert_eq!(manager.settled(Agent::RuntimeEnv).await, AgentState::Ready, "someone waited");
        },
    );
    let soon = |settings: &mut AgentSettings| settings.start_at_latest = Duration::from_millis(200);
    run(soon, "good", async |manager, _, _| {
        let begun = Instant::now();
        manager.start_when(1, std::future::pending());
        eventually("they start", || manager.pids().iter().all(Option::is_some)).await;
        assert!(begun.elapsed() >= Duration::from_millis(200));
    });
    let missing = |settings: &mut AgentSettings| settings.runtime_env_command[0] = "/no/such/python".into();
    run(missing, "good", async |manager, failures, _| {
        manager.start_when(1, async {});
        let failure = failures.recv_async().await.unwrap();
        assert_eq!((failure.agent, failure.status), (Agent::RuntimeEnv, None));
        assert!(failure.details.contains("/no/such/python"), "{}", failure.details);
    });
}

#[test]
fn an_agent_that_ends_fails_the_node() {
    for (mode, status) in [
        ("crash", ExitStatus::Code(3)),
        ("late crash", ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false }),
    ] {
        run(
            |_| (),
            mode,
            async |manager, failures, dir| {
                manager.start(1).unwrap();
                if mode == "late crash" {
                    assert_eq!(manager.settled(Agent::Dashboard).await, AgentState::Ready);
                    fs::write(dir.join("crash_now"), "").unwrap();
                }
                let failure = failures.recv_async().await.unwrap();
                assert_eq!((failure.agent, failure.status), (Agent::Dashboard, Some(status)));
                assert_eq!(failure.reason, "dashboard_agent failed and raylet fate-shares with it.");
                assert!(failure.details.contains("dashboard_agent.log"), "{}", failure.details);
                assert_eq!(manager.settled(Agent::Dashboard).await, AgentState::Failed);
                assert_eq!(manager.settled(Agent::RuntimeEnv).await, AgentState::Ready);
                assert_eq!(manager.pids()[0], None);
            },
        );
    }
}

#[test]
fn an_agent_that_announces_nothing_fails_the_node_in_time() {
    let hurry = |settings: &mut AgentSettings| {
        settings.register_timeout = Duration::from_secs(3);
        // It might not manage in that time either.
        settings.runtime_env_command.clear();
    };
    run(hurry, "silent", async |manager, failures, _| {
        manager.start(1).unwrap();
        let failure = failures.recv_async().await.unwrap();
        assert_eq!((failure.agent, failure.status), (Agent::Dashboard, None));
        assert!(failure.details.contains("did not announce its ports within 3s"), "{}", failure.details);
    });
}

#[test]
fn an_agent_on_another_port_is_believed() {
    run(
        |_| (),
        "elsewhere",
        async |manager, _, dir| {
            let planned = manager.ports();
            manager.start(1).unwrap();
            assert_eq!(manager.settled(Agent::Dashboard).await, AgentState::Ready);
            assert_eq!(manager.settled(Agent::RuntimeEnv).await, AgentState::Ready);
            let ports = manager.ports();
            assert_ne!(ports.metrics_agent, planned.metrics_agent);
            assert_eq!(ports.runtime_env, planned.runtime_env);
            let file = fs::read_to_string(dir.join(format!("metrics_agent_port_{NODE}"))).unwrap();
            assert_eq!(ports.metrics_agent.to_string(), file);
        },
    );
}

#[test]
fn without_commands_there_are_no_agents() {
    let none = |settings: &mut AgentSettings| {
        settings.dashboard_command.clear();
        settings.runtime_env_command.clear();
    };
    run(none, "good", async |manager, _, _| {
        let not_served = AgentPorts { metrics_agent: -1, metrics_export: -1, dashboard_listen: -1, runtime_env: -1 };
        assert_eq!(manager.ports(), not_served);
        manager.start(1).unwrap();
        assert_eq!(manager.settled(Agent::RuntimeEnv).await, AgentState::Absent);
        assert_eq!(manager.pids(), [None, None]);
    });
}

#[test]
fn a_program_that_cannot_start_is_an_error() {
    let missing = |settings: &mut AgentSettings| settings.runtime_env_command[0] = "/no/such/python".into();
    run(missing, "good", async |manager, _, _| {
        let error = manager.start(1).unwrap_err().to_string();
        assert!(error.contains("runtime_env_agent") && error.contains("/no/such/python"), "{error}");
    });
}

#[test]
fn an_agent_sees_the_end_of_the_node_as_the_end_of_its_input() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let (manager, _failures) = AgentManager::new(settings(dir.path(), "good")).unwrap();
        manager.start(1).unwrap();
        assert_eq!(manager.settled(Agent::Dashboard).await, AgentState::Ready);
        assert!(!dir.path().join("end_of_input").exists());
    });
    // Everything that the control thread held goes, without a word to the agents, as when the node is killed.
    drop(tasks);
    drop(runtime);
    let deadline = Instant::now() + PATIENCE;
    while !dir.path().join("end_of_input").exists() {
        assert!(Instant::now() < deadline, "the agents ended");
        std::thread::sleep(Duration::from_millis(20));
    }
}
