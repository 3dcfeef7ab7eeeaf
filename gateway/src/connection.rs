//! One client connection, for us and for Pingora: TLS over TCP, with answers gathered into few writes.
//!
//! Pingora's own stream keeps two buffers of 64 KiB for each connection. This one keeps none while idle, which is what
//! thousands of open event streams need, and joins the head and the body of an answer into one TLS record.

use std::any::Any;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::rustls::ServerConnection;
use tokio_rustls::server::TlsStream;

use crate::pipeline::Gate;

/// Most bytes gathered before they are written.
const GATHER: usize = 8 * 1024;
/// How long and how much a closing connection still listens.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// What is known about a connection; every request on it can reach this.
#[derive(Debug)]
pub struct Facts {
    pub peer: SocketAddr,
    pub handshake: Duration,
    pub tls_version: &'static str,
    /// Longest time that a write may make no progress, in milliseconds; that of the present request.
    pub stall_ms: AtomicU64,
    /// Whether the client has proved who it is by a certificate.
    pub certified: bool,
    /// Requests begun on it.
    pub requests: AtomicU32,
    /// Event streams open on it.
    pub streams: AtomicU32,
    /// What of it the present request may read.
    pub gate: Gate,
}

/// A client connection.
pub struct Connection {
    tls: TlsStream<TcpStream>,
    gathered: BytesMut,
    linger: Option<Box<Linger>>,
    /// When the time is over that a write may make no progress.
    stalled: Option<Pin<Box<Sleep>>>,
    facts: Arc<Facts>,
}

/// Until when, and for how many bytes, a closing connection still listens.
struct Linger {
    deadline: Pin<Box<Sleep>>,
    left: usize,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("http2", &self.is_http2())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Wraps a connection whose handshake is done.
    pub fn new(
        tls: TlsStream<TcpStream>,
        peer: SocketAddr,
        handshake: Duration,
        stall: Duration,
    ) -> (Self, Arc<Facts>) {
        let session = tls.get_ref().1;
        let version = version_of(session);
        let facts = Arc::new(Facts {
            peer,
            handshake,
            stall_ms: AtomicU64::new(u64::try_from(stall.as_millis()).unwrap_or(u64::MAX)),
            tls_version: version,
            certified: session.peer_certificates().is_some(),
            requests: AtomicU32::new(0),
            streams: AtomicU32::new(0),
            gate: Gate::default(),
        });
        let connection = Self {
            gathered: BytesMut::new(),
            linger: None,
            stalled: None,
            facts: Arc::clone(&facts),
            tls,
        };
        (connection, facts)
    }

    /// Whether the client chose HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.tls.get_ref().1.alpn_protocol() == Some(b"h2")
    }

    /// What is written with the next bytes; who adds much to it writes that instead.
    pub const fn gather(&mut self) -> &mut BytesMut {
        &mut self.gathered
    }

    fn poll_write_gathered(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gathered.has_remaining() {
            let written = Pin::new(&mut self.tls).poll_write(context, &self.gathered);
            let written = ready!(self.bounded(context, written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(written);
        }
        // An idle connection holds no memory for writing.
        self.gathered = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Bounds how long a write may make no progress: a client that takes nothing must not hold memory for ever.
    fn bounded<T>(&mut self, context: &mut Context<'_>, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let stall = Duration::from_millis(self.facts.stall_ms.load(Ordering::Relaxed));
        let deadline = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Gives the present request what belongs to it and keeps what comes after it.
    fn poll_read_gated(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = &self.facts.gate;
        let taken = gate.take(buffer.initialize_unfilled());
        if taken > 0 {
            buffer.advance(taken);
            return Poll::Ready(Ok(()));
        }
        let allowed = gate.allowed().min(buffer.remaining());
        if allowed > 0 {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(allowed));
            ready!(Pin::new(&mut self.tls).poll_read(context, &mut part))?;
            let read = part.filled().len();
            gate.claim(read);
            buffer.advance(read);
            return Poll::Ready(Ok(()));
        }
        let mut scrap = [0; 2_048];
        while gate.has_room() {
            let mut part = ReadBuf::new(&mut scrap);
            ready!(Pin::new(&mut self.tls).poll_read(context, &mut part))?;
            if part.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            gate.keep(part.filled());
        }
        // Whoever serves the request is woken by its answer; the next head is read only after it.
        Poll::Pending
    }

    /// Reads and forgets until the client closes, sends too much or takes too long.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| {
            Box::new(Linger {
                deadline: Box::pin(tokio::time::sleep(LINGER)),
                left: LINGER_BYTES,
            })
        });
        if linger.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut scrap = [0; 4_096];
        while linger.left > 0 {
            let mut buffer = ReadBuf::new(&mut scrap);
            match ready!(Pin::new(&mut self.tls).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    linger.left = linger.left.saturating_sub(buffer.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.facts.gate.is_open() {
            return Pin::new(&mut self.tls).poll_read(context, buffer);
        }
        self.poll_read_gated(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() + bytes.len() > GATHER {
            ready!(self.poll_write_gathered(context))?;
        }
        if bytes.len() >= GATHER {
            let written = Pin::new(&mut self.tls).poll_write(context, bytes);
            return self.bounded(context, written);
        }
        self.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_gathered(context))?;
        let flushed = Pin::new(&mut self.tls).poll_flush(context);
        self.bounded(context, flushed)
    }

    /// Says goodbye and then listens a little longer: a socket closed over unread bytes is reset, and the reset can
    /// overtake our last answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_gathered(context))?;
        let shut = Pin::new(&mut self.tls).poll_shutdown(context);
        ready!(self.bounded(context, shut))?;
        self.poll_linger(context).map(Ok)
    }
}

fn version_of(session: &ServerConnection) -> &'static str {
    let version = session.protocol_version();
    version.and_then(|version| version.as_str()).unwrap_or("")
}

// Pingora asks for what follows once for each request that it drives; a connection that it never sees does without.

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        if let Err(error) = AsyncWriteExt::shutdown(self).await {
            tracing::debug!(%error, "the client left first");
        }
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.tls.get_ref().0.as_raw_fd()
    }
}

impl Ssl for Connection {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        let session = self.tls.get_ref().1;
        let suite = session
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("");
        let digest = SslDigest::new(suite, version_of(session), None, None, Vec::new());
        Some(Arc::new(digest))
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(if self.is_http2() { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for Connection {
    /// None: the log has its own times.
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        let head = ResponseHeader::build(200, Some(0)).ok()?;
        let facts: Box<dyn Any + Send + Sync> = Box::new(Arc::clone(&self.facts));
        Some(Arc::new(ProxyDigest::new(Box::new(head), Some(facts))))
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        let socket = SocketDigest::from_raw_fd(self.id());
        // Known already; else Pingora would ask the kernel.
        let _ = socket.peer_addr.set(Some(self.facts.peer.into()));
        Some(Arc::new(socket))
    }
}

impl Peek for Connection {}
