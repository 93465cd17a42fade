//! Bytes that arrive on the cores' gRPC port. Whatever is sent in answer is whole frames, and it is the same however the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socket_protocols::ray::core_rpc::http2::frames::{Frame, PREFACE};
use socket_protocols::ray::core_rpc::http2::Session;

/// What is answered to bytes that come in pieces of this length; calls are answered with their own message.
fn answers(received: &[u8], step: usize) -> (Vec<u8>, bool) {
    let (mut session, mut calls) = (Session::<Vec<u8>>::default(), Vec::new());
    let mut out = Vec::new();
    let mut hear = |bytes: &[u8]| {
        let heard = session.receive(bytes, &mut calls, |head| head.path.to_vec());
        for call in calls.drain(..) {
            session.reply(call.stream, call.message);
        }
        out.append(session.out());
        heard.is_ok()
    };
    let understood = hear(PREFACE) && received.chunks(step).all(hear);
    (out, understood)
}

fuzz_target!(|input: &[u8]| {
    // The first byte says how the rest is cut.
    let Some((step, received)) = input.split_first() else {
        return;
    };
    let step = usize::from(*step).max(1);
    let (out, understood) = answers(received, step);
    let mut rest = &out[..];
    while let Some((_, length)) = Frame::split(rest).expect("our frame") {
        rest = &rest[length..];
    }
    assert!(rest.is_empty(), "whole frames");
    assert_eq!(understood, answers(received, 1).1);
});
