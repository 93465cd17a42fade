//! Nodes that connected to here: they are told what is here, and what is free.

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{NodeId, ObjectId};
use raylet_transport::ids as wire;
use raylet_transport::peers::{PeerMessage, Resource};
use rustc_hash::FxHashSet;
use slab::Slab;
use tokio::net::TcpStream;

use super::link::{self, LinkEnd, LinkUse, Outbox};
use super::Peers;
use crate::bridge::core_reports;
use crate::ray::transfer::greet::PeerCaller;

/// How often the node looks whether what it has to tell of its resources has changed, while anybody is told.
const VIEW_EVERY: Duration = Duration::from_millis(250);

/// Callers are told of the resources at least so often.
const VIEW_AT_LATEST: Duration = Duration::from_secs(2);

/// A node that is connected to here.
pub struct Caller {
    node: NodeId,
    /// `None` once it does not read: its task ends, and with it the connection.
    outbox: Option<Outbox>,
    /// Objects that it wants to hear of.
    pub(super) wants: FxHashSet<ObjectId>,
    /// It was told of the resources.
    has_view: bool,
}

/// All of them.
pub struct Callers {
    callers: Slab<Caller>,
    served: Arc<AtomicUsize>,
}

impl Callers {
    /// Nobody yet. `served` is read by the thread that lets them in.
    pub fn new(served: Arc<AtomicUsize>) -> Self {
        Self { callers: Slab::new(), served }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.callers.len()
    }

    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Caller> {
        self.callers.get_mut(number)
    }

    /// Tells one of them something.
    pub(super) fn tell(&mut self, number: usize, message: PeerMessage) {
        if let Some(caller) = self.callers.get_mut(number) {
            if caller.outbox.as_ref().is_some_and(|outbox| outbox.send(message).is_err()) {
                caller.outbox = None;
            }
        }
    }

    fn count(&self) {
        self.served.store(self.callers.len(), Ordering::Relaxed);
    }
}

impl Peers {
    /// Serves whoever is let in, until the node ends.
    pub(super) async fn serve_callers(self: Rc<Self>, let_in: flume::Receiver<PeerCaller>) {
        while let Ok(PeerCaller { node, address, stream }) = let_in.recv_async().await {
            match TcpStream::from_std(stream) {
                Ok(stream) => {
                    tracing::info!(%address, %node, "a peer has connected to here");
                    tokio::task::spawn_local(self.clone().serve(node, stream));
                }
                Err(error) => tracing::warn!(%address, %error, "a peer was lost after its greeting"),
            }
        }
    }

    async fn serve(self: Rc<Self>, node: NodeId, stream: TcpStream) {
        let (outbox, outgoing) = Outbox::new();
        let number = {
            let mut callers = self.callers.borrow_mut();
            let (wants, outbox) = (FxHashSet::default(), Some(outbox));
            let number = callers.callers.insert(Caller { node, outbox, wants, has_view: false });
            callers.count();
            let socket = self.native.socket().display().to_string();
            callers.tell(number, PeerMessage::Welcome { node: wire::NodeId(self.node.0), socket });
            number
        };
        let used = LinkUse::default();
        let end = link::run(stream, &used, outgoing, |message| {
            match message {
                PeerMessage::Want { objects } => self.caller_wants(number, objects),
                PeerMessage::Unwant { objects } => self.caller_wants_no_more(number, &objects),
                PeerMessage::Alive => {}
                PeerMessage::Welcome { .. }
                | PeerMessage::Has { .. }
                | PeerMessage::Later { .. }
                | PeerMessage::View { .. } => return Err(LinkEnd::OutOfTurn),
            }
            Ok(())
        })
        .await;
        let gone = {
            let mut callers = self.callers.borrow_mut();
            let gone = callers.callers.remove(number);
            callers.count();
            gone
        };
        tracing::info!(node = %gone.node, why = %end, "a peer is no longer connected to here");
        self.caller_gone(number, gone.wants);
    }

    /// Tells callers what this node has, whenever that changes.
    pub(super) async fn tell_views(self: Rc<Self>) {
        let mut told: (Vec<Resource>, bool) = Default::default();
        let mut told_at = Instant::now();
        loop {
            tokio::time::sleep(VIEW_EVERY).await;
            self.views.borrow_mut().refresh(self.now());
            if self.callers.borrow().len() == 0 {
                continue;
            }
            let reports = core_reports(&self.cores, false).await;
            let view = (self.resources(&reports), self.native.is_draining());
            let is_news = view != told || told_at.elapsed() >= VIEW_AT_LATEST;
            if is_news {
                told_at = Instant::now();
            }
            let mut callers = self.callers.borrow_mut();
            let due: Vec<usize> =
                callers.callers.iter().filter(|(_, c)| is_news || !c.has_view).map(|(number, _)| number).collect();
            for number in due {
                let (resources, draining) = view.clone();
                callers.tell(number, PeerMessage::View { resources, draining });
                callers.callers[number].has_view = true;
            }
            told = view;
        }
    }
}
