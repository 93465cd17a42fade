//! What goes into the pull manager and what comes out of it.

use crate::ids::{NodeId, NowNs, ObjectId};

/// Names a wish: who wants objects. The caller chooses it.
pub type WishId = u64;

/// What objects are wanted for. Earlier ones go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Somebody is blocked in a get: each object counts by itself, and is fetched whatever room there is.
    Get = 0,
    /// Somebody waits for some of the objects: each counts by itself.
    Wait = 1,
    /// Arguments of a queued lease: of use only together.
    Arguments = 2,
}

impl Kind {
    /// Number of kinds, for tables indexed by kind.
    pub const COUNT: usize = 3;
}

/// Settings.
#[derive(Clone, Copy, Debug)]
pub struct PullConfig {
    /// A node that was asked and sends nothing for so long is taken to have failed (Ray's `object_manager_pull_timeout_ms`).
    pub timeout_ns: NowNs,
    /// How long a node that probably has an object is heard before the object's owner is asked.
    pub likely_ns: NowNs,
    /// Pause before the first repetition, where every source has failed; it doubles...
    pub retry_min_ns: NowNs,
    /// ...up to this.
    pub retry_max_ns: NowNs,
    /// Objects wanted at a time. Wishes beyond it are refused.
    pub objects_max: usize,
}

/// An object that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The object.
    pub object: ObjectId,
    /// Whether it is here already.
    pub here: bool,
    /// A node that probably has it. For a get it is asked before the owner, who then need not be asked at all.
    pub likely: Option<NodeId>,
}

impl Target {
    /// An object that is not here, and of which nothing is known.
    pub fn missing(object: ObjectId) -> Self {
        Self { object, here: false, likely: None }
    }
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullEvent {
    /// Objects are wanted. A wish of the same name is replaced.
    Want {
        /// Its name.
        wish: WishId,
        /// What for.
        kind: Kind,
        /// The objects.
        objects: Vec<Target>,
    },
    /// A wish has ended, fulfilled or not.
    Unwant {
        /// Its name.
        wish: WishId,
    },
    /// What an object's owner says of it.
    Located {
        /// The object.
        object: ObjectId,
        /// Its size in bytes; 0: not known.
        size_bytes: u64,
        /// Other nodes that have a copy, or have it on their disk.
        nodes: Vec<NodeId>,
        /// It is being made (again); nobody has it before that is done.
        pending: bool,
    },
    /// The object is sealed here.
    Here {
        /// The object.
        object: ObjectId,
        /// It was received, and the node holds a reference until [`PullEffect::Release`].
        held: bool,
    },
    /// The object is here no longer.
    Gone {
        /// The object.
        object: ObjectId,
    },
    /// Bytes of an object came from a node.
    Progress {
        /// The object.
        object: ObjectId,
        /// Who sent them.
        from: NodeId,
    },
    /// A node can't be asked, or won't send.
    Failed {
        /// The object.
        object: ObjectId,
        /// Who was asked.
        from: NodeId,
    },
    /// A node that was asked has named another one, which will send the object while it is still being sent it.
    Elsewhere {
        /// The object.
        object: ObjectId,
        /// Who was asked.
        from: NodeId,
        /// Whom to ask.
        to: NodeId,
    },
    /// The store had no room for the object.
    NoRoom {
        /// The object.
        object: ObjectId,
    },
    /// A node is dead.
    NodeGone {
        /// The node.
        node: NodeId,
    },
    /// What the store has room for.
    Room {
        /// Bytes that neither somebody uses nor an owner has pinned.
        free_bytes: u64,
        /// Clients of this node wait for room for objects of their own.
        starving: bool,
    },
    /// Time passes.
    Tick,
}

/// What the pull manager wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullEffect {
    /// Ask a node for an object, and take what it sends.
    Ask {
        /// The object.
        object: ObjectId,
        /// Whom to ask.
        from: NodeId,
    },
    /// Ask a node for an object that it probably has. If it has not, it is to say so at once: [`PullEvent::Failed`].
    AskIfThere {
        /// The object.
        object: ObjectId,
        /// Whom to ask.
        from: NodeId,
    },
    /// Take no more of an object; what came of it is given up.
    Stop {
        /// The object.
        object: ObjectId,
    },
    /// Give back the reference on an object that was received.
    Release {
        /// The object.
        object: ObjectId,
    },
    /// An object is wanted, and not known to be anywhere: hear from its owner where it is.
    Locate {
        /// The object.
        object: ObjectId,
    },
    /// Nobody wants the object any more: its owner need not tell.
    Forget {
        /// The object.
        object: ObjectId,
    },
}
