//! Event streams: at once, for long, and gone when the client is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::support::raw::Raw;
use crate::support::{Gateway, Issuer, Reply, Upstream, eventually, problem};

async fn streaming(pause: Duration, count: usize) -> (Gateway, Upstream, Issuer) {
    let issuer = Issuer::start().await;
    let upstream =
        Upstream::with(move |_| Reply::Events((0..count).map(|n| (pause, format!("data: {n}\n\n"))).collect())).await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[("LIMITS__WRITE_SECONDS", "1")]).await;
    (gateway, upstream, issuer)
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent() {
    let issuer = Issuer::start().await;
    let permits = Arc::new(Semaphore::new(0));
    let told = Arc::clone(&permits);
    let upstream = Upstream::with(move |_| Reply::EventsWhenTold(Arc::clone(&told))).await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
    for client in [gateway.http1(), gateway.http2()] {
        // The head waits for no event, and no event for another: each is sent when the one before has arrived.
        let request = client.get(gateway.url("/events")).bearer_auth(issuer.token(7));
        let mut answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        for _ in 0..6 {
            permits.add_permits(1);
            let mut event = Vec::new();
            while event.len() < 9 {
                event.extend(answer.chunk().await.unwrap().unwrap());
            }
            assert_eq!(event, b"data: x\n\n");
        }
        drop((answer, client));
        // It would take the next one's permits.
        eventually("the stream to end", async || {
            (upstream.open_streams() == 0).then_some(())
        })
        .await;
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

#[tokio::test]
async fn a_web_socket_passes_both_ways_and_ends_with_its_client() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|_| Reply::Echo).await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
    let mut socket = Raw::connect(&gateway).await;
    let upgrade = format!(
        "GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        issuer.token(7)
    );
    socket.send(upgrade.as_bytes()).await;
    let head = socket.until(b"\r\n\r\n").await;
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    assert_eq!(upstream.open_streams(), 1);
    // Frames of bytes that would be bad requests, one by one and many at once.
    for frame in [&b"\x81\x05hello\n"[..], b"GET / HTTP/1.1\n\n\n", &[0xff; 4_000]] {
        let marked = [frame, b"<end>"].concat();
        socket.send(&marked).await;
        assert_eq!(socket.until(b"<end>").await, marked);
    }
    drop(socket);
    eventually("the upstream to hear of the end", async || {
        (upstream.open_streams() == 0).then_some(())
    })
    .await;

    // Routes that are no streams do not change protocols.
    let mut other = Raw::connect(&gateway).await;
    other.send(upgrade.replace("/events", "/api/me").as_bytes()).await;
    let head = other.until(b"\r\n").await;
    assert!(
        !head.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&head)
    );
}
