//! Messages of workers and drivers on the raylet socket.

use std::rc::Rc;
use std::time::Instant;

use prost::Message;
use raylet_shard::ids::{ClientId, JobId, ShardId, WorkerId};
use raylet_shard::sched::{SchedEvent, WorkerKey};

use super::{unix_ms, Control};
use crate::bridge::{Requester, ToCore};
use crate::observe::histogram::Operation;
use crate::ray::core_rpc::desk::Card;
use crate::ray::messages::{ClientMessage, Register};
use crate::ray::metrics::REGISTER_BOUNDS_MS;
use crate::ray::proto::{self, WorkerExitType, WorkerType};
use crate::ray::registry::{Exit, Member};
use crate::ray::wire::raylet::{
    encode_announce_port_reply, encode_disconnect_reply, encode_register_reply, RegisterReply,
};
use crate::ray::wire::Encoder;

impl Control {
    /// Takes a message of a connection.
    pub(super) fn client_message(self: &Rc<Self>, conn: ClientId, message: ClientMessage) {
        match message {
            ClientMessage::Register(register) => self.register(conn, register),
            ClientMessage::AnnouncePort { port, entrypoint } => self.announce(conn, port, entrypoint),
            ClientMessage::Disconnect { exit_type, detail, creation_exception } => {
                self.disconnect(conn, exit_type, detail, creation_exception);
            }
            // An actor's worker stays with its lease; there is nothing to give back.
            ClientMessage::ActorCreationDone => {}
            ClientMessage::Blocked => self.block(conn, true),
            ClientMessage::Unblocked => self.block(conn, false),
            ClientMessage::Fetch { id, objects, here } => self.fetch(conn, id, objects, here),
            ClientMessage::CancelFetch { id } => self.cancel_fetch(conn, id),
            ClientMessage::ActorArgsReady { task, attempt } => self.actor_args_ready(conn, task, attempt),
            ClientMessage::PlasmaReady { object } => self.plasma_ready(conn, object),
            ClientMessage::PushError { job, kind, message, timestamp_s } => {
                self.push_error(job, &kind, message, timestamp_s);
            }
            ClientMessage::FreeObjects { objects, .. } => self.free_objects(&objects),
        }
    }

    /// A client registers: at once, or where it is a worker whose fork is not reported yet, when that is.
    fn register(self: &Rc<Self>, conn: ClientId, register: Register) {
        let Some(forking) = self.forking.borrow().get(&register.worker).cloned() else {
            return self.register_known(conn, register);
        };
        let control = self.clone();
        tokio::task::spawn_local(async move {
            // Never has permits: it is closed when the fork is settled.
            let _ = forking.acquire().await;
            control.register_known(conn, register);
        });
    }

    fn register_known(self: &Rc<Self>, conn: ClientId, register: Register) {
        let start = Instant::now();
        let member = match WorkerType::try_from(register.worker_type) {
            Ok(WorkerType::Driver) => Ok(self.driver(conn, &register)),
            Ok(kind) => self.worker(conn, &register, kind),
            Err(_) => Err(format!("expected a worker type of 0 to 3, got {}", register.worker_type)),
        };
        let added = member.and_then(|member| {
            let worker = member.worker;
            match self.registry.borrow_mut().add(member) {
                true => Ok(()),
                false => Err(format!("worker {worker} is registered already")),
            }
        });
        if let Err(reason) = &added {
            tracing::warn!(pid = register.pid, reason, "a client was refused");
        }
        let mut frame = Vec::new();
        let reply =
            RegisterReply { failure: added.as_ref().err().map(String::as_bytes), node_id: self.node_id, port: 0 };
        encode_register_reply(&mut Encoder::default(), &mut frame, &reply);
        self.send_frame(conn, frame);
        self.recorder.borrow_mut().record_since(Operation::WorkerRegister, start);
        if added.is_err() {
            self.close(conn);
        }
    }

    fn driver(&self, conn: ClientId, register: &Register) -> Member {
        match proto::JobConfig::decode(&register.job_config[..]) {
            Ok(config) => self.job_started(register.job, config),
            Err(error) => {
                tracing::warn!(%error, job = %register.job, "a driver's job configuration can't be read and is left out");
                self.job_started(register.job, proto::JobConfig::default());
            }
        }
        Member { job: register.job, ..member(conn, register, WorkerType::Driver) }
    }

    fn worker(&self, conn: ClientId, register: &Register, kind: WorkerType) -> Result<Member, String> {
        if let Some(process) = self.io_registers(&register.worker, kind) {
            return Ok(Member { process: Some(process), ..member(conn, register, kind) });
        }
        let started = self.starting.borrow_mut().remove(&register.worker);
        let Some(started) = started else {
            return Err(format!(
                "worker {} was not started by this node, or registered too late (worker_register_timeout_seconds)",
                register.worker
            ));
        };
        self.recorder.borrow_mut().record_since(Operation::WorkerStart, started.since);
        let since_ms = started.since.elapsed().as_secs_f64() * 1000.0;
        self.counters.register_times_ms.record(&REGISTER_BOUNDS_MS, since_ms);
        Ok(Member {
            process: Some(started.process),
            start: Some(started.start),
            shard: started.start.shard(),
            key: started.key,
            job: started.job.unwrap_or_default(),
            ..member(conn, register, kind)
        })
    }

    fn announce(self: &Rc<Self>, conn: ClientId, port: i32, entrypoint: String) {
        let member = {
            let mut registry = self.registry.borrow_mut();
            let Some(member) = registry.by_conn_mut(conn) else {
                return tracing::warn!(port, "a client announced its port before it registered");
            };
            member.port = port;
            member.clone()
        };
        if member.is_driver() {
            return self.announce_driver(member, entrypoint);
        }
        if member.is_io() {
            return self.io_ready(&member);
        }
        let card = Card { address: member.address(self.node_id.as_bytes()), pid: member.pid };
        self.to_cores(|| ToCore::WorkerReady { worker: member.worker, card: Box::new(card.clone()) });
        self.sched(
            member.shard,
            SchedEvent::WorkerReady {
                worker: member.worker,
                start: member.start,
                key: member.key,
                job: Some(member.job).filter(|job| !job.is_nil()),
            },
        );
    }

    fn announce_driver(self: &Rc<Self>, member: Member, entrypoint: String) {
        let now_ms = unix_ms();
        let config = self.jobs.borrow().config(&member.job).cloned();
        let data = proto::JobTableData {
            job_id: member.job.as_bytes().to_vec().into(),
            is_dead: false,
            timestamp: now_ms as i64,
            start_time: now_ms,
            driver_ip_address: member.ip_address.clone(),
            driver_pid: i64::from(member.pid),
            driver_address: Some(member.address(self.node_id.as_bytes())),
            entrypoint,
            config,
            ..Default::default()
        };
        let control = self.clone();
        tokio::task::spawn_local(async move {
            let failure = control.gcs.add_job(data).await.err().map(|e| e.to_string());
            let mut frame = Vec::new();
            encode_announce_port_reply(&mut Encoder::default(), &mut frame, failure.as_ref().map(String::as_bytes));
            control.send_frame(member.conn, frame);
            control.driver_ready.notify_one();
        });
    }

    fn disconnect(
        self: &Rc<Self>,
        conn: ClientId,
        exit_type: i32,
        detail: String,
        creation_exception: Option<Vec<u8>>,
    ) {
        let member = self.registry.borrow().by_conn(conn).cloned();
        if let Some(member) = member {
            let exit =
                Exit { kind: WorkerExitType::try_from(exit_type).unwrap_or(WorkerExitType::SystemError), detail };
            let exception = creation_exception.and_then(|bytes| proto::RayException::decode(&bytes[..]).ok());
            self.member_gone(&member, Some(exit), exception);
        }
        let mut frame = Vec::new();
        encode_disconnect_reply(&mut Encoder::default(), &mut frame);
        self.send_frame(conn, frame);
        self.close(conn);
    }

    fn block(&self, conn: ClientId, blocked: bool) {
        let registry = self.registry.borrow();
        let Some(member) = registry.by_conn(conn).filter(|m| m.lease.is_some()) else {
            return;
        };
        let worker = member.worker;
        let event = if blocked { SchedEvent::Blocked { worker } } else { SchedEvent::Unblocked { worker } };
        self.sched(member.shard, event);
    }

    /// An error for the driver of a job to show.
    pub(super) fn push_error(self: &Rc<Self>, job: JobId, kind: &str, message: String, timestamp_s: f64) {
        let data = proto::ErrorTableData {
            job_id: job.as_bytes().to_vec().into(),
            r#type: kind.to_owned(),
            error_message: message,
            timestamp: timestamp_s,
        };
        let gcs = self.gcs.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = gcs.publish_error(data).await {
                tracing::warn!(%error, "an error could not be shown to its driver");
            }
        });
    }

    /// The shard that has a worker.
    pub(super) fn shard_of_worker(&self, worker: &WorkerId) -> Option<ShardId> {
        self.registry.borrow().get(worker).map(|member| member.shard)
    }
}

fn member(conn: ClientId, register: &Register, kind: WorkerType) -> Member {
    let shard = match Requester::of(conn) {
        Requester::Shard(shard) => shard,
        Requester::Control | Requester::Transfer => 0,
    };
    Member {
        worker: register.worker,
        conn,
        kind,
        pid: u32::try_from(register.pid).unwrap_or(0),
        process: None,
        ip_address: register.ip_address.clone(),
        port: 0,
        key: WorkerKey { language: register.language as u8, ..WorkerKey::default() },
        job: JobId::NIL,
        start: None,
        shard,
        lease: None,
        actor: None,
        doomed: None,
        granted_at_ms: 0,
        broke_in: None,
    }
}
