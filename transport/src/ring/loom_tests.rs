//! The ring's orderings, model-checked: `RUSTFLAGS="--cfg loom" cargo test --release -p raylet-transport --lib loom`.
//!
//! Lines have three words here and rings two to four lines, so that loom can go through all executions. A doorbell is a counter with a
//! condition variable: a wake-up that gets lost is a deadlock, which loom reports.

use std::sync::Arc;

use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::{Endpoint, Memory, PushError, Record, Side, Wake};
use crate::frame::Head;

/// As an eventfd: remembers that it rang.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

fn pair(lines: u32) -> (Endpoint, Endpoint) {
    let memory = Arc::new(Memory::on_heap(lines));
    (Endpoint::new(memory.clone(), Side::Client), Endpoint::new(memory, Side::Node))
}

fn head(n: u32) -> Head {
    Head::new(7, n)
}

/// Pops one record, sleeping where there is none.
fn pop_or_sleep(end: &mut Endpoint, record: &mut Record, bell: &Bell) {
    while !end.pop(record).unwrap() {
        if end.announce_sleep(Wake::DATA).unwrap() {
            bell.wait();
            end.awake();
        }
    }
}

#[test]
fn loom_records_arrive_whole_and_in_order_through_a_full_ring() {
    model(|| {
        let (mut client, mut node) = pair(2);
        let writer = thread::spawn(move || {
            for n in 1..=3u32 {
                while let Err(error) = client.push(head(n), &u64::from(n).to_le_bytes()) {
                    assert_eq!(error, PushError::Full);
                    thread::yield_now();
                }
            }
        });
        let mut record = Record::default();
        for n in 1..=3u32 {
            while !node.pop(&mut record).unwrap() {
                thread::yield_now();
            }
            assert_eq!((record.head(), record.body()), (head(n), &u64::from(n).to_le_bytes()[..]));
        }
        writer.join().unwrap();
    });
}

#[test]
fn loom_a_record_of_two_lines_is_seen_whole() {
    model(|| {
        let memory = Arc::new(Memory::on_heap(8));
        let mut client = Endpoint::new(memory.clone(), Side::Client);
        let mut node = Endpoint::new(memory, Side::Node);
        let body: Vec<u8> = (1..=24).collect();
        let sent = body.clone();
        let writer = thread::spawn(move || client.push(head(1), &sent).unwrap());
        let mut record = Record::default();
        while !node.pop(&mut record).unwrap() {
            thread::yield_now();
        }
        assert_eq!(record.body(), body);
        writer.join().unwrap();
    });
}

#[test]
fn loom_no_wake_up_for_a_record_is_lost() {
    model(|| {
        let (mut client, mut node) = pair(4);
        let bell = Arc::new(Bell::default());
        let rung = bell.clone();
        let writer = thread::spawn(move || {
            for n in 1..=2u32 {
                client.push(head(n), &[]).unwrap();
                if client.must_wake() {
                    rung.ring();
                }
            }
        });
        let mut record = Record::default();
        for n in 1..=2u32 {
            pop_or_sleep(&mut node, &mut record, &bell);
            assert_eq!(record.head(), head(n));
        }
        writer.join().unwrap();
    });
}

#[test]
fn loom_no_wake_up_for_room_is_lost() {
    model(|| {
        let (mut client, mut node) = pair(2);
        let bell = Arc::new(Bell::default());
        let rung = bell.clone();
        client.push(head(1), &[]).unwrap();
        client.push(head(2), &[]).unwrap();
        let reader = thread::spawn(move || {
            let mut record = Record::default();
            for n in 1..=3u32 {
                while !node.pop(&mut record).unwrap() {
                    thread::yield_now();
                }
                assert_eq!(record.head(), head(n));
                if node.must_wake() {
                    rung.ring();
                }
            }
        });
        while let Err(error) = client.push(head(3), &[]) {
            assert_eq!(error, PushError::Full);
            if client.announce_sleep(Wake { for_data: true, for_space: Some(0) }).unwrap() {
                bell.wait();
                client.awake();
            }
        }
        reader.join().unwrap();
    });
}

#[test]
fn loom_question_and_answer_with_both_sides_asleep() {
    model(|| {
        let (mut client, mut node) = pair(2);
        let (to_node, to_client) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        let (node_bell, client_bell) = (to_node.clone(), to_client.clone());
        let server = thread::spawn(move || {
            let mut record = Record::default();
            pop_or_sleep(&mut node, &mut record, &node_bell);
            node.push(record.head(), &[]).unwrap();
            if node.must_wake() {
                client_bell.ring();
            }
        });
        client.push(head(5), &[]).unwrap();
        if client.must_wake() {
            to_node.ring();
        }
        let mut record = Record::default();
        pop_or_sleep(&mut client, &mut record, &to_client);
        assert_eq!(record.head(), head(5));
        server.join().unwrap();
    });
}
