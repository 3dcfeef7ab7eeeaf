//! What becomes of exports: each is counted, and an outage of the collector is one line at its beginning and one at its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// Where `tracing` records of this module go; the exported logs leave them out, they would feed themselves.
pub(crate) const TARGET: &str = "observability::exporting";

/// Failed exports of the outage in hand, of all signals together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outage(Arc<AtomicU64>);

impl Outage {
    fn failed(&self, signal: &'static str, error: &OTelSdkError) {
        if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                target: TARGET,
                signal,
                %error,
                "the collector does not take our telemetry; it is dropped and counted until it does"
            );
        }
    }

    fn worked(&self) {
        let failures = self.0.swap(0, Ordering::Relaxed);
        if failures > 0 {
            tracing::info!(target: TARGET, failures, "the collector takes our telemetry again");
        }
    }
}

/// An exporter whose results are counted.
#[derive(Debug)]
pub(crate) struct Counted<E> {
    exporter: E,
    signal: &'static str,
    counter: OnceLock<Counter<u64>>,
    outage: Outage,
}

impl<E> Counted<E> {
    pub(crate) fn new(exporter: E, signal: &'static str, outage: &Outage) -> Self {
        Self {
            exporter,
            signal,
            counter: OnceLock::new(),
            outage: outage.clone(),
        }
    }

    /// The instrument of this signal; made late, when the meter provider is up.
    fn counter(&self) -> &Counter<u64> {
        self.counter.get_or_init(|| {
            let (name, unit) = match self.signal {
                "traces" => ("otel.sdk.exporter.span.exported", "{span}"),
                "logs" => ("otel.sdk.exporter.log.exported", "{log_record}"),
                _ => ("otel.sdk.exporter.metric.exported", "{metric}"),
            };
            global::meter("observability")
                .u64_counter(name)
                .with_unit(unit)
                .with_description("Records handed to the collector; with error.type, those that were lost on the way.")
                .build()
        })
    }

    fn count(&self, records: usize, result: &OTelSdkResult) {
        match result {
            Ok(()) => {
                self.counter().add(records as u64, &[]);
                self.outage.worked();
            }
            Err(error) => {
                let kind = match error {
                    OTelSdkError::Timeout(_) => "timeout",
                    OTelSdkError::AlreadyShutdown => "already_shutdown",
                    OTelSdkError::InternalFailure(_) => "failed",
                };
                self.counter().add(records as u64, &[KeyValue::new("error.type", kind)]);
                if !matches!(error, OTelSdkError::AlreadyShutdown) {
                    self.outage.failed(self.signal, error);
                }
            }
        }
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let records = batch.len();
        let result = self.exporter.export(batch).await;
        self.count(records, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Counted<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let records = batch.iter().count();
        let result = self.exporter.export(batch).await;
        self.count(records, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Counted<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        // Instruments, not their series: the SDK does not let us count those without walking all of them.
        let records = metrics.scope_metrics().map(|scope| scope.metrics().count()).sum();
        let result = self.exporter.export(metrics).await;
        self.count(records, &result);
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_counted_until_it_is_over() {
        let outage = Outage::default();
        let error = OTelSdkError::InternalFailure("refused".into());
        outage.failed("traces", &error);
        outage.failed("metrics", &error);
        assert_eq!(outage.0.load(Ordering::Relaxed), 2);
        outage.worked();
        assert_eq!(outage.0.load(Ordering::Relaxed), 0);
    }
}
