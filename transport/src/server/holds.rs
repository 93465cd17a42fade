//! Uses of objects by one client, counted.

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;

use crate::ids::ObjectId;
use crate::messages::{Refusal, RefusalCode};

/// What one client uses. The store is asked for one reference for the client, at the first use, and given it back at the last.
#[derive(Debug, Default)]
pub struct Holds {
    counts: HashMap<ObjectId, u32, FxBuildHasher>,
}

impl Holds {
    /// One more use. `true`: it is the first.
    pub fn add(&mut self, object: ObjectId) -> bool {
        let count = self.counts.entry(object).or_insert(0);
        *count = count.saturating_add(1);
        *count == 1
    }

    /// So many uses end. `true`: these were the last, so the store's reference is to be given back.
    ///
    /// # Errors
    /// [`RefusalCode::NotHeld`] where the client has fewer uses; nothing changes.
    pub fn release(&mut self, object: ObjectId, count: u32) -> Result<bool, Refusal> {
        let held = self.counts.get(&object).copied().unwrap_or(0);
        if count == 0 || held < count {
            return Err(Refusal::new(RefusalCode::NotHeld, format!("{count} uses of {object} released, {held} held")));
        }
        if held == count {
            self.counts.remove(&object);
        } else {
            self.counts.insert(object, held - count);
        }
        Ok(held == count)
    }

    /// True while the object is in use.
    pub fn has(&self, object: ObjectId) -> bool {
        self.counts.contains_key(&object)
    }

    /// Objects in use.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Nothing is in use.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// The client is gone: every object that it used.
    pub fn drain(&mut self) -> impl Iterator<Item = ObjectId> + '_ {
        self.counts.drain().map(|(object, _)| object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_and_the_last_use_concern_the_store() {
        let (mut holds, object) = (Holds::default(), ObjectId([1; 28]));
        assert_eq!([holds.add(object), holds.add(object), holds.add(object)], [true, false, false]);
        assert_eq!(holds.release(object, 2), Ok(false));
        assert_eq!(holds.release(object, 1), Ok(true));
        assert!(holds.is_empty());
    }

    #[test]
    fn what_is_not_held_is_not_released() {
        let (mut holds, object) = (Holds::default(), ObjectId([1; 28]));
        holds.add(object);
        for (of, count) in [(object, 2), (object, 0), (ObjectId([2; 28]), 1)] {
            assert_eq!(holds.release(of, count).unwrap_err().code, RefusalCode::NotHeld);
        }
        assert_eq!(holds.drain().collect::<Vec<_>>(), [object]);
    }
}
