//! The processes of a run: this executable again, with its part in the environment.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Instant;

use raylet_transport::fault::Point;

use super::clients::{self, Figures, Part};
use super::native_support::Node;

/// Starts clients of a node.
pub struct Troop {
    socket: PathBuf,
    notes: tempfile::TempDir,
    started: Cell<u64>,
}

/// A client's process; killed when it is dropped.
pub struct Member {
    child: Child,
    /// Closed to ask it to end.
    stdin: Option<ChildStdin>,
    notes: PathBuf,
    /// What it does.
    pub part: Part,
    /// Where it dies by itself, after how many times.
    pub fault: Option<(Point, u32)>,
    /// When it is killed.
    pub dies: Option<Instant>,
}

/// The seed in a variable.
pub fn seed_of_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name} is {text:?}, expected a number: {e}")))
}

impl Troop {
    /// For clients of this node.
    pub fn new(node: &Node) -> Self {
        let notes = tempfile::tempdir().expect("a directory");
        Self { socket: node.socket(), notes, started: Cell::new(0) }
    }

    /// Starts a client.
    pub fn start(&self, part: Part, seed: u64, fault: Option<(Point, u32)>) -> Member {
        self.started.set(self.started.get() + 1);
        let notes = self.notes.path().join(self.started.get().to_string());
        let file = |ending: &str| File::create(notes.with_extension(ending)).expect("a file");
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command
            .args(["--exact", super::ENTRY, "--nocapture", "--test-threads=1"])
            .env(clients::PART, part.name())
            .env(clients::SOCKET, &self.socket)
            .env(clients::SEED, seed.to_string())
            .env(clients::FIGURES, notes.with_extension("figures"))
            .stdin(Stdio::piped())
            .stdout(file("out"))
            .stderr(file("err"));
        if let Some((point, passes)) = fault {
            command.env(clients::FAULT, format!("{} {passes}", point as u32));
        }
        let mut child = command.spawn().expect("a client starts");
        let stdin = child.stdin.take();
        Member { child, stdin, notes, part, fault, dies: None }
    }
}

impl Member {
    /// How it ended, once it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is a child")
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is a child");
        self.child.wait().expect("it is a child");
    }

    /// Lets it end by itself.
    pub fn ask_to_end(&mut self) {
        self.stdin = None;
    }

    /// What it said before it ended.
    pub fn complaint(&self) -> String {
        let read = |ending: &str| fs::read_to_string(self.notes.with_extension(ending)).unwrap_or_default();
        let fault = self.fault;
        format!("{}, fault {fault:?}:\n{}{}", self.part.name(), read("out"), read("err"))
    }

    /// What it has done, as far as it has told.
    pub fn figures(&self) -> Figures {
        Figures::read(&self.notes.with_extension("figures"))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It has ended where all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for ending in ["out", "err", "figures"] {
            let _ = fs::remove_file(self.notes.with_extension(ending));
        }
    }
}
