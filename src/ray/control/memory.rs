//! Memory pressure: whom the monitor may choose from, and how those that it chose end.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::leases::Cause;
use super::Control;
use crate::config::ray::RayConfig;
use crate::ray::memory_monitor::policy::{Candidate, CandidateLease, Policy};
use crate::ray::memory_monitor::usage::process_used_bytes;
use crate::ray::memory_monitor::{BadThreshold, MemoryMonitor, MemorySettings, Pressure};
use crate::ray::metrics::Occupation;
use crate::ray::proto::{self, ErrorType, WorkerExitType};
use crate::ray::registry::Member;

const MIB: u64 = 1 << 20;

impl Control {
    /// Watches the node's memory until the node ends.
    ///
    /// # Errors
    /// A `memory_usage_threshold` that is no share.
    pub fn watch_memory(self: &Rc<Self>) -> Result<(), BadThreshold> {
        let monitor = MemoryMonitor::new(memory_settings(&self.ray_config))?;
        let control = self.clone();
        tokio::task::spawn_local(monitor.run(move |monitor, pressure| control.relieve(monitor, &pressure)));
        Ok(())
    }

    fn relieve(self: &Rc<Self>, monitor: &mut MemoryMonitor, pressure: &Pressure) {
        // To read what processes use takes milliseconds for each; it is not done while the last choice takes effect.
        if monitor.waits(is_there) {
            return;
        }
        let (members, candidates) = self.memory_candidates();
        let victims = monitor.choose(pressure, &candidates, is_there);
        if victims.is_empty() {
            return;
        }
        let lines: Vec<String> = victims
            .iter()
            .map(|victim| {
                let used_mib = candidates[victim.index].used_bytes / MIB;
                let retry = if victim.should_retry { "is tried again" } else { "is not tried again" };
                format!("({}; uses {used_mib} MiB, {retry})", members[victim.index])
            })
            .collect();
        let report = pressure.report(&self.flags.node_ip_address.to_string(), &self.node_id.to_string(), &lines);
        tracing::error!(report, "memory pressure");
        for victim in victims {
            self.end_for_memory(&members[victim.index], victim.should_retry, &report);
        }
    }

    /// Workers that may be ended, and what the choice goes by. Drivers are nobody's to end.
    fn memory_candidates(&self) -> (Vec<Member>, Vec<Candidate>) {
        let (registry, leases) = (self.registry.borrow(), self.leases.borrow());
        let workers = registry.workers().filter(|member| member.doomed.is_none());
        let seen = workers.filter_map(|member| {
            let lease = member.lease.and_then(|lease| leases.get(&lease));
            let candidate = Candidate {
                pid: member.pid,
                // A process that is gone frees nothing.
                used_bytes: process_used_bytes(member.pid)?,
                lease: lease.map(|lease| CandidateLease {
                    granted_at_ns: member.granted_at_ms * 1_000_000,
                    retriable: lease.retriable,
                    owner: lease.parent_task,
                }),
                has_worked: member.granted_at_ms != 0,
            };
            Some((member.clone(), candidate))
        });
        seen.unzip()
    }

    fn end_for_memory(self: &Rc<Self>, member: &Member, should_retry: bool, report: &str) {
        let name = {
            let mut leases = self.leases.borrow_mut();
            let name = member.lease.and_then(|lease| leases.get(&lease)).map(|lease| lease.name.clone());
            if let Some(lease) = member.lease {
                // The owner asks for the cause as soon as its connection to the worker breaks.
                let ttl = Duration::from_millis(self.ray_config.task_failure_entry_ttl_ms);
                leases.set_cause(lease, cause(report, should_retry), ttl);
            }
            name
        };
        self.counters.evictions.add(Occupation::of(member), name.unwrap_or_default());
        self.destroy(&member.worker, WorkerExitType::NodeOutOfMemory, report.to_owned(), true);
    }
}

fn cause(report: &str, should_retry: bool) -> Cause {
    Cause {
        error: proto::RayErrorInfo {
            error: None,
            error_message: report.to_owned(),
            error_type: ErrorType::OutOfMemory as i32,
        },
        fail_immediately: !should_retry,
    }
}

fn is_there(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

fn memory_settings(config: &RayConfig) -> MemorySettings {
    MemorySettings {
        usage_threshold: config.memory_usage_threshold,
        // Negative: the threshold alone decides.
        min_free_bytes: u64::try_from(config.min_memory_free_bytes).ok(),
        refresh: Duration::from_millis(config.memory_monitor_refresh_ms),
        max_kill_buffer_bytes: u64::try_from(config.max_kill_memory_buffer_bytes).unwrap_or(0),
        idle_threshold_bytes: u64::try_from(config.idle_worker_killing_memory_threshold_bytes).unwrap_or(u64::MAX),
        policy: if config.worker_killing_policy_by_group { Policy::ByGroup } else { Policy::ByTime },
        count_swap: config.count_swap_in_memory_monitor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_ray_are_taken_as_they_are_meant() {
        let settings = memory_settings(&RayConfig::default());
        assert_eq!((settings.usage_threshold, settings.min_free_bytes, settings.policy), (0.95, None, Policy::ByTime));
        assert_eq!(settings.refresh, Duration::from_millis(250));
        let config = RayConfig {
            min_memory_free_bytes: 5,
            worker_killing_policy_by_group: true,
            idle_worker_killing_memory_threshold_bytes: -1,
            ..RayConfig::default()
        };
        let settings = memory_settings(&config);
        assert_eq!((settings.min_free_bytes, settings.policy), (Some(5), Policy::ByGroup));
        assert_eq!(settings.idle_threshold_bytes, u64::MAX, "a negative threshold is never reached");
    }

    #[test]
    fn the_owner_is_told_whether_to_try_again() {
        assert!(cause("why", false).fail_immediately);
        let retried = cause("why", true);
        assert!(!retried.fail_immediately);
        assert_eq!((retried.error.error_type, retried.error.error_message.as_str()), (22, "why"));
    }

    #[test]
    fn this_process_is_there_and_an_impossible_one_is_not() {
        assert!(is_there(std::process::id()));
        assert!(!is_there(u32::MAX));
    }
}
