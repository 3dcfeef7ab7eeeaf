//! The refusal table: what is sent, what comes back, that the connection closes, that no byte reaches an upstream.

use std::time::Duration;

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
        bad("CONNECT", get("CONNECT localhost:1 HTTP/1.1", "Host: localhost")),
        bad("space in the target", get("GET /openapi.json x HTTP/1.1", "Host: localhost")),
        bad("tab after the method", get("GET\t/openapi.json HTTP/1.1", "Host: localhost")),
        bad("raw UTF-8 in the target", get("GET /\u{e9} HTTP/1.1", "Host: localhost")),
        bad("fragment in the target", get("GET /openapi.json#x HTTP/1.1", "Host: localhost")),
        bad("HTTP/2.0 by HTTP/1", get("GET /openapi.json HTTP/2.0", "Host: localhost")),
        bad("HTTP/0.9", b"GET /openapi.json\r\n\r\n".to_vec()),
        bad("leading empty line", b"\r\nGET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        bad("Connection names a field", get("GET /openapi.json HTTP/1.1", "Host: localhost\r\nConnection: close, x-request-id")),
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
    for (body_field, body) in [
        ("Content-Length: 2", "{}"),
        ("Transfer-Encoding: chunked", "2\r\n{}\r\n0\r\n\r\n"),
    ] {
        let request = format!(
            "POST /api/signin HTTP/1.1\r\nHost: localhost\r\n{body_field}\r\nX-User-Id: 1\r\nX-Forwarded-For: 6.6.6.6\r\n\
             X_Forwarded_For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Request-Id: chosen-by-client\r\nTraceparent: 00-{}-{}-01\r\n\r\n{body}",
            "a".repeat(32),
            "b".repeat(16)
        );
        connection.send(request.as_bytes()).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status(), Some(200), "{}", answer.text());
        assert!(!answer.closed);
    }
    let requests = setup.upstream.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!(request.body, b"{}");
        assert_eq!(request.field("x-forwarded-for"), "127.0.0.1");
        assert_eq!(request.field("x-forwarded-proto"), "https");
        assert_eq!(request.field("host"), "localhost");
        assert_ne!(request.field("x-request-id"), "chosen-by-client");
        assert!(!request.field("traceparent").contains(&"a".repeat(32)));
        for gone in ["x-user-id", "forwarded", "x_forwarded_for"] {
            assert!(request.fields(gone).is_empty(), "{}", request.head);
        }
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
    let last = "GET /openapi.json?last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut connection = Raw::connect(&gateway).await;
    connection
        .send(format!("{}{post}{}", get("one"), get("two")).as_bytes())
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
