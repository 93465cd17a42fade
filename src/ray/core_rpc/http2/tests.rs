//! A client's bytes against a [`Session`], frame by frame.

use loona_hpack::{Decoder, Encoder};
use proptest::prelude::*;
use tonic::Code;

use super::*;

type Heads = Vec<u8>;

/// A session, and what came out of it.
#[derive(Default)]
struct Server {
    session: Session<Heads>,
    calls: Vec<Call<Heads>>,
}

impl Server {
    /// One that was greeted, and whose greeting was taken.
    fn greeted() -> Self {
        let mut server = Self::default();
        server.hears(PREFACE).unwrap();
        server.hears(&frame(kind::SETTINGS, 0, 0, &[])).unwrap();
        server.session.out().clear();
        server
    }

    fn hears(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.session.receive(bytes, &mut self.calls, |head| head.path.to_vec())
    }

    /// The only call since this was last asked.
    fn call(&mut self) -> Call<Heads> {
        assert_eq!(self.calls.len(), 1, "{:?}", self.calls);
        self.calls.remove(0)
    }

    fn says(&mut self) -> Vec<(u8, u8, u32, Vec<u8>)> {
        let out = std::mem::take(self.session.out());
        let mut frames = Vec::new();
        let mut rest = &out[..];
        while let Some((frame, length)) = Frame::split(rest).unwrap() {
            frames.push((frame.kind, frame.flags, frame.stream, frame.body.to_vec()));
            rest = &rest[length..];
        }
        assert!(rest.is_empty(), "whole frames");
        frames
    }
}

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frames::write(&mut out, kind, flags, stream, body);
    out
}

fn block(path: &str) -> Vec<u8> {
    Encoder::new().encode([(&b":method"[..], &b"POST"[..]), (b":path", path.as_bytes())])
}

fn headers(stream: u32, path: &str) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS, stream, &block(path))
}

/// A gRPC frame around a message.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

fn request(stream: u32, path: &str, message: &[u8]) -> Vec<u8> {
    let mut bytes = headers(stream, path);
    let body = framed(message);
    let mut pieces = body.chunks(MAX_FRAME_BYTES).peekable();
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { flag::END_STREAM } else { 0 };
        bytes.extend(frame(kind::DATA, flags, stream, piece));
    }
    bytes
}

fn setting(number: u16, value: u32) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.extend_from_slice(&value.to_be_bytes());
    frame(kind::SETTINGS, 0, 0, &body)
}

fn fields(block: &[u8]) -> Vec<(String, String)> {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Decoder::new().decode(block).unwrap().into_iter().map(|(name, value)| (text(name), text(value))).collect()
}

#[test]
fn a_call_comes_in_and_its_reply_goes_out_byte_by_byte_too() {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(kind::SETTINGS, 0, 0, &[]));
    bytes.extend(request(1, "/a", b"hello"));
    for step in [1, 2, 7, 1000] {
        let mut server = Server::default();
        bytes.chunks(step).for_each(|piece| server.hears(piece).unwrap());
        let call = server.call();
        assert_eq!((call.stream, &call.head[..], &call.message.unwrap()[..]), (1, &b"/a"[..], &b"hello"[..]));
        server.session.reply(1, Ok(framed(b"world").into()));
        let said = server.says();
        let kinds: Vec<_> = said.iter().map(|(kind, flags, stream, _)| (*kind, *flags, *stream)).collect();
        let expected = [
            (kind::SETTINGS, 0, 0),
            (kind::WINDOW_UPDATE, 0, 0),
            (kind::SETTINGS, flag::ACK, 0),
            (kind::HEADERS, flag::END_HEADERS, 1),
            (kind::DATA, 0, 1),
            (kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(said[4].3, framed(b"world"));
        assert!(server.session.streams.is_empty());
    }
}

#[test]
fn headers_in_pieces_with_padding_and_priority_are_read() {
    let mut server = Server::greeted();
    let block = block("/padded");
    let mut body = vec![3];
    body.extend_from_slice(&[0; 5]);
    body.extend_from_slice(&block[..4]);
    body.extend_from_slice(&[0; 3]);
    server.hears(&frame(kind::HEADERS, flag::PADDED | flag::PRIORITY, 1, &body)).unwrap();
    server.hears(&frame(kind::CONTINUATION, 0, 1, &block[4..6])).unwrap();
    server.hears(&frame(kind::CONTINUATION, flag::END_HEADERS, 1, &block[6..])).unwrap();
    let mut data = vec![2];
    data.extend(framed(b"x"));
    data.extend([0; 2]);
    server.hears(&frame(kind::DATA, flag::PADDED | flag::END_STREAM, 1, &data)).unwrap();
    let call = server.call();
    assert_eq!((&call.head[..], &call.message.unwrap()[..]), (&b"/padded"[..], &b"x"[..]));
}

#[test]
fn a_message_is_whole_only_where_its_request_is_one() {
    let whole = framed(b"message");
    let mut two = whole.clone();
    two.extend(framed(b""));
    type Case<'a> = (&'a [u8], Result<&'a [u8], Code>);
    let cases: [Case<'_>; 6] = [
        (&whole, Ok(b"message")),
        (&[], Err(Code::Internal)),
        (&whole[..3], Err(Code::Internal)),
        (&whole[..8], Err(Code::Internal)),
        (&two, Err(Code::Internal)),
        (&[1, 0, 0, 0, 1, 0], Err(Code::Unimplemented)),
    ];
    for (body, expected) in cases {
        for at in [0, body.len() / 2, body.len()] {
            let mut server = Server::greeted();
            server.hears(&headers(1, "/a")).unwrap();
            server.hears(&frame(kind::DATA, 0, 1, &body[..at])).unwrap();
            server.hears(&frame(kind::DATA, flag::END_STREAM, 1, &body[at..])).unwrap();
            let message = match server.calls.pop() {
                Some(call) => call.message.map_err(|status| status.code()),
                // It was refused before its end.
                None => {
                    let said = server.says();
                    let code = fields(&said[0].3).into_iter().find(|(name, _)| name == "grpc-status").unwrap().1;
                    assert_eq!(said[1].0, kind::RST_STREAM, "nobody reads the rest");
                    Err(Code::from_bytes(code.as_bytes()))
                }
            };
            assert_eq!(message.as_deref(), expected.as_ref().map(|bytes| &**bytes), "{body:?} cut at {at}");
        }
    }
    let mut server = Server::greeted();
    server.hears(&frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &block("/a"))).unwrap();
    assert_eq!(server.call().message.unwrap_err().code(), Code::Internal);
}

#[test]
fn a_message_beyond_the_limit_is_refused_at_its_first_bytes() {
    let mut server = Server::greeted();
    server.hears(&headers(1, "/a")).unwrap();
    server.hears(&frame(kind::DATA, 0, 1, &[0, 0xff, 0, 0, 0, 1, 2, 3])).unwrap();
    let said = server.says();
    let status = fields(&said[0].3);
    assert_eq!(status[2], ("grpc-status".to_owned(), (Code::ResourceExhausted as i32).to_string()));
    assert_eq!((said[1].0, said[1].2), (kind::RST_STREAM, 1));
    server.hears(&frame(kind::DATA, flag::END_STREAM, 1, &[0; 100])).unwrap();
    assert!(server.calls.is_empty() && server.says().is_empty());
}

#[test]
fn a_large_reply_keeps_to_both_windows_and_to_the_peers_frames() {
    let mut server = Server::greeted();
    server.hears(&setting(setting::INITIAL_WINDOW_SIZE, 100_000)).unwrap();
    server.hears(&request(1, "/a", b"")).unwrap();
    server.says();
    let reply = framed(&vec![7; 300_000]);
    server.session.reply(1, Ok(reply.clone().into()));
    let mut got = Vec::new();
    let mut read = |server: &mut Server| {
        let mut ended = false;
        for (kind, flags, _, body) in server.says() {
            assert!(body.len() <= MAX_FRAME_BYTES);
            if kind == kind::DATA {
                got.extend(body);
            }
            ended |= kind == kind::HEADERS && flags & flag::END_STREAM != 0;
        }
        (got.len(), ended)
    };
    let grow = |stream, bytes: u32| frame(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
    assert_eq!(read(&mut server), (65_535, false), "the connection's window");
    server.hears(&grow(0, 1 << 20)).unwrap();
    assert_eq!(read(&mut server), (100_000, false), "the stream's window");
    server.hears(&grow(1, 50_000)).unwrap();
    assert_eq!(read(&mut server), (150_000, false));
    server.hears(&setting(setting::INITIAL_WINDOW_SIZE, 50_000)).unwrap();
    server.hears(&grow(1, 40_000)).unwrap();
    assert_eq!(read(&mut server), (150_000, false), "a smaller window was announced: it is overdrawn");
    server.hears(&setting(setting::INITIAL_WINDOW_SIZE, 400_000)).unwrap();
    assert_eq!(read(&mut server), (reply.len(), true));
    assert_eq!(got, reply);
}

#[test]
fn a_small_reply_passes_a_large_one_that_waits() {
    let mut server = Server::greeted();
    server.hears(&setting(setting::INITIAL_WINDOW_SIZE, 100)).unwrap();
    server.hears(&request(1, "/a", b"")).unwrap();
    server.hears(&request(3, "/a", b"")).unwrap();
    server.says();
    server.session.reply(1, Ok(framed(&[0; 200]).into()));
    server.session.reply(3, Ok(framed(b"").into()));
    let ended = server.says().into_iter().filter(|(_, flags, ..)| flags & flag::END_STREAM != 0);
    assert_eq!(ended.map(|(_, _, stream, _)| stream).collect::<Vec<_>>(), [3]);
}

#[test]
fn what_is_written_ahead_of_the_socket_is_bounded() {
    let mut server = Server::greeted();
    server.hears(&setting(setting::INITIAL_WINDOW_SIZE, MAX_WINDOW as u32)).unwrap();
    server.hears(&frame(kind::WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())).unwrap();
    server.hears(&request(1, "/a", b"")).unwrap();
    server.says();
    let reply = framed(&vec![1; 5 * MAX_AHEAD_BYTES]);
    server.session.reply(1, Ok(reply.clone().into()));
    let mut got = 0;
    while !server.session.out().is_empty() {
        assert!(server.session.out().len() <= MAX_AHEAD_BYTES + 2 * MAX_FRAME_BYTES);
        got += server.says().iter().filter(|frame| frame.0 == kind::DATA).map(|frame| frame.3.len()).sum::<usize>();
        server.session.pump();
    }
    assert_eq!(got, reply.len());
    assert!(server.session.streams.is_empty() && server.session.waiting.is_empty());
}

#[test]
fn windows_are_given_back_as_a_large_request_comes_in() {
    let mut server = Server::greeted();
    let message = vec![3; 3 * CONNECTION_WINDOW_BYTES as usize];
    let (mut connection, mut stream) = (i64::from(CONNECTION_WINDOW_BYTES), i64::from(STREAM_WINDOW_BYTES));
    server.hears(&headers(1, "/a")).unwrap();
    for piece in framed(&message).chunks(MAX_FRAME_BYTES) {
        connection -= piece.len() as i64;
        stream -= piece.len() as i64;
        assert!(connection >= 0 && stream >= 0, "a client would wait for ever");
        server.hears(&frame(kind::DATA, 0, 1, piece)).unwrap();
        for (kind, _, of, body) in server.says() {
            assert_eq!(kind, kind::WINDOW_UPDATE);
            let more = i64::from(u32::from_be_bytes(body.try_into().unwrap()));
            *if of == 0 { &mut connection } else { &mut stream } += more;
        }
    }
    server.hears(&frame(kind::DATA, flag::END_STREAM, 1, &[])).unwrap();
    assert!(server.call().message.unwrap() == message);
}

#[test]
fn a_call_that_was_given_up_is_not_answered() {
    let mut server = Server::greeted();
    server.hears(&request(1, "/a", b"x")).unwrap();
    server.hears(&headers(3, "/a")).unwrap();
    server.call();
    for stream in [1, 3] {
        server.hears(&frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])).unwrap();
        server.session.reply(stream, Ok(framed(b"late").into()));
    }
    assert!(server.says().is_empty());
    server.hears(&frame(kind::DATA, flag::END_STREAM, 3, &framed(b"on its way"))).unwrap();
    assert!(server.calls.is_empty());
}

#[test]
fn streams_beyond_the_limit_are_refused_and_nothing_else_is() {
    let mut server = Server::greeted();
    let open = MAX_STREAMS_PER_CONNECTION;
    for number in 0..=open {
        server.hears(&headers(2 * number + 1, "/a")).unwrap();
    }
    let refused = (ErrorCode::RefusedStream as u32).to_be_bytes().to_vec();
    assert_eq!(server.says(), [(kind::RST_STREAM, 0, 2 * open + 1, refused)]);
    server.hears(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8])).unwrap();
    server.hears(&request(2 * open + 3, "/a", b"y")).unwrap();
    assert_eq!(&server.call().message.unwrap()[..], b"y");
}

#[test]
fn a_status_of_any_length_fits_into_a_frame() {
    let mut server = Server::greeted();
    server.hears(&request(1, "/a", b"")).unwrap();
    server.session.reply(1, Err(Status::unavailable("ä".repeat(100_000))));
    let said = server.says();
    assert_eq!(said[0].1, flag::END_HEADERS | flag::END_STREAM);
    let fields = fields(&said[0].3);
    assert_eq!(fields[2], ("grpc-status".to_owned(), "14".to_owned()));
    assert_eq!(fields[3].1, "%C3%A4".repeat(MAX_STATUS_TEXT_BYTES / 2));
}

#[test]
fn a_ping_is_answered_with_its_own_bytes() {
    let mut server = Server::greeted();
    server.hears(&frame(kind::PING, 0, 0, b"12345678")).unwrap();
    server.hears(&frame(kind::PING, flag::ACK, 0, b"answered")).unwrap();
    assert_eq!(server.says(), [(kind::PING, flag::ACK, 0, b"12345678".to_vec())]);
}

#[test]
fn a_peer_that_breaks_the_protocol_is_told_how() {
    let mut long = headers(1, "/a");
    long[0] = 1;
    let mut endless = frame(kind::HEADERS, 0, 1, &block("/a"));
    for _ in 0..MAX_BLOCK_BYTES / frames::HEAD_BYTES {
        endless.extend(frame(kind::CONTINUATION, 0, 1, &[]));
    }
    let mut interrupted = frame(kind::HEADERS, 0, 1, &block("/a"));
    interrupted.extend(frame(kind::DATA, 0, 1, &[]));
    let mut overflow = frame(kind::WINDOW_UPDATE, 0, 0, &(MAX_WINDOW as u32).to_be_bytes());
    overflow.extend(overflow.clone());
    let mut overflow_of_streams = headers(1, "/a");
    overflow_of_streams.extend(frame(kind::WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()));
    overflow_of_streams.extend(setting(setting::INITIAL_WINDOW_SIZE, MAX_WINDOW as u32));
    let cases: [(&str, Vec<u8>, ErrorCode); 22] = [
        ("a frame that is too long", long, ErrorCode::FrameSize),
        ("an endless header block", endless, ErrorCode::EnhanceYourCalm),
        ("a frame amid a header block", interrupted, ErrorCode::Protocol),
        ("a window beyond its limit", overflow, ErrorCode::FlowControl),
        ("windows beyond their limit by a setting", overflow_of_streams, ErrorCode::FlowControl),
        ("DATA on the connection", frame(kind::DATA, 0, 0, &[]), ErrorCode::Protocol),
        ("DATA on a stream that is not open", frame(kind::DATA, 0, 5, &[]), ErrorCode::Protocol),
        ("HEADERS on an even stream", headers(2, "/a"), ErrorCode::Protocol),
        ("HEADERS without HPACK", frame(kind::HEADERS, flag::END_HEADERS, 1, &[0x80]), ErrorCode::Compression),
        ("padding longer than its frame", frame(kind::HEADERS, flag::PADDED, 1, &[9, 1]), ErrorCode::Protocol),
        ("no room for a priority", frame(kind::HEADERS, flag::PRIORITY, 1, &[0; 4]), ErrorCode::Protocol),
        ("CONTINUATION of nothing", frame(kind::CONTINUATION, 0, 1, &[]), ErrorCode::Protocol),
        ("PUSH_PROMISE", frame(kind::PUSH_PROMISE, 0, 1, &[0; 8]), ErrorCode::Protocol),
        ("SETTINGS on a stream", frame(kind::SETTINGS, 0, 1, &[]), ErrorCode::Protocol),
        ("SETTINGS of a wrong length", frame(kind::SETTINGS, 0, 0, &[0; 5]), ErrorCode::FrameSize),
        ("an acknowledgement that says more", frame(kind::SETTINGS, flag::ACK, 0, &[0; 6]), ErrorCode::FrameSize),
        ("PING of a wrong length", frame(kind::PING, 0, 0, &[0; 7]), ErrorCode::FrameSize),
        ("RST_STREAM of a wrong length", frame(kind::RST_STREAM, 0, 1, &[0; 3]), ErrorCode::FrameSize),
        ("a window that grows by nothing", frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4]), ErrorCode::Protocol),
        ("a window that is too large", setting(setting::INITIAL_WINDOW_SIZE, 1 << 31), ErrorCode::FlowControl),
        ("frames that are too small", setting(setting::MAX_FRAME_SIZE, 1000), ErrorCode::Protocol),
        ("a push that is neither on nor off", setting(setting::ENABLE_PUSH, 2), ErrorCode::Protocol),
    ];
    for (what, bytes, code) in cases {
        let mut server = Server::greeted();
        let fault = server.hears(&bytes).expect_err(what);
        assert_eq!(fault.code, code, "{what}: {fault}");
        let (kind, _, stream, body) = server.says().pop().expect(what);
        assert_eq!((kind, stream, &body[4..8]), (kind::GOAWAY, 0, &(code as u32).to_be_bytes()[..]), "{what}");
    }
    let fault = Server::default().hears(b"GET / HTTP/1.1\r\n").expect_err("another protocol");
    assert_eq!(fault.code, ErrorCode::Protocol);
}

#[test]
fn frames_that_say_nothing_to_us_are_read_over() {
    let mut server = Server::greeted();
    server.hears(&frame(kind::PRIORITY, 0, 1, &[0; 5])).unwrap();
    server.hears(&frame(77, 0xff, 9, b"of a later version")).unwrap();
    server.hears(&frame(kind::GOAWAY, 0, 0, &[0; 8])).unwrap();
    server.hears(&headers(1, "/a")).unwrap();
    server.hears(&frame(kind::DATA, 0, 1, &framed(b"x"))).unwrap();
    let trailers = Encoder::new().encode([(&b"trailer"[..], &b"1"[..])]);
    server.hears(&frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &trailers)).unwrap();
    assert_eq!(&server.call().message.unwrap()[..], b"x");
    assert!(server.says().is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_taken_or_refused(
        frames in prop::collection::vec(
            (0u8..11, any::<u8>(), 0u32..8, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
        tail in prop::collection::vec(any::<u8>(), 0..40),
        step in 1usize..50,
    ) {
        let mut bytes: Vec<u8> = frames.iter().flat_map(|(kind, flags, stream, body)| frame(*kind, *flags, *stream, body)).collect();
        bytes.extend(tail);
        let mut server = Server::greeted();
        for piece in bytes.chunks(step) {
            if server.hears(piece).is_err() {
                break;
            }
            for call in std::mem::take(&mut server.calls) {
                server.session.reply(call.stream, call.message.map(|message| framed(&message).into()));
            }
        }
        server.says();
    }

    #[test]
    fn requests_come_through_however_they_are_cut(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
        cuts in prop::collection::vec(1usize..300, 1..20),
    ) {
        let mut client = Encoder::new();
        let mut bytes = Vec::new();
        for (number, message) in messages.iter().enumerate() {
            let stream = 2 * number as u32 + 1;
            let path = format!("/{}", number % 3);
            let block = client.encode([(&b":path"[..], path.as_bytes()), (b"te", b"trailers")]);
            bytes.extend(frame(kind::HEADERS, flag::END_HEADERS, stream, &block));
            bytes.extend(frame(kind::DATA, flag::END_STREAM, stream, &framed(message)));
        }
        let mut server = Server::greeted();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            server.hears(piece).unwrap();
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(server.calls.len(), messages.len());
        for (number, (call, message)) in server.calls.iter().zip(&messages).enumerate() {
            prop_assert_eq!(&call.head, &format!("/{}", number % 3).into_bytes());
            prop_assert_eq!(call.message.as_ref().ok().map(|bytes| &bytes[..]), Some(&message[..]));
        }
    }
}
