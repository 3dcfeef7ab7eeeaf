//! A session that ends stops working at the edge, and its streams end.

use std::time::{Duration, Instant};

use dev::platform::Platform;
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
