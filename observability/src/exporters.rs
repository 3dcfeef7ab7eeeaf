//! The three providers. Exporters run on threads of their own and use the blocking HTTP client: asynchronous clients
//! panic there for want of a runtime. Queues are bounded (2,048 records); what does not fit is dropped and counted by
//! the SDK's own `otel.sdk.processor.*` metrics; what fails on the way by `otel.sdk.exporter.*` (`exporting`).

use std::time::Duration;

use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter, WithHttpConfig};
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::logs::{BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{BatchSpanProcessor, Sampler, SdkTracerProvider};

use crate::exporting::{Counted, Outage};
use crate::settings::Settings;

/// How long each signal may take to flush at the end.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Spans: recorded by ratio when exported, else only numbered.
pub(crate) fn tracers(settings: &Settings, outage: &Outage, complaints: &mut Vec<String>) -> SdkTracerProvider {
    let builder = SdkTracerProvider::builder().with_resource(settings.resource.clone());
    if !settings.traces {
        return builder.with_sampler(Sampler::AlwaysOff).build();
    }
    match SpanExporter::builder()
        .with_http()
        .with_compression(opentelemetry_otlp::Compression::Gzip)
        .build()
    {
        Ok(exporter) => builder
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                settings.ratio,
            ))))
            .with_span_processor(BatchSpanProcessor::builder(Counted::new(exporter, "traces", outage)).build())
            .build(),
        Err(error) => {
            complaints.push(format!("traces: {error}"));
            builder.with_sampler(Sampler::AlwaysOff).build()
        }
    }
}

/// Logs, only when exported.
pub(crate) fn loggers(settings: &Settings, outage: &Outage, complaints: &mut Vec<String>) -> Option<SdkLoggerProvider> {
    if !settings.logs {
        return None;
    }
    match LogExporter::builder()
        .with_http()
        .with_compression(opentelemetry_otlp::Compression::Gzip)
        .build()
    {
        Ok(exporter) => Some(
            SdkLoggerProvider::builder()
                .with_resource(settings.resource.clone())
                .with_log_processor(BatchLogProcessor::builder(Counted::new(exporter, "logs", outage)).build())
                .build(),
        ),
        Err(error) => {
            complaints.push(format!("logs: {error}"));
            None
        }
    }
}

/// Metrics: always for `/metrics`, and pushed when exported.
pub(crate) fn meters(
    settings: &Settings,
    outage: &Outage,
    complaints: &mut Vec<String>,
) -> Result<SdkMeterProvider, OTelSdkError> {
    let prometheus = opentelemetry_prometheus::exporter()
        .with_registry(crate::metrics::registry().clone())
        .build()?;
    let mut builder = SdkMeterProvider::builder()
        .with_resource(settings.resource.clone())
        .with_reader(prometheus);
    if settings.metrics {
        match MetricExporter::builder()
            .with_http()
            .with_compression(opentelemetry_otlp::Compression::Gzip)
            .build()
        {
            Ok(exporter) => {
                let counted = Counted::new(exporter, "metrics", outage);
                builder = builder.with_reader(PeriodicReader::builder(counted).build());
            }
            Err(error) => complaints.push(format!("metrics: {error}")),
        }
    }
    Ok(builder.build())
}
