//! Lanes of the bulk port on a core: connections to other nodes' cores, on which objects travel from arena to arena.
//!
//! A core moves the bytes, through its own io_uring; which object goes where is decided by the thread that moves objects
//! ([`crate::ray::transfer`]), which is told what comes ([`LaneNews`]) and tells what to do ([`LaneTell`]). What is said on a lane is in
//! [`raylet_transport::bulk`].

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use raylet_transport::bulk::frame::{Frame, Kind};
use raylet_transport::bulk::lane::{LaneError, Loan, Piece, Place, Reader, Step, Writer};
use raylet_transport::uring::{FileOperation, FileResult, IoMemory, PageBuffer};
use raylet_tuning::Segment;
use rustc_hash::FxHashMap;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::Shutdown;

use crate::core_io::Wish;
use crate::core_loop::Core;
use crate::ray::transfer::ToTransfer;
use crate::spill::memory::ArenaMemory;

/// A lane, over all cores of the node.
pub type LaneId = u64;

/// Marks the keys of lanes' operations among those of the core's ring; the disk's have it not.
pub const LANE_KEY: u64 = 1 << 63;

/// What a chunk that is sent lies in.
#[derive(Debug)]
pub enum ChunkMemory {
    /// The object store.
    Store(Arc<Segment>),
    /// A buffer that it was read to from a file.
    Buffer(Arc<PageBuffer>),
}

impl ChunkMemory {
    fn for_kernel(self) -> Rc<dyn IoMemory> {
        match self {
            Self::Store(segment) => Rc::new(ArenaMemory(segment)),
            Self::Buffer(buffer) => Rc::new(buffer),
        }
    }
}

/// To the core of a lane.
#[derive(Debug)]
pub enum LaneTell {
    /// A new lane: the greeting on it is over.
    Open {
        /// The connection, one that blocks.
        socket: OwnedFd,
        /// Most bytes of a chunk.
        chunk_max_bytes: u32,
        /// The segments of the other side, where it is of this host and lends from them.
        lenders: Vec<OwnedFd>,
    },
    /// Say something.
    Say(Frame),
    /// Send a small object.
    SendWhole(Frame, Box<[u8]>),
    /// Send a chunk; answered by [`LaneNews::Sent`], or by the lane's end.
    SendChunk {
        /// For the answer.
        ticket: u64,
        /// What stands in front of it.
        frame: Frame,
        /// What it lies in.
        memory: ChunkMemory,
        /// From which byte of it on.
        offset: u64,
    },
    /// Lend a chunk to a node of this host; answered as [`Self::SendChunk`], once it is read no longer.
    LendChunk {
        /// For the answer.
        ticket: u64,
        /// Where it lies.
        frame: Frame,
    },
    /// Where the chunk goes that has come; `None`: nowhere.
    Place(Option<(Arc<Segment>, u64)>),
    /// Close the lane.
    Close,
}

/// From the core of a lane.
#[derive(Debug)]
pub enum LaneNews {
    /// The other side said something.
    Said(Frame),
    /// A small object came.
    Whole(Frame, Box<[u8]>),
    /// A chunk comes: to be answered with [`LaneTell::Place`].
    Chunk(Frame),
    /// The chunk that was given a place is there.
    Landed {
        /// Its bytes are what was sent.
        ok: bool,
    },
    /// A chunk is out.
    Sent {
        /// Which.
        ticket: u64,
    },
    /// The lane is closed. No memory that it was given is used any more, and nothing that it was to answer is answered.
    Ended {
        /// What broke it; `None` where either side closed it.
        error: Option<String>,
    },
}

struct Lane {
    socket: Rc<OwnedFd>,
    /// The other side's segments.
    lenders: Vec<Rc<OwnedFd>>,
    reader: Reader,
    writer: Writer,
    receiving: bool,
    sending: bool,
    /// It is to end, for this reason, once the kernel is done with it.
    ending: Option<Option<String>>,
}

/// The lanes of a core.
#[derive(Default)]
pub struct Lanes {
    lanes: RefCell<FxHashMap<LaneId, Lane>>,
}

impl Lanes {
    /// Does what a lane is told.
    pub fn tell(core: &Core, id: LaneId, tell: LaneTell) {
        if let LaneTell::Open { socket, chunk_max_bytes, lenders } = tell {
            return Self::open(core, id, socket, chunk_max_bytes, lenders);
        }
        core.lanes.with(core, id, |lane| {
            match tell {
                LaneTell::Open { .. } => {}
                LaneTell::Say(frame) => lane.writer.say(frame),
                LaneTell::SendWhole(frame, bytes) => lane.writer.send_whole(frame, bytes),
                LaneTell::SendChunk { ticket, frame, memory, offset } => {
                    let memory = memory.for_kernel();
                    lane.writer.send_chunk(ticket, frame, Place { memory, offset });
                }
                LaneTell::LendChunk { ticket, frame } => lane.writer.lend(ticket, frame),
                LaneTell::Place(place) => lane
                    .reader
                    .place(place.map(|(segment, offset)| Place { memory: Rc::new(ArenaMemory(segment)), offset })),
                LaneTell::Close => lane.end(None),
            }
            Ok(())
        });
    }

    /// An operation on a lane's socket has ended.
    pub fn completed(core: &Core, key: u64, result: io::Result<FileResult>) {
        let (id, is_send) = ((key & !LANE_KEY) >> 1, key & 1 == 1);
        core.lanes.with(core, id, |lane| {
            match is_send {
                true => lane.sending = false,
                false => lane.receiving = false,
            }
            // A holder closes a lane before it lets go of what it has lent there: what was copied until then is right.
            if !is_send && lane.reader.is_copying() && is_closed(&lane.socket) {
                lane.end(None);
                return Ok(());
            }
            match (result.map_err(LaneError::Broken)?, is_send) {
                (FileResult::Done(bytes), false) if lane.reader.is_copying() => lane.reader.received(bytes)?,
                (FileResult::Done(0) | FileResult::Opened(_), _) => lane.end(None),
                (FileResult::Done(bytes), false) => lane.reader.received(bytes)?,
                (FileResult::Done(bytes), true) => {
                    if let Some(ticket) = lane.writer.sent(bytes) {
                        core.tell_transfer(ToTransfer::Lane(id, LaneNews::Sent { ticket }));
                    }
                }
            }
            Ok(())
        });
    }

    fn open(core: &Core, id: LaneId, socket: OwnedFd, chunk_max_bytes: u32, lenders: Vec<OwnedFd>) {
        let made = Reader::new(chunk_max_bytes).and_then(|reader| Ok((reader, Writer::new()?)));
        match made {
            Ok((reader, writer)) => {
                let socket = Rc::new(socket);
                let lenders = lenders.into_iter().map(Rc::new).collect();
                let lane = Lane { socket, lenders, reader, writer, receiving: false, sending: false, ending: None };
                core.lanes.lanes.borrow_mut().insert(id, lane);
                core.lanes.with(core, id, |_| Ok(()));
            }
            Err(error) => {
                let error = Some(format!("no memory for a lane's buffers: {error}"));
                core.tell_transfer(ToTransfer::Lane(id, LaneNews::Ended { error }));
            }
        }
    }

    /// Changes a lane, and then goes on with it as far as it goes.
    fn with(&self, core: &Core, id: LaneId, change: impl FnOnce(&mut Lane) -> Result<(), LaneError>) {
        let mut lanes = self.lanes.borrow_mut();
        let Some(lane) = lanes.get_mut(&id) else {
            return;
        };
        let went_on = change(lane).and_then(|()| lane.go_on(core, id));
        if let Err(error) = went_on {
            lane.end(Some(error.to_string()));
        }
        if let (Some(error), false, false) = (&lane.ending, lane.receiving, lane.sending) {
            let error = error.clone();
            lanes.remove(&id);
            core.tell_transfer(ToTransfer::Lane(id, LaneNews::Ended { error }));
        }
    }
}

impl Lane {
    /// The lane is to end: what is under way comes back soon, with whatever result.
    fn end(&mut self, error: Option<String>) {
        if self.ending.is_none() {
            self.ending = Some(error);
            // One that is not connected any more needs no end.
            let _ = rustix::net::shutdown(&*self.socket, Shutdown::Both);
        }
    }

    fn go_on(&mut self, core: &Core, id: LaneId) -> Result<(), LaneError> {
        if self.ending.is_some() {
            return Ok(());
        }
        // What comes can lead to something to say.
        self.go_on_reading(core, id)?;
        if !self.sending {
            if let Some(Piece { memory, offset, len }) = self.writer.piece()? {
                self.sending = true;
                let send = FileOperation::Send { socket: self.socket.clone(), memory, offset, len };
                core.io.wish(Wish::File(LANE_KEY | id << 1 | 1, send));
            }
        }
        Ok(())
    }

    fn go_on_reading(&mut self, core: &Core, id: LaneId) -> Result<(), LaneError> {
        while !self.receiving {
            let news = match self.reader.step()? {
                Step::Receive(Piece { memory, offset, len }) => {
                    self.receiving = true;
                    let some = !self.reader.is_into_place();
                    let socket = self.socket.clone();
                    let receive = FileOperation::Receive { socket, memory, offset, len, some };
                    core.io.wish(Wish::File(LANE_KEY | id << 1, receive));
                    return Ok(());
                }
                Step::Copy(Loan { segment, at, to: Piece { memory, offset, len }, aside }) => {
                    let from = self.lenders.get(segment as usize).ok_or(LaneError::NoSegment { segment })?.clone();
                    self.receiving = true;
                    let copy = FileOperation::Copy { from, at, memory, offset, len, aside };
                    core.io.wish(Wish::File(LANE_KEY | id << 1, copy));
                    return Ok(());
                }
                Step::Wait => return Ok(()),
                Step::Said(Frame { kind: Kind::Taken, .. }) => LaneNews::Sent { ticket: self.writer.taken()? },
                Step::Said(frame) => LaneNews::Said(frame),
                Step::Chunk(frame) => LaneNews::Chunk(frame),
                Step::Whole(frame, bytes) => LaneNews::Whole(frame, bytes),
                Step::Landed { ok } => LaneNews::Landed { ok },
                Step::Taken { say, placed } => {
                    self.writer.say(say);
                    if !placed {
                        continue;
                    }
                    LaneNews::Landed { ok: true }
                }
            };
            core.tell_transfer(ToTransfer::Lane(id, news));
        }
        Ok(())
    }
}

/// Whether the other side has closed a connection, for both directions.
fn is_closed(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    // A connection that can't be asked is not trusted.
    poll(&mut polled, Some(&Timespec::default())).is_err() || !polled[0].revents().is_empty()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What was copied from a lender counts by this.
    #[test]
    fn a_lane_is_found_closed_at_once_also_where_something_was_said_before() {
        let (here, mut there) = UnixStream::pair().expect("a pair of sockets");
        let here = OwnedFd::from(here);
        assert!(!is_closed(&here));
        there.write_all(b"a frame").expect("an open socket");
        assert!(!is_closed(&here), "something to read does not close it");
        let again = there.try_clone().expect("a descriptor");
        drop(there);
        assert!(!is_closed(&here), "the other side has it still");
        again.shutdown(std::net::Shutdown::Both).expect("an open socket");
        assert!(is_closed(&here));
    }
}
