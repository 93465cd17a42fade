//! The ring of a core: everything that the core waits for, in one system call.
//!
//! A core has sockets, a doorbell that other threads ring, and a time until which it wants to sleep at most. [`CoreRing`] waits for
//! all of it with a single `io_uring_enter`, in which the kernel also receives what came in: a socket usually has one multishot
//! receive that stays armed, and all take their buffers from a ring that they share. A request that finds the core asleep
//! so costs one system call before the answer, where a readiness loop takes two (`epoll_wait`, `recv`) and a general
//! executor more.
//!
//! Answers don't go through the ring: they are small, nearly always fit the socket's buffer, and `send` from the caller's own buffer
//! needs nothing to be kept until a completion. Only a socket that is full is watched here until it has room again.

mod buffers;
mod files;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use io_uring::{cqueue, opcode, squeue, types, EnterFlags, IoUring};
use rustc_hash::FxHashMap;
use rustix::event::{eventfd, EventfdFlags};
use slab::Slab;

use buffers::Buffers;
pub use files::{FileOperation, FileResult, IoMemory, PageBuffer};

/// Entries of the submission queue: what is begun between two waits; more is submitted in several calls.
const SUBMISSIONS: u32 = 256;

/// Buffers that all receives of a core share. A burst that finds none free is received when the first are back.
const RECEIVE_BUFFERS: u16 = 64;

/// Size of each in bytes; a frame of a worker is a few hundred bytes, and a large one comes in several pieces.
const RECEIVE_BUFFER_BYTES: usize = 16 << 10;

/// Keys of sockets have this many bits; the rest of a completion's mark says what was completed.
const KEY_BITS: u32 = 56;

const RECEIVE: u64 = 1 << KEY_BITS;
const WRITABLE: u64 = 2 << KEY_BITS;
const WAKE: u64 = 3 << KEY_BITS;
const TIMER: u64 = 4 << KEY_BITS;
const BELL: u64 = 5 << KEY_BITS;
const RUNG: u64 = 6 << KEY_BITS;
const FORGET: u64 = 7 << KEY_BITS;
const FILE: u64 = 8 << KEY_BITS;
/// An operation on a file whose memory was not there: nothing was done.
const OUTSIDE: u64 = 9 << KEY_BITS;

/// What rings an eventfd; the kernel reads it while a write is on its way.
static ONE_RING: [u8; 8] = 1u64.to_le_bytes();

/// Why a ring can't be had.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel refused the ring.
    #[error(
        "io_uring can't be set up ({0}): this node needs Linux 6.1 or newer with io_uring allowed \
         (sysctl kernel.io_uring_disabled=0; in a container, a seccomp profile that lets io_uring_setup through)"
    )]
    Setup(io::Error),
    /// The kernel has io_uring, but not what the ring is made of.
    #[error("io_uring of this kernel lacks provided buffer rings ({0}): this node needs Linux 6.1 or newer")]
    Buffers(io::Error),
    /// No descriptor for the doorbell.
    #[error("no descriptor for a core's doorbell ({0}): raise RLIMIT_NOFILE")]
    Doorbell(io::Error),
}

/// What happened.
#[derive(Debug)]
pub enum Completion<'a> {
    /// Bytes came in, at least one.
    Received {
        /// The socket.
        key: u64,
        /// What came.
        bytes: &'a [u8],
    },
    /// A socket ended: nothing more comes from it, and the ring has let go of it.
    Ended {
        /// The socket.
        key: u64,
        /// What broke it; `None` where the peer closed it.
        error: Option<io::Error>,
    },
    /// A socket that was full has room again, or is broken.
    Writable {
        /// The socket.
        key: u64,
    },
    /// An operation on a file has ended.
    File {
        /// As given to [`CoreRing::begin`].
        key: u64,
        /// What it came to.
        result: io::Result<FileResult>,
    },
    /// Bytes were sent without a copy. Their memory is read until [`Completion::Released`].
    Sent {
        /// As given to [`CoreRing::begin`].
        key: u64,
        /// How many were sent.
        result: io::Result<u32>,
    },
    /// The kernel reads no longer what was sent without a copy.
    Released {
        /// As given to [`CoreRing::begin`].
        key: u64,
        /// As given with the send.
        number: u64,
    },
    /// A bell that is watched was rung.
    Bell {
        /// Whose.
        key: u64,
    },
}

/// How a socket is received from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// What comes in is told at once, each time.
    Always,
    /// What comes in is told once; then the kernel keeps the rest until [`CoreRing::receive_again`].
    Once,
}

/// A bell that is being rung.
struct Ringing {
    /// Open until the kernel is done.
    bell: Rc<OwnedFd>,
    /// It was to be rung again meanwhile.
    again: bool,
}

/// Wakes a core that sleeps; cheap for one that doesn't. Rung by whoever has put something where the core looks.
#[derive(Debug)]
pub struct Doorbell {
    event: OwnedFd,
    asleep: AtomicBool,
}

impl Doorbell {
    /// A doorbell for a core that is still to start.
    ///
    /// # Errors
    /// [`RingError::Doorbell`].
    pub fn new() -> Result<Arc<Self>, RingError> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let event = event.map_err(|e| RingError::Doorbell(e.into()))?;
        Ok(Arc::new(Self { event, asleep: AtomicBool::new(false) }))
    }

    /// Wakes the core if it sleeps. What was put into its queue before this call is seen: either the core is awake and will
    /// look before it sleeps, or it is woken.
    pub fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // The counter can't overflow: it is written once per sleep, and 64 bits wide.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

/// See the [module](self). Made and used on the core's own thread.
pub struct CoreRing {
    ring: IoUring,
    buffers: Buffers,
    receiving: FxHashMap<u64, (Rc<OwnedFd>, Receive)>,
    /// Bells that are watched.
    bells: FxHashMap<u64, Rc<OwnedFd>>,
    ringing: FxHashMap<u64, Ringing>,
    /// Operations on files, by slot.
    files: Slab<files::UnderWay>,
    doorbell: Arc<Doorbell>,
    /// When the earliest timer of the ring goes off.
    timer: Option<Instant>,
}

impl CoreRing {
    /// Sets a ring up for this thread, which `doorbell` wakes.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(doorbell: Arc<Doorbell>) -> Result<Self, RingError> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_clamp();
        let ring: IoUring = builder.build(SUBMISSIONS).map_err(RingError::Setup)?;
        let buffers = Buffers::register(&ring, RECEIVE_BUFFERS, RECEIVE_BUFFER_BYTES).map_err(RingError::Buffers)?;
        let (receiving, bells, ringing, files) = Default::default();
        let mut ring = Self { ring, buffers, receiving, bells, ringing, files, doorbell, timer: None };
        ring.watch_doorbell();
        Ok(ring)
    }

    /// Receives from a connected socket until it ends. The key is the caller's, below 2^56, and not in use.
    pub fn receive(&mut self, key: u64, socket: Rc<OwnedFd>, how: Receive) {
        debug_assert!(key >> KEY_BITS == 0, "a key of more than {KEY_BITS} bits");
        self.arm_receive(key, &socket, how);
        self.receiving.insert(key, (socket, how));
    }

    /// Goes on with a socket that is received from [once](Receive::Once) and has told something since. One that has ended is let go
    /// after this, so it is owed to those too.
    /// One that is always received from needs no asking, and is left as it is.
    pub fn receive_again(&mut self, key: u64) {
        if self.is_received(key, Receive::Once) {
            self.arm_again(key);
        }
    }

    /// Tells once when a socket that is being received from has room for more.
    pub fn tell_writable(&mut self, key: u64) {
        let Some((socket, _)) = self.receiving.get(&key) else {
            return;
        };
        let poll = opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), writable()).build();
        self.push(poll.user_data(WRITABLE | key));
    }

    /// Tells each time that an eventfd is rung, until [`Self::forget_bell`]. The key is the caller's, below 2^56.
    pub fn watch_bell(&mut self, key: u64, bell: Rc<OwnedFd>) {
        self.arm_bell(key, &bell);
        self.bells.insert(key, bell);
    }

    /// Watches and rings the bells of this key no longer.
    pub fn forget_bell(&mut self, key: u64) {
        if self.bells.remove(&key).is_some() {
            self.push(opcode::AsyncCancel::new(BELL | key).build().user_data(FORGET));
        }
        // A write to an eventfd whose counter is full would otherwise wait for ever.
        if let Some(ringing) = self.ringing.get_mut(&key) {
            ringing.again = false;
            self.push(opcode::AsyncCancel::new(RUNG | key).build().user_data(FORGET));
        }
    }

    /// Rings an eventfd that another process shares, without ever waiting for it, with the next submission. Several rings that meet
    /// are one.
    pub fn ring_bell(&mut self, key: u64, bell: Rc<OwnedFd>) {
        match self.ringing.get_mut(&key) {
            Some(ringing) => ringing.again = true,
            None => {
                self.push(write_one(&bell).user_data(RUNG | key));
                self.ringing.insert(key, Ringing { bell, again: false });
            }
        }
    }

    /// True where there is something to submit or to take: told from shared memory, without a system call.
    pub fn has_news(&mut self) -> bool {
        let submissions = self.ring.submission();
        if !submissions.is_empty() || submissions.taskrun() || submissions.cq_overflow() {
            return true;
        }
        drop(submissions);
        !self.ring.completion().is_empty()
    }

    /// Waits until something happened, until `until`, or until the doorbell rings. `ready` is asked once more after the core
    /// counts as asleep: whoever rings the bell from then on wakes it.
    ///
    /// # Errors
    /// When the kernel refuses the wait, which ends the core.
    pub fn wait(&mut self, until: Option<Instant>, ready: impl FnOnce() -> bool) -> io::Result<()> {
        if until.is_some_and(|until| until <= Instant::now()) {
            return self.poll();
        }
        self.doorbell.asleep.store(true, Ordering::SeqCst);
        let waited = if ready() { self.poll() } else { self.sleep(until) };
        self.doorbell.asleep.store(false, Ordering::SeqCst);
        waited
    }

    /// Submits and takes what is there, without waiting.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn poll(&mut self) -> io::Result<()> {
        let pending = self.ring.submission().len() as u32;
        // SAFETY: no argument is passed, and every pushed entry points at memory that lives until it is submitted (see `push`).
        tolerate(unsafe { self.ring.submitter().enter::<()>(pending, 0, EnterFlags::GETEVENTS.bits(), None) })
    }

    /// Begins a wait that somebody else carries out, on `event`: an eventfd that is signalled when there is something to reap.
    /// False: there is already, or `ready` says so, and nothing is to be waited for.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn begin_wait_on(&mut self, event: &OwnedFd, ready: impl FnOnce() -> bool) -> io::Result<bool> {
        self.ring.submitter().register_eventfd(event.as_raw_fd())?;
        self.doorbell.asleep.store(true, Ordering::SeqCst);
        self.poll()?;
        Ok(!ready() && self.ring.completion().is_empty())
    }

    /// Ends a wait that [`Self::begin_wait_on`] began.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn end_wait_on(&mut self) -> io::Result<()> {
        self.doorbell.asleep.store(false, Ordering::SeqCst);
        self.ring.submitter().unregister_eventfd()?;
        self.poll()
    }

    fn sleep(&mut self, until: Option<Instant>) -> io::Result<()> {
        let timespec;
        if let Some(until) = until {
            // A timer that is armed for this very time serves again: each one that is armed is a wake-up.
            if self.timer.is_none_or(|armed| until < armed) {
                self.timer = Some(until);
                timespec = types::Timespec::from(until.saturating_duration_since(Instant::now()));
                // Read by the kernel in the call below, or in the one that `push` makes where the queue is full.
                self.push(opcode::Timeout::new(&timespec).build().user_data(TIMER));
            }
        }
        tolerate(self.ring.submit_and_wait(1))
    }

    /// Completions that wait to be handed out.
    pub fn depth(&mut self) -> usize {
        self.ring.completion().len()
    }

    /// Hands out what happened. The bytes of a receive are the callee's for the length of the call.
    pub fn reap(&mut self, mut each: impl FnMut(Completion<'_>)) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else {
                return;
            };
            let (mark, key) = (entry.user_data() & !(RECEIVE - 1), entry.user_data() & (RECEIVE - 1));
            match mark {
                RECEIVE => self.received(key, &entry, &mut each),
                WRITABLE => each(Completion::Writable { key }),
                BELL => self.rung(key, &entry, &mut each),
                RUNG => self.has_rung(key),
                FILE if cqueue::notif(entry.flags()) => {
                    if let Some((key, number)) = self.file_released(key) {
                        each(Completion::Released { key, number });
                    }
                }
                FILE if cqueue::more(entry.flags()) => {
                    let result = u32::try_from(entry.result());
                    let result = result.map_err(|_| io::Error::from_raw_os_error(-entry.result()));
                    if let Some(key) = self.file_held(key) {
                        each(Completion::Sent { key, result });
                    }
                }
                FILE | OUTSIDE => {
                    let result = if mark == FILE { entry.result() } else { -EFAULT };
                    if let Some((key, result)) = self.file_done(key, result) {
                        each(Completion::File { key, result });
                    }
                }
                WAKE if !cqueue::more(entry.flags()) => self.watch_doorbell(),
                TIMER => self.timer = self.timer.filter(|at| *at > Instant::now()),
                _ => {}
            }
        }
    }

    fn rung(&mut self, key: u64, entry: &cqueue::Entry, each: &mut impl FnMut(Completion<'_>)) {
        let Some(bell) = self.bells.get(&key).cloned() else {
            return;
        };
        if !cqueue::more(entry.flags()) && entry.result() >= 0 {
            self.arm_bell(key, &bell);
        }
        each(Completion::Bell { key });
    }

    fn has_rung(&mut self, key: u64) {
        let Some(Ringing { bell, again: true }) = self.ringing.remove(&key) else {
            return;
        };
        self.ring_bell(key, bell);
    }

    fn received(&mut self, key: u64, entry: &cqueue::Entry, each: &mut impl FnMut(Completion<'_>)) {
        let armed = cqueue::more(entry.flags());
        if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
            let length = usize::try_from(entry.result()).unwrap_or(0);
            if length > 0 {
                each(Completion::Received { key, bytes: self.buffers.received(buffer, length) });
            }
            self.buffers.give_back(buffer);
            if length > 0 {
                if !armed && self.is_received(key, Receive::Always) {
                    self.arm_again(key);
                }
                return;
            }
        }
        match -entry.result() {
            _ if armed => {}
            // Other sockets had all the buffers; they are back by the time this is submitted.
            ENOBUFS | EINTR | EAGAIN => self.arm_again(key),
            0 => self.end(key, None, each),
            errno => self.end(key, Some(io::Error::from_raw_os_error(errno)), each),
        }
    }

    fn end(&mut self, key: u64, error: Option<io::Error>, each: &mut impl FnMut(Completion<'_>)) {
        if self.receiving.remove(&key).is_some() {
            each(Completion::Ended { key, error });
        }
    }

    fn is_received(&self, key: u64, asked: Receive) -> bool {
        self.receiving.get(&key).is_some_and(|(_, how)| *how == asked)
    }

    fn arm_again(&mut self, key: u64) {
        if let Some((socket, how)) = self.receiving.get(&key).cloned() {
            self.arm_receive(key, &socket, how);
        }
    }

    fn arm_receive(&mut self, key: u64, socket: &OwnedFd, how: Receive) {
        let socket = types::Fd(socket.as_raw_fd());
        let receive = match how {
            Receive::Always => opcode::RecvMulti::new(socket, buffers::GROUP).build(),
            Receive::Once => opcode::Recv::new(socket, std::ptr::null_mut(), 0)
                .buf_group(buffers::GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
        };
        self.push(receive.user_data(RECEIVE | key));
    }

    fn arm_bell(&mut self, key: u64, bell: &OwnedFd) {
        let poll = opcode::PollAdd::new(types::Fd(bell.as_raw_fd()), readable()).multi(true).build();
        self.push(poll.user_data(BELL | key));
    }

    fn watch_doorbell(&mut self) {
        let event = types::Fd(self.doorbell.event.as_fd().as_raw_fd());
        let poll = opcode::PollAdd::new(event, readable()).multi(true).build();
        self.push(poll.user_data(WAKE));
    }

    /// Puts an entry into the queue, submitting what is there where it is full.
    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: the entries of this module point at no memory but a static, a timespec that its caller keeps until the
            // submit that follows, and what `files` keeps until the kernel is done; they name descriptors that `receiving`, `bells`,
            // `ringing`, `files` and `doorbell` keep open meanwhile.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                return;
            }
            if let Err(error) = self.ring.submit() {
                // Completions have to be taken first; the kernel keeps them (IORING_FEAT_NODROP) until there is room.
                debug_assert!(error.raw_os_error() == Some(EBUSY), "io_uring refuses to submit: {error}");
            }
        }
    }
}

const EINTR: i32 = rustix::io::Errno::INTR.raw_os_error();
const EAGAIN: i32 = rustix::io::Errno::AGAIN.raw_os_error();
const EFAULT: i32 = rustix::io::Errno::FAULT.raw_os_error();
const EBUSY: i32 = rustix::io::Errno::BUSY.raw_os_error();
const ETIME: i32 = rustix::io::Errno::TIME.raw_os_error();
const ENOBUFS: i32 = rustix::io::Errno::NOBUFS.raw_os_error();

fn write_one(bell: &OwnedFd) -> squeue::Entry {
    // An eventfd has no position.
    opcode::Write::new(types::Fd(bell.as_raw_fd()), ONE_RING.as_ptr(), ONE_RING.len() as u32).build()
}

fn readable() -> u32 {
    rustix::event::PollFlags::IN.bits() as u32
}

fn writable() -> u32 {
    rustix::event::PollFlags::OUT.bits() as u32
}

/// A wait that a signal or a full completion queue cut short is a short wait.
fn tolerate(waited: io::Result<usize>) -> io::Result<()> {
    match waited {
        Err(e) if !matches!(e.raw_os_error(), Some(EINTR | EAGAIN | EBUSY | ETIME)) => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
