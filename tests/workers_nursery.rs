//! Workers forked from a process that has imported the real Ray; the worker's script is one of this test.

mod workers_support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use raylet_uring::workers::command::CommandLine;
use raylet_uring::workers::exit::ExitStatus;
use raylet_uring::workers::nursery::{Nursery, NurserySettings};
use raylet_uring::workers::process::{ProcessConfig, ProcessExit, ProcessTable, SpawnSpec, Started};
use workers_support::{eventually, python};

/// Writes what it sees to a file named after its pid, then does what its last argument says.
const WORKER: &str = r#"
import json, multiprocessing, os, random, signal, sys, threading, time
import __main__
import ray
from ray._raylet import JobID, PlacementGroupID, WorkerID
def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
def pdeathsig():
    import ctypes
    got = ctypes.c_int(-1)
    ctypes.CDLL(None).prctl(2, ctypes.byref(got))
    return got.value
seen = {
    "argv": sys.argv, "file": __file__, "main": __main__.__dict__ is globals(), "name": __name__,
    "job": os.environ["RAY_JOB_ID"], "parent": os.getppid(), "leads": os.getpgid(0) == os.getpid(),
    "stdin": os.readlink("/proc/self/fd/0"), "path": sys.path[0], "random": random.random(),
    "open": [f for f in range(64) if is_open(f)],
    "sigchld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "oom": open("/proc/self/oom_score_adj").read(),
    "ray": ray.__version__, "orig_argv": sys.orig_argv, "environ": sorted(os.environ.items()), "flags": repr(sys.flags),
    "module": sorted((k, str(type(v))) for k, v in globals().items() if k.startswith("__")),
    "comm": open("/proc/self/comm").read(), "native": threading.main_thread().native_id == os.getpid(),
    "threads": len(os.listdir("/proc/self/task")), "signals": [str(signal.getsignal(s)) for s in (2, 13, 15, 17)],
    "mask": str(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "title": open("/proc/self/cmdline").read().rstrip("\0").replace("\0", " "), "cwd": os.getcwd(),
    "session": os.getsid(0), "umask": os.popen("umask").read(), "stdout": os.readlink("/proc/self/fd/1"),
    "worker": WorkerID.from_random().hex(), "group": PlacementGroupID.of(JobID.from_int(1)).hex(),
    "authkey": bytes(multiprocessing.current_process().authkey).hex(),
    "death_signal": pdeathsig(),
}
if "numpy.random" in sys.modules:
    seen["numpy"] = sys.modules["numpy.random"].rand()
out, what = sys.argv[1:]
with open(f"{out}/new{os.getpid()}", "w") as f:
    json.dump(seen, f)
os.rename(f"{out}/new{os.getpid()}", f"{out}/{os.getpid()}")
if what == "die":
    os.kill(os.getpid(), signal.SIGSEGV)
if what == "stay":
    time.sleep(100)
sys.exit(5)
"#;

/// Longer than a busy machine takes from seeing the end of a nursery to asking for the next worker.
const RETRY_PAUSE: Duration = Duration::from_secs(4);

struct Stage {
    dir: tempfile::TempDir,
    python: String,
    nursery: Nursery,
    table: ProcessTable,
    exits: flume::Receiver<ProcessExit>,
}

impl Stage {
    fn spec(&self, what: &str) -> SpawnSpec {
        let dir = self.dir.path().display();
        let argv = vec![self.python.clone(), format!("{dir}/scripts/default_worker.py"), dir.to_string(), what.into()];
        let env = vec![
            ("RAY_JOB_ID".to_string(), "ffffffff".to_string()),
            ("RAY_RAYLET_PID".to_string(), std::process::id().to_string()),
            ("PYTHONPATH".to_string(), format!("{dir}/site")),
            ("OPENBLAS_NUM_THREADS".to_string(), "1".to_string()),
        ];
        SpawnSpec {
            command: CommandLine { argv, env, env_remove: vec![] },
            own_group: true,
            oom_score_adjustment: Some(77),
            ..SpawnSpec::default()
        }
    }

    async fn seen(&self, worker: Started) -> serde_json::Value {
        let path = self.dir.path().join(worker.pid.to_string());
        eventually("the worker writes what it sees", || path.exists()).await;
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Starts a worker as the node does: forked, else plainly.
    async fn start(&self, spec: &SpawnSpec) -> Started {
        match self.nursery.fork(spec).await {
            Some(started) => started,
            None => self.table.spawn(spec).unwrap(),
        }
    }

    /// Starts a worker that ends at once, and tells its parent's pid.
    async fn parent_of_next(&self) -> u64 {
        let worker = self.start(&self.spec("end")).await;
        let seen = self.seen(worker).await;
        assert_eq!(self.exits.recv_async().await.unwrap().status, ExitStatus::Code(5));
        seen["parent"].as_u64().unwrap()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// `python` is the interpreter, `site` code that it runs before all else.
fn stage(enabled: bool, python: &Path, site: &str) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("scripts/default_worker.py", WORKER), ("site/sitecustomize.py", site)] {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), content).unwrap();
    }
    let (sender, exits) = flume::bounded(64);
    let config = ProcessConfig { max_processes: 64, kill_timeout: Duration::from_millis(500) };
    let table = ProcessTable::new(config, sender);
    let settings = NurserySettings {
        enabled,
        ready_timeout: Duration::from_secs(60),
        fork_timeout: Duration::from_secs(60),
        retry_pause: RETRY_PAUSE,
    };
    let nursery = Nursery::new(settings, table.clone());
    Stage { dir, python: python.display().to_string(), nursery, table, exits }
}

/// Runs a test on a control thread.
fn run(enabled: bool, python: &Path, site: &str, test: impl AsyncFnOnce(&Stage)) {
    tokio::task::LocalSet::new().block_on(&runtime(), async {
        let stage = stage(enabled, python, site);
        tokio::time::timeout(Duration::from_secs(120), test(&stage)).await.expect("in time");
        let nursery = stage.nursery.pid();
        stage.nursery.shutdown().await;
        assert_eq!(stage.nursery.pid(), None);
        if let Some(pid) = nursery {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the nursery is gone");
        }
        assert_eq!(stage.table.shutdown().await, 0);
    });
}

#[test]
fn what_was_forked_ends_with_a_node_that_says_nothing() {
    let stage = stage(true, &python(), "");
    let (runtime, tasks) = (runtime(), tokio::task::LocalSet::new());
    let [worker, nursery] = tasks.block_on(&runtime, async {
        let worker = stage.start(&stage.spec("stay")).await;
        assert_eq!(stage.seen(worker).await["parent"], stage.nursery.pid().unwrap());
        [worker.pid, stage.nursery.pid().unwrap()]
    });
    // Everything that the control thread held goes, as when the node is killed.
    drop(tasks);
    drop(stage);
    let runs = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie has ended.
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
    };
    runtime.block_on(eventually("the nursery and its worker end", || !runs(worker) && !runs(nursery)));
}

#[test]
fn a_forked_worker_is_like_one_that_was_started() {
    run(true, &python(), "", async |stage| {
        let forked = stage.start(&stage.spec("stay")).await;
        let forked = (forked, stage.seen(forked).await);
        let plain = stage.table.spawn(&stage.spec("stay")).unwrap();
        let plain = (plain, stage.seen(plain).await);
        assert_eq!(forked.1["parent"], stage.nursery.pid().unwrap());
        assert_eq!(plain.1["parent"], std::process::id());
        let names = forked.1.as_object().unwrap().keys();
        assert!(names.len() > 30);
        for name in names {
            let equal = forked.1[name] == plain.1[name];
            match name.as_str() {
                "parent" | "random" | "worker" | "group" | "authkey" => assert!(!equal, "{name}"),
                _ => assert!(equal, "{name}: forked {}, plain {}", forked.1[name], plain.1[name]),
            }
        }
        assert_eq!((&forked.1["leads"], &forked.1["native"]), (&true.into(), &true.into()));
        for (worker, _) in [forked, plain] {
            stage.table.kill(worker.key);
            let exit = stage.exits.recv_async().await.unwrap();
            assert_eq!((exit.key, exit.status.as_code(), exit.requested), (worker.key, -9, true));
        }
    });
}

#[test]
fn forked_workers_differ() {
    run(true, &python(), "import numpy.random", async |stage| {
        stage.nursery.warm(&stage.spec("end").command);
        let first = stage.start(&stage.spec("end")).await;
        let mut workers = vec![first];
        for _ in 0..5 {
            workers.push(stage.start(&stage.spec("end")).await);
        }
        for worker in &workers {
            assert_eq!(stage.seen(*worker).await["parent"], stage.nursery.pid().unwrap());
        }
        for key in ["random", "numpy", "worker", "group", "authkey"] {
            let mut drawn = std::collections::HashSet::new();
            for worker in &workers {
                drawn.insert(stage.seen(*worker).await[key].to_string());
            }
            assert_eq!(drawn.len(), 6, "{key}");
        }
        for _ in 0..6 {
            assert_eq!(stage.exits.recv_async().await.unwrap().status, ExitStatus::Code(5));
        }
        let dying = stage.start(&stage.spec("die")).await;
        let exit = stage.exits.recv_async().await.unwrap();
        assert_eq!(exit.key, dying.key);
        assert!(matches!(exit.status, ExitStatus::Signal { signal: libc::SIGSEGV, .. }), "{}", exit.status);
    });
}

#[test]
fn what_does_not_fit_starts_plainly() {
    let this = u64::from(std::process::id());
    run(true, &python(), "", async |stage| {
        let mut for_a_job = stage.spec("end");
        for_a_job.command.env[0].1 = "01000000".into();
        let worker = stage.start(&for_a_job).await;
        assert_eq!(stage.seen(worker).await["parent"], this);
        assert_eq!(stage.nursery.pid(), None, "no nursery for that");
        assert_ne!(stage.parent_of_next().await, this);
        let mut other = stage.spec("end");
        other.command.env.push(("MORE".into(), "1".into()));
        let worker = stage.start(&other).await;
        assert_eq!(stage.seen(worker).await["parent"], this);
    });
    run(false, &python(), "", async |stage| {
        assert_eq!(stage.parent_of_next().await, this);
        assert_eq!(stage.nursery.pid(), None);
    });
}

#[test]
fn a_nursery_that_dies_costs_nothing_but_time() {
    let this = u64::from(std::process::id());
    run(true, &python(), "", async |stage| {
        let worker = stage.start(&stage.spec("stay")).await;
        stage.seen(worker).await;
        let first = stage.nursery.pid().unwrap();
        Command::new("kill").args(["-9", &first.to_string()]).status().unwrap();
        eventually("its end is seen", || stage.nursery.pid().is_none()).await;
        assert_eq!(stage.parent_of_next().await, this, "plain, while the nursery rests");
        assert!(stage.table.is_alive(worker.key));
        stage.table.kill(worker.key);
        let exit = stage.exits.recv_async().await.unwrap();
        assert_eq!((exit.key, exit.status), (worker.key, ExitStatus::Unknown));
        tokio::time::sleep(RETRY_PAUSE + Duration::from_millis(100)).await;
        let parent = stage.parent_of_next().await;
        assert_eq!(parent, u64::from(stage.nursery.pid().unwrap()), "a second nursery");
        assert_ne!(parent, u64::from(first));
    });
}

#[test]
fn a_nursery_ends_when_what_it_has_imported_changes() {
    let this = u64::from(std::process::id());
    run(true, &python(), "", async |stage| {
        assert_ne!(stage.parent_of_next().await, this);
        let first = stage.nursery.pid().unwrap();
        let script = stage.dir.path().join("scripts/default_worker.py");
        fs::write(&script, format!("{WORKER}\n# Changed.")).unwrap();
        assert_eq!(stage.parent_of_next().await, this, "plain, with what is new");
        eventually("the nursery is gone", || stage.nursery.pid().is_none()).await;
        tokio::time::sleep(RETRY_PAUSE + Duration::from_millis(100)).await;
        let parent = stage.parent_of_next().await;
        assert_eq!(parent, u64::from(stage.nursery.pid().unwrap()), "a second nursery");
        assert_ne!(parent, u64::from(first));
    });
}

#[test]
fn a_nursery_that_cannot_be_forked_or_lacks_ray_is_not_used() {
    let this = u64::from(std::process::id());
    let threaded = "import threading, time\nthreading.Thread(target=time.sleep, args=(30,), daemon=True).start()";
    let without = "import sys\nif sys.argv[:1] == ['-c']: sys.modules['ray._common.usage.usage_lib'] = None";
    // Ray's generator of ids is seeded at its first use, and never again.
    let drawn =
        "import sys\nif 'default_worker.py' in str(sys.orig_argv):\n    import ray\n    ray.WorkerID.from_random()";
    for site in [threaded, without, drawn] {
        run(true, &python(), site, async |stage| {
            assert_eq!(stage.parent_of_next().await, this);
            eventually("the nursery is gone", || stage.nursery.pid().is_none()).await;
        });
    }
}
