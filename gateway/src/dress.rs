//! The head of a request as an upstream gets it: claims from outside go, what we know comes.
//!
//! Both ways to an upstream use it: [`exchange`](crate::exchange) writes the head at once, Pingora is given a changed one.

use std::io::Write;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType, OkOrErr};

use crate::identity::{Identity, REQUEST_ID};
use crate::{fields, framing};

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Fields about the client's connection, which ends here. Pingora removes the same ones on its way.
const OF_CONNECTION: [HeaderName; 10] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Fields that speak of the client, its rights or the way here. From outside they are only claims, so they are removed.
const REMOVED: [&str; 14] = [
    "forwarded",
    "via",
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "remote-user",
    "client-ip",
    "true-client-ip",
    "x-real-ip",
    "x-client-ip",
    "x-request-id",
    "x-http-method-override",
    "expect",
];
const REMOVED_PREFIXES: [&str; 11] = [
    "x-forwarded",
    "x-original",
    "x-rewrite",
    "x-user",
    "x-auth",
    "x-workspace",
    "x-session",
    "x-role",
    "x-internal",
    "x-fechatter",
    "x-b3",
];

/// Takes away what is about the client's connection.
pub fn bare(request: &mut RequestHeader) {
    for name in OF_CONNECTION {
        request.remove_header(&name);
    }
}

/// Rewrites a head that Pingora sends.
///
/// # Errors
///
/// When the request's target is none that our checks let through.
pub fn dress(request: &mut RequestHeader, identity: &Identity) -> pingora::Result<()> {
    fields::of_request(request, |fields| dress_fields(fields, identity))
        .or_err(ErrorType::InternalError, "a target that no check has seen")
}

fn dress_fields(fields: &mut HeaderMap, identity: &Identity) {
    while let Some(claim) = fields.keys().find(|name| is_claim(name.as_str())).cloned() {
        fields.remove(claim);
    }
    if let Some(host) = fields.get(HOST).cloned() {
        fields.insert(FORWARDED_HOST, host);
    }
    for_each_known(identity, |name, value| {
        // Addresses, ids and our own words are always valid values.
        if let Ok(value) = HeaderValue::from_bytes(value) {
            fields.insert(name, value);
        }
    });
}

/// What we know of a request.
fn for_each_known(identity: &Identity, mut take: impl FnMut(HeaderName, &[u8])) {
    let mut address = [0; 45];
    let mut rest = &mut address[..];
    // No address is longer.
    let _ = write!(rest, "{}", identity.client);
    let left = rest.len();
    take(FORWARDED_FOR, &address[..address.len() - left]);
    take(FORWARDED_PROTO, b"https");
    take(REQUEST_ID, identity.request_id.as_bytes());
    take(TRACE_PARENT, &identity.trace.text());
}

/// Writes the head of a request for HTTP/1.1, with a body of `body` bytes: as long as the client said, else as chunks.
///
/// # Errors
///
/// When the request's target is none that our checks let through.
pub fn write(request: &RequestHeader, identity: &Identity, body: usize, wire: &mut Vec<u8>) -> pingora::Result<()> {
    let target = request.raw_path();
    if !framing::is_target(target) {
        return Error::e_explain(ErrorType::InternalError, "a target that no check has seen");
    }
    wire.extend_from_slice(request.method.as_str().as_bytes());
    wire.push(b' ');
    wire.extend_from_slice(target);
    wire.extend_from_slice(b" HTTP/1.1\r\n");
    // HTTP/2 has the host as a part of the target.
    let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = authority.or_else(|| request.headers.get(HOST).map(HeaderValue::as_bytes));
    if let Some(host) = host {
        field(wire, &HOST, host);
        field(wire, &FORWARDED_HOST, host);
    }
    for (name, value) in &request.headers {
        if *name != HOST && !OF_CONNECTION.contains(name) && !is_claim(name.as_str()) {
            field(wire, name, value.as_bytes());
        }
    }
    for_each_known(identity, |name, value| field(wire, &name, value));
    if is_chunked(request, body) {
        field(wire, &TRANSFER_ENCODING, b"chunked");
    }
    wire.extend_from_slice(b"\r\n");
    Ok(())
}

/// Writes the whole body of the request whose head was written.
pub fn write_body(request: &RequestHeader, body: &[u8], wire: &mut Vec<u8>) {
    if !is_chunked(request, body.len()) {
        wire.extend_from_slice(body);
        return;
    }
    // Writing into memory cannot fail.
    let _ = write!(wire, "{:x}\r\n", body.len());
    wire.extend_from_slice(body);
    wire.extend_from_slice(b"\r\n0\r\n\r\n");
}

fn is_chunked(request: &RequestHeader, body: usize) -> bool {
    body > 0 && !request.headers.contains_key(CONTENT_LENGTH)
}

fn field(wire: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    wire.extend_from_slice(name.as_str().as_bytes());
    wire.extend_from_slice(b": ");
    wire.extend_from_slice(value);
    wire.extend_from_slice(b"\r\n");
}

/// Whether a field from outside is removed. Names with `_` are too: some servers take them for names with `-`.
fn is_claim(name: &str) -> bool {
    // Most names begin otherwise.
    let may_be = matches!(
        name.as_bytes(),
        [b'b' | b'c' | b'e' | b'f' | b'r' | b't' | b'v' | b'x', ..]
    );
    may_be && (REMOVED.contains(&name) || REMOVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        || name.contains('_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identifier;

    const CLAIMS: [&str; 7] = [
        "x-user-id",
        "x-forwarded-for",
        "forwarded",
        "x_forwarded_for",
        "traceparent",
        "x-request-id",
        "x-fechatter-role",
    ];

    fn claiming() -> (RequestHeader, Identity) {
        let mut request = RequestHeader::build("POST", b"/a?b=c", None).unwrap();
        for name in CLAIMS {
            request.insert_header(name, "claimed").unwrap();
        }
        request.insert_header("host", "chat.example").unwrap();
        request.insert_header("accept", "*/*").unwrap();
        let identity = Identifier::new(Vec::new()).identify("198.51.100.1".parse().unwrap(), &HeaderMap::new());
        (request, identity)
    }

    #[test]
    fn the_upstream_hears_it_from_us() {
        let (mut request, identity) = claiming();
        dress(&mut request, &identity).unwrap();
        assert!(
            request.headers.values().all(|value| value != "claimed"),
            "{:?}",
            request.headers
        );
        assert_eq!(request.headers["x-forwarded-for"], "198.51.100.1");
        assert_eq!(request.headers["x-forwarded-proto"], "https");
        assert_eq!(request.headers["x-forwarded-host"], "chat.example");
        assert_eq!(request.headers["x-request-id"], identity.request_id);
        assert_eq!(request.headers["traceparent"].len(), 55);
        assert!(request.headers.contains_key("accept"));
    }

    #[test]
    fn every_claim_is_known_by_its_first_letter() {
        for name in REMOVED.iter().chain(&REMOVED_PREFIXES) {
            assert!(is_claim(name), "{name}");
        }
        assert!(is_claim("accept_language") && !is_claim("accept-language") && !is_claim("content-type"));
    }

    #[test]
    fn what_is_written_has_the_same_fields() {
        let (mut request, identity) = claiming();
        let mut wire = Vec::new();
        for name in OF_CONNECTION {
            request.insert_header(name, "x").unwrap();
        }
        write(&request, &identity, 0, &mut wire).unwrap();
        let text = String::from_utf8(wire).unwrap();
        assert!(
            text.starts_with("POST /a?b=c HTTP/1.1\r\nhost: chat.example\r\n"),
            "{text}"
        );
        assert!(text.ends_with("\r\n\r\n"), "{text}");
        for name in OF_CONNECTION {
            request.remove_header(&name);
        }
        dress(&mut request, &identity).unwrap();
        let mut written: Vec<_> = text.lines().skip(1).filter(|line| !line.is_empty()).collect();
        let value = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let dressed = request
            .headers
            .iter()
            .map(|(name, it)| format!("{name}: {}", value(it)));
        let mut dressed: Vec<_> = dressed.collect();
        written.sort_unstable();
        dressed.sort_unstable();
        assert_eq!(written, dressed);
    }

    #[test]
    fn a_body_is_as_long_as_its_head_says() {
        let (mut request, identity) = claiming();
        let whole = |request: &RequestHeader| {
            let mut wire = Vec::new();
            write(request, &identity, 3, &mut wire).unwrap();
            write_body(request, b"abc", &mut wire);
            String::from_utf8(wire).unwrap()
        };
        let chunked = whole(&request);
        assert!(
            chunked.ends_with("transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            "{chunked}"
        );
        request.insert_header("content-length", "3").unwrap();
        let measured = whole(&request);
        assert!(
            measured.contains("\r\ncontent-length: 3\r\n") && measured.ends_with("\r\n\r\nabc"),
            "{measured}"
        );
        assert!(!measured.contains("chunked"), "{measured}");
    }

    #[test]
    fn a_target_that_no_check_let_through_is_not_written() {
        let (_, identity) = claiming();
        for target in [&b"/a b"[..], b"/\xff", b"/a\r\nx: y"] {
            if let Ok(request) = RequestHeader::build("GET", target, None) {
                assert!(write(&request, &identity, 0, &mut Vec::new()).is_err(), "{target:?}");
            }
        }
    }
}
