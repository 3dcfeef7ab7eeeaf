//! What the relay tells about itself: `/health` and metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

/// Age in seconds of an unpublished event from which on something is wrong.
const TOLERABLE_AGE: f64 = 5.0;

/// A part of the relay that can fail by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Stream,
    Ownership,
    Monitor,
    Shard(i16),
}

/// State of the relay; cheap to clone and to ask.
#[derive(Debug, Clone)]
pub struct Status(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: async_nats::Client,
    state: Mutex<State>,
    instruments: Instruments,
}

#[derive(Debug, Default)]
struct State {
    depth: u64,
    /// When the oldest unpublished event was written.
    oldest: Option<Instant>,
    errors: BTreeMap<Part, String>,
    shards: Vec<i16>,
    stream_is_ready: bool,
}

#[derive(Debug)]
struct Instruments {
    depth: Gauge<u64>,
    age: Gauge<f64>,
    shards: Gauge<u64>,
    published: Counter<u64>,
    failures: Counter<u64>,
    rebuilds: Counter<u64>,
    duration: Histogram<f64>,
}

impl Status {
    pub(super) fn new(client: async_nats::Client) -> Self {
        let make = observability::instruments::Instruments::of("chat_service");
        let instruments = Instruments {
            depth: make.gauge(
                "fechatter.outbox.depth",
                "{event}",
                "Events of all shards that are not in the stream yet",
            ),
            age: make
                .meter()
                .f64_gauge("fechatter.outbox.age")
                .with_unit("s")
                .with_description("Age of the oldest event that is not in the stream yet")
                .build(),
            shards: make.gauge(
                "fechatter.outbox.shards",
                "{shard}",
                "Shards that this process publishes",
            ),
            published: make.counter(
                "fechatter.outbox.published",
                "{event}",
                "Events that the stream acknowledged",
            ),
            failures: make.counter(
                "fechatter.outbox.publish.failures",
                "{failure}",
                "Attempts to publish that failed and will be repeated",
            ),
            rebuilds: make.counter(
                "fechatter.outbox.rebuilds",
                "{rebuild}",
                "New histories of the stream, each with all retained events published again",
            ),
            duration: make.seconds(
                "fechatter.outbox.publish.duration",
                "From sending a message or a batch to its acknowledgement",
                &[
                    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                ],
            ),
        };
        for counter in [&instruments.published, &instruments.rebuilds] {
            observability::instruments::Instruments::from_zero(counter, "", &[]);
        }
        let kinds = ["disconnected", "timeout", "stream", "database"];
        observability::instruments::Instruments::from_zero(&instruments.failures, "error.type", &kinds);
        Self(Arc::new(Inner {
            client,
            state: Mutex::default(),
            instruments,
        }))
    }

    /// Committed events of all shards that are not in the stream yet, whichever replica publishes them.
    pub fn depth(&self) -> u64 {
        self.lock().depth
    }

    /// Age in seconds of the oldest of them; 0 when there is none. It goes on growing while the database is away.
    pub fn age_seconds(&self) -> f64 {
        self.lock().oldest.map_or(0.0, |oldest| oldest.elapsed().as_secs_f64())
    }

    /// What fails now: the stream, the locks, the database, or else the first shard that does.
    pub fn last_error(&self) -> Option<String> {
        self.lock().errors.values().next().cloned()
    }

    /// Whether NATS is connected and its stream is known to be the one we publish to.
    pub fn connected(&self) -> bool {
        is_connected(&self.0.client) && self.lock().stream_is_ready
    }

    /// The shards that this process publishes now.
    pub fn shards(&self) -> Vec<i16> {
        self.lock().shards.clone()
    }

    /// For `/health`: fails while an event has waited for more than 5 s.
    pub fn check(&self) -> Result<Option<String>, String> {
        let (depth, age) = (self.depth(), self.age_seconds());
        if age <= TOLERABLE_AGE {
            return Ok((depth > 0).then(|| format!("{depth} events on their way")));
        }
        let why = self
            .last_error()
            .unwrap_or_else(|| "no failure of this process".to_owned());
        Err(format!(
            "{depth} events wait to be published, the oldest for {age:.0} s: {why}"
        ))
    }

    pub(super) fn backlog(&self, depth: u64, age: Option<f64>) {
        let oldest = age.and_then(|age| Instant::now().checked_sub(Duration::try_from_secs_f64(age).ok()?));
        let mut state = self.lock();
        state.depth = depth;
        state.oldest = oldest;
        drop(state);
        self.record_gauges();
    }

    pub(super) fn record_gauges(&self) {
        let instruments = &self.0.instruments;
        instruments.depth.record(self.depth(), &[]);
        instruments.age.record(self.age_seconds(), &[]);
        instruments.shards.record(self.lock().shards.len() as u64, &[]);
    }

    pub(super) fn published(&self, events: usize, mode: &'static str, took: Duration) {
        let attributes = [KeyValue::new("fechatter.outbox.mode", mode)];
        self.0.instruments.published.add(events as u64, &[]);
        self.0.instruments.duration.record(took.as_secs_f64(), &attributes);
    }

    pub(super) fn failed(&self, part: Part, kind: &'static str, error: &dyn std::fmt::Display) {
        self.0.instruments.failures.add(1, &[KeyValue::new("error.type", kind)]);
        let mut text = error.to_string();
        if let Part::Shard(shard) = part {
            text = format!("shard {shard}: {text}");
        }
        self.lock().errors.insert(part, text);
    }

    pub(super) fn worked(&self, part: Part) {
        self.lock().errors.remove(&part);
    }

    pub(super) fn rebuilt(&self) {
        self.0.instruments.rebuilds.add(1, &[]);
    }

    pub(super) fn stream_ready(&self, is_ready: bool) {
        self.lock().stream_is_ready = is_ready;
    }

    /// The shards of this process; what others fail at is for them to tell.
    pub(super) fn own(&self, mut shards: Vec<i16>) {
        shards.sort_unstable();
        let mut state = self.lock();
        state
            .errors
            .retain(|part, _| !matches!(part, Part::Shard(shard) if !shards.contains(shard)));
        state.shards = shards;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // No code panics while it holds the lock; if one did, the numbers would still be usable.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn is_connected(client: &async_nats::Client) -> bool {
    client.connection_state() == async_nats::connection::State::Connected
}
