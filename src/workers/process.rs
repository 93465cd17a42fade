//! The table of child processes: started here, watched through pidfds, stopped politely and then not.
//!
//! Processes start through `std::process::Command`, which uses `posix_spawn` (a vfork) as long as no code runs in the
//! child: the cost does not grow with the arenas that the node has mapped. A pidfd per child makes every signal hit
//! the process that was meant, and its exit an event of the reactor; there is no SIGCHLD handler, so other users of
//! child processes in the same program are not disturbed.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{self as sys, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::sync::{oneshot, Notify};

use super::command::CommandLine;
use super::exit::ExitStatus;

/// How often the members left in a process group are looked at while they may still end by themselves.
const GROUP_POLL: Duration = Duration::from_millis(50);
/// How often they are looked at once they have had their SIGKILL.
const KILL_POLL: Duration = Duration::from_millis(2);
/// How long the status of a process that is not our child may come after its end.
const FOREIGN_STATUS_WAIT: Duration = Duration::from_millis(500);
/// Between SIGTERM and the end of a lifetime pipe. A Python process that reads the pipe on a thread does not end before
/// the pipe does; one that sees the pipe end before the signal believes that the node has crashed.
const PIPE_GRACE: Duration = Duration::from_millis(100);
/// How long `shutdown` waits for processes to be gone after SIGKILL. They can only be late in the kernel by then.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There is no program to start.
    #[error("can't start a process from an empty command line")]
    EmptyCommand,
    /// The table is full.
    #[error("{0} processes are running, which is the most this node starts")]
    TableFull(usize),
    /// A log file of the process can't be opened.
    #[error("can't open {path:?} for the output of {program:?}: {source}")]
    Output {
        /// Program to start.
        program: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused to start it.
    #[error("can't start {program:?}: {source}")]
    Start {
        /// Program to start.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// Started, but it can't be watched; it was killed.
    #[error("can't watch {program:?} with pid {pid}: {source}")]
    Watch {
        /// Program that was started.
        program: String,
        /// Its process id.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
}

/// Names a process in its table; never reused, unlike a pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey(pub u64);

/// Where a process reads its standard input from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// A pipe that the table holds open as long as the process lives: end of file tells it that the node is gone.
    LifetimePipe,
}

/// Where a process writes an output stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Where the node itself writes. A worker redirects itself to its own log files once it has registered, so that
    /// what it says before lands in the node's log, as in stock Ray.
    #[default]
    Inherit,
    /// Appended to this file.
    Append(PathBuf),
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct SpawnSpec {
    /// Program, arguments and environment.
    pub command: CommandLine,
    /// Standard input.
    pub stdin: Stdin,
    /// Standard output.
    pub stdout: Output,
    /// Standard error.
    pub stderr: Output,
    /// True to make the process the leader of a process group of its own. What is left in the group when the leader
    /// ends is then ended too (`process_group_cleanup_enabled`).
    pub own_group: bool,
    /// Added to the node's own `oom_score_adj`, so that the kernel takes this process before the node
    /// (`worker_oom_score_adjustment`); `None` leaves it.
    pub oom_score_adjustment: Option<i32>,
    /// True to have the kernel kill the process when the thread that started it ends, which is when the node does: without a
    /// word where it was killed. Stock Ray leaves workers of a killed raylet until their job or the GCS ends.
    pub dies_with_node: bool,
}

/// A process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its name in the table.
    pub key: ProcessKey,
    /// Its process id.
    pub pid: u32,
}

/// A process that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessExit {
    /// Its name in the table it has left.
    pub key: ProcessKey,
    /// Its process id, which the system may give to another process from now on.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
    /// True where it was told to end through the table.
    pub requested: bool,
}

/// Limits and times of a [`ProcessTable`].
#[derive(Clone, Copy, Debug)]
pub struct ProcessConfig {
    /// The most processes at a time.
    pub max_processes: usize,
    /// Between SIGTERM and SIGKILL (`kill_worker_timeout_milliseconds`).
    pub kill_timeout: Duration,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self { max_processes: 4096, kill_timeout: Duration::from_secs(5) }
    }
}

/// The processes of a node. Clones share one table.
#[derive(Clone)]
pub struct ProcessTable {
    inner: Rc<Inner>,
}

struct Inner {
    config: ProcessConfig,
    exits: flume::Sender<ProcessExit>,
    entries: RefCell<HashMap<ProcessKey, Rc<Entry>>>,
    next_key: Cell<u64>,
    /// Groups whose leader is gone but whose members may not be.
    lingering_groups: Cell<usize>,
    changed: Notify,
}

struct Entry {
    key: ProcessKey,
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    own_group: bool,
    terminating: Cell<bool>,
    /// Open as long as the process is to live.
    lifetime_pipe: RefCell<Option<ChildStdin>>,
}

impl ProcessTable {
    /// An empty table that reports each process's end to `exits`, once.
    ///
    /// A full channel holds back the report and keeps the process's place in the table taken: nothing is lost, and
    /// the number of reports under way never exceeds `max_processes`.
    pub fn new(config: ProcessConfig, exits: flume::Sender<ProcessExit>) -> Self {
        let inner = Inner {
            config,
            exits,
            entries: RefCell::default(),
            next_key: Cell::new(1),
            lingering_groups: Cell::new(0),
            changed: Notify::new(),
        };
        Self { inner: Rc::new(inner) }
    }

    /// Starts a process and watches it.
    ///
    /// # Errors
    /// A full table, an output file or program that the system refuses, a kernel without pidfds.
    pub fn spawn(&self, spec: &SpawnSpec) -> Result<Started, SpawnError> {
        self.check_room()?;
        self.launch(spec, prepare(spec)?)
    }

    /// As [`Self::spawn`], with `stdin` as the standard input of the process.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_with_stdin(&self, spec: &SpawnSpec, stdin: OwnedFd) -> Result<Started, SpawnError> {
        self.check_room()?;
        let mut command = prepare(spec)?;
        command.stdin(stdin);
        self.launch(spec, command)
    }

    fn launch(&self, spec: &SpawnSpec, mut command: Command) -> Result<Started, SpawnError> {
        let program = &spec.command.argv[0];
        let mut child = command.spawn().map_err(|source| SpawnError::Start { program: program.clone(), source })?;
        let pid = child.id();
        // The child is not reaped by anyone else, so that its pid still means it here even if it ended at once.
        let (pid_t, pidfd) = match open_pidfd(pid) {
            Ok(opened) => opened,
            Err(source) => {
                // Nothing would ever reap it: end it here.
                let ended = child.kill().and_then(|()| child.wait());
                tracing::warn!(pid, ?ended, "a process that can't be watched was killed");
                return Err(SpawnError::Watch { program: program.clone(), pid, source });
            }
        };
        apply_oom_score(pid, spec.oom_score_adjustment);
        let pipe = if spec.stdin == Stdin::LifetimePipe { child.stdin.take() } else { None };
        let entry = self.insert(pid_t, pidfd, spec.own_group, pipe);
        tokio::task::spawn_local(self.clone().watch_child(entry.clone()));
        Ok(Started { key: entry.key, pid })
    }

    /// Watches a process that another process of this node started by `spec`, and whose status comes through `status`.
    /// Whoever started it has applied all of `spec`, its OOM score too.
    ///
    /// # Errors
    /// A full table, or a process that no longer exists.
    pub fn adopt(
        &self,
        pid: u32,
        spec: &SpawnSpec,
        status: oneshot::Receiver<ExitStatus>,
    ) -> Result<Started, SpawnError> {
        self.check_room()?;
        let program = spec.command.argv.first().ok_or(SpawnError::EmptyCommand)?;
        let (pid_t, pidfd) =
            open_pidfd(pid).map_err(|source| SpawnError::Watch { program: program.clone(), pid, source })?;
        let entry = self.insert(pid_t, pidfd, spec.own_group, None);
        tokio::task::spawn_local(self.clone().watch_foreign(entry.clone(), status));
        Ok(Started { key: entry.key, pid })
    }

    /// Number of processes running or not yet reported.
    pub fn len(&self) -> usize {
        self.inner.entries.borrow().len()
    }

    /// True where no process is running.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Process id of a running process.
    pub fn pid(&self, key: ProcessKey) -> Option<u32> {
        self.entry(key).map(|entry| entry.raw_pid())
    }

    /// Process ids of all running processes.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        let entries = self.inner.entries.borrow();
        let pids: Vec<_> = entries.values().map(|entry| entry.raw_pid()).collect();
        pids.into_iter()
    }

    /// True while the process has neither ended nor been reported.
    pub fn is_alive(&self, key: ProcessKey) -> bool {
        self.inner.entries.borrow().contains_key(&key)
    }

    /// Ends a process at once: SIGKILL to it and, where it leads one, to its group. Unknown keys are ignored, because
    /// the process may have ended while its killer made up its mind.
    pub fn kill(&self, key: ProcessKey) {
        if let Some(entry) = self.entry(key) {
            entry.terminating.set(true);
            entry.kill();
        }
    }

    /// Ends all processes at once.
    pub fn kill_all(&self) {
        let keys: Vec<_> = self.inner.entries.borrow().keys().copied().collect();
        keys.into_iter().for_each(|key| self.kill(key));
    }

    /// Asks a process to end with SIGTERM and the end of its lifetime pipe, and ends it with SIGKILL where it hasn't after `kill_timeout`. Asking again
    /// changes nothing.
    pub fn terminate(&self, key: ProcessKey) {
        self.terminate_within(key, self.inner.config.kill_timeout);
    }

    /// As [`Self::terminate`], with a time of its own.
    pub fn terminate_within(&self, key: ProcessKey, timeout: Duration) {
        let Some(entry) = self.entry(key) else { return };
        if entry.terminating.replace(true) {
            return;
        }
        entry.signal(Signal::TERM);
        let table = self.clone();
        tokio::task::spawn_local(async move {
            let pipe_after = timeout.min(PIPE_GRACE);
            tokio::time::sleep(pipe_after).await;
            if let Some(entry) = table.entry(key) {
                entry.lifetime_pipe.take();
            }
            tokio::time::sleep(timeout - pipe_after).await;
            if let Some(entry) = table.entry(key) {
                tracing::warn!(pid = ?entry.pid, ?timeout, "a process did not end on SIGTERM and is killed");
                entry.kill();
            }
        });
    }

    /// Sends one signal to a process (not to its group).
    pub fn signal(&self, key: ProcessKey, signal: Signal) {
        if let Some(entry) = self.entry(key) {
            entry.signal(signal);
        }
    }

    /// Ends all processes and what is left of their groups; returns when they are gone and reported, or with the
    /// number of those that the kernel did not end in time. Takes at most `kill_timeout` twice and 2 s.
    pub async fn shutdown(&self) -> usize {
        let keys: Vec<_> = self.inner.entries.borrow().keys().copied().collect();
        keys.into_iter().for_each(|key| self.terminate(key));
        let limit = 2 * self.inner.config.kill_timeout + KILL_WAIT;
        // Ends on the time limit or when all is gone; either way the count says which.
        let _ = tokio::time::timeout(limit, self.drained()).await;
        self.len() + self.inner.lingering_groups.get()
    }

    async fn drained(&self) {
        loop {
            let changed = self.inner.changed.notified();
            if self.is_empty() && self.inner.lingering_groups.get() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn check_room(&self) -> Result<(), SpawnError> {
        let max = self.inner.config.max_processes;
        (self.len() < max).then_some(()).ok_or(SpawnError::TableFull(max))
    }

    fn entry(&self, key: ProcessKey) -> Option<Rc<Entry>> {
        self.inner.entries.borrow().get(&key).cloned()
    }

    fn insert(&self, pid: Pid, pidfd: AsyncFd<OwnedFd>, own_group: bool, pipe: Option<ChildStdin>) -> Rc<Entry> {
        let key = ProcessKey(self.inner.next_key.get());
        self.inner.next_key.set(key.0 + 1);
        let entry = Rc::new(Entry {
            key,
            pid,
            pidfd,
            own_group,
            terminating: Cell::new(false),
            lifetime_pipe: RefCell::new(pipe),
        });
        self.inner.entries.borrow_mut().insert(key, entry.clone());
        entry
    }

    async fn watch_child(self, entry: Rc<Entry>) {
        entry.ended().await;
        let waited = sys::waitid(WaitId::PidFd(entry.pidfd.get_ref().as_fd()), WaitIdOptions::EXITED);
        let status = match waited {
            Ok(Some(status)) => decode(&status),
            Ok(None) => ExitStatus::Unknown,
            Err(error) => {
                tracing::warn!(pid = ?entry.pid, %error, "the exit status of a process was taken by someone else");
                ExitStatus::Unknown
            }
        };
        self.report(entry, status).await;
    }

    async fn watch_foreign(self, entry: Rc<Entry>, status: oneshot::Receiver<ExitStatus>) {
        entry.ended().await;
        let status = match tokio::time::timeout(FOREIGN_STATUS_WAIT, status).await {
            Ok(Ok(status)) => status,
            Ok(Err(_)) | Err(_) => ExitStatus::Unknown,
        };
        self.report(entry, status).await;
    }

    async fn report(self, entry: Rc<Entry>, status: ExitStatus) {
        let pid = entry.raw_pid();
        let exit = ProcessExit { key: entry.key, pid, status, requested: entry.terminating.get() };
        // Counted before the entry goes, so that a shutdown never sees neither of them.
        let lingers = entry.own_group && signal_group(entry.pid, Signal::TERM);
        let count = &self.inner.lingering_groups;
        count.set(count.get() + usize::from(lingers));
        if self.inner.exits.send_async(exit).await.is_err() {
            tracing::debug!(pid, "a process ended after its owner stopped listening");
        }
        self.inner.entries.borrow_mut().remove(&entry.key);
        self.inner.changed.notify_waiters();
        if lingers {
            self.end_group(entry.pid).await;
            count.set(count.get() - 1);
            self.inner.changed.notify_waiters();
        }
    }

    /// Waits for the rest of a group, which has had its SIGTERM, and kills what outstays the timeout.
    async fn end_group(&self, group: Pid) {
        let deadline = tokio::time::Instant::now() + self.inner.config.kill_timeout;
        while tokio::time::Instant::now() < deadline {
            // Looked at often, so that the number of an empty group is not given to another in between.
            if !group_exists(group) {
                return;
            }
            tokio::time::sleep(GROUP_POLL).await;
        }
        signal_group(group, Signal::KILL);
        // The signal is sent, not yet obeyed. Where nobody reaps orphans the group exists for ever, so this has an end.
        let deadline = tokio::time::Instant::now() + KILL_WAIT / 2;
        while group_exists(group) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(KILL_POLL).await;
        }
    }
}

impl Entry {
    /// Returns when the process has ended.
    async fn ended(&self) {
        // An error here means that the reactor is going away with the node.
        if let Err(error) = self.pidfd.readable().await {
            tracing::debug!(pid = ?self.pid, %error, "stopped watching a process");
        }
    }

    fn raw_pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    fn signal(&self, signal: Signal) {
        match sys::pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                tracing::warn!(pid = ?self.pid, ?signal, %error, "can't signal a process")
            }
        }
    }

    fn kill(&self) {
        self.signal(Signal::KILL);
        if self.own_group {
            // Safe as to identity: the leader is in the table, so it has not been reaped, so its number is still its.
            signal_group(self.pid, Signal::KILL);
        }
    }
}

fn prepare(spec: &SpawnSpec) -> Result<Command, SpawnError> {
    let (program, arguments) = spec.command.argv.split_first().ok_or(SpawnError::EmptyCommand)?;
    let mut command = Command::new(program);
    command.args(arguments);
    spec.command.env_remove.iter().for_each(|name| {
        command.env_remove(name);
    });
    command.envs(spec.command.env.iter().map(|(name, value)| (name, value)));
    command.stdin(match spec.stdin {
        Stdin::Null => Stdio::null(),
        Stdin::LifetimePipe => Stdio::piped(),
    });
    command.stdout(open_output(program, &spec.stdout)?);
    command.stderr(open_output(program, &spec.stderr)?);
    if spec.own_group {
        command.process_group(0);
    }
    if spec.dies_with_node {
        die_with_this_thread(&mut command);
    }
    Ok(command)
}

fn die_with_this_thread(command: &mut Command) {
    let node = sys::getpid();
    let arrange = move || {
        sys::set_parent_process_death_signal(Some(Signal::KILL))?;
        // A node that ended before that sends no signal.
        if sys::getppid() == Some(node) {
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    };
    // SAFETY: what runs between fork and exec makes two system calls and neither allocates nor takes a lock.
    unsafe { command.pre_exec(arrange) };
}

fn open_output(program: &str, output: &Output) -> Result<Stdio, SpawnError> {
    let Output::Append(path) = output else {
        return Ok(Stdio::inherit());
    };
    File::options().create(true).append(true).open(path).map(Stdio::from).map_err(|source| SpawnError::Output {
        program: program.into(),
        path: path.clone(),
        source,
    })
}

fn open_pidfd(pid: u32) -> io::Result<(Pid, AsyncFd<OwnedFd>)> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = sys::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    // SAFETY: an OwnedFd names one open descriptor from here until it is dropped, and nothing takes it out of the
    // AsyncFd that owns it.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    Ok((pid, watched?))
}

/// Signals a group; false where it has no members.
fn signal_group(group: Pid, signal: Signal) -> bool {
    match sys::kill_process_group(group, signal) {
        Ok(()) => true,
        Err(rustix::io::Errno::SRCH) => false,
        Err(error) => {
            tracing::warn!(?group, ?signal, %error, "can't signal a process group");
            false
        }
    }
}

fn group_exists(group: Pid) -> bool {
    sys::test_kill_process_group(group).is_ok()
}

fn decode(status: &sys::WaitIdStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal { signal, core_dumped: status.dumped() },
        (None, None) => ExitStatus::Unknown,
    }
}

fn apply_oom_score(pid: u32, adjustment: Option<i32>) {
    let Some(Err(error)) = adjustment.map(|adjustment| adjust_oom_score(pid, adjustment)) else {
        return;
    };
    tracing::warn!(pid, %error, "can't set the OOM score of a process; the kernel may take the node first");
}

/// Adds to the OOM score adjustment that a process has inherited, within what Linux allows (-1000..=1000).
fn adjust_oom_score(pid: u32, adjustment: i32) -> io::Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let inherited: i32 = fs::read_to_string(&path)?.trim().parse().map_err(io::Error::other)?;
    fs::write(path, inherited.saturating_add(adjustment).clamp(-1000, 1000).to_string())
}
