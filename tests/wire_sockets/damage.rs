//! Damaged bodies are refused with an error that says where, and never bring the reader down.

use crate::support::{only_frame, recorded};
use proptest::collection::vec;
use proptest::prelude::*;
use raylet_shard::ids::{NodeId, ObjectId, WorkerId};
use raylet_uring::ray::wire::raylet::OwnerAddress;
use raylet_uring::ray::wire::{plasma, raylet, Encoder, WireError};

/// Reads `body` as whatever it claims to be, and walks all of what comes out.
fn read_raylet(message_type: i64, body: &[u8]) -> Result<(), WireError> {
    if let Ok(reply) = raylet::decode_reply(message_type, body) {
        if let raylet::Reply::Wait(wait) = reply {
            assert_eq!(wait.found.iter().count(), wait.found.len());
            assert_eq!(wait.remaining.iter().count(), wait.remaining.len());
        }
        return Ok(());
    }
    match raylet::decode(message_type, body)? {
        raylet::Request::AsyncGet { refs, .. }
        | raylet::Request::Wait { refs, .. }
        | raylet::Request::WaitForActorCallArgs { refs, .. } => {
            assert_eq!(refs.iter().count(), refs.len())
        }
        raylet::Request::FreeObjects { object_ids, .. } => {
            assert_eq!(object_ids.iter().count(), object_ids.len())
        }
        _ => {}
    }
    Ok(())
}

/// As [`read_raylet`], for the other socket.
fn read_plasma(message_type: i64, body: &[u8]) -> Result<(), WireError> {
    if let Ok(reply) = plasma::decode_reply(message_type, body) {
        match reply {
            plasma::Reply::Get(get) => {
                assert_eq!(get.object_ids.iter().count(), get.objects.iter().count());
                assert_eq!(get.segments().count(), get.store_fds.len());
            }
            plasma::Reply::Delete { object_ids, errors } => {
                assert_eq!(object_ids.iter().count(), errors.iter().count());
            }
            _ => {}
        }
        return Ok(());
    }
    match plasma::decode(message_type, body)? {
        plasma::Request::Get { object_ids, .. } | plasma::Request::Delete { object_ids } => {
            assert_eq!(object_ids.iter().count(), object_ids.len());
        }
        _ => {}
    }
    Ok(())
}

type Read = fn(i64, &[u8]) -> Result<(), WireError>;

const SOCKETS: [(&str, Read); 2] = [("raylet", read_raylet), ("plasma", read_plasma)];

#[test]
fn a_body_cut_short_is_refused() {
    for (socket, read) in SOCKETS {
        for (name, bytes) in recorded(socket) {
            let frame = only_frame(&bytes);
            assert_eq!(read(frame.message_type, frame.body), Ok(()), "{name}");
            // The end may be padding and a string's NUL, which nobody needs; a reader must miss all before.
            let mut missed = 0;
            for length in 0..frame.body.len() {
                missed += usize::from(read(frame.message_type, &frame.body[..length]).is_err());
            }
            let spare = frame.body.len() - missed;
            assert!(spare <= 16 || frame.body.len() < 16, "{name}: still read without its last {spare} bytes");
        }
    }
}

#[test]
fn no_flipped_bit_brings_the_reader_down() {
    let (mut refused, mut read_anyway) = (0u32, 0u32);
    for (socket, read) in SOCKETS {
        for (_, bytes) in recorded(socket) {
            let frame = only_frame(&bytes);
            let mut body = frame.body.to_vec();
            for bit in 0..body.len() * 8 {
                body[bit / 8] ^= 1 << (bit % 8);
                match read(frame.message_type, &body) {
                    Ok(()) => read_anyway += 1,
                    Err(_) => refused += 1,
                }
                body[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
    // Most bits are content; flips in offsets, lengths and field lists have to be noticed.
    assert!(refused > 1000, "only {refused} of {} flips were refused", refused + read_anyway);
}

#[test]
fn a_body_of_another_message_is_refused_or_read_but_never_fatal() {
    for (socket, read) in SOCKETS {
        for (_, bytes) in recorded(socket) {
            let frame = only_frame(&bytes);
            for message_type in -1..20 {
                let _ = read(message_type, frame.body);
            }
        }
    }
}

#[test]
fn errors_say_where_and_what() {
    let seal = recorded("plasma_seal").swap_remove(0).1;
    let body = only_frame(&seal).body;
    // The id's length is the u32 28 bytes and a NUL with padding before the end.
    let length_at = body.len() - 36;
    assert_eq!(body[length_at..length_at + 4], [28, 0, 0, 0]);
    let mut short_id = body.to_vec();
    short_id[length_at] = 27;
    let error = plasma::decode(plasma::message_type::SEAL_REQUEST, &short_id).unwrap_err();
    assert_eq!(error.to_string(), "PlasmaSealRequest.object_id is an id of 27 bytes, expected 28");

    let error = plasma::decode(plasma::message_type::SEAL_REQUEST, &body[..20]).unwrap_err();
    assert!(matches!(error, WireError::OutOfBounds { table: "PlasmaSealRequest", field: "object_id", .. }), "{error}");

    let error = plasma::decode(plasma::message_type::SEAL_REPLY, body).unwrap_err();
    assert_eq!(error.to_string(), "plasma socket: message type 7 is not a request of Ray 2.60");
    let error = raylet::decode(99, body).unwrap_err();
    assert_eq!(error.to_string(), "raylet socket: message type 99 is not a request of Ray 2.60");

    let connect = recorded("plasma_connect").swap_remove(0).1;
    let error = plasma::decode(plasma::message_type::SEAL_REQUEST, only_frame(&connect).body).unwrap_err();
    assert_eq!(error, WireError::Missing { table: "PlasmaSealRequest", field: "object_id" });
}

#[test]
fn an_address_that_is_no_address_is_refused() {
    let owner = |ip_address| OwnerAddress { node_id: NodeId::NIL, ip_address, port: 1, worker_id: WorkerId::NIL };
    let long = "1".repeat(256);
    for (ip_address, accepted) in [(&long[..255], true), (&long[..], false)] {
        let request = raylet::Request::SubscribePlasmaReady { object_id: ObjectId([1; 28]), owner: owner(ip_address) };
        let mut bytes = Vec::new();
        request.encode(&mut Encoder::new(), &mut bytes);
        let frame = only_frame(&bytes);
        let read = raylet::decode(frame.message_type, frame.body);
        assert_eq!(read.is_ok(), accepted, "{read:?}");

        let place = frame.body.windows(4).position(|four| four == b"1111").expect("the text");
        let mut body = frame.body.to_vec();
        body[place + 2] = 0xff;
        let read = raylet::decode(frame.message_type, &body);
        let expected = if accepted {
            WireError::NotUtf8 { table: "Address", field: "ip_address", valid_bytes: 2 }
        } else {
            WireError::TooLong { table: "Address", field: "ip_address", limit: 255, got: 256 }
        };
        assert_eq!(read, Err(expected));
    }
}

/// A vector may claim 2^32-1 elements; that has to be refused by the body's length, not by walking it.
#[test]
fn a_huge_count_is_refused_at_once() {
    let get = recorded("plasma_get_now").swap_remove(0).1;
    let mut body = only_frame(&get).body.to_vec();
    let count_at = body.len() - 36 - 8;
    assert_eq!(body[count_at..count_at + 4], [1, 0, 0, 0]);
    body[count_at..count_at + 4].copy_from_slice(&[0xff; 4]);
    let error = plasma::decode(plasma::message_type::GET_REQUEST, &body).unwrap_err();
    assert!(matches!(error, WireError::OutOfBounds { field: "object_ids", needed: 0x3_ffff_fffc, .. }), "{error}");
}

proptest! {
    #[test]
    fn random_bytes_are_never_fatal(message_type in -1i64..20, body in vec(any::<u8>(), 0..300)) {
        let _ = read_raylet(message_type, &body);
        let _ = read_plasma(message_type, &body);
    }

    /// Small numbers make offsets that stay inside the body, so that reading gets further.
    #[test]
    fn random_small_words_are_never_fatal(message_type in -1i64..20, words in vec(0u16..64, 0..150)) {
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let _ = read_raylet(message_type, &body);
        let _ = read_plasma(message_type, &body);
    }
}
