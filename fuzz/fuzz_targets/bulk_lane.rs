//! What another node says on a lane of the bulk port: frames of any kind with right and wrong checksums, and the bytes behind them. The
//! lane takes it or ends with an error, and whatever it wants received or copied goes to where it was told to, inside of the memory.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use raylet_transport::bulk::frame::{FRAME_BYTES, SUM_BYTES};
use raylet_transport::bulk::hello::{Challenge, Hello, Verdict, CHALLENGE_BYTES, HELLO_BYTES, VERDICT_BYTES};
use raylet_transport::bulk::lane::{Loan, Piece, Place, Reader, Step, Writer};
use raylet_transport::checksum::crc32c;
use raylet_transport::uring::{IoMemory, PageBuffer};

const CHUNK_MAX_BYTES: u32 = 8 << 10;
/// A frame without its checksum.
const SAID_BYTES: usize = FRAME_BYTES - SUM_BYTES;

/// The bytes on the wire: where the first byte of a part is even, a frame with its checksum made right; else what follows, as it is.
fn wire(mut input: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    while let Some((how, rest)) = input.split_first() {
        let frame = how % 2 == 0 && rest.len() >= SAID_BYTES;
        let (part, rest) = rest.split_at(if frame { SAID_BYTES } else { usize::from(*how).min(rest.len()) });
        wire.extend_from_slice(part);
        if how % 4 != 3 {
            wire.extend_from_slice(&crc32c(part).to_le_bytes());
        }
        input = rest;
    }
    wire
}

fn is_inside(piece: &Piece) -> bool {
    piece.len > 0 && piece.memory.address(piece.offset, piece.len as usize).is_some()
}

fuzz_target!(|input: &[u8]| {
    if let Ok(bytes) = <&[u8; HELLO_BYTES]>::try_from(&input[..input.len().min(HELLO_BYTES)]) {
        let _ = Hello::decode(bytes).map(|hello| assert_eq!(hello.encode()[..8], bytes[..8]));
    }
    if let Some(bytes) = input.first_chunk::<CHALLENGE_BYTES>() {
        let _ = Challenge::decode(bytes);
    }
    if let Some(bytes) = input.first_chunk::<VERDICT_BYTES>() {
        let _ = Verdict::decode(bytes);
    }
    let wire = wire(input);
    let (mut reader, mut writer) = (Reader::new(CHUNK_MAX_BYTES).expect("memory"), Writer::new().expect("memory"));
    let memory: Rc<dyn IoMemory> = Rc::new(PageBuffer::new(CHUNK_MAX_BYTES as usize).expect("memory"));
    let mut coming = &wire[..];
    while let Ok(step) = reader.step() {
        match step {
            Step::Receive(piece) => {
                assert!(is_inside(&piece));
                let (now, rest) = coming.split_at((piece.len as usize).min(coming.len()));
                if now.is_empty() {
                    return;
                }
                assert!(piece.memory.write(piece.offset, now));
                coming = rest;
                if reader.received(now.len() as u32).is_err() {
                    return;
                }
            }
            Step::Chunk(frame) => {
                assert!(frame.len_bytes <= CHUNK_MAX_BYTES);
                // One in three is not wanted.
                let place = (frame.index % 3 > 0).then(|| Place { memory: memory.clone(), offset: 0 });
                reader.place(place);
            }
            Step::Copy(Loan { to, .. }) => {
                assert!(is_inside(&to) && reader.is_copying());
                // Half of it at a time, as a short read does.
                if reader.received(to.len / 2).is_err() {
                    return;
                }
            }
            Step::Taken { say, .. } => writer.say(say),
            Step::Said(_) => {
                // Nothing was lent.
                assert!(writer.taken().is_err());
            }
            Step::Whole(frame, bytes) => assert_eq!(bytes.len(), frame.len_bytes as usize),
            Step::Landed { .. } => {}
            Step::Wait => unreachable!("every chunk was given a place or none"),
        }
    }
});
