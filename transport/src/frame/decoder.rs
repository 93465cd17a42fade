//! Frames out of a stream of bytes that arrive in any pieces.

use rkyv::util::AlignedVec;

use super::{FrameError, Head, FIRST_BODY_MAX_BYTES, LEAD_BYTES, MARK};

/// A frame whose body is as long as it says. What the body holds is not checked yet: that is [`Request::read`] or [`Reply::read`].
///
/// [`Request::read`]: crate::messages::Request::read
/// [`Reply::read`]: crate::messages::Reply::read
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it says about its message.
    pub head: Head,
    /// The message; starts on a multiple of 8.
    pub body: &'a [u8],
}

/// Collects bytes and gives out whole frames. Every frame is a multiple of 8 long, so bodies stay aligned where they arrive.
pub struct Decoder {
    buffer: AlignedVec,
    /// Where received bytes start; a multiple of 8.
    start: usize,
    /// Where they end.
    end: usize,
    limit_bytes: u32,
}

/// Room that [`Decoder::room`] offers at least.
const READ_BYTES: usize = 16 << 10;

impl Default for Decoder {
    fn default() -> Self {
        Self::new(FIRST_BODY_MAX_BYTES)
    }
}

impl Decoder {
    /// A decoder for bodies of at most `limit_bytes`.
    pub fn new(limit_bytes: u32) -> Self {
        Self { buffer: AlignedVec::new(), start: 0, end: 0, limit_bytes }
    }

    /// Another limit, from the next frame on.
    pub fn set_limit(&mut self, limit_bytes: u32) {
        self.limit_bytes = limit_bytes;
    }

    /// Bytes that have arrived.
    pub fn on_bytes(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Bytes that have arrived and were not given out.
    pub fn kept_bytes(&self) -> usize {
        self.end - self.start
    }

    /// Where to read the next bytes to; then say [`filled`](Self::filled). At least 16 KiB, and enough for the frame that is incomplete.
    pub fn room(&mut self) -> &mut [u8] {
        let missing = self.expected_bytes().saturating_sub(self.end - self.start);
        self.make_room(missing.max(READ_BYTES));
        &mut self.buffer[self.end..]
    }

    /// So many bytes of [`room`](Self::room) were filled.
    pub fn filled(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.buffer.len());
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// Only fatal ones ([`FrameError::is_fatal`]): the stream is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let received = &self.buffer[self.start..self.end];
        let Some((lead, rest)) = received.split_first_chunk::<LEAD_BYTES>() else {
            return Ok(None);
        };
        let (body_bytes, head) = read_lead(lead, self.limit_bytes)?;
        let padded_bytes = body_bytes.next_multiple_of(8);
        if rest.len() < padded_bytes {
            return Ok(None);
        }
        let padding = &rest[body_bytes..padded_bytes];
        if padding.iter().any(|b| *b != 0) {
            return Err(FrameError::Padding { got: padding.to_vec() });
        }
        let body = self.start + LEAD_BYTES;
        self.start = body + padded_bytes;
        Ok(Some(Frame { head, body: &self.buffer[body..body + body_bytes] }))
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// [`FrameError::Short`] where it ended inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.end - self.start {
            0 => Ok(()),
            got_bytes => Err(FrameError::Short { got_bytes, expected_bytes: self.expected_bytes() }),
        }
    }

    /// Length of the frame that begins at `start`, as far as is known.
    fn expected_bytes(&self) -> usize {
        let received = &self.buffer[self.start..self.end];
        let lead = received.first_chunk::<LEAD_BYTES>().map(|lead| read_lead(lead, self.limit_bytes));
        match lead {
            Some(Ok((body_bytes, _))) => LEAD_BYTES + body_bytes.next_multiple_of(8),
            _ => LEAD_BYTES,
        }
    }

    /// Makes sure that `bytes` more can be written behind `end`.
    fn make_room(&mut self, bytes: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() - self.end >= bytes {
            return;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.buffer.len() - self.end < bytes {
            let wanted = (self.end + bytes).next_multiple_of(READ_BYTES);
            self.buffer.resize(wanted, 0);
        }
    }
}

/// Length of the body and the head.
fn read_lead(lead: &[u8; LEAD_BYTES], limit_bytes: u32) -> Result<(usize, Head), FrameError> {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&lead[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let (mark, length) = ((word(0) >> 32) as u32, word(0) as u32);
    if mark != MARK {
        return Err(FrameError::Mark { got: mark });
    }
    if length > limit_bytes {
        return Err(FrameError::Long { got_bytes: length as usize, limit_bytes: limit_bytes as usize });
    }
    Ok((length as usize, Head::from_word(word(8))))
}
