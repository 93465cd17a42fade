//! The async client against the reference node, on async-io, on tokio, and with a loop of one's own.

mod reference;

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_lite::future;
use raylet_transport::client::{AsyncClient, Client, ClientError, LeaseEnd, LeaseSpec, Options, Work, Worker};
use raylet_transport::ids::{ObjectId, TaskId};
use raylet_transport::messages::{topic, RefusalCode};
use reference::{Config, Reference};

const LONG: Option<Duration> = Some(Duration::from_secs(60));

/// What every runtime has to manage: many requests at once, some of which wait for what others do.
async fn scenario(client: AsyncClient, other: Client) {
    let absent = ObjectId::of(TaskId([3; 24]), 0);
    let late = client.get(absent, LONG);
    let seal = async {
        future::yield_now().await;
        let mut writer = other.create_as(absent, 4, 0, None).unwrap();
        writer.copy_from_slice(b"late");
        writer.seal().unwrap();
    };
    let (object, ()) = future::zip(late, seal).await;
    assert_eq!(object.unwrap()[..], *b"late");
    let mut gets = Vec::new();
    for n in 0..200u8 {
        let id = other.put(&[n; 100]).unwrap();
        gets.push((n, client.get(id, LONG)));
    }
    for (n, get) in gets {
        assert_eq!(get.await.unwrap()[..], [n; 100]);
    }
    let refused = client.get(ObjectId::NIL, Some(Duration::from_millis(20))).await;
    assert_eq!(refused.unwrap_err().code(), Some(RefusalCode::DeadlinePassed));
    let id = client.put(b"mine").unwrap();
    assert!(client.contains(id).await.unwrap());
    assert_eq!(client.wait(&[absent, id, ObjectId::NIL], 2, LONG).await.unwrap(), [0, 1]);
    client.delete(id).await.unwrap();
    let lease = client.request_lease(&LeaseSpec::new("echo").payload(*b"ping")).await.unwrap();
    let done = client.lease_done(&lease).await.unwrap();
    assert_eq!(done, LeaseEnd::Done { status: 0, result: b"ping".to_vec() });
    client.blocking().subscribe(topic::NODE).unwrap();
    other.drain(true, "").unwrap();
    client.next_event().await.unwrap();
}

fn echo(node: &Reference) -> std::thread::JoinHandle<()> {
    let worker = Worker::register(&node.path, "echo", "").unwrap();
    std::thread::spawn(move || {
        while let Ok(work) = worker.next(LONG) {
            if let Work::Assigned(work) = work {
                let payload = work.payload.clone();
                work.done(0, payload).unwrap();
            }
        }
    })
}

fn every_way() -> [Options; 2] {
    [Options { ring_lines: Some(64), ..Options::default() }, Options { ring_lines: None, ..Options::default() }]
}

#[test]
fn on_async_io() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let service = echo(&node);
        let (client, driver) = AsyncClient::connect(&node.path, options).unwrap();
        let other = Client::connect(&node.path).unwrap();
        let ended = async { panic!("the connection ended: {}", driver.run_on_async_io().await) };
        async_io::block_on(future::or(scenario(client, other), ended));
        drop(node);
        service.join().unwrap();
    }
}

#[test]
fn on_tokio() {
    for options in every_way() {
        let node = Reference::start(Config::default());
        let service = echo(&node);
        let other = Client::connect(&node.path).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let (client, driver) = AsyncClient::connect(&node.path, options).unwrap();
            let driver = tokio::spawn(driver.run_on_tokio());
            scenario(client, other).await;
            assert!(!driver.is_finished());
        });
        drop(node);
        service.join().unwrap();
    }
}

#[test]
fn with_a_loop_of_ones_own() {
    use std::os::fd::AsFd;
    for options in every_way() {
        let node = Reference::start(Config::default());
        let service = echo(&node);
        let other = Client::connect(&node.path).unwrap();
        let (client, driver) = AsyncClient::connect(&node.path, options).unwrap();
        let driver = std::thread::spawn(move || {
            while let Ok(may_sleep) = driver.turn() {
                if may_sleep {
                    let mut fds =
                        [rustix::event::PollFd::from_borrowed_fd(driver.as_fd(), rustix::event::PollFlags::IN)];
                    rustix::event::poll(&mut fds, None).unwrap();
                }
            }
        });
        future::block_on(scenario(client, other));
        drop(node);
        driver.join().unwrap();
        service.join().unwrap();
    }
}

#[test]
fn what_a_dropped_future_would_have_got_is_given_back() {
    let node = Reference::start(Config::default());
    let (client, driver) = AsyncClient::connect(&node.path, Options::default()).unwrap();
    let other = Client::connect(&node.path).unwrap();
    let id = ObjectId::of(TaskId([4; 24]), 0);
    let both = async {
        // Polled once, so that they are sent, and dropped.
        assert!(future::poll_once(client.get(id, LONG)).await.is_none());
        let lease = LeaseSpec::new("").deps([id]).resource("CPU", 1.0);
        client.request_lease(&LeaseSpec::new("").resource("CPU", 1.0)).await.unwrap().return_().unwrap();
        assert!(future::poll_once(client.request_lease(&lease)).await.is_none());
        other.create_as(id, 1, 0, None).unwrap().seal().unwrap();
        for _ in 0..5 {
            client.contains(id).await.unwrap();
        }
    };
    let ended = async { panic!("the connection ended: {}", driver.run_on_async_io().await) };
    async_io::block_on(future::or(both, ended));
    node.settles("all is given back", |c| c.held.load(Ordering::Relaxed) + c.leased.load(Ordering::Relaxed) == 0);
}

#[test]
fn a_node_that_ends_fails_every_future() {
    let node = Reference::start(Config::default());
    let (client, driver) = AsyncClient::connect(&node.path, Options::default()).unwrap();
    let waiting = future::zip(client.get(ObjectId::NIL, None), client.next_event());
    let end = async {
        future::yield_now().await;
        drop(node);
        driver.run_on_async_io().await
    };
    let ((object, event), error) = async_io::block_on(future::zip(waiting, end));
    assert!(matches!(error, ClientError::Closed | ClientError::Io { .. }), "{error}");
    assert!(object.is_err() && event.is_err());
}
