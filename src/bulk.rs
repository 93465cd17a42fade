//! Lanes of the bulk port on a core: connections to other nodes' cores, on which objects travel from arena to arena.
//!
//! A core moves the bytes, through its own io_uring; which object goes where is decided by the thread that moves objects
//! ([`crate::ray::transfer`]), which is told what comes ([`LaneNews`]) and tells what to do ([`LaneTell`]). What is said on a lane is in
//! [`raylet_transport::bulk`].
//!
//! Small objects a core sends (`serve`) and takes (`take`) by itself, where it has the object's memory.

mod serve;
mod take;

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use raylet_shard::ids::{ClientId, NodeId, ObjectId, Token, WorkerId};
use raylet_shard::store::{StoreEffect, StoreEvent};
use raylet_transport::bulk::frame::{Frame, Kind};
use raylet_transport::bulk::lane::{LaneError, Loan, Piece, Place, Reader, Step, Writer};
use raylet_transport::uring::{FileOperation, FileResult, IoMemory, PageBuffer};
use raylet_tuning::Segment;
use rustc_hash::FxHashMap;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::Shutdown;
use smallvec::SmallVec;

use crate::core_io::Wish;
use crate::core_loop::Core;
use crate::ray::transfer::{ToTransfer, TransferUse};
use crate::spill::memory::ArenaMemory;
use take::{Ahead, Taking, Wanted};

/// A lane, over all cores of the node.
pub type LaneId = u64;

/// Marks the keys of lanes' operations among those of the core's ring; the disk's have it not.
pub const LANE_KEY: u64 = 1 << 63;

/// Token of requests to the store whose answer a lane waits for; see [`Lanes::answered`].
pub const BY_LANE: Token = Token::MAX - 1;

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
        /// The node on the other side.
        node: NodeId,
        /// This node opened it, and is the one that wants.
        is_ours: bool,
        /// The other side is of this host, and is lent chunks.
        lends: bool,
        /// The segments of the other side, where it is of this host and lends from them.
        lenders: Vec<OwnedFd>,
        /// Chunks are sent without a copy (SEND_ZC).
        zero_copy: bool,
    },
    /// Say that an object is wanted. One that comes at once the core may take; see [`LaneNews::Received`].
    Want {
        /// What to say.
        frame: Frame,
        /// The object's owner.
        owner: WorkerId,
    },
    /// An object that was wanted is not wanted any more.
    Unwant(ObjectId),
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
    /// An object that was wanted is here, sealed, and the thread has a reference on it.
    Received {
        /// The object.
        object: ObjectId,
    },
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
    /// Chunks are sent without a copy.
    zero_copy: bool,
    /// Chunks sent so that the kernel still reads: how many pieces of each, and whether all of it is sent.
    read_still: FxHashMap<u64, (u32, bool)>,
    /// The chunk whose piece is being sent without a copy.
    sending_of: Option<u64>,
    node: NodeId,
    is_ours: bool,
    lends: bool,
    chunk_max_bytes: u32,
    /// Objects that the core sends by itself, by their tickets.
    going: SmallVec<[(u64, ObjectId); serve::GOING_MAX]>,
    /// The object that comes, where the core takes it.
    taking: Option<Taking>,
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
    /// Lanes of this core to the nodes that objects are fetched from.
    sources: RefCell<FxHashMap<NodeId, Vec<LaneId>>>,
    /// Objects that the core sends by itself, and on how many lanes.
    held: RefCell<FxHashMap<ObjectId, usize>>,
    wanted: RefCell<FxHashMap<ObjectId, Wanted>>,
    /// Gets that the core sees to by itself, by client and number.
    ahead: RefCell<FxHashMap<(ClientId, i64), Ahead>>,
    answer: RefCell<Option<StoreEffect>>,
    numbers: Cell<u64>,
    used: OnceCell<Arc<TransferUse>>,
}

/// Frames about an object all take the same lane, so that they come in order.
pub fn lane_of(lanes: &[LaneId], object: &ObjectId) -> Option<LaneId> {
    let hash = object.0.iter().fold(0usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    (!lanes.is_empty()).then(|| lanes[hash % lanes.len()])
}

impl Lanes {
    /// Where is counted what the lanes move by themselves.
    pub fn count_in(&self, used: Arc<TransferUse>) {
        // There is one for the node.
        let _ = self.used.set(used);
    }

    fn used(&self, count: impl FnOnce(&TransferUse)) {
        if let Some(used) = self.used.get() {
            count(used);
        }
    }

    fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    /// The answer to what a lane asked the store under [`BY_LANE`].
    pub fn answered(&self, answer: StoreEffect) {
        *self.answer.borrow_mut() = Some(answer);
    }

    /// Asks this core's store for something. `None`: it has no answer yet.
    fn ask_store(&self, core: &Rc<Core>, event: StoreEvent) -> Option<StoreEffect> {
        self.answer.borrow_mut().take();
        core.store_here(event);
        self.answer.borrow_mut().take()
    }

    /// Does what a lane is told.
    pub fn tell(core: &Rc<Core>, id: LaneId, tell: LaneTell) {
        if matches!(tell, LaneTell::Open { .. }) {
            return Self::open(core, id, tell);
        }
        core.lanes.with(core, id, |lane| {
            match tell {
                LaneTell::Open { .. } => {}
                LaneTell::Want { frame, owner } => lane.want(core, id, frame, owner),
                LaneTell::Unwant(object) => core.lanes.unwant(&object),
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
    pub fn completed(core: &Rc<Core>, key: u64, result: io::Result<FileResult>) {
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
            let sending_of = if is_send { lane.sending_of.take() } else { None };
            if let (Err(error), Some(_)) = (&result, sending_of) {
                return lane.copies_from_now_on(error);
            }
            match (result.map_err(LaneError::Broken)?, is_send) {
                (FileResult::Done(bytes), false) if lane.reader.is_copying() => lane.reader.received(bytes)?,
                (FileResult::Done(0) | FileResult::Opened(_), _) => lane.end(None),
                (FileResult::Done(bytes), false) => lane.reader.received(bytes)?,
                (FileResult::Done(bytes), true) => {
                    if let Some(ticket) = lane.writer.sent(bytes) {
                        match lane.read_still.get_mut(&ticket) {
                            Some(still) => still.1 = true,
                            None => lane.out(core, id, ticket),
                        }
                    }
                }
            }
            Ok(())
        });
    }

    /// A piece of a chunk is sent without a copy: the kernel still reads it.
    pub fn sent(core: &Rc<Core>, key: u64, result: io::Result<u32>) {
        let id = (key & !LANE_KEY) >> 1;
        core.lanes.with(core, id, |lane| {
            lane.sending = false;
            let of = lane.sending_of.take();
            of.into_iter().for_each(|ticket| lane.read_still.entry(ticket).or_default().0 += 1);
            match result {
                Ok(0) => lane.end(None),
                Ok(bytes) => {
                    // When the kernel reads it no longer, it is out.
                    let sent = lane.writer.sent(bytes).and_then(|ticket| lane.read_still.get_mut(&ticket));
                    sent.into_iter().for_each(|still| still.1 = true);
                }
                Err(error) => return lane.copies_from_now_on(&error),
            }
            Ok(())
        });
    }

    /// The kernel reads a piece no longer that was sent without a copy.
    pub fn released(core: &Rc<Core>, key: u64, ticket: u64) {
        let id = (key & !LANE_KEY) >> 1;
        core.lanes.with(core, id, |lane| {
            if let Some(still) = lane.read_still.get_mut(&ticket) {
                still.0 -= 1;
                let (pieces, sent) = *still;
                if pieces == 0 {
                    lane.read_still.remove(&ticket);
                    if sent {
                        lane.out(core, id, ticket);
                    }
                }
            }
            Ok(())
        });
    }

    fn open(core: &Rc<Core>, id: LaneId, tell: LaneTell) {
        let LaneTell::Open { socket, chunk_max_bytes, node, is_ours, lends, lenders, zero_copy } = tell else {
            return;
        };
        let made = Reader::new(chunk_max_bytes).and_then(|reader| Ok((reader, Writer::new()?)));
        match made {
            Ok((reader, writer)) => {
                let socket = Rc::new(socket);
                let lenders = lenders.into_iter().map(Rc::new).collect();
                let (receiving, sending, ending, going, taking) = Default::default();
                let (read_still, sending_of) = Default::default();
                let lane = Lane {
                    socket,
                    zero_copy,
                    read_still,
                    sending_of,
                    node,
                    is_ours,
                    lends,
                    chunk_max_bytes,
                    going,
                    taking,
                    lenders,
                    reader,
                    writer,
                    receiving,
                    sending,
                    ending,
                };
                core.lanes.lanes.borrow_mut().insert(id, lane);
                if is_ours {
                    core.lanes.source(node, id, true);
                }
                core.lanes.with(core, id, |_| Ok(()));
            }
            Err(error) => {
                let error = Some(format!("no memory for a lane's buffers: {error}"));
                core.tell_transfer(ToTransfer::Lane(id, LaneNews::Ended { error }));
            }
        }
    }

    /// Changes a lane, and then goes on with it as far as it goes.
    fn with(&self, core: &Rc<Core>, id: LaneId, change: impl FnOnce(&mut Lane) -> Result<(), LaneError>) {
        let mut lanes = self.lanes.borrow_mut();
        let Some(lane) = lanes.get_mut(&id) else {
            return;
        };
        let went_on = change(lane).and_then(|()| lane.go_on(core, id));
        if let Err(error) = went_on {
            lane.end(Some(error.to_string()));
        }
        if let (Some(error), false, false, true) =
            (&lane.ending, lane.receiving, lane.sending, lane.read_still.is_empty())
        {
            let error = error.clone();
            if lane.is_ours {
                self.source(lane.node, id, false);
            }
            lane.goes_no_more(core);
            lane.takes_no_more(core, id);
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

    /// A chunk needs to be where it is no longer.
    fn out(&mut self, core: &Rc<Core>, id: LaneId, ticket: u64) {
        if !self.is_out(core, ticket) {
            core.tell_transfer(ToTransfer::Lane(id, LaneNews::Sent { ticket }));
        }
    }

    /// A send without a copy came to nothing. Where the kernel can't do that here or now, what it was to send is sent with one.
    fn copies_from_now_on(&mut self, error: &io::Error) -> Result<(), LaneError> {
        if !matches!(Errno::from_io_error(error), Some(Errno::OPNOTSUPP | Errno::NOBUFS | Errno::NOMEM)) {
            let error = error.raw_os_error().map_or(io::ErrorKind::Other.into(), io::Error::from_raw_os_error);
            return Err(LaneError::Broken(error));
        }
        if std::mem::take(&mut self.zero_copy) {
            tracing::warn!(%error, "a lane can't send without a copy, and sends with one: see bulk_zero_copy and `ulimit -l`");
        }
        Ok(())
    }

    fn go_on(&mut self, core: &Rc<Core>, id: LaneId) -> Result<(), LaneError> {
        if self.ending.is_some() {
            return Ok(());
        }
        // What comes can lead to something to say.
        self.go_on_reading(core, id)?;
        if !self.sending {
            if let Some(Piece { memory, offset, len }) = self.writer.piece()? {
                self.sending = true;
                self.sending_of = self.writer.chunk_of_piece().filter(|_| self.zero_copy);
                let (socket, zero_copy) = (self.socket.clone(), self.sending_of);
                let send = FileOperation::Send { socket, memory, offset, len, zero_copy };
                core.io.wish(Wish::File(LANE_KEY | id << 1 | 1, send));
            }
        }
        Ok(())
    }

    fn go_on_reading(&mut self, core: &Rc<Core>, id: LaneId) -> Result<(), LaneError> {
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
                Step::Said(Frame { kind: Kind::Taken, .. }) => {
                    let ticket = self.writer.taken()?;
                    self.out(core, id, ticket);
                    continue;
                }
                Step::Said(frame) if self.serve(core, &frame) || self.keeps(core, &frame) => continue,
                Step::Said(frame) => LaneNews::Said(frame),
                Step::Chunk(frame) if self.take(core, &frame) => continue,
                Step::Chunk(frame) => LaneNews::Chunk(frame),
                Step::Whole(frame, bytes) if self.take_whole(core, id, &frame, &bytes) => continue,
                Step::Whole(frame, bytes) => LaneNews::Whole(frame, bytes),
                Step::Landed { ok } if self.taking.is_some() => {
                    self.taken(core, id, ok);
                    continue;
                }
                Step::Landed { ok } => LaneNews::Landed { ok },
                Step::Taken { say, placed } => {
                    self.writer.say(say);
                    if self.taking.is_some() {
                        self.taken(core, id, true);
                        continue;
                    }
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
