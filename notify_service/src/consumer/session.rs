//! One stretch of reading the stream.

use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use async_nats::connection::State;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::stream::{Info, Stream};
use fechatter_core::events::{HEADER_EPOCH, HEADER_POSITION, HEADER_SHARD, METADATA_EPOCH, STREAM};
use futures::StreamExt;
use observability::messaging::{self, Operation};
use opentelemetry::trace::TraceContextExt;
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use super::positions::{Place, Verdict};
use super::{Consumer, FIRST_PAUSE, interpret};
use crate::frame::Cursor;
use crate::metrics;
use crate::repositories::dead_letters;

/// How often the connection is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often the stream itself is looked at, to see whether it is still the one that is read.
const INSPECTION: Duration = Duration::from_secs(5);

impl Consumer {
    /// Reads until something is wrong, and says what.
    pub(super) async fn session(&mut self, pause: &mut Duration) -> String {
        match self.read(pause).await {
            Ok(()) => "the stream ended".to_owned(),
            Err(problem) => problem,
        }
    }

    async fn read(&mut self, pause: &mut Duration) -> Result<(), String> {
        let stream = self
            .context
            .get_stream(STREAM)
            .await
            .map_err(|error| format!("cannot find the stream: {error}"))?;
        let info = stream.cached_info();
        let policy = self.begin(info).await?;
        // Streams begin when everything that was there at this moment has been looked at.
        let target = info.state.last_sequence;
        let mut messages = stream
            .create_consumer(OrderedConfig {
                description: Some("Brings events to the streams of one notify_service".to_owned()),
                deliver_policy: policy,
                ..OrderedConfig::default()
            })
            .await
            .map_err(|error| format!("cannot make the consumer: {error}"))?
            .messages()
            .await
            .map_err(|error| format!("cannot ask for events: {error}"))?;
        *pause = FIRST_PAUSE;
        metrics::consuming();
        self.status.set(None);
        tracing::info!(from = self.sequence, "consuming events");
        self.reached(target);

        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut inspected = Instant::now();
        let mut seen = self.sequence;
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    None => return Ok(()),
                    Some(Err(error)) => return Err(format!("cannot read: {error}")),
                    Some(Ok(message)) => {
                        self.process(&stream, &message).await?;
                        self.reached(target);
                    }
                },
                _ = ticks.tick() => {
                    if self.client.connection_state() != State::Connected {
                        return Err("NATS is away".to_owned());
                    }
                    if inspected.elapsed() >= INSPECTION {
                        let last = self.inspect(&stream).await?;
                        if last > self.sequence && seen == self.sequence {
                            return Err("events are there and none is delivered".to_owned());
                        }
                        seen = self.sequence;
                        inspected = Instant::now();
                    }
                }
            }
        }
    }

    fn reached(&self, target: u64) {
        if self.sequence >= target && !self.hub.is_ready() {
            tracing::info!(sequence = self.sequence, "caught up with the stream");
            self.hub.set_caught_up();
        }
    }

    /// Goes on in the stream, or begins its history.
    async fn begin(&mut self, info: &Info) -> Result<DeliverPolicy, String> {
        let epoch = epoch_of(info).ok_or("the stream has no epoch yet")?;
        let (first, last) = (info.state.first_sequence, info.state.last_sequence);
        let after = |sequence: u64| DeliverPolicy::ByStartSequence {
            start_sequence: sequence + 1,
        };
        if self.positions.epoch().is_none() {
            self.sequence = self.window_start(info).await?;
            self.positions.begin(epoch);
            self.hub.begin_history(epoch, self.sequence);
            return Ok(after(self.sequence));
        }
        if self.positions.epoch() == Some(epoch) && last >= self.sequence {
            if first > self.sequence + 1 && last > self.sequence {
                tracing::warn!(
                    sequence = self.sequence,
                    first,
                    "events left the stream before they were read"
                );
                self.lost(first - 1).await?;
            }
            return Ok(after(self.sequence));
        }
        if self.positions.epoch() == Some(epoch) {
            // An older disk; the relay is about to begin a new history.
            return Err("the stream went back; waiting for its new history".to_owned());
        }
        self.begin_history(epoch, first.saturating_sub(1)).await?;
        Ok(after(self.sequence))
    }

    async fn begin_history(&mut self, epoch: Uuid, position: u64) -> Result<(), String> {
        tracing::warn!(%epoch, "the stream has a new history; clients reload");
        self.relearn().await?;
        self.positions.begin(epoch);
        self.sequence = position;
        self.hub.begin_history(epoch, position);
        Ok(())
    }

    async fn lost(&mut self, position: u64) -> Result<(), String> {
        self.relearn().await?;
        self.sequence = position;
        self.hub.lost_events(position);
        Ok(())
    }

    /// The sequence before the first event that a process that starts wants to have in memory.
    async fn window_start(&self, info: &Info) -> Result<u64, String> {
        let since = OffsetDateTime::now_utc() - time::Duration::seconds(self.start_seconds);
        let state = &info.state;
        if state.messages == 0 || state.last_timestamp < since {
            return Ok(state.last_sequence);
        }
        if state.first_timestamp >= since {
            return Ok(state.first_sequence.saturating_sub(1));
        }
        let problem = |error: &dyn std::fmt::Display| format!("cannot find the start of the window: {error}");
        let mut messages = self
            .context
            .get_stream(STREAM)
            .await
            .map_err(|error| problem(&error))?
            .create_consumer(OrderedConfig {
                deliver_policy: DeliverPolicy::ByStartTime { start_time: since },
                headers_only: true,
                ..OrderedConfig::default()
            })
            .await
            .map_err(|error| problem(&error))?
            .messages()
            .await
            .map_err(|error| problem(&error))?;
        let message = tokio::time::timeout(INSPECTION, messages.next())
            .await
            .map_err(|error| problem(&error))?
            .ok_or_else(|| problem(&"no event"))?
            .map_err(|error| problem(&error))?;
        let first = message.info().map_err(|error| problem(&error))?.stream_sequence;
        Ok(first - 1)
    }

    /// Whether the stream is still the one that is read; gives its last sequence.
    async fn inspect(&self, stream: &Stream) -> Result<u64, String> {
        let info = stream
            .get_info()
            .await
            .map_err(|error| format!("cannot inspect the stream: {error}"))?;
        if epoch_of(&info) != self.positions.epoch() {
            return Err("the stream has another history".to_owned());
        }
        if info.state.last_sequence < self.sequence {
            return Err("the stream went back".to_owned());
        }
        Ok(info.state.last_sequence)
    }

    async fn process(&mut self, stream: &Stream, message: &Message) -> Result<(), String> {
        let sequence = message
            .info()
            .map_err(|error| format!("not a message of the stream: {error}"))?
            .stream_sequence;
        let Some(place) = message.headers.as_ref().and_then(place_of) else {
            tracing::error!(sequence, subject = %message.subject, "an event without its place was passed over");
            self.pass(sequence);
            return Ok(());
        };
        let mut verdict = self.positions.judge(place);
        if verdict == Verdict::OtherEpoch {
            let info = stream
                .get_info()
                .await
                .map_err(|error| format!("cannot ask for the epoch: {error}"))?;
            if epoch_of(&info) == Some(place.epoch) {
                self.begin_history(place.epoch, sequence - 1).await?;
                verdict = self.positions.judge(place);
            }
        }
        match verdict {
            Verdict::OtherEpoch | Verdict::Drop => {
                self.pass(sequence);
                return Ok(());
            }
            Verdict::Hole => {
                tracing::error!(?place, sequence, "events are missing in the stream; clients reload");
                self.lost(sequence - 1).await?;
            }
            Verdict::Deliver => {}
        }
        let cursor = Cursor {
            epoch: place.epoch,
            sequence,
        };
        match interpret(&message.payload, cursor) {
            Ok(meaning) => {
                let began = SystemTime::now();
                self.apply(meaning).await;
                if let Some(headers) = &message.headers {
                    let context = observability::propagation::extract_nats(headers);
                    let parent = context.span().span_context().clone();
                    messaging::record("notify_service", Operation::Deliver, &parent, began, [], None);
                }
            }
            Err(error) => {
                metrics::unreadable();
                tracing::error!(%error, sequence, subject = %message.subject, "an unreadable event was passed over");
                let (subject, reason) = (message.subject.as_str(), error.to_string());
                let kept = dead_letters::keep(&self.pool, cursor, subject, &reason, &message.payload).await;
                // One bad event never holds up the ones behind it: it stays in the stream too.
                if let Err(error) = kept {
                    tracing::error!(%error, sequence, "an unreadable event could not be kept as a dead letter");
                }
            }
        }
        self.pass(sequence);
        Ok(())
    }

    fn pass(&mut self, sequence: u64) {
        self.sequence = sequence;
        self.hub.advance(sequence);
    }
}

/// The epoch of a stream.
pub(crate) fn epoch_of(info: &Info) -> Option<Uuid> {
    info.config.metadata.get(METADATA_EPOCH)?.parse().ok()
}

/// The headers that order an event.
pub(crate) fn place_of(headers: &HeaderMap) -> Option<Place> {
    Some(Place {
        epoch: headers.get(HEADER_EPOCH)?.as_str().parse().ok()?,
        shard: headers.get(HEADER_SHARD)?.as_str().parse().ok()?,
        position: headers.get(HEADER_POSITION)?.as_str().parse().ok()?,
    })
}
