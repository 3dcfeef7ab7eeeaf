//! The history of the stream: what is lost, deleted, doubled, held back or no longer in memory.

use async_nats::jetstream::stream;
use fechatter_core::chat::ChatKind;
use fechatter_core::events::{EventType, METADATA_EPOCH, STREAM};
use futures::StreamExt;
use serde_json::json;
use uuid::Uuid;

use crate::world::{Frame, World, contents, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_beats_and_delivers_nothing_is_made_anew() {
    let mut world = World::new().await;
    let ada = world.workspace("held").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world.notify(&[]).await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    let jetstream = world.jetstream().await;
    let stream = jetstream.get_stream(STREAM).await.unwrap();
    // Not those by which it read the past, which end by themselves.
    let consumers = stream.consumers().map(Result::unwrap);
    let live: Vec<_> = consumers
        .filter(|consumer| std::future::ready(consumer.push_bound))
        .collect()
        .await;
    let [consumer] = &live[..] else {
        panic!("one process has one consumer: {live:?}");
    };
    // The server goes on sending its heartbeats.
    let in_an_hour = time::OffsetDateTime::now_utc() + time::Duration::HOUR;
    assert!(stream.pause_consumer(&consumer.name, in_an_hour).await.unwrap().paused);
    for seq in 1..=3 {
        world.send(chat, ada, seq, "held back").await;
    }
    for seq in 1..=3 {
        assert_eq!(sse.next().await.unwrap().data["message"]["seq"], seq);
    }
    let metrics = world.metrics(&notify).await;
    let is_counted =
        |line: &str| line.starts_with("notify_consumer_starts_total") && line.contains("reason=\"stalled\"");
    assert!(metrics.lines().any(is_counted), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_lost_and_rebuilt_is_a_gap_and_then_nothing_twice() {
    let mut world = World::new().await;
    let ada = world.workspace("rebuilt").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world.notify(&[]).await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    for seq in 1..=3 {
        world.send(chat, ada, seq, "before").await;
        assert_eq!(sse.next().await.unwrap().data["message"]["seq"], seq);
    }
    let old_cursor = sse.cursor.clone();
    // As the relay does when it finds the stream without what it has acknowledged: another epoch, purged, all again.
    let epoch = Uuid::now_v7();
    let mut stream = world.publisher.context.get_stream(STREAM).await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.metadata.insert(METADATA_EPOCH.to_owned(), epoch.to_string());
    world.publisher.context.update_stream(&config).await.unwrap();
    stream.purge().await.unwrap();
    world.publisher.begin(epoch);
    world.publisher.publish_again().await;
    for seq in 4..=5 {
        world.send(chat, ada, seq, "after").await;
    }
    let gap = sse.next().await.unwrap();
    assert_eq!(
        (gap.event.as_str(), &gap.data),
        ("gap", &json!({"reason": "history_changed"}))
    );
    let after_gap = sse.cursor.clone();
    for seq in 4..=5 {
        assert_eq!(sse.next().await.unwrap().data["message"]["seq"], seq);
    }
    let (_, frames) = world.follow(&notify, ada, old_cursor.as_deref()).await;
    assert_eq!(frames[0].data, json!({"reason": "history_changed"}));
    let (_, frames) = world.follow(&notify, ada, after_gap.as_deref()).await;
    assert_eq!(contents(&frames), ["after", "after"]);
    let (_, frames) = world.follow(&notify, ada, sse.cursor.as_deref()).await;
    assert_eq!(frames[0].data, json!({"count": 0}));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_the_stream_that_was_deleted_is_not_waited_for() {
    let mut world = World::new().await;
    let ada = world.workspace("shortened").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let other = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    world.send(chat, ada, 1, "kept").await;
    world.send(other, ada, 1, "deleted").await;
    world.send(other, ada, 2, "deleted").await;
    let stream = world.publisher.context.get_stream(STREAM).await.unwrap();
    let subject = EventType::MessageCreated.subject(other.workspace.into(), other.id);
    stream.purge().filter(subject).await.unwrap();
    let notify = world.notify(&[]).await;
    let (mut sse, frames) = world.follow(&notify, ada, None).await;
    assert_eq!(frames[0].event, "ready");
    // What follows is delivered.
    world.send(chat, ada, 2, "after").await;
    assert_eq!(contents(&[sse.next().await.unwrap()]), ["after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_server_is_found_again() {
    let mut world = World::new().await;
    let ada = world.workspace("wiped").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world.notify(&[]).await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    world.send(chat, ada, 1, "before").await;
    sse.next().await.unwrap();
    world.nats().wipe().unwrap();
    tokio::task::block_in_place(|| world.nats().restart()).unwrap();
    eventually("health to say so", async || {
        world.health(&notify).await["checks"]["events"]["status"] == "degraded"
    })
    .await;
    // Who comes meanwhile is served from memory.
    let (_, frames) = world.follow(&notify, ada, sse.cursor.as_deref()).await;
    assert_eq!(frames[0].data, json!({"count": 0}));
    eventually("NATS to take the stream", async || {
        world
            .publisher
            .context
            .get_stream(STREAM)
            .await
            .is_err_and(|error| error.to_string().contains("not found"))
    })
    .await;
    world.make_stream().await;
    assert_eq!(sse.next().await.unwrap().data, json!({"reason": "history_changed"}));
    world.send(chat, ada, 2, "after").await;
    assert_eq!(sse.next().await.unwrap().data["message"]["seq"], 2);
    eventually("health", async || world.health(&notify).await["status"] == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_events_are_noticed_and_copies_dropped() {
    let mut world = World::new().await;
    let ada = world.workspace("holes").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world.notify(&[]).await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    world.send(chat, ada, 1, "one").await;
    let cursor = sse.next().await.unwrap().id;
    let shard = fechatter_core::events::shard_of(chat.id);
    // A latecomer publishes position 1 once more, under another id.
    world.publisher.positions.insert(shard, 0);
    world.send(chat, ada, 1, "a copy").await;
    world.send(chat, ada, 2, "two").await;
    assert_eq!(sse.next().await.unwrap().data["message"]["content"], "two");
    // Position 3 never comes.
    world.publisher.positions.insert(shard, 3);
    let four = world.send(chat, ada, 4, "four").await;
    assert_eq!(sse.next().await.unwrap().data, json!({"reason": "events_lost"}));
    // Told when her chats are known again: "four" came before, and she reloads it, or comes now.
    let at = sse
        .cursor
        .as_deref()
        .and_then(|cursor| cursor.split_once('.')?.1.parse::<u64>().ok());
    if at.expect("a cursor") < four {
        assert_eq!(sse.next().await.unwrap().data["message"]["content"], "four");
    }
    world.send(chat, ada, 5, "five").await;
    assert_eq!(sse.next().await.unwrap().data["message"]["content"], "five");
    let (_, frames) = world.follow(&notify, ada, cursor.as_deref()).await;
    assert_eq!(frames[0].data, json!({"reason": "events_lost"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_removed_by_an_event_that_was_lost_gets_nothing_more_of_the_chat() {
    let mut world = World::new().await;
    let ada = world.workspace("lost-removal").await;
    let bob = world.user(ada.workspace).await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let other = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let notify = world.notify(&[]).await;
    let (mut sse, _) = world.follow(&notify, bob, None).await;
    world.send(chat, ada, 1, "he is a member").await;
    assert_eq!(contents(&[sse.next().await.unwrap()]), ["he is a member"]);
    // As a later version writes it.
    world.change_member(chat, bob, false).await;
    let unreadable = json!({"who": bob.id});
    world
        .publisher
        .publish(EventType::MemberRemoved, chat.workspace, chat.id, unreadable)
        .await;
    // At once, while his chats are loaded again.
    world.send(chat, ada, 2, "he is not a member").await;
    assert_eq!(sse.next().await.unwrap().data, json!({"reason": "events_lost"}));
    world.send(other, ada, 1, "the end").await;
    assert_eq!(contents(&[sse.next().await.unwrap()]), ["the end"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_stream_nobody_is_served_and_nothing_breaks() {
    let world = World::new().await;
    let ada = world.workspace("starting").await;
    world.publisher.context.delete_stream(STREAM).await.unwrap();
    let notify = world.launch(&[]);
    eventually("an answer", async || {
        world
            .try_open(&notify, ada, None)
            .await
            .is_some_and(|sse| sse.status == 503)
    })
    .await;
    world
        .publisher
        .context
        .create_stream(stream::Config {
            name: STREAM.to_owned(),
            subjects: vec!["fechatter.>".to_owned()],
            metadata: [(METADATA_EPOCH.to_owned(), Uuid::now_v7().to_string())].into(),
            ..stream::Config::default()
        })
        .await
        .unwrap();
    world.ready(&notify).await;
    assert_eq!(world.open(&notify, ada, None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_memory_no_longer_holds_is_read_from_the_stream() {
    let mut world = World::new().await;
    let ada = world.workspace("far").await;
    let bob = world.user(ada.workspace).await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let other = world.chat(ChatKind::PrivateChannel, &[bob]).await;
    let notify = world
        .notify(&[("RING__MAX_EVENTS", "3"), ("REPLAY__MAX_SCANNED", "1300")])
        .await;
    let (sse, _) = world.follow(&notify, ada, None).await;
    let start = sse.cursor.clone().expect("a cursor");
    drop(sse);
    let mut last = 0;
    for seq in 1..=600 {
        world.send(chat, ada, seq, "x").await;
        last = world.send(other, bob, seq, "y").await;
    }
    // Twice: the second time from what the first has read.
    for _ in 0..2 {
        eventually("the last event", async || {
            let (_, frames) = world.follow(&notify, ada, Some(&start)).await;
            assert_eq!(frames[0].event, "resumed");
            let seqs: Vec<i64> = frames[1..]
                .iter()
                .filter_map(|f| f.data["message"]["seq"].as_i64())
                .collect();
            assert_eq!(seqs, (1..=i64::try_from(seqs.len()).expect("few")).collect::<Vec<_>>());
            assert_eq!(frames[0].data["count"], seqs.len());
            seqs.len() == 600
        })
        .await;
    }
    let metrics = world.metrics(&notify).await;
    let is_counted = |line: &str| line.starts_with("notify_replays_total") && line.contains("source=\"stream\"");
    assert!(metrics.lines().any(is_counted), "{metrics}");
    // Further back than we look, and what the stream no longer has.
    for seq in 601..=800 {
        last = world.send(chat, ada, seq, "x").await;
    }
    let expired = |frames: &[Frame]| frames[0].data == json!({"reason": "expired"});
    eventually("it to be too far", async || {
        expired(&world.follow(&notify, ada, Some(&start)).await.1)
    })
    .await;
    let near = start.replace(".0", &format!(".{}", last - 200));
    assert!(!expired(&world.follow(&notify, ada, Some(&near)).await.1));
    let stream = world.publisher.context.get_stream(STREAM).await.expect("the stream");
    stream.purge().sequence(last - 99).await.expect("a purge");
    let gone = start.replace(".0", &format!(".{}", last - 300));
    assert!(expired(&world.follow(&notify, ada, Some(&gone)).await.1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_among_much_of_others_is_whole_and_has_its_bound() {
    let mut world = World::new().await;
    let (ada, eve) = (world.workspace("small").await, world.workspace("large").await);
    let hers = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let others = world.chat(ChatKind::PrivateChannel, &[eve]).await;
    let notify = world
        .notify(&[("RING__MAX_EVENTS", "1"), ("REPLAY__MAX_BYTES", "40000")])
        .await;
    let (sse, _) = world.follow(&notify, ada, None).await;
    let start = sse.cursor.clone();
    let large = "x".repeat(5_000);
    for seq in 1..=300 {
        world.send(others, eve, seq, &large).await;
        if seq % 60 == 0 {
            world.send(hers, ada, seq / 60, &large).await;
        }
    }
    // All of a user's devices at once.
    let begin = async |count: usize| {
        eventually("the last event", async || {
            let devices = (0..8).map(|_| world.follow(&notify, ada, start.as_deref()));
            let devices = futures::future::join_all(devices).await;
            devices
                .iter()
                .all(|(_, frames)| frames[0].data == json!({"count": count}) && contents(frames).len() == count)
        })
        .await;
    };
    begin(5).await;
    for seq in 6..=10 {
        world.send(hers, ada, seq, &large).await;
    }
    eventually("her own to be too many", async || {
        world.follow(&notify, ada, start.as_deref()).await.1[0].data == json!({"reason": "too_many"})
    })
    .await;
}
