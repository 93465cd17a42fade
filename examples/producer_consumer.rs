//! One process makes objects, another one reads them where they lie: nothing is copied between the two.
//!
//! ```text
//! cargo run --release -- --socket raylet.sock &
//! cargo build --release --examples
//! E=target/release/examples/producer_consumer
//! $E raylet.sock produce 5 | $E raylet.sock consume 5
//! ```
//!
//! The producer prints the id of each object and keeps them until it gets the consumer's answer, an object too. What a client has put
//! is kept for it as long as it lives, or until it deletes it.

use std::error::Error;
use std::io::BufRead;

use raylet_transport::client::Client;
use raylet_transport::ids::ObjectId;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [socket, "produce", count] => produce(&Client::connect(socket)?, count.parse()?),
        [socket, "consume", count] => consume(&Client::connect(socket)?, count.parse()?),
        _ => Err("usage: producer_consumer SOCKET produce COUNT | producer_consumer SOCKET consume COUNT".into()),
    }
}

fn produce(client: &Client, count: u64) -> Result<(), Box<dyn Error>> {
    let mut ids = Vec::new();
    for n in 0..count {
        // Written in place: the node's memory is this process' memory.
        let mut object = client.create(8 * (n as usize + 1))?;
        object.chunks_exact_mut(8).for_each(|number| number.copy_from_slice(&n.to_le_bytes()));
        let id = object.seal()?;
        println!("{id}");
        ids.push(id);
    }
    let Some(last) = ids.last() else {
        return Ok(());
    };
    let answer = answer_to(*last);
    eprintln!("the consumer says: {}", String::from_utf8_lossy(&client.get(answer, None)?));
    ids.push(answer);
    ids.into_iter().try_for_each(|id| Ok(client.delete(id)?))
}

/// `count` objects are to come.
fn consume(client: &Client, count: usize) -> Result<(), Box<dyn Error>> {
    let (mut sum, mut last) = (0, None);
    for line in std::io::stdin().lock().lines().take(count) {
        let id = id_of(&line?)?;
        let object = client.get(id, None)?;
        let numbers = object.as_chunks::<8>().0;
        sum += numbers.iter().map(|number| u64::from_le_bytes(*number)).sum::<u64>();
        last = Some(id);
    }
    let said = format!("the sum of all numbers is {sum}");
    println!("{said}");
    if let Some(last) = last {
        let mut answer = client.create_as(answer_to(last), said.len(), 0, None)?;
        answer.copy_from_slice(said.as_bytes());
        // Not kept for this client, which ends: the producer deletes it.
        answer.seal_unpinned()?;
    }
    Ok(())
}

/// The name of the answer to all objects of a producer: its task's last name, which no put comes to.
fn answer_to(object: ObjectId) -> ObjectId {
    ObjectId::of(object.task(), u32::MAX)
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
