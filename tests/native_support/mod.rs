//! A node of its own for tests of the native door.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use raylet_transport::client::Client;

/// Waits until something becomes true; fails the test when it doesn't within 20 s.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A running node; killed when it is dropped.
pub struct Node {
    child: Child,
    dir: tempfile::TempDir,
}

impl Node {
    /// Starts a node with these flags beside its socket, and waits until it is up.
    pub fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = Command::new(env!("CARGO_BIN_EXE_raylet-uring"))
            .args(["--socket", dir.path().join("door").to_str().expect("a path of text")])
            .args(["--warm-reserve", "0", "--log-level", "warn"])
            .args(if flags.contains(&"--object-store-memory") { &[][..] } else { &["--object-store-memory", "64M"] })
            .args(flags)
            .env("RAYLET_URING_RUNTIME_DIR", dir.path().join("run"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the node starts");
        let output = BufReader::new(child.stdout.take().expect("it was asked for"));
        let up = output.lines().map_while(Result::ok).any(|line| line == "ready");
        assert!(up, "the node ended before it was ready");
        Self { child, dir }
    }

    /// Where its clients connect.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("door")
    }

    /// Waits until everything is given back: no object, no lease, all resources free, no client but the one that looks.
    pub fn is_empty(&self) {
        let client = Client::connect(self.socket()).expect("a connection");
        let mut last = String::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = client.status().expect("a status");
            let free = status.resources.iter().all(|part| i64::try_from(part.total) == Ok(part.free));
            if free && (status.objects, status.leases, status.leases_queued, status.clients) == (0, 0, 0, 1) {
                return;
            }
            assert!(Instant::now() < deadline, "not everything came back: {status:?}, before {last}");
            last = format!("{status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it as an operator does, and expects it to end well.
    pub fn stop(self) {
        self.ask_to_end();
        self.has_ended();
    }

    /// Sends it SIGTERM.
    pub fn ask_to_end(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    }

    /// Waits for its end, which should be a good one.
    pub fn has_ended(mut self) {
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "the node ended with {status}");
        assert!(!self.socket().exists(), "its socket is gone");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It has ended where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
