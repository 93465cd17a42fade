//! Bytes that arrive on the native door's socket, on either side. Whatever is accepted has to mean the same after being written and
//! read again, and the stream's pieces must not matter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raylet_transport::frame::{Decoder, Encoder, Head};
use raylet_transport::messages::{Reply, Request};

/// Longer inputs find nothing new and slow the fuzzer down.
const LIMIT_BYTES: u32 = 1 << 16;

/// A frame of its own that says the same.
fn again(head: Head, encode: impl FnOnce(&mut Encoder, Head)) -> Decoder {
    let mut encoder = Encoder::new(u32::MAX);
    encode(&mut encoder, head);
    let mut decoder = Decoder::new(u32::MAX);
    decoder.on_bytes(encoder.unsent().bytes);
    decoder
}

fuzz_target!(|received: &[u8]| {
    // The first byte says where the stream is cut.
    let Some((cut, stream)) = received.split_first() else {
        return;
    };
    let (first, second) = stream.split_at(usize::from(*cut).min(stream.len()));
    let (mut whole, mut pieces) = (Decoder::new(LIMIT_BYTES), Decoder::new(LIMIT_BYTES));
    whole.on_bytes(stream);
    pieces.on_bytes(first);
    let mut from_first = Vec::new();
    while let Ok(Some(frame)) = pieces.next_frame() {
        from_first.push((frame.head, frame.body.to_vec()));
    }
    let mut from_first = from_first.into_iter();
    pieces.on_bytes(second);
    while let Ok(Some(frame)) = whole.next_frame() {
        let (head, body) = match from_first.next() {
            Some(frame) => frame,
            None => {
                let frame = pieces.next_frame().expect("as in one piece").expect("as in one piece");
                (frame.head, frame.body.to_vec())
            }
        };
        assert_eq!((head, &body[..]), (frame.head, frame.body));
        if let Ok(request) = Request::read(frame.head, frame.body) {
            let request = request.to_owned().expect("what was checked can be copied");
            let mut again = again(head, |encoder, head| request.encode(encoder, head).expect("it fits"));
            let frame = again.next_frame().expect("our frame").expect("our whole frame");
            let read = Request::read(frame.head, frame.body).expect("our message");
            assert_eq!(read.to_owned().expect("what was checked can be copied"), request);
        }
        if let Ok(reply) = Reply::read(frame.head, frame.body) {
            let reply = reply.to_owned().expect("what was checked can be copied");
            let mut again = again(head, |encoder, head| reply.encode(encoder, head).expect("it fits"));
            let frame = again.next_frame().expect("our frame").expect("our whole frame");
            let read = Reply::read(frame.head, frame.body).expect("our message");
            assert_eq!(read.to_owned().expect("what was checked can be copied"), reply);
        }
    }
});
