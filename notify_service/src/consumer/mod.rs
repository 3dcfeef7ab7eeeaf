//! The one consumer of this process: an ordered consumer of the whole stream, feeding the ring and the streams.
//!
//! A session lasts as long as nothing is wrong. Whatever is (connection lost, heartbeat missed, order broken, consumer
//! or stream deleted, nothing delivered although something is there) ends it, and the next one looks at the stream
//! first: the same history goes on after the last event that was processed, another one begins anew.
//!
//! The ordered consumer of `async-nats` would recreate itself in most of these cases. It is not let: it would begin at
//! the first message of the stream if it had not delivered any yet, and would go on in another history as if it were
//! the same.

mod history;
mod session;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Info;
use dead_letters::{DeadLetter, DeadLetters, Replay, Shown, State};
use fechatter_core::events::METADATA_EPOCH;
use service_runtime::health::Condition;
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cursor::Cursor;
use crate::event::decode;
use crate::hub::Hub;
use crate::positions::Positions;
use session::Session;

/// Name of this consumer among the dead letters.
pub const CONSUMER: &str = "notify_service";

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Unreadable events that wait to be kept; more are only logged and counted.
const LETTERS_MAX: usize = 256;

/// The epoch of a stream.
pub fn epoch_of(info: &Info) -> Option<Uuid> {
    info.config.metadata.get(METADATA_EPOCH)?.parse().ok()
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Shutdown,
    /// The connection was lost and made again, or is lost.
    Reconnected,
    /// Events are there and none is delivered.
    Stalled,
    /// Another history has begun.
    NewHistory,
    Fault(String),
}

impl Ended {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Reconnected => "reconnected",
            Self::Stalled => "stalled",
            Self::NewHistory => "new_history",
            Self::Fault(_) => "fault",
        }
    }
}

/// Makes the end of a session of an error.
fn fault(what: &str) -> impl Fn(&(dyn std::error::Error + 'static)) -> Ended {
    move |error| Ended::Fault(format!("cannot {what}: {error}"))
}

/// An unreadable event on its way to the dead letters.
#[derive(Debug)]
struct Buried {
    /// The stream's history.
    epoch: Uuid,
    sequence: u64,
    subject: String,
    reason: String,
    body: bytes::Bytes,
}

/// What is known of the history in hand, from session to session.
#[derive(Debug)]
struct Progress {
    epoch: Uuid,
    /// The last sequence that was processed.
    sequence: u64,
    positions: Positions,
    /// What was seen in earlier histories.
    before: Positions,
}

/// Consumes events.
#[derive(Debug)]
pub struct Consumer {
    client: async_nats::Client,
    context: jetstream::Context,
    hub: Arc<Hub>,
    pool: PgPool,
    letters: mpsc::Sender<Buried>,
    /// Events read back at start.
    warm: u64,
    condition: Condition,
    shutdown: CancellationToken,
    progress: Option<Progress>,
}

impl Consumer {
    /// A consumer of the stream behind `client`; `warm` events are read back at start.
    pub fn new(
        client: async_nats::Client,
        hub: Arc<Hub>,
        pool: PgPool,
        warm: usize,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            context: jetstream::new(client.clone()),
            client,
            hub,
            letters: keep_letters(pool.clone()),
            pool,
            warm: warm as u64,
            condition: Condition::failing("the event stream has not been found yet"),
            shutdown,
            progress: None,
        }
    }

    /// Whether events are being consumed.
    pub fn condition(&self) -> Condition {
        self.condition.clone()
    }

    /// Consumes in the background until shutdown.
    pub fn spawn(self) -> JoinHandle<()> {
        tokio::spawn(self.run())
    }

    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut reason = "start";
        loop {
            let ended = match Session::open(&mut self, reason).await {
                Ok(session) => {
                    pause = FIRST_PAUSE;
                    session.run().await
                }
                Err(ended) => ended,
            };
            reason = ended.as_str();
            match ended {
                Ended::Shutdown => return,
                Ended::NewHistory => {}
                Ended::Reconnected => self.interrupted("the connection to NATS was lost"),
                Ended::Stalled => self.interrupted("events are in the stream and none is delivered"),
                Ended::Fault(problem) => self.interrupted(&problem),
            }
            if self
                .shutdown
                .run_until_cancelled(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn interrupted(&self, problem: &str) {
        if self.condition.check().is_ok() {
            tracing::warn!(problem, "consuming events is interrupted");
        } else {
            tracing::debug!(problem, "cannot consume events yet");
        }
        self.hub.set_interrupted();
        self.condition.set(Some(problem.to_owned()));
    }

    fn connects(&self) -> u64 {
        self.client
            .statistics()
            .connects
            .load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// Replays a dead letter: sees whether this build can read it, and records how that ended.
///
/// There is nothing to deliver again. Streams that were there when the event came were told `gap`, their clients have reloaded
/// what it said, and sent now it would come out of order. What is left is to know that the cause is mended.
pub async fn replay(letters: &DeadLetters, id: i64) -> Result<Replay, sqlx::Error> {
    let Some(Shown { letter, body }) = letters.get(id).await? else {
        return Ok(Replay::Unknown);
    };
    match letter.state() {
        State::Waiting => {}
        State::Dropped => return Ok(Replay::Dropped),
        State::Replayed => return Ok(Replay::AlreadyReplayed),
    }
    let at = Cursor {
        epoch: Uuid::nil(),
        sequence: 0,
    };
    if let Err(error) = decode(at, &async_nats::HeaderMap::new(), &body) {
        let reason = error.to_string();
        letters.returned(id, &reason).await?;
        return Ok(Replay::Returned { reason });
    }
    letters.replayed(id).await?;
    Ok(Replay::Replayed)
}

/// Keeps unreadable events in the background: the ones behind do not wait for PostgreSQL.
fn keep_letters(pool: PgPool) -> mpsc::Sender<Buried> {
    let (sender, mut letters) = mpsc::channel::<Buried>(LETTERS_MAX);
    let kept = DeadLetters::new(pool, CONSUMER);
    tokio::spawn(async move {
        while let Some(letter) = letters.recv().await {
            let letter = DeadLetter {
                stream_epoch: letter.epoch,
                stream_sequence: letter.sequence,
                subject: &letter.subject,
                reason: &letter.reason,
                deliveries: 1,
                body: &letter.body,
            };
            let mut pause = FIRST_PAUSE;
            loop {
                // Every replica meets it.
                match kept.keep_once(&letter).await {
                    Ok(()) => break,
                    Err(error) if migrations::is_away(&error) => {
                        tracing::debug!(%error, sequence = letter.stream_sequence, "a dead letter waits for PostgreSQL");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                    Err(error) => {
                        tracing::error!(%error, sequence = letter.stream_sequence, "cannot keep a dead letter");
                        break;
                    }
                }
            }
        }
    });
    sender
}
