//! Compression of answers where it pays: long enough texts for clients that take them so. Never of streams, whose events would wait in
//! the encoder, and never of answers with tokens, whose length must not tell what is in them.

use bytes::Bytes;
use http::HeaderValue;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, TRANSFER_ENCODING, VARY};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::compression::{Algorithm, Encode};

use crate::config::Compression;
use crate::routes::{Class, Route};

/// An answer on its way through an encoder.
pub struct Compressing(Box<dyn Encode + Send + Sync>);

impl std::fmt::Debug for Compressing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Compressing").field(&self.0.stat().0).finish()
    }
}

impl Compressing {
    /// Begins to compress an answer to `request` and changes its head accordingly; `None` leaves it as it is.
    pub fn begin(
        settings: &Compression,
        route: &Route,
        request: &RequestHeader,
        answer: &mut ResponseHeader,
    ) -> pingora::Result<Option<Self>> {
        if settings.level == 0 || !may_compress(settings, route, request, answer) {
            return Ok(None);
        }
        answer.append_header(VARY, "accept-encoding")?;
        let accepted = request.headers.get_all(ACCEPT_ENCODING).iter();
        let Some(algorithm) = choose(accepted.filter_map(|value| value.to_str().ok())) else {
            return Ok(None);
        };
        let Some(encoder) = algorithm.compressor(settings.level) else {
            return Ok(None);
        };
        answer.insert_header(CONTENT_ENCODING, algorithm.as_str())?;
        answer.remove_header(&CONTENT_LENGTH);
        if request.version < http::Version::HTTP_2 {
            answer.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
        }
        // The same content, but other bytes.
        let weak = answer.headers.get(ETAG).and_then(|tag| tag.to_str().ok());
        if let Some(weak) = weak.filter(|tag| !tag.starts_with("W/")).map(|tag| format!("W/{tag}")) {
            answer.insert_header(ETAG, weak)?;
        }
        Ok(Some(Self(encoder)))
    }

    /// Replaces a part of the body by what the encoder gives for it.
    pub fn encode(&mut self, body: &mut Option<Bytes>, end: bool) -> pingora::Result<()> {
        let encoded = self.0.encode(body.as_deref().unwrap_or_default(), end)?;
        *body = (!encoded.is_empty()).then_some(encoded);
        Ok(())
    }
}

fn may_compress(settings: &Compression, route: &Route, request: &RequestHeader, answer: &ResponseHeader) -> bool {
    let is_long = answer.headers.get(CONTENT_LENGTH).is_none_or(|length| {
        let length = length.to_str().ok().and_then(|length| length.parse::<u64>().ok());
        length.is_some_and(|length| length >= settings.bytes_min)
    });
    let is_text = answer.headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        let is = |prefix: &[u8]| kind.starts_with(prefix);
        !is(b"text/event-stream")
            && [
                &b"text/"[..],
                b"application/json",
                b"application/problem+json",
                b"application/javascript",
            ]
            .into_iter()
            .any(is)
    });
    !matches!(route.class, Class::Auth | Class::Stream)
        && request.method == http::Method::GET
        && answer.status == http::StatusCode::OK
        && is_long
        && is_text
        && !answer.headers.contains_key(CONTENT_ENCODING)
}

/// What the client takes most gladly; of equals, what costs us least.
fn choose<'a>(accepted: impl Iterator<Item = &'a str>) -> Option<Algorithm> {
    const OURS: [(&str, Algorithm); 3] = [
        ("zstd", Algorithm::Zstd),
        ("br", Algorithm::Brotli),
        ("gzip", Algorithm::Gzip),
    ];
    let mut weights = [None::<f32>; OURS.len()];
    let mut others = None::<f32>;
    for item in accepted.flat_map(|value| value.split(',')) {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts
            .find_map(|part| part.strip_prefix("q="))
            .map_or(Some(1.0), |q| q.parse().ok());
        let weight = weight.filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
        if name == "*" {
            others = Some(weight);
        } else if let Some(known) = OURS.iter().position(|(ours, _)| name.eq_ignore_ascii_case(ours)) {
            weights[known] = Some(weight);
        }
    }
    let mut best = None;
    for ((_, algorithm), weight) in OURS.into_iter().zip(weights) {
        let weight = weight.or(others).unwrap_or(0.0);
        if weight > best.map_or(0.0, |(_, best)| best) {
            best = Some((algorithm, weight));
        }
    }
    best.map(|(algorithm, _)| algorithm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_prefers_is_chosen() {
        for (accepted, expected) in [
            ("gzip, deflate, br, zstd", Some(Algorithm::Zstd)),
            ("gzip;q=1.0, br;q=0.5", Some(Algorithm::Gzip)),
            ("GZIP", Some(Algorithm::Gzip)),
            ("gzip;q=0", None),
            ("*", Some(Algorithm::Zstd)),
            ("zstd;q=0, *;q=0.5", Some(Algorithm::Brotli)),
            ("identity", None),
            ("deflate", None),
            ("gzip;q=nonsense", None),
            ("gzip;q=7", None),
            ("", None),
            (";;,,=", None),
        ] {
            assert_eq!(choose([accepted].into_iter()), expected, "{accepted}");
        }
        assert_eq!(choose(std::iter::empty()), None, "no field: as it is");
    }
}
