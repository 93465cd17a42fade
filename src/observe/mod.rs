//! What a node tells about itself: its status, its latencies, its log, and the admin socket that serves them.

pub mod status;
