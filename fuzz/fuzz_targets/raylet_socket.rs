//! Bytes that arrive on the raylet socket. Whatever is accepted has to mean the same after being written and read
//! again, so nothing of a message is lost on the way and no view of it is out of bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socket_protocols::ray::wire::raylet::{decode, decode_reply};
use socket_protocols::ray::wire::{frame, Encoder};

/// Longer inputs find nothing new and slow the fuzzer down.
const LIMIT_BYTES: u64 = 1 << 16;

fuzz_target!(|received: &[u8]| {
    let _ = frame::split(received, LIMIT_BYTES);
    let Some((head, body)) = received.split_first_chunk() else {
        return;
    };
    // All that follows the header is the body, whatever length it announces: so most changes of length stay readable.
    let Ok(frame::Header { message_type, .. }) = frame::parse_header(head, LIMIT_BYTES) else {
        return;
    };
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    if let Ok(request) = decode(message_type, body) {
        request.encode(&mut encoder, &mut out);
        let again = frame::split(&out, u64::MAX)
            .expect("our header")
            .expect("our whole frame");
        assert_eq!(again.message_type, message_type);
        let again = decode(again.message_type, again.body).expect("our own frame");
        // By text, which is complete and says that a timestamp that is no number equals itself.
        assert_eq!(format!("{again:?}"), format!("{request:?}"));
    }
    out.clear();
    if let Ok(reply) = decode_reply(message_type, body) {
        reply.encode(&mut encoder, &mut out);
        let again = frame::split(&out, u64::MAX)
            .expect("our header")
            .expect("our whole frame");
        assert_eq!(again.message_type, message_type);
        assert_eq!(decode_reply(again.message_type, again.body), Ok(reply));
    }
});
