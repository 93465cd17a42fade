//! What can be wrong with a frame's body.

use std::fmt;

/// Which of the two protocols a message belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// `--raylet_socket_name`.
    Raylet,
    /// `--store_socket_name`.
    Plasma,
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raylet => "raylet socket",
            Self::Plasma => "plasma socket",
        })
    }
}

/// A body that is not the message its frame announces. Positions and lengths are in bytes from the body's start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The type is no request of this protocol (decoding requests) or no reply (decoding replies).
    #[error("{socket}: message type {message_type} is not a {expected} of Ray 2.60")]
    UnexpectedType {
        /// The protocol that the frame came over.
        socket: Socket,
        /// The type in the frame's header.
        message_type: i64,
        /// "request" or "reply".
        expected: &'static str,
    },
    /// An offset, a length or an element reaches past the body's end.
    #[error("{table}.{field}: needs {needed} bytes at byte {at}, but the body ends at {have}; the sender's flatbuffer is damaged")]
    OutOfBounds {
        /// The table being read.
        table: &'static str,
        /// The field being read, or the part of the table's frame.
        field: &'static str,
        /// Where the bytes should have been.
        at: usize,
        /// How many were needed.
        needed: usize,
        /// The body's length.
        have: usize,
    },
    /// The table's field list (vtable) has an impossible length.
    #[error("{table}: its field list is {got} bytes long, expected an even number of at least 4")]
    BadVtable {
        /// The table being read.
        table: &'static str,
        /// The length found.
        got: u16,
    },
    /// A field that Ray always sends is not there.
    #[error("{table}.{field} is missing, but Ray 2.60 always sends it")]
    Missing {
        /// The table being read.
        table: &'static str,
        /// The field being read.
        field: &'static str,
    },
    /// An id of the wrong length.
    #[error("{table}.{field} is an id of {got} bytes, expected {expected}")]
    IdLength {
        /// The table being read.
        table: &'static str,
        /// The field being read.
        field: &'static str,
        /// The length of this kind of id.
        expected: usize,
        /// The length found.
        got: usize,
    },
    /// A text that is longer than anything it could mean.
    #[error("{table}.{field} is {got} bytes long, expected an IP address or host name of at most {limit}")]
    TooLong {
        /// The table being read.
        table: &'static str,
        /// The field being read.
        field: &'static str,
        /// The most bytes that are accepted.
        limit: usize,
        /// The length found.
        got: usize,
    },
    /// A text that is not UTF-8.
    #[error("{table}.{field} is not UTF-8 after {valid_bytes} bytes")]
    NotUtf8 {
        /// The table being read.
        table: &'static str,
        /// The field being read.
        field: &'static str,
        /// How much of it is valid.
        valid_bytes: usize,
    },
    /// A number with no meaning in Ray 2.60.
    #[error("{table}.{field} is {got}, expected {expected}")]
    UnknownValue {
        /// The table being read.
        table: &'static str,
        /// The field being read.
        field: &'static str,
        /// The value found.
        got: i64,
        /// The values that have a meaning.
        expected: &'static str,
    },
    /// Two lists that go together have different lengths.
    #[error("{table}: {left_len} {left} but {right_len} {right}; the two lists go together")]
    ListLengths {
        /// The table being read.
        table: &'static str,
        /// One list.
        left: &'static str,
        /// Its length, in elements.
        left_len: usize,
        /// The other list.
        right: &'static str,
        /// Its length, in elements.
        right_len: usize,
    },
}
