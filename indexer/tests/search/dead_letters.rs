//! `indexer dead-letters`: what an operator sees of events that were given up, and what replaying and dropping them does.

use fechatter_core::chat::ChatKind;
use fechatter_core::events::EventType;
use serde_json::{Value, json};

use crate::world::World;

const FUTURE: &str = "urn:fechatter:event:message.created:99";

async fn listed(world: &World) -> Value {
    let (code, out, err) = world.operate(&["dead-letters", "list", "--json"]).await;
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).expect("standard output is JSON alone")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_listed_shown_replayed_once_and_dropped() {
    let mut world = World::new().await;
    world.settled_after_start().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    // One of a later version, of a message that is in PostgreSQL; one that nobody will ever read.
    let late = world.write(chat, owner, "late words").await;
    let mut event = world.message_event(EventType::MessageCreated, chat, late).await;
    let good = serde_json::to_vec(&event).unwrap();
    event.dataschema = FUTURE.to_owned();
    world.publish(EventType::MessageCreated, chat, &event).await;
    let poison = b"\x1b[2J not JSON".to_vec();
    world
        .publish_bytes(EventType::MessageCreated, chat, uuid::Uuid::now_v7(), poison)
        .await;
    let behind = world.send(chat, owner, "words behind them").await;
    world.finds(owner, "words", &[behind]).await;
    world.settled().await;

    let list = listed(&world).await;
    assert_eq!(list["waiting"], 2, "{list}");
    let letter = |at: usize| list["letters"][at].clone();
    assert!(letter(0)["reason"].as_str().unwrap().contains("newer"), "{list}");
    assert_eq!(
        (&letter(0)["state"], &letter(0)["replays"]),
        (&json!("waiting"), &json!(0))
    );
    let ids = [0, 1].map(|at| letter(at)["id"].to_string());
    let (code, out, _) = world.operate(&["dead-letters", "list"]).await;
    assert!(code == 0 && out.contains("2 waiting, 2 shown"), "{out}");
    let (code, out, _) = world.operate(&["dead-letters", "show", &ids[0]]).await;
    assert!(code == 0 && out.contains(FUTURE), "{out}");
    let (code, out, _) = world.operate(&["dead-letters", "show", &ids[1]]).await;
    assert!(
        code == 0 && out.contains("\\u{1b}[2J") && !out.contains('\u{1b}'),
        "{out:?}"
    );

    // Nothing has changed: both come back, and say how often they were tried.
    let (code, out, _) = world.operate(&["dead-letters", "replay", "--all", "--json"]).await;
    assert_eq!(code, 1);
    let outcomes: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(outcomes.iter().all(|outcome| outcome["outcome"] == "returned"), "{out}");
    let list = listed(&world).await;
    assert_eq!(list["waiting"], 2);
    assert!([0, 1].iter().all(|&at| list["letters"][at]["replays"] == 1), "{list}");
    assert_eq!(world.find(owner, "words").await, [behind]);

    // As a release that reads the later version would see it.
    sqlx::query("UPDATE dead_letters SET body = $1 WHERE id = $2")
        .bind(good)
        .bind(ids[0].parse::<i64>().unwrap())
        .execute(&world.pool)
        .await
        .unwrap();
    let (code, out, err) = world.operate(&["dead-letters", "replay", &ids[0]]).await;
    assert!(code == 0 && out.contains("replayed"), "{out}{err}");
    world.finds(owner, "words", &[late, behind]).await;
    let (code, out, _) = world.operate(&["dead-letters", "replay", &ids[0]]).await;
    assert!(code == 0 && out.contains("replayed before"), "{out}");

    let (code, _, _) = world.operate(&["dead-letters", "drop", &ids[1]]).await;
    assert_eq!(code, 2, "a reason is asked for");
    let (code, out, _) = world
        .operate(&["dead-letters", "drop", &ids[1], "--reason", "never readable"])
        .await;
    assert!(code == 0 && out.contains("dropped"), "{out}");
    let (code, _, err) = world
        .operate(&["dead-letters", "drop", &ids[1], "--reason", "again"])
        .await;
    assert!(code == 1 && err.contains("no dead letter"), "{err}");
    let (code, _, _) = world.operate(&["dead-letters", "replay", &ids[1]]).await;
    assert_eq!(code, 1);
    let (code, _, err) = world.operate(&["dead-letters", "show", "999999"]).await;
    assert!(code == 1 && err.contains("no dead letter 999999"), "{err}");
    assert_eq!(listed(&world).await["waiting"], 0);
    // What is settled is remembered without what people wrote.
    let (_, out, _) = world.operate(&["dead-letters", "list", "--all", "--json"]).await;
    let all: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(all["letters"][0]["state"], "replayed", "{all}");
    assert_eq!(all["letters"][1]["drop_reason"], "never readable", "{all}");
    assert!([0, 1].iter().all(|&at| all["letters"][at]["body_bytes"] == 0), "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_replay_brings_back_nothing_that_is_gone() {
    let mut world = World::without_indexer().await;
    world.set("BATCH__MAX_DELIVERIES", "2");
    world.start().await;
    world.settled_after_start().await;
    world.kill();
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let doomed = world.chat(ChatKind::PublicChannel, "doomed", &[owner]).await;
    let kept = world.send(chat, owner, "tired words").await;
    world.send(doomed, owner, "doomed words").await;
    let deleted = world.send(chat, owner, "deleted words").await;
    for _ in 0..2 {
        world.take_and_give_back().await;
    }
    world.start().await;
    world.settled().await;
    world.edit(chat, kept, "edited words").await;
    world.delete(chat, deleted).await;
    world.delete_chat(doomed).await;
    world.settled().await;
    world.kill();

    // No indexer runs: the command works by itself.
    let (code, out, err) = world.operate(&["dead-letters", "replay", "--all"]).await;
    assert!(code == 0 && out.contains("3 of 3"), "{out}{err}");
    assert_eq!(listed(&world).await["waiting"], 0);
    world.start().await;
    world.finds(owner, "words", &[kept]).await;
    assert_eq!(world.find(owner, "edited").await, [kept]);
    world.command(&["consistency"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_told_by_the_exit_code() {
    let mut server = dev::postgres::Server::temporary().unwrap();
    let world = World::on(&server).await;
    let (code, out, _) = world.operate(&["dead-letters", "list"]).await;
    assert!(code == 0 && out.contains("0 waiting"), "{out}");
    tokio::task::block_in_place(|| server.kill());
    let (code, out, err) = world.operate(&["dead-letters", "list"]).await;
    assert!(code == 2 && out.is_empty() && err.contains("database"), "{code} {err}");
}
