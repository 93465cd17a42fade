//! The status of a node, as `raylet-uring status` prints it and `GET /status` on the admin socket serves it.
//!
//! Every struct is plain data: the node fills it on its control thread, the command line reads it back from JSON.
//! Fields that a newer node adds are ignored by an older command line and default when an older node lacks them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything that a node tells about itself at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// The version of raylet-uring (`CARGO_PKG_VERSION` of the running binary).
    pub version: String,
    /// The process id of the node.
    pub pid: u32,
    /// The node's id in hexadecimal (28 bytes under Ray); empty where the node has none.
    pub node_id: String,
    /// Seconds since the node finished its boot.
    pub uptime_s: f64,
    /// The doors that the node opened.
    pub doors: Vec<Door>,
    /// The logical CPUs that carry shards, in shard order.
    pub cores: Vec<u32>,
    /// One entry per shard, in shard order.
    pub shards: Vec<ShardStatus>,
    /// One entry per memory segment.
    pub arenas: Vec<ArenaStatus>,
    /// Directories for spilled objects; none where the node does not spill.
    pub spill: Vec<SpillStatus>,
    /// What goes to disk and comes back.
    pub spilling: SpillCounts,
    /// Leases over all shards.
    pub leases: LeaseCounts,
    /// Worker processes over all shards.
    pub workers: WorkerCounts,
    /// Drivers and workers, one by one, at most [`CLIENTS_MAX`].
    pub clients: Vec<ClientStatus>,
    /// Objects over all shards.
    pub objects: ObjectCounts,
    /// The node's resources by name ("CPU", "memory", ...).
    pub resources: BTreeMap<String, ResourceStatus>,
    /// Latencies by operation since the boot.
    pub operations: Vec<OperationStatus>,
    /// Objects that move between nodes.
    pub transfer: TransferStatus,
    /// The peers of a node of its own, in the order of its list.
    pub peers: Vec<PeerStatus>,
    /// Nodes that are connected to here as peers.
    pub peer_callers: u64,
    /// The addresses at which the node listens.
    pub sockets: Vec<SocketStatus>,
}

/// What was moved between this node and others, in bytes since the boot, and what is wanted now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferStatus {
    /// Connections of the bulk port, those that this node opened and those to it.
    pub lanes: u64,
    /// Received by the bulk port.
    pub lane_received_bytes: u64,
    /// Sent by the bulk port.
    pub lane_sent_bytes: u64,
    /// Received in Ray's way: Push calls.
    pub call_received_bytes: u64,
    /// Sent in Ray's way.
    pub call_sent_bytes: u64,
    /// Of what was sent either way: read from files, of objects that were on disk only.
    pub file_sent_bytes: u64,
    /// Of what was sent either way: of objects that were still being received.
    pub relay_sent_bytes: u64,
    /// Of what was received by the bulk port: copied from the memory of nodes of this host.
    pub same_host_received_bytes: u64,
    /// Of what was sent by the bulk port: lent to nodes of this host.
    pub same_host_sent_bytes: u64,
    /// Objects that are wanted from other nodes.
    pub pulls_wanted: u64,
    /// Of these, those that a node was asked for.
    pub pulls_asked: u64,
}

/// A node that a node of its own fetches objects from and sends leases to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    /// `host:port`, as in the list.
    pub address: String,
    /// "connected", "down", or "itself" where the list names the node that tells this.
    pub state: String,
    /// Why it is down; empty where it is not.
    pub why: String,
    /// Its id in hexadecimal; empty where it is not connected.
    pub node_id: String,
    /// The socket of its native door, on its machine; empty where it is not connected.
    pub socket: String,
    /// Seconds since it was connected to; 0 where it is not.
    pub connected_s: f64,
    /// How often it was connected to since the boot.
    pub connects: u64,
    /// It takes no new leases.
    pub draining: bool,
    /// Objects that came from it since the boot.
    pub received_objects: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// What it said on its link, besides the objects, in bytes.
    pub link_received_bytes: u64,
    /// What it was told, in bytes.
    pub link_sent_bytes: u64,
    /// What it has told of its resources.
    pub resources: BTreeMap<String, ResourceStatus>,
}

/// Drivers and workers that a status lists; leased ones are listed first.
pub const CLIENTS_MAX: usize = 512;

/// A driver or worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientStatus {
    /// Its process id.
    pub pid: u32,
    /// "driver", "actor", "worker" (leased for a task) or "idle".
    pub role: String,
    /// The shard that has it; 0 for a driver.
    pub shard: u32,
    /// Name of the task or actor class that its lease is for; empty without one.
    pub task: String,
    /// Seconds since its lease was granted; 0 without one.
    pub leased_s: f64,
}

/// A way into the node (DESIGN: two doors, one engine).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// Ray's own protocols: the node is a raylet of a Ray cluster.
    Ray,
    /// rkyv messages over a Unix socket.
    Native,
}

/// One shard: the state machine of one core.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShardStatus {
    /// The shard's number, from 0.
    pub index: u32,
    /// The logical CPU to which the shard's thread is pinned; 4294967295 where the kernel chooses.
    pub core: u32,
    /// Connections that the shard owns.
    pub connections: u64,
    /// Leases that are granted on this shard.
    pub leases_granted: u64,
    /// Lease requests that wait on this shard.
    pub leases_queued: u64,
    /// Objects in the shard's table.
    pub objects: u64,
    /// Bytes of those objects (data and metadata).
    pub object_bytes: u64,
    /// The queues of the shard by name.
    pub queues: Vec<QueueStatus>,
}

/// A bounded queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueStatus {
    /// The queue's name.
    pub name: String,
    /// Entries that wait now.
    pub depth: u64,
    /// The bound; 0 where the queue is bounded by something else than a count.
    pub limit: u64,
    /// How often the queue was full and pushed back, since the boot.
    pub full_count: u64,
}

/// One memory segment of the object store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArenaStatus {
    /// The segment's number, from 0.
    pub segment: u32,
    /// The segment's size in bytes.
    pub size_bytes: u64,
    /// The kind of pages that the segment got: "hugetlb-2M", "hugetlb-1G", "thp" or "4k".
    pub page_kind: String,
    /// The kind of pages that was asked for, in the same words.
    pub asked: String,
    /// Why the segment got another kind than the one asked for; `None` where it got what was asked for.
    pub fallback_reason: Option<String>,
    /// The NUMA node that was planned for the segment; `None` where none was, as on machines with one.
    pub numa_node: Option<u32>,
    /// Why the kernel did not take that preference; `None` where it did.
    pub numa_problem: Option<String>,
    /// Of a sample of touched pages, those on that NUMA node; 0 where it isn't bound.
    pub numa_pages_on_node: u64,
    /// Of the sample, those on other nodes: the node was full, or the kernel moved them.
    pub numa_pages_elsewhere: u64,
    /// Bytes whose pages exist already, so that a put doesn't fault.
    pub touched_bytes: u64,
    /// Bytes in use by objects, with the rounding of the allocator.
    pub used_bytes: u64,
}

/// A directory for spilled objects.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpillStatus {
    /// The directory.
    pub path: PathBuf,
    /// Its disk; `None` where that isn't a disk of this machine.
    pub disk: Option<String>,
    /// NUMA node of that disk.
    pub numa_node: Option<u32>,
    /// The shards that spill there first; the others do where their own directories take nothing.
    pub shards: Vec<u32>,
}

/// Objects that go to disk and come back, over all shards. Bytes are of data and metadata.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpillCounts {
    /// Objects with a copy on disk, in memory or not.
    pub on_disk_objects: u64,
    /// Their bytes.
    pub on_disk_bytes: u64,
    /// Objects that are being written.
    pub writing_objects: u64,
    /// Objects that wait to be read back, or are being read.
    pub restoring_objects: u64,
    /// Objects written since the boot.
    pub spilled_objects: u64,
    /// Their bytes.
    pub spilled_bytes: u64,
    /// Objects read back since the boot.
    pub restored_objects: u64,
    /// Their bytes.
    pub restored_bytes: u64,
    /// Files that could not be written, and objects that could not be read back, since the boot.
    pub failures: u64,
}

/// Leases by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseCounts {
    /// Leases that hold a worker now.
    pub granted: u64,
    /// Requests that wait for resources or a worker.
    pub queued: u64,
    /// Requests that this node can never satisfy with the resources that it has.
    pub infeasible: u64,
}

/// Worker processes by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerCounts {
    /// Registered and free.
    pub idle: u64,
    /// Started, not registered yet.
    pub starting: u64,
    /// Registered and leased, actors included.
    pub leased: u64,
    /// Driver connections.
    pub drivers: u64,
    /// Bound to the cores of a NUMA node (`pin_workers`).
    pub pinned: u64,
    /// All worker processes (without drivers).
    pub total: u64,
}

/// Objects by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectCounts {
    /// All objects in the store.
    pub count: u64,
    /// Those that are sealed.
    pub sealed: u64,
    /// Those that are pinned for their owner.
    pub pinned: u64,
    /// Bytes of data and metadata of all objects.
    pub bytes: u64,
    /// Create requests that wait for room.
    pub creates_queued: u64,
}

/// One resource of the node, in Ray's units (bytes for memory, counts otherwise).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceStatus {
    /// What the node has.
    pub total: f64,
    /// What is free now; negative while blocked workers' resources are lent out twice.
    pub available: f64,
}

/// The latency of one operation since the boot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperationStatus {
    /// The operation's name, for example "plasma.create".
    pub name: String,
    /// How often it was carried out.
    pub count: u64,
    /// Median in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile in microseconds.
    pub p999_us: f64,
    /// The slowest in microseconds.
    pub max_us: f64,
}

/// An address at which the node listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketStatus {
    /// What is served there, for example "plasma" or "node_manager".
    pub name: String,
    /// A path for a Unix socket, `host:port` for TCP.
    pub address: String,
}
