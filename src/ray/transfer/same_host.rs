//! Lanes between two nodes of one host: Unix sockets, over which chunks are lent and not sent.
//!
//! A node listens at a name in Linux's abstract namespace ([`socket_name`]), which is seen by those who share its network namespace. Who
//! wants an object of it calls there first, and at its TCP port where nobody answers. Both sides let only processes of the same user, or
//! root, do so, and the greeting is the same as over TCP. Its last word brings descriptors of the segments of the node called, which can
//! only be read from ([`raylet_transport::bulk::frame::Kind::Lent`] says what is done with them).

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::rc::Rc;

use raylet_shard::ids::NodeId;
use raylet_transport::bulk::hello::{socket_name, Verdict, VERDICT_BYTES};
use raylet_transport::fds;
use raylet_transport::frame::DESCRIPTORS_MAX;
use raylet_transport::ids as wire;
use raylet_tuning::Segment;
use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use super::greet::{GreetError, Greeted, Greeting, Purpose};
use super::Transfer;
use crate::peer;

/// The segments of this node, for others of its host to read.
#[derive(Debug)]
pub(super) struct Lending {
    listener: StdListener,
    segments: Vec<OwnedFd>,
}

impl Lending {
    /// Opens the socket of a node of this host, and its segments once more, to be read only.
    ///
    /// # Errors
    /// The system has no `/proc`, or somebody else has taken the socket's name: lanes are TCP connections then.
    pub(super) fn open<'a>(node: NodeId, segments: impl Iterator<Item = &'a Segment>) -> io::Result<Self> {
        let segments = segments.map(read_only).collect::<io::Result<Vec<_>>>()?;
        if segments.len() > DESCRIPTORS_MAX {
            let text = format!("{} segments, at most {DESCRIPTORS_MAX} can be lent from", segments.len());
            return Err(io::Error::other(text));
        }
        let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(socket_name(&wire::NodeId(node.0)))?)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, segments })
    }

    /// Greets callers, until the node ends.
    pub(super) async fn serve(self, transfer: Rc<Transfer>) {
        let listener = match UnixListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the bulk port is not served to nodes of this host"),
        };
        let segments: Rc<[OwnedFd]> = self.segments.into();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = peer::check(&stream) {
                        tracing::warn!(%error, "a node of this host was not let in at the bulk port");
                        continue;
                    }
                    let greeting = transfer.greeting.clone();
                    let Some(place) = greeting.place() else {
                        tracing::warn!("too many callers of the bulk port at once: closing one of this host");
                        continue;
                    };
                    let (transfer, segments) = (transfer.clone(), segments.clone());
                    tokio::task::spawn_local(async move {
                        match greeting.answer_here(stream, &segments, &transfer).await {
                            Ok((node, session, greeted)) => transfer.taken(node, session, greeted),
                            Err(error) => tracing::warn!(%error, "a node of this host was not let in at the bulk port"),
                        }
                        drop(place);
                    });
                }
                Err(error) => super::greet::not_accepted(error).await,
            }
        }
    }
}

/// A segment as a descriptor that can only be read from; and that can be read from at once, as all of it is in memory.
fn read_only(segment: &Segment) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&segment.fd()));
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

impl Greeting {
    /// Calls a node for a lane where it would listen on this host. `None`: it does not.
    ///
    /// # Errors
    /// See [`GreetError`].
    pub(super) async fn call_here(&self, node: NodeId, session: u64) -> Result<Option<Greeted>, GreetError> {
        let to = wire::NodeId(node.0);
        let Ok(mut stream) = UnixStream::connect(format!("\0{}", socket_name(&to))).await else {
            return Ok(None);
        };
        let greeted = async {
            peer::check(&stream).map_err(io::Error::other)?;
            self.introduce(&mut stream, Purpose::Lane, to, session).await?;
            let mut lenders = VecDeque::new();
            let said = receive_verdict(&stream, &mut lenders).await?;
            Verdict::decode(&said).map_err(GreetError::Refused)?;
            Ok(Some(Greeted { socket: blocking(stream)?, is_same_host: true, lenders: lenders.into() }))
        };
        super::greet::in_time(greeted).await
    }

    async fn answer_here(
        &self,
        mut stream: UnixStream,
        segments: &[OwnedFd],
        transfer: &Transfer,
    ) -> Result<(NodeId, u64, Greeted), GreetError> {
        let greeted = async {
            let (hello, verdict) = self.hear(&mut stream, transfer).await?;
            let verdict = verdict.and(match hello.purpose {
                Purpose::Lane => Ok(()),
                Purpose::Peer => Err(raylet_transport::bulk::hello::Refusal::NoHello),
            });
            let lent = if verdict.is_ok() { segments } else { &[] };
            send_verdict(&stream, &Verdict::encode(verdict), lent).await?;
            verdict.map_err(GreetError::Refused)?;
            let greeted = Greeted { socket: blocking(stream)?, is_same_host: true, lenders: Vec::new() };
            Ok((NodeId(hello.from.0), hello.session, greeted))
        };
        super::greet::in_time(greeted).await
    }
}

/// As a core's ring wants it.
fn blocking(stream: UnixStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

async fn send_verdict(stream: &UnixStream, said: &[u8], segments: &[OwnedFd]) -> io::Result<()> {
    let segments: Vec<_> = segments.iter().map(std::os::fd::AsFd::as_fd).collect();
    let mut sent = 0;
    while sent < said.len() {
        let lent = if sent == 0 { &segments[..] } else { &[] };
        let send = || fds::send(stream, &said[sent..], lent)?.ok_or(io::ErrorKind::WouldBlock.into());
        sent += stream.async_io(Interest::WRITABLE, send).await?;
    }
    Ok(())
}

async fn receive_verdict(stream: &UnixStream, lenders: &mut VecDeque<OwnedFd>) -> io::Result<[u8; VERDICT_BYTES]> {
    let (mut said, mut came) = ([0; VERDICT_BYTES], 0);
    while came < said.len() {
        let receive = || fds::receive(stream, &mut said[came..], lenders)?.ok_or(io::ErrorKind::WouldBlock.into());
        match stream.async_io(Interest::READABLE, receive).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => came += more,
        }
    }
    Ok(said)
}
