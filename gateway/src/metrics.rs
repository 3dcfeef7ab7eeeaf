//! What is counted. Labels are bounded sets; ids are for logs and spans.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use observability::buckets::{HTTP_DURATION_BUCKETS, STREAM_LIFETIME_BUCKETS};
use observability::instruments::Instruments;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundCounter, BoundHistogram, Counter, Gauge, Histogram, Meter};

use crate::connection::Facts;
use crate::routes::{Class, Group};

/// A token that was verified before.
pub const REMEMBERED: &str = "remembered";
/// A request within its rate limit.
pub const ALLOWED: &str = "allowed";

/// The instruments. What nearly every request counts is bound to its labels once: looking them up costs more than counting.
#[derive(Debug)]
pub struct Metrics {
    request_duration: Histogram<f64>,
    /// As many as there are series of it.
    durations: DashMap<Outcome, BoundHistogram<f64>>,
    stream_lifetime: Histogram<f64>,
    tokens: Counter<u64>,
    remembered: BoundCounter<u64>,
    rate_limits: Counter<u64>,
    allowed: [BoundCounter<u64>; Class::ALL.len()],
    refusals: Counter<u64>,
    retries: Counter<u64>,
    breaks: Counter<u64>,
    reloads: Counter<u64>,
    handshakes: Histogram<f64>,
    handshake_failures: Counter<u64>,
    connections_refused: Counter<u64>,
    healthy: Gauge<u64>,
    known: Gauge<u64>,
    gauges: Arc<Gauges>,
}

#[derive(Debug, Default)]
struct Gauges {
    connections: AtomicI64,
    streams: AtomicI64,
    /// Connections with at least one stream.
    streaming: AtomicI64,
    /// Requests that are no streams.
    requests: AtomicI64,
}

/// Counts an open event stream until it is dropped.
#[derive(Debug)]
pub struct OpenStream(Arc<Gauges>, Arc<Facts>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        if self.1.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.streaming.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Counts a request in flight until it is dropped, or until it turns out to be a stream.
#[derive(Debug)]
pub struct InFlight(Arc<Gauges>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts an open client connection until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(Arc<Gauges>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request as the duration metric describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome {
    pub method: &'static str,
    pub route: &'static str,
    pub status: u16,
    pub http2: bool,
}

impl Outcome {
    /// `network.protocol.version`.
    pub const fn version(self) -> &'static str {
        if self.http2 { "2" } else { "1.1" }
    }
}

impl Metrics {
    /// Instruments of the process's meter; make them after telemetry is up.
    pub fn new() -> Self {
        let instruments = Instruments::of("gateway");
        let meter = instruments.meter();
        let gauges = Arc::new(Gauges::default());
        observe(
            meter,
            "gateway.connections",
            "{connection}",
            "Open client connections.",
            &gauges,
            |g| &g.connections,
        );
        observe(
            meter,
            "gateway.streams",
            "{stream}",
            "Open event streams.",
            &gauges,
            |g| &g.streams,
        );
        observe(
            meter,
            "gateway.requests",
            "{request}",
            "Requests in flight, streams not among them.",
            &gauges,
            |g| &g.requests,
        );
        let upstreams = |name, description| instruments.gauge(name, "{upstream}", description);
        let tokens = instruments.counter("gateway.tokens", "{token}", "Bearer tokens by verdict.");
        let rate_limits = instruments.counter(
            "gateway.rate_limits",
            "{request}",
            "Requests by class and verdict of the rate limit.",
        );
        let metrics = Self {
            durations: DashMap::new(),
            remembered: tokens.bind(&[KeyValue::new("verdict", REMEMBERED)]),
            allowed: Class::ALL.map(|class| rate_limits.bind(&limit_labels(class, ALLOWED))),
            tokens,
            rate_limits,
            request_duration: instruments.seconds(
                "http.server.request.duration",
                "Time from the request's head to the answer's head.",
                &HTTP_DURATION_BUCKETS,
            ),
            stream_lifetime: instruments.seconds(
                "gateway.stream.lifetime",
                "How long event streams lived.",
                &STREAM_LIFETIME_BUCKETS,
            ),
            refusals: instruments.counter(
                "gateway.refusals",
                "{request}",
                "Requests the gateway refused, by reason.",
            ),
            retries: instruments.counter(
                "gateway.upstream.retries",
                "{attempt}",
                "Attempts after the first, by upstream group.",
            ),
            breaks: instruments.counter(
                "gateway.upstream.breaks",
                "{break}",
                "Times an upstream was left alone after failures in a row.",
            ),
            reloads: instruments.counter("gateway.config.reloads", "{reload}", "Reloads by verdict."),
            handshakes: instruments.seconds(
                "gateway.tls.handshake.duration",
                "Completed TLS handshakes.",
                &[
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                ],
            ),
            handshake_failures: instruments.counter(
                "gateway.tls.handshake.failures",
                "{handshake}",
                "TLS handshakes that failed.",
            ),
            connections_refused: instruments.counter(
                "gateway.connections.refused",
                "{connection}",
                "Connections over a limit.",
            ),
            healthy: upstreams("gateway.upstreams.healthy", "Healthy upstreams of a group."),
            known: upstreams("gateway.upstreams.known", "Upstreams of a group."),
            gauges,
        };
        metrics.begin_from_zero();
        metrics
    }

    fn begin_from_zero(&self) {
        let groups = Group::ALL.map(Group::as_str);
        Instruments::from_zero(
            &self.tokens,
            "verdict",
            &["verified", REMEMBERED, "absent", "expired", "revoked"],
        );
        Instruments::from_zero(&self.retries, "upstream", &groups);
        Instruments::from_zero(&self.breaks, "upstream", &groups);
        Instruments::from_zero(&self.reloads, "verdict", &["good", "refused"]);
        Instruments::from_zero(&self.handshake_failures, "reason", &["protocol", "timeout"]);
        Instruments::from_zero(&self.connections_refused, "limit", &["all", "address"]);
        Instruments::from_zero(
            &self.refusals,
            "reason",
            &["token_absent", "token_invalid", "rate_limited"],
        );
        for class in Class::ALL {
            self.rate_limits.add(0, &limit_labels(class, "limited"));
        }
    }

    /// A request whose answer's head has been sent after `duration`.
    pub fn request(&self, outcome: Outcome, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(series) = self.durations.get(&outcome) {
            return series.record(seconds);
        }
        let series = self.series_of(outcome);
        series.record(seconds);
        self.durations.insert(outcome, series);
    }

    fn series_of(&self, outcome: Outcome) -> BoundHistogram<f64> {
        let mut attributes = [
            KeyValue::new("http.request.method", outcome.method),
            KeyValue::new("http.route", outcome.route),
            KeyValue::new("http.response.status_code", i64::from(outcome.status)),
            KeyValue::new("network.protocol.version", outcome.version()),
            KeyValue::new("url.scheme", "https"),
            KeyValue::new("error.type", ""),
        ];
        let mut used = 5;
        if outcome.status >= 500 {
            attributes[5] = KeyValue::new("error.type", outcome.status.to_string());
            used = 6;
        }
        self.request_duration.bind(&attributes[..used])
    }

    /// A stream that ended after `lifetime`.
    pub fn stream_ended(&self, lifetime: Duration) {
        self.stream_lifetime.record(lifetime.as_secs_f64(), &[]);
    }

    /// Counts a stream that opens.
    pub fn stream_opened(&self, connection: &Arc<Facts>) -> OpenStream {
        self.gauges.streams.fetch_add(1, Ordering::Relaxed);
        if connection.streams.fetch_add(1, Ordering::Relaxed) == 0 {
            self.gauges.streaming.fetch_add(1, Ordering::Relaxed);
        }
        OpenStream(Arc::clone(&self.gauges), Arc::clone(connection))
    }

    /// Counts a request that begins.
    pub fn request_began(&self) -> InFlight {
        self.gauges.requests.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.gauges))
    }

    /// Counts a connection that opens.
    pub fn connection_opened(&self) -> OpenConnection {
        self.gauges.connections.fetch_add(1, Ordering::Relaxed);
        OpenConnection(Arc::clone(&self.gauges))
    }

    /// Connections with a stream on them.
    pub fn streaming_connections(&self) -> i64 {
        self.gauges.streaming.load(Ordering::Relaxed)
    }

    /// Requests in flight other than streams.
    pub fn requests_in_flight(&self) -> i64 {
        self.gauges.requests.load(Ordering::Relaxed)
    }

    /// What was found about a bearer token.
    pub fn token(&self, verdict: &'static str) {
        if verdict == REMEMBERED {
            return self.remembered.add(1);
        }
        self.tokens.add(1, &[KeyValue::new("verdict", verdict)]);
    }

    /// What the rate limit said.
    pub fn rate_limit(&self, class: Class, verdict: &'static str) {
        if verdict == ALLOWED {
            return self.allowed[class as usize].add(1);
        }
        self.rate_limits.add(1, &limit_labels(class, verdict));
    }

    /// A request that was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// Another attempt at an upstream.
    pub fn retried(&self, group: Group) {
        self.retries.add(1, &[KeyValue::new("upstream", group.as_str())]);
    }

    /// An upstream's breaker opened.
    pub fn broke(&self, group: Group) {
        self.breaks.add(1, &[KeyValue::new("upstream", group.as_str())]);
    }

    /// A reload that was `good` or `refused`.
    pub fn reloaded(&self, verdict: &'static str) {
        self.reloads.add(1, &[KeyValue::new("verdict", verdict)]);
    }

    /// A TLS handshake that succeeded.
    pub fn handshake(&self, duration: Duration, version: &'static str) {
        self.handshakes.record(
            duration.as_secs_f64(),
            &[KeyValue::new("tls.protocol.version", version)],
        );
    }

    /// A TLS handshake that did not.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.handshake_failures.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A connection closed at once because of a limit.
    pub fn connection_refused(&self, limit: &'static str) {
        self.connections_refused.add(1, &[KeyValue::new("limit", limit)]);
    }

    /// The health of a group.
    pub fn upstreams(&self, group: Group, healthy: usize, all: usize) {
        let group = [KeyValue::new("upstream", group.as_str())];
        self.healthy.record(healthy as u64, &group);
        self.known.record(all as u64, &group);
    }
}

fn limit_labels(class: Class, verdict: &'static str) -> [KeyValue; 2] {
    [
        KeyValue::new("class", class.as_str()),
        KeyValue::new("verdict", verdict),
    ]
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn observe(
    meter: &Meter,
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    gauges: &Arc<Gauges>,
    of: fn(&Gauges) -> &AtomicI64,
) {
    let gauges = Arc::clone(gauges);
    // The SDK keeps the callback; the returned handle is only for dropping it early.
    let _ = meter
        .i64_observable_up_down_counter(name)
        .with_unit(unit)
        .with_description(description)
        .with_callback(move |observer| observer.observe(of(&gauges).load(Ordering::Relaxed), &[]))
        .build();
}

/// A number that is looked at when metrics are read.
pub fn observe_number(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    read: impl Fn() -> i64 + Send + Sync + 'static,
) {
    let _ = opentelemetry::global::meter("gateway")
        .i64_observable_gauge(name)
        .with_unit(unit)
        .with_description(description)
        .with_callback(move |observer| observer.observe(read(), &[]))
        .build();
}
