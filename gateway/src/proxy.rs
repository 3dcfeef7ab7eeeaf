//! The request path as Pingora's phases. Each phase calls the module that knows; no rule lives here.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use fechatter_core::problem::Code;
use http::header::HOST;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};

use crate::access_log;
use crate::answer::{Answer, Marks, Refusal};
use crate::auth::Authenticator;
use crate::compression::Compressing;
use crate::connection::Facts;
use crate::cors::Cors;
use crate::endpoint::Endpoint;
use crate::idle::Idle;
use crate::metrics::{Metrics, Outcome};
use crate::policy::Current;
use crate::rate_limit::Principal;
use crate::request::RequestContext;
use crate::routes::{Lookup, Route, Routes, Target};
use crate::upstreams::Upstreams;
use crate::{body, dress, exchange, failure, fields, framing, health, http2, path};

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
    /// Connections of this worker to upstreams.
    pub idle: Arc<Idle>,
    /// True from the signal to end on. Answers say then that their connection will not be used again, and clients make
    /// another one, elsewhere, instead of sending on one that is being closed.
    pub leaving: Arc<AtomicBool>,
}

impl Edge {
    /// Gives the request its identity and its bounds.
    fn begin(&self, session: &mut Session, context: &mut RequestContext) {
        let peer = Facts::of(session).map(|facts| {
            facts.requests.fetch_add(1, Ordering::Relaxed);
            facts.peer.ip()
        });
        let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let policy = &context.policy;
        // From here on the head is without the letters of its names, so that each attempt copies less.
        let _ = fields::of_request(session.req_header_mut(), |_| ());
        context.identity = Some(policy.identifier.identify(peer, &session.req_header().headers));
        context.origin = policy.cors.allowed_origin(session.req_header());
        context.in_flight = Some(self.metrics.request_began());
        session.set_write_timeout(Some(policy.write_timeout));
        // Of HTTP/1; HTTP/2 has a frame for it.
        if self.leaving.load(Ordering::Relaxed) {
            session.set_keepalive(None);
        }
    }

    /// Decides what happens to a request: an answer of our own, or `None` to pass it on.
    async fn admit(&self, session: &mut Session, context: &mut RequestContext) -> Result<Option<Answer>, Refusal> {
        http2::check(session, context.policy.head())?;
        check_client(session.req_header(), context)?;
        path::check(path_of(session.req_header().raw_path())).map_err(refuse_path)?;
        let route = match self.routes.find(
            &session.req_header().method,
            session.req_header().uri.path(),
            context.policy.has_web(),
        ) {
            Lookup::Found(route) => route,
            Lookup::WrongMethod { template, .. } if Cors::is_preflight(session.req_header()) => {
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
        check_certificate(session, context)?;
        match route.target {
            Target::Health => return Ok(Some(health::answer(&self.upstreams))),
            Target::Alive => return Ok(Some(health::alive())),
            Target::Upstream(_) => {}
        }
        self.admit_to_upstream(session, context, route).await.map(|()| None)
    }

    async fn admit_to_upstream(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
        route: &Route,
    ) -> Result<(), Refusal> {
        let declared = body::check_declared(session.req_header(), route.body_bytes_max)?;
        let caller = self
            .authenticator
            .authenticate(route.access, session.req_header(), &self.metrics)
            .await;
        context.claims = caller.map_err(|refusal| limit_refused(refusal, context))?;
        self.limit(context, route)?;
        let within = context.policy.body_timeout;
        context.body_deadline = Some(context.started + within);
        context.body_ended = body::receive(session, declared, route.body_bytes_max, within).await?;
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
        session: &Session,
        answer: &mut ResponseHeader,
        context: &mut RequestContext,
    ) -> pingora::Result<()> {
        framing::check_answer(answer, || {
            context.route.is_some_and(Route::is_stream) && session.as_downstream().is_upgrade_req()
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
            context.open_stream = Facts::of(session).map(|facts| self.metrics.stream_opened(facts));
            context.in_flight = None;
            let outcome = Outcome {
                method: access_log::known_method(&session.req_header().method),
                route: context.template,
                status: answer.status.as_u16(),
                http2: session.as_downstream().is_http2(),
            };
            access_log::end_span(context, outcome, session.req_header());
        } else if let Some(route) = context.route {
            let settings = &context.policy.config.compression;
            context.compressing = Compressing::begin(settings, route, session.req_header(), answer)?;
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
fn check_certificate(session: &Session, context: &RequestContext) -> Result<(), Refusal> {
    let certified = &context.policy.certified;
    if certified.is_empty()
        || !certified.contain(context.template)
        || Facts::of(session).is_some_and(|facts| facts.certified)
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

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = RequestContext;

    fn new_ctx(&self) -> Self::CTX {
        RequestContext::new(self.policy.load_full())
    }

    /// None: our own steps are called below where they are needed, and cost nothing elsewhere.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, context: &mut Self::CTX) -> pingora::Result<bool> {
        self.begin(session, context);
        let answer = match self.admit(session, context).await {
            Ok(None) => return Ok(false),
            Ok(Some(answer)) => answer,
            Err(refusal) => Answer::Refusal(refusal),
        };
        let policy = Arc::clone(&context.policy);
        Marks::of(&policy).send(session, context, answer).await?;
        Ok(true)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Self::CTX,
    ) -> pingora::Result<()> {
        context.body_ended |= end;
        if session.as_downstream().was_upgraded() {
            // Another protocol, no body.
            return Ok(());
        }
        let max = context.route.map_or(0, |route| route.body_bytes_max);
        let deadline = context.body_deadline.filter(|_| !context.body_ended);
        let bytes = body.as_ref().map_or(0, Bytes::len);
        body::count(&mut context.body_bytes, bytes, max, deadline)
    }

    /// Ordinary requests do not need the two halves and the channels between them that Pingora has for every request.
    async fn proxy_upstream_filter(&self, session: &mut Session, context: &mut Self::CTX) -> pingora::Result<bool> {
        if !exchange::is_ordinary(session, context) {
            return Ok(true);
        }
        self.exchange(session, context).await?;
        Ok(false)
    }

    async fn upstream_peer(&self, _session: &mut Session, context: &mut Self::CTX) -> pingora::Result<Box<HttpPeer>> {
        let endpoint = self.next_upstream(context)?;
        let is_stream = context.route.is_some_and(Route::is_stream);
        let mut peer = self.upstreams.peer(&endpoint, is_stream);
        if !context.body_ended {
            // No answer comes before the body has: this is the time a client may take to send it.
            peer.options.read_timeout = Some(context.policy.body_timeout);
        }
        Ok(peer)
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Self::CTX,
    ) -> pingora::Result<()> {
        match &context.identity {
            Some(identity) => dress::dress(request, identity),
            None => Error::e_explain(ErrorType::InternalError, "a request without identity"),
        }
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        context: &mut Self::CTX,
    ) -> pingora::Result<()> {
        self.answered(session, answer, context)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Self::CTX,
    ) -> pingora::Result<Option<Duration>> {
        context.encode(body, end)?;
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Self::CTX,
        error: Box<Error>,
    ) -> Box<Error> {
        self.not_connected(context, error)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        context: &mut Self::CTX,
        client_reused: bool,
    ) -> Box<Error> {
        self.broken_off(session, context, error, client_reused)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Self::CTX) -> FailToProxy {
        FailToProxy {
            error_code: failure::answer(session, context, error).await,
            can_reuse_downstream: false,
        }
    }

    /// What Pingora's own log lines say of a request. Its default says the path with its query, which may hold a ticket or
    /// what somebody searches for.
    fn request_summary(&self, session: &Session, context: &Self::CTX) -> String {
        format!("{} {}", session.req_header().method, context.template)
    }

    /// The access log says it, once and structured.
    fn suppress_error_log(&self, _session: &Session, _context: &Self::CTX, _error: &Error) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Self::CTX) {
        if let Some(error) = error.filter(|error| *error.esource() != ErrorSource::Downstream) {
            tracing::warn!(%error, route = context.template, "request failed");
        }
        access_log::record(session, context, error, &self.metrics);
    }
}
