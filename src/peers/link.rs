//! One connection between two nodes: messages in and out, and signs of life.

use std::cell::Cell;
use std::time::Duration;

use raylet_transport::peers::{Incoming, PeerFrameError, PeerMessage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::TcpStream;

use crate::ray::transfer::greet::GreetError;

/// Something is said at least so often.
const ALIVE_EVERY: Duration = Duration::from_secs(2);

/// A side of which nothing was heard for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Messages that wait for a side that does not read. It is disconnected then, and begins anew.
pub const UNSENT_MAX: usize = 16_384;

/// Bytes that are put together for one write.
const WRITE_BYTES: usize = 256 << 10;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    /// It never began.
    #[error(transparent)]
    Greeting(#[from] GreetError),
    /// It broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] std::io::Error),
    /// The other side closed it.
    #[error("the other node closed the connection: it ended")]
    Closed,
    /// The other side says nothing.
    #[error("nothing was heard for {SILENCE_MAX:?}")]
    Silent,
    /// The other side says what is no message.
    #[error("{0}")]
    Frame(#[from] PeerFrameError),
    /// The other side says what it has not to say.
    #[error("the other node said what its side does not say: it is of another version")]
    OutOfTurn,
    /// The other side does not read.
    #[error("{UNSENT_MAX} messages wait that the other node does not read")]
    Unread,
    /// Two names of one node are in the list.
    #[error("the node is connected as {0} already: name it once")]
    Twice(String),
}

/// What goes out on a connection.
#[derive(Clone, Debug)]
pub struct Outbox {
    queue: flume::Sender<PeerMessage>,
}

impl Outbox {
    /// An outbox, and its other end, for [`run`].
    pub fn new() -> (Self, flume::Receiver<PeerMessage>) {
        let (queue, messages) = flume::bounded(UNSENT_MAX);
        (Self { queue }, messages)
    }

    /// Sends, in order.
    ///
    /// # Errors
    /// [`LinkEnd::Unread`]; whoever has the outbox drops it.
    pub fn send(&self, message: PeerMessage) -> Result<(), LinkEnd> {
        match self.queue.try_send(message) {
            // A connection that has ended says so itself.
            Ok(()) | Err(flume::TrySendError::Disconnected(_)) => Ok(()),
            Err(flume::TrySendError::Full(_)) => Err(LinkEnd::Unread),
        }
    }
}

/// Bytes of a connection.
#[derive(Debug, Default)]
pub struct LinkUse {
    /// Read.
    pub received_bytes: Cell<u64>,
    /// Written.
    pub sent_bytes: Cell<u64>,
}

/// Carries messages until the connection ends; why it did. It ends too when the outbox is dropped.
pub async fn run(
    stream: TcpStream,
    used: &LinkUse,
    outgoing: flume::Receiver<PeerMessage>,
    on_message: impl FnMut(PeerMessage) -> Result<(), LinkEnd>,
) -> LinkEnd {
    let (reader, writer) = stream.into_split();
    let ended = tokio::select! {
        ended = read(reader, used, on_message) => ended,
        ended = write(writer, used, outgoing) => ended,
    };
    match ended {
        Ok(()) => LinkEnd::Unread,
        Err(end) => end,
    }
}

async fn read(
    mut reader: OwnedReadHalf,
    used: &LinkUse,
    mut on_message: impl FnMut(PeerMessage) -> Result<(), LinkEnd>,
) -> Result<(), LinkEnd> {
    let mut incoming = Incoming::default();
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let read = tokio::time::timeout(SILENCE_MAX, reader.read(&mut bytes)).await.map_err(|_| LinkEnd::Silent)??;
        if read == 0 {
            return Err(LinkEnd::Closed);
        }
        used.received_bytes.set(used.received_bytes.get() + read as u64);
        incoming.feed(&bytes[..read]);
        while let Some(message) = incoming.next_message()? {
            on_message(message)?;
        }
    }
}

/// Ends without an error where the outbox was dropped.
async fn write(
    mut writer: OwnedWriteHalf,
    used: &LinkUse,
    outgoing: flume::Receiver<PeerMessage>,
) -> Result<(), LinkEnd> {
    let mut bytes = Vec::new();
    loop {
        let first = match tokio::time::timeout(ALIVE_EVERY, outgoing.recv_async()).await {
            Ok(Ok(message)) => message,
            Ok(Err(_)) => return Ok(()),
            Err(_) => PeerMessage::Alive,
        };
        bytes.clear();
        first.encode(&mut bytes)?;
        while bytes.len() < WRITE_BYTES {
            match outgoing.try_recv() {
                Ok(message) => message.encode(&mut bytes)?,
                Err(_) => break,
            }
        }
        tokio::time::timeout(SILENCE_MAX, writer.write_all(&bytes)).await.map_err(|_| LinkEnd::Unread)??;
        used.sent_bytes.set(used.sent_bytes.get() + bytes.len() as u64);
    }
}
