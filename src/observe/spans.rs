//! Spans of the node, exported by OpenTelemetry's protocol (feature `otel`).
//!
//! On where `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` names a collector that takes gRPC; the other
//! variables of OpenTelemetry's SDK hold too. Spans are made on the control thread: calls that reach it, leases while they are
//! held, starts of workers, requests to the admin socket. What a core answers by itself is told by metrics.

use std::env;
use std::fmt;
use std::io;
use std::thread;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::trace::SdkTracerProvider;
use opentelemetry_sdk::Resource;
use tokio::sync::oneshot;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::Layer;

/// Variables that name a collector.
const ENDPOINT_VARS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
/// Name of the service where `OTEL_SERVICE_NAME` does not say.
const SERVICE: &str = "raylet-uring";
/// Longest wait for a collector at the end of the node.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

/// Why spans can't be exported.
#[derive(Debug, thiserror::Error)]
pub enum SpansError {
    /// The exporter refuses its settings.
    #[error("the settings in OTEL_EXPORTER_OTLP_*: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// No thread or runtime for it.
    #[error("no thread for the exporter: {0}")]
    Thread(#[from] io::Error),
}

/// Spans while they are exported, on threads of their own.
pub struct Spans {
    provider: SdkTracerProvider,
    /// The runtime of the connection ends when this is dropped.
    _runtime: oneshot::Sender<()>,
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spans")
    }
}

impl Spans {
    /// Sends what is left, within [`FINISH_TIMEOUT`].
    pub fn finish(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FINISH_TIMEOUT) {
            tracing::warn!(%error, "not all spans were exported");
        }
    }
}

/// What a subscriber hands spans to.
type SpanLayer<S> = Box<dyn Layer<S> + Send + Sync>;

/// Starts to export, where a collector is named.
///
/// # Errors
/// See [`SpansError`].
pub fn start<S>() -> Result<Option<(SpanLayer<S>, Spans)>, SpansError>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    if !ENDPOINT_VARS.iter().any(|name| env::var_os(name).is_some_and(|value| !value.is_empty())) {
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exporter = {
        let _inside = runtime.enter();
        SpanExporter::builder().with_tonic().build()?
    };
    let (stop, stopped) = oneshot::channel();
    // It ends with the process, or when `stop` is dropped.
    thread::Builder::new().name("otlp".to_owned()).spawn(move || {
        let _ = runtime.block_on(stopped);
    })?;
    let mut resource = Resource::builder();
    if env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(SERVICE);
    }
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let ours = FilterFn::new(|metadata| metadata.is_span() && metadata.target().starts_with("raylet_uring"))
        .with_max_level_hint(LevelFilter::DEBUG);
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(SERVICE)).with_filter(ours);
    Ok(Some((layer.boxed(), Spans { provider, _runtime: stop })))
}
