//! The way of an event stream of an HTTP/1 client: a request without a body, and an answer that goes on for hours.
//!
//! Pingora drives both directions of a request at once, with channels, buffers and filters for each. A stream needs none of them, and there
//! are many: what one takes of memory while nothing happens on it is what a gateway can hold.

use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{Uri, Version};
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::{Error, ErrorType, OkOrErr, OrErr};

use crate::answer_head;
use crate::client::Client;
use crate::dress;
use crate::edge::Edge;
use crate::endpoint::Endpoint;
use crate::failure;
use crate::http1::Http1;
use crate::request::RequestContext;

/// Connections to upstreams that carry streams.
pub type Streams = Arc<Connector>;

/// None yet; so many may wait for their next stream.
pub fn connections(kept: usize) -> Streams {
    Arc::new(Connector::new(Some(ConnectorOptions::new(kept))))
}

/// A request whose answer has begun and goes on.
pub struct Opened {
    pub context: RequestContext,
    pub upstream: HttpSession,
}

/// A stream whose head its client has. It is what is kept of a request for as long as the stream lasts.
pub struct OpenStream {
    client: Http1,
    opened: Box<Opened>,
}

impl OpenStream {
    /// The stream that a request has led to.
    pub fn new(mut client: Http1, opened: Box<Opened>) -> Box<Self> {
        // Of another answer the log tells more.
        if opened.context.open_stream.is_some() {
            client.forget_request();
        }
        Box::new(Self { client, opened })
    }

    /// Passes on what the upstream says until one of both ends.
    pub async fn run(mut self: Box<Self>, edge: &Edge) -> Http1 {
        let ended = self.pass_on().await;
        Box::pin(self.end(edge, ended)).await
    }

    async fn end(self: Box<Self>, edge: &Edge, ended: pingora::Result<()>) -> Http1 {
        let Self { mut client, opened } = *self;
        let Opened { mut context, upstream } = *opened;
        if let Some(endpoint) = &context.upstream {
            edge.release_stream(upstream, endpoint, ended.is_ok()).await;
        }
        let error = ended.err().map(|error| edge.broken_off(&client, &context, error, true));
        if let Some(error) = &error {
            failure::answer(&mut client, &mut context, error).await;
        }
        edge.log(&client, &mut context, error.as_deref());
        client
    }

    async fn pass_on(&mut self) -> pingora::Result<()> {
        loop {
            let mut part = tokio::select! {
                biased;
                read = next_part(&mut self.opened.upstream) => read?,
                error = self.client.gone() => return Err(error),
            };
            let end = part.is_none();
            self.opened.context.encode(&mut part, end)?;
            self.client.write_body(part, end).await?;
            if end {
                return Ok(());
            }
        }
    }
}

impl Edge {
    /// Sends a request to an upstream, to another when that may help, and passes on the head of its answer.
    ///
    /// # Errors
    ///
    /// When there is no answer, or nobody takes it.
    pub async fn open_stream(&self, client: &mut Http1, context: &mut RequestContext) -> pingora::Result<HttpSession> {
        loop {
            let endpoint = self.next_upstream(context)?;
            let error = match self.connect_stream(&endpoint).await {
                Ok((mut upstream, reused)) => {
                    let Err(error) = self.begin_stream(&mut upstream, &endpoint, client, context).await else {
                        return Ok(upstream);
                    };
                    self.release_stream(upstream, &endpoint, false).await;
                    self.broken_off(client, context, error, reused)
                }
                Err(error) => self.not_connected(context, error.into_up()),
            };
            if !error.retry() {
                return Err(error);
            }
            tracing::warn!(%error, route = context.template, attempts = context.attempts, "request is tried again");
        }
    }

    /// A stream of a connection to an upstream, and whether others are or were on that.
    async fn connect_stream(&self, endpoint: &Endpoint) -> pingora::Result<(HttpSession, bool)> {
        let peer = self.upstreams.peer(endpoint, true);
        let (mut upstream, reused) = self.streams.get_http_session(&*peer).await?;
        upstream.set_read_timeout(peer.options.read_timeout);
        upstream.set_write_timeout(peer.options.write_timeout);
        Ok((upstream, reused))
    }

    /// Gives a stream's place on its connection to the next one; that of HTTP/1 has only one.
    async fn release_stream(&self, upstream: HttpSession, endpoint: &Endpoint, is_whole: bool) {
        if is_whole || matches!(upstream, HttpSession::H2(_)) {
            let peer = self.upstreams.peer(endpoint, true);
            let patience = peer.options.idle_timeout;
            self.streams.release_http_session(upstream, &*peer, patience).await;
        }
    }

    /// Up to the head of the answer, which is passed on.
    async fn begin_stream(
        &self,
        upstream: &mut HttpSession,
        endpoint: &Endpoint,
        client: &mut Http1,
        context: &mut RequestContext,
    ) -> pingora::Result<()> {
        let request = request_of(client, context, endpoint, matches!(upstream, HttpSession::H2(_)))?;
        send(upstream, request).await.map_err(Error::into_up)?;
        let mut head = loop {
            tokio::select! {
                biased;
                read = next_head(upstream) => read?,
                error = client.gone() => return Err(error),
            }
            let head = upstream.response_header();
            let mut head = head.or_err(ErrorType::InternalError, "no head was read")?.clone();
            if !head.status.is_informational() {
                break head;
            }
            self.answered(client, &mut head, context)?;
            client.write_head(head, false).await?;
        };
        answer_head::bare(&mut head);
        let length = answer_head::length(&head.headers, head.version == Version::HTTP_10);
        length.map_err(|fault| Error::explain(ErrorType::InvalidHTTPHeader, fault.as_str()).into_up())?;
        self.answered(client, &mut head, context)?;
        client.write_head(head, false).await?;
        client.write_body(None, false).await
    }
}

/// Sends a request without a body.
async fn send(upstream: &mut HttpSession, request: Box<RequestHeader>) -> pingora::Result<()> {
    if let HttpSession::H2(upstream) = upstream {
        // With the mark that it ends here.
        return upstream.write_request_header(request, true);
    }
    upstream.write_request_header(request).await?;
    upstream.finish_request_body().await
}

/// The head of a request for an upstream.
fn request_of(
    client: &impl Client,
    context: &RequestContext,
    endpoint: &Endpoint,
    is_http2: bool,
) -> pingora::Result<Box<RequestHeader>> {
    let identity = context.identity.as_ref();
    let identity = identity.or_err(ErrorType::InternalError, "a request without identity")?;
    let mut request = Box::new(client.request().clone());
    dress::bare(&mut request);
    dress::dress(&mut request, identity)?;
    if is_http2 {
        let host = request.remove_header(&HOST);
        let authority = match &host {
            Some(host) => Authority::try_from(host.as_bytes()),
            None => Authority::try_from(endpoint.address.to_string()),
        };
        let path = request.uri.path_and_query().cloned();
        let uri = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(
                authority
                    .or_err(ErrorType::InvalidHTTPHeader, "Host")
                    .map_err(Error::into_down)?,
            )
            .path_and_query(path.or_err(ErrorType::InternalError, "a target without a path")?);
        request.set_uri(
            uri.build()
                .or_err(ErrorType::InternalError, "a target that is no URI")?,
        );
    }
    request.set_version(if is_http2 { Version::HTTP_2 } else { Version::HTTP_11 });
    Ok(request)
}

async fn next_head(upstream: &mut HttpSession) -> pingora::Result<()> {
    let read = upstream.read_response_header().await;
    looked_at(upstream, read)
}

async fn next_part(upstream: &mut HttpSession) -> pingora::Result<Option<Bytes>> {
    let read = upstream.read_response_body().await;
    looked_at(upstream, read)
}

/// An upstream that says nothing may be gone, with all that goes by the same connection: no new stream comes on that.
fn looked_at<T>(upstream: &HttpSession, read: pingora::Result<T>) -> pingora::Result<T> {
    if let (Err(error), HttpSession::H2(upstream)) = (&read, upstream)
        && *error.etype() == ErrorType::ReadTimedout
    {
        upstream.conn.mark_shutdown();
    }
    read.map_err(Error::into_up)
}
