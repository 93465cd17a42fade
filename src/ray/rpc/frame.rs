//! gRPC messages inside HTTP/2 bodies: a flag byte, a big-endian length of four bytes, and a protobuf message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;
use tonic::{Code, Status};

/// Flag byte and length, in bytes.
pub const PREFIX_BYTES: usize = 5;

/// Largest message that is sent or taken: Ray 2.60's `max_grpc_message_size`, 512 MiB.
pub const MAX_MESSAGE_SIZE_BYTES: usize = 512 * 1024 * 1024;

/// Largest buffer that the length prefix of an unfinished message can have reserved ahead of its bytes.
const RESERVE_LIMIT_BYTES: usize = 4 * 1024 * 1024;

/// Encodes one message with its prefix.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` when it is larger than [`MAX_MESSAGE_SIZE_BYTES`].
pub fn encode<M: Message>(message: &M) -> Result<Bytes, Status> {
    let len = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + len);
    buffer.put_slice(&frame_prefix(len)?);
    message.encode_raw(&mut buffer);
    Ok(buffer.freeze())
}

/// What stands before a message of this length.
///
/// # Errors
/// As [`encode`].
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

/// Reads messages off a body. A message that lies in one HTTP/2 frame is not copied.
pub struct FrameReader {
    body: Incoming,
    /// Received and not yet taken, while it lies in one piece.
    chunk: Bytes,
    /// The same, once a message has turned out to span several frames.
    partial: BytesMut,
    trailers: Option<HeaderMap>,
}

impl FrameReader {
    /// Reads from this body.
    pub fn new(body: Incoming) -> Self {
        Self { body, chunk: Bytes::new(), partial: BytesMut::new(), trailers: None }
    }

    /// The next message's bytes, or `None` at the end of the stream.
    ///
    /// # Errors
    /// The status that the breakage amounts to: a body cut off in a message, a compressed or oversized message, a stream
    /// reset by the peer, a lost connection.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                return self.end();
            };
            match frame.map_err(|e| Status::from_error(Box::new(e)))?.into_data() {
                Ok(data) => self.push(data),
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    return self.end();
                }
            }
        }
    }

    /// The only message of a unary call.
    ///
    /// # Errors
    /// As [`Self::next`]; `INTERNAL` when there is none or more than one.
    pub async fn only(&mut self) -> Result<Bytes, Status> {
        let missing = || Status::new(Code::Internal, "missing message of a unary call");
        let message = self.next().await?.ok_or_else(missing)?;
        let at_end = self.chunk.is_empty() && hyper::body::Body::is_end_stream(&self.body);
        if !at_end && self.next().await?.is_some() {
            return Err(Status::new(Code::Internal, "more than one message in a unary call"));
        }
        Ok(message)
    }

    /// The trailers, once [`Self::next`] has returned `None`.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    fn end(&self) -> Result<Option<Bytes>, Status> {
        if self.chunk.is_empty() && self.partial.is_empty() {
            return Ok(None);
        }
        Err(Status::new(Code::Internal, "stream ended within a message"))
    }

    fn push(&mut self, data: Bytes) {
        if self.chunk.is_empty() && self.partial.is_empty() {
            self.chunk = data;
            return;
        }
        if !self.chunk.is_empty() {
            let head = std::mem::take(&mut self.chunk);
            let wanted = prefix_len(&head).unwrap_or(0).min(RESERVE_LIMIT_BYTES);
            self.partial.reserve(wanted.max(head.len() + data.len()));
            self.partial.extend_from_slice(&head);
        }
        self.partial.extend_from_slice(&data);
    }

    fn take_message(&mut self) -> Result<Option<Bytes>, Status> {
        let held: &[u8] = if self.partial.is_empty() { &self.chunk } else { &self.partial };
        let Some(total) = expected(held)? else {
            return Ok(None);
        };
        if held.len() < total {
            return Ok(None);
        }
        let mut message =
            if self.partial.is_empty() { self.chunk.split_to(total) } else { self.partial.split_to(total).freeze() };
        message.advance(PREFIX_BYTES);
        Ok(Some(message))
    }
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
fn prefix_len(held: &[u8]) -> Option<usize> {
    let prefix = held.get(..PREFIX_BYTES)?;
    let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    Some(PREFIX_BYTES + len as usize)
}
