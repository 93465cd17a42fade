//! HTTP/2 as unary gRPC calls need it, on the server's side, without I/O: bytes in, calls out; replies in, bytes out.
//!
//! Why not hyper, which serves the control thread's port: each put and each task is two calls to a core's port, and there hyper and h2
//! were a quarter of all that the core did, in a dozen layers that queue, wake and count for streams of any kind. A unary call has no
//! use for them: its request is whole before anybody looks at it, and its reply is whole when it is written.
//!
//! What the RFCs ask of a server is here: frames in pieces, padding, header blocks over several frames, both kinds of windows in both
//! directions, resets, refusal of streams beyond the limit, and a GOAWAY that says what was wrong. Trailers of requests, priorities
//! and frames of unknown kinds are read over.

pub mod frames;
pub mod headers;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use tonic::Status;

use crate::ray::rpc::limits::{CONNECTION_WINDOW_BYTES, MAX_STREAMS_PER_CONNECTION, STREAM_WINDOW_BYTES};
use crate::ray::rpc::{prefix, status};
use frames::{flag, kind, setting, ErrorCode, Fault, Frame, FIRST_WINDOW, MAX_FRAME_BYTES, MAX_WINDOW, PREFACE};
use headers::{Blocks, ReplyHeaders, RequestHead};

/// Longest header block, with the heads of the frames that it comes in.
const MAX_BLOCK_BYTES: usize = 64 << 10;

/// Longest text of a status; each of its bytes may take three.
const MAX_STATUS_TEXT_BYTES: usize = 4 << 10;

/// Bytes that are written ahead of the socket: the rest of a large reply waits where it is.
const MAX_AHEAD_BYTES: usize = 1 << 20;

/// A call that came in. `H` is what the caller of [`Session::receive`] made of its head.
#[derive(Debug)]
pub struct Call<H> {
    /// Where the reply goes.
    pub stream: u32,
    /// Which method, by whom.
    pub head: H,
    /// Its message, or what is wrong with it.
    pub message: Result<Bytes, Status>,
}

/// A header block that lacks its end.
struct OpenBlock {
    stream: u32,
    ends_stream: bool,
    bytes: Vec<u8>,
    /// With the heads of its frames.
    cost_bytes: usize,
}

/// A call whose request or reply is not whole.
struct Stream<H> {
    /// `None` once the request is handed out.
    head: Option<H>,
    /// What came of the message, where it did not come in one frame.
    message: BytesMut,
    /// Bytes that the peer may still be sent.
    window: i64,
    /// Bytes that it sent and was not given back.
    taken: u32,
    /// The peer sends nothing more.
    ended: bool,
    reply: Bytes,
}

/// A connection.
pub struct Session<H> {
    greeted: bool,
    /// The beginning of a frame that is not whole.
    pending: Vec<u8>,
    blocks: Blocks<H>,
    block: Option<OpenBlock>,
    streams: FxHashMap<u32, Stream<H>>,
    /// The newest stream that the peer opened.
    last: u32,
    window: i64,
    /// The window of a new stream.
    first_window: i64,
    peer_frame_bytes: usize,
    taken: u32,
    reply_headers: ReplyHeaders,
    /// Streams with a reply that is not sent to its end, in the order of their turns.
    waiting: VecDeque<u32>,
    out: Vec<u8>,
}

impl<H: Clone> Default for Session<H> {
    fn default() -> Self {
        Self {
            greeted: false,
            pending: Vec::new(),
            blocks: Blocks::default(),
            block: None,
            streams: FxHashMap::default(),
            last: 0,
            window: FIRST_WINDOW,
            first_window: FIRST_WINDOW,
            peer_frame_bytes: MAX_FRAME_BYTES,
            taken: 0,
            reply_headers: ReplyHeaders::default(),
            waiting: VecDeque::new(),
            out: Vec::new(),
        }
    }
}

impl<H: Clone> Session<H> {
    /// Takes what came in, and adds the calls that are whole to `calls`. `judge` makes something of a request's head; it is asked once
    /// for heads that come again and again.
    ///
    /// # Errors
    /// A peer that speaks something else. It is told, by [`Self::out`], and the connection is to be closed then.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        calls: &mut Vec<Call<H>>,
        judge: impl Fn(RequestHead<'_>) -> H,
    ) -> Result<(), Fault> {
        let taken = self.take(bytes, calls, &judge);
        if let Err(fault) = &taken {
            let mut body = self.last.to_be_bytes().to_vec();
            body.extend_from_slice(&(fault.code as u32).to_be_bytes());
            body.extend_from_slice(fault.text.as_bytes());
            frames::write(&mut self.out, kind::GOAWAY, 0, 0, &body);
        }
        taken
    }

    /// What is to be sent now; taken away by who sends it.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Answers a call: with a message in its gRPC frame, or with a status. A call that its caller gave up is not answered.
    pub fn reply(&mut self, stream: u32, reply: Result<Bytes, Status>) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        match reply {
            Ok(message) => {
                let reply_headers = &mut self.reply_headers;
                write_block(&mut self.out, flag::END_HEADERS, stream, |out| reply_headers.begin(out));
                state.reply = message;
                if !self.write_reply(stream) {
                    self.waiting.push_back(stream);
                }
            }
            Err(status) => self.refuse(stream, &status),
        }
    }

    /// Goes on writing replies, as far as windows and [`MAX_AHEAD_BYTES`] allow.
    pub fn pump(&mut self) {
        for _ in 0..self.waiting.len() {
            let Some(stream) = self.waiting.pop_front() else {
                return;
            };
            if !self.write_reply(stream) {
                self.waiting.push_back(stream);
            }
        }
    }

    /// False: something is left.
    fn write_reply(&mut self, stream: u32) -> bool {
        let Some(state) = self.streams.get_mut(&stream) else {
            return true;
        };
        while !state.reply.is_empty() {
            let allowed = self.window.min(state.window).clamp(0, self.peer_frame_bytes as i64) as usize;
            if allowed == 0 || self.out.len() >= MAX_AHEAD_BYTES {
                return false;
            }
            let piece = state.reply.split_to(allowed.min(state.reply.len()));
            self.window -= piece.len() as i64;
            state.window -= piece.len() as i64;
            frames::write(&mut self.out, kind::DATA, 0, stream, &piece);
        }
        let reply_headers = &mut self.reply_headers;
        let flags = flag::END_HEADERS | flag::END_STREAM;
        write_block(&mut self.out, flags, stream, |out| reply_headers.end(out));
        self.close(stream);
        true
    }

    /// Answers with a status alone.
    fn refuse(&mut self, stream: u32, status: &Status) {
        let fields = status::fields(&cut(status));
        let reply_headers = &mut self.reply_headers;
        let flags = flag::END_HEADERS | flag::END_STREAM;
        write_block(&mut self.out, flags, stream, |out| reply_headers.only(out, &fields));
        self.close(stream);
    }

    /// The reply is out. A peer that still sends its request is told that nobody reads it.
    fn close(&mut self, stream: u32) {
        if self.streams.remove(&stream).is_some_and(|state| !state.ended) {
            frames::write_reset(&mut self.out, stream, ErrorCode::NoError);
        }
    }

    fn take(
        &mut self,
        bytes: &[u8],
        calls: &mut Vec<Call<H>>,
        judge: &impl Fn(RequestHead<'_>) -> H,
    ) -> Result<(), Fault> {
        if self.pending.is_empty() {
            let used = self.frames(bytes, calls, judge)?;
            self.pending.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(bytes);
        let used = self.frames(&pending, calls, judge)?;
        pending.drain(..used);
        // At most one frame of MAX_FRAME_BYTES is kept.
        self.pending = pending;
        Ok(())
    }

    /// Looks at the whole frames, and returns how many bytes they take.
    fn frames(
        &mut self,
        bytes: &[u8],
        calls: &mut Vec<Call<H>>,
        judge: &impl Fn(RequestHead<'_>) -> H,
    ) -> Result<usize, Fault> {
        let mut used = 0;
        if !self.greeted {
            let seen = bytes.len().min(PREFACE.len());
            if bytes[..seen] != PREFACE[..seen] {
                return Err(Fault::protocol("expected the preface of HTTP/2, got something else"));
            }
            if seen < PREFACE.len() {
                return Ok(0);
            }
            used = seen;
            self.greet();
        }
        while let Some((frame, length)) = Frame::split(&bytes[used..])? {
            used += length;
            self.frame(frame, calls, judge)?;
        }
        Ok(used)
    }

    fn greet(&mut self) {
        self.greeted = true;
        let settings = [
            (setting::MAX_CONCURRENT_STREAMS, MAX_STREAMS_PER_CONNECTION),
            (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES),
            (setting::MAX_HEADER_LIST_SIZE, MAX_BLOCK_BYTES as u32),
        ];
        let mut body = Vec::with_capacity(6 * settings.len());
        for (number, value) in settings {
            body.extend_from_slice(&number.to_be_bytes());
            body.extend_from_slice(&value.to_be_bytes());
        }
        frames::write(&mut self.out, kind::SETTINGS, 0, 0, &body);
        frames::write_window(&mut self.out, 0, CONNECTION_WINDOW_BYTES - FIRST_WINDOW as u32);
    }

    fn frame(
        &mut self,
        frame: Frame<'_>,
        calls: &mut Vec<Call<H>>,
        judge: &impl Fn(RequestHead<'_>) -> H,
    ) -> Result<(), Fault> {
        let inside = self.block.as_ref().map(|block| block.stream);
        if inside.is_some_and(|stream| frame.kind != kind::CONTINUATION || frame.stream != stream) {
            return Err(Fault::protocol(format!("a frame of kind {} amid a header block", frame.kind)));
        }
        let of_connection = matches!(frame.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        if frame.kind <= kind::CONTINUATION && frame.kind != kind::WINDOW_UPDATE && of_connection != (frame.stream == 0)
        {
            return Err(Fault::protocol(format!("a frame of kind {} on stream {}", frame.kind, frame.stream)));
        }
        match frame.kind {
            kind::DATA => self.data(frame, calls)?,
            kind::HEADERS => self.headers(frame, calls, judge)?,
            kind::CONTINUATION => self.continuation(frame, calls, judge)?,
            kind::SETTINGS => self.settings(frame)?,
            kind::WINDOW_UPDATE => self.window_update(frame)?,
            kind::RST_STREAM => {
                frame.number()?;
                self.opened(frame)?;
                self.streams.remove(&frame.stream);
            }
            kind::PING if frame.body.len() != 8 => return Err(frame.wrong_length("8")),
            kind::PING if !frame.has(flag::ACK) => {
                frames::write(&mut self.out, kind::PING, flag::ACK, 0, frame.body);
            }
            kind::PUSH_PROMISE => return Err(Fault::protocol("a client cannot promise a push")),
            kind::PRIORITY if frame.body.len() != 5 => return Err(frame.wrong_length("5")),
            // A peer that leaves says so by closing, too.
            _ => {}
        }
        Ok(())
    }

    /// A frame that makes sense only on a stream that was opened.
    fn opened(&self, frame: Frame<'_>) -> Result<(), Fault> {
        if frame.stream > self.last || frame.stream.is_multiple_of(2) {
            let text = format!("a frame of kind {} on stream {}, which was never opened", frame.kind, frame.stream);
            return Err(Fault::protocol(text));
        }
        Ok(())
    }

    fn headers(
        &mut self,
        frame: Frame<'_>,
        calls: &mut Vec<Call<H>>,
        judge: &impl Fn(RequestHead<'_>) -> H,
    ) -> Result<(), Fault> {
        if frame.stream.is_multiple_of(2) {
            return Err(Fault::protocol(format!("a client opens odd streams, not {}", frame.stream)));
        }
        let (content, ends_stream) = (frame.content()?, frame.has(flag::END_STREAM));
        if frame.has(flag::END_HEADERS) {
            return self.request(frame.stream, content, ends_stream, calls, judge);
        }
        let cost_bytes = frames::HEAD_BYTES + content.len();
        self.block = Some(OpenBlock { stream: frame.stream, ends_stream, bytes: content.to_vec(), cost_bytes });
        Ok(())
    }

    fn continuation(
        &mut self,
        frame: Frame<'_>,
        calls: &mut Vec<Call<H>>,
        judge: &impl Fn(RequestHead<'_>) -> H,
    ) -> Result<(), Fault> {
        let Some(mut block) = self.block.take() else {
            return Err(Fault::protocol("the rest of a header block that has no beginning"));
        };
        block.bytes.extend_from_slice(frame.body);
        block.cost_bytes += frames::HEAD_BYTES + frame.body.len();
        if block.cost_bytes > MAX_BLOCK_BYTES {
            let text = format!("expected headers of at most {MAX_BLOCK_BYTES} bytes");
            return Err(Fault::new(ErrorCode::EnhanceYourCalm, text));
        }
        if frame.has(flag::END_HEADERS) {
            return self.request(block.stream, &block.bytes, block.ends_stream, calls, judge);
        }
        self.block = Some(block);
        Ok(())
    }

    /// A header block is whole. It is read in any case, because it may change the table.
    fn request(
        &mut self,
        stream: u32,
        block: &[u8],
        ends_stream: bool,
        calls: &mut Vec<Call<H>>,
        judge: &impl Fn(RequestHead<'_>) -> H,
    ) -> Result<(), Fault> {
        let head = self.blocks.read(block, judge)?;
        if stream <= self.last {
            // Trailers, or the end of a call that was answered before.
            if ends_stream {
                self.end_request(stream, calls);
            }
            return Ok(());
        }
        self.last = stream;
        if head.is_none() || self.streams.len() >= MAX_STREAMS_PER_CONNECTION as usize {
            let code = if head.is_none() { ErrorCode::Protocol } else { ErrorCode::RefusedStream };
            frames::write_reset(&mut self.out, stream, code);
            return Ok(());
        }
        let window = self.first_window;
        let state = Stream { head, message: BytesMut::new(), window, taken: 0, ended: false, reply: Bytes::new() };
        self.streams.insert(stream, state);
        if ends_stream {
            self.end_request(stream, calls);
        }
        Ok(())
    }

    fn data(&mut self, frame: Frame<'_>, calls: &mut Vec<Call<H>>) -> Result<(), Fault> {
        self.opened(frame)?;
        let content = frame.content()?;
        let length = frame.body.len() as u32;
        // What came is looked at at once, so windows are given back by halves, and no peer can overdraw them.
        self.taken += length;
        if self.taken >= CONNECTION_WINDOW_BYTES / 2 {
            frames::write_window(&mut self.out, 0, std::mem::take(&mut self.taken));
        }
        let Some(state) = self.streams.get_mut(&frame.stream).filter(|state| !state.ended) else {
            // It was answered, reset or refused meanwhile.
            return Ok(());
        };
        state.taken += length;
        if frame.has(flag::END_STREAM) && state.message.is_empty() {
            let message = whole_message(content).map(Bytes::copy_from_slice);
            hand_out(state, frame.stream, message, calls);
            return Ok(());
        }
        state.message.extend_from_slice(content);
        if frame.has(flag::END_STREAM) {
            self.end_request(frame.stream, calls);
            return Ok(());
        }
        if state.taken >= STREAM_WINDOW_BYTES / 2 {
            frames::write_window(&mut self.out, frame.stream, std::mem::take(&mut state.taken));
        }
        // What can't become a message is not waited for.
        let early = prefix::expected(&state.message).and_then(|whole| match whole {
            Some(whole) if state.message.len() > whole => Err(status::more_than_one_message()),
            _ => Ok(()),
        });
        if let Err(status) = early {
            self.refuse(frame.stream, &status);
        }
        Ok(())
    }

    /// The peer has sent all of a request.
    fn end_request(&mut self, stream: u32, calls: &mut Vec<Call<H>>) {
        let Some(state) = self.streams.get_mut(&stream).filter(|state| !state.ended) else {
            return;
        };
        let bytes = std::mem::take(&mut state.message).freeze();
        let message = whole_message(&bytes).map(|message| bytes.slice_ref(message));
        hand_out(state, stream, message, calls);
    }

    fn settings(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        if frame.has(flag::ACK) {
            return if frame.body.is_empty() { Ok(()) } else { Err(frame.wrong_length("0")) };
        }
        let (settings, rest) = frame.body.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(frame.wrong_length("a multiple of 6"));
        }
        for [n0, n1, v0, v1, v2, v3] in settings {
            let value = u32::from_be_bytes([*v0, *v1, *v2, *v3]);
            self.set(u16::from_be_bytes([*n0, *n1]), value)?;
        }
        frames::write(&mut self.out, kind::SETTINGS, flag::ACK, 0, &[]);
        self.pump();
        Ok(())
    }

    fn set(&mut self, number: u16, value: u32) -> Result<(), Fault> {
        match number {
            setting::HEADER_TABLE_SIZE => self.reply_headers.table_size(value),
            setting::ENABLE_PUSH if value > 1 => {
                return Err(Fault::protocol(format!("expected 0 or 1 for pushes, got {value}")));
            }
            setting::INITIAL_WINDOW_SIZE => {
                let window = i64::from(value);
                let change = window - self.first_window;
                if window > MAX_WINDOW || self.streams.values().any(|state| state.window + change > MAX_WINDOW) {
                    return Err(Fault::new(ErrorCode::FlowControl, format!("a window of {value} bytes is too large")));
                }
                self.first_window = window;
                self.streams.values_mut().for_each(|state| state.window += change);
            }
            setting::MAX_FRAME_SIZE => {
                if !(MAX_FRAME_BYTES as u32..1 << 24).contains(&value) {
                    return Err(Fault::protocol(format!("frames of at most {value} bytes are not allowed")));
                }
                self.peer_frame_bytes = value as usize;
            }
            _ => {}
        }
        Ok(())
    }

    fn window_update(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        let more = i64::from(frame.number()? & (u32::MAX >> 1));
        if frame.stream != 0 {
            self.opened(frame)?;
        }
        if more == 0 {
            return Err(Fault::protocol("a window grows by nothing"));
        }
        if frame.stream == 0 {
            self.window += more;
            if self.window > MAX_WINDOW {
                return Err(Fault::new(ErrorCode::FlowControl, "the connection's window is too large"));
            }
        } else if let Some(state) = self.streams.get_mut(&frame.stream) {
            state.window += more;
            if state.window > MAX_WINDOW {
                frames::write_reset(&mut self.out, frame.stream, ErrorCode::FlowControl);
                self.streams.remove(&frame.stream);
            }
        }
        self.pump();
        Ok(())
    }
}

/// Writes HEADERS with one block.
fn write_block(out: &mut Vec<u8>, flags: u8, stream: u32, block: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    frames::write_head(out, 0, kind::HEADERS, flags, stream);
    block(out);
    let length = (out.len() - at - frames::HEAD_BYTES) as u32;
    out[at..at + 3].copy_from_slice(&length.to_be_bytes()[1..]);
}

/// A status that fits into one frame, however its text is escaped.
fn cut(status: &Status) -> Cow<'_, Status> {
    let text = status.message();
    if text.len() <= MAX_STATUS_TEXT_BYTES {
        return Cow::Borrowed(status);
    }
    let mut end = MAX_STATUS_TEXT_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(Status::new(status.code(), &text[..end]))
}

/// The request is whole.
fn hand_out<H>(state: &mut Stream<H>, stream: u32, message: Result<Bytes, Status>, calls: &mut Vec<Call<H>>) {
    state.ended = true;
    if let Some(head) = state.head.take() {
        calls.push(Call { stream, head, message });
    }
}

/// The message in the body of a unary call.
fn whole_message(body: &[u8]) -> Result<&[u8], Status> {
    match prefix::expected(body)? {
        None if body.is_empty() => Err(status::no_message()),
        Some(whole) if body.len() > whole => Err(status::more_than_one_message()),
        Some(whole) if body.len() == whole => Ok(&body[prefix::PREFIX_BYTES..]),
        _ => Err(status::ended_within_message()),
    }
}
