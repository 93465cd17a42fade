//! Watches the node's memory and says which workers to end before the kernel chooses for itself.
//!
//! Limits as in Ray 2.60: `memory_usage_threshold`, `min_memory_free_bytes`, `memory_monitor_refresh_ms`,
//! `max_kill_memory_buffer_bytes`, `idle_worker_killing_memory_threshold_bytes`, `worker_killing_policy_by_group`,
//! `count_swap_in_memory_monitor`. After a choice nothing more is chosen until those workers are gone, however often
//! memory is looked at.

pub mod policy;
pub mod usage;

use std::time::{Duration, Instant};

use self::policy::{choose, Candidate, Policy, Victim};
use self::usage::{NodeMemory, UsageReader};

/// Share of all memory that is freed beyond what is needed, so that the next byte does not cost another worker.
const KILL_BUFFER_SHARE: f64 = 0.05;
/// How often a lasting trouble is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
const GIB: f64 = (1u64 << 30) as f64;

/// Limits of the memory monitor; names of Ray's settings in the fields' documentation.
#[derive(Clone, Copy, Debug)]
pub struct MemorySettings {
    /// `memory_usage_threshold`: share of all memory, 0 to 1.
    pub usage_threshold: f64,
    /// `min_memory_free_bytes`; `None` for its -1.
    pub min_free_bytes: Option<u64>,
    /// `memory_monitor_refresh_ms`; zero turns the monitor off.
    pub refresh: Duration,
    /// `max_kill_memory_buffer_bytes`.
    pub max_kill_buffer_bytes: u64,
    /// `idle_worker_killing_memory_threshold_bytes`.
    pub idle_threshold_bytes: u64,
    /// By `worker_killing_policy_by_group`.
    pub policy: Policy,
    /// `count_swap_in_memory_monitor`.
    pub count_swap: bool,
}

/// A setting that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("memory_usage_threshold is {0}, expected a share of all memory from 0 to 1")]
pub struct BadThreshold(pub f64);

impl MemorySettings {
    /// Refuses a threshold outside 0..=1, as the stock raylet does.
    ///
    /// # Errors
    /// [`BadThreshold`].
    pub fn check(&self) -> Result<(), BadThreshold> {
        match (0.0..=1.0).contains(&self.usage_threshold) {
            true => Ok(()),
            false => Err(BadThreshold(self.usage_threshold)),
        }
    }

    /// Bytes in use above which workers are ended: the share of all memory, or what leaves `min_memory_free_bytes`,
    /// whichever is more.
    pub fn threshold_bytes(&self, total_bytes: u64) -> u64 {
        let share = (total_bytes as f64 * self.usage_threshold) as u64;
        let absolute = self.min_free_bytes.map_or(0, |free| total_bytes.saturating_sub(free));
        share.max(absolute)
    }

    fn kill_buffer_bytes(&self, total_bytes: u64) -> u64 {
        ((total_bytes as f64 * KILL_BUFFER_SHARE) as u64).min(self.max_kill_buffer_bytes)
    }
}

/// Too much memory is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// The node's memory.
    pub memory: NodeMemory,
    /// What it exceeds, in bytes.
    pub threshold_bytes: u64,
    /// What is to be freed, in bytes.
    pub to_free_bytes: u64,
}

impl Pressure {
    /// The text that owners, the GCS and the log get, in the stock raylet's words where tools look for them.
    /// `victims` is one line per worker ended.
    pub fn report(&self, node_ip: &str, node_id: &str, victims: &[String]) -> String {
        let gb = |bytes: u64| bytes as f64 / GIB;
        let NodeMemory { used_bytes, total_bytes } = self.memory;
        let share = used_bytes as f64 / total_bytes.max(1) as f64;
        format!(
            "{count} worker(s) were killed due to the node running low on memory. Memory on the node (IP: {node_ip}, \
             ID: {node_id}) was {used:.2}GB used / {total:.2}GB limit ({share:.6}). OOM kill reason: memory usage \
             {used_bytes}B exceeded the threshold of {threshold}B ({percent:.1}% of the limit). Ray killed {count} \
             worker(s) based on the killing policy: [{list}]. To see more information about memory usage on this node, \
             use `ray logs raylet.out -ip {node_ip}`. Consider giving the node more memory, or running fewer tasks at a \
             time by requesting more CPUs per task. To adjust the kill threshold, set the environment variable \
             `RAY_memory_usage_threshold` when starting Ray. To disable worker killing, set the environment variable \
             `RAY_memory_monitor_refresh_ms` to zero.",
            count = victims.len(),
            used = gb(used_bytes),
            total = gb(total_bytes),
            threshold = self.threshold_bytes,
            percent = self.threshold_bytes as f64 * 100.0 / total_bytes.max(1) as f64,
            list = victims.join(", "),
        )
    }
}

/// The monitor: looks, and remembers whom it has condemned.
pub struct MemoryMonitor {
    settings: MemorySettings,
    reader: UsageReader,
    condemned: Vec<u32>,
    last_log: Option<Instant>,
}

impl MemoryMonitor {
    /// A monitor of this machine.
    ///
    /// # Errors
    /// [`BadThreshold`].
    pub fn new(settings: MemorySettings) -> Result<Self, BadThreshold> {
        Self::with_reader(settings, UsageReader::new(settings.count_swap))
    }

    /// A monitor of what `reader` reads.
    ///
    /// # Errors
    /// [`BadThreshold`].
    pub fn with_reader(settings: MemorySettings, reader: UsageReader) -> Result<Self, BadThreshold> {
        settings.check()?;
        Ok(Self { settings, reader, condemned: Vec::new(), last_log: None })
    }

    /// Looks at the node's memory now.
    pub fn pressure(&mut self) -> Option<Pressure> {
        let memory = match self.reader.read() {
            Ok(memory) => memory,
            Err(error) => {
                self.log_sometimes(|| tracing::error!(%error, "memory pressure can't be seen"));
                return None;
            }
        };
        // Read again each time: a container's limit may change while it runs.
        let threshold_bytes = self.settings.threshold_bytes(memory.total_bytes);
        let excess_bytes = memory.used_bytes.checked_sub(threshold_bytes).filter(|excess| *excess > 0)?;
        let to_free_bytes = excess_bytes.saturating_add(self.settings.kill_buffer_bytes(memory.total_bytes));
        Some(Pressure { memory, threshold_bytes, to_free_bytes })
    }

    /// True as long as one chosen before is alive, which `alive` tells of a process id.
    pub fn waits(&mut self, alive: impl Fn(u32) -> bool) -> bool {
        self.condemned.retain(|pid| alive(*pid));
        let waiting = self.condemned.len();
        if waiting > 0 {
            self.log_sometimes(|| tracing::info!(waiting, "still waiting for workers to end and free memory"));
        }
        waiting > 0
    }

    /// Chooses workers to end. Nobody, as long as one chosen before is alive, which `alive` tells of a process id.
    pub fn choose(
        &mut self,
        pressure: &Pressure,
        candidates: &[Candidate],
        alive: impl Fn(u32) -> bool,
    ) -> Vec<Victim> {
        if self.waits(alive) {
            return Vec::new();
        }
        let MemorySettings { policy, idle_threshold_bytes, .. } = self.settings;
        let victims = choose(policy, candidates, pressure.to_free_bytes, idle_threshold_bytes);
        self.condemned.extend(victims.iter().map(|victim| candidates[victim.index].pid));
        if victims.is_empty() {
            self.log_sometimes(|| {
                tracing::warn!(
                    "memory usage is high, but no worker was found that could be killed: other processes of Ray, such as \
                     drivers and agents, or processes outside of Ray may be using most of the memory"
                );
            });
        }
        victims
    }

    /// Looks every `memory_monitor_refresh_ms` and calls `on_pressure` while there is pressure. Returns at once where the
    /// monitor is turned off, else never.
    pub async fn run(mut self, mut on_pressure: impl FnMut(&mut MemoryMonitor, Pressure)) {
        if self.settings.refresh.is_zero() {
            tracing::info!("memory monitor disabled (memory_monitor_refresh_ms is 0)");
            return;
        }
        let mut ticks = tokio::time::interval(self.settings.refresh);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(pressure) = self.pressure() {
                on_pressure(&mut self, pressure);
            }
        }
    }

    fn log_sometimes(&mut self, log: impl FnOnce()) {
        let now = Instant::now();
        if self.last_log.is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL) {
            self.last_log = Some(now);
            log();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;

    use super::*;

    fn settings() -> MemorySettings {
        MemorySettings {
            usage_threshold: 0.95,
            min_free_bytes: None,
            refresh: Duration::from_millis(5),
            max_kill_buffer_bytes: 3 << 30,
            idle_threshold_bytes: 1 << 30,
            policy: Policy::ByTime,
            count_swap: false,
        }
    }

    /// A machine with 1,000,000 KiB of which so many are available.
    fn machine(available_kib: u64) -> (tempfile::TempDir, UsageReader) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("meminfo"), format!("MemTotal: 1000000 kB\nMemAvailable: {available_kib} kB\n"))
            .unwrap();
        let reader = UsageReader::with_roots(dir.path(), dir.path(), false);
        (dir, reader)
    }

    fn worker(pid: u32) -> Candidate {
        Candidate { pid, used_bytes: 30_000 << 10, lease: None, has_worked: true }
    }

    #[test]
    fn the_threshold_is_the_larger_of_share_and_absolute() {
        let mut settings = settings();
        assert_eq!(settings.threshold_bytes(1000), 950);
        settings.min_free_bytes = Some(10);
        assert_eq!(settings.threshold_bytes(1000), 990);
        settings.min_free_bytes = Some(500);
        assert_eq!(settings.threshold_bytes(1000), 950);
        for bad in [-0.1, 1.1, f64::NAN] {
            settings.usage_threshold = bad;
            assert!(settings.check().is_err());
        }
    }

    #[test]
    fn pressure_begins_above_the_threshold_and_asks_for_a_buffer() {
        let look = |available_kib| {
            let (_dir, reader) = machine(available_kib);
            MemoryMonitor::with_reader(settings(), reader).unwrap().pressure()
        };
        assert_eq!(look(50_000), None);
        let pressure = look(40_000).unwrap();
        assert_eq!(pressure.to_free_bytes, (10_000 + 50_000) << 10);
        let (_dir, reader) = machine(0);
        let capped = MemorySettings { max_kill_buffer_bytes: 1024, ..settings() };
        let pressure = MemoryMonitor::with_reader(capped, reader).unwrap().pressure().unwrap();
        assert_eq!(pressure.to_free_bytes, (50_000 << 10) + 1024);
    }

    #[test]
    fn nobody_is_chosen_while_the_last_choice_lives() {
        let (_dir, reader) = machine(40_000);
        let mut monitor = MemoryMonitor::with_reader(settings(), reader).unwrap();
        let pressure = monitor.pressure().unwrap();
        let workers = [worker(11), worker(12), worker(13)];
        assert_eq!(monitor.choose(&pressure, &workers, |_| true).len(), 2, "30,000 KiB each of 60,000");
        assert_eq!(monitor.choose(&pressure, &workers, |pid| pid == 12), []);
        assert_eq!(monitor.choose(&pressure, &workers[2..], |_| false).len(), 1);
    }

    #[test]
    fn the_loop_calls_while_there_is_pressure_and_ends_when_turned_off() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (dir, reader) = machine(900_000);
        let monitor = MemoryMonitor::with_reader(settings(), reader.clone()).unwrap();
        let calls = RefCell::new(0);
        runtime.block_on(async {
            let run = monitor.run(|_, _| *calls.borrow_mut() += 1);
            let script = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert_eq!(*calls.borrow(), 0);
                fs::write(dir.path().join("meminfo"), "MemTotal: 1000 kB\nMemAvailable: 1 kB\n").unwrap();
                while *calls.borrow() < 3 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let both = async {
                tokio::select! { () = run => panic!("it ended"), () = script => {} }
            };
            tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
            let off = MemorySettings { refresh: Duration::ZERO, ..settings() };
            MemoryMonitor::with_reader(off, reader).unwrap().run(|_, _| panic!("turned off")).await;
        });
    }

    #[test]
    fn the_report_says_who_why_and_what_to_do() {
        let (_dir, reader) = machine(40_000);
        let mut monitor = MemoryMonitor::with_reader(settings(), reader).unwrap();
        let report = monitor.pressure().unwrap().report("192.0.2.2", "ab12", &["pid=7".into(), "pid=8".into()]);
        for part in [
            "2 worker(s) were killed due to the node running low on memory",
            "(IP: 192.0.2.2, ID: ab12) was 0.92GB used / 0.95GB limit (0.960000)",
            "[pid=7, pid=8]",
            "RAY_memory_usage_threshold",
        ] {
            assert!(report.contains(part), "{part} in {report}");
        }
    }
}
