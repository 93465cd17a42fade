//! gRPC messages inside the HTTP/2 bodies of hyper.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;

use super::prefix::{expected, frame_prefix, prefix_len, PREFIX_BYTES};
use super::status;

/// Largest buffer that the length prefix of an unfinished message can have reserved ahead of its bytes.
const RESERVE_LIMIT_BYTES: usize = 4 * 1024 * 1024;

/// Encodes one message with its prefix.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` when it is larger than [`MAX_MESSAGE_SIZE_BYTES`](super::prefix::MAX_MESSAGE_SIZE_BYTES).
pub fn encode<M: Message>(message: &M) -> Result<Bytes, Status> {
    let len = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + len);
    buffer.put_slice(&frame_prefix(len)?);
    message.encode_raw(&mut buffer);
    Ok(buffer.freeze())
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
        let message = self.next().await?.ok_or_else(status::no_message)?;
        let at_end = self.chunk.is_empty() && hyper::body::Body::is_end_stream(&self.body);
        if !at_end && self.next().await?.is_some() {
            return Err(status::more_than_one_message());
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
        Err(status::ended_within_message())
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
