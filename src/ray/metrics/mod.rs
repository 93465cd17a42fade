//! Metrics of the node for the dashboard agent, which serves them to Prometheus as `ray_*`.
//!
//! As in Ray 2.60 they go by OpenTelemetry's protocol over gRPC to the agent's port, every `metrics_report_interval_ms`
//! (at least a second), unless `enable_metrics_collection` is off. While there is no agent that listens, nothing is
//! collected and nothing wakes up.

mod counters;
mod own;
pub mod stock;

use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tonic::Status;

pub use self::counters::{Losses, NodeCounters, Occupation, REGISTER_BOUNDS_MS};
use self::stock::SealedSizes;
use crate::bridge::CoreReport;
use crate::observe::metrics::{Added, Batch, Counter};
use crate::observe::status::NodeStatus;
use crate::ray::agents::{Agent, AgentState};
use crate::ray::control::Control;
use crate::ray::proto::otlp::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use crate::ray::rpc::client::Channel;
use crate::ray::rpc::core_worker::host_port;

/// The method that takes metrics (OpenTelemetry's collector service).
const EXPORT: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// Longest wait for the agent to take a report; the counts of one that it did not take go with the next.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often is looked whether the agent serves, until it does.
const AGENT_POLL: Duration = Duration::from_millis(500);

/// Shortest time between two reports, as in Ray 2.60.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Value of the label `Component`.
const COMPONENT: &str = "raylet";

/// The Ray version that the node is for: the value of the label `Version`.
const RAY_VERSION: &str = crate::attach::SUPPORTED_RAY_VERSIONS[0];

/// What one report is made from.
pub struct View<'a> {
    /// The control thread's state.
    control: &'a Control,
    /// Every core's account of itself.
    reports: &'a [CoreReport],
    /// The same, summed up and with the node's memory.
    status: &'a NodeStatus,
    /// How long a task of the control thread waited for its turn.
    lag: Duration,
}

/// Carried out once the agent has taken a report: what it has need not be sent again.
type Receipt = Box<dyn FnOnce(&Control)>;

/// The receipts of a report.
#[derive(Default)]
struct Receipts(Vec<Receipt>);

impl Receipts {
    /// The events that a counter has not told yet.
    fn counter(&mut self, control: &Control, of: fn(&NodeCounters) -> &Counter) -> u64 {
        let events = of(&control.counters).unreported();
        self.0.push(Box::new(move |control| of(&control.counters).note_reported(events)));
        events
    }

    fn push(&mut self, receipt: impl FnOnce(&Control) + 'static) {
        self.0.push(Box::new(receipt));
    }
}

/// Reports until the node ends. `status` makes the node's status from the reports of its cores.
pub async fn run<S, F>(control: Rc<Control>, status: S)
where
    S: Fn(Rc<Control>) -> F,
    F: Future<Output = (Vec<CoreReport>, NodeStatus)>,
{
    let Some(channel) = agent(&control).await else {
        return;
    };
    let interval = Duration::from_millis(control.ray_config.metrics_report_interval_ms).max(INTERVAL_MIN);
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut exporter =
        Exporter { last_ns: unix_ns(), sealed: SealedSizes::default(), told: own::Told::default(), failing: false };
    loop {
        ticks.tick().await;
        let lag = lag().await;
        let (reports, status) = status(control.clone()).await;
        let view = View { control: &control, reports: &reports, status: &status, lag };
        exporter.export(&channel, &view).await;
    }
}

/// A channel to the agent, once it serves. `None` where nobody wants metrics.
async fn agent(control: &Control) -> Option<Channel> {
    if !control.ray_config.enable_metrics_collection {
        tracing::info!("metrics are not collected (enable_metrics_collection)");
        return None;
    }
    // Whoever awaits an agent hurries its start; metrics are not worth that.
    while control.agents.state(Agent::Dashboard) == AgentState::Starting {
        tokio::time::sleep(AGENT_POLL).await;
    }
    if control.agents.state(Agent::Dashboard) != AgentState::Ready {
        return None;
    }
    let ports = control.agents.ports();
    if ports.metrics_agent <= 0 || ports.metrics_export < 0 {
        tracing::info!("the dashboard agent takes no metrics");
        return None;
    }
    let address = host_port(&control.flags.node_ip_address.to_string(), ports.metrics_agent);
    let channel = control.gcs.channel().to(&address);
    channel.inspect_err(|error| tracing::warn!(%error, "metrics are not reported")).ok()
}

/// How long a task that is ready waits for its turn.
async fn lag() -> Duration {
    let ready = Instant::now();
    tokio::task::yield_now().await;
    ready.elapsed()
}

struct Exporter {
    last_ns: u64,
    sealed: SealedSizes,
    told: own::Told,
    failing: bool,
}

impl Exporter {
    async fn export(&mut self, channel: &Channel, view: &View<'_>) {
        let now_ns = unix_ns();
        let (request, receipts, sealed, told) = self.request(view, now_ns);
        match send(channel, &request).await {
            Ok(()) => {
                for receipt in receipts.0 {
                    receipt(view.control);
                }
                self.last_ns = now_ns;
                self.sealed = sealed;
                self.told = told;
                self.failing = false;
            }
            Err(status) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%status, "the dashboard agent takes no metrics; what was counted goes with the next report");
                }
            }
        }
    }

    fn request(&self, view: &View<'_>, now_ns: u64) -> (ExportMetricsServiceRequest, Receipts, SealedSizes, own::Told) {
        let address = view.control.flags.node_ip_address.to_string();
        let session = view.control.flags.session_name.as_str();
        let common = [
            ("Component", COMPONENT),
            ("NodeAddress", address.as_str()),
            ("SessionName", session),
            ("Version", RAY_VERSION),
            // Every component of Ray sends it; only workers have one.
            ("WorkerId", ""),
        ];
        let mut batch = Batch::new(&common, self.last_ns, now_ns);
        let mut receipts = Receipts::default();
        stock::add(&mut batch, view, &mut receipts);
        let sealed = stock::add_sealed_sizes(&mut batch, view, &self.sealed);
        let latencies = view.control.recorder.borrow().snapshot();
        let told = own::add(&mut batch, view.status, view.reports, latencies, &self.told);
        (batch.into_request(COMPONENT), receipts, sealed, told)
    }
}

async fn send(channel: &Channel, request: &ExportMetricsServiceRequest) -> Result<(), Status> {
    channel.call::<_, ExportMetricsServiceResponse>(EXPORT, request, Some(EXPORT_TIMEOUT)).await?;
    Ok(())
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// Nothing was added.
fn is_empty<const N: usize>(added: &Added<N>) -> bool {
    added.counts.iter().all(|count| *count == 0)
}
