//! What the gateway answers itself, and what it adds to every answer.

use std::borrow::Cow;

use bytes::Bytes;
use fechatter_core::problem::{Code, PROBLEM_JSON, Problem};
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER, SERVER,
    STRICT_TRANSPORT_SECURITY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use pingora::http::ResponseHeader;

use crate::body;
use crate::client::Client;
use crate::cors::Cors;
use crate::fields;
use crate::identity::{Identity, REQUEST_ID, TRACE_RESPONSE};
use crate::policy::Policy;
use crate::rate_limit::Limits;
use crate::request::RequestContext;
use crate::routes::Route;

/// Put on every answer. The content policy yields to an upstream's own (a documentation page needs its scripts).
const SECURITY: [(HeaderName, HeaderValue); 4] = [
    (
        STRICT_TRANSPORT_SECURITY,
        HeaderValue::from_static("max-age=31536000; includeSubDomains"),
    ),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
];
/// For pages of a web client that say nothing themselves: they need their own scripts and styles.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static("frame-ancestors 'none'; object-src 'none'; base-uri 'self'");
const CONTENT_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

/// A request the gateway does not pass on, and why.
#[derive(Debug)]
pub struct Refusal {
    code: Code,
    detail: Cow<'static, str>,
    /// A bounded label for logs and metrics.
    pub reason: &'static str,
    retry_after: Option<u64>,
    field: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// A refusal with a stable `reason` for operators and a `detail` for the client.
    pub fn new(code: Code, reason: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            reason,
            retry_after: None,
            field: None,
        }
    }

    /// A 401 with the challenge that RFC 6750 asks for.
    pub fn unauthorized(code: Code, reason: &'static str, detail: &'static str) -> Self {
        let challenge = match code {
            Code::InvalidToken => "Bearer error=\"invalid_token\"",
            _ => "Bearer",
        };
        Self {
            field: Some((WWW_AUTHENTICATE, HeaderValue::from_static(challenge))),
            ..Self::new(code, reason, detail)
        }
    }

    /// A 405 that lists what would be right.
    pub fn wrong_method(allow: &str) -> Self {
        let mut refusal = Self::new(
            Code::MethodNotAllowed,
            "wrong_method",
            "This route does not have that method; `Allow` lists what it has.",
        );
        refusal.field = HeaderValue::from_str(allow).ok().map(|allow| (ALLOW, allow));
        refusal
    }

    /// Says after how many seconds a retry makes sense.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The HTTP status.
    pub const fn status(&self) -> u16 {
        self.code.status()
    }

    /// The problem document for the request with this id.
    pub fn body(&self, request_id: &HeaderValue) -> Bytes {
        let mut problem = Problem::new(self.code, self.detail.as_ref());
        problem.request_id = request_id.to_str().ok().map(str::to_owned);
        problem.retry_after = self.retry_after;
        serde_json::to_vec(&problem).unwrap_or_default().into()
    }
}

/// An answer the gateway makes itself.
#[derive(Debug)]
pub enum Answer {
    Json { status: u16, body: Bytes },
    Preflight,
    Refusal(Refusal),
}

/// What goes on every answer, wherever it comes from.
#[derive(Debug)]
pub struct Marks<'a> {
    pub cors: &'a Cors,
    pub limits: &'a Limits,
}

impl<'a> Marks<'a> {
    /// The marks of a policy.
    pub fn of(policy: &'a Policy) -> Self {
        Self {
            cors: &policy.cors,
            limits: &policy.limits,
        }
    }

    /// Completes the head of an answer.
    pub fn apply(&self, answer: &mut ResponseHeader, context: &RequestContext) {
        fields::of_answer(answer, |fields| self.mark(fields, context));
    }

    fn mark(&self, fields: &mut HeaderMap, context: &RequestContext) {
        fields.remove(SERVER);
        for (name, value) in SECURITY {
            fields.insert(name, value);
        }
        let is_page = context.upstream.is_some() && context.route.is_some_and(Route::is_web);
        let policy = if is_page { PAGE_POLICY } else { CONTENT_POLICY };
        fields.entry(CONTENT_SECURITY_POLICY).or_insert(policy);
        if let Some(identity) = &context.identity {
            fields.insert(REQUEST_ID, identity.request_id.clone());
            fields.insert(TRACE_RESPONSE, identity.trace.header());
        }
        if let Some(decision) = &context.decision {
            self.limits.mark(fields, decision);
        }
        self.cors.mark(fields, context.origin.as_ref());
    }

    /// Sends an answer of the gateway's own.
    pub async fn send(
        &self,
        client: &mut impl Client,
        context: &mut RequestContext,
        answer: Answer,
    ) -> pingora::Result<()> {
        let is_head = client.request().method == Method::HEAD;
        let (mut head, body) = self.compose(context, answer)?;
        self.apply(&mut head, context);
        let has_body = !is_head && !body.is_empty();
        context.headers_sent();
        client.write_head(head, !has_body).await?;
        if has_body {
            client.write_body(Some(body), true).await?;
        }
        body::discard(client).await;
        Ok(())
    }

    fn compose(&self, context: &mut RequestContext, answer: Answer) -> pingora::Result<(ResponseHeader, Bytes)> {
        let (status, content_type, body) = match &answer {
            Answer::Json { status, body } => (*status, Some("application/json"), body.clone()),
            Answer::Preflight => (204, None, Bytes::new()),
            Answer::Refusal(refusal) => {
                context.refused = Some(refusal.reason);
                let id = context.identity.as_ref().map(|identity| &identity.request_id);
                let body = refusal.body(id.unwrap_or(&HeaderValue::from_static("-")));
                (refusal.status(), Some(PROBLEM_JSON), body)
            }
        };
        let mut head = ResponseHeader::build(status, Some(16))?;
        head.insert_header(CACHE_CONTROL, "no-store")?;
        if let Some(content_type) = content_type {
            head.insert_header(CONTENT_TYPE, content_type)?;
            head.set_content_length(body.len())?;
        }
        match answer {
            Answer::Refusal(refusal) => {
                if let Some(seconds) = refusal.retry_after {
                    head.insert_header(RETRY_AFTER, seconds.to_string())?;
                }
                if let Some((name, value)) = refusal.field {
                    head.insert_header(name, value)?;
                }
            }
            Answer::Preflight => self.cors.mark_preflight(&mut head)?,
            Answer::Json { .. } => {}
        }
        Ok((head, body))
    }
}

/// The bytes of a refusal for a connection whose request never became one; the connection closes after it.
pub fn raw_refusal(refusal: &Refusal, identity: &Identity) -> Vec<u8> {
    let body = refusal.body(&identity.request_id);
    let status = http::StatusCode::from_u16(refusal.status()).unwrap_or(http::StatusCode::BAD_REQUEST);
    let mut head = format!(
        "HTTP/1.1 {} {}\r\n",
        status.as_str(),
        status.canonical_reason().unwrap_or("Error")
    )
    .into_bytes();
    let length = HeaderValue::from(body.len());
    let trace = identity.trace.header();
    let own = [
        ("content-type", &HeaderValue::from_static(PROBLEM_JSON)),
        ("content-length", &length),
        ("cache-control", &HeaderValue::from_static("no-store")),
        ("content-security-policy", &CONTENT_POLICY),
        ("x-request-id", &identity.request_id),
        ("traceresponse", &trace),
        ("connection", &HeaderValue::from_static("close")),
    ];
    let security = SECURITY;
    let fields = own
        .into_iter()
        .chain(security.iter().map(|(name, value)| (name.as_str(), value)));
    for (name, value) in fields {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(&body);
    head
}
