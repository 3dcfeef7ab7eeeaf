//! What exists, for whom, and with which methods; the plain listener; what never is public.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Gateway, Issuer, Reply, Upstream, eventually, problem, setup};

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
async fn pages_of_a_web_client_come_from_their_own_upstream() {
    let issuer = Issuer::start().await;
    let chat = Upstream::start().await;
    let web = Upstream::with(|request| {
        let fields = match request.target() {
            "/own" => "content-security-policy: default-src 'self'\r\n",
            _ => "",
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n{fields}content-length: 6\r\n\r\n<html>");
        Reply::Bytes(head.into_bytes())
    })
    .await;
    let pages = format!("[\"{}\"]", web.address);
    let gateway = Gateway::start(&issuer, &[&chat], &[("UPSTREAMS__WEB", &pages)]).await;
    let client = gateway.http2();
    let get = async |path: &str| client.get(gateway.url(path)).send().await.unwrap();
    for path in ["/", "/index.html", "/rooms/7?x=1", "/.well-known/security.txt", "/own"] {
        let answer = get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        let expected = if path == "/own" {
            "default-src 'self'"
        } else {
            "frame-ancestors 'none'"
        };
        assert!(policy.starts_with(expected), "{path}: {policy}");
        assert!(answer.headers().contains_key("strict-transport-security"));
        assert_eq!(answer.text().await.unwrap(), "<html>");
    }
    // Our own paths are not pages, whatever is wrong with them.
    for path in ["/api", "/api/nothing", "/docs/a/b", "/events/x/y", "/health/x"] {
        problem(get(path).await, 404, "not_found").await;
    }
    let post = client.post(gateway.url("/index.html")).body("{}").send().await.unwrap();
    assert_eq!(post.headers()["allow"], "GET, HEAD, OPTIONS");
    problem(post, 405, "method_not_allowed").await;
    assert!(chat.bytes().is_empty());
    let health: serde_json::Value = get("/health").await.json().await.unwrap();
    assert_eq!(health["checks"]["web"]["status"], "ok");
    web.kill();
    let down: serde_json::Value = eventually("the pages to be away", async || {
        let health: serde_json::Value = get("/health").await.json().await.ok()?;
        (health["checks"]["web"]["status"] != "ok").then_some(health)
    })
    .await;
    assert_eq!(down["status"], "degraded");
    problem(get("/").await, 503, "unavailable").await;
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

/// The whole answer to `request` at the plain port.
async fn plain(mut tcp: TcpStream, request: &str) -> String {
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = tcp.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn the_plain_listener_refuses_with_problems_and_is_nobodys_alone() {
    let setup = setup(&[("HOSTS", "[\"localhost\"]")]).await;
    let connect = async || TcpStream::connect(setup.gateway.http).await.unwrap();
    for (request, status, code) in [
        ("GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n", 421, "misdirected_request"),
        ("GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        ("GET /\n\n", 400, "bad_request"),
        (
            "GET http://elsewhere/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
            400,
            "bad_request",
        ),
    ] {
        let answer = plain(connect().await, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {answer}"
        );
        assert!(
            answer.contains("content-type: application/problem+json\r\n"),
            "{answer}"
        );
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{answer}");
    }
    // Silent connections of one address, as many as there is room for in all.
    let mut silent = Vec::new();
    for _ in 0..1_100 {
        silent.push(connect().await);
    }
    let other = TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let other = other.connect(setup.gateway.http).await.unwrap();
    let answer = plain(other, "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
}

#[tokio::test]
async fn the_plain_listener_reads_the_proxy_protocol_too() {
    let settings = [
        ("PROXY_PROTOCOL", "[\"127.0.0.0/8\"]"),
        ("ADDRESSES__DENY", "[\"192.0.2.7/32\"]"),
    ];
    let setup = setup(&settings).await;
    let get = "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (client, answered) in [("192.0.2.8", true), ("192.0.2.7", false)] {
        let tcp = TcpStream::connect(setup.gateway.http).await.unwrap();
        let answer = plain(tcp, &format!("PROXY TCP4 {client} 198.51.100.1 5555 80\r\n{get}")).await;
        assert_eq!(answer.starts_with("HTTP/1.1 308 "), answered, "{client}: {answer}");
    }
    let tcp = TcpStream::connect(setup.gateway.http).await.unwrap();
    assert_eq!(plain(tcp, get).await, "", "from there a header must come");
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
