//! Jobs: their configuration, and what ends with them.

use std::collections::hash_map::Entry;
use std::rc::Rc;

use raylet_shard::ids::JobId;
use raylet_shard::sched::SchedEvent;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::Control;
use crate::ray::proto;

/// Most runtime environments remembered for workers that are started ahead of a lease.
const MAX_ENVIRONMENTS: usize = 10_000;

/// What the node knows of jobs. Dead jobs stay, because detached actors still start workers for them.
#[derive(Default)]
pub struct Jobs {
    known: FxHashMap<JobId, Job>,
    environments: FxHashMap<i32, proto::RuntimeEnvInfo>,
    changed: Rc<Notify>,
}

struct Job {
    config: proto::JobConfig,
    finished: bool,
}

impl Jobs {
    /// True once the job's configuration is here.
    pub fn is_known(&self, job: &JobId) -> bool {
        self.known.contains_key(job)
    }

    /// The job's configuration.
    pub fn config(&self, job: &JobId) -> Option<&proto::JobConfig> {
        self.known.get(job).map(|job| &job.config)
    }

    /// Told when a job becomes known.
    pub fn changed(&self) -> Rc<Notify> {
        self.changed.clone()
    }

    /// A runtime environment by its hash.
    pub fn environment(&self, hash: i32) -> Option<proto::RuntimeEnvInfo> {
        self.environments.get(&hash).cloned()
    }

    /// Keeps a runtime environment. Past the limit new ones are not kept: then only leases bring theirs along.
    pub fn remember_environment(&mut self, hash: i32, info: &proto::RuntimeEnvInfo) {
        if hash != 0 && self.environments.len() < MAX_ENVIRONMENTS {
            self.environments.entry(hash).or_insert_with(|| info.clone());
        }
    }
}

impl Control {
    /// A job began, or was heard of again.
    pub(super) fn job_started(&self, job: JobId, config: proto::JobConfig) {
        let mut jobs = self.jobs.borrow_mut();
        if let Entry::Vacant(new) = jobs.known.entry(job) {
            self.runtime_env.job_started(job, &config);
            new.insert(Job { config, finished: false });
        }
        jobs.changed.notify_waiters();
    }

    /// News of a job from the GCS.
    pub fn job_changed(&self, data: proto::JobTableData) {
        let Some(job) = JobId::from_slice(&data.job_id) else {
            return;
        };
        let mut config = data.config.unwrap_or_default();
        if !data.is_dead {
            return self.job_started(job, config);
        }
        if let Some(config) = config.runtime_env_info.as_mut().and_then(|info| info.runtime_env_config.as_mut()) {
            // Workers of its detached actors may still come, but nothing is built ahead for a job that is over.
            config.eager_install = false;
        }
        self.job_started(job, config);
        self.job_finished(job);
    }

    /// A job is over: its workers go, except those below a detached actor.
    pub(super) fn job_finished(&self, job: JobId) {
        let first = match self.jobs.borrow_mut().known.get_mut(&job) {
            Some(job) => !std::mem::replace(&mut job.finished, true),
            None => false,
        };
        if first {
            tracing::info!(%job, "job finished");
            self.sched_all(SchedEvent::JobFinished { job });
            self.runtime_env.job_finished(job);
        }
    }
}
