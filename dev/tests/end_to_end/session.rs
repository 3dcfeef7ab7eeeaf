//! A session that ends stops working at the edge, and its streams end.

#![expect(clippy::unwrap_used, reason = "a client that gets no answer fails the test")]

use std::process::Command;
use std::time::{Duration, Instant};

use dev::platform::Platform;
use dev::tools;
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::drive;

#[test]
fn a_logged_out_session_is_refused_at_the_edge_within_a_second() {
    let platform = Platform::temporary(&[]).unwrap();
    let client = Client::new(&platform).unwrap();
    drive(async {
        let body = json!({
            "fullname": "Ada", "email": "ada@example.org", "password": "correct horse battery", "workspace": "Sessions",
        });
        let tokens = client
            .call("sign up", Method::POST, "/api/signup", None, Some(body))
            .await
            .unwrap();
        let token = tokens["access_token"].as_str().unwrap();
        let body = json!({"email": "ada@example.org", "password": "correct horse battery"});
        let other = client
            .call("sign in", Method::POST, "/api/signin", None, Some(body))
            .await
            .unwrap();
        let other = other["access_token"].as_str().unwrap();
        let mut stream = client.events(token).await.unwrap();
        stream.next("ready").await.unwrap();

        client
            .call("log out", Method::POST, "/api/logout", Some(token), None)
            .await
            .unwrap();
        refused_within_a_second(&client, token).await;
        stream.next("reauth").await.unwrap();
        // Another session of the same user goes on.
        client
            .call("me", Method::GET, "/api/me", Some(other), None)
            .await
            .unwrap();
    });
}

/// The edge refuses the token of a session that has ended just now.
async fn refused_within_a_second(client: &Client, token: &str) {
    let ended_at = Instant::now();
    loop {
        let (status, body) = client.raw(Method::GET, "/api/me", Some(token), None).await.unwrap();
        if status == 401 {
            assert_eq!(body["code"], "invalid_token", "{body}");
            break;
        }
        assert!(
            ended_at.elapsed() < Duration::from_secs(1),
            "still {status} after {:?}",
            ended_at.elapsed()
        );
    }
    println!("refused after {:?}", ended_at.elapsed());
}

#[test]
fn a_stolen_or_deactivated_session_is_refused_at_the_edge_within_a_second() {
    let mut platform = Platform::temporary(&[]).unwrap();
    let client = Client::new(&platform).unwrap();
    let post = |path: &'static str, token: Option<String>, body: Value| {
        let client = client.clone();
        async move {
            let answer = client.raw(Method::POST, path, token.as_deref(), Some(body)).await;
            answer.unwrap()
        }
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let sign_up = |name: &str, invitation: &Value| {
        json!({"fullname": name, "email": format!("{name}@example.org"), "password": "correct horse battery",
               "workspace": "Ending", "invitation": invitation})
    };
    let (first, second) = drive(async {
        let (_, owner) = post("/api/signup", None, sign_up("ada", &Value::Null)).await;
        let owner_token = Some(text(&owner["access_token"]));
        let (_, invitation) = post("/api/workspace/invitations", owner_token, json!({})).await;
        let (_, member) = post("/api/signup", None, sign_up("bob", &invitation["token"])).await;
        let (path, owner_token) = (
            format!("/api/users/{}", member["user"]["id"]),
            text(&owner["access_token"]),
        );
        client
            .call("deactivate", Method::DELETE, &path, Some(&owner_token), None)
            .await
            .unwrap();
        refused_within_a_second(&client, &text(&member["access_token"])).await;

        let (status, renewed) = post("/api/refresh", None, json!({"refresh_token": owner["refresh_token"]})).await;
        assert_eq!(status, 200, "{renewed}");
        (owner, renewed)
    });
    // Later than a client's own race could be.
    let later = "UPDATE refresh_tokens SET used_at = used_at - interval '1 minute' WHERE used_at IS NOT NULL";
    platform.postgres().unwrap().psql("fechatter", later).unwrap();
    drive(async {
        let (status, _) = post("/api/refresh", None, json!({"refresh_token": first["refresh_token"]})).await;
        assert_eq!(status, 401);
        refused_within_a_second(&client, &text(&second["access_token"])).await;
    });
}

#[test]
fn a_new_key_signs_and_the_tokens_of_the_old_one_live_on() {
    let quickly = [("FECHATTER_CHAT__AUTH__KEY_ACTIVATION_SECONDS", "1")];
    let platform = Platform::temporary_with(&[], &quickly).unwrap();
    let client = Client::new(&platform).unwrap();
    // A token's header holds the name of its key.
    let header = |token: &str| token.split('.').next().unwrap().to_owned();
    drive(async {
        let body = json!({
            "fullname": "Ada", "email": "ada@example.org", "password": "correct horse battery", "workspace": "Keys",
        });
        let tokens = client
            .call("sign up", Method::POST, "/api/signup", None, Some(body))
            .await
            .unwrap();
        let old = tokens["access_token"].as_str().unwrap().to_owned();
        let mut refresh = tokens["refresh_token"].clone();

        let mut command = Command::new(platform.binary("chat_service").unwrap());
        tools::run(command.args(["keys", "new", "--dir"]).arg(platform.keys())).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let new = loop {
            let body = json!({"refresh_token": refresh});
            let tokens = client
                .call("refresh", Method::POST, "/api/refresh", None, Some(body))
                .await
                .unwrap();
            refresh = tokens["refresh_token"].clone();
            let token = tokens["access_token"].as_str().unwrap();
            for token in [old.as_str(), token] {
                client
                    .call("me", Method::GET, "/api/me", Some(token), None)
                    .await
                    .unwrap();
            }
            if header(token) != header(&old) {
                break token.to_owned();
            }
            assert!(Instant::now() < deadline, "the new key does not sign");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let jwks = client
            .call("keys", Method::GET, "/.well-known/jwks.json", None, None)
            .await
            .unwrap();
        assert_eq!(jwks["keys"].as_array().unwrap().len(), 2, "{jwks}");
        // Every service takes both.
        for token in [&old, &new] {
            for path in ["/api/me", "/api/search/messages?q=x"] {
                client.call(path, Method::GET, path, Some(token), None).await.unwrap();
            }
            client.events(token).await.unwrap().next("ready").await.unwrap();
        }
    });
}
