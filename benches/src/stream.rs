//! The machine's own limit for what goes from node to node: one plain TCP stream on loopback, between two processes.
//!
//! One process sends from a buffer, the other receives into one; nothing is looked at. What a raylet moves more slowly than this, or
//! with more CPU per byte, is its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cpu_clock::CpuClock;
use crate::LoadError;

/// Says that all has come, so that the sender lives until its CPU was read.
const ALL_HERE: [u8; 1] = [1];

/// How long the sender may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How often the receiver looks whether the sender has connected.
const CONNECT_POLL: Duration = Duration::from_millis(5);

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// In all, in bytes.
    pub size_bytes: u64,
    /// With each call, in bytes.
    pub block_bytes: usize,
}

/// What came out.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// Bytes that came.
    pub bytes: u64,
    /// From the first call to the last byte.
    pub seconds: f64,
    /// Bytes per second, in 10^9.
    pub gb_per_s: f64,
    /// CPU of both processes for 10^9 bytes, in seconds.
    pub cpu_s_per_gb: f64,
}

/// Receives here what a second process sends, which is `program stream --send-to`: this program.
///
/// # Errors
/// Where a socket or the process can't be had.
pub fn run(program: &Path, settings: Settings) -> Result<Report, LoadError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(LoadError::io("a listening socket"))?;
    let address = listener.local_addr().map_err(LoadError::io("a listening socket"))?;
    let sender = Command::new(program)
        .arg("stream")
        .arg(format!("--size={}", settings.size_bytes))
        .arg(format!("--block={}", settings.block_bytes))
        .arg(format!("--send-to={address}"))
        .stdin(Stdio::null())
        .spawn()
        .map_err(LoadError::io(format!("start {}", program.display())))?;
    let mut sender = Sender(sender);
    let mut stream = sender.connected(&listener)?;
    receive(&mut stream, &sender, settings)
}

/// The sending process; ended with the value.
struct Sender(Child);

impl Sender {
    /// Its connection, unless it ends before.
    fn connected(&mut self, listener: &TcpListener) -> Result<TcpStream, LoadError> {
        let failed = LoadError::io("the sender's connection");
        if let Err(error) = listener.set_nonblocking(true) {
            return Err(failed(error));
        }
        let end = Instant::now() + CONNECT_TIMEOUT;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    return stream.set_nonblocking(false).map(|()| stream).map_err(failed);
                }
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(failed(error)),
                Err(_) => {}
            }
            if Instant::now() > end || !matches!(self.0.try_wait(), Ok(None)) {
                return Err(failed(std::io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(CONNECT_POLL);
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // Both fail only where the process has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn receive(stream: &mut TcpStream, sender: &Sender, settings: Settings) -> Result<Report, LoadError> {
    let clocks = [CpuClock::own(), CpuClock::of(sender.0.id() as i32).map_err(LoadError::io("the sender's clock"))?];
    let spent = || clocks.iter().map(CpuClock::read).sum::<Result<Duration, _>>().map_err(LoadError::io("CPU time"));
    let mut block = vec![0; settings.block_bytes];
    let (before, begin) = (spent()?, Instant::now());
    // The sender waits for this, so that its first byte is not sent before the clock runs.
    stream.write_all(&ALL_HERE).map_err(LoadError::io("the start of the stream"))?;
    let mut bytes = 0;
    while bytes < settings.size_bytes {
        match stream.read(&mut block).map_err(LoadError::io("receive"))? {
            0 => return Err(LoadError::io("receive")(std::io::ErrorKind::UnexpectedEof.into())),
            got => bytes += got as u64,
        }
    }
    let (elapsed, cpu) = (begin.elapsed(), spent()?.saturating_sub(before));
    stream.write_all(&ALL_HERE).map_err(LoadError::io("the end of the stream"))?;
    let gigabytes = bytes as f64 / 1e9;
    Ok(Report {
        bytes,
        seconds: elapsed.as_secs_f64(),
        gb_per_s: gigabytes / elapsed.as_secs_f64(),
        cpu_s_per_gb: cpu.as_secs_f64() / gigabytes,
    })
}

/// The second process: sends when told to, and stays until told that all has come.
///
/// # Errors
/// Where the connection breaks.
pub fn send(to: SocketAddr, settings: Settings) -> Result<(), LoadError> {
    let mut stream = TcpStream::connect(to).map_err(LoadError::io(format!("connect to {to}")))?;
    let (block, mut told) = (vec![7; settings.block_bytes], [0]);
    stream.read_exact(&mut told).map_err(LoadError::io("the start of the stream"))?;
    let mut left = settings.size_bytes;
    while left > 0 {
        let now = left.min(block.len() as u64);
        stream.write_all(&block[..now as usize]).map_err(LoadError::io("send"))?;
        left -= now;
    }
    stream.read_exact(&mut told).map_err(LoadError::io("the end of the stream"))
}
