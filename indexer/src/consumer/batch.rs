//! Gathering events into batches: small and quick while the flow is calm, large under a backlog.

use std::time::Duration;

use async_nats::jetstream;
use fechatter_core::events::HEADER_EPOCH;
use futures::{Stream, StreamExt};
use tokio::time::Instant;

use crate::config;
use crate::engine::StreamPosition;
use crate::services::effects::{Incoming, UNKNOWN_EPOCH};

/// A delivered event and its handle for acknowledging.
#[derive(Debug)]
pub struct Delivery {
    pub message: jetstream::Message,
    pub incoming: Incoming,
    /// Events that were waiting behind it when it was delivered.
    pub pending: u64,
}

impl Delivery {
    /// Reads what JetStream says of a message; `None` for one that JetStream did not deliver.
    pub fn of(message: jetstream::Message) -> Option<Self> {
        let info = message.info().ok()?;
        let (sequence, deliveries, pending) = (info.stream_sequence, info.delivered, info.pending);
        let epoch = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(HEADER_EPOCH)?.as_str().parse().ok())
            .unwrap_or(UNKNOWN_EPOCH);
        let incoming = Incoming {
            position: StreamPosition { epoch, sequence },
            subject: message.subject.to_string(),
            deliveries,
            body: message.payload.clone(),
        };
        Some(Self {
            message,
            incoming,
            pending,
        })
    }
}

/// How many events a batch should have when `pending` wait behind its newest.
pub fn target(settings: &config::Batch, pending: u64) -> usize {
    let pending = usize::try_from(pending).unwrap_or(usize::MAX);
    if pending <= settings.max_events {
        settings.max_events
    } else {
        pending.saturating_add(1).min(settings.backlog_max_events)
    }
}

/// What fills a small batch sooner than this is gathered for so long: a commit of the engine costs as much for ten events as for a
/// hundred, and this is a tenth of the second in which a message should be found.
const BUSY: Duration = Duration::from_millis(100);

/// What ended gathering.
#[derive(Debug, PartialEq, Eq)]
pub enum Gathered {
    /// There is a batch; the stream goes on.
    Full,
    /// There may be a batch; the stream ended with this fault, or without one.
    Broken(Option<String>),
}

/// Adds to a batch that has its first event, until it is as large as it should be and no longer grows fast, until nothing arrives
/// for `linger`, or until the first event has waited for `max_wait`.
pub async fn gather<S, E>(messages: &mut S, batch: &mut Vec<Delivery>, settings: &config::Batch) -> Gathered
where
    S: Stream<Item = Result<jetstream::Message, E>> + Unpin,
    E: std::fmt::Display,
{
    let began = Instant::now();
    loop {
        let pending = batch.last().map_or(0, |delivery| delivery.pending);
        let wanted = target(settings, pending);
        let is_small = wanted == settings.max_events && batch.len() < settings.backlog_max_events;
        if batch.len() >= wanted && !(is_small && began.elapsed() < BUSY) {
            return Gathered::Full;
        }
        let longest = if batch.len() < wanted {
            settings.max_wait()
        } else {
            BUSY.min(settings.max_wait())
        };
        let wait = settings.linger().min(longest.saturating_sub(began.elapsed()));
        if wait == Duration::ZERO {
            return Gathered::Full;
        }
        match tokio::time::timeout(wait, messages.next()).await {
            Err(_) => return Gathered::Full,
            Ok(None) => return Gathered::Broken(None),
            Ok(Some(Err(error))) => return Gathered::Broken(Some(error.to_string())),
            Ok(Some(Ok(message))) => batch.extend(Delivery::of(message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_with_the_backlog() {
        let settings = config::Batch::default();
        assert_eq!(target(&settings, 0), 10);
        assert_eq!(target(&settings, 10), 10);
        assert_eq!(target(&settings, 11), 12);
        assert_eq!(target(&settings, 400), 401);
        assert_eq!(target(&settings, 1_000_000), 1_000);
    }
}
