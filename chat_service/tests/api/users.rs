//! Roles and deactivation.

use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{App, PASSWORD, assert_problem};

#[tokio::test]
async fn roles_are_given_by_those_above() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (admin, bob) = (app.admin(&owner).await, app.member(&owner).await);
    let path = |id: i64| format!("/api/users/{id}");
    assert_problem(
        &bob.patch(&path(bob.id), json!({"role": "admin"})).await,
        403,
        "forbidden",
    );
    assert_problem(
        &bob.patch(&path(admin.id), json!({"fullname": "Not me"})).await,
        403,
        "forbidden",
    );
    assert_problem(
        &admin.patch(&path(bob.id), json!({"role": "owner"})).await,
        403,
        "forbidden",
    );
    assert_problem(
        &admin.patch(&path(owner.id), json!({"role": "member"})).await,
        409,
        "conflict",
    );
    assert_eq!(
        admin.patch(&path(bob.id), json!({"role": "admin"})).await.0,
        StatusCode::OK
    );
    // Equals now: one cannot take the other down, by role or by deactivation.
    for refused in [
        admin.patch(&path(bob.id), json!({"role": "member"})).await,
        admin.delete(&path(bob.id)).await,
    ] {
        assert_problem(&refused, 403, "forbidden");
    }
    assert_eq!(
        owner.patch(&path(bob.id), json!({"role": "owner"})).await.0,
        StatusCode::OK
    );
    assert_eq!(bob.get("/api/workspace").await.1["owner_id"], bob.id);
    assert_eq!(owner.get("/api/me").await.1["role"], "admin");
    let (status, me) = bob.patch(&path(bob.id), json!({"fullname": "Bob"})).await;
    assert_eq!((status, me["fullname"].as_str()), (StatusCode::OK, Some("Bob")));
    let stranger = app.owner().await;
    assert_problem(
        &stranger.patch(&path(bob.id), json!({"role": "member"})).await,
        404,
        "not_found",
    );
}

#[tokio::test]
async fn a_deactivated_user_is_out_and_cannot_come_back() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (admin, bob) = (app.admin(&owner).await, app.member(&owner).await);
    assert_problem(&bob.delete(&format!("/api/users/{}", admin.id)).await, 403, "forbidden");
    assert_problem(
        &owner.delete(&format!("/api/users/{}", owner.id)).await,
        409,
        "conflict",
    );
    assert_eq!(
        admin.delete(&format!("/api/users/{}", bob.id)).await.0,
        StatusCode::NO_CONTENT
    );
    let sign_in = json!({"email": bob.email, "password": PASSWORD});
    assert_problem(
        &app.anonymous(Method::POST, "/api/signin", Some(sign_in)).await,
        401,
        "invalid_credentials",
    );
    let refresh = json!({"refresh_token": bob.refresh_token});
    assert_problem(
        &app.anonymous(Method::POST, "/api/refresh", Some(refresh)).await,
        401,
        "invalid_token",
    );
    let (_, users) = owner.get("/api/users").await;
    assert!(
        users["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|user| user["id"] != bob.id)
    );
    let kinds: Vec<String> = app.events(bob.id).await.into_iter().map(|(kind, _)| kind).collect();
    assert!(
        kinds.contains(&"user.updated".to_owned()) && kinds.contains(&"session.revoked".to_owned()),
        "{kinds:?}"
    );
}

#[tokio::test]
async fn the_workspace_is_renamed_by_those_who_manage_it() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (admin, bob) = (app.admin(&owner).await, app.member(&owner).await);
    let name = format!("Renamed {}", owner.id);
    assert_problem(
        &bob.patch("/api/workspace", json!({"name": name})).await,
        403,
        "forbidden",
    );
    let (status, workspace) = admin.patch("/api/workspace", json!({"name": name})).await;
    assert_eq!(
        (status, workspace["name"].as_str()),
        (StatusCode::OK, Some(name.as_str()))
    );
    let taken = app.owner().await;
    assert_problem(
        &taken
            .patch("/api/workspace", json!({"name": name.to_uppercase()}))
            .await,
        409,
        "conflict",
    );
}

#[tokio::test]
async fn chats_of_a_deactivated_owner_go_to_the_member_of_longest_standing() {
    let app = App::start().await;
    let owner = app.owner().await;
    let people = app.members(&owner, 3).await;
    let (bob, carol, dave) = (&people[0], &people[1], &people[2]);
    let shared = bob.chat("private_channel", &[carol, dave]).await;
    let pair = bob.chat("single", &[dave]).await;
    let alone = bob.chat("private_channel", &[]).await;
    // Carol stood longest, but is out herself.
    for user in [carol, bob] {
        let (status, _) = owner.delete(&format!("/api/users/{}", user.id)).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }
    for chat in [shared, pair] {
        let (_, view) = dave.get(&format!("/api/chat/{chat}")).await;
        assert_eq!(view["owner_id"], dave.id, "{view}");
        let events = app.events(chat).await;
        let changed = events.iter().find(|(kind, _)| kind == "chat.updated");
        assert_eq!(changed.unwrap().1["chat"]["owner_id"], dave.id);
    }
    let events = app.events(alone).await;
    let changes = events.iter().filter(|(kind, _)| kind == "chat.updated");
    assert_eq!(changes.count(), 0, "nobody is there to inherit");
    let rename = dave
        .patch(&format!("/api/chat/{shared}"), json!({"name": "goes on"}))
        .await;
    assert_eq!(rename.0, StatusCode::OK, "the heir acts as owner");
    // A token that has not run out yet makes no chat for somebody who is out.
    let refused = bob
        .post("/api/chat", json!({"kind": "private_channel", "name": "late"}))
        .await;
    assert_problem(&refused, 403, "forbidden");
}

#[tokio::test]
async fn what_an_interrupted_deactivation_left_is_handed_over_later() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let chat = bob.chat("private_channel", &[&owner]).await;
    let inheritance = &app.inheritance;
    assert_eq!(inheritance.settle(None).await.unwrap(), 0);
    sqlx::query("UPDATE users SET deactivated_at = now() WHERE id = $1")
        .bind(bob.id)
        .execute(&app.owner)
        .await
        .unwrap();
    let (first, second) = tokio::join!(inheritance.settle(None), inheritance.settle(None));
    assert_eq!(first.unwrap() + second.unwrap(), 1, "two replicas hand over once");
    assert_eq!(owner.get(&format!("/api/chat/{chat}")).await.1["owner_id"], owner.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_is_handed_over_once_and_everybody_hears_of_both() {
    let app = App::start().await;
    let owner = app.owner().await;
    let heirs = app.members(&owner, 2).await;
    let paths = heirs.iter().map(|heir| format!("/api/users/{}", heir.id));
    let hand_over = |path: String| {
        let owner = owner.clone();
        async move { owner.patch(&path, json!({"role": "owner"})).await }
    };
    let answers = join_all(paths.map(hand_over)).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.0.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 403], "{answers:?}");
    let heir = answers.iter().find(|answer| answer.0 == StatusCode::OK).unwrap().1["id"]
        .as_i64()
        .unwrap();
    assert_eq!(owner.get("/api/workspace").await.1["owner_id"], heir);
    for (user, role) in [(heir, "owner"), (owner.id, "admin")] {
        let events = app.events(user).await;
        let told = events
            .iter()
            .filter(|(kind, data)| kind == "user.updated" && data["user"]["id"] == user);
        let roles: Vec<&Value> = told.map(|(_, data)| &data["user"]["role"]).collect();
        assert_eq!(roles, [role]);
    }
    // Nobody is left without an owner: not by stepping down, nor by leaving.
    let heir = heirs.iter().find(|user| user.id == heir).unwrap();
    let path = format!("/api/users/{}", heir.id);
    assert_problem(&heir.patch(&path, json!({"role": "member"})).await, 409, "conflict");
    assert_problem(&heir.delete(&path).await, 409, "conflict");
}

#[tokio::test]
async fn a_token_from_before_a_demotion_manages_nothing() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (admin, bob) = (app.admin(&owner).await, app.member(&owner).await);
    let (_, invitation) = admin.post("/api/workspace/invitations", json!({})).await;
    let demoted = owner
        .patch(&format!("/api/users/{}", admin.id), json!({"role": "member"}))
        .await;
    assert_eq!(demoted.0, StatusCode::OK);
    for refused in [
        admin.post("/api/workspace/invitations", json!({})).await,
        admin.get("/api/workspace/invitations").await,
        admin
            .delete(&format!("/api/workspace/invitations/{}", invitation["id"]))
            .await,
        admin.patch("/api/workspace", json!({"name": "Taken over"})).await,
        admin
            .patch(&format!("/api/users/{}", bob.id), json!({"role": "admin"}))
            .await,
        admin.delete(&format!("/api/users/{}", bob.id)).await,
    ] {
        assert_problem(&refused, 403, "forbidden");
    }
    // Nor does what it handed out before.
    let body = json!({"fullname": "Late", "email": "late@example.org", "password": PASSWORD,
                      "workspace": owner.workspace, "invitation": invitation["token"]});
    assert_problem(
        &app.anonymous(Method::POST, "/api/signup", Some(body)).await,
        403,
        "forbidden",
    );
}
