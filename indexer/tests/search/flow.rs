//! From a published event to a search result.

use std::time::{Duration, Instant};

use fechatter_core::chat::ChatKind;
use fechatter_core::events::EventType;
use serde_json::json;

use crate::world::{World, envelope};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_an_edit_a_deletion_and_a_deleted_chat_reach_search() {
    changes_reach_search(World::new().await).await;
}

/// On either engine.
pub async fn changes_reach_search(mut world: World) {
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;

    let sent = world.send(chat, owner, "the quarterly report is ready").await;
    world.finds(owner, "quarterly report", &[sent]).await;
    world.edit(chat, sent, "the annual summary is ready").await;
    world.finds(owner, "annual summary", &[sent]).await;
    assert!(world.find(owner, "quarterly").await.is_empty());
    let (_, body) = world.ask(owner, &[("q", "annual")]).await;
    let hit = &body["hits"][0];
    assert_eq!(hit["message"]["content"], "the annual summary is ready");
    assert!(hit["message"]["edited_at"].is_string() && hit["message"]["deleted_at"].is_null());
    assert_eq!(
        hit["chat"],
        json!({"id": chat.id, "name": "general", "kind": "public_channel"})
    );
    assert_eq!(hit["highlight"], "the <mark>annual</mark> summary is ready");

    let other = world.send(chat, owner, "annual picnic").await;
    world.finds(owner, "annual", &[sent, other]).await;
    world.delete(chat, sent).await;
    world.finds(owner, "annual", &[other]).await;
    // PostgreSQL hides the deleted one at once; the index forgets it too.
    world.settled().await;
    let (_, body) = world.ask(owner, &[("q", "annual")]).await;
    assert_eq!(body["estimated_total"], 1);

    let second = world.chat(ChatKind::PrivateChannel, "secret", &[owner]).await;
    let kept = world.send(second, owner, "annual retreat").await;
    world.delete_chat(chat).await;
    world.finds(owner, "annual", &[kept]).await;
    world.settled().await;
    let (_, body) = world.ask(owner, &[("q", "annual")]).await;
    assert_eq!(body["facets"]["chat_id"], json!({second.id.to_string(): 1}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_message_is_findable_well_below_a_second() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    world.send(chat, owner, "warm up").await;
    world.settled().await;
    let mut slowest = Duration::ZERO;
    for n in 0..10 {
        let needle = format!("needle{n}x");
        let sent = Instant::now();
        let id = world.send(chat, owner, &needle).await;
        world.finds(owner, &needle, &[id]).await;
        slowest = slowest.max(sent.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_indexed_in_large_batches() {
    let mut world = World::without_indexer().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    // The index begins empty and PostgreSQL has nothing of these, so that they come by the stream alone.
    world.start().await;
    world.settled_after_start().await;
    world.kill();
    for _ in 0..600 {
        world.send(chat, owner, "backlog").await;
    }
    world.start().await;
    world
        .eventually("the backlog to be findable", async || {
            world.ask(owner, &[("q", "backlog"), ("limit", "1")]).await.1["estimated_total"] == 600
        })
        .await;
    world.settled().await;
    let metrics = world
        .http
        .get(format!("http://127.0.0.1:{}/metrics", world.admin_port))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let batches: f64 = metrics
        .lines()
        .find(|line| line.starts_with("indexer_batch_events_count"))
        .and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no batch metric in\n{metrics}"));
    assert!(batches <= 10.0, "{batches} batches for 600 events");
    assert!(metrics.contains("indexer_lag_seconds_bucket"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redelivered_and_reordered_events_change_nothing() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let id = world.write(chat, owner, "first words").await;
    let created = world.message_event(EventType::MessageCreated, chat, id).await;
    world.edit(chat, id, "second words").await;
    world.finds(owner, "second", &[id]).await;
    // The creation comes after the edit, twice; JetStream's own memory of ids is bypassed.
    for _ in 0..2 {
        let body = serde_json::to_vec(&created).unwrap();
        world
            .publish_bytes(EventType::MessageCreated, chat, uuid::Uuid::now_v7(), body)
            .await;
    }
    world.settled().await;
    assert_eq!(world.find(owner, "second").await, [id]);
    assert!(world.find(owner, "first").await.is_empty());
    world.delete(chat, id).await;
    world.finds(owner, "words", &[]).await;
    let body = serde_json::to_vec(&created).unwrap();
    world
        .publish_bytes(EventType::MessageCreated, chat, uuid::Uuid::now_v7(), body)
        .await;
    world.settled().await;
    let (_, answer) = world.ask(owner, &[("q", "words")]).await;
    assert_eq!(answer["estimated_total"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_becomes_a_dead_letter_and_those_behind_flow() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let mut future = envelope(EventType::MessageCreated, chat, json!({}));
    future.dataschema = "urn:fechatter:event:message.created:99".to_owned();
    // The complaint about it repeats a character that PostgreSQL's text cannot hold.
    let nul = json!({"chat": {"id": chat.id, "name": null, "kind": "\0"}});
    let poisons: [Vec<u8>; 5] = [
        b"not json".to_vec(),
        Vec::new(),
        serde_json::to_vec(&envelope(EventType::MessageCreated, chat, json!({"message": 7}))).unwrap(),
        serde_json::to_vec(&future).unwrap(),
        serde_json::to_vec(&envelope(EventType::MessageCreated, chat, nul)).unwrap(),
    ];
    let mut sequences = Vec::new();
    for poison in &poisons {
        let id = uuid::Uuid::now_v7();
        sequences.push(
            world
                .publish_bytes(EventType::MessageCreated, chat, id, poison.clone())
                .await,
        );
    }
    let behind = world.send(chat, owner, "behind the poison").await;
    world.finds(owner, "behind", &[behind]).await;
    world.settled().await;
    let letters: Vec<(i64, Vec<u8>, Option<uuid::Uuid>, String)> = sqlx::query_as(
        "SELECT stream_sequence, body, stream_epoch, subject FROM dead_letters WHERE consumer = 'indexer'
         ORDER BY stream_sequence",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    assert_eq!(letters.len(), poisons.len());
    for ((sequence, body, epoch, subject), (expected, poison)) in letters.iter().zip(sequences.iter().zip(&poisons)) {
        assert_eq!((sequence.cast_unsigned(), body), (*expected, poison));
        assert_eq!(*epoch, Some(world.epoch));
        assert_eq!(
            *subject,
            EventType::MessageCreated.subject(chat.workspace.into(), chat.id)
        );
    }
    let reason: String = sqlx::query_scalar("SELECT reason FROM dead_letters ORDER BY stream_sequence DESC LIMIT 1")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert!(reason.contains('\u{FFFD}'), "{reason}");
}
