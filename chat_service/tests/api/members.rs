//! Joining, adding, leaving, removing, handing over.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{App, assert_problem};

#[tokio::test]
async fn anyone_joins_and_leaves_a_public_channel() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let open = owner.chat("public_channel", &[]).await;
    let secret = owner.chat("private_channel", &[]).await;
    let (status, joined) = bob.post(&format!("/api/chat/{open}/join"), json!({})).await;
    assert_eq!((status, joined["member_count"].as_i64()), (StatusCode::OK, Some(2)));
    let (status, again) = bob.post(&format!("/api/chat/{open}/join"), json!({})).await;
    assert_eq!((status, again["member_count"].as_i64()), (StatusCode::OK, Some(2)));
    assert_problem(
        &bob.post(&format!("/api/chat/{secret}/join"), json!({})).await,
        404,
        "not_found",
    );
    assert_eq!(
        bob.post(&format!("/api/chat/{open}/leave"), json!({})).await.0,
        StatusCode::NO_CONTENT
    );
    assert_problem(&bob.get(&format!("/api/chat/{open}/messages")).await, 403, "forbidden");
    let kinds: Vec<String> = app.events(open).await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["chat.created", "member.added", "member.removed"]);
}

#[tokio::test]
async fn the_owner_adds_and_removes_within_the_rules_of_the_kind() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (bob, carol, dave) = (
        app.member(&owner).await,
        app.member(&owner).await,
        app.member(&owner).await,
    );
    let group = owner.chat("group", &[&bob, &carol]).await;
    let members = format!("/api/chat/{group}/members");
    assert_problem(
        &bob.post(&members, json!({"member_ids": [dave.id]})).await,
        403,
        "forbidden",
    );
    assert_problem(
        &owner.delete(&format!("{members}?member_ids={}", bob.id)).await,
        422,
        "validation_failed",
    );
    let (status, added) = owner.post(&members, json!({"member_ids": [dave.id, bob.id]})).await;
    assert_eq!(
        (status, added["items"].as_array().unwrap().len()),
        (StatusCode::CREATED, 2)
    );
    assert_eq!(owner.get(&members).await.1["items"].as_array().unwrap().len(), 4);
    assert_problem(
        &owner.delete(&format!("{members}?member_ids={}", owner.id)).await,
        422,
        "validation_failed",
    );
    assert_problem(
        &owner.delete(&format!("{members}?member_ids=x")).await,
        422,
        "validation_failed",
    );
    assert_eq!(
        owner.delete(&format!("{members}?member_ids={}", bob.id)).await.0,
        StatusCode::NO_CONTENT
    );
    assert_problem(&bob.get(&members).await, 404, "not_found");
    let body = json!({"member_ids": [bob.id]});
    let again = owner.send(reqwest::Method::DELETE, &members, Some(body)).await;
    assert_problem(&again, 422, "validation_failed");
    let single = owner.chat("single", &[&bob]).await;
    let to_single = owner
        .post(
            &format!("/api/chat/{single}/members"),
            json!({"member_ids": [carol.id]}),
        )
        .await;
    assert_problem(&to_single, 422, "validation_failed");
    assert_problem(
        &bob.post(&format!("/api/chat/{single}/leave"), json!({})).await,
        422,
        "validation_failed",
    );
}

#[tokio::test]
async fn ownership_is_handed_over_or_inherited() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (bob, carol) = (app.member(&owner).await, app.member(&owner).await);
    let chat = owner.chat("private_channel", &[&bob]).await;
    owner
        .post(&format!("/api/chat/{chat}/members"), json!({"member_ids": [carol.id]}))
        .await;
    let carol_path = format!("/api/chat/{chat}/members/{}", carol.id);
    assert_problem(
        &bob.patch(&carol_path, json!({"role": "owner"})).await,
        403,
        "forbidden",
    );
    assert_problem(
        &owner.patch(&carol_path, json!({"role": "member"})).await,
        422,
        "validation_failed",
    );
    let (status, heir) = owner.patch(&carol_path, json!({"role": "owner"})).await;
    assert_eq!((status, heir["role"].as_str()), (StatusCode::OK, Some("owner")));
    assert_problem(
        &owner.patch(&carol_path, json!({"role": "owner"})).await,
        403,
        "forbidden",
    );
    // Carol leaves; of the two left, the owner of old joined first, in one breath with bob, and has the smaller id.
    assert_eq!(
        carol.post(&format!("/api/chat/{chat}/leave"), json!({})).await.0,
        StatusCode::NO_CONTENT
    );
    assert_eq!(owner.get(&format!("/api/chat/{chat}")).await.1["owner_id"], owner.id);
}

#[tokio::test]
async fn the_last_one_out_ends_the_chat() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("public_channel", &[]).await;
    assert_eq!(
        owner.post(&format!("/api/chat/{chat}/leave"), json!({})).await.0,
        StatusCode::NO_CONTENT
    );
    assert_problem(&owner.get(&format!("/api/chat/{chat}")).await, 404, "not_found");
    assert_eq!(owner.get("/api/channels").await.1["items"].as_array().unwrap().len(), 0);
}
