//! What a service manager is told: that the node is up, that it is alive, that it ends (systemd's notify protocol). Without a
//! manager, which is the rule, nothing happens.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::pin::pin;
use std::time::Duration;

use futures_lite::future::poll_once;
use sd_notify::NotifyState;
use tokio::signal::unix::{signal, SignalKind};

use super::NodeError;
use crate::bridge::{core_reports, CoreHandle};
use crate::observe::log::LogHandle;

/// Reports of life in each interval of the watchdog: one may be late.
const REPORTS_PER_INTERVAL: u32 = 2;
/// How long the control thread waits for a service manager that doesn't read: to tell it that the node is up or ends, and that
/// it is alive, of which there is always a next time. What it was to be told is then left out.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);
const TELL_LIFE_TIMEOUT: Duration = Duration::from_millis(10);

/// Variables by which a service manager speaks to the node, and to none of its children.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Tells that the node is up, calls `up`, and reports that the node is alive where the manager watches, until `end` is there:
/// its output. A node is alive while all its cores answer. Must run inside a `LocalSet`.
pub async fn ready_until<F: Future>(end: F, status: &str, cores: Vec<CoreHandle>, up: impl FnOnce()) -> F::Output {
    let mut end = pin!(end);
    // The first look takes the signals that end a node: whoever hears that it is up may send one.
    if let Some(output) = poll_once(end.as_mut()).await {
        return output;
    }
    up();
    tell(&[NotifyState::Ready, NotifyState::Status(status)], TELL_TIMEOUT);
    if let Some(interval) = sd_notify::watchdog_enabled() {
        tokio::task::spawn_local(report_life(interval / REPORTS_PER_INTERVAL, cores));
    }
    end.await
}

/// Tells that the node ends, which may take a while.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("ending: workers are told")], TELL_TIMEOUT);
}

/// Opens the log's files again at each SIGHUP, as programs that rotate logs expect. Must run inside a `LocalSet`.
///
/// # Errors
/// [`NodeError::Io`] where the signal can't be taken.
pub fn reopen_log_on_hangup(log: LogHandle) -> Result<(), NodeError> {
    let mut hangup = signal(SignalKind::hangup()).map_err(NodeError::Io)?;
    tokio::task::spawn_local(async move {
        while hangup.recv().await.is_some() {
            match log.reopen() {
                Ok(()) => tracing::info!("SIGHUP: the log's files are open again"),
                Err(error) => tracing::error!(%error, "SIGHUP: a file of the log can't be opened again"),
            }
        }
    });
    Ok(())
}

async fn report_life(pause: Duration, cores: Vec<CoreHandle>) {
    loop {
        tokio::time::sleep(pause).await;
        if all_answer(&cores).await {
            tell(&[NotifyState::Watchdog], TELL_LIFE_TIMEOUT);
        } else {
            tracing::error!("a core does not answer: the service manager is not told that the node is alive");
        }
    }
}

async fn all_answer(cores: &[CoreHandle]) -> bool {
    core_reports(cores, false).await.len() == cores.len()
}

fn tell(states: &[NotifyState], timeout: Duration) {
    let Some(socket) = std::env::var_os(VARIABLES[0]) else { return };
    let message: String = states.iter().map(|state| format!("{state}\n")).collect();
    match send(socket.as_bytes(), message.as_bytes(), timeout) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            tracing::debug!(message, "the service manager does not read what it is told");
        }
        Err(error) => tracing::warn!(%error, "the service manager can't be told"),
    }
}

/// Sends a datagram to a socket in the file system, or in the abstract namespace where its name begins with `@`. A manager that
/// doesn't read holds the node up for `timeout` at most (`sd_notify::notify` would wait for ever).
fn send(name: &[u8], message: &[u8], timeout: Duration) -> io::Result<()> {
    let manager = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(timeout))?;
    socket.send_to_addr(message, &manager).map(drop)
}

#[cfg(test)]
mod tests {
    use raylet_transport::uring::Doorbell;

    use super::*;

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up() {
        let name = format!("raylet-uring-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let address = format!("@{name}");
        let mut told = 0u32;
        let error = loop {
            match send(address.as_bytes(), b"WATCHDOG=1\n", TELL_LIFE_TIMEOUT) {
                Ok(()) => told += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut bytes = [0; 32];
        for _ in 0..told {
            let count = manager.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..count], b"WATCHDOG=1\n");
        }
        send(address.as_bytes(), b"STOPPING=1\n", TELL_TIMEOUT).unwrap();
        assert_eq!(manager.recv(&mut bytes).unwrap(), 11);
    }

    /// That all answer is shown by a node that a service manager watches (tests/host.rs).
    #[test]
    fn a_core_that_is_gone_does_not_answer() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (queue, inbox) = flume::unbounded();
        drop(inbox);
        let gone = CoreHandle::new(queue, Doorbell::new().unwrap());
        assert!(!runtime.block_on(all_answer(&[gone])));
        assert!(runtime.block_on(all_answer(&[])));
    }
}
