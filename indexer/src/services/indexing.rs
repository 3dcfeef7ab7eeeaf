//! From events to a committed index: reads, collapses, applies, and puts aside what cannot be processed.
//!
//! Everything here may happen twice: changes carry versions, dead letters are kept once per stream position.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dead_letters::{DeadLetter, DeadLetters, Replay, Shown, State};
use service_runtime::health::Condition;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::effects::{Effect, Incoming, collapse, read};
use crate::consumer::CONSUMER;
use crate::engine::{Change, EngineError, MessageDocument, SearchEngine, StreamPosition};
use crate::metrics::Metrics;
use crate::repositories::messages;

/// Deliveries after which an event is processed by itself, so that it harms no other any more.
const ISOLATED_FROM: i64 = 3;
/// Times an engine may fail at a batch, although it would take others, before the batch is suspected.
pub const SUSPECT_AFTER: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait for the engine to take a replayed event.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(30);

/// The process is ending and the batch is not done; it will be delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by shutdown")]
pub struct Interrupted;

/// Why a dead letter could not be replayed now; it is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReplayFault {
    #[error("PostgreSQL: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the search engine: {0}")]
    Engine(#[from] EngineError),
    #[error("the search engine did not answer within {} s", REPLAY_TIMEOUT.as_secs())]
    Timeout,
}

/// Why an event was given up, as a bounded label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GivenUp {
    Unreadable,
    Refused,
    Exhausted,
}

impl GivenUp {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Refused => "refused",
            Self::Exhausted => "exhausted",
        }
    }
}

/// Applies events to the index.
#[derive(Debug)]
pub struct Indexing {
    pool: PgPool,
    letters: DeadLetters,
    engine: Arc<dyn SearchEngine>,
    metrics: Metrics,
    max_deliveries: i64,
    shutdown: CancellationToken,
    reached: Mutex<Option<StreamPosition>>,
    condition: Condition,
}

impl Indexing {
    /// A service that applies to `engine` and keeps dead letters in `pool`.
    pub fn new(
        pool: PgPool,
        engine: Arc<dyn SearchEngine>,
        metrics: Metrics,
        max_deliveries: i64,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            letters: DeadLetters::new(pool.clone(), CONSUMER),
            pool,
            engine,
            metrics,
            max_deliveries,
            shutdown,
            reached: Mutex::new(None),
            condition: Condition::default(),
        }
    }

    /// What it waits for, if anything.
    pub fn condition(&self) -> Condition {
        self.condition.clone()
    }

    /// The engine it applies to.
    pub fn engine(&self) -> &Arc<dyn SearchEngine> {
        &self.engine
    }

    /// Processes a batch to its end: afterwards each event's effect is findable or the event is a dead letter, and all
    /// of them can be acknowledged. Waits as long as the engine or PostgreSQL is away.
    pub async fn process(&self, events: &[Incoming]) -> Result<(), Interrupted> {
        let mut together = Vec::with_capacity(events.len());
        let mut alone = Vec::new();
        for event in events {
            if event.deliveries > self.max_deliveries {
                self.give_up(event, GivenUp::Exhausted, "delivered too often without being processed")
                    .await?;
                continue;
            }
            match read(event) {
                Ok(effect) if event.deliveries >= ISOLATED_FROM => alone.push(effect),
                Ok(effect) => together.push(effect),
                Err(fault) => self.give_up(event, GivenUp::Unreadable, &fault.to_string()).await?,
            }
        }
        self.apply_or_split(together).await?;
        for effect in alone {
            self.apply_or_split(vec![effect]).await?;
        }
        Ok(())
    }

    /// Applies effects; a refused batch is halved until the one at fault is alone.
    async fn apply_or_split(&self, effects: Vec<Effect<'_>>) -> Result<(), Interrupted> {
        let mut parts = vec![effects];
        while let Some(part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let Err(refusal) = self.apply(&part).await? else {
                continue;
            };
            if let [only] = &part[..] {
                self.give_up(only.event, GivenUp::Refused, &refusal).await?;
                continue;
            }
            tracing::warn!(events = part.len(), refusal, "a batch was refused; halving it");
            let (first, second) = part.split_at(part.len() / 2);
            // The first half next, to keep the order of events.
            parts.push(second.to_vec());
            parts.push(first.to_vec());
        }
        Ok(())
    }

    /// Applies effects in one commit, waiting for an engine that is away. The inner error says why it was refused.
    async fn apply(&self, effects: &[Effect<'_>]) -> Result<Result<(), String>, Interrupted> {
        let changes = collapse(effects);
        let position = self.advance(effects.iter().map(|effect| effect.event.position));
        let mut pause = FIRST_PAUSE;
        let mut failures = 0;
        let result = loop {
            match self.engine.apply(changes.clone(), position).await {
                Ok(applied) => {
                    self.metrics.applied(&applied);
                    break Ok(());
                }
                Err(EngineError::Rejected(reason)) => break Err(reason),
                // No batch is at fault, however long it takes.
                Err(EngineError::Full(reason) | EngineError::Unavailable(reason)) => {
                    self.wait(&format!("the search engine: {reason}"), &mut pause).await?;
                }
                Err(EngineError::Failed(reason)) => {
                    failures += 1;
                    if failures >= SUSPECT_AFTER && self.engine.writable().await.is_ok() {
                        break Err(reason);
                    }
                    self.wait(&format!("the search engine: {reason}"), &mut pause).await?;
                }
            }
        };
        self.condition.set(None);
        if result.is_ok() {
            let now = OffsetDateTime::now_utc();
            for effect in effects.iter().filter(|effect| effect.change.is_some()) {
                let lag = (now - effect.happened_at).max(time::Duration::ZERO);
                self.metrics.findable_after(lag.unsigned_abs());
            }
        }
        Ok(result)
    }

    /// Processes a dead letter once more and records how that ended; an error when PostgreSQL or the engine is away.
    ///
    /// An old event says what was. What it concerns is therefore brought to what PostgreSQL says now, which is right
    /// however late it is and however often it happens; the index's position in the stream stays.
    pub async fn replay(&self, id: i64) -> Result<Replay, ReplayFault> {
        let Some(Shown { letter, body }) = self.letters.get(id).await? else {
            return Ok(Replay::Unknown);
        };
        match letter.state() {
            State::Waiting => {}
            State::Dropped => return Ok(Replay::Dropped),
            State::Replayed => return Ok(Replay::AlreadyReplayed),
        }
        let event = Incoming {
            position: StreamPosition::default(),
            subject: letter.subject,
            deliveries: letter.deliveries,
            body: body.into(),
        };
        let refused = match read(&event) {
            Ok(effect) => self.bring_up_to_date(effect.change).await?,
            Err(fault) => Some(fault.to_string()),
        };
        if let Some(reason) = refused {
            self.letters.returned(id, &reason).await?;
            return Ok(Replay::Returned { reason });
        }
        self.letters.replayed(id).await?;
        tracing::info!(id, subject = event.subject, "a dead letter was replayed");
        Ok(Replay::Replayed)
    }

    /// Brings what a change concerns to its present state; why not, when the engine refuses it.
    async fn bring_up_to_date(&self, change: Option<Change>) -> Result<Option<String>, ReplayFault> {
        let changes = match change {
            Some(Change::Upsert(MessageDocument { id, .. }) | Change::Delete { id, .. }) => {
                messages::change_of(&self.pool, id).await?.into_iter().collect()
            }
            // A deleted chat never comes back.
            Some(Change::DeleteChat(chat)) => vec![Change::DeleteChat(chat)],
            None => Vec::new(),
        };
        if changes.is_empty() {
            return Ok(None);
        }
        let applying = self.engine.apply(changes, None);
        match tokio::time::timeout(REPLAY_TIMEOUT, applying).await {
            Ok(Ok(_)) => Ok(None),
            Ok(Err(EngineError::Rejected(reason))) => Ok(Some(reason)),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(ReplayFault::Timeout),
        }
    }

    /// The position that these events bring the index to: never back within one history.
    fn advance(&self, positions: impl Iterator<Item = StreamPosition>) -> Option<StreamPosition> {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        for position in positions {
            *reached = StreamPosition::reached(*reached, Some(position));
        }
        *reached
    }

    /// Keeps an event as a dead letter, waiting for PostgreSQL when it is away.
    async fn give_up(&self, event: &Incoming, why: GivenUp, reason: &str) -> Result<(), Interrupted> {
        let letter = DeadLetter {
            stream_epoch: event.position.epoch,
            stream_sequence: event.position.sequence,
            subject: &event.subject,
            reason,
            deliveries: event.deliveries,
            body: &event.body,
        };
        let mut pause = FIRST_PAUSE;
        let kept = loop {
            match self.letters.keep(&letter).await {
                Err(error) if migrations::is_away(&error) => {
                    self.wait(&format!("PostgreSQL, to keep a dead letter: {error}"), &mut pause)
                        .await?;
                }
                kept => break kept,
            }
        };
        self.condition.set(None);
        self.metrics.dead_letter(why.as_str());
        if let Err(error) = kept {
            // What PostgreSQL refuses it refuses for ever; the stream still has the event, and others wait behind it.
            tracing::error!(
                subject = event.subject,
                sequence = event.position.sequence,
                why = why.as_str(),
                reason,
                %error,
                "an event was given up and could not be kept as a dead letter"
            );
            return Ok(());
        }
        tracing::error!(
            subject = event.subject,
            sequence = event.position.sequence,
            deliveries = event.deliveries,
            why = why.as_str(),
            reason,
            "an event was given up and kept as a dead letter"
        );
        Ok(())
    }

    async fn wait(&self, reason: &str, pause: &mut Duration) -> Result<(), Interrupted> {
        if self.condition.check().is_ok() {
            tracing::warn!(reason, "indexing waits");
        }
        self.condition.set(Some(format!("waits for {reason}")));
        tokio::select! {
            () = self.shutdown.cancelled() => Err(Interrupted),
            () = tokio::time::sleep(*pause) => {
                *pause = (*pause * 2).min(LONGEST_PAUSE);
                Ok(())
            }
        }
    }
}
