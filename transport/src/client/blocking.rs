//! The blocking client.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::Link;
use super::puts::Puts;
use super::shared::{due, refusal_of, About, KnownClass, Shared, State};
use super::slots::Undo;
use super::{ClientError, Lease, Object, ObjectWriter, Options};
use crate::fault::{self, Point};
use crate::ids::{NodeId, ObjectId, WorkerId};
use crate::messages::*;
use crate::ring::Rings;

/// A connection to a node. Clones are handles to the same one.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

/// What a lease is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseSpec {
    /// What it holds: names and amounts in 1/10,000 of a unit.
    pub resources: Vec<(String, u64)>,
    /// The kind of worker that serves it; empty: it needs none, the lease is of resources alone.
    pub class: String,
    /// Objects that have to be sealed on the node before it is granted.
    pub deps: Vec<ObjectId>,
    /// Higher ones of a class are granted first.
    pub priority: i32,
    /// How long to wait for it; `None`: for ever.
    pub wait: Option<Duration>,
    /// It is taken back when nothing is heard of it for so long; `None`: never.
    pub unused: Option<Duration>,
    /// For the worker.
    pub payload: Vec<u8>,
}

impl LeaseSpec {
    /// A lease of this class that holds nothing and waits for nothing.
    pub fn new(class: impl Into<String>) -> Self {
        Self {
            resources: Vec::new(),
            class: class.into(),
            deps: Vec::new(),
            priority: 0,
            wait: None,
            unused: None,
            payload: Vec::new(),
        }
    }

    /// It also holds so many units of a resource, rounded to 1/10,000.
    pub fn resource(mut self, name: impl Into<String>, units: f64) -> Self {
        self.resources.push((name.into(), (units.max(0.0) * RESOURCE_STEPS as f64).round() as u64));
        self
    }

    /// The payload for the worker.
    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Objects that have to be there first.
    pub fn deps(mut self, deps: impl IntoIterator<Item = ObjectId>) -> Self {
        self.deps.extend(deps);
        self
    }
}

/// Something that happened on the node ([`Client::subscribe`]).
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// To an object.
    Object(ObjectEvent),
    /// To the node.
    Node(NodeEvent),
    /// This many events were dropped, by the node or here, since they were not fetched in time.
    Lost(u64),
}

/// A timeout on the wire.
pub(crate) fn timeout_ns(timeout: Option<Duration>) -> u64 {
    timeout.map_or(FOREVER_NS, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(FOREVER_NS))
}

impl Client {
    /// Connects with the default [`Options`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        Self::connect_with(path, Options::default())
    }

    /// Connects.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect_with(path: impl AsRef<Path>, options: Options) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(ClientError::io("connecting to the node's socket"))?;
        Self::on_stream(stream, options)
    }

    /// Takes a connected socket.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn on_stream(stream: UnixStream, options: Options) -> Result<Self, ClientError> {
        let link = Link::new(Arc::new(stream.into()))?;
        let nobody = About {
            node: NodeId::NIL,
            worker: WorkerId::NIL,
            client: 0,
            capabilities: 0,
            limits: crate::server::DEFAULT_LIMITS,
        };
        // Nobody else has it yet, so the greeting can run on it before it is complete.
        let greeting = Shared::new(State::new(link, Puts::new(crate::ids::TaskId::NIL)), options.clone(), nobody);
        let hello = Hello {
            magic: HELLO_MAGIC,
            capabilities: capability::ALL,
            version_min: VERSION.into(),
            version_max: VERSION.into(),
            pid: std::process::id(),
        };
        let welcome = due!(greeting.call(&hello, Undo::Nothing)?, Welcome)?;
        let mut state = greeting.into_state()?;
        let descriptors = state.link.take_setup();
        if welcome.magic != HELLO_MAGIC || descriptors.len() != welcome.segments.len() {
            return Err(ClientError::Unexpected {
                expected: "a welcome with a descriptor for each segment",
                got: format!("{:#018x} with {} for {}", welcome.magic, descriptors.len(), welcome.segments.len()),
            });
        }
        for (segment, descriptor) in welcome.segments.iter().zip(&descriptors) {
            state.link.segments.add(segment, descriptor)?;
        }
        state.link.set_frame_limit(welcome.limits.frame_bytes);
        state.puts = Puts::new(welcome.put_task);
        let ring_lines = options.ring_lines.filter(|_| welcome.capabilities & capability::RINGS != 0);
        let about = About {
            node: welcome.node,
            worker: welcome.worker,
            client: welcome.client,
            capabilities: welcome.capabilities,
            limits: welcome.limits,
        };
        let shared = Shared::new(state, options, about);
        fault::pass(Point::Welcomed);
        if let Some(lines) = ring_lines {
            shared.open_ring(lines)?;
            fault::pass(Point::RingOpened);
        }
        Ok(Self { shared })
    }

    /// Closes the connection. All that is held is given back by the node; every handle and every thread that waits gets
    /// [`ClientError::Closed`].
    pub fn close(&self) {
        self.shared.lock().link.close();
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.shared.about.node
    }

    /// The client's name as an owner of objects and leases.
    pub fn worker_id(&self) -> WorkerId {
        self.shared.about.worker
    }

    /// The client's number on its node.
    pub fn number(&self) -> u64 {
        self.shared.about.client
    }

    /// What the connection may use.
    pub fn limits(&self) -> &Limits {
        &self.shared.about.limits
    }

    /// Messages go through rings.
    pub fn has_ring(&self) -> bool {
        self.shared.lock().link.has_ring()
    }

    /// Stores bytes as a new object, kept until this client deletes it or goes. A small one costs one message and is not waited for:
    /// this client's later requests find it, another process may have to wait for it a moment ([`get`](Self::get) does).
    ///
    /// # Errors
    /// [`ClientError`]; [`RefusalCode::StoreFull`] where there is no room.
    pub fn put(&self, data: &[u8]) -> Result<ObjectId, ClientError> {
        self.shared.put(data, &[], true)
    }

    /// The same for an object that may be evicted when nobody uses it and memory is needed.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_unpinned(&self, data: &[u8]) -> Result<ObjectId, ClientError> {
        self.shared.put(data, &[], false)
    }

    /// The same as [`put`](Self::put) with metadata.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_with_metadata(&self, data: &[u8], metadata: &[u8]) -> Result<ObjectId, ClientError> {
        self.shared.put(data, metadata, true)
    }

    /// Why puts that were not waited for failed, the oldest first. None ever does, unless somebody uses this client's names.
    pub fn take_failures(&self) -> Vec<Refusal> {
        self.shared.lock().link.failures.drain(..).collect()
    }

    /// Memory for a new object, to be written and sealed.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn create(&self, data_bytes: usize) -> Result<ObjectWriter, ClientError> {
        let (state, id) = self.shared.next_id(self.shared.lock())?;
        drop(state);
        self.create_as(id, data_bytes, 0, None)
    }

    /// The same with a name, with metadata, and with a limit to the wait for room. A name that is taken is refused with
    /// [`RefusalCode::ObjectExists`].
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn create_as(
        &self,
        id: ObjectId,
        data_bytes: usize,
        metadata_bytes: usize,
        wait: Option<Duration>,
    ) -> Result<ObjectWriter, ClientError> {
        let piece = self.shared.create(id, data_bytes as u64, metadata_bytes as u64, timeout_ns(wait))?;
        Ok(ObjectWriter::new(self.shared.clone(), id, piece))
    }

    /// A sealed object, waited for at most `timeout` (`None`: for ever, zero: not at all).
    ///
    /// # Errors
    /// [`RefusalCode::DeadlinePassed`] where it was not there in time, [`RefusalCode::UnknownObject`] with a timeout of zero.
    pub fn get(&self, id: ObjectId, timeout: Option<Duration>) -> Result<Object, ClientError> {
        let get = Get { object: id, timeout_ns: timeout_ns(timeout) };
        let (state, ticket) = self.shared.submit(self.shared.lock(), &get, Undo::Release(id))?;
        let (state, answer) = self.shared.answer(state, ticket)?;
        let found = due!(refusal_of("Get", *answer)?, Found)?;
        fault::pass(Point::ObjectGot);
        let piece = state.link.piece(&found.place)?;
        drop(state);
        Ok(Object::new(self.shared.clone(), id, piece))
    }

    /// Waits until `wanted` of the objects are there or the time is over; the indices of those that are.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn wait(&self, ids: &[ObjectId], wanted: usize, timeout: Option<Duration>) -> Result<Vec<u32>, ClientError> {
        let wait = Wait {
            timeout_ns: timeout_ns(timeout),
            wanted: u32::try_from(wanted).unwrap_or(u32::MAX),
            objects: ids.to_vec(),
        };
        Ok(due!(self.shared.call(&wait, Undo::Nothing)?, Waited)?.ready)
    }

    /// Deletes an object; one in use goes with its last use.
    ///
    /// # Errors
    /// [`RefusalCode::UnknownObject`].
    pub fn delete(&self, id: ObjectId) -> Result<(), ClientError> {
        due!(self.shared.call(&Delete { object: id }, Undo::Nothing)?, Done).map(drop)
    }

    /// Is it here and sealed?
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn contains(&self, id: ObjectId) -> Result<bool, ClientError> {
        Ok(due!(self.shared.call(&Contains { object: id }, Undo::Nothing)?, Contained)?.sealed)
    }

    /// All objects of the node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn list(&self) -> Result<Vec<ObjectEntry>, ClientError> {
        /// Objects in one answer.
        const PAGE: u32 = 4096;
        let (mut entries, mut after) = (Vec::new(), ObjectId([0; ObjectId::LEN]));
        loop {
            let page = due!(self.shared.call(&List { after, most: PAGE }, Undo::Nothing)?, Listed)?;
            let last = page.entries.last().map(|entry| entry.object);
            entries.extend(page.entries);
            match last {
                Some(last) if page.more => after = last,
                _ => return Ok(entries),
            }
        }
    }

    /// Keeps objects for an owner (`WorkerId::NIL`: this client) until it is gone. For each: whether it was there to be kept.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pin(&self, owner: WorkerId, ids: &[ObjectId]) -> Result<Vec<bool>, ClientError> {
        let pin = Pin { owner, objects: ids.to_vec() };
        Ok(due!(self.shared.call(&pin, Undo::Nothing)?, Pinned)?.kept)
    }

    /// Keeps them no longer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn unpin(&self, ids: &[ObjectId]) -> Result<(), ClientError> {
        due!(self.shared.call(&Unpin { objects: ids.to_vec() }, Undo::Nothing)?, Done).map(drop)
    }

    /// Asks for a lease and waits for it.
    ///
    /// # Errors
    /// [`RefusalCode::DeadlinePassed`], [`RefusalCode::Draining`], [`RefusalCode::Infeasible`], [`RefusalCode::WorkerStart`];
    /// where the node has peers also [`RefusalCode::Spillback`]: ask the node that [`ClientError::spillback`] names.
    pub fn request_lease(&self, spec: &LeaseSpec) -> Result<Lease, ClientError> {
        let class = self.shared.class_of(spec)?;
        let mut state = self.shared.lock();
        let request = state.lease_request(spec, class);
        let lease = request.lease;
        let (state, ticket) = self.shared.submit(state, &request, Undo::Return(lease))?;
        let (mut state, answer) = self.shared.answer(state, ticket)?;
        let granted = refusal_of("RequestLease", *answer).and_then(|answer| due!(answer, Granted));
        if granted.is_err() {
            state.link.leases.remove(&lease);
        }
        let Granted { worker, allocation, address, .. } = granted?;
        fault::pass(Point::LeaseGranted);
        drop(state);
        Ok(Lease::new(self.shared.clone(), lease, worker, address, allocation))
    }

    /// The number that the next lease of this client gets: what another thread needs to cancel it.
    pub fn next_lease_number(&self) -> u32 {
        self.shared.lock().next_lease
    }

    /// Gives up a request of this client that another thread waits for. `false`: it is granted already, or unknown.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn cancel_lease(&self, number: u32) -> Result<bool, ClientError> {
        Ok(due!(self.shared.call(&CancelLease { lease: number }, Undo::Nothing)?, CancelDone)?.cancelled)
    }

    /// The node takes no new leases, or does again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn drain(&self, on: bool, detail: &str) -> Result<(), ClientError> {
        due!(self.shared.call(&Drain { on, detail: detail.to_owned() }, Undo::Nothing)?, Done).map(drop)
    }

    /// Asks for events of these [`topic`]s; 0 for none any more.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn subscribe(&self, topics: u32) -> Result<(), ClientError> {
        due!(self.shared.call(&Subscribe { topics }, Undo::Nothing)?, Done).map(drop)
    }

    /// The next event, waited for at most `timeout` (`None`: for ever).
    ///
    /// # Errors
    /// [`ClientError::TimedOut`].
    pub fn next_event(&self, timeout: Option<Duration>) -> Result<Event, ClientError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        self.shared
            .wait(self.shared.lock(), deadline, false, |state| state.next_event().map(Ok))
            .map(|(_, event)| event)
    }

    /// How the node is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        due!(self.shared.call(&GetStatus { resources: true }, Undo::Nothing)?, Status)
    }
}

impl State {
    /// The next event of a subscription.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        if self.link.events_dropped > 0 {
            return Some(Event::Lost(std::mem::take(&mut self.link.events_dropped)));
        }
        let is_ours = |event: &OwnedReply| {
            matches!(event, OwnedReply::ObjectEvent(_) | OwnedReply::NodeEvent(_) | OwnedReply::EventsLost(_))
        };
        let at = self.link.events.iter().position(is_ours)?;
        Some(match self.link.events.remove(at)? {
            OwnedReply::ObjectEvent(event) => Event::Object(event),
            OwnedReply::NodeEvent(event) => Event::Node(event),
            OwnedReply::EventsLost(EventsLost { count }) => Event::Lost(count),
            _ => return None,
        })
    }

    /// The request, with a number that no lease of this client has.
    pub(crate) fn lease_request(&mut self, spec: &LeaseSpec, class: u32) -> RequestLease {
        while self.link.leases.contains_key(&self.next_lease) {
            self.next_lease = self.next_lease.wrapping_add(1);
        }
        let lease = self.next_lease;
        self.next_lease = lease.wrapping_add(1);
        self.link.leases.insert(lease, Vec::new());
        RequestLease {
            lease,
            class,
            priority: spec.priority,
            wait_ns: timeout_ns(spec.wait),
            unused_ns: timeout_ns(spec.unused),
            deps: spec.deps.clone(),
            payload: spec.payload.clone(),
        }
    }
}

impl Shared {
    /// The whole state, where nobody else has it.
    fn into_state(self: Arc<Self>) -> Result<State, ClientError> {
        let shared =
            Arc::into_inner(self).ok_or_else(|| ClientError::Argument("the connection is in use".to_owned()))?;
        Ok(shared.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn open_ring(&self, lines: u32) -> Result<(), ClientError> {
        let (state, ticket) = self.submit(self.lock(), &OpenRing { lines }, Undo::Nothing)?;
        let (mut state, answer) = self.answer(state, ticket)?;
        let opened = due!(refusal_of("OpenRing", *answer)?, RingOpened)?;
        let descriptors = state.link.take_setup();
        let descriptors = descriptors.try_into().map_err(|got: Vec<_>| ClientError::Unexpected {
            expected: "three descriptors with the rings",
            got: got.len().to_string(),
        })?;
        let rings = Rings::open(opened.lines, descriptors).map_err(|e| ClientError::Setup(Arc::new(e)))?;
        state.link.use_ring(rings)
    }

    /// The class of a lease, asked for once.
    pub(crate) fn class_of(&self, spec: &LeaseSpec) -> Result<u32, ClientError> {
        if let Some(class) = self.lock().class_of(spec) {
            return Ok(class);
        }
        let class = due!(self.call(&definition_of(spec), Undo::Nothing)?, ClassDefined)?.class;
        self.lock().learn_class(spec, class);
        Ok(class)
    }
}

/// The message that defines the class of a lease.
pub(crate) fn definition_of(spec: &LeaseSpec) -> DefineClass {
    let resources = spec.resources.iter().map(|(name, amount)| ResourceAmount { name: name.clone(), amount: *amount });
    DefineClass { name: spec.class.clone(), resources: resources.collect() }
}

impl State {
    /// The class of a lease, if it was asked for before.
    pub(crate) fn class_of(&self, spec: &LeaseSpec) -> Option<u32> {
        let alike = self.classes.get(spec.class.as_str())?;
        alike.iter().find(|known| known.resources == spec.resources).map(|known| known.number)
    }

    /// The node has said the class of a lease.
    pub(crate) fn learn_class(&mut self, spec: &LeaseSpec, class: u32) {
        let known = KnownClass { resources: spec.resources.clone(), number: class };
        self.classes.entry(spec.class.clone()).or_default().push(known);
    }
}
