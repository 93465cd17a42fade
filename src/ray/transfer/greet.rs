//! The greeting of the bulk port, on both sides ([`raylet_transport::bulk::hello`]): after it a connection is a lane.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use raylet_shard::ids::NodeId;
pub(super) use raylet_transport::bulk::hello::Purpose;
use raylet_transport::bulk::hello::{
    is_proven, prove, Challenge, Hello, Refusal, Side, Verdict, CHALLENGE_BYTES, HELLO_BYTES, PROOF_BYTES,
    VERDICT_BYTES,
};
use raylet_transport::ids as wire;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Transfer;

/// Callers that are being greeted at once. Further ones are closed: they are not known yet, and may come again.
pub const GREETINGS_MAX: usize = 64;

/// Longest greeting, on either side.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// A lane on which what was sent is not acknowledged for so long is broken.
const ACKNOWLEDGED_WITHIN_MS: u32 = 30_000;

/// Pause after a connection that could not be accepted, for want of descriptors as a rule.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// Why a greeting came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    /// The connection can't be made, or broke.
    #[error("the bulk port can't be reached: {0}")]
    Io(#[from] io::Error),
    /// The other side took too long.
    #[error("the bulk port did not answer within {GREETING_TIMEOUT:?}")]
    Late,
    /// The other side refuses.
    #[error("the bulk port refuses: {0}")]
    Refused(Refusal),
    /// The other side can't show that it is of this cluster.
    #[error("the bulk port does not know this cluster's token, and is not trusted")]
    Unproven,
}

/// What both sides of a greeting know.
#[derive(Debug)]
pub struct Greeting {
    here: wire::NodeId,
    chunk_bytes: u64,
    /// The cluster's token; empty where there is none. Never printed.
    key: Key,
    is_open: bool,
    places: Arc<Semaphore>,
}

/// The connection of a lane, when its greeting is over.
#[derive(Debug)]
pub struct Greeted {
    /// The connection, one that blocks.
    pub socket: OwnedFd,
    /// The other node is of this host: chunks are lent.
    pub is_same_host: bool,
    /// The other node's segments, where it lends from them.
    pub lenders: Vec<OwnedFd>,
}

/// A native node that calls, let in.
#[derive(Debug)]
pub struct PeerCaller {
    /// Its id.
    pub node: NodeId,
    /// Where it calls from.
    pub address: SocketAddr,
    /// The connection.
    pub stream: std::net::TcpStream,
}

/// Where native nodes go that were let in.
#[derive(Clone, Debug)]
pub struct PeerDoor {
    /// To whoever serves them.
    pub callers: flume::Sender<PeerCaller>,
    /// How many are served; counted by whoever does that.
    pub served: Arc<AtomicUsize>,
    /// How many may be.
    pub served_max: usize,
}

impl PeerDoor {
    fn has_room(&self) -> bool {
        self.served.load(Ordering::Relaxed) < self.served_max
    }
}

/// A secret that is not printed.
struct Key(Vec<u8>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(redacted)")
    }
}

impl Greeting {
    /// Of this node. `is_open`: lanes are used at all.
    pub fn new(here: NodeId, chunk_bytes: u64, key: Vec<u8>, is_open: bool) -> Self {
        let places = Arc::new(Semaphore::new(GREETINGS_MAX));
        Self { here: wire::NodeId(here.0), chunk_bytes, key: Key(key), is_open, places }
    }

    /// Whether lanes are used.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Calls a node at its TCP port, for a lane.
    ///
    /// # Errors
    /// See [`GreetError`].
    pub async fn call(&self, address: &str, node: NodeId, session: u64) -> Result<Greeted, GreetError> {
        Ok(lane(self.greet(address, Purpose::Lane, wire::NodeId(node.0), session).await?)?)
    }

    /// Calls whatever native node is at an address, as its peer.
    ///
    /// # Errors
    /// See [`GreetError`].
    pub async fn call_peer(&self, address: &str) -> Result<TcpStream, GreetError> {
        self.greet(address, Purpose::Peer, wire::NodeId::NIL, 0).await
    }

    async fn greet(
        &self,
        address: &str,
        purpose: Purpose,
        to: wire::NodeId,
        session: u64,
    ) -> Result<TcpStream, GreetError> {
        let greeted = async {
            let mut stream = TcpStream::connect(address).await?;
            prepare(&stream)?;
            self.introduce(&mut stream, purpose, to, session).await?;
            let mut bytes = [0; VERDICT_BYTES];
            stream.read_exact(&mut bytes).await?;
            Verdict::decode(&bytes).map_err(GreetError::Refused)?;
            Ok(stream)
        };
        in_time(greeted).await
    }

    /// The caller's part of a greeting, up to its proof: the verdict follows.
    pub(super) async fn introduce(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        purpose: Purpose,
        to: wire::NodeId,
        session: u64,
    ) -> Result<(), GreetError> {
        let (chunk_bytes, from, nonce) = (self.chunk_bytes, self.here, rand::random());
        let hello = Hello { purpose, chunk_bytes, from, to, nonce, session }.encode();
        stream.write_all(&hello).await?;
        let mut bytes = [0; CHALLENGE_BYTES];
        stream.read_exact(&mut bytes).await?;
        let Challenge { nonce, proof } = Challenge::decode(&bytes).map_err(GreetError::Refused)?;
        if !is_proven(&self.key.0, Side::Called, &hello, &nonce, &proof) {
            return Err(GreetError::Unproven);
        }
        stream.write_all(&prove(&self.key.0, Side::Caller, &hello, &nonce)).await?;
        Ok(())
    }

    /// A place for a caller that is to be greeted.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Greets callers, until the node ends.
    pub(super) async fn serve(&self, listener: TcpListener, transfer: Rc<Transfer>) {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the bulk port is not served"),
        };
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let Some(place) = self.place() else {
                        tracing::warn!(%peer, GREETINGS_MAX, "too many callers of the bulk port at once: closing one");
                        continue;
                    };
                    let transfer = transfer.clone();
                    tokio::task::spawn_local(async move {
                        let greeting = transfer.greeting.clone();
                        match greeting.answer(stream, &transfer).await {
                            Ok((hello, stream)) => greeting.let_in(&hello, stream, peer, &transfer),
                            Err(error @ GreetError::Refused(Refusal::Itself)) => {
                                tracing::debug!(%peer, %error, "a greeting")
                            }
                            Err(error) => tracing::warn!(%peer, %error, "a caller of the bulk port was not let in"),
                        }
                        drop(place);
                    });
                }
                Err(error) => not_accepted(error).await,
            }
        }
    }

    /// A caller goes to where it belongs.
    fn let_in(&self, hello: &Hello, stream: TcpStream, address: SocketAddr, transfer: &Rc<Transfer>) {
        let node = NodeId(hello.from.0);
        let let_in = match hello.purpose {
            Purpose::Lane => lane(stream).map(|greeted| transfer.taken(node, hello.session, greeted)),
            Purpose::Peer => stream.into_std().map(|stream| {
                let caller = PeerCaller { node, address, stream };
                // Whoever serves peers ends with the node.
                let _ = transfer.peer_door.as_ref().map(|door| door.callers.send(caller));
            }),
        };
        if let Err(error) = let_in {
            tracing::warn!(%address, %error, "a caller of the bulk port was lost after its greeting");
        }
    }

    async fn answer(&self, mut stream: TcpStream, transfer: &Transfer) -> Result<(Hello, TcpStream), GreetError> {
        let greeted = async {
            prepare(&stream)?;
            let (hello, verdict) = self.hear(&mut stream, transfer).await?;
            stream.write_all(&Verdict::encode(verdict)).await?;
            verdict.map_err(GreetError::Refused)?;
            Ok((hello, stream))
        };
        in_time(greeted).await
    }

    /// The other side's part of a greeting, up to its verdict.
    pub(super) async fn hear(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        transfer: &Transfer,
    ) -> Result<(Hello, Result<(), Refusal>), GreetError> {
        let mut said = [0; HELLO_BYTES];
        stream.read_exact(&mut said).await?;
        let hello = Hello::decode(&said).and_then(|hello| {
            hello.check(&self.here, self.chunk_bytes)?;
            let has_room = match (hello.purpose, &transfer.peer_door) {
                (Purpose::Lane, _) => transfer.has_room_for_lane(),
                (Purpose::Peer, Some(door)) => door.has_room(),
                (Purpose::Peer, None) => return Err(Refusal::NoPeers),
            };
            has_room.then_some(hello).ok_or(Refusal::Full)
        });
        let hello = match hello {
            Ok(hello) => hello,
            Err(why) => {
                stream.write_all(&Challenge::refuse(why)).await?;
                return Err(GreetError::Refused(why));
            }
        };
        let nonce = rand::random();
        let proof = prove(&self.key.0, Side::Called, &said, &nonce);
        stream.write_all(&Challenge { nonce, proof }.encode()).await?;
        let mut proof = [0; PROOF_BYTES];
        stream.read_exact(&mut proof).await?;
        let is_proven = is_proven(&self.key.0, Side::Caller, &said, &nonce, &proof);
        Ok((hello, is_proven.then_some(()).ok_or(Refusal::Token)))
    }
}

/// A greeting, or what became of it in the time that one may take.
pub(super) async fn in_time<T>(greeted: impl Future<Output = Result<T, GreetError>>) -> Result<T, GreetError> {
    tokio::time::timeout(GREETING_TIMEOUT, greeted).await.unwrap_or(Err(GreetError::Late))
}

/// A caller could not be accepted: the next one is waited for a little later.
pub(super) async fn not_accepted(error: io::Error) {
    tracing::warn!(%error, "a connection to the bulk port could not be accepted");
    tokio::time::sleep(ACCEPT_RETRY).await;
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_user_timeout(stream, ACKNOWLEDGED_WITHIN_MS)?;
    Ok(())
}

/// io_uring waits by itself, on a connection that blocks.
fn lane(stream: TcpStream) -> io::Result<Greeted> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(Greeted { socket: stream.into(), is_same_host: false, lenders: Vec::new() })
}
