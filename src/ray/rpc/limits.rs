//! What the clients of a gRPC port may do on one connection, whoever serves it.

/// Streams that one connection may have open; a client that wants more waits.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 65_536;
/// What a client may send on one call before it has to wait.
pub const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// What it may send on all calls of a connection together before it has to wait.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
