//! The authorisation matrix, asked of the service itself. A route that is not in it fails the test.

use dev::authorisation::{CALLERS, matrix, routes};
use fechatter_core::token::Claims;
use fechatter_core::user::Role;
use reqwest::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::support::{App, PASSWORD, User, request};

/// Everything a row needs, made anew for each caller so that no call disturbs the next.
struct Scene {
    app: App,
    tokens: [Option<String>; 8],
    member: User,
    extra: User,
    chat: i64,
    message: i64,
    invitation: i64,
}

impl Scene {
    async fn set() -> Self {
        let app = App::start().await;
        // The workspace's owner owns the chat as well; the admin is outside of it.
        let owner = app.owner().await;
        let (member, outsider, extra) = (
            app.member(&owner).await,
            app.member(&owner).await,
            app.member(&owner).await,
        );
        let admin = app.admin(&owner).await;
        let foreign = app.owner().await;
        let chat = owner.chat("private_channel", &[&member]).await;
        let message = member.say(chat, "the member's").await["id"].as_i64().unwrap();
        let (_, invitation) = owner.post("/api/workspace/invitations", json!({})).await;
        let tokens = [
            None,
            Some(expired(&app, &member)),
            Some(forged(&member.token)),
            Some(foreign.token.clone()),
            Some(outsider.token.clone()),
            Some(member.token.clone()),
            Some(owner.token.clone()),
            Some(admin.token.clone()),
        ];
        Self {
            app,
            tokens,
            member,
            extra,
            chat,
            message,
            invitation: invitation["id"].as_i64().unwrap(),
        }
    }

    fn path(&self, route: &str) -> String {
        let path = route
            .replace("/api/users/{id}", &format!("/api/users/{}", self.member.id))
            .replace("/api/sessions/{id}", &format!("/api/sessions/{}", Uuid::nil()))
            .replace("/invitations/{id}", &format!("/invitations/{}", self.invitation))
            .replace("/api/chat/{id}", &format!("/api/chat/{}", self.chat))
            .replace("{message_id}", &self.message.to_string())
            .replace("{member_id}", &self.member.id.to_string())
            .replace("{file}", "start.js");
        if route == "/api/chat/{id}/members" {
            format!("{path}?")
        } else {
            path
        }
    }

    fn body(&self, route: &str) -> Option<Value> {
        Some(match route {
            "POST /api/chat" => json!({"kind": "private_channel", "name": "new"}),
            "POST /api/chat/{id}/members" => json!({"member_ids": [self.extra.id]}),
            "DELETE /api/chat/{id}/members" => json!({"member_ids": [self.member.id]}),
            "PATCH /api/chat/{id}/members/{member_id}" => json!({"role": "owner"}),
            "PATCH /api/chat/{id}" => json!({"description": "changed"}),
            "PATCH /api/workspace" => json!({"name": format!("Renamed {}", Uuid::now_v7().simple())}),
            "PATCH /api/users/{id}" => json!({"role": "admin"}),
            "POST /api/chat/{id}/messages" | "PATCH /api/chat/{id}/messages/{message_id}" => json!({"content": "new"}),
            "PUT /api/me/password" => json!({"current_password": PASSWORD, "new_password": "another horse"}),
            "PUT /api/chat/{id}/read" => json!({"seq": 1}),
            _ if route.starts_with("GET") || route.starts_with("DELETE") => return None,
            _ => json!({}),
        })
    }
}

fn expired(app: &App, user: &User) -> String {
    let past = OffsetDateTime::now_utc() - time::Duration::hours(1);
    let claims = Claims {
        iss: "fechatter".into(),
        aud: "fechatter".into(),
        sub: user.id.to_string(),
        ws: 1.into(),
        role: Role::Owner,
        sid: Uuid::now_v7(),
        jti: Uuid::now_v7(),
        iat: past.unix_timestamp(),
        exp: past.unix_timestamp() + 900,
    };
    app.keys.sign(&claims, OffsetDateTime::now_utc()).unwrap()
}

/// A good token whose signature is another's.
fn forged(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let other = if signature.starts_with('A') { "B" } else { "A" };
    format!("{signed}.{other}{}", &signature[1..])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_meets_every_caller() {
    let document = serde_json::to_value(chat_service::document()).unwrap();
    let matrix = matrix().unwrap();
    let mut faults = Vec::new();
    let mut scene = Scene::set().await;
    for route in routes(&document) {
        let row = matrix
            .get(&route)
            .unwrap_or_else(|| panic!("{route} is not in docs/authorisation.md"));
        let (method, path) = route.split_once(' ').unwrap();
        let method: Method = method.parse().unwrap();
        for (caller, expected) in row.iter().enumerate() {
            let url = format!("{}{}", scene.app.url, scene.path(path).trim_end_matches('?'));
            let token = scene.tokens[caller].as_deref();
            let (status, body) = request(&scene.app.http, method.clone(), &url, token, scene.body(&route)).await;
            let got = if status.is_success() { 2 } else { status.as_u16() };
            if got != *expected {
                faults.push(format!(
                    "{route} as {}: {status} instead of {expected}: {body}",
                    CALLERS[caller]
                ));
            }
            // A call that succeeded changed something, unless it only read.
            if status.is_success() && method != Method::GET {
                scene = Scene::set().await;
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_a_chat_meets_those_outside_of_it_by_its_kind() {
    let document = serde_json::to_value(chat_service::document()).unwrap();
    let mut scene = Scene::set().await;
    let [.., Some(foreign), Some(outsider), _, Some(owner), Some(admin)] = &scene.tokens else {
        panic!("tokens of everybody");
    };
    let (foreign, outsider, owner, admin) = (foreign.clone(), outsider.clone(), owner.clone(), admin.clone());
    let (mut faults, mut asked) = (Vec::new(), 0);
    for kind in ["single", "group", "private_channel", "public_channel"] {
        let others = if kind == "single" {
            vec![scene.member.id]
        } else {
            vec![scene.member.id, scene.extra.id]
        };
        let name = kind.ends_with("channel").then_some("for outsiders");
        let chat = json!({"kind": kind, "name": name, "member_ids": others});
        let url = format!("{}/api/chat", scene.app.url);
        let (status, chat) = request(&scene.app.http, Method::POST, &url, Some(&owner), Some(chat)).await;
        assert!(status.is_success(), "{chat}");
        scene.chat = chat["id"].as_i64().unwrap();
        for route in routes(&document)
            .iter()
            .filter(|route| route.contains(" /api/chat/{id}"))
        {
            let (method, path) = route.split_once(' ').unwrap();
            let url = format!("{}{}", scene.app.url, scene.path(path).trim_end_matches('?'));
            for (caller, token) in [("foreign", &foreign), ("outsider", &outsider), ("admin", &admin)] {
                let expected = match (kind, caller) {
                    ("public_channel", "outsider" | "admin") if path.ends_with("/join") => continue,
                    ("public_channel", "outsider" | "admin") => 403,
                    _ => 404,
                };
                let (status, body) = request(
                    &scene.app.http,
                    method.parse().unwrap(),
                    &url,
                    Some(token),
                    scene.body(route),
                )
                .await;
                asked += 1;
                if status.as_u16() != expected {
                    faults.push(format!(
                        "{route} of a {kind} as {caller}: {status} instead of {expected}: {body}"
                    ));
                }
            }
        }
    }
    assert!(asked > 100, "{asked} requests");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
