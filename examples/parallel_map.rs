//! A function of many inputs, computed by workers that the node starts: this program again, with `--worker`.
//!
//! ```text
//! cargo build --release --examples
//! E=target/release/examples/parallel_map
//! cargo run --release -- --socket raylet.sock --resources CPU=4 --worker-command "$E --worker" &
//! $E raylet.sock 20
//! ```
//!
//! Each input is an object. Each call is a lease: it waits until its input is there, a CPU is free and a worker is idle, and carries
//! the input's id along. The worker reads the object and sends the result to the owner of the lease.

use std::error::Error;

use raylet_transport::client::{Client, ClientError, LeaseEnd, LeaseSpec, Work, Worker};
use raylet_transport::ids::ObjectId;

/// What the workers are called.
const CLASS: &str = "primes";
/// Numbers of one input.
const STEP: u64 = 10_000;
/// Calls under way.
const CALLERS: u64 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words[..] {
        [flag] if flag == "--worker" => work(),
        [socket, inputs] => map(&Client::connect(socket)?, inputs.parse()?),
        _ => Err("usage: parallel_map SOCKET INPUTS | parallel_map --worker".into()),
    }
}

fn map(client: &Client, inputs: u64) -> Result<(), Box<dyn Error>> {
    let sums = std::thread::scope(|scope| {
        // A client is a handle that threads share.
        let caller =
            |first: u64| scope.spawn(move || (first..inputs).step_by(CALLERS as usize).map(|n| call(client, n)).sum());
        let callers: Vec<_> = (0..CALLERS).map(caller).collect();
        callers.into_iter().map(|caller| caller.join().unwrap_or_else(|_| Err("a caller panicked".into()))).collect()
    });
    let sums: Result<Vec<u64>, String> = sums;
    println!("{} primes below {}", sums?.iter().sum::<u64>(), inputs * STEP);
    Ok(())
}

/// Has the primes between `n` and `n + 1` steps counted.
fn call(client: &Client, n: u64) -> Result<u64, String> {
    let called = || -> Result<u64, ClientError> {
        let bounds = [n * STEP, (n + 1) * STEP];
        let input = client.put(&bounds.map(u64::to_le_bytes).concat())?;
        let spec = LeaseSpec::new(CLASS).resource("CPU", 1.0).deps([input]).payload(input.0);
        let lease = client.request_lease(&spec)?;
        let end = lease.wait_done(None)?;
        lease.return_()?;
        client.delete(input)?;
        match end {
            LeaseEnd::Done { status: 0, result } if result.len() == 8 => {
                Ok(result.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
            }
            LeaseEnd::Lost(why) => Err(ClientError::Refused { what: "the call", refusal: why }),
            end => Err(ClientError::Argument(format!("the worker failed: {end:?}"))),
        }
    };
    called().map_err(|error| format!("input {n}: {error}"))
}

/// A worker: the node has said in the environment where its socket is.
fn work() -> Result<(), Box<dyn Error>> {
    let worker = Worker::register(std::env::var("RAYLET_SOCKET")?, CLASS, "")?;
    loop {
        match worker.next(None) {
            Ok(Work::Assigned(work)) => {
                let id = ObjectId(*work.payload.first_chunk().ok_or("the payload is no id")?);
                let input = worker.client().get(id, None)?;
                let bounds = input.as_chunks::<8>().0;
                let [from, to] = bounds else {
                    return Err("the input is no pair of numbers".into());
                };
                let count =
                    (u64::from_le_bytes(*from)..u64::from_le_bytes(*to)).filter(|n| is_prime(*n)).count() as u64;
                work.done(0, count.to_le_bytes())?;
            }
            // The lease ended before its work: there is nothing to take back.
            Ok(Work::Revoked(_)) => {}
            Ok(Work::Stop { detail, .. }) => return Ok(worker.exit(0, &detail)?),
            // The node ended.
            Err(ClientError::Closed | ClientError::ClosedByNode(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_prime(n: u64) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}
