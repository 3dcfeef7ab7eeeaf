//! What reconciling asks PostgreSQL.

use std::collections::HashMap;

use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

/// Positions that were found: how many, and the first of them.
pub(super) struct Positions {
    pub(super) count: u64,
    pub(super) first: Vec<i64>,
}

/// The last position that was given in each shard.
pub(super) async fn last_positions(pool: &PgPool) -> Result<HashMap<i16, i64>, sqlx::Error> {
    let rows = sqlx::query!("SELECT shard, last_position FROM outbox_shards")
        .fetch_all(pool)
        .await?;
    Ok(rows.into_iter().map(|row| (row.shard, row.last_position)).collect())
}

/// The oldest position that the outbox holds of each shard; shards that it holds nothing of are not there.
pub(super) async fn oldest_positions(pool: &PgPool) -> Result<HashMap<i16, i64>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT s.shard, (SELECT o.position FROM outbox AS o WHERE o.shard = s.shard
                            ORDER BY o.position LIMIT 1) AS position
           FROM outbox_shards AS s"#
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| Some((row.shard, row.position?)))
        .collect())
}

/// What the outbox holds of a shard after `after` up to `until`, appended after `younger_than`.
pub(super) async fn positions(
    pool: &PgPool,
    shard: i16,
    after: i64,
    until: i64,
    younger_than: OffsetDateTime,
) -> Result<Positions, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT count(*) AS "count!",
                  coalesce((array_agg(position ORDER BY position))[1:20], '{}') AS "first!: Vec<i64>"
           FROM outbox WHERE shard = $1 AND position > $2 AND position <= $3 AND created_at > $4"#,
        shard,
        after,
        until,
        younger_than
    )
    .fetch_one(pool)
    .await?;
    Ok(Positions {
        count: row.count.unsigned_abs(),
        first: row.first,
    })
}

/// The ids of the events at these places; places that the outbox does not hold are not there.
pub(super) async fn event_ids(
    pool: &PgPool,
    shards: &[i16],
    positions: &[i64],
) -> Result<HashMap<(i16, i64), Uuid>, sqlx::Error> {
    let rows = sqlx::query!(
        "SELECT o.shard, o.position, o.event_id
         FROM unnest($1::smallint[], $2::bigint[]) AS asked (shard, position)
         JOIN outbox AS o ON o.shard = asked.shard AND o.position = asked.position",
        shards,
        positions
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| ((row.shard, row.position), row.event_id))
        .collect())
}
