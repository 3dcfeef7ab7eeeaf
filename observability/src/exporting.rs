//! What becomes of exports: each is counted, and an outage of the collector is one line at its beginning and one at its end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

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

/// A signal has to work for this long before its outage is over: a collector that is full takes one export and refuses the
/// next.
const CALM: Duration = Duration::from_mins(1);

/// The outage in hand, of all signals together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outage(Arc<Mutex<Failing>>);

#[derive(Debug, Default)]
struct Failing {
    /// When each signal that fails did so last.
    signals: BTreeMap<&'static str, Instant>,
    exports: u64,
}

impl Failing {
    /// Notes a failure; true at the beginning of an outage.
    fn failed(&mut self, signal: &'static str, now: Instant) -> bool {
        let begins = self.signals.is_empty();
        self.signals.insert(signal, now);
        self.exports += 1;
        begins
    }

    /// Notes a success; the number of failed exports at the end of an outage.
    fn worked(&mut self, signal: &'static str, now: Instant) -> Option<u64> {
        let last = *self.signals.get(signal)?;
        if now.saturating_duration_since(last) < CALM {
            return None;
        }
        self.signals.remove(signal);
        self.signals.is_empty().then(|| std::mem::take(&mut self.exports))
    }
}

impl Outage {
    fn failed(&self, signal: &'static str, error: &OTelSdkError) {
        if self.lock().failed(signal, Instant::now()) {
            tracing::warn!(
                target: TARGET,
                signal,
                %error,
                "the collector does not take our telemetry; it is dropped and counted until it does"
            );
        }
    }

    fn worked(&self, signal: &'static str) {
        let over = self.lock().worked(signal, Instant::now());
        if let Some(failures) = over {
            tracing::info!(target: TARGET, failures, "the collector takes our telemetry again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Failing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
                self.outage.worked(self.signal);
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
    fn an_outage_is_said_once_however_the_signals_take_turns() {
        let (mut failing, start) = (Failing::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(failing.failed("logs", at(0)), "the beginning");
        for second in 1..100 {
            assert_eq!(failing.worked("traces", at(second)), None);
            assert_eq!(failing.worked("logs", at(second)), None);
            assert!(!failing.failed("logs", at(second)));
        }
        assert_eq!(failing.worked("logs", at(120)), None, "not calm yet");
        assert_eq!(failing.worked("logs", at(160)), Some(100));
        assert_eq!(failing.worked("logs", at(161)), None);
        assert!(failing.failed("traces", at(162)), "another one");
    }
}
