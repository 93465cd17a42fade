//! What native nodes say to each other beside the objects: who has what, and what is free where.
//!
//! A node connects to each node of its list of peers, on the port of the [bulk path](crate::bulk), and says the same greeting with
//! another [purpose](crate::bulk::hello::Purpose). From then on the caller asks, and the node called tells. A message is a frame: length
//! of its body (u32), CRC-32C of its body (u32), both little-endian, and the body, which is what rkyv writes of a [`PeerMessage`].

use rkyv::rancor::Error;
use rkyv::util::AlignedVec;

/// Longest body of a frame.
pub const BODY_MAX_BYTES: usize = 1 << 20;

/// Most objects that one message is about.
pub const OBJECTS_MAX: usize = 8_192;

/// Length of what stands in front of a body.
const HEAD_BYTES: usize = 8;

// rkyv makes public types of the form as it travels beside each of these, with fields that it does not document.
#[allow(missing_docs)]
mod said {
    use crate::ids::{NodeId, ObjectId};

    /// What is said.
    #[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
    #[cfg_attr(test, derive(proptest_derive::Arbitrary))]
    pub enum PeerMessage {
        /// By the node called, once, first of all: who it is.
        Welcome {
            /// Its id.
            node: NodeId,
            /// The socket of its native door, for programs on its machine.
            socket: String,
        },
        /// By the caller: tell when these are sealed with you, or at once where they are.
        Want {
            /// The objects, at most [`OBJECTS_MAX`](super::OBJECTS_MAX).
            objects: Vec<ObjectId>,
        },
        /// By the caller: no more of these.
        Unwant {
            /// The objects.
            objects: Vec<ObjectId>,
        },
        /// By the node called: these are here.
        Has {
            /// Each with its size.
            objects: Vec<Held>,
        },
        /// By the node called: it can't watch for these now, and is to be asked again a little later.
        Later {
            /// The objects.
            objects: Vec<ObjectId>,
        },
        /// By the node called: what it has, and what is free of it.
        View {
            /// By resource.
            resources: Vec<Resource>,
            /// It takes no new leases.
            draining: bool,
        },
        /// By the caller: it is still there.
        Alive,
    }

    /// An object that a node has.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
    #[cfg_attr(test, derive(proptest_derive::Arbitrary))]
    pub struct Held {
        /// Which.
        pub object: ObjectId,
        /// Size of its data, and of the metadata behind them.
        pub size_bytes: u64,
    }

    /// What a node has of a resource.
    #[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
    #[cfg_attr(test, derive(proptest_derive::Arbitrary))]
    pub struct Resource {
        /// Its name.
        pub name: String,
        /// In all, in 1/10,000 of a unit.
        pub total: u64,
        /// Free, in 1/10,000 of a unit.
        pub free: u64,
    }
}

pub use said::{Held, PeerMessage, Resource};

/// Bytes that are no frame, or a message that is none. The connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerFrameError {
    /// Longer than any message.
    #[error("expected a message of at most {BODY_MAX_BYTES} bytes, got one of {0}")]
    Length(usize),
    /// The bytes are not what was sent.
    #[error("expected a message with checksum {expected:#010x}, got {got:#010x}: the bytes are not what was sent")]
    Sum {
        /// What the frame says.
        expected: u32,
        /// What its bytes come to.
        got: u32,
    },
    /// No message of this version.
    #[error("expected a message of this version, got {got_bytes} bytes that are none: {why}")]
    Malformed {
        /// How many.
        got_bytes: usize,
        /// Why not.
        why: String,
    },
}

impl PeerMessage {
    /// Appends the message to `out` as it travels.
    ///
    /// # Errors
    /// [`PeerFrameError::Length`]: it is too long. Nothing is appended then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), PeerFrameError> {
        let body = rkyv::to_bytes::<Error>(self)
            .map_err(|e| PeerFrameError::Malformed { got_bytes: 0, why: e.to_string() })?;
        if body.len() > BODY_MAX_BYTES {
            return Err(PeerFrameError::Length(body.len()));
        }
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&crate::checksum::crc32c(&body).to_le_bytes());
        out.extend_from_slice(&body);
        Ok(())
    }

    fn decode(body: &[u8]) -> Result<Self, PeerFrameError> {
        // What came lies anywhere; rkyv looks at aligned bytes only.
        let mut aligned = AlignedVec::<16>::with_capacity(body.len());
        aligned.extend_from_slice(body);
        rkyv::from_bytes::<Self, Error>(&aligned)
            .map_err(|e| PeerFrameError::Malformed { got_bytes: body.len(), why: e.to_string() })
    }
}

/// The bytes of a connection that are no whole message yet.
#[derive(Debug, Default)]
pub struct Incoming {
    bytes: Vec<u8>,
    read: usize,
}

impl Incoming {
    /// Takes what came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.read));
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message; `None` until more has come.
    ///
    /// # Errors
    /// [`PeerFrameError`].
    pub fn next_message(&mut self) -> Result<Option<PeerMessage>, PeerFrameError> {
        let rest = &self.bytes[self.read..];
        let Some((head, rest)) = rest.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if length > BODY_MAX_BYTES {
            return Err(PeerFrameError::Length(length));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let expected = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let got = crate::checksum::crc32c(body);
        if expected != got {
            return Err(PeerFrameError::Sum { expected, got });
        }
        let message = PeerMessage::decode(body)?;
        self.read += HEAD_BYTES + length;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::ObjectId;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_arrive_as_they_were_sent_however_the_stream_is_cut(
            messages in proptest::collection::vec(any::<PeerMessage>(), 1..5),
            piece in 1usize..300,
        ) {
            let mut stream = Vec::new();
            messages.iter().for_each(|message| message.encode(&mut stream).unwrap());
            let (mut incoming, mut got) = (Incoming::default(), Vec::new());
            for bytes in stream.chunks(piece) {
                incoming.feed(bytes);
                while let Some(message) = incoming.next_message().unwrap() {
                    got.push(message);
                }
            }
            prop_assert_eq!(got, messages);
        }

        #[test]
        fn a_flipped_bit_is_noticed(message in any::<PeerMessage>(), at in any::<proptest::sample::Index>(), bit in 0u8..8) {
            let mut stream = Vec::new();
            message.encode(&mut stream).unwrap();
            let at = at.index(stream.len());
            stream[at] ^= 1 << bit;
            let mut incoming = Incoming::default();
            incoming.feed(&stream);
            // A length that was made longer waits for bytes that don't come.
            prop_assert!(!matches!(incoming.next_message(), Ok(Some(_))));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut stream = (bytes.len() as u32).to_le_bytes().to_vec();
            stream.extend_from_slice(&crate::checksum::crc32c(&bytes).to_le_bytes());
            stream.extend_from_slice(&bytes);
            let mut incoming = Incoming::default();
            incoming.feed(&stream);
            let _ = incoming.next_message();
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_came_and_before_it_goes() {
        let mut incoming = Incoming::default();
        incoming.feed(&[0xff; HEAD_BYTES]);
        assert_eq!(incoming.next_message(), Err(PeerFrameError::Length(u32::MAX as usize)));
        let message = PeerMessage::Want { objects: vec![ObjectId([1; 28]); BODY_MAX_BYTES / 28 + 1] };
        let mut out = Vec::new();
        assert!(matches!(message.encode(&mut out), Err(PeerFrameError::Length(_))) && out.is_empty());
    }
}
