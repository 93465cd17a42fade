//! The executable as Ray and as people call it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const OURS: &str = env!("CARGO_BIN_EXE_raylet-uring");
const ID: &str = "540ade94a7ad625d7ba123d8e26d778f2b88a0db882b5c17c764113c";
/// Nothing here takes longer on a machine that isn't stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program under a name, with nothing of ours or Ray's in its environment but what a test sets.
fn program(name: &str) -> Command {
    let mut command = Command::new(OURS);
    command.arg0(name);
    for (variable, _) in std::env::vars_os() {
        let text = variable.to_string_lossy();
        if text.starts_with("RAY") || text == "XDG_RUNTIME_DIR" {
            command.env_remove(&variable);
        }
    }
    command
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn run(name: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    text(&program(name).args(arguments).output().unwrap())
}

/// A child that is gone when the test is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut status = None;
        wait_for("the process to end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|s| s.code())
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_name_raylet_takes_rays_flags() {
    let (code, out, _) = run("/ray/core/src/ray/raylet/raylet", &["--helpfull"]);
    assert_eq!(code, Some(0));
    for flag in ["-raylet_socket_name", "-static_resource_list", "-flagfile", "-helpxml"] {
        assert!(out.contains(&format!("    {flag} (")), "{flag} in {out}");
    }
    let (code, out, _) = run("raylet", &["--version"]);
    assert!(code == Some(0) && out.starts_with("raylet (raylet-uring"), "{out}");
    let (code, out, err) = run("raylet", &["--raylet-socket-nme=/x"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert_eq!(
        err,
        "raylet-uring: unknown flag --raylet_socket_nme; did you mean --raylet_socket_name? --helpfull lists all\n"
    );
    let (code, _, err) = run("raylet", &["--head"]);
    assert!(
        code == Some(1) && err.contains("missing flags: --raylet_socket_name, --store_socket_name, --node_id"),
        "{err}"
    );
}

#[test]
fn any_other_name_takes_our_flags() {
    let (code, out, _) = run("raylet-uring", &["--help"]);
    assert_eq!(code, Some(0));
    for word in ["--cores", "--hugepages", "status", "attach", "detach", "RAYLET_URING_CORES"] {
        assert!(out.contains(word), "{word} in {out}");
    }
    let (code, _, err) = run("raylet-uring", &["--raylet_socket_name=/x"]);
    assert_eq!(code, Some(2), "{err}");
}

#[test]
fn print_config_shows_values_and_where_they_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    fs::write(&file, "hugepages = true\nwarm_reserve_bytes = \"64M\"\n").unwrap();
    let print = |environment: &[(&str, &str)]| {
        let mut command = program("raylet-uring");
        command.args(["--cores=0", "--print-config"]).arg("--config").arg(&file);
        text(&command.envs(environment.iter().copied()).output().unwrap())
    };
    let (code, out, err) = print(&[("RAYLET_URING_HUGEPAGES", "off"), ("RAYLET_URING_CORE", "7")]);
    assert_eq!(code, Some(0), "{err}");
    let line = |name: &str| out.lines().find(|l| l.split_whitespace().next() == Some(name)).unwrap().to_owned();
    assert!(line("cores").ends_with("flag --cores"), "{out}");
    assert!(line("hugepages").ends_with("environment RAYLET_URING_HUGEPAGES"), "{out}");
    let warm_reserve = line("warm_reserve_bytes");
    assert!(warm_reserve.contains(" 67108864 (64.00 MiB) "), "{out}");
    assert!(warm_reserve.ends_with(&format!(" file {}", file.display())), "{out}");
    assert!(line("socket").ends_with("default"), "{out}");
    assert!(err.contains("RAYLET_URING_CORE is no setting; did you mean RAYLET_URING_CORES?"), "{err}");
    fs::write(&file, "hugepage = true\n").unwrap();
    let (code, out, err) = print(&[]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("unknown setting \"hugepage\"; did you mean \"hugepages\"?"), "{err}");
}

#[test]
fn status_without_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let status = |arguments: &[&str]| {
        let mut command = program("raylet-uring");
        text(&command.arg("status").args(arguments).env("RAYLET_URING_RUNTIME_DIR", dir.path()).output().unwrap())
    };
    let (code, out, err) = status(&[]);
    assert_eq!((code, out.as_str()), (Some(3), ""));
    assert!(err.contains("no node runs") && err.contains(dir.path().to_str().unwrap()), "{err}");
    let (code, out, _) = status(&["--json"]);
    assert_eq!((code, out.as_str()), (Some(3), "[]\n"));
    let (code, _, err) = status(&["--node", "/nowhere/1.sock"]);
    assert!(code == Some(4) && err.contains("no node answers at /nowhere/1.sock"), "{err}");
}

/// Starts a node of its own with little memory, and waits for its admin socket.
fn start_node(runtime_dir: &Path) -> (Running, PathBuf) {
    let mut command = program("raylet-uring");
    command.args(["--cores=0", "--object-store-memory=64M", "--warm-reserve=0", "--runtime-dir"]).arg(runtime_dir);
    command.stderr(Stdio::null()).stdout(Stdio::null());
    let mut node = Running(command.spawn().unwrap());
    let socket = runtime_dir.join(format!("{}.sock", node.0.id()));
    wait_for("the admin socket", || {
        assert!(node.0.try_wait().unwrap().is_none(), "the node ended");
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    (node, socket)
}

#[test]
fn a_node_of_its_own_serves_status_and_ends_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let runtime_dir = dir.path().join("nodes");
    let status = |arguments: &[&str]| {
        let mut command = program("raylet-uring");
        text(&command.arg("status").args(arguments).env("RAYLET_URING_RUNTIME_DIR", &runtime_dir).output().unwrap())
    };
    let (mut node, socket) = start_node(&runtime_dir);
    let (code, json, err) = status(&["--json"]);
    assert_eq!(code, Some(0), "{err}");
    let nodes: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 1);
    assert_eq!(nodes[0]["pid"], node.0.id());
    assert_eq!(nodes[0]["doors"], serde_json::json!(["native"]));
    assert_eq!(nodes[0]["cores"], serde_json::json!([0]));
    assert_eq!(nodes[0]["shards"].as_array().unwrap().len(), 1);
    assert!(nodes[0]["arenas"][0]["size_bytes"].as_u64().unwrap() >= 64 << 20, "{json}");
    let (code, figures, _) = status(&["--metrics"]);
    let size = figures.lines().find(|line| line.starts_with("raylet_uring_arena_bytes{") && line.contains("\"size\""));
    assert!(
        code == Some(0) && size.is_some_and(|line| line.contains(&format!("Pid=\"{}\"", node.0.id()))),
        "{figures}"
    );
    assert_eq!(status(&["--metrics", "--json"]).0, Some(2));
    let (code, page, _) = status(&["--node", socket.to_str().unwrap()]);
    assert!(code == Some(0) && page.contains(&format!("pid {}", node.0.id())) && page.contains("arenas"), "{page}");

    // A killed node leaves a socket, which the next one removes as it starts.
    let (killed, killed_socket) = start_node(&runtime_dir);
    drop(killed);
    assert!(killed_socket.exists());

    // A second node is found too; killed, it leaves a socket that the next look removes.
    let (second, second_socket) = start_node(&runtime_dir);
    assert!(!killed_socket.exists());
    let count = || serde_json::from_str::<Vec<serde_json::Value>>(&status(&["--json"]).1).unwrap().len();
    assert_eq!(count(), 2);
    drop(second);
    assert!(second_socket.exists());
    assert_eq!(count(), 1);
    assert!(!second_socket.exists());

    assert_eq!(node.terminate(), Some(0));
    assert!(!socket.exists());
    assert_eq!(status(&[]).0, Some(3));
}

/// A command line of Ray's for a cluster that isn't there.
fn ray_flags(dir: &Path) -> Vec<String> {
    let at = |name: &str| dir.join(name).display().to_string();
    vec![
        format!("--raylet_socket_name={}", at("raylet")),
        format!("--store_socket_name={}", at("plasma_store")),
        format!("--node_id={ID}"),
        format!("--cluster-id={ID}"),
        "--node_ip_address=127.0.0.1".to_owned(),
        "--gcs-address=127.0.0.1:9".to_owned(),
        "--static_resource_list=CPU,1".to_owned(),
        "--object_store_memory=67108864".to_owned(),
        "--python_worker_command=python3 worker.py".to_owned(),
        format!("--session_dir={}", at("")),
        format!("--log_dir={}", at("")),
        format!("--stdout_filepath={}", at("raylet.out")),
        format!("--stderr_filepath={}", at("raylet.err")),
    ]
}

#[test]
fn under_ray_the_log_goes_to_rays_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = program("raylet");
    command.args(ray_flags(dir.path())).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("RAYLET_URING_PRINT_CONFIG", "1").env("RAYLET_URING_WARM_RESERVE_BYTES", "1M");
    command.env("RAYLET_URING_RUNTIME_DIR", dir.path().join("nodes")).env("RAY_gcs_rpc_server_connect_timeout_s", "1");
    let node = Running(command.spawn().unwrap());
    let log = dir.path().join("raylet.out");
    let read = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("the log", || read().contains("setting config"));
    let text = read();
    assert!(text.contains("raylet-uring starts as Ray's raylet"), "{text}");
    let setting = |name: &str| text.lines().find(|l| l.contains(&format!("setting {name} "))).unwrap().to_owned();
    assert!(setting("warm_reserve_bytes").ends_with("environment RAYLET_URING_WARM_RESERVE_BYTES"), "{text}");
    assert!(setting("object_store_memory_bytes").ends_with("flag --object_store_memory"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours in files");
    drop(node);
}

#[test]
fn under_ray_errors_reach_the_error_file() {
    let dir = tempfile::tempdir().unwrap();
    let start = |extra: &[&str], variable: Option<(&str, &str)>| {
        let mut command = program("raylet");
        command.args(ray_flags(dir.path())).args(extra).envs(variable);
        let (code, _, err) = text(&command.output().unwrap());
        let file = fs::read_to_string(dir.path().join("raylet.err")).unwrap_or_default();
        let _ = fs::remove_file(dir.path().join("raylet.err"));
        (code, err, file)
    };
    let (code, err, file) = start(&["--hed"], None);
    assert_eq!((code, err.as_str()), (Some(1), file.as_str()));
    assert!(file.contains("unknown flag --hed; did you mean --head?"), "{file}");
    let (code, _, file) = start(&[], Some(("RAYLET_URING_CORES", "none")));
    assert_eq!(code, Some(1));
    assert!(file.contains("cores (from environment RAYLET_URING_CORES): expected auto"), "{file}");
}
