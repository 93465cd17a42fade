//! Replies on the hot path, written as fixed layouts.
//!
//! These frames always have the same shape, so their headers, field lists and offsets are computed at compile time and
//! only the values are filled in. Fields are written even where they have their default, which readers accept and
//! which keeps the shape. A create reply costs about a tenth of what the flatbuffer builder takes for it.
//!
//! A frame is the 24-byte header, then the body: root offset at 0, field list at 4, table, strings and vectors.
//! Positions below count from the body's start; 8-byte fields lie on multiples of 8, as flatbuffers want it.

use raylet_shard::ids::ObjectId;

use super::types::{message_type as types, GetReply, ObjectSpec, PlasmaError};
use crate::ray::wire::frame::{COOKIE, HEADER_BYTES};

/// A string's or vector's length, before its content.
const COUNT_BYTES: usize = 4;

/// An id's string: count, bytes, NUL and padding to 4.
const ID_STRING_BYTES: usize = COUNT_BYTES + ObjectId::LEN + 4;

const fn put<const N: usize, const M: usize>(
    mut frame: [u8; N],
    at: usize,
    bytes: [u8; M],
) -> [u8; N] {
    let mut i = 0;
    while i < M {
        frame[at + i] = bytes[i];
        i += 1;
    }
    frame
}

/// A frame of `N` bytes with everything that doesn't depend on values: header, root offset, field list of `offsets`
/// (each field's place in the table), and the table's way back to it. The table starts at `table` of the body.
const fn shape<const N: usize>(
    message_type: i64,
    table: usize,
    table_bytes: u16,
    offsets: &[u16],
) -> [u8; N] {
    let vtable = HEADER_BYTES + 4;
    let mut frame = put([0; N], 0, COOKIE.to_le_bytes());
    frame = put(frame, 8, message_type.to_le_bytes());
    frame = put(frame, 16, ((N - HEADER_BYTES) as i64).to_le_bytes());
    frame = put(frame, HEADER_BYTES, (table as u32).to_le_bytes());
    frame = put(frame, vtable, (4 + 2 * offsets.len() as u16).to_le_bytes());
    frame = put(frame, vtable + 2, table_bytes.to_le_bytes());
    let mut slot = 0;
    while slot < offsets.len() {
        frame = put(frame, vtable + 4 + 2 * slot, offsets[slot].to_le_bytes());
        slot += 1;
    }
    put(
        frame,
        HEADER_BYTES + table,
        (table as i32 - 4).to_le_bytes(),
    )
}

/// Adds an id's string at `string` of the body, pointed to by the field at `field` of the body.
const fn with_id_at<const N: usize>(frame: [u8; N], field: usize, string: usize) -> [u8; N] {
    let frame = put(
        frame,
        HEADER_BYTES + field,
        ((string - field) as u32).to_le_bytes(),
    );
    put(
        frame,
        HEADER_BYTES + string,
        (ObjectId::LEN as u32).to_le_bytes(),
    )
}

/// Fills in `bytes` at `at` of the body.
#[inline]
fn set(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[HEADER_BYTES + at..HEADER_BYTES + at + bytes.len()].copy_from_slice(bytes);
}

/// `PlasmaCreateReply`: table at 24 (120 bytes), id string at 144, 184 bytes in all.
mod create {
    use super::*;

    const TABLE: usize = 24;
    const STRING: usize = TABLE + 120;
    pub const RETRY: usize = TABLE + 8;
    pub const OBJECT: usize = TABLE + 16;
    pub const UNIQUE_FD_ID: usize = TABLE + 96;
    pub const MMAP_SIZE: usize = TABLE + 104;
    pub const ERROR: usize = TABLE + 112;
    pub const STORE_FD: usize = TABLE + 116;
    pub const ID: usize = STRING + COUNT_BYTES;
    const BODY_BYTES: usize = (STRING + ID_STRING_BYTES).next_multiple_of(8);

    pub const FRAME: [u8; HEADER_BYTES + BODY_BYTES] = with_id_at(
        shape(
            types::CREATE_REPLY,
            TABLE,
            120,
            &[4, 8, 16, 112, 116, 96, 104],
        ),
        TABLE + 4,
        STRING,
    );
}

/// Appends the answer to a create that succeeded to `out`: where the object is, and how much of its segment to map.
/// Send the segment's descriptor next if this client doesn't have it.
pub fn encode_create_reply(
    out: &mut Vec<u8>,
    object_id: &ObjectId,
    object: &ObjectSpec,
    mmap_size_bytes: i64,
) {
    let mut frame = create::FRAME;
    set(&mut frame, create::OBJECT, &object.to_wire());
    set(
        &mut frame,
        create::UNIQUE_FD_ID,
        &object.unique_fd_id.to_le_bytes(),
    );
    set(
        &mut frame,
        create::MMAP_SIZE,
        &mmap_size_bytes.to_le_bytes(),
    );
    set(&mut frame, create::STORE_FD, &object.store_fd.to_le_bytes());
    set(&mut frame, create::ID, object_id.as_bytes());
    out.extend_from_slice(&frame);
}

/// Appends the answer to a create that failed to `out`. No descriptor follows.
pub fn encode_create_error(out: &mut Vec<u8>, object_id: &ObjectId, error: PlasmaError) {
    let mut frame = create::FRAME;
    set(&mut frame, create::ERROR, &(error as i32).to_le_bytes());
    set(&mut frame, create::ID, object_id.as_bytes());
    out.extend_from_slice(&frame);
}

/// Appends the answer to a create that has to wait for room to `out`: the client asks again with `request_id`, which
/// must not be 0. No descriptor follows.
pub fn encode_create_retry_later(out: &mut Vec<u8>, object_id: &ObjectId, request_id: u64) {
    let mut frame = create::FRAME;
    set(&mut frame, create::RETRY, &request_id.to_le_bytes());
    set(&mut frame, create::ID, object_id.as_bytes());
    out.extend_from_slice(&frame);
}

/// An id and a number, `PlasmaSealReply` and `PlasmaContainsReply`: table at 12 (12 bytes), id string at 24, 60 bytes.
mod id_and_number {
    use super::*;

    const TABLE: usize = 12;
    const STRING: usize = TABLE + 12;
    pub const NUMBER: usize = TABLE + 8;
    pub const ID: usize = STRING + COUNT_BYTES;
    const BODY_BYTES: usize = STRING + ID_STRING_BYTES;

    pub type Frame = [u8; HEADER_BYTES + BODY_BYTES];

    pub const fn frame(message_type: i64) -> Frame {
        with_id_at(shape(message_type, TABLE, 12, &[4, 8]), TABLE + 4, STRING)
    }
}

#[inline]
fn id_and_number(
    out: &mut Vec<u8>,
    mut frame: id_and_number::Frame,
    object_id: &ObjectId,
    number: i32,
) {
    set(&mut frame, id_and_number::NUMBER, &number.to_le_bytes());
    set(&mut frame, id_and_number::ID, object_id.as_bytes());
    out.extend_from_slice(&frame);
}

/// Appends the answer to a seal to `out`.
pub fn encode_seal_reply(out: &mut Vec<u8>, object_id: &ObjectId, error: PlasmaError) {
    const FRAME: id_and_number::Frame = id_and_number::frame(types::SEAL_REPLY);
    id_and_number(out, FRAME, object_id, error as i32);
}

/// Appends the answer to a contains to `out`.
pub fn encode_contains_reply(out: &mut Vec<u8>, object_id: &ObjectId, has_object: bool) {
    const FRAME: id_and_number::Frame = id_and_number::frame(types::CONTAINS_REPLY);
    id_and_number(out, FRAME, object_id, i32::from(has_object));
}

/// `PlasmaReleaseReply`: table at 16 (16 bytes), id string at 32, 68 bytes.
mod release {
    use super::*;

    const TABLE: usize = 16;
    const STRING: usize = TABLE + 16;
    pub const ERROR: usize = TABLE + 8;
    pub const SHOULD_UNMAP: usize = TABLE + 12;
    pub const ID: usize = STRING + COUNT_BYTES;
    const BODY_BYTES: usize = STRING + ID_STRING_BYTES;

    pub const FRAME: [u8; HEADER_BYTES + BODY_BYTES] = with_id_at(
        shape(types::RELEASE_REPLY, TABLE, 16, &[4, 12, 8]),
        TABLE + 4,
        STRING,
    );
}

/// Appends the answer to a release that asked for one to `out`.
pub fn encode_release_reply(
    out: &mut Vec<u8>,
    object_id: &ObjectId,
    should_unmap: bool,
    error: PlasmaError,
) {
    let mut frame = release::FRAME;
    set(&mut frame, release::SHOULD_UNMAP, &[u8::from(should_unmap)]);
    set(&mut frame, release::ERROR, &(error as i32).to_le_bytes());
    set(&mut frame, release::ID, object_id.as_bytes());
    out.extend_from_slice(&frame);
}

/// Appends the answer to an abort to `out`: table at 12 (8 bytes), id string at 20, 56 bytes.
pub fn encode_abort_reply(out: &mut Vec<u8>, object_id: &ObjectId) {
    const TABLE: usize = 12;
    const STRING: usize = TABLE + 8;
    const FRAME: [u8; HEADER_BYTES + STRING + ID_STRING_BYTES] =
        with_id_at(shape(types::ABORT_REPLY, TABLE, 8, &[4]), TABLE + 4, STRING);
    let mut frame = FRAME;
    set(&mut frame, STRING + COUNT_BYTES, object_id.as_bytes());
    out.extend_from_slice(&frame);
}

/// `PlasmaGetReply`: table at 20 (28 bytes), then the six vectors in the order of their slots.
mod get {
    use super::*;

    pub const TABLE: usize = 20;
    pub const TABLE_BYTES: usize = 28;
    pub const FRAME: [u8; HEADER_BYTES + TABLE + TABLE_BYTES] = shape(
        types::GET_REPLY,
        TABLE,
        TABLE_BYTES as u16,
        &[4, 8, 12, 16, 20, 24],
    );

    /// Where the vectors of a reply go, for so many objects and segments.
    pub struct Places {
        /// Each vector's count, in slot order.
        pub vectors: [usize; 6],
        /// The first id's string.
        pub strings: usize,
        pub body_bytes: usize,
    }

    /// The next place for a count whose elements are aligned to 8.
    const fn count_before_8(at: usize) -> usize {
        (at + COUNT_BYTES).next_multiple_of(8) - COUNT_BYTES
    }

    pub const fn places(objects: usize, segments: usize) -> Places {
        let ids = TABLE + TABLE_BYTES;
        let strings = ids + COUNT_BYTES + 4 * objects;
        let specs = count_before_8(strings + ID_STRING_BYTES * objects);
        let fds = specs + COUNT_BYTES + ObjectSpec::WIRE_BYTES * objects;
        let unique_ids = count_before_8(fds + COUNT_BYTES + 4 * segments);
        let mmap_sizes = count_before_8(unique_ids + COUNT_BYTES + 8 * segments);
        let handles = mmap_sizes + COUNT_BYTES + 8 * segments;
        Places {
            vectors: [ids, specs, fds, unique_ids, mmap_sizes, handles],
            strings,
            body_bytes: (handles + COUNT_BYTES).next_multiple_of(8),
        }
    }
}

/// Appends the answer to a get to `out`. Send the descriptors of those of its segments next that this client doesn't
/// have, in the order of the list.
pub fn encode_get_reply(out: &mut Vec<u8>, reply: &GetReply<'_>) {
    let (objects, segments) = (reply.object_ids.len(), reply.store_fds.len());
    let places = get::places(objects, segments);
    let start = out.len();
    out.extend_from_slice(&get::FRAME);
    // Zeros are the padding, the strings' NULs and the empty list of handles.
    out.resize(start + HEADER_BYTES + places.body_bytes, 0);
    let frame = &mut out[start..];
    frame[16..HEADER_BYTES].copy_from_slice(&(places.body_bytes as u64).to_le_bytes());

    let counts = [objects, objects, segments, segments, segments, 0];
    for (slot, (&vector, count)) in places.vectors.iter().zip(counts).enumerate() {
        let field = get::TABLE + 4 + 4 * slot;
        set(frame, field, &((vector - field) as u32).to_le_bytes());
        set(frame, vector, &(count as u32).to_le_bytes());
    }
    let [ids, specs, fds, unique_ids, mmap_sizes, _] =
        places.vectors.map(|vector| vector + COUNT_BYTES);
    for (i, id) in reply.object_ids.iter().enumerate() {
        let (pointer, string) = (ids + 4 * i, places.strings + ID_STRING_BYTES * i);
        set(frame, pointer, &((string - pointer) as u32).to_le_bytes());
        set(frame, string, &(ObjectId::LEN as u32).to_le_bytes());
        set(frame, string + COUNT_BYTES, id.as_bytes());
    }
    for (i, object) in reply.objects.iter().enumerate().take(objects) {
        set(frame, specs + ObjectSpec::WIRE_BYTES * i, &object.to_wire());
    }
    for (i, segment) in reply.segments().enumerate() {
        set(frame, fds + 4 * i, &segment.store_fd.to_le_bytes());
        set(
            frame,
            unique_ids + 8 * i,
            &segment.unique_fd_id.to_le_bytes(),
        );
        set(
            frame,
            mmap_sizes + 8 * i,
            &segment.mmap_size_bytes.to_le_bytes(),
        );
    }
}
