//! Event streams: at once, for long, and gone when the client is.

use std::time::{Duration, Instant};

use crate::support::{Gateway, Issuer, Reply, Upstream, eventually, problem};

async fn streaming(pause: Duration, count: usize) -> (Gateway, Upstream, Issuer) {
    let issuer = Issuer::start().await;
    let upstream =
        Upstream::with(move |_| Reply::Events((0..count).map(|n| (pause, format!("data: {n}\n\n"))).collect())).await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[("LIMITS__WRITE_SECONDS", "1")]).await;
    (gateway, upstream, issuer)
}

#[tokio::test]
async fn each_event_arrives_when_it_is_sent() {
    let pause = Duration::from_millis(250);
    let (gateway, _upstream, issuer) = streaming(pause, 6).await;
    for client in [gateway.http1(), gateway.http2()] {
        let started = Instant::now();
        let mut answer = client
            .get(gateway.url("/events"))
            .bearer_auth(issuer.token(7))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        assert!(started.elapsed() < pause, "the head waits for no event");
        let mut seen = Vec::new();
        while let Some(chunk) = answer.chunk().await.unwrap() {
            if chunk.is_empty() {
                continue;
            }
            let number = u32::try_from(seen.len() + 1).unwrap();
            let due = pause * number;
            let late = started.elapsed().saturating_sub(due);
            assert!(late < Duration::from_millis(200), "event {number} came {late:?} late");
            seen.push(String::from_utf8(chunk.to_vec()).unwrap());
        }
        assert_eq!(
            seen.concat(),
            "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\ndata: 5\n\n"
        );
        assert_eq!(seen.len(), 6, "no event waits for another");
    }
}

#[tokio::test]
async fn the_upstream_stream_closes_when_the_client_leaves() {
    let (gateway, upstream, issuer) = streaming(Duration::from_mins(10), 1).await;
    for client in [gateway.http1(), gateway.http2()] {
        let answer = client
            .get(gateway.url("/events"))
            .bearer_auth(issuer.token(7))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(upstream.open_streams(), 1);
        let metrics = gateway.metrics().await;
        assert!(
            metrics
                .lines()
                .any(|line| line.starts_with("gateway_streams") && line.ends_with(" 1")),
            "{metrics}"
        );
        drop((answer, client));
        eventually("the upstream stream to close", async || {
            (upstream.open_streams() == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_ticket_passes_unlogged_and_nothing_is_401() {
    let (gateway, upstream, _issuer) = streaming(Duration::from_millis(1), 1).await;
    let client = gateway.http2();
    let answer = client
        .get(gateway.url("/events?ticket=s3cret-ticket&last_event_id=a.1"))
        .send()
        .await
        .unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap();
    assert_eq!(
        upstream.requests()[0].target(),
        "/events?ticket=s3cret-ticket&last_event_id=a.1"
    );
    gateway.access_line(&id).await;
    assert!(!gateway.log().contains("s3cret-ticket"));
    for path in ["/events", "/events?ticket=", "/events?last_event_id=a.1"] {
        problem(
            client.get(gateway.url(path)).send().await.unwrap(),
            401,
            "unauthenticated",
        )
        .await;
    }
    // A failure is logged by Pingora too.
    upstream.kill();
    let path = "/events?ticket=t1cket-of-nobody";
    let answer = client.get(gateway.url(path)).send().await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answer.status(), 503);
    gateway.access_line(&id).await;
    let log = gateway.log();
    assert!(!log.contains("t1cket-of-nobody"), "{log}");
}
