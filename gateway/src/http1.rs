//! An HTTP/1 client: one request of its connection, and the answer to it, byte by byte.
//!
//! Pingora's session for such a client parses the head once more and boxes what it waits for. This one keeps what is read and not used, and
//! writes an answer's head where its body is gathered.

use std::io::Write;
use std::sync::{Arc, LazyLock};
use std::task::Poll;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Shutdown;
use pingora::protocols::http::date::get_cached_date;
use pingora::{Error, ErrorType, OrErr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use crate::chunks::Chunks;
use crate::client::Client;
use crate::connection::{Connection, Facts};
use crate::framing::{self, Following};
use crate::head::Head;
use crate::pipeline::HELD_MAX;

/// Room for a part of a body.
const ROOM: usize = 8 * 1_024;
/// First room for an answer's head; most fit.
const HEAD_ROOM: usize = 1_024;

/// A client while one of its requests is served.
#[derive(Debug)]
pub struct Http1 {
    connection: Box<Connection>,
    facts: Arc<Facts>,
    request: Arc<RequestHeader>,
    /// What was read and not used: of the body, then of the next request.
    buffer: BytesMut,
    coming: Coming,
    /// The body as far as it was read, and all of it once it has ended.
    body: BytesMut,
    whole_body: Bytes,
    bytes_in: usize,
    answered: Option<StatusCode>,
    leaving: Leaving,
    bytes_out: usize,
    /// Whether another request may follow.
    keeps: bool,
}

/// What is to come of the request's body.
#[derive(Debug)]
enum Coming {
    Nothing,
    Bytes(u64),
    Chunks(Box<Chunks>),
}

/// What is to leave of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// Its head.
    Head,
    /// So many bytes of body.
    Bytes(u64),
    /// Chunks, and the last one.
    Chunks,
    /// A body that ends with the connection.
    ToTheEnd,
    /// A body that the client does not get: it asked for the head.
    Unsent,
    /// Nothing: the answer is whole.
    Nothing,
}

impl Http1 {
    /// A client whose request has this head.
    pub fn new(connection: Box<Connection>, facts: &Arc<Facts>, head: Head) -> Self {
        let request = head.request;
        Self {
            connection,
            facts: Arc::clone(facts),
            keeps: framing::keeps(&request.headers, request.version == Version::HTTP_10),
            request: Arc::new(request),
            buffer: head.rest,
            coming: match head.following {
                Following::Body(0) | Following::Open => Coming::Nothing,
                Following::Body(bytes) => Coming::Bytes(bytes),
                Following::Chunks => Coming::Chunks(Box::default()),
            },
            body: BytesMut::new(),
            whole_body: Bytes::new(),
            bytes_in: 0,
            answered: None,
            leaving: Leaving::Head,
            bytes_out: 0,
        }
    }

    /// The connection and what was read of its next request, unless it ends here; it is closed then.
    pub async fn next(mut self) -> Option<(Box<Connection>, BytesMut)> {
        if self.leaving == Leaving::Nothing && self.keeps {
            // What was read into may have grown, and the next request may be hours away.
            return Some((self.connection, BytesMut::from(&self.buffer[..])));
        }
        // An end that is said would make an answer whole that has no other.
        let is_cut = self.leaving == Leaving::ToTheEnd;
        if self.answered.is_some() && !is_cut {
            Shutdown::shutdown(&mut *self.connection).await;
        }
        None
    }

    /// Forgets the request, and what was read into: nobody asks again, and a stream is long.
    pub fn forget_request(&mut self) {
        static FORGOTTEN: LazyLock<Arc<RequestHeader>> =
            LazyLock::new(|| Arc::new(http::Request::new(()).into_parts().0.into()));
        if self.request.method == FORGOTTEN.method {
            self.request = Arc::clone(&FORGOTTEN);
        }
        self.buffer = BytesMut::from(&self.buffer[..]);
    }

    /// What of the body is in the buffer, once that is a part or the end of it.
    fn take_body(&mut self) -> pingora::Result<Option<BytesMut>> {
        match &mut self.coming {
            Coming::Nothing => Ok(Some(BytesMut::new())),
            Coming::Bytes(left) => {
                let part = self.buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= part as u64;
                if *left == 0 {
                    self.coming = Coming::Nothing;
                }
                Ok((part > 0).then(|| self.buffer.split_to(part)))
            }
            Coming::Chunks(chunks) => {
                let mut data = BytesMut::new();
                let ended = chunks.unwrap(&mut self.buffer, &mut data);
                let ended = ended
                    .or_err(ErrorType::InvalidHTTPHeader, "of a request")
                    .map_err(Error::into_down)?;
                if ended {
                    self.coming = Coming::Nothing;
                }
                Ok((ended || !data.is_empty()).then_some(data))
            }
        }
    }

    /// How the body of an answer with this head leaves.
    fn leaving_of(&mut self, head: &ResponseHeader, end: bool) -> Leaving {
        if end || matches!(head.status.as_u16(), 204 | 304) {
            return Leaving::Nothing;
        }
        if self.request.method == Method::HEAD {
            return Leaving::Unsent;
        }
        let length = head.headers.get(CONTENT_LENGTH);
        if let Some(length) = length.and_then(|length| framing::length_of(length.as_bytes()).ok()) {
            return Leaving::Bytes(length);
        }
        if self.request.version == Version::HTTP_10 {
            self.keeps = false;
            return Leaving::ToTheEnd;
        }
        Leaving::Chunks
    }

    fn write_fields(&mut self, head: &ResponseHeader) {
        let wire = self.connection.gather();
        wire.reserve(HEAD_ROOM);
        wire.extend_from_slice(b"HTTP/1.1 ");
        wire.extend_from_slice(head.status.as_str().as_bytes());
        wire.put_u8(b' ');
        wire.extend_from_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
        wire.extend_from_slice(b"\r\n");
        let mut field = |name: &[u8], value: &[u8]| {
            wire.extend_from_slice(name);
            wire.extend_from_slice(b": ");
            wire.extend_from_slice(value);
            wire.extend_from_slice(b"\r\n");
        };
        // How it leaves is said here, whatever the upstream said of its own connection.
        let has_length = head.status != StatusCode::NO_CONTENT && self.leaving != Leaving::Chunks;
        for (name, value) in &head.headers {
            let is_ours = *name == CONNECTION || *name == DATE || *name == TRANSFER_ENCODING;
            if !is_ours && (has_length || *name != CONTENT_LENGTH) {
                field(name.as_str().as_bytes(), value.as_bytes());
            }
        }
        if !head.status.is_informational() {
            field(b"date", get_cached_date().as_bytes());
            if self.leaving == Leaving::Chunks {
                field(b"transfer-encoding", b"chunked");
            }
            field(b"connection", if self.keeps { b"keep-alive" } else { b"close" });
        }
        wire.extend_from_slice(b"\r\n");
    }

    async fn flush(&mut self) -> pingora::Result<()> {
        let flushed = self.connection.flush().await;
        flushed
            .or_err(ErrorType::WriteError, "an answer")
            .map_err(Error::into_down)
    }

    async fn write(&mut self, bytes: &[u8]) -> pingora::Result<()> {
        let written = self.connection.write_all(bytes).await;
        written
            .or_err(ErrorType::WriteError, "an answer")
            .map_err(Error::into_down)
    }

    async fn write_part(&mut self, part: &[u8]) -> pingora::Result<()> {
        match &mut self.leaving {
            Leaving::Bytes(left) => {
                let Some(rest) = left.checked_sub(part.len() as u64) else {
                    return Err(Error::explain(ErrorType::InvalidHTTPHeader, "an answer is too long").into_up());
                };
                *left = rest;
            }
            Leaving::Chunks => {
                // Writing into memory cannot fail.
                let _ = write!(self.connection.gather().writer(), "{:x}\r\n", part.len());
                self.bytes_out += part.len();
                self.write(part).await?;
                return self.write(b"\r\n").await;
            }
            Leaving::ToTheEnd => {}
            Leaving::Unsent | Leaving::Head | Leaving::Nothing => return Ok(()),
        }
        self.bytes_out += part.len();
        self.write(part).await
    }

    fn end_answer(&mut self) -> pingora::Result<()> {
        match self.leaving {
            Leaving::Chunks => self.connection.gather().extend_from_slice(b"0\r\n\r\n"),
            Leaving::Bytes(1..) => {
                return Err(Error::explain(ErrorType::ConnectionClosed, "an answer is too short").into_up());
            }
            _ => {}
        }
        self.leaving = Leaving::Nothing;
        Ok(())
    }
}

impl Client for Http1 {
    fn request(&self) -> &RequestHeader {
        &self.request
    }

    fn facts(&self) -> Option<&Arc<Facts>> {
        Some(&self.facts)
    }

    fn is_http2(&self) -> bool {
        false
    }

    fn wants_upgrade(&self) -> bool {
        false
    }

    fn has_more_body(&mut self) -> bool {
        !matches!(self.coming, Coming::Nothing)
    }

    async fn invite_body(&mut self) -> pingora::Result<()> {
        if self.buffer.is_empty() {
            self.connection
                .gather()
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.flush().await?;
        }
        Ok(())
    }

    fn keep_body(&mut self) {}

    async fn read_body(&mut self) -> pingora::Result<Option<Bytes>> {
        loop {
            if let Some(part) = self.take_body()? {
                self.bytes_in += part.len();
                if part.is_empty() {
                    return Ok(None);
                }
                self.body.extend_from_slice(&part);
                return Ok(Some(part.freeze()));
            }
            self.buffer.reserve(ROOM);
            let read = self.connection.read_buf(&mut self.buffer).await;
            if read.or_err(ErrorType::ReadError, "a body").map_err(Error::into_down)? == 0 {
                return Err(Error::explain(ErrorType::ConnectionClosed, "in a body").into_down());
            }
        }
    }

    fn end_body(&mut self) {
        self.whole_body = std::mem::take(&mut self.body).freeze();
    }

    fn kept_body(&self) -> Option<Bytes> {
        (!self.whole_body.is_empty()).then(|| self.whole_body.clone())
    }

    fn kept_all(&self) -> bool {
        true
    }

    fn bytes_in(&self) -> usize {
        self.bytes_in
    }

    fn bytes_out(&self) -> usize {
        self.bytes_out
    }

    async fn gone(&mut self) -> Box<Error> {
        let (connection, buffer) = (&mut self.connection, &mut self.buffer);
        let read = std::future::poll_fn(|context| {
            let mut scrap = [std::mem::MaybeUninit::uninit(); 2_048];
            // Beyond, the client's next bytes wait in its socket; who serves this request is woken by its answer.
            while buffer.len() < HELD_MAX {
                let mut part = ReadBuf::uninit(&mut scrap);
                match std::pin::Pin::new(&mut **connection).poll_read(context, &mut part) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) if part.filled().is_empty() => {
                        return Poll::Ready(Error::explain(ErrorType::ConnectionClosed, "the client left"));
                    }
                    Poll::Ready(Ok(())) => buffer.extend_from_slice(part.filled()),
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Error::because(ErrorType::ReadError, "the client left", error));
                    }
                }
            }
            Poll::Pending
        });
        read.await.into_down()
    }

    fn close_after(&mut self) {
        self.keeps = false;
    }

    fn answered(&self) -> Option<StatusCode> {
        self.answered
    }

    async fn write_head(&mut self, head: ResponseHeader, end: bool) -> pingora::Result<()> {
        if head.status.is_informational() {
            if self.request.version != Version::HTTP_10 {
                self.answered = Some(head.status);
                self.write_fields(&head);
                return self.flush().await;
            }
            return Ok(());
        }
        if self.leaving != Leaving::Head {
            return Err(Error::explain(ErrorType::InternalError, "a second answer").into_in());
        }
        // Where its body ends is not known, so neither is where another request would begin.
        self.keeps &= matches!(self.coming, Coming::Nothing);
        self.leaving = self.leaving_of(&head, end);
        self.write_fields(&head);
        self.answered = Some(head.status);
        if end { self.flush().await } else { Ok(()) }
    }

    async fn write_body(&mut self, part: Option<Bytes>, end: bool) -> pingora::Result<()> {
        if let Some(part) = part.filter(|part| !part.is_empty()) {
            self.write_part(&part).await?;
        }
        if end {
            self.end_answer()?;
        }
        self.flush().await
    }

    async fn write_out(&mut self) -> pingora::Result<()> {
        self.flush().await
    }
}
