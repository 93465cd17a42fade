//! What the state machines of a node want done.

use std::collections::btree_map::Entry;

use super::super::model::RESTORE;
use super::*;

impl World {
    pub(super) fn receive(&mut self, node: usize, event: ReceiveEvent) -> Result<(), String> {
        let mut effects = Vec::new();
        self.nodes[node].receiver.handle(event, &mut effects);
        self.nodes[node].receives.extend(effects);
        if std::mem::replace(&mut self.nodes[node].is_receiving, true) {
            return Ok(());
        }
        // The manager hears afterwards, as on a thread of its own.
        let mut news = Vec::new();
        while let Some(effect) = self.nodes[node].receives.pop_front() {
            self.carry_out_receive(node, effect, &mut news)?;
        }
        self.nodes[node].is_receiving = false;
        for event in news {
            let received = match &event {
                PullEvent::Here { object, .. } => Some(*object),
                _ => None,
            };
            self.tell(node, event)?;
            if let Some(object) = received {
                self.came(node, object)?;
            }
        }
        Ok(())
    }

    pub(super) fn carry_out_receive(
        &mut self,
        node: usize,
        effect: ReceiveEffect,
        news: &mut Vec<PullEvent>,
    ) -> Result<(), String> {
        match effect {
            ReceiveEffect::Create { object, token, data_bytes, metadata_bytes, .. } => {
                let create = Create { object, size: data_bytes + metadata_bytes, token: Some(token), version: 0 };
                self.nodes[node].store.queue.push_back(create);
                // Else it is answered later.
                if self.rng.permille(600) {
                    self.serve(node)?;
                }
            }
            ReceiveEffect::CancelCreate { object } => {
                self.nodes[node].store.queue.retain(|create| create.object != object || create.token.is_none());
                self.serve(node)?;
            }
            ReceiveEffect::Write { ticket, object, offset_bytes } => {
                let Some((from, _, head, version, index)) = self.tickets.remove(&ticket) else {
                    return Err(format!("chunk {ticket} is used twice"));
                };
                self.nodes[node].store.write(&object, None, offset_bytes, head.len_bytes, (version, index))?;
                self.answer(node, from, Message::Taken { object, ok: true });
            }
            ReceiveEffect::Drop { ticket, why } => {
                let Some((from, _, head, ..)) = self.tickets.remove(&ticket) else {
                    return Err(format!("chunk {ticket} is dropped twice"));
                };
                self.report.dropped += 1;
                self.dropped(ticket);
                let ok = why == crate::pull::Refusal::Repeated;
                self.answer(node, from, Message::Taken { object: head.object, ok });
            }
            ReceiveEffect::Seal { object } => {
                let Node { store, lent, sent_elsewhere, .. } = &mut self.nodes[node];
                store.seal(&object)?;
                sent_elsewhere.remove(&object);
                if let (Some(is_sealed), Some(copy)) = (lent.get_mut(&object), store.copies.get_mut(&object)) {
                    (*is_sealed, copy.users) = (true, copy.users + 1);
                }
                self.report.received += 1;
                self.sealed(node, object);
                news.push(PullEvent::Here { object, held: true });
            }
            ReceiveEffect::Abort { object } => {
                let copy = self.nodes[node].store.copies.remove(&object).filter(|copy| !copy.sealed);
                copy.ok_or_else(|| format!("{object} is given up on node {node}, which does not receive it"))?;
                self.serve(node)?;
            }
            ReceiveEffect::Accept { object, from, push } => self.say(node, node_of(from), Up::Accept { object, push }),
            ReceiveEffect::Decline { object, from } => self.say(node, node_of(from), Up::Stop { object }),
            ReceiveEffect::Arrived { object, index } => self.send(node, SendEvent::Arrived { object, index })?,
            ReceiveEffect::Recall { object } => self.recall(node, object)?,
            ReceiveEffect::Land { ticket, object, offset_bytes } => self.land(node, ticket, object, offset_bytes)?,
            ReceiveEffect::Hold { ticket, object } => self.hold_on_lane(node, ticket, object),
            ReceiveEffect::AskAgain { object, from } => {
                self.say(node, node_of(from), Up::Want { object, direct: true })
            }
            ReceiveEffect::Progress { object, from } => news.push(PullEvent::Progress { object, from }),
            ReceiveEffect::Lost { object, from } => news.push(PullEvent::Failed { object, from }),
            ReceiveEffect::NoRoom { object } => {
                self.report.no_room += 1;
                news.push(PullEvent::NoRoom { object });
            }
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, from: usize, to: usize, message: Message) {
        if self.nodes.get(to).is_some_and(|node| node.alive) {
            self.letters.push(Letter { from, to, message });
        }
    }

    /// A sealed object is here, and may be gone again: its owner is told before anybody else.
    pub(super) fn sealed(&mut self, node: usize, object: ObjectId) {
        self.up[node].push_back(News::Copy { object, here: true });
    }

    /// Who waits for an object that came has it.
    pub(super) fn came(&mut self, node: usize, object: ObjectId) -> Result<(), String> {
        self.fulfil(node)?;
        self.serve_deferred(node, object)
    }

    pub(super) fn defer(&mut self, node: usize, by: usize, object: ObjectId) {
        let until = self.now + DEFER;
        self.nodes[node].deferred.push((object, by, until));
    }

    /// Those who have asked too early get their turn, as far as there is something to send.
    fn serve_deferred(&mut self, node: usize, object: ObjectId) -> Result<(), String> {
        let deferred = std::mem::take(&mut self.nodes[node].deferred);
        let (now, later): (Vec<_>, Vec<_>) = deferred.into_iter().partition(|(wanted, ..)| *wanted == object);
        self.nodes[node].deferred = later;
        for (_, asker, until) in now {
            let served = match self.is_bulk(node, asker) {
                true => self.offer(node, asker, object)?,
                false => self.push_here(node, asker, object)?,
            };
            if !served {
                self.nodes[node].deferred.push((object, asker, until));
            }
        }
        Ok(())
    }

    /// Serves creates that wait for room on a node.
    pub(super) fn serve(&mut self, node: usize) -> Result<(), String> {
        let (answered, evicted) = self.nodes[node].store.serve(self.now);
        for object in evicted {
            self.report.evicted += 1;
            self.up[node].push_back(News::Copy { object, here: false });
            // What is on disk can be had again.
            if !self.nodes[node].store.disk.contains_key(&object) {
                self.tell(node, PullEvent::Gone { object })?;
            }
        }
        for (create, result) in answered {
            let object = create.object;
            match (create.token, result) {
                (Some(RESTORE), result) => self.restored(node, object, result)?,
                (Some(token), result) => {
                    self.receive(node, ReceiveEvent::Created { object, token, result })?;
                    self.serve_deferred(node, object)?;
                }
                (None, Ok(())) => {
                    if let Some(known) = self.objects.get_mut(&object) {
                        known.home = Some(node);
                        known.locations.insert(node);
                    }
                    self.publish(object);
                    self.sealed(node, object);
                    self.tell(node, PullEvent::Here { object, held: false })?;
                    self.came(node, object)?;
                }
                (None, Err(StoreError::OutOfMemory)) => {}
                (None, Err(error)) => return Err(format!("node {node} can't make {object}: {error}")),
            }
        }
        Ok(())
    }

    /// A node wants an object, and is sent it once it is here.
    pub(super) fn wanted(&mut self, node: usize, by: usize, object: ObjectId) -> Result<(), String> {
        if !self.push_here(node, by, object)? {
            self.defer(node, by, object);
        }
        Ok(())
    }

    /// A node wants an object if it is here.
    pub(super) fn wanted_now(&mut self, node: usize, by: usize, object: ObjectId) -> Result<(), String> {
        if self.nodes[node].serves(&object) {
            return match self.is_bulk(node, by) {
                true => self.wanted_on_a_lane(node, by, object, false),
                false => self.wanted(node, by, object),
            };
        }
        match self.is_bulk(node, by) {
            true => self.reply(by, node, Down::Withdrawn { object }),
            false => self.answer(node, by, Message::NotThere { object }),
        }
        Ok(())
    }

    fn push_here(&mut self, node: usize, by: usize, object: ObjectId) -> Result<bool, String> {
        let here = self.hold(node, object);
        if here {
            self.push(node, by, object)?;
        }
        Ok(here)
    }

    /// Takes the sender's reference on an object, if it is here and there is none yet. False: it is not here.
    pub(super) fn hold(&mut self, node: usize, object: ObjectId) -> bool {
        let number = self.number();
        let Node { store, pushes, .. } = &mut self.nodes[node];
        let Some(copy) = store.copies.get_mut(&object).filter(|copy| copy.sealed) else {
            return self.hold_file(node, object);
        };
        if let Entry::Vacant(push) = pushes.entry(object) {
            push.insert(number);
            copy.users += 1;
        }
        true
    }

    /// Gives the sender's reference back, if the object is neither sent nor offered any more.
    pub(super) fn let_hold_go(&mut self, node: usize, object: ObjectId) -> Result<(), String> {
        let Node { store, sending, offered, pushes, lent, from_disk, .. } = &mut self.nodes[node];
        if sending.contains_key(&object) || offered.range((object, 0)..=(object, usize::MAX)).next().is_some() {
            return Ok(());
        }
        if lent.contains_key(&object) {
            return self.send(node, SendEvent::GiveUp { object });
        }
        if pushes.remove(&object).is_some() {
            let of_file = from_disk.remove(&object);
            let copies = if of_file { &mut store.disk } else { &mut store.copies };
            if let Some(copy) = copies.get_mut(&object) {
                copy.users -= 1;
            }
            self.serve(node)?;
        }
        Ok(())
    }

    /// Sends an object that is held.
    pub(super) fn push(&mut self, node: usize, to: usize, object: ObjectId) -> Result<(), String> {
        let Node { store, sending, from_disk, .. } = &mut self.nodes[node];
        let Some(copy) = store.source(&object, from_disk.contains(&object)) else {
            return Err(format!("{object} is held on node {node}, and is not there"));
        };
        sending.entry(object).or_default().insert(to);
        let chunks = copy.size.div_ceil(CHUNK) as u32;
        self.send(node, SendEvent::Push { node: node_id(to), object, chunks })
    }

    pub(super) fn send(&mut self, node: usize, event: SendEvent) -> Result<(), String> {
        let mut effects = Vec::new();
        self.nodes[node].sender.handle(event, &mut effects);
        self.nodes[node].sends.extend(effects);
        if std::mem::replace(&mut self.nodes[node].is_sending, true) {
            return Ok(());
        }
        while let Some(effect) = self.nodes[node].sends.pop_front() {
            self.carry_out_send(node, effect)?;
        }
        self.nodes[node].is_sending = false;
        Ok(())
    }

    fn carry_out_send(&mut self, node: usize, effect: SendEffect) -> Result<(), String> {
        match effect {
            SendEffect::Send { node: to, object, index } => {
                let to = node_of(to);
                let Node { store, from_disk, .. } = &self.nodes[node];
                let copy = store.source(&object, from_disk.contains(&object));
                let copy = copy.ok_or_else(|| format!("node {node} sends {object}, which it has not"))?;
                let there = copy.chunk(index).map(|(version, _)| version);
                let version = there.ok_or_else(|| format!("node {node} sends chunk {index} of {object} too early"))?;
                let len_bytes = (copy.size - u64::from(index) * CHUNK).min(CHUNK);
                let (total_bytes, from) = (copy.size, node_id(node));
                let push = self.nodes[node].pushes[&object];
                let head = ChunkHead { object, from, push, index, total_bytes, metadata_bytes: 1, len_bytes };
                if self.is_bulk(node, to) {
                    return self.begin_reading(node, to, head);
                }
                let message = Message::Chunk { head, version, index };
                self.letters.push(Letter { from: node, to, message });
                Ok(())
            }
            SendEffect::Withdrawn { node: to, object } => {
                let to = node_of(to);
                if self.is_bulk(node, to) {
                    self.reply(to, node, Down::Withdrawn { object });
                }
                Ok(())
            }
            SendEffect::Returned { object } => self.returned(node, object),
            SendEffect::Finished { node: to, object } => {
                self.nodes[node].spread.served(&object, &to, true);
                let Some(nodes) = self.nodes[node].sending.get_mut(&object) else {
                    return Err(format!("node {node} finished {object}, which it did not send"));
                };
                nodes.remove(&node_of(to));
                if nodes.is_empty() {
                    self.nodes[node].sending.remove(&object);
                }
                self.let_hold_go(node, object)
            }
        }
    }
}
