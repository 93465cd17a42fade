use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use proptest::prelude::*;

use super::frame::{Frame, FrameError, Kind, FRAME_BYTES, SUM_BYTES, WHOLE_MAX_BYTES};
use super::hello::{is_proven, prove, Challenge, Hello, Purpose, Refusal, Side, Verdict};
use super::lane::{LaneError, Place, Reader, Step, Writer, COPIED_HERE_BYTES, OPERATION_BYTES};
use crate::ids::{NodeId, ObjectId};
use crate::uring::{Completion, CoreRing, Doorbell, FileOperation, FileResult, IoMemory, PageBuffer};

const CHUNK_MAX: u32 = 4 << 20;
const OBJECT: ObjectId = ObjectId([7; ObjectId::LEN]);

/// What a lane brought.
#[derive(Debug, Default, PartialEq)]
struct Came {
    said: Vec<Frame>,
    wholes: Vec<Vec<u8>>,
    landed: Vec<bool>,
}

/// Carries what the writer sends to the reader, in pieces of at most `piece` bytes, and flips the bit of the byte at `flip`.
fn carry(
    writer: &mut Writer,
    places: &mut VecDeque<Option<Place>>,
    piece: usize,
    flip: Option<usize>,
) -> Result<Came, LaneError> {
    let mut wire = VecDeque::new();
    while let Some(next) = writer.piece()? {
        let mut bytes = vec![0; (next.len as usize).min(piece)];
        assert!(next.memory.read(next.offset, &mut bytes), "a piece outside of its memory");
        writer.sent(bytes.len() as u32);
        wire.extend(bytes);
    }
    if let Some(byte) = flip.and_then(|at| wire.get_mut(at)) {
        *byte ^= 0x10;
    }
    let (mut reader, mut came) = (Reader::new(CHUNK_MAX)?, Came::default());
    loop {
        match reader.step()? {
            Step::Receive(_) if wire.is_empty() => return Ok(came),
            Step::Receive(to) => {
                let now = (to.len as usize).min(piece).min(wire.len());
                let bytes: Vec<u8> = wire.drain(..now).collect();
                assert!(to.memory.write(to.offset, &bytes), "a piece outside of its memory");
                reader.received(now as u32)?;
            }
            Step::Said(frame) => came.said.push(frame),
            Step::Whole(_, bytes) => came.wholes.push(bytes.into_vec()),
            Step::Chunk(_) => reader.place(places.pop_front().expect("a place for each chunk")),
            Step::Landed { ok } => came.landed.push(ok),
            Step::Wait => panic!("every chunk was given a place"),
            Step::Copy(_) | Step::Taken { .. } => panic!("nothing was lent"),
        }
    }
}

fn memory(bytes: &[u8]) -> Rc<dyn IoMemory> {
    let memory = PageBuffer::new(bytes.len()).expect("memory");
    assert!(memory.write(0, bytes));
    Rc::new(memory)
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

fn chunk(len: u32) -> Frame {
    Frame { push: 5, total_bytes: len.into(), len_bytes: len, ..Frame::new(Kind::Chunk, OBJECT) }
}

/// Frames, a small object, a chunk that has a place and one that has none, and one more.
fn loaded(sizes: [usize; 3]) -> (Writer, VecDeque<Option<Place>>, Vec<u8>, Rc<dyn IoMemory>) {
    let mut writer = Writer::new().expect("memory");
    let (source, target) = (bytes(sizes[0], 1), memory(&vec![0; sizes[0]]));
    writer.say(Frame::new(Kind::Want, OBJECT));
    writer.send_whole(Frame::new(Kind::Whole, OBJECT), bytes(sizes[1], 2).into());
    writer.send_chunk(1, chunk(sizes[0] as u32), Place { memory: memory(&source), offset: 0 });
    writer.send_chunk(2, chunk(sizes[2] as u32), Place { memory: memory(&bytes(sizes[2], 3)), offset: 0 });
    writer.say(Frame::new(Kind::Stop, OBJECT));
    let places = VecDeque::from([Some(Place { memory: target.clone(), offset: 0 }), None]);
    (writer, places, source, target)
}

proptest! {
    #[test]
    fn a_frame_is_read_as_it_was_written(mut frame in any::<Frame>()) {
        frame.len_bytes = match frame.kind {
            Kind::Chunk | Kind::Lent => frame.len_bytes % (CHUNK_MAX + 1),
            Kind::Whole => frame.len_bytes % (WHOLE_MAX_BYTES + 1),
            _ => 0,
        };
        match frame.kind {
            Kind::Lent => frame.offset %= 1 << 62,
            _ => (frame.segment, frame.offset) = (0, 0),
        }
        prop_assert_eq!(Frame::decode(&frame.encode(), CHUNK_MAX), Ok(frame));
    }

    #[test]
    fn a_frame_with_another_bit_is_refused(frame in any::<Frame>(), at in 0..FRAME_BYTES * 8) {
        let mut bytes = frame.encode();
        bytes[at / 8] ^= 1 << (at % 8);
        prop_assert!(Frame::decode(&bytes, u32::MAX).is_err());
    }

    #[test]
    fn what_is_sent_arrives_in_any_pieces(
        large in 1usize..1_500_000, small in 1usize..=WHOLE_MAX_BYTES as usize, dropped in 1usize..300_000,
        piece in 1usize..200_000,
    ) {
        let piece = piece.max(large / 500);
        let (mut writer, mut places, source, target) = loaded([large, small, dropped]);
        let came = carry(&mut writer, &mut places, piece, None).expect("a sound lane");
        prop_assert_eq!(came.said.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::Want, Kind::Stop]);
        prop_assert_eq!(&came.wholes, &[bytes(small, 2)]);
        prop_assert_eq!(&came.landed, &[true], "what has no place is dropped");
        let mut arrived = vec![0; large];
        prop_assert!(target.read(0, &mut arrived));
        prop_assert_eq!(arrived, source);
    }

    #[test]
    fn a_wrong_byte_is_noticed_wherever_it_is(at in 0usize..FRAME_BYTES * 3 + 8 + 3_000 + 100, piece in 1usize..4_000) {
        let (mut writer, mut places, ..) = loaded([3_000, 100, 1]);
        match carry(&mut writer, &mut places, piece, Some(at)) {
            Ok(came) => prop_assert_eq!(came.landed, [false]),
            Err(LaneError::Frame(_) | LaneError::Whole { .. }) => {}
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}

#[test]
fn a_frame_that_makes_no_sense_says_what_was_expected() {
    let resum = |mut bytes: [u8; FRAME_BYTES]| {
        let (said, sum) = bytes.split_at_mut(FRAME_BYTES - SUM_BYTES);
        sum.copy_from_slice(&crate::checksum::crc32c(said).to_le_bytes());
        bytes
    };
    let good = Frame::new(Kind::Want, OBJECT).encode();
    let mut kind = good;
    kind[0] = 77;
    assert_eq!(Frame::decode(&resum(kind), 1), Err(FrameError::Kind(77)));
    let mut reserved = good;
    reserved[37] = 1;
    assert_eq!(Frame::decode(&resum(reserved), 1), Err(FrameError::Reserved));
    let long = Frame { len_bytes: 10, ..chunk(10) };
    let error = Frame::decode(&long.encode(), 9).unwrap_err();
    assert_eq!(error.to_string(), "a frame of kind Chunk tells of 10 bytes, expected at most 9");
    let far = Frame { kind: Kind::Lent, offset: u64::MAX - 5, ..chunk(9) };
    assert_eq!(Frame::decode(&far.encode(), 9), Err(FrameError::Lent { offset: u64::MAX - 5, len_bytes: 9 }));
    let talkative = Frame { len_bytes: 1, ..Frame::new(Kind::Want, OBJECT) };
    assert_eq!(
        Frame::decode(&talkative.encode(), 9),
        Err(FrameError::Length { kind: Kind::Want, len_bytes: 1, most: 0 })
    );
}

/// A reader that was told of a lent chunk, and the chunk's frame.
fn lent(len: u32, place: Option<Place>) -> (Reader, Frame) {
    let mut writer = Writer::new().expect("memory");
    let frame = Frame { kind: Kind::Lent, index: 3, segment: 2, offset: 4096, ..chunk(len) };
    writer.lend(8, frame);
    let said = writer.piece().expect("sound").expect("a frame");
    assert_eq!(said.len as usize, FRAME_BYTES, "and no bytes of the object");
    let (mut reader, mut bytes) = (Reader::new(2 * CHUNK_MAX).expect("memory"), [0; FRAME_BYTES]);
    assert!(said.memory.read(said.offset, &mut bytes));
    let Ok(Step::Receive(to)) = reader.step() else { panic!("there is nothing yet") };
    assert!(to.memory.write(to.offset, &bytes));
    reader.received(said.len).expect("a frame");
    assert!(matches!(reader.step(), Ok(Step::Chunk(came)) if came == frame));
    assert!(matches!(reader.step(), Ok(Step::Wait)));
    reader.place(place);
    (reader, frame)
}

/// What a copy was to be: from where, to where, how many bytes, and whether aside.
type Asked = (u64, u64, u32, bool);

/// Copies as the reader wants it, `most` bytes at a time: what it asked for, and how it ended.
fn copy(reader: &mut Reader, most: u32) -> (Vec<Asked>, Frame, bool) {
    let mut asked = Vec::new();
    loop {
        match reader.step().expect("a sound lane") {
            Step::Copy(loan) => {
                assert!(reader.is_copying() && loan.segment == 2);
                asked.push((loan.at, loan.to.offset, loan.to.len, loan.aside));
                reader.received(loan.to.len.min(most)).expect("bytes");
            }
            Step::Taken { say, placed } => return (asked, say, placed),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_lent_chunk_is_copied_whole_and_then_said_to_be_taken() {
    let place = |len: usize| Some(Place { memory: memory(&vec![0; len]), offset: 0 });
    let small = OPERATION_BYTES + 100;
    let (mut reader, frame) = lent(small, place(small as usize));
    let (asked, say, placed) = copy(&mut reader, OPERATION_BYTES);
    let second = u64::from(OPERATION_BYTES);
    assert_eq!(asked, [(4096, 0, OPERATION_BYTES, false), (4096 + second, second, 100, false)]);
    assert!(placed);
    assert_eq!((say.kind, say.object, say.push, say.index), (Kind::Taken, OBJECT, frame.push, frame.index));
    assert!(matches!(reader.step(), Ok(Step::Receive(_))), "the lane goes on");
    let large = COPIED_HERE_BYTES + 1;
    let (mut reader, _) = lent(large, place(large as usize));
    let (asked, ..) = copy(&mut reader, COPIED_HERE_BYTES);
    let rest = u64::from(COPIED_HERE_BYTES);
    assert_eq!(asked, [(4096, 0, large, true), (4096 + rest, rest, 1, true)], "what is missing of a copy follows");
}

#[test]
fn a_lent_chunk_that_nobody_wants_is_left_alone_and_one_that_is_not_there_ends_the_lane() {
    let (mut reader, _) = lent(1_000, None);
    let (asked, _, placed) = copy(&mut reader, 1);
    assert!(asked.is_empty() && !placed);
    let (mut reader, _) = lent(1_000, Some(Place { memory: memory(&[0; 1_000]), offset: 0 }));
    assert!(matches!(reader.step(), Ok(Step::Copy(_))));
    reader.received(600).expect("bytes");
    assert!(matches!(reader.received(0), Err(LaneError::Short { missing: 400 })));
}

#[test]
fn who_takes_more_than_was_lent_is_found_out() {
    let mut writer = Writer::new().expect("memory");
    writer.lend(4, Frame { kind: Kind::Lent, ..chunk(10) });
    writer.lend(5, Frame { kind: Kind::Lent, ..chunk(10) });
    assert!(matches!(writer.taken(), Ok(4)) && matches!(writer.taken(), Ok(5)));
    assert!(matches!(writer.taken(), Err(LaneError::NothingLent)));
}

#[test]
fn only_who_knows_the_token_is_let_in_and_nothing_said_once_is_of_use_again() {
    let (from, to) = (NodeId([1; 28]), NodeId([2; 28]));
    let hello = Hello { purpose: Purpose::Lane, chunk_bytes: 5, from, to, nonce: [3; 32], session: 8 };
    let said = hello.encode();
    assert_eq!(Hello::decode(&said), Ok(hello));
    assert_eq!(hello.check(&to, 5), Ok(()));
    assert_eq!(hello.check(&from, 5), Err(Refusal::OtherNode));
    assert_eq!(hello.check(&to, 6), Err(Refusal::ChunkBytes));
    let challenge = Challenge { nonce: [4; 32], proof: prove(b"secret", Side::Called, &said, &[4; 32]) };
    assert_eq!(Challenge::decode(&challenge.encode()), Ok(challenge));
    assert_eq!(Challenge::decode(&Challenge::refuse(Refusal::Full)), Err(Refusal::Full));
    assert!(is_proven(b"secret", Side::Called, &said, &[4; 32], &challenge.proof));
    assert!(!is_proven(b"secret", Side::Caller, &said, &[4; 32], &challenge.proof), "a proof sent back");
    assert!(!is_proven(b"other", Side::Called, &said, &[4; 32], &challenge.proof));
    assert!(!is_proven(b"secret", Side::Called, &said, &[5; 32], &challenge.proof), "an old proof");
    assert_eq!(Verdict::decode(&Verdict::encode(Ok(()))), Ok(()));
    assert_eq!(Verdict::decode(&Verdict::encode(Err(Refusal::Token))), Err(Refusal::Token));
    let mut old = said;
    old[8] = 9;
    assert_eq!(Hello::decode(&old), Err(Refusal::Version));
    assert_eq!(Hello::decode(&[b'P'; 120]), Err(Refusal::NoHello));
    let peer = Hello { purpose: Purpose::Peer, to: NodeId::NIL, ..hello };
    assert_eq!(Hello::decode(&peer.encode()), Ok(peer));
    assert_eq!((peer.check(&to, 5), peer.check(&from, 5)), (Ok(()), Err(Refusal::Itself)));
    assert_eq!(peer.check(&to, 6), Err(Refusal::ChunkBytes));
    let proof = prove(b"secret", Side::Caller, &peer.encode(), &[4; 32]);
    assert!(!is_proven(b"secret", Side::Caller, &said, &[4; 32], &proof), "a proof of another purpose");
    for why in [Refusal::Itself, Refusal::NoPeers, Refusal::Token] {
        assert_eq!(Verdict::decode(&Verdict::encode(Err(why))), Err(why));
    }
}

/// A lane whose two ends are on one ring, until `landed` chunks are there.
struct Loop {
    ring: CoreRing,
    ends: [Rc<OwnedFd>; 2],
    busy: [bool; 2],
}

const RECEIVE: u64 = 0;
const SEND: u64 = 1;

impl Loop {
    fn begin(&mut self, key: u64, operation: FileOperation) {
        self.busy[key as usize] = true;
        self.ring.begin(key, operation);
    }

    fn done(&mut self) -> Vec<(u64, u32)> {
        self.ring.wait(None, || false).expect("a wait");
        let mut done = Vec::new();
        self.ring.reap(|completion| match completion {
            Completion::File { key, result: Ok(FileResult::Done(bytes)) } => done.push((key, bytes)),
            other => panic!("{other:?}"),
        });
        done.iter().for_each(|(key, _)| self.busy[*key as usize] = false);
        done
    }
}

/// The last chunk's checksum is the last thing on the wire: who waits for more than is there would wait for ever.
#[test]
fn chunks_go_over_a_socket_from_memory_to_memory_and_nothing_has_to_follow_the_last() {
    let (one, other) = UnixStream::pair().expect("a pair of sockets");
    let ring = CoreRing::new(Doorbell::new().expect("a doorbell")).expect("a ring");
    let mut lane = Loop { ring, ends: [one, other].map(|end| Rc::new(end.into())), busy: [false; 2] };
    let (mut writer, mut reader) = (Writer::new().expect("memory"), Reader::new(CHUNK_MAX).expect("memory"));
    let sources: Vec<Vec<u8>> = [1_700_000, 3, 900_000].iter().map(|len| bytes(*len, *len as u8)).collect();
    let targets: Vec<_> = sources.iter().map(|source| memory(&vec![0; source.len()])).collect();
    for (ticket, source) in sources.iter().enumerate() {
        let place = Place { memory: memory(source), offset: 0 };
        writer.send_chunk(ticket as u64, chunk(source.len() as u32), place);
    }
    let (mut coming, mut landed, mut sent) = (targets.iter(), 0, Vec::new());
    while landed < targets.len() {
        if !lane.busy[SEND as usize] {
            if let Some(piece) = writer.piece().expect("inside") {
                let (memory, offset, len) = (piece.memory, piece.offset, piece.len);
                let socket = lane.ends[0].clone();
                lane.begin(SEND, FileOperation::Send { socket, memory, offset, len, zero_copy: None });
            }
        }
        while !lane.busy[RECEIVE as usize] && landed < targets.len() {
            match reader.step().expect("a sound lane") {
                Step::Receive(piece) => {
                    let (memory, offset, len) = (piece.memory, piece.offset, piece.len);
                    let (socket, some) = (lane.ends[1].clone(), !reader.is_into_place());
                    lane.begin(RECEIVE, FileOperation::Receive { socket, memory, offset, len, some });
                }
                Step::Chunk(_) => {
                    let memory = coming.next().expect("three chunks").clone();
                    reader.place(Some(Place { memory, offset: 0 }));
                }
                Step::Landed { ok } => landed += usize::from(ok),
                other => panic!("{other:?}"),
            }
        }
        if landed < targets.len() {
            for (key, bytes) in lane.done() {
                match key {
                    SEND => sent.extend(writer.sent(bytes)),
                    _ => reader.received(bytes).expect("inside"),
                }
            }
        }
    }
    assert_eq!(sent, [0, 1, 2]);
    for (source, target) in sources.iter().zip(targets) {
        let mut arrived = vec![0; source.len()];
        assert!(target.read(0, &mut arrived));
        assert!(arrived == *source, "other bytes arrived");
    }
}
