//! Browsers of other origins.

use crate::support::setup;

#[tokio::test]
async fn preflights_are_answered_at_the_edge_for_allowed_origins() {
    let setup = setup(&[("CORS__ORIGINS", "[\"https://chat.example\"]")]).await;
    let client = setup.gateway.http2();
    let preflight = async |origin: &str| {
        client
            .request(reqwest::Method::OPTIONS, setup.gateway.url("/api/chat/1/messages"))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization")
            .send()
            .await
            .unwrap()
    };
    let allowed = preflight("https://chat.example").await;
    assert_eq!(allowed.status(), 204);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://chat.example");
    assert!(
        allowed.headers()["access-control-allow-methods"]
            .to_str()
            .unwrap()
            .contains("PATCH")
    );
    assert!(
        allowed.headers()["access-control-allow-headers"]
            .to_str()
            .unwrap()
            .contains("idempotency-key")
    );
    let refused = preflight("https://evil.example").await;
    assert!(!refused.headers().contains_key("access-control-allow-origin"));
    assert!(setup.upstream.bytes().is_empty());

    for (origin, expected) in [
        ("https://chat.example", true),
        ("https://evil.example", false),
        ("null", false),
    ] {
        // Errors carry the fields too, or a browser could not read them.
        let answer = client
            .get(setup.gateway.url("/api/me"))
            .header("origin", origin)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 401);
        assert_eq!(answer.headers().contains_key("access-control-allow-origin"), expected);
        assert!(answer.headers().get_all("vary").iter().any(|value| value == "origin"));
    }
}
