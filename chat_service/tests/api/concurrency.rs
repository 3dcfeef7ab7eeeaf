//! Order and uniqueness when many do the same thing at once.

use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::jam::statements;
use crate::support::{App, User};

#[tokio::test(flavor = "multi_thread")]
async fn fifty_senders_in_one_chat_leave_no_gap_and_no_repeat() {
    let app = App::start().await;
    let owner = app.owner().await;
    let senders = app.members(&owner, 50).await;
    let chat = owner.chat("private_channel", &senders.iter().collect::<Vec<_>>()).await;
    let sends = senders.into_iter().enumerate().map(|(sender, user)| {
        tokio::spawn(async move {
            for number in 0..10 {
                user.say(chat, &format!("{sender}-{number}")).await;
            }
        })
    });
    for task in join_all(sends).await {
        task.unwrap();
    }
    let seqs: Vec<i64> = sqlx::query_scalar("SELECT seq FROM messages WHERE chat_id = $1 ORDER BY seq")
        .bind(chat)
        .fetch_all(&app.owner)
        .await
        .unwrap();
    assert_eq!(seqs, (1..=500).collect::<Vec<i64>>());
    let positions: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT position, (data #>> '{message,seq}')::bigint FROM outbox
         WHERE event_type = 'message.created' AND scope_id = $1 ORDER BY position",
    )
    .bind(chat)
    .fetch_all(&app.owner)
    .await
    .unwrap();
    assert!(
        positions.iter().map(|(_, seq)| *seq).eq(1..=500),
        "the outbox has the order of the chat"
    );
    assert!(
        positions.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0),
        "and no hole"
    );
    let times: Vec<time::OffsetDateTime> =
        sqlx::query_scalar("SELECT created_at FROM messages WHERE chat_id = $1 ORDER BY seq")
            .bind(chat)
            .fetch_all(&app.owner)
            .await
            .unwrap();
    assert!(times.is_sorted(), "time never runs against seq");
    let sizes = statements(&app, &[chat]).await;
    assert!(
        sizes.iter().any(|size| *size > 1),
        "some were stored together: {sizes:?}"
    );
}

/// How many were answered so.
fn count(answers: &[(StatusCode, Value)], wanted: StatusCode) -> usize {
    answers.iter().filter(|(status, _)| *status == wanted).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_from_twenty_tasks_makes_one_message() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("private_channel", &[]).await;
    let path = format!("/api/chat/{chat}/messages");
    let body = json!({"content": "only once", "idempotency_key": "the-key"});
    let answers = join_all((0..20).map(|_| owner.post(&path, body.clone()))).await;
    assert_eq!(count(&answers, StatusCode::CREATED), 1, "{answers:?}");
    assert_eq!(count(&answers, StatusCode::OK), 19);
    assert!(answers.iter().all(|(_, message)| message["id"] == answers[0].1["id"]));
    assert_eq!(owner.say(chat, "next").await["seq"], 2, "refused retries take no seq");
    // The same among messages that are stored together: other keys beside it, and each from several tasks.
    let bodies = (0..40)
        .map(|number| json!({"content": format!("{}", number % 8), "idempotency_key": format!("{}", number % 8)}));
    let answers = join_all(bodies.map(|body| owner.post(&path, body))).await;
    assert_eq!(count(&answers, StatusCode::CREATED), 8, "{answers:?}");
    assert_eq!(count(&answers, StatusCode::OK), 32);
    assert_eq!(owner.say(chat, "last").await["seq"], 11);
    let sizes = statements(&app, &[chat]).await;
    assert!(
        sizes.iter().any(|size| *size > 1),
        "some were stored together: {sizes:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_removed_while_sending_has_no_message_after_the_removal() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let chat = owner.chat("private_channel", &[&bob]).await;
    let path = format!("/api/chat/{chat}/messages");
    for round in 0..5 {
        let sends = (0..8).map(|_| bob.post(&path, json!({"content": format!("round {round}")})));
        let removal = format!("/api/chat/{chat}/members?member_ids={}", bob.id);
        let (answers, removed) = tokio::join!(join_all(sends), owner.delete(&removal));
        assert_eq!(removed.0, StatusCode::NO_CONTENT, "{}", removed.1);
        for (status, body) in answers {
            assert!(matches!(status.as_u16(), 201 | 404), "{status} {body}");
        }
        let events = app.events(chat).await;
        let last_removal = events.iter().rposition(|(kind, _)| kind == "member.removed").unwrap();
        assert!(
            events[last_removal..]
                .iter()
                .all(|(_, data)| data["message"]["sender_id"] != bob.id),
            "nothing of the removed after the removal"
        );
        let (status, _) = owner
            .post(&format!("/api/chat/{chat}/members"), json!({"member_ids": [bob.id]}))
            .await;
        assert_eq!(status, StatusCode::CREATED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_members_who_leave_at_once_none_is_counted_twice() {
    let app = App::start().await;
    let owner = app.owner().await;
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(app.member(&owner).await);
    }
    let group = owner.chat("private_channel", &others.iter().collect::<Vec<_>>()).await;
    let path = format!("/api/chat/{group}/leave");
    let answers = join_all(others.iter().map(|user| user.post(&path, json!({})))).await;
    assert!(
        answers.iter().all(|(status, _)| *status == StatusCode::NO_CONTENT),
        "{answers:?}"
    );
    assert_eq!(owner.get(&format!("/api/chat/{group}")).await.1["member_count"], 1);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM chat_members WHERE chat_id = $1")
        .bind(group)
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert_eq!(rows, 1, "the count and the rows agree");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_who_part_in_circles_do_not_block_each_other() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (bob, cy) = (app.member(&owner).await, app.member(&owner).await);
    for _ in 0..10 {
        // The owner removes who removes the owner.
        let chat = owner.chat("private_channel", &[&bob, &cy]).await;
        let remove = |user: &User| format!("/api/chat/{chat}/members?member_ids={}", user.id);
        let (of_bob, of_owner) = (remove(&bob), remove(&owner));
        let (removed, refused) = tokio::join!(owner.delete(&of_bob), bob.delete(&of_owner));
        assert_eq!(removed.0, StatusCode::NO_CONTENT, "{removed:?}");
        assert!(
            matches!(refused.0, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND),
            "{refused:?}"
        );
        // The owner leaves with the heir.
        let path = format!("/api/chat/{}/leave", owner.chat("private_channel", &[&bob, &cy]).await);
        let answers = join_all([&owner, &bob].map(|user| user.post(&path, json!({})))).await;
        assert_eq!(answers[1].0, StatusCode::NO_CONTENT, "{answers:?}");
        assert!(
            matches!(answers[0].0, StatusCode::NO_CONTENT | StatusCode::CONFLICT),
            "{answers:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_joins_leaves_and_sends_at_once_disturbs_nobody() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (restless, calm) = (app.member(&owner).await, app.member(&owner).await);
    let chat = owner.chat("public_channel", &[&calm]).await;
    let path = |what: &str| format!("/api/chat/{chat}/{what}");
    let storm = (0..8).map(|number| {
        let (restless, paths) = (restless.clone(), [path("join"), path("leave"), path("messages")]);
        tokio::spawn(async move {
            for round in 0..20 {
                let path = &paths[(number + round) % 3];
                let answer = restless
                    .post(
                        path,
                        if path.ends_with("messages") {
                            json!({"content": "x"})
                        } else {
                            json!({})
                        },
                    )
                    .await;
                assert_ne!(answer.0, StatusCode::SERVICE_UNAVAILABLE, "{path}: {answer:?}");
                assert!(!answer.0.is_server_error(), "{path}: {answer:?}");
            }
        })
    });
    let storm: Vec<_> = storm.collect();
    for number in 0..40 {
        calm.say(chat, &format!("calm {number}")).await;
    }
    for task in join_all(storm).await {
        task.unwrap();
    }
    let deadlocks: i64 =
        sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            .fetch_one(&app.owner)
            .await
            .unwrap();
    assert_eq!(deadlocks, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_hands_over_while_people_part_leaves_the_chat_to_a_member() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (bob, cy) = (app.member(&owner).await, app.member(&owner).await);
    for round in 0..12 {
        let chat = owner.chat("private_channel", &[&bob, &cy]).await;
        let heir = format!("/api/chat/{chat}/members/{}", bob.id);
        let hand_over = owner.patch(&heir, json!({"role": "owner"}));
        let leave = format!("/api/chat/{chat}/leave");
        let remove = format!("/api/chat/{chat}/members?member_ids={},{}", owner.id, bob.id);
        let (handed, parted) = match round % 3 {
            0 => tokio::join!(hand_over, owner.post(&leave, json!({}))),
            1 => tokio::join!(hand_over, bob.post(&leave, json!({}))),
            _ => tokio::join!(hand_over, owner.delete(&remove)),
        };
        for answer in [&handed, &parted] {
            assert!(!answer.0.is_server_error(), "round {round}: {handed:?} {parted:?}");
        }
        let (_, view) = cy.get(&format!("/api/chat/{chat}")).await;
        let (_, members) = cy.get(&format!("/api/chat/{chat}/members")).await;
        let owners = members["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|member| member["role"] == "owner");
        let owners: Vec<_> = owners.map(|member| member["user_id"].clone()).collect();
        assert_eq!(
            owners,
            [view["owner_id"].clone()],
            "round {round}: {handed:?} {parted:?}"
        );
        assert_eq!(view["member_count"], members["items"].as_array().unwrap().len());
    }
}

#[tokio::test]
async fn who_may_not_know_of_a_chat_waits_for_nobody_in_it() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (bob, outsider) = (app.member(&owner).await, app.member(&owner).await);
    let chat = owner.chat("private_channel", &[&bob]).await;
    let message = owner.say(chat, "hush").await["id"].clone();
    let mut holder = app.owner.begin().await.unwrap();
    for statement in [
        "SELECT FROM chats WHERE id = $1 FOR UPDATE",
        "SELECT FROM chat_members WHERE chat_id = $1 FOR UPDATE",
    ] {
        sqlx::query(statement).bind(chat).execute(&mut *holder).await.unwrap();
    }
    let path = format!("/api/chat/{chat}");
    // One that waits answers 503 after three seconds.
    for (method, path, body) in [
        (Method::PATCH, path.clone(), json!({"name": "mine"})),
        (Method::DELETE, path.clone(), json!({})),
        (Method::POST, format!("{path}/join"), json!({})),
        (Method::POST, format!("{path}/leave"), json!({})),
        (Method::POST, format!("{path}/messages"), json!({"content": "x"})),
        (
            Method::PATCH,
            format!("{path}/messages/{message}"),
            json!({"content": "x"}),
        ),
        (Method::DELETE, format!("{path}/messages/{message}"), json!({})),
        (
            Method::POST,
            format!("{path}/members"),
            json!({"member_ids": [outsider.id]}),
        ),
        (
            Method::DELETE,
            format!("{path}/members"),
            json!({"member_ids": [bob.id]}),
        ),
        (
            Method::PATCH,
            format!("{path}/members/{}", bob.id),
            json!({"role": "owner"}),
        ),
        (Method::PUT, format!("{path}/read"), json!({"seq": 1})),
    ] {
        let answer = outsider.send(method.clone(), &path, Some(body)).await;
        assert_eq!(answer.0, StatusCode::NOT_FOUND, "{method} {path}: {}", answer.1);
    }
    holder.rollback().await.unwrap();
}
