//! The greeting on a connection between nodes: who is there, what the connection is for, and that both know the cluster's token.
//!
//! Four messages of fixed length, all numbers little-endian. The caller says [`Hello`]; the other answers with [`Challenge`], which
//! proves that it knows the token, or refuses; the caller sends its own [proof](prove); and a [`Verdict`] ends it. Each proof is an
//! HMAC-SHA256, with the token as key, over who speaks, the hello, and the challenge's number: both sides bring 32 random bytes, so that
//! nothing said once is of use again. Where the cluster has no token the key is empty, and the greeting shows only that both speak
//! the same protocol. As with Ray's own connections, what follows is not encrypted.
//!
//! | message | bytes |
//! |---|---|
//! | hello | `RLUBULK1` for a lane, `RLUPEER1` for a [peer](crate::peers), version (u16), 6 zero, bytes of a chunk (u64), id of the caller (28), of the node called (28; a peer does not know it, and says all ones), 32 random, session (u64) |
//! | challenge | [`Refusal`] or 0 (u32), 4 zero, 32 random, proof (32) |
//! | proof | 32 |
//! | verdict | [`Refusal`] or 0 (u32), 4 zero |
//!
//! Between two nodes of one host a lane is a Unix socket ([`socket_name`]), and the verdict comes with descriptors of the segments of the node
//! called, in their order and only to be read: chunks are then [lent](super::frame::Kind::Lent) and not sent.

use ring::hmac;

use crate::ids::NodeId;

/// First bytes on a lane.
pub const MAGIC: [u8; 8] = *b"RLUBULK1";

/// First bytes of a peer.
pub const PEER_MAGIC: [u8; 8] = *b"RLUPEER1";

/// Version of the protocol. Nodes of different versions use Ray's own way.
pub const VERSION: u16 = 3;

/// Length of a [`Hello`].
pub const HELLO_BYTES: usize = 120;
/// Length of a [`Challenge`].
pub const CHALLENGE_BYTES: usize = 72;
/// Length of a proof.
pub const PROOF_BYTES: usize = 32;
/// Length of a [`Verdict`].
pub const VERDICT_BYTES: usize = 8;
/// Length of the random part of a message.
pub const NONCE_BYTES: usize = 32;

/// The name of the Unix socket at which a node takes lanes of nodes of its host: in Linux's abstract namespace, so that it is seen by those
/// who share the network namespace, leaves no file behind, and ends with the node.
pub fn socket_name(node: &NodeId) -> String {
    let hex: String = node.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("raylet-uring/bulk/{hex}")
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Bytes of objects ([`super::frame`]).
    Lane,
    /// What a native node asks another one, and is told by it ([`crate::peers`]).
    Peer,
}

impl Purpose {
    fn magic(self) -> [u8; 8] {
        match self {
            Self::Lane => MAGIC,
            Self::Peer => PEER_MAGIC,
        }
    }
}

/// Why a caller is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum Refusal {
    /// What it says is no hello.
    #[error("what was said is not the greeting of a bulk port")]
    NoHello = 1,
    /// Of another version.
    #[error("the nodes are of different versions")]
    Version = 2,
    /// It wants another node: an address was given to a new node meanwhile.
    #[error("the port is that of another node")]
    OtherNode = 3,
    /// The nodes cut objects into chunks of different sizes.
    #[error("the nodes have different settings for object_manager_default_chunk_size")]
    ChunkBytes = 4,
    /// It does not know the token.
    #[error("the tokens differ: give every node of the cluster the same (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or token_file of a node of its own)")]
    Token = 5,
    /// There are too many.
    #[error("the port has as many connections as it serves")]
    Full = 6,
    /// A later version refuses for a reason of its own.
    #[error("the other node refuses for a reason that this version does not know")]
    Other = 7,
    /// A node has called itself: its own address is in its list of peers.
    #[error("the address is that of the calling node itself")]
    Itself = 8,
    /// The node called has no peers.
    #[error("the node knows no peers: it is one of a Ray cluster")]
    NoPeers = 9,
}

impl Refusal {
    fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => None,
            1 => Some(Self::NoHello),
            2 => Some(Self::Version),
            3 => Some(Self::OtherNode),
            4 => Some(Self::ChunkBytes),
            5 => Some(Self::Token),
            6 => Some(Self::Full),
            8 => Some(Self::Itself),
            9 => Some(Self::NoPeers),
            _ => Some(Self::Other),
        }
    }
}

/// The caller's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the connection is for.
    pub purpose: Purpose,
    /// Bytes of a chunk, except an object's last.
    pub chunk_bytes: u64,
    /// Who calls.
    pub from: NodeId,
    /// Who is called; nil for a [`Purpose::Peer`], which takes whoever is there.
    pub to: NodeId,
    /// Random.
    pub nonce: [u8; NONCE_BYTES],
    /// Which lanes belong together: with another number, those before are of no use any more.
    pub session: u64,
}

impl Hello {
    /// As it travels.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[0..8].copy_from_slice(&self.purpose.magic());
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.chunk_bytes.to_le_bytes());
        bytes[24..52].copy_from_slice(&self.from.0);
        bytes[52..80].copy_from_slice(&self.to.0);
        bytes[80..112].copy_from_slice(&self.nonce);
        bytes[112..120].copy_from_slice(&self.session.to_le_bytes());
        bytes
    }

    /// What came. It says nothing of who may call: see [`check`](Self::check) and [`is_proven`].
    ///
    /// # Errors
    /// [`Refusal::NoHello`], [`Refusal::Version`].
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, Refusal> {
        let purposes = [Purpose::Lane, Purpose::Peer];
        let purpose = purposes.into_iter().find(|purpose| bytes[0..8] == purpose.magic()).ok_or(Refusal::NoHello)?;
        if bytes[8..10] != VERSION.to_le_bytes() || bytes[10..16].iter().any(|byte| *byte != 0) {
            return Err(Refusal::Version);
        }
        let (mut chunk, mut from, mut to, mut nonce, mut session) =
            ([0; 8], [0; 28], [0; 28], [0; NONCE_BYTES], [0; 8]);
        chunk.copy_from_slice(&bytes[16..24]);
        from.copy_from_slice(&bytes[24..52]);
        to.copy_from_slice(&bytes[52..80]);
        nonce.copy_from_slice(&bytes[80..112]);
        session.copy_from_slice(&bytes[112..120]);
        let (chunk_bytes, session) = (u64::from_le_bytes(chunk), u64::from_le_bytes(session));
        Ok(Self { purpose, chunk_bytes, from: NodeId(from), to: NodeId(to), nonce, session })
    }

    /// Whether the node called is this one, and cuts objects alike.
    ///
    /// # Errors
    /// [`Refusal::OtherNode`], [`Refusal::Itself`], [`Refusal::ChunkBytes`].
    pub fn check(&self, here: &NodeId, chunk_bytes: u64) -> Result<(), Refusal> {
        match self.purpose {
            Purpose::Lane if self.to != *here => return Err(Refusal::OtherNode),
            Purpose::Peer if self.from == *here => return Err(Refusal::Itself),
            Purpose::Lane | Purpose::Peer => {}
        }
        if self.chunk_bytes != chunk_bytes {
            return Err(Refusal::ChunkBytes);
        }
        Ok(())
    }
}

/// The answer to a [`Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Random.
    pub nonce: [u8; NONCE_BYTES],
    /// That the node called knows the token.
    pub proof: [u8; PROOF_BYTES],
}

impl Challenge {
    /// As it travels.
    pub fn encode(&self) -> [u8; CHALLENGE_BYTES] {
        let mut bytes = [0; CHALLENGE_BYTES];
        bytes[8..40].copy_from_slice(&self.nonce);
        bytes[40..72].copy_from_slice(&self.proof);
        bytes
    }

    /// A refusal instead.
    pub fn refuse(why: Refusal) -> [u8; CHALLENGE_BYTES] {
        let mut bytes = [0; CHALLENGE_BYTES];
        bytes[0..4].copy_from_slice(&(why as u32).to_le_bytes());
        bytes
    }

    /// What came.
    ///
    /// # Errors
    /// Why the caller is refused.
    pub fn decode(bytes: &[u8; CHALLENGE_BYTES]) -> Result<Self, Refusal> {
        refused(&bytes[0..4])?;
        let (mut nonce, mut proof) = ([0; NONCE_BYTES], [0; PROOF_BYTES]);
        nonce.copy_from_slice(&bytes[8..40]);
        proof.copy_from_slice(&bytes[40..72]);
        Ok(Self { nonce, proof })
    }
}

/// The last word of a greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict;

impl Verdict {
    /// As it travels.
    pub fn encode(verdict: Result<(), Refusal>) -> [u8; VERDICT_BYTES] {
        let mut bytes = [0; VERDICT_BYTES];
        if let Err(why) = verdict {
            bytes[0..4].copy_from_slice(&(why as u32).to_le_bytes());
        }
        bytes
    }

    /// What came.
    ///
    /// # Errors
    /// Why the caller is refused.
    pub fn decode(bytes: &[u8; VERDICT_BYTES]) -> Result<(), Refusal> {
        refused(&bytes[0..4])
    }
}

fn refused(bytes: &[u8]) -> Result<(), Refusal> {
    let mut number = [0; 4];
    number.copy_from_slice(bytes);
    Refusal::from_number(u32::from_le_bytes(number)).map_or(Ok(()), Err)
}

/// Who proves something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected.
    Caller,
    /// Who was called.
    Called,
}

fn said(side: Side, hello: &[u8; HELLO_BYTES], nonce: &[u8; NONCE_BYTES]) -> [u8; 8 + HELLO_BYTES + NONCE_BYTES] {
    let mut bytes = [0; 8 + HELLO_BYTES + NONCE_BYTES];
    bytes[..8].copy_from_slice(match side {
        Side::Caller => b"caller\0\0",
        Side::Called => b"called\0\0",
    });
    bytes[8..8 + HELLO_BYTES].copy_from_slice(hello);
    bytes[8 + HELLO_BYTES..].copy_from_slice(nonce);
    bytes
}

/// The proof that a side knows the token.
pub fn prove(token: &[u8], side: Side, hello: &[u8; HELLO_BYTES], nonce: &[u8; NONCE_BYTES]) -> [u8; PROOF_BYTES] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token);
    let mut proof = [0; PROOF_BYTES];
    proof.copy_from_slice(hmac::sign(&key, &said(side, hello, nonce)).as_ref());
    proof
}

/// Whether a side knows the token. Takes the same time for every wrong proof.
pub fn is_proven(
    token: &[u8],
    side: Side,
    hello: &[u8; HELLO_BYTES],
    nonce: &[u8; NONCE_BYTES],
    proof: &[u8; PROOF_BYTES],
) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token);
    hmac::verify(&key, &said(side, hello, nonce), proof).is_ok()
}
