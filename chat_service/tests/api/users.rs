//! Roles and deactivation.

use reqwest::{Method, StatusCode};
use serde_json::json;

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
