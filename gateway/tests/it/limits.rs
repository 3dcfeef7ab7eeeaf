//! Limits of rates, connections and concurrent requests through the whole gateway.

use futures::future::join_all;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::support::http2::{self, Http2, frame};
use crate::support::raw::Raw;
use crate::support::{Gateway, Issuer, Reply, Upstream, eventually, problem, setup};

#[tokio::test]
async fn exactly_the_quota_passes_and_the_fields_say_so() {
    let setup = setup(&[("RATE_LIMITS__READ", "{requests=20,window_seconds=3600}")]).await;
    // Several connections, which different threads serve.
    let clients: Vec<_> = (0..10).map(|_| setup.gateway.http2()).collect();
    let client = &clients[0];
    let noisy = setup.issuer.token(7);
    let url = setup.gateway.url("/api/me");
    let ask = |number: usize| clients[number % 10].get(&url).bearer_auth(&noisy).send();
    let answers = join_all((0..50).map(ask)).await;
    let (mut passed, mut limited) = (0, 0);
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!(answer.headers()["ratelimit-policy"], "\"read\";q=20;w=3600");
        if answer.status() == 200 {
            passed += 1;
        } else {
            limited += 1;
            let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((170..=180).contains(&wait), "{wait}");
            let state = answer.headers()["ratelimit"].to_str().unwrap().to_owned();
            assert_eq!(state, format!("\"read\";r=0;t={wait}"));
            let body = problem(answer, 429, "rate_limited").await;
            assert_eq!(body["retry_after"], wait);
        }
    }
    assert_eq!((passed, limited), (20, 30));
    assert_eq!(setup.upstream.requests().len(), 20);

    // Another user, another session of whom nobody has heard, is not touched.
    let quiet = client
        .get(&url)
        .bearer_auth(setup.issuer.token(8))
        .send()
        .await
        .unwrap();
    assert_eq!(quiet.status(), 200);
    // The same user by another token is the same user.
    let again = client
        .get(&url)
        .bearer_auth(setup.issuer.token(7))
        .send()
        .await
        .unwrap();
    assert_eq!(again.status(), 429);
}

#[tokio::test]
async fn another_spelling_of_a_request_is_no_other_quota() {
    let setup = setup(&[("RATE_LIMITS__READ", "{requests=6,window_seconds=3600}")]).await;
    let client = setup.gateway.http2();
    let token = setup.issuer.token(7);
    let mut statuses = Vec::new();
    for (method, path) in [
        ("GET", "/api/chat/1"),
        ("HEAD", "/api/chat/1"),
        ("GET", "/api/chat/%31"),
        ("GET", "/api/chat/1?x=1"),
        ("GET", "/api/chat/2/messages"),
        ("GET", "/api/me"),
        ("GET", "/api/users?"),
    ] {
        let method = method.parse().unwrap();
        // What a client claims about itself makes it nobody else.
        let request = client
            .request(method, setup.gateway.url(path))
            .header("x-forwarded-for", "192.0.2.9");
        let request = request
            .header("x-user-id", "9")
            .header("authorization", format!("bEaReR  {token}"));
        statuses.push(request.send().await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 429]);
}

#[tokio::test]
async fn with_the_other_replicas_out_of_reach_limits_fail_open_or_shut_as_configured() {
    let folder = tempfile::tempdir().unwrap();
    let mut nats = crate::support::start_nats(folder.path().to_owned()).await;
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let url = nats.url();
    let common = [("NATS__URL", &*url), ("NATS__USER", "gateway"), ("NATS__PASSWORD", "g")];
    let shut = [common.as_slice(), &[("RATE_LIMITS__FAIL_OPEN", "false")]].concat();
    let open = Gateway::start(&issuer, &[&upstream], &common).await;
    let shut = Gateway::start(&issuer, &[&upstream], &shut).await;
    let get = async |gateway: &Gateway, path: &str| {
        let request = gateway.http2().get(gateway.url(path)).bearer_auth(issuer.token(7));
        request.send().await.unwrap()
    };
    let until = async |status: u16| {
        eventually("the replicas' exchange to be there or away", async || {
            Some(get(&shut, "/api/me").await).filter(|answer| answer.status() == status)
        })
        .await
    };
    until(200).await;
    nats.kill();
    let refused = until(503).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    problem(refused, 503, "unavailable").await;
    assert_eq!(
        get(&shut, "/health/simple").await.status(),
        200,
        "health is never limited"
    );
    assert_eq!(get(&open, "/api/me").await.status(), 200);
    let _nats = tokio::task::spawn_blocking(move || nats.restart().map(|()| nats))
        .await
        .unwrap()
        .unwrap();
    until(200).await;
}

#[tokio::test]
async fn strangers_are_limited_by_address() {
    let setup = setup(&[
        ("RATE_LIMITS__AUTH", "{requests=3,window_seconds=3600}"),
        ("TRUSTED_PROXIES", "[\"127.0.0.0/8\"]"),
    ])
    .await;
    let client = setup.gateway.http2();
    let sign_in = async |address: &str| {
        let request = client
            .post(setup.gateway.url("/api/signin"))
            .header("x-forwarded-for", address);
        request.body("{}").send().await.unwrap().status().as_u16()
    };
    for _ in 0..3 {
        assert_eq!(sign_in("2001:db8::1").await, 200);
    }
    assert_eq!(sign_in("2001:db8::2").await, 429, "the same /64");
    assert_eq!(sign_in("2001:db8:0:1::1").await, 200, "another /64");
    assert_eq!(sign_in("192.0.2.1").await, 200);
}

#[tokio::test]
async fn guessing_tokens_is_limited_and_good_tokens_at_the_same_address_are_not() {
    let setup = setup(&[("RATE_LIMITS__REFUSED", "{requests=3,window_seconds=3600}")]).await;
    let client = setup.gateway.http2();
    let get = async |token: &str| {
        let request = client.get(setup.gateway.url("/api/me")).bearer_auth(token);
        request.send().await.unwrap()
    };
    for _ in 0..3 {
        assert_eq!(get("guess").await.status(), 401);
    }
    let refused = get("guess").await;
    assert_eq!(refused.headers()["retry-after"], "1200");
    problem(refused, 429, "rate_limited").await;
    assert_eq!(get(&setup.issuer.token(7)).await.status(), 200);
}

#[tokio::test]
async fn users_of_one_workspace_share_its_limit() {
    let setup = setup(&[("RATE_LIMITS__WORKSPACE", "{requests=2,window_seconds=3600}")]).await;
    let client = setup.gateway.http2();
    let mut statuses = Vec::new();
    for user in [7, 8, 9] {
        let request = client
            .get(setup.gateway.url("/api/me"))
            .bearer_auth(setup.issuer.token(user));
        statuses.push(request.send().await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 429]);
}

/// Whether the gateway takes this connection as far as to wait for a handshake.
async fn is_taken(gateway: &Gateway) -> bool {
    let mut tcp = TcpStream::connect(gateway.https).await.unwrap();
    // A refused connection is closed at once; a taken one waits for us to speak.
    let read = tokio::time::timeout(std::time::Duration::from_millis(300), tcp.read(&mut [0; 1])).await;
    read.is_err()
}

#[tokio::test]
async fn connections_are_counted_in_all_and_by_address() {
    for (setting, limit) in [
        ("LIMITS__CONNECTIONS", "all"),
        ("LIMITS__CONNECTIONS_PER_ADDRESS", "address"),
    ] {
        let setup = setup(&[(setting, "2")]).await;
        let (one, two) = (Raw::connect(&setup.gateway).await, Raw::connect(&setup.gateway).await);
        assert!(!is_taken(&setup.gateway).await, "{limit}");
        let metrics = setup.gateway.metrics().await;
        assert!(
            metrics
                .lines()
                .any(|line| line.starts_with("gateway_connections_refused")
                    && line.contains(&format!("limit=\"{limit}\""))),
            "{metrics}"
        );
        drop(one);
        eventually("room for another", async || {
            is_taken(&setup.gateway).await.then_some(())
        })
        .await;
        drop(two);
    }
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let setup = setup(&[("LIMITS__IDLE_SECONDS", "1")]).await;
    let mut one = Raw::connect(&setup.gateway).await;
    one.send(b"GET /health/simple HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    assert!(one.rest().await.starts_with("HTTP/1.1 200"));
    let mut two = Http2::connect(&setup.gateway).await;
    let head = http2::request("GET", "/health/simple", &[]);
    two.send(&frame(http2::HEADERS, http2::END_HEADERS | http2::END_STREAM, 1, &head))
        .await;
    assert!(two.find(|frame| frame.kind == http2::HEADERS).await.is_some());
    assert!(
        two.find(|frame| frame.kind == http2::GOAWAY && frame.error() != 0)
            .await
            .is_none()
    );
}

#[tokio::test]
async fn concurrent_requests_of_one_http2_connection_are_bounded() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|_| Reply::Silence).await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[("LIMITS__HTTP2_STREAMS", "2")]).await;
    let mut connection = Http2::connect(&gateway).await;
    let settings = connection.find(|frame| frame.kind == http2::SETTINGS).await.unwrap();
    let announced = settings.payload.chunks(6).any(|setting| setting == [0, 3, 0, 0, 0, 2]);
    assert!(announced, "{settings:?}");
    let head = http2::request("GET", "/openapi.json", &[]);
    for stream in [1, 3, 5] {
        connection
            .send(&frame(
                http2::HEADERS,
                http2::END_HEADERS | http2::END_STREAM,
                stream,
                &head,
            ))
            .await;
    }
    let refused = connection.find(|frame| frame.kind == http2::RST_STREAM).await.unwrap();
    assert_eq!((refused.stream, refused.error()), (5, 7), "REFUSED_STREAM");
    eventually("the others to arrive", async || {
        (upstream.requests().len() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn replicas_share_one_quota() {
    let folder = tempfile::tempdir().unwrap();
    let nats = crate::support::start_nats(folder.path().to_owned()).await;
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let url = nats.url();
    let settings = [
        ("NATS__URL", &*url),
        ("NATS__USER", "gateway"),
        ("NATS__PASSWORD", "g"),
        ("RATE_LIMITS__READ", "{requests=30,window_seconds=3600}"),
    ];
    let one = Gateway::start(&issuer, &[&upstream], &settings).await;
    let other = Gateway::start(&issuer, &[&upstream], &settings).await;
    let get = async |gateway: &Gateway, user| {
        let request = gateway
            .http2()
            .get(gateway.url("/api/me"))
            .bearer_auth(issuer.token(user));
        let answer = request.send().await.unwrap();
        let left = answer.headers()["ratelimit"].to_str().unwrap().to_owned();
        (answer.status().as_u16(), left)
    };
    // Both are connected once one hears of what the other let through.
    for (gateway, heard) in [(&one, &other), (&other, &one)] {
        eventually("the replicas to hear each other", async || {
            get(gateway, 1).await;
            let (_, left) = get(heard, 1).await;
            let left: u32 = left.split(['=', ';']).nth(2)?.parse().ok()?;
            (left < 27).then_some(())
        })
        .await;
    }
    let mut passed = 0;
    while get(&one, 7).await.0 == 200 {
        passed += 1;
    }
    assert_eq!(passed, 30);
    eventually("the other replica to know", async || {
        (get(&other, 7).await.0 == 429).then_some(())
    })
    .await;
    assert_eq!(get(&other, 8).await.0, 200);
}
