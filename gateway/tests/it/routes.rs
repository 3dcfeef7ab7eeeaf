//! What exists, for whom, and with which methods; the plain listener; what never is public.

use crate::support::{problem, setup};

#[tokio::test]
async fn unknown_routes_wrong_methods_and_internals_are_problems() {
    let setup = setup(&[]).await;
    let client = setup.gateway.http2();
    for path in [
        "/",
        "/metrics",
        "/ready",
        "/live",
        "/debug/pprof/profile",
        "/api/chat/",
        "/internal/x",
        "/api/chat/1/secret",
    ] {
        problem(
            client.get(setup.gateway.url(path)).send().await.unwrap(),
            404,
            "not_found",
        )
        .await;
    }
    let answer = client.put(setup.gateway.url("/api/chat")).send().await.unwrap();
    assert_eq!(answer.headers()["allow"], "GET, POST, HEAD, OPTIONS");
    problem(answer, 405, "method_not_allowed").await;
    assert!(setup.upstream.bytes().is_empty());
}

#[tokio::test]
async fn both_protocols_reach_the_upstream_with_the_marks_on_the_answer() {
    let setup = setup(&[]).await;
    for (client, version) in [
        (setup.gateway.http1(), reqwest::Version::HTTP_11),
        (setup.gateway.http2(), reqwest::Version::HTTP_2),
    ] {
        let answer = client
            .get(setup.gateway.url("/api/chat?limit=3"))
            .bearer_auth(setup.issuer.token(7))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.version(), version);
        let headers = answer.headers().clone();
        assert!(
            headers["strict-transport-security"]
                .to_str()
                .unwrap()
                .starts_with("max-age=")
        );
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["ratelimit-policy"], "\"read\";q=3000;w=60");
        assert!(headers["ratelimit"].to_str().unwrap().starts_with("\"read\";r=299"));
        let request = setup.upstream.requests().pop().unwrap();
        assert_eq!(request.target(), "/api/chat?limit=3");
        assert_eq!(headers["x-request-id"], request.field("x-request-id"));
        assert_eq!(headers["traceresponse"], request.field("traceparent"));
        assert_eq!(
            request.field("host"),
            format!("localhost:{}", setup.gateway.https.port())
        );
        assert!(request.field("authorization").starts_with("Bearer "));
    }
}

#[tokio::test]
async fn health_names_states_and_nothing_else() {
    let setup = setup(&[]).await;
    let client = setup.gateway.http2();
    let answer = client.get(setup.gateway.url("/health")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let body: serde_json::Value = answer.json().await.unwrap();
    let ok = serde_json::json!({"status": "ok"});
    let checks = serde_json::json!({"gateway": &ok, "chat": &ok, "notify": &ok, "indexer": &ok});
    assert_eq!(
        body,
        serde_json::json!({"status": "ok", "version": env!("CARGO_PKG_VERSION"), "checks": checks})
    );
    let simple = client.get(setup.gateway.url("/health/simple")).send().await.unwrap();
    assert_eq!(simple.status(), 200);
    assert_eq!(simple.json::<serde_json::Value>().await.unwrap(), ok);
    assert!(setup.upstream.bytes().is_empty(), "health is the gateway's own answer");
}

#[tokio::test]
async fn the_plain_listener_only_redirects() {
    let setup = setup(&[]).await;
    let client = setup.gateway.http1();
    let url = format!("http://localhost:{}/api/chat?x=1", setup.gateway.http.port());
    let answer = client.post(&url).body("{}").send().await.unwrap();
    assert_eq!(answer.status(), 308);
    assert_eq!(answer.headers()["location"], setup.gateway.url("/api/chat?x=1"));
    assert!(setup.upstream.bytes().is_empty());
}

#[tokio::test]
async fn a_head_request_has_no_body_and_keeps_the_connection() {
    let setup = setup(&[]).await;
    let client = setup.gateway.http1();
    for _ in 0..2 {
        let answer = client.head(setup.gateway.url("/api/chat")).send().await.unwrap();
        assert_eq!(answer.status(), 401);
        assert!(answer.bytes().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn large_bodies_pass_by_length_and_are_counted() {
    let setup = setup(&[]).await;
    let token = setup.issuer.token(7);
    let url = setup.gateway.url("/api/chat/1/messages");
    for client in [setup.gateway.http1(), setup.gateway.http2()] {
        let send = async |size: usize| {
            client
                .post(&url)
                .bearer_auth(&token)
                .body(vec![b'a'; size])
                .send()
                .await
                .unwrap_or_else(|error| panic!("{size}: {error:?}"))
        };
        for size in [0, 1, 65_536, 65_537, 262_144] {
            let answer = send(size).await;
            assert_eq!(answer.status(), 200, "{size}");
            let body: serde_json::Value = answer.json().await.unwrap();
            assert_eq!(body["body_bytes"], size);
        }
        problem(send(262_145).await, 413, "payload_too_large").await;
    }
}
