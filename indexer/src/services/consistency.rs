//! Comparing the index with PostgreSQL: every message, by id and version, and what the index has beside them.
//!
//! Both go on changing meanwhile. What looks different is therefore looked at again after a pause, and only what
//! differs every time is reported. Nothing is mended here: `indexer reindex` does that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fechatter_core::MessageId;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::reindex::State;
use crate::config;
use crate::engine::{EngineError, SearchEngine, Stored};
use crate::repositories::messages::{self, MessageState};

/// Most ids of each kind of difference in a report.
pub const EXAMPLES_MAX: usize = 20;
/// Differences that are looked at again; beyond, the index is far off and each is counted as it was seen.
const SUSPECTS_MAX: usize = 1_000;
/// Pauses before looking again: longer together than an event needs to become findable.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Messages that differ in one way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Difference {
    pub count: u64,
    /// Ids of the first of them.
    pub examples: Vec<i64>,
}

impl Difference {
    fn add(&mut self, id: MessageId) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(id.0);
        }
    }
}

/// What a comparison found; what `GET /consistency` on the admin listener answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    pub state: State,
    /// Messages compared, and how many there were at the beginning.
    pub compared: i64,
    pub total: i64,
    /// Messages that should be findable, and documents that are.
    pub expected: u64,
    pub findable: u64,
    /// In PostgreSQL and not findable.
    pub missing: Difference,
    /// Findable with another version than PostgreSQL's.
    pub outdated: Difference,
    /// Findable, and deleted in PostgreSQL or never there.
    pub leftover: Difference,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// Why it failed.
    pub problem: Option<String>,
}

impl Report {
    /// How many messages differ.
    pub const fn differences(&self) -> u64 {
        self.missing.count + self.outdated.count + self.leftover.count
    }
}

/// In which way a message differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Missing,
    Outdated,
    Leftover,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("interrupted by shutdown")]
    Shutdown,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("PostgreSQL: {0}")]
    Database(#[from] sqlx::Error),
}

/// Compares, one comparison at a time.
#[derive(Debug)]
pub struct Consistency {
    pool: PgPool,
    engine: Arc<dyn SearchEngine>,
    settings: config::Reindex,
    shutdown: CancellationToken,
    report: Mutex<Report>,
}

impl Consistency {
    /// A service that compares `engine` with `pool`, as fast as `settings` let a rebuild go.
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
            report: Mutex::default(),
        })
    }

    /// The report of the present or last comparison.
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Starts a comparison unless one is running; `false` when one is.
    pub fn start(self: &Arc<Self>) -> bool {
        {
            let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            if report.state == State::Running {
                return false;
            }
            *report = Report {
                state: State::Running,
                started_at: Some(OffsetDateTime::now_utc()),
                ..Report::default()
            };
        }
        tokio::spawn(Arc::clone(self).run());
        true
    }

    async fn run(self: Arc<Self>) {
        let result = self.compare().await;
        self.note(|report| {
            report.finished_at = Some(OffsetDateTime::now_utc());
            match &result {
                Ok(()) => report.state = State::Done,
                Err(fault) => {
                    report.state = State::Failed;
                    report.problem = Some(fault.to_string());
                }
            }
        });
        let report = self.report();
        match result {
            Ok(()) if report.differences() == 0 => {
                tracing::info!(compared = report.compared, "the index agrees with PostgreSQL");
            }
            Ok(()) => tracing::error!(
                missing = report.missing.count,
                outdated = report.outdated.count,
                leftover = report.leftover.count,
                "the index differs from PostgreSQL; `indexer reindex` makes it anew"
            ),
            Err(fault) => tracing::warn!(%fault, "the index could not be compared with PostgreSQL"),
        }
    }

    async fn compare(&self) -> Result<(), Fault> {
        let total = messages::count_after(&self.pool, MessageId(0)).await?;
        self.note(|report| report.total = total);
        let mut suspects = Vec::new();
        let mut after = MessageId(0);
        loop {
            let rows = messages::states_between(&self.pool, after, MessageId(i64::MAX), self.settings.chunk).await?;
            // Beyond the last row too: the index may have what PostgreSQL never had, or has no more.
            let until = rows.last().map_or(MessageId(i64::MAX), |row| row.id);
            let stored = self.engine.stored(after, until).await?;
            let found = differences(&rows, &stored);
            self.note(|report| {
                report.compared += i64::try_from(rows.len()).unwrap_or(i64::MAX);
                report.expected += rows.iter().filter(|row| row.is_findable).count() as u64;
                report.findable += stored.iter().filter(|stored| stored.is_findable).count() as u64;
            });
            for (id, kind) in found {
                if suspects.len() < SUSPECTS_MAX {
                    suspects.push(id);
                } else {
                    self.count(id, kind);
                }
            }
            if rows.is_empty() {
                break;
            }
            after = until;
            self.pause(Duration::from_millis(self.settings.pause_ms)).await?;
        }
        self.look_again(suspects).await
    }

    /// Counts those suspects that go on differing.
    async fn look_again(&self, mut suspects: Vec<MessageId>) -> Result<(), Fault> {
        let mut kinds = HashMap::new();
        for pause in PAUSES {
            if suspects.is_empty() {
                return Ok(());
            }
            self.pause(pause).await?;
            kinds.clear();
            for &id in &suspects {
                let before = MessageId(id.0 - 1);
                let rows = messages::states_between(&self.pool, before, id, 1).await?;
                let stored = self.engine.stored(before, id).await?;
                kinds.extend(differences(&rows, &stored));
            }
            suspects.retain(|id| kinds.contains_key(id));
        }
        for id in suspects {
            if let Some(&kind) = kinds.get(&id) {
                self.count(id, kind);
            }
        }
        Ok(())
    }

    fn count(&self, id: MessageId, kind: Kind) {
        self.note(|report| {
            match kind {
                Kind::Missing => &mut report.missing,
                Kind::Outdated => &mut report.outdated,
                Kind::Leftover => &mut report.leftover,
            }
            .add(id);
        });
    }

    async fn pause(&self, duration: Duration) -> Result<(), Fault> {
        tokio::select! {
            () = self.shutdown.cancelled() => Err(Fault::Shutdown),
            () = tokio::time::sleep(duration) => Ok(()),
        }
    }
}

/// What differs between rows and documents of one range of ids, by id.
fn differences(rows: &[MessageState], stored: &[Stored]) -> Vec<(MessageId, Kind)> {
    let rows_by_id: HashMap<MessageId, &MessageState> = rows.iter().map(|row| (row.id, row)).collect();
    let findable: HashMap<MessageId, i64> = stored
        .iter()
        .filter(|stored| stored.is_findable)
        .map(|stored| (stored.id, stored.version))
        .collect();
    let mut found = Vec::new();
    for row in rows.iter().filter(|row| row.is_findable) {
        match findable.get(&row.id) {
            None => found.push((row.id, Kind::Missing)),
            Some(&version) if version != row.version => found.push((row.id, Kind::Outdated)),
            Some(_) => {}
        }
    }
    for &id in findable.keys() {
        if rows_by_id.get(&id).is_none_or(|row| !row.is_findable) {
            found.push((id, Kind::Leftover));
        }
    }
    found.sort_unstable_by_key(|(id, _)| *id);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_differ_is_told_from_the_others() {
        let row = |id: i64, version, is_findable| MessageState {
            id: id.into(),
            version,
            is_findable,
        };
        let document = |id: i64, version, is_findable| Stored {
            id: id.into(),
            version,
            is_findable,
        };
        let rows = [
            row(1, 1, true),
            row(2, 1, true),
            row(3, 2, true),
            row(4, 2, false),
            row(5, 2, false),
            row(6, 2, true),
            row(7, 1, false),
        ];
        let stored = [
            document(1, 1, true),
            document(3, 1, true),
            document(4, 1, true),
            document(5, 2, false),
            document(6, 2, false),
            document(8, 1, true),
        ];
        let expected = [
            (MessageId(2), Kind::Missing),
            (MessageId(3), Kind::Outdated),
            (MessageId(4), Kind::Leftover),
            (MessageId(6), Kind::Missing),
            (MessageId(8), Kind::Leftover),
        ];
        assert_eq!(differences(&rows, &stored), expected);
        assert!(differences(&rows[..1], &stored[..1]).is_empty());
    }
}
