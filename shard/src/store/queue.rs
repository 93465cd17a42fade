//! Creates that wait: for memory, for the bank, or for a file on disk. In order; the first is served first.

use std::collections::VecDeque;

use super::api::ObjectSource;
use super::config::MUTABLE_HEADER_BYTES;
use super::spill::RESTORER;
use crate::ids::{ClientId, NowNs, ObjectId, Token, WorkerId};

/// One create.
#[derive(Clone, Copy, Debug)]
pub(super) struct Create {
    pub(super) client: ClientId,
    pub(super) token: Token,
    pub(super) id: ObjectId,
    pub(super) data_bytes: u64,
    pub(super) metadata_bytes: u64,
    pub(super) owner: WorkerId,
    pub(super) source: ObjectSource,
    pub(super) mutable: bool,
    pub(super) try_immediately: bool,
    /// The segment that it is to be in, if there is room.
    pub(super) near: u32,
    /// When it came.
    pub(super) since: NowNs,
}

impl Create {
    /// Header, data and metadata, in bytes; `None` where that is no number.
    pub(super) fn bytes(&self) -> Option<u64> {
        let header = if self.mutable { MUTABLE_HEADER_BYTES } else { 0 };
        self.data_bytes.checked_add(self.metadata_bytes)?.checked_add(header)
    }
}

/// Creates that wait, with their sizes in bytes.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<(Create, u64)>,
    /// Objects on disk that wait for memory; they go before all creates.
    restores: VecDeque<(Create, u64)>,
    bytes: u64,
    /// Creates for which the node makes a file.
    filing: Vec<(Create, u64)>,
}

impl Queue {
    /// How many wait, for memory or a file.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.filing.len()
    }

    /// Nobody waits for memory.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.restores.is_empty()
    }

    /// What those who wait for memory want, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn push(&mut self, create: Create, bytes: u64) {
        self.waiting.push_back((create, bytes));
        self.bytes += bytes;
    }

    /// An object on disk wants memory.
    pub(super) fn push_restore(&mut self, create: Create, bytes: u64) {
        self.restores.push_back((create, bytes));
        self.bytes += bytes;
    }

    /// It is not wanted any more.
    pub(super) fn forget_restore(&mut self, id: &ObjectId) {
        if let Some(at) = self.restores.iter().position(|(create, _)| create.id == *id) {
            self.bytes -= self.restores.remove(at).map_or(0, |(_, bytes)| bytes);
        }
        self.filing.retain(|(create, _)| create.client != RESTORER || create.id != *id);
    }

    pub(super) fn front(&self) -> Option<(Create, u64)> {
        self.restores.front().or(self.waiting.front()).copied()
    }

    /// The first create, whatever is restored before it.
    pub(super) fn first_create(&self) -> Option<&Create> {
        self.waiting.front().map(|(create, _)| create)
    }

    /// Those who wait for memory, without restores.
    pub(super) fn creates(&self) -> impl Iterator<Item = &Create> {
        self.waiting.iter().map(|(create, _)| create)
    }

    pub(super) fn pop(&mut self) {
        let first = self.restores.pop_front().or_else(|| self.waiting.pop_front());
        if let Some((_, bytes)) = first {
            self.bytes -= bytes;
        }
    }

    /// The node makes a file for this one.
    pub(super) fn file(&mut self, create: Create, bytes: u64) {
        self.filing.push((create, bytes));
    }

    /// The file of this one is ready, or can't be.
    pub(super) fn filed(&mut self, id: &ObjectId, token: u64) -> Option<(Create, u64)> {
        let at = self.filing.iter().position(|(c, _)| c.id == *id && c.token == token)?;
        Some(self.filing.swap_remove(at))
    }

    /// Forgets the creates of which `gone` is true.
    pub(super) fn forget(&mut self, gone: impl Fn(&Create) -> bool) {
        if !self.waiting.is_empty() || !self.filing.is_empty() {
            self.waiting.retain(|(create, _)| !gone(create));
            self.filing.retain(|(create, _)| !gone(create));
            self.bytes = self.waiting.iter().chain(&self.restores).map(|(_, bytes)| bytes).sum();
        }
    }
}
