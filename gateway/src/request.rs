//! What the phases of one request hand to each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fechatter_core::token::Claims;
use http::HeaderValue;

use crate::endpoint::Endpoint;
use crate::identity::Identity;
use crate::policy::Policy;
use crate::rate_limit::Decision;
use crate::routes::Route;

/// The label of requests that match no route.
pub const UNMATCHED: &str = "unmatched";

/// The state of one request.
#[derive(Debug)]
pub struct RequestContext {
    /// The rules that were in force when it began.
    pub policy: Arc<Policy>,
    pub started: Instant,
    pub identity: Option<Identity>,
    pub route: Option<&'static Route>,
    /// Of the route, or of the path whose method was wrong.
    pub template: &'static str,
    pub claims: Option<Arc<Claims>>,
    /// The request's origin, when it is an allowed one.
    pub origin: Option<HeaderValue>,
    pub decision: Option<Decision>,
    /// Why the gateway answered itself, a bounded label.
    pub refused: Option<&'static str>,
    pub upstream: Option<Arc<Endpoint>>,
    /// Its place among the requests of its group, and at its upstream.
    pub place: Option<crate::admission::Place>,
    pub at_endpoint: Option<crate::endpoint::AtEndpoint>,
    /// Upstreams tried.
    pub attempts: u32,
    /// When the last attempt began.
    pub attempted_at: Option<Instant>,
    /// From the beginning to the answer's head.
    pub to_headers: Option<Duration>,
    /// From the last attempt to the upstream's answer's head.
    pub upstream_wait: Option<Duration>,
    pub body_bytes: usize,
    /// The encoder of its answer, when that is compressed.
    pub compressing: Option<crate::compression::Compressing>,
    /// Whether the whole body has been read.
    pub body_ended: bool,
    /// Counts the request while it is in flight and no stream.
    pub in_flight: Option<crate::metrics::InFlight>,
    /// Counts an open stream while it lives.
    pub open_stream: Option<crate::metrics::OpenStream>,
}

impl RequestContext {
    /// A request that begins now, under these rules.
    pub fn new(policy: Arc<Policy>) -> Self {
        Self {
            policy,
            started: Instant::now(),
            identity: None,
            route: None,
            template: UNMATCHED,
            claims: None,
            origin: None,
            decision: None,
            refused: None,
            upstream: None,
            place: None,
            at_endpoint: None,
            attempts: 0,
            attempted_at: None,
            to_headers: None,
            upstream_wait: None,
            body_bytes: 0,
            compressing: None,
            body_ended: false,
            in_flight: None,
            open_stream: None,
        }
    }

    /// When the whole body must have come.
    pub fn body_deadline(&self) -> Instant {
        self.started + self.policy.body_timeout
    }

    /// Replaces a part of the answer's body by what the client gets of it.
    ///
    /// # Errors
    ///
    /// When the encoder fails.
    pub fn encode(&mut self, body: &mut Option<Bytes>, end: bool) -> pingora::Result<()> {
        match &mut self.compressing {
            Some(compressing) => compressing.encode(body, end),
            None => Ok(()),
        }
    }

    /// Notes that the answer's head leaves now.
    pub fn headers_sent(&mut self) {
        if self.to_headers.is_none() {
            self.to_headers = Some(self.started.elapsed());
        }
    }
}
