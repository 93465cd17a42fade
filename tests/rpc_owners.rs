//! Owners of objects: a real driver of Ray 2.60 tells where its object is.

#[path = "rpc_support/driver.rs"]
mod driver;
#[path = "rpc_support/python.rs"]
mod python;
mod rpc_support;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use driver::Driver;
use prost::Message;
use raylet_shard::ids::{NodeId, ObjectId, WorkerId};
use raylet_uring::ray::proto::{
    Address, GetCoreWorkerStatsRequest, ObjectLocationUpdate, UpdateObjectLocationBatchRequest,
    WorkerObjectLocationsPubMessage,
};
use raylet_uring::ray::rpc::auth::{Auth, Token};
use raylet_uring::ray::rpc::chaos::Chaos;
use raylet_uring::ray::rpc::client::{ClientConfig, ClientContext};
use raylet_uring::ray::rpc::core_worker::CoreWorkers;
use raylet_uring::ray::rpc::owners::{OwnerEvent, OwnerSubscriber};
use rpc_support::{eventually, on_control_thread, TOKEN};

type Events = Rc<RefCell<Vec<OwnerEvent>>>;

fn newest_locations(events: &Events) -> Option<WorkerObjectLocationsPubMessage> {
    let events = events.borrow();
    events.iter().rev().find_map(|event| match event {
        OwnerEvent::Locations { locations, .. } => Some(locations.clone()),
        _ => None,
    })
}

/// Tells an owner that a copy of its object came to a node, or went.
async fn tell(workers: &CoreWorkers, owner: &Address, object: ObjectId, node: NodeId, change: Option<i32>) {
    let request = UpdateObjectLocationBatchRequest {
        intended_worker_id: owner.worker_id.clone(),
        node_id: node.as_bytes().to_vec().into(),
        object_location_updates: vec![ObjectLocationUpdate {
            object_id: object.as_bytes().to_vec().into(),
            plasma_location_update: change,
            ..Default::default()
        }],
    };
    let told = workers.at(owner).update_object_location_batch(request, Duration::from_secs(10)).await;
    told.expect("the owner takes it");
}

#[test]
fn an_owner_tells_until_it_is_gone() {
    on_control_thread(async {
        let mut driver = Driver::start();
        let owner = Address::decode(driver.owner.as_slice()).expect("an address");
        let object = ObjectId::from_slice(&driver.object).expect("an object id");
        let auth = Auth::with_token(Token::new(TOKEN).expect("token"));
        let context = ClientContext::new(ClientConfig { auth, ..ClientConfig::default() }, Chaos::none());
        let workers = CoreWorkers::new(context);
        let stats = GetCoreWorkerStatsRequest { intended_worker_id: owner.worker_id.clone(), ..Default::default() };
        let stats = workers.at(&owner).get_core_worker_stats(stats, Duration::from_secs(10)).await.expect("stats");
        assert_eq!(stats.core_worker_stats.expect("stats").worker_id, owner.worker_id);

        let events = Events::default();
        let sink = events.clone();
        let this_node = NodeId([9; 28]);
        let deliver = move |event| sink.borrow_mut().push(event);
        let subscriber = OwnerSubscriber::new(workers.clone(), this_node, Duration::from_secs(1), deliver);
        subscriber.subscribe(&owner, object);
        subscriber.subscribe(&owner, object);
        assert_eq!(subscriber.len(), 1);
        eventually("the copy in the driver's store is known", || {
            newest_locations(&events)
                .is_some_and(|l| l.node_ids == [owner.node_id.clone()] && l.object_size >= 1_000_000)
        })
        .await;

        tell(&workers, &owner, object, this_node, Some(0)).await;
        eventually("the owner knows of a copy elsewhere", || {
            newest_locations(&events).is_some_and(|l| l.node_ids.iter().any(|node| node[..] == this_node.0))
        })
        .await;
        tell(&workers, &owner, object, this_node, Some(1)).await;
        eventually("the owner knows that it is gone", || {
            newest_locations(&events).is_some_and(|l| l.node_ids == [owner.node_id.clone()])
        })
        .await;

        let strange_events = Events::default();
        let sink = strange_events.clone();
        let deliver = move |event| sink.borrow_mut().push(event);
        let strangers = OwnerSubscriber::new(workers, NodeId([8; 28]), Duration::from_secs(1), deliver);
        let stranger = Address { worker_id: vec![1; WorkerId::LEN].into(), ..owner.clone() };
        strangers.subscribe(&stranger, object);
        eventually("a worker that is not the owner says so", || {
            let events = strange_events.borrow();
            matches!(events[..], [OwnerEvent::Ended { object: ended, .. }] if ended == object)
        })
        .await;

        let kept = ObjectId::from_slice(&driver.kept).expect("an object id");
        subscriber.subscribe(&owner, kept);
        driver.free();
        eventually("the object is no longer in use", || {
            let ended =
                |event: &OwnerEvent| matches!(event, OwnerEvent::Ended { object: ended, .. } if *ended == object);
            events.borrow().iter().any(ended)
        })
        .await;
        assert_eq!(subscriber.len(), 1);
        driver.stop();
        let worker = WorkerId::from_slice(&owner.worker_id).expect("a worker id");
        eventually("the owner is gone", || {
            let gone = |event: &OwnerEvent| match event {
                OwnerEvent::Gone { owner, objects } => *owner == worker && objects[..] == [kept],
                _ => false,
            };
            events.borrow().iter().any(gone)
        })
        .await;
        assert!(subscriber.is_empty());
    });
}
