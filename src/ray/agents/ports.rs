//! The ports of the agents: chosen before the agents run, and announced by them in files of the session directory.
//!
//! A stock raylet starts its agents with port 0, waits until each has imported its libraries, bound its ports and
//! written them to files, and only then registers its node: a second or more of every `ray.init()`. Here the node picks
//! the ports and hands them to the agents, so that it can register at once.
//!
//! A port picked is kept from others by a socket that is bound with SO_REUSEADDR and never listens: Linux gives such a
//! port to nobody who lets it choose, but does let a listener that sets SO_REUSEADDR itself have it, which all servers
//! of the agents do (gRPC, `wsgiref`, aiohttp).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use raylet_shard::ids::NodeId;
use rustix::net::{self, sockopt, AddressFamily, SocketFlags, SocketType};

/// What an agent announces for a service that it does not run.
pub const NOT_SERVED: i32 = -1;
/// The most bytes a port file may have: a sign and five digits, and a newline from a person's editor.
const MAX_PORT_FILE_BYTES: u64 = 16;

/// A service of an agent, and so a port. The name is that of its file (Ray 2.60 `ray._raylet`, the `*_PORT_NAME`s).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AgentPort {
    /// gRPC of the dashboard agent, to which processes export metrics and events.
    Metrics,
    /// Prometheus endpoint of the dashboard agent.
    MetricsExport,
    /// HTTP of the dashboard agent.
    DashboardListen,
    /// HTTP of the runtime-env agent.
    RuntimeEnv,
}

impl AgentPort {
    /// All of them.
    pub const ALL: [AgentPort; 4] =
        [AgentPort::Metrics, AgentPort::MetricsExport, AgentPort::DashboardListen, AgentPort::RuntimeEnv];

    /// Name of the port in file names.
    pub fn name(self) -> &'static str {
        match self {
            AgentPort::Metrics => "metrics_agent_port",
            AgentPort::MetricsExport => "metrics_export_port",
            AgentPort::DashboardListen => "dashboard_agent_listen_port",
            AgentPort::RuntimeEnv => "runtime_env_agent_port",
        }
    }

    /// The argument with which an agent is told the port.
    pub fn argument(self) -> &'static str {
        match self {
            AgentPort::Metrics => "--grpc-port=",
            AgentPort::MetricsExport => "--metrics-export-port=",
            AgentPort::DashboardListen => "--listen-port=",
            AgentPort::RuntimeEnv => "--runtime-env-agent-port=",
        }
    }

    /// The file in which the agent of a node announces the port.
    pub fn file(self, session_dir: &Path, node_id: &NodeId) -> PathBuf {
        session_dir.join(format!("{}_{node_id}", self.name()))
    }
}

/// Why a port can't be read or picked.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The file can't be read.
    #[error("can't read the port file {path:?}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not hold a port.
    #[error("the port file {path:?} holds {content:?}: expected a port, or -1 for a service that isn't run")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it holds.
        content: String,
    },
    /// An agent's command names no valid port.
    #[error("the agent's argument {argument:?} holds no port: expected a number from 0 to 65535")]
    Argument {
        /// The argument.
        argument: String,
    },
    /// No port can be picked.
    #[error("can't pick a port for {port}: {source}")]
    Pick {
        /// Which one.
        port: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The port that an agent has announced; `None` where it hasn't yet, [`NOT_SERVED`] where it won't serve.
///
/// # Errors
/// A file that can't be read, or that holds something else. An empty file counts as not announced: it is being written.
pub fn announced(port: AgentPort, session_dir: &Path, node_id: &NodeId) -> Result<Option<i32>, PortError> {
    let path = port.file(session_dir, node_id);
    let read = || -> io::Result<String> {
        if fs::metadata(&path)?.len() > MAX_PORT_FILE_BYTES {
            return Ok(format!("more than {MAX_PORT_FILE_BYTES} bytes"));
        }
        fs::read_to_string(&path)
    };
    let content = match read() {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PortError::Read { path, source }),
    };
    match content.trim() {
        "" => Ok(None),
        text => match text.parse::<i32>() {
            Ok(port @ (NOT_SERVED..=0xffff)) if port != 0 => Ok(Some(port)),
            _ => Err(PortError::Content { path, content }),
        },
    }
}

/// A port that is kept for an agent until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    port: u16,
    _socket: OwnedFd,
}

impl Reservation {
    /// Keeps `port`, or any free one where it is 0, on all addresses of the family of `ip`.
    ///
    /// # Errors
    /// The port is in use, or the system has no sockets left.
    pub fn new(ip: IpAddr, port: u16) -> io::Result<Self> {
        let (family, all) = match ip {
            IpAddr::V4(_) => (AddressFamily::INET, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => (AddressFamily::INET6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        net::bind(&socket, &SocketAddr::new(all, port))?;
        let bound = SocketAddr::try_from(net::getsockname(&socket)?)?;
        Ok(Self { port: bound.port(), _socket: socket })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Picks the port of one service and writes it into the agent's command. What comes back is the port to publish: 0 where
/// the command does not name the service, so that only the agent will know.
pub(super) fn assign(
    port: AgentPort,
    ip: IpAddr,
    command: &mut [String],
    reservations: &mut Vec<Reservation>,
) -> Result<i32, PortError> {
    let Some(argument) = command.iter_mut().find(|argument| argument.starts_with(port.argument())) else {
        return Ok(0);
    };
    let wanted: u16 =
        argument[port.argument().len()..].parse().map_err(|_| PortError::Argument { argument: argument.clone() })?;
    match Reservation::new(ip, wanted) {
        Ok(reservation) => {
            *argument = format!("{}{}", port.argument(), reservation.port());
            let picked = i32::from(reservation.port());
            reservations.push(reservation);
            Ok(picked)
        }
        // Someone else has the port that was asked for. The HTTP server is the one service that the dashboard agent does
        // without in that case; for the others the agent fails and says why.
        Err(_) if wanted != 0 && port == AgentPort::DashboardListen => Ok(NOT_SERVED),
        Err(_) if wanted != 0 => Ok(i32::from(wanted)),
        Err(source) => Err(PortError::Pick { port: port.name(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_reserved_port_is_for_the_listener_that_knows_it() {
        let reservation = Reservation::new(ANY, 0).unwrap();
        // std's listener sets SO_REUSEADDR, as the agents' servers do.
        let listener = TcpListener::bind(("127.0.0.1", reservation.port())).unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(Reservation::new(ANY, reservation.port()).is_err(), "a listener has it now");
    }

    #[test]
    fn a_reserved_port_is_given_to_nobody_else() {
        let reservations: Vec<_> = (0..200).map(|_| Reservation::new(ANY, 0).unwrap()).collect();
        let kept: HashSet<_> = reservations.iter().map(Reservation::port).collect();
        assert_eq!(kept.len(), 200);
        let port = |address: io::Result<SocketAddr>| address.unwrap().port();
        let listeners: Vec<_> = (0..200).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let clients: Vec<_> = listeners.iter().map(|l| TcpStream::connect(l.local_addr().unwrap()).unwrap()).collect();
        assert!(listeners.iter().all(|listener| !kept.contains(&port(listener.local_addr()))));
        assert!(clients.iter().all(|client| !kept.contains(&port(client.local_addr()))));
    }

    #[test]
    fn ports_are_written_into_the_command() {
        let mut command: Vec<String> =
            ["python", "agent.py", "--grpc-port=0", "--listen-port=0"].map(String::from).into();
        let mut kept = Vec::new();
        let metrics = assign(AgentPort::Metrics, ANY, &mut command, &mut kept).unwrap();
        assert!(metrics > 0);
        assert_eq!(command[2], format!("--grpc-port={metrics}"));
        assert_eq!(assign(AgentPort::RuntimeEnv, ANY, &mut command, &mut kept).unwrap(), 0, "not named");
        assert_eq!(kept.len(), 1);
    }

    #[test]
    fn a_port_in_use_is_left_to_the_agent() {
        let taken = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut kept = Vec::new();
        for (service, published) in [(AgentPort::DashboardListen, NOT_SERVED), (AgentPort::Metrics, i32::from(port))] {
            let before = format!("{}{port}", service.argument());
            let mut command = vec![before.clone()];
            assert_eq!(assign(service, ANY, &mut command, &mut kept).unwrap(), published);
            assert_eq!(command, [before]);
        }
        assert!(kept.is_empty());
        let mut bad = vec!["--grpc-port=many".to_string()];
        let error = assign(AgentPort::Metrics, ANY, &mut bad, &mut kept).unwrap_err();
        assert!(error.to_string().contains("--grpc-port=many"), "{error}");
    }

    #[test]
    fn announcements_are_read_strictly() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeId([0xab; 28]);
        let path = AgentPort::Metrics.file(dir.path(), &node);
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), format!("metrics_agent_port_{}", "ab".repeat(28)));
        let read = || announced(AgentPort::Metrics, dir.path(), &node);
        assert_eq!(read().unwrap(), None);
        for (content, expected) in [("", None), ("39495", Some(39495)), ("-1", Some(-1)), ("8080\n", Some(8080))] {
            fs::write(&path, content).unwrap();
            assert_eq!(read().unwrap(), expected);
        }
        for bad in ["0", "65536", "-2", "port", "1e3", "                      1"] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(read(), Err(PortError::Content { .. })), "{bad:?}");
        }
    }
}
