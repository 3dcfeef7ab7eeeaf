//! A new configuration under load, and what the admin listener tells of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::support::{Gateway, Issuer, Reply, Upstream, eventually, problem};

async fn admin(gateway: &Gateway, path: &str) -> reqwest::Response {
    reqwest::get(format!("http://{}{path}", gateway.admin)).await.unwrap()
}

async fn named(name: &'static str) -> Upstream {
    Upstream::with(move |_| Reply::json(200, &serde_json::json!({ "upstream": name }))).await
}

/// The settings besides the upstreams, as a file.
fn file(chat: &Upstream, rest: &str) -> String {
    format!("{rest}\n[upstreams]\nchat = [\"{}\"]\n", chat.address)
}

#[tokio::test]
async fn a_reload_under_load_fails_no_request_and_a_bad_one_changes_nothing() {
    let issuer = Issuer::start().await;
    let (old, new) = (named("old").await, named("new").await);
    let gateway = Gateway::with_file(
        &issuer,
        &file(&old, ""),
        &[("RATE_LIMITS__READ", "{requests=1000000,window_seconds=1}")],
    )
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU32::new(0));
    let mut load = tokio::task::JoinSet::new();
    for client in [gateway.http1(), gateway.http2(), gateway.http2()] {
        let (url, stop, served) = (gateway.url("/openapi.json"), Arc::clone(&stop), Arc::clone(&served));
        load.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = client.get(&url).send().await.unwrap();
                assert_eq!(answer.status(), 200);
                answer.bytes().await.unwrap();
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for round in 0..6 {
        let before = served.load(Ordering::Relaxed);
        eventually("load", async || {
            (served.load(Ordering::Relaxed) > before + 50).then_some(())
        })
        .await;
        let (upstream, name) = if round % 2 == 0 { (&new, "new") } else { (&old, "old") };
        gateway.write_file(&file(upstream, ""));
        gateway.signal("SIGHUP");
        let client = gateway.http2();
        eventually("the reload", async || {
            let answer = client.get(gateway.url("/docs")).send().await.unwrap();
            let body: serde_json::Value = answer.json().await.unwrap();
            (body["upstream"] == name).then_some(())
        })
        .await;
    }
    gateway.write_file(&file(&new, "hosts = [\"not a name\"]"));
    gateway.signal("SIGHUP");
    eventually("the fault to show", async || {
        let metrics = gateway.metrics().await;
        metrics
            .lines()
            .any(|line| line.starts_with("gateway_config_good") && line.ends_with(" 0"))
            .then_some(())
    })
    .await;
    assert!(gateway.log().contains("is not a host name"));
    let client = gateway.http2();
    let body: serde_json::Value = client
        .get(gateway.url("/docs"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(body["upstream"], "old");
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_changed_file_is_noticed_and_open_connections_heed_it() {
    let issuer = Issuer::start().await;
    let chat = named("chat").await;
    let gateway = Gateway::with_file(&issuer, &file(&chat, ""), &[]).await;
    let client = gateway.http2();
    let get = async || client.get(gateway.url("/openapi.json")).send().await.unwrap();
    assert_eq!(get().await.status(), 200);
    gateway.write_file(&file(&chat, "hosts = [\"chat.example.org\"]"));
    // The same connection: clients keep theirs for hours.
    let answer = eventually("the host list", async || {
        Some(get().await).filter(|answer| answer.status() != 200)
    })
    .await;
    problem(answer, 421, "misdirected_request").await;
    assert_eq!(
        chat.requests()
            .iter()
            .filter(|request| request.target() == "/openapi.json")
            .count(),
        chat.requests().len()
    );

    gateway.write_file(&file(&chat, "[addresses]\ndeny = [\"127.0.0.0/8\"]"));
    let answer = eventually("the address list", async || {
        Some(get().await).filter(|answer| answer.status() == 403)
    })
    .await;
    problem(answer, 403, "forbidden").await;
    let refused = gateway.http2().get(gateway.url("/openapi.json")).send().await;
    assert!(refused.is_err(), "a new connection is not taken");
}

#[tokio::test]
async fn the_admin_listener_tells_routes_upstreams_and_the_configuration() {
    let issuer = Issuer::start().await;
    let chat = named("chat").await;
    let settings = [
        ("NATS__URL", "nats://someone:s3cret-in-url@127.0.0.1:9"),
        ("NATS__USER", "gateway"),
        ("NATS__PASSWORD", "s3cret-passw0rd"),
    ];
    let gateway = Gateway::with_file(&issuer, &file(&chat, ""), &settings).await;
    let routes: Vec<serde_json::Value> = admin(&gateway, "/routes").await.json().await.unwrap();
    let send = routes
        .iter()
        .find(|route| route["path"] == "/api/chat/{id}/messages" && route["method"] == "POST");
    assert_eq!(send.unwrap()["class"], "send");
    let upstreams: serde_json::Value = admin(&gateway, "/upstreams").await.json().await.unwrap();
    assert_eq!(upstreams["chat"]["upstreams"][0]["address"], chat.address.to_string());
    assert_eq!(upstreams["chat"]["upstreams"][0]["health"], "healthy");
    let config = admin(&gateway, "/config").await.text().await.unwrap();
    assert!(config.contains("uri_bytes: 8192"), "{config}");
    assert!(!config.contains("s3cret"), "{config}");

    gateway.write_file(&file(&chat, "[log]\nfilter = \"warn\""));
    let reload = reqwest::Client::new()
        .post(format!("http://{}/reload", gateway.admin))
        .send()
        .await
        .unwrap();
    let answer: serde_json::Value = reload.json().await.unwrap();
    assert_eq!(answer["reloaded"], true, "{answer}");
    gateway.write_file("limits = 3");
    let reload = reqwest::Client::new()
        .post(format!("http://{}/reload", gateway.admin))
        .send()
        .await
        .unwrap();
    assert_eq!(reload.status(), 422);
    for path in ["/routes", "/upstreams", "/config", "/reload", "/metrics"] {
        let public = gateway.http2().get(gateway.url(path)).send().await.unwrap();
        assert_eq!(public.status(), 404, "{path}");
    }
}
