//! One line per request, after its last byte; and its metrics and the end of its span.
//!
//! Never a token, never a query: tickets and searched words are in there.

use std::time::Duration;

use http::Method;
use opentelemetry::KeyValue;
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use crate::connection::Facts;
use crate::identity::Identity;
use crate::metrics::{Metrics, Outcome};
use crate::request::RequestContext;

/// The status logged when the client left before it got an answer.
const CLIENT_LEFT: u16 = 499;

/// Records a request that is over.
pub fn record(session: &Session, context: &mut RequestContext, failed: Option<&pingora::Error>, metrics: &Metrics) {
    let written = session.as_downstream().response_written();
    let status = written.map_or(CLIENT_LEFT, |answer| answer.status.as_u16());
    let request = session.req_header();
    let outcome = Outcome {
        method: known_method(&request.method),
        route: context.template,
        status,
        http2: session.as_downstream().is_http2(),
    };
    let total = context.started.elapsed();
    metrics.request(outcome, context.to_headers.unwrap_or(total));
    if let Some(reason) = context.refused {
        metrics.refused(reason);
    }
    if context.open_stream.take().is_some() {
        metrics.stream_ended(total);
    }
    let facts = Facts::of(session);
    line(&Line {
        outcome,
        context,
        path: request.uri.path(),
        bytes_in: session.as_downstream().body_bytes_read(),
        bytes_out: session.as_downstream().body_bytes_sent(),
        tls: facts.map_or(Duration::ZERO, |facts| facts.handshake),
        total,
        failed,
    });
    end_span(context, outcome, request);
}

/// Records a request that was refused before it was one.
pub fn record_unparsed(identity: &Identity, status: u16, reason: &'static str, total: Duration, metrics: &Metrics) {
    let outcome = Outcome {
        method: "_OTHER",
        route: crate::request::UNMATCHED,
        status,
        http2: false,
    };
    metrics.request(outcome, total);
    metrics.refused(reason);
    let _traced = identity.trace.of_log_lines();
    tracing::info!(
        target: "access",
        request_id = identity.request_id.to_str().unwrap_or_default(),
        route = outcome.route,
        status,
        client = %identity.client,
        duration_ms = millis(total),
        refused = reason,
        "request refused"
    );
}

/// Ends the span of a request; that of a stream when it begins, since spans that last for hours are never looked at.
pub fn end_span(context: &mut RequestContext, outcome: Outcome, request: &RequestHeader) {
    let user = context.claims.as_ref().map(|claims| claims.user_id());
    let upstream = context.upstream.clone();
    let refused = context.refused;
    let Some(identity) = &mut context.identity else {
        return;
    };
    let (client, request_id) = (identity.client, identity.request_id.clone());
    let attributes = || {
        let mut attributes = vec![
            KeyValue::new("http.request.method", outcome.method),
            KeyValue::new("http.route", outcome.route),
            KeyValue::new("http.response.status_code", i64::from(outcome.status)),
            KeyValue::new("url.scheme", "https"),
            // Never the query: tickets and searched words are in there.
            KeyValue::new("url.path", request.uri.path().to_owned()),
            KeyValue::new("network.protocol.version", outcome.version()),
            KeyValue::new("client.address", client.to_string()),
            KeyValue::new("request.id", request_id.to_str().unwrap_or_default().to_owned()),
        ];
        attributes.extend(user.map(|user| KeyValue::new("user.id", user.0.to_string())));
        let agent = request
            .headers
            .get(http::header::USER_AGENT)
            .and_then(|agent| agent.to_str().ok());
        attributes.extend(agent.map(|agent| KeyValue::new("user_agent.original", agent.to_owned())));
        if outcome.status >= 500 {
            attributes.push(KeyValue::new("error.type", outcome.status.to_string()));
        }
        // `server.address` would be ours.
        attributes.extend(upstream.map(|upstream| KeyValue::new("gateway.upstream", upstream.address.to_string())));
        attributes.extend(refused.map(|reason| KeyValue::new("gateway.refused", reason)));
        attributes
    };
    identity.trace.end(
        || format!("{} {}", outcome.method, outcome.route),
        attributes,
        outcome.status >= 500,
    );
}

struct Line<'a> {
    outcome: Outcome,
    context: &'a RequestContext,
    path: &'a str,
    bytes_in: usize,
    bytes_out: usize,
    tls: Duration,
    total: Duration,
    failed: Option<&'a pingora::Error>,
}

fn line(line: &Line<'_>) {
    // Building the fields is most of the cost.
    if !tracing::enabled!(target: "access", tracing::Level::INFO) {
        return;
    }
    let context = line.context;
    let identity = context.identity.as_ref();
    let _traced = identity.map(|identity| identity.trace.of_log_lines());
    tracing::info!(
        target: "access",
        request_id = identity.map(|identity| identity.request_id.to_str().unwrap_or_default()),
        method = line.outcome.method,
        route = line.outcome.route,
        path = (line.outcome.route == crate::request::UNMATCHED).then(|| line.path.chars().take(200).collect::<String>()),
        status = line.outcome.status,
        protocol = if line.outcome.http2 { "h2" } else { "http/1.1" },
        bytes_in = line.bytes_in,
        bytes_out = line.bytes_out,
        duration_ms = millis(line.total),
        headers_ms = context.to_headers.map(millis),
        upstream_ms = context.upstream_wait.map(millis),
        tls_ms = millis(line.tls),
        upstream = context.upstream.as_ref().map(|upstream| tracing::field::display(upstream.address)),
        attempts = context.attempts,
        user_id = context.claims.as_ref().map(|claims| claims.user_id().0),
        client = identity.map(|identity| tracing::field::display(identity.client)),
        rate_limit = context.decision.map(|decision| decision.verdict()),
        refused = context.refused,
        error = line.failed.map(|error| error.etype().as_str()),
        "request"
    );
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The method as a bounded label (OpenTelemetry asks for `_OTHER`).
pub fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}
