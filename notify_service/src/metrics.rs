//! What this process measures. Labels are bounded sets.

use std::time::Duration;

use observability::instruments::Instruments;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, UpDownCounter};

use crate::connection::End;

/// Where the events of a backlog came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Ring,
    Stream,
}

impl Source {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Stream => "stream",
        }
    }
}

/// The instruments.
#[derive(Debug, Clone)]
pub struct Metrics {
    streams: UpDownCounter<i64>,
    connects: Counter<u64>,
    ends: Counter<u64>,
    lifetime: Histogram<f64>,
    deliveries: Counter<u64>,
    latency: Histogram<f64>,
    replays: Counter<u64>,
    replayed: Counter<u64>,
    gaps: Counter<u64>,
    slow: Counter<u64>,
    ephemeral: Counter<u64>,
    consumed: Counter<u64>,
    dropped: Counter<u64>,
    dead_letters: Counter<u64>,
    consumer_starts: Counter<u64>,
    lag: Gauge<u64>,
    ring_bytes: Gauge<u64>,
    ring_events: Gauge<u64>,
    known_users: Gauge<u64>,
    loads: Counter<u64>,
    tickets: Counter<u64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let instruments = Instruments::of("notify_service");
        let metrics = Self {
            streams: instruments
                .meter()
                .i64_up_down_counter("notify.streams")
                .with_unit("{stream}")
                .with_description("Live streams.")
                .build(),
            connects: instruments.counter("notify.connects", "{stream}", "Streams opened, by how they began."),
            ends: instruments.counter("notify.stream.ends", "{stream}", "Streams that ended, by reason."),
            lifetime: instruments.seconds(
                "notify.stream.lifetime",
                "Life of a stream.",
                &observability::buckets::STREAM_LIFETIME_BUCKETS,
            ),
            deliveries: instruments.counter("notify.deliveries", "{event}", "Live events put into streams."),
            latency: instruments.seconds(
                "notify.delivery.latency",
                "Time from an event to its being written to a stream, live events only.",
                &observability::buckets::DELIVERY_BUCKETS,
            ),
            replays: instruments.counter(
                "notify.replays",
                "{stream}",
                "Streams resumed, by where the backlog came from.",
            ),
            replayed: instruments.counter("notify.replayed", "{event}", "Events of backlogs put into streams."),
            gaps: instruments.counter("notify.gaps", "{stream}", "Clients told to reload, by reason."),
            slow: instruments.counter(
                "notify.slow_closes",
                "{stream}",
                "Streams ended because the client did not read.",
            ),
            ephemeral: instruments.counter("notify.ephemeral", "{event}", "Typing and presence put into streams."),
            consumed: instruments.counter(
                "messaging.client.consumed.messages",
                "{message}",
                "Messages delivered to this process.",
            ),
            dropped: instruments.counter("notify.dropped", "{event}", "Events not passed on, by reason."),
            dead_letters: instruments.counter("notify.dead_letters", "{event}", "Events that could not be read."),
            consumer_starts: instruments.counter(
                "notify.consumer.starts",
                "{start}",
                "Times the consumer was made, by reason.",
            ),
            lag: instruments.gauge(
                "notify.consumer.lag",
                "{event}",
                "Events in the stream not processed yet.",
            ),
            ring_bytes: instruments.gauge("notify.ring.size", "By", "Memory of the ring."),
            ring_events: instruments.gauge("notify.ring.events", "{event}", "Events in the ring."),
            known_users: instruments.gauge("notify.known_users", "{user}", "Users whose chats are held."),
            loads: instruments.counter(
                "notify.membership.loads",
                "{user}",
                "Users whose chats were loaded from PostgreSQL.",
            ),
            tickets: instruments.counter("notify.tickets", "{ticket}", "Tickets made, used and refused."),
        };
        metrics.begin_from_zero();
        metrics
    }
}

impl Metrics {
    fn begin_from_zero(&self) {
        self.streams.add(0, &[]);
        for counter in [&self.deliveries, &self.slow, &self.dead_letters, &self.loads] {
            Instruments::from_zero(counter, "", &[]);
        }
        Instruments::from_zero(&self.connects, "beginning", &["ready", "resumed", "gap"]);
        Instruments::from_zero(
            &self.ends,
            "reason",
            &["client", "slow", "expiring", "revoked", "draining"],
        );
        for counter in [&self.replays, &self.replayed] {
            Instruments::from_zero(counter, "source", &[Source::Ring.as_str(), Source::Stream.as_str()]);
        }
        let reasons = ["too_many", "unknown_cursor", "history_changed", "events_lost"];
        Instruments::from_zero(&self.gaps, "reason", &reasons);
        Instruments::from_zero(&self.dropped, "reason", &["copy", "other_history", "seen_before"]);
        Instruments::from_zero(&self.ephemeral, "kind", &["typing"]);
        Instruments::from_zero(&self.tickets, "outcome", &["issued"]);
    }

    pub fn opened(&self, beginning: &'static str) {
        self.streams.add(1, &[]);
        self.connects.add(1, &[KeyValue::new("beginning", beginning)]);
    }

    pub fn ended(&self, end: End, lifetime: Duration) {
        self.streams.add(-1, &[]);
        self.ends.add(1, &[KeyValue::new("reason", end.as_str())]);
        self.lifetime.record(lifetime.as_secs_f64(), &[]);
    }

    pub fn slow(&self) {
        self.slow.add(1, &[]);
    }

    pub fn delivered(&self, receivers: usize) {
        if receivers > 0 {
            self.deliveries.add(receivers as u64, &[]);
        }
    }

    pub fn written_after(&self, latency: Duration) {
        self.latency.record(latency.as_secs_f64(), &[]);
    }

    pub fn replayed(&self, source: Source, events: usize) {
        self.replays.add(1, &[KeyValue::new("source", source.as_str())]);
        self.replayed
            .add(events as u64, &[KeyValue::new("source", source.as_str())]);
    }

    pub fn gap(&self, reason: &'static str, streams: usize) {
        self.gaps.add(streams as u64, &[KeyValue::new("reason", reason)]);
    }

    pub fn ephemeral(&self, kind: &'static str, receivers: usize) {
        self.ephemeral.add(receivers as u64, &[KeyValue::new("kind", kind)]);
    }

    pub fn consumed(&self) {
        self.consumed.add(
            1,
            &[
                KeyValue::new("messaging.system", "nats"),
                KeyValue::new("messaging.operation.name", "receive"),
                KeyValue::new("messaging.destination.name", fechatter_core::events::STREAM),
            ],
        );
    }

    /// An event was not passed on: `copy`, `other_history`, `seen_before`.
    pub fn dropped(&self, reason: &'static str) {
        self.dropped.add(1, &[KeyValue::new("reason", reason)]);
    }

    pub fn dead_letter(&self) {
        self.dead_letters.add(1, &[]);
    }

    pub fn consumer_started(&self, reason: &'static str) {
        self.consumer_starts.add(1, &[KeyValue::new("reason", reason)]);
    }

    pub fn lag(&self, events: u64) {
        self.lag.record(events, &[]);
    }

    pub fn held(&self, ring_events: usize, ring_bytes: usize, known_users: usize) {
        self.ring_events.record(ring_events as u64, &[]);
        self.ring_bytes.record(ring_bytes as u64, &[]);
        self.known_users.record(known_users as u64, &[]);
    }

    pub fn loaded(&self, users: usize) {
        self.loads.add(users as u64, &[]);
    }

    pub fn ticket(&self, outcome: &'static str) {
        self.tickets.add(1, &[KeyValue::new("outcome", outcome)]);
    }
}
