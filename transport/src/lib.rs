//! How bytes move: the io_uring that a core waits on, and all of the native door: the messages, the frames around them on a Unix
//! socket, the shared-memory rings that carry them without system calls, and the client.
//!
//! | module | what |
//! |---|---|
//! | [`messages`] | what is said, in rkyv; `PROTOCOL.md` lists every byte |
//! | [`frame`] | what stands around a message on the socket |
//! | [`ring`] | a pair of one-way rings in shared memory, and the doorbells that wake who sleeps |
//! | [`credit`] | private runs of memory: small objects without a round trip |
//! | [`server`] | the node's side of a connection: state that a synchronous event loop drives, no I/O |
//! | [`checksum`] | CRC-32C |
//! | [`bulk`] | the bulk port: how objects travel between two nodes |
//! | [`peers`] | what native nodes say to each other beside the objects |
//! | [`client`] | the blocking client, the async one, and the worker |
//! | [`fault`] | where a client can be made to die, for tests |
//! | [`spill`] | files of spilled objects: their layout, writing, reading, checking |
//! | [`uring`] | the io_uring that a core waits on, and what comes through it |
//!
//! Nothing here knows a shard: identifiers are plain bytes, and the node converts.

pub mod bulk;
pub mod checksum;
pub mod client;
pub mod credit;
pub mod fault;
pub mod fds;
pub mod frame;
pub mod ids;
pub mod messages;
pub mod peers;
pub mod ring;
pub mod server;
pub mod spill;
pub mod uring;
