//! A connection that several threads use: one drives it at a time, the others wait for that one.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{epoll, Timespec};

use super::link::Link;
use super::puts::Puts;
use super::slots::{Ticket, Undo};
use super::{ClientError, Options};
use crate::ids::{NodeId, WorkerId};
use crate::messages::{Limits, Message, OwnedReply, Refusal};

/// Looks at the ring between two looks at the clock.
const SPINS: u32 = 32;
/// Looks at the clock between two looks at the socket, which tells of the node's death: about a millisecond.
const CLOCKS_PER_SOCKET: u32 = 1024;
/// A thread that waits for the one that drives looks by itself after this.
const FOLLOW: Duration = Duration::from_millis(100);
/// A thread that sleeps beside an async driver looks by itself after this: the driver may have taken in what it waits for.
const BESIDE_DRIVER: Duration = Duration::from_millis(1);

/// What all handles of a connection share.
pub(crate) struct Shared {
    pub(super) state: Mutex<State>,
    /// The driver has brought something in, or stopped.
    changed: Condvar,
    /// Threads that want the lock.
    contenders: AtomicUsize,
    epoll: Arc<OwnedFd>,
    pub(crate) options: Options,
    pub(crate) about: About,
}

/// What the node said at the beginning.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) node: NodeId,
    pub(crate) worker: WorkerId,
    pub(crate) client: u64,
    pub(crate) capabilities: u64,
    pub(crate) limits: Limits,
}

pub(crate) struct State {
    pub(crate) link: Link,
    pub(crate) puts: Puts,
    /// The client's numbers of leases.
    pub(crate) next_lease: u32,
    /// Classes that the node has numbered, by their name.
    pub(crate) classes: HashMap<String, Vec<KnownClass>>,
    /// A thread sleeps for all.
    driving: bool,
    /// The async client's driver sleeps, or is about to, on what was announced.
    pub(crate) driver_sleeps: bool,
    followers: usize,
}

/// A class and its number.
pub(crate) struct KnownClass {
    pub(crate) resources: Vec<(String, u64)>,
    pub(crate) number: u32,
}

impl State {
    /// Takes in what has come, unless a thread sleeps for it: that thread would sleep on, with its answer taken in by another.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<(), ClientError> {
        match self.driving {
            true => Ok(()),
            false => self.link.poll(),
        }
    }

    pub(crate) fn new(link: Link, puts: Puts) -> Self {
        Self { link, puts, next_lease: 0, classes: HashMap::new(), driving: false, driver_sleeps: false, followers: 0 }
    }
}

impl State {
    /// The announcement that a sleeping driver relies on was taken back by a thread that slept too, or has to say more: it is made again.
    pub(crate) fn announce_for_driver(&mut self) -> Result<(), ClientError> {
        while self.driver_sleeps && !self.link.announce_sleep(self.link.has_waiting())? {
            self.link.awake();
            self.link.poll_all()?;
        }
        Ok(())
    }
}

pub(crate) type Guard<'a> = MutexGuard<'a, State>;

impl Shared {
    pub(crate) fn new(state: State, options: Options, about: About) -> Arc<Self> {
        let epoll = state.link.epoll();
        let (changed, contenders) = (Condvar::new(), AtomicUsize::new(0));
        Arc::new(Self { state: Mutex::new(state), changed, contenders, epoll, options, about })
    }

    /// One descriptor that is readable when there is something to do.
    pub(crate) fn epoll(&self) -> &Arc<OwnedFd> {
        &self.epoll
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_> {
        if let Ok(state) = self.state.try_lock() {
            return state;
        }
        self.contenders.fetch_add(1, Ordering::Relaxed);
        // A thread that panicked with the lock has left nothing half done that another would stumble over.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.contenders.fetch_sub(1, Ordering::Relaxed);
        state
    }

    /// Sends a request and waits for its answer.
    #[inline]
    pub(crate) fn call<M: Message>(&self, message: &M, undo: Undo) -> Result<OwnedReply, ClientError> {
        let (state, ticket) = self.submit(self.lock(), message, undo)?;
        let (_state, answer) = self.answer(state, ticket)?;
        refusal_of(M::NAME, *answer)
    }

    /// Waits for an answer.
    pub(crate) fn answer<'a>(
        &'a self,
        state: Guard<'a>,
        ticket: Ticket,
    ) -> Result<(Guard<'a>, Box<OwnedReply>), ClientError> {
        self.wait(state, None, false, |state| state.link.slots.take(ticket).map(Ok))
    }

    /// Sends a request, waiting for room if need be.
    #[inline]
    pub(crate) fn submit<'a, M: Message>(
        &'a self,
        mut state: Guard<'a>,
        message: &M,
        undo: Undo,
    ) -> Result<(Guard<'a>, Ticket), ClientError> {
        let sent = state.link.submit(message, undo)?;
        let (mut state, ticket) = match sent {
            Some(ticket) => (state, ticket),
            None => self.wait(state, None, true, |state| state.link.submit(message, undo).transpose())?,
        };
        state.link.flush()?;
        Ok((state, ticket))
    }

    /// Sends a message that is answered only where it fails, waiting for room if need be.
    #[inline]
    pub(crate) fn one_way<'a, M: Message>(
        &'a self,
        mut state: Guard<'a>,
        message: &M,
    ) -> Result<Guard<'a>, ClientError> {
        if !state.link.one_way(message)? {
            let sent = |state: &mut State| state.link.one_way(message).map(|sent| sent.then_some(())).transpose();
            (state, ()) = self.wait(state, None, true, sent)?;
        }
        state.link.flush()?;
        Ok(state)
    }

    /// Waits until `ready` has something, or the connection is dead, or the time is over.
    pub(crate) fn wait<'a, T>(
        &'a self,
        mut state: Guard<'a>,
        deadline: Option<Instant>,
        for_room: bool,
        mut ready: impl FnMut(&mut State) -> Option<Result<T, ClientError>>,
    ) -> Result<(Guard<'a>, T), ClientError> {
        let mut spin_until = None;
        loop {
            let polled = state.look();
            let found = ready(&mut state);
            if state.followers > 0 {
                self.changed.notify_all();
            }
            if let Some(found) = found {
                return found.map(|found| (state, found));
            }
            polled?;
            state.link.check()?;
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(ClientError::TimedOut);
            }
            if state.driving {
                state = self.follow(state, deadline);
                continue;
            }
            state.link.flush()?;
            if state.link.has_ring() || self.options.busy_poll {
                let until = *spin_until.get_or_insert_with(|| Instant::now() + self.options.spin);
                let is_over;
                (state, is_over) = self.spin(state, until, deadline, for_room)?;
                if !is_over {
                    continue;
                }
            }
            state = self.sleep(state, deadline, for_room)?;
            spin_until = None;
        }
    }

    /// Looks at the ring until something came, or there may be room, or the time is over (`true`).
    fn spin<'a>(
        &'a self,
        mut state: Guard<'a>,
        until: Instant,
        deadline: Option<Instant>,
        for_room: bool,
    ) -> Result<(Guard<'a>, bool), ClientError> {
        let mut clocks = 0u32;
        loop {
            let before = state.link.news();
            for _ in 0..SPINS {
                std::hint::spin_loop();
                state.link.poll()?;
                if state.link.news() != before {
                    return Ok((state, false));
                }
            }
            clocks += 1;
            if clocks.is_multiple_of(CLOCKS_PER_SOCKET) {
                state.link.poll_all()?;
            }
            let now = Instant::now();
            let is_over = !self.options.busy_poll && now >= until;
            if is_over || for_room || deadline.is_some_and(|deadline| now >= deadline) {
                return Ok((state, is_over));
            }
            if self.contenders.load(Ordering::Relaxed) > 0 {
                drop(state);
                std::hint::spin_loop();
                return Ok((self.lock(), false));
            }
        }
    }

    /// Waits for the thread that drives.
    fn follow<'a>(&'a self, mut state: Guard<'a>, deadline: Option<Instant>) -> Guard<'a> {
        let left = deadline.map_or(FOLLOW, |deadline| deadline.saturating_duration_since(Instant::now()).min(FOLLOW));
        state.followers += 1;
        let (mut state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        state.followers -= 1;
        state
    }

    /// Sleeps until there is something for anybody.
    fn sleep<'a>(
        &'a self,
        mut state: Guard<'a>,
        deadline: Option<Instant>,
        for_room: bool,
    ) -> Result<Guard<'a>, ClientError> {
        if state.driving || !state.link.announce_sleep(for_room)? {
            return Ok(state);
        }
        state.driving = true;
        let beside = state.driver_sleeps.then_some(BESIDE_DRIVER);
        drop(state);
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.into_iter().chain(beside).min();
        let woken = wait_readable(&self.epoll, left);
        let mut state = self.lock();
        state.driving = false;
        state.link.awake();
        let polled = woken.and_then(|()| state.link.poll_all()).and_then(|()| state.announce_for_driver());
        if state.followers > 0 {
            self.changed.notify_all();
        }
        // What died is told by the next look; what came before it is not lost.
        if let (Err(error), Ok(())) = (polled, state.link.check()) {
            return Err(error);
        }
        Ok(state)
    }
}

/// Waits for a descriptor, at most so long.
fn wait_readable(epoll: &OwnedFd, left: Option<Duration>) -> Result<(), ClientError> {
    let limit = left.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 2];
    match epoll::wait(epoll, &mut events, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(ClientError::io("waiting for the node")(error.into())),
    }
}

/// An answer that is a refusal is an error.
#[inline]
pub(crate) fn refusal_of(what: &'static str, answer: OwnedReply) -> Result<OwnedReply, ClientError> {
    match answer {
        OwnedReply::Refused(refused) => {
            Err(ClientError::Refused { what, refusal: Refusal::from_wire(refused.code, &refused.detail) })
        }
        answer => Ok(answer),
    }
}

/// The answer that was due, or an error.
macro_rules! due {
    ($answer:expr, $name:ident) => {
        match $answer {
            $crate::messages::OwnedReply::$name(answer) => Ok(answer),
            other => Err($crate::client::ClientError::Unexpected {
                expected: stringify!($name),
                got: other.name().to_owned(),
            }),
        }
    };
}

pub(crate) use due;
