//! The frame around every message of both sockets (Ray 2.60 `client_connection.cc`).
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | cookie, little-endian: [`COOKIE`] (Ray's setting `ray_cookie`) |
//! | 8..16 | message type, little-endian `i64` |
//! | 16..24 | body length in bytes, little-endian `i64` |
//! | 24.. | body: a flatbuffer, or nothing (`ActorCreationTaskDone`) |
//!
//! Stock Ray reads and writes the four parts in separate calls, so a frame may arrive in any number of pieces.
//! On the plasma socket a file descriptor may follow a frame as one more byte, see [`super::fdpass`].

/// Every frame starts with these eight bytes: `00 00 00 00 00 59 41 52` on the wire.
pub const COOKIE: i64 = 0x5241_5900_0000_0000;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 24;

/// The longest body accepted on the raylet socket. The longest messages of Ray are waits and gets of very many
/// objects: an object with its owner takes about 170 bytes, so this admits 1.5 million of them in one call.
pub const RAYLET_MAX_BODY_BYTES: u64 = 256 << 20;

/// The longest body accepted on the plasma socket: a get of 400,000 objects.
pub const PLASMA_MAX_BODY_BYTES: u64 = 16 << 20;

/// What a frame's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The message's type; its meaning depends on the socket.
    pub message_type: i64,
    /// Length of the body that follows, in bytes.
    pub body_bytes: usize,
}

/// A header that can't be followed: the connection is out of step and has to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame doesn't start with [`COOKIE`].
    #[error("frame starts with {got:#018x}, expected Ray's cookie {COOKIE:#018x}: the peer is not a Ray 2.60 process, or the stream is out of step")]
    Cookie {
        /// The first eight bytes, as a little-endian integer.
        got: i64,
    },
    /// The length is negative or above the socket's limit.
    #[error("message of type {message_type} announces a body of {got_bytes} bytes, expected 0 to {limit_bytes}")]
    BodyLength {
        /// The message's type.
        message_type: i64,
        /// The length announced.
        got_bytes: i64,
        /// The socket's limit.
        limit_bytes: u64,
    },
}

/// Reads a header. `limit_bytes` is the longest body to accept, [`RAYLET_MAX_BODY_BYTES`] or [`PLASMA_MAX_BODY_BYTES`].
pub fn parse_header(bytes: &[u8; HEADER_BYTES], limit_bytes: u64) -> Result<Header, FrameError> {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        i64::from_le_bytes(word)
    };
    let (cookie, message_type, got_bytes) = (word(0), word(8), word(16));
    if cookie != COOKIE {
        return Err(FrameError::Cookie { got: cookie });
    }
    match u64::try_from(got_bytes) {
        Ok(length) if length <= limit_bytes => Ok(Header { message_type, body_bytes: length as usize }),
        _ => Err(FrameError::BodyLength { message_type, got_bytes, limit_bytes }),
    }
}

/// A whole frame among the bytes received so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The message's type; its meaning depends on the socket.
    pub message_type: i64,
    /// The message.
    pub body: &'a [u8],
    /// Header and body: the next frame starts after so many bytes.
    pub frame_bytes: usize,
}

/// Finds the first frame in bytes received so far, `None` if more bytes are needed. `limit_bytes` as in
/// [`parse_header`]: a frame that would be longer is refused as soon as its header is there.
pub fn split(received: &[u8], limit_bytes: u64) -> Result<Option<Frame<'_>>, FrameError> {
    let Some((head, rest)) = received.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = parse_header(head, limit_bytes)?;
    Ok(rest.get(..header.body_bytes).map(|body| Frame {
        message_type: header.message_type,
        body,
        frame_bytes: HEADER_BYTES + header.body_bytes,
    }))
}

/// Appends a header to `out`.
pub fn write_header(out: &mut Vec<u8>, message_type: i64, body_bytes: usize) {
    let mut head = [0; HEADER_BYTES];
    head[..8].copy_from_slice(&COOKIE.to_le_bytes());
    head[8..16].copy_from_slice(&message_type.to_le_bytes());
    head[16..].copy_from_slice(&(body_bytes as u64).to_le_bytes());
    out.extend_from_slice(&head);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_of(message_type: i64, body_bytes: usize) -> [u8; HEADER_BYTES] {
        let mut out = Vec::new();
        write_header(&mut out, message_type, body_bytes);
        out.try_into().expect("a header is 24 bytes")
    }

    #[test]
    fn a_header_reads_back() {
        let header = parse_header(&header_of(11, 4096), PLASMA_MAX_BODY_BYTES);
        assert_eq!(header, Ok(Header { message_type: 11, body_bytes: 4096 }));
    }

    #[test]
    fn a_foreign_cookie_is_refused() {
        let mut head = header_of(1, 0);
        head[7] = 0;
        assert!(matches!(parse_header(&head, 100), Err(FrameError::Cookie { .. })));
    }

    #[test]
    fn a_body_over_the_limit_or_negative_is_refused() {
        assert!(parse_header(&header_of(1, 100), 100).is_ok());
        let over = parse_header(&header_of(1, 101), 100);
        assert_eq!(over, Err(FrameError::BodyLength { message_type: 1, got_bytes: 101, limit_bytes: 100 }));
        let mut negative = header_of(1, 0);
        negative[16..].copy_from_slice(&(-1i64).to_le_bytes());
        assert!(matches!(parse_header(&negative, 100), Err(FrameError::BodyLength { got_bytes: -1, .. })));
    }

    #[test]
    fn a_frame_is_split_off_only_when_it_is_whole() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, 7, 3);
        bytes.extend_from_slice(b"abcnext");
        for short in 0..HEADER_BYTES + 3 {
            assert_eq!(split(&bytes[..short], 100), Ok(None));
        }
        let frame = split(&bytes, 100).expect("valid").expect("whole");
        assert_eq!(frame, Frame { message_type: 7, body: b"abc", frame_bytes: HEADER_BYTES + 3 });
    }
}
