//! The way of an ordinary request to an upstream and of its answer back, one after the other in one task.
//!
//! Pingora drives both directions at once, joined by channels, because any request may be a tunnel. Ours are mostly not: their body is here
//! before an upstream hears of them, and their answer ends. The rules are those of [`edge`](crate::edge); event streams of HTTP/1 clients go by
//! [`stream`](crate::stream), and what is neither (upgrades, large bodies, streams by HTTP/2) goes Pingora's way.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Method};
use pingora::protocols::l4::ext;
use pingora::time::timeout;
use pingora::{Error, ErrorSource, ErrorType, OrErr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::answer_head::{self, AnswerHead, Length};
use crate::chunks::Chunks;
use crate::client::Client;
use crate::dress;
use crate::edge::Edge;
use crate::framing::FramingFault;
use crate::idle::Idle;
use crate::request::RequestContext;
use crate::routes::Route;
use crate::upstreams::{KEEPALIVE, Waits};

/// First room for an answer; most fit.
const ROOM: usize = 8 * 1_024;
/// Room for what comes after it.
const MORE_ROOM: usize = 32 * 1_024;

/// Whether a request's way can be this one.
pub fn is_ordinary(client: &impl Client, context: &RequestContext) -> bool {
    context.body_ended
        && context.route.is_some_and(|route| !Route::is_stream(route))
        && !client.wants_upgrade()
        && client.kept_all()
        && declared(client).is_none_or(|length| length == client.bytes_in())
}

/// The body's length, as the client said.
fn declared(client: &impl Client) -> Option<usize> {
    let length = client.request().headers.get(CONTENT_LENGTH)?;
    Some(length.to_str().ok()?.parse().unwrap_or(usize::MAX))
}

impl Edge {
    /// Sends a request to an upstream, to another when that may help, and the answer to the client.
    ///
    /// # Errors
    ///
    /// When there is no whole answer, or nobody who takes it.
    pub async fn exchange(&self, client: &mut impl Client, context: &mut RequestContext) -> pingora::Result<()> {
        let wire = wire(client, context)?;
        let waits = self.upstreams.waits();
        loop {
            let endpoint = self.next_upstream(context)?;
            let error = match Line::open(&self.idle, endpoint.address, &waits).await {
                Ok(line) => {
                    let reused = line.reused;
                    let Err(error) = self.attempt(line, &wire, client, context).await else {
                        return Ok(());
                    };
                    self.broken_off(client, context, error, reused)
                }
                Err(error) => self.not_connected(context, error),
            };
            if !error.retry() {
                return Err(error);
            }
            tracing::warn!(%error, route = context.template, attempts = context.attempts, "request is tried again");
        }
    }

    async fn attempt(
        &self,
        mut line: Line,
        wire: &[u8],
        client: &mut impl Client,
        context: &mut RequestContext,
    ) -> pingora::Result<()> {
        let mut unsent = match line.send(wire).await {
            Err(error) if *error.etype() == ErrorType::WriteTimedout => return Err(error),
            // Who does not take all of a request may have answered it already.
            sent => sent.err(),
        };
        let answer = loop {
            let read = line.read_head(client).await;
            let mut answer = read.map_err(|error| {
                let of_upstream = *error.esource() == ErrorSource::Upstream;
                unsent.take().filter(|_| of_upstream).unwrap_or(error)
            })?;
            if !answer.head.status.is_informational() {
                break answer;
            }
            self.answered(client, &mut answer.head, context)?;
            client.write_head(answer.head, false).await?;
        };
        let keeps = answer.keeps && unsent.is_none();
        self.relay(line, answer, keeps, client, context).await
    }

    /// Passes an answer on to the client.
    async fn relay(
        &self,
        mut line: Line,
        answer: AnswerHead,
        keeps: bool,
        client: &mut impl Client,
        context: &mut RequestContext,
    ) -> pingora::Result<()> {
        let AnswerHead { mut head, length, .. } = answer;
        if length == Length::ToTheEnd {
            head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
        }
        self.answered(client, &mut head, context)?;
        if length == Length::Exact(0) {
            line.finish(&self.idle, keeps);
            return client.write_head(head, true).await;
        }
        client.write_head(head, false).await?;
        let mut body = Body::new(length);
        loop {
            let (part, mut end) = body.take(&mut line.buffer)?;
            let mut part = Some(part).filter(|part| !part.is_empty());
            if part.is_none() && !end {
                // The rest may take its time.
                client.write_body(None, false).await?;
                end = line.read(client, MORE_ROOM).await? == 0;
                if !end {
                    continue;
                }
                body.end()?;
            }
            context.encode(&mut part, end)?;
            if end {
                // A client that takes its time must not hold the upstream's connection.
                line.finish(&self.idle, keeps);
                return client.write_body(part, true).await;
            }
            client.write_body(part, false).await?;
        }
    }
}

/// The bytes of a request.
fn wire(client: &impl Client, context: &RequestContext) -> pingora::Result<Vec<u8>> {
    let Some(identity) = &context.identity else {
        return Error::e_explain(ErrorType::InternalError, "a request without identity");
    };
    let (request, body) = (client.request(), client.kept_body());
    let body = body.unwrap_or_default();
    let mut wire = Vec::with_capacity(2 * 1_024 + body.len());
    dress::write(request, identity, body.len(), &mut wire)?;
    if !body.is_empty() {
        dress::write_body(request, &body, &mut wire);
    }
    Ok(wire)
}

/// What is to come of an answer's body.
enum Body {
    Exact(u64),
    Chunks(Chunks),
    ToTheEnd,
}

impl Body {
    fn new(length: Length) -> Self {
        match length {
            Length::Exact(length) => Self::Exact(length),
            Length::Chunks => Self::Chunks(Chunks::default()),
            Length::ToTheEnd => Self::ToTheEnd,
        }
    }

    /// What of it is there, and whether it ends with that.
    fn take(&mut self, buffer: &mut BytesMut) -> pingora::Result<(Bytes, bool)> {
        match self {
            Self::Exact(left) => {
                let part = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= part as u64;
                Ok((buffer.split_to(part).freeze(), *left == 0))
            }
            Self::Chunks(chunks) => {
                let mut data = BytesMut::with_capacity(buffer.len());
                let ended = chunks.unwrap(buffer, &mut data);
                let ended = ended
                    .or_err(ErrorType::InvalidHTTPHeader, "of an answer")
                    .map_err(Error::into_up)?;
                Ok((data.freeze(), ended))
            }
            Self::ToTheEnd => Ok((buffer.split().freeze(), false)),
        }
    }

    /// The connection has ended.
    fn end(&self) -> pingora::Result<()> {
        match self {
            Self::ToTheEnd => Ok(()),
            _ => Err(Error::explain(ErrorType::ConnectionClosed, "an answer broke off").into_up()),
        }
    }
}

/// A connection to an upstream while a request is on it.
struct Line {
    stream: TcpStream,
    address: SocketAddr,
    /// Whether other requests were on it before.
    reused: bool,
    /// Longest time without progress.
    patience: Duration,
    /// What was read and not looked at.
    buffer: BytesMut,
}

impl Line {
    /// A connection that waited, or a new one.
    async fn open(idle: &Idle, address: SocketAddr, waits: &Waits) -> pingora::Result<Self> {
        let waiting = idle.take(address, waits.idle);
        let reused = waiting.is_some();
        let stream = match waiting {
            Some(stream) => stream,
            None => connect(address, waits.connect).await.map_err(Error::into_up)?,
        };
        Ok(Self {
            stream,
            address,
            reused,
            patience: waits.progress,
            buffer: BytesMut::new(),
        })
    }

    async fn send(&mut self, bytes: &[u8]) -> pingora::Result<()> {
        match timeout(self.patience, self.stream.write_all(bytes)).await {
            Ok(sent) => sent.or_err(ErrorType::WriteError, "a request"),
            Err(_) => Error::e_explain(ErrorType::WriteTimedout, "a request"),
        }
        .map_err(Error::into_up)
    }

    /// Reads what comes next; 0 at the end. Ends when the client leaves: nobody would take the answer.
    async fn read(&mut self, client: &mut impl Client, room: usize) -> pingora::Result<usize> {
        let Self { stream, buffer, .. } = self;
        buffer.reserve(room);
        let read = async {
            tokio::select! {
                biased;
                read = stream.read_buf(buffer) => {
                    read.or_err(ErrorType::ReadError, "an answer").map_err(Error::into_up)
                }
                error = client.gone() => Err(error),
            }
        };
        match timeout(self.patience, read).await {
            Ok(read) => read,
            Err(_) => Err(Error::explain(ErrorType::ReadTimedout, "an answer").into_up()),
        }
    }

    async fn read_head(&mut self, client: &mut impl Client) -> pingora::Result<AnswerHead> {
        let to_head = client.request().method == Method::HEAD;
        let broken = |fault: FramingFault| Error::explain(ErrorType::InvalidHTTPHeader, fault.as_str()).into_up();
        let mut seen = 0;
        loop {
            if let Some(end) = answer_head::find_end(&self.buffer, seen).map_err(broken)? {
                let head = self.buffer.split_to(end).freeze();
                return answer_head::parse(&head, to_head).map_err(broken);
            }
            seen = self.buffer.len();
            if self.read(client, ROOM).await? == 0 {
                return Err(Error::explain(ErrorType::ConnectionClosed, "no whole head of an answer").into_up());
            }
        }
    }

    /// The answer is whole. Bytes behind it are nobody's, and end the connection.
    fn finish(self, idle: &Idle, keeps: bool) {
        if keeps && self.buffer.is_empty() {
            idle.put(self.address, self.stream);
        }
    }
}

async fn connect(address: SocketAddr, within: Duration) -> pingora::Result<TcpStream> {
    let Ok(connected) = timeout(within, ext::connect(&address, None)).await else {
        return Error::e_explain(ErrorType::ConnectTimedout, "an upstream");
    };
    let stream = connected?;
    stream
        .set_nodelay(true)
        .or_err(ErrorType::ConnectError, "TCP_NODELAY")?;
    ext::set_tcp_keepalive(&stream, &KEEPALIVE)?;
    Ok(stream)
}
