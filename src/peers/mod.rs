//! The peers of a node of its own: other nodes of this kind, without Ray.
//!
//! Each node has a list of the nodes that it fetches objects from and sends leases to, and connects to all of them: to the port on which
//! they serve [lanes](crate::bulk) too. On such a [`link`] the caller asks and the node called tells
//! ([`raylet_transport::peers`]); so between two nodes that have each other in their lists there are two. The token of the cluster
//! lets a node in, with challenge and response as on lanes.
//!
//! | file | what is in it |
//! |---|---|
//! | `link.rs` | one connection: messages in and out, signs of life |
//! | `dialed.rs` | the nodes of the list: connected to, lost, connected to again |
//! | `callers.rs` | nodes that connected to here: what they are told |
//! | `directory.rs` | what callers want to hear of: objects that are or will be here |
//! | `placing.rs` | which peer serves a lease that this node can't serve, or not now |
//! | `fetching.rs` | what is wanted here: who has it, and the pull manager that decides whom to ask |
//!
//! All of this is on the control thread. Bytes of objects travel on lanes, by the thread that moves objects.

mod callers;
mod dialed;
mod directory;
mod fetching;
mod link;
mod placing;

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::atomic::AtomicUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use raylet_shard::cluster::{Amounts, Views};
use raylet_shard::ids::{ClientId, LeaseId, NodeId, NowNs, ObjectId, Token};
use raylet_shard::pull::{Kind, WishId};
use raylet_shard::store::StoreEvent;
use raylet_transport::messages::Refusal;
use raylet_transport::peers::Resource;
use raylet_transport::server::ReplyTo;
use rustc_hash::FxHashMap;

use crate::bridge::{shard_of_object, CoreHandle, CoreReport, Requester, ToControl, ToCore};
use crate::config::Config;
use crate::engine::Engine;
use crate::native::control::NativeControl;
use crate::observe::status::{PeerStatus, TransferStatus};
use crate::ray::resources::Names;
use crate::ray::rpc::auth::{Auth, AuthError};
use crate::ray::transfer::greet::{Greeting, PeerDoor};
use crate::ray::transfer::{self, ToTransfer, TransferLink, TransferParts};

use callers::Callers;
use dialed::Dialed;
use directory::Directory;
use fetching::Fetching;
pub use placing::WaitingLease;

/// The port at which peers are served where nothing else is set.
pub const PORT_DEFAULT: u16 = 7_480;

/// Nodes that may be connected to here. Further ones are refused by name.
pub const CALLERS_MAX: usize = 4_096;

/// Bytes of a chunk of an object. Peers have to agree, so it is no setting; as Ray's default.
const CHUNK_BYTES: u64 = 5 << 20;

/// Bytes of chunks that may be on their way to others, as Ray's default.
const IN_FLIGHT_MAX_BYTES: u64 = 2 << 30;

/// How long a node that asked for an object waits where the object has gone meanwhile: it was told that it is here.
const PUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a node can't have peers.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The port can't be had.
    #[error("peer_listen (--peer-listen): cannot listen at {address}: {source}; choose another address or port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The token can't be read.
    #[error("the token of the peers: {0}")]
    Token(#[from] AuthError),
    /// Whoever reaches the port could read every object.
    #[error(
        "peers at {0} need a token: write one into a file and name it with --token-file on every node \
         (or set RAY_AUTH_TOKEN); without a token only an address of this machine can be served, like 127.0.0.1:{PORT_DEFAULT}"
    )]
    NoToken(SocketAddr),
    /// The thread that moves objects can't start.
    #[error("the thread that moves objects between nodes can't start: {0}")]
    Thread(std::io::Error),
}

/// From a core: what is wanted of peers.
#[derive(Debug)]
pub enum PeerAsk {
    /// Requests wait for objects that are not here.
    Want {
        /// What for.
        kind: Kind,
        /// Each request, and its object.
        objects: Vec<(Token, ObjectId)>,
    },
    /// Requests have their answers.
    Unwant {
        /// Which.
        wishes: Vec<Token>,
    },
    /// A queued lease waits for objects that are not here.
    WantDeps {
        /// The lease.
        lease: LeaseId,
        /// Which.
        objects: Vec<ObjectId>,
    },
    /// An object that a lease waits for is here; it waits for others yet.
    DepHere {
        /// The object.
        object: ObjectId,
    },
    /// It waits no longer.
    UnwantDeps {
        /// The lease.
        lease: LeaseId,
    },
    /// Leases wait for more than this node has free.
    Look {
        /// Which.
        waiting: Vec<WaitingLease>,
    },
    /// A request for a lease that this node can never serve.
    Elsewhere {
        /// Whose.
        client: ClientId,
        /// For the answer.
        to: ReplyTo,
        /// What it would hold.
        wanted: Arc<Amounts>,
        /// The answer where no peer can serve it either.
        why: Refusal,
    },
}

/// Where peers are served, and who they are.
#[derive(Debug)]
pub struct PeerSettings {
    /// The nodes of the list, as `host:port`.
    pub peers: Vec<String>,
    /// The port, bound.
    pub listener: TcpListener,
    /// Its address.
    pub address: SocketAddr,
    /// The token, where there is one.
    pub auth: Auth,
    /// Lanes to each node; 0: as many as cores.
    pub lanes: usize,
    /// Nodes that a large object is sent to at a time; 0: all that want it.
    pub fanout: usize,
    /// Peers of this host copy objects from each other's memory.
    pub same_host: bool,
}

impl PeerSettings {
    /// What the settings say of peers, with the port bound; `None` where this node has none and serves none.
    ///
    /// # Errors
    /// [`PeersError`]; each names what to change.
    pub fn of(config: &Config) -> Result<Option<Self>, PeersError> {
        if config.peers.is_empty() && config.peer_listen.is_none() {
            return Ok(None);
        }
        let address = config.peer_listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], PORT_DEFAULT)));
        let auth = match &config.token_file {
            Some(path) => Auth::from_file(path)?,
            None => Auth::from_env_if_any()?,
        };
        if auth.token().is_none() && !address.ip().is_loopback() {
            return Err(PeersError::NoToken(address));
        }
        let failed = |source| PeersError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (lanes, fanout, same_host) = (config.bulk_lanes, config.bulk_fanout, config.bulk_same_host);
        Ok(Some(Self { peers: config.peers.clone(), listener, address, auth, lanes, fanout, same_host }))
    }
}

/// The peers of this node.
pub struct Peers {
    node: NodeId,
    address: SocketAddr,
    cores: Vec<CoreHandle>,
    native: Rc<NativeControl>,
    names: Rc<RefCell<Names>>,
    capacity_bytes: u64,
    link: TransferLink,
    greeting: Greeting,
    started: Instant,
    tokens: Cell<u64>,
    dialed: RefCell<Vec<Dialed>>,
    callers: RefCell<Callers>,
    directory: RefCell<Directory>,
    fetching: RefCell<Fetching>,
    /// What peers have told of their resources.
    views: RefCell<Views>,
}

impl Peers {
    /// Serves peers and connects to those of the list. Must run inside a `LocalSet`.
    ///
    /// # Errors
    /// [`PeersError::Thread`].
    pub fn open(
        settings: PeerSettings,
        engine: &Engine,
        native: Rc<NativeControl>,
        names: Rc<RefCell<Names>>,
    ) -> Result<Rc<Self>, PeersError> {
        let (callers, let_in) = flume::unbounded();
        let door = PeerDoor { callers, served: Arc::new(AtomicUsize::new(0)), served_max: CALLERS_MAX };
        let node = native.node();
        let key = settings.auth.token().map(|token| token.secret().to_vec()).unwrap_or_default();
        let (link, news) = transfer::start(TransferParts {
            node_id: node,
            segments: engine.segments.clone(),
            files: engine.spill_shared.clone(),
            cores: engine.cores.clone(),
            listeners: Vec::new(),
            bulk_listeners: vec![settings.listener],
            peers: Some(door.clone()),
            lanes_per_node: transfer::lanes_per_node(settings.lanes, engine.cores.len()),
            fanout: settings.fanout,
            same_host: settings.same_host,
            lane_cores: engine.lane_shards.clone(),
            auth: settings.auth,
            tls: None,
            rpc_failure: String::new(),
            chunk_bytes: CHUNK_BYTES,
            in_flight_max_bytes: IN_FLIGHT_MAX_BYTES,
            push_timeout: PUSH_TIMEOUT,
        })
        .map_err(PeersError::Thread)?;
        let peers = Rc::new(Self {
            node,
            address: settings.address,
            cores: engine.cores.clone(),
            native,
            names,
            capacity_bytes: engine.capacity_bytes,
            link,
            greeting: Greeting::new(node, CHUNK_BYTES, key, true),
            started: Instant::now(),
            tokens: Cell::new(0),
            dialed: RefCell::new(settings.peers.into_iter().map(Dialed::new).collect()),
            callers: RefCell::new(Callers::new(door.served)),
            directory: RefCell::default(),
            fetching: RefCell::new(Fetching::new(engine.capacity_bytes)),
            views: RefCell::default(),
        });
        tokio::task::spawn_local(peers.clone().hear_transfers(news));
        tokio::task::spawn_local(peers.clone().serve_callers(let_in));
        tokio::task::spawn_local(peers.clone().tell_views());
        for index in 0..peers.dialed.borrow().len() {
            tokio::task::spawn_local(peers.clone().dial(index));
        }
        Ok(peers)
    }

    /// Where peers are served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes what a core tells about peers.
    pub fn take(self: &Rc<Self>, message: ToControl) {
        match message {
            ToControl::Peers(ask) => self.ask(ask),
            ToControl::Found { token, object, size_bytes } => self.found(token, object, size_bytes),
            _ => {}
        }
    }

    fn ask(self: &Rc<Self>, ask: PeerAsk) {
        match ask {
            PeerAsk::Want { kind, objects } => self.want(kind, &objects),
            PeerAsk::Unwant { wishes } => self.unwant(&wishes),
            PeerAsk::WantDeps { lease, objects } => {
                let wish = self.fetching.borrow_mut().wish_of(lease, || self.token());
                self.want_arguments(wish, objects);
            }
            PeerAsk::Look { waiting } => self.look_for_room(&waiting),
            PeerAsk::Elsewhere { client, to, wanted, why } => self.elsewhere(client, to, &wanted, why),
            PeerAsk::DepHere { object } => self.came(object),
            PeerAsk::UnwantDeps { lease } => {
                let wish: Option<WishId> = self.fetching.borrow_mut().wish_over(&lease);
                self.unwant(wish.as_slice());
            }
        }
    }

    /// Ends the thread that moves objects.
    pub fn close(&self) {
        self.link.send(ToTransfer::End);
    }

    /// The nodes of the list, for a status.
    pub fn status(&self) -> Vec<PeerStatus> {
        self.dialed_status()
    }

    /// Nodes that are connected to here.
    pub fn callers(&self) -> u64 {
        self.callers.borrow().len() as u64
    }

    /// What moves between this node and others.
    pub fn transfer_status(&self) -> TransferStatus {
        let stats = self.fetching.borrow().stats();
        TransferStatus { pulls_wanted: stats.wanted as u64, pulls_asked: stats.asked as u64, ..self.link.status() }
    }

    fn now(&self) -> NowNs {
        self.started.elapsed().as_nanos() as NowNs
    }

    /// A number that no other question of this thread has.
    fn token(&self) -> Token {
        self.tokens.set(self.tokens.get() + 1);
        Requester::Control.tag(self.tokens.get())
    }

    fn store(&self, object: &ObjectId, event: StoreEvent) {
        let shard = shard_of_object(object, self.cores.len() as u16);
        self.cores[usize::from(shard)].send(ToCore::Store(event));
    }

    /// What this node has, from the accounts of all cores.
    fn resources(&self, reports: &[CoreReport]) -> Vec<Resource> {
        let names = self.names.borrow();
        let mut parts: FxHashMap<&str, (i64, i64)> = FxHashMap::default();
        for part in reports.iter().flat_map(|report| &report.sched.resources) {
            let (total, free) = parts.entry(names.name(part.id)).or_default();
            *total = part.total.0;
            *free += part.free.0;
        }
        // A total is never negative; what is free is where workers went on that had lent theirs.
        let amount = |steps: i64| u64::try_from(steps).unwrap_or(0);
        let resource = |(name, (total, free)): (&str, (i64, i64))| Resource {
            name: name.to_owned(),
            total: amount(total),
            free: amount(free),
        };
        let mut resources: Vec<Resource> = parts.into_iter().map(resource).collect();
        resources.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        resources
    }
}

/// The store's client that waits for objects that callers want to hear of.
fn watcher() -> ClientId {
    Requester::Control.tag(1)
}

/// The store's client that makes empty objects, of which nothing travels.
fn maker() -> ClientId {
    Requester::Control.tag(2)
}

fn here(object: raylet_transport::ids::ObjectId) -> ObjectId {
    ObjectId(object.0)
}

fn wire(object: ObjectId) -> raylet_transport::ids::ObjectId {
    raylet_transport::ids::ObjectId(object.0)
}
