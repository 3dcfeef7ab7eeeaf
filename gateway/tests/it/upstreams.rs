//! What clients see when upstreams fail, and that what must not be repeated is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Gateway, Issuer, Reply, Upstream, eventually, problem, setup};

#[tokio::test]
async fn a_killed_upstream_is_503_and_back_when_it_is_back() {
    let setup = setup(&[]).await;
    let client = setup.gateway.http2();
    let get = async || client.get(setup.gateway.url("/openapi.json")).send().await.unwrap();
    assert_eq!(get().await.status(), 200);
    let address = setup.upstream.address;
    setup.upstream.kill();
    let answer = eventually("the dead upstream to show", async || {
        Some(get().await).filter(|answer| answer.status() != 200)
    })
    .await;
    assert_eq!(answer.headers()["retry-after"], "1");
    problem(answer, 503, "unavailable").await;
    let health = client.get(setup.gateway.url("/health")).send().await.unwrap();
    eventually("health to say down", async || {
        (client.get(setup.gateway.url("/health")).send().await.unwrap().status() == 503).then_some(())
    })
    .await;
    drop(health);

    let _again = Upstream::bind(address, |_| Reply::json(200, &serde_json::json!({}))).await;
    eventually("the upstream to be back", async || {
        (get().await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn broken_and_slow_answers_are_502_and_504() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|request| match request.target() {
        "/api/me" => Reply::BytesAndClose(Vec::new()),
        "/api/channels" => Reply::BytesAndClose(b"HTTP/1.1 200 OK\r\nnonsense".to_vec()),
        "/api/users" => Reply::Silence,
        _ => Reply::json(200, &serde_json::json!({})),
    })
    .await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[("UPSTREAMS__READ_TIMEOUT_MS", "300")]).await;
    let client = gateway.http2();
    let get = async |path: &str| {
        client
            .get(gateway.url(path))
            .bearer_auth(issuer.token(7))
            .send()
            .await
            .unwrap()
    };
    problem(get("/api/me").await, 502, "bad_gateway").await;
    problem(get("/api/channels").await, 502, "bad_gateway").await;
    problem(get("/api/users").await, 504, "gateway_timeout").await;
    assert_eq!(get("/api/chat").await.status(), 200);
}

#[tokio::test]
async fn a_second_upstream_serves_while_the_first_is_dead() {
    let issuer = Issuer::start().await;
    let (dead, alive) = (Upstream::start().await, Upstream::start().await);
    let gateway = Gateway::start(&issuer, &[&dead, &alive], &[]).await;
    let client = gateway.http2();
    dead.kill();
    for number in 0..40 {
        let post = client
            .post(gateway.url("/api/signin"))
            .body(format!("{{\"n\":{number}}}"))
            .send()
            .await
            .unwrap();
        assert_eq!(post.status(), 200, "{number}");
    }
    let seen: Vec<_> = [&dead, &alive]
        .iter()
        .flat_map(|upstream| upstream.requests())
        .map(|request| request.body)
        .collect();
    assert_eq!(seen.len(), 40);
    let mut once = seen.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), 40, "each was sent once");
}

#[tokio::test]
async fn an_unhealthy_upstream_gets_no_requests() {
    let issuer = Issuer::start().await;
    let (sick, well) = (Upstream::start().await, Upstream::start().await);
    let gateway = Gateway::start(&issuer, &[&sick, &well], &[]).await;
    let client = gateway.http2();
    sick.set_healthy(false);
    eventually("the gateway to notice", async || {
        let metrics = gateway.metrics().await;
        metrics
            .lines()
            .any(|line| {
                line.starts_with("gateway_upstreams_healthy")
                    && line.contains("upstream=\"chat\"")
                    && line.ends_with(" 1")
            })
            .then_some(())
    })
    .await;
    let before = sick.requests().len();
    for _ in 0..10 {
        assert_eq!(
            client.get(gateway.url("/openapi.json")).send().await.unwrap().status(),
            200
        );
    }
    assert_eq!(sick.requests().len(), before);
}

#[tokio::test]
async fn a_request_that_was_sent_is_repeated_only_when_it_may_be() {
    let issuer = Issuer::start().await;
    // The second request of a connection finds it closed, as with a stale pooled connection.
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let upstream = Upstream::with(move |_| match seen.fetch_add(1, Ordering::SeqCst) {
        1 => Reply::BytesAndClose(Vec::new()),
        _ => Reply::json(200, &serde_json::json!({})),
    })
    .await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
    let client = gateway.http2();
    let token = issuer.token(7);
    let get = async || {
        client
            .get(gateway.url("/api/me"))
            .bearer_auth(&token)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(get().await, 200);
    assert_eq!(get().await, 200, "a GET is repeated on a fresh connection");
    assert_eq!(count.load(Ordering::SeqCst), 3);

    count.store(1, Ordering::SeqCst);
    let post = client
        .post(gateway.url("/api/chat/1/messages"))
        .bearer_auth(&token)
        .body("{}")
        .send()
        .await
        .unwrap();
    problem(post, 502, "bad_gateway").await;
    assert_eq!(count.load(Ordering::SeqCst), 2, "a POST is not");
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_upstream_request() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|_| Reply::Events(vec![(Duration::from_mins(10), "x".to_owned())])).await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
    let client = gateway.http1();
    let answer = client
        .get(gateway.url("/api/me"))
        .bearer_auth(issuer.token(7))
        .send()
        .await
        .unwrap();
    assert_eq!(upstream.open_streams(), 1);
    drop((answer, client));
    eventually("the upstream request to end", async || {
        (upstream.open_streams() == 0).then_some(())
    })
    .await;
}

/// Idempotent requests succeed while one healthy upstream remains, whatever happens to the other; nothing else is sent twice.
#[tokio::test]
async fn killed_and_flapping_upstreams_cost_no_idempotent_request() {
    let issuer = Issuer::start().await;
    // Breaks off every other answer, and is healthy as far as its check tells.
    let count = AtomicUsize::new(0);
    let flapping = Upstream::with(move |_| match count.fetch_add(1, Ordering::SeqCst) % 2 {
        0 => Reply::BytesAndClose(Vec::new()),
        _ => Reply::json(200, &serde_json::json!({})),
    })
    .await;
    let (well, dying) = (Upstream::start().await, Upstream::start().await);
    // About 28 retries in 120 requests, give or take 5: the budget of a fifth, and ten, would be spent now and then.
    let settings = [("UPSTREAMS__RETRY_PERCENT", "100")];
    let gateway = Gateway::start(&issuer, &[&flapping, &well, &dying], &settings).await;
    let (client, token) = (gateway.http2(), issuer.token(7));
    let ask = async |method: reqwest::Method, path: &str, number: usize| {
        let request = client.request(method, gateway.url(path)).bearer_auth(&token);
        request.body(number.to_string()).send().await.unwrap().status().as_u16()
    };
    for number in 0..120 {
        if number == 40 {
            dying.kill();
        }
        let status = if number % 2 == 0 {
            ask(reqwest::Method::PUT, "/api/chat/1/read", number).await
        } else {
            let request = client.get(gateway.url("/api/me")).bearer_auth(&token);
            request.send().await.unwrap().status().as_u16()
        };
        assert_eq!(status, 200, "{number}");
    }
    let mut sent = Vec::new();
    for number in 1_000..1_060 {
        let status = ask(reqwest::Method::POST, "/api/chat/1/messages", number).await;
        assert!([200, 502].contains(&status), "{status}");
        sent.push(number.to_string().into_bytes());
    }
    let mut seen: Vec<_> = [&flapping, &well]
        .iter()
        .flat_map(|upstream| upstream.requests())
        .filter(|request| request.head.starts_with("POST"))
        .map(|request| request.body)
        .collect();
    seen.sort();
    assert_eq!(seen, sent, "each POST was sent exactly once");
}

#[tokio::test]
async fn an_upstream_that_only_fails_rests_and_comes_back() {
    let issuer = Issuer::start().await;
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let state = Arc::clone(&broken);
    let upstream = Upstream::with(move |_| {
        if state.load(Ordering::SeqCst) {
            Reply::BytesAndClose(Vec::new())
        } else {
            Reply::json(200, &serde_json::json!({}))
        }
    })
    .await;
    let settings = [("UPSTREAMS__BREAK_AFTER", "3"), ("UPSTREAMS__BREAK_MS", "3000")];
    let gateway = Gateway::start(&issuer, &[&upstream], &settings).await;
    let client = gateway.http2();
    let get = async || client.get(gateway.url("/openapi.json")).send().await.unwrap();
    for _ in 0..3 {
        assert_eq!(get().await.status(), 502);
    }
    let (refused, reached) = (get().await, upstream.requests().len());
    assert_eq!(refused.headers()["retry-after"], "1");
    problem(refused, 503, "unavailable").await;
    assert_eq!(reached, 3, "it is left alone");
    let states: serde_json::Value = reqwest::get(format!("http://{}/upstreams", gateway.admin))
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(states["chat"]["upstreams"][0]["health"], "broken");
    broken.store(false, Ordering::SeqCst);
    eventually("it to be tried again", async || {
        (get().await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_answers_failures_gives_way_while_another_one_works() {
    let issuer = Issuer::start().await;
    let failing = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let state = Arc::clone(&failing);
    // Fails fast, which makes it the one with the least to do.
    let sick = Upstream::with(move |_| {
        let status = if state.load(Ordering::SeqCst) { 503 } else { 200 };
        Reply::json(status, &serde_json::json!({}))
    })
    .await;
    let well = Upstream::start().await;
    let settings = [
        ("UPSTREAMS__BREAK_AFTER", "3"),
        ("UPSTREAMS__BREAK_MS", "2000"),
        ("UPSTREAMS__SLOW_START_MS", "0"),
    ];
    let gateway = Gateway::start(&issuer, &[&sick, &well], &settings).await;
    let client = gateway.http2();
    let get = async || {
        client
            .get(gateway.url("/openapi.json"))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    let mut failures = 0;
    for _ in 0..60 {
        failures += usize::from(get().await != 200);
    }
    assert_eq!(failures, 3, "after so many in a row it rests");
    failing.store(false, Ordering::SeqCst);
    let before = sick.requests().len();
    eventually("it to be tried again", async || {
        (get().await == 200 && sick.requests().len() > before).then_some(())
    })
    .await;

    // The only one is not given up: its own answer says more than ours.
    failing.store(true, Ordering::SeqCst);
    let alone = Gateway::start(&issuer, &[&sick], &settings).await;
    let client = alone.http2();
    for _ in 0..10 {
        let answer = client.get(alone.url("/openapi.json")).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "{}");
    }
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_is_followed() {
    let issuer = Issuer::start().await;
    let old = Upstream::start().await;
    let port = old.address.port();
    let new = Upstream::bind(format!("127.0.0.2:{port}").parse().unwrap(), |request| {
        Reply::json(200, &serde_json::json!({"target": request.target()}))
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let write = |addresses: &[&str]| {
        let mut lines = "127.0.0.1 localhost\n".to_owned();
        for address in addresses {
            lines.extend([address, " chat.test\n"]);
        }
        std::fs::write(&hosts, lines).unwrap();
    };
    write(&["127.0.0.1"]);
    let gateway = Gateway::with_hosts(&issuer, &format!("[\"chat.test:{port}\"]"), &hosts).await;
    let client = gateway.http2();
    let get = async || {
        let answer = client.get(gateway.url("/openapi.json")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    get().await;
    assert_eq!((old.requests().len(), new.requests().len()), (1, 0));
    // A headless service has an address for each of its pods.
    write(&["127.0.0.1", "127.0.0.2"]);
    eventually("both to be asked", async || {
        get().await;
        (!new.requests().is_empty()).then_some(())
    })
    .await;
    write(&["127.0.0.2"]);
    let known = async || {
        let url = format!("http://{}/upstreams", gateway.admin);
        let state: serde_json::Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        state["chat"]["upstreams"].as_array().unwrap().len()
    };
    eventually("the old one to be forgotten", async || {
        (known().await == 1).then_some(())
    })
    .await;
    let before = old.requests().len();
    for _ in 0..20 {
        get().await;
    }
    assert_eq!(old.requests().len(), before);
    // A name server without an answer empties no group.
    write(&[]);
    eventually("the failure to show", async || {
        gateway.log().contains("upstream cannot be resolved").then_some(())
    })
    .await;
    get().await;
}

#[tokio::test]
async fn overload_turns_reading_away_first_and_signing_in_last() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|_| Reply::Silence).await;
    let settings = [("UPSTREAMS__REQUESTS_MAX", "10"), ("UPSTREAMS__QUEUE_REQUESTS", "0")];
    let gateway = Gateway::start(&issuer, &[&upstream], &settings).await;
    let (client, token) = (gateway.http2(), issuer.token(7));
    let mut pending = tokio::task::JoinSet::new();
    let mut expected = 0;
    for (method, path, room) in [
        (reqwest::Method::GET, "/api/me", 8),
        (reqwest::Method::POST, "/api/chat", 1),
        (reqwest::Method::POST, "/api/signin", 1),
    ] {
        let request = || client.request(method.clone(), gateway.url(path)).bearer_auth(&token);
        for _ in 0..room {
            pending.spawn(request().send());
        }
        expected += room;
        eventually("the requests to arrive", async || {
            (upstream.requests().len() == expected).then_some(())
        })
        .await;
        let refused = request().send().await.unwrap();
        assert_eq!(refused.headers()["retry-after"], "1");
        problem(refused, 503, "unavailable").await;
    }
    assert_eq!(
        client.get(gateway.url("/health/simple")).send().await.unwrap().status(),
        200
    );
}

#[tokio::test]
async fn streams_of_a_workspace_go_to_one_upstream_and_canaries_get_their_share() {
    let issuer = Issuer::start().await;
    let (one, two) = (Upstream::start().await, Upstream::start().await);
    let weighted = format!(
        "[{{address=\"{}\",weight=9}},{{address=\"{}\",weight=1}}]",
        one.address, two.address
    );
    let settings = [
        ("UPSTREAMS__CHAT", &*weighted),
        ("RATE_LIMITS__STREAM", "{requests=1000,window_seconds=1}"),
    ];
    let gateway = Gateway::start(&issuer, &[&one, &two], &settings).await;
    let (client, token) = (gateway.http2(), issuer.token(7));
    for _ in 0..200 {
        client
            .get(gateway.url("/events"))
            .bearer_auth(&token)
            .send()
            .await
            .unwrap();
        client.get(gateway.url("/openapi.json")).send().await.unwrap();
    }
    let count = |upstream: &Upstream, target: &str| {
        upstream
            .requests()
            .iter()
            .filter(|request| request.target() == target)
            .count()
    };
    let streams = [count(&one, "/events"), count(&two, "/events")];
    assert!(streams.contains(&200), "{streams:?}");
    let canary = count(&two, "/openapi.json");
    assert!((2..60).contains(&canary), "about 20 of 200: {canary}");
}
