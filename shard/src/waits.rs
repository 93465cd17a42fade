//! Requests that wait for several objects: `ray.wait`, a plasma get of many, the arguments of an actor call.
//!
//! Objects live on many shards; the request lives on the shard of its connection, and hears of each object once, by the
//! number of the request and the position of the object in it.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::ids::ObjectId;

/// Names a waiting request. Numbers come round only after [`WaitId::COUNT`] requests, so late news for a request that ended
/// cannot be taken for news of a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaitId(u32);

impl WaitId {
    /// How many numbers there are: 22 bits, so that a number and a position take 46 bits of a token.
    pub const COUNT: u32 = 1 << 22;

    /// The number itself.
    pub fn index(self) -> u32 {
        self.0
    }

    /// Packs the request and a position in it.
    pub fn token(self, position: usize) -> u64 {
        (u64::from(self.0) << 24) | position as u64
    }

    /// Reads what [`token`](Self::token) packed.
    pub fn from_token(token: u64) -> (Self, usize) {
        let wait = (token >> 24) & u64::from(Self::COUNT - 1);
        (Self(wait as u32), (token & 0xff_ffff) as usize)
    }
}

/// Most requests that wait at once on one shard; one more is refused.
pub const MAX_WAITS: usize = 1 << 20;

/// Most objects in one request.
pub const MAX_OBJECTS: usize = 1 << 24;

/// Why a request cannot wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitRefused {
    /// [`MAX_WAITS`] requests wait already.
    TooManyRequests,
    /// The request names more than [`MAX_OBJECTS`] objects.
    TooManyObjects,
}

/// The requests of one shard that wait for objects. `T` is what the caller needs to answer one.
#[derive(Debug)]
pub struct Waits<T> {
    requests: FxHashMap<u32, Request<T>>,
    next: u32,
}

#[derive(Debug)]
struct Request<T> {
    objects: Vec<ObjectId>,
    ready: Vec<bool>,
    missing: usize,
    context: T,
}

/// A request that ended: what was asked for, and which of it is there.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished<T> {
    /// What the caller gave when the request began.
    pub context: T,
    /// The objects asked for, each once, in the order asked.
    pub objects: Vec<ObjectId>,
    /// For each object, whether it was ready.
    pub ready: Vec<bool>,
}

impl<T> Default for Waits<T> {
    fn default() -> Self {
        Self { requests: FxHashMap::default(), next: 0 }
    }
}

impl<T> Waits<T> {
    /// Begins a request that ends once `required` of `objects` are ready. Objects named twice count once, and more than there
    /// are means all.
    ///
    /// # Errors
    /// Refuses past [`MAX_WAITS`] and [`MAX_OBJECTS`].
    pub fn begin(&mut self, mut objects: Vec<ObjectId>, required: usize, context: T) -> Result<WaitId, WaitRefused> {
        if self.requests.len() >= MAX_WAITS {
            return Err(WaitRefused::TooManyRequests);
        }
        if objects.len() > MAX_OBJECTS {
            return Err(WaitRefused::TooManyObjects);
        }
        if objects.len() > 1 {
            let mut seen = FxHashSet::default();
            objects.retain(|object| seen.insert(*object));
        }
        let key = self.free_number();
        let request =
            Request { ready: vec![false; objects.len()], missing: required.min(objects.len()), objects, context };
        self.requests.insert(key, request);
        Ok(WaitId(key))
    }

    fn free_number(&mut self) -> u32 {
        loop {
            let key = self.next;
            self.next = (self.next + 1) % WaitId::COUNT;
            if !self.requests.contains_key(&key) {
                return key;
            }
        }
    }

    /// The objects of a request, each once; empty when it ended.
    pub fn objects(&self, wait: WaitId) -> &[ObjectId] {
        self.requests.get(&wait.0).map_or(&[], |r| &r.objects)
    }

    /// What the caller gave when the request began; `None` when it ended.
    pub fn context_mut(&mut self, wait: WaitId) -> Option<&mut T> {
        self.requests.get_mut(&wait.0).map(|r| &mut r.context)
    }

    /// Notes that the object at `position` is ready. True when the request has all that it requires; false, too, for a
    /// request that ended.
    pub fn ready(&mut self, wait: WaitId, position: usize) -> bool {
        let Some(request) = self.requests.get_mut(&wait.0) else {
            return false;
        };
        if let Some(ready) = request.ready.get_mut(position) {
            if !std::mem::replace(ready, true) {
                request.missing = request.missing.saturating_sub(1);
            }
        }
        request.missing == 0
    }

    /// True when the request waits and nothing is missing, as for one that requires no object.
    pub fn is_complete(&self, wait: WaitId) -> bool {
        self.requests.get(&wait.0).is_some_and(|r| r.missing == 0)
    }

    /// The objects of a request that are not ready.
    pub fn missing(&self, wait: WaitId) -> FxHashSet<ObjectId> {
        let Some(request) = self.requests.get(&wait.0) else {
            return FxHashSet::default();
        };
        let objects = request.objects.iter().zip(&request.ready);
        objects.filter(|(_, ready)| !**ready).map(|(id, _)| *id).collect()
    }

    /// Ends a request, complete or not. `None` when it ended before.
    pub fn finish(&mut self, wait: WaitId) -> Option<Finished<T>> {
        let request = self.requests.remove(&wait.0)?;
        Some(Finished { context: request.context, objects: request.objects, ready: request.ready })
    }

    /// The requests for which `belongs` holds, as those of a client that went away.
    pub fn select(&self, mut belongs: impl FnMut(&T) -> bool) -> Vec<WaitId> {
        let of_client = self.requests.iter().filter(|(_, r)| belongs(&r.context));
        of_client.map(|(key, _)| WaitId(*key)).collect()
    }

    /// Number of requests that wait.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// True when no request waits.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ObjectId {
        ObjectId([n; 28])
    }

    #[test]
    fn a_request_ends_with_the_last_required_object_and_not_before() {
        let mut waits = Waits::default();
        let wait = waits.begin(vec![id(1), id(2), id(3)], 2, "w").unwrap();
        assert!(!waits.ready(wait, 2));
        assert!(!waits.ready(wait, 2), "the same object counts once");
        assert!(waits.ready(wait, 0));
        let finished = waits.finish(wait).unwrap();
        assert_eq!(finished.ready, [true, false, true]);
        assert!(waits.finish(wait).is_none());
    }

    #[test]
    fn an_object_named_twice_does_not_make_the_request_wait_for_ever() {
        let mut waits = Waits::default();
        let wait = waits.begin(vec![id(1), id(1)], 2, ()).unwrap();
        assert_eq!(waits.objects(wait), [id(1)]);
        assert!(waits.ready(wait, 0));
    }

    #[test]
    fn late_news_does_not_reach_the_next_request() {
        let mut waits = Waits::default();
        let first = waits.begin(vec![id(1)], 1, 1).unwrap();
        waits.finish(first);
        let second = waits.begin(vec![id(2)], 1, 2).unwrap();
        assert!(!waits.ready(first, 0));
        assert!(!waits.is_complete(second));
    }

    #[test]
    fn a_position_outside_the_request_is_ignored() {
        let mut waits = Waits::default();
        let wait = waits.begin(vec![id(1)], 1, ()).unwrap();
        assert!(!waits.ready(wait, 9));
    }

    #[test]
    fn a_token_carries_request_and_position() {
        let token = WaitId(0x2b_cdef).token(0x12_3456);
        assert_eq!(WaitId::from_token(token), (WaitId(0x2b_cdef), 0x12_3456));
    }

    #[test]
    fn the_requests_of_one_client_are_found() {
        let mut waits = Waits::default();
        waits.begin(vec![id(1)], 1, 7).unwrap();
        let other = waits.begin(vec![id(1)], 1, 8).unwrap();
        assert_eq!(waits.select(|c| *c == 8), [other]);
    }
}
