//! The messages of the native door, in rkyv. What each is for, and what answers it, stands with its type; the bytes of every message
//! are listed in `transport/PROTOCOL.md`, which a test compares with the compiler's layout.
//!
//! A message is a struct of its own with a type number ([`Message::TYPE`]) that travels in the frame's head ([`crate::frame`]). Numbers
//! below 128 go to the node, the others come from it. Bytes from a peer are read by [`Request::read`] and [`Reply::read`] only, which
//! check all of them before anything is looked at.

mod connection;
mod layout;
mod leases;
mod node;
mod objects;
mod refusal;
mod spillback;
mod workers;

pub use connection::*;
pub use layout::{FieldLayout, Layout, StructLayout};
pub use leases::*;
pub use node::*;
pub use objects::*;
pub use refusal::{Refusal, RefusalCode};
pub use spillback::Spillback;
pub use workers::*;

use rkyv::api::low::{deserialize, LowSerializer, LowValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
pub use rkyv::Archived;
use rkyv::{Archive, Portable, Serialize};

use crate::frame::{FrameError, Head};

/// The first type number of messages that come from the node.
pub const FIRST_FROM_NODE: u16 = 128;

/// A message and its number.
pub trait Message:
    Layout
    + Archive<Archived: Portable + for<'v> CheckBytes<LowValidator<'v, Error>>>
    + for<'b, 'a> Serialize<LowSerializer<&'b mut AlignedVec, ArenaHandle<'a>, Error>>
{
    /// The number in the frame's head.
    const TYPE: u16;
}

/// Checks a body of a known type and gives access to it.
///
/// # Errors
/// [`FrameError::Misaligned`] where the bytes don't start on a multiple of 8 (a fault of the caller, not of the peer), and
/// [`FrameError::Malformed`] for a body that is no message of this type.
pub fn read_body<M: Message>(body: &[u8]) -> Result<&Archived<M>, FrameError> {
    if !body.as_ptr().cast::<u64>().is_aligned() {
        return Err(FrameError::Misaligned { at_bytes: body.as_ptr().addr() % 8 });
    }
    rkyv::api::low::access::<Archived<M>, Error>(body).map_err(|e| FrameError::Malformed {
        name: M::NAME,
        got_bytes: body.len(),
        why: e.to_string(),
    })
}

/// Declares structs that travel, with their layout.
macro_rules! wire_structs {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
        #[rkyv(derive(Debug))]
        #[cfg_attr(test, derive(proptest_derive::Arbitrary))]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $crate::messages::Layout for $name {
            const NAME: &'static str = stringify!($name);
            const SIZE_BYTES: usize = size_of::<rkyv::Archived<$name>>();
            const FIELDS: &'static [$crate::messages::FieldLayout] = &[$($crate::messages::FieldLayout {
                name: stringify!($field),
                kind: stringify!($type),
                offset_bytes: std::mem::offset_of!(rkyv::Archived<$name>, $field),
                size_bytes: size_of::<rkyv::Archived<$type>>(),
            },)*];
        }
    )*};
}

/// Declares messages: structs that travel, with their numbers.
macro_rules! messages {
    ($($(#[$doc:meta])* $number:literal $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $crate::messages::wire_structs! { $($(#[$doc])* $name { $($(#[$field_doc])* $field: $type,)* })* }
        $(impl $crate::messages::Message for $name {
            const TYPE: u16 = $number;
        })*
    };
}

use {messages, wire_structs};

/// Declares the messages of one direction as an enum of checked views.
macro_rules! direction {
    ($(#[$doc:meta])* $view:ident, $owned:ident, $layouts:ident: $($name:ident)*) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[allow(missing_docs)] // Each variant is the message of its name, documented there.
        pub enum $view<'a> {
            $($name(&'a Archived<$name>),)*
        }

        impl<'a> $view<'a> {
            /// Reads the message that `head` announces.
            ///
            /// # Errors
            /// [`FrameError`]: a newer version, an unknown type, or a body that is not of that type. None of them harms the stream.
            pub fn read(head: Head, body: &'a [u8]) -> Result<Self, FrameError> {
                head.check_version()?;
                Ok(match head.message_type {
                    $(<$name as Message>::TYPE => Self::$name(read_body::<$name>(body)?),)*
                    got => return Err(FrameError::UnknownType { got }),
                })
            }

            /// The message's name.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                }
            }

            /// A copy of its own.
            ///
            /// # Errors
            /// [`FrameError::Malformed`] where rkyv can't make it; no message of this crate does that.
            pub fn to_owned(&self) -> Result<$owned, FrameError> {
                let failed = |name| move |e: Error| FrameError::Malformed { name, got_bytes: 0, why: e.to_string() };
                Ok(match self {
                    $(Self::$name(view) => $owned::$name(deserialize(*view).map_err(failed(stringify!($name)))?),)*
                })
            }
        }

        /// The same as values.
        #[derive(Clone, Debug, PartialEq)]
        #[cfg_attr(test, derive(proptest_derive::Arbitrary))]
        #[allow(missing_docs)] // Each variant is the message of its name, documented there.
        pub enum $owned {
            $($name($name),)*
        }

        impl $owned {
            /// The message's name.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                }
            }

            /// Writes it as a frame, with what `head` says besides the type.
            ///
            /// # Errors
            /// As [`Encoder::frame`](crate::frame::Encoder::frame).
            pub fn encode(&self, encoder: &mut crate::frame::Encoder, head: Head) -> Result<(), FrameError> {
                match self {
                    $(Self::$name(message) => {
                        encoder.frame(Head { message_type: <$name as Message>::TYPE, ..head }, message)
                    })*
                }
            }
        }

        /// Number and layout of each of them.
        pub const $layouts: &[(u16, StructLayout)] = &[$((<$name as Message>::TYPE, StructLayout::of::<$name>()),)*];
    };
}

direction! {
    /// A checked message to the node.
    Request, OwnedRequest, REQUEST_LAYOUTS:
    Hello OpenRing NewPutTask
    Create Seal Abort Get Release Wait Delete Contains List RequestCredit Publish ReturnCredit Pin Unpin
    DefineClass RequestLease ReturnLease CancelLease KeepLease
    RegisterWorker WorkDone WorkerExit Blocked Unblocked
    Drain Subscribe GetStatus
}

direction! {
    /// A checked message from the node: an answer or an event.
    Reply, OwnedReply, REPLY_LAYOUTS:
    Welcome RingOpened PutTask SegmentAdded SocketHint Done Refused
    Created Found Waited Contained Listed CreditGranted Pinned
    ClassDefined Granted CancelDone LeaseDone LeaseLost
    Registered Assigned Revoked Stop
    Status ObjectEvent NodeEvent EventsLost
}

/// The structs inside of messages, and their layouts.
pub const PART_LAYOUTS: &[StructLayout] = &[
    StructLayout::of::<Limits>(),
    StructLayout::of::<SegmentInfo>(),
    StructLayout::of::<Place>(),
    StructLayout::of::<ObjectEntry>(),
    StructLayout::of::<ResourceAmount>(),
    StructLayout::of::<AllocatedResource>(),
    StructLayout::of::<ResourceState>(),
];

#[cfg(test)]
mod tests;
