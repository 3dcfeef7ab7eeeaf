//! Who is here: told to those who share a chat, on every process, and to nobody else.

use std::time::Duration;

use dev::documented::assert_documented;
use fechatter_core::chat::ChatKind;
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::world::{Notify, User, World, eventually};

/// So that nobody waits for the defaults.
const QUICK: [(&str, &str); 2] = [("PRESENCE__LINGER_SECONDS", "1"), ("PRESENCE__PATIENCE_SECONDS", "3")];

async fn ask(world: &World, notify: &Notify, user: User, chat: i64, query: &str) -> (StatusCode, Value) {
    let url = notify.url(&format!("/api/chat/{chat}/presence{query}"));
    let request = world.http.get(url).bearer_auth(world.token(user));
    let answer = request.send().await.expect("an answer");
    let (status, body) = (answer.status(), answer.json().await.expect("JSON"));
    assert_documented("GET", &format!("/api/chat/{chat}/presence"), status.as_u16(), &body);
    (status, body)
}

/// Users and their statuses, as a process answers.
async fn statuses(world: &World, notify: &Notify, user: User, chat: i64, query: &str) -> Vec<(i64, String)> {
    let (status, answer) = ask(world, notify, user, chat, query).await;
    assert_eq!(status, 200, "{answer}");
    let items = answer["items"].as_array().expect("items").iter();
    items
        .map(|item| {
            let id = item["user_id"].as_i64().expect("an id");
            (id, item["status"].as_str().expect("a status").to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_share_a_chat_are_told_on_every_process_and_nobody_else() {
    let world = World::new().await;
    let ada = world.workspace("presence").await;
    let (bob, eve) = (world.user(ada.workspace).await, world.user(ada.workspace).await);
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let (first, second) = (world.notify(&QUICK).await, world.notify(&QUICK).await);
    let (mut of_bob, _) = world.follow(&second, bob, None).await;
    let (mut of_eve, _) = world.follow(&second, eve, None).await;

    let (of_ada, _) = world.follow(&first, ada, None).await;
    assert_eq!(of_bob.presence().await, (ada.id, "online".to_owned()));
    let both = vec![(ada.id, "online".to_owned()), (bob.id, "online".to_owned())];
    for process in [&first, &second] {
        eventually("both to be known", async || {
            statuses(&world, process, ada, chat.id, "").await == both
        })
        .await;
    }
    // Strangers are left out, whoever asks for them; who is not in the chat does not ask.
    let named = format!("?user_ids={},{}", ada.id, eve.id);
    assert_eq!(statuses(&world, &first, bob, chat.id, &named).await, both[..1]);
    assert_eq!(ask(&world, &first, eve, chat.id, "").await.0, 404);
    for bad in ["?user_ids=x", "?user_ids=", "?user_ids=-1", "?users=1"] {
        assert_eq!(ask(&world, &first, ada, chat.id, bad).await.0, 422, "{bad}");
    }

    drop(of_ada);
    assert_eq!(of_bob.presence().await, (ada.id, "offline".to_owned()));
    let (_, answer) = ask(&world, &first, bob, chat.id, &named).await;
    assert_eq!(answer["items"][0]["status"], "offline");
    assert!(answer["items"][0]["last_seen_at"].is_string(), "{answer}");
    assert_eq!(of_eve.within(Duration::from_millis(200)).await, None);
    assert!(of_eve.presences().is_empty(), "{:?}", of_eve.presences());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_away_when_all_devices_say_so() {
    let world = World::new().await;
    let ada = world.workspace("away").await;
    let bob = world.user(ada.workspace).await;
    world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let (first, second) = (world.notify(&QUICK).await, world.notify(&QUICK).await);
    let (mut of_bob, _) = world.follow(&first, bob, None).await;
    let [phone, desk] = [(); 2].map(|()| world.token_of(ada, Uuid::now_v7(), 900));
    let mut streams = Vec::new();
    for (process, token) in [(&first, &phone), (&second, &desk)] {
        let mut stream = world.open_as(process, token, None).await;
        stream.until("caught_up").await;
        streams.push(stream);
    }
    assert_eq!(of_bob.presence().await, (ada.id, "online".to_owned()));

    // Said to a process that has none of the streams, or only the other.
    let say = async |token: &str, status: &str| {
        let request = world.http.put(first.url("/api/presence")).bearer_auth(token);
        let answer = request
            .json(&json!({"status": status}))
            .send()
            .await
            .expect("an answer");
        answer.status().as_u16()
    };
    assert_eq!(say(&phone, "away").await, 204);
    assert_eq!(say(&desk, "away").await, 204);
    assert_eq!(of_bob.presence().await, (ada.id, "away".to_owned()));
    assert_eq!(say(&desk, "online").await, 204);
    assert_eq!(of_bob.presence().await, (ada.id, "online".to_owned()));
    assert_eq!(say(&desk, "invisible").await, 422);
    // The device that is away is all that is left.
    streams.pop();
    assert_eq!(of_bob.presence().await, (ada.id, "away".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_is_forgotten_and_a_quick_return_is_not_told() {
    let world = World::new().await;
    let ada = world.workspace("presence-killed").await;
    let bob = world.user(ada.workspace).await;
    world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    let (first, second) = (world.notify(&QUICK).await, world.notify(&QUICK).await);
    let (mut of_bob, _) = world.follow(&second, bob, None).await;
    let (of_ada, _) = world.follow(&first, ada, None).await;
    assert_eq!(of_bob.presence().await, (ada.id, "online".to_owned()));
    // Ada returns before a second is over: she was never gone.
    drop(of_ada);
    let (of_ada, _) = world.follow(&first, ada, None).await;
    assert_eq!(of_bob.within(Duration::from_millis(2_500)).await, None);
    assert!(of_bob.presences().is_empty(), "{:?}", of_bob.presences());
    first.kill();
    drop(of_ada);
    assert_eq!(of_bob.presence().await, (ada.id, "offline".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_starts_later_knows_at_once_who_is_here_on_the_others() {
    let world = World::new().await;
    let ada = world.workspace("presence-later").await;
    let bob = world.user(ada.workspace).await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob]).await;
    // Nothing is repeated within this test: a minute's patience.
    let first = world.notify(&[]).await;
    let (_of_ada, _) = world.follow(&first, ada, None).await;
    eventually("the first to see Ada", async || {
        statuses(&world, &first, ada, chat.id, "").await == [(ada.id, "online".to_owned())]
    })
    .await;
    let second = world.notify(&[]).await;
    let knows_her = async || {
        let known = statuses(&world, &second, bob, chat.id, &format!("?user_ids={}", ada.id)).await;
        known == [(ada.id, "online".to_owned())]
    };
    eventually("the second to know of her", &knows_her).await;
    // Killed, it begins with nothing; whoever returns to it before it knows is told.
    second.kill();
    second.restart();
    eventually("the second to serve Bob", async || {
        world
            .try_open(&second, bob, None)
            .await
            .is_some_and(|sse| sse.status == 200)
    })
    .await;
    eventually("it to know of her again", &knows_her).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nats_is_away_nobody_is_declared_gone_and_then_everybody_is_as_they_are() {
    let world = World::new().await;
    let ada = world.workspace("presence-outage").await;
    let (bob, cy) = (world.user(ada.workspace).await, world.user(ada.workspace).await);
    let chat = world.chat(ChatKind::PrivateChannel, &[ada, bob, cy]).await;
    let (first, second) = (world.notify(&QUICK).await, world.notify(&QUICK).await);
    let (mut of_bob, _) = world.follow(&second, bob, None).await;
    let (of_ada, _) = world.follow(&first, ada, None).await;
    assert_eq!(of_bob.presence().await, (ada.id, "online".to_owned()));
    let (_of_cy, _) = world.follow(&first, cy, None).await;
    assert_eq!(of_bob.presence().await, (cy.id, "online".to_owned()));
    world.nats().kill();
    eventually("the outage to be noticed", async || {
        world.health(&second).await["checks"]["events"]["status"] == "degraded"
    })
    .await;
    // Longer than the patience, and Ada leaves meanwhile.
    drop(of_ada);
    assert_eq!(of_bob.within(Duration::from_secs(5)).await, None);
    assert!(of_bob.presences().is_empty(), "{:?}", of_bob.presences());
    let all = format!("?user_ids={},{}", ada.id, cy.id);
    let (online, offline) = ("online".to_owned(), "offline".to_owned());
    assert_eq!(
        statuses(&world, &second, bob, chat.id, &all).await,
        [(ada.id, online.clone()), (cy.id, online.clone())]
    );
    let away = world
        .http
        .put(second.url("/api/presence"))
        .bearer_auth(world.token(bob));
    let away = away.json(&json!({"status": "away"})).send().await.expect("an answer");
    let (status, problem): (u16, Value) = (away.status().as_u16(), away.json().await.expect("JSON"));
    assert_documented("PUT", "/api/presence", status, &problem);
    assert_eq!(status, 503, "{problem}");

    tokio::task::block_in_place(|| world.nats().restart()).unwrap();
    assert_eq!(of_bob.presence().await, (ada.id, offline.clone()));
    // For longer than the patience.
    assert_eq!(of_bob.within(Duration::from_secs(4)).await, None);
    assert!(of_bob.presences().is_empty(), "{:?}", of_bob.presences());
    for process in [&first, &second] {
        assert_eq!(
            statuses(&world, process, bob, chat.id, &all).await,
            [(ada.id, offline.clone()), (cy.id, online.clone())]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shares_a_chat_from_now_on_is_told_and_who_shares_none_any_more_is_not() {
    let mut world = World::new().await;
    let ada = world.workspace("presence-moves").await;
    let (bob, cy) = (world.user(ada.workspace).await, world.user(ada.workspace).await);
    let old = world.chat(ChatKind::PrivateChannel, &[bob, ada]).await;
    let new = world.chat(ChatKind::PrivateChannel, &[cy]).await;
    let (first, second) = (world.notify(&QUICK).await, world.notify(&QUICK).await);
    let (mut of_bob, _) = world.follow(&second, bob, None).await;
    let (mut of_cy, _) = world.follow(&second, cy, None).await;
    let (of_ada, _) = world.follow(&first, ada, None).await;
    assert_eq!(of_bob.presence().await, (ada.id, "online".to_owned()));
    world.member(new, ada, true).await;
    assert_eq!(of_cy.next().await.unwrap().event, "member.added");
    assert_eq!(of_cy.presence().await, (ada.id, "online".to_owned()));
    world.member(old, ada, false).await;
    assert_eq!(of_bob.next().await.unwrap().event, "member.removed");
    drop(of_ada);
    assert_eq!(of_cy.presence().await, (ada.id, "offline".to_owned()));
    assert_eq!(of_bob.within(Duration::from_millis(500)).await, None);
    assert!(of_bob.presences().is_empty(), "{:?}", of_bob.presences());
}
