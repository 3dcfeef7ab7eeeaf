//! Order and gaplessness, with one relay and with several that come and go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_service::outbox_relay::Config;
use fechatter_core::events::{SHARDS, shard_of};

use crate::support::{Database, Load, Nats, Relay, append, assert_complete, unpublished, until};

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_senders_arrive_in_order_and_without_a_gap() {
    let (database, nats) = (Database::start().await, Nats::start());
    let relay = Relay::start(&database, &nats).await;
    let load = Load::start(&database, 8, Some(Arc::clone(&relay.wake))).await;
    load.run_for(3_000).await;
    let appended = load.finish().await;
    let (_, seen) = assert_complete(&database, &nats).await;
    assert_eq!(seen.events.values().map(Vec::len).sum::<usize>() as u64, appended);
    assert_eq!((seen.copies, seen.foreign), (0, 0));
    assert_eq!(seen.events.len(), usize::from(SHARDS.unsigned_abs()));
    until("the status says so", async || relay.status.depth() == 0).await;
    assert!(relay.status.connected());
    assert_eq!(relay.status.last_error(), None);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_another_process_is_found_by_polling_and_own_ones_by_the_wake() {
    let (database, nats) = (Database::start().await, Nats::start());
    let slow = Config {
        poll_ms: 10_000,
        ..Config::default()
    };
    let relay = Relay::with(&database, &nats, slow).await;
    let pool = database.pool().await;
    until("it owns all shards", async || {
        relay.status.shards().len() == 16 && relay.status.connected()
    })
    .await;
    append(&pool, 5, 1, true).await.unwrap();
    let woken = Instant::now();
    relay.wake.notify(shard_of(5));
    until("the event is published", async || unpublished(&pool).await == 0).await;
    assert!(woken.elapsed() < Duration::from_secs(5), "the wake was not heeded");
    relay.stop().await;

    let relay = Relay::start(&database, &nats).await;
    append(&pool, 6, 1, true).await.unwrap();
    assert_complete(&database, &nats).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_share_the_shards_and_publish_each_event_once() {
    let (database, nats) = (Database::start().await, Nats::start());
    let first = Relay::start(&database, &nats).await;
    until("the first owns all", async || first.status.shards().len() == 16).await;
    let load = Load::start(&database, 6, None).await;
    let second = Relay::start(&database, &nats).await;
    until("they share", async || {
        first.status.shards().len() == 8 && second.status.shards().len() == 8
    })
    .await;
    load.run_for(2_000).await;
    let (a, b) = (first.status.shards(), second.status.shards());
    assert!(a.iter().all(|shard| !b.contains(shard)), "{a:?} {b:?}");
    load.finish().await;
    let (_, seen) = assert_complete(&database, &nats).await;
    assert_eq!((seen.copies, seen.foreign), (0, 0));

    second.stop().await;
    until("the first owns all again", async || first.status.shards().len() == 16).await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_start_at_once_on_an_empty_server_settle_on_one_epoch() {
    let (database, nats) = (Database::start().await, Nats::start());
    let pool = database.pool().await;
    for chat in 1..=16 {
        append(&pool, chat, 20, true).await.unwrap();
    }
    let relays = futures::future::join_all((0..4).map(|_| Relay::start(&database, &nats))).await;
    let (_, seen) = assert_complete(&database, &nats).await;
    assert_eq!((seen.copies, seen.foreign), (0, 0));
    until("four relays share", async || {
        relays.iter().all(|relay| relay.status.shards().len() == 4)
    })
    .await;
    for relay in relays {
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_relay_dies_or_loses_its_locks_another_takes_over() {
    let (database, nats) = (Database::start().await, Nats::start());
    let pool = database.pool().await;
    let doomed = Relay::start(&database, &nats).await;
    let heir = Relay::start(&database, &nats).await;
    until("they share", async || {
        doomed.status.shards().len() == 8 && heir.status.shards().len() == 8
    })
    .await;
    let load = Load::start(&database, 6, None).await;
    load.run_for(500).await;

    // Its lock connection breaks, again and again, while it publishes.
    for _ in 0..5 {
        until("its connection is ended", async || {
            let shards: Vec<i64> = doomed.status.shards().into_iter().map(i64::from).collect();
            let ended: i64 = sqlx::query_scalar(
                "SELECT count(pg_terminate_backend(pid)) FROM (
                     SELECT DISTINCT pid FROM pg_locks
                     WHERE locktype = 'advisory' AND objsubid = 2 AND objid::bigint = ANY($1)
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS relay",
            )
            .bind(&shards)
            .fetch_one(&pool)
            .await
            .unwrap();
            ended > 0
        })
        .await;
        load.run_for(200).await;
    }

    // It dies.
    doomed.task.abort();
    let died = Instant::now();
    until("the heir owns all", async || heir.status.shards().len() == 16).await;
    assert!(died.elapsed() < Duration::from_secs(3), "took {:?}", died.elapsed());
    load.run_for(200).await;
    load.finish().await;
    let (_, seen) = assert_complete(&database, &nats).await;
    assert_eq!((seen.copies, seen.foreign), (0, 0));
    heir.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_in_flight_and_frees_the_shards_at_once() {
    let (database, nats) = (Database::start().await, Nats::start());
    let pool = database.pool().await;
    let load = Load::start(&database, 6, None).await;
    for _ in 0..5 {
        let relay = Relay::start(&database, &nats).await;
        until("it owns all", async || relay.status.shards().len() == 16).await;
        load.run_for(200).await;
        relay.stop().await;
        let stopped = Instant::now();
        until("the locks are free", async || {
            let locks: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            )
            .fetch_one(&pool)
            .await
            .unwrap();
            locks == 0
        })
        .await;
        // The server would end a session that was left behind after 10 s.
        assert!(
            stopped.elapsed() < Duration::from_secs(5),
            "the session outlived the relay"
        );
    }
    load.finish().await;
    let relay = Relay::start(&database, &nats).await;
    let (_, seen) = assert_complete(&database, &nats).await;
    assert_eq!((seen.copies, seen.foreign), (0, 0));
    relay.stop().await;
}
