//! The node that the native rows are measured on: a running one, or one that is started for them and stopped.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use raylet_transport::fds;
use raylet_transport::frame::{Decoder, Encoder, Head, BODY_MAX_BYTES};
use raylet_transport::messages::{capability, Hello, Message, OpenRing, OwnedReply, Reply, HELLO_MAGIC, VERSION};
use raylet_transport::ring::layout::LINES_DEFAULT;
use raylet_transport::ring::Rings;

use crate::cpu_clock::CpuClock;
use crate::native::Settings;
use crate::LoadError;

/// A node; stopped when it is dropped, if it was started here.
pub struct Node {
    child: Option<Child>,
    socket: PathBuf,
    /// Of the socket of a node that was started here.
    _dir: Option<Dir>,
}

/// Longest wait for a node to come to rest; what it measures then is what it is.
const REST_MAX: Duration = Duration::from_secs(20);

const CLOCK: &str = "the CPU clock of the node";

/// How long it has to spend next to nothing.
const REST_STEP: Duration = Duration::from_millis(200);

/// A directory that goes with its owner.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        // What is left of it is in the system's directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Node {
    /// The node of the settings.
    ///
    /// # Errors
    /// Where none can be started.
    pub fn of(settings: &Settings) -> Result<Self, LoadError> {
        if let Some(socket) = &settings.socket {
            return Ok(Self { child: None, socket: socket.clone(), _dir: None });
        }
        let dir = std::env::temp_dir().join(format!("raylet-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(LoadError::io(format!("making {}", dir.display())))?;
        let socket = dir.join("door");
        let mut command = Command::new(&settings.raylet);
        command.arg("--socket").arg(&socket).args(["--cores", &settings.node_cores, "--log-level", "warn"]);
        command.args(["--object-store-memory", "4G", "--warm-reserve", "3G"]);
        command.args(["--resources", "CPU=1000"]).args(&settings.node_flags);
        command.args(settings.busy_poll.then_some("--busy-poll"));
        command.env("RAYLET_URING_RUNTIME_DIR", dir.join("run")).stdout(Stdio::piped());
        let what = format!("starting {}: give --raylet PATH, or --socket of a running node", settings.raylet.display());
        let mut child = command.spawn().map_err(LoadError::io(what))?;
        let output = child.stdout.take().map(BufReader::new);
        let node = Self { child: Some(child), socket, _dir: Some(Dir(dir)) };
        let lines = output.into_iter().flat_map(|output| output.lines().map_while(Result::ok));
        if !lines.into_iter().any(|line| line == "ready") {
            let ended = std::io::Error::other("it ended before it was ready; see what it says above");
            return Err(LoadError::io("the node")(ended));
        }
        node.rest()?;
        Ok(node)
    }

    /// Waits until a node that was started here has done what it does ahead of demand, such as touching memory.
    fn rest(&self) -> Result<(), LoadError> {
        let Some(child) = &self.child else {
            return Ok(());
        };
        let clock = CpuClock::of(child.id() as i32).map_err(LoadError::io(CLOCK))?;
        let until = Instant::now() + REST_MAX;
        let mut before = clock.read().map_err(LoadError::io(CLOCK))?;
        while Instant::now() < until {
            std::thread::sleep(REST_STEP);
            let now = clock.read().map_err(LoadError::io(CLOCK))?;
            if now - before < REST_STEP / 20 {
                break;
            }
            before = now;
        }
        Ok(())
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let pid = rustix::process::Pid::from_child(child);
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = child.wait();
        }
    }
}

/// A connection with rings and nothing else: what a client costs that only pushes and pops.
pub struct RawConnection {
    socket: UnixStream,
    decoder: Decoder,
    descriptors: std::collections::VecDeque<OwnedFd>,
}

impl RawConnection {
    /// Connects and greets.
    ///
    /// # Errors
    /// Where the node does not answer as it should.
    pub fn connect(path: &Path) -> Result<Self, LoadError> {
        let socket = UnixStream::connect(path).map_err(LoadError::io(format!("connecting to {}", path.display())))?;
        let mut raw = Self { socket, decoder: Decoder::new(BODY_MAX_BYTES), descriptors: Default::default() };
        let version = u16::from(VERSION);
        let hello = Hello {
            magic: HELLO_MAGIC,
            capabilities: capability::ALL,
            version_min: version,
            version_max: version,
            pid: std::process::id(),
        };
        match raw.call(&hello)? {
            OwnedReply::Welcome(_) => Ok(raw),
            other => Err(unexpected("Hello", "Welcome", other.name())),
        }
    }

    /// Sends a request on the socket and waits for its answer.
    ///
    /// # Errors
    /// Where there is none.
    pub fn call<M: Message>(&mut self, request: &M) -> Result<OwnedReply, LoadError> {
        let mut encoder = Encoder::new(BODY_MAX_BYTES);
        let failed = |e: raylet_transport::frame::FrameError| LoadError::io("a frame")(std::io::Error::other(e));
        encoder.frame(Head::new(M::TYPE, 1), request).map_err(failed)?;
        encoder.flush(&self.socket).map_err(LoadError::io("sending a request"))?;
        let mut bytes = vec![0; 64 << 10];
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(failed)? {
                return Reply::read(frame.head, frame.body).and_then(|reply| reply.to_owned()).map_err(failed);
            }
            let got = fds::receive(&self.socket, &mut bytes, &mut self.descriptors);
            match got.map_err(LoadError::io("receiving an answer"))? {
                Some(0) => return Err(unexpected("a request", "an answer", "the end of the connection")),
                Some(got) => self.decoder.on_bytes(&bytes[..got]),
                None => std::thread::yield_now(),
            }
        }
    }

    /// Rings of this connection.
    ///
    /// # Errors
    /// Where the node gives none.
    pub fn rings(&mut self) -> Result<Rings, LoadError> {
        let answer = self.call(&OpenRing { lines: LINES_DEFAULT })?;
        let OwnedReply::RingOpened(opened) = answer else {
            return Err(unexpected("OpenRing", "RingOpened", answer.name()));
        };
        let descriptors: Vec<OwnedFd> = self.descriptors.drain(..).collect();
        let ours = descriptors.len().checked_sub(3).map(|from| descriptors.into_iter().skip(from).collect::<Vec<_>>());
        let Some(Ok(three)) = ours.map(TryInto::try_into) else {
            return Err(unexpected("OpenRing", "three descriptors", "fewer"));
        };
        Rings::open(opened.lines, three).map_err(|e| LoadError::io("opening the rings")(std::io::Error::other(e)))
    }
}

fn unexpected(request: &'static str, expected: &'static str, got: &str) -> LoadError {
    LoadError::Answer { request, expected, got: got.to_owned() }
}
