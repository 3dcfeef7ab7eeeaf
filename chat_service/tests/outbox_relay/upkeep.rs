//! Partitions, holes, and a measurement.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_service::outbox_relay::Config;
use sqlx::PgPool;

use crate::support::{Database, Load, Nats, Relay, append, read_stream, unpublished, until};

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_made_and_old_published_ones_dropped() {
    let (database, nats) = (Database::start().await, Nats::start());
    let pool = database.pool().await;
    sqlx::raw_sql(
        "CREATE TABLE outbox_20200101 PARTITION OF outbox FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
         CREATE TABLE outbox_20200102 PARTITION OF outbox FOR VALUES FROM ('2020-01-02') TO ('2020-01-03');
         UPDATE outbox_shards SET last_position = 3 WHERE shard = 1;
         INSERT INTO outbox (shard, position, event_id, event_type, workspace_id, scope_id, data, created_at, traceparent)
         SELECT 1, p, gen_random_uuid(), 'message.created', 7, 1, json_build_object('position', p), at, '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
         FROM (VALUES (1, '2020-01-01 12:00Z'::timestamptz), (2, '2020-01-02 12:00Z'), (3, now())) AS row (p, at);
         UPDATE outbox_progress SET published_position = 1 WHERE shard = 1;
         DO $$ BEGIN EXECUTE format('DROP TABLE outbox_%s', to_char(current_date + 2, 'YYYYMMDD')); END $$;",
    )
    .execute(&pool)
    .await
    .unwrap();
    let day_after_tomorrow = partition_of(&pool, 2).await;
    assert!(!partitions(&pool).await.contains(&day_after_tomorrow));
    let relay = Relay::start(&database, &nats).await;
    until("partitions are made", async || {
        partitions(&pool).await.contains(&day_after_tomorrow)
    })
    .await;
    until("all is published", async || unpublished(&pool).await == 0).await;
    relay.stop().await;

    // Once all is published, the next start drops both.
    let relay = Relay::start(&database, &nats).await;
    until("old partitions are dropped", async || {
        !partitions(&pool)
            .await
            .iter()
            .any(|name| name.starts_with("outbox_2020"))
    })
    .await;
    relay.stop().await;
}

/// The partitions, by name.
async fn partitions(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'outbox'::regclass ORDER BY 1",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

/// The name of the partition of the day that is `days` from today.
async fn partition_of(pool: &PgPool, days: i32) -> String {
    sqlx::query_scalar("SELECT 'outbox_' || to_char((now() AT TIME ZONE 'UTC')::date + $1, 'YYYYMMDD')")
        .bind(days)
        .fetch_one(pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_runs_for_long_goes_on_making_and_dropping_partitions() {
    let (database, nats) = (Database::start().await, Nats::start());
    let pool = database.pool().await;
    let config = Config {
        upkeep_every: Duration::from_millis(200),
        ..Config::default()
    };
    let relay = Relay::with(&database, &nats, config).await;
    // Days pass: each time the newest partition is not there yet and one is old.
    for year in 2020..2023 {
        let newest = partition_of(&pool, 3).await;
        let old = format!("outbox_{year}0101");
        until("the relay has made the newest", async || {
            partitions(&pool).await.contains(&newest)
        })
        .await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
            "SELECT pg_advisory_xact_lock(hashtext('fechatter.outbox_maintain'));
             DROP TABLE {newest};
             CREATE TABLE {old} PARTITION OF outbox FOR VALUES FROM ('{year}-01-01') TO ('{year}-01-02')"
        )))
        .execute(&pool)
        .await
        .unwrap();
        until("the old one is dropped and the newest made again", async || {
            let partitions = partitions(&pool).await;
            partitions.contains(&newest) && !partitions.contains(&old)
        })
        .await;
    }
    append(&pool, 3, 1, true).await.unwrap();
    until("all is published", async || unpublished(&pool).await == 0).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_partition_of_their_day_get_one_and_leave_with_it() {
    let database = Database::start().await;
    // A session whose day is another than that of UTC for half of the time.
    let pool = database.single().await;
    sqlx::raw_sql("SET timezone = 'Pacific/Kiritimati'")
        .execute(&pool)
        .await
        .unwrap();
    let (today, yesterday) = (partition_of(&pool, 0).await, partition_of(&pool, -1).await);
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP TABLE {today}")))
        .execute(&pool)
        .await
        .unwrap();
    append(&pool, 3, 5, true).await.unwrap();
    append(&pool, 4, 2, true).await.unwrap();
    let maintain = async |keep_days: i32| -> i32 {
        let mut transaction = pool.begin().await.unwrap();
        let dropped = sqlx::query_scalar("SELECT outbox_maintain($1)")
            .bind(keep_days)
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        dropped
    };
    let rows = async |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(&pool)
            .await
            .unwrap()
    };
    // Today they stay: senders write the day.
    assert_eq!((maintain(7).await, rows("outbox_default").await), (0, 7));
    assert!(!partitions(&pool).await.contains(&today));
    // A day later.
    sqlx::raw_sql("UPDATE outbox_default SET created_at = created_at - interval '1 day'")
        .execute(&pool)
        .await
        .unwrap();
    assert_eq!(maintain(7).await, 0);
    assert_eq!(
        (
            rows("outbox_default").await,
            rows(&yesterday).await,
            rows("outbox").await
        ),
        (0, 7, 7)
    );
    assert!(partitions(&pool).await.contains(&today));
    let bounds: String =
        sqlx::query_scalar("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = to_regclass($1)")
            .bind(&yesterday)
            .fetch_one(&pool)
            .await
            .unwrap();
    // Midnight of UTC, as this session writes it.
    assert_eq!(bounds.matches(" 14:00:00+14").count(), 2, "{bounds}");
    // A week later; as long as it is not published it stays.
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "ALTER TABLE outbox DETACH PARTITION {yesterday};
         ALTER TABLE {yesterday} RENAME TO outbox_20200101;
         UPDATE outbox_20200101 SET created_at = '2020-01-01 12:00Z';
         ALTER TABLE outbox ATTACH PARTITION outbox_20200101 FOR VALUES FROM ('2020-01-01 00:00Z') TO ('2020-01-02 00:00Z')"
    )))
    .execute(&pool)
    .await
    .unwrap();
    assert_eq!((maintain(7).await, rows("outbox").await), (0, 7));
    sqlx::raw_sql("UPDATE outbox_progress AS p SET published_position = last_position FROM outbox_shards AS s WHERE s.shard = p.shard")
        .execute(&pool)
        .await
        .unwrap();
    assert_eq!((maintain(7).await, rows("outbox").await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_begins_after_the_hole_that_a_dropped_partition_left() {
    let (database, nats) = (Database::start().await, Nats::start());
    let pool = database.pool().await;
    append(&pool, 3, 6, true).await.unwrap();
    append(&pool, 4, 2, true).await.unwrap();
    sqlx::raw_sql(
        "DELETE FROM outbox WHERE shard = 3 AND position IN (1, 3);
         UPDATE outbox_progress SET published_position = 6, stream_epoch = gen_random_uuid() WHERE shard = 3;
         UPDATE outbox_shards SET last_position = 9 WHERE shard = 5;
         UPDATE outbox_progress SET published_position = 9, stream_epoch = gen_random_uuid() WHERE shard = 5;",
    )
    .execute(&pool)
    .await
    .unwrap();
    let relay = Relay::start(&database, &nats).await;
    until("the history began", async || relay.status.connected()).await;
    until("all is published", async || unpublished(&pool).await == 0).await;
    let (_, seen) = read_stream(&nats).await;
    let positions = |shard: i16| {
        seen.events
            .get(&shard)
            .map(|events| events.iter().map(|(position, _)| *position).collect::<Vec<_>>())
    };
    assert_eq!(positions(3), Some(vec![4, 5, 6]));
    assert_eq!(positions(4), Some(vec![1, 2]));
    assert_eq!(positions(5), None);

    // A hole that is not the past's stops its shard, and only that.
    sqlx::raw_sql("UPDATE outbox_shards SET last_position = last_position + 1 WHERE shard = 4")
        .execute(&pool)
        .await
        .unwrap();
    append(&pool, 4, 1, true).await.unwrap();
    append(&pool, 3, 1, true).await.unwrap();
    until("the hole is reported", async || {
        relay.status.last_error().is_some_and(|error| error.contains("hole"))
    })
    .await;
    until("the others flow", async || unpublished(&pool).await == 2).await;
    until("its age tells", async || relay.status.check().is_err()).await;
    relay.stop().await;
}

/// How fast the relay drains a backlog. `cargo test --release -p chat_service --test outbox_relay -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn throughput() {
    let (database, nats) = (Database::start().await, Nats::start());
    let pool = database.pool().await;
    for (name, shards) in [("one shard", 1), ("all shards", 16)] {
        sqlx::query(
            "WITH events AS (
                 INSERT INTO outbox (shard, position, event_id, event_type, workspace_id, scope_id, data)
                 SELECT s, last_position + n, gen_random_uuid(), 'message.created', 7, 16 + s,
                        json_build_object('text', repeat('x', 500))
                 FROM outbox_shards, generate_series(1, 48000 / $1::int) AS n, LATERAL (SELECT shard AS s) AS x
                 WHERE shard < $1 RETURNING shard
             ), counts AS (SELECT shard, count(*) AS n FROM events GROUP BY shard)
             UPDATE outbox_shards AS s SET last_position = last_position + n FROM counts AS c WHERE c.shard = s.shard",
        )
        .bind(shards)
        .execute(&pool)
        .await
        .unwrap();
        let started = Instant::now();
        let relay = Relay::start(&database, &nats).await;
        until("drained", async || unpublished(&pool).await == 0).await;
        let rate = 48_000.0 / started.elapsed().as_secs_f64();
        println!("{name}: {rate:.0} events/s");
        assert!(rate > 5_000.0);
        relay.stop().await;
    }
    // Singles, one after the other: what a sender sees.
    let relay = Relay::start(&database, &nats).await;
    until("it owns all", async || {
        relay.status.shards().len() == 16 && relay.status.connected()
    })
    .await;
    let load = Load::start(&database, 16, Some(Arc::clone(&relay.wake))).await;
    let started = Instant::now();
    load.run_for(20_000).await;
    let appended = load.finish().await;
    until("drained", async || unpublished(&pool).await == 0).await;
    println!(
        "with 16 senders: {:.0} events/s end to end",
        f64::from(u32::try_from(appended).unwrap()) / started.elapsed().as_secs_f64()
    );
    relay.stop().await;
}
