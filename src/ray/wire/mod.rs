//! Ray 2.60's two Unix-socket protocols, as bytes: the raylet socket ([`raylet`]) and the plasma socket ([`plasma`]).
//!
//! Both carry frames ([`frame`]) whose body is a flatbuffer table. Ray's own tables are described by
//! `node_manager.fbs` and `plasma.fbs`; the layouts in this module are the ones seen on the sockets of a
//! Ray 2.60.0 cluster (`tests/fixtures/wire/`), which in three places differ from the last published schema:
//!
//! | table | Ray 2.60.0 on the wire |
//! |---|---|
//! | `RegisterClientRequest` | has no `startup_token`: slot 3 is `job_id`, the later slots move up by one |
//! | `WaitForActorCallArgsRequest` | slot 2 is the 24-byte id of the waiting task instead of an integer tag, slot 3 its attempt |
//! | `AsyncGetObjectsRequest`, `CancelGetRequest` | carry the request id that pairs them (slots 2 and 0) |
//!
//! # Decoding
//! Decoding borrows: a decoded message holds ids by value and everything else as slices of the body. Every offset,
//! length and element is checked before the message is handed out, by safe code, so that walking a [`List`] later
//! can't fail. A body that breaks a rule gives a [`WireError`] that names the table, the field and what was expected.
//!
//! # Encoding
//! Encoders append whole frames, header included, to a buffer that the caller reuses. [`Encoder`] wraps the flatbuffer
//! builder and is reused too, so that nothing is allocated. A create reply takes 44 ns this way, a fixed layout written
//! by hand took 6: against a socket round trip of 10 us that is not worth a second way to write messages.
//!
//! # Flatbuffer layout, as far as it is used here
//! All integers are little-endian. A body starts with a `u32` offset to its root table. A table starts with an `i32`
//! that is *subtracted* from its position to find its vtable: `u16` vtable bytes, `u16` table bytes, then one `u16` per
//! slot, the field's offset from the table's start, 0 or past the end of the vtable for "absent: use the default". A
//! field that is a string, vector or table holds a `u32` offset from the field itself. A vector is a `u32` count and
//! the elements; a string is a vector of bytes with a NUL after it that the count leaves out. Ray's ids are strings of
//! raw bytes, not text.

mod build;
mod error;
pub mod fdpass;
pub mod frame;
mod list;
pub mod plasma;
pub mod raylet;
mod table;

pub use build::Encoder;
pub use error::{Socket, WireError};
pub use list::{List, ListIter};
