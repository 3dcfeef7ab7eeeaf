//! One stretch of consuming, from looking at the stream to whatever ends it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::stream::Stream;
use fechatter_core::events::{STREAM, UnreadableEvent};
use futures::StreamExt;
use observability::messaging::{self, Operation};
use opentelemetry::KeyValue;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use super::history::{ordered, settle_history};
use super::{Buried, Consumer, Ended, Progress, epoch_of, fault};
use crate::cursor::Cursor;
use crate::event::{Entry, Headers, decode, may_move_members, owner_of_sessions};
use crate::hub::Published;
use crate::positions::Admission;
use crate::repositories;

/// How often the connection and the stream are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row at which events were there and none had come.
const STALLED_LOOKS: u32 = 3;
/// Longest time a request to JetStream may take while a session opens.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for PostgreSQL's word on an old addition.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Session<'a> {
    owner: &'a mut Consumer,
    stream: Stream,
    messages: push::Ordered,
    /// [`Consumer::connects`] before the stream was looked at.
    connects: u64,
    /// The stream's end when the session began.
    target: u64,
    stalled_looks: u32,
    seen_at_last_look: u64,
    /// An epoch that is not the stream's, and when that was asked.
    stranger: Option<(Uuid, Instant)>,
}

impl<'a> Session<'a> {
    /// Looks at the stream, settles the history, and makes the consumer.
    pub(super) async fn open(owner: &'a mut Consumer, reason: &'static str) -> Result<Self, Ended> {
        let shutdown = owner.shutdown.clone();
        let opening = tokio::time::timeout(OPEN_TIMEOUT, Self::open_now(owner, reason));
        match shutdown.run_until_cancelled(opening).await {
            None => Err(Ended::Shutdown),
            Some(Err(_)) => Err(Ended::Fault("JetStream does not answer".to_owned())),
            Some(Ok(result)) => result,
        }
    }

    async fn open_now(owner: &'a mut Consumer, reason: &'static str) -> Result<Self, Ended> {
        if owner.client.connection_state() != State::Connected {
            return Err(Ended::Fault("NATS is not connected".to_owned()));
        }
        let connects = owner.connects();
        let stream = owner
            .context
            .get_stream(STREAM)
            .await
            .map_err(|error| fault("find the stream")(&error))?;
        let info = stream.cached_info().clone();
        let Some(epoch) = epoch_of(&info) else {
            return Err(Ended::Fault("the stream has no epoch".to_owned()));
        };
        settle_history(owner, &stream, &info, epoch).await?;
        let from = owner.progress.as_ref().map_or(0, |progress| progress.sequence) + 1;
        let policy = DeliverPolicy::ByStartSequence { start_sequence: from };
        let consumer = ordered(owner, &stream, "fechatter.>", policy).await?;
        // The end of the stream was deleted by hand: what is not there is not waited for. The next event shows what is missing.
        let last = info.state.last_sequence;
        if consumer.cached_info().num_pending == 0
            && let Some(progress) = &mut owner.progress
            && progress.sequence < last
        {
            tracing::warn!(from, last, "the end of the stream is not there; going on behind it");
            progress.sequence = last;
            owner.hub.skip(last);
        }
        let messages = consumer
            .messages()
            .await
            .map_err(|error| fault("receive events")(&error))?;
        owner.condition.set(None);
        owner.hub.metrics().consumer_started(reason);
        tracing::info!(reason, from, last = info.state.last_sequence, %epoch, "consuming events");
        let mut session = Self {
            owner,
            stream,
            messages,
            connects,
            target: info.state.last_sequence,
            stalled_looks: 0,
            seen_at_last_look: 0,
            stranger: None,
        };
        session.note_progress();
        Ok(session)
    }

    /// Consumes until something ends it.
    pub(super) async fn run(mut self) -> Ended {
        let shutdown = self.owner.shutdown.clone();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ended::Shutdown,
                _ = looks.tick() => self.look().await,
                message = self.messages.next() => match message {
                    Some(Ok(message)) => self.process(message).await,
                    Some(Err(error)) => Err(Ended::Fault(format!("the consumer failed: {error}"))),
                    None => Err(Ended::Fault("the consumer ended".to_owned())),
                },
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    fn progress(&mut self) -> Result<&mut Progress, Ended> {
        self.owner
            .progress
            .as_mut()
            .ok_or_else(|| Ended::Fault("no history".to_owned()))
    }

    fn check_connection(&self) -> Result<(), Ended> {
        if self.owner.connects() == self.connects && self.owner.client.connection_state() == State::Connected {
            Ok(())
        } else {
            Err(Ended::Reconnected)
        }
    }

    /// Looks whether the stream is still the same and whether what it has arrives.
    async fn look(&mut self) -> Result<(), Ended> {
        self.owner.hub.tell_owed_gap();
        self.check_connection()?;
        let info = match tokio::time::timeout(LOOK * 3, self.stream.get_info()).await {
            Ok(Ok(info)) => info,
            Ok(Err(error)) => return Err(fault("look at the stream")(&error)),
            Err(_) => return Err(Ended::Fault("JetStream does not answer".to_owned())),
        };
        let progress = self.progress()?;
        if epoch_of(&info) != Some(progress.epoch) {
            return Err(Ended::NewHistory);
        }
        let (seen, last) = (progress.sequence, info.state.last_sequence);
        if last < seen {
            return Err(Ended::Fault("the stream went back".to_owned()));
        }
        self.owner.hub.metrics().lag(last - seen);
        let is_stalled = last > seen && seen == self.seen_at_last_look;
        self.stalled_looks = if is_stalled { self.stalled_looks + 1 } else { 0 };
        self.seen_at_last_look = seen;
        if self.stalled_looks >= STALLED_LOOKS {
            return Err(Ended::Stalled);
        }
        Ok(())
    }

    async fn process(&mut self, message: jetstream::Message) -> Result<(), Ended> {
        let info = message
            .info()
            .map_err(|error| Ended::Fault(format!("not a JetStream message: {error}")))?;
        let sequence = info.stream_sequence;
        self.check_connection()?;
        self.owner.hub.metrics().consumed();
        let progress = self.progress()?;
        if sequence <= progress.sequence {
            return Err(Ended::Fault("the consumer began anew from an earlier event".to_owned()));
        }
        let at = Cursor {
            epoch: progress.epoch,
            sequence,
        };
        let headers = message.headers.clone().unwrap_or_default();
        match Headers::of(&headers) {
            Ok(place) if place.epoch != at.epoch => {
                if self.is_new_history(place.epoch).await? {
                    return Err(Ended::NewHistory);
                }
                self.owner.hub.metrics().dropped("other_history");
                self.owner.hub.skip(sequence);
            }
            Ok(place) => self.admit(at, place, &headers, &message).await?,
            // Not of our relay, or the next one's position shows that one of its events is missing.
            Err(error) => {
                self.bury(at, &message, &error);
                self.owner.hub.skip(sequence);
            }
        }
        self.progress()?.sequence = sequence;
        self.note_progress();
        Ok(())
    }

    async fn admit(
        &mut self,
        at: Cursor,
        place: Headers,
        headers: &async_nats::HeaderMap,
        message: &jetstream::Message,
    ) -> Result<(), Ended> {
        let progress = self.progress()?;
        match progress.positions.admit(place.shard, place.position) {
            Admission::New => {}
            Admission::Copy => {
                self.owner.hub.metrics().dropped("copy");
                self.owner.hub.skip_copy(at.sequence);
                return Ok(());
            }
            Admission::Jump { missing } => {
                tracing::error!(
                    shard = place.shard,
                    missing,
                    "events are missing; clients are told to reload"
                );
                self.owner.hub.lost_events(at.sequence);
            }
        }
        let entry = match decode(at, headers, &message.payload) {
            Ok(entry) => entry,
            Err(error) => {
                self.bury(at, message, &error);
                self.owner
                    .hub
                    .unreadable_event(at.sequence, may_move_members(&message.subject));
                if let Some(user) = owner_of_sessions(&message.subject) {
                    self.owner.hub.doubt_sessions(user);
                }
                return Ok(());
            }
        };
        let progress = self.progress()?;
        progress.positions.saw(entry.time);
        if progress.before.covers(place.shard, place.position, entry.time) {
            // The stream was rebuilt: this came before. Streams and memory are spared it; whoever reads the stream back
            // gets it again, as a new history may bring events again.
            self.owner.hub.metrics().dropped("seen_before");
            self.owner.hub.skip(at.sequence);
            return Ok(());
        }
        self.publish(entry).await;
        Ok(())
    }

    async fn publish(&mut self, entry: Entry) {
        let started = SystemTime::now();
        let hub = &self.owner.hub;
        let entry = Arc::new(entry);
        let mut verdict = None;
        let receivers = loop {
            // Users come to be known while PostgreSQL is asked, and then it is asked about them too.
            let (chat, users) = match hub.publish(&entry, verdict.as_ref()) {
                Published::To(receivers) => break receivers,
                Published::Ask { chat, users } => (chat, users),
            };
            let question = repositories::membership::of_chat(&self.owner.pool, chat, &users);
            let answer = tokio::time::timeout(QUESTION_TIMEOUT, question).await;
            if let Ok(Ok(answer)) = answer {
                verdict = Some(answer);
            } else {
                tracing::warn!(users = users.len(), "cannot verify an addition; the users' streams end");
                hub.doubt(&users);
            }
        };
        if let Some(context) = &entry.context {
            let attributes = [
                KeyValue::new("messaging.message.id", entry.sequence.to_string()),
                KeyValue::new("notify.receivers", i64::try_from(receivers).unwrap_or(i64::MAX)),
            ];
            messaging::record("notify_service", Operation::Deliver, context, started, attributes, None);
        }
    }

    /// Keeps an event that cannot be read.
    fn bury(&self, at: Cursor, message: &jetstream::Message, error: &UnreadableEvent) {
        tracing::error!(sequence = at.sequence, %error, "an event cannot be read; kept as a dead letter");
        let hub = &self.owner.hub;
        hub.metrics().dead_letter();
        let letter = Buried {
            epoch: at.epoch,
            sequence: at.sequence,
            subject: message.subject.to_string(),
            reason: error.to_string(),
            body: message.payload.clone(),
        };
        if self.owner.letters.try_send(letter).is_err() {
            tracing::error!(
                sequence = at.sequence,
                "too many dead letters at once; this one is not kept"
            );
        }
    }

    /// Whether the stream has gone over to the epoch of an event that is not of ours.
    async fn is_new_history(&mut self, epoch: Uuid) -> Result<bool, Ended> {
        if let Some((stranger, asked)) = self.stranger
            && stranger == epoch
            && asked.elapsed() < LOOK
        {
            return Ok(false);
        }
        let info = self
            .stream
            .get_info()
            .await
            .map_err(|error| fault("look at the stream")(&error))?;
        self.stranger = Some((epoch, Instant::now()));
        Ok(epoch_of(&info) == Some(epoch))
    }

    fn note_progress(&mut self) {
        if let Some(progress) = &self.owner.progress
            && progress.sequence >= self.target
            && !self.owner.hub.is_current()
        {
            self.owner.hub.set_caught_up();
            tracing::info!(sequence = progress.sequence, "caught up with the stream");
        }
    }
}
