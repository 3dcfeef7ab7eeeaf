//! The rules of a request head, one row each.

use super::*;

const LIMITS: HeadLimits = HeadLimits {
    uri_bytes: 300,
    header_bytes: 2_000,
    header_fields: 10,
};

fn verdict(head: &str) -> Result<(), FramingFault> {
    match find_end(head.as_bytes(), 0, &LIMITS)? {
        Some(end) => check(&head.as_bytes()[..end], &LIMITS, |_, _| Ok(())).map(|_| ()),
        None => panic!("no end in {head:?}"),
    }
}

fn with(fields: &str) -> Result<(), FramingFault> {
    verdict(&format!("POST /a HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n"))
}

#[test]
fn ordinary_heads_pass() {
    assert_eq!(
        verdict("GET / HTTP/1.1\r\nHost: localhost:8443\r\nAccept: */*\r\n\r\n"),
        Ok(())
    );
    assert_eq!(verdict("GET /?q={a|b}^` HTTP/1.1\r\nhost: [::1]:1\r\n\r\n"), Ok(()));
    assert_eq!(verdict("GET / HTTP/1.0\r\n\r\n"), Ok(()));
    assert_eq!(with("Content-Length: 5"), Ok(()));
    assert_eq!(with("Transfer-Encoding: Chunked"), Ok(()));
    assert_eq!(with("Connection: keep-alive, Upgrade"), Ok(()));
    assert_eq!(with("X: a\tb \u{e9}"), Ok(()));
    assert_eq!(with("X:"), Ok(()));
}

#[test]
fn ambiguous_lengths_are_refused() {
    use FramingFault::{ContentLength, TransferEncoding, TwoLengths};
    for (fields, fault) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", TwoLengths),
        ("Content-Length: 5\r\nContent-Length: 5", ContentLength),
        ("Content-Length: 5, 5", ContentLength),
        ("Content-Length: +5", ContentLength),
        ("Content-Length: -5", ContentLength),
        ("Content-Length: 0x5", ContentLength),
        ("Content-Length: 5 5", ContentLength),
        ("Content-Length:", ContentLength),
        ("Content-Length: 9999999999999999999", ContentLength),
        ("Transfer-Encoding: gzip, chunked", TransferEncoding),
        ("Transfer-Encoding: chunked, chunked", TransferEncoding),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            TransferEncoding,
        ),
        ("Transfer-Encoding: xchunked", TransferEncoding),
        ("Transfer-Encoding: \"chunked\"", TransferEncoding),
        ("Transfer-Encoding: identity", TransferEncoding),
        ("Transfer-Encoding:", TransferEncoding),
    ] {
        assert_eq!(with(fields), Err(fault), "{fields:?}");
    }
    let old = "POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(verdict(old), Err(TransferEncoding));
}

#[test]
fn malformed_fields_are_refused() {
    use FramingFault::{BareLineEnd, ConnectionOption, ControlByte, FieldName, Host, ObsoleteFold};
    for (fields, fault) in [
        ("X: a\r\n b", ObsoleteFold),
        (" X: a", ObsoleteFold),
        ("X : a", FieldName),
        ("X\t: a", FieldName),
        (": a", FieldName),
        ("X", FieldName),
        ("X(y): a", FieldName),
        ("X\u{e9}: a", FieldName),
        ("X: a\u{0}b", ControlByte),
        ("X: a\u{1}b", ControlByte),
        ("X: a\u{7f}b", ControlByte),
        ("X: a\nY: b", BareLineEnd),
        ("X: a\rY: b", BareLineEnd),
        ("Host: y", Host),
        ("Connection: close, content-length", ConnectionOption),
        ("Connection: x-request-id", ConnectionOption),
    ] {
        assert_eq!(with(fields), Err(fault), "{fields:?}");
    }
    for host in [
        "", "a b", "user@x", "x/y", "x,y", "x:y", "x:123456", "[::1", "[zz]", "x?y", "x#y",
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(verdict(&head), Err(Host), "{host:?}");
    }
    assert_eq!(verdict("GET / HTTP/1.1\r\nA: b\r\n\r\n"), Err(Host));
}

#[test]
fn malformed_request_lines_are_refused() {
    use FramingFault::{BareLineEnd, ControlByte, RequestLine, TargetByte, TargetForm, UriTooLong, Version};
    for (line, fault) in [
        ("GET  / HTTP/1.1", RequestLine),
        ("GET / HTTP/1.1 ", RequestLine),
        (" GET / HTTP/1.1", RequestLine),
        ("GET /", RequestLine),
        ("G{T / HTTP/1.1", RequestLine),
        ("GET /a b HTTP/1.1", RequestLine),
        ("GET / http/1.1", RequestLine),
        ("GET / HTTP/1.2", Version),
        ("GET / HTTP/2.0", Version),
        ("GET / HTTP/0.9", Version),
        ("GET / HTTP/1.10", Version),
        ("GET /\t HTTP/1.1", ControlByte),
        ("GET /\u{0} HTTP/1.1", ControlByte),
        ("GET /\u{e9} HTTP/1.1", TargetByte),
        ("GET /<a> HTTP/1.1", TargetByte),
        ("GET /#a HTTP/1.1", TargetByte),
        ("GET http://x/ HTTP/1.1", TargetForm),
        ("OPTIONS * HTTP/1.1", TargetForm),
        ("CONNECT x:443 HTTP/1.1", TargetForm),
        ("\r\nGET / HTTP/1.1", RequestLine),
        ("GET /\nX HTTP/1.1", BareLineEnd),
        (&format!("GET /{} HTTP/1.1", "a".repeat(300)), UriTooLong),
    ] {
        assert_eq!(verdict(&format!("{line}\r\nHost: x\r\n\r\n")), Err(fault), "{line:?}");
    }
}

#[test]
fn large_heads_are_refused_before_they_are_complete() {
    let uri = format!("GET /{}", "a".repeat(3_000));
    assert_eq!(find_end(uri.as_bytes(), 0, &LIMITS), Err(FramingFault::UriTooLong));
    let fields = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(3_000));
    assert_eq!(find_end(fields.as_bytes(), 0, &LIMITS), Err(FramingFault::HeadTooLarge));
    assert_eq!(with("X: a\r\n".repeat(12).trim_end()), Err(FramingFault::TooManyFields));
}

#[test]
fn the_end_is_found_across_reads() {
    let head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nbody\n";
    let end = head.len() - 5;
    for cut in 1..end {
        let first = find_end(&head[..cut], 0, &LIMITS);
        assert_eq!(first, Ok(None), "{cut}");
        assert_eq!(find_end(head, cut, &LIMITS), Ok(Some(end)), "{cut}");
    }
}

#[test]
fn what_follows_is_known() {
    let following = |fields: &str| {
        let head = format!("POST /a HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        check(head.as_bytes(), &LIMITS, |_, _| Ok(())).unwrap().1
    };
    assert_eq!(following(""), Following::Body(0));
    assert_eq!(following("Content-Length: 017\r\n"), Following::Body(17));
    assert_eq!(following("Transfer-Encoding: chunked\r\n"), Following::Chunks);
    for (body, expected) in [
        ("Content-Length: 2\r\n", Following::Body(2)),
        ("Transfer-Encoding: chunked\r\n", Following::Chunks),
    ] {
        let fields = format!("Connection: upgrade\r\nUpgrade: websocket\r\n{body}");
        assert_eq!(following(&fields), expected, "a body ends all the same");
    }
    assert_eq!(
        following("Connection: upgrade\r\nUpgrade: websocket\r\n"),
        Following::Open
    );
}
