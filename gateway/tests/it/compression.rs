//! Answers are compressed where it pays, and come out as they went in.

use std::io::Read;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Gateway, Issuer, Reply, Upstream};

fn page() -> Value {
    let items: Vec<Value> = (0..50)
        .map(|seq| json!({"seq": seq, "content": "much the same as before"}))
        .collect();
    json!({"items": items})
}

async fn upstream() -> Upstream {
    Upstream::with(|request| match request.target() {
        "/events" => Reply::Events(vec![(Duration::ZERO, format!("data: {}\n\n", page()))]),
        "/api/me" => Reply::json(200, &json!({"id": 1})),
        _ => Reply::json(200, &page()),
    })
    .await
}

#[tokio::test]
async fn long_answers_are_compressed_as_the_client_asks_and_are_the_same() {
    let (issuer, upstream) = (Issuer::start().await, upstream().await);
    let gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
    let token = issuer.token(7);
    for client in [gateway.http1(), gateway.http2()] {
        let get = async |path: &str, accepted: &str| {
            let request = client.get(gateway.url(path)).bearer_auth(&token);
            request.header("accept-encoding", accepted).send().await.unwrap()
        };
        let answer = get("/api/chat", "gzip").await;
        assert_eq!(answer.headers()["content-encoding"], "gzip");
        assert!(answer.headers()["vary"].to_str().unwrap().contains("accept-encoding"));
        let bytes = answer.bytes().await.unwrap();
        assert!(bytes.len() < page().to_string().len() / 4, "{} bytes", bytes.len());
        let mut text = String::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), page());

        for accepted in ["gzip, br, zstd", "br"] {
            let answer = get("/api/chat", accepted).await;
            let expected = if accepted == "br" { "br" } else { "zstd" };
            assert_eq!(answer.headers()["content-encoding"], expected);
            assert!(!answer.bytes().await.unwrap().is_empty());
        }
        for (path, accepted, why) in [
            ("/api/chat", "identity", "not asked for"),
            ("/api/chat", "gzip;q=0", "refused"),
            ("/api/me", "gzip", "too short to pay"),
        ] {
            let answer = get(path, accepted).await;
            assert!(!answer.headers().contains_key("content-encoding"), "{why}");
            assert!(answer.headers().contains_key("content-length"), "{why}");
        }
        let mut stream = get("/events", "gzip").await;
        assert!(!stream.headers().contains_key("content-encoding"), "events would wait");
        assert!(stream.chunk().await.unwrap().unwrap().starts_with(b"data: {"));
        let secret = client
            .post(gateway.url("/api/signin"))
            .header("accept-encoding", "gzip");
        let secret = secret.json(&json!({})).send().await.unwrap();
        assert!(!secret.headers().contains_key("content-encoding"), "tokens");
    }
}

#[tokio::test]
async fn compression_can_be_switched_off() {
    let (issuer, upstream) = (Issuer::start().await, upstream().await);
    let gateway = Gateway::start(&issuer, &[&upstream], &[("COMPRESSION__LEVEL", "0")]).await;
    let request = gateway
        .http2()
        .get(gateway.url("/api/chat"))
        .bearer_auth(issuer.token(7));
    let answer = request.header("accept-encoding", "gzip, br").send().await.unwrap();
    assert!(!answer.headers().contains_key("content-encoding"));
    assert_eq!(answer.json::<Value>().await.unwrap(), page());
}
