//! `chat_service reconcile`: does the stream hold what the outbox says, and the index what PostgreSQL says?
//!
//! Looking changes nothing. With `--repair` what differs is made again from what is above it: the stream from the outbox
//! (a new history, or progress that catches up with it), the index from the rows.

mod command;
mod index;
mod repositories;
mod walk;

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::{ErrorCode, stream::Stream};
use fechatter_core::events::STREAM;
use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::outbox_relay::{self, Anew};
use crate::repositories::outbox_progress::{OutboxProgress, Progress, Start};
pub use command::{Args, run};
use walk::Walked;

/// Most examples of each kind of difference.
const EXAMPLES_MAX: usize = 20;
/// An event that is not in the stream for so long has been forgotten, in seconds.
const STALE: f64 = 30.0;
/// Added to the stream's age limit: the clocks of the servers may differ, and a transaction begins before its event is stored.
const AGE_SLACK: Duration = Duration::from_mins(10);

/// Events that differ in one way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Difference {
    pub count: u64,
    /// The first of them, as `shard:position`, or as `#sequence` of the stream.
    pub examples: Vec<String>,
}

impl Difference {
    fn add(&mut self, count: u64, examples: impl IntoIterator<Item = String>) {
        self.count += count;
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(examples.into_iter().take(room));
    }
}

/// How outbox and stream compare.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StreamReport {
    /// The history that the stream holds; nothing when there is no stream.
    pub epoch: Option<Uuid>,
    /// Events that the stream holds.
    pub events: u64,
    /// Second copies among them, which consumers drop; no difference.
    pub copies: u64,
    /// Events of earlier histories among them, which consumers drop; no difference.
    pub latecomers: u64,
    /// The progress that the relay recorded was not made in this history, or the stream has lost its end.
    pub is_lost: bool,
    /// Marked as published, and not in the stream although too young to have left it.
    pub missing: Difference,
    /// In the stream, and not or another event in the outbox.
    pub foreign: Difference,
    /// In the stream, and not marked as published.
    pub unmarked: Difference,
    /// Marked as published up to a position that was never given: the database went back.
    pub ahead: Difference,
    /// Not in the stream yet, and the age of the oldest of them in seconds.
    pub waiting: u64,
    pub waiting_seconds: f64,
    /// The last event of each shard without a gap before it, with its place in the stream; for repairing marks.
    #[serde(skip)]
    reached: BTreeMap<i16, (i64, u64)>,
    #[serde(skip)]
    progress: Vec<Progress>,
}

impl StreamReport {
    /// Whether only a new history mends it.
    pub const fn needs_new_history(&self) -> bool {
        self.epoch.is_none() || self.is_lost || self.missing.count > 0 || self.foreign.count > 0 || self.ahead.count > 0
    }

    /// Whether events have waited longer than a relay that works lets them.
    pub fn is_stale(&self) -> bool {
        self.waiting > self.unmarked.count && self.waiting_seconds > STALE
    }

    /// Whether the stream holds what the outbox says.
    pub fn is_right(&self) -> bool {
        !self.needs_new_history() && self.unmarked.count == 0 && !self.is_stale()
    }
}

/// What examining needs.
#[derive(Debug)]
pub struct Reconcile {
    pub pool: PgPool,
    pub context: jetstream::Context,
    pub config: outbox_relay::Config,
    pub stream_replicas: usize,
}

impl Reconcile {
    /// Compares outbox and stream while both go on; tells `progress` how many events of how many were read.
    pub async fn examine(&self, progress: impl Fn(u64, u64)) -> anyhow::Result<StreamReport> {
        // Looked at first: what is marked now is in the stream when it is read.
        let marked = self.marked().await?;
        let Some(stream) = self.stream().await? else {
            let mut report = StreamReport::default();
            self.add_waiting(&mut report).await?;
            for shard in &marked {
                report.missing.add(shard.published_position.unsigned_abs(), None);
            }
            return Ok(report);
        };
        let is_valid = outbox_relay::is_valid(&stream, &marked).await?;
        let walked = walk::read(&self.pool, &self.context, &stream, progress).await?;
        let mut report = StreamReport {
            epoch: Some(walked.epoch),
            events: walked.events,
            copies: walked.copies,
            latecomers: walked.latecomers,
            is_lost: marked.iter().any(|shard| shard.stream_epoch != Some(walked.epoch)),
            foreign: walked.foreign.clone(),
            ..StreamReport::default()
        };
        if !report.is_lost {
            let starts = OutboxProgress::new(&mut *self.pool.acquire().await?).starts().await?;
            self.add_missing(&mut report, &stream, &walked, &marked, &starts)
                .await?;
        }
        self.add_ahead(&mut report, &marked).await?;
        // Looked at last: what was stored meanwhile may have been marked since.
        let marked = self.marked().await?;
        report.reached = walked.reached(&marked);
        for shard in marked.iter().filter(|shard| shard.stream_epoch == Some(walked.epoch)) {
            let Some((last, _)) = report.reached.get(&shard.shard) else {
                continue;
            };
            if *last > shard.published_position {
                let first = shard.published_position + 1;
                let examples = (first..=*last).map(|position| format!("{}:{position}", shard.shard));
                report.unmarked.add(
                    (last - shard.published_position).unsigned_abs(),
                    examples.take(EXAMPLES_MAX),
                );
            }
        }
        // The relay holds the last event of each shard against its place in the stream. When that fails though all is there and
        // marked, it begins a new history itself.
        report.is_lost |= !is_valid && report.unmarked.count == 0 && report.missing.count == 0;
        report.progress = marked;
        self.add_waiting(&mut report).await?;
        Ok(report)
    }

    /// Mends what `report` says of the stream; says what it did. Nothing when somebody else was quicker.
    pub async fn repair(&self, report: &StreamReport) -> anyhow::Result<Vec<String>> {
        let mut done = Vec::new();
        if report.needs_new_history() {
            let epoch = outbox_relay::begin_anew(
                &self.pool,
                &self.context,
                &self.config,
                self.stream_replicas,
                Anew::InsteadOf(report.epoch),
            )
            .await?;
            done.push(format!(
                "history {epoch} has begun: everything that the outbox holds is published again"
            ));
            return Ok(done);
        }
        for shard in &report.progress {
            let Some(&(position, sequence)) = report.reached.get(&shard.shard) else {
                continue;
            };
            if position <= shard.published_position {
                continue;
            }
            let mut connection = self.pool.acquire().await?;
            let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
            if OutboxProgress::new(&mut connection)
                .advance(shard, position, sequence)
                .await?
            {
                done.push(format!("shard {} is marked as published up to {position}", shard.shard));
            }
        }
        Ok(done)
    }

    /// Events that are not marked as published.
    pub async fn unpublished(&self) -> Result<u64, sqlx::Error> {
        let backlog = OutboxProgress::new(&mut *self.pool.acquire().await?).backlog().await?;
        Ok(backlog.iter().map(|shard| shard.depth.unsigned_abs()).sum())
    }

    async fn marked(&self) -> Result<Vec<Progress>, sqlx::Error> {
        OutboxProgress::new(&mut *self.pool.acquire().await?).all().await
    }

    async fn stream(&self) -> anyhow::Result<Option<Stream>> {
        match self.context.get_stream(STREAM).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(anyhow::Error::new(error).context(format!("cannot look at the stream {STREAM}"))),
            },
        }
    }

    async fn add_waiting(&self, report: &mut StreamReport) -> Result<(), sqlx::Error> {
        for shard in OutboxProgress::new(&mut *self.pool.acquire().await?).backlog().await? {
            report.waiting += shard.depth.unsigned_abs();
            report.waiting_seconds = report.waiting_seconds.max(shard.age);
        }
        Ok(())
    }

    async fn add_ahead(&self, report: &mut StreamReport, marked: &[Progress]) -> Result<(), sqlx::Error> {
        let given = repositories::last_positions(&self.pool).await?;
        for shard in marked {
            let last = given.get(&shard.shard).copied().unwrap_or(0);
            if shard.published_position > last {
                let ahead = (shard.published_position - last).unsigned_abs();
                report
                    .ahead
                    .add(ahead, [format!("{}:{}", shard.shard, shard.published_position)]);
            }
        }
        Ok(())
    }

    /// What is marked and was not found. What precedes the first that was found may have left by age or size: it counts only
    /// when it is younger than both allow.
    async fn add_missing(
        &self,
        report: &mut StreamReport,
        stream: &Stream,
        walked: &Walked,
        marked: &[Progress],
        starts: &[Start],
    ) -> Result<(), sqlx::Error> {
        let info = stream.cached_info();
        let by_age = OffsetDateTime::now_utc() - info.config.max_age + AGE_SLACK;
        // A stream that is nearly full may have dropped all that is older than its first event.
        let may_be_full = info.config.max_bytes > 0
            && info.state.bytes.saturating_mul(10) >= info.config.max_bytes.unsigned_abs().saturating_mul(9);
        let left_before = if may_be_full {
            by_age.max(info.state.first_timestamp)
        } else if info.config.max_age.is_zero() {
            OffsetDateTime::UNIX_EPOCH
        } else {
            by_age
        };
        for shard in marked {
            let start = starts.iter().find(|start| start.shard == shard.shard);
            let after = start.map_or(0, |start| start.position);
            for hole in walked.holes(shard.shard, after, shard.published_position) {
                let younger_than = if hole.is_first {
                    left_before
                } else {
                    OffsetDateTime::UNIX_EPOCH
                };
                let found =
                    repositories::positions(&self.pool, shard.shard, hole.after, hole.until, younger_than).await?;
                report.missing.add(
                    found.count,
                    found.first.iter().map(|position| format!("{}:{position}", shard.shard)),
                );
            }
        }
        Ok(())
    }
}
