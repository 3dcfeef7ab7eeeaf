//! What every request to a service meets: request id, trace, metrics, one log line, problem answers, bounds.

use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use fechatter_core::problem::{Code, Problem};
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use observability::instruments::Instruments;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use tracing::{Instrument, Span, field::Empty};

use crate::ApiError;
use crate::error::render;

/// Largest request body unless a route says otherwise, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Names a request in answers, logs and traces.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Tells the client which trace its request is in (W3C Trace Context level 2).
pub const TRACE_RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// The id of the request in hand; an extension of every request.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Wraps a service's routes.
pub fn apply(router: Router) -> Router {
    router
        .fallback(|| async {
            ApiError::new(
                Code::NotFound,
                "There is no such route; /openapi.json lists what there is.",
            )
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(observe))
}

/// Whether a request id from the gateway can be kept: 8 to 128 of `A-Z a-z 0-9 . _ -`.
pub fn is_request_id(text: &str) -> bool {
    (8..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|text| is_request_id(text))
        .map_or_else(|| uuid::Uuid::now_v7().simple().to_string(), str::to_owned)
}

fn duration_histogram() -> &'static Histogram<f64> {
    static HISTOGRAM: OnceLock<Histogram<f64>> = OnceLock::new();
    HISTOGRAM.get_or_init(|| {
        Instruments::of("service_runtime").seconds(
            "http.server.request.duration",
            "Time from the request's head to the answer's head.",
            &observability::buckets::HTTP_DURATION_BUCKETS,
        )
    })
}

async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let route_label = route.clone().unwrap_or_else(|| "unmatched".to_owned());
    let method = known_method(request.method());
    // Probes every few seconds would drown what people do.
    let quiet = route_label.starts_with("/health");
    let span = if quiet {
        Span::none()
    } else {
        tracing::info_span!(
            "request",
            otel.name = format!("{method} {route_label}"),
            otel.kind = "server",
            otel.status_code = Empty,
            request_id = %id,
            http.request.method = method,
            http.route = route.as_deref(),
            url.scheme = "http",
            url.path = request.uri().path(),
            "error.type" = Empty,
            http.response.status_code = Empty,
            user.id = Empty,
        )
    };
    observability::propagation::set_parent(&span, observability::propagation::extract_http(request.headers()));
    request.extensions_mut().insert(RequestId(id.clone()));

    let mut response = AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .instrument(span.clone())
        .await
        .unwrap_or_else(|_| span.in_scope(answer_panic));
    let status = response.status();
    response = as_problem(response, &id);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    span.in_scope(|| {
        span.record("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            span.record("otel.status_code", "ERROR");
            span.record("error.type", status.as_str());
        }
        if let Some(value) = observability::propagation::current_traceparent().and_then(|v| v.try_into().ok()) {
            response.headers_mut().insert(TRACE_RESPONSE, value);
        }
        if !quiet {
            log(method, &route_label, status, started);
        }
    });
    record(method, &route_label, status, started);
    response
}

fn answer_panic() -> Response {
    tracing::error!("a handler panicked");
    ApiError::new(
        Code::Internal,
        "Something went wrong on our side. The request id finds it in our logs.",
    )
    .into_response()
}

fn log(method: &str, route: &str, status: StatusCode, started: Instant) {
    let (status, duration_ms) = (status.as_u16(), started.elapsed().as_secs_f64() * 1e3);
    if status >= 500 {
        tracing::error!(target: "request", method, route, status, duration_ms, "request");
    } else {
        tracing::info!(target: "request", method, route, status, duration_ms, "request");
    }
}

fn record(method: &'static str, route: &str, status: StatusCode, started: Instant) {
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("http.route", route.to_owned()),
        KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
        KeyValue::new("url.scheme", "http"),
    ];
    if status.is_server_error() {
        attributes.push(KeyValue::new("error.type", status.as_str().to_owned()));
    }
    duration_histogram().record(started.elapsed().as_secs_f64(), &attributes);
}

/// The method as a bounded label (OpenTelemetry asks for `_OTHER`).
fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

/// Writes the request id into problems, and turns the framework's own error answers into problems.
fn as_problem(response: Response, id: &str) -> Response {
    let problem = match response.extensions().get::<ApiError>() {
        Some(ApiError(problem)) => (**problem).clone(),
        None => match plain_error(response.status()) {
            Some(problem) if !is_problem(&response) => problem,
            _ => return response,
        },
    };
    let mut answer = render(&Problem {
        request_id: Some(id.to_owned()),
        ..problem
    });
    if let Some(allow) = response.headers().get(header::ALLOW) {
        answer.headers_mut().insert(header::ALLOW, allow.clone());
    }
    answer
}

fn is_problem(response: &Response) -> bool {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().ends_with(b"json"))
}

fn plain_error(status: StatusCode) -> Option<Problem> {
    Some(match status {
        StatusCode::METHOD_NOT_ALLOWED => Problem::new(
            Code::MethodNotAllowed,
            "This route does not have that method; `Allow` lists what it has.",
        ),
        StatusCode::NOT_FOUND => Problem::new(
            Code::NotFound,
            "There is no such route; /openapi.json lists what there is.",
        ),
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(Code::PayloadTooLarge, "The body is larger than this route accepts.")
        }
        StatusCode::BAD_REQUEST => Problem::new(Code::BadRequest, "The request could not be understood."),
        status if status.is_server_error() => Problem::new(Code::Internal, "Something went wrong on our side."),
        _ => return None,
    })
}
