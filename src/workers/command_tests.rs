//! The expected lines are those that the stock raylet of Ray 2.60.0 started, read from /proc, with paths shortened.

use super::*;
use crate::cli::command_line::split_command;

/// `--python_worker_command` of a local `ray.init()`, shortened by the arguments that are passed through unchanged.
const TEMPLATE: &str =
    "/venv/bin/python /ray/_private/workers/setup_worker.py /ray/_private/workers/default_worker.py \
    --node-ip-address=192.0.2.2 --node-manager-port=RAY_NODE_MANAGER_PORT_PLACEHOLDER --redis-address=None \
    --metrics-agent-port=0 --runtime-env-agent-port=0 --gcs-address=192.0.2.2:44429 --webui= \
    --cluster-id=722f222839beb39d5f01faaa95f5bdd4486d9f2a9392438a35f5602f RAY_WORKER_DYNAMIC_OPTION_PLACEHOLDER";

const NODE: &str = "ce0404242451a6a46878dfcee216cb4888a64cf443647dd13e06eced";
const WORKER: &str = "75f431fdde8fd4bb87e3da8881ec9e9fcb8842570ccd2babd0a80b1a";
const CONTEXT: &str = r#"{"command_prefix": [], "env_vars": {"FOO": "1", "LD_LIBRARY_PATH": "/x"}, "py_executable": "/venv/bin/python", "override_worker_entrypoint": null, "java_jars": []}"#;

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
}

fn commands() -> WorkerCommands {
    WorkerCommands {
        node_id: NodeId(bytes(NODE)),
        node_manager_port: 32973,
        raylet_pid: 12328,
        python: split_command(TEMPLATE).unwrap(),
        object_spilling_config: String::new(),
        preload_python_modules: vec![],
        support_fork: false,
        debugger_external: false,
    }
}

fn start(context: &str) -> WorkerStart<'_> {
    WorkerStart {
        language: Language::Python,
        kind: WorkerKind::Worker,
        worker_id: WorkerId(bytes(WORKER)),
        job_id: JobId([1, 0, 0, 0]),
        runtime_env_hash: 0,
        serialized_runtime_env_context: context,
        dynamic_options: &[],
        launch_time_ms: 1_795_317_579_443,
    }
}

/// The arguments between the script and those that the raylet adds, with the port in its place.
fn passed_through() -> Vec<String> {
    [
        "--node-ip-address=192.0.2.2",
        "--node-manager-port=32973",
        "--redis-address=None",
        "--metrics-agent-port=0",
        "--runtime-env-agent-port=0",
        "--gcs-address=192.0.2.2:44429",
        "--webui=",
        "--cluster-id=722f222839beb39d5f01faaa95f5bdd4486d9f2a9392438a35f5602f",
    ]
    .map(String::from)
    .to_vec()
}

fn expected(head: &[&str], tail: &[&str]) -> Vec<String> {
    let mut line: Vec<String> = head.iter().map(|s| s.to_string()).collect();
    line.extend(passed_through());
    line.extend(tail.iter().map(|s| s.to_string()));
    line
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect()
}

const DIRECT: [&str; 2] = ["/venv/bin/python", "/ray/_private/workers/default_worker.py"];
const THROUGH_SETUP: [&str; 3] =
    ["/venv/bin/python", "/ray/_private/workers/setup_worker.py", "/ray/_private/workers/default_worker.py"];
const WORKER_ID: &str = "--worker-id=75f431fdde8fd4bb87e3da8881ec9e9fcb8842570ccd2babd0a80b1a";
const LAUNCH: &str = "--worker-launch-time-ms=1795317579443";
const NODE_ID: &str = "--node-id=ce0404242451a6a46878dfcee216cb4888a64cf443647dd13e06eced";

#[test]
fn a_worker_without_runtime_env_skips_the_setup_script() {
    for context in ["", "{}"] {
        let line = commands().build(&start(context)).unwrap();
        assert_eq!(line.argv, expected(&DIRECT, &[WORKER_ID, LAUNCH, NODE_ID, "--runtime-env-hash=0"]));
        let env = [("RAY_JOB_ID", "01000000"), ("RAY_RAYLET_PID", "12328"), ("SPT_NOENV", "1")];
        assert_eq!(line.env, pairs(&env));
    }
}

#[test]
fn a_prestarted_worker_has_the_nil_job() {
    let line = commands().build(&WorkerStart { job_id: JobId::NIL, ..start("") }).unwrap();
    assert_eq!(line.env[0], ("RAY_JOB_ID".to_string(), "ffffffff".to_string()));
}

#[test]
fn a_worker_with_runtime_env_goes_through_the_setup_script() {
    let line = commands().build(&WorkerStart { runtime_env_hash: -1_489_589_624, ..start(CONTEXT) }).unwrap();
    let context = format!("--serialized-runtime-env-context={CONTEXT}");
    let tail = [WORKER_ID, LAUNCH, NODE_ID, "--runtime-env-hash=-1489589624", "--language=PYTHON", &context];
    assert_eq!(line.argv, expected(&THROUGH_SETUP, &tail));
}

#[test]
fn an_io_worker_has_a_type_a_place_to_spill_and_no_job() {
    let mut commands = commands();
    commands.object_spilling_config = r#"{"params":{"directory_path":"/tmp/s"},"type":"filesystem"}"#.into();
    let spill =
        "--object-spilling-config=eyJwYXJhbXMiOnsiZGlyZWN0b3J5X3BhdGgiOiIvdG1wL3MifSwidHlwZSI6ImZpbGVzeXN0ZW0ifQ==";
    for (kind, name) in [
        (WorkerKind::SpillWorker, "--worker-type=SPILL_WORKER"),
        (WorkerKind::RestoreWorker, "--worker-type=RESTORE_WORKER"),
    ] {
        let line = commands.build(&WorkerStart { kind, ..start("") }).unwrap();
        let tail = [name, spill, WORKER_ID, LAUNCH, NODE_ID, "--runtime-env-hash=0"];
        assert_eq!(line.argv, expected(&DIRECT, &tail));
        assert_eq!(line.env, pairs(&[("RAY_RAYLET_PID", "12328"), ("SPT_NOENV", "1")]));
    }
}

#[test]
fn an_io_worker_without_a_place_to_spill_is_refused() {
    let start = WorkerStart { kind: WorkerKind::SpillWorker, ..start("") };
    assert_eq!(commands().build(&start), Err(CommandError::NoSpillConfig));
}

#[test]
fn settings_of_the_node_reach_task_workers() {
    let mut commands = commands();
    commands.preload_python_modules = vec!["json".into(), "csv".into()];
    commands.support_fork = true;
    commands.object_spilling_config = "{}".into();
    let line = commands.build(&start("")).unwrap();
    assert_eq!(line.argv.last().unwrap(), "--worker-preload-modules=json,csv");
    let fork = pairs(&[
        ("GRPC_ENABLE_FORK_SUPPORT", "True"),
        ("GRPC_POLL_STRATEGY", "poll"),
        ("RAY_start_python_gc_manager_thread", "0"),
    ]);
    assert_eq!(line.env[3..], fork[..]);
    let io = commands.build(&WorkerStart { kind: WorkerKind::SpillWorker, ..start("") }).unwrap();
    assert_eq!(io.argv.last().unwrap(), "--runtime-env-hash=0", "IO workers import no user modules");
}

#[test]
fn dynamic_options_take_the_place_of_their_placeholder() {
    let options = ["-Xmx1g".to_string(), "--x=y z".to_string()];
    let line = commands().build(&WorkerStart { dynamic_options: &options, ..start("") }).unwrap();
    let mut tail = vec!["-Xmx1g", "--x=y z"];
    tail.extend([WORKER_ID, LAUNCH, NODE_ID, "--runtime-env-hash=0"]);
    assert_eq!(line.argv, expected(&DIRECT, &tail));
}

#[test]
fn what_cannot_be_started_is_refused_with_the_reason() {
    let java = commands().build(&WorkerStart { language: Language::Java, ..start("") });
    assert_eq!(java, Err(CommandError::Unsupported(Language::Java)));
    let mut empty = commands();
    empty.python.clear();
    let error = empty.build(&start("")).unwrap_err();
    assert!(error.to_string().contains("--python_worker_command"), "{error}");
    let nul = commands().build(&start("{\"env_vars\": \"\0\"}")).unwrap_err();
    assert!(matches!(nul, CommandError::Nul(_)), "{nul}");
}
