//! The async client, for any runtime: its futures need a [`Driver`] that is run beside them.
//!
//! A future sends its request when it is first polled and looks into the ring each time it is polled, so answers that are quick need
//! no driver. Whatever else comes is brought in by the driver, which waits on one descriptor ([`Driver`] is [`AsFd`]). Features `async-io`
//! and `tokio` have a loop for those reactors; any other waits until the descriptor is readable and calls [`Driver::turn`].

use std::future::{poll_fn, Future};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::pin::Pin as PinMut;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::blocking::{definition_of, timeout_ns};
use super::shared::{due, refusal_of, Shared, State};
use super::slots::{Ticket, Undo};
use super::{Client, ClientError, Event, Lease, LeaseEnd, LeaseSpec, Object, Options};
use crate::ids::ObjectId;
use crate::messages::{Contains, Delete, Get, Granted, Message, OwnedReply, Wait};

/// A client whose calls are futures. Clones are handles to the same connection. Dropping a future gives back what its answer would have
/// brought.
#[derive(Clone)]
pub struct AsyncClient {
    client: Client,
}

/// Brings in what comes from the node, and wakes who waits for it.
pub struct Driver {
    shared: Arc<Shared>,
    epoll: Arc<OwnedFd>,
}

impl AsyncClient {
    /// Connects. The greeting blocks; a local node answers in microseconds.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<(Self, Driver), ClientError> {
        Ok(Self::on(Client::connect_with(path, options)?))
    }

    /// On a connection that is there.
    pub fn on(client: Client) -> (Self, Driver) {
        let shared = client.shared.clone();
        let epoll = shared.epoll().clone();
        (Self { client }, Driver { shared, epoll })
    }

    /// The same connection, for what is quick or may block.
    pub fn blocking(&self) -> &Client {
        &self.client
    }

    /// As [`Client::put`]. It blocks where the node is slow to give memory; small objects usually need none.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn put(&self, data: &[u8]) -> Result<ObjectId, ClientError> {
        self.client.put(data)
    }

    /// As [`Client::get`].
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get(&self, id: ObjectId, timeout: Option<Duration>) -> Result<Object, ClientError> {
        let get = Get { object: id, timeout_ns: timeout_ns(timeout) };
        let found = due!(self.call(get, Undo::Release(id)).await?, Found)?;
        let piece = self.client.shared.lock().link.piece(&found.place)?;
        Ok(Object::new(self.client.shared.clone(), id, piece))
    }

    /// As [`Client::wait`].
    ///
    /// # Errors
    /// As [`Client::wait`].
    pub async fn wait(
        &self,
        ids: &[ObjectId],
        wanted: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<u32>, ClientError> {
        let wait = Wait {
            timeout_ns: timeout_ns(timeout),
            wanted: u32::try_from(wanted).unwrap_or(u32::MAX),
            objects: ids.to_vec(),
        };
        Ok(due!(self.call(wait, Undo::Nothing).await?, Waited)?.ready)
    }

    /// As [`Client::delete`].
    ///
    /// # Errors
    /// As [`Client::delete`].
    pub async fn delete(&self, id: ObjectId) -> Result<(), ClientError> {
        due!(self.call(Delete { object: id }, Undo::Nothing).await?, Done).map(drop)
    }

    /// As [`Client::contains`].
    ///
    /// # Errors
    /// As [`Client::contains`].
    pub async fn contains(&self, id: ObjectId) -> Result<bool, ClientError> {
        Ok(due!(self.call(Contains { object: id }, Undo::Nothing).await?, Contained)?.sealed)
    }

    /// As [`Client::request_lease`]. Dropping the future does not cancel the request; a lease that is granted then is returned.
    ///
    /// # Errors
    /// As [`Client::request_lease`].
    pub async fn request_lease(&self, spec: &LeaseSpec) -> Result<Lease, ClientError> {
        let shared = &self.client.shared;
        let known = shared.lock().class_of(spec);
        let class = match known {
            Some(class) => class,
            None => {
                let class = due!(self.call(definition_of(spec), Undo::Nothing).await?, ClassDefined)?.class;
                shared.lock().learn_class(spec, class);
                class
            }
        };
        let request = shared.lock().lease_request(spec, class);
        let lease = request.lease;
        let answer = self.call(request, Undo::Return(lease)).await;
        let granted = answer.and_then(|answer| due!(answer, Granted));
        if granted.is_err() {
            shared.lock().link.leases.remove(&lease);
        }
        let Granted { worker, allocation, address, .. } = granted?;
        Ok(Lease::new(shared.clone(), lease, worker, address, allocation))
    }

    /// As [`Lease::wait_done`], without a timeout.
    ///
    /// # Errors
    /// As [`Lease::wait_done`].
    pub async fn lease_done(&self, lease: &Lease) -> Result<LeaseEnd, ClientError> {
        let number = lease.number();
        self.until(|state| state.link.lease_end(number)).await
    }

    /// As [`Client::next_event`], without a timeout.
    ///
    /// # Errors
    /// As [`Client::next_event`].
    pub async fn next_event(&self) -> Result<Event, ClientError> {
        self.until(State::next_event).await
    }

    /// Waits for something that no request asks for.
    async fn until<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> Result<T, ClientError> {
        poll_fn(|context| {
            let mut state = self.client.shared.lock();
            let polled = state.look();
            if let Some(found) = ready(&mut state) {
                return Poll::Ready(Ok(found));
            }
            polled?;
            state.link.check()?;
            state.link.add_waker(context.waker());
            Poll::Pending
        })
        .await
    }

    /// Sends a request, when there is room, and waits for its answer.
    async fn call<M: Message>(&self, message: M, undo: Undo) -> Result<OwnedReply, ClientError> {
        let shared = &self.client.shared;
        let ticket = poll_fn(|context| {
            let mut state = shared.lock();
            state.look()?;
            let sent = state.link.submit(&message, undo)?;
            state.link.flush()?;
            match sent {
                Some(ticket) => Poll::Ready(Ok::<_, ClientError>(ticket)),
                None => {
                    state.link.add_waker(context.waker());
                    state.announce_for_driver()?;
                    Poll::Pending
                }
            }
        })
        .await?;
        let answer = Answer { shared: shared.clone(), ticket: Some(ticket) }.await?;
        refusal_of(M::NAME, *answer)
    }
}

/// Waits for the answer to a request.
struct Answer {
    shared: Arc<Shared>,
    ticket: Option<Ticket>,
}

impl Future for Answer {
    type Output = Result<Box<OwnedReply>, ClientError>;

    fn poll(mut self: PinMut<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(ticket) = self.ticket else {
            return Poll::Ready(Err(ClientError::Argument("a future was polled after it was done".to_owned())));
        };
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let polled = state.look();
        if let Some(answer) = state.link.slots.take(ticket) {
            self.ticket = None;
            return Poll::Ready(Ok(answer));
        }
        polled?;
        state.link.check()?;
        state.link.slots.set_waker(ticket, context.waker());
        Poll::Pending
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut state = self.shared.lock();
            let undo = state.link.slots.abandon(ticket);
            state.link.undo(undo);
            // A connection that is dead has given everything back already.
            let _ = state.link.flush();
        }
    }
}

impl AsFd for Driver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.lock().driver_sleeps = false;
    }
}

impl AsRawFd for Driver {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl Driver {
    /// Brings in what has come. `true`: wait until the descriptor is readable, then call again. `false`: call again soon, there is more.
    ///
    /// # Errors
    /// The connection is of no more use. Everybody who waits has been told.
    pub fn turn(&self) -> Result<bool, ClientError> {
        let mut state = self.shared.lock();
        state.driver_sleeps = false;
        state.link.awake();
        state.link.poll_all()?;
        state.link.check()?;
        let for_room = state.link.has_waiting();
        state.driver_sleeps = state.link.announce_sleep(for_room)?;
        Ok(state.driver_sleeps)
    }
}
