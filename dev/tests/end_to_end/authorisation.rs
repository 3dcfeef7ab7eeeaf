//! The authorisation matrix through the gateway. chat_service proves its own routes to all callers in its own tests; here every
//! route meets the callers without a valid token, and the routes of the other processes meet all.

#![expect(clippy::unwrap_used, reason = "a scene that cannot be set fails the test")]

use std::collections::BTreeSet;

use chat_service::signing_keys::SigningKeys;
use dev::authorisation::{CALLERS, matrix, routes};
use dev::platform::Platform;
use fechatter_core::token::Claims;
use fechatter_core::user::Role;
use reqwest::Method;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::client::Client;
use crate::drive;

/// The people of the matrix, and the chat they are or are not in.
struct Scene {
    tokens: [Option<String>; 8],
    chat: i64,
}

struct Person {
    id: i64,
    token: String,
}

async fn sign_up(client: &Client, workspace: &str, invitation: Option<&str>) -> Person {
    let body = json!({
        "fullname": "Somebody",
        "email": format!("{}@example.org", Uuid::now_v7().simple()),
        "password": "correct horse battery",
        "workspace": workspace,
        "invitation": invitation,
    });
    let tokens = client
        .call("sign up", Method::POST, "/api/signup", None, Some(body))
        .await
        .unwrap();
    Person {
        id: tokens["user"]["id"].as_i64().unwrap(),
        token: tokens["access_token"].as_str().unwrap().to_owned(),
    }
}

async fn post(client: &Client, token: &str, path: &str, body: Value) -> Value {
    client
        .call(path, Method::POST, path, Some(token), Some(body))
        .await
        .unwrap()
}

async fn set(platform: &Platform, client: &Client) -> Scene {
    let owner = sign_up(client, "Ours", None).await;
    let invitation = post(
        client,
        &owner.token,
        "/api/workspace/invitations",
        json!({"max_uses": 3}),
    )
    .await;
    let invitation = invitation["token"].as_str();
    let member = sign_up(client, "Ours", invitation).await;
    let outsider = sign_up(client, "Ours", invitation).await;
    let admin = sign_up(client, "Ours", invitation).await;
    let promotion = Some(json!({"role": "admin"}));
    let path = format!("/api/users/{}", admin.id);
    client
        .call("promote", Method::PATCH, &path, Some(&owner.token), promotion)
        .await
        .unwrap();
    let foreign = sign_up(client, "Theirs", None).await;
    let chat = json!({"kind": "private_channel", "name": "secret", "member_ids": [member.id]});
    let chat = post(client, &owner.token, "/api/chat", chat).await["id"]
        .as_i64()
        .unwrap();
    post(
        client,
        &member.token,
        &format!("/api/chat/{chat}/messages"),
        json!({"content": "hush"}),
    )
    .await;
    Scene {
        tokens: [
            None,
            Some(expired(platform, &member)),
            Some(forged(&member.token)),
            Some(foreign.token),
            Some(outsider.token),
            Some(member.token),
            Some(owner.token),
            Some(admin.token),
        ],
        chat,
    }
}

/// A token that the platform itself could have signed an hour ago.
fn expired(platform: &Platform, person: &Person) -> String {
    let past = OffsetDateTime::now_utc() - Duration::hours(1);
    let claims = Claims {
        iss: "fechatter".into(),
        aud: "fechatter".into(),
        sub: person.id.to_string(),
        ws: 1.into(),
        role: Role::Owner,
        sid: Uuid::now_v7(),
        jti: Uuid::now_v7(),
        iat: past.unix_timestamp(),
        exp: past.unix_timestamp() + 900,
    };
    let keys = SigningKeys::open(&platform.keys(), 0).unwrap();
    keys.sign(&claims, OffsetDateTime::now_utc()).unwrap()
}

/// A good token with another signature.
fn forged(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let other = if signature.starts_with('A') { "B" } else { "A" };
    format!("{signed}.{other}{}", &signature[1..])
}

#[test]
fn every_route_meets_every_caller() {
    let platform = Platform::temporary(&[]).unwrap();
    let client = Client::new(&platform).unwrap();
    drive(async {
        let document = client
            .call("document", Method::GET, "/openapi.json", None, None)
            .await
            .unwrap();
        let matrix = matrix().unwrap();
        let described: BTreeSet<String> = routes(&document).into_iter().collect();
        let listed: BTreeSet<String> = matrix.keys().cloned().collect();
        assert_eq!(
            described, listed,
            "docs/authorisation.md has the routes of /openapi.json, no more and no less"
        );

        let chat_service = serde_json::to_value(chat_service::document()).unwrap();
        let proven_there: BTreeSet<String> = routes(&chat_service).into_iter().collect();
        let scene = set(&platform, &client).await;
        let mut faults = Vec::new();
        for (route, row) in &matrix {
            let (method, template) = route.split_once(' ').unwrap();
            let path = template
                .replace("/api/chat/{id}", &format!("/api/chat/{}", scene.chat))
                .replace("{file}", "start.js")
                .replace("{id}", "1")
                .replace("{message_id}", "1")
                .replace("{member_id}", "1");
            let path = match template {
                "/api/search/messages" => format!("{path}?q=hush&chat_id={}", scene.chat),
                _ => path,
            };
            let body = match route.as_str() {
                "PUT /api/presence" => Some(json!({"status": "online"})),
                _ => (method != "GET").then(|| json!({})),
            };
            let callers = if proven_there.contains(route) { 3 } else { CALLERS.len() };
            for (caller, expected) in row.iter().enumerate().take(callers) {
                let token = scene.tokens[caller].as_deref();
                let status = client
                    .status(method.parse().unwrap(), &path, token, body.clone())
                    .await
                    .unwrap();
                let got = if (200..300).contains(&status) { 2 } else { status };
                if got != *expected {
                    faults.push(format!(
                        "{route} as {}: {status} instead of {expected}",
                        CALLERS[caller]
                    ));
                }
            }
        }
        assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    });
}
