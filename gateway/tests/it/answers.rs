//! What an upstream answers, byte by byte: a client gets one whole answer or learns that there is none, and nobody gets what was left of
//! somebody else's.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::support::raw::Raw;
use crate::support::{Gateway, Issuer, Reply, Setup, Upstream, eventually, problem};

const POISON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 6\r\n\r\npoison";

/// Name, bytes of the answer.
fn tricks() -> Vec<(&'static str, Vec<u8>)> {
    let answer = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}").into_bytes();
    vec![
        (
            "both lengths",
            answer(
                "content-length: 6\r\ntransfer-encoding: chunked",
                &format!("0\r\n\r\n{POISON}"),
            ),
        ),
        (
            "two lengths",
            answer("content-length: 0\r\ncontent-length: 122", POISON),
        ),
        ("length list", answer("content-length: 0, 122", POISON)),
        ("signed length", answer("content-length: +2", "{}")),
        (
            "coding before chunked",
            answer("transfer-encoding: gzip, chunked", "0\r\n\r\n"),
        ),
        (
            "chunked before a coding",
            answer("transfer-encoding: chunked, gzip", &format!("0\r\n\r\n{POISON}")),
        ),
        (
            "surplus after the length",
            answer("content-length: 2", &format!("{{}}{POISON}")),
        ),
        (
            "surplus after the last chunk",
            answer("transfer-encoding: chunked", &format!("0\r\n\r\n{POISON}")),
        ),
        (
            "bad chunk size",
            answer("transfer-encoding: chunked", "zz\r\n{}\r\n0\r\n\r\n"),
        ),
        (
            "chunk longer than said",
            answer("transfer-encoding: chunked", "2\r\n{}XX\r\n0\r\n\r\n"),
        ),
        ("NUL in a value", answer("x: a\0b\r\ncontent-length: 2", "{}")),
        (
            "body with 204",
            format!("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello{POISON}").into_bytes(),
        ),
        (
            "body with 304",
            format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\nhello{POISON}").into_bytes(),
        ),
        (
            "another protocol nobody asked for",
            format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n{POISON}")
                .into_bytes(),
        ),
        (
            "many informational answers",
            format!(
                "{}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{{}}",
                "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(50)
            )
            .into_bytes(),
        ),
        ("HTTP/0.9", b"hello".to_vec()),
        ("no version", b"HTTP/9.9 200 OK\r\n\r\n".to_vec()),
        ("long head", answer(&format!("x: {}", "a".repeat(2_000_000)), "")),
    ]
}

/// Answers `/docs/{n}` with the n-th trick and everything else with what it was.
async fn setup() -> Setup {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|request| {
        let number = request
            .target()
            .strip_prefix("/docs/")
            .and_then(|number| number.parse::<usize>().ok());
        match number.and_then(|number| tricks().into_iter().nth(number)) {
            Some((_, bytes)) => Reply::Bytes(bytes),
            None => Reply::json(200, &serde_json::json!({"target": request.target()})),
        }
    })
    .await;
    let settings = [
        ("UPSTREAMS__READ_TIMEOUT_MS", "500"),
        ("UPSTREAMS__BREAK_AFTER", "1000"),
    ];
    let gateway = Gateway::start(&issuer, &[&upstream], &settings).await;
    Setup {
        gateway,
        upstream,
        issuer,
    }
}

#[tokio::test]
async fn no_answer_of_an_upstream_becomes_two_and_none_is_somebody_elses() {
    let Setup {
        gateway,
        upstream: _upstream,
        ..
    } = setup().await;
    let mut wrong = Vec::new();
    for (number, (name, _)) in tricks().into_iter().enumerate() {
        for method in ["GET", "HEAD"] {
            let mut connection = Raw::connect(&gateway).await;
            let request = format!("{method} /docs/{number} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            connection.send(request.as_bytes()).await;
            let text = connection.answer().await.text();
            let finals = text
                .lines()
                .filter(|line| line.starts_with("HTTP/1.1 ") && !line.starts_with("HTTP/1.1 1"))
                .count();
            let ambiguous = text.contains("transfer-encoding:")
                && (text.contains("content-length:") || !text.contains("transfer-encoding: chunked\r\n"));
            let leaks = text.contains("poison");
            if finals > 1 || ambiguous || leaks || text.matches("content-length:").count() > 1 {
                wrong.push(format!("{method} {name}: {text}"));
            }
            // Whoever comes next, by this connection to us or by a kept one to the upstream, gets its own.
            for later in 0..3 {
                let client = gateway.http2();
                let path = format!("/openapi.json?{number}-{later}");
                let answer = client.get(gateway.url(&path)).send().await.unwrap();
                assert_eq!(answer.status(), 200, "after {method} {name}");
                let body = answer.text().await.unwrap();
                assert!(body.contains(&path), "after {method} {name}: {body}");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_an_upstream_says_later_by_a_kept_connection_is_nobodys_answer() {
    let issuer = Issuer::start().await;
    let told = Arc::new(Semaphore::new(0));
    let tell = Arc::clone(&told);
    let upstream = Upstream::with(move |request| {
        if request.target() == "/docs" {
            let whole = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            return Reply::BytesAndLater(whole.into(), Arc::clone(&tell), POISON.into());
        }
        Reply::json(200, &serde_json::json!({"target": request.target()}))
    })
    .await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[("THREADS", "1")]).await;
    let client = gateway.http1();
    for round in 0..5 {
        let first = client.get(gateway.url("/docs")).send().await.unwrap();
        assert_eq!(first.text().await.unwrap(), "{}");
        let before = upstream.bytes_later();
        told.add_permits(1);
        eventually("the surplus to be sent", async || {
            (upstream.bytes_later() > before).then_some(())
        })
        .await;
        for _ in 0..3 {
            let path = format!("/openapi.json?{round}");
            let answer = client.get(gateway.url(&path)).send().await.unwrap();
            let body = answer.text().await.unwrap();
            assert!(body.contains(&path), "{round}: {body}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_looks_cut() {
    let issuer = Issuer::start().await;
    let part = serde_json::json!({"items": vec!["much the same as before"; 100]}).to_string();
    let upstream = Upstream::with(move |request| {
        let fields = match request.target() {
            "/api/chat" => format!("content-length: {}\r\n\r\n{part}", part.len() + 10),
            _ => format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{part}\r\n", part.len()),
        };
        Reply::BytesAndClose(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{fields}").into_bytes())
    })
    .await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[("UPSTREAMS__BREAK_AFTER", "1000")]).await;
    let token = issuer.token(7);
    for client in [gateway.http1(), gateway.http2()] {
        for path in ["/api/chat", "/api/me"] {
            for encoding in ["identity", "gzip", "zstd"] {
                let request = client.get(gateway.url(path)).bearer_auth(&token);
                let answer = request.header("accept-encoding", encoding).send().await.unwrap();
                assert_eq!(answer.status(), 200);
                let version = answer.version();
                let body = answer.bytes().await;
                assert!(
                    body.is_err(),
                    "{version:?} {path} {encoding}: {:?}",
                    body.map(|body| body.len())
                );
            }
        }
    }
}

/// What arrived before is the client's, whenever the rest fails to: it must not take a cut answer for none, and ask again. A large request goes
/// Pingora's way, a small one ours.
#[tokio::test]
async fn an_answer_that_is_cut_later_looks_cut_and_not_as_if_it_never_came() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|_| {
        let part =
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{\"items\":[".to_vec();
        Reply::BytesAndCloseLater(part, Duration::from_millis(100))
    })
    .await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[("UPSTREAMS__BREAK_AFTER", "1000")]).await;
    let token = issuer.token(7);
    for client in [gateway.http1(), gateway.http2()] {
        for size in [10, 100_000] {
            let request = client.post(gateway.url("/api/chat")).bearer_auth(&token);
            let mut answer = request.body("x".repeat(size)).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{size}");
            assert_eq!(answer.chunk().await.unwrap().unwrap(), "{\"items\":[", "{size}");
            assert!(answer.chunk().await.is_err(), "{:?} {size}", answer.version());
        }
    }
    assert_eq!(upstream.requests().len(), 4, "none was sent twice");
}

#[tokio::test]
async fn whole_answers_arrive_as_they_are() {
    let issuer = Issuer::start().await;
    let long = "0123456789abcdef".repeat(20_000);
    let answer = |line: &str, fields: &str, body: &str| format!("{line}\r\n{fields}\r\n\r\n{body}").into_bytes();
    let ok = "HTTP/1.1 200 OK";
    let chunks = long.as_bytes().chunks(7_001).map(String::from_utf8_lossy);
    let chunks: Vec<_> = chunks
        .map(|chunk| format!("{:x};x=y\r\n{chunk}\r\n", chunk.len()))
        .collect();
    let chunks = chunks.concat();
    // Name, answer, whether the connection ends behind it, body.
    let answers = [
        ("a length", answer(ok, "content-length: 2", "{}"), false, "{}"),
        (
            "no reason",
            answer("HTTP/1.1 200", "content-length: 2", "{}"),
            false,
            "{}",
        ),
        ("nothing", answer(ok, "content-length: 0", ""), false, ""),
        ("no content", answer("HTTP/1.1 204 No Content", "x: y", ""), false, ""),
        (
            "long",
            answer(ok, &format!("content-length: {}", long.len()), &long),
            false,
            &*long,
        ),
        (
            "no chunks",
            answer(ok, "transfer-encoding: chunked", "0\r\n\r\n"),
            false,
            "",
        ),
        (
            "chunks",
            answer(
                ok,
                "transfer-encoding: chunked",
                &format!("{chunks}0\r\nx-checksum: abc\r\n\r\n"),
            ),
            false,
            &*long,
        ),
        ("until the end", answer(ok, "x: y", &long), true, &*long),
        ("nothing until the end", answer(ok, "x: y", ""), true, ""),
        (
            "HTTP/1.0",
            answer("HTTP/1.0 200 OK", "content-length: 2", "{}"),
            true,
            "{}",
        ),
        (
            "the last one",
            answer(ok, "content-length: 2\r\nconnection: close", "{}"),
            true,
            "{}",
        ),
        (
            "a hint before",
            answer(
                "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK",
                "content-length: 2",
                "{}",
            ),
            false,
            "{}",
        ),
    ];
    let served = answers.clone().map(|(_, bytes, closes, _)| (bytes, closes));
    let upstream = Upstream::with(move |request| {
        let number = request
            .target()
            .strip_prefix("/docs/")
            .and_then(|number| number.parse::<usize>().ok());
        match served[number.unwrap()].clone() {
            (bytes, true) => Reply::BytesAndClose(bytes),
            (bytes, false) => Reply::Bytes(bytes),
        }
    })
    .await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
    for client in [gateway.http1(), gateway.http2()] {
        // There and back, so that each comes before and after others on kept connections.
        for (number, (name, bytes, _, body)) in answers.iter().enumerate().chain(answers.iter().enumerate().rev()) {
            let answer = client
                .get(gateway.url(&format!("/docs/{number}")))
                .send()
                .await
                .unwrap();
            let status = if bytes.starts_with(b"HTTP/1.1 204") { 204 } else { 200 };
            assert_eq!(answer.status(), status, "{name}");
            assert!(!answer.headers().contains_key("x-checksum"), "{name}");
            let version = answer.version();
            assert_eq!(answer.text().await.unwrap(), *body, "{version:?} {name}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_never_begins_is_a_problem() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::with(|_| Reply::Bytes(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())).await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[]).await;
    for client in [gateway.http1(), gateway.http2()] {
        let answer = client.get(gateway.url("/openapi.json")).send().await.unwrap();
        problem(answer, 502, "bad_gateway").await;
    }
}
