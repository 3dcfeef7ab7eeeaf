//! What an HTTP/2 request must hold beyond what the protocol layer checks. HTTP/1 heads are checked as bytes before.

use fechatter_core::problem::Code;

use crate::answer::Refusal;
use crate::client::Client;
use crate::framing::{self, HeadLimits};

/// Checks the head of an HTTP/2 request; other requests pass.
pub fn check(client: &impl Client, limits: &HeadLimits) -> Result<(), Refusal> {
    if !client.is_http2() {
        return Ok(());
    }
    let request = client.request();
    let target = request.raw_path();
    if target.len() > limits.uri_bytes {
        return Err(Refusal::new(
            Code::UriTooLong,
            "uri_too_long",
            "The request target is too long.",
        ));
    }
    if !framing::is_target(target) {
        return Err(Refusal::new(
            Code::BadRequest,
            "target_byte",
            "The request target holds a byte that must be percent-encoded.",
        ));
    }
    if request.headers.len() > limits.header_fields {
        return Err(Refusal::new(
            Code::HeadersTooLarge,
            "too_many_fields",
            "The request has too many header fields.",
        ));
    }
    let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = authority.or_else(|| request.headers.get(http::header::HOST).map(http::HeaderValue::as_bytes));
    if !host.is_some_and(framing::is_host) {
        return Err(Refusal::new(
            Code::BadRequest,
            "host",
            "There must be one authority and it must be `name` or `name:port`.",
        ));
    }
    Ok(())
}
