//! The native door on a core: clients that speak the protocol of [`raylet_transport`], served from the core's own loop.
//!
//! A client's connection is a state machine ([`raylet_transport::server::Connection`]); here it meets the shards. A request becomes an
//! event for a shard, with a token that leads the shard's answer back ([`pending`]). On a client's own shard, on which its classes, its
//! credit and the objects that it names live, the answer is there before the call returns, and goes straight into the client's ring.
//!
//! | file | what is in it |
//! |---|---|
//! | `door.rs` | the clients of a core; bytes and rings in, answers and bells out; spinning and parking |
//! | `client.rs` | one client: what it holds, and what has to be given back at its end |
//! | `objects.rs`, `leases.rs`, `workers.rs` | its requests, and the shards' answers |
//! | `pending.rs` | requests without an answer yet |
//! | `siblings.rs` | what cores tell each other about each other's clients |
//! | `spills.rs` | leases that wait here and could have another node |
//! | `wishes.rs` | what is waited for and may be with another node |
//! | `control.rs`, `classes.rs`, `processes.rs` | the control thread's part: names, classes, workers that are started |
//! | `pins.rs` | workers that are bound to a NUMA node |

pub mod classes;
mod client;
pub mod control;
mod door;
mod leases;
mod objects;
mod pending;
mod pins;
mod processes;
mod siblings;
mod spills;
mod wishes;
mod workers;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use raylet_shard::ids as shard;
use raylet_shard::ids::{ClientId, ShardId, Token};
use raylet_transport::ids as wire;
use raylet_transport::messages::Limits;
use raylet_transport::server::DEFAULT_LIMITS;

use crate::bridge::{shard_of_object, CoreHandle, Requester, Socket};
use crate::near::Nears;
use crate::ray::accept::accept;

pub use door::Natives;
pub use leases::{lost, settle};
pub use objects::{answer, object_gone, object_lost, object_sealed, watched};
pub use siblings::NativePeer;
pub use wishes::{deps_over, wish_deps};

/// Set in the local part of a token of the native door; no other token has this bit and the next one clear.
const NATIVE_BIT: u64 = 1 << 46;

/// Set in the local part of the number under which a client's pins are held.
const KEEPER_BIT: u64 = 1 << 45;

/// True where a token is the native door's. Tokens of dependencies have the bit above it set (see [`crate::deps`]).
pub fn is_native(token: Token) -> bool {
    Requester::local(token) >> 46 == 1
}

/// True for the name of a native client of this node, as the owner of an object.
pub fn is_owner(core: &crate::core_loop::Core, worker: &shard::WorkerId) -> bool {
    core.native.shared().is_some_and(|shared| shared.client_of(worker).is_some())
}

/// What all cores know of the native door.
#[derive(Debug)]
pub struct NativeShared {
    /// The node's id.
    pub node: wire::NodeId,
    /// What the names of this node's clients begin with, and those of their objects.
    prefix: [u8; 16],
    /// What a connection may use.
    pub limits: Limits,
    /// How long a core looks at quiet rings before it sleeps; `None`: for ever.
    pub spin: Option<Duration>,
    /// The node has peers: what is not here may be there.
    pub has_peers: bool,
    /// Workers that the node starts are bound: the control thread is told of their leases.
    pub binds_workers: bool,
    /// By core: clients that want events of objects, and of the node.
    listeners: Vec<[AtomicU32; 2]>,
}

/// A place in [`NativeShared::listeners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topic {
    Objects = 0,
    Node = 1,
}

/// How the native door is opened.
#[derive(Clone, Debug)]
pub struct NativeSettings {
    /// Its socket.
    pub socket: PathBuf,
    /// How long a core looks at quiet rings before it sleeps; `None`: for ever.
    pub spin: Option<Duration>,
    /// What starts a worker: program and arguments. Empty: workers come by themselves.
    pub worker_command: Vec<String>,
    /// The node has peers: what is not here may be there.
    pub has_peers: bool,
}

impl NativeShared {
    /// For a node of so many cores.
    pub fn new(
        node: shard::NodeId,
        prefix: [u8; 16],
        cores: usize,
        settings: &NativeSettings,
        binds_workers: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            node: wire::NodeId(node.0),
            prefix,
            limits: DEFAULT_LIMITS,
            spin: settings.spin,
            has_peers: settings.has_peers,
            binds_workers,
            listeners: (0..cores).map(|_| Default::default()).collect(),
        })
    }

    /// The name of a client as an owner: from it everybody knows the core that serves it.
    fn worker_of(&self, client: ClientId) -> shard::WorkerId {
        let mut id = [0; shard::WorkerId::LEN];
        id[..16].copy_from_slice(&self.prefix);
        id[16..24].copy_from_slice(&client.to_le_bytes());
        shard::WorkerId(id)
    }

    /// The client of this node that bears a name.
    fn client_of(&self, worker: &shard::WorkerId) -> Option<ClientId> {
        let (prefix, rest) = worker.0.split_at(16);
        let number = rest[..8].try_into().ok().filter(|_| prefix == self.prefix && rest[8..] == [0; 4])?;
        Some(ClientId::from_le_bytes(number))
    }

    /// A task to name objects with that live on the client's own shard.
    fn task_of(&self, client: ClientId, number: u32, own: ShardId) -> wire::TaskId {
        let shards = self.listeners.len() as ShardId;
        let mut task = [0; wire::TaskId::LEN];
        task[..8].copy_from_slice(&self.prefix[..8]);
        task[8..16].copy_from_slice(&client.to_le_bytes());
        task[16..20].copy_from_slice(&number.to_le_bytes());
        // Each try meets the shard with a chance of one in their number.
        for salt in 0..u32::MAX {
            task[20..].copy_from_slice(&salt.to_le_bytes());
            if shard_of_object(&object(wire::ObjectId::of(wire::TaskId(task), 0)), shards) == own {
                break;
            }
        }
        wire::TaskId(task)
    }

    /// A client of a core wants events of a topic, or no longer does.
    fn listens(&self, core: ShardId, topic: Topic, wants: bool) {
        let count = &self.listeners[usize::from(core)][topic as usize];
        match wants {
            true => count.fetch_add(1, Ordering::Relaxed),
            false => count.fetch_sub(1, Ordering::Relaxed),
        };
    }

    /// Cores with clients that want events of a topic.
    fn listening(&self, topic: Topic) -> impl Iterator<Item = ShardId> + '_ {
        let wants = move |(core, counts): (usize, &[AtomicU32; 2])| {
            (counts[topic as usize].load(Ordering::Relaxed) > 0).then_some(core as ShardId)
        };
        self.listeners.iter().enumerate().filter_map(wants)
    }
}

/// Binds the door's socket for this user alone and hands its connections to the cores, in turn. Must run inside a `LocalSet`; the
/// door closes when the task ends.
///
/// # Errors
/// As [`crate::socket::listen`].
pub fn listen(
    settings: &NativeSettings,
    cores: Vec<CoreHandle>,
    nears: Nears,
) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let listener = crate::socket::listen(&settings.socket)?;
    Ok(accept(listener, Socket::Native, cores, nears))
}

/// The process at the other end of a socket; 0 where the system does not tell.
fn pid_of(socket: impl AsFd) -> u32 {
    rustix::net::sockopt::socket_peercred(socket).map_or(0, |peer| peer.pid.as_raw_nonzero().get() as u32)
}

fn object(id: wire::ObjectId) -> shard::ObjectId {
    shard::ObjectId(id.0)
}

fn to_wire(id: shard::ObjectId) -> wire::ObjectId {
    wire::ObjectId(id.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(cores: usize) -> Arc<NativeShared> {
        let settings =
            NativeSettings { socket: PathBuf::new(), spin: None, worker_command: Vec::new(), has_peers: false };
        NativeShared::new(shard::NodeId([1; 28]), [7; 16], cores, &settings, false)
    }

    #[test]
    fn a_clients_name_leads_to_it_and_no_other_name_does() {
        let shared = shared(2);
        let client = Requester::Shard(1).tag(99);
        let name = shared.worker_of(client);
        assert_eq!(shared.client_of(&name), Some(client));
        assert_eq!(shared.client_of(&shard::WorkerId([3; 28])), None);
        let mut other = name;
        other.0[27] = 1;
        assert_eq!(shared.client_of(&other), None);
    }

    #[test]
    fn objects_that_a_client_names_live_on_its_shard_and_no_two_tasks_are_equal() {
        let shared = shared(5);
        let mut seen = std::collections::HashSet::new();
        for own in 0..5 {
            for number in 0..20 {
                let task = shared.task_of(Requester::Shard(own).tag(3), number, own);
                for index in [0, 1, u32::MAX] {
                    assert_eq!(shard_of_object(&object(wire::ObjectId::of(task, index)), 5), own);
                }
                assert!(seen.insert(task));
            }
        }
    }

    #[test]
    fn tokens_of_the_door_are_told_from_those_of_dependencies() {
        assert!(is_native(Requester::Shard(3).tag(NATIVE_BIT | 5)));
        assert!(!is_native(Requester::Shard(3).tag(5)));
        assert!(!is_native(Requester::Shard(3).tag(1 << 47 | NATIVE_BIT)));
        assert!(!is_native(Requester::Control.tag(77)));
    }

    #[test]
    fn listeners_are_counted_by_core_and_topic() {
        let shared = shared(3);
        shared.listens(2, Topic::Objects, true);
        shared.listens(0, Topic::Node, true);
        assert_eq!(shared.listening(Topic::Objects).collect::<Vec<_>>(), [2]);
        shared.listens(2, Topic::Objects, false);
        assert_eq!(shared.listening(Topic::Objects).count(), 0);
        assert_eq!(shared.listening(Topic::Node).collect::<Vec<_>>(), [0]);
    }
}
