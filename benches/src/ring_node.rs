//! A node that answers at once and decides nothing: what is left is the transport. It serves one client.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use raylet_transport::credit::{Ledger, Piece};
use raylet_transport::fds;
use raylet_transport::ids::{NodeId, TaskId, WorkerId};
use raylet_transport::messages::{
    capability, ClassDefined, Contained, CreditGranted, Found, Granted, Place, Refusal, RefusalCode, Request,
    SegmentInfo, Welcome, HELLO_MAGIC, VERSION,
};
use raylet_transport::ring::{Doorbell, Record};
use raylet_transport::server::{Connection, ConnectionError, ReplyTo, DEFAULT_LIMITS};
use rustix::event::{poll, PollFd, PollFlags};

/// Memory that puts go round in.
const SEGMENT_BYTES: u64 = 64 << 20;

/// A running node; ends when it is dropped.
pub struct RingNode {
    client: Mutex<Option<UnixStream>>,
    stop: Arc<AtomicBool>,
    wake: Arc<Doorbell>,
    thread: Option<JoinHandle<()>>,
}

struct Serving {
    connection: Connection,
    socket: UnixStream,
    segment: OwnedFd,
    credit: Ledger,
    next_run: u64,
    record: Record,
}

impl RingNode {
    /// Starts it. `busy_poll`: it looks at its ring for ever.
    ///
    /// # Errors
    /// Where the machine has no sockets or memory left.
    pub fn start(busy_poll: bool) -> io::Result<Self> {
        let (client, socket) = UnixStream::pair()?;
        let segment = rustix::fs::memfd_create("segment", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&segment, SEGMENT_BYTES)?;
        let wake = Arc::new(Doorbell::new().map_err(io::Error::other)?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut serving = Serving {
            connection: Connection::new(DEFAULT_LIMITS),
            socket,
            segment,
            credit: Ledger::new(u32::MAX, u32::MAX),
            next_run: 0,
            record: Record::default(),
        };
        let (stopped, woken) = (stop.clone(), wake.clone());
        let thread =
            std::thread::spawn(
                move || {
                    while !stopped.load(Ordering::Relaxed) && serving.turn(&woken, busy_poll).is_ok() {}
                },
            );
        Ok(Self { client: Mutex::new(Some(client)), stop, wake, thread: Some(thread) })
    }

    /// The client's end.
    ///
    /// # Errors
    /// Where it was taken before.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let client = self.client.lock().ok().and_then(|mut client| client.take());
        client.ok_or_else(|| io::Error::other("this node serves one client"))
    }
}

impl Drop for RingNode {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.ring();
        if let Some(thread) = self.thread.take() {
            // It ended in its own way: the client has seen that.
            let _ = thread.join();
        }
    }
}

impl Serving {
    /// The ring, and where there is nothing in it, whatever else there is.
    fn turn(&mut self, wake: &Doorbell, busy_poll: bool) -> Result<(), ConnectionError> {
        let mut is_idle = true;
        while let Some(to) = self.connection.next_from_ring(&mut self.record)? {
            self.serve(to)?;
            is_idle = false;
        }
        if self.connection.must_ring() {
            let bell = self.connection.peer_bell().and_then(|bell| bell.try_clone_to_owned().ok());
            bell.map(Doorbell::from_fd).iter().for_each(Doorbell::ring);
        }
        if self.connection.has_ring() && (busy_poll || !is_idle || !self.connection.announce_sleep()?) {
            std::hint::spin_loop();
            return Ok(());
        }
        self.wait(wake);
        self.read_socket()
    }

    fn wait(&mut self, wake: &Doorbell) {
        let fds: [Option<BorrowedFd<'_>>; 3] =
            [Some(self.socket.as_fd()), Some(wake.as_fd()), self.connection.own_bell()];
        let mut fds: Vec<_> = fds.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        // A signal ends it early, which is harmless.
        let _ = poll(&mut fds, None);
        self.connection.awake();
    }

    fn read_socket(&mut self) -> Result<(), ConnectionError> {
        let (mut bytes, mut descriptors) = ([0; 16 << 10], VecDeque::new());
        // A client that is gone is seen when the node is dropped.
        if let Ok(Some(got)) = fds::receive(&self.socket, &mut bytes, &mut descriptors) {
            self.connection.on_bytes(&bytes[..got]);
        }
        while let Some(to) = self.connection.next_from_socket(&mut self.record)? {
            self.serve(to)?;
        }
        loop {
            let unsent = self.connection.unsent();
            let passed: Vec<_> = unsent.descriptors.iter().map(AsFd::as_fd).collect();
            match fds::send(&self.socket, unsent.bytes, &passed) {
                Ok(Some(sent)) if sent > 0 => self.connection.sent(sent),
                _ => return Ok(()),
            }
        }
    }

    fn serve(&mut self, to: ReplyTo) -> Result<(), ConnectionError> {
        let connection = &mut self.connection;
        match Request::read(self.record.head(), self.record.body())? {
            Request::Get(_) => {
                let place = Place { offset_bytes: 0, data_bytes: 1024, metadata_bytes: 0, segment: 0 };
                connection.reply(to, &Found { place })
            }
            Request::RequestLease(request) => {
                let (lease, worker) = (request.lease.to_native(), WorkerId([1; 28]));
                connection.reply(to, &Granted { lease, worker, allocation: Vec::new(), address: String::new() })
            }
            Request::ReturnLease(_) | Request::Release(_) => connection.done(to, 1),
            Request::Publish(publish) => {
                let (offset, data) = (publish.offset_bytes.to_native(), publish.data_bytes.to_native());
                match self.credit.publish(publish.credit.to_native(), offset, data, publish.metadata_bytes.to_native())
                {
                    Ok(_) => connection.done(to, 1),
                    Err(refusal) => connection.refuse(to, &refusal),
                }
            }
            Request::Contains(_) => connection.reply(to, &Contained { sealed: true }),
            Request::RequestCredit(request) => {
                let size_bytes = request.size_bytes.to_native();
                let offset_bytes = self.next_run;
                self.next_run = (self.next_run + u64::from(size_bytes)) % (SEGMENT_BYTES / 2);
                let credit = self.credit.grant(Piece { segment: 0, offset_bytes, size_bytes });
                connection.reply(to, &CreditGranted { offset_bytes, credit, segment: 0, size_bytes })
            }
            Request::ReturnCredit(back) => match self.credit.close_run(back.credit.to_native()) {
                Ok(_) => connection.done(to, 1),
                Err(refusal) => connection.refuse(to, &refusal),
            },
            Request::DefineClass(_) => connection.reply(to, &ClassDefined { class: 0 }),
            Request::OpenRing(open) => match connection.open_ring(to, open)? {
                Ok(()) => Ok(()),
                Err(refusal) => connection.refuse(to, &refusal),
            },
            Request::Hello(_) => {
                connection.greet();
                let welcome = Welcome {
                    magic: HELLO_MAGIC,
                    capabilities: capability::ALL,
                    client: 1,
                    version: VERSION.into(),
                    node: NodeId([1; 28]),
                    worker: WorkerId([2; 28]),
                    put_task: TaskId([3; 24]),
                    limits: DEFAULT_LIMITS,
                    segments: vec![SegmentInfo { segment: 0, size_bytes: SEGMENT_BYTES }],
                };
                match self.segment.try_clone() {
                    Ok(segment) => connection.reply_with(to, &welcome, vec![segment]),
                    Err(error) => connection.refuse(to, &Refusal::new(RefusalCode::Internal, error.to_string())),
                }
            }
            other => connection.refuse(to, &Refusal::new(RefusalCode::Unsupported, other.name())),
        }
    }
}
