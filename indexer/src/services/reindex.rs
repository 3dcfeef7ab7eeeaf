//! Rebuilding the index from PostgreSQL into a fresh one, while the old one serves and live changes reach both.
//!
//! Nothing is missed: a message committed before the rebuild began is found by the walk over ids; one committed later
//! has its event delivered later, and from the beginning on events are applied to both. Versions settle the order.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fechatter_core::MessageId;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::engine::{Change, EngineError, SearchEngine};
use crate::repositories::messages;
use crate::services::indexing::SUSPECT_AFTER;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where a rebuild stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// None was started since this process began.
    #[default]
    Idle,
    Running,
    Done,
    Failed,
}

/// How a rebuild goes; what `GET /reindex` on the admin listener answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    pub state: State,
    /// Why it was started.
    pub reason: String,
    /// Messages looked at, and how many there were at its beginning.
    pub loaded: i64,
    pub total: i64,
    /// Messages that the engine refused.
    pub refused: i64,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// What it waits for, or why it failed.
    pub problem: Option<String>,
}

/// Why a rebuild ended early.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("interrupted by shutdown")]
    Shutdown,
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Rebuilds, one at a time.
#[derive(Debug)]
pub struct Reindex {
    pool: PgPool,
    engine: Arc<dyn SearchEngine>,
    settings: config::Reindex,
    shutdown: CancellationToken,
    progress: Mutex<Progress>,
}

impl Reindex {
    /// A service that reads from `pool` and builds in `engine`.
    pub fn new(
        pool: PgPool,
        engine: Arc<dyn SearchEngine>,
        settings: config::Reindex,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            pool,
            engine,
            settings,
            shutdown,
            progress: Mutex::default(),
        })
    }

    /// How the present or last rebuild goes.
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For `/health`: a note while a rebuild runs, an error after one that failed.
    pub fn check(&self) -> Result<Option<String>, String> {
        let progress = self.progress();
        match progress.state {
            State::Running => Ok(Some(format!(
                "rebuilding, {} of {} messages",
                progress.loaded, progress.total
            ))),
            State::Failed => Err(format!("the rebuild failed: {}", progress.problem.unwrap_or_default())),
            State::Idle | State::Done => Ok(None),
        }
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Starts a rebuild unless one is running; `false` when one is.
    pub fn start(self: &Arc<Self>, reason: &str) -> bool {
        {
            let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            if progress.state == State::Running {
                return false;
            }
            *progress = Progress {
                state: State::Running,
                reason: reason.to_owned(),
                started_at: Some(OffsetDateTime::now_utc()),
                ..Progress::default()
            };
        }
        tracing::info!(reason, "rebuilding the search index");
        tokio::spawn(Arc::clone(self).run());
        true
    }

    async fn run(self: Arc<Self>) {
        let result = self.rebuild().await;
        let finished = |progress: &mut Progress, state| {
            progress.state = state;
            progress.finished_at = Some(OffsetDateTime::now_utc());
        };
        match result {
            Ok(()) => {
                self.note(|progress| {
                    finished(progress, State::Done);
                    progress.problem = None;
                });
                let Progress { loaded, refused, .. } = self.progress();
                tracing::info!(loaded, refused, "the search index is rebuilt and serves");
            }
            // What is built so far is kept where the engine can; the next start goes on.
            Err(Ended::Shutdown) => tracing::info!("the rebuild of the search index is interrupted"),
            Err(Ended::Engine(error)) => {
                tracing::error!(%error, "the rebuild of the search index failed; the old one serves on");
                self.note(|progress| {
                    finished(progress, State::Failed);
                    progress.problem = Some(error.to_string());
                });
                if let Err(error) = self.engine.rebuild_abort().await {
                    tracing::warn!(%error, "cannot drop what was built");
                }
            }
        }
    }

    async fn rebuild(&self) -> Result<(), Ended> {
        let mut cursor = MessageId(self.persist(|| self.engine.rebuild_begin()).await?);
        let total = self.query(|| messages::count_after(&self.pool, cursor)).await?;
        self.note(|progress| progress.total = total);
        while let Some(chunk) = self
            .query(|| messages::changes_after(&self.pool, cursor, self.settings.chunk))
            .await?
        {
            self.load(chunk.changes, cursor, chunk.last).await?;
            cursor = chunk.last;
            self.note(|progress| progress.loaded += chunk.rows);
            self.pause(Duration::from_millis(self.settings.pause_ms)).await?;
        }
        self.persist(|| self.engine.rebuild_finish()).await
    }

    /// Loads a chunk, which ends at `last`; a refused one is halved until what is at fault is alone, and that is left out.
    ///
    /// Only the end of a chunk moves the cursor: a rebuild that is interrupted before reads the whole chunk again.
    async fn load(&self, changes: Vec<Change>, before: MessageId, last: MessageId) -> Result<(), Ended> {
        let mut parts = vec![changes];
        while let Some(part) = parts.pop() {
            let cursor = if parts.is_empty() { last } else { before };
            match self.persist(|| self.engine.rebuild_load(part.clone(), cursor.0)).await {
                Ok(()) => {}
                Err(Ended::Engine(EngineError::Rejected(reason))) if part.len() <= 1 => {
                    tracing::error!(change = ?part.first().map(id_of), reason, "a message cannot be indexed");
                    self.note(|progress| progress.refused += 1);
                }
                Err(Ended::Engine(EngineError::Rejected(_))) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.push(second.to_vec());
                    parts.push(first.to_vec());
                }
                Err(ended) => return Err(ended),
            }
        }
        Ok(())
    }

    /// Repeats an engine call while the engine is away; one it fails at again and again is refused.
    async fn persist<T, F>(&self, call: impl Fn() -> F) -> Result<T, Ended>
    where
        F: Future<Output = Result<T, EngineError>>,
    {
        let mut pause = FIRST_PAUSE;
        let mut failures = 0;
        loop {
            match call().await {
                Err(EngineError::Unavailable(reason) | EngineError::Full(reason)) => {
                    self.wait(reason, &mut pause).await?;
                }
                Err(EngineError::Failed(reason)) => {
                    failures += 1;
                    if failures >= SUSPECT_AFTER && self.engine.writable().await.is_ok() {
                        return Err(EngineError::Rejected(reason).into());
                    }
                    self.wait(reason, &mut pause).await?;
                }
                result => {
                    self.note(|progress| progress.problem = None);
                    return Ok(result?);
                }
            }
        }
    }

    /// Repeats a query while PostgreSQL is away.
    async fn query<T, F>(&self, call: impl Fn() -> F) -> Result<T, Ended>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            match call().await {
                Ok(value) => return Ok(value),
                Err(error) => self.wait(format!("PostgreSQL: {error}"), &mut pause).await?,
            }
        }
    }

    async fn wait(&self, problem: String, pause: &mut Duration) -> Result<(), Ended> {
        tracing::warn!(problem, "the rebuild of the search index waits");
        self.note(|progress| progress.problem = Some(problem));
        self.pause(*pause).await?;
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    async fn pause(&self, duration: Duration) -> Result<(), Ended> {
        tokio::select! {
            () = self.shutdown.cancelled() => Err(Ended::Shutdown),
            () = tokio::time::sleep(duration) => Ok(()),
        }
    }
}

fn id_of(change: &Change) -> i64 {
    match change {
        Change::Upsert(message) => message.id.0,
        Change::Delete { id, .. } => id.0,
        Change::DeleteChat(chat) => chat.0,
    }
}
