//! Traces, metrics and logs, the same for every Fechatter process.
//!
//! [`init`] sets everything up once. With `OTEL_EXPORTER_OTLP_ENDPOINT` set, all three signals are exported by OTLP over
//! HTTP from threads of their own; without it nothing is exported, no span is recorded, and trace ids still exist, for
//! logs and for `traceparent`. Metrics are kept either way: [`metrics::render`] is `/metrics`.

pub mod buckets;
pub mod instruments;
pub mod log_filter;
pub mod messaging;
pub mod metrics;
pub mod pool;
pub mod process;
pub mod propagation;

mod exporters;
mod exporting;
mod log_line;
mod settings;
mod statements;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::{OpenTelemetryTracingBridge, TracingSpanAttributes};
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::Deserialize;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use exporting::Outage;
use log_line::{CARRIED, LogLines};
use settings::Settings;
use statements::Statements;

/// `[log]`: what goes to standard output.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// One JSON object a line, or text for people.
    pub format: LogFormat,
    /// What is written, in the syntax of `RUST_LOG`, for example `info,sqlx=warn`; the admin port's `/log` changes it.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".to_owned(),
        }
    }
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// Why telemetry could not be set up; a reason not to start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("log.filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("telemetry was set up twice in one process")]
    Twice,
    #[error("metrics: {0}")]
    Metrics(#[from] opentelemetry_sdk::error::OTelSdkError),
}

/// Keeps telemetry alive; [`Telemetry::shutdown`] flushes it.
#[derive(Debug)]
pub struct Telemetry {
    tracers: SdkTracerProvider,
    loggers: Option<SdkLoggerProvider>,
    meters: SdkMeterProvider,
}

/// Noise that is never worth a span, and that exporting itself would cause.
const QUIET: &str = "hyper=off,hyper_util=off,h2=off,tonic=off,tower=off,reqwest=off,rustls=off,sqlx=off,\
                     opentelemetry=off,async_nats=off,tantivy=off,meilisearch_sdk=off,observability::exporting=off";
/// Libraries that say the same thing at each attempt of a repeated one, or warn of each answer that says "there is no such
/// thing"; the filter of the configuration can undo it.
const REPETITIVE: &str = "opentelemetry=error,async_nats=warn,meilisearch_sdk=off";

/// What goes to standard output by a filter of the configuration.
fn stdout_filter(filter: &str) -> String {
    format!("{REPETITIVE},{filter}")
}

/// Has records of the `log` crate that nobody wants end where they begin: Pingora makes a dozen per request. What is recorded
/// by `tracing`, statements among it, is not concerned. The subscriber sets a bound of its own, that of its most curious layer,
/// at its start and when a filter changes; so this comes after it.
fn bound_log(filter: &str) {
    let most_verbose = EnvFilter::try_new(stdout_filter(filter)).ok();
    let most_verbose = most_verbose.and_then(|filter| filter.max_level_hint());
    let bound = most_verbose.and_then(|level| level.to_string().parse().ok());
    log::set_max_level(bound.unwrap_or(log::LevelFilter::Trace));
}

/// Sets up telemetry for the process `service`. An exporter that cannot be built is said once and left out: no request
/// waits for a collector, and no process fails for want of one.
pub fn init(service: &'static str, log: &LogConfig) -> Result<Telemetry, InitError> {
    let (to_stdout, of_stdout) = log_filter::reloadable(&log.filter, stdout_filter)?;
    let to_stdout = to_stdout
        // An outage of the collector is said once, by `exporting`, not at each export of each signal.
        .and(filter_fn(|metadata| {
            !(metadata.target().starts_with("opentelemetry") && metadata.name().contains("Export"))
        }));
    let settings = Settings::from_environment(service);
    let (mut complaints, outage) = (Vec::new(), Outage::default());

    let meters = exporters::meters(&settings, &outage, &mut complaints)?;
    opentelemetry::global::set_meter_provider(meters.clone());
    propagation::install();
    let tracers = exporters::tracers(&settings, &outage, &mut complaints);
    opentelemetry::global::set_tracer_provider(tracers.clone());
    let loggers = exporters::loggers(&settings, &outage, &mut complaints);

    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracers.tracer(service))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(EnvFilter::try_new(format!("info,{QUIET}"))?);
    let mut filters = vec![of_stdout];
    let exported_logs = match &loggers {
        Some(loggers) => {
            let bridge = OpenTelemetryTracingBridge::builder(loggers)
                .with_tracing_span_attributes(TracingSpanAttributes::allowlist(CARRIED))
                .build();
            // What nobody wants in the log is not exported either, nor even built.
            let text = |filter: &str| format!("{filter},{QUIET}");
            let (filter, of_export) = log_filter::reloadable(&log.filter, text)?;
            filters.push(of_export);
            Some(bridge.with_filter(filter))
        }
        None => None,
    };
    tracing_subscriber::registry()
        // Spans first: its context is then active when a line asks for the trace id.
        .with(spans)
        .with(LogLines::new(service, log.format).with_filter(to_stdout))
        .with(exported_logs)
        .with(Statements::new(service).with_filter(Targets::new().with_target(statements::TARGET, LevelFilter::TRACE)))
        .try_init()
        .map_err(|_| InitError::Twice)?;
    log_filter::install(&log.filter, filters, bound_log);
    process::register();
    for complaint in complaints {
        tracing::warn!(complaint, "telemetry is not exported");
    }
    Ok(Telemetry {
        tracers,
        loggers,
        meters,
    })
}

impl Telemetry {
    /// Sends what is pending, all signals at once, and gives up after a few seconds. Call it outside of a runtime.
    pub fn shutdown(self) {
        let Self {
            tracers,
            loggers,
            meters,
        } = self;
        let timeout = exporters::FLUSH_TIMEOUT;
        let (done, flushed) = std::sync::mpsc::channel();
        let flush = |work: Box<dyn FnOnce() + Send>| {
            let done = done.clone();
            std::thread::spawn(move || {
                work();
                // Nobody waits any more when time is up.
                let _ = done.send(());
            });
        };
        // A collector that is away at the end has been complained about while there was a log.
        flush(Box::new(move || drop(tracers.shutdown_with_timeout(timeout))));
        flush(Box::new(move || {
            drop(loggers.map(|loggers| loggers.shutdown_with_timeout(timeout)));
        }));
        // The reader of the metrics has a bound of its own, which is longer than ours.
        flush(Box::new(move || drop(meters.shutdown_with_timeout(timeout))));
        let deadline = std::time::Instant::now() + timeout;
        for _ in 0..3 {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if flushed.recv_timeout(left).is_err() {
                return;
            }
        }
    }
}
