//! What is under way outside of lanes: news of the owner, requests, chunks with their bytes.

use super::*;

impl World {
    // --- what is under way

    pub(super) fn deliver_news(&mut self, node: usize) -> Result<(), String> {
        if let Some(news) = self.up[node].pop_front() {
            self.hear_news(node, &news);
        }
        if let Some(News::Located { object }) = self.down[node].pop_front() {
            if let Some(known) = self.objects.get(&object) {
                let elsewhere = known.locations.iter().filter(|at| **at != node && self.nodes[**at].alive);
                let mut nodes: Vec<NodeId> = elsewhere.map(|at| node_id(*at)).collect();
                if nodes.is_empty() {
                    nodes.extend(known.spilled.filter(|at| *at != node && self.nodes[*at].alive).map(node_id));
                }
                let pending = known.is_nowhere();
                self.tell(node, PullEvent::Located { object, size_bytes: known.size, nodes, pending })?;
            }
        }
        Ok(())
    }

    /// What a node tells the owner.
    fn hear_news(&mut self, node: usize, news: &News) {
        let (News::Copy { object, .. }
        | News::Spilled { object }
        | News::FileLost { object }
        | News::Located { object }) = *news;
        let Some(known) = self.objects.get_mut(&object) else {
            return;
        };
        let changed = match news {
            News::Copy { here: true, .. } => known.locations.insert(node),
            News::Copy { here: false, .. } => known.locations.remove(&node),
            News::Spilled { .. } => known.spilled.replace(node) != Some(node),
            News::FileLost { .. } => {
                known.home.take_if(|at| *at == node);
                known.spilled.take_if(|at| *at == node).is_some()
            }
            News::Located { .. } => false,
        };
        if changed {
            self.publish(object);
        }
    }

    pub(super) fn deliver_letter(&mut self) -> Result<(), String> {
        if self.letters.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.letters.len() as u64) as usize;
        let mut letter = self.letters.swap_remove(at);
        let fate = if self.resting { 1000 } else { self.rng.below(1000) };
        match (fate, &mut letter.message) {
            (0..=39, Message::Ask { .. } | Message::AskIfThere { .. } | Message::Taken { ok: true, .. })
            | (0..=19, Message::Chunk { .. }) => {
                self.report.harmed += 1;
                return self.lose(&letter);
            }
            (40..=79, Message::Ask { .. }) => self.letters.push(letter.clone()),
            (20..=59, Message::Chunk { head, version, index }) => {
                // Comes twice, as of a call whose reply was lost; nobody waits for this answer.
                self.report.harmed += 1;
                let (head, version, index) = (*head, *version, *index);
                let unheard = Letter { from: NOBODY, ..letter.clone() };
                self.chunk(&unheard, head, version, index)?;
            }
            (60..=79, Message::Chunk { head, .. }) => {
                self.report.harmed += 1;
                match self.rng.below(3) {
                    0 => head.len_bytes += 1,
                    1 => head.total_bytes += CHUNK,
                    _ => head.index += 1000,
                }
            }
            _ => {}
        }
        self.read(letter)
    }

    /// What does not arrive: the caller hears of a failure, or of nothing.
    pub(super) fn lose(&mut self, letter: &Letter) -> Result<(), String> {
        match letter.message {
            Message::Ask { object } if self.rng.permille(500) => {
                let from = node_id(letter.to);
                self.tell(letter.from, PullEvent::Failed { object, from })
            }
            Message::Ask { .. }
            | Message::AskIfThere { .. }
            | Message::NotThere { .. }
            | Message::AskerLost
            | Message::HolderLost
            | Message::HeldLost { .. } => Ok(()),
            Message::Chunk { head, .. } => {
                let sent = SendEvent::Sent { node: node_id(letter.to), object: head.object, ok: false };
                self.send(letter.from, sent)
            }
            Message::Taken { object, .. } => {
                self.send(letter.to, SendEvent::Sent { node: node_id(letter.from), object, ok: false })
            }
        }
    }

    pub(super) fn read(&mut self, letter: Letter) -> Result<(), String> {
        match letter.message {
            Message::Ask { object } => self.wanted(letter.to, letter.from, object),
            Message::AskIfThere { object } => self.wanted_now(letter.to, letter.from, object),
            Message::NotThere { object } => {
                self.tell(letter.to, PullEvent::Failed { object, from: node_id(letter.from) })
            }
            Message::Chunk { head, version, index } => self.chunk(&letter, head, version, index),
            Message::HeldLost { ticket } => self.held_lost(ticket),
            Message::AskerLost => self.holder_lost_lane(letter.to, letter.from),
            Message::HolderLost => self.receive(letter.to, ReceiveEvent::Broken { from: node_id(letter.from) }),
            Message::Taken { object, ok } => {
                self.send(letter.to, SendEvent::Sent { node: node_id(letter.from), object, ok })
            }
        }
    }

    pub(super) fn chunk(&mut self, letter: &Letter, head: ChunkHead, version: u32, index: u32) -> Result<(), String> {
        let ticket = self.number();
        self.tickets.insert(ticket, (letter.from, letter.to, head, version, index));
        self.receive(letter.to, ReceiveEvent::Chunk { ticket, head })
    }
}
