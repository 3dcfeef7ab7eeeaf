//! Servers that crash, stay away, or come back without what they had.

use std::sync::Arc;

use async_nats::jetstream;
use dev::postgres;
use fechatter_core::events::STREAM;
use uuid::Uuid;

use crate::support::{Database, Load, Nats, Relay, append, assert_complete, read_stream, until};

#[tokio::test(flavor = "multi_thread")]
async fn killing_nats_in_mid_flow_loses_doubles_and_reorders_nothing() {
    let (database, mut nats) = (Database::start().await, Nats::start());
    let relay = Relay::start(&database, &nats).await;
    let load = Load::start(&database, 8, Some(Arc::clone(&relay.wake))).await;
    load.run_for(500).await;
    let (first_epoch, _) = read_stream(&nats).await;
    for _ in 0..6 {
        nats.server.kill();
        load.run_for(150).await;
        nats.server.restart().unwrap();
        load.run_for(400).await;
    }
    load.finish().await;
    let (epoch, seen) = assert_complete(&database, &nats).await;
    assert_eq!(epoch, first_epoch, "a killed server keeps what it wrote");
    assert_eq!((seen.copies, seen.foreign), (0, 0));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_postgresql_in_mid_flow_loses_doubles_and_reorders_nothing() {
    let mut postgres = postgres::Server::temporary().unwrap();
    let (database, nats) = (Database::on(&postgres).await, Nats::start());
    let (one, two) = (
        Relay::start(&database, &nats).await,
        Relay::start(&database, &nats).await,
    );
    let load = Load::start(&database, 6, Some(Arc::clone(&one.wake))).await;
    load.run_for(400).await;
    for _ in 0..3 {
        postgres.kill();
        until("it is noticed", async || {
            one.status.last_error().is_some() && one.status.shards().is_empty()
        })
        .await;
        postgres.restart().unwrap();
        load.run_for(400).await;
    }
    load.finish().await;
    let (_, seen) = assert_complete(&database, &nats).await;
    assert_eq!((seen.copies, seen.foreign), (0, 0));
    until("they share again", async || {
        one.status.shards().len() == 8 && two.status.shards().len() == 8
    })
    .await;
    until("all is well", async || {
        one.status.check().is_ok() && one.status.last_error().is_none()
    })
    .await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nats_is_away_the_backlog_shows_and_flows_when_it_is_back() {
    let (database, mut nats) = (Database::start().await, Nats::start());
    let relay = Relay::start(&database, &nats).await;
    let pool = database.pool().await;
    append(&pool, 1, 1, true).await.unwrap();
    assert_complete(&database, &nats).await;
    nats.server.kill();
    for chat in 1..=32 {
        append(&pool, chat, 10, true).await.unwrap();
    }
    until("depth and age show", async || {
        relay.status.depth() == 320 && relay.status.age_seconds() > 1.0
    })
    .await;
    assert!(!relay.status.connected());
    until("health tells", async || relay.status.check().is_err()).await;
    nats.server.restart().unwrap();
    let (_, seen) = assert_complete(&database, &nats).await;
    assert_eq!(seen.copies, 0);
    until("health is well", async || relay.status.check() == Ok(None)).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_stream_is_rebuilt_under_a_new_epoch() {
    let (database, nats) = (Database::start().await, Nats::start());
    let relay = Relay::start(&database, &nats).await;
    let load = Load::start(&database, 4, Some(Arc::clone(&relay.wake))).await;
    load.run_for(600).await;
    let (first_epoch, _) = read_stream(&nats).await;
    jetstream::new(nats.client().await).delete_stream(STREAM).await.unwrap();
    load.run_for(600).await;
    load.finish().await;
    let (epoch, seen) = assert_complete(&database, &nats).await;
    assert_ne!(epoch, first_epoch);
    assert_eq!(seen.copies, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_data_folder_is_rebuilt_by_two_relays() {
    let (database, mut nats) = (Database::start().await, Nats::start());
    let (one, two) = (
        Relay::start(&database, &nats).await,
        Relay::start(&database, &nats).await,
    );
    let load = Load::start(&database, 4, Some(Arc::clone(&one.wake))).await;
    load.run_for(600).await;
    let (first_epoch, _) = read_stream(&nats).await;
    nats.server.wipe().unwrap();
    nats.server.restart().unwrap();
    load.run_for(600).await;
    load.finish().await;
    let (epoch, _) = assert_complete(&database, &nats).await;
    assert_ne!(epoch, first_epoch);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_went_back_gets_a_new_epoch_and_all_events() {
    let (database, mut nats) = (Database::start().await, Nats::start());
    let relay = Relay::start(&database, &nats).await;
    let pool = database.pool().await;
    for chat in 1..=16 {
        append(&pool, chat, 30, true).await.unwrap();
    }
    let (first_epoch, _) = assert_complete(&database, &nats).await;
    nats.server.kill();
    let older = nats.copy_data();
    nats.server.restart().unwrap();
    for chat in 1..=16 {
        append(&pool, chat, 30, true).await.unwrap();
    }
    assert_complete(&database, &nats).await;
    nats.server.kill();
    nats.replace_data(&older);
    // The stream's end grows past the loss with new events before anybody looks, were it for the sequence alone.
    for chat in 1..=16 {
        append(&pool, chat, 60, true).await.unwrap();
    }
    nats.server.restart().unwrap();
    let (epoch, seen) = assert_complete(&database, &nats).await;
    assert_ne!(epoch, first_epoch);
    assert_eq!(seen.events.values().map(Vec::len).sum::<usize>(), 16 * 120);
    relay.stop().await;

    // The same while no relay runs.
    nats.server.kill();
    nats.replace_data(&older);
    nats.server.restart().unwrap();
    let relay = Relay::start(&database, &nats).await;
    until("it began anew", async || {
        let current: Vec<Option<Uuid>> = sqlx::query_scalar("SELECT DISTINCT stream_epoch FROM outbox_progress")
            .fetch_all(&pool)
            .await
            .unwrap();
        current != [Some(epoch)]
    })
    .await;
    let (third, _) = assert_complete(&database, &nats).await;
    assert!(third != epoch && third != first_epoch);
    relay.stop().await;
}
