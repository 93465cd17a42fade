//! Objects that this client makes: their names, and the memory for small ones.

use super::shared::{due, Guard, Shared, State};
use super::slots::{Ticket, Undo};
use super::ClientError;
use crate::credit::{Run, OBJECT_MAX_BYTES, RUN_BYTES};
use crate::fault::{self, Point};
use crate::ids::{ObjectId, TaskId, WorkerId};
use crate::messages::{
    capability, Create, CreditGranted, NewPutTask, OwnedReply, Place, Publish, RequestCredit, ReturnCredit, Seal,
    FOREVER_NS,
};

/// Puts without credit after the node has refused some.
const PAUSE_PUTS: u32 = 256;

/// Names and memory.
pub(crate) struct Puts {
    task: TaskId,
    next_index: u32,
    current: Option<Run>,
    spare: Option<Run>,
    /// The spare is asked for.
    asked: Option<Ticket>,
    /// Puts to go before credit is asked for again.
    pause: u32,
}

impl Puts {
    /// Names of this task.
    pub(crate) fn new(task: TaskId) -> Self {
        Self { task, next_index: 0, current: None, spare: None, asked: None, pause: 0 }
    }
}

impl Shared {
    /// A name that no object has.
    pub(crate) fn next_id<'a>(&'a self, mut state: Guard<'a>) -> Result<(Guard<'a>, ObjectId), ClientError> {
        if state.puts.next_index == u32::MAX {
            let old = state.puts.task;
            let (with_ticket, ticket) = self.submit(state, &NewPutTask { old }, Undo::Nothing)?;
            let (with_answer, answer) = self.answer(with_ticket, ticket)?;
            state = with_answer;
            // Another thread may have been faster.
            if state.puts.task == old {
                let answer = super::shared::refusal_of("NewPutTask", *answer)?;
                (state.puts.task, state.puts.next_index) = (due!(answer, PutTask)?.task, 0);
            }
        }
        let id = ObjectId::of(state.puts.task, state.puts.next_index);
        state.puts.next_index += 1;
        Ok((state, id))
    }

    /// Stores bytes as a sealed object.
    pub(crate) fn put(&self, data: &[u8], metadata: &[u8], pin: bool) -> Result<ObjectId, ClientError> {
        let (mut state, id) = self.next_id(self.lock())?;
        let is_small = data.len() + metadata.len() <= OBJECT_MAX_BYTES as usize;
        let has_credit = self.options.credit && self.about.capabilities & capability::CREDIT != 0;
        if is_small && has_credit {
            let published;
            (state, published) = self.put_in_run(state, id, data, metadata, pin)?;
            if published {
                return Ok(id);
            }
        }
        drop(state);
        self.put_singly(id, data, metadata, pin)?;
        Ok(id)
    }

    /// Writes into the run at hand and publishes. `false`: there is none.
    fn put_in_run<'a>(
        &'a self,
        mut state: Guard<'a>,
        object: ObjectId,
        data: &[u8],
        metadata: &[u8],
        pin: bool,
    ) -> Result<(Guard<'a>, bool), ClientError> {
        let (data_bytes, metadata_bytes) = (data.len() as u32, metadata.len() as u32);
        let mut is_fresh = false;
        loop {
            let place = state.puts.current.and_then(|run| run.take(data_bytes, metadata_bytes).map(|at| (run, at)));
            let Some((run, offset_bytes)) = place else {
                // A node may grant less than was asked for: what does not fit a fresh run is created singly.
                if std::mem::replace(&mut is_fresh, true) {
                    return Ok((state, false));
                }
                let is_there;
                (state, is_there) = self.next_run(state)?;
                if is_there {
                    continue;
                }
                return Ok((state, false));
            };
            let mut piece = state.link.piece(&Place {
                offset_bytes: run.offset_bytes + u64::from(offset_bytes),
                data_bytes: data_bytes.into(),
                metadata_bytes: metadata_bytes.into(),
                segment: run.segment,
            })?;
            let (to_data, to_metadata) = piece.bytes_mut().split_at_mut(data.len());
            to_data.copy_from_slice(data);
            to_metadata.copy_from_slice(metadata);
            fault::pass(Point::ObjectCopied);
            let publish = Publish { object, credit: run.credit, offset_bytes, data_bytes, metadata_bytes, pin };
            if !state.link.one_way(&publish)? {
                // While this waits for room, another thread may take the same place: then it is written again.
                (state, ()) = self.wait(state, None, true, |state| state.link.has_room().then_some(Ok(())))?;
                continue;
            }
            if let Some(run) = &mut state.puts.current {
                run.published(data_bytes, metadata_bytes);
            }
            fault::pass(Point::ObjectPublished);
            state.ask_ahead()?;
            state.link.flush()?;
            return Ok((state, true));
        }
    }

    /// Makes the spare run the current one. `false`: the node gives none.
    fn next_run<'a>(&'a self, mut state: Guard<'a>) -> Result<(Guard<'a>, bool), ClientError> {
        if state.puts.pause > 0 {
            state.puts.pause -= 1;
            return Ok((state, false));
        }
        if let Some(old) = state.puts.current.take() {
            state = self.one_way(state, &ReturnCredit { credit: old.credit })?;
        }
        if state.puts.current.is_some() {
            return Ok((state, true));
        }
        if state.puts.spare.is_none() && state.puts.asked.is_none() {
            let ticket;
            (state, ticket) = self.submit(state, &RequestCredit { size_bytes: RUN_BYTES }, Undo::Nothing)?;
            state.puts.asked = Some(ticket);
        }
        // Another thread may fetch the answer: then there is a run, or a pause.
        (state, ()) = self.wait(state, None, false, |state| {
            state.fetch_spare();
            (state.puts.asked.is_none()).then_some(Ok(()))
        })?;
        if state.puts.current.is_none() {
            state.puts.current = state.puts.spare.take();
        }
        let is_there = state.puts.current.is_some();
        Ok((state, is_there))
    }

    /// Creates, writes and seals with a round trip each.
    fn put_singly(&self, object: ObjectId, data: &[u8], metadata: &[u8], pin: bool) -> Result<(), ClientError> {
        let mut piece = self.create(object, data.len() as u64, metadata.len() as u64, FOREVER_NS)?;
        let (to_data, to_metadata) = piece.bytes_mut().split_at_mut(data.len());
        to_data.copy_from_slice(data);
        to_metadata.copy_from_slice(metadata);
        fault::pass(Point::ObjectWritten);
        due!(self.call(&Seal { object, pin }, Undo::Nothing)?, Done).map(drop)
    }

    /// Memory for a new object.
    pub(crate) fn create(
        &self,
        object: ObjectId,
        data_bytes: u64,
        metadata_bytes: u64,
        wait_ns: u64,
    ) -> Result<super::segments::Piece, ClientError> {
        let create = Create { object, owner: WorkerId::NIL, data_bytes, metadata_bytes, wait_ns };
        let (state, ticket) = self.submit(self.lock(), &create, Undo::Abort(object))?;
        let (state, answer) = self.answer(state, ticket)?;
        let created = due!(super::shared::refusal_of("Create", *answer)?, Created)?;
        fault::pass(Point::ObjectCreated);
        state.link.piece(&created.place)
    }
}

impl State {
    /// Asks for the next run when half of this one is used, so that no put waits for it.
    fn ask_ahead(&mut self) -> Result<(), ClientError> {
        let puts = &mut self.puts;
        let is_low = puts.current.is_none_or(|run| run.left_bytes() < run.size_bytes / 2);
        if !is_low || puts.spare.is_some() {
            return Ok(());
        }
        if puts.asked.is_some() {
            self.fetch_spare();
        } else if puts.pause == 0 {
            // With a full ring there is time for it later.
            puts.asked = self.link.submit(&RequestCredit { size_bytes: RUN_BYTES }, Undo::Nothing)?;
        }
        Ok(())
    }

    /// Takes the answer to the request for a spare run, if it has come.
    fn fetch_spare(&mut self) {
        let Some(answer) = self.puts.asked.and_then(|ticket| self.link.slots.take(ticket)) else {
            return;
        };
        self.puts.asked = None;
        match *answer {
            OwnedReply::CreditGranted(CreditGranted { credit, segment, offset_bytes, size_bytes }) => {
                self.puts.spare = Some(Run::new(credit, segment, offset_bytes, size_bytes));
                fault::pass(Point::CreditTaken);
            }
            // Refused: objects are created singly for a while, which waits for room or says why there is none.
            _ => self.puts.pause = PAUSE_PUTS,
        }
    }
}
