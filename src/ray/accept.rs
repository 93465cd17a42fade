//! Where connections come in: listening sockets on the control thread, which hands what it accepts to the cores.
//!
//! With TLS the control thread greets the caller, and passes the plain bytes on to a core through a pair of sockets: what is behind the
//! port is the same either way, and an encrypted call costs a hop more.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{watch, Semaphore};
use tokio::task::JoinHandle;

use super::core_rpc::hand_over;
use super::rpc::auth::Auth;
use super::rpc::router::Router;
use super::rpc::server::{bind, Server, ServerConfig, MAX_CONNECTIONS};
use super::rpc::tls::Tls;
use crate::bridge::{CoreHandle, Socket, ToCore};
use crate::near::{Near, Nears};
use crate::node::NodeError;
use crate::peer;

/// Pause after a connection that could not be accepted, for want of descriptors as a rule.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// Binds the node's address, and loopback beside it on the same port, as stock Ray serves both.
///
/// # Errors
/// [`NodeError`] where the node's address can't be bound.
pub async fn listen(ip: IpAddr, port: u16) -> Result<Vec<TcpListener>, NodeError> {
    let first = bind(SocketAddr::new(ip, port)).await.map_err(|e| NodeError::Ray(e.to_string()))?;
    let port = first.local_addr().map_err(NodeError::Io)?.port();
    let mut listeners = vec![first];
    if !ip.is_loopback() && !ip.is_unspecified() {
        // Another process may hold the port on loopback only; the node's own address is what is announced.
        match bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).await {
            Ok(loopback) => listeners.push(loopback),
            Err(error) => tracing::debug!(%error, "not serving on loopback"),
        }
    }
    Ok(listeners)
}

/// Serves a port of its own on the control thread.
pub fn serve(router: Router, auth: &Auth, tls: Option<Tls>, listener: TcpListener, mut stopped: watch::Receiver<bool>) {
    let config = ServerConfig { auth: auth.clone(), tls, stop_grace_ms: 200, ..ServerConfig::default() };
    let server = Server::new(router, config);
    let stop = async move {
        // The sender goes with the door, which is a stop as well.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    tokio::task::spawn_local(server.serve(listener, stop));
}

/// Hands the connections of a socket to the cores, in turn, until the task is aborted. Other users' are closed.
pub fn accept(listener: UnixListener, socket: Socket, cores: Vec<CoreHandle>, nears: Nears) -> JoinHandle<()> {
    tokio::task::spawn_local(async move {
        for turn in 0.. {
            let accepted = match listener.accept().await {
                Ok((stream, _)) => match peer::check(&stream) {
                    Ok(()) => {
                        let near = nears.of_peer(&stream);
                        stream.into_std().map(|stream| (stream, near))
                    }
                    Err(error) => {
                        tracing::warn!(%error, ?socket, "a connection was refused");
                        continue;
                    }
                },
                Err(error) => Err(error),
            };
            match accepted {
                Ok((stream, near)) => {
                    let stream = stream.into();
                    cores[turn % cores.len()].send(ToCore::Accepted { socket, stream, near });
                }
                Err(error) => {
                    tracing::warn!(%error, ?socket, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    })
}

/// Hands the connections of the node manager's port to the cores, in turn, until the node ends.
pub fn accept_rpc(listener: TcpListener, tls: Option<Tls>, cores: Vec<CoreHandle>, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::task::spawn_local(async move {
        for turn in 0.. {
            let accepted = tokio::select! {
                // The sender goes with the door, which is a stop as well.
                _ = stopped.wait_for(|stopped| *stopped) => return,
                accepted = listener.accept() => accepted.and_then(|(stream, peer)| match &tls {
                    None => hand_over(stream).map(Some),
                    Some(tls) => decrypt(stream, peer, tls.clone(), &places),
                }),
            };
            match accepted {
                Ok(Some(stream)) => {
                    let (socket, near) = (Socket::Rpc, Near::default());
                    cores[turn % cores.len()].send(ToCore::Accepted { socket, stream, near });
                }
                Ok(None) => tracing::warn!(MAX_CONNECTIONS, "too many encrypted connections: closing this one"),
                Err(error) => {
                    tracing::warn!(%error, "a gRPC connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    });
}

/// Greets a caller beside everything else, and carries its bytes until either side ends. Returns the core's end of the plain
/// connection; `None` where there are too many.
fn decrypt(stream: TcpStream, peer: SocketAddr, tls: Tls, places: &Arc<Semaphore>) -> io::Result<Option<OwnedFd>> {
    let Ok(place) = places.clone().try_acquire_owned() else {
        return Ok(None);
    };
    stream.set_nodelay(true)?;
    let (mut ours, cores) = UnixStream::pair()?;
    tokio::task::spawn_local(async move {
        // The core's end closes when this is dropped.
        match tls.accept(stream).await {
            Ok(mut caller) => {
                let carried = tokio::io::copy_bidirectional(&mut caller, &mut ours).await;
                if let Err(error) = carried {
                    tracing::debug!(%peer, %error, "an encrypted connection ended");
                }
            }
            Err(error) => tracing::warn!(%peer, %error, "a gRPC caller fails at TLS"),
        }
        drop(place);
    });
    Ok(Some(cores.into_std()?.into()))
}
