//! From SIGTERM to exit code 0, without cutting anybody off who can be waited for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

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

/// Passes connections on to whichever gateway is ready, as a load balancer does; returns its address.
async fn balance(gateways: [(SocketAddr, SocketAddr); 2]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                for (https, admin) in gateways {
                    let ready = reqwest::get(format!("http://{admin}/ready")).await;
                    if !ready.is_ok_and(|answer| answer.status() == 200) {
                        continue;
                    }
                    if let Ok(mut gateway) = TcpStream::connect(https).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut gateway).await;
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Kept connections and new ones, requests that must not be repeated: none of them fails while one of two gateways drains.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_fails_no_request() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let settings = [
        ("DRAIN__DELAY_MS", "500"),
        ("RATE_LIMITS__AUTH", "{requests=1000000,window_seconds=1}"),
    ];
    let mut leaving = Gateway::start(&issuer, &[&upstream], &settings).await;
    let staying = Gateway::start(&issuer, &[&upstream], &settings).await;
    let address = balance([(leaving.https, leaving.admin), (staying.https, staying.admin)]).await;
    let url = format!("https://localhost:{}/api/signin", address.port());
    let authorities: Vec<_> = [&leaving, &staying]
        .map(|gateway| std::fs::read(gateway.folder.path().join("ca.pem")).unwrap())
        .map(|ca| reqwest::Certificate::from_pem(&ca).unwrap())
        .into();
    let stop = CancellationToken::new();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut load = tokio::task::JoinSet::new();
    for number in 0..6 {
        let client = leaving.client(|builder| {
            let builder = builder.tls_certs_only(authorities.clone());
            match number % 3 {
                0 => builder.http1_only(),
                1 => builder.http1_only().pool_max_idle_per_host(0),
                _ => builder,
            }
        });
        let (url, stop, answered) = (url.clone(), stop.clone(), Arc::clone(&answered));
        load.spawn(async move {
            while !stop.is_cancelled() {
                let answer = client.post(&url).body("{}").send().await;
                let answer = answer.unwrap_or_else(|error| panic!("client {number}: {error:?}"));
                assert_eq!(answer.status(), 200);
                answer.bytes().await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let progress = async |more: usize| {
        let before = answered.load(Ordering::Relaxed);
        eventually("answers", async || {
            (answered.load(Ordering::Relaxed) >= before + more).then_some(())
        })
        .await;
    };
    progress(100).await;
    leaving.signal("SIGTERM");
    assert_eq!(leaving.exit_code().await, 0);
    progress(100).await;
    stop.cancel();
    while let Some(done) = load.join_next().await {
        done.unwrap();
    }
    assert_eq!(
        upstream.requests().len(),
        answered.load(Ordering::Relaxed),
        "each was sent once"
    );
}
