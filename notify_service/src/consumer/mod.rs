//! The one ordered consumer of a process: reads the event stream from where it is and feeds the hub.
//!
//! A session lasts as long as reading works; whatever ends it is followed by another that goes on from the last sequence
//! looked at, or begins the stream's new history.

mod interpret;
mod positions;
mod session;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::hub::{Change, Entry, Hub, Reading};
use crate::metrics;
use crate::repositories::memberships;
pub(crate) use interpret::{Meaning, interpret};
use positions::Positions;
pub(crate) use session::{epoch_of, place_of};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Users whose chats are read at once when all must be read again.
const RELEARN_BATCH: usize = 500;
/// How often the database is asked about a doubtful membership before its user is made to come back.
const VERIFY_ATTEMPTS: usize = 3;

/// Whether events are being consumed; for `/health`.
#[derive(Debug, Clone)]
pub struct Status(Arc<Mutex<Option<String>>>);

impl Status {
    /// `Err` with the reason while no events are consumed.
    pub fn check(&self) -> Result<Option<String>, String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(None),
            Some(problem) => Err(problem.clone()),
        }
    }

    fn set(&self, problem: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// Consumes events.
#[derive(Debug)]
pub struct Consumer {
    client: async_nats::Client,
    context: jetstream::Context,
    pool: PgPool,
    hub: Arc<Hub>,
    start_seconds: i64,
    shutdown: CancellationToken,
    status: Status,
    positions: Positions,
    /// The stream's sequence of the newest event looked at.
    sequence: u64,
}

impl Consumer {
    /// A consumer that starts `start_seconds` back.
    pub fn new(
        client: async_nats::Client,
        pool: PgPool,
        hub: Arc<Hub>,
        start_seconds: i64,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            context: jetstream::new(client.clone()),
            client,
            pool,
            hub,
            start_seconds,
            shutdown,
            status: Status(Arc::new(Mutex::new(Some("not connected to the stream yet".to_owned())))),
            positions: Positions::default(),
            sequence: 0,
        }
    }

    /// Whether events are being consumed.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Consumes in the background until shutdown.
    pub fn spawn(self) -> JoinHandle<()> {
        tokio::spawn(self.run())
    }

    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let shutdown = self.shutdown.clone();
        loop {
            let problem = tokio::select! {
                () = shutdown.cancelled() => return,
                problem = self.session(&mut pause) => problem,
            };
            if self.status.check().is_ok() {
                tracing::warn!(problem, "consuming events is interrupted");
            } else {
                tracing::debug!(problem, "cannot consume events yet");
            }
            self.status.set(Some(problem));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    async fn apply(&self, meaning: Meaning) {
        match meaning {
            Meaning::Revoke { user, session } => self.hub.revoke_session(user, session),
            Meaning::Deliver {
                entry,
                change,
                deactivated,
                time,
            } => {
                let receivers = self.deliver(entry, &change).await;
                metrics::delivered(time, receivers);
                if let Some(user) = deactivated {
                    self.hub.deactivate(user);
                }
            }
        }
    }

    /// Delivers an event, asking the database first about those who join by it and may have left since.
    async fn deliver(&self, entry: Entry, change: &Change) -> usize {
        let (mut verified, mut absent) = (HashSet::new(), HashSet::new());
        loop {
            let doubtful = match self.hub.publish(entry.clone(), change, &verified, &absent) {
                Ok(receivers) => return receivers,
                Err(doubtful) => doubtful,
            };
            let Change::Joined { chat, .. } = change else { return 0 };
            match self.verify(*chat, &doubtful).await {
                Some(present) => {
                    absent.extend(doubtful.iter().filter(|user| !present.contains(user)));
                    verified.extend(doubtful);
                }
                None => self.hub.forget(&doubtful),
            }
        }
    }

    async fn verify(
        &self,
        chat: fechatter_core::ChatId,
        users: &[fechatter_core::UserId],
    ) -> Option<Vec<fechatter_core::UserId>> {
        for _ in 0..VERIFY_ATTEMPTS {
            match memberships::among(&self.pool, chat, users).await {
                Ok(present) => return Some(present),
                Err(error) => tracing::warn!(%error, "cannot verify a membership"),
            }
            tokio::time::sleep(FIRST_PAUSE).await;
        }
        None
    }

    /// Reads the chats of everybody known again, because changes of them may have been lost.
    async fn relearn(&self) -> Result<(), String> {
        for users in self.hub.known_users().chunks(RELEARN_BATCH) {
            let at = OffsetDateTime::now_utc();
            let memberships = memberships::of_users(&self.pool, users)
                .await
                .map_err(|error| format!("cannot read memberships: {error}"))?;
            self.hub.relearn(users, &Reading { memberships, at });
        }
        Ok(())
    }
}
