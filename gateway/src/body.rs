//! Request bodies: bounded, and complete before an upstream hears of the request.
//!
//! A small body is received whole first. A slow or broken one then never holds an upstream, nothing half-read is ever
//! forwarded, and a failed attempt can be repeated. A large one must say its length and is counted as it passes.

use std::time::{Duration, Instant};

use fechatter_core::problem::Code;
use http::header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use pingora::http::RequestHeader;
use pingora::{ErrorType, HTTPStatus};

use crate::answer::Refusal;
use crate::client::Client;

/// Largest body received before forwarding, in bytes: what Pingora keeps for a repeated attempt.
pub const RECEIVED_FIRST: usize = 64 * 1_024;

/// Most of a body that is received and thrown away once its request was refused, in bytes, and the time that may take.
const DISCARDED_MAX: usize = 4 * 1_024 * 1_024;
const DISCARDED_WITHIN: Duration = Duration::from_secs(2);

/// Refuses a declared length beyond `max` before a byte of it is read.
pub fn check_declared(request: &RequestHeader, max: usize) -> Result<Option<usize>, Refusal> {
    let Some(value) = request.headers.get(CONTENT_LENGTH) else {
        return Ok(None);
    };
    let length: usize = value
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Refusal::new(Code::BadRequest, "content_length", "Content-Length must be a number."))?;
    if length > max {
        Err(too_large(max))
    } else {
        Ok(Some(length))
    }
}

/// Receives a small or undeclared body and says whether the whole of it is there. Pingora keeps it and sends it to the
/// upstream.
pub async fn receive(
    client: &mut impl Client,
    declared: Option<usize>,
    max: usize,
    within: Duration,
) -> Result<bool, Refusal> {
    if !has_body(client, declared) {
        return Ok(true);
    }
    if wants_to_be_told(client.request()) {
        client.invite_body().await.map_err(|error| broken(&error))?;
    }
    if declared.is_some_and(|length| length > RECEIVED_FIRST) {
        return Ok(false);
    }
    let limit = max.min(RECEIVED_FIRST);
    client.keep_body();
    let received = tokio::time::timeout(within, read_all(client, limit, max)).await;
    let received = received.unwrap_or_else(|_| Err(timed_out()));
    if received.is_err() {
        // Where the body ends is not known, so neither is where another request would begin.
        client.close_after();
    } else {
        client.end_body();
    }
    received.map(|()| true)
}

/// Whether the client waits for a word before it sends its body. In HTTP/1.0 there is none, and what else one may expect is ours to ignore.
fn wants_to_be_told(request: &RequestHeader) -> bool {
    let expected = request.headers.get(EXPECT);
    request.version == http::Version::HTTP_11
        && expected.is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn has_body(client: &mut impl Client, declared: Option<usize>) -> bool {
    let may_have = declared.is_some_and(|length| length > 0)
        || client.is_http2()
        || client.request().headers.contains_key(TRANSFER_ENCODING);
    may_have && client.has_more_body()
}

async fn read_all(client: &mut impl Client, limit: usize, max: usize) -> Result<(), Refusal> {
    let mut received = 0;
    loop {
        let Some(chunk) = client.read_body().await.map_err(|error| broken(&error))? else {
            return Ok(());
        };
        received += chunk.len();
        if received > limit {
            return Err(if limit < max { length_wanted() } else { too_large(max) });
        }
    }
}

/// Receives the rest of a refused request's body, within bounds. HTTP/2 clients that look for an answer only when they have sent
/// everything would otherwise wait for room until their time is over, or be told of a reset stream instead of the reason. HTTP/1
/// closes the connection.
pub async fn discard(client: &mut impl Client) {
    if !client.is_http2() || !client.has_more_body() {
        return;
    }
    let rest = async {
        let mut seen = 0;
        while seen < DISCARDED_MAX {
            match client.read_body().await {
                Ok(Some(chunk)) => seen += chunk.len(),
                Ok(None) | Err(_) => return,
            }
        }
    };
    // Who is slower is cut off.
    let _ = tokio::time::timeout(DISCARDED_WITHIN, rest).await;
}

/// Counts a body as it passes, and the time it may take: a byte now and then must not keep a request open.
pub fn count(seen: &mut usize, chunk: usize, max: usize, deadline: Option<Instant>) -> pingora::Result<()> {
    if deadline.is_some_and(|deadline| Instant::now() > deadline) {
        return pingora::Error::e_explain(HTTPStatus(Code::RequestTimeout.status()), "request body is too slow");
    }
    *seen += chunk;
    if *seen > max {
        return pingora::Error::e_explain(HTTPStatus(Code::PayloadTooLarge.status()), "request body is too large");
    }
    Ok(())
}

/// The refusal of a body beyond `max`.
pub fn too_large(max: usize) -> Refusal {
    let detail = if max == 0 {
        "This route takes no body.".to_owned()
    } else {
        format!("The body is larger than the {max} bytes this route accepts.")
    };
    Refusal::new(Code::PayloadTooLarge, "body_too_large", detail)
}

fn length_wanted() -> Refusal {
    let detail = format!("A body of more than {RECEIVED_FIRST} bytes must come with a Content-Length.");
    Refusal::new(Code::PayloadTooLarge, "body_length_unknown", detail)
}

/// The refusal of a body that takes too long.
pub fn timed_out() -> Refusal {
    Refusal::new(Code::RequestTimeout, "body_timeout", "The request body took too long.")
}

fn broken(error: &pingora::Error) -> Refusal {
    match error.etype() {
        ErrorType::ReadTimedout => timed_out(),
        _ => Refusal::new(
            Code::BadRequest,
            "body_framing",
            "The request body is incomplete or its framing is broken.",
        ),
    }
}
