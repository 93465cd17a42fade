//! What a node tells about itself: its status, its latencies, its log, and the admin socket that serves them.

pub mod admin;
pub mod client;
pub mod figures;
pub mod histogram;
pub mod log;
pub mod metrics;
pub mod print;
pub mod ray_json;
pub mod runtime_dir;
#[cfg(feature = "otel")]
pub mod spans;
pub mod status;
