//! How streams end, what they hold meanwhile, and what happens to events that cannot be read.

use std::time::Duration;

use fechatter_core::chat::ChatKind;
use fechatter_core::events::{Event, EventType};
use serde_json::json;
use uuid::Uuid;

use crate::world::{PATIENCE, World, contents, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_session_and_a_deactivated_user_are_cut_off() {
    let mut world = World::new().await;
    let ada = world.workspace("ends").await;
    let bob = world.user(ada.workspace).await;
    let (first, second) = (world.notify(&[]).await, world.notify(&[]).await);
    let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
    let token = world.token_of(ada, one, 900);
    let mut ending = world.open_as(&first, &token, None).await;
    let mut also_ending = world.open_as(&second, &token, None).await;
    let mut going_on = world.open_as(&first, &world.token_of(ada, other, 900), None).await;
    let mut of_bob = world.open(&second, bob, None).await;
    for sse in [&mut ending, &mut also_ending, &mut going_on, &mut of_bob] {
        sse.until("caught_up").await;
    }

    let revoked = json!({"session_id": one, "user_id": ada.id});
    world
        .publisher
        .publish(EventType::SessionRevoked, ada.workspace, ada.id, revoked)
        .await;
    for sse in [&mut ending, &mut also_ending] {
        let frames = sse.rest().await;
        assert_eq!(frames.len(), 1, "{frames:?}");
        assert_eq!(
            (frames[0].event.as_str(), &frames[0].data),
            ("reauth", &json!({"reason": "session_revoked"}))
        );
    }
    // The token still looks good; who started after the revocation knows of it too.
    let third = world.notify(&[("RING__MAX_EVENTS", "1")]).await;
    for notify in [&first, &second, &third] {
        assert_eq!(world.open_as(notify, &token, None).await.status, 401);
    }

    sqlx::query("UPDATE users SET deactivated_at = now() WHERE id = $1")
        .bind(bob.id)
        .execute(&world.pool)
        .await
        .unwrap();
    let user = json!({"user": {"id": bob.id, "workspace_id": bob.workspace, "fullname": "Bob", "email": "a@b.c",
        "role": "member", "created_at": "2026-11-23T10:00:00Z"}, "deactivated": true});
    world
        .publisher
        .publish(EventType::UserUpdated, bob.workspace, bob.id, user)
        .await;
    assert_eq!(
        of_bob.rest().await.last().unwrap().data,
        json!({"reason": "deactivated"})
    );
    assert_eq!(world.open(&second, bob, None).await.status, 401);
    assert_eq!(going_on.next().await.unwrap().event, "user.updated");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_revocation_ends_all_streams_of_its_user() {
    let mut world = World::new().await;
    let ada = world.workspace("doubted").await;
    let bob = world.user(ada.workspace).await;
    let notify = world.notify(&[]).await;
    let (mut laptop, _) = world.follow(&notify, ada, None).await;
    let (mut telephone, _) = world.follow(&notify, ada, None).await;
    let (mut of_bob, _) = world.follow(&notify, bob, None).await;
    world
        .publisher
        .publish(
            EventType::SessionRevoked,
            ada.workspace,
            ada.id,
            json!({"session": "of a later version"}),
        )
        .await;
    for sse in [&mut laptop, &mut telephone] {
        let last = sse.rest().await.pop().unwrap();
        assert_eq!(
            (last.event.as_str(), last.data),
            ("reauth", json!({"reason": "session_revoked"}))
        );
    }
    assert_eq!(of_bob.next().await.unwrap().event, "gap");
    // With a token that is good, as a session that goes on gets one.
    let (_, frames) = world.follow(&notify, ada, None).await;
    assert_eq!(frames[0].event, "ready");
}

/// Readers of one byte a second.
const TRICKLING: usize = 8;
/// What their queues, buffers and the allocator may take together; without a bound it would be all that is sent, 90 MB, at least.
const GROWTH_MAX_KB: u64 = 16 * 1024;

/// A line of `/proc/PID/status` in kB.
fn memory(notify: &crate::world::Notify, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", notify.process_id()))
        .expect("a figure of a running process");
    let found = status
        .lines()
        .find_map(|text| text.strip_prefix(line))
        .expect("a figure of a running process");
    found
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .expect("a figure of a running process")
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_a_byte_a_second_take_no_memory_beyond_their_bound() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut world = World::new().await;
    let ada = world.workspace("trickle").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    // Memory of events for everybody has a bound of its own.
    let settings = [("STREAM__QUEUE_BYTES", "100000"), ("RING__MAX_EVENTS", "1")];
    let notify = world.notify(&settings).await;
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..TRICKLING {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", notify.port))
            .await
            .unwrap();
        let token = world.token(ada);
        let request = format!("GET /events HTTP/1.1\r\nhost: notify\r\nauthorization: Bearer {token}\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut beginning = vec![0; 12];
        socket.read_exact(&mut beginning).await.unwrap();
        assert_eq!(beginning, b"HTTP/1.1 200");
        readers.spawn(async move {
            let mut second = tokio::time::interval(std::time::Duration::from_secs(1));
            loop {
                second.tick().await;
                if socket.read_u8().await.is_err() {
                    return;
                }
            }
        });
    }
    let (mut quick, _) = world.follow(&notify, ada, None).await;
    let before = memory(&notify, "VmRSS:");
    let text = "x".repeat(60_000);
    for seq in 1..=1_500 {
        world.send(chat, ada, seq, &text).await;
        assert_eq!(
            quick.next().await.unwrap().data["message"]["seq"],
            seq,
            "nobody else waits"
        );
    }
    eventually("the slow clients to be closed", async || {
        let closed = format!(" {TRICKLING}");
        let metrics = world.metrics(&notify).await;
        let mut lines = metrics.lines();
        lines.any(|line| line.starts_with("notify_slow_closes_total") && line.ends_with(&closed))
    })
    .await;
    let most = memory(&notify, "VmHWM:");
    assert!(most < before + GROWTH_MAX_KB, "from {before} kB to {most} kB");
    readers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_closed_and_harms_nobody() {
    let mut world = World::new().await;
    let ada = world.workspace("slow").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world.notify(&[("STREAM__QUEUE_BYTES", "100000")]).await;
    let mut slow = world.open(&notify, ada, None).await;
    slow.until("caught_up").await;
    let (mut quick, _) = world.follow(&notify, ada, None).await;
    // Far more than the sockets and the queue hold.
    let text = "x".repeat(60_000);
    for seq in 1..=300 {
        world.send(chat, ada, seq, &text).await;
        assert_eq!(quick.next().await.unwrap().data["message"]["seq"], seq);
    }
    eventually("the slow client to be closed", async || {
        world
            .metrics(&notify)
            .await
            .lines()
            .any(|line| line.starts_with("notify_slow_closes_total") && line.ends_with(" 1"))
    })
    .await;
    // It ends where it was cut, and the client returns from there: to less than a backlog may have, or to a gap.
    let frames = slow.rest().await;
    assert!(frames.len() < 300, "the stream was cut");
    let seqs: Vec<i64> = frames
        .iter()
        .filter_map(|frame| frame.data["message"]["seq"].as_i64())
        .collect();
    assert_eq!(seqs, (1..=i64::try_from(seqs.len()).unwrap()).collect::<Vec<_>>());
    let (_, frames) = world.follow(&notify, ada, slow.cursor.as_deref()).await;
    assert_eq!(
        frames[0].data,
        json!({"reason": "too_many"}),
        "a backlog of more than 8 MiB is not sent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_removed_while_away_gets_nothing_of_the_chat() {
    let mut world = World::new().await;
    let ada = world.workspace("away").await;
    let bob = world.user(ada.workspace).await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    // One that remembers Bob, one that reads the stream back, one that starts later.
    let remembers = world.notify(&[]).await;
    let reads_back = world.notify(&[("RING__MAX_EVENTS", "1")]).await;
    let (sse, _) = world.follow(&remembers, bob, None).await;
    let cursor = sse.cursor.clone();
    drop(sse);
    world.send(chat, ada, 1, "he was a member, and is not now").await;
    world.member(chat, bob, false).await;
    world.send(chat, ada, 2, "he is not a member").await;
    let later = world.notify(&[]).await;
    for notify in [&remembers, &reads_back, &later] {
        eventually("the removal to arrive", async || {
            let (_, frames) = world.follow(notify, bob, cursor.as_deref()).await;
            let names: Vec<&str> = frames.iter().map(|frame| frame.event.as_str()).collect();
            assert!(
                !names.contains(&"message.created") || names == ["resumed", "message.created"],
                "{names:?}"
            );
            names == ["resumed", "member.removed"]
        })
        .await;
    }
    // Back again, he sees the whole of it, as the API would show him.
    world.member(chat, bob, true).await;
    for notify in [&remembers, &reads_back, &later] {
        eventually("the return to arrive", async || {
            let (_, frames) = world.follow(notify, bob, cursor.as_deref()).await;
            contents(&frames).len() == 2
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_removed_while_events_do_not_arrive_gets_nothing_of_the_chat() {
    let mut world = World::new().await;
    let ada = world.workspace("cut-off").await;
    let bob = world.user(ada.workspace).await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let other = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let notify = world.notify(&[]).await;
    let (mut sse, _) = world.follow(&notify, bob, None).await;
    let start = sse.cursor.clone();
    world.send(chat, ada, 1, "he was a member, and is not now").await;
    world.send(other, ada, 1, "he is a member").await;
    assert_eq!(sse.next().await.unwrap().event, "message.created");
    assert_eq!(sse.next().await.unwrap().event, "message.created");
    world.nats().kill();
    eventually("the interruption to be noticed", async || {
        world.health(&notify).await["checks"]["events"]["status"] == "degraded"
    })
    .await;
    let removal = world.change_member(chat, bob, false).await;
    let typing = async |chat: i64| {
        let request = world.http.post(notify.url(&format!("/api/chat/{chat}/typing")));
        let answer = request.bearer_auth(world.token(bob)).send().await.expect("an answer");
        answer.status().as_u16()
    };
    assert_eq!((typing(chat.id).await, typing(other.id).await), (404, 204));
    // He is known, and has a stream open besides.
    let (mut returned, frames) = world.follow(&notify, bob, start.as_deref()).await;
    assert_eq!(contents(&frames), ["he is a member"]);
    assert_eq!(frames[0].data, json!({"count": 1}));

    tokio::task::block_in_place(|| world.nats().restart()).unwrap();
    world
        .publisher
        .publish(EventType::MemberRemoved, chat.workspace, chat.id, removal)
        .await;
    world.send(chat, ada, 2, "he is not a member").await;
    world.send(other, ada, 2, "the end").await;
    for sse in [&mut sse, &mut returned] {
        assert_eq!(sse.next().await.unwrap().event, "member.removed");
        assert_eq!(contents(&[sse.next().await.unwrap()]), ["the end"]);
    }
    let (_, frames) = world.follow(&notify, bob, start.as_deref()).await;
    assert_eq!(contents(&frames), ["he is a member", "the end"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_cannot_be_read_are_a_gap_and_dead_letters_and_the_next_ones_flow() {
    let mut world = World::new().await;
    let ada = world.workspace("poison").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let (first, second) = (world.notify(&[]).await, world.notify(&[]).await);
    let (mut sse, _) = world.follow(&first, ada, None).await;
    let start = sse.cursor.clone();
    let lost = json!({"reason": "events_lost"});
    let poison = json!({"message": "not one"});
    world
        .publisher
        .publish(EventType::MessageCreated, chat.workspace, chat.id, poison.clone())
        .await;
    assert_eq!(sse.next().await.unwrap().data, lost);
    world.send(chat, ada, 1, "between").await;
    assert_eq!(contents(&[sse.next().await.unwrap()]), ["between"]);
    let between = sse.cursor.clone();

    let mut future: Event<serde_json::Value> = Event::new(
        EventType::MessageCreated,
        chat.workspace.into(),
        chat.id,
        time::OffsetDateTime::now_utc(),
        poison,
    );
    future.dataschema = "urn:fechatter:event:message.created:99".to_owned();
    let position = world
        .publisher
        .positions
        .entry(fechatter_core::events::shard_of(chat.id))
        .or_default();
    *position += 1;
    let position = *position;
    world
        .publisher
        .put(EventType::MessageCreated, chat.id, &future, position)
        .await;
    assert_eq!(sse.next().await.unwrap().data, lost);
    let after_gap = sse.cursor.clone();
    // Not one of ours: nobody misses anything.
    world
        .publisher
        .context
        .publish(format!("fechatter.{}.chat.1.x", chat.workspace), "no headers".into())
        .await
        .unwrap();
    world.send(chat, ada, 2, "after").await;
    assert_eq!(contents(&[sse.next().await.unwrap()]), ["after"]);

    // Who was away hears of it too, from memory or from the stream, and goes on behind it.
    let reads_back = world.notify(&[("RING__MAX_EVENTS", "1")]).await;
    for notify in [&first, &second, &reads_back] {
        for (cursor, begins) in [
            (&start, &lost),
            (&between, &lost),
            (&after_gap, &json!({"count": 1})),
            (&sse.cursor, &json!({"count": 0})),
        ] {
            eventually("the last event", async || {
                let (at, frames) = world.follow(notify, ada, cursor.as_deref()).await;
                at.cursor == sse.cursor && frames[0].data == *begins
            })
            .await;
        }
    }
    eventually("the dead letters, once for all processes", async || {
        let letters: Vec<(String, i64)> =
            sqlx::query_as("SELECT consumer, stream_sequence FROM dead_letters ORDER BY stream_sequence")
                .fetch_all(&world.pool)
                .await
                .unwrap();
        letters
            .iter()
            .map(|(consumer, sequence)| (consumer.as_str(), *sequence))
            .collect::<Vec<_>>()
            == [("notify_service", 1), ("notify_service", 3), ("notify_service", 4)]
    })
    .await;

    // An operator sees them, and a replay says that this version still cannot read them.
    let (code, out) = first.operate(&["dead-letters", "replay", "--all"]);
    assert!(code == 1 && out.contains("0 of 3"), "{out}");
    let (_, out) = first.operate(&["dead-letters", "list", "--json"]);
    let letters: serde_json::Value = serde_json::from_str(&out).expect("JSON alone");
    assert_eq!(letters["waiting"], 3, "{letters}");
    let ids: Vec<String> = letters["letters"]
        .as_array()
        .expect("letters")
        .iter()
        .map(|it| it["id"].to_string())
        .collect();
    let mut drop = vec!["dead-letters", "drop", "--reason", "poison of a test"];
    drop.extend(ids.iter().map(String::as_str));
    let (code, out) = first.operate(&drop);
    assert_eq!(code, 0, "{out}");
    let (_, out) = first.operate(&["dead-letters", "list"]);
    assert!(out.contains("0 waiting"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_while_postgresql_is_away_is_kept_when_it_is_back() {
    let mut server = dev::postgres::Server::temporary().unwrap();
    let mut world = World::on(&server).await;
    let ada = world.workspace("poison-later").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world.notify(&[]).await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    tokio::task::block_in_place(|| server.kill());
    let poison = json!({"message": "not one"});
    world
        .publisher
        .publish(EventType::MessageCreated, chat.workspace, chat.id, poison)
        .await;
    assert_eq!(sse.next().await.unwrap().data, json!({"reason": "events_lost"}));
    // The ones behind it do not wait.
    world.send(chat, ada, 1, "behind").await;
    assert_eq!(contents(&[sse.next().await.unwrap()]), ["behind"]);
    tokio::task::block_in_place(|| server.restart()).unwrap();
    eventually("the dead letter", async || {
        let kept: Result<i64, _> = sqlx::query_scalar("SELECT count(*) FROM dead_letters")
            .fetch_one(&world.pool)
            .await;
        kept.is_ok_and(|kept| kept == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_move_the_cursor_and_a_stopping_process_closes_its_streams() {
    let mut world = World::new().await;
    let ada = world.workspace("beats").await;
    let bob = world.user(ada.workspace).await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let beats = [
        ("STREAM__HEARTBEAT_MIN_SECONDS", "1"),
        ("STREAM__HEARTBEAT_MAX_SECONDS", "1"),
    ];
    let notify = world.notify(&beats).await;
    let (mut of_bob, _) = world.follow(&notify, bob, None).await;
    let before = of_bob.cursor.clone().unwrap();
    world.send(chat, ada, 1, "not for Bob").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while of_bob.cursor.as_ref() == Some(&before) {
        assert!(tokio::time::Instant::now() < deadline, "the cursor stands still");
        assert_eq!(of_bob.within(Duration::from_millis(300)).await, None);
    }
    assert!(of_bob.heartbeats > 0);
    let (_, frames) = world.follow(&notify, bob, of_bob.cursor.as_deref()).await;
    assert_eq!(frames[0].data, json!({"count": 0}));

    let ending = tokio::spawn(async move { of_bob.rest().await });
    notify.stop();
    assert_eq!(ending.await.unwrap(), []);
    assert!(notify.log().contains("stopped"), "{}", notify.log());
}
