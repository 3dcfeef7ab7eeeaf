//! Ended sessions, deactivated people, tokens at their end, and what changed while nobody told.

use std::time::Duration;

use fechatter_core::chat::ChatKind;
use fechatter_core::events::EventType;
use serde_json::json;
use uuid::Uuid;

use crate::world::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_session_ends_its_streams_and_no_others() {
    let mut world = World::new().await;
    let ada = world.workspace("revoked").await;
    let notify = world.notify(&[]).await;
    let session = Uuid::now_v7();
    let token = world.token_of(ada, session, 900);
    let mut ended = world.open_as(&notify, &token, None).await;
    ended.until("caught_up").await;
    let (mut other, _) = world.follow(&notify, ada, None).await;
    let data = json!({"session_id": session, "user_id": ada.id});
    world
        .publisher
        .publish(EventType::SessionRevoked, ada.workspace, ada.id, data)
        .await;
    let frames = ended.rest().await;
    assert_eq!(frames.len(), 1, "{frames:?}");
    assert_eq!(
        (frames[0].event.as_str(), &frames[0].data),
        ("reauth", &json!({"reason": "session_revoked"}))
    );
    assert_eq!(other.within(Duration::from_millis(200)).await, None);
    assert_eq!(world.open_as(&notify, &token, None).await.status, 401);
    assert_eq!(world.open(&notify, ada, None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deactivated_user_is_shut_out() {
    let mut world = World::new().await;
    let ada = world.workspace("deactivated").await;
    let bob = world.user(ada.workspace).await;
    let notify = world.notify(&[]).await;
    let (mut of_ada, _) = world.follow(&notify, ada, None).await;
    let (mut of_bob, _) = world.follow(&notify, bob, None).await;
    sqlx::query("UPDATE users SET deactivated_at = now() WHERE id = $1")
        .bind(bob.id)
        .execute(&world.pool)
        .await
        .unwrap();
    let user = json!({"user": {"id": bob.id, "workspace_id": bob.workspace, "fullname": "Bob", "email": "b@b.c",
        "role": "member", "created_at": "2026-11-23T10:00:00Z"}, "deactivated": true});
    world
        .publisher
        .publish(EventType::UserUpdated, bob.workspace, bob.id, user)
        .await;
    assert_eq!(of_ada.next().await.unwrap().event, "user.updated");
    assert_eq!(of_bob.rest().await.last().unwrap().event, "reauth");
    assert_eq!(world.open(&notify, bob, None).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_rotated_without_a_word_and_end_before_their_token() {
    let world = World::new().await;
    let ada = world.workspace("rotated").await;
    let notify = world
        .notify(&[("STREAMS__ROTATION_SECONDS", "2"), ("STREAMS__REAUTH_SECONDS", "5")])
        .await;
    let (mut sse, _) = world.follow(&notify, ada, None).await;
    assert_eq!(sse.rest().await, []);
    let mut sse = world
        .open_as(&notify, &world.token_of(ada, Uuid::now_v7(), 6), None)
        .await;
    let frames = sse.rest().await;
    assert_eq!(frames.last().unwrap().data, json!({"reason": "token_expires"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_addition_does_not_bring_back_who_has_left() {
    let mut world = World::new().await;
    let ada = world.workspace("old-news").await;
    let bob = world.user(ada.workspace).await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    // Bob was added and removed; of both events the stream knows nothing yet when he connects.
    let added = world.change_member(chat, bob, true).await;
    let removed = world.change_member(chat, bob, false).await;
    let notify = world.notify(&[]).await;
    let (mut of_bob, _) = world.follow(&notify, bob, None).await;
    let (mut of_ada, _) = world.follow(&notify, ada, None).await;
    let publisher = &mut world.publisher;
    publisher
        .publish(EventType::MemberAdded, chat.workspace, chat.id, added)
        .await;
    publisher.message(chat, ada, 1, "not for bob").await;
    publisher
        .publish(EventType::MemberRemoved, chat.workspace, chat.id, removed)
        .await;
    let names: Vec<String> = [of_ada.next().await, of_ada.next().await, of_ada.next().await]
        .into_iter()
        .map(|frame| frame.unwrap().event)
        .collect();
    assert_eq!(names, ["member.added", "message.created", "member.removed"]);
    assert_eq!(of_bob.next().await.unwrap().event, "member.removed");
    assert_eq!(of_bob.within(Duration::from_millis(200)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_removal_does_not_shut_out_who_has_returned() {
    let mut world = World::new().await;
    let ada = world.workspace("returned").await;
    let bob = world.user(ada.workspace).await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let removed = world.change_member(chat, bob, false).await;
    let added = world.change_member(chat, bob, true).await;
    let notify = world.notify(&[]).await;
    let (mut of_bob, _) = world.follow(&notify, bob, None).await;
    let publisher = &mut world.publisher;
    publisher
        .publish(EventType::MemberRemoved, chat.workspace, chat.id, removed)
        .await;
    publisher.message(chat, ada, 1, "for bob").await;
    publisher
        .publish(EventType::MemberAdded, chat.workspace, chat.id, added)
        .await;
    for expected in ["member.removed", "message.created", "member.added"] {
        assert_eq!(of_bob.next().await.unwrap().event, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_nats_or_keys_is_not_ready_and_says_why() {
    let mut world = World::new().await;
    world.nats.kill();
    let notify = world.launch(&[]);
    let ready = format!("http://127.0.0.1:{}/ready", notify.admin_port);
    eventually("the listener", async || {
        let answer = world.http.get(&ready).send().await;
        match answer {
            Ok(answer) => answer.text().await.is_ok_and(|text| text.contains("not caught up")),
            Err(_) => false,
        }
    })
    .await;
    let ada = world.workspace("unready").await;
    assert_eq!(world.open(&notify, ada, None).await.status, 503);
    world.nats.restart().expect("NATS");
    world.ready(&notify).await;
    assert_eq!(world.open(&notify, ada, None).await.status, 200);
}
