//! What is exported. Labels are bounded sets.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use observability::buckets::HTTP_DURATION_BUCKETS;
use observability::instruments::Instruments;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

use crate::round::Step;

/// The instruments.
#[derive(Debug)]
pub struct Metrics {
    rounds: Counter<u64>,
    failures: Counter<u64>,
    step_duration: Histogram<f64>,
    last_success: Gauge<u64>,
}

impl Metrics {
    /// Makes them, at their beginnings: a probe that never succeeded did so in 1970, which is long ago enough to alert.
    pub fn new() -> Self {
        let instruments = Instruments::of("probe");
        let metrics = Self {
            rounds: instruments.counter("probe.rounds", "{round}", "Rounds, by outcome."),
            failures: instruments.counter("probe.failures", "{round}", "Rounds that failed, by step."),
            step_duration: instruments.seconds(
                "probe.step.duration",
                "Time of a step that succeeded; receive and find begin with the sending of the message.",
                &HTTP_DURATION_BUCKETS,
            ),
            last_success: instruments.gauge(
                "probe.last_success",
                "s",
                "When a round last succeeded, in Unix time; 0: not since the start.",
            ),
        };
        Instruments::from_zero(&metrics.rounds, "outcome", &["passed", "failed"]);
        Instruments::from_zero(&metrics.failures, "step", &Step::ALL.map(Step::name));
        metrics.last_success.record(0, &[]);
        metrics
    }

    /// A step succeeded.
    pub fn step(&self, step: Step, took: Duration) {
        self.step_duration
            .record(took.as_secs_f64(), &[KeyValue::new("step", step.name())]);
    }

    /// A round is over.
    pub fn round(&self, failed_at: Option<Step>) {
        let outcome = if failed_at.is_some() { "failed" } else { "passed" };
        self.rounds.add(1, &[KeyValue::new("outcome", outcome)]);
        if let Some(step) = failed_at {
            self.failures.add(1, &[KeyValue::new("step", step.name())]);
        } else {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.last_success.record(now.as_secs(), &[]);
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
