//! Why the node did not do something, and what to do about it.

use std::fmt;

use super::spillback::Spillback;

macro_rules! refusals {
    ($($number:literal $name:ident $what:literal / $action:literal)*) => {
        /// Why a request was refused. Numbers are the wire's and never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum RefusalCode {
            $(#[doc = $what] #[doc = ""] #[doc = $action] $name,)*
            /// A number of a newer version: the detail tells.
            Other(u16),
        }

        impl RefusalCode {
            /// All that this version knows.
            pub const ALL: &[RefusalCode] = &[$(Self::$name,)*];

            /// The number on the wire.
            pub fn to_wire(self) -> u16 {
                match self {
                    $(Self::$name => $number,)*
                    Self::Other(number) => number,
                }
            }

            /// From the number on the wire.
            pub fn from_wire(number: u16) -> Self {
                match number {
                    $($number => Self::$name,)*
                    other => Self::Other(other),
                }
            }

            /// What is wrong.
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$name => $what,)*
                    Self::Other(_) => "the node refused, for a reason that this version does not know",
                }
            }

            /// What to do.
            pub fn action(self) -> &'static str {
                match self {
                    $(Self::$name => $action,)*
                    Self::Other(_) => "read the detail, and use a client of the node's version",
                }
            }
        }
    };
}

refusals! {
    1 NotHello "the first message of a connection has to be a hello" / "connect with a client of this protocol"
    2 Version "client and node have no version of the protocol in common" / "use a client of the node's version"
    3 UnknownType "the node does not know this type of message" / "use a client of the node's version, or look at the capability bits first"
    4 Malformed "the message is not what its type says" / "this is a fault of the client: report it"
    5 LimitReached "a limit of this connection is reached" / "wait for answers, or give something back, then try again"
    6 TooLarge "the message or what it asks for is larger than allowed" / "ask for less, or in several parts"
    7 Unsupported "this node does not offer that" / "look at the capability bits first"
    8 RingBroken "the client's ring is not in order, and is no longer read" / "connect again; somebody wrote into the ring who should not"
    9 NoRing "there is no ring to do that on, or there is one already" / "open a ring once, and before use"
    16 StoreFull "the object store has no room and nothing left to evict" / "release and delete objects, wait and try again, or give the node more memory"
    17 QueueFull "too many requests of this kind wait" / "wait and try again"
    18 UnknownObject "there is no such object here" / "check the id, or wait for it with a timeout"
    19 ObjectExists "an object of this id exists" / "use another id; an object never changes"
    20 NotSealed "the object is not sealed" / "seal it first"
    21 AlreadySealed "the object is sealed already" / "nothing: it can be read"
    22 NotCreator "only the client that created an object may seal or abort it" / "let its creator do that"
    23 NotHeld "the client does not hold that" / "nothing: it is given back already"
    24 UnknownCredit "the client has no such run of memory" / "ask for a new run"
    25 BadPublish "the object does not lie where the next object of its run has to be" / "write objects into a run one after the other"
    26 UnknownOwner "no client of this node has that name" / "name a client that lives, or pin for yourself"
    32 UnknownClass "no class of leases has this number" / "define it first, on this connection"
    33 UnknownLease "the client has no such lease" / "nothing: it has ended already"
    34 DuplicateLease "the client has a lease of this number" / "use another number"
    35 DeadlinePassed "the time that the request was to wait is over" / "try again with more time"
    36 Cancelled "the request was cancelled" / "nothing: somebody wanted it so"
    37 Draining "the node takes no new leases" / "ask another node, or end the draining"
    38 Infeasible "the node does not have that much of a resource" / "ask for less, or give the node more"
    39 WorkerStart "no worker could be started" / "look at the detail and the worker's log"
    40 WorkerDied "the worker died" / "look at its log, and ask for a new lease"
    41 Unused "the lease was not used in time and is taken back" / "use it sooner, keep it alive, or ask for a longer time"
    42 NotWorker "only a registered worker may do that" / "register first"
    43 UnknownStart "the node did not start a worker with this token" / "pass on RAYLET_START_TOKEN as it is, or 0"
    44 Spillback "another node can serve the lease, or sooner than this one" / "ask the node that the detail names"
    48 Stopping "the node ends" / "connect to another node, or later"
    49 Internal "the node failed at it" / "look at the node's log, and report it"
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}

/// A refusal with its detail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}{detail}; to do: {}", if .detail.is_empty() { "" } else { ": " }, .code.action())]
pub struct Refusal {
    /// Why.
    pub code: RefusalCode,
    /// What was expected and what came.
    pub detail: String,
}

impl Refusal {
    /// A refusal with a detail, which may be empty.
    pub fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// Which node to ask instead, where that is why.
    pub fn spillback(&self) -> Option<Spillback> {
        (self.code == RefusalCode::Spillback).then(|| Spillback::from_detail(&self.detail)).flatten()
    }

    /// From the wire.
    pub fn from_wire(code: u16, detail: &str) -> Self {
        Self { code: RefusalCode::from_wire(code), detail: detail.to_owned() }
    }
}
