//! Latencies of a run, as percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest latency that is told apart; longer ones count as this long. 10 minutes, more than any run lasts.
const LONGEST_NS: u64 = 600 * 1_000_000_000;

/// Digits that a latency keeps.
const DIGITS: u8 = 3;

/// Latencies seen so far.
#[derive(Debug, Clone)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        // The bounds are constants that the histogram takes: the lowest is at least 1, the highest at least twice it.
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("constant bounds");
        Self { histogram }
    }
}

/// Percentiles, in microseconds. All zero where nothing was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many latencies.
    pub count: u64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Longest.
    pub max_us: f64,
    /// Mean.
    pub mean_us: f64,
    /// How many took more than ten medians: starved, where the requests are alike.
    pub over_ten_medians: u64,
}

impl Latencies {
    /// Records one.
    pub fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.histogram.saturating_record(ns.max(1));
    }

    /// Takes over those of another run of the same kind.
    pub fn add(&mut self, other: &Self) {
        // Both have the same constant bounds, so nothing can be out of range.
        self.histogram += &other.histogram;
    }

    /// What was recorded.
    pub fn percentiles(&self) -> Percentiles {
        let at = |quantile| self.histogram.value_at_quantile(quantile) as f64 / 1e3;
        let count = self.histogram.len();
        let median_ns = self.histogram.value_at_quantile(0.5);
        let over_ten_medians = match count {
            0 => 0,
            _ => {
                let limit_ns = median_ns.saturating_mul(10).min(LONGEST_NS);
                count - self.histogram.count_between(0, limit_ns)
            }
        };
        Percentiles {
            count,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.histogram.max() as f64 / 1e3,
            mean_us: self.histogram.mean() / 1e3,
            over_ten_medians,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::default();
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        let seen = latencies.percentiles();
        assert_eq!(seen.count, 1000);
        assert!((seen.p50_us - 500.0).abs() < 2.0, "{seen:?}");
        assert!((seen.p99_us - 990.0).abs() < 2.0, "{seen:?}");
        assert!((seen.mean_us - 500.5).abs() < 2.0, "{seen:?}");
        assert_eq!(seen.over_ten_medians, 0);
    }

    #[test]
    fn starved_requests_are_counted() {
        let mut latencies = Latencies::default();
        for _ in 0..1000 {
            latencies.record(Duration::from_micros(100));
        }
        for _ in 0..7 {
            latencies.record(Duration::from_millis(500));
        }
        assert_eq!(latencies.percentiles().over_ten_medians, 7);
    }

    #[test]
    fn nothing_recorded_gives_zeros_and_two_runs_add_up() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentiles().p99_us, 0.0);
        assert_eq!(latencies.percentiles().over_ten_medians, 0);
        let mut other = Latencies::default();
        other.record(Duration::from_secs(3600));
        latencies.add(&other);
        assert_eq!(latencies.percentiles().count, 1);
        assert!(latencies.percentiles().max_us >= 599e6);
    }
}
