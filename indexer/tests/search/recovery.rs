//! Processes die, servers go away, streams and indexes are lost: search comes back complete by itself.

use fechatter_core::chat::ChatKind;
use fechatter_core::events::EventType;

use crate::world::{User, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_indexer_goes_on_where_it_was() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let mut sent = Vec::new();
    // Killed in the middle of a flow, several times; whatever was not acknowledged comes again.
    for _ in 0..3 {
        for _ in 0..40 {
            sent.push(world.send(chat, owner, "persistent").await);
        }
        world.kill();
        for _ in 0..5 {
            sent.push(world.send(chat, owner, "persistent").await);
        }
        world.start().await;
    }
    let expected = sent.len();
    world
        .eventually("every message to be findable once", async || {
            let (_, body) = world.ask(owner, &[("q", "persistent"), ("limit", "1")]).await;
            body["estimated_total"] == expected
        })
        .await;
    let letters: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(letters, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_or_damaged_index_is_rebuilt_from_postgres() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let by_event = world.send(chat, owner, "durable words").await;
    world.settled().await;
    // Its event is older than anything the stream holds.
    let in_postgres_only = world.write(chat, owner, "durable row").await;
    world.kill();
    std::fs::remove_dir_all(world.index_folder()).unwrap();
    world.start().await;
    world.finds(owner, "durable", &[by_event, in_postgres_only]).await;

    world.kill();
    let generation = std::fs::read_dir(world.index_folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    std::fs::write(generation.join("meta.json"), b"{").unwrap();
    world.start().await;
    world.finds(owner, "durable", &[by_event, in_postgres_only]).await;
    let aside = std::fs::read_dir(world.index_folder())
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().contains(".damaged-"));
    assert!(aside);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_may_go_away_and_come_back() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let before = world.send(chat, owner, "before the outage").await;
    world.finds(owner, "outage", &[before]).await;
    world.nats.kill();
    world
        .eventually("health to say degraded", async || {
            health(&world).await == (200, "degraded".to_owned())
        })
        .await;
    // Searching goes on.
    assert_eq!(world.find(owner, "outage").await, [before]);
    world.nats.restart().unwrap();
    let after = world.send(chat, owner, "after the outage").await;
    world.finds(owner, "outage", &[before, after]).await;
    world
        .eventually("health to say ok", async || {
            health(&world).await == (200, "ok".to_owned())
        })
        .await;
}

/// Search answers 503 and says when to come again.
pub async fn assert_search_is_away(world: &World, user: User) {
    let request = world.http.get(world.url("/api/search/messages?q=patient"));
    let answer = request.bearer_auth(world.token(user)).send().await.expect("an answer");
    assert_eq!(answer.status(), 503);
    let seconds = answer.headers()["retry-after"].to_str().expect("text");
    assert!(seconds.parse::<u64>().expect("seconds") > 0);
}

pub async fn health(world: &World) -> (u16, String) {
    let answer = world.http.get(world.url("/health")).send().await.expect("an answer");
    let status = answer.status().as_u16();
    let body: serde_json::Value = answer.json().await.expect("JSON");
    (status, body["status"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_rebuilt_is_consumed_again() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let mut events = Vec::new();
    let mut sent = Vec::new();
    for n in 0..5 {
        let id = world.write(chat, owner, &format!("history {n}")).await;
        events.push(world.message_event(EventType::MessageCreated, chat, id).await);
        sent.push(id);
    }
    for event in &events {
        world.publish(EventType::MessageCreated, chat, event).await;
    }
    world.finds(owner, "history", &sent).await;
    world.destroy_stream().await;
    world.make_stream().await;
    // The relay publishes again what the outbox holds, and goes on.
    for event in &events {
        world.publish(EventType::MessageCreated, chat, event).await;
    }
    sent.push(world.send(chat, owner, "history goes on").await);
    world.finds(owner, "history", &sent).await;
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reindex_serves_the_old_while_it_builds_and_ends_with_the_truth() {
    reindex_ends_with_the_truth(World::without_indexer().await).await;
}

/// On either engine.
pub async fn reindex_ends_with_the_truth(mut world: World) {
    world.set("REINDEX__CHUNK", "20");
    world.set("REINDEX__PAUSE_MS", "50");
    world.start().await;
    world.settled_after_start().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let known = world.send(chat, owner, "archive known").await;
    world.finds(owner, "archive", &[known]).await;
    // Rows without events: only a walk through PostgreSQL finds them.
    for _ in 0..200 {
        world.write(chat, owner, "archive hidden").await;
    }
    // In the index, not in PostgreSQL any more.
    let vanished = world.send(chat, owner, "archive vanished").await;
    world.finds(owner, "vanished", &[vanished]).await;
    sqlx::query("DELETE FROM messages WHERE id = $1")
        .bind(vanished)
        .execute(&world.pool)
        .await
        .expect("deleted");

    let url = format!("http://127.0.0.1:{}/reindex", world.admin_port);
    assert_eq!(world.http.post(&url).send().await.expect("an answer").status(), 202);
    assert_eq!(world.http.post(&url).send().await.expect("an answer").status(), 409);
    let live = world.send(chat, owner, "archive live").await;
    world.finds(owner, "archive live", &[live]).await;
    let running = world.rebuild().await;
    assert_eq!(
        running["state"], "running",
        "the rebuild was too quick for this test: {running}"
    );
    assert_eq!(world.find(owner, "known").await, [known]);

    let output = world.command(&["reindex"]).await;
    assert!(output.contains("done"), "{output}");
    let (_, body) = world.ask(owner, &[("q", "archive"), ("limit", "1")]).await;
    assert_eq!(body["estimated_total"], 202);
    assert_eq!(world.find(owner, "archive live").await, [live]);
    let (_, body) = world.ask(owner, &[("q", "vanished")]).await;
    assert_eq!(body["estimated_total"], 0);

    // With no indexer running the command does it alone.
    let late = world.write(chat, owner, "archive late").await;
    world.kill();
    let output = world.command(&["reindex"]).await;
    assert!(
        output.contains("rebuilding here") && output.contains("done"),
        "{output}"
    );
    world.start().await;
    assert_eq!(world.find(owner, "late").await, [late]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_older_than_the_consumer_is_rebuilt() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let first = world.send(chat, owner, "restore one").await;
    world.settled().await;
    world.kill();
    let backup = world.folder.path().join("backup");
    copy(&world.index_folder(), &backup);
    world.start().await;
    let second = world.send(chat, owner, "restore two").await;
    world.finds(owner, "restore", &[first, second]).await;
    world.settled().await;
    world.kill();
    std::fs::remove_dir_all(world.index_folder()).unwrap();
    copy(&backup, &world.index_folder());
    world.start().await;
    world.finds(owner, "restore", &[first, second]).await;
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("a copy");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgres_search_says_so_and_events_wait() {
    let mut server = dev::postgres::Server::temporary().unwrap();
    let mut world = World::on(&server).await;
    world.start().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let first = world.send(chat, owner, "steady words").await;
    world.finds(owner, "steady", &[first]).await;
    let second = world.write(chat, owner, "steady again").await;
    let event = world.message_event(EventType::MessageCreated, chat, second).await;
    tokio::task::block_in_place(|| server.kill());

    let (status, body) = world.ask(owner, &[("q", "steady")]).await;
    assert_eq!(
        (status, &body["code"]),
        (503, &serde_json::json!("unavailable")),
        "{body}"
    );
    assert!(body["retry_after"].as_u64().unwrap() > 0);
    world
        .eventually("health to say down", async || {
            health(&world).await == (503, "down".to_owned())
        })
        .await;
    // Events of messages need no PostgreSQL; a dead letter does, and waits with what is behind it.
    let poison = world
        .publish_bytes(
            EventType::MessageCreated,
            chat,
            uuid::Uuid::now_v7(),
            b"poison".to_vec(),
        )
        .await;
    world.publish(EventType::MessageCreated, chat, &event).await;
    world
        .eventually("the indexer to wait for PostgreSQL", async || {
            let body: serde_json::Value = world
                .http
                .get(world.url("/health"))
                .send()
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            body["checks"]["indexing"]["detail"]
                .as_str()
                .is_some_and(|detail| detail.contains("PostgreSQL"))
        })
        .await;
    tokio::task::block_in_place(|| server.restart()).unwrap();
    world.finds(owner, "steady", &[first, second]).await;
    world.settled().await;
    let kept: Vec<i64> = sqlx::query_scalar("SELECT stream_sequence FROM dead_letters")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(kept, [poison.cast_signed()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_was_delivered_too_often_is_given_up() {
    let mut world = World::without_indexer().await;
    world.set("BATCH__MAX_DELIVERIES", "2");
    world.start().await;
    world.settled_after_start().await;
    world.kill();
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let tired = world.send(chat, owner, "tired event").await;
    // As if processes had died over it: taken and given back, time and again.
    for _ in 0..2 {
        world.take_and_give_back().await;
    }
    let fresh = world.send(chat, owner, "fresh event").await;
    world.start().await;
    world.settled().await;
    assert_eq!(world.find(owner, "event").await, [fresh]);
    let kept: Vec<(i64, String)> = sqlx::query_as("SELECT deliveries, reason FROM dead_letters")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0].0, 3);
    // Rebuilding brings it back: PostgreSQL is the truth.
    world.command(&["reindex"]).await;
    assert_eq!(world.find(owner, "event").await, [tired, fresh]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_gives_back_what_waits_and_ends_quickly() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    for _ in 0..100 {
        world.send(chat, owner, "orderly").await;
    }
    let mut indexer = world.indexer.take().unwrap();
    indexer.signal(dev::child::Signal::SIGTERM);
    let status = tokio::task::block_in_place(|| {
        dev::wait::until(std::time::Duration::from_secs(10), "an orderly end", || indexer.ended())
    })
    .unwrap();
    assert!(status.success(), "{}", world.log());
    world.start().await;
    // Well before the acknowledgement's time of 30 s is over.
    world
        .eventually("all of them", async || {
            world.ask(owner, &[("q", "orderly"), ("limit", "1")]).await.1["estimated_total"] == 100
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watchdog_makes_a_stuck_consumer_anew() {
    let mut world = World::without_indexer().await;
    // 40 events may be unacknowledged; a hung process holds them all for 30 s, longer than this test waits.
    world.set("BATCH__MAX_EVENTS", "10");
    world.set("BATCH__BACKLOG_MAX_EVENTS", "10");
    world.set("BATCH__WATCHDOG_SECONDS", "5");
    world.start().await;
    world.settled_after_start().await;
    world.kill();
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    for _ in 0..60 {
        world.send(chat, owner, "stuck").await;
    }
    world.take_and_hold(40).await;
    world.start().await;
    world
        .eventually("all of them", async || {
            world.ask(owner, &[("q", "stuck"), ("limit", "1")]).await.1["estimated_total"] == 60
        })
        .await;
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_writing_with_a_clear_word_and_nothing_is_lost() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let before = world.send(chat, owner, "roomy words").await;
    world.finds(owner, "words", &[before]).await;
    world.settled().await;
    world.kill();
    // No disk has a petabyte free: to the indexer this one is full.
    world.set("ENGINE__MIN_FREE_MB", "1000000000");
    world.start().await;
    let after = world.send(chat, owner, "cramped words").await;
    world
        .eventually("health to say what is missing and what to do", async || {
            let answer = world.http.get(world.url("/health")).send().await.expect("an answer");
            let health: serde_json::Value = answer.json().await.expect("JSON");
            let detail = &health["checks"]["indexing"]["detail"];
            health["status"] == "degraded" && detail.as_str().is_some_and(|detail| detail.contains("make room"))
        })
        .await;
    // Searching goes on with what there is, and no batch is blamed for it.
    assert_eq!(world.find(owner, "words").await, [before]);
    world.kill();
    world.set("ENGINE__MIN_FREE_MB", "0");
    world.start().await;
    // The held event comes again after the acknowledgement's time, longer than a test waits; a rebuild needs none.
    world.command(&["reindex"]).await;
    world.finds(owner, "words", &[before, after]).await;
    let letters: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(letters, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_consistency_report_names_what_differs() {
    consistency_names_what_differs(World::new().await).await;
}

/// On either engine.
pub async fn consistency_names_what_differs(mut world: World) {
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let same = world.send(chat, owner, "steady words").await;
    let edited = world.send(chat, owner, "edited words").await;
    let deleted = world.send(chat, owner, "deleted words").await;
    let vanished = world.send(chat, owner, "vanished words").await;
    world.finds(owner, "words", &[same, edited, deleted, vanished]).await;
    world.settled_after_start().await;
    let (succeeded, output) = world.try_command(&["consistency"]).await;
    assert!(
        succeeded && output.contains("the index agrees with PostgreSQL"),
        "{output}"
    );

    // Four ways to differ, without any event.
    let missing = world.write(chat, owner, "missing words").await;
    for (sql, id) in [
        (
            "UPDATE messages SET content = 'other', version = 2 WHERE id = $1",
            edited,
        ),
        (
            "UPDATE messages SET content = NULL, deleted_at = now(), version = 2 WHERE id = $1",
            deleted,
        ),
        ("DELETE FROM messages WHERE id = $1", vanished),
    ] {
        sqlx::query(sql).bind(id).execute(&world.pool).await.expect("a change");
    }
    let (succeeded, output) = world.try_command(&["consistency"]).await;
    assert!(!succeeded, "{output}");
    for line in [
        format!("missing: 1, such as [{missing}]"),
        format!("outdated: 1, such as [{edited}]"),
        format!("leftover: 2, such as [{deleted}, {vanished}]"),
    ] {
        assert!(output.contains(&line), "no {line:?} in {output}");
    }
    // With no indexer running the command compares alone, and a rebuild mends.
    world.command(&["reindex"]).await;
    world.kill();
    let (succeeded, output) = world.try_command(&["consistency"]).await;
    assert!(succeeded && output.contains("comparing here"), "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_engine_is_away_search_says_so_and_what_was_sent_is_indexed_later() {
    let mut world = World::without_indexer().await;
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    // A Meilisearch that nobody started.
    world.set("ENGINE__KIND", "meilisearch");
    let nowhere = format!("http://127.0.0.1:{}", dev::ports::free().unwrap());
    world.set("ENGINE__MEILI_URL", &nowhere);
    world.start().await;
    let sent = world.send(chat, owner, "patient words").await;
    assert_search_is_away(&world, owner).await;
    let (status, body) = world.ask(owner, &[("q", "patient")]).await;
    assert_eq!(
        (status, &body["code"]),
        (503, &serde_json::json!("unavailable")),
        "{body}"
    );
    assert!(
        !body.to_string().contains("127.0.0.1"),
        "the address is ours alone: {body}"
    );
    world
        .eventually("health to name what is away", async || {
            let answer = world.http.get(world.url("/health")).send().await.expect("an answer");
            let health: serde_json::Value = answer.json().await.expect("JSON");
            health["checks"]["search"]["status"] == "down" && health["checks"]["indexing"]["status"] == "degraded"
        })
        .await;
    world.kill();
    world.set("ENGINE__KIND", "embedded");
    world.start().await;
    world.finds(owner, "patient", &[sent]).await;
    world.settled().await;
    let letters: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(letters, 0);
}
