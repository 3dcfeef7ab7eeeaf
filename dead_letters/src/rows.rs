//! The table `dead_letters`.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

/// An event to be kept.
#[derive(Debug, Clone)]
pub struct DeadLetter<'a> {
    /// The stream's history; nil when the event did not say, so that it is kept once all the same.
    pub stream_epoch: Uuid,
    pub stream_sequence: u64,
    pub subject: &'a str,
    pub reason: &'a str,
    /// How many times it was delivered.
    pub deliveries: i64,
    pub body: &'a [u8],
}

/// A dead letter as it is kept, without its body.
#[derive(Debug, Clone, Serialize)]
pub struct Letter {
    pub id: i64,
    pub stream_epoch: Option<Uuid>,
    pub stream_sequence: i64,
    pub subject: String,
    pub reason: String,
    pub deliveries: i64,
    /// Times that an operator replayed it.
    pub replays: i64,
    pub body_bytes: i32,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub replayed_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub dropped_at: Option<OffsetDateTime>,
    pub drop_reason: Option<String>,
}

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Waiting,
    Replayed,
    Dropped,
}

impl State {
    /// Its name for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Replayed => "replayed",
            Self::Dropped => "dropped",
        }
    }
}

impl Letter {
    /// What became of it.
    pub const fn state(&self) -> State {
        match (self.replayed_at, self.dropped_at) {
            (_, Some(_)) => State::Dropped,
            (Some(_), None) => State::Replayed,
            (None, None) => State::Waiting,
        }
    }
}

/// A dead letter with its body, which is empty once it is settled.
#[derive(Debug, Clone)]
pub struct Shown {
    pub letter: Letter,
    pub body: Vec<u8>,
}

/// The dead letters of one consumer.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    pool: PgPool,
    consumer: &'static str,
}

/// PostgreSQL's text holds no U+0000, which an event may bring; U+FFFD stands for it.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

impl DeadLetters {
    /// Those of `consumer`.
    pub const fn new(pool: PgPool, consumer: &'static str) -> Self {
        Self { pool, consumer }
    }

    /// Keeps an event. One that is waiting already has its reason and deliveries renewed, one that was replayed waits
    /// again, one that was dropped stays so.
    pub async fn keep(&self, letter: &DeadLetter<'_>) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "INSERT INTO dead_letters (consumer, stream_epoch, stream_sequence, subject, reason, deliveries, body)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (consumer, stream_epoch, stream_sequence)
             DO UPDATE SET reason = EXCLUDED.reason, deliveries = EXCLUDED.deliveries, body = EXCLUDED.body,
                           replayed_at = NULL
             WHERE dead_letters.dropped_at IS NULL",
            self.consumer,
            letter.stream_epoch,
            i64::try_from(letter.stream_sequence).unwrap_or(i64::MAX),
            storable(letter.subject),
            storable(letter.reason),
            letter.deliveries,
            letter.body
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// Keeps an event that others meet too: the first one keeps it, and whatever became of it since stays.
    pub async fn keep_once(&self, letter: &DeadLetter<'_>) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "INSERT INTO dead_letters (consumer, stream_epoch, stream_sequence, subject, reason, deliveries, body)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (consumer, stream_epoch, stream_sequence) DO NOTHING",
            self.consumer,
            letter.stream_epoch,
            i64::try_from(letter.stream_sequence).unwrap_or(i64::MAX),
            storable(letter.subject),
            storable(letter.reason),
            letter.deliveries,
            letter.body
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// How many wait.
    pub async fn waiting(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM dead_letters
               WHERE consumer = $1 AND replayed_at IS NULL AND dropped_at IS NULL"#,
            self.consumer
        )
        .fetch_one(&self.pool)
        .await
    }

    /// The oldest with an id above `after`, at most `limit`; those that are settled only `with_settled`.
    pub async fn list(&self, after: i64, limit: i64, with_settled: bool) -> Result<Vec<Letter>, sqlx::Error> {
        sqlx::query_as!(
            Letter,
            r#"SELECT id, stream_epoch, stream_sequence, subject, reason, deliveries, replays,
                      length(body) AS "body_bytes!", created_at, replayed_at, dropped_at, drop_reason
               FROM dead_letters
               WHERE consumer = $1 AND id > $2 AND ($4 OR (replayed_at IS NULL AND dropped_at IS NULL))
               ORDER BY id LIMIT $3"#,
            self.consumer,
            after,
            limit,
            with_settled
        )
        .fetch_all(&self.pool)
        .await
    }

    /// One with its body.
    pub async fn get(&self, id: i64) -> Result<Option<Shown>, sqlx::Error> {
        let row = sqlx::query!(
            r#"SELECT id, stream_epoch, stream_sequence, subject, reason, deliveries, replays,
                      length(body) AS "body_bytes!", created_at, replayed_at, dropped_at, drop_reason, body
               FROM dead_letters WHERE consumer = $1 AND id = $2"#,
            self.consumer,
            id
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Shown {
            letter: Letter {
                id: row.id,
                stream_epoch: row.stream_epoch,
                stream_sequence: row.stream_sequence,
                subject: row.subject,
                reason: row.reason,
                deliveries: row.deliveries,
                replays: row.replays,
                body_bytes: row.body_bytes,
                created_at: row.created_at,
                replayed_at: row.replayed_at,
                dropped_at: row.dropped_at,
                drop_reason: row.drop_reason,
            },
            body: row.body,
        }))
    }

    /// Records that a replay had its effect; the body leaves. Nothing changes for one that is settled.
    pub async fn replayed(&self, id: i64) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "UPDATE dead_letters SET replays = replays + 1, replayed_at = now(), body = ''
             WHERE consumer = $1 AND id = $2 AND replayed_at IS NULL AND dropped_at IS NULL",
            self.consumer,
            id
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// Records that a replay failed for `reason`.
    pub async fn returned(&self, id: i64, reason: &str) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "UPDATE dead_letters SET replays = replays + 1, reason = $3
             WHERE consumer = $1 AND id = $2 AND replayed_at IS NULL AND dropped_at IS NULL",
            self.consumer,
            id,
            storable(reason)
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// Gives one up for good; the body leaves. `false` when none waits under this id.
    pub async fn discard(&self, id: i64, reason: &str) -> Result<bool, sqlx::Error> {
        let done = sqlx::query!(
            "UPDATE dead_letters SET dropped_at = now(), drop_reason = $3, body = ''
             WHERE consumer = $1 AND id = $2 AND replayed_at IS NULL AND dropped_at IS NULL",
            self.consumer,
            id,
            storable(reason)
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
