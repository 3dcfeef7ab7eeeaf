//! What the relay reads and writes: pending rows, progress per shard, and the locks that share shards among replicas.

use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

/// First key of every advisory lock of the relay ("FCT" and a one); the second is a shard or one of the two below.
const LOCK_CLASS: i32 = 0x4643_5401;
/// Held shared by every relay that is alive: counting its holders tells how many there are.
const LOCK_MEMBER: i32 = 1_000;
/// Held by the one process that decides about the stream's history.
const LOCK_HISTORY: i32 = 1_001;

/// The SQL of the relay on one connection.
#[derive(Debug)]
pub struct OutboxProgress<'c>(&'c mut PgConnection);

/// How far a shard has been published, and where in the stream its last event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub shard: i16,
    pub published_position: i64,
    pub stream_epoch: Option<Uuid>,
    pub stream_sequence: i64,
}

/// Where a history begins in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    pub shard: i16,
    /// The events after it are published.
    pub position: i64,
}

/// An event that waits to be published.
#[derive(Debug)]
pub struct PendingRow {
    pub position: i64,
    pub event_id: Uuid,
    pub event_type: String,
    pub workspace_id: i64,
    pub scope_id: i64,
    pub data: Json<Box<RawValue>>,
    pub traceparent: Option<String>,
    pub created_at: OffsetDateTime,
}

/// A shard with unpublished events.
#[derive(Debug, Clone, Copy)]
pub struct Backlog {
    pub shard: i16,
    pub depth: i64,
    /// Age of the oldest of them in seconds.
    pub age: f64,
}

/// One advisory lock of the relay that somebody holds.
#[derive(Debug, Clone, Copy)]
pub struct HeldLock {
    key: i64,
}

impl HeldLock {
    /// The shard that is locked, unless this is another kind of lock.
    pub fn shard(self) -> Option<i16> {
        i16::try_from(self.key)
            .ok()
            .filter(|key| (0..fechatter_core::events::SHARDS).contains(key))
    }

    /// Whether it says that a relay is alive.
    pub fn is_member(self) -> bool {
        self.key == i64::from(LOCK_MEMBER)
    }
}

impl<'c> OutboxProgress<'c> {
    /// Lends `connection` to the relay's SQL.
    pub fn new(connection: &'c mut PgConnection) -> Self {
        Self(connection)
    }

    /// Progress of all shards.
    pub async fn all(&mut self) -> Result<Vec<Progress>, sqlx::Error> {
        sqlx::query_as!(
            Progress,
            "SELECT shard, published_position, stream_epoch, stream_sequence FROM outbox_progress ORDER BY shard"
        )
        .fetch_all(&mut *self.0)
        .await
    }

    /// Progress of one shard.
    pub async fn of(&mut self, shard: i16) -> Result<Progress, sqlx::Error> {
        sqlx::query_as!(
            Progress,
            "SELECT shard, published_position, stream_epoch, stream_sequence FROM outbox_progress WHERE shard = $1",
            shard
        )
        .fetch_one(&mut *self.0)
        .await
    }

    /// The next events of a shard after `position`.
    pub async fn pending(&mut self, shard: i16, position: i64, limit: i64) -> Result<Vec<PendingRow>, sqlx::Error> {
        sqlx::query_as!(
            PendingRow,
            r#"
            SELECT position, event_id, event_type, workspace_id, scope_id, data AS "data: Json<Box<RawValue>>",
                   traceparent, created_at
            -- The limit by a subquery: a plan for a limit that is known seems cheaper than one for any, and would be made each time.
            FROM outbox WHERE shard = $1 AND position > $2 ORDER BY position LIMIT (SELECT $3::bigint)
            "#,
            shard,
            position,
            limit
        )
        .fetch_all(&mut *self.0)
        .await
    }

    /// The next events of several shards, each after its position and at most `limit` of it, in no order; with their shards.
    pub async fn pending_of(
        &mut self,
        shards: &[i16],
        positions: &[i64],
        limit: i64,
    ) -> Result<Vec<(i16, PendingRow)>, sqlx::Error> {
        let rows = sqlx::query!(
            r#"
            SELECT wanted.shard AS "shard!", o.position, o.event_id, o.event_type, o.workspace_id, o.scope_id,
                   o.data AS "data: Json<Box<RawValue>>", o.traceparent, o.created_at
            FROM unnest((SELECT $1::smallint[]), (SELECT $2::bigint[])) AS wanted (shard, position)
            CROSS JOIN LATERAL (
                SELECT * FROM outbox AS o WHERE o.shard = wanted.shard AND o.position > wanted.position
                ORDER BY o.position LIMIT (SELECT $3::bigint)
            ) AS o
            "#,
            shards,
            positions,
            limit
        )
        .fetch_all(&mut *self.0)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let pending = PendingRow {
                    position: row.position,
                    event_id: row.event_id,
                    event_type: row.event_type,
                    workspace_id: row.workspace_id,
                    scope_id: row.scope_id,
                    data: row.data,
                    traceparent: row.traceparent,
                    created_at: row.created_at,
                };
                (row.shard, pending)
            })
            .collect())
    }

    /// Records that the stream holds everything of a shard up to `position`, the last at `sequence`.
    ///
    /// `false` when the progress is no longer `from`: another process publishes the shard, or the history was begun anew.
    ///
    /// Does not wait for the disk: a power failure may set it back by less than a second, and what is published again then is
    /// recognised.
    pub async fn advance(&mut self, from: &Progress, position: i64, sequence: i64) -> Result<bool, sqlx::Error> {
        let done = sqlx::query!(
            "WITH no_wait AS (SELECT set_config('synchronous_commit', 'off', true))
             UPDATE outbox_progress SET published_position = $4, stream_sequence = $5, updated_at = now() FROM no_wait
             WHERE shard = $1 AND stream_epoch = $2 AND published_position = $3",
            from.shard,
            from.stream_epoch,
            from.published_position,
            position,
            sequence
        )
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Shards with unpublished events. Reads rows that senders lock for update without waiting for them.
    pub async fn backlog(&mut self) -> Result<Vec<Backlog>, sqlx::Error> {
        sqlx::query_as!(
            Backlog,
            r#"
            SELECT s.shard AS "shard!", s.last_position - p.published_position AS "depth!",
                   coalesce(extract(epoch FROM clock_timestamp() - oldest.created_at), 0)::float8 AS "age!"
            FROM outbox_shards AS s
            JOIN outbox_progress AS p USING (shard)
            LEFT JOIN LATERAL (
                SELECT o.created_at FROM outbox AS o WHERE o.shard = s.shard AND o.position > p.published_position
                ORDER BY o.position LIMIT 1
            ) AS oldest ON true
            WHERE s.last_position > p.published_position
            "#
        )
        .fetch_all(&mut *self.0)
        .await
    }

    /// Waits, inside a transaction, until no other process decides about the stream's history; at most 10 s.
    pub async fn lock_history(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query!("SELECT set_config('lock_timeout', '10000', true)")
            .fetch_one(&mut *self.0)
            .await?;
        sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", LOCK_CLASS, LOCK_HISTORY)
            .fetch_one(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Where a new history begins in each shard: before the oldest event that the outbox still holds.
    ///
    /// Looks through the whole outbox, which may take minutes: ask before the old history ends. What is appended later
    /// does not change the answer, and [`Self::lock_history`] keeps partitions from being dropped.
    ///
    /// Partitions go by time and positions by commit, so that around a midnight a dropped partition can leave a hole
    /// behind its neighbour's first rows. Only what follows the last hole is kept in order; what precedes it is older
    /// than `keep_days` and than the stream's own age limit.
    pub async fn starts(&mut self) -> Result<Vec<Start>, sqlx::Error> {
        sqlx::query_as!(
            Start,
            r#"
            SELECT s.shard AS "shard!",
                   coalesce(
                       (SELECT max(o.position) - 1 FROM outbox AS o
                        WHERE o.shard = s.shard AND NOT EXISTS (
                            SELECT 1 FROM outbox AS before
                            WHERE before.shard = o.shard AND before.position = o.position - 1)),
                       s.last_position) AS "position!"
            FROM outbox_shards AS s
            "#
        )
        .fetch_all(&mut *self.0)
        .await
    }

    /// Begins the history `epoch` for every shard that is not in it, after `starts`. Returns how many shards were rewound.
    pub async fn rewind(&mut self, epoch: Uuid, starts: &[Start]) -> Result<u64, sqlx::Error> {
        let (shards, positions): (Vec<i16>, Vec<i64>) =
            starts.iter().map(|start| (start.shard, start.position)).unzip();
        let done = sqlx::query!(
            r#"
            UPDATE outbox_progress AS p
            SET stream_epoch = $1, stream_sequence = 0, updated_at = now(), published_position = start.position
            FROM unnest($2::smallint[], $3::bigint[]) AS start (shard, position)
            WHERE p.shard = start.shard AND p.stream_epoch IS DISTINCT FROM $1
            "#,
            epoch,
            &shards,
            &positions
        )
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected())
    }

    /// Makes the next partitions and drops the old ones, inside a transaction; returns how many were dropped.
    ///
    /// Both lock the whole outbox for an instant. Rather than queue behind a long transaction, with every sender
    /// behind us, give up after two seconds and come again. A partition is old when all of it is published, which
    /// [`Self::rewind`] undoes: neither happens during the other.
    pub async fn maintain(&mut self, keep_days: i32) -> Result<i32, sqlx::Error> {
        sqlx::query!("SELECT set_config('lock_timeout', '2000', true)")
            .fetch_one(&mut *self.0)
            .await?;
        sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", LOCK_CLASS, LOCK_HISTORY)
            .fetch_one(&mut *self.0)
            .await?;
        let dropped = sqlx::query_scalar!(r#"SELECT outbox_maintain($1) AS "dropped!""#, keep_days)
            .fetch_one(&mut *self.0)
            .await?;
        Ok(dropped)
    }

    /// Makes this connection that of a living relay. The server ends it, and with it the locks, when nothing was heard
    /// for 10 s: a frozen process or a host that is gone does not keep its shards.
    pub async fn join(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "SELECT set_config(name, value, false)
             FROM (VALUES ('application_name', 'fechatter outbox relay'), ('idle_session_timeout', '10000'),
                          ('tcp_keepalives_idle', '3'), ('tcp_keepalives_interval', '2'), ('tcp_keepalives_count', '3'))
                  AS setting (name, value)"
        )
        .fetch_all(&mut *self.0)
        .await?;
        sqlx::query!("SELECT pg_advisory_lock_shared($1, $2)", LOCK_CLASS, LOCK_MEMBER)
            .fetch_one(&mut *self.0)
            .await?;
        Ok(())
    }

    /// All locks of all relays of this database.
    pub async fn locks(&mut self) -> Result<Vec<HeldLock>, sqlx::Error> {
        sqlx::query_as!(
            HeldLock,
            r#"
            SELECT objid::bigint AS "key!" FROM pg_locks
            WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid::bigint = $1
              AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            "#,
            i64::from(LOCK_CLASS)
        )
        .fetch_all(&mut *self.0)
        .await
    }

    /// Takes the lock of a shard for as long as this connection lives; `false` when another has it.
    pub async fn try_lock(&mut self, shard: i16) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_lock($1, $2) AS "locked!""#,
            LOCK_CLASS,
            i32::from(shard)
        )
        .fetch_one(&mut *self.0)
        .await
    }

    /// Gives the lock of a shard back.
    pub async fn unlock(&mut self, shard: i16) -> Result<(), sqlx::Error> {
        sqlx::query!("SELECT pg_advisory_unlock($1, $2)", LOCK_CLASS, i32::from(shard))
            .fetch_one(&mut *self.0)
            .await?;
        Ok(())
    }
}
