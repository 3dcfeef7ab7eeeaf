//! The durable pull consumer: takes events from JetStream in batches and acknowledges them once the engine has them.
//!
//! A session lasts as long as the consumer works; whatever ends it (NATS away, stream rebuilt, nothing delivered although
//! something is pending) is followed by another one. Redelivery is harmless, so acknowledging is never urgent and never
//! early: the engine commits, then each event is acknowledged, and the last acknowledgement of a batch confirmed.

mod batch;
mod session;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use service_runtime::health::Condition;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::metrics::Metrics;
use crate::services::indexing::Indexing;
use crate::services::reindex::Reindex;
use crate::services::turn::Turn;
use session::{Ended, Session};

/// Name of the durable consumer.
pub const CONSUMER: &str = "indexer";

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a process that only searches looks whether it is its turn to write.
const STANDBY: Duration = Duration::from_secs(1);

/// Consumes events.
#[derive(Debug)]
pub struct Consumer {
    context: jetstream::Context,
    indexing: Arc<Indexing>,
    reindex: Arc<Reindex>,
    turn: Arc<Turn>,
    metrics: Metrics,
    settings: config::Batch,
    shutdown: CancellationToken,
    condition: Condition,
}

impl Consumer {
    /// A consumer of the stream behind `client`.
    pub fn new(
        client: async_nats::Client,
        indexing: Arc<Indexing>,
        reindex: Arc<Reindex>,
        turn: Arc<Turn>,
        metrics: Metrics,
        settings: config::Batch,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            context: jetstream::new(client),
            indexing,
            reindex,
            turn,
            metrics,
            settings,
            shutdown,
            condition: Condition::failing("not connected to the stream yet"),
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

    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        // Where a consumer that has to be made anew begins.
        let mut restart_from = None;
        while !self.shutdown.is_cancelled() {
            let ended = match self.turn.take().await {
                Ok(true) => self.consume(&mut restart_from, &mut pause).await,
                // Nothing is wrong: another indexer brings the index up to date, this one searches in it.
                Ok(false) => {
                    self.condition.set(None);
                    tokio::select! {
                        () = self.shutdown.cancelled() => break,
                        () = tokio::time::sleep(STANDBY) => continue,
                    }
                }
                Err(error) => Ended::Fault(format!("cannot take the turn to write: {error}")),
            };
            match ended {
                Ended::Shutdown => break,
                Ended::Stalled { from } => {
                    tracing::error!(
                        from,
                        "events are pending and none is delivered; the consumer is made anew"
                    );
                    restart_from = Some(from);
                }
                Ended::Fault(problem) => {
                    if self.condition.check().is_ok() {
                        tracing::warn!(problem, "consuming events is interrupted");
                    } else {
                        tracing::debug!(problem, "cannot consume events yet");
                    }
                    self.condition.set(Some(problem));
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    /// Consumes until something ends it.
    async fn consume(&self, restart_from: &mut Option<u64>, pause: &mut Duration) -> Ended {
        match Session::open(self, restart_from.take()).await {
            Ok(session) => {
                *pause = FIRST_PAUSE;
                self.condition.set(None);
                session.run().await
            }
            Err(ended) => ended,
        }
    }
}
