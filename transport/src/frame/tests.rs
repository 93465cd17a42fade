use proptest::prelude::*;

use super::*;
use crate::ids::ObjectId;
use crate::messages::{Contains, Done, Message, OwnedReply, OwnedRequest, Refused, Reply, Request};

fn frame_of<M: Message>(head: Head, message: &M) -> Vec<u8> {
    let mut encoder = Encoder::new(BODY_MAX_BYTES);
    encoder.frame(head, message).unwrap();
    encoder.unsent().bytes.to_vec()
}

fn decoder_of(bytes: &[u8]) -> Decoder {
    let mut decoder = Decoder::new(BODY_MAX_BYTES);
    decoder.on_bytes(bytes);
    decoder
}

#[test]
fn a_frame_byte_by_byte() {
    let head = Head::new(Done::TYPE, 0x0403_0201).one_way().with_descriptors(3);
    let bytes = frame_of(head, &Done { count: 0x1122 });
    let expected = [&[8, 0, 0, 0][..], b"RNTV", &[134, 0, 1, 0x83, 1, 2, 3, 4], &[0x22, 0x11, 0, 0, 0, 0, 0, 0]];
    assert_eq!(bytes, expected.concat());
    assert_eq!((head.is_one_way(), head.descriptors()), (true, 3));
    assert_eq!(Head::from_word(head.to_word()), head);
}

#[test]
fn a_body_is_padded_and_the_padding_is_checked() {
    let bytes = frame_of(Head::new(Contains::TYPE, 1), &Contains { object: ObjectId([5; 28]) });
    assert_eq!(bytes.len(), LEAD_BYTES + 32);
    assert_eq!(bytes[0], 28);
    let mut decoder = decoder_of(&bytes);
    assert_eq!(decoder.next_frame().unwrap().unwrap().body, [5; 28]);
    let mut wrong = bytes.clone();
    wrong[LEAD_BYTES + 29] = 1;
    assert_eq!(decoder_of(&wrong).next_frame(), Err(FrameError::Padding { got: vec![0, 1, 0, 0] }));
}

#[test]
fn frames_come_out_only_whole_and_a_cut_one_is_short() {
    let bytes = frame_of(Head::new(Done::TYPE, 1), &Done { count: 1 });
    for cut in 1..bytes.len() {
        let mut decoder = decoder_of(&bytes[..cut]);
        assert_eq!(decoder.next_frame(), Ok(None), "{cut}");
        let expected_bytes = if cut < LEAD_BYTES { LEAD_BYTES } else { bytes.len() };
        assert_eq!(decoder.finish(), Err(FrameError::Short { got_bytes: cut, expected_bytes }));
        decoder.on_bytes(&bytes[cut..]);
        assert!(decoder.next_frame().unwrap().is_some());
        assert_eq!(decoder.finish(), Ok(()));
    }
}

#[test]
fn a_frame_that_is_too_long_is_refused_by_its_lead() {
    let bytes = frame_of(Head::new(Done::TYPE, 1), &Done { count: 1 });
    let mut decoder = Decoder::new(7);
    decoder.on_bytes(&bytes[..LEAD_BYTES]);
    let error = FrameError::Long { got_bytes: 8, limit_bytes: 7 };
    assert_eq!(decoder.next_frame(), Err(error.clone()));
    assert!(error.is_fatal());
    let mut encoder = Encoder::new(7);
    assert_eq!(encoder.frame(Head::new(Done::TYPE, 1), &Done { count: 1 }), Err(error));
    assert_eq!(encoder.unsent_bytes(), 0, "nothing of it is left");
}

#[test]
fn another_protocol_is_told_by_its_first_words() {
    let error = decoder_of(b"GET / HTTP/1.1\r\nHost").next_frame().unwrap_err();
    assert_eq!(error, FrameError::Mark { got: u32::from_le_bytes(*b"/ HT") });
    assert!(error.is_fatal());
}

#[test]
fn what_cannot_be_read_does_not_harm_the_stream() {
    let done = Done { count: 1 };
    let frames = [
        (Head::new(9999, 1), "UnknownType"),
        (Head { version: 2, ..Head::new(Done::TYPE, 1) }, "NewerVersion"),
        (Head { version: 0, ..Head::new(Done::TYPE, 1) }, "NewerVersion"),
        (Head { flags: 0x40, ..Head::new(Done::TYPE, 1) }, "NewerVersion"),
        (Head::new(Contains::TYPE, 1), "UnknownType"),
        (Head::new(Refused::TYPE, 1), "Malformed"),
    ];
    let bytes: Vec<u8> = frames.iter().flat_map(|(head, _)| frame_of(*head, &done)).collect();
    let mut decoder = decoder_of(&bytes);
    for (_, expected) in frames {
        let frame = decoder.next_frame().unwrap().unwrap();
        let error = Reply::read(frame.head, frame.body).unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{error:?}, expected {expected}");
        assert!(!error.is_fatal());
    }
    assert_eq!(decoder.finish(), Ok(()));
}

#[test]
fn a_misaligned_body_is_told_from_a_malformed_one() {
    let bytes = frame_of(Head::new(Done::TYPE, 1), &Done { count: 1 });
    let mut shifted = rkyv::util::AlignedVec::<16>::new();
    shifted.extend_from_slice(&[0; 4]);
    shifted.extend_from_slice(&bytes[LEAD_BYTES..]);
    let error = Reply::read(Head::new(Done::TYPE, 1), &shifted[4..]).unwrap_err();
    assert_eq!(error, FrameError::Misaligned { at_bytes: 4 });
}

#[test]
fn descriptors_go_with_their_frame_and_no_other() {
    let descriptor = || rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let mut encoder = Encoder::new(BODY_MAX_BYTES);
    let (head, done) = (Head::new(Done::TYPE, 1), Done { count: 1 });
    encoder.frame(head, &done).unwrap();
    encoder.frame_with(head, &done, vec![descriptor(), descriptor()]).unwrap();
    encoder.frame(head, &done).unwrap();
    let mut sizes = Vec::new();
    while encoder.unsent_bytes() > 0 {
        let unsent = encoder.unsent();
        sizes.push((unsent.bytes.len(), unsent.descriptors.len()));
        // In pieces: the descriptors leave with the first.
        encoder.sent(20);
    }
    assert_eq!(sizes, [(24, 0), (4, 0), (24, 2), (28, 0), (8, 0)]);
}

#[test]
fn a_buffer_that_is_never_empty_does_not_grow() {
    let mut encoder = Encoder::new(BODY_MAX_BYTES);
    let head = Head::new(Done::TYPE, 1);
    for n in 0..100_000u64 {
        encoder.frame(head, &Done { count: n }).unwrap();
        if n > 3 {
            encoder.sent(24);
        }
    }
    assert_eq!(encoder.unsent_bytes(), 4 * 24);
    assert!(encoder.capacity_bytes() < 1 << 20, "{} bytes", encoder.capacity_bytes());
    let bytes = encoder.unsent().bytes.to_vec();
    let mut decoder = decoder_of(&bytes);
    let frame = decoder.next_frame().unwrap().unwrap();
    assert!(matches!(Reply::read(frame.head, frame.body).unwrap(), Reply::Done(done) if done.count == 99_996));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..Default::default() })]

    /// Many frames, cut anywhere, come out as they went in.
    #[test]
    fn a_stream_in_any_pieces(
        requests in prop::collection::vec(any::<OwnedRequest>(), 1..20),
        pieces in prop::collection::vec(1usize..700, 1..50),
    ) {
        let mut encoder = Encoder::new(BODY_MAX_BYTES);
        for (n, request) in requests.iter().enumerate() {
            request.encode(&mut encoder, Head::new(0, n as u32)).unwrap();
        }
        let stream = encoder.unsent().bytes.to_vec();
        let (mut decoder, mut at, mut read) = (Decoder::new(BODY_MAX_BYTES), 0, 0);
        for piece in pieces.iter().cycle() {
            let end = (at + piece).min(stream.len());
            if piece % 2 == 0 {
                decoder.on_bytes(&stream[at..end]);
            } else {
                decoder.room()[..end - at].copy_from_slice(&stream[at..end]);
                decoder.filled(end - at);
            }
            at = end;
            while let Some(frame) = decoder.next_frame().unwrap() {
                let request = Request::read(frame.head, frame.body).unwrap();
                prop_assert_eq!(frame.head.correlation, read as u32);
                prop_assert_eq!(&request.to_owned().unwrap(), &requests[read]);
                read += 1;
            }
            if at == stream.len() {
                break;
            }
        }
        prop_assert_eq!(read, requests.len());
        prop_assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn a_reply_reads_back(reply in any::<OwnedReply>()) {
        let mut encoder = Encoder::new(BODY_MAX_BYTES);
        reply.encode(&mut encoder, Head::new(0, 7)).unwrap();
        let mut decoder = decoder_of(encoder.unsent().bytes);
        let frame = decoder.next_frame().unwrap().unwrap();
        prop_assert_eq!(Reply::read(frame.head, frame.body).unwrap().to_owned().unwrap(), reply);
    }

    /// Whatever is flipped, reading ends with a message or an error.
    #[test]
    fn flipped_bits_are_errors_at_most(reply in any::<OwnedReply>(), flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6)) {
        let mut encoder = Encoder::new(BODY_MAX_BYTES);
        reply.encode(&mut encoder, Head::new(0, 7)).unwrap();
        let mut bytes = encoder.unsent().bytes.to_vec();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        let mut decoder = decoder_of(&bytes);
        if let Ok(Some(frame)) = decoder.next_frame() {
            if let Ok(reply) = Reply::read(frame.head, frame.body) {
                let _ = reply.to_owned();
            }
        }
    }
}
