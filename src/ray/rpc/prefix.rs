//! What stands before each gRPC message in a body: a flag byte and a big-endian length of four bytes.

use tonic::{Code, Status};

/// Flag byte and length, in bytes.
pub const PREFIX_BYTES: usize = 5;

/// Largest message that is sent or taken: Ray 2.60's `max_grpc_message_size`, 512 MiB.
pub const MAX_MESSAGE_SIZE_BYTES: usize = 512 * 1024 * 1024;

/// What stands before a message of this length.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` when it is larger than [`MAX_MESSAGE_SIZE_BYTES`].
pub fn frame_prefix(len: usize) -> Result<[u8; PREFIX_BYTES], Status> {
    check_size("sent", len)?;
    let [a, b, c, d] = (len as u32).to_be_bytes();
    Ok([0, a, b, c, d])
}

fn check_size(what: &str, len: usize) -> Result<(), Status> {
    if len <= MAX_MESSAGE_SIZE_BYTES {
        return Ok(());
    }
    let text = format!("message {what} is larger than max ({len} vs. {MAX_MESSAGE_SIZE_BYTES} bytes)");
    Err(Status::new(Code::ResourceExhausted, text))
}

/// Prefix and message together, in bytes, once the prefix of the first message in `held` is complete.
///
/// # Errors
/// A compressed message, or one larger than [`MAX_MESSAGE_SIZE_BYTES`].
pub fn expected(held: &[u8]) -> Result<Option<usize>, Status> {
    let Some(total) = prefix_len(held) else {
        return Ok(None);
    };
    if held[0] != 0 {
        let text = "compressed messages are not supported: send them with the identity encoding";
        return Err(Status::new(Code::Unimplemented, text));
    }
    check_size("received", total - PREFIX_BYTES)?;
    Ok(Some(total))
}

/// Prefix and message together, in bytes, once the prefix is complete.
pub fn prefix_len(held: &[u8]) -> Option<usize> {
    let prefix = held.get(..PREFIX_BYTES)?;
    let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    Some(PREFIX_BYTES + len as usize)
}
