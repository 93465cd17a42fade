//! `raylet-uring top` on a pseudo terminal, as text and as JSON.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
use rustix::termios::{tcgetattr, tcsetwinsize, LocalModes, Winsize};
use serde_json::Value;
use tempfile::TempDir;

const OURS: &str = env!("CARGO_BIN_EXE_raylet-uring");
/// Nothing here takes longer on a machine that isn't stuck.
const PATIENCE: Duration = Duration::from_secs(30);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(nodes: &Path) -> Command {
    let mut command = Command::new(OURS);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("RAY") || variable == "XDG_RUNTIME_DIR" {
            command.env_remove(&variable);
        }
    }
    command.env("RAYLET_URING_RUNTIME_DIR", nodes);
    command
}

/// A node of its own that answers.
fn node() -> (TempDir, Running) {
    let dir = tempfile::tempdir().unwrap();
    let nodes = dir.path().join("nodes");
    let mut command = program(&nodes);
    command.args(["--cores=0", "--object-store-memory=64M", "--warm-reserve=0"]);
    let node = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while !program(&nodes).arg("status").output().unwrap().status.success() {
        assert!(Instant::now() < deadline, "no node");
        std::thread::sleep(Duration::from_millis(20));
    }
    (dir, node)
}

/// A terminal of 100 columns and 30 lines, with what is read from it.
struct Screen {
    keys: File,
    text: mpsc::Receiver<Vec<u8>>,
    seen: String,
    inside: OwnedFd,
}

impl Screen {
    fn new() -> Self {
        let outside = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&outside).unwrap();
        unlockpt(&outside).unwrap();
        let name = ptsname(&outside, Vec::new()).unwrap();
        let inside = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        tcsetwinsize(&inside, Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let keys = File::from(outside);
        let mut reader = keys.try_clone().unwrap();
        let (sender, text) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Screen { keys, text, seen: String::new(), inside }
    }

    fn run(&self, mut command: Command) -> Running {
        let end = || Stdio::from(self.inside.try_clone().unwrap());
        Running(command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap())
    }

    /// Reads until all of the words were drawn.
    fn wait_for(&mut self, words: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while !words.iter().all(|word| self.seen.contains(word)) {
            let left = deadline.saturating_duration_since(Instant::now());
            let bytes = self.text.recv_timeout(left).unwrap_or_else(|_| panic!("{words:?} not in {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        self.seen.clear();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.inside).unwrap().local_modes.contains(LocalModes::ICANON)
    }
}

#[test]
fn a_terminal_shows_the_node_follows_keys_and_is_left_as_it_was() {
    let (dir, mut node) = node();
    let mut screen = Screen::new();
    let mut command = program(&dir.path().join("nodes"));
    command.args(["top", "--interval", "0.1"]).env("TERM", "xterm");
    let mut top = screen.run(command);
    screen.wait_for(&["raylet-uring", "shards", "arenas", "object", "quit"]);
    assert!(screen.is_raw());
    screen.keys.write_all(b"p").unwrap();
    screen.wait_for(&["paused"]);
    screen.keys.write_all(b"p").unwrap();
    screen.wait_for(&["quit"]);
    rustix::process::kill_process(rustix::process::Pid::from_child(&node.0), rustix::process::Signal::TERM).unwrap();
    node.0.wait().unwrap();
    screen.wait_for(&["ended"]);
    screen.keys.write_all(b"q").unwrap();
    assert_eq!(top.0.wait().unwrap().code(), Some(0));
    assert!(!screen.is_raw(), "the terminal is as it was");
}

#[test]
fn one_screen_as_text_and_as_json() {
    let (dir, node) = node();
    let nodes = dir.path().join("nodes");
    let top = |arguments: &[&str]| {
        let output = program(&nodes).arg("top").args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = top(&["--once", "--interval", "0.1"]);
    assert_eq!(code, Some(0), "{err}");
    for word in
        [&format!("pid {}", node.0.id()), "native door", "shard  core", "0 B of 64.00 MiB", "segment  NUMA node"]
    {
        assert!(out.contains(word), "{word}: {out}");
    }
    assert!(!out.contains('\u{1b}'), "plain text: {out}");
    let (code, out, _) = top(&["--json", "--interval=0.1"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, json[0]["pid"].as_u64(), json[0]["rates"].is_array()), (Some(0), Some(node.0.id().into()), true));
    // What can't be drawn on is refused with what to do instead.
    let (code, _, err) = top(&[]);
    assert!(code == Some(1) && err.contains("--once"), "{err}");
    let (code, _, err) = top(&["--once", "--interval", "0.01"]);
    assert!(code == Some(1) && err.contains("--interval 0.01: expected seconds from 0.1 to 60"), "{err}");
    drop(node);
    assert_eq!(top(&["--once"]).0, Some(3));
}
