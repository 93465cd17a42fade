//! The nodes of the list: connected to, lost, and connected to again.

use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_shard::cluster::{Amounts, View};
use raylet_shard::ids::{NodeId, ObjectId};
use raylet_shard::sched::Fixed;
use raylet_transport::bulk::hello::Refusal;
use raylet_transport::peers::{PeerMessage, Resource, OBJECTS_MAX};
use tokio::net::TcpStream;

use super::link::{self, LinkEnd, LinkUse, Outbox};
use super::{wire, Peers};
use crate::observe::status::PeerStatus;
use crate::ray::transfer::greet::GreetError;
use crate::ray::transfer::ToTransfer;

/// Pauses before a node is called again that could not be reached or was lost: doubled from the one to the other.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// How long a connection has to last for the pauses to begin with the shortest again.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// A node of the list.
pub struct Dialed {
    address: String,
    state: State,
    /// The node that was last there.
    last: Option<NodeId>,
    used: Rc<LinkUse>,
    /// How often it was connected to.
    connects: u64,
    pub(super) received_objects: u64,
    pub(super) received_bytes: u64,
}

enum State {
    /// Not connected; why not, once that is known.
    Down(String),
    /// The list names this node itself.
    Itself,
    /// Connected.
    Up(Up),
}

struct Up {
    node: NodeId,
    since: Instant,
    socket: String,
    outbox: Outbox,
}

impl Dialed {
    /// A node that is to be connected to.
    pub fn new(address: String) -> Self {
        let (used, state) = (Rc::default(), State::Down("not reached yet".to_owned()));
        Self { address, state, last: None, used, connects: 0, received_objects: 0, received_bytes: 0 }
    }

    fn up(&self) -> Option<&Up> {
        match &self.state {
            State::Up(up) => Some(up),
            State::Down(_) | State::Itself => None,
        }
    }

    /// The node that is there now.
    pub(super) fn node(&self) -> Option<NodeId> {
        self.up().map(|up| up.node)
    }
}

impl Peers {
    /// Connects to a node of the list, and again whenever it is lost.
    pub(super) async fn dial(self: Rc<Self>, index: usize) {
        let address = self.dialed.borrow()[index].address.clone();
        let mut pause = RETRY_MIN;
        let mut last_said = String::new();
        loop {
            let since = Instant::now();
            let end = match self.greeting.call_peer(&address).await {
                Ok(stream) => self.talk(index, stream).await,
                Err(GreetError::Refused(Refusal::Itself)) => {
                    tracing::info!(address, "the list of peers names this node too, which is left out");
                    self.dialed.borrow_mut()[index].state = State::Itself;
                    return;
                }
                Err(error) => LinkEnd::Greeting(error),
            };
            let why = end.to_string();
            match why == last_said {
                true => tracing::debug!(address, why, "a peer is not connected"),
                false => tracing::warn!(address, why, "a peer is not connected; it is called until it is"),
            }
            self.lost(index, &why);
            last_said = why;
            if since.elapsed() >= STABLE_AFTER {
                pause = RETRY_MIN;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn talk(self: &Rc<Self>, index: usize, stream: TcpStream) -> LinkEnd {
        let (outbox, outgoing) = Outbox::new();
        let used = self.dialed.borrow()[index].used.clone();
        let mut outbox = Some(outbox);
        link::run(stream, &used, outgoing, |message| match message {
            PeerMessage::Welcome { node, socket } => {
                let outbox = outbox.take().ok_or(LinkEnd::OutOfTurn)?;
                self.connected(index, NodeId(node.0), socket, outbox)
            }
            message => self.told(index, message),
        })
        .await
    }

    /// A node of the list says who it is.
    fn connected(self: &Rc<Self>, index: usize, node: NodeId, socket: String, outbox: Outbox) -> Result<(), LinkEnd> {
        let (address, last) = {
            let mut dialed = self.dialed.borrow_mut();
            if let Some(twice) = dialed.iter().find(|other| other.node() == Some(node)) {
                return Err(LinkEnd::Twice(twice.address.clone()));
            }
            let peer = &mut dialed[index];
            peer.state = State::Up(Up { node, since: Instant::now(), socket, outbox });
            peer.connects += 1;
            (peer.address.clone(), peer.last.replace(node))
        };
        tracing::info!(address, %node, "a peer is connected");
        if let Some(gone) = last.filter(|last| *last != node) {
            self.link.send(ToTransfer::NodeGone { node: gone });
        }
        // It has no port for Ray's calls.
        let bulk_address = Some(address);
        self.link.send(ToTransfer::Node { node, address: String::new(), bulk_address });
        let wanted = self.fetching.borrow().wanted();
        self.send_to(index, &wanted, |objects| PeerMessage::Want { objects });
        Ok(())
    }

    fn told(self: &Rc<Self>, index: usize, message: PeerMessage) -> Result<(), LinkEnd> {
        let node = self.dialed.borrow()[index].node().ok_or(LinkEnd::OutOfTurn)?;
        match message {
            PeerMessage::Has { objects } => objects.iter().for_each(|held| self.held_by(node, held)),
            PeerMessage::Later { objects } => {
                tokio::task::spawn_local(self.clone().want_again(index, objects));
            }
            PeerMessage::View { resources, draining } => {
                self.views.borrow_mut().heard(node, view(&resources, draining));
            }
            PeerMessage::Alive => {}
            PeerMessage::Welcome { .. } | PeerMessage::Want { .. } | PeerMessage::Unwant { .. } => {
                return Err(LinkEnd::OutOfTurn)
            }
        }
        Ok(())
    }

    /// A node of the list is not connected any more, or could not be reached.
    fn lost(self: &Rc<Self>, index: usize, why: &str) {
        let before = std::mem::replace(&mut self.dialed.borrow_mut()[index].state, State::Down(why.to_owned()));
        if let State::Up(up) = before {
            self.views.borrow_mut().died(&up.node);
            self.holder_lost(up.node);
        }
    }

    /// Says something of objects to all nodes that are connected.
    pub(super) fn send_to_all(
        &self,
        objects: &[ObjectId],
        say: impl Fn(Vec<raylet_transport::ids::ObjectId>) -> PeerMessage,
    ) {
        let count = self.dialed.borrow().len();
        (0..count).for_each(|index| self.send_to(index, objects, &say));
    }

    /// Says something of objects to a node, where that is connected.
    pub(super) fn send_to(
        &self,
        index: usize,
        objects: &[ObjectId],
        say: impl Fn(Vec<raylet_transport::ids::ObjectId>) -> PeerMessage,
    ) {
        let mut dialed = self.dialed.borrow_mut();
        let State::Up(up) = &dialed[index].state else {
            return;
        };
        let send = |objects: &[ObjectId]| up.outbox.send(say(objects.iter().copied().map(wire).collect()));
        if objects.chunks(OBJECTS_MAX).try_for_each(send).is_err() {
            // Its task ends, and with it the connection; then it is called again.
            dialed[index].drop_outbox();
        }
    }

    /// Counts an object that came from a node.
    pub(super) fn count_received(&self, node: &NodeId, size_bytes: u64) {
        let mut dialed = self.dialed.borrow_mut();
        if let Some(peer) = dialed.iter_mut().find(|peer| peer.last == Some(*node)) {
            peer.received_objects += 1;
            peer.received_bytes += size_bytes;
        }
    }

    /// Address and native socket of a node that is connected.
    pub(super) fn place_of(&self, node: &NodeId) -> Option<(String, String)> {
        let dialed = self.dialed.borrow();
        let peer = dialed.iter().find(|peer| peer.node() == Some(*node))?;
        Some((peer.address.clone(), peer.up()?.socket.clone()))
    }

    pub(super) fn dialed_status(&self) -> Vec<PeerStatus> {
        let views = self.views.borrow();
        let status = |peer: &Dialed| {
            let (state, why) = match &peer.state {
                State::Up(_) => ("connected", String::new()),
                State::Itself => ("itself", String::new()),
                State::Down(why) => ("down", why.clone()),
            };
            let view = peer.node().and_then(|node| views.get(&node));
            let units = |amounts: &Amounts, name: &str| amounts.get(name).copied().unwrap_or_default().to_f64();
            PeerStatus {
                address: peer.address.clone(),
                state: state.to_owned(),
                why,
                node_id: peer.node().map_or_else(String::new, |node| node.to_string()),
                socket: peer.up().map_or_else(String::new, |up| up.socket.clone()),
                connected_s: peer.up().map_or(0.0, |up| up.since.elapsed().as_secs_f64()),
                connects: peer.connects,
                draining: view.is_some_and(|view| view.draining),
                received_objects: peer.received_objects,
                received_bytes: peer.received_bytes,
                link_received_bytes: peer.used.received_bytes.get(),
                link_sent_bytes: peer.used.sent_bytes.get(),
                resources: view
                    .into_iter()
                    .flat_map(|view| view.total.keys().map(move |name| (name, view)))
                    .map(|(name, view)| {
                        let (total, available) = (units(&view.total, name), units(&view.available, name));
                        (name.to_string(), crate::observe::status::ResourceStatus { total, available })
                    })
                    .collect(),
            }
        };
        self.dialed.borrow().iter().map(status).collect()
    }
}

impl Dialed {
    fn drop_outbox(&mut self) {
        if let State::Up(up) = &mut self.state {
            // The other end of this one is dropped here, so nothing more is kept.
            up.outbox = Outbox::new().0;
        }
    }
}

fn view(resources: &[Resource], draining: bool) -> View {
    // What is beyond all bounds is no amount.
    let amount = |steps: u64| Fixed(i64::try_from(steps).unwrap_or(0));
    let of = |pick: fn(&Resource) -> u64| {
        let parts = resources.iter().map(|part| (part.name.as_str().into(), amount(pick(part))));
        parts.filter(|(_, amount)| *amount > Fixed::ZERO).collect()
    };
    View { total: of(|part| part.total), available: of(|part| part.free), draining, ..View::default() }
}
