//! What the indexer measures. Labels are bounded sets.

use std::time::Duration;

use fechatter_core::events::STREAM;
use observability::instruments::Instruments;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

use crate::consumer::CONSUMER;

/// The instruments.
#[derive(Debug, Clone)]
pub struct Metrics {
    batch_events: Histogram<u64>,
    lag: Histogram<f64>,
    process_duration: Histogram<f64>,
    consumed: Counter<u64>,
    redelivered: Counter<u64>,
    dead_letters: Counter<u64>,
    changes: Counter<u64>,
    pending: Gauge<u64>,
    ack_pending: Gauge<u64>,
    documents: Gauge<u64>,
    search_duration: Histogram<f64>,
    dropped_hits: Counter<u64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let instruments = Instruments::of("indexer");
        let duration = observability::buckets::HTTP_DURATION_BUCKETS;
        let metrics = Self {
            batch_events: instruments
                .meter()
                .u64_histogram("indexer.batch.events")
                .with_unit("{event}")
                .with_description("Events indexed together.")
                .with_boundaries([1., 2., 5., 10., 20., 50., 100., 200., 500., 1_000.].to_vec())
                .build(),
            lag: instruments.seconds(
                "indexer.lag",
                "Time from an event to the moment its effect is findable.",
                &[
                    0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1., 2., 5., 10., 30., 60., 300.,
                ],
            ),
            process_duration: instruments.seconds(
                "messaging.process.duration",
                "Time to process a batch, acknowledgements included.",
                &duration,
            ),
            consumed: instruments.counter(
                "messaging.client.consumed.messages",
                "{message}",
                "Messages delivered to this process.",
            ),
            redelivered: instruments.counter(
                "indexer.redeliveries",
                "{message}",
                "Messages delivered more than once.",
            ),
            dead_letters: instruments.counter(
                "indexer.dead_letters",
                "{message}",
                "Events given up and kept as dead letters.",
            ),
            changes: instruments.counter(
                "indexer.changes",
                "{change}",
                "Changes applied to the index, by outcome.",
            ),
            pending: instruments.gauge(
                "indexer.consumer.pending",
                "{message}",
                "Events waiting to be delivered.",
            ),
            ack_pending: instruments.gauge(
                "indexer.consumer.ack_pending",
                "{message}",
                "Events delivered and not acknowledged yet.",
            ),
            documents: instruments.gauge("indexer.documents", "{document}", "Findable messages."),
            search_duration: instruments.seconds(
                "indexer.search.duration",
                "Time of a search, by part: scope, engine or check.",
                &duration,
            ),
            dropped_hits: instruments.counter(
                "indexer.search.dropped_hits",
                "{hit}",
                "Hits of the engine that PostgreSQL did not confirm.",
            ),
        };
        metrics.begin_from_zero();
        metrics
    }
}

impl Metrics {
    fn begin_from_zero(&self) {
        for counter in [&self.redelivered, &self.dropped_hits] {
            Instruments::from_zero(counter, "", &[]);
        }
        Instruments::from_zero(&self.dead_letters, "reason", &["unreadable", "refused", "exhausted"]);
        Instruments::from_zero(&self.changes, "outcome", &["written", "deleted", "stale"]);
    }

    fn messaging() -> [KeyValue; 4] {
        [
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.name", "process"),
            KeyValue::new("messaging.destination.name", STREAM),
            KeyValue::new("messaging.consumer.group.name", CONSUMER),
        ]
    }

    /// A batch arrived; `redelivered` of its events for another time.
    pub fn batch_received(&self, events: u64, redelivered: u64) {
        self.batch_events.record(events, &[]);
        self.consumed.add(events, &Self::messaging());
        if redelivered > 0 {
            self.redelivered.add(redelivered, &[]);
        }
    }

    /// A batch was processed to its end.
    pub fn batch_processed(&self, duration: Duration) {
        self.process_duration.record(duration.as_secs_f64(), &Self::messaging());
    }

    /// An event's effect became findable.
    pub fn findable_after(&self, lag: Duration) {
        self.lag.record(lag.as_secs_f64(), &[]);
    }

    /// Changes of a commit.
    pub fn applied(&self, applied: &crate::engine::Applied) {
        for (outcome, count) in [
            ("written", applied.written),
            ("deleted", applied.deleted),
            ("stale", applied.stale),
        ] {
            if count > 0 {
                self.changes.add(count as u64, &[KeyValue::new("outcome", outcome)]);
            }
        }
    }

    /// An event was given up.
    pub fn dead_letter(&self, reason: &'static str) {
        self.dead_letters.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// How far behind the consumer is.
    pub fn backlog(&self, pending: u64, ack_pending: u64) {
        self.pending.record(pending, &[]);
        self.ack_pending.record(ack_pending, &[]);
    }

    /// How many messages are findable.
    pub fn documents(&self, documents: u64) {
        self.documents.record(documents, &[]);
    }

    /// A part of a search took so long.
    pub fn search_part(&self, part: &'static str, duration: Duration) {
        self.search_duration
            .record(duration.as_secs_f64(), &[KeyValue::new("part", part)]);
    }

    /// The engine found messages that the searcher may not see, or that are gone.
    pub fn hits_dropped(&self, hits: u64) {
        if hits > 0 {
            self.dropped_hits.add(hits, &[]);
        }
    }
}
