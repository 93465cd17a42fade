//! One process makes objects, another one reads them where they lie: nothing is copied between the two.
//!
//! ```text
//! cargo run --release -- --socket raylet.sock &
//! cargo build --release --examples
//! E=target/release/examples/producer_consumer
//! $E raylet.sock produce 5 | $E raylet.sock consume
//! ```
//!
//! The producer prints the id of each object and stays until all are deleted, since what it has put is kept for it as long as it
//! lives. The consumer reads ids from its input, and deletes each object when it has read it.

use std::collections::HashSet;
use std::error::Error;
use std::io::BufRead;

use raylet_transport::client::{Client, Event};
use raylet_transport::ids::ObjectId;
use raylet_transport::messages::{object_event, topic};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [socket, "produce", count] => produce(&Client::connect(socket)?, count.parse()?),
        [socket, "consume"] => consume(&Client::connect(socket)?),
        _ => Err("usage: producer_consumer SOCKET produce COUNT | producer_consumer SOCKET consume".into()),
    }
}

fn produce(client: &Client, count: u64) -> Result<(), Box<dyn Error>> {
    client.subscribe(topic::OBJECTS)?;
    let mut there = HashSet::new();
    for n in 0..count {
        // Written in place: the node's memory is this process' memory.
        let mut object = client.create(8 * (n as usize + 1))?;
        object.chunks_exact_mut(8).for_each(|number| number.copy_from_slice(&n.to_le_bytes()));
        let id = object.seal()?;
        there.insert(id);
        println!("{id}");
    }
    while !there.is_empty() {
        match client.next_event(None)? {
            Event::Object(event) if event.what == object_event::DELETED => drop(there.remove(&event.object)),
            // Some of what happened was not told: look.
            Event::Lost(_) => {
                let ids: Vec<ObjectId> = there.iter().copied().collect();
                let left = client.wait(&ids, ids.len(), Some(std::time::Duration::ZERO))?;
                there = left.iter().map(|index| ids[*index as usize]).collect();
            }
            _ => {}
        }
    }
    Ok(())
}

fn consume(client: &Client) -> Result<(), Box<dyn Error>> {
    let mut sum = 0;
    for line in std::io::stdin().lock().lines() {
        let id = id_of(&line?)?;
        let object = client.get(id, None)?;
        let numbers = object.as_chunks::<8>().0;
        sum += numbers.iter().map(|number| u64::from_le_bytes(*number)).sum::<u64>();
        drop(object);
        client.delete(id)?;
    }
    println!("the sum of all numbers is {sum}");
    Ok(())
}

/// An id as it is printed: two digits for each byte.
fn id_of(text: &str) -> Result<ObjectId, Box<dyn Error>> {
    let mut id = [0; ObjectId::LEN];
    if text.len() != 2 * id.len() || !text.is_ascii() {
        return Err(format!("{text:?} is no id of an object").into());
    }
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16)?;
    }
    Ok(ObjectId(id))
}
