//! Health and keys.

use reqwest::Method;

use crate::support::App;

#[tokio::test]
async fn health_names_each_dependency() {
    let app = App::start().await;
    let (status, health) = app.anonymous(Method::GET, "/health", None).await;
    assert_eq!((status.as_u16(), health["status"].as_str()), (200, Some("ok")));
    assert_eq!(health["checks"]["postgres"]["status"], "ok");
    assert!(health["checks"]["postgres"]["latency_ms"].is_number());
}

#[tokio::test]
async fn the_jwks_holds_public_keys_only() {
    let app = App::start().await;
    let (status, jwks) = app.anonymous(Method::GET, "/.well-known/jwks.json", None).await;
    assert_eq!(status.as_u16(), 200);
    for key in jwks["keys"].as_array().unwrap() {
        assert_eq!((key["kty"].as_str(), key["alg"].as_str()), (Some("OKP"), Some("EdDSA")));
        assert!(key.get("d").is_none(), "no private part");
    }
}
