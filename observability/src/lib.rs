//! Traces, metrics and logs, the same for every Fechatter process.
//!
//! [`init`] sets everything up once. With `OTEL_EXPORTER_OTLP_ENDPOINT` set, all three signals are exported by OTLP over
//! HTTP from threads of their own; without it nothing is exported, no span is recorded, and trace ids still exist, for
//! logs and for `traceparent`. Metrics are kept either way: [`metrics::render`] is `/metrics`.

pub mod buckets;
pub mod instruments;
pub mod messaging;
pub mod metrics;
pub mod process;
pub mod propagation;

mod exporters;
mod log_line;
mod settings;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::Deserialize;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use log_line::LogLines;
use settings::Settings;

/// `[log]`: what goes to standard output.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// One JSON object a line, or text for people.
    pub format: LogFormat,
    /// What is written, in the syntax of `RUST_LOG`, for example `info,sqlx=warn`.
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
                     opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off,async_nats=off,tantivy=off";

/// Sets up telemetry for the process `service`. An exporter that cannot be built is said once and left out: no request
/// waits for a collector, and no process fails for want of one.
pub fn init(service: &'static str, log: &LogConfig) -> Result<Telemetry, InitError> {
    let stdout_filter = EnvFilter::try_new(&log.filter)?;
    let settings = Settings::from_environment(service);
    let mut complaints = Vec::new();

    let meters = exporters::meters(&settings, &mut complaints)?;
    opentelemetry::global::set_meter_provider(meters.clone());
    propagation::install();
    let tracers = exporters::tracers(&settings, &mut complaints);
    opentelemetry::global::set_tracer_provider(tracers.clone());
    let loggers = exporters::loggers(&settings, &mut complaints);

    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracers.tracer(service))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(EnvFilter::try_new(format!("info,{QUIET}"))?);
    let exported_logs = match &loggers {
        Some(loggers) => {
            Some(OpenTelemetryTracingBridge::new(loggers).with_filter(EnvFilter::try_new(format!("info,{QUIET}"))?))
        }
        None => None,
    };
    tracing_subscriber::registry()
        // Spans first: its context is then active when a line asks for the trace id.
        .with(spans)
        .with(LogLines::new(service, log.format).with_filter(stdout_filter))
        .with(exported_logs)
        .try_init()
        .map_err(|_| InitError::Twice)?;
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
        let flushing = [
            std::thread::spawn(move || tracers.shutdown_with_timeout(timeout).is_ok()),
            std::thread::spawn(move || loggers.is_none_or(|loggers| loggers.shutdown_with_timeout(timeout).is_ok())),
            std::thread::spawn(move || meters.shutdown_with_timeout(timeout).is_ok()),
        ];
        for thread in flushing {
            // A collector that is away at the end has been complained about while there was a log.
            let _ = thread.join();
        }
    }
}
