//! Which node to ask for a lease instead.

use std::fmt;
use std::path::PathBuf;

use crate::ids::NodeId;

/// The node that a request for a lease is sent on to: the detail of a refusal with
/// [`RefusalCode::Spillback`](super::RefusalCode::Spillback), as `node=HEX address=HOST:PORT socket=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spillback {
    /// Its id.
    pub node: NodeId,
    /// Where its peers reach it, `host:port`: the host is that of its machine.
    pub address: String,
    /// The socket of its native door, on its machine.
    pub socket: PathBuf,
}

impl fmt::Display for Spillback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node={} address={} socket={}", self.node, self.address, self.socket.display())
    }
}

impl Spillback {
    /// From a refusal's detail; `None` where that says something else.
    pub fn from_detail(detail: &str) -> Option<Self> {
        let (node, rest) = detail.strip_prefix("node=")?.split_once(" address=")?;
        let (address, socket) = rest.split_once(" socket=")?;
        let node = node_of(node)?;
        Some(Self { node, address: address.to_owned(), socket: PathBuf::from(socket) })
    }
}

fn node_of(text: &str) -> Option<NodeId> {
    let mut id = [0; NodeId::LEN];
    if text.len() != 2 * NodeId::LEN || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(NodeId(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Refusal, RefusalCode};

    #[test]
    fn a_refusal_leads_to_the_node_that_it_names_and_no_other_one_does() {
        let there = Spillback {
            node: NodeId([0xa5; 28]),
            address: "[fd00::2]:7480".to_owned(),
            socket: PathBuf::from("/run/a b/door socket=x"),
        };
        let refusal = Refusal::new(RefusalCode::Spillback, there.to_string());
        assert_eq!(refusal.spillback(), Some(there.clone()));
        assert_eq!(Refusal::new(RefusalCode::QueueFull, there.to_string()).spillback(), None);
        for bad in ["", "lease 5", "node=a5 address=x socket=y", &there.to_string().replace("a5", "g5")] {
            assert_eq!(Refusal::new(RefusalCode::Spillback, bad).spillback(), None, "{bad:?}");
        }
    }
}
