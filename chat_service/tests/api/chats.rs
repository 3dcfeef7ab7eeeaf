//! The four kinds of chats and their rules.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{App, assert_problem};

#[tokio::test]
async fn each_kind_asks_for_its_own_members_and_name() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let carol = app.member(&owner).await;
    let create = |body: Value| {
        let owner = owner.clone();
        async move { owner.post("/api/chat", body).await }
    };
    for (body, field) in [
        (json!({"kind": "single", "member_ids": []}), "member_ids"),
        (json!({"kind": "single", "member_ids": [owner.id]}), "member_ids"),
        (
            json!({"kind": "single", "member_ids": [bob.id, carol.id]}),
            "member_ids",
        ),
        (json!({"kind": "single", "member_ids": [bob.id], "name": "us"}), "name"),
        (json!({"kind": "group", "member_ids": [bob.id]}), "member_ids"),
        (json!({"kind": "group", "member_ids": [bob.id, bob.id]}), "member_ids"),
        (json!({"kind": "private_channel"}), "name"),
        (json!({"kind": "public_channel", "name": " padded "}), "name"),
        (json!({"kind": "public_channel", "name": "x".repeat(81)}), "name"),
        (json!({"kind": "public_channel", "name": "a\u{0}b"}), "name"),
        (
            json!({"kind": "public_channel", "name": "ok", "description": "\u{1b}"}),
            "description",
        ),
        (json!({"kind": "group", "member_ids": [bob.id, 999_999]}), "member_ids"),
        (json!({"kind": "group", "member_ids": [bob.id, -1]}), "member_ids"),
    ] {
        let answer = create(body).await;
        assert_problem(&answer, 422, "validation_failed");
        assert_eq!(answer.1["errors"][0]["field"], field, "{}", answer.1);
    }
    let (status, group) = create(json!({"kind": "group", "member_ids": [bob.id, carol.id]})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(group["member_count"], 3);
    assert_eq!(group["owner_id"], owner.id);
    let (status, channel) = create(json!({"kind": "public_channel", "name": "general", "description": "all"})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(
        (channel["last_seq"].as_i64(), channel["unread_count"].as_i64()),
        (Some(0), Some(0))
    );
}

#[tokio::test]
async fn a_pair_has_one_single_chat_whoever_makes_it() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let (first, chat) = owner
        .post("/api/chat", json!({"kind": "single", "member_ids": [bob.id]}))
        .await;
    assert_eq!(first, StatusCode::CREATED);
    let (again, same) = bob
        .post("/api/chat", json!({"kind": "single", "member_ids": [owner.id]}))
        .await;
    assert_eq!((again, &same["id"]), (StatusCode::OK, &chat["id"]));
    let both = tokio::join!(app.member(&owner), app.member(&owner));
    let body = json!({"kind": "single", "member_ids": [both.1.id]});
    let race = futures::future::join_all((0..8).map(|_| both.0.post("/api/chat", body.clone()))).await;
    let made = race.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    assert_eq!(made, 1, "{race:?}");
    assert!(race.iter().all(|(_, chat)| chat["id"] == race[0].1["id"]));
}

#[tokio::test]
async fn other_tenants_people_cannot_be_added() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let stranger = app.owner().await;
    let body = json!({"kind": "group", "member_ids": [bob.id, stranger.id]});
    assert_problem(&owner.post("/api/chat", body).await, 422, "validation_failed");
    let channel = owner.chat("private_channel", &[]).await;
    let added = owner
        .post(
            &format!("/api/chat/{channel}/members"),
            json!({"member_ids": [stranger.id]}),
        )
        .await;
    assert_problem(&added, 422, "validation_failed");
}

#[tokio::test]
async fn who_may_know_of_a_chat_gets_403_and_who_may_not_gets_404() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let stranger = app.owner().await;
    let secret = owner.chat("private_channel", &[]).await;
    let open = owner.chat("public_channel", &[]).await;
    for path in ["", "/members", "/messages"] {
        assert_problem(&bob.get(&format!("/api/chat/{secret}{path}")).await, 404, "not_found");
        assert_problem(&bob.get(&format!("/api/chat/{open}{path}")).await, 403, "forbidden");
        assert_problem(
            &stranger.get(&format!("/api/chat/{open}{path}")).await,
            404,
            "not_found",
        );
    }
    for id in ["0", "-1", "abc", "9223372036854775807", "9223372036854775808", "1.5"] {
        assert_problem(&bob.get(&format!("/api/chat/{id}")).await, 404, "not_found");
    }
}

#[tokio::test]
async fn channels_are_discovered_by_the_workspace_alone() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let open = owner.chat("public_channel", &[]).await;
    owner.chat("private_channel", &[]).await;
    owner.say(open, "for members").await;
    let (_, seen) = bob.get("/api/channels").await;
    let items = seen["items"].as_array().unwrap();
    assert_eq!(items.len(), 1);
    assert_eq!(
        (items[0]["id"].as_i64(), items[0]["last_seq"].as_i64()),
        (Some(open), Some(0))
    );
    let (_, elsewhere) = app.owner().await.get("/api/channels").await;
    assert_eq!(elsewhere["items"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn lists_page_by_an_opaque_cursor() {
    let app = App::start().await;
    let owner = app.owner().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(owner.chat("private_channel", &[]).await);
    }
    let mut seen = Vec::new();
    let mut path = "/api/chat?limit=2".to_owned();
    loop {
        let (status, page) = owner.get(&path).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        seen.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|chat| chat["id"].as_i64().unwrap()),
        );
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/api/chat?limit=2&cursor={next}");
    }
    assert_eq!(seen, made);
    for bad in [
        "limit=0",
        "limit=101",
        "limit=x",
        "cursor=42",
        "cursor=id_x",
        "unknown=1",
    ] {
        assert_problem(&owner.get(&format!("/api/chat?{bad}")).await, 422, "validation_failed");
    }
}

#[tokio::test]
async fn the_owner_renames_and_ends_a_chat_for_everybody() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let chat = owner.chat("private_channel", &[&bob]).await;
    let path = format!("/api/chat/{chat}");
    assert_problem(&bob.patch(&path, json!({"name": "mine"})).await, 403, "forbidden");
    let (status, renamed) = owner
        .patch(&path, json!({"name": "plans", "description": "what next"}))
        .await;
    assert_eq!((status, renamed["name"].as_str()), (StatusCode::OK, Some("plans")));
    let (_, cleared) = owner.patch(&path, json!({"description": null})).await;
    assert_eq!(
        (cleared["name"].as_str(), cleared["description"].is_null()),
        (Some("plans"), true)
    );
    assert_problem(
        &owner.patch(&path, json!({"name": null})).await,
        422,
        "validation_failed",
    );
    assert_problem(&bob.delete(&path).await, 403, "forbidden");
    assert_eq!(owner.delete(&path).await.0, StatusCode::NO_CONTENT);
    for user in [&owner, &bob] {
        assert_problem(&user.get(&path).await, 404, "not_found");
        assert_problem(
            &user.post(&format!("{path}/messages"), json!({"content": "late"})).await,
            404,
            "not_found",
        );
        assert_eq!(user.get("/api/chat").await.1["items"].as_array().unwrap().len(), 0);
    }
    let kinds: Vec<String> = app.events(chat).await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["chat.created", "chat.updated", "chat.updated", "chat.deleted"]);
}

#[tokio::test]
async fn a_deleted_single_chat_can_be_made_anew() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let old = owner.chat("single", &[&bob]).await;
    assert_eq!(
        owner.delete(&format!("/api/chat/{old}")).await.0,
        StatusCode::NO_CONTENT
    );
    let (status, new) = bob
        .post("/api/chat", json!({"kind": "single", "member_ids": [owner.id]}))
        .await;
    assert_eq!(status, StatusCode::CREATED);
    assert_ne!(new["id"].as_i64().unwrap(), old);
}

#[tokio::test]
async fn a_single_chat_with_somebody_who_left_is_still_found() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let chat = owner.chat("single", &[&bob]).await;
    owner.say(chat, "see you").await;
    assert_eq!(
        owner.delete(&format!("/api/users/{}", bob.id)).await.0,
        StatusCode::NO_CONTENT
    );
    let body = json!({"kind": "single", "member_ids": [bob.id]});
    let (status, found) = owner.post("/api/chat", body.clone()).await;
    assert_eq!((status, found["id"].as_i64()), (StatusCode::OK, Some(chat)), "{found}");
    // Nothing new begins with who is out.
    let carol = app.member(&owner).await;
    assert_problem(&carol.post("/api/chat", body).await, 422, "validation_failed");
}
