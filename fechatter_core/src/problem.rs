//! Errors on the wire: RFC 9457 `application/problem+json` with a stable machine `code`.

use serde::{Deserialize, Serialize};

/// The media type of every error body.
pub const PROBLEM_JSON: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $slug:literal, $status:literal, $title:literal;)+) => {
        /// Every error a client can meet. The slug never changes once released.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $slug)] $name,)+
        }

        impl Code {
            /// All codes, for documentation and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The stable name on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $slug,)+ }
            }

            /// The HTTP status that goes with it.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)+ }
            }

            /// A short summary, the same for every occurrence.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)+ }
            }
        }
    };
}

codes! {
    /// The request line, headers or framing are not valid HTTP for us.
    BadRequest = "bad_request", 400, "Bad request";
    /// The body is not well-formed JSON.
    MalformedJson = "malformed_json", 400, "Malformed JSON";
    /// No credentials were given where some are needed.
    Unauthenticated = "unauthenticated", 401, "Authentication required";
    /// Credentials were given and are not valid, expired or revoked.
    InvalidToken = "invalid_token", 401, "Invalid token";
    /// Email or password is wrong; which of them is never said.
    InvalidCredentials = "invalid_credentials", 401, "Invalid credentials";
    /// The caller is known and may not do this.
    Forbidden = "forbidden", 403, "Forbidden";
    /// There is no such thing, or the caller may not know of it.
    NotFound = "not_found", 404, "Not found";
    MethodNotAllowed = "method_not_allowed", 405, "Method not allowed";
    RequestTimeout = "request_timeout", 408, "Request timeout";
    /// The request contradicts the present state.
    Conflict = "conflict", 409, "Conflict";
    PayloadTooLarge = "payload_too_large", 413, "Payload too large";
    UriTooLong = "uri_too_long", 414, "URI too long";
    UnsupportedMediaType = "unsupported_media_type", 415, "Unsupported media type";
    /// The host name does not belong to this gateway.
    MisdirectedRequest = "misdirected_request", 421, "Misdirected request";
    /// The body is JSON but its values break a rule; `errors` lists them.
    ValidationFailed = "validation_failed", 422, "Validation failed";
    /// The idempotency key was used before with another body.
    IdempotencyMismatch = "idempotency_mismatch", 422, "Idempotency key reused with another body";
    RateLimited = "rate_limited", 429, "Too many requests";
    HeadersTooLarge = "headers_too_large", 431, "Request header fields too large";
    Internal = "internal", 500, "Internal error";
    BadGateway = "bad_gateway", 502, "Bad gateway";
    /// Something this request needs is away or overloaded; try again after `Retry-After`.
    Unavailable = "unavailable", 503, "Service unavailable";
    GatewayTimeout = "gateway_timeout", 504, "Gateway timeout";
}

// By hand: the derive does not see names that a macro puts in.
impl utoipa::PartialSchema for Code {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .description(Some(
                "Every error a client can meet; a code never changes once released.",
            ))
            .enum_values(Some(Self::ALL.iter().map(|code| code.as_str())))
            .into()
    }
}

impl utoipa::ToSchema for Code {}

/// One invalid field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Path of the field, for example `member_ids[2]`, or the name of a query parameter or header.
    #[schema(example = "content")]
    pub field: String,
    /// Stable machine code, for example `too_long`.
    #[schema(example = "too_long")]
    pub code: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

/// An RFC 9457 problem. `request_id` is filled in by whoever writes the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// `urn:fechatter:problem:<code>`.
    #[serde(rename = "type")]
    #[schema(example = "urn:fechatter:problem:validation_failed")]
    pub type_uri: String,
    pub title: String,
    #[schema(example = 422)]
    pub status: u16,
    /// What happened and the way out, in words for a person.
    pub detail: String,
    pub code: Code,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Seconds after which a retry makes sense; also sent as `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem of this kind with a detail for people; the detail must hold nothing internal.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            type_uri: format!("urn:fechatter:problem:{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            code,
            request_id: None,
            errors: Vec::new(),
            retry_after: None,
        }
    }

    /// A validation failure of one field.
    pub fn field(field: impl Into<String>, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::fields(vec![FieldError {
            field: field.into(),
            code: code.into(),
            detail: detail.into(),
        }])
    }

    /// A validation failure of several fields.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let mut problem = Self::new(Code::ValidationFailed, "Some fields are not valid; see `errors`.");
        problem.errors = errors;
        problem
    }

    /// Says after how many seconds a retry makes sense.
    #[must_use]
    pub const fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_statuses_are_errors() {
        let mut slugs: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| (400..600).contains(&code.status())));
    }

    #[test]
    fn the_shape_is_rfc_9457() {
        let problem = Problem::field("content", "too_long", "at most 10000 characters");
        let value = serde_json::to_value(&problem).unwrap();
        assert_eq!(value["type"], "urn:fechatter:problem:validation_failed");
        assert_eq!(value["status"], 422);
        assert_eq!(value["code"], "validation_failed");
        assert_eq!(value["errors"][0]["field"], "content");
        assert!(value.get("request_id").is_none());
    }
}
