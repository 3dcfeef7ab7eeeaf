//! What becomes of a request that an upstream did not serve: another attempt, or an answer that says why.

use std::sync::Arc;

use fechatter_core::problem::Code;
use http::Method;
use pingora::{Error, ErrorSource, ErrorType};

use crate::answer::{Answer, Marks, Refusal};
use crate::body;
use crate::client::Client;
use crate::edge::{ATTEMPTS_MAX, Edge};
use crate::endpoint::Endpoint;
use crate::request::RequestContext;

impl Edge {
    /// Nothing was sent, so another attempt is safe whatever the method.
    pub fn not_connected(&self, context: &RequestContext, mut error: Box<Error>) -> Box<Error> {
        let Some(endpoint) = &context.upstream else {
            return error;
        };
        self.upstreams.unreachable(endpoint, error.etype().as_str());
        error.set_retry(self.upstreams.has_other(endpoint) && self.may_retry(context, endpoint));
        error
    }

    /// Something was sent, so another attempt is for requests that may arrive twice, and only while no answer has begun. A
    /// late answer is no reason: the upstream is busy enough.
    pub fn broken_off(
        &self,
        client: &impl Client,
        context: &RequestContext,
        mut error: Box<Error>,
        reused: bool,
    ) -> Box<Error> {
        let of_upstream = *error.esource() == ErrorSource::Upstream;
        let is_late = matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
        let Some(endpoint) = context.upstream.as_ref().filter(|_| of_upstream) else {
            error.set_retry(false);
            return error;
        };
        let answered = client.answered().is_some();
        // A kept connection that turns out to be closed says nothing about the upstream, nor does a client's late body.
        let is_stale = reused && !is_late && !answered;
        if !is_stale && (context.body_ended || !is_late) && self.upstreams.failed(endpoint) {
            self.metrics.broke(endpoint.group);
        }
        let may_repeat = is_repeatable(&client.request().method) && client.kept_all();
        let may_help = !answered && !is_late && (is_stale || self.upstreams.has_other(endpoint));
        error.set_retry(may_repeat && may_help && self.may_retry(context, endpoint));
        error
    }

    /// Whether there may be another attempt: a few, and within the group's budget.
    fn may_retry(&self, context: &RequestContext, endpoint: &Endpoint) -> bool {
        context.attempts < ATTEMPTS_MAX && self.upstreams.may_retry(endpoint.group)
    }
}

/// Answers a request that has failed, unless its answer has begun or nobody is there to read one; returns the status, or 0.
pub async fn answer(client: &mut impl Client, context: &mut RequestContext, error: &Error) -> u16 {
    if client.answered().is_some_and(|status| !status.is_informational()) {
        if *error.esource() != ErrorSource::Downstream
            && let Err(error) = client.write_out().await
        {
            tracing::trace!(%error, "the answer ends here");
        }
        return 0;
    }
    let Some(refusal) = refusal_of(error, context) else {
        return 0;
    };
    let status = refusal.status();
    client.close_after();
    let policy = Arc::clone(&context.policy);
    let sent = Marks::of(&policy).send(client, context, Answer::Refusal(refusal)).await;
    if let Err(error) = sent {
        tracing::debug!(%error, "the client left before its error answer");
    }
    status
}

/// Whether a request may arrive twice with the same effect and the same answer. `DELETE` may not: the second answer says
/// that there is nothing to delete.
fn is_repeatable(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::PUT)
}

/// What a failed request is answered with; nothing when the client is gone.
fn refusal_of(error: &Error, context: &RequestContext) -> Option<Refusal> {
    use ErrorType as E;
    let unavailable = |reason, detail| Some(Refusal::new(Code::Unavailable, reason, detail).retry_after(1));
    match (error.etype(), error.esource()) {
        (E::HTTPStatus(413), _) => Some(body::too_large(context.route.map_or(0, |route| route.body_bytes_max))),
        (E::HTTPStatus(503), _) => unavailable(
            "no_upstream",
            "The service behind this route is not available; try again.",
        ),
        (E::InvalidHTTPHeader, ErrorSource::Downstream) => Some(Refusal::new(
            Code::BadRequest,
            "header",
            "A header field of the request is not valid.",
        )),
        (E::HTTPStatus(408), _) | (E::ReadTimedout, ErrorSource::Downstream) => Some(body::timed_out()),
        (_, ErrorSource::Downstream) => None,
        (
            E::ConnectTimedout
            | E::ConnectRefused
            | E::ConnectNoRoute
            | E::ConnectError
            | E::SocketError
            | E::BindError,
            ErrorSource::Upstream,
        ) => unavailable(
            "upstream_connect",
            "The service behind this route cannot be reached; try again.",
        ),
        (E::ReadTimedout, ErrorSource::Upstream) if !context.body_ended => Some(body::timed_out()),
        (E::ReadTimedout | E::WriteTimedout, ErrorSource::Upstream) => Some(Refusal::new(
            Code::GatewayTimeout,
            "upstream_timeout",
            "The service behind this route took too long.",
        )),
        (_, ErrorSource::Upstream) => Some(Refusal::new(
            Code::BadGateway,
            "upstream_broken",
            "The service behind this route broke off its answer.",
        )),
        _ => Some(Refusal::new(
            Code::Internal,
            "internal",
            "Something went wrong at the gateway. The request id finds it in our logs.",
        )),
    }
}
