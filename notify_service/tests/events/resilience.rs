//! Nothing is lost and nothing comes twice: through reconnections, other processes, and NATS going away.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use fechatter_core::chat::ChatKind;
use fechatter_core::events::EventType;
use rand::RngExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Barrier;

use crate::world::{Notify, PATIENCE, Sse, User, World, eventually};

/// Follows a user across streams and processes until all of `total` messages came; panics at the first that is lost,
/// doubled or out of order within its chat.
async fn follow_all(world: &World, notifies: &[&Notify], user: User, total: usize, begun: &Barrier) -> usize {
    let mut cursor: Option<String> = None;
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    let (mut seen, mut streams) = (0, 0);
    while seen < total {
        let notify = notifies[rand::rng().random_range(0..notifies.len())];
        let mut sse = world.open(notify, user, cursor.as_deref()).await;
        assert_eq!(sse.status, 200);
        streams += 1;
        let first = sse.next().await.expect("a control event").event;
        assert_eq!(first, if streams == 1 { "ready" } else { "resumed" });
        if streams == 1 {
            begun.wait().await;
        }
        for _ in 0..rand::rng().random_range(1..40) {
            let Some(frame) = sse.within(Duration::from_millis(300)).await else {
                break;
            };
            if frame.event == "message.created" {
                let message = &frame.data["message"];
                let number = |field: &str| message[field].as_i64().expect("a number");
                let (chat, seq) = (number("chat_id"), number("seq"));
                let before = last.insert(chat, seq).unwrap_or_default();
                assert_eq!(seq, before + 1, "chat {chat} after stream {streams}");
                seen += 1;
            }
        }
        // `resumed` has no id: the client keeps the one it has.
        cursor = sse.cursor.or(cursor);
    }
    streams
}

async fn publish_while_followed(world: &mut World, notifies: &[&Notify], name: &str) {
    const CHATS: usize = 6;
    const MESSAGES: usize = 120;
    const FOLLOWERS: usize = 8;
    let ada = world.workspace(name).await;
    let bob = world.user(ada.workspace).await;
    let mut chats = Vec::new();
    for _ in 0..CHATS {
        chats.push(world.chat(ChatKind::PrivateChannel, &[ada, bob]).await);
    }
    let mut publisher = world.publisher.clone();
    // Everybody is connected once before the first message, so that `ready` is before all of them.
    let begun = Barrier::new(FOLLOWERS + 1);
    let sender = async {
        begun.wait().await;
        for seq in (1_i64..).take(MESSAGES) {
            for chat in &chats {
                publisher.message(*chat, ada, seq, "x").await;
            }
        }
    };
    let followers = (0..FOLLOWERS).map(|number| {
        let user = if number % 2 == 0 { ada } else { bob };
        follow_all(world, notifies, user, CHATS * MESSAGES, &begun)
    });
    let ((), streams) = tokio::join!(sender, futures::future::join_all(followers));
    assert!(streams.iter().all(|count| *count > 5), "{streams:?}");
    world.publisher = publisher;
}

#[tokio::test(flavor = "multi_thread")]
async fn reconnecting_at_random_loses_and_doubles_nothing() {
    let mut world = World::new().await;
    let notify = world.notify(&[]).await;
    publish_while_followed(&mut world, &[&notify], "one-process").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_between_two_processes_loses_and_doubles_nothing() {
    let mut world = World::new().await;
    let (first, second) = (world.notify(&[]).await, world.notify(&[]).await);
    publish_while_followed(&mut world, &[&first, &second], "two-processes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_outlive_nats() {
    let mut world = World::new().await;
    let ada = world.workspace("nats-restart").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world.notify(&[]).await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    for round in 1..=3 {
        world.nats.kill();
        eventually("the loss to be noticed", async || {
            world.health(&notify).await["status"] == "degraded"
        })
        .await;
        // Known users still connect.
        let (_, frames) = world.follow(&notify, ada, sse.cursor.as_deref()).await;
        assert_eq!(frames[0].data, json!({"count": 0}));
        world.nats.restart().expect("NATS");
        world.send(chat, ada, round, "after").await;
        let frame = sse.next().await.expect("the same stream");
        assert_eq!(frame.data["message"]["seq"], round, "{frame:?}");
    }
    assert_eq!(sse.within(Duration::from_millis(300)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_stream_is_a_gap_and_goes_on() {
    let mut world = World::new().await;
    let ada = world.workspace("wiped").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world.notify(&[]).await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    for seq in 1..=3 {
        world.send(chat, ada, seq, "old").await;
        assert_eq!(sse.next().await.unwrap().data["message"]["seq"], seq);
    }
    let old = sse.cursor.clone();
    // One that begins late knows sequences of the old history that the new one has not reached.
    let (mut late, _) = world.follow(&notify, ada, None).await;
    world.nats.wipe().expect("a wipe");
    world.nats.restart().expect("NATS");
    world.make_stream().await;
    world.send(chat, ada, 4, "new").await;
    let gap = sse.next().await.expect("the same stream");
    assert_eq!(
        (gap.event.as_str(), &gap.data),
        ("gap", &json!({"reason": "history_changed"}))
    );
    assert!(gap.id.is_some());
    assert_eq!(sse.next().await.unwrap().data["message"]["seq"], 4);
    assert_eq!(late.until("message.created").await.len(), 1);
    let (_, frames) = world.follow(&notify, ada, old.as_deref()).await;
    assert_eq!(frames[0].data, json!({"reason": "history_changed"}));
    let (_, frames) = world.follow(&notify, ada, gap.id.as_deref()).await;
    assert_eq!(frames[1].data["message"]["seq"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_and_latecomers_are_dropped_and_a_hole_is_a_gap() {
    let mut world = World::new().await;
    let ada = world.workspace("contract").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world.notify(&[]).await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    world.send(chat, ada, 1, "first").await;
    // A copy with another deduplication id: as after the two minutes of the stream's memory.
    let shard = fechatter_core::events::shard_of(chat.id);
    let positions = world.publisher.positions.clone();
    *world.publisher.positions.get_mut(&shard).unwrap() -= 1;
    world.send(chat, ada, 1, "copy").await;
    let epoch = world.publisher.epoch;
    world.publisher.epoch = uuid::Uuid::now_v7();
    world.send(chat, ada, 2, "of another history").await;
    world.publisher.epoch = epoch;
    world.publisher.positions = positions;
    world.send(chat, ada, 2, "second").await;
    *world.publisher.positions.get_mut(&shard).unwrap() += 1;
    world.send(chat, ada, 3, "after a hole").await;
    let mut contents = Vec::new();
    for _ in 0..4 {
        let frame = sse.next().await.unwrap();
        contents.push(match frame.event.as_str() {
            "gap" => frame.data["reason"].as_str().unwrap().to_owned(),
            _ => frame.data["message"]["content"].as_str().unwrap().to_owned(),
        });
    }
    assert_eq!(contents, ["first", "second", "events_lost", "after a hole"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_cut_off_and_resumes() {
    let mut world = World::new().await;
    let ada = world.workspace("slow").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world
        .notify(&[("STREAMS__QUEUE_BYTES", "65536"), ("STREAMS__WRITE_SECONDS", "2")])
        .await;
    let (mut quick, _) = world.follow(&notify, ada, None).await;
    let mut slow = tokio::net::TcpStream::connect(("127.0.0.1", notify.port))
        .await
        .unwrap();
    let request = format!(
        "GET /events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
        world.token(ada)
    );
    slow.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 4_096];
    assert!(slow.read(&mut head).await.unwrap() > 0);
    eventually("both streams", async || {
        world.metric(&notify, "notify_streams").await == Some(2.0)
    })
    .await;
    let text = "x".repeat(20_000);
    let mut seq = 0;
    while world.metric(&notify, "notify_streams").await != Some(1.0) {
        seq += 1;
        assert!(seq < 5_000, "the slow stream is never closed");
        world.send(chat, ada, seq, &text).await;
        // The quick one loses nothing.
        assert_eq!(quick.next().await.unwrap().data["message"]["seq"], seq);
    }
    let mut received = Vec::new();
    eventually("the connection to be given up", async || {
        world.metric(&notify, "notify_stream_ends_total").await == Some(1.0)
    })
    .await;
    // What was in the sockets' buffers is still there, then comes the end.
    let read = tokio::time::timeout(PATIENCE, slow.read_to_end(&mut received)).await;
    assert!(read.is_ok(), "the connection stays open");
    assert!(received.len() < usize::try_from(seq).unwrap() * 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_come_and_keep_the_cursor_of_a_quiet_client_fresh() {
    let mut world = World::new().await;
    let ada = world.workspace("quiet").await;
    let bob = world.user(ada.workspace).await;
    let chat = world.chat(ChatKind::PrivateChannel, &[bob]).await;
    let notify = world
        .notify(&[("STREAMS__HEARTBEAT_MS", "1000"), ("WINDOW__MAX_EVENTS", "5")])
        .await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    let mut last = 0;
    for seq in 1..=20 {
        last = world.send(chat, bob, seq, "not for ada").await;
    }
    while sse.cursor.as_ref().unwrap().split_once('.').unwrap().1 != last.to_string() {
        assert_eq!(sse.within(Duration::from_millis(100)).await, None);
        assert!(sse.heartbeats < 5, "the cursor stays behind");
    }
    assert!(sse.heartbeats > 0);
    let (_, frames) = world.follow(&notify, ada, sse.cursor.as_deref()).await;
    assert_eq!(frames[0].event, "resumed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stops_ends_its_streams_and_another_takes_over() {
    let mut world = World::new().await;
    let ada = world.workspace("deploy").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let (mut first, second) = (world.notify(&[]).await, world.notify(&[]).await);
    let mut streams: Vec<Sse> = Vec::new();
    for _ in 0..10 {
        streams.push(world.follow(&first, ada, None).await.0);
    }
    world.send(chat, ada, 1, "x").await;
    for sse in &mut streams {
        assert_eq!(sse.next().await.unwrap().data["message"]["seq"], 1);
    }
    let stopping = tokio::task::spawn_blocking(move || {
        first.process.stop(dev::child::Signal::SIGTERM, Duration::from_secs(10));
    });
    let mut cursors = HashSet::new();
    for sse in &mut streams {
        assert_eq!(sse.rest().await, []);
        cursors.extend(sse.cursor.clone());
    }
    stopping.await.unwrap();
    world.send(chat, ada, 2, "y").await;
    for cursor in cursors {
        let mut sse = world.open(&second, ada, Some(&cursor)).await;
        loop {
            let frame = sse.next().await.unwrap();
            if frame.event == "message.created" {
                assert_eq!(frame.data["message"]["seq"], 2);
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_event_becomes_a_dead_letter_and_stops_nothing() {
    let mut world = World::new().await;
    let ada = world.workspace("poison").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let (notify, second) = (world.notify(&[]).await, world.notify(&[]).await);
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    let (mut of_second, _) = world.follow(&second, ada, None).await;
    let poison = world
        .publisher
        .publish(
            EventType::MessageCreated,
            chat.workspace,
            chat.id,
            json!({"message": "none"}),
        )
        .await;
    world.send(chat, ada, 1, "behind it").await;
    assert_eq!(sse.next().await.unwrap().data["message"]["seq"], 1);
    assert_eq!(of_second.next().await.unwrap().data["message"]["seq"], 1);
    let kept: Vec<(String, i64)> = sqlx::query_as("SELECT consumer, stream_sequence FROM dead_letters")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(kept, [("notify_service".to_owned(), i64::try_from(poison).unwrap())]);
}
