//! Who makes objects, wants them, uses them and lets them go.

use super::*;

impl World {
    // --- the owner

    /// A new object, at home on this node once there is room for it.
    pub(super) fn make(&mut self, node: usize) -> Result<(), String> {
        let capacity = self.nodes[node].store.capacity;
        let most = if self.rng.permille(300) { CHUNK } else { capacity / 4 };
        let size = 1 + self.rng.below(most);
        if self.objects.len() as u64 >= OBJECTS.max(3 * self.nodes.len() as u64)
            || self.nodes[node].store.promised() + size > capacity / 2
        {
            return Ok(());
        }
        let number = self.number();
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let object = ObjectId(bytes);
        self.objects.insert(object, Known { size, version: 1, home: None, locations: BTreeSet::new(), spilled: None });
        self.make_on(node, object)
    }

    pub(super) fn make_on(&mut self, node: usize, object: ObjectId) -> Result<(), String> {
        let Some(known) = self.objects.get(&object) else {
            return Ok(());
        };
        let create = Create { object, size: known.size, token: None, version: known.version };
        self.nodes[node].store.queue.push_back(create);
        self.serve(node)
    }

    /// Nothing refers to an object any more.
    pub(super) fn free_one(&mut self) -> Result<(), String> {
        let Some(object) = self.some_object() else {
            return Ok(());
        };
        let in_use = |node: &Node| {
            node.wishes.values().any(|wish| wish.objects.contains_key(&object))
                || node.store.copies.get(&object).is_some_and(|copy| copy.users > 0 || copy.received || !copy.sealed)
                || node.store.queue.iter().any(|create| create.object == object)
                || node.store.disk.get(&object).is_some_and(|copy| copy.users > 0)
        };
        if self.nodes.iter().any(in_use) {
            return Ok(());
        }
        self.objects.remove(&object);
        for node in 0..self.nodes.len() {
            let store = &mut self.nodes[node].store;
            if store.disk.remove(&object).is_some() | store.copies.remove(&object).is_some() {
                self.tell(node, PullEvent::Gone { object })?;
                self.serve(node)?;
            }
        }
        Ok(())
    }

    pub(super) fn publish(&mut self, object: ObjectId) {
        for (node, down) in self.nodes.iter().zip(&mut self.down) {
            if node.alive && node.subscribed.contains(&object) {
                down.push_back(News::Located { object });
            }
        }
    }

    /// Objects of which no copy is left are made again, with other bytes.
    pub(super) fn make_again(&mut self) -> Result<(), String> {
        let lost = self.objects.iter().filter(|(_, known)| known.is_nowhere());
        let lost: Vec<ObjectId> = lost.map(|(object, _)| *object).collect();
        for object in lost {
            if self
                .nodes
                .iter()
                .any(|node| node.alive && node.store.queue.iter().any(|c| c.object == object && c.token.is_none()))
            {
                continue;
            }
            let node = self.alive();
            let size = self.objects[&object].size;
            let store = &self.nodes[node].store;
            if store.copies.contains_key(&object) || store.promised() + size > store.capacity / 2 {
                continue;
            }
            if let Some(known) = self.objects.get_mut(&object) {
                known.version += 1;
            }
            self.report.remade += 1;
            self.make_on(node, object)?;
        }
        Ok(())
    }

    // --- clients

    pub(super) fn wish(&mut self, node: usize) -> Result<(), String> {
        let kind = [Kind::Get, Kind::Wait, Kind::Arguments][self.rng.below(3) as usize];
        let half = self.nodes[node].store.capacity / 2;
        let (mut objects, mut bytes) = (BTreeMap::new(), 0);
        for _ in 0..1 + self.rng.below(4) {
            if let Some(object) = self.some_object() {
                bytes += self.objects[&object].size;
                if bytes <= half {
                    objects.insert(object, self.nodes[node].store.has(&object));
                }
            }
        }
        self.wish_for(node, kind, objects)
    }

    /// All nodes want one object at once.
    pub(super) fn broadcast(&mut self) -> Result<(), String> {
        let Some(object) = self.some_object() else {
            return Ok(());
        };
        for node in (0..self.nodes.len()).filter(|n| self.nodes[*n].alive).collect::<Vec<_>>() {
            if self.objects[&object].size <= self.nodes[node].store.capacity / 2 {
                let here = self.nodes[node].store.has(&object);
                self.wish_for(node, Kind::Get, BTreeMap::from([(object, here)]))?;
            }
        }
        Ok(())
    }

    fn wish_for(&mut self, node: usize, kind: Kind, objects: BTreeMap<ObjectId, bool>) -> Result<(), String> {
        if objects.is_empty() || self.nodes[node].wishes.len() > 6 {
            return Ok(());
        }
        let wish = self.number();
        let mut wanted = Vec::new();
        for (object, here) in &objects {
            let guess = match self.rng.below(3) {
                0 => None,
                1 => self.objects[object].home,
                _ => Some(self.rng.below(self.nodes.len() as u64) as usize),
            };
            let likely = guess.filter(|guess| *guess != node).map(node_id);
            wanted.push(Target { object: *object, here: *here, likely });
        }
        self.nodes[node].wishes.insert(wish, Wanted { kind, objects });
        self.tell(node, PullEvent::Want { wish, kind, objects: wanted })?;
        self.fulfil(node)
    }

    pub(super) fn end_a_wish(&mut self, node: usize) -> Result<(), String> {
        let at = self.rng.below(self.nodes[node].wishes.len().max(1) as u64) as usize;
        let Some(wish) = self.nodes[node].wishes.keys().nth(at).copied() else {
            return Ok(());
        };
        self.nodes[node].wishes.remove(&wish);
        self.tell(node, PullEvent::Unwant { wish })
    }

    /// Ends the wishes that have what they want: arguments all at once, others one after the other.
    pub(super) fn fulfil(&mut self, node: usize) -> Result<(), String> {
        let Node { wishes, store, .. } = &mut self.nodes[node];
        let mut done = Vec::new();
        for (id, wish) in wishes {
            for (object, seen) in &mut wish.objects {
                // What is on disk here can be had again, by whoever takes the lease.
                let stays = wish.kind != Kind::Arguments || store.disk.contains_key(object);
                *seen = store.has(object) || (*seen && stays);
            }
            if wish.objects.values().all(|seen| *seen) {
                done.push(*id);
            }
        }
        for wish in done {
            self.nodes[node].wishes.remove(&wish);
            self.report.fulfilled += 1;
            self.tell(node, PullEvent::Unwant { wish })?;
        }
        Ok(())
    }

    pub(super) fn use_one(&mut self, node: usize) {
        let Some(object) = self.some_object() else {
            return;
        };
        let Node { store, pushes, .. } = &mut self.nodes[node];
        let used: u64 = store.copies.values().filter(|copy| copy.users > 0).map(|copy| copy.size).sum();
        let capacity = store.capacity;
        if let Some(copy) = store.copies.get_mut(&object).filter(|copy| copy.sealed && copy.users == 0) {
            if used + copy.size <= capacity / 4 && !pushes.contains_key(&object) {
                copy.users += 1;
            }
        }
    }

    pub(super) fn let_go(&mut self, node: usize) -> Result<(), String> {
        let Node { store, pushes, from_disk, .. } = &mut self.nodes[node];
        for (object, copy) in &mut store.copies {
            copy.users = u32::from(copy.sealed && pushes.contains_key(object) && !from_disk.contains(object));
        }
        self.serve(node)
    }
}
