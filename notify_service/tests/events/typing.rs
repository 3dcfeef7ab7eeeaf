//! Typing reaches the other members, wherever they are connected.

use std::time::Duration;

use fechatter_core::chat::ChatKind;
use serde_json::json;

use crate::world::{Notify, User, World};

async fn tell(world: &World, notify: &Notify, user: User, chat: i64) -> u16 {
    let path = format!("/api/chat/{chat}/typing");
    let request = world.http.post(notify.url(&path)).bearer_auth(world.token(user));
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    let body = serde_json::from_str(&answer.text().await.expect("a body")).unwrap_or_default();
    dev::documented::assert_documented("POST", &path, status, &body);
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn typing_reaches_the_other_members_on_every_process() {
    let world = World::new().await;
    let ada = world.workspace("typing").await;
    let (bob, eve) = (world.user(ada.workspace).await, world.user(ada.workspace).await);
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let (first, second) = (world.notify(&[]).await, world.notify(&[]).await);
    let (mut of_ada, _) = world.follow(&first, ada, None).await;
    let (mut of_bob, _) = world.follow(&second, bob, None).await;
    let (of_eve, _) = world.follow(&second, eve, None).await;

    assert_eq!(tell(&world, &first, ada, chat.id).await, 204);
    let frame = of_bob.next().await.unwrap();
    assert_eq!(frame.event, "typing");
    assert_eq!(frame.data, json!({"chat_id": chat.id, "user_id": ada.id}));
    assert_eq!(frame.id, None);
    // Told through a process that does not know the caller: the database answers.
    assert_eq!(tell(&world, &first, bob, chat.id).await, 204);
    assert_eq!(of_ada.next().await.unwrap().data["user_id"], bob.id);

    for (user, chat) in [(eve, chat.id), (ada, 999_999)] {
        assert_eq!(tell(&world, &first, user, chat).await, 404);
        assert_eq!(tell(&world, &second, user, chat).await, 404);
    }
    for mut sse in [of_ada, of_bob, of_eve] {
        assert_eq!(sse.within(Duration::from_millis(200)).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_database_who_is_known_types_and_others_are_told_to_come_again() {
    let world = World::new().await;
    let ada = world.workspace("typing-away").await;
    let bob = world.user(ada.workspace).await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let notify = world.notify(&[]).await;
    let (_of_ada, _) = world.follow(&notify, ada, None).await;
    world.close_database().await;
    assert_eq!(tell(&world, &notify, ada, chat.id).await, 204);
    let answer = world
        .http
        .post(notify.url(&format!("/api/chat/{}/typing", chat.id)))
        .bearer_auth(world.token(bob))
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "2");
    let problem: serde_json::Value = answer.json().await.expect("a problem");
    assert_eq!(problem["code"], "unavailable");
}
