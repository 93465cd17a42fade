//! Metrics as they are reported: a [`Batch`] of gauges, counts and histograms with labels, and the [`Counter`]s and
//! [`Buckets`] in which the control thread counts what happens between two reports.
//!
//! Counts travel as what was added since the last report that arrived, because the reader (the dashboard agent of Ray
//! 2.60) adds up whatever it is sent.

use std::cell::Cell;

use crate::ray::proto::otlp::{
    AggregationTemporality, AnyValue, ExportMetricsServiceRequest, Gauge, Histogram, HistogramDataPoint,
    InstrumentationScope, KeyValue, Metric, MetricData, NumberDataPoint, Resource, ResourceMetrics, ScopeMetrics, Sum,
};

/// Name of the instrumentation scope, as the stock raylet has it.
const SCOPE: &str = "ray";

/// A count of events, on one thread.
#[derive(Debug, Default)]
pub struct Counter {
    total: Cell<u64>,
    reported: Cell<u64>,
}

impl Counter {
    /// Counts one event.
    pub fn add_one(&self) {
        self.total.set(self.total.get() + 1);
    }

    /// All events so far.
    pub fn total(&self) -> u64 {
        self.total.get()
    }

    /// Events since the last report.
    pub fn unreported(&self) -> u64 {
        self.total.get() - self.reported.get()
    }

    /// So many events were reported.
    pub fn note_reported(&self, events: u64) {
        self.reported.set((self.reported.get() + events).min(self.total.get()));
    }
}

/// What was added to some [`Buckets`] since their last report.
#[derive(Clone, Debug, PartialEq)]
pub struct Added<const N: usize> {
    /// Values in each bucket.
    pub counts: [u64; N],
    /// Sum of the values.
    pub sum: f64,
}

/// A histogram with fixed bounds, on one thread. `N` is one more than there are bounds.
#[derive(Debug)]
pub struct Buckets<const N: usize> {
    counts: [Cell<u64>; N],
    sum: Cell<f64>,
}

impl<const N: usize> Default for Buckets<N> {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| Cell::new(0)), sum: Cell::new(0.0) }
    }
}

impl<const N: usize> Buckets<N> {
    /// Counts a value; `bounds` are the upper ends of all buckets but the last.
    pub fn record(&self, bounds: &[f64], value: f64) {
        debug_assert_eq!(bounds.len() + 1, N, "a bucket for each bound and one above them");
        let bucket = bounds.partition_point(|bound| *bound < value).min(N - 1);
        let count = &self.counts[bucket];
        count.set(count.get() + 1);
        self.sum.set(self.sum.get() + value);
    }

    /// What was added since the last report.
    pub fn unreported(&self) -> Added<N> {
        Added { counts: std::array::from_fn(|i| self.counts[i].get()), sum: self.sum.get() }
    }

    /// That much was reported.
    pub fn note_reported(&self, added: &Added<N>) {
        for (cell, reported) in self.counts.iter().zip(added.counts) {
            cell.set(cell.get().saturating_sub(reported));
        }
        self.sum.set(self.sum.get() - added.sum);
    }
}

/// Labels of a value: key and text.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Metrics of one report.
pub struct Batch {
    common: Vec<KeyValue>,
    metrics: Vec<Metric>,
    since_ns: u64,
    now_ns: u64,
}

impl Batch {
    /// An empty report. Every value gets the labels `common`; times are in nanoseconds since 1970, `since_ns` that of the
    /// report before.
    pub fn new(common: Labels<'_>, since_ns: u64, now_ns: u64) -> Self {
        Self { common: common.iter().map(label).collect(), metrics: Vec::with_capacity(64), since_ns, now_ns }
    }

    /// Values as they are now.
    pub fn gauge<'a>(&mut self, name: &str, description: &str, values: impl IntoIterator<Item = (Labels<'a>, f64)>) {
        let data_points = self.numbers(values);
        self.push(name, description, MetricData::Gauge(Gauge { data_points }));
    }

    /// Events since the last report: a Prometheus counter.
    pub fn count<'a>(&mut self, name: &str, description: &str, values: impl IntoIterator<Item = (Labels<'a>, u64)>) {
        self.sum(name, description, values, true);
    }

    /// The same, as a value that the reader does not take for one that only grows.
    pub fn change<'a>(&mut self, name: &str, description: &str, values: impl IntoIterator<Item = (Labels<'a>, u64)>) {
        self.sum(name, description, values, false);
    }

    fn sum<'a>(
        &mut self,
        name: &str,
        description: &str,
        values: impl IntoIterator<Item = (Labels<'a>, u64)>,
        is_monotonic: bool,
    ) {
        let data_points = self.numbers(values.into_iter().map(|(labels, events)| (labels, events as f64)));
        let aggregation_temporality = AggregationTemporality::Delta as i32;
        self.push(name, description, MetricData::Sum(Sum { data_points, aggregation_temporality, is_monotonic }));
    }

    /// What was added to histograms with these bounds since the last report.
    pub fn histogram<'a, const N: usize>(
        &mut self,
        name: &str,
        description: &str,
        bounds: &[f64],
        values: impl IntoIterator<Item = (Labels<'a>, Added<N>)>,
    ) {
        let points = values.into_iter().map(|(labels, added)| HistogramDataPoint {
            start_time_unix_nano: self.since_ns,
            time_unix_nano: self.now_ns,
            count: added.counts.iter().sum(),
            sum: Some(added.sum),
            bucket_counts: added.counts.to_vec(),
            explicit_bounds: bounds.to_vec(),
            attributes: self.attributes(labels),
        });
        let data_points = points.collect();
        let aggregation_temporality = AggregationTemporality::Delta as i32;
        self.push(name, description, MetricData::Histogram(Histogram { data_points, aggregation_temporality }));
    }

    /// The report as a request to the agent.
    pub fn into_request(self, service: &str) -> ExportMetricsServiceRequest {
        let resource = Resource { attributes: vec![label(&("service.name", service))] };
        let scope = InstrumentationScope { name: SCOPE.to_owned() };
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(resource),
                scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics: self.metrics }],
            }],
        }
    }

    fn numbers<'a>(&self, values: impl IntoIterator<Item = (Labels<'a>, f64)>) -> Vec<NumberDataPoint> {
        let point = |(labels, value)| NumberDataPoint {
            start_time_unix_nano: self.since_ns,
            time_unix_nano: self.now_ns,
            as_double: Some(value),
            attributes: self.attributes(labels),
        };
        values.into_iter().map(point).collect()
    }

    fn attributes(&self, labels: Labels<'_>) -> Vec<KeyValue> {
        self.common.iter().cloned().chain(labels.iter().map(label)).collect()
    }

    /// A metric without a value is left out: the reader would make a name of it that has nothing to show.
    fn push(&mut self, name: &str, description: &str, data: MetricData) {
        let empty = match &data {
            MetricData::Gauge(gauge) => gauge.data_points.is_empty(),
            MetricData::Sum(sum) => sum.data_points.is_empty(),
            MetricData::Histogram(histogram) => histogram.data_points.is_empty(),
        };
        if !empty {
            self.metrics.push(Metric { name: name.to_owned(), description: description.to_owned(), data: Some(data) });
        }
    }
}

fn label((key, text): &(&str, &str)) -> KeyValue {
    KeyValue { key: (*key).to_owned(), value: Some(AnyValue { string_value: Some((*text).to_owned()) }) }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    const BOUNDS: [f64; 2] = [1.0, 10.0];

    #[test]
    fn a_counter_tells_each_event_once_and_again_when_a_report_is_lost() {
        let counter = Counter::default();
        (0..5).for_each(|_| counter.add_one());
        let lost = counter.unreported();
        counter.add_one();
        assert_eq!((lost, counter.unreported()), (5, 6), "the first report was lost");
        counter.note_reported(6);
        assert_eq!((counter.unreported(), counter.total()), (0, 6));
        counter.note_reported(9);
        counter.add_one();
        assert_eq!(counter.unreported(), 1, "never more than there was");
    }

    #[test]
    fn buckets_hold_what_is_at_most_their_bound() {
        let buckets = Buckets::<3>::default();
        for value in [0.0, 1.0, 1.5, 10.0, 10.5, 1e9] {
            buckets.record(&BOUNDS, value);
        }
        let first = buckets.unreported();
        assert_eq!(first.counts, [2, 2, 2]);
        buckets.record(&BOUNDS, 5.0);
        buckets.note_reported(&first);
        assert_eq!(buckets.unreported(), Added { counts: [0, 1, 0], sum: 5.0 });
    }

    #[test]
    fn a_batch_encodes_as_the_protocol_has_it() {
        let mut batch = Batch::new(&[("Component", "raylet")], 1, 2);
        batch.gauge("g", "a gauge", [(&[("State", "USED")][..], 2.5)]);
        batch.count("c", "", [(&[][..], 7)]);
        batch.change("s", "", [(&[][..], 7)]);
        batch.histogram("h", "", &BOUNDS, [(&[][..], Added { counts: [1, 0, 2], sum: 40.0 })]);
        batch.gauge("nothing", "", std::iter::empty::<(Labels<'_>, f64)>());
        let bytes = batch.into_request("raylet").encode_to_vec();
        let read = ExportMetricsServiceRequest::decode(&bytes[..]).unwrap();
        let metrics = &read.resource_metrics[0].scope_metrics[0].metrics;
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["g", "c", "s", "h"]);
        let Some(MetricData::Gauge(gauge)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        assert_eq!(gauge.data_points[0].as_double, Some(2.5));
        let labels: Vec<&str> = gauge.data_points[0].attributes.iter().map(|label| label.key.as_str()).collect();
        assert_eq!(labels, ["Component", "State"]);
        let monotonic = |metric: &Metric| match &metric.data {
            Some(MetricData::Sum(sum)) => (sum.is_monotonic, sum.aggregation_temporality),
            other => panic!("{other:?}"),
        };
        assert_eq!((monotonic(&metrics[1]), monotonic(&metrics[2])), ((true, 1), (false, 1)));
        let Some(MetricData::Histogram(histogram)) = &metrics[3].data else { panic!("{:?}", metrics[3]) };
        let point = &histogram.data_points[0];
        assert_eq!(
            (point.count, &point.bucket_counts[..], &point.explicit_bounds[..]),
            (3, &[1, 0, 2][..], &BOUNDS[..])
        );
    }
}
