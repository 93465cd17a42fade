//! The end of a world.

use super::*;

impl World {
    // --- rest

    /// Nothing is harmed any more: what is wanted and somewhere arrives, and nothing stays behind.
    pub(in super::super) fn rest(&mut self) -> Result<(), String> {
        self.resting = true;
        for round in 0..20_000 {
            for node in 0..self.nodes.len() {
                if self.nodes[node].alive {
                    self.let_go(node)?;
                    self.end_spill(node)?;
                    while !(self.up[node].is_empty() && self.down[node].is_empty()) {
                        self.deliver_news(node)?;
                    }
                }
            }
            for sent in 0.. {
                if self.letters.is_empty() && self.lanes_are_quiet() {
                    break;
                }
                if sent > AT_ONCE_MAX * self.nodes.len() as u64 {
                    let letters = self.letters.iter().take(9).collect::<Vec<_>>();
                    return Err(format!("nodes write to each other without end: {letters:?}"));
                }
                self.deliver_letter()?;
                self.move_lanes()?;
                self.check_now_and_then(sent)?;
            }
            self.pass(SECOND / 10)?;
            self.end_hopeless_wishes()?;
            let waiting =
                self.nodes.iter().any(|node| node.alive && !(node.wishes.is_empty() && node.store.queue.is_empty()));
            let quiet = self.letters.is_empty()
                && self.lanes_are_quiet()
                && self.up.iter().chain(&self.down).all(VecDeque::is_empty);
            if !waiting && quiet {
                return self.check_rest();
            }
            if round % 64 == 0 {
                self.check()?;
            }
        }
        let wanting = self.nodes.iter().filter(|node| node.alive && !node.wishes.is_empty());
        let left: Vec<_> = wanting
            .map(|node| (&node.wishes, node.manager.stats(), &node.store, &node.receiver, &node.offered, &node.sending))
            .collect();
        let missing = self.nodes.iter().flat_map(|node| node.wishes.values()).flat_map(|wish| &wish.objects);
        let missing: BTreeSet<ObjectId> = missing.filter(|(_, seen)| !**seen).map(|(object, _)| *object).collect();
        let at = |object: &ObjectId| -> Vec<usize> {
            (0..self.nodes.len()).filter(|node| self.nodes[*node].serves(object)).collect()
        };
        let missing: Vec<_> = missing.iter().map(|object| (object, self.objects.get(object), at(object))).collect();
        Err(format!("what is wanted and somewhere does not come: {missing:?}, {left:?}"))
    }

    /// Owners tell of what is lost for good; here its wishes end.
    pub(super) fn end_hopeless_wishes(&mut self) -> Result<(), String> {
        let mut there = BTreeSet::new();
        for store in self.nodes.iter().filter(|node| node.alive).map(|node| &node.store) {
            there.extend(store.copies.iter().filter(|(_, copy)| copy.sealed).map(|(object, _)| *object));
            there.extend(store.disk.iter().filter(|(_, copy)| !copy.is_spoilt).map(|(object, _)| *object));
            there.extend(store.queue.iter().filter(|create| create.token.is_none()).map(|create| create.object));
        }
        let lost = |object: &ObjectId| !there.contains(object);
        for node in 0..self.nodes.len() {
            let wishes = &self.nodes[node].wishes;
            let hopeless = wishes.iter().filter(|(_, wish)| wish.objects.keys().any(lost)).map(|(id, _)| *id);
            for wish in hopeless.collect::<Vec<_>>() {
                self.nodes[node].wishes.remove(&wish);
                if self.nodes[node].alive {
                    self.tell(node, PullEvent::Unwant { wish })?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn check_rest(&self) -> Result<(), String> {
        self.check()?;
        for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            let held = node.store.copies.iter().filter(|(_, copy)| !copy.sealed || copy.received || copy.users > 0);
            let held: Vec<_> = held.collect();
            let empty = node.receiver.is_empty() && node.sender.is_empty() && !node.manager.is_wanting();
            if !held.is_empty()
                || !empty
                || !node.sending.is_empty()
                || !node.offered.is_empty()
                || !node.from_disk.is_empty()
                || node.store.disk.values().any(|copy| copy.users > 0)
                || node.receiver.waiting_bytes() > 0
            {
                return Err(format!(
                    "node {number} has left over: {held:?}, {:?}, {} received, {} sent",
                    node.manager.stats(),
                    node.receiver.len(),
                    node.sender.len()
                ));
            }
        }
        if !self.tickets.is_empty() {
            return Err(format!("{} chunks were not answered", self.tickets.len()));
        }
        Ok(())
    }
}
