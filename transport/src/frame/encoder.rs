//! Messages into bytes, in buffers that are used again.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

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
    /// Frames with descriptors: where they start and end in the buffer.
    attached: VecDeque<Attached>,
}

struct Attached {
    start: usize,
    end: usize,
    descriptors: Vec<OwnedFd>,
}

/// What is to be sent next: bytes, and the descriptors to attach to the first of them.
pub struct Unsent<'a> {
    /// The bytes; empty: nothing is to be sent.
    pub bytes: &'a [u8],
    /// The descriptors.
    pub descriptors: &'a [OwnedFd],
}

/// Bytes at the front that are sent already are dropped once there are so many.
const COMPACT_BYTES: usize = 64 << 10;

/// A buffer that grew beyond this for one long message is given back once it is empty.
const KEPT_BYTES: usize = 256 << 10;

impl Encoder {
    /// An encoder for bodies of at most `limit_bytes`.
    pub fn new(limit_bytes: u32) -> Self {
        Self { buffer: AlignedVec::new(), sent: 0, arena: Arena::new(), limit_bytes, attached: VecDeque::new() }
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
        self.compact();
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

    /// Appends a frame with descriptors, at most [`DESCRIPTORS_MAX`](super::DESCRIPTORS_MAX).
    ///
    /// # Errors
    /// As [`frame`](Self::frame).
    pub fn frame_with<M: Message>(
        &mut self,
        head: Head,
        message: &M,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), FrameError> {
        self.compact();
        let start = self.buffer.len();
        self.frame(head.with_descriptors(descriptors.len()), message)?;
        if !descriptors.is_empty() {
            self.attached.push_back(Attached { start, end: self.buffer.len(), descriptors });
        }
        Ok(())
    }

    /// What has to be sent next. A frame with descriptors goes by itself, so that they are attached to its own bytes.
    pub fn unsent(&self) -> Unsent<'_> {
        match self.attached.front() {
            Some(next) if next.start <= self.sent => {
                Unsent { bytes: &self.buffer[self.sent..next.end], descriptors: &next.descriptors }
            }
            Some(next) => Unsent { bytes: &self.buffer[self.sent..next.start], descriptors: &[] },
            None => Unsent { bytes: &self.buffer[self.sent..], descriptors: &[] },
        }
    }

    /// Bytes that are not sent yet.
    pub fn unsent_bytes(&self) -> usize {
        self.buffer.len() - self.sent
    }

    /// So many bytes of [`unsent`](Self::unsent) are sent, and with the first of them its descriptors.
    pub fn sent(&mut self, bytes: usize) {
        let bytes = bytes.min(self.unsent().bytes.len());
        self.sent += bytes;
        if bytes > 0 && self.attached.front().is_some_and(|next| next.start < self.sent) {
            self.attached.pop_front();
        }
        if self.sent < self.buffer.len() {
            return;
        }
        self.sent = 0;
        match self.buffer.capacity() > KEPT_BYTES {
            true => self.buffer = AlignedVec::new(),
            false => self.buffer.clear(),
        }
    }

    /// Sends what a socket takes now. `true`: everything is sent.
    ///
    /// # Errors
    /// Where the peer is gone.
    pub fn flush(&mut self, socket: impl std::os::fd::AsFd) -> std::io::Result<bool> {
        use std::os::fd::AsFd;
        loop {
            let unsent = self.unsent();
            if unsent.bytes.is_empty() {
                return Ok(true);
            }
            let descriptors: Vec<_> = unsent.descriptors.iter().map(AsFd::as_fd).collect();
            match crate::fds::send(&socket, unsent.bytes, &descriptors)? {
                Some(bytes) => self.sent(bytes),
                None => return Ok(false),
            }
        }
    }

    #[cfg(test)]
    pub(super) fn capacity_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    fn compact(&mut self) {
        if self.sent < COMPACT_BYTES {
            return;
        }
        let left = self.buffer.len() - self.sent;
        self.buffer.copy_within(self.sent.., 0);
        self.buffer.resize(left, 0);
        for attached in &mut self.attached {
            // One whose first bytes are sent keeps no descriptors.
            (attached.start, attached.end) = (attached.start - self.sent, attached.end - self.sent);
        }
        self.sent = 0;
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
