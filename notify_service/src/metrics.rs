//! What this process measures. Labels are bounded sets.

use std::sync::{Arc, OnceLock, Weak};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};
use time::OffsetDateTime;

use crate::hub::{End, Hub};

struct Instruments {
    connects: Counter<u64>,
    ends: Counter<u64>,
    gaps: Counter<u64>,
    deliveries: Counter<u64>,
    latency: Histogram<f64>,
    replayed: Counter<u64>,
    unreadable: Counter<u64>,
    sessions: Counter<u64>,
    readings: Counter<u64>,
}

fn instruments() -> &'static Instruments {
    static INSTRUMENTS: OnceLock<Instruments> = OnceLock::new();
    INSTRUMENTS.get_or_init(|| {
        let meter = opentelemetry::global::meter("notify_service");
        let counter = |name: &'static str, unit: &'static str, description: &'static str| {
            meter
                .u64_counter(name)
                .with_unit(unit)
                .with_description(description)
                .build()
        };
        Instruments {
            connects: counter("notify.connects", "{stream}", "Streams opened, by how they began."),
            ends: counter("notify.stream.ends", "{stream}", "Streams that ended, by reason."),
            gaps: counter("notify.gaps", "{stream}", "Clients told to reload, by reason."),
            deliveries: counter("notify.deliveries", "{event}", "Live events put into streams."),
            latency: meter
                .f64_histogram("notify.delivery.latency")
                .with_unit("s")
                .with_description("Time from an event to its being put into the streams.")
                .with_boundaries(observability::buckets::DELIVERY_BUCKETS.to_vec())
                .build(),
            replayed: counter("notify.replayed", "{event}", "Missed events put into streams."),
            unreadable: counter(
                "notify.unreadable",
                "{event}",
                "Events that could not be read and were passed over.",
            ),
            sessions: counter(
                "notify.consumer.starts",
                "{start}",
                "Times that the stream was begun to be read.",
            ),
            readings: counter(
                "notify.membership.loads",
                "{user}",
                "Users whose chats were read from PostgreSQL.",
            ),
        }
    })
}

/// Watches what the hub holds.
pub fn observe(hub: &Arc<Hub>) {
    let meter = opentelemetry::global::meter("notify_service");
    let gauge = |name: &'static str, unit: &'static str, description: &'static str, read: fn(&Hub) -> usize| {
        let hub: Weak<Hub> = Arc::downgrade(hub);
        meter
            .u64_observable_gauge(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |observer| {
                if let Some(hub) = hub.upgrade() {
                    observer.observe(read(&hub) as u64, &[]);
                }
            })
            .build();
    };
    gauge("notify.streams", "{stream}", "Live streams.", Hub::streams);
    gauge("notify.window.events", "{event}", "Events in memory.", |hub| {
        hub.size().0
    });
    gauge("notify.window.size", "By", "Bytes of them.", |hub| hub.size().1);
    gauge("notify.known_users", "{user}", "Users whose chats are held.", |hub| {
        hub.size().2
    });
}

/// A stream began with this control event.
pub fn connected(beginning: &'static str, replayed: usize) {
    instruments().connects.add(1, &[KeyValue::new("beginning", beginning)]);
    if replayed > 0 {
        instruments().replayed.add(replayed as u64, &[]);
    }
}

/// A stream ended; without a reason, the client left.
pub fn ended(end: Option<End>) {
    let reason = end.map_or("client", End::as_str);
    instruments().ends.add(1, &[KeyValue::new("reason", reason)]);
}

/// Clients were told to reload.
pub fn gap(reason: &'static str, streams: usize) {
    if streams > 0 {
        instruments()
            .gaps
            .add(streams as u64, &[KeyValue::new("reason", reason)]);
    }
}

/// An event of this time was put into so many streams just now.
pub fn delivered(time: OffsetDateTime, receivers: usize) {
    if receivers > 0 {
        instruments().deliveries.add(receivers as u64, &[]);
        let latency = (OffsetDateTime::now_utc() - time).as_seconds_f64();
        instruments().latency.record(latency.max(0.0), &[]);
    }
}

/// An event could not be read.
pub fn unreadable() {
    instruments().unreadable.add(1, &[]);
}

/// The stream is being read, again.
pub fn consuming() {
    instruments().sessions.add(1, &[]);
}

/// A user's chats were read.
pub fn membership_read() {
    instruments().readings.add(1, &[]);
}
