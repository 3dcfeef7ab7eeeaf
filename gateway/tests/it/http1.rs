//! HTTP/1 clients, byte by byte: what an old one gets, how an answer ends that breaks off, and requests of both kinds on one connection.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::support::raw::Raw;
use crate::support::{Gateway, Issuer, Reply, Upstream, setup};

async fn answering(reply: Reply) -> (Gateway, Upstream) {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(move |_| reply.clone()).await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
    (gateway, upstream)
}

/// What the gateway says until it closes, and whether it says goodbye: without that, an answer that ends with its connection is cut.
async fn all(connection: &mut Raw) -> (String, bool) {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), connection.stream.read_to_end(&mut bytes)).await;
    let read = read.unwrap_or_else(|_| panic!("not closed after {:?}", String::from_utf8_lossy(&bytes)));
    (String::from_utf8(bytes).unwrap(), read.is_ok())
}

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks() {
    let (gateway, upstream) = answering(Reply::Bytes(CHUNKED.to_vec())).await;
    for keep_alive in ["", "Connection: keep-alive\r\n"] {
        let mut connection = Raw::connect(&gateway).await;
        let request = format!("GET /openapi.json HTTP/1.0\r\nHost: localhost\r\n{keep_alive}\r\n");
        connection.send(request.as_bytes()).await;
        let (text, said_goodbye) = all(&mut connection).await;
        assert!(said_goodbye, "{text}");
        assert!(text.ends_with("\r\n\r\nabcde"), "{text}");
        assert!(!text.contains("transfer-encoding"), "{text}");
        assert!(text.contains("\r\nconnection: close\r\n"), "{text}");
    }
    assert_eq!(upstream.requests().len(), 2);
}

#[tokio::test]
async fn a_client_of_http_1_0_keeps_its_connection_when_it_asks_and_the_length_is_known() {
    let setup = setup(&[]).await;
    let mut connection = Raw::connect(&setup.gateway).await;
    let request = b"GET /openapi.json HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n";
    for _ in 0..2 {
        connection.send(request).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status(), Some(200), "{}", answer.text());
        assert!(
            answer.text().contains("\r\nconnection: keep-alive\r\n"),
            "{}",
            answer.text()
        );
        assert!(!answer.closed);
    }
    connection
        .send(b"GET /openapi.json HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive, close\r\n\r\n")
        .await;
    assert!(
        connection.answer().await.closed,
        "closing is what both sides understand"
    );
}

#[tokio::test]
async fn an_answer_that_breaks_off_looks_cut_in_each_framing() {
    let cut_chunks = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n".to_vec();
    let (gateway, _upstream) = answering(Reply::BytesAndClose(cut_chunks)).await;
    for (version, body) in [("1.1", "3\r\nabc\r\n"), ("1.0", "abc")] {
        let mut connection = Raw::connect(&gateway).await;
        let request = format!("GET /openapi.json HTTP/{version}\r\nHost: localhost\r\n\r\n");
        connection.send(request.as_bytes()).await;
        let (text, said_goodbye) = all(&mut connection).await;
        assert_eq!(text.split_once("\r\n\r\n").unwrap().1, body, "no last chunk: {text}");
        // Of HTTP/1.0 the end of the connection would be that of the answer.
        assert_eq!(said_goodbye, version == "1.1");
    }
}

#[tokio::test]
async fn large_and_small_bodies_follow_each_other_on_one_connection() {
    let setup = setup(&[]).await;
    let token = setup.issuer.token(7);
    let head = |length: usize| {
        format!(
            "POST /api/chat/1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut bytes = Vec::new();
    for length in [3, 100_000, 5, 70_000] {
        bytes.extend_from_slice(head(length).as_bytes());
        bytes.extend(std::iter::repeat_n(b'a', length));
    }
    bytes.extend_from_slice(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut connection = Raw::connect(&setup.gateway).await;
    connection.send(&bytes).await;
    let (text, said_goodbye) = all(&mut connection).await;
    assert!(said_goodbye);
    assert_eq!(text.matches("HTTP/1.1 200 ").count(), 5, "{text}");
    let requests = setup.upstream.requests();
    let arrived: Vec<_> = requests.iter().map(|request| request.body.len()).collect();
    assert_eq!(arrived, [3, 100_000, 5, 70_000, 0]);
    assert!(
        requests
            .iter()
            .all(|request| request.body.iter().all(|byte| *byte == b'a'))
    );
}

#[tokio::test]
async fn a_refused_request_with_a_body_ends_its_connection() {
    let setup = setup(&[]).await;
    let mut connection = Raw::connect(&setup.gateway).await;
    let smuggled = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let refused = format!(
        "POST /api/chat/1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}",
        smuggled.len()
    );
    connection.send(refused.as_bytes()).await;
    let (text, _) = all(&mut connection).await;
    assert!(text.starts_with("HTTP/1.1 401 "), "{text}");
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    assert!(text.contains("\r\nconnection: close\r\n"), "{text}");
    assert!(setup.upstream.bytes().is_empty());
}

#[tokio::test]
async fn the_head_alone_is_sent_to_who_asks_for_it() {
    let (gateway, upstream) = answering(Reply::Bytes(
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".to_vec(),
    ))
    .await;
    let mut connection = Raw::connect(&gateway).await;
    let head = "HEAD /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let last = "HEAD /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    connection.send(format!("{head}{last}").as_bytes()).await;
    let (text, _) = all(&mut connection).await;
    assert_eq!(text.matches("HTTP/1.1 200 ").count(), 2, "{text}");
    assert_eq!(text.matches("\r\ncontent-length: 1000\r\n").count(), 2, "{text}");
    assert!(text.ends_with("\r\n\r\n"), "{text}");
    assert_eq!(upstream.requests().len(), 2);
}

#[tokio::test]
async fn an_answer_says_once_how_long_it_is() {
    let events = "GET /events HTTP/1.1\r\nHost: localhost\r\n";
    for (answer, wanted) in [
        ("200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello", " 502 "),
        ("200 OK\r\ncontent-length: 5, 5\r\n\r\nhello", " 502 "),
        ("204 No Content\r\ncontent-length: 5\r\n\r\n", " 204 "),
        ("204 No Content\r\n\r\n", " 204 "),
        ("304 Not Modified\r\n\r\n", " 304 "),
    ] {
        let issuer = Issuer::start().await;
        let bytes = format!("HTTP/1.1 {answer}").into_bytes();
        let upstream = Upstream::with(move |_| Reply::BytesAndClose(bytes.clone())).await;
        let gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
        let token = issuer.token(7);
        for request in [
            format!("{events}Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"),
            "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_owned(),
        ] {
            let mut connection = Raw::connect(&gateway).await;
            connection.send(request.as_bytes()).await;
            let (text, _) = all(&mut connection).await;
            let (status, fields) = text.split_once("\r\n").unwrap();
            assert!(status.contains(wanted), "{answer:?}: {text}");
            let lengths = fields.matches("content-length: ").count() + fields.matches("transfer-encoding: ").count();
            assert_eq!(lengths, usize::from(wanted == " 502 "), "{answer:?}: {text}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_waits_keeps_nothing_of_a_large_head() {
    let setup = setup(&[]).await;
    let (mut waiting, mut before) = (Vec::new(), 0);
    for turn in 0..350 {
        if turn == 50 {
            before = setup.gateway.memory();
        }
        let mut connection = Raw::connect(&setup.gateway).await;
        let padding = "a".repeat(28_000);
        let request = format!("GET /health/simple HTTP/1.1\r\nHost: localhost\r\nX: {padding}\r\n\r\n");
        connection.send(request.as_bytes()).await;
        assert!(connection.until(b"\r\n\r\n").await.starts_with(b"HTTP/1.1 200 "));
        waiting.push(connection);
    }
    let each = setup.gateway.memory().saturating_sub(before) / 300;
    assert!(each < 45 * 1_024, "{each} bytes for each connection");
}
