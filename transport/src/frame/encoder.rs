//! Messages into bytes, in buffers that are used again.

use rkyv::rancor::Error;
use rkyv::ser::allocator::Arena;
use rkyv::ser::Serializer;
use rkyv::util::AlignedVec;

use super::{FrameError, Head, LEAD_BYTES, MARK};
use crate::messages::Message;

/// Frames written and not sent yet. Many frames leave in one write.
pub struct Encoder {
    buffer: AlignedVec,
    sent: usize,
    arena: Arena,
    limit_bytes: u32,
}

/// A buffer that grew beyond this for one long message is given back once it is empty.
const KEPT_BYTES: usize = 256 << 10;

impl Encoder {
    /// An encoder for bodies of at most `limit_bytes`.
    pub fn new(limit_bytes: u32) -> Self {
        Self { buffer: AlignedVec::new(), sent: 0, arena: Arena::new(), limit_bytes }
    }

    /// Another limit, from here on.
    pub fn set_limit(&mut self, limit_bytes: u32) {
        self.limit_bytes = limit_bytes;
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// [`FrameError::Long`] for a message above the limit; nothing is appended.
    pub fn frame<M: Message>(&mut self, head: Head, message: &M) -> Result<(), FrameError> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; LEAD_BYTES]);
        if let Err(error) = write_body(&mut self.buffer, &mut self.arena, message) {
            self.buffer.resize(start, 0);
            return Err(error);
        }
        let body_bytes = self.buffer.len() - start - LEAD_BYTES;
        if body_bytes > self.limit_bytes as usize {
            self.buffer.resize(start, 0);
            return Err(FrameError::Long { got_bytes: body_bytes, limit_bytes: self.limit_bytes as usize });
        }
        let end = self.buffer.len().next_multiple_of(8);
        self.buffer.resize(end, 0);
        let lead = body_bytes as u64 | u64::from(MARK) << 32;
        self.buffer[start..start + 8].copy_from_slice(&lead.to_le_bytes());
        self.buffer[start + 8..start + LEAD_BYTES].copy_from_slice(&head.to_word().to_le_bytes());
        Ok(())
    }

    /// What has to be sent.
    pub fn unsent(&self) -> &[u8] {
        &self.buffer[self.sent..]
    }

    /// So many bytes of [`unsent`](Self::unsent) are sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes).min(self.buffer.len());
        if self.sent < self.buffer.len() {
            return;
        }
        self.sent = 0;
        match self.buffer.capacity() > KEPT_BYTES {
            true => self.buffer = AlignedVec::new(),
            false => self.buffer.clear(),
        }
    }
}

/// Bodies without frames, for the ring: each replaces the one before.
pub struct BodyWriter {
    buffer: AlignedVec,
    arena: Arena,
}

impl Default for BodyWriter {
    fn default() -> Self {
        Self { buffer: AlignedVec::with_capacity(256), arena: Arena::new() }
    }
}

impl BodyWriter {
    /// The body of a message.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] where rkyv can't write it; no message of this crate does that.
    pub fn body<M: Message>(&mut self, message: &M) -> Result<&[u8], FrameError> {
        self.buffer.clear();
        write_body(&mut self.buffer, &mut self.arena, message)?;
        Ok(&self.buffer)
    }
}

/// Appends a body to a buffer whose length is a multiple of 8.
fn write_body<M: Message>(buffer: &mut AlignedVec, arena: &mut Arena, message: &M) -> Result<(), FrameError> {
    let mut serializer = Serializer::new(buffer, arena.acquire(), ());
    rkyv::api::serialize_using::<_, Error>(message, &mut serializer).map(drop).map_err(|e| FrameError::Malformed {
        name: M::NAME,
        got_bytes: 0,
        why: e.to_string(),
    })
}
