//! Cross-origin requests of browsers: exact origins, preflights answered at the edge.

use http::{HeaderMap, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::config;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
const HEADERS: HeaderValue =
    HeaderValue::from_static("authorization, content-type, idempotency-key, last-event-id, if-none-match");
const EXPOSED: HeaderValue =
    HeaderValue::from_static("x-request-id, traceresponse, retry-after, ratelimit, ratelimit-policy, etag, location");
const YES: HeaderValue = HeaderValue::from_static("true");
const ORIGIN: HeaderValue = HeaderValue::from_static("origin");

/// Whether `text` is an exact origin: scheme, host, optional port, and nothing after.
pub fn is_origin(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return false;
    };
    crate::framing::is_host(rest.as_bytes()) && text == text.to_ascii_lowercase()
}

/// The configured policy.
#[derive(Debug)]
pub struct Cors {
    origins: Vec<HeaderValue>,
    max_age: HeaderValue,
}

impl Cors {
    /// A policy of validated settings.
    pub fn new(settings: &config::Cors) -> Self {
        Self {
            origins: settings
                .origins
                .iter()
                .filter_map(|origin| origin.parse().ok())
                .collect(),
            max_age: HeaderValue::from(settings.max_age_seconds),
        }
    }

    /// The origin of a request, if it is an allowed one.
    pub fn allowed_origin(&self, request: &RequestHeader) -> Option<HeaderValue> {
        let origin = request.headers.get(http::header::ORIGIN)?;
        self.origins.iter().find(|allowed| *allowed == origin).cloned()
    }

    /// Whether a request asks what a cross-origin request may do.
    pub fn is_preflight(request: &RequestHeader) -> bool {
        request.method == http::Method::OPTIONS
            && request.headers.contains_key(http::header::ORIGIN)
            && request
                .headers
                .contains_key(http::header::ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// Adds what an answer to `origin` must carry.
    pub fn mark(&self, fields: &mut HeaderMap, origin: Option<&HeaderValue>) {
        if self.origins.is_empty() {
            return;
        }
        fields.append(http::header::VARY, ORIGIN);
        if let Some(origin) = origin {
            fields.insert(http::header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            fields.insert(http::header::ACCESS_CONTROL_ALLOW_CREDENTIALS, YES);
            fields.insert(http::header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }

    /// Adds what the answer to a preflight says beyond [`Cors::mark`].
    pub fn mark_preflight(&self, answer: &mut ResponseHeader) -> pingora::Result<()> {
        answer.insert_header(http::header::ACCESS_CONTROL_ALLOW_METHODS, METHODS)?;
        answer.insert_header(http::header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS)?;
        answer.insert_header(http::header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("OPTIONS", b"/api/chat", None).unwrap();
        for (name, value) in fields {
            request.insert_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn only_exact_origins_are_allowed() {
        let cors = Cors::new(&config::Cors {
            origins: vec!["https://a.example".to_owned()],
            max_age_seconds: 60,
        });
        assert!(
            cors.allowed_origin(&request(&[("origin", "https://a.example")]))
                .is_some()
        );
        for origin in [
            "https://a.example.evil",
            "http://a.example",
            "https://A.example",
            "https://a.example:443",
            "null",
        ] {
            assert!(
                cors.allowed_origin(&request(&[("origin", origin)])).is_none(),
                "{origin}"
            );
        }
    }

    #[test]
    fn origins_are_validated() {
        for good in ["https://a.example", "http://localhost:3000", "http://[::1]:3000"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "*",
            "null",
            "a.example",
            "https://a.example/",
            "https://*.example",
            "https://A.example",
            "ftp://a.example",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }

    #[test]
    fn a_preflight_has_an_origin_and_a_method() {
        assert!(Cors::is_preflight(&request(&[
            ("origin", "x"),
            ("access-control-request-method", "PUT")
        ])));
        assert!(!Cors::is_preflight(&request(&[("origin", "x")])));
    }
}
