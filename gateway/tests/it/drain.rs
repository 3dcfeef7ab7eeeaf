//! From SIGTERM to exit code 0, without cutting anybody off who can be waited for.

use std::time::{Duration, Instant};

use crate::support::{Gateway, Issuer, Reply, Upstream, eventually};

#[tokio::test]
async fn requests_in_flight_end_and_streams_are_closed() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|request| match request.target() {
        "/events" => Reply::Events(vec![(Duration::from_mins(10), String::new())]),
        _ => Reply::Events(vec![(Duration::from_millis(800), "whole".to_owned())]),
    })
    .await;
    let settings = [
        ("DRAIN__DELAY_MS", "300"),
        ("DRAIN__TIMEOUT_MS", "10000"),
        ("DRAIN__STREAM_SPREAD_MS", "200"),
    ];
    let mut gateway = Gateway::start(&issuer, &[&upstream], &settings).await;
    let token = issuer.token(7);
    let (one, two) = (gateway.http1(), gateway.http2());
    let stream = one
        .get(gateway.url("/events"))
        .bearer_auth(&token)
        .send()
        .await
        .unwrap();
    let slow = two
        .get(gateway.url("/api/me"))
        .bearer_auth(&token)
        .send()
        .await
        .unwrap();

    let started = Instant::now();
    gateway.signal("SIGTERM");
    eventually("readiness to say no", async || {
        let answer = reqwest::get(format!("http://{}/ready", gateway.admin)).await.ok()?;
        (answer.status() == 503).then_some(())
    })
    .await;
    assert_eq!(
        slow.text().await.unwrap(),
        "whole",
        "a request in flight ends as if nothing were"
    );
    // The stream has no natural end; it is closed so that the client resumes elsewhere.
    let _ = stream.bytes().await;
    assert_eq!(gateway.exit_code().await, 0);
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_eq!(upstream.open_streams(), 0);
}

#[tokio::test]
async fn an_idle_gateway_ends_at_once() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
    let client = gateway.http2();
    // An idle kept connection holds nobody up.
    assert_eq!(
        client.get(gateway.url("/health/simple")).send().await.unwrap().status(),
        200
    );
    let started = Instant::now();
    gateway.signal("SIGTERM");
    assert_eq!(gateway.exit_code().await, 0);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn answers_give_up_their_connection_before_it_is_closed() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&issuer, &[&upstream], &[("DRAIN__DELAY_MS", "2000")]).await;
    let client = gateway.http1();
    let get = async || client.get(gateway.url("/openapi.json")).send().await.unwrap();
    let kept = get().await;
    assert_eq!(
        (kept.status().as_u16(), &kept.headers()["connection"]),
        (200, &"keep-alive".parse().unwrap())
    );
    let _ = kept.bytes().await;
    gateway.signal("SIGTERM");
    eventually("readiness to say no", async || {
        let answer = reqwest::get(format!("http://{}/ready", gateway.admin)).await.ok()?;
        (answer.status() == 503).then_some(())
    })
    .await;
    let last = get().await;
    assert_eq!(last.status(), 200);
    assert_eq!(last.headers()["connection"], "close");
    let _ = last.bytes().await;
    assert_eq!(gateway.exit_code().await, 0);
}

#[tokio::test]
async fn an_interrupt_waits_for_nobody() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|_| Reply::Silence).await;
    let mut gateway = Gateway::start(&issuer, &[&upstream], &[("DRAIN__DELAY_MS", "60000")]).await;
    let pending = gateway.http1().get(gateway.url("/openapi.json")).send();
    let pending = tokio::spawn(pending);
    eventually("the request to be on its way", async || {
        (upstream.requests().len() == 1).then_some(())
    })
    .await;
    let started = Instant::now();
    gateway.signal("SIGINT");
    assert_eq!(gateway.exit_code().await, 0);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(pending.await.unwrap().is_err());
}

#[tokio::test]
async fn a_slow_request_beside_a_stream_of_the_same_connection_is_not_cut() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|request| match request.target() {
        "/events" => Reply::Events(vec![(Duration::from_mins(10), String::new())]),
        _ => Reply::Events(vec![(Duration::from_millis(1_500), "whole".to_owned())]),
    })
    .await;
    let mut gateway = Gateway::start(&issuer, &[&upstream], &[("DRAIN__STREAM_SPREAD_MS", "0")]).await;
    let (client, token) = (gateway.http2(), issuer.token(7));
    let get = async |path| client.get(gateway.url(path)).bearer_auth(&token).send().await.unwrap();
    let stream = get("/events").await;
    let slow = get("/api/me").await;
    let connections = gateway.metrics().await;
    assert!(
        connections
            .lines()
            .any(|line| line.starts_with("gateway_connections{") && line.ends_with(" 1")),
        "both came by one connection: {connections}"
    );
    gateway.signal("SIGTERM");
    assert_eq!(slow.text().await.unwrap(), "whole");
    let _ = stream.bytes().await;
    assert_eq!(gateway.exit_code().await, 0);
}
