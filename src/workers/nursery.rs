//! Workers forked from a process that has imported Ray.
//!
//! Starting Python and importing Ray takes half a second of CPU; forking a process that has done both takes milliseconds.
//! The *nursery* is that process: one per node, with the Python and the environment of a plain worker. It serves what starts
//! the same way every time: task workers without a runtime environment, for no job yet (Ray's C++ library reads the job from
//! the environment when it is loaded, so that the job has to be the nil one; as with workers that a stock raylet prestarts,
//! they learn their job with the first task). Everything else, and everything while there is no nursery, starts plainly.
//!
//! What forked workers share and plain ones don't: the seed of Python's string hashes and the layout of their address space,
//! both of which are drawn before any of their code runs. Whatever else is drawn at the start is drawn anew after the fork,
//! and a nursery in which Ray's own generator was used already, or that has threads, takes itself out of service.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, Notify};
use tokio::time::Instant;

use super::command::CommandLine;
use super::exit::ExitStatus;
use super::process::{Output, ProcessConfig, ProcessTable, SpawnSpec, Started, Stdin};

/// The nursery's program. It is given to Python as text, so that it always fits this binary, and through its standard input,
/// because the room of its command line is what a title of its workers has.
const PROGRAM: &str = include_str!("nursery.py");
/// The script of a worker, as the last part of its path.
const WORKER_SCRIPT: &str = "default_worker.py";
/// The job of a worker that is started for none yet.
const NIL_JOB: &str = "ffffffff";
/// Requests under way at a time; further starts are plain.
const MAX_PENDING: usize = 256;
/// The most bytes of a message from the nursery: an id, a pid, the text of an OS error.
const MAX_MESSAGE_BYTES: u64 = 4096;
/// The longest pause before a nursery that ended is started again. One that has served for as long begins with the first again.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How the nursery is used.
#[derive(Clone, Copy, Debug)]
pub struct NurserySettings {
    /// False: every start is plain (our setting `worker_nursery`).
    pub enabled: bool,
    /// How long a start waits for a nursery that is importing Ray.
    pub ready_timeout: Duration,
    /// How long a fork may take.
    pub fork_timeout: Duration,
    /// The first pause before a nursery that ended is started again; doubled each time, up to a minute.
    pub retry_pause: Duration,
}

impl Default for NurserySettings {
    fn default() -> Self {
        Self {
            enabled: true,
            ready_timeout: Duration::from_secs(20),
            fork_timeout: Duration::from_secs(10),
            retry_pause: Duration::from_secs(1),
        }
    }
}

/// Forks workers where that is possible. Clones share one nursery.
#[derive(Clone)]
pub struct Nursery {
    inner: Rc<Inner>,
}

struct Inner {
    settings: NurserySettings,
    workers: ProcessTable,
    /// Holds the nursery's own process, so that its end is not mistaken for a worker's.
    own: ProcessTable,
    state: RefCell<State>,
    changed: Notify,
}

enum State {
    Cold,
    Importing(CommandLine),
    Ready(Rc<Link>),
    /// Failed; not tried again before this time, and after that with this pause.
    Resting(Instant, Duration),
    Closed,
}

/// Why a nursery ended.
enum End {
    Failed(String),
    /// This file or directory of packages has changed since it was imported from.
    Stale(String),
}

/// A nursery that works.
struct Link {
    command: CommandLine,
    requests: flume::Sender<Vec<u8>>,
    pending: RefCell<Pending>,
}

#[derive(Default)]
struct Pending {
    next_id: u64,
    forks: HashMap<u64, (SpawnSpec, oneshot::Sender<Result<Started, String>>)>,
    statuses: HashMap<u32, oneshot::Sender<ExitStatus>>,
}

#[derive(Serialize)]
struct Request<'a> {
    id: u64,
    argv: &'a [String],
    oom_score_adjustment: Option<i32>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum Message {
    Ready { ready: bool },
    Unfit { unfit: String },
    Stale { stale: String },
    Forked { id: u64, pid: u32 },
    Failed { id: u64, error: String },
    Signalled { exit: u32, signal: i32, core: bool },
    Exited { exit: u32, code: i32 },
}

impl Nursery {
    /// A nursery whose workers live in the table `workers`. Starts nothing yet.
    pub fn new(settings: NurserySettings, workers: ProcessTable) -> Self {
        // The end of the nursery is seen on its socket, so that nobody needs to read the report.
        let (exits, _) = flume::bounded(1);
        let config = ProcessConfig { max_processes: 1, kill_timeout: Duration::from_millis(500) };
        let inner = Inner {
            settings,
            workers,
            own: ProcessTable::new(config, exits),
            state: RefCell::new(State::Cold),
            changed: Notify::new(),
        };
        Self { inner: Rc::new(inner) }
    }

    /// True where workers may come from here, so that task workers without a runtime environment should be started for the
    /// nil job.
    pub fn is_enabled(&self) -> bool {
        self.inner.settings.enabled
    }

    /// Starts importing Ray now, with the Python and the environment of this worker, instead of at the first fork.
    pub fn warm(&self, worker: &CommandLine) {
        let may_start = match *self.inner.state.borrow() {
            State::Cold => true,
            State::Resting(until, _) => Instant::now() >= until,
            _ => false,
        };
        if may_start && self.is_enabled() && fits(worker) {
            self.launch(worker);
        }
    }

    /// Forks a worker, which is in the table then. `None` where it doesn't fit or the nursery doesn't work: it is to be
    /// started plainly. Waits for a nursery that is importing Ray, because a plain start would have to import it too.
    pub async fn fork(&self, spec: &SpawnSpec) -> Option<Started> {
        let plain_streams =
            spec.stdin == Stdin::Null && spec.stdout == Output::Inherit && spec.stderr == Output::Inherit;
        if !self.is_enabled() || !plain_streams || !spec.own_group || !fits(&spec.command) {
            return None;
        }
        self.warm(&spec.command);
        let link = self.ready().await.filter(|link| same_start(&link.command, &spec.command))?;
        let (answer, answered) = oneshot::channel();
        link.ask(spec, answer)?;
        match tokio::time::timeout(self.inner.settings.fork_timeout, answered).await {
            Ok(Ok(Ok(started))) => Some(started),
            Ok(Ok(Err(error))) => {
                tracing::warn!(error, "the nursery could not fork a worker, which starts plainly now");
                None
            }
            Ok(Err(_)) => None, // The nursery ended, which `converse` has logged.
            Err(_) => {
                tracing::warn!("the nursery did not answer in time and is ended");
                // Whatever it forked meanwhile is found on the socket and ended, see `forked`.
                self.inner.own.kill_all();
                None
            }
        }
    }

    /// Ends the nursery; workers are not touched, and later starts are plain.
    pub async fn shutdown(&self) {
        self.inner.state.replace(State::Closed);
        self.inner.changed.notify_waiters();
        self.inner.own.shutdown().await;
    }

    /// Process id of the nursery, where it runs.
    pub fn pid(&self) -> Option<u32> {
        self.inner.own.pids().next()
    }

    /// The working nursery, waited for while it imports Ray.
    async fn ready(&self) -> Option<Rc<Link>> {
        let deadline = Instant::now() + self.inner.settings.ready_timeout;
        loop {
            let changed = self.inner.changed.notified();
            match &*self.inner.state.borrow() {
                State::Ready(link) => return Some(link.clone()),
                State::Importing(_) => {}
                State::Cold | State::Resting(..) | State::Closed => return None,
            }
            tokio::time::timeout_at(deadline, changed).await.ok()?;
        }
    }

    fn launch(&self, worker: &CommandLine) {
        let pause = match *self.inner.state.borrow() {
            State::Resting(_, pause) => pause,
            _ => self.inner.settings.retry_pause,
        };
        let started = StdStream::pair().map_err(|error| error.to_string()).and_then(|(mut ours, theirs)| {
            ours.set_nonblocking(true).map_err(|error| error.to_string())?;
            // Less than any socket buffer holds.
            ours.write_all(PROGRAM.as_bytes()).map_err(|error| error.to_string())?;
            let ours = UnixStream::from_std(ours).map_err(|error| error.to_string())?;
            let spec = nursery_spec(worker);
            let started = self.inner.own.spawn_with_stdin(&spec, OwnedFd::from(theirs));
            started.map(|started| (ours, started)).map_err(|error| error.to_string())
        });
        match started {
            Ok((socket, started)) => {
                tracing::info!(pid = started.pid, "worker nursery started");
                self.inner.state.replace(State::Importing(worker.clone()));
                tokio::task::spawn_local(self.clone().converse(socket, pause));
            }
            Err(error) => self.rest(&End::Failed(error), pause),
        }
    }

    /// Talks to the nursery until it ends.
    async fn converse(self, socket: UnixStream, pause: Duration) {
        let (read, write) = socket.into_split();
        let mut reader = Reader { lines: BufReader::new(read), line: Vec::new() };
        let begun = Instant::now();
        let end = match tokio::time::timeout(self.inner.settings.ready_timeout, reader.next()).await {
            Err(_) => End::Failed("it did not import Ray in time".into()),
            Ok(Err(error)) => End::Failed(error),
            Ok(Ok(Message::Ready { ready: true })) => self.attend(reader, write).await,
            Ok(Ok(Message::Unfit { unfit })) => End::Failed(format!("it can't be forked: {unfit}")),
            Ok(Ok(message)) => End::Failed(format!("it sent {message:?} before it was ready")),
        };
        self.inner.own.kill_all();
        self.rest(&end, if begun.elapsed() >= RETRY_PAUSE_MAX { self.inner.settings.retry_pause } else { pause });
    }

    async fn attend(&self, mut reader: Reader, write: OwnedWriteHalf) -> End {
        let command = match &*self.inner.state.borrow() {
            State::Importing(command) => command.clone(),
            _ => return End::Failed("the node ends".into()),
        };
        let (requests, outbox) = flume::bounded(MAX_PENDING);
        let link = Rc::new(Link { command, requests, pending: RefCell::default() });
        self.inner.state.replace(State::Ready(link.clone()));
        self.inner.changed.notify_waiters();
        tokio::task::spawn_local(send_requests(outbox, write));
        let end = loop {
            match reader.next().await {
                Ok(Message::Forked { id, pid }) => self.forked(&link, id, pid),
                Ok(Message::Failed { id, error }) => link.answer(id, Err(error)),
                Ok(Message::Exited { exit, code }) => link.exited(exit, ExitStatus::Code(code)),
                Ok(Message::Signalled { exit, signal, core: core_dumped }) => {
                    link.exited(exit, ExitStatus::Signal { signal, core_dumped });
                }
                Ok(Message::Stale { stale }) => break End::Stale(stale),
                Ok(message) => break End::Failed(format!("it sent {message:?} after it was ready")),
                Err(error) => break End::Failed(error),
            }
        };
        // Those who wait for a fork start plainly; those who wait for a status learn that it is unknown.
        link.pending.take();
        end
    }

    fn forked(&self, link: &Link, id: u64, pid: u32) {
        let Some((spec, answer)) = link.pending.borrow_mut().forks.remove(&id) else {
            return;
        };
        let (status, receiver) = oneshot::channel();
        let adopted = self.inner.workers.adopt(pid, &spec, receiver);
        if adopted.is_ok() {
            link.pending.borrow_mut().statuses.insert(pid, status);
        }
        let adopted = adopted.map_err(|error| error.to_string());
        if let Err(Ok(unwanted)) = answer.send(adopted) {
            // Its start was given up and happened plainly: two workers must not have one id.
            self.inner.workers.kill(unwanted.key);
        }
    }

    fn rest(&self, end: &End, pause: Duration) {
        if matches!(*self.inner.state.borrow(), State::Closed) {
            return;
        }
        match end {
            End::Failed(why) => {
                tracing::warn!(why, retry_after = ?pause, "the worker nursery failed; workers start plainly meanwhile");
            }
            End::Stale(path) => {
                tracing::info!(path, "the worker nursery ends, because what it has imported was changed");
            }
        }
        let next = (pause * 2).min(RETRY_PAUSE_MAX);
        self.inner.state.replace(State::Resting(Instant::now() + pause, next));
        self.inner.changed.notify_waiters();
    }
}

impl Link {
    /// Sends a request; `None` where too many are under way.
    fn ask(&self, spec: &SpawnSpec, answer: oneshot::Sender<Result<Started, String>>) -> Option<()> {
        let mut pending = self.pending.borrow_mut();
        if pending.forks.len() >= MAX_PENDING {
            return None;
        }
        pending.next_id += 1;
        let id = pending.next_id;
        let request = Request { id, argv: &spec.command.argv, oom_score_adjustment: spec.oom_score_adjustment };
        let mut line = serde_json::to_vec(&request).ok()?;
        line.push(b'\n');
        // As deep as the map of those who wait is large, so that it is never full; gone where the nursery is.
        self.requests.try_send(line).ok()?;
        pending.forks.insert(id, (spec.clone(), answer));
        Some(())
    }

    fn answer(&self, id: u64, result: Result<Started, String>) {
        if let Some((_, answer)) = self.pending.borrow_mut().forks.remove(&id) {
            // Nobody waits any more where the start has timed out.
            let _ = answer.send(result);
        }
    }

    fn exited(&self, pid: u32, status: ExitStatus) {
        if let Some(waiting) = self.pending.borrow_mut().statuses.remove(&pid) {
            // The table has stopped waiting where the message took longer than it grants.
            let _ = waiting.send(status);
        }
    }
}

struct Reader {
    lines: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Reader {
    async fn next(&mut self) -> Result<Message, String> {
        self.line.clear();
        let mut limited = (&mut self.lines).take(MAX_MESSAGE_BYTES);
        match limited.read_until(b'\n', &mut self.line).await {
            Ok(0) => Err("it has ended".into()),
            Ok(_) => serde_json::from_slice(&self.line)
                .map_err(|error| format!("it sent {:?}: {error}", String::from_utf8_lossy(&self.line))),
            Err(error) => Err(format!("its socket failed: {error}")),
        }
    }
}

async fn send_requests(outbox: flume::Receiver<Vec<u8>>, mut socket: OwnedWriteHalf) {
    while let Ok(request) = outbox.recv_async().await {
        if let Err(error) = socket.write_all(&request).await {
            tracing::debug!(%error, "the nursery takes no more requests");
            return;
        }
    }
}

/// True for a worker that may be forked: the script runs directly (no runtime environment), and for no job yet.
fn fits(worker: &CommandLine) -> bool {
    let script = worker.argv.get(1).is_some_and(|script| script.ends_with(WORKER_SCRIPT));
    script && worker.env.iter().any(|(name, value)| name == "RAY_JOB_ID" && value == NIL_JOB)
}

/// True where two workers differ in nothing that is fixed once Python has started and Ray is imported.
fn same_start(nursery: &CommandLine, worker: &CommandLine) -> bool {
    nursery.argv[..2] == worker.argv[..2] && (&nursery.env, &nursery.env_remove) == (&worker.env, &worker.env_remove)
}

fn nursery_spec(worker: &CommandLine) -> SpawnSpec {
    let read = format!(
        "import socket; s = socket.socket(fileno=0); p = s.recv({}, socket.MSG_WAITALL); s.detach(); \
         exec(compile(p, 'nursery.py', 'exec')); exec(*worker)",
        PROGRAM.len()
    );
    let mut argv = vec![worker.argv[0].clone(), "-c".into(), read];
    argv.extend_from_slice(&worker.argv[1..]);
    let command = CommandLine { argv, env: worker.env.clone(), env_remove: worker.env_remove.clone() };
    SpawnSpec { command, own_group: true, ..SpawnSpec::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        for (line, expected) in [
            (r#"{"ready": true}"#, Message::Ready { ready: true }),
            (r#"{"unfit": "why"}"#, Message::Unfit { unfit: "why".into() }),
            (r#"{"stale": "/x"}"#, Message::Stale { stale: "/x".into() }),
            (r#"{"id": 3, "pid": 77}"#, Message::Forked { id: 3, pid: 77 }),
            (r#"{"id": 3, "error": "fork: no"}"#, Message::Failed { id: 3, error: "fork: no".into() }),
            (r#"{"exit": 77, "code": 5}"#, Message::Exited { exit: 77, code: 5 }),
            (r#"{"exit": 77, "signal": 9, "core": false}"#, Message::Signalled { exit: 77, signal: 9, core: false }),
        ] {
            assert_eq!(serde_json::from_str::<Message>(line).unwrap(), expected);
        }
        assert!(serde_json::from_str::<Message>(r#"{"exit": "x"}"#).is_err());
    }

    #[test]
    fn only_plain_workers_without_a_job_fit() {
        let line = |script: &str, job: &str| CommandLine {
            argv: ["python", script, "--a"].map(String::from).into(),
            env: vec![("RAY_JOB_ID".into(), job.into())],
            env_remove: vec![],
        };
        assert!(fits(&line("/x/default_worker.py", NIL_JOB)));
        assert!(!fits(&line("/x/setup_worker.py", NIL_JOB)));
        assert!(!fits(&line("/x/default_worker.py", "01000000")));
        assert!(!fits(&CommandLine::default()));
        let mut other = line("/x/default_worker.py", NIL_JOB);
        assert!(same_start(&other, &line("/x/default_worker.py", NIL_JOB)));
        other.env.push(("A".into(), "1".into()));
        assert!(!same_start(&other, &line("/x/default_worker.py", NIL_JOB)));
    }
}
