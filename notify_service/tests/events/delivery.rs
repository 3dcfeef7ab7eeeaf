//! Control events, live delivery, replay, and who gets what.

use std::time::Duration;

use fechatter_core::chat::ChatKind;
use fechatter_core::events::EventType;
use serde_json::json;
use uuid::Uuid;

use crate::world::{Frame, World};

fn contents(frames: &[Frame]) -> Vec<&str> {
    frames
        .iter()
        .map(|frame| frame.data["message"]["content"].as_str().expect("a message"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_with_ready_and_resumes_by_its_cursor() {
    let mut world = World::new().await;
    let ada = world.workspace("begins").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world.notify(&[]).await;

    let mut sse = world.open(&notify, ada, None).await;
    assert_eq!(sse.status, 200);
    assert_eq!(sse.headers["content-type"], "text/event-stream");
    assert_eq!(sse.headers["cache-control"], "no-cache, no-transform");
    assert_eq!(sse.headers["x-accel-buffering"], "no");
    let first = sse.next().await.unwrap();
    assert_eq!((first.event.as_str(), &first.data), ("ready", &json!({})));
    assert!(sse.retry.is_some());
    assert_eq!(sse.next().await.unwrap().event, "caught_up");

    world.send(chat, ada, 1, "one").await;
    let live = sse.next().await.unwrap();
    assert_eq!(live.event, "message.created");
    assert_eq!(live.data["message"]["content"], "one");
    assert_eq!(live.data["version"], 1);
    let cursor = sse.cursor.clone().unwrap();
    drop(sse);

    for seq in 2..5 {
        world.send(chat, ada, seq, &format!("message {seq}")).await;
    }
    // The header wins over the parameter.
    let request = world
        .http
        .get(notify.url("/events?last_event_id=nonsense"))
        .bearer_auth(world.token(ada))
        .header("last-event-id", &cursor);
    let mut sse = crate::world::Sse::of(request).await;
    let mut frames = sse.until("caught_up").await;
    // What is not in memory yet when the stream begins arrives right after.
    while frames.len() < 4 {
        frames.push(sse.next().await.unwrap());
    }
    assert_eq!(frames[0].event, "resumed");
    assert_eq!(contents(&frames[1..]), ["message 2", "message 3", "message 4"]);

    let request = world
        .http
        .get(notify.url(&format!("/events?last_event_id={cursor}")))
        .bearer_auth(world.token(ada));
    let mut sse = crate::world::Sse::of(request).await;
    let frames = sse.until("caught_up").await;
    assert_eq!(frames[0].data, json!({"count": 3}));
    assert_eq!(frames.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_that_lead_nowhere_are_a_gap() {
    let mut world = World::new().await;
    let ada = world.workspace("gaps").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let notify = world
        .notify(&[("RING__MAX_EVENTS", "3"), ("REPLAY__MAX_EVENTS", "2")])
        .await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    let oldest = sse.cursor.clone().unwrap();
    let mut cursors = Vec::new();
    for seq in 1..=5 {
        world.send(chat, ada, seq, "x").await;
        sse.next().await.unwrap();
        cursors.push(sse.cursor.clone().unwrap());
    }
    let other_history = format!("{}.3", Uuid::now_v7().simple());
    let far = oldest.replace(".0", ".99999999999");
    for (cursor, reason) in [
        ("nonsense", "unknown_cursor"),
        (far.as_str(), "unknown_cursor"),
        (other_history.as_str(), "history_changed"),
        (cursors[0].as_str(), "too_many"),
        (cursors[1].as_str(), "too_many"),
    ] {
        let (sse, frames) = world.follow(&notify, ada, Some(cursor)).await;
        assert_eq!(frames.len(), 1, "{frames:?}");
        assert_eq!(
            (frames[0].event.as_str(), &frames[0].data),
            ("gap", &json!({"reason": reason}))
        );
        // A client goes on from there.
        let (_, frames) = world.follow(&notify, ada, sse.cursor.as_deref()).await;
        assert_eq!(frames[0].data, json!({"count": 0}));
    }
    let (_, frames) = world.follow(&notify, ada, Some(&cursors[2])).await;
    assert_eq!(frames[0].data, json!({"count": 2}));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_get_a_message_and_a_removed_one_none_after_the_removal() {
    let mut world = World::new().await;
    let ada = world.workspace("members").await;
    let (bob, eve) = (world.user(ada.workspace).await, world.user(ada.workspace).await);
    let stranger = world.workspace("elsewhere").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let notify = world.notify(&[]).await;
    let (mut of_ada, _) = world.follow(&notify, ada, None).await;
    let (mut of_bob, _) = world.follow(&notify, bob, None).await;
    let (mut of_eve, _) = world.follow(&notify, eve, None).await;
    let (mut of_stranger, _) = world.follow(&notify, stranger, None).await;
    let start = of_bob.cursor.clone();

    world.send(chat, ada, 1, "before").await;
    world.member(chat, eve, true).await;
    world.send(chat, ada, 2, "with eve").await;
    // What has not reached him at his removal no longer does.
    let mut frames_of_bob = Vec::new();
    while frames_of_bob.len() < 3 {
        frames_of_bob.push(of_bob.next().await.unwrap());
    }
    world.member(chat, bob, false).await;
    world.send(chat, ada, 3, "without bob").await;
    world.chat_event(EventType::ChatDeleted, chat, &[]).await;
    world.send(chat, ada, 4, "after the end").await;
    // Everybody in the workspace gets this one, so that what does not come is known not to come.
    let user = json!({"user": {"id": ada.id, "workspace_id": ada.workspace, "fullname": "Ada", "email": "a@b.c",
        "role": "owner", "created_at": "2026-11-23T10:00:00Z"}, "deactivated": false});
    world
        .publisher
        .publish(EventType::UserUpdated, ada.workspace, ada.id, user)
        .await;

    let names = |frames: &[Frame]| frames.iter().map(|f| f.event.clone()).collect::<Vec<_>>();
    assert_eq!(
        names(&of_ada.until("user.updated").await),
        [
            "message.created",
            "member.added",
            "message.created",
            "member.removed",
            "message.created",
            "chat.deleted"
        ]
    );
    frames_of_bob.extend(of_bob.until("user.updated").await);
    assert_eq!(
        names(&frames_of_bob),
        ["message.created", "member.added", "message.created", "member.removed"]
    );
    let frames = of_eve.until("user.updated").await;
    assert_eq!(
        names(&frames),
        [
            "member.added",
            "message.created",
            "member.removed",
            "message.created",
            "chat.deleted"
        ]
    );
    assert_eq!(of_stranger.within(Duration::from_millis(200)).await, None);

    // What is replayed is checked against the membership of now: the removal remains, the messages do not.
    let (_, frames) = world.follow(&notify, bob, start.as_deref()).await;
    assert_eq!(names(&frames), ["resumed", "member.removed", "user.updated"]);
    let (_, frames) = world.follow(&notify, stranger, start.as_deref()).await;
    assert_eq!(frames[0].data, json!({"count": 0}));
}

async fn of_group(sse: &mut crate::world::Sse) -> Vec<(String, i64)> {
    let mut seen = Vec::new();
    // The two chats are in different shards or not; each is in order.
    loop {
        let Some(frame) = sse.within(Duration::from_millis(500)).await else {
            return seen;
        };
        let chat = ["chat", "message"].iter().find_map(|of| {
            let part = &frame.data[*of];
            part["chat_id"].as_i64().or(part["id"].as_i64())
        });
        seen.push((frame.event, chat.or(frame.data["chat_id"].as_i64()).expect("a chat")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_chat_reaches_its_members_and_reading_reaches_whom_it_concerns() {
    let mut world = World::new().await;
    let ada = world.workspace("created").await;
    let (bob, eve) = (world.user(ada.workspace).await, world.user(ada.workspace).await);
    let notify = world.notify(&[]).await;
    let (mut of_ada, _) = world.follow(&notify, ada, None).await;
    let (mut of_bob, _) = world.follow(&notify, bob, None).await;
    let (mut of_eve, _) = world.follow(&notify, eve, None).await;

    let group = world.chat(ChatKind::Group, &[ada, bob]).await;
    world.chat_event(EventType::ChatCreated, group, &[ada, bob]).await;
    let channel = world.chat(ChatKind::PrivateChannel, &[ada, bob, eve]).await;
    world
        .chat_event(EventType::ChatCreated, channel, &[ada, bob, eve])
        .await;
    for chat in [group, channel] {
        let read = json!({"chat_id": chat.id, "kind": chat.kind, "user_id": bob.id, "last_read_seq": 0});
        world
            .publisher
            .publish(EventType::ReadUpdated, chat.workspace, chat.id, read)
            .await;
        world.send(chat, ada, 1, "end").await;
    }
    let expected = |all: &[(&str, i64)]| all.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect::<Vec<_>>();
    let both = [
        ("chat.created", group.id),
        ("chat.created", channel.id),
        ("read.updated", group.id),
        ("message.created", group.id),
    ];
    assert_eq!(
        of_group(&mut of_ada).await,
        expected(&[&both[..], &[("message.created", channel.id)]].concat())
    );
    assert_eq!(
        of_group(&mut of_bob).await,
        expected(
            &[
                &both[..],
                &[("read.updated", channel.id), ("message.created", channel.id)]
            ]
            .concat()
        )
    );
    assert_eq!(
        of_group(&mut of_eve).await,
        expected(&[("chat.created", channel.id), ("message.created", channel.id)])
    );
}
