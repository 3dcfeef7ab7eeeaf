//! One line per request, after its last byte; and its metrics and the end of its span.
//!
//! Never a token, never a query: tickets and searched words are in there.

use std::time::Duration;

use http::Method;
use opentelemetry::KeyValue;
use opentelemetry::trace::TraceId;
use pingora::http::RequestHeader;

use crate::client::Client;
use crate::identity::Identity;
use crate::metrics::{Metrics, Outcome};
use crate::policy::Policy;
use crate::request::RequestContext;

/// The status logged when the client left before it got an answer.
const CLIENT_LEFT: u16 = 499;

/// Records a request that is over.
pub fn record(client: &impl Client, context: &mut RequestContext, failed: Option<&pingora::Error>, metrics: &Metrics) {
    let status = client.answered().map_or(CLIENT_LEFT, |status| status.as_u16());
    let request = client.request();
    let outcome = Outcome {
        method: known_method(&request.method),
        route: context.template,
        status,
        http2: client.is_http2(),
    };
    let total = context.started.elapsed();
    metrics.request(outcome, context.to_headers.unwrap_or(total));
    if let Some(reason) = context.refused {
        metrics.refused(reason);
    }
    let is_stream = context.open_stream.take().is_some();
    if is_stream {
        metrics.stream_ended(total);
    }
    let facts = client.facts();
    line(&Line {
        outcome,
        context,
        path: request.uri.path(),
        bytes_in: client.bytes_in(),
        bytes_out: client.bytes_out(),
        tls: facts.map_or(Duration::ZERO, |facts| facts.handshake),
        total,
        is_stream,
        failed,
    });
    end_span(context, outcome, request);
}

/// Records a request that was refused before it was one.
pub fn record_unparsed(
    policy: &Policy,
    identity: &Identity,
    status: u16,
    reason: &'static str,
    total: Duration,
    metrics: &Metrics,
) {
    let outcome = Outcome {
        method: "_OTHER",
        route: crate::request::UNMATCHED,
        status,
        http2: false,
    };
    metrics.request(outcome, total);
    metrics.refused(reason);
    if !is_wanted(policy, Some(identity), outcome.route, status, total) {
        return;
    }
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
    is_stream: bool,
    failed: Option<&'a pingora::Error>,
}

/// Whether a request gets a line. What failed or was slow always does; of the others as many as configured, the same ones at every
/// gateway on the way.
fn is_wanted(policy: &Policy, identity: Option<&Identity>, template: &str, status: u16, total: Duration) -> bool {
    let settings = &policy.config.access_log;
    if status >= 500 || total.as_millis() >= u128::from(settings.slow_ms) {
        return true;
    }
    let percent = if status >= 400 {
        settings.sample_refused_percent
    } else if !policy.silent.is_empty() && policy.silent.contain(template) {
        return false;
    } else {
        settings.sample_percent
    };
    // Most take all.
    percent >= 100.0 || identity.is_some_and(|identity| percent_of(identity.trace.id()) < percent)
}

/// Where in 0 to 100 a trace stands: its last bytes are random.
fn percent_of(trace: TraceId) -> f64 {
    let [.., a, b, c, d] = trace.to_bytes();
    f64::from(u32::from_be_bytes([a, b, c, d])) / (f64::from(u32::MAX) + 1.0) * 100.0
}

fn line(line: &Line<'_>) {
    let (context, status) = (line.context, line.outcome.status);
    let identity = context.identity.as_ref();
    // Building the fields is most of the cost. A stream is long, not slow.
    let total = if line.is_stream { Duration::ZERO } else { line.total };
    if !tracing::enabled!(target: "access", tracing::Level::INFO)
        || (line.failed.is_none() && !is_wanted(&context.policy, identity, line.outcome.route, status, total))
    {
        return;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AccessLog, Config};
    use crate::identity::Identifier;

    #[test]
    fn failures_and_slow_requests_are_always_wanted_and_others_as_configured() {
        let config = Config {
            access_log: AccessLog {
                sample_percent: 10.0,
                sample_refused_percent: 0.0,
                slow_ms: 50,
                silent_routes: vec!["/health*".to_owned()],
            },
            ..Config::default()
        };
        let policy = Policy::new(config, None);
        let identifier = Identifier::new(Vec::new());
        let peer = "192.0.2.1".parse().unwrap();
        let count = |template: &str, status, milliseconds| {
            let wanted = |_: &u32| {
                let identity = identifier.identify(peer, &http::HeaderMap::new());
                is_wanted(
                    &policy,
                    Some(&identity),
                    template,
                    status,
                    Duration::from_millis(milliseconds),
                )
            };
            (0..2_000).filter(wanted).count()
        };
        assert_eq!(count("/api/me", 500, 1), 2_000);
        assert_eq!(count("/health", 503, 1), 2_000);
        assert_eq!(count("/api/me", 200, 50), 2_000);
        assert_eq!(count("/api/me", 401, 1), 0);
        assert_eq!(count("/health/simple", 200, 1), 0);
        let sampled = count("/api/me", 200, 1);
        assert!((100..=320).contains(&sampled), "about 200: {sampled}");
    }
}
