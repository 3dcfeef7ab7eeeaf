//! One stretch of consuming, from finding the stream and the consumer to whatever ends it.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer};
use async_nats::jetstream::stream::{ConsumerErrorKind, Stream};
use async_nats::jetstream::{AckKind, ErrorCode};
use fechatter_core::events::{METADATA_EPOCH, STREAM};
use futures::{FutureExt, StreamExt};
use observability::messaging::{self, Operation};
use opentelemetry::KeyValue;
use opentelemetry::trace::TraceContextExt;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::Instrument;

use super::batch::{Delivery, Gathered, gather};
use super::{CONSUMER, Consumer};
use crate::services::effects::Incoming;
use crate::services::reindex::State;

/// How long an event may be worked on before it is delivered again; renewed while a batch waits.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Later deliveries wait longer.
const BACKOFF: [Duration; 4] = [
    ACK_WAIT,
    Duration::from_mins(1),
    Duration::from_mins(2),
    Duration::from_mins(5),
];
/// After how long an event that is given back is delivered again. At once would be into our own request for events, which the
/// server holds until it hears that nobody waits for its answers, and then for the whole time of the acknowledgement.
const GIVE_BACK: Duration = Duration::from_millis(500);
/// How often the backlog is looked at.
const MONITOR: Duration = Duration::from_secs(5);
/// How often a batch that takes long says that it is being worked on.
const PROGRESS: Duration = Duration::from_secs(10);
/// Faults of the message stream in a row after which it is opened again.
const FAULTS_MAX: u32 = 3;

/// Why a session ended.
#[derive(Debug)]
pub(super) enum Ended {
    Shutdown,
    /// Pending events are not delivered; a new consumer should begin at this stream sequence.
    Stalled {
        from: u64,
    },
    Fault(String),
}

fn fault(what: &str) -> impl Fn(&(dyn std::error::Error + 'static)) -> Ended {
    move |error| Ended::Fault(format!("cannot {what}: {error}"))
}

/// Consuming, once stream and consumer are found.
pub(super) struct Session<'a> {
    owner: &'a Consumer,
    consumer: PullConsumer,
    messages: pull::Stream,
    last_delivery: Instant,
    faults: u32,
}

/// The consumer as it should be; `deliver` is where a new one begins.
fn wanted(deliver: DeliverPolicy, ack_pending: usize) -> pull::Config {
    pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        description: Some("Brings messages into the search index; shared by all indexers".to_owned()),
        deliver_policy: deliver,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        // Bounded by us: past `max_deliveries` an event becomes a dead letter. The server's own bound would only stop
        // delivering, and an event that nobody delivers and nobody keeps is lost.
        max_deliver: -1,
        backoff: BACKOFF.to_vec(),
        // Everything, what does not concern the index too: the server looks for the next match of several subjects among all
        // subjects of a block, one for each chat, which cost it as much as everything else it did.
        filter_subjects: Vec::new(),
        max_ack_pending: i64::try_from(ack_pending).unwrap_or(i64::MAX),
        ..pull::Config::default()
    }
}

fn is_absent(kind: &ConsumerErrorKind) -> bool {
    matches!(kind, ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

/// Opens the consumer, bringing its configuration in line, or makes it. `true` when it was made.
async fn open_consumer(
    stream: &Stream,
    restart_from: Option<u64>,
    batch: usize,
) -> Result<(PullConsumer, bool), Ended> {
    let ack_pending = batch.saturating_mul(4);
    if restart_from.is_some()
        && let Err(error) = stream.delete_consumer(CONSUMER).await
        && !is_absent(&error.kind())
    {
        return Err(fault("delete the consumer")(&error));
    }
    let existing = match stream.consumer_info(CONSUMER).await {
        Ok(info) => Some(info),
        Err(error) => {
            let not_found = matches!(
                error.kind(),
                async_nats::jetstream::context::ConsumerInfoErrorKind::NotFound
            );
            if !not_found {
                return Err(fault("look for the consumer")(&error));
            }
            None
        }
    };
    // A consumer that has seen more than the stream holds belongs to a history that is gone.
    let last = stream.cached_info().state.last_sequence;
    let existing = match existing {
        Some(info) if info.ack_floor.stream_sequence > last => {
            tracing::warn!(
                seen = info.ack_floor.stream_sequence,
                last,
                "the consumer is ahead of the stream, which was lost or restored; it is made anew"
            );
            stream
                .delete_consumer(CONSUMER)
                .await
                .map_err(|error| fault("delete the consumer")(&error))?;
            None
        }
        other => other,
    };
    let made = existing.is_none();
    let deliver = match (existing, restart_from) {
        (Some(info), _) => info.config.deliver_policy,
        (None, Some(start_sequence)) if start_sequence > 0 => DeliverPolicy::ByStartSequence { start_sequence },
        (None, _) => DeliverPolicy::All,
    };
    let consumer = stream
        .create_consumer(wanted(deliver, ack_pending))
        .await
        .map_err(|error| fault("make the consumer")(&error))?;
    Ok((consumer, made))
}

impl<'a> Session<'a> {
    /// Finds the stream and the consumer; `restart_from` replaces the consumer by one that begins there.
    pub(super) async fn open(owner: &'a Consumer, restart_from: Option<u64>) -> Result<Self, Ended> {
        let stream = owner
            .context
            .get_stream(STREAM)
            .await
            .map_err(|error| fault("find the stream")(&error))?;
        let batch = owner.settings.backlog_max_events;
        let (consumer, made) = open_consumer(&stream, restart_from, batch).await?;
        if let Some(reason) = missed(owner, &stream, &consumer, made).await? {
            owner.reindex.start(&reason);
        }
        let messages = consumer
            .stream()
            .max_messages_per_batch(batch)
            .expires(Duration::from_secs(30))
            .heartbeat(Duration::from_secs(10))
            .messages()
            .await
            .map_err(|error| fault("ask for events")(&error))?;
        tracing::info!(new = made, "consuming events");
        Ok(Self {
            owner,
            consumer,
            messages,
            last_delivery: Instant::now(),
            faults: 0,
        })
    }

    /// Consumes until something ends it.
    pub(super) async fn run(mut self) -> Ended {
        let mut monitor = interval(MONITOR);
        monitor.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = loop {
            let first = tokio::select! {
                () = self.owner.shutdown.cancelled() => break Ended::Shutdown,
                _ = monitor.tick() => match self.look_at_backlog().await {
                    Ok(()) => continue,
                    Err(ended) => break ended,
                },
                first = self.messages.next() => first,
            };
            let message = match first {
                Some(Ok(message)) => message,
                Some(Err(error)) => match self.tolerate(&error.to_string()) {
                    Some(ended) => break ended,
                    None => continue,
                },
                None => break Ended::Fault("the message stream ended".to_owned()),
            };
            let mut batch: Vec<Delivery> = Delivery::of(message).into_iter().collect();
            let gathered = gather(&mut self.messages, &mut batch, &self.owner.settings).await;
            if let Err(ended) = self.process(&batch).await {
                self.give_back(batch).await;
                break ended;
            }
            self.faults = 0;
            self.last_delivery = Instant::now();
            match gathered {
                Gathered::Full => {}
                Gathered::Broken(Some(problem)) => {
                    if let Some(ended) = self.tolerate(&problem) {
                        break ended;
                    }
                }
                Gathered::Broken(None) => break Ended::Fault("the message stream ended".to_owned()),
            }
        };
        self.close().await;
        ended
    }

    /// A fault of the message stream is not its end: a missing heartbeat, most of the time.
    fn tolerate(&mut self, problem: &str) -> Option<Ended> {
        self.faults += 1;
        tracing::debug!(problem, faults = self.faults, "fault while waiting for events");
        (self.faults >= FAULTS_MAX).then(|| Ended::Fault(problem.to_owned()))
    }

    async fn process(&self, batch: &[Delivery]) -> Result<(), Ended> {
        if batch.is_empty() {
            return Ok(());
        }
        if !self.owner.turn.is_ours().await {
            return Err(Ended::Fault(
                "the turn to write was lost with its connection to PostgreSQL".to_owned(),
            ));
        }
        let started = std::time::Instant::now();
        let redelivered = batch.iter().filter(|delivery| delivery.incoming.deliveries > 1).count();
        self.owner
            .metrics
            .batch_received(batch.len() as u64, redelivered as u64);
        let span = tracing::info_span!(
            "index batch",
            otel.name = format!("process {STREAM}"),
            otel.kind = "consumer",
            messaging.system = "nats",
            messaging.operation.name = "process",
            "messaging.operation.type" = "process",
            messaging.destination.name = STREAM,
            messaging.consumer.group.name = CONSUMER,
            messaging.batch.message_count = batch.len(),
        );
        // Of those alone that are recorded: a link to what nobody kept leads nowhere.
        let contexts: Vec<_> = (batch.iter())
            .filter_map(|delivery| delivery.message.headers.as_ref())
            .map(observability::propagation::extract_nats)
            .filter(|context| context.span().span_context().is_sampled())
            .collect();
        for context in &contexts {
            observability::propagation::add_link(&span, context);
        }
        let began = std::time::SystemTime::now();
        self.index_and_acknowledge(batch).instrument(span).await?;
        for context in contexts {
            let parent = context.span().span_context().clone();
            let group = [KeyValue::new("messaging.consumer.group.name", CONSUMER)];
            messaging::record("indexer", Operation::Index, &parent, began, group, None);
        }
        self.owner.metrics.batch_processed(started.elapsed());
        Ok(())
    }

    async fn index_and_acknowledge(&self, batch: &[Delivery]) -> Result<(), Ended> {
        let events: Vec<Incoming> = batch.iter().map(|delivery| delivery.incoming.clone()).collect();
        let work = self.owner.indexing.process(&events);
        tokio::pin!(work);
        let mut progress = interval(PROGRESS);
        progress.tick().await;
        loop {
            tokio::select! {
                result = &mut work => {
                    result.map_err(|_| Ended::Shutdown)?;
                    break;
                }
                _ = progress.tick() => self.acknowledge_each(batch, AckKind::Progress).await,
            }
        }
        // Acknowledgements of one connection arrive in their order, so the last one's confirmation is that of all. What gets lost
        // is delivered again and changes nothing.
        let Some((last, others)) = batch.split_last() else {
            return Ok(());
        };
        self.acknowledge_each(others, AckKind::Ack).await;
        if let Err(error) = last.message.double_ack().await {
            tracing::warn!(%error, "acknowledgements were not confirmed; the events will come again");
        }
        Ok(())
    }

    async fn acknowledge_each(&self, batch: &[Delivery], kind: AckKind) {
        for delivery in batch {
            if let Err(error) = delivery.message.ack_with(kind).await {
                tracing::debug!(%error, "cannot acknowledge");
                return;
            }
        }
    }

    /// Gives events back so that another process has them soon, not after the acknowledgement's time.
    async fn give_back(&self, batch: Vec<Delivery>) {
        self.acknowledge_each(&batch, AckKind::Nak(Some(GIVE_BACK))).await;
    }

    /// Gives back what was delivered and not begun, and stops asking for more.
    async fn close(mut self) {
        let mut waiting = Vec::new();
        while let Some(Some(Ok(message))) = self.messages.next().now_or_never() {
            waiting.extend(Delivery::of(message));
        }
        self.give_back(waiting).await;
        let Self { owner, messages, .. } = self;
        drop(messages);
        let flushed = tokio::time::timeout(Duration::from_secs(2), owner.context.client().flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::debug!("could not give events back; they come again by themselves");
        }
    }

    /// Measures the backlog, and notices when it is not delivered.
    async fn look_at_backlog(&mut self) -> Result<(), Ended> {
        if !self.owner.turn.is_ours().await {
            return Err(Ended::Fault(
                "the turn to write was lost with its connection to PostgreSQL".to_owned(),
            ));
        }
        let info = match self.consumer.get_info().await {
            Ok(info) => info,
            Err(error) => {
                let gone = matches!(
                    error.kind(),
                    async_nats::jetstream::context::ConsumerInfoErrorKind::NotFound
                        | async_nats::jetstream::context::ConsumerInfoErrorKind::StreamNotFound
                );
                return if gone {
                    Err(fault("find the consumer")(&error))
                } else {
                    Ok(())
                };
            }
        };
        self.owner
            .metrics
            .backlog(info.num_pending, info.num_ack_pending as u64);
        if let Ok(documents) = self.owner.indexing.engine().documents().await {
            self.owner.metrics.documents(documents);
        }
        self.rebuild_if_incomplete().await;
        // An operator who paused the consumer means it.
        if info.num_pending == 0 || info.paused {
            self.last_delivery = Instant::now();
        }
        let silent = self.last_delivery.elapsed();
        if silent >= Duration::from_secs(self.owner.settings.watchdog_seconds) {
            return Err(Ended::Stalled {
                from: info.ack_floor.stream_sequence + 1,
            });
        }
        Ok(())
    }

    /// Notices an index that lost something while we run: a Meilisearch that was restored from a snapshot. After a
    /// rebuild that failed a person is needed, who sees it in `/health`.
    async fn rebuild_if_incomplete(&self) {
        let reindex = &self.owner.reindex;
        if matches!(reindex.progress().state, State::Running | State::Failed) {
            return;
        }
        if let Ok(Some(reason)) = self.owner.indexing.engine().incomplete().await {
            reindex.start(&reason);
        }
    }
}

/// Whether events may have passed that the index has never seen; the reason, if so. Then only PostgreSQL can tell.
async fn missed(
    owner: &Consumer,
    stream: &Stream,
    consumer: &PullConsumer,
    made: bool,
) -> Result<Option<String>, Ended> {
    let engine = owner.indexing.engine();
    let cannot = |error: crate::engine::EngineError| Ended::Fault(error.to_string());
    if let Some(reason) = engine.incomplete().await.map_err(cannot)? {
        return Ok(Some(reason));
    }
    let info = stream.cached_info();
    let first = info.state.first_sequence;
    let epoch = info
        .config
        .metadata
        .get(METADATA_EPOCH)
        .and_then(|epoch| epoch.parse().ok());
    let known = engine
        .position()
        .await
        .map_err(cannot)?
        // Another history is published again from its beginning by the relay.
        .filter(|position| Some(position.epoch) == epoch);
    let acknowledged = consumer.cached_info().ack_floor.stream_sequence;
    if let Some(known) = known {
        if !made && acknowledged > known.sequence {
            return Ok(Some(format!(
                "the index ends at event {} but {acknowledged} is acknowledged: it is older than the consumer",
                known.sequence
            )));
        }
        if first > known.sequence.max(acknowledged) + 1 {
            return Ok(Some(format!(
                "the stream begins at event {first}, after event {} that the index ends at",
                known.sequence
            )));
        }
    } else if !made && acknowledged > 0 && first > acknowledged + 1 {
        return Ok(Some(format!(
            "the stream begins at event {first}, after event {acknowledged} that was acknowledged last"
        )));
    }
    Ok(None)
}
