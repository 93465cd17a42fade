//! A peer that writes what it likes into the rings' memory, between honest reads and writes of both sides. Whatever it does, the answer is
//! a record of an allowed length or an error, and an error stays.
#![no_main]

use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use raylet_transport::frame::Head;
use raylet_transport::ring::layout::{body_max_bytes, memory_bytes, LINES_MIN};
use raylet_transport::ring::{Record, Rings, Wake};

/// A write: where, and which eight bytes.
const STEP_BYTES: usize = 11;

fuzz_target!(|received: &[u8]| {
    let (mut node, descriptors) = Rings::create(LINES_MIN).expect("memory for a small ring");
    let copies: [OwnedFd; 3] = descriptors.each_ref().map(|fd| fd.try_clone().expect("a descriptor"));
    let mut client = Rings::open(LINES_MIN, copies).expect("our own rings");
    let [file, ..] = descriptors;
    let mut file = std::fs::File::from(file);
    let mut record = Record::default();
    for step in received.chunks_exact(STEP_BYTES) {
        let at = u64::from(u16::from_le_bytes([step[0], step[1]])) * 8 % memory_bytes(LINES_MIN);
        file.seek(SeekFrom::Start(at)).expect("inside of the file");
        file.write_all(&step[3..]).expect("inside of the file");
        for rings in [&mut node, &mut client] {
            let end = &mut rings.endpoint;
            let _ = end.push(Head::new(u16::from(step[2]), 1), &[step[2]; 300][..usize::from(step[2])]);
            let was_condemned = end.condemned().cloned();
            match end.pop(&mut record) {
                Ok(true) => assert!(record.body().len() <= body_max_bytes(LINES_MIN)),
                Ok(false) => {}
                Err(error) => assert!(was_condemned.is_none_or(|was| was == error)),
            }
            let _ = end.announce_sleep(Wake { for_data: true, for_space: Some(usize::from(step[2])) });
            end.must_wake();
        }
    }
});
