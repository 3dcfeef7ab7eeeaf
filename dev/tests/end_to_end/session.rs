//! A session that ends stops working at the edge, and its streams end.

use std::process::Command;
use std::time::{Duration, Instant};

use dev::platform::Platform;
use dev::tools;
use reqwest::Method;
use serde_json::json;

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
        stream.next("reauth").await.unwrap();
        // Another session of the same user goes on.
        client
            .call("me", Method::GET, "/api/me", Some(other), None)
            .await
            .unwrap();
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
