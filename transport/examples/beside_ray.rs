//! A native client of a node that serves Ray too: what it puts, Ray's workers can read, and what it leases, Ray's tasks wait for.
//!
//! ```text
//! make attach
//! RAYLET_URING_SOCKET=$PWD/raylet.sock .venv/bin/ray start --head --num-cpus 2
//! cargo run --release -p raylet-transport --example beside_ray -- raylet.sock 2 "some bytes"
//! ```
//!
//! Prints the id of an object with these bytes, leases so many CPUs, says so, and gives them back when its input ends. In Ray's words:
//! `ray.get(ray.ObjectRef(bytes.fromhex(ID)))` is `b"some bytes"`, since the object's metadata says that it is raw.

use std::error::Error;
use std::io::Read;

use raylet_transport::client::{Client, LeaseSpec};

/// Ray's metadata of an object that is bytes and nothing else (Ray 2.60, `ray_constants.OBJECT_METADATA_TYPE_RAW`).
const RAW: &[u8] = b"RAW";

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, cpus, text] = &words[..] else {
        return Err("usage: beside_ray SOCKET CPUS TEXT".into());
    };
    let client = Client::connect(socket)?;
    println!("{}", client.put_with_metadata(text.as_bytes(), RAW)?);
    let lease = client.request_lease(&LeaseSpec::new("").resource("CPU", cpus.parse()?))?;
    println!("leased");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(lease.return_()?)
}
