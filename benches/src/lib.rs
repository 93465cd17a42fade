//! Load generators for a raylet, stock or ours: what a driver does to it, without the driver's own cost.
//!
//! | generator | what it does |
//! |---|---|
//! | [`lease_load`] | `RequestWorkerLease` and `ReturnWorkerLease` over gRPC, a chosen number in flight, one or many resource shapes |
//! | [`plasma_load`] | create, seal, release, get, contains and delete on the store's socket |
//! | [`floor`] | the least work that is an answer, on a Unix socket, without a raylet |
//! | [`stream`] | one plain TCP stream between two processes, without a raylet |
//! | [`disk`] | blocks written to a file past the page cache and read again, without a raylet |
//! | [`native`] | the native door of a running node, or of one that it starts |
//! | [`suite`] | all rows of the native door that are promised |
//! | [`ring`] | the native door's transport by itself, beside the machine's limits |
//!
//! The first five print one JSON object. Where they are told the raylet's process id they also say what CPU it spent
//! ([`cpu_clock`]).

pub mod cpu_clock;
pub mod disk;
pub mod floor;
pub mod hex;
pub mod latency;
pub mod lease_load;
pub mod native;
mod native_node;
mod node_manager;
pub mod plasma_client;
pub mod plasma_load;
pub mod ring;
mod ring_node;
pub mod stream;
pub mod suite;

pub use node_manager::NodeManager;

/// Why a run can't be measured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A socket failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The token can't be used.
    #[error(transparent)]
    Auth(#[from] raylet_uring::ray::rpc::auth::AuthError),
    /// The transport could not be measured.
    #[error(transparent)]
    Ring(#[from] ring::RingError),
    /// The client of the native door failed.
    #[error("the native door: {0}")]
    Native(#[from] raylet_transport::client::ClientError),
    /// A connection broke.
    #[error("{what}: {source}")]
    Http2 {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: h2::Error,
    },
    /// A call failed.
    #[error("{method} failed with gRPC status {}: {message}", .code.as_deref().unwrap_or("(none)"))]
    Call {
        /// The gRPC method.
        method: &'static str,
        /// Its status.
        code: Option<String>,
        /// What the raylet says about it.
        message: String,
    },
    /// The raylet answered a lease request with something else than a lease.
    #[error("RequestWorkerLease was not granted: {0}")]
    NotGranted(String),
    /// Requests were neither granted nor cancelled in the time given.
    #[error(
        "{left} lease requests were neither granted nor cancelled {waited_s:.1} s after the end: the raylet holds them"
    )]
    Stuck {
        /// How many.
        left: usize,
        /// How long, in seconds.
        waited_s: f64,
    },
    /// The store sent a message that can't be read.
    #[error(transparent)]
    Wire(#[from] raylet_uring::ray::wire::WireError),
    /// The store's stream is out of step.
    #[error(transparent)]
    Frame(#[from] raylet_uring::ray::wire::frame::FrameError),
    /// The store didn't pass a segment.
    #[error(transparent)]
    Fd(#[from] raylet_uring::ray::wire::fdpass::FdPassError),
    /// The store answered with an error, or with an answer to another question.
    #[error("{request}: expected {expected}, got {got}")]
    Answer {
        /// The request.
        request: &'static str,
        /// What should have come.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// A setting that makes no sense.
    #[error("{setting}: expected {expected}, got {got}")]
    Setting {
        /// The flag.
        setting: &'static str,
        /// What it takes.
        expected: &'static str,
        /// What it got.
        got: String,
    },
}

impl LoadError {
    /// An I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }
}
