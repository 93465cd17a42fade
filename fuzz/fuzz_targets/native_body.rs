//! Bodies of every type of message of the native door, without a frame that has to fit: what the check accepts can be looked at.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raylet_transport::frame::Head;
use raylet_transport::messages::{Reply, Request, REPLY_LAYOUTS, REQUEST_LAYOUTS};
use raylet_transport::ring::Record;

fuzz_target!(|received: &[u8]| {
    // The first byte picks the message.
    let Some((pick, body)) = received.split_first() else {
        return;
    };
    let pick = usize::from(*pick) % (REQUEST_LAYOUTS.len() + REPLY_LAYOUTS.len());
    let (message_type, _) = REQUEST_LAYOUTS.iter().chain(REPLY_LAYOUTS).nth(pick).expect("one of them");
    // As it comes out of a ring: aligned.
    let mut record = Record::default();
    record.copy_from(Head::new(*message_type, 1), body);
    if let Ok(request) = Request::read(record.head(), record.body()) {
        request.to_owned().expect("what was checked can be copied");
    }
    if let Ok(reply) = Reply::read(record.head(), record.body()) {
        reply.to_owned().expect("what was checked can be copied");
    }
});
