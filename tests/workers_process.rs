//! The process table against real child processes.

#[path = "workers_support/eventually.rs"]
mod waiting;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use raylet_uring::workers::command::CommandLine;
use raylet_uring::workers::exit::ExitStatus;
use raylet_uring::workers::process::{Output, ProcessConfig, ProcessExit, ProcessTable, SpawnError, SpawnSpec, Stdin};
use waiting::eventually;

/// Far above what any of the processes here needs, far below what a person waits for.
const PATIENCE: Duration = Duration::from_secs(60);

fn spec(script: &str) -> SpawnSpec {
    let argv = ["/bin/sh", "-c", script].map(String::from).to_vec();
    SpawnSpec { command: CommandLine { argv, ..CommandLine::default() }, ..SpawnSpec::default() }
}

fn grouped(script: &str) -> SpawnSpec {
    SpawnSpec { own_group: true, ..spec(script) }
}

/// A time to end that a test can wait for.
const SHORT: Duration = Duration::from_millis(300);
/// A time to end that no test outlives: what ends nevertheless was not granted it.
const LONG: Duration = Duration::from_secs(100);

/// Runs a test on a control thread as the node has one, with a table that kills after `kill_timeout`.
fn run<F: AsyncFnOnce(ProcessTable, flume::Receiver<ProcessExit>)>(kill_timeout: Duration, test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (exits, receiver) = flume::bounded(64);
    let config = ProcessConfig { max_processes: 8, kill_timeout };
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let table = ProcessTable::new(config, exits);
        tokio::time::timeout(PATIENCE, test(table.clone(), receiver)).await.expect("in time");
        assert_eq!(table.shutdown().await, 0, "nothing is left behind");
    });
}

fn running(pid: u32) -> bool {
    // A zombie has ended; only a state other than Z counts as running.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// The pid that a script writes to a file, once all that it did before has been done.
async fn read_pid(path: &Path) -> u32 {
    eventually("the script writes a pid", || fs::read_to_string(path).is_ok_and(|t| t.ends_with('\n'))).await;
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

#[test]
fn each_end_is_reported_once_with_its_status() {
    run(SHORT, async |table, exits| {
        let done = table.spawn(&spec("exit 0")).unwrap();
        assert!(table.is_alive(done.key));
        assert_eq!(table.pid(done.key), Some(done.pid));
        let exit = exits.recv_async().await.unwrap();
        assert_eq!((exit.key, exit.pid, exit.requested), (done.key, done.pid, false));
        assert!(exit.status.success());
        table.spawn(&spec("exit 7")).unwrap();
        assert_eq!(exits.recv_async().await.unwrap().status, ExitStatus::Code(7));
        table.spawn(&spec("kill -SEGV $$")).unwrap();
        let status = exits.recv_async().await.unwrap().status;
        assert!(matches!(status, ExitStatus::Signal { signal: libc::SIGSEGV, .. }), "{status}");
        eventually("ended processes leave the table", || table.is_empty()).await;
        assert!(exits.is_empty());
    });
}

#[test]
fn the_environment_is_the_nodes_with_changes() {
    run(SHORT, async |table, exits| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut spec = spec("echo $RAY_JOB_ID ${HOME:+home} ${PATH:+path}; echo bad >&2");
        spec.command.env = vec![("RAY_JOB_ID".into(), "01000000".into())];
        spec.command.env_remove = vec!["HOME".into()];
        spec.stdout = Output::Append(out.clone());
        spec.stderr = Output::Append(out.clone());
        table.spawn(&spec).unwrap();
        assert!(exits.recv_async().await.unwrap().status.success());
        assert_eq!(fs::read_to_string(out).unwrap(), "01000000 path\nbad\n");
    });
}

#[test]
fn a_polite_request_comes_before_force() {
    run(SHORT, async |table, exits| {
        let dir = tempfile::tempdir().unwrap();
        let said = |name: &str| dir.path().join(name);
        let script = |trap: &str, name: &str| {
            format!("trap '{trap}' TERM; echo $$ > {}; while :; do sleep 0.02; done", said(name).display())
        };
        let polite = table.spawn(&spec(&script("exit 3", "polite"))).unwrap();
        read_pid(&said("polite")).await;
        table.terminate(polite.key);
        let exit = exits.recv_async().await.unwrap();
        assert_eq!((exit.status, exit.requested), (ExitStatus::Code(3), true));

        let deaf = table.spawn(&spec(&script("", "deaf"))).unwrap();
        read_pid(&said("deaf")).await;
        let asked = Instant::now();
        table.terminate(deaf.key);
        table.terminate(deaf.key);
        let exit = exits.recv_async().await.unwrap();
        assert!(asked.elapsed() >= SHORT, "the time to end was granted");
        assert_eq!(exit.status, ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false });
    });
}

#[test]
fn children_of_a_worker_end_with_it() {
    run(SHORT, async |table, exits| {
        let dir = tempfile::tempdir().unwrap();
        // One that ends on SIGTERM, one that has to be killed.
        for (i, script) in ["sleep 100", "trap '' TERM; while :; do sleep 0.02; done"].into_iter().enumerate() {
            let file = dir.path().join(i.to_string());
            let worker = format!("({script}) & echo $! > {}; sleep 0.2; exit 0", file.display());
            table.spawn(&grouped(&worker)).unwrap();
            let child = read_pid(&file).await;
            assert!(exits.recv_async().await.unwrap().status.success());
            eventually("the child ends", || !running(child)).await;
        }
    });
}

#[test]
fn a_killed_worker_takes_its_group_with_it_at_once() {
    run(LONG, async |table, exits| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("(trap '' TERM; sleep 100) & echo $! > {}; wait", file.display());
        let worker = table.spawn(&grouped(&script)).unwrap();
        let child = read_pid(&file).await;
        table.kill(worker.key);
        let exit = exits.recv_async().await.unwrap();
        assert_eq!((exit.status.as_code(), exit.requested), (-9, true));
        eventually("the child ends, and no time was granted to it", || !running(child)).await;
    });
}

#[test]
fn without_a_group_of_its_own_nothing_else_is_signalled() {
    run(SHORT, async |table, exits| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let worker = table.spawn(&spec(&format!("sleep 1000 & echo $! > {}; wait", file.display()))).unwrap();
        let child = read_pid(&file).await;
        table.kill(worker.key);
        exits.recv_async().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(running(child), "and this test process, which shares the group, is alive too");
        std::process::Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
    });
}

#[test]
fn the_lifetime_pipe_is_open_as_long_as_the_table_holds_the_process() {
    run(SHORT, async |table, exits| {
        let mut reader = spec("read line; exit 5");
        reader.stdin = Stdin::LifetimePipe;
        let started = table.spawn(&reader).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(running(started.pid), "the pipe is open");
        table.spawn(&spec("read line; exit 6")).unwrap();
        assert_eq!(exits.recv_async().await.unwrap().status, ExitStatus::Code(6), "/dev/null ends at once");
        table.kill(started.key);
        exits.recv_async().await.unwrap();
        // One that ignores the signal but not the end of the pipe.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        reader.command.argv[2] = format!("trap '' TERM; echo $$ > {}; read line; exit 8", file.display());
        let started = table.spawn(&reader).unwrap();
        read_pid(&file).await;
        table.terminate(started.key);
        assert_eq!(exits.recv_async().await.unwrap().status, ExitStatus::Code(8));
    });
}

#[test]
fn a_process_that_dies_with_the_node_needs_no_word_from_it() {
    let start = |dies_with_node: bool| {
        let node = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let table = ProcessTable::new(ProcessConfig::default(), flume::bounded(1).0);
            let spec = SpawnSpec { dies_with_node, ..spec("exec sleep 1000") };
            let pid = tokio::task::LocalSet::new().block_on(&runtime, async { table.spawn(&spec).unwrap().pid });
            assert!(running(pid));
            pid
        });
        node.join().unwrap()
    };
    let (dies, stays) = (start(true), start(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(eventually("it is killed", || !running(dies)));
    assert!(running(stays));
    std::process::Command::new("kill").args(["-9", &stays.to_string()]).status().unwrap();
}

#[test]
fn the_oom_score_is_raised_from_the_nodes_own() {
    run(SHORT, async |table, exits| {
        let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
        for (adjustment, expected) in [(300, (own + 300).min(1000)), (5000, 1000)] {
            let mut spec = spec("sleep 100");
            spec.oom_score_adjustment = Some(adjustment);
            let worker = table.spawn(&spec).unwrap();
            let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", worker.pid)).unwrap();
            assert_eq!(score.trim().parse::<i32>().unwrap(), expected);
            table.kill(worker.key);
            exits.recv_async().await.unwrap();
        }
    });
}

#[test]
fn what_cannot_start_is_an_error_that_names_it() {
    run(SHORT, async |table, _exits| {
        let mut missing = spec("");
        missing.command.argv[0] = "/no/such/program".into();
        let error = table.spawn(&missing).unwrap_err();
        assert!(matches!(&error, SpawnError::Start { program, .. } if program == "/no/such/program"), "{error}");

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("not-executable");
        fs::write(&file, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        missing.command.argv[0] = file.display().to_string();
        assert!(table.spawn(&missing).unwrap_err().to_string().contains("ermission"));

        let mut no_log = spec("exit 0");
        no_log.stdout = Output::Append(dir.path().join("no/such/dir"));
        assert!(matches!(table.spawn(&no_log), Err(SpawnError::Output { .. })));
        assert!(matches!(table.spawn(&SpawnSpec::default()), Err(SpawnError::EmptyCommand)));
        assert!(table.is_empty());
    });
}

#[test]
fn a_full_table_refuses_until_a_process_ends() {
    run(SHORT, async |table, exits| {
        let started: Vec<_> = (0..8).map(|_| table.spawn(&spec("sleep 100")).unwrap()).collect();
        assert!(matches!(table.spawn(&spec("exit 0")), Err(SpawnError::TableFull(8))));
        table.kill(started[0].key);
        exits.recv_async().await.unwrap();
        eventually("a place is free", || table.len() == 7).await;
        table.spawn(&spec("exit 0")).unwrap();
        exits.recv_async().await.unwrap();
    });
}

#[test]
fn shutdown_ends_everything_and_says_so() {
    run(SHORT, async |table, exits| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let deaf = "trap '' TERM; while :; do sleep 0.02; done";
        let script = format!("trap '' TERM; ({deaf}) & echo $! > {}; {deaf}", file.display());
        table.spawn(&grouped(&script)).unwrap();
        table.spawn(&spec("sleep 100")).unwrap();
        let child = read_pid(&file).await;
        assert_eq!(table.shutdown().await, 0);
        assert!(!running(child));
        assert_eq!(exits.drain().count(), 2);
    });
}

#[test]
fn a_foreign_process_is_watched_and_its_status_taken_from_its_parent() {
    run(SHORT, async |table, exits| {
        for tell in [true, false] {
            let mut child = std::process::Command::new("/bin/sh").args(["-c", "exec sleep 100"]).spawn().unwrap();
            let (status, receiver) = tokio::sync::oneshot::channel();
            let adopted = table.adopt(child.id(), &spec(""), receiver).unwrap();
            assert_eq!(adopted.pid, child.id());
            table.kill(adopted.key);
            child.wait().unwrap();
            let told = ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false };
            if tell {
                status.send(told).unwrap();
            } else {
                drop(status);
            }
            let exit = exits.recv_async().await.unwrap();
            assert_eq!(exit.key, adopted.key);
            assert_eq!(exit.status, if tell { told } else { ExitStatus::Unknown });
        }
    });
}
