//! A client in an async program: many requests under way on one thread.
//!
//! ```text
//! cargo run --release -- --socket raylet.sock &
//! cargo run --release --example async_client -- raylet.sock
//! ```
//!
//! The driver runs as a task of its own and brings in what comes from the node. Here it is tokio's; there is one for async-io, and any
//! other reactor waits for the driver's descriptor and calls `Driver::turn`.

use std::error::Error;
use std::time::Duration;

use raylet_transport::client::{AsyncClient, ClientError, LeaseSpec, Options};
use raylet_transport::ids::ObjectId;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args().nth(1).ok_or("usage: async_client SOCKET")?;
    let (client, driver) = AsyncClient::connect(socket, Options::default())?;
    let driver = tokio::spawn(driver.run_on_tokio());

    let ids: Vec<ObjectId> = (0..100u64).map(|n| client.put(&n.to_le_bytes())).collect::<Result<_, ClientError>>()?;
    let readers: Vec<_> = ids.iter().map(|id| tokio::spawn(read(client.clone(), *id))).collect();
    let mut sum = 0;
    for reader in readers {
        sum += reader.await??;
    }
    println!("{} objects, the sum of all is {sum}", ids.len());

    // A lease that waits for an object, beside the task that makes it.
    let later = ObjectId::of(ids[0].task(), u32::MAX);
    let mut spec = LeaseSpec::new("").resource("CPU", 1.0).deps([later]);
    spec.wait = Some(Duration::from_secs(10));
    let make = async {
        let mut object = client.blocking().create_as(later, 5, 0, None)?;
        object.copy_from_slice(b"later");
        object.seal()
    };
    let (lease, made) = tokio::join!(client.request_lease(&spec), make);
    println!("object {} is there, and the lease is granted: {:?}", made?, lease?.allocation);

    for id in ids.into_iter().chain([later]) {
        client.delete(id).await?;
    }
    client.blocking().close();
    println!("the driver ends: {}", driver.await?);
    Ok(())
}

async fn read(client: AsyncClient, id: ObjectId) -> Result<u64, ClientError> {
    let object = client.get(id, None).await?;
    Ok(object.first_chunk().map_or(0, |number| u64::from_le_bytes(*number)))
}
