//! The machine's own limit: what the least work that is an answer costs a process on a Unix socket.
//!
//! A server thread waits in a ring as a core does and answers each request at once; a client thread asks, waits for the answer, and
//! works for a while before it asks again, as a driver's Python code does. Nothing is decoded or decided. What a raylet
//! spends beyond this per request is its own; this much is the kernel's, for waking and putting to sleep, whoever answers.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use raylet_transport::uring::{Completion, CoreRing, Doorbell, Receive};
use rustix::net::SendFlags;
use rustix::time::{clock_gettime, ClockId};

use crate::latency::{Latencies, Percentiles};
use crate::LoadError;

/// About the size of a plasma request and of its reply.
const REQUEST_BYTES: usize = 100;
const REPLY_BYTES: usize = 200;

/// What is measured.
#[derive(Debug)]
pub struct Settings {
    /// Before the measurement.
    pub warm_up: Duration,
    /// Measured.
    pub window: Duration,
    /// How long the client works between two requests.
    pub pause: Duration,
}

/// What came out.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// Answers in the window.
    pub answers: u64,
    /// CPU of the server thread per answer, in microseconds.
    pub server_cpu_us_per_answer: f64,
    /// From a request to its answer.
    pub answer: Percentiles,
}

/// Runs client and server.
///
/// # Errors
/// When io_uring or a socket can't be had.
pub fn run(settings: &Settings) -> Result<Report, LoadError> {
    let (client, server) = UnixStream::pair().map_err(LoadError::io("a pair of sockets"))?;
    let (marks, marked) = mpsc::channel();
    let serving = thread::spawn(move || serve(server, &marked));
    let measured = ask(client, settings, &marks);
    let cpu =
        serving.join().map_err(|_| LoadError::io("the server thread")(std::io::Error::other("it panicked")))??;
    let (answers, latencies) = measured?;
    let server_cpu_us_per_answer = cpu.as_secs_f64() * 1e6 / answers.max(1) as f64;
    Ok(Report { answers, server_cpu_us_per_answer, answer: latencies.percentiles() })
}

/// Answers until the client goes; returns the CPU time spent since the first mark.
fn serve(stream: UnixStream, marked: &mpsc::Receiver<()>) -> Result<Duration, LoadError> {
    let doorbell = Doorbell::new().map_err(|e| LoadError::io("a doorbell")(std::io::Error::other(e)))?;
    let mut ring = CoreRing::new(doorbell).map_err(|e| LoadError::io("a ring")(std::io::Error::other(e)))?;
    let socket = Rc::new(OwnedFd::from(stream));
    ring.receive(1, socket.clone(), Receive::Always);
    let (mut since, mut open) = (cpu(), true);
    while open {
        ring.wait(None, || false).map_err(LoadError::io("io_uring_enter"))?;
        if marked.try_recv().is_ok() {
            since = cpu();
        }
        let mut sent = Ok(0);
        ring.reap(|completion| match completion {
            Completion::Received { .. } => {
                let answered = rustix::net::send(&*socket, &[1; REPLY_BYTES], SendFlags::NOSIGNAL);
                sent = answered;
            }
            Completion::Ended { .. } => open = false,
            // Nothing else was begun.
            _ => {}
        });
        // The client closes with an answer on its way at most once.
        if let (Err(error), true) = (sent, open) {
            return Err(LoadError::io("send")(error.into()));
        }
    }
    Ok(cpu().saturating_sub(since))
}

fn ask(mut stream: UnixStream, settings: &Settings, marks: &mpsc::Sender<()>) -> Result<(u64, Latencies), LoadError> {
    let mut latencies = Latencies::default();
    let mut reply = [0; REPLY_BYTES];
    let begin = Instant::now() + settings.warm_up;
    let end = begin + settings.window;
    let (mut answers, mut marked) = (0, false);
    while Instant::now() < end {
        if !marked && Instant::now() >= begin {
            // The server looks at its clock when the next request wakes it.
            marked = marks.send(()).is_ok();
        }
        let asked = Instant::now();
        stream.write_all(&[0; REQUEST_BYTES]).map_err(LoadError::io("a request"))?;
        stream.read_exact(&mut reply).map_err(LoadError::io("an answer"))?;
        if marked {
            latencies.record(asked.elapsed());
            answers += 1;
        }
        let until = Instant::now() + settings.pause;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
    Ok((answers, latencies))
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
