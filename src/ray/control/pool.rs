//! Worker processes that a shard asked for: environment, command line, start, registration in time.
//!
//! A worker that nothing tells apart from others (Python, no runtime environment, no options of its own) is forked by the
//! node's nursery, and then for no job yet: it learns its job with its first task, as prestarted workers do.

use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_shard::ids::{JobId, LeaseId, WorkerId};
use raylet_shard::sched::{SchedEvent, StartFailure, StartToken, WorkerKey};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use super::{unix_ms, Control};
use crate::ray::proto;
use crate::ray::runtime_env::Built;
use crate::workers::command::{Language, WorkerKind, WorkerStart};
use crate::workers::process::{ProcessExit, ProcessKey, SpawnSpec, Started};

/// How long a worker waits to be started for a job that this node has not heard of yet.
const JOB_CONFIG_WAIT: Duration = Duration::from_secs(5);

/// A process that has not registered yet.
#[derive(Debug)]
pub struct Starting {
    /// The start it answers.
    pub start: StartToken,
    /// The kind of worker.
    pub key: WorkerKey,
    /// The job it is started for; none for one that learns its job later.
    pub job: Option<JobId>,
    /// Its process.
    pub process: ProcessKey,
    /// Its process id.
    pub pid: u32,
    /// When its process was started.
    pub since: Instant,
    /// Its place among those that start at the same time, given back when it has registered or ended.
    pub place: OwnedSemaphorePermit,
}

/// A worker that is being forked. Whoever waits for it goes on when this is dropped.
struct ForkAnnounced {
    control: Rc<Control>,
    worker: WorkerId,
    settled: Rc<Semaphore>,
}

impl Drop for ForkAnnounced {
    fn drop(&mut self) {
        self.control.forking.borrow_mut().remove(&self.worker);
        self.settled.close();
    }
}

impl Control {
    /// Starts a worker, and tells its shard if nothing comes of it.
    pub(super) fn start_worker(
        self: &Rc<Self>,
        start: StartToken,
        key: WorkerKey,
        job: Option<JobId>,
        lease: Option<LeaseId>,
    ) {
        let control = self.clone();
        tokio::task::spawn_local(async move {
            let span = tracing::debug_span!("worker.start", shard = start.shard(), pid = tracing::field::Empty);
            if let Err(why) = control.bring_up(start, key, job, lease).instrument(span).await {
                tracing::warn!(?start, ?why, "a worker did not start");
                control.sched(start.shard(), SchedEvent::StartFailed { start, why });
            }
        });
    }

    async fn bring_up(
        self: &Rc<Self>,
        start: StartToken,
        key: WorkerKey,
        job: Option<JobId>,
        lease: Option<LeaseId>,
    ) -> Result<(), StartFailure> {
        let language = match proto::Language::try_from(i32::from(key.language)) {
            Ok(proto::Language::Python) => Language::Python,
            Ok(proto::Language::Java) => Language::Java,
            _ => Language::Cpp,
        };
        if let Some(job) = job {
            self.job_config(job).await?;
        }
        let environment = self.environment(key.runtime_env_hash, job, lease).await?;
        // Taken after the environment is built, which may take minutes and must hold up nobody else.
        let place = self.start_places.clone().acquire_owned().await.map_err(|_| StartFailure::NotRegistered)?;
        let options = self.classes.borrow().option_list(key.dynamic_options).to_vec();
        let worker = WorkerId(rand::random());
        let context = environment.as_ref().map_or("", Built::context);
        let start_of = |job: Option<JobId>| {
            let start = WorkerStart {
                language,
                kind: WorkerKind::Worker,
                worker_id: worker,
                job_id: job.unwrap_or_default(),
                runtime_env_hash: key.runtime_env_hash,
                serialized_runtime_env_context: context,
                dynamic_options: &options,
                launch_time_ms: unix_ms(),
            };
            let command = self.commands.build(&start).map_err(|e| StartFailure::RuntimeEnv(e.to_string().into()))?;
            Ok(SpawnSpec {
                command,
                own_group: self.ray_config.process_group_cleanup_enabled,
                oom_score_adjustment: Some(self.ray_config.worker_oom_score_adjustment),
                dies_with_node: true,
                ..SpawnSpec::default()
            })
        };
        let alike = key.runtime_env_hash == 0 && options.is_empty();
        // Forgotten at the end of this function, when the worker is in `starting`.
        let _announced = self.announce_fork(worker);
        let forked = if alike { self.nursery.fork(&start_of(None)?).await } else { None };
        let (started, job) = match forked {
            Some(started) => (started, None),
            None => (self.spawn(&start_of(job)?)?, job),
        };
        tracing::Span::current().record("pid", started.pid);
        tracing::info!(pid = started.pid, %worker, forked = forked.is_some(), "started a worker process");
        if let Some(pins) = &self.pins {
            pins.borrow_mut().started(worker, started.pid, start.shard());
        }
        if let Some(environment) = environment {
            environment.held_by(started.key);
        }
        let entry = Starting { start, key, job, process: started.key, pid: started.pid, since: Instant::now(), place };
        self.counters.processes_started.add_one();
        self.starting.borrow_mut().insert(worker, entry);
        self.watch_registration(worker);
        Ok(())
    }

    /// Holds back the registration of a worker that may run before this thread hears of its process.
    fn announce_fork(self: &Rc<Self>, worker: WorkerId) -> ForkAnnounced {
        let settled = Rc::new(Semaphore::new(0));
        self.forking.borrow_mut().insert(worker, settled.clone());
        ForkAnnounced { control: self.clone(), worker, settled }
    }

    fn spawn(&self, spec: &SpawnSpec) -> Result<Started, StartFailure> {
        self.processes.spawn(spec).map_err(|error| {
            tracing::error!(%error, "cannot start a worker process");
            StartFailure::NotRegistered
        })
    }

    /// A runtime environment, as the agent made it.
    async fn environment(
        &self,
        hash: i32,
        job: Option<JobId>,
        lease: Option<LeaseId>,
    ) -> Result<Option<Built>, StartFailure> {
        if hash == 0 {
            return Ok(None);
        }
        let of_lease = lease.and_then(|lease| self.leases.borrow().get(&lease)?.runtime_env.clone());
        let Some(info) = of_lease.or_else(|| self.jobs.borrow().environment(hash)) else {
            return Err(StartFailure::RuntimeEnv("the runtime environment of the request is not known".into()));
        };
        self.remember_env(hash, &info);
        let made = self.runtime_env.for_worker(job.unwrap_or_default(), &info).await;
        made.map(Some).map_err(|e| StartFailure::RuntimeEnv(e.to_string().into()))
    }

    /// Keeps an environment, so that a worker can be started in it ahead of a lease.
    pub(super) fn remember_env(&self, hash: i32, info: &proto::RuntimeEnvInfo) {
        self.jobs.borrow_mut().remember_environment(hash, info);
    }

    async fn job_config(&self, job: JobId) -> Result<(), StartFailure> {
        let deadline = tokio::time::Instant::now() + JOB_CONFIG_WAIT;
        while !self.jobs.borrow().is_known(&job) {
            let changed = self.jobs.borrow().changed();
            tokio::select! {
                () = changed.notified() => {}
                () = tokio::time::sleep_until(deadline) => {
                    self.counters.starts_without_job.add_one();
                    return Err(StartFailure::JobConfigMissing);
                }
            }
        }
        Ok(())
    }

    fn watch_registration(self: &Rc<Self>, worker: WorkerId) {
        let limit_s = self.ray_config.worker_register_timeout_seconds.max(1) as u64;
        let control = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_secs(limit_s)).await;
            if let Some(late) = control.starting.borrow_mut().remove(&worker) {
                tracing::warn!(
                    pid = late.pid,
                    limit_s,
                    "a worker did not register in time (worker_register_timeout_seconds) and is killed"
                );
                control.processes.kill(late.process);
                control.counters.starts_timed_out.add_one();
                control.sched(
                    late.start.shard(),
                    SchedEvent::StartFailed { start: late.start, why: StartFailure::NotRegistered },
                );
            }
        });
    }

    /// A process of the table ended.
    pub fn process_ended(self: &Rc<Self>, exit: &ProcessExit) {
        self.runtime_env.process_ended(exit.key);
        if self.io_start_ended(exit.key) {
            return tracing::warn!(pid = exit.pid, status = %exit.status, "an IO worker ended before it registered");
        }
        let unregistered = {
            let mut starting = self.starting.borrow_mut();
            let worker = starting.iter().find(|(_, s)| s.process == exit.key).map(|(worker, _)| *worker);
            worker.and_then(|worker| starting.remove(&worker))
        };
        if let Some(lost) = unregistered {
            tracing::warn!(pid = exit.pid, status = %exit.status, "a worker process ended before it registered");
            self.sched(
                lost.start.shard(),
                SchedEvent::StartFailed { start: lost.start, why: StartFailure::NotRegistered },
            );
            return;
        }
        self.member_process_ended(exit);
    }
}
