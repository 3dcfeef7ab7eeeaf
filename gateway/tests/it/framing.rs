//! The refusal table: what is sent, what comes back, that the connection closes, that no byte reaches an upstream.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::support::raw::Raw;
use crate::support::{Gateway, Issuer, Reply, Upstream, eventually, setup};

/// Name, bytes, status, code.
#[rustfmt::skip]
fn table() -> Vec<(&'static str, Vec<u8>, u16, &'static str)> {
    let post = |fields: &str, body: &str| format!("POST /api/signin HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n{body}").into_bytes();
    let get = |line: &str, fields: &str| format!("{line}\r\n{fields}\r\n\r\n").into_bytes();
    let bad = |name, bytes| (name, bytes, 400, "bad_request");
    let smuggled = "0\r\n\r\nGET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    vec![
        bad("both lengths", post("Content-Length: 6\r\nTransfer-Encoding: chunked", smuggled)),
        bad("both lengths, other order", post("Transfer-Encoding: chunked\r\nContent-Length: 6", smuggled)),
        bad("two different lengths", post("Content-Length: 0\r\nContent-Length: 44", smuggled)),
        bad("two equal lengths", post("Content-Length: 2\r\nContent-Length: 2", "{}")),
        bad("length list", post("Content-Length: 2, 2", "{}")),
        bad("signed length", post("Content-Length: +2", "{}")),
        bad("negative length", post("Content-Length: -1", "{}")),
        bad("hexadecimal length", post("Content-Length: 0x2", "{}")),
        bad("length beyond 64 bit", post("Content-Length: 99999999999999999999", "{}")),
        bad("empty length", post("Content-Length:", "{}")),
        bad("space before colon", post("Content-Length : 2", "{}")),
        bad("underscored coding", post("Transfer-Encoding: xchunked", smuggled)),
        bad("coding before chunked", post("Transfer-Encoding: gzip, chunked", smuggled)),
        bad("chunked twice", post("Transfer-Encoding: chunked, chunked", smuggled)),
        bad("two codings", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", smuggled)),
        bad("quoted chunked", post("Transfer-Encoding: \"chunked\"", smuggled)),
        bad("vertical tab before chunked", post("Transfer-Encoding: \x0bchunked", smuggled)),
        bad("folded coding", post("Transfer-Encoding:\r\n chunked", smuggled)),
        bad("chunked in HTTP/1.0", b"POST /api/signin HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
        bad("chunk size not hexadecimal", post("Transfer-Encoding: chunked", "zz\r\n{}\r\n0\r\n\r\n")),
        bad("chunk size signed", post("Transfer-Encoding: chunked", "+2\r\n{}\r\n0\r\n\r\n")),
        bad("chunk size beyond 64 bit", post("Transfer-Encoding: chunked", "fffffffffffffffff\r\n{}\r\n0\r\n\r\n")),
        bad("chunk longer than said", post("Transfer-Encoding: chunked", "2\r\n{}XX\r\n0\r\n\r\n")),
        bad("parameter of chunked", post("Transfer-Encoding: chunked;q=1", smuggled)),
        bad("empty coding after chunked", post("Transfer-Encoding: chunked,", smuggled)),
        bad("chunk size after a space", post("Transfer-Encoding: chunked", " 2\r\n{}\r\n0\r\n\r\n")),
        bad("chunk size before a space", post("Transfer-Encoding: chunked", "2 \r\n{}\r\n0\r\n\r\n")),
        bad("chunk size with a prefix", post("Transfer-Encoding: chunked", "0x2\r\n{}\r\n0\r\n\r\n")),
        bad("chunk size that ends in LF", post("Transfer-Encoding: chunked", "2\n{}\r\n0\r\n\r\n")),
        bad("LF in a chunk extension", post("Transfer-Encoding: chunked", &format!("2;\nxx\r\n{{}}\r\n{smuggled}"))),
        bad("CR in a chunk extension", post("Transfer-Encoding: chunked", "2;a\rb\r\n{}\r\n0\r\n\r\n")),
        bad("NUL in a chunk extension", post("Transfer-Encoding: chunked", "2;a\0\r\n{}\r\n0\r\n\r\n")),
        bad("endless chunk extension", post("Transfer-Encoding: chunked", &format!("2;{}", "a".repeat(20_000)))),
        bad("chunk that ends in LF", post("Transfer-Encoding: chunked", "2\r\n{}\n0\r\n\r\n")),
        bad("chunk without an end", post("Transfer-Encoding: chunked", "2\r\n{}0\r\n\r\n")),
        bad("last chunk that ends in LF", post("Transfer-Encoding: chunked", "0\r\n\n")),
        bad("length in a trailer", post("Transfer-Encoding: chunked", "0\r\nContent-Length: 44\r\n\r\n")),
        bad("coding in a trailer", post("Transfer-Encoding: chunked", "0\r\nTransfer-Encoding: chunked\r\n\r\n")),
        bad("folded trailer", post("Transfer-Encoding: chunked", "0\r\nX: a\r\n b\r\n\r\n")),
        bad("LF in a trailer", post("Transfer-Encoding: chunked", "0\r\nX: a\nY: b\r\n\r\n")),
        bad("request for a trailer", post("Transfer-Encoding: chunked", "0\r\nGET /openapi.json HTTP/1.1\r\n\r\n")),
        bad("bare LF in the head", b"GET /openapi.json HTTP/1.1\nHost: localhost\n\n".to_vec()),
        bad("one bare LF", get("GET /openapi.json HTTP/1.1", "Host: localhost\nX: y")),
        bad("bare CR", get("GET /openapi.json HTTP/1.1", "Host: localhost\rX: y")),
        bad("obs-fold", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nX: a\r\n\tb")),
        bad("NUL in a value", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nX: a\0b")),
        bad("NUL in the target", get("GET /openapi.json\0 HTTP/1.1", "Host: localhost")),
        bad("control byte in a name", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nX\x01: a")),
        bad("space in a name", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nX Y: a")),
        bad("no colon", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nX")),
        bad("no Host", get("GET /openapi.json HTTP/1.1", "X: y")),
        bad("two Hosts", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nHost: localhost")),
        bad("empty Host", get("GET /openapi.json HTTP/1.1", "Host:")),
        bad("Host with user", get("GET /openapi.json HTTP/1.1", "Host: a@localhost")),
        bad("Host with path", get("GET /openapi.json HTTP/1.1", "Host: localhost/x")),
        bad("absolute form", get("GET https://localhost/openapi.json HTTP/1.1", "Host: localhost")),
        bad("absolute form, other host", get("GET https://other/openapi.json HTTP/1.1", "Host: localhost")),
        bad("asterisk", get("OPTIONS * HTTP/1.1", "Host: localhost")),
        bad("absolute form, same host, no Host", get("GET https://localhost/openapi.json HTTP/1.1", "X: y")),
        bad("CONNECT", get("CONNECT localhost:1 HTTP/1.1", "Host: localhost")),
        bad("Host with a list", get("GET /openapi.json HTTP/1.1", "Host: localhost, other")),
        bad("Host with a space", get("GET /openapi.json HTTP/1.1", "Host: localhost other")),
        bad("Host with a bad port", get("GET /openapi.json HTTP/1.1", "Host: localhost:80:80")),
        bad("folded first field", get("GET /openapi.json HTTP/1.1", " Host: localhost\r\nHost: localhost")),
        bad("space in the target", get("GET /openapi.json x HTTP/1.1", "Host: localhost")),
        bad("tab after the method", get("GET\t/openapi.json HTTP/1.1", "Host: localhost")),
        bad("raw UTF-8 in the target", get("GET /\u{e9} HTTP/1.1", "Host: localhost")),
        bad("fragment in the target", get("GET /openapi.json#x HTTP/1.1", "Host: localhost")),
        bad("HTTP/2.0 by HTTP/1", get("GET /openapi.json HTTP/2.0", "Host: localhost")),
        bad("HTTP/0.9", b"GET /openapi.json\r\n\r\n".to_vec()),
        bad("leading empty line", b"\r\nGET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        bad("Connection names a field", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nConnection: close, x-request-id")),
        bad("Connection names Host", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nConnection: host")),
        bad("second Connection names a field", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nConnection: close\r\nConnection: authorization")),
        bad("Connection names Content-Length", post("Connection: content-length\r\nContent-Length: 2", "{}")),
        bad("dot segment", get("GET /x/../openapi.json HTTP/1.1", "Host: localhost")),
        bad("encoded dot segment", get("GET /x/%2e%2e/openapi.json HTTP/1.1", "Host: localhost")),
        bad("encoded slash", get("GET /api%2fchat HTTP/1.1", "Host: localhost")),
        bad("encoded backslash", get("GET /api%5cchat HTTP/1.1", "Host: localhost")),
        bad("encoded NUL", get("GET /openapi.json%00 HTTP/1.1", "Host: localhost")),
        bad("double slash", get("GET //openapi.json HTTP/1.1", "Host: localhost")),
        bad("backslash", get("GET /api\\chat HTTP/1.1", "Host: localhost")),
        ("long target", get(&format!("GET /{} HTTP/1.1", "a".repeat(9_000)), "Host: localhost"), 414, "uri_too_long"),
        ("endless target", format!("GET /{}", "a".repeat(40_000)).into_bytes(), 414, "uri_too_long"),
        ("long field", get("GET /openapi.json HTTP/1.1", &format!("Host: localhost\r\nX: {}", "a".repeat(40_000))), 431, "headers_too_large"),
        ("many fields", get("GET /openapi.json HTTP/1.1", &format!("Host: localhost{}", "\r\nX: y".repeat(120))), 431, "headers_too_large"),
        ("declared body too large", post("Content-Length: 999999", ""), 413, "payload_too_large"),
        ("chunked body too large", post("Transfer-Encoding: chunked", &format!("8000\r\n{}\r\n0\r\n\r\n", "a".repeat(0x8000))), 413, "payload_too_large"),
        ("body on GET", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nContent-Length: 5"), 413, "payload_too_large"),
    ]
}

#[tokio::test]
async fn refused_requests_close_and_no_byte_of_them_reaches_an_upstream() {
    let setup = setup(&[("RATE_LIMITS__AUTH", "{requests=1000000,window_seconds=1}")]).await;
    let mut wrong = Vec::new();
    for (name, bytes, status, code) in table() {
        let mut connection = Raw::connect(&setup.gateway).await;
        connection.send(&bytes).await;
        let answer = connection.answer().await;
        let good = answer.status() == Some(status)
            && answer.body()["code"] == code
            && answer
                .text()
                .lines()
                .filter(|line| line.starts_with("HTTP/1.1 "))
                .count()
                == 1;
        // A path is refused by what it means, not by where the request ends, so its connection may go on.
        let may_go_on = answer.text().contains("unambiguous form");
        if !good || !(answer.closed || may_go_on) {
            wrong.push(format!("{name}: closed {}, {}", answer.closed, answer.text()));
        }
        let leaked = setup.upstream.bytes();
        assert!(
            leaked.is_empty(),
            "{name} reached the upstream: {:?}",
            String::from_utf8_lossy(&leaked)
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn good_requests_reach_the_upstream_once_and_clean() {
    let setup = setup(&[]).await;
    let mut connection = Raw::connect(&setup.gateway).await;
    let sound = [
        ("Content-Length: 2", "{}"),
        ("Transfer-Encoding: chunked", "2\r\n{}\r\n0\r\n\r\n"),
        ("transfer-encoding:\t CHUNKED \t", "02\r\n{}\r\n0\r\n\r\n"),
        // Extensions and trailers are nobody's business behind us.
        (
            "Transfer-Encoding: chunked\r\nTrailer: X-User-Id",
            "1;a=\"b\";c\r\n{\r\n1\r\n}\r\n0;last\r\nX-User-Id: 1\r\nX-Request-Id: trailing-id\r\n\r\n",
        ),
        ("Content-Length: 2\r\nExpect: nothing-known", "{}"),
        (
            "Content-Length: 2\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
            "{}",
        ),
        (
            "Content_Length: 44\r\nTransfer_Encoding: chunked\r\nContent-Length: 2",
            "{}",
        ),
    ];
    for (body_field, body) in sound {
        let request = format!(
            "POST /api/signin HTTP/1.1\r\nHost: localhost\r\n{body_field}\r\nX-User-Id: 1\r\nX-Forwarded-For: 6.6.6.6\r\n\
             X_Forwarded_For: 6.6.6.6\r\nX_User_Id: 1\r\nForwarded: for=6.6.6.6\r\nX-Request-Id: chosen-by-client\r\nTraceparent: 00-{}-{}-01\r\n\r\n{body}",
            "a".repeat(32),
            "b".repeat(16)
        );
        connection.send(request.as_bytes()).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status(), Some(200), "{body_field}: {}", answer.text());
        assert!(!answer.closed, "{body_field}: {}", answer.text());
    }
    let requests = setup.upstream.requests();
    assert_eq!(requests.len(), sound.len());
    assert!(!String::from_utf8_lossy(&setup.upstream.bytes()).contains("trailing-id"));
    for request in requests {
        assert_eq!(request.body, b"{}");
        assert_eq!(request.field("x-forwarded-for"), "127.0.0.1");
        assert_eq!(request.field("x-forwarded-proto"), "https");
        assert_eq!(request.field("host"), "localhost");
        assert_ne!(request.field("x-request-id"), "chosen-by-client");
        assert!(!request.field("traceparent").contains(&"a".repeat(32)));
        for gone in [
            "x-user-id",
            "x_user_id",
            "forwarded",
            "x_forwarded_for",
            "content_length",
            "transfer_encoding",
            "expect",
            "upgrade",
            "http2-settings",
            "connection",
        ] {
            assert!(request.fields(gone).is_empty(), "{}", request.head);
        }
    }
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_no_request() {
    let setup = setup(&[("RATE_LIMITS__SEND", "{requests=1,window_seconds=3600}")]).await;
    let hidden = "GET /openapi.json?hidden HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let token = format!("Authorization: Bearer {}\r\n", setup.issuer.token(7));
    let spent = format!("POST /api/chat HTTP/1.1\r\nHost: localhost\r\n{token}Content-Length: 2\r\n\r\n{{}}");
    let mut first = Raw::connect(&setup.gateway).await;
    first.send(spent.as_bytes()).await;
    assert_eq!(first.answer().await.status(), Some(200));
    for (line, fields, status) in [
        ("POST /nowhere", "", 404),
        ("POST /openapi.json", "", 405),
        ("POST /api/chat", "", 401),
        ("POST /api/chat", &*token, 429),
        ("POST /x/../y", "", 400),
        ("GET /openapi.json", "", 413),
        ("GET /health", "", 200),
    ] {
        for chunked in [false, true] {
            let (length, body) = if chunked {
                (
                    "Transfer-Encoding: chunked".to_owned(),
                    format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len()),
                )
            } else {
                (format!("Content-Length: {}", hidden.len()), hidden.to_owned())
            };
            let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}{length}\r\n\r\n");
            // At once, and after the answer has come.
            for at_once in [true, false] {
                let mut connection = Raw::connect(&setup.gateway).await;
                let mut text = String::new();
                if at_once {
                    connection.send(format!("{head}{body}").as_bytes()).await;
                } else {
                    connection.send(head.as_bytes()).await;
                    text = connection.answer().await.text();
                    connection.send(body.as_bytes()).await;
                }
                text += &connection.answer().await.text();
                let answers: Vec<&str> = text.lines().filter(|line| line.starts_with("HTTP/1.1 ")).collect();
                assert_eq!(answers.len(), 1, "{line} {length} {at_once}: {text}");
                assert!(
                    answers[0].contains(&status.to_string()),
                    "{line} {length} {at_once}: {text}"
                );
            }
        }
    }
    let reached: Vec<String> = setup
        .upstream
        .requests()
        .into_iter()
        .map(|request| request.head)
        .collect();
    assert_eq!(reached.len(), 1, "{reached:?}");
}

#[tokio::test]
async fn an_upgrade_that_is_not_granted_carries_nothing() {
    let setup = setup(&[]).await;
    let hidden = "GET /openapi.json?hidden HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let token = setup.issuer.token(7);
    for (line, upgrade) in [
        ("GET /events", "websocket"),
        ("GET /events", "h2c"),
        ("GET /api/me", "websocket"),
    ] {
        let before = setup.upstream.bytes().len();
        let mut connection = Raw::connect(&setup.gateway).await;
        let request = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: upgrade\r\nUpgrade: {upgrade}\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n{hidden}"
        );
        connection.send(request.as_bytes()).await;
        // The upstream answers 200: no other protocol.
        let text = connection.answer().await.text();
        assert!(text.starts_with("HTTP/1.1 200 "), "{line} {upgrade}: {text}");
        let arrived = String::from_utf8_lossy(&setup.upstream.bytes()[before..]).into_owned();
        // What was hidden is refused with the connection, or a request like any other, checked and with its marks.
        assert_eq!(
            arrived.matches(" HTTP/1.1\r\n").count(),
            arrived.matches("x-request-id: ").count(),
            "{arrived}"
        );
        assert!(!arrived.contains("upgrade: h2c"), "{arrived}");
    }
}

#[tokio::test]
async fn a_slow_head_and_a_slow_body_meet_their_deadlines() {
    let setup = setup(&[("LIMITS__HEADER_TIMEOUT_MS", "300"), ("LIMITS__BODY_TIMEOUT_MS", "300")]).await;
    for start in [
        "GET /openapi.json HT",
        "POST /api/signin HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
    ] {
        let mut connection = Raw::connect(&setup.gateway).await;
        connection.send(start.as_bytes()).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status(), Some(408), "{start}: {}", answer.text());
        assert_eq!(answer.body()["code"], "request_timeout");
        assert!(answer.closed);
    }
    assert!(setup.upstream.bytes().is_empty());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let issuer = Issuer::start().await;
    let pause = Duration::from_millis(150);
    let upstream = Upstream::with(move |request| {
        Reply::Events(vec![(pause, format!("{} {}", request.target(), request.body.len()))])
    })
    .await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
    let get = |name: &str| format!("GET /openapi.json?{name} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let post = "POST /api/signin HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n12345";
    let chunked =
        "POST /api/signin HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let last = "GET /openapi.json?last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut connection = Raw::connect(&gateway).await;
    connection
        .send(format!("{}{post}{chunked}{}", get("one"), get("two")).as_bytes())
        .await;
    // The last one comes while an earlier one is with its upstream.
    eventually("the first request to be on its way", async || {
        (!upstream.requests().is_empty()).then_some(())
    })
    .await;
    connection.send(last.as_bytes()).await;
    let text = connection.rest().await;
    let bodies: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("/openapi.json?") || line.starts_with("/api/signin"))
        .collect();
    assert_eq!(
        bodies,
        [
            "/openapi.json?one 0",
            "/api/signin 5",
            "/api/signin 3",
            "/openapi.json?two 0",
            "/openapi.json?last 0"
        ],
        "{text}"
    );
}

#[tokio::test]
async fn a_pipelined_request_is_checked_like_any_other() {
    let setup = setup(&[]).await;
    let mut connection = Raw::connect(&setup.gateway).await;
    let first = "POST /api/signin HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";
    let second = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n";
    connection.send(format!("{first}{second}").as_bytes()).await;
    let text = connection.rest().await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert_eq!(text.matches("HTTP/1.1 400 ").count(), 1, "{text}");
    assert_eq!(setup.upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_large_body_that_trickles_is_over_when_its_time_is() {
    let setup = setup(&[("LIMITS__BODY_TIMEOUT_MS", "700")]).await;
    let mut connection = Raw::connect(&setup.gateway).await;
    let head = format!(
        "POST /api/chat/1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 100000\r\n\r\n",
        setup.issuer.token(7)
    );
    connection.send(head.as_bytes()).await;
    connection.send(&vec![b'a'; 70_000]).await;
    let started = std::time::Instant::now();
    let mut start = [0; 12];
    loop {
        connection.send(b"a").await;
        let read = tokio::time::timeout(Duration::from_millis(50), connection.stream.read(&mut start)).await;
        if let Ok(read) = read {
            assert_eq!(start[..read.unwrap()], *b"HTTP/1.1 408");
            break;
        }
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "a byte now and then keeps the request open"
        );
    }
    assert!(setup.upstream.requests().is_empty(), "half a request is none");
}

#[tokio::test]
async fn a_large_body_sent_slowly_is_the_clients_fault() {
    let setup = setup(&[("LIMITS__BODY_TIMEOUT_MS", "400")]).await;
    let mut connection = Raw::connect(&setup.gateway).await;
    let head = format!(
        "POST /api/chat/1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 100000\r\n\r\n",
        setup.issuer.token(7)
    );
    connection.send(head.as_bytes()).await;
    connection.send(&vec![b'a'; 70_000]).await;
    let answer = connection.answer().await;
    assert_eq!(answer.status(), Some(408), "{}", answer.text());
    assert!(answer.closed);
    assert!(setup.upstream.requests().is_empty(), "half a request is none");
}
