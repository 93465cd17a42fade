//! Which node of a cluster serves a lease: what this node knows of the others, and the choice.
//!
//! [`Views`] keeps of every other node what it last told of its resources, less what this node has sent there since. A [`Want`] says what
//! a request asks for and by which strategy it chooses, a [`Here`] what this node can do for it. [`Views::pick`] decides as Ray 2.60's
//! raylets do (`ClusterResourceScheduler::GetBestSchedulableNode` and the policies behind it), so that nodes of both kinds agree
//! within a cluster.
//!
//! Views are stale by nature. What keeps a lease from going round for ever: a node that gets a lease which another node sent
//! (`prefer_here`) keeps it when no *other* node has room for it, and what was sent to a node is taken off its view until it tells anew.

mod pick;
mod views;
mod want;

pub use pick::{Choice, Here, Policy, Verdict};
pub use views::{View, Views, REFRESH_NS};
pub use want::{Affinity, Operator, Rule, Strategy, Want};

use rustc_hash::FxHashMap;

use crate::sched::Fixed;

/// Resources by name.
pub type Amounts = FxHashMap<Box<str>, Fixed>;

/// Reads amounts as they travel in protobuf; zeros and what is no amount (negative, not a number) are left out.
pub fn amounts<'a>(parts: impl IntoIterator<Item = (&'a String, &'a f64)>) -> Amounts {
    let amount = |(name, units): (&String, &f64)| {
        Some((name.as_str().into(), Fixed::from_f64(*units).filter(|units| *units > Fixed::ZERO)?))
    };
    parts.into_iter().filter_map(amount).collect()
}

/// True where `room` has all of `demand`.
fn holds(room: &Amounts, demand: &Amounts) -> bool {
    demand.iter().all(|(name, amount)| room.get(name).copied().unwrap_or_default() >= *amount)
}
