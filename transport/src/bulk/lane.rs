//! A lane's two directions, without I/O: whoever has the socket asks each what to do next, does it, and says what came of it.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use super::frame::{Frame, FrameError, Kind, FRAME_BYTES, SUM_BYTES, WHOLE_MAX_BYTES};
use crate::uring::{IoMemory, PageBuffer};

/// Most bytes that one operation moves from or to an object: a core does nothing else meanwhile, and the bytes are still in its cache
/// when their checksum is taken.
pub const OPERATION_BYTES: u32 = 512 << 10;

/// Buffer of each direction: room for a small object as it travels, and for many frames.
pub const BUFFER_BYTES: usize = 128 << 10;

const _: () = assert!(BUFFER_BYTES >= FRAME_BYTES + WHOLE_MAX_BYTES as usize + SUM_BYTES);

/// Largest lent chunk that the core copies itself, piece by piece. The copy of a larger one is worth the wake-up of another thread.
pub const COPIED_HERE_BYTES: u32 = 1 << 20;

/// Bytes that are copied between two places at a time.
const THROUGH_BYTES: usize = 16 << 10;

/// A range of memory that one operation receives into or sends from.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The memory.
    pub memory: Rc<dyn IoMemory>,
    /// From which byte of it on.
    pub offset: u64,
    /// How many bytes at most; at least one.
    pub len: u32,
}

/// Where a chunk's bytes are, or go.
#[derive(Clone, Debug)]
pub struct Place {
    /// The memory.
    pub memory: Rc<dyn IoMemory>,
    /// From which byte of it on.
    pub offset: u64,
}

/// What ends a lane.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A small object is not what was sent.
    #[error("expected an object with checksum {expected:#010x}, got {got:#010x}: the bytes are not what was sent")]
    Whole {
        /// What was sent.
        expected: u32,
        /// What came.
        got: u32,
    },
    /// A place is not inside its memory.
    #[error("a chunk of {len} bytes at {offset} is not inside the object store's memory")]
    Outside {
        /// Where it was to be.
        offset: u64,
        /// Its length.
        len: u32,
    },
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// A chunk was lent that is not in any segment that the other side gave.
    #[error("a chunk was lent in segment {segment}, of which no descriptor was given")]
    NoSegment {
        /// The segment.
        segment: u32,
    },
    /// The memory that a lent chunk lies in ends before the chunk.
    #[error("a lent chunk ends {missing} bytes before its length")]
    Short {
        /// How much is not there.
        missing: u32,
    },
    /// The other side has taken a chunk that it was not lent.
    #[error("the other side has taken more chunks than it was lent")]
    NothingLent,
}

/// What to do next about what comes.
#[derive(Debug)]
pub enum Step {
    /// Receive at least one byte, and say how many with [`Reader::received`].
    Receive(Piece),
    /// This was said.
    Said(Frame),
    /// A chunk is coming: say with [`Reader::place`] where it goes.
    Chunk(Frame),
    /// A small object came.
    Whole(Frame, Box<[u8]>),
    /// The chunk that was given a place is in it; not `ok`: with other bytes than were sent.
    Landed {
        /// Whether its bytes are what was sent.
        ok: bool,
    },
    /// Copy from the other side's memory, and say how many bytes with [`Reader::received`].
    Copy(Loan),
    /// Nothing is read any more of a chunk that was lent: say so with [`Writer::say`]. `placed`: it is in its place, whole.
    Taken {
        /// What to say.
        say: Frame,
        /// Whether it had a place.
        placed: bool,
    },
    /// Wait for [`Reader::place`].
    Wait,
}

/// A piece of a chunk that lies in the other side's memory, and where it goes.
#[derive(Clone, Debug)]
pub struct Loan {
    /// The other side's segment.
    pub segment: u32,
    /// Where in it the piece begins.
    pub at: u64,
    /// Where it goes, and its length.
    pub to: Piece,
    /// The chunk is large: to be copied aside, by a thread of the kernel's.
    pub aside: bool,
}

#[derive(Debug)]
enum Reading {
    /// A frame.
    Frame,
    /// A chunk has come and has no place yet.
    Placeless(Frame),
    /// The bytes of a chunk; without a place they are dropped.
    Bytes { place: Option<Place>, len: u32, done: u32, sum: u32 },
    /// Their checksum.
    Sum { placed: bool, sum: u32 },
    /// A chunk that was lent; without a place it is left alone.
    Lent { frame: Frame, place: Option<Place>, done: u32 },
}

/// What comes.
#[derive(Debug)]
pub struct Reader {
    chunk_max_bytes: u32,
    buffer: Rc<PageBuffer>,
    start: usize,
    filled: usize,
    reading: Reading,
    /// The last receive went to a chunk's place.
    into_place: bool,
    /// The last frame was a chunk's: the next is probably too, and no byte behind it is received into the buffer.
    in_chunks: bool,
}

impl Reader {
    /// For a lane on which chunks have this many bytes at most.
    ///
    /// # Errors
    /// Where the system has no memory.
    pub fn new(chunk_max_bytes: u32) -> io::Result<Self> {
        let buffer = Rc::new(PageBuffer::new(BUFFER_BYTES)?);
        let (reading, into_place, in_chunks) = (Reading::Frame, false, false);
        Ok(Self { chunk_max_bytes, buffer, start: 0, filled: 0, reading, into_place, in_chunks })
    }

    /// What to do next.
    ///
    /// # Errors
    /// See [`LaneError`]: the lane is to be closed.
    pub fn step(&mut self) -> Result<Step, LaneError> {
        loop {
            match &self.reading {
                Reading::Placeless(_) => return Ok(Step::Wait),
                Reading::Frame => return self.next_frame(),
                Reading::Bytes { .. } => {
                    if let Some(piece) = self.next_bytes()? {
                        return Ok(Step::Receive(piece));
                    }
                }
                Reading::Sum { placed, sum } => {
                    let (placed, sum) = (*placed, *sum);
                    let Some(came) = self.take::<SUM_BYTES>() else {
                        let missing = SUM_BYTES - self.buffered();
                        return Ok(Step::Receive(self.more(missing + FRAME_BYTES)));
                    };
                    self.reading = Reading::Frame;
                    if placed {
                        return Ok(Step::Landed { ok: u32::from_le_bytes(came) == sum });
                    }
                }
                Reading::Lent { frame, place, done } => {
                    let (left, placed) = (frame.len_bytes - *done, place.is_some());
                    if let Some(place) = place.as_ref().filter(|_| left > 0) {
                        self.into_place = true;
                        let aside = frame.len_bytes > COPIED_HERE_BYTES;
                        let len = if aside { left } else { left.min(OPERATION_BYTES) };
                        let to = Piece { memory: place.memory.clone(), offset: place.offset + u64::from(*done), len };
                        let at = frame.offset + u64::from(*done);
                        return Ok(Step::Copy(Loan { segment: frame.segment, at, to, aside }));
                    }
                    let Frame { push, index, object, .. } = *frame;
                    self.reading = Reading::Frame;
                    return Ok(Step::Taken { say: Frame { push, index, ..Frame::new(Kind::Taken, object) }, placed });
                }
            }
        }
    }

    /// Where the chunk goes that came; `None`: nowhere.
    pub fn place(&mut self, place: Option<Place>) {
        if let Reading::Placeless(frame) = &self.reading {
            self.reading = match frame.kind {
                Kind::Lent => Reading::Lent { frame: *frame, place, done: 0 },
                _ => Reading::Bytes { place, len: frame.len_bytes, done: 0, sum: 0 },
            };
        }
    }

    /// The receive that was asked for has ended, with so many bytes.
    ///
    /// # Errors
    /// [`LaneError::Outside`], [`LaneError::Short`].
    pub fn received(&mut self, bytes: u32) -> Result<(), LaneError> {
        if !self.into_place {
            self.filled += bytes as usize;
            return Ok(());
        }
        if let Reading::Lent { frame, done, .. } = &mut self.reading {
            if bytes == 0 {
                return Err(LaneError::Short { missing: frame.len_bytes - *done });
            }
            *done += bytes;
        }
        if let Reading::Bytes { place: Some(place), done, sum, .. } = &mut self.reading {
            let offset = place.offset + u64::from(*done);
            let outside = LaneError::Outside { offset, len: bytes };
            *sum = place.memory.checksum(offset, u64::from(bytes), *sum).ok_or(outside)?;
            *done += bytes;
        }
        Ok(())
    }

    /// Whether what was asked for is the copy of a lent chunk, of which nothing may be missing.
    pub fn is_copying(&self) -> bool {
        matches!(self.reading, Reading::Lent { .. })
    }

    /// Whether the receive that was asked for goes to a chunk's place: then all of it is to be waited for, and else what is there is
    /// enough, because nothing more may come.
    pub fn is_into_place(&self) -> bool {
        self.into_place
    }

    fn buffered(&self) -> usize {
        self.filled - self.start
    }

    /// A receive into the buffer of `most` bytes, or of as many as there is room for.
    fn more(&mut self, most: usize) -> Piece {
        if self.start == self.filled {
            (self.start, self.filled) = (0, 0);
        } else if self.buffer.size_bytes() - self.filled < most {
            self.move_to_front();
        }
        self.into_place = false;
        let len = most.min(self.buffer.size_bytes() - self.filled) as u32;
        Piece { memory: self.buffer.clone(), offset: self.filled as u64, len }
    }

    fn move_to_front(&mut self) {
        let left = self.buffered();
        let mut through = [0; THROUGH_BYTES];
        let mut moved = 0;
        while moved < left {
            let now = (left - moved).min(THROUGH_BYTES);
            let through = &mut through[..now];
            // Both ranges are inside the buffer.
            let _ = self.buffer.read((self.start + moved) as u64, through) && self.buffer.write(moved as u64, through);
            moved += now;
        }
        (self.start, self.filled) = (0, left);
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.buffered() >= N && self.buffer.read(self.start as u64, &mut bytes)).then(|| {
            self.start += N;
            bytes
        })
    }

    fn next_frame(&mut self) -> Result<Step, LaneError> {
        let begin = self.start;
        let Some(bytes) = self.take::<FRAME_BYTES>() else {
            let most = if self.in_chunks { FRAME_BYTES - self.buffered() } else { BUFFER_BYTES };
            return Ok(Step::Receive(self.more(most)));
        };
        let frame = Frame::decode(&bytes, self.chunk_max_bytes)?;
        self.in_chunks = frame.kind == Kind::Chunk;
        match frame.kind {
            Kind::Chunk | Kind::Lent => {
                self.reading = Reading::Placeless(frame);
                Ok(Step::Chunk(frame))
            }
            Kind::Whole if self.buffered() < frame.len_bytes as usize + SUM_BYTES => {
                self.start = begin;
                Ok(Step::Receive(self.more(BUFFER_BYTES)))
            }
            Kind::Whole => self.whole(frame),
            _ => Ok(Step::Said(frame)),
        }
    }

    fn whole(&mut self, frame: Frame) -> Result<Step, LaneError> {
        let mut bytes = vec![0; frame.len_bytes as usize].into_boxed_slice();
        let read = self.buffer.read(self.start as u64, &mut bytes);
        self.start += bytes.len();
        let sum = self.take::<SUM_BYTES>().filter(|_| read).unwrap_or_default();
        let (expected, got) = (u32::from_le_bytes(sum), crate::checksum::crc32c(&bytes));
        if expected != got {
            return Err(LaneError::Whole { expected, got });
        }
        Ok(Step::Whole(frame, bytes))
    }

    /// Takes what is in the buffer of a chunk's bytes, and says what to receive then; `None`: all are there.
    fn next_bytes(&mut self) -> Result<Option<Piece>, LaneError> {
        let Reading::Bytes { place, len, done, sum } = &mut self.reading else {
            return Ok(None);
        };
        let mut through = [0; THROUGH_BYTES];
        while *done < *len && self.start < self.filled {
            let now = (*len - *done).min((self.filled - self.start).min(THROUGH_BYTES) as u32);
            if let Some(place) = place {
                let (through, offset) = (&mut through[..now as usize], place.offset + u64::from(*done));
                let copied = self.buffer.read(self.start as u64, through) && place.memory.write(offset, through);
                if !copied {
                    return Err(LaneError::Outside { offset, len: now });
                }
                *sum = crate::checksum::append(*sum, through);
            }
            *done += now;
            self.start += now as usize;
        }
        let (left, placed) = (*len - *done, place.is_some());
        if left == 0 {
            self.reading = Reading::Sum { placed, sum: *sum };
            return Ok(None);
        }
        if let Some(place) = place {
            self.into_place = true;
            let offset = place.offset + u64::from(*done);
            return Ok(Some(Piece { memory: place.memory.clone(), offset, len: left.min(OPERATION_BYTES) }));
        }
        Ok(Some(self.more((left as usize).min(BUFFER_BYTES))))
    }
}

/// Something that waits to be sent.
#[derive(Debug)]
enum Out {
    Frame(Frame),
    Whole(Frame, Box<[u8]>),
    Chunk { ticket: u64, frame: Frame, place: Place },
}

/// A chunk that is being sent.
#[derive(Debug)]
struct Sending {
    ticket: u64,
    place: Place,
    len: u32,
    done: u32,
    /// Bytes that are in the checksum.
    summed: u32,
    sum: u32,
}

/// What goes.
#[derive(Debug)]
pub struct Writer {
    buffer: Rc<PageBuffer>,
    start: usize,
    filled: usize,
    /// Bounded by its users: a node has a bounded number of chunks under way, and a few frames for each object that is wanted.
    queue: VecDeque<Out>,
    chunk: Option<Sending>,
    from_place: bool,
    /// Chunks that were lent, as they were.
    lent: VecDeque<u64>,
}

impl Writer {
    /// Nothing is to be sent yet.
    ///
    /// # Errors
    /// Where the system has no memory.
    pub fn new() -> io::Result<Self> {
        let buffer = Rc::new(PageBuffer::new(BUFFER_BYTES)?);
        let (queue, lent) = Default::default();
        Ok(Self { buffer, start: 0, filled: 0, queue, chunk: None, from_place: false, lent })
    }

    /// Says something.
    pub fn say(&mut self, frame: Frame) {
        self.queue.push_back(Out::Frame(frame));
    }

    /// Sends a small object: at most [`WHOLE_MAX_BYTES`].
    pub fn send_whole(&mut self, mut frame: Frame, bytes: Box<[u8]>) {
        debug_assert!(bytes.len() <= WHOLE_MAX_BYTES as usize, "{} bytes as one piece", bytes.len());
        frame.len_bytes = bytes.len() as u32;
        self.queue.push_back(Out::Whole(frame, bytes));
    }

    /// Sends a chunk from where it is; [`Self::sent`] tells when it needs to be there no longer.
    pub fn send_chunk(&mut self, ticket: u64, frame: Frame, place: Place) {
        self.queue.push_back(Out::Chunk { ticket, frame, place });
    }

    /// Lends a chunk, which stays where it is until [`Self::taken`] names it.
    pub fn lend(&mut self, ticket: u64, frame: Frame) {
        debug_assert_eq!(frame.kind, Kind::Lent);
        self.lent.push_back(ticket);
        self.queue.push_back(Out::Frame(frame));
    }

    /// The other side has said [`Kind::Taken`]: the chunk that it reads no longer.
    ///
    /// # Errors
    /// [`LaneError::NothingLent`].
    pub fn taken(&mut self) -> Result<u64, LaneError> {
        self.lent.pop_front().ok_or(LaneError::NothingLent)
    }

    /// What to send next; `None`: nothing. Not to be asked before the last send has ended.
    ///
    /// # Errors
    /// [`LaneError::Outside`].
    pub fn piece(&mut self) -> Result<Option<Piece>, LaneError> {
        if self.start == self.filled {
            (self.start, self.filled) = (0, 0);
            if let Some(piece) = self.next_of_chunk()? {
                self.from_place = true;
                return Ok(Some(piece));
            }
            self.fill();
        }
        self.from_place = false;
        let len = (self.filled - self.start) as u32;
        Ok((len > 0).then(|| Piece { memory: self.buffer.clone(), offset: self.start as u64, len }))
    }

    /// The send that was asked for has ended, with so many bytes. Returns the chunk whose last bytes they were.
    pub fn sent(&mut self, bytes: u32) -> Option<u64> {
        if !self.from_place {
            self.start += bytes as usize;
            return None;
        }
        let chunk = self.chunk.as_mut()?;
        chunk.done += bytes;
        (chunk.done == chunk.len).then_some(chunk.ticket)
    }

    fn append(&mut self, bytes: &[u8]) {
        // `fill` has seen that there is room.
        let _ = self.buffer.write(self.filled as u64, bytes);
        self.filled += bytes.len();
    }

    /// The next bytes of the chunk that is being sent. One that is out is followed by its checksum.
    fn next_of_chunk(&mut self) -> Result<Option<Piece>, LaneError> {
        let Some(chunk) = &mut self.chunk else {
            return Ok(None);
        };
        if chunk.done == chunk.len {
            let sum = chunk.sum.to_le_bytes();
            self.chunk = None;
            self.append(&sum);
            return Ok(None);
        }
        let offset = chunk.place.offset + u64::from(chunk.done);
        let len = (chunk.len - chunk.done).min(OPERATION_BYTES);
        let new = (chunk.done + len).saturating_sub(chunk.summed);
        let from = chunk.place.offset + u64::from(chunk.summed);
        let sum = chunk.place.memory.checksum(from, u64::from(new), chunk.sum);
        chunk.sum = sum.ok_or(LaneError::Outside { offset: from, len: new })?;
        chunk.summed += new;
        Ok(Some(Piece { memory: chunk.place.memory.clone(), offset, len }))
    }

    /// Puts into the buffer what waits and fits, up to the first chunk.
    fn fill(&mut self) {
        while let Some(next) = self.queue.front() {
            let needs = match next {
                Out::Whole(_, bytes) => FRAME_BYTES + bytes.len() + SUM_BYTES,
                Out::Frame(_) | Out::Chunk { .. } => FRAME_BYTES,
            };
            if self.chunk.is_some() || self.filled + needs > self.buffer.size_bytes() {
                return;
            }
            match self.queue.pop_front() {
                Some(Out::Frame(frame)) => self.append(&frame.encode()),
                Some(Out::Whole(frame, bytes)) => {
                    self.append(&frame.encode());
                    self.append(&bytes);
                    self.append(&crate::checksum::crc32c(&bytes).to_le_bytes());
                }
                Some(Out::Chunk { ticket, frame, place }) => {
                    self.append(&frame.encode());
                    self.chunk = Some(Sending { ticket, place, len: frame.len_bytes, done: 0, summed: 0, sum: 0 });
                }
                None => {}
            }
        }
    }
}
