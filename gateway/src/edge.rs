//! What every request meets at the edge, whoever drives its connection. Each step calls the module that knows.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fechatter_core::problem::Code;
use http::header::HOST;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::{Error, ErrorSource, ErrorType};

use crate::access_log;
use crate::answer::{Answer, Marks, Refusal};
use crate::auth::Authenticator;
use crate::client::Client;
use crate::compression::Compressing;
use crate::cors::Cors;
use crate::endpoint::Endpoint;
use crate::http1::Http1;
use crate::idle::Idle;
use crate::metrics::{Metrics, Outcome};
use crate::policy::Current;
use crate::rate_limit::Principal;
use crate::request::RequestContext;
use crate::routes::{Lookup, Route, Routes, Target};
use crate::stream::{Opened, Streams};
use crate::upstreams::Upstreams;
use crate::{body, failure, framing, health, http2, path};

/// Attempts at upstreams per request.
pub const ATTEMPTS_MAX: u32 = 3;

/// Everything a request meets at the edge.
#[derive(Clone)]
pub struct Edge {
    pub routes: &'static Routes,
    pub policy: Current,
    pub authenticator: Authenticator,
    pub upstreams: Arc<Upstreams>,
    pub metrics: Arc<Metrics>,
    /// Connections of this worker to upstreams: those that wait for a request, and those that carry streams.
    pub idle: Arc<Idle>,
    pub streams: Streams,
    /// True from the signal to end on. Answers say then that their connection will not be used again, and clients make
    /// another one, elsewhere, instead of sending on one that is being closed.
    pub leaving: Arc<AtomicBool>,
}

impl Edge {
    /// Serves one request of a client that speaks HTTP/1, up to the end of its answer or, of a stream, of the answer's head.
    pub async fn serve(&self, client: &mut Http1) -> Option<Box<Opened>> {
        let mut context = RequestContext::new(self.policy.load_full());
        let error = match self.answer(client, &mut context).await {
            Ok(Some(upstream)) => return Some(Box::new(Opened { context, upstream })),
            Ok(None) => None,
            Err(error) => {
                failure::answer(client, &mut context, &error).await;
                Some(error)
            }
        };
        self.log(client, &mut context, error.as_deref());
        None
    }

    async fn answer(&self, client: &mut Http1, context: &mut RequestContext) -> pingora::Result<Option<HttpSession>> {
        if !self.begin(client, context).await? {
            return Ok(None);
        }
        if context.route.is_some_and(Route::is_stream) {
            // Large, and for few requests.
            return Box::pin(self.open_stream(client, context)).await.map(Some);
        }
        self.exchange(client, context).await.map(|()| None)
    }

    /// Notes what became of a request.
    pub fn log(&self, client: &impl Client, context: &mut RequestContext, error: Option<&Error>) {
        if let Some(error) = error.filter(|error| *error.esource() != ErrorSource::Downstream) {
            tracing::warn!(%error, route = context.template, "request failed");
        }
        access_log::record(client, context, error, &self.metrics);
    }

    /// Looks at a request; whether it goes on to an upstream, or has its answer.
    ///
    /// # Errors
    ///
    /// When that answer cannot be written.
    pub async fn begin(&self, client: &mut impl Client, context: &mut RequestContext) -> pingora::Result<bool> {
        self.identify(client, context);
        let answer = match self.admit(client, context).await {
            Ok(None) => return Ok(true),
            Ok(Some(answer)) => answer,
            Err(refusal) => Answer::Refusal(refusal),
        };
        let policy = Arc::clone(&context.policy);
        Marks::of(&policy).send(client, context, answer).await?;
        Ok(false)
    }

    /// Gives the request its identity and its bounds.
    fn identify(&self, client: &mut impl Client, context: &mut RequestContext) {
        let peer = client.facts().map(|facts| {
            facts.requests.fetch_add(1, Ordering::Relaxed);
            let stall = u64::try_from(context.policy.write_timeout.as_millis());
            facts.stall_ms.store(stall.unwrap_or(u64::MAX), Ordering::Relaxed);
            facts.peer.ip()
        });
        let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let policy = &context.policy;
        context.identity = Some(policy.identifier.identify(peer, &client.request().headers));
        context.origin = policy.cors.allowed_origin(client.request());
        context.in_flight = Some(self.metrics.request_began());
        // Of HTTP/1; HTTP/2 has a frame for it.
        if self.leaving.load(Ordering::Relaxed) {
            client.close_after();
        }
    }

    /// Decides what happens to a request: an answer of our own, or `None` to pass it on.
    async fn admit(&self, client: &mut impl Client, context: &mut RequestContext) -> Result<Option<Answer>, Refusal> {
        http2::check(client, context.policy.head())?;
        check_client(client.request(), context)?;
        path::check(path_of(client.request().raw_path())).map_err(refuse_path)?;
        let route = match self.routes.find(
            &client.request().method,
            client.request().uri.path(),
            context.policy.has_web(),
        ) {
            Lookup::Found(route) => route,
            Lookup::WrongMethod { template, .. } if Cors::is_preflight(client.request()) => {
                context.template = template;
                return Ok(Some(Answer::Preflight));
            }
            Lookup::WrongMethod { template, allow } => {
                context.template = template;
                return Err(Refusal::wrong_method(allow));
            }
            Lookup::Unknown => {
                return Err(Refusal::new(
                    Code::NotFound,
                    "unknown_route",
                    "There is no such route; see /docs.",
                ));
            }
        };
        context.route = Some(route);
        context.template = route.template;
        check_certificate(client, context)?;
        match route.target {
            Target::Health => return Ok(Some(health::answer(&self.upstreams))),
            Target::Alive => return Ok(Some(health::alive())),
            Target::Upstream(_) => {}
        }
        self.admit_to_upstream(client, context, route).await.map(|()| None)
    }

    async fn admit_to_upstream(
        &self,
        client: &mut impl Client,
        context: &mut RequestContext,
        route: &Route,
    ) -> Result<(), Refusal> {
        let declared = body::check_declared(client.request(), route.body_bytes_max)?;
        let caller = self
            .authenticator
            .authenticate(route.access, client.request(), &self.metrics)
            .await;
        context.claims = caller.map_err(|refusal| limit_refused(refusal, context))?;
        self.limit(context, route)?;
        let within = context.policy.body_timeout;
        context.body_ended = body::receive(client, declared, route.body_bytes_max, within).await?;
        self.enter_group(context, route).await
    }

    /// Takes a place among the requests its group works on; a stream works on nothing most of the time.
    async fn enter_group(&self, context: &mut RequestContext, route: &Route) -> Result<(), Refusal> {
        let Target::Upstream(group) = route.target else {
            return Ok(());
        };
        if route.is_stream() {
            return Ok(());
        }
        context.place = self.upstreams.admit(group, route.class).await;
        if context.place.is_some() {
            return Ok(());
        }
        let detail = "The service behind this route has too much to do; try again.";
        Err(Refusal::new(Code::Unavailable, "overloaded", detail).retry_after(1))
    }

    /// The upstream of the next attempt, which begins now.
    pub fn next_upstream(&self, context: &mut RequestContext) -> pingora::Result<Arc<Endpoint>> {
        let Some((route, Target::Upstream(group))) = context.route.map(|route| (route, route.target)) else {
            return Error::e_explain(ErrorType::InternalError, "a request without a route");
        };
        let tried = context.upstream.as_ref().map(|endpoint| endpoint.address);
        context.attempts += 1;
        context.attempted_at = Some(Instant::now());
        context.body_bytes = 0;
        if context.attempts > 1 {
            self.metrics.retried(group);
        }
        let workspace = context.claims.as_ref().filter(|_| route.is_stream());
        let workspace = workspace.map(|claims| claims.ws);
        let Some(endpoint) = self.upstreams.pick(group, workspace, tried) else {
            return Error::e_explain(ErrorType::HTTPStatus(503), "no healthy upstream");
        };
        context.at_endpoint = Some(endpoint.enter());
        context.upstream = Some(Arc::clone(&endpoint));
        Ok(endpoint)
    }

    /// Checks the head of an upstream's answer and completes it for the client.
    pub fn answered(
        &self,
        client: &impl Client,
        answer: &mut ResponseHeader,
        context: &mut RequestContext,
    ) -> pingora::Result<()> {
        framing::check_answer(answer, || {
            context.route.is_some_and(Route::is_stream) && client.wants_upgrade()
        })?;
        if answer.status.is_informational() {
            return Ok(());
        }
        context.headers_sent();
        context.upstream_wait = context.attempted_at.map(|at| at.elapsed());
        if let Some(endpoint) = &context.upstream
            && self.upstreams.answered(endpoint, answer.status)
        {
            self.metrics.broke(endpoint.group);
        }
        Marks::of(&context.policy).apply(answer, context);
        if context.route.is_some_and(Route::is_stream) && answer.status.is_success() {
            context.open_stream = client.facts().map(|facts| self.metrics.stream_opened(facts));
            context.in_flight = None;
            let outcome = Outcome {
                method: access_log::known_method(&client.request().method),
                route: context.template,
                status: answer.status.as_u16(),
                http2: client.is_http2(),
            };
            access_log::end_span(context, outcome, client.request());
        } else if let Some(route) = context.route {
            let settings = &context.policy.config.compression;
            context.compressing = Compressing::begin(settings, route, client.request(), answer)?;
        }
        Ok(())
    }

    fn limit(&self, context: &mut RequestContext, route: &Route) -> Result<(), Refusal> {
        if !context.policy.limits.may_decide() {
            let detail = "Limits cannot be shared at the moment; try again.";
            return Err(Refusal::new(Code::Unavailable, "limits_not_shared", detail).retry_after(1));
        }
        let principal = match (&context.claims, &context.identity) {
            (Some(claims), _) => Principal::User(claims.user_id()),
            (None, Some(identity)) => Principal::of_address(identity.client),
            (None, None) => return Ok(()),
        };
        let workspace = context.claims.as_ref().map(|claims| claims.ws);
        let decision = context.policy.limits.check(route.class, principal, workspace);
        self.metrics.rate_limit(route.class, decision.verdict());
        context.decision = Some(decision);
        if decision.allowed {
            return Ok(());
        }
        let refusal = Refusal::new(
            Code::RateLimited,
            "rate_limited",
            "Too many requests; `Retry-After` says when to go on.",
        );
        Err(refusal.retry_after(decision.retry_after()))
    }
}

/// Who keeps guessing tokens is told to wait; who has a good one at the same address is not.
fn limit_refused(refusal: Refusal, context: &RequestContext) -> Refusal {
    let Some(identity) = context.identity.as_ref().filter(|_| refusal.status() == 401) else {
        return refusal;
    };
    match context
        .policy
        .limits
        .check_refused(Principal::of_address(identity.client))
    {
        None => refusal,
        Some(wait) => Refusal::new(
            Code::RateLimited,
            "refused_too_often",
            "Too many requests without a valid token; `Retry-After` says when to go on.",
        )
        .retry_after(wait),
    }
}

/// Whether the client may come, and meant us.
fn check_client(request: &RequestHeader, context: &RequestContext) -> Result<(), Refusal> {
    let policy = &context.policy;
    if let Some(identity) = &context.identity
        && !policy.addresses.permit(identity.client)
    {
        return Err(Refusal::new(
            Code::Forbidden,
            "address_denied",
            "Clients at this address are not let in.",
        ));
    }
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    let host = authority.or_else(|| request.headers.get(HOST).and_then(|host| host.to_str().ok()));
    if policy.hosts.answer_to(host.unwrap_or_default()) {
        return Ok(());
    }
    Err(Refusal::new(
        Code::MisdirectedRequest,
        "unknown_host",
        "This gateway does not answer to that host name.",
    ))
}

/// Whether the client has brought the certificate that its route asks for.
fn check_certificate(client: &impl Client, context: &RequestContext) -> Result<(), Refusal> {
    let certified = &context.policy.certified;
    if certified.is_empty()
        || !certified.contain(context.template)
        || client.facts().is_some_and(|facts| facts.certified)
    {
        return Ok(());
    }
    let detail = "This route is for clients that bring a certificate.";
    Err(Refusal::new(Code::Forbidden, "certificate_absent", detail))
}

/// The path without its query, as it arrived.
fn path_of(target: &[u8]) -> &[u8] {
    target.split(|byte| *byte == b'?').next().unwrap_or_default()
}

fn refuse_path(fault: path::PathFault) -> Refusal {
    Refusal::new(
        Code::BadRequest,
        fault.as_str(),
        "The path is not in its one unambiguous form.",
    )
}
