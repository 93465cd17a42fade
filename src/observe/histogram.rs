//! Latencies by operation.
//!
//! Each thread that carries out operations owns a [`Recorder`] and writes into it without a lock, an atomic or an
//! allocation. When somebody asks, the owner takes a [`Snapshot`] (a copy) and sends it to whoever merges and prints.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::metrics::Added;
use super::status::OperationStatus;

/// Latencies above this are counted as this: nothing that is measured here takes longer and still matters.
pub const LATENCY_MAX: Duration = Duration::from_secs(100);

/// Two significant digits: 1 % wide buckets, 35 KiB for an operation, of which only the touched pages exist.
const SIGNIFICANT_DIGITS: u8 = 2;

macro_rules! operations {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// What is measured.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Operation {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Operation {
            /// All operations, in the order in which they are shown.
            pub const ALL: &[Operation] = &[$(Operation::$variant,)*];

            /// The name in the status.
            pub const fn name(self) -> &'static str {
                match self { $(Operation::$variant => $name,)* }
            }
        }
    };
}

operations! {
    /// A create request until its reply, waiting for room included.
    PlasmaCreate = "plasma.create",
    /// A seal request until its reply.
    PlasmaSeal = "plasma.seal",
    /// A get request whose objects were all there, until its reply.
    PlasmaGet = "plasma.get",
    /// A get request that waited for an object, until its reply.
    PlasmaGetWaited = "plasma.get.waited",
    /// Every other plasma request until its reply.
    PlasmaOther = "plasma.other",
    /// A lease request that was granted, until its reply.
    LeaseGrant = "lease.grant",
    /// A lease given back, until its reply.
    LeaseReturn = "lease.return",
    /// A process started for a worker, until the worker registered.
    WorkerStart = "worker.start",
    /// A registration of a worker or driver, until its reply.
    WorkerRegister = "worker.register",
    /// A wait of a worker or driver (ray.wait), until its reply.
    ObjectWait = "object.wait",
    /// A pin request of an owner, until its reply.
    ObjectPin = "object.pin",
    /// A bundle prepared, until its reply.
    BundlePrepare = "bundle.prepare",
    /// A bundle committed, until its reply.
    BundleCommit = "bundle.commit",
    /// A call that a core passed on to the control thread, until the answer.
    ControlRoundTrip = "control.roundtrip",
}

/// The histograms of one thread.
#[derive(Debug, Clone)]
pub struct Recorder {
    histograms: Vec<Histogram<u64>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder { histograms: Operation::ALL.iter().map(|_| empty()).collect() }
    }
}

fn empty() -> Histogram<u64> {
    let max_ns = LATENCY_MAX.as_nanos() as u64;
    Histogram::new_with_bounds(1, max_ns, SIGNIFICANT_DIGITS).expect("constant bounds that the library takes")
}

impl Recorder {
    /// An empty recorder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one operation that took this long.
    pub fn record(&mut self, operation: Operation, latency: Duration) {
        let ns = latency.as_nanos().clamp(1, LATENCY_MAX.as_nanos()) as u64;
        self.histograms[operation as usize].saturating_record(ns);
    }

    /// Counts one operation that began at `start` and ends now.
    pub fn record_since(&mut self, operation: Operation, start: Instant) {
        self.record(operation, start.elapsed());
    }

    /// A copy of the operations that occurred, to send to the thread that merges.
    pub fn snapshot(&self) -> Snapshot {
        let occurred = Operation::ALL.iter().zip(&self.histograms).filter(|(_, histogram)| !histogram.is_empty());
        Snapshot { histograms: occurred.map(|(operation, histogram)| (*operation, histogram.clone())).collect() }
    }
}

/// A copy of a thread's histograms, or several merged.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// In the order of [`Operation::ALL`], only operations that occurred.
    histograms: Vec<(Operation, Histogram<u64>)>,
}

impl Snapshot {
    /// Adds another thread's counts.
    pub fn merge(&mut self, other: Snapshot) {
        for (operation, histogram) in other.histograms {
            match self.histograms.binary_search_by_key(&(operation as usize), |(o, _)| *o as usize) {
                Ok(at) => {
                    let sum = &mut self.histograms[at].1;
                    sum.add(histogram).expect("all histograms have the same bounds");
                }
                Err(at) => self.histograms.insert(at, (operation, histogram)),
            }
        }
    }

    /// Operations that occurred, with how many took at most each of these microseconds (the last: longer ones), and the sum
    /// of all in microseconds.
    pub fn buckets<const N: usize>(&self, bounds_us: &[f64]) -> Vec<(&'static str, Added<N>)> {
        let of = |(operation, histogram): &(Operation, Histogram<u64>)| {
            let mut below = 0;
            let mut counts = [0; N];
            for (count, bound_us) in counts.iter_mut().zip(bounds_us) {
                let up_to = histogram.count_between(0, (bound_us * 1000.0) as u64);
                *count = up_to.saturating_sub(below);
                below = up_to;
            }
            if let Some(last) = counts.last_mut() {
                *last = histogram.len().saturating_sub(below);
            }
            (operation.name(), Added { counts, sum: histogram.mean() * histogram.len() as f64 / 1000.0 })
        };
        self.histograms.iter().map(of).collect()
    }

    /// The percentiles for the status.
    pub fn operations(&self) -> Vec<OperationStatus> {
        self.histograms.iter().map(|(operation, histogram)| status(*operation, histogram)).collect()
    }
}

fn status(operation: Operation, histogram: &Histogram<u64>) -> OperationStatus {
    // The library answers with the upper end of a bucket, which may lie above the greatest value that was counted.
    let us = |ns: u64| ns.min(histogram.max()) as f64 / 1000.0;
    OperationStatus {
        name: operation.name().to_owned(),
        count: histogram.len(),
        p50_us: us(histogram.value_at_quantile(0.5)),
        p99_us: us(histogram.value_at_quantile(0.99)),
        p999_us: us(histogram.value_at_quantile(0.999)),
        max_us: us(histogram.max()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn micros(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn percentiles_of_known_values() {
        let mut recorder = Recorder::new();
        for us in 1..=1000 {
            recorder.record(Operation::PlasmaCreate, micros(us));
        }
        let operations = recorder.snapshot().operations();
        assert_eq!(operations.len(), 1, "operations that never occurred are left out");
        let create = &operations[0];
        assert_eq!((create.name.as_str(), create.count), ("plasma.create", 1000));
        for (got, want) in
            [(create.p50_us, 500.0), (create.p99_us, 990.0), (create.p999_us, 999.0), (create.max_us, 1000.0)]
        {
            assert!((got - want).abs() <= want * 0.011, "{got} for {want}");
        }
    }

    #[test]
    fn buckets_count_each_value_once() {
        let mut recorder = Recorder::new();
        for us in [1, 9, 10, 11, 500, 2_000_000] {
            recorder.record(Operation::PlasmaGet, micros(us));
        }
        let buckets = recorder.snapshot().buckets::<4>(&[1.0, 10.0, 1000.0]);
        let (name, added) = &buckets[0];
        // A bucket of the histogram is up to 1 % wide, and belongs where it begins.
        assert_eq!((*name, added.counts), ("plasma.get", [1, 2, 2, 1]));
        assert!((added.sum - 2_000_531.0).abs() < 20_000.0, "{}", added.sum);
    }

    #[test]
    fn merging_is_counting_in_one() {
        let (mut one, mut two, mut both) = (Recorder::new(), Recorder::new(), Recorder::new());
        for us in 0..2000 {
            let operation = if us % 3 == 0 { Operation::LeaseGrant } else { Operation::PlasmaGet };
            if us % 2 == 0 { &mut one } else { &mut two }.record(operation, micros(us));
            both.record(operation, micros(us));
        }
        two.record(Operation::PlasmaSeal, micros(7));
        both.record(Operation::PlasmaSeal, micros(7));
        let mut merged = Snapshot::default();
        merged.merge(two.snapshot());
        merged.merge(one.snapshot());
        assert_eq!(merged.operations(), both.snapshot().operations());
        assert_eq!(merged.operations().len(), 3);
    }

    #[test]
    fn extremes_are_counted_at_the_bounds() {
        let mut recorder = Recorder::new();
        recorder.record(Operation::WorkerStart, Duration::ZERO);
        recorder.record(Operation::WorkerStart, Duration::from_secs(3600));
        let operations = recorder.snapshot().operations();
        assert_eq!(operations[0].count, 2);
        let max_us = LATENCY_MAX.as_micros() as f64;
        assert!((operations[0].max_us - max_us).abs() < max_us * 0.01, "{}", operations[0].max_us);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = Operation::ALL.iter().map(|o| o.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Operation::ALL.len());
        assert!(Operation::ALL.iter().enumerate().all(|(i, o)| *o as usize == i));
    }

    proptest! {
        #[test]
        fn percentiles_rise_and_stay_within_what_was_counted(ns in proptest::collection::vec(1u64..10_000_000_000, 1..200)) {
            let mut recorder = Recorder::new();
            ns.iter().for_each(|ns| recorder.record(Operation::ObjectPin, Duration::from_nanos(*ns)));
            let got = &recorder.snapshot().operations()[0];
            let max_us = *ns.iter().max().unwrap() as f64 / 1000.0;
            prop_assert!(got.p50_us <= got.p99_us && got.p99_us <= got.p999_us && got.p999_us <= got.max_us);
            prop_assert!((got.max_us - max_us).abs() <= max_us * 0.011);
        }
    }
}
