//! Who asked: what the way of a request needs of its client, whichever protocol that speaks.
//!
//! HTTP/1 clients are served by [`Http1`](crate::http1::Http1) on a connection that is ours from the first byte to the last. Pingora drives HTTP/2,
//! connections that change their protocol and bodies that are too large to be held; its session is a client here like the other one.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::HttpTask;
use pingora::proxy::Session;
use pingora::{Error, ErrorType};

use crate::connection::Facts;

/// The client of one request. Errors are those of its side.
pub trait Client: Send {
    /// The head of the request.
    fn request(&self) -> &RequestHeader;

    /// What is known of its connection.
    fn facts(&self) -> Option<&Arc<Facts>>;

    fn is_http2(&self) -> bool;

    /// Whether it wants to go on in another protocol.
    fn wants_upgrade(&self) -> bool;

    /// Whether a part of the body is still to be read.
    fn has_more_body(&mut self) -> bool;

    /// Tells a client that waits for it to send its body.
    fn invite_body(&mut self) -> impl Future<Output = pingora::Result<()>> + Send;

    /// Keeps what is read of the body from here on.
    fn keep_body(&mut self);

    /// The next part of the body, `None` behind the last one.
    fn read_body(&mut self) -> impl Future<Output = pingora::Result<Option<Bytes>>> + Send;

    /// The body is here: what comes next is of another request.
    fn end_body(&mut self);

    /// What was kept of the body.
    fn kept_body(&self) -> Option<Bytes>;

    /// Whether that is everything that was read of it.
    fn kept_all(&self) -> bool;

    /// Bytes of the body read.
    fn bytes_in(&self) -> usize;

    /// Bytes of the answer's body written.
    fn bytes_out(&self) -> usize;

    /// Ends when the client is gone, with the reason. What it sends meanwhile is of its next request.
    fn gone(&mut self) -> impl Future<Output = Box<Error>> + Send;

    /// The connection ends after this request.
    fn close_after(&mut self);

    /// The status of the answer, once its head was written; of one on the way to it before that.
    fn answered(&self) -> Option<StatusCode>;

    /// Writes the head of an answer, with which the answer may end.
    fn write_head(&mut self, head: ResponseHeader, end: bool) -> impl Future<Output = pingora::Result<()>> + Send;

    /// Writes a part of the answer's body, or what is gathered when there is none.
    fn write_body(&mut self, part: Option<Bytes>, end: bool) -> impl Future<Output = pingora::Result<()>> + Send;

    /// Writes out what is gathered of an answer that breaks off here. Its connection closes next, and without these bytes the client would
    /// see that no answer ever came, and might ask again.
    fn write_out(&mut self) -> impl Future<Output = pingora::Result<()>> + Send;
}

impl Client for Session {
    fn request(&self) -> &RequestHeader {
        self.req_header()
    }

    fn facts(&self) -> Option<&Arc<Facts>> {
        let digest = self.as_downstream().digest()?.proxy_digest.as_ref()?;
        digest.user_data.as_ref()?.downcast_ref()
    }

    fn is_http2(&self) -> bool {
        self.as_downstream().is_http2()
    }

    fn wants_upgrade(&self) -> bool {
        self.as_downstream().is_upgrade_req()
    }

    fn has_more_body(&mut self) -> bool {
        !self.as_downstream_mut().is_body_done()
    }

    async fn invite_body(&mut self) -> pingora::Result<()> {
        self.as_downstream_mut().write_continue_response().await
    }

    fn keep_body(&mut self) {
        self.as_downstream_mut().enable_retry_buffering();
    }

    async fn read_body(&mut self) -> pingora::Result<Option<Bytes>> {
        self.as_downstream_mut().read_request_body().await
    }

    fn end_body(&mut self) {
        if !Client::is_http2(self)
            && let Some(facts) = self.facts()
        {
            facts.gate.close();
        }
    }

    fn kept_body(&self) -> Option<Bytes> {
        self.as_downstream().get_retry_buffer()
    }

    fn kept_all(&self) -> bool {
        !self.as_downstream().retry_buffer_truncated()
    }

    fn bytes_in(&self) -> usize {
        self.as_downstream().body_bytes_read()
    }

    fn bytes_out(&self) -> usize {
        self.as_downstream().body_bytes_sent()
    }

    async fn gone(&mut self) -> Box<Error> {
        let left = self.as_downstream_mut().read_body_or_idle(true).await;
        let error = left
            .err()
            .unwrap_or_else(|| Error::explain(ErrorType::ConnectionClosed, "bytes of no request"));
        error.into_down()
    }

    fn close_after(&mut self) {
        self.set_keepalive(None);
    }

    fn answered(&self) -> Option<StatusCode> {
        self.as_downstream().response_written().map(|head| head.status)
    }

    async fn write_head(&mut self, head: ResponseHeader, end: bool) -> pingora::Result<()> {
        let downstream = self.as_downstream_mut();
        if end {
            let whole = vec![HttpTask::Header(Box::new(head), true)];
            return downstream.response_duplex_vec(whole).await.map(|_| ());
        }
        let written = downstream.write_response_header(Box::new(head)).await;
        written.map_err(Error::into_down)
    }

    async fn write_body(&mut self, part: Option<Bytes>, end: bool) -> pingora::Result<()> {
        let downstream = self.as_downstream_mut();
        let written = match part {
            Some(part) => downstream.write_response_body(part, end).await,
            None if end => downstream.finish_body().await,
            None => Ok(()),
        };
        written.map_err(Error::into_down)
    }

    async fn write_out(&mut self) -> pingora::Result<()> {
        // Pingora writes out what it has before it gives a failure back, but not when it is all there is to do.
        let rest = vec![
            HttpTask::Trailer(None),
            HttpTask::Failed(Error::explain(ErrorType::ConnectionClosed, "the answer breaks off")),
        ];
        self.as_downstream_mut().response_duplex_vec(rest).await.map(|_| ())
    }
}
