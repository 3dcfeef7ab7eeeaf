//! The edge as Pingora's phases, for the requests that Pingora drives. No rule lives here.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};

use crate::edge::Edge;
use crate::request::RequestContext;
use crate::routes::Route;
use crate::{body, dress, exchange, failure, fields};

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = RequestContext;

    fn new_ctx(&self) -> Self::CTX {
        RequestContext::new(self.policy.load_full())
    }

    /// None: our own steps are called below where they are needed, and cost nothing elsewhere.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, context: &mut Self::CTX) -> pingora::Result<bool> {
        // From here on the head is without the letters of its names, so that each attempt copies less.
        let _ = fields::of_request(session.req_header_mut(), |_| ());
        session.set_write_timeout(Some(context.policy.write_timeout));
        Ok(!self.begin(session, context).await?)
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
        let deadline = (!context.body_ended).then(|| context.body_deadline());
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
        self.log(session, context, error);
    }
}
